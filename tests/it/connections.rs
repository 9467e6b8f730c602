//! Connections and peers that misbehave slowly, in the real program: the good go on, nothing is confirmed by the wrong one, and
//! each cause has its own word.

use crate::harness::{
    Replication, Server, World, announce, blob, held, queued, reader, replication, route, send, until,
};
use crate::proxy::Proxy;
use blobferry::blob::BlobRef;
use blobferry::internal::app::StoreApp;
use blobferry::internal::grpc::ServeSettings;
use blobferry::internal::store::MemoryStore;
use blobferry::internal::store::{FaultyStore, Trouble};
use blobferry::internal::store_server::{StoreServer, StoreServerSettings};
use blobferry::v1 as pb;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::transport::Server as Tonic;

/// A store in this process.
struct Store {
    store: Arc<FaultyStore>,
    url: String,
    _server: JoinSet<()>,
}

impl Store {
    /// Of the production server.
    async fn start(id: &str) -> Self {
        Self::served(id, |store, listener| {
            let app = StoreApp::of(store, ServeSettings::default());
            async move { app.run(listener, CancellationToken::new()).await.unwrap() }
        })
        .await
    }

    /// Behind a server that closes connections after a while, and takes few streams on each.
    async fn behind(id: &str, age: Duration, streams: u32) -> Self {
        Self::served(id, move |store, listener| {
            let routes = StoreServer::new(store, StoreServerSettings::default()).add_to(Routes::default());
            let server = Tonic::builder().max_connection_age(age).max_concurrent_streams(streams);
            let serving = { server }.add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener));
            async move { serving.await.unwrap() }
        })
        .await
    }

    async fn served<F: Future<Output = ()> + Send + 'static>(
        id: &str,
        serve: impl FnOnce(Arc<FaultyStore>, TcpListener) -> F,
    ) -> Self {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new(id, 1 << 30))));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(serve(store.clone(), listener));
        Self { store, url, _server: server }
    }
}

/// Blobs that are too large for packs, and small ones.
const LARGE: usize = 100_000;
const SMALL: usize = 1_000;

async fn write(url: &str, seeds: Range<u64>, size: usize) -> Vec<BlobRef> {
    let channel = tonic::transport::Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
    let mut store = pb::blob_receiver_service_client::BlobReceiverServiceClient::new(channel);
    let mut refs = Vec::new();
    for seed in seeds {
        let (blob, bytes) = blob(seed, size);
        // Connections may be closed at any time here; a client that waits for nothing meets that.
        while send(&mut store, blob, &bytes).await.is_err() {}
        refs.push(blob);
    }
    refs
}

async fn held_at(url: &str, blobs: &[BlobRef]) -> usize {
    let channel = tonic::transport::Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap();
    held(&mut pb::blob_reader_service_client::BlobReaderServiceClient::new(channel), blobs).await
}

/// A replicator from `a` to `b`, with these settings of both stores.
fn replicator(world: &World, from: &str, to: &str, settings: &str) -> Server {
    let stores = [("a", from), ("b", to)];
    let stores = stores.map(|(name, url)| format!("[stores.{name}]\nendpoint = \"{url}\"\n{settings}\n")).concat();
    world.replicator_with("replicator", &format!("{stores}[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n"))
}

async fn all_is_copied(operator: &Replication) -> pb::RouteStatus {
    until("all is copied", async || {
        let status = route(&mut operator.clone()).await;
        (queued(&status) == 0).then_some(status)
    })
    .await
}

async fn another_store_is_named(operator: &Replication) -> pb::Fault {
    until("it is named", async || {
        let faults = route(&mut operator.clone()).await.recent_faults.into_iter().filter_map(|group| group.fault);
        faults.into_iter().find(|fault| fault.kind() == pb::FaultKind::StoreIdChanged)
    })
    .await
}

async fn openings(operator: &Replication) -> Vec<u64> {
    let status = operator.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    status.peers.iter().map(|peer| peer.breaker.as_ref().unwrap().openings).collect()
}

/// Connections that are closed all the time, as a server does that ages them, and that take two streams each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_age_and_take_few_streams_fail_nothing() {
    let world = World::new();
    let age = Duration::from_millis(300);
    let (source, destination) = (Store::behind("source", age, 2).await, Store::behind("destination", age, 2).await);
    let (from, to) = (Proxy::to(&[&source.url]).await, Proxy::to(&[&destination.url]).await);
    let replicator = replicator(&world, from.url(), to.url(), "");
    let operator = replication(&replicator).await;
    let mut refs = Vec::new();
    let mut seeds = 0;
    // Until connections were replaced often, on both sides.
    while from.connections().min(to.connections()) < 40 {
        for size in [LARGE, SMALL] {
            let more = write(&source.url, seeds..seeds + 200, size).await;
            announce(&mut operator.clone(), "a", &more).await.unwrap();
            refs.extend(more);
            seeds += 200;
        }
        all_is_copied(&operator).await;
    }
    let status = all_is_copied(&operator).await;
    assert_eq!(held_at(&destination.url, &refs).await, refs.len());
    // A server that closes its end while more comes may lose its last words: such a call costs its own attempt only.
    let faults = &status.recent_faults;
    assert!(faults.iter().all(|group| group.charged_count() == 0), "{faults:?}");
    let failed: u64 = faults.iter().map(pb::FaultGroup::count).sum();
    assert!(failed <= refs.len() as u64 / 100, "{failed} of {}: {faults:?}", refs.len());
    assert_eq!(openings(&operator).await, [0, 0]);
    assert!(destination.store.receives() <= refs.len() as u64 + failed, "each was sent once");
}

/// Servers of other makers, with their own rules: grpc-go, which ages its connections and throws out who pings, and the C core,
/// to which Python leads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stores_of_other_makers_are_source_and_destination() {
    let world = World::new();
    let aged = ["-max-age", "300ms"];
    let (Some(go), Some(other), Some(python)) =
        (world.go_store("go", &aged), world.go_store("other", &aged), world.python_store("python"))
    else {
        return;
    };
    for (name, from, to) in [("go-python", &go, &python), ("python-go", &python, &other)] {
        let (source, destination) = (Proxy::to(&[&from.url()]).await, Proxy::to(&[&to.url()]).await);
        let stores = [("a", source.url()), ("b", destination.url())];
        let stores = stores.map(|(name, url)| format!("[stores.{name}]\nendpoint = \"{url}\"\n")).concat();
        let config = format!("{stores}[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n");
        let replicator = world.replicator_with(name, &config);
        let operator = replication(&replicator).await;
        let aging = if name == "go-python" { &source } else { &destination };
        let mut refs = Vec::new();
        let mut seeds = 0;
        while aging.connections() < 20 {
            let more = write(&from.url(), seeds..seeds + 100, LARGE).await;
            announce(&mut operator.clone(), "a", &more).await.unwrap();
            refs.extend(more);
            seeds += 100;
            all_is_copied(&operator).await;
        }
        let status = all_is_copied(&operator).await;
        assert_eq!(held(&mut reader(to).await, &refs).await, refs.len());
        assert!(status.recent_faults.is_empty(), "{name}: {:?}", status.recent_faults);
        assert_eq!(openings(&operator).await, [0, 0], "{name}");
    }
}

/// Bytes that trickle, and a thousand blobs behind them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn blobs_that_trickle_hold_up_nobody() {
    let world = World::new();
    let (source, destination) = (Store::start("source").await, Store::start("destination").await);
    let replicator = replicator(&world, &source.url, &destination.url, "");
    let operator = replication(&replicator).await;
    let slow = write(&source.url, 0..40, LARGE).await;
    slow.iter().for_each(|blob| source.store.set_for(*blob, Some(Trouble::Trickle(Duration::from_millis(10)))));
    announce(&mut operator.clone(), "a", &slow).await.unwrap();
    until("all workers are busy with them", async || (source.store.fetches() >= 32).then_some(())).await;
    let good = write(&source.url, 1_000..1_300, LARGE).await;
    announce(&mut operator.clone(), "a", &good).await.unwrap();
    let status = until("the others are copied", async || {
        let status = route(&mut operator.clone()).await;
        (queued(&status) == 40).then_some(status)
    })
    .await;
    assert_eq!(status.copies.len(), 40, "and none of them was given up");
}

/// The same at the destination: blobs that are larger than what lies on the way, of which it reads next to nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_reads_next_to_nothing_holds_up_nobody() {
    const LARGEST: usize = 24 << 20;
    let world = World::new();
    let (source, destination) = (Store::start("source").await, Store::start("destination").await);
    // What 5 s bring is less than this asks for, and more than nothing.
    let settings = "min_bytes_per_second = \"512KiB\"";
    let stores = [("a", &source.url), ("b", &destination.url)];
    let stores = stores.map(|(name, url)| format!("[stores.{name}]\nendpoint = \"{url}\"\n{settings}\n")).concat();
    let config = format!("{stores}[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\nworkers = 2\n");
    let replicator = world.replicator_with("replicator", &config);
    let operator = replication(&replicator).await;
    let slow = write(&source.url, 0..4, LARGEST).await;
    slow.iter().for_each(|blob| destination.store.set_for(*blob, Some(Trouble::SlowRead(Duration::from_secs(1)))));
    announce(&mut operator.clone(), "a", &slow).await.unwrap();
    // More than there are workers, and not one of them has all bytes on the way.
    until("all four are written at a time", async || {
        let copies = route(&mut operator.clone()).await.copies;
        (copies.iter().filter(|copy| copy.stage() == pb::CopyStage::Streaming).count() == 4).then_some(())
    })
    .await;
    let good = write(&source.url, 1_000..1_100, LARGE).await;
    announce(&mut operator.clone(), "a", &good).await.unwrap();
    let status = until("the others are copied", async || {
        let status = route(&mut operator.clone()).await;
        (held_at(&destination.url, &good).await == good.len()).then_some(status)
    })
    .await;
    assert!(status.recent_faults.iter().all(|group| group.charged_count() == 0), "{:?}", status.recent_faults);
}

/// The confirmation has a limit of its own, which its message names; nothing is sent again before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_confirmation_is_waited_for_and_one_that_never_comes_is_named() {
    let world = World::new();
    let (source, destination) = (Store::start("source").await, Store::start("destination").await);
    let settings = "idle_timeout = \"1s\"\nconfirm_timeout = \"6s\"";
    let replicator = replicator(&world, &source.url, &destination.url, settings);
    let operator = replication(&replicator).await;
    let refs = write(&source.url, 0..3, LARGE).await;
    destination.store.set(Some(Trouble::SlowEnd(Duration::from_secs(3))));
    announce(&mut operator.clone(), "a", &refs[..2]).await.unwrap();
    let status = all_is_copied(&operator).await;
    assert!(status.recent_faults.is_empty(), "{:?}", status.recent_faults);
    assert_eq!(destination.store.receives(), 2);

    destination.store.set(Some(Trouble::HangAtEnd));
    announce(&mut operator.clone(), "a", &refs[2..]).await.unwrap();
    let status = until("it is named", async || {
        let status = route(&mut operator.clone()).await;
        (!status.recent_faults.is_empty()).then_some(status)
    })
    .await;
    let fault = status.recent_faults[0].fault.as_ref().unwrap();
    assert_eq!((fault.kind(), fault.peer.as_str()), (pb::FaultKind::NotConfirmed, "b"));
    assert!(fault.message.contains("confirm_timeout"), "{}", fault.message);
}

/// grpc-go throws out who pings more often than every five minutes; a confirmation that takes most of a minute arrives all the
/// same, and nothing is sent again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute; part of make test-slow"]
async fn nobody_is_pinged_while_a_confirmation_is_awaited() {
    let world = World::new();
    let source = Store::start("source").await;
    let Some(go) = world.go_store("go", &["-confirm-after", "50s"]) else { return };
    let to = Proxy::to(&[&go.url()]).await;
    let replicator = replicator(&world, &source.url, to.url(), "");
    let operator = replication(&replicator).await;
    let refs = write(&source.url, 0..3, LARGE).await;
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    let status = all_is_copied(&operator).await;
    assert!(status.recent_faults.is_empty(), "{:?}", status.recent_faults);
    assert_eq!(source.store.fetches(), 3);
    assert_eq!(held(&mut reader(&go).await, &refs).await, 3);
    assert_eq!(to.pings(), 0);
}

/// A source behind an address that leads to another one then: what that one says is taken for nobody's word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_store_at_the_sources_address_is_named() {
    let world = World::new();
    let (right, wrong) = (Store::start("right").await, Store::start("wrong").await);
    let destination = Store::start("destination").await;
    let from = Proxy::to(&[&right.url, &wrong.url]).await;
    let replicator = replicator(&world, from.url(), &destination.url, "");
    let operator = replication(&replicator).await;
    let refs = write(&right.url, 0..50, LARGE).await;
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    let fault = another_store_is_named(&operator).await;
    assert_eq!(fault.peer, "a");
    let failures = operator.clone().list_failures(pb::ListFailuresRequest::default()).await.unwrap().into_inner();
    assert_eq!(failures.parked_entries, Some(0), "nothing is missing because another store does not hold it");
}

/// An address that leads to one store at first, and to another then: what the other one takes is confirmed by nobody.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_stores_behind_one_address_confirm_nothing_for_each_other() {
    for size in [LARGE, SMALL] {
        let world = World::new();
        let source = Store::start("source").await;
        let (right, wrong) = (Store::start("right").await, Store::start("wrong").await);
        let to = Proxy::to(&[&right.url, &wrong.url]).await;
        let replicator = replicator(&world, &source.url, to.url(), "");
        let operator = replication(&replicator).await;
        let refs = write(&source.url, 0..120, size).await;
        announce(&mut operator.clone(), "a", &refs).await.unwrap();
        let fault = another_store_is_named(&operator).await;
        assert_eq!(fault.peer, "b");
        assert!(fault.message.contains("right") && fault.message.contains("wrong"), "{}", fault.message);
        let status = route(&mut operator.clone()).await;
        let confirmed = status.since_start.unwrap().confirmed_blobs.unwrap_or_default();
        assert!(held_at(&right.url, &refs).await as u64 >= confirmed);
    }
}

/// Packets vanish on all connections that are there, amid transfers; new ones are well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_black_hole_is_left_for_new_connections() {
    let world = World::new();
    let (source, destination) = (Store::start("source").await, Store::start("destination").await);
    let (from, to) = (Proxy::to(&[&source.url]).await, Proxy::to(&[&destination.url]).await);
    let settings = "idle_timeout = \"1s\"\nrequest_timeout = \"1s\"\nconfirm_timeout = \"1s\"";
    let replicator = replicator(&world, from.url(), to.url(), settings);
    let operator = replication(&replicator).await;
    let mut refs = write(&source.url, 0..100, LARGE).await;
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    all_is_copied(&operator).await;
    for (hole, seeds) in [(&from, 100..300), (&to, 300..500)] {
        let more = write(&source.url, seeds, LARGE).await;
        hole.freeze();
        announce(&mut operator.clone(), "a", &more).await.unwrap();
        all_is_copied(&operator).await;
        refs.extend(more);
    }
    assert_eq!(held_at(&destination.url, &refs).await, refs.len());
}

/// A connection that is cut again and again amid a large blob: it goes on where it was cut, or is named and charged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_blob_on_connections_that_are_cut_arrives_or_is_parked() {
    const MIB: usize = 1 << 20;
    for at_source in [true, false] {
        let world = World::new();
        let (source, destination) = (Store::start("source").await, Store::start("destination").await);
        let cutting = Proxy::cutting(if at_source { &source.url } else { &destination.url }, 12 * MIB).await;
        let (from, to) = if at_source { (cutting.url(), &*destination.url) } else { (&*source.url, cutting.url()) };
        let replicator = replicator(&world, from, to, "");
        let operator = replication(&replicator).await;
        let large = write(&source.url, 0..1, 40 * MIB).await;
        announce(&mut operator.clone(), "a", &large).await.unwrap();
        if at_source {
            all_is_copied(&operator).await;
            assert_eq!(held_at(&destination.url, &large).await, 1);
            continue;
        }
        let failed = until("it is parked", async || {
            let failures =
                operator.clone().list_failures(pb::ListFailuresRequest::default()).await.unwrap().into_inner();
            failures.failures.into_iter().find(|_| failures.parked_entries == Some(1))
        })
        .await;
        let cause = failed.cause.unwrap();
        assert_eq!(cause.kind(), pb::FaultKind::ConnectionCut);
        assert!(cause.message.contains("of 41943040 bytes"), "{}", cause.message);
        let small = write(&source.url, 1..30, SMALL).await;
        announce(&mut operator.clone(), "a", &small).await.unwrap();
        until("others are copied", async || (held_at(&destination.url, &small).await == small.len()).then_some(()))
            .await;
    }
}

/// A peer that stands still, as a machine does that is suspended, and goes on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frozen_peer_is_named_and_goes_on_where_it_was() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let settings = "idle_timeout = \"1s\"\nrequest_timeout = \"1s\"\nconfirm_timeout = \"1s\"";
    let replicator = replicator(&world, &source.url(), &destination.url(), settings);
    let operator = replication(&replicator).await;
    let mut refs = Vec::new();
    for (name, frozen, seeds) in [("b", &destination, 0..200), ("a", &source, 200..400)] {
        let more = write(&source.url(), seeds, LARGE).await;
        frozen.signal(rustix::process::Signal::STOP);
        announce(&mut operator.clone(), "a", &more).await.unwrap();
        until("it is named", async || {
            let status = route(&mut operator.clone()).await;
            // By the fault of a copy, or as what blocks the route, where it was asked what it is before any copy was tried.
            let mut faults = status.recent_faults.iter().filter_map(|group| group.fault.as_ref());
            let blocks = status.summary.contains(&format!("blocked: {name} "));
            (blocks || faults.any(|fault| fault.peer == name)).then_some(())
        })
        .await;
        frozen.signal(rustix::process::Signal::CONT);
        refs.extend(more);
        all_is_copied(&operator).await;
    }
    assert_eq!(held(&mut reader(&destination).await, &refs).await, refs.len());
    let status = route(&mut operator.clone()).await;
    assert!(status.recent_faults.iter().all(|group| group.charged_count() == 0), "{:?}", status.recent_faults);
}

/// A control connection, four for packs and listings, four for large blobs: no more are made for whom these are enough.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_are_few_and_kept() {
    let world = World::new();
    let (source, destination) = (Store::start("source").await, Store::start("destination").await);
    let (from, to) = (Proxy::to(&[&source.url]).await, Proxy::to(&[&destination.url]).await);
    let replicator = replicator(&world, from.url(), to.url(), "");
    let operator = replication(&replicator).await;
    for seeds in [0..300, 300..600] {
        for size in [LARGE, SMALL] {
            let refs = write(&source.url, seeds.clone(), size).await;
            announce(&mut operator.clone(), "a", &refs).await.unwrap();
        }
        all_is_copied(&operator).await;
    }
    assert!((5..=9).contains(&from.connections()), "{}", from.connections());
    assert!((5..=9).contains(&to.connections()), "{}", to.connections());
}

/// A name with two addresses, one of which nobody listens at.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_dead_address_of_a_name_is_passed_over() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let named = |url: String| url.replace("127.0.0.1", "localhost");
    let replicator = replicator(&world, &named(source.url()), &named(destination.url()), "");
    let operator = replication(&replicator).await;
    let refs = write(&source.url(), 0..20, SMALL).await;
    announce(&mut operator.clone(), "a", &refs).await.unwrap();
    let status = all_is_copied(&operator).await;
    assert!(status.recent_faults.is_empty(), "{:?}", status.recent_faults);
    assert_eq!(held(&mut reader(&destination).await, &refs).await, refs.len());
}
