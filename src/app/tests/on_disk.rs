//! The parts of production: the queue on disk, remote stores over TCP, restarts.

use crate::app::store::StoreApp;
use crate::app::{App, ExitSummary, Parts};
use crate::blob::{BlobRef, DigestFunction};
use crate::config::Config;
use crate::grpc::{PeerEndpoint, ServeSettings};
use crate::pb::v1;
use crate::store::remote::RemoteStore;
use crate::store::{Put, Store};
use anyhow::Result;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use v1::replication_service_client::ReplicationServiceClient;

/// A server in a task, until it is stopped.
struct Served<T> {
    task: JoinSet<Result<T>>,
    stop: CancellationToken,
}

impl<T: 'static> Served<T> {
    async fn stop(mut self) -> T {
        self.stop.cancel();
        self.task.join_next().await.unwrap().unwrap().unwrap()
    }
}

async fn serve_store(folder: &Path, at: SocketAddr) -> Served<()> {
    let url = format!("disk://{}", folder.display());
    let settings = ServeSettings { drain_timeout: Duration::from_secs(2), ..ServeSettings::default() };
    let store = StoreApp::build(&url, settings).await.unwrap();
    let (mut task, stop) = (JoinSet::new(), CancellationToken::new());
    task.spawn(store.run(TcpListener::bind(at).await.unwrap(), stop.clone()));
    Served { task, stop }
}

async fn serve(config: &Config) -> (Served<ExitSummary>, ReplicationServiceClient<Channel>) {
    let app = App::build(config, Parts::real(config).await.unwrap()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = Channel::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
    let (mut task, stop) = (JoinSet::new(), CancellationToken::new());
    task.spawn(app.run(listener, stop.clone()));
    (Served { task, stop }, ReplicationServiceClient::new(endpoint.connect_lazy()))
}

async fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn remote(at: SocketAddr) -> RemoteStore {
    RemoteStore::new(&PeerEndpoint::at(format!("http://{at}").parse().unwrap())).unwrap()
}

async fn put(at: SocketAddr, bytes: Bytes) -> BlobRef {
    let blob = DigestFunction::Sha256.ref_of(&bytes);
    let put = Put { blob, size: Some(bytes.len() as u64), replace: false };
    remote(at).receive(put, stream::iter([Ok(bytes)]).boxed()).await.unwrap();
    blob
}

async fn enqueue(client: &mut ReplicationServiceClient<Channel>, blob: BlobRef) {
    let items = vec![v1::EnqueueItem { r#ref: blob.to_string(), ..v1::EnqueueItem::default() }];
    let request = v1::EnqueueBlobsRequest { source_store: String::new(), items, issue_wait_token: false };
    let answer = client.enqueue_blobs(request).await.unwrap().into_inner();
    assert_eq!(answer.results[0].error, None);
}

async fn picture(client: &mut ReplicationServiceClient<Channel>) -> v1::ReplicatorStatus {
    client.status(v1::StatusRequest::default()).await.unwrap().into_inner().status.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_outlives_a_restart_and_its_route_and_arrives_when_the_stores_come() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (free_address().await, free_address().await);
    let config = |route: &str, to: &str| {
        let data = folder.path().join("replicator");
        let toml = format!(
            "[server]\ndata_dir = {data:?}\ndrain_timeout = \"5s\"\n[stores.a]\nendpoint = \"http://{a}\"\n\
             [stores.b]\nendpoint = \"http://{b}\"\n[stores.c]\nendpoint = \"http://127.0.0.1:1\"\n\
             [routes.{route}]\nfrom = \"a\"\nto = {to:?}\n"
        );
        Config::load(Some(("test", &toml)), std::iter::empty(), &[]).unwrap()
    };
    let store_a = serve_store(&folder.path().join("a"), a).await;
    let blob = put(a, Bytes::from(vec![7; 3 << 20])).await;
    store_a.stop().await;

    // Nobody is there: it starts, takes the ref, and says what is wrong.
    let (app, mut client) = serve(&config("a_to_b", "b")).await;
    enqueue(&mut client, blob).await;
    let mut status = picture(&mut client).await;
    for _ in 0..200 {
        if status.routes[0].state() == v1::RouteState::Blocked {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        status = picture(&mut client).await;
    }
    assert!(status.routes[0].summary.contains("a and b cannot be used"), "{}", status.routes[0].summary);
    assert!(status.queue.unwrap().free_bytes.is_some());
    assert_eq!(app.stop().await.queued, 1);

    // Its route is gone: shown, and not touched.
    let (app, mut client) = serve(&config("another", "c")).await;
    let status = picture(&mut client).await;
    let orphan = status.routes.iter().find(|route| route.name == "a_to_b").unwrap();
    assert_eq!(orphan.state(), v1::RouteState::Orphaned);
    assert_eq!(
        orphan.summary,
        "a_to_b: orphaned: no longer configured; 1 blob stays queued: configure it again, or blobferry drop a_to_b"
    );
    app.stop().await;

    // The same name with other stores is refused, and the queue is left as it was.
    let turned = config("a_to_b", "c");
    let error = App::build(&turned, Parts::real(&turned).await.unwrap()).await.err().unwrap();
    assert!(format!("{error:#}").contains("a_to_b was a -> b"), "{error:#}");
    drop(error);

    let (app, mut client) = serve(&config("a_to_b", "b")).await;
    let store_a = serve_store(&folder.path().join("a"), a).await;
    let store_b = serve_store(&folder.path().join("b"), b).await;
    for _ in 0..600 {
        if picture(&mut client).await.routes[0].since_start.unwrap().confirmed_blobs == Some(1) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = remote(b).stat(&[blob]).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].size, 3 << 20);
    assert_eq!(app.stop().await.queued, 0);
    store_a.stop().await;
    store_b.stop().await;
}
