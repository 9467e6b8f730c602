//! Reading what may be claimed, and how old the oldest of it is.

use super::claims::{BadRow, Claimable, Position, ScanResult};
use super::keys;
use super::row::{self, Stored};
use super::shared::Shared;
use crate::queue::{Claim, ClaimOrder, ClaimRequest, Claimed, Lane, Oldest, QueueError, RouteId, Seq};
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, Snapshot};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A row of an index: key and value.
type IndexRow = (Box<[u8]>, Box<[u8]>);

/// A sequence that may be claimed, and the index row through which it was found; a released one has none.
type Candidate = (u64, Option<IndexRow>);

/// A scan of one lane for what may be claimed.
struct Scan<'a> {
    db: &'a DB,
    snapshot: &'a Snapshot<'a>,
    shared: &'a Shared,
    route: RouteId,
    lane: Lane,
    max: usize,
    found: ScanResult,
}

impl Shared {
    /// Claims entries, and says which rows it could not read: they are to be set aside before the next claim. For the
    /// committer alone, between two batches: no row changes meanwhile.
    pub(super) fn claim(self: &Arc<Self>, request: &ClaimRequest) -> Result<(Claimed, Vec<BadRow>), QueueError> {
        let db = self.db()?;
        let found = self.scan(&db, request).map_err(|error| self.read_error(&error))?;
        self.claims().take(request.route, request.lane, &found);
        let ScanResult { entries, bad, next_due, .. } = found;
        let mut figures = self.figures();
        for row in &entries {
            figures.claim(&row.entry, true);
        }
        drop(figures);
        let claims = entries.into_iter().map(|row| {
            // A claim may outlive the queue.
            let shared = Arc::downgrade(self);
            Claim::new(row.entry.clone(), move |entry| {
                if let Some(shared) = shared.upgrade() {
                    shared.release(entry);
                }
            })
        });
        Ok((Claimed { claims: claims.collect(), next_due }, bad))
    }

    fn scan(&self, db: &DB, request: &ClaimRequest) -> Result<ScanResult, rocksdb::Error> {
        let ClaimRequest { route, lane, order, max, now } = *request;
        let Position { ready_from, retry_from, .. } = self.claims().position(route, lane);
        let found = ScanResult { ready_from, retry_from, ..ScanResult::default() };
        let snapshot = db.snapshot();
        let mut scan = Scan { db, snapshot: &snapshot, shared: self, route, lane, max, found };
        match order {
            ClaimOrder::Due => scan.due(keys::nanos(now), self.max_backoff())?,
            order => scan.ready(order)?,
        }
        Ok(scan.found)
    }

    /// When the oldest entries of a route were pushed.
    pub(super) fn oldest(&self, route: RouteId, now: SystemTime) -> Result<Oldest, QueueError> {
        let [retrying, parked] = self.oldest_failed(route)?;
        let db = self.db()?;
        let read = |lane| self.oldest_of(&db, route, lane).map_err(|error| self.read_error(&error));
        let (fresh, fresh_due) = read(Lane::Fresh)?;
        let (backfill, backfill_due) = read(Lane::Backfill)?;
        let due = fresh_due.into_iter().chain(backfill_due).min();
        // Further ahead than the longest backoff is due.
        let beyond = |due: &SystemTime| due.duration_since(now).is_ok_and(|ahead| ahead > self.max_backoff());
        let next_due = due.map(|due| if beyond(&due) { now } else { due });
        Ok(Oldest { fresh, backfill, retrying, parked, next_due })
    }

    /// When the entry with the lowest sequence was pushed, of those that are claimed, released, or next to be claimed; and
    /// when the next `retry` row is due. An entry that never failed and waits in `retry` (it changed lane, or succeeds
    /// another) is looked at only where it is first there: it is due, and claimed before the others.
    fn oldest_of(
        &self,
        db: &DB,
        route: RouteId,
        lane: Lane,
    ) -> Result<(Option<SystemTime>, Option<SystemTime>), rocksdb::Error> {
        let Position { ready_from, retry_from, mut held } = self.claims().position(route, lane);
        let snapshot = db.snapshot();
        let entry = |seq: u64| -> Result<Option<Stored>, rocksdb::Error> {
            let Some(family) = db.cf_handle(keys::ENTRY) else { return Ok(None) };
            let value = snapshot.get_cf(family, keys::entry(route, seq))?;
            Ok(value.and_then(|bytes| row::decode_entry(route, seq, &bytes).ok()))
        };
        let mut older = |stored: &Stored| {
            let (seq, time) = (stored.entry.seq.0, stored.entry.enqueue_time);
            if held.is_none_or(|(oldest, _)| seq < oldest) {
                held = Some((seq, time));
            }
        };
        let end = keys::lane_end(route, lane);
        let start = keys::ready(route, lane, ready_from).to_vec();
        for row in rows(db, &snapshot, keys::READY, start, end.clone()) {
            if let Some(seq) = keys::seq_of_ready(&row?.0) {
                entry(seq)?.iter().for_each(&mut older);
                break;
            }
        }
        let mut next_due = None;
        let (due, seq) = retry_from;
        for row in rows(db, &snapshot, keys::RETRY, keys::retry(route, lane, due, seq).to_vec(), end) {
            let Some((_, seq)) = keys::due_seq_of_retry(&row?.0) else { continue };
            if self.claims().is_free(route, lane, seq) {
                if let Some(stored) = entry(seq)? {
                    next_due = Some(stored.entry.due_time);
                    if stored.entry.failure.is_none() {
                        older(&stored);
                    }
                }
                break;
            }
        }
        Ok((held.map(|(_, time)| time), next_due))
    }
}

impl Scan<'_> {
    /// New entries.
    fn ready(&mut self, order: ClaimOrder) -> Result<(), rocksdb::Error> {
        let (db, snapshot, first) = (self.db, self.snapshot, self.found.ready_from);
        let (route, lane) = (self.route, self.lane);
        let key = |seq: u64| keys::ready(route, lane, seq).to_vec();
        let (start, end) = (key(first), keys::lane_end(route, lane));
        let mut rows = match order {
            ClaimOrder::Oldest | ClaimOrder::Due => rows(db, snapshot, keys::READY, start, end),
            ClaimOrder::Newest => rows_backward(db, snapshot, keys::READY, start, end),
            ClaimOrder::Before(Seq(before)) => rows_backward(db, snapshot, keys::READY, start, key(before)),
            ClaimOrder::After(Seq(after)) => rows(db, snapshot, keys::READY, key(after.saturating_add(1)), end),
            ClaimOrder::From(part) => {
                let last = rows_backward(db, snapshot, keys::READY, start, end.clone()).next().transpose()?;
                let last = last.and_then(|(key, _)| keys::seq_of_ready(&key)).unwrap_or(first);
                rows(db, snapshot, keys::READY, key(part_of(first, last, part)), end)
            }
        };
        let from_head = order == ClaimOrder::Oldest;
        if from_head {
            self.released(false)?;
        }
        self.fill(keys::READY, &mut rows, from_head)
    }

    /// What is due.
    fn due(&mut self, now: u64, max_backoff: Duration) -> Result<(), rocksdb::Error> {
        self.released(true)?;
        let (db, snapshot, (due, seq)) = (self.db, self.snapshot, self.found.retry_from);
        let (route, lane) = (self.route, self.lane);
        let key = |due: u64, seq: u64| keys::retry(route, lane, due, seq).to_vec();
        let end = key(now.saturating_add(1), 0);
        self.fill(keys::RETRY, &mut rows(db, snapshot, keys::RETRY, key(due, seq), end.clone()), true)?;
        // The clock went back, or was wrong when these failed.
        let horizon = now.saturating_add(u64::try_from(max_backoff.as_nanos()).unwrap_or(u64::MAX));
        let start = key(horizon.saturating_add(1), 0);
        let lane_end = if horizon < u64::MAX { keys::lane_end(route, lane) } else { start.clone() };
        self.fill(keys::RETRY, &mut rows(db, snapshot, keys::RETRY, start.clone(), lane_end), false)?;
        if self.found.entries.len() < self.max {
            let later = self.candidates(keys::RETRY, &mut rows(db, snapshot, keys::RETRY, end, start), 1, false)?;
            let due = later.first().and_then(|(_, row)| keys::due_seq_of_retry(&row.as_ref()?.0));
            self.found.next_due = due.map(|(due, _)| keys::time(due));
        }
        Ok(())
    }

    /// Adds what was released, which is first in line.
    fn released(&mut self, retry: bool) -> Result<(), rocksdb::Error> {
        let mut released = self.shared.claims().released(self.route, self.lane, retry).into_iter();
        while self.found.entries.len() < self.max && released.len() > 0 {
            let wanted = self.max - self.found.entries.len();
            let candidates: Vec<Candidate> = released.by_ref().take(wanted).map(|seq| (seq, None)).collect();
            self.add(keys::READY, candidates)?;
        }
        Ok(())
    }

    /// Adds entries from index rows until there are as many as were asked for, or no more.
    fn fill(&mut self, family: &'static str, rows: &mut Rows<'_>, moves_cursor: bool) -> Result<(), rocksdb::Error> {
        while self.found.entries.len() < self.max {
            let wanted = self.max - self.found.entries.len();
            let candidates = self.candidates(family, rows, wanted, moves_cursor)?;
            if candidates.is_empty() {
                break;
            }
            self.add(family, candidates)?;
        }
        Ok(())
    }

    /// The next index rows of entries that are neither claimed nor released, up to so many.
    fn candidates(
        &mut self,
        family: &'static str,
        rows: &mut Rows<'_>,
        wanted: usize,
        moves_cursor: bool,
    ) -> Result<Vec<Candidate>, rocksdb::Error> {
        let mut candidates: Vec<Candidate> = Vec::new();
        let mut is_end = false;
        while candidates.len() < wanted && !is_end {
            while candidates.len() < wanted {
                let Some(row) = rows.next().transpose()? else {
                    is_end = true;
                    break;
                };
                let at = if family == keys::READY {
                    keys::seq_of_ready(&row.0).map(|seq| (0, seq))
                } else {
                    keys::due_seq_of_retry(&row.0)
                };
                let Some((due, seq)) = at else {
                    self.bad(family, row, None, false, "the key is malformed".to_owned());
                    continue;
                };
                match family {
                    _ if !moves_cursor => {}
                    keys::READY => self.found.ready_from = seq.saturating_add(1),
                    _ => self.found.retry_from = (due, seq.saturating_add(1)),
                }
                candidates.push((seq, Some(row)));
            }
            self.shared.claims().retain_free(self.route, self.lane, &mut candidates, |(seq, _)| *seq);
        }
        Ok(candidates)
    }

    /// Reads these entries.
    fn add(&mut self, family: &'static str, candidates: Vec<Candidate>) -> Result<(), rocksdb::Error> {
        let Some(entries) = self.db.cf_handle(keys::ENTRY) else { return Ok(()) };
        let entry_keys = candidates.iter().map(|(seq, _)| (entries, keys::entry(self.route, *seq)));
        let values = self.snapshot.multi_get_cf(entry_keys);
        for ((seq, index), value) in candidates.into_iter().zip(values) {
            let value = value?;
            let read = value.as_deref().map(|bytes| row::decode_entry(self.route, seq, bytes));
            let Some(row) = index else {
                match read {
                    Some(Ok(stored)) if Claimable::of(&stored).is_some_and(|at| at.lane == self.lane) => {
                        self.found.entries.push(Arc::new(stored));
                    }
                    _ => self.found.gone.push(seq),
                }
                continue;
            };
            match read {
                Some(Ok(stored)) if stored.index().is_some_and(|(name, key)| name == family && *key == *row.0) => {
                    self.found.entries.push(Arc::new(stored));
                }
                // It stays: only the row that points here is wrong.
                Some(Ok(_)) => self.bad(family, row, None, false, "the entry is elsewhere".to_owned()),
                Some(Err(error)) => {
                    let entry = value.map(|bytes| (seq, bytes));
                    self.bad(family, row, entry, true, error.to_string());
                }
                None => self.bad(family, row, None, true, "there is no such entry".to_owned()),
            }
        }
        Ok(())
    }

    fn bad(
        &mut self,
        family: &'static str,
        (key, value): IndexRow,
        entry: Option<(u64, Vec<u8>)>,
        lost: bool,
        problem: String,
    ) {
        let (route, lane, key, value) = (self.route, self.lane, key.into_vec(), value.into_vec());
        self.found.bad.push(BadRow { route, lane, family, key, value, entry, lost, problem });
    }
}

/// Rows of an index.
pub(super) type Rows<'a> = Box<dyn Iterator<Item = Result<IndexRow, rocksdb::Error>> + 'a>;

/// The same, from before `end` down to `start`.
fn rows_backward<'a>(db: &'a DB, snapshot: &'a Snapshot<'_>, family: &str, start: Vec<u8>, end: Vec<u8>) -> Rows<'a> {
    let Some(family) = db.cf_handle(family) else { return Box::new(std::iter::empty()) };
    if start >= end {
        return Box::new(std::iter::empty());
    }
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(start);
    options.set_iterate_upper_bound(end);
    Box::new(snapshot.iterator_cf_opt(family, options, IteratorMode::End))
}

/// The sequence at this part of the way from one to another.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a place somewhere on the way; a float that is out of range saturates"
)]
fn part_of(first: u64, last: u64, part: f64) -> u64 {
    let way = last.saturating_sub(first);
    first.saturating_add(((way as f64) * part.clamp(0.0, 1.0)) as u64).min(last)
}

/// The rows of a family from `start` to before `end`.
pub(super) fn rows<'a>(db: &'a DB, snapshot: &'a Snapshot<'_>, family: &str, start: Vec<u8>, end: Vec<u8>) -> Rows<'a> {
    let Some(family) = db.cf_handle(family) else { return Box::new(std::iter::empty()) };
    if start >= end {
        return Box::new(std::iter::empty());
    }
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(end);
    let from = start.clone();
    options.set_iterate_lower_bound(start);
    Box::new(snapshot.iterator_cf_opt(family, options, IteratorMode::From(&from, Direction::Forward)))
}
