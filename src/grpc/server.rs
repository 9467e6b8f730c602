//! The server that all services run in. Bind outside, run inside.
//!
//! Connections are accepted here, not by tonic, for three things it does not do: a cap on how many there are, a deadline for
//! the first bytes of each, and a drain that ends. Beyond the cap connections are told so, and closed: whoever waits in the
//! kernel's queue would wait for as long as others stay, and never know why.

use super::calls::{CallObserver, Calls};
use super::cut::notice_cuts;
use super::explained::explain;
use super::refused::{REFUSALS, refuse};
use super::window;
use crate::pb;
use futures::{FutureExt as _, StreamExt as _};
use http::{Request, Response};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Sleep;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::body::Body;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic::transport::server::{Connected, TcpConnectInfo};
use tonic_health::server::HealthReporter;
use tower::util::{MapRequestLayer, MapResponseLayer};

/// Calls in progress on one connection, at most. tonic's default is no limit.
const STREAMS_PER_CONNECTION: u32 = 1024;

/// Streams that a client may make us reset on one connection before it is closed (RUSTSEC-2024-0003). tonic's default
/// is no limit.
const LOCAL_ERROR_RESETS: usize = 1024;

/// What a client may send on one connection before it is read, in bytes. Half of it is also the budget of h2 for unread
/// small frames, beyond which it gives up the connection.
const CONNECTION_WINDOW: u32 = 8 << 20;

/// How often a silent connection is asked for a sign of life.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long it may take to give one.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(20);

/// How long a connection may take to send [`PREFACE_BYTES`].
const PREFACE_TIMEOUT: Duration = Duration::from_secs(10);

/// The length of HTTP/2's client preface. hyper waits for it without a limit of its own.
const PREFACE_BYTES: usize = 24;

/// How long to wait after a connection could not be accepted: too many open files do not go away by trying harder.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long connections may take to notice that they were cut, once the drain is over.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// What is on every server.
const BASE_SERVICES: [&str; 3] =
    ["grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];

/// How a server runs.
#[derive(Clone, Debug)]
pub struct ServeSettings {
    /// Connections at a time, at most. Their windows bound the memory: 8 MiB each.
    pub max_connections: usize,
    /// How long calls in progress may take to end, once the server is told to stop.
    pub drain_timeout: Duration,
    /// Who watches its calls.
    pub calls: Calls,
}

impl Default for ServeSettings {
    fn default() -> Self {
        Self { max_connections: 1024, drain_timeout: Duration::from_secs(25), calls: Calls::default() }
    }
}

/// Why a server could not be built, or stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors for reflection cannot be used.
    #[error("the reflection service could not be built: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("the gRPC server failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// What is on every server: health checking, and reflection v1 and v1alpha. Health `""` is live from the start.
///
/// Reflection lists these and the `services` that the server adds. It knows the details of errors, too, so that clients can
/// show them.
///
/// # Errors
/// If the descriptors that were compiled in are broken.
pub fn base_routes(services: &[&str]) -> Result<(Routes, HealthReporter), ServeError> {
    let (reporter, health) = tonic_health::server::health_reporter();
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_types::pb::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET);
        let names = BASE_SERVICES.iter().chain(services);
        names.fold(builder, |builder, name| builder.with_service_name(*name))
    };
    let routes = Routes::new(health).add_service(builder().build_v1()?).add_service(builder().build_v1alpha()?);
    Ok((routes, reporter))
}

/// Serves until `shutdown` is cancelled and the calls in progress have ended, or `drain_timeout` later at the latest.
///
/// The listener is closed as soon as the drain begins, and connections that are left at its end are cut. Dropping the
/// future cuts them all at once.
///
/// # Errors
/// If the transport cannot go on. What goes wrong on one connection ends only that.
pub async fn serve(
    listener: TcpListener,
    routes: Routes,
    settings: ServeSettings,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    // Cancelled also when this future is dropped.
    let cut = CancellationToken::new();
    let guard = cut.clone().drop_guard();
    let max = settings.max_connections.clamp(1, Semaphore::MAX_PERMITS);
    let connections = Arc::new(Semaphore::new(max));
    let (refusals, calls) = (Arc::new(Semaphore::new(REFUSALS)), settings.calls.clone());
    let acceptor = Acceptor { listener, connections: connections.clone(), refusals, cut, calls, spare: spare() };
    let incoming = futures::stream::unfold(acceptor, |mut acceptor| async {
        let connection = acceptor.next().await?;
        Some((connection, acceptor))
    });
    let (to_near, near) = mpsc::channel(1);
    let (to_far, far) = mpsc::channel(1);
    let accepting = async {
        let incoming = incoming.map(Accepted::begun).buffer_unordered(max + REFUSALS);
        let handing_on = incoming.filter_map(std::future::ready).for_each(|(connection, window)| {
            let to = if window == window::NEAR { &to_near } else { &to_far };
            // Where who serves them has stopped, they are closed.
            to.send(Ok(connection)).map(drop)
        });
        tokio::select! {
            () = handing_on => {}
            () = shutdown.cancelled() => {}
        }
        Ok(())
    };
    let serve_each = |window, incoming| {
        let (routes, calls) = (routes.clone(), settings.calls.clone());
        serve_connections(window, incoming, (routes, calls), shutdown.clone())
    };
    let serving = async { tokio::try_join!(accepting, serve_each(window::NEAR, near), serve_each(window::FAR, far)) };
    let deadline = async {
        shutdown.cancelled().await;
        tokio::time::sleep(settings.drain_timeout).await;
    };
    tokio::select! {
        served = serving => drop(served?),
        () = deadline => tracing::warn!("calls were still in progress at the end of the drain; their connections are cut"),
    }
    drop(guard);
    // tonic's connection tasks have no owner; a connection has ended when it has given its permit back.
    let all = u32::try_from(max).unwrap_or(u32::MAX);
    if tokio::time::timeout(CUT_GRACE, connections.acquire_many(all)).await.is_err() {
        tracing::warn!("some connections are still closing");
    }
    Ok(())
}

/// Serves connections with this window for each stream until `shutdown` is cancelled and the calls in progress have ended.
async fn serve_connections(
    window: u32,
    incoming: mpsc::Receiver<io::Result<ServedConnection>>,
    (routes, calls): (Routes, Calls),
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    Server::builder()
        .layer(calls)
        .layer(MapRequestLayer::new(notice_cuts as fn(Request<Body>) -> Request<Body>))
        .layer(MapResponseLayer::new(explain as fn(Response<Body>) -> Response<Body>))
        .initial_stream_window_size(window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_frame_size(super::FRAME_BYTES)
        .max_concurrent_streams(STREAMS_PER_CONNECTION)
        .http2_max_local_error_reset_streams(Some(LOCAL_ERROR_RESETS))
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(routes)
        .serve_with_incoming_shutdown(ReceiverStream::new(incoming), shutdown.cancelled_owned())
        .await
}

/// What was accepted, and what becomes of it.
enum Accepted {
    Served(ServedConnection),
    Refused(TcpStream, OwnedSemaphorePermit),
}

impl Accepted {
    /// Waits for the first bytes, and says which window to offer; nothing where none come in time, or it is refused.
    async fn begun(self) -> Option<(ServedConnection, u32)> {
        match self {
            Self::Served(connection) => connection.begun().await,
            Self::Refused(stream, _permit) => {
                refuse(stream).await;
                None
            }
        }
    }
}

/// Takes connections in.
struct Acceptor {
    listener: TcpListener,
    /// For those that are served, and for those that are refused.
    connections: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    cut: CancellationToken,
    calls: Calls,
    /// A file that is given up where there are no more for this process: who waits then is told so, instead of waiting on.
    spare: Option<File>,
}

/// What is opened to have a spare file.
const SPARE: &str = "/dev/null";

fn spare() -> Option<File> {
    File::open(SPARE).ok()
}

impl Acceptor {
    /// The next connection; `None` only if one of the caps was closed, which they never are.
    async fn next(&mut self) -> Option<Accepted> {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) if self.has_spare() => return self.admit(stream).await,
                // Another file of the process has taken the place of the spare one, which takes this connection's in turn: were it
                // served, there might be none left to refuse the next ones with.
                Ok((stream, _)) => self.refuse(stream).await,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    if !self.refuse_with_spare().await {
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        }
    }

    /// Finds a place, or refuses it where there is none. Each that is refused ends soon.
    async fn admit(&self, stream: TcpStream) -> Option<Accepted> {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY could not be set");
        }
        tokio::select! {
            biased;
            permit = self.connections.clone().acquire_owned() => {
                let open = OpenConnection::new(self.calls.observer.clone());
                Some(Accepted::Served(ServedConnection::new(stream, permit.ok()?, &self.cut, open)))
            }
            permit = self.refusals.clone().acquire_owned() => {
                self.refused();
                Some(Accepted::Refused(stream, permit.ok()?))
            }
        }
    }

    fn refused(&self) {
        tracing::warn!("a connection is refused: there are as many as are served at a time");
        self.calls.observer.iter().for_each(|observer| observer.refused());
    }

    /// Whether there is a spare file, or none is to be had for another reason than that there are too many.
    fn has_spare(&mut self) -> bool {
        if self.spare.is_some() {
            return true;
        }
        let opened = File::open(SPARE);
        let is_full = |error: &io::Error| {
            let errno = error.raw_os_error().map(Errno::from_raw_os_error);
            matches!(errno, Some(Errno::MFILE | Errno::NFILE))
        };
        let has_spare = !opened.as_ref().is_err_and(is_full);
        self.spare = opened.ok();
        has_spare
    }

    /// Refuses the one that waits first, where there is no file for it. Whether that was done.
    async fn refuse_with_spare(&mut self) -> bool {
        if self.spare.take().is_none() {
            self.spare = spare();
            return false;
        }
        // It may be gone, and the file be somebody else's by now.
        let accepted = tokio::time::timeout(ACCEPT_PAUSE, self.listener.accept()).await;
        let Ok(Ok((stream, _))) = accepted else {
            self.spare = spare();
            return false;
        };
        self.refuse(stream).await;
        true
    }

    /// Refuses a connection where it stands, and makes its file the spare one.
    async fn refuse(&mut self, stream: TcpStream) {
        self.refused();
        refuse(stream).await;
        self.spare = spare();
    }
}

/// A connection that counts against the cap, must begin in time, and can be cut.
struct ServedConnection {
    stream: TcpStream,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    // Until the preface has come; with the number of its bytes that are still to come.
    preface: Option<(Pin<Box<Sleep>>, usize)>,
    _permit: OwnedSemaphorePermit,
    _open: OpenConnection,
}

/// Tells the observer of a connection, and of its end.
struct OpenConnection(Option<Arc<dyn CallObserver>>);

impl OpenConnection {
    fn new(observer: Option<Arc<dyn CallObserver>>) -> Self {
        observer.iter().for_each(|observer| observer.connected());
        Self(observer)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.iter().for_each(|observer| observer.disconnected());
    }
}

impl ServedConnection {
    fn new(stream: TcpStream, permit: OwnedSemaphorePermit, cut: &CancellationToken, open: OpenConnection) -> Self {
        Self {
            stream,
            cut: Box::pin(cut.clone().cancelled_owned()),
            preface: Some((Box::pin(tokio::time::sleep(PREFACE_TIMEOUT)), PREFACE_BYTES)),
            _permit: permit,
            _open: open,
        }
    }

    /// Waits for the first bytes, and says which window to offer; nothing where none come in time.
    async fn begun(self) -> Option<(Self, u32)> {
        let window = tokio::time::timeout(PREFACE_TIMEOUT, window::to_offer(&self.stream)).await.ok()?.ok()?;
        Some((self, window))
    }
}

impl AsyncRead for ServedConnection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        // hyper always has a read pending, so that this wakes every connection.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the server has stopped")));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(cx, buf);
        if let Some((deadline, left)) = &mut self.preface {
            *left = left.saturating_sub(buf.filled().len() - before);
            if *left == 0 {
                self.preface = None;
            } else if polled.is_pending() && deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "no HTTP/2 preface came")));
            }
        }
        polled
    }
}

impl AsyncWrite for ServedConnection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for ServedConnection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}
