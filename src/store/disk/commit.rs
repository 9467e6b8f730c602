//! The one writer of the index: group commit.
//!
//! Receivers send what they verified to a bounded channel and wait. One thread takes all that has come, writes it as one
//! batch, syncs once, and answers everyone: while a sync runs, the next batch gathers. Being the only writer, it also decides
//! who was first with a blob.
//!
//! Crash before the batch is synced: nothing of it was answered, and nothing of it is visible, or all of it, verified.
//! Crash after it: all of it is there, answered or not.

use super::index::{Index, Record, Row};
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

/// Blobs in a batch, and waiting for the next one, at most: 16 MiB of small blobs each.
const BATCH: usize = 256;

/// A blob whose bytes were verified, to be made visible.
pub(super) struct Entry {
    pub(super) blob: BlobRef,
    pub(super) record: Record,
    /// The bytes of a small blob; a large one's file is in its place, durably.
    pub(super) bytes: Option<Bytes>,
    /// Write it even where it is there.
    pub(super) replace: bool,
}

struct Waiting {
    entry: Entry,
    answer: oneshot::Sender<Result<bool, StoreError>>,
}

/// The thread that writes, and the way to it. Dropped, it finishes what it was given.
#[derive(Debug)]
pub(super) struct Committer {
    sender: Option<mpsc::Sender<Waiting>>,
    thread: Option<JoinHandle<()>>,
    /// Cancelled when the thread has ended.
    pub(super) ended: CancellationToken,
}

impl Committer {
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
    pub(super) async fn commit(&self, entry: Entry) -> Result<bool, StoreError> {
        let stopped =
            || StoreError::io("writing the index", io::Error::other("its writer has stopped; restart the store"));
        let (answer, answered) = oneshot::channel();
        let sender = self.sender.as_ref().ok_or_else(stopped)?;
        sender.send(Waiting { entry, answer }).await.map_err(|_| stopped())?;
        answered.await.map_err(|_| stopped())?
    }
}

impl Drop for Committer {
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

fn run(index: &Index, mut receiver: mpsc::Receiver<Waiting>) {
    let mut batch = Vec::with_capacity(BATCH);
    while receiver.blocking_recv_many(&mut batch, BATCH) > 0 {
        // Whoever stopped waiting must not commit.
        batch.retain(|waiting| !waiting.answer.is_closed());
        let verdicts = write(index, &batch);
        for (waiting, verdict) in batch.drain(..).zip(verdicts) {
            // A receiver that went away meanwhile does not want to know.
            drop(waiting.answer.send(verdict));
        }
    }
}

/// Writes one batch; gives for each entry whether it was new. An entry that repeats one of the same batch is answered
/// after the write it relies on, like all.
fn write(index: &Index, batch: &[Waiting]) -> Vec<Result<bool, StoreError>> {
    if let Err(injected) = failpoint::hit(Point::StoreDecide) {
        return batch.iter().map(|_| Err(injected.into())).collect();
    }
    let blobs: Vec<BlobRef> = batch.iter().map(|waiting| waiting.entry.blob).collect();
    let mut first = HashSet::new();
    let mut rows = Vec::with_capacity(batch.len());
    let mut new = Vec::with_capacity(batch.len());
    for (Waiting { entry, .. }, known) in batch.iter().zip(index.get_many(&blobs)) {
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
            rows.push(Row { blob: &entry.blob, record: entry.record, bytes: entry.bytes.as_deref() });
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
