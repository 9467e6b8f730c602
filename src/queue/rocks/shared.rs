//! What the committer, the readers and the claims have in common.
//!
//! Locks: the database's is taken first, held while it is read, and never taken twice by one thread; all others are held for
//! moments, and under that of the claims alone another is taken.

use super::claims::Claims;
use super::database::Loaded;
use super::done::DoneIndex;
use super::error::is_damage;
use super::figures::Figures;
use super::keys::{self, family};
use super::recover::ask_for_check;
use crate::queue::damage::QueueTrouble;
use crate::queue::{Changes, Entry, Lane, QueueError, RouteId};
use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use rocksdb::{DB, Direction, IteratorMode};
use std::collections::HashMap;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The database, or why there is none.
enum Handle {
    Open(Arc<DB>),
    /// It is being opened again.
    Reopening(String),
    Closed,
}

/// The open database. It is not closed as long as one of these is held: reads must be short.
pub(super) struct OpenDb<'a> {
    // Dropped before the lock is: whoever gets that for writing has the last handle.
    db: Arc<DB>,
    _open: RwLockReadGuard<'a, Handle>,
}

impl Deref for OpenDb<'_> {
    type Target = DB;

    fn deref(&self) -> &DB {
        &self.db
    }
}

/// See the module's header.
pub(super) struct Shared {
    dir: PathBuf,
    db: RwLock<Handle>,
    trouble: Mutex<Option<QueueTrouble>>,
    claims: Mutex<Claims>,
    figures: Mutex<Figures>,
    /// Claims that were dropped, on their way to `claims`: whoever holds that lock may drop one.
    returned: Mutex<Vec<(RouteId, Lane, u64)>>,
    watches: Mutex<HashMap<RouteId, watch::Sender<Changes>>>,
    done: Mutex<DoneIndex>,
    /// Held while refs are sought by their beginning, which takes memory and time: by one at a time, also where nobody waits for
    /// it any more.
    pub(super) finding: Mutex<()>,
    settlements: watch::Sender<u64>,
    max_backoff: Duration,
}

impl Shared {
    pub(super) fn new(dir: &Path, db: DB, loaded: Loaded, max_backoff: Duration) -> Self {
        Self {
            dir: dir.to_owned(),
            db: RwLock::new(Handle::Open(Arc::new(db))),
            trouble: Mutex::default(),
            claims: Mutex::new(loaded.claims),
            figures: Mutex::new(loaded.figures),
            returned: Mutex::default(),
            watches: Mutex::default(),
            done: Mutex::new(loaded.done),
            finding: Mutex::default(),
            settlements: watch::Sender::new(0),
            max_backoff,
        }
    }

    /// The longest backoff there is.
    pub(super) fn max_backoff(&self) -> Duration {
        self.max_backoff
    }

    pub(super) fn db(&self) -> Result<OpenDb<'_>, QueueError> {
        let open = self.db.read();
        match &*open {
            Handle::Open(db) => Ok(OpenDb { db: Arc::clone(db), _open: open }),
            Handle::Reopening(why) => Err(QueueError::Read(format!("it is being opened again: {why}"))),
            Handle::Closed => Err(QueueError::Closed),
        }
    }

    fn set_handle(&self, handle: Handle) {
        let mut open = self.db.write();
        if !matches!(*open, Handle::Closed) {
            *open = handle;
        }
    }

    /// Closes the database for good, once the reads under way have ended. Blocks.
    pub(super) fn close(&self) {
        self.set_handle(Handle::Closed);
    }

    /// Closes the database, to open it again. Blocks.
    pub(super) fn suspend(&self, why: &str) {
        self.set_handle(Handle::Reopening(why.to_owned()));
    }

    /// Goes on with a database that was opened again. The committer's own, between two batches.
    pub(super) fn resume(&self, db: DB, loaded: Loaded) {
        self.claims().resume(loaded.claims);
        self.figures().resume(loaded.figures);
        *self.done() = loaded.done;
        self.set_handle(Handle::Open(Arc::new(db)));
        let mut trouble = self.trouble.lock();
        if matches!(*trouble, Some(QueueTrouble::Reopening(_))) {
            *trouble = None;
        }
        drop(trouble);
        let routes: Vec<RouteId> = self.figures().routes.keys().copied().collect();
        routes.into_iter().for_each(|route| self.wake(route, Changes::add_all));
    }

    pub(super) fn trouble(&self) -> Option<QueueTrouble> {
        self.trouble.lock().clone()
    }

    pub(super) fn set_trouble(&self, trouble: QueueTrouble) {
        *self.trouble.lock() = Some(trouble);
    }

    /// What a failed read is to the caller. Damage is remembered, for the next start.
    pub(super) fn read_error(&self, error: &rocksdb::Error) -> QueueError {
        if is_damage(error) {
            self.note_damage(error.as_ref());
        }
        QueueError::Read(error.to_string())
    }

    /// Stored bytes are damaged: says so, once, and asks the next start to read everything.
    pub(super) fn note_damage(&self, what: &str) {
        let mut trouble = self.trouble.lock();
        if trouble.is_some() {
            return;
        }
        *trouble = Some(QueueTrouble::Damaged(what.to_owned()));
        drop(trouble);
        tracing::error!("the queue is damaged, restart to have it mended: {what}");
        if let Err(error) = ask_for_check(&self.dir) {
            tracing::error!(%error, "the next start cannot be asked to check the queue");
        }
    }

    pub(super) fn figures(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock()
    }

    /// The claims, up to date.
    pub(super) fn claims(&self) -> MutexGuard<'_, Claims> {
        let mut claims = self.claims.lock();
        for (route, lane, seq) in self.returned.lock().drain(..) {
            claims.release(route, lane, seq);
        }
        claims
    }

    /// A claim was dropped.
    pub(super) fn release(&self, entry: &Entry) {
        self.returned.lock().push((entry.route, entry.lane, entry.seq.0));
        self.figures().claim(entry, false);
        // A revived one stands in the retry order, too, though it has not failed.
        self.wake(entry.route, |changes| {
            changes.add(entry.lane, false);
            changes.add(entry.lane, true);
        });
    }

    /// Tells the route's subscribers that there may be something to claim.
    pub(super) fn wake(&self, route: RouteId, change: impl FnOnce(&mut Changes)) {
        if let Some(watch) = self.watches.lock().get(&route) {
            watch.send_modify(change);
        }
    }

    pub(super) fn subscribe(&self, route: RouteId) -> watch::Receiver<Changes> {
        self.watches.lock().entry(route).or_default().subscribe()
    }

    /// Where completions are to be found.
    pub(super) fn done(&self) -> MutexGuard<'_, DoneIndex> {
        self.done.lock()
    }

    /// Tells who waits for settlements that there were some.
    pub(super) fn settled(&self) {
        self.settlements.send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(super) fn settlements(&self) -> watch::Receiver<u64> {
        self.settlements.subscribe()
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, QueueError> {
        let db = self.db()?;
        db.get_cf(family(&db, keys::STATE)?, key).map_err(|error| self.read_error(&error))
    }

    pub(super) fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        let db = self.db()?;
        // No text has this byte: it stands behind all keys of the prefix.
        let end = [prefix.as_bytes(), &[0xff]].concat();
        let mode = IteratorMode::From(&end, Direction::Reverse);
        let mut found = Vec::new();
        for row in db.iterator_cf(family(&db, keys::STATE)?, mode).take(limit) {
            let (key, value) = row.map_err(|error| self.read_error(&error))?;
            if !key.starts_with(prefix.as_bytes()) {
                break;
            }
            let key = String::from_utf8(key.into_vec())
                .map_err(|error| QueueError::Read(format!("a state key is no text: {error}")))?;
            found.push((key, value.into_vec()));
        }
        Ok(found)
    }
}
