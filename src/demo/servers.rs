//! The demo's servers: two disk stores and a replicator, built as production builds them, on loopback.

use crate::app::store::StoreApp;
use crate::app::{App, Parts};
use crate::cli::{CommandError, Exit};
use crate::client::Address;
use crate::clock::{Entropy, SystemClock};
use crate::config::{Config, OnStart, RouteConfig, StoreConfig, TracingConfig};
use crate::grpc::{Calls, ServeSettings};
use crate::telemetry::{Tracer, Traces};
use anyhow::Context as _;
use http::Uri;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The ports of the documentation, taken where they are free.
const REPLICATOR_PORT: u16 = 7070;
const SOURCE_PORT: u16 = 7080;
const DESTINATION_PORT: u16 = 7081;

/// Copies at a time. Small blobs mostly wait for the destination's synced writes, which are made for all at once.
const WORKERS: usize = 64;
/// The demo checks the space itself, and wants to run on small disks, too.
const RESERVE_BYTES: u64 = 64 << 20;
/// How long calls may go on once the demo ends.
const DRAIN: Duration = Duration::from_secs(5);

/// Where the servers are.
#[derive(Clone)]
pub(super) struct Addresses {
    pub(super) source: Address,
    pub(super) destination: Address,
    pub(super) replicator: Address,
}

/// Servers that run.
pub(super) struct Servers {
    at: Addresses,
    replicator: JoinSet<anyhow::Result<()>>,
    stop_replicator: CancellationToken,
    stores: JoinSet<anyhow::Result<()>>,
    stop_stores: CancellationToken,
    traces: Vec<Traces>,
}

impl Servers {
    /// Starts all three, with their data below this folder, and their traces sent to the collector, if there is one.
    pub(super) async fn start(dir: &Path, otlp: Option<Uri>) -> Result<Self, CommandError> {
        Self::build(dir, otlp)
            .await
            .map_err(|error| CommandError::new(Exit::Failed, format!("the demo cannot start: {error:#}")))
    }

    async fn build(dir: &Path, otlp: Option<Uri>) -> anyhow::Result<Self> {
        let dir = std::path::absolute(dir)?;
        let tracing = TracingConfig { otlp_endpoint: otlp, ..TracingConfig::default() };
        let mut traces = Vec::new();
        let mut tracer = |service: &str| {
            let clock = Arc::new(SystemClock::new());
            let started = Traces::start(&tracing, service, clock, &Entropy::from_os())?;
            let tracer = started.tracer();
            traces.push(started);
            anyhow::Ok(tracer)
        };
        let (stop_stores, stop_replicator) = (CancellationToken::new(), CancellationToken::new());
        let mut stores = JoinSet::new();
        let mut addresses = Vec::new();
        for (name, port) in [("source", SOURCE_PORT), ("destination", DESTINATION_PORT)] {
            let (listener, address) = listen(port).await?;
            let calls = Calls { tracer: tracer(&format!("{name}-store"))?, observer: None };
            let settings = ServeSettings { drain_timeout: DRAIN, calls, ..ServeSettings::default() };
            let url = format!("disk://{}", dir.join(name).display());
            let store = StoreApp::build(&url, settings).await?;
            let stop = stop_stores.clone();
            stores.spawn(async move { store.run(listener, stop).await.with_context(|| format!("the {name} store")) });
            addresses.push(address);
        }
        let (listener, address) = listen(REPLICATOR_PORT).await?;
        let at = Addresses {
            source: Address::new(&format!("http://{}", addresses[0]), None)?,
            destination: Address::new(&format!("http://{}", addresses[1]), None)?,
            replicator: Address::new(&format!("http://{address}"), None)?,
        };
        let mut config = Config::default();
        config.server.data_dir = dir.join("replicator");
        config.server.drain_timeout = DRAIN;
        config.queue.reserve_bytes = RESERVE_BYTES;
        for (name, address) in [("source", &at.source), ("destination", &at.destination)] {
            config.stores.insert(name.to_owned(), StoreConfig::at(address.uri().clone()));
        }
        // The demo asks for its full sync itself, when there is something for it to find.
        let between = RouteConfig::between("source", "destination");
        let route = RouteConfig { workers: WORKERS, on_start: OnStart::Off, ..between };
        config.routes.insert("source_to_destination".to_owned(), route);
        let parts = Parts { tracer: tracer("blobferry")?, ..Parts::real(&config).await? };
        let app = App::build(&config, parts).await?;
        let mut replicator = JoinSet::new();
        let stop = stop_replicator.clone();
        replicator.spawn(async move { app.run(listener, stop).await.map(drop).context("the replicator") });
        Ok(Self { at, replicator, stop_replicator, stores, stop_stores, traces })
    }

    pub(super) fn at(&self) -> Addresses {
        self.at.clone()
    }

    /// The tracers of all three; they count spans, also after the end.
    pub(super) fn tracers(&self) -> Vec<Tracer> {
        self.traces.iter().map(Traces::tracer).collect()
    }

    /// Waits until a server ends that should not.
    pub(super) async fn failed(&mut self) -> CommandError {
        let ended = tokio::select! {
            Some(ended) = self.replicator.join_next() => ended,
            Some(ended) = self.stores.join_next() => ended,
            else => return CommandError::new(Exit::Failed, "a server of the demo has ended"),
        };
        match failure_of(ended) {
            Some(failure) => failure,
            None => CommandError::new(Exit::Failed, "a server of the demo has ended"),
        }
    }

    /// Stops the replicator, then the stores; tells what went wrong first.
    pub(super) async fn stop(mut self) -> Result<(), CommandError> {
        let mut first = None;
        self.stop_replicator.cancel();
        while let Some(ended) = self.replicator.join_next().await {
            first = first.or(failure_of(ended));
        }
        self.stop_stores.cancel();
        while let Some(ended) = self.stores.join_next().await {
            first = first.or(failure_of(ended));
        }
        for traces in self.traces {
            traces.flush().await;
        }
        first.map_or(Ok(()), Err)
    }
}

fn failure_of(ended: Result<anyhow::Result<()>, tokio::task::JoinError>) -> Option<CommandError> {
    let error = match ended {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => format!("{error:#}"),
        Err(error) => error.to_string(),
    };
    Some(CommandError::new(Exit::Failed, format!("a server of the demo has failed: {error}")))
}

/// Listens on loopback: on this port if it is free, on any other if not.
async fn listen(port: u16) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let listener = match TcpListener::bind(at(port)).await {
        Err(error) if error.kind() == ErrorKind::AddrInUse => TcpListener::bind(at(0)).await,
        other => other,
    };
    let listener = listener.context("cannot listen on 127.0.0.1")?;
    let address = listener.local_addr()?;
    Ok((listener, address))
}
