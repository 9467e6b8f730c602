//! The one place through which the store on disk blocks: files, folders and RocksDB reads.
//!
//! A job is short (at most one chunk, one page or one sync) and never waits for another or for a peer, so a bounded number
//! of them at once is no risk of a deadlock. A job that was started runs to its end even if nobody waits for it any more; what it gives
//! is then dropped on its thread.

use crate::store::StoreError;
use std::io;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

/// Jobs at once: beyond this a disk only queues, and tokio's blocking threads (512) are there for others too.
const JOBS: usize = 64;

/// Runs blocking jobs off the runtime's threads, a bounded number at once.
#[derive(Clone, Debug)]
pub(super) struct Io {
    permits: Arc<Semaphore>,
}

/// A job that was started.
pub(super) struct BlockingJob<T>(JoinHandle<T>);

impl Io {
    pub(super) fn new() -> Self {
        Self { permits: Arc::new(Semaphore::new(JOBS)) }
    }

    /// Waits for a free place and starts the job.
    pub(super) async fn start<T, F>(&self, work: F) -> Result<BlockingJob<T>, StoreError>
    where
        T: Send + 'static,
        F: FnOnce() -> T + Send + 'static,
    {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|closed| StoreError::io("waiting for the disk", io::Error::other(closed)))?;
        // Boxed, so that tokio's machinery of a task is compiled once for each kind of result, and not for each kind of work.
        let work: Box<dyn FnOnce() -> T + Send> = Box::new(move || {
            let result = work();
            drop(permit);
            result
        });
        Ok(BlockingJob(tokio::task::spawn_blocking(work)))
    }

    /// Starts the job and waits for its end.
    pub(super) async fn run<T, F>(&self, work: F) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: FnOnce() -> Result<T, StoreError> + Send + 'static,
    {
        self.start(work).await?.end().await?
    }
}

impl<T> BlockingJob<T> {
    /// Waits for the job's end. A panic in it goes on here.
    pub(super) async fn end(self) -> Result<T, StoreError> {
        self.0.await.map_err(|error| match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(cancelled) => StoreError::io("the process is stopping", io::Error::other(cancelled)),
        })
    }
}
