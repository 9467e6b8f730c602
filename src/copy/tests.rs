#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Copied, CopyError, CopyJob, Progress, copy_blob};
use crate::blob::{BlobRef, DigestFunction};
use crate::fault::{Blame, FaultKind, Side};
use crate::store::faulty::{FaultyStore, Trouble};
use crate::store::memory::MemoryStore;
use crate::store::{ByteRange, Disposition, PeerError, Put, Store, StoreError};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::sync::Arc;
use std::time::Duration;
use tonic::Code;

struct Pair {
    from: Arc<FaultyStore>,
    to: FaultyStore,
    held: Arc<MemoryStore>,
    source: Arc<MemoryStore>,
}

impl Pair {
    fn new() -> Self {
        let source = Arc::new(MemoryStore::new(1 << 30));
        let held = Arc::new(MemoryStore::new(1 << 30));
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
        idle_timeout: Duration::from_secs(30),
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
            assert_eq!((error.kind, error.side, error.blame()), (kind, Side::Source, Blame::Entry), "{trouble:?}");
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
        let expected = (FaultKind::DestinationConfirmedOther, Side::Destination, Blame::Entry);
        assert_eq!((error.kind, error.side, error.blame()), expected, "{trouble:?}");
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
        Code::DeadlineExceeded,
        Code::Unauthenticated,
        Code::PermissionDenied,
        Code::ResourceExhausted,
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
        assert_eq!((error.kind, error.blame()), (FaultKind::DestinationUnavailable, Blame::Peer(Side::Destination)));
        pair.from.set(Some(Trouble::Code(code)));
        let error = pair.copy(&job(blob)).await.unwrap_err();
        assert_eq!((error.kind, error.blame()), (FaultKind::SourceUnavailable, Blame::Peer(Side::Source)));
        assert_eq!(error.code, Some(code));
    }
}

#[test]
fn what_is_said_of_one_blob_is_its_entrys() {
    let with_reason = |code| {
        let reason = Some(Arc::from("SOME_REASON"));
        StoreError::Peer(PeerError { code, reason, message: "said".to_owned() })
    };
    let blame = |code, side| CopyError::of(&with_reason(code), side).blame();
    for code in [Code::InvalidArgument, Code::OutOfRange] {
        assert_eq!(blame(code, Side::Source), Blame::Entry);
        assert_eq!(blame(code, Side::Destination), Blame::Entry);
    }
    assert_eq!(blame(Code::NotFound, Side::Source), Blame::Entry);
    assert_eq!(blame(Code::ResourceExhausted, Side::Destination), Blame::Peer(Side::Destination));
    let too_large = CopyError::of(&StoreError::TooLarge { limit: 1 }, Side::Destination);
    assert!(too_large.is_permanent() && too_large.blame() == Blame::Entry);
    let protocol = CopyError::of(&StoreError::Protocol("two headers".to_owned()), Side::Source);
    assert_eq!((protocol.kind, protocol.blame()), (FaultKind::PeerProtocol, Blame::Peer(Side::Source)));
    // The destination only passes on what its input said.
    let input = StoreError::Input(Box::new(StoreError::NoSpace("x".to_owned())));
    assert_eq!(CopyError::of(&input, Side::Destination).blame(), Blame::Peer(Side::Source));
}

#[test]
fn messages_are_bounded_and_escaped() {
    let said = format!("\u{1b}[31m\n\0{}", "é".repeat(10_000));
    let error = PeerError { code: Code::Unknown, reason: None, message: said };
    let message = CopyError::of(&error.into(), Side::Source).message;
    assert!(message.len() <= 500 && !message.chars().any(char::is_control), "{message}");
}

#[tokio::test]
async fn a_source_that_breaks_off_is_at_fault_itself() {
    let pair = Pair::new();
    let blob = pair.put(&[1; 1_000_000]).await;
    pair.from.set(Some(Trouble::Cut));
    let error = pair.copy(&job(blob)).await.unwrap_err();
    assert_eq!((error.kind, error.code), (FaultKind::SourceUnavailable, Some(Code::Unavailable)));
    assert_eq!(error.blame(), Blame::Peer(Side::Source));
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
    assert_eq!(error.blame(), Blame::Peer(Side::Source));
    assert_eq!(pair.from.fetches(), 9);
    assert!(pair.held.is_empty());
}

#[tokio::test(start_paused = true)]
async fn whoever_hangs_is_named_after_the_idle_timeout() {
    let pair = Pair::new();
    let blob = pair.put(b"four").await;
    for (store, side) in [(&*pair.from, Side::Source), (&pair.to, Side::Destination)] {
        store.set(Some(Trouble::Hang));
        let start = tokio::time::Instant::now();
        let error = pair.copy(&job(blob)).await.unwrap_err();
        assert_eq!((error.code, error.blame()), (Some(Code::DeadlineExceeded), Blame::Peer(side)));
        assert_eq!(start.elapsed().as_secs(), 30);
        store.set(None);
    }
    pair.copy(&job(blob)).await.unwrap();
}

#[tokio::test]
async fn a_panic_is_caught_and_charged() {
    let pair = Pair::new();
    let blob = pair.put(b"four").await;
    for store in [&*pair.from, &pair.to] {
        store.set_times(Trouble::Panic, 1);
        let error = pair.copy(&job(blob)).await.unwrap_err();
        assert_eq!((error.kind, error.blame()), (FaultKind::Panicked, Blame::Entry));
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
    assert_eq!((error.kind, error.blame()), (FaultKind::DestinationRejected, Blame::Entry));
    assert!(error.is_permanent());
    assert_eq!(pair.to.receives(), 0);
}
