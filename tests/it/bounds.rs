//! What is bounded in all calls together, over a queue that can be held up.

use crate::harness::{Replication, announce, blob, reason};
use async_trait::async_trait;
use blobferry::blob::{BlobRef, RefPrefix};
use blobferry::internal::app::{App, Parts};
use blobferry::internal::config::Config;
use blobferry::internal::queue::{
    Changes, Claim, ClaimRequest, Claimed, Oldest, Outcome, Push, Pushed, Queue, QueueError, RouteCounts, RouteId, Seq,
    State, StateWrite, SyncId, SyncTally, WholeQueue,
};
use blobferry::internal::queue::{Condition, QueueTrouble};
use blobferry::internal::queue::{DropEntries, Dropped};
use blobferry::internal::queue::{FailedEntry, FailureCursor, FailureFilter, FailurePage, Failures, Remedy};
use blobferry::internal::queue::{Known, Lookup};
use blobferry::internal::queue::{Storage, StorageFigures};
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Items of `EnqueueBlobs` in one call, and the calls that fill the bound on all of them.
const ITEMS: usize = 10_000;
const CALLS: usize = 20;

/// A queue whose pushes wait at a door.
struct Held {
    queue: Arc<dyn WholeQueue>,
    door: Semaphore,
    waiting: watch::Sender<usize>,
}

#[async_trait]
impl Queue for Held {
    async fn register(&self, name: &str, from: &str, to: &str) -> Result<RouteId, QueueError> {
        self.queue.register(name, from, to).await
    }

    async fn push(&self, pushes: Vec<Push>, state: Vec<StateWrite>) -> Result<Vec<Pushed>, QueueError> {
        self.waiting.send_modify(|waiting| *waiting += 1);
        drop(self.door.acquire().await);
        self.queue.push(pushes, state).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, QueueError> {
        self.queue.claim(request).await
    }

    async fn settle(&self, settled: Vec<(Claim, Outcome)>) -> Result<(), QueueError> {
        self.queue.settle(settled).await
    }

    fn counts(&self, route: RouteId) -> RouteCounts {
        self.queue.counts(route)
    }

    async fn oldest(&self, route: RouteId) -> Result<Oldest, QueueError> {
        self.queue.oldest(route).await
    }

    fn sync_tally(&self, sync: SyncId) -> SyncTally {
        self.queue.sync_tally(sync)
    }

    fn subscribe(&self, route: RouteId) -> watch::Receiver<Changes> {
        self.queue.subscribe(route)
    }
}

#[async_trait]
impl State for Held {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, QueueError> {
        self.queue.get(key).await
    }

    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        self.queue.list(prefix, limit).await
    }

    async fn write(&self, writes: Vec<StateWrite>) -> Result<(), QueueError> {
        self.queue.write(writes).await
    }
}

#[async_trait]
impl Failures for Held {
    async fn failures(
        &self,
        route: RouteId,
        filter: FailureFilter,
        after: Option<FailureCursor>,
        limit: usize,
    ) -> Result<FailurePage, QueueError> {
        self.queue.failures(route, filter, after, limit).await
    }

    async fn failures_of(&self, route: RouteId, blobs: Vec<BlobRef>) -> Result<Vec<FailedEntry>, QueueError> {
        self.queue.failures_of(route, blobs).await
    }

    async fn remedy(&self, route: RouteId, seqs: Vec<Seq>, remedy: Remedy) -> Result<u64, QueueError> {
        self.queue.remedy(route, seqs, remedy).await
    }
}

#[async_trait]
impl DropEntries for Held {
    async fn drop_entries(&self, route: RouteId, max: usize) -> Result<Dropped, QueueError> {
        self.queue.drop_entries(route, max).await
    }
}

#[async_trait]
impl Lookup for Held {
    async fn look_up(&self, blobs: Vec<(RouteId, BlobRef)>) -> Result<Vec<Known>, QueueError> {
        self.queue.look_up(blobs).await
    }

    async fn find(
        &self,
        routes: Vec<RouteId>,
        prefix: RefPrefix,
        most: usize,
    ) -> Result<Option<BTreeSet<BlobRef>>, QueueError> {
        self.queue.find(routes, prefix, most).await
    }

    fn settlements(&self) -> watch::Receiver<u64> {
        self.queue.settlements()
    }
}

impl Condition for Held {
    fn trouble(&self) -> Option<QueueTrouble> {
        self.queue.trouble()
    }
}

impl Storage for Held {
    fn figures(&self) -> Option<StorageFigures> {
        self.queue.figures()
    }
}

/// Callers that announce much at once could take any amount of memory.
#[tokio::test(flavor = "multi_thread")]
async fn so_many_items_are_announced_at_once_and_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "[server]\ndata_dir = \"{}\"\n[stores.a]\nendpoint = \"http://127.0.0.1:1\"\n\
         [stores.b]\nendpoint = \"http://127.0.0.1:2\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n\
         full_sync = {{ on_start = \"off\" }}\n",
        dir.path().display()
    );
    let config = Config::load(Some(("test", &text)), std::iter::empty(), &[]).unwrap();
    let mut parts = Parts::real(&config).await.unwrap();
    let (door, waiting) = (Semaphore::new(0), watch::Sender::new(0));
    let held = Arc::new(Held { queue: parts.queue.clone(), door, waiting });
    parts.queue = held.clone();
    let app = App::build(&config, parts).await.unwrap();
    let (listener, stop) = (TcpListener::bind("127.0.0.1:0").await.unwrap(), CancellationToken::new());
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut serving = JoinSet::new();
    serving.spawn(app.run(listener, stop.clone()));

    let blobs: Vec<_> = (0..ITEMS as u64).map(|seed| blob(seed, 1).0).collect();
    let client = Replication::connect(url).await.unwrap();
    let mut calls = JoinSet::new();
    for _ in 0..CALLS {
        let (mut client, blobs) = (client.clone(), blobs.clone());
        calls.spawn(async move { announce(&mut client, "", &blobs).await.map(drop) });
    }
    held.waiting.subscribe().wait_for(|waiting| *waiting == CALLS).await.unwrap();
    let refused = announce(&mut client.clone(), "", &blobs[..1]).await.unwrap_err();
    assert_eq!((refused.code(), reason(&refused)), (tonic::Code::ResourceExhausted, "TOO_BUSY".to_owned()));
    held.door.add_permits(CALLS + 1);
    for call in calls.join_all().await {
        call.unwrap();
    }
    announce(&mut client.clone(), "", &blobs[..1]).await.unwrap();
    stop.cancel();
    serving.join_all().await.pop().unwrap().unwrap();
}
