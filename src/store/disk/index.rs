//! The index, and the small blobs beside it, in one RocksDB.
//!
//! | column family | key | value |
//! |---|---|---|
//! | `default` | [`BlobRef::to_key`] | record: version 1, place (0 small, 1 file), size (8 bytes, big-endian) |
//! | `small` | [`BlobRef::to_key`] | the bytes of the blob; in BlobDB files, apart from the keys |
//!
//! Both rows of a small blob are one batch. Keeping the records apart from the bytes lets `stat` and `enumerate` read only
//! records. A record that cannot be read counts as absent, with a warning, so that receiving the blob again repairs it.

use super::database::{Database, SMALL, io_error};
use crate::blob::{BlobMeta, BlobRef};
use crate::failpoint::{self, Point};
use crate::store::StoreError;
use bytes::Bytes;
use rocksdb::{ErrorKind, ReadOptions, WriteBatch, WriteOptions};
use std::io;
use std::path::Path;

const RECORD_VERSION: u8 = 1;

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

/// See the module's header.
pub(super) struct Index {
    database: Database,
}

impl Index {
    /// Opens the database in this folder; see [`Database::open`].
    pub(super) fn open(path: &Path, create: bool) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(path, create)? })
    }

    /// Knows whether it can be written.
    pub(super) fn database(&self) -> &Database {
        &self.database
    }

    /// What is known of a blob.
    pub(super) fn get(&self, blob: &BlobRef) -> Result<Option<Record>, StoreError> {
        let db = self.database.db()?;
        let value = db.get_pinned(blob.to_key()).map_err(|error| read_error(Some(blob), &error))?;
        Ok(value.and_then(|value| readable(&blob.to_key(), &value)))
    }

    /// What is known of each of these blobs, in their order.
    pub(super) fn get_many(&self, blobs: &[BlobRef]) -> Vec<Result<Option<Record>, StoreError>> {
        let keys: Vec<Vec<u8>> = blobs.iter().map(BlobRef::to_key).collect();
        let one_by_one = || blobs.iter().map(|blob| self.get(blob)).collect();
        let Ok(db) = self.database.db() else { return one_by_one() };
        let Some(records) = db.cf_handle(rocksdb::DEFAULT_COLUMN_FAMILY_NAME) else { return one_by_one() };
        let values = db.batched_multi_get_cf(records, &keys, false);
        let read = |(blob, value): (&BlobRef, Result<Option<rocksdb::DBPinnableSlice<'_>>, rocksdb::Error>)| {
            let value = value.map_err(|error| read_error(Some(blob), &error))?;
            Ok(value.and_then(|value| readable(&blob.to_key(), &value)))
        };
        blobs.iter().zip(values).map(read).collect()
    }

    /// The bytes of each of these small blobs, in their order.
    pub(super) fn bytes_many(&self, blobs: &[BlobRef]) -> Vec<Result<Option<Bytes>, StoreError>> {
        let one_by_one = || blobs.iter().map(|blob| Ok(self.bytes(blob)?.map(Bytes::from))).collect();
        let Ok(db) = self.database.db() else { return one_by_one() };
        let Some(small) = db.cf_handle(SMALL) else { return one_by_one() };
        let keys: Vec<Vec<u8>> = blobs.iter().map(BlobRef::to_key).collect();
        let values = db.batched_multi_get_cf(small, &keys, false);
        let read = |(blob, value): (&BlobRef, Result<Option<rocksdb::DBPinnableSlice<'_>>, rocksdb::Error>)| {
            let value = value.map_err(|error| read_error(Some(blob), &error))?;
            Ok(value.map(|value| Bytes::copy_from_slice(&value)))
        };
        blobs.iter().zip(values).map(read).collect()
    }

    /// The bytes of a small blob.
    pub(super) fn bytes(&self, blob: &BlobRef) -> Result<Option<Vec<u8>>, StoreError> {
        let db = self.database.db()?;
        let missing = || StoreError::io("the index", io::Error::other("the column family of small blobs is not open"));
        let small = db.cf_handle(SMALL).ok_or_else(missing)?;
        db.get_cf(small, blob.to_key()).map_err(|error| read_error(Some(blob), &error))
    }

    /// The blobs with keys from `from`, inclusive, to `to`, exclusive; at most `max` of them.
    pub(super) fn page(&self, from: &[u8], to: &[u8], max: usize) -> Result<IndexPage, StoreError> {
        let mut page = IndexPage { blobs: Vec::with_capacity(max), next: None };
        if from >= to {
            return Ok(page);
        }
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let db = self.database.db()?;
        let mut rows = db.raw_iterator_opt(options);
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
        failpoint::hit(Point::StoreBeforeWrite)?;
        self.database.write(|db| {
            let small = db.cf_handle(SMALL);
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
            db.write_opt(batch, &synced)
        })?;
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
        _ => StoreError::io("reading the index", io_error(error)),
    }
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
