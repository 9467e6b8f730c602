//! What an operator sees: the queue, the routes, the peers and the syncs, in one picture.
//!
//! [`Observer`] gathers the figures and asks no peer. What they mean is decided by plain functions (`route_status`,
//! `peer_status`, `overall`): a state in one word, and one sentence that says what is going on and, where
//! something is wrong, with whom, since when, and whether anything is lost by it.

mod limiting;
mod observer;
mod overall;
mod peer;
mod queue;
mod route;
mod sentence;
mod trend;

pub(crate) use observer::{Observer, ObserverParts, WatchedPeer, WatchedRoute};
pub(crate) use queue::incident_text;
pub(crate) use sentence::Sentence;
pub(crate) use trend::{Samples, Trend};

use crate::announce::{Backlog, Route};
use crate::overrides::InForce;
use crate::peer::PeerSnapshot;
use crate::queue::RouteCounts;
use crate::queue::damage::Incident;
use crate::sync::{NeededSync, SyncRecord};
use crate::worker::{ErrorGroup, InProgress};
use std::time::{Duration, SystemTime};

/// The most copies in progress that are shown of a route.
pub(crate) const MAX_COPIES: usize = 100;

/// A replicator as it stands.
#[derive(Clone, Debug)]
pub(crate) struct ReplicatorStatus {
    /// In one word.
    pub state: ReplicatorState,
    /// In one sentence.
    pub summary: String,
    /// When this process started.
    pub start_time: SystemTime,
    /// When this picture was taken.
    pub snapshot_time: SystemTime,
    /// The routes, by name.
    pub routes: Vec<RouteStatus>,
    /// Their stores, by name.
    pub peers: Vec<PeerStatus>,
    /// The queue.
    pub queue: QueueStatus,
    /// Lines of the log that were lost since this process started.
    pub log_lines_lost: u64,
}

/// How a replicator stands; of several, the last holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ReplicatorState {
    /// All is well.
    Ok,
    /// Somebody should look.
    Attention,
    /// A part of the queue was lost, and no full sync has made up for it yet.
    Degraded,
    /// Announcements are refused.
    NotAccepting,
    /// It shuts down.
    Draining,
}

/// A route as it stands.
#[derive(Clone, Debug)]
pub(crate) struct RouteStatus {
    /// The route.
    pub route: Route,
    /// In one word.
    pub state: RouteState,
    /// In one sentence.
    pub sentence: Sentence,
    /// Whether somebody should look at it although blobs may be copied.
    pub alarm: bool,
    /// The queue's figures.
    pub counts: RouteCounts,
    /// Entries that are still to be copied, and the lag.
    pub backlog: Backlog,
    /// The age of the oldest backfill entry that is ready or claimed.
    pub oldest_backfill_age: Option<Duration>,
    /// The age of the oldest retrying entry, where it is known.
    pub oldest_retrying_age: Option<Duration>,
    /// The age of the oldest parked entry.
    pub oldest_parked_age: Option<Duration>,
    /// When the next retrying entry is due.
    pub next_retry_time: Option<SystemTime>,
    /// What holds it back most; absent: not known.
    pub limiting: Option<LimitingFactor>,
    /// Rates and direction.
    pub trend: Trend,
    /// How long the backlog will take at this rate; absent where there is none, nothing of it can be copied now, or there is
    /// no rate.
    pub eta: Option<Duration>,
    /// What was done since this process started.
    pub since_start: Totals,
    /// Copies in progress, the longest-running first.
    pub copies: Vec<InProgress>,
    /// What went wrong of late, by cause, the latest first.
    pub faults: Vec<ErrorGroup>,
    /// The limits in force, and who set them.
    pub limits: InForce,
    /// The sync that runs.
    pub running_sync: Option<SyncRecord>,
    /// The sync that ended last.
    pub last_sync: Option<SyncRecord>,
    /// The sync that it needs.
    pub needed_sync: Option<NeededSync>,
}

/// How a route stands; of several, the last holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RouteState {
    /// Nothing is queued.
    InSync,
    /// Blobs are being copied, or about to be.
    Copying,
    /// A full sync compares the stores.
    Syncing,
    /// A full sync that it needs has not completed, or the last one failed: what the destination lacks is not known.
    NeedsSync,
    /// Only parked entries are left.
    Parked,
    /// Only entries that wait for their next attempt are left.
    Retrying,
    /// A peer does not answer, or is not what it should be.
    Blocked,
    /// Entries may have been lost, and no full sync has made up for it yet.
    Degraded,
    /// An operator has paused it.
    Paused,
    /// The replicator shuts down.
    Draining,
    /// Configured to do nothing.
    Disabled,
    /// No longer configured; its entries are kept.
    Orphaned,
}

impl RouteState {
    /// Whether a route in this state does its job: nothing waits for a peer, for another attempt, or for an operator, and the
    /// stores were compared where that was needed.
    pub(crate) const fn works(self) -> bool {
        matches!(self, Self::InSync | Self::Copying | Self::Syncing)
    }

    /// The word.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::InSync => "in sync",
            Self::Copying => "copying",
            Self::Syncing => "syncing",
            Self::NeedsSync => "needs a full sync",
            Self::Parked => "parked",
            Self::Retrying => "retrying",
            Self::Blocked => "blocked",
            Self::Degraded => "degraded",
            Self::Paused => "paused",
            Self::Draining => "draining",
            Self::Disabled => "disabled",
            Self::Orphaned => "orphaned",
        }
    }
}

/// What holds a route back most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LimitingFactor {
    /// There is nothing to copy now.
    Idle,
    /// It is paused or disabled.
    Paused,
    /// It uses up its rate.
    RateLimit,
    /// All workers are busy.
    Workers,
    /// Copies mostly wait for the source.
    SourceSlow,
    /// Copies mostly wait for the destination.
    DestinationSlow,
    /// A peer does not answer, or its breaker is open.
    Breaker,
    /// Copies mostly wait for the queue.
    QueueDisk,
    /// A peer takes no more copies at a time.
    PeerOverloaded,
}

/// What a route has done in some span of time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Entries confirmed.
    pub confirmed: u64,
    /// Entries among them whose bytes were sent.
    pub copied: u64,
    /// Those bytes.
    pub copied_bytes: u64,
    /// Entries discarded.
    pub discarded: u64,
    /// Attempts that failed; absent: not counted.
    pub failed_attempts: Option<u64>,
}

/// A store as the replicator sees it.
#[derive(Clone, Debug)]
pub(crate) struct PeerStatus {
    /// What its routes know of it.
    pub snapshot: PeerSnapshot,
    /// Where it is.
    pub endpoint: String,
    /// Whether it answers.
    pub health: PeerHealth,
    /// In one sentence.
    pub summary: String,
}

/// Whether a peer answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerHealth {
    /// It was not asked yet.
    Unknown,
    /// It answers.
    Reachable,
    /// It does not.
    Unreachable,
    /// It answers, and is not what it should be.
    Unsuitable,
}

/// The queue as it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct QueueStatus {
    /// In one word.
    pub state: QueueState,
    /// In one sentence.
    pub sentence: Sentence,
    /// Why announcements are refused; empty: they are not.
    pub reason: String,
    /// Entries of all routes in all states.
    pub entries: u64,
    /// Those among them that are parked.
    pub parked: u64,
    /// The number of entries that are not parked from which announcements are refused.
    pub max_entries: u64,
    /// More parked ones than these raise an alarm.
    pub max_parked: u64,
    /// Free bytes on its disk, where known.
    pub free_bytes: Option<u64>,
    /// Free bytes below which announcements are refused.
    pub reserve_bytes: u64,
    /// What was lost, and no full sync has made up for yet.
    pub incidents: Vec<Incident>,
    /// Stored bytes that were found damaged since the start; empty: none.
    pub damage: String,
}

/// How the queue stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueueState {
    /// It accepts and writes.
    Ok,
    /// It has reached a limit.
    Full,
    /// It cannot write.
    Failing,
    /// It accepts and writes, and a part of it was lost.
    Degraded,
}

#[cfg(test)]
mod tests;
