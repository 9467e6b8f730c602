//! How far a copy is: for those who watch it, and for the watchdog that ends it when nothing moves.

use crate::fault::Side;
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// So many bytes on, a destination that still asks for more must have read some: more than what lies in buffers on the way.
const DESTINATION_READS: u64 = 8 << 20;

/// Over this much time of waiting for a side its rate is looked at.
pub(super) const RATED: Duration = Duration::from_secs(60);

/// How long the sides of a copy are waited for. In pairs, the source comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WaitLimits {
    /// Without a byte of progress.
    pub idle: [Duration; 2],
    /// The fewest bytes a second that a side may move, over 60 s in which it is waited for; 0: any.
    pub least_rate: [u64; 2],
    /// For the destination's confirmation, once it has all bytes; of a pack, for its next answer.
    pub confirm: Duration,
}

impl Default for WaitLimits {
    /// 30 s without progress, 1 KiB/s, 5 min for the confirmation.
    fn default() -> Self {
        Self { idle: [Duration::from_secs(30); 2], least_rate: [1024; 2], confirm: Duration::from_mins(5) }
    }
}

/// Who was waited for too long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Overdue {
    /// Nothing moved for so long.
    Idle(Side, Duration),
    /// All bytes were sent, and not confirmed for so long.
    Confirmation(Duration),
    /// Too few bytes moved while this side was waited for.
    TooSlow { side: Side, moved: u64, least: u64 },
}

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
    /// Bytes pass from the source to the destination.
    Writing,
    /// All bytes are with the destination, and only its confirmation is awaited; of a pack, its answers.
    Confirming,
    /// Reading a repair back.
    Verifying,
    /// Waiting for the queue to record the outcome.
    Settling,
}

impl Stage {
    const ALL: [Stage; 6] =
        [Self::Asking, Self::Fetching, Self::Writing, Self::Confirming, Self::Verifying, Self::Settling];

    /// The stage's name in Status and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Asking => "asking",
            Self::Fetching => "fetching",
            Self::Writing => "writing",
            Self::Confirming => "confirming",
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
    source_answered: AtomicBool,
    destination_answered: AtomicBool,
    news: Notify,
}

/// Who is waited for, and how long each side has been.
#[derive(Debug)]
struct Waiting {
    side: Side,
    since: Instant,
    // Since when only the destination's confirmation is awaited.
    confirming: Option<Instant>,
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

    /// Gives the time.
    fn change(&mut self, side: Side, ended: bool) -> Instant {
        let now = Instant::now();
        *self = Self { before: self.until(now), side, since: now, ended, ..*self };
        now
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
                confirming: None,
                ended: false,
                before: [Duration::ZERO; 2],
            }),
            source_answered: AtomicBool::new(false),
            destination_answered: AtomicBool::new(false),
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
        let mut waiting = self.waiting.lock();
        let side = waiting.side;
        waiting.change(side, true);
        waiting.confirming = None;
    }

    /// How long only the destination's confirmation has been awaited: since the stream of bytes to it ended. `None` where
    /// something else is done, or was.
    pub fn confirming_for(&self, now: Instant) -> Option<Duration> {
        self.waiting.lock().confirming.map(|since| now.saturating_duration_since(since))
    }

    /// How long the source, and the destination, were waited for so far.
    pub fn waited(&self) -> [Duration; 2] {
        self.waiting.lock().until(Instant::now())
    }

    /// Whether this side has answered as a peer should in the course of this copy.
    pub fn has_answered(&self, side: Side) -> bool {
        self.answered_flag(side).load(Ordering::Relaxed)
    }

    /// Waits until a side has answered for the first time, or only the destination's confirmation is awaited. May also return
    /// without news. For one watcher.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    pub(super) fn enter(&self, stage: Stage, side: Side) {
        self.stage.store(stage as u8, Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        waiting.change(side, false);
        waiting.confirming = None;
    }

    /// The source has given all, and the stream of bytes to the destination ends.
    pub(super) fn confirming(&self) {
        self.stage.store(Stage::Confirming as u8, Ordering::Relaxed);
        {
            let mut waiting = self.waiting.lock();
            let now = waiting.change(Side::Destination, false);
            waiting.confirming = Some(now);
        }
        self.answered(Side::Source);
        self.news.notify_one();
    }

    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    pub(super) fn answered(&self, side: Side) {
        if !self.answered_flag(side).swap(true, Ordering::Relaxed) {
            self.news.notify_one();
        }
    }

    /// A chunk came from the source and goes on to the destination.
    pub(super) fn pass(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.answered(Side::Source);
        self.wait_for(Side::Destination);
    }

    /// The destination asks for more. Asking again while the source is waited for is no progress.
    pub(super) fn destination_asks(&self) {
        if self.bytes() >= DESTINATION_READS {
            self.answered(Side::Destination);
        }
        if self.waiting_for() != Side::Source {
            self.wait_for(Side::Source);
        }
    }

    /// So many bytes were handed to the destination that it must have read some; `None`: all may lie on the way.
    pub(super) fn read_by_destination(&self) -> Option<u64> {
        Some(self.bytes()).filter(|bytes| *bytes > DESTINATION_READS)
    }

    /// Something moved; the next move is this side's.
    pub(super) fn wait_for(&self, side: Side) {
        self.waiting.lock().change(side, false);
    }

    /// Whose move it is.
    pub(super) fn waiting_for(&self) -> Side {
        self.waiting.lock().side
    }

    /// Returns when a side has been waited for too long.
    pub(super) async fn overdue(&self, limits: &WaitLimits) -> Overdue {
        // What each side had been waited for, and what had moved, when its span began.
        let mut spans = [(Duration::ZERO, 0); 2];
        loop {
            let now = Instant::now();
            let (side, since, is_confirming, waited) = {
                let waiting = self.waiting.lock();
                (waiting.side, waiting.since, waiting.confirming.is_some(), waiting.until(now))
            };
            let at = usize::from(side == Side::Destination);
            let mut next = since + if is_confirming { limits.confirm } else { limits.idle[at] };
            if now >= next {
                return if is_confirming {
                    Overdue::Confirmation(limits.confirm)
                } else {
                    Overdue::Idle(side, limits.idle[at])
                };
            }
            if self.stage() == Stage::Writing && !is_confirming {
                let (from, had) = spans[at];
                let span = waited[at].saturating_sub(from);
                if span >= RATED {
                    let (moved, least) = (self.bytes().saturating_sub(had), limits.least_rate[at]);
                    if moved < least.saturating_mul(RATED.as_secs()) {
                        return Overdue::TooSlow { side, moved, least };
                    }
                    spans[at] = (waited[at], self.bytes());
                    continue;
                }
                next = next.min(now + (RATED - span));
            }
            sleep_until(next).await;
        }
    }

    fn answered_flag(&self, side: Side) -> &AtomicBool {
        match side {
            Side::Source => &self.source_answered,
            Side::Destination => &self.destination_answered,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Progress, Side, Stage};
    use std::time::Duration;
    use tokio::time::{Instant, sleep, timeout};

    #[tokio::test(start_paused = true)]
    async fn since_when_a_confirmation_is_awaited_outlives_answers_and_ends_with_the_stage() {
        let progress = Progress::new(None);
        let confirming = || progress.confirming_for(Instant::now());
        progress.enter(Stage::Writing, Side::Destination);
        assert_eq!(confirming(), None);
        progress.confirming();
        // The permit of the news is kept for a watcher that was busy.
        timeout(Duration::from_secs(60), progress.news()).await.unwrap();
        sleep(Duration::from_secs(2)).await;
        progress.wait_for(Side::Destination);
        sleep(Duration::from_secs(3)).await;
        assert_eq!((progress.stage(), confirming()), (Stage::Confirming, Some(Duration::from_secs(5))));
        assert_eq!(progress.waited(), [Duration::ZERO, Duration::from_secs(5)]);
        progress.enter(Stage::Verifying, Side::Destination);
        assert_eq!(confirming(), None);
    }

    #[test]
    fn every_stage_is_read_back_as_it_was_set() {
        for stage in Stage::ALL {
            let progress = Progress::new(None);
            progress.enter(stage, Side::Source);
            assert_eq!(progress.stage(), stage);
        }
    }
}
