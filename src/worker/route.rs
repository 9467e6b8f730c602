//! A route's worker, and what it is made of.

use super::report::{Board, InProgress, Report};
use crate::backoff::{Backoff, Patience};
use crate::blob::BlobRef;
use crate::clock::{Clock, Entropy};
use crate::copy::WaitLimits;
use crate::fault::Side;
use crate::limits::Limits;
use crate::metrics::CopyMetrics;
use crate::peer::Peer;
use crate::queue::{Queue, RouteId};
use crate::telemetry::Tracer;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// An enabled route that starts where this one ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NextHop {
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
pub(crate) struct RouteSpec {
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
pub(crate) struct Policy {
    /// The delays of charged entries.
    pub backoff: Backoff,
    /// When they are parked.
    pub patience: Patience,
    /// How long either side of a copy may be waited for.
    pub waits: WaitLimits,
    /// How often to look for work without being woken.
    pub poll_interval: Duration,
}

impl Default for Policy {
    /// The defaults of each, and a look every second.
    fn default() -> Self {
        Self {
            backoff: Backoff::ENTRY,
            patience: Patience::default(),
            waits: WaitLimits::default(),
            poll_interval: Duration::from_secs(1),
        }
    }
}

/// What a worker works with.
#[derive(Clone)]
pub(crate) struct Deps {
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
pub(crate) struct Worker {
    pub(super) spec: RouteSpec,
    pub(super) deps: Deps,
    pub(super) board: Arc<Board>,
}

impl Worker {
    /// A worker that does nothing before it is [run](Self::run).
    pub(crate) fn new(spec: RouteSpec, deps: Deps) -> Arc<Self> {
        let metrics = Arc::new(CopyMetrics::new(spec.from.name().clone(), spec.to.name().clone()));
        let board = Board::new(deps.clock.clone(), metrics);
        Arc::new(Self { spec, deps, board })
    }

    /// Its route.
    pub(crate) fn spec(&self) -> &RouteSpec {
        &self.spec
    }

    /// What it is doing, and did of late.
    pub(crate) fn report(&self) -> Report {
        self.board.report()
    }

    /// The copy in progress that this blob is a part of, if there is one.
    pub(crate) fn copy_of(&self, blob: BlobRef) -> Option<InProgress> {
        self.board.copy_of(blob)
    }

    /// What it has counted since it was made.
    pub(crate) fn metrics(&self) -> &Arc<CopyMetrics> {
        self.board.metrics()
    }

    /// Remembers what it has waited for up to now. To be called about every second, for [`Report::waits`].
    pub(crate) fn sample(&self) {
        self.board.sample();
    }

    pub(super) fn peer(&self, side: Side) -> &Arc<Peer> {
        match side {
            Side::Source => &self.spec.from,
            Side::Destination => &self.spec.to,
        }
    }
}
