//! What became of a blob: one blob's story for people, and the producer's barrier.
//!
//! Both read the queue by ref ([`Lookup`]) and ask the stores what they hold where the queue does not know. Nothing here
//! changes an entry, and nothing here counts for or against a peer: a question must never stop a copy, or close a breaker.
//!
//! - `plan`: which routes a blob of a store takes, along chains too.
//! - `judge`: from what the queue knows and the stores say, how a blob stands on each of them. Pure.
//! - `wait`: looks until nothing more can come of waiting.
//! - `ask`: asks stores, many blobs at a time, within a time.
//! - `tokens`: remembers what was announced together.
//! - `explain`: all that is known of one blob.
//! - `find`: which blob is meant by the beginning of its ref.

mod ask;
mod explain;
mod find;
mod judge;
mod plan;
mod tokens;
mod wait;

pub(crate) use ask::Holding;
pub(crate) use explain::{BlobStory, RouteStory};
pub(crate) use judge::{BlobState, HopState};
pub(crate) use wait::{Unconfirmed, WaitEnd, WaitRequest, Waited};

use crate::announce::{AnnounceError, Names, Route, RouteTable};
use crate::backoff::Patience;
use crate::blob::{BlobRef, Excerpt, RefPrefix};
use crate::clock::{Clock, Entropy};
use crate::peer::Peer;
use crate::queue::lookup::Lookup;
use crate::queue::{QueueError, RouteId, State, StateWrite};
use crate::worker::Worker;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokens::Tokens;
use tokio::sync::Semaphore;

/// Refs that all waiting calls hold in memory together, at most: some 40 MiB.
const WAITING_REFS: usize = 512_000;

/// A waiting call counts for at least so many refs, which bounds their number to 512.
const LEAST_REFS: usize = 1000;

/// Why nothing can be told, or waited for.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum StoryError {
    /// A store or a route is not known, or not clear.
    #[error(transparent)]
    Announce(#[from] AnnounceError),
    /// The queue cannot be read.
    #[error(transparent)]
    Queue(#[from] QueueError),
    /// No chain from the source store takes this route.
    #[error("no chain of enabled routes from {from} takes the route {route}; those that do: {known}")]
    RouteNotTaken {
        /// The route's name.
        route: Arc<str>,
        /// The source store.
        from: Arc<str>,
        /// The routes that are taken.
        known: Names,
    },
    /// The token was never issued here, or was forgotten.
    #[error("the wait token {0} is not known; it was never issued here, or is too old: wait for the refs instead")]
    UnknownToken(Excerpt),
    /// No ref with this beginning is known.
    #[error(
        "no blob is queued, remembered, or held by a store that was asked, whose ref begins with {prefix}{unasked}"
    )]
    NoSuchRef {
        /// The beginning.
        prefix: RefPrefix,
        /// Which stores could not be asked, for people; else empty.
        unasked: String,
    },
    /// More than one ref has this beginning.
    #[error("several refs begin with {prefix}, such as {found}; give more digits")]
    AmbiguousRef {
        /// The beginning.
        prefix: RefPrefix,
        /// Some of them, for people.
        found: String,
    },
    /// Too many refs are being waited for, or sought.
    #[error("too many blobs are being waited for, or sought by the beginning of their refs; retry with backoff")]
    TooBusy,
}

/// What stories are told from.
pub(crate) struct StoryParts {
    /// Looks blobs up.
    pub lookup: Arc<dyn Lookup>,
    /// Keeps the wait tokens; the same database as the queue.
    pub state: Arc<dyn State>,
    /// The configured routes.
    pub routes: Arc<RouteTable>,
    /// Routes that left the configuration; they may have entries still.
    pub orphans: Vec<Route>,
    /// The peers of all routes, by the names of their stores.
    pub peers: BTreeMap<String, Arc<Peer>>,
    /// The workers of the enabled routes.
    pub workers: Vec<Arc<Worker>>,
    /// When entries are given up.
    pub patience: Patience,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Makes tokens.
    pub entropy: Arc<Entropy>,
}

/// Tells what became of blobs.
pub(crate) struct Story {
    parts: StoryParts,
    tokens: Tokens,
    room: Arc<Semaphore>,
    // Looks of waiting calls at the queue, at a time: they must leave it to those who copy.
    looks: Semaphore,
    // Tokens whose refs are being read, at a time: they take memory before it is known whether there is room.
    loads: Semaphore,
}

impl Story {
    /// Reads which tokens there are.
    ///
    /// # Errors
    /// If the queue cannot be read.
    pub(crate) async fn open(parts: StoryParts) -> Result<Self, QueueError> {
        let tokens = Tokens::open(parts.state.clone(), parts.clock.clone(), parts.entropy.clone()).await?;
        Ok(Self {
            parts,
            tokens,
            room: Arc::new(Semaphore::new(WAITING_REFS)),
            looks: Semaphore::new(2),
            loads: Semaphore::new(2),
        })
    }

    /// Whether an operator has paused a route.
    fn paused(&self, route: RouteId) -> bool {
        let worker = self.parts.workers.iter().find(|worker| worker.spec().id == route);
        worker.is_some_and(|worker| worker.spec().limits.borrow().paused)
    }

    /// A token for these blobs of a store, and what is to be written in the same durable write as their entries.
    pub(crate) fn issue_token(&self, source: &str, blobs: Vec<BlobRef>) -> (String, Vec<StateWrite>) {
        self.tokens.issue(source, blobs)
    }
}

#[cfg(test)]
mod tests;
