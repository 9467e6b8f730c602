//! Peers that are down, and the replicator's own restarts.

use crate::harness::{World, announce, blob, fetch, held, queued, reader, receiver, replication, route, send, until};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use rustix::process::Signal;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_stores_down_at_the_start_is_said_and_heals_without_a_restart() {
    let world = World::new();
    let (mut source, mut destination) = (world.store("source"), world.store("destination"));
    let mut blobs = Vec::new();
    let mut to_source = receiver(&source).await;
    for seed in 0..50 {
        let (blob, bytes) = blob(seed, 5_000);
        send(&mut to_source, blob, &bytes).await.unwrap();
        blobs.push((blob, bytes));
    }
    let refs: Vec<BlobRef> = blobs.iter().map(|(blob, _)| *blob).collect();
    source.kill();
    destination.kill();

    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let mut operator = replication(&replicator).await;
    announce(&mut operator, "", &refs).await.unwrap();
    let status = until("the outage is noticed", async || {
        let status = route(&mut operator.clone()).await;
        (status.state() == pb::RouteState::Blocked).then_some(status)
    })
    .await;
    assert_eq!(queued(&status), 50);
    assert_eq!(status.limiting_factor(), pb::LimitingFactor::Breaker);
    assert!(!status.summary.is_empty());

    source.again();
    until("the destination's outage is noticed", async || {
        let status = operator.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
        let peer = status.peers.into_iter().find(|peer| peer.name == "b").unwrap();
        (peer.health() == pb::PeerHealth::Unreachable).then_some(())
    })
    .await;
    let status = route(&mut operator).await;
    let ready = status.queued.unwrap().fresh.unwrap();
    let waiting = ready.ready.unwrap().entries.unwrap() + ready.claimed.unwrap().entries.unwrap();
    assert_eq!(waiting, 50, "no entry is charged for an outage");
    destination.again();
    until("all is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    let mut at_destination = reader(&destination).await;
    for (blob, bytes) in &blobs {
        assert!(fetch(&mut at_destination, *blob).await.unwrap() == *bytes);
    }

    // The destination goes and comes while blobs are copied.
    destination.kill();
    let mut to_source = receiver(&source).await;
    let mut refs = Vec::new();
    for seed in 100..150 {
        let (blob, bytes) = blob(seed, 5_000);
        send(&mut to_source, blob, &bytes).await.unwrap();
        refs.push(blob);
    }
    announce(&mut operator, "a", &refs).await.unwrap();
    destination.again();
    until("the rest is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    assert_eq!(held(&mut reader(&destination).await, &refs).await, refs.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_announcement_may_precede_the_write() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let (blob, bytes) = blob(7, 1_234);
    let mut operator = replication(&replicator).await;
    announce(&mut operator, "a", &[blob]).await.unwrap();
    let status = until("it is missed", async || {
        let status = route(&mut operator.clone()).await;
        let retrying = status.queued.as_ref().unwrap().fresh.as_ref().unwrap().retrying.as_ref().unwrap().entries;
        (retrying == Some(1)).then_some(status)
    })
    .await;
    let kind = status.recent_faults[0].fault.as_ref().unwrap().kind();
    assert_eq!(kind, pb::FaultKind::MissingAtSource);
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    until("it is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    assert!(fetch(&mut reader(&destination).await, blob).await.unwrap() == bytes);
}

/// Both signals end the program alike: exit 0, what is queued stays queued.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigterm_and_sigint_drain_and_exit_with_zero() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let mut replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let mut to_source = receiver(&source).await;
    let mut all = Vec::new();
    for (round, signal) in [Signal::TERM, Signal::INT].into_iter().enumerate() {
        let mut refs = Vec::new();
        for seed in 0..300 {
            let (blob, bytes) = blob(seed + 1_000 * round as u64, 40_000);
            send(&mut to_source, blob, &bytes).await.unwrap();
            refs.push(blob);
        }
        announce(&mut replication(&replicator).await, "a", &refs).await.unwrap();
        replicator.signal(signal);
        let status = replicator.wait();
        assert!(status.success(), "{status}: {}", replicator.said());
        all.extend(refs);
        replicator.again();
    }
    let operator = replication(&replicator).await;
    until("all is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    assert_eq!(held(&mut reader(&destination).await, &all).await, all.len());

    for server in [source, destination] {
        let mut server = server;
        server.signal(Signal::TERM);
        assert!(server.wait().success(), "{}", server.said());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_replicator_on_the_same_queue_is_refused() {
    let world = World::new();
    let nowhere = [("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2")];
    let first = world.replicator(&nowhere, &[("a", "b")]);
    let config = world.path("replicator.toml");
    let output = std::process::Command::new(crate::harness::program())
        .args(["serve", "--config", config.to_str().unwrap(), "--set", "server.listen=127.0.0.1:0"])
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("another") || said.contains("lock") || said.contains("in use"), "{said}");
    assert_eq!(queued(&route(&mut replication(&first).await).await), 0);
}

/// `kill -9` amid 2,000 blobs and restart, 10 times: every acked blob arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_acked_blob_arrives_through_ten_kills() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let mut replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let mut to_source = receiver(&source).await;
    let mut blobs = Vec::new();
    for seed in 0..2_000u64 {
        let (blob, bytes) = blob(seed, usize::try_from(seed * 7 % 9_000).unwrap());
        send(&mut to_source, blob, &bytes).await.unwrap();
        blobs.push((blob, bytes));
    }
    let mut acked = Vec::new();
    for (round, part) in blobs.chunks(200).enumerate() {
        let mut operator = replication(&replicator).await;
        let mut to_replicator = receiver(&replicator).await;
        let (early, late) = part.split_at(150);
        let refs: Vec<BlobRef> = early.iter().map(|(blob, _)| *blob).collect();
        announce(&mut operator, "a", &refs).await.unwrap();
        acked.extend(refs);
        // The kill falls somewhere among these announcements, and among the copies of the others.
        let killer = tokio::task::spawn_blocking({
            let pause = std::time::Duration::from_millis(5 + 17 * round as u64 % 60);
            move || {
                std::thread::sleep(pause);
                replicator.kill();
                replicator.again();
                replicator
            }
        });
        for (blob, bytes) in late {
            if send(&mut to_replicator, *blob, bytes).await.is_ok() {
                acked.push(*blob);
            }
        }
        replicator = killer.await.unwrap();
    }
    assert!(acked.len() >= 1_500);
    let operator = replication(&replicator).await;
    until("the queue is empty", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    let mut at_destination = reader(&destination).await;
    assert_eq!(held(&mut at_destination, &acked).await, acked.len());
    for (blob, bytes) in &blobs {
        if acked.contains(blob) {
            assert!(fetch(&mut at_destination, *blob).await.unwrap() == *bytes, "{blob} differs");
        }
    }
}

/// Blobs hop from store to store; kills between confirm and the next hop lose none. A cycle ends.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chains_and_rings_drain_through_kills() {
    let world = World::new();
    let stores = [world.store("a"), world.store("b"), world.store("c")];
    let urls: Vec<String> = stores.iter().map(|store| store.url()).collect();
    let named = [("a", urls[0].as_str()), ("b", urls[1].as_str()), ("c", urls[2].as_str())];
    let mut replicator = world.replicator(&named, &[("a", "b"), ("b", "c"), ("c", "a"), ("b", "a")]);
    let mut to_a = receiver(&stores[0]).await;
    let mut refs = Vec::new();
    for seed in 0..600 {
        let (blob, bytes) = blob(seed, 2_000);
        send(&mut to_a, blob, &bytes).await.unwrap();
        refs.push(blob);
    }
    for part in refs.chunks(200) {
        announce(&mut replication(&replicator).await, "a", part).await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        replicator.kill();
        replicator.again();
    }
    let operator = replication(&replicator).await;
    until("all routes are drained", async || {
        let status = operator.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
        status.routes.iter().all(|route| queued(route) == 0).then_some(())
    })
    .await;
    for store in &stores {
        assert_eq!(held(&mut reader(store).await, &refs).await, refs.len());
    }
}
