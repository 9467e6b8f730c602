//! `/metrics`: everything that is counted, and the state of the moment, in one of the two text formats.
//!
//! The state is one picture, the same that Status shows. Scrapes that come while one is being taken share the next: however
//! many scrapers there are, one picture at a time is taken. What is counted all the while is read from its recorders as it is
//! written down.
//!
//! `docs/metrics.md` lists every metric, and a test holds it to what is written here. Labels are bounded by the configuration
//! (routes, stores) or by the code (lanes, states, kinds, methods, status codes), never by what a peer says.

mod process;
mod queue;
mod routes;
mod server;

use crate::metrics::{CallMetrics, CommitMetrics, CopyMetrics, Format, Text};
use crate::queue::RouteCounts;
use crate::queue::storage::{Storage, StorageFigures};
use crate::status::{Observer, ReplicatorStatus};
use crate::sync::FullSyncs;
use crate::telemetry::{SpanTally, Tracer};
use process::ProcessFigures;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What a scrape reads.
pub(crate) struct MetricsParts {
    /// Takes pictures.
    pub observer: Arc<Observer>,
    /// The recorder of each enabled route's worker, by the route's name.
    pub copies: Vec<(Arc<str>, Arc<CopyMetrics>)>,
    /// Knows how full syncs have ended.
    pub syncs: FullSyncs,
    /// The queue's committer.
    pub commits: Arc<CommitMetrics>,
    /// The gRPC server's calls.
    pub calls: Arc<CallMetrics>,
    /// The database below the queue; absent where there is none.
    pub storage: Arc<dyn Storage>,
    /// Counts the spans.
    pub tracer: Tracer,
}

/// What was gathered at one moment.
struct GatheredFigures {
    status: ReplicatorStatus,
    ready: bool,
    process: ProcessFigures,
    storage: Option<StorageFigures>,
}

/// Gathers and writes.
pub(super) struct Scraper {
    parts: MetricsParts,
    // How many scrapes have come.
    came: AtomicU64,
    // The last that was gathered, and how many scrapes had come when that began.
    last: tokio::sync::Mutex<Option<(u64, Arc<GatheredFigures>)>>,
}

impl Scraper {
    pub(super) fn new(parts: MetricsParts) -> Self {
        Self { parts, came: AtomicU64::new(0), last: tokio::sync::Mutex::default() }
    }

    pub(super) async fn scrape(&self, format: Format) -> String {
        let gathered = self.gathered().await;
        let mut text = Text::new(format);
        server::write_state(&mut text, gathered.status.state);
        server::write(&mut text, gathered.ready, &self.parts.calls, self.parts.tracer.tally());
        routes::write(&mut text, &gathered.status, &self.parts);
        queue::write(&mut text, &gathered.status.queue, gathered.storage.as_ref(), &self.parts.commits);
        process::write(&mut text, &gathered.process);
        text.finish()
    }

    /// What was gathered since this scrape came; by another, where one has begun since.
    async fn gathered(&self) -> Arc<GatheredFigures> {
        let number = self.came.fetch_add(1, Ordering::Relaxed) + 1;
        let mut last = self.last.lock().await;
        if let Some((began, gathered)) = &*last
            && *began >= number
        {
            return gathered.clone();
        }
        let began = self.came.load(Ordering::Relaxed);
        let mut status = self.parts.observer.picture(&[]).await;
        if let Some((_, before)) = &*last {
            keep_up(&mut status, &before.status);
        }
        let storage = self.parts.storage.clone();
        let read = move || (ProcessFigures::read(), storage.figures());
        let (process, storage) = tokio::task::spawn_blocking(read).await.unwrap_or_default();
        let ready = self.parts.observer.can_ack();
        let gathered = Arc::new(GatheredFigures { status, ready, process, storage });
        *last = Some((began, gathered.clone()));
        gathered
    }
}

/// What a store has of it.
pub(super) fn store_metrics(format: Format, ready: bool, calls: &CallMetrics, spans: SpanTally) -> String {
    let mut text = Text::new(format);
    server::write(&mut text, ready, calls, spans);
    process::write(&mut text, &ProcessFigures::read());
    text.finish()
}

/// A counter that went back is a restart to whoever reads it: where a queue that was opened again knows of less, what was told
/// before stands.
fn keep_up(status: &mut ReplicatorStatus, before: &ReplicatorStatus) {
    for route in &mut status.routes {
        let Some(told) = before.routes.iter().find(|told| told.route.id == route.route.id) else { continue };
        let RouteCounts { confirmed, copied, copied_bytes, discarded, .. } = &mut route.counts;
        *confirmed = told.counts.confirmed.max(*confirmed);
        *copied = told.counts.copied.max(*copied);
        *copied_bytes = told.counts.copied_bytes.max(*copied_bytes);
        *discarded = told.counts.discarded.max(*discarded);
    }
}
