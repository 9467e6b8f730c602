//! Time and randomness, injected.
//!
//! No module above `app` asks the machine for the time or for a random number: it is handed a [`Clock`] and an [`Entropy`],
//! so that tests and the simulation decide both. Async code may ask tokio, whose clock the tests pause.
//! Spans of time are measured between [`Monotonic`] moments; the wall clock is only for what is shown to people or kept over
//! restarts, and may jump.

#[cfg(test)]
mod manual;

#[cfg(test)]
pub(crate) use manual::ManualClock;

use crate::failpoint;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore as _, SeedableRng};
use std::fmt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The last millisecond of the year 9999, the latest time that a protobuf Timestamp can hold.
const LATEST_MS: u64 = 253_402_300_799_999;

/// A moment by a clock's monotonic time, which never goes back. Means nothing to another clock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// When the clock started.
    pub const ZERO: Self = Self(Duration::ZERO);

    /// So much later.
    #[must_use]
    pub const fn saturating_add(self, span: Duration) -> Self {
        Self(self.0.saturating_add(span))
    }

    /// The time since an earlier moment; zero where that lies later.
    pub const fn since(self, earlier: Self) -> Duration {
        self.0.saturating_sub(earlier.0)
    }
}

/// Where the time comes from.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The wall clock. May jump in either direction.
    fn now(&self) -> SystemTime;

    /// The present moment, for measuring.
    fn monotonic(&self) -> Monotonic;

    /// What the wall clock would show at this moment, by its present reading: turns the `since` of an in-memory state into
    /// something to show.
    fn wall_of(&self, moment: Monotonic) -> SystemTime {
        let (now, wall) = (self.monotonic(), self.now());
        let shown =
            if moment <= now { wall.checked_sub(now.since(moment)) } else { wall.checked_add(moment.since(now)) };
        shown.unwrap_or(wall)
    }
}

/// The machine's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// A clock whose monotonic time starts now.
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        failpoint::shifted(SystemTime::now())
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic(self.start.elapsed())
    }
}

/// Milliseconds since 1970 of a time: 0 for earlier times, the end of the year 9999 for those behind it.
pub(crate) fn to_unix_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    u64::try_from(since.as_millis()).unwrap_or(LATEST_MS).min(LATEST_MS)
}

/// The time so many milliseconds after 1970, at most the end of the year 9999.
pub(crate) fn from_unix_ms(ms: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(ms.min(LATEST_MS))
}

/// Where randomness comes from. Good for jitter and for ids that must not collide; not for secrets.
pub struct Entropy {
    rng: Mutex<SmallRng>,
}

impl Entropy {
    /// Seeded by the operating system.
    pub fn from_os() -> Self {
        Self { rng: Mutex::new(SmallRng::from_os_rng()) }
    }

    /// Gives the same numbers for the same seed; for tests and the simulation.
    pub fn seeded(seed: u64) -> Self {
        Self { rng: Mutex::new(SmallRng::seed_from_u64(seed)) }
    }

    /// A number in `[0, 1)`.
    pub fn jitter(&self) -> f64 {
        self.rng.lock().random()
    }

    /// A number below `bound`; 0 where the bound is 0.
    pub fn below(&self, bound: u64) -> u64 {
        if bound == 0 {
            return 0;
        }
        self.rng.lock().random_range(0..bound)
    }

    /// Fills all of it at random.
    pub fn fill(&self, bytes: &mut [u8]) {
        self.rng.lock().fill_bytes(bytes);
    }

    /// A name that nothing else has: 32 hexadecimal digits.
    pub fn name(&self) -> String {
        format!("{:032x}", self.rng.lock().random::<u128>())
    }

    /// A new id in the form of a ULID (26 characters, <https://github.com/ulid/spec>): it sorts by `now`, to the millisecond,
    /// and has 80 random bits.
    pub fn id(&self, now: SystemTime) -> String {
        const DIGITS: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
        let random = self.rng.lock().random::<u128>() >> 48;
        let bits = u128::from(to_unix_ms(now)) << 80 | random;
        (0..26u32).rev().map(|digit| char::from(DIGITS[((bits >> (5 * digit)) & 31) as usize])).collect()
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entropy").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{Clock, Entropy, LATEST_MS, ManualClock, Monotonic, SystemClock, from_unix_ms, to_unix_ms};
    use std::time::{Duration, UNIX_EPOCH};

    fn at(seconds: u64) -> Monotonic {
        Monotonic::ZERO.saturating_add(Duration::from_secs(seconds))
    }

    #[test]
    fn spans_between_moments_are_never_negative_and_moments_never_overflow() {
        assert_eq!(at(5).since(at(3)), Duration::from_secs(2));
        assert_eq!(at(3).since(at(5)), Duration::ZERO);
        let last = at(3).saturating_add(Duration::MAX);
        assert!(last > at(u64::from(u32::MAX)) && last.saturating_add(Duration::MAX) == last);
    }

    #[test]
    fn milliseconds_round_trip_and_saturate() {
        for ms in [0, 1, 999, 1_767_225_600_000, LATEST_MS] {
            assert_eq!(to_unix_ms(from_unix_ms(ms)), ms);
        }
        assert_eq!(to_unix_ms(from_unix_ms(u64::MAX)), LATEST_MS);
        assert_eq!(to_unix_ms(UNIX_EPOCH - Duration::from_secs(1)), 0);
        assert_eq!(to_unix_ms(UNIX_EPOCH + Duration::from_secs(LATEST_MS)), LATEST_MS);
    }

    #[test]
    fn a_manual_clock_moves_only_when_told_and_a_wall_jump_leaves_durations_alone() {
        let clock = ManualClock::default();
        let start = clock.now();
        assert_eq!((clock.now(), clock.monotonic()), (start, Monotonic::ZERO));
        clock.advance(Duration::from_secs(5));
        assert_eq!((clock.now(), clock.monotonic()), (start + Duration::from_secs(5), at(5)));
        clock.set_wall(UNIX_EPOCH);
        assert_eq!((clock.now(), clock.monotonic()), (UNIX_EPOCH, at(5)));
        clock.advance(Duration::MAX);
        assert_eq!((clock.now(), clock.monotonic()), (UNIX_EPOCH, Monotonic::ZERO.saturating_add(Duration::MAX)));
    }

    #[test]
    fn monotonic_times_are_shown_by_the_wall_clock() {
        let clock = ManualClock::default();
        let start = clock.now();
        clock.advance(Duration::from_secs(60));
        assert_eq!(clock.wall_of(Monotonic::ZERO), start);
        assert_eq!(clock.wall_of(at(90)), start + Duration::from_secs(90));
        assert_eq!(clock.wall_of(Monotonic::ZERO.saturating_add(Duration::MAX)), clock.now());
        let system = SystemClock::new();
        let early = system.monotonic();
        assert!(system.monotonic() >= early && system.wall_of(early) <= system.now());
    }

    #[test]
    fn jitter_stays_below_one() {
        let entropy = Entropy::seeded(1);
        assert!((0..1000).map(|_| entropy.jitter()).all(|jitter| (0.0..1.0).contains(&jitter)));
        assert!((0..1000).map(|_| entropy.below(3)).all(|number| number < 3));
        assert_eq!(entropy.below(0), 0);
    }

    #[test]
    fn ids_are_ulids_that_sort_by_time_and_never_repeat() {
        let entropy = Entropy::from_os();
        let early = entropy.id(from_unix_ms(1_767_225_600_000));
        let late = entropy.id(from_unix_ms(1_767_225_600_001));
        assert!(early < late, "{early} {late}");
        assert_eq!(early.len(), 26);
        // The specification's own example of a time.
        assert_eq!(&entropy.id(from_unix_ms(1_469_918_176_385))[..10], "01ARYZ6S41");
        let ids: std::collections::BTreeSet<_> = (0..1000).map(|_| entropy.id(UNIX_EPOCH)).collect();
        assert_eq!(ids.len(), 1000);
        assert_eq!(Entropy::seeded(7).id(UNIX_EPOCH), Entropy::seeded(7).id(UNIX_EPOCH));
    }

    #[test]
    fn names_and_bytes_are_others_each_time() {
        let entropy = Entropy::from_os();
        let (one, other) = (entropy.name(), entropy.name());
        assert_eq!((one.len(), other.len()), (32, 32));
        assert!(one != other && one.chars().all(|c| c.is_ascii_hexdigit()));
        let (mut one, mut other) = ([0; 40], [0; 40]);
        entropy.fill(&mut one);
        entropy.fill(&mut other);
        assert_ne!(one, other);
    }
}
