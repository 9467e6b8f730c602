//! Announcements: which routes a blob goes to, and the one durable write that says so.
//!
//! An announcement names the store that holds the blobs. No name means the one store that starts the chain: a source of an
//! enabled route, and a destination of none. Every enabled route from that store gets an entry for each blob, all of them in
//! one [`Queue::push`], so that an answer of OK means that all routes have it on disk, and an error that the caller may
//! simply say it again.
//!
//! An announcement that is traced gets a `send` span for each entry, whose context is stored with it: what becomes of the
//! entry, after restarts too, refers to that. Where nothing is recorded, the caller's context is stored as it came.
//!
//! Once the [`Gate`] is shut nothing new is taken; what passed it before is finished.

mod sends;

use crate::blob::{BlobRef, Excerpt};
use crate::clock::{Clock, Monotonic};
use crate::queue::{Lane, Origin, Push, Pushed, Queue, QueueError, RouteCounts, RouteId, StateWrite, Tally};
use crate::telemetry::{TraceContext, Tracer};
use parking_lot::Mutex;
use sends::Sends;
use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

/// A configured route, registered with the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    /// Its configured name.
    pub name: Arc<str>,
    /// Its number in the queue.
    pub id: RouteId,
    /// The configured name of the source store.
    pub from: Arc<str>,
    /// The configured name of the destination store.
    pub to: Arc<str>,
    /// Whether it takes and copies anything.
    pub enabled: bool,
}

/// Whether announcements are let in. Shut once, when the drain begins, and never opened again.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    shut: AtomicBool,
}

impl Gate {
    /// Lets nothing more in.
    pub(crate) fn shut(&self) {
        self.shut.store(true, Ordering::Release);
    }

    /// Whether it is shut.
    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }
}

/// A blob that is announced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announcement {
    /// The blob.
    pub blob: BlobRef,
    /// Its size in bytes, where known.
    pub size: Option<u64>,
    /// The trace in which it was made.
    pub trace: Option<TraceContext>,
}

/// How far a route is behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Entries ready, claimed or retrying; parked ones are not in it.
    pub tally: Tally,
    /// The age of the oldest fresh entry that is ready or claimed.
    pub lag: Duration,
}

impl Backlog {
    /// How many entries a route has in all, parked ones too.
    pub(crate) fn with_parked(counts: &RouteCounts) -> u64 {
        let backlog = Self::of(counts, None, SystemTime::UNIX_EPOCH).tally.entries;
        backlog + counts.fresh.parked.entries + counts.backfill.parked.entries
    }

    /// The backlog of a route with these figures, whose oldest fresh entry was pushed at `oldest`.
    pub(crate) fn of(counts: &RouteCounts, oldest: Option<SystemTime>, now: SystemTime) -> Self {
        let mut tally = Tally::default();
        for lane in [&counts.fresh, &counts.backfill] {
            for part in [lane.ready, lane.claimed, lane.retrying] {
                tally.entries += part.entries;
                tally.bytes = tally.bytes.saturating_add(part.bytes);
                tally.unknown_size += part.unknown_size;
            }
        }
        Self { tally, lag: oldest.and_then(|time| now.duration_since(time).ok()).unwrap_or_default() }
    }
}

/// What became of an announcement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Announced {
    /// The routes that it went to, at least one, and how far each is behind now.
    pub routes: Vec<(Arc<str>, Backlog)>,
    /// For each blob, in the order given, what the push did on each of `routes`.
    pub pushed: Vec<Vec<Pushed>>,
}

/// A list of names, as it stands in messages and error details.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Names(pub Vec<Arc<str>>);

impl fmt::Display for Names {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        for (index, name) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str(", ")?;
            }
            f.write_str(name)?;
        }
        Ok(())
    }
}

/// Why an announcement was not accepted, or a name stands for nothing.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum AnnounceError {
    /// No store of that name is configured.
    #[error("no store {name} is configured; known are: {known}")]
    UnknownStore {
        /// The name, as far as it is fit to be shown.
        name: Excerpt,
        /// The configured stores.
        known: Names,
    },
    /// No store was named, and not exactly one starts a chain.
    #[error("source_store is empty and no single store is meant; name one of: {known}")]
    AmbiguousStore {
        /// The sources of enabled routes.
        known: Names,
    },
    /// No enabled route starts at the store.
    #[error("no enabled route starts at the store {store}")]
    NoEnabledRoute {
        /// The store's name.
        store: Arc<str>,
    },
    /// No route of that name is configured.
    #[error("no route {name} is configured; known are: {known}")]
    UnknownRoute {
        /// The name, as far as it is fit to be shown.
        name: Excerpt,
        /// The configured routes.
        known: Names,
    },
    /// No route was named, and there is not exactly one.
    #[error("no route is named and there is not exactly one; name one of: {known}")]
    AmbiguousRoute {
        /// The configured routes.
        known: Names,
    },
    /// The replicator is shutting down.
    #[error("the replicator is shutting down; retry, here or elsewhere")]
    ShuttingDown,
    /// The queue did not take it.
    #[error(transparent)]
    Queue(#[from] QueueError),
}

/// All routes by name, and the stores that they join.
#[derive(Clone, Debug)]
pub(crate) struct RouteTable {
    // Sorted by name.
    routes: Vec<Route>,
    // Sorted; all configured stores, also those of no route.
    stores: Vec<Arc<str>>,
    // Sorted by name; those that the queue knows and the configuration does not.
    orphans: Vec<Route>,
}

impl RouteTable {
    /// A table of these.
    pub(crate) fn new(mut routes: Vec<Route>, stores: impl IntoIterator<Item = Arc<str>>) -> Self {
        routes.sort_by(|a, b| a.name.cmp(&b.name));
        let stores: BTreeSet<Arc<str>> = stores.into_iter().collect();
        Self { routes, stores: stores.into_iter().collect(), orphans: Vec::new() }
    }

    /// The same, and these routes, which left the configuration: they can be named, and take and copy nothing.
    #[must_use]
    pub(crate) fn with_orphans(mut self, mut orphans: Vec<Route>) -> Self {
        orphans.sort_by(|a, b| a.name.cmp(&b.name));
        self.orphans = orphans;
        self
    }

    /// The routes that left the configuration and that the queue still knows, by name.
    pub(crate) fn orphans(&self) -> &[Route] {
        &self.orphans
    }

    /// The orphaned route of this name.
    pub(crate) fn orphan(&self, name: &str) -> Option<&Route> {
        self.orphans.iter().find(|route| &*route.name == name)
    }

    /// The route of this name, orphaned or not; an empty name means the only configured one.
    ///
    /// # Errors
    /// As [`route`](Self::route), with the names of both.
    pub(crate) fn route_or_orphan(&self, name: &str) -> Result<&Route, AnnounceError> {
        match (self.route(name), self.orphan(name)) {
            (_, Some(orphan)) => Ok(orphan),
            (Err(AnnounceError::UnknownRoute { name, known }), None) => {
                let orphans = self.orphans.iter().map(|route| route.name.clone());
                Err(AnnounceError::UnknownRoute { name, known: Names(known.0.into_iter().chain(orphans).collect()) })
            }
            (found, None) => found,
        }
    }

    /// All routes, disabled ones too, by name.
    pub(crate) fn all(&self) -> &[Route] {
        &self.routes
    }

    /// The enabled routes from a store, by name.
    pub(crate) fn starting_at(&self, store: &str) -> impl Iterator<Item = &Route> {
        self.enabled().filter(move |route| &*route.from == store)
    }

    /// The route of this name; an empty name means the only one.
    ///
    /// # Errors
    /// [`AnnounceError::UnknownRoute`] or [`AnnounceError::AmbiguousRoute`], with the names.
    pub(crate) fn route(&self, name: &str) -> Result<&Route, AnnounceError> {
        let known = || Names(self.routes.iter().map(|route| route.name.clone()).collect());
        if name.is_empty() {
            return match self.routes.as_slice() {
                [route] => Ok(route),
                _ => Err(AnnounceError::AmbiguousRoute { known: known() }),
            };
        }
        let found = self.routes.iter().find(|route| &*route.name == name);
        found.ok_or_else(|| AnnounceError::UnknownRoute { name: Excerpt::of(name), known: known() })
    }

    /// The enabled routes that an announcement of this source store goes to; an empty name means the one store that is a
    /// source of an enabled route and a destination of none.
    ///
    /// # Errors
    /// [`AnnounceError::UnknownStore`], [`AnnounceError::AmbiguousStore`] or [`AnnounceError::NoEnabledRoute`].
    pub(crate) fn resolve(&self, source_store: &str) -> Result<Vec<&Route>, AnnounceError> {
        let store = if source_store.is_empty() {
            self.default_source()?
        } else {
            let known = self.stores.iter().find(|store| &***store == source_store);
            known.cloned().ok_or_else(|| AnnounceError::UnknownStore {
                name: Excerpt::of(source_store),
                known: Names(self.stores.clone()),
            })?
        };
        let routes: Vec<&Route> = self.starting_at(&store).collect();
        if routes.is_empty() { Err(AnnounceError::NoEnabledRoute { store }) } else { Ok(routes) }
    }

    fn enabled(&self) -> impl Iterator<Item = &Route> {
        self.routes.iter().filter(|route| route.enabled)
    }

    fn default_source(&self) -> Result<Arc<str>, AnnounceError> {
        let sources: BTreeSet<&Arc<str>> = self.enabled().map(|route| &route.from).collect();
        let destinations: BTreeSet<&Arc<str>> = self.enabled().map(|route| &route.to).collect();
        let mut heads = sources.difference(&destinations);
        match (heads.next(), heads.next()) {
            (Some(head), None) => Ok((**head).clone()),
            _ => Err(AnnounceError::AmbiguousStore { known: Names(sources.into_iter().cloned().collect()) }),
        }
    }
}

/// How large a blob of a store can be, in bytes, where it has told.
type LargestBlobs = Box<dyn Fn(&str) -> Option<u64> + Send + Sync>;

/// Takes announcements.
pub(crate) struct Announcer {
    queue: Arc<dyn Queue>,
    routes: Arc<RouteTable>,
    clock: Arc<dyn Clock>,
    gate: Arc<Gate>,
    tracer: Tracer,
    largest: LargestBlobs,
    // Why the last durable write failed, if it did.
    trouble: Mutex<Option<String>>,
    // When each route's oldest entry was asked for, and when that was pushed.
    oldest: Mutex<HashMap<RouteId, (Monotonic, Option<SystemTime>)>>,
}

/// How old a route's lag in an answer may be. Asking the queue for each answer would cost as much as the announcement.
const LAG_AGE: Duration = Duration::from_millis(100);

impl Announcer {
    /// An announcer for these routes.
    pub(crate) fn new(queue: Arc<dyn Queue>, routes: Arc<RouteTable>, clock: Arc<dyn Clock>, gate: Arc<Gate>) -> Self {
        let (trouble, oldest) = (Mutex::default(), Mutex::default());
        let largest = Box::new(|_: &str| None);
        Self { queue, routes, clock, gate, tracer: Tracer::off(), largest, trouble, oldest }
    }

    /// The same; an announced size that the store cannot hold is taken for unknown.
    #[must_use]
    pub(crate) fn with_largest_blobs(mut self, largest: impl Fn(&str) -> Option<u64> + Send + Sync + 'static) -> Self {
        self.largest = Box::new(largest);
        self
    }

    /// The same, traced.
    #[must_use]
    pub(crate) fn with_tracer(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Whether an announcement of this store would be let in now; to be asked before its bytes are read.
    ///
    /// # Errors
    /// As [`announce`](Self::announce), but for the queue's own.
    pub(crate) fn check(&self, source_store: &str) -> Result<(), AnnounceError> {
        if self.gate.is_shut() {
            return Err(AnnounceError::ShuttingDown);
        }
        self.routes.resolve(source_store).map(|_| ())
    }

    /// Queues all of these on every enabled route from the store, durably, in one write, with writes to the queue's state in
    /// the same. Whoever calls has [checked](Self::check)
    /// first: the gate is not asked again, so that a call that was let in is finished.
    ///
    /// # Errors
    /// See [`AnnounceError`]. Nothing was queued then, as far as the caller may rely on; it is safe to say it again.
    pub(crate) async fn announce(
        &self,
        source_store: &str,
        items: Vec<Announcement>,
        state: Vec<StateWrite>,
    ) -> Result<Announced, AnnounceError> {
        let routes = self.routes.resolve(source_store)?;
        let mut pushes = Vec::with_capacity(items.len() * routes.len());
        let mut sends = Sends::default();
        let largest = routes.first().and_then(|route| (self.largest)(&route.from)).unwrap_or(u64::MAX);
        for item in &items {
            let size = item.size.filter(|size| *size <= largest);
            pushes.extend(routes.iter().map(|route| Push {
                route: route.id,
                blob: item.blob,
                size,
                lane: Lane::Fresh,
                trace: sends.begin(&self.tracer, route, item),
                visited: vec![route.from.clone()],
                repair: false,
                origin: Origin::Announced,
            }));
        }
        let is_nothing = pushes.is_empty() && state.is_empty();
        let pushed = if is_nothing { Ok(Vec::new()) } else { self.push(pushes, state).await };
        sends.end(&pushed);
        let pushed = pushed?;
        let pushed = pushed.chunks(routes.len()).map(<[Pushed]>::to_vec).collect();
        let mut backlogs = Vec::with_capacity(routes.len());
        for route in routes {
            backlogs.push((route.name.clone(), self.backlog(route.id).await));
        }
        Ok(Announced { routes: backlogs, pushed })
    }

    /// Why the last announcement could not be written durably; `None` where it could.
    pub(crate) fn trouble(&self) -> Option<String> {
        self.trouble.lock().clone()
    }

    /// A durable write has succeeded: announcements may again.
    pub(crate) fn recovered(&self) {
        if self.trouble.lock().take().is_some() {
            tracing::info!("announcements are written again");
        }
    }

    async fn push(&self, pushes: Vec<Push>, state: Vec<StateWrite>) -> Result<Vec<Pushed>, QueueError> {
        let pushed = self.queue.push(pushes, state).await;
        match &pushed {
            Err(error @ (QueueError::Write(_) | QueueError::Read(_))) => self.refused(error),
            // Not the reserve is reached: a write found no room.
            Err(error @ QueueError::NoSpace { free, reserve, .. }) if free >= reserve => self.refused(error),
            Ok(_) => self.recovered(),
            // A limit was reached, or it is closed: nothing is known of its writes.
            Err(_) => {}
        }
        pushed
    }

    fn refused(&self, error: &QueueError) {
        let mut trouble = self.trouble.lock();
        if trouble.replace(error.to_string()).is_none() {
            tracing::error!("announcements are refused: {error}");
        }
    }

    async fn backlog(&self, route: RouteId) -> Backlog {
        let oldest = match self.known_oldest(route) {
            Some(oldest) => oldest,
            None => {
                // The blobs are queued. That their age cannot be read now is no reason to deny it.
                let oldest = self.queue.oldest(route).await.ok().and_then(|oldest| oldest.fresh);
                self.oldest.lock().insert(route, (self.clock.monotonic(), oldest));
                oldest
            }
        };
        Backlog::of(&self.queue.counts(route), oldest, self.clock.now())
    }

    /// When the route's oldest entry was pushed, if that is known well enough; whoever finds that it is not asks for all.
    fn known_oldest(&self, route: RouteId) -> Option<Option<SystemTime>> {
        let now = self.clock.monotonic();
        let mut known = self.oldest.lock();
        let (asked, oldest) = known.get_mut(&route)?;
        if now.since(*asked) < LAG_AGE {
            return Some(*oldest);
        }
        *asked = now;
        None
    }
}

#[cfg(test)]
mod tests;
