//! `retry.discard_parked_after`: parked entries whose time is over are discarded, counted and logged.
//!
//! An entry's age is what the wall clock says, since it outlives restarts. A wall clock that jumps ahead while the process runs
//! makes none older: of the time since the start no more counts than went by.

use crate::announce::Route;
use crate::clock::{Clock, Monotonic};
use crate::queue::failures::{FailedState, FailureFilter, Failures, Remedy};
use crate::queue::{QueueError, Seq};
use anyhow::Result;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio_util::sync::CancellationToken;

/// How often it looks: once in a tenth of the age, within these bounds.
const LEAST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_hours(1);

/// Entries that are discarded in one write.
const PAGE: usize = 1_000;

/// Discards what was parked long ago. See the module's header.
pub(super) struct Retention {
    failures: Arc<dyn Failures>,
    clock: Arc<dyn Clock>,
    routes: Vec<Route>,
    after: Duration,
    began: (SystemTime, Monotonic),
}

impl Retention {
    pub(super) fn new(failures: Arc<dyn Failures>, clock: Arc<dyn Clock>, routes: Vec<Route>, after: Duration) -> Self {
        let began = (clock.now(), clock.monotonic());
        Self { failures, clock, routes, after, began }
    }

    /// Looks again and again, until the stop.
    pub(super) async fn run(self, stop: CancellationToken) -> Result<()> {
        stop.run_until_cancelled(self.keep_looking()).await;
        Ok(())
    }

    async fn keep_looking(&self) {
        let pause = (self.after / 10).clamp(LEAST_PAUSE, LONGEST_PAUSE);
        loop {
            for route in &self.routes {
                match self.discard_old(route).await {
                    Ok(0) => {}
                    Ok(discarded) => {
                        let age = humantime::format_duration(self.after);
                        tracing::warn!(route = %route.name, discarded, "parked entries were discarded, as retry.discard_parked_after ({age}) says");
                    }
                    Err(error) => {
                        tracing::warn!(route = %route.name, %error, "old parked entries could not be discarded")
                    }
                }
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// The time by the wall clock, had it not jumped ahead since the start.
    fn now(&self) -> SystemTime {
        let (wall, moment) = self.began;
        wall.checked_add(self.clock.monotonic().since(moment)).map_or(wall, |steady| steady.min(self.clock.now()))
    }

    async fn discard_old(&self, route: &Route) -> std::result::Result<u64, QueueError> {
        let Some(last) = self.now().checked_sub(self.after) else { return Ok(0) };
        let filter = FailureFilter { state: Some(FailedState::Parked), ..FailureFilter::default() };
        let (mut after, mut discarded) = (None, 0);
        loop {
            let page = self.failures.failures(route.id, filter, after, PAGE).await?;
            let is_old = |seq: &Option<SystemTime>| seq.is_some_and(|time| time <= last);
            let old = page.failed.iter().map(|failed| &failed.entry);
            let old = old.filter(|entry| is_old(&entry.failure.as_ref().map(|failure| failure.last)));
            let seqs: Vec<Seq> = old.map(|entry| entry.seq).collect();
            if !seqs.is_empty() {
                // Whatever was revived meanwhile is left alone: the write decides anew.
                discarded += self.failures.remedy(route.id, seqs, Remedy::Expire(last)).await?;
            }
            after = page.next;
            if after.is_none() {
                return Ok(discarded);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Retention;
    use crate::announce::Route;
    use crate::clock::{Clock, ManualClock};
    use crate::fault::FaultKind;
    use crate::queue::model::ModelQueue;
    use crate::queue::suite::{announced, claim_any};
    use crate::queue::{Failure, Lane, Outcome, Queue, Weight};
    use std::sync::Arc;
    use std::time::Duration;

    const DAY: Duration = Duration::from_hours(24);

    #[tokio::test]
    async fn what_is_old_goes_and_a_clock_that_jumps_ahead_makes_nothing_old() {
        let clock = Arc::new(ManualClock::default());
        let queue = Arc::new(ModelQueue::new(u64::MAX, Duration::from_mins(10), clock.clone()));
        let id = queue.register("a_to_b", "a", "b").await.unwrap();
        let route = Route { name: "a_to_b".into(), id, from: "a".into(), to: "b".into(), enabled: true };
        let retention = Retention::new(queue.clone(), clock.clone(), vec![route.clone()], 7 * DAY);
        for (number, parks) in [(1, true), (2, true), (3, false)] {
            queue.push(vec![announced(id, number)], vec![]).await.unwrap();
            let now = clock.now();
            let claim = claim_any(&*queue, id, Lane::Fresh, 1, now).await.unwrap().remove(0);
            let kind = FaultKind::DestinationRejected;
            let (peer, message) = ("b".to_owned(), String::new());
            let failure = Failure { kind, code: None, peer, message, first: now, last: now, count: 0 };
            let weight = Weight::ONE;
            let outcome = if parks {
                Outcome::Park { failure, weight }
            } else {
                Outcome::Retry { due: now + Duration::from_mins(10), failure, weight }
            };
            queue.settle(vec![(claim, outcome)]).await.unwrap();
            clock.advance(4 * DAY);
        }
        // Of twelve days, the first was parked twelve ago, the second eight.
        let start = clock.now();
        clock.set_wall(start + 300 * DAY);
        let moved = Retention { after: 9 * DAY, ..retention };
        assert_eq!(moved.discard_old(&route).await.unwrap(), 1);
        assert_eq!(moved.discard_old(&route).await.unwrap(), 0);
        clock.set_wall(start - 300 * DAY);
        assert_eq!(moved.discard_old(&route).await.unwrap(), 0);
        clock.set_wall(start);
        let moved = Retention { after: 7 * DAY, ..moved };
        assert_eq!(moved.discard_old(&route).await.unwrap(), 1);
        let counts = queue.counts(id);
        assert_eq!((counts.discarded, counts.fresh.parked.entries, counts.fresh.retrying.entries), (2, 0, 1));
    }
}
