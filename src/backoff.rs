//! How long to wait before the next attempt, and when to stop trying.
//!
//! Pure: attempts and jitter go in, a duration or a yes comes out. Exponential with "equal jitter" (Marc Brooker,
//! "Exponential Backoff And Jitter", AWS Architecture Blog, 2015): half of the nominal delay is certain, half is random, so
//! that entries which failed together do not come back together, and none comes back at once.

use std::time::Duration;

/// Delays that double from attempt to attempt up to a cap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
}

impl Backoff {
    /// For entries: 1 s, doubling up to 10 minutes.
    pub const ENTRY: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_mins(10));

    /// Doubles from `initial` up to `max`, which caps the first delay too.
    pub const fn new(initial: Duration, max: Duration) -> Self {
        Self { initial, max }
    }

    /// The longest delay there is. A due time further ahead than this is a clock that jumped, and counts as due.
    pub const fn max(&self) -> Duration {
        self.max
    }

    /// The delay without jitter after so many failed attempts; 0 attempts count as 1.
    pub fn nominal(&self, attempts: u32) -> Duration {
        // 2^94 nanoseconds hold every Duration, so a shift beyond that only needs to stay large.
        let doublings = attempts.saturating_sub(1).min(94);
        let nanos = self.initial.as_nanos().saturating_mul(1 << doublings);
        if nanos >= self.max.as_nanos() { self.max } else { Duration::from_nanos_u128(nanos) }
    }

    /// The delay after so many failed attempts: from half the nominal delay (`jitter` 0) up to the whole (`jitter` 1).
    pub fn delay(&self, attempts: u32, jitter: f64) -> Duration {
        let nominal = self.nominal(attempts);
        let random = if jitter.is_finite() { jitter.clamp(0.0, 1.0) } else { 0.0 };
        let half = nominal / 2;
        // Only the random half goes through f64; the certain half stays exact.
        let rest = Duration::try_from_secs_f64((nominal - half).as_secs_f64() * random).unwrap_or(half);
        half.saturating_add(rest).min(nominal)
    }
}

/// What becomes of an entry whose blob its source does not come to hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnMissing {
    /// It is parked: an operator, an announcement or a sync revives it.
    #[default]
    Park,
    /// It is discarded, counted and logged: for sources that delete blobs of their own accord.
    Discard,
}

impl OnMissing {
    /// Both.
    pub const ALL: [OnMissing; 2] = [Self::Park, Self::Discard];

    /// The word, as it stands in the configuration.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Park => "park",
            Self::Discard => "discard",
        }
    }
}

/// When an entry is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// After so many charged attempts; those that missed the blob at its source are not among them.
    pub park_after: u32,
    /// After the source was seen not to hold the blob for so long: longer, because the announcement may precede the write.
    pub missing: Duration,
    /// What becomes of it then.
    pub on_missing: OnMissing,
}

impl Default for Patience {
    /// 10 attempts (4 to 9 minutes with [`Backoff::ENTRY`]); 2 hours for a blob that is missing, which is parked then.
    fn default() -> Self {
        Self { park_after: 10, missing: Duration::from_hours(2), on_missing: OnMissing::Park }
    }
}

#[cfg(test)]
mod tests {
    use super::Backoff;
    use proptest::prelude::{any, prop_assert, proptest};
    use std::time::Duration;

    #[test]
    fn doubles_from_the_first_up_to_the_cap() {
        let seconds: Vec<u64> = (0..12).map(|attempts| Backoff::ENTRY.nominal(attempts).as_secs()).collect();
        assert_eq!(seconds, [1, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 600]);
        assert_eq!(Backoff::ENTRY.delay(u32::MAX, 0.0), Duration::from_mins(5));
        assert_eq!(Backoff::ENTRY.delay(u32::MAX, 1.0), Duration::from_mins(10));
        assert_eq!(Backoff::ENTRY.delay(1, 0.5), Duration::from_millis(750));
    }

    #[test]
    fn survives_the_ends_of_the_scale() {
        let widest = Backoff::new(Duration::from_nanos(1), Duration::MAX);
        assert_eq!(widest.nominal(u32::MAX), Duration::MAX);
        assert!(widest.delay(u32::MAX, 0.999) >= Duration::MAX / 2);
        assert_eq!(widest.delay(1, 1.0), Duration::from_nanos(1));
        let none = Backoff::new(Duration::ZERO, Duration::from_secs(1));
        assert_eq!(none.delay(u32::MAX, 0.5), Duration::ZERO);
        let crossed = Backoff::new(Duration::from_secs(9), Duration::from_secs(3));
        assert_eq!(crossed.delay(1, 1.0), Duration::from_secs(3));
    }

    proptest! {
        #[test]
        fn stays_between_half_and_all_of_a_nominal_that_never_shrinks(
            initial in any::<u32>(), max in any::<u64>(), attempts in any::<u32>(), few in 0u32..80, jitter in any::<f64>()
        ) {
            let backoff = Backoff::new(Duration::from_nanos(initial.into()), Duration::from_nanos(max));
            for attempts in [attempts, few] {
                let nominal = backoff.nominal(attempts);
                let delay = backoff.delay(attempts, jitter);
                prop_assert!(delay >= nominal / 2 && delay <= nominal, "{delay:?} of {nominal:?}");
                prop_assert!(nominal <= backoff.max());
                prop_assert!(backoff.nominal(attempts.saturating_add(1)) >= nominal);
            }
        }
    }
}
