//! The breaker of one peer: whether the peer is tried at all.
//!
//! ```text
//! Closed ── everything fails alike, latch ──▶ Open ── any success, identification ──▶ Closed
//! ```
//!
//! A plain state machine: events and the time go in, decisions come out. Nobody is charged while it is open. What it
//! holds to:
//!
//! - **It opens when everything fails alike**: after [`ROW`] failures of distinct entries in a row without one success (or
//!   twice as many as are in flight), after `SOON` failures of any kind without a success for `QUIET`, or after
//!   `UNIDENTIFIED` identifications in a row that failed, or `SILENT` after a silence. One failure amid successes never opens it. What an entry fails
//!   again counts `REPEATED` only: a few hopeless entries are no outage.
//! - **While it is open, one try at a time**, with a gap between them that doubles from `FIRST_GAP` to [`LONGEST_GAP`], or
//!   to `SHORT_GAP` while the peer answers its canary. A try that hangs does not hold back the next for longer than that.
//! - **Any success closes it**; how wide the peer is used then is for [`Concurrency`](crate::concurrency::Concurrency).
//! - **A latched breaker** (wrong kind of peer, another store's id) is closed by an identification only: the peer answers well,
//!   but it is the wrong one, and a copy that succeeds there proves nothing.
//!
//! The numbers were found by simulation (`worker::simulation`).

use crate::clock::Monotonic;
use crate::fault::FaultKind;
use std::time::Duration;

/// The most of a peer's message that is kept, in bytes.
const MAX_MESSAGE: usize = 500;

/// First failures in a row that open it, at least.
pub(crate) const ROW: f64 = 64.0;

/// What the failure of an entry that failed there before counts.
const REPEATED: f64 = 1.0 / 16.0;

/// Failures of any kind that open it, if nothing succeeded for `QUIET`.
const SOON: u32 = 16;

/// See `SOON`.
const QUIET: Duration = Duration::from_secs(10);

/// Identifications that fail in a row, with no success between, open it.
const UNIDENTIFIED: f64 = 8.0;

/// The same, where nothing has succeeded for `QUIET`: an answer may take its whole deadline to fail.
const SILENT: f64 = 2.0;

/// The pause before the first try.
const FIRST_GAP: Duration = Duration::from_millis(100);

/// The longest pause between tries while the peer answers its canary.
const SHORT_GAP: Duration = Duration::from_millis(500);

/// The longest pause between tries.
pub(crate) const LONGEST_GAP: Duration = Duration::from_secs(10);

/// So long a try that hangs holds back the next, while the peer answers its canary.
const HANGS: Duration = Duration::from_secs(3);

/// Why a breaker is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reason {
    /// The kind of fault.
    pub kind: FaultKind,
    /// What happened, for people; bounded.
    pub message: String,
}

impl Reason {
    /// A reason; a long message is cut.
    pub(crate) fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self { kind, message }
    }
}

/// What may be done with the peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pass {
    /// Anything.
    Go,
    /// One copy, to find out whether the peer is back.
    Try,
    /// One `GetPeerInfo`, to find out whether the right peer is back.
    Identify,
    /// Nothing, before this moment.
    Wait(Monotonic),
}

/// What a breaker's state is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The peer is used.
    Closed,
    /// The peer is left alone until the next try.
    Open,
    /// A try is out.
    Probing,
}

impl Phase {
    /// The name as it stands in Status, logs and metrics.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Probing => "probing",
        }
    }
}

/// How a failure counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FailureWeight {
    /// An entry failed for the first time at this peer; a pack as a whole counts as one.
    First,
    /// An entry that had failed there before.
    Again,
    /// The peer was asked what it is, and did not say.
    Identification,
}

/// A change that is worth one line in the log. Tries that change nothing are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Transition {
    /// It opened, or is open for another kind of reason than before.
    Opened {
        /// Why.
        reason: Reason,
        /// Whether only the right peer's identification closes it.
        latched: bool,
    },
    /// It closed: the peer is used again.
    Closed {
        /// Why it was open.
        reason: Reason,
        /// How long it was open.
        after: Duration,
        /// How many failures that took.
        failures: u64,
    },
}

/// A breaker as it is shown. [`Clock::wall_of`](crate::clock::Clock::wall_of) makes its times presentable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// The state.
    pub phase: Phase,
    /// Why it is not closed.
    pub reason: Option<Reason>,
    /// Whether only the right peer's identification closes it.
    pub latched: bool,
    /// Since when it is closed, or not closed.
    pub since: Monotonic,
    /// When the next try is due; absent while closed or while a try is out.
    pub next_try: Option<Monotonic>,
    /// Failures since the last success.
    pub failures: u64,
    /// How often it opened since it was made.
    pub openings: u64,
}

#[derive(Clone, Debug)]
struct Outage {
    reason: Reason,
    latched: bool,
    gap: Duration,
    next_try: Monotonic,
    /// The try that is out: when it began, and until when it holds back the next.
    out: Option<(Monotonic, Monotonic)>,
}

/// The breaker of one peer. See the module's header.
#[derive(Clone, Debug)]
pub(crate) struct Breaker {
    outage: Option<Outage>,
    since: Monotonic,
    /// Failures without a success between: by weight, and as such.
    row: f64,
    failures: u64,
    last_success: Monotonic,
    /// When the peer last answered its canary.
    canary: Option<Monotonic>,
    openings: u64,
}

impl Breaker {
    /// A closed breaker.
    pub(crate) const fn new(now: Monotonic) -> Self {
        Self { outage: None, since: now, row: 0.0, failures: 0, last_success: now, canary: None, openings: 0 }
    }

    /// What may be done now.
    pub(crate) fn pass(&self, now: Monotonic) -> Pass {
        let Some(outage) = &self.outage else { return Pass::Go };
        let at = outage.out.map_or(outage.next_try, |(_, until)| outage.next_try.max(until));
        if now < at {
            Pass::Wait(at)
        } else if outage.latched {
            Pass::Identify
        } else {
            Pass::Try
        }
    }

    /// A try or an identification begins, if the breaker is open. `jitter` is in `[0, 1)`.
    pub(crate) fn begin(&mut self, now: Monotonic, jitter: f64) {
        let hangs = if self.is_well(now) { HANGS } else { LONGEST_GAP };
        if let Some(outage) = &mut self.outage {
            outage.out = Some((now, now.saturating_add(jittered(hangs, jitter))));
        }
    }

    /// A try that began then has ended, whatever came of it. Only the latest lets the next go.
    pub(crate) fn end(&mut self, began: Monotonic) {
        if let Some(outage) = &mut self.outage
            && outage.out.is_some_and(|(latest, _)| latest == began)
        {
            outage.out = None;
        }
    }

    /// The peer did what it was asked to.
    pub(crate) fn succeeded(&mut self, now: Monotonic) -> Option<Transition> {
        self.last_success = now;
        self.row = 0.0;
        if self.outage.as_ref().is_some_and(|outage| outage.latched) {
            return None;
        }
        self.close(now)
    }

    /// The right peer said what it is. Closes a latched breaker; any other waits for a copy that succeeds.
    pub(crate) fn identified(&mut self, now: Monotonic) -> Option<Transition> {
        if self.outage.as_ref().is_some_and(|outage| outage.latched) { self.close(now) } else { None }
    }

    /// The peer failed, or seems to have. `in_flight` is how many copies use it, `is_try` whether this one was a try of the
    /// open breaker; `jitter` is in `[0, 1)`.
    pub(crate) fn failed(
        &mut self,
        how: FailureWeight,
        in_flight: usize,
        is_try: bool,
        reason: Reason,
        now: Monotonic,
        jitter: f64,
    ) -> Option<Transition> {
        #[expect(clippy::cast_precision_loss, reason = "thousands at most")]
        let row = ROW.max(2.0 * in_flight as f64);
        self.failures = self.failures.saturating_add(1);
        self.row += match how {
            FailureWeight::First => 1.0,
            FailureWeight::Again => REPEATED,
            FailureWeight::Identification if now.since(self.last_success) > QUIET => row / SILENT,
            FailureWeight::Identification => row / UNIDENTIFIED,
        };
        let longest = if self.is_well(now) { SHORT_GAP } else { LONGEST_GAP };
        if let Some(outage) = &mut self.outage {
            if is_try {
                outage.gap = (outage.gap * 2).min(longest);
                let since = outage.out.map_or(now, |(began, _)| began);
                outage.next_try = since.saturating_add(jittered(outage.gap, jitter)).max(outage.next_try);
            }
            if outage.latched || outage.reason.kind == reason.kind {
                return None;
            }
            outage.reason = reason;
            return Some(Transition::Opened { reason: outage.reason.clone(), latched: false });
        }
        let soon = self.failures >= u64::from(SOON) && now.since(self.last_success) > QUIET;
        if self.row < row && !soon {
            return None;
        }
        self.open(reason, false, now, jitter)
    }

    /// The wrong peer answers (its kind or its store id is not the expected one): open until an identification succeeds,
    /// whatever the state was, and whoever found out. `jitter` is in `[0, 1)`.
    pub(crate) fn latch(&mut self, reason: Reason, now: Monotonic, jitter: f64) -> Option<Transition> {
        self.failures = self.failures.saturating_add(1);
        let Some(outage) = self.outage.as_mut().filter(|outage| outage.latched) else {
            return self.open(reason, true, now, jitter);
        };
        let is_news = outage.reason.kind != reason.kind;
        outage.reason = reason;
        outage.gap = (outage.gap * 2).min(LONGEST_GAP);
        outage.next_try = now.saturating_add(jittered(outage.gap, jitter));
        is_news.then(|| Transition::Opened { reason: outage.reason.clone(), latched: true })
    }

    /// The peer was asked a small question; the answer was well, or it was not.
    pub(crate) fn canary(&mut self, well: bool, now: Monotonic) {
        if well {
            self.canary = Some(now);
        }
    }

    /// When the peer last answered its canary.
    pub(crate) fn last_canary(&self) -> Option<Monotonic> {
        self.canary
    }

    /// What is expected of the peer has changed: the next try is due now. One that is out goes on.
    pub(crate) fn try_now(&mut self, now: Monotonic) {
        if let Some(outage) = &mut self.outage {
            outage.next_try = outage.next_try.min(now);
        }
    }

    /// Whether it is open.
    pub(crate) fn is_open(&self) -> bool {
        self.outage.is_some()
    }

    /// The breaker as it is to be shown.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let outage = self.outage.as_ref();
        Snapshot {
            phase: match outage {
                None => Phase::Closed,
                Some(outage) if outage.out.is_some() => Phase::Probing,
                Some(_) => Phase::Open,
            },
            reason: outage.map(|outage| outage.reason.clone()),
            latched: outage.is_some_and(|outage| outage.latched),
            since: self.since,
            next_try: outage.filter(|outage| outage.out.is_none()).map(|outage| outage.next_try),
            failures: self.failures,
            openings: self.openings,
        }
    }

    fn is_well(&self, now: Monotonic) -> bool {
        self.canary.is_some_and(|at| now.since(at) < 3 * LONGEST_GAP)
    }

    fn open(&mut self, reason: Reason, latched: bool, now: Monotonic, jitter: f64) -> Option<Transition> {
        if self.outage.is_none() {
            self.since = now;
            self.openings = self.openings.saturating_add(1);
        }
        let next_try = now.saturating_add(jittered(FIRST_GAP, jitter));
        self.outage = Some(Outage { reason: reason.clone(), latched, gap: FIRST_GAP, next_try, out: None });
        Some(Transition::Opened { reason, latched })
    }

    fn close(&mut self, now: Monotonic) -> Option<Transition> {
        let failures = std::mem::take(&mut self.failures);
        let outage = self.outage.take()?;
        let after = now.since(self.since);
        (self.since, self.row) = (now, 0.0);
        Some(Transition::Closed { reason: outage.reason, after, failures })
    }
}

/// Half of it for certain, half by chance.
fn jittered(time: Duration, jitter: f64) -> Duration {
    time.mul_f64(0.5 + 0.5 * jitter.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests;
