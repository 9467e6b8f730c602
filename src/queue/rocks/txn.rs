//! One batch in the making: what the database holds, overlaid with what the requests so far have changed.
//!
//! Entries and refs are read once and changed in memory. Index rows and counters are never touched by hand: they follow
//! from each entry as it was and as it is, when the batch is [finished](Txn::finish).

use super::claims::{AsideRow, BadRow, Spot};
use super::done::{Begun, Done};
use super::dropped::{self, DroppedRows};
use super::keys;
use super::row::{self, RouteRow, Stored};
use super::shared::Shared;
use crate::blob::BlobRef;
use crate::failpoint::{self, Point};
use crate::queue::{Entry, LaneCounts, QueueError, RouteCounts, RouteId, StateWrite, SyncId, SyncTally, Tally};
use rocksdb::{ColumnFamily, DB, WriteBatch};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::time::SystemTime;

/// Something as it is in the database, and as it will be.
#[derive(Clone, Debug)]
struct Slot<T> {
    before: T,
    after: T,
}

/// How to take back a change, newest first.
#[derive(Debug)]
enum Undo {
    Entry((RouteId, u64), Option<Rc<Stored>>),
    Refs((RouteId, BlobRef), Vec<u64>),
    Settled(u64),
}

/// What ended: added to the counters, never taken away.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ended {
    pub(super) confirmed: u64,
    pub(super) copied: u64,
    pub(super) copied_bytes: u64,
    pub(super) discarded: u64,
}

/// A point to return to when a request fails.
#[derive(Debug)]
pub(super) struct Savepoint {
    total: u64,
    ended: BTreeMap<RouteId, Ended>,
    ended_syncs: BTreeMap<SyncId, Ended>,
    state: usize,
    done: usize,
}

/// A batch in the making.
pub(super) struct Txn<'a> {
    pub(super) db: &'a DB,
    pub(super) shared: &'a Shared,
    pub(super) now: SystemTime,
    pub(super) max_entries: u64,
    /// Entries of all routes.
    pub(super) total: u64,
    pub(super) next_seq: u64,
    /// Counters by route and by sync of what ended in this batch.
    pub(super) ended: BTreeMap<RouteId, Ended>,
    pub(super) ended_syncs: BTreeMap<SyncId, Ended>,
    pub(super) state: Vec<StateWrite>,
    /// What left the queue in this batch.
    pub(super) done: Vec<Done>,
    pub(super) dropped: DroppedRows,
    first_seq: u64,
    entries: HashMap<(RouteId, u64), Slot<Option<Rc<Stored>>>>,
    refs: HashMap<(RouteId, BlobRef), Slot<Vec<u64>>>,
    settled: HashSet<u64>,
    routes: Vec<(RouteId, RouteRow)>,
    aside: Vec<BadRow>,
    aside_refs: Vec<(Vec<u8>, Vec<u8>)>,
    undo: Vec<Undo>,
}

/// A finished batch: what to write, and what to do in memory once it is written.
pub(super) struct Finished {
    pub(super) batch: WriteBatch,
    pub(super) effects: Effects,
}

/// The in-memory side of a batch.
#[derive(Debug, Default)]
pub(super) struct Effects {
    pub(super) counts: Vec<(RouteId, RouteCounts)>,
    pub(super) syncs: Vec<(SyncId, SyncTally)>,
    pub(super) old_syncs: Vec<SyncId>,
    pub(super) routes: Vec<(RouteId, RouteRow)>,
    pub(super) aside: Vec<BadRow>,
    pub(super) aside_total: u64,
    pub(super) total: u64,
    pub(super) done: Option<Begun>,
}

/// Where an entry can be claimed, before and after a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moved {
    pub(super) route: RouteId,
    pub(super) seq: u64,
    pub(super) before: Option<Spot>,
    pub(super) after: Option<Spot>,
}

/// A column family, all of which exist from opening on.
pub(super) fn family<'a>(db: &'a DB, name: &str) -> Result<&'a ColumnFamily, QueueError> {
    db.cf_handle(name).ok_or_else(|| QueueError::Read(format!("there is no column family {name}")))
}

impl<'a> Txn<'a> {
    pub(super) fn new(
        db: &'a DB,
        shared: &'a Shared,
        now: SystemTime,
        max_entries: u64,
        next_seq: u64,
        total: u64,
    ) -> Self {
        Self {
            db,
            shared,
            now,
            max_entries,
            total,
            next_seq,
            ended: BTreeMap::new(),
            ended_syncs: BTreeMap::new(),
            state: Vec::new(),
            done: Vec::new(),
            dropped: DroppedRows::default(),
            first_seq: next_seq,
            entries: HashMap::new(),
            refs: HashMap::new(),
            settled: HashSet::new(),
            routes: Vec::new(),
            aside: Vec::new(),
            aside_refs: Vec::new(),
            undo: Vec::new(),
        }
    }

    /// Makes room for so many more entries.
    pub(super) fn reserve(&mut self, entries: usize) {
        self.entries.reserve(entries);
        self.refs.reserve(entries);
        self.undo.reserve(2 * entries);
    }

    /// Begins a request: what was done before is kept whatever comes.
    pub(super) fn savepoint(&mut self) -> Savepoint {
        self.undo.clear();
        Savepoint {
            total: self.total,
            ended: self.ended.clone(),
            ended_syncs: self.ended_syncs.clone(),
            state: self.state.len(),
            done: self.done.len(),
        }
    }

    /// Takes back what a failed request did. Its sequences stay used.
    pub(super) fn roll_back(&mut self, savepoint: Savepoint) {
        for undo in self.undo.drain(..).rev() {
            match undo {
                Undo::Entry(key, stored) => {
                    if let Some(slot) = self.entries.get_mut(&key) {
                        slot.after = stored;
                    }
                }
                Undo::Refs(key, seqs) => {
                    if let Some(slot) = self.refs.get_mut(&key) {
                        slot.after = seqs;
                    }
                }
                Undo::Settled(seq) => {
                    self.settled.remove(&seq);
                }
            }
        }
        self.total = savepoint.total;
        self.ended = savepoint.ended;
        self.ended_syncs = savepoint.ended_syncs;
        self.state.truncate(savepoint.state);
        self.done.truncate(savepoint.done);
    }

    /// The sequences under which a ref is queued, ascending.
    pub(super) fn refs(&mut self, route: RouteId, blob: BlobRef) -> Result<Vec<u64>, QueueError> {
        if let Some(slot) = self.refs.get(&(route, blob)) {
            return Ok(slot.after.clone());
        }
        failpoint::hit(Point::QueueRefRead)?;
        let key = keys::reference(route, &blob);
        let value =
            self.db.get_cf(family(self.db, keys::REF)?, &key).map_err(|error| self.shared.read_error(&error))?;
        let seqs = value.as_deref().map_or(Some(Vec::new()), keys::seqs).unwrap_or_else(|| {
            tracing::error!(route = route.0, %blob, "a ref row is malformed; it is set aside");
            self.aside_refs.push((key, value.unwrap_or_default()));
            Vec::new()
        });
        self.refs.insert((route, blob), Slot { before: seqs.clone(), after: seqs.clone() });
        Ok(seqs)
    }

    /// The same, for an entry that may be known to be alone.
    pub(super) fn refs_of(&mut self, stored: &Stored) -> Result<Vec<u64>, QueueError> {
        let Entry { route, blob, seq, .. } = stored.entry;
        if stored.alone && !self.refs.contains_key(&(route, blob)) {
            self.refs.insert((route, blob), Slot { before: vec![seq.0], after: vec![seq.0] });
        }
        self.refs(route, blob)
    }

    pub(super) fn set_refs(&mut self, route: RouteId, blob: BlobRef, seqs: Vec<u64>) -> Result<(), QueueError> {
        if !self.refs.contains_key(&(route, blob)) {
            self.refs(route, blob)?;
        }
        if let Some(slot) = self.refs.get_mut(&(route, blob)) {
            self.undo.push(Undo::Refs((route, blob), std::mem::replace(&mut slot.after, seqs)));
        }
        Ok(())
    }

    /// An entry; none where it is unreadable too, which claiming it will find and report.
    pub(super) fn entry(&mut self, route: RouteId, seq: u64) -> Result<Option<Stored>, QueueError> {
        Ok(self.peek(route, seq)?.map(Rc::unwrap_or_clone))
    }

    /// The same, not to be changed.
    pub(super) fn peek(&mut self, route: RouteId, seq: u64) -> Result<Option<Rc<Stored>>, QueueError> {
        if let Some(slot) = self.entries.get(&(route, seq)) {
            return Ok(slot.after.clone());
        }
        failpoint::hit(Point::QueueEntryRead)?;
        let value = self
            .db
            .get_cf(family(self.db, keys::ENTRY)?, keys::entry(route, seq))
            .map_err(|error| self.shared.read_error(&error))?;
        let stored = value.and_then(|bytes| row::decode_entry(route, seq, &bytes).ok()).map(Rc::new);
        self.entries.insert((route, seq), Slot { before: stored.clone(), after: stored.clone() });
        Ok(stored)
    }

    /// An entry that was just read from the database, as this batch has it.
    pub(super) fn entry_read(&mut self, read: Stored) -> Option<Rc<Stored>> {
        let key = (read.entry.route, read.entry.seq.0);
        let read = Rc::new(read);
        let slot = self.entries.entry(key).or_insert_with(|| Slot { before: Some(read.clone()), after: Some(read) });
        slot.after.clone()
    }

    /// Adds or replaces an entry that was read before, or is new.
    pub(super) fn put(&mut self, stored: Stored) {
        self.set((stored.entry.route, stored.entry.seq.0), Some(Rc::new(stored)));
    }

    pub(super) fn remove(&mut self, route: RouteId, seq: u64) {
        self.set((route, seq), None);
    }

    fn set(&mut self, key: (RouteId, u64), stored: Option<Rc<Stored>>) {
        let slot = self.entries.entry(key).or_insert(Slot { before: None, after: None });
        match (&slot.after, &stored) {
            (None, Some(_)) => self.total += 1,
            (Some(_), None) => self.total = self.total.saturating_sub(1),
            _ => {}
        }
        self.undo.push(Undo::Entry(key, std::mem::replace(&mut slot.after, stored)));
    }

    /// The next sequence; used up even if the batch should fail.
    pub(super) fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    /// Whether an entry is claimed. If not, it cannot be claimed until this batch has ended.
    pub(super) fn claimed(&self, stored: &Stored) -> bool {
        let seq = stored.entry.seq.0;
        if self.settled.contains(&seq) || seq >= self.first_seq {
            return false;
        }
        self.shared.claims().touch(stored.entry.route, stored.entry.lane, seq)
    }

    /// An entry's claim ends in this batch.
    pub(super) fn set_settled(&mut self, seq: u64) {
        if self.settled.insert(seq) {
            self.undo.push(Undo::Settled(seq));
        }
    }

    /// The route of this name, as of this batch.
    pub(super) fn new_route(&self, name: &str) -> Option<&(RouteId, RouteRow)> {
        self.routes.iter().find(|(_, row)| row.name == name)
    }

    pub(super) fn add_route(&mut self, row: RouteRow) -> RouteId {
        let known = self.shared.figures().routes.last_key_value().map(|(id, _)| id.0);
        let last = self.routes.last().map(|(id, _)| id.0).or(known);
        let id = RouteId(last.map_or(0, |last| last + 1));
        self.routes.push((id, row));
        id
    }

    /// Whether this batch has looked at an entry of this route.
    pub(super) fn touches(&self, route: RouteId) -> bool {
        self.entries.keys().any(|(touched, _)| *touched == route)
    }

    /// The rows that are set aside in this batch.
    pub(super) fn rows_set_aside(&self) -> Vec<AsideRow> {
        self.aside.iter().map(AsideRow::of).collect()
    }

    pub(super) fn set_aside(&mut self, row: BadRow) {
        self.aside.push(row);
    }

    /// Where the entries that were looked at could be claimed, and where they will be. One whose claim ends here could not.
    pub(super) fn moves(&self) -> Vec<Moved> {
        let moved = self.entries.iter().map(|((route, seq), slot)| Moved {
            route: *route,
            seq: *seq,
            before: slot.before.as_deref().filter(|_| !self.settled.contains(seq)).and_then(Spot::of),
            after: slot.after.as_deref().and_then(Spot::of),
        });
        moved.collect()
    }

    /// Turns the changes into a batch.
    pub(super) fn finish(self) -> Result<Finished, QueueError> {
        let db = self.db;
        let mut batch = WriteBatch::default();
        let mut effects = Effects { total: self.total, routes: self.routes, ..Effects::default() };
        let mut counts = BTreeMap::new();
        let mut syncs = BTreeMap::new();
        let mut aside_total = self.shared.figures().aside;
        // First, so that what the batch adds behind them stays.
        aside_total += self.dropped.write(db, &mut batch)?;
        for route in &self.dropped.swept {
            counts.insert(*route, dropped::emptied(&self.shared.figures().counts(*route)));
        }

        // In the order of their keys, family by family: RocksDB takes in what is sorted two to three times as fast.
        let mut rows: Vec<_> = self.entries.iter().filter(|(_, slot)| slot.before != slot.after).collect();
        rows.sort_unstable_by_key(|(key, _)| **key);
        let entries = family(db, keys::ENTRY)?;
        for ((route, seq), slot) in &rows {
            let (before, after) = (slot.before.as_deref(), slot.after.as_deref());
            let counts = counts.entry(*route).or_insert_with(|| self.shared.figures().counts(*route));
            for (stored, adds) in [(before, false), (after, true)] {
                let Some(stored) = stored else { continue };
                add(tally_of(counts, stored), row::tally(stored.entry.size), adds);
                for sync in &stored.entry.syncs {
                    let tally = syncs.entry(*sync).or_insert_with(|| self.shared.figures().sync(*sync));
                    let number = if stored.parked() { &mut tally.parked } else { &mut tally.pending };
                    *number = if adds { *number + 1 } else { number.saturating_sub(1) };
                }
            }
            let key = keys::entry(*route, *seq);
            match after {
                Some(stored) => batch.put_cf(entries, key, row::encode_entry(stored)),
                None if self.dropped.covers(*route, *seq) => {}
                None => batch.delete_cf(entries, key),
            }
        }
        let ready = family(db, keys::READY)?;
        for (_, slot) in &rows {
            let index = |stored: &Stored| Some((stored.index()?, stored.index_value()));
            let (old, new) = (slot.before.as_deref().and_then(index), slot.after.as_deref().and_then(index));
            if old == new {
                continue;
            }
            let of = |name: &str| if name == keys::READY { Ok(ready) } else { family(db, name) };
            if let Some(((name, key), _)) = &old
                && new.as_ref().is_none_or(|(index, _)| index.0 != *name || index.1 != *key)
            {
                batch.delete_cf(of(name)?, key);
            }
            if let Some(((name, key), value)) = &new {
                batch.put_cf(of(name)?, key, value);
            }
        }

        let mut rows: Vec<_> = self.refs.iter().filter(|(_, slot)| slot.before != slot.after).collect();
        rows.sort_unstable_by_key(|(key, _)| *key);
        let refs = family(db, keys::REF)?;
        let mut key = Vec::new();
        for ((route, blob), slot) in rows {
            key.clear();
            keys::put_reference(*route, blob, &mut key);
            if slot.after.is_empty() {
                batch.delete_cf(refs, &key);
            } else {
                batch.put_cf(refs, &key, keys::seqs_value(&slot.after));
            }
        }

        let aside = family(db, keys::ASIDE)?;
        for row in &self.aside {
            batch.put_cf(aside, keys::aside(row.family, &row.key), &row.value);
            batch.delete_cf(family(db, row.family)?, &row.key);
            if let Some((seq, bytes)) = &row.entry {
                let key = keys::entry(row.route, *seq);
                batch.put_cf(aside, keys::aside(keys::ENTRY, &key), bytes);
                batch.delete_cf(family(db, keys::ENTRY)?, key);
            }
            if row.lost {
                let counts = counts.entry(row.route).or_insert_with(|| self.shared.figures().counts(row.route));
                let unknown = (false, Tally { entries: 1, ..Tally::default() });
                let (failed, tally) = row::read_index_value(&row.value).unwrap_or(unknown);
                let lane = row::lane_counts(counts, row.lane);
                add(if failed { &mut lane.retrying } else { &mut lane.ready }, tally, false);
                effects.total = effects.total.saturating_sub(1);
            }
            aside_total += 1;
        }
        for (key, value) in &self.aside_refs {
            batch.put_cf(aside, keys::aside(keys::REF, key), value);
            aside_total += 1;
        }
        effects.aside = self.aside;
        effects.aside_total = aside_total;

        for (route, ended) in self.ended {
            let counts = counts.entry(route).or_insert_with(|| self.shared.figures().counts(route));
            counts.confirmed += ended.confirmed;
            counts.copied += ended.copied;
            counts.copied_bytes += ended.copied_bytes;
            counts.discarded += ended.discarded;
        }
        for (sync, ended) in self.ended_syncs {
            let tally = syncs.entry(sync).or_insert_with(|| self.shared.figures().sync(sync));
            tally.confirmed += ended.confirmed;
            tally.discarded += ended.discarded;
        }

        let state = family(db, keys::STATE)?;
        for write in &self.state {
            match &write.value {
                Some(value) => batch.put_cf(state, &write.key, value),
                None => batch.delete_cf(state, &write.key),
            }
        }

        let meta = family(db, keys::META)?;
        for (id, route) in &effects.routes {
            batch.put_cf(meta, keys::of_route(keys::META_ROUTE, *id), row::encode_route(route));
        }
        for (route, counts) in &counts {
            let from = self.shared.claims().ready_lows(*route);
            batch.put_cf(meta, keys::of_route(keys::META_COUNTS, *route), row::encode_counts(counts, from));
        }
        for (sync, tally) in &syncs {
            batch.put_cf(meta, keys::of_sync(sync.0), row::encode_sync(*tally));
        }
        effects.old_syncs = self.shared.figures().old_syncs(&syncs);
        for sync in &effects.old_syncs {
            batch.delete_cf(meta, keys::of_sync(sync.0));
        }
        if self.next_seq != self.first_seq {
            batch.put_cf(meta, keys::META_NEXT_SEQ, self.next_seq.to_be_bytes());
        }
        if aside_total != self.shared.figures().aside {
            batch.put_cf(meta, keys::META_ASIDE, aside_total.to_be_bytes());
        }
        if !batch.is_empty() {
            batch.put_cf(meta, keys::META_COMMIT_TIME, keys::nanos(self.now).to_be_bytes());
        }
        effects.counts = counts.into_iter().collect();
        effects.syncs = syncs.into_iter().collect();
        let mut index = self.shared.done();
        if !self.done.is_empty() && index.remembers() {
            effects.done = Some(index.begin(db, &mut batch, &self.done, self.now)?);
        }
        Ok(Finished { batch, effects })
    }
}

/// The counter in which an entry counts.
fn tally_of<'a>(counts: &'a mut RouteCounts, stored: &Stored) -> &'a mut Tally {
    let LaneCounts { ready, retrying, parked, .. } = row::lane_counts(counts, stored.entry.lane);
    if stored.parked() {
        parked
    } else if stored.entry.failure.is_some() {
        retrying
    } else {
        ready
    }
}

/// Entries that are counted as queued.
pub(super) fn queued(counts: &RouteCounts) -> u64 {
    let lanes = [counts.fresh, counts.backfill];
    lanes.map(|lane| lane.ready.entries + lane.retrying.entries + lane.parked.entries).into_iter().sum()
}

/// Adds to a counter, or subtracts from it.
pub(super) fn add(to: &mut Tally, tally: Tally, adds: bool) {
    let change = |number: u64, by: u64| if adds { number.saturating_add(by) } else { number.saturating_sub(by) };
    to.entries = change(to.entries, tally.entries);
    to.bytes = change(to.bytes, tally.bytes);
    to.unknown_size = change(to.unknown_size, tally.unknown_size);
}
