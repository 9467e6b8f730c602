//! Copies a pack of small blobs, each on its own account.
//!
//! ```text
//! (both stores asked) ──▶ source.fetch_packed ──▶ every digest checked ──▶ destination.receive_packed ──▶ each answer checked
//! ```
//!
//! The blobs share the way and nothing else: one that is missing, corrupt or refused fails alone, and only what matched its
//! ref is sent on. What the pack cannot decide is left to a copy of its own ([`PackEnd::Alone`]): a blob that turned out too
//! large and, after a panic, all that were still on their way, so that only the one that caused it is charged.
//!
//! A peer's error, or its silence for the idle timeout, is the end of all that it had not answered yet.

use super::{Copied, CopyError, Progress, Stage, at, check_confirmation};
use crate::blob::{BlobRef, Verifier};
use crate::failpoint::Point;
use crate::fault::{FaultKind, Side};
use crate::store::packed::{Packed, Parcel, Want};
use crate::store::{Put, Received, Store, StoreError};
use crate::telemetry::TraceContext;
use bytes::Bytes;
use futures::FutureExt;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

/// A small blob of a pack; no repair.
#[derive(Clone, Debug)]
pub struct PackItem {
    /// The blob.
    pub blob: BlobRef,
    /// Its size in bytes as announced; only a hint.
    pub size_hint: Option<u64>,
    /// The trace in which it travels.
    pub trace: Option<TraceContext>,
}

/// How a pack is to be copied.
#[derive(Clone, Copy, Debug)]
pub struct PackJob {
    /// Whether `Consumed` confirms, too.
    pub receive_only: bool,
    /// Ask both sides first, and send only what the destination does not hold in the source's size.
    pub ask_first: bool,
    /// The largest blob that both sides pack, in bytes.
    pub max_blob_bytes: u64,
    /// How long either side may be waited for without an answer.
    pub idle_timeout: Duration,
}

/// How one blob of a pack came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackEnd {
    /// As a copy of its own would have.
    Ended(Result<Copied, CopyError>),
    /// It has to be copied on its own.
    Alone {
        /// Its size in bytes, as the source states it.
        size: Option<u64>,
    },
}

/// Copies small blobs together; an end for each, in their order. `progress` is that of the pack as a whole.
pub async fn copy_pack(
    source: &dyn Store,
    destination: &dyn Store,
    items: Vec<PackItem>,
    job: PackJob,
    progress: &Progress,
) -> Vec<PackEnd> {
    let mut pack = Pack { ends: items.iter().map(|_| None).collect(), job };
    let attempt = async {
        tokio::select! {
            biased;
            ended = pack.copy(source, destination, items, progress) => ended,
            side = progress.stalled(job.idle_timeout) => Err(CopyError::stalled(side, job.idle_timeout)),
        }
    };
    // Nothing that the copy touched is used again after a panic, but for the progress and the ends, whose every change is
    // whole.
    let open = match AssertUnwindSafe(attempt).catch_unwind().await {
        Ok(Ok(())) => PackEnd::Ended(Err(unanswered(Side::Destination))),
        Ok(Err(error)) => PackEnd::Ended(Err(error)),
        Err(_) => PackEnd::Alone { size: None },
    };
    pack.ends.into_iter().map(|end| end.unwrap_or_else(|| open.clone())).collect()
}

/// A blob of a pack on its way: where it stands in the pack, and its item.
type OnTheWay = (usize, PackItem);

struct Pack {
    // In the order of the items; absent while a blob is on its way.
    ends: Vec<Option<PackEnd>>,
    job: PackJob,
}

impl Pack {
    /// An error is the end of all that have none.
    async fn copy(
        &mut self,
        source: &dyn Store,
        destination: &dyn Store,
        items: Vec<PackItem>,
        progress: &Progress,
    ) -> Result<(), CopyError> {
        let mut items: Vec<OnTheWay> = items.into_iter().enumerate().collect();
        if self.job.ask_first {
            items = self.ask(source, destination, items, progress).await;
        }
        let parcels = self.fetch(source, items, progress).await?;
        if parcels.is_empty() {
            return Ok(());
        }
        self.send(destination, parcels, progress).await
    }

    fn end(&mut self, place: usize, end: PackEnd) {
        if let Some(open) = self.ends.get_mut(place) {
            *open = Some(end);
        }
    }

    /// Gives back what is not held by both sides in the same size. A side that cannot say is no error: the copy will tell.
    async fn ask(
        &mut self,
        source: &dyn Store,
        destination: &dyn Store,
        items: Vec<OnTheWay>,
        progress: &Progress,
    ) -> Vec<OnTheWay> {
        progress.enter(Stage::Asking, Side::Destination);
        let refs: Vec<BlobRef> = items.iter().map(|(_, item)| item.blob).collect();
        let asked = async {
            at(Point::CopyPackAsk, Side::Destination).await.ok()?;
            let held = destination.stat(&refs).await.ok()?;
            progress.heard(Side::Destination);
            if held.is_empty() {
                return None;
            }
            progress.enter(Stage::Asking, Side::Source);
            let held: HashMap<BlobRef, u64> = held.into_iter().map(|meta| (meta.blob, meta.size)).collect();
            let refs: Vec<BlobRef> = refs.iter().copied().filter(|blob| held.contains_key(blob)).collect();
            let stated = source.stat(&refs).await.ok()?;
            progress.heard(Side::Source);
            let by_both = stated.into_iter().filter(|meta| held.get(&meta.blob) == Some(&meta.size));
            Some(by_both.map(|meta| (meta.blob, meta.size)).collect::<HashMap<_, _>>())
        };
        let Some(by_both) = asked.await else { return items };
        let mut left = Vec::with_capacity(items.len() - by_both.len().min(items.len()));
        for (place, item) in items {
            match by_both.get(&item.blob) {
                Some(size) => {
                    let size_corrected = item.size_hint.filter(|hint| hint != size);
                    let copied = Copied { size: *size, copied: false, was_new: false, size_corrected };
                    self.end(place, PackEnd::Ended(Ok(copied)));
                }
                None => left.push((place, item)),
            }
        }
        left
    }

    /// Fetches, and checks every digest; gives what may go on.
    async fn fetch(
        &mut self,
        source: &dyn Store,
        items: Vec<OnTheWay>,
        progress: &Progress,
    ) -> Result<Vec<(usize, Option<u64>, Parcel)>, CopyError> {
        progress.enter(Stage::Fetching, Side::Source);
        if items.is_empty() {
            return Ok(Vec::new());
        }
        at(Point::CopyPackFetch, Side::Source).await?;
        let wants = items.iter().map(|(_, item)| Want { blob: item.blob, trace: item.trace.clone() }).collect();
        let answers = source.fetch_packed(wants).await;
        if answers.iter().any(is_word_of_the_peer) {
            progress.heard(Side::Source);
        }
        at(Point::CopyPackFetched, Side::Source).await?;
        let mut parcels = Vec::with_capacity(items.len());
        let mut bytes_sum = 0;
        let mut answers = answers.into_iter();
        for (place, item) in items {
            let answer = answers.next().unwrap_or_else(|| Err(unanswered_error()));
            match checked(item.blob, answer) {
                Ok(Checked::Whole(bytes)) if bytes.len() as u64 <= self.job.max_blob_bytes => {
                    let size = bytes.len() as u64;
                    bytes_sum += size;
                    let put = Put { blob: item.blob, size: Some(size), replace: false };
                    parcels.push((place, item.size_hint, Parcel { put, bytes, trace: item.trace }));
                }
                Ok(Checked::Whole(bytes)) => self.end(place, PackEnd::Alone { size: Some(bytes.len() as u64) }),
                Ok(Checked::TooLarge(size)) => self.end(place, PackEnd::Alone { size: Some(size) }),
                Err(error) => self.end(place, PackEnd::Ended(Err(error))),
            }
        }
        at(Point::CopyPackChecked, Side::Source).await?;
        progress.set_size(bytes_sum);
        progress.pass(bytes_sum);
        Ok(parcels)
    }

    async fn send(
        &mut self,
        destination: &dyn Store,
        parcels: Vec<(usize, Option<u64>, Parcel)>,
        progress: &Progress,
    ) -> Result<(), CopyError> {
        progress.enter(Stage::Writing, Side::Destination);
        at(Point::CopyPackSend, Side::Destination).await?;
        let mut sent = Vec::with_capacity(parcels.len());
        let mut cargo = Vec::with_capacity(parcels.len());
        for (place, size_hint, parcel) in parcels {
            sent.push((place, size_hint, parcel.put.blob, parcel.bytes.len() as u64));
            cargo.push(parcel);
        }
        let answers = destination.receive_packed(cargo).await;
        if answers.iter().any(is_word_of_the_peer) {
            progress.heard(Side::Destination);
        }
        at(Point::CopyPackAnswered, Side::Destination).await?;
        let mut answers = answers.into_iter();
        for (place, size_hint, blob, size) in sent {
            let answer = answers.next().unwrap_or_else(|| Err(unanswered_error()));
            let end = confirmed(self.job.receive_only, blob, size_hint, size, answer);
            self.end(place, PackEnd::Ended(end));
        }
        Ok(())
    }
}

/// Whether this shows that the peer is there and does its work: bytes, a confirmation, or a word on a blob.
fn is_word_of_the_peer<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Ok(_) | Err(StoreError::Missing(_) | StoreError::Corrupt { .. } | StoreError::Mismatch(_)))
}

fn unanswered_error() -> StoreError {
    StoreError::Protocol("a blob of a pack was not answered".to_owned())
}

fn unanswered(side: Side) -> CopyError {
    CopyError::of(&unanswered_error(), side)
}

/// What the source gave for a blob.
enum Checked {
    /// Bytes that are the blob's.
    Whole(Bytes),
    TooLarge(u64),
}

fn checked(blob: BlobRef, answer: Result<Packed, StoreError>) -> Result<Checked, CopyError> {
    let bytes = match answer.map_err(|error| CopyError::of(&error, Side::Source))? {
        Packed::Whole(bytes) => bytes,
        Packed::TooLarge { size } => return Ok(Checked::TooLarge(size)),
    };
    let mut verifier = Verifier::new(blob, None);
    let verdict = verifier.update(&bytes).and_then(|()| verifier.finish());
    verdict.map(|_| Checked::Whole(bytes)).map_err(|mismatch| {
        let message = format!("the source is corrupt: {mismatch}");
        CopyError::charged(FaultKind::SourceBytesCorrupt, Side::Source, &message)
    })
}

fn confirmed(
    receive_only: bool,
    blob: BlobRef,
    size_hint: Option<u64>,
    size: u64,
    answer: Result<Received, StoreError>,
) -> Result<Copied, CopyError> {
    let received = answer.map_err(|error| CopyError::of(&error, Side::Destination))?;
    check_confirmation(blob, receive_only, size, &received)?;
    let size_corrected = size_hint.filter(|hint| *hint != size);
    if let Some(announced) = size_corrected {
        tracing::debug!(%blob, announced, size, "the source holds another size than was announced");
    }
    Ok(Copied { size, copied: true, was_new: received.was_new, size_corrected })
}

#[cfg(test)]
mod tests;
