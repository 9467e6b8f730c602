//! Opening: the lock, RocksDB's options, the format's version, and the figures of the last batch.

use super::claims::Claims;
use super::commit::{CHANNEL, Committer, WriteFn};
use super::done::DoneIndex;
use super::gather::Gather;
use super::keys;
use super::row;
use super::shared::{Figures, Shared};
use super::{RocksOptions, RocksQueue, WallClock};
use crate::failpoint::{self, Injected, Point};
use crate::queue::{Lane, RouteId, SyncId};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    DEFAULT_COLUMN_FAMILY_NAME, Direction, ErrorKind, IteratorMode, Options, WriteBatch, WriteOptions,
};
use std::collections::BTreeSet;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

/// The format that is written here.
const FORMAT: u32 = 1;

/// Why a queue could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process, or another handle in this one, has it open.
    #[error("the queue in {0} is in use by another process; stop that one first, or set another data_dir")]
    Locked(PathBuf),
    /// A newer version wrote it.
    #[error("the queue has format {found}, and this version knows formats up to {known}; use the newer version")]
    Format {
        /// The format found.
        found: u32,
        /// The newest format known here.
        known: u32,
    },
    /// What is stored is damaged.
    #[error("the queue is damaged: {0}")]
    Corrupt(String),
    /// The folder cannot be used.
    #[error("the queue's folder {dir} cannot be used: {error}")]
    Folder {
        /// The folder.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// RocksDB refused for another reason.
    #[error("the queue could not be opened: {0}")]
    Database(String),
}

impl From<rocksdb::Error> for OpenError {
    fn from(error: rocksdb::Error) -> Self {
        match error.kind() {
            ErrorKind::Corruption => Self::Corrupt(error.into_string()),
            _ => Self::Database(error.into_string()),
        }
    }
}

impl From<Injected> for OpenError {
    fn from(injected: Injected) -> Self {
        Self::Database(injected.to_string())
    }
}

/// The write that makes a batch durable: synced before it returns.
pub(super) fn write_synced(db: &DB, batch: WriteBatch) -> Result<(), rocksdb::Error> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options)
}

/// Opens or makes a queue; `write` is what makes batches durable.
pub(super) fn open(
    dir: &Path,
    options: RocksOptions,
    wall: WallClock,
    write: WriteFn,
) -> Result<RocksQueue, OpenError> {
    let lock = lock(dir)?;
    failpoint::hit(Point::QueueOpen)?;
    let db = Arc::new(open_database(dir, &options)?);
    failpoint::hit(Point::QueueLoad)?;
    let loaded = load(&db)?;
    let next_seq = loaded.next_seq;
    let total = loaded.figures.total();
    let done = DoneIndex::load(&db, options.completions)?;
    let shared = Arc::new(Shared::new(Arc::clone(&db), loaded.figures, loaded.claims, done, options.max_backoff));

    let (sender, receiver) = tokio::sync::mpsc::channel(CHANNEL);
    let committer = Committer {
        shared: Arc::clone(&shared),
        db,
        dir: dir.to_owned(),
        options,
        wall: Arc::clone(&wall),
        write,
        next_seq,
        total,
        space: None,
        gather: Gather::default(),
    };
    let ended = CancellationToken::new();
    let ends = ended.clone().drop_guard();
    let committer = std::thread::Builder::new()
        .name("queue-committer".to_owned())
        .spawn(move || {
            // Also where it panics.
            let _ends = ends;
            committer.run(receiver);
        })
        .map_err(|error| OpenError::Folder { dir: dir.to_owned(), error })?;
    Ok(RocksQueue {
        shared,
        requests: Mutex::new(Some(sender)),
        committer: Mutex::new(Some(committer)),
        ended,
        wall,
        lock: Mutex::new(Some(lock)),
    })
}

/// Makes the folder and locks it. The lock stands beside the database, so that the database's folder can be moved.
fn lock(dir: &Path) -> Result<File, OpenError> {
    let failed = |error| OpenError::Folder { dir: dir.to_owned(), error };
    let made = !dir.exists();
    std::fs::create_dir_all(dir).map_err(failed)?;
    if made && let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(failed)?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// A power loss may leave of the log's unsynced end some pages and not others, which is more than a torn tail to RocksDB.
/// All that was acked was synced and precedes it, so the log is then read up to the first damage.
fn open_database(dir: &Path, options: &RocksOptions) -> Result<DB, OpenError> {
    match open_database_as(dir, options, DBRecoveryMode::TolerateCorruptedTailRecords) {
        Err(OpenError::Corrupt(error)) => {
            let db = open_database_as(dir, options, DBRecoveryMode::PointInTime)?;
            tracing::error!(error, "the queue's log is damaged and was read up to the damage");
            Ok(db)
        }
        opened => opened,
    }
}

fn open_database_as(dir: &Path, options: &RocksOptions, recovery: DBRecoveryMode) -> Result<DB, OpenError> {
    let path = dir.join("db");
    let mut all = Options::default();
    all.create_if_missing(true);
    all.create_missing_column_families(true);
    // Acked writes are synced, so only what nobody was told of can be torn; anything else must be seen, not dropped.
    all.set_wal_recovery_mode(recovery);
    all.set_wal_bytes_per_sync(0);
    all.set_recycle_log_file_num(0);
    all.set_max_total_wal_size(128 << 20);
    all.set_db_write_buffer_size(options.cache_bytes);
    all.set_max_open_files(512);
    all.set_keep_log_file_num(4);

    // Every look-up of a ref asks it several times; this one takes no lock for that.
    let cache = Cache::new_hyper_clock_cache(options.cache_bytes, 0);
    let existed = path.join("CURRENT").exists();
    let mut families: BTreeSet<String> = keys::FAMILIES.map(str::to_owned).into();
    // RocksDB makes it in any case, with a write buffer of 64 MiB. After a full disk it writes again only once as much is
    // free as its largest write buffer: on a small disk, never.
    families.insert(DEFAULT_COLUMN_FAMILY_NAME.to_owned());
    if existed {
        // A newer minor version may have added some; all must be opened.
        families.extend(DB::list_cf(&all, &path)?);
    }
    let families = families.into_iter().map(|name| {
        let options = family_options(&name, &cache);
        ColumnFamilyDescriptor::new(name, options)
    });
    let db = DB::open_cf_descriptors(&all, &path, families)?;
    if !existed {
        File::open(dir)
            .and_then(|dir| dir.sync_all())
            .map_err(|error| OpenError::Folder { dir: dir.to_owned(), error })?;
    }
    Ok(db)
}

fn family_options(name: &str, cache: &Cache) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if matches!(name, keys::REF | keys::ENTRY) {
        // Whole filters and indexes of a large backlog would not fit into the cache and be read anew each time; in parts, a
        // look-up reads a few KiB at most.
        blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        blocks.set_metadata_block_size(4 << 10);
        blocks.set_pin_top_level_index_and_filter(true);
    }
    let mut options = Options::default();
    // Digests do not compress.
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(16 << 20);
    if name == keys::REF {
        // Each push asks for a random ref, most often one that is not there. (Entries are asked for where they are.)
        blocks.set_bloom_filter(10.0, false);
        blocks.set_partition_filters(true);
        options.set_memtable_prefix_bloom_ratio(0.03);
        // Refs come in no order, so that each file covers all of them, and merging a few small files rewrites everything
        // below. More files at a time cost more look-ups in filters, which are cheap, and half of the rewriting.
        options.set_level_zero_file_num_compaction_trigger(8);
        options.set_memtable_whole_key_filtering(true);
    }
    options.set_block_based_table_factory(&blocks);
    if matches!(name, keys::READY | keys::RETRY | keys::PARKED | keys::DONE) {
        options.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
    }
    options
}

/// What the last batch left.
struct Loaded {
    figures: Figures,
    claims: Claims,
    next_seq: u64,
}

fn load(db: &DB) -> Result<Loaded, OpenError> {
    let damaged = |what: &str| OpenError::Corrupt(format!("its {what} cannot be read"));
    let meta = db.cf_handle(keys::META).ok_or_else(|| damaged("column family meta"))?;
    match db.get_cf(meta, keys::META_FORMAT)? {
        Some(found) => {
            let found = found.try_into().map(u32::from_be_bytes).map_err(|_| damaged("format version"))?;
            if found > FORMAT {
                return Err(OpenError::Format { found, known: FORMAT });
            }
        }
        None => {
            let mut batch = WriteBatch::default();
            batch.put_cf(meta, keys::META_FORMAT, FORMAT.to_be_bytes());
            write_synced(db, batch)?;
        }
    }
    let number = |key: &[u8], what: &str| -> Result<u64, OpenError> {
        match db.get_cf(meta, key)? {
            Some(value) => keys::number(&value).ok_or_else(|| damaged(what)),
            None => Ok(0),
        }
    };
    let next_seq = number(keys::META_NEXT_SEQ, "next sequence")?;
    let mut figures = Figures::default();
    figures.aside = number(keys::META_ASIDE, "count of rows set aside")?;
    let mut claims = Claims::default();
    for row in rows_of(db, keys::META_ROUTE) {
        let (key, value) = row?;
        let id = route_id(&key).ok_or_else(|| damaged("route"))?;
        figures.routes.insert(id, row::decode_route(&value).map_err(|_| damaged("route"))?);
    }
    for row in rows_of(db, keys::META_COUNTS) {
        let (key, value) = row?;
        let id = route_id(&key).ok_or_else(|| damaged("counters"))?;
        let (counts, from) = row::decode_counts(&value).map_err(|_| damaged("counters"))?;
        figures.set_counts(id, counts);
        for (lane, from) in Lane::ALL.into_iter().zip(from) {
            claims.start_at(id, lane, from);
        }
    }
    for row in rows_of(db, keys::META_SYNC) {
        let (key, value) = row?;
        let id = keys::number(&key).ok_or_else(|| damaged("sync tally"))?;
        figures.set_sync(SyncId(id), row::decode_sync(&value).map_err(|_| damaged("sync tally"))?);
    }
    Ok(Loaded { figures, claims, next_seq })
}

fn route_id(key: &[u8]) -> Option<RouteId> {
    key.try_into().ok().map(|bytes| RouteId(u32::from_be_bytes(bytes)))
}

/// A key without its prefix, and a value.
type MetaRow = (Vec<u8>, Box<[u8]>);

/// The `meta` rows of a prefix.
fn rows_of<'a>(db: &'a DB, prefix: &'static [u8]) -> Box<dyn Iterator<Item = Result<MetaRow, rocksdb::Error>> + 'a> {
    let Some(meta) = db.cf_handle(keys::META) else { return Box::new(std::iter::empty()) };
    let rows = db.iterator_cf(meta, IteratorMode::From(prefix, Direction::Forward));
    let of_prefix = rows.map_while(move |row| match row {
        Ok((key, value)) => key.strip_prefix(prefix).map(|rest| Ok((rest.to_vec(), value))),
        Err(error) => Some(Err(error)),
    });
    Box::new(of_prefix)
}
