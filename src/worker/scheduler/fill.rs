//! What is claimed and started, after each event: as much as both peers, the limits and the workers allow.

use super::class::{Class, Feed, Kind};
use super::packs::{self, RouteCapabilities};
use super::{Effect, Moment, Pause, Peers, Scheduler, Step, lane_index};
use crate::breaker::Pass;
use crate::clock::Monotonic;
use crate::fault::Side;
use crate::queue::{ClaimOrder, ClaimRequest};
use std::time::Duration;

/// The shortest pause of a route whose rate is used up: what a rate allows meanwhile goes together.
const RATE_PAUSE: Duration = Duration::from_millis(10);

/// Entries of a class that are claimed ahead where packs are made: so many large blobs may stand before a small one and not
/// hold it up.
const AHEAD: usize = 2048;

/// The same, where a rate holds them back.
const RATED_AHEAD: usize = 256;

/// How often the peers of an idle route are asked whether they are there.
const IDLE_CHECK: Duration = Duration::from_secs(15);

/// Entries that may wait to be settled, beside one pack. When the queue writes slowly, copying must not run ahead of it.
const MAX_UNSETTLED: usize = 16_384;

/// How many jobs may start now.
enum Room {
    /// So many.
    Jobs(usize),
    /// One, to find out whether a peer is back.
    Try,
    None,
}

impl Scheduler {
    pub(super) fn fill(&mut self, step: &mut Step<'_>) {
        self.wake_at = None;
        self.pause = Pause::None;
        if self.stopping {
            self.pause = Pause::Stopped;
            return self.release_waiting();
        }
        if step.now.monotonic >= self.next_poll {
            self.next_poll = step.now.monotonic.saturating_add(self.route.policy.poll_interval);
            self.look_everywhere();
        }
        self.wake_by(self.next_poll);
        self.want_workers(step);
        if self.limits.paused {
            self.pause = Pause::Paused;
            return self.release_waiting();
        }
        if step.now.monotonic < self.rest.1 {
            self.pause = self.rest.0.clone();
            self.wake_by(self.rest.1);
            return self.release_waiting();
        }
        if self.unsettled.len() >= MAX_UNSETTLED {
            self.pause = Pause::Settling;
            return;
        }
        self.capabilities = RouteCapabilities::of(step.peers.from, step.peers.to);
        self.take_up_refused(step.now);
        self.wake_for_retries(step.now);
        self.ready = [step.counts.fresh.ready.entries, step.counts.backfill.ready.entries];
        let has_work = self.has_work(step);
        let is_rated = step.now.monotonic < self.rate_rests_until && !self.throttle.gave_back();
        let room = match (is_rated, has_work || !self.jobs.is_empty()) {
            (false, true) => self.room(step),
            _ => Room::None,
        };
        if is_rated {
            self.pause = Pause::RateLimited;
            self.wake_by(self.rate_rests_until);
        }
        match room {
            Room::Jobs(room) => {
                self.claim_ahead(step);
                self.start_jobs(room, step);
                self.claim_for_scouts(step);
            }
            Room::Try => self.try_one(step),
            Room::None => {}
        }
        if !has_work && self.jobs.is_empty() {
            self.check_idle(step);
        }
    }

    /// Both peers know how many copies this route would have at most.
    fn want_workers(&self, step: &mut Step<'_>) {
        for side in Peers::SIDES {
            step.peers.of(side).concurrency.want(self.route.id.0, 2 * self.workers());
        }
    }

    /// Whether anything waits, or could be claimed.
    fn has_work(&self, step: &Step<'_>) -> bool {
        Class::ALL.into_iter().any(|class| {
            let state = &self.classes[class.index()];
            state.head.len() + state.scouted.len() > 0 || self.may_claim(class, step)
        }) || !self.refused.is_empty()
    }

    /// Whether a class may have entries to be claimed at its head.
    fn may_claim(&self, class: Class, step: &Step<'_>) -> bool {
        let state = &self.classes[class.index()];
        let lane = step.lane(class.lane);
        // A revived entry and a successor never failed, and wait in the retry order.
        let entries = lane.ready.entries + if class.retry { lane.retrying.entries } else { 0 };
        state.claiming[0] || (entries > 0 && !state.exhausted[0])
    }

    fn wake_by(&mut self, at: Monotonic) {
        self.wake_at = Some(self.wake_at.map_or(at, |before| before.min(at)));
    }

    /// The rates allow nothing more before then.
    pub(super) fn rest_for_rate(&mut self, until: Monotonic, step: &Step<'_>) {
        self.pause = Pause::RateLimited;
        self.rate_rests_until = until.max(step.now.monotonic.saturating_add(RATE_PAUSE));
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
    fn room(&mut self, step: &mut Step<'_>) -> Room {
        let is_open = Peers::SIDES.into_iter().any(|side| step.peers.of(side).breaker().is_open());
        if is_open && !std::mem::replace(&mut self.was_open, is_open) {
            // Tries are spread over the whole backlog, not over what was claimed ahead.
            self.release_waiting();
        }
        self.was_open = is_open;
        for side in Peers::SIDES {
            if let Pass::Wait(until) = step.peers.of(side).pass(step.now.monotonic) {
                self.pause = Pause::Breaker(side);
                self.wake_by(until);
                return Room::None;
            }
        }
        let mut is_known = true;
        for side in Peers::SIDES {
            let peer = step.peers.of(side);
            let (wants, needs) =
                (peer.wants_identification(step.now.monotonic), peer.needs_identification(step.now.monotonic));
            if wants {
                self.identify(side, step);
            }
            if needs {
                is_known = false;
                self.pause = if is_open { Pause::Breaker(side) } else { Pause::Identifying(side) };
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
            let peer = step.peers.of(side);
            let overloaded = peer.concurrency.is_overloaded(step.now.monotonic);
            match peer.concurrency.room(step.now.monotonic) {
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

    fn identify(&mut self, side: Side, step: &mut Step<'_>) {
        let peer = step.peers.of(side);
        match peer.may_identify(step.now.monotonic) {
            Ok(()) => {
                peer.begin_identification(step.now.monotonic, self.entropy.jitter());
                step.act(Effect::Identify(side));
            }
            Err(Some(until)) => self.wake_by(until),
            Err(None) => {}
        }
    }

    /// Nothing is to be done: the peers are asked now and then whether they are there. Where a breaker is open and there is
    /// nothing to try it with, that must do.
    fn check_idle(&mut self, step: &mut Step<'_>) {
        self.pause = Pause::Idle;
        for side in Peers::SIDES {
            if let Pass::Wait(until) = step.peers.of(side).pass(step.now.monotonic) {
                self.pause = Pause::Breaker(side);
                self.wake_by(until);
                continue;
            }
            let peer = step.peers.of(side);
            let is_open = peer.breaker().is_open();
            if is_open && !peer.needs_identification(step.now.monotonic) {
                if !step.has_retries() {
                    step.peers.of(side).succeeded(step.now.monotonic);
                }
                continue;
            }
            let due = peer.asked().map_or(Monotonic::ZERO, |asked| asked.saturating_add(IDLE_CHECK));
            let is_unknown = is_open || peer.info().is_none();
            if is_unknown || due <= step.now.monotonic {
                self.identify(side, step);
            } else {
                self.wake_by(due);
            }
        }
    }

    /// Claims what the classes could need next.
    fn claim_ahead(&mut self, step: &mut Step<'_>) {
        // Where every blob is copied alone, as many as may start: no large one hides a small one.
        let free = self.workers().saturating_sub(self.busy[Kind::Alone as usize]);
        let ahead = if self.capabilities.packs() { AHEAD } else { free };
        let (rated, _) = self.throttle.rates();
        let ahead = if rated { ahead.min(RATED_AHEAD) } else { ahead };
        for class in Class::ALL {
            let waiting = self.classes[class.index()].head.len();
            let claiming = self.classes[class.index()].claiming[0];
            if claiming || waiting > ahead / 2 || waiting >= ahead || !self.may_claim(class, step) {
                continue;
            }
            let order = if class.retry { ClaimOrder::Due } else { ClaimOrder::Oldest };
            self.claim(Feed { class, walk: None }, order, ahead - waiting, step);
        }
    }

    fn claim(&mut self, feed: Feed, order: ClaimOrder, max: usize, step: &mut Step<'_>) {
        let place = usize::from(feed.walk.is_some());
        let state = &mut self.classes[feed.class.index()];
        (state.claiming[place], state.claim_max[place]) = (true, max);
        let request = ClaimRequest { route: self.route.id, lane: feed.class.lane, order, max, now: step.now.wall };
        step.act(Effect::Claim(feed, request));
    }

    /// Where the head of a lane mostly fails, its scouts claim elsewhere: a pack's worth, or as many as may start.
    fn claim_for_scouts(&mut self, step: &mut Step<'_>) {
        for class in Class::ALL.into_iter().filter(|class| !class.retry) {
            if self.wants_scout(class) && self.classes[class.index()].scouted.len() == 0 {
                let most = if self.capabilities.packs() { packs::PACK_ITEMS } else { 1 };
                self.claim_scouted(class, self.scouts[lane_index(class.lane)].claims(most), step);
            }
        }
    }

    fn claim_scouted(&mut self, class: Class, max: usize, step: &mut Step<'_>) {
        let state = &self.classes[class.index()];
        if state.claiming[1] || state.exhausted[1] {
            return;
        }
        let scout = &self.scouts[lane_index(class.lane)];
        let (walk, order) = (scout.walk(), scout.order());
        self.claim(Feed { class, walk: Some(walk) }, order, max, step);
    }

    /// Whether the next worker of a class is a scout's.
    pub(super) fn wants_scout(&self, class: Class) -> bool {
        let state = &self.classes[class.index()];
        let at_head = state.busy.iter().sum::<usize>() - state.scouting;
        let is_claimable = self.ready[lane_index(class.lane)] > 0 && !state.exhausted[1];
        let has_some = state.scouted.len() > 0 || state.claiming[1] || is_claimable;
        !class.retry && has_some && self.scouts[lane_index(class.lane)].is_wanted(at_head, state.scouting)
    }

    /// While a breaker is open: one entry, alone, from anywhere in the backlog.
    fn try_one(&mut self, step: &mut Step<'_>) {
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
                Ok(charge) => self.start_alone(feed, waiter, charge, step),
                Err(until) => {
                    self.line(feed).add_first(waiter);
                    self.rest_for_rate(until, step);
                }
            }
            return;
        }
        if self.classes.iter().any(|class| class.claiming.contains(&true)) {
            return;
        }
        let able = Class::ALL.into_iter().filter(|class| self.may_claim(*class, step));
        let next = able.min_by(|one, other| {
            let served = |class: &Class| self.classes[class.index()].served[Kind::Alone as usize];
            served(one).total_cmp(&served(other))
        });
        match next {
            Some(class) if class.retry || self.classes[class.index()].exhausted[1] => {
                let order = if class.retry { ClaimOrder::Due } else { ClaimOrder::Oldest };
                self.claim(Feed { class, walk: None }, order, 1, step);
            }
            Some(class) => self.claim_scouted(class, 1, step),
            // There is nothing to try them with: both have just said who they are, which must do.
            None if self.jobs.is_empty() && !step.has_retries() => {
                Peers::SIDES.into_iter().for_each(|side| step.peers.of(side).succeeded(step.now.monotonic));
            }
            None => {}
        }
    }
}
