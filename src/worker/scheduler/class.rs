//! The classes of entries that share a route's workers, and the claims of each that wait to be started.

use crate::queue::{Claim, Lane};
use std::collections::VecDeque;

/// Entries that are told apart when workers are shared: by lane, and by whether they were never tried, or wait in the queue's
/// retry order (failed, revived, successors).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Class {
    pub(in crate::worker) lane: Lane,
    pub(in crate::worker) retry: bool,
}

impl Class {
    pub(in crate::worker) const ALL: [Self; 4] = [
        Self { lane: Lane::Fresh, retry: false },
        Self { lane: Lane::Backfill, retry: false },
        Self { lane: Lane::Fresh, retry: true },
        Self { lane: Lane::Backfill, retry: true },
    ];

    /// Where it stands in [`Class::ALL`].
    pub(in crate::worker) const fn index(self) -> usize {
        let lane = match self.lane {
            Lane::Fresh => 0,
            Lane::Backfill => 1,
        };
        lane + if self.retry { 2 } else { 0 }
    }

    /// Its share of the workers, in hundredths, while all have work: 80 to 20 between the lanes, as promised.
    pub(super) const fn weight(self) -> usize {
        match (self.lane, self.retry) {
            (Lane::Fresh, false) => 60,
            (Lane::Fresh, true) => 20,
            (Lane::Backfill, false) => 15,
            (Lane::Backfill, true) => 5,
        }
    }
}

/// How an entry is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Kind {
    /// By a stream of its own.
    Alone,
    /// In a pack.
    Packed,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Alone, Self::Packed];
}

/// A claim that waits for a worker.
#[derive(Debug)]
pub(super) struct WaitingClaim {
    pub(super) claim: Claim,
    /// Its size in bytes, as far as it is known.
    pub(super) size: Option<u64>,
    /// The most entries of a pack that it may be one of; 1: it goes alone. Fewer after each pack that failed with it.
    pub(super) fellows: usize,
    /// How often in a row it was refused for want of capacity.
    pub(super) refusals: u32,
}

impl WaitingClaim {
    pub(super) const fn kind(&self) -> Kind {
        if self.fellows > 1 { Kind::Packed } else { Kind::Alone }
    }

    pub(super) fn seq(&self) -> u64 {
        self.claim.entry().seq.0
    }
}

/// Claims that wait, in the order in which they came. Those that go alone do not stand in the way of packs.
#[derive(Debug, Default)]
pub(super) struct ClaimLine {
    alone: VecDeque<WaitingClaim>,
    packed: VecDeque<WaitingClaim>,
}

impl ClaimLine {
    pub(super) fn of(&self, kind: Kind) -> &VecDeque<WaitingClaim> {
        match kind {
            Kind::Alone => &self.alone,
            Kind::Packed => &self.packed,
        }
    }

    fn of_mut(&mut self, kind: Kind) -> &mut VecDeque<WaitingClaim> {
        match kind {
            Kind::Alone => &mut self.alone,
            Kind::Packed => &mut self.packed,
        }
    }

    pub(super) fn add(&mut self, waiter: WaitingClaim) {
        self.of_mut(waiter.kind()).push_back(waiter);
    }

    /// Puts one back that was started before.
    pub(super) fn add_first(&mut self, waiter: WaitingClaim) {
        self.of_mut(waiter.kind()).push_front(waiter);
    }

    pub(super) fn take(&mut self, kind: Kind) -> Option<WaitingClaim> {
        self.of_mut(kind).pop_front()
    }

    pub(super) fn len(&self) -> usize {
        self.alone.len() + self.packed.len()
    }

    /// Releases all of them.
    pub(super) fn clear(&mut self) {
        self.alone.clear();
        self.packed.clear();
    }
}

/// Where a claim came from: the head of its class, or a walk of its scouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Feed {
    pub(in crate::worker) class: Class,
    pub(in crate::worker) walk: Option<u64>,
}
