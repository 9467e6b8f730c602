//! One batch in the making: what the database holds, overlaid with what the requests so far have changed.
//!
//! Entries and refs are read once and changed in memory. Index rows and counters are never touched by hand: they follow
//! from each entry as it was and as it is, when the batch is [finished](Txn::finish).

mod dropped_rows;
mod finish;

pub(super) use finish::Effects;

use dropped_rows::DroppedRows;

use super::claims::{AsideRow, BadRow, Claimable};
use super::done::Done;
use super::keys::{self, Seqs, family};
use super::row::{self, RouteRow, Stored};
use super::shared::Shared;
use crate::blob::BlobRef;
use crate::failpoint::{self, Point};
use crate::queue::{Entry, Lane, QueueError, RouteId, StateWrite, SyncId};
use foldhash::{HashMap, HashMapExt as _, HashSet, HashSetExt as _};
use rocksdb::DB;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Something as it is in the database, and as it will be.
#[derive(Clone, Debug)]
struct Overlay<T> {
    before: T,
    after: T,
}

/// How to take back a change, newest first.
#[derive(Debug)]
enum Undo {
    Entry((RouteId, u64), Option<Arc<Stored>>),
    Refs((RouteId, BlobRef), Seqs),
    Settled(u64),
}

/// What ended: added to the counters, never taken away.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct EndedCounts {
    pub(super) confirmed: u64,
    pub(super) copied: u64,
    pub(super) copied_bytes: u64,
    pub(super) discarded: u64,
}

/// A point to return to when a request fails.
#[derive(Debug)]
pub(super) struct Savepoint {
    unparked: u64,
    ended: BTreeMap<RouteId, EndedCounts>,
    ended_syncs: BTreeMap<SyncId, EndedCounts>,
    state: usize,
    done: usize,
}

/// A batch in the making.
pub(super) struct Txn<'a> {
    pub(super) db: &'a DB,
    pub(super) shared: &'a Shared,
    pub(super) now: SystemTime,
    pub(super) max_entries: u64,
    /// Entries of all routes that are not parked.
    pub(super) unparked: u64,
    pub(super) next_seq: u64,
    /// Counters by route and by sync of what ended in this batch.
    pub(super) ended: BTreeMap<RouteId, EndedCounts>,
    pub(super) ended_syncs: BTreeMap<SyncId, EndedCounts>,
    pub(super) state: Vec<StateWrite>,
    /// What left the queue in this batch.
    pub(super) done: Vec<Done>,
    pub(super) dropped: DroppedRows,
    first_seq: u64,
    entries: HashMap<(RouteId, u64), Overlay<Option<Arc<Stored>>>>,
    refs: HashMap<(RouteId, BlobRef), Overlay<Seqs>>,
    settled: HashSet<u64>,
    routes: Vec<(RouteId, RouteRow)>,
    aside: Vec<BadRow>,
    aside_refs: Vec<(Vec<u8>, Vec<u8>)>,
    undo: Vec<Undo>,
}

/// Where an entry can be claimed, before and after a batch.
#[derive(Clone, Debug)]
pub(super) struct Moved {
    pub(super) route: RouteId,
    pub(super) seq: u64,
    pub(super) before: Option<Claimable>,
    pub(super) after: Option<Claimable>,
    /// What is written in its row's place.
    pub(super) row: Option<Arc<Stored>>,
}

impl<'a> Txn<'a> {
    pub(super) fn new(
        db: &'a DB,
        shared: &'a Shared,
        now: SystemTime,
        max_entries: u64,
        next_seq: u64,
        unparked: u64,
    ) -> Self {
        Self {
            db,
            shared,
            now,
            max_entries,
            unparked,
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
            unparked: self.unparked,
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
        self.unparked = savepoint.unparked;
        self.ended = savepoint.ended;
        self.ended_syncs = savepoint.ended_syncs;
        self.state.truncate(savepoint.state);
        self.done.truncate(savepoint.done);
    }

    /// The sequences under which a ref is queued, ascending.
    pub(super) fn refs(&mut self, route: RouteId, blob: BlobRef) -> Result<Seqs, QueueError> {
        failpoint::hit(Point::QueueRefRead)?;
        if let Some(slot) = self.refs.get(&(route, blob)) {
            return Ok(slot.after);
        }
        let key = keys::reference(route, &blob);
        let value =
            self.db.get_pinned_cf(family(self.db, keys::REF)?, &key).map_err(|error| self.shared.read_error(&error))?;
        Ok(self.refs_read(route, blob, value.as_deref()))
    }

    /// A ref's row was read.
    fn refs_read(&mut self, route: RouteId, blob: BlobRef, value: Option<&[u8]>) -> Seqs {
        let seqs = match value {
            None => Seqs::None,
            Some(row) => Seqs::from_row(row).unwrap_or_else(|| {
                tracing::error!(route = route.0, %blob, "a ref row is malformed; it is set aside");
                self.aside_refs.push((keys::reference(route, &blob), row.to_vec()));
                Seqs::None
            }),
        };
        self.refs.insert((route, blob), Overlay { before: seqs, after: seqs });
        seqs
    }

    /// Reads the rows of these refs, all at once, which costs less than half of what one after another does. What cannot be
    /// read now is read again where it is needed, and fails there.
    pub(super) fn read_ahead(&mut self, refs: impl Iterator<Item = (RouteId, BlobRef)>) {
        let mut wanted: Vec<_> = refs.filter(|of| !self.refs.contains_key(of)).collect();
        if wanted.len() < 2 {
            return;
        }
        wanted.sort_unstable();
        wanted.dedup();
        let Ok(family) = family(self.db, keys::REF) else { return };
        let keys: Vec<_> = wanted.iter().map(|(route, blob)| keys::reference(*route, blob)).collect();
        let rows = self.db.batched_multi_get_cf(family, &keys, true);
        self.refs.reserve(wanted.len());
        for ((route, blob), row) in wanted.into_iter().zip(rows) {
            if let Ok(row) = row {
                self.refs_read(route, blob, row.as_deref());
            }
        }
    }

    /// The same, for an entry that may be known to be alone.
    pub(super) fn refs_of(&mut self, stored: &Stored) -> Result<Seqs, QueueError> {
        let Entry { route, blob, seq, .. } = stored.entry;
        if stored.alone {
            let alone = Seqs::One(seq.0);
            self.refs.entry((route, blob)).or_insert(Overlay { before: alone, after: alone });
        }
        self.refs(route, blob)
    }

    pub(super) fn set_refs(&mut self, route: RouteId, blob: BlobRef, seqs: Seqs) -> Result<(), QueueError> {
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
        Ok(self.peek(route, seq)?.map(Arc::unwrap_or_clone))
    }

    /// The same, not to be changed.
    pub(super) fn peek(&mut self, route: RouteId, seq: u64) -> Result<Option<Arc<Stored>>, QueueError> {
        if let Some(slot) = self.entries.get(&(route, seq)) {
            return Ok(slot.after.clone());
        }
        failpoint::hit(Point::QueueEntryRead)?;
        let value = self
            .db
            .get_cf(family(self.db, keys::ENTRY)?, keys::entry(route, seq))
            .map_err(|error| self.shared.read_error(&error))?;
        let stored = value.and_then(|bytes| row::decode_entry(route, seq, &bytes).ok()).map(Arc::new);
        self.entries.insert((route, seq), Overlay { before: stored.clone(), after: stored.clone() });
        Ok(stored)
    }

    /// A claimed entry, whose row is known in memory as a rule.
    pub(super) fn peek_claimed(
        &mut self,
        route: RouteId,
        lane: Lane,
        seq: u64,
    ) -> Result<Option<Arc<Stored>>, QueueError> {
        if !self.entries.contains_key(&(route, seq))
            && let Some(row) = self.shared.claims().row(route, lane, seq)
        {
            self.entries.insert((route, seq), Overlay { before: Some(Arc::clone(&row)), after: Some(row) });
        }
        self.peek(route, seq)
    }

    /// An entry that was just read from the database, as this batch has it.
    pub(super) fn entry_read(&mut self, read: Stored) -> Option<Arc<Stored>> {
        let key = (read.entry.route, read.entry.seq.0);
        let read = Arc::new(read);
        let slot = self.entries.entry(key).or_insert_with(|| Overlay { before: Some(read.clone()), after: Some(read) });
        slot.after.clone()
    }

    /// Adds or replaces an entry that was read before, or is new.
    pub(super) fn put(&mut self, stored: Stored) {
        self.set((stored.entry.route, stored.entry.seq.0), Some(Arc::new(stored)));
    }

    pub(super) fn remove(&mut self, route: RouteId, seq: u64) {
        self.set((route, seq), None);
    }

    fn set(&mut self, key: (RouteId, u64), stored: Option<Arc<Stored>>) {
        let slot = self.entries.entry(key).or_insert(Overlay { before: None, after: None });
        let counts = |stored: &Option<Arc<Stored>>| stored.as_ref().is_some_and(|stored| !stored.parked());
        match (counts(&slot.after), counts(&stored)) {
            (false, true) => self.unparked += 1,
            (true, false) => self.unparked = self.unparked.saturating_sub(1),
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
        self.shared.claims().is_claimed(stored.entry.route, stored.entry.lane, seq)
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
            before: slot.before.as_deref().filter(|_| !self.settled.contains(seq)).and_then(Claimable::of),
            after: slot.after.as_deref().and_then(Claimable::of),
            row: slot.after.clone().filter(|_| slot.before.is_some() && slot.before != slot.after),
        });
        moved.collect()
    }
}
