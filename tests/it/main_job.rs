//! Announced, copied, verified, seen.

use crate::harness::{
    self, World, announce, blob, fetch, full_sync, held, queued, reader, receiver, replication, route, send, until,
};
use blobferry::blob::{BlobRef, DigestFunction};
use blobferry::v1 as pb;
use futures::StreamExt;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_of_every_telling_size_arrive_and_read_back_the_same() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let mut to_source = receiver(&source).await;
    let mut to_replicator = receiver(&replicator).await;
    let chunk = 256 << 10;
    let sizes = [0, 1, (64 << 10) - 1, 64 << 10, (64 << 10) + 1, chunk - 1, chunk, chunk + 1, (1 << 20) + 1, 100 << 20];
    let mut blobs = Vec::new();
    for (seed, size) in sizes.into_iter().enumerate() {
        let (blob, bytes) = blob(seed as u64, size);
        let stored = send(&mut to_source, blob, &bytes).await.unwrap();
        assert_eq!(stored.disposition(), pb::Disposition::Stored);
        assert!(stored.was_new);
        let queued = send(&mut to_replicator, blob, &bytes).await.unwrap();
        assert_eq!(queued.disposition(), pb::Disposition::Enqueued);
        assert_eq!(queued.size_bytes, Some(size as u64));
        assert_eq!(queued.routes.len(), 1);
        assert_eq!(queued.routes[0].route, "a_to_b");
        assert!(queued.routes[0].backlog.as_ref().unwrap().entries.is_some());
        blobs.push((blob, bytes));
    }
    // Every digest function, announced without bytes.
    let mut announced = Vec::new();
    for function in DigestFunction::ALL {
        let bytes = function.name().as_bytes().repeat(1000);
        let blob = function.ref_of(&bytes);
        send(&mut to_source, blob, &bytes).await.unwrap();
        announced.push(blob);
        blobs.push((blob, bytes));
    }
    let mut operator = replication(&replicator).await;
    let answer = announce(&mut operator, "a", &announced).await.unwrap();
    assert_eq!(answer.results.len(), announced.len());
    assert!(answer.results.iter().all(|result| result.error.is_none() && result.routes.len() == 1));

    let mut at_destination = reader(&destination).await;
    let status = until("the queue is empty", async || {
        let status = route(&mut operator.clone()).await;
        (queued(&status) == 0).then_some(status)
    })
    .await;
    assert_eq!(status.all_time.as_ref().unwrap().confirmed_blobs, Some(blobs.len() as u64));
    assert_eq!(status.state(), pb::RouteState::InSync, "{}", status.summary);
    assert_eq!(status.lag, Some(prost_types::Duration::default()));
    for (blob, bytes) in &blobs {
        assert!(fetch(&mut at_destination, *blob).await.unwrap() == *bytes, "{blob} differs");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_bad_ref_of_many_fails_alone() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let (good, bytes) = blob(1, 100);
    send(&mut receiver(&source).await, good, &bytes).await.unwrap();
    let mut operator = replication(&replicator).await;
    let items = ["nonsense", &good.to_string(), "sha256-../../etc/passwd"]
        .map(|text| pb::EnqueueItem { r#ref: text.to_owned(), ..Default::default() })
        .to_vec();
    let request = pb::EnqueueBlobsRequest { source_store: String::new(), items, issue_wait_token: false };
    let answer = operator.enqueue_blobs(request).await.unwrap().into_inner();
    let errors: Vec<_> =
        answer.results.iter().map(|result| result.error.as_ref().map(|error| error.reason.as_str())).collect();
    assert_eq!(errors, [Some("INVALID_REF"), None, Some("INVALID_REF")]);
    let mut at_destination = reader(&destination).await;
    until("the good one arrived", async || (held(&mut at_destination.clone(), &[good]).await == 1).then_some(())).await;
    assert!(fetch(&mut at_destination, good).await.unwrap() == bytes);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sync_finds_what_nobody_announced() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let (mut to_source, mut to_destination) = (receiver(&source).await, receiver(&destination).await);
    let mut all: Vec<BlobRef> = Vec::new();
    for seed in 0..1_001 {
        let (blob, bytes) = blob(seed, 200);
        send(&mut to_source, blob, &bytes).await.unwrap();
        if seed % 3 == 0 {
            send(&mut to_destination, blob, &bytes).await.unwrap();
        }
        all.push(blob);
    }
    let (extra, bytes) = blob(5_000, 10);
    send(&mut to_destination, extra, &bytes).await.unwrap();

    let mut operator = replication(&replicator).await;
    let ended = full_sync(&mut operator).await;
    assert_eq!(ended.state(), pb::FullSyncState::Completed, "{}", ended.summary);
    let counts = ended.counts.unwrap();
    let expected = all.len() as u64 - all.len().div_ceil(3) as u64;
    assert_eq!(counts.source_blobs, Some(1_001));
    assert_eq!(counts.missing, Some(expected));
    assert_eq!(counts.confirmed, Some(expected));
    assert_eq!(counts.extra_at_destination, Some(1));
    assert_eq!(held(&mut reader(&destination).await, &all).await, all.len());

    // A second one finds nothing; an unknown one is an error with a reason.
    let second = full_sync(&mut operator).await;
    assert_ne!(second.id, ended.id);
    assert_eq!(second.state(), pb::FullSyncState::Completed);
    assert_eq!(second.counts.unwrap().missing, Some(0));
    let request = pb::GetFullSyncRequest { id: "sync-999".into(), ..Default::default() };
    let unknown = operator.get_full_sync(request).await.unwrap_err();
    assert_eq!((unknown.code(), harness::reason(&unknown).as_str()), (tonic::Code::NotFound, "SYNC_NOT_FOUND"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fan_out_goes_to_every_enabled_route_and_a_disabled_one_does_nothing() {
    let world = World::new();
    let stores = [world.store("a"), world.store("b"), world.store("c"), world.store("d")];
    let mut config = String::new();
    for (name, store) in ["a", "b", "c", "d"].iter().zip(&stores) {
        config += &format!("[stores.{name}]\nendpoint = \"{}\"\n", store.url());
    }
    for (to, more) in [("b", ""), ("c", ""), ("d", "enabled = false\n")] {
        config += &format!("[routes.a_to_{to}]\nfrom = \"a\"\nto = \"{to}\"\n{more}");
    }
    let replicator = world.replicator_with("replicator", &config);
    let (blob, bytes) = blob(1, 3_000);
    send(&mut receiver(&stores[0]).await, blob, &bytes).await.unwrap();
    let answer = send(&mut receiver(&replicator).await, blob, &bytes).await.unwrap();
    let routes: Vec<_> = answer.routes.iter().map(|route| route.route.as_str()).collect();
    assert_eq!(routes, ["a_to_b", "a_to_c"]);
    for at in [1, 2] {
        let mut reader = reader(&stores[at]).await;
        until("it arrived", async || (held(&mut reader.clone(), &[blob]).await == 1).then_some(())).await;
        assert!(fetch(&mut reader, blob).await.unwrap() == bytes);
    }
    assert_eq!(held(&mut reader(&stores[3]).await, &[blob]).await, 0);
    let status = replication(&replicator).await.status(pb::StatusRequest::default()).await.unwrap().into_inner();
    let states: Vec<_> =
        status.status.unwrap().routes.iter().map(|route| (route.name.clone(), route.state())).collect();
    assert!(states.contains(&("a_to_d".to_owned(), pb::RouteState::Disabled)), "{states:?}");
}

/// Sizes at which a bounded channel, a page or a window could be exactly full.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sync_ends_at_every_telling_size() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let mut operator = replication(&replicator).await;
    let to_source = receiver(&source).await;
    let mut held_by_both = 0;
    for size in [0, 1, 999, 1_000, 1_001, 1_023, 5_000] {
        let writes = futures::stream::iter(held_by_both..size).map(|seed| {
            let mut to_source = to_source.clone();
            async move {
                let (blob, bytes) = blob(seed, 20);
                send(&mut to_source, blob, &bytes).await.unwrap();
            }
        });
        writes.buffer_unordered(64).collect::<Vec<()>>().await;
        let ended = full_sync(&mut operator).await;
        assert_eq!(ended.state(), pb::FullSyncState::Completed, "{size}: {}", ended.summary);
        let counts = ended.counts.unwrap();
        assert_eq!(counts.source_blobs, Some(size));
        assert_eq!(counts.destination_blobs, Some(held_by_both));
        assert_eq!(counts.confirmed, Some(size - held_by_both));
        held_by_both = size;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sync_fails_with_its_reason_and_can_be_run_again() {
    let world = World::new();
    let (source, mut destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let (blob, bytes) = blob(1, 10);
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    let mut operator = replication(&replicator).await;
    destination.kill();
    let failed = full_sync(&mut operator).await;
    assert_eq!(failed.state(), pb::FullSyncState::Failed);
    let failure = failed.failure.unwrap();
    assert_eq!((failure.kind(), failure.peer.as_str()), (pb::FaultKind::DestinationUnavailable, "b"));
    destination.again();
    let second = full_sync(&mut operator).await;
    assert_eq!(second.state(), pb::FullSyncState::Completed, "{}", second.summary);
    assert_eq!(held(&mut reader(&destination).await, &[blob]).await, 1);
}
