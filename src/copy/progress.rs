//! How far a copy is: for those who watch it, and for the watchdog that ends it when nothing moves.

use crate::fault::Side;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// So many bytes on, a destination that still asks for more must have read some: more than what lies in buffers on the way.
const DESTINATION_READS: u64 = 8 << 20;

/// Stands for a size that is not known yet.
const UNKNOWN: u64 = u64::MAX;

/// What a copy is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Stage {
    /// Asking the stores what they hold, or can do.
    Asking,
    /// Waiting for the source's answer.
    Fetching,
    /// Bytes pass from the source to the destination, or the destination commits them.
    Writing,
    /// Reading a repair back.
    Verifying,
    /// Waiting for the queue to record the outcome.
    Settling,
}

impl Stage {
    const ALL: [Stage; 5] = [Self::Asking, Self::Fetching, Self::Writing, Self::Verifying, Self::Settling];

    /// The stage's name in Status and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Fetching => "fetching",
            Self::Writing => "writing",
            Self::Verifying => "verifying",
            Self::Settling => "settling",
        }
    }
}

/// The progress of one copy, shared between it and its watchers.
#[derive(Debug)]
pub struct Progress {
    stage: AtomicU8,
    bytes: AtomicU64,
    size: AtomicU64,
    waiting: Mutex<Waiting>,
    source_heard: AtomicBool,
    destination_heard: AtomicBool,
    news: Notify,
}

/// Who is waited for, and how long each side has been.
#[derive(Debug)]
struct Waiting {
    side: Side,
    since: Instant,
    // The copy itself is over.
    ended: bool,
    before: [Duration; 2],
}

impl Waiting {
    fn until(&self, now: Instant) -> [Duration; 2] {
        let mut waited = self.before;
        if !self.ended {
            waited[usize::from(self.side == Side::Destination)] += now.saturating_duration_since(self.since);
        }
        waited
    }

    fn change(&mut self, side: Side, ended: bool) {
        let now = Instant::now();
        *self = Self { before: self.until(now), side, since: now, ended };
    }
}

impl Progress {
    /// Of a copy that begins now.
    pub fn new(size_hint: Option<u64>) -> Self {
        Self {
            stage: AtomicU8::new(Stage::Fetching as u8),
            bytes: AtomicU64::new(0),
            size: AtomicU64::new(size_hint.unwrap_or(UNKNOWN)),
            waiting: Mutex::new(Waiting {
                side: Side::Source,
                since: Instant::now(),
                ended: false,
                before: [Duration::ZERO; 2],
            }),
            source_heard: AtomicBool::new(false),
            destination_heard: AtomicBool::new(false),
            news: Notify::new(),
        }
    }

    /// What the copy is doing.
    pub fn stage(&self) -> Stage {
        let number = self.stage.load(Ordering::Relaxed);
        Stage::ALL.into_iter().find(|stage| *stage as u8 == number).unwrap_or(Stage::Fetching)
    }

    /// Bytes handed to the destination so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// The blob's size in bytes: as the source states it, before that as announced.
    pub fn size(&self) -> Option<u64> {
        Some(self.size.load(Ordering::Relaxed)).filter(|size| *size != UNKNOWN)
    }

    /// The copy is over but for the queue's record of it.
    pub fn settling(&self) {
        self.stage.store(Stage::Settling as u8, Ordering::Relaxed);
        let mut waiting = self.waiting();
        let side = waiting.side;
        waiting.change(side, true);
    }

    /// How long the source, and the destination, were waited for so far.
    pub fn waited(&self) -> [Duration; 2] {
        self.waiting().until(Instant::now())
    }

    /// Whether this side has answered as a peer should in the course of this copy.
    pub fn was_heard(&self, side: Side) -> bool {
        self.heard_flag(side).load(Ordering::Relaxed)
    }

    /// Waits until a side is heard for the first time. May also return without news.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    pub(super) fn enter(&self, stage: Stage, side: Side) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        self.wait_for(side);
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    pub(super) fn heard(&self, side: Side) {
        if !self.heard_flag(side).swap(true, Ordering::Relaxed) {
            self.news.notify_one();
        }
    }

    /// A chunk came from the source and goes on to the destination.
    pub(super) fn pass(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.heard(Side::Source);
        self.wait_for(Side::Destination);
    }

    /// The destination asks for more. Asking again while the source is waited for is no progress.
    pub(super) fn destination_asks(&self) {
        if self.bytes() >= DESTINATION_READS {
            self.heard(Side::Destination);
        }
        if self.waiting_for() != Side::Source {
            self.wait_for(Side::Source);
        }
    }

    /// Something moved; the next move is this side's.
    pub(super) fn wait_for(&self, side: Side) {
        self.waiting().change(side, false);
    }

    /// Whose move it is.
    pub(super) fn waiting_for(&self) -> Side {
        self.waiting().side
    }

    /// Returns when nothing has moved for so long, with the side that was waited for.
    pub(super) async fn stalled(&self, idle: Duration) -> Side {
        loop {
            let (side, since) = {
                let waiting = self.waiting();
                (waiting.side, waiting.since)
            };
            let end = since + idle;
            if Instant::now() >= end {
                return side;
            }
            sleep_until(end).await;
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn heard_flag(&self, side: Side) -> &AtomicBool {
        match side {
            Side::Source => &self.source_heard,
            Side::Destination => &self.destination_heard,
        }
    }
}
