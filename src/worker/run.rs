//! The loop of a worker: it picks one event at a time and applies it.

mod limited;

use super::attempt::{Finished, Slot, Slots, attempt};
use super::judge::{Permits, Verdict};
use super::lanes::{Lanes, index};
use super::pace::Wait;
use super::question::{Answer, ask};
use super::report::{Activity, ShownCopy};
use super::{Deps, Evidence, Worker, traced};
use crate::blob::BlobMeta;
use crate::failpoint::{self, Point};
use crate::fault::FaultKind;
use crate::peer::{Admission, Peer};
use crate::queue::failures::Remedy;
use crate::queue::{Claim, Entry, Lane, Outcome, Queue, QueueError};
use crate::telemetry::Span;
use futures::future::BoxFuture;
use limited::Turns;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long to leave the queue alone after it failed.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// The shortest rest; whatever the clocks say, the loop never spins.
const SHORTEST_REST: Duration = Duration::from_millis(5);

/// How often the peers of an idle route are asked whether they are there.
const IDLE_CHECK: Duration = Duration::from_secs(15);

/// The state of the loop.
pub(super) struct Run {
    worker: Arc<Worker>,
    copies: JoinSet<Finished>,
    slots: Arc<Slots>,
    lanes: Lanes,
    turns: Turns,
    filling: Option<BoxFuture<'static, Fill>>,
    // Copied, and not yet being settled.
    judged: Vec<Judged>,
    settling: Option<BoxFuture<'static, Settled>>,
    // Sources asked for what was copied earlier.
    asking: JoinSet<Answer>,
    // Between fills: what ends the pause.
    rest: Option<Rest>,
    checked_peers: Option<Duration>,
}

/// A pause between fills.
#[derive(Clone, Copy, Debug)]
struct Rest {
    until: Instant,
    // Whether news from the queue end it.
    on_queue: bool,
    // Whether a change of a peer's state ends it. Not while the queue fails: a probe that came to nothing is such a change.
    on_peers: bool,
}

/// A copy whose outcome is to be recorded.
struct Judged {
    claim: Claim,
    outcome: Outcome,
    // Of a discarded one.
    cause: Option<String>,
    shown: ShownCopy,
    span: Span,
}

/// The end of a settlement.
struct Settled {
    result: Result<(), QueueError>,
    notes: Vec<Note>,
}

/// What is remembered of an entry while it is being settled.
struct Note {
    entry: Entry,
    // Size, and whether bytes were sent; absent where it was not confirmed.
    confirmed: Option<(u64, bool)>,
    // Given up; and why, where it is discarded.
    parked: bool,
    cause: Option<String>,
    _shown: ShownCopy,
    // Ends when it is settled.
    _span: Span,
}

/// What a fill brought.
struct Fill {
    claims: Vec<Claim>,
    // Absent where nothing was claimed.
    permits: Option<Arc<Permits>>,
    activity: Activity,
    rest: Option<Rest>,
    checked_peers: bool,
}

impl Fill {
    fn nothing(activity: Activity, rest: Duration, on_queue: bool) -> Self {
        let on_peers = !matches!(activity, Activity::QueueFailed(_));
        let rest = Rest { until: Instant::now() + rest.max(SHORTEST_REST), on_queue, on_peers };
        Self { claims: Vec::new(), permits: None, activity, rest: Some(rest), checked_peers: false }
    }
}

impl Run {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self {
            worker,
            copies: JoinSet::new(),
            slots: Arc::default(),
            lanes: Lanes::default(),
            turns: Turns::default(),
            filling: None,
            judged: Vec::new(),
            settling: None,
            asking: JoinSet::new(),
            rest: None,
            checked_peers: None,
        }
    }

    pub(super) async fn until_drained(mut self, stop: &CancellationToken, abort: &CancellationToken) {
        let spec = &self.worker.clone().spec;
        let mut queue = self.worker.deps.queue.subscribe(spec.id);
        let mut from = spec.from.changes();
        let mut to = spec.to.changes();
        let mut limits = spec.limits.clone();
        let mut stopping = stop.is_cancelled();
        loop {
            self.settle();
            if stopping {
                // Waiting may be dropped at any point; claims that it got are released.
                self.filling = None;
                if self.copies.is_empty() && self.settling.is_none() {
                    break;
                }
            } else if self.wants_more() {
                // What changes from here on ends the rest that this fill may lead to.
                queue.mark_unchanged();
                from.mark_unchanged();
                to.mark_unchanged();
                self.fill();
            }
            self.worker.board.set_free(self.free(), self.free_for());
            let rests = !stopping && self.filling.is_none() && self.rest.is_some();
            let rest = self.rest.unwrap_or(Rest { until: Instant::now(), on_queue: false, on_peers: false });
            tokio::select! {
                biased;
                () = abort.cancelled() => {
                    self.abort().await;
                    break;
                }
                () = stop.cancelled(), if !stopping => stopping = true,
                () = changed(&mut limits) => {
                    limits.mark_unchanged();
                    self.on_limits();
                }
                settled = maybe(&mut self.settling) => {
                    self.settling = None;
                    self.on_settled(settled);
                }
                Some(finished) = self.copies.join_next() => {
                    self.on_finished(finished);
                    while let Some(finished) = self.copies.try_join_next() {
                        self.on_finished(finished);
                    }
                }
                Some(answer) = self.asking.join_next() => {
                    if let Ok(Answer { question, vanished }) = answer {
                        self.worker.answered(&question, vanished);
                    }
                }
                fill = maybe(&mut self.filling) => {
                    self.filling = None;
                    self.on_filled(fill);
                }
                () = changed(&mut from), if rests && rest.on_peers => self.rest = None,
                () = changed(&mut to), if rests && rest.on_peers => self.rest = None,
                () = changed(&mut queue), if rests && rest.on_queue => self.rest = None,
                () = sleep_until(rest.until), if rests => self.rest = None,
            }
        }
        self.worker.board.set_activity(Activity::Stopped);
    }

    fn free(&self) -> usize {
        self.workers().saturating_sub(self.copies.len())
    }

    /// What the free slots wait for.
    fn free_for(&self) -> Wait {
        if self.rest.is_none() {
            return Wait::Queue;
        }
        match self.worker.board.activity() {
            Activity::WaitingForPeer(_) => Wait::Breaker,
            Activity::Paused | Activity::RateLimited => Wait::Limit,
            Activity::QueueFailed(_) => Wait::Queue,
            Activity::Ready | Activity::Stopped => Wait::Work,
        }
    }

    fn wants_more(&self) -> bool {
        // When the queue writes slowly, copying must not run ahead of it without bound.
        let unsettled = self.judged.len() < 2 * self.workers().max(32);
        self.filling.is_none() && self.rest.is_none() && self.free() > 0 && unsettled
    }

    fn fill(&mut self) {
        let counts = self.worker.deps.queue.counts(self.worker.spec.id);
        let has_work =
            [counts.fresh, counts.backfill].map(|lane| lane.ready.entries.saturating_add(lane.retrying.entries) > 0);
        let in_flight = Lane::ALL.map(|lane| self.slots.of(lane));
        let Some(room) = self.room(has_work) else { return };
        let shares = self.lanes.share(in_flight[0] + in_flight[1] + room, in_flight, has_work);
        let now = self.worker.deps.clock.monotonic();
        let check = self.checked_peers.is_none_or(|checked| now.saturating_sub(checked) >= IDLE_CHECK);
        let order = FillOrder { shares, has_work, free: room, check };
        self.filling = Some(Box::pin(fill(self.worker.clone(), order)));
    }

    fn on_filled(&mut self, fill: Fill) {
        if fill.checked_peers {
            self.checked_peers = Some(self.worker.deps.clock.monotonic());
        }
        self.rest = fill.rest;
        if matches!(fill.activity, Activity::WaitingForPeer(_))
            && self.worker.spec.from.open_for() == Some((FaultKind::StoreIdChanged, true))
        {
            self.worker.evidence().streaks.impostor();
        }
        self.set_activity(fill.activity);
        let Some(permits) = fill.permits.filter(|_| !self.worker.limits().paused) else { return };
        for claim in self.turns.order(fill.claims) {
            let charge = match self.worker.throttle.begin(claim.entry().size) {
                Ok(charge) => charge,
                // This one and those behind it are released, in their order.
                Err(until) => return self.rest_for_rate(until),
            };
            self.turns.took(claim.entry().lane);
            let slot = Slot::take(&self.slots, claim.entry().lane, charge);
            self.copies.spawn(attempt(self.worker.clone(), claim, permits.clone(), slot));
        }
    }

    fn set_activity(&self, activity: Activity) {
        let name = &self.worker.spec.name;
        let before = self.worker.board.set_activity(activity.clone());
        match (before, activity) {
            (before, Activity::QueueFailed(error)) if !matches!(before, Activity::QueueFailed(_)) => {
                tracing::error!(route = %name, %error, "the queue fails, copying pauses");
            }
            (Activity::QueueFailed(_), Activity::Ready) => tracing::info!(route = %name, "the queue works again"),
            _ => {}
        }
    }

    fn on_finished(&mut self, finished: Result<Finished, tokio::task::JoinError>) {
        let finished = match finished {
            Ok(finished) => finished,
            // The copier's own panics are caught closer by; this one released its claim as it unwound.
            Err(error) => return tracing::error!(route = %self.worker.spec.name, %error, "a copy was lost"),
        };
        let Verdict { outcome, question } = finished.span.inside(|| self.worker.judge(&finished));
        traced::end(&finished.span, finished.claim.entry(), &finished.result, outcome.as_ref());
        if let Some(question) = question {
            self.asking.spawn(ask(self.worker.clone(), question));
        }
        if let Some(outcome) = outcome {
            let Finished { claim, result, shown, span, .. } = finished;
            let discards = matches!(outcome, Outcome::Discard);
            let cause = result.err().filter(|_| discards).map(|error| error.to_string());
            self.judged.push(Judged { claim, outcome, cause, shown, span });
        }
    }

    /// Settles what has been judged so far, unless a settlement is under way.
    fn settle(&mut self) {
        if self.settling.is_some() {
            return;
        }
        // Whoever is to be forgiven is settled already, or will be in this batch.
        let forgiven = self.worker.evidence().streaks.take_forgiven();
        if self.judged.is_empty() && forgiven.is_empty() {
            return;
        }
        let mut notes = Vec::with_capacity(self.judged.len());
        let mut settled = Vec::with_capacity(self.judged.len());
        for Judged { claim, outcome, cause, shown, span } in self.judged.drain(..) {
            let confirmed = match &outcome {
                Outcome::Confirmed { size, copied, .. } => Some((*size, *copied)),
                _ => None,
            };
            let parked = matches!(outcome, Outcome::Park { .. });
            notes.push(Note { entry: claim.entry().clone(), confirmed, parked, cause, _shown: shown, _span: span });
            settled.push((claim, outcome));
        }
        let (spec, deps) = (&self.worker.spec, &self.worker.deps);
        let (route, name, queue, failures) = (spec.id, spec.name.clone(), deps.queue.clone(), deps.failures.clone());
        self.settling = Some(Box::pin(async move {
            let result = if settled.is_empty() { Ok(()) } else { settle(queue, settled).await };
            if !forgiven.is_empty()
                && let Err(error) = failures.remedy(route, forgiven, Remedy::Revive).await
            {
                tracing::warn!(route = %name, %error, "attempts that were a peer's fault stay charged");
            }
            Settled { result, notes }
        }));
    }

    fn on_settled(&mut self, settled: Settled) {
        if let Err(error) = settled.result {
            self.worker.board.queue_failed(&error.to_string());
            self.set_activity(Activity::QueueFailed(error.to_string()));
            self.filling = None;
            self.rest = Some(Rest { until: Instant::now() + QUEUE_PAUSE, on_queue: false, on_peers: false });
            return;
        }
        let mut evidence = self.worker.evidence();
        for Note { entry, confirmed, parked, cause, .. } in &settled.notes {
            if let Some((size, copied)) = *confirmed {
                self.worker.board.confirmed(entry.lane, entry.enqueue_time, size, copied);
                evidence.streaks.confirmed(BlobMeta { blob: entry.blob, size });
            }
            if let Some(cause) = cause {
                let (route, waited) = (&self.worker.spec.name, humantime::format_duration(entry.misses.lasted));
                tracing::warn!(%route, blob = %entry.blob, %waited, %cause, "discarded, as retry.on_missing says");
            }
            if confirmed.is_some() || *parked || cause.is_some() {
                evidence.suspects.forget(entry.seq);
            }
        }
    }

    /// Drops the copies in flight, which releases their claims, and records what was copied already.
    async fn abort(&mut self) {
        self.filling = None;
        self.copies.abort_all();
        while let Some(finished) = self.copies.join_next().await {
            match finished {
                Err(error) if error.is_cancelled() => {}
                finished => self.on_finished(finished),
            }
        }
        self.asking.shutdown().await;
        while self.settling.is_some() || !self.judged.is_empty() {
            if let Some(settling) = self.settling.take() {
                let settled = settling.await;
                self.on_settled(settled);
            }
            self.settle();
        }
    }
}

/// What a fill is to bring.
#[derive(Clone, Copy)]
struct FillOrder {
    shares: [usize; 2],
    has_work: [bool; 2],
    free: usize,
    // Ask the peers whether they are there, even if there is nothing to do.
    check: bool,
}

async fn fill(worker: Arc<Worker>, order: FillOrder) -> Fill {
    let Worker { spec, deps, .. } = &*worker;
    let poll = deps.policy.poll_interval;
    let idle = order.has_work == [false, false];
    let peers_closed = spec.from.is_closed() && spec.to.is_closed();
    if idle && peers_closed && !order.check {
        return Fill::nothing(Activity::Ready, poll, true);
    }
    // By name, so that two routes in opposite directions do not take a probe each, and wait for the other's.
    let mut peers = [&spec.from, &spec.to];
    peers.sort_by_key(|peer| peer.name().clone());
    if let Some((peer, until)) = peers.iter().find_map(|peer| Some((peer, peer.wait_until()?))) {
        return wait_for(deps, peer, until);
    }
    let mut permits = Vec::with_capacity(2);
    let mut probing = false;
    for peer in peers {
        match peer.admit().await {
            Admission::Go(permit) => permits.push(permit),
            Admission::Probe(permit) => {
                probing = true;
                permits.push(permit);
            }
            Admission::Wait(until) => return wait_for(deps, peer, until),
        }
    }
    let [Some(second), Some(first)] = [permits.pop(), permits.pop()] else {
        return Fill::nothing(Activity::Ready, poll, true);
    };
    let from_is_first = Arc::ptr_eq(first.peer(), &spec.from);
    let permits = if from_is_first { Permits { from: first, to: second } } else { Permits { from: second, to: first } };

    if !probing {
        worker.evidence().probes.done();
    }
    let claimed = if probing { claim_probe(&worker).await } else { claim_shares(&worker, order).await };
    let claims = match claimed {
        Ok(claims) => claims,
        Err(error) => {
            worker.board.queue_failed(&error.to_string());
            return Fill::nothing(Activity::QueueFailed(error.to_string()), QUEUE_PAUSE, false);
        }
    };
    if claims.is_empty() && probing {
        // There is nothing to probe with. Both have just said who they are, which must do.
        permits.from.succeeded();
        permits.to.succeeded();
    }
    let wanted = if probing { 1 } else { order.free };
    let rest = if claims.len() < wanted { Some(rest_until_due(&worker, poll).await) } else { None };
    Fill { claims, permits: Some(Arc::new(permits)), activity: Activity::Ready, rest, checked_peers: true }
}

fn wait_for(deps: &Deps, peer: &Arc<Peer>, until: Duration) -> Fill {
    let pause = until.saturating_sub(deps.clock.monotonic());
    Fill::nothing(Activity::WaitingForPeer(peer.name().clone()), pause, false)
}

/// Up to the ordered shares; what one lane cannot use goes to the other.
async fn claim_shares(worker: &Worker, order: FillOrder) -> Result<Vec<Claim>, QueueError> {
    let mut claims = Vec::new();
    let mut exhausted = [!order.has_work[0], !order.has_work[1]];
    for lane in Lane::ALL {
        let share = order.shares[index(lane)];
        if share > 0 {
            let some = claim(worker, lane, share).await?;
            exhausted[index(lane)] = some.len() < share;
            claims.extend(some);
        }
    }
    for lane in Lane::ALL {
        let left = order.free.saturating_sub(claims.len());
        if left > 0 && !exhausted[index(lane)] {
            claims.extend(claim(worker, lane, left).await?);
        }
    }
    Ok(claims)
}

/// One entry; see [`Probes`](super::probes::Probes). The others are released.
async fn claim_probe(worker: &Worker) -> Result<Vec<Claim>, QueueError> {
    let (lanes, reach) = {
        let Evidence { probes, .. } = &*worker.evidence();
        (probes.lanes(), probes.reach())
    };
    for lane in lanes {
        let mut claims = claim(worker, lane, reach).await?;
        let entries: Vec<&Entry> = claims.iter().map(Claim::entry).collect();
        let Evidence { probes, suspects, .. } = &mut *worker.evidence();
        let pick = |bound| usize::try_from(worker.deps.entropy.below(bound as u64)).unwrap_or(0);
        if let Some(chosen) = probes.choose(&entries, |seq| suspects.is_suspect(seq), pick) {
            return Ok(vec![claims.swap_remove(chosen)]);
        }
    }
    Ok(Vec::new())
}

async fn claim(worker: &Worker, lane: Lane, max: usize) -> Result<Vec<Claim>, QueueError> {
    let Deps { queue, clock, .. } = &worker.deps;
    queue.claim(worker.spec.id, lane, max, clock.now()).await
}

async fn settle(queue: Arc<dyn Queue>, settled: Vec<(Claim, Outcome)>) -> Result<(), QueueError> {
    failpoint::pause(Point::WorkerSettle).await?;
    queue.settle(settled).await
}

/// Rests until the next retry is due, and no longer than a poll interval.
async fn rest_until_due(worker: &Worker, poll: Duration) -> Rest {
    let Deps { queue, clock, .. } = &worker.deps;
    let counts = queue.counts(worker.spec.id);
    let mut pause = poll;
    if counts.fresh.retrying.entries + counts.backfill.retrying.entries > 0
        && let Ok(oldest) = queue.oldest(worker.spec.id).await
        && let Some(due) = oldest.next_due
    {
        pause = pause.min(due.duration_since(clock.now()).unwrap_or_default());
    }
    Rest { until: Instant::now() + pause.max(SHORTEST_REST), on_queue: true, on_peers: true }
}

async fn maybe<T>(future: &mut Option<BoxFuture<'static, T>>) -> T {
    match future {
        Some(future) => future.await,
        None => std::future::pending().await,
    }
}

async fn changed<T>(news: &mut watch::Receiver<T>) {
    if news.changed().await.is_err() {
        // Nobody is left to tell any.
        std::future::pending().await
    }
}
