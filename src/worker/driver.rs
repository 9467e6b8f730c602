//! The loop of a worker: it waits for one event at a time, has the scheduler decide, and does what it says.
//!
//! Everything in flight is owned by the loop and ends with it: copies as tasks of their own, and what is asked of the queue and
//! of the peers. A claim is a guard, so whatever drops a copy, the stop of the whole process included, releases its entries.

use super::report::{Activity, Confirmed, ShownCopy};
use super::route::Worker;
use super::scheduler::{Conclusion, Effect, Event, Fate, JobId, Moment, Pause, Peers, ScheduledRoute, Scheduler, Step};
use super::transfer::{Transferred, transfer};
use super::{pace::Wait, traced};
use crate::blob::{BlobMeta, BlobRef};
use crate::failpoint::{self, Point};
use crate::fault::{FailureClass, Side};
use crate::limits::Throttle;
use crate::peer::{Locked, Peer};
use crate::queue::{Claim, Outcome, Queue, QueueError};
use crate::telemetry::Span;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use std::collections::HashSet;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

/// The shortest time to the next look; whatever the clocks say, the loop never spins.
const SHORTEST_REST: Duration = Duration::from_millis(1);

/// How long a peer in doubt may take to answer whether it is well.
const CANARY: Duration = Duration::from_secs(5);

/// News of copies that wait to be read.
const NEWS: usize = 64;

/// What was asked has come back.
enum Reply {
    Event(Event),
    Settled(Result<(), QueueError>, Vec<Confirmed>, Pending),
}

/// What is held until the outcomes of the copies are recorded: they are shown, and their spans end, only then.
#[derive(Default)]
struct Pending {
    shown: Vec<ShownCopy>,
    spans: Vec<Span>,
}

impl Worker {
    /// Works until `stop`, then claims no more and returns when what is in flight has been copied and settled; or until
    /// `abort`, which cancels the copies in flight, releases their claims, and settles what was copied already.
    pub(crate) async fn run(self: Arc<Self>, stop: CancellationToken, abort: CancellationToken) {
        Driver::new(self).until_drained(&stop, &abort).await;
    }
}

/// See the module's header.
struct Driver {
    worker: Arc<Worker>,
    scheduler: Scheduler,
    copies: JoinSet<(JobId, Option<Transferred>)>,
    in_flight: HashSet<JobId>,
    replies: FuturesUnordered<BoxFuture<'static, Reply>>,
    news: (mpsc::Sender<Event>, mpsc::Receiver<Event>),
    pending: Pending,
}

impl Driver {
    fn new(worker: Arc<Worker>) -> Self {
        let (spec, deps) = (&worker.spec, &worker.deps);
        let route = ScheduledRoute {
            id: spec.id,
            from: spec.from.name().clone(),
            to: spec.to.name().clone(),
            next: spec.next.clone(),
            bytes_in_flight: spec.bytes_in_flight,
            policy: deps.policy,
        };
        let throttle = Throttle::new(deps.clock.clone());
        let scheduler = Scheduler::new(route, *spec.limits.borrow(), throttle, deps.entropy.clone());
        Self {
            worker,
            scheduler,
            copies: JoinSet::new(),
            in_flight: HashSet::new(),
            replies: FuturesUnordered::new(),
            news: mpsc::channel(NEWS),
            pending: Pending::default(),
        }
    }

    /// Works until `stop`, then claims no more and returns when what is in flight has been copied and settled; or until
    /// `abort`.
    async fn until_drained(mut self, stop: &CancellationToken, abort: &CancellationToken) {
        let worker = self.worker.clone();
        let (spec, deps) = (&worker.spec, &worker.deps);
        let mut queue = deps.queue.subscribe(spec.id);
        let (mut from, mut to, mut limits) = (spec.from.changes(), spec.to.changes(), spec.limits.clone());
        let mut stopping = stop.is_cancelled();
        self.apply(if stopping { Event::Stop } else { Event::Look });
        while !(stopping && self.scheduler.is_drained()) {
            let wake = self.scheduler.wake_at().map(|at| {
                let wait = at.since(deps.clock.monotonic());
                Instant::now() + wait.max(SHORTEST_REST)
            });
            tokio::select! {
                biased;
                () = abort.cancelled() => {
                    self.abort().await;
                    break;
                }
                () = stop.cancelled(), if !stopping => {
                    stopping = true;
                    self.apply(Event::Stop);
                }
                () = changed(&mut limits) => {
                    let now = *limits.borrow_and_update();
                    self.apply(Event::Limits(now));
                }
                Some(reply) = self.replies.next() => self.on_reply(reply),
                Some(ended) = self.copies.join_next() => self.on_ended(ended),
                Some(event) = self.news.1.recv() => self.apply(event),
                () = changed(&mut from) => {
                    from.mark_unchanged();
                    self.apply(Event::Look);
                }
                () = changed(&mut to) => {
                    to.mark_unchanged();
                    self.apply(Event::Look);
                }
                () = changed(&mut queue), if !stopping => {
                    let now = *queue.borrow_and_update();
                    self.apply(Event::Queue(now));
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now)), if wake.is_some() => self.apply(Event::Look),
            }
        }
        worker.board.set_activity(Activity::Stopped);
    }

    /// Drops the copies in flight, which releases their claims, and records what was copied already.
    async fn abort(&mut self) {
        self.apply(Event::Stop);
        self.copies.abort_all();
        while let Some(ended) = self.copies.join_next().await {
            self.on_ended(ended);
        }
        for job in std::mem::take(&mut self.in_flight) {
            self.apply(Event::Lost(job));
        }
        while !self.scheduler.is_recorded()
            && let Some(reply) = self.replies.next().await
        {
            self.on_reply(reply);
        }
    }

    fn on_reply(&mut self, reply: Reply) {
        match reply {
            Reply::Event(event) => {
                if let Event::Claimed(_, Err(error)) = &event {
                    self.worker.board.queue_failed(&error.to_string());
                }
                self.apply(event);
            }
            Reply::Settled(result, confirmed, pending) => {
                match &result {
                    Ok(()) => self.worker.board.confirmed(confirmed),
                    Err(error) => self.worker.board.queue_failed(&error.to_string()),
                }
                let Pending { shown, spans } = pending;
                drop((shown, spans));
                self.apply(Event::Settled(result));
            }
        }
    }

    fn on_ended(&mut self, ended: Result<(JobId, Option<Transferred>), tokio::task::JoinError>) {
        match ended {
            Ok((job, Some(transferred))) => {
                self.in_flight.remove(&job);
                let Transferred { ends, answered, took, spans, shown } = transferred;
                let (spans, shown) = (spans.into_iter().map(Some).collect(), Some(shown));
                self.apply_to(Event::Ended { job, ends, answered, took }, &mut JobRemains { spans, shown });
            }
            Ok((job, None)) => {
                self.in_flight.remove(&job);
                tracing::error!(route = %self.worker.spec.name, "a copy was lost in a panic");
                self.apply(Event::Lost(job));
            }
            Err(error) if error.is_cancelled() => {}
            Err(error) => tracing::error!(route = %self.worker.spec.name, %error, "a copy was lost"),
        }
    }

    fn apply(&mut self, event: Event) {
        self.apply_to(event, &mut JobRemains { spans: Vec::new(), shown: None });
    }

    /// Has the scheduler decide, and does what it says.
    fn apply_to(&mut self, event: Event, ended: &mut JobRemains) {
        let (spec, deps) = (&self.worker.spec, &self.worker.deps);
        let counts = deps.queue.counts(spec.id);
        let now = Moment::now(&*deps.clock);
        let effects = {
            let (mut from, mut to) = both(&spec.from, &spec.to);
            self.scheduler.apply(event, Step::new(now, &counts, Peers { from: &mut from, to: &mut to }))
        };
        for effect in effects {
            self.perform(effect, ended);
        }
        self.show();
    }

    fn perform(&mut self, effect: Effect, ended: &mut JobRemains) {
        let worker = self.worker.clone();
        match effect {
            Effect::Claim(feed, request) => self.replies.push(Box::pin(async move {
                let claim = AssertUnwindSafe(worker.deps.queue.claim(request)).catch_unwind();
                let panicked = |_| Err(QueueError::Read("claiming panicked".to_owned()));
                Reply::Event(Event::Claimed(feed, claim.await.unwrap_or_else(panicked)))
            })),
            Effect::Start(job) => {
                self.in_flight.insert(job.id);
                self.copies.spawn(transfer(worker, job, self.news.0.clone()));
            }
            Effect::Conclude(conclusion) => self.conclude(&conclusion, ended),
            Effect::Settle(settled) => {
                let confirmed = settled.iter().filter_map(|(claim, outcome)| confirmed(claim, outcome)).collect();
                let pending = std::mem::take(&mut self.pending);
                self.replies.push(Box::pin(async move {
                    let result = settle(&*worker.deps.queue, settled).await;
                    Reply::Settled(result, confirmed, pending)
                }));
            }
            Effect::Identify(side) => self.replies.push(Box::pin(async move {
                worker.peer(side).identify().await;
                Reply::Event(Event::Look)
            })),
            Effect::Ask(side, sample) => self.replies.push(Box::pin(async move {
                let (well, held) = canary(worker.peer(side), &sample).await;
                Reply::Event(Event::Asked { side, well, held })
            })),
        }
    }

    /// Tells people how an entry's attempt went.
    fn conclude(&mut self, conclusion: &Conclusion, ended: &mut JobRemains) {
        let Conclusion { job, blob, attempt, result, fate, weight, .. } = conclusion;
        let span = job.and_then(|(_, place)| ended.spans.get_mut(place)?.take()).unwrap_or_default();
        if let Err(error) = result {
            let (route, peer) = (&self.worker.spec.name, self.worker.peer(error.side).name());
            let is_answer = matches!(error.class, FailureClass::Answer { .. } | FailureClass::Panicked);
            let charged = is_answer || weight.0 > 0;
            self.worker.board.copy_failed(*blob, peer, error, charged);
            span.inside(|| match fate {
                Fate::Discarded => {
                    tracing::warn!(%route, %blob, %peer, attempt, %error, "discarded, as retry.on_missing says");
                }
                Fate::Parked => tracing::warn!(%route, %blob, %peer, attempt, parked = true, %error, "copy failed"),
                _ if charged => tracing::warn!(%route, %blob, %peer, attempt, parked = false, %error, "copy failed"),
                _ => tracing::debug!(%route, %blob, %peer, attempt, %error, "copy failed, the entry is not charged"),
            });
            match fate {
                Fate::Retried => self.worker.metrics().retried(),
                Fate::Parked => self.worker.metrics().parked(),
                Fate::Confirmed | Fate::Discarded | Fate::Kept => {}
            }
        }
        traced::end(&span, conclusion);
        if *fate != Fate::Kept {
            self.pending.shown.extend(ended.shown.take());
            self.pending.spans.extend(Some(span).filter(Span::is_recorded));
        }
    }

    /// Writes down what the route does as a whole.
    fn show(&self) {
        let (board, name) = (&self.worker.board, &self.worker.spec.name);
        let of = |side| self.worker.peer(side).name().clone();
        let (activity, wait) = match self.scheduler.pause() {
            Pause::None if self.scheduler.is_claiming() => (Activity::Ready, Wait::Queue),
            Pause::None | Pause::Idle | Pause::CopyLost => (Activity::Ready, Wait::Work),
            Pause::Stopped => (Activity::Stopped, Wait::Work),
            Pause::Paused => (Activity::Paused, Wait::Limit),
            Pause::RateLimited => (Activity::RateLimited, Wait::Limit),
            Pause::QueueFailed(why) => (Activity::QueueFailed(why.clone()), Wait::Queue),
            Pause::Settling => (Activity::Ready, Wait::Queue),
            Pause::Breaker(side) => (Activity::WaitingForPeer(of(*side)), Wait::Breaker),
            Pause::Identifying(Side::Source) => (Activity::Ready, Wait::Source),
            Pause::Identifying(Side::Destination) => (Activity::Ready, Wait::Destination),
            Pause::Overloaded(side) => (Activity::PeerOverloaded(of(*side)), Wait::Capacity),
        };
        board.set_free(self.scheduler.free(), wait);
        board.set_alarm(self.scheduler.alarm(), self.scheduler.vanished());
        let before = board.set_activity(activity.clone());
        match (before, activity) {
            (Activity::QueueFailed(_), Activity::QueueFailed(_)) => {}
            (_, Activity::QueueFailed(error)) => {
                tracing::error!(route = %name, %error, "the queue fails, copying pauses");
            }
            (Activity::QueueFailed(_), _) => tracing::info!(route = %name, "the queue works again"),
            _ => {}
        }
    }
}

/// What a job that has ended leaves to be concluded.
struct JobRemains {
    spans: Vec<Option<Span>>,
    shown: Option<ShownCopy>,
}

/// Both peers' states, locked in the order of their names: two routes in opposite directions never wait for each other.
fn both<'a>(from: &'a Peer, to: &'a Peer) -> (Locked<'a>, Locked<'a>) {
    if from.name() < to.name() {
        let from = from.state();
        (from, to.state())
    } else {
        let to = to.state();
        (from.state(), to)
    }
}

fn confirmed(claim: &Claim, outcome: &Outcome) -> Option<Confirmed> {
    let Outcome::Confirmed { .. } = outcome else { return None };
    let entry = claim.entry();
    Some(Confirmed { lane: entry.lane, enqueue_time: entry.enqueue_time })
}

async fn settle(queue: &dyn Queue, settled: Vec<(Claim, Outcome)>) -> Result<(), QueueError> {
    failpoint::pause(Point::WorkerSettle).await?;
    queue.settle(settled).await
}

/// Asks a peer a small question: whether it answered, and which of the sample it holds, where it says.
async fn canary(peer: &Peer, sample: &[BlobRef]) -> (bool, Option<Vec<BlobMeta>>) {
    let Ok(Ok(info)) = timeout(CANARY, peer.store().info()).await else { return (false, None) };
    if sample.is_empty() || !info.abilities.stat {
        return (true, None);
    }
    match timeout(CANARY, peer.store().stat(sample)).await {
        Ok(Ok(found)) => (true, Some(found)),
        Ok(Err(_)) | Err(_) => (false, None),
    }
}

async fn changed<T>(news: &mut watch::Receiver<T>) {
    if news.changed().await.is_err() {
        // Nobody is left to tell any.
        std::future::pending().await
    }
}
