//! The breaker of one peer: while the peer itself is at fault, copies stop and no entry is charged.
//!
//! ```text
//! Closed ── peer fault, latch ──▶ Open ── the probe's turn ──▶ Probing ── success ──▶ Closed
//!                                  ▲                               │
//!                                  └─ peer fault, latch, abandoned ┘
//! ```
//!
//! A plain state machine: events and the monotonic time go in, decisions come out. What it holds to:
//!
//! - **One probe at a time**, with [`Backoff::PROBE`] between them; one success closes the breaker to full width.
//! - **Only what was permitted since the last change counts.** Every permit carries a [`Ticket`]; each change of state makes
//!   older tickets stale. So the 31 other copies that fail with the first do not push the probe away, a copy that
//!   dies of the old outage does not open a breaker that has closed, and only the probe itself can close one.
//! - **A latched breaker** (wrong kind of peer, another store's id) asks for identification instead of a copy: the peer
//!   answers well, but it is the wrong one, and a copy that succeeds there proves nothing.
//! - **No probe is lost.** Whoever was given a probe reports its end or abandons it (a guard's `Drop` does); an abandoned
//!   probe can be had again at once.
//!
//! "Success" means that the peer answered as a peer should: a blob that it does not hold or refuses is an answer. Report it
//! as soon as that is known, with the first bytes of a large blob rather than the last, for all others wait for it.

use crate::backoff::Backoff;
use crate::fault::FaultKind;
use std::time::Duration;

/// The most of a peer's message that is kept, in bytes.
const MAX_MESSAGE: usize = 500;

/// Why a breaker is open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// The kind of fault.
    pub kind: FaultKind,
    /// What happened, for people; bounded.
    pub message: String,
}

impl Reason {
    /// A reason; a long message is cut.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        let mut message = message.into();
        message.truncate(message.floor_char_boundary(MAX_MESSAGE));
        Self { kind, message }
    }
}

/// Proof of a permit, to be shown with the outcome of what it permitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "report the outcome with this ticket, or abandon the probe"]
pub struct Ticket(u64);

/// What may be done with the peer now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// Anything.
    Go(Ticket),
    /// One copy, to find out whether the peer is back. Its end must be reported, or the probe abandoned.
    Probe(Ticket),
    /// One `GetPeerInfo`, to find out whether the right peer is back. Its end must be reported, or the probe abandoned.
    Identify(Ticket),
    /// Nothing, before this monotonic time. While another's probe is out that is a guess; a transition comes earlier or later.
    Wait(Duration),
}

/// What a breaker's state is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The peer is used at full width.
    Closed,
    /// The peer is left alone until the next probe.
    Open,
    /// A probe is out.
    Probing,
}

impl Phase {
    /// The name as it stands in Status, logs and metrics.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::Probing => "probing",
        }
    }
}

/// A change that is worth one line in the log. Probes that change nothing are not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition {
    /// It opened, or is open for another kind of reason than before.
    Opened {
        /// Why.
        reason: Reason,
        /// Whether only the right peer's identification closes it.
        latched: bool,
        /// When the next probe is due; monotonic.
        next_probe: Duration,
    },
    /// It closed: the peer is used again.
    Closed {
        /// Why it was open.
        reason: Reason,
        /// How long it was open.
        after: Duration,
        /// How many peer faults that took.
        failures: u64,
    },
}

/// A breaker as it is shown. Times are monotonic; [`Clock::wall_of`](crate::clock::Clock::wall_of) makes them presentable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The state.
    pub phase: Phase,
    /// Why it is not closed.
    pub reason: Option<Reason>,
    /// Whether only the right peer's identification closes it.
    pub latched: bool,
    /// Since when it is closed, or not closed.
    pub since: Duration,
    /// When the next probe is due; absent while closed or while a probe is out.
    pub next_probe: Option<Duration>,
    /// Peer faults since the last success.
    pub failures: u64,
}

/// What is known while the breaker is not closed.
#[derive(Clone, Debug)]
struct Outage {
    reason: Reason,
    latched: bool,
    // Probes that failed; sets the delay of the next.
    failed_probes: u32,
    next_probe: Duration,
    probing: bool,
}

/// The breaker of one peer. See the module's header.
#[derive(Clone, Debug)]
pub struct Breaker {
    backoff: Backoff,
    outage: Option<Outage>,
    since: Duration,
    failures: u64,
    // The current ticket; larger with every change of state.
    ticket: u64,
}

impl Breaker {
    /// A closed breaker that probes with this backoff.
    pub const fn new(backoff: Backoff, now: Duration) -> Self {
        Self { backoff, outage: None, since: now, failures: 0, ticket: 0 }
    }

    /// What may be done now. A probe that this permits is out from here on.
    pub fn permit(&mut self, now: Duration) -> Permit {
        if let Some(until) = self.wait_until(now) {
            return Permit::Wait(until);
        }
        let Some(outage) = &mut self.outage else { return Permit::Go(Ticket(self.ticket)) };
        outage.probing = true;
        self.ticket += 1;
        if outage.latched { Permit::Identify(Ticket(self.ticket)) } else { Permit::Probe(Ticket(self.ticket)) }
    }

    /// Until when [`permit`](Self::permit) would make the caller wait; `None` if it would not. Takes no probe: for a copy
    /// that needs two peers, ask both before taking either.
    pub fn wait_until(&self, now: Duration) -> Option<Duration> {
        let outage = self.outage.as_ref()?;
        if outage.probing {
            return Some(now.saturating_add(self.backoff.nominal(1)));
        }
        (now < outage.next_probe).then_some(outage.next_probe)
    }

    /// The ticket for those who learn of the peer's state without a permit, such as a connection that is kept open: good for
    /// [`on_peer_fault`](Self::on_peer_fault) while nothing changes, and never good for closing the breaker.
    pub fn observer(&self) -> Ticket {
        let probing = self.outage.as_ref().is_some_and(|outage| outage.probing);
        // While a probe is out, the current ticket is its holder's.
        Ticket(self.ticket.wrapping_sub(u64::from(probing)))
    }

    /// The peer answered as it should. Closes the breaker if this is the probe's ticket.
    pub fn on_success(&mut self, ticket: Ticket, now: Duration) -> Option<Transition> {
        if ticket.0 != self.ticket {
            return None;
        }
        if self.outage.as_ref().is_some_and(|outage| !outage.probing) {
            return None;
        }
        let failures = std::mem::take(&mut self.failures);
        let outage = self.outage.take()?;
        let after = now.saturating_sub(self.since);
        self.since = now;
        self.ticket += 1;
        Some(Transition::Closed { reason: outage.reason, after, failures })
    }

    /// The peer itself failed. Opens the breaker, or sends the probe whose ticket this is back to wait longer.
    /// `jitter` is in `[0, 1)`.
    pub fn on_peer_fault(&mut self, ticket: Ticket, reason: Reason, now: Duration, jitter: f64) -> Option<Transition> {
        self.failures = self.failures.saturating_add(u64::from(self.outage.is_some() || ticket.0 == self.ticket));
        if ticket.0 != self.ticket {
            return None;
        }
        match &self.outage {
            Some(outage) if !outage.probing => None,
            // A probe for the right identity that failed to connect is no reason to take the next best answer.
            Some(outage) if outage.latched => self.open(None, true, now, jitter),
            Some(_) | None => self.open(Some(reason), false, now, jitter),
        }
    }

    /// The wrong peer answers (its kind or its store id is not the expected one): opens the breaker until an identification
    /// succeeds, whatever its state, and whoever found out. `jitter` is in `[0, 1)`.
    pub fn latch(&mut self, reason: Reason, now: Duration, jitter: f64) -> Option<Transition> {
        let waiting = self.outage.as_mut().filter(|outage| outage.latched && !outage.probing);
        if let Some(outage) = waiting {
            // Known already. The probe's turn stays, or frequent findings would push it away for ever.
            let changed = outage.reason.kind != reason.kind;
            outage.reason = reason;
            return changed.then(|| Transition::Opened {
                reason: outage.reason.clone(),
                latched: true,
                next_probe: outage.next_probe,
            });
        }
        self.failures = self.failures.saturating_add(1);
        self.open(Some(reason), true, now, jitter)
    }

    /// Gives a probe back that was permitted and came to nothing (cancelled, or stopped by the other peer): it can be had
    /// again at once. Does nothing if it has been reported already, or was none.
    pub fn abandon_probe(&mut self, ticket: Ticket) {
        if ticket.0 != self.ticket {
            return;
        }
        if let Some(outage) = self.outage.as_mut().filter(|outage| outage.probing) {
            outage.probing = false;
            self.ticket += 1;
        }
    }

    /// What is expected of the peer has changed: the next probe is due now. One that is out goes on.
    pub fn probe_now(&mut self, now: Duration) {
        if let Some(outage) = &mut self.outage {
            outage.next_probe = outage.next_probe.min(now);
        }
    }

    /// The breaker as it is to be shown.
    pub fn snapshot(&self) -> Snapshot {
        let outage = self.outage.as_ref();
        Snapshot {
            phase: match outage {
                None => Phase::Closed,
                Some(outage) if outage.probing => Phase::Probing,
                Some(_) => Phase::Open,
            },
            reason: outage.map(|outage| outage.reason.clone()),
            latched: outage.is_some_and(|outage| outage.latched),
            since: self.since,
            next_probe: outage.filter(|outage| !outage.probing).map(|outage| outage.next_probe),
            failures: self.failures,
        }
    }

    /// Opens, or goes back to waiting after a failed probe. Without a reason, the present one stands.
    fn open(&mut self, reason: Option<Reason>, latched: bool, now: Duration, jitter: f64) -> Option<Transition> {
        self.ticket += 1;
        let before = self.outage.take();
        let failed_probes = before.as_ref().map_or(0, |outage| outage.failed_probes + u32::from(outage.probing));
        if before.is_none() {
            self.since = now;
        }
        let news = match (&before, &reason) {
            (Some(before), Some(reason)) => before.reason.kind != reason.kind || before.latched != latched,
            (before, _) => before.is_none(),
        };
        let reason = reason.or(before.map(|outage| outage.reason))?;
        let next_probe = now.saturating_add(self.backoff.delay(failed_probes.saturating_add(1), jitter));
        self.outage = Some(Outage { reason: reason.clone(), latched, failed_probes, next_probe, probing: false });
        news.then_some(Transition::Opened { reason, latched, next_probe })
    }
}

#[cfg(test)]
mod tests;
