#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Copied, CopyError, CopyJob, Progress, Stage, WaitLimits, copy_blob};
use crate::blob::{BlobRef, DigestFunction};
use crate::fault::{FailureClass, FaultKind, Side};
use crate::grpc::Reason;
use crate::store::faulty::{FaultyStore, Trouble};
use crate::store::memory::MemoryStore;
use crate::store::{ByteRange, Disposition, PeerError, Put, Store, StoreError};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

/// An answer about a blob that another attempt may get differently.
const ANSWER: FailureClass = FailureClass::Answer { permanent: false };

/// One that it cannot.
const FINAL: FailureClass = FailureClass::Answer { permanent: true };

struct Pair {
    from: Arc<FaultyStore>,
    to: FaultyStore,
    held: Arc<MemoryStore>,
    source: Arc<MemoryStore>,
}

impl Pair {
    fn new() -> Self {
        let [source, held] = ["a", "b"].map(|id| Arc::new(MemoryStore::new(id, 1 << 30)));
        Self { from: Arc::new(FaultyStore::new(source.clone())), to: FaultyStore::new(held.clone()), held, source }
    }

    async fn put(&self, bytes: &[u8]) -> BlobRef {
        put(&*self.source, bytes).await
    }

    async fn copy(&self, job: &CopyJob) -> Result<Copied, CopyError> {
        self.copy_with(job, &Arc::new(Progress::new(job.size_hint))).await
    }

    async fn copy_with(&self, job: &CopyJob, progress: &Arc<Progress>) -> Result<Copied, CopyError> {
        let source: Arc<dyn Store> = self.from.clone();
        copy_blob(&source, &self.to, job, progress).await
    }
}

async fn put(store: &dyn Store, bytes: &[u8]) -> BlobRef {
    let blob = DigestFunction::Sha256.ref_of(bytes);
    let put = Put { blob, size: None, replace: false };
    store.receive(put, stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed()).await.unwrap();
    blob
}

fn job(blob: BlobRef) -> CopyJob {
    CopyJob {
        blob,
        size_hint: None,
        repair: false,
        receive_only: false,
        ask_first: false,
        waits: WaitLimits::default(),
    }
}

async fn read(store: &dyn Store, blob: BlobRef) -> Vec<u8> {
    let mut bytes = store.fetch(blob, ByteRange::default()).await.unwrap().bytes;
    let mut whole = Vec::new();
    while let Some(chunk) = bytes.next().await {
        whole.extend_from_slice(&chunk.unwrap());
    }
    whole
}

#[tokio::test]
async fn blobs_of_any_size_arrive_as_they_are() {
    let pair = Pair::new();
    for size in [0usize, 1, 65_535, 65_536, 262_143, 262_144, 262_145, 3_000_000] {
        let bytes: Vec<u8> = (0..=250).cycle().take(size).collect();
        let blob = pair.put(&bytes).await;
        let copied = pair.copy(&job(blob)).await.unwrap();
        assert_eq!(copied, Copied { size: size as u64, copied: true, was_new: true, size_corrected: None });
        assert_eq!(read(&*pair.held, blob).await, bytes);
    }
}

#[tokio::test]
async fn an_announced_size_is_only_a_hint() {
    let pair = Pair::new();
    let blob = pair.put(b"four").await;
    let copied = pair.copy(&CopyJob { size_hint: Some(5), ..job(blob) }).await.unwrap();
    assert_eq!(copied, Copied { size: 4, copied: true, was_new: true, size_corrected: Some(5) });
}

#[tokio::test]
async fn a_source_that_lies_is_caught_named_and_nothing_is_committed() {
    for bytes in [b"x".to_vec(), vec![7; 1_000_000]] {
        let size = bytes.len() as u64;
        for (trouble, kind) in [
            (Trouble::WrongBytes, FaultKind::SourceBytesCorrupt),
            (Trouble::ShortRead, FaultKind::ShortRead),
            (Trouble::ExtraByte, FaultKind::SourceSizeMismatch),
            (Trouble::StatedSize(size - 1), FaultKind::SourceSizeMismatch),
            (Trouble::StatedSize(size + 1), FaultKind::SourceSizeMismatch),
            (Trouble::StatedSize(0), FaultKind::SourceSizeMismatch),
            (Trouble::StatedSize(u64::MAX), FaultKind::SourceSizeMismatch),
            (Trouble::Missing, FaultKind::MissingAtSource),
        ] {
            let pair = Pair::new();
            let blob = pair.put(&bytes).await;
            pair.from.set(Some(trouble.clone()));
            let error = pair.copy(&job(blob)).await.unwrap_err();
            assert_eq!((error.kind, error.side, error.class), (kind, Side::Source, ANSWER), "{trouble:?}");
            assert!(pair.held.is_empty(), "{trouble:?}");
        }
    }
}

#[tokio::test]
async fn the_last_chunk_is_kept_back_until_the_digest_matched() {
    let pair = Pair::new();
    let bytes = vec![1; 600_000];
    let blob = pair.put(&bytes).await;
    pair.from.set(Some(Trouble::WrongBytes));
    let progress = Arc::new(Progress::new(None));
    pair.copy_with(&job(blob), &progress).await.unwrap_err();
    assert!(progress.bytes() > 0 && progress.bytes() < 600_000, "{}", progress.bytes());
}

#[tokio::test]
async fn an_empty_ref_that_is_not_empty_is_corrupt() {
    let pair = Pair::new();
    let blob = pair.put(b"x").await;
    let empty = DigestFunction::Sha256.ref_of(b"");
    pair.put(b"").await;
    pair.from.set_for(empty, Some(Trouble::ExtraByte));
    assert_eq!(pair.copy(&job(empty)).await.unwrap_err().kind, FaultKind::SourceSizeMismatch);
    pair.from.set_for(blob, Some(Trouble::StatedSize(0)));
    assert_eq!(pair.copy(&job(blob)).await.unwrap_err().kind, FaultKind::SourceSizeMismatch);
    assert!(pair.held.is_empty());
}

#[tokio::test]
async fn a_destination_that_confirms_something_else_is_not_believed() {
    let other = DigestFunction::Sha256.ref_of(b"other");
    for trouble in [
        Trouble::ConfirmRef(other),
        Trouble::ConfirmSize(3),
        Trouble::ConfirmSize(0),
        Trouble::Confirm(Disposition::Enqueued),
        Trouble::Confirm(Disposition::Consumed),
        Trouble::ConfirmUnread,
    ] {
        let pair = Pair::new();
        let blob = pair.put(b"four").await;
        pair.to.set(Some(trouble.clone()));
        let error = pair.copy(&job(blob)).await.unwrap_err();
        let expected = (FaultKind::DestinationConfirmedOther, Side::Destination, ANSWER);
        assert_eq!((error.kind, error.side, error.class), expected, "{trouble:?}");
    }
}

#[tokio::test]
async fn consumed_confirms_on_a_receive_only_route_and_enqueued_never() {
    let pair = Pair::new();
    let receive_only = CopyJob { receive_only: true, ..job(pair.put(b"four").await) };
    pair.to.set(Some(Trouble::Confirm(Disposition::Consumed)));
    assert!(pair.copy(&receive_only).await.is_ok());
    pair.to.set(Some(Trouble::Confirm(Disposition::Enqueued)));
    assert_eq!(pair.copy(&receive_only).await.unwrap_err().kind, FaultKind::DestinationConfirmedOther);
}

#[tokio::test]
async fn what_the_peer_says_without_a_reason_is_the_peers() {
    let codes = [
        Code::Unavailable,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::Unimplemented,
        Code::Internal,
        Code::Unknown,
        Code::Cancelled,
        Code::NotFound,
        Code::InvalidArgument,
        Code::OutOfRange,
        Code::DataLoss,
    ];
    for code in codes {
        let pair = Pair::new();
        let blob = pair.put(b"four").await;
        pair.to.set(Some(Trouble::Code(code)));
        let error = pair.copy(&job(blob)).await.unwrap_err();
        let doubtful = |kind, side| (kind, side, FailureClass::Doubtful);
        let expected = doubtful(FaultKind::DestinationUnavailable, Side::Destination);
        assert_eq!((error.kind, error.side, error.class), expected);
        pair.from.set(Some(Trouble::Code(code)));
        let error = pair.copy(&job(blob)).await.unwrap_err();
        assert_eq!((error.kind, error.side, error.class), doubtful(FaultKind::SourceUnavailable, Side::Source));
        assert_eq!(error.code, Some(code));
    }
}

fn said(code: Code, reason: &str) -> PeerError {
    PeerError { reason: Some(reason.into()), ..PeerError::bare(code, "said") }
}

#[test]
fn what_is_said_of_one_blob_is_its_entrys() {
    let class = |code, side| CopyError::of(&said(code, "SOME_REASON").into(), side).class;
    for code in [Code::InvalidArgument, Code::OutOfRange] {
        assert_eq!(class(code, Side::Source), ANSWER);
        assert_eq!(class(code, Side::Destination), ANSWER);
    }
    assert_eq!(class(Code::NotFound, Side::Source), ANSWER);
    assert_eq!(class(Code::NotFound, Side::Destination), FailureClass::Doubtful);
    assert_eq!(CopyError::of(&StoreError::TooLarge { limit: 1 }, Side::Destination).class, FINAL);
    let protocol = CopyError::of(&StoreError::Protocol("two headers".to_owned()), Side::Source);
    assert_eq!((protocol.kind, protocol.class), (FaultKind::PeerProtocol, FailureClass::Doubtful));
    // The destination only passes on what its input said.
    let input = CopyError::of(&StoreError::Input(Box::new(StoreError::Missing(blob()))), Side::Destination);
    assert_eq!((input.kind, input.side), (FaultKind::MissingAtSource, Side::Source));
}

fn blob() -> BlobRef {
    DigestFunction::Sha256.ref_of(b"blob")
}

#[test]
fn a_refusal_that_cannot_change_is_final_from_a_remote_peer_too() {
    for side in [Side::Source, Side::Destination] {
        for reason in Reason::ALL {
            let error = CopyError::of(&said(reason.code(), reason.as_str()).into(), side);
            assert_eq!(error.class.is_permanent(), reason.is_final_for_the_blob(), "{reason:?} {error}");
            let is_answer = matches!(error.class, FailureClass::Answer { .. });
            let nobody_asked = *reason == Reason::BlobMissing && side == Side::Destination;
            assert_eq!(is_answer, reason.is_of_the_blob() && !nobody_asked, "{reason:?} {error}");
        }
        // The right reason with a code that does not belong to it is not believed.
        let odd = CopyError::of(&said(Code::Internal, "BLOB_TOO_LARGE").into(), side);
        assert_eq!(odd.class, FailureClass::Doubtful);
    }
    let too_large = CopyError::of(&said(Code::OutOfRange, "BLOB_TOO_LARGE").into(), Side::Destination);
    assert_eq!((too_large.kind, too_large.class), (FaultKind::DestinationRejected, FINAL));
}

#[test]
fn a_refusal_for_want_of_capacity_is_no_blobs_and_says_when_to_come_back() {
    let after = Some(Duration::from_secs(3));
    for (side, kind) in
        [(Side::Source, FaultKind::SourceOverloaded), (Side::Destination, FaultKind::DestinationOverloaded)]
    {
        let is = |error: &StoreError, retry_after| {
            let error = CopyError::of(error, side);
            assert_eq!((error.kind, error.class), (kind, FailureClass::Overloaded { retry_after }), "{error}");
        };
        is(&PeerError::bare(Code::ResourceExhausted, "").into(), None);
        is(&said(Code::ResourceExhausted, "TOO_BUSY").into(), None);
        is(&PeerError { retry_after: after, ..PeerError::bare(Code::ResourceExhausted, "") }.into(), after);
        is(&PeerError { retry_after: after, ..PeerError::bare(Code::Unavailable, "") }.into(), after);
        is(&StoreError::NoSpace("full".to_owned()), None);
        let late = CopyError::of(&PeerError::bare(Code::DeadlineExceeded, "").into(), side);
        assert_eq!(late.class, FailureClass::TimedOut);
        // When a blob may be there is no refusal.
        let missing = PeerError { retry_after: after, ..said(Code::InvalidArgument, "SIZE_MISMATCH") };
        assert_eq!(CopyError::of(&missing.into(), side).class, ANSWER);
    }
}

#[test]
fn a_digest_function_that_a_store_does_not_take_is_named_with_those_that_it_takes() {
    let listed = [DigestFunction::Sha256, DigestFunction::Sha512];
    let error = CopyError::unsupported_digest(Side::Destination, DigestFunction::Blake3, &listed);
    assert_eq!((error.kind, error.side), (FaultKind::UnsupportedDigest, Side::Destination));
    assert_eq!(error.class, FINAL);
    assert!(error.message.contains("no blake3 refs, only sha256, sha512"), "{error}");
    assert!(CopyError::unsupported_digest(Side::Source, DigestFunction::Blake3, &[]).message.contains("only none"));
}

#[test]
fn messages_are_bounded_and_escaped() {
    let said = format!("\u{1b}[31m\n\0{}", "é".repeat(10_000));
    let error = PeerError::bare(Code::Unknown, said);
    let message = CopyError::of(&error.into(), Side::Source).message;
    assert!(message.len() <= 500 && !message.chars().any(char::is_control), "{message}");
}

#[tokio::test]
async fn a_source_that_breaks_off_is_at_fault_itself() {
    let pair = Pair::new();
    let blob = pair.put(&[1; 1_000_000]).await;
    pair.from.set(Some(Trouble::Cut));
    let error = pair.copy(&job(blob)).await.unwrap_err();
    assert_eq!((error.side, error.code), (Side::Source, Some(Code::Unavailable)));
    assert!(pair.held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_drops_midway_is_gone_on_with_where_it_stopped() {
    let pair = Pair::new();
    let bytes: Vec<u8> = (0..=250).cycle().take(1_000_000).collect();
    let blob = pair.put(&bytes).await;
    pair.from.set_times(Trouble::Cut, 2);
    let progress = Arc::new(Progress::new(None));
    assert!(pair.copy_with(&job(blob), &progress).await.unwrap().copied);
    assert_eq!((pair.from.fetches(), pair.to.receives()), (3, 1));
    // Nothing passed twice.
    assert_eq!(progress.bytes(), 1_000_000);
    assert_eq!(read(&*pair.held, blob).await, bytes);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_drops_without_end_ends_the_attempt() {
    let pair = Pair::new();
    let blob = pair.put(&[1; 9_000_000]).await;
    pair.from.set(Some(Trouble::Cut));
    let error = pair.copy(&job(blob)).await.unwrap_err();
    let cut = (FaultKind::ConnectionCut, Side::Source, FailureClass::Cut);
    assert_eq!((error.kind, error.side, error.class), cut);
    assert!(error.message.contains(" of 9000000 bytes: as told"), "{error}");
    assert_eq!(pair.from.fetches(), 9);
    assert!(pair.held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_source_that_is_gone_after_a_drop_is_only_gone() {
    let pair = Pair::new();
    let blob = pair.put(&[1; 1_000_000]).await;
    pair.from.set_times(Trouble::Cut, 1);
    let go_down = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        pair.from.set_down(true);
    };
    let job = job(blob);
    let error = tokio::join!(pair.copy(&job), go_down).0.unwrap_err();
    assert_eq!((error.kind, error.class), (FaultKind::SourceUnavailable, FailureClass::Doubtful));
}

#[tokio::test(start_paused = true)]
async fn a_source_that_takes_no_ranges_has_dropped_and_refused_nothing() {
    let pair = Pair::new();
    let blob = pair.put(&[1; 1_000_000]).await;
    pair.from.set(Some(Trouble::CutForGood));
    let error = pair.copy(&job(blob)).await.unwrap_err();
    assert_eq!((error.kind, error.class), (FaultKind::ConnectionCut, FailureClass::Cut));
    assert_eq!(pair.from.fetches(), 2);
}

#[tokio::test]
async fn a_destination_that_breaks_off_has_cut_what_it_had_begun_to_read() {
    let pair = Pair::new();
    let blob = pair.put(&vec![1; 12 << 20]).await;
    for (read, class) in [(10 << 20, FailureClass::Cut), (1 << 20, FailureClass::Doubtful)] {
        pair.to.set(Some(Trouble::CutReceive(read)));
        let error = pair.copy(&job(blob)).await.unwrap_err();
        assert_eq!((error.side, error.class), (Side::Destination, class), "what was sent may lie on the way: {error}");
    }
    // A server that says why it stopped is believed.
    let stopping = said(Code::Unavailable, "SHUTTING_DOWN").into();
    assert_eq!(
        CopyError::under_way(&stopping, Side::Destination, (1, 2), Duration::ZERO).class,
        FailureClass::Doubtful
    );
    let denied = PeerError::bare(Code::PermissionDenied, "").into();
    assert_eq!(CopyError::under_way(&denied, Side::Destination, (1, 2), Duration::ZERO).class, FailureClass::Doubtful);
}

#[tokio::test(start_paused = true)]
async fn what_only_waits_for_its_confirmation_says_so_and_since_when() {
    let pair = Pair::new();
    let blob = pair.put(&[1; 1_000_000]).await;
    pair.to.set(Some(Trouble::HangAtEnd));
    pair.from.set(Some(Trouble::Slow(Duration::from_secs(7))));
    let (job, progress) = (job(blob), Arc::new(Progress::new(None)));
    let watch = async {
        while progress.stage() != Stage::Confirming {
            assert_eq!(progress.confirming_for(tokio::time::Instant::now()), None);
            progress.news().await;
        }
        assert_eq!((progress.bytes(), progress.waiting_for()), (1_000_000, Side::Destination));
        tokio::time::sleep(Duration::from_secs(10)).await;
        progress.confirming_for(tokio::time::Instant::now())
    };
    let confirming = tokio::select! {
        ended = pair.copy_with(&job, &progress) => panic!("{ended:?}"),
        confirming = watch => confirming,
    };
    assert_eq!(confirming, Some(Duration::from_secs(10)));
    progress.settling();
    assert_eq!(progress.confirming_for(tokio::time::Instant::now()), None);
}

#[tokio::test(start_paused = true)]
async fn whoever_hangs_is_named_after_the_idle_timeout() {
    let pair = Pair::new();
    let blob = pair.put(b"four").await;
    for (store, side) in [(&*pair.from, Side::Source), (&pair.to, Side::Destination)] {
        store.set(Some(Trouble::Hang));
        let start = tokio::time::Instant::now();
        let error = pair.copy(&job(blob)).await.unwrap_err();
        assert_eq!((error.code, error.side, error.class), (Some(Code::DeadlineExceeded), side, FailureClass::TimedOut));
        assert_eq!(start.elapsed().as_secs(), 30);
        store.set(None);
    }
    pair.copy(&job(blob)).await.unwrap();
}

/// 200 bytes a second for ever, from the source and into the destination: each is given up after a minute, with its own words.
#[tokio::test(start_paused = true)]
async fn a_side_that_trickles_is_named_after_a_minute_of_waiting_for_it() {
    let pair = Pair::new();
    let blob = pair.put(&[1; 100_000]).await;
    pair.from.set(Some(Trouble::Trickle(Duration::from_millis(5))));
    let start = tokio::time::Instant::now();
    let error = pair.copy(&job(blob)).await.unwrap_err();
    assert_eq!((error.kind, error.side, error.class), (FaultKind::TooSlow, Side::Source, FailureClass::Doubtful));
    assert_eq!(start.elapsed().as_secs(), 60);
    assert!(error.message.contains("min_bytes_per_second"), "{error}");
    let waits = WaitLimits { least_rate: [0, 1024], ..WaitLimits::default() };
    pair.copy(&CopyJob { waits, ..job(blob) }).await.unwrap();
}

/// A little more than 1 KiB for each second of waiting, in bursts, and as long again for the other side now and then.
#[tokio::test(start_paused = true)]
async fn the_rate_of_a_side_is_that_of_the_time_in_which_it_is_waited_for() {
    let progress = Progress::new(None);
    progress.enter(Stage::Writing, Side::Destination);
    let limits = WaitLimits::default();
    let moving = async {
        loop {
            progress.destination_asks();
            tokio::time::sleep(Duration::from_millis(2_500)).await;
            progress.pass(2_700);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    };
    let watched = tokio::time::timeout(Duration::from_hours(1), progress.overdue(&limits));
    tokio::select! {
        overdue = watched => assert!(overdue.is_err(), "{overdue:?}"),
        () = moving => {}
    }
}

#[tokio::test(start_paused = true)]
async fn a_confirmation_has_a_limit_of_its_own() {
    let pair = Pair::new();
    let blob = pair.put(b"four").await;
    pair.to.set(Some(Trouble::SlowEnd(Duration::from_mins(4))));
    pair.copy(&job(blob)).await.unwrap();
    pair.to.set(Some(Trouble::HangAtEnd));
    let start = tokio::time::Instant::now();
    let error = pair.copy(&job(blob)).await.unwrap_err();
    assert_eq!((error.kind, error.class), (FaultKind::NotConfirmed, FailureClass::TimedOut));
    assert_eq!(start.elapsed(), Duration::from_mins(5));
    assert!(error.message.contains("not confirmed within 5m (confirm_timeout)"), "{error}");
}

#[tokio::test]
async fn a_panic_is_caught_and_charged() {
    let pair = Pair::new();
    let blob = pair.put(b"four").await;
    for store in [&*pair.from, &pair.to] {
        store.set_times(Trouble::Panic, 1);
        let error = pair.copy(&job(blob)).await.unwrap_err();
        assert_eq!((error.kind, error.class), (FaultKind::Panicked, FailureClass::Panicked));
        assert!(error.message.contains("told to panic"), "{error}");
    }
    pair.copy(&job(blob)).await.unwrap();
}

#[tokio::test]
async fn asked_first_a_blob_that_both_hold_is_not_sent_again() {
    let pair = Pair::new();
    let blob = pair.put(b"four").await;
    let asking = CopyJob { ask_first: true, ..job(blob) };
    assert!(pair.copy(&asking).await.unwrap().copied);
    assert_eq!(
        pair.copy(&asking).await.unwrap(),
        Copied { size: 4, copied: false, was_new: false, size_corrected: None }
    );
    assert_eq!((pair.from.fetches(), pair.to.receives()), (1, 1));
    assert!(pair.copy(&CopyJob { repair: true, ..asking }).await.unwrap().copied);
}

#[tokio::test]
async fn a_repair_is_read_back() {
    let pair = Pair::new();
    let repair = CopyJob { repair: true, ..job(pair.put(b"four").await) };
    assert!(pair.copy(&repair).await.unwrap().copied);
    for trouble in [Trouble::WrongBytes, Trouble::ShortRead, Trouble::StatedSize(5), Trouble::Missing] {
        pair.to.set(Some(trouble.clone()));
        let error = pair.copy(&repair).await.unwrap_err();
        assert_eq!(error.kind, FaultKind::DestinationConfirmedOther, "{trouble:?}");
    }
}

#[tokio::test]
async fn a_repair_is_refused_where_nothing_can_be_replaced() {
    let pair = Pair::new();
    let repair = CopyJob { repair: true, ..job(pair.put(b"four").await) };
    let mut info = pair.held.info().await.unwrap();
    info.abilities.replace = false;
    pair.to.set_info(Some(info));
    let error = pair.copy(&repair).await.unwrap_err();
    assert_eq!((error.kind, error.class), (FaultKind::DestinationRejected, FINAL));
    assert_eq!(pair.to.receives(), 0);
}
