//! Copies a pack of small blobs, each on its own account.
//!
//! ```text
//! source.fetch_packed ──▶ every digest checked ──▶ destination.receive_packed ──▶ exact checks of each answer
//! ```
//!
//! The blobs share the way and nothing else: one that is missing, corrupt or refused fails alone. What the pack as a whole
//! cannot decide is left to a copy of its own ([`PackEnd::Alone`]): a blob that is too large to be packed and, after a panic,
//! every blob of the pack, so that only the one that caused it is charged.

use super::{Copied, CopyError, CopyJob, Progress, Stage, check_confirmation, correction};
use crate::blob::{BlobRef, Verifier};
use crate::fault::Side;
use crate::store::packed::{Packed, Parcel, Want};
use crate::store::{Put, Received, Store, StoreError};
use crate::telemetry::TraceContext;
use bytes::Bytes;
use futures::FutureExt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

/// A small blob of a pack.
#[derive(Clone, Debug)]
pub struct PackItem {
    /// What is to be copied. Neither a repair nor one that is asked for first: those go alone.
    pub job: CopyJob,
    /// The trace in which it travels.
    pub trace: Option<TraceContext>,
    /// How far this blob is.
    pub progress: Arc<Progress>,
}

/// How one blob of a pack came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PackEnd {
    /// As a copy of its own would have.
    Ended(Result<Copied, CopyError>),
    /// It has to be copied on its own.
    Alone,
}

/// Copies small blobs together; an end for each, in their order. `watch` tells how far the pack is as a whole.
pub async fn copy_pack(
    source: &dyn Store,
    destination: &dyn Store,
    items: &[PackItem],
    idle_timeout: Duration,
    watch: &Arc<Progress>,
) -> Vec<PackEnd> {
    let attempt = async {
        tokio::select! {
            biased;
            ends = copy(source, destination, items, watch) => ends,
            side = watch.stalled(idle_timeout) => {
                items.iter().map(|_| PackEnd::Ended(Err(CopyError::stalled(side, idle_timeout)))).collect()
            }
        }
    };
    // Nothing that the copy touched is used again after a panic, but for the progress, whose every change is whole.
    let ends = AssertUnwindSafe(attempt).catch_unwind().await;
    ends.unwrap_or_else(|_| items.iter().map(|_| PackEnd::Alone).collect())
}

async fn copy(source: &dyn Store, destination: &dyn Store, items: &[PackItem], watch: &Arc<Progress>) -> Vec<PackEnd> {
    enter(items, watch, Stage::Fetching, Side::Source);
    let wants = items.iter().map(|item| Want { blob: item.job.blob, trace: item.trace.clone() }).collect();
    let fetched = source.fetch_packed(wants).await;
    if fetched.iter().any(is_word_of_the_peer) {
        watch.heard(Side::Source);
    }

    let mut ends: Vec<Option<PackEnd>> = Vec::with_capacity(items.len());
    let mut going: Vec<(usize, u64)> = Vec::with_capacity(items.len());
    let mut parcels = Vec::with_capacity(items.len());
    let answers = fetched.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
    for (at, (item, answer)) in items.iter().zip(answers).enumerate() {
        match answer.map_or_else(|| Err(unanswered(Side::Source)), |answer| checked(item, answer)) {
            Ok(Some((put, bytes))) => {
                going.push((at, bytes.len() as u64));
                item.progress.pass(bytes.len() as u64);
                parcels.push(Parcel { put, bytes, trace: item.trace.clone() });
                ends.push(None);
            }
            Ok(None) => ends.push(Some(PackEnd::Alone)),
            Err(error) => ends.push(Some(PackEnd::Ended(Err(error)))),
        }
    }
    if !parcels.is_empty() {
        enter(items, watch, Stage::Writing, Side::Destination);
        let received = destination.receive_packed(parcels).await;
        if received.iter().any(is_word_of_the_peer) {
            watch.heard(Side::Destination);
        }
        let mut received = received.into_iter();
        for (at, size) in going {
            let end = match (items.get(at), received.next()) {
                (Some(item), Some(answer)) => confirmed(&item.job, size, answer),
                _ => Err(unanswered(Side::Destination)),
            };
            if let Some(place) = ends.get_mut(at) {
                *place = Some(PackEnd::Ended(end));
            }
        }
    }
    ends.into_iter().map(|end| end.unwrap_or(PackEnd::Alone)).collect()
}

fn enter(items: &[PackItem], watch: &Progress, stage: Stage, side: Side) {
    watch.enter(stage, side);
    for item in items {
        item.progress.enter(stage, side);
    }
}

/// Whether this shows that the peer is there and does its work: bytes, a confirmation, or a blob that it does not hold.
fn is_word_of_the_peer<T>(answer: &Result<T, StoreError>) -> bool {
    matches!(answer, Ok(_) | Err(StoreError::Missing(_) | StoreError::Corrupt { .. } | StoreError::Mismatch(_)))
}

fn unanswered(side: Side) -> CopyError {
    CopyError::of(&StoreError::Protocol("a blob of a pack was not answered".to_owned()), side)
}

/// What goes on to the destination: bytes that are the blob's. `None`: it does not fit a pack.
fn checked(item: &PackItem, answer: Result<Packed, StoreError>) -> Result<Option<(Put, Bytes)>, CopyError> {
    let bytes = match answer {
        Ok(Packed::Whole(bytes)) => bytes,
        Ok(Packed::TooLarge { size }) => {
            item.progress.set_size(size);
            return Ok(None);
        }
        Err(error) => return Err(CopyError::of(&error, Side::Source)),
    };
    let blob: BlobRef = item.job.blob;
    let mut verifier = Verifier::new(blob, None);
    let size = verifier.update(&bytes).and_then(|()| verifier.finish());
    let size = size.map_err(|mismatch| CopyError::of(&mismatch.into(), Side::Source))?;
    item.progress.set_size(size);
    Ok(Some((Put { blob, size: Some(size), replace: false }, bytes)))
}

fn confirmed(job: &CopyJob, size: u64, answer: Result<Received, StoreError>) -> Result<Copied, CopyError> {
    let received = answer.map_err(|error| CopyError::of(&error, Side::Destination))?;
    check_confirmation(job, size, &received)?;
    let size_corrected = correction(job, size);
    if let Some(announced) = size_corrected {
        tracing::debug!(blob = %job.blob, announced, size, "the source holds another size than was announced");
    }
    Ok(Copied { size, copied: true, size_corrected })
}

#[cfg(test)]
mod tests {
    use super::{PackEnd, PackItem, copy_pack};
    use crate::blob::{BlobRef, DigestFunction};
    use crate::copy::{CopyJob, Progress};
    use crate::fault::{Blame, FaultKind, Side};
    use crate::store::faulty::{FaultyStore, Trouble};
    use crate::store::memory::MemoryStore;
    use crate::store::packed::{MAX_PACKED_BYTES, Parcel};
    use crate::store::{Put, Store};
    use std::sync::Arc;
    use std::time::Duration;
    use tonic::Code;

    const IDLE: Duration = Duration::from_secs(30);

    struct Pair {
        from: FaultyStore,
        to: FaultyStore,
        held: Arc<MemoryStore>,
        blobs: Vec<BlobRef>,
    }

    /// Two stores, the source with so many small blobs.
    async fn pair(count: u32) -> Pair {
        let (source, held) = (Arc::new(MemoryStore::new(1 << 30)), Arc::new(MemoryStore::new(1 << 30)));
        let parcels: Vec<Parcel> = (0..count).map(|n| parcel(n.to_le_bytes().to_vec())).collect();
        let blobs = parcels.iter().map(|parcel| parcel.put.blob).collect();
        assert!(source.receive_packed(parcels).await.iter().all(Result::is_ok));
        Pair { from: FaultyStore::new(source), to: FaultyStore::new(held.clone()), held, blobs }
    }

    fn parcel(bytes: Vec<u8>) -> Parcel {
        let put = Put { blob: DigestFunction::Sha256.ref_of(&bytes), size: None, replace: false };
        Parcel { put, bytes: bytes.into(), trace: None }
    }

    fn item(blob: BlobRef) -> PackItem {
        let job = CopyJob {
            blob,
            size_hint: Some(4),
            repair: false,
            receive_only: false,
            ask_first: false,
            idle_timeout: IDLE,
        };
        PackItem { job, trace: None, progress: Arc::new(Progress::new(None)) }
    }

    impl Pair {
        async fn copy(&self) -> Vec<PackEnd> {
            let items: Vec<PackItem> = self.blobs.iter().copied().map(item).collect();
            copy_pack(&self.from, &self.to, &items, IDLE, &Arc::new(Progress::new(None))).await
        }

        /// Copies, and expects all but the blob at `bad` to arrive.
        async fn all_but(&self, bad: usize) -> PackEnd {
            let mut ends = self.copy().await;
            let end = ends.remove(bad);
            assert!(ends.iter().all(|end| matches!(end, PackEnd::Ended(Ok(_)))), "{ends:?}");
            assert_eq!(self.held.len(), self.blobs.len() - 1);
            end
        }
    }

    #[tokio::test]
    async fn a_pack_arrives_whole() {
        let pair = pair(300).await;
        let ends = pair.copy().await;
        assert_eq!(ends.len(), 300);
        assert!(ends.iter().all(|end| matches!(end, PackEnd::Ended(Ok(copied)) if copied.size == 4 && copied.copied)));
        assert_eq!(pair.held.len(), 300);
    }

    #[tokio::test]
    async fn one_bad_blob_fails_alone_and_is_named() {
        for (trouble, at_source, kind) in [
            (Trouble::Missing, true, FaultKind::MissingAtSource),
            (Trouble::WrongBytes, true, FaultKind::SourceBytesCorrupt),
            (Trouble::ShortRead, true, FaultKind::ShortRead),
            (Trouble::Reject, false, FaultKind::DestinationRejected),
            (Trouble::ConfirmUnread, false, FaultKind::DestinationConfirmedOther),
        ] {
            let pair = pair(20).await;
            let store = if at_source { &pair.from } else { &pair.to };
            // What is not read is confirmed with the size that was stated; another one shows that it is compared.
            let trouble = if trouble == Trouble::ConfirmUnread {
                Trouble::Confirm(crate::store::Disposition::Consumed)
            } else {
                trouble
            };
            store.set_for(pair.blobs[7], Some(trouble));
            match pair.all_but(7).await {
                PackEnd::Ended(Err(error)) => assert_eq!((error.kind, error.blame()), (kind, Blame::Entry)),
                end => panic!("{end:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_blob_that_is_too_large_goes_alone() {
        let mut pair = pair(5).await;
        let large = parcel(vec![7; usize::try_from(MAX_PACKED_BYTES).unwrap() + 1]);
        pair.blobs[3] = large.put.blob;
        let source = MemoryStore::new(1 << 30);
        let parcels = (0..5).map(|n: u32| parcel(n.to_le_bytes().to_vec())).chain([large]).collect();
        assert!(source.receive_packed(parcels).await.iter().all(Result::is_ok));
        pair.from = FaultyStore::new(Arc::new(source));
        assert_eq!(pair.all_but(3).await, PackEnd::Alone);
    }

    #[tokio::test]
    async fn after_a_panic_everybody_goes_alone_and_nobody_is_charged() {
        let pair = pair(5).await;
        pair.to.set_for(pair.blobs[2], Some(Trouble::Panic));
        assert_eq!(pair.copy().await, vec![PackEnd::Alone; 5]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_is_down_or_mute_is_at_fault_for_all() {
        let pair = pair(5).await;
        pair.to.set_down(true);
        for end in pair.copy().await {
            assert!(matches!(end, PackEnd::Ended(Err(error)) if error.blame() == Blame::Peer(Side::Destination)));
        }
        pair.to.set_down(false);
        pair.from.set(Some(Trouble::Hang));
        for end in pair.copy().await {
            let PackEnd::Ended(Err(error)) = end else { panic!("{end:?}") };
            assert_eq!((error.blame(), error.code), (Blame::Peer(Side::Source), Some(Code::DeadlineExceeded)));
        }
        assert_eq!(pair.held.len(), 0);
    }
}
