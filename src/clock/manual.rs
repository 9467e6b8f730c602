//! A clock for tests.

use super::{Clock, Monotonic, from_unix_ms};
use parking_lot::Mutex;
use std::time::{Duration, SystemTime};

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub(crate) struct ManualClock {
    // The wall clock and the monotonic one.
    hands: Mutex<(SystemTime, Monotonic)>,
}

impl ManualClock {
    /// A clock that starts now, and shows this wall time.
    pub(crate) fn new(now: SystemTime) -> Self {
        Self { hands: Mutex::new((now, Monotonic::ZERO)) }
    }

    /// Lets both clocks run on by this much.
    pub(crate) fn advance(&self, by: Duration) {
        let mut hands = self.hands.lock();
        hands.0 = hands.0.checked_add(by).unwrap_or(hands.0);
        hands.1 = hands.1.saturating_add(by);
    }

    /// Makes the wall clock jump, forward or back. The monotonic clock does not notice.
    pub(crate) fn set_wall(&self, now: SystemTime) {
        self.hands.lock().0 = now;
    }
}

impl Default for ManualClock {
    /// A clock that shows 2026-01-01T00:00:00Z.
    fn default() -> Self {
        Self::new(from_unix_ms(1_767_225_600_000))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        self.hands.lock().0
    }

    fn monotonic(&self) -> Monotonic {
        self.hands.lock().1
    }
}
