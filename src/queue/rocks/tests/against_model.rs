//! Random operations, crashes among them, on the queue and on its plain model: no difference may ever show.
//!
//! `BLOBFERRY_MODEL_OPS` sets how many operations, `BLOBFERRY_MODEL_SEED` repeats a run.

use super::Rocks;
use crate::fault::FaultKind;
use crate::queue::failures::{Failed, FailedState, FailureFilter, Failures, Remedy};
use crate::queue::lookup::{Known, Lookup};
use crate::queue::model::ModelQueue;
use crate::queue::suite::{MAX_BACKOFF, Subject, TestClock, all_failures, announced, blob, failure};
use crate::queue::{
    Claim, Entry, Failure, Lane, Origin, Outcome, Push, Queue, QueueError, RouteId, Seq, State, StateWrite, SyncId,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;

const BLOBS: u64 = 24;
const SYNCS: u64 = 3;
const MAX_ENTRIES: u64 = 36;

struct Pair {
    rng: SmallRng,
    clock: TestClock,
    rocks: Rocks,
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
        match self.rng.random_range(0..10) {
            0..4 => {
                let chained = (0..self.rng.random_range(0..3)).map(|_| self.a_push(1)).collect();
                Outcome::Confirmed { size: self.rng.random_range(0..1000), copied: self.rng.random_bool(0.8), chained }
            }
            4..7 => {
                let due = self.clock.now() + Duration::from_secs(self.rng.random_range(0..600));
                Outcome::Retry { due, failure }
            }
            7..9 => Outcome::Park { failure },
            _ => Outcome::Discard,
        }
    }

    async fn push(&mut self) {
        let pushes: Vec<_> = (0..self.rng.random_range(1..5)).map(|_| self.a_push(5)).collect();
        let state: Vec<_> = (0..self.rng.random_range(0..2)).map(|_| self.a_write()).collect();
        let real = self.rocks.queue().push(pushes.clone(), state.clone()).await;
        let model = self.model.push(pushes, state).await;
        match (real, model) {
            (Ok(real), Ok(model)) => assert_eq!(real, model),
            (Err(QueueError::Full { .. }), Err(QueueError::Full { .. })) => {}
            different => panic!("{different:?}"),
        }
    }

    fn a_write(&mut self) -> StateWrite {
        let key = format!("k/{}", self.rng.random_range(0..5));
        StateWrite { key, value: self.rng.random_bool(0.7).then(|| vec![self.rng.random()]) }
    }

    async fn claim(&mut self) {
        let (route, lane, max) = (self.route(), self.lane(), self.rng.random_range(0..6));
        let now = self.clock.now();
        let real = self.rocks.queue().claim(route, lane, max, now).await.unwrap();
        let model = self.model.claim(route, lane, max, now).await.unwrap();
        for (real, model) in real.iter().zip(&model) {
            let (real, model) = (real.entry(), model.entry());
            assert_eq!(&Entry { seq: model.seq, ..real.clone() }, model);
            assert_eq!(*self.seqs.entry(real.seq).or_insert(model.seq), model.seq);
        }
        assert_eq!(real.len(), model.len());
        assert!(self.seqs.values().is_sorted(), "sequences are in another order");
        self.claims.extend(real.into_iter().zip(model));
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

    async fn settle(&mut self) {
        let (mut real, mut model) = (Vec::new(), Vec::new());
        for (of_real, of_model) in self.take_claims() {
            let outcome = self.an_outcome();
            real.push((of_real, outcome.clone()));
            model.push((of_model, outcome));
        }
        self.rocks.queue().settle(real).await.unwrap();
        self.model.settle(model).await.unwrap();
    }

    /// Lists what failed, and retries or discards some of it, or of what did not fail.
    async fn remedy(&mut self) {
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
        let chosen = |failed: &[Failed], claimed: Vec<Seq>| -> Vec<Seq> {
            let failed = failed.iter().zip(&picked).filter(|(_, picked)| **picked).map(|(failed, _)| failed.entry.seq);
            failed.chain(claimed).collect()
        };
        let of_real = chosen(&real, self.claims.iter().take(2).map(|(claim, _)| claim.entry().seq).collect());
        let of_model = chosen(&model, self.claims.iter().take(2).map(|(_, claim)| claim.entry().seq).collect());
        let remedy = if self.rng.random_bool(0.7) { Remedy::Revive } else { Remedy::Discard };
        let changed = self.rocks.queue().remedy(route, of_real, remedy).await.unwrap();
        assert_eq!(changed, self.model.remedy(route, of_model, remedy).await.unwrap());
    }

    fn same(&mut self, real: &[Failed], model: &[Failed]) {
        assert_eq!(real.len(), model.len());
        for (real, model) in real.iter().zip(model) {
            assert_eq!(&Entry { seq: model.entry.seq, ..real.entry.clone() }, &model.entry);
            assert_eq!(real.state, model.state);
            assert_eq!(*self.seqs.entry(real.entry.seq).or_insert(model.entry.seq), model.entry.seq);
        }
    }

    async fn restart(&mut self) {
        self.stale.append(&mut self.claims);
        self.rocks.restart().await;
        self.model.crash();
    }

    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..35 => self.push().await,
            35..60 => self.claim().await,
            60..80 => self.settle().await,
            80..84 => drop(self.take_claims()),
            84..87 => self.remedy().await,
            87..89 => self.look_up().await,
            89..93 => self.clock.advance(self.rng.random_range(0..300)),
            93..95 => self.clock.go_back(self.rng.random_range(0..300)),
            95..97 => self.stale.clear(),
            97..99 => {
                let writes = vec![self.a_write(), self.a_write()];
                self.rocks.queue().write(writes.clone()).await.unwrap();
                self.model.write(writes).await.unwrap();
            }
            _ => self.restart().await,
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

    async fn compare(&self) {
        let real = self.rocks.queue();
        for route in self.routes {
            assert_eq!(real.counts(route), self.model.counts(route));
            let (oldest, expected) = (real.oldest(route).await.unwrap(), self.model.oldest(route).await.unwrap());
            assert_eq!(oldest.next_due, expected.next_due);
        }
        for sync in (0..SYNCS).map(SyncId) {
            assert_eq!(real.sync_tally(sync), self.model.sync_tally(sync));
        }
        assert_eq!(real.list("k/", 9).await.unwrap(), self.model.list("k/", 9).await.unwrap());
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test]
async fn random_operations_end_as_in_the_model() {
    let ops = setting("BLOBFERRY_MODEL_OPS").unwrap_or(2000);
    let seed = setting("BLOBFERRY_MODEL_SEED").unwrap_or_else(rand::random);
    let clock = TestClock::new();
    let mut rocks = Rocks::new(&clock, MAX_ENTRIES);
    // The model forgets nothing.
    rocks.options.completions = 1_000_000;
    rocks.restart().await;
    let model = ModelQueue::new(MAX_ENTRIES, MAX_BACKOFF, clock.wall());
    let mut routes = Vec::new();
    for (name, from, to) in [("a_to_b", "a", "b"), ("b_to_c", "b", "c")] {
        let route = rocks.queue().register(name, from, to).await.unwrap();
        assert_eq!(model.register(name, from, to).await.unwrap(), route);
        routes.push(route);
    }
    let mut pair = Pair {
        rng: SmallRng::seed_from_u64(seed),
        clock,
        rocks,
        model,
        routes: routes.try_into().unwrap(),
        claims: Vec::new(),
        stale: Vec::new(),
        seqs: BTreeMap::new(),
    };
    for op in 0..ops {
        println!("operation {op} of the run with seed {seed}");
        pair.step().await;
        pair.compare().await;
    }
}
