//! What a route may use: how its limits come about, and the throttle that holds its rates. Plain decisions, no runtime.
//!
//! Limits come from the configuration; an operator's overrides replace them one setting at a time ([`Limits::with`]).
//!
//! The [`Throttle`] holds for a whole route. A copy may begin as soon as everything begun before is paid for, and is charged
//! then: one blob, and its bytes as soon as their number is known. So a blob larger than any burst borrows ahead and is never
//! starved, and over any span of time no more is begun than the rate allows, half a second of it, and one blob. Debts are
//! paid through governor's synchronous `check_n` on our own clock. Its period is a whole number of nanoseconds, so it counts
//! cells of about a millisecond, whatever the rate: counting bytes, 200 MiB/s would be rounded to 238.

use crate::clock::{Clock, Monotonic};
use governor::clock::Clock as GovernorClock;
use governor::middleware::NoOpMiddleware;
use governor::state::{InMemoryState, NotKeyed};
use governor::{Quota, RateLimiter};
use parking_lot::Mutex;
use std::fmt;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

/// Copies that a route may be allowed at a time.
pub(crate) const WORKERS: std::ops::RangeInclusive<usize> = 1..=1024;

/// Cells in a second, about: small enough to be exact, large enough to be few.
const CELLS_PER_SECOND: u64 = 1000;

/// A burst is one part in so many of a second.
const BURST_PARTS: u64 = 2;

/// A burst is paid in so many pieces.
const PIECES: u64 = 8;

/// A number of blobs in a second, in millionths: 0.001 to 1,000,000 blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct BlobRate(u64);

impl BlobRate {
    const ONE: u64 = 1_000_000;

    /// The rate of so many blobs a second; `None` where that is out of range.
    pub fn new(per_second: f64) -> Option<Self> {
        if !(0.001..=1e6).contains(&per_second) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range, as was just checked")]
        Some(Self((per_second * 1e6).round() as u64))
    }

    /// Blobs in a second.
    #[expect(clippy::cast_precision_loss, reason = "far below what a float holds exactly")]
    pub fn per_second(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

impl fmt::Display for BlobRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.per_second().fmt(f)
    }
}

/// What a route may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Whether no new copy may begin.
    pub paused: bool,
    /// Copies at a time; at least 1 on a route that copies.
    pub workers: usize,
    /// Bytes in a second; absent: no limit.
    pub bytes_per_second: Option<u64>,
    /// Blobs in a second; absent: no limit.
    pub blobs_per_second: Option<BlobRate>,
}

impl Limits {
    /// So many copies at a time, and no other limit.
    pub const fn workers(workers: usize) -> Self {
        Self { paused: false, workers, bytes_per_second: None, blobs_per_second: None }
    }

    /// These limits, with an operator's overrides in their place.
    #[must_use]
    pub fn with<'a>(mut self, overrides: impl IntoIterator<Item = &'a Override>) -> Self {
        for one in overrides {
            match *one {
                Override::Paused => self.paused = true,
                Override::Workers(workers) => self.workers = workers,
                Override::BytesPerSecond(rate) => self.bytes_per_second = rate,
                Override::BlobsPerSecond(rate) => self.blobs_per_second = rate,
            }
        }
        self
    }
}

/// One setting of a route that an operator has put in place of the configured one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Override {
    /// No new copy begins.
    Paused,
    /// Copies at a time.
    Workers(usize),
    /// Bytes in a second; `None`: no limit, whatever is configured.
    BytesPerSecond(Option<u64>),
    /// Blobs in a second; `None`: no limit, whatever is configured.
    BlobsPerSecond(Option<BlobRate>),
}

/// What can be overridden.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// Whether it is paused.
    Paused,
    /// Copies at a time.
    Workers,
    /// Bytes in a second.
    BytesPerSecond,
    /// Blobs in a second.
    BlobsPerSecond,
}

impl Setting {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Paused, Self::Workers, Self::BytesPerSecond, Self::BlobsPerSecond];

    /// The limits, which is all but the pause.
    pub const LIMITS: [Self; 3] = [Self::Workers, Self::BytesPerSecond, Self::BlobsPerSecond];

    /// The stable name, as it is configured and stored.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Paused => "paused",
            Self::Workers => "workers",
            Self::BytesPerSecond => "bytes_per_second",
            Self::BlobsPerSecond => "blobs_per_second",
        }
    }
}

impl Override {
    /// What it overrides.
    pub const fn setting(&self) -> Setting {
        match self {
            Self::Paused => Setting::Paused,
            Self::Workers(_) => Setting::Workers,
            Self::BytesPerSecond(_) => Setting::BytesPerSecond,
            Self::BlobsPerSecond(_) => Setting::BlobsPerSecond,
        }
    }
}

/// Our clock as governor asks for it: its moments are spans since the start.
struct SinceStart(Arc<dyn Clock>);

impl GovernorClock for SinceStart {
    type Instant = Duration;

    fn now(&self) -> Duration {
        self.0.monotonic().since(Monotonic::ZERO)
    }
}

/// Something that flows at a rate, charged in advance and paid as time goes by.
struct Bucket {
    limiter: RateLimiter<NotKeyed, InMemoryState, SinceStart, NoOpMiddleware<Duration>>,
    rate: u64,
    /// How much a cell is, and how long it takes to flow.
    unit: u64,
    cell: Duration,
    /// Cells that may be waited for: half a burst, so that whoever comes a little late loses nothing.
    patience: u32,
    /// Cells that are paid at a time.
    piece: NonZeroU32,
    /// What was charged and is not paid; below zero, what was paid for nothing.
    owed: i128,
}

impl Bucket {
    /// `rate` is at least 1.
    fn new(rate: u64, owed: i128, clock: &Arc<dyn Clock>) -> Option<Self> {
        let unit = (rate / CELLS_PER_SECOND).max(1);
        let cell = u64::try_from(u128::from(unit) * 1_000_000_000 / u128::from(rate.max(1))).ok()?;
        let cells = |number: u64| NonZeroU32::new(u32::try_from(number).ok()?.max(1));
        let burst = cells(rate / unit / BURST_PARTS)?;
        let piece = cells(u64::from(burst.get()) / PIECES)?;
        let cell = Duration::from_nanos(cell);
        let quota = Quota::with_period(cell)?.allow_burst(burst);
        let limiter = RateLimiter::direct_with_clock(quota, SinceStart(clock.clone()));
        Some(Self { limiter, rate, unit, cell, patience: burst.get() / 2, piece, owed })
    }

    /// Pays what can be paid now; when to come again, while something is owed.
    fn pay(&mut self) -> Option<Monotonic> {
        let unit = i128::from(self.unit);
        // At most a burst's pieces are granted in one go. What is less than a cell is paid with the next.
        while self.owed >= unit {
            let owed = u32::try_from(self.owed / unit).unwrap_or(u32::MAX);
            let cells = NonZeroU32::new(owed).map_or(self.piece, |owed| owed.min(self.piece));
            match self.limiter.check_n(cells) {
                Ok(Ok(())) => self.owed -= unit * i128::from(cells.get()),
                Ok(Err(not_yet)) => {
                    let more = owed.min(self.patience).saturating_sub(cells.get());
                    let earliest = Monotonic::ZERO.saturating_add(not_yet.earliest_possible());
                    return Some(earliest.saturating_add(self.cell * more));
                }
                // A piece is never larger than the burst.
                Err(_) => return None,
            }
        }
        None
    }

    fn charge(&mut self, amount: i128) {
        // What was paid for nothing may be used later, but not saved up.
        let least = -i128::from(self.rate / BURST_PARTS);
        self.owed = self.owed.saturating_add(amount).max(least);
    }
}

#[derive(Default)]
struct Buckets {
    bytes: Option<Bucket>,
    blobs: Option<Bucket>,
    /// Less was charged in the end than when somebody was last told to come again.
    gave_back: bool,
}

impl Buckets {
    fn pay(&mut self) -> Option<Monotonic> {
        let bytes = self.bytes.as_mut().and_then(Bucket::pay);
        let blobs = self.blobs.as_mut().and_then(Bucket::pay);
        bytes.max(blobs)
    }
}

/// Holds a route to its rates. See the module's header.
pub(crate) struct Throttle {
    clock: Arc<dyn Clock>,
    buckets: Mutex<Buckets>,
}

impl Throttle {
    /// A throttle that holds nothing back before it is [set](Self::set).
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        Arc::new(Self { clock, buckets: Mutex::default() })
    }

    /// Holds these rates from now on. Debts are kept where a rate is replaced by another.
    pub(crate) fn set(&self, limits: &Limits) {
        let mut buckets = self.buckets.lock();
        let renew = |bucket: &mut Option<Bucket>, rate: Option<u64>| {
            if bucket.as_ref().map(|bucket| bucket.rate) != rate {
                let owed = bucket.take().map_or(0, |bucket| bucket.owed);
                *bucket = rate.and_then(|rate| Bucket::new(rate, owed, &self.clock));
            }
        };
        renew(&mut buckets.bytes, limits.bytes_per_second);
        renew(&mut buckets.blobs, limits.blobs_per_second.map(|rate| rate.0));
    }

    /// Begins a copy of a blob of this size, where it is known already.
    ///
    /// # Errors
    /// When to come again, where none may begin now.
    pub(crate) fn begin(self: &Arc<Self>, size: Option<u64>) -> Result<Charge, Monotonic> {
        let mut buckets = self.buckets.lock();
        if let Some(until) = buckets.pay() {
            buckets.gave_back = false;
            return Err(until);
        }
        if let Some(blobs) = &mut buckets.blobs {
            blobs.charge(i128::from(BlobRate::ONE));
        }
        let charged = size.unwrap_or(0);
        if let Some(bytes) = &mut buckets.bytes {
            bytes.charge(i128::from(charged));
        }
        drop(buckets);
        Ok(Charge { throttle: self.clone(), charged })
    }

    /// Whether something was given back since a copy was last held up: it is not to be waited for any longer.
    pub(crate) fn gave_back(&self) -> bool {
        self.buckets.lock().gave_back
    }

    /// Whether a rate is in force; and whether one of bytes is.
    pub(crate) fn rates(&self) -> (bool, bool) {
        let buckets = self.buckets.lock();
        (buckets.bytes.is_some() || buckets.blobs.is_some(), buckets.bytes.is_some())
    }

    fn correct(&self, from: u64, to: u64) {
        let mut buckets = self.buckets.lock();
        buckets.gave_back |= to < from;
        if let Some(bytes) = &mut buckets.bytes {
            bytes.charge(i128::from(to) - i128::from(from));
        }
    }
}

impl fmt::Debug for Throttle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Throttle").finish_non_exhaustive()
    }
}

/// What a copy in flight is charged.
#[derive(Debug)]
#[must_use = "a copy that began is charged until it ends"]
pub(crate) struct Charge {
    throttle: Arc<Throttle>,
    charged: u64,
}

impl Charge {
    /// One charge for what is copied together.
    pub(crate) fn join(&mut self, other: Self) {
        self.charged = self.charged.saturating_add(other.charged);
    }

    /// The blob's size is known now, or known better; in the end, how many bytes have passed. Whether something was given
    /// back, so that others may begin at once.
    pub(crate) fn known(&mut self, size: Option<u64>) -> bool {
        let Some(size) = size.filter(|size| *size != self.charged) else { return false };
        self.throttle.correct(self.charged, size);
        std::mem::replace(&mut self.charged, size) > size
    }
}

#[cfg(test)]
mod tests;
