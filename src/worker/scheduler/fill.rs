//! What is claimed and started, after each event: as much as both peers, the limits and the workers allow.

use super::class::{Class, Feed, Kind, Waiter};
use super::packs::{self, Load, RouteCapabilities};
use super::{Effect, InFlight, Job, JobId, Moment, Pause, Peers, RATE_PAUSE, Scheduler, counts_of, lane_index};
use crate::breaker::Pass;
use crate::limits::Charge;
use crate::queue::{ClaimOrder, ClaimRequest, RouteCounts};
use std::time::Duration;

/// Entries of a class that are claimed ahead where packs are made: so many large blobs may stand before a small one and not
/// hold it up.
const AHEAD: usize = 2048;

/// The same, where a rate holds them back.
const RATED_AHEAD: usize = 256;

/// How often the peers of an idle route are asked whether they are there.
const IDLE_CHECK: Duration = Duration::from_secs(15);

/// Entries that may wait to be settled, beside one pack. When the queue writes slowly, copying must not run ahead of it.
const MAX_UNSETTLED: usize = 16_384;

/// A blob from so many bytes on is asked for before it is sent, where both sides can be asked: that costs a moment, and to
/// send it in vain would cost much more.
const ASK_FROM_BYTES: u64 = 1 << 20;

/// How many jobs may start now.
enum Room {
    /// So many.
    Jobs(usize),
    /// One, to find out whether a peer is back.
    Try,
    None,
}

/// A pack that takes more.
struct OpenPack {
    waiters: Vec<Waiter>,
    load: Load,
    charge: Charge,
}

impl Scheduler {
    pub(super) fn fill(&mut self, now: Moment, counts: &RouteCounts, peers: &mut Peers<'_>, effects: &mut Vec<Effect>) {
        self.wake_at = None;
        self.pause = Pause::None;
        if self.stopping {
            self.pause = Pause::Stopped;
            return self.release_waiting();
        }
        if now.monotonic >= self.next_poll {
            self.next_poll = now.monotonic.saturating_add(self.route.policy.poll_interval);
            self.look_everywhere();
        }
        self.wake_by(self.next_poll);
        self.want_workers(peers);
        if self.limits.paused {
            self.pause = Pause::Paused;
            return self.release_waiting();
        }
        if now.monotonic < self.queue_rests_until {
            self.pause = Pause::QueueFailed(self.queue_error.clone());
            self.wake_by(self.queue_rests_until);
            return self.release_waiting();
        }
        if self.unsettled.len() >= MAX_UNSETTLED {
            self.pause = Pause::Settling;
            return;
        }
        self.capabilities = RouteCapabilities::of(peers.from, peers.to);
        self.take_up_refused(now);
        self.wake_for_retries(now);
        self.ready = [counts.fresh.ready.entries, counts.backfill.ready.entries];
        let has_work = self.has_work(counts);
        let is_rated = now.monotonic < self.rate_rests_until;
        let room = match (is_rated, has_work || !self.jobs.is_empty()) {
            (false, true) => self.room(now, peers, effects),
            _ => Room::None,
        };
        if is_rated {
            self.pause = Pause::RateLimited;
            self.wake_by(self.rate_rests_until);
        }
        match room {
            Room::Jobs(room) => {
                self.claim_ahead(now, counts, effects);
                self.start_jobs(room, now, peers, effects);
                self.claim_for_scouts(now, effects);
            }
            Room::Try => self.try_one(now, counts, peers, effects),
            Room::None => {}
        }
        if !has_work && self.jobs.is_empty() {
            self.check_idle(now, counts, peers, effects);
        }
    }

    /// Both peers know how many copies this route would have at most.
    fn want_workers(&self, peers: &mut Peers<'_>) {
        for side in Peers::SIDES {
            peers.of(side).concurrency.want(self.route.id.0, 2 * self.workers());
        }
    }

    /// Whether anything waits, or could be claimed.
    fn has_work(&self, counts: &RouteCounts) -> bool {
        Class::ALL.into_iter().any(|class| {
            let state = &self.classes[class.index()];
            state.head.len() + state.scouted.len() > 0 || self.may_claim(class, counts)
        }) || !self.refused.is_empty()
    }

    /// Whether a class may have entries to be claimed at its head.
    fn may_claim(&self, class: Class, counts: &RouteCounts) -> bool {
        let state = &self.classes[class.index()];
        let lane = counts_of(counts, class.lane);
        // A revived entry and a successor never failed, and wait in the retry order.
        let entries = lane.ready.entries + if class.retry { lane.retrying.entries } else { 0 };
        state.claiming[0] || (entries > 0 && !state.exhausted[0])
    }

    fn wake_by(&mut self, at: Duration) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// The rates allow nothing more before then.
    fn rest_for_rate(&mut self, until: Duration, now: Moment) {
        self.pause = Pause::RateLimited;
        self.rate_rests_until = until.max(now.monotonic.saturating_add(RATE_PAUSE));
        self.wake_by(self.rate_rests_until);
    }

    fn wake_for_retries(&mut self, now: Moment) {
        for class in Class::ALL {
            let state = &mut self.classes[class.index()];
            let Some(due) = state.next_due else { continue };
            if due <= now.monotonic {
                state.next_due = None;
                state.exhausted[0] = false;
            } else {
                self.wake_by(due);
            }
        }
    }

    /// Those that were refused wait first in their lines again.
    fn take_up_refused(&mut self, now: Moment) {
        while let Some(first) = self.refused.first_entry() {
            let (due, _) = *first.key();
            if due > now.monotonic {
                return self.wake_by(due);
            }
            let (feed, waiter) = first.remove();
            self.line(feed).add_first(waiter);
        }
    }

    /// How many jobs both peers allow now. Asks a peer what it is, where that must be known first.
    fn room(&mut self, now: Moment, peers: &mut Peers<'_>, effects: &mut Vec<Effect>) -> Room {
        let is_open = Peers::SIDES.into_iter().any(|side| peers.of(side).breaker().is_open());
        if is_open && !std::mem::replace(&mut self.was_open, is_open) {
            // Tries are spread over the whole backlog, not over what was claimed ahead.
            self.release_waiting();
        }
        self.was_open = is_open;
        for side in Peers::SIDES {
            if let Pass::Wait(until) = peers.of(side).pass(now.monotonic) {
                self.pause = Pause::Breaker(side);
                self.wake_by(until);
                return Room::None;
            }
        }
        let mut is_known = true;
        for side in Peers::SIDES {
            if peers.of(side).needs_identification(now.monotonic) {
                is_known = false;
                self.pause = if is_open { Pause::Breaker(side) } else { Pause::Identifying(side) };
                self.identify(side, now, peers, effects);
            }
        }
        if !is_known {
            return Room::None;
        }
        if is_open {
            return Room::Try;
        }
        let mut room = usize::MAX;
        for side in Peers::SIDES {
            let peer = peers.of(side);
            let overloaded = peer.concurrency.is_overloaded(now.monotonic);
            match peer.concurrency.room(now.monotonic) {
                Ok(more) => room = room.min(more),
                Err(until) => {
                    peer.denied = true;
                    room = 0;
                    if let Some(until) = until {
                        self.wake_by(until);
                    }
                }
            }
            if overloaded {
                self.pause = Pause::Overloaded(side);
            }
        }
        Room::Jobs(room)
    }

    fn identify(&mut self, side: crate::fault::Side, now: Moment, peers: &mut Peers<'_>, effects: &mut Vec<Effect>) {
        let peer = peers.of(side);
        match peer.may_identify(now.monotonic) {
            Ok(()) => {
                peer.begin_identification(now.monotonic, self.entropy.jitter());
                effects.push(Effect::Identify(side));
            }
            Err(Some(until)) => self.wake_by(until),
            Err(None) => {}
        }
    }

    /// Nothing is to be done: the peers are asked now and then whether they are there. Where a breaker is open and there is
    /// nothing to try it with, that must do.
    fn check_idle(&mut self, now: Moment, counts: &RouteCounts, peers: &mut Peers<'_>, effects: &mut Vec<Effect>) {
        self.pause = Pause::Idle;
        for side in Peers::SIDES {
            if let Pass::Wait(until) = peers.of(side).pass(now.monotonic) {
                self.pause = Pause::Breaker(side);
                self.wake_by(until);
                continue;
            }
            let peer = peers.of(side);
            let is_open = peer.breaker().is_open();
            if is_open && !peer.needs_identification(now.monotonic) {
                if !retries(counts) {
                    peer.succeeded(now.monotonic);
                }
                continue;
            }
            let due = peer.asked().map_or(Duration::ZERO, |asked| asked.saturating_add(IDLE_CHECK));
            let is_unknown = is_open || peer.info().is_none();
            if is_unknown || due <= now.monotonic {
                self.identify(side, now, peers, effects);
            } else {
                self.wake_by(due);
            }
        }
    }

    /// Claims what the classes could need next.
    fn claim_ahead(&mut self, now: Moment, counts: &RouteCounts, effects: &mut Vec<Effect>) {
        // Where every blob is copied alone, as many as may start: no large one hides a small one.
        let free = self.workers().saturating_sub(self.busy[Kind::Alone as usize]);
        let ahead = if self.capabilities.packs() { AHEAD } else { free };
        let (rated, _) = self.throttle.rates();
        let ahead = if rated { ahead.min(RATED_AHEAD) } else { ahead };
        for class in Class::ALL {
            let waiting = self.classes[class.index()].head.len();
            let claiming = self.classes[class.index()].claiming[0];
            if claiming || waiting > ahead / 2 || waiting >= ahead || !self.may_claim(class, counts) {
                continue;
            }
            let order = if class.retry { ClaimOrder::Due } else { ClaimOrder::Oldest };
            self.claim(Feed { class, walk: None }, order, ahead - waiting, now, effects);
        }
    }

    fn claim(&mut self, feed: Feed, order: ClaimOrder, max: usize, now: Moment, effects: &mut Vec<Effect>) {
        let place = usize::from(feed.walk.is_some());
        let state = &mut self.classes[feed.class.index()];
        (state.claiming[place], state.claim_max[place]) = (true, max);
        let request = ClaimRequest { route: self.route.id, lane: feed.class.lane, order, max, now: now.wall };
        effects.push(Effect::Claim(feed, request));
    }

    /// Where the head of a lane mostly fails, its scouts claim elsewhere: a pack's worth, or as many as may start.
    fn claim_for_scouts(&mut self, now: Moment, effects: &mut Vec<Effect>) {
        for class in Class::ALL.into_iter().filter(|class| !class.retry) {
            if self.wants_scout(class) && self.classes[class.index()].scouted.len() == 0 {
                self.claim_scouted(class, if self.capabilities.packs() { packs::FEWER } else { 1 }, now, effects);
            }
        }
    }

    fn claim_scouted(&mut self, class: Class, max: usize, now: Moment, effects: &mut Vec<Effect>) {
        let state = &self.classes[class.index()];
        if state.claiming[1] || state.exhausted[1] {
            return;
        }
        let scout = &self.scouts[lane_index(class.lane)];
        let (walk, order) = (scout.walk(), scout.order());
        self.claim(Feed { class, walk: Some(walk) }, order, max, now, effects);
    }

    /// Whether the next worker of a class is a scout's.
    fn wants_scout(&self, class: Class) -> bool {
        let state = &self.classes[class.index()];
        let at_head = state.busy.iter().sum::<usize>() - state.scouting;
        let is_claimable = self.ready[lane_index(class.lane)] > 0 && !state.exhausted[1];
        let has_some = state.scouted.len() > 0 || state.claiming[1] || is_claimable;
        !class.retry && has_some && self.scouts[lane_index(class.lane)].is_wanted(at_head, state.scouting)
    }

    /// While a breaker is open: one entry, alone, from anywhere in the backlog.
    fn try_one(&mut self, now: Moment, counts: &RouteCounts, peers: &mut Peers<'_>, effects: &mut Vec<Effect>) {
        let any = Class::ALL.into_iter().find(|class| {
            let state = &self.classes[class.index()];
            state.head.len() + state.scouted.len() > 0
        });
        if let Some(class) = any {
            let state = &mut self.classes[class.index()];
            let waiter = state.head.take(Kind::Alone).or_else(|| state.head.take(Kind::Packed));
            let (waiter, walk) = match waiter {
                Some(waiter) => (Some(waiter), None),
                None => {
                    let walk = self.scouts[lane_index(class.lane)].walk();
                    let state = &mut self.classes[class.index()];
                    (state.scouted.take(Kind::Alone).or_else(|| state.scouted.take(Kind::Packed)), Some(walk))
                }
            };
            let Some(waiter) = waiter else { return };
            let feed = Feed { class, walk };
            match self.throttle.begin(waiter.size) {
                Ok(charge) => self.start_alone(feed, waiter, charge, now, peers, effects),
                Err(until) => {
                    self.line(feed).add_first(waiter);
                    self.rest_for_rate(until, now);
                }
            }
            return;
        }
        if self.classes.iter().any(|class| class.claiming.contains(&true)) {
            return;
        }
        let able = Class::ALL.into_iter().filter(|class| self.may_claim(*class, counts));
        let next = able.min_by(|one, other| {
            let served = |class: &Class| self.classes[class.index()].served[Kind::Alone as usize];
            served(one).total_cmp(&served(other))
        });
        match next {
            Some(class) if class.retry || self.classes[class.index()].exhausted[1] => {
                let order = if class.retry { ClaimOrder::Due } else { ClaimOrder::Oldest };
                self.claim(Feed { class, walk: None }, order, 1, now, effects);
            }
            Some(class) => self.claim_scouted(class, 1, now, effects),
            // There is nothing to try them with: both have just said who they are, which must do.
            None if self.jobs.is_empty() && !retries(counts) => {
                Peers::SIDES.into_iter().for_each(|side| peers.of(side).succeeded(now.monotonic));
            }
            None => {}
        }
    }

    /// Starts what waits, so many jobs at most.
    fn start_jobs(&mut self, mut room: usize, now: Moment, peers: &mut Peers<'_>, effects: &mut Vec<Effect>) {
        while room > 0 {
            let next = Kind::ALL.into_iter().filter_map(|kind| self.choose(kind, room).map(|feed| (kind, feed)));
            let next = next.min_by_key(|(kind, feed)| self.first(*feed, *kind).map(Waiter::seq));
            let Some((kind, feed)) = next else { return };
            let started = match kind {
                Kind::Alone => self.start_first(feed, now, peers, effects),
                Kind::Packed => self.start_pack(feed, now, peers, effects),
            };
            if let Err(until) = started {
                return self.rest_for_rate(until, now);
            }
            room -= 1;
        }
    }

    fn first(&self, feed: Feed, kind: Kind) -> Option<&Waiter> {
        let class = &self.classes[feed.class.index()];
        if feed.walk.is_some() { class.scouted.of(kind).front() } else { class.head.of(kind).front() }
    }

    /// Who is next of a kind: the class that was served least by its weight, of those within their share of the workers.
    fn choose(&self, kind: Kind, room: usize) -> Option<Feed> {
        let busy = self.busy[kind as usize];
        let width = self.workers().min(busy + room);
        if busy >= width {
            return None;
        }
        let feeds = Class::ALL.map(|class| self.feed_of(class, kind));
        let able = || feeds.iter().copied().flatten();
        // Who is about to have something keeps its share.
        let is_coming = |class: Class| self.classes[class.index()].claiming.contains(&true);
        let of = Class::ALL.into_iter().zip(feeds).filter(|(class, feed)| feed.is_some() || is_coming(*class));
        let total: usize = of.map(|(class, _)| class.weight()).sum();
        let is_within = |class: Class| {
            let share = (width * class.weight()).div_ceil(total.max(1));
            self.classes[class.index()].busy[kind as usize] < share
        };
        let within = |feed: &Feed| is_within(feed.class);
        let is_awaited = Class::ALL.into_iter().any(|class| is_coming(class) && is_within(class));
        let least = |feeds: &mut dyn Iterator<Item = Feed>| {
            feeds.min_by(|one, other| {
                let served = |feed: &Feed| self.classes[feed.class.index()].served[kind as usize];
                served(one).total_cmp(&served(other))
            })
        };
        least(&mut able().filter(within)).or_else(|| if is_awaited { None } else { least(&mut able()) })
    }

    /// Where the next of a class is taken from, if one may start.
    fn feed_of(&self, class: Class, kind: Kind) -> Option<Feed> {
        let state = &self.classes[class.index()];
        let walk = self.wants_scout(class).then(|| self.scouts[lane_index(class.lane)].walk());
        // What scouts brought is started also when they are not wanted any more.
        let left = state.head.of(kind).is_empty() && !state.scouted.of(kind).is_empty();
        let walk = walk.or_else(|| left.then(|| self.scouts[lane_index(class.lane)].walk()));
        let feed = Feed { class, walk };
        let first = self.first(feed, kind)?;
        let bytes = match kind {
            Kind::Alone => packs::streamed(first.size),
            Kind::Packed => self.pack_size.bytes(),
        };
        let used = self.bytes[kind as usize];
        (used == 0 || used.saturating_add(bytes) <= self.route.bytes_in_flight / 2).then_some(feed)
    }

    fn start_first(
        &mut self,
        feed: Feed,
        now: Moment,
        peers: &mut Peers<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Duration> {
        let size = self.first(feed, Kind::Alone).and_then(|first| first.size);
        let charge = self.throttle.begin(size)?;
        if let Some(waiter) = self.line(feed).take(Kind::Alone) {
            self.start_alone(feed, waiter, charge, now, peers, effects);
        }
        Ok(())
    }

    fn start_alone(
        &mut self,
        feed: Feed,
        waiter: Waiter,
        charge: Charge,
        now: Moment,
        peers: &mut Peers<'_>,
        effects: &mut Vec<Effect>,
    ) {
        let Waiter { claim, size, refusals, .. } = waiter;
        let entry = claim.entry();
        // It may have arrived by an earlier attempt whose answer was lost. A destination whose word was wrong is not asked.
        let other = crate::fault::FaultKind::DestinationConfirmedOther;
        let may_be_there = entry.attempts > 0 && entry.failure.as_ref().is_none_or(|failure| failure.kind != other);
        let is_large = self.capabilities.stat && size.is_some_and(|size| size >= ASK_FROM_BYTES);
        let job = Job {
            id: self.next_job(),
            kind: Kind::Alone,
            claims: vec![claim],
            size,
            max_blob_bytes: 0,
            ask_first: may_be_there || is_large,
            charge,
            is_try: false,
        };
        self.start(job, feed, packs::streamed(size), refusals, 1, now, peers, effects);
    }

    /// Starts a pack of what waits in a line. It is closed when it is full, or nothing more waits that may go with it.
    fn start_pack(
        &mut self,
        feed: Feed,
        now: Moment,
        peers: &mut Peers<'_>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), Duration> {
        let blob_bytes = self.capabilities.blob_bytes;
        let mut open: Option<OpenPack> = None;
        let mut stopped = None;
        while let Some(first) = self.first(feed, Kind::Packed) {
            // One of unknown size counts as the largest that it can be.
            let (bytes, fellows) = (first.size.unwrap_or(blob_bytes), first.fellows);
            if open.as_ref().is_some_and(|pack| !pack.load.accepts(bytes, fellows)) {
                break;
            }
            let charge = match self.throttle.begin(first.size) {
                Ok(charge) => charge,
                Err(until) => {
                    stopped = Some(until);
                    break;
                }
            };
            let Some(waiter) = self.line(feed).take(Kind::Packed) else { break };
            if let Some(pack) = &mut open {
                pack.charge.join(charge);
                pack.load.add(bytes, fellows);
                pack.waiters.push(waiter);
            } else {
                let mut load = Load::new(&self.pack_size);
                load.add(bytes, fellows);
                open = Some(OpenPack { waiters: vec![waiter], load, charge });
            }
        }
        if let Some(OpenPack { waiters, load, charge }) = open {
            let refusals = waiters.iter().map(|waiter| waiter.refusals).max().unwrap_or(0);
            let fellows = waiters.len();
            let job = Job {
                id: self.next_job(),
                kind: Kind::Packed,
                claims: waiters.into_iter().map(|waiter| waiter.claim).collect(),
                size: None,
                max_blob_bytes: blob_bytes,
                ask_first: self.capabilities.stat && self.duplicates.is_high(),
                charge,
                is_try: false,
            };
            self.start(job, feed, load.held(), refusals, fellows, now, peers, effects);
        }
        stopped.map_or(Ok(()), Err)
    }

    #[expect(clippy::too_many_arguments, reason = "what a job in flight is made of")]
    fn start(
        &mut self,
        mut job: Job,
        feed: Feed,
        bytes: u64,
        refusals: u32,
        fellows: usize,
        now: Moment,
        peers: &mut Peers<'_>,
        effects: &mut Vec<Effect>,
    ) {
        let is_try = Peers::SIDES.map(|side| peers.of(side).breaker().is_open());
        let widths = Peers::SIDES.map(|side| peers.of(side).begin(now.monotonic, self.entropy.jitter()));
        let kind = job.kind;
        job.is_try = is_try.contains(&true);
        self.busy[kind as usize] += 1;
        self.bytes[kind as usize] += bytes;
        let least = self.least_served(kind);
        let class = &mut self.classes[feed.class.index()];
        class.busy[kind as usize] += 1;
        class.scouting += usize::from(feed.walk.is_some());
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let served = job.claims.len() as f64 / feed.class.weight() as f64;
        // Who had nothing to do for a while does not make up for it.
        let of = &mut class.served[kind as usize];
        *of = of.max(least) + served;
        if !feed.class.retry {
            self.scouts[lane_index(feed.class.lane)].started();
        }
        let in_flight = InFlight { feed, kind, began: now, widths, is_try, works: true, bytes, refusals, fellows };
        self.jobs.insert(job.id, in_flight);
        effects.push(Effect::Start(job));
    }

    /// What the class that was served least has had, of those that are served.
    fn least_served(&self, kind: Kind) -> f64 {
        let at_work =
            self.classes.iter().filter(|class| class.busy[kind as usize] > 0 || !class.head.of(kind).is_empty());
        at_work.map(|class| class.served[kind as usize]).min_by(f64::total_cmp).unwrap_or(0.0)
    }

    fn next_job(&mut self) -> JobId {
        self.last_job += 1;
        JobId(self.last_job)
    }
}

/// Whether entries wait for a retry, which will try a peer that is open.
fn retries(counts: &RouteCounts) -> bool {
    counts.fresh.retrying.entries + counts.backfill.retrying.entries > 0
}
