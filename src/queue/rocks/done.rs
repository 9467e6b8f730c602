//! Completions: what left the queue, remembered for a while.
//!
//! Every batch that confirms or discards something writes one row of family `done` under the batch's number, ascending, and
//! deletes the oldest rows beyond the bound. A row names the oldest row that is kept, so that opening begins reading there
//! and never walks over what was deleted.
//!
//! Memory holds a hash of each route and ref, and the number of the row it was last seen in: 24 bytes or so each. The hash
//! is known here *before* the batch is written and the row is looked for in a snapshot, so that whoever sees in the snapshot that
//! an entry is gone also finds why. A hash that points to a row which is not there, or does not name the ref, means "not
//! remembered".

use super::error::OpenError;
use super::keys::{self, family};
use super::row::{self, DoneItem, DoneRow};
use crate::blob::BlobRef;
use crate::fault::FaultKind;
use crate::queue::lookup::{Completion, DiscardedBy, Ending, Enqueued};
use crate::queue::{Entry, QueueError, RouteId};
use rocksdb::{DB, Direction, IteratorMode, WriteBatch};
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasher;
use std::time::SystemTime;

/// What ended in a batch.
#[derive(Clone, Debug)]
pub(super) struct Done {
    route: RouteId,
    blob: BlobRef,
    ending: Ending,
    enqueued: Enqueued,
}

impl Done {
    pub(super) fn of(entry: &Entry, ending: Ending) -> Self {
        Self { route: entry.route, blob: entry.blob, ending, enqueued: Enqueued::of(entry) }
    }
}

/// Where completions are to be found. See the module's header.
#[derive(Debug, Default)]
pub(super) struct DoneIndex {
    hasher: RandomState,
    capacity: usize,
    latest: HashMap<u64, u64>,
    /// The rows, ascending, and the hashes of what they name.
    rows: VecDeque<(u64, Vec<u64>)>,
    items: usize,
    next: u64,
}

/// A row on its way to the disk.
#[derive(Debug)]
pub(super) struct Begun {
    number: u64,
    hashes: Vec<u64>,
}

impl DoneIndex {
    /// Reads the rows that are kept; none where the queue was written by a version without them.
    pub(super) fn load(db: &DB, capacity: usize) -> Result<Self, OpenError> {
        let mut index = Self { capacity, ..Self::default() };
        let Some(family) = db.cf_handle(keys::DONE) else { return Ok(index) };
        let Some(newest) = db.iterator_cf(family, IteratorMode::End).next().transpose()? else { return Ok(index) };
        let oldest = row::decode_done(&newest.1).map_or(0, |row| row.oldest);
        let from = oldest.to_be_bytes();
        for found in db.iterator_cf(family, IteratorMode::From(&from, Direction::Forward)) {
            let (key, value) = found?;
            let Some(number) = keys::number(&key) else { continue };
            // An unreadable one is forgotten: it is no entry.
            let row = row::decode_done(&value).unwrap_or_default();
            let refs = row.items.iter().filter_map(|item| Some((RouteId(item.route), BlobRef::from_key(&item.blob)?)));
            let hashes: Vec<u64> = refs.map(|(route, blob)| index.hash(route, &blob)).collect();
            for hash in &hashes {
                index.latest.insert(*hash, number);
            }
            index.next = number + 1;
            index.add(number, hashes);
        }
        Ok(index)
    }

    /// The number of the oldest row.
    pub(super) fn oldest(&self) -> u64 {
        self.rows.front().map_or(self.next, |(number, _)| *number)
    }

    /// Whether any completion is remembered at all.
    pub(super) fn remembers(&self) -> bool {
        self.capacity > 0
    }

    fn hash(&self, route: RouteId, blob: &BlobRef) -> u64 {
        self.hasher.hash_one((route, blob))
    }

    fn add(&mut self, number: u64, hashes: Vec<u64>) {
        self.items += hashes.len();
        self.rows.push_back((number, hashes));
    }

    /// How many of the oldest rows are not needed when so many completions come.
    fn superfluous(&self, coming: usize) -> usize {
        let mut items = self.items + coming;
        let too_old = self.rows.iter().take_while(|(_, hashes)| {
            items -= hashes.len();
            items >= self.capacity
        });
        too_old.count()
    }

    /// Adds the row of these completions to a batch. Whether the batch is written or not, [`end`](Self::end) must follow.
    pub(super) fn begin(
        &mut self,
        db: &DB,
        batch: &mut WriteBatch,
        done: &[Done],
        now: SystemTime,
    ) -> Result<Begun, QueueError> {
        let family = family(db, keys::DONE)?;
        let superfluous = self.superfluous(done.len());
        for (number, _) in self.rows.iter().take(superfluous) {
            batch.delete_cf(family, number.to_be_bytes());
        }
        let number = self.next;
        let oldest = self.rows.get(superfluous).map_or(number, |(number, _)| *number);
        let row = DoneRow { oldest, time: keys::nanos(now), items: done.iter().map(item).collect() };
        batch.put_cf(family, number.to_be_bytes(), row::encode_done(&row));
        let hashes: Vec<u64> = done.iter().map(|done| self.hash(done.route, &done.blob)).collect();
        for hash in &hashes {
            self.latest.insert(*hash, number);
        }
        self.next += 1;
        Ok(Begun { number, hashes })
    }

    /// The batch was written, or was not.
    pub(super) fn end(&mut self, Begun { number, hashes }: Begun, written: bool) {
        if !written {
            self.forget(number, &hashes);
            return;
        }
        for _ in 0..self.superfluous(hashes.len()) {
            if let Some((number, hashes)) = self.rows.pop_front() {
                self.items -= hashes.len();
                self.forget(number, &hashes);
            }
        }
        self.add(number, hashes);
    }

    fn forget(&mut self, number: u64, hashes: &[u64]) {
        for hash in hashes {
            if self.latest.get(hash) == Some(&number) {
                self.latest.remove(hash);
            }
        }
    }

    pub(super) fn row_of(&self, route: RouteId, blob: &BlobRef) -> Option<u64> {
        self.latest.get(&self.hash(route, blob)).copied()
    }
}

fn item(done: &Done) -> DoneItem {
    let (outcome, size, cause) = match done.ending {
        Ending::Confirmed { size, copied: true } => (0, size, None),
        Ending::Confirmed { size, copied: false } => (1, size, None),
        Ending::Discarded { by: DiscardedBy::Configuration, cause } => (2, 0, cause),
        Ending::Discarded { by: DiscardedBy::Operator, cause } => (3, 0, cause),
    };
    DoneItem {
        route: done.route.0,
        blob: done.blob.to_key(),
        size,
        outcome,
        cause: cause.map_or(0, |kind| u32::from(kind.number())),
        enqueue_time: Some(keys::nanos(done.enqueued.time)),
        traceparent: done.enqueued.traceparent.clone(),
    }
}

/// What an item of a row of this time tells; `None` where it is of a later version.
pub(super) fn completion(time: SystemTime, item: &DoneItem) -> Option<Completion> {
    let enqueued =
        item.enqueue_time.map(|nanos| Enqueued { time: keys::time(nanos), traceparent: item.traceparent.clone() });
    Some(Completion { time, ending: ending(item)?, enqueued })
}

fn ending(item: &DoneItem) -> Option<Ending> {
    let cause = u8::try_from(item.cause).ok().and_then(FaultKind::from_number);
    match item.outcome {
        0 => Some(Ending::Confirmed { size: item.size, copied: true }),
        1 => Some(Ending::Confirmed { size: item.size, copied: false }),
        2 => Some(Ending::Discarded { by: DiscardedBy::Configuration, cause }),
        3 => Some(Ending::Discarded { by: DiscardedBy::Operator, cause }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Begun, DoneIndex};

    fn add(index: &mut DoneIndex, hashes: &[u64], written: bool) {
        let number = index.next;
        for hash in hashes {
            index.latest.insert(*hash, number);
        }
        index.next += 1;
        index.end(Begun { number, hashes: hashes.to_vec() }, written);
    }

    #[test]
    fn the_newest_are_kept_and_a_batch_that_failed_leaves_nothing() {
        let mut index = DoneIndex { capacity: 4, ..DoneIndex::default() };
        add(&mut index, &[1, 2], true);
        add(&mut index, &[3, 1], true);
        assert_eq!((index.items, index.rows.len()), (4, 2));
        add(&mut index, &[9], false);
        assert!(!index.latest.contains_key(&9));
        // 1 has a newer row, which stays when its older one goes.
        add(&mut index, &[4, 5], true);
        assert_eq!((index.items, index.rows.len()), (4, 2));
        assert!(!index.latest.contains_key(&2) && index.latest.contains_key(&1));
        add(&mut index, &[6], true);
        assert_eq!((index.items, index.rows.len()), (5, 3), "a row goes only when the rest is enough");
        add(&mut index, &[10, 11, 12, 13, 14], true);
        assert_eq!((index.items, index.rows.len(), index.latest.len()), (5, 1, 5));
    }
}
