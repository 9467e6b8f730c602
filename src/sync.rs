//! Full syncs: finding and repairing any difference between the two stores of a route.
//!
//! ```text
//! source ──enumerate──▶ ┌───────┐  missing, differing   ┌───────┐
//!                       │ Merge │ ────────────────────▶ │ Queue │ ──▶ worker ──▶ copy
//! destination ────────▶ └───────┘  ≤ 1000 to a write    └───────┘
//!  enumerate, or stat
//! ```
//!
//! `diff` decides, without a runtime; `driver` owns the syncs, their records and their tasks; `run` is one sync from
//! its first question to its last confirmation. A sync copies nothing itself: what it finds becomes backfill entries, with
//! the sync's id on them, and the queue counts what becomes of those.
//!
//! What it holds to:
//!
//! - **It ends**, whatever the stores do. Nothing waits for a consumer that waits for it: pages are pulled, one at a time.
//!   A page that does not come within the idle deadline, a stream without an end, an error of either side, a failed
//!   write, a panic: each ends it as FAILED with the reason. A sync that was cut by a restart is FAILED too. What it had
//!   pushed stays queued, and it can be run again.
//! - **It reports only what it saw whole** (invariant 9). A listing that is out of order, repeats itself, miscounts or
//!   stops short ends the sync. A page of findings, the counts and the cursor are one write.
//! - **COMPLETED means confirmed.** It waits for every entry that it found; with parked or discarded ones, it is
//!   COMPLETED_WITH_FAILURES.
//! - **It compares the stores that are meant.** One that tells another store id than the route knows it by ends it, at its
//!   beginning and once more when both sides have been read: an empty volume in place of a source has nothing missing.
//! - **It paces itself.** Above the high-water mark of the backfill backlog it closes its streams and waits. No stream is
//!   held longer than a window of refs either: it goes on after the last ref with a new one.
//! - **Memory is bounded** by the pages under way and one batch of findings, not by the stores.
//!
//! - **Refs of digest functions that are not known here** are counted, by function and side, and passed over, even where
//!   a whole window has nothing else: a stream goes on after the last text that its store gave, whatever that was.
//!
//! Deliberately absent so far: COMPARE and VERIFY, ranges in parallel, going on from a checkpoint. The record
//! has room for all of them, and [`SyncStartError`] names what is refused.

mod diff;
mod driver;
mod history;
mod needs;
mod on_start;
mod parts;
mod prefix;
mod record;
mod request;
mod run;
mod span;

pub use diff::{Merge, Need};
pub(crate) use driver::FullSyncs;
pub(crate) use needs::NeededSync;
pub(crate) use on_start::StartSync;
pub(crate) use parts::{StoreIds, SyncParts, SyncRoute, SyncSettings};
#[cfg(test)]
pub(crate) use record::SyncFailure;
pub(crate) use record::{SyncMode, SyncPhase, SyncRecord, SyncState, UnknownFunction};
pub(crate) use request::{SyncRequest, SyncStartError};

#[cfg(test)]
mod tests;
