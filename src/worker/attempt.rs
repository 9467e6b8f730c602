//! One attempt at one entry: the copy, what is shown of it, and the worker that it occupies.

use super::Worker;
use super::judge::Permits;
use super::lanes::index;
use super::report::ShownCopy;
use super::suspects::Began;
use super::traced;
use crate::copy::{Copied, CopyError, CopyJob, Progress, copy_blob};
use crate::fault::FaultKind;
use crate::limits::Charge;
use crate::queue::{Claim, Entry, Lane};
use crate::telemetry::Span;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

/// How many copies of each lane there are.
#[derive(Debug, Default)]
pub(super) struct Slots([AtomicUsize; 2]);

/// One of them, until it is dropped.
pub(super) struct Slot {
    slots: Arc<Slots>,
    lane: Lane,
    charge: Charge,
}

impl Slots {
    pub(super) fn of(&self, lane: Lane) -> usize {
        self.0[index(lane)].load(Ordering::Relaxed)
    }
}

impl Slot {
    pub(super) fn take(slots: &Arc<Slots>, lane: Lane, charge: Charge) -> Self {
        slots.0[index(lane)].fetch_add(1, Ordering::Relaxed);
        Self { slots: slots.clone(), lane, charge }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.0[index(self.lane)].fetch_sub(1, Ordering::Relaxed);
    }
}

/// The end of one copy.
pub(super) struct Finished {
    pub(super) claim: Claim,
    pub(super) result: Result<Copied, CopyError>,
    pub(super) began: Began,
    pub(super) permits: Arc<Permits>,
    pub(super) progress: Arc<Progress>,
    pub(super) shown: ShownCopy,
    pub(super) span: Span,
}

/// Copies one entry's blob.
pub(super) async fn attempt(worker: Arc<Worker>, claim: Claim, permits: Arc<Permits>, mut slot: Slot) -> Finished {
    let began = worker.evidence().suspects.begin();
    let entry = claim.entry();
    let spec = &worker.spec;
    let progress = Arc::new(Progress::new(entry.size));
    let shown = worker.board.show(entry, progress.clone());
    let job = CopyJob {
        blob: entry.blob,
        size_hint: entry.size,
        repair: entry.repair,
        receive_only: spec.receive_only,
        ask_first: asks_first(entry),
        idle_timeout: worker.deps.policy.idle_timeout,
    };
    let queue_wait = waited(entry, worker.deps.clock.now());
    let span = traced::begin(&worker.deps.tracer, spec, entry, queue_wait);
    let result = async {
        let mut copy = pin!(copy_blob(spec.from.store(), &**spec.to.store(), &job, &progress));
        loop {
            tokio::select! {
                biased;
                result = &mut copy => break result,
                () = progress.news() => {
                    permits.tell_heard(&progress);
                    slot.charge.known(progress.size());
                }
            }
        }
    };
    let result = traced::carrying(&span, entry.trace.as_ref(), result).await;
    progress.settling();
    slot.charge.known(Some(progress.bytes()));
    drop(slot);
    Finished { claim, result, began, permits, progress, shown, span }
}

/// Whether the blob may have arrived by an earlier attempt whose answer was lost. A destination whose word was wrong is not
/// asked for it.
fn asks_first(entry: &Entry) -> bool {
    entry.attempts > 0
        && entry.failure.as_ref().is_none_or(|failure| failure.kind != FaultKind::DestinationConfirmedOther)
}

fn waited(entry: &Entry, now: SystemTime) -> Duration {
    now.duration_since(entry.enqueue_time).unwrap_or_default()
}
