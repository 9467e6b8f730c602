//! Large blobs as files, and the small files that say what the folder is.
//!
//! A blob's file is written as `incoming/<random>`, synced, and renamed to `blobs/<function>/<2 hex>/<hex>`; then that folder
//! is synced. Crash before the rename: a leftover in `incoming/`, removed when the store is opened. Crash after it: a whole,
//! verified file that the index does not know; nobody sees it, and receiving the blob again replaces it.

use crate::blob::{BlobRef, DigestFunction, Verifier};
use crate::clock::Entropy;
use crate::failpoint::{self, Point};
use crate::store::StoreError;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Bytes of a file that may wait to be synced. What is synced for small blobs meanwhile waits behind them at the disk: with
/// 64, 8, 4 and 2 MiB the slowest of a hundred took 53, 32, 27 and 23 ms beside a large blob, and 9 alone; and four large ones
/// at a time came at 478, 575, 578 and 561 MB/s. Nor must whoever waits for the last sync take the store for dead, however
/// large the blob and slow the disk.
const UNSYNCED_BYTES: u64 = 2 << 20;

/// The folders of a store that hold files.
#[derive(Debug)]
pub(super) struct Files {
    incoming: PathBuf,
    blobs: PathBuf,
    /// Folders under `blobs/<function>/` that are known to survive a power loss: their entry in the parent was synced. One
    /// that merely exists may have been made by a receiver that has not synced it yet.
    durable: Mutex<HashSet<(DigestFunction, u8)>>,
    /// Names files in `incoming/`.
    entropy: Arc<Entropy>,
}

impl Files {
    /// Makes the folders where they are missing and removes leftovers. Only for the process that has the store's lock.
    pub(super) fn open(root: &Path, entropy: Arc<Entropy>) -> io::Result<Self> {
        let incoming = root.join("incoming");
        let blobs = root.join("blobs");
        create_folder(&incoming)?;
        create_folder(&blobs)?;
        for function in DigestFunction::ALL {
            create_folder(&blobs.join(function.name()))?;
        }
        for leftover in fs::read_dir(&incoming)? {
            fs::remove_file(leftover?.path())?;
        }
        Ok(Self { incoming, blobs, durable: Mutex::default(), entropy })
    }

    /// Where the blob's file lies, if it has one.
    pub(super) fn path_of(&self, blob: &BlobRef) -> PathBuf {
        let text = blob.to_string();
        let hex = &text[blob.function().name().len() + 1..];
        self.blobs.join(blob.function().name()).join(&hex[..2]).join(hex)
    }

    /// Whether the blob's file is there with this many bytes.
    pub(super) fn holds(&self, blob: &BlobRef, size: u64) -> bool {
        fs::metadata(self.path_of(blob)).is_ok_and(|file| file.is_file() && file.len() == size)
    }

    /// Opens a blob's file, to read from `start` to `end`.
    pub(super) fn read(&self, blob: BlobRef, size: u64, start: u64, end: u64) -> Result<Reader, StoreError> {
        let corrupt = |detail: String| StoreError::Corrupt { blob, detail };
        let file = match File::open(self.path_of(&blob)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(corrupt("its file is gone".to_owned()));
            }
            Err(error) => return Err(StoreError::io(format!("opening the file of {blob}"), error)),
        };
        let found =
            file.metadata().map_err(|error| StoreError::io(format!("looking at the file of {blob}"), error))?.len();
        if found != size {
            return Err(corrupt(format!("its file has {found} bytes instead of {size}")));
        }
        let verifier = (start == 0 && end == size).then(|| Verifier::new(blob, Some(size)));
        Ok(Reader { blob, file, at: start, end, verifier })
    }

    /// Begins a file for the bytes of this blob.
    pub(super) fn write(&self, blob: BlobRef, stated: Option<u64>) -> Result<Sink, StoreError> {
        failpoint::hit(Point::StoreCreate)?;
        let path = self.incoming.join(self.entropy.name());
        let file = File::options().write(true).create_new(true).open(&path);
        let file =
            file.map_err(|error| StoreError::io(format!("creating a file in {}", self.incoming.display()), error))?;
        let incoming = IncomingFile { file, unsynced: 0, temporary: Temporary { path: Some(path) } };
        Ok(Sink { blob, verifier: Verifier::new(blob, stated), incoming: Some(incoming) })
    }

    /// Puts a finished file in its place, durably; an old file there is replaced.
    fn place(&self, temporary: &mut Temporary, blob: &BlobRef) -> io::Result<()> {
        let path = self.path_of(blob);
        let (Some(folder), Some(from)) = (path.parent(), temporary.path.as_deref()) else {
            return Err(io::Error::other("the file has no place"));
        };
        let known = (blob.function(), blob.digest()[0]);
        let durable = self.durable.lock().contains(&known);
        if !durable {
            create_folder(folder)?;
            self.durable.lock().insert(known);
        }
        failpoint::hit(Point::StoreRename)?;
        fs::rename(from, &path)?;
        temporary.path = None;
        failpoint::hit(Point::StoreFolderSync)?;
        sync_folder(folder)
    }
}

/// Takes the bytes of a blob, verifies them, and writes them to a file unless they are there already.
pub(super) struct Sink {
    blob: BlobRef,
    verifier: Verifier,
    incoming: Option<IncomingFile>,
}

struct IncomingFile {
    file: File,
    unsynced: u64,
    temporary: Temporary,
}

impl Sink {
    /// Only verifies.
    pub(super) fn verify(blob: BlobRef, stated: Option<u64>) -> Self {
        Self { blob, verifier: Verifier::new(blob, stated), incoming: None }
    }

    /// Takes the next bytes. After an error nothing is left of the file.
    pub(super) fn write(mut self, bytes: &[u8]) -> Result<Self, StoreError> {
        match self.take(bytes) {
            Ok(()) => Ok(self),
            Err(error) => {
                self.discard();
                Err(error)
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), StoreError> {
        self.verifier.update(bytes)?;
        if let Some(incoming) = &mut self.incoming {
            let written = incoming.write(bytes);
            written.map_err(|error| StoreError::io(format!("writing the file of {}", self.blob), error))?;
        }
        Ok(())
    }

    /// Takes the last bytes and puts the file in its place, durably, if all of them are those of the ref. Gives the blob's
    /// size. After an error nothing is left of the file.
    pub(super) fn finish(self, last: &[u8], files: &Files) -> Result<u64, StoreError> {
        let Self { blob, verifier, incoming } = self.write(last)?;
        let verdict = verifier.finish();
        let Some(IncomingFile { file, mut temporary, .. }) = incoming else {
            return Ok(verdict?);
        };
        let placed = verdict.map_err(StoreError::from).and_then(|size| {
            // The bytes first, then the name: a name that survives a crash has its bytes.
            failpoint::hit(Point::StoreSync)?;
            let synced = file.sync_data().and_then(|()| files.place(&mut temporary, &blob));
            synced.map_err(|error| StoreError::io(format!("storing the file of {blob}"), error))?;
            Ok(size)
        });
        temporary.remove();
        placed
    }

    fn discard(&mut self) {
        if let Some(mut incoming) = self.incoming.take() {
            incoming.temporary.remove();
        }
    }
}

impl IncomingFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        failpoint::hit(Point::StoreWrite)?;
        self.file.write_all(bytes)?;
        self.unsynced += bytes.len() as u64;
        if self.unsynced >= UNSYNCED_BYTES {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

/// A file in `incoming/` that is removed unless it was put in its place.
struct Temporary {
    path: Option<PathBuf>,
}

impl Temporary {
    fn remove(&mut self) {
        if let Some(path) = self.path.take() {
            remove_leftover(&path);
        }
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        // Dropped with its receiver, on one of the runtime's threads, where removing a large file must not block.
        let Some(path) = self.path.take() else { return };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(move || remove_leftover(&path))),
            Err(_) => remove_leftover(&path),
        }
    }
}

fn remove_leftover(path: &Path) {
    if let Err(error) = fs::remove_file(path) {
        tracing::warn!(path = %path.display(), %error, "could not remove an unfinished file; it goes when the store is opened next");
    }
}

/// Reads a part of a blob's file. A whole read is checked against the digest before its last chunk is given.
pub(super) struct Reader {
    blob: BlobRef,
    file: File,
    at: u64,
    end: u64,
    verifier: Option<Verifier>,
}

impl Reader {
    /// Whether all of the part was read.
    pub(super) fn is_done(&self) -> bool {
        self.at == self.end
    }

    /// The next chunk, of at most `max` bytes.
    pub(super) fn next(&mut self, max: usize) -> Result<Bytes, StoreError> {
        let blob = self.blob;
        let corrupt = |detail: String| StoreError::Corrupt { blob, detail };
        let length = usize::try_from(self.end - self.at).map_or(max, |rest| rest.min(max));
        let mut chunk = vec![0; length];
        self.file.read_exact_at(&mut chunk, self.at).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => corrupt("its file became shorter".to_owned()),
            _ => StoreError::io(format!("reading the file of {blob}"), error),
        })?;
        self.at += length as u64;
        if let Some(verifier) = &mut self.verifier {
            verifier.update(&chunk).map_err(|mismatch| corrupt(mismatch.to_string()))?;
        }
        if self.is_done()
            && let Some(verifier) = self.verifier.take()
        {
            verifier.finish().map_err(|mismatch| corrupt(mismatch.to_string()))?;
        }
        Ok(chunk.into())
    }
}

/// Makes a folder, and those above it, where they are missing; its entry in the folder above it is durable afterwards.
pub(super) fn create_folder(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    match fs::create_dir(path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_folder(parent)?;
            fs::create_dir(path)?;
        }
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => {}
        Err(error) => return Err(error),
    }
    sync_folder(parent)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Writes a small file so that after a crash it is there whole or not at all.
pub(super) fn write_whole(folder: &Path, name: &str, text: &str) -> io::Result<()> {
    let temporary = folder.join(format!("{name}.tmp"));
    let mut file = File::create(&temporary)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&temporary, folder.join(name))?;
    sync_folder(folder)
}

/// The text of a small file without the white space around it; `None` where there is no such file.
pub(super) fn read_whole(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{Files, UNSYNCED_BYTES};
    use crate::blob::DigestFunction;
    use crate::clock::Entropy;
    use std::sync::Arc;

    #[test]
    fn little_of_a_large_blob_waits_for_the_last_sync() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::open(folder.path(), Arc::new(Entropy::seeded(1))).unwrap();
        let bytes = vec![7; 16 << 20];
        let whole: Vec<u8> = bytes.iter().copied().cycle().take(9 * bytes.len()).collect();
        let blob = DigestFunction::Sha256.ref_of(&whole);
        let mut sink = files.write(blob, Some(whole.len() as u64)).unwrap();
        for _ in 0..8 {
            sink = sink.write(&bytes).unwrap();
            assert!(sink.incoming.as_ref().unwrap().unsynced < UNSYNCED_BYTES);
        }
        assert_eq!(sink.finish(&bytes, &files).unwrap(), whole.len() as u64);
        assert!(files.holds(&blob, whole.len() as u64));
    }
}
