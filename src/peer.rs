//! A configured store as the routes see it: the store, its breaker, and what it said of itself. One for each configured
//! store, shared by every route that starts or ends there, so that an outage is found once and probed once.
//!
//! What is known of it, and what follows from that, is plain data: [`PeerState`]. The workers of its routes decide by it, each
//! under its lock ([`Peer::state`]); whoever gives the lock back logs what has changed, and wakes the others.
//!
//! The store is asked what it is where that is not known for this connection: before the first use, after a failure, after a
//! silence, and once in a while. A peer of the wrong kind, or with another store's id, latches the breaker: it is asked again
//! and again what it is, and nothing else.

pub(crate) mod state;

use crate::breaker::{Pass, Phase, Reason, Transition};
use crate::clock::{Clock, Entropy};
use crate::config::Config;
use crate::fault::FaultKind;
use crate::store::{PeerKind, Store, StoreError, StoreInfo};
use parking_lot::{Mutex, MutexGuard};
use state::PeerState;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// How long the answer may take.
const INFO_TIMEOUT: Duration = Duration::from_secs(15);

/// What the routes need of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    /// A route starts there: it must give blobs back.
    pub read: bool,
    /// A route that is not receive-only ends there: it must hold what it is given.
    pub hold: bool,
}

impl Needs {
    /// What the enabled routes of a configuration need of each store that a route names.
    pub(crate) fn by_store(config: &Config) -> BTreeMap<&str, Self> {
        let mut needs: BTreeMap<&str, Self> = BTreeMap::new();
        for route in config.routes.values() {
            // Of a disabled route nothing is asked, but its stores are shown.
            needs.entry(&route.from).or_default().read |= route.enabled;
            needs.entry(&route.to).or_default().hold |= route.enabled && !route.receive_only;
        }
        needs
    }

    /// What is wrong with a peer for this need.
    pub(crate) fn complaint(self, info: &StoreInfo) -> Option<String> {
        let kind = info.kind;
        if kind == PeerKind::Replicator {
            return Some("it is a replicator, which holds no blobs; give the address of the store itself".to_owned());
        }
        if self.read && (kind != PeerKind::Store || !info.abilities.fetch) {
            return Some(format!("a route reads from it, and it offers no fetch (its kind: {})", kind.as_str()));
        }
        if self.hold && kind == PeerKind::ReceiveOnly {
            return Some("it only receives; set receive_only = true on the routes to it, if that is meant".to_owned());
        }
        None
    }
}

/// A configured store, shared by its routes. See the module's header.
pub(crate) struct Peer {
    name: Arc<str>,
    store: Arc<dyn Store>,
    needs: Needs,
    clock: Arc<dyn Clock>,
    entropy: Arc<Entropy>,
    state: Mutex<PeerState>,
    /// When an operator adopted this store in place of another.
    adopted: Mutex<Option<SystemTime>>,
    changes: watch::Sender<u64>,
    store_id: watch::Sender<Option<String>>,
}

/// The state of a peer, locked. When it is given back, what has changed is logged, and whoever uses the peer is woken.
pub(crate) struct Locked<'a> {
    peer: &'a Peer,
    state: Option<MutexGuard<'a, PeerState>>,
}

impl Deref for Locked<'_> {
    type Target = PeerState;

    fn deref(&self) -> &PeerState {
        #[expect(clippy::unwrap_used, reason = "taken by drop alone")]
        self.state.as_deref().unwrap()
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut PeerState {
        #[expect(clippy::unwrap_used, reason = "taken by drop alone")]
        self.state.as_deref_mut().unwrap()
    }
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        let Some(mut state) = self.state.take() else { return };
        let (transitions, is_news) = state.take_news();
        drop(state);
        for transition in transitions {
            self.peer.log(&transition);
        }
        if is_news {
            self.peer.changes.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

/// An identification that was begun. One that is dropped before it came to anything can be had again at once.
struct Identification<'a>(&'a Peer);

impl Drop for Identification<'_> {
    fn drop(&mut self) {
        self.0.state().abandon_identification();
    }
}

/// Why a store's id cannot be adopted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AdoptError {
    /// The store does not answer.
    #[error("the store {store} cannot be asked for its id: {detail}")]
    Unavailable {
        /// Its configured name.
        store: Arc<str>,
        /// Why.
        detail: String,
    },
    /// It tells another id, or none.
    #[error("the store {store} tells {}, so that is not what can be adopted", found.as_ref().map_or_else(|| "no id".to_owned(), |id| format!("the id {id:?}")))]
    Other {
        /// Its configured name.
        store: Arc<str>,
        /// The id that it tells.
        found: Option<String>,
    },
}

/// The key in the queue's state of the id that is expected of a store.
pub(crate) fn store_id_key(store: &str) -> String {
    format!("peer/{store}/store_id")
}

/// Where it is recorded since when the store of this name is another one: milliseconds since 1970, as text.
pub(crate) fn adopted_key(store: &str) -> String {
    format!("peer/{store}/adopted")
}

/// A peer as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PeerSnapshot {
    /// The store's configured name.
    pub name: Arc<str>,
    /// The store id that is expected of it: known from earlier, or learned. Absent: the id is not checked.
    pub store_id: Option<String>,
    /// What it said of itself, when it last did.
    pub info: Option<StoreInfo>,
    /// The breaker's state.
    pub phase: Phase,
    /// Why the breaker is not closed.
    pub reason: Option<Reason>,
    /// Whether only the right peer's identification closes the breaker.
    pub latched: bool,
    /// Since when the breaker is closed, or not closed.
    pub since: SystemTime,
    /// When the next try is due; absent while closed or while a try is out.
    pub next_probe: Option<SystemTime>,
    /// Failures since the last success.
    pub failures: u64,
    /// How often the breaker opened since the process started.
    pub openings: u64,
    /// Whether it answers small questions these days, whatever becomes of copies.
    pub answers: bool,
    /// Copies that use it now.
    pub copies: usize,
    /// How many copies at a time it takes; absent: it limits nothing.
    pub concurrency_limit: Option<usize>,
    /// When it last refused a copy for want of capacity.
    pub last_refusal: Option<SystemTime>,
    /// The last peer fault, and when it happened.
    pub last_error: Option<(Reason, SystemTime)>,
    /// When it told what `info` says.
    pub info_time: Option<SystemTime>,
    /// When it last answered as a peer should.
    pub last_contact: Option<SystemTime>,
}

impl Peer {
    /// A peer that was not asked yet. `expected_store_id` is the id recorded for this name earlier, if one was.
    pub(crate) fn new(
        name: impl Into<Arc<str>>,
        store: Arc<dyn Store>,
        needs: Needs,
        expected_store_id: Option<String>,
        clock: Arc<dyn Clock>,
        entropy: Arc<Entropy>,
    ) -> Arc<Self> {
        store.expect_store(expected_store_id.as_deref());
        Arc::new(Self {
            name: name.into(),
            store,
            needs,
            state: Mutex::new(PeerState::new(clock.monotonic())),
            clock,
            entropy,
            adopted: Mutex::new(None),
            changes: watch::Sender::new(0),
            store_id: watch::Sender::new(expected_store_id),
        })
    }

    /// The store's configured name.
    pub(crate) fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The store itself, for those who hold a permit.
    pub(crate) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What the store said of itself, when it last did.
    pub(crate) fn info(&self) -> Option<StoreInfo> {
        self.state().info().cloned()
    }

    /// The store id that is expected: changes when one is learned, which is to be recorded durably then.
    pub(crate) fn store_id(&self) -> watch::Receiver<Option<String>> {
        self.store_id.subscribe()
    }

    /// Expects this id from now on; `None`: whichever the store tells next.
    pub(crate) fn adopt_store_id(&self, id: Option<String>) {
        self.store.expect_store(id.as_deref());
        self.store_id.send_replace(id);
        let now = self.clock.monotonic();
        self.state().expect_another(now);
    }

    /// Since when the store is another one than before; absent: it always was this one. What was confirmed earlier, was so
    /// by the other one.
    pub(crate) fn adopted(&self) -> Option<SystemTime> {
        *self.adopted.lock()
    }

    /// Remembers when an operator adopted the store.
    pub(crate) fn set_adopted(&self, time: SystemTime) {
        *self.adopted.lock() = Some(time);
    }

    /// Asks the store whether this is its id, for whoever is about to adopt it.
    ///
    /// # Errors
    /// [`AdoptError`].
    pub(crate) async fn check_identity(&self, id: &str) -> Result<(), AdoptError> {
        let unavailable = |detail: String| AdoptError::Unavailable { store: self.name.clone(), detail };
        let answer = tokio::time::timeout(INFO_TIMEOUT, self.store.info()).await;
        let answer = answer.map_err(|_| unavailable("it did not answer in time".to_owned()))?;
        let info = answer.map_err(|error| unavailable(error.to_string()))?;
        if info.store_id.as_deref() == Some(id) {
            return Ok(());
        }
        Err(AdoptError::Other { store: self.name.clone(), found: info.store_id })
    }

    /// Changes whenever those who use the peer should look again: its breaker has changed, it was asked what it is, a copy
    /// made room that another route waits for.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// What is known of the peer, locked; held for moments only.
    pub(crate) fn state(&self) -> Locked<'_> {
        Locked { peer: self, state: Some(self.state.lock()) }
    }

    /// Whether the breaker is closed. Says nothing about the very next use.
    #[cfg(test)]
    pub(crate) fn is_closed(&self) -> bool {
        !self.state().breaker().is_open()
    }

    /// Has the store say what it is, where that must be known before it is used. False where it may not be used now.
    pub(crate) async fn identified(&self) -> bool {
        let mut changes = self.changes();
        loop {
            changes.mark_unchanged();
            match self.try_identify() {
                Ok(usable) => return usable,
                // Somebody else is asking.
                Err(false) => {
                    if changes.changed().await.is_err() {
                        return false;
                    }
                }
                Err(true) => self.identify().await,
            }
        }
    }

    /// Whether it may be used; or else whether it is to be asked what it is by the caller, or is being asked.
    fn try_identify(&self) -> Result<bool, bool> {
        let now = self.clock.monotonic();
        let mut state = self.state();
        if matches!(state.pass(now), Pass::Wait(_)) {
            return Ok(false);
        }
        if !state.needs_identification(now) {
            return Ok(true);
        }
        match state.may_identify(now) {
            Ok(()) => {
                state.begin_identification(now, self.entropy.jitter());
                Err(true)
            }
            Err(None) => Err(false),
            // It failed just now.
            Err(Some(_)) => Ok(false),
        }
    }

    /// The peer as it is to be shown.
    pub(crate) fn snapshot(&self) -> PeerSnapshot {
        let now = self.clock.monotonic();
        let state = self.state();
        let breaker = state.breaker().snapshot();
        let wall = |moment| self.clock.wall_of(moment);
        PeerSnapshot {
            name: self.name.clone(),
            store_id: self.store_id.borrow().clone(),
            info: state.info().cloned(),
            info_time: state.info_time().map(wall),
            phase: breaker.phase,
            reason: breaker.reason,
            latched: breaker.latched,
            since: wall(breaker.since),
            next_probe: breaker.next_try.map(wall),
            failures: breaker.failures,
            openings: breaker.openings,
            answers: state.answers(now),
            copies: state.concurrency.in_flight(),
            concurrency_limit: state.concurrency.in_force(),
            last_refusal: state.concurrency.last_refusal().map(wall),
            last_error: state.last_error().map(|(reason, at)| (reason.clone(), wall(*at))),
            last_contact: state.last_contact().map(wall),
        }
    }

    /// Asks the store what it is, after [`PeerState::begin_identification`]. May be dropped at any time.
    pub(crate) async fn identify(&self) {
        let begun = Identification(self);
        let answer = tokio::time::timeout(INFO_TIMEOUT, self.store.info()).await;
        let (now, jitter) = (self.clock.monotonic(), self.entropy.jitter());
        let reason = match answer {
            Ok(Ok(info)) => match self.complaint(&info) {
                None => {
                    self.state().identified(info, now);
                    return drop(begun);
                }
                Some(reason) => {
                    self.state().is_another(info, reason, now, jitter);
                    return drop(begun);
                }
            },
            Ok(Err(StoreError::Protocol(message))) => Reason::new(FaultKind::PeerProtocol, message),
            Ok(Err(error)) => self.unavailable(&error.to_string()),
            Err(_) => self.unavailable(&format!("GetPeerInfo was not answered within {} s", INFO_TIMEOUT.as_secs())),
        };
        self.state().not_identified(reason, now, jitter);
        drop(begun);
    }

    /// Why the store that says this of itself is not the one that is meant, if it is not.
    fn complaint(&self, info: &StoreInfo) -> Option<Reason> {
        let of_kind = self.needs.complaint(info).map(|complaint| Reason::new(FaultKind::WrongPeerKind, complaint));
        of_kind.or_else(|| Some(Reason::new(FaultKind::StoreIdChanged, self.check_store_id(info)?)))
    }

    fn check_store_id(&self, info: &StoreInfo) -> Option<String> {
        let mut complaint = None;
        self.store_id.send_if_modified(|expected| match (expected.as_deref(), info.store_id.as_deref()) {
            (Some(expected), Some(found)) if expected != found => {
                let name = &self.name;
                complaint = Some(format!(
                    "another store answers: its id is {found:?}, and that of {name} was {expected:?}; if it is to take its \
                     place: blobferry adopt {name} {found:?}"
                ));
                false
            }
            (Some(expected), None) => {
                complaint = Some(format!("it tells no store id, and that of {} was {expected:?}", self.name));
                false
            }
            (None, Some(found)) => {
                *expected = Some(found.to_owned());
                self.store.expect_store(Some(found));
                true
            }
            (Some(_), Some(_)) | (None, None) => false,
        });
        complaint
    }

    /// A peer that is used only as a destination is unavailable as one; all others as a source.
    fn unavailable(&self, message: &str) -> Reason {
        let kind = if self.needs.read { FaultKind::SourceUnavailable } else { FaultKind::DestinationUnavailable };
        Reason::new(kind, message)
    }

    fn log(&self, transition: &Transition) {
        match transition {
            Transition::Opened { reason, latched } => {
                tracing::warn!(peer = %self.name, kind = %reason.kind, latched, "breaker open: {}", reason.message);
            }
            Transition::Closed { reason, after, failures } => {
                let seconds = after.as_secs_f64();
                tracing::info!(peer = %self.name, kind = %reason.kind, seconds, failures, "breaker closed");
            }
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
