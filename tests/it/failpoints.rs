//! Every failpoint with every action, in the real programs: whatever fails, nothing that was acked is lost, nothing wrong
//! arrives, and nobody waits for ever.
//!
//! A handful of places is armed, each to fire once, and a load passes through all of them until each has fired. A process
//! that ends by it is started again with the rest; one that does not must work on. In the end it is killed and started
//! without faults, and everything that was ever acked is looked for.

use crate::harness::{
    Reader, Receiver, Replication, Server, World, announce, blob, fetch, queued, reader, receiver, replication, send,
};
use blobferry::blob::BlobRef;
use blobferry::internal::failpoint;
use blobferry::v1 as pb;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// Worlds at a time.
const WORLDS: u64 = 4;
/// How long a call may take. One that reaches a process in trouble may never be answered, which is the caller's to notice.
const CALL: Duration = Duration::from_secs(3);
/// How long the places of a case may take to fire, and a process may take to get over it.
const PATIENCE: Duration = Duration::from_secs(60);

const ACTIONS: [&str; 4] = ["error", "panic", "delay(20)", "abort"];

/// Places that are armed together.
#[derive(Debug)]
struct Case {
    action: &'static str,
    places: Vec<&'static str>,
}

fn is_of_store(place: &str) -> bool {
    place.starts_with("store.")
}

fn cases() -> VecDeque<Case> {
    let names = failpoint::ALL.iter().map(|point| point.name());
    let (store, replicator): (Vec<_>, Vec<_>) = names.partition(|name| is_of_store(name));
    let mut cases = VecDeque::new();
    for action in ACTIONS {
        // Few where each ends the process, so that what goes wrong can be told from its neighbours.
        let together = match action {
            "abort" => 4,
            "panic" => 3,
            "error" => 5,
            _ => 10,
        };
        for places in replicator.chunks(together).chain(store.chunks(together)) {
            cases.push_back(Case { action, places: places.to_vec() });
        }
    }
    cases
}

#[test]
#[ignore = "a matter of size: make test-slow"]
fn every_failpoint_with_every_action_loses_nothing() {
    let expected: BTreeSet<(&str, &str)> =
        ACTIONS.iter().flat_map(|action| failpoint::ALL.iter().map(|point| (*action, point.name()))).collect();
    let (cases, walked) = (Mutex::new(cases()), Mutex::new(BTreeSet::new()));
    std::thread::scope(|scope| {
        for number in 0..WORLDS {
            let (cases, walked) = (&cases, &walked);
            scope.spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let mut stage = Stage::new(number);
                loop {
                    let Some(case) = cases.lock().pop_front() else { return };
                    let start = Instant::now();
                    runtime.block_on(stage.walk(&case));
                    walked.lock().extend(case.places.iter().map(|place| (case.action, *place)));
                    println!("{:.1} s: {case:?}", start.elapsed().as_secs_f64());
                }
            });
        }
    });
    assert_eq!(walked.into_inner(), expected);
}

/// What a fault is injected into, and what is known of it.
struct Stage {
    _world: World,
    source: Server,
    destination: Server,
    replicator: Server,
    seed: u64,
    /// All blobs that were ever made.
    made: BTreeMap<BlobRef, Vec<u8>>,
    /// Acked by the replicator, or by the destination itself, since the last look.
    acked: BTreeSet<BlobRef>,
    /// Found at the destination with the right bytes.
    right: BTreeSet<BlobRef>,
    /// Small blobs that the source holds, announced in an earlier round.
    known: Vec<BlobRef>,
}

/// Connections for one round.
struct Calls {
    operator: Replication,
    announcer: Receiver,
    source: Receiver,
    destination: Receiver,
    reader: Reader,
}

/// The answer of a call, if it comes in time.
async fn try_call<T, E>(call: impl Future<Output = Result<T, E>>) -> Option<T> {
    tokio::time::timeout(CALL, call).await.ok()?.ok()
}

impl Stage {
    fn new(number: u64) -> Self {
        let world = World::new();
        let (source, destination) = (world.store("source"), world.store("destination"));
        let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
        let (made, acked, right, known) = (BTreeMap::new(), BTreeSet::new(), BTreeSet::new(), Vec::new());
        Self { _world: world, source, destination, replicator, seed: number << 32, made, acked, right, known }
    }

    fn subject(&mut self, case: &Case) -> &mut Server {
        if is_of_store(case.places[0]) { &mut self.destination } else { &mut self.replicator }
    }

    async fn walk(&mut self, case: &Case) {
        let deadline = Instant::now() + PATIENCE;
        let mut left: BTreeSet<&str> = case.places.iter().copied().collect();
        while !left.is_empty() {
            let rules: Vec<String> = left.iter().map(|place| format!("{place}=1*{}", case.action)).collect();
            let server = self.subject(case);
            server.kill();
            let logged = server.said().len();
            let mut ended = server.ended_starting(&[(failpoint::VARIABLE, &rules.join(";"))]);
            while ended.is_none() && !left.is_empty() {
                self.round().await;
                let server = self.subject(case);
                ended = server.ended();
                // Read after it was seen to have ended, so that its last word is there.
                forget_fired(&mut left, &server.said()[logged..]);
                assert!(Instant::now() < deadline, "{case:?}: never fired: {left:?}");
            }
            let said = self.subject(case).said()[logged..].to_owned();
            forget_fired(&mut left, &said);
            match ended {
                Some(status) => check_end(case, status, &said),
                None => self.works_on(case, deadline).await,
            }
        }
        self.subject(case).kill();
        self.subject(case).again();
        self.check(case).await;
    }

    /// A process that got over its faults by itself must do what it is for, or end.
    async fn works_on(&mut self, case: &Case, deadline: Instant) {
        loop {
            let before: Vec<BlobRef> = self.acked.iter().copied().collect();
            self.round().await;
            let new: Vec<BlobRef> = self.acked.iter().filter(|blob| !before.contains(blob)).copied().collect();
            let server = self.subject(case);
            if let Some(status) = server.ended() {
                let said = server.said();
                return check_end(case, status, &said);
            }
            if let (false, Some(mut calls)) = (new.is_empty(), self.calls().await) {
                let refs: Vec<String> = new.iter().map(ToString::to_string).collect();
                for _ in 0..20 {
                    let stat = calls.reader.stat_blobs(pb::StatBlobsRequest { refs: refs.clone() });
                    if try_call(stat).await.is_some_and(|found| found.into_inner().blobs.len() == refs.len()) {
                        return;
                    }
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            assert!(Instant::now() < deadline, "{case:?}: it neither works nor ends: {}", self.subject(case).said());
        }
    }

    async fn calls(&self) -> Option<Calls> {
        // Not with the harness' own, which insist.
        let channel = async |server: &Server| {
            let endpoint = tonic::transport::Endpoint::from_shared(server.url()).unwrap();
            try_call(endpoint.connect()).await
        };
        let (source, destination) = (channel(&self.source).await?, channel(&self.destination).await?);
        let replicator = channel(&self.replicator).await?;
        Some(Calls {
            operator: Replication::new(replicator.clone()),
            announcer: Receiver::new(replicator),
            source: Receiver::new(source),
            destination: Receiver::new(destination.clone()),
            reader: Reader::new(destination).max_decoding_message_size(4 << 20),
        })
    }

    fn make(&mut self, size: usize) -> (BlobRef, Vec<u8>) {
        self.seed += 1;
        let (blob, bytes) = blob(self.seed, size);
        self.made.insert(blob, bytes.clone());
        (blob, bytes)
    }

    /// One of everything, whatever becomes of it.
    async fn round(&mut self) {
        let Some(mut calls) = self.calls().await else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            return;
        };
        // Once more, at the end of the last round and now: both sides are asked before these are sent again.
        self.announce_known(&mut calls).await;
        // Announced before it is written: it fails at first.
        let early = self.make(2_000);
        if try_call(announce(&mut calls.operator, "a", &[early.0])).await.is_some() {
            self.acked.insert(early.0);
        }
        // From a megabyte on, both sides are asked before a blob is sent whose size is known, as it is after a sync.
        let blobs = [self.make(0), self.make(1_000), self.make(5_000), self.make(100_000), self.make(1 << 20)];
        let mut known = Vec::new();
        for (blob, bytes) in &blobs {
            if try_call(send(&mut calls.source, *blob, bytes)).await.is_some() && bytes.len() < 10_000 {
                known.push(*blob);
            }
        }
        let refs = [blobs[0].0, blobs[3].0];
        if try_call(announce(&mut calls.operator, "a", &refs)).await.is_some() {
            self.acked.extend(refs);
        }
        for (blob, bytes) in &blobs[1..3] {
            if try_call(send(&mut calls.announcer, *blob, bytes)).await.is_some() {
                self.acked.insert(*blob);
            }
        }
        try_call(calls.operator.list_failures(pb::ListFailuresRequest::default())).await;
        try_call(send(&mut calls.source, early.0, &early.1)).await;
        let all = pb::FailureSelection { all: true, ..Default::default() };
        let retry = pb::RetryFailuresRequest { selection: Some(all), ..Default::default() };
        try_call(calls.operator.retry_failures(retry)).await;
        // Written to the destination itself, which acks it too.
        for size in [3_000, 80_000] {
            let (blob, bytes) = self.make(size);
            if try_call(send(&mut calls.destination, blob, &bytes)).await.is_some() {
                self.acked.insert(blob);
                try_call(fetch(&mut calls.reader, blob)).await;
            }
        }
        // The last of the blobs was not announced: a sync finds it.
        let sync = try_call(calls.operator.trigger_full_sync(pb::TriggerFullSyncRequest::default())).await;
        if let Some(id) = sync.and_then(|sync| sync.into_inner().full_sync).map(|sync| sync.id) {
            for _ in 0..40 {
                let request = pb::GetFullSyncRequest { id: id.clone(), ..Default::default() };
                let now = try_call(calls.operator.get_full_sync(request)).await;
                let state = now.and_then(|now| now.into_inner().full_sync).map(|sync| sync.state());
                if state != Some(pb::FullSyncState::Running) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        }
        let refs = self.made.keys().rev().take(10).map(ToString::to_string).collect();
        try_call(calls.reader.stat_blobs(pb::StatBlobsRequest { refs })).await;
        self.known = known;
        self.announce_known(&mut calls).await;
    }

    async fn announce_known(&mut self, calls: &mut Calls) {
        if !self.known.is_empty() && try_call(announce(&mut calls.operator, "a", &self.known)).await.is_some() {
            self.acked.extend(&self.known);
        }
    }

    /// Without faults: all that was acked is at the destination, or parked with a cause, and all that is there is right.
    async fn check(&mut self, case: &Case) {
        let deadline = Instant::now() + PATIENCE;
        let mut operator = replication(&self.replicator).await;
        let mut at_destination = reader(&self.destination).await;
        // The files that are written here prove that a writer is not held up either.
        let (blob, bytes) = self.make(90_000);
        send(&mut receiver(&self.source).await, blob, &bytes).await.unwrap();
        announce(&mut operator, "a", &[blob]).await.unwrap();
        self.acked.insert(blob);
        let parked = loop {
            let status = crate::harness::route(&mut operator).await;
            let lanes = status.queued.unwrap();
            let parked: u64 = [lanes.fresh, lanes.backfill]
                .into_iter()
                .map(|lane| lane.unwrap().parked.unwrap().entries.unwrap())
                .sum();
            if queued(&status) == parked {
                break parked;
            }
            assert!(Instant::now() < deadline, "{case:?}: it does not drain: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        };
        let request = pb::ListFailuresRequest { page_size: 1_000, ..Default::default() };
        let failures = operator.list_failures(request).await.unwrap().into_inner().failures;
        assert_eq!(failures.len() as u64, parked, "{case:?}");
        let mut given_up = BTreeSet::new();
        for failed in &failures {
            let cause = failed.cause.as_ref().unwrap();
            assert_ne!(cause.kind(), pb::FaultKind::Unspecified, "{case:?}: {failed:?}");
            given_up.insert(failed.r#ref.parse::<BlobRef>().unwrap());
        }
        let request = pb::EnumerateBlobsRequest::default();
        let mut listing = at_destination.enumerate_blobs(request).await.unwrap().into_inner();
        let mut held = BTreeSet::new();
        while let Some(page) = listing.message().await.unwrap() {
            held.extend(page.blobs.iter().map(|meta| meta.r#ref.parse::<BlobRef>().unwrap()));
        }
        for blob in std::mem::take(&mut self.acked) {
            assert!(held.contains(&blob) || given_up.contains(&blob), "{case:?}: {blob} was acked and is lost");
        }
        for blob in held {
            if self.right.insert(blob) {
                let there = fetch(&mut at_destination, blob).await.unwrap();
                assert!(self.made.remove(&blob) == Some(there), "{case:?}: {blob} is wrong at the destination");
            }
        }
    }
}

/// Takes away the places that this log says have fired.
fn forget_fired(left: &mut BTreeSet<&str>, said: &str) {
    left.retain(|place| !said.contains(&format!("\"failpoint\":\"{place}\"")));
}

/// An end that nobody asked for is an abort, or a clean one with the exit code of a failure.
fn check_end(case: &Case, status: ExitStatus, said: &str) {
    if case.action == "abort" {
        assert_eq!(status.signal(), Some(6), "{case:?}: {status}: {said}");
    } else {
        assert!(!case.action.starts_with("delay"), "{case:?}: {status}: {said}");
        // 101 is Rust's own, for a panic before anything runs.
        let codes: &[_] = if case.action == "panic" { &[Some(1), Some(101)] } else { &[Some(1)] };
        assert!(codes.contains(&status.code()), "{case:?}: {status}: {said}");
    }
}
