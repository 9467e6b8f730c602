//! Gathers the figures of a picture. Asks no peer.

use super::overall::overall;
use super::peer::peer_status;
use super::queue::{QueueFacts, queue_status};
use super::route::{RouteConditions, RouteFacts, route_status};
use super::{PeerStatus, QueueState, QueueStatus, ReplicatorStatus, Samples};
use crate::announce::{Announcer, Backlog, Gate, Route};
use crate::clock::Clock;
use crate::limits::Limits;
use crate::overrides::{InForce, Overrides};
use crate::peer::Peer;
use crate::queue::damage::{QueueTrouble, REASON_NEW};
use crate::queue::{Oldest, RouteCounts, WholeQueue};
use crate::sync::{FullSyncs, NeededSync};
use crate::telemetry::lost_log_lines;
use crate::words::several;
use crate::worker::Worker;
use parking_lot::Mutex;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// Stands for a number of free bytes that is not known.
const UNKNOWN: u64 = u64::MAX;

/// A route that is watched.
pub(crate) struct WatchedRoute {
    /// The route.
    pub route: Route,
    /// Whether it left the configuration and the queue still knows it.
    pub orphaned: bool,
    /// Whether it begins the full sync that it needs by itself.
    pub begins_syncs: bool,
    /// Whether its health waits for the full sync that it needs, also while that runs.
    pub waits_for_sync: bool,
    /// Its worker; absent where it is disabled or orphaned.
    pub worker: Option<Arc<Worker>>,
}

/// A peer that is watched.
pub(crate) struct WatchedPeer {
    /// The peer.
    pub peer: Arc<Peer>,
    /// Where it is, for people.
    pub endpoint: String,
}

/// What an [`Observer`] watches.
pub(crate) struct ObserverParts {
    /// The queue.
    pub queue: Arc<dyn WholeQueue>,
    /// Knows whether announcements are written.
    pub announcer: Arc<Announcer>,
    /// The full syncs.
    pub syncs: FullSyncs,
    /// What operators have overridden.
    pub overrides: Arc<Overrides>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Tells of the drain.
    pub gate: Arc<Gate>,
    /// The routes, by name.
    pub routes: Vec<WatchedRoute>,
    /// The peers, by name.
    pub peers: Vec<WatchedPeer>,
    /// The queue's folder, where it is on a disk.
    pub folder: Option<PathBuf>,
    /// `queue.max_entries`.
    pub max_entries: u64,
    /// What `queue.parked_max_share` makes of it.
    pub max_parked: u64,
    /// `queue.reserve_bytes`.
    pub reserve_bytes: u64,
}

/// Takes pictures.
pub(crate) struct Observer {
    parts: ObserverParts,
    start: SystemTime,
    // In the order of the routes: their figures at the start, and the last minute of each.
    at_start: Vec<RouteCounts>,
    samples: Mutex<Vec<Samples>>,
    free_bytes: AtomicU64,
}

impl Observer {
    /// Watches these from now on.
    pub(crate) fn new(parts: ObserverParts) -> Self {
        let at_start = parts.routes.iter().map(|watched| parts.queue.counts(watched.route.id)).collect();
        let samples = Mutex::new(vec![Samples::default(); parts.routes.len()]);
        let start = parts.clock.now();
        let observer = Self { parts, start, at_start, samples, free_bytes: AtomicU64::new(UNKNOWN) };
        observer.sample();
        observer
    }

    /// Remembers the present figures, for rates. To be called about every second.
    pub(crate) fn sample(&self) {
        let now = self.parts.clock.monotonic();
        let mut samples = self.samples.lock();
        for (watched, samples) in self.parts.routes.iter().zip(samples.iter_mut()) {
            let counts = self.parts.queue.counts(watched.route.id);
            samples.add(now, backlog(&counts), &counts);
            if let Some(worker) = &watched.worker {
                worker.sample();
            }
        }
    }

    /// Tells how many bytes are free on the queue's disk.
    pub(crate) fn set_free_bytes(&self, free: u64) {
        self.free_bytes.store(free, Ordering::Relaxed);
    }

    /// Whether announcements would be accepted and written durably now, as far as can be told without trying.
    pub(crate) fn can_ack(&self) -> bool {
        self.refusal().is_none()
    }

    /// Why announcements would be refused now, in one sentence; absent: they would not.
    pub(crate) fn refusal(&self) -> Option<String> {
        if self.parts.gate.is_shut() {
            return Some("draining: the replicator shuts down".to_owned());
        }
        let queue = self.queue();
        match queue.state {
            QueueState::Ok | QueueState::Degraded => None,
            QueueState::Full | QueueState::Failing => Some(format!("queue {}", queue.sentence)),
        }
    }

    /// The configured routes, and whether each [does its job](RouteConditions::works) now.
    pub(crate) fn working(&self) -> Vec<(Arc<str>, bool)> {
        let draining = self.parts.gate.is_shut();
        let peers = self.peers();
        let configured = self.parts.routes.iter().filter(|watched| !watched.orphaned);
        let works = |watched: &WatchedRoute| {
            let route = &watched.route;
            let needs_sync = self.needed_sync(watched).is_some();
            let newest_sync = self.parts.syncs.last(&route.name);
            let conditions = RouteConditions {
                route,
                orphaned: false,
                draining,
                paused: self.limits(&route.name).limits.paused,
                degraded: self.parts.syncs.needs().is_degraded(&route.name),
                counts: &self.parts.queue.counts(route.id),
                newest_sync: newest_sync.as_ref(),
                needs_sync,
                peers: &peers,
            };
            conditions.works() && !(watched.waits_for_sync && needs_sync)
        };
        configured.map(|watched| (watched.route.name.clone(), works(watched))).collect()
    }

    /// The full sync that a route needs. That it is new is none where nobody wants it compared at the start.
    fn needed_sync(&self, watched: &WatchedRoute) -> Option<NeededSync> {
        let needed = self.parts.syncs.needs().needed(&watched.route.name)?;
        (watched.begins_syncs || needed.reason != REASON_NEW).then_some(needed)
    }

    /// How everything stands. `names` are the routes that are asked for; empty: all.
    pub(crate) async fn picture(&self, names: &[String]) -> ReplicatorStatus {
        let now = self.parts.clock.now();
        let draining = self.parts.gate.is_shut();
        let asked = |route: &Route| names.is_empty() || names.iter().any(|name| **name == *route.name);
        // One that was dropped is of no interest, but to who asks for it.
        let is_empty = |route: &Route| Backlog::with_parked(&self.parts.queue.counts(route.id)) == 0;
        let is_gone = |watched: &WatchedRoute| watched.orphaned && names.is_empty() && is_empty(&watched.route);
        let all_peers = self.peers();
        let mut routes = Vec::new();
        for (index, watched) in
            self.parts.routes.iter().enumerate().filter(|(_, watched)| asked(&watched.route) && !is_gone(watched))
        {
            let facts = self.facts(index, watched, draining).await;
            routes.push(route_status(facts, &all_peers, now));
        }
        let touched = |name: &str| {
            names.is_empty() || routes.iter().any(|status| *status.route.from == *name || *status.route.to == *name)
        };
        let peers: Vec<_> = all_peers.into_iter().filter(|peer| touched(&peer.snapshot.name)).collect();
        let queue = self.queue();
        let (state, mut sentence) = overall(&routes, &queue, draining);
        let log_lines_lost = lost_log_lines();
        if log_lines_lost > 0 {
            sentence.end(&format!("; {} lost", several(log_lines_lost, "log line")));
        }
        let summary = sentence.to_string();
        let start_time = self.start;
        ReplicatorStatus { state, summary, start_time, snapshot_time: now, routes, peers, queue, log_lines_lost }
    }

    async fn facts<'a>(&'a self, index: usize, watched: &'a WatchedRoute, draining: bool) -> RouteFacts<'a> {
        let route = &watched.route;
        let counts = self.parts.queue.counts(route.id);
        // A picture with a gap is better than none while the queue cannot be read.
        let oldest = self.parts.queue.oldest(route.id).await.unwrap_or_else(|error| {
            tracing::warn!(route = %route.name, %error, "the ages of entries cannot be read");
            Oldest::default()
        });
        let trend = {
            let samples = self.samples.lock();
            samples[index].trend(self.parts.clock.monotonic(), backlog(&counts), &counts)
        };
        let worker = watched.worker.as_ref().map(|worker| worker.report());
        let newest_sync = self.parts.syncs.last(&route.name);
        let last_sync = if self.parts.syncs.running(&route.name).is_some() {
            self.parts
                .syncs
                .list(&route.name, 2)
                .await
                .ok()
                .and_then(|mut list| (list.len() == 2).then(|| list.remove(1)))
        } else {
            None
        };
        let at_start = self.at_start[index];
        let limits = self.limits(&route.name);
        let orphaned = watched.orphaned;
        RouteFacts {
            route,
            orphaned,
            limits,
            counts,
            at_start,
            oldest,
            trend,
            worker,
            newest_sync,
            last_sync,
            needed_sync: self.needed_sync(watched),
            degraded: self.parts.syncs.needs().is_degraded(&route.name),
            draining,
        }
    }

    fn limits(&self, route: &str) -> InForce {
        // An orphaned route may do nothing.
        self.parts.overrides.in_force(route).unwrap_or_else(|| InForce::configured(Limits::workers(0)))
    }

    fn peers(&self) -> Vec<PeerStatus> {
        let now = self.parts.clock.now();
        let status = |watched: &WatchedPeer| peer_status(watched.peer.snapshot(), watched.endpoint.clone(), now);
        self.parts.peers.iter().map(status).collect()
    }

    fn queue(&self) -> QueueStatus {
        let (mut entries, mut parked) = (0, 0);
        for watched in &self.parts.routes {
            let counts = self.parts.queue.counts(watched.route.id);
            entries += Backlog::with_parked(&counts);
            parked += counts.fresh.parked.entries + counts.backfill.parked.entries;
        }
        let free = Some(self.free_bytes.load(Ordering::Relaxed)).filter(|free| *free != UNKNOWN);
        let (max_entries, reserve) = (self.parts.max_entries, self.parts.reserve_bytes);
        let (trouble, damage) = match self.parts.queue.trouble() {
            None => (None, String::new()),
            Some(QueueTrouble::Damaged(what)) => (None, what),
            Some(QueueTrouble::Reopening(why) | QueueTrouble::Ended(why)) => (Some(why), String::new()),
        };
        let facts = QueueFacts {
            entries,
            parked,
            max_entries,
            max_parked: self.parts.max_parked,
            folder: self.parts.folder.clone(),
            free_bytes: free,
            reserve_bytes: reserve,
            trouble: trouble.or_else(|| self.parts.announcer.trouble()),
            incidents: self.parts.syncs.needs().incidents(),
            damage,
        };
        queue_status(facts, self.parts.clock.now())
    }
}

fn backlog(counts: &RouteCounts) -> u64 {
    Backlog::of(counts, None, SystemTime::UNIX_EPOCH).tally.entries
}
