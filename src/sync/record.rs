//! What is remembered of a full sync, and how it is written down.
//!
//! The keys, all in the queue's [`State`](crate::queue::State); numbers have 20 digits, so that text order is their order:
//!
//! | key | value |
//! |---|---|
//! | `sync_last_id` | the highest id given out, in decimal |
//! | `sync/ROUTE/ID` | the record, a versioned protobuf message |
//! | `sync_route/ID` | the route's name |
//! | `sync_running/ROUTE` | the id of the sync that runs there, in decimal |
//! | `sync_request/REQUEST_ID` | the id of the sync that answered this request, in decimal |
//! | `sync_request_of/ID/REQUEST_ID` | empty: finds the requests of a record that leaves the history |

mod wire;

use crate::blob::BlobRef;
use crate::fault::{FaultKind, Side};
use crate::queue::{QueueError, StateWrite, SyncId, SyncTally};
use crate::store::code_name;
use std::time::{Duration, SystemTime};

/// Unknown digest functions that a record tells apart.
const FUNCTIONS: usize = 16;

/// Stands for all further ones. No function's name has a `-`.
const OTHER_FUNCTIONS: &str = "other-functions";

/// What a full sync does with what it finds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum SyncMode {
    /// Copies what is missing, repairs what has another size.
    #[default]
    Copy,
    /// Reports only. Not offered yet.
    Compare,
    /// Copies, and re-hashes what both hold. Not offered yet.
    Verify,
}

impl SyncMode {
    /// The mode's name in logs, messages and JSON.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Compare => "compare",
            Self::Verify => "verify",
        }
    }
}

/// How a full sync stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SyncState {
    /// It compares, or waits for the copies of what it found.
    Running,
    /// Both stores were seen whole, and all that it found is confirmed.
    Completed,
    /// Both stores were seen whole, but some of what it found was parked or discarded.
    CompletedWithFailures,
    /// It ended before both stores were seen whole, or before it could tell what became of its entries.
    Failed,
    /// An operator ended it. What it had enqueued stays queued.
    Cancelled,
}

impl SyncState {
    /// The state's name in logs, messages and JSON.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Completed => "completed",
            Self::CompletedWithFailures => "completed_with_failures",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a running sync is busy with. Not kept over restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) enum SyncPhase {
    /// Reading both stores.
    #[default]
    Comparing,
    /// Standing still until the route's backlog is below the high-water mark.
    WaitingForBacklog,
    /// Everything was compared; waiting for the copies.
    WaitingForCopies,
}

/// Why a sync FAILED.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyncFailure {
    /// What kind of fault; absent where nothing was at fault: it was cut by a restart or a shutdown.
    pub kind: Option<FaultKind>,
    /// The configured name of the store at fault; empty: none is.
    pub peer: String,
    /// The gRPC status code that came with it, where one did.
    pub code: Option<tonic::Code>,
    /// What happened, naming the side and the peer, for people.
    pub message: String,
}

/// What a sync has seen and done. Blobs and entries, unless bytes are said.
///
/// In a record that was cut, `missing`, `in_flight` and `enqueued` may take the last page's refs, queued already or not,
/// for new ones: which they were is known only after the write that holds both.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncCounts {
    /// Blobs of the source that were compared.
    pub source_blobs: u64,
    /// Blobs of the destination that were compared.
    pub destination_blobs: u64,
    /// Blobs that the source holds, the destination lacks, and nobody had queued.
    pub missing: u64,
    /// The sum of the sizes of what the destination lacks (`missing` and `in_flight`), in bytes.
    pub missing_bytes: u64,
    /// Blobs whose size at the destination is not that at the source.
    pub differing: u64,
    /// Blobs that the destination lacks and that were queued already; the sync waits for them too.
    pub in_flight: u64,
    /// Blobs that only the destination holds; left alone.
    pub extra: u64,
    /// Entries that the sync added to the queue.
    pub enqueued: u64,
    /// The sum of their sizes at the source, in bytes.
    pub enqueued_bytes: u64,
}

/// Refs of a digest function that is not known here. They are counted, and not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UnknownFunction {
    /// The function's name, at most 64 printable ASCII characters of it; `other-functions` stands for all those behind the
    /// first 16 that the sync met.
    pub function: String,
    /// Such refs at the source.
    pub source_blobs: u64,
    /// Such refs at the destination.
    pub destination_blobs: u64,
}

/// A full sync, running or past.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SyncRecord {
    /// Its id.
    pub id: SyncId,
    /// The route's configured name.
    pub route: String,
    /// What it does.
    pub mode: SyncMode,
    /// Only refs that begin with this were looked at; empty: all.
    pub prefix: String,
    /// How it stands.
    pub state: SyncState,
    /// What it is busy with while it runs.
    pub phase: SyncPhase,
    /// Why it failed; set exactly where `state` is FAILED.
    pub failure: Option<SyncFailure>,
    /// When it was asked for.
    pub create_time: SystemTime,
    /// When it began to compare.
    pub start_time: Option<SystemTime>,
    /// When all was compared, and only copies were waited for.
    pub compared_time: Option<SystemTime>,
    /// When it ended.
    pub end_time: Option<SystemTime>,
    /// What it has seen and done.
    pub counts: SyncCounts,
    /// What became of the entries that it waits for: now while it runs, at its end afterwards.
    pub tally: SyncTally,
    /// The last ref of the source that was compared.
    pub cursor: Option<BlobRef>,
    /// Digest functions that are not known here, in the order in which the sync met them; 17 at most.
    pub unknown: Vec<UnknownFunction>,
    /// How long it has compared, waits for the backlog included; whole milliseconds of monotonic time.
    pub comparing: Duration,
    /// How long the copies that it waits for will still take, as fast as they went since it waits for nothing else. Absent
    /// while it compares (nobody knows how much lies ahead), before that is known, and at the end. Not kept over restarts.
    pub eta: Option<Duration>,
}

impl SyncRecord {
    /// A record of a sync that was just asked for.
    pub(crate) fn new(id: SyncId, route: &str, mode: SyncMode, prefix: &str, now: SystemTime) -> Self {
        Self {
            id,
            route: route.to_owned(),
            mode,
            prefix: prefix.to_owned(),
            state: SyncState::Running,
            phase: SyncPhase::default(),
            failure: None,
            create_time: now,
            start_time: None,
            compared_time: None,
            end_time: None,
            counts: SyncCounts::default(),
            tally: SyncTally::default(),
            cursor: None,
            unknown: Vec::new(),
            comparing: Duration::ZERO,
            eta: None,
        }
    }

    /// The parts that the space of refs was cut into: one, so far.
    pub(crate) const fn ranges_total(&self) -> u64 {
        1
    }

    /// Those of them that were compared whole.
    pub(crate) const fn ranges_done(&self) -> u64 {
        if self.compared_time.is_some() { 1 } else { 0 }
    }

    /// Blobs of the source compared in a second, over the whole time of comparing so far; absent until there was some.
    pub(crate) fn compared_blobs_per_second(&self) -> Option<f64> {
        (!self.comparing.is_zero()).then(|| self.counts.source_blobs as f64 / self.comparing.as_secs_f64())
    }

    /// Refs of unknown digest functions, on both sides together.
    pub(crate) fn unknown_refs(&self) -> u64 {
        self.unknown.iter().map(|unknown| unknown.source_blobs.saturating_add(unknown.destination_blobs)).sum()
    }

    /// Adds refs of unknown digest functions that a side's page left out.
    pub(super) fn add_unknown(&mut self, side: Side, unknown: Vec<(String, u64)>) {
        for (function, count) in unknown {
            let known = |list: &[UnknownFunction], name: &str| list.iter().position(|entry| entry.function == name);
            let at = match known(&self.unknown, &function) {
                Some(at) => Some(at),
                None if self.unknown.len() < FUNCTIONS => None,
                None => known(&self.unknown, OTHER_FUNCTIONS),
            };
            let at = at.unwrap_or_else(|| {
                let function = if self.unknown.len() < FUNCTIONS { function } else { OTHER_FUNCTIONS.to_owned() };
                self.unknown.push(UnknownFunction { function, source_blobs: 0, destination_blobs: 0 });
                self.unknown.len() - 1
            });
            let entry = &mut self.unknown[at];
            match side {
                Side::Source => entry.source_blobs += count,
                Side::Destination => entry.destination_blobs += count,
            }
        }
    }

    /// How it stands, in one sentence.
    pub(crate) fn summary(&self) -> String {
        let SyncCounts { source_blobs, missing, differing, in_flight, .. } = self.counts;
        let SyncTally { pending, confirmed, parked, discarded } = self.tally;
        let mut found = format!("{source_blobs} blobs compared");
        if !self.prefix.is_empty() {
            found += &format!(" that begin with {:?}", self.prefix);
        }
        found += &format!(": {missing} missing, {differing} differing, {in_flight} in flight");
        if !self.unknown.is_empty() {
            found += &format!(", {} of unknown digest functions left aside", self.unknown_refs());
        }
        match (self.state, self.phase, &self.failure) {
            (SyncState::Running, SyncPhase::Comparing, _) => format!("comparing; {found}"),
            (SyncState::Running, SyncPhase::WaitingForBacklog, _) => {
                format!("waiting for the backlog to drain; {found}")
            }
            (SyncState::Running, SyncPhase::WaitingForCopies, _) => {
                format!("copying; {found}; {confirmed} confirmed, {pending} to go")
            }
            (SyncState::Completed, ..) => format!("completed; {found}; all confirmed"),
            (SyncState::CompletedWithFailures, ..) => {
                format!(
                    "completed with failures; {found}; {confirmed} confirmed, {parked} parked, {discarded} discarded"
                )
            }
            (SyncState::Failed, _, Some(failure)) => format!("failed: {}", failure.message),
            (SyncState::Failed, _, None) => "failed".to_owned(),
            (SyncState::Cancelled, ..) => format!("cancelled; {found}"),
        }
    }
}

impl SyncFailure {
    /// The cause in a log line: the code's name where there is one, else the kind's.
    pub(crate) fn cause(&self) -> &'static str {
        self.code.map(code_name).or(self.kind.map(FaultKind::as_str)).unwrap_or("interrupted")
    }
}

/// The highest id that was given out.
pub(super) const LAST_ID: &str = "sync_last_id";

/// Begins the keys of the running syncs; the route's name follows.
pub(super) const RUNNING: &str = "sync_running/";

pub(super) fn records_of(route: &str) -> String {
    format!("sync/{route}/")
}

pub(super) fn record_key(route: &str, id: SyncId) -> String {
    format!("sync/{route}/{:020}", id.0)
}

pub(super) fn route_key(id: SyncId) -> String {
    format!("sync_route/{:020}", id.0)
}

pub(super) fn running_key(route: &str) -> String {
    format!("{RUNNING}{route}")
}

pub(super) fn request_key(request_id: &str) -> String {
    format!("sync_request/{request_id}")
}

pub(super) fn requests_of(id: SyncId) -> String {
    format!("sync_request_of/{:020}/", id.0)
}

/// A write of a sync's number.
pub(super) fn write_id(key: String, id: SyncId) -> StateWrite {
    StateWrite { key, value: Some(id.0.to_string().into_bytes()) }
}

/// The number that was written under `key`.
pub(super) fn read_id(key: &str, value: &[u8]) -> Result<SyncId, QueueError> {
    std::str::from_utf8(value)
        .ok()
        .and_then(|text| text.parse().ok())
        .map(SyncId)
        .ok_or_else(|| QueueError::Read(format!("{key} is not a number")))
}
