//! The index's database: how it is opened, and opened again.
//!
//! After a write that failed RocksDB takes no more until it is opened anew; only after a full disk does it go on by itself. So
//! the database is opened again, once its folder can be written: until then it stays open, so that blobs are read all the while
//! (a file system that turned read-only, no more files for this process). Whatever the failed write left, nobody was told of it:
//! it is in the log, and read back, or not.

use crate::descriptors;
use crate::folder::try_writing;
use crate::store::StoreError;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, ErrorKind, Options,
};
use std::io;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The column family of small blobs.
pub(super) const SMALL: &str = "small";

/// Cached blocks of both column families, in bytes.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Buffered records, in bytes; at most twice as much while it is flushed. Likewise for the small blobs.
const RECORD_BUFFER_BYTES: usize = 8 * 1024 * 1024;
const SMALL_BUFFER_BYTES: usize = 32 * 1024 * 1024;

/// Smaller values lie beside their keys, in bytes.
const MIN_BLOBDB_BYTES: u64 = 512;

/// Logs are kept until the rows in them are flushed: what a start replays, at most, in bytes.
const MAX_WAL_BYTES: u64 = 256 * 1024 * 1024;

/// What keeps a store from writing.
struct StoreTrouble {
    what: String,
    /// Whether the database has to be opened again.
    reopen: bool,
}

/// See the module's header.
pub(super) struct Database {
    path: PathBuf,
    /// Absent where it was closed and could not be opened again yet.
    db: RwLock<Option<Arc<DB>>>,
    trouble: Mutex<Option<StoreTrouble>>,
}

/// The open database. It is not closed as long as one of these is held: reads must be short.
pub(super) struct OpenIndex<'a> {
    // Dropped before the lock is: whoever gets that for writing has the last handle.
    db: Arc<DB>,
    _open: RwLockReadGuard<'a, Option<Arc<DB>>>,
}

impl Deref for OpenIndex<'_> {
    type Target = DB;

    fn deref(&self) -> &DB {
        &self.db
    }
}

impl Database {
    /// Opens the database in this folder; RocksDB's lock keeps every other process out.
    ///
    /// A power loss may leave of the log's unsynced end some pages and not others, which is more than a torn tail to
    /// RocksDB. All that was answered was synced and precede it, so the log is then read up to the first damage. Damage in
    /// the midst of it cannot be told from that: hence the error in the log.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self, StoreError> {
        let opened = match open_as(path, create, DBRecoveryMode::TolerateCorruptedTailRecords) {
            // It also says "corruption" where it could not reach the bytes.
            Err(error) if error.kind() == ErrorKind::Corruption && !error.as_ref().contains("IO error") => {
                let opened = open_as(path, create, DBRecoveryMode::PointInTime);
                if opened.is_ok() {
                    tracing::error!(
                        path = %path.display(), %error,
                        "the index's log is damaged and was read up to the damage. After a power loss nothing that was \
                         answered is missing; after anything else run a full sync to this store"
                    );
                }
                opened
            }
            opened => opened,
        };
        let db = opened.map_err(|error| open_error(path, &error))?;
        Ok(Self { path: path.to_owned(), db: RwLock::new(Some(Arc::new(db))), trouble: Mutex::default() })
    }

    /// The database, to be read.
    pub(super) fn db(&self) -> Result<OpenIndex<'_>, StoreError> {
        let open = self.db.read();
        match open.as_ref().map(Arc::clone) {
            Some(db) => Ok(OpenIndex { db, _open: open }),
            None => Err(StoreError::io("the index is being opened again", io::Error::other(self.what()))),
        }
    }

    /// Writes, unless it has to be opened again before.
    pub(super) fn write(&self, write: impl FnOnce(&DB) -> Result<(), rocksdb::Error>) -> io::Result<()> {
        if self.trouble.lock().as_ref().is_some_and(|trouble| trouble.reopen) {
            return Err(io::Error::other(self.what()));
        }
        let db = self.db().map_err(io::Error::other)?;
        write(&db).map_err(|error| {
            let error = io_error(&error);
            if error.kind() != io::ErrorKind::StorageFull {
                self.failed(&error, true);
            }
            error
        })
    }

    /// A file of the store could not be written.
    pub(super) fn file_failed(&self, error: &io::Error) {
        self.failed(error, false);
    }

    fn failed(&self, error: &io::Error, reopen: bool) {
        let mut trouble = self.trouble.lock();
        if trouble.is_none() {
            tracing::error!(%error, folder = %self.folder().display(), "the store cannot write");
        }
        let reopen = reopen || trouble.as_ref().is_some_and(|trouble| trouble.reopen);
        *trouble = Some(StoreTrouble { what: error.to_string(), reopen });
    }

    /// Tries whether what failed works again, and makes it so. Gives what still does not. Blocks.
    pub(super) fn mend(&self) -> Option<String> {
        let reopen = self.trouble.lock().as_ref()?.reopen;
        let folder = self.folder();
        let mended =
            try_writing(&folder.join("incoming")).and_then(|()| if reopen { self.open_again() } else { Ok(()) });
        let mut trouble = self.trouble.lock();
        match mended {
            Ok(()) => {
                *trouble = None;
                tracing::info!(folder = %folder.display(), "the store can write again");
                None
            }
            Err(error) => {
                let what =
                    format!("{} cannot be written: {error}; once it can, it goes on by itself", folder.display());
                *trouble = Some(StoreTrouble { what: what.clone(), reopen });
                Some(what)
            }
        }
    }

    fn open_again(&self) -> io::Result<()> {
        let mut db = self.db.write();
        // Closed before it is opened: there is one lock.
        *db = None;
        let opened = open_as(&self.path, false, DBRecoveryMode::TolerateCorruptedTailRecords);
        *db = Some(Arc::new(opened.map_err(|error| io_error(&error))?));
        Ok(())
    }

    fn folder(&self) -> &Path {
        self.path.parent().unwrap_or(&self.path)
    }

    fn what(&self) -> String {
        self.trouble.lock().as_ref().map_or_else(String::new, |trouble| trouble.what.clone())
    }
}

fn open_as(path: &Path, create: bool, recovery: DBRecoveryMode) -> Result<DB, rocksdb::Error> {
    let mut options = Options::default();
    options.create_if_missing(create);
    options.create_missing_column_families(create);
    // Answered writes are synced, so a torn tail was never answered; anything else wrong with the log is reported.
    options.set_wal_recovery_mode(recovery);
    options.set_wal_bytes_per_sync(0);
    options.set_recycle_log_file_num(0);
    options.set_max_total_wal_size(MAX_WAL_BYTES);
    options.set_max_open_files(descriptors::of_database());
    options.set_keep_log_file_num(4);
    options.set_max_log_file_size(4 * 1024 * 1024);

    let mut blocks = BlockBasedOptions::default();
    blocks.set_block_cache(&Cache::new_lru_cache(CACHE_BYTES));
    // Most refs that are looked up before a write are new.
    blocks.set_bloom_filter(10.0, false);
    let family = |buffer_bytes: usize| {
        let mut options = Options::default();
        options.set_block_based_table_factory(&blocks);
        // Digests do not compress, and content is the writer's to compress.
        options.set_compression_type(DBCompressionType::None);
        options.set_write_buffer_size(buffer_bytes);
        options
    };
    let mut small = family(SMALL_BUFFER_BYTES);
    small.set_enable_blob_files(true);
    small.set_min_blob_size(MIN_BLOBDB_BYTES);
    small.set_blob_compression_type(DBCompressionType::None);
    small.set_enable_blob_gc(true);
    let families = [
        ColumnFamilyDescriptor::new(rocksdb::DEFAULT_COLUMN_FAMILY_NAME, family(RECORD_BUFFER_BYTES)),
        ColumnFamilyDescriptor::new(SMALL, small),
    ];
    DB::open_cf_descriptors(&options, path, families)
}

/// An error of RocksDB as the system's. Its bindings give only text, so that is where a full disk must be recognised.
pub(super) fn io_error(error: &rocksdb::Error) -> io::Error {
    let text = error.to_string();
    let full = ["No space left", "Space limit reached", "Disk quota exceeded"].iter().any(|sign| text.contains(sign));
    let kind = match error.kind() {
        _ if full => io::ErrorKind::StorageFull,
        ErrorKind::Corruption => io::ErrorKind::InvalidData,
        _ => io::ErrorKind::Other,
    };
    io::Error::new(kind, text)
}

fn open_error(path: &Path, error: &rocksdb::Error) -> StoreError {
    let text = error.as_ref();
    if text.contains("lock hold by current process") || text.contains("While lock file") {
        let folder = path.parent().unwrap_or(path).display();
        return StoreError::Invalid(format!(
            "{folder} is in use by another store; stop that one, or give this one a folder of its own ({text})"
        ));
    }
    StoreError::io(format!("opening the index in {}", path.display()), io_error(error))
}
