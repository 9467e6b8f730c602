//! A histogram that is observed without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The sum is kept as a whole number of these: billionths.
const SCALE: f64 = 1e9;

/// Counts values by size. Values are not negative; of durations the unit is the second.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    // One for each bound, and one for what lies above the last.
    counts: Box<[AtomicU64]>,
    // In billionths. It wraps after 584 years of seconds.
    sum: AtomicU64,
}

/// A histogram as it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct HistogramReading {
    /// Upper bounds, inclusive and ascending.
    pub bounds: &'static [f64],
    /// How many values each holds that the one before does not; one more than there are bounds.
    pub counts: Vec<u64>,
    /// The sum of all values.
    pub sum: f64,
}

impl Histogram {
    /// A histogram with these upper bounds, ascending.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.add(duration.as_secs_f64(), nanos);
    }

    /// Counts one number.
    #[expect(clippy::cast_precision_loss, reason = "it is compared with bounds that are small")]
    pub fn observe_number(&self, number: u64) {
        self.add(number as f64, number.saturating_mul(1_000_000_000));
    }

    fn add(&self, value: f64, billionths: u64) {
        let index = self.bounds.partition_point(|bound| *bound < value);
        self.counts[index].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(billionths, Ordering::Relaxed);
    }

    /// What it holds now.
    #[expect(clippy::cast_precision_loss, reason = "a sum for people")]
    pub fn read(&self) -> HistogramReading {
        HistogramReading {
            bounds: self.bounds,
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: self.sum.load(Ordering::Relaxed) as f64 / SCALE,
        }
    }
}

impl HistogramReading {
    /// How many values there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::Histogram;
    use std::time::Duration;

    #[test]
    fn values_are_counted_at_the_first_bound_that_holds_them() {
        let histogram = Histogram::new(&[0.001, 0.5, 2.0]);
        for millis in [0, 1, 2, 500, 501, 2000, 2001, 60_000] {
            histogram.observe(Duration::from_millis(millis));
        }
        let reading = histogram.read();
        assert_eq!(reading.counts, [2, 2, 2, 2]);
        assert_eq!(reading.count(), 8);
        assert!((reading.sum - 65.005).abs() < 1e-9, "{}", reading.sum);
    }

    #[test]
    fn numbers_are_counted_too() {
        let histogram = Histogram::new(&[1.0, 10.0]);
        [0, 1, 2, 10, 11].into_iter().for_each(|number| histogram.observe_number(number));
        assert_eq!((histogram.read().counts, histogram.read().sum), (vec![2, 2, 1], 24.0));
    }
}
