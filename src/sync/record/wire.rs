//! A record as it is written: a versioned protobuf message.

use super::{SyncCounts, SyncFailure, SyncMode, SyncPhase, SyncRecord, SyncState, UnknownFunction, record_key};
use crate::clock::{from_unix_ms, to_unix_ms};
use crate::fault::FaultKind;
use crate::queue::{QueueError, StateWrite, SyncId, SyncTally};
use prost::Message;
use std::time::Duration;

/// The layout of [`Wire`]. A higher number is a record of a later release that this one must not guess at.
const VERSION: u32 = 1;

/// What is written of a [`SyncRecord`]. Numbers are durable.
#[derive(Clone, PartialEq, Message)]
struct Wire {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    id: u64,
    #[prost(string, tag = "3")]
    route: String,
    #[prost(uint32, tag = "4")]
    mode: u32,
    #[prost(string, tag = "5")]
    prefix: String,
    #[prost(uint32, tag = "6")]
    state: u32,
    #[prost(message, optional, tag = "7")]
    failure: Option<WireFailure>,
    #[prost(uint64, tag = "8")]
    create_ms: u64,
    #[prost(uint64, optional, tag = "9")]
    start_ms: Option<u64>,
    #[prost(uint64, optional, tag = "10")]
    compared_ms: Option<u64>,
    #[prost(uint64, optional, tag = "11")]
    end_ms: Option<u64>,
    #[prost(message, required, tag = "12")]
    counts: WireCounts,
    #[prost(message, required, tag = "13")]
    tally: WireTally,
    #[prost(string, tag = "14")]
    cursor: String,
    #[prost(message, repeated, tag = "15")]
    unknown: Vec<WireUnknown>,
    #[prost(uint64, tag = "16")]
    comparing_ms: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireUnknown {
    #[prost(string, tag = "1")]
    function: String,
    #[prost(uint64, tag = "2")]
    source_blobs: u64,
    #[prost(uint64, tag = "3")]
    destination_blobs: u64,
}

#[derive(Clone, PartialEq, Message)]
struct WireFailure {
    #[prost(uint32, tag = "1")]
    kind: u32,
    #[prost(string, tag = "2")]
    peer: String,
    #[prost(int32, optional, tag = "3")]
    code: Option<i32>,
    #[prost(string, tag = "4")]
    message: String,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct WireCounts {
    #[prost(uint64, tag = "1")]
    source_blobs: u64,
    #[prost(uint64, tag = "2")]
    destination_blobs: u64,
    #[prost(uint64, tag = "3")]
    missing: u64,
    #[prost(uint64, tag = "4")]
    missing_bytes: u64,
    #[prost(uint64, tag = "5")]
    differing: u64,
    #[prost(uint64, tag = "6")]
    in_flight: u64,
    #[prost(uint64, tag = "7")]
    extra: u64,
    #[prost(uint64, tag = "8")]
    enqueued: u64,
    #[prost(uint64, tag = "9")]
    enqueued_bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct WireTally {
    #[prost(uint64, tag = "1")]
    pending: u64,
    #[prost(uint64, tag = "2")]
    confirmed: u64,
    #[prost(uint64, tag = "3")]
    parked: u64,
    #[prost(uint64, tag = "4")]
    discarded: u64,
}

impl SyncRecord {
    /// The write that keeps it.
    pub(in crate::sync) fn write(&self) -> StateWrite {
        StateWrite { key: record_key(&self.route, self.id), value: Some(self.encode()) }
    }

    fn encode(&self) -> Vec<u8> {
        let SyncCounts {
            source_blobs,
            destination_blobs,
            missing,
            missing_bytes,
            differing,
            in_flight,
            extra,
            enqueued,
            enqueued_bytes,
        } = self.counts;
        let SyncTally { pending, confirmed, parked, discarded } = self.tally;
        let wire = Wire {
            version: VERSION,
            id: self.id.0,
            route: self.route.clone(),
            mode: match self.mode {
                SyncMode::Copy => 1,
                SyncMode::Compare => 2,
                SyncMode::Verify => 3,
            },
            prefix: self.prefix.clone(),
            state: match self.state {
                SyncState::Running => 1,
                SyncState::Completed => 2,
                SyncState::CompletedWithFailures => 3,
                SyncState::Failed => 4,
                SyncState::Cancelled => 5,
            },
            failure: self.failure.as_ref().map(|failure| WireFailure {
                kind: failure.kind.map_or(0, |kind| u32::from(kind.number())),
                peer: failure.peer.clone(),
                code: failure.code.map(i32::from),
                message: failure.message.clone(),
            }),
            create_ms: to_unix_ms(self.create_time),
            start_ms: self.start_time.map(to_unix_ms),
            compared_ms: self.compared_time.map(to_unix_ms),
            end_ms: self.end_time.map(to_unix_ms),
            counts: WireCounts {
                source_blobs,
                destination_blobs,
                missing,
                missing_bytes,
                differing,
                in_flight,
                extra,
                enqueued,
                enqueued_bytes,
            },
            tally: WireTally { pending, confirmed, parked, discarded },
            cursor: self.cursor.map(|blob| blob.to_string()).unwrap_or_default(),
            unknown: self
                .unknown
                .iter()
                .map(|unknown| WireUnknown {
                    function: unknown.function.clone(),
                    source_blobs: unknown.source_blobs,
                    destination_blobs: unknown.destination_blobs,
                })
                .collect(),
            comparing_ms: u64::try_from(self.comparing.as_millis()).unwrap_or(u64::MAX),
        };
        wire.encode_to_vec()
    }

    /// The record that was written under `key`; an unreadable one is an error that names the key.
    pub(in crate::sync) fn decode(key: &str, value: &[u8]) -> Result<Self, QueueError> {
        let unreadable = |why: &str| QueueError::Read(format!("the record {key} is unreadable: {why}"));
        let wire = Wire::decode(value).map_err(|error| unreadable(&error.to_string()))?;
        if wire.version != VERSION {
            return Err(unreadable(&format!("its version is {}, known is {VERSION}", wire.version)));
        }
        let mode = match wire.mode {
            1 => SyncMode::Copy,
            2 => SyncMode::Compare,
            3 => SyncMode::Verify,
            _ => return Err(unreadable("unknown mode")),
        };
        let state = match wire.state {
            1 => SyncState::Running,
            2 => SyncState::Completed,
            3 => SyncState::CompletedWithFailures,
            4 => SyncState::Failed,
            5 => SyncState::Cancelled,
            _ => return Err(unreadable("unknown state")),
        };
        Ok(Self {
            id: SyncId(wire.id),
            route: wire.route,
            mode,
            prefix: wire.prefix,
            state,
            phase: SyncPhase::default(),
            failure: wire.failure.map(|failure| SyncFailure {
                kind: u8::try_from(failure.kind).ok().and_then(FaultKind::from_number),
                peer: failure.peer,
                code: failure.code.map(tonic::Code::from),
                message: failure.message,
            }),
            create_time: from_unix_ms(wire.create_ms),
            start_time: wire.start_ms.map(from_unix_ms),
            compared_time: wire.compared_ms.map(from_unix_ms),
            end_time: wire.end_ms.map(from_unix_ms),
            counts: SyncCounts {
                source_blobs: wire.counts.source_blobs,
                destination_blobs: wire.counts.destination_blobs,
                missing: wire.counts.missing,
                missing_bytes: wire.counts.missing_bytes,
                differing: wire.counts.differing,
                in_flight: wire.counts.in_flight,
                extra: wire.counts.extra,
                enqueued: wire.counts.enqueued,
                enqueued_bytes: wire.counts.enqueued_bytes,
            },
            tally: SyncTally {
                pending: wire.tally.pending,
                confirmed: wire.tally.confirmed,
                parked: wire.tally.parked,
                discarded: wire.tally.discarded,
            },
            cursor: wire.cursor.parse().ok(),
            unknown: wire
                .unknown
                .into_iter()
                .map(|unknown| UnknownFunction {
                    function: unknown.function,
                    source_blobs: unknown.source_blobs,
                    destination_blobs: unknown.destination_blobs,
                })
                .collect(),
            comparing: Duration::from_millis(wire.comparing_ms),
            eta: None,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::{SyncCounts, SyncFailure, SyncMode, SyncRecord, SyncState, UnknownFunction};
    use crate::blob::DigestFunction;
    use crate::clock::from_unix_ms;
    use crate::fault::FaultKind;
    use crate::queue::{SyncId, SyncTally};
    use std::time::Duration;

    #[test]
    fn records_round_trip_and_foreign_ones_are_refused_by_name() {
        let mut record = SyncRecord::new(SyncId(7), "a_to_b", SyncMode::Copy, "sha256-0", from_unix_ms(1_000));
        let write = record.write();
        assert_eq!(write.key, "sync/a_to_b/00000000000000000007");
        assert_eq!(SyncRecord::decode(&write.key, &write.value.unwrap()).unwrap(), record);
        record.state = SyncState::Failed;
        record.failure = Some(SyncFailure {
            kind: Some(FaultKind::SourceUnavailable),
            peer: "a".into(),
            code: Some(tonic::Code::Unavailable),
            message: "gone".into(),
        });
        record.start_time = Some(from_unix_ms(2_000));
        record.compared_time = Some(from_unix_ms(2_500));
        record.end_time = Some(from_unix_ms(3_000));
        record.counts = SyncCounts {
            source_blobs: 1,
            destination_blobs: 2,
            missing: 3,
            missing_bytes: 4,
            differing: 5,
            in_flight: 6,
            extra: 7,
            enqueued: 8,
            enqueued_bytes: 9,
        };
        record.tally = SyncTally { pending: 1, confirmed: 2, parked: 3, discarded: 4 };
        record.cursor = Some(DigestFunction::Sha256.ref_of(b"x"));
        let unknown =
            |function: &str| UnknownFunction { function: function.into(), source_blobs: 1, destination_blobs: 2 };
        record.unknown = vec![unknown("md5"), unknown("")];
        record.comparing = Duration::from_millis(499);
        let value = record.write().value.unwrap();
        assert_eq!(SyncRecord::decode("k", &value).unwrap(), record);
        let mut later = value.clone();
        later[1] = 2;
        for broken in [&later[..], &value[..value.len() - 1], b"", b"\xff"] {
            let error = SyncRecord::decode("sync/a/1", broken).unwrap_err().to_string();
            assert!(error.contains("sync/a/1"), "{error}");
        }
    }
}
