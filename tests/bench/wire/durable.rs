//! The durable writes alone that a copy to a disk store takes: the floor of everything that ends on a disk.
//!
//! Small blobs: each is a record and its bytes in a RocksDB as the store's, in synced batches of a pack, and meanwhile the
//! rows of the queue in another: as announced, in one batch a call, and removed again, a pack at a time. Large blobs: each a
//! file under a temporary name, synced, renamed, its folder synced, some at a time. Nothing is read, hashed or sent.

use crate::relay::pack;
use crate::support::api::{self, MAX_ITEMS};
use anyhow::{Context as _, Result, anyhow};
use bytes::Bytes;
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use rocksdb::{ColumnFamily, DB, DBCompressionType, Options, WriteBatch, WriteOptions};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Blobs of at most so many bytes lie in the store's RocksDB.
const SMALL: usize = 64 << 10;
/// Bytes written to a file at a time.
const WRITE: usize = 1 << 20;
/// The families of the queue that a blob's way through writes to.
const QUEUE: [&str; 3] = ["entry", "ready", "ref"];
/// Bytes of an entry's row.
const ENTRY: usize = 66;

/// Writes blobs of one size into folders of its own, new ones each time.
pub(crate) struct Durable {
    dir: PathBuf,
    size: usize,
    /// Files at a time.
    at_a_time: usize,
}

impl Durable {
    pub(crate) fn new(dir: &Path, size: usize, at_a_time: usize) -> Self {
        Self { dir: dir.join("durable"), size, at_a_time }
    }

    /// Writes so many blobs; how long it took.
    pub(crate) fn write(&self, count: usize) -> Result<Duration> {
        fs::create_dir(&self.dir)?;
        let (_, bytes) = api::blob(1, self.size);
        let took = if self.size <= SMALL { self.rows(count, &bytes) } else { self.files(count, &bytes) }?;
        fs::remove_dir_all(&self.dir)?;
        Ok(took)
    }

    fn rows(&self, count: usize, bytes: &Bytes) -> Result<Duration> {
        let store = open_store(&self.dir.join("store"))?;
        let queue = open_queue(&self.dir.join("queue"))?;
        let pack = pack(self.size);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let storing = scope.spawn(|| write_store(&store, count, pack, bytes));
            write_queue(&queue, count, pack)?;
            storing.join().map_err(|_| anyhow!("the writer panicked"))?
        })?;
        Ok(start.elapsed())
    }

    fn files(&self, count: usize, bytes: &Bytes) -> Result<Duration> {
        let (from, to) = (self.dir.join("incoming"), self.dir.join("blobs"));
        fs::create_dir(&from)?;
        fs::create_dir(&to)?;
        let next = AtomicUsize::new(0);
        let start = Instant::now();
        std::thread::scope(|scope| {
            let write = || {
                loop {
                    let name = next.fetch_add(1, Ordering::Relaxed);
                    if name >= count {
                        return anyhow::Ok(());
                    }
                    let (temporary, last) = (from.join(name.to_string()), to.join(name.to_string()));
                    let mut file = File::create(&temporary)?;
                    for piece in bytes.chunks(WRITE) {
                        file.write_all(piece)?;
                    }
                    file.sync_all()?;
                    fs::rename(&temporary, &last)?;
                    File::open(&to)?.sync_all()?;
                }
            };
            let writers: Vec<_> = (0..self.at_a_time).map(|_| scope.spawn(write)).collect();
            writers.into_iter().try_for_each(|writer| writer.join().map_err(|_| anyhow!("a writer panicked"))?)
        })?;
        Ok(start.elapsed())
    }
}

fn open_store(path: &Path) -> Result<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_compression_type(DBCompressionType::None);
    let mut small = options.clone();
    small.set_enable_blob_files(true);
    small.set_min_blob_size(512);
    small.set_write_buffer_size(32 << 20);
    small.set_blob_compression_type(DBCompressionType::None);
    Ok(DB::open_cf_with_opts(&options, path, [("small", small)])?)
}

fn open_queue(path: &Path) -> Result<DB> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    options.set_compression_type(DBCompressionType::None);
    Ok(DB::open_cf(&options, path, QUEUE)?)
}

fn synced() -> WriteOptions {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    options
}

fn family<'a>(db: &'a DB, name: &str) -> Result<&'a ColumnFamily> {
    db.cf_handle(name).context("no column family")
}

fn write_store(db: &DB, count: usize, pack: usize, bytes: &Bytes) -> Result<()> {
    let (small, options) = (family(db, "small")?, synced());
    let mut random = SmallRng::seed_from_u64(5);
    for at in (0..count).step_by(pack) {
        let mut batch = WriteBatch::default();
        for _ in at..(at + pack).min(count) {
            let key = reference(&mut random);
            batch.put_cf(small, key, bytes);
            batch.put(key, [1; 10]);
        }
        db.write_opt(batch, &options)?;
    }
    Ok(())
}

fn write_queue(db: &DB, count: usize, pack: usize) -> Result<()> {
    let [entries, ready, refs] = [family(db, QUEUE[0])?, family(db, QUEUE[1])?, family(db, QUEUE[2])?];
    let options = synced();
    let keys = |seq: usize| {
        let seq = (seq as u64).to_be_bytes();
        ([&[0, 0, 0, 1][..], &seq].concat(), [&[0, 0, 0, 1, 0][..], &seq].concat())
    };
    let mut random = SmallRng::seed_from_u64(7);
    let references: Vec<[u8; 39]> = (0..count).map(|_| reference(&mut random)).collect();
    for at in (0..count).step_by(MAX_ITEMS) {
        let mut batch = WriteBatch::default();
        for (seq, reference) in references.iter().enumerate().skip(at).take(MAX_ITEMS) {
            let (entry, index) = keys(seq);
            batch.put_cf(entries, &entry, [1; ENTRY]);
            batch.put_cf(ready, &index, [0; 9]);
            batch.put_cf(refs, reference, &entry[4..]);
        }
        db.write_opt(batch, &options)?;
    }
    for at in (0..count).step_by(pack) {
        let mut batch = WriteBatch::default();
        for (seq, reference) in references.iter().enumerate().skip(at).take(pack) {
            let (entry, index) = keys(seq);
            batch.delete_cf(entries, &entry);
            batch.delete_cf(ready, &index);
            batch.delete_cf(refs, reference);
        }
        db.write_opt(batch, &options)?;
    }
    Ok(())
}

/// The key of a ref.
fn reference(random: &mut SmallRng) -> [u8; 39] {
    let mut key = *b"sha256-00000000000000000000000000000000";
    random.fill_bytes(&mut key[7..]);
    key
}
