//! A queue on disk as others hold it: each request goes to the committer, or reads.

use super::request::Request;
use super::row::RouteRow;
use super::shared::Shared;
use crate::clock::Clock;
use crate::failpoint::{self, Point};
use crate::queue::damage::{Condition, QueueTrouble};
use crate::queue::{
    Changes, Claim, ClaimRequest, Claimed, Oldest, Outcome, Push, Pushed, Queue, QueueError, RouteCounts, RouteId,
    State, StateWrite, SyncId, SyncTally,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

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

/// The queue on disk. See the header of `rocks`.
pub struct RocksQueue {
    pub(super) shared: Arc<Shared>,
    pub(super) requests: Mutex<Option<mpsc::Sender<Request>>>,
    pub(super) committer: Mutex<Option<JoinHandle<()>>>,
    /// Cancelled when the committer has ended.
    pub(super) ended: CancellationToken,
    pub(super) clock: Arc<dyn Clock>,
    /// Held until the last handle is gone, or the queue is closed.
    pub(super) lock: Mutex<Option<std::fs::File>>,
}

impl fmt::Debug for RocksQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RocksQueue").finish_non_exhaustive()
    }
}

impl RocksQueue {
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
        self.lock.lock().take();
    }

    fn stop(&self) -> Option<JoinHandle<()>> {
        self.requests.lock().take();
        self.committer.lock().take()
    }

    fn sender(&self) -> Result<mpsc::Sender<Request>, QueueError> {
        self.requests.lock().clone().ok_or(QueueError::Closed)
    }

    /// Hands a request to the committer and waits for the answer. Dropped meanwhile, the request is done all the same.
    pub(super) async fn ask<T>(
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
    pub(super) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Arc<Shared>) -> Result<T, QueueError> + Send + 'static,
    ) -> Result<T, QueueError> {
        let shared = Arc::clone(&self.shared);
        // Boxed, so that tokio's machinery of a task is compiled once for each kind of answer, and not for each question.
        let work: Box<dyn FnOnce() -> Result<T, QueueError> + Send> = Box::new(move || read(&shared));
        let result = tokio::task::spawn_blocking(work).await;
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
        failpoint::pause(Point::QueueClaim).await?;
        let claimed = self.ask(|answer| Request::Claim { request, answer }).await?;
        failpoint::pause(Point::QueueClaimed).await?;
        Ok(claimed)
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
        let now = self.clock.now();
        self.read(move |shared| shared.oldest(route, now)).await
    }

    fn sync_tally(&self, sync: SyncId) -> SyncTally {
        self.shared.figures().sync(sync)
    }

    fn subscribe(&self, route: RouteId) -> watch::Receiver<Changes> {
        self.shared.subscribe(route)
    }
}

impl Condition for RocksQueue {
    fn trouble(&self) -> Option<QueueTrouble> {
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
