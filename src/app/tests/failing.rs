//! A queue that cannot write: refused, said, and over when it can again.

use super::{World, reason};
use crate::blob::DigestFunction;
use crate::pb::v1;
use crate::queue::model::ModelQueue;
use crate::queue::{
    Claim, ClaimRequest, Claimed, Oldest, Outcome, Push, Pushed, Queue, QueueError, RouteCounts, RouteId, State,
    StateWrite, SyncId, SyncTally,
};
use async_trait::async_trait;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::sync::watch;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// A model queue whose writes fail as long as told.
pub(super) struct FailingQueue {
    inner: ModelQueue,
    failing: AtomicBool,
}

impl FailingQueue {
    pub(super) fn new(inner: ModelQueue) -> Self {
        Self { inner, failing: AtomicBool::new(false) }
    }

    pub(super) fn set_failing(&self, failing: bool) {
        self.failing.store(failing, Ordering::SeqCst);
    }

    fn check(&self) -> Result<(), QueueError> {
        match self.failing.load(Ordering::SeqCst) {
            true => Err(QueueError::Write("the disk said no".to_owned())),
            false => Ok(()),
        }
    }
}

#[async_trait]
impl Queue for FailingQueue {
    async fn register(&self, name: &str, from: &str, to: &str) -> Result<RouteId, QueueError> {
        self.check()?;
        self.inner.register(name, from, to).await
    }

    async fn push(&self, pushes: Vec<Push>, state: Vec<StateWrite>) -> Result<Vec<Pushed>, QueueError> {
        self.check()?;
        self.inner.push(pushes, state).await
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, QueueError> {
        self.inner.claim(request).await
    }

    async fn settle(&self, settled: Vec<(Claim, Outcome)>) -> Result<(), QueueError> {
        self.check()?;
        self.inner.settle(settled).await
    }

    fn counts(&self, route: RouteId) -> RouteCounts {
        self.inner.counts(route)
    }

    async fn oldest(&self, route: RouteId) -> Result<Oldest, QueueError> {
        self.inner.oldest(route).await
    }

    fn sync_tally(&self, sync: SyncId) -> SyncTally {
        self.inner.sync_tally(sync)
    }

    fn subscribe(&self, route: RouteId) -> watch::Receiver<u64> {
        self.inner.subscribe(route)
    }
}

#[async_trait]
impl State for FailingQueue {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, QueueError> {
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        self.inner.list(prefix, limit).await
    }

    async fn write(&self, writes: Vec<StateWrite>) -> Result<(), QueueError> {
        self.check()?;
        self.inner.write(writes).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_write_refuses_says_so_and_is_found_well_without_an_announcement() {
    let world = World::start(&[("a", "b")], &["a", "b"]).await;
    let blob = DigestFunction::Sha256.ref_of(b"hello").to_string();
    let serves = async |world: &World| {
        let request = HealthCheckRequest { service: "blobferry.v1.BlobReceiverService".to_owned() };
        let answer = HealthClient::new(world.channel.clone()).check(request).await.unwrap().into_inner();
        answer.status() == ServingStatus::Serving
    };
    world.until("it serves", serves).await;
    world.queue.set_failing(true);
    let status = world.enqueue("", [blob.clone()]).await.unwrap_err();
    assert_eq!((status.code(), reason(&status).as_str()), (Code::Unavailable, "QUEUE_UNAVAILABLE"));
    let picture = world.status().await;
    assert_eq!(picture.state(), v1::ReplicatorState::NotAccepting);
    assert!(picture.summary.contains("the disk said no"), "{}", picture.summary);
    world.until("health says so", async |world| !serves(world).await).await;
    world.queue.set_failing(false);
    world.until("it serves again", serves).await;
    assert_eq!(world.queued().await, 0);
    world.enqueue("", [blob]).await.unwrap();
    assert_eq!(world.queued().await, 1);
    world.stop().await;
}
