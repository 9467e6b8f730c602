//! Full syncs that routes begin by themselves: at the start, for a queue that is new, was restored, or lost something; and
//! when an operator has adopted another store.
//!
//! One task per enabled route. It begins a sync, waits for its end, and begins another, until one has COMPLETED:
//!
//! | it ended | begun again after |
//! |---|---|
//! | FAILED, or could not be written | 30 s, doubling up to 10 min, with jitter |
//! | another sync runs on the route | the same |
//! | the source cannot be listed, or is another store | 10 min; said once |
//! | COMPLETED_WITH_FAILURES, CANCELLED | 1 h: the same would be parked again, or an operator did not want it |
//!
//! A sync that somebody else began counts as well.

use super::driver::FullSyncs;
use super::record::{SyncMode, SyncRecord, SyncState};
use super::request::{SyncRequest, SyncStartError};
use crate::backoff::Backoff;
use crate::clock::{Clock, Entropy};
use crate::config::OnStart;
use std::sync::Arc;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// After failures.
const PAUSES: Backoff = Backoff::new(Duration::from_secs(30), Duration::from_mins(10));

/// After an end that another sync would hardly better.
const LONG_PAUSE: Duration = Duration::from_hours(1);

/// How often the end of a sync is looked for.
const LOOK: Duration = Duration::from_millis(250);

/// How often a need that arose meanwhile is looked for.
const LOOK_FOR_NEED: Duration = Duration::from_secs(1);

/// A route's own syncs.
pub(crate) struct StartSync {
    /// The syncs.
    pub syncs: FullSyncs,
    /// The route's configured name.
    pub route: String,
    /// When to begin one.
    pub on_start: OnStart,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Jitter.
    pub entropy: Arc<Entropy>,
}

/// How an attempt ended.
enum StartAttempt {
    Done,
    Failed(String),
    Unsuitable(String),
    Fruitless(String),
}

impl StartSync {
    /// Works until `stop` is cancelled.
    pub(crate) async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(self.work()).await;
        stop.cancelled().await;
    }

    async fn work(&self) {
        if self.on_start == OnStart::Off {
            return;
        }
        let mut is_always = self.on_start == OnStart::Always;
        loop {
            // A need can also arise later: a store was adopted.
            while !is_always && self.syncs.needs().needed(&self.route).is_none() {
                tokio::time::sleep(LOOK_FOR_NEED).await;
            }
            self.until_done(is_always).await;
            is_always = false;
        }
    }

    async fn until_done(&self, is_always: bool) {
        let is_needed = || self.syncs.needs().needed(&self.route).is_some();
        let (mut failures, mut told) = (0, String::new());
        loop {
            self.syncs.needs().note(&self.route, String::new(), None);
            let (problem, pause) = match self.attempt().await {
                StartAttempt::Done => return,
                StartAttempt::Failed(problem) => {
                    failures += 1;
                    (problem, PAUSES.delay(failures, self.entropy.jitter()))
                }
                StartAttempt::Unsuitable(problem) => (problem, PAUSES.max()),
                StartAttempt::Fruitless(problem) => (problem, LONG_PAUSE),
            };
            if problem != told {
                tracing::warn!(route = %self.route, problem, "the full sync that the route needs has not completed yet");
                told.clone_from(&problem);
            }
            self.syncs.needs().note(&self.route, problem, Some(self.clock.now() + pause));
            let until = self.clock.monotonic().saturating_add(pause);
            while self.clock.monotonic() < until {
                // Somebody else's sync may have done it.
                if !is_always && !is_needed() {
                    return;
                }
                tokio::time::sleep(LOOK).await;
            }
        }
    }

    async fn attempt(&self) -> StartAttempt {
        let request = SyncRequest { route: self.route.clone(), mode: SyncMode::Copy, ..SyncRequest::default() };
        match self.syncs.start(request).await {
            Ok(started) => Self::outcome(&self.ended(&started.record).await),
            Err(SyncStartError::PeerUnsuitable(why)) => StartAttempt::Unsuitable(why),
            // The stop follows.
            Err(error) => StartAttempt::Failed(error.to_string()),
        }
    }

    /// Waits for a sync's end.
    async fn ended(&self, started: &SyncRecord) -> SyncRecord {
        loop {
            match self.syncs.last(&self.route) {
                Some(record) if record.id == started.id && record.state == SyncState::Running => {}
                Some(record) if record.id == started.id => return record,
                // A newer one runs already: this one has ended.
                _ => match self.syncs.get(started.id).await {
                    Ok(Some(record)) => return record,
                    _ => return started.clone(),
                },
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    fn outcome(record: &SyncRecord) -> StartAttempt {
        let said = format!("{} {}", record.id, record.summary());
        match record.state {
            SyncState::Completed => StartAttempt::Done,
            SyncState::CompletedWithFailures | SyncState::Cancelled => StartAttempt::Fruitless(said),
            SyncState::Failed | SyncState::Running => StartAttempt::Failed(said),
        }
    }
}
