//! The worker of a route: claims entries, has them copied, settles them. Nothing else starts a copy; only the queue retries.
//!
//! ```text
//! queue  ─▶ ┌──────────────────── driver ─────────────────────┐
//! copies ─▶ │ event ──▶ scheduler.apply(event, now) ──▶ effects │ ─▶ claim, start, settle, identify, ask
//! peers  ─▶ └─────────────────────────────────────────────────┘
//! ```
//!
//! - `scheduler` decides everything, in one synchronous step: what is claimed and started next, and what follows from the end
//!   of a copy. `attribution` says whose fault a failure is, the peers' own state (`peer::state`) whether and how wide they
//!   are used.
//! - `driver` waits and acts, and decides nothing. `transfer` makes one copy.
//! - `simulation` steps the same scheduler through hours of trouble in virtual time, for tests.
//!
//! Wake-ups are hints: a lost one costs a poll interval. Limits are read live; they never touch a copy in flight.

mod attribution;
mod driver;
mod pace;
mod report;
mod scheduler;
#[cfg(test)]
mod simulation;
mod traced;
mod transfer;

pub use attribution::Streak;
pub use pace::{Wait, Waits};
pub use report::{Activity, ErrorGroup, InProgress, Report};

use crate::backoff::{Backoff, Patience};
use crate::blob::BlobRef;
use crate::clock::{Clock, Entropy};
use crate::fault::Side;
use crate::limits::Limits;
use crate::metrics::CopyMetrics;
use crate::peer::Peer;
use crate::queue::{Queue, RouteId};
use crate::telemetry::Tracer;
use driver::Driver;
use report::Board;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// An enabled route that starts where this one ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NextHop {
    /// Its number.
    pub route: RouteId,
    /// Its name.
    pub name: Arc<str>,
    /// The store that it starts from: this route's destination.
    pub from: Arc<str>,
    /// The store that it ends at.
    pub to: Arc<str>,
}

/// A route.
#[derive(Clone, Debug)]
pub struct RouteSpec {
    /// Its name.
    pub name: Arc<str>,
    /// Its number in the queue.
    pub id: RouteId,
    /// The store that it reads.
    pub from: Arc<Peer>,
    /// The store that it writes.
    pub to: Arc<Peer>,
    /// What it may use, as of now; changes at any time.
    pub limits: watch::Receiver<Limits>,
    /// The bytes of blobs that its copies may hold in memory, about; half of it is for packs of small blobs.
    pub bytes_in_flight: u64,
    /// Whether the destination's CONSUMED confirms, too.
    pub receive_only: bool,
    /// Where a confirmed blob goes from here.
    pub next: Vec<NextHop>,
}

/// When to try again, and how long to wait.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    /// The delays of charged entries.
    pub backoff: Backoff,
    /// When they are parked.
    pub patience: Patience,
    /// How long either side of a copy may be waited for without a byte of progress.
    pub idle_timeout: Duration,
    /// How often to look for work without being woken.
    pub poll_interval: Duration,
}

impl Default for Policy {
    /// The default backoff and patience, 30 s without progress, a look every second.
    fn default() -> Self {
        Self {
            backoff: Backoff::ENTRY,
            patience: Patience::default(),
            idle_timeout: Duration::from_secs(30),
            poll_interval: Duration::from_secs(1),
        }
    }
}

/// What a worker works with.
#[derive(Clone)]
pub struct Deps {
    /// The queue.
    pub queue: Arc<dyn Queue>,
    /// The clock.
    pub clock: Arc<dyn Clock>,
    /// Jitter.
    pub entropy: Arc<Entropy>,
    /// Begins a span for each attempt.
    pub tracer: Tracer,
    /// Its policy.
    pub policy: Policy,
}

/// The worker of one route.
pub struct Worker {
    spec: RouteSpec,
    deps: Deps,
    board: Arc<Board>,
}

impl Worker {
    /// A worker that does nothing before it is [run](Self::run).
    pub fn new(spec: RouteSpec, deps: Deps) -> Arc<Self> {
        let metrics = Arc::new(CopyMetrics::new(spec.from.name().clone(), spec.to.name().clone()));
        let board = Board::new(deps.clock.clone(), metrics);
        Arc::new(Self { spec, deps, board })
    }

    /// Its route.
    pub fn spec(&self) -> &RouteSpec {
        &self.spec
    }

    /// What it is doing, and did of late.
    pub fn report(&self) -> Report {
        self.board.report()
    }

    /// The copy in progress that this blob is a part of, if there is one.
    pub fn copy_of(&self, blob: BlobRef) -> Option<InProgress> {
        self.board.copy_of(blob)
    }

    /// What it has counted since it was made.
    pub fn metrics(&self) -> &Arc<CopyMetrics> {
        self.board.metrics()
    }

    /// Remembers what it has waited for up to now. To be called about every second, for [`Report::waits`].
    pub fn sample(&self) {
        self.board.sample();
    }

    /// Works until `stop`, then claims no more and returns when what is in flight has been copied and settled; or until
    /// `abort`, which cancels the copies in flight, releases their claims, and settles what was copied already.
    pub async fn run(self: Arc<Self>, stop: CancellationToken, abort: CancellationToken) {
        Driver::new(self).until_drained(&stop, &abort).await;
    }

    fn peer(&self, side: Side) -> &Arc<Peer> {
        match side {
            Side::Source => &self.spec.from,
            Side::Destination => &self.spec.to,
        }
    }
}

#[cfg(test)]
mod tests;
