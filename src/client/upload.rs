//! Files into a store: identify (hash), skip what the store holds, write the rest, many at a time.
//!
//! A file is read twice unless it is small: its ref must be known before its first byte may be sent. A file that changes in
//! between is noticed by the store, which verifies, and fails alone.

use crate::blob::{BlobMeta, BlobRef, DigestFunction, Hasher};
use crate::store::packed::{Parcel, packs, receive_all};
use crate::store::{ByteStream, Disposition, Put, Received, Store, StoreError};
use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use std::collections::HashSet;
use std::io::{ErrorKind, Read as _};
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt as _;

/// The bytes of a file up to this size are kept from hashing to sending.
const KEPT_BYTES: u64 = 64 << 10;
/// One read, and one chunk on the wire.
const CHUNK_BYTES: usize = 256 << 10;
/// Files in one question what the store holds already.
const PAGE: usize = 256;

/// A file and the blob that it is.
#[derive(Clone, Debug)]
pub struct LocalFile {
    /// Where it is.
    pub path: PathBuf,
    /// Its ref and its size.
    pub meta: BlobMeta,
    // All its bytes, where they are few.
    bytes: Option<Bytes>,
}

impl LocalFile {
    /// A blob that exists in memory only; `path` is what it is called in messages.
    pub fn from_bytes(path: PathBuf, function: DigestFunction, bytes: Bytes) -> Self {
        let meta = BlobMeta { blob: function.ref_of(&bytes), size: bytes.len() as u64 };
        Self { path, meta, bytes: Some(bytes) }
    }

    /// The bytes, where the file is so small that they were kept.
    pub fn kept_bytes(&self) -> Option<&Bytes> {
        self.bytes.as_ref()
    }
}

/// Why a file did not become a blob of the store.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {cause}", path = path.display())]
pub struct UploadError {
    /// The file.
    pub path: PathBuf,
    /// What went wrong.
    #[source]
    pub cause: UploadCause,
}

/// What went wrong with a file.
#[derive(Debug, thiserror::Error)]
pub enum UploadCause {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(std::io::Error),
    /// It was changed while it was being read.
    #[error("was changed while it was being read")]
    Changed,
    /// The store did not take it.
    #[error("{0}")]
    Store(StoreError),
    /// The store confirmed something else than this blob.
    #[error("the store confirmed another blob, another size, or that it does not keep it")]
    Unconfirmed,
}

impl UploadError {
    /// Whether it is about this file alone, so that the next may succeed.
    pub fn is_of_one_file(&self) -> bool {
        match &self.cause {
            UploadCause::Read(_) | UploadCause::Changed => true,
            UploadCause::Unconfirmed => false,
            UploadCause::Store(error) => match error {
                StoreError::Mismatch(_) | StoreError::TooLarge { .. } | StoreError::Invalid(_) => true,
                StoreError::Input(_) | StoreError::Corrupt { .. } | StoreError::Missing(_) => true,
                // A server of ours gives a reason, and the blob's own are answered with these codes.
                StoreError::Peer(error) => {
                    error.reason.is_some()
                        && matches!(error.code, tonic::Code::InvalidArgument | tonic::Code::OutOfRange)
                }
                _ => false,
            },
        }
    }
}

/// A file that is a blob of the store now.
#[derive(Clone, Debug)]
pub struct Uploaded {
    /// The file and its blob.
    pub file: LocalFile,
    /// Whether its bytes were sent; otherwise the store held it already.
    pub was_sent: bool,
}

/// How files are written.
#[derive(Clone, Copy, Debug)]
pub struct UploadPlan {
    /// The digest function of the refs.
    pub function: DigestFunction,
    /// How many files are hashed, and how many are sent, at a time; at least 1.
    pub streams: usize,
    /// Ask first what the store holds; needs its ability to stat.
    pub skip_present: bool,
    /// Write also what the store holds: the bytes that it has of it may be damaged.
    pub replace: bool,
}

/// Hashes a file, on a thread for blocking work.
///
/// # Errors
/// Where it cannot be read.
pub async fn identify(path: PathBuf, function: DigestFunction) -> Result<LocalFile, UploadError> {
    let at = path.clone();
    let cause = match tokio::task::spawn_blocking(move || hash(&at, function)).await {
        Ok(Ok((meta, bytes))) => return Ok(LocalFile { path, meta, bytes }),
        Ok(Err(error)) => error,
        Err(error) => std::io::Error::other(error),
    };
    Err(UploadError { path, cause: UploadCause::Read(cause) })
}

fn hash(path: &Path, function: DigestFunction) -> std::io::Result<(BlobMeta, Option<Bytes>)> {
    let mut file = std::fs::File::open(path)?;
    let mut hasher = Hasher::new(function);
    let mut kept = Vec::new();
    // One byte more than is kept tells whether it was all.
    (&mut file).take(KEPT_BYTES + 1).read_to_end(&mut kept)?;
    hasher.update(&kept);
    let mut size = kept.len() as u64;
    if size <= KEPT_BYTES {
        return Ok((BlobMeta { blob: hasher.finish(), size }, Some(kept.into())));
    }
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => {
                hasher.update(&buffer[..read]);
                size += read as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok((BlobMeta { blob: hasher.finish(), size }, None))
}

/// The bytes of an identified file.
fn bytes_of(file: &LocalFile) -> ByteStream {
    if let Some(bytes) = &file.bytes {
        let bytes = bytes.clone();
        return if bytes.is_empty() { stream::empty().boxed() } else { stream::iter([Ok(bytes)]).boxed() };
    }
    let path = file.path.clone();
    let failed = |path: &Path, error| StoreError::io(format!("reading {}", path.display()), error);
    stream::try_unfold((path, None), move |(path, open)| async move {
        let mut file = match open {
            Some(file) => file,
            None => tokio::fs::File::open(&path).await.map_err(|error| failed(&path, error))?,
        };
        let mut chunk = Vec::with_capacity(CHUNK_BYTES);
        // To the brim: a read may give less than was asked for.
        let limit = CHUNK_BYTES as u64;
        (&mut file).take(limit).read_to_end(&mut chunk).await.map_err(|error| failed(&path, error))?;
        Ok(if chunk.is_empty() { None } else { Some((Bytes::from(chunk), (path, Some(file)))) })
    })
    .boxed()
}

/// Writes one file to a store, and checks what the store confirms.
///
/// # Errors
/// See [`UploadCause`].
pub async fn send(store: &dyn Store, file: LocalFile, replace: bool) -> Result<Uploaded, UploadError> {
    let BlobMeta { blob, size } = file.meta;
    let put = Put { blob, size: Some(size), replace };
    let result = store.receive(put, bytes_of(&file)).await;
    uploaded(file, result)
}

/// Checks what the store confirms of a file.
fn uploaded(file: LocalFile, result: Result<Received, StoreError>) -> Result<Uploaded, UploadError> {
    let BlobMeta { blob, size } = file.meta;
    let cause = match result {
        Ok(got) if (got.blob, got.size, got.disposition) == (blob, size, Disposition::Stored) => {
            return Ok(Uploaded { file, was_sent: true });
        }
        Ok(_) => UploadCause::Unconfirmed,
        Err(error) if error.is_mismatch() => UploadCause::Changed,
        Err(error) => UploadCause::Store(error),
    };
    Err(UploadError { path: file.path, cause })
}

/// Writes small files to a store together, and checks what it confirms of each.
async fn send_pack(store: &dyn Store, files: Vec<LocalFile>, replace: bool) -> Vec<Result<Uploaded, UploadError>> {
    let parcel = |file: &LocalFile| {
        let BlobMeta { blob, size } = file.meta;
        let put = Put { blob, size: Some(size), replace };
        Parcel { put, bytes: file.bytes.clone().unwrap_or_default(), trace: None }
    };
    let results = receive_all(store, files.iter().map(parcel).collect()).await;
    files.into_iter().zip(results).map(|(file, result)| uploaded(file, result)).collect()
}

/// What is sent in one go.
enum UploadStep {
    /// The store holds it already.
    Skip(LocalFile),
    Send(LocalFile),
    Pack(Vec<LocalFile>),
    Fail(UploadError),
}

/// What is to be done with a page of files, of which the store holds some.
fn steps(page: Vec<Result<LocalFile, UploadError>>, present: &HashSet<BlobRef>) -> Vec<UploadStep> {
    let mut steps = Vec::new();
    let mut small = Vec::new();
    for file in page {
        match file {
            Err(error) => steps.push(UploadStep::Fail(error)),
            Ok(file) if present.contains(&file.meta.blob) => steps.push(UploadStep::Skip(file)),
            Ok(file) if file.bytes.is_some() => small.push(file),
            Ok(file) => steps.push(UploadStep::Send(file)),
        }
    }
    // First: they are soon done, and what is large takes its time.
    let packed = packs(small, |file| file.bytes.as_ref().map_or(0, Bytes::len)).into_iter().map(UploadStep::Pack);
    steps.splice(0..0, packed);
    steps
}

/// Writes files to a store; results come in any order, as they are ready. Nothing is read ahead of the consumer by more
/// than a few pages. Small files travel packed where the store can.
///
/// The stream goes on behind an error; whether that makes sense, [`UploadError::is_of_one_file`] says.
pub fn upload_all<'a>(
    store: &'a dyn Store,
    paths: impl Stream<Item = PathBuf> + Send + 'a,
    plan: UploadPlan,
) -> impl Stream<Item = Result<Uploaded, UploadError>> + Send + 'a {
    let identified = paths.map(move |path| identify(path, plan.function)).buffer_unordered(plan.streams);
    let pages = identified.ready_chunks(PAGE).map(move |page| async move {
        let present = if plan.skip_present && !plan.replace { present(store, &page).await } else { Ok(HashSet::new()) };
        (page, present)
    });
    pages
        .buffered(1)
        .flat_map(|(page, present)| {
            stream::iter(match present {
                Ok(present) => steps(page, &present),
                Err(failure) => vec![UploadStep::Fail(failure)],
            })
        })
        .map(move |step| async move {
            match step {
                UploadStep::Skip(file) => vec![Ok(Uploaded { file, was_sent: false })],
                UploadStep::Send(file) => vec![send(store, file, plan.replace).await],
                UploadStep::Pack(files) => send_pack(store, files, plan.replace).await,
                UploadStep::Fail(error) => vec![Err(error)],
            }
        })
        .buffer_unordered(plan.streams)
        .flat_map(stream::iter)
}

/// Which of these files' blobs the store holds, in the same size. Where it cannot tell, the page's first file stands for it.
async fn present(store: &dyn Store, page: &[Result<LocalFile, UploadError>]) -> Result<HashSet<BlobRef>, UploadError> {
    let files = || page.iter().filter_map(|file| file.as_ref().ok());
    let blobs: Vec<BlobRef> = files().map(|file| file.meta.blob).collect();
    let Some(first) = files().next() else {
        return Ok(HashSet::new());
    };
    match store.stat(&blobs).await {
        Ok(held) => {
            let held: HashSet<(BlobRef, u64)> = held.into_iter().map(|meta| (meta.blob, meta.size)).collect();
            let present = files().filter(|file| held.contains(&(file.meta.blob, file.meta.size)));
            Ok(present.map(|file| file.meta.blob).collect())
        }
        Err(error) => Err(UploadError { path: first.path.clone(), cause: UploadCause::Store(error) }),
    }
}

#[cfg(test)]
mod tests {
    use super::{KEPT_BYTES, LocalFile, UploadCause, UploadError, UploadPlan, Uploaded, identify, send, upload_all};
    use crate::blob::DigestFunction;
    use crate::store::memory::MemoryStore;
    use crate::store::{ByteRange, PeerError, Store, StoreError};
    use bytes::Bytes;
    use futures::stream::{self, StreamExt as _};
    use std::path::{Path, PathBuf};
    use tonic::Code;

    const PLAN: UploadPlan =
        UploadPlan { function: DigestFunction::Sha256, streams: 4, skip_present: true, replace: false };

    fn files(dir: &Path) -> Vec<PathBuf> {
        let sizes = [0, 1, 1, KEPT_BYTES, KEPT_BYTES + 1, 3_000_000];
        let write = |(number, size): (usize, u64)| {
            let path = dir.join(number.to_string());
            std::fs::write(&path, vec![7; usize::try_from(size).unwrap()]).unwrap();
            path
        };
        sizes.into_iter().enumerate().map(write).collect()
    }

    async fn upload(store: &dyn Store, paths: Vec<PathBuf>) -> Vec<Result<Uploaded, UploadError>> {
        upload_all(store, stream::iter(paths), PLAN).collect().await
    }

    #[tokio::test]
    async fn files_of_all_sizes_arrive_and_are_sent_once() {
        let (dir, store) = (tempfile::tempdir().unwrap(), MemoryStore::new("a", 1 << 30));
        let paths = files(dir.path());
        let first = upload(&store, paths.clone()).await;
        assert_eq!(first.len(), paths.len());
        for uploaded in first {
            let file = uploaded.unwrap().file;
            let fetched = store.fetch(file.meta.blob, ByteRange::default()).await.unwrap();
            let chunks: Vec<_> = fetched.bytes.map(Result::unwrap).collect().await;
            assert_eq!(chunks.concat(), std::fs::read(&file.path).unwrap());
        }
        let again = upload(&store, paths).await;
        assert!(again.into_iter().all(|uploaded| !uploaded.unwrap().was_sent));
    }

    #[tokio::test]
    async fn one_unreadable_file_fails_alone() {
        let (dir, store) = (tempfile::tempdir().unwrap(), MemoryStore::new("a", 1 << 30));
        let mut paths = files(dir.path());
        paths.insert(0, dir.path().join("none"));
        let (good, bad): (Vec<_>, Vec<_>) = upload(&store, paths).await.into_iter().partition(Result::is_ok);
        assert_eq!((good.len(), bad.len()), (6, 1));
        assert!(bad.into_iter().all(|error| error.unwrap_err().is_of_one_file()));
    }

    #[tokio::test]
    async fn a_file_that_changes_after_it_was_hashed_is_not_stored() {
        let (dir, store) = (tempfile::tempdir().unwrap(), MemoryStore::new("a", 1 << 30));
        let path = dir.path().join("large");
        for changed in [vec![2; 100_000], vec![1; 99_999], vec![1; 100_001]] {
            std::fs::write(&path, vec![1; 100_000]).unwrap();
            let file = identify(path.clone(), DigestFunction::Sha256).await.unwrap();
            std::fs::write(&path, changed).unwrap();
            let blob = file.meta.blob;
            let error = send(&store, file, false).await.unwrap_err();
            assert!(matches!(error.cause, UploadCause::Changed), "{error}");
            assert!(error.is_of_one_file());
            assert!(store.stat(&[blob]).await.unwrap().is_empty());
        }
        let piece = LocalFile::from_bytes("piece".into(), DigestFunction::Blake3, Bytes::from_static(b"x"));
        assert!(send(&store, piece, false).await.unwrap().was_sent);
    }

    #[test]
    fn the_peers_own_errors_are_not_of_one_file() {
        let error = |code, reason: Option<&str>| UploadError {
            path: PathBuf::new(),
            cause: UploadCause::Store(StoreError::Peer(PeerError {
                reason: reason.map(Into::into),
                ..PeerError::bare(code, "")
            })),
        };
        assert!(error(Code::InvalidArgument, Some("DIGEST_MISMATCH")).is_of_one_file());
        assert!(error(Code::OutOfRange, Some("BLOB_TOO_LARGE")).is_of_one_file());
        assert!(!error(Code::InvalidArgument, None).is_of_one_file());
        assert!(!error(Code::Unavailable, None).is_of_one_file());
        assert!(!error(Code::ResourceExhausted, Some("NO_SPACE")).is_of_one_file());
    }
}
