//! Which files the demo ferries, and where it keeps its stores.

use crate::cli::{CommandError, Exit, walk};
use crate::words;
use std::cell::Cell;
use std::path::{Path, PathBuf};

/// The most files, and bytes, that are taken from cargo's registry.
const MAX_FILES: usize = 40_000;
const MAX_BYTES: u64 = 1 << 30;
/// One of so many files is held back, to be written behind the replicator's back; so many at most.
const HOLD_BACK_EVERY: usize = 40;
const MAX_HELD_BACK: usize = 500;
/// What the queue, and the indexes of the stores, need besides the blobs.
const OVERHEAD_BYTES: u64 = 256 << 20;

/// The files to ferry.
pub(super) struct Chosen {
    /// Those that are announced.
    pub(super) files: Vec<PathBuf>,
    /// Those that are written later, and not announced.
    pub(super) held_back: Vec<PathBuf>,
    /// The size of all of them, in bytes.
    pub(super) bytes: u64,
    /// What they are, for people.
    pub(super) what: String,
}

impl Chosen {
    /// The number of all files.
    pub(super) fn count(&self) -> u64 {
        (self.files.len() + self.held_back.len()) as u64
    }
}

/// Looks for files: in these paths, or in cargo's registry folder where none is named.
pub(super) async fn choose(paths: Vec<PathBuf>) -> Result<Chosen, CommandError> {
    tokio::task::spawn_blocking(move || choose_blocking(paths))
        .await
        .map_err(|error| CommandError::new(Exit::Failed, error.to_string()))?
}

fn choose_blocking(paths: Vec<PathBuf>) -> Result<Chosen, CommandError> {
    let is_own = !paths.is_empty();
    let (roots, what) = if is_own {
        let named: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        let what = named.join(", ");
        (paths, what)
    } else {
        let registry = registry()?;
        (vec![registry], "the sources of crates in cargo's registry folder".to_owned())
    };
    let (mut files, mut held_back, mut bytes) = (Vec::new(), Vec::new(), 0u64);
    for found in walk::files(roots, &Cell::new(0)) {
        let found = match found {
            Ok(found) => found,
            // A person who named it wants to know; in the registry, one file less is no harm.
            Err(error) if is_own => return Err(CommandError::new(Exit::Usage, error.to_string())),
            Err(_) => continue,
        };
        let count = files.len() + held_back.len();
        if !is_own && (count >= MAX_FILES || bytes.saturating_add(found.size) > MAX_BYTES) {
            break;
        }
        bytes = bytes.saturating_add(found.size);
        if count % HOLD_BACK_EVERY == HOLD_BACK_EVERY - 1 && held_back.len() < MAX_HELD_BACK {
            held_back.push(found.path);
        } else {
            files.push(found.path);
        }
    }
    if files.is_empty() {
        return Err(
            CommandError::new(Exit::Usage, "there are no files to ferry").hint("name a folder: blobferry demo PATH")
        );
    }
    Ok(Chosen { files, held_back, bytes, what })
}

/// Where cargo keeps the sources of crates.
fn registry() -> Result<PathBuf, CommandError> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo"));
    let cargo = std::env::var_os("CARGO_HOME").map(PathBuf::from).or_else(home);
    let registry = cargo.map(|cargo| cargo.join("registry").join("src")).filter(|registry| registry.is_dir());
    registry.ok_or_else(|| {
        CommandError::new(Exit::Usage, "cargo's registry folder is not here")
            .hint("name files or folders of your own: blobferry demo PATH")
    })
}

/// Where the stores and the queue are.
pub(super) struct DemoFolders {
    path: PathBuf,
    is_temporary: bool,
}

impl DemoFolders {
    /// This folder, or a new one in the system's temporary folder that is removed in the end.
    pub(super) fn new(data: Option<PathBuf>) -> Result<Self, CommandError> {
        let (path, is_temporary) = match data {
            Some(path) => (path, false),
            None => {
                let name = format!("blobferry-demo-{}-{:08x}", std::process::id(), rand::random::<u32>());
                (std::env::temp_dir().join(name), true)
            }
        };
        std::fs::create_dir_all(&path).map_err(|error| {
            CommandError::new(Exit::Failed, format!("{} cannot be made: {error}", path.display()))
                .hint("name another folder with --data")
        })?;
        Ok(Self { path, is_temporary })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether it will be removed in the end.
    pub(super) fn is_temporary(&self) -> bool {
        self.is_temporary
    }

    /// Fails unless the disk has room for this many bytes in each of two stores.
    pub(super) fn check_space(&self, bytes: u64) -> Result<(), CommandError> {
        let disk = rustix::fs::statvfs(&self.path)
            .map_err(|error| CommandError::new(Exit::Failed, format!("{}: {error}", self.path.display())))?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        let needed = bytes.saturating_mul(2).saturating_add(OVERHEAD_BYTES);
        if free >= needed {
            return Ok(());
        }
        let (needed, free) = (words::bytes(needed), words::bytes(free));
        let at = self.path.display();
        Err(CommandError::new(
            Exit::Failed,
            format!("two copies of these files need about {needed}, but {at} has {free} free"),
        )
        .hint("name a folder on a larger disk with --data, or fewer files"))
    }

    /// Removes a temporary folder; other ones stay.
    pub(super) async fn remove(self) {
        // Dropping it removes it; thousands of files take a while.
        if tokio::task::spawn_blocking(move || drop(self)).await.is_err() {
            tracing::warn!("the temporary folder could not be removed");
        }
    }
}

impl Drop for DemoFolders {
    fn drop(&mut self) {
        if self.is_temporary
            && let Err(error) = std::fs::remove_dir_all(&self.path)
        {
            tracing::warn!(folder = %self.path.display(), %error, "the temporary folder could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{DemoFolders, choose_blocking};
    use crate::cli::Exit;
    use std::path::PathBuf;

    #[test]
    fn one_in_forty_files_is_held_back() {
        let dir = tempfile::tempdir().unwrap();
        for number in 0..100 {
            std::fs::write(dir.path().join(format!("{number:03}")), "x").unwrap();
        }
        let chosen = choose_blocking(vec![dir.path().to_path_buf()]).unwrap();
        assert_eq!((chosen.files.len(), chosen.held_back.len()), (98, 2));
        assert_eq!((chosen.bytes, chosen.count()), (100, 100));
        assert!(chosen.held_back[0].ends_with("039"));
    }

    #[test]
    fn nothing_to_ferry_is_a_usage_error() {
        let dir = tempfile::tempdir().unwrap();
        for path in [dir.path().to_path_buf(), PathBuf::from("/no/such/folder")] {
            assert_eq!(choose_blocking(vec![path]).err().map(|failure| failure.exit), Some(Exit::Usage));
        }
    }

    #[test]
    fn a_temporary_place_goes_and_a_named_one_stays() {
        let temporary = DemoFolders::new(None).unwrap();
        let path = temporary.path().to_path_buf();
        assert!(path.is_dir() && temporary.is_temporary());
        assert!(temporary.check_space(0).is_ok());
        let error = temporary.check_space(u64::MAX).unwrap_err().to_string();
        assert!(error.contains("--data"), "{error}");
        drop(temporary);
        assert!(!path.exists());
        let dir = tempfile::tempdir().unwrap();
        drop(DemoFolders::new(Some(dir.path().join("a/b"))).unwrap());
        assert!(dir.path().join("a/b").is_dir());
    }
}
