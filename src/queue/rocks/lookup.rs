//! Looking blobs up: point reads in one snapshot. Only who knows no more than a ref's beginning makes it scan.

use super::done;
use super::handle::RocksQueue;
use super::keys::{self, Seqs, family};
use super::row::{self, Place, Stored};
use super::shared::Shared;
use crate::blob::{BlobRef, RefPrefix};
use crate::queue::lookup::{Completion, Known, Lookup, Queued, Standing};
use crate::queue::{LaneCounts, QueueError, RouteId};
use async_trait::async_trait;
use rocksdb::{DB, Direction, IteratorMode, PrefixRange, ReadOptions, Snapshot};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use tokio::sync::watch;

impl Known {
    fn add(&mut self, Stored { entry, place, .. }: Stored) {
        let standing = match place {
            Place::Waiting => {
                self.successor = Some(entry);
                return;
            }
            Place::Parked(_) => Standing::Parked,
            Place::Due if entry.failure.is_some() => Standing::Retrying,
            Place::Due | Place::Ready => Standing::Ready,
        };
        self.queued = Some(Queued { entry, standing });
    }
}

impl Shared {
    fn look_up(&self, blobs: &[(RouteId, BlobRef)]) -> Result<Vec<Known>, QueueError> {
        let db = self.db()?;
        let (refs, entries) = (family(&db, keys::REF)?, family(&db, keys::ENTRY)?);
        let snapshot = db.snapshot();
        let mut all = Vec::with_capacity(blobs.len());
        for (route, blob) in blobs {
            let mut known = Known::default();
            let value =
                snapshot.get_cf(refs, keys::reference(*route, blob)).map_err(|error| self.read_error(&error))?;
            for seq in value.as_deref().and_then(Seqs::from_row).unwrap_or_default() {
                let value =
                    snapshot.get_cf(entries, keys::entry(*route, seq)).map_err(|error| self.read_error(&error))?;
                if let Some(stored) = value.and_then(|bytes| row::decode_entry(*route, seq, &bytes).ok()) {
                    known.add(stored);
                }
            }
            all.push(known);
        }
        for (place, completion) in self.completions(&db, &snapshot, blobs)? {
            all[place].completion = Some(completion);
        }
        let claims = self.claims();
        for queued in all.iter_mut().filter_map(|known| known.queued.as_mut()) {
            if claims.is_claimed(queued.entry.route, queued.entry.lane, queued.entry.seq.0) {
                queued.standing = Standing::Claimed;
            }
        }
        Ok(all)
    }

    /// The completions that are remembered of these, by their place. The snapshot was taken before this is called.
    fn completions(
        &self,
        db: &DB,
        snapshot: &Snapshot<'_>,
        blobs: &[(RouteId, BlobRef)],
    ) -> Result<HashMap<usize, Completion>, QueueError> {
        let mut by_row: BTreeMap<u64, Vec<usize>> = BTreeMap::new();
        {
            let index = self.done();
            for (place, (route, blob)) in blobs.iter().enumerate() {
                if let Some(number) = index.row_of(*route, blob) {
                    by_row.entry(number).or_default().push(place);
                }
            }
        }
        let family = family(db, keys::DONE)?;
        let mut found = HashMap::new();
        for (number, places) in by_row {
            let value = snapshot.get_cf(family, number.to_be_bytes());
            let value = value.map_err(|error| QueueError::Read(error.to_string()))?;
            let Some(row) = value.and_then(|value| row::decode_done(&value).ok()) else { continue };
            let time = keys::time(row.time);
            // Of one ref's completions in a batch the last holds.
            let items: HashMap<_, _> = row.items.iter().map(|item| ((item.route, &item.blob[..]), item)).collect();
            for place in places {
                let (route, blob) = &blobs[place];
                let key = blob.to_key();
                if let Some(done) = items.get(&(route.0, &key[..])).and_then(|item| done::completion(time, item)) {
                    found.insert(place, done);
                }
            }
        }
        Ok(found)
    }
}

impl Shared {
    /// Refs with this beginning, so many at most; `None` while others are sought.
    pub(super) fn find(
        &self,
        routes: &[RouteId],
        prefix: &RefPrefix,
        most: usize,
    ) -> Result<Option<BTreeSet<BlobRef>>, QueueError> {
        let Some(_turn) = self.finding.try_lock() else { return Ok(None) };
        let db = self.db()?;
        let snapshot = db.snapshot();
        let failed = |error: rocksdb::Error| self.read_error(&error);
        let mut found = BTreeSet::new();
        let has_entries = |route: &&RouteId| {
            let counts = self.figures().counts(**route);
            [counts.fresh, counts.backfill] != [LaneCounts::default(); 2]
        };
        for route in routes.iter().filter(has_entries) {
            let mut reading = ReadOptions::default();
            // Those that are in memory alone are sorted for this; and it must not walk on over what was deleted.
            reading.set_total_order_seek(true);
            reading.set_iterate_range(PrefixRange(keys::references(*route, prefix)));
            let before = found.len();
            for row in snapshot.iterator_cf_opt(family(&db, keys::REF)?, reading, IteratorMode::Start) {
                let (key, _) = row.map_err(failed)?;
                found.extend(keys::blob_of_reference(&key).filter(|blob| prefix.matches(blob)));
                if found.len() - before == most {
                    break;
                }
            }
        }
        // Not from the first on: what was deleted lies there.
        let oldest = self.done().oldest().to_be_bytes();
        let rows = IteratorMode::From(&oldest, Direction::Forward);
        for row in snapshot.iterator_cf(family(&db, keys::DONE)?, rows) {
            let (_, value) = row.map_err(failed)?;
            // An unreadable one is forgotten: it is no entry.
            let row = row::decode_done(&value).unwrap_or_default();
            let items = row.items.iter().filter(|item| routes.contains(&RouteId(item.route)));
            found.extend(items.filter_map(|item| BlobRef::from_key(&item.blob)).filter(|blob| prefix.matches(blob)));
        }
        Ok(Some(found.into_iter().take(most).collect()))
    }
}

#[async_trait]
impl Lookup for RocksQueue {
    async fn look_up(&self, blobs: Vec<(RouteId, BlobRef)>) -> Result<Vec<Known>, QueueError> {
        self.read(move |shared| shared.look_up(&blobs)).await
    }

    async fn find(
        &self,
        routes: Vec<RouteId>,
        prefix: RefPrefix,
        most: usize,
    ) -> Result<Option<BTreeSet<BlobRef>>, QueueError> {
        self.read(move |shared| shared.find(&routes, &prefix, most)).await
    }

    fn settlements(&self) -> watch::Receiver<u64> {
        self.shared.settlements()
    }
}
