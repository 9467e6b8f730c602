//! The loop of a worker: it picks one event at a time and applies it.

mod dispatch;
mod fill;
mod limited;
mod settling;

use super::attempt::{Finished, FinishedPack, Slots};
use super::judge::Verdict;
use super::judge::pack::PackVerdict;
use super::lanes::Lanes;
use super::pace::Wait;
use super::packs::{Joint, PackSize, Repeats};
use super::question::{Answer, Question, ask};
use super::report::Activity;
use super::waiting::{Kind, Waiting};
use super::{Worker, traced};
use crate::queue::Outcome;
use fill::Fill;
use futures::future::BoxFuture;
use limited::Turns;
use settling::{Judged, Settled};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

/// The shortest rest; whatever the clocks say, the loop never spins.
const SHORTEST_REST: Duration = Duration::from_millis(5);

/// The state of the loop.
pub(super) struct Run {
    worker: Arc<Worker>,
    copies: JoinSet<Option<Finished>>,
    slots: Arc<Slots>,
    // By kind.
    lanes: [Lanes; 2],
    turns: Turns,
    // Claimed, and not begun.
    waiting: Waiting,
    // What both peers can do, as of the last fill.
    joint: Joint,
    pack_size: PackSize,
    repeats: Repeats,
    filling: Option<BoxFuture<'static, Fill>>,
    // Copied, and not yet being settled.
    judged: Judged,
    settling: Option<BoxFuture<'static, Settled>>,
    // Sources asked for what was copied earlier.
    asking: JoinSet<Answer>,
    // Between fills: what ends the pause.
    rest: Option<Rest>,
    // Lanes that had no more to claim. Only while the loop rests.
    exhausted: [bool; 2],
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
    // Whether it is only about exhausted lanes: the other, and what is claimed already, go on.
    of_lanes: bool,
}

impl Run {
    pub(super) fn new(worker: Arc<Worker>) -> Self {
        Self {
            worker,
            copies: JoinSet::new(),
            slots: Arc::default(),
            lanes: Default::default(),
            turns: Turns::default(),
            waiting: Waiting::default(),
            joint: Joint { blob_bytes: 0, stat: false },
            pack_size: PackSize::default(),
            repeats: Repeats::default(),
            filling: None,
            judged: Judged::default(),
            settling: None,
            asking: JoinSet::new(),
            rest: None,
            exhausted: [false; 2],
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
                self.waiting.clear();
                if self.copies.is_empty() && self.settling.is_none() {
                    break;
                }
            } else if let Some(order) = self.order() {
                if self.rest.is_none() {
                    // What changes from here on ends the rest that this fill may lead to.
                    queue.mark_unchanged();
                    from.mark_unchanged();
                    to.mark_unchanged();
                }
                self.filling = Some(Box::pin(fill::fill(self.worker.clone(), order)));
            }
            self.worker.board.set_free(self.free(), self.free_for());
            let rest = self.rest.filter(|rest| !stopping && (self.filling.is_none() || rest.of_lanes));
            let rests = rest.is_some();
            let (on_queue, on_peers) = rest.map_or((false, false), |rest| (rest.on_queue, rest.on_peers));
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
                () = changed(&mut from), if on_peers => self.awake(),
                () = changed(&mut to), if on_peers => self.awake(),
                () = changed(&mut queue), if on_queue => self.awake(),
                () = sleep_until(rest.map_or_else(Instant::now, |rest| rest.until)), if rests => self.awake(),
            }
        }
        self.worker.board.set_activity(Activity::Stopped);
    }

    /// Ends a rest.
    fn awake(&mut self) {
        self.rest = None;
        self.exhausted = [false; 2];
    }

    fn free(&self) -> usize {
        self.workers().saturating_sub(self.copies.len())
    }

    /// How many copies of a kind may be begun, as far as workers go.
    fn free_of(&self, kind: Kind) -> usize {
        self.workers().saturating_sub(self.slots.of(kind).iter().sum())
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

    fn on_finished(&mut self, finished: Result<Option<Finished>, tokio::task::JoinError>) {
        let copy = match finished {
            Ok(Some(Finished::One(copy))) => copy,
            Ok(Some(Finished::Pack(pack))) => return self.on_pack(pack),
            Ok(None) => return,
            // The copier's own panics are caught closer by; this one released its claims as it unwound.
            Err(error) => return tracing::error!(route = %self.worker.spec.name, %error, "a copy was lost"),
        };
        let Verdict { outcome, question } = copy.span.inside(|| self.worker.judge(&copy));
        traced::end(&copy.span, copy.claim.entry(), &copy.result, outcome.as_ref());
        self.raise(question);
        if let Some(outcome) = outcome {
            let discards = matches!(outcome, Outcome::Discard);
            let cause = copy.result.err().filter(|_| discards).map(|error| error.to_string());
            self.judged.add(copy.claim, outcome, cause);
            self.judged.show(copy.shown, [copy.span]);
        }
    }

    fn on_pack(&mut self, pack: FinishedPack) {
        self.pack_size.took(pack.took);
        let PackVerdict { settled, alone, questions, were_there, shown, spans } = self.worker.judge_pack(pack);
        let confirmed = settled.iter().filter(|(_, outcome, _)| matches!(outcome, Outcome::Confirmed { .. })).count();
        self.repeats.saw(were_there, confirmed);
        self.raise(questions);
        for waiter in alone {
            self.waiting.add_known(Kind::Alone, waiter);
        }
        if !settled.is_empty() {
            settled.into_iter().for_each(|(claim, outcome, cause)| self.judged.add(claim, outcome, cause));
            self.judged.show(shown, spans);
        }
    }

    fn raise(&mut self, questions: impl IntoIterator<Item = Question>) {
        for question in questions {
            self.asking.spawn(ask(self.worker.clone(), question));
        }
    }

    /// Drops the copies in flight, which releases their claims, and records what was copied already.
    async fn abort(&mut self) {
        self.filling = None;
        self.waiting.clear();
        self.copies.abort_all();
        while let Some(finished) = self.copies.join_next().await {
            match finished {
                Err(error) if error.is_cancelled() => {}
                finished => self.on_finished(finished),
            }
        }
        self.waiting.clear();
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
