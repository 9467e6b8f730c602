//! One connection while it is used: which store is at its end, how many calls are on it, and whether it takes more.

use super::connector::Connected;
use http::{HeaderMap, Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::time::Instant;
use tonic::body::Body;

/// The metadata by which every answer says which store gives it.
pub(crate) const STORE_ID: &str = "blobferry-store-id";

/// See the module's header.
pub(super) struct Connection {
    connected: Connected,
    /// A call that is left without an answer retires it, if nothing at all has come there for so long.
    silence: Duration,
    /// The id of the store at its end, once it was asked; it may have none. Its peer has told its settings then, too.
    store_id: OnceLock<Option<Arc<str>>>,
    calls: AtomicUsize,
    began: Instant,
    /// When something last came, in milliseconds after it began; 0: nothing came.
    heard: AtomicU64,
    is_retired: AtomicBool,
}

impl Connection {
    pub(super) fn new(connected: Connected, silence: Duration) -> Self {
        Self {
            connected,
            silence,
            store_id: OnceLock::new(),
            calls: AtomicUsize::new(0),
            began: Instant::now(),
            heard: AtomicU64::new(0),
            is_retired: AtomicBool::new(false),
        }
    }

    /// The peer was asked what it is, and gave this id; its settings came before.
    pub(super) async fn identified(&self, store_id: Option<Arc<str>>) {
        self.connected.refresh().await;
        self.store_id.get_or_init(|| store_id);
    }

    /// Sends a request. One that was not sent, because the connection had ended, comes back with the error.
    pub(super) fn send(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Body>>>> + use<> {
        self.connected.send(request)
    }

    /// Why the peer serves nothing on it, where it said so.
    pub(super) fn refusal(&self) -> Option<&str> {
        self.connected.refusal.get().map(String::as_str)
    }

    pub(super) fn store_id(&self) -> Option<&str> {
        self.store_id.get()?.as_deref()
    }

    /// Whether it takes more calls, now or later.
    pub(super) fn is_open(&self) -> bool {
        !self.is_retired.load(Ordering::Relaxed) && !self.connected.is_closed()
    }

    /// It takes no more calls. Those that are on it go on.
    pub(super) fn retire(&self) {
        self.is_retired.store(true, Ordering::Relaxed);
    }

    /// How many calls the peer takes on it at a time, as far as it has said.
    pub(super) fn limit(&self) -> usize {
        if self.store_id.get().is_some() { self.connected.streams.load(Ordering::Relaxed) } else { usize::MAX }
    }

    fn heard(&self) {
        let millis = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heard.store(millis.max(1), Ordering::Relaxed);
    }

    /// Whether any call was ever answered on it.
    pub(super) fn has_answered(&self) -> bool {
        self.store_id.get().is_some() || self.heard.load(Ordering::Relaxed) > 0
    }

    fn silent_since(&self) -> Instant {
        self.began + Duration::from_millis(self.heard.load(Ordering::Relaxed))
    }
}

/// A call's place on a connection, held until the answer has ended.
pub(in crate::grpc) struct Lease {
    connection: Arc<Connection>,
    began: Instant,
    is_over: bool,
}

impl Lease {
    /// A place, unless the peer takes no more calls there.
    pub(super) fn take(connection: &Arc<Connection>) -> Option<Self> {
        let limit = connection.limit();
        let more = |calls| Some(calls + 1).filter(|calls| *calls <= limit);
        connection.calls.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).ok()?;
        Some(Self { connection: connection.clone(), began: Instant::now(), is_over: false })
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }

    /// Something of the answer came.
    pub(in crate::grpc) fn heard(&self) {
        self.connection.heard();
    }

    /// The answer has ended.
    pub(in crate::grpc) fn over(&mut self) {
        self.heard();
        self.is_over = true;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.calls.fetch_sub(1, Ordering::Relaxed);
        // Whoever leaves has waited too long, or lost interest: packets may vanish on the way, in either direction.
        if !self.is_over && self.began.max(self.connection.silent_since()).elapsed() >= self.connection.silence {
            self.connection.retire();
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").finish_non_exhaustive()
    }
}

/// Which store is expected behind all connections of a peer.
#[derive(Debug, Default)]
pub(super) struct ExpectedStore(Mutex<Option<Arc<str>>>);

/// Another store answers than the one that is expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("another store answers: its id is {found:?}, and {expected:?} is expected")]
pub(crate) struct OtherStore {
    /// The id that is expected.
    pub expected: Arc<str>,
    /// The id that was told.
    pub found: Arc<str>,
}

impl ExpectedStore {
    pub(super) fn set(&self, id: Option<&str>) {
        *self.0.lock() = id.map(Arc::from);
    }

    pub(super) fn get(&self) -> Option<Arc<str>> {
        self.0.lock().clone()
    }

    /// Whether an id is the expected one. One that is not told is believed.
    pub(super) fn check(&self, found: Option<&str>) -> Result<(), OtherStore> {
        let Some(found) = found else { return Ok(()) };
        match self.get() {
            Some(expected) if *expected != *found => Err(OtherStore { expected, found: found.into() }),
            _ => Ok(()),
        }
    }
}

/// The store id in the metadata of an answer.
pub(super) fn id_in(headers: &HeaderMap) -> Option<&str> {
    headers.get(STORE_ID)?.to_str().ok()
}
