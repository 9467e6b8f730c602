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
//! Each blob is answered by itself, as it comes; an answer is progress. A peer's error, or its silence for the idle timeout, is
//! the end of all that it had not answered yet, and of nothing else: what the source gave before is sent on, what the
//! destination confirmed before is confirmed. It says nothing of any single blob, so it is no [`FailureClass::Cut`].
//!
//! [`FailureClass::Cut`]: crate::fault::FailureClass::Cut

use super::{Copied, CopyError, Progress, Stage, WaitLimits, at, check_confirmation};
use crate::blob::{BlobRef, Verifier};
use crate::failpoint::Point;
use crate::fault::{FaultKind, Side};
use crate::store::packed::{Answers, Packed, Parcel, Want, unanswered};
use crate::store::{Put, Received, Store, StoreError};
use crate::telemetry::TraceContext;
use bytes::Bytes;
use futures::FutureExt;
use std::collections::HashMap;
use std::future::Future;
use std::panic::AssertUnwindSafe;

/// A small blob of a pack; no repair.
#[derive(Clone, Debug)]
pub(crate) struct PackItem {
    /// The blob.
    pub blob: BlobRef,
    /// Its size in bytes as announced; only a hint.
    pub size_hint: Option<u64>,
    /// The trace in which it travels.
    pub trace: Option<TraceContext>,
}

/// How a pack is to be copied.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PackJob {
    /// Whether `Consumed` confirms, too.
    pub receive_only: bool,
    /// Ask both sides first, and send only what the destination does not hold in the source's size.
    pub ask_first: bool,
    /// The largest blob that both sides pack, in bytes.
    pub max_blob_bytes: u64,
    /// How long either side may be waited for without an answer to any blob.
    pub waits: WaitLimits,
}

/// How one blob of a pack came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PackEnd {
    /// As a copy of its own would have: it was answered.
    Ended(Result<Copied, CopyError>),
    /// It was not answered when the pack ended so, which says nothing of this blob.
    Unanswered(CopyError),
    /// It has to be copied on its own.
    Alone {
        /// Its size in bytes, as the source states it.
        size: Option<u64>,
    },
}

/// Copies small blobs together; an end for each, in their order. `progress` is that of the pack as a whole.
pub(crate) async fn copy_pack(
    source: &dyn Store,
    destination: &dyn Store,
    items: Vec<PackItem>,
    job: PackJob,
    progress: &Progress,
) -> Vec<PackEnd> {
    let mut pack = Pack { ends: items.iter().map(|_| None).collect(), job, progress };
    let attempt = pack.copy(source, destination, items);
    // Nothing that the copy touched is used again after a panic, but for the progress and the ends, whose every change is
    // whole.
    let open = match AssertUnwindSafe(attempt).catch_unwind().await {
        Ok(Ok(())) => PackEnd::Unanswered(CopyError::of(&unanswered(), Side::Destination)),
        Ok(Err(error)) => PackEnd::Unanswered(error),
        Err(_) => PackEnd::Alone { size: None },
    };
    pack.ends.into_iter().map(|end| end.unwrap_or_else(|| open.clone())).collect()
}

/// A blob of a pack on its way: where it stands in the pack, and its item.
type OnTheWay = (usize, PackItem);

struct Pack<'a> {
    ends: Ends,
    job: PackJob,
    progress: &'a Progress,
}

/// In the order of the items; absent while a blob is on its way.
type Ends = Vec<Option<PackEnd>>;

fn end(ends: &mut Ends, place: usize, end: PackEnd) {
    if let Some(open) = ends.get_mut(place) {
        *open = Some(end);
    }
}

impl Pack<'_> {
    /// An error is the end of all that have none.
    async fn copy(
        &mut self,
        source: &dyn Store,
        destination: &dyn Store,
        items: Vec<PackItem>,
    ) -> Result<(), CopyError> {
        let (progress, waits) = (self.progress, self.job.waits);
        let mut items: Vec<OnTheWay> = items.into_iter().enumerate().collect();
        if self.job.ask_first {
            let asked = async { Ok(self.ask(source, destination, items).await) };
            items = in_time(progress, &waits, asked).await?;
        }
        progress.enter(Stage::Fetching, Side::Source);
        if items.is_empty() {
            return Ok(());
        }
        let Pack { ends, job, .. } = self;
        let wants = items.iter().map(|(_, item)| Want { blob: item.blob, trace: item.trace.clone() }).collect();
        let mut fetches = Fetches {
            cargo: Vec::with_capacity(items.len()),
            manifest: Vec::with_capacity(items.len()),
            bytes: 0,
            items: items.into_iter().map(Some).collect(),
            ends,
            max_blob_bytes: job.max_blob_bytes,
            progress,
        };
        let fetched = in_time(progress, &waits, fetch(source, wants, &mut fetches)).await;
        let (cargo, manifest) = fetches.end(fetched);
        if cargo.is_empty() {
            return Ok(());
        }
        progress.enter(Stage::Writing, Side::Destination);
        let receive_only = job.receive_only;
        let mut confirmations = Confirmations { manifest, ends, receive_only, progress };
        in_time(progress, &waits, send(destination, cargo, &mut confirmations)).await
    }

    /// Gives back what is not held by both sides in the same size. A side that cannot say is no error: the copy will tell.
    async fn ask(&mut self, source: &dyn Store, destination: &dyn Store, items: Vec<OnTheWay>) -> Vec<OnTheWay> {
        let progress = self.progress;
        progress.enter(Stage::Asking, Side::Destination);
        let refs: Vec<BlobRef> = items.iter().map(|(_, item)| item.blob).collect();
        let asked = async {
            at(Point::CopyPackAsk, Side::Destination).await.ok()?;
            let held = destination.stat(&refs).await.ok()?;
            progress.answered(Side::Destination);
            if held.is_empty() {
                return None;
            }
            progress.enter(Stage::Asking, Side::Source);
            let held: HashMap<BlobRef, u64> = held.into_iter().map(|meta| (meta.blob, meta.size)).collect();
            let refs: Vec<BlobRef> = refs.iter().copied().filter(|blob| held.contains_key(blob)).collect();
            let stated = source.stat(&refs).await.ok()?;
            progress.answered(Side::Source);
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
                    end(&mut self.ends, place, PackEnd::Ended(Ok(copied)));
                }
                None => left.push((place, item)),
            }
        }
        left
    }
}

/// Does a part of the work, unless a side is waited for too long.
async fn in_time<T>(
    progress: &Progress,
    waits: &WaitLimits,
    work: impl Future<Output = Result<T, CopyError>>,
) -> Result<T, CopyError> {
    tokio::select! {
        biased;
        done = work => done,
        overdue = progress.overdue(waits) => Err(CopyError::overdue(overdue)),
    }
}

async fn fetch(source: &dyn Store, wants: Vec<Want>, fetches: &mut Fetches<'_>) -> Result<(), CopyError> {
    at(Point::CopyPackFetch, Side::Source).await?;
    source.fetch_packed(wants, fetches).await.map_err(|error| CopyError::of(&error, Side::Source))?;
    at(Point::CopyPackFetched, Side::Source).await
}

async fn send(
    destination: &dyn Store,
    cargo: Vec<Parcel>,
    confirmations: &mut Confirmations<'_>,
) -> Result<(), CopyError> {
    at(Point::CopyPackSend, Side::Destination).await?;
    let ended = destination.receive_packed(cargo, confirmations).await;
    ended.map_err(|error| CopyError::of(&error, Side::Destination))?;
    at(Point::CopyPackAnswered, Side::Destination).await
}

/// What was sent to the destination, so that its answer can be checked.
struct Sent {
    place: usize,
    blob: BlobRef,
    size_hint: Option<u64>,
    size: u64,
}

/// The source's answers: every digest is checked, and what matched may go on.
struct Fetches<'a> {
    // By their number in what the source was asked for; gone when answered.
    items: Vec<Option<OnTheWay>>,
    // What may go on, and what is said of it.
    cargo: Vec<Parcel>,
    manifest: Vec<Option<Sent>>,
    // Of the cargo.
    bytes: u64,
    ends: &'a mut Ends,
    max_blob_bytes: u64,
    progress: &'a Progress,
}

impl Fetches<'_> {
    /// What was not answered ends as the fetch did. Gives what may go on.
    fn end(self, fetched: Result<(), CopyError>) -> (Vec<Parcel>, Vec<Option<Sent>>) {
        let error = fetched.err().unwrap_or_else(|| CopyError::of(&unanswered(), Side::Source));
        for (place, _) in self.items.into_iter().flatten() {
            end(self.ends, place, PackEnd::Unanswered(error.clone()));
        }
        self.progress.set_size(self.bytes);
        self.progress.pass(self.bytes);
        (self.cargo, self.manifest)
    }
}

impl Answers<Packed> for Fetches<'_> {
    fn answer(&mut self, at: usize, answer: Result<Packed, StoreError>) {
        if is_word_of_the_peer(&answer) {
            self.progress.answered(Side::Source);
        }
        self.progress.wait_for(Side::Source);
        let Some((place, item)) = self.items.get_mut(at).and_then(Option::take) else { return };
        match checked(item.blob, answer) {
            Ok(Checked::Whole(bytes)) if bytes.len() as u64 <= self.max_blob_bytes => {
                let PackItem { blob, size_hint, trace } = item;
                let size = bytes.len() as u64;
                self.bytes += size;
                self.manifest.push(Some(Sent { place, blob, size_hint, size }));
                self.cargo.push(Parcel { put: Put { blob, size: Some(size), replace: false }, bytes, trace });
            }
            Ok(Checked::Whole(bytes)) => end(self.ends, place, PackEnd::Alone { size: Some(bytes.len() as u64) }),
            Ok(Checked::TooLarge(size)) => end(self.ends, place, PackEnd::Alone { size: Some(size) }),
            Err(error) => end(self.ends, place, PackEnd::Ended(Err(error))),
        }
    }

    fn all_sent(&mut self) {}
}

/// The destination's answers, each checked against what was sent.
struct Confirmations<'a> {
    // By their number in what was sent; gone when answered.
    manifest: Vec<Option<Sent>>,
    ends: &'a mut Ends,
    receive_only: bool,
    progress: &'a Progress,
}

impl Answers<Received> for Confirmations<'_> {
    fn answer(&mut self, at: usize, answer: Result<Received, StoreError>) {
        if is_word_of_the_peer(&answer) {
            self.progress.answered(Side::Destination);
        }
        self.progress.wait_for(Side::Destination);
        if let Some(sent) = self.manifest.get_mut(at).and_then(Option::take) {
            end(self.ends, sent.place, PackEnd::Ended(confirmed(self.receive_only, &sent, answer)));
        }
    }

    fn all_sent(&mut self) {
        self.progress.confirming();
    }
}

/// Whether this shows that the peer is there and does its work: bytes, a confirmation, or a word on a blob.
fn is_word_of_the_peer<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Ok(_) | Err(StoreError::Missing(_) | StoreError::Corrupt { .. } | StoreError::Mismatch(_)))
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

fn confirmed(receive_only: bool, sent: &Sent, answer: Result<Received, StoreError>) -> Result<Copied, CopyError> {
    let Sent { blob, size_hint, size, .. } = *sent;
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
