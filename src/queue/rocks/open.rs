//! Opening: the lock, then the database, mended where it must be, and its committer.

use super::commit::{Committer, WriteFn};
use super::database::write_synced;
use super::error::OpenError;
use super::gather::Gather;
use super::handle::RocksQueue;
use super::options::RocksOptions;
use super::recover::open_mended;
use super::request::CHANNEL;
use super::shared::Shared;
use super::space::Space;
use crate::clock::Clock;
use crate::failpoint::{self, Point};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::fs::{File, TryLockError};
use std::path::Path;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

impl RocksQueue {
    /// Opens the queue in this folder, or makes a new one. Blocks.
    ///
    /// # Errors
    /// See `OpenError`.
    pub fn open(dir: &Path, options: RocksOptions, clock: Arc<dyn Clock>) -> Result<Self, OpenError> {
        open(dir, options, clock, Box::new(write_synced))
    }
}

/// Opens or makes a queue; `write` is what makes batches durable.
pub(super) fn open(
    dir: &Path,
    options: RocksOptions,
    clock: Arc<dyn Clock>,
    write: WriteFn,
) -> Result<RocksQueue, OpenError> {
    let lock = lock(dir)?;
    failpoint::hit(Point::QueueOpen)?;
    let (db, loaded) = open_mended(dir, &options, clock.now())?;
    let next_seq = loaded.next_seq;
    let unparked = loaded.figures.unparked();
    let shared = Arc::new(Shared::new(dir, db, loaded, options.max_backoff));

    let (sender, receiver) = tokio::sync::mpsc::channel(CHANNEL);
    let committer = Committer {
        shared: Arc::clone(&shared),
        dir: dir.to_owned(),
        space: Space::new(dir.to_owned(), options.reserve_bytes, Arc::clone(&clock)),
        options,
        clock: Arc::clone(&clock),
        write,
        next_seq,
        unparked,
        gather: Gather::new(Arc::clone(&clock)),
        claims: VecDeque::new(),
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
        clock,
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
