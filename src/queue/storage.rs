//! What the database below a queue tells of itself.

/// The figures of an LSM tree, summed over its parts. Sizes are in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StorageFigures {
    /// Memory of what was written and is not in tables yet.
    pub memtable_bytes: u64,
    /// Memory of what was read.
    pub block_cache_bytes: u64,
    /// Data in tables that is not superseded, about.
    pub live_data_bytes: u64,
    /// Tables on disk.
    pub table_bytes: u64,
    /// What compactions still have to rewrite, about.
    pub pending_compaction_bytes: u64,
    /// Tables that were flushed and not compacted yet.
    pub level0_files: u64,
    /// Compactions in progress.
    pub running_compactions: u64,
    /// Flushes in progress.
    pub running_flushes: u64,
    /// Errors of flushes and compactions since it was opened.
    pub background_errors: u64,
    /// Whether writes wait for flushes or compactions.
    pub write_stopped: bool,
    /// Bytes a second to which writes are slowed down; 0: they are not.
    pub delayed_write_rate: u64,
    /// Rows that could not be read and were set aside since the queue was made.
    pub rows_set_aside: u64,
}

/// Tells the figures.
pub trait Storage: Send + Sync + 'static {
    /// As they are now; absent while the database is not open. Blocks for a moment.
    fn figures(&self) -> Option<StorageFigures>;
}
