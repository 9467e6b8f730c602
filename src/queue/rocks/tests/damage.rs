//! Damage of every file, and disks that fail.

use super::{faulty, one_route, open_raw, options};
use crate::queue::damage::{Condition, INCIDENTS, Incident, Mending, QueueTrouble, SYNC_NEEDED};
use crate::queue::rocks::database::write_synced;
use crate::queue::rocks::open::open;
use crate::queue::rocks::{OpenError, RocksQueue, keys};
use crate::queue::suite::{TestClock, announced, blob, claim_any, confirmed, failure, found};
use crate::queue::{Lane, Outcome, Pushed, Queue, QueueError, RouteId, State, StateWrite, SyncId, Weight};
use parking_lot::Mutex;
use rocksdb::{DB, Options};
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tempfile::TempDir;

/// How a write of a faulty queue goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Works,
    /// It reaches the disk, and says that it failed.
    FailsAfter,
    FailsBefore,
}

fn io_error() -> rocksdb::Error {
    DB::list_cf(&Options::default(), "/nowhere").unwrap_err()
}

fn queue_with(dir: &Path, clock: &TestClock, way: Arc<Mutex<Way>>) -> RocksQueue {
    let write = move |db: &DB, batch| match *way.lock() {
        Way::Works => write_synced(db, batch),
        Way::FailsBefore => Err(io_error()),
        Way::FailsAfter => write_synced(db, batch).and(Err(io_error())),
    };
    open(dir, options(), clock.clock(), Box::new(write)).unwrap()
}

/// Polls until it is written again.
pub(super) async fn recovered(queue: &RocksQueue) {
    let probe = || StateWrite { key: "probe".to_owned(), value: None };
    for _ in 0..1000 {
        if queue.write(vec![probe()]).await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("it never recovers: {:?}", queue.trouble());
}

fn reopen(dir: &TempDir, clock: &TestClock) -> Result<RocksQueue, OpenError> {
    RocksQueue::open(dir.path(), options(), clock.clock())
}

async fn incidents(queue: &RocksQueue) -> Vec<Incident> {
    let rows = queue.list(INCIDENTS, 10).await.unwrap();
    rows.iter().map(|(_, value)| Incident::decode(value).unwrap()).collect()
}

fn files(dir: &TempDir, ending: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.path().join("db")).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files
        .filter(|path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            (name.ends_with(ending) || name.starts_with(ending)) && path.metadata().unwrap().len() > 0
        })
        .collect();
    files.sort();
    files
}

fn aside(dir: &TempDir) -> Vec<PathBuf> {
    let files = fs::read_dir(dir.path()).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("db.damaged-")).collect()
}

/// A folder with the same database.
fn copy_of(template: &TempDir) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("db")).unwrap();
    for file in fs::read_dir(template.path().join("db")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), dir.path().join("db").join(file.file_name())).unwrap();
    }
    dir
}

async fn opened_in_time(dir: &TempDir, clock: &TestClock) -> RocksQueue {
    let (path, wall) = (dir.path().to_owned(), clock.clock());
    let opening = tokio::task::spawn_blocking(move || RocksQueue::open(&path, options(), wall).unwrap());
    tokio::time::timeout(Duration::from_secs(60), opening).await.expect("it opens at all").unwrap()
}

/// Turns some bytes of a file over.
fn damage(path: &Path, at: u64, count: usize) {
    let mut file = File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = vec![0; count];
    file.seek(SeekFrom::Start(at)).unwrap();
    file.read_exact(&mut bytes).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&bytes).unwrap();
}

/// A closed queue whose log has so many batches of one entry.
async fn logged(batches: u64) -> (TempDir, TestClock) {
    let (dir, clock, queue, route) = one_route().await;
    for number in 0..batches {
        clock.advance(1);
        queue.push(vec![announced(route, number)], vec![]).await.unwrap();
    }
    queue.close().await;
    (dir, clock)
}

/// The same, all of it in tables.
async fn tabled(entries: u64) -> (TempDir, TestClock) {
    let (dir, clock) = logged(entries).await;
    let db = open_raw(dir.path());
    for name in keys::FAMILIES {
        db.flush_cf(db.cf_handle(name).unwrap()).unwrap();
    }
    drop(db);
    (dir, clock)
}

/// Whatever the torn part looks like: some kinds of records made RocksDB read for ever, or forget the whole log.
#[tokio::test]
async fn a_torn_tail_never_hangs_and_what_was_acked_before_it_survives() {
    let (template, clock) = logged(20).await;
    for kind in (0..=12).chain([130, 131, 255]) {
        for length in [1u8, 200] {
            let dir = copy_of(&template);
            let log = files(&dir, ".log").pop().unwrap();
            let mut file = File::options().append(true).open(&log).unwrap();
            file.write_all(&[9, 9, 9, 9, length, 0, kind]).unwrap();
            file.write_all(&[kind; 40]).unwrap();
            let queue = opened_in_time(&dir, &clock).await;
            assert_eq!(queue.counts(RouteId(0)).fresh.ready.entries, 20, "{kind} {length}");
        }
    }
}

#[tokio::test]
async fn damage_of_any_record_of_the_log_is_seen() {
    let (template, clock) = logged(20).await;
    for (at, kind) in [(6, 5), (6, 8), (6, 11), (6, 131), (6, 0), (6, 3), (5, 0x70), (4, 0)] {
        let dir = copy_of(&template);
        let log = files(&dir, ".log").pop().unwrap();
        let mut bytes = fs::read(&log).unwrap();
        bytes[at] = kind;
        fs::write(&log, bytes).unwrap();
        let queue = opened_in_time(&dir, &clock).await;
        let left = queue.counts(RouteId(0)).fresh.ready.entries;
        assert!(left == 20 || incidents(&queue).await.len() == 1, "{kind}: {left} left, and no word");
    }
}

#[tokio::test]
async fn a_log_damaged_in_its_middle_is_read_up_to_there_and_kept() {
    let (dir, clock) = logged(50).await;
    let log = files(&dir, ".log").pop().unwrap();
    damage(&log, log.metadata().unwrap().len() / 2, 16);
    clock.advance(1000);
    let queue = reopen(&dir, &clock).unwrap();
    let left = queue.counts(RouteId(0)).fresh.ready.entries;
    assert!((1..50).contains(&left), "{left}");
    let claims = claim_any(&queue, RouteId(0), Lane::Fresh, 100, clock.now()).await.unwrap();
    let blobs: Vec<_> = claims.iter().map(|claim| claim.entry().blob).collect();
    assert_eq!(blobs, (0..left).map(blob).collect::<Vec<_>>());
    let newest = claims.last().unwrap().entry().enqueue_time;
    drop(claims);

    let found = incidents(&queue).await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!((found[0].mending, found[0].lost_from, found[0].time), (Mending::CutBack, Some(newest), clock.now()));
    assert_eq!(aside(&dir), [PathBuf::from(&found[0].kept)]);
    assert_eq!(queue.push(vec![announced(RouteId(0), 49)], vec![]).await.unwrap(), [Pushed::Added]);
    queue.close().await;
    // Once, and no more.
    let queue = reopen(&dir, &clock).unwrap();
    assert_eq!((incidents(&queue).await.len(), aside(&dir).len()), (1, 1));
    assert_eq!(queue.counts(RouteId(0)).fresh.ready.entries, left + 1);
}

#[tokio::test]
async fn what_cannot_be_read_at_all_is_moved_aside() {
    for (what, ending) in [("manifest", "MANIFEST-"), ("current", "CURRENT"), ("table", ".sst")] {
        let (dir, clock) = tabled(200).await;
        for file in files(&dir, ending) {
            let size = file.metadata().unwrap().len();
            // A table's foot says where everything is.
            let at = if ending == ".sst" { size - 40 } else { 0 };
            damage(&file, at, usize::try_from(size - at).unwrap().min(40));
        }
        let queue = reopen(&dir, &clock).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(queue.routes(), [], "{what}");
        let found = incidents(&queue).await;
        assert_eq!(found.len(), 1, "{what}: {found:?}");
        assert_eq!((found[0].mending, found[0].lost_from), (Mending::BegunAnew, None), "{what}");
        assert_eq!(aside(&dir), [PathBuf::from(&found[0].kept)], "{what}");
        let route = queue.register("a_to_b", "a", "b").await.unwrap();
        assert!(queue.get(&format!("{SYNC_NEEDED}a_to_b")).await.unwrap().is_some());
        queue.push(vec![announced(route, 1)], vec![]).await.unwrap();
        queue.close().await;
        let queue = reopen(&dir, &clock).unwrap();
        assert_eq!((incidents(&queue).await.len(), queue.counts(route).fresh.ready.entries), (1, 1), "{what}");
    }
}

#[tokio::test]
async fn a_missing_file_is_damage_and_an_unused_one_is_not() {
    for (ending, lost) in [("CURRENT", true), (".sst", true), ("MANIFEST-", true), ("OPTIONS-", false)] {
        let (dir, clock) = tabled(200).await;
        files(&dir, ending).iter().for_each(|file| fs::remove_file(file).unwrap());
        let queue = reopen(&dir, &clock).unwrap_or_else(|error| panic!("{ending}: {error}"));
        assert_eq!(incidents(&queue).await.len(), usize::from(lost), "{ending}");
        assert_eq!(aside(&dir).len(), usize::from(lost), "{ending}");
    }
    // Nobody needs these to read the queue.
    let (dir, clock) = tabled(10).await;
    files(&dir, "OPTIONS-").iter().for_each(|file| damage(file, 0, 40));
    let queue = reopen(&dir, &clock).unwrap();
    assert_eq!(queue.counts(RouteId(0)).fresh.ready.entries, 10);
}

/// An empty place where a queue was is no new queue, and one without its log has lost acked entries.
#[tokio::test]
async fn a_queue_or_a_log_that_is_gone_is_damage() {
    for whole in [true, false] {
        let (dir, clock) = logged(50).await;
        if whole {
            fs::remove_dir_all(dir.path().join("db")).unwrap();
        } else {
            let logs = fs::read_dir(dir.path().join("db")).unwrap().map(|file| file.unwrap().path());
            let logs: Vec<_> = logs.filter(|path| path.extension().is_some_and(|ending| ending == "log")).collect();
            assert!(!logs.is_empty());
            logs.iter().for_each(|log| fs::remove_file(log).unwrap());
        }
        let queue = reopen(&dir, &clock).unwrap();
        let found = incidents(&queue).await;
        assert_eq!((found.len(), found[0].mending, queue.routes().len()), (1, Mending::BegunAnew, 0), "{whole}");
        queue.close().await;
        // Told once; what was begun then is as good as any.
        let queue = reopen(&dir, &clock).unwrap();
        assert_eq!((incidents(&queue).await.len(), aside(&dir).len()), (1, 1), "{whole}");
    }
}

#[tokio::test]
async fn a_database_whose_files_vanish_is_not_begun_anew_behind_everybodys_back() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let way = Arc::new(Mutex::new(Way::Works));
    let queue = queue_with(dir.path(), &clock, way.clone());
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    queue.push(vec![announced(route, 1)], vec![]).await.unwrap();
    fs::rename(dir.path().join("db"), dir.path().join("elsewhere")).unwrap();
    *way.lock() = Way::FailsBefore;
    assert!(queue.push(vec![announced(route, 2)], vec![]).await.is_err());
    *way.lock() = Way::Works;
    let ended = async {
        while !matches!(queue.trouble(), Some(QueueTrouble::Ended(_))) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert!(queue.push(vec![announced(route, 2)], vec![]).await.is_err());
}

#[tokio::test]
async fn a_row_of_the_figures_that_cannot_be_read_is_damage() {
    let (dir, clock) = logged(5).await;
    let db = open_raw(dir.path());
    let meta = db.cf_handle(keys::META).unwrap();
    db.put_cf(meta, keys::of_route(keys::META_COUNTS, RouteId(0)), b"garbage").unwrap();
    drop(db);
    let queue = reopen(&dir, &clock).unwrap();
    let found = incidents(&queue).await;
    assert_eq!(found[0].mending, Mending::BegunAnew);
    assert!(found[0].what.contains("counters"), "{}", found[0].what);
}

#[tokio::test]
async fn what_may_be_sound_is_never_taken_for_damaged() {
    // Another process holds it.
    let (dir, clock, queue, _) = one_route().await;
    assert!(matches!(reopen(&dir, &clock), Err(OpenError::Locked(_))));
    queue.close().await;
    // A folder stands where a file should: it cannot be read, and that is no corruption.
    let manifest = files(&dir, "MANIFEST-").pop().unwrap();
    let hidden = dir.path().join("hidden");
    fs::rename(&manifest, &hidden).unwrap();
    fs::create_dir(&manifest).unwrap();
    let refused = reopen(&dir, &clock).unwrap_err();
    assert!(matches!(refused, OpenError::Database(_) | OpenError::Folder { .. }), "{refused:?}");
    assert!(aside(&dir).is_empty() && !dir.path().join("recovery").exists());
    fs::remove_dir(&manifest).unwrap();
    fs::rename(&hidden, &manifest).unwrap();
    assert_eq!(reopen(&dir, &clock).unwrap().routes().len(), 1);
}

#[tokio::test]
async fn a_start_that_was_cut_while_it_mended_still_tells() {
    let (dir, clock) = logged(50).await;
    let log = files(&dir, ".log").pop().unwrap();
    damage(&log, log.metadata().unwrap().len() / 2, 16);
    reopen(&dir, &clock).unwrap().close().await;
    // As if the note had not become an incident yet, and a copy was under way.
    let db = open_raw(dir.path());
    let state = db.cf_handle(keys::STATE).unwrap();
    let (key, value) = db.iterator_cf(state, rocksdb::IteratorMode::Start).next().unwrap().unwrap();
    assert!(key.starts_with(INCIDENTS.as_bytes()));
    db.delete_cf(state, &key).unwrap();
    drop(db);
    let mut note = vec![0x0a, u8::try_from(value.len()).unwrap()];
    note.extend_from_slice(&value);
    fs::write(dir.path().join("recovery"), note).unwrap();
    let partial = dir.path().join("db.damaged-20260101T000000Z.partial");
    fs::create_dir(&partial).unwrap();

    let queue = reopen(&dir, &clock).unwrap();
    assert_eq!(incidents(&queue).await.len(), 1);
    assert!(!dir.path().join("recovery").exists() && !partial.exists());
    queue.close().await;
    fs::write(dir.path().join("recovery"), b"\xff\xff").unwrap();
    assert!(!incidents(&reopen(&dir, &clock).unwrap()).await.is_empty());
}

/// Damage that opening does not meet: it shows, hides nothing else, and the next start mends it.
#[tokio::test]
async fn damage_met_while_running_shows_and_is_mended_by_the_next_start() {
    let (dir, clock) = tabled(2000).await;
    // The first data block of every table.
    files(&dir, ".sst")
        .iter()
        .filter(|file| file.metadata().unwrap().len() > 20_000)
        .for_each(|file| damage(file, 64, 64));
    let queue = reopen(&dir, &clock).unwrap();
    assert_eq!((queue.trouble(), incidents(&queue).await), (None, vec![]));
    for _ in 0..3 {
        assert!(matches!(claim_any(&queue, RouteId(0), Lane::Fresh, 10, clock.now()).await, Err(QueueError::Read(_))));
    }
    // RocksDB itself may have met it meanwhile, and write no more.
    assert!(queue.trouble().is_some());
    queue.close().await;

    let queue = reopen(&dir, &clock).unwrap();
    assert_eq!((queue.trouble(), incidents(&queue).await.len(), aside(&dir).len()), (None, 1, 1));
    queue.close().await;
    assert_eq!(incidents(&reopen(&dir, &clock).unwrap()).await.len(), 1);
}

#[tokio::test]
async fn a_failed_write_acks_nothing_changes_nothing_and_is_followed_by_opening_again() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let (queue, fails, _) = faulty(dir.path(), &clock);
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    queue.push(vec![announced(route, 1), announced(route, 2), found(route, 3, 7, false)], vec![]).await.unwrap();
    let claim = async |lane| claim_any(&queue, route, lane, 1, clock.now()).await.unwrap().pop().unwrap();
    let parked = claim(Lane::Backfill).await;
    queue.settle(vec![(parked, Outcome::Park { failure: failure(&clock), weight: Weight::ONE })]).await.unwrap();
    let (first, kept) = (claim(Lane::Fresh).await, claim(Lane::Fresh).await);
    let counts = queue.counts(route);

    fails.store(true, Ordering::SeqCst);
    let refused = queue.push(vec![announced(route, 4), announced(route, 1), announced(route, 3)], vec![]).await;
    assert!(matches!(refused, Err(QueueError::Write(_))));
    assert_eq!(queue.counts(route), counts);
    assert_eq!(queue.sync_tally(SyncId(7)).parked, 1);
    assert!(matches!(queue.trouble(), Some(QueueTrouble::Reopening(_)) | None));
    assert!(matches!(queue.register("other", "a", "b").await, Err(QueueError::Write(_))));
    // A failed settlement releases.
    assert!(matches!(queue.settle(vec![(first, confirmed())]).await, Err(QueueError::Write(_))));
    assert_eq!(queue.counts(route).fresh.ready.entries, 1);

    fails.store(false, Ordering::SeqCst);
    recovered(&queue).await;
    assert_eq!(queue.trouble(), None);
    let pushed = queue.push(vec![announced(route, 4), announced(route, 1), announced(route, 3)], vec![]).await;
    assert_eq!(pushed.unwrap(), [Pushed::Added, Pushed::AlreadyQueued, Pushed::Revived]);
    // A claim that was held all the while is still one.
    let claims = claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap();
    let mut claimed: Vec<_> = claims.iter().map(|claim| claim.entry().blob).collect();
    claimed.sort();
    let mut expected = [1, 3, 4].map(blob);
    expected.sort();
    assert_eq!(claimed, expected);
    queue.settle(vec![(kept, confirmed())]).await.unwrap();
    assert_eq!(queue.counts(route).confirmed, 1);
}

/// A batch that reached the disk though its sync failed is read back: entries, claims, counters.
#[tokio::test]
async fn a_batch_of_unknown_fate_is_read_back() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let way = Arc::new(Mutex::new(Way::Works));
    let queue = queue_with(dir.path(), &clock, way.clone());
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    let pushes = (1..=4).map(|number| announced(route, number)).collect();
    queue.push(pushes, vec![]).await.unwrap();
    let mut claims = claim_any(&queue, route, Lane::Fresh, 3, clock.now()).await.unwrap();
    let (settled, retried) = (claims.remove(0), claims.remove(0));
    let retry =
        Outcome::Retry { due: clock.now() + Duration::from_secs(60), failure: failure(&clock), weight: Weight::ONE };

    *way.lock() = Way::FailsAfter;
    let refused = queue.settle(vec![(settled, confirmed()), (retried, retry)]).await;
    assert!(matches!(refused, Err(QueueError::Write(_))));
    *way.lock() = Way::Works;
    recovered(&queue).await;
    let counts = queue.counts(route);
    assert_eq!((counts.confirmed, counts.fresh.retrying.entries, counts.fresh.claimed.entries), (1, 1, 1));
    assert_eq!(counts.fresh.ready.entries, 1);
    // What was confirmed is gone, what is to be retried waits, what is claimed stays so.
    let found = claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap();
    let found: Vec<_> = found.iter().map(|claim| claim.entry().blob).collect();
    assert_eq!(found, [blob(4)]);

    *way.lock() = Way::FailsAfter;
    assert!(queue.push(vec![announced(route, 5)], vec![]).await.is_err());
    *way.lock() = Way::Works;
    recovered(&queue).await;
    assert_eq!(queue.push(vec![announced(route, 5)], vec![]).await.unwrap(), [Pushed::AlreadyQueued]);
    queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    assert_eq!(queue.counts(route).confirmed, 2);
}

/// What is known of a claimed entry's row is forgotten: a batch that reached the disk may have given it a successor, which
/// would never be claimed if the entry ended as if it were alone.
#[tokio::test]
async fn a_successor_of_unknown_fate_is_claimed_when_its_turn_comes() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let way = Arc::new(Mutex::new(Way::Works));
    let queue = queue_with(dir.path(), &clock, way.clone());
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    queue.push(vec![announced(route, 1)], vec![]).await.unwrap();
    let claim = claim_any(&queue, route, Lane::Fresh, 1, clock.now()).await.unwrap().pop().unwrap();

    *way.lock() = Way::FailsAfter;
    assert!(queue.push(vec![announced(route, 1)], vec![]).await.is_err());
    *way.lock() = Way::Works;
    recovered(&queue).await;
    queue.settle(vec![(claim, confirmed())]).await.unwrap();
    let found = claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap();
    assert_eq!(found.iter().map(|claim| claim.entry().blob).collect::<Vec<_>>(), [blob(1)]);
}

#[tokio::test]
async fn while_the_disk_fails_every_request_is_refused_at_once() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), TestClock::new());
    let way = Arc::new(Mutex::new(Way::Works));
    let queue = queue_with(dir.path(), &clock, way.clone());
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    *way.lock() = Way::FailsBefore;
    // It is opened again in between, and fails again: never an ack, never a wait.
    for number in 0..200 {
        let pushed = tokio::time::timeout(Duration::from_secs(1), queue.push(vec![announced(route, number)], vec![]));
        assert!(matches!(pushed.await.unwrap(), Err(QueueError::Write(_))), "{number}");
    }
    assert_eq!(queue.counts(route).fresh.ready.entries, 0);
    // It closes while it is being opened again.
    queue.close().await;
    let queue = reopen(&dir, &clock).unwrap();
    assert_eq!(queue.counts(route).fresh.ready.entries, 0);
}

#[tokio::test]
async fn an_unreadable_row_whose_setting_aside_failed_is_met_again() {
    let (dir, clock, queue, route) = one_route().await;
    queue.push(vec![announced(route, 1), announced(route, 2)], vec![]).await.unwrap();
    drop(queue);
    let db = open_raw(dir.path());
    db.put_cf(db.cf_handle(keys::ENTRY).unwrap(), keys::entry(route, 0), b"garbage").unwrap();
    drop(db);
    let way = Arc::new(Mutex::new(Way::FailsBefore));
    let queue = queue_with(dir.path(), &clock, way.clone());
    assert_eq!(claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap().len(), 1);
    assert!(queue.push(vec![announced(route, 3)], vec![]).await.is_err());
    assert_eq!(queue.set_aside(), 0);
    *way.lock() = Way::Works;
    recovered(&queue).await;
    assert_eq!(claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap().len(), 1);
    recovered(&queue).await;
    assert_eq!(queue.set_aside(), 1);
}
