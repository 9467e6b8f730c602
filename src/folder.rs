//! Folders on a disk.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

/// Tries whether a folder can be written: makes a file in it, synced, and takes it away again. Blocks.
///
/// # Errors
/// What stands in the way, such as a file system that is read-only, or a process that may open no more files.
pub(crate) fn try_writing(folder: &Path) -> io::Result<()> {
    let path = folder.join("probe");
    let written = File::create(&path).and_then(|mut file| {
        file.write_all(b"can this be written?")?;
        file.sync_all()
    });
    if path.exists() {
        fs::remove_file(&path)?;
    }
    written
}
