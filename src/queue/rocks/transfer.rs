//! A queue as one file: exported from a folder that nobody uses, imported into one that holds no queue.
//!
//! # The format, version 1
//!
//! The eight bytes `BFQUEUE\n`, then messages, each behind its length as a protobuf varint. All of them are this one:
//!
//! ```proto
//! message Part {
//!   oneof part {
//!     Header header = 1;  // the first one
//!     Row row = 2;
//!     End end = 3;        // the last one, and the end of the file
//!   }
//! }
//! message Header { uint32 version = 1; uint32 queue_format = 2; int64 create_ms = 3; string program = 4; }
//! message Row { string family = 1; bytes key = 2; bytes value = 3; }
//! message End { uint64 rows = 1; bytes sha256 = 2; }  // of all bytes before this message's length
//! ```
//!
//! The rows are those of the database, as the header of `queue::rocks` lists them for `queue_format`: entries with all they
//! have (attempts, failure, trace, visited stores, syncs), the operators' state, the history of syncs, the counters. An
//! importing version brings an older `queue_format` up to date when it opens the queue, and refuses a newer one. What a row
//! of a ref says follows from the entries, and the import makes these rows anew.
//!
//! A file that was cut or changed is refused whole: what is imported stands in a folder of its own, which becomes the queue
//! by a rename when the end was read and matched.

use super::database::{FORMAT, Log, folder, open_database, open_loaded, sync_folder};
use super::error::OpenError;
use super::keys::{self, Seqs};
use super::open::lock;
use super::options::RocksOptions;
use super::row;
use crate::clock::to_unix_ms;
use crate::queue::RouteId;
use crate::queue::damage::{REASON_IMPORTED, sync_needed};
use prost::Message;
use rocksdb::{DB, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

const MAGIC: &[u8; 8] = b"BFQUEUE\n";

const VERSION: u32 = 1;

/// The longest message, in bytes. Rows are far smaller.
const MAX_MESSAGE: u64 = 64 << 20;

/// Rows in one write.
const BATCH: usize = 2_000;

/// Between two reports of progress, in rows.
const REPORT: u64 = 10_000;

#[derive(Clone, PartialEq, Message)]
struct ExportHeader {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint32, tag = "2")]
    queue_format: u32,
    #[prost(uint64, tag = "3")]
    create_ms: u64,
    #[prost(string, tag = "4")]
    program: String,
}

#[derive(Clone, PartialEq, Message)]
struct ExportRow {
    #[prost(string, tag = "1")]
    family: String,
    #[prost(bytes = "vec", tag = "2")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "3")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ExportEnd {
    #[prost(uint64, tag = "1")]
    rows: u64,
    #[prost(bytes = "vec", tag = "2")]
    sha256: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct ExportPart {
    #[prost(message, optional, tag = "1")]
    header: Option<ExportHeader>,
    #[prost(message, optional, tag = "2")]
    row: Option<ExportRow>,
    #[prost(message, optional, tag = "3")]
    end: Option<ExportEnd>,
}

/// Why a queue could not be exported or imported.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TransferError {
    /// The queue's folder or database.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The file could not be read or written.
    #[error("the exported file: {0}")]
    File(#[from] io::Error),
    /// The file is no export, or was cut or changed.
    #[error("the file is no whole export of a queue: {0}; nothing was imported")]
    Invalid(String),
    /// A newer version wrote the file.
    #[error(
        "the file is an export of version {found}, and this version knows version {known}; use the newer version; \
         nothing was imported"
    )]
    Version {
        /// The version found.
        found: u32,
        /// The newest version known here.
        known: u32,
    },
    /// There is a queue where one should be imported.
    #[error("there is a queue in {0} already; an import needs a folder without one")]
    NotEmpty(PathBuf),
    /// There is no queue to export.
    #[error("there is no queue in {0}")]
    Missing(PathBuf),
}

impl From<rocksdb::Error> for TransferError {
    fn from(error: rocksdb::Error) -> Self {
        Self::Open(error.into())
    }
}

/// What was exported or imported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TransferCounts {
    /// Routes.
    pub routes: u64,
    /// Entries.
    pub entries: u64,
    /// Rows of all kinds.
    pub rows: u64,
}

impl TransferCounts {
    fn count(&mut self, family: &str, key: &[u8]) {
        self.rows += 1;
        self.entries += u64::from(family == keys::ENTRY);
        self.routes += u64::from(family == keys::META && key.starts_with(keys::META_ROUTE));
    }
}

/// Exports the queue in this folder. `progress` is told the rows so far.
///
/// # Errors
/// Where the queue is in use or damaged, or the file cannot be written; see [`TransferError`].
pub(crate) fn export(
    dir: &Path,
    options: &RocksOptions,
    now: SystemTime,
    out: &mut dyn Write,
    progress: &mut dyn FnMut(u64),
) -> Result<TransferCounts, TransferError> {
    if !folder(dir).exists() {
        return Err(TransferError::Missing(dir.to_owned()));
    }
    let _lock = lock(dir)?;
    let (db, _) = open_loaded(dir, options, Log::WholeReadOnly, false)?;
    let mut out = Summed { inner: out, sum: Sha256::new() };
    out.write_all(MAGIC)?;
    let program = concat!("blobferry ", env!("CARGO_PKG_VERSION")).to_owned();
    let header = ExportHeader { version: VERSION, queue_format: FORMAT, create_ms: to_unix_ms(now), program };
    put(&mut out, &ExportPart { header: Some(header), ..ExportPart::default() })?;
    let mut done = TransferCounts::default();
    for family in DB::list_cf(&Options::default(), folder(dir))? {
        let Some(handle) = db.cf_handle(&family) else { continue };
        let mut reading = ReadOptions::default();
        reading.fill_cache(false);
        // Rows of refs that only the log has are kept by hash in memory, and in no order without this.
        reading.set_total_order_seek(true);
        for row in db.iterator_cf_opt(handle, reading, IteratorMode::Start) {
            let (key, value) = row?;
            done.count(&family, &key);
            let row = ExportRow { family: family.clone(), key: key.into_vec(), value: value.into_vec() };
            put(&mut out, &ExportPart { row: Some(row), ..ExportPart::default() })?;
            if done.rows.is_multiple_of(REPORT) {
                progress(done.rows);
            }
        }
    }
    let end = ExportEnd { rows: done.rows, sha256: out.sum.clone().finalize().to_vec() };
    put(&mut out, &ExportPart { end: Some(end), ..ExportPart::default() })?;
    out.flush()?;
    Ok(done)
}

/// Imports a queue into a folder that holds none. Every route of it needs a full sync then.
///
/// # Errors
/// Where there is a queue, the file is no whole export, or something cannot be read or written; see [`TransferError`].
/// The folder holds no queue then, as before.
pub(crate) fn import(
    dir: &Path,
    options: &RocksOptions,
    input: &mut dyn Read,
    progress: &mut dyn FnMut(u64),
) -> Result<TransferCounts, TransferError> {
    let _lock = lock(dir)?;
    if folder(dir).exists() {
        return Err(TransferError::NotEmpty(dir.to_owned()));
    }
    // What an import that was cut left behind.
    let draft = dir.join("import");
    if draft.exists() {
        fs::remove_dir_all(&draft).map_err(OpenError::folder(&draft))?;
    }
    fs::create_dir(&draft).map_err(OpenError::folder(&draft))?;
    let imported = fill(&draft, options, input, progress);
    let renamed = imported.and_then(|done| {
        fs::rename(folder(&draft), folder(dir)).map_err(OpenError::folder(dir))?;
        sync_folder(dir)?;
        Ok(done)
    });
    if let Err(error) = fs::remove_dir_all(&draft) {
        tracing::warn!(folder = %draft.display(), %error, "what an import left behind could not be deleted");
    }
    renamed
}

fn fill(
    dir: &Path,
    options: &RocksOptions,
    input: &mut dyn Read,
    progress: &mut dyn FnMut(u64),
) -> Result<TransferCounts, TransferError> {
    let invalid = |what: &str| TransferError::Invalid(what.to_owned());
    let mut input = SummedInput { inner: input, sum: Sha256::new() };
    let mut magic = [0; MAGIC.len()];
    input.fill(&mut magic)?;
    if &magic != MAGIC {
        return Err(invalid("it does not begin like one"));
    }
    let header = next(&mut input)?.header.ok_or_else(|| invalid("it has no header"))?;
    if header.version > VERSION {
        return Err(TransferError::Version { found: header.version, known: VERSION });
    }
    if header.version != VERSION {
        return Err(invalid(&format!("its version is {}, and this program knows {VERSION}", header.version)));
    }
    if header.queue_format > FORMAT {
        return Err(OpenError::Format { found: header.queue_format, known: FORMAT }.into());
    }
    let mut db = open_database(dir, options, Log::Whole)?;
    // Synced as a whole, at the end.
    let mut writing = WriteOptions::default();
    writing.disable_wal(true);
    let mut done = TransferCounts::default();
    let mut routes = Vec::new();
    let mut batch = WriteBatch::default();
    loop {
        let sum = input.sum.clone();
        match next(&mut input)? {
            ExportPart { row: Some(row), header: None, end: None } => {
                done.count(&row.family, &row.key);
                if row.family == keys::META && row.key.starts_with(keys::META_ROUTE) {
                    let route = row::decode_route(&row.value).map_err(|error| invalid(&error.to_string()))?;
                    routes.push(route.name);
                }
                if db.cf_handle(&row.family).is_none() {
                    db.create_cf(&row.family, &Options::default())?;
                }
                let family = db.cf_handle(&row.family).ok_or_else(|| invalid("a family of rows cannot be made"))?;
                if row.family != keys::REF {
                    batch.put_cf(family, &row.key, &row.value);
                }
                if batch.len() >= BATCH {
                    db.write_opt(std::mem::take(&mut batch), &writing)?;
                }
                if done.rows.is_multiple_of(REPORT) {
                    progress(done.rows);
                }
            }
            ExportPart { end: Some(end), header: None, row: None } => {
                if end.rows != done.rows || end.sha256 != sum.finalize().to_vec() {
                    return Err(invalid("its checksum does not match"));
                }
                break;
            }
            _ => return Err(invalid("it has a part that makes no sense")),
        }
    }
    if input.inner.read(&mut [0])? != 0 {
        return Err(invalid("something follows its end"));
    }
    let state = db.cf_handle(keys::STATE).ok_or_else(|| invalid("it has no state"))?;
    for route in &routes {
        let needed = sync_needed(route, REASON_IMPORTED);
        if let Some(value) = needed.value {
            batch.put_cf(state, needed.key, value);
        }
    }
    db.write_opt(batch, &writing)?;
    fill_refs(&db, &writing)?;
    for family in DB::list_cf(&Options::default(), folder(dir))? {
        if let Some(family) = db.cf_handle(&family) {
            db.flush_cf(family)?;
        }
    }
    drop(db);
    // As the next start will read it; nothing of an export that could not be opened stays.
    open_loaded(dir, options, Log::Whole, false).map(drop)?;
    sync_folder(&folder(dir))?;
    Ok(done)
}

/// Makes the rows of refs from those of their entries. Files of versions that did not read refs in order lack some, and have
/// some of entries that are gone: what is announced again would be queued twice, and a successor would never be claimed.
fn fill_refs(db: &DB, writing: &WriteOptions) -> Result<(), TransferError> {
    let missing = |what: &str| TransferError::Invalid(format!("it has no {what}"));
    let entries = db.cf_handle(keys::ENTRY).ok_or_else(|| missing("entries"))?;
    let refs = db.cf_handle(keys::REF).ok_or_else(|| missing("refs"))?;
    for found in db.iterator_cf(entries, IteratorMode::Start) {
        let (key, value) = found?;
        // What cannot be read is set aside when the queue meets it.
        let Some((route, seq)) = key.split_first_chunk::<4>() else { continue };
        let (route, Some(seq)) = (RouteId(u32::from_be_bytes(*route)), keys::number(seq)) else { continue };
        let Ok(stored) = row::decode_entry(route, seq, &value) else { continue };
        let key = keys::reference(route, &stored.entry.blob);
        // Sequences ascend: what is there already is what this one succeeds.
        let seqs = match db.get_cf(refs, &key)?.as_deref().and_then(Seqs::from_row) {
            None => Seqs::One(seq),
            Some(Seqs::One(first)) => Seqs::Two(first, seq),
            Some(_) => continue,
        };
        let mut row = Vec::new();
        seqs.put_row(&mut row);
        db.put_cf_opt(refs, &key, row, writing)?;
    }
    Ok(())
}

fn put(out: &mut dyn Write, part: &ExportPart) -> io::Result<()> {
    out.write_all(&part.encode_length_delimited_to_vec())
}

fn next(input: &mut SummedInput<'_>) -> Result<ExportPart, TransferError> {
    let mut length = 0u64;
    for shift in (0..).step_by(7) {
        let mut byte = [0];
        input.fill(&mut byte)?;
        length |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            break;
        }
        if shift > 21 {
            return Err(TransferError::Invalid("a length makes no sense".to_owned()));
        }
    }
    if length > MAX_MESSAGE {
        return Err(TransferError::Invalid("a length makes no sense".to_owned()));
    }
    let mut bytes = vec![0; usize::try_from(length).unwrap_or(usize::MAX)];
    input.fill(&mut bytes)?;
    ExportPart::decode(bytes.as_slice()).map_err(|error| TransferError::Invalid(error.to_string()))
}

/// A writer that sums up what it writes.
struct Summed<'a> {
    inner: &'a mut dyn Write,
    sum: Sha256,
}

impl Write for Summed<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.sum.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A reader that sums up what it reads.
struct SummedInput<'a> {
    inner: &'a mut dyn Read,
    sum: Sha256,
}

impl SummedInput<'_> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), TransferError> {
        self.inner.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => TransferError::Invalid("it was cut".to_owned()),
            _ => TransferError::File(error),
        })?;
        self.sum.update(&*bytes);
        Ok(())
    }
}
