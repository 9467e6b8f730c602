//! Claims: who may hold an entry, which entries to ask for, and what tells that there may be some.

use super::{Entry, Lane, RouteId, Seq};
use std::fmt;
use std::time::SystemTime;

/// A claimed entry. Dropped without being settled, it is released: ready again at once, first in line, uncharged.
pub struct Claim {
    entry: Entry,
    release: Option<Release>,
}

type Release = Box<dyn FnOnce(&Entry) + Send + Sync>;

impl Claim {
    /// A claim whose drop calls `release`.
    pub fn new(entry: Entry, release: impl FnOnce(&Entry) + Send + Sync + 'static) -> Self {
        Self { entry, release: Some(Box::new(release)) }
    }

    /// The entry.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// Ends the claim without releasing it; for queues, after the settlement is durable.
    pub fn disarm(mut self) {
        self.release = None;
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        if let Some(release) = self.release.take() {
            release(&self.entry);
        }
    }
}

impl fmt::Debug for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Claim").field(&self.entry).finish()
    }
}

/// Which entries of a lane to claim.
///
/// An entry is in the retry order once it failed, was revived, or succeeds another; until then it is *new*. A claim that was
/// released stands first in the order that it belongs to. A claim out of order leaves a hole that the others skip.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ClaimOrder {
    /// New ones by sequence, from the head of the lane.
    Oldest,
    /// Those in the retry order that are due, by due time. One due further ahead than the longest backoff is due.
    Due,
    /// New ones, from the last sequence backward.
    Newest,
    /// New ones behind this sequence, ascending.
    After(Seq),
    /// New ones before this sequence, descending.
    Before(Seq),
    /// New ones, ascending from this part of the lane's span of sequences on, from 0 to 1.
    From(f64),
}

/// A request for claims.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ClaimRequest {
    /// The route.
    pub route: RouteId,
    /// The lane.
    pub lane: Lane,
    /// Which of its entries.
    pub order: ClaimOrder,
    /// How many at most.
    pub max: usize,
    /// The time by which what is due is due.
    pub now: SystemTime,
}

/// What a request for claims brought.
#[derive(Debug, Default)]
pub struct Claimed {
    /// The claims, in the order that was asked for.
    pub claims: Vec<Claim>,
    /// In [`ClaimOrder::Due`], and where there were fewer than asked for: when the next entry of the lane is due.
    pub next_due: Option<SystemTime>,
}

/// How often a route may have got something to claim, by lane and by order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    new: [u64; 2],
    due: [u64; 2],
}

impl Changes {
    /// The counter of a lane's retry order, or of its new entries.
    pub fn of(&self, lane: Lane, retry: bool) -> u64 {
        let counters = if retry { &self.due } else { &self.new };
        counters[lane as usize]
    }

    /// Something may be claimed there.
    pub fn add(&mut self, lane: Lane, retry: bool) {
        let counters = if retry { &mut self.due } else { &mut self.new };
        let counter = &mut counters[lane as usize];
        *counter = counter.wrapping_add(1);
    }

    /// Something may be claimed anywhere.
    pub fn add_all(&mut self) {
        for lane in Lane::ALL {
            self.add(lane, false);
            self.add(lane, true);
        }
    }
}
