//! The one writer of the index: group commit.
//!
//! Receivers send what they verified to a bounded channel and wait. One thread takes all that has come, writes it as one
//! batch, syncs once, and answers everyone: while a sync runs, the next batch gathers. Being the only writer, it also decides
//! who was first with a blob.
//!
//! Crash before the batch is synced: nothing of it was answered, and nothing of it is visible, or all of it, verified.
//! Crash after it: all of it is there, answered or not.

use super::index::{BlobRow, Index, Record};
use crate::blob::BlobRef;
use crate::failpoint::{self, Point};
use crate::store::StoreError;
use bytes::Bytes;
use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// A batch takes no more from this many blobs on; receivers that wait for the next one, at most.
const BATCH: usize = 1024;

/// Nor from this many bytes on.
const BATCH_BYTES: usize = 4 << 20;

/// A blob whose bytes were verified, to be made visible.
pub(super) struct VerifiedBlob {
    pub(super) blob: BlobRef,
    pub(super) record: Record,
    /// The bytes of a small blob; a large one's file is in its place, durably.
    pub(super) bytes: Option<Bytes>,
    /// Write it even where it is there.
    pub(super) replace: bool,
}

/// What came together; it is answered together, a verdict for each.
struct WaitingBatch {
    entries: Vec<VerifiedBlob>,
    answer: oneshot::Sender<Vec<Result<bool, StoreError>>>,
}

impl WaitingBatch {
    /// Its blobs, and their bytes.
    fn weight(&self) -> (usize, usize) {
        let bytes = self.entries.iter().map(|entry| entry.bytes.as_ref().map_or(0, Bytes::len));
        (self.entries.len(), bytes.sum())
    }
}

/// The thread that writes, and the way to it. Dropped, it finishes what it was given.
#[derive(Debug)]
pub(super) struct BlobCommitter {
    sender: Option<mpsc::Sender<WaitingBatch>>,
    thread: Option<JoinHandle<()>>,
    /// Cancelled when the thread has ended.
    pub(super) ended: CancellationToken,
}

impl BlobCommitter {
    pub(super) fn start(index: Arc<Index>) -> io::Result<Self> {
        let (sender, receiver) = mpsc::channel(BATCH);
        let thread = std::thread::Builder::new().name("store-commit".to_owned());
        let ended = CancellationToken::new();
        let ends = ended.clone().drop_guard();
        let thread = thread.spawn(move || {
            // Also where it panics.
            let _ends = ends;
            run(&index, receiver);
        })?;
        Ok(Self { sender: Some(sender), thread: Some(thread), ended })
    }

    /// Makes a blob visible, durably. Gives whether it was new.
    ///
    /// Dropped before its batch is begun, nothing becomes visible.
    pub(super) async fn commit(&self, entry: VerifiedBlob) -> Result<bool, StoreError> {
        // One verdict for each entry.
        self.commit_all(vec![entry]).await.pop().unwrap_or_else(|| Err(stopped()))
    }

    /// The same for several, in one batch; a verdict for each, in their order.
    pub(super) async fn commit_all(&self, entries: Vec<VerifiedBlob>) -> Vec<Result<bool, StoreError>> {
        let count = entries.len();
        let all_stopped = || (0..count).map(|_| Err(stopped())).collect();
        let (answer, answered) = oneshot::channel();
        let Some(sender) = &self.sender else { return all_stopped() };
        if sender.send(WaitingBatch { entries, answer }).await.is_err() {
            return all_stopped();
        }
        answered.await.unwrap_or_else(|_| all_stopped())
    }
}

fn stopped() -> StoreError {
    StoreError::io("writing the index", io::Error::other("its writer has stopped; restart the store"))
}

impl Drop for BlobCommitter {
    fn drop(&mut self) {
        // Receivers borrow the store, so none is left: the channel is empty and the thread ends at once.
        drop(self.sender.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writer of the index panicked");
        }
    }
}

fn run(index: &Index, mut receiver: mpsc::Receiver<WaitingBatch>) {
    let mut batch = Vec::with_capacity(BATCH);
    while let Some(first) = receiver.blocking_recv() {
        let (mut blobs, mut bytes) = first.weight();
        batch.push(first);
        while blobs < BATCH && bytes < BATCH_BYTES {
            let Ok(next) = receiver.try_recv() else { break };
            let more = next.weight();
            blobs += more.0;
            bytes += more.1;
            batch.push(next);
        }
        // Whoever stopped waiting must not commit.
        batch.retain(|waiting| !waiting.answer.is_closed());
        let mut verdicts = write(index, batch.iter().flat_map(|waiting| &waiting.entries)).into_iter();
        for WaitingBatch { entries, answer } in batch.drain(..) {
            // A receiver that went away meanwhile does not want to know.
            drop(answer.send(verdicts.by_ref().take(entries.len()).collect()));
        }
    }
}

/// Writes one batch; gives for each entry whether it was new. An entry that repeats one of the same batch is answered
/// after the write it relies on, like all.
fn write<'a>(index: &Index, batch: impl Iterator<Item = &'a VerifiedBlob> + Clone) -> Vec<Result<bool, StoreError>> {
    if let Err(injected) = failpoint::hit(Point::StoreDecide) {
        return batch.map(|_| Err(injected.into())).collect();
    }
    let blobs: Vec<BlobRef> = batch.clone().map(|entry| entry.blob).collect();
    let mut first = HashSet::new();
    let mut rows = Vec::with_capacity(blobs.len());
    let mut new = Vec::with_capacity(blobs.len());
    for (entry, known) in batch.zip(index.get_many(&blobs)) {
        let absent = match known {
            Ok(known) => known.is_none() && first.insert(entry.blob),
            // A row that cannot be read is no reason not to repair it.
            Err(_) if entry.replace => false,
            Err(error) => {
                new.push(Err(error));
                continue;
            }
        };
        if absent || entry.replace {
            rows.push(BlobRow { blob: &entry.blob, record: entry.record, bytes: entry.bytes.as_deref() });
        }
        new.push(Ok(absent));
    }
    let written = if rows.is_empty() { Ok(()) } else { index.commit(&rows) };
    let answer = |new| match &written {
        Ok(()) => Ok(new),
        Err(error) => Err(StoreError::io("writing the index", io::Error::new(error.kind(), error.to_string()))),
    };
    new.into_iter().map(|new| new.and_then(answer)).collect()
}
