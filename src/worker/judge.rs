//! What follows from the end of a copy: for the entry, for the peers, and for the next hops. No I/O.

pub(super) mod pack;

use super::attempt::FinishedCopy;
use super::question::Question;
use super::streaks::{self, Finding};
use super::suspects::Began;
use super::{Policy, RouteSpec, Worker};
use crate::backoff::OnMissing;
use crate::breaker::Reason;
use crate::copy::{Copied, CopyError, Progress};
use crate::fault::{FailureClass, FaultKind, Side};
use crate::peer::Permit;
use crate::queue::{Entry, Failure, Origin, Outcome, Push, Seq, Weight};
use std::sync::Arc;
use std::time::SystemTime;
use tonic::Code;

/// The permits that a batch of copies runs under.
#[derive(Debug)]
pub(super) struct Permits {
    pub(super) from: Permit,
    pub(super) to: Permit,
}

impl Permits {
    pub(super) fn of(&self, side: Side) -> &Permit {
        match side {
            Side::Source => &self.from,
            Side::Destination => &self.to,
        }
    }

    /// Tells the breakers of the sides that have answered so far: others may be waiting for a probe of a large blob.
    pub(super) fn tell_heard(&self, progress: &Progress) {
        for side in [Side::Source, Side::Destination] {
            let permit = self.of(side);
            // A peer that fails with every blob is heard well, up to the end of each.
            if progress.was_heard(side) && !permit.probes().is_some_and(FaultKind::is_of_one_blob) {
                permit.succeeded();
            }
        }
    }
}

/// An attempt at an entry that ended, as far as judging it goes.
pub(super) struct Attempt<'a> {
    pub(super) entry: &'a Entry,
    pub(super) began: Began,
    pub(super) permits: &'a Arc<Permits>,
    /// Whether the source, and the destination, have answered as a peer should in the course of it.
    pub(super) heard: [bool; 2],
}

impl Attempt<'_> {
    fn was_heard(&self, side: Side) -> bool {
        self.heard[usize::from(side == Side::Destination)]
    }
}

/// What the end of a copy leads to.
pub(super) struct Verdict {
    /// What becomes of the entry; `None`: it is released, uncharged.
    pub(super) outcome: Option<Outcome>,
    /// What the source is to be asked before it is known whose fault it was.
    pub(super) question: Option<Question>,
}

impl Worker {
    /// Reports a copy's end to the peers, and decides what becomes of the entry.
    pub(super) fn judge(&self, finished: &FinishedCopy) -> Verdict {
        let FinishedCopy { claim, result, began, permits, progress, .. } = finished;
        let entry = claim.entry();
        match result {
            Ok(copied) => {
                self.succeeded(&[entry.seq], *began, permits);
                Verdict { outcome: Some(confirmed(&self.spec, entry, *copied)), question: None }
            }
            Err(error) => {
                let heard = [Side::Source, Side::Destination].map(|side| progress.was_heard(side));
                let attempt = Attempt { entry, began: *began, permits, heard };
                let (charged, question) = if is_of_the_entry(error) {
                    self.blob_failed(&attempt, error)
                } else {
                    (self.peer_failed(&attempt, error, error.side), None)
                };
                self.failed(&attempt, error, charged, question)
            }
        }
    }

    /// What becomes of an entry that failed, and is charged for it or not.
    pub(super) fn failed(
        &self,
        attempt: &Attempt<'_>,
        error: &CopyError,
        charged: bool,
        question: Option<Question>,
    ) -> Verdict {
        let entry = attempt.entry;
        let peer = attempt.permits.of(error.side).peer().name();
        self.board.copy_failed(entry.blob, peer, error, charged);
        if !charged {
            tracing::debug!(route = %self.spec.name, blob = %entry.blob, %peer, %error, "copy failed, the peer is at fault");
            return Verdict { outcome: None, question };
        }
        let outcome = charge(&self.deps.policy, entry, error, peer, self.deps.clock.now(), self.deps.entropy.jitter());
        let parked = matches!(outcome, Outcome::Park { .. });
        match outcome {
            Outcome::Retry { .. } => self.metrics().retried(),
            Outcome::Park { .. } => self.metrics().parked(),
            Outcome::Confirmed { .. } | Outcome::Discard => {}
        }
        let attempt = entry.attempts.saturating_add(1);
        tracing::warn!(route = %self.spec.name, blob = %entry.blob, %peer, attempt, parked, %error, "copy failed");
        Verdict { outcome: Some(outcome), question }
    }

    /// The source was asked; `None`: it did not answer.
    pub(super) fn answered(&self, question: &Question, vanished: Option<bool>) {
        let Question { kind, message, permits, .. } = question;
        let is_probe = permits.from.probes().is_some();
        match vanished {
            Some(false) if is_probe => permits.from.succeeded(),
            Some(true) => {
                let why =
                    format!("{kind} for many blobs in a row, and blobs copied earlier have vanished, too: {message}");
                permits.from.failed(Reason::new(*kind, why));
            }
            None if is_probe => permits.from.failed(Reason::new(*kind, message.clone())),
            Some(false) | None => {}
        }
        if !is_probe {
            self.evidence().streaks.vanished(*kind, vanished == Some(true));
        }
    }

    /// A peer's fault; returns whether the entry is to be charged all the same.
    fn peer_failed(&self, attempt: &Attempt<'_>, error: &CopyError, at: Side) -> bool {
        let permit = attempt.permits.of(at);
        // A store that is nearly full takes small blobs and no large ones: room is never the blob's to make.
        let full = error.code == Some(Code::ResourceExhausted);
        let may_charge = !full && permit.probes().is_none() && permit.peer().is_closed();
        let charged = self.evidence().suspects.failed(attempt.entry.seq, at, attempt.began, may_charge);
        if !charged {
            permit.failed(Reason::new(error.kind, error.message.clone()));
        }
        if attempt.was_heard(at.other()) {
            self.side_succeeded(&[attempt.entry.seq], attempt.began, attempt.permits, at.other());
        }
        charged
    }

    /// A fault of the blob; returns whether the entry is charged, and what is to be asked.
    pub(super) fn blob_failed(&self, attempt: &Attempt<'_>, error: &CopyError) -> (bool, Option<Question>) {
        let Attempt { entry, began, permits, .. } = *attempt;
        let at = error.side;
        if attempt.was_heard(at.other()) {
            self.side_succeeded(&[entry.seq], began, permits, at.other());
        }
        let permit = permits.of(at);
        if error.kind == FaultKind::Panicked {
            if attempt.was_heard(at) {
                permit.succeeded();
            }
            return (true, None);
        }
        let question = |sample| {
            Some(Question { kind: error.kind, message: error.message.clone(), sample, permits: permits.clone() })
        };
        let reason = |why: String| Reason::new(error.kind, why);
        match permit.peer().open_for() {
            // It is not the peer that it should be.
            Some((_, true)) => return (false, None),
            // It fails with every blob, or did.
            Some((open_for, false)) if open_for.is_of_one_blob() => {
                if permit.probes().is_none() {
                    return (false, None);
                }
                let sample = self.evidence().streaks.sample();
                if streaks::needs_asking(error.kind) && !sample.is_empty() {
                    return (false, question(sample));
                }
                permit.failed(reason(format!("the next blob failed, too: {}", error.message)));
                return (false, None);
            }
            Some(_) | None => {}
        }
        if streaks::needs_asking(error.kind) {
            permit.peer().doubt();
        }
        let finding = self.evidence().streaks.failed(entry, error.kind, at);
        if finding == Finding::OfThePeer {
            let why = format!("{} blobs in a row failed alike, the last one: {}", streaks::ENOUGH, error.message);
            permit.failed(reason(why));
            return (false, None);
        }
        // An answer, if only about this blob.
        permit.succeeded();
        self.evidence().suspects.succeeded(entry.seq, at, began);
        match finding {
            Finding::Ask(sample) => (true, question(sample)),
            Finding::OfTheEntry | Finding::OfThePeer => (true, None),
        }
    }

    /// Both sides did for these entries, which were copied together, what was asked of them.
    pub(super) fn succeeded(&self, entries: &[Seq], began: Began, permits: &Permits) {
        for side in [Side::Source, Side::Destination] {
            self.side_succeeded(entries, began, permits, side);
        }
    }

    /// A side did for these entries what was asked of it.
    pub(super) fn side_succeeded(&self, entries: &[Seq], began: Began, permits: &Permits, side: Side) {
        permits.of(side).succeeded();
        let mut evidence = self.evidence();
        evidence.suspects.all_succeeded(entries, side, began);
        evidence.streaks.succeeded(side, self.deps.clock.now());
    }
}

/// Whether the entry answers for a failure, and not the peer.
fn is_of_the_entry(error: &CopyError) -> bool {
    matches!(error.class, FailureClass::Answer { .. } | FailureClass::Panicked)
}

/// The settlement of a confirmed entry: removed, and pushed onto the next hops in the same write.
pub(super) fn confirmed(spec: &RouteSpec, entry: &Entry, copied: Copied) -> Outcome {
    if spec.next.is_empty() {
        return Outcome::Confirmed { size: copied.size, copied: copied.copied, chained: Vec::new() };
    }
    let mut visited = entry.visited.clone();
    for store in [spec.from.name(), spec.to.name()] {
        if !visited.contains(store) {
            visited.push(store.clone());
        }
    }
    let onward = spec.next.iter().filter(|hop| !visited.contains(&hop.to));
    let chained = onward.map(|hop| Push {
        route: hop.route,
        blob: entry.blob,
        size: Some(copied.size),
        lane: entry.lane,
        trace: entry.trace.clone(),
        visited: visited.clone(),
        repair: false,
        origin: Origin::Chained,
    });
    Outcome::Confirmed { size: copied.size, copied: copied.copied, chained: chained.collect() }
}

/// The settlement of an entry that answers for its failure. `jitter` is in `[0, 1)`.
pub(super) fn charge(
    policy: &Policy,
    entry: &Entry,
    error: &CopyError,
    peer: &Arc<str>,
    now: SystemTime,
    jitter: f64,
) -> Outcome {
    let failure = Failure {
        kind: error.kind,
        code: error.code,
        peer: peer.to_string(),
        message: error.message.clone(),
        first: now,
        last: now,
        count: 1,
    };
    let Policy { backoff, patience, .. } = policy;
    let mut after = entry.clone();
    let weight = if error.kind == FaultKind::MissingAtSource { Weight(0) } else { Weight::ONE };
    after.fail(&failure, weight, backoff.max());
    let Entry { attempts, misses, .. } = after;
    let is_missing = error.kind == FaultKind::MissingAtSource;
    if error.class.is_permanent() || patience.is_exhausted(error.kind, attempts, misses.count, misses.lasted) {
        return match patience.on_missing {
            OnMissing::Discard if is_missing => Outcome::Discard,
            OnMissing::Discard | OnMissing::Park => Outcome::Park { failure, weight },
        };
    }
    let mut delay = backoff.delay(attempts, jitter);
    if is_missing {
        // The last attempt comes when the patience ends, not up to a longest backoff later.
        let left = patience.missing.saturating_sub(misses.lasted);
        delay = delay.min(left.max(backoff.nominal(1)));
    }
    Outcome::Retry { due: now.checked_add(delay).unwrap_or(now), failure, weight }
}
