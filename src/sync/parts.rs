//! What syncs are made of: their routes, what paces them, and what they work with.

use crate::clock::Clock;
use crate::queue::{Queue, RouteId};
use crate::store::Store;
use crate::telemetry::Tracer;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A route, as a sync sees it.
#[derive(Clone)]
pub(crate) struct SyncRoute {
    /// Its configured name.
    pub name: String,
    /// Its number in the queue.
    pub id: RouteId,
    /// The configured name of the store that is read.
    pub from_name: Arc<str>,
    /// The configured name of the store that is written.
    pub to_name: Arc<str>,
    /// The store that is read.
    pub source: Arc<dyn Store>,
    /// The store that is written.
    pub destination: Arc<dyn Store>,
    /// The store ids that the route knows its stores by.
    pub store_ids: StoreIds,
    /// Whether the destination may be one that gives nothing back. Where it can be neither listed nor asked, it is sent
    /// everything.
    pub receive_only: bool,
}

/// The store ids that are expected of a route's stores, as of now; absent: whichever they tell.
#[derive(Clone, Debug)]
pub(crate) struct StoreIds {
    /// That of the store that is read.
    pub source: watch::Receiver<Option<String>>,
    /// That of the store that is written.
    pub destination: watch::Receiver<Option<String>>,
}

impl fmt::Debug for SyncRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SyncRoute").field("name", &self.name).field("id", &self.id).finish_non_exhaustive()
    }
}

/// What paces a sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SyncSettings {
    /// Refs that are asked for in one enumeration stream; at least 1.
    pub window: u64,
    /// Backfill entries of the route, parked ones aside, above which a sync closes its streams and waits until they are
    /// fewer than three quarters of this.
    pub high_water: u64,
    /// How long an answer or a page of a listing may take.
    pub idle: Duration,
    /// How often it looks at the queue's figures while it waits.
    pub poll: Duration,
    /// How long counts may go unwritten while nothing is found.
    pub checkpoint: Duration,
}

impl Default for SyncSettings {
    fn default() -> Self {
        Self {
            window: 100_000,
            high_water: 100_000,
            idle: Duration::from_secs(60),
            poll: Duration::from_millis(500),
            checkpoint: Duration::from_secs(10),
        }
    }
}

/// What syncs work with.
#[derive(Clone)]
pub(crate) struct SyncParts {
    /// Takes what they find, and keeps their records.
    pub queue: Arc<dyn Queue>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Begins a span for each.
    pub tracer: Tracer,
    /// Paces them.
    pub settings: SyncSettings,
}
