//! What a route's worker does next: one synchronous state machine, stepped by the driver, and by tests in virtual time.
//!
//! ```text
//!            ┌──────────────────────── apply(event, now) ────────────────────────┐
//! claimed ──▶│  lines of claims ── fill: pass, identity, room, share ── start ──▶│─▶ effects: claim, start, settle,
//! ended   ──▶│  attribution: what a failure weighs, for the entry and the peers  │   identify, ask
//! settled ──▶└───────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Four questions are answered apart: what a failure weighs for its entry ([`Attribution`]), whether a peer is tried at all
//! (its breaker), how many at a time (its concurrency), and which entry is next (here).
//!
//! - **Next.** Entries are shared in four classes, by lane and by whether they wait for a retry. Whoever was served least by its
//!   weight is next, and none has more than its share of the workers while others have work. Within a class it is oldest first,
//!   while the head of the lane is any good ([`Scout`]).
//! - **Packs.** Small blobs go in packs where both peers can; what is ready, and nothing waits for a pack to fill. `workers`
//!   is the number of blobs copied alone at a time, and again the number of packs: neither kind waits for the other, and each
//!   has half of the route's bytes in flight. So that large blobs which stand first do not hide small ones, some entries are
//!   claimed ahead. What fails as a pack says nothing of any blob in it: they go in smaller packs next, and alone in the end.
//! - **Workers.** A copy that only waits for its confirmation is no worker's any more, up to three times `workers`.
//! - **Pauses.** [`Pause`] says why nothing more is started. Whatever stops copying releases what was claimed ahead.
//! - **Limits** hold from the next start on, and never touch a copy in flight.
//!
//! In flight is what [`Job`]s were started and did not [end](Event::Ended); all of it is plain integers here, given back at the
//! job's end. The driver owes an end for each job, one answer for each claim, and looks again at [`Scheduler::wake_at`].
//!
//! Drawbacks of this shape: what one event leads to is spread over `apply` and `fill`, so that a reader follows two steps; the
//! states of both peers are locked while it decides (some microseconds); and everything that takes time must come back as an
//! event, which is more to write than an `await` in place.

mod class;
mod ended;
mod fill;
mod packs;
mod scout;

pub(super) use class::{Feed, Kind};
pub(super) use ended::{Conclusion, EntryEnd, Fate};
#[cfg(test)]
pub(super) use packs::PACK_ITEMS;

use super::attribution::{Attribution, Streak};
use crate::blob::{BlobMeta, BlobRef};
use crate::clock::{Clock, Entropy};
use crate::fault::Side;
use crate::limits::{Charge, Limits, Throttle};
use crate::peer::state::PeerState;
use crate::queue::{Claim, ClaimRequest, Claimed, Lane, LaneCounts, Outcome, QueueError, RouteCounts, RouteId};
use crate::worker::{NextHop, Policy};
use class::{Line, Waiter};
use packs::{DuplicateRatio, PackSize, RouteCapabilities};
use scout::Scout;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long to leave the queue alone after it failed.
const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// The shortest pause of a route whose rate is used up: what a rate allows meanwhile goes together.
const RATE_PAUSE: Duration = Duration::from_millis(10);

/// A moment by both clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    pub(super) monotonic: Duration,
    pub(super) wall: SystemTime,
}

impl Moment {
    pub(super) fn now(clock: &dyn Clock) -> Self {
        Self { monotonic: clock.monotonic(), wall: clock.now() }
    }
}

/// The states of both peers, as the scheduler uses them.
pub(super) struct Peers<'a> {
    pub(super) from: &'a mut PeerState,
    pub(super) to: &'a mut PeerState,
}

impl Peers<'_> {
    pub(super) const SIDES: [Side; 2] = [Side::Source, Side::Destination];

    pub(super) fn of(&mut self, side: Side) -> &mut PeerState {
        match side {
            Side::Source => self.from,
            Side::Destination => self.to,
        }
    }
}

/// The number of a job, never used twice by a scheduler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct JobId(pub(super) u64);

/// A copy to be made: of one blob, or of a pack.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) id: JobId,
    pub(super) kind: Kind,
    /// In the order of the queue; one at least, and exactly one where it is copied alone.
    pub(super) claims: Vec<Claim>,
    /// The size of the blob that is copied alone, as far as it is known.
    pub(super) size: Option<u64>,
    /// The largest blob of a pack, in bytes.
    pub(super) max_blob_bytes: u64,
    /// Whether both sides are asked first what they hold.
    pub(super) ask_first: bool,
    /// What it takes of the route's rates.
    pub(super) charge: Charge,
    /// Whether it is to find out if a peer is back.
    pub(super) is_try: bool,
}

/// What happened.
#[derive(Debug)]
pub(super) enum Event {
    /// A claim was answered.
    Claimed(Feed, Result<Claimed, QueueError>),
    /// A job ended, with an end for each of its claims, after so long.
    Ended { job: JobId, ends: Vec<(Claim, EntryEnd)>, heard: [bool; 2], took: Duration },
    /// A job was lost with its claims.
    Lost(JobId),
    /// A side answered a job as a peer should, for the first time.
    Heard(JobId, Side),
    /// A job has waited for nothing but its confirmation for a while.
    Confirming(JobId),
    /// The settlement that was asked for has ended.
    Settled(Result<(), QueueError>),
    /// A peer was asked a small question: whether it answered well, and which blobs of the sample it holds, if it said.
    Asked { side: Side, well: bool, held: Option<Vec<BlobMeta>> },
    /// The limits have changed.
    Limits(Limits),
    /// The queue may have something new.
    Queue,
    /// No more is to be started.
    Stop,
    /// A peer's state has changed, or time has passed.
    Look,
}

/// What is to be done.
#[derive(Debug)]
pub(super) enum Effect {
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
pub(super) enum Pause {
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
pub(super) struct Route {
    pub(super) id: RouteId,
    pub(super) from: Arc<str>,
    pub(super) to: Arc<str>,
    pub(super) next: Vec<NextHop>,
    pub(super) bytes_in_flight: u64,
    pub(super) policy: Policy,
}

/// A job in flight.
#[derive(Debug)]
struct InFlight {
    feed: Feed,
    kind: Kind,
    began: Moment,
    /// How wide it is at each peer, and whether it is a try of the open breaker there.
    widths: [usize; 2],
    is_try: [bool; 2],
    /// Whether it occupies a worker; if not, it only waits for its confirmation.
    works: bool,
    bytes: u64,
    /// How often in a row it was refused.
    refusals: u32,
    fellows: usize,
}

/// A class: its claims that wait, and what it occupies.
#[derive(Debug, Default)]
struct ClassState {
    head: Line,
    scouted: Line,
    /// Entries started, by weight, and workers occupied; by kind.
    served: [f64; 2],
    busy: [usize; 2],
    /// Workers that scout.
    scouting: usize,
    /// Whether a claim is under way: at the head, and of the scouts.
    claiming: [bool; 2],
    /// How many were asked for.
    claim_max: [usize; 2],
    /// Whether the last claim brought less than was asked for, and nothing new was told since.
    exhausted: [bool; 2],
    /// Whether something new was told since the claim under way was made.
    stale: [bool; 2],
    next_due: Option<Duration>,
}

/// See the module's header.
pub(super) struct Scheduler {
    route: Route,
    limits: Limits,
    entropy: Arc<Entropy>,
    throttle: Arc<Throttle>,
    attribution: Attribution,
    capabilities: RouteCapabilities,
    pack_size: PackSize,
    duplicates: DuplicateRatio,
    classes: [ClassState; 4],
    scouts: [Scout; 2],
    jobs: HashMap<JobId, InFlight>,
    last_job: u64,
    /// Workers occupied and bytes held, by kind.
    busy: [usize; 2],
    bytes: [u64; 2],
    confirming: usize,
    /// Refused, and to be tried again at this time.
    refused: BTreeMap<(Duration, u64), (Feed, Waiter)>,
    /// Concluded, and not yet being settled.
    unsettled: Vec<(Claim, Outcome)>,
    settling: bool,
    stopping: bool,
    /// New entries that are not claimed, by lane.
    ready: [u64; 2],
    /// A breaker was open at the last look.
    was_open: bool,
    rate_rests_until: Duration,
    queue_rests_until: Duration,
    queue_error: String,
    /// When a copy last succeeded at each side, and when each was last asked whether it is well.
    succeeded: [Duration; 2],
    asked: [Option<Duration>; 2],
    next_poll: Duration,
    pause: Pause,
    wake_at: Option<Duration>,
}

impl Scheduler {
    pub(super) fn new(route: Route, limits: Limits, throttle: Arc<Throttle>, entropy: Arc<Entropy>) -> Self {
        throttle.set(&limits);
        Self {
            route,
            limits,
            entropy,
            throttle,
            attribution: Attribution::default(),
            capabilities: RouteCapabilities::default(),
            pack_size: PackSize::default(),
            duplicates: DuplicateRatio::default(),
            classes: Default::default(),
            scouts: Default::default(),
            jobs: HashMap::new(),
            last_job: 0,
            busy: [0; 2],
            bytes: [0; 2],
            confirming: 0,
            refused: BTreeMap::new(),
            unsettled: Vec::new(),
            settling: false,
            stopping: false,
            ready: [0; 2],
            was_open: false,
            rate_rests_until: Duration::ZERO,
            queue_rests_until: Duration::ZERO,
            queue_error: String::new(),
            succeeded: [Duration::ZERO; 2],
            asked: [None; 2],
            next_poll: Duration::ZERO,
            pause: Pause::Stopped,
            wake_at: None,
        }
    }

    /// Takes in what happened, and says what is to be done. `counts` are the queue's figures of the route.
    pub(super) fn apply(
        &mut self,
        event: Event,
        now: Moment,
        counts: &RouteCounts,
        peers: &mut Peers<'_>,
    ) -> Vec<Effect> {
        let mut effects = Vec::new();
        match event {
            Event::Claimed(feed, Ok(claimed)) => self.claimed(feed, claimed, now, &mut effects),
            Event::Claimed(feed, Err(error)) => {
                self.classes[feed.class.index()].claiming[usize::from(feed.walk.is_some())] = false;
                self.queue_failed(&error, now);
            }
            Event::Ended { job, ends, heard, took } => self.ended(job, ends, heard, took, now, peers, &mut effects),
            Event::Lost(job) => {
                let _lost = self.give_back(job, peers);
                // Never at once again, whatever it was.
                self.queue_failed(&QueueError::Read("a copy was lost".to_owned()), now);
            }
            Event::Heard(job, side) => {
                if self.jobs.get(&job).is_some_and(|job| job.is_try[super::attribution::index(side)]) {
                    peers.of(side).succeeded(now.monotonic);
                }
            }
            Event::Confirming(job) => self.confirming(job, peers),
            Event::Settled(result) => {
                self.settling = false;
                if let Err(error) = result {
                    self.queue_failed(&error, now);
                }
            }
            Event::Asked { side, well, held } => {
                peers.of(side).canary(well, now.monotonic);
                if let Some(held) = held.filter(|_| side == Side::Source) {
                    self.attribution.source_holds(&held, now.wall);
                }
            }
            Event::Limits(limits) => {
                self.limits = limits;
                self.rate_rests_until = Duration::ZERO;
                self.throttle.set(&limits);
            }
            Event::Queue => self.look_everywhere(),
            Event::Stop => self.stopping = true,
            Event::Look => {}
        }
        self.fill(now, counts, peers, &mut effects);
        if !self.settling && !self.unsettled.is_empty() {
            self.settling = true;
            effects.push(Effect::Settle(std::mem::take(&mut self.unsettled)));
        }
        effects
    }

    /// When to look again, if nothing happens before.
    pub(super) fn wake_at(&self) -> Option<Duration> {
        self.wake_at
    }

    /// Why nothing more is started.
    pub(super) fn pause(&self) -> &Pause {
        &self.pause
    }

    /// Whether nothing is in flight, and nothing waits to be recorded.
    pub(super) fn is_drained(&self) -> bool {
        self.jobs.is_empty() && !self.settling && self.unsettled.is_empty()
    }

    /// Whether everything that was concluded is recorded, or is not to be.
    pub(super) fn is_recorded(&self) -> bool {
        !self.settling && self.unsettled.is_empty()
    }

    /// Whether the queue is being asked for claims.
    pub(super) fn is_claiming(&self) -> bool {
        self.classes.iter().any(|class| class.claiming.contains(&true))
    }

    /// Workers that are free, of those for blobs that are copied alone and as many for packs.
    pub(super) fn free(&self) -> usize {
        self.workers().saturating_sub(self.busy.into_iter().max().unwrap_or(0))
    }

    /// Answers of one kind about very many blobs in a row.
    pub(super) fn alarm(&self) -> Option<&Streak> {
        self.attribution.alarm()
    }

    /// Since when refs that were copied earlier have vanished from the source.
    pub(super) fn vanished(&self) -> Option<SystemTime> {
        self.attribution.vanished()
    }

    fn workers(&self) -> usize {
        self.limits.workers.max(1)
    }

    fn claimed(&mut self, feed: Feed, claimed: Claimed, now: Moment, effects: &mut Vec<Effect>) {
        let Claimed { claims, next_due } = claimed;
        let class = &mut self.classes[feed.class.index()];
        let place = usize::from(feed.walk.is_some());
        class.claiming[place] = false;
        let is_stale = std::mem::take(&mut class.stale[place]);
        if let Some(walk) = feed.walk {
            let scout = &mut self.scouts[lane_index(feed.class.lane)];
            match (claims.first(), claims.last()) {
                (Some(first), Some(last)) => scout.claimed(walk, first.entry().seq, last.entry().seq),
                _ => {
                    scout.found_nothing(walk, self.entropy.jitter());
                    // Twice nothing, in two places: there is nothing to be scouted.
                    class.exhausted[1] = scout.walk().is_multiple_of(2) && !is_stale;
                }
            }
        } else {
            class.exhausted[0] = claims.len() < class.claim_max[0] && !is_stale;
            let wait = next_due.map(|due| due.duration_since(now.wall).unwrap_or_default());
            class.next_due = wait.map(|wait| now.monotonic.saturating_add(wait));
        }
        for claim in claims {
            self.line_up(feed, claim, now, effects);
        }
    }

    /// Puts a claim into its line; one that a side would never take is concluded.
    fn line_up(&mut self, feed: Feed, claim: Claim, now: Moment, effects: &mut Vec<Effect>) {
        let entry = claim.entry();
        if let Some((side, listed)) = self.capabilities.refuses(entry.blob.function()) {
            let error = crate::copy::CopyError::unsupported_digest(side, entry.blob.function(), listed);
            return self.conclude_unsent(claim, error, now, effects);
        }
        // How much a blob of unknown size takes of a rate is known too late for a whole pack of them.
        let (_, rated_bytes) = self.throttle.rates();
        let packed = !self.was_open && self.capabilities.takes(entry) && (entry.size.is_some() || !rated_bytes);
        let fellows = if packed { packs::PACK_ITEMS } else { 1 };
        let waiter = Waiter { size: entry.size, claim, fellows, refusals: 0 };
        self.line(feed).add(waiter);
    }

    fn line(&mut self, feed: Feed) -> &mut Line {
        let class = &mut self.classes[feed.class.index()];
        if feed.walk.is_some() { &mut class.scouted } else { &mut class.head }
    }

    fn queue_failed(&mut self, error: &QueueError, now: Moment) {
        self.queue_rests_until = now.monotonic.saturating_add(QUEUE_PAUSE);
        self.queue_error = error.to_string();
    }

    /// Only its confirmation is awaited: it is no worker's any more.
    fn confirming(&mut self, id: JobId, peers: &mut Peers<'_>) {
        if self.confirming >= 3 * self.workers() {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.works) else { return };
        job.works = false;
        let (feed, kind, bytes) = (job.feed, job.kind, std::mem::take(&mut job.bytes));
        self.confirming += 1;
        self.bytes[kind as usize] -= bytes;
        self.release_worker(feed, kind, peers);
    }

    fn release_worker(&mut self, feed: Feed, kind: Kind, peers: &mut Peers<'_>) {
        self.busy[kind as usize] -= 1;
        let class = &mut self.classes[feed.class.index()];
        class.busy[kind as usize] -= 1;
        class.scouting -= usize::from(feed.walk.is_some());
        Peers::SIDES.into_iter().for_each(|side| peers.of(side).end());
    }

    /// Gives back all that a job took.
    fn give_back(&mut self, id: JobId, peers: &mut Peers<'_>) -> Option<InFlight> {
        let job = self.jobs.remove(&id)?;
        self.bytes[job.kind as usize] -= job.bytes;
        if job.works {
            self.release_worker(job.feed, job.kind, peers);
        } else {
            self.confirming -= 1;
        }
        for (side, is_try) in Peers::SIDES.into_iter().zip(job.is_try) {
            if is_try {
                peers.of(side).end_try(job.began.monotonic);
            }
        }
        Some(job)
    }

    /// Something may be claimed that could not be before.
    fn look_everywhere(&mut self) {
        for class in &mut self.classes {
            class.exhausted = [false; 2];
            class.stale = class.claiming;
        }
    }

    /// Releases what was claimed and not started.
    fn release_waiting(&mut self) {
        self.refused.clear();
        for class in &mut self.classes {
            class.head.clear();
            class.scouted.clear();
        }
        self.look_everywhere();
    }
}

/// Where a lane stands in pairs.
const fn lane_index(lane: Lane) -> usize {
    match lane {
        Lane::Fresh => 0,
        Lane::Backfill => 1,
    }
}

fn counts_of(counts: &RouteCounts, lane: Lane) -> &LaneCounts {
    match lane {
        Lane::Fresh => &counts.fresh,
        Lane::Backfill => &counts.backfill,
    }
}
