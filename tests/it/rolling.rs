//! Rolling restarts: told to stop and started again, over and over, while producers announce and operators ask.

use crate::harness::{
    PATIENCE, Receiver, Replication, Server, World, announce, blob, held, messages, queued, reader, reason, receiver,
    replication, route, send, until,
};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use futures::StreamExt as _;
use parking_lot::Mutex;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

/// How often it is restarted.
const RESTARTS: u64 = 10;
/// Producers at a time.
const PRODUCERS: u64 = 4;
/// Announcements that must have been acked since the last start before the next restart.
const BETWEEN: usize = 25;

/// What everybody knows.
#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acked: Mutex<Vec<BlobRef>>,
    /// How calls failed before a retry healed them, and how often.
    failed: Mutex<BTreeMap<String, u64>>,
}

impl Shared {
    fn is_over(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn acks(&self) -> usize {
        self.acked.lock().len()
    }

    /// A call that is made again until it is answered well.
    fn call<'a>(&'a self, what: &'static str) -> Call<'a> {
        Call { shared: self, what, deadline: Instant::now() + PATIENCE }
    }
}

/// A call, as often as it takes.
struct Call<'a> {
    shared: &'a Shared,
    what: &'static str,
    deadline: Instant,
}

impl Call<'_> {
    /// The answer, or a pause before the next try. A failure that a retry does not heal ends the test.
    async fn heard<T>(&self, answer: Result<T, Status>) -> Option<T> {
        let Self { shared, what, deadline } = self;
        match answer {
            Ok(answer) => Some(answer),
            Err(status) => {
                // What the protocol promises to producers: of what the replicator answers, these are enough to be tried
                // again. A connection that ends under a call is told by the caller's own library, in its own words.
                let is_lost = status.source().is_some() && reason(&status).is_empty();
                assert!(
                    is_lost || matches!(status.code(), Code::Unavailable | Code::ResourceExhausted),
                    "{what} failed with what producers need not retry: {status:?}"
                );
                assert!(Instant::now() < *deadline, "{what}: no retry heals {status:?}");
                let how = format!("{what}: {:?}: {}", status.code(), status.message());
                *shared.failed.lock().entry(how).or_default() += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
                None
            }
        }
    }
}

/// A connection that comes about when it is used, and again after it was lost.
fn connection(to: &Server) -> Channel {
    Endpoint::from_shared(to.url()).unwrap().connect_lazy()
}

/// Stores blobs and announces them, in every way there is, until it is over.
async fn produce(number: u64, mut source: Receiver, at: Channel, shared: Arc<Shared>) {
    let (mut by_ref, mut by_bytes) = (Replication::new(at.clone()), Receiver::new(at));
    for seed in number << 32.. {
        if shared.is_over() {
            return;
        }
        // Now and then one that takes several messages.
        let (blob, bytes) = blob(seed, if seed % 16 == 0 { 700 << 10 } else { 2000 });
        send(&mut source, blob, &bytes).await.unwrap();
        let call = shared.call(["EnqueueBlobs", "ReceiveBlob", "ReceiveBlob, slowly"][(seed % 3) as usize]);
        if seed % 3 == 0 {
            let answer = loop {
                let answer = announce(&mut by_ref, "a", &[blob]).await;
                if let Some(answer) = call.heard(answer).await {
                    break answer;
                }
            };
            assert!(answer.results[0].error.is_none(), "{answer:?}");
        } else {
            let pause = Duration::from_millis(if seed % 3 == 1 { 0 } else { 15 });
            let answer = loop {
                let answer = paced(&mut by_bytes, blob, &bytes, pause).await;
                if let Some(answer) = call.heard(answer).await {
                    break answer;
                }
            };
            assert_eq!(answer.disposition(), pb::Disposition::Enqueued);
        }
        shared.acked.lock().push(blob);
    }
}

/// Sends a blob in pieces with pauses between them, so that restarts come in the middle of it.
async fn paced(
    to: &mut Receiver,
    blob: BlobRef,
    bytes: &[u8],
    pause: Duration,
) -> Result<pb::ReceiveBlobResponse, Status> {
    let pieces = messages(blob, bytes, bytes.len() / 3);
    let stream = futures::stream::iter(pieces).then(move |piece| async move {
        tokio::time::sleep(pause).await;
        piece
    });
    to.receive_blob(stream).await.map(tonic::Response::into_inner)
}

/// Asks for the status, and waits for what was announced, until it is over.
async fn operate(at: Channel, shared: Arc<Shared>) {
    let mut operator = Replication::new(at);
    while !shared.is_over() {
        let call = shared.call("Status");
        while call.heard(operator.status(pb::StatusRequest::default()).await).await.is_none() {}
        let latest: Vec<_> = shared.acked.lock().iter().rev().take(10).map(ToString::to_string).collect();
        if latest.is_empty() {
            continue;
        }
        let request = pb::WaitReplicatedRequest {
            refs: latest,
            source_store: "a".to_owned(),
            max_wait: Some(prost_types::Duration { seconds: 1, nanos: 0 }),
            ..Default::default()
        };
        let call = shared.call("WaitReplicated");
        while call.heard(operator.wait_replicated(request.clone()).await).await.is_none() {}
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rolling_restarts_lose_nothing_and_fail_no_call_for_good() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let mut replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let shared = Arc::new(Shared::default());
    let mut tasks = JoinSet::new();
    for number in 0..PRODUCERS {
        tasks.spawn(produce(number, receiver(&source).await, connection(&replicator), shared.clone()));
    }
    tasks.spawn(operate(connection(&replicator), shared.clone()));
    for restart in 1..=RESTARTS {
        let before = shared.acks();
        let deadline = Instant::now() + PATIENCE;
        while shared.acks() < before + BETWEEN {
            if let Some(ended) = tasks_ended(&mut tasks).await {
                panic!("before restart {restart}: {ended}\n{}", replicator.said());
            }
            assert!(Instant::now() < deadline, "there is no load before restart {restart}");
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        replicator.signal(Signal::TERM);
        let status = replicator.wait();
        assert!(status.success(), "restart {restart}: {status}\n{}", replicator.said());
        replicator.again();
    }
    shared.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let mut operator = replication(&replicator).await;
    let drained = until("the queue has drained", async || {
        let route = route(&mut operator.clone()).await;
        (queued(&route) == 0).then_some(route)
    })
    .await;
    let acked = shared.acked.lock().clone();
    assert!(!shared.failed.lock().is_empty(), "no restart met a call");
    eprintln!("{} acked; failed and healed: {:#?}", acked.len(), shared.failed.lock());
    assert_eq!(held(&mut reader(&destination).await, &acked).await, acked.len(), "acked ones are lost: {drained:?}");
    let status = operator.status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    assert!(status.queue.unwrap().incidents.is_empty(), "{}", status.summary);
}

/// How a task ended before its time, if one has.
async fn tasks_ended(tasks: &mut JoinSet<()>) -> Option<String> {
    let ended = tokio::time::timeout(Duration::ZERO, tasks.join_next()).await.ok()??;
    Some(match ended {
        Ok(()) => "a task ended by itself".to_owned(),
        Err(error) => match error.try_into_panic() {
            Ok(panic) => panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "a task panicked".to_owned()),
            Err(error) => error.to_string(),
        },
    })
}
