#![allow(clippy::unwrap_used, reason = "tests")]

mod limited;

use super::{Activity, Deps, NextHop, Policy, RouteSpec, Worker};
use crate::backoff::{Backoff, Patience};
use crate::blob::{BlobRef, DigestFunction};
use crate::clock::{Clock, Entropy, Monotonic};
use crate::fault::FaultKind;
use crate::limits::Limits;
use crate::peer::{Needs, Peer};
use crate::queue::failures::{FailedEntry, FailureFilter, Failures};
use crate::queue::model::ModelQueue;
use crate::queue::suite::claim_any;
use crate::queue::{Lane, LaneCounts, Origin, Push, Queue, RouteCounts, SyncId};
use crate::store::faulty::{FaultyStore, Trouble};
use crate::store::memory::MemoryStore;
use crate::store::{Disposition, PeerKind, Put, Store, StoreInfo};
use crate::telemetry::{TraceContext, Tracer};
use bytes::Bytes;
use futures::{StreamExt, stream};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tonic::Code;

mod outages;
mod packed;
mod shares;

/// Follows tokio's clock, which the tests pause.
#[derive(Debug)]
struct TokioClock {
    start: Instant,
    /// By so many seconds the wall clock is wrong.
    ahead: AtomicU64,
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        let ahead = Duration::from_secs(self.ahead.load(Ordering::Relaxed));
        UNIX_EPOCH + Duration::from_secs(1_767_225_600) + self.start.elapsed() + ahead
    }

    fn monotonic(&self) -> Monotonic {
        Monotonic::ZERO.saturating_add(self.start.elapsed())
    }
}

struct Place {
    faulty: Arc<FaultyStore>,
    memory: Arc<MemoryStore>,
    peer: Arc<Peer>,
}

/// Stores `a`, `b`, …, routes between them, and a worker for each route.
struct Lab {
    clock: Arc<TokioClock>,
    queue: Arc<ModelQueue>,
    places: BTreeMap<String, Place>,
    workers: Vec<Arc<Worker>>,
    limits: watch::Sender<Limits>,
    running: JoinSet<()>,
    stop: CancellationToken,
    abort: CancellationToken,
}

impl Lab {
    async fn new(routes: &[(&str, &str)]) -> Self {
        Self::with(routes, 4, false).await
    }

    async fn with(routes: &[(&str, &str)], workers: usize, receive_only: bool) -> Self {
        let clock = Arc::new(TokioClock { start: Instant::now(), ahead: AtomicU64::new(0) });
        let entropy = Arc::new(Entropy::seeded(1));
        let queue = Arc::new(ModelQueue::new(u64::MAX, Backoff::ENTRY.max(), clock.clone()));
        let mut places = BTreeMap::new();
        for name in routes.iter().flat_map(|(from, to)| [from, to]) {
            let needs = Needs {
                read: routes.iter().any(|(from, _)| from == name),
                hold: routes.iter().any(|(_, to)| to == name) && !receive_only,
            };
            let memory = Arc::new(MemoryStore::new(*name, 1 << 30));
            let faulty = Arc::new(FaultyStore::new(memory.clone()));
            let peer = Peer::new(*name, faulty.clone(), needs, None, clock.clone(), entropy.clone());
            places.insert((*name).to_owned(), Place { faulty, memory, peer });
        }
        let mut ids = Vec::new();
        for (from, to) in routes {
            ids.push(queue.register(&format!("{from}_{to}"), from, to).await.unwrap());
        }
        let hop = |index: usize| NextHop {
            route: ids[index],
            name: Arc::from(format!("{}_{}", routes[index].0, routes[index].1)),
            from: Arc::from(routes[index].0),
            to: Arc::from(routes[index].1),
        };
        let limits = watch::Sender::new(Limits::workers(workers));
        let (tracer, policy) = (Tracer::off(), Policy::default());
        let deps = Deps { queue: queue.clone(), clock: clock.clone(), entropy, tracer, policy };
        let worker = |(index, (from, to)): (usize, &(&str, &str))| {
            let spec = RouteSpec {
                name: hop(index).name,
                id: ids[index],
                from: places[*from].peer.clone(),
                to: places[*to].peer.clone(),
                limits: limits.subscribe(),
                bytes_in_flight: 128 << 20,
                receive_only,
                next: (0..routes.len()).filter(|next| routes[*next].0 == *to).map(hop).collect(),
            };
            Worker::new(spec, deps.clone())
        };
        let workers = routes.iter().enumerate().map(worker).collect();
        let (stop, abort) = (CancellationToken::new(), CancellationToken::new());
        Self { clock, queue, places, workers, limits, running: JoinSet::new(), stop, abort }
    }

    /// Stores that cannot pack: every blob is copied alone.
    async fn unpacked(routes: &[(&str, &str)], workers: usize) -> Self {
        let lab = Self::with(routes, workers, false).await;
        for name in lab.places.keys() {
            lab.cannot_pack(name).await;
        }
        lab
    }

    async fn cannot_pack(&self, name: &str) {
        let mut info = self.place(name).memory.info().await.unwrap();
        (info.abilities.packed, info.max_packed_bytes) = (false, None);
        self.place(name).faulty.set_info(Some(info));
    }

    fn start(&mut self) {
        for worker in &self.workers {
            self.running.spawn(worker.clone().run(self.stop.clone(), self.abort.clone()));
        }
    }

    /// Changes the policy of all workers, before they start.
    fn set_policy(&mut self, change: impl Fn(&mut Policy)) {
        for worker in &mut self.workers {
            let mut deps = worker.deps.clone();
            change(&mut deps.policy);
            *worker = Worker::new(worker.spec.clone(), deps);
        }
    }

    fn place(&self, name: &str) -> &Place {
        &self.places[name]
    }

    /// Writes a blob to a store.
    async fn put(&self, name: &str, bytes: &[u8]) -> BlobRef {
        let blob = DigestFunction::Sha256.ref_of(bytes);
        let put = Put { blob, size: None, replace: false };
        let bytes = stream::iter([Ok(Bytes::copy_from_slice(bytes))]).boxed();
        self.place(name).memory.receive(put, bytes).await.unwrap();
        blob
    }

    /// An announcement of a blob on the first route.
    fn a_push(&self, blob: BlobRef) -> Push {
        let spec = &self.workers[0].spec;
        Push {
            route: spec.id,
            blob,
            size: None,
            lane: Lane::Fresh,
            trace: None,
            visited: vec![spec.from.name().clone()],
            repair: false,
            origin: Origin::Announced,
        }
    }

    /// Pushes blobs onto every route from a store.
    async fn push(&self, from: &str, lane: Lane, blobs: &[BlobRef]) {
        let routes = self.workers.iter().filter(|worker| &**worker.spec.from.name() == from);
        let pushes = routes.flat_map(|worker| {
            blobs.iter().map(|blob| Push {
                route: worker.spec.id,
                lane,
                origin: if lane == Lane::Fresh { Origin::Announced } else { Origin::Sync(SyncId(1)) },
                visited: vec![Arc::from(from)],
                ..self.a_push(*blob)
            })
        });
        self.queue.push(pushes.collect(), Vec::new()).await.unwrap();
    }

    /// Writes and announces blobs with these numbers as their bytes.
    async fn announce(&self, from: &str, numbers: std::ops::Range<u32>) -> Vec<BlobRef> {
        let mut blobs = Vec::new();
        for number in numbers {
            blobs.push(self.put(from, &number.to_be_bytes()).await);
        }
        self.push(from, Lane::Fresh, &blobs).await;
        blobs
    }

    fn counts(&self, route: usize) -> RouteCounts {
        self.queue.counts(self.workers[route].spec.id)
    }

    fn fresh(&self, route: usize) -> LaneCounts {
        self.counts(route).fresh
    }

    fn left(&self) -> u64 {
        let left =
            |lane: LaneCounts| lane.ready.entries + lane.claimed.entries + lane.retrying.entries + lane.parked.entries;
        (0..self.workers.len()).map(|route| left(self.counts(route).fresh) + left(self.counts(route).backfill)).sum()
    }

    async fn until(&self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        let poll = async {
            while !is_so(self) {
                // The longer it takes, the less a moment matters.
                sleep((start.elapsed() / 100).max(Duration::from_millis(10))).await;
            }
        };
        let waited = timeout(Duration::from_hours(24), poll).await;
        assert!(waited.is_ok(), "{what}: {:?} {:?}", self.counts(0), self.workers[0].report());
    }

    async fn drain(&self) {
        self.until("drained", |lab| lab.left() == 0).await;
    }

    async fn stopped(&mut self) {
        self.stop.cancel();
        while let Some(ended) = self.running.join_next().await {
            ended.unwrap();
        }
    }

    async fn failed(&self) -> Vec<FailedEntry> {
        let route = self.workers[0].spec.id;
        self.queue.failures(route, FailureFilter::default(), None, usize::MAX).await.unwrap().failed
    }

    /// What the failures of any entry weigh at most, in thousandths of an answer.
    async fn most_charged(&self) -> u32 {
        self.failed().await.iter().map(|failed| failed.entry.weight.0).max().unwrap_or(0)
    }

    fn kinds(&self) -> Vec<FaultKind> {
        self.workers[0].report().errors.iter().map(|group| group.kind).collect()
    }
}

#[tokio::test(start_paused = true)]
async fn ten_thousand_entries_drain_with_four_workers() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.announce("a", 0..10_000).await;
    lab.start();
    lab.drain().await;
    lab.stopped().await;
    assert_eq!(lab.place("b").memory.len(), 10_000);
    assert_eq!(lab.place("b").faulty.receives(), 10_000);
    let (report, counts) = (lab.workers[0].report(), lab.counts(0));
    assert_eq!((counts.confirmed, counts.copied, counts.copied_bytes), (10_000, 10_000, 40_000));
    assert!(report.in_progress.is_empty() && report.errors.is_empty());
    assert_eq!(report.activity, Activity::Stopped);
}

#[tokio::test(start_paused = true)]
async fn a_lone_announcement_is_copied_at_once_while_idle() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.start();
    // Between two looks of an idle worker.
    sleep(Duration::from_millis(100_500)).await;
    lab.announce("a", 0..1).await;
    let start = Instant::now();
    lab.drain().await;
    assert!(start.elapsed() <= Duration::from_millis(20), "{:?}", start.elapsed());
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn one_store_fans_out_to_many() {
    let mut lab = Lab::new(&[("a", "b"), ("a", "c"), ("a", "d")]).await;
    lab.announce("a", 0..50).await;
    lab.start();
    lab.drain().await;
    for to in ["b", "c", "d"] {
        assert_eq!(lab.place(to).memory.len(), 50);
    }
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_passes_everything_on_even_what_was_nothing_new() {
    let mut lab = Lab::new(&[("a", "b"), ("b", "c")]).await;
    lab.put("b", &3u32.to_be_bytes()).await;
    lab.announce("a", 0..50).await;
    lab.start();
    lab.drain().await;
    assert_eq!(lab.place("c").memory.len(), 50);
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn cycles_drain_and_copy_each_blob_once_a_hop() {
    for routes in [&[("a", "b"), ("b", "a")][..], &[("a", "b"), ("b", "c"), ("c", "a")][..]] {
        let mut lab = Lab::new(routes).await;
        lab.announce("a", 0..20).await;
        lab.announce("b", 20..40).await;
        lab.start();
        lab.drain().await;
        lab.stopped().await;
        let receives: u64 = lab.places.values().map(|place| place.faulty.receives()).sum();
        assert_eq!(receives, 40 * (routes.len() as u64 - 1), "{routes:?}");
        assert!(lab.places.values().all(|place| place.memory.len() == 40));
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_destination_charges_nobody_and_all_is_copied_once_it_is_back() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.place("b").faulty.set_down(true);
    lab.announce("a", 0..100).await;
    lab.start();
    sleep(Duration::from_hours(6)).await;
    let fresh = lab.fresh(0);
    assert_eq!((fresh.ready.entries, fresh.retrying.entries, fresh.parked.entries), (100, 0, 0), "{fresh:?}");
    assert_eq!(lab.workers[0].report().activity, Activity::WaitingForPeer(Arc::from("b")));
    assert!(lab.place("b").faulty.infos() < 6 * 60 * 20, "asked no more than 20 times a minute");
    lab.place("b").faulty.set_down(false);
    let start = Instant::now();
    lab.drain().await;
    assert!(start.elapsed() <= Duration::from_secs(15), "{:?}", start.elapsed());
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_dies_amid_copies_in_any_way_charges_nobody() {
    for code in [Code::Unavailable, Code::Unknown, Code::Internal, Code::ResourceExhausted, Code::Unauthenticated] {
        let mut lab = Lab::new(&[("a", "b")]).await;
        lab.start();
        lab.announce("a", 0..10).await;
        lab.drain().await;
        lab.place("b").faulty.set(Some(Trouble::Code(code)));
        lab.announce("a", 10..50).await;
        sleep(Duration::from_hours(3)).await;
        assert_eq!((lab.fresh(0).parked.entries, lab.left()), (0, 40), "{code:?}");
        // It says all the time what it is, as one does that is well: that weighs something each 40 minutes.
        assert!(lab.most_charged().await <= 4_000, "{code:?}");
        let errors = lab.workers[0].report().errors;
        let kind = match code {
            Code::ResourceExhausted => FaultKind::DestinationOverloaded,
            _ => FaultKind::DestinationUnavailable,
        };
        assert_eq!((errors[0].kind, errors[0].code), (kind, Some(code)));
        assert_eq!(&*errors[0].peer, "b");
        // While it says that it is well, it is tried about twice a second, one copy at a time.
        let tries = lab.place("b").faulty.receives();
        assert!(tries < 3 * 60 * 120, "{code:?}: {tries}");
        lab.place("b").faulty.set(None);
        lab.drain().await;
        lab.stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn both_down_at_start_begin_when_they_come_in_either_order() {
    let mut lab = Lab::new(&[("a", "b"), ("b", "a")]).await;
    lab.announce("a", 0..20).await;
    lab.announce("b", 20..40).await;
    for name in ["a", "b"] {
        lab.place(name).faulty.set_down(true);
    }
    lab.start();
    sleep(Duration::from_mins(10)).await;
    lab.place("b").faulty.set_down(false);
    sleep(Duration::from_mins(10)).await;
    assert_eq!(lab.left(), 40);
    lab.place("a").faulty.set_down(false);
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn every_lie_is_named_and_the_entry_stays() {
    let other = DigestFunction::Sha256.ref_of(b"other");
    let lies = [
        ("a", Trouble::WrongBytes, FaultKind::SourceBytesCorrupt),
        ("a", Trouble::ShortRead, FaultKind::ShortRead),
        ("a", Trouble::StatedSize(3), FaultKind::SourceSizeMismatch),
        ("a", Trouble::Missing, FaultKind::MissingAtSource),
        ("b", Trouble::ConfirmRef(other), FaultKind::DestinationConfirmedOther),
        ("b", Trouble::ConfirmSize(3), FaultKind::DestinationConfirmedOther),
        ("b", Trouble::Confirm(Disposition::Enqueued), FaultKind::DestinationConfirmedOther),
        ("b", Trouble::Confirm(Disposition::Consumed), FaultKind::DestinationConfirmedOther),
        ("b", Trouble::ConfirmUnread, FaultKind::DestinationConfirmedOther),
        ("b", Trouble::Reject, FaultKind::DestinationRejected),
    ];
    // What is sent whole cannot be confirmed unread.
    let packed = lies.iter().filter(|(_, trouble, _)| *trouble != Trouble::ConfirmUnread).map(|lie| (lie, true));
    for ((liar, trouble, kind), packed) in lies.iter().map(|lie| (lie, false)).chain(packed) {
        let (liar, kind) = (*liar, *kind);
        let mut lab = if packed { Lab::new(&[("a", "b")]).await } else { Lab::unpacked(&[("a", "b")], 4).await };
        let blobs = lab.announce("a", 0..1).await;
        lab.place(liar).faulty.set(Some(trouble.clone()));
        lab.start();
        lab.until("caught", |lab| lab.fresh(0).retrying.entries == 1).await;
        assert_eq!(lab.kinds(), [kind], "{trouble:?}");
        let errors = lab.workers[0].report().errors;
        assert_eq!((&*errors[0].peer, errors[0].example), (liar, Some(blobs[0])));
        assert!(lab.place("a").peer.is_closed() && lab.place("b").peer.is_closed(), "{trouble:?}");
        lab.until("parked", |lab| lab.fresh(0).parked.entries == 1).await;
        assert_eq!(lab.counts(0).confirmed, 0, "{trouble:?}");
        // An operator, a sync or another announcement revives it.
        lab.place(liar).faulty.set(None);
        lab.push("a", Lane::Fresh, &blobs).await;
        lab.drain().await;
        lab.stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_entry_parks_after_its_patience() {
    let patience = Patience::default();
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.announce("a", 0..1).await;
    lab.place("a").faulty.set(Some(Trouble::WrongBytes));
    lab.start();
    lab.until("parked", |lab| lab.fresh(0).parked.entries == 1).await;
    assert_eq!(lab.place("a").faulty.fetches(), u64::from(patience.park_after));
    let errors = lab.workers[0].report().errors;
    assert_eq!((errors[0].count, errors[0].charged), (patience.park_after.into(), patience.park_after.into()));
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_blob_announced_before_it_was_written_arrives() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let blob = DigestFunction::Sha256.ref_of(b"late");
    lab.push("a", Lane::Fresh, &[blob]).await;
    lab.start();
    sleep(Duration::from_mins(30)).await;
    assert_eq!(lab.fresh(0).retrying.entries, 1);
    lab.put("a", b"late").await;
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_peer_has_not_begun_with_is_sent_again_at_once_and_shown_nowhere() {
    let mut lab = Lab::with(&[("a", "b")], 4, false).await;
    lab.announce("a", 0..20).await;
    lab.place("b").faulty.set_times(Trouble::NotProcessed, 60);
    let start = Instant::now();
    lab.start();
    lab.drain().await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    assert_eq!(lab.place("b").faulty.receives(), 80);
    assert!(lab.workers[0].report().errors.is_empty(), "{:?}", lab.workers[0].report().errors);

    // One that never begins with anything is not asked for ever.
    lab.place("b").faulty.set(Some(Trouble::NotProcessed));
    lab.announce("a", 20..21).await;
    lab.until("it is given up for now", |lab| lab.fresh(0).retrying.entries == 1).await;
    assert_eq!((lab.place("b").faulty.receives() - 80) % 17, 0, "17 calls are one attempt");
    assert_eq!(lab.workers[0].report().errors[0].charged, 0);
    lab.place("b").faulty.set(None);
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_poison_entry_never_stops_the_others() {
    let poisons = [
        Trouble::Panic,
        Trouble::WrongBytes,
        Trouble::Code(Code::Unknown),
        Trouble::Code(Code::Unavailable),
        Trouble::Cut,
        Trouble::Hang,
    ];
    for poison in poisons {
        for workers in [1, 4] {
            let mut lab = Lab::with(&[("a", "b")], workers, false).await;
            let blobs = lab.announce("a", 0..500).await;
            for blob in [blobs[0], blobs[1]] {
                lab.place("a").faulty.set_for(blob, Some(poison.clone()));
            }
            lab.start();
            let start = Instant::now();
            lab.until("the others are copied", |lab| lab.counts(0).confirmed == 498).await;
            // Each time that it hangs costs a single worker the idle timeout.
            let limit = if poison == Trouble::Hang { Duration::from_mins(20) } else { Duration::from_mins(2) };
            assert!(start.elapsed() < limit, "{poison:?} {workers}: {:?}", start.elapsed());
            lab.announce("a", 500..600).await;
            lab.until("later ones, too", |lab| lab.counts(0).confirmed == 598).await;
            lab.stopped().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_blob_that_its_peer_always_fails_on_is_charged_and_parked_in_the_end() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let blobs = lab.announce("a", 0..1).await;
    lab.place("b").faulty.set_for(blobs[0], Some(Trouble::Code(Code::Internal)));
    lab.start();
    let mut number = 1;
    while lab.fresh(0).parked.entries == 0 {
        lab.announce("a", number..number + 1).await;
        number += 1;
        sleep(Duration::from_secs(10)).await;
        assert!(number < 2000, "{:?}", lab.counts(0));
    }
    lab.stopped().await;
    let errors = lab.workers[0].report().errors;
    assert_eq!(errors[0].kind, FaultKind::DestinationUnavailable);
    // Each weighs as much as the part of the others that succeed.
    assert!((10..13).contains(&errors[0].charged), "{}", errors[0].charged);
}

#[tokio::test(start_paused = true)]
async fn a_blob_for_which_a_store_has_no_room_is_not_charged_while_smaller_ones_fit() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let blobs = lab.announce("a", 0..1).await;
    lab.place("b").faulty.set_for(blobs[0], Some(Trouble::Code(Code::ResourceExhausted)));
    lab.start();
    for number in 1..300 {
        lab.announce("a", number..number + 1).await;
        sleep(Duration::from_secs(10)).await;
    }
    lab.until("the others are copied", |lab| lab.counts(0).confirmed == 299).await;
    let fresh = lab.fresh(0);
    assert_eq!((fresh.parked.entries, lab.most_charged().await), (0, 0), "{fresh:?}");
    lab.place("b").faulty.set_for(blobs[0], None);
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn panics_are_charged_to_the_entry() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.announce("a", 0..1).await;
    lab.place("b").faulty.set(Some(Trouble::Panic));
    lab.start();
    lab.until("parked", |lab| lab.fresh(0).parked.entries == 1).await;
    assert_eq!(lab.kinds(), [FaultKind::Panicked]);
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn stop_lets_copies_end_and_claims_no_more() {
    let mut lab = Lab::unpacked(&[("a", "b")], 4).await;
    lab.announce("a", 0..100).await;
    lab.place("b").faulty.set(Some(Trouble::Hang));
    lab.start();
    lab.until("in flight", |lab| lab.fresh(0).claimed.entries == 4).await;
    assert_eq!(lab.workers[0].report().in_progress.len(), 4);
    lab.stop.cancel();
    sleep(Duration::from_secs(1)).await;
    assert_eq!(lab.fresh(0).claimed.entries, 4, "still being copied");
    // The idle timeout ends them.
    lab.stopped().await;
    let fresh = lab.fresh(0);
    assert_eq!((fresh.claimed.entries, fresh.ready.entries, fresh.retrying.entries), (0, 96, 4));
    assert_eq!((lab.place("b").faulty.receives(), lab.most_charged().await), (4, 0));
}

#[tokio::test(start_paused = true)]
async fn abort_releases_what_is_in_flight_uncharged() {
    let mut lab = Lab::unpacked(&[("a", "b")], 4).await;
    lab.announce("a", 0..100).await;
    lab.place("b").faulty.set(Some(Trouble::Hang));
    lab.start();
    lab.until("in flight", |lab| lab.fresh(0).claimed.entries == 4).await;
    lab.abort.cancel();
    let start = Instant::now();
    lab.stopped().await;
    assert!(start.elapsed() < Duration::from_secs(1));
    let fresh = lab.fresh(0);
    assert_eq!((fresh.claimed.entries, fresh.ready.entries, fresh.retrying.entries), (0, 100, 0));
    assert!(lab.workers[0].report().in_progress.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stopped_before_it_starts_it_claims_nothing() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.announce("a", 0..10).await;
    lab.stop.cancel();
    lab.start();
    lab.stopped().await;
    assert_eq!((lab.fresh(0).ready.entries, lab.place("a").faulty.fetches()), (10, 0));
}

#[tokio::test(start_paused = true)]
async fn a_replicator_as_destination_opens_the_breaker_and_charges_nothing() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.announce("a", 0..10).await;
    let info = lab.place("b").memory.info().await.unwrap();
    lab.place("b").faulty.set_info(Some(StoreInfo { kind: PeerKind::Replicator, ..info }));
    lab.start();
    sleep(Duration::from_hours(1)).await;
    assert_eq!(lab.fresh(0).ready.entries, 10);
    assert_eq!(lab.place("b").faulty.receives(), 0);
    assert_eq!(lab.place("b").peer.snapshot().reason.unwrap().kind, FaultKind::WrongPeerKind);
    lab.place("b").faulty.set_info(None);
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_receive_only_route_settles_by_consumed() {
    let mut lab = Lab::with(&[("a", "b")], 4, true).await;
    lab.announce("a", 0..10).await;
    let info = lab.place("b").memory.info().await.unwrap();
    lab.place("b").faulty.set_info(Some(StoreInfo { kind: PeerKind::ReceiveOnly, ..info }));
    lab.place("b").faulty.set(Some(Trouble::Confirm(Disposition::Consumed)));
    lab.start();
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_swapped_store_is_caught_after_a_silence() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.start();
    lab.announce("a", 0..1).await;
    lab.drain().await;
    sleep(Duration::from_secs(68)).await;
    let info = lab.place("b").memory.info().await.unwrap();
    lab.place("b").faulty.set_info(Some(StoreInfo { store_id: Some("another".to_owned()), ..info }));
    lab.announce("a", 1..2).await;
    sleep(Duration::from_mins(1)).await;
    assert_eq!(lab.place("b").peer.snapshot().reason.unwrap().kind, FaultKind::StoreIdChanged);
    assert_eq!((lab.fresh(0).ready.entries, lab.place("b").faulty.receives()), (1, 1));
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn neither_lane_waits_for_the_other() {
    let mut lab = Lab::unpacked(&[("a", "b")], 10).await;
    let mut backfill = Vec::new();
    for number in 10_000..11_000u32 {
        backfill.push(lab.put("a", &number.to_be_bytes()).await);
    }
    lab.push("a", Lane::Backfill, &backfill).await;
    lab.announce("a", 0..1000).await;
    lab.place("a").faulty.set(Some(Trouble::Slow(Duration::from_millis(100))));
    lab.start();
    lab.until("half of the fresh ones", |lab| lab.fresh(0).ready.entries < 500).await;
    let left = lab.counts(0).backfill.ready.entries;
    assert!((850..=900).contains(&left), "{left}");
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_fails_makes_it_pause_and_loses_nothing() {
    let mut lab = Lab::unpacked(&[("a", "b")], 4).await;
    lab.announce("a", 0..100).await;
    lab.place("a").faulty.set(Some(Trouble::Slow(Duration::from_millis(100))));
    lab.start();
    lab.until("some are copied", |lab| lab.counts(0).confirmed > 10).await;
    lab.queue.set_failing(true);
    sleep(Duration::from_mins(10)).await;
    assert!(matches!(lab.workers[0].report().activity, Activity::QueueFailed(_)));
    assert_eq!(lab.kinds(), [FaultKind::QueueWriteFailed]);
    let failures = lab.queue.failed();
    assert!(failures > 100 && failures < 2000, "{failures}");
    assert_eq!(lab.fresh(0).ready.entries + lab.counts(0).confirmed, 100);
    lab.queue.set_failing(false);
    lab.drain().await;
    assert_eq!(lab.workers[0].report().activity, Activity::Ready);
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn what_no_retry_can_mend_is_parked_at_once() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let blob = lab.put("a", b"four").await;
    let mut info = lab.place("b").memory.info().await.unwrap();
    info.abilities.replace = false;
    lab.place("b").faulty.set_info(Some(info));
    let push = Push { repair: true, origin: Origin::Sync(SyncId(1)), ..lab.a_push(blob) };
    lab.queue.push(vec![push], Vec::new()).await.unwrap();
    lab.start();
    lab.until("parked", |lab| lab.fresh(0).parked.entries == 1).await;
    assert_eq!(lab.workers[0].report().errors[0].count, 1);
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_chain_inherits_lane_trace_and_visited_stores_and_nothing_else() {
    let mut lab = Lab::new(&[("a", "b"), ("b", "c"), ("b", "a"), ("c", "d")]).await;
    let blob = lab.put("a", b"four").await;
    let trace = TraceContext { traceparent: "00-11-22-01".to_owned(), tracestate: String::new() };
    let push = Push {
        repair: true,
        trace: Some(trace.clone()),
        lane: Lane::Backfill,
        origin: Origin::Sync(SyncId(1)),
        ..lab.a_push(blob)
    };
    lab.queue.push(vec![push], Vec::new()).await.unwrap();
    // The next hop's destination is away, so that its entry can be looked at.
    lab.place("c").faulty.set_down(true);
    lab.start();
    lab.until("chained", |lab| lab.counts(1).backfill.ready.entries == 1).await;
    lab.stopped().await;
    let route = lab.workers[1].spec.id;
    let claims =
        claim_any(&*lab.queue, route, Lane::Backfill, 9, UNIX_EPOCH + Duration::from_secs(1 << 33)).await.unwrap();
    let entry = claims[0].entry();
    assert_eq!((entry.blob, entry.size, entry.lane, entry.repair), (blob, Some(4), Lane::Backfill, false));
    assert_eq!(entry.trace.as_ref(), Some(&trace));
    assert_eq!(entry.visited.iter().map(|store| &**store).collect::<Vec<_>>(), ["a", "b"]);
    assert!(entry.syncs.is_empty());
    assert_eq!(lab.left(), 1, "and nothing goes back to a");
}
