//! Bad input: a clear error with the right code and details, and nothing left in queue or store.

use crate::harness::{
    Receiver, World, bad_fields, blob, chunk_message, header_message, held, queued, reader, reason, receiver,
    replication, route, send, until,
};
use blobferry::blob::{BlobRef, DigestFunction};
use blobferry::v1 as pb;
use tokio_stream::StreamExt;
use tonic::Code;

fn header(blob: BlobRef, size: Option<u64>) -> pb::ReceiveBlobRequest {
    let header = pb::BlobHeader { r#ref: blob.to_string(), size_bytes: size, ..Default::default() };
    header_message(header)
}

async fn refused(to: &mut Receiver, messages: Vec<pb::ReceiveBlobRequest>) -> (Code, String, Vec<String>) {
    let status = to.receive_blob(tokio_stream::iter(messages)).await.expect_err("it is not to be accepted");
    assert!(!status.message().is_empty());
    (status.code(), reason(&status), bad_fields(&status))
}

/// The refusals that a store and a replicator share. Gives the refs that must not be there afterwards.
async fn refuses_bad_streams(mut to: Receiver) -> Vec<BlobRef> {
    let (right, bytes) = blob(1, 1_000);
    let (other, _) = blob(2, 1_000);
    let chunk = chunk_message(&bytes);
    let invalid = |reason: &str| (Code::InvalidArgument, reason.to_owned(), vec![]);

    let wrong = vec![header(other, None), chunk.clone()];
    assert_eq!(refused(&mut to, wrong).await, invalid("DIGEST_MISMATCH"));
    let wrong = vec![header(other, Some(1_000)), chunk.clone()];
    assert_eq!(refused(&mut to, wrong).await, invalid("DIGEST_MISMATCH"));
    let short = vec![header(right, Some(1_001)), chunk.clone()];
    assert_eq!(refused(&mut to, short).await, invalid("SIZE_MISMATCH"));
    let long = vec![header(right, Some(999)), chunk.clone()];
    assert_eq!(refused(&mut to, long).await, invalid("SIZE_MISMATCH"));
    let nothing = vec![header(right, None)];
    assert_eq!(refused(&mut to, nothing).await, invalid("DIGEST_MISMATCH"));
    let two = vec![header(right, None), chunk.clone(), header(right, None)];
    assert_eq!(refused(&mut to, two).await, invalid("HEADER_REPEATED"));
    assert_eq!(refused(&mut to, vec![chunk.clone()]).await, invalid("HEADER_MISSING"));
    assert_eq!(refused(&mut to, vec![]).await, invalid("HEADER_MISSING"));
    let empty = vec![header(right, None), pb::ReceiveBlobRequest { part: None }];
    assert_eq!(refused(&mut to, empty).await, invalid("MESSAGE_EMPTY"));

    let hex = &right.to_string()["sha256-".len()..];
    for text in [
        String::new(),
        hex.to_owned(),
        right.to_string().to_uppercase(),
        format!("sha256-{}", hex.to_uppercase()),
        format!("sha256-{}", &hex[1..]),
        format!("md5-{}", &hex[..32]),
        format!("sha256-../{}", &hex[3..]),
        format!("sha256-{}\0", &hex[1..]),
        "a".repeat(1 << 20),
    ] {
        let header = pb::BlobHeader { r#ref: text, ..Default::default() };
        let (code, reason, fields) = refused(&mut to, vec![header_message(header), chunk.clone()]).await;
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, "INVALID_REF"));
        assert_eq!(fields, ["header.ref"]);
    }

    // A message larger than any is refused before anybody reads it.
    let (large, bytes) = blob(3, 6 << 20);
    let (code, reason, _) = refused(&mut to, vec![header(large, None), chunk_message(&bytes)]).await;
    assert_eq!((code, reason.as_str()), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));

    // A stream cut halfway: the client goes before its half-close.
    let (cut, bytes) = blob(4, 100_000);
    let (go, gone) = tokio::sync::oneshot::channel::<()>();
    let first = vec![header(cut, Some(100_000)), chunk_message(&bytes)];
    let silence = async move {
        // All bytes were sent; the half-close never comes.
        let _held = go;
        std::future::pending::<pb::ReceiveBlobRequest>().await
    };
    let stream = tokio_stream::iter(first).chain(futures::stream::once(silence));
    let call = to.receive_blob(stream);
    assert!(tokio::time::timeout(std::time::Duration::from_millis(300), call).await.is_err());
    assert!(gone.await.is_err(), "the stream was dropped");
    vec![right, other, large, cut]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_keeps_nothing_of_bad_streams() {
    let world = World::new();
    let store = world.store("store");
    let refs = refuses_bad_streams(receiver(&store).await).await;
    let mut reader = reader(&store).await;
    for blob in &refs {
        assert_eq!(held(&mut reader, &[*blob]).await, 0, "{blob} of {refs:?}");
    }
    let request = pb::EnumerateBlobsRequest::default();
    let mut pages = reader.enumerate_blobs(request).await.unwrap().into_inner();
    let mut found = 0;
    while let Some(page) = pages.message().await.unwrap() {
        found += page.blobs.len();
    }
    assert_eq!(found, 0);
    let incoming = world.path("store").join("incoming");
    let left = async || std::fs::read_dir(&incoming).unwrap().next().is_none().then_some(());
    until("the cut stream's leftovers are gone", left).await;

    let bad = reader.fetch_blob(pb::FetchBlobRequest { r#ref: "x".into(), ..Default::default() }).await.unwrap_err();
    assert_eq!((bad.code(), reason(&bad).as_str()), (Code::InvalidArgument, "INVALID_REF"));
    assert_eq!(bad_fields(&bad), ["ref"]);
    let missing = pb::FetchBlobRequest { r#ref: refs[0].to_string(), ..Default::default() };
    let missing = reader.fetch_blob(missing).await.unwrap_err();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::NotFound, "BLOB_MISSING"));
    let many = pb::StatBlobsRequest { refs: vec![refs[0].to_string(); 10_001] };
    let many = reader.stat_blobs(many).await.unwrap_err();
    assert_eq!((many.code(), reason(&many).as_str()), (Code::InvalidArgument, "TOO_MANY_ITEMS"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicator_queues_nothing_of_bad_streams() {
    let world = World::new();
    // Nobody listens there: what were queued would stay queued.
    let nowhere = [("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2")];
    let replicator = world.replicator(&nowhere, &[("a", "b")]);
    let mut to = receiver(&replicator).await;
    refuses_bad_streams(to.clone()).await;

    let (blob, bytes) = blob(1, 10);
    let wrong = pb::BlobHeader { r#ref: blob.to_string(), source_store: "c".into(), ..Default::default() };
    let messages = vec![header_message(wrong), chunk_message(&bytes)];
    let status = to.receive_blob(tokio_stream::iter(messages)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "UNKNOWN_STORE"));
    assert!(status.message().contains('a') && status.message().contains('b'), "{}", status.message());
    let idle = pb::BlobHeader { r#ref: blob.to_string(), source_store: "b".into(), ..Default::default() };
    let messages = vec![header_message(idle), chunk_message(&bytes)];
    let status = to.receive_blob(tokio_stream::iter(messages)).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::FailedPrecondition, "NO_ENABLED_ROUTE"));

    let mut operator = replication(&replicator).await;
    let unknown = pb::TriggerFullSyncRequest { route: "nope".into(), ..Default::default() };
    let unknown = operator.trigger_full_sync(unknown).await.unwrap_err();
    assert_eq!((unknown.code(), reason(&unknown).as_str()), (Code::InvalidArgument, "UNKNOWN_ROUTE"));
    assert!(unknown.message().contains("a_to_b"), "{}", unknown.message());
    let items = vec![pb::EnqueueItem::default(); 10_001];
    let many = pb::EnqueueBlobsRequest { items, ..Default::default() };
    let many = operator.enqueue_blobs(many).await.unwrap_err();
    assert_eq!((many.code(), reason(&many).as_str()), (Code::InvalidArgument, "TOO_MANY_ITEMS"));
    assert_eq!(queued(&route(&mut operator).await), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_store_that_is_not_clear_must_be_named() {
    let world = World::new();
    let nowhere = [("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2"), ("c", "http://127.0.0.1:3")];
    let replicator = world.replicator(&nowhere, &[("a", "c"), ("b", "c")]);
    let blob = DigestFunction::Sha256.ref_of(b"x");
    let status = send(&mut receiver(&replicator).await, blob, b"x").await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "AMBIGUOUS_STORE"));
    let mut operator = replication(&replicator).await;
    let status = operator.trigger_full_sync(pb::TriggerFullSyncRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::InvalidArgument, "AMBIGUOUS_ROUTE"));
}
