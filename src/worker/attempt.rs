//! Attempts: the copy of one entry, or of a pack; what is shown of it, and the worker and the bytes that it occupies.

use super::Worker;
use super::budget::Held;
use super::judge::Permits;
use super::lanes::index;
use super::packs::Joint;
use super::report::ShownCopy;
use super::suspects::Began;
use super::traced;
use super::waiting::{Kind, Waiter};
use crate::copy::{Copied, CopyError, CopyJob, PackEnd, PackItem, PackJob, Progress, copy_blob, copy_pack};
use crate::fault::FaultKind;
use crate::limits::Charge;
use crate::queue::{Claim, Entry, Lane};
use crate::telemetry::Span;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};
use tokio::time::Instant;

/// A blob from so many bytes on is asked for before it is sent, where both sides can be asked: that costs a moment, and to
/// send it in vain would cost much more.
const ASK_FROM_BYTES: u64 = 1 << 20;

/// How many copies of each lane there are, of single blobs and of packs.
#[derive(Debug, Default)]
pub(super) struct Slots([[AtomicUsize; 2]; 2]);

/// One of them, until it is dropped, and what it may use.
pub(super) struct Slot {
    slots: Arc<Slots>,
    kind: Kind,
    lane: Lane,
    charge: Charge,
    _held: Held,
}

impl Slots {
    /// How many copies of this kind there are, by lane.
    pub(super) fn of(&self, kind: Kind) -> [usize; 2] {
        Lane::ALL.map(|lane| self.0[kind as usize][index(lane)].load(Ordering::Relaxed))
    }
}

impl Slot {
    pub(super) fn take(slots: &Arc<Slots>, kind: Kind, lane: Lane, charge: Charge, held: Held) -> Self {
        slots.0[kind as usize][index(lane)].fetch_add(1, Ordering::Relaxed);
        Self { slots: slots.clone(), kind, lane, charge, _held: held }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.0[self.kind as usize][index(self.lane)].fetch_sub(1, Ordering::Relaxed);
    }
}

/// The end of a copy.
pub(super) enum Finished {
    One(Box<FinishedCopy>),
    Pack(FinishedPack),
}

/// The end of one blob's copy.
pub(super) struct FinishedCopy {
    pub(super) claim: Claim,
    pub(super) result: Result<Copied, CopyError>,
    pub(super) began: Began,
    pub(super) permits: Arc<Permits>,
    pub(super) progress: Arc<Progress>,
    pub(super) shown: ShownCopy,
    pub(super) span: Span,
}

/// The end of a pack's copy.
pub(super) struct FinishedPack {
    /// The claims, and how the copy of each ended.
    pub(super) ends: Vec<(Claim, PackEnd)>,
    pub(super) began: Began,
    pub(super) permits: Arc<Permits>,
    pub(super) shown: ShownCopy,
    /// Those of the entries, in their order; none where nobody records.
    pub(super) spans: Vec<Span>,
    pub(super) took: Duration,
}

/// Copies one entry's blob.
pub(super) async fn attempt(
    worker: Arc<Worker>,
    waiter: Waiter,
    joint: Joint,
    permits: Arc<Permits>,
    mut slot: Slot,
) -> Finished {
    let began = worker.evidence().suspects.begin();
    let Waiter { claim, size } = waiter;
    let entry = claim.entry();
    let spec = &worker.spec;
    let progress = Arc::new(Progress::new(size));
    let shown = worker.board.show(entry, Vec::new(), progress.clone());
    let job = CopyJob {
        blob: entry.blob,
        size_hint: entry.size,
        repair: entry.repair,
        receive_only: spec.receive_only,
        ask_first: may_have_arrived(entry) || (joint.stat && size.is_some_and(|size| size >= ASK_FROM_BYTES)),
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
    Finished::One(Box::new(FinishedCopy { claim, result, began, permits, progress, shown, span }))
}

/// Copies the small blobs of a pack, of which there is one at least.
pub(super) async fn attempt_pack(
    worker: Arc<Worker>,
    claims: Vec<Claim>,
    (joint, ask_first): (Joint, bool),
    permits: Arc<Permits>,
    mut slot: Slot,
) -> Option<Finished> {
    let began = worker.evidence().suspects.begin();
    let spec = &worker.spec;
    let size = claims.iter().map(|claim| claim.entry().size).sum();
    let progress = Arc::new(Progress::new(size));
    let others = claims.iter().skip(1).map(|claim| claim.entry().blob).collect();
    let shown = worker.board.show(claims.first()?.entry(), others, progress.clone());
    let now = worker.deps.clock.now();
    let tracer = &worker.deps.tracer;
    let begin = |claim: &Claim| traced::begin(tracer, spec, claim.entry(), waited(claim.entry(), now));
    let spans: Vec<Span> = if tracer.is_on() { claims.iter().map(begin).collect() } else { Vec::new() };
    let items = claims.iter().enumerate().map(|(at, claim)| {
        let Entry { blob, size, trace, .. } = claim.entry();
        let span = spans.get(at).and_then(Span::context);
        PackItem { blob: *blob, size_hint: *size, trace: span.or_else(|| trace.clone()) }
    });
    let job = PackJob {
        receive_only: spec.receive_only,
        ask_first,
        max_blob_bytes: joint.blob_bytes,
        idle_timeout: worker.deps.policy.idle_timeout,
    };
    let start = Instant::now();
    let (source, destination) = (&**spec.from.store(), &**spec.to.store());
    let pack = traced::begin_pack(tracer, spec, &spans, claims.len());
    let ends = pack.within(copy_pack(source, destination, items.collect(), job, &progress)).await;
    traced::end_pack(&pack, &ends);
    progress.settling();
    slot.charge.known(Some(progress.bytes()));
    drop(slot);
    let ends = claims.into_iter().zip(ends).collect();
    Some(Finished::Pack(FinishedPack { ends, began, permits, shown, spans, took: start.elapsed() }))
}

/// Whether the blob may have arrived by an earlier attempt whose answer was lost. A destination whose word was wrong is not
/// asked for it.
fn may_have_arrived(entry: &Entry) -> bool {
    entry.attempts > 0
        && entry.failure.as_ref().is_none_or(|failure| failure.kind != FaultKind::DestinationConfirmedOther)
}

fn waited(entry: &Entry, now: SystemTime) -> Duration {
    now.duration_since(entry.enqueue_time).unwrap_or_default()
}
