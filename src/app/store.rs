//! The `store` command's server: a store of its own, served for replicators and writers.

use super::crew::Crew;
use crate::clock::Entropy;
use crate::grpc::{ServeSettings, base_routes, method_names, serve};
use crate::http::{self, StoreParts, store_routes};
use crate::metrics::CallMetrics;
use crate::store::Store;
use crate::store::disk::DiskStore;
use crate::store::memory::MemoryStore;
use crate::store_server::{StoreServer, StoreServerSettings};
use anyhow::{Context, Result, anyhow, bail};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// The names by which health is asked for.
const RECEIVER: &str = "blobferry.v1.BlobReceiverService";
const SERVICE_NAMES: [&str; 2] = [RECEIVER, "blobferry.v1.BlobReaderService"];

/// How often a store that cannot write is tried.
const TICK: Duration = Duration::from_secs(1);

/// What a store in memory holds at most, in bytes. It is for trying things out; a limit keeps the machine alive.
const MEMORY_BYTES: u64 = 4 << 30;

/// Where a store keeps its blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DataUrl {
    /// `disk:///path`: a folder.
    Disk(PathBuf),
    /// `memory://`: nowhere; gone with the process.
    Memory,
}

impl std::str::FromStr for DataUrl {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if text == "memory://" {
            return Ok(Self::Memory);
        }
        let Some((scheme, path)) = text.split_once("://") else {
            bail!("{text:?} is no data URL; use disk:///path or memory://");
        };
        match (scheme, path) {
            ("disk", path) if path.starts_with('/') && path.len() > 1 => Ok(Self::Disk(PathBuf::from(path))),
            ("disk", _) => bail!("{text:?} names no absolute folder; use disk:///path or memory://"),
            ("memory", _) => bail!("{text:?}: a store in memory has no path; use memory://"),
            _ => bail!("{text:?}: no store is known for {scheme}://; use disk:///path or memory://"),
        }
    }
}

/// A store and its server, ready to run.
pub struct StoreApp {
    store: Arc<dyn Store>,
    /// The same, where it is on a disk.
    disk: Option<Arc<DiskStore>>,
    settings: ServeSettings,
    /// Cancelled when the store can write no more.
    ended: CancellationToken,
    http: Option<TcpListener>,
}

impl StoreApp {
    /// Opens the store at a data URL, such as `disk:///var/lib/blobs`, and makes it where it is new.
    ///
    /// # Errors
    /// If the URL is none, or the store cannot be opened.
    pub async fn build(data_url: &str, settings: ServeSettings) -> Result<Self> {
        let entropy = Arc::new(Entropy::from_os());
        match data_url.parse()? {
            DataUrl::Memory => Ok(Self::of(Arc::new(MemoryStore::new(entropy.name(), MEMORY_BYTES)), settings)),
            DataUrl::Disk(folder) => {
                let opened = DiskStore::open(folder, entropy).await;
                let store = opened.with_context(|| format!("cannot open the store at {data_url}"))?;
                let (ended, store) = (store.ended(), Arc::new(store));
                Ok(Self { store: store.clone(), disk: Some(store), settings, ended, http: None })
            }
        }
    }

    /// Serves this store.
    pub fn of(store: Arc<dyn Store>, settings: ServeSettings) -> Self {
        Self { store, disk: None, settings, ended: CancellationToken::new(), http: None }
    }

    /// Serves the HTTP port on this listener, too.
    #[must_use]
    pub fn with_http(mut self, listener: TcpListener) -> Self {
        self.http = Some(listener);
        self
    }

    /// Serves until `shutdown` is cancelled; calls in progress may then end within the drain timeout.
    ///
    /// # Errors
    /// If the server fails.
    pub async fn run(self, listener: TcpListener, shutdown: CancellationToken) -> Result<()> {
        let address = listener.local_addr().context("the listener has no address")?;
        let (base, health) = base_routes(&SERVICE_NAMES)?;
        let tracer = self.settings.calls.tracer.clone();
        let routes = StoreServer::traced(self.store, StoreServerSettings::default(), tracer).add_to(base);
        for name in SERVICE_NAMES {
            health.set_service_status(name, ServingStatus::Serving).await;
        }
        let (stop, stop_pages) = (CancellationToken::new(), CancellationToken::new());
        let (mut server, mut pages) = (Crew::new(), Crew::new());
        let (tell, trouble) = watch::channel(None);
        if let Some(disk) = self.disk {
            server.spawn("watch", watch_disk(disk, tell, health.clone(), stop.clone()));
        }
        let mut settings = self.settings.clone();
        let mut http_address = None;
        if let Some(listener) = self.http {
            http_address = Some(listener.local_addr().context("the HTTP listener has no address")?);
            let calls = Arc::new(CallMetrics::new(method_names()));
            settings.calls.observer = Some(calls.clone());
            let tracer = settings.calls.tracer.clone();
            let parts = StoreParts { calls, tracer, ended: self.ended.clone(), trouble, draining: stop.clone() };
            let serving = http::serve(listener, store_routes(parts), stop_pages.clone());
            pages.spawn("HTTP server", async move {
                serving.await;
                Ok(())
            });
        }
        let serving = serve(listener, routes, settings, stop.clone());
        server.spawn("gRPC server", async move { Ok(serving.await?) });
        let http = http_address.map(tracing::field::display);
        tracing::info!(%address, http, "serving a store");
        let fault = tokio::select! {
            () = shutdown.cancelled() => None,
            () = self.ended.cancelled() => Some(anyhow!("its writer has ended; start again, nothing that was stored is lost")),
            ended = server.next() => return ended.map_or(Ok(()), Err),
            ended = pages.next() => return ended.map_or(Ok(()), Err),
        };
        tracing::info!("draining");
        stop.cancel();
        for name in SERVICE_NAMES {
            health.set_service_status(name, ServingStatus::NotServing).await;
        }
        // The server has a deadline of its own.
        let longest = self.settings.drain_timeout + Duration::from_secs(5);
        let (ended, error) = server.ended_by(tokio::time::Instant::now() + longest).await;
        if !ended {
            server.abort().await;
        }
        // Until here, probes were told that it drains.
        stop_pages.cancel();
        pages.ended_by(tokio::time::Instant::now() + Duration::from_secs(3)).await;
        tracing::info!(drained = ended, "stopped");
        fault.or(error).map_or(Ok(()), Err)
    }
}

/// Tells whether the store can write, and has it try to, until the drain.
async fn watch_disk(
    disk: Arc<DiskStore>,
    tell: watch::Sender<Option<String>>,
    health: HealthReporter,
    draining: CancellationToken,
) -> Result<()> {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while draining.run_until_cancelled(tick.tick()).await.is_some() {
        let trouble = disk.trouble().await;
        let serves = trouble.is_none();
        if tell.send_replace(trouble).is_none() != serves && !draining.is_cancelled() {
            let status = if serves { ServingStatus::Serving } else { ServingStatus::NotServing };
            health.set_service_status(RECEIVER, status).await;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::DataUrl;
    use std::path::PathBuf;

    #[test]
    fn a_data_url_names_a_known_kind_of_store() {
        assert_eq!("memory://".parse::<DataUrl>().unwrap(), DataUrl::Memory);
        let disk = "disk:///var/lib/blobs".parse::<DataUrl>().unwrap();
        assert_eq!(disk, DataUrl::Disk(PathBuf::from("/var/lib/blobs")));
        for wrong in ["", "memory", "/var/lib", "disk://", "disk:///", "disk://var", "s3://bucket", "memory:///x"] {
            let error = wrong.parse::<DataUrl>().unwrap_err().to_string();
            assert!(error.contains("memory://"), "{wrong}: {error}");
        }
    }
}
