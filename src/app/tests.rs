#![allow(clippy::unwrap_used, reason = "tests")]

mod announcing;
mod beginning;
mod failing;
mod on_disk;
mod pausing;
mod reflecting;
mod running;

use super::{App, ExitSummary, Parts};
use crate::blob::{BlobRef, DigestFunction};
use crate::clock::{Entropy, SystemClock};
use crate::config::Config;
use crate::pb::v1;
use crate::queue::model::ModelQueue;
use crate::store::faulty::FaultyStore;
use crate::store::memory::MemoryStore;
use crate::store::{Put, Store};
use crate::telemetry::Tracer;
use anyhow::Result;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt;
use v1::blob_receiver_service_client::BlobReceiverServiceClient;
use v1::replication_service_client::ReplicationServiceClient;

/// A replicator over a model queue and stores in memory, served on loopback.
struct World {
    stores: BTreeMap<&'static str, (Arc<MemoryStore>, Arc<FaultyStore>)>,
    queue: Arc<ModelQueue>,
    channel: Channel,
    shutdown: CancellationToken,
    running: JoinSet<Result<ExitSummary>>,
}

impl World {
    /// Routes are `FROM_to_TO` between these; one that begins with `-` is disabled. Stores named in `down` are down.
    async fn start(routes: &[(&'static str, &'static str)], down: &[&str]) -> Self {
        Self::with(routes, down, "").await
    }

    async fn with(routes: &[(&'static str, &'static str)], down: &[&str], more: &str) -> Self {
        // What these tests announce is to be found by nobody else, unless they say so.
        let on_start = more.strip_prefix("# full_sync: ").unwrap_or("off");
        let full_sync = format!("full_sync = {{ on_start = {on_start:?} }}\n");
        let mut toml = format!("{more}\n");
        let mut stores = BTreeMap::new();
        for (from, to) in routes {
            let (from, enabled) = (from.trim_start_matches('-'), !from.starts_with('-'));
            toml.push_str(&format!("[routes.{from}_to_{to}]\nfrom = {from:?}\nto = {to:?}\nenabled = {enabled}\n"));
            toml.push_str(&full_sync);
            for name in [from, to] {
                stores.entry(name).or_insert_with(|| {
                    let memory = Arc::new(MemoryStore::new(name, 1 << 30));
                    let faulty = Arc::new(FaultyStore::new(memory.clone()));
                    faulty.set_down(down.contains(&name));
                    (memory, faulty)
                });
            }
        }
        for (index, name) in stores.keys().enumerate() {
            toml.push_str(&format!("[stores.{name}]\nendpoint = \"http://{name}:{}\"\n", index + 1));
        }
        let config = Config::load(Some(("test", &toml)), std::iter::empty(), &[]).unwrap();
        let clock = Arc::new(SystemClock::new());
        let queue = Arc::new(ModelQueue::new(50, Duration::from_secs(60), clock.clone()));
        let parts = Parts {
            clock,
            entropy: Arc::new(Entropy::seeded(1)),
            queue: queue.clone(),
            commits: Arc::default(),
            stores: stores
                .iter()
                .map(|(name, (_, store))| ((*name).to_owned(), store.clone() as Arc<dyn Store>))
                .collect(),
            known_routes: Vec::new(),
            disk: None,
            overrides_file: None,
            tracer: Tracer::off(),
            queue_ended: CancellationToken::new(),
            close: None,
        };
        let app = App::build(&config, parts).await.unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Channel::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let shutdown = CancellationToken::new();
        let mut running = JoinSet::new();
        running.spawn(app.run(listener, shutdown.clone()));
        Self { stores, queue, channel: endpoint.connect_lazy(), shutdown, running }
    }

    fn receiver(&self) -> BlobReceiverServiceClient<Channel> {
        BlobReceiverServiceClient::new(self.channel.clone())
    }

    fn replication(&self) -> ReplicationServiceClient<Channel> {
        ReplicationServiceClient::new(self.channel.clone())
    }

    async fn put(&self, store: &str, text: &str) -> BlobRef {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let blob = DigestFunction::Sha256.ref_of(&bytes);
        let put = Put { blob, size: None, replace: false };
        self.stores[store].0.receive(put, stream::iter([Ok(bytes)]).boxed()).await.unwrap();
        blob
    }

    async fn holds(&self, store: &str, blob: BlobRef) -> bool {
        !self.stores[store].0.stat(&[blob]).await.unwrap().is_empty()
    }

    async fn send(&self, messages: Vec<v1::ReceiveBlobRequest>) -> Result<v1::ReceiveBlobResponse, Status> {
        self.receiver().receive_blob(stream::iter(messages)).await.map(tonic::Response::into_inner)
    }

    async fn enqueue(
        &self,
        source_store: &str,
        refs: impl IntoIterator<Item = String>,
    ) -> Result<v1::EnqueueBlobsResponse, Status> {
        let items = refs.into_iter().map(|r#ref| v1::EnqueueItem { r#ref, ..v1::EnqueueItem::default() });
        let request = v1::EnqueueBlobsRequest {
            source_store: source_store.to_owned(),
            items: items.collect(),
            issue_wait_token: false,
        };
        self.replication().enqueue_blobs(request).await.map(tonic::Response::into_inner)
    }

    async fn status(&self) -> v1::ReplicatorStatus {
        let response = self.replication().status(v1::StatusRequest::default()).await.unwrap();
        response.into_inner().status.unwrap()
    }

    async fn queued(&self) -> u64 {
        self.status().await.queue.unwrap().entries.unwrap()
    }

    /// Waits until it holds, with what it was about last if it never does.
    async fn until(&self, what: &str, holds: impl AsyncFn(&Self) -> bool) {
        for _ in 0..600 {
            if holds(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("never: {what}; {:#?}", self.status().await);
    }

    async fn stop(mut self) -> ExitSummary {
        self.shutdown.cancel();
        self.running.join_next().await.unwrap().unwrap().unwrap()
    }
}

fn header(blob: BlobRef, size: Option<u64>, source_store: &str) -> v1::ReceiveBlobRequest {
    let header = v1::BlobHeader {
        r#ref: blob.to_string(),
        size_bytes: size,
        source_store: source_store.to_owned(),
        ..v1::BlobHeader::default()
    };
    v1::ReceiveBlobRequest { part: Some(v1::receive_blob_request::Part::Header(header)) }
}

fn chunk(text: &str) -> v1::ReceiveBlobRequest {
    let bytes = Bytes::copy_from_slice(text.as_bytes());
    v1::ReceiveBlobRequest { part: Some(v1::receive_blob_request::Part::Chunk(bytes)) }
}

fn reason(status: &Status) -> String {
    status.get_error_details().error_info().map(|info| info.reason.clone()).unwrap_or_default()
}
