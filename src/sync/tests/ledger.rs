//! A queue reduced to what a sync can see of it, settled by hand.

use crate::blob::BlobRef;
use crate::queue::{
    Changes, Claim, ClaimRequest, Claimed, Lane, LaneCounts, Oldest, Origin, Outcome, Push, Pushed, Queue, QueueError,
    RouteCounts, RouteId, State, StateWrite, SyncId, SyncTally, Tally,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use tokio::sync::watch;

#[derive(Clone, Debug)]
pub(crate) struct Queued {
    pub(crate) push: Push,
    pub(crate) syncs: BTreeSet<SyncId>,
    pub(crate) parked: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Pages {
    pub(crate) entries: BTreeMap<BlobRef, Queued>,
    pub(crate) state: BTreeMap<String, Vec<u8>>,
    pub(crate) confirmed: BTreeMap<SyncId, u64>,
    /// Every push: the refs, and the state that was written with them.
    pub(crate) pushes: Vec<(Vec<Push>, Vec<StateWrite>)>,
    /// Entries are confirmed as they are pushed.
    pub(crate) swift: bool,
    /// Writes fail.
    pub(crate) broken: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) pages: Mutex<Pages>,
    changes: watch::Sender<Changes>,
}

impl Ledger {
    pub(crate) fn new(pages: Pages) -> Self {
        Self { pages: Mutex::new(pages), changes: watch::Sender::default() }
    }

    /// What a new process would find.
    pub(crate) fn after_restart(&self) -> Self {
        Self::new(self.pages.lock().clone())
    }

    pub(crate) fn confirm_all(&self) {
        let mut pages = self.pages.lock();
        let blobs: Vec<_> = pages.entries.keys().copied().collect();
        for blob in blobs {
            pages.confirm(blob);
        }
    }

    /// Takes all entries out of the counters: their tallies stay.
    pub(crate) fn lose_all(&self) {
        self.pages.lock().entries.values_mut().for_each(|queued| queued.push.lane = Lane::Fresh);
    }

    pub(crate) fn park_all(&self) {
        self.pages.lock().entries.values_mut().for_each(|queued| queued.parked = true);
    }
}

impl Pages {
    pub(crate) fn confirm(&mut self, blob: BlobRef) {
        for sync in self.entries.remove(&blob).unwrap().syncs {
            *self.confirmed.entry(sync).or_default() += 1;
        }
    }

    fn write(&mut self, writes: Vec<StateWrite>) -> Result<(), QueueError> {
        if self.broken {
            return Err(QueueError::Write("the disk is gone".into()));
        }
        for write in writes {
            match write.value {
                Some(value) => drop(self.state.insert(write.key, value)),
                None => drop(self.state.remove(&write.key)),
            }
        }
        Ok(())
    }
}

#[async_trait]
impl Queue for Ledger {
    async fn register(&self, _: &str, _: &str, _: &str) -> Result<RouteId, QueueError> {
        Ok(RouteId(1))
    }

    async fn push(&self, pushes: Vec<Push>, state: Vec<StateWrite>) -> Result<Vec<Pushed>, QueueError> {
        let mut pages = self.pages.lock();
        pages.write(state.clone())?;
        pages.pushes.push((pushes.clone(), state));
        let mut results = Vec::new();
        for push in pushes {
            let blob = push.blob;
            let sync = if let Origin::Sync(id) = push.origin { Some(id) } else { None };
            let known = pages.entries.get_mut(&blob);
            results.push(match &known {
                None => Pushed::Added,
                Some(queued) if queued.parked => Pushed::Revived,
                Some(_) => Pushed::AlreadyQueued,
            });
            match known {
                None => {
                    let queued = Queued { push, syncs: sync.into_iter().collect(), parked: false };
                    pages.entries.insert(blob, queued);
                }
                Some(queued) => {
                    queued.parked = false;
                    queued.push.repair |= push.repair;
                    queued.syncs.extend(sync);
                }
            }
            if pages.swift {
                pages.confirm(blob);
            }
        }
        self.changes.send_modify(Changes::add_all);
        Ok(results)
    }

    async fn claim(&self, _: ClaimRequest) -> Result<Claimed, QueueError> {
        Ok(Claimed::default())
    }

    async fn settle(&self, _: Vec<(Claim, Outcome)>) -> Result<(), QueueError> {
        Err(QueueError::Closed)
    }

    fn counts(&self, _: RouteId) -> RouteCounts {
        let pages = self.pages.lock();
        let tally = |parked| Tally {
            entries: pages
                .entries
                .values()
                .filter(|queued| queued.parked == parked && queued.push.lane == Lane::Backfill)
                .count() as u64,
            ..Tally::default()
        };
        let backfill = LaneCounts { ready: tally(false), parked: tally(true), ..LaneCounts::default() };
        RouteCounts { backfill, ..RouteCounts::default() }
    }

    async fn oldest(&self, _: RouteId) -> Result<Oldest, QueueError> {
        Ok(Oldest::default())
    }

    fn sync_tally(&self, sync: SyncId) -> SyncTally {
        let pages = self.pages.lock();
        let of = |parked| {
            pages.entries.values().filter(|queued| queued.parked == parked && queued.syncs.contains(&sync)).count()
                as u64
        };
        let confirmed = pages.confirmed.get(&sync).copied().unwrap_or(0);
        SyncTally { pending: of(false), parked: of(true), confirmed, discarded: 0 }
    }

    fn subscribe(&self, _: RouteId) -> watch::Receiver<Changes> {
        self.changes.subscribe()
    }
}

#[async_trait]
impl State for Ledger {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, QueueError> {
        Ok(self.pages.lock().state.get(key).cloned())
    }

    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        let pages = self.pages.lock();
        let found = pages.state.iter().rev().filter(|(key, _)| key.starts_with(prefix)).take(limit);
        Ok(found.map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn write(&self, writes: Vec<StateWrite>) -> Result<(), QueueError> {
        self.pages.lock().write(writes)
    }
}
