//! What an operator's limits do to the loop: they hold from the next claim on, and never touch a copy in flight.

use super::{Fill, Run};
use crate::worker::report::Activity;
use std::time::Duration;

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
