//! What is done with a damaged database, once per start.
//!
//! ```text
//! opened whole? ──yes──▶ use it
//!     │ damaged (never: no permission, no space, in use, a failing disk)
//!     ▼
//! readable up to the damage, tried without writing?
//!     │ yes: copy the folder aside, note it, open the original up to the damage
//!     │ no:  note it, move the folder aside, begin a new one
//!     ▼
//! the note becomes an incident in the state, in a synced write; then it is deleted
//! ```
//!
//! The note (`recovery`, beside the database) is durable before anything is given up, so that a crash in between hides
//! nothing: the next start finds the note and tells. What stands aside is never touched again, and the operator's to delete:
//! `db.damaged-TIME`. A copy in the making ends in `.partial`, and is deleted by the next start.
//!
//! Tables are never changed once they are written, so they are linked where the file system can.
//!
//! The file `made` stands where a queue was made: where its database is gone altogether, that is damage, and no new queue.
//! It names the format, so that what a newer version wrote is refused before it is taken for damage.
//! The file `check` asks for a start that reads everything: damage was met while the queue ran.

use super::database::{
    Loaded, Log, folder, made_path, newest_time, open_loaded, sync_folder, write_made, write_synced,
};
use super::error::OpenError;
use super::keys;
use super::options::RocksOptions;
use crate::queue::damage::{Incident, Mending};
use prost::Message;
use rocksdb::{DB, WriteBatch};
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Begins the names of what stands aside.
const ASIDE: &str = "db.damaged-";

/// Ends the names of copies that were not finished.
const PARTIAL: &str = ".partial";

/// Incidents that are not in the state yet.
#[derive(Clone, PartialEq, Message)]
struct Note {
    #[prost(bytes = "vec", repeated, tag = "1")]
    incidents: Vec<Vec<u8>>,
}

fn note_path(dir: &Path) -> PathBuf {
    dir.join("recovery")
}

/// Where it stands that the next start is to read everything.
pub(super) fn check_path(dir: &Path) -> PathBuf {
    dir.join("check")
}

/// Asks for a start that reads everything.
pub(super) fn ask_for_check(dir: &Path) -> Result<(), OpenError> {
    let path = check_path(dir);
    let file = File::create(&path).and_then(|file| file.sync_all());
    file.map_err(OpenError::folder(&path))?;
    sync_folder(dir)
}

/// Opens the database, mended where it is damaged.
pub(super) fn open_mended(dir: &Path, options: &RocksOptions, now: SystemTime) -> Result<(DB, Loaded), OpenError> {
    delete_partial(dir)?;
    let check = check_path(dir);
    let verify = check.exists();
    if verify {
        tracing::warn!("damage was met when the queue ran last; all of it is read now");
    }
    let (db, loaded) = match open_loaded(dir, options, Log::Whole, verify) {
        Ok(opened) => opened,
        Err(OpenError::Corrupt(what)) => mend(dir, options, &what, now, verify)?,
        Err(error) => return Err(error),
    };
    record(dir, &db, &loaded)?;
    write_made(dir)?;
    if verify {
        remove(&check)?;
        sync_folder(dir)?;
    }
    Ok((db, loaded))
}

fn mend(
    dir: &Path,
    options: &RocksOptions,
    what: &str,
    now: SystemTime,
    verify: bool,
) -> Result<(DB, Loaded), OpenError> {
    tracing::error!("the queue is damaged: {what}");
    fs::create_dir_all(folder(dir)).map_err(OpenError::folder(dir))?;
    check_readable(&folder(dir))?;
    let before = read_note(dir, now)?;
    // Nothing is copied where it would be of no use.
    match open_loaded(dir, options, Log::UpToDamageReadOnly, verify).map(drop) {
        Ok(()) => {
            let kept = copy_aside(dir, what, now)?;
            let incident = incident(now, Mending::CutBack, what, &kept);
            write_note(dir, &before, incident)?;
            match open_loaded(dir, options, Log::UpToDamage, false) {
                Ok(opened) => {
                    tracing::error!(kept = %kept.display(), "the queue was opened up to the damage");
                    return Ok(opened);
                }
                Err(OpenError::Corrupt(_)) => {
                    // What is moved aside next is the same, and the copy not needed.
                    write_notes(dir, &before)?;
                    fs::remove_dir_all(&kept).map_err(OpenError::folder(&kept))?;
                }
                Err(error) => return Err(error),
            }
        }
        Err(OpenError::Corrupt(_)) => {}
        Err(error) => return Err(error),
    }
    let kept = free_name(dir, now);
    write_note(dir, &before, incident(now, Mending::BegunAnew, what, &kept))?;
    fs::rename(folder(dir), &kept).map_err(OpenError::folder(&kept))?;
    // What comes next is a new queue; the note is there already.
    let made = made_path(dir);
    if made.exists() {
        fs::remove_file(&made).map_err(OpenError::folder(&made))?;
    }
    sync_folder(dir)?;
    tracing::error!(kept = %kept.display(), "the queue could not be read and was moved aside; a new one is begun");
    open_loaded(dir, options, Log::Whole, false)
}

fn incident(time: SystemTime, mending: Mending, what: &str, kept: &Path) -> Incident {
    Incident {
        time,
        mending,
        what: what.to_owned(),
        kept: kept.display().to_string(),
        lost_from: None,
        is_assigned: false,
    }
}

/// Refuses a database that this process may not read: it may be sound.
fn check_readable(path: &Path) -> Result<(), OpenError> {
    for file in fs::read_dir(path).map_err(OpenError::folder(path))? {
        let file = file.map_err(OpenError::folder(path))?.path();
        File::open(&file).map_err(OpenError::folder(&file))?;
    }
    Ok(())
}

/// A name for what stands aside that is not taken.
fn free_name(dir: &Path, now: SystemTime) -> PathBuf {
    let time = humantime::format_rfc3339_seconds(now).to_string().replace(['-', ':'], "");
    let name = |number: u32| match number {
        1 => dir.join(format!("{ASIDE}{time}")),
        _ => dir.join(format!("{ASIDE}{time}-{number}")),
    };
    (1..).map(name).find(|name| !name.exists()).unwrap_or_else(|| name(1))
}

/// Copies the database beside itself, durably, and gives the copy's name.
fn copy_aside(dir: &Path, what: &str, now: SystemTime) -> Result<PathBuf, OpenError> {
    let from = folder(dir);
    let kept = free_name(dir, now);
    let mut partial = kept.clone().into_os_string();
    partial.push(PARTIAL);
    let partial = PathBuf::from(partial);
    let made = copy_into(dir, &from, &partial, what);
    if made.is_err()
        && let Err(error) = fs::remove_dir_all(&partial)
    {
        tracing::warn!(folder = %partial.display(), %error, "an unfinished copy could not be deleted");
    }
    made?;
    fs::rename(&partial, &kept).map_err(OpenError::folder(&kept))?;
    sync_folder(dir)?;
    Ok(kept)
}

fn copy_into(dir: &Path, from: &Path, to: &Path, what: &str) -> Result<(), OpenError> {
    fs::create_dir(to).map_err(OpenError::folder(to))?;
    let (mut copies, mut need) = (Vec::new(), 0);
    for file in fs::read_dir(from).map_err(OpenError::folder(from))? {
        let file = file.map_err(OpenError::folder(from))?;
        let (path, target) = (file.path(), to.join(file.file_name()));
        let is_table = path.extension().is_some_and(|ending| ending == "sst");
        if is_table && fs::hard_link(&path, &target).is_ok() {
            continue;
        }
        let data = file.metadata().map_err(OpenError::folder(&path))?;
        if data.is_file() {
            need += data.len();
            copies.push((path, target));
        }
    }
    let stat = rustix::fs::statvfs(dir).map_err(|error| OpenError::folder(dir)(error.into()))?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    if need > free {
        return Err(OpenError::NoRoom { what: what.to_owned(), dir: dir.to_owned(), need, free });
    }
    for (path, target) in copies {
        let copied = fs::copy(&path, &target).and_then(|_| File::open(&target)?.sync_all());
        copied.map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull => OpenError::NoRoom { what: what.to_owned(), dir: dir.to_owned(), need, free },
            _ => OpenError::folder(&path)(error),
        })?;
    }
    sync_folder(to)
}

fn delete_partial(dir: &Path) -> Result<(), OpenError> {
    for file in fs::read_dir(dir).map_err(OpenError::folder(dir))? {
        let file = file.map_err(OpenError::folder(dir))?;
        let name = file.file_name().to_string_lossy().into_owned();
        if name.starts_with(ASIDE) && name.ends_with(PARTIAL) {
            fs::remove_dir_all(file.path()).map_err(OpenError::folder(&file.path()))?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<(), OpenError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(OpenError::folder(path)(error)),
        _ => Ok(()),
    }
}

/// The incidents that an earlier start could not record. A note of which nothing can be read counts as one.
fn read_note(dir: &Path, now: SystemTime) -> Result<Vec<Incident>, OpenError> {
    let path = note_path(dir);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(OpenError::folder(&path)(error)),
    };
    let note = Note::decode(bytes.as_slice()).unwrap_or_else(|_| Note { incidents: vec![Vec::new()] });
    let read = |bytes: &Vec<u8>| {
        Incident::decode(bytes).unwrap_or_else(|_| {
            incident(now, Mending::BegunAnew, "the note of an earlier recovery cannot be read", dir)
        })
    };
    Ok(note.incidents.iter().map(read).collect())
}

fn write_note(dir: &Path, before: &[Incident], incident: Incident) -> Result<(), OpenError> {
    let mut incidents = before.to_vec();
    incidents.push(incident);
    write_notes(dir, &incidents)
}

fn write_notes(dir: &Path, incidents: &[Incident]) -> Result<(), OpenError> {
    let path = note_path(dir);
    let draft = dir.join("recovery.new");
    let bytes = Note { incidents: incidents.iter().map(Incident::encode).collect() }.encode_to_vec();
    let written = File::create(&draft).and_then(|mut file| {
        file.write_all(&bytes)?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&draft, &path)).map_err(OpenError::folder(&path))?;
    sync_folder(dir)
}

/// Moves the note into the state.
fn record(dir: &Path, db: &DB, loaded: &Loaded) -> Result<(), OpenError> {
    let path = note_path(dir);
    let now = loaded.commit_time.unwrap_or(SystemTime::UNIX_EPOCH);
    let incidents = read_note(dir, now)?;
    if !incidents.is_empty() {
        let state = db.cf_handle(keys::STATE).ok_or_else(|| OpenError::Corrupt("it has no state".to_owned()))?;
        let newest = newest_time(db, loaded);
        let mut batch = WriteBatch::default();
        for mut incident in incidents {
            if incident.mending == Mending::CutBack {
                incident.lost_from = newest;
            }
            batch.put_cf(state, incident.key(), incident.encode());
        }
        write_synced(db, batch)?;
    }
    // Also one that says nothing.
    if path.exists() {
        remove(&path)?;
        sync_folder(dir)?;
    }
    Ok(())
}
