//! The bytes that a route's copies may hold in memory: a budget for packs, and one for blobs that are copied alone.
//!
//! Each has half of the route's `bytes_in_flight`, so that large blobs never take from small ones. One copy is always
//! let in, however large. Only the loop takes; guards give back as they are dropped, and the loop notices as their copies end.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a blob that is streamed holds, in bytes, at most: the larger window of its stream.
const STREAM_BYTES: u64 = 4 << 20;

/// What an entry of a pack, and its place in messages, takes beside its bytes, about.
pub(super) const ITEM_BYTES: u64 = 1 << 10;

/// A route's two budgets.
#[derive(Debug)]
pub(super) struct Budget {
    pub(super) alone: Arc<Pool>,
    pub(super) packs: Arc<Pool>,
}

impl Budget {
    pub(super) fn new(bytes_in_flight: u64) -> Self {
        let half = || Arc::new(Pool { limit: bytes_in_flight / 2, used: AtomicU64::new(0) });
        Self { alone: half(), packs: half() }
    }
}

/// What a blob of this size counts for when it is copied alone.
pub(super) fn streamed(size: Option<u64>) -> u64 {
    size.unwrap_or(u64::MAX).min(STREAM_BYTES)
}

/// A number of bytes to be shared.
#[derive(Debug)]
pub(super) struct Pool {
    limit: u64,
    used: AtomicU64,
}

impl Pool {
    /// Whether so many may be taken now.
    pub(super) fn fits(&self, bytes: u64) -> bool {
        let used = self.used.load(Ordering::Acquire);
        used == 0 || used.saturating_add(bytes) <= self.limit
    }

    /// Takes so many, which is for the caller to have asked.
    pub(super) fn take(self: &Arc<Self>, bytes: u64) -> Held {
        self.used.fetch_add(bytes, Ordering::AcqRel);
        Held { pool: self.clone(), bytes }
    }
}

/// Bytes taken, until they are dropped.
#[derive(Debug)]
pub(super) struct Held {
    pool: Arc<Pool>,
    bytes: u64,
}

impl Held {
    /// Gives back what is more than so many.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let back = self.bytes.saturating_sub(bytes);
        self.bytes -= back;
        self.pool.used.fetch_sub(back, Ordering::AcqRel);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::{Budget, streamed};

    #[test]
    fn large_blobs_take_nothing_from_packs_and_one_is_always_let_in() {
        let budget = Budget::new(8 << 20);
        let huge = budget.alone.take(1 << 40);
        assert!(!budget.alone.fits(1) && budget.packs.fits(4 << 20));
        drop(huge);
        let held: Vec<_> = (0..2).map(|_| budget.alone.take(streamed(None))).collect();
        assert!(!budget.alone.fits(1));
        drop(held);
        assert!(budget.alone.fits(1 << 50));
    }

    #[test]
    fn what_is_not_needed_is_given_back_at_once_and_the_rest_when_dropped() {
        let budget = Budget::new(2000);
        let mut held = budget.packs.take(1000);
        assert!(!budget.packs.fits(1));
        held.shrink(300);
        held.shrink(600);
        assert!(budget.packs.fits(700) && !budget.packs.fits(701));
        drop(held);
        assert!(budget.packs.fits(1000));
    }
}
