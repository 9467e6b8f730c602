//! A store in a folder of the local file system.
//!
//! ```text
//! format                          version of this layout; written last when a store is made
//! store-id                        the store's name for ever
//! index/                          RocksDB: the index, and blobs of up to 64 KiB
//! incoming/<random>               large blobs that are being received; cleared when the store is opened
//! blobs/<function>/<2 hex>/<hex>  larger blobs, a file each
//! ```
//!
//! What is not in the index does not exist. A blob is committed in this order, and a crash in between leaves:
//!
//! 1. its bytes come in and are verified (large: written to `incoming/`): a leftover there, removed at the next opening;
//! 2. large: file synced, renamed, folder synced: a whole file that nobody sees, replaced when the blob comes again;
//! 3. record (small: and bytes) in one synced batch of the committer (`disk/commit.rs`): all or nothing;
//! 4. the answer.
//!
//! A receiver dropped at any of these points leaves no more than a crash does, and its file in `incoming/` goes at once.
//!
//! Memory is bounded: two buffers of about 1 MiB for each blob that is received, two chunks for each one that is read, one
//! page for each enumeration. Nothing blocks the runtime: `disk/io.rs` is the one way to the disk. An enumeration seeks anew for
//! each page, so that a slow reader holds neither a thread nor old files; as nothing is ever deleted, it still lists every
//! blob that was there when it began.
//!
//! Not here: deleting, and finding files that the index does not know.

mod commit;
mod cursor;
mod database;
mod files;
mod index;
mod io;

use super::packed::{Answers, MAX_PACKED_BYTES, Packed, Parcel, Want, receive_each};
use super::{
    ByteRange, ByteStream, Disposition, EnumerateRange, Enumeration, Fetched, Put, Received, Store, StoreError,
    StoreInfo,
};
use crate::blob::{BlobMeta, BlobRef, Mismatch, Verifier};
use crate::clock::Entropy;
use crate::failpoint::{self, Point};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use commit::{BlobCommitter, VerifiedBlob};
use cursor::Cursor;
use files::{Files, Sink};
use futures::StreamExt;
use futures::stream;
use index::{BlobPlace, Index, Record};
use io::{BlockingJob, Io};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Blobs of up to this many bytes lie in RocksDB.
const SMALL_BYTES: usize = 64 * 1024;

/// Bytes gathered before they are written to a file.
const WRITE_BYTES: usize = 1024 * 1024;

/// Bytes in a chunk that is read, at most.
const CHUNK_BYTES: usize = 256 * 1024;

/// Refs in one call of `stat`, at most.
const STAT_BLOBS: usize = 10_000;

/// The layout that this code reads and writes.
const FORMAT: &str = "blobferry-store 1";

/// A store in a folder.
pub struct DiskStore {
    id: String,
    shared: Arc<DiskShared>,
    io: Io,
    committer: BlobCommitter,
}

/// What blocking jobs use.
struct DiskShared {
    index: Arc<Index>,
    files: Files,
}

impl DiskStore {
    /// Opens the store in this folder, and makes it where the folder is missing or empty. `entropy` names it, and files that
    /// are not whole yet.
    ///
    /// [`StoreError::Invalid`] where the folder holds something else, a store of another format or a part of one, or is in
    /// use, also by this process. A store that was dropped leaves its folder once its last reads have ended.
    pub async fn open(folder: impl Into<PathBuf>, entropy: Arc<Entropy>) -> Result<Self, StoreError> {
        let folder = folder.into();
        failpoint::pause(Point::StoreOpen).await?;
        let io = Io::new();
        let (id, shared) = io.run(move || open(&folder, &entropy)).await?;
        let committer = BlobCommitter::start(shared.index.clone());
        let committer = committer.map_err(|error| StoreError::io("starting the writer of the index", error))?;
        Ok(Self { id, shared: Arc::new(shared), io, committer })
    }

    /// Cancelled when nothing will be written any more: the store was dropped, or its writer panicked.
    pub fn ended(&self) -> CancellationToken {
        self.committer.ended.clone()
    }

    /// Why it cannot write, if it cannot: for people. Tries to mend that, such as when a file system is no longer read-only; it
    /// goes on for as long as somebody asks, once a second or so.
    pub async fn trouble(&self) -> Option<String> {
        let shared = self.shared.clone();
        // Fails only where the process is stopping.
        self.io.run(move || Ok(shared.index.database().mend())).await.ok().flatten()
    }

    /// Closes the store, away from the runtime's threads: RocksDB first ends what it does in the background. A store that
    /// is merely dropped is as safe.
    pub async fn close(self) -> Result<(), StoreError> {
        let io = self.io.clone();
        io.run(move || {
            drop(self);
            Ok(())
        })
        .await
    }

    /// Receives a blob that is, or may be, too large for the index; `head` is what came of it already.
    async fn receive_file(&self, put: &Put, head: BytesMut, bytes: ByteStream) -> Result<Received, StoreError> {
        let received = self.write_file(put, head, bytes).await;
        if let Err(StoreError::Io { source, .. }) = &received {
            self.shared.index.database().file_failed(source);
        }
        received
    }

    async fn write_file(&self, put: &Put, head: BytesMut, mut bytes: ByteStream) -> Result<Received, StoreError> {
        let (blob, stated) = (put.blob, put.size);
        let shared = self.shared.clone();
        let known = if put.replace { KnownBlob::Absent } else { self.io.run(move || shared.sound(&blob)).await? };
        let shared = self.shared.clone();
        let verify_only = known == KnownBlob::Sound;
        let open = move || if verify_only { Ok(Sink::verify(blob, stated)) } else { shared.files.write(blob, stated) };
        // One buffer fills while the one before it is hashed and written.
        let mut job = self.io.start(open).await?;
        let mut buffer = head;
        while let Some(chunk) = bytes.next().await {
            buffer.extend_from_slice(&chunk.map_err(|error| StoreError::Input(Box::new(error)))?);
            if buffer.len() >= WRITE_BYTES {
                let full = std::mem::replace(&mut buffer, BytesMut::with_capacity(WRITE_BYTES));
                let sink: Sink = job.end().await??;
                job = self.io.start(move || sink.write(&full)).await?;
            }
        }
        let sink = job.end().await??;
        let shared = self.shared.clone();
        let size = self.io.run(move || sink.finish(&buffer, &shared.files)).await?;
        let mut was_new = false;
        if !verify_only {
            let record = Record { size, place: BlobPlace::File };
            let replace = put.replace || known == KnownBlob::Damaged;
            was_new = self.committer.commit(VerifiedBlob { blob, record, bytes: None, replace }).await?;
            failpoint::pause(Point::StoreReceived).await?;
        }
        Ok(Received { blob, size, disposition: Disposition::Stored, was_new })
    }

    /// Commits a blob that lies whole in memory.
    async fn receive_small(&self, put: Put, bytes: Bytes) -> Result<Received, StoreError> {
        let entry = verified(Parcel { put, bytes, trace: None })?;
        let (blob, size) = (entry.blob, entry.record.size);
        let was_new = self.committer.commit(entry).await?;
        failpoint::pause(Point::StoreReceived).await?;
        Ok(Received { blob, size, disposition: Disposition::Stored, was_new })
    }

    /// The rest of a file, in chunks: the next one is read while one is on its way.
    fn chunks(&self, job: BlockingJob<ReadChunk>) -> ByteStream {
        let io = self.io.clone();
        stream::unfold(Some(job), move |job| {
            let io = io.clone();
            async move {
                match next_chunk(&io, job?).await {
                    Ok((chunk, next)) => Some((Ok(chunk), next)),
                    Err(error) => Some((Err(error), None)),
                }
            }
        })
        .boxed()
    }
}

/// A chunk of a file, and the reader if there is more.
type FileChunk = (Bytes, Option<files::Reader>);

type ReadChunk = Result<FileChunk, StoreError>;

fn read_chunk(mut reader: files::Reader) -> ReadChunk {
    failpoint::hit(Point::StoreChunk)?;
    let chunk = reader.next(CHUNK_BYTES)?;
    Ok((chunk, (!reader.is_done()).then_some(reader)))
}

async fn next_chunk(
    io: &Io,
    job: BlockingJob<ReadChunk>,
) -> Result<(Bytes, Option<BlockingJob<ReadChunk>>), StoreError> {
    let (chunk, rest) = job.end().await??;
    let next = match rest {
        Some(reader) => Some(io.start(move || read_chunk(reader)).await?),
        None => None,
    };
    Ok((chunk, next))
}

fn open(folder: &Path, entropy: &Arc<Entropy>) -> Result<(String, DiskShared), StoreError> {
    let at = |error| StoreError::io(format!("opening the store in {}", folder.display()), error);
    match files::create_folder(folder) {
        // The folder above may be closed to us; whoever made this one answers for its entry there.
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied && folder.is_dir() => {}
        made => made.map_err(at)?,
    }
    let format = files::read_whole(&folder.join("format")).map_err(at)?;
    match &format {
        Some(format) if format == FORMAT => {}
        Some(format) => {
            let format = crate::blob::Excerpt::of(format);
            return Err(StoreError::Invalid(format!(
                "{} holds a store of the format {format}, and this version knows {FORMAT:?}; use the version that wrote it",
                folder.display()
            )));
        }
        None => refuse_foreign(folder)?,
    }
    // A store that was made once must have its parts: an empty index in place of a lost one would disown every blob.
    let index = Index::open(&folder.join("index"), format.is_none())?;
    // From here on RocksDB's lock is ours.
    let files = Files::open(folder, entropy.clone()).map_err(at)?;
    let id = match files::read_whole(&folder.join("store-id")).map_err(at)? {
        Some(id) if !id.is_empty() => id,
        _ if format.is_some() => {
            return Err(StoreError::Invalid(format!(
                "{} has lost its store-id; put it back, or receive its blobs again into a new folder",
                folder.display()
            )));
        }
        _ => {
            let id = entropy.name();
            files::write_whole(folder, "store-id", &id).map_err(at)?;
            id
        }
    };
    if format.is_none() {
        // Last, so that it promises the other parts.
        files::write_whole(folder, "format", FORMAT).map_err(at)?;
    }
    Ok((id, DiskShared { index: Arc::new(index), files }))
}

/// Refuses a folder that has something in it which making a store does not leave behind.
fn refuse_foreign(folder: &Path) -> Result<(), StoreError> {
    let at = |error| StoreError::io(format!("opening the store in {}", folder.display()), error);
    for entry in std::fs::read_dir(folder).map_err(at)? {
        let name = entry.map_err(at)?.file_name();
        let ours = ["index", "incoming", "blobs", "store-id", "store-id.tmp", "format.tmp", "lost+found"];
        if !ours.iter().any(|ours| name == *ours) {
            return Err(StoreError::Invalid(format!(
                "{} is not a store and not empty (it has {name:?}); give the store a folder of its own",
                folder.display()
            )));
        }
    }
    Ok(())
}

/// What is known of a blob that is about to be received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KnownBlob {
    Absent,
    /// In the index, and its bytes seem to be there.
    Sound,
    /// In the index, but its file is gone or has another size.
    Damaged,
}

impl DiskShared {
    fn sound(&self, blob: &BlobRef) -> Result<KnownBlob, StoreError> {
        Ok(match self.index.get(blob)? {
            None => KnownBlob::Absent,
            Some(Record { place: BlobPlace::Small, .. }) => KnownBlob::Sound,
            Some(Record { place: BlobPlace::File, size }) if self.files.holds(blob, size) => KnownBlob::Sound,
            Some(_) => KnownBlob::Damaged,
        })
    }

    /// Small blobs, verified; for each a result, in their order.
    fn read_packed(&self, blobs: &[BlobRef]) -> Vec<Result<Packed, StoreError>> {
        let records = self.index.get_many(blobs);
        let is_small = |record: &Result<Option<Record>, StoreError>| matches!(record, Ok(Some(Record { place: BlobPlace::Small, size })) if *size <= MAX_PACKED_BYTES);
        let small: Vec<BlobRef> =
            blobs.iter().zip(&records).filter(|(_, record)| is_small(record)).map(|(blob, _)| *blob).collect();
        let mut bytes = self.index.bytes_many(&small).into_iter();
        let read = |(blob, record): (&BlobRef, Result<Option<Record>, StoreError>)| {
            if is_small(&record) {
                let bytes = bytes.next().unwrap_or(Ok(None))?;
                let size = record?.map(|record| record.size).unwrap_or_default();
                return Ok(Packed::Whole(whole(*blob, size, bytes)?));
            }
            match record?.ok_or(StoreError::Missing(*blob))? {
                Record { size, .. } if size > MAX_PACKED_BYTES => Ok(Packed::TooLarge { size }),
                // A file although it is small.
                _ => {
                    let (size, (bytes, rest)) = self.read(*blob, ByteRange::default())?;
                    Ok(if rest.is_some() { Packed::TooLarge { size } } else { Packed::Whole(bytes) })
                }
            }
        };
        blobs.iter().zip(records).map(read).collect()
    }

    /// The bytes of a small blob, or the first chunk of a file, of the range. A read of the whole blob is verified.
    fn read(&self, blob: BlobRef, range: ByteRange) -> Result<(u64, FileChunk), StoreError> {
        let Record { size, place } = self.index.get(&blob)?.ok_or(StoreError::Missing(blob))?;
        let (start, end) = range.within(size)?;
        if place == BlobPlace::File {
            let reader = self.files.read(blob, size, start, end)?;
            return Ok((size, read_chunk(reader)?));
        }
        let bytes = self.index.bytes(&blob)?.map(Bytes::from);
        if start == 0 && end == size {
            return Ok((size, (whole(blob, size, bytes)?, None)));
        }
        let bytes = sized(blob, size, bytes)?;
        let (Ok(start), Ok(end)) = (usize::try_from(start), usize::try_from(end)) else {
            return Err(StoreError::Corrupt { blob, detail: format!("a small blob of {size} bytes") });
        };
        Ok((size, (bytes.slice(start..end), None)))
    }
}

/// The bytes that lie in the place of a small blob, if they are as many as its record says.
fn sized(blob: BlobRef, size: u64, bytes: Option<Bytes>) -> Result<Bytes, StoreError> {
    let corrupt = |detail: String| StoreError::Corrupt { blob, detail };
    let bytes = bytes.ok_or_else(|| corrupt("its bytes are gone".to_owned()))?;
    if bytes.len() as u64 != size {
        return Err(corrupt(format!("{} bytes lie in the place of {size}", bytes.len())));
    }
    Ok(bytes)
}

/// The same, if they are the blob's.
fn whole(blob: BlobRef, size: u64, bytes: Option<Bytes>) -> Result<Bytes, StoreError> {
    let bytes = sized(blob, size, bytes)?;
    if blob.function().ref_of(&bytes) != blob {
        return Err(StoreError::Corrupt { blob, detail: "its bytes have another digest".to_owned() });
    }
    Ok(bytes)
}

#[async_trait]
impl Store for DiskStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        Ok(StoreInfo::of_own(&self.id, "disk"))
    }

    async fn stat(&self, blobs: &[BlobRef]) -> Result<Vec<BlobMeta>, StoreError> {
        if blobs.len() > STAT_BLOBS {
            return Err(StoreError::Invalid(format!("{} refs at once; ask for at most {STAT_BLOBS}", blobs.len())));
        }
        failpoint::pause(Point::StoreStat).await?;
        let blobs = blobs.to_vec();
        let shared = self.shared.clone();
        let found = move || {
            let records = shared.index.get_many(&blobs).into_iter();
            let metas =
                records.zip(blobs).map(|(record, blob)| Ok(record?.map(|Record { size, .. }| BlobMeta { blob, size })));
            metas.filter_map(Result::transpose).collect()
        };
        self.io.run(found).await
    }

    async fn fetch(&self, blob: BlobRef, range: ByteRange) -> Result<Fetched, StoreError> {
        failpoint::pause(Point::StoreFetch).await?;
        let shared = self.shared.clone();
        let (size, (first, rest)) = self.io.run(move || shared.read(blob, range)).await?;
        if first.is_empty() {
            return Ok(Fetched { size, bytes: stream::empty().boxed() });
        }
        let first = stream::once(std::future::ready(Ok(first)));
        let bytes = match rest {
            Some(reader) => first.chain(self.chunks(self.io.start(move || read_chunk(reader)).await?)).boxed(),
            None => first.boxed(),
        };
        Ok(Fetched { size, bytes })
    }

    async fn receive(&self, put: Put, mut bytes: ByteStream) -> Result<Received, StoreError> {
        if put.size.is_some_and(|stated| stated > SMALL_BYTES as u64) {
            return self.receive_file(&put, BytesMut::with_capacity(WRITE_BYTES), bytes).await;
        }
        // Most small blobs come in one chunk, which is kept as it is.
        let mut only = Bytes::new();
        let mut many = BytesMut::new();
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|error| StoreError::Input(Box::new(error)))?;
            if only.is_empty() && many.is_empty() {
                only = chunk;
            } else {
                many.extend_from_slice(&std::mem::take(&mut only));
                many.extend_from_slice(&chunk);
            }
            let came = only.len() + many.len();
            if let Some(stated) = put.size
                && came as u64 > stated
            {
                return Err(Mismatch::TooLong { stated }.into());
            }
            if came > SMALL_BYTES {
                many.extend_from_slice(&only);
                return self.receive_file(&put, many, bytes).await;
            }
        }
        let whole = if many.is_empty() { only } else { many.freeze() };
        self.receive_small(put, whole).await
    }

    async fn receive_packed(
        &self,
        parcels: Vec<Parcel>,
        answers: &mut dyn Answers<Received>,
    ) -> Result<(), StoreError> {
        answers.all_sent();
        if parcels.iter().any(|parcel| parcel.bytes.len() > SMALL_BYTES) {
            // Files are written one by one.
            receive_each(self, parcels, answers).await;
            return Ok(());
        }
        // Fails only where the process is stopping.
        let verified = self.io.run(move || Ok(parcels.into_iter().map(verified).collect::<Vec<_>>())).await?;
        let (entries, stated): (Vec<_>, Vec<_>) = verified
            .into_iter()
            .map(|entry| match entry {
                Ok(entry) => {
                    let stated = (entry.blob, entry.record.size);
                    (Some(entry), Ok(stated))
                }
                Err(error) => (None, Err(error)),
            })
            .unzip();
        let mut verdicts = self.committer.commit_all(entries.into_iter().flatten().collect()).await.into_iter();
        let received = |stated: Result<(BlobRef, u64), StoreError>| {
            let (blob, size) = stated?;
            let was_new = verdicts.next().unwrap_or(Ok(false))?;
            Ok(Received { blob, size, disposition: Disposition::Stored, was_new })
        };
        for (at, answer) in stated.into_iter().map(received).enumerate() {
            answers.answer(at, answer);
        }
        Ok(())
    }

    async fn fetch_packed(&self, wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> Result<(), StoreError> {
        let shared = self.shared.clone();
        let blobs: Vec<BlobRef> = wants.into_iter().map(|want| want.blob).collect();
        let found = self.io.run(move || Ok(shared.read_packed(&blobs))).await?;
        for (at, answer) in found.into_iter().enumerate() {
            answers.answer(at, answer);
        }
        Ok(())
    }

    async fn enumerate(&self, range: EnumerateRange) -> Result<Enumeration, StoreError> {
        let cursor = Cursor::new(self.shared.clone(), self.io.clone(), &range);
        let pages = stream::unfold(Some(cursor), |cursor| async move {
            match cursor?.page().await {
                Ok((page, next)) => Some((Ok(page), next)),
                Err(error) => Some((Err(error), None)),
            }
        });
        Ok(pages.boxed())
    }
}

/// A small blob, ready to be committed.
fn verified(parcel: Parcel) -> Result<VerifiedBlob, StoreError> {
    let Parcel { put, bytes, .. } = parcel;
    let mut verifier = Verifier::new(put.blob, put.size);
    verifier.update(&bytes)?;
    let record = Record { size: verifier.finish()?, place: BlobPlace::Small };
    Ok(VerifiedBlob { blob: put.blob, record, bytes: Some(bytes), replace: put.replace })
}

#[cfg(test)]
mod tests;
