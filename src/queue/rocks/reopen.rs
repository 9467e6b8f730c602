//! Opening the database again, after a durable write failed.
//!
//! What a failed write left behind is unknown: it may be in the log or not, and RocksDB writes no more until it is opened
//! anew. So the database is closed, opened as at a start, and its figures read back: a batch that did reach the disk is
//! simply there, and nobody was told of it. Meanwhile the committer refuses everything at once. Claims stay valid, because
//! only their own settlement changes a claimed entry, and a settlement that failed has released its claims.
//!
//! A database that is closed can be read by nobody. So it stays open for as long as its folder cannot be written at all (a file
//! system that turned read-only, no more files for this process): `Status`, failures and stories are told all the while.
//!
//! It is tried until it works, 0.1 s to 10 s apart. Damage is not mended here but at the next start, because the routes that
//! this process works with may not be in what can be read: then this says [`QueueTrouble::Ended`], and the process is to stop.

use super::database::{Log, folder, open_loaded};
use super::error::OpenError;
use super::options::RocksOptions;
use super::recover::check_path;
use super::request::{Reopened, Request};
use super::shared::Shared;
use crate::backoff::Backoff;
use crate::folder::try_writing;
use crate::queue::damage::QueueTrouble;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::WeakSender;

const PAUSES: Backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(10));

/// How often a folder that cannot be written is tried: a file is made in it.
const LOOK: Duration = Duration::from_secs(1);

/// The thread that opens the database again. Dropped, it gives up, and is waited for.
pub(super) struct Reopening {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for Reopening {
    fn drop(&mut self) {
        self.stop.take();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that opens the queue again panicked");
        }
    }
}

/// What the thread works with.
pub(super) struct ReopenPlan {
    pub(super) shared: Arc<Shared>,
    pub(super) dir: PathBuf,
    pub(super) options: RocksOptions,
    /// Where the opened database goes. Weak, so that the queue can be closed meanwhile.
    pub(super) sender: WeakSender<Request>,
    /// Why the write failed.
    pub(super) why: String,
    /// How often it was opened again before, with no successful write since.
    pub(super) before: u32,
}

impl Reopening {
    /// Begins.
    pub(super) fn start(plan: ReopenPlan) -> std::io::Result<Self> {
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::Builder::new().name("queue-reopener".to_owned()).spawn(move || {
            let mut attempts = plan.before;
            let mut pause = if attempts > 0 { PAUSES.nominal(attempts) } else { Duration::ZERO };
            loop {
                // Nothing is ever sent: the sender goes away.
                if stopped.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                    return;
                }
                if let Err(error) = try_writing(&plan.dir) {
                    let why =
                        format!("{} cannot be written: {error}; once it can, it goes on by itself", plan.dir.display());
                    plan.shared.set_trouble(QueueTrouble::Reopening(why));
                    pause = LOOK;
                    continue;
                }
                plan.shared.suspend(&plan.why);
                match open_again(&plan.dir, &plan.options) {
                    Ok(reopened) => {
                        let Some(sender) = plan.sender.upgrade() else { return };
                        if sender.blocking_send(Request::Reopened(Box::new(reopened))).is_err() {
                            tracing::debug!("the queue was closed while it was opened again");
                        }
                        return;
                    }
                    Err(error @ (OpenError::Corrupt(_) | OpenError::Format { .. })) => {
                        tracing::error!(%error, "the queue cannot be opened again without a restart");
                        plan.shared.set_trouble(QueueTrouble::Ended(error.to_string()));
                        return;
                    }
                    Err(error) => tracing::warn!(%error, attempts, "the queue could not be opened again yet"),
                }
                attempts = attempts.saturating_add(1);
                pause = PAUSES.nominal(attempts);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

fn open_again(dir: &Path, options: &RocksOptions) -> Result<Reopened, OpenError> {
    if !folder(dir).join("CURRENT").exists() {
        // RocksDB would begin a new database, and nobody would be told.
        return Err(OpenError::Corrupt("its files are gone".to_owned()));
    }
    let check = check_path(dir);
    let verify = check.exists();
    let (db, loaded) = open_loaded(dir, options, Log::Whole, verify)?;
    if verify {
        std::fs::remove_file(&check).map_err(OpenError::folder(&check))?;
    }
    Ok(Reopened { db, loaded })
}
