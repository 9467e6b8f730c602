//! Why a queue could not be opened.

use crate::failpoint::Injected;
use rocksdb::ErrorKind;
use std::io;
use std::path::{Path, PathBuf};

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

/// Whether an error while it runs means that stored bytes are wrong.
pub(super) fn is_damage(error: &rocksdb::Error) -> bool {
    error.kind() == ErrorKind::Corruption && is_corruption(error.kind(), error.as_ref())
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
