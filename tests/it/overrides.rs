//! The operator's hand on routes and stores: paused, limited, dropped, adopted.

use crate::harness::{
    PATIENCE, Server, World, announce, bad_fields, blob, held, program, queued, reader, reason, receiver, replication,
    route, send, until,
};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use std::process::Command;
use std::time::Duration;

/// What the command prints on stdout and stderr; it must end with this exit code.
fn said(arguments: &[&str], at: &Server, code: i32) -> String {
    let output =
        Command::new(program()).args(arguments).args(["--replicator", &at.url()]).env("USER", "eve").output().unwrap();
    let both = [output.stdout, output.stderr].concat();
    let both = String::from_utf8(both).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {both}");
    both
}

async fn fill(source: &Server, seeds: std::ops::Range<u64>) -> Vec<BlobRef> {
    let mut to_source = receiver(source).await;
    let mut refs = Vec::new();
    for seed in seeds {
        let (blob, bytes) = blob(seed, 2_000);
        send(&mut to_source, blob, &bytes).await.unwrap();
        refs.push(blob);
    }
    refs
}

fn claimed(route: &pb::RouteStatus) -> u64 {
    let counts = route.queued.as_ref().unwrap();
    let lanes = [&counts.fresh, &counts.backfill].into_iter().flatten();
    lanes.map(|lane| lane.claimed.as_ref().unwrap().entries.unwrap()).sum()
}

async fn health(of: &Server, service: &str) -> i32 {
    let channel = tonic::transport::Channel::from_shared(of.url()).unwrap().connect().await.unwrap();
    let request = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
    let mut client = tonic_health::pb::health_client::HealthClient::new(channel);
    client.check(request).await.unwrap().into_inner().status
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_under_load_holds_over_kills_and_the_loss_of_the_queue() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let refs = fill(&source, 0..400).await;
    let config = format!(
        "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n\
         [routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\nblobs_per_second = 40\n",
        source.url(),
        destination.url()
    );
    let mut replicator = world.replicator_with("replicator", &config);
    let mut operator = replication(&replicator).await;
    announce(&mut operator, "a", &refs).await.unwrap();
    let mut at_destination = reader(&destination).await;
    until("it is under way", async || (held(&mut at_destination.clone(), &refs).await > 10).then_some(())).await;

    let shown = said(&["pause", "a_to_b", "--reason", "disk swap"], &replicator, 0);
    assert!(shown.contains("paused a_to_b: ") && shown.contains("disk swap"), "{shown}");
    until("what was in flight is done", async || (claimed(&route(&mut operator.clone()).await) == 0).then_some(()))
        .await;
    let done = held(&mut at_destination, &refs).await;
    assert!(done < refs.len(), "the pause came too late");
    let status = route(&mut operator).await;
    assert_eq!((status.state(), status.limiting_factor()), (pb::RouteState::Paused, pb::LimitingFactor::Paused));
    assert!(status.summary.contains("paused by eve") && status.summary.contains("(disk swap)"), "{}", status.summary);
    let limits = status.limits.unwrap();
    assert_eq!((limits.paused, limits.blobs_per_second), (Some(true), Some(40.0)));
    assert_eq!((limits.overrides.len(), limits.overrides[0].setting.as_str()), (1, "paused"));
    // SERVING is 1: the service takes announcements still, the route does not serve.
    assert_eq!(health(&replicator, "blobferry.v1.ReplicationService").await, 1);
    until("its health tells", async || (health(&replicator, "route/a_to_b").await == 2).then_some(())).await;
    let more = fill(&source, 1000..1001).await;
    announce(&mut operator, "a", &more).await.unwrap();

    replicator.kill();
    replicator.again();
    let mut operator = replication(&replicator).await;
    assert_eq!(queued(&route(&mut operator).await), (refs.len() - done + 1) as u64);
    // The queue's folder is lost: what was queued with it, but not the pause.
    replicator.kill();
    std::fs::remove_dir_all(world.path("replicator-data").join("queue").join("db")).unwrap();
    replicator.again();
    let mut operator = replication(&replicator).await;
    announce(&mut operator, "a", &refs).await.unwrap();
    let status = route(&mut operator).await;
    assert_eq!((status.state(), claimed(&status), queued(&status)), (pb::RouteState::Paused, 0, refs.len() as u64));
    assert_eq!(held(&mut at_destination, &refs).await, done, "nothing was copied while it was paused");
    // And the file is lost: the queue has it again.
    let file = world.path("replicator-data").join("overrides.json");
    replicator.kill();
    std::fs::remove_file(&file).unwrap();
    replicator.again();
    let mut operator = replication(&replicator).await;
    assert_eq!(route(&mut operator).await.state(), pb::RouteState::Paused);
    until("the file is written again", async || file.exists().then_some(())).await;

    assert_eq!(said(&["resume"], &replicator, 0), "resumed a_to_b\n");
    assert_eq!(said(&["resume"], &replicator, 0), "a_to_b was not paused\n");
    said(&["limits", "--blobs-per-second", "none"], &replicator, 0);
    until("all is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    assert_eq!(held(&mut at_destination, &refs).await, refs.len());
    assert!(replicator.said().contains("paused by an operator"), "it is logged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_change_live_expire_and_go_back_to_the_configuration() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let mut operator = replication(&replicator).await;
    // Empty requests do what is plain, or say what is missing.
    let nothing = operator.update_route(pb::UpdateRouteRequest::default()).await.unwrap_err();
    assert_eq!((reason(&nothing).as_str(), bad_fields(&nothing)), ("INVALID_FIELD", vec!["limits".to_owned()]));
    let paused = operator.pause_route(pb::PauseRouteRequest::default()).await.unwrap().into_inner();
    assert_eq!((paused.route.as_str(), paused.copies_in_flight), ("a_to_b", Some(0)));
    let by = &paused.limits.unwrap().overrides[0].set_by;
    assert!(by.starts_with("127.0.0.1:"), "{by}");
    let resumed = operator.resume_route(pb::ResumeRouteRequest::default()).await.unwrap().into_inner();
    assert!(resumed.was_paused && resumed.limits.unwrap().overrides.is_empty());
    let unknown = operator.pause_route(pb::PauseRouteRequest { route: "x".to_owned(), ..Default::default() }).await;
    assert_eq!(reason(&unknown.unwrap_err()), "UNKNOWN_ROUTE");
    let past = prost_types::Timestamp { seconds: 1, nanos: 0 };
    let expiration = Some(pb::pause_route_request::Expiration::ExpireTime(past));
    let past = operator.pause_route(pb::PauseRouteRequest { expiration, ..Default::default() }).await.unwrap_err();
    assert_eq!(bad_fields(&past), ["expire_time"]);

    let shown = said(&["limits", "--workers", "3", "--bytes-per-second", "5MiB", "--by", "eve"], &replicator, 0);
    assert!(shown.starts_with("a_to_b: 3 workers, 5.00 MiB/s, any number of blobs/s\n"), "{shown}");
    assert!(shown.contains("workers = 3 set by eve at ") && shown.contains("configured: 32 workers"), "{shown}");
    said(&["limits", "--workers", "7", "--for", "100ms"], &replicator, 0);
    until("seven workers are over", async || {
        (route(&mut operator.clone()).await.limits.unwrap().workers == Some(32)).then_some(())
    })
    .await;
    let limits = route(&mut operator).await.limits.unwrap();
    assert_eq!(limits.bytes_per_second, Some(5 << 20), "the others stay");
    let json = said(&["limits", "--json"], &replicator, 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["a_to_b"]["bytesPerSecond"], "5242880");
    let shown = said(&["limits", "--reset", "all"], &replicator, 0);
    assert_eq!(shown, "a_to_b: 32 workers, any number of bytes/s, any number of blobs/s\n");
    let wrong = said(&["limits", "--workers", "2000"], &replicator, 2);
    assert!(wrong.contains("1 to 1024 copies may run at a time"), "{wrong}");
    let refs = fill(&source, 0..50).await;
    announce(&mut operator, "a", &refs).await.unwrap();
    until("all is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_store_is_used_only_once_it_was_adopted() {
    let world = World::new();
    let (source, mut destination) = (world.store("source"), world.store("destination"));
    let mut replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let mut operator = replication(&replicator).await;
    let first = fill(&source, 0..10).await;
    announce(&mut operator, "a", &first).await.unwrap();
    until("all is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;

    // An empty volume in its place.
    destination.kill();
    std::fs::rename(world.path("destination"), world.path("old")).unwrap();
    destination.again();
    let second = fill(&source, 10..20).await;
    announce(&mut operator, "a", &second).await.unwrap();
    let peer = async |operator: &mut crate::harness::Replication| {
        let status = operator.status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
        status.peers.into_iter().find(|peer| peer.name == "b").unwrap()
    };
    let found = until("it is noticed", async || {
        let found = peer(&mut operator.clone()).await;
        (found.health() == pb::PeerHealth::Unsuitable).then_some(found)
    })
    .await;
    let (old, new) = (found.expected_store_id.clone(), found.peer_info.unwrap().store_id);
    assert!(old != new && !old.is_empty() && !new.is_empty());
    assert!(found.summary.ends_with(&format!("if it is to be: blobferry adopt b \"{new}\"")), "{}", found.summary);

    let wrong = said(&["adopt", "b", "x"], &replicator, 1);
    assert!(wrong.contains(&new), "{wrong}");
    let adopt = |store: &str, store_id: &str| {
        let request =
            pb::AdoptStoreRequest { store: store.to_owned(), store_id: store_id.to_owned(), ..Default::default() };
        let mut operator = operator.clone();
        async move { operator.adopt_store(request).await.map_err(|status| reason(&status)) }
    };
    assert_eq!(adopt("b", &old).await.unwrap_err(), "STORE_ID_MISMATCH");
    assert_eq!(adopt("nobody", &new).await.unwrap_err(), "UNKNOWN_STORE");
    assert_eq!(adopt("b", "").await.unwrap_err(), "INVALID_FIELD");
    let said_so = said(&["adopt", "b", &new], &replicator, 0);
    assert!(said_so.contains(&format!("in place of {old}")) && said_so.contains("blobferry sync"), "{said_so}");
    until("what waited is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    assert_eq!(held(&mut reader(&destination).await, &second).await, 10);
    assert_eq!(peer(&mut operator).await.expected_store_id, new);
    // What the old one confirmed, the new one does not hold: nobody is told that it is there, and a full sync is asked for.
    let is_honest = async |operator: &mut crate::harness::Replication| {
        let refs = first.iter().map(ToString::to_string).collect();
        let request = pb::WaitReplicatedRequest { refs, source_store: "a".to_owned(), ..Default::default() };
        let answer = operator.wait_replicated(request).await.unwrap().into_inner();
        assert_ne!(answer.outcome(), pb::WaitOutcome::Confirmed);
        assert_eq!(answer.unconfirmed.len(), first.len());
        assert!(route(operator).await.needed_sync.is_some());
    };
    is_honest(&mut operator.clone()).await;
    // It is known after a restart, and a store that is away cannot be adopted.
    replicator.kill();
    replicator.again();
    let mut operator = replication(&replicator).await;
    assert_eq!(peer(&mut operator).await.expected_store_id, new);
    is_honest(&mut operator).await;
    destination.kill();
    said(&["adopt", "b", &new], &replicator, 3);
    assert!(replicator.said().contains("an operator has adopted another store"), "it is logged");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphaned_route_is_seen_into_dropped_and_works_again() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let stores = format!(
        "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[stores.c]\nendpoint = \"http://127.0.0.1:1\"\n",
        source.url(),
        destination.url()
    );
    let a_to =
        |to: &str| format!("[routes.a_to_{to}]\nfrom = \"a\"\nto = \"{to}\"\nfull_sync = {{ on_start = \"off\" }}\n");
    let (kept, left) = (a_to("b"), a_to("c"));
    let mut replicator = world.replicator_with("replicator", &format!("{stores}{kept}{left}"));
    let mut operator = replication(&replicator).await;
    let refs = fill(&source, 0..30).await;
    announce(&mut operator, "a", &refs).await.unwrap();
    let refused = said(&["drop", "a_to_c"], &replicator, 1);
    assert!(refused.contains("a_to_c is configured"), "{refused}");
    said(&["pause", "a_to_c"], &replicator, 0);

    let configured = std::fs::read_to_string(world.path("replicator.toml")).unwrap();
    std::fs::write(world.path("replicator.toml"), configured.replace(&left, "")).unwrap();
    replicator.kill();
    replicator.again();
    let mut operator = replication(&replicator).await;
    let of = |name: &str| pb::StatusRequest { routes: vec![name.to_owned()] };
    let status = operator.status(of("a_to_c")).await.unwrap().into_inner().status.unwrap();
    assert_eq!((status.routes[0].state(), queued(&status.routes[0])), (pb::RouteState::Orphaned, 30));
    let list = pb::ListFailuresRequest { route: "a_to_c".to_owned(), ..Default::default() };
    let listed = operator.list_failures(list).await.unwrap().into_inner();
    assert_eq!((listed.retrying_entries, listed.parked_entries), (Some(0), Some(0)));
    let selection = Some(pb::FailureSelection { all: true, ..Default::default() });
    let retry =
        pb::RetryFailuresRequest { route: "a_to_c".to_owned(), selection: selection.clone(), ..Default::default() };
    let refused = operator.retry_failures(retry).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused).as_str()), (tonic::Code::FailedPrecondition, "ROUTE_ORPHANED"));
    let discard = pb::DiscardFailuresRequest { route: "a_to_c".to_owned(), selection, ..Default::default() };
    let discarded = operator.discard_failures(discard).await.unwrap().into_inner();
    assert_eq!(discarded.matched_entries, Some(0));
    let pause = pb::PauseRouteRequest { route: "a_to_c".to_owned(), ..Default::default() };
    assert_eq!(reason(&operator.pause_route(pause).await.unwrap_err()), "ROUTE_ORPHANED");

    assert_eq!(said(&["drop", "a_to_c", "--count-only"], &replicator, 0), "a_to_c has 30 entries\n");
    assert_eq!(said(&["drop", "a_to_c"], &replicator, 0), "30 entries of a_to_c deleted (0 B)\n");
    said(&["drop", "a_to_c"], &replicator, 4);
    said(&["drop", "nobody"], &replicator, 2);
    let status = operator.status(of("a_to_c")).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.routes[0].all_time.unwrap().discarded_blobs, Some(30));
    // Nobody who does not ask sees it any more.
    route(&mut operator).await;
    assert!(replicator.said().contains("entries of an orphaned route are discarded"), "it is logged");

    // Configured again, it works, and is not paused.
    let other = world.store("other");
    let again = configured.replace("http://127.0.0.1:1", &other.url());
    std::fs::write(world.path("replicator.toml"), again).unwrap();
    replicator.kill();
    replicator.again();
    let mut operator = replication(&replicator).await;
    announce(&mut operator, "a", &refs).await.unwrap();
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while held(&mut reader(&other).await, &refs).await < refs.len() {
        assert!(tokio::time::Instant::now() < deadline, "the route does not work again");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
