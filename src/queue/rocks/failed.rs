//! Failed entries: read from the rows of `retry` and `parked` without a lock, changed in the committer's batch.

use super::handle::RocksQueue;
use super::keys::{self, Seqs, family};
use super::request::Request;
use super::row::{self, Place, Stored};
use super::scan::rows;
use super::shared::Shared;
use super::txn::Txn;
use crate::blob::BlobRef;
use crate::failpoint::{self, Point};
use crate::queue::failures::{FailedEntry, FailedState, FailureCursor, FailureFilter, FailurePage, Failures, Remedy};
use crate::queue::lookup::DiscardedBy;
use crate::queue::{Lane, LaneCounts, QueueError, RouteId, Seq, Tally};
use async_trait::async_trait;
use std::cmp::min;
use std::time::SystemTime;

/// Rows that are looked at for one page, at most.
const MAX_LOOKS: usize = 20_000;

/// What a stored entry is among the failed ones, if it is one.
fn failed(stored: Stored) -> Option<FailedEntry> {
    stored.entry.failure.as_ref()?;
    let state = match stored.place {
        Place::Due => FailedState::Retrying,
        Place::Parked(_) => FailedState::Parked,
        Place::Ready | Place::Waiting => return None,
    };
    Some(FailedEntry { entry: stored.entry, state })
}

/// A stretch of index rows, in the order of cursors.
struct Stretch {
    family: &'static str,
    /// The lane of `retry` rows.
    lane: Option<Lane>,
    start: Vec<u8>,
    end: Vec<u8>,
}

impl Stretch {
    /// The stretches in which a filter's entries are, from behind a cursor on.
    fn all(route: RouteId, filter: FailureFilter, after: Option<FailureCursor>) -> Vec<Self> {
        let mut stretches = Vec::new();
        if filter.state != Some(FailedState::Parked) {
            stretches.extend(Lane::ALL.map(|lane| {
                let (start, end) = (keys::retry(route, lane, 0, 0).to_vec(), keys::lane_end(route, lane));
                Self { family: keys::RETRY, lane: Some(lane), start, end }
            }));
        }
        if filter.state != Some(FailedState::Retrying) {
            let (first, last) = filter.kind.map_or((0, u8::MAX), |kind| (kind.number(), kind.number()));
            let mut end = keys::parked(route, last, u64::MAX).to_vec();
            end.push(0);
            stretches.push(Self {
                family: keys::PARKED,
                lane: None,
                start: keys::parked(route, first, 0).to_vec(),
                end,
            });
        }
        let Some(after) = after else { return stretches };
        let (lane, mut key) = match after {
            FailureCursor::Retrying(lane, due, seq) => (Some(lane), keys::retry(route, lane, due, seq).to_vec()),
            FailureCursor::Parked(kind, seq) => (None, keys::parked(route, kind, seq).to_vec()),
        };
        key.push(0);
        // Parked ones stand last.
        let rank = |lane: Option<Lane>| (lane.is_none(), lane);
        stretches.retain(|stretch| rank(stretch.lane) >= rank(lane));
        for stretch in stretches.iter_mut().filter(|stretch| stretch.lane == lane) {
            stretch.start = key.clone().max(stretch.start.clone());
        }
        stretches
    }

    fn cursor(&self, key: &[u8]) -> Option<FailureCursor> {
        if let Some(lane) = self.lane {
            let (due, seq) = keys::due_seq_of_retry(key)?;
            return Some(FailureCursor::Retrying(lane, due, seq));
        }
        let (kind, seq) = keys::kind_seq_of_parked(key)?;
        Some(FailureCursor::Parked(kind, seq))
    }
}

impl Shared {
    fn failures(
        &self,
        (route, filter): (RouteId, FailureFilter),
        after: Option<FailureCursor>,
        limit: usize,
        time: SystemTime,
    ) -> Result<FailurePage, QueueError> {
        let db = self.db()?;
        let entries = family(&db, keys::ENTRY)?;
        let snapshot = db.snapshot();
        let mut found = Vec::new();
        let (mut looks, mut last, mut next) = (0, after, None);
        'pages: for stretch in Stretch::all(route, filter, after) {
            for row in rows(&db, &snapshot, stretch.family, stretch.start.clone(), stretch.end.clone()) {
                let (key, value) = row.map_err(|error| self.read_error(&error))?;
                // A malformed row is set aside by the scan for claims.
                let Some(cursor) = stretch.cursor(&key) else { continue };
                if found.len() >= limit || looks >= MAX_LOOKS {
                    next = last;
                    break 'pages;
                }
                looks += 1;
                last = Some(cursor);
                let never_failed = row::read_index_value(&value).is_some_and(|(failed, _)| !failed);
                if never_failed {
                    continue;
                }
                let (FailureCursor::Retrying(_, _, seq) | FailureCursor::Parked(_, seq)) = cursor;
                let value =
                    snapshot.get_cf(entries, keys::entry(route, seq)).map_err(|error| self.read_error(&error))?;
                let stored = value.and_then(|bytes| row::decode_entry(route, seq, &bytes).ok());
                found.extend(stored.and_then(failed).filter(|failed| filter.admits(failed)));
            }
        }
        self.drop_claimed(&mut found);
        Ok(FailurePage { failed: found, next, time })
    }

    fn failures_of(&self, route: RouteId, blobs: &[BlobRef]) -> Result<Vec<FailedEntry>, QueueError> {
        let db = self.db()?;
        let (refs, entries) = (family(&db, keys::REF)?, family(&db, keys::ENTRY)?);
        let snapshot = db.snapshot();
        let mut found = Vec::new();
        for blob in blobs {
            let value = snapshot.get_cf(refs, keys::reference(route, blob)).map_err(|error| self.read_error(&error))?;
            for seq in value.as_deref().and_then(Seqs::from_row).unwrap_or_default() {
                let value =
                    snapshot.get_cf(entries, keys::entry(route, seq)).map_err(|error| self.read_error(&error))?;
                let stored = value.and_then(|bytes| row::decode_entry(route, seq, &bytes).ok());
                found.extend(stored.and_then(failed));
            }
        }
        self.drop_claimed(&mut found);
        Ok(found)
    }

    /// When the failed entry with the lowest sequence was pushed, among the retrying and among the parked.
    pub(super) fn oldest_failed(&self, route: RouteId) -> Result<[Option<SystemTime>; 2], QueueError> {
        // Where there is none, nothing is walked over to find out.
        let counts = self.figures().counts(route);
        let has =
            |of: fn(&LaneCounts) -> &Tally| [&counts.fresh, &counts.backfill].iter().any(|lane| of(lane).entries > 0);
        let (may_retry, may_be_parked) = (has(|lane| &lane.retrying), has(|lane| &lane.parked));
        let db = self.db()?;
        let snapshot = db.snapshot();
        let failed = |error: rocksdb::Error| self.read_error(&error);

        let (mut retrying, mut looks) = (None, 0);
        for lane in Lane::ALL.into_iter().filter(|_| may_retry) {
            let start = keys::retry(route, lane, 0, 0).to_vec();
            for row in rows(&db, &snapshot, keys::RETRY, start, keys::lane_end(route, lane)) {
                let (key, value) = row.map_err(failed)?;
                let Some((_, seq)) = keys::due_seq_of_retry(&key) else { continue };
                looks += 1;
                let has_failed = row::read_index_value(&value).is_some_and(|(failed, _)| failed);
                if has_failed
                    && retrying.is_none_or(|oldest| seq < oldest)
                    && !self.claims().is_claimed(route, lane, seq)
                {
                    retrying = Some(seq);
                }
                if looks > MAX_LOOKS {
                    break;
                }
            }
        }
        let retrying = retrying.filter(|_| looks <= MAX_LOOKS);

        // The first of each kind is its oldest.
        let (mut parked, mut kind) = (None::<u64>, may_be_parked.then_some(0));
        while let Some(next) = kind {
            let (start, end) = (keys::parked(route, next, 0).to_vec(), keys::route_end(route));
            let first = rows(&db, &snapshot, keys::PARKED, start, end).next().transpose().map_err(failed)?;
            let found = first.and_then(|(key, _)| keys::kind_seq_of_parked(&key));
            parked = found.map(|(_, seq)| seq).into_iter().chain(parked).min();
            kind = found.and_then(|(kind, _)| kind.checked_add(1));
        }

        let entries = family(&db, keys::ENTRY)?;
        let time = |seq: Option<u64>| -> Result<Option<SystemTime>, QueueError> {
            let Some(seq) = seq else { return Ok(None) };
            let value = snapshot.get_cf(entries, keys::entry(route, seq)).map_err(failed)?;
            let stored = value.and_then(|bytes| row::decode_entry(route, seq, &bytes).ok());
            Ok(stored.map(|stored| stored.entry.enqueue_time))
        };
        Ok([time(retrying)?, time(parked)?])
    }

    fn drop_claimed(&self, found: &mut Vec<FailedEntry>) {
        let claims = self.claims();
        found.retain(|FailedEntry { entry, .. }| !claims.is_claimed(entry.route, entry.lane, entry.seq.0));
    }
}

impl Txn<'_> {
    /// Does this to an entry, if it is failed and unclaimed; whether anything changed.
    pub(super) fn remedy(&mut self, route: RouteId, seq: u64, remedy: Remedy) -> Result<bool, QueueError> {
        let Some(mut stored) = self.entry(route, seq)? else { return Ok(false) };
        let Some(FailedEntry { state, .. }) = failed(stored.clone()) else { return Ok(false) };
        if self.claimed(&stored) {
            return Ok(false);
        }
        match (remedy, state) {
            (Remedy::Discard, _) => self.discard(stored, DiscardedBy::Operator)?,
            (Remedy::Expire(last), _) => {
                let is_old = stored.entry.failure.as_ref().is_some_and(|failure| failure.last <= last);
                if state != FailedState::Parked || !is_old {
                    return Ok(false);
                }
                self.discard(stored, DiscardedBy::Configuration)?;
            }
            (Remedy::Revive, FailedState::Parked) => {
                stored.entry.forgive();
                self.make_due(&mut stored);
                self.put(stored);
            }
            (Remedy::Revive, FailedState::Retrying) => {
                let entry = &mut stored.entry;
                if entry.attempts == 0 && entry.due_time <= self.now {
                    return Ok(false);
                }
                entry.forgive();
                entry.due_time = min(entry.due_time, self.now);
                self.put(stored);
            }
        }
        Ok(true)
    }
}

#[async_trait]
impl Failures for RocksQueue {
    async fn failures(
        &self,
        route: RouteId,
        filter: FailureFilter,
        after: Option<FailureCursor>,
        limit: usize,
    ) -> Result<FailurePage, QueueError> {
        failpoint::pause(Point::QueueFailures).await?;
        let time = self.clock.now();
        self.read(move |shared| shared.failures((route, filter), after, limit, time)).await
    }

    async fn failures_of(&self, route: RouteId, blobs: Vec<BlobRef>) -> Result<Vec<FailedEntry>, QueueError> {
        self.read(move |shared| shared.failures_of(route, &blobs)).await
    }

    async fn remedy(&self, route: RouteId, seqs: Vec<Seq>, remedy: Remedy) -> Result<u64, QueueError> {
        failpoint::pause(Point::QueueRemedy).await?;
        self.ask(|answer| Request::Remedy { route, seqs, remedy, answer }).await
    }
}
