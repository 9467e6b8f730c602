//! A disk that loses its power: what was not synced is lost, kept, torn by page and out of order, as chance decides.
//!
//! The program runs with `powerloss/shim.c` preloaded. Its changes happen at once, and a journal tells how to take them back.
//! After the kill, [`Disk::cut`] makes of the folder what a disk might hold:
//!
//! - A file's bytes and size are durable once a sync of the file that began after they were written has ended well. Of what
//!   came later each page of 4 KiB is there or not, for itself, and the size is the old one, the new one, or between.
//! - A name (made, renamed, removed) is durable once a sync of its folder has ended well: a sync of the file does not make
//!   its name durable. This is POSIX at its strictest; ext4 gives more. Of later changes each is there or not, but none
//!   without those that it builds on.
//! - A rename is atomic, and durable when either folder is synced. Where only that of the new name was, the old one may
//!   be there too.

use anyhow::{Context as _, Result, bail, ensure};
use rand::Rng as _;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What a disk writes at once, in bytes.
const PAGE: usize = 4096;

/// Compiles the shim into this folder. `None`, said aloud, where there is no C compiler; in CI there must be one.
pub(crate) fn build_shim(into: &Path) -> Result<Option<PathBuf>> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/powerloss/shim.c");
    let shim = into.join("faultshim.so");
    let flags = ["-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o"];
    match Command::new("cc").args(flags).arg(&shim).arg(source).output() {
        Ok(done) => {
            ensure!(done.status.success(), "cc: {}", String::from_utf8_lossy(&done.stderr));
            Ok(Some(shim))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            ensure!(std::env::var("CI").as_deref() != Ok("true"), "there must be a C compiler in CI (cc)");
            eprintln!("skipped: there is no C compiler (cc), which the disk that loses its power needs");
            Ok(None)
        }
        Err(error) => Err(error).context("cc"),
    }
}

/// A folder whose changes are followed.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    shim: PathBuf,
    root: PathBuf,
    journal: PathBuf,
}

/// What a cut leaves of unsynced changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeps {
    /// None.
    Nothing,
    /// Any.
    Chance,
}

/// What a cut did.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cut {
    /// Unsynced changes of names, and those of them that were taken back.
    pub(crate) names: u64,
    pub(crate) names_lost: u64,
    /// Files with unsynced bytes, and those of them that are not as they were.
    pub(crate) files: u64,
    pub(crate) files_torn: u64,
}

impl Cut {
    pub(crate) fn add(&mut self, other: Self) {
        self.names += other.names;
        self.names_lost += other.names_lost;
        self.files += other.files;
        self.files_torn += other.files_torn;
    }
}

/// A line of the journal that changes something. See the shim.
#[derive(Debug)]
enum Change {
    Name(Name),
    Bytes { inode: u64, undo: Undo },
}

#[derive(Debug)]
enum Name {
    Made { inode: u64, path: PathBuf },
    Folder { path: PathBuf },
    Renamed { inode: u64, from: PathBuf, to: PathBuf, kept: Option<PathBuf> },
    Removed { inode: u64, path: PathBuf, kept: Option<PathBuf> },
    FolderRemoved { path: PathBuf },
}

/// How to take back a change of a file's bytes.
#[derive(Clone, Debug)]
struct Undo {
    size: u64,
    /// Where what was kept belongs.
    at: u64,
    kept: Option<PathBuf>,
}

/// The changes in their order, and for each file and folder the last change that is durable.
#[derive(Debug, Default)]
struct Journal {
    changes: Vec<Change>,
    files: HashMap<u64, usize>,
    folders: HashMap<PathBuf, usize>,
}

impl Disk {
    /// Follows what happens below `root` from the next start on.
    pub(crate) fn new(shim: &Path, root: &Path) -> Result<Self> {
        fs::create_dir_all(root)?;
        let root = root.canonicalize()?;
        let journal = root.with_extension("journal");
        Ok(Self { shim: shim.to_owned(), root, journal })
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// The environment in which a program has this disk.
    pub(crate) fn variables(&self, lies: bool) -> Vec<(String, String)> {
        let text = |path: &Path| path.display().to_string();
        let mut variables = vec![
            ("LD_PRELOAD".to_owned(), text(&self.shim)),
            ("FAULTSHIM_ROOT".to_owned(), text(&self.root)),
            ("FAULTSHIM_JOURNAL".to_owned(), text(&self.journal)),
            ("FAULTSHIM_FULL".to_owned(), text(&self.full_flag())),
            ("FAULTSHIM_READ_ONLY".to_owned(), text(&self.read_only_flag())),
            ("FAULTSHIM_SYNC_US".to_owned(), "5000".to_owned()),
        ];
        if lies {
            variables.push(("FAULTSHIM_LIE".to_owned(), "1".to_owned()));
        }
        variables
    }

    /// Where its changes are written down; without it there is nothing to take back.
    pub(crate) fn journal(&self) -> &Path {
        &self.journal
    }

    fn full_flag(&self) -> PathBuf {
        self.root.with_extension("full")
    }

    fn read_only_flag(&self) -> PathBuf {
        self.root.with_extension("read-only")
    }

    /// While it is full nothing can grow.
    pub(crate) fn set_full(&self, full: bool) -> Result<()> {
        raise_flag(&self.full_flag(), full)
    }

    /// While it is read-only nothing can be changed.
    pub(crate) fn set_read_only(&self, read_only: bool) -> Result<()> {
        raise_flag(&self.read_only_flag(), read_only)
    }

    /// The power is gone; the program was killed. Makes of the folder what the disk holds.
    pub(crate) fn cut(&self, random: &mut SmallRng, keeps: Keeps) -> Result<Cut> {
        let kept = PathBuf::from(format!("{}.kept", self.journal.display()));
        let text = match fs::read_to_string(&self.journal) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Cut::default()),
            read => read?,
        };
        let journal = Journal::read(&text, &kept)?;
        let mut cut = Cut::default();
        journal.cut_names(random, keeps, &mut cut)?;
        journal.cut_bytes(&self.root, random, keeps, &mut cut)?;
        fs::remove_file(&self.journal)?;
        fs::remove_dir_all(&kept)?;
        Ok(cut)
    }
}

impl Journal {
    fn read(text: &str, kept_in: &Path) -> Result<Self> {
        let mut journal = Self::default();
        let mut begun: HashMap<&str, (Result<u64, PathBuf>, usize)> = HashMap::new();
        // What was being written at the kill has no end, and did not happen yet.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let parts: Vec<&str> = line.split('\t').collect();
            let kept = |id: &str| (!id.starts_with("0-")).then(|| kept_in.join(id));
            let change = match parts.as_slice() {
                ["C" | "L", inode, path] => Change::Name(Name::Made { inode: inode.parse()?, path: path.into() }),
                ["M", path] => Change::Name(Name::Folder { path: path.into() }),
                ["D", path] => Change::Name(Name::FolderRemoved { path: path.into() }),
                ["R", inode, from, to, id] => Change::Name(Name::Renamed {
                    inode: inode.parse()?,
                    from: from.into(),
                    to: to.into(),
                    kept: kept(id),
                }),
                ["U", inode, path, id] => {
                    Change::Name(Name::Removed { inode: inode.parse()?, path: path.into(), kept: kept(id) })
                }
                ["W", inode, at, _, size, id] => Change::Bytes {
                    inode: inode.parse()?,
                    undo: Undo { size: size.parse()?, at: at.parse()?, kept: kept(id) },
                },
                ["T", inode, size, new, id] => Change::Bytes {
                    inode: inode.parse()?,
                    undo: Undo { size: size.parse()?, at: new.parse()?, kept: kept(id) },
                },
                ["B", id, inode] => {
                    begun.insert(id, (Ok(inode.parse()?), journal.changes.len()));
                    continue;
                }
                ["F", id, path] => {
                    begun.insert(id, (Err(path.into()), journal.changes.len()));
                    continue;
                }
                ["E", id] => {
                    match begun.remove(id) {
                        Some((Ok(inode), at)) => raise(&mut journal.files, inode, at),
                        Some((Err(path), at)) => raise(&mut journal.folders, path, at),
                        None => bail!("a sync ended that had not begun: {line}"),
                    }
                    continue;
                }
                _ => bail!("a line of the journal makes no sense: {line:?}"),
            };
            journal.changes.push(change);
        }
        Ok(journal)
    }

    fn is_synced(&self, folder: Option<&Path>, change: usize) -> bool {
        folder.and_then(|folder| self.folders.get(folder)).is_some_and(|before| change < *before)
    }

    fn cut_names(&self, random: &mut SmallRng, keeps: Keeps, cut: &mut Cut) -> Result<()> {
        // The chance of an unsynced change to survive; now and then all, or none.
        let chance = if keeps == Keeps::Nothing { 0.0 } else { [0.0, 0.5, 0.8, 1.0][random.random_range(0..4)] };
        let (mut lost, mut lost_paths, mut lost_inodes) = (Vec::new(), HashSet::<&Path>::new(), HashSet::new());
        for (index, change) in self.changes.iter().enumerate() {
            let Change::Name(name) = change else { continue };
            let (inode, paths) = name.touches();
            if paths.iter().any(|path| self.is_synced(path.parent(), index)) {
                if let Name::Renamed { inode, from, to, .. } = name
                    && !self.is_synced(from.parent(), index)
                    && !from.exists()
                    && random.random_bool(0.5)
                    && is_inode(to, *inode)
                {
                    fs::hard_link(to, from)?;
                }
                continue;
            }
            cut.names += 1;
            let builds_on_lost = inode.is_some_and(|inode| lost_inodes.contains(&inode))
                || paths.iter().any(|path| path.ancestors().any(|above| lost_paths.contains(above)));
            if builds_on_lost || !random.random_bool(chance) {
                cut.names_lost += 1;
                lost_paths.extend(paths);
                lost_inodes.extend(inode);
                lost.push(name);
            }
        }
        lost.into_iter().rev().try_for_each(Name::undo)
    }

    fn cut_bytes(&self, root: &Path, random: &mut SmallRng, keeps: Keeps, cut: &mut Cut) -> Result<()> {
        let mut unsynced: BTreeMap<u64, Vec<&Undo>> = BTreeMap::new();
        for (index, change) in self.changes.iter().enumerate() {
            if let Change::Bytes { inode, undo } = change
                && self.files.get(inode).is_none_or(|before| index >= *before)
            {
                unsynced.entry(*inode).or_default().push(undo);
            }
        }
        let mut files = HashMap::new();
        files_of(root, &mut files)?;
        for (inode, undos) in unsynced {
            let Some(path) = files.get(&inode) else { continue };
            let now = fs::read(path)?;
            let mut synced = now.clone();
            for undo in undos.into_iter().rev() {
                undo.apply(&mut synced)?;
            }
            cut.files += 1;
            let torn = if keeps == Keeps::Nothing { synced } else { tear(&synced, &now, random) };
            if torn != now {
                cut.files_torn += 1;
                fs::write(path, torn)?;
            }
        }
        Ok(())
    }
}

fn raise_flag(flag: &Path, is_on: bool) -> Result<()> {
    if is_on {
        fs::write(flag, "")?
    } else {
        fs::remove_file(flag)?
    }
    Ok(())
}

fn raise<K: std::hash::Hash + Eq>(of: &mut HashMap<K, usize>, key: K, at: usize) {
    let known = of.entry(key).or_default();
    *known = at.max(*known);
}

fn is_inode(path: &Path, inode: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|found| found.ino() == inode)
}

fn files_of(folder: &Path, into: &mut HashMap<u64, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            files_of(&entry.path(), into)?;
        } else if kind.is_file() {
            into.insert(entry.metadata()?.ino(), entry.path());
        }
    }
    Ok(())
}

impl Name {
    fn touches(&self) -> (Option<u64>, Vec<&Path>) {
        match self {
            Self::Made { inode, path } | Self::Removed { inode, path, .. } => (Some(*inode), vec![path]),
            Self::Folder { path } | Self::FolderRemoved { path } => (None, vec![path]),
            Self::Renamed { inode, from, to, .. } => (Some(*inode), vec![from, to]),
        }
    }

    /// Takes it back, if it came to happen at all.
    fn undo(&self) -> Result<()> {
        match self {
            Self::Made { inode, path } if is_inode(path, *inode) => fs::remove_file(path)?,
            Self::Folder { path } if path.exists() => fs::remove_dir_all(path)?,
            Self::FolderRemoved { path } if !path.exists() => fs::create_dir(path)?,
            Self::Removed { path, kept: Some(kept), .. } if !path.exists() => fs::hard_link(kept, path)?,
            Self::Renamed { inode, from, to, kept } if is_inode(to, *inode) => {
                fs::rename(to, from)?;
                if let Some(kept) = kept {
                    fs::hard_link(kept, to)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

impl Undo {
    fn apply(&self, bytes: &mut Vec<u8>) -> Result<()> {
        bytes.resize(usize::try_from(self.size)?, 0);
        if let Some(kept) = &self.kept {
            let kept = fs::read(kept)?;
            let at = usize::try_from(self.at)?;
            let end = bytes.len().min(at + kept.len());
            bytes[at..end].copy_from_slice(&kept[..end - at]);
        }
        Ok(())
    }
}

/// What may be on the disk of a file that was `synced` once and is `now`.
fn tear(synced: &[u8], now: &[u8], random: &mut SmallRng) -> Vec<u8> {
    let (shorter, longer) = (synced.len().min(now.len()), synced.len().max(now.len()));
    // Nothing, everything, a beginning, or any pages of what is not synced.
    let chance = match random.random_range(0..5) {
        0 => return synced.to_vec(),
        1 => return now.to_vec(),
        2 => 1.0,
        3 => 0.5,
        _ => 0.9,
    };
    let size = match random.random_range(0..3) {
        0 => now.len(),
        1 => random.random_range(shorter..=longer),
        _ => random.random_range(shorter / PAGE..=longer / PAGE) * PAGE,
    };
    let size = size.clamp(shorter, longer);
    let page = |of: &[u8], start: usize| {
        let mut bytes = of.get(start..of.len().min(start + PAGE)).unwrap_or_default().to_vec();
        bytes.resize(PAGE, 0);
        bytes
    };
    let mut torn = Vec::with_capacity(size + PAGE);
    while torn.len() < size {
        let from = if random.random_bool(chance) { now } else { synced };
        let start = torn.len();
        torn.extend(page(from, start));
    }
    torn.truncate(size);
    torn
}
