//! What a scheduler is told, what it answers, and what it decides with.

use super::class::{Feed, Kind};
use crate::blob::{BlobMeta, BlobRef};
use crate::clock::{Clock, Monotonic};
use crate::copy::{Copied, CopyError};
use crate::fault::Side;
use crate::limits::{Charge, Limits};
use crate::peer::state::PeerState;
use crate::queue::{
    Changes, Claim, ClaimRequest, Claimed, Lane, LaneCounts, Outcome, QueueError, RouteCounts, RouteId, Weight,
};
use crate::worker::route::{NextHop, Policy};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// A moment by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) struct Moment {
    pub(in crate::worker) monotonic: Monotonic,
    pub(in crate::worker) wall: SystemTime,
}

impl Moment {
    pub(in crate::worker) fn now(clock: &dyn Clock) -> Self {
        Self { monotonic: clock.monotonic(), wall: clock.now() }
    }
}

/// The states of both peers, as the scheduler uses them.
pub(in crate::worker) struct Peers<'a> {
    pub(in crate::worker) from: &'a mut PeerState,
    pub(in crate::worker) to: &'a mut PeerState,
}

impl Peers<'_> {
    pub(in crate::worker) const SIDES: [Side; 2] = [Side::Source, Side::Destination];

    pub(in crate::worker) fn of(&mut self, side: Side) -> &mut PeerState {
        match side {
            Side::Source => self.from,
            Side::Destination => self.to,
        }
    }
}

/// One step: what the scheduler decides with, and what it has decided so far.
pub(in crate::worker) struct Step<'a> {
    pub(in crate::worker) now: Moment,
    /// The queue's figures of the route.
    pub(in crate::worker) counts: &'a RouteCounts,
    pub(in crate::worker) peers: Peers<'a>,
    effects: Vec<Effect>,
}

impl<'a> Step<'a> {
    pub(in crate::worker) fn new(now: Moment, counts: &'a RouteCounts, peers: Peers<'a>) -> Self {
        Self { now, counts, peers, effects: Vec::new() }
    }

    /// This is to be done.
    pub(super) fn act(&mut self, effect: Effect) {
        self.effects.push(effect);
    }

    pub(super) fn take_effects(&mut self) -> Vec<Effect> {
        std::mem::take(&mut self.effects)
    }

    pub(super) fn lane(&self, lane: Lane) -> &LaneCounts {
        match lane {
            Lane::Fresh => &self.counts.fresh,
            Lane::Backfill => &self.counts.backfill,
        }
    }

    /// Whether entries wait for a retry, which will try a peer that is open.
    pub(super) fn has_retries(&self) -> bool {
        self.counts.fresh.retrying.entries + self.counts.backfill.retrying.entries > 0
    }
}

/// The number of a job, never used twice by a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::worker) struct JobId(pub(in crate::worker) u64);

/// A copy to be made: of one blob, or of a pack.
#[derive(Debug)]
pub(in crate::worker) struct Job {
    pub(in crate::worker) id: JobId,
    pub(in crate::worker) kind: Kind,
    /// In the order of the queue; one at least, and exactly one where it is copied alone.
    pub(in crate::worker) claims: Vec<Claim>,
    /// The size of the blob that is copied alone, as far as it is known.
    pub(in crate::worker) size: Option<u64>,
    /// The largest blob of a pack, in bytes.
    pub(in crate::worker) max_blob_bytes: u64,
    /// Whether both sides are asked first what they hold.
    pub(in crate::worker) ask_first: bool,
    /// What it takes of the route's rates.
    pub(in crate::worker) charge: Charge,
    /// Whether it is to find out if a peer is back.
    pub(in crate::worker) is_try: bool,
}

/// How the copy of one entry ended.
#[derive(Clone, Debug)]
pub(in crate::worker) enum EntryEnd {
    /// It is confirmed.
    Copied(Copied),
    /// It failed.
    Failed(CopyError),
    /// Its pack failed in this way before it was answered.
    Unanswered(CopyError),
    /// It has to be copied on its own; its size in bytes, if that is known now.
    Alone(Option<u64>),
}

/// How an entry's attempt went, to be told to people.
#[derive(Clone, Debug)]
pub(in crate::worker) struct Conclusion {
    /// The job, and the entry's place in it; `None` where nothing was sent.
    pub(in crate::worker) job: Option<(JobId, usize)>,
    pub(in crate::worker) blob: BlobRef,
    /// The announced size.
    pub(in crate::worker) size: Option<u64>,
    pub(in crate::worker) attempt: u32,
    pub(in crate::worker) result: Result<Copied, CopyError>,
    pub(in crate::worker) fate: Fate,
    /// What the failure weighed.
    pub(in crate::worker) weight: Weight,
}

/// What became of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Fate {
    Confirmed,
    /// Tried again later.
    Retried,
    Parked,
    Discarded,
    /// Tried again soon; the attempt is recorded nowhere.
    Kept,
}

/// What happened.
#[derive(Debug)]
pub(in crate::worker) enum Event {
    /// A claim was answered.
    Claimed(Feed, Result<Claimed, QueueError>),
    /// A job ended, with an end for each of its claims, after so long.
    Ended { job: JobId, ends: Vec<(Claim, EntryEnd)>, answered: [bool; 2], took: Duration },
    /// A job was lost with its claims.
    Lost(JobId),
    /// A side answered a job as a peer should, for the first time.
    Answered(JobId, Side),
    /// A job has only waited for a while: for its confirmation, or for bytes that trickle.
    Waits { job: JobId, holds_bytes: bool },
    /// The settlement that was asked for has ended.
    Settled(Result<(), QueueError>),
    /// A peer was asked a small question: whether it answered well, and which blobs of the sample it holds, if it said.
    Asked { side: Side, well: bool, held: Option<Vec<BlobMeta>> },
    /// The limits have changed.
    Limits(Limits),
    /// The queue may have something new.
    Queue(Changes),
    /// No more is to be started.
    Stop,
    /// A peer's state has changed, or time has passed.
    Look,
}

/// What is to be done.
#[derive(Debug)]
pub(in crate::worker) enum Effect {
    /// Claim these, and answer with [`Event::Claimed`]. One at a time for each feed.
    Claim(Feed, ClaimRequest),
    /// Copy this, and answer with [`Event::Ended`].
    Start(Job),
    /// This is how an entry's attempt went; to be told to people.
    Conclude(Conclusion),
    /// Write this, and answer with [`Event::Settled`]. One at a time.
    Settle(Vec<(Claim, Outcome)>),
    /// Ask a peer what it is, and look again.
    Identify(Side),
    /// Ask a peer whether it is well, and for these blobs; answer with [`Event::Asked`].
    Ask(Side, Vec<BlobRef>),
}

/// Why nothing more is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::worker) enum Pause {
    /// There is no reason but that all workers are busy, or a moment's wait for a claim.
    None,
    /// It was told to stop, or did not start yet.
    Stopped,
    /// An operator has paused the route.
    Paused,
    /// The route's rates are used up for the moment.
    RateLimited,
    /// The queue gives out no entries, or records no outcomes.
    QueueFailed(String),
    /// A copy was lost in a panic.
    CopyLost,
    /// The queue records outcomes more slowly than blobs are copied.
    Settling,
    /// This side's breaker is not closed.
    Breaker(Side),
    /// This side is being asked what it is.
    Identifying(Side),
    /// This side refuses more copies at a time.
    Overloaded(Side),
    /// There is nothing to copy.
    Idle,
}

/// What a scheduler needs to know of its route.
#[derive(Clone, Debug)]
pub(in crate::worker) struct ScheduledRoute {
    pub(in crate::worker) id: RouteId,
    pub(in crate::worker) from: Arc<str>,
    pub(in crate::worker) to: Arc<str>,
    pub(in crate::worker) next: Vec<NextHop>,
    pub(in crate::worker) bytes_in_flight: u64,
    pub(in crate::worker) policy: Policy,
}
