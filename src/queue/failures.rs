//! The operator's hand on what failed: listing, retrying and discarding entries that are *retrying* or *parked*.
//!
//! Claimed entries are left alone: they end by their own settlement. So are those that never failed, and successors, which
//! become claimable when the failed entry before them is discarded. What is listed is a moment's picture; whether an entry is
//! still failed and unclaimed is decided anew, in the write that changes it.

use super::{Entry, Lane, QueueError, RouteId, Seq};
use crate::blob::BlobRef;
use crate::fault::FaultKind;
use async_trait::async_trait;
use std::time::SystemTime;

/// How a failed entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailedState {
    /// It will be tried again by itself.
    Retrying,
    /// It was given up until someone revives it.
    Parked,
}

/// An entry that failed at least once. Its `failure` is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedEntry {
    /// The entry.
    pub entry: Entry,
    /// How it stands.
    pub state: FailedState,
}

/// Which failed entries are meant; the default is all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailureFilter {
    /// Only those that last failed in this way.
    pub kind: Option<FaultKind>,
    /// Only those that stand so.
    pub state: Option<FailedState>,
}

impl FailureFilter {
    /// Whether an entry is meant.
    pub fn admits(&self, failed: &FailedEntry) -> bool {
        let kind = failed.entry.failure.as_ref().map(|failure| failure.kind);
        self.kind.is_none_or(|wanted| kind == Some(wanted)) && self.state.is_none_or(|wanted| wanted == failed.state)
    }
}

/// A place in the order of failed entries: retrying ones by lane and due time, then parked ones by kind and sequence. What
/// is retried moves to a due time of now, behind whoever reads on in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureCursor {
    /// At a retrying entry: its lane, its due time in nanoseconds since 1970, and its sequence.
    Retrying(Lane, u64, u64),
    /// At a parked entry: the number of its kind of fault, and its sequence.
    Parked(u8, u64),
}

/// Some of a route's failed entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailurePage {
    /// The entries, in the order of their cursors.
    pub failed: Vec<FailedEntry>,
    /// Where to read on; absent at the end.
    pub next: Option<FailureCursor>,
    /// When the picture was taken, by the queue's clock.
    pub time: SystemTime,
}

/// What is done to failed entries, by an operator or as configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Remedy {
    /// Due now, attempts 0, history and lane kept.
    Revive,
    /// Removed without being copied; counted as discarded in the route and in the sync that waits for it.
    Discard,
    /// The same as configured, for those that are parked and last failed at this time or before.
    Expire(SystemTime),
}

/// Failed entries, and what can be done about them.
#[async_trait]
pub trait Failures: Send + Sync + 'static {
    /// Up to `limit` failed entries behind `after` that the filter admits. A page looks at a bounded number of rows: it may
    /// be short, or empty, with more to come.
    ///
    /// # Errors
    /// As [`Queue::oldest`](super::Queue::oldest).
    async fn failures(
        &self,
        route: RouteId,
        filter: FailureFilter,
        after: Option<FailureCursor>,
        limit: usize,
    ) -> Result<FailurePage, QueueError>;

    /// The failed entries of these blobs, in the order given; those that have none are left out.
    ///
    /// # Errors
    /// As [`Queue::oldest`](super::Queue::oldest).
    async fn failures_of(&self, route: RouteId, blobs: Vec<BlobRef>) -> Result<Vec<FailedEntry>, QueueError>;

    /// Does this to those of the entries that are failed and unclaimed now, in one durable write. Says how many it changed:
    /// one that is due already, with no attempts charged, needs no reviving.
    ///
    /// # Errors
    /// As [`Queue::settle`](super::Queue::settle).
    async fn remedy(&self, route: RouteId, seqs: Vec<Seq>, remedy: Remedy) -> Result<u64, QueueError>;
}
