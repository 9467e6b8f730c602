//! The database itself: RocksDB's options, the format's version, and the figures of the last batch.

use super::claims::Claims;
use super::done::DoneIndex;
use super::error::OpenError;
use super::figures::Figures;
use super::keys;
use super::log_scan::make_readable;
use super::options::RocksOptions;
use super::row;
use crate::descriptors;
use crate::failpoint::{self, Point};
use crate::queue::{Lane, RouteId, SyncId};
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    DEFAULT_COLUMN_FAMILY_NAME, Direction, IteratorMode, MemtableFactory, Options, ReadOptions, SliceTransform,
    WriteBatch, WriteOptions,
};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// The format that is written here.
pub(super) const FORMAT: u32 = 1;

/// A step of migration: from one format to the next, with the new version's number as its last durable write, and safe to
/// repeat after a crash midway.
type Migration = fn(&DB) -> Result<(), OpenError>;

/// The steps from each older format to the next; the first is that from format 1 to 2.
const STEPS: [Migration; FORMAT as usize - 1] = [];

/// What a ref takes in a write buffer, about, in bytes.
const REF_BYTES: usize = 112;

/// The largest part of a filter or an index, in bytes.
const METADATA_BYTES: usize = 256 << 10;

/// How the log is read on opening.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Log {
    /// Whole, but for a torn tail: acked writes are synced, so only what nobody was told of can be torn.
    Whole,
    /// The same, and nothing is written.
    WholeReadOnly,
    /// Up to the first damage.
    UpToDamage,
    /// The same, and nothing is written: to see whether it would work.
    UpToDamageReadOnly,
}

impl Log {
    fn is_read_only(self) -> bool {
        matches!(self, Self::WholeReadOnly | Self::UpToDamageReadOnly)
    }
}

/// What the last batch left.
pub(super) struct Loaded {
    pub(super) figures: Figures,
    /// Where `ready` rows begin; no claim.
    pub(super) claims: Claims,
    /// What left the queue of late.
    pub(super) done: DoneIndex,
    pub(super) next_seq: u64,
    /// When the last batch was written, where that is known.
    pub(super) commit_time: Option<SystemTime>,
}

/// Where the database is in the queue's folder.
pub(super) fn folder(dir: &Path) -> PathBuf {
    dir.join("db")
}

/// The write that makes a batch durable: synced before it returns.
pub(super) fn write_synced(db: &DB, batch: WriteBatch) -> Result<(), rocksdb::Error> {
    let mut options = WriteOptions::default();
    options.set_sync(true);
    db.write_opt(batch, &options)
}

/// The sizes of what RocksDB writes, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Sizes {
    /// Of all logs together, from which on memory is written to tables so that logs can go.
    logs: u64,
    /// Of one family's write buffer.
    buffer: usize,
}

impl Sizes {
    /// Sizes for a disk of so many bytes, of which so many are the reserve. Logs and the tables that replace them must fit
    /// into the reserve, or settling could not go on in it: together they take at most three times the logs' size.
    fn of(disk: u64, reserve: u64) -> Self {
        let reserve = if reserve == 0 { u64::MAX } else { reserve };
        let logs = (disk / 16).min(reserve / 4).clamp(4 << 20, 128 << 20);
        Self { logs, buffer: usize::try_from(logs / 8).unwrap_or(usize::MAX).clamp(1 << 20, 16 << 20) }
    }

    fn on_disk_of(dir: &Path, reserve: u64) -> Self {
        let disk = rustix::fs::statvfs(dir).map_or(u64::MAX, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
        Self::of(disk, reserve)
    }
}

/// Opens the database, or makes it.
pub(super) fn open_database(dir: &Path, options: &RocksOptions, log: Log) -> Result<DB, OpenError> {
    let path = folder(dir);
    let sizes = Sizes::on_disk_of(dir, options.reserve_bytes);
    let mut all = Options::default();
    all.create_if_missing(!log.is_read_only());
    all.create_missing_column_families(true);
    all.set_wal_recovery_mode(match log {
        Log::Whole | Log::WholeReadOnly => DBRecoveryMode::TolerateCorruptedTailRecords,
        Log::UpToDamage | Log::UpToDamageReadOnly => DBRecoveryMode::PointInTime,
    });
    // A log that is gone must be seen, too: what is missing from it would not be missed otherwise.
    all.set_track_and_verify_wals_in_manifest(true);
    all.set_wal_bytes_per_sync(0);
    all.set_recycle_log_file_num(0);
    all.set_max_total_wal_size(sizes.logs);
    all.set_db_write_buffer_size(options.cache_bytes.min(usize::try_from(sizes.logs).unwrap_or(usize::MAX)));
    all.set_max_open_files(descriptors::of_database());
    // There is one writer, and tables by hash in memory allow no more.
    all.set_allow_concurrent_memtable_write(false);
    all.set_keep_log_file_num(4);
    all.set_max_log_file_size(4 << 20);

    make_readable(&path, matches!(log, Log::Whole | Log::WholeReadOnly))?;
    // Every look-up of a ref asks it several times; this one takes no lock for that.
    let cache = Cache::new_hyper_clock_cache(options.cache_bytes, 0);
    let existed = path.join("CURRENT").exists();
    if !existed && holds_data(&path)? {
        // RocksDB would make a new database in its place.
        return Err(OpenError::Corrupt("its file CURRENT is missing".to_owned()));
    }
    if !existed && made_path(dir).exists() {
        return Err(OpenError::Corrupt("its files are gone".to_owned()));
    }
    if existed && !holds_log(&path)? {
        // However a queue ended, its last log is there. Without it nothing can be read up to a point: each family is as it
        // was when it was last flushed, and entries without their index rows would never be claimed.
        return Err(OpenError::Corrupt("its log is gone".to_owned()));
    }
    let mut families: BTreeSet<String> = keys::FAMILIES.map(str::to_owned).into();
    // RocksDB makes it in any case, with a write buffer of 64 MiB. After a full disk it writes again only once as much is
    // free as its largest write buffer: on a small disk, never.
    families.insert(DEFAULT_COLUMN_FAMILY_NAME.to_owned());
    if existed {
        // A newer minor version may have added some, and an older one lacks some; all that there are must be opened.
        let there: BTreeSet<String> = DB::list_cf(&all, &path)?.into_iter().collect();
        if log.is_read_only() {
            families = there;
        } else {
            families.extend(there);
        }
    }
    let families = families.into_iter().map(|name| {
        let options = family_options(&name, &cache, sizes);
        ColumnFamilyDescriptor::new(name, options)
    });
    if log.is_read_only() {
        return Ok(DB::open_cf_descriptors_read_only(&all, &path, families, false)?);
    }
    let db = DB::open_cf_descriptors(&all, &path, families)?;
    if !existed {
        sync_folder(dir)?;
    }
    Ok(db)
}

/// Makes the names in a folder durable.
pub(super) fn sync_folder(dir: &Path) -> Result<(), OpenError> {
    File::open(dir).and_then(|dir| dir.sync_all()).map_err(OpenError::folder(dir))
}

/// The file that says that there was a queue in this folder: an empty place where one was is no new queue. It names the
/// format.
pub(super) fn made_path(dir: &Path) -> PathBuf {
    dir.join("made")
}

/// What the file says before the format's number. Commits before this line left it empty.
const MADE: &str = "blobferry-queue ";

/// Refuses a queue of a newer format before RocksDB is asked for it: what a newer RocksDB wrote would look like damage to
/// this one, and be moved aside.
fn check_made(dir: &Path) -> Result<(), OpenError> {
    let path = made_path(dir);
    let text = match fs::read(&path) {
        Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(OpenError::folder(&path)(error)),
    };
    match text.trim_end().strip_prefix(MADE).and_then(|number| number.parse().ok()) {
        Some(found) if found > FORMAT => Err(OpenError::Format { found, known: FORMAT }),
        _ => Ok(()),
    }
}

/// Writes down that there is a queue, and its format. Whole or not at all, also at a power loss.
pub(super) fn write_made(dir: &Path) -> Result<(), OpenError> {
    let (path, draft) = (made_path(dir), dir.join("made.new"));
    let text = format!("{MADE}{FORMAT}\n");
    if fs::read(&path).is_ok_and(|bytes| bytes == text.as_bytes()) {
        return Ok(());
    }
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&draft, &path)).map_err(OpenError::folder(&path))?;
    sync_folder(dir)
}

/// Whether there is a log.
fn holds_log(path: &Path) -> Result<bool, OpenError> {
    let failed = OpenError::folder(path);
    for file in fs::read_dir(path).map_err(&failed)? {
        if Path::new(&file.map_err(&failed)?.file_name()).extension().is_some_and(|ending| ending == "log") {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the database's folder has tables or logs with anything in them.
fn holds_data(path: &Path) -> Result<bool, OpenError> {
    if !path.exists() {
        return Ok(false);
    }
    let failed = OpenError::folder(path);
    for file in fs::read_dir(path).map_err(&failed)? {
        let file = file.map_err(&failed)?;
        let name = file.file_name();
        let is_data = Path::new(&name).extension().is_some_and(|ending| ending == "sst" || ending == "log");
        if is_data && file.metadata().map_err(&failed)?.len() > 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

fn family_options(name: &str, cache: &Cache, sizes: Sizes) -> Options {
    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(cache);
    blocks.set_cache_index_and_filter_blocks(true);
    blocks.set_pin_l0_filter_and_index_blocks_in_cache(true);
    if matches!(name, keys::REF | keys::ENTRY) {
        // Whole filters and indexes of a very large backlog would not fit into the cache, and be read anew each time: they
        // are cut into parts. Those of a young file are one part, or each look-up in it would search twice.
        blocks.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
        blocks.set_metadata_block_size(METADATA_BYTES);
        blocks.set_pin_top_level_index_and_filter(true);
    }
    let mut options = Options::default();
    // Digests do not compress.
    options.set_compression_type(DBCompressionType::None);
    options.set_write_buffer_size(sizes.buffer);
    if name == keys::REF {
        // Each push asks for a random ref, most often one that is not there. (Entries are asked for where they are.)
        blocks.set_bloom_filter(10.0, false);
        blocks.set_partition_filters(true);
        options.set_memtable_prefix_bloom_ratio(0.03);
        // In memory they are kept by hash, which takes a third of the time that a sorted list takes for what comes in no order:
        // that is the larger part of what a synced write costs. They are sorted when they are written to a table, in the
        // background. Whoever reads them in order must say so (`total_order_seek`). The whole key is the prefix.
        options.set_prefix_extractor(SliceTransform::create_noop());
        options.set_memtable_factory(MemtableFactory::HashLinkList { bucket_count: sizes.buffer / REF_BYTES });
        // Refs come in no order, so that each file covers all of them, and merging a few small files rewrites everything
        // below. More files at a time cost more look-ups in filters, which are cheap, and half of the rewriting.
        options.set_level_zero_file_num_compaction_trigger(8);
    }
    options.set_block_based_table_factory(&blocks);
    if matches!(name, keys::READY | keys::RETRY | keys::PARKED | keys::DONE) {
        options.add_compact_on_deletion_collector_factory(4096, 2048, 0.5);
    }
    options
}

/// Opens the database and reads its figures; `verify` reads all else, too.
pub(super) fn open_loaded(
    dir: &Path,
    options: &RocksOptions,
    log: Log,
    verify: bool,
) -> Result<(DB, Loaded), OpenError> {
    check_made(dir)?;
    let db = open_database(dir, options, log)?;
    if verify {
        read_all(&db)?;
    }
    check_format(dir, &db, log)?;
    failpoint::hit(Point::QueueLoad)?;
    let loaded = load(&db, options)?;
    Ok((db, loaded))
}

/// Reads every row, whose checksums RocksDB compares.
fn read_all(db: &DB) -> Result<(), OpenError> {
    for name in keys::FAMILIES {
        let Some(family) = db.cf_handle(name) else { continue };
        let mut options = ReadOptions::default();
        options.fill_cache(false);
        options.set_total_order_seek(true);
        for row in db.iterator_cf_opt(family, options, IteratorMode::Start) {
            row?;
        }
    }
    Ok(())
}

fn damaged(what: &str) -> OpenError {
    OpenError::Corrupt(format!("its {what} cannot be read"))
}

/// Reads the format's version before anything else, refuses a newer one, and brings an older one up to date step by step.
fn check_format(dir: &Path, db: &DB, log: Log) -> Result<(), OpenError> {
    let meta = db.cf_handle(keys::META).ok_or_else(|| damaged("column family meta"))?;
    let Some(found) = db.get_cf(meta, keys::META_FORMAT)? else {
        if !log.is_read_only() {
            let mut batch = WriteBatch::default();
            batch.put_cf(meta, keys::META_FORMAT, FORMAT.to_be_bytes());
            write_synced(db, batch)?;
        }
        return Ok(());
    };
    let found = found.try_into().map(u32::from_be_bytes).map_err(|_| damaged("format version"))?;
    if found > FORMAT {
        return Err(OpenError::Format { found, known: FORMAT });
    }
    let done = usize::try_from(found).ok().and_then(|found| found.checked_sub(1));
    let done = done.ok_or_else(|| damaged("format version"))?;
    if found < FORMAT && !log.is_read_only() {
        // Before the first step: an older version is to open nothing that is half new.
        write_made(dir)?;
        for step in STEPS.iter().skip(done) {
            tracing::info!(from = found, to = FORMAT, "the queue's format is brought up to date");
            step(db)?;
        }
    }
    Ok(())
}

fn load(db: &DB, options: &RocksOptions) -> Result<Loaded, OpenError> {
    let meta = db.cf_handle(keys::META).ok_or_else(|| damaged("column family meta"))?;
    let number = |key: &[u8], what: &str| -> Result<Option<u64>, OpenError> {
        match db.get_cf(meta, key)? {
            Some(value) => keys::number(&value).map(Some).ok_or_else(|| damaged(what)),
            None => Ok(None),
        }
    };
    let next_seq = number(keys::META_NEXT_SEQ, "next sequence")?.unwrap_or(0);
    let commit_time = number(keys::META_COMMIT_TIME, "time of the last write")?.map(keys::time);
    let mut figures = Figures::default();
    figures.aside = number(keys::META_ASIDE, "count of rows set aside")?.unwrap_or(0);
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
    let done = DoneIndex::load(db, options.completions)?;
    Ok(Loaded { figures, claims, done, next_seq, commit_time })
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

/// When the newest thing that is known of a queue happened: its last batch, or the push of its newest entry.
pub(super) fn newest_time(db: &DB, loaded: &Loaded) -> Option<SystemTime> {
    let entries = db.cf_handle(keys::ENTRY)?;
    let newest = loaded.figures.routes.keys().filter_map(|route| {
        let last = keys::entry(*route, u64::MAX);
        let (key, value) = db.iterator_cf(entries, IteratorMode::From(&last, Direction::Reverse)).next()?.ok()?;
        let seq = keys::number(key.strip_prefix(&route.0.to_be_bytes()[..])?)?;
        Some(row::decode_entry(*route, seq, &value).ok()?.entry.enqueue_time)
    });
    newest.chain(loaded.commit_time).max()
}

#[cfg(test)]
mod tests {
    use super::Sizes;

    #[test]
    fn logs_and_tables_fit_into_the_reserve_of_small_disks() {
        let mib = |sizes: Sizes| (sizes.logs >> 20, sizes.buffer >> 20);
        assert_eq!(mib(Sizes::of(1 << 40, 1 << 30)), (128, 16));
        assert_eq!(mib(Sizes::of(1 << 40, 0)), (128, 16));
        assert_eq!(mib(Sizes::of(1 << 30, 64 << 20)), (16, 2));
        assert_eq!(mib(Sizes::of(100 << 20, 16 << 20)), (4, 1));
        assert_eq!(mib(Sizes::of(1 << 20, 1)), (4, 1));
    }
}
