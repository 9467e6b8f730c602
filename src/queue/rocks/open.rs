//! Opening: the lock, then the database, mended where it must be, and its committer.

use super::commit::{Committer, WriteFn};
use super::gather::Gather;
use super::recover::open_mended;
use super::request::CHANNEL;
use super::shared::Shared;
use super::space::Space;
use super::{RocksOptions, RocksQueue, WallClock};
use crate::failpoint::{self, Injected, Point};
use rocksdb::ErrorKind;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio_util::sync::CancellationToken;

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
    /// It is damaged, and there is no room to keep it as it is while it is mended.
    #[error(
        "the queue is damaged ({what}), and its disk has no room to keep a copy of it before it is mended: {need} bytes \
         are needed in {dir}, {free} are free; free some space and start again"
    )]
    NoRoom {
        /// What is damaged.
        what: String,
        /// The folder.
        dir: PathBuf,
        /// The bytes that the copy takes.
        need: u64,
        /// The bytes that are free.
        free: u64,
    },
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

impl OpenError {
    /// An error with this folder or file.
    pub(super) fn folder(dir: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self::Folder { dir: dir.to_owned(), error }
    }
}

impl From<rocksdb::Error> for OpenError {
    fn from(error: rocksdb::Error) -> Self {
        let kind = error.kind();
        let text = error.into_string();
        if is_corruption(kind, &text) { Self::Corrupt(text) } else { Self::Database(text) }
    }
}

impl From<Injected> for OpenError {
    fn from(injected: Injected) -> Self {
        Self::Database(injected.to_string())
    }
}

/// Whether RocksDB means that stored bytes are wrong or gone. It also says "corruption" where it could not reach them.
fn is_corruption(kind: ErrorKind, text: &str) -> bool {
    let is_gone = text.contains("No such file or directory");
    match kind {
        ErrorKind::Corruption => is_gone || !text.contains("IO error"),
        ErrorKind::IOError => is_gone,
        _ => false,
    }
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
    let (db, loaded) = open_mended(dir, &options, wall())?;
    let next_seq = loaded.next_seq;
    let total = loaded.figures.total();
    let shared = Arc::new(Shared::new(dir, db, loaded, options.max_backoff));

    let (sender, receiver) = tokio::sync::mpsc::channel(CHANNEL);
    let committer = Committer {
        shared: Arc::clone(&shared),
        dir: dir.to_owned(),
        space: Space::new(dir.to_owned(), options.reserve_bytes),
        options,
        wall: Arc::clone(&wall),
        write,
        next_seq,
        total,
        gather: Gather::default(),
        full_since: None,
        sender: sender.downgrade(),
        reopening: None,
        reopened: 0,
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
        .map_err(OpenError::folder(dir))?;
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
pub(super) fn lock(dir: &Path) -> Result<File, OpenError> {
    let failed = OpenError::folder(dir);
    let made = !dir.exists();
    std::fs::create_dir_all(dir).map_err(&failed)?;
    if made && let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(&failed)?;
    }
    let file = File::options().create(true).truncate(false).write(true).open(dir.join("lock")).map_err(&failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(OpenError::Locked(dir.to_owned())),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::is_corruption;
    use rocksdb::ErrorKind;

    #[test]
    fn only_wrong_or_missing_bytes_are_corruption() {
        assert!(is_corruption(ErrorKind::Corruption, "Corruption: checksum mismatch"));
        assert!(is_corruption(ErrorKind::IOError, "IO error: No such file or directory: While open 000012.sst"));
        for text in ["Permission denied", "Input/output error", "No space left on device", "Too many open files"] {
            assert!(!is_corruption(ErrorKind::IOError, &format!("IO error: {text}: While open a file")));
            assert!(!is_corruption(ErrorKind::Corruption, &format!("Corruption: IO error: {text}: While open a file")));
        }
        assert!(!is_corruption(ErrorKind::Busy, "Busy"));
    }
}
