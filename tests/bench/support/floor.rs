//! RocksDB's own synced writes of the rows that an announcement writes: the floor of everything that is made durable.
//!
//! The keys are as long as the queue's and as ordered (sequences ascend, refs are random), and so are the values. Options
//! are RocksDB's defaults.

use anyhow::{Context as _, Result};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use rocksdb::{ColumnFamily, DB, Options, WriteBatch, WriteOptions};
use std::path::Path;
use std::time::{Duration, Instant};

/// The column families that an announcement writes to.
const FAMILIES: [&str; 3] = ["entry", "ready", "ref"];

/// Bytes of an entry's row, as `queue::rocks` writes it for a SHA-256 ref without trace context.
const ENTRY_BYTES: usize = 66;

/// RocksDB alone.
pub(crate) struct Floor {
    db: DB,
    seq: u64,
    random: SmallRng,
}

impl Floor {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let mut options = Options::default();
        options.create_if_missing(true);
        options.create_missing_column_families(true);
        let db = DB::open_cf(&options, path, FAMILIES)?;
        Ok(Self { db, seq: 0, random: SmallRng::seed_from_u64(3) })
    }

    /// Writes batches of this many entries for this long; entries per second.
    pub(crate) fn run(&mut self, batch: usize, time: Duration) -> Result<f64> {
        let family = |name| self.db.cf_handle(name).context("no column family");
        let [entries, ready, refs]: [&ColumnFamily; 3] = [family("entry")?, family("ready")?, family("ref")?];
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        let (mut written, start) = (0, Instant::now());
        while start.elapsed() < time {
            let mut rows = WriteBatch::default();
            for _ in 0..batch {
                self.seq += 1;
                let seq = self.seq.to_be_bytes();
                let route = [0, 0, 0, 1];
                let mut reference = [0; 4 + 7 + 32];
                reference[..4].copy_from_slice(&route);
                reference[4..11].copy_from_slice(b"sha256-");
                self.random.fill_bytes(&mut reference[11..]);
                let mut entry = [1; ENTRY_BYTES];
                entry[3..42].copy_from_slice(&reference[4..]);
                rows.put_cf(entries, [&route[..], &seq].concat(), entry);
                rows.put_cf(ready, [&route[..], &[0], &seq].concat(), [0; 9]);
                rows.put_cf(refs, reference, seq);
            }
            self.db.write_opt(rows, &synced)?;
            written += batch;
        }
        Ok(written as f64 / start.elapsed().as_secs_f64())
    }
}
