//! The connections of one kind to a peer: calls go to each in turn.
//!
//! A connection comes about when its turn comes and it is not there, and one that was closed (a server ages its connections, a
//! proxy restarts) is replaced by the next call. Where it is known which store is meant, each connection is asked for it
//! before it is used, since one address may lead to several. With that answer come the peer's settings, so that its limit of
//! streams is known before it could be hit; where all connections are at that limit more are made, up to [`MOST`].

use super::connection::{Connection, ExpectedStore, Lease, OtherStore, id_in};
use super::connector::{ConnectError, Connector, OtherProtocol, http2, said};
use crate::pb::v1;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use http::{Request, Response, Uri};
use parking_lot::Mutex;
use std::future::ready;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;
use v1::blob_receiver_service_client::BlobReceiverServiceClient;

/// Connections of one kind to a peer, at most.
const MOST: usize = 64;

/// How often a request that was not sent, since its connection was closed before, is tried on others.
const RESENT: usize = 4;

/// What connections to a peer are made with.
pub(super) struct Maker {
    pub(super) connector: Connector,
    pub(super) expected: ExpectedStore,
    pub(super) uri: Uri,
    pub(super) request_timeout: Duration,
    /// See [`Connection`].
    pub(super) silence: Duration,
}

impl Maker {
    async fn make(self: Arc<Self>, window: u32) -> Result<Arc<Connection>, Status> {
        let connected = self.connector.connect(window).await;
        let connected = connected.map_err(|why| match why {
            ConnectError::OtherProtocol(other) => not_grpc(other),
            ConnectError::Failed(why) => Status::unavailable(format!("cannot connect: {why}")),
        })?;
        let connection = Arc::new(Connection::new(connected, self.silence));
        if self.expected.get().is_none() {
            return Ok(connection);
        }
        let bare = BareChannel { connection: connection.clone(), uri: self.uri.clone() };
        let mut client = BlobReceiverServiceClient::new(bare);
        let answer = timeout(self.request_timeout, client.get_peer_info(v1::GetPeerInfoRequest {})).await;
        let seconds = self.request_timeout.as_secs_f64();
        let late =
            |_| Status::unavailable(format!("a new connection did not answer within {seconds} s (request_timeout)"));
        let id = match answer.map_err(late)? {
            Ok(answer) => answer.into_inner().peer_info.map(|info| info.store_id).filter(|id| !id.is_empty()),
            // Whoever uses the connection will find out what it is.
            Err(status) if status.code() == Code::Unimplemented => None,
            Err(status) => {
                let status = connection.refusal().map_or(status, refused);
                return Err(self.ended(&connection, status).await);
            }
        };
        connection.identified(id.map(Arc::from)).await;
        Ok(connection)
    }
}

impl Maker {
    /// Why a call failed. Where nothing ever came on its connection, another protocol may be spoken there.
    async fn ended(&self, connection: &Connection, status: Status) -> Status {
        if connection.has_answered() || connection.refusal().is_some() {
            return status;
        }
        self.connector.spoken().await.map_or(status, not_grpc)
    }
}

/// One connection, for the first question on it.
#[derive(Clone)]
struct BareChannel {
    connection: Arc<Connection>,
    uri: Uri,
}

impl Service<Request<Body>> for BareChannel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if let Err(status) = address(&mut request, &self.uri) {
            return ready(Err(status)).boxed();
        }
        let answer = self.connection.send(request);
        async move { Ok(answer.await.map_err(|error| broken(error.into_error()))?.map(Body::new)) }.boxed()
    }
}

/// Makes the path that a generated client asks for an address.
pub(super) fn address(request: &mut Request<Body>, origin: &Uri) -> Result<(), Status> {
    let mut parts = origin.clone().into_parts();
    parts.path_and_query = request.uri().path_and_query().cloned();
    let uri = Uri::from_parts(parts).map_err(|error| Status::internal(said(&error)))?;
    *request.uri_mut() = uri;
    Ok(())
}

type Making = Shared<BoxFuture<'static, Result<Arc<Connection>, Status>>>;

/// A place for a connection.
#[derive(Clone, Default)]
enum Slot {
    #[default]
    Empty,
    Making(Making),
    Open(Arc<Connection>),
}

/// See the module's header.
pub(in crate::grpc) struct Pool {
    maker: Arc<Maker>,
    window: u32,
    slots: Mutex<Vec<Slot>>,
    next: AtomicUsize,
}

impl Pool {
    pub(super) fn new(maker: &Arc<Maker>, size: usize, window: u32) -> Self {
        Self { maker: maker.clone(), window, slots: Mutex::new(vec![Slot::Empty; size]), next: AtomicUsize::new(0) }
    }

    /// Where the peer is.
    pub(in crate::grpc) fn uri(&self) -> &Uri {
        &self.maker.uri
    }

    /// Makes a call, and gives its place with the answer. `is_checked`: only the expected store may answer.
    pub(in crate::grpc) async fn call(
        &self,
        mut request: Request<Body>,
        is_checked: bool,
    ) -> Result<(Response<Body>, Lease), Status> {
        address(&mut request, &self.maker.uri)?;
        let check =
            |id: Option<&str>| if is_checked { self.maker.expected.check(id).map_err(other_store) } else { Ok(()) };
        let mut resent = 0;
        loop {
            let lease = self.lease().await?;
            if let Err(status) = check(lease.connection().store_id()) {
                // The next one may lead elsewhere.
                lease.connection().retire();
                return Err(status);
            }
            match lease.connection().send(request).await {
                Ok(answer) => {
                    lease.heard();
                    check(id_in(answer.headers()))?;
                    return Ok((answer.map(Body::new), lease));
                }
                Err(mut error) => match (lease.connection().refusal(), error.take_message()) {
                    (Some(why), _) => return Err(refused(why)),
                    // It was not sent: the connection was closed meanwhile.
                    (None, Some(unsent)) if resent < RESENT => {
                        (request, resent) = (unsent, resent + 1);
                    }
                    _ => return Err(self.maker.ended(lease.connection(), broken(error.into_error())).await),
                },
            }
        }
    }

    /// A place for a call on the connection whose turn it is, or on another that has one.
    async fn lease(&self) -> Result<Lease, Status> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed);
        let mut skipped = 0;
        loop {
            let Some((at, making)) = self.at_turn(turn, skipped) else {
                let what = format!("{} allows no more calls at a time on each of {MOST} connections", self.maker.uri);
                return Err(Status::resource_exhausted(what));
            };
            let connection = match making {
                Slot::Open(connection) => connection,
                Slot::Making(making) => {
                    let made = making.await;
                    self.made(at, made.as_ref().ok());
                    made?
                }
                Slot::Empty => continue,
            };
            match Lease::take(&connection) {
                Some(lease) => return Ok(lease),
                None => skipped += 1,
            }
        }
    }

    /// The place whose turn it is, after so many were full; none where all are.
    fn at_turn(&self, turn: usize, skipped: usize) -> Option<(usize, Slot)> {
        let mut slots = self.slots.lock();
        let at = if skipped < slots.len() {
            (turn + skipped) % slots.len()
        } else if slots.len() < MOST {
            slots.push(Slot::Empty);
            slots.len() - 1
        } else {
            return None;
        };
        let slot = slots.get_mut(at)?;
        match slot {
            Slot::Open(connection) if connection.is_open() => {}
            // One that has failed was not heard of by whoever asked, who had left.
            Slot::Making(making) if making.peek().is_none_or(Result::is_ok) => {}
            Slot::Empty | Slot::Making(_) | Slot::Open(_) => {
                *slot = Slot::Making(self.making());
            }
        }
        Some((at, slot.clone()))
    }

    /// A connection that comes about, also where the call that asked for it first is given up.
    fn making(&self) -> Making {
        let mut task = JoinSet::new();
        task.spawn(self.maker.clone().make(self.window));
        let made = async move {
            match task.join_next().await {
                Some(Ok(made)) => made,
                Some(Err(error)) => Err(Status::unavailable(format!("connecting failed: {error}"))),
                None => Err(Status::unavailable("connecting failed")),
            }
        };
        made.boxed().shared()
    }

    /// A connection has come about, or has not.
    fn made(&self, at: usize, connection: Option<&Arc<Connection>>) {
        let mut slots = self.slots.lock();
        let Some(slot) = slots.get_mut(at) else { return };
        // Others may have been here before.
        if matches!(slot, Slot::Making(making) if making.peek().is_some()) {
            *slot = connection.map_or(Slot::Empty, |connection| Slot::Open(connection.clone()));
        }
    }
}

/// The peer has not begun with a call, and says so: it closes the connection, and names the last call that it still does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the peer closed the connection before it began with the call")]
pub(crate) struct NotProcessed;

fn other_store(other: OtherStore) -> Status {
    let mut status = Status::failed_precondition(other.to_string());
    status.set_source(Arc::new(other));
    status
}

fn not_grpc(other: OtherProtocol) -> Status {
    let mut status = Status::unavailable(other.to_string());
    status.set_source(Arc::new(other));
    status
}

/// The peer takes no more connections, and says so.
fn refused(why: &str) -> Status {
    Status::resource_exhausted(format!("it takes no more connections: {why}"))
}

/// A connection's error as a status.
fn broken(error: hyper::Error) -> Status {
    let http2 = http2(&error);
    let closes =
        |error: &h2::Error| error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR);
    // hyper drops so a request for which the connection had no stream before it ended.
    let is_dropped = error.is_user() && error.to_string().contains("dispatch task is gone");
    if error.is_canceled() || is_dropped || http2.is_some_and(closes) {
        let mut status = Status::unavailable(said(&error));
        status.set_source(Arc::new(NotProcessed));
        return status;
    }
    let refuses = |error: &h2::Error| error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    if http2.is_some_and(refuses) {
        return Status::resource_exhausted("the peer takes no more streams on the connection (REFUSED_STREAM)");
    }
    Status::from_error(Box::new(error))
}
