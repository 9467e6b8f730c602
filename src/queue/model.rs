//! The queue as plainly as it can be said, in memory: what the real one is compared with, and what simulations run on.
//!
//! Written from the port's table alone. Whatever is claimable is found by looking at every entry, so it is for thousands
//! of entries, not for millions. "Durable" is what [`ModelQueue::crash`] keeps: everything but the claims.

mod dropped;
mod durable;
mod failed;
mod lookup;

use crate::blob::BlobRef;
use crate::clock::Clock;
use crate::queue::damage::{Condition, QueueTrouble, REASON_NEW, sync_needed};
use crate::queue::lookup::{Completion, DiscardedBy};
use crate::queue::storage::{Storage, StorageFigures};
use crate::queue::{
    Changes, Claim, ClaimOrder, ClaimRequest, Claimed, Entry, Lane, LaneCounts, Oldest, Outcome, Push, Pushed, Queue,
    QueueError, RouteCounts, RouteId, Seq, State, StateWrite, SyncId, SyncTally, Tally,
};
use async_trait::async_trait;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// The plain queue.
#[derive(Clone)]
pub(crate) struct ModelQueue {
    inner: Arc<Mutex<ModelInner>>,
    faults: Arc<Faults>,
    clock: Arc<dyn Clock>,
    max_entries: u64,
    max_backoff: Duration,
}

/// What fails, where that is wanted.
#[derive(Default)]
struct Faults {
    fails: AtomicBool,
    failed: AtomicU64,
}

impl fmt::Debug for ModelQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelQueue").finish_non_exhaustive()
    }
}

/// In which line an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ModelLine {
    /// By sequence.
    New,
    /// By due time.
    Timed,
    /// Behind the first entry of its ref.
    Successor,
    /// In none.
    Parked,
}

#[derive(Clone, Debug)]
struct ModelItem {
    entry: Entry,
    line: ModelLine,
}

/// Everything there is. A push that may fail is tried on it and taken back from a copy.
#[derive(Clone, Debug, Default)]
struct Durable {
    next: u64,
    items: BTreeMap<u64, ModelItem>,
    by_ref: BTreeMap<(RouteId, BlobRef), BTreeSet<u64>>,
    routes: Vec<(String, String, String)>,
    ended: BTreeMap<RouteId, RouteCounts>,
    ended_syncs: BTreeMap<SyncId, SyncTally>,
    state: BTreeMap<String, Vec<u8>>,
    completions: BTreeMap<(RouteId, BlobRef), Completion>,
}

#[derive(Default)]
struct ModelInner {
    durable: Durable,
    claimed: BTreeSet<u64>,
    released: BTreeSet<u64>,
    /// How often the claims were forgotten; older claims mean nothing any more.
    life: u64,
    watches: BTreeMap<RouteId, watch::Sender<Changes>>,
    settlements: watch::Sender<u64>,
}

impl ModelQueue {
    /// An empty queue that refuses announcements from `max_entries` on, and for which whatever is due more than
    /// `max_backoff` ahead is due.
    pub(crate) fn new(max_entries: u64, max_backoff: Duration, clock: Arc<dyn Clock>) -> Self {
        Self { inner: Arc::default(), faults: Arc::default(), clock, max_entries, max_backoff }
    }

    /// What a crash and a restart do: claims are forgotten, the rest is kept.
    pub(crate) fn crash(&self) {
        let mut inner = self.inner.lock();
        inner.claimed.clear();
        inner.released.clear();
        inner.life += 1;
        inner.wake_all();
    }

    /// Makes claims and all writes fail, or work again.
    pub(crate) fn set_failing(&self, fails: bool) {
        self.faults.fails.store(fails, Ordering::SeqCst);
    }

    /// How many have failed.
    pub(crate) fn failed(&self) -> u64 {
        self.faults.failed.load(Ordering::SeqCst)
    }

    fn check(&self) -> Result<(), QueueError> {
        if !self.faults.fails.load(Ordering::SeqCst) {
            return Ok(());
        }
        self.faults.failed.fetch_add(1, Ordering::SeqCst);
        Err(QueueError::Write("the disk said no".to_owned()))
    }

    /// What opening the database again does: claims are kept, who is first in line is not.
    pub(crate) fn reopen(&self) {
        let mut inner = self.inner.lock();
        inner.released.clear();
    }
}

impl ModelInner {
    fn wake_all(&self) {
        for watch in self.watches.values() {
            watch.send_modify(Changes::add_all);
        }
    }

    /// What a request may claim, and when the next entry of the retry order is due.
    fn claimable(&self, request: &ClaimRequest, max_backoff: Duration) -> (Vec<u64>, Option<SystemTime>) {
        let ClaimRequest { route, lane, order, max, now } = *request;
        let line = if order == ClaimOrder::Due { ModelLine::Timed } else { ModelLine::New };
        let of_line = |item: &ModelItem| item.entry.route == route && item.entry.lane == lane && item.line == line;
        let free = self
            .durable
            .items
            .iter()
            .filter(|(seq, item)| of_line(item) && !self.claimed.contains(seq) && !self.released.contains(seq));
        let released = self.released.iter().filter(|seq| self.durable.items.get(seq).is_some_and(of_line)).copied();
        let is_due = |due: SystemTime| due <= now || due > now + max_backoff;
        let new: Vec<u64> = free.clone().map(|(seq, _)| *seq).collect();
        let found: Vec<u64> = match order {
            ClaimOrder::Oldest => released.chain(new).collect(),
            ClaimOrder::Due => {
                let due = free.clone().map(|(seq, item)| (item.entry.due_time, *seq)).filter(|(due, _)| is_due(*due));
                // What is due further ahead than anything may be comes last.
                let mut due: Vec<_> = due.map(|(due, seq)| (due > now, due, seq)).collect();
                due.sort_unstable();
                released.chain(due.into_iter().map(|(_, _, seq)| seq)).collect()
            }
            ClaimOrder::Newest => new.into_iter().rev().collect(),
            ClaimOrder::After(Seq(after)) => new.into_iter().filter(|seq| *seq > after).collect(),
            ClaimOrder::Before(Seq(before)) => new.into_iter().rev().filter(|seq| *seq < before).collect(),
            // Where exactly a part of the span lies is for each queue to say.
            ClaimOrder::From(part) => {
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "a place somewhere in a list of some thousands"
                )]
                let skipped = (part * new.len() as f64) as usize;
                new.into_iter().skip(skipped).collect()
            }
        };
        let next_due = free.map(|(_, item)| item.entry.due_time).filter(|due| !is_due(*due)).min();
        let next_due = next_due.filter(|_| order == ClaimOrder::Due && found.len() < max);
        (found.into_iter().take(max).collect(), next_due)
    }
}

fn add(tally: &mut Tally, entry: &Entry) {
    tally.entries += 1;
    tally.bytes = tally.bytes.wrapping_add(entry.size.unwrap_or(0));
    tally.unknown_size += u64::from(entry.size.is_none());
}

impl Condition for ModelQueue {
    fn trouble(&self) -> Option<QueueTrouble> {
        None
    }
}

impl Storage for ModelQueue {
    fn figures(&self) -> Option<StorageFigures> {
        None
    }
}

#[async_trait]
impl Queue for ModelQueue {
    async fn register(&self, name: &str, from: &str, to: &str) -> Result<RouteId, QueueError> {
        self.check()?;
        let mut inner = self.inner.lock();
        let Durable { routes, state, .. } = &mut inner.durable;
        let at = routes.iter().position(|route| route.0 == name).unwrap_or_else(|| {
            let needed = sync_needed(name, REASON_NEW);
            state.extend(needed.value.map(|value| (needed.key, value)));
            routes.push((name.to_owned(), from.to_owned(), to.to_owned()));
            routes.len() - 1
        });
        let (_, known_from, known_to) = &routes[at];
        if known_from != from || known_to != to {
            return Err(QueueError::RouteChanged {
                name: name.to_owned(),
                known: format!("{known_from} -> {known_to}"),
                now: format!("{from} -> {to}"),
            });
        }
        u32::try_from(at).map(RouteId).map_err(|error| QueueError::Write(error.to_string()))
    }

    async fn push(&self, pushes: Vec<Push>, state: Vec<StateWrite>) -> Result<Vec<Pushed>, QueueError> {
        self.check()?;
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        let ModelInner { durable, claimed, .. } = &mut *inner;
        let most = u64::try_from(durable.items.len() + pushes.len()).unwrap_or(u64::MAX);
        let before =
            (most > self.max_entries || pushes.iter().any(|push| !durable.knows(push.route))).then(|| durable.clone());
        let pushed = pushes.iter().map(|push| durable.push(push, claimed, self.max_entries, now));
        let pushed = pushed.collect::<Result<_, _>>();
        if pushed.is_ok() {
            durable.write(state);
        } else if let Some(before) = before {
            *durable = before;
        }
        inner.wake_all();
        pushed
    }

    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, QueueError> {
        self.check()?;
        let mut inner = self.inner.lock();
        let (seqs, next_due) = inner.claimable(&request, self.max_backoff);
        let life = inner.life;
        let mut claims = Vec::new();
        for seq in seqs {
            inner.released.remove(&seq);
            inner.claimed.insert(seq);
            let Some(item) = inner.durable.items.get(&seq) else { continue };
            let queue = self.clone();
            claims.push(Claim::new(item.entry.clone(), move |entry| {
                let mut inner = queue.inner.lock();
                if inner.life == life && inner.claimed.remove(&entry.seq.0) {
                    inner.released.insert(entry.seq.0);
                    inner.wake_all();
                }
            }));
        }
        Ok(Claimed { claims, next_due })
    }

    async fn settle(&self, settled: Vec<(Claim, Outcome)>) -> Result<(), QueueError> {
        self.check()?;
        let now = self.clock.now();
        // Errors come first: they drop the claims, which takes the lock.
        let chained = settled.iter().filter_map(|(_, outcome)| match outcome {
            Outcome::Confirmed { chained, .. } => Some(chained),
            _ => None,
        });
        if let Some(push) = chained.flatten().find(|push| !self.inner.lock().durable.knows(push.route)) {
            return Err(QueueError::Read(format!("route number {} was never registered", push.route.0)));
        }
        let mut inner = self.inner.lock();
        for (claim, outcome) in settled {
            let seq = claim.entry().seq.0;
            claim.disarm();
            inner.claimed.remove(&seq);
            let ModelInner { durable, claimed, .. } = &mut *inner;
            durable.settle(seq, &outcome, DiscardedBy::Configuration, now, self.max_backoff);
            if let Outcome::Confirmed { chained, .. } = outcome {
                for push in chained {
                    durable.push(&push, claimed, u64::MAX, now)?;
                }
            }
        }
        inner.wake_all();
        inner.settlements.send_modify(|count| *count = count.wrapping_add(1));
        Ok(())
    }

    fn counts(&self, route: RouteId) -> RouteCounts {
        let inner = self.inner.lock();
        let mut counts = inner.durable.ended.get(&route).copied().unwrap_or_default();
        for (seq, item) in inner.durable.items.iter().filter(|(_, item)| item.entry.route == route) {
            let lane: &mut LaneCounts = match item.entry.lane {
                Lane::Fresh => &mut counts.fresh,
                Lane::Backfill => &mut counts.backfill,
            };
            let tally = if inner.claimed.contains(seq) {
                &mut lane.claimed
            } else if item.line == ModelLine::Parked {
                &mut lane.parked
            } else if item.entry.failure.is_some() {
                &mut lane.retrying
            } else {
                &mut lane.ready
            };
            add(tally, &item.entry);
        }
        counts
    }

    async fn oldest(&self, route: RouteId) -> Result<Oldest, QueueError> {
        let now = self.clock.now();
        let inner = self.inner.lock();
        let mut oldest = Oldest::default();
        let earlier = |known: Option<SystemTime>, time: SystemTime| Some(known.map_or(time, |known| known.min(time)));
        for (seq, item) in inner.durable.items.iter().filter(|(_, item)| item.entry.route == route) {
            let held = inner.claimed.contains(seq) || inner.released.contains(seq);
            let ready = item.entry.failure.is_none() && matches!(item.line, ModelLine::New | ModelLine::Timed);
            if held || ready {
                let time = match item.entry.lane {
                    Lane::Fresh => &mut oldest.fresh,
                    Lane::Backfill => &mut oldest.backfill,
                };
                *time = earlier(*time, item.entry.enqueue_time);
            }
            if item.line == ModelLine::Parked {
                oldest.parked.get_or_insert(item.entry.enqueue_time);
            } else if item.entry.failure.is_some() && item.line == ModelLine::Timed && !inner.claimed.contains(seq) {
                oldest.retrying.get_or_insert(item.entry.enqueue_time);
            }
            if !held && item.line == ModelLine::Timed {
                oldest.next_due = earlier(oldest.next_due, item.entry.due_time);
            }
        }
        oldest.next_due = oldest.next_due.map(|due| if due > now + self.max_backoff { now } else { due });
        Ok(oldest)
    }

    fn sync_tally(&self, sync: SyncId) -> SyncTally {
        let inner = self.inner.lock();
        let mut tally = inner.durable.ended_syncs.get(&sync).copied().unwrap_or_default();
        for item in inner.durable.items.values().filter(|item| item.entry.syncs.contains(&sync)) {
            if item.line == ModelLine::Parked { tally.parked += 1 } else { tally.pending += 1 }
        }
        tally
    }

    fn subscribe(&self, route: RouteId) -> watch::Receiver<Changes> {
        self.inner.lock().watches.entry(route).or_default().subscribe()
    }
}

#[async_trait]
impl State for ModelQueue {
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, QueueError> {
        Ok(self.inner.lock().durable.state.get(key).cloned())
    }

    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, QueueError> {
        let inner = self.inner.lock();
        let found = inner.durable.state.iter().rev().filter(|(key, _)| key.starts_with(prefix));
        Ok(found.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect())
    }

    async fn write(&self, writes: Vec<StateWrite>) -> Result<(), QueueError> {
        self.check()?;
        self.inner.lock().durable.write(writes);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::ModelQueue;
    use crate::queue::WholeQueue;
    use crate::queue::suite::{MAX_BACKOFF, Subject, TestClock, conformance};
    use async_trait::async_trait;

    struct Model(ModelQueue);

    #[async_trait]
    impl Subject for Model {
        fn queue(&self) -> &dyn WholeQueue {
            &self.0
        }

        async fn restart(&mut self) {
            self.0.crash();
        }
    }

    fn make(clock: &TestClock, max_entries: u64) -> Box<dyn Subject> {
        Box::new(Model(ModelQueue::new(max_entries, MAX_BACKOFF, clock.clock())))
    }

    conformance!(make);
}
