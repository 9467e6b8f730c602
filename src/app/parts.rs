//! What a replicator is made of; everything that a simulation replaces.

use crate::clock::{Clock, Entropy, SystemClock};
use crate::config::{Config, StoreConfig};
use crate::grpc::PeerEndpoint;
use crate::metrics::CommitMetrics;
use crate::queue::WholeQueue;
use crate::queue::rocks::{KnownRoute, RocksOptions, RocksQueue};
use crate::store::Store;
use crate::store::remote::RemoteStore;
use crate::telemetry::Tracer;
use anyhow::{Context, Result};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Closes the queue.
type Close = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send + Sync>;

/// The parts of a replicator.
pub struct Parts {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Jitter and ids.
    pub entropy: Arc<Entropy>,
    /// Keeps the entries.
    pub queue: Arc<dyn WholeQueue>,
    /// What the queue's committer has done.
    pub commits: Arc<CommitMetrics>,
    /// A store for each configured name.
    pub stores: BTreeMap<String, Arc<dyn Store>>,
    /// The routes that the queue knows, configured or not.
    pub known_routes: Vec<KnownRoute>,
    /// The folder whose free bytes matter to the queue; absent where it is on no disk.
    pub disk: Option<PathBuf>,
    /// Where a second copy of the operators' overrides is, beside the queue; absent where there is none.
    pub overrides_file: Option<PathBuf>,
    /// Begins spans; by default, none.
    pub tracer: Tracer,
    /// Cancelled when the queue can write no more, whether it was closed or its writer failed.
    pub queue_ended: CancellationToken,
    /// What to do when all is over.
    pub close: Option<Close>,
}

impl Parts {
    /// The machine's clock, the queue in `server.data_dir/queue`, and the configured stores. Connects to none of them yet.
    /// Needs a tokio runtime.
    ///
    /// # Errors
    /// If the queue cannot be opened, or an endpoint or its certificates cannot be used.
    pub async fn real(config: &Config) -> Result<Self> {
        let mut stores: BTreeMap<String, Arc<dyn Store>> = BTreeMap::new();
        for (name, settings) in &config.stores {
            let store = RemoteStore::new(&endpoint(settings)).with_context(|| format!("stores.{name}"))?;
            stores.insert(name.clone(), Arc::new(store));
        }
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let dir = config.server.data_dir.join("queue");
        let options = RocksOptions {
            max_entries: config.queue.max_entries,
            reserve_bytes: config.queue.reserve_bytes,
            max_backoff: config.retry.max,
            ..RocksOptions::default()
        };
        let commits = options.metrics.clone();
        let queue_clock = clock.clone();
        let (data_dir, folder) = (config.server.data_dir.clone(), dir.clone());
        let opening = tokio::task::spawn_blocking(move || {
            for folder in [&data_dir, &folder] {
                make_folder(folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
            }
            RocksQueue::open(&folder, options, queue_clock).context("server.data_dir")
        });
        let queue = Arc::new(opening.await??);
        let closing = queue.clone();
        Ok(Self {
            clock,
            entropy: Arc::new(Entropy::from_os()),
            queue: queue.clone(),
            commits,
            stores,
            known_routes: queue.routes(),
            disk: Some(dir),
            overrides_file: Some(config.server.data_dir.join("overrides.json")),
            tracer: Tracer::off(),
            queue_ended: queue.ended(),
            close: Some(Box::new(move || Box::pin(async move { closing.close().await }))),
        })
    }

    /// The store of this name.
    pub(super) fn store(&self, name: &str) -> Result<Arc<dyn Store>> {
        self.stores.get(name).cloned().with_context(|| format!("there is no store {name}"))
    }

    /// Closes the queue. What is still asked of it afterwards is refused.
    pub(super) async fn close(self) {
        if let Some(close) = self.close {
            close().await;
        }
    }
}

/// Makes a folder where it is missing. Its name is durable afterwards: a queue in a folder whose name a power loss takes away
/// is lost, whatever was synced in it.
fn make_folder(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    let existed = path.is_dir();
    if !existed {
        if !parent.is_dir() {
            make_folder(parent)?;
        }
        std::fs::create_dir(path)?;
    }
    // Also where it existed: whoever made it may not have come to this.
    match File::open(parent).and_then(|parent| parent.sync_all()) {
        // The folder above may be closed to us; whoever made this one answers for its name there.
        Err(error) if existed && error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        synced => synced,
    }
}

fn endpoint(settings: &StoreConfig) -> PeerEndpoint {
    PeerEndpoint {
        uri: settings.endpoint.clone(),
        ca_file: settings.ca_file.clone(),
        connect_timeout: settings.connect_timeout,
        request_timeout: settings.request_timeout,
        idle_timeout: settings.idle_timeout,
    }
}
