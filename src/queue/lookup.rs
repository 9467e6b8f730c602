//! One blob's place in the queue: its entry and its successor, and how it last left the queue.
//!
//! What left the queue is remembered durably, and not for ever: the latest completions of the whole queue, some tens of
//! thousands. That a blob is neither queued nor remembered therefore says nothing about whether it was ever copied.

use super::{Entry, QueueError, RouteId};
use crate::blob::{BlobRef, RefPrefix};
use crate::fault::FaultKind;
use async_trait::async_trait;
use std::collections::BTreeSet;
use std::time::SystemTime;
use tokio::sync::watch;

/// How an entry stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Standing {
    /// Waiting for its first attempt, or for the first since it was revived by a settlement.
    Ready,
    /// Being copied.
    Claimed,
    /// Failed, and to be tried again by itself.
    Retrying,
    /// Given up until someone revives it.
    Parked,
}

/// An entry, and how it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The entry.
    pub entry: Entry,
    /// How it stands.
    pub standing: Standing,
}

/// Why an entry was removed without being copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DiscardedBy {
    /// The configuration says so for its kind of failure.
    Configuration,
    /// An operator asked for it.
    Operator,
}

/// How an entry left the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Ending {
    /// The destination confirmed the blob.
    Confirmed {
        /// The verified size in bytes.
        size: u64,
        /// Whether bytes were sent: false where the destination held the blob already.
        copied: bool,
    },
    /// It was removed without being copied.
    Discarded {
        /// By whom.
        by: DiscardedBy,
        /// How it had last failed, if it had.
        cause: Option<FaultKind>,
    },
}

/// When an entry was put into the queue, and by whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Enqueued {
    /// When, by the queue's clock.
    pub time: SystemTime,
    /// The W3C `traceparent` of its announcement; empty where it had none.
    pub traceparent: String,
}

impl Enqueued {
    /// How this entry was put into the queue.
    pub(super) fn of(entry: &Entry) -> Self {
        let traceparent = entry.trace.as_ref().map(|trace| trace.traceparent.clone());
        Self { time: entry.enqueue_time, traceparent: traceparent.unwrap_or_default() }
    }
}

/// When and how an entry left the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    /// When, by the queue's clock.
    pub time: SystemTime,
    /// How.
    pub ending: Ending,
    /// How it had come; not told where an earlier version of this program completed it.
    pub enqueued: Option<Enqueued>,
}

/// What the queue knows of a blob on a route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Known {
    /// Its entry.
    pub queued: Option<Queued>,
    /// The entry that is claimable only after the first has ended.
    pub successor: Option<Entry>,
    /// The latest completion that is remembered; also of a blob that is queued anew since.
    pub completion: Option<Completion>,
}

/// Looks blobs up.
#[async_trait]
pub trait Lookup: Send + Sync + 'static {
    /// What is known of each of these, in their order, all as of one moment between two durable writes: what a chain
    /// confirmed on one route is found on the next. Only whether an entry is claimed may be newer.
    ///
    /// # Errors
    /// As [`Queue::oldest`](super::Queue::oldest).
    async fn look_up(&self, blobs: Vec<(RouteId, BlobRef)>) -> Result<Vec<Known>, QueueError>;

    /// Refs with this beginning that these routes have entries of, or remember completions of; so many at most. It reads all
    /// that is remembered, for people who ask now and then: `None` while it does so for somebody else.
    ///
    /// # Errors
    /// As [`Queue::oldest`](super::Queue::oldest).
    async fn find(
        &self,
        routes: Vec<RouteId>,
        prefix: RefPrefix,
        most: usize,
    ) -> Result<Option<BTreeSet<BlobRef>>, QueueError>;

    /// Changes after every durable write in which entries were settled or discarded, on any route. A hint.
    fn settlements(&self) -> watch::Receiver<u64>;
}
