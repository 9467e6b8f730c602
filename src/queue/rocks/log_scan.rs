//! Keeps RocksDB from faults of its log reader (seen in 11.8). Where damage turns a record's kind into one of those of
//! recycled logs, it reads for ever, or, in the first record, drops the whole log in silence. And it takes a record whose
//! length reaches beyond the end of the log, or one of zeros, for a torn tail, though whole records follow it: then what was
//! acked is dropped in silence.
//!
//! Recycling was never on here, so such a kind is damage in any case. Before the database is opened, its logs and manifests
//! are walked from record to record as the reader does, and such a kind is overwritten with that of a plain record, whose
//! checksum cannot match: so the reader finds the damage, and says so. Records before it are not touched. A tail that is
//! followed by a record whose checksum matches is no tail, and is damage too. One that nothing follows cannot be told from a
//! write that nobody was answered for.

use super::error::OpenError;
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

/// The kind of the last part of a record; the first and the middle stand between.
const LAST: u8 = 4;

/// The kinds of parts of records in recycled logs: whole, first, middle, last, sizes of timestamps, the log before.
const RECYCLED: [u8; 6] = [5, 6, 7, 8, 11, 131];

/// Makes the logs and manifests in the database's folder safe to be read by RocksDB; `whole`: and refuses damaged ones that
/// it would take for torn.
pub(super) fn make_readable(path: &Path, whole: bool) -> Result<(), OpenError> {
    if !path.exists() {
        return Ok(());
    }
    for file in std::fs::read_dir(path).map_err(OpenError::folder(path))? {
        let file = file.map_err(OpenError::folder(path))?;
        let name = file.file_name().to_string_lossy().into_owned();
        let is_log = name.ends_with(".log") || name.starts_with("MANIFEST-");
        if is_log && file.metadata().map_err(OpenError::folder(&file.path()))?.is_file() {
            let is_sound = walk(&file.path()).map_err(OpenError::folder(&file.path()))?;
            if whole && !is_sound {
                return Err(OpenError::Corrupt(format!("a record of {name} is damaged, and others follow it")));
            }
        }
    }
    Ok(())
}

/// Whether no record follows what looks like a torn tail.
fn walk(path: &Path) -> std::io::Result<bool> {
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
                return file.sync_all().map(|()| true);
            }
            let size = HEADER + usize::from(u16::from_le_bytes([*low, *high]));
            if at + size > len || (*kind == 0 && size == HEADER) {
                let follows = (at + 1..len).any(|at| is_record(&block[at..len]));
                return if follows { Ok(false) } else { Ok(!any_block_begins_with_a_record(&mut file, &mut block)?) };
            }
            at += size;
        }
        if len < BLOCK {
            return Ok(true);
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

fn any_block_begins_with_a_record(file: &mut File, block: &mut [u8]) -> std::io::Result<bool> {
    loop {
        let len = read_block(file, block)?;
        if len == 0 || is_record(&block[..len]) {
            return Ok(len > 0);
        }
    }
}

/// Whether these bytes begin with a plain record whose checksum matches.
fn is_record(bytes: &[u8]) -> bool {
    let Some(([a, b, c, d, low, high, kind], _)) = bytes.split_first_chunk::<HEADER>() else { return false };
    let end = HEADER + usize::from(u16::from_le_bytes([*low, *high]));
    if !(FULL..=LAST).contains(kind) {
        return false;
    }
    let stored = u32::from_le_bytes([*a, *b, *c, *d]);
    // LevelDB's masking, so that checksums of checksums are none.
    bytes.get(HEADER - 1..end).is_some_and(|summed| stored == crc32c(summed).rotate_right(15).wrapping_add(0xa282_ead8))
}

/// CRC-32C (Castagnoli), bit by bit: it is asked for little.
fn crc32c(bytes: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 & 0u32.wrapping_sub(crc & 1));
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::{crc32c, is_record, walk};

    fn record(kind: u8, payload: &[u8]) -> Vec<u8> {
        let summed = [&[kind], payload].concat();
        let crc = crc32c(&summed).rotate_right(15).wrapping_add(0xa282_ead8);
        let length = u16::try_from(payload.len()).unwrap().to_le_bytes();
        [&crc.to_le_bytes()[..], &length, &summed].concat()
    }

    #[test]
    fn the_checksum_is_castagnolis() {
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn a_tail_is_torn_only_where_no_record_follows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.log");
        let sound = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            walk(&path).unwrap()
        };
        let (one, two) = (record(1, b"one"), record(1, b"two"));
        assert!(is_record(&one) && sound(&[&one[..], &two].concat()));
        assert!(sound(&[&one[..], &two[..8]].concat()) && sound(&[&one[..], &[0; 50]].concat()));
        let mut long = one.clone();
        long[5] = 0x7f;
        assert!(!sound(&[&long[..], &two].concat()) && sound(&long));
        assert!(!sound(&[&one[..], &[0; 50], &two].concat()));
        // Or in a later block.
        assert!(!sound(&[&one[..], &vec![0; (32 << 10) - one.len()], &two].concat()));
    }
}
