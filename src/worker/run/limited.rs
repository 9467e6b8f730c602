//! What an operator's limits do to the loop: they hold from the next claim on, and never touch a copy in flight.

use super::Run;
use super::fill::Fill;
use crate::queue::Lane;
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
    /// The lane whose turn it is, of those that can take it; `None` where none can.
    pub(super) fn of(&self, can: [bool; 2]) -> Option<Lane> {
        match can {
            [true, true] if self.taken + 1 == BACKFILL_ONE_IN => Some(Lane::Backfill),
            [true, _] => Some(Lane::Fresh),
            [false, true] => Some(Lane::Backfill),
            [false, false] => None,
        }
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
        self.awake();
    }

    /// Rests while the route is paused.
    pub(super) fn rest_for_pause(&mut self) {
        let poll = self.worker.deps.policy.poll_interval;
        self.rest_as(Activity::Paused, poll);
    }

    /// Rests until the rate allows another copy. News from the queue change nothing about that.
    pub(super) fn rest_for_rate(&mut self, until: Duration) {
        let pause = until.saturating_sub(self.worker.deps.clock.monotonic());
        self.rest_as(Activity::RateLimited, pause);
    }

    fn rest_as(&mut self, activity: Activity, pause: Duration) {
        let Fill { activity, rest, .. } = Fill::nothing(activity, pause, false);
        self.rest = rest;
        self.waiting.clear();
        self.set_activity(activity);
    }
}
