//! What a route begins by itself, what ends a need, and cancelling.

use super::{Bench, ROUTE, request};
use crate::clock::{Clock, Entropy};
use crate::config::OnStart;
use crate::queue::damage::{DEGRADED_ROUTES, INCIDENTS, Incident, Mending, REASON_NEW, SYNC_NEEDED};
use crate::sync::tests::ledger::Pages;
use crate::sync::tests::shelf::{Shelf, Trouble};
use crate::sync::{StartSync, SyncRequest, SyncSettings, SyncState};
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

fn pages(rows: &[(String, Vec<u8>)]) -> Pages {
    Pages { swift: true, state: rows.iter().cloned().collect(), ..Pages::default() }
}

fn needed() -> Vec<(String, Vec<u8>)> {
    vec![(format!("{SYNC_NEEDED}{ROUTE}"), REASON_NEW.as_bytes().to_vec())]
}

async fn bench(source: Shelf, rows: &[(String, Vec<u8>)]) -> Bench {
    Bench::with(source, Shelf::full(0), SyncSettings::default(), false, pages(rows)).await
}

fn begin(bench: &Bench, on_start: OnStart) -> (JoinSet<()>, CancellationToken) {
    let (mut tasks, stop) = (JoinSet::new(), CancellationToken::new());
    let start = StartSync {
        syncs: bench.syncs.clone(),
        route: ROUTE.to_owned(),
        on_start,
        clock: bench.clock.clone(),
        entropy: Arc::new(Entropy::seeded(1)),
    };
    tasks.spawn(start.run(stop.clone()));
    (tasks, stop)
}

fn state(bench: &Bench, key: &str) -> bool {
    bench.ledger.pages.lock().state.keys().any(|known| known.starts_with(key))
}

async fn settle() {
    tokio::time::sleep(Duration::from_secs(5)).await;
}

#[tokio::test(start_paused = true)]
async fn a_needed_sync_is_begun_again_until_one_has_completed() {
    let bench = bench(Shelf::full(10).with(Trouble::Fails(0)), &needed()).await;
    assert_eq!(bench.syncs.needs().needed(ROUTE).unwrap().reason, REASON_NEW);
    let (mut tasks, stop) = begin(&bench, OnStart::IfNeeded);
    settle().await;
    for (count, most) in [(1, 30), (2, 60), (3, 120)] {
        bench.until("a failed one", |record| record.id.0 == count && record.state == SyncState::Failed).await;
        settle().await;
        // It waits: half of the delay is certain.
        let need = bench.syncs.needs().needed(ROUTE).unwrap();
        assert!(!need.problem.is_empty());
        let wait = need.next_time.unwrap().duration_since(bench.clock.now()).unwrap();
        assert!(wait > Duration::from_secs(most / 2 - 1) && wait <= Duration::from_secs(most), "{wait:?}");
        bench.clock.advance(wait - Duration::from_millis(1));
        settle().await;
        assert_eq!(bench.syncs.last(ROUTE).unwrap().id.0, count);
        // Trouble comes once.
        bench.source.set((count < 3).then_some(Trouble::Fails(0)));
        bench.clock.advance(Duration::from_millis(1));
        bench.until("the next", |record| record.id.0 == count + 1).await;
    }
    bench.until("the end", |record| record.state == SyncState::Completed).await;
    assert_eq!((bench.syncs.needs().needed(ROUTE), state(&bench, SYNC_NEEDED)), (None, false));
    bench.clock.advance(Duration::from_secs(100_000));
    settle().await;
    assert_eq!(bench.syncs.last(ROUTE).unwrap().id.0, 4);
    assert!(bench.restarted().await.syncs.needs().needed(ROUTE).is_none());
    stop.cancel();
    tasks.join_next().await.unwrap().unwrap();
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_where_it_is_off_or_not_needed_and_always_where_it_is_always() {
    for (on_start, rows, begins) in [
        (OnStart::Off, needed(), false),
        (OnStart::IfNeeded, Vec::new(), false),
        (OnStart::Blocking, Vec::new(), false),
        (OnStart::Blocking, needed(), true),
        (OnStart::Always, Vec::new(), true),
    ] {
        let bench = bench(Shelf::full(1), &rows).await;
        let (_tasks, _stop) = begin(&bench, on_start);
        settle().await;
        assert_eq!(bench.syncs.last(ROUTE).is_some(), begins, "{on_start:?}");
        // Without it, an operator's sync still ends the need; one of a prefix does not.
        if on_start == OnStart::Off {
            bench.syncs.start(SyncRequest { prefix: "sha256-".into(), ..request("") }).await.unwrap();
            settle().await;
            assert!(bench.syncs.needs().needed(ROUTE).is_some());
            bench.run().await;
            assert!(bench.syncs.needs().needed(ROUTE).is_none());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_source_that_cannot_be_listed_is_asked_again_in_ten_minutes_and_said_so() {
    let mut source = Shelf::full(10);
    source.abilities.enumerate = false;
    let bench = bench(source, &needed()).await;
    let (_tasks, _stop) = begin(&bench, OnStart::IfNeeded);
    settle().await;
    let need = bench.syncs.needs().needed(ROUTE).unwrap();
    assert!(need.problem.contains("does not offer enumerate"), "{}", need.problem);
    assert_eq!(need.next_time.unwrap().duration_since(bench.clock.now()).unwrap(), Duration::from_secs(600));
    assert!(bench.syncs.last(ROUTE).is_none());
}

#[tokio::test(start_paused = true)]
async fn an_incident_marks_the_routes_and_is_over_when_each_was_compared() {
    let bench = bench(Shelf::full(3), &[]).await;
    let incident = Incident {
        time: bench.clock.now(),
        mending: Mending::BegunAnew,
        what: "checksum mismatch".to_owned(),
        kept: "/kept".to_owned(),
        lost_from: None,
        is_assigned: false,
    };
    bench.ledger.pages.lock().state.insert(incident.key(), incident.encode());
    let bench = bench.restarted().await;
    let needs = bench.syncs.needs();
    assert!(needs.is_degraded(ROUTE) && needs.needed(ROUTE).is_some());
    assert_eq!(needs.incidents(), [Incident { is_assigned: true, ..incident }]);
    assert!(state(&bench, DEGRADED_ROUTES) && state(&bench, SYNC_NEEDED));
    // Neither a restart nor a part of the stores ends it.
    let bench = bench.restarted().await;
    bench.syncs.start(SyncRequest { prefix: "sha256-".into(), ..request("") }).await.unwrap();
    settle().await;
    assert!(bench.syncs.needs().is_degraded(ROUTE));
    assert_eq!(bench.run().await.state, SyncState::Completed);
    let needs = bench.syncs.needs();
    assert!(!needs.is_degraded(ROUTE) && needs.incidents().is_empty() && needs.needed(ROUTE).is_none());
    assert!(!state(&bench, INCIDENTS) && !state(&bench, DEGRADED_ROUTES));
}

#[tokio::test(start_paused = true)]
async fn what_was_parked_ends_the_degradation_and_not_the_need() {
    let key = format!("{DEGRADED_ROUTES}{ROUTE}");
    let rows = [needed(), vec![(key, Vec::new())]].concat();
    let slow = Pages { swift: false, ..pages(&rows) };
    let bench = Bench::with(Shelf::full(3), Shelf::full(0), SyncSettings::default(), false, slow).await;
    let (_tasks, _stop) = begin(&bench, OnStart::IfNeeded);
    settle().await;
    bench.until("it waits", |record| record.compared_time.is_some()).await;
    bench.ledger.park_all();
    bench.until("the end", |record| record.state == SyncState::CompletedWithFailures).await;
    settle().await;
    assert!(!bench.syncs.needs().is_degraded(ROUTE));
    let need = bench.syncs.needs().needed(ROUTE).unwrap();
    assert_eq!(need.next_time.unwrap().duration_since(bench.clock.now()).unwrap(), Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_sync_keeps_what_it_enqueued_and_another_may_run() {
    let slow = Pages { swift: false, ..Pages::default() };
    let bench = Bench::with(Shelf::full(3), Shelf::full(0), SyncSettings::default(), false, slow).await;
    let id = bench.start().await.id;
    bench.until("it waits for copies", |record| record.compared_time.is_some()).await;
    let record = bench.syncs.cancel(id).await.unwrap().unwrap();
    assert_eq!((record.state, record.failure.clone(), record.tally.pending), (SyncState::Cancelled, None, 3));
    assert_eq!(bench.ledger.pages.lock().entries.len(), 3);
    // Again is no error, and changes nothing; also after a restart.
    assert_eq!(bench.syncs.cancel(id).await.unwrap().unwrap().end_time, record.end_time);
    let again = bench.restarted().await;
    assert_eq!(again.syncs.cancel(id).await.unwrap().unwrap().state, SyncState::Cancelled);
    let next = bench.start().await;
    bench.ledger.confirm_all();
    bench.until("the next", |record| record.id == next.id && record.state == SyncState::Completed).await;
    // One that reads is ended too.
    bench.source.set(Some(Trouble::Hangs(0)));
    let id = bench.start().await.id;
    settle().await;
    assert_eq!(bench.syncs.cancel(id).await.unwrap().unwrap().state, SyncState::Cancelled);
}

/// Rows that could not be read took entries with them, and nobody knows which syncs wait for those.
#[tokio::test(start_paused = true)]
async fn a_sync_whose_entries_were_lost_ends_as_failed() {
    let slow = Pages { swift: false, ..Pages::default() };
    let bench = Bench::with(Shelf::full(3), Shelf::full(0), SyncSettings::default(), false, slow).await;
    bench.start().await;
    bench.until("it waits", |record| record.compared_time.is_some()).await;
    bench.ledger.lose_all();
    let record = bench.until("the end", |record| record.state != SyncState::Running).await;
    assert_eq!(record.state, SyncState::Failed);
    assert!(record.failure.unwrap().message.contains("3 of its entries were lost"));
}
