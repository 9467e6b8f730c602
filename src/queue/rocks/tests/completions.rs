//! What left the queue is remembered, bounded, and found again.

use super::{Rocks, damage, faulty};
use crate::blob::RefPrefix;
use crate::queue::lookup::Lookup;
use crate::queue::rocks::keys;
use crate::queue::suite::{Subject, TestClock, announced, blob, claim_any, confirmed};
use crate::queue::{Lane, Queue};
use rocksdb::{DB, Options};
use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::Ordering;

/// Reads the numbers of the rows of `done` behind the queue's back.
fn done_rows(dir: &Path) -> Vec<u64> {
    let options = Options::default();
    let families = DB::list_cf(&options, dir.join("db")).unwrap();
    let db = DB::open_cf_for_read_only(&options, dir.join("db"), families, false).unwrap();
    let rows = db.iterator_cf(db.cf_handle(keys::DONE).unwrap(), rocksdb::IteratorMode::Start);
    rows.map(|row| keys::number(&row.unwrap().0).unwrap()).collect()
}

#[tokio::test]
async fn completions_are_bounded_on_disk_and_in_memory() {
    let clock = TestClock::new();
    let mut rocks = Rocks::new(&clock, u64::MAX);
    let route = rocks.queue().register("a_to_b", "a", "b").await.unwrap();
    for batch in 0..50_u64 {
        let pushes = (0..10).map(|number| announced(route, 10 * batch + number)).collect();
        rocks.queue().push(pushes, Vec::new()).await.unwrap();
        let claims = claim_any(rocks.queue(), route, Lane::Fresh, 10, clock.now()).await.unwrap();
        rocks.queue().settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
        if batch == 30 {
            rocks.restart().await;
        }
    }
    for _ in 0..2 {
        let known = rocks.queue().look_up((0..500).map(|number| (route, blob(number))).collect()).await.unwrap();
        let remembered: Vec<usize> = (0..500).filter(|at| known[*at].completion.is_some()).collect();
        assert_eq!(remembered, (400..500).collect::<Vec<_>>());
        rocks.queue.take().unwrap().close().await;
        assert_eq!(done_rows(rocks.dir.path()), (40..50).collect::<Vec<_>>());
        rocks.open();
    }
}

/// As a version before completions left it.
#[tokio::test]
async fn a_queue_without_completions_is_opened() {
    let clock = TestClock::new();
    let mut rocks = Rocks::new(&clock, u64::MAX);
    let route = rocks.queue().register("a_to_b", "a", "b").await.unwrap();
    rocks.queue().push(vec![announced(route, 1)], Vec::new()).await.unwrap();
    rocks.queue.take().unwrap().close().await;
    let path = rocks.dir.path().join("db");
    let options = Options::default();
    let families = DB::list_cf(&options, &path).unwrap();
    let mut db = DB::open_cf(&options, &path, families).unwrap();
    db.drop_cf(keys::DONE).unwrap();
    drop(db);
    rocks.open();
    let claims = claim_any(rocks.queue(), route, Lane::Fresh, 1, clock.now()).await.unwrap();
    rocks.queue().settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    rocks.restart().await;
    let known = rocks.queue().look_up(vec![(route, blob(1))]).await.unwrap();
    assert!(known[0].queued.is_none() && known[0].completion.is_some());
}

#[tokio::test]
async fn refs_are_sought_for_one_at_a_time() {
    let clock = TestClock::new();
    let rocks = Rocks::new(&clock, u64::MAX);
    let route = rocks.queue().register("a_to_b", "a", "b").await.unwrap();
    rocks.queue().push(vec![announced(route, 1)], Vec::new()).await.unwrap();
    let prefix = RefPrefix::parse(&blob(1).to_string()[..20]).unwrap();
    let shared = &rocks.queue.as_ref().unwrap().shared;
    let find = || shared.find(&[route], &prefix, 1).unwrap();
    let other = shared.finding.lock();
    assert_eq!(find(), None);
    drop(other);
    assert_eq!(find(), Some(BTreeSet::from([blob(1)])));
}

#[tokio::test]
async fn a_batch_that_was_not_written_is_no_completion() {
    let clock = TestClock::new();
    let dir = tempfile::tempdir().unwrap();
    let (queue, fails, _) = faulty(dir.path(), &clock);
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    queue.push(vec![announced(route, 1)], Vec::new()).await.unwrap();
    fails.store(true, Ordering::SeqCst);
    let claims = claim_any(&queue, route, Lane::Fresh, 1, clock.now()).await.unwrap();
    queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap_err();
    fails.store(false, Ordering::SeqCst);
    damage::recovered(&queue).await;
    let known = queue.look_up(vec![(route, blob(1))]).await.unwrap();
    assert!(known[0].queued.is_some() && known[0].completion.is_none());
    let claims = claim_any(&queue, route, Lane::Fresh, 1, clock.now()).await.unwrap();
    queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    let known = queue.look_up(vec![(route, blob(1))]).await.unwrap();
    assert!(known[0].queued.is_none() && known[0].completion.is_some());
}
