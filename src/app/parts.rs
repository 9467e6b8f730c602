//! What a replicator is made of; everything that a simulation replaces.

use crate::clock::{Clock, Entropy, SystemClock};
use crate::config::{Config, StoreConfig};
use crate::grpc::PeerEndpoint;
use crate::queue::damage::Condition;
use crate::queue::failures::Failures;
use crate::queue::rocks::{KnownRoute, RocksOptions, RocksQueue};
use crate::queue::{Queue, State};
use crate::store::Store;
use crate::store::remote::RemoteStore;
use anyhow::{Context, Result};
use futures::future::BoxFuture;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// Closes the queue.
type Close = Box<dyn FnOnce() -> BoxFuture<'static, ()> + Send + Sync>;

/// The parts of a replicator.
pub struct Parts {
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Jitter and ids.
    pub entropy: Arc<Entropy>,
    /// Keeps the entries.
    pub queue: Arc<dyn Queue>,
    /// Lists and mends what failed; the same queue.
    pub failures: Arc<dyn Failures>,
    /// Tells what is wrong with the queue; the same queue.
    pub condition: Arc<dyn Condition>,
    /// Keeps small facts; the same database as the queue.
    pub state: Arc<dyn State>,
    /// A store for each configured name.
    pub stores: BTreeMap<String, Arc<dyn Store>>,
    /// The routes that the queue knows, configured or not.
    pub known_routes: Vec<KnownRoute>,
    /// The folder whose free bytes matter to the queue; absent where it is on no disk.
    pub disk: Option<PathBuf>,
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
        let wall = clock.clone();
        let folder = dir.clone();
        let opening = tokio::task::spawn_blocking(move || {
            std::fs::create_dir_all(&folder).with_context(|| format!("cannot make the folder {}", folder.display()))?;
            RocksQueue::open(&folder, options, Arc::new(move || wall.now())).context("server.data_dir")
        });
        let queue = Arc::new(opening.await??);
        let closing = queue.clone();
        Ok(Self {
            clock,
            entropy: Arc::new(Entropy::from_os()),
            queue: queue.clone(),
            failures: queue.clone(),
            condition: queue.clone(),
            state: queue.clone(),
            stores,
            known_routes: queue.routes(),
            disk: Some(dir),
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

fn endpoint(settings: &StoreConfig) -> PeerEndpoint {
    PeerEndpoint {
        uri: settings.endpoint.clone(),
        ca_file: settings.ca_file.clone(),
        connect_timeout: settings.connect_timeout,
        request_timeout: settings.request_timeout,
    }
}
