//! Claimed entries that wait for a worker.
//!
//! Claims come in the order of the queue, large blobs and small ones mixed. So that those which have to be copied alone do not
//! stand in the way of packs, each kind has a line of its own, by lane, and a route claims somewhat ahead of what it can start.
//! Whatever stops copying (a breaker, a rate, a pause, a stop) clears the lines, which releases the claims in their order.

use super::lanes::index;
use crate::queue::{Claim, Lane};
use std::collections::VecDeque;

/// Entries of a lane that are claimed ahead, at most: so many large blobs may stand before a small one and not hold it up.
pub(super) const AHEAD: usize = 2048;

/// How an entry is copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// By a stream of its own.
    Alone,
    /// In a pack.
    Packed,
}

impl Kind {
    pub(super) const ALL: [Self; 2] = [Self::Alone, Self::Packed];
}

/// A claim, and what is known of its blob's size in bytes.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) claim: Claim,
    pub(super) size: Option<u64>,
}

#[derive(Debug, Default)]
struct Line {
    alone: VecDeque<Waiter>,
    packed: VecDeque<Waiter>,
}

/// The lines of a route. See the module's header.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    lines: [Line; 2],
}

impl Waiting {
    pub(super) fn add(&mut self, kind: Kind, claim: Claim) {
        let size = claim.entry().size;
        self.add_known(kind, Waiter { claim, size });
    }

    /// Adds one whose size may be known better than its entry says.
    pub(super) fn add_known(&mut self, kind: Kind, waiter: Waiter) {
        self.line_mut(waiter.claim.entry().lane, kind).push_back(waiter);
    }

    /// The first of a line.
    pub(super) fn first(&self, lane: Lane, kind: Kind) -> Option<&Waiter> {
        let line = &self.lines[index(lane)];
        match kind {
            Kind::Alone => line.alone.front(),
            Kind::Packed => line.packed.front(),
        }
    }

    /// Takes the first of a line.
    pub(super) fn take(&mut self, lane: Lane, kind: Kind) -> Option<Waiter> {
        self.line_mut(lane, kind).pop_front()
    }

    /// In which lanes entries of this kind wait.
    pub(super) fn waits(&self, kind: Kind) -> [bool; 2] {
        Lane::ALL.map(|lane| self.first(lane, kind).is_some())
    }

    /// How many of a lane wait.
    pub(super) fn len(&self, lane: Lane) -> usize {
        let line = &self.lines[index(lane)];
        line.alone.len() + line.packed.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        Lane::ALL.into_iter().all(|lane| self.len(lane) == 0)
    }

    /// Releases all of them.
    pub(super) fn clear(&mut self) {
        self.lines = Default::default();
    }

    fn line_mut(&mut self, lane: Lane, kind: Kind) -> &mut VecDeque<Waiter> {
        let line = &mut self.lines[index(lane)];
        match kind {
            Kind::Alone => &mut line.alone,
            Kind::Packed => &mut line.packed,
        }
    }
}
