//! Which of what waits is started next, and as what.

use super::class::{Class, Feed, Kind, WaitingClaim};
use super::packs::{self, Load};
use super::{Effect, InFlight, Job, JobId, Peers, Scheduler, Step, lane_index};
use crate::clock::Monotonic;
use crate::fault::FaultKind;
use crate::limits::Charge;
use crate::queue::Entry;

/// A blob from so many bytes on is asked for before it is sent, where both sides can be asked: that costs a moment, and to
/// send it in vain would cost much more.
const ASK_FROM_BYTES: u64 = 1 << 20;

/// A pack that takes more.
struct OpenPack {
    waiters: Vec<WaitingClaim>,
    load: Load,
    charge: Charge,
}

/// Whether a blob may have arrived by an earlier attempt whose answer was lost. A destination whose word was wrong is not
/// asked.
fn may_be_there(entry: &Entry) -> bool {
    let other = FaultKind::DestinationConfirmedOther;
    entry.attempts > 0 && entry.failure.as_ref().is_none_or(|failure| failure.kind != other)
}

impl Scheduler {
    /// Starts what waits, so many jobs at most.
    pub(super) fn start_jobs(&mut self, mut room: usize, step: &mut Step<'_>) {
        while room > 0 {
            let next = Kind::ALL.into_iter().filter_map(|kind| self.choose(kind, room).map(|feed| (kind, feed)));
            let next = next.min_by_key(|(kind, feed)| self.first(*feed, *kind).map(WaitingClaim::seq));
            let Some((kind, feed)) = next else { return };
            let started = match kind {
                Kind::Alone => self.start_first(feed, step),
                Kind::Packed => self.start_pack(feed, step),
            };
            if let Err(until) = started {
                return self.rest_for_rate(until, step);
            }
            room -= 1;
        }
    }

    fn first(&self, feed: Feed, kind: Kind) -> Option<&WaitingClaim> {
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
        let has_work = |class: Class| feeds[class.index()].is_some() || is_coming(class);
        // Retries that go alone share peers and processors with the packs of what was never tried.
        let has_packs = |class: Class| {
            let state = &self.classes[class.index()];
            let waits = !state.head.of(Kind::Packed).is_empty() || !state.scouted.of(Kind::Packed).is_empty();
            kind == Kind::Alone && !class.retry && (waits || state.busy[Kind::Packed as usize] > 0)
        };
        let packs_at_work = Class::ALL.into_iter().any(has_packs);
        let is_within = |class: Class| {
            let of = Class::ALL.into_iter().filter(|of| has_work(*of) || (class.retry && has_packs(*of)));
            let total: usize = of.map(Class::weight).sum();
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
        let more = |feed: &Feed| !is_awaited && (!feed.class.retry || !packs_at_work);
        least(&mut able().filter(within)).or_else(|| least(&mut able().filter(more)))
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

    fn start_first(&mut self, feed: Feed, step: &mut Step<'_>) -> Result<(), Monotonic> {
        let size = self.first(feed, Kind::Alone).and_then(|first| first.size);
        let charge = self.throttle.begin(size)?;
        if let Some(waiter) = self.line(feed).take(Kind::Alone) {
            self.start_alone(feed, waiter, charge, step);
        }
        Ok(())
    }

    pub(super) fn start_alone(&mut self, feed: Feed, waiter: WaitingClaim, charge: Charge, step: &mut Step<'_>) {
        let WaitingClaim { claim, size, refusals, .. } = waiter;
        let may_be_there = may_be_there(claim.entry());
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
        self.start(job, feed, packs::streamed(size), refusals, step);
    }

    /// Starts a pack of what waits in a line. It is closed when it is full, or nothing more waits that may go with it.
    fn start_pack(&mut self, feed: Feed, step: &mut Step<'_>) -> Result<(), Monotonic> {
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
            let may_be_there = waiters.iter().any(|waiter| may_be_there(waiter.claim.entry()));
            let job = Job {
                id: self.next_job(),
                kind: Kind::Packed,
                claims: waiters.into_iter().map(|waiter| waiter.claim).collect(),
                size: None,
                max_blob_bytes: blob_bytes,
                ask_first: self.capabilities.stat && (may_be_there || self.duplicates.is_high()),
                charge,
                is_try: false,
            };
            self.start(job, feed, load.held(), refusals, step);
        }
        stopped.map_or(Ok(()), Err)
    }

    fn start(&mut self, mut job: Job, feed: Feed, bytes: u64, refusals: u32, step: &mut Step<'_>) {
        let is_try = Peers::SIDES.map(|side| step.peers.of(side).breaker().is_open());
        let widths = Peers::SIDES.map(|side| step.peers.of(side).begin(step.now.monotonic, self.entropy.jitter()));
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
        let fellows = job.claims.len();
        let in_flight = InFlight { feed, kind, began: step.now, widths, is_try, works: true, bytes, refusals, fellows };
        self.jobs.insert(job.id, in_flight);
        step.act(Effect::Start(job));
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
