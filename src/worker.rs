//! The worker of a route: claims entries, has them copied, settles them. Nothing else starts a copy; only the queue retries.
//!
//! ```text
//!        ┌─────────────── fill ────────────────┐    ┌─ begin ──────────┐
//! queue ─┤ both peers admit? ── claim a batch ─┼─▶ │ alone, or a pack │ ─▶ copies ──▶ judge ──▶ settle ─▶ queue
//!        └─────────────────────────────────────┘    └──────────────────┘                │
//!                                                              the peer's fault: release ┘
//! ```
//!
//! One loop picks one event at a time and applies it with plain functions; what takes time runs beside it: one fill, one
//! settlement, and the copies. Everything in flight is owned by the loop and ends with it.
//!
//! - **Small blobs go in packs** where both peers can: what is ready, in order, up to a megabyte or 256 of them; nothing waits
//!   for a pack to fill. Large blobs, repairs, and whoever has failed before go alone, by a stream of their own.
//! - `workers` is the number of blobs that are copied alone at a time, and again the number of packs: neither kind waits
//!   for the other, and each has half of the route's `bytes_in_flight`. So that large blobs which stand before small ones do not
//!   hide them, some entries are claimed ahead; whatever stops copying releases them.
//! - Both breakers are asked before anything is claimed: closed, all workers; probing, one entry alone, each time another where
//!   there is another; open, none. A peer's fault releases the claim and charges nobody.
//! - Whose fault a failed copy was is for [`CopyError`](crate::copy::CopyError) to say; `suspects` finds the entry that alone
//!   draws a peer's errors, and `streaks` the peer that has one fault with every blob. A pack's blobs are judged one by one.
//! - What has been copied while a settlement was being written is settled together in the next; a lone one at once.
//! - Limits are read live. A paused route claims nothing and asks nothing of its peers; what is in flight ends by itself, also
//!   where workers are taken away. A rate holds a claimed entry back before its copy starts, by releasing it.
//! - Wake-ups are hints: a lost one costs a poll interval.
//! - A claim is a guard. Whatever drops a copy, the stop of the whole process included, releases its entries.

mod attempt;
mod budget;
mod judge;
mod lanes;
mod pace;
mod packs;
mod probes;
mod question;
mod report;
mod run;
#[cfg(test)]
mod simulation;
mod streaks;
mod suspects;
mod traced;
mod waiting;

pub use pace::{Wait, Waits};
pub use report::{Activity, ErrorGroup, InProgress, LagPercentiles, Rate, Report};

use crate::backoff::{Backoff, Patience};
use crate::blob::BlobRef;
use crate::clock::{Clock, Entropy};
use crate::limits::{Limits, Throttle};
use crate::metrics::CopyMetrics;
use crate::peer::Peer;
use crate::queue::failures::Failures;
use crate::queue::{Queue, RouteId};
use crate::telemetry::Tracer;
use budget::Budget;
use probes::Probes;
use report::Board;
use run::Run;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use streaks::Streaks;
use suspects::Suspects;
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
    /// Mends what failed; the same queue.
    pub failures: Arc<dyn Failures>,
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
    evidence: Mutex<Evidence>,
    throttle: Arc<Throttle>,
    budget: Budget,
    /// Whether those that are to be tried again get the larger half of a lane's next claims.
    due_turns: [AtomicBool; 2],
}

/// What failures and successes of late say of entries and peers.
#[derive(Default)]
struct Evidence {
    suspects: Suspects,
    streaks: Streaks,
    probes: Probes,
}

impl Worker {
    /// A worker that does nothing before it is [run](Self::run).
    pub fn new(spec: RouteSpec, deps: Deps) -> Arc<Self> {
        let metrics = Arc::new(CopyMetrics::new(spec.from.name().clone(), spec.to.name().clone()));
        let board = Board::new(deps.clock.clone(), metrics);
        let throttle = Throttle::new(deps.clock.clone());
        throttle.set(&spec.limits.borrow());
        let budget = Budget::new(spec.bytes_in_flight);
        Arc::new(Self {
            spec,
            deps,
            board,
            evidence: Mutex::default(),
            throttle,
            budget,
            due_turns: [true, true].map(AtomicBool::new),
        })
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
        Run::new(self).until_drained(&stop, &abort).await;
    }

    fn limits(&self) -> Limits {
        *self.spec.limits.borrow()
    }

    fn evidence(&self) -> MutexGuard<'_, Evidence> {
        self.evidence.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
