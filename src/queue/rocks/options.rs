//! How a queue on disk is to behave.

use crate::metrics::CommitMetrics;
use std::sync::Arc;
use std::time::Duration;

/// How a queue on disk is to behave.
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Announcements are refused when the queue holds this many entries, in all routes.
    pub max_entries: u64,
    /// Announcements are refused when the disk has fewer free bytes; 0 turns this off.
    pub reserve_bytes: u64,
    /// The longest time that an entry may be made to wait; one due further ahead is due.
    pub max_backoff: Duration,
    /// Bytes of memory for what was read; as many again for what was written and is not in files yet.
    pub cache_bytes: usize,
    /// Confirmed and discarded entries that are remembered, about; 0: none.
    pub completions: usize,
    /// Counts what the committer does.
    pub metrics: Arc<CommitMetrics>,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            max_entries: 100_000_000,
            reserve_bytes: 1 << 30,
            max_backoff: Duration::from_secs(24 * 60 * 60),
            cache_bytes: 64 << 20,
            completions: 65_536,
            metrics: Arc::default(),
        }
    }
}
