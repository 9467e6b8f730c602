//! Who holds what, in memory: claims, released claims, and the cursors at which reading goes on.
//!
//! All of it is behind one lock, which a scan holds while it reads the database and the committer holds for moments only
//! before and after its write. An entry's row changes only after the committer [touched](Claims::touch) it: claimed
//! entries are left alone (they end by their own settlement), others are *busy* until the write has ended, and a scan
//! passes them by. So a scan never hands out a row that is about to change.

use super::keys;
use super::row::{self, Place, Stored};
use crate::queue::{ClaimOrder, ClaimRequest, Entry, Lane, RouteId, Seq};
use foldhash::{HashMap, HashSet};
use rocksdb::{DB, IteratorMode, ReadOptions, Snapshot};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// Where an entry's claimable row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) lane: Lane,
    /// Its due time for a `retry` row; none for a `ready` row.
    pub(super) due: Option<u64>,
    pub(super) enqueue_time: SystemTime,
}

impl Spot {
    pub(super) fn of(stored: &Stored) -> Option<Self> {
        let due = match stored.place {
            Place::Ready => None,
            Place::Due => Some(keys::nanos(stored.entry.due_time)),
            Place::Waiting | Place::Parked(_) => return None,
        };
        Some(Self { lane: stored.entry.lane, due, enqueue_time: stored.entry.enqueue_time })
    }
}

/// A row that cannot be read, to be moved to `aside`.
#[derive(Debug)]
pub(super) struct BadRow {
    pub(super) route: RouteId,
    pub(super) lane: Lane,
    /// The index row through which it was found.
    pub(super) family: &'static str,
    pub(super) key: Vec<u8>,
    pub(super) value: Vec<u8>,
    /// The entry's sequence and unreadable bytes, where it has any.
    pub(super) entry: Option<(u64, Vec<u8>)>,
    /// Whether an entry is lost to the queue with it, and the counters with that.
    pub(super) lost: bool,
    pub(super) problem: String,
}

/// Where a row stands that was to be moved to `aside`.
#[derive(Clone, Debug)]
pub(super) struct AsideRow {
    route: RouteId,
    lane: Lane,
    key: Vec<u8>,
}

impl AsideRow {
    pub(super) fn of(row: &BadRow) -> Self {
        Self { route: row.route, lane: row.lane, key: row.key.clone() }
    }
}

#[derive(Debug)]
struct Busy {
    route: RouteId,
    lane: Lane,
    /// A scan has moved its cursor beyond the row.
    passed: bool,
}

/// A claimed entry.
#[derive(Debug)]
struct Held {
    enqueue_time: SystemTime,
    /// Whether its row is in `retry`.
    retry: bool,
    /// Its row, so that settling it need not read that again; absent where the row is not known for sure.
    row: Option<Arc<Stored>>,
}

/// An entry whose claim was released.
#[derive(Clone, Copy, Debug)]
struct Released {
    enqueue_time: SystemTime,
    /// Whether its row is in `retry`.
    retry: bool,
}

/// A lane's cursors and claims.
#[derive(Debug, Default)]
struct LaneClaims {
    /// `ready` rows below are claimed, released, busy or gone.
    ready_from: u64,
    /// The same for `retry` rows, as due time and sequence.
    retry_from: (u64, u64),
    claimed: BTreeMap<u64, Held>,
    released: BTreeMap<u64, Released>,
}

/// All lanes' claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    lanes: HashMap<(RouteId, Lane), LaneClaims>,
    busy: HashMap<u64, Busy>,
    /// Keys of unreadable index rows on their way to `aside`.
    bad: HashSet<Vec<u8>>,
}

/// What a scan found; nothing has changed until [`Claims::take`].
#[derive(Debug, Default)]
pub(super) struct Picked {
    pub(super) entries: Vec<Arc<Stored>>,
    pub(super) bad: Vec<BadRow>,
    gone: Vec<u64>,
    passed: Vec<u64>,
    ready_from: u64,
    retry_from: (u64, u64),
    /// When the next row of `retry` is due.
    pub(super) next_due: Option<SystemTime>,
}

type Found = (u64, Option<(&'static str, Vec<u8>, Vec<u8>)>);

impl Claims {
    fn lane(&mut self, route: RouteId, lane: Lane) -> &mut LaneClaims {
        self.lanes.entry((route, lane)).or_default()
    }

    /// Says where a lane's `ready` rows begin; once, on opening.
    pub(super) fn start_at(&mut self, route: RouteId, lane: Lane, ready_from: u64) {
        self.lane(route, lane).ready_from = ready_from;
    }

    /// Whether an entry is claimed. If not, it is busy from now on, until [`finish`](Self::finish).
    pub(super) fn touch(&mut self, route: RouteId, lane: Lane, seq: u64) -> bool {
        if self.busy.contains_key(&seq) {
            return false;
        }
        if self.is_claimed(route, lane, seq) {
            return true;
        }
        self.busy.insert(seq, Busy { route, lane, passed: false });
        false
    }

    /// Whether an entry is claimed, at this moment.
    pub(super) fn is_claimed(&self, route: RouteId, lane: Lane, seq: u64) -> bool {
        self.lanes.get(&(route, lane)).is_some_and(|claims| claims.claimed.contains_key(&seq))
    }

    /// The sequences of a route's claimed entries.
    pub(super) fn claimed(&self, route: RouteId) -> HashSet<u64> {
        let lanes = Lane::ALL.into_iter().filter_map(|lane| self.lanes.get(&(route, lane)));
        lanes.flat_map(|claims| claims.claimed.keys().copied()).collect()
    }

    /// Sequences below which a route's lanes have no `ready` row.
    pub(super) fn ready_lows(&self, route: RouteId) -> [u64; 2] {
        Lane::ALL.map(|lane| self.ready_low(route, lane))
    }

    fn ready_low(&self, route: RouteId, lane: Lane) -> u64 {
        let Some(claims) = self.lanes.get(&(route, lane)) else { return 0 };
        let held = claims.claimed.keys().next().into_iter().chain(claims.released.keys().next());
        let busy = self.busy.iter().filter(|(_, busy)| busy.route == route && busy.lane == lane).map(|(seq, _)| seq);
        held.chain(busy).copied().fold(claims.ready_from, u64::min)
    }

    /// Puts a claim back, first in line.
    pub(super) fn release(&mut self, route: RouteId, lane: Lane, seq: u64) {
        let claims = self.lane(route, lane);
        if let Some(Held { enqueue_time, retry, .. }) = claims.claimed.remove(&seq) {
            claims.released.insert(seq, Released { enqueue_time, retry });
        }
    }

    /// The row of a claimed entry, where it is known.
    pub(super) fn row(&self, route: RouteId, lane: Lane, seq: u64) -> Option<Arc<Stored>> {
        self.lanes.get(&(route, lane))?.claimed.get(&seq)?.row.clone()
    }

    /// An entry that was and stays claimed was written.
    pub(super) fn written(&mut self, row: Arc<Stored>) {
        let Entry { route, lane, seq, .. } = row.entry;
        if let Some(held) = self.lane(route, lane).claimed.get_mut(&seq.0) {
            held.row = Some(row);
        }
    }

    /// Ends a claim whose settlement is durable.
    pub(super) fn settle(&mut self, route: RouteId, lane: Lane, seq: u64) {
        self.lane(route, lane).claimed.remove(&seq);
    }

    /// Ends the time in which an entry was busy; `spot` is where its row is now, if it has a claimable one.
    pub(super) fn finish(&mut self, seq: u64, spot: Option<Spot>) {
        let Some(busy) = self.busy.remove(&seq) else { return };
        let released = self.lane(busy.route, busy.lane).released.remove(&seq).is_some();
        let Some(Spot { lane, due, enqueue_time }) = spot else { return };
        let claims = self.lane(busy.route, lane);
        if released || (busy.passed && due.is_none()) {
            claims.released.insert(seq, Released { enqueue_time, retry: due.is_some() });
        }
        if let Some(due) = due {
            claims.retry_from = claims.retry_from.min((due, seq));
        }
    }

    /// A `retry` row was added: reading must not begin behind it.
    pub(super) fn added_retry(&mut self, route: RouteId, lane: Lane, due: u64, seq: u64) {
        let claims = self.lane(route, lane);
        claims.retry_from = claims.retry_from.min((due, seq));
    }

    /// An unreadable row is in `aside` now.
    pub(super) fn forget_bad(&mut self, key: &[u8]) {
        self.bad.remove(key);
    }

    /// An unreadable row could not be moved to `aside`: reading begins before it again.
    pub(super) fn meet_again(&mut self, row: &AsideRow) {
        self.bad.remove(&row.key);
        let claims = self.lane(row.route, row.lane);
        if let Some(seq) = keys::seq_of_ready(&row.key) {
            claims.ready_from = claims.ready_from.min(seq);
        } else if let Some(at) = keys::due_seq_of_retry(&row.key) {
            claims.retry_from = claims.retry_from.min(at);
        } else {
            *claims = LaneClaims { claimed: std::mem::take(&mut claims.claimed), ..LaneClaims::default() };
        }
    }

    /// Goes on with a database that was opened again: claims are kept, everything else is read anew from where `ready` rows
    /// begin by its own account. Nobody stays first in line, and no row is known, for a batch of unknown fate may have moved
    /// whoever was, or written it. No batch may be under way.
    pub(super) fn resume(&mut self, mut loaded: Self) {
        for ((route, lane), claims) in self.lanes.drain() {
            let claimed = claims.claimed.into_iter().map(|(seq, held)| (seq, Held { row: None, ..held }));
            loaded.lane(route, lane).claimed = claimed.collect();
        }
        *self = loaded;
    }

    /// Reads what may be claimed. The database must be read under the lock that guards `self`.
    pub(super) fn pick(
        &self,
        db: &DB,
        request: &ClaimRequest,
        max_backoff: Duration,
    ) -> Result<Picked, rocksdb::Error> {
        let ClaimRequest { route, lane, order, max, now } = *request;
        let lane = (route, lane);
        let empty = LaneClaims::default();
        let claims = self.lanes.get(&lane).unwrap_or(&empty);
        let mut picked = Picked { ready_from: claims.ready_from, retry_from: claims.retry_from, ..Picked::default() };
        let snapshot = db.snapshot();
        let reads_retry = order == ClaimOrder::Due;
        if matches!(order, ClaimOrder::Oldest | ClaimOrder::Due) {
            let released = claims.released.iter().filter(|(_, released)| released.retry == reads_retry);
            let mut released =
                released.filter(|(seq, _)| !self.busy.contains_key(seq)).map(|(seq, _)| Ok((*seq, None)));
            self.fill(db, &snapshot, lane, max, &mut picked, |_| released.next())?;
        }
        if reads_retry {
            self.pick_due(db, &snapshot, lane, max, keys::nanos(now), max_backoff, &mut picked)?;
            return Ok(picked);
        }
        let key = |seq: u64| keys::ready(lane.0, lane.1, seq).to_vec();
        let (first, end) = (key(claims.ready_from), keys::lane_end(lane.0, lane.1));
        let mut rows = match order {
            ClaimOrder::Newest => rows_backward(db, &snapshot, keys::READY, first, end),
            ClaimOrder::Before(Seq(before)) => rows_backward(db, &snapshot, keys::READY, first, key(before)),
            ClaimOrder::After(Seq(after)) => rows(db, &snapshot, keys::READY, key(after.saturating_add(1)), end),
            ClaimOrder::From(part) => {
                let last = rows_backward(db, &snapshot, keys::READY, first.clone(), end.clone()).next().transpose()?;
                let last = last.and_then(|(key, _)| keys::seq_of_ready(&key)).unwrap_or(claims.ready_from);
                rows(db, &snapshot, keys::READY, key(part_of(claims.ready_from, last, part)), end)
            }
            ClaimOrder::Oldest | ClaimOrder::Due => rows(db, &snapshot, keys::READY, first, end),
        };
        let moves_cursor = order == ClaimOrder::Oldest;
        self.fill(db, &snapshot, lane, max, &mut picked, |picked| {
            self.next_ready(picked, lane, &mut rows, moves_cursor)
        })?;
        Ok(picked)
    }

    /// The part of [`pick`](Self::pick) that reads what is due.
    #[expect(clippy::too_many_arguments, reason = "a part of one function")]
    fn pick_due(
        &self,
        db: &DB,
        snapshot: &Snapshot<'_>,
        (route, lane): (RouteId, Lane),
        max: usize,
        now: u64,
        max_backoff: Duration,
        picked: &mut Picked,
    ) -> Result<(), rocksdb::Error> {
        let end = keys::retry(route, lane, now.saturating_add(1), 0).to_vec();
        let start = keys::retry(route, lane, picked.retry_from.0, picked.retry_from.1).to_vec();
        let mut due = rows(db, snapshot, keys::RETRY, start, end.clone());
        self.fill(db, snapshot, (route, lane), max, picked, |picked| {
            self.next_retry((route, lane), picked, &mut due, true)
        })?;
        // The clock went back, or was wrong when these failed.
        let horizon = now.saturating_add(u64::try_from(max_backoff.as_nanos()).unwrap_or(u64::MAX));
        let start = keys::retry(route, lane, horizon.saturating_add(1), 0).to_vec();
        let lane_end = if horizon < u64::MAX { keys::lane_end(route, lane) } else { start.clone() };
        let mut beyond = rows(db, snapshot, keys::RETRY, start.clone(), lane_end);
        self.fill(db, snapshot, (route, lane), max, picked, |picked| {
            self.next_retry((route, lane), picked, &mut beyond, false)
        })?;
        if picked.entries.len() < max {
            let mut later = rows(db, snapshot, keys::RETRY, end, start);
            if let Some(row) = self.next_retry((route, lane), picked, &mut later, false) {
                let (_, index) = row?;
                let due = index.and_then(|(_, key, _)| keys::due_seq_of_retry(&key));
                picked.next_due = due.map(|(due, _)| keys::time(due));
            }
        }
        Ok(())
    }

    /// Adds entries from a source of index rows until there are `max`, or no more.
    fn fill(
        &self,
        db: &DB,
        snapshot: &Snapshot<'_>,
        (route, lane): (RouteId, Lane),
        max: usize,
        picked: &mut Picked,
        mut next: impl FnMut(&mut Picked) -> Option<Result<Found, rocksdb::Error>>,
    ) -> Result<(), rocksdb::Error> {
        let Some(family) = db.cf_handle(keys::ENTRY) else { return Ok(()) };
        while picked.entries.len() < max {
            let mut found = Vec::new();
            while found.len() < max - picked.entries.len() {
                match next(picked) {
                    Some(row) => found.push(row?),
                    None => break,
                }
            }
            if found.is_empty() {
                break;
            }
            let entry_keys = found.iter().map(|(seq, _)| (family, keys::entry(route, *seq)));
            let values = snapshot.multi_get_cf(entry_keys);
            for ((seq, index), value) in found.into_iter().zip(values) {
                let value = value?;
                let read = value.as_deref().map(|bytes| row::decode_entry(route, seq, bytes));
                let problem = match (read, &index) {
                    (Some(Ok(stored)), None) if Spot::of(&stored).is_some_and(|spot| spot.lane == lane) => {
                        picked.entries.push(Arc::new(stored));
                        continue;
                    }
                    (Some(Ok(stored)), Some((family, key, _)))
                        if stored.index().is_some_and(|(name, of)| name == *family && *of == **key) =>
                    {
                        picked.entries.push(Arc::new(stored));
                        continue;
                    }
                    (_, None) => {
                        picked.gone.push(seq);
                        continue;
                    }
                    (Some(Ok(_)), Some(_)) => "the entry is elsewhere".to_owned(),
                    (Some(Err(error)), Some(_)) => error.to_string(),
                    (None, Some(_)) => "there is no such entry".to_owned(),
                };
                // A sound entry in another place stays: only the row that points here is wrong.
                let lost = value.as_deref().is_none_or(|bytes| row::decode_entry(route, seq, bytes).is_err());
                if let Some((family, key, value_of_index)) = index {
                    let entry = value.filter(|_| lost).map(|bytes| (seq, bytes));
                    picked.bad.push(BadRow { route, lane, family, key, value: value_of_index, entry, lost, problem });
                }
            }
        }
        Ok(())
    }

    fn malformed(
        &self,
        (route, lane): (RouteId, Lane),
        family: &'static str,
        key: &[u8],
        value: &[u8],
        picked: &mut Picked,
    ) {
        if !self.bad.contains(key) {
            let (key, value, problem) = (key.to_vec(), value.to_vec(), "the key is malformed".to_owned());
            picked.bad.push(BadRow { route, lane, family, key, value, entry: None, lost: false, problem });
        }
    }

    fn next_retry(
        &self,
        (route, lane): (RouteId, Lane),
        picked: &mut Picked,
        rows: &mut Rows<'_>,
        moves_cursor: bool,
    ) -> Option<Result<Found, rocksdb::Error>> {
        let claims = self.lanes.get(&(route, lane));
        let held =
            |seq: u64| claims.is_some_and(|lane| lane.claimed.contains_key(&seq) || lane.released.contains_key(&seq));
        for row in rows {
            let (key, value) = match row {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            let Some((due, seq)) = keys::due_seq_of_retry(&key) else {
                self.malformed((route, lane), keys::RETRY, &key, &value, picked);
                continue;
            };
            if moves_cursor {
                picked.retry_from = (due, seq.saturating_add(1));
            }
            if self.busy.contains_key(&seq) {
                picked.passed.push(seq);
            } else if !self.bad.contains(&*key) && !held(seq) {
                return Some(Ok((seq, Some((keys::RETRY, key.into_vec(), value.into_vec())))));
            }
        }
        None
    }

    fn next_ready(
        &self,
        picked: &mut Picked,
        (route, lane): (RouteId, Lane),
        rows: &mut Rows<'_>,
        moves_cursor: bool,
    ) -> Option<Result<Found, rocksdb::Error>> {
        let claims = self.lanes.get(&(route, lane));
        let held =
            |seq: u64| claims.is_some_and(|lane| lane.claimed.contains_key(&seq) || lane.released.contains_key(&seq));
        for row in rows {
            let (key, value) = match row {
                Ok(row) => row,
                Err(error) => return Some(Err(error)),
            };
            let Some(seq) = keys::seq_of_ready(&key) else {
                self.malformed((route, lane), keys::READY, &key, &value, picked);
                continue;
            };
            if moves_cursor {
                picked.ready_from = seq.saturating_add(1);
            }
            if self.busy.contains_key(&seq) {
                // Behind the cursor it would not be met again.
                picked.passed.extend(moves_cursor.then_some(seq));
            } else if !self.bad.contains(&*key) && !held(seq) {
                return Some(Ok((seq, Some((keys::READY, key.into_vec(), value.into_vec())))));
            }
        }
        None
    }

    /// Claims what was picked, under the same lock.
    pub(super) fn take(&mut self, route: RouteId, lane: Lane, picked: &Picked) {
        for seq in &picked.passed {
            if let Some(busy) = self.busy.get_mut(seq) {
                busy.passed = true;
            }
        }
        self.bad.extend(picked.bad.iter().map(|bad| bad.key.clone()));
        let claims = self.lane(route, lane);
        claims.ready_from = picked.ready_from;
        claims.retry_from = picked.retry_from;
        for seq in &picked.gone {
            claims.released.remove(seq);
        }
        for row in &picked.entries {
            let Entry { seq, enqueue_time, .. } = row.entry;
            claims.released.remove(&seq.0);
            let retry = row.place == Place::Due;
            claims.claimed.insert(seq.0, Held { enqueue_time, retry, row: Some(Arc::clone(row)) });
        }
    }

    /// When the oldest entry that is claimed, released, or next by sequence was pushed, and when the next `retry` row
    /// is due. An entry that never failed and waits in `retry` (it changed lane, or succeeds another) is looked at only
    /// where it is first there: it is due, and claimed before the others.
    pub(super) fn oldest(
        &self,
        db: &DB,
        route: RouteId,
        lane: Lane,
    ) -> Result<(Option<SystemTime>, Option<SystemTime>), rocksdb::Error> {
        let empty = LaneClaims::default();
        let claims = self.lanes.get(&(route, lane)).unwrap_or(&empty);
        let snapshot = db.snapshot();
        let mut picked = Picked::default();
        let mut times: BTreeSet<SystemTime> = claims
            .claimed
            .values()
            .map(|held| held.enqueue_time)
            .chain(claims.released.values().map(|released| released.enqueue_time))
            .collect();
        let entry = |seq: u64| -> Result<Option<Stored>, rocksdb::Error> {
            let Some(family) = db.cf_handle(keys::ENTRY) else { return Ok(None) };
            let value = snapshot.get_cf(family, keys::entry(route, seq))?;
            Ok(value.and_then(|bytes| row::decode_entry(route, seq, &bytes).ok()))
        };

        let end = keys::lane_end(route, lane);
        let start = keys::ready(route, lane, claims.ready_from).to_vec();
        let mut ready = rows(db, &snapshot, keys::READY, start, end.clone());
        if let Some(row) = self.next_ready(&mut picked, (route, lane), &mut ready, true) {
            times.extend(entry(row?.0)?.map(|stored| stored.entry.enqueue_time));
        }
        let (due, seq) = claims.retry_from;
        let mut retry = rows(db, &snapshot, keys::RETRY, keys::retry(route, lane, due, seq).to_vec(), end);
        let mut next_due = None;
        if let Some(row) = self.next_retry((route, lane), &mut picked, &mut retry, true)
            && let Some(stored) = entry(row?.0)?
        {
            next_due = Some(stored.entry.due_time);
            if stored.entry.failure.is_none() {
                times.insert(stored.entry.enqueue_time);
            }
        }
        Ok((times.pop_first(), next_due))
    }
}

pub(super) type Rows<'a> = Box<dyn Iterator<Item = Result<(Box<[u8]>, Box<[u8]>), rocksdb::Error>> + 'a>;

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
    Box::new(snapshot.iterator_cf_opt(family, options, IteratorMode::From(&from, rocksdb::Direction::Forward)))
}
