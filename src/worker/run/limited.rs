//! What an operator's limits do to the loop: they hold from the next claim on, and never touch a copy in flight.

use super::{Fill, Run};
use crate::queue::{Claim, Lane};
use crate::worker::report::Activity;
use std::time::Duration;

/// One in so many copies is the backfill's, where a rate lets not all begin that were claimed.
const BACKFILL_ONE_IN: u8 = 5;

/// Whose turn it is. The lanes share the workers by what they occupy; under a rate hardly any are occupied, and without
/// turns whoever stands first in a batch would have all of the rate.
#[derive(Debug, Default)]
pub(super) struct Turns {
    taken: u8,
}

impl Turns {
    /// The claims in the order in which they are to begin; within a lane, as they came.
    pub(super) fn order(&self, claims: Vec<Claim>) -> Vec<Claim> {
        let all = claims.len();
        let (fresh, backfill): (Vec<_>, Vec<_>) =
            claims.into_iter().partition(|claim| claim.entry().lane == Lane::Fresh);
        let (mut fresh, mut backfill) = (fresh.into_iter(), backfill.into_iter());
        let mut ordered = Vec::with_capacity(all);
        let mut taken = self.taken;
        while ordered.len() < all {
            taken = (taken + 1) % BACKFILL_ONE_IN;
            let next = if taken == 0 {
                backfill.next().or_else(|| fresh.next())
            } else {
                fresh.next().or_else(|| backfill.next())
            };
            ordered.extend(next);
        }
        ordered
    }

    /// A copy of this lane has begun. The backfill's turn waits for it.
    pub(super) fn took(&mut self, lane: Lane) {
        self.taken = match lane {
            Lane::Fresh => (self.taken + 1).min(BACKFILL_ONE_IN - 1),
            Lane::Backfill => 0,
        };
    }
}

impl Run {
    pub(super) fn workers(&self) -> usize {
        self.worker.limits().workers.max(1)
    }

    /// The limits have changed. A pause takes back what is being claimed.
    pub(super) fn on_limits(&mut self) {
        let limits = self.worker.limits();
        self.worker.throttle.set(&limits);
        if limits.paused {
            self.filling = None;
        }
        self.rest = None;
    }

    /// How many copies may be begun now. Where it is none, the loop rests.
    pub(super) fn room(&mut self, has_work: [bool; 2]) -> Option<usize> {
        if self.worker.limits().paused {
            let poll = self.worker.deps.policy.poll_interval;
            self.rest_as(Activity::Paused, poll);
            return None;
        }
        let free = self.free();
        if has_work == [false, false] {
            return Some(free);
        }
        self.worker.throttle.room(free).map_err(|until| self.rest_for_rate(until)).ok()
    }

    /// Rests until the rate allows another copy. News from the queue change nothing about that.
    pub(super) fn rest_for_rate(&mut self, until: Duration) {
        let pause = until.saturating_sub(self.worker.deps.clock.monotonic());
        self.rest_as(Activity::RateLimited, pause);
    }

    fn rest_as(&mut self, activity: Activity, pause: Duration) {
        let Fill { activity, rest, .. } = Fill::nothing(activity, pause, false);
        self.rest = rest;
        self.set_activity(activity);
    }
}
