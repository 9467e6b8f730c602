#![allow(clippy::unwrap_used, reason = "tests")]

mod against_model;
mod completions;
mod damage;
mod transfer;

use super::database::write_synced;
use super::open::open;
use super::{KnownRoute, OpenError, RocksOptions, RocksQueue, keys};
use crate::queue::WholeQueue;
use crate::queue::drop::{DropEntries, Dropped};
use crate::queue::suite::{
    MAX_BACKOFF, Subject, TestClock, announced, blob, claim_any, confirmed, conformance, failure, found,
};
use crate::queue::{
    Lane, Outcome, Pushed, Queue, QueueError, RouteCounts, RouteId, State, StateWrite, SyncId, Tally, Weight,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use rocksdb::{DB, Options};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tempfile::TempDir;
use tokio::task::JoinSet;

fn options() -> RocksOptions {
    RocksOptions {
        max_entries: u64::MAX,
        reserve_bytes: 0,
        max_backoff: MAX_BACKOFF,
        cache_bytes: 8 << 20,
        completions: 100,
        metrics: Arc::default(),
    }
}

struct Rocks {
    dir: TempDir,
    options: RocksOptions,
    clock: TestClock,
    queue: Option<RocksQueue>,
}

impl Rocks {
    fn new(clock: &TestClock, max_entries: u64) -> Self {
        let options = RocksOptions { max_entries, ..options() };
        let mut rocks = Self { dir: tempfile::tempdir().unwrap(), options, clock: clock.clone(), queue: None };
        rocks.open();
        rocks
    }

    fn open(&mut self) {
        let queue = RocksQueue::open(self.dir.path(), self.options.clone(), self.clock.clock()).unwrap();
        self.queue = Some(queue);
    }
}

#[async_trait]
impl Subject for Rocks {
    fn queue(&self) -> &dyn WholeQueue {
        self.queue.as_ref().unwrap()
    }

    async fn restart(&mut self) {
        self.queue.take().unwrap().close().await;
        self.open();
    }
}

fn make(clock: &TestClock, max_entries: u64) -> Box<dyn Subject> {
    Box::new(Rocks::new(clock, max_entries))
}

conformance!(make);

/// A queue whose writes fail as long as the switch is on, and are counted.
fn faulty(dir: &Path, clock: &TestClock) -> (RocksQueue, Arc<AtomicBool>, Arc<AtomicU64>) {
    let (fails, writes) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let (switch, counter) = (Arc::clone(&fails), Arc::clone(&writes));
    let queue = open(
        dir,
        options(),
        clock.clock(),
        Box::new(move |db, batch| {
            counter.fetch_add(1, Ordering::SeqCst);
            if switch.load(Ordering::SeqCst) {
                return Err(DB::list_cf(&Options::default(), "/nowhere").unwrap_err());
            }
            write_synced(db, batch)
        }),
    );
    (queue.unwrap(), fails, writes)
}

/// A queue with a route, in its folder.
async fn one_route() -> (TempDir, TestClock, RocksQueue, RouteId) {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let queue = RocksQueue::open(dir.path(), options(), clock.clock()).unwrap();
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    (dir, clock, queue, route)
}

fn open_raw(dir: &Path) -> DB {
    DB::open_cf(&Options::default(), dir.join("db"), keys::FAMILIES).unwrap()
}

#[tokio::test]
async fn a_second_process_is_refused() {
    let (dir, clock, queue, _) = one_route().await;
    let again = || RocksQueue::open(dir.path(), options(), clock.clock());
    assert!(matches!(again(), Err(OpenError::Locked(_))));
    queue.close().await;
    drop(again().unwrap());
    drop(again().unwrap());
}

#[tokio::test]
async fn a_newer_format_is_refused() {
    let (dir, clock, queue, _) = one_route().await;
    drop(queue);
    let db = open_raw(dir.path());
    db.put_cf(db.cf_handle(keys::META).unwrap(), keys::META_FORMAT, 2u32.to_be_bytes()).unwrap();
    drop(db);
    let opened = RocksQueue::open(dir.path(), options(), clock.clock());
    assert!(matches!(opened, Err(OpenError::Format { found: 2, known: 1 })));
}

/// What a newer RocksDB wrote may look like damage to this one.
#[tokio::test]
async fn a_newer_format_is_refused_before_it_is_taken_for_damage() {
    let (dir, clock, queue, _) = one_route().await;
    drop(queue);
    let made = dir.path().join("made");
    assert_eq!(std::fs::read_to_string(&made).unwrap(), "blobferry-queue 1\n");
    std::fs::write(&made, "blobferry-queue 2\n").unwrap();
    std::fs::write(dir.path().join("db").join("CURRENT"), "MANIFEST-of-tomorrow").unwrap();
    let opened = RocksQueue::open(dir.path(), options(), clock.clock());
    assert!(matches!(opened, Err(OpenError::Format { found: 2, known: 1 })));
    let names: HashSet<_> = std::fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(names, HashSet::from(["db", "lock", "made"].map(Into::into)), "nothing was moved aside");
}

#[tokio::test]
async fn an_unknown_family_is_left_alone() {
    let (dir, clock, queue, route) = one_route().await;
    queue.push(vec![announced(route, 1)], vec![]).await.unwrap();
    drop(queue);
    let mut db = open_raw(dir.path());
    db.create_cf("later", &Options::default()).unwrap();
    drop(db);
    let queue = RocksQueue::open(dir.path(), options(), clock.clock()).unwrap();
    assert_eq!(queue.counts(route).fresh.ready.entries, 1);
}

#[tokio::test]
async fn a_closed_queue_takes_nothing() {
    let (_dir, clock, queue, route) = one_route().await;
    queue.push(vec![announced(route, 1)], vec![]).await.unwrap();
    let claim = claim_any(&queue, route, Lane::Fresh, 1, clock.now()).await.unwrap().pop().unwrap();
    queue.close().await;
    queue.close().await;
    assert!(matches!(queue.push(vec![announced(route, 2)], vec![]).await, Err(QueueError::Closed)));
    assert!(matches!(claim_any(&queue, route, Lane::Fresh, 1, clock.now()).await, Err(QueueError::Closed)));
    assert!(matches!(queue.get("a").await, Err(QueueError::Closed)));
    assert!(matches!(queue.settle(vec![(claim, confirmed())]).await, Err(QueueError::Closed)));
    assert_eq!(queue.counts(route).fresh.ready.entries, 1);
}

#[tokio::test]
async fn a_claim_may_outlive_its_queue() {
    let (_dir, clock, queue, route) = one_route().await;
    queue.push(vec![announced(route, 1)], vec![]).await.unwrap();
    let claims = claim_any(&queue, route, Lane::Fresh, 1, clock.now()).await.unwrap();
    drop(queue);
    drop(claims);
}

#[tokio::test]
async fn known_routes_are_listed() {
    let (_dir, _clock, queue, id) = one_route().await;
    let (name, from, to) = ("a_to_b".to_owned(), "a".to_owned(), "b".to_owned());
    assert_eq!(queue.routes(), [KnownRoute { id, name, from, to }]);
}

#[tokio::test]
async fn the_reserve_is_for_settling() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let options = RocksOptions { reserve_bytes: u64::MAX, ..options() };
    let queue = RocksQueue::open(dir.path(), options, clock.clock()).unwrap();
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    let refused = queue.push(vec![announced(route, 1)], vec![]).await;
    assert!(matches!(refused, Err(QueueError::NoSpace { reserve: u64::MAX, .. })));
    queue.push(vec![found(route, 1, 7, false)], vec![]).await.unwrap();
    let claims = claim_any(&queue, route, Lane::Backfill, 9, clock.now()).await.unwrap();
    queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    assert_eq!(queue.counts(route).confirmed, 1);
}

/// RocksDB writes again after a full disk once its largest write buffer would fit, and says so in its options file.
#[tokio::test]
async fn after_a_full_disk_a_little_space_is_enough_to_write_again() {
    let (dir, _, queue, _) = one_route().await;
    queue.close().await;
    let files = std::fs::read_dir(dir.path().join("db")).unwrap().map(|file| file.unwrap().path());
    let options =
        files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("OPTIONS-")).max().unwrap();
    let text = std::fs::read_to_string(options).unwrap();
    let buffers: Vec<u64> =
        text.lines().filter_map(|line| line.trim().strip_prefix("write_buffer_size=")?.parse().ok()).collect();
    assert!(buffers.len() > keys::FAMILIES.len(), "{buffers:?}");
    assert!(buffers.iter().all(|bytes| *bytes <= 16 << 20), "{buffers:?}");
}

#[tokio::test]
async fn unreadable_rows_are_set_aside_and_stop_nobody() {
    let (dir, clock, queue, route) = one_route().await;
    for number in 0..6 {
        queue.push(vec![announced(route, number)], vec![]).await.unwrap();
    }
    drop(queue);
    let db = open_raw(dir.path());
    let family = |name| db.cf_handle(name).unwrap();
    // An entry of garbage, one that is gone, one that stands elsewhere, and a malformed index key.
    db.put_cf(family(keys::ENTRY), keys::entry(route, 1), b"garbage").unwrap();
    db.delete_cf(family(keys::ENTRY), keys::entry(route, 2)).unwrap();
    db.put_cf(family(keys::RETRY), keys::retry(route, Lane::Fresh, 5, 3), b"").unwrap();
    db.put_cf(family(keys::READY), [&keys::ready(route, Lane::Fresh, 4)[..], b"!"].concat(), b"").unwrap();
    drop(db);

    let queue = RocksQueue::open(dir.path(), options(), clock.clock()).unwrap();
    let claims = claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap();
    let claimed: Vec<_> = claims.iter().map(|claim| claim.entry().blob).collect();
    assert_eq!(claimed, [0, 3, 4, 5].map(blob));
    drop(claims);
    // The rows are moved by the committer, in its order.
    queue.write(vec![StateWrite { key: "after".to_owned(), value: None }]).await.unwrap();
    assert_eq!(queue.set_aside(), 4);
    let expected = Tally { entries: 4, bytes: 400, unknown_size: 0 };
    assert_eq!(queue.counts(route).fresh.ready, expected);
    // A writer may announce it again.
    assert_eq!(queue.push(vec![announced(route, 1)], vec![]).await.unwrap(), [Pushed::Added]);
    assert_eq!(queue.push(vec![announced(route, 3)], vec![]).await.unwrap(), [Pushed::AlreadyQueued]);
    drop(queue);

    let db = open_raw(dir.path());
    let aside = db.cf_handle(keys::ASIDE).unwrap();
    let garbage = db.get_cf(aside, keys::aside(keys::ENTRY, &keys::entry(route, 1))).unwrap();
    assert_eq!(garbage.unwrap(), b"garbage");
    drop(db);
    let queue = RocksQueue::open(dir.path(), options(), clock.clock()).unwrap();
    assert_eq!(queue.set_aside(), 4);
    assert_eq!(claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap().len(), 5);
}

#[tokio::test]
async fn a_dropped_route_leaves_no_row_behind_but_sets_the_unreadable_aside() {
    let (dir, clock, queue, route) = one_route().await;
    let other = queue.register("a_to_c", "a", "c").await.unwrap();
    for of in [route, other] {
        queue.push((1..=5).map(|number| announced(of, number)).collect(), vec![]).await.unwrap();
    }
    drop(queue);
    let rows = |db: &DB, name: &str| {
        let rows = db.iterator_cf(db.cf_handle(name).unwrap(), rocksdb::IteratorMode::Start);
        rows.filter(|row| row.as_ref().unwrap().0.starts_with(&route.0.to_be_bytes())).count()
    };
    let db = open_raw(dir.path());
    // One entry cannot be read, and one row belongs to none.
    db.put_cf(db.cf_handle(keys::ENTRY).unwrap(), keys::entry(route, 2), b"torn").unwrap();
    db.put_cf(db.cf_handle(keys::PARKED).unwrap(), keys::parked(route, 1, 99), b"\0").unwrap();
    assert_eq!((rows(&db, keys::ENTRY), rows(&db, keys::REF), rows(&db, keys::PARKED)), (5, 5, 1));
    drop(db);
    let queue = RocksQueue::open(dir.path(), options(), clock.clock()).unwrap();
    assert_eq!(queue.drop_entries(route, 2).await.unwrap().tally.entries, 2);
    assert_eq!(queue.drop_entries(route, 9).await.unwrap().tally.entries, 2);
    assert_eq!(queue.drop_entries(route, 9).await.unwrap(), Dropped { done: true, ..Dropped::default() });
    let empty = RouteCounts { discarded: 4, ..RouteCounts::default() };
    assert_eq!((queue.counts(route), queue.set_aside()), (empty, 1));
    drop(queue);
    let db = open_raw(dir.path());
    for name in [keys::ENTRY, keys::REF, keys::READY, keys::RETRY, keys::PARKED] {
        assert_eq!(rows(&db, name), 0, "{name}");
    }
    let aside = db.get_cf(db.cf_handle(keys::ASIDE).unwrap(), keys::aside(keys::ENTRY, &keys::entry(route, 2)));
    assert_eq!(aside.unwrap().unwrap(), b"torn");
    drop(db);
    let queue = RocksQueue::open(dir.path(), options(), clock.clock()).unwrap();
    assert_eq!(queue.counts(route), empty);
    assert_eq!(queue.counts(other).fresh.ready.entries, 5);
    assert_eq!(queue.push(vec![announced(route, 2)], vec![]).await.unwrap(), [Pushed::Added]);
}

#[tokio::test]
async fn a_drop_that_is_not_written_drops_nothing() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let (queue, fails, _) = faulty(dir.path(), &clock);
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    queue.push((1..=3).map(|number| announced(route, number)).collect(), vec![]).await.unwrap();
    fails.store(true, Ordering::SeqCst);
    assert!(queue.drop_entries(route, 9).await.is_err());
    fails.store(false, Ordering::SeqCst);
    damage::recovered(&queue).await;
    assert_eq!((queue.counts(route).fresh.ready.entries, queue.counts(route).discarded), (3, 0));
    assert_eq!(claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_callers_share_a_write() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let (queue, _, writes) = faulty(dir.path(), &clock);
    let queue = Arc::new(queue);
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    let mut callers = JoinSet::new();
    for number in 0..256 {
        let queue = Arc::clone(&queue);
        callers.spawn(async move { queue.push(vec![announced(route, number)], vec![]).await.unwrap() });
    }
    callers.join_all().await;
    assert_eq!(queue.counts(route).fresh.ready.entries, 256);
    assert!(writes.load(Ordering::SeqCst) < 128, "{} writes for 256 callers", writes.load(Ordering::SeqCst));
}

/// Each sync left a tally in memory and on the disk, for ever.
#[tokio::test]
async fn tallies_of_old_syncs_are_forgotten() {
    const SYNCS: u64 = 10_000;
    let (dir, clock, queue, route) = one_route().await;
    queue.push((0..SYNCS).map(|number| found(route, number, number, false)).collect(), vec![]).await.unwrap();
    let mut claims = claim_any(&queue, route, Lane::Backfill, 10_000, clock.now()).await.unwrap();
    let first = claims.remove(0);
    queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    let tally = |sync| queue.sync_tally(SyncId(sync));
    assert_eq!((tally(0).pending, tally(1).confirmed, tally(SYNCS - 1).confirmed), (1, 1, 1));
    for number in SYNCS..SYNCS + 3 {
        queue.push(vec![found(route, number, number, false)], vec![]).await.unwrap();
    }
    // The oldest of which nothing is left make room.
    assert_eq!((tally(0).pending, tally(1).confirmed, tally(3).confirmed, tally(4).confirmed), (1, 0, 0, 1));
    queue.settle(vec![(first, confirmed())]).await.unwrap();
    assert_eq!(tally(0).confirmed, 1);
    drop(queue);
    let queue = RocksQueue::open(dir.path(), options(), clock.clock()).unwrap();
    assert_eq!((queue.sync_tally(SyncId(1)).confirmed, queue.sync_tally(SyncId(SYNCS)).pending), (0, 1));
}

#[tokio::test]
async fn a_settlement_is_done_though_its_caller_went_away() {
    let (_dir, clock, queue, route) = one_route().await;
    queue.push(vec![announced(route, 1)], vec![]).await.unwrap();
    let claims = claim_any(&queue, route, Lane::Fresh, 1, clock.now()).await.unwrap();
    let settle = queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect());
    // Long enough to hand it over, not to be answered.
    drop(tokio::time::timeout(Duration::ZERO, settle).await);
    queue.write(vec![StateWrite { key: "after".to_owned(), value: None }]).await.unwrap();
    assert_eq!(queue.counts(route).confirmed, 1);
    assert!(claim_any(&queue, route, Lane::Fresh, 1, clock.now()).await.unwrap().is_empty());
}

/// Writers who hasten, change lanes and revive while workers claim: no entry is ever held twice, and all end.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn claims_hold_against_concurrent_writers() {
    const BLOBS: u64 = 40;
    let (_dir, clock, queue, route) = one_route().await;
    let queue = Arc::new(queue);
    let held = Arc::new(Mutex::new(HashSet::new()));
    let done = Arc::new(AtomicBool::new(false));
    let mut writers = JoinSet::new();
    for writer in 0..4 {
        let queue = Arc::clone(&queue);
        writers.spawn(async move {
            for number in 0..300 {
                let number = (number * 7 + writer * 3) % BLOBS;
                let by_sync = number % 3 == writer % 3;
                let push = if by_sync {
                    found(route, number, writer, number.is_multiple_of(2))
                } else {
                    announced(route, number)
                };
                queue.push(vec![push], vec![]).await.unwrap();
            }
        });
    }
    let mut workers = JoinSet::new();
    for worker in 0..4u64 {
        let (queue, held, done, clock) = (Arc::clone(&queue), Arc::clone(&held), Arc::clone(&done), clock.clone());
        workers.spawn(async move {
            let mut turn = worker;
            loop {
                let finishing = done.load(Ordering::SeqCst);
                let mut found = 0;
                for lane in Lane::ALL {
                    let claims = claim_any(&*queue, route, lane, 3, clock.now()).await.unwrap();
                    for claim in claims {
                        found += 1;
                        turn += 1;
                        let blob = claim.entry().blob;
                        assert!(held.lock().insert(blob), "{blob} is held twice");
                        tokio::task::yield_now().await;
                        held.lock().remove(&blob);
                        let outcome = match turn % 5 {
                            _ if finishing => confirmed(),
                            0 => Outcome::Park { failure: failure(&clock), weight: Weight::ONE },
                            1 => Outcome::Retry {
                                due: clock.now() + Duration::from_secs(60),
                                failure: failure(&clock),
                                weight: Weight::ONE,
                            },
                            2 => continue,
                            _ => confirmed(),
                        };
                        queue.settle(vec![(claim, outcome)]).await.unwrap();
                    }
                }
                if finishing && found == 0 {
                    break;
                }
            }
        });
    }
    writers.join_all().await;
    let all = (0..BLOBS).map(|number| announced(route, number)).collect();
    queue.push(all, vec![]).await.unwrap();
    done.store(true, Ordering::SeqCst);
    workers.join_all().await;
    // What the last retries left, and what succeeds it.
    loop {
        clock.advance(60);
        let mut left = claim_any(&*queue, route, Lane::Fresh, 99, clock.now()).await.unwrap();
        left.extend(claim_any(&*queue, route, Lane::Backfill, 99, clock.now()).await.unwrap());
        if left.is_empty() {
            break;
        }
        queue.settle(left.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    }
    let counts = queue.counts(route);
    let parked = counts.fresh.parked.entries + counts.backfill.parked.entries;
    let lanes = [counts.fresh, counts.backfill];
    assert!(lanes.iter().all(|lane| lane.ready == Tally::default() && lane.claimed == Tally::default()), "{counts:?}");
    assert!(lanes.iter().all(|lane| lane.retrying == Tally::default()), "{counts:?}");
    assert!(parked <= BLOBS);
}
