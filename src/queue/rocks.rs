//! The queue on disk: RocksDB, one committer, claims in memory.
//!
//! # Keys
//!
//! Numbers are big-endian. A route is 4 bytes, a lane 1 (0 fresh, 1 backfill), a sequence and a time 8 (nanoseconds since
//! 1970), a fault's kind 1. A ref is [`BlobRef::to_key`](crate::blob::BlobRef::to_key).
//!
//! | family | key | value |
//! |---|---|---|
//! | `entry` | route, seq | a row: the entry, and which of the next three it has |
//! | `ready` | route, lane, seq | 1 byte: has it failed; 8 bytes: its size, if known |
//! | `retry` | route, lane, due, seq | the same |
//! | `parked` | route, kind, seq | the same |
//! | `ref` | route, ref | one sequence or two, ascending: an entry and its successor |
//! | `state` | text | anything ([`State`](crate::queue::State)) |
//! | `done` | number | a row: what left the queue in one batch; the oldest are deleted |
//! | `aside` | family, `/`, its key | a row that could not be read, as it was |
//! | `meta` | `format` | 4 bytes: the format's version |
//! | | `next_seq` | 8 bytes: lower than every sequence not yet given |
//! | | `commit_time` | 8 bytes: when the last batch was written |
//! | | `aside` | 8 bytes: rows set aside so far |
//! | | `route/`, route | a row: name, from, to |
//! | | `counts/`, route | a row: the route's counters, and where its `ready` rows begin |
//! | | `sync/`, id | a row: the sync's tally |
//!
//! A *row* is a version byte and a protobuf message (see `row`), so that fields can be added.
//!
//! # Invariants
//!
//! - Every change is one synced `WriteBatch` of the committer's thread. Index rows, counters and tallies are derived from the
//!   entries' changes in that batch, so they cannot drift, and opening does not scan.
//! - An entry's row may say that it is alone, that its ref's row names no other: then nothing has to read that.
//! - An entry has exactly one `entry` row, its ref's `ref` row names it, and it has one row of `ready`, `retry` or `parked`,
//!   but a successor has none. `ready` is append only: what becomes claimable out of turn (revived, changed lane, succeeded)
//!   has a `retry` row, due at once.
//! - Claims with the rows of their entries, released claims and read cursors are memory only (`claims`); the committer alone
//!   begins a claim, between two batches, so that no row changes while it looks for one (`scan`). No read walks over
//!   what was settled before: the counters' row says where `ready` begins, and deletions in `retry` are compacted soon.
//! - Memory changes after the write, never before: a failed write changes nothing but the next sequence.
//!
//! `recover` says what is done with a damaged database on opening, `reopen` what after a failed write.

mod apply;
mod claims;
mod commit;
mod database;
mod decide;
mod done;
mod dropped;
mod error;
mod failed;
mod figures;
mod gather;
mod handle;
mod keys;
mod log_scan;
mod lookup;
mod measure;
mod open;
mod options;
mod recover;
mod reopen;
mod request;
mod row;
mod scan;
mod shared;
mod space;
mod transfer;
mod txn;

pub(crate) use error::OpenError;
pub(crate) use handle::KnownRoute;
pub use handle::RocksQueue;
pub use options::RocksOptions;
pub(crate) use transfer::{TransferCounts, TransferError, export, import};

#[cfg(test)]
mod tests;
