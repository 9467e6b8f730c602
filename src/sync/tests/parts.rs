//! Parts of the stores that are left out, by a prefix or because nobody here knows their digest function; and what a
//! request that asks for something else is told.

use super::super::{FullSyncs, SyncParts, SyncPhase, SyncRequest, SyncRoute, SyncSettings, SyncStartError, SyncState};
use super::ledger::{Ledger, Pages};
use super::shelf::{Shared, Shelf, Trouble, blob, store_ids};
use super::{Bench, ROUTE, request};
use crate::clock::ManualClock;
use crate::queue::RouteId;
use crate::telemetry::Tracer;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

#[tokio::test(start_paused = true)]
async fn windows_of_unknown_refs_alone_neither_end_nor_stall_a_sync() {
    for window in [1, 7, 1000, 100_000] {
        let settings = SyncSettings { window, ..SyncSettings::default() };
        let source = Shelf::full(30).and_unknown("md5", 25).and_unknown("zzz", 21);
        let destination = Shelf::full(10).and_unknown("md5", 3).and_unknown("aaa", 9);
        let pages = Pages { swift: true, ..Pages::default() };
        let bench = Bench::with(source, destination, settings, false, pages).await;
        let record = bench.run().await;
        assert_eq!((record.state, record.counts.source_blobs), (SyncState::Completed, 30));
        assert_eq!((record.counts.missing, record.counts.destination_blobs, record.counts.extra), (20, 10, 0));
        let mut unknown: Vec<_> =
            record.unknown.iter().map(|u| (u.function.as_str(), u.source_blobs, u.destination_blobs)).collect();
        unknown.sort_unstable();
        assert_eq!(unknown, [("aaa", 0, 9), ("md5", 25, 3), ("zzz", 21, 0)]);
        assert!(record.summary().contains("58 of unknown digest functions"), "{}", record.summary());
        // It is durable.
        let again = bench.restarted().await.syncs.get(record.id).await.unwrap().unwrap();
        assert_eq!(again, record);
    }
    // Nothing else at all, also where the destination is asked.
    let mut destination = Shelf::full(0);
    destination.abilities.enumerate = false;
    let settings = SyncSettings { window: 10, ..SyncSettings::default() };
    let source = Shelf::full(0).and_unknown("md5", 30);
    let record = Bench::with(source, destination, settings, false, Pages::default()).await.run().await;
    assert_eq!((record.state, record.unknown_refs(), record.counts.source_blobs), (SyncState::Completed, 30, 0));
}

#[tokio::test(start_paused = true)]
async fn unknown_functions_are_told_apart_up_to_a_bound() {
    let mut source = Shelf::full(3);
    for number in 0..40 {
        source = source.and_unknown(&format!("f{number:02}"), 2);
    }
    let record = Bench::new(source, Shelf::full(3).and_unknown("f39", 5)).await.run().await;
    assert_eq!(record.unknown.len(), 17);
    let other = record.unknown.iter().find(|unknown| unknown.function == "other-functions").unwrap();
    assert!(other.source_blobs >= 48, "{other:?}");
    assert_eq!(record.unknown.iter().map(|unknown| unknown.source_blobs).sum::<u64>(), 80);
    assert_eq!(record.unknown_refs(), 85);
}

#[tokio::test(start_paused = true)]
async fn a_prefix_leaves_out_what_does_not_begin_with_it_on_both_sides() {
    let (here, there) = (0..300u64, (0..400u64).step_by(3));
    for (asked, window) in [(false, 3), (false, 100_000), (true, 3), (true, 100_000)] {
        for prefix in [
            "s",
            "sha256-",
            "sha256-00000000000000",
            "sha256-000000000000000",
            "sha256-0000000000000011",
            "sha256-000000000000012b0",
            "sha256-0000000000000001~",
            "sha256-f",
            "md5",
            "zz-00000001",
            &"z".repeat(256),
            &blob(0).to_string(),
            &blob(4).to_string(),
            &blob(299).to_string(),
            &blob(300).to_string(),
        ] {
            let begins = |number: &u64| blob(*number).to_string().starts_with(prefix);
            let source = here.clone().filter(begins).count() as u64;
            let held = there.clone().filter(begins).count() as u64;
            let extra = there.clone().filter(|number| *number >= 300).filter(begins).count() as u64;
            let mut destination = Shelf::of(there.clone().map(|number| (number, 10))).and_unknown("md5", 4);
            destination.abilities.enumerate = !asked;
            let settings = SyncSettings { window, ..SyncSettings::default() };
            let pages = Pages { swift: true, ..Pages::default() };
            let bench = Bench::with(Shelf::full(300).and_unknown("zz", 2), destination, settings, false, pages).await;
            bench.syncs.start(SyncRequest { prefix: prefix.into(), ..request("") }).await.unwrap();
            let record = bench.until("the end", |record| record.state != SyncState::Running).await;
            let again = bench.restarted().await.syncs.get(record.id).await.unwrap().unwrap();
            assert_eq!((again.prefix.as_str(), again.state), (prefix, SyncState::Completed));
            let (counts, here_too) = (record.counts, held - extra);
            assert_eq!((counts.source_blobs, counts.missing), (source, source - here_too), "{prefix}");
            assert!(bench.pushed().iter().all(|push| push.blob.to_string().starts_with(prefix)));
            let expected = if asked { (here_too, 0) } else { (held, extra) };
            assert_eq!((counts.destination_blobs, counts.extra), expected, "{prefix}");
            let unknown = match prefix {
                "md5" if !asked => 4,
                "zz-00000001" => 1,
                _ => 0,
            };
            assert_eq!(record.unknown_refs(), unknown, "{prefix}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_prefix_at_a_time_and_the_same_one_is_the_answer() {
    let bench = Bench::new(Shelf::full(5000).with(Trouble::Hangs(1)), Shelf::full(0)).await;
    let start = |prefix: &str, id: &str| {
        let request = SyncRequest { prefix: prefix.into(), ..request(id) };
        async { bench.syncs.start(request).await }
    };
    let first = start("sha256-0", "one").await.unwrap();
    assert!(!first.already_running);
    let same = start("sha256-0", "two").await.unwrap();
    assert_eq!((same.record.id, same.already_running), (first.record.id, true));
    for other in ["", "sha256-", "sha256-00"] {
        let error = start(other, "").await.unwrap_err();
        assert!(matches!(error, SyncStartError::OtherRunning(id) if id == first.record.id), "{error:?}");
        for used in ["one", "two"] {
            let error = start(other, used).await.unwrap_err();
            assert!(matches!(error, SyncStartError::RequestIdReused(id) if id == first.record.id), "{error:?}");
        }
    }
}

struct Pair {
    ledger: Arc<Ledger>,
    clock: Arc<ManualClock>,
    syncs: FullSyncs,
}

impl Pair {
    async fn of(source: Shelf, destination: Shelf) -> Self {
        let (source, destination) = (Arc::new(source), Arc::new(destination));
        let route = |name: &str| SyncRoute {
            name: name.into(),
            id: RouteId(1),
            from_name: "a".into(),
            to_name: "b".into(),
            source: Arc::new(Shared(Arc::clone(&source))),
            destination: Arc::new(Shared(Arc::clone(&destination))),
            store_ids: store_ids(),
            receive_only: false,
        };
        let (ledger, clock) = (Arc::new(Ledger::new(Pages::default())), Arc::new(ManualClock::default()));
        let parts = SyncParts {
            queue: Arc::clone(&ledger) as _,
            clock: Arc::clone(&clock) as _,
            tracer: Tracer::off(),
            settings: SyncSettings::default(),
        };
        let syncs = FullSyncs::open(parts, vec![route(ROUTE), route("other")]).await.unwrap();
        Self { ledger, clock, syncs }
    }

    async fn start(&self, route: &str, id: &str) -> Result<super::super::request::Started, SyncStartError> {
        self.syncs.start(SyncRequest { route: route.into(), ..request(id) }).await
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_id_belongs_to_one_route_even_where_two_come_at_once() {
    let pair = Pair::of(Shelf::full(5), Shelf::full(5)).await;
    let first = pair.start(ROUTE, "one").await.unwrap();
    let error = pair.start("other", "one").await.unwrap_err();
    assert!(matches!(error, SyncStartError::RequestIdReused(id) if id == first.record.id), "{error:?}");
    let (a, b) = tokio::join!(pair.start(ROUTE, "two"), pair.start("other", "two"));
    assert!(a.is_ok() != b.is_ok(), "{a:?} {b:?}");
    assert!(matches!(a.err().or(b.err()), Some(SyncStartError::RequestIdReused(_))));
    pair.start("other", "three").await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn progress_is_told_as_far_as_it_is_known() {
    let source = Shelf::full(3000).with(Trouble::Hangs(2));
    let pair = Pair::of(source, Shelf::full(0)).await;
    pair.start(ROUTE, "").await.unwrap();
    let last = || pair.syncs.last(ROUTE).unwrap();
    tokio::time::sleep(Duration::from_secs(10)).await;
    let record = last();
    assert_eq!((record.compared_blobs_per_second(), record.eta), (None, None));
    assert_eq!((record.ranges_done(), record.ranges_total()), (0, 1));

    let pair = Pair::of(Shelf::full(40), Shelf::full(0)).await;
    pair.start(ROUTE, "").await.unwrap();
    let last = || pair.syncs.last(ROUTE).unwrap();
    let nap = || tokio::time::sleep(Duration::from_secs(5));
    nap().await;
    assert_eq!((last().phase, last().ranges_done(), last().eta), (SyncPhase::WaitingForCopies, 1, None));
    for number in 0..10 {
        pair.ledger.pages.lock().confirm(blob(number));
    }
    pair.clock.advance(Duration::from_secs(20));
    nap().await;
    // Ten in twenty seconds, thirty to go.
    assert_eq!(last().eta, Some(Duration::from_secs(60)));
    pair.ledger.confirm_all();
    nap().await;
    assert_eq!((last().state, last().eta), (SyncState::Completed, None));
}

#[tokio::test(start_paused = true)]
async fn the_rate_counts_the_waits_for_the_backlog() {
    let settings = SyncSettings { high_water: 100, ..SyncSettings::default() };
    let bench = Bench::with(Shelf::full(2000), Shelf::full(0), settings, false, Pages::default()).await;
    bench.start().await;
    bench.until("a wait", |record| record.phase == SyncPhase::WaitingForBacklog).await;
    bench.clock.advance(Duration::from_millis(10_000));
    tokio::time::sleep(Duration::from_secs(5)).await;
    let record = bench.syncs.last(ROUTE).unwrap();
    assert_eq!(record.comparing, Duration::from_secs(10));
    assert_eq!(record.compared_blobs_per_second(), Some(record.counts.source_blobs as f64 / 10.0));
    assert_eq!(bench.source.open.load(Ordering::SeqCst), 0);
}
