//! Dropping a route's entries, in steps of one batch each, so that tallies and counters follow as they always do. The entries'
//! own rows are deleted as one range a step, so that no step walks over what those before it deleted. When no entry is left,
//! one range a family sweeps up rows that belong to none.

use super::figures::unparked;
use super::handle::RocksQueue;
use super::keys::{self, family};
use super::request::Request;
use super::row;
use super::txn::Txn;
use crate::queue::drop::{DropEntries, Dropped};
use crate::queue::lookup::DiscardedBy;
use crate::queue::{QueueError, RouteId, Tally};
use async_trait::async_trait;
use rocksdb::{Direction, IteratorMode, ReadOptions};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Rows that one step looks at, at most: claimed ones are passed by.
const MAX_LOOKS: usize = 50_000;

impl Txn<'_> {
    /// Deletes up to `max` entries of a route.
    pub(super) fn drop_entries(&mut self, route: RouteId, max: usize) -> Result<Dropped, QueueError> {
        let db = self.db;
        let (start, end) = (keys::of_route(&[], route), keys::route_end(route));
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(end);
        let from = IteratorMode::From(&start, Direction::Forward);
        let (mut tally, mut looks, mut kept, mut bad) = (Tally::default(), 0, 0, BTreeMap::new());
        let mut seqs: Option<(u64, u64)> = None;
        for found in db.iterator_cf_opt(family(db, keys::ENTRY)?, options, from) {
            if usize::try_from(tally.entries).is_ok_and(|dropped| dropped >= max) || looks >= MAX_LOOKS {
                break;
            }
            looks += 1;
            let (key, value) = found.map_err(|error| self.shared.read_error(&error))?;
            let seq = key.get(4..).and_then(keys::number);
            let Some(read) = seq.and_then(|seq| row::decode_entry(route, seq, &value).ok()) else {
                bad.insert(key.into_vec(), value.into_vec());
                continue;
            };
            let seq = read.entry.seq.0;
            // Another request of this batch may have removed it.
            if let Some(stored) = self.entry_read(read) {
                if self.claimed(&stored) {
                    kept += 1;
                    continue;
                }
                let one = row::tally(stored.entry.size);
                tally.entries += one.entries;
                tally.bytes = tally.bytes.wrapping_add(one.bytes);
                tally.unknown_size += one.unknown_size;
                self.discard(Arc::unwrap_or_clone(stored), DiscardedBy::Operator)?;
            }
            seqs = Some((seqs.map_or(seq, |(first, _)| first), seq));
        }
        // Nothing may fail from here on: these are not taken back.
        let rows = &mut self.dropped;
        rows.bad.append(&mut bad);
        if let (Some((first, last)), 0) = (seqs, kept) {
            rows.ranges.push((route, first, last));
        }
        // What this batch has touched is not in the database yet: the next step will see it.
        let done = looks == 0 && !self.touches(route);
        if done && self.dropped.swept.insert(route) {
            let stray = unparked(&self.shared.figures().counts(route));
            self.unparked = self.unparked.saturating_sub(stray);
        }
        Ok(Dropped { tally, done })
    }
}

#[async_trait]
impl DropEntries for RocksQueue {
    async fn drop_entries(&self, route: RouteId, max: usize) -> Result<Dropped, QueueError> {
        self.ask(|answer| Request::DropEntries { route, max, answer }).await
    }
}
