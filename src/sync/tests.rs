#![allow(clippy::unwrap_used, reason = "tests")]

mod beginning;
mod ledger;
mod parts;
mod shelf;
mod whole;

use super::record::SyncRecord;
use super::{
    FullSyncs, SyncMode, SyncParts, SyncPhase, SyncRequest, SyncRoute, SyncSettings, SyncStartError, SyncState,
};
use crate::clock::ManualClock;
use crate::fault::FaultKind;
use crate::queue::{Lane, Origin, Push, Queue, RouteId, SyncId};
use crate::store::PeerKind;
use crate::telemetry::Tracer;
use ledger::{Ledger, Pages};
use shelf::{Shared, Shelf, Trouble, blob, store_ids};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const ROUTE: &str = "a_to_b";

struct Bench {
    ledger: Arc<Ledger>,
    source: Arc<Shelf>,
    destination: Arc<Shelf>,
    syncs: FullSyncs,
    clock: Arc<ManualClock>,
    settings: SyncSettings,
    receive_only: bool,
}

impl Bench {
    async fn new(source: Shelf, destination: Shelf) -> Self {
        Self::with(source, destination, SyncSettings::default(), false, Pages { swift: true, ..Pages::default() }).await
    }

    async fn with(source: Shelf, destination: Shelf, settings: SyncSettings, receive_only: bool, pages: Pages) -> Self {
        let (source, destination) = (Arc::new(source), Arc::new(destination));
        Self::over(Arc::new(Ledger::new(pages)), source, destination, settings, receive_only).await
    }

    async fn over(
        ledger: Arc<Ledger>,
        source: Arc<Shelf>,
        destination: Arc<Shelf>,
        settings: SyncSettings,
        receive_only: bool,
    ) -> Self {
        let route = SyncRoute {
            name: ROUTE.into(),
            id: RouteId(1),
            from_name: "a".into(),
            to_name: "b".into(),
            source: Arc::new(Shared(Arc::clone(&source))),
            destination: Arc::new(Shared(Arc::clone(&destination))),
            store_ids: store_ids(),
            receive_only,
        };
        let clock = Arc::new(ManualClock::default());
        let parts = SyncParts {
            queue: Arc::clone(&ledger) as _,
            clock: Arc::clone(&clock) as _,
            tracer: Tracer::off(),
            settings,
        };
        let syncs = FullSyncs::open(parts, vec![route]).await.unwrap();
        Self { ledger, source, destination, syncs, clock, settings, receive_only }
    }

    /// A new process over what the old one left on disk.
    async fn restarted(&self) -> Self {
        let ledger = Arc::new(self.ledger.after_restart());
        let (source, destination) = (Arc::clone(&self.source), Arc::clone(&self.destination));
        Self::over(ledger, source, destination, self.settings, self.receive_only).await
    }

    async fn start(&self) -> SyncRecord {
        self.syncs.start(request("")).await.unwrap().record
    }

    async fn until(&self, what: &str, reached: impl Fn(&SyncRecord) -> bool) -> SyncRecord {
        for _ in 0..10_000 {
            let record = self.syncs.last(ROUTE).unwrap();
            if reached(&record) {
                return record;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("never: {what}; {:?}", self.syncs.last(ROUTE));
    }

    async fn run(&self) -> SyncRecord {
        let id = self.start().await.id;
        let record = self.until("the end", |record| record.state != SyncState::Running).await;
        assert_eq!(record.id, id);
        assert_eq!(self.syncs.get(id).await.unwrap().as_ref(), Some(&record));
        assert!(record.end_time.is_some());
        assert_eq!(self.source.open.load(Ordering::SeqCst) + self.destination.open.load(Ordering::SeqCst), 0);
        record
    }

    fn pushed(&self) -> Vec<Push> {
        self.ledger.pages.lock().pushes.iter().flat_map(|(pushes, _)| pushes.clone()).collect()
    }
}

fn request(request_id: &str) -> SyncRequest {
    SyncRequest { route: ROUTE.into(), request_id: request_id.into(), ..SyncRequest::default() }
}

fn reason(record: &SyncRecord) -> (Option<FaultKind>, &str, &str) {
    assert_eq!(record.state, SyncState::Failed, "{record:?}");
    let failure = record.failure.as_ref().unwrap();
    (failure.kind, &failure.peer, &failure.message)
}

#[tokio::test(start_paused = true)]
async fn it_ends_at_every_size() {
    for count in [0, 1, 2, 999, 1000, 1001, 1023, 5000] {
        let same = Bench::new(Shelf::full(count), Shelf::full(count)).await;
        let record = same.run().await;
        assert_eq!((record.state, record.counts.source_blobs), (SyncState::Completed, count));
        assert!(same.pushed().is_empty());

        let empty = Bench::new(Shelf::full(count), Shelf::full(0)).await;
        let record = empty.run().await;
        assert_eq!((record.state, record.counts.missing), (SyncState::Completed, count));
        assert_eq!((record.counts.enqueued, record.tally.confirmed), (count, count));
        assert_eq!((record.counts.missing_bytes, record.counts.enqueued_bytes), (10 * count, 10 * count));
        assert_eq!(record.cursor, count.checked_sub(1).map(blob));

        let half = Shelf::of((0..count).step_by(2).map(|number| (number, 10)));
        let record = Bench::new(Shelf::full(count), half).await.run().await;
        assert_eq!((record.state, record.counts.missing), (SyncState::Completed, count / 2));

        let record = Bench::new(Shelf::full(0), Shelf::full(count)).await.run().await;
        assert_eq!((record.state, record.counts.extra), (SyncState::Completed, count));
        assert_eq!(record.counts.destination_blobs, count);
    }
}

#[tokio::test(start_paused = true)]
async fn a_million_blobs_that_both_sides_hold_end_completed() {
    let bench = Bench::new(Shelf::full(1_000_000), Shelf::full(1_000_000)).await;
    let record = bench.run().await;
    assert_eq!((record.state, record.counts.source_blobs), (SyncState::Completed, 1_000_000));
    assert_eq!((record.counts.destination_blobs, record.counts.enqueued), (1_000_000, 0));
    // No stream is held longer than its window.
    assert_eq!(bench.source.streams.load(Ordering::SeqCst), 10);
}

#[tokio::test(start_paused = true)]
async fn windows_that_fit_nothing_evenly_miss_nothing() {
    let settings = SyncSettings { window: 701, ..SyncSettings::default() };
    let swift = Pages { swift: true, ..Pages::default() };
    let third = Shelf::of((0..5000).step_by(3).map(|number| (number, 10)));
    let bench = Bench::with(Shelf::full(5000), third, settings, false, swift).await;
    let record = bench.run().await;
    assert_eq!((record.state, record.counts.missing), (SyncState::Completed, 3333));
    let expected: Vec<_> = (0..5000).filter(|number| number % 3 != 0).map(blob).collect();
    assert_eq!(bench.pushed().iter().map(|push| push.blob).collect::<Vec<_>>(), expected);
}

#[tokio::test(start_paused = true)]
async fn a_sync_can_be_run_again_after_a_side_failed_midway() {
    let bench = Bench::new(Shelf::full(5000), Shelf::full(0)).await;
    bench.source.set(Some(Trouble::Fails(3)));
    let record = bench.run().await;
    let (kind, peer, message) = reason(&record);
    assert_eq!((kind, peer), (Some(FaultKind::SourceUnavailable), "a"));
    assert_eq!(record.failure.as_ref().unwrap().code, Some(tonic::Code::Unavailable));
    assert!(message.contains("source store a") && message.contains("connection lost"), "{message}");

    bench.source.set(None);
    bench.destination.set(Some(Trouble::Fails(0)));
    let record = bench.run().await;
    let (kind, peer, message) = reason(&record);
    assert_eq!((kind, peer), (Some(FaultKind::DestinationUnavailable), "b"));
    assert!(message.contains("destination store b"), "{message}");

    bench.destination.set(None);
    let record = bench.run().await;
    assert_eq!((record.state, record.id), (SyncState::Completed, SyncId(3)));
}

#[tokio::test(start_paused = true)]
async fn what_was_pushed_before_a_failure_stays_queued() {
    let source = Shelf::full(5000).with(Trouble::Fails(3));
    let pages = Pages::default();
    let bench = Bench::with(source, Shelf::full(0), SyncSettings::default(), false, pages).await;
    let record = bench.run().await;
    reason(&record);
    // Found by then: three pages, of which the last is pushed only with what follows it.
    let queued = bench.ledger.pages.lock().entries.len() as u64;
    assert!(queued == 2000 || queued == 3000, "{queued}");
    assert_eq!((record.counts.enqueued, record.tally.pending), (queued, queued));
}

#[tokio::test(start_paused = true)]
async fn wrong_listings_fail_as_their_peers_fault() {
    let troubles =
        [Trouble::Repeats(1), Trouble::Unsorted(1), Trouble::Stops(2), Trouble::Miscounts(1), Trouble::Stops(0)];
    for trouble in troubles {
        let record = Bench::new(Shelf::full(5000).with(trouble), Shelf::full(5000)).await.run().await;
        assert_eq!(reason(&record).0, Some(FaultKind::PeerProtocol), "{trouble:?}");
        assert_eq!(reason(&record).1, "a", "{trouble:?}");
        let record = Bench::new(Shelf::full(5000), Shelf::full(5000).with(trouble)).await.run().await;
        assert_eq!(reason(&record).0, Some(FaultKind::PeerProtocol), "{trouble:?}");
        assert_eq!(reason(&record).1, "b", "{trouble:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_side_that_hangs_ends_the_sync_at_the_idle_deadline() {
    let record = Bench::new(Shelf::full(5000).with(Trouble::Hangs(2)), Shelf::full(0)).await.run().await;
    assert_eq!((reason(&record).0, reason(&record).1), (Some(FaultKind::SourceUnavailable), "a"));
    let record = Bench::new(Shelf::full(5000), Shelf::full(5000).with(Trouble::Hangs(2))).await.run().await;
    let (kind, peer, message) = reason(&record);
    assert_eq!((kind, peer), (Some(FaultKind::DestinationUnavailable), "b"));
    assert!(message.contains("60s"), "{message}");
}

#[tokio::test(start_paused = true)]
async fn a_panic_ends_the_sync_as_failed() {
    let bench = Bench::new(Shelf::full(5000).with(Trouble::Panics(2)), Shelf::full(5000)).await;
    assert_eq!(reason(&bench.run().await).0, Some(FaultKind::Panicked));
    bench.source.set(None);
    assert_eq!(bench.run().await.state, SyncState::Completed);
}

#[tokio::test(start_paused = true)]
async fn a_queue_that_cannot_write_ends_the_sync_as_failed() {
    let bench = Bench::new(Shelf::full(5000).with(Trouble::Hangs(1)), Shelf::full(0)).await;
    bench.start().await;
    bench.ledger.pages.lock().broken = true;
    let record = bench.until("the end", |record| record.state != SyncState::Running).await;
    reason(&record);
    let error = bench.syncs.start(request("")).await.unwrap_err();
    assert!(matches!(error, SyncStartError::Queue(_)), "{error:?}");
    // On disk it runs for ever; neither this process nor the next takes that for the truth.
    bench.ledger.pages.lock().broken = false;
    bench.source.set(None);
    assert_eq!(bench.run().await.state, SyncState::Completed);
    assert_eq!(bench.syncs.get(record.id).await.unwrap().unwrap().state, SyncState::Failed);
    let states: Vec<_> = bench.restarted().await.syncs.list(ROUTE, 9).await.unwrap().iter().map(|r| r.state).collect();
    assert_eq!(states, [SyncState::Completed, SyncState::Failed]);
}

#[tokio::test(start_paused = true)]
async fn other_sizes_are_pushed_as_repairs() {
    let source = Shelf::of([(1, 10), (2, 20), (3, 30)]);
    let bench = Bench::new(source, Shelf::of([(1, 10), (2, 19), (4, 1)])).await;
    let record = bench.run().await;
    assert_eq!(record.state, SyncState::Completed);
    let counts = record.counts;
    assert_eq!((counts.differing, counts.missing, counts.extra, counts.missing_bytes), (1, 1, 1, 30));
    let pushed: Vec<_> = bench.pushed().iter().map(|push| (push.blob, push.size, push.repair)).collect();
    assert_eq!(pushed, [(blob(2), Some(20), true), (blob(3), Some(30), false)]);
    for push in bench.pushed() {
        assert_eq!((push.lane, push.origin), (Lane::Backfill, Origin::Sync(record.id)));
        assert_eq!(push.visited, [Arc::from("a")]);
    }
}

#[tokio::test(start_paused = true)]
async fn queued_refs_are_adopted_and_waited_for() {
    let bench = Bench::with(Shelf::full(10), Shelf::full(4), SyncSettings::default(), false, Pages::default()).await;
    let push = |number| Push {
        route: RouteId(1),
        blob: blob(number),
        size: None,
        lane: Lane::Fresh,
        trace: None,
        visited: vec!["a".into()],
        repair: false,
        origin: Origin::Announced,
    };
    bench.ledger.push(vec![push(5), push(6)], Vec::new()).await.unwrap();
    bench.start().await;
    let record = bench.until("waiting", |record| record.phase == SyncPhase::WaitingForCopies).await;
    let counts = record.counts;
    assert_eq!((counts.missing, counts.in_flight, counts.enqueued, counts.enqueued_bytes), (4, 2, 4, 40));
    assert_eq!((record.state, record.tally.pending), (SyncState::Running, 6));
    assert_eq!(bench.syncs.running(ROUTE).unwrap(), record);
    bench.ledger.confirm_all();
    let record = bench.until("the end", |record| record.state != SyncState::Running).await;
    assert_eq!((record.state, record.tally.confirmed), (SyncState::Completed, 6));
}

#[tokio::test(start_paused = true)]
async fn parked_entries_end_it_with_failures() {
    let bench = Bench::with(Shelf::full(3), Shelf::full(0), SyncSettings::default(), false, Pages::default()).await;
    bench.start().await;
    bench.until("waiting", |record| record.phase == SyncPhase::WaitingForCopies).await;
    bench.ledger.park_all();
    let record = bench.until("the end", |record| record.state != SyncState::Running).await;
    assert_eq!((record.state, record.tally.parked), (SyncState::CompletedWithFailures, 3));
    // The next one revives them.
    let next = bench.start().await;
    let record = bench.until("waiting", |record| record.phase == SyncPhase::WaitingForCopies).await;
    assert_eq!((record.id, record.counts.in_flight, record.tally.pending), (next.id, 3, 3));
}

#[tokio::test(start_paused = true)]
async fn above_the_high_water_mark_it_closes_its_streams_and_waits() {
    let settings = SyncSettings { high_water: 1500, ..SyncSettings::default() };
    let bench = Bench::with(Shelf::full(9_500), Shelf::full(0), settings, false, Pages::default()).await;
    bench.start().await;
    let mut waits = 0;
    loop {
        let record = bench.until("a wait", |record| record.phase != SyncPhase::Comparing).await;
        let backlog = bench.ledger.counts(RouteId(1)).backfill.ready.entries;
        assert!(backlog <= 2500, "{backlog}");
        assert_eq!(bench.source.open.load(Ordering::SeqCst) + bench.destination.open.load(Ordering::SeqCst), 0);
        if record.phase == SyncPhase::WaitingForCopies {
            break;
        }
        let cursor = record.cursor;
        tokio::time::sleep(Duration::from_secs(600)).await;
        assert_eq!(bench.syncs.last(ROUTE).unwrap().cursor, cursor);
        waits += 1;
        bench.ledger.confirm_all();
        bench
            .until("it goes on", |record| record.cursor != cursor || record.phase != SyncPhase::WaitingForBacklog)
            .await;
    }
    assert!(waits >= 4, "{waits}");
    bench.ledger.confirm_all();
    let record = bench.until("the end", |record| record.state != SyncState::Running).await;
    assert_eq!((record.state, record.counts.missing, record.tally.confirmed), (SyncState::Completed, 9_500, 9_500));
}

#[tokio::test(start_paused = true)]
async fn findings_counts_and_cursor_are_one_write() {
    let bench = Bench::new(Shelf::full(5000), Shelf::full(10)).await;
    let record = bench.run().await;
    let mut pushed = 0;
    for (pushes, state) in &bench.ledger.pages.lock().pushes {
        assert!(pushes.len() <= 1000 && state.len() == 1);
        pushed += pushes.len() as u64;
        let written = SyncRecord::decode(&state[0].key, state[0].value.as_ref().unwrap()).unwrap();
        assert_eq!((written.id, written.counts.missing, written.counts.enqueued), (record.id, pushed, pushed));
        assert!(written.counts.source_blobs >= pushed + 10);
        assert_eq!(written.cursor, Some(blob(written.counts.source_blobs - 1)));
    }
    assert_eq!(pushed, 4990);
}

#[tokio::test(start_paused = true)]
async fn a_sync_cut_by_a_restart_is_failed_and_can_be_run_again() {
    let bench = Bench::new(Shelf::full(5000).with(Trouble::Hangs(3)), Shelf::full(0)).await;
    let id = bench.start().await.id;
    bench.until("some pages", |record| record.counts.source_blobs >= 2000).await;
    let next = bench.restarted().await;
    // The old process is gone; what it would write now, the new one does not see.
    bench.syncs.shutdown().await;
    let record = next.syncs.get(id).await.unwrap().unwrap();
    let (kind, peer, message) = reason(&record);
    assert_eq!((kind, peer), (None, ""));
    assert!(message.contains("restart"), "{message}");
    assert!(record.end_time.is_some() && record.counts.source_blobs > 0);
    assert_eq!(next.syncs.last(ROUTE), Some(record.clone()));
    assert_eq!(next.syncs.running(ROUTE), None);
    next.source.set(None);
    let again = next.run().await;
    assert_eq!((again.state, again.id), (SyncState::Completed, SyncId(id.0 + 1)));
    assert_eq!(next.syncs.list(ROUTE, 9).await.unwrap(), [again, record]);
}

#[tokio::test(start_paused = true)]
async fn a_shutdown_ends_a_sync_at_once_and_durably() {
    let bench = Bench::new(Shelf::full(5000).with(Trouble::Hangs(3)), Shelf::full(0)).await;
    let id = bench.start().await.id;
    bench.until("some pages", |record| record.counts.source_blobs >= 2000).await;
    let before = tokio::time::Instant::now();
    bench.syncs.shutdown().await;
    assert!(before.elapsed() < Duration::from_secs(1));
    assert!(matches!(bench.syncs.start(request("")).await, Err(SyncStartError::ShuttingDown)));
    let record = bench.restarted().await.syncs.get(id).await.unwrap().unwrap();
    assert!(reason(&record).2.contains("shutdown"), "{record:?}");
}

#[tokio::test(start_paused = true)]
async fn a_request_id_makes_a_retry_safe_even_over_a_restart() {
    let bench = Bench::new(Shelf::full(5), Shelf::full(0)).await;
    let first = bench.syncs.start(request("one")).await.unwrap();
    assert!(!first.already_running);
    let ended = bench.until("the end", |record| record.state != SyncState::Running).await;
    let retried = bench.syncs.start(request("one")).await.unwrap();
    assert_eq!((&retried.record, retried.already_running), (&ended, false));
    let other = bench.syncs.start(request("two")).await.unwrap();
    assert_eq!(other.record.id, SyncId(2));
    bench.until("the end", |record| record.state != SyncState::Running).await;
    let later = bench.restarted().await.syncs.start(request("one")).await.unwrap();
    assert_eq!(later.record, ended);
    for bad in ["\n", "ä", &"x".repeat(129)] {
        assert!(matches!(bench.syncs.start(request(bad)).await, Err(SyncStartError::InvalidRequestId)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_running_sync_answers_the_next_request_too() {
    let bench = Bench::new(Shelf::full(5000).with(Trouble::Hangs(1)), Shelf::full(0)).await;
    let (a, b) = tokio::join!(bench.syncs.start(request("one")), bench.syncs.start(request("two")));
    let (a, b) = (a.unwrap(), b.unwrap());
    assert_eq!(a.record.id, b.record.id);
    assert!(a.already_running != b.already_running);
    bench.until("the end", |record| record.state != SyncState::Running).await;
    for id in ["one", "two"] {
        assert_eq!(bench.syncs.start(request(id)).await.unwrap().record.id, a.record.id);
    }
    assert_eq!(bench.start().await.id, SyncId(a.record.id.0 + 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_not_offered_is_refused_by_name() {
    let bench = Bench::new(Shelf::full(5), Shelf::full(0)).await;
    let start = |request| bench.syncs.start(request);
    let unknown = SyncRequest { route: "other".into(), ..SyncRequest::default() };
    let error = start(unknown).await.unwrap_err();
    assert!(error.to_string().contains(ROUTE), "{error}");
    for mode in [SyncMode::Compare, SyncMode::Verify] {
        let error = start(SyncRequest { mode, ..request("") }).await.unwrap_err();
        assert!(matches!(error, SyncStartError::ModeUnsupported(refused) if refused == mode));
    }
    for prefix in ["ä".to_owned(), "s".repeat(257)] {
        let error = start(SyncRequest { prefix, ..request("") }).await.unwrap_err();
        assert!(matches!(error, SyncStartError::InvalidPrefix));
    }
    assert_eq!(bench.syncs.last(ROUTE), None);
    assert_eq!(bench.syncs.get(SyncId(1)).await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_listed_is_refused_and_one_that_is_down_fails_the_sync() {
    let mut source = Shelf::full(5);
    source.abilities.enumerate = false;
    let bench = Bench::new(source, Shelf::full(0)).await;
    let error = bench.syncs.start(request("")).await.unwrap_err();
    assert!(matches!(&error, SyncStartError::PeerUnsuitable(why) if why.contains("source store a")), "{error:?}");
    bench.source.set(Some(Trouble::IsDown));
    assert_eq!(reason(&bench.run().await).0, Some(FaultKind::SourceUnavailable));
    bench.source.set(None);
    bench.destination.set(Some(Trouble::IsDown));
    assert_eq!(bench.syncs.list(ROUTE, 9).await.unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_empty_volume_in_place_of_a_store_is_never_compared_as_if_it_were_the_store() {
    let bench = Bench::new(Shelf::full(0).with(Trouble::Replaced(0)), Shelf::full(5)).await;
    let error = bench.syncs.start(request("")).await.unwrap_err();
    assert!(matches!(&error, SyncStartError::PeerUnsuitable(why) if why.contains("an empty volume")), "{error:?}");
    // Found out when both were read.
    let settings = SyncSettings { window: 1000, ..SyncSettings::default() };
    let pages = || Pages { swift: true, ..Pages::default() };
    let source = Shelf::full(1500).with(Trouble::Replaced(1));
    let record = Bench::with(source, Shelf::full(1500), settings, false, pages()).await.run().await;
    assert_eq!((reason(&record).0, reason(&record).1), (Some(FaultKind::StoreIdChanged), "a"));
    for page in [0, 1] {
        let destination = Shelf::full(0).with(Trouble::Replaced(page));
        let bench = Bench::with(Shelf::full(1500), destination, settings, false, pages()).await;
        let record = bench.run().await;
        assert_eq!((reason(&record).0, reason(&record).1), (Some(FaultKind::StoreIdChanged), "b"));
        assert!(page > 0 || bench.pushed().is_empty(), "nothing is missing at a store that was not asked");
    }
}

#[tokio::test(start_paused = true)]
async fn a_destination_that_cannot_be_listed_is_asked() {
    for count in [0, 1, 999, 1001, 25_000] {
        let mut destination = Shelf::of((0..count).step_by(2).map(|number| (number, 10 + number % 4 / 2)));
        destination.abilities.enumerate = false;
        let bench = Bench::new(Shelf::full(count), destination).await;
        let record = bench.run().await;
        assert_eq!((record.state, record.counts.source_blobs), (SyncState::Completed, count));
        assert_eq!((record.counts.missing, record.counts.differing), (count / 2, (count + 1) / 4));
        assert_eq!(bench.destination.streams.load(Ordering::SeqCst), 0);
        let questions = bench.destination.questions.lock().clone();
        assert!(questions.iter().all(|asked| (1..=10_000).contains(asked)), "{questions:?}");
        assert_eq!(questions.len() as u64, count.div_ceil(10_000));
    }
    let mut destination = Shelf::full(5).with(Trouble::Babbles);
    destination.abilities.enumerate = false;
    let record = Bench::new(Shelf::full(5), destination).await.run().await;
    assert_eq!((reason(&record).0, reason(&record).1), (Some(FaultKind::PeerProtocol), "b"));
}

#[tokio::test(start_paused = true)]
async fn only_a_receive_only_route_sends_everything() {
    let receiver = || {
        let mut destination = Shelf::full(0);
        destination.kind = PeerKind::ReceiveOnly;
        destination.abilities = Default::default();
        destination
    };
    let swift = || Pages { swift: true, ..Pages::default() };
    let bench = Bench::with(Shelf::full(2500), receiver(), SyncSettings::default(), true, swift()).await;
    let record = bench.run().await;
    assert_eq!((record.state, record.counts.missing), (SyncState::Completed, 2500));
    for kind in [PeerKind::ReceiveOnly, PeerKind::Store, PeerKind::Replicator] {
        let mut destination = receiver();
        destination.kind = kind;
        let record = Bench::new(Shelf::full(5), destination).await.run().await;
        assert_eq!((reason(&record).0, reason(&record).1), (Some(FaultKind::WrongPeerKind), "b"));
    }
}

#[tokio::test(start_paused = true)]
async fn the_history_is_bounded_and_takes_its_request_ids_along() {
    let bench = Bench::new(Shelf::full(0), Shelf::full(0)).await;
    for number in 0..1005 {
        bench.syncs.start(request(&format!("r{number}"))).await.unwrap();
        bench.until("the end", |record| record.state != SyncState::Running).await;
    }
    let state = bench.ledger.pages.lock().state.clone();
    for prefix in ["sync/", "sync_route/", "sync_request/", "sync_request_of/"] {
        assert_eq!(state.keys().filter(|key| key.starts_with(prefix)).count(), 1000, "{prefix}");
    }
    assert_eq!(state.keys().filter(|key| key.starts_with("sync_running/")).count(), 0);
    assert_eq!(bench.syncs.get(SyncId(5)).await.unwrap(), None);
    assert_eq!(bench.syncs.get(SyncId(6)).await.unwrap().unwrap().state, SyncState::Completed);
}
