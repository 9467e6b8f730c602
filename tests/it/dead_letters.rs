//! What fails for good, and callers that lie about sizes, keep nothing else out.

use crate::harness::{
    Replication, Server, World, announce, blob, full_sync, held, queued, reader, receiver, replication, route, send,
    until,
};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use std::fs;
use std::path::{Path, PathBuf};

fn config(a: &Server, b: &Server, more: &str) -> String {
    format!(
        "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n\
         [routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n{more}",
        a.url(),
        b.url()
    )
}

async fn status(of: &Replication) -> pb::ReplicatorStatus {
    of.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap()
}

async fn parked(of: &Replication) -> u64 {
    status(of).await.queue.unwrap().parked_entries()
}

fn nowhere(seeds: std::ops::Range<u64>) -> Vec<BlobRef> {
    seeds.map(|seed| blob(seed, 100).0).collect()
}

/// As many parked as the queue may hold entries, and more: an alarm, and no refusal. In the end their time is over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_entries_shut_no_door_and_go_when_their_time_is_over() {
    let world = World::new();
    let (a, b) = (world.store("a"), world.store("b"));
    let limits = "[queue]\nmax_entries = 50\nparked_max_share = 0.5\n";
    let mut server = world.replicator_in(
        "replicator",
        &config(&a, &b, limits),
        &[("BLOBFERRY__RETRY__MISSING_PATIENCE", "0s"), ("BLOBFERRY__RETRY__PARK_AFTER", "1")],
    );
    let operator = replication(&server).await;
    // None of them is at the source.
    for (round, seeds) in [0..25, 25..50, 50..75, 75..100].into_iter().enumerate() {
        announce(&mut operator.clone(), "", &nowhere(seeds)).await.unwrap();
        let wanted = 25 * (round as u64 + 1);
        until("they are parked", async || (parked(&operator).await == wanted).then_some(())).await;
    }
    let told = status(&operator).await;
    let queue = told.queue.clone().unwrap();
    assert_eq!(told.state(), pb::ReplicatorState::Attention);
    assert_eq!(queue.state(), pb::QueueState::Ok, "{}", queue.summary);
    assert_eq!((queue.entries(), queue.max_entries(), queue.max_parked_entries()), (100, 50, 25));
    assert!(
        queue.summary.starts_with("holds 100 entries parked, more than queue.parked_max_share allows (25)"),
        "{}",
        queue.summary
    );
    let (good, bytes) = blob(1_000, 1_000);
    send(&mut receiver(&a).await, good, &bytes).await.unwrap();
    announce(&mut operator.clone(), "", &[good]).await.unwrap();
    until("the good one is copied", async || (held(&mut reader(&b).await, &[good]).await == 1).then_some(())).await;
    assert_eq!(route(&mut operator.clone()).await.queued.unwrap().fresh.unwrap().parked.unwrap().entries(), 100);

    server.kill();
    server.set_env("BLOBFERRY__RETRY__DISCARD_PARKED_AFTER", "1s");
    server.again();
    let operator = replication(&server).await;
    until("their time is over", async || (parked(&operator).await == 0).then_some(())).await;
    let route = route(&mut operator.clone()).await;
    assert_eq!((queued(&route), route.all_time.unwrap().discarded_blobs()), (0, 100));
    // The log is written by a thread of its own.
    let says = "as retry.discard_parked_after (1s) says";
    until("the log says so", async || server.said().contains(says).then_some(())).await;
}

/// Sizes that no store has, and sizes beyond what this one says that it holds: unknown, and nobody waits for them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn announced_sizes_that_lie_are_not_believed() {
    let world = World::new();
    let (a, b) = (world.store("a"), world.store("b"));
    let server = world.replicator_with("replicator", &config(&a, &b, "bytes_per_second = \"1MiB\"\n"));
    let operator = replication(&server).await;
    let (mut items, mut blobs) = (Vec::new(), Vec::new());
    let lies = [u64::MAX, u64::MAX / 2, 1 << 47, 1, 0, 100];
    for (seed, lie) in (0..60).zip(lies.into_iter().cycle()) {
        let (blob, bytes) = blob(seed, 100);
        send(&mut receiver(&a).await, blob, &bytes).await.unwrap();
        items.push(pb::EnqueueItem { r#ref: blob.to_string(), size_bytes: Some(lie), ..Default::default() });
        blobs.push(blob);
    }
    let pause = pb::PauseRouteRequest { route: "a_to_b".to_owned(), ..Default::default() };
    operator.clone().pause_route(pause).await.unwrap();
    let request = pb::EnqueueBlobsRequest { source_store: String::new(), items, issue_wait_token: false };
    operator.clone().enqueue_blobs(request).await.unwrap();
    let ready = route(&mut operator.clone()).await.queued.unwrap().fresh.unwrap().ready.unwrap();
    assert_eq!((ready.entries(), ready.unknown_size_entries(), ready.bytes()), (60, 20, 10 * ((1 << 47) + 1 + 100)));
    let resume = pb::ResumeRouteRequest { route: "a_to_b".to_owned(), ..Default::default() };
    operator.clone().resume_route(resume).await.unwrap();
    until("all are copied", async || (held(&mut reader(&b).await, &blobs).await == 60).then_some(())).await;
    until("nothing is left", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    let ready = route(&mut operator.clone()).await.queued.unwrap().fresh.unwrap().ready.unwrap();
    assert_eq!((ready.entries(), ready.bytes()), (0, 0));
}

/// The only file of this size below a folder.
fn file_of(folder: &Path, size: u64) -> PathBuf {
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let data = entry.metadata().unwrap();
            if data.is_dir() {
                folders.push(entry.path());
            } else if data.len() == size {
                return entry.path();
            }
        }
    }
    panic!("there is no file of {size} bytes");
}

/// Sync after sync finds the same blob missing, and it is parked each time: the entry knows the last one only.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_parked_entry_does_not_gather_the_ids_of_syncs() {
    let world = World::new();
    let (a, b) = (world.store("a"), world.store("b"));
    let config = config(&a, &b, "");
    let server = world.replicator_in("replicator", &config, &[("BLOBFERRY__RETRY__PARK_AFTER", "1")]);
    let mut operator = replication(&server).await;
    let (large, mut bytes) = blob(1, 2 << 20);
    send(&mut receiver(&a).await, large, &bytes).await.unwrap();
    // Listed, and never given back whole.
    bytes[1 << 20] ^= 1;
    fs::write(file_of(&world.path("a"), bytes.len() as u64), bytes).unwrap();
    let mut last = String::new();
    for _ in 0..5 {
        let sync = full_sync(&mut operator).await;
        assert_eq!(sync.state(), pb::FullSyncState::CompletedWithFailures, "{sync:?}");
        last = sync.id;
    }
    let request = pb::ExplainBlobRequest { r#ref: large.to_string(), ..Default::default() };
    let story = operator.explain_blob(request).await.unwrap().into_inner();
    let text = format!("{story:?}");
    assert!(text.contains(&format!("full_sync_ids: [\"{last}\"]")), "{text}");
}
