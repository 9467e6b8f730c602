//! Peers that lie, over the wire: caught, named by kind in Status, and the entry stays queued.

use crate::harness::{
    Replication, World, announce, blob, fetch, held, queued, reader, receiver, replication, route, send, until,
};
use blobferry::blob::{BlobRef, DigestFunction};
use blobferry::internal::app::StoreApp;
use blobferry::internal::grpc::ServeSettings;
use blobferry::internal::store::MemoryStore;
use blobferry::internal::store::{Disposition, Store as _, StoreInfo};
use blobferry::internal::store::{FaultyStore, Trouble};
use blobferry::v1 as pb;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// A store of the production server over a store that can be told to lie.
struct Liar {
    store: Arc<FaultyStore>,
    url: String,
    _server: JoinSet<()>,
}

impl Liar {
    async fn start() -> Self {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new("liar", 64 << 20))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = StoreApp::of(store.clone(), ServeSettings::default());
        let mut server = JoinSet::new();
        server.spawn(async move { app.run(listener, CancellationToken::new()).await.unwrap() });
        Self { store, url, _server: server }
    }
}

/// Blobs of this size travel alone, and of this one in a pack.
const SIZES: [usize; 2] = [100_000, 1_000];

/// Announces one blob while a side lies about it, and gives the kind that Status names; then the side turns honest, and the
/// blob arrives.
async fn caught(at_source: bool, size: usize, lie: impl Fn(BlobRef) -> Trouble) -> pb::FaultKind {
    let world = World::new();
    let honest = world.store("honest");
    let liar = Liar::start().await;
    let (source, destination) =
        if at_source { (liar.url.clone(), honest.url()) } else { (honest.url(), liar.url.clone()) };
    let replicator = world.replicator(&[("a", &source), ("b", &destination)], &[("a", "b")]);
    let (blob, bytes) = blob(1, size);
    let connect =
        async |url: &str| tonic::transport::Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
    send(&mut pb::blob_receiver_service_client::BlobReceiverServiceClient::new(connect(&source).await), blob, &bytes)
        .await
        .unwrap();

    liar.store.set(Some(lie(blob)));
    let operator = replication(&replicator).await;
    announce(&mut operator.clone(), "a", &[blob]).await.unwrap();
    let status = until("the lie is named", async || {
        let status = route(&mut operator.clone()).await;
        (!status.recent_faults.is_empty()).then_some(status)
    })
    .await;
    assert_eq!(queued(&status), 1, "{status:?}");
    let group = &status.recent_faults[0];
    let fault = group.fault.as_ref().unwrap();
    assert_eq!(fault.peer, if at_source { "a" } else { "b" });
    assert!(!fault.message.is_empty());
    assert_eq!(group.example_ref, blob.to_string());
    if at_source {
        assert_eq!(held(&mut reader(&honest).await, &[blob]).await, 0, "nothing wrong arrives");
    }

    liar.store.set(None);
    until("it arrives from an honest peer", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(()))
        .await;
    let mut reader = pb::blob_reader_service_client::BlobReaderServiceClient::new(connect(&destination).await);
    assert!(fetch(&mut reader, blob).await.unwrap() == bytes);
    fault.kind()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_lies_is_named_and_nothing_wrong_arrives() {
    use pb::FaultKind::{MissingAtSource, ShortRead, SourceBytesCorrupt, SourceSizeMismatch};
    for size in SIZES {
        assert_eq!(caught(true, size, |_| Trouble::WrongBytes).await, SourceBytesCorrupt);
        assert_eq!(caught(true, size, |_| Trouble::Missing).await, MissingAtSource);
    }
    // Whatever a source makes of a blob for a pack is a whole blob, or none.
    assert_eq!(caught(true, SIZES[0], |_| Trouble::StatedSize(99_999)).await, SourceSizeMismatch);
    assert_eq!(caught(true, SIZES[0], |_| Trouble::ExtraByte).await, SourceSizeMismatch);
    assert_eq!(caught(true, SIZES[0], |_| Trouble::ShortRead).await, ShortRead);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_confirms_something_else_settles_nothing() {
    let (other, _) = blob(2, 10);
    let lies = [
        Trouble::ConfirmRef(other),
        Trouble::ConfirmSize(1),
        Trouble::Confirm(Disposition::Enqueued),
        Trouble::Confirm(Disposition::Consumed),
    ];
    for size in SIZES {
        for lie in &lies {
            let kind = caught(false, size, |_| lie.clone()).await;
            assert_eq!(kind, pb::FaultKind::DestinationConfirmedOther, "{lie:?} {size}");
        }
        assert_eq!(caught(false, size, |_| Trouble::Reject).await, pb::FaultKind::DestinationRejected);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicator_in_a_stores_place_stops_the_route_and_charges_nothing() {
    let world = World::new();
    let source = world.store("source");
    let nowhere = [("x", "http://127.0.0.1:1"), ("y", "http://127.0.0.1:2")];
    let config = nowhere.map(|(name, url)| format!("[stores.{name}]\nendpoint = \"{url}\"\n")).concat()
        + "[routes.x_to_y]\nfrom = \"x\"\nto = \"y\"\n";
    let other = world.replicator_with("other", &config);
    let replicator = world.replicator(&[("a", &source.url()), ("b", &other.url())], &[("a", "b")]);
    let (blob, bytes) = blob(1, 100);
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    let operator = replication(&replicator).await;
    announce(&mut operator.clone(), "a", &[blob]).await.unwrap();
    let peer = until("the wrong kind is noticed", async || {
        let status = operator.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
        status.peers.into_iter().find(|peer| peer.name == "b" && peer.health() == pb::PeerHealth::Unsuitable)
    })
    .await;
    assert_eq!(peer.peer_info.unwrap().kind(), pb::PeerKind::Replicator);
    assert_ne!(peer.breaker.unwrap().state(), pb::BreakerState::Closed);
    let fresh = route(&mut operator.clone()).await.queued.unwrap().fresh.unwrap();
    assert_eq!(fresh.retrying.unwrap().entries, Some(0));
    assert_eq!(fresh.parked.unwrap().entries, Some(0));
    assert_eq!(queued(&route(&mut replication(&other).await).await), 0, "nothing was announced there");
}

/// Writes blobs to a store and announces them.
async fn write_and_announce(operator: &Replication, url: &str, seeds: std::ops::Range<u64>) -> Vec<BlobRef> {
    let refs = write(url, seeds).await;
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    refs
}

async fn write(url: &str, seeds: std::ops::Range<u64>) -> Vec<BlobRef> {
    write_sized(url, seeds, 1_000).await
}

async fn write_sized(url: &str, seeds: std::ops::Range<u64>, size: usize) -> Vec<BlobRef> {
    let channel = tonic::transport::Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
    let mut store = pb::blob_receiver_service_client::BlobReceiverServiceClient::new(channel);
    let mut refs = Vec::new();
    for seed in seeds {
        let (blob, bytes) = blob(seed, size);
        send(&mut store, blob, &bytes).await.unwrap();
        refs.push(blob);
    }
    refs
}

async fn breaker_of(operator: &Replication, name: &str) -> pb::Breaker {
    peer_of(operator, name).await.breaker.unwrap()
}

/// The same store, emptied under its id: what was copied earlier is gone, so that nothing is given up as missing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_source_raises_an_alarm_and_no_blob_is_given_up() {
    let world = World::new();
    let destination = world.store("destination");
    let liar = Liar::start().await;
    let replicator = world.replicator(&[("a", &liar.url), ("b", &destination.url())], &[("a", "b")]);
    let operator = replication(&replicator).await;
    let mut refs = write_and_announce(&operator, &liar.url, 0..30).await;
    until("the first are copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;

    liar.store.set(Some(Trouble::Missing));
    refs.extend(write_and_announce(&operator, &liar.url, 100..160).await);
    let status = until("it is noticed", async || {
        let status = route(&mut operator.clone()).await;
        status.summary.contains("gone from a").then_some(status)
    })
    .await;
    assert_ne!(status.state(), pb::RouteState::Blocked, "{}", status.summary);
    assert_eq!(breaker_of(&operator, "a").await.openings, 0);
    let failed = async || {
        let request = pb::ListFailuresRequest { page_size: 100, ..pb::ListFailuresRequest::default() };
        operator.clone().list_failures(request).await.unwrap().into_inner()
    };
    until("all were looked for again and again", async || {
        let failures = failed().await;
        assert_eq!(failures.parked_entries, Some(0));
        failures.failures.iter().all(|failed| failed.attempts > Some(3)).then_some(())
    })
    .await;

    liar.store.set(None);
    until("all is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    assert_eq!(held(&mut reader(&destination).await, &refs).await, refs.len());
}

/// One blob that its source always fails on is charged, and the others are copied.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blob_that_alone_draws_internal_is_charged_and_holds_nobody_up() {
    let world = World::new();
    let destination = world.store("destination");
    let liar = Liar::start().await;
    let replicator = world.replicator(&[("a", &liar.url), ("b", &destination.url())], &[("a", "b")]);
    let operator = replication(&replicator).await;
    let refs = write(&liar.url, 0..40).await;
    let poison = refs[7];
    liar.store.set_for(poison, Some(Trouble::Code(tonic::Code::Internal)));
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    let more = AtomicU64::new(100);
    until("it is charged", async || {
        let seed = more.fetch_add(1, Ordering::Relaxed);
        write_and_announce(&operator, &liar.url, seed..seed + 1).await;
        let status = route(&mut operator.clone()).await;
        status.recent_faults.iter().any(|group| group.charged_count() > 0).then_some(())
    })
    .await;
    // It is told before it is recorded, and not listed while it is tried.
    let failed = until("it is listed", async || {
        let request = pb::ListFailuresRequest::default();
        let failures = operator.clone().list_failures(request).await.unwrap().into_inner().failures;
        failures.into_iter().find(|failed| failed.attempts > Some(1))
    })
    .await;
    assert_eq!(failed.r#ref, poison.to_string());
    until("the others are copied", async || (queued(&route(&mut operator.clone()).await) == 1).then_some(())).await;
}

/// A destination that takes four blobs at a time is used by as many, and said to be overloaded; nobody pays for it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_sheds_load_gets_as_many_at_a_time_as_it_takes() {
    let world = World::new();
    let source = world.store("source");
    let liar = Liar::start().await;
    let replicator = world.replicator(&[("a", &source.url()), ("b", &liar.url)], &[("a", "b")]);
    let operator = replication(&replicator).await;
    liar.store.set_admits(Some(0));
    let refs = write_large(&source.url(), 0..600).await;
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    let peer = until("it is noticed", async || {
        let peer = peer_of(&operator, "b").await;
        (peer.concurrency_limit.is_some()).then_some(peer)
    })
    .await;
    assert!(peer.last_refusal_time.is_some());
    liar.store.set_admits(Some(4));
    until("all is copied", async || {
        let status = route(&mut operator.clone()).await;
        (queued(&status) == 0).then_some(())
    })
    .await;
    let status = route(&mut operator.clone()).await;
    assert!(status.recent_faults.iter().all(|group| group.charged_count() == 0), "{:?}", status.recent_faults);
    assert_eq!(status.recent_faults[0].fault.as_ref().unwrap().kind(), pb::FaultKind::DestinationOverloaded);
    assert_eq!(breaker_of(&operator, "b").await.openings, 0);
    let attempts = liar.store.receives();
    assert!(attempts < 1800, "{attempts} for 600 blobs");
}

/// One call in twenty fails, for no reason of any blob.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_fails_now_and_then_is_used_on() {
    let world = World::new();
    let source = world.store("source");
    let liar = Liar::start().await;
    let replicator = world.replicator(&[("a", &source.url()), ("b", &liar.url)], &[("a", "b")]);
    let operator = replication(&replicator).await;
    liar.store.set_fails(0.05);
    let large = write_large(&source.url(), 0..300).await;
    let small = write(&source.url(), 1000..1300).await;
    announce(&mut operator.clone(), "a", &large).await.unwrap();
    announce(&mut operator.clone(), "a", &small).await.unwrap();
    until("all is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    let status = route(&mut operator.clone()).await;
    assert!(!status.recent_faults.is_empty(), "there was something to get over");
    assert_eq!(breaker_of(&operator, "b").await.openings, 0);
    assert!(liar.store.receives() < 900, "{}", liar.store.receives());
}

/// Hopeless entries before good ones, whatever is said of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hopeless_entries_at_the_head_hide_no_good_ones() {
    for trouble in [Trouble::Reject, Trouble::Code(tonic::Code::PermissionDenied), Trouble::Code(tonic::Code::Internal)]
    {
        let world = World::new();
        let source = world.store("source");
        let liar = Liar::start().await;
        let config = format!(
            "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n",
            source.url(),
            liar.url
        );
        // Attempts are counted, not time: on a slow machine the bad ones would be tried again and again meanwhile.
        let patient = [("BLOBFERRY__RETRY__INITIAL", "30s"), ("BLOBFERRY__RETRY__MAX", "30s")];
        let replicator = world.replicator_in("replicator", &config, &patient);
        let operator = replication(&replicator).await;
        let bad = write(&source.url(), 0..600).await;
        let good = write(&source.url(), 1000..1100).await;
        bad.iter().for_each(|blob| liar.store.set_for(*blob, Some(trouble.clone())));
        announce(&mut operator.clone(), "a", &bad).await.unwrap();
        announce(&mut operator.clone(), "a", &good).await.unwrap();
        let confirmed = async || route(&mut operator.clone()).await.since_start.unwrap().confirmed_blobs;
        until("the good ones are copied", async || (confirmed().await == Some(100)).then_some(())).await;
        let attempts = liar.store.receives();
        assert!(attempts <= 2_000, "{trouble:?}: {attempts} attempts");
    }
}

/// What a store does not list is not sent to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_digest_function_that_a_store_does_not_list_is_parked_unsent() {
    let world = World::new();
    let source = world.store("source");
    let liar = Liar::start().await;
    let info = liar.store.info().await.unwrap();
    liar.store.set_info(Some(StoreInfo { functions: vec![DigestFunction::Blake3], ..info }));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &liar.url)], &[("a", "b")]);
    let operator = replication(&replicator).await;
    let refs = write(&source.url(), 0..3).await;
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    let failures = until("they are parked", async || {
        let failures = operator.clone().list_failures(pb::ListFailuresRequest::default()).await.unwrap().into_inner();
        (failures.parked_entries == Some(3)).then_some(failures)
    })
    .await;
    let cause = failures.failures[0].cause.as_ref().unwrap();
    assert_eq!((cause.kind(), cause.peer.as_str()), (pb::FaultKind::UnsupportedDigest, "b"));
    assert_eq!(liar.store.receives(), 0);
}

/// Copies that only wait for their confirmation occupy no worker.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_confirmations_hold_up_no_worker() {
    let world = World::new();
    let source = world.store("source");
    let liar = Liar::start().await;
    let stores = [("a", source.url()), ("b", liar.url.clone())];
    let stores = stores.map(|(name, url)| format!("[stores.{name}]\nendpoint = \"{url}\"\n")).concat();
    let config = format!("{stores}[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\nworkers = 2\n");
    let replicator = world.replicator_with("replicator", &config);
    let operator = replication(&replicator).await;
    let refs = write_large(&source.url(), 0..40).await;
    for blob in &refs[..4] {
        liar.store.set_for(*blob, Some(Trouble::HangAtEnd));
    }
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    let status = until("the others are copied", async || {
        let status = route(&mut operator.clone()).await;
        (queued(&status) == 4).then_some(status)
    })
    .await;
    assert!(status.copies.iter().all(|copy| copy.stage() == pb::CopyStage::Confirming), "{:?}", status.copies);
    assert_eq!(status.copies.len(), 4, "and none of them was given up");
}

/// Blobs that are too large for packs.
async fn write_large(url: &str, seeds: std::ops::Range<u64>) -> Vec<BlobRef> {
    write_sized(url, seeds, 100_000).await
}

async fn peer_of(operator: &Replication, name: &str) -> pb::PeerStatus {
    let status = operator.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    status.peers.into_iter().find(|peer| peer.name == name).unwrap()
}
