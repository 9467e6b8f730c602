//! What is counted of a queue's committer.

use super::{CALL_SECONDS, Histogram, OPERATIONS};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The recorder of a queue's committer. All of it is since this process started.
#[derive(Debug)]
pub struct CommitMetrics {
    /// From the first request of a batch being looked at until all of it is answered.
    pub commit: Histogram,
    /// The synced write of it, which is most of that.
    pub sync: Histogram,
    /// Operations (pushes, settlements, facts) in a batch.
    pub operations: Histogram,
    failed: AtomicU64,
    reopened: AtomicU64,
}

impl Default for CommitMetrics {
    fn default() -> Self {
        Self {
            commit: Histogram::new(&CALL_SECONDS),
            sync: Histogram::new(&CALL_SECONDS),
            operations: Histogram::new(&OPERATIONS),
            failed: AtomicU64::new(0),
            reopened: AtomicU64::new(0),
        }
    }
}

impl CommitMetrics {
    /// Counts a batch that is durable.
    pub fn committed(&self, operations: u64, took: Duration) {
        self.operations.observe_number(operations);
        self.commit.observe(took);
    }

    /// Counts a batch of which nothing was acked.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts that the database was opened again.
    pub fn reopened(&self) {
        self.reopened.fetch_add(1, Ordering::Relaxed);
    }

    /// Batches that failed.
    pub fn failures(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// How often the database was opened again.
    pub fn reopenings(&self) -> u64 {
        self.reopened.load(Ordering::Relaxed)
    }
}
