//! A configured store as the routes see it: the store, its breaker, and what it said of itself. One for each configured
//! store, shared by every route that starts or ends there, so that an outage is found once and probed once.
//!
//! Whoever wants to use the peer asks [`Peer::admit`] first. That asks the store what it is where that is not known for this
//! connection: before the first use, after the breaker was open, after a silence, and once in a while. A peer of the wrong
//! kind, or with another store's id, latches the breaker: it is asked again and again what it is, and nothing else.
//!
//! Changes of the breaker are logged here, each once.

use crate::backoff::Backoff;
use crate::breaker::{Breaker, Permit as Decision, Phase, Reason, Ticket, Transition};
use crate::clock::{Clock, Entropy};
use crate::fault::FaultKind;
use crate::store::{Abilities, PeerKind, Store, StoreError, StoreInfo};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// A peer that was silent for longer is asked what it is before it is used: it may have been replaced meanwhile.
const SILENCE: Duration = Duration::from_secs(2);

/// A peer is asked what it is at least so often.
const INFO_MAX_AGE: Duration = Duration::from_mins(1);

/// How long the answer may take.
const INFO_TIMEOUT: Duration = Duration::from_secs(15);

/// What the routes need of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// A route starts there: it must give blobs back.
    pub read: bool,
    /// A route that is not receive-only ends there: it must hold what it is given.
    pub hold: bool,
}

impl Needs {
    /// What is wrong with a peer for this need.
    fn complaint(self, info: &StoreInfo) -> Option<String> {
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
pub struct Peer {
    name: Arc<str>,
    store: Arc<dyn Store>,
    needs: Needs,
    clock: Arc<dyn Clock>,
    entropy: Arc<Entropy>,
    state: Mutex<State>,
    // Held by whoever asks the store what it is, so that one asks for all.
    asking: tokio::sync::Mutex<()>,
    changes: watch::Sender<u64>,
    store_id: watch::Sender<Option<String>>,
}

struct State {
    breaker: Breaker,
    // What the store said, and when; absent where it must be asked before it is used.
    info: Option<(StoreInfo, Duration)>,
    // The latest that it ever said, and when.
    shown: Option<(StoreInfo, Duration)>,
    last_contact: Option<Duration>,
    last_error: Option<(Reason, Duration)>,
    // When an operator adopted this store in place of another.
    adopted: Option<SystemTime>,
}

/// Whether a peer may be used now.
#[derive(Debug)]
pub enum Admission {
    /// At full width: the permit is good for any number of uses, until one fails.
    Go(Permit),
    /// For one copy, which finds out whether the peer is back.
    Probe(Permit),
    /// Not before this monotonic time, or a change of the peer's state.
    Wait(Duration),
}

/// The right to use a peer. Its outcome is to be reported; a probe that is dropped unreported can be had again at once.
pub struct Permit {
    peer: Arc<Peer>,
    ticket: Ticket,
    // Of a probe: why the breaker is open.
    probes: Option<FaultKind>,
}

impl Permit {
    /// The peer answered as a peer should; what it says of a blob does not matter. May be reported again and again.
    pub fn succeeded(&self) {
        self.peer.succeeded(self.ticket);
    }

    /// The peer itself failed.
    pub fn failed(&self, reason: Reason) {
        self.peer.failed(self.ticket, reason);
    }

    /// Why the breaker is open, where this is a probe.
    pub fn probes(&self) -> Option<FaultKind> {
        self.probes
    }

    /// The peer.
    pub fn peer(&self) -> &Arc<Peer> {
        &self.peer
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut state = self.peer.state();
        let probing = state.breaker.snapshot().phase == Phase::Probing;
        state.breaker.abandon_probe(self.ticket);
        let abandoned = probing && state.breaker.snapshot().phase == Phase::Open;
        drop(state);
        if abandoned {
            self.peer.tell();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").field("peer", &self.peer.name).field("ticket", &self.ticket).finish()
    }
}

/// Why a store's id cannot be adopted.
#[derive(Debug, thiserror::Error)]
pub enum AdoptError {
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
pub fn store_id_key(store: &str) -> String {
    format!("peer/{store}/store_id")
}

/// Where it is recorded since when the store of this name is another one: milliseconds since 1970, as text.
pub fn adopted_key(store: &str) -> String {
    format!("peer/{store}/adopted")
}

/// A peer as it is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerSnapshot {
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
    /// When the next probe is due; absent while closed or while a probe is out.
    pub next_probe: Option<SystemTime>,
    /// Peer faults since the last success.
    pub failures: u64,
    /// The last peer fault, and when it happened.
    pub last_error: Option<(Reason, SystemTime)>,
    /// When it told what `info` says.
    pub info_time: Option<SystemTime>,
    /// When it last answered as a peer should.
    pub last_contact: Option<SystemTime>,
}

impl Peer {
    /// A peer that was not asked yet. `expected_store_id` is the id recorded for this name earlier, if one was.
    pub fn new(
        name: impl Into<Arc<str>>,
        store: Arc<dyn Store>,
        needs: Needs,
        expected_store_id: Option<String>,
        clock: Arc<dyn Clock>,
        entropy: Arc<Entropy>,
    ) -> Arc<Self> {
        let state = State {
            breaker: Breaker::new(Backoff::PROBE, clock.monotonic()),
            info: None,
            shown: None,
            last_contact: None,
            last_error: None,
            adopted: None,
        };
        Arc::new(Self {
            name: name.into(),
            store,
            needs,
            clock,
            entropy,
            state: Mutex::new(state),
            asking: tokio::sync::Mutex::new(()),
            changes: watch::Sender::new(0),
            store_id: watch::Sender::new(expected_store_id),
        })
    }

    /// The store's configured name.
    pub fn name(&self) -> &Arc<str> {
        &self.name
    }

    /// The store itself, for those who hold a permit.
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// What the store said of itself, when it last did.
    pub fn info(&self) -> Option<StoreInfo> {
        self.state().shown.as_ref().map(|(info, _)| info.clone())
    }

    /// What it can do, and the largest blob that it takes and gives packed, in bytes (0: none), as it last said.
    pub fn abilities(&self) -> (Abilities, u64) {
        let state = self.state();
        let Some((info, _)) = &state.shown else { return (Abilities::default(), 0) };
        let packed = if info.abilities.packed { info.max_packed_bytes.unwrap_or(0) } else { 0 };
        (info.abilities, packed)
    }

    /// The store id that is expected: changes when one is learned, which is to be recorded durably then.
    pub fn store_id(&self) -> watch::Receiver<Option<String>> {
        self.store_id.subscribe()
    }

    /// Expects this id from now on; `None`: whichever the store tells next.
    pub fn adopt_store_id(&self, id: Option<String>) {
        self.store_id.send_replace(id);
        let now = self.clock.monotonic();
        let mut state = self.state();
        state.info = None;
        state.breaker.probe_now(now);
        drop(state);
        self.tell();
    }

    /// Since when the store is another one than before; absent: it always was this one. What was confirmed earlier, was so
    /// by the other one.
    pub fn adopted(&self) -> Option<SystemTime> {
        self.state().adopted
    }

    /// Remembers when an operator adopted the store.
    pub fn set_adopted(&self, time: SystemTime) {
        self.state().adopted = Some(time);
    }

    /// Asks the store whether this is its id, for whoever is about to adopt it.
    ///
    /// # Errors
    /// [`AdoptError`].
    pub async fn check_identity(&self, id: &str) -> Result<(), AdoptError> {
        let unavailable = |detail: String| AdoptError::Unavailable { store: self.name.clone(), detail };
        let answer = tokio::time::timeout(INFO_TIMEOUT, self.store.info()).await;
        let answer = answer.map_err(|_| unavailable("it did not answer in time".to_owned()))?;
        let info = answer.map_err(|error| unavailable(error.to_string()))?;
        if info.store_id.as_deref() == Some(id) {
            return Ok(());
        }
        Err(AdoptError::Other { store: self.name.clone(), found: info.store_id })
    }

    /// Changes whenever the breaker does, or a probe is given back.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Until when [`admit`](Self::admit) would make the caller wait, in monotonic time; `None` if it would not.
    pub fn wait_until(&self) -> Option<Duration> {
        self.state().breaker.wait_until(self.clock.monotonic())
    }

    /// Why the breaker is not closed, and whether only the right peer's identification closes it.
    pub fn open_for(&self) -> Option<(FaultKind, bool)> {
        let breaker = self.state().breaker.snapshot();
        breaker.reason.map(|reason| (reason.kind, breaker.latched))
    }

    /// What the peer says of blobs is odd, as if it were another: it is asked what it is before its next use, unless it has
    /// just been asked.
    pub fn doubt(&self) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        if state.info.as_ref().is_some_and(|(_, asked)| now.saturating_sub(*asked) > SILENCE) {
            state.info = None;
        }
    }

    /// Whether the breaker is closed. Says nothing about the very next use.
    pub fn is_closed(&self) -> bool {
        self.state().breaker.snapshot().phase == Phase::Closed
    }

    /// Asks to use the peer now; asks the store what it is, where that must be known first. May be dropped at any time.
    pub async fn admit(self: &Arc<Self>) -> Admission {
        let mut guard = None;
        loop {
            let now = self.clock.monotonic();
            let (decision, known, open_for) = {
                let mut state = self.state();
                let known = state.is_identified(now);
                // Who would have to ask waits for his turn first, and takes no probe into the queue.
                if !known && guard.is_none() && state.breaker.wait_until(now).is_none() {
                    (None, false, None)
                } else {
                    let open_for = state.breaker.snapshot().reason.map(|reason| reason.kind);
                    (Some(state.breaker.permit(now)), known, open_for)
                }
            };
            let permit = |ticket| Permit { peer: self.clone(), ticket, probes: open_for };
            match decision {
                None => guard = Some(self.asking.lock().await),
                Some(Decision::Wait(until)) => return Admission::Wait(until),
                Some(Decision::Go(ticket)) if known => return Admission::Go(permit(ticket)),
                Some(Decision::Probe(ticket)) if known => return Admission::Probe(permit(ticket)),
                Some(Decision::Go(ticket)) => self.identify(&permit(ticket), false).await,
                Some(Decision::Probe(ticket)) => {
                    let permit = permit(ticket);
                    self.identify(&permit, false).await;
                    if self.state().is_identified(self.clock.monotonic()) {
                        return Admission::Probe(permit);
                    }
                }
                Some(Decision::Identify(ticket)) => self.identify(&permit(ticket), true).await,
            }
        }
    }

    /// Waits until the peer may be used; `None` when cancelled before.
    pub async fn wait_ready(self: &Arc<Self>, cancel: &CancellationToken) -> Option<Permit> {
        let mut changes = self.changes();
        let ready = async {
            loop {
                changes.mark_unchanged();
                match self.admit().await {
                    Admission::Go(permit) | Admission::Probe(permit) => return permit,
                    Admission::Wait(until) => {
                        let pause = until.saturating_sub(self.clock.monotonic()).max(Duration::from_millis(5));
                        tokio::select! {
                            () = tokio::time::sleep(pause) => {}
                            _ = changes.changed() => {}
                        }
                    }
                }
            }
        };
        cancel.run_until_cancelled(ready).await
    }

    /// The peer as it is to be shown.
    pub fn snapshot(&self) -> PeerSnapshot {
        let state = self.state();
        let breaker = state.breaker.snapshot();
        let wall = |monotonic| self.clock.wall_of(monotonic);
        PeerSnapshot {
            name: self.name.clone(),
            store_id: self.store_id.borrow().clone(),
            info: state.shown.as_ref().map(|(info, _)| info.clone()),
            info_time: state.shown.as_ref().map(|(_, told)| wall(*told)),
            phase: breaker.phase,
            reason: breaker.reason,
            latched: breaker.latched,
            since: wall(breaker.since),
            next_probe: breaker.next_probe.map(wall),
            failures: breaker.failures,
            last_error: state.last_error.clone().map(|(reason, at)| (reason, wall(at))),
            last_contact: state.last_contact.map(wall),
        }
    }

    /// Asks the store what it is, and reports the outcome to the breaker. `close`: the right answer closes it.
    async fn identify(&self, permit: &Permit, close: bool) {
        let answer = match tokio::time::timeout(INFO_TIMEOUT, self.store.info()).await {
            Ok(answer) => answer,
            Err(_) => {
                let seconds = INFO_TIMEOUT.as_secs();
                return permit.failed(self.unavailable(&format!("GetPeerInfo was not answered within {seconds} s")));
            }
        };
        let info = match answer {
            Ok(info) => info,
            Err(StoreError::Protocol(message)) => {
                return permit.failed(Reason::new(FaultKind::PeerProtocol, message));
            }
            Err(error) => return permit.failed(self.unavailable(&error.to_string())),
        };
        self.state().shown = Some((info.clone(), self.clock.monotonic()));
        if let Some(complaint) = self.needs.complaint(&info) {
            return self.latch(Reason::new(FaultKind::WrongPeerKind, complaint));
        }
        if let Some(complaint) = self.check_store_id(&info) {
            return self.latch(Reason::new(FaultKind::StoreIdChanged, complaint));
        }
        let now = self.clock.monotonic();
        {
            let mut state = self.state();
            state.info = Some((info, now));
            state.last_contact = Some(now);
        }
        if close {
            permit.succeeded();
        }
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

    fn succeeded(&self, ticket: Ticket) {
        let now = self.clock.monotonic();
        let mut state = self.state();
        state.last_contact = Some(now);
        let transition = state.breaker.on_success(ticket, now);
        drop(state);
        self.note(transition);
    }

    fn failed(&self, ticket: Ticket, reason: Reason) {
        let (now, jitter) = (self.clock.monotonic(), self.entropy.jitter());
        let mut state = self.state();
        state.last_error = Some((reason.clone(), now));
        // The connection may be another one afterwards.
        state.info = None;
        let was_probing = state.breaker.snapshot().phase == Phase::Probing;
        let transition = state.breaker.on_peer_fault(ticket, reason, now, jitter);
        drop(state);
        if was_probing && transition.is_none() {
            self.tell();
        }
        self.note(transition);
    }

    fn latch(&self, reason: Reason) {
        let (now, jitter) = (self.clock.monotonic(), self.entropy.jitter());
        let mut state = self.state();
        state.last_error = Some((reason.clone(), now));
        state.info = None;
        let transition = state.breaker.latch(reason, now, jitter);
        drop(state);
        self.note(transition);
    }

    fn note(&self, transition: Option<Transition>) {
        match transition {
            None => return,
            Some(Transition::Opened { reason, latched, .. }) => {
                tracing::warn!(peer = %self.name, kind = %reason.kind, latched, "breaker open: {}", reason.message);
            }
            Some(Transition::Closed { reason, after, failures }) => {
                let seconds = after.as_secs_f64();
                tracing::info!(peer = %self.name, kind = %reason.kind, seconds, failures, "breaker closed");
            }
        }
        self.tell();
    }

    fn tell(&self) {
        self.changes.send_modify(|count| *count = count.wrapping_add(1));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether it is known well enough who is at the other end.
    fn is_identified(&self, now: Duration) -> bool {
        let is_fresh = |since: Duration, limit| now.saturating_sub(since) <= limit;
        let Some((_, asked)) = self.info else { return false };
        is_fresh(asked, INFO_MAX_AGE) && self.last_contact.is_some_and(|contact| is_fresh(contact, SILENCE))
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Peer").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
