//! What a request does to the queue: the table in the port's header, as plain code over a [`Txn`].

use super::done::Done;
use super::keys::Seqs;
use super::row::{Place, Stored};
use super::txn::Txn;
use crate::queue::lookup::{DiscardedBy, Ending};
use crate::queue::{Entry, LARGEST_SIZE, Lane, Misses, Origin, Outcome, Push, Pushed, QueueError, Seq, Weight};
use std::cmp::min;
use std::sync::Arc;

impl Txn<'_> {
    /// Pushes one blob.
    pub(super) fn push(&mut self, push: Push) -> Result<Pushed, QueueError> {
        let Push { route, blob, .. } = push;
        let known = self.refs(route, blob)?;
        let mut queued = Vec::with_capacity(2);
        for seq in known {
            queued.extend(self.entry(route, seq)?);
        }
        let sync = match push.origin {
            Origin::Sync(id) => Some(id),
            Origin::Announced | Origin::Chained => None,
        };

        let mut queued = queued.into_iter();
        let Some(mut first) = queued.next() else {
            let seq = self.add(push, Place::Ready)?;
            self.set_refs(route, blob, Seqs::One(seq))?;
            return Ok(Pushed::Added);
        };
        // Of two, the first could not be read: what is left waits for nothing any more.
        if first.place == Place::Waiting {
            self.set_refs(route, blob, Seqs::One(first.entry.seq.0))?;
            first.alone = true;
            self.make_due(&mut first);
            self.put(first.clone());
        }
        if self.claimed(&first) {
            if let Some(id) = sync
                && !push.repair
            {
                if first.entry.syncs != [id] {
                    first.entry.awaited_by(id);
                    self.put(first);
                }
                return Ok(Pushed::AlreadyQueued);
            }
            if let Some(mut successor) = queued.next() {
                self.meet(&push, &mut successor);
                self.put(successor);
            } else {
                let seq = self.add(push, Place::Waiting)?;
                self.set_refs(route, blob, Seqs::Two(first.entry.seq.0, seq))?;
                first.alone = false;
                self.put(first);
            }
            return Ok(Pushed::SuccessorQueued);
        }

        let parked = first.parked();
        let retrying = !parked && first.entry.failure.is_some();
        self.meet(&push, &mut first);
        let pushed = if parked {
            first.entry.forgive();
            self.make_due(&mut first);
            Pushed::Revived
        } else if retrying && sync.is_none() {
            first.entry.due_time = min(first.entry.due_time, self.now);
            Pushed::Hastened
        } else {
            Pushed::AlreadyQueued
        };
        self.put(first);
        Ok(pushed)
    }

    /// Adds an entry and gives its sequence.
    fn add(&mut self, push: Push, place: Place) -> Result<u64, QueueError> {
        if push.origin == Origin::Announced && self.unparked >= self.max_entries {
            return Err(QueueError::Full { limit: self.max_entries });
        }
        let seq = self.take_seq();
        let entry = Entry {
            seq: Seq(seq),
            route: push.route,
            blob: push.blob,
            size: push.size.filter(|size| *size <= LARGEST_SIZE),
            lane: push.lane,
            enqueue_time: self.now,
            due_time: self.now,
            attempts: 0,
            misses: Misses::default(),
            weight: Weight::default(),
            failure: None,
            trace: push.trace,
            visited: push.visited,
            syncs: match push.origin {
                Origin::Sync(id) => vec![id],
                Origin::Announced | Origin::Chained => Vec::new(),
            },
            repair: push.repair,
        };
        self.put(Stored { entry, place, alone: place != Place::Waiting });
        Ok(seq)
    }

    /// What every push leaves on an unclaimed entry of its ref.
    fn meet(&self, push: &Push, stored: &mut Stored) {
        let entry = &mut stored.entry;
        entry.repair |= push.repair;
        if let Origin::Sync(id) = push.origin {
            entry.awaited_by(id);
        }
        if push.lane == Lane::Fresh && entry.lane == Lane::Backfill {
            entry.lane = Lane::Fresh;
            if stored.place == Place::Ready {
                self.make_due(stored);
            }
        }
    }

    /// Makes an entry claimable at once, by a `retry` row: `ready` rows are only ever appended.
    pub(super) fn make_due(&self, stored: &mut Stored) {
        stored.place = Place::Due;
        stored.entry.due_time = self.now;
    }

    /// Ends a claim. Chained pushes follow apart.
    pub(super) fn settle(&mut self, claimed: &Entry, outcome: &Outcome) -> Result<(), QueueError> {
        let (route, seq) = (claimed.route, claimed.seq.0);
        let Some(stored) = self.peek_claimed(route, claimed.lane, seq)? else {
            tracing::error!(route = route.0, seq, "a claimed entry is gone; nothing is settled");
            self.set_settled(seq);
            return Ok(());
        };
        let refs = self.refs_of(&stored)?;
        let successor = match refs {
            Seqs::Two(first, second) if first == seq => self.entry(route, second)?,
            _ => None,
        };
        self.set_settled(seq);
        match outcome {
            Outcome::Confirmed { size, copied, .. } => {
                let ended = self.ended.entry(route).or_default();
                ended.confirmed += 1;
                if *copied {
                    ended.copied += 1;
                    ended.copied_bytes += size;
                }
                for sync in &stored.entry.syncs {
                    self.ended_syncs.entry(*sync).or_default().confirmed += 1;
                }
                let ending = Ending::Confirmed { size: *size, copied: *copied };
                self.done.push(Done::of(&stored.entry, ending));
                self.end(&stored.entry, successor, refs)
            }
            Outcome::Discard => {
                self.count_discard(&stored.entry, DiscardedBy::Configuration);
                self.end(&stored.entry, successor, refs)
            }
            Outcome::Retry { due, failure, weight } => {
                let mut stored = Arc::unwrap_or_clone(stored);
                stored.entry.fail(failure, *weight, self.shared.max_backoff());
                stored.place = Place::Due;
                stored.entry.due_time = *due;
                self.keep(stored, successor)
            }
            Outcome::Park { failure, weight } => {
                let mut stored = Arc::unwrap_or_clone(stored);
                stored.entry.fail(failure, *weight, self.shared.max_backoff());
                stored.place = Place::Parked(failure.kind.number());
                self.keep(stored, successor)
            }
        }
    }

    /// Removes an entry that nobody has claimed.
    pub(super) fn discard(&mut self, stored: Stored, by: DiscardedBy) -> Result<(), QueueError> {
        let Entry { route, seq, .. } = stored.entry;
        let refs = self.refs_of(&stored)?;
        let successor = match refs {
            Seqs::Two(first, second) if first == seq.0 => self.entry(route, second)?,
            _ => None,
        };
        self.count_discard(&stored.entry, by);
        self.end(&stored.entry, successor, refs)
    }

    fn count_discard(&mut self, entry: &Entry, by: DiscardedBy) {
        let cause = entry.failure.as_ref().map(|failure| failure.kind);
        self.done.push(Done::of(entry, Ending::Discarded { by, cause }));
        self.ended.entry(entry.route).or_default().discarded += 1;
        for sync in &entry.syncs {
            self.ended_syncs.entry(*sync).or_default().discarded += 1;
        }
    }

    /// Removes an entry; its successor's turn has come.
    fn end(&mut self, entry: &Entry, successor: Option<Stored>, refs: Seqs) -> Result<(), QueueError> {
        let Entry { route, seq, blob, .. } = *entry;
        self.remove(route, seq.0);
        if let Some(mut next) = successor {
            self.set_refs(route, blob, Seqs::One(next.entry.seq.0))?;
            next.alone = true;
            self.make_due(&mut next);
            self.put(next);
        } else {
            self.set_refs(route, blob, refs.without(seq.0))?;
        }
        Ok(())
    }

    /// Keeps a failed entry. A successor becomes one with it, which is then due now, as if pushed after the failure.
    fn keep(&mut self, mut stored: Stored, successor: Option<Stored>) -> Result<(), QueueError> {
        if let Some(successor) = successor {
            self.remove(successor.entry.route, successor.entry.seq.0);
            self.set_refs(stored.entry.route, stored.entry.blob, Seqs::One(stored.entry.seq.0))?;
            stored.alone = true;
            if stored.parked() {
                stored.entry.forgive();
            }
            let entry = &mut stored.entry;
            entry.repair |= successor.entry.repair;
            entry.lane = min(entry.lane, successor.entry.lane);
            if let Some(newest) = entry.syncs.iter().chain(&successor.entry.syncs).max() {
                entry.awaited_by(*newest);
            }
            self.make_due(&mut stored);
        }
        self.put(stored);
        Ok(())
    }
}
