//! The index, and the small blobs beside it, in one RocksDB.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `default` | [`BlobRef::to_key`] | record: version 1, place (0 small, 1 file), size (8 bytes, big-endian) |
//! | `small` | [`BlobRef::to_key`] | the bytes of the blob; in BlobDB files, apart from the keys |
//!
//! Both rows of a small blob are one batch. Keeping the records apart from the bytes lets `stat` and `enumerate` read only
//! records. A record that cannot be read counts as absent, with a warning, so that receiving the blob again repairs it.

use crate::blob::{BlobMeta, BlobRef};
use crate::failpoint::{self, Point};
use crate::store::StoreError;
use bytes::Bytes;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode, ErrorKind,
    Options, ReadOptions, WriteBatch, WriteOptions,
};
use std::io;
use std::path::Path;

const SMALL: &str = "small";

const RECORD_VERSION: u8 = 1;

/// Cached blocks of both column families, in bytes.
const CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Buffered records, in bytes; at most twice as much while it is flushed. Likewise for the small blobs.
const RECORD_BUFFER_BYTES: usize = 8 * 1024 * 1024;
const SMALL_BUFFER_BYTES: usize = 32 * 1024 * 1024;

/// Smaller values lie beside their keys, in bytes.
const MIN_BLOBDB_BYTES: u64 = 512;

/// Logs are kept until the rows in them are flushed: what a start replays, at most, in bytes.
const MAX_WAL_BYTES: u64 = 256 * 1024 * 1024;

/// Where a blob's bytes lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BlobPlace {
    /// In the column family `small`.
    Small,
    /// In a file of their own.
    File,
}

/// What the index knows of a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) size: u64,
    pub(super) place: BlobPlace,
}

impl Record {
    fn encode(self) -> [u8; 10] {
        let mut value = [0; 10];
        value[0] = RECORD_VERSION;
        value[1] = match self.place {
            BlobPlace::Small => 0,
            BlobPlace::File => 1,
        };
        value[2..].copy_from_slice(&self.size.to_be_bytes());
        value
    }

    fn decode(value: &[u8]) -> Option<Self> {
        let (head, size) = value.split_first_chunk::<2>()?;
        let place = match *head {
            [RECORD_VERSION, 0] => BlobPlace::Small,
            [RECORD_VERSION, 1] => BlobPlace::File,
            _ => return None,
        };
        Some(Self { size: u64::from_be_bytes(size.try_into().ok()?), place })
    }
}

/// A blob to be made visible.
pub(super) struct BlobRow<'a> {
    pub(super) blob: &'a BlobRef,
    pub(super) record: Record,
    /// The bytes of a small blob.
    pub(super) bytes: Option<&'a [u8]>,
}

/// A piece of an enumeration.
pub(super) struct IndexPage {
    pub(super) blobs: Vec<BlobMeta>,
    /// The first key in the range behind the page.
    pub(super) next: Option<Vec<u8>>,
}

/// The open database.
pub(super) struct Index {
    db: DB,
}

impl Index {
    /// Opens the database in this folder; RocksDB's lock keeps every other process out.
    ///
    /// A power loss may leave of the log's unsynced end some pages and not others, which is more than a torn tail to
    /// RocksDB. All that was answered was synced and precede it, so the log is then read up to the first damage. Damage in
    /// the midst of it cannot be told from that: hence the error in the log.
    pub(super) fn open(path: &Path, create: bool) -> Result<Self, StoreError> {
        match Self::open_as(path, create, DBRecoveryMode::TolerateCorruptedTailRecords) {
            Err(error) if error.kind() == ErrorKind::Corruption => {
                let opened = Self::open_as(path, create, DBRecoveryMode::PointInTime);
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
        }
        .map_err(|error| open_error(path, &error))
    }

    fn open_as(path: &Path, create: bool, recovery: DBRecoveryMode) -> Result<Self, rocksdb::Error> {
        let mut options = Options::default();
        options.create_if_missing(create);
        options.create_missing_column_families(create);
        // Answered writes are synced, so a torn tail was never answered; anything else wrong with the log is reported.
        options.set_wal_recovery_mode(recovery);
        options.set_wal_bytes_per_sync(0);
        options.set_recycle_log_file_num(0);
        options.set_max_total_wal_size(MAX_WAL_BYTES);
        options.set_max_open_files(512);
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
        Ok(Self { db: DB::open_cf_descriptors(&options, path, families)? })
    }

    fn small(&self) -> Result<&ColumnFamily, StoreError> {
        let missing = || StoreError::io("the index", io::Error::other("the column family of small blobs is not open"));
        self.db.cf_handle(SMALL).ok_or_else(missing)
    }

    /// What is known of a blob.
    pub(super) fn get(&self, blob: &BlobRef) -> Result<Option<Record>, StoreError> {
        let value = self.db.get_pinned(blob.to_key()).map_err(|error| read_error(Some(blob), &error))?;
        Ok(value.and_then(|value| readable(&blob.to_key(), &value)))
    }

    /// What is known of each of these blobs, in their order.
    pub(super) fn get_many(&self, blobs: &[BlobRef]) -> Vec<Result<Option<Record>, StoreError>> {
        let keys: Vec<Vec<u8>> = blobs.iter().map(BlobRef::to_key).collect();
        let Some(records) = self.db.cf_handle(rocksdb::DEFAULT_COLUMN_FAMILY_NAME) else {
            return blobs.iter().map(|blob| self.get(blob)).collect();
        };
        let values = self.db.batched_multi_get_cf(records, &keys, false);
        let read = |(blob, value): (&BlobRef, Result<Option<rocksdb::DBPinnableSlice<'_>>, rocksdb::Error>)| {
            let value = value.map_err(|error| read_error(Some(blob), &error))?;
            Ok(value.and_then(|value| readable(&blob.to_key(), &value)))
        };
        blobs.iter().zip(values).map(read).collect()
    }

    /// The bytes of each of these small blobs, in their order.
    pub(super) fn bytes_many(&self, blobs: &[BlobRef]) -> Vec<Result<Option<Bytes>, StoreError>> {
        let Some(small) = self.db.cf_handle(SMALL) else {
            return blobs.iter().map(|blob| Ok(self.bytes(blob)?.map(Bytes::from))).collect();
        };
        let keys: Vec<Vec<u8>> = blobs.iter().map(BlobRef::to_key).collect();
        let values = self.db.batched_multi_get_cf(small, &keys, false);
        let read = |(blob, value): (&BlobRef, Result<Option<rocksdb::DBPinnableSlice<'_>>, rocksdb::Error>)| {
            let value = value.map_err(|error| read_error(Some(blob), &error))?;
            Ok(value.map(|value| Bytes::copy_from_slice(&value)))
        };
        blobs.iter().zip(values).map(read).collect()
    }

    /// The bytes of a small blob.
    pub(super) fn bytes(&self, blob: &BlobRef) -> Result<Option<Vec<u8>>, StoreError> {
        self.db.get_cf(self.small()?, blob.to_key()).map_err(|error| read_error(Some(blob), &error))
    }

    /// The blobs with keys from `from`, inclusive, to `to`, exclusive; at most `max` of them.
    pub(super) fn page(&self, from: &[u8], to: &[u8], max: usize) -> Result<IndexPage, StoreError> {
        let mut page = IndexPage { blobs: Vec::with_capacity(max), next: None };
        if from >= to {
            return Ok(page);
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let mut rows = self.db.raw_iterator_opt(options);
        rows.seek(from);
        while let Some((key, value)) = rows.item() {
            if page.blobs.len() == max {
                page.next = Some(key.to_vec());
                break;
            }
            if let (Some(record), Some(blob)) = (readable(key, value), BlobRef::from_key(key)) {
                page.blobs.push(BlobMeta { blob, size: record.size });
            }
            rows.next();
        }
        // An iterator that failed looks like one at its end.
        rows.status().map_err(|error| read_error(None, &error))?;
        Ok(page)
    }

    /// Makes these blobs visible: one batch, synced before this returns. After an error none of them may be relied on.
    pub(super) fn commit(&self, rows: &[BlobRow<'_>]) -> io::Result<()> {
        let small = self.db.cf_handle(SMALL);
        let mut batch = WriteBatch::default();
        for row in rows {
            let key = row.blob.to_key();
            if let (Some(bytes), Some(small)) = (row.bytes, small) {
                batch.put_cf(small, &key, bytes);
            }
            batch.put(&key, row.record.encode());
        }
        let mut synced = WriteOptions::default();
        synced.set_sync(true);
        failpoint::hit(Point::StoreBeforeWrite)?;
        self.db.write_opt(batch, &synced).map_err(|error| io_error(&error))?;
        Ok(failpoint::hit(Point::StoreAfterWrite)?)
    }
}

fn readable(key: &[u8], value: &[u8]) -> Option<Record> {
    let record = Record::decode(value);
    if record.is_none() || BlobRef::from_key(key).is_none() {
        tracing::warn!(key = %key.escape_ascii(), value = %value.escape_ascii(), "a row of the index cannot be read; it counts as absent");
        return None;
    }
    record
}

fn read_error(blob: Option<&BlobRef>, error: &rocksdb::Error) -> StoreError {
    match (error.kind(), blob) {
        (ErrorKind::Corruption, Some(blob)) => StoreError::Corrupt { blob: *blob, detail: error.to_string() },
        _ => database_error("reading the index", error),
    }
}

fn database_error(context: &str, error: &rocksdb::Error) -> StoreError {
    StoreError::io(context, io_error(error))
}

/// An error of RocksDB as the system's. Its bindings give only text, so that is where a full disk must be recognised.
fn io_error(error: &rocksdb::Error) -> io::Error {
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
    database_error(&format!("opening the index in {}", path.display()), error)
}

#[cfg(test)]
mod tests {
    use super::{BlobPlace, Record};

    #[test]
    fn records_round_trip_and_foreign_ones_are_refused() {
        for size in [0, 1, 65_536, u64::MAX] {
            for place in [BlobPlace::Small, BlobPlace::File] {
                let record = Record { size, place };
                assert_eq!(Record::decode(&record.encode()), Some(record));
            }
        }
        let good = Record { size: 7, place: BlobPlace::File }.encode();
        assert_eq!(Record::decode(&[]), None);
        assert_eq!(Record::decode(&good[..9]), None);
        assert_eq!(Record::decode(&[good.as_slice(), &[0]].concat()), None);
        assert_eq!(Record::decode(&[2, 1, 0, 0, 0, 0, 0, 0, 0, 7]), None);
        assert_eq!(Record::decode(&[1, 2, 0, 0, 0, 0, 0, 0, 0, 7]), None);
    }
}
