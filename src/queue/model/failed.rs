//! Failed entries of the plain queue.

use super::{Durable, ModelItem, ModelLine, ModelQueue};
use crate::blob::BlobRef;
use crate::queue::failures::{FailedEntry, FailedState, FailureCursor, FailureFilter, FailurePage, Failures, Remedy};
use crate::queue::lookup::DiscardedBy;
use crate::queue::{Outcome, QueueError, RouteId, Seq};
use async_trait::async_trait;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

impl ModelItem {
    fn failed(&self) -> Option<(FailureCursor, FailedEntry)> {
        let failure = self.entry.failure.as_ref()?;
        let seq = self.entry.seq.0;
        let (cursor, state) = match self.line {
            ModelLine::New | ModelLine::Successor => return None,
            ModelLine::Timed => {
                let due = self.entry.due_time.duration_since(UNIX_EPOCH).unwrap_or_default();
                let due = u64::try_from(due.as_nanos()).unwrap_or(u64::MAX);
                (FailureCursor::Retrying(self.entry.lane, due, seq), FailedState::Retrying)
            }
            ModelLine::Parked => (FailureCursor::Parked(failure.kind.number(), seq), FailedState::Parked),
        };
        Some((cursor, FailedEntry { entry: self.entry.clone(), state }))
    }
}

impl Durable {
    fn remedy(&mut self, seq: u64, remedy: Remedy, now: SystemTime) -> bool {
        let Some(item) = self.items.get_mut(&seq) else { return false };
        let Some((_, FailedEntry { state, .. })) = item.failed() else { return false };
        match remedy {
            Remedy::Revive => {}
            Remedy::Discard => {
                self.settle(seq, &Outcome::Discard, DiscardedBy::Operator, now, Duration::ZERO);
                return true;
            }
            Remedy::Expire(last) => {
                let is_old = item.entry.failure.as_ref().is_some_and(|failure| failure.last <= last);
                let expires = state == FailedState::Parked && is_old;
                if expires {
                    self.settle(seq, &Outcome::Discard, DiscardedBy::Configuration, now, Duration::ZERO);
                }
                return expires;
            }
        }
        let due = match state {
            FailedState::Retrying => item.entry.due_time.min(now),
            FailedState::Parked => now,
        };
        let changes = state == FailedState::Parked || item.entry.attempts > 0 || due != item.entry.due_time;
        item.entry.forgive();
        item.entry.due_time = due;
        item.line = ModelLine::Timed;
        changes
    }
}

#[async_trait]
impl Failures for ModelQueue {
    async fn failures(
        &self,
        route: RouteId,
        filter: FailureFilter,
        after: Option<FailureCursor>,
        limit: usize,
    ) -> Result<FailurePage, QueueError> {
        let inner = self.inner.lock();
        let items = inner.durable.items.iter().filter(|(seq, _)| !inner.claimed.contains(seq));
        let mut found: Vec<_> = items
            .filter(|(_, item)| item.entry.route == route)
            .filter_map(|(_, item)| item.failed())
            .filter(|(cursor, failed)| after.is_none_or(|after| *cursor > after) && filter.admits(failed))
            .collect();
        found.sort_by_key(|(cursor, _)| *cursor);
        let more = found.len() > limit;
        found.truncate(limit);
        let next = if more { found.last().map(|(cursor, _)| *cursor).or(after) } else { None };
        Ok(FailurePage { failed: found.into_iter().map(|(_, failed)| failed).collect(), next, time: self.clock.now() })
    }

    async fn failures_of(&self, route: RouteId, blobs: Vec<BlobRef>) -> Result<Vec<FailedEntry>, QueueError> {
        let inner = self.inner.lock();
        let seqs = blobs.iter().flat_map(|blob| inner.durable.queued(route, *blob));
        let items = seqs.filter(|seq| !inner.claimed.contains(seq)).filter_map(|seq| inner.durable.items.get(&seq));
        Ok(items.filter_map(|item| item.failed().map(|(_, failed)| failed)).collect())
    }

    async fn remedy(&self, route: RouteId, seqs: Vec<Seq>, remedy: Remedy) -> Result<u64, QueueError> {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        let mut changed = 0;
        for Seq(seq) in seqs {
            let of_route = inner.durable.items.get(&seq).is_some_and(|item| item.entry.route == route);
            if of_route && !inner.claimed.contains(&seq) && inner.durable.remedy(seq, remedy, now) {
                changed += 1;
                if remedy != Remedy::Revive {
                    inner.released.remove(&seq);
                }
            }
        }
        inner.wake_all();
        inner.settlements.send_modify(|count| *count = count.wrapping_add(1));
        Ok(changed)
    }
}
