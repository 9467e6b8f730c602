//! Keeps RocksDB from two faults of its log reader (seen in 11.8): where damage turns a record's kind into one of those of
//! recycled logs, it reads for ever, or, in the first record, drops the whole log in silence.
//!
//! Recycling was never on here, so such a kind is damage in any case. Before the database is opened, its logs and manifests
//! are walked from record to record as the reader does, and such a kind is overwritten with that of a plain record, whose
//! checksum cannot match: so the reader finds the damage, and says so. Records before it are not touched.

use super::open::OpenError;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The size of a block; no record's part crosses its end.
const BLOCK: usize = 32 << 10;

/// Checksum, length, kind.
const HEADER: usize = 7;

/// The kind of a record that is whole.
const FULL: u8 = 1;

/// The kinds of parts of records in recycled logs: whole, first, middle, last, sizes of timestamps, the log before.
const RECYCLED: [u8; 6] = [5, 6, 7, 8, 11, 131];

/// Makes the logs and manifests in the database's folder safe to be read by RocksDB.
pub(super) fn make_readable(path: &Path) -> Result<(), OpenError> {
    if !path.exists() {
        return Ok(());
    }
    for file in std::fs::read_dir(path).map_err(OpenError::folder(path))? {
        let file = file.map_err(OpenError::folder(path))?;
        let name = file.file_name().to_string_lossy().into_owned();
        let is_log = name.ends_with(".log") || name.starts_with("MANIFEST-");
        if is_log && file.metadata().map_err(OpenError::folder(&file.path()))?.is_file() {
            walk(&file.path()).map_err(OpenError::folder(&file.path()))?;
        }
    }
    Ok(())
}

fn walk(path: &Path) -> std::io::Result<()> {
    let mut file = File::open(path)?;
    let mut block = vec![0; BLOCK];
    let mut start = 0u64;
    loop {
        let len = read_block(&mut file, &mut block)?;
        let mut at = 0;
        while let Some([.., low, high, kind]) = block[..len].get(at..at + HEADER) {
            if RECYCLED.contains(kind) {
                let offset = start + (at + HEADER - 1) as u64;
                tracing::error!(log = %path.display(), offset, "a log is damaged in a way that RocksDB cannot read; marked");
                let file = File::options().write(true).open(path)?;
                file.write_all_at(&[FULL], offset)?;
                return file.sync_all();
            }
            at += HEADER + usize::from(u16::from_le_bytes([*low, *high]));
        }
        if len < BLOCK || at > len {
            return Ok(());
        }
        start += BLOCK as u64;
    }
}

/// Fills the block, or reads to the end of the file.
fn read_block(file: &mut File, block: &mut [u8]) -> std::io::Result<usize> {
    let mut len = 0;
    while len < block.len() {
        match file.read(&mut block[len..]) {
            Ok(0) => break,
            Ok(count) => len += count,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(len)
}
