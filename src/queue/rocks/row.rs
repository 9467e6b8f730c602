//! The bytes of rows: a format version byte, then a protobuf message, so that a later version may add fields that this
//! one skips.

use super::keys::{self, Short};
use crate::blob::BlobRef;
use crate::fault::FaultKind;
use crate::queue::{
    Entry, Failure, Lane, LaneCounts, Misses, RouteCounts, RouteId, Seq, SyncId, SyncTally, Tally, Weight,
};
use crate::telemetry::TraceContext;
use prost::Message;
use prost::encoding::{WireType, encode_varint, encoded_len_varint};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The version byte of every row with a message.
const ROW_VERSION: u8 = 1;

/// Which index row an entry has, besides its `ref`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// A successor: none, until the first entry of its ref has ended.
    Waiting,
    /// A `ready` row.
    Ready,
    /// A `retry` row, at the entry's due time.
    Due,
    /// A `parked` row under this number of a fault's kind.
    Parked(u8),
}

/// An entry with its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stored {
    pub(super) entry: Entry,
    pub(super) place: Place,
    /// Known to be the only one of its ref, so that its end need not read the `ref` row, which lies anywhere on the disk.
    pub(super) alone: bool,
}

impl Stored {
    pub(super) fn parked(&self) -> bool {
        matches!(self.place, Place::Parked(_))
    }

    /// The family and key of its index row.
    pub(super) fn index(&self) -> Option<(&'static str, Short)> {
        let Entry { route, lane, seq, due_time, .. } = &self.entry;
        match self.place {
            Place::Waiting => None,
            Place::Ready => Some((keys::READY, keys::ready(*route, *lane, seq.0))),
            Place::Due => Some((keys::RETRY, keys::retry(*route, *lane, keys::nanos(*due_time), seq.0))),
            Place::Parked(kind) => Some((keys::PARKED, keys::parked(*route, kind, seq.0))),
        }
    }

    /// The value of its index row: what the counters lose if the entry's own row should become unreadable.
    pub(super) fn index_value(&self) -> Short {
        keys::index_value(self.entry.failure.is_some(), self.entry.size)
    }
}

/// Whether the entry had failed, and its tally, from an index row's value.
pub(super) fn read_index_value(value: &[u8]) -> Option<(bool, Tally)> {
    let (flag, size) = value.split_first()?;
    let size = if size.is_empty() { None } else { Some(keys::number(size)?) };
    Some((*flag != 0, tally(size)))
}

/// One entry of this size.
pub(super) fn tally(size: Option<u64>) -> Tally {
    Tally { entries: 1, bytes: size.unwrap_or(0), unknown_size: u64::from(size.is_none()) }
}

/// Why a row is unreadable.
#[derive(Debug, thiserror::Error)]
pub(super) enum RowError {
    #[error("the row is empty")]
    Empty,
    #[error("the row has version {0}, which is not known here")]
    Version(u8),
    #[error("the row is no message: {0}")]
    Message(#[from] prost::DecodeError),
    #[error("the row's {0} is invalid")]
    Field(&'static str),
}

#[derive(Clone, PartialEq, Message)]
struct TraceRow {
    #[prost(string, tag = "1")]
    traceparent: String,
    #[prost(string, tag = "2")]
    tracestate: String,
}

#[derive(Clone, PartialEq, Message)]
struct FailureRow {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(int32, optional, tag = "2")]
    code: Option<i32>,
    #[prost(string, tag = "3")]
    peer: String,
    #[prost(string, tag = "4")]
    message: String,
    #[prost(fixed64, tag = "5")]
    first: u64,
    #[prost(fixed64, tag = "6")]
    last: u64,
    #[prost(uint32, tag = "7")]
    count: u32,
}

/// An entry. Route and sequence are in the key. Times are nanoseconds since 1970.
#[derive(Clone, PartialEq, Message)]
struct EntryRow {
    #[prost(bytes = "vec", tag = "1")]
    blob: Vec<u8>,
    #[prost(uint64, optional, tag = "2")]
    size: Option<u64>,
    #[prost(uint32, tag = "3")]
    lane: u32,
    #[prost(fixed64, tag = "4")]
    enqueue_time: u64,
    #[prost(fixed64, tag = "5")]
    due_time: u64,
    #[prost(uint32, tag = "6")]
    attempts: u32,
    #[prost(message, optional, tag = "7")]
    failure: Option<FailureRow>,
    #[prost(message, optional, tag = "8")]
    trace: Option<TraceRow>,
    #[prost(string, repeated, tag = "9")]
    visited: Vec<String>,
    #[prost(uint64, repeated, tag = "10")]
    syncs: Vec<u64>,
    #[prost(bool, tag = "11")]
    repair: bool,
    /// 0 waiting, 1 ready, 2 due, 3 parked.
    #[prost(uint32, tag = "12")]
    place: u32,
    /// Of a parked entry: the kind in its index key.
    #[prost(uint32, tag = "13")]
    parked_kind: u32,
    #[prost(bool, tag = "14")]
    alone: bool,
    #[prost(uint32, tag = "20")]
    misses: u32,
    /// Nanoseconds.
    #[prost(uint64, tag = "21")]
    missed_for: u64,
    /// Absent from rows of versions in which each attempt that was no miss weighed 1, and from entries that never failed.
    #[prost(uint32, optional, tag = "22")]
    weight: Option<u32>,
}

#[derive(Clone, PartialEq, Message)]
struct TallyRow {
    #[prost(uint64, tag = "1")]
    entries: u64,
    #[prost(uint64, tag = "2")]
    bytes: u64,
    #[prost(uint64, tag = "3")]
    unknown_size: u64,
}

#[derive(Clone, PartialEq, Message)]
struct LaneRow {
    #[prost(message, optional, tag = "1")]
    ready: Option<TallyRow>,
    #[prost(message, optional, tag = "2")]
    retrying: Option<TallyRow>,
    #[prost(message, optional, tag = "3")]
    parked: Option<TallyRow>,
    /// No `ready` row of the lane has a lower sequence.
    #[prost(uint64, tag = "4")]
    ready_from: u64,
}

#[derive(Clone, PartialEq, Message)]
struct CountsRow {
    #[prost(message, optional, tag = "1")]
    fresh: Option<LaneRow>,
    #[prost(message, optional, tag = "2")]
    backfill: Option<LaneRow>,
    #[prost(uint64, tag = "3")]
    confirmed: u64,
    #[prost(uint64, tag = "4")]
    copied: u64,
    #[prost(uint64, tag = "5")]
    copied_bytes: u64,
    #[prost(uint64, tag = "6")]
    discarded: u64,
}

#[derive(Clone, PartialEq, Message)]
struct SyncRow {
    #[prost(uint64, tag = "1")]
    pending: u64,
    #[prost(uint64, tag = "2")]
    confirmed: u64,
    #[prost(uint64, tag = "3")]
    parked: u64,
    #[prost(uint64, tag = "4")]
    discarded: u64,
}

/// An entry that left the queue.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DoneItem {
    #[prost(uint32, tag = "1")]
    pub(super) route: u32,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) blob: Vec<u8>,
    #[prost(uint64, tag = "3")]
    pub(super) size: u64,
    /// 0 copied, 1 found at the destination, 2 discarded by configuration, 3 discarded by an operator.
    #[prost(uint32, tag = "4")]
    pub(super) outcome: u32,
    /// Of a discarded one: the kind of its last failure; 0: none.
    #[prost(uint32, tag = "5")]
    pub(super) cause: u32,
    /// Absent from rows of earlier versions, as the trace is.
    #[prost(fixed64, optional, tag = "6")]
    pub(super) enqueue_time: Option<u64>,
    #[prost(string, tag = "7")]
    pub(super) traceparent: String,
}

/// The entries that left the queue in one batch.
#[derive(Clone, PartialEq, Message)]
pub(super) struct DoneRow {
    /// The number of the oldest row that is kept.
    #[prost(uint64, tag = "1")]
    pub(super) oldest: u64,
    #[prost(fixed64, tag = "2")]
    pub(super) time: u64,
    #[prost(message, repeated, tag = "3")]
    pub(super) items: Vec<DoneItem>,
}

/// A route's name and stores.
#[derive(Clone, PartialEq, Message)]
pub(super) struct RouteRow {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(string, tag = "2")]
    pub(super) from: String,
    #[prost(string, tag = "3")]
    pub(super) to: String,
}

fn encode(message: &impl Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + message.encoded_len());
    bytes.push(ROW_VERSION);
    message.encode_raw(&mut bytes);
    bytes
}

fn decode<M: Message + Default>(bytes: &[u8]) -> Result<M, RowError> {
    let (version, message) = bytes.split_first().ok_or(RowError::Empty)?;
    if *version != ROW_VERSION {
        return Err(RowError::Version(*version));
    }
    Ok(M::decode(message)?)
}

/// An [`EntryRow`] at the end of a buffer, written without the copies that a message of owned parts would take: every push
/// writes one.
pub(super) fn put_entry(stored: &Stored, row: &mut Vec<u8>) {
    let entry = &stored.entry;
    let (place, parked_kind) = match stored.place {
        Place::Waiting => (0, 0),
        Place::Ready => (1, 0),
        Place::Due => (2, 0),
        Place::Parked(kind) => (3, u64::from(kind)),
    };
    row.push(ROW_VERSION);
    put_length(1, entry.blob.key_len(), row);
    entry.blob.put_key(row);
    if let Some(size) = entry.size {
        put_key(2, WireType::Varint, row);
        encode_varint(size, row);
    }
    put_number(3, u64::from(keys::lane_byte(entry.lane)), row);
    put_time(4, entry.enqueue_time, row);
    put_time(5, entry.due_time, row);
    put_number(6, u64::from(entry.attempts), row);
    if let Some(failure) = &entry.failure {
        let failure = FailureRow {
            kind: u32::from(failure.kind.number()),
            code: failure.code.map(|code| code as i32),
            peer: failure.peer.clone(),
            message: failure.message.clone(),
            first: keys::nanos(failure.first),
            last: keys::nanos(failure.last),
            count: failure.count,
        };
        prost::encoding::message::encode(7, &failure, row);
    }
    if let Some(TraceContext { traceparent, tracestate }) = &entry.trace {
        let trace = TraceRow { traceparent: traceparent.clone(), tracestate: tracestate.clone() };
        prost::encoding::message::encode(8, &trace, row);
    }
    for store in &entry.visited {
        put_length(9, store.len(), row);
        row.extend_from_slice(store.as_bytes());
    }
    if !entry.syncs.is_empty() {
        put_length(10, entry.syncs.iter().map(|sync| encoded_len_varint(sync.0)).sum(), row);
        entry.syncs.iter().for_each(|sync| encode_varint(sync.0, row));
    }
    put_number(11, u64::from(entry.repair), row);
    put_number(12, place, row);
    put_number(13, parked_kind, row);
    put_number(14, u64::from(stored.alone), row);
    put_number(20, u64::from(entry.misses.count), row);
    put_number(21, u64::try_from(entry.misses.lasted.as_nanos()).unwrap_or(u64::MAX), row);
    if entry.attempts > 0 {
        put_key(22, WireType::Varint, row);
        encode_varint(u64::from(entry.weight.0), row);
    }
}

fn put_key(tag: u32, wire_type: WireType, row: &mut Vec<u8>) {
    prost::encoding::encode_key(tag, wire_type, row);
}

fn put_length(tag: u32, length: usize, row: &mut Vec<u8>) {
    put_key(tag, WireType::LengthDelimited, row);
    encode_varint(length as u64, row);
}

fn put_number(tag: u32, number: u64, row: &mut Vec<u8>) {
    if number != 0 {
        put_key(tag, WireType::Varint, row);
        encode_varint(number, row);
    }
}

fn put_time(tag: u32, time: SystemTime, row: &mut Vec<u8>) {
    let nanos = keys::nanos(time);
    if nanos != 0 {
        put_key(tag, WireType::SixtyFourBit, row);
        row.extend_from_slice(&nanos.to_le_bytes());
    }
}

pub(super) fn decode_entry(route: RouteId, seq: u64, bytes: &[u8]) -> Result<Stored, RowError> {
    let row: EntryRow = decode(bytes)?;
    let lane = u8::try_from(row.lane).ok().and_then(keys::lane_of).ok_or(RowError::Field("lane"))?;
    let parked_kind = u8::try_from(row.parked_kind).map_err(|_| RowError::Field("parked kind"))?;
    let place = match row.place {
        0 => Place::Waiting,
        1 => Place::Ready,
        2 => Place::Due,
        3 => Place::Parked(parked_kind),
        _ => return Err(RowError::Field("place")),
    };
    let failure = row.failure.map(|failure| Failure {
        // A kind that a later version wrote; the entry must stay in the queue all the same.
        kind: u8::try_from(failure.kind).ok().and_then(FaultKind::from_number).unwrap_or(FaultKind::PeerProtocol),
        code: failure.code.map(tonic::Code::from_i32),
        peer: failure.peer,
        message: failure.message,
        first: keys::time(failure.first),
        last: keys::time(failure.last),
        count: failure.count,
    });
    let entry = Entry {
        seq: Seq(seq),
        route,
        blob: BlobRef::from_key(&row.blob).ok_or(RowError::Field("ref"))?,
        size: row.size,
        lane,
        enqueue_time: keys::time(row.enqueue_time),
        due_time: keys::time(row.due_time),
        attempts: row.attempts,
        misses: Misses { count: row.misses, lasted: Duration::from_nanos(row.missed_for) },
        weight: Weight(
            row.weight.unwrap_or_else(|| row.attempts.saturating_sub(row.misses).saturating_mul(Weight::ONE.0)),
        ),
        failure,
        trace: row.trace.map(|trace| TraceContext { traceparent: trace.traceparent, tracestate: trace.tracestate }),
        visited: row.visited.into_iter().map(Arc::from).collect(),
        syncs: row.syncs.into_iter().map(SyncId).collect(),
        repair: row.repair,
    };
    Ok(Stored { entry, place, alone: row.alone })
}

fn tally_row(tally: Tally) -> Option<TallyRow> {
    Some(TallyRow { entries: tally.entries, bytes: tally.bytes, unknown_size: tally.unknown_size })
}

fn tally_of(row: Option<TallyRow>) -> Tally {
    row.map_or_else(Tally::default, |row| Tally {
        entries: row.entries,
        bytes: row.bytes,
        unknown_size: row.unknown_size,
    })
}

fn lane_row(counts: &LaneCounts, ready_from: u64) -> Option<LaneRow> {
    Some(LaneRow {
        ready: tally_row(counts.ready),
        retrying: tally_row(counts.retrying),
        parked: tally_row(counts.parked),
        ready_from,
    })
}

fn lane_of(row: Option<LaneRow>) -> (LaneCounts, u64) {
    let row = row.unwrap_or_default();
    let counts = LaneCounts {
        ready: tally_of(row.ready),
        claimed: Tally::default(),
        retrying: tally_of(row.retrying),
        parked: tally_of(row.parked),
    };
    (counts, row.ready_from)
}

/// A route's counters, in which claimed entries still count as ready or retrying, and where its lanes' `ready` rows begin.
pub(super) fn encode_counts(counts: &RouteCounts, ready_from: [u64; 2]) -> Vec<u8> {
    encode(&CountsRow {
        fresh: lane_row(&counts.fresh, ready_from[0]),
        backfill: lane_row(&counts.backfill, ready_from[1]),
        confirmed: counts.confirmed,
        copied: counts.copied,
        copied_bytes: counts.copied_bytes,
        discarded: counts.discarded,
    })
}

pub(super) fn decode_counts(bytes: &[u8]) -> Result<(RouteCounts, [u64; 2]), RowError> {
    let row: CountsRow = decode(bytes)?;
    let (fresh, fresh_from) = lane_of(row.fresh);
    let (backfill, backfill_from) = lane_of(row.backfill);
    let counts = RouteCounts {
        fresh,
        backfill,
        confirmed: row.confirmed,
        copied: row.copied,
        copied_bytes: row.copied_bytes,
        discarded: row.discarded,
    };
    Ok((counts, [fresh_from, backfill_from]))
}

pub(super) fn encode_sync(tally: SyncTally) -> Vec<u8> {
    let SyncTally { pending, confirmed, parked, discarded } = tally;
    encode(&SyncRow { pending, confirmed, parked, discarded })
}

pub(super) fn decode_sync(bytes: &[u8]) -> Result<SyncTally, RowError> {
    let SyncRow { pending, confirmed, parked, discarded } = decode(bytes)?;
    Ok(SyncTally { pending, confirmed, parked, discarded })
}

pub(super) fn encode_done(row: &DoneRow) -> Vec<u8> {
    encode(row)
}

pub(super) fn decode_done(bytes: &[u8]) -> Result<DoneRow, RowError> {
    decode(bytes)
}

pub(super) fn encode_route(row: &RouteRow) -> Vec<u8> {
    encode(row)
}

pub(super) fn decode_route(bytes: &[u8]) -> Result<RouteRow, RowError> {
    decode(bytes)
}

/// The counters of a lane.
pub(super) fn lane_counts(counts: &mut RouteCounts, lane: Lane) -> &mut LaneCounts {
    match lane {
        Lane::Fresh => &mut counts.fresh,
        Lane::Backfill => &mut counts.backfill,
    }
}

#[cfg(test)]
mod tests;
