//! How long blobs were on their way, from two curves: how many had been accepted, and how many had been confirmed, at which
//! time.
//!
//! The replicator copies the oldest first, so the k-th blob that was accepted is, but for the few that are copied at the same
//! time, the k-th that is confirmed: its lag is the distance of the curves at k. Exact to the time between two looks.

use std::time::{Duration, Instant};

/// The two curves. Numbers are totals, and never fall.
pub(super) struct Curves {
    start: Instant,
    enqueued: Vec<(Duration, u64)>,
    confirmed: Vec<(Duration, u64)>,
}

/// What the blobs' lags come to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Lags {
    /// Half of the blobs took at most so long.
    pub(super) p50: Duration,
    /// All but one of a hundred took at most so long.
    pub(super) p99: Duration,
}

impl Curves {
    pub(super) fn new(start: Instant) -> Self {
        Self { start, enqueued: Vec::new(), confirmed: Vec::new() }
    }

    /// So many more were accepted at this time.
    pub(super) fn enqueued(&mut self, at: Instant, more: u64) {
        let total = self.total() + more;
        self.enqueued.push((at.duration_since(self.start), total));
    }

    /// So many were confirmed in all by this time.
    pub(super) fn confirmed(&mut self, at: Instant, total: u64) {
        // Only steps matter.
        if self.confirmed.last().map_or(0, |(_, last)| *last) < total {
            self.confirmed.push((at.duration_since(self.start), total));
        }
    }

    /// How many were accepted so far.
    pub(super) fn total(&self) -> u64 {
        self.enqueued.last().map_or(0, |(_, total)| *total)
    }

    /// The lags of all blobs that were both accepted and confirmed.
    pub(super) fn lags(&self) -> Lags {
        // Pieces of both curves in which the lag is the same, with how many blobs they hold.
        let mut pieces: Vec<(Duration, u64)> = Vec::new();
        let (mut enqueued, mut confirmed) = (self.enqueued.iter().peekable(), self.confirmed.iter().peekable());
        let mut done = 0;
        while let (Some(&&(came, until_came)), Some(&&(went, until_went))) = (enqueued.peek(), confirmed.peek()) {
            let until = until_came.min(until_went);
            if until > done {
                pieces.push((went.saturating_sub(came), until - done));
                done = until;
            }
            if until_came == until {
                enqueued.next();
            }
            if until_went == until {
                confirmed.next();
            }
        }
        pieces.sort_unstable();
        Lags { p50: quantile(&pieces, done, 50), p99: quantile(&pieces, done, 99) }
    }
}

/// The lag that this many percent of the blobs do not exceed.
fn quantile(pieces: &[(Duration, u64)], blobs: u64, percent: u64) -> Duration {
    let rank = (blobs * percent).div_ceil(100);
    let mut below = 0;
    for (lag, count) in pieces {
        below += count;
        if below >= rank {
            return *lag;
        }
    }
    Duration::ZERO
}

#[cfg(test)]
mod tests {
    use super::{Curves, Lags};
    use std::time::{Duration, Instant};

    #[test]
    fn the_lag_is_the_distance_of_the_curves() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut curves = Curves::new(start);
        assert_eq!(curves.lags(), Lags::default());
        curves.enqueued(at(0), 60);
        curves.enqueued(at(100), 40);
        curves.confirmed(at(10), 0);
        curves.confirmed(at(20), 50);
        curves.confirmed(at(30), 50);
        curves.confirmed(at(150), 98);
        curves.confirmed(at(1100), 100);
        // 50 blobs took 20 ms, 10 took 150 ms, 38 took 50 ms, 2 took 1 s.
        assert_eq!(curves.total(), 100);
        assert_eq!(curves.lags(), Lags { p50: Duration::from_millis(20), p99: Duration::from_secs(1) });
    }

    #[test]
    fn what_is_confirmed_before_its_answer_came_has_no_lag() {
        let start = Instant::now();
        let mut curves = Curves::new(start);
        curves.confirmed(start + Duration::from_millis(5), 7);
        curves.enqueued(start + Duration::from_millis(9), 7);
        assert_eq!(curves.lags(), Lags::default());
    }
}
