//! What a route's worker tells of itself: copies in progress, errors by cause, rates and lag. All of it is bounded.

use super::pace::{Pace, Wait, Waits};
use crate::blob::BlobRef;
use crate::clock::Clock;
use crate::copy::{CopyError, Progress, Stage};
use crate::fault::FaultKind;
use crate::metrics::CopyMetrics;
use crate::queue::{Entry, Lane, Seq};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Add;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// Causes of errors that are remembered.
const MAX_ERRORS: usize = 20;

/// The longest window that rates are told of, in seconds.
const WINDOW_SECONDS: u64 = 60;

/// The latest confirmations whose lag is remembered.
const LAG_SAMPLES: usize = 4096;

/// A worker at one moment.
#[derive(Clone, Debug)]
pub struct Report {
    /// What it is doing as a whole.
    pub activity: Activity,
    /// The copies in progress, oldest entry first.
    pub in_progress: Vec<InProgress>,
    /// The latest errors grouped by cause, the latest first; 20 causes at most.
    pub errors: Vec<ErrorGroup>,
    /// Entries confirmed since the start.
    pub confirmed: u64,
    /// Entries among them for which bytes were sent.
    pub copied: u64,
    /// The bytes sent for them.
    pub copied_bytes: u64,
    /// What was confirmed in the last 10 seconds.
    pub rate_10s: Rate,
    /// What was confirmed in the last 60 seconds.
    pub rate_60s: Rate,
    /// What its slots spent about the last 10 seconds on.
    pub waits: Waits,
    /// The time from push to confirmation, of the latest confirmed fresh entries.
    pub lag: LagPercentiles,
}

/// What a worker is doing as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Activity {
    /// It copies, or would if there were entries to copy.
    Ready,
    /// An operator has paused it: nothing new is begun.
    Paused,
    /// The rates that it may use are used up for the moment.
    RateLimited,
    /// It waits for this peer, whose breaker is not closed.
    WaitingForPeer(Arc<str>),
    /// The queue gives out no entries, or records no outcomes.
    QueueFailed(String),
    /// It was told to stop, or did not start yet.
    Stopped,
}

/// A copy in progress: of a blob, or of a pack of small ones.
#[derive(Clone, Debug)]
pub struct InProgress {
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
pub struct ErrorGroup {
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

/// A rate over a window.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Rate {
    /// Entries a second.
    pub entries: f64,
    /// Bytes a second.
    pub bytes: f64,
}

/// The lag of recent confirmations; zeros without any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LagPercentiles {
    /// How many confirmations this is about.
    pub samples: usize,
    /// Half of them took at most this long.
    pub p50: Duration,
    /// 99 in 100 took at most this long.
    pub p99: Duration,
}

/// An entry that was confirmed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Confirmed {
    pub(super) lane: Lane,
    pub(super) enqueue_time: SystemTime,
    /// In bytes.
    pub(super) size: u64,
    /// Whether bytes were sent.
    pub(super) copied: bool,
}

/// Where a worker writes down what it does.
pub(super) struct Board {
    clock: Arc<dyn Clock>,
    metrics: Arc<CopyMetrics>,
    state: Mutex<State>,
}

struct State {
    activity: Activity,
    in_progress: BTreeMap<Seq, Shown>,
    errors: Vec<ErrorGroup>,
    confirmed: u64,
    copied: u64,
    copied_bytes: u64,
    meter: Meter,
    lags: Lags,
    pace: Pace,
}

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
    seq: Seq,
}

impl Drop for ShownCopy {
    fn drop(&mut self) {
        let mut state = self.board.state();
        if let Some(shown) = state.in_progress.remove(&self.seq) {
            let waits = waits(&shown.progress);
            state.pace.ended(waits);
            self.board.metrics.fetch.observe(waits.get(Wait::Source));
            self.board.metrics.write.observe(waits.get(Wait::Destination));
        }
    }
}

impl Board {
    pub(super) fn new(clock: Arc<dyn Clock>, metrics: Arc<CopyMetrics>) -> Arc<Self> {
        let state = State {
            activity: Activity::Stopped,
            in_progress: BTreeMap::new(),
            errors: Vec::new(),
            confirmed: 0,
            copied: 0,
            copied_bytes: 0,
            meter: Meter::new(clock.monotonic()),
            lags: Lags::default(),
            pace: Pace::default(),
        };
        Arc::new(Self { clock, metrics, state: Mutex::new(state) })
    }

    pub(super) fn activity(&self) -> Activity {
        self.state().activity.clone()
    }

    /// Returns what it was doing before.
    pub(super) fn set_activity(&self, activity: Activity) -> Activity {
        std::mem::replace(&mut self.state().activity, activity)
    }

    /// So many slots are free from now on, and wait for this.
    pub(super) fn set_free(&self, free: usize, wait: Wait) {
        let now = self.clock.monotonic();
        let State { pace, in_progress, .. } = &mut *self.state();
        pace.set_free(free, wait, now);
        pace.sample(|| copying(in_progress), now);
    }

    pub(super) fn sample(&self) {
        let now = self.clock.monotonic();
        let State { pace, in_progress, .. } = &mut *self.state();
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
        self.state().in_progress.insert(entry.seq, shown);
        ShownCopy { board: self.clone(), seq: entry.seq }
    }

    /// Entries were confirmed, and that is durable.
    pub(super) fn confirmed(&self, confirmed: impl IntoIterator<Item = Confirmed>) {
        let (now, monotonic) = (self.clock.now(), self.clock.monotonic());
        let mut state = self.state();
        for Confirmed { lane, enqueue_time, size, copied } in confirmed {
            state.confirmed += 1;
            state.copied += u64::from(copied);
            let bytes = if copied { size } else { 0 };
            state.copied_bytes = state.copied_bytes.saturating_add(bytes);
            state.meter.add(monotonic, bytes);
            // A clock that was set back makes no lag.
            let lag = now.duration_since(enqueue_time).unwrap_or_default();
            match lane {
                Lane::Fresh => {
                    state.lags.add(lag);
                    self.metrics.fresh_lag.observe(lag);
                }
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

    /// So many more attempts failed, uncharged, as the last one did.
    pub(super) fn copies_failed(&self, count: u64, peer: &Arc<str>, error: &CopyError) {
        self.metrics.failed(error.kind, peer, count);
        let errors = &mut self.state().errors;
        if let Some(group) =
            errors.iter_mut().find(|group| (group.kind, group.code, &group.peer) == (error.kind, error.code, peer))
        {
            group.count += count;
        }
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
        let errors = &mut self.state().errors;
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
        let state = self.state();
        Report {
            activity: state.activity.clone(),
            in_progress: state.in_progress.values().map(Shown::told).collect(),
            errors: state.errors.clone(),
            confirmed: state.confirmed,
            copied: state.copied,
            copied_bytes: state.copied_bytes,
            rate_10s: state.meter.rate(now, 10),
            rate_60s: state.meter.rate(now, WINDOW_SECONDS),
            waits: state.pace.recent(copying(&state.in_progress), now),
            lag: state.lags.percentiles(),
        }
    }

    /// The copy that a blob is a part of, if one is in progress.
    pub(super) fn copy_of(&self, blob: BlobRef) -> Option<InProgress> {
        let state = self.state();
        state.in_progress.values().find(|shown| shown.blob == blob || shown.others.contains(&blob)).map(Shown::told)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a copy has waited for.
fn waits(progress: &Progress) -> Waits {
    let [source, destination] = progress.waited();
    Waits::of(Wait::Source, source) + Waits::of(Wait::Destination, destination)
}

fn copying(in_progress: &BTreeMap<Seq, Shown>) -> Waits {
    in_progress.values().map(|shown| waits(&shown.progress)).fold(Waits::default(), Waits::add)
}

/// Counts by the second, for the last minute.
struct Meter {
    start: Duration,
    // The second, entries, bytes; ascending.
    seconds: VecDeque<(u64, u64, u64)>,
}

impl Meter {
    fn new(start: Duration) -> Self {
        Self { start, seconds: VecDeque::new() }
    }

    fn add(&mut self, now: Duration, bytes: u64) {
        let second = now.as_secs();
        match self.seconds.back_mut() {
            Some((last, entries, sum)) if *last >= second => {
                *entries += 1;
                *sum = sum.saturating_add(bytes);
            }
            _ => self.seconds.push_back((second, 1, bytes)),
        }
        while self.seconds.front().is_some_and(|(first, ..)| first + WINDOW_SECONDS < second) {
            self.seconds.pop_front();
        }
    }

    /// Over the last `window` seconds: the present one, as far as it has come, and the whole ones before.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    fn rate(&self, now: Duration, window: u64) -> Rate {
        let first = (now.as_secs() + 1).saturating_sub(window);
        let (mut entries, mut bytes) = (0u64, 0u64);
        for (_, some_entries, some_bytes) in self.seconds.iter().filter(|(second, ..)| *second >= first) {
            entries += some_entries;
            bytes = bytes.saturating_add(*some_bytes);
        }
        let start = self.start.max(Duration::from_secs(first));
        let seconds = now.saturating_sub(start).as_secs_f64().max(1.0);
        Rate { entries: entries as f64 / seconds, bytes: bytes as f64 / seconds }
    }
}

/// The lag of the latest confirmations.
#[derive(Default)]
struct Lags {
    samples: Vec<Duration>,
    next: usize,
}

impl Lags {
    fn add(&mut self, lag: Duration) {
        if self.samples.len() < LAG_SAMPLES {
            self.samples.push(lag);
        } else {
            self.samples[self.next] = lag;
            self.next = (self.next + 1) % LAG_SAMPLES;
        }
    }

    fn percentiles(&self) -> LagPercentiles {
        let mut sorted = self.samples.clone();
        sorted.sort_unstable();
        // The smallest sample that so many percent of all do not exceed.
        let at = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or_default()
        };
        LagPercentiles { samples: sorted.len(), p50: at(50), p99: at(99) }
    }
}

#[cfg(test)]
mod tests {
    use super::{Board, LAG_SAMPLES, Lags, MAX_ERRORS, Meter};
    use crate::clock::{Clock, ManualClock};
    use crate::metrics::CopyMetrics;
    use std::sync::Arc;
    use std::time::Duration;

    #[test]
    fn rates_are_of_their_window_and_of_no_more_than_the_time_since_the_start() {
        let start = Duration::from_secs(1000);
        let mut meter = Meter::new(start);
        for second in 0..100 {
            for _ in 0..5 {
                meter.add(start + Duration::from_secs(second), 100);
            }
        }
        let now = start + Duration::from_secs(100);
        assert!((meter.rate(now, 60).entries - 5.0).abs() < 0.2, "{:?}", meter.rate(now, 60));
        assert!((meter.rate(now, 10).bytes - 500.0).abs() < 60.0, "{:?}", meter.rate(now, 10));
        assert!(meter.seconds.len() <= 62);
        assert!(meter.rate(now + Duration::from_secs(61), 60).bytes < 0.1);
        let mut young = Meter::new(start);
        (0..20).for_each(|_| young.add(start + Duration::from_secs(1), 1));
        assert!((young.rate(start + Duration::from_secs(2), 60).entries - 10.0).abs() < 0.1);
    }

    #[test]
    fn percentiles_are_those_of_the_latest() {
        let mut lags = Lags::default();
        assert_eq!(lags.percentiles().p99, Duration::ZERO);
        (1..=100).for_each(|ms| lags.add(Duration::from_millis(ms)));
        let found = lags.percentiles();
        assert_eq!((found.samples, found.p50, found.p99), (100, Duration::from_millis(50), Duration::from_millis(99)));
        (0..LAG_SAMPLES).for_each(|_| lags.add(Duration::from_secs(1)));
        assert_eq!((lags.percentiles().samples, lags.percentiles().p50), (LAG_SAMPLES, Duration::from_secs(1)));
    }

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
