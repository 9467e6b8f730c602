//! What a route's worker tells of itself: copies in progress, errors by cause, totals. All of it is bounded.

use super::pace::{Pace, Wait, Waits};
use crate::blob::BlobRef;
use crate::clock::Clock;
use crate::copy::{CopyError, Progress, Stage};
use crate::fault::FaultKind;
use crate::metrics::CopyMetrics;
use crate::queue::{Entry, Lane, Seq};
use crate::worker::attribution::Streak;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ops::Add;
use std::sync::Arc;
use std::time::SystemTime;

/// Causes of errors that are remembered.
const MAX_ERRORS: usize = 20;

/// A worker at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// What it is doing as a whole.
    pub activity: Activity,
    /// The copies in progress, oldest entry first.
    pub in_progress: Vec<InProgress>,
    /// The latest errors grouped by cause, the latest first; 20 causes at most.
    pub errors: Vec<ErrorGroup>,
    /// What its slots spent about the last 10 seconds on.
    pub waits: Waits,
    /// Answers of one kind about very many blobs in a row, and none copied between them.
    pub alarm: Option<Streak>,
    /// Since when refs that were copied earlier have vanished from the source.
    pub vanished: Option<SystemTime>,
}

/// What a worker is doing as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// It copies, or would if there were entries to copy.
    Ready,
    /// An operator has paused it: nothing new is begun.
    Paused,
    /// The rates that it may use are used up for the moment.
    RateLimited,
    /// It waits for this peer, whose breaker is not closed.
    WaitingForPeer(Arc<str>),
    /// This peer refuses more copies at a time.
    PeerOverloaded(Arc<str>),
    /// The queue gives out no entries, or records no outcomes.
    QueueFailed(String),
    /// It was told to stop, or did not start yet.
    Stopped,
}

/// A copy in progress: of a blob, or of a pack of small ones.
#[derive(Clone, Debug)]
pub(crate) struct InProgress {
    /// The blob; of a pack, its first.
    pub blob: BlobRef,
    /// How many blobs travel together.
    pub blobs: u64,
    /// Its lane.
    pub lane: Lane,
    /// Its size in bytes, where known; of a pack, of all its blobs.
    pub size: Option<u64>,
    /// What the copy is doing.
    pub stage: Stage,
    /// Bytes handed to the destination so far.
    pub bytes: u64,
    /// When the attempt began.
    pub start: SystemTime,
    /// Which attempt this is, counted from 1; only charged ones count.
    pub attempt: u32,
    /// Whether wrong bytes at the destination are being replaced.
    pub repair: bool,
}

/// Errors of one cause.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ErrorGroup {
    /// The kind of fault.
    pub kind: FaultKind,
    /// The gRPC status code, where one came with it.
    pub code: Option<tonic::Code>,
    /// The configured name of the store at fault; for a fault of the queue, empty.
    pub peer: Arc<str>,
    /// The latest message.
    pub message: String,
    /// How many errors there were, charged or not.
    pub count: u64,
    /// How many of them were charged to their entry.
    pub charged: u64,
    /// When the first happened.
    pub first: SystemTime,
    /// When the last happened.
    pub last: SystemTime,
    /// The blob of the latest one; absent where it is nobody's in particular.
    pub example: Option<BlobRef>,
}

/// An entry that was confirmed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmed {
    pub(super) lane: Lane,
    pub(super) enqueue_time: SystemTime,
}

/// Where a worker writes down what it does.
pub(super) struct Board {
    clock: Arc<dyn Clock>,
    metrics: Arc<CopyMetrics>,
    state: Mutex<BoardState>,
}

struct BoardState {
    activity: Activity,
    in_progress: BTreeMap<Attempt, Shown>,
    last_attempt: u64,
    errors: Vec<ErrorGroup>,
    alarm: Option<Streak>,
    vanished: Option<SystemTime>,
    pace: Pace,
}

/// An attempt at an entry: a number of its own, since the next may begin before the last one is recorded.
type Attempt = (Seq, u64);

struct Shown {
    blob: BlobRef,
    // The other blobs of a pack.
    others: Vec<BlobRef>,
    lane: Lane,
    start: SystemTime,
    attempt: u32,
    repair: bool,
    progress: Arc<Progress>,
}

impl Shown {
    fn told(&self) -> InProgress {
        InProgress {
            blob: self.blob,
            blobs: self.others.len() as u64 + 1,
            lane: self.lane,
            size: self.progress.size(),
            stage: self.progress.stage(),
            bytes: self.progress.bytes(),
            start: self.start,
            attempt: self.attempt,
            repair: self.repair,
        }
    }
}

/// Shows a copy as in progress until it is dropped.
pub(super) struct ShownCopy {
    board: Arc<Board>,
    attempt: Attempt,
}

impl Drop for ShownCopy {
    fn drop(&mut self) {
        let mut state = self.board.state.lock();
        if let Some(shown) = state.in_progress.remove(&self.attempt) {
            let waits = waits(&shown.progress);
            state.pace.ended(waits);
            self.board.metrics.fetch.observe(waits.get(Wait::Source));
            self.board.metrics.write.observe(waits.get(Wait::Destination));
        }
    }
}

impl Board {
    pub(super) fn new(clock: Arc<dyn Clock>, metrics: Arc<CopyMetrics>) -> Arc<Self> {
        let state = BoardState {
            activity: Activity::Stopped,
            in_progress: BTreeMap::new(),
            last_attempt: 0,
            errors: Vec::new(),
            alarm: None,
            vanished: None,
            pace: Pace::default(),
        };
        Arc::new(Self { clock, metrics, state: Mutex::new(state) })
    }

    /// Returns what it was doing before.
    pub(super) fn set_activity(&self, activity: Activity) -> Activity {
        std::mem::replace(&mut self.state.lock().activity, activity)
    }

    /// What is odd about the route's peers, while they answer.
    pub(super) fn set_alarm(&self, alarm: Option<&Streak>, vanished: Option<SystemTime>) {
        let mut state = self.state.lock();
        if state.alarm.as_ref() != alarm {
            state.alarm = alarm.cloned();
        }
        state.vanished = vanished;
    }

    /// So many slots are free from now on, and wait for this.
    pub(super) fn set_free(&self, free: usize, wait: Wait) {
        let now = self.clock.monotonic();
        let BoardState { pace, in_progress, .. } = &mut *self.state.lock();
        pace.set_free(free, wait, now);
        pace.sample(|| copying(in_progress), now);
    }

    pub(super) fn sample(&self) {
        let now = self.clock.monotonic();
        let BoardState { pace, in_progress, .. } = &mut *self.state.lock();
        pace.sample(|| copying(in_progress), now);
    }

    pub(super) fn show(self: &Arc<Self>, entry: &Entry, others: Vec<BlobRef>, progress: Arc<Progress>) -> ShownCopy {
        let shown = Shown {
            blob: entry.blob,
            others,
            lane: entry.lane,
            start: self.clock.now(),
            attempt: entry.attempts.saturating_add(1),
            repair: entry.repair,
            progress,
        };
        let mut state = self.state.lock();
        state.last_attempt += 1;
        let attempt = (entry.seq, state.last_attempt);
        state.in_progress.insert(attempt, shown);
        ShownCopy { board: self.clone(), attempt }
    }

    /// Entries were confirmed, and that is durable.
    pub(super) fn confirmed(&self, confirmed: impl IntoIterator<Item = Confirmed>) {
        let now = self.clock.now();
        for Confirmed { lane, enqueue_time } in confirmed {
            // A clock that was set back makes no lag.
            let lag = now.duration_since(enqueue_time).unwrap_or_default();
            match lane {
                Lane::Fresh => self.metrics.fresh_lag.observe(lag),
                Lane::Backfill => self.metrics.backfill_lag.observe(lag),
            }
        }
    }

    pub(super) fn metrics(&self) -> &Arc<CopyMetrics> {
        &self.metrics
    }

    pub(super) fn copy_failed(&self, blob: BlobRef, peer: &Arc<str>, error: &CopyError, charged: bool) {
        self.failed(error.kind, error.code, peer.clone(), &error.message, Some(blob), charged);
    }

    pub(super) fn queue_failed(&self, message: &str) {
        self.failed(FaultKind::QueueWriteFailed, None, Arc::from(""), message, None, false);
    }

    fn failed(
        &self,
        kind: FaultKind,
        code: Option<tonic::Code>,
        peer: Arc<str>,
        message: &str,
        example: Option<BlobRef>,
        charged: bool,
    ) {
        let now = self.clock.now();
        self.metrics.failed(kind, &peer, 1);
        let errors = &mut self.state.lock().errors;
        let known = errors.iter().position(|group| (group.kind, group.code, &group.peer) == (kind, code, &peer));
        let mut group = match known {
            Some(index) => errors.remove(index),
            None => ErrorGroup {
                kind,
                code,
                peer,
                message: String::new(),
                count: 0,
                charged: 0,
                first: now,
                last: now,
                example,
            },
        };
        group.count += 1;
        group.charged += u64::from(charged);
        group.last = now;
        group.example = example;
        message.clone_into(&mut group.message);
        errors.insert(0, group);
        errors.truncate(MAX_ERRORS);
    }

    pub(super) fn report(&self) -> Report {
        let now = self.clock.monotonic();
        let state = self.state.lock();
        Report {
            activity: state.activity.clone(),
            in_progress: state.in_progress.values().map(Shown::told).collect(),
            errors: state.errors.clone(),
            waits: state.pace.recent(copying(&state.in_progress), now),
            alarm: state.alarm.clone(),
            vanished: state.vanished,
        }
    }

    /// The copy that a blob is a part of, if one is in progress.
    pub(super) fn copy_of(&self, blob: BlobRef) -> Option<InProgress> {
        let state = self.state.lock();
        state.in_progress.values().rfind(|shown| shown.blob == blob || shown.others.contains(&blob)).map(Shown::told)
    }
}

/// What a copy has waited for.
fn waits(progress: &Progress) -> Waits {
    let [source, destination] = progress.waited();
    Waits::of(Wait::Source, source) + Waits::of(Wait::Destination, destination)
}

fn copying(in_progress: &BTreeMap<Attempt, Shown>) -> Waits {
    in_progress.values().map(|shown| waits(&shown.progress)).fold(Waits::default(), Waits::add)
}

#[cfg(test)]
mod tests {
    use super::{Board, MAX_ERRORS};
    use crate::clock::{Clock, ManualClock};
    use crate::metrics::CopyMetrics;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn errors_are_grouped_and_the_oldest_cause_is_forgotten() {
        let clock = Arc::new(ManualClock::default());
        let board = Board::new(clock.clone(), Arc::new(CopyMetrics::new("a".into(), "b".into())));
        for peer in 0..30 {
            for _ in 0..3 {
                clock.advance(Duration::from_secs(1));
                let kind = crate::fault::FaultKind::ShortRead;
                board.failed(kind, None, Arc::from(format!("peer{peer}")), "it said so", None, true);
            }
        }
        let errors = board.report().errors;
        assert_eq!(errors.len(), MAX_ERRORS);
        assert_eq!((&*errors[0].peer, errors[0].count, errors[0].charged), ("peer29", 3, 3));
        assert_eq!(errors[0].last, clock.now());
        assert_eq!(&*errors[19].peer, "peer10");
    }
}
