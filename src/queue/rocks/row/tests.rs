#![allow(clippy::unwrap_used, reason = "tests")]

use super::{EntryRow, FailureRow, Place, Stored, TraceRow, decode, decode_entry, encode, put_entry};
use crate::blob::{BlobRef, DigestFunction};
use crate::fault::FaultKind;
use crate::queue::rocks::keys;
use crate::queue::{Entry, Failure, Lane, Misses, RouteId, Seq, SyncId, Weight};
use crate::telemetry::TraceContext;
use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof};
use proptest::proptest;
use std::sync::Arc;
use std::time::Duration;

fn failure() -> impl Strategy<Value = Failure> {
    let code = proptest::option::of((0..17).prop_map(tonic::Code::from_i32));
    (code, "[a-z]{0,9}", any::<String>(), any::<u64>(), any::<u64>(), any::<u32>()).prop_map(
        |(code, peer, message, first, last, count)| Failure {
            kind: FaultKind::ShortRead,
            code,
            peer,
            message,
            first: keys::time(first),
            last: keys::time(last),
            count,
        },
    )
}

fn blob() -> impl Strategy<Value = BlobRef> {
    (0..DigestFunction::ALL.len(), any::<u64>())
        .prop_map(|(at, seed)| DigestFunction::ALL[at].ref_of(&seed.to_be_bytes()))
}

fn stored() -> impl Strategy<Value = Stored> {
    let trace = ("[0-9a-f-]{0,55}", "[a-z=]{0,20}");
    let rare = (
        proptest::option::of(failure()),
        proptest::option::of(trace),
        vec("[a-z]{1,300}", 0..3),
        vec(any::<u64>(), 0..3),
        any::<bool>(),
        any::<(u32, u64, u32)>(),
    );
    let place =
        prop_oneof![Just(Place::Waiting), Just(Place::Ready), Just(Place::Due), any::<u8>().prop_map(Place::Parked)];
    let common = (blob(), proptest::option::of(any::<u64>()), 0..2usize, any::<u64>(), any::<u64>(), any::<u32>());
    (common, rare, place, any::<bool>()).prop_map(
        |(common, (failure, trace, visited, syncs, repair, misses), place, alone)| {
            let (blob, size, lane, enqueued, due, attempts) = common;
            let entry = Entry {
                seq: Seq(7),
                route: RouteId(3),
                blob,
                size,
                lane: Lane::ALL[lane],
                enqueue_time: keys::time(enqueued),
                due_time: keys::time(due),
                attempts,
                failure,
                trace: trace.map(|(traceparent, tracestate)| TraceContext { traceparent, tracestate }),
                visited: visited.into_iter().map(Arc::from).collect(),
                syncs: syncs.into_iter().map(SyncId).collect(),
                repair,
                misses: Misses { count: misses.0, lasted: Duration::from_nanos(misses.1) },
                weight: Weight(if attempts > 0 { misses.2 } else { 0 }),
            };
            Stored { entry, place, alone }
        },
    )
}

/// The same row by way of the message.
fn by_message(Stored { entry, place, alone }: &Stored) -> Vec<u8> {
    let (place, parked_kind) = match place {
        Place::Waiting => (0, 0),
        Place::Ready => (1, 0),
        Place::Due => (2, 0),
        Place::Parked(kind) => (3, u32::from(*kind)),
    };
    encode(&EntryRow {
        blob: entry.blob.to_key(),
        size: entry.size,
        lane: u32::from(keys::lane_byte(entry.lane)),
        enqueue_time: keys::nanos(entry.enqueue_time),
        due_time: keys::nanos(entry.due_time),
        attempts: entry.attempts,
        failure: entry.failure.as_ref().map(|failure| FailureRow {
            kind: u32::from(failure.kind.number()),
            code: failure.code.map(|code| code as i32),
            peer: failure.peer.clone(),
            message: failure.message.clone(),
            first: keys::nanos(failure.first),
            last: keys::nanos(failure.last),
            count: failure.count,
        }),
        trace: entry
            .trace
            .as_ref()
            .map(|trace| TraceRow { traceparent: trace.traceparent.clone(), tracestate: trace.tracestate.clone() }),
        visited: entry.visited.iter().map(ToString::to_string).collect(),
        syncs: entry.syncs.iter().map(|sync| sync.0).collect(),
        repair: entry.repair,
        place,
        parked_kind,
        alone: *alone,
        misses: entry.misses.count,
        missed_for: u64::try_from(entry.misses.lasted.as_nanos()).unwrap(),
        weight: (entry.attempts > 0).then_some(entry.weight.0),
    })
}

proptest! {
    #[test]
    fn an_entry_is_written_as_its_message_would_be(stored in stored()) {
        let mut row = Vec::new();
        put_entry(&stored, &mut row);
        assert_eq!(row, by_message(&stored));
        assert_eq!(decode_entry(RouteId(3), 7, &row).unwrap(), stored);
        decode::<EntryRow>(&row).unwrap();
    }
}
