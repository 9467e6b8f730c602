//! The worker's rules (whose fault a failure is, whether a peer is tried, how many at a time, which entry is next), held to
//! scenarios in virtual time: it steps the [scheduler](super::scheduler) as the driver does. Queue, peers and clock are
//! stand-ins; everything else is what runs.
//!
//! [`scenarios`] holds the rules to bounds that were found with a prototype, [`histories`] looks for anything that breaks an
//! invariant. `make test` steps through each with some seeds, `make simulate N=… SEED=…` with more.

#![allow(clippy::unwrap_used, reason = "tests")]

pub(super) mod entries;
mod histories;
mod queue;
mod scenarios;

use super::Policy;
use super::scheduler::{Effect, EntryEnd, Event, Job, JobId, Kind, Moment, Peers, ScheduledRoute, Scheduler, Step};
use crate::breaker;
use crate::clock::{Clock, Entropy, ManualClock, Monotonic};
use crate::copy::{Copied, CopyError};
use crate::fault::{FailureClass, FaultKind, Side};
use crate::limits::{Limits, Throttle};
use crate::peer::state::PeerState;
use crate::queue::{Claim, Lane, RouteId};
use crate::store::StoreInfo;
use queue::SimQueue;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

/// What a blob is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tag {
    Good,
    /// Fails always, in the way of its world.
    Bad,
    /// Takes long to be confirmed.
    Slow,
}

/// How a try ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Ok,
    Class(FailureClass),
    /// Its pack ended so before it was answered.
    Unanswered(FailureClass),
}

const OK: Ending = Ending::Ok;
const DOUBT: Ending = Ending::Class(FailureClass::Doubtful);
const ANSWER: Ending = Ending::Class(FailureClass::Answer { permanent: false });
const FINAL: Ending = Ending::Class(FailureClass::Answer { permanent: true });
const CUT: Ending = Ending::Class(FailureClass::Cut);

/// Where, how, and after how many seconds a try ends.
type Try = (Side, Ending, f64);

/// How the peers of a route behave.
#[derive(Clone)]
struct World {
    bad: Ending,
    /// How long a bad one takes; otherwise as long as any.
    took: Option<f64>,
    /// The part of tries that fail by chance.
    fails: f64,
    /// When nothing works, and how long a try takes then.
    down: Vec<(f64, f64)>,
    hangs: Option<f64>,
    side: Side,
    /// How many the destination admits at a time, and how long it asks to be left alone otherwise.
    admits: Option<fn(f64) -> usize>,
    wait: f64,
    habit: Habit,
    /// Whether it says what it is, and answers its canary, also while nothing works.
    canary: Option<bool>,
    /// Whether it says what it is while tries fail by chance.
    identifies: bool,
}

#[derive(Clone, Copy, PartialEq)]
enum Habit {
    None,
    /// Latency grows with more than 16 at a time.
    Crowded,
    /// Each third call is refused.
    Third,
    /// Connections live three seconds.
    Aged,
}

impl World {
    fn well() -> Self {
        Self {
            bad: DOUBT,
            took: None,
            fails: 0.0,
            down: Vec::new(),
            hangs: None,
            side: Side::Destination,
            admits: None,
            wait: 0.0,
            habit: Habit::None,
            canary: None,
            identifies: false,
        }
    }

    fn is_down(&self, now: f64) -> bool {
        self.down.iter().any(|(from, to)| (*from..*to).contains(&now))
    }
}

/// When a happening is due, in microseconds; numbered, so that equal times keep their order.
type Due = Reverse<(u64, u64)>;

enum Happening {
    Push(Lane, Vec<Tag>),
    Ended(JobId, Side, Vec<Ending>, f64),
    Confirming(JobId),
    Identified(Side, bool),
    Asked(Side, bool),
    Leave,
    Look,
}

/// One route in virtual time.
struct Sim {
    rng: SmallRng,
    now: f64,
    clock: Arc<ManualClock>,
    scheduler: Scheduler,
    from: PeerState,
    to: PeerState,
    queue: SimQueue,
    world: Box<dyn Fn(f64) -> World>,
    heap: BinaryHeap<Due>,
    happenings: HashMap<u64, Happening>,
    last_happening: u64,
    flying: HashMap<JobId, (Vec<Claim>, Kind, f64)>,
    packs: bool,
    tags: BTreeMap<u64, Tag>,
    active: usize,
    inside: usize,
    /// When the scheduler looks again, and the number of that happening.
    look: Option<(f64, u64)>,
    /// When good ones were confirmed, any tried, and the side that may be down was asked what it is.
    confirmed: Vec<f64>,
    tries: Vec<f64>,
    identifications: Vec<f64>,
    most_active: usize,
    last_parked: f64,
    /// Worker seconds of all, and of retries.
    seconds: [f64; 2],
    applies: u64,
}

impl Sim {
    fn new(world: impl Fn(f64) -> World + 'static, seed: u64, workers: usize, policy: Policy) -> Self {
        let clock = Arc::new(ManualClock::default());
        let entropy = Arc::new(Entropy::seeded(seed));
        let route = ScheduledRoute {
            id: RouteId(0),
            from: Arc::from("a"),
            to: Arc::from("b"),
            next: Vec::new(),
            bytes_in_flight: 1 << 40,
            policy,
        };
        let throttle = Throttle::new(clock.clone());
        let scheduler = Scheduler::new(route, Limits::workers(workers), throttle, entropy);
        let now = clock.monotonic();
        Self {
            rng: SmallRng::seed_from_u64(seed),
            now: 0.0,
            scheduler,
            from: PeerState::new(now),
            to: PeerState::new(now),
            queue: SimQueue::default(),
            world: Box::new(world),
            heap: BinaryHeap::new(),
            happenings: HashMap::new(),
            last_happening: 0,
            flying: HashMap::new(),
            packs: false,
            tags: BTreeMap::new(),
            active: 0,
            inside: 0,
            look: None,
            confirmed: Vec::new(),
            tries: Vec::new(),
            identifications: Vec::new(),
            most_active: 0,
            last_parked: 0.0,
            seconds: [0.0; 2],
            applies: 0,
            clock,
        }
    }

    /// This will happen then; its number.
    fn at(&mut self, time: f64, happening: Happening) -> u64 {
        self.last_happening += 1;
        let number = self.last_happening;
        self.happenings.insert(number, happening);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "days in microseconds")]
        self.heap.push(Reverse(((time * 1e6).max(0.0).ceil() as u64, number)));
        number
    }

    /// Runs until a time, or until `stop` says so, or nothing is left.
    fn run(&mut self, until: f64, stop: impl Fn(&Self) -> bool) {
        while !stop(self) {
            let Some(Reverse((due, number))) = self.heap.pop() else { return };
            let Some(happening) = self.happenings.remove(&number) else { continue };
            #[expect(clippy::cast_precision_loss, reason = "days in microseconds")]
            let time = due as f64 / 1e6;
            if time > until {
                return;
            }
            self.clock.advance(Duration::from_secs_f64((time - self.now).max(0.0)));
            self.now = self.now.max(time);
            self.happen(happening);
        }
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Push(lane, tags) => {
                for tag in tags {
                    let seq = self.queue.push(lane, self.clock.now());
                    self.tags.insert(seq, tag);
                }
                self.apply(Event::Queue(self.queue.changes));
            }
            Happening::Ended(job, side, endings, wait) => self.end(job, side, endings, wait),
            Happening::Confirming(job) => self.apply(Event::Waits { job, holds_bytes: false }),
            Happening::Identified(side, well) => {
                let now = self.clock.monotonic();
                let info = self.info();
                let jitter = self.rng.random();
                let peer = if side == Side::Source { &mut self.from } else { &mut self.to };
                if well {
                    peer.identified(info, now);
                } else {
                    let reason = breaker::Reason::new(FaultKind::DestinationUnavailable, "down");
                    peer.not_identified(reason, now, jitter);
                }
                self.apply(Event::Look);
            }
            Happening::Asked(side, well) => self.apply(Event::Asked { side, well, held: None }),
            Happening::Leave => self.inside -= 1,
            Happening::Look => {
                self.look = None;
                self.apply(Event::Look);
            }
        }
    }

    fn info(&self) -> StoreInfo {
        let mut info = StoreInfo::of_own("id", "memory");
        info.abilities.packed = self.packs;
        info.max_packed_bytes = self.packs.then_some(1 << 16);
        info
    }

    fn apply(&mut self, event: Event) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            self.applies += 1;
            let now = Moment::now(&*self.clock);
            let counts = self.queue.counts();
            let peers = Peers { from: &mut self.from, to: &mut self.to };
            let effects = self.scheduler.apply(event, Step::new(now, &counts, peers));
            for effect in effects {
                match effect {
                    Effect::Claim(feed, request) => {
                        events.push(Event::Claimed(feed, Ok(self.queue.claim(&request))));
                    }
                    Effect::Start(job) => self.start(job),
                    Effect::Settle(settled) => {
                        for (claim, outcome) in settled {
                            let seq = claim.entry().seq.0;
                            if matches!(outcome, crate::queue::Outcome::Park { .. }) {
                                self.last_parked = self.now;
                            }
                            if self.queue.settle(claim, &outcome) && self.tags.get(&seq) != Some(&Tag::Bad) {
                                self.confirmed.push(self.now);
                            }
                        }
                        events.push(Event::Settled(Ok(())));
                    }
                    Effect::Identify(side) => {
                        let world = (self.world)(self.now);
                        if side == world.side {
                            self.identifications.push(self.now);
                        }
                        let well = (world.identifies && !world.is_down(self.now)) || self.is_well(side);
                        self.at(self.now + 0.025, Happening::Identified(side, well));
                    }
                    Effect::Ask(side, _) => {
                        let well = self.is_well(side);
                        self.at(self.now + 0.025, Happening::Asked(side, well));
                    }
                    Effect::Conclude(_) => {}
                }
            }
            self.queue.take_back();
        }
        if let Some(wake) = self.scheduler.wake_at() {
            // Behind what rounding takes away.
            let wake = wake.since(Monotonic::ZERO).as_secs_f64().max(self.now) + 0.001;
            // One look is enough: the earliest. A later one is taken back, or looks would breed.
            if self.look.is_none_or(|(at, _)| wake < at - 1e-6) {
                if let Some((_, later)) = self.look {
                    self.happenings.remove(&later);
                }
                self.look = Some((wake, self.at(wake, Happening::Look)));
            }
        }
    }

    fn is_well(&mut self, side: Side) -> bool {
        let world = (self.world)(self.now);
        if side != world.side {
            return true;
        }
        world.canary.unwrap_or_else(|| !world.is_down(self.now) && self.rng.random::<f64>() >= world.fails)
    }

    fn start(&mut self, job: Job) {
        let Job { id, kind, claims, .. } = job;
        let world = (self.world)(self.now);
        self.active += 1;
        self.most_active = self.most_active.max(self.active);
        self.tries.push(self.now);
        let mut endings = Vec::new();
        let (mut side, mut seconds, mut wait) = (Side::Destination, 0.0_f64, 0.0);
        for (place, claim) in claims.iter().enumerate() {
            let (at, ending, took) = if place == 0 || kind == Kind::Packed {
                self.try_one(&world, claim.entry().seq.0, place == 0)
            } else {
                break;
            };
            side = at;
            seconds = seconds.max(took);
            if matches!(ending, Ending::Class(FailureClass::Overloaded { .. })) {
                wait = world.wait;
            }
            endings.push(ending);
        }
        // What ends a call ends it for all of a pack; a bad blob is answered by itself.
        let is_bad = |claim: &Claim| self.tags.get(&claim.entry().seq.0) == Some(&Tag::Bad);
        if kind == Kind::Packed
            && let Some(Ending::Class(class)) = endings.first().copied()
            && (world.is_down(self.now) || !claims.first().is_some_and(is_bad))
        {
            endings.iter_mut().for_each(|ending| *ending = Ending::Unanswered(class));
        }
        let is_slow = seconds >= 10.0 && endings.contains(&OK);
        self.flying.insert(id, (claims, kind, self.now));
        self.at(self.now + seconds, Happening::Ended(id, side, endings, wait));
        if is_slow {
            self.at(self.now + 1.0, Happening::Confirming(id));
        }
    }

    fn try_one(&mut self, world: &World, seq: u64, is_call: bool) -> Try {
        let late = match world.habit {
            Habit::Crowded => (self.active as f64 / 640.0).max(0.025),
            _ => 0.025,
        };
        let long = late * (0.5 + self.rng.random::<f64>());
        let over = Ending::Class(FailureClass::Overloaded { retry_after: None });
        match world.habit {
            Habit::Third if self.rng.random::<f64>() < 1.0 / 3.0 => return (Side::Destination, over, 0.001),
            Habit::Third => return (Side::Destination, OK, 0.025),
            Habit::Aged => {
                let left = 3.0 - self.now % 3.0;
                return if left < 0.025 { (Side::Destination, DOUBT, left) } else { (Side::Destination, OK, 0.025) };
            }
            Habit::None | Habit::Crowded => {}
        }
        if world.is_down(self.now) {
            return (world.side, DOUBT, world.hangs.unwrap_or(long));
        }
        let tag = self.tags.get(&seq).copied().unwrap_or(Tag::Good);
        if tag == Tag::Bad {
            return (Side::Destination, world.bad, world.took.unwrap_or(long));
        }
        if let Some(admits) = world.admits.filter(|_| is_call) {
            if self.inside >= admits(self.now) {
                return (Side::Destination, over, 0.001);
            }
            self.inside += 1;
            self.at(self.now + long, Happening::Leave);
        }
        let fails = is_call && self.rng.random::<f64>() < world.fails;
        let ending = if fails { DOUBT } else { OK };
        (world.side, ending, if tag == Tag::Slow { 40.0 } else { long })
    }

    fn end(&mut self, job: JobId, side: Side, endings: Vec<Ending>, wait: f64) {
        let Some((claims, _, began)) = self.flying.remove(&job) else { return };
        self.active -= 1;
        let took = self.now - began;
        self.seconds[0] += took;
        if claims.iter().any(|claim| claim.entry().attempts > 0) {
            self.seconds[1] += took;
        }
        let ends = claims.into_iter().zip(endings).map(|(claim, ending)| {
            let end = match ending {
                Ending::Ok => EntryEnd::Copied(Copied { size: 1, copied: true, was_new: true, size_corrected: None }),
                Ending::Unanswered(class) => EntryEnd::Unanswered(failed(side, class, wait)),
                Ending::Class(class) => EntryEnd::Failed(failed(side, class, wait)),
            };
            (claim, end)
        });
        let event =
            Event::Ended { job, ends: ends.collect(), answered: [false; 2], took: Duration::from_secs_f64(took) };
        self.apply(event);
    }

    fn push_at(&mut self, time: f64, lane: Lane, tags: Vec<Tag>) {
        self.at(time, Happening::Push(lane, tags));
    }

    /// Good ones that are neither confirmed nor given up.
    fn good_left(&self) -> usize {
        self.tags.iter().filter(|(seq, tag)| **tag != Tag::Bad && self.queue.is_queued(**seq)).count()
    }

    fn good(&self) -> usize {
        self.tags.values().filter(|tag| **tag != Tag::Bad).count()
    }

    /// The largest weight of a good one; infinite where one is parked.
    fn most_charged(&self) -> f64 {
        let good = self.tags.iter().filter(|(_, tag)| **tag != Tag::Bad);
        let weights = good.map(|(seq, _)| self.queue.weight_of(*seq));
        weights.max_by(f64::total_cmp).unwrap_or(0.0)
    }

    fn openings(&self) -> u64 {
        self.to.breaker().snapshot().openings
    }
}

fn failed(side: Side, class: FailureClass, wait: f64) -> CopyError {
    let class = match class {
        FailureClass::Overloaded { .. } => {
            FailureClass::Overloaded { retry_after: (wait > 0.0).then(|| Duration::from_secs_f64(wait)) }
        }
        class => class,
    };
    let kind = match class {
        FailureClass::Answer { .. } => FaultKind::DestinationRejected,
        FailureClass::Cut => FaultKind::ConnectionCut,
        FailureClass::Overloaded { .. } => FaultKind::DestinationOverloaded,
        FailureClass::Panicked => FaultKind::Panicked,
        FailureClass::Doubtful | FailureClass::TimedOut | FailureClass::NotProcessed => {
            FaultKind::DestinationUnavailable
        }
    };
    CopyError { kind, side, code: None, message: "so it is".to_owned(), class }
}
