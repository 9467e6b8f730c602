use super::{PackEnd, PackItem, PackJob, copy_pack};
use crate::blob::{BlobRef, DigestFunction};
use crate::copy::{Progress, Stage, WaitLimits};
use crate::fault::{FailureClass, FaultKind, Side};
use crate::store::faulty::{FaultyStore, Trouble};
use crate::store::memory::MemoryStore;
use crate::store::packed::{MAX_PACKED_BYTES, Parcel, receive_all};
use crate::store::{Disposition, Put};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

const IDLE: Duration = Duration::from_secs(30);

struct Pair {
    from: FaultyStore,
    to: FaultyStore,
    source: Arc<MemoryStore>,
    held: Arc<MemoryStore>,
    blobs: Vec<BlobRef>,
    job: PackJob,
}

/// Two stores, the source with so many small blobs.
async fn pair(count: u32) -> Pair {
    let [source, held] = ["a", "b"].map(|id| Arc::new(MemoryStore::new(id, 1 << 30)));
    let parcels: Vec<Parcel> = (0..count).map(|n| parcel(n.to_le_bytes().to_vec())).collect();
    let blobs = parcels.iter().map(|parcel| parcel.put.blob).collect();
    assert!(receive_all(&*source, parcels).await.iter().all(Result::is_ok));
    let job = PackJob {
        receive_only: false,
        ask_first: false,
        max_blob_bytes: MAX_PACKED_BYTES,
        waits: WaitLimits { idle: [IDLE; 2], ..WaitLimits::default() },
    };
    let (from, to) = (FaultyStore::new(source.clone()), FaultyStore::new(held.clone()));
    Pair { from, to, source, held, blobs, job }
}

fn parcel(bytes: Vec<u8>) -> Parcel {
    let put = Put { blob: DigestFunction::Sha256.ref_of(&bytes), size: None, replace: false };
    Parcel { put, bytes: bytes.into(), trace: None }
}

impl Pair {
    async fn copy(&self) -> Vec<PackEnd> {
        self.copy_with(&Progress::new(None)).await
    }

    async fn copy_with(&self, progress: &Progress) -> Vec<PackEnd> {
        let item = |blob: &BlobRef| PackItem { blob: *blob, size_hint: Some(4), trace: None };
        let items = self.blobs.iter().map(item).collect();
        let ends = copy_pack(&self.from, &self.to, items, self.job, progress).await;
        assert_eq!(ends.len(), self.blobs.len());
        ends
    }

    /// Copies, and expects all but the blob at `bad` to arrive.
    async fn all_but(&self, bad: usize) -> PackEnd {
        let mut ends = self.copy().await;
        let end = ends.remove(bad);
        assert!(ends.iter().all(|end| matches!(end, PackEnd::Ended(Ok(_)))), "{ends:?}");
        end
    }
}

#[tokio::test]
async fn a_pack_arrives_whole() {
    let pair = pair(300).await;
    for new in [true, false] {
        let is_so = |end: &PackEnd| matches!(end, PackEnd::Ended(Ok(copied)) if copied.size == 4 && copied.copied && copied.was_new == new);
        assert!(pair.copy().await.iter().all(is_so));
    }
    assert_eq!(pair.held.len(), 300);
}

#[tokio::test]
async fn one_bad_blob_fails_alone_and_is_named() {
    let other = DigestFunction::Sha256.ref_of(b"other");
    for (trouble, at_source, kind) in [
        (Trouble::Missing, true, FaultKind::MissingAtSource),
        (Trouble::WrongBytes, true, FaultKind::SourceBytesCorrupt),
        (Trouble::ShortRead, true, FaultKind::ShortRead),
        (Trouble::ExtraByte, true, FaultKind::SourceSizeMismatch),
        (Trouble::StatedSize(3), true, FaultKind::SourceSizeMismatch),
        (Trouble::Reject, false, FaultKind::DestinationRejected),
        (Trouble::ConfirmRef(other), false, FaultKind::DestinationConfirmedOther),
        (Trouble::ConfirmSize(3), false, FaultKind::DestinationConfirmedOther),
        (Trouble::Confirm(Disposition::Consumed), false, FaultKind::DestinationConfirmedOther),
        (Trouble::Confirm(Disposition::Enqueued), false, FaultKind::DestinationConfirmedOther),
    ] {
        let pair = pair(20).await;
        let store = if at_source { &pair.from } else { &pair.to };
        store.set_for(pair.blobs[7], Some(trouble.clone()));
        match pair.all_but(7).await {
            PackEnd::Ended(Err(error)) => {
                let side = if at_source { Side::Source } else { Side::Destination };
                assert_eq!(
                    (error.kind, error.side, error.class),
                    (kind, side, FailureClass::Answer { permanent: false }),
                    "{trouble:?}"
                );
            }
            end => panic!("{trouble:?}: {end:?}"),
        }
        if at_source {
            assert_eq!((pair.held.len(), pair.to.receives()), (19, 19), "{trouble:?}: it was not even offered");
        }
    }
}

#[tokio::test]
async fn consumed_confirms_a_pack_on_a_receive_only_route() {
    let mut pair = pair(5).await;
    pair.job.receive_only = true;
    pair.to.set(Some(Trouble::Confirm(Disposition::Consumed)));
    assert!(pair.copy().await.iter().all(|end| matches!(end, PackEnd::Ended(Ok(_)))));
}

#[tokio::test]
async fn a_blob_that_is_too_large_goes_alone_and_its_size_is_known() {
    let mut pair = pair(5).await;
    let size = usize::try_from(MAX_PACKED_BYTES).unwrap() + 1;
    let large = parcel(vec![7; size]);
    pair.blobs[3] = large.put.blob;
    assert!(receive_all(&*pair.source, vec![large]).await.iter().all(Result::is_ok));
    assert_eq!(pair.all_but(3).await, PackEnd::Alone { size: Some(size as u64) });
    // One that the source gives packed, and the destination does not take so.
    let middle = parcel(vec![7; 1000]);
    pair.blobs[3] = middle.put.blob;
    pair.job.max_blob_bytes = 999;
    assert!(receive_all(&*pair.source, vec![middle]).await.iter().all(Result::is_ok));
    assert_eq!(pair.all_but(3).await, PackEnd::Alone { size: Some(1000) });
    assert_eq!(pair.held.len(), 4);
}

#[tokio::test]
async fn after_a_panic_all_that_were_on_their_way_go_alone_and_nobody_is_charged() {
    let pair = pair(5).await;
    let alone = PackEnd::Alone { size: None };
    let is_sound = |end: &PackEnd| *end == alone || matches!(end, PackEnd::Ended(Ok(_)));
    pair.to.set_for(pair.blobs[2], Some(Trouble::Panic));
    let ends = pair.copy().await;
    assert!(ends.iter().all(is_sound) && ends[2..] == vec![alone.clone(); 3], "{ends:?}");
    // Whoever was confirmed by then is confirmed.
    let confirmed = ends.iter().filter(|end| **end != alone).count();
    assert_eq!((confirmed, pair.held.len()), (2, 2));
    // And whoever had failed has failed.
    pair.from.set_for(pair.blobs[0], Some(Trouble::Missing));
    let ends = pair.copy().await;
    assert!(matches!(&ends[0], PackEnd::Ended(Err(error)) if error.kind == FaultKind::MissingAtSource), "{ends:?}");
    assert!(ends[1..].iter().all(is_sound) && ends[2] == alone, "{ends:?}");
}

#[tokio::test]
async fn a_blob_of_a_pack_on_which_its_peer_fails_is_the_peers_fault_and_the_others_arrive() {
    for at_source in [true, false] {
        let pair = pair(5).await;
        let store = if at_source { &pair.from } else { &pair.to };
        let side = if at_source { Side::Source } else { Side::Destination };
        store.set_for(pair.blobs[2], Some(Trouble::Code(Code::Internal)));
        let end = pair.all_but(2).await;
        assert!(
            matches!(end, PackEnd::Ended(Err(error)) if (error.side, error.class) == (side, FailureClass::Doubtful))
        );
        assert_eq!(pair.held.len(), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_is_down_or_mute_is_at_fault_for_all() {
    let pair = pair(5).await;
    pair.to.set_down(true);
    for end in pair.copy().await {
        assert!(
            matches!(end, PackEnd::Ended(Err(error)) if (error.side, error.class) == (Side::Destination, FailureClass::Doubtful))
        );
    }
    pair.to.set_down(false);
    let confirm = WaitLimits::default().confirm;
    let sides = [
        (&pair.from, Side::Source, FaultKind::SourceUnavailable, IDLE),
        (&pair.to, Side::Destination, FaultKind::NotConfirmed, confirm),
    ];
    for (store, side, kind, limit) in sides {
        store.set(Some(Trouble::Hang));
        let start = tokio::time::Instant::now();
        for end in pair.copy().await {
            let PackEnd::Unanswered(error) = end else { panic!("{end:?}") };
            assert_eq!(
                (error.kind, error.side, error.class, error.code),
                (kind, side, FailureClass::TimedOut, Some(Code::DeadlineExceeded))
            );
        }
        assert_eq!(start.elapsed(), limit);
        store.set(None);
    }
    assert_eq!(pair.held.len(), 0);
}

/// Which of the blobs arrived, and the faults of the others.
fn arrived(ends: &[PackEnd]) -> (Vec<usize>, Vec<(Side, FailureClass)>) {
    let (mut whole, mut faults) = (Vec::new(), Vec::new());
    for (at, end) in ends.iter().enumerate() {
        match end {
            PackEnd::Ended(Ok(_)) => whole.push(at),
            PackEnd::Unanswered(error) => faults.push((error.side, error.class)),
            PackEnd::Ended(Err(error)) => panic!("{error} was no answer about {at}"),
            PackEnd::Alone { .. } => panic!("{at} has to go alone"),
        }
    }
    (whole, faults)
}

#[tokio::test(start_paused = true)]
async fn what_a_destination_confirmed_before_its_pack_was_cut_or_hung_is_confirmed() {
    for (trouble, class) in
        [(Trouble::CutPack(12), FailureClass::Doubtful), (Trouble::HangPack(12), FailureClass::TimedOut)]
    {
        let pair = pair(20).await;
        pair.to.set(Some(trouble));
        let (whole, faults) = arrived(&pair.copy().await);
        assert_eq!(whole, (0..12).collect::<Vec<_>>());
        assert_eq!(faults, vec![(Side::Destination, class); 8]);
        assert_eq!(pair.held.len(), 12);
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_source_gave_before_its_pack_was_cut_or_hung_goes_on() {
    for (trouble, class) in
        [(Trouble::CutPack(12), FailureClass::Doubtful), (Trouble::HangPack(12), FailureClass::TimedOut)]
    {
        let pair = pair(20).await;
        pair.from.set(Some(trouble));
        let (whole, faults) = arrived(&pair.copy().await);
        assert_eq!(whole, (0..12).collect::<Vec<_>>());
        assert_eq!(faults, vec![(Side::Source, class); 8]);
        assert_eq!((pair.held.len(), pair.to.receives()), (12, 12), "the others were not even offered");
    }
}

#[tokio::test(start_paused = true)]
async fn each_answer_is_progress() {
    let pair = pair(100).await;
    // 16 at a time, so that the last comes long after the idle timeout.
    pair.from.set(Some(Trouble::Slow(IDLE * 2 / 3)));
    let start = tokio::time::Instant::now();
    assert_eq!(arrived(&pair.copy().await).0.len(), 100);
    assert!(start.elapsed() > IDLE * 4);
}

#[tokio::test(start_paused = true)]
async fn a_pack_that_was_sent_waits_for_its_answers_and_says_since_when() {
    let pair = pair(20).await;
    pair.to.set(Some(Trouble::HangPack(12)));
    let progress = Progress::new(None);
    let watch = async {
        while progress.stage() != Stage::Confirming {
            progress.news().await;
        }
        tokio::time::sleep(IDLE / 2).await;
        progress.confirming_for(tokio::time::Instant::now())
    };
    // The answers in between are no new beginning.
    let (ends, confirming) = tokio::join!(pair.copy_with(&progress), tokio::time::timeout(IDLE * 2, watch));
    assert_eq!(confirming, Ok(Some(IDLE / 2)));
    assert_eq!(arrived(&ends).0.len(), 12);
}

#[tokio::test]
async fn asked_first_what_both_hold_is_not_sent_again() {
    let mut pair = pair(20).await;
    let some: Vec<Parcel> = (0..12u32).map(|n| parcel(n.to_le_bytes().to_vec())).collect();
    assert!(receive_all(&*pair.held, some).await.iter().all(Result::is_ok));
    pair.job.ask_first = true;
    let ends = pair.copy().await;
    let sent = |end: &PackEnd| matches!(end, PackEnd::Ended(Ok(copied)) if copied.copied);
    assert_eq!(ends.iter().filter(|end| sent(end)).count(), 8);
    assert!(ends.iter().all(|end| matches!(end, PackEnd::Ended(Ok(copied)) if copied.was_new == copied.copied)));
    assert_eq!((pair.from.fetches(), pair.to.receives()), (8, 8));
    // The destination holds it, and the source does not say so: it is copied, to learn the truth.
    pair.from.set_for(pair.blobs[0], Some(Trouble::Missing));
    let end = pair.all_but(0).await;
    assert!(matches!(end, PackEnd::Ended(Err(error)) if error.kind == FaultKind::MissingAtSource));
    assert_eq!((pair.from.fetches(), pair.to.receives()), (9, 8));
}

#[tokio::test]
async fn sizes_that_were_announced_wrong_are_corrected() {
    let mut pair = pair(3).await;
    let five = parcel(b"fives".to_vec());
    pair.blobs[1] = five.put.blob;
    assert!(receive_all(&*pair.source, vec![five]).await.iter().all(Result::is_ok));
    let ends = pair.copy().await;
    let corrected = |end: &PackEnd| matches!(end, PackEnd::Ended(Ok(copied)) if copied.size_corrected == Some(4));
    assert_eq!(ends.iter().map(corrected).collect::<Vec<_>>(), [false, true, false]);
}
