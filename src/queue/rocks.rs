//! The queue on disk: RocksDB, one committer, claims in memory.
//!
//! # Keys
//!
//! Numbers are big-endian. A route is 4 bytes, a lane 1 (0 fresh, 1 backfill), a sequence and a time 8 (nanoseconds since
//! 1970), a fault's kind 1. A ref is [`BlobRef::to_key`](crate::blob::BlobRef::to_key).
//!
//! | family | key | value |
//! |---|---|---|
//! | `entry` | route, seq | a row: the entry, and which of the next three it has |
//! | `ready` | route, lane, seq | 1 byte: has it failed; 8 bytes: its size, if known |
//! | `retry` | route, lane, due, seq | the same |
//! | `parked` | route, kind, seq | the same |
//! | `ref` | route, ref | one sequence or two, ascending: an entry and its successor |
//! | `state` | text | anything ([`State`]) |
//! | `done` | number | a row: what left the queue in one batch; the oldest are deleted |
//! | `aside` | family, `/`, its key | a row that could not be read, as it was |
//! | `meta` | `format` | 4 bytes: the format's version |
//! | | `next_seq` | 8 bytes: lower than every sequence not yet given |
//! | | `commit_time` | 8 bytes: when the last batch was written |
//! | | `aside` | 8 bytes: rows set aside so far |
//! | | `route/`, route | a row: name, from, to |
//! | | `counts/`, route | a row: the route's counters, and where its `ready` rows begin |
//! | | `sync/`, id | a row: the sync's tally |
//!
//! A *row* is a version byte and a protobuf message (see `row`), so that fields can be added.
//!
//! # Invariants
//!
//! - Every change is one synced `WriteBatch` of the committer's thread. Index rows, counters and tallies are derived from the
//!   entries' changes in that batch, so they cannot drift, and opening does not scan.
//! - An entry's row may say that it is alone, that its ref's row names no other: then nothing has to read that.
//! - An entry has exactly one `entry` row, its ref's `ref` row names it, and it has one row of `ready`, `retry` or `parked`,
//!   but a successor has none. `ready` is append only: what becomes claimable out of turn (revived, changed lane, succeeded)
//!   has a `retry` row, due at once.
//! - Claims with the rows of their entries, released claims and read cursors are memory only (`claims`). No read walks over
//!   what was settled before: the counters' row says where `ready` begins, and deletions in `retry` are compacted soon.
//! - Memory changes after the write, never before: a failed write changes nothing but the next sequence.
//!
//! `recover` says what is done with a damaged database on opening, `reopen` what after a failed write.

mod apply;
mod claims;
mod commit;
mod database;
mod decide;
mod done;
mod dropped;
mod failed;
mod gather;
mod keys;
mod log_scan;
mod lookup;
mod measure;
mod open;
mod recover;
mod reopen;
mod request;
mod row;
mod shared;
mod space;
mod transfer;
mod txn;

pub use open::OpenError;
pub use transfer::{TransferError, Transferred, export, import};

use crate::failpoint::{self, Point};
use crate::metrics::CommitMetrics;
use crate::queue::damage::{Condition, Trouble};
use crate::queue::{
    Claim, ClaimRequest, Claimed, Oldest, Outcome, Push, Pushed, Queue, QueueError, RouteCounts, RouteId, State,
    StateWrite, SyncId, SyncTally,
};
use async_trait::async_trait;
use request::Request;
use row::RouteRow;
use shared::Shared;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

/// Tells the time of day.
pub type WallClock = Arc<dyn Fn() -> SystemTime + Send + Sync>;

/// How a queue on disk is to behave.
#[derive(Clone, Debug)]
pub struct RocksOptions {
    /// Announcements are refused when the queue holds this many entries, in all routes.
    pub max_entries: u64,
    /// Announcements are refused when the disk has fewer free bytes; 0 turns this off.
    pub reserve_bytes: u64,
    /// The longest time that an entry may be made to wait; one due further ahead is due.
    pub max_backoff: Duration,
    /// Bytes of memory for what was read; as many again for what was written and is not in files yet.
    pub cache_bytes: usize,
    /// Confirmed and discarded entries that are remembered, about; 0: none.
    pub completions: usize,
    /// Counts what the committer does.
    pub metrics: Arc<CommitMetrics>,
}

impl Default for RocksOptions {
    fn default() -> Self {
        Self {
            max_entries: 100_000_000,
            reserve_bytes: 1 << 30,
            max_backoff: Duration::from_secs(24 * 60 * 60),
            cache_bytes: 64 << 20,
            completions: 65_536,
            metrics: Arc::default(),
        }
    }
}

/// A route that the queue knows, configured or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownRoute {
    /// Its number.
    pub id: RouteId,
    /// Its name.
    pub name: String,
    /// The configured name of the store it starts from.
    pub from: String,
    /// The configured name of the store it leads to.
    pub to: String,
}

/// The queue on disk. See the module's header.
pub struct RocksQueue {
    shared: Arc<Shared>,
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    committer: Mutex<Option<JoinHandle<()>>>,
    /// Cancelled when the committer has ended.
    ended: CancellationToken,
    wall: WallClock,
    /// Held until the last handle is gone, or the queue is closed.
    lock: Mutex<Option<std::fs::File>>,
}

impl fmt::Debug for RocksQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksQueue").finish_non_exhaustive()
    }
}

impl RocksQueue {
    /// Opens the queue in this folder, or makes a new one. Blocks.
    pub fn open(dir: &Path, options: RocksOptions, wall: WallClock) -> Result<Self, OpenError> {
        open::open(dir, options, wall, Box::new(database::write_synced))
    }

    /// Every route that was ever registered.
    pub fn routes(&self) -> Vec<KnownRoute> {
        let figures = self.shared.figures();
        let routes = figures.routes.iter().map(|(id, row)| KnownRoute {
            id: *id,
            name: row.name.clone(),
            from: row.from.clone(),
            to: row.to.clone(),
        });
        routes.collect()
    }

    /// How many rows could not be read and were set aside since the queue was made.
    pub fn set_aside(&self) -> u64 {
        self.shared.figures().aside
    }

    /// Cancelled when nothing will be written any more: the queue was closed, its committer panicked, or a write ended in a
    /// way that only opening the queue anew can make good. From then on every request gets [`QueueError::Closed`].
    pub fn ended(&self) -> CancellationToken {
        self.ended.clone()
    }

    /// Takes no more requests, finishes those it has, and lets go of the folder. Claims that are still held are ready
    /// again when the queue is opened next.
    pub async fn close(&self) {
        let (committer, shared) = (self.stop(), Arc::clone(&self.shared));
        let closing = tokio::task::spawn_blocking(move || {
            join(committer);
            shared.close();
        });
        if closing.await.is_err() {
            tracing::error!("the wait for the queue's committer was broken off");
        }
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    fn stop(&self) -> Option<JoinHandle<()>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.committer.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn sender(&self) -> Result<mpsc::Sender<Request>, QueueError> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or(QueueError::Closed)
    }

    /// Hands a request to the committer and waits for the answer. Dropped meanwhile, the request is done all the same.
    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, QueueError>>) -> Request,
    ) -> Result<T, QueueError> {
        let (answer, answered) = oneshot::channel();
        let sender = self.sender()?;
        sender.send(request(answer)).await.map_err(|_| QueueError::Closed)?;
        drop(sender);
        answered.await.map_err(|_| QueueError::Closed)?
    }

    /// Reads on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Arc<Shared>) -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let shared = Arc::clone(&self.shared);
        let result = tokio::task::spawn_blocking(move || read(&shared)).await;
        result.map_err(|error| QueueError::Read(error.to_string()))?
    }
}

impl Drop for RocksQueue {
    fn drop(&mut self) {
        join(self.stop());
        self.shared.close();
    }
}

fn join(committer: Option<JoinHandle<()>>) {
    if committer.is_some_and(|committer| committer.join().is_err()) {
        tracing::error!("the queue's committer panicked");
    }
}

#[async_trait]
impl Queue for RocksQueue {
    async fn register(&self, name: &str, from: &str, to: &str) -> Result<RouteId, QueueError> {
        failpoint::pause(Point::QueueRegister).await?;
        let route = RouteRow { name: name.to_owned(), from: from.to_owned(), to: to.to_owned() };
        self.ask(|answer| Request::Register { route, answer }).await
    }

    async fn push(&self, pushes: Vec<Push>, state: Vec<StateWrite>) -> Result<Vec<Pushed>, QueueError> {
        failpoint::pause(Point::QueuePush).await?;
        let pushed = self.ask(|answer| Request::Push { pushes, state, answer }).await?;
        failpoint::pause(Point::QueuePushed).await?;
        Ok(pushed)
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, QueueError> {
        let sender = self.sender()?;
        self.read(move |shared| {
            failpoint::hit(Point::QueueClaim)?;
            let (claimed, rows) = shared.claim(&request)?;
            failpoint::hit(Point::QueueClaimed)?;
            if !rows.is_empty() && sender.blocking_send(Request::Aside { rows }).is_err() {
                tracing::warn!("the queue closed before unreadable rows were set aside; they will be met again");
            }
            Ok(claimed)
        })
        .await
    }

    async fn settle(&self, settled: Vec<(Claim, Outcome)>) -> Result<(), QueueError> {
        failpoint::pause(Point::QueueSettle).await?;
        self.ask(|answer| Request::Settle { settled, answer }).await?;
        Ok(failpoint::pause(Point::QueueSettled).await?)
    }

    fn counts(&self, route: RouteId) -> RouteCounts {
        self.shared.figures().counts_by_state(route)
    }

    async fn oldest(&self, route: RouteId) -> Result<Oldest, QueueError> {
        failpoint::pause(Point::QueueOldest).await?;
        let now = (self.wall)();
        self.read(move |shared| shared.oldest(route, now)).await
    }

    fn sync_tally(&self, sync: SyncId) -> SyncTally {
        self.shared.figures().sync(sync)
    }

    fn subscribe(&self, route: RouteId) -> watch::Receiver<u64> {
        self.shared.subscribe(route)
    }
}

impl Condition for RocksQueue {
    fn trouble(&self) -> Option<Trouble> {
        self.shared.trouble()
    }
}

#[async_trait]
impl State for RocksQueue {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, QueueError> {
        failpoint::pause(Point::StateGet).await?;
        let key = key.to_owned();
        self.read(move |shared| shared.get(&key)).await
    }

    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        failpoint::pause(Point::StateList).await?;
        let prefix = prefix.to_owned();
        self.read(move |shared| shared.list(&prefix, limit)).await
    }

    async fn write(&self, writes: Vec<StateWrite>) -> Result<(), QueueError> {
        failpoint::pause(Point::StateWrite).await?;
        self.push(Vec::new(), writes).await.map(drop)
    }
}

#[cfg(test)]
mod tests;
