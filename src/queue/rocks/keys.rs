//! Families, keys and the small fixed values. Numbers are big-endian, so that keys sort as the numbers do.

use crate::blob::{BlobRef, RefPrefix};
use crate::queue::{Lane, QueueError, RouteId};
use rocksdb::{ColumnFamily, DB};
use std::ops::Deref;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(super) const ENTRY: &str = "entry";
pub(super) const READY: &str = "ready";
pub(super) const RETRY: &str = "retry";
pub(super) const PARKED: &str = "parked";
pub(super) const REF: &str = "ref";
pub(super) const STATE: &str = "state";
pub(super) const ASIDE: &str = "aside";
pub(super) const META: &str = "meta";
pub(super) const DONE: &str = "done";

/// Every column family of this format version.
pub(super) const FAMILIES: [&str; 9] = [ENTRY, READY, RETRY, PARKED, REF, STATE, ASIDE, META, DONE];

/// A column family, all of which exist from opening on.
pub(super) fn family<'a>(db: &'a DB, name: &str) -> Result<&'a ColumnFamily, QueueError> {
    db.cf_handle(name).ok_or_else(|| QueueError::Read(format!("there is no column family {name}")))
}

pub(super) const META_FORMAT: &[u8] = b"format";
pub(super) const META_NEXT_SEQ: &[u8] = b"next_seq";
pub(super) const META_COMMIT_TIME: &[u8] = b"commit_time";
pub(super) const META_ASIDE: &[u8] = b"aside";
pub(super) const META_ROUTE: &[u8] = b"route/";
pub(super) const META_COUNTS: &[u8] = b"counts/";
pub(super) const META_SYNC: &[u8] = b"sync/";

/// The byte of a lane.
pub(super) const fn lane_byte(lane: Lane) -> u8 {
    match lane {
        Lane::Fresh => 0,
        Lane::Backfill => 1,
    }
}

/// The lane of a byte.
pub(super) const fn lane_of(byte: u8) -> Option<Lane> {
    match byte {
        0 => Some(Lane::Fresh),
        1 => Some(Lane::Backfill),
        _ => None,
    }
}

pub(super) fn entry(route: RouteId, seq: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&route.0.to_be_bytes());
    key[4..].copy_from_slice(&seq.to_be_bytes());
    key
}

/// What all `ready` and `retry` rows of a lane begin with.
fn lane_prefix(route: RouteId, lane: Lane) -> [u8; 5] {
    let [a, b, c, d] = route.0.to_be_bytes();
    [a, b, c, d, lane_byte(lane)]
}

/// Where the rows of a lane end, exclusive.
pub(super) fn lane_end(route: RouteId, lane: Lane) -> Vec<u8> {
    [&route.0.to_be_bytes()[..], &[lane_byte(lane) + 1]].concat()
}

/// The key or the value of an index row: short, and on the stack, because every push makes several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Short {
    bytes: [u8; 21],
    len: usize,
}

impl Short {
    fn of<const N: usize>(parts: [&[u8]; N]) -> Self {
        let mut short = Self::default();
        for part in parts {
            short.bytes[short.len..short.len + part.len()].copy_from_slice(part);
            short.len += part.len();
        }
        short
    }
}

impl Deref for Short {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

impl AsRef<[u8]> for Short {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

pub(super) fn ready(route: RouteId, lane: Lane, seq: u64) -> Short {
    Short::of([&lane_prefix(route, lane), &seq.to_be_bytes()])
}

pub(super) fn retry(route: RouteId, lane: Lane, due: u64, seq: u64) -> Short {
    Short::of([&lane_prefix(route, lane), &due.to_be_bytes(), &seq.to_be_bytes()])
}

pub(super) fn parked(route: RouteId, kind: u8, seq: u64) -> Short {
    Short::of([&route.0.to_be_bytes(), &[kind], &seq.to_be_bytes()])
}

/// The value of an index row: whether the entry has failed, and its size, if known.
pub(super) fn index_value(failed: bool, size: Option<u64>) -> Short {
    match size {
        Some(size) => Short::of([&[u8::from(failed)], &size.to_be_bytes()]),
        None => Short::of([&[u8::from(failed)]]),
    }
}

/// The sequence in a `ready` key.
pub(super) fn seq_of_ready(key: &[u8]) -> Option<u64> {
    (key.len() == 13).then(|| number(&key[5..]))?
}

/// The due time and the sequence in a `retry` key.
pub(super) fn due_seq_of_retry(key: &[u8]) -> Option<(u64, u64)> {
    if key.len() != 21 {
        return None;
    }
    Some((number(&key[5..13])?, number(&key[13..])?))
}

/// The kind and the sequence in a `parked` key.
pub(super) fn kind_seq_of_parked(key: &[u8]) -> Option<(u8, u64)> {
    if key.len() != 13 {
        return None;
    }
    Some((key[4], number(&key[5..])?))
}

pub(super) fn reference(route: RouteId, blob: &BlobRef) -> Vec<u8> {
    let mut key = Vec::with_capacity(80);
    put_reference(route, blob, &mut key);
    key
}

/// The same, at the end of a buffer.
pub(super) fn put_reference(route: RouteId, blob: &BlobRef, key: &mut Vec<u8>) {
    key.extend_from_slice(&route.0.to_be_bytes());
    blob.put_key(key);
}

/// What the `ref` keys of a route begin with whose refs begin so.
pub(super) fn references(route: RouteId, prefix: &RefPrefix) -> Vec<u8> {
    [&route.0.to_be_bytes()[..], &prefix.key()].concat()
}

/// The ref in a `ref` key.
pub(super) fn blob_of_reference(key: &[u8]) -> Option<BlobRef> {
    BlobRef::from_key(key.get(4..)?)
}

/// A big-endian number of exactly eight bytes.
pub(super) fn number(bytes: &[u8]) -> Option<u64> {
    bytes.try_into().ok().map(u64::from_be_bytes)
}

/// The sequences under which a ref is queued on a route: an entry's, and a later one's that succeeds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Seqs {
    #[default]
    None,
    One(u64),
    Two(u64, u64),
}

impl Seqs {
    /// What a `ref` row says; nothing where it is malformed.
    pub(super) fn from_row(value: &[u8]) -> Option<Self> {
        match value.len() {
            8 => number(value).map(Self::One),
            16 => match (number(&value[..8])?, number(&value[8..])?) {
                (first, second) if first < second => Some(Self::Two(first, second)),
                _ => None,
            },
            _ => None,
        }
    }

    /// The bytes of a `ref` row, at the end of a buffer.
    pub(super) fn put_row(self, row: &mut Vec<u8>) {
        for seq in self {
            row.extend_from_slice(&seq.to_be_bytes());
        }
    }

    /// These but one.
    pub(super) fn without(self, seq: u64) -> Self {
        let mut left = self.into_iter().filter(|other| *other != seq);
        match (left.next(), left.next()) {
            (None, _) => Self::None,
            (Some(one), None) => Self::One(one),
            (Some(first), Some(second)) => Self::Two(first, second),
        }
    }
}

impl IntoIterator for Seqs {
    type Item = u64;
    type IntoIter = std::iter::Flatten<std::array::IntoIter<Option<u64>, 2>>;

    fn into_iter(self) -> Self::IntoIter {
        let seqs = match self {
            Self::None => [None, None],
            Self::One(seq) => [Some(seq), None],
            Self::Two(first, second) => [Some(first), Some(second)],
        };
        seqs.into_iter().flatten()
    }
}

/// Where all rows of a route end, exclusive, in the families whose keys begin with it.
pub(super) fn route_end(route: RouteId) -> Vec<u8> {
    match route.0.checked_add(1) {
        Some(next) => next.to_be_bytes().to_vec(),
        None => vec![0xff; 64],
    }
}

/// A `meta` key of a route.
pub(super) fn of_route(prefix: &[u8], route: RouteId) -> Vec<u8> {
    [prefix, &route.0.to_be_bytes()].concat()
}

/// A `meta` key of a sync.
pub(super) fn of_sync(sync: u64) -> Vec<u8> {
    [META_SYNC, &sync.to_be_bytes()].concat()
}

/// The `aside` key of a row that could not be read: its family, `/`, its own key.
pub(super) fn aside(family: &str, key: &[u8]) -> Vec<u8> {
    [family.as_bytes(), b"/", key].concat()
}

/// Nanoseconds since 1970, within what 64 bits hold (until the year 2554).
pub(super) fn nanos(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

/// The time of [`nanos`].
pub(super) fn time(nanos: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos)
}
