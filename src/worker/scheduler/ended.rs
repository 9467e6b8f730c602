//! What follows from the end of a job: for each of its entries, for the peers, and for the next hops.

use super::super::attribution::{self, FailedAttempt, charge_threshold, doubts};
use super::class::{Feed, Kind, WaitingClaim};
use super::packs::FEWER;
use super::{Conclusion, Effect, EntryEnd, Fate, InFlight, JobId, Moment, Peers, Scheduler, Step};
use crate::backoff::OnMissing;
use crate::blob::BlobMeta;
use crate::breaker::{self, Reason};
use crate::copy::{Copied, CopyError};
use crate::fault::{FailureClass, FaultKind, Side};
use crate::queue::{Claim, Entry, Failure, Origin, Outcome, Push, Weight};
use std::time::Duration;

/// After so many refusals in a row an entry waits in the queue, and no longer in memory.
const STUBBORN: u32 = 16;

/// The longest that a refused entry waits by itself.
const LONGEST_REFUSAL: Duration = Duration::from_secs(60);

/// How often a peer in doubt is asked whether it is well, at most.
const ASK_EVERY: Duration = Duration::from_secs(10);

/// A peer is in doubt when nothing has succeeded for so long.
const IN_DOUBT: Duration = Duration::from_secs(1);

impl Scheduler {
    pub(super) fn ended(
        &mut self,
        id: JobId,
        ends: Vec<(Claim, EntryEnd)>,
        answered: [bool; 2],
        took: Duration,
        step: &mut Step<'_>,
    ) {
        let Some(job) = self.give_back(id, step) else { return };
        // What a side gave for a copy that failed elsewhere shows that it is there.
        for (side, answered) in Peers::SIDES.into_iter().zip(answered) {
            let failed = ends.iter().any(
                |(_, end)| matches!(end, EntryEnd::Failed(error) | EntryEnd::Unanswered(error) if error.side == side),
            );
            if answered && !failed {
                step.peers.of(side).succeeded(step.now.monotonic);
            }
        }
        match job.kind {
            Kind::Alone => {
                for (claim, end) in ends {
                    self.ended_alone(id, &job, claim, end, took, step);
                }
            }
            Kind::Packed => self.ended_pack(id, &job, ends, took, step),
        }
    }

    fn ended_alone(
        &mut self,
        id: JobId,
        job: &InFlight,
        claim: Claim,
        end: EntryEnd,
        took: Duration,
        step: &mut Step<'_>,
    ) {
        let at = Some((id, 0));
        let entry = claim.entry();
        let error = match end {
            EntryEnd::Copied(copied) => {
                let doubts = doubts(entry);
                let fresh = entry.attempts == 0;
                for side in Peers::SIDES {
                    self.succeeded_at(side, job, doubts, took, step);
                }
                self.tried(job.feed, fresh, true);
                return self.confirm(at, claim, copied, step);
            }
            EntryEnd::Alone(size) => {
                let waiter = WaitingClaim { size: size.or(entry.size), claim, fellows: 1, refusals: 0 };
                return self.line(job.feed).add_first(waiter);
            }
            EntryEnd::Failed(error) | EntryEnd::Unanswered(error) => error,
        };
        let side = error.side;
        if let FailureClass::Overloaded { retry_after } = error.class {
            let refusals = job.refusals + 1;
            let wait = retry_after.unwrap_or_default();
            self.refused(side, job, refusals, wait, &error, step);
            if refusals <= STUBBORN {
                let usual = step.peers.of(side).concurrency.usual();
                let backoff = usual.saturating_mul(1 << (refusals - 1).min(16)).min(LONGEST_REFUSAL);
                let wait = wait.max(backoff).mul_f64(1.0 + 0.2 * self.entropy.jitter());
                step.act(Effect::Conclude(told(at, entry, error, Fate::Kept, Weight(0))));
                let waiter = WaitingClaim { size: entry.size, claim, fellows: 1, refusals };
                let due = step.now.monotonic.saturating_add(wait);
                self.refused.insert((due, waiter.seq()), (job.feed, waiter));
                return;
            }
        }
        if error.class == FailureClass::NotProcessed && job.refusals < STUBBORN && !job.is_try.contains(&true) {
            let waiter = WaitingClaim { size: entry.size, claim, fellows: 1, refusals: job.refusals + 1 };
            return self.line_up_again(job.feed, waiter);
        }
        self.tried(job.feed, entry.attempts == 0, false);
        self.peer_failed(side, job, doubts(entry) == 0, &error, step);
        self.ask_in_doubt(side, step);
        self.fail(at, claim, error, step);
    }

    fn ended_pack(
        &mut self,
        id: JobId,
        job: &InFlight,
        ends: Vec<(Claim, EntryEnd)>,
        took: Duration,
        step: &mut Step<'_>,
    ) {
        self.pack_size.took(took);
        let (mut confirmed, mut duplicates) = (0, 0);
        // What the pack as a whole came to at a side, and what was answered for one of its blobs and may be the peer's.
        let mut failed: [Option<CopyError>; 2] = [None, None];
        let mut doubtful: [Option<(CopyError, bool)>; 2] = [None, None];
        let mut again: Vec<WaitingClaim> = Vec::new();
        for (place, (claim, end)) in ends.into_iter().enumerate() {
            let at = Some((id, place));
            let entry = claim.entry();
            let is_first = doubts(entry) == 0;
            match end {
                EntryEnd::Copied(copied) => {
                    confirmed += 1;
                    duplicates += usize::from(!copied.was_new);
                    self.tried(job.feed, entry.attempts == 0, true);
                    for side in Peers::SIDES {
                        self.attribution.succeeded(side, job.began.monotonic, doubts(entry));
                    }
                    self.confirm(at, claim, copied, step);
                }
                EntryEnd::Alone(size) => {
                    again.push(WaitingClaim { size: size.or(entry.size), claim, fellows: 1, refusals: 0 });
                }
                EntryEnd::Failed(error) if is_own(error.class) => {
                    self.tried(job.feed, entry.attempts == 0, false);
                    match error.class {
                        FailureClass::Answer { .. } => self.peer_failed(error.side, job, is_first, &error, step),
                        FailureClass::Doubtful => {
                            let of_side = &mut doubtful[attribution::index(error.side)];
                            let before = of_side.as_ref().is_some_and(|(_, is_first)| *is_first);
                            *of_side = Some((error.clone(), is_first || before));
                        }
                        _ => {}
                    }
                    self.fail(at, claim, error, step);
                }
                EntryEnd::Failed(error) | EntryEnd::Unanswered(error) => {
                    let says_nothing =
                        matches!(error.class, FailureClass::Overloaded { .. } | FailureClass::NotProcessed);
                    let (fellows, refusals) = if says_nothing && job.refusals < STUBBORN {
                        (job.fellows.max(2), job.refusals + 1)
                    } else {
                        ((job.fellows / FEWER).max(1), 0)
                    };
                    if refusals == 0 || error.class != FailureClass::NotProcessed {
                        step.act(Effect::Conclude(told(at, entry, error.clone(), Fate::Kept, Weight(0))));
                    }
                    again.push(WaitingClaim { size: entry.size, claim, fellows, refusals });
                    if refusals > 0 && error.class == FailureClass::NotProcessed {
                        continue;
                    }
                    failed[attribution::index(error.side)].get_or_insert(error);
                }
            }
        }
        self.duplicates.saw(duplicates, confirmed);
        if !again.is_empty() && confirmed == 0 {
            self.tried(job.feed, true, false);
        }
        if confirmed > 0 {
            for side in Peers::SIDES {
                self.succeeded_at(side, job, 0, took, step);
            }
        }
        for error in failed.into_iter().flatten() {
            let side = error.side;
            if let FailureClass::Overloaded { retry_after } = error.class {
                self.refused(side, job, job.refusals + 1, retry_after.unwrap_or_default(), &error, step);
            } else if confirmed == 0 || error.class == FailureClass::TimedOut {
                self.attribution.pack_failed(side);
                self.peer_failed(side, job, true, &error, step);
                self.ask_in_doubt(side, step);
            }
        }
        // Amid others that arrived by the same call it tells nothing against the peer; where none did, it is one failure.
        for (error, is_first) in doubtful.into_iter().flatten().filter(|_| confirmed == 0) {
            self.peer_failed(error.side, job, is_first, &error, step);
            self.ask_in_doubt(error.side, step);
        }
        for waiter in again.into_iter().rev() {
            self.line_up_again(job.feed, waiter);
        }
    }

    /// Puts one back that was started, first in its line; while a breaker is open it is released, as all that was claimed ahead.
    fn line_up_again(&mut self, feed: Feed, waiter: WaitingClaim) {
        if !self.was_open {
            self.line(feed).add_first(waiter);
        }
    }

    /// An entry was tried for the first time: what that says of where it was claimed.
    fn tried(&mut self, feed: Feed, is_first: bool, good: bool) {
        if is_first && !feed.class.retry {
            let random = self.entropy.jitter();
            self.scouts[super::lane_index(feed.class.lane)].tried(feed.walk, good, random);
        }
    }

    fn succeeded_at(&mut self, side: Side, job: &InFlight, doubts: u32, took: Duration, step: &mut Step<'_>) {
        self.attribution.succeeded(side, job.began.monotonic, doubts);
        self.succeeded[attribution::index(side)] = step.now.monotonic;
        let peer = step.peers.of(side);
        peer.succeeded(step.now.monotonic);
        peer.concurrency.succeeded(job.widths[attribution::index(side)], took, step.now.monotonic);
    }

    /// What a failure says of its peer: nothing, where it is an answer about the blob.
    fn peer_failed(&mut self, side: Side, job: &InFlight, is_first: bool, error: &CopyError, step: &mut Step<'_>) {
        let index = attribution::index(side);
        let peer = step.peers.of(side);
        match error.class {
            FailureClass::Panicked => return,
            FailureClass::Answer { .. } => {
                // It is there, and does its work. What it says of the blob may be another store's word, though.
                peer.succeeded(step.now.monotonic);
                if side == Side::Source {
                    peer.doubt();
                }
                return;
            }
            FailureClass::Overloaded { .. } => return,
            FailureClass::TimedOut => {
                let reason = Reason::new(error.kind, error.message.clone());
                peer.refused(job.widths[index], Duration::ZERO, reason, step.now.monotonic);
            }
            FailureClass::Doubtful | FailureClass::Cut | FailureClass::NotProcessed => {}
        }
        let how = if is_first { breaker::FailureWeight::First } else { breaker::FailureWeight::Again };
        let reason = Reason::new(error.kind, error.message.clone());
        peer.fail(how, job.is_try[index], reason, step.now.monotonic, self.entropy.jitter());
    }

    /// A call was refused for want of capacity. More than twice the same entry says nothing of the width.
    fn refused(
        &mut self,
        side: Side,
        job: &InFlight,
        refusals: u32,
        wait: Duration,
        error: &CopyError,
        step: &mut Step<'_>,
    ) {
        if job.is_try[attribution::index(side)] {
            // It is back, and says how many it takes.
            step.peers.of(side).succeeded(step.now.monotonic);
        }
        if refusals <= 2 {
            let width = job.widths[attribution::index(side)];
            let reason = Reason::new(error.kind, error.message.clone());
            step.peers.of(side).refused(width, wait, reason, step.now.monotonic);
        }
    }

    /// Nothing has succeeded at a peer for a moment: it is asked whether it is well.
    fn ask_in_doubt(&mut self, side: Side, step: &mut Step<'_>) {
        let silent = step.now.monotonic.since(self.succeeded[attribution::index(side)]);
        if silent > IN_DOUBT {
            self.ask(side, step);
        }
    }

    fn ask(&mut self, side: Side, step: &mut Step<'_>) {
        let asked = &mut self.asked[attribution::index(side)];
        if asked.is_none_or(|asked| step.now.monotonic.since(asked) >= ASK_EVERY) {
            *asked = Some(step.now.monotonic);
            step.act(Effect::Ask(side, self.attribution.sample()));
        }
    }

    /// The settlement of a confirmed entry: removed, and pushed onto the next hops in the same write.
    fn confirm(&mut self, at: Option<(JobId, usize)>, claim: Claim, copied: Copied, step: &mut Step<'_>) {
        let entry = claim.entry();
        self.attribution.confirmed(BlobMeta { blob: entry.blob, size: copied.size });
        self.attribution.forget(entry.seq);
        let (blob, size, attempt) = (entry.blob, entry.size, entry.attempts + 1);
        let (result, fate, weight) = (Ok(copied), Fate::Confirmed, Weight(0));
        step.act(Effect::Conclude(Conclusion { job: at, blob, size, attempt, result, fate, weight }));
        let chained = self.chained(entry, copied.size);
        let outcome = Outcome::Confirmed { size: copied.size, copied: copied.copied, chained };
        self.unsettled.push((claim, outcome));
    }

    fn chained(&self, entry: &Entry, size: u64) -> Vec<Push> {
        let route = &self.route;
        if route.next.is_empty() {
            return Vec::new();
        }
        let mut visited = entry.visited.clone();
        for store in [&route.from, &route.to] {
            if !visited.contains(store) {
                visited.push(store.clone());
            }
        }
        let onward = route.next.iter().filter(|hop| !visited.contains(&hop.to));
        let chained = onward.map(|hop| Push {
            route: hop.route,
            blob: entry.blob,
            size: Some(size),
            lane: entry.lane,
            trace: entry.trace.clone(),
            visited: visited.clone(),
            repair: false,
            origin: Origin::Chained,
        });
        chained.collect()
    }

    /// An entry that no peer was asked for, since one would never take it.
    pub(super) fn conclude_unsent(&mut self, claim: Claim, error: CopyError, step: &mut Step<'_>) {
        let failure = self.failure(&error, step.now);
        let weight = attribution::answer(self.route.policy.patience.park_after);
        step.act(Effect::Conclude(told(None, claim.entry(), error, Fate::Parked, weight)));
        self.unsettled.push((claim, Outcome::Park { failure, weight }));
    }

    fn failure(&self, error: &CopyError, now: Moment) -> Failure {
        let peer = match error.side {
            Side::Source => &self.route.from,
            Side::Destination => &self.route.to,
        };
        Failure {
            kind: error.kind,
            code: error.code,
            peer: peer.to_string(),
            message: error.message.clone(),
            first: now.wall,
            last: now.wall,
            count: 1,
        }
    }

    /// The settlement of an entry whose attempt failed: what it weighs, and whether it is tried again.
    fn fail(&mut self, at: Option<(JobId, usize)>, claim: Claim, error: CopyError, step: &mut Step<'_>) {
        let entry = claim.entry();
        let CopyError { kind, side, class, .. } = error;
        if let FailureClass::Answer { .. } = class {
            let is_asked = self.attribution.answered(kind, side, &error.message, step.now.wall);
            if is_asked || (kind == FaultKind::MissingAtSource && self.attribution.vanished().is_some()) {
                self.ask(Side::Source, step);
            }
        }
        let policy = self.route.policy;
        let park_after = policy.patience.park_after;
        let canary = step.peers.of(side).breaker().last_canary();
        let canary = canary.and_then(|at| step.now.wall.checked_sub(step.now.monotonic.since(at)));
        let failed = FailedAttempt { entry, side, kind, class, canary, now: step.now.wall, moment: step.now.monotonic };
        let weight = self.attribution.weigh(&failed, park_after);
        let failure = self.failure(&error, step.now);
        let mut after = entry.clone();
        after.fail(&failure, weight, policy.backoff.max());
        let missing = kind == FaultKind::MissingAtSource;
        let spent = if missing {
            // While refs that were copied earlier have vanished, nothing is given up for being missing.
            after.misses.lasted >= policy.patience.missing && self.attribution.vanished().is_none()
        } else {
            after.weight >= charge_threshold(park_after)
        };
        let outcome = if class.is_permanent() || spent {
            match policy.patience.on_missing {
                OnMissing::Discard if missing => Outcome::Discard,
                OnMissing::Discard | OnMissing::Park => Outcome::Park { failure, weight },
            }
        } else {
            let is_open = step.peers.of(side).breaker().is_open();
            let delay = self.delay(&after, error.class, missing, is_open);
            Outcome::Retry { due: step.now.wall.checked_add(delay).unwrap_or(step.now.wall), failure, weight }
        };
        let fate = match outcome {
            Outcome::Retry { .. } => Fate::Retried,
            Outcome::Park { .. } => Fate::Parked,
            Outcome::Discard | Outcome::Confirmed { .. } => Fate::Discarded,
        };
        if fate != Fate::Retried {
            self.attribution.forget(entry.seq);
        }
        step.act(Effect::Conclude(told(at, entry, error, fate, weight)));
        self.unsettled.push((claim, outcome));
    }

    /// How long an entry waits for its next attempt, `after` the failure: by what its failures weighed; by their number,
    /// where its peer is not tried now, or the blob is missing.
    fn delay(&self, after: &Entry, class: FailureClass, missing: bool, is_open: bool) -> Duration {
        let policy = self.route.policy;
        let charges = after.weight.0 / attribution::answer(policy.patience.park_after).0.max(1);
        let tries = if missing {
            after.misses.count.saturating_sub(1)
        } else if is_open || matches!(class, FailureClass::Overloaded { .. }) {
            after.attempts.saturating_sub(1).min(5)
        } else {
            0
        };
        let mut delay = policy.backoff.delay(charges.max(tries).saturating_add(1), self.entropy.jitter());
        let left = policy.patience.missing.saturating_sub(after.misses.lasted);
        if missing && !left.is_zero() {
            // The last attempt comes when the patience ends, not up to a longest backoff later.
            delay = delay.min(left.max(policy.backoff.nominal(1)));
        }
        match class {
            FailureClass::Overloaded { retry_after: Some(wait) } => delay.max(wait).min(policy.backoff.max()),
            _ => delay,
        }
    }
}

/// Whether what was answered for one blob of a pack is its entry's own, as when it is copied alone. Whose fault it is, the
/// peer's or the blob's, is for [`attribution`] to tell in both cases.
fn is_own(class: FailureClass) -> bool {
    match class {
        FailureClass::Answer { .. } | FailureClass::Panicked | FailureClass::Doubtful | FailureClass::Cut => true,
        FailureClass::Overloaded { .. } | FailureClass::TimedOut | FailureClass::NotProcessed => false,
    }
}

fn told(at: Option<(JobId, usize)>, entry: &Entry, error: CopyError, fate: Fate, weight: Weight) -> Conclusion {
    let (blob, size, attempt) = (entry.blob, entry.size, entry.attempts.saturating_add(1));
    Conclusion { job: at, blob, size, attempt, result: Err(error), fate, weight }
}
