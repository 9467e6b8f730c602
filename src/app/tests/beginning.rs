//! Full syncs that a new queue begins by itself, and what operators do with syncs.

use super::{World, reason};
use crate::pb::v1;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

async fn serves(world: &World, service: &str) -> bool {
    let request = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(world.channel.clone()).check(request).await.unwrap().into_inner();
    answer.status() == ServingStatus::Serving
}

async fn syncs(world: &World, request: v1::ListFullSyncsRequest) -> v1::ListFullSyncsResponse {
    world.replication().list_full_syncs(request).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_queue_finds_what_its_source_held_before() {
    // Not yet there: the first attempt fails, and is seen.
    let world = World::with(&[("a", "b")], &["a"], "# full_sync: if_needed").await;
    let blob = world.put("a", "from before").await;
    world
        .until("the first attempt failed", async |world| {
            let needed = world.status().await.routes[0].needed_sync.clone();
            needed.is_some_and(|needed| !needed.problem.is_empty() && needed.next_attempt_time.is_some())
        })
        .await;
    // The source is in the way, and not only of the full sync.
    let route = world.status().await.routes[0].clone();
    assert_eq!(route.state(), v1::RouteState::Blocked, "{}", route.summary);
    world.stores["a"].1.set_down(false);
    // An operator need not wait for it, and whoever begins it, it counts.
    let started = world.replication().trigger_full_sync(v1::TriggerFullSyncRequest::default()).await;
    assert!(!started.unwrap().into_inner().already_running);
    world.until("the blob arrived", async |world| world.holds("b", blob).await).await;
    world.until("nothing is needed", async |world| world.status().await.routes[0].needed_sync.is_none()).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn blocking_health_waits_for_the_first_full_sync() {
    let world = World::with(&[("a", "b")], &["a"], "# full_sync: blocking").await;
    world
        .until("the first attempt failed", async |world| {
            let needed = world.status().await.routes[0].needed_sync.clone();
            needed.is_some_and(|needed| !needed.problem.is_empty())
        })
        .await;
    world.stores["a"].1.set_down(false);
    assert!(!serves(&world, "route/a_to_b").await);
    assert!(serves(&world, "blobferry.v1.BlobReceiverService").await);
    world.replication().trigger_full_sync(v1::TriggerFullSyncRequest::default()).await.unwrap();
    world.until("the route serves", async |world| serves(world, "route/a_to_b").await).await;
    assert!(world.status().await.routes[0].needed_sync.is_none());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn full_syncs_are_listed_by_page_and_cancelled_once() {
    let world = World::start(&[("a", "b"), ("a", "c")], &["b"]).await;
    let start = async |route: &str| {
        let request = v1::TriggerFullSyncRequest { route: route.to_owned(), ..v1::TriggerFullSyncRequest::default() };
        world.replication().trigger_full_sync(request).await.unwrap().into_inner().full_sync.unwrap().id
    };
    let mut ids = Vec::new();
    for route in ["a_to_b", "a_to_c", "a_to_b", "a_to_c"] {
        let id = start(route).await;
        world
            .until("it ended", async |world| {
                let request = v1::GetFullSyncRequest { id: id.clone(), route: String::new() };
                let sync = world.replication().get_full_sync(request).await.unwrap().into_inner().full_sync.unwrap();
                sync.state() != v1::FullSyncState::Running
            })
            .await;
        ids.push(id);
    }
    let all = syncs(&world, v1::ListFullSyncsRequest::default()).await;
    let listed: Vec<_> = all.full_syncs.iter().map(|sync| sync.id.clone()).collect();
    assert_eq!(listed, ids.iter().rev().cloned().collect::<Vec<_>>());
    assert_eq!(all.next_page_token, "");
    let page = |token: &str| v1::ListFullSyncsRequest {
        page_size: 3,
        page_token: token.to_owned(),
        ..v1::ListFullSyncsRequest::default()
    };
    let first = syncs(&world, page("")).await;
    assert_eq!((first.full_syncs.len(), first.next_page_token.is_empty()), (3, false));
    let second = syncs(&world, page(&first.next_page_token)).await;
    assert_eq!((second.full_syncs[0].id.as_str(), second.next_page_token.as_str()), (ids[0].as_str(), ""));
    let failed = v1::ListFullSyncsRequest {
        route: "a_to_b".to_owned(),
        state: v1::FullSyncState::Failed.into(),
        ..v1::ListFullSyncsRequest::default()
    };
    assert_eq!(syncs(&world, failed).await.full_syncs.len(), 2);

    // What waits for copies that cannot be made runs until it is cancelled.
    world.stores["b"].1.set_down(false);
    let blob = world.put("a", "one").await;
    world.stores["b"].1.set_down(true);
    let cancel = async |id: &str| {
        let request = v1::CancelFullSyncRequest { id: id.to_owned() };
        world.replication().cancel_full_sync(request).await.map(|answer| answer.into_inner().full_sync.unwrap())
    };
    let ended = cancel(&ids[0]).await.unwrap();
    assert_eq!(ended.state(), v1::FullSyncState::Failed);
    for (id, code, why) in [
        ("sync-999", Code::NotFound, "SYNC_NOT_FOUND"),
        ("nonsense", Code::InvalidArgument, "INVALID_FIELD"),
        ("", Code::InvalidArgument, "INVALID_FIELD"),
    ] {
        let error = cancel(id).await.unwrap_err();
        assert_eq!((error.code(), reason(&error).as_str()), (code, why));
    }
    assert!(!world.holds("b", blob).await);
    world.stop().await;
}
