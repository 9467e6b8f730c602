//! Keeps a storm of like events from drowning the log: the first few pass, then one in a while, with the number of those that
//! did not. Decides by the time that it is given, and by nothing else.

use crate::clock::Monotonic;
use std::time::Duration;

/// How many events pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct EventPace {
    /// So many pass at once, after a quiet time.
    pub burst: u32,
    /// One more passes after each such time.
    pub every: Duration,
}

/// Lets events through at a [`EventPace`].
#[derive(Clone, Debug)]
pub(crate) struct Storm {
    pace: EventPace,
    // What may pass at once, as of `since`.
    left: u32,
    since: Monotonic,
    suppressed: u64,
}

impl Storm {
    /// Nothing has happened yet.
    pub(crate) fn new(pace: EventPace) -> Self {
        Self { pace, left: pace.burst, since: Monotonic::ZERO, suppressed: 0 }
    }

    /// Whether an event may pass that happens now; and if so, how many before it did not.
    pub(crate) fn admit(&mut self, now: Monotonic) -> Option<u64> {
        let every = self.pace.every.max(Duration::from_nanos(1));
        let earned = now.since(self.since).as_nanos() / every.as_nanos();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(earned).min(self.pace.burst);
            self.since = if self.left == self.pace.burst { now } else { self.since.saturating_add(every * earned) };
        }
        if self.left == 0 {
            self.suppressed += 1;
            return None;
        }
        if self.left == self.pace.burst {
            self.since = now;
        }
        self.left -= 1;
        Some(std::mem::take(&mut self.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::{EventPace, Storm};
    use crate::clock::Monotonic;
    use std::time::Duration;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::ZERO.saturating_add(Duration::from_secs(seconds))
    }

    #[test]
    fn a_burst_passes_then_one_in_a_while_and_the_others_are_counted() {
        let mut storm = Storm::new(EventPace { burst: 3, every: Duration::from_secs(10) });
        for _ in 0..3 {
            assert_eq!(storm.admit(at(1_000)), Some(0));
        }
        for _ in 0..100 {
            assert_eq!(storm.admit(at(1_009)), None);
        }
        assert_eq!(storm.admit(at(1_010)), Some(100));
        assert_eq!(storm.admit(at(1_019)), None);
        assert_eq!(storm.admit(at(1_020)), Some(1));
        // After a quiet time the whole burst again, and no more.
        let passed = (0..10).filter(|_| storm.admit(at(101_000)).is_some()).count();
        assert_eq!(passed, 3);
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_back_lets_nothing_more_through() {
        let mut storm = Storm::new(EventPace { burst: 1, every: Duration::from_secs(1) });
        assert_eq!(storm.admit(at(5)), Some(0));
        assert_eq!(storm.admit(at(5)), None);
        assert_eq!(storm.admit(at(0)), None);
        assert_eq!(storm.admit(at(6)), Some(2));
    }
}
