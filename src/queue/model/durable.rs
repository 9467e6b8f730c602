//! What happens to entries of the plain queue: the port's table, line by line.

use super::{Durable, ModelItem, ModelLine};
use crate::blob::BlobRef;
use crate::queue::lookup::{Completion, DiscardedBy, Ending, Enqueued};
use crate::queue::{
    Entry, LARGEST_SIZE, Lane, Misses, Origin, Outcome, Push, Pushed, QueueError, RouteId, Seq, StateWrite, Weight,
};
use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

impl Durable {
    pub(super) fn knows(&self, route: RouteId) -> bool {
        usize::try_from(route.0).is_ok_and(|route| route < self.routes.len())
    }

    pub(super) fn queued(&self, route: RouteId, blob: BlobRef) -> Vec<u64> {
        self.by_ref.get(&(route, blob)).into_iter().flatten().copied().collect()
    }

    pub(super) fn insert(&mut self, push: &Push, line: ModelLine, now: SystemTime) {
        self.next += 1;
        let seq = self.next;
        let syncs = match push.origin {
            Origin::Sync(id) => vec![id],
            _ => Vec::new(),
        };
        let entry = Entry {
            seq: Seq(seq),
            route: push.route,
            blob: push.blob,
            size: push.size.filter(|size| *size <= LARGEST_SIZE),
            lane: push.lane,
            enqueue_time: now,
            due_time: now,
            attempts: 0,
            misses: Misses::default(),
            weight: Weight::default(),
            failure: None,
            trace: push.trace.clone(),
            visited: push.visited.clone(),
            syncs,
            repair: push.repair,
        };
        self.items.insert(seq, ModelItem { entry, line });
        self.by_ref.entry((push.route, push.blob)).or_default().insert(seq);
    }

    pub(super) fn delete(&mut self, seq: u64) -> Option<ModelItem> {
        let item = self.items.remove(&seq)?;
        let key = (item.entry.route, item.entry.blob);
        if let Some(seqs) = self.by_ref.get_mut(&key) {
            seqs.remove(&seq);
            if seqs.is_empty() {
                self.by_ref.remove(&key);
            }
        }
        Some(item)
    }

    pub(super) fn push(
        &mut self,
        push: &Push,
        claimed: &BTreeSet<u64>,
        max_entries: u64,
        now: SystemTime,
    ) -> Result<Pushed, QueueError> {
        if !self.knows(push.route) {
            return Err(QueueError::Read(format!("route number {} was never registered", push.route.0)));
        }
        let queued = self.queued(push.route, push.blob);
        let sync = match push.origin {
            Origin::Sync(id) => Some(id),
            _ => None,
        };
        let first_is_claimed = queued.first().is_some_and(|first| claimed.contains(first));
        let only_adopts = sync.is_some() && !push.repair;
        let adds = queued.is_empty() || (first_is_claimed && queued.len() == 1 && !only_adopts);
        if adds {
            let unparked = self.items.values().filter(|item| item.line != ModelLine::Parked).count();
            let full = u64::try_from(unparked).is_ok_and(|entries| entries >= max_entries);
            if push.origin == Origin::Announced && full {
                return Err(QueueError::Full { limit: max_entries });
            }
            let (line, pushed) = if queued.is_empty() {
                (ModelLine::New, Pushed::Added)
            } else {
                (ModelLine::Successor, Pushed::SuccessorQueued)
            };
            self.insert(push, line, now);
            return Ok(pushed);
        }

        let target = if first_is_claimed && !only_adopts { queued.last() } else { queued.first() };
        let Some(item) = target.and_then(|seq| self.items.get_mut(seq)) else { return Ok(Pushed::AlreadyQueued) };
        if let Some(id) = sync {
            item.entry.awaited_by(id);
        }
        if first_is_claimed && only_adopts {
            return Ok(Pushed::AlreadyQueued);
        }
        item.entry.repair |= push.repair;
        let changes_lane = item.entry.lane == Lane::Backfill && push.lane == Lane::Fresh;
        if changes_lane {
            item.entry.lane = Lane::Fresh;
        }
        match item.line {
            ModelLine::Successor => Ok(Pushed::SuccessorQueued),
            ModelLine::Parked => {
                item.entry.forgive();
                item.line = ModelLine::Timed;
                item.entry.due_time = now;
                Ok(Pushed::Revived)
            }
            ModelLine::Timed if item.entry.failure.is_some() => {
                if sync.is_some() {
                    return Ok(Pushed::AlreadyQueued);
                }
                item.entry.due_time = item.entry.due_time.min(now);
                Ok(Pushed::Hastened)
            }
            ModelLine::New if changes_lane => {
                item.line = ModelLine::Timed;
                item.entry.due_time = now;
                Ok(Pushed::AlreadyQueued)
            }
            ModelLine::New | ModelLine::Timed => Ok(Pushed::AlreadyQueued),
        }
    }

    /// Settles a claimed entry; chained pushes are the caller's. `by` is to blame where it is discarded.
    pub(super) fn settle(
        &mut self,
        seq: u64,
        outcome: &Outcome,
        by: DiscardedBy,
        now: SystemTime,
        max_backoff: Duration,
    ) {
        let Some(mut item) = self.delete(seq) else { return };
        let route = item.entry.route;
        let ending = match outcome {
            Outcome::Confirmed { size, copied, .. } => Some(Ending::Confirmed { size: *size, copied: *copied }),
            Outcome::Discard => {
                Some(Ending::Discarded { by, cause: item.entry.failure.as_ref().map(|failure| failure.kind) })
            }
            Outcome::Retry { .. } | Outcome::Park { .. } => None,
        };
        if let Some(ending) = ending {
            let completion = Completion { time: now, ending, enqueued: Some(Enqueued::of(&item.entry)) };
            self.completions.insert((route, item.entry.blob), completion);
        }
        let successor = self.queued(route, item.entry.blob).first().copied();
        match outcome {
            Outcome::Confirmed { .. } | Outcome::Discard => {
                let ended = self.ended.entry(route).or_default();
                if let Outcome::Confirmed { size, copied, .. } = outcome {
                    ended.confirmed += 1;
                    if *copied {
                        ended.copied += 1;
                        ended.copied_bytes += size;
                    }
                } else {
                    ended.discarded += 1;
                }
                for sync in &item.entry.syncs {
                    let tally = self.ended_syncs.entry(*sync).or_default();
                    match outcome {
                        Outcome::Discard => tally.discarded += 1,
                        _ => tally.confirmed += 1,
                    }
                }
                if let Some(next) = successor.and_then(|next| self.items.get_mut(&next)) {
                    next.line = ModelLine::Timed;
                    next.entry.due_time = now;
                }
                return;
            }
            Outcome::Retry { due, failure, weight } => {
                item.entry.fail(failure, *weight, max_backoff);
                item.line = ModelLine::Timed;
                item.entry.due_time = *due;
            }
            Outcome::Park { failure, weight } => {
                item.entry.fail(failure, *weight, max_backoff);
                item.line = ModelLine::Parked;
            }
        }
        if let Some(next) = successor.and_then(|next| self.delete(next)) {
            if item.line == ModelLine::Parked {
                item.entry.forgive();
            }
            item.line = ModelLine::Timed;
            item.entry.due_time = now;
            item.entry.repair |= next.entry.repair;
            item.entry.lane = item.entry.lane.min(next.entry.lane);
            if let Some(newest) = item.entry.syncs.iter().chain(&next.entry.syncs).max() {
                item.entry.awaited_by(*newest);
            }
        }
        self.by_ref.entry((route, item.entry.blob)).or_default().insert(seq);
        self.items.insert(seq, item);
    }

    pub(super) fn write(&mut self, writes: Vec<StateWrite>) {
        for write in writes {
            match write.value {
                Some(value) => self.state.insert(write.key, value),
                None => self.state.remove(&write.key),
            };
        }
    }
}
