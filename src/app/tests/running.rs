//! The whole replicator: peers that are down, chains, syncs, the drain.

use super::{World, chunk, header, reason};
use crate::blob::DigestFunction;
use crate::pb::v1;
use crate::store::Store;
use futures::{StreamExt, stream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

#[tokio::test(flavor = "multi_thread")]
async fn it_starts_with_both_peers_down_says_so_and_copies_when_they_come() {
    let world = World::start(&[("a", "b")], &["a", "b"]).await;
    let blob = world.put("a", "hello").await;
    world.enqueue("", [blob.to_string()]).await.unwrap();
    world
        .until("Status blames the peers", async |world| {
            let status = world.status().await;
            let down = |peer: &v1::PeerStatus| peer.health() == v1::PeerHealth::Unreachable;
            status.state() == v1::ReplicatorState::Attention
                && status.routes[0].state() == v1::RouteState::Blocked
                && status.routes[0].summary.ends_with("; 1 blob waits")
                && status.peers.iter().any(down)
        })
        .await;
    world.stores["a"].1.set_down(false);
    world.stores["b"].1.set_down(false);
    world.until("the blob is copied", async |world| world.holds("b", blob).await).await;
    world
        .until("Status is content", async |world| {
            let status = world.status().await;
            let route = &status.routes[0];
            status.state() == v1::ReplicatorState::Ok
                && route.state() == v1::RouteState::InSync
                && route.since_start.unwrap().confirmed_blobs == Some(1)
                && status.peers.iter().all(|peer| peer.store_id_checked == Some(true))
        })
        .await;
    assert_eq!(world.stop().await.queued, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_fan_out_and_chain_and_a_ring_drains() {
    let world = World::start(&[("a", "b"), ("b", "c"), ("c", "a"), ("a", "d")], &[]).await;
    let blob = world.put("a", "hello").await;
    world.send(vec![header(blob, None, "a"), chunk("hello")]).await.unwrap();
    world
        .until("all hold it and nothing is queued", async |world| {
            world.holds("b", blob).await
                && world.holds("c", blob).await
                && world.holds("d", blob).await
                && world.queued().await == 0
        })
        .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sync_finds_what_was_never_announced() {
    let world = World::start(&[("a", "b")], &[]).await;
    let blob = world.put("a", "behind its back").await;
    let trigger = v1::TriggerFullSyncRequest { request_id: "once".to_owned(), ..Default::default() };
    let started = world.replication().trigger_full_sync(trigger.clone()).await.unwrap().into_inner();
    let id = started.full_sync.unwrap().id;
    world
        .until("the sync is completed", async |world| {
            let request = v1::GetFullSyncRequest { id: id.clone(), route: String::new() };
            let sync = world.replication().get_full_sync(request).await.unwrap().into_inner().full_sync.unwrap();
            sync.state() == v1::FullSyncState::Completed && sync.counts.unwrap().confirmed == Some(1)
        })
        .await;
    assert!(world.holds("b", blob).await);
    let again = world.replication().trigger_full_sync(trigger).await.unwrap().into_inner();
    assert_eq!(again.full_sync.unwrap().id, id);
    assert_eq!(world.status().await.routes[0].last_sync.as_ref().unwrap().id, id);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_refuses_what_is_new_finishes_what_is_under_way_and_keeps_the_rest() {
    let world = World::start(&[("a", "b")], &["b"]).await;
    let queued = world.put("a", "queued").await;
    world.enqueue("", [queued.to_string()]).await.unwrap();
    let mut watch = world.replication().watch_status(v1::WatchStatusRequest::default()).await.unwrap().into_inner();
    assert!(watch.message().await.unwrap().is_some());
    // An announcement that is let in before the drain, and whose bytes come after.
    let late = DigestFunction::Sha256.ref_of(b"late");
    let drain = world.shutdown.clone();
    let messages = stream::iter([header(late, None, "")]).chain(stream::once(async move {
        tokio::time::sleep(Duration::from_millis(300)).await;
        drain.cancel();
        tokio::time::sleep(Duration::from_millis(300)).await;
        chunk("late")
    }));
    let mut receiver = world.receiver();
    let (answer, end) = tokio::join!(receiver.receive_blob(messages), async {
        loop {
            match watch.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a word"),
                Err(status) => return status,
            }
        }
    });
    assert_eq!(answer.unwrap().into_inner().routes.len(), 1);
    assert_eq!((end.code(), reason(&end).as_str()), (Code::Unavailable, "SHUTTING_DOWN"));
    assert_eq!(world.stop().await.queued, 2);
}

async fn health(world: &World, name: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: name.to_owned() };
    HealthClient::new(world.channel.clone()).check(request).await.unwrap().into_inner().status()
}

#[tokio::test(flavor = "multi_thread")]
async fn health_of_a_route_is_that_of_its_work_and_of_the_services_never_that_of_peers() {
    let world = World::start(&[("a", "b"), ("-b", "c")], &["b"]).await;
    let says = async |status| world.until("health", async |world| health(world, "route/a_to_b").await == status).await;
    // Nothing waits, and it would not pass either.
    says(ServingStatus::NotServing).await;
    let blob = world.put("a", "hello").await;
    world.enqueue("a", [blob.to_string()]).await.unwrap();
    for name in ["", "blobferry.v1.BlobReceiverService", "blobferry.v1.ReplicationService"] {
        assert_eq!(health(&world, name).await, ServingStatus::Serving, "{name}");
    }
    world.stores["b"].1.set_down(false);
    says(ServingStatus::Serving).await;
    assert!(world.holds("b", blob).await);
    assert_eq!(health(&world, "route/b_to_c").await, ServingStatus::NotServing);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_copies_are_finished_callers_are_told_why_they_are_refused() {
    let world = World::with(&[("a", "b")], &[], "[server]\ndrain_timeout = \"4s\"").await;
    let blob = world.put("a", "never confirmed").await;
    world.stores["b"].1.set(Some(crate::store::faulty::Trouble::Hang));
    world.enqueue("", [blob.to_string()]).await.unwrap();
    world.until("it is being copied", async |world| !world.status().await.routes[0].copies.is_empty()).await;
    let start = Instant::now();
    world.shutdown.cancel();
    // One that is taken before the drain begins makes a successor of the entry that is being copied, and no second one.
    let taken = AtomicBool::new(false);
    world
        .until("announcements are refused", async |world| match world.enqueue("", [blob.to_string()]).await {
            Ok(_) => {
                taken.store(true, Ordering::Relaxed);
                false
            }
            Err(status) => reason(&status) == "SHUTTING_DOWN" && status.code() == Code::Unavailable,
        })
        .await;
    let status = world.status().await;
    assert_eq!((status.state(), status.routes[0].state()), (v1::ReplicatorState::Draining, v1::RouteState::Draining));
    let request = HealthCheckRequest { service: "blobferry.v1.ReplicationService".to_owned() };
    let health = HealthClient::new(world.channel.clone()).check(request).await.unwrap().into_inner();
    assert_eq!(health.status(), ServingStatus::NotServing);
    let summary = world.stop().await;
    assert_eq!((summary.cut, summary.queued), (1, 1 + u64::from(taken.into_inner())));
    assert!(start.elapsed() < Duration::from_secs(12), "{:?}", start.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_store_in_a_known_ones_place_is_noticed() {
    let world = World::start(&[("a", "b")], &[]).await;
    let blob = world.put("a", "first").await;
    world.enqueue("", [blob.to_string()]).await.unwrap();
    world.until("it is copied", async |world| world.holds("b", blob).await).await;
    let mut info = world.stores["b"].0.info().await.unwrap();
    info.store_id = Some("an empty volume".to_owned());
    world.stores["b"].1.set_info(Some(info));
    world.stores["b"].1.set_down(true);
    let second = world.put("a", "second").await;
    world.enqueue("", [second.to_string()]).await.unwrap();
    world.until("it is blocked", async |world| world.status().await.routes[0].state() == v1::RouteState::Blocked).await;
    world.stores["b"].1.set_down(false);
    world
        .until("the peer is unsuitable", async |world| {
            world.status().await.peers.iter().any(|peer| peer.health() == v1::PeerHealth::Unsuitable)
        })
        .await;
    assert!(!world.holds("b", second).await);
    world.stop().await;
}
