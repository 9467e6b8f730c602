//! What operators override, end to end.

use super::{World, reason};
use crate::pb::v1;
use tonic::Code;

async fn limits(world: &World) -> v1::RouteLimits {
    world.status().await.routes[0].limits.clone().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_sync_of_a_paused_route_queues_what_it_finds_and_ends_after_the_pause() {
    let world = World::start(&[("a", "b")], &[]).await;
    let blob = world.put("a", "found by a sync").await;
    let mut operator = world.replication();
    operator.pause_route(v1::PauseRouteRequest::default()).await.unwrap();
    let sync = operator.trigger_full_sync(v1::TriggerFullSyncRequest::default()).await.unwrap().into_inner();
    let id = sync.full_sync.unwrap().id;
    let sync = async |world: &World| {
        let request = v1::GetFullSyncRequest { id: id.clone(), ..v1::GetFullSyncRequest::default() };
        world.replication().get_full_sync(request).await.unwrap().into_inner().full_sync.unwrap()
    };
    world.until("it is found", async |world| sync(world).await.counts.unwrap().enqueued == Some(1)).await;
    let route = world.status().await.routes[0].clone();
    assert_eq!((route.state(), world.queued().await), (v1::RouteState::Paused, 1));
    assert_eq!(sync(&world).await.state(), v1::FullSyncState::Running);
    assert!(!world.holds("b", blob).await);
    operator.resume_route(v1::ResumeRouteRequest::default()).await.unwrap();
    world.until("it is done", async |world| sync(world).await.state() == v1::FullSyncState::Completed).await;
    assert!(world.holds("b", blob).await);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_for_a_blob_of_a_paused_route_is_told_what_holds_it_up() {
    let world = World::start(&[("a", "b")], &[]).await;
    let mut operator = world.replication();
    operator.pause_route(v1::PauseRouteRequest::default()).await.unwrap();
    let blob = world.put("a", "held up").await;
    world.enqueue("", [blob.to_string()]).await.unwrap();
    let explain = v1::ExplainBlobRequest { r#ref: blob.to_string(), skip_stores: true };
    let told = operator.explain_blob(explain).await.unwrap().into_inner();
    assert!(told.routes[0].summary.ends_with("; the route is paused"), "{}", told.routes[0].summary);
    let wait = v1::WaitReplicatedRequest {
        refs: vec![blob.to_string()],
        max_wait: Some(prost_types::Duration::default()),
        ..v1::WaitReplicatedRequest::default()
    };
    let waited = operator.wait_replicated(wait).await.unwrap().into_inner();
    assert_eq!(waited.unconfirmed[0].routes[0].note, "the route is paused");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_override_that_cannot_be_kept_is_refused_and_changes_nothing() {
    let world = World::start(&[("a", "b")], &[]).await;
    // There is no file here: the queue is the only place.
    world.queue.set_failing(true);
    let refused = world.replication().pause_route(v1::PauseRouteRequest::default()).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (Code::Unavailable, "QUEUE_UNAVAILABLE"));
    assert_eq!(limits(&world).await.paused, Some(false));
    world.queue.set_failing(false);
    let set = v1::LimitSettings { blobs_per_second: Some(0.5), ..v1::LimitSettings::default() };
    let request = v1::UpdateRouteRequest { limits: Some(set), ..v1::UpdateRouteRequest::default() };
    world.replication().update_route(request).await.unwrap();
    let found = limits(&world).await;
    assert_eq!(
        (found.paused, found.blobs_per_second, found.configured.unwrap().blobs_per_second),
        (Some(false), Some(0.5), None)
    );
    world.stop().await;
}
