//! How long the committer waits for more before it writes.
//!
//! Callers that were just answered come back a moment later. A committer that writes with whoever is first has one caller
//! in this batch, all others in the next, and so on in turn: half as fast as it could be. So it waits until as many came
//! as were there last time, and decides those who are there meanwhile, but for a part of what the last write took, at most:
//! whoever does not come back costs that once, and the next batch expects fewer.

use crate::clock::{Clock, Monotonic};
use std::sync::Arc;
use std::time::Duration;

/// The longest wait.
const PATIENCE: Duration = Duration::from_millis(1);

/// So many who wait are worth deciding while others are on their way.
const SOME: usize = 32;

/// What the last batch says about the next.
#[derive(Debug)]
pub(super) struct Gather {
    clock: Arc<dyn Clock>,
    /// Callers of the last batch, and those who waited when it had been written.
    expected: usize,
    patience: Duration,
}

impl Gather {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, expected: 0, patience: Duration::ZERO }
    }

    /// How long a batch may wait for callers, in all.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Stays awake for the first of several who were just answered: a thread that sleeps takes longer to wake than they take
    /// to come back. Whoever runs meanwhile is given way to.
    pub(super) fn linger(&self, waiting: impl Fn() -> usize) {
        if self.expected < 2 {
            return;
        }
        let start = self.clock.monotonic();
        while waiting() == 0 && self.since(start) < self.patience {
            std::thread::yield_now();
        }
    }

    /// Waits until some are `waiting`, if more than those in the batch are expected, and takes the time off its patience.
    pub(super) fn wait(&self, in_batch: usize, waiting: impl Fn() -> usize, patience: &mut Duration) {
        let expected = self.expected.saturating_sub(in_batch).min(SOME);
        if waiting() >= expected {
            return;
        }
        let start = self.clock.monotonic();
        while waiting() < expected && self.since(start) < *patience {
            std::thread::yield_now();
        }
        *patience = patience.saturating_sub(self.since(start));
    }

    fn since(&self, earlier: Monotonic) -> Duration {
        self.clock.monotonic().since(earlier)
    }

    /// A batch of so many callers was written in this time, and so many wait now.
    pub(super) fn written(&mut self, callers: usize, waiting: usize, took: Duration) {
        self.expected = callers + waiting;
        self.patience = (took / 2).min(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::{Gather, SOME};
    use crate::clock::SystemClock;
    use std::cell::Cell;
    use std::sync::Arc;
    use std::time::Duration;

    fn gather() -> Gather {
        Gather::new(Arc::new(SystemClock::new()))
    }

    #[test]
    fn it_waits_for_those_who_were_there_last_time() {
        let mut gather = gather();
        gather.written(3, 2, Duration::from_secs(60));
        // However slow the machine is.
        let mut patience = Duration::MAX;
        let waiting = Cell::new(0);
        let came = || {
            waiting.set(waiting.get() + 1);
            waiting.get()
        };
        gather.wait(1, came, &mut patience);
        assert_eq!(waiting.get(), 4, "with the one in the batch all five are there");
    }

    #[test]
    fn it_stays_awake_for_several_until_the_first_is_there() {
        // However slow the machine is.
        let mut gather = Gather { expected: 2, patience: Duration::MAX, ..gather() };
        let asked = Cell::new(0);
        gather.linger(|| {
            asked.set(asked.get() + 1);
            usize::from(asked.get() > 3)
        });
        assert_eq!(asked.get(), 4);
        // They stay away, and it does not wait for long.
        gather.written(2, 0, Duration::from_millis(1));
        gather.linger(|| 0);
        gather.written(1, 0, Duration::from_secs(60));
        gather.linger(|| unreachable!("nobody stays awake for one"));
    }

    #[test]
    fn some_are_decided_while_others_are_on_their_way() {
        let mut gather = gather();
        gather.written(1000, 0, Duration::from_secs(60));
        gather.wait(1, || SOME, &mut { Duration::MAX });
    }

    #[test]
    fn it_does_not_wait_for_those_who_stay_away() {
        let mut gather = gather();
        gather.written(2, 0, Duration::from_millis(1));
        let mut patience = gather.patience();
        gather.wait(1, || 0, &mut patience);
        assert_eq!(patience, Duration::ZERO, "and a batch waits once");
        gather.wait(1, || 0, &mut patience);
        // Only the one who came is expected next time.
        gather.written(1, 0, Duration::from_secs(60));
        gather.wait(1, || 0, &mut { Duration::MAX });
    }

    #[test]
    fn a_lone_caller_never_waits() {
        let mut gather = gather();
        gather.wait(0, || 0, &mut { Duration::MAX });
        gather.written(1, 0, Duration::from_secs(60));
        gather.wait(1, || 0, &mut { Duration::MAX });
    }
}
