//! Keeps a storm of like events from drowning the log: the first few pass, then one in a while, with the number of those that
//! did not. Decides by the time that it is given, and by nothing else.

use std::time::Duration;

/// How many events pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// So many pass at once, after a quiet time.
    pub burst: u32,
    /// One more passes after each such time.
    pub every: Duration,
}

/// Lets events through at a [`Pace`].
#[derive(Clone, Debug)]
pub struct Storm {
    pace: Pace,
    // What may pass at once, as of `since`.
    left: u32,
    since: Duration,
    suppressed: u64,
}

impl Storm {
    /// Nothing has happened yet.
    pub fn new(pace: Pace) -> Self {
        Self { pace, left: pace.burst, since: Duration::ZERO, suppressed: 0 }
    }

    /// Whether an event may pass that happens now, by the monotonic clock; and if so, how many before it did not.
    pub fn admit(&mut self, now: Duration) -> Option<u64> {
        let every = self.pace.every.max(Duration::from_nanos(1));
        let earned = now.saturating_sub(self.since).as_nanos() / every.as_nanos();
        if earned > 0 {
            let earned = u32::try_from(earned).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(earned).min(self.pace.burst);
            self.since = if self.left == self.pace.burst { now } else { self.since + every * earned };
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
    use super::{Pace, Storm};
    use std::time::Duration;

    #[test]
    fn a_burst_passes_then_one_in_a_while_and_the_others_are_counted() {
        let seconds = Duration::from_secs;
        let mut storm = Storm::new(Pace { burst: 3, every: seconds(10) });
        let start = seconds(1_000);
        for _ in 0..3 {
            assert_eq!(storm.admit(start), Some(0));
        }
        for _ in 0..100 {
            assert_eq!(storm.admit(start + seconds(9)), None);
        }
        assert_eq!(storm.admit(start + seconds(10)), Some(100));
        assert_eq!(storm.admit(start + seconds(19)), None);
        assert_eq!(storm.admit(start + seconds(20)), Some(1));
        // After a quiet time the whole burst again, and no more.
        let later = start + seconds(100_000);
        let passed = (0..10).filter(|_| storm.admit(later).is_some()).count();
        assert_eq!(passed, 3);
    }

    #[test]
    fn a_clock_that_stands_still_or_jumps_back_lets_nothing_more_through() {
        let mut storm = Storm::new(Pace { burst: 1, every: Duration::from_secs(1) });
        assert_eq!(storm.admit(Duration::from_secs(5)), Some(0));
        assert_eq!(storm.admit(Duration::from_secs(5)), None);
        assert_eq!(storm.admit(Duration::ZERO), None);
        assert_eq!(storm.admit(Duration::from_secs(6)), Some(2));
    }
}
