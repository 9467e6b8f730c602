//! Who holds what, in memory: claims, released claims, and the cursors at which reading goes on.
//!
//! Only the committer begins a claim, and reads rows for it, between two batches: while it reads, no row changes, and a row
//! that it is about to change cannot be claimed meanwhile. What is here is behind a lock, because claims are dropped and
//! looked at from anywhere; it is held for moments only, never while the database is read.

use super::keys;
use super::row::{Place, Stored};
use crate::queue::{Entry, Lane, RouteId};
use foldhash::HashMap;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

/// Where an entry can be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Claimable {
    pub(super) lane: Lane,
    /// Its due time for a `retry` row; none for a `ready` row.
    pub(super) due: Option<u64>,
    pub(super) enqueue_time: SystemTime,
}

impl Claimable {
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

/// A claimed entry.
#[derive(Debug)]
struct HeldClaim {
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
    /// `ready` rows below are claimed, released or gone.
    ready_from: u64,
    /// The same for `retry` rows, as due time and sequence.
    retry_from: (u64, u64),
    claimed: BTreeMap<u64, HeldClaim>,
    released: BTreeMap<u64, Released>,
}

impl LaneClaims {
    fn holds(&self, seq: u64) -> bool {
        self.claimed.contains_key(&seq) || self.released.contains_key(&seq)
    }
}

/// All lanes' claims.
#[derive(Debug, Default)]
pub(super) struct Claims {
    lanes: HashMap<(RouteId, Lane), LaneClaims>,
}

impl Claims {
    fn lane(&mut self, route: RouteId, lane: Lane) -> &mut LaneClaims {
        self.lanes.entry((route, lane)).or_default()
    }

    /// Says where a lane's `ready` rows begin; once, on opening.
    pub(super) fn start_at(&mut self, route: RouteId, lane: Lane, ready_from: u64) {
        self.lane(route, lane).ready_from = ready_from;
    }

    /// Whether an entry is claimed, at this moment. Where the committer asks, one that is not stays so until its batch has
    /// ended.
    pub(super) fn is_claimed(&self, route: RouteId, lane: Lane, seq: u64) -> bool {
        self.lanes.get(&(route, lane)).is_some_and(|claims| claims.claimed.contains_key(&seq))
    }

    /// Whether an entry is neither claimed nor released.
    pub(super) fn is_free(&self, route: RouteId, lane: Lane, seq: u64) -> bool {
        self.lanes.get(&(route, lane)).is_none_or(|claims| !claims.holds(seq))
    }

    /// Leaves out what is claimed or released.
    pub(super) fn retain_free<T>(&self, route: RouteId, lane: Lane, rows: &mut Vec<T>, seq: impl Fn(&T) -> u64) {
        if let Some(claims) = self.lanes.get(&(route, lane)) {
            rows.retain(|row| !claims.holds(seq(row)));
        }
    }

    /// The released ones of a lane, whose rows are in `retry`, or in `ready`.
    pub(super) fn released(&self, route: RouteId, lane: Lane, retry: bool) -> Vec<u64> {
        let Some(claims) = self.lanes.get(&(route, lane)) else { return Vec::new() };
        claims.released.iter().filter(|(_, released)| released.retry == retry).map(|(seq, _)| *seq).collect()
    }

    /// Sequences below which a route's lanes have no `ready` row.
    pub(super) fn ready_lows(&self, route: RouteId) -> [u64; 2] {
        Lane::ALL.map(|lane| {
            let Some(claims) = self.lanes.get(&(route, lane)) else { return 0 };
            let held = claims.claimed.keys().next().into_iter().chain(claims.released.keys().next());
            held.copied().fold(claims.ready_from, u64::min)
        })
    }

    /// Puts a claim back, first in line.
    pub(super) fn release(&mut self, route: RouteId, lane: Lane, seq: u64) {
        let claims = self.lane(route, lane);
        if let Some(HeldClaim { enqueue_time, retry, .. }) = claims.claimed.remove(&seq) {
            claims.released.insert(seq, Released { enqueue_time, retry });
        }
    }

    /// The row of a claimed entry, where it is known.
    pub(super) fn row(&self, route: RouteId, lane: Lane, seq: u64) -> Option<Arc<Stored>> {
        self.lanes.get(&(route, lane))?.claimed.get(&seq)?.row.clone()
    }

    /// Ends a claim whose settlement is durable.
    pub(super) fn settle(&mut self, route: RouteId, lane: Lane, seq: u64) {
        self.lane(route, lane).claimed.remove(&seq);
    }

    /// An entry can be claimed elsewhere now, if at all. `from` is the lane in which it could be before.
    pub(super) fn moved(&mut self, route: RouteId, seq: u64, from: Option<Lane>, to: Option<Claimable>) {
        let released = from.is_some_and(|lane| self.lane(route, lane).released.remove(&seq).is_some());
        let Some(Claimable { lane, due, enqueue_time }) = to else { return };
        let claims = self.lane(route, lane);
        if released {
            claims.released.insert(seq, Released { enqueue_time, retry: due.is_some() });
        }
        // Reading must not begin behind it.
        if let Some(due) = due {
            claims.retry_from = claims.retry_from.min((due, seq));
        }
    }

    /// An entry's row was written. Where it is claimed, it stays so.
    pub(super) fn keep_row(&mut self, row: Arc<Stored>) {
        let Entry { route, lane, seq, .. } = row.entry;
        if let Some(held) = self.lane(route, lane).claimed.get_mut(&seq.0) {
            held.row = Some(row);
        }
    }

    /// An unreadable row could not be moved to `aside`: reading begins before it again.
    pub(super) fn meet_again(&mut self, row: &AsideRow) {
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
    /// whoever was, or written it.
    pub(super) fn resume(&mut self, mut loaded: Self) {
        for ((route, lane), claims) in self.lanes.drain() {
            let claimed = claims.claimed.into_iter().map(|(seq, held)| (seq, HeldClaim { row: None, ..held }));
            loaded.lane(route, lane).claimed = claimed.collect();
        }
        *self = loaded;
    }

    /// Claims what was found.
    pub(super) fn take(&mut self, route: RouteId, lane: Lane, found: &ScanResult) {
        let claims = self.lane(route, lane);
        claims.ready_from = found.ready_from;
        claims.retry_from = found.retry_from;
        for seq in &found.gone {
            claims.released.remove(seq);
        }
        for row in &found.entries {
            let Entry { seq, enqueue_time, .. } = row.entry;
            claims.released.remove(&seq.0);
            let retry = row.place == Place::Due;
            claims.claimed.insert(seq.0, HeldClaim { enqueue_time, retry, row: Some(Arc::clone(row)) });
        }
    }

    /// Where a lane is read on, and the first of those that are claimed or released.
    pub(super) fn position(&self, route: RouteId, lane: Lane) -> Position {
        let Some(claims) = self.lanes.get(&(route, lane)) else { return Position::default() };
        let claimed = claims.claimed.first_key_value().map(|(seq, held)| (*seq, held.enqueue_time));
        let released = claims.released.first_key_value().map(|(seq, released)| (*seq, released.enqueue_time));
        let held = claimed.into_iter().chain(released).min();
        Position { ready_from: claims.ready_from, retry_from: claims.retry_from, held }
    }
}

/// See [`Claims::position`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Position {
    pub(super) ready_from: u64,
    pub(super) retry_from: (u64, u64),
    pub(super) held: Option<(u64, SystemTime)>,
}

/// What a scan found; nothing has changed until [`Claims::take`].
#[derive(Debug, Default)]
pub(super) struct ScanResult {
    pub(super) entries: Vec<Arc<Stored>>,
    pub(super) bad: Vec<BadRow>,
    /// Released, and not to be claimed any more.
    pub(super) gone: Vec<u64>,
    /// The lane's cursors behind the scan.
    pub(super) ready_from: u64,
    pub(super) retry_from: (u64, u64),
    /// When the next row of `retry` is due.
    pub(super) next_due: Option<SystemTime>,
}

#[cfg(test)]
mod tests {
    use super::{AsideRow, Claims, ScanResult};
    use crate::blob::DigestFunction;
    use crate::clock::from_unix_ms;
    use crate::queue::rocks::keys;
    use crate::queue::rocks::row::{Place, Stored};
    use crate::queue::{Entry, Lane, Misses, RouteId, Seq, Weight};
    use std::sync::Arc;

    const ROUTE: RouteId = RouteId(1);

    fn stored(seq: u64, place: Place) -> Arc<Stored> {
        let time = from_unix_ms(seq);
        let entry = Entry {
            seq: Seq(seq),
            route: ROUTE,
            blob: DigestFunction::Sha256.ref_of(&seq.to_be_bytes()),
            size: None,
            lane: Lane::Fresh,
            enqueue_time: time,
            due_time: time,
            attempts: 0,
            misses: Misses::default(),
            weight: Weight::default(),
            failure: None,
            trace: None,
            visited: Vec::new(),
            syncs: Vec::new(),
            repair: false,
        };
        Arc::new(Stored { entry, place, alone: true })
    }

    /// Two that were found at 5 and 8, and the cursors behind them.
    fn claimed() -> Claims {
        let mut claims = Claims::default();
        let entries = vec![stored(5, Place::Ready), stored(8, Place::Due)];
        let found = ScanResult { entries, ready_from: 10, retry_from: (20, 8), ..ScanResult::default() };
        claims.take(ROUTE, Lane::Fresh, &found);
        claims
    }

    /// Without it, every opening would read over all rows that were ever settled.
    #[test]
    fn reading_begins_where_the_opened_queue_has_its_first_row() {
        let mut claims = Claims::default();
        claims.start_at(ROUTE, Lane::Backfill, 7);
        assert_eq!(claims.ready_lows(ROUTE), Lane::ALL.map(|lane| if lane == Lane::Backfill { 7 } else { 0 }));
    }

    #[test]
    fn what_is_claimed_is_known_and_reading_goes_on_behind_it() {
        let mut claims = claimed();
        let position = claims.position(ROUTE, Lane::Fresh);
        assert_eq!((position.ready_from, position.retry_from), (10, (20, 8)));
        assert_eq!(position.held, Some((5, from_unix_ms(5))));
        assert_eq!(claims.row(ROUTE, Lane::Fresh, 8).map(|row| row.entry.seq), Some(Seq(8)));
        assert!(claims.row(ROUTE, Lane::Fresh, 6).is_none());
        let low = |claims: &Claims| claims.ready_lows(ROUTE).into_iter().max();
        assert_eq!(low(&claims), Some(5));
        claims.settle(ROUTE, Lane::Fresh, 5);
        claims.release(ROUTE, Lane::Fresh, 8);
        assert_eq!((low(&claims), claims.position(ROUTE, Lane::Fresh).held), (Some(8), Some((8, from_unix_ms(8)))));
        assert_eq!(claims.released(ROUTE, Lane::Fresh, true), [8]);
    }

    /// Otherwise the entry would not be met again before a restart.
    #[test]
    fn a_bad_row_that_stays_where_it_is_is_read_again() {
        let bad = |key: &[u8]| AsideRow { route: ROUTE, lane: Lane::Fresh, key: key.to_vec() };
        let mut claims = claimed();
        claims.meet_again(&bad(&keys::ready(ROUTE, Lane::Fresh, 3)));
        claims.meet_again(&bad(&keys::retry(ROUTE, Lane::Fresh, 15, 2)));
        let position = claims.position(ROUTE, Lane::Fresh);
        assert_eq!((position.ready_from, position.retry_from), (3, (15, 2)));
        // Nobody knows where a key belongs that is none: all is read again, and what is claimed stays so.
        claims.meet_again(&bad(b"?"));
        let position = claims.position(ROUTE, Lane::Fresh);
        assert_eq!((position.ready_from, position.retry_from), (0, (0, 0)));
        assert!(claims.is_claimed(ROUTE, Lane::Fresh, 5));
    }
}
