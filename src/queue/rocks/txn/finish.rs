//! From the changes of a batch to its bytes, and to what is done in memory once it is written.

use super::dropped_rows::emptied;
use super::{Overlay, Txn};
use crate::blob::BlobRef;
use crate::queue::rocks::done::Begun;
use crate::queue::rocks::figures::add;
use crate::queue::rocks::keys::{self, Seqs, family};
use crate::queue::rocks::row::{self, RouteRow, Stored};
use crate::queue::rocks::shared::Shared;
use crate::queue::{LaneCounts, QueueError, RouteCounts, RouteId, SyncId, SyncTally, Tally};
use foldhash::HashMap;
use rocksdb::{DB, WriteBatch};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes of a batch for each entry that it changes, about.
const BYTES: usize = 256;

/// A finished batch: what to write, and what to do in memory once it is written.
pub(in crate::queue::rocks) struct Finished {
    pub(in crate::queue::rocks) batch: WriteBatch,
    pub(in crate::queue::rocks) effects: Effects,
}

/// The in-memory side of a batch.
#[derive(Debug, Default)]
pub(in crate::queue::rocks) struct Effects {
    pub(in crate::queue::rocks) counts: Vec<(RouteId, RouteCounts)>,
    pub(in crate::queue::rocks) syncs: Vec<(SyncId, SyncTally)>,
    pub(in crate::queue::rocks) old_syncs: Vec<SyncId>,
    pub(in crate::queue::rocks) routes: Vec<(RouteId, RouteRow)>,
    pub(in crate::queue::rocks) aside_total: u64,
    pub(in crate::queue::rocks) unparked: u64,
    pub(in crate::queue::rocks) done: Option<Begun>,
}

/// The counters and tallies that a batch changes.
struct Sums<'a> {
    shared: &'a Shared,
    counts: BTreeMap<RouteId, RouteCounts>,
    syncs: BTreeMap<SyncId, SyncTally>,
}

impl Sums<'_> {
    fn counts(&mut self, route: RouteId) -> &mut RouteCounts {
        self.counts.entry(route).or_insert_with(|| self.shared.figures().counts(route))
    }

    fn sync(&mut self, sync: SyncId) -> &mut SyncTally {
        self.syncs.entry(sync).or_insert_with(|| self.shared.figures().sync(sync))
    }

    /// An entry comes to be as it is here, or no longer is.
    fn count(&mut self, stored: &Stored, adds: bool) {
        add(tally_of(self.counts(stored.entry.route), stored), row::tally(stored.entry.size), adds);
        for sync in &stored.entry.syncs {
            let tally = self.sync(*sync);
            let number = if stored.parked() { &mut tally.parked } else { &mut tally.pending };
            *number = if adds { *number + 1 } else { number.saturating_sub(1) };
        }
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

impl Txn<'_> {
    /// Turns the changes into a batch.
    pub(in crate::queue::rocks) fn finish(&mut self) -> Result<Finished, QueueError> {
        let db = self.db;
        let mut batch = WriteBatch::with_capacity_bytes(1024 + BYTES * self.entries.len());
        let mut sums = Sums { shared: self.shared, counts: BTreeMap::new(), syncs: BTreeMap::new() };
        // First, so that what the batch adds behind them stays.
        let mut aside = self.shared.figures().aside;
        aside += self.dropped.write(db, &mut batch)?;
        for route in &self.dropped.swept {
            let emptied = emptied(sums.counts(*route));
            *sums.counts(*route) = emptied;
        }
        self.write_entries(&mut batch, &mut sums)?;
        write_refs(db, &self.refs, &mut batch)?;
        let lost = self.write_aside(&mut batch, &mut sums, &mut aside)?;
        for (route, ended) in &self.ended {
            let counts = sums.counts(*route);
            counts.confirmed += ended.confirmed;
            counts.copied += ended.copied;
            counts.copied_bytes += ended.copied_bytes;
            counts.discarded += ended.discarded;
        }
        for (sync, ended) in &self.ended_syncs {
            let tally = sums.sync(*sync);
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
        let old_syncs = self.shared.figures().old_syncs(&sums.syncs);
        self.write_meta(&mut batch, &sums, &old_syncs, aside)?;
        let mut index = self.shared.done();
        let done = match &self.done[..] {
            done if !done.is_empty() && index.remembers() => Some(index.begin(db, &mut batch, done, self.now)?),
            _ => None,
        };
        drop(index);
        let effects = Effects {
            counts: sums.counts.into_iter().collect(),
            syncs: sums.syncs.into_iter().collect(),
            old_syncs,
            routes: std::mem::take(&mut self.routes),
            aside_total: aside,
            unparked: self.unparked.saturating_sub(lost),
            done,
        };
        Ok(Finished { batch, effects })
    }

    /// The rows of changed entries and their index rows, in the order of their keys, family by family: RocksDB takes in what
    /// is sorted two to three times as fast.
    fn write_entries(&self, batch: &mut WriteBatch, sums: &mut Sums<'_>) -> Result<(), QueueError> {
        let mut rows: Vec<_> = self.entries.iter().filter(|(_, slot)| slot.before != slot.after).collect();
        rows.sort_unstable_by_key(|(key, _)| **key);
        let (entries, ready) = (family(self.db, keys::ENTRY)?, family(self.db, keys::READY)?);
        let mut bytes = Vec::new();
        for ((route, seq), slot) in &rows {
            let key = keys::entry(*route, *seq);
            if let Some(before) = &slot.before {
                sums.count(before, false);
            }
            match &slot.after {
                Some(stored) => {
                    sums.count(stored, true);
                    bytes.clear();
                    row::put_entry(stored, &mut bytes);
                    batch.put_cf(entries, key, &bytes);
                }
                None if self.dropped.covers(*route, *seq) => {}
                None => batch.delete_cf(entries, key),
            }
        }
        for (_, slot) in &rows {
            let index = |stored: &Option<Arc<Stored>>| {
                let stored = stored.as_deref()?;
                Some((stored.index()?, stored.index_value()))
            };
            let (old, new) = (index(&slot.before), index(&slot.after));
            if old == new {
                continue;
            }
            let of = |name: &str| if name == keys::READY { Ok(ready) } else { family(self.db, name) };
            if let Some(((name, key), _)) = old
                && new.is_none_or(|(index, _)| index != (name, key))
            {
                batch.delete_cf(of(name)?, key);
            }
            if let Some(((name, key), value)) = new {
                batch.put_cf(of(name)?, key, value);
            }
        }
        Ok(())
    }

    /// Moves what cannot be read, and says how many entries are lost to the queue with it.
    fn write_aside(&self, batch: &mut WriteBatch, sums: &mut Sums<'_>, total: &mut u64) -> Result<u64, QueueError> {
        let (aside, mut lost) = (family(self.db, keys::ASIDE)?, 0);
        for row in &self.aside {
            batch.put_cf(aside, keys::aside(row.family, &row.key), &row.value);
            batch.delete_cf(family(self.db, row.family)?, &row.key);
            if let Some((seq, bytes)) = &row.entry {
                let key = keys::entry(row.route, *seq);
                batch.put_cf(aside, keys::aside(keys::ENTRY, &key), bytes);
                batch.delete_cf(family(self.db, keys::ENTRY)?, key);
            }
            if row.lost {
                let unknown = (false, Tally { entries: 1, ..Tally::default() });
                let (failed, tally) = row::read_index_value(&row.value).unwrap_or(unknown);
                let lane = row::lane_counts(sums.counts(row.route), row.lane);
                add(if failed { &mut lane.retrying } else { &mut lane.ready }, tally, false);
                lost += 1;
            }
            *total += 1;
        }
        for (key, value) in &self.aside_refs {
            batch.put_cf(aside, keys::aside(keys::REF, key), value);
            *total += 1;
        }
        Ok(lost)
    }

    fn write_meta(
        &self,
        batch: &mut WriteBatch,
        sums: &Sums<'_>,
        old_syncs: &[SyncId],
        aside: u64,
    ) -> Result<(), QueueError> {
        let meta = family(self.db, keys::META)?;
        for (id, route) in &self.routes {
            batch.put_cf(meta, keys::of_route(keys::META_ROUTE, *id), row::encode_route(route));
        }
        for (route, counts) in &sums.counts {
            let from = self.shared.claims().ready_lows(*route);
            batch.put_cf(meta, keys::of_route(keys::META_COUNTS, *route), row::encode_counts(counts, from));
        }
        for (sync, tally) in &sums.syncs {
            batch.put_cf(meta, keys::of_sync(sync.0), row::encode_sync(*tally));
        }
        for sync in old_syncs {
            batch.delete_cf(meta, keys::of_sync(sync.0));
        }
        if self.next_seq != self.first_seq {
            batch.put_cf(meta, keys::META_NEXT_SEQ, self.next_seq.to_be_bytes());
        }
        if aside != self.shared.figures().aside {
            batch.put_cf(meta, keys::META_ASIDE, aside.to_be_bytes());
        }
        if !batch.is_empty() {
            batch.put_cf(meta, keys::META_COMMIT_TIME, keys::nanos(self.now).to_be_bytes());
        }
        Ok(())
    }
}

/// The rows of changed refs, sorted too.
fn write_refs(
    db: &DB,
    refs: &HashMap<(RouteId, BlobRef), Overlay<Seqs>>,
    batch: &mut WriteBatch,
) -> Result<(), QueueError> {
    let mut rows: Vec<_> = refs.iter().filter(|(_, slot)| slot.before != slot.after).collect();
    rows.sort_unstable_by_key(|(key, _)| *key);
    let family = family(db, keys::REF)?;
    let (mut key, mut value) = (Vec::new(), Vec::new());
    for ((route, blob), slot) in rows {
        key.clear();
        keys::put_reference(*route, blob, &mut key);
        if slot.after == Seqs::None {
            batch.delete_cf(family, &key);
        } else {
            value.clear();
            slot.after.put_row(&mut value);
            batch.put_cf(family, &key, &value);
        }
    }
    Ok(())
}
