//! What the drops of a batch delete.

use crate::queue::rocks::keys::{self, family};
use crate::queue::{LaneCounts, QueueError, RouteCounts, RouteId};
use rocksdb::{DB, WriteBatch};
use std::collections::{BTreeMap, BTreeSet};

/// The families whose keys begin with the route.
const FAMILIES: [&str; 5] = [keys::ENTRY, keys::READY, keys::RETRY, keys::PARKED, keys::REF];

/// What the drops of a batch delete, besides what follows from its entries.
#[derive(Debug, Default)]
pub(in crate::queue::rocks) struct DroppedRows {
    /// Sequences, inclusive, between which a route has no entry any more.
    pub(in crate::queue::rocks) ranges: Vec<(RouteId, u64, u64)>,
    /// Rows of entries that cannot be read.
    pub(in crate::queue::rocks) bad: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Routes without entries.
    pub(in crate::queue::rocks) swept: BTreeSet<RouteId>,
}

impl DroppedRows {
    /// Whether an entry's row is deleted with others.
    pub(in crate::queue::rocks) fn covers(&self, route: RouteId, seq: u64) -> bool {
        self.ranges.iter().any(|(of, first, last)| *of == route && (*first..=*last).contains(&seq))
    }

    /// Writes all of it, and says how many rows it set aside.
    pub(in crate::queue::rocks) fn write(&self, db: &DB, batch: &mut WriteBatch) -> Result<u64, QueueError> {
        let (entries, aside) = (family(db, keys::ENTRY)?, family(db, keys::ASIDE)?);
        for (key, value) in &self.bad {
            tracing::error!(?key, "an entry of a dropped route cannot be read; it is set aside");
            batch.put_cf(aside, keys::aside(keys::ENTRY, key), value);
            batch.delete_cf(entries, key);
        }
        for (route, first, last) in &self.ranges {
            batch.delete_range_cf(entries, keys::entry(*route, *first), keys::entry(*route, last.saturating_add(1)));
        }
        for route in &self.swept {
            for name in FAMILIES {
                batch.delete_range_cf(family(db, name)?, keys::of_route(&[], *route), keys::route_end(*route));
            }
        }
        Ok(self.bad.len() as u64)
    }
}

/// A route's counters without anything queued.
pub(in crate::queue::rocks) fn emptied(counts: &RouteCounts) -> RouteCounts {
    RouteCounts { fresh: LaneCounts::default(), backfill: LaneCounts::default(), ..*counts }
}
