//! A small disk that can be filled and freed: a file system of its own where we may mount one, else a folder whose program
//! is told by the shim that nothing can grow.

use super::disk::Disk;
use anyhow::{Context as _, Result, ensure};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the file is called that takes the room.
const FILLER: &str = "filler";
/// Bytes that are written to it at a time, at most and at least.
const PIECES: [usize; 2] = [1 << 20, 512];

/// See the module's header. Unmounted when dropped.
pub(crate) enum Medium {
    /// A tmpfs of limited size.
    Mounted(PathBuf),
    /// The shim's.
    Shim(Disk),
}

impl Medium {
    /// A disk of this size at `path`; by the shim, of which the size does not matter, where we are not root.
    pub(crate) fn new(path: &Path, bytes: u64, shim: Option<&Path>, by_shim: bool) -> Result<Option<Self>> {
        fs::create_dir_all(path)?;
        if !by_shim && rustix::process::geteuid().is_root() {
            let options = format!("size={bytes},mode=0755");
            let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(path).output();
            match mounted {
                Ok(done) if done.status.success() => return Ok(Some(Self::Mounted(path.to_owned()))),
                Ok(done) => eprintln!("no tmpfs: {}", String::from_utf8_lossy(&done.stderr).trim()),
                Err(error) => eprintln!("no tmpfs: mount: {error}"),
            }
        }
        shim.map(|shim| Ok(Self::Shim(Disk::new(shim, path)?))).transpose()
    }

    pub(crate) fn root(&self) -> &Path {
        match self {
            Self::Mounted(path) => path,
            Self::Shim(disk) => disk.root(),
        }
    }

    /// Whether it has a number of free bytes.
    pub(crate) fn is_mounted(&self) -> bool {
        matches!(self, Self::Mounted(_))
    }

    /// What the program on it needs in its environment.
    pub(crate) fn variables(&self) -> Vec<(String, String)> {
        match self {
            Self::Mounted(_) => Vec::new(),
            Self::Shim(disk) => disk.variables(false),
        }
    }

    /// Takes all room but for so many bytes.
    pub(crate) fn fill(&self, but: u64) -> Result<()> {
        let root = match self {
            Self::Mounted(root) => root,
            Self::Shim(disk) => return disk.set_full(true),
        };
        let mut filler = File::options().create(true).append(true).open(root.join(FILLER))?;
        let piece = vec![0; PIECES[0]];
        for size in PIECES {
            loop {
                if but > 0 && free(root)? < but + size as u64 {
                    break;
                }
                match filler.write_all(&piece[..size]) {
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    written => written?,
                }
            }
        }
        Ok(())
    }

    /// Gives the room back.
    pub(crate) fn free(&self) -> Result<()> {
        match self {
            Self::Mounted(root) => Ok(fs::remove_file(root.join(FILLER))?),
            Self::Shim(disk) => disk.set_full(false),
        }
    }
}

impl Drop for Medium {
    fn drop(&mut self) {
        if let Self::Mounted(path) = self {
            // A program that is being killed may hold it for a moment; detached, it goes with its last user.
            let done = Command::new("umount").arg("--lazy").arg(&*path).status();
            if !done.is_ok_and(|status| status.success()) {
                eprintln!("{} could not be unmounted", path.display());
            }
        }
    }
}

fn free(folder: &Path) -> Result<u64> {
    let stat = rustix::fs::statvfs(folder).context("statvfs")?;
    ensure!(stat.f_frsize > 0, "the file system has no blocks");
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}
