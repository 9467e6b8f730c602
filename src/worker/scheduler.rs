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
//!   claimed ahead. What a peer answers for one blob of a pack is that blob's, as when it is copied alone, and its next attempt
//!   goes in a pack as well. What fails as a pack says nothing of any blob in it: they go in smaller packs next, and alone in
//!   the end.
//! - **Workers.** A copy that only waits, for its confirmation or for bytes that trickle, is no worker's any more, up to three
//!   times `workers`.
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
mod start;
mod step;

pub(super) use class::{Feed, Kind};
#[cfg(test)]
pub(super) use packs::PACK_ITEMS;
pub(super) use step::{
    Conclusion, Effect, EntryEnd, Event, Fate, Job, JobId, Moment, Pause, Peers, ScheduledRoute, Step,
};

use super::attribution::{Attribution, Streak};
use crate::clock::{Entropy, Monotonic};
use crate::fault::Side;
use crate::limits::{Limits, Throttle};
use crate::queue::{Changes, Claim, Claimed, Lane, Outcome};
use class::{ClaimLine, Class, WaitingClaim};
use packs::{DuplicateRatio, PackSize, RouteCapabilities};
use scout::Scout;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long nothing is started after the queue failed, or a copy was lost.
const REST: Duration = Duration::from_secs(1);

/// A job in flight.
#[derive(Debug)]
struct InFlight {
    feed: Feed,
    kind: Kind,
    began: Moment,
    /// How wide it is at each peer, and whether it is a try of the open breaker there.
    widths: [usize; 2],
    is_try: [bool; 2],
    /// Whether it occupies a worker; if not, it only waits.
    works: bool,
    bytes: u64,
    /// How often in a row it was refused.
    refusals: u32,
    fellows: usize,
}

/// A class: its claims that wait, and what it occupies.
#[derive(Debug, Default)]
struct ClassState {
    head: ClaimLine,
    scouted: ClaimLine,
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
    next_due: Option<Monotonic>,
}

impl ClassState {
    /// It may have something to claim.
    fn look(&mut self) {
        self.exhausted = [false; 2];
        self.stale = self.claiming;
    }
}

/// See the module's header.
pub(super) struct Scheduler {
    route: ScheduledRoute,
    limits: Limits,
    entropy: Arc<Entropy>,
    throttle: Arc<Throttle>,
    attribution: Attribution,
    capabilities: RouteCapabilities,
    pack_size: PackSize,
    duplicates: DuplicateRatio,
    classes: [ClassState; 4],
    /// What the queue told last.
    changes: Changes,
    scouts: [Scout; 2],
    jobs: HashMap<JobId, InFlight>,
    last_job: u64,
    /// Workers occupied and bytes held, by kind.
    busy: [usize; 2],
    bytes: [u64; 2],
    waiting: usize,
    /// Refused, and to be tried again at this time.
    refused: BTreeMap<(Monotonic, u64), (Feed, WaitingClaim)>,
    /// Concluded, and not yet being settled.
    unsettled: Vec<(Claim, Outcome)>,
    settling: bool,
    stopping: bool,
    /// New entries that are not claimed, by lane.
    ready: [u64; 2],
    /// A breaker was open at the last look.
    was_open: bool,
    rate_rests_until: Monotonic,
    /// Until when nothing is started, and why; see [`REST`].
    rest: (Pause, Monotonic),
    /// When a copy last succeeded at each side, and when each was last asked whether it is well.
    succeeded: [Monotonic; 2],
    asked: [Option<Monotonic>; 2],
    next_poll: Monotonic,
    pause: Pause,
    wake_at: Option<Monotonic>,
}

impl Scheduler {
    pub(super) fn new(route: ScheduledRoute, limits: Limits, throttle: Arc<Throttle>, entropy: Arc<Entropy>) -> Self {
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
            changes: Changes::default(),
            scouts: Default::default(),
            jobs: HashMap::new(),
            last_job: 0,
            busy: [0; 2],
            bytes: [0; 2],
            waiting: 0,
            refused: BTreeMap::new(),
            unsettled: Vec::new(),
            settling: false,
            stopping: false,
            ready: [0; 2],
            was_open: false,
            rate_rests_until: Monotonic::ZERO,
            rest: (Pause::None, Monotonic::ZERO),
            succeeded: [Monotonic::ZERO; 2],
            asked: [None; 2],
            next_poll: Monotonic::ZERO,
            pause: Pause::Stopped,
            wake_at: None,
        }
    }

    /// Takes in what happened, and says what is to be done. `counts` are the queue's figures of the route.
    pub(super) fn apply(&mut self, event: Event, mut step: Step<'_>) -> Vec<Effect> {
        let step = &mut step;
        match event {
            Event::Claimed(feed, Ok(claimed)) => self.claimed(feed, claimed, step),
            Event::Claimed(feed, Err(error)) => {
                self.classes[feed.class.index()].claiming[usize::from(feed.walk.is_some())] = false;
                self.rest(Pause::QueueFailed(error.to_string()), step.now);
            }
            Event::Ended { job, ends, answered, took } => self.ended(job, ends, answered, took, step),
            Event::Lost(job) => {
                let _lost = self.give_back(job, step);
                // Never at once again, whatever it was.
                self.rest(Pause::CopyLost, step.now);
            }
            Event::Answered(job, side) => {
                if self.jobs.get(&job).is_some_and(|job| job.is_try[super::attribution::index(side)]) {
                    step.peers.of(side).succeeded(step.now.monotonic);
                }
            }
            Event::Waits { job, holds_bytes } => self.waits(job, holds_bytes, step),
            Event::Settled(result) => {
                self.settling = false;
                if let Err(error) = result {
                    self.rest(Pause::QueueFailed(error.to_string()), step.now);
                }
            }
            Event::Asked { side, well, held } => {
                step.peers.of(side).canary(well, step.now.monotonic);
                if let Some(held) = held.filter(|_| side == Side::Source) {
                    self.attribution.source_holds(&held, step.now.wall);
                }
            }
            Event::Limits(limits) => {
                self.limits = limits;
                self.rate_rests_until = Monotonic::ZERO;
                self.throttle.set(&limits);
            }
            Event::Queue(changes) => self.queue_changed(&changes),
            Event::Stop => self.stopping = true,
            Event::Look => {}
        }
        self.fill(step);
        if !self.settling && !self.unsettled.is_empty() {
            self.settling = true;
            step.act(Effect::Settle(std::mem::take(&mut self.unsettled)));
        }
        step.take_effects()
    }

    /// When to look again, if nothing happens before.
    pub(super) fn wake_at(&self) -> Option<Monotonic> {
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

    fn claimed(&mut self, feed: Feed, claimed: Claimed, step: &mut Step<'_>) {
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
            let wait = next_due.map(|due| due.duration_since(step.now.wall).unwrap_or_default());
            class.next_due = wait.map(|wait| step.now.monotonic.saturating_add(wait));
        }
        for claim in claims {
            self.line_up(feed, claim, step);
        }
    }

    /// Puts a claim into its line; one that a side would never take is concluded.
    fn line_up(&mut self, feed: Feed, claim: Claim, step: &mut Step<'_>) {
        let entry = claim.entry();
        if let Some((side, listed)) = self.capabilities.refuses(entry.blob.function()) {
            let error = crate::copy::CopyError::unsupported_digest(side, entry.blob.function(), listed);
            return self.conclude_unsent(claim, error, step);
        }
        // How much a blob of unknown size takes of a rate is known too late for a whole pack of them.
        let (_, rated_bytes) = self.throttle.rates();
        let packed = !self.was_open && self.capabilities.takes(entry) && (entry.size.is_some() || !rated_bytes);
        let fellows = if packed { packs::PACK_ITEMS } else { 1 };
        let waiter = WaitingClaim { size: entry.size, claim, fellows, refusals: 0 };
        self.line(feed).add(waiter);
    }

    fn line(&mut self, feed: Feed) -> &mut ClaimLine {
        let class = &mut self.classes[feed.class.index()];
        if feed.walk.is_some() { &mut class.scouted } else { &mut class.head }
    }

    /// Nothing is started for a moment.
    fn rest(&mut self, why: Pause, now: Moment) {
        self.rest = (why, now.monotonic.saturating_add(REST));
    }

    /// It only waits: it is no worker's any more.
    fn waits(&mut self, id: JobId, holds_bytes: bool, step: &mut Step<'_>) {
        if self.waiting >= 3 * self.workers() {
            return;
        }
        let Some(job) = self.jobs.get_mut(&id).filter(|job| job.works) else { return };
        job.works = false;
        let (feed, kind) = (job.feed, job.kind);
        let bytes = if holds_bytes { 0 } else { std::mem::take(&mut job.bytes) };
        self.waiting += 1;
        self.bytes[kind as usize] -= bytes;
        self.release_worker(feed, kind, step);
    }

    fn release_worker(&mut self, feed: Feed, kind: Kind, step: &mut Step<'_>) {
        self.busy[kind as usize] -= 1;
        let class = &mut self.classes[feed.class.index()];
        class.busy[kind as usize] -= 1;
        class.scouting -= usize::from(feed.walk.is_some());
        Peers::SIDES.into_iter().for_each(|side| step.peers.of(side).end());
    }

    /// Gives back all that a job took.
    fn give_back(&mut self, id: JobId, step: &mut Step<'_>) -> Option<InFlight> {
        let job = self.jobs.remove(&id)?;
        self.bytes[job.kind as usize] -= job.bytes;
        if job.works {
            self.release_worker(job.feed, job.kind, step);
        } else {
            self.waiting -= 1;
        }
        for (side, is_try) in Peers::SIDES.into_iter().zip(job.is_try) {
            if is_try {
                step.peers.of(side).end_try(job.began.monotonic);
            }
        }
        Some(job)
    }

    /// Something may be claimed that could not be before.
    fn queue_changed(&mut self, changes: &Changes) {
        for class in Class::ALL {
            let of = |changes: &Changes| changes.of(class.lane, class.retry);
            if of(changes) != of(&self.changes) {
                self.classes[class.index()].look();
            }
        }
        self.changes = *changes;
    }

    fn look_everywhere(&mut self) {
        self.classes.iter_mut().for_each(ClassState::look);
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
