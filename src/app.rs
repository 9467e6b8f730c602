//! The replicator, put together: built, then run, then supervised.
//!
//! [`App::build`] registers the routes and wires everything up; a configuration that cannot work fails there, before any
//! traffic. That a store cannot be reached is no such failure: its routes take announcements and wait for it.
//! [`App::run`] serves on a listener that was bound outside.
//!
//! Every task belongs to a `Crew`. The end of one that should run on is noticed, drains the rest, and is an error.
//!
//! # The drain
//!
//! Cancelling `shutdown` starts it, and one deadline holds for all of it (`server.drain_timeout`):
//!
//! 1. Health of both services and of every route turns NOT_SERVING, new announcements and syncs are refused with UNAVAILABLE
//!    SHUTTING_DOWN, watchers of Status get a last picture.
//! 2. Workers claim no more. What is being copied is finished and settled; at the deadline it is cancelled, and stays
//!    queued. Running syncs end as FAILED, to be run again.
//! 3. The server ends the calls in progress, and closes.
//! 4. The queue is closed.
//!
//! # Health
//!
//! Looked at every second, and told where it has changed:
//!
//! - `""` is live as long as the process answers.
//! - The two services serve while announcements would be written durably. They never depend on a peer.
//! - `route/NAME` serves while the route works: it is enabled, and IN_SYNC, COPYING or SYNCING with nothing parked. It does
//!   not while it is BLOCKED by a peer, all that is left is RETRYING or PARKED, or it is DEGRADED, DISABLED or DRAINING. It
//!   waits for the full sync that it needs only where `full_sync.on_start` is `blocking`. A paused route is NOT_SERVING:
//!   its destination falls behind, whoever wanted it so.

mod crew;
mod drain;
mod parts;
mod retention;
pub(crate) mod store;
mod watchdog;

pub(crate) use drain::ExitSummary;
pub use parts::Parts;
pub(crate) use watchdog::QueueEnded;

use crate::announce::{Announcer, Backlog, Gate, Route, RouteTable};
use crate::clock::from_unix_ms;
use crate::config::{Config, OnStart, RouteConfig};
use crate::copy::WaitLimits;
use crate::grpc::{Calls, ServeSettings, base_routes, method_names, serve};
use crate::http::{self, MetricsParts};
use crate::metrics::CallMetrics;
use crate::overrides::Overrides;
use crate::peer::{Needs, Peer, adopted_key, store_id_key};
use crate::queue::rocks::KnownRoute;
use crate::queue::{State, StateWrite};
use crate::service::{SERVICE_NAMES, Service, ServiceParts};
use crate::status::{Observer, ObserverParts, WatchedPeer, WatchedRoute};
use crate::story::{Story, StoryParts};
use crate::sync::{FullSyncs, StartSync, StoreIds, SyncParts, SyncRoute, SyncSettings};
use crate::worker::{Deps, NextHop, Policy, RouteSpec, Worker};
use anyhow::{Context, Result};
use crew::Crew;
use drain::Running;
use parking_lot::Mutex;
use retention::Retention;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use watchdog::{Watch, watch_queue};

/// How long to wait until a store id that could not be recorded is tried again.
const RECORD_PAUSE: Duration = Duration::from_secs(5);

/// The key in the queue's state of this replicator's own id.
const REPLICATOR_ID: &str = "replicator/id";

/// A replicator, ready to run.
pub struct App {
    parts: Parts,
    serve: ServeSettings,
    gate: Arc<Gate>,
    draining: CancellationToken,
    tasks: TaskTracker,
    peers: BTreeMap<String, Arc<Peer>>,
    workers: Vec<Arc<Worker>>,
    routes: Arc<RouteTable>,
    syncs: FullSyncs,
    overrides: Arc<Overrides>,
    announcer: Arc<Announcer>,
    observer: Arc<Observer>,
    service: Service,
    start_syncs: Vec<StartSync>,
    retention: Option<Retention>,
    http: Option<TcpListener>,
    calls: Arc<CallMetrics>,
}

impl App {
    /// Puts a replicator together. Needs a tokio runtime; starts nothing that works on its own.
    ///
    /// # Errors
    /// If the queue cannot be read or written, a route was known with other stores, or a part is missing.
    pub async fn build(config: &Config, parts: Parts) -> Result<Self> {
        let gate = Arc::new(Gate::default());
        let (draining, tasks) = (CancellationToken::new(), TaskTracker::new());
        let routes = Arc::new(register(config, &parts).await?.with_orphans(orphans(config, &parts)));
        let overrides = open_overrides(config, &parts).await?;
        let peers = open_peers(config, &parts).await?;
        let workers = open_workers(config, &parts, &routes, &peers, &overrides)?;
        let syncs = open_syncs(config, &parts, &routes, &peers).await?;
        let announcer = Announcer::new(parts.queue.clone(), routes.clone(), parts.clock.clone(), gate.clone());
        let told = peers.clone();
        let largest = move |store: &str| told.get(store).and_then(|peer| peer.info()?.max_blob_bytes);
        let announcer = Arc::new(announcer.with_tracer(parts.tracer.clone()).with_largest_blobs(largest));
        let observer = Arc::new(Observer::new(ObserverParts {
            queue: parts.queue.clone(),
            announcer: announcer.clone(),
            syncs: syncs.clone(),
            overrides: overrides.clone(),
            clock: parts.clock.clone(),
            gate: gate.clone(),
            routes: watched_routes(config, &routes, &workers),
            peers: peers.iter().map(|(name, peer)| watched_peer(config, name, peer)).collect(),
            folder: parts.disk.clone(),
            max_entries: config.queue.max_entries,
            max_parked: config.queue.max_parked(),
            reserve_bytes: config.queue.reserve_bytes,
        }));
        let story = Story::open(StoryParts {
            lookup: parts.queue.clone(),
            state: parts.queue.clone(),
            routes: routes.clone(),
            orphans: routes.orphans().to_vec(),
            peers: peers.clone(),
            workers: workers.clone(),
            patience: config.retry.patience(),
            clock: parts.clock.clone(),
            entropy: parts.entropy.clone(),
        })
        .await?;
        let service = Service::new(ServiceParts {
            replicator_id: replicator_id(&parts).await?,
            announcer: announcer.clone(),
            routes: routes.clone(),
            queue: parts.queue.clone(),
            overrides: overrides.clone(),
            peers: peers.values().cloned().collect(),
            clock: parts.clock.clone(),
            story: Arc::new(story),
            syncs: syncs.clone(),
            observer: observer.clone(),
            gate: gate.clone(),
            draining: draining.clone(),
            tasks: tasks.clone(),
        });
        let calls = Arc::new(CallMetrics::new(method_names()));
        let serve = ServeSettings {
            max_connections: config.server.max_connections,
            drain_timeout: config.server.drain_timeout,
            calls: Calls { tracer: parts.tracer.clone(), observer: None },
        };
        let start_syncs = config.enabled_routes().map(|(name, route)| StartSync {
            syncs: syncs.clone(),
            route: name.to_owned(),
            on_start: route.on_start,
            clock: parts.clock.clone(),
            entropy: parts.entropy.clone(),
        });
        let start_syncs = start_syncs.collect();
        let retention = config
            .retry
            .discard_parked_after
            .map(|after| Retention::new(parts.queue.clone(), parts.clock.clone(), routes.all().to_vec(), after));
        Ok(Self {
            parts,
            serve,
            gate,
            draining,
            tasks,
            peers,
            workers,
            routes,
            syncs,
            overrides,
            announcer,
            observer,
            service,
            start_syncs,
            retention,
            http: None,
            calls,
        })
    }

    /// Serves the HTTP port on this listener, too.
    #[must_use]
    pub fn with_http(mut self, listener: TcpListener) -> Self {
        self.http = Some(listener);
        // Without it nobody could read what is counted of calls.
        self.serve.calls.observer = Some(self.calls.clone());
        self
    }

    fn metrics_parts(&self) -> MetricsParts {
        let copies = self.workers.iter().map(|worker| (worker.spec().name.clone(), worker.metrics().clone()));
        MetricsParts {
            observer: self.observer.clone(),
            copies: copies.collect(),
            syncs: self.syncs.clone(),
            commits: self.parts.commits.clone(),
            calls: self.calls.clone(),
            storage: self.parts.queue.clone(),
            tracer: self.parts.tracer.clone(),
        }
    }

    /// Replicates and serves until `shutdown` is cancelled, then drains.
    ///
    /// # Errors
    /// If the server fails, or a task ends that should not have; the rest was drained all the same.
    pub async fn run(mut self, listener: TcpListener, shutdown: CancellationToken) -> Result<ExitSummary> {
        let address = listener.local_addr().context("the listener has no address")?;
        let (base, health) = base_routes(&SERVICE_NAMES)?;
        let grpc = self.service.add_to(base);
        let (stop, abort, server_stop) = (CancellationToken::new(), CancellationToken::new(), CancellationToken::new());

        let mut background = Crew::new();
        let watch = Watch {
            observer: self.observer.clone(),
            announcer: self.announcer.clone(),
            queue: self.parts.queue.clone(),
            disk: self.parts.disk.clone(),
            health,
            told: Mutex::new(BTreeMap::new()),
        };
        // Whoever connects first finds health known.
        watch.look().await;
        background.spawn("watch", watch.run(self.draining.clone()));
        let (overrides, stopped) = (self.overrides.clone(), stop.clone());
        background.spawn("overrides", async move {
            // It keeps on for ever: only the stop ends it.
            stopped.run_until_cancelled(overrides.keep()).await;
            Ok(())
        });
        for peer in self.peers.values() {
            let (ids, state) = (peer.store_id(), self.parts.queue.clone());
            let record = record_store_id(peer.name().clone(), ids, state, stop.clone());
            background.spawn(&format!("store id of {}", peer.name()), record);
        }
        background.spawn("queue", watch_queue(self.parts.queue_ended.clone(), stop.clone()));
        if let Some(retention) = self.retention.take() {
            background.spawn("retention of parked entries", retention.run(stop.clone()));
        }
        for start_sync in std::mem::take(&mut self.start_syncs) {
            let name = format!("start sync of {}", start_sync.route);
            let run = start_sync.run(self.draining.clone());
            background.spawn(&name, async move {
                run.await;
                Ok(())
            });
        }
        let mut workers = Crew::new();
        for worker in &self.workers {
            let name = format!("worker of {}", worker.spec().name);
            let run = worker.clone().run(stop.clone(), abort.clone());
            workers.spawn(&name, async move {
                run.await;
                Ok(())
            });
        }
        let mut server = Crew::new();
        let serving = serve(listener, grpc, self.serve.clone(), server_stop.clone());
        server.spawn("gRPC server", async move { Ok(serving.await?) });
        let mut http_address = None;
        if let Some(listener) = self.http.take() {
            http_address = Some(listener.local_addr().context("the HTTP listener has no address")?);
            // It ends with the gRPC server: until then probes are told that it drains.
            let serving = http::serve(listener, http::routes(self.metrics_parts()), server_stop.clone());
            server.spawn("HTTP server", async move {
                serving.await;
                Ok(())
            });
        }
        let http = http_address.map(tracing::field::display);
        tracing::info!(%address, http, routes = self.workers.len(), "serving");

        // Each of these should run on; whichever ends first, or the signal, starts the drain.
        let fault = tokio::select! {
            () = shutdown.cancelled() => None,
            ended = workers.next() => ended,
            ended = background.next() => ended,
            ended = server.next() => ended,
        };
        let running = Running { stop, abort, server_stop, workers, background, server };
        running.drain(self, fault).await
    }
}

/// Registers all configured routes, disabled ones too.
async fn register(config: &Config, parts: &Parts) -> Result<RouteTable> {
    let mut routes = Vec::with_capacity(config.routes.len());
    for (name, RouteConfig { from, to, enabled, .. }) in &config.routes {
        let id = parts.queue.register(name, from, to).await?;
        let (name, from, to) = (name.as_str().into(), from.as_str().into(), to.as_str().into());
        routes.push(Route { name, id, from, to, enabled: *enabled });
    }
    Ok(RouteTable::new(routes, config.stores.keys().map(|name| name.as_str().into())))
}

/// The routes that the queue knows and the configuration does not. Their entries are kept.
fn orphans(config: &Config, parts: &Parts) -> Vec<Route> {
    let left = parts.known_routes.iter().filter(|known| !config.routes.contains_key(&known.name));
    let orphans = left.map(|KnownRoute { id, name, from, to }| {
        let entries = Backlog::with_parked(&parts.queue.counts(*id));
        if entries > 0 {
            tracing::warn!(route = %name, %from, %to, entries, "a route left the configuration; its entries are kept");
        }
        let (name, from, to) = (name.as_str().into(), from.as_str().into(), to.as_str().into());
        Route { name, id: *id, from, to, enabled: false }
    });
    orphans.collect()
}

/// What operators have overridden, of the configured routes' limits.
async fn open_overrides(config: &Config, parts: &Parts) -> Result<Arc<Overrides>> {
    let configured = config.routes.iter().map(|(name, route)| (name.clone(), route.limits())).collect();
    let (clock, state, file) = (parts.clock.clone(), parts.queue.clone(), parts.overrides_file.clone());
    Overrides::open(clock, state, file, configured).await.context("the operators' overrides cannot be read")
}

/// A peer for each store that a route names, with the id that was recorded for it.
async fn open_peers(config: &Config, parts: &Parts) -> Result<BTreeMap<String, Arc<Peer>>> {
    let mut peers = BTreeMap::new();
    for (name, needs) in Needs::by_store(config) {
        let known = parts.queue.get(&store_id_key(name)).await?;
        let known = known.map(String::from_utf8).transpose();
        let known = known.with_context(|| format!("the recorded id of the store {name} cannot be read"))?;
        let (clock, entropy) = (parts.clock.clone(), parts.entropy.clone());
        let peer = Peer::new(name, parts.store(name)?, needs, known, clock, entropy);
        let adopted = parts.queue.get(&adopted_key(name)).await?;
        if let Some(time) = adopted.and_then(|text| String::from_utf8(text).ok()?.parse().ok()) {
            peer.set_adopted(from_unix_ms(time));
        }
        peers.insert(name.to_owned(), peer);
    }
    Ok(peers)
}

fn open_workers(
    config: &Config,
    parts: &Parts,
    routes: &RouteTable,
    peers: &BTreeMap<String, Arc<Peer>>,
    overrides: &Overrides,
) -> Result<Vec<Arc<Worker>>> {
    let mut workers = Vec::new();
    for route in routes.all().iter().filter(|route| route.enabled) {
        let settings = config.routes.get(&*route.name).context("a route without settings")?;
        let peer = |name: &str| peers.get(name).cloned().context("a route without its peer");
        let next = routes.starting_at(&route.to).map(|next| NextHop {
            route: next.id,
            name: next.name.clone(),
            from: next.from.clone(),
            to: next.to.clone(),
        });
        let spec = RouteSpec {
            name: route.name.clone(),
            id: route.id,
            from: peer(&route.from)?,
            to: peer(&route.to)?,
            limits: overrides.limits(&route.name).context("a route without limits")?,
            bytes_in_flight: settings.bytes_in_flight,
            receive_only: settings.receive_only,
            next: next.collect(),
        };
        let store = |name: &str| config.stores.get(name).context("a route without its store");
        let (from, to) = (store(&route.from)?, store(&route.to)?);
        let waits = WaitLimits {
            idle: [from.idle_timeout, to.idle_timeout],
            least_rate: [from.min_bytes_per_second, to.min_bytes_per_second],
            confirm: to.confirm_timeout,
        };
        let (backoff, patience) = (config.retry.backoff(), config.retry.patience());
        let policy = Policy { backoff, patience, waits, ..Policy::default() };
        let deps = Deps {
            queue: parts.queue.clone(),
            clock: parts.clock.clone(),
            entropy: parts.entropy.clone(),
            tracer: parts.tracer.clone(),
            policy,
        };
        workers.push(Worker::new(spec, deps));
    }
    Ok(workers)
}

async fn open_syncs(
    config: &Config,
    parts: &Parts,
    routes: &RouteTable,
    peers: &BTreeMap<String, Arc<Peer>>,
) -> Result<FullSyncs> {
    let store_id = |name: &str| peers.get(name).map(|peer| peer.store_id()).context("a route without its peer");
    let mut synced = Vec::new();
    for route in routes.all() {
        synced.push(SyncRoute {
            name: route.name.to_string(),
            id: route.id,
            from_name: route.from.clone(),
            to_name: route.to.clone(),
            source: parts.store(&route.from)?,
            destination: parts.store(&route.to)?,
            store_ids: StoreIds { source: store_id(&route.from)?, destination: store_id(&route.to)? },
            receive_only: config.routes.get(&*route.name).is_some_and(|settings| settings.receive_only),
        });
    }
    let sync_parts = SyncParts {
        queue: parts.queue.clone(),
        clock: parts.clock.clone(),
        tracer: parts.tracer.clone(),
        settings: SyncSettings::default(),
    };
    Ok(FullSyncs::open(sync_parts, synced).await?)
}

/// The configured routes, and those that left the configuration. The latter are shown while they have entries.
fn watched_routes(config: &Config, routes: &RouteTable, workers: &[Arc<Worker>]) -> Vec<WatchedRoute> {
    let worker = |route: &Route| workers.iter().find(|worker| worker.spec().id == route.id).cloned();
    let on_start = |name: &str| config.routes.get(name).map_or(OnStart::Off, |route| route.on_start);
    let configured = routes.all().iter().map(|route| (route, false, worker(route)));
    let orphans = routes.orphans().iter().map(|route| (route, true, None));
    let watched = configured.chain(orphans).map(|(route, orphaned, worker)| WatchedRoute {
        route: route.clone(),
        orphaned,
        begins_syncs: on_start(&route.name) != OnStart::Off,
        waits_for_sync: on_start(&route.name) == OnStart::Blocking,
        worker,
    });
    watched.collect()
}

fn watched_peer(config: &Config, name: &str, peer: &Arc<Peer>) -> WatchedPeer {
    // Endpoints have neither a path nor credentials: the configuration refuses both.
    let endpoint = config.stores.get(name).map(|store| store.endpoint.to_string()).unwrap_or_default();
    WatchedPeer { peer: peer.clone(), endpoint: endpoint.trim_end_matches('/').to_owned() }
}

/// This replicator's own id: made when the queue was, kept with it.
async fn replicator_id(parts: &Parts) -> Result<String> {
    let known = parts.queue.get(REPLICATOR_ID).await?;
    if let Some(id) = known.and_then(|id| String::from_utf8(id).ok()) {
        return Ok(id);
    }
    let id = parts.entropy.id(parts.clock.now());
    let value = Some(id.clone().into_bytes());
    parts.queue.write(vec![StateWrite { key: REPLICATOR_ID.to_owned(), value }]).await?;
    Ok(id)
}

/// Records the id of a store when it is learned, so that another store in its place is noticed after a restart, too.
async fn record_store_id(
    store: Arc<str>,
    mut ids: watch::Receiver<Option<String>>,
    state: Arc<dyn State>,
    stop: CancellationToken,
) -> Result<()> {
    let record = async {
        // The one that was read at the start is recorded already.
        while ids.changed().await.is_ok() {
            loop {
                let id = ids.borrow_and_update().clone();
                let write = StateWrite { key: store_id_key(&store), value: id.clone().map(String::into_bytes) };
                match state.write(vec![write]).await {
                    Ok(()) => {
                        let id = id.unwrap_or_default();
                        tracing::info!(peer = %store, id, "the store's id is recorded");
                        break;
                    }
                    Err(error) => {
                        tracing::warn!(peer = %store, %error, "the store's id could not be recorded");
                        tokio::time::sleep(RECORD_PAUSE).await;
                    }
                }
            }
        }
    };
    stop.run_until_cancelled(record).await;
    // The sender lives as long as the peer: only the stop ends this.
    Ok(())
}

#[cfg(test)]
mod tests;
