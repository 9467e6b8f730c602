//! Rates and direction of a route, from samples of its counters.

use crate::clock::Monotonic;
use crate::limits::Limits;
use crate::queue::{RouteCounts, Tally};
use std::collections::VecDeque;
use std::time::Duration;

/// Rates are averages over this long.
const RATE_WINDOW: Duration = Duration::from_secs(10);

/// With nothing to copy, and nothing done for this long, there is no rate.
const IDLE_WINDOW: Duration = Duration::from_secs(2);

/// The backlog is compared with what it was this long ago.
const GROWTH_WINDOW: Duration = Duration::from_secs(60);

/// Samples closer together than this say nothing new.
const SPACING: Duration = Duration::from_millis(500);

/// What a sample keeps of a route's counters.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Sample {
    at: Monotonic,
    backlog: u64,
    done: u64,
    copied: u64,
    copied_bytes: u64,
}

/// How fast a route is, and where its backlog goes. Rates are averages over the last ten seconds, and zero in a route that
/// stands idle.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Trend {
    /// Whether the backlog is larger than a minute ago and than ten seconds ago; absent until that is known.
    pub growing: Option<bool>,
    /// Whether it has had a backlog for all of the last ten seconds.
    pub is_steady: bool,
    /// Blobs copied in a second.
    pub blobs_per_second: f64,
    /// Bytes copied in a second.
    pub bytes_per_second: f64,
    /// Entries that left the queue in a second, copied or not.
    pub done_per_second: f64,
}

impl Trend {
    /// How long until this backlog is copied, at the pace of the last ten seconds and within these limits. `None` where that
    /// is never, or the route has not been at work for so long: what a burst does tells nothing.
    pub(crate) fn eta(&self, backlog: &Tally, limits: &Limits) -> Option<Duration> {
        if backlog.entries == 0 || !self.is_steady || self.done_per_second <= 0.0 {
            return None;
        }
        let bytes = |per_second: f64| if per_second > 0.0 { backlog.bytes as f64 / per_second } else { 0.0 };
        let entries = |per_second: f64| backlog.entries as f64 / per_second;
        let seconds = [
            entries(self.done_per_second),
            bytes(self.bytes_per_second),
            limits.bytes_per_second.map_or(0.0, |limit| bytes(limit as f64)),
            limits.blobs_per_second.map_or(0.0, |limit| entries(limit.per_second())),
        ];
        Duration::try_from_secs_f64(seconds.into_iter().fold(0.0, f64::max)).ok()
    }
}

/// The last minute of a route. Bounded: two samples a second at most.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples {
    kept: VecDeque<Sample>,
}

impl Samples {
    /// Takes a sample at this moment.
    pub(crate) fn add(&mut self, at: Monotonic, backlog: u64, counts: &RouteCounts) {
        if self.kept.back().is_some_and(|last| at.since(last.at) < SPACING) {
            return;
        }
        // One sample older than the window stays, to compare with.
        while self.kept.get(1).is_some_and(|second| at.since(second.at) >= GROWTH_WINDOW) {
            self.kept.pop_front();
        }
        let done = counts.confirmed + counts.discarded;
        self.kept.push_back(Sample { at, backlog, done, copied: counts.copied, copied_bytes: counts.copied_bytes });
    }

    /// The trend up to now, with these figures as the newest.
    pub(crate) fn trend(&self, now: Monotonic, backlog: u64, counts: &RouteCounts) -> Trend {
        let Some(oldest) = self.kept.front() else { return Trend::default() };
        let from = self.kept.iter().find(|sample| now.since(sample.at) <= RATE_WINDOW);
        let less_before = [Some(oldest), from].into_iter().flatten().all(|sample| sample.backlog < backlog);
        let growing = (now.since(oldest.at) >= GROWTH_WINDOW).then_some(less_before);
        let before = self.kept.iter().rfind(|sample| now.since(sample.at) >= RATE_WINDOW);
        let is_steady = before.is_some_and(|before| {
            self.kept.iter().filter(|sample| sample.at >= before.at).all(|sample| sample.backlog > 0)
        });
        let Some(from) = from.or(self.kept.back()) else { return Trend::default() };
        let seconds = now.since(from.at).as_secs_f64();
        if seconds < SPACING.as_secs_f64() {
            return Trend { growing, is_steady, ..Trend::default() };
        }
        let done = counts.confirmed + counts.discarded;
        let since = self.kept.iter().rfind(|sample| now.since(sample.at) >= IDLE_WINDOW);
        if !is_busy(counts) && since.is_some_and(|sample| sample.done == done) {
            return Trend { growing, is_steady, ..Trend::default() };
        }
        let rate = |new: u64, old: u64| new.saturating_sub(old) as f64 / seconds;
        Trend {
            growing,
            is_steady,
            blobs_per_second: rate(counts.copied, from.copied),
            bytes_per_second: rate(counts.copied_bytes, from.copied_bytes),
            done_per_second: rate(done, from.done),
        }
    }
}

/// Whether anything could be copied now.
fn is_busy(counts: &RouteCounts) -> bool {
    [&counts.fresh, &counts.backfill].iter().any(|lane| lane.ready.entries + lane.claimed.entries > 0)
}

#[cfg(test)]
mod tests {
    use super::{Samples, Trend, is_busy};
    use crate::clock::Monotonic;
    use crate::limits::{BlobRate, Limits};
    use crate::queue::{LaneCounts, RouteCounts, Tally};
    use std::time::Duration;

    fn at(second: u64) -> Monotonic {
        Monotonic::ZERO.saturating_add(Duration::from_secs(second))
    }

    fn counts(copied: u64) -> RouteCounts {
        RouteCounts { confirmed: copied, copied, copied_bytes: copied * 1000, ..RouteCounts::default() }
    }

    #[test]
    fn rates_are_those_of_the_last_seconds_and_growth_needs_a_minute() {
        let mut samples = Samples::default();
        assert_eq!(samples.trend(at(0), 0, &counts(0)).growing, None);
        for second in 0..=300 {
            // Fast at first, and then 10 a second.
            let copied = if second < 100 { second * 500 } else { 50_000 + (second - 100) * 10 };
            samples.add(at(second), 10_000 + second, &counts(copied));
        }
        assert!(samples.kept.len() < 70);
        let trend = samples.trend(at(300), 10_300, &counts(52_000));
        assert_eq!(trend.growing, Some(true));
        assert!((trend.blobs_per_second - 10.0).abs() < 0.1, "{trend:?}");
        assert!((trend.bytes_per_second - 10_000.0).abs() < 100.0, "{trend:?}");
        let (entries, none) = (|entries| Tally { entries, ..Tally::default() }, Limits::workers(1));
        assert_eq!(trend.eta(&entries(100), &none), Some(Duration::from_secs(10)));
        assert_eq!(trend.eta(&entries(0), &none), None);
        let later = samples.trend(at(400), 9_000, &counts(52_000));
        assert_eq!((later.growing, later.eta(&entries(9_000), &none)), (Some(false), None));
    }

    /// 128 MiB in small and large blobs, of which the small ones were copied in the first second.
    #[test]
    fn how_long_it_takes_follows_from_bytes_and_limits_and_never_from_a_burst() {
        let backlog = Tally { entries: 10, bytes: 128 << 20, unknown_size: 0 };
        let slow = Limits { bytes_per_second: Some(1 << 20), ..Limits::workers(1) };
        let mut samples = Samples::default();
        samples.add(at(0), 0, &counts(0));
        samples.add(at(1), 800, &counts(0));
        samples.add(at(2), 10, &counts(790));
        assert_eq!(samples.trend(at(3), 10, &counts(790)).eta(&backlog, &slow), None, "a burst");
        for second in 3..=20 {
            samples.add(at(second), 10, &counts(790 + second));
        }
        let trend = samples.trend(at(21), 10, &counts(811));
        // One of 1,000 bytes a second: by the entries 10 s, by the bytes 37 hours.
        let eta = trend.eta(&backlog, &Limits::workers(1)).unwrap();
        assert!(eta > Duration::from_hours(30), "{eta:?}");
        let fast = Trend { bytes_per_second: 1e9, done_per_second: 1e6, ..trend };
        assert_eq!(fast.eta(&backlog, &slow), Some(Duration::from_secs(128)));
        let one = BlobRate::new(0.1).unwrap();
        let few = Limits { blobs_per_second: Some(one), ..Limits::workers(1) };
        assert_eq!(fast.eta(&backlog, &few), Some(Duration::from_secs(100)));
    }

    #[test]
    fn a_backlog_that_shrinks_again_does_not_grow() {
        let mut samples = Samples::default();
        for second in 0..=70 {
            // A burst at half time, and less since.
            samples.add(at(second), if second < 30 { 0 } else { 1000 - second }, &counts(0));
        }
        assert_eq!(samples.trend(at(71), 929, &counts(0)).growing, Some(false));
        assert_eq!(samples.trend(at(71), 2000, &counts(0)).growing, Some(true));
    }

    #[test]
    fn an_idle_route_has_no_rate_and_a_busy_one_keeps_it_for_ten_seconds() {
        let mut samples = Samples::default();
        for second in 0..=20 {
            samples.add(at(second), 0, &counts(second.min(10) * 1000));
        }
        let claimed = Tally { entries: 1, ..Tally::default() };
        let busy = RouteCounts { fresh: LaneCounts { claimed, ..LaneCounts::default() }, ..counts(10_000) };
        assert!(is_busy(&busy));
        let rate = |copied| samples.trend(at(21), 0, &counts(copied)).done_per_second;
        assert!(rate(11_000) > 50.0, "it was just busy");
        assert!(rate(10_000) < 0.1);
        let mut samples = Samples::default();
        for second in 0..=13 {
            samples.add(at(second), 0, &counts(second.min(10) * 1000));
        }
        let rate = |counts: &RouteCounts| samples.trend(at(13), 0, counts).done_per_second;
        assert!(rate(&busy) > 600.0 && rate(&counts(10_000)) < 0.1);
    }
}
