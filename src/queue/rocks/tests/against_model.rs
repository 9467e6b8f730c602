//! Random operations, crashes among them, on the queue and on its plain model: no difference may ever show.
//!
//! `BLOBFERRY_MODEL_OPS` sets how many operations (`make model N=1000000`), `BLOBFERRY_MODEL_SEED` repeats a run.
//!
//! Writes are not synced here: what a crash of the machine does to the log is tested elsewhere. A crash of the process is
//! a copy of the folder, taken while the queue has it open, at any moment: between two operations, or within one, directly
//! before or after its write. A failed write changes nothing, and the queue goes on.

use crate::fault::FaultKind;
use crate::queue::drop::DropEntries;
use crate::queue::failures::{FailedEntry, FailedState, FailureFilter, Failures, Remedy};
use crate::queue::lookup::{Known, Lookup};
use crate::queue::model::ModelQueue;
use crate::queue::rocks::open::open;
use crate::queue::rocks::{RocksOptions, RocksQueue};
use crate::queue::suite::{MAX_BACKOFF, TestClock, all_failures, announced, blob, failure};
use crate::queue::{
    Claim, ClaimOrder, ClaimRequest, Entry, Failure, Lane, Origin, Outcome, Push, Queue, QueueError, RouteId, Seq,
    State, StateWrite, SyncId, Weight,
};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use rocksdb::{DB, Options};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const BLOBS: u64 = 24;
const SYNCS: u64 = 3;
const MAX_ENTRIES: u64 = 36;
/// Sequences that are compared with those seen before.
const REMEMBERED: usize = 10_000;
/// Completions that the queue remembers. The model forgets nothing, but each of the few blobs ends anew long before so many
/// others have; and each opening reads them all.
const COMPLETIONS: usize = 2_000;
/// Operations until the next comparison of what has to be read.
const READS: u64 = 8;
/// How long the queue may take to write again after a failed write.
const RECOVERY: Duration = Duration::from_secs(30);

/// What befalls the next write.
enum Blow {
    /// It fails.
    Fail,
    /// The process dies before it, and leaves this folder.
    CrashBefore(PathBuf),
    /// The process dies after it.
    CrashAfter(PathBuf),
}

/// The queue on disk, in a folder of folders: each crash goes on in a new one.
struct Rocks {
    root: TempDir,
    life: u64,
    clock: TestClock,
    blow: Arc<Mutex<Option<Blow>>>,
    queue: Option<RocksQueue>,
}

impl Rocks {
    fn new(clock: &TestClock) -> Self {
        let root = tempfile::tempdir().unwrap();
        let mut rocks = Self { root, life: 0, clock: clock.clone(), blow: Arc::default(), queue: None };
        rocks.open();
        rocks
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join(self.life.to_string())
    }

    /// The folder after the next crash.
    fn next_dir(&self) -> PathBuf {
        self.root.path().join((self.life + 1).to_string())
    }

    fn open(&mut self) {
        let options = RocksOptions {
            max_entries: MAX_ENTRIES,
            reserve_bytes: 0,
            max_backoff: MAX_BACKOFF,
            cache_bytes: 8 << 20,
            completions: COMPLETIONS,
            metrics: Arc::default(),
        };
        let (blow, from) = (Arc::clone(&self.blow), self.dir());
        let write = move |db: &DB, batch| match blow.lock().take() {
            None => db.write(batch),
            Some(Blow::Fail) => Err(DB::list_cf(&Options::default(), "/nowhere").unwrap_err()),
            Some(Blow::CrashBefore(to)) => {
                copy_folder(&from, &to);
                db.write(batch)
            }
            Some(Blow::CrashAfter(to)) => {
                db.write(batch)?;
                copy_folder(&from, &to);
                Ok(())
            }
        };
        self.queue = Some(open(&self.dir(), options, self.clock.clock(), Box::new(write)).unwrap());
    }

    fn queue(&self) -> &RocksQueue {
        self.queue.as_ref().unwrap()
    }

    /// Goes on with what the last crash left.
    async fn wake_up(&mut self) {
        self.queue.take().unwrap().close().await;
        std::fs::remove_dir_all(self.dir()).unwrap();
        self.life += 1;
        self.open();
    }
}

/// Copies an open database as a crash would leave it: what was written to its files. Done again if files came or went
/// meanwhile.
fn copy_folder(from: &Path, to: &Path) {
    let files = || -> io::Result<BTreeMap<PathBuf, u64>> {
        let mut files = BTreeMap::new();
        for file in std::fs::read_dir(from.join("db"))? {
            let file = file?;
            files.insert(file.path(), file.metadata()?.len());
        }
        Ok(files)
    };
    let copy = || -> io::Result<bool> {
        let before = files()?;
        std::fs::create_dir_all(to.join("db"))?;
        for path in before.keys().filter(|path| !path.ends_with("LOCK")) {
            std::fs::copy(path, to.join("db").join(path.file_name().unwrap()))?;
        }
        Ok(files()? == before)
    };
    while !copy().is_ok_and(|whole| whole) {
        if to.exists() {
            std::fs::remove_dir_all(to).unwrap();
        }
    }
}

struct Pair {
    rng: SmallRng,
    clock: TestClock,
    rocks: Rocks,
    /// Routes from which nothing is claimed.
    paused: [bool; 2],
    model: ModelQueue,
    routes: [RouteId; 2],
    claims: Vec<(Claim, Claim)>,
    /// Claims from before a restart, which mean nothing any more.
    stale: Vec<(Claim, Claim)>,
    /// The model's sequence of each of the queue's.
    seqs: BTreeMap<Seq, Seq>,
}

impl Pair {
    fn route(&mut self) -> RouteId {
        self.routes[self.rng.random_range(0..2)]
    }

    fn lane(&mut self) -> Lane {
        Lane::ALL[self.rng.random_range(0..2)]
    }

    fn a_push(&mut self, origins: u32) -> Push {
        let (route, number) = (self.route(), self.rng.random_range(0..BLOBS));
        let origin = match self.rng.random_range(0..origins) {
            0 => Origin::Chained,
            1 | 2 => Origin::Announced,
            _ => Origin::Sync(SyncId(self.rng.random_range(0..SYNCS))),
        };
        let lane = match origin {
            Origin::Announced => Lane::Fresh,
            Origin::Chained => self.lane(),
            Origin::Sync(_) => Lane::Backfill,
        };
        let size = self.rng.random_bool(0.7).then(|| self.rng.random_range(0..1000));
        Push { origin, lane, size, repair: self.rng.random_bool(0.2), ..announced(route, number) }
    }

    fn an_outcome(&mut self) -> Outcome {
        let kind = if self.rng.random_bool(0.5) { FaultKind::MissingAtSource } else { FaultKind::ShortRead };
        let failure = Failure { kind, ..failure(&self.clock) };
        let weight = Weight(self.rng.random_range(0..2000));
        match self.rng.random_range(0..10) {
            0..4 => {
                let chained = (0..self.rng.random_range(0..3)).map(|_| self.a_push(1)).collect();
                Outcome::Confirmed { size: self.rng.random_range(0..1000), copied: self.rng.random_bool(0.8), chained }
            }
            4..7 => {
                let due = self.clock.now() + Duration::from_secs(self.rng.random_range(0..600));
                Outcome::Retry { due, failure, weight }
            }
            7..9 => Outcome::Park { failure, weight },
            _ => Outcome::Discard,
        }
    }

    async fn push(&mut self, fails: bool) {
        let pushes: Vec<_> = (0..self.rng.random_range(1..5)).map(|_| self.a_push(5)).collect();
        let state: Vec<_> = (0..self.rng.random_range(0..2)).map(|_| self.a_write()).collect();
        self.doom(fails);
        let real = self.rocks.queue().push(pushes.clone(), state.clone()).await;
        // Another refusal comes first, though the write of what else there was may have failed, too.
        if fails && !self.spare() {
            self.recover().await;
            if matches!(real, Err(QueueError::Write(_))) {
                return;
            }
        }
        let model = self.model.push(pushes, state).await;
        match (real, model) {
            (Ok(real), Ok(model)) => assert_eq!(real, model),
            (Err(QueueError::Full { .. }), Err(QueueError::Full { .. })) => {}
            different => panic!("{different:?}"),
        }
    }

    /// Has the next write fail, or not.
    fn doom(&self, fails: bool) {
        *self.rocks.blow.lock() = fails.then_some(Blow::Fail);
    }

    /// Takes back what was to befall a write; whether none came.
    fn spare(&self) -> bool {
        self.rocks.blow.lock().take().is_some()
    }

    /// Waits until the queue writes again.
    async fn recover(&mut self) {
        let write = StateWrite { key: "k/recovered".to_owned(), value: None };
        let deadline = Instant::now() + RECOVERY;
        while let Err(error) = self.rocks.queue().write(vec![write.clone()]).await {
            assert!(Instant::now() < deadline, "{error}");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        self.model.reopen();
    }

    fn a_write(&mut self) -> StateWrite {
        let key = format!("k/{}", self.rng.random_range(0..5));
        StateWrite { key, value: self.rng.random_bool(0.7).then(|| vec![self.rng.random()]) }
    }

    async fn claim(&mut self) {
        let (at, lane, max) = (self.rng.random_range(0..2), self.lane(), self.rng.random_range(0..6));
        let route = self.routes[at];
        if self.paused[at] {
            return;
        }
        let now = self.clock.now();
        // Of known sequences, to look around them: they are not the same in both queues.
        let known = (!self.seqs.is_empty()).then(|| self.rng.random_range(0..self.seqs.len()));
        let known = known.and_then(|at| self.seqs.iter().nth(at)).map(|(real, model)| (*real, *model));
        let (of_real, of_model) = match (self.rng.random_range(0..8), known) {
            (3..5, _) => (ClaimOrder::Due, ClaimOrder::Due),
            (5, _) => (ClaimOrder::Newest, ClaimOrder::Newest),
            (6, Some((real, model))) => (ClaimOrder::After(real), ClaimOrder::After(model)),
            (7, Some((real, model))) => (ClaimOrder::Before(real), ClaimOrder::Before(model)),
            _ => (ClaimOrder::Oldest, ClaimOrder::Oldest),
        };
        let request = |order| ClaimRequest { route, lane, order, max, now };
        let real = self.rocks.queue().claim(request(of_real)).await.unwrap();
        let model = self.model.claim(request(of_model)).await.unwrap();
        assert_eq!(real.next_due, model.next_due);
        let (real, model) = (real.claims, model.claims);
        for (real, model) in real.iter().zip(&model) {
            let (real, model) = (real.entry(), model.entry());
            assert_eq!(&Entry { seq: model.seq, ..real.clone() }, model);
            self.same_seq(real.seq, model.seq);
        }
        assert_eq!(real.len(), model.len());
        self.claims.extend(real.into_iter().zip(model));
    }

    /// Two sequences of the same entry, which must stand in the same order in both queues.
    fn same_seq(&mut self, real: Seq, model: Seq) {
        if self.seqs.len() > REMEMBERED {
            self.seqs.clear();
        }
        assert_eq!(*self.seqs.entry(real).or_insert(model), model);
        assert!(self.seqs.range(..real).next_back().is_none_or(|(_, before)| *before < model), "in another order");
        assert!(self.seqs.range(real..).nth(1).is_none_or(|(_, after)| *after > model), "in another order");
    }

    fn take_claims(&mut self) -> Vec<(Claim, Claim)> {
        let mut taken = Vec::new();
        for _ in 0..self.rng.random_range(0..4) {
            if !self.claims.is_empty() {
                let at = self.rng.random_range(0..self.claims.len());
                taken.push(self.claims.swap_remove(at));
            }
        }
        taken
    }

    async fn settle(&mut self, fails: bool) {
        let (mut real, mut model) = (Vec::new(), Vec::new());
        for (of_real, of_model) in self.take_claims() {
            let outcome = self.an_outcome();
            real.push((of_real, outcome.clone()));
            model.push((of_model, outcome));
        }
        self.doom(fails);
        let settled = self.rocks.queue().settle(real).await;
        if !self.spare() && matches!(settled, Err(QueueError::Write(_))) {
            // Released, as the model's are.
            drop(model);
            return self.recover().await;
        }
        settled.unwrap();
        self.model.settle(model).await.unwrap();
    }

    /// Lists what failed, and retries or discards some of it, or of what did not fail.
    async fn remedy(&mut self, fails: bool) {
        let route = self.route();
        let filter = FailureFilter {
            kind: [None, Some(FaultKind::MissingAtSource), Some(FaultKind::ShortRead)][self.rng.random_range(0..3)],
            state: [None, Some(FailedState::Retrying), Some(FailedState::Parked)][self.rng.random_range(0..3)],
        };
        let page = self.rng.random_range(1..6);
        let real = all_failures(self.rocks.queue(), route, filter, page).await;
        let model = all_failures(&self.model, route, filter, page).await;
        self.same(&real, &model);
        let blobs: Vec<_> = (0..3).map(|_| blob(self.rng.random_range(0..BLOBS))).collect();
        let real_of = self.rocks.queue().failures_of(route, blobs.clone()).await.unwrap();
        let model_of = self.model.failures_of(route, blobs).await.unwrap();
        self.same(&real_of, &model_of);

        let share = self.rng.random_range(0.0..0.6);
        let picked: Vec<bool> = real.iter().map(|_| self.rng.random_bool(share)).collect();
        let chosen = |failed: &[FailedEntry], claimed: Vec<Seq>| -> Vec<Seq> {
            let failed = failed.iter().zip(&picked).filter(|(_, picked)| **picked).map(|(failed, _)| failed.entry.seq);
            failed.chain(claimed).collect()
        };
        let of_real = chosen(&real, self.claims.iter().take(2).map(|(claim, _)| claim.entry().seq).collect());
        let of_model = chosen(&model, self.claims.iter().take(2).map(|(_, claim)| claim.entry().seq).collect());
        let remedy = match self.rng.random_range(0..10) {
            0..7 => Remedy::Revive,
            7..9 => Remedy::Discard,
            _ => Remedy::Expire(self.clock.now() - Duration::from_secs(self.rng.random_range(0..600))),
        };
        self.doom(fails);
        let changed = self.rocks.queue().remedy(route, of_real, remedy).await;
        if !self.spare() && matches!(changed, Err(QueueError::Write(_))) {
            return self.recover().await;
        }
        assert_eq!(changed.unwrap(), self.model.remedy(route, of_model, remedy).await.unwrap());
    }

    /// Drops some of a route's entries, or all.
    async fn drop_entries(&mut self) {
        let (route, max) = (self.route(), self.rng.random_range(1..30));
        for _ in 0..self.rng.random_range(1..4) {
            let real = self.rocks.queue().drop_entries(route, max).await.unwrap();
            assert_eq!(real, self.model.drop_entries(route, max).await.unwrap());
        }
    }

    fn same(&mut self, real: &[FailedEntry], model: &[FailedEntry]) {
        assert_eq!(real.len(), model.len());
        for (real, model) in real.iter().zip(model) {
            assert_eq!(&Entry { seq: model.entry.seq, ..real.entry.clone() }, &model.entry);
            assert_eq!(real.state, model.state);
            self.same_seq(real.entry.seq, model.entry.seq);
        }
    }

    /// Closes the queue and opens it again.
    async fn reopen(&mut self) {
        self.stale.append(&mut self.claims);
        self.rocks.queue.take().unwrap().close().await;
        self.rocks.open();
        self.model.crash();
    }

    /// Dies between two operations.
    async fn crash(&mut self) {
        copy_folder(&self.rocks.dir(), &self.rocks.next_dir());
        self.wake_up().await;
    }

    async fn wake_up(&mut self) {
        self.stale.append(&mut self.claims);
        self.rocks.wake_up().await;
        self.model.crash();
    }

    /// Dies in the middle of a push or a settlement: nothing of it is there before the write, all of it after.
    async fn crash_within(&mut self) {
        let after = self.rng.random_bool(0.5);
        let to = self.rocks.next_dir();
        *self.rocks.blow.lock() = Some(if after { Blow::CrashAfter(to) } else { Blow::CrashBefore(to) });
        if self.rng.random_bool(0.5) {
            let pushes: Vec<_> = (0..self.rng.random_range(1..5)).map(|_| self.a_push(1)).collect();
            let state = vec![self.a_write()];
            self.rocks.queue().push(pushes.clone(), state.clone()).await.unwrap();
            if after {
                self.model.push(pushes, state).await.unwrap();
            }
        } else {
            let (mut real, mut model) = (Vec::new(), Vec::new());
            for (of_real, of_model) in self.take_claims() {
                let outcome = self.an_outcome();
                real.push((of_real, outcome.clone()));
                model.push((of_model, outcome));
            }
            self.rocks.queue().settle(real).await.unwrap();
            if after {
                self.model.settle(model).await.unwrap();
            }
        }
        if self.spare() {
            // Nothing was written.
            return self.crash().await;
        }
        self.wake_up().await;
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..1000) {
            0..340 => self.push(false).await,
            340..350 => self.drop_entries().await,
            350..600 => self.claim().await,
            600..790 => self.settle(false).await,
            790..825 => drop(self.take_claims()),
            825..850 => self.remedy(false).await,
            850..870 => self.look_up().await,
            870..920 => self.clock.advance(self.rng.random_range(0..300)),
            920..935 => self.clock.go_back(self.rng.random_range(0..300)),
            935..950 => self.stale.clear(),
            950..965 => {
                let writes = vec![self.a_write(), self.a_write()];
                self.rocks.queue().write(writes.clone()).await.unwrap();
                self.model.write(writes).await.unwrap();
            }
            965..975 => {
                let at = self.rng.random_range(0..2);
                self.paused[at] = !self.paused[at];
            }
            975..983 => self.push(true).await,
            983..991 => self.settle(true).await,
            991..995 => self.remedy(true).await,
            995..996 => self.reopen().await,
            996..998 => self.crash().await,
            _ => self.crash_within().await,
        }
    }

    /// Looks some blobs up: entries, how they stand, and what is remembered.
    async fn look_up(&mut self) {
        let blobs: Vec<_> = (0..6).map(|_| (self.route(), blob(self.rng.random_range(0..BLOBS)))).collect();
        let real = self.rocks.queue().look_up(blobs.clone()).await.unwrap();
        let model = self.model.look_up(blobs).await.unwrap();
        for (real, model) in real.iter().zip(&model) {
            assert_eq!(real.completion, model.completion);
            let entries = |known: &Known| {
                let first = known.queued.as_ref().map(|queued| queued.entry.clone());
                [first, known.successor.clone()].map(|entry| entry.map(|entry| Entry { seq: Seq(0), ..entry }))
            };
            assert_eq!(entries(real), entries(model));
            let standing = |known: &Known| known.queued.as_ref().map(|queued| queued.standing);
            assert_eq!(standing(real), standing(model));
        }
        assert_eq!(real.len(), model.len());
    }

    /// Compares what is told from memory.
    fn compare(&self) {
        let real = self.rocks.queue();
        for route in self.routes {
            assert_eq!(real.counts(route), self.model.counts(route));
        }
        for sync in (0..SYNCS).map(SyncId) {
            assert_eq!(real.sync_tally(sync), self.model.sync_tally(sync));
        }
    }

    /// Compares what is read from the disk.
    async fn compare_reads(&self) {
        let real = self.rocks.queue();
        for route in self.routes {
            let (oldest, expected) = (real.oldest(route).await.unwrap(), self.model.oldest(route).await.unwrap());
            assert_eq!(oldest.next_due, expected.next_due);
        }
        assert_eq!(real.list("k/", 9).await.unwrap(), self.model.list("k/", 9).await.unwrap());
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// Tells how to repeat a run that fails.
struct Run {
    seed: u64,
    op: u64,
}

impl Drop for Run {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("operation {} of the run with BLOBFERRY_MODEL_SEED={} shows a difference", self.op, self.seed);
        }
    }
}

#[tokio::test]
async fn random_operations_end_as_in_the_model() {
    let ops = setting("BLOBFERRY_MODEL_OPS").unwrap_or(2000);
    let mut run = Run { seed: setting("BLOBFERRY_MODEL_SEED").unwrap_or_else(rand::random), op: 0 };
    let clock = TestClock::new();
    let rocks = Rocks::new(&clock);
    let model = ModelQueue::new(MAX_ENTRIES, MAX_BACKOFF, clock.clock());
    let mut routes = Vec::new();
    for (name, from, to) in [("a_to_b", "a", "b"), ("b_to_c", "b", "c")] {
        let route = rocks.queue().register(name, from, to).await.unwrap();
        assert_eq!(model.register(name, from, to).await.unwrap(), route);
        routes.push(route);
    }
    let mut pair = Pair {
        rng: SmallRng::seed_from_u64(run.seed),
        clock,
        rocks,
        model,
        paused: [false; 2],
        routes: routes.try_into().unwrap(),
        claims: Vec::new(),
        stale: Vec::new(),
        seqs: BTreeMap::new(),
    };
    for op in 0..ops {
        run.op = op;
        pair.step().await;
        pair.compare();
        if op % READS == 0 {
            pair.compare_reads().await;
        }
    }
}
