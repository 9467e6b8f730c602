//! The end of a run: one deadline, and nothing that was acked is lost.

use super::App;
use super::crew::Crew;
use crate::announce::Backlog;
use crate::worker::Worker;
use anyhow::{Error, Result};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

/// How long a thing that was told to end at once may take, once the deadline has passed.
const GRACE: Duration = Duration::from_secs(1);

/// How a run ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExitSummary {
    /// Copies that were cut at the deadline; their entries are among those queued.
    pub cut: usize,
    /// Entries that stay queued for the next start, on all routes; parked ones are not in it.
    pub queued: u64,
    /// How long the drain took.
    pub took: Duration,
}

impl fmt::Display for ExitSummary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        write!(f, "drained in {seconds:.1} s: copies cut: {}; entries that stay queued: {}", self.cut, self.queued)
    }
}

/// What runs, and how to stop it.
pub(super) struct Running {
    pub(super) stop: CancellationToken,
    pub(super) abort: CancellationToken,
    pub(super) server_stop: CancellationToken,
    pub(super) workers: Crew,
    pub(super) background: Crew,
    pub(super) server: Crew,
}

impl Running {
    /// Drains. `fault` is why, where nobody asked for it; it is what comes of the run then.
    pub(super) async fn drain(mut self, app: App, fault: Option<Error>) -> Result<ExitSummary> {
        let start = Instant::now();
        let deadline = start + app.serve.drain_timeout;
        if let Some(fault) = &fault {
            tracing::error!("stopping, because of a fault: {fault:#}");
        } else {
            tracing::info!("draining");
        }
        app.gate.shut();
        app.draining.cancel();
        self.stop.cancel();

        let mut first = fault;
        let (cut, _) = tokio::join!(self.end_workers(&app, deadline, &mut first), async {
            if timeout_at(deadline, app.syncs.shutdown()).await.is_err() {
                tracing::warn!("a full sync did not stop in time");
            }
        });
        // Only now: until here, callers were told why they are refused.
        self.server_stop.cancel();
        app.tasks.close();
        end("servers", &mut self.server, deadline, &mut first).await;
        end("background tasks", &mut self.background, deadline, &mut first).await;
        if timeout_at(deadline.max(Instant::now() + GRACE), app.tasks.wait()).await.is_err() {
            tracing::warn!("some response streams were still open");
        }

        let queued =
            app.routes.all().iter().map(|route| {
                Backlog::of(&app.parts.queue.counts(route.id), None, SystemTime::UNIX_EPOCH).tally.entries
            });
        let summary = ExitSummary { cut, queued: queued.sum(), took: start.elapsed() };
        app.parts.close().await;
        match first {
            Some(error) => Err(error),
            None => {
                tracing::info!("{summary}");
                Ok(summary)
            }
        }
    }

    /// Waits for what is being copied, and cuts it at the deadline. Gives how many copies were cut.
    async fn end_workers(&mut self, app: &App, deadline: Instant, first: &mut Option<Error>) -> usize {
        let (ended, error) = self.workers.ended_by(deadline).await;
        note(first, error);
        if ended {
            return 0;
        }
        let of = |worker: &Arc<Worker>| -> u64 { worker.report().in_progress.iter().map(|copy| copy.blobs).sum() };
        let cut = usize::try_from(app.workers.iter().map(of).sum::<u64>()).unwrap_or(usize::MAX);
        tracing::warn!(copies = cut, "copies were still in progress at the end of the drain; they stay queued");
        self.abort.cancel();
        end("workers", &mut self.workers, Instant::now() + GRACE, first).await;
        cut
    }
}

/// Waits for a crew that was told to end, a little beyond the deadline if need be, and aborts what is left.
async fn end(what: &str, crew: &mut Crew, deadline: Instant, first: &mut Option<Error>) {
    let (ended, error) = crew.ended_by(deadline.max(Instant::now() + GRACE)).await;
    note(first, error);
    if !ended {
        tracing::warn!("the {what} did not end in time and are cut");
        crew.abort().await;
    }
}

/// Keeps the first error; later ones are often its consequence, and are logged.
fn note(first: &mut Option<Error>, error: Option<Error>) {
    match (error, &first) {
        (Some(error), Some(_)) => tracing::error!("also: {error:#}"),
        (Some(error), None) => *first = Some(error),
        (None, _) => {}
    }
}
