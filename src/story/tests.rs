#![allow(clippy::unwrap_used, reason = "tests")]

use super::{BlobState, Holding, Story, StoryError, StoryParts, WaitEnd, WaitRequest, Waited};
use crate::announce::{Route, RouteTable};
use crate::backoff::Patience;
use crate::blob::{BlobRef, DigestFunction};
use crate::breaker::Reason;
use crate::clock::{Entropy, Monotonic, SystemClock};
use crate::fault::FaultKind;
use crate::peer::{Needs, Peer};
use crate::queue::failures::{Failures, Remedy};
use crate::queue::model::ModelQueue;
use crate::queue::suite::claim_any;
use crate::queue::{
    Claim, Failure, Lane, Origin, Outcome, Push, Queue, QueueError, RouteId, State, StateWrite, Weight,
};
use crate::store::faulty::FaultyStore;
use crate::store::memory::MemoryStore;
use crate::store::{Abilities, Put, Store, StoreInfo};
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};

fn bytes(number: u64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn blob(number: u64) -> BlobRef {
    DigestFunction::Sha256.ref_of(&bytes(number))
}

/// A queue that is moved by hand, and stores in memory.
struct Lab {
    queue: Arc<ModelQueue>,
    stores: BTreeMap<String, Arc<FaultyStore>>,
    routes: Vec<Route>,
    story: Arc<Story>,
}

impl Lab {
    /// Routes are `FROM_TO`; one that begins with `-` is disabled, with `!` no longer configured.
    async fn new(names: &[&str]) -> Self {
        Self::over(names, |state| state).await
    }

    /// The same, over another state than the queue's own.
    async fn over(names: &[&str], state: impl FnOnce(Arc<dyn State>) -> Arc<dyn State>) -> Self {
        let clock = Arc::new(SystemClock::new());
        let entropy = Arc::new(Entropy::seeded(1));
        let queue = Arc::new(ModelQueue::new(u64::MAX, Duration::from_hours(1), clock.clone()));
        let (mut routes, mut orphans, mut stores) = (Vec::new(), Vec::new(), BTreeMap::new());
        for name in names {
            let (from, to) = name.trim_start_matches(['-', '!']).split_once('_').unwrap();
            let id = queue.register(name, from, to).await.unwrap();
            let enabled = !name.starts_with(['-', '!']);
            let route = Route { name: (*name).into(), id, from: from.into(), to: to.into(), enabled };
            if name.starts_with('!') { &mut orphans } else { &mut routes }.push(route);
            for store in [from, to] {
                let memory = || Arc::new(FaultyStore::new(Arc::new(MemoryStore::new(store, 1 << 30))));
                stores.entry(store.to_owned()).or_insert_with(memory);
            }
        }
        let peers = stores.iter().map(|(name, store): (&String, &Arc<FaultyStore>)| {
            let peer = Peer::new(name.as_str(), store.clone(), Needs::default(), None, clock.clone(), entropy.clone());
            (name.clone(), peer)
        });
        let table = RouteTable::new(routes.clone(), stores.keys().map(|name| name.as_str().into()));
        let parts = StoryParts {
            lookup: queue.clone(),
            state: state(queue.clone()),
            routes: Arc::new(table),
            orphans: orphans.clone(),
            peers: peers.collect(),
            workers: Vec::new(),
            patience: Patience::default(),
            clock,
            entropy,
        };
        routes.extend(orphans);
        let story = Arc::new(Story::open(parts).await.unwrap());
        Self { queue, stores, routes, story }
    }

    fn route(&self, name: &str) -> RouteId {
        self.routes.iter().find(|route| &*route.name == name).unwrap().id
    }

    fn push(&self, route: &str, number: u64) -> Push {
        Push {
            route: self.route(route),
            blob: blob(number),
            size: None,
            lane: Lane::Fresh,
            trace: None,
            visited: vec!["a".into()],
            repair: false,
            origin: Origin::Announced,
        }
    }

    async fn announce(&self, route: &str, numbers: std::ops::Range<u64>) {
        let pushes = numbers.map(|number| self.push(route, number)).collect();
        self.queue.push(pushes, Vec::new()).await.unwrap();
    }

    async fn claims(&self, route: &str, max: usize) -> Vec<Claim> {
        claim_any(&*self.queue, self.route(route), Lane::Fresh, max, SystemTime::now()).await.unwrap()
    }

    /// Settles up to so many entries of a route.
    async fn settle(&self, route: &str, max: usize, outcome: Outcome) -> usize {
        let settled: Vec<_> = self.claims(route, max).await.into_iter().map(|claim| (claim, outcome.clone())).collect();
        let count = settled.len();
        self.queue.settle(settled).await.unwrap();
        count
    }

    async fn put(&self, store: &str, number: u64) {
        let put = Put { blob: blob(number), size: None, replace: false };
        self.stores[store].receive(put, stream::iter([Ok(bytes(number))]).boxed()).await.unwrap();
    }

    async fn wait(&self, numbers: std::ops::Range<u64>, seconds: u64) -> Waited {
        let max_wait = Duration::from_secs(seconds);
        let request = WaitRequest { blobs: numbers.map(blob).collect(), max_wait, ..WaitRequest::default() };
        self.story.wait(request).await.unwrap()
    }
}

fn confirmed() -> Outcome {
    Outcome::Confirmed { size: 8, copied: true, chained: Vec::new() }
}

fn failure() -> Failure {
    let now = SystemTime::now();
    Failure {
        kind: FaultKind::DestinationRejected,
        code: Some(tonic::Code::InvalidArgument),
        peer: "b".to_owned(),
        message: "not this one".to_owned(),
        first: now,
        last: now,
        count: 1,
    }
}

fn retry() -> Outcome {
    Outcome::Retry { due: SystemTime::now() + Duration::from_mins(10), failure: failure(), weight: Weight::ONE }
}

/// Blob, route, state of what is not confirmed.
fn left(waited: &Waited) -> Vec<(BlobRef, String, BlobState)> {
    let left = waited.unconfirmed.iter().flat_map(|blob| {
        blob.hops.iter().map(|(route, hop)| (blob.blob, waited.routes[*route].name.to_string(), hop.state))
    });
    left.collect()
}

#[tokio::test]
async fn a_wait_ends_when_the_last_is_confirmed_and_not_before() {
    let lab = Lab::new(&["a_b"]).await;
    lab.announce("a_b", 0..2000).await;
    let story = lab.story.clone();
    let blobs: Vec<BlobRef> = (0..2000).map(blob).chain([blob(0)]).collect();
    let request = WaitRequest { blobs, max_wait: Duration::from_mins(5), ..WaitRequest::default() };
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move { story.wait(request).await.unwrap() });
    for _ in 0..19 {
        assert_eq!(lab.settle("a_b", 100, confirmed()).await, 100);
        sleep(Duration::from_millis(5)).await;
        assert!(waiting.try_join_next().is_none());
    }
    lab.settle("a_b", 99, confirmed()).await;
    sleep(Duration::from_millis(100)).await;
    assert!(waiting.try_join_next().is_none(), "one is left");
    lab.settle("a_b", 1, confirmed()).await;
    let waited = waiting.join_next().await.unwrap().unwrap();
    assert_eq!((waited.end, waited.confirmed, waited.unconfirmed.len()), (WaitEnd::Confirmed, 2000, 0));
    // Again, it is over at once; so it is for nothing.
    assert_eq!(lab.wait(0..2000, 0).await.end, WaitEnd::Confirmed);
    assert_eq!(lab.wait(0..0, 60).await.end, WaitEnd::Confirmed);
}

#[tokio::test]
async fn when_the_time_is_over_it_says_how_each_stands() {
    let lab = Lab::new(&["a_b"]).await;
    lab.announce("a_b", 0..1).await;
    lab.settle("a_b", 1, confirmed()).await;
    lab.announce("a_b", 1..2).await;
    lab.settle("a_b", 1, Outcome::Park { failure: failure(), weight: Weight::ONE }).await;
    lab.announce("a_b", 2..3).await;
    lab.settle("a_b", 1, retry()).await;
    lab.announce("a_b", 3..4).await;
    let _claimed = lab.claims("a_b", 1).await;
    lab.announce("a_b", 4..5).await;
    lab.put("b", 5).await;
    let expected: Vec<_> = [
        (1, BlobState::Parked),
        (2, BlobState::Retrying),
        (3, BlobState::Claimed),
        (4, BlobState::Ready),
        (6, BlobState::NotQueued),
    ]
    .map(|(number, state)| (blob(number), "a_b".to_owned(), state))
    .into();
    for seconds in [0, 1] {
        let waited = lab.wait(0..7, seconds).await;
        assert_eq!((waited.end, waited.confirmed), (WaitEnd::TimedOut, 2));
        assert_eq!(left(&waited), expected);
        let retrying = &waited.unconfirmed[1].hops[0].1;
        assert_eq!((retrying.attempts, retrying.failure.as_ref().unwrap().kind), (1, FaultKind::DestinationRejected));
        assert!(retrying.due.is_some());
    }
}

#[tokio::test]
async fn it_ends_early_when_waiting_is_of_no_use_and_not_when_a_parked_one_was_revived() {
    let lab = Lab::new(&["a_b"]).await;
    lab.announce("a_b", 0..2).await;
    lab.settle("a_b", 2, Outcome::Park { failure: failure(), weight: Weight::ONE }).await;
    lab.announce("a_b", 2..3).await;
    let seqs = |failed: Vec<crate::queue::failures::FailedEntry>| failed.iter().map(|one| one.entry.seq).collect();
    let failed = lab.queue.failures_of(lab.route("a_b"), vec![blob(1)]).await.unwrap();
    lab.queue.remedy(lab.route("a_b"), seqs(failed), Remedy::Discard).await.unwrap();
    let story = lab.story.clone();
    let blobs: Vec<BlobRef> = (0..3).map(blob).collect();
    let request = WaitRequest { blobs, max_wait: Duration::from_mins(5), ..WaitRequest::default() };
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move { story.wait(request).await.unwrap() });
    sleep(Duration::from_millis(50)).await;
    assert!(waiting.try_join_next().is_none(), "one moves still");
    // Before the last comes to rest, the parked one is announced again.
    let ready = lab.claims("a_b", 1).await;
    lab.announce("a_b", 0..1).await;
    lab.queue.settle(ready.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    sleep(Duration::from_millis(100)).await;
    assert!(waiting.try_join_next().is_none(), "the revived one moves");
    lab.settle("a_b", 1, Outcome::Park { failure: failure(), weight: Weight::ONE }).await;
    let waited = waiting.join_next().await.unwrap().unwrap();
    assert_eq!((waited.end, waited.confirmed), (WaitEnd::GivenUp, 1));
    let states: Vec<BlobState> = left(&waited).into_iter().map(|(_, _, state)| state).collect();
    assert_eq!(states, [BlobState::Parked, BlobState::Discarded]);
}

#[tokio::test]
async fn a_chain_is_waited_for_to_its_end() {
    let lab = Lab::new(&["a_b", "b_c", "-c_d"]).await;
    lab.announce("a_b", 0..1).await;
    let waited = lab.wait(0..1, 0).await;
    let states = |waited: &Waited| left(waited).into_iter().map(|(_, route, state)| (route, state)).collect::<Vec<_>>();
    assert_eq!(states(&waited), [("a_b".to_owned(), BlobState::Ready), ("b_c".to_owned(), BlobState::Upstream)]);
    let next = Push { origin: Origin::Chained, ..lab.push("b_c", 0) };
    lab.settle("a_b", 1, Outcome::Confirmed { size: 8, copied: true, chained: vec![next] }).await;
    assert_eq!(states(&lab.wait(0..1, 0).await), [("b_c".to_owned(), BlobState::Ready)]);
    lab.settle("b_c", 1, confirmed()).await;
    assert_eq!(lab.wait(0..1, 60).await.end, WaitEnd::Confirmed);

    // A parked hop ends the wait for those behind it; the first hop alone is confirmed.
    lab.announce("a_b", 1..2).await;
    lab.settle("a_b", 1, Outcome::Park { failure: failure(), weight: Weight::ONE }).await;
    let waited = lab.wait(1..2, 60).await;
    assert_eq!(waited.end, WaitEnd::GivenUp);
    assert_eq!(states(&waited), [("a_b".to_owned(), BlobState::Parked), ("b_c".to_owned(), BlobState::Upstream)]);
    let only = |route: &str| WaitRequest { blobs: vec![blob(1)], routes: vec![route.to_owned()], ..Default::default() };
    assert_eq!(left(&lab.story.wait(only("b_c")).await.unwrap()).len(), 1);
    let error = lab.story.wait(only("-c_d")).await.unwrap_err();
    assert!(matches!(error, StoryError::RouteNotTaken { .. }), "{error}");
}

#[tokio::test]
async fn a_destination_that_cannot_be_asked_is_unknown_and_never_confirmed() {
    let lab = Lab::new(&["a_b"]).await;
    lab.put("b", 0).await;
    lab.stores["b"].set_down(true);
    let waited = lab.wait(0..1, 1).await;
    assert_eq!((waited.end, left(&waited)[0].2), (WaitEnd::TimedOut, BlobState::Unknown));
    assert!(!waited.unconfirmed[0].hops[0].1.note.is_empty());
    // It comes back in the midst of a wait.
    let story = lab.story.clone();
    let request = WaitRequest { blobs: vec![blob(0)], max_wait: Duration::from_mins(5), ..WaitRequest::default() };
    let mut waiting = tokio::task::JoinSet::new();
    waiting.spawn(async move { story.wait(request).await.unwrap() });
    sleep(Duration::from_millis(50)).await;
    lab.stores["b"].set_down(false);
    assert_eq!(waiting.join_next().await.unwrap().unwrap().end, WaitEnd::Confirmed);

    // One that offers no stat will never say; what was confirmed here is remembered all the same.
    let lab = {
        let fresh = Lab::new(&["a_b"]).await;
        let mut info = fresh.stores["b"].info().await.unwrap();
        info.abilities = Abilities { stat: false, ..info.abilities };
        fresh.stores["b"].set_info(Some(info));
        fresh
    };
    lab.put("b", 0).await;
    let waited = lab.wait(0..1, 60).await;
    assert_eq!((waited.end, left(&waited)[0].2), (WaitEnd::GivenUp, BlobState::Unknown));
    lab.announce("a_b", 0..1).await;
    lab.settle("a_b", 1, confirmed()).await;
    assert_eq!(lab.wait(0..1, 60).await.end, WaitEnd::Confirmed);
}

#[tokio::test]
async fn the_callers_deadline_ends_a_wait_in_time() {
    let lab = Lab::new(&["a_b"]).await;
    lab.announce("a_b", 0..1).await;
    let begun = Instant::now();
    let deadline = Some(Duration::from_millis(700));
    let request =
        WaitRequest { blobs: vec![blob(0)], max_wait: Duration::from_mins(5), deadline, ..WaitRequest::default() };
    let waited = lab.story.wait(request).await.unwrap();
    assert_eq!(waited.end, WaitEnd::TimedOut);
    assert!(begun.elapsed() >= Duration::from_millis(200));
}

#[tokio::test]
async fn so_many_refs_wait_and_no_more() {
    let lab = Lab::new(&["a_b"]).await;
    lab.announce("a_b", 0..1).await;
    let mut waiting = tokio::task::JoinSet::new();
    let request = WaitRequest { blobs: vec![blob(0)], max_wait: Duration::from_mins(5), ..WaitRequest::default() };
    for _ in 0..512 {
        let (story, request) = (lab.story.clone(), request.clone());
        waiting.spawn(async move { story.wait(request).await });
    }
    while lab.story.room.available_permits() > 0 {
        sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(lab.story.wait(request.clone()).await, Err(StoryError::TooBusy)));
    waiting.abort_all();
    while waiting.join_next().await.is_some() {}
    let request = WaitRequest { max_wait: Duration::ZERO, ..request };
    assert_eq!(lab.story.wait(request).await.unwrap().end, WaitEnd::TimedOut, "who goes away leaves nothing behind");
}

#[tokio::test]
async fn a_token_stands_for_what_was_announced() {
    let lab = Lab::new(&["a_b", "b_c"]).await;
    let (token, writes) = lab.story.issue_token("b", vec![blob(0), blob(1)]);
    lab.queue.write(writes).await.unwrap();
    lab.announce("b_c", 0..2).await;
    let request = WaitRequest { token: Some(token), ..WaitRequest::default() };
    let waited = lab.story.wait(request.clone()).await.unwrap();
    assert_eq!((waited.unconfirmed.len(), waited.routes.len()), (2, 1), "only what starts at b");
    lab.settle("b_c", 2, confirmed()).await;
    assert_eq!(lab.story.wait(request).await.unwrap().end, WaitEnd::Confirmed);
    let unknown = WaitRequest { token: Some("A".repeat(26)), ..WaitRequest::default() };
    assert!(matches!(lab.story.wait(unknown).await, Err(StoryError::UnknownToken(_))));
}

/// A state whose reads wait at a door.
struct HeldUp {
    state: Arc<dyn State>,
    door: Semaphore,
    waiting: AtomicUsize,
}

#[async_trait]
impl State for HeldUp {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, QueueError> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(self.door.acquire().await);
        self.state.get(key).await
    }

    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        self.state.list(prefix, limit).await
    }

    async fn write(&self, writes: Vec<StateWrite>) -> Result<(), QueueError> {
        self.state.write(writes).await
    }
}

/// The refs of a token take memory before it is known whether there is room for those who wait.
#[tokio::test]
async fn so_many_tokens_are_read_at_once_and_no_more() {
    let mut held = None;
    let lab = Lab::over(&["a_b"], |state| {
        let state = Arc::new(HeldUp { state, door: Semaphore::new(0), waiting: AtomicUsize::new(0) });
        held = Some(state.clone());
        state
    })
    .await;
    let held = held.unwrap();
    let (token, writes) = lab.story.issue_token("a", vec![blob(0)]);
    lab.queue.write(writes).await.unwrap();
    lab.announce("a_b", 0..1).await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (story, token) = (lab.story.clone(), Some(token.clone()));
        waiting.spawn(async move { story.wait(WaitRequest { token, ..WaitRequest::default() }).await });
    }
    // There is one thread: everybody gets as far as they can.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(held.waiting.load(Ordering::SeqCst), 2);
    held.door.add_permits(1);
    for waited in waiting.join_all().await {
        assert_eq!(waited.unwrap().end, WaitEnd::TimedOut);
    }
}

#[tokio::test]
async fn the_story_is_told_in_every_state() {
    let lab = Lab::new(&["a_b", "-a_c", "!a_d"]).await;
    lab.put("a", 0).await;
    let told = async |ask: bool| {
        let story = lab.story.explain(blob(0), ask).await.unwrap();
        let found = story.routes.into_iter().find(|told| &*told.route.name == "a_b").unwrap();
        (story.summary, found)
    };
    let (_, route) = told(true).await;
    assert_eq!(
        (route.state.state, &route.at_source, &route.at_destination),
        (BlobState::NotQueued, &Holding::Yes(8), &Holding::No)
    );
    assert!(route.summary.contains("run a full sync"), "{}", route.summary);

    lab.announce("a_b", 0..1).await;
    let (summary, route) = told(true).await;
    assert!(route.summary.starts_with("a_b: waits for its first attempt, queued "), "{}", route.summary);
    assert_eq!(summary, "ready on 1 of 2, not queued on 1 of 2 routes");
    let claim = lab.claims("a_b", 1).await;
    assert_eq!(told(true).await.1.state.state, BlobState::Claimed);
    lab.queue.settle(claim.into_iter().map(|claim| (claim, retry())).collect()).await.unwrap();
    let (_, route) = told(true).await;
    assert!(
        route.summary.contains("failed once, last ") && route.summary.contains("not this one"),
        "{}",
        route.summary
    );
    lab.announce("a_b", 0..1).await;
    lab.settle("a_b", 1, Outcome::Park { failure: failure(), weight: Weight::ONE }).await;
    let (_, route) = told(true).await;
    assert!(route.summary.contains("given up: it failed 2 times"), "{}", route.summary);
    let failed = lab.queue.failures_of(lab.route("a_b"), vec![blob(0)]).await.unwrap();
    let seqs = failed.iter().map(|one| one.entry.seq).collect();
    lab.queue.remedy(lab.route("a_b"), seqs, Remedy::Discard).await.unwrap();
    let (_, route) = told(true).await;
    assert!(route.summary.contains("discarded by an operator after destination_rejected"), "{}", route.summary);

    lab.announce("a_b", 0..1).await;
    lab.settle("a_b", 1, confirmed()).await;
    let (_, route) = told(true).await;
    assert!(route.summary.contains("does not hold it any more"), "{}", route.summary);
    lab.put("b", 0).await;
    let (_, route) = told(true).await;
    assert!(route.summary.starts_with("a_b: copied, and confirmed by b "), "{}", route.summary);
    let (_, route) = told(false).await;
    assert!(matches!(&route.at_source, Holding::Unknown { why, .. } if why == "a was not asked"));

    // A route that left the configuration is told of where it knows the blob.
    lab.announce("!a_d", 0..1).await;
    let story = lab.story.explain(blob(0), true).await.unwrap();
    let orphan = story.routes.iter().find(|told| told.orphaned).unwrap();
    assert!(orphan.summary.contains("left the configuration"), "{}", orphan.summary);
    assert!(!orphan.state.moves);
    let lab = Lab::new(&["a_b"]).await;
    lab.stores["b"].set_down(true);
    let story = lab.story.explain(blob(0), true).await.unwrap();
    assert_eq!(story.routes[0].state.state, BlobState::Unknown);
    assert!(matches!(&story.routes[0].at_destination, Holding::Unknown { for_good: false, .. }));
    assert!(story.summary == "unknown" && story.routes[0].summary.contains("not known"), "{story:?}");
}

#[tokio::test]
async fn the_story_says_when_a_missing_blob_is_given_up() {
    let lab = Lab::new(&["a_b"]).await;
    lab.announce("a_b", 0..1).await;
    let summary = async || lab.story.explain(blob(0), true).await.unwrap().routes[0].summary.clone();
    let missed = |outcome| match outcome {
        Outcome::Retry { due, failure, .. } => Outcome::Retry {
            due,
            failure: Failure { kind: FaultKind::MissingAtSource, peer: "a".to_owned(), ..failure },
            weight: Weight(0),
        },
        other => other,
    };
    lab.settle("a_b", 1, missed(retry())).await;
    assert!(summary().await.ends_with("; it is parked if it stays missing for 2 h more"), "{}", summary().await);
    // What it met last was something else.
    lab.announce("a_b", 0..1).await;
    lab.settle("a_b", 1, retry()).await;
    assert!(!summary().await.contains("stays missing"), "{}", summary().await);
}

#[tokio::test]
async fn the_story_says_what_keeps_a_blob_from_being_copied() {
    let lab = Lab::new(&["a_b"]).await;
    lab.put("a", 0).await;
    lab.announce("a_b", 0..1).await;
    let summary = async || lab.story.explain(blob(0), true).await.unwrap().routes[0].summary.clone();
    assert!(summary().await.starts_with("a_b: waits for its first attempt"), "{}", summary().await);
    let corrupt = Failure { kind: FaultKind::SourceBytesCorrupt, peer: "a".to_owned(), ..failure() };
    lab.settle("a_b", 1, Outcome::Park { failure: corrupt, weight: Weight::ONE }).await;
    assert!(
        summary().await.ends_with("; the bytes at a are damaged: blobferry put --replace mends it there"),
        "{}",
        summary().await
    );
    lab.announce("a_b", 0..1).await;
    let other = Reason::new(FaultKind::StoreIdChanged, "another store answers");
    lab.story.parts.peers["b"].state().is_another(StoreInfo::of_own("x", "memory"), other, Monotonic::ZERO, 0.5);
    assert!(summary().await.ends_with("; the route is blocked: b cannot be used now"), "{}", summary().await);
}
