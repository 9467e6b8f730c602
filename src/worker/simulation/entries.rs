//! Entries for tests of what decides about them.

use crate::blob::DigestFunction;
use crate::clock::from_unix_ms;
use crate::fault::FaultKind;
use crate::queue::{Entry, Failure, Lane, Misses, RouteId, Seq, Weight};
use std::time::SystemTime;

pub(crate) fn entry(number: u64) -> Entry {
    Entry {
        seq: Seq(number),
        route: RouteId(1),
        blob: DigestFunction::Sha256.ref_of(&number.to_be_bytes()),
        size: None,
        lane: Lane::Fresh,
        enqueue_time: SystemTime::UNIX_EPOCH,
        due_time: SystemTime::UNIX_EPOCH,
        attempts: 0,
        misses: Misses::default(),
        weight: Weight::default(),
        failure: None,
        trace: None,
        visited: Vec::new(),
        syncs: Vec::new(),
        repair: false,
    }
}

/// One that failed once, in this way and at this time.
pub(crate) fn failed(number: u64, kind: FaultKind, ms: u64) -> Entry {
    let time = from_unix_ms(ms);
    let (peer, message) = (String::new(), String::new());
    let failure = Failure { kind, code: None, peer, message, first: time, last: time, count: 1 };
    Entry { failure: Some(failure), attempts: 1, ..entry(number) }
}
