//! Stores and a collector that speak TLS, with a certificate of an authority of their own (`tls/`, made for this test, good
//! until 2126; its private key protects nothing).

use crate::harness::{PATIENCE, World, blob, full_sync, queued, replication, route, until};
use crate::traces::Sink;
use blobferry::blob::BlobRef;
use blobferry::internal::grpc::base_routes;
use blobferry::internal::store::MemoryStore;
use blobferry::internal::store::{Put, Store};
use blobferry::internal::store_server::{StoreServer, StoreServerSettings};
use blobferry::v1 as pb;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Identity, Server, ServerTlsConfig};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/tls").join(name)
}

/// Serves these behind TLS, and gives the port.
async fn serve(routes: Routes, tasks: &mut JoinSet<()>) -> u16 {
    let read = |name| std::fs::read(file(name)).unwrap();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(read("server.pem"), read("server.key")));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = Server::builder().tls_config(tls).unwrap().add_routes(routes);
    tasks.spawn(async move { server.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap() });
    port
}

async fn serve_store(store: &Arc<MemoryStore>, tasks: &mut JoinSet<()>) -> u16 {
    let (routes, _) = base_routes(&[]).unwrap();
    serve(StoreServer::new(store.clone(), StoreServerSettings::default()).add_to(routes), tasks).await
}

async fn put(store: &MemoryStore, blob: BlobRef, bytes: Vec<u8>) {
    let put = Put { blob, size: Some(bytes.len() as u64), replace: false };
    store.receive(put, stream::iter([Ok(Bytes::from(bytes))]).boxed()).await.unwrap();
}

fn stores(ports: [u16; 2], ca_file: &str) -> String {
    let store =
        |name, port| format!("[stores.{name}]\nendpoint = \"https://localhost:{port}\"\nca_file = \"{ca_file}\"\n");
    format!("{}{}[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n", store("a", ports[0]), store("b", ports[1]))
}

/// Blobs of every size, packed and alone, and a trace of each.
#[tokio::test(flavor = "multi_thread")]
async fn blobs_and_spans_travel_by_tls() {
    let (world, mut tasks, sink) = (World::new(), JoinSet::new(), Sink::default());
    let [source, destination] = ["a", "b"].map(|id| Arc::new(MemoryStore::new(id, 1 << 30)));
    let ports = [serve_store(&source, &mut tasks).await, serve_store(&destination, &mut tasks).await];
    let collector = serve(Routes::new(sink.server()), &mut tasks).await;
    let ca = file("ca.pem").to_str().unwrap().to_owned();

    let config = stores(ports, &ca);
    let (endpoint, ca) = (format!("https://localhost:{collector}"), ca.as_str());
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()), ("OTEL_EXPORTER_OTLP_CERTIFICATE", ca)];
    let replicator = world.replicator_in("replicator", &config, &variables);
    let mut operator = replication(&replicator).await;
    let mut items = Vec::new();
    for (seed, size) in [0, 4 << 10, 64 << 10, 3 << 20].into_iter().enumerate() {
        let (blob, bytes) = blob(seed as u64, size);
        put(&source, blob, bytes).await;
        items.push(pb::EnqueueItem {
            r#ref: blob.to_string(),
            traceparent: format!("00-{:032x}-00f067aa0ba902b7-01", seed + 1),
            ..Default::default()
        });
    }
    let count = items.len() as u64;
    let request = pb::EnqueueBlobsRequest { source_store: "a".to_owned(), items, issue_wait_token: false };
    operator.enqueue_blobs(request).await.unwrap();
    until("all are confirmed", async || {
        (route(&mut operator.clone()).await.all_time?.confirmed_blobs == Some(count)).then_some(())
    })
    .await;
    let counts = full_sync(&mut operator).await.counts.unwrap();
    assert_eq!((counts.source_blobs, counts.missing), (Some(count), Some(0)));

    let deadline = Instant::now() + PATIENCE;
    while (1..=count).any(|trace| !sink.has(&format!("{trace:032x}"), "send a_to_b")) {
        assert!(Instant::now() < deadline, "spans did not come; the replicator said:\n{}", replicator.said());
        tokio::time::sleep(std::time::Duration::from_millis(25)).await;
    }
}

/// A certificate of somebody else is no reason to send anything: nothing is lost, and the status says why.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_an_unknown_authority_is_told_and_not_trusted() {
    let (world, mut tasks) = (World::new(), JoinSet::new());
    let [source, destination] = ["a", "b"].map(|id| Arc::new(MemoryStore::new(id, 1 << 30)));
    let ports = [serve_store(&source, &mut tasks).await, serve_store(&destination, &mut tasks).await];
    let other = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/deploy/ca.crt");
    let replicator = world.replicator_with("replicator", &stores(ports, other));
    let mut operator = replication(&replicator).await;
    let (blob, bytes) = blob(1, 1000);
    put(&source, blob, bytes).await;
    let items = vec![pb::EnqueueItem { r#ref: blob.to_string(), ..Default::default() }];
    let request = pb::EnqueueBlobsRequest { source_store: "a".to_owned(), items, issue_wait_token: false };
    operator.enqueue_blobs(request).await.unwrap();
    let summary = until("the status tells of the certificate", async || {
        let status = operator.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status?;
        let told = status.peers.iter().map(|peer| peer.summary.clone()).collect::<Vec<_>>().join("\n");
        told.to_lowercase().contains("certificate").then_some(told)
    })
    .await;
    // Whichever was asked first.
    let blames = [" has not said yet what it is: TLS: ", " is unreachable"].iter().any(|blame| summary.contains(blame));
    assert!(blames, "{summary}");
    assert_eq!(queued(&route(&mut operator).await), 1);
    assert!(destination.stat(&[blob]).await.unwrap().is_empty());
}
