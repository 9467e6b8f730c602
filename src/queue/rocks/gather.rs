//! How long the committer waits for more before it writes.
//!
//! Callers that were just answered come back a moment later. A committer that writes with whoever is first has one caller
//! in this batch, all others in the next, and so on in turn: half as fast as it could be. So it waits until as many wait
//! as were there last time, but for a part of what the last write took, at most: whoever does not come back costs that
//! once, and the next batch expects fewer.

use std::time::{Duration, Instant};

/// The longest wait.
const PATIENCE: Duration = Duration::from_millis(1);

/// What the last batch says about the next.
#[derive(Debug, Default)]
pub(super) struct Gather {
    /// Callers of the last batch, and those who waited when it had been written.
    expected: usize,
    patience: Duration,
}

impl Gather {
    /// Waits for those who are expected; `waiting` tells how many there are.
    pub(super) fn wait(&self, waiting: impl Fn() -> usize) {
        if waiting() >= self.expected {
            return;
        }
        let start = Instant::now();
        while waiting() < self.expected && start.elapsed() < self.patience {
            std::thread::yield_now();
        }
    }

    /// A batch of so many callers was written in this time, and so many wait now.
    pub(super) fn written(&mut self, callers: usize, waiting: usize, took: Duration) {
        self.expected = callers + waiting;
        self.patience = (took / 2).min(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::Gather;
    use std::cell::Cell;
    use std::time::Duration;

    #[test]
    fn it_waits_for_those_who_were_there_last_time() {
        let mut gather = Gather::default();
        gather.written(3, 2, Duration::from_secs(60));
        // However slow the machine is.
        gather.patience = Duration::MAX;
        let asked = Cell::new(0);
        gather.wait(|| {
            asked.set(asked.get() + 1);
            asked.get()
        });
        assert_eq!(asked.get(), 5);
    }

    #[test]
    fn it_does_not_wait_for_those_who_stay_away() {
        let mut gather = Gather::default();
        gather.written(2, 0, Duration::from_millis(1));
        gather.wait(|| 1);
        // Only the one who came is expected next time.
        gather.written(1, 0, Duration::from_secs(60));
        gather.wait(|| 1);
    }

    #[test]
    fn a_lone_caller_never_waits() {
        let gather = Gather { expected: 1, patience: Duration::MAX };
        gather.wait(|| 1);
        Gather::default().wait(|| 0);
    }
}
