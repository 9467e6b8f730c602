//! The queue port: entries, what can happen to them, and who may hold them.
//!
//! An entry is *ready*, *claimed*, *retrying* or *parked*. It leaves the queue only by [`Queue::settle`], by an operator's
//! [`Discard`](failures::Remedy::Discard) or [drop](drop::DropEntries) of a whole route, or parked for so long that it
//! [expires](failures::Remedy::Expire). Every change is one durable, atomic write: when a method returns `Ok`, it is on disk,
//! synced. Claims live in memory: after a restart, what was claimed is ready again.
//!
//! What a [`Push`] does to an entry of the same route and ref that is there already:
//!
//! | state | announced or chained | by a sync |
//! |---|---|---|
//! | ready | nothing, but backfill becomes fresh | takes the sync's id |
//! | retrying | due now, attempts kept; backfill becomes fresh | takes the sync's id |
//! | parked | due now, attempts 0, history kept; backfill becomes fresh | the same, and takes the sync's id |
//! | claimed | one successor, claimable only when the first has ended | takes the sync's id; a successor only for a repair |
//!
//! A repair flags the entry that it meets, or the successor, never a claimed one. Where a first entry retries or parks, its
//! successor is merged into it in the same write (repair flag, sync id, freshest lane), due now.
//!
//! One sync of a route runs at a time: the id that an entry takes replaces that of a sync before it, which has ended.
//!
//! Parked entries do not count against `max_entries`: what was given up never keeps new blobs out.

pub(crate) mod claim;
pub(crate) mod damage;
pub(crate) mod drop;
pub(crate) mod failures;
pub(crate) mod lookup;
#[cfg(test)]
pub(crate) mod model;
pub(crate) mod rocks;
pub(crate) mod storage;
#[cfg(test)]
pub(crate) mod suite;

pub use claim::{Changes, Claim, ClaimOrder, ClaimRequest, Claimed};

use crate::blob::BlobRef;
use crate::failpoint::Injected;
use crate::fault::FaultKind;
use crate::telemetry::TraceContext;
use async_trait::async_trait;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// A route's number in this queue, given by [`Queue::register`] and kept for ever.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteId(pub u32);

/// An entry's sequence: ascending in the order of pushes, never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Seq(pub u64);

/// A full sync's number; never used twice in a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SyncId(pub u64);

impl fmt::Display for SyncId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sync-{}", self.0)
    }
}

impl FromStr for SyncId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = text.strip_prefix("sync-").ok_or(())?;
        if number.starts_with('+') || (number.starts_with('0') && number != "0") {
            return Err(());
        }
        number.parse().map(Self).map_err(|_| ())
    }
}

/// Where an entry came from, and with whom it shares the workers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Lane {
    /// Announced by a writer, or chained from an earlier hop.
    Fresh,
    /// Found by a full sync.
    Backfill,
}

impl Lane {
    /// Both lanes.
    pub const ALL: [Lane; 2] = [Self::Fresh, Self::Backfill];

    /// The lane's name in logs and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Fresh => "fresh",
            Self::Backfill => "backfill",
        }
    }
}

/// The cause of an entry's last failure, and how often it failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What kind of fault.
    pub kind: FaultKind,
    /// The gRPC status code that came with it, where one did.
    pub code: Option<tonic::Code>,
    /// The configured name of the store at fault.
    pub peer: String,
    /// What the peer said, or what was found wrong; bounded and escaped.
    pub message: String,
    /// When the entry first failed.
    pub first: SystemTime,
    /// When it last failed.
    pub last: SystemTime,
    /// How often it failed in all.
    pub count: u32,
}

/// How often, and for how long, the source was seen not to hold an entry's blob since the entry was pushed or revived.
///
/// The time is served, not elapsed: an attempt adds what lies between it and the miss before it, and no more than the longest
/// backoff, so that neither an outage nor a clock that jumps uses up a blob's patience.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Misses {
    /// Charged attempts that missed it.
    pub count: u32,
    /// The time that they span.
    pub lasted: Duration,
}

/// How much failures weigh for their entry, in thousandths of an answer about its blob. Who decides it is the worker.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(pub u32);

impl Weight {
    /// An answer about the blob itself.
    pub const ONE: Self = Self(1000);

    /// This part of [`ONE`](Self::ONE), from 0 to 1.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1000, as it is clamped")]
    pub fn of(part: f64) -> Self {
        Self((part.clamp(0.0, 1.0) * f64::from(Self::ONE.0)).round() as u32)
    }
}

impl std::ops::Add for Weight {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

/// A blob that is to be copied along a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The entry's own sequence, by which it is settled.
    pub seq: Seq,
    /// The route.
    pub route: RouteId,
    /// The blob.
    pub blob: BlobRef,
    /// Its size in bytes as announced; a hint, absent where unknown.
    pub size: Option<u64>,
    /// Its lane.
    pub lane: Lane,
    /// When it was pushed.
    pub enqueue_time: SystemTime,
    /// When it may be tried next; for a ready entry, when it was pushed.
    pub due_time: SystemTime,
    /// Attempts that failed since it was pushed or revived, whatever they weighed.
    pub attempts: u32,
    /// Those among them that did not find the blob at its source.
    pub misses: Misses,
    /// What its failures weighed since then, in all.
    pub weight: Weight,
    /// Why the last attempt failed, if one did.
    pub failure: Option<Failure>,
    /// The trace context of the announcement.
    pub trace: Option<TraceContext>,
    /// The configured names of the stores that this chain has visited, the route's `from` included.
    pub visited: Vec<Arc<str>>,
    /// The sync that waits for it. More only in entries of former versions, which kept the ids of ended ones.
    pub syncs: Vec<SyncId>,
    /// Whether the destination's bytes were proven wrong and are to be replaced.
    pub repair: bool,
}

impl Entry {
    /// One failed attempt more, its failure with the entry's history carried on; what queues do when a settlement says so.
    pub fn fail(&mut self, failure: &Failure, weight: Weight, longest_backoff: Duration) {
        let before = self.failure.as_ref();
        if failure.kind == FaultKind::MissingAtSource {
            let missed = before.filter(|before| self.attempts > 0 && before.kind == FaultKind::MissingAtSource);
            let since = missed.map_or(failure.last, |before| before.last);
            let served = failure.last.duration_since(since).unwrap_or_default().min(longest_backoff);
            self.misses.count = self.misses.count.saturating_add(1);
            self.misses.lasted = self.misses.lasted.saturating_add(served);
        }
        let (first, count) = before.map_or((failure.first, 0), |before| (before.first, before.count));
        self.failure = Some(Failure { first, count: count.saturating_add(1), ..failure.clone() });
        self.attempts = self.attempts.saturating_add(1);
        self.weight = self.weight + weight;
    }

    /// This sync waits for it. Those before it have ended, as only one of a route runs at a time.
    pub fn awaited_by(&mut self, sync: SyncId) {
        if self.syncs != [sync] {
            self.syncs = vec![sync];
        }
    }

    /// Its failed attempts are forgiven, as when it is revived; its history stays.
    pub fn forgive(&mut self) {
        self.attempts = 0;
        self.misses = Misses::default();
        self.weight = Weight::default();
    }
}

/// The largest size in bytes that is believed: 256 TiB. What claims to be larger has no known size.
pub(crate) const LARGEST_SIZE: u64 = 1 << 48;

/// Who pushes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// A writer, by an announcement. Refused where `max_entries` are queued, parked ones aside.
    Announced,
    /// A copy confirmed at the store where the route starts. Exempt from `max_entries`.
    Chained,
    /// A full sync. Exempt from `max_entries`: the sync paces itself by the backlog.
    Sync(SyncId),
}

/// A request to copy a blob along a route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Push {
    /// The route.
    pub route: RouteId,
    /// The blob.
    pub blob: BlobRef,
    /// Its size in bytes, where known; above `LARGEST_SIZE` it is taken for unknown.
    pub size: Option<u64>,
    /// The lane. A sync's is backfill.
    pub lane: Lane,
    /// The trace context to keep with it.
    pub trace: Option<TraceContext>,
    /// Stores visited so far, the route's `from` included.
    pub visited: Vec<Arc<str>>,
    /// Whether the destination's bytes are to be replaced.
    pub repair: bool,
    /// Who asks.
    pub origin: Origin,
}

/// What a push did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// There was no such entry: a new one is ready.
    Added,
    /// An entry was ready, retrying or claimed already, and will do.
    AlreadyQueued,
    /// A retrying entry is due now.
    Hastened,
    /// A parked entry is due now, its attempts forgiven.
    Revived,
    /// The entry is being copied; a successor will be copied after it.
    SuccessorQueued,
}

/// How a claimed entry's copy ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The destination confirmed the blob; the entry is removed, and the next hops are pushed, in one write.
    Confirmed {
        /// The verified size in bytes.
        size: u64,
        /// Whether bytes were sent: false where the destination held the blob already.
        copied: bool,
        /// The next hops.
        chained: Vec<Push>,
    },
    /// The attempt failed, and the entry is tried again at `due`.
    Retry {
        /// When; at most the longest backoff ahead.
        due: SystemTime,
        /// Why. `first` and `count` are carried on from the entry's history by the queue.
        failure: Failure,
        /// What it weighs.
        weight: Weight,
    },
    /// The attempt failed, and the entry is given up until someone revives it.
    Park {
        /// Why.
        failure: Failure,
        /// What it weighs.
        weight: Weight,
    },
    /// The entry is removed without being copied, as configured or as an operator said. Counted, never silent.
    Discard,
}

/// A number of entries and their size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Entries.
    pub entries: u64,
    /// The sum of the known sizes, in bytes; modulo 2^64, so that what is taken away again leaves it right.
    pub bytes: u64,
    /// Entries among them whose size is unknown.
    pub unknown_size: u64,
}

/// A lane's entries by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LaneCounts {
    /// Waiting for their first attempt, without those claimed.
    pub ready: Tally,
    /// Being copied.
    pub claimed: Tally,
    /// Failed at least once, due or not, without those claimed.
    pub retrying: Tally,
    /// Given up.
    pub parked: Tally,
}

/// A route's figures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RouteCounts {
    /// The fresh lane.
    pub fresh: LaneCounts,
    /// The backfill lane.
    pub backfill: LaneCounts,
    /// Entries confirmed since the queue was made.
    pub confirmed: u64,
    /// Entries among them for which bytes were sent.
    pub copied: u64,
    /// The bytes sent for them.
    pub copied_bytes: u64,
    /// Entries discarded since the queue was made.
    pub discarded: u64,
}

/// When the oldest entries of a route were pushed; absent where there is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Oldest {
    /// Fresh, ready or claimed: its age is the route's lag.
    pub fresh: Option<SystemTime>,
    /// Backfill, ready or claimed.
    pub backfill: Option<SystemTime>,
    /// Retrying, by sequence; absent also where it is not known, because very many are.
    pub retrying: Option<SystemTime>,
    /// Parked, by sequence.
    pub parked: Option<SystemTime>,
    /// When the next retrying entry is due.
    pub next_due: Option<SystemTime>,
}

/// What became of the entries that a sync waits for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncTally {
    /// Entries that carry its id and are not parked.
    pub pending: u64,
    /// Entries confirmed.
    pub confirmed: u64,
    /// Entries that carry its id and are parked now.
    pub parked: u64,
    /// Entries discarded.
    pub discarded: u64,
}

/// A write to the [`State`]: a value, or `None` to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateWrite {
    /// The key, such as `sync/42`.
    pub key: String,
    /// The new value; `None` deletes.
    pub value: Option<Vec<u8>>,
}

/// The durable queue. Its states and their changes are in the module's header.
#[async_trait]
pub trait Queue: State {
    /// Gives a route its number, or finds it again. With a route that is new, its need of a full sync (`damage::SYNC_NEEDED`)
    /// is written.
    ///
    /// # Errors
    /// [`QueueError::RouteChanged`] for the same name with other stores; [`QueueError::Write`], [`QueueError::Read`],
    /// [`QueueError::NoSpace`], [`QueueError::Closed`].
    async fn register(&self, name: &str, from: &str, to: &str) -> Result<RouteId, QueueError>;

    /// Pushes all of these, and writes the state with them, in one durable write. Results stand in the order of `pushes`.
    ///
    /// # Errors
    /// [`QueueError::Full`], [`QueueError::NoSpace`], [`QueueError::Write`], [`QueueError::Read`], [`QueueError::Closed`].
    async fn push(&self, pushes: Vec<Push>, state: Vec<StateWrite>) -> Result<Vec<Pushed>, QueueError>;

    /// Claims entries of a lane, as many as are asked for and may be tried in this order. Fewer: there are no more in it
    /// before the next change or due time.
    ///
    /// # Errors
    /// [`QueueError::Read`], [`QueueError::Closed`].
    async fn claim(&self, request: ClaimRequest) -> Result<Claimed, QueueError>;

    /// Ends claims, all in one durable write.
    ///
    /// # Errors
    /// [`QueueError::Write`], [`QueueError::Read`], [`QueueError::NoSpace`], [`QueueError::Closed`]. Every one of the claims is
    /// released then.
    async fn settle(&self, settled: Vec<(Claim, Outcome)>) -> Result<(), QueueError>;

    /// A route's figures, from memory.
    fn counts(&self, route: RouteId) -> RouteCounts;

    /// When the oldest entries of a route were pushed.
    ///
    /// # Errors
    /// [`QueueError::Read`], [`QueueError::Closed`].
    async fn oldest(&self, route: RouteId) -> Result<Oldest, QueueError>;

    /// What became of a sync's entries; zeros for an unknown one.
    fn sync_tally(&self, sync: SyncId) -> SyncTally;

    /// Changes whenever a route may have something new to claim. A hint: lost ones cost a poll interval.
    fn subscribe(&self, route: RouteId) -> watch::Receiver<Changes>;
}

/// Everything that a queue offers: one handle, from which each part of the program takes the side that it needs.
pub trait WholeQueue:
    Queue + failures::Failures + drop::DropEntries + lookup::Lookup + damage::Condition + storage::Storage
{
}

impl<T> WholeQueue for T where
    T: Queue + failures::Failures + drop::DropEntries + lookup::Lookup + damage::Condition + storage::Storage
{
}

/// Small durable facts beside the entries: syncs, request ids. Shares the queue's database and committer.
#[async_trait]
pub trait State: Send + Sync + 'static {
    /// The value of a key.
    ///
    /// # Errors
    /// [`QueueError::Read`], [`QueueError::Closed`].
    async fn get(&self, key: &str) -> Result<Option<Vec<u8>>, QueueError>;

    /// Keys that begin with `prefix`, in descending order (newest first, for padded numbers), `limit` at most.
    ///
    /// # Errors
    /// [`QueueError::Read`], [`QueueError::Closed`].
    async fn list(&self, prefix: &str, limit: usize) -> Result<Vec<(String, Vec<u8>)>, QueueError>;

    /// Writes all of these in one durable write.
    ///
    /// # Errors
    /// [`QueueError::Write`], [`QueueError::NoSpace`], [`QueueError::Closed`].
    async fn write(&self, writes: Vec<StateWrite>) -> Result<(), QueueError>;
}

/// Why the queue did not do what it was asked. Nothing of the request has happened then, as far as the caller may rely on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueueError {
    /// The durable write failed.
    #[error("the queue could not write durably: {0}")]
    Write(String),
    /// A read failed.
    #[error("the queue could not be read: {0}")]
    Read(String),
    /// `queue.max_entries` is reached.
    #[error("the queue holds its {limit} entries, parked ones aside; retry when some are copied")]
    Full {
        /// The limit, in entries.
        limit: u64,
    },
    /// The disk's reserve is reached, or the disk is full.
    #[error(
        "the disk of {folder}, the queue's, is full: {free} bytes are left, and {reserve} are reserved; free some space"
    )]
    NoSpace {
        /// The queue's folder.
        folder: String,
        /// Free bytes.
        free: u64,
        /// The configured reserve in bytes.
        reserve: u64,
    },
    /// The route was known with other stores.
    #[error(
        "route {name} was {known} when its entries were queued and is now {now}; give the new direction a new name"
    )]
    RouteChanged {
        /// The route's name.
        name: String,
        /// `from -> to` as the queue knows it.
        known: String,
        /// `from -> to` as configured now.
        now: String,
    },
    /// The queue is closed, or closing.
    #[error("the queue is closed")]
    Closed,
}

impl From<Injected> for QueueError {
    fn from(injected: Injected) -> Self {
        Self::Write(injected.to_string())
    }
}
