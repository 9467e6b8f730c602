//! Counters and names, as of the last durable write.

use super::row::{self, RouteRow};
use crate::queue::{Entry, Lane, RouteCounts, RouteId, SyncId, SyncTally, Tally};
use std::collections::{BTreeMap, HashMap};

/// Tallies of syncs that are kept, unless more have entries; a sync that ended has its own record of it.
const MAX_SYNCS: usize = 10_000;

/// Counters and names, as of the last durable write. Locked for moments only, so that they may be read from anywhere.
#[derive(Debug, Default)]
pub(super) struct Figures {
    pub(super) routes: BTreeMap<RouteId, RouteRow>,
    counts: BTreeMap<RouteId, RouteCounts>,
    syncs: BTreeMap<SyncId, SyncTally>,
    /// What is claimed of the ready and of the retrying.
    claimed: HashMap<(RouteId, Lane), [Tally; 2]>,
    /// Rows set aside since the queue was made.
    pub(super) aside: u64,
}

impl Figures {
    /// A route's counters, in which claimed entries count as ready or retrying.
    pub(super) fn counts(&self, route: RouteId) -> RouteCounts {
        self.counts.get(&route).copied().unwrap_or_default()
    }

    pub(super) fn set_counts(&mut self, route: RouteId, counts: RouteCounts) {
        self.counts.insert(route, counts);
    }

    pub(super) fn sync(&self, sync: SyncId) -> SyncTally {
        self.syncs.get(&sync).copied().unwrap_or_default()
    }

    /// Syncs whose tallies may be forgotten when these are written: none of their entries is left, and many came after them.
    pub(super) fn old_syncs(&self, written: &BTreeMap<SyncId, SyncTally>) -> Vec<SyncId> {
        let added = written.keys().filter(|sync| !self.syncs.contains_key(sync)).count();
        if added == 0 {
            return Vec::new();
        }
        let surplus = (self.syncs.len() + added).saturating_sub(MAX_SYNCS);
        let ended = self
            .syncs
            .iter()
            .filter(|(sync, tally)| tally.pending == 0 && tally.parked == 0 && !written.contains_key(sync));
        ended.map(|(sync, _)| *sync).take(surplus).collect()
    }

    pub(super) fn forget_sync(&mut self, sync: SyncId) {
        self.syncs.remove(&sync);
    }

    pub(super) fn set_sync(&mut self, sync: SyncId, tally: SyncTally) {
        self.syncs.insert(sync, tally);
    }

    /// A claim begins or ends.
    pub(super) fn claim(&mut self, entry: &Entry, begins: bool) {
        let claimed = self.claimed.entry((entry.route, entry.lane)).or_default();
        add(&mut claimed[usize::from(entry.failure.is_some())], row::tally(entry.size), begins);
    }

    /// A route's counters with claimed entries apart.
    pub(super) fn counts_by_state(&self, route: RouteId) -> RouteCounts {
        let mut counts = self.counts(route);
        for lane in Lane::ALL {
            let [ready, retrying] = self.claimed.get(&(route, lane)).copied().unwrap_or_default();
            let counts = row::lane_counts(&mut counts, lane);
            add(&mut counts.ready, ready, false);
            add(&mut counts.retrying, retrying, false);
            add(&mut counts.claimed, ready, true);
            add(&mut counts.claimed, retrying, true);
        }
        counts
    }

    /// Goes on with the figures of a database that was opened again; claims are kept.
    pub(super) fn resume(&mut self, loaded: Self) {
        let claimed = std::mem::take(&mut self.claimed);
        *self = Self { claimed, ..loaded };
    }

    /// Entries of all routes that are not parked.
    pub(super) fn unparked(&self) -> u64 {
        self.counts.values().map(unparked).sum()
    }
}

/// A route's entries that are not parked.
pub(super) fn unparked(counts: &RouteCounts) -> u64 {
    [counts.fresh, counts.backfill].map(|lane| lane.ready.entries + lane.retrying.entries).into_iter().sum()
}

/// Adds to a counter, or subtracts from it.
pub(super) fn add(to: &mut Tally, tally: Tally, adds: bool) {
    let change = |number: u64, by: u64| if adds { number.saturating_add(by) } else { number.saturating_sub(by) };
    to.entries = change(to.entries, tally.entries);
    // A sum that stopped at its end would be wrong for ever.
    to.bytes = if adds { to.bytes.wrapping_add(tally.bytes) } else { to.bytes.wrapping_sub(tally.bytes) };
    to.unknown_size = change(to.unknown_size, tally.unknown_size);
    if to.entries == 0 {
        // Former versions have left sums behind that are not exact.
        *to = Tally::default();
    }
}

#[cfg(test)]
mod tests {
    use super::add;
    use crate::queue::{LARGEST_SIZE, Tally};

    #[test]
    fn a_sum_beyond_its_end_comes_back_right() {
        let (mut sum, many) = (Tally::default(), u64::MAX / LARGEST_SIZE);
        let large = Tally { entries: 1, bytes: LARGEST_SIZE, unknown_size: 0 };
        let small = Tally { entries: 1, bytes: 7, unknown_size: 1 };
        add(&mut sum, small, true);
        (0..=many).for_each(|_| add(&mut sum, large, true));
        (0..=many).for_each(|_| add(&mut sum, large, false));
        assert_eq!(sum, small);
        // What a former version left of a sum that had stopped at its end goes with the last entry.
        add(&mut sum, Tally { bytes: 3, ..small }, false);
        assert_eq!(sum, Tally::default());
    }
}
