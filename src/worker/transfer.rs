//! A job's copy: from its start to an end for each of its claims.

use super::report::ShownCopy;
use super::route::Worker;
use super::scheduler::{EntryEnd, Event, Job, JobId, Kind};
use super::traced;
use crate::copy::{CopyJob, PackEnd, PackItem, PackJob, Progress, Stage, copy_blob, copy_pack};
use crate::fault::Side;
use crate::limits::Charge;
use crate::queue::{Claim, Entry};
use crate::telemetry::Span;
use futures::FutureExt;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// A copy that has waited so long for nothing but its confirmation is told of.
const CONFIRMING: Duration = Duration::from_secs(1);

/// A copy that has moved less than the least rate for so long is told of.
const TRICKLES: Duration = Duration::from_secs(5);

/// A copy that has ended.
pub(super) struct Transferred {
    /// The claims, and how the copy of each ended.
    pub(super) ends: Vec<(Claim, EntryEnd)>,
    /// Whether the source, and the destination, have answered as a peer should.
    pub(super) answered: [bool; 2],
    pub(super) took: Duration,
    /// Those of the claims, in their order; none where nobody records.
    pub(super) spans: Vec<Span>,
    pub(super) shown: ShownCopy,
}

/// Makes a job's copy, and tells of it on the way. `None`: it panicked, which released its claims.
pub(super) async fn transfer(worker: Arc<Worker>, job: Job, news: mpsc::Sender<Event>) -> (JobId, Option<Transferred>) {
    let id = job.id;
    let copy = async {
        match job.kind {
            Kind::Alone => alone(&worker, job, &news).await,
            Kind::Packed => packed(&worker, job, &news).await,
        }
    };
    // The copier catches its own panics; nothing of this one is used again.
    (id, AssertUnwindSafe(copy).catch_unwind().await.ok().flatten())
}

async fn alone(worker: &Arc<Worker>, job: Job, news: &mpsc::Sender<Event>) -> Option<Transferred> {
    let Job { id, mut claims, size, ask_first, mut charge, is_try, .. } = job;
    let start = Instant::now();
    let claim = claims.pop()?;
    let entry = claim.entry();
    let spec = &worker.spec;
    let progress = Arc::new(Progress::new(size));
    let shown = worker.board.show(entry, Vec::new(), progress.clone());
    let job = CopyJob {
        blob: entry.blob,
        size_hint: entry.size,
        repair: entry.repair,
        receive_only: spec.receive_only,
        ask_first,
        waits: worker.deps.policy.waits,
    };
    let span = traced::begin(&worker.deps.tracer, spec, entry, waited(entry, worker.deps.clock.now()));
    let copy = copy_blob(spec.from.store(), &**spec.to.store(), &job, &progress);
    let least_rate = worker.deps.policy.waits.least_rate.into_iter().max();
    let told = Told { id, is_try, least_rate, news, progress: &progress, charge: &mut charge };
    let result = traced::carrying(&span, entry.trace.as_ref(), told.telling(copy)).await;
    progress.settling();
    _ = charge.known(Some(progress.bytes()));
    let end = match result {
        Ok(copied) => EntryEnd::Copied(copied),
        Err(error) => EntryEnd::Failed(error),
    };
    let (answered, took) = (answered(&progress), start.elapsed());
    Some(Transferred { ends: vec![(claim, end)], answered, took, spans: vec![span], shown })
}

async fn packed(worker: &Arc<Worker>, job: Job, news: &mpsc::Sender<Event>) -> Option<Transferred> {
    let Job { id, claims, max_blob_bytes, ask_first, mut charge, is_try, .. } = job;
    let start = Instant::now();
    let spec = &worker.spec;
    let size = claims.iter().map(|claim| claim.entry().size).sum();
    let progress = Arc::new(Progress::new(size));
    let others = claims.iter().skip(1).map(|claim| claim.entry().blob).collect();
    let shown = worker.board.show(claims.first()?.entry(), others, progress.clone());
    let (now, tracer) = (worker.deps.clock.now(), &worker.deps.tracer);
    let begin = |claim: &Claim| traced::begin(tracer, spec, claim.entry(), waited(claim.entry(), now));
    let spans: Vec<Span> = if tracer.is_on() { claims.iter().map(begin).collect() } else { Vec::new() };
    let items = claims.iter().enumerate().map(|(at, claim)| {
        let Entry { blob, size, trace, .. } = claim.entry();
        let span = spans.get(at).and_then(Span::context);
        PackItem { blob: *blob, size_hint: *size, trace: span.or_else(|| trace.clone()) }
    });
    let job = PackJob { receive_only: spec.receive_only, ask_first, max_blob_bytes, waits: worker.deps.policy.waits };
    let (source, destination) = (&**spec.from.store(), &**spec.to.store());
    let pack = traced::begin_pack(tracer, spec, &spans, claims.len());
    let copy = copy_pack(source, destination, items.collect(), job, &progress);
    let told = Told { id, is_try, least_rate: None, news, progress: &progress, charge: &mut charge };
    let ends = pack.within(told.telling(copy)).await;
    traced::end_pack(&pack, &ends);
    progress.settling();
    _ = charge.known(Some(progress.bytes()));
    let ends = ends.into_iter().enumerate().map(|(at, end)| match end {
        PackEnd::Ended(Ok(copied)) => EntryEnd::Copied(copied),
        PackEnd::Ended(Err(error)) => EntryEnd::Failed(error),
        PackEnd::Unanswered(error) => EntryEnd::Unanswered(error),
        PackEnd::Alone { size } => {
            spans.get(at).into_iter().for_each(traced::end_alone);
            EntryEnd::Alone(size)
        }
    });
    let ends = claims.into_iter().zip(ends.collect::<Vec<_>>()).collect();
    Some(Transferred { ends, answered: answered(&progress), took: start.elapsed(), spans, shown })
}

fn answered(progress: &Progress) -> [bool; 2] {
    [Side::Source, Side::Destination].map(|side| progress.has_answered(side))
}

fn waited(entry: &Entry, now: SystemTime) -> Duration {
    now.duration_since(entry.enqueue_time).unwrap_or_default()
}

/// What the scheduler is told of a copy before its end.
struct Told<'a> {
    id: JobId,
    is_try: bool,
    /// Fewer bytes a second are no worker's; `None`: it is not looked at.
    least_rate: Option<u64>,
    news: &'a mpsc::Sender<Event>,
    progress: &'a Progress,
    charge: &'a mut Charge,
}

impl Told<'_> {
    /// Makes the copy, and tells when a side that is being tried has answered, and when it only waits: for the confirmation,
    /// or for bytes that trickle.
    async fn telling<T>(self, copy: impl Future<Output = T>) -> T {
        let Self { id, is_try, least_rate, news, progress, charge } = self;
        let (mut trickles, mut moved) = (least_rate.map(|_| Instant::now() + TRICKLES), 0);
        let mut copy = pin!(copy);
        let mut answered = [!is_try; 2];
        let mut confirming: Option<Instant> = None;
        // Whoever does not take the news is about to end, and the copy with it.
        let tell = async |event| _ = news.send(event).await;
        loop {
            tokio::select! {
                biased;
                done = &mut copy => return done,
                () = progress.news() => {
                    if charge.known(progress.size()) {
                        // A hint was too large: nobody waits for what was charged by it.
                        tell(Event::Look).await;
                    }
                    // An answer to a question shows too little.
                    let asking = progress.stage() == Stage::Asking;
                    for (told, side) in answered.iter_mut().zip([Side::Source, Side::Destination]) {
                        if !*told && !asking && progress.has_answered(side) {
                            *told = true;
                            tell(Event::Answered(id, side)).await;
                        }
                    }
                    let now = Instant::now();
                    confirming = progress.confirming_for(now).map(|since| now + CONFIRMING.saturating_sub(since));
                }
                () = sleep_until(trickles.unwrap_or_else(Instant::now)), if trickles.is_some() => {
                    let least = least_rate.unwrap_or_default().saturating_mul(TRICKLES.as_secs());
                    // What does not move at all hangs, as a peer that is down may make it.
                    let is_slow = (1..least).contains(&progress.bytes().saturating_sub(moved));
                    moved = progress.bytes();
                    trickles = Some(Instant::now() + TRICKLES).filter(|_| !(is_slow && progress.stage() == Stage::Writing));
                    if trickles.is_none() {
                        tell(Event::Waits { job: id, holds_bytes: true }).await;
                    }
                }
                () = sleep_until(confirming.unwrap_or_else(Instant::now)), if confirming.is_some() => {
                    confirming = None;
                    if progress.confirming_for(Instant::now()).is_some() {
                        tell(Event::Waits { job: id, holds_bytes: false }).await;
                    }
                }
            }
        }
    }
}
