//! What is claimed, and when: the waiting part of the loop, which may be dropped at any point.

use super::settling::QUEUE_PAUSE;
use super::{Rest, Run, SHORTEST_REST};
use crate::fault::FaultKind;
use crate::peer::{Admission, Peer};
use crate::queue::{Claim, ClaimOrder, ClaimRequest, Entry, Lane, QueueError};
use crate::worker::judge::Permits;
use crate::worker::lanes::{Shares, index};
use crate::worker::packs::Joint;
use crate::worker::report::Activity;
use crate::worker::waiting::{AHEAD, Kind};
use crate::worker::{Deps, Evidence, Worker};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::Instant;

/// How often the peers of an idle route are asked whether they are there.
const IDLE_CHECK: Duration = Duration::from_secs(15);

/// What a fill brought.
pub(super) struct Fill {
    claims: Vec<Claim>,
    // Absent where nothing may be begun.
    permits: Option<Arc<Permits>>,
    probing: bool,
    pub(super) activity: Activity,
    pub(super) rest: Option<Rest>,
    // Lanes that gave less than was asked for.
    exhausted: [bool; 2],
    checked_peers: bool,
}

impl Fill {
    pub(super) fn nothing(activity: Activity, rest: Duration, on_queue: bool) -> Self {
        let on_peers = !matches!(activity, Activity::QueueFailed(_));
        let until = Instant::now() + rest.max(SHORTEST_REST);
        Self {
            claims: Vec::new(),
            permits: None,
            probing: false,
            activity,
            rest: Some(Rest { until, on_queue, on_peers, of_lanes: false }),
            exhausted: [false; 2],
            checked_peers: false,
        }
    }
}

/// What a fill is to bring.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    ask: Ask,
    has_work: [bool; 2],
    // Nothing waits here either.
    idle: bool,
    // Ask the peers whether they are there, even if there is nothing to do.
    check: bool,
}

/// Which entries to claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    /// None: what waits is to be begun.
    None,
    /// So many of each lane, and what one cannot use of `all` for the other: all of them begin at once, or as a rate allows.
    Shares { shares: Shares, all: usize },
    /// So many of each lane, to have some ahead.
    Ahead(Shares),
}

impl Run {
    /// What to bring, if anything is to be claimed or begun now.
    pub(super) fn order(&mut self) -> Option<Order> {
        if self.filling.is_some() || !self.settles_well() || self.rest.is_some_and(|rest| !rest.of_lanes) {
            return None;
        }
        if self.worker.limits().paused {
            self.rest_for_pause();
            return None;
        }
        let spec = self.worker.spec.clone();
        let closed = spec.from.is_closed() && spec.to.is_closed();
        if !closed {
            // A probe is chosen among all that could be claimed.
            self.waiting.clear();
        }
        self.joint = Joint::of(&spec.from, &spec.to);
        let counts = self.worker.deps.queue.counts(spec.id);
        let has_work =
            [counts.fresh, counts.backfill].map(|lane| lane.ready.entries.saturating_add(lane.retrying.entries) > 0);
        let idle = has_work == [false, false] && self.waiting.is_empty();
        let ask = self.ask(has_work, closed)?;
        if ask == Ask::None && !self.may_begin() && (!idle || self.rest.is_some()) {
            return None;
        }
        let now = self.worker.deps.clock.monotonic();
        let check = self.checked_peers.is_none_or(|checked| now.saturating_sub(checked) >= IDLE_CHECK);
        Some(Order { ask, has_work, idle, check })
    }

    /// `None` where a rate allows nothing now; then the loop rests.
    fn ask(&mut self, has_work: [bool; 2], closed: bool) -> Option<Ask> {
        let packs = self.joint.packs() && closed;
        let (rated, _) = self.worker.throttle.rates();
        if Kind::ALL.into_iter().all(|kind| self.free_of(kind) == 0) || has_work == [false, false] {
            return Some(Ask::None);
        }
        if packs && !rated {
            let wants = Lane::ALL.map(|lane| {
                let waiting = self.waiting.len(lane);
                let wanted = has_work[index(lane)] && !self.exhausted[index(lane)] && waiting <= AHEAD / 2;
                if wanted { AHEAD - waiting } else { 0 }
            });
            return Some(if wants == [0, 0] { Ask::None } else { Ask::Ahead(wants) });
        }
        let waiting: usize = Lane::ALL.into_iter().map(|lane| self.waiting.len(lane)).sum();
        let free = if packs { AHEAD } else { self.free_of(Kind::Alone) }.saturating_sub(waiting);
        if free == 0 || self.rest.is_some() {
            return Some(Ask::None);
        }
        let room = match self.worker.throttle.room(free) {
            Ok(room) => room,
            Err(until) => {
                self.rest_for_rate(until);
                return None;
            }
        };
        let in_flight = if packs { [0, 0] } else { self.slots.of(Kind::Alone) };
        let lanes = &mut self.lanes[Kind::Alone as usize];
        let shares = lanes.share(in_flight[0] + in_flight[1] + room, in_flight, has_work);
        Some(Ask::Shares { shares, all: room })
    }

    pub(super) fn on_filled(&mut self, fill: Fill) {
        let Fill { claims, permits, probing, activity, rest, exhausted, checked_peers } = fill;
        if checked_peers {
            self.checked_peers = Some(self.worker.deps.clock.monotonic());
        }
        let spec = self.worker.spec.clone();
        if matches!(activity, Activity::WaitingForPeer(_))
            && spec.from.open_for() == Some((FaultKind::StoreIdChanged, true))
        {
            self.worker.evidence().streaks.impostor();
        }
        self.set_activity(activity);
        match (rest, self.rest) {
            // What was waited for before ends no later.
            (Some(Rest { of_lanes: true, .. }), Some(_)) | (None, _) => {}
            (rest, _) => self.rest = rest,
        }
        for lane in Lane::ALL {
            self.exhausted[index(lane)] |= exhausted[index(lane)];
        }
        let Some(permits) = permits.filter(|_| !self.worker.limits().paused) else { return self.waiting.clear() };
        if probing {
            self.waiting.clear();
        }
        self.joint = Joint::of(&spec.from, &spec.to);
        let (_, rated_bytes) = self.worker.throttle.rates();
        {
            let suspects = &self.worker.evidence().suspects;
            for claim in claims {
                let entry = claim.entry();
                // How much a blob of unknown size takes of a rate is known too late for a whole pack of them.
                let packed = !probing
                    && self.joint.takes(entry)
                    && (entry.size.is_some() || !rated_bytes)
                    && !suspects.is_suspect(entry.seq);
                self.waiting.add(if packed { Kind::Packed } else { Kind::Alone }, claim);
            }
        }
        self.begin(&permits);
    }
}

pub(super) async fn fill(worker: Arc<Worker>, order: Order) -> Fill {
    let Worker { spec, deps, .. } = &*worker;
    let poll = deps.policy.poll_interval;
    let peers_closed = spec.from.is_closed() && spec.to.is_closed();
    if order.idle && peers_closed && !order.check {
        return Fill::nothing(Activity::Ready, poll, true);
    }
    // By name, so that two routes in opposite directions do not take a probe each, and wait for the other's.
    let mut peers = [&spec.from, &spec.to];
    peers.sort_by_key(|peer| peer.name().clone());
    if let Some((peer, until)) = peers.iter().find_map(|peer| Some((peer, peer.wait_until()?))) {
        return wait_for(deps, peer, until);
    }
    let mut permits = Vec::with_capacity(2);
    let mut probing = false;
    for peer in peers {
        match peer.admit().await {
            Admission::Go(permit) => permits.push(permit),
            Admission::Probe(permit) => {
                probing = true;
                permits.push(permit);
            }
            Admission::Wait(until) => return wait_for(deps, peer, until),
        }
    }
    let [Some(second), Some(first)] = [permits.pop(), permits.pop()] else {
        return Fill::nothing(Activity::Ready, poll, true);
    };
    let from_is_first = Arc::ptr_eq(first.peer(), &spec.from);
    let permits = if from_is_first { Permits { from: first, to: second } } else { Permits { from: second, to: first } };

    if !probing {
        worker.evidence().probes.done();
    }
    let claimed = if probing { claim_probe(&worker).await } else { claim_asked(&worker, order).await };
    let (claims, exhausted, rests) = match claimed {
        Ok(claimed) => claimed,
        Err(error) => {
            worker.board.queue_failed(&error.to_string());
            return Fill::nothing(Activity::QueueFailed(error.to_string()), QUEUE_PAUSE, false);
        }
    };
    if claims.is_empty() && probing {
        // There is nothing to probe with. Both have just said who they are, which must do.
        permits.from.succeeded();
        permits.to.succeeded();
    }
    let rest = if rests { Some(rest_until_due(&worker, poll).await) } else { None };
    let (permits, activity) = (Some(Arc::new(permits)), Activity::Ready);
    Fill { claims, permits, probing, activity, rest, exhausted, checked_peers: true }
}

fn wait_for(deps: &Deps, peer: &Arc<Peer>, until: Duration) -> Fill {
    let pause = until.saturating_sub(deps.clock.monotonic());
    Fill::nothing(Activity::WaitingForPeer(peer.name().clone()), pause, false)
}

/// Claims, which lanes gave less than was asked for, and whether the loop is to rest.
type Claimed = (Vec<Claim>, [bool; 2], bool);

async fn claim_asked(worker: &Worker, order: Order) -> Result<Claimed, QueueError> {
    match order.ask {
        Ask::None => Ok((Vec::new(), [false; 2], order.idle)),
        Ask::Shares { shares, all } => {
            let claims = claim_shares(worker, shares, all, order.has_work).await?;
            let short = claims.len() < all;
            Ok((claims, [short; 2], short))
        }
        Ask::Ahead(wants) => {
            let (mut claims, mut exhausted) = (Vec::new(), [false; 2]);
            for lane in Lane::ALL {
                let want = wants[index(lane)];
                if want > 0 {
                    let some = claim(worker, lane, want).await?;
                    exhausted[index(lane)] = some.len() < want;
                    claims.extend(some);
                }
            }
            Ok((claims, exhausted, exhausted != [false; 2]))
        }
    }
}

/// Up to the ordered shares; what one lane cannot use goes to the other.
async fn claim_shares(
    worker: &Worker,
    shares: Shares,
    all: usize,
    has_work: [bool; 2],
) -> Result<Vec<Claim>, QueueError> {
    let mut claims = Vec::new();
    let mut exhausted = [!has_work[0], !has_work[1]];
    for lane in Lane::ALL {
        let share = shares[index(lane)];
        if share > 0 {
            let some = claim(worker, lane, share).await?;
            exhausted[index(lane)] = some.len() < share;
            claims.extend(some);
        }
    }
    for lane in Lane::ALL {
        let left = all.saturating_sub(claims.len());
        if left > 0 && !exhausted[index(lane)] {
            claims.extend(claim(worker, lane, left).await?);
        }
    }
    Ok(claims)
}

/// One entry; see [`Probes`](crate::worker::probes::Probes). The others are released.
async fn claim_probe(worker: &Worker) -> Result<Claimed, QueueError> {
    let (lanes, reach) = {
        let Evidence { probes, .. } = &*worker.evidence();
        (probes.lanes(), probes.reach())
    };
    for lane in lanes {
        let mut claims = claim(worker, lane, reach).await?;
        let entries: Vec<&Entry> = claims.iter().map(Claim::entry).collect();
        let Evidence { probes, suspects, .. } = &mut *worker.evidence();
        let pick = |bound| usize::try_from(worker.deps.entropy.below(bound as u64)).unwrap_or(0);
        if let Some(chosen) = probes.choose(&entries, |seq| suspects.is_suspect(seq), pick) {
            return Ok((vec![claims.swap_remove(chosen)], [false; 2], false));
        }
    }
    Ok((Vec::new(), [true; 2], true))
}

/// Half of those that are to be tried again and half of those that never were, so that failures never hold up the others;
/// what one cannot use goes to the other, and which has the larger half changes each time.
async fn claim(worker: &Worker, lane: Lane, max: usize) -> Result<Vec<Claim>, QueueError> {
    let Deps { queue, clock, .. } = &worker.deps;
    let (route, now) = (worker.spec.id, clock.now());
    let request = |order, max| ClaimRequest { route, lane, order, max, now };
    let half = if worker.due_turns[index(lane)].fetch_not(Ordering::Relaxed) { max.div_ceil(2) } else { max / 2 };
    let mut claims = queue.claim(request(ClaimOrder::Due, half)).await?.claims;
    let more_due = claims.len() == half;
    claims.extend(queue.claim(request(ClaimOrder::Oldest, max - claims.len())).await?.claims);
    if more_due && claims.len() < max {
        claims.extend(queue.claim(request(ClaimOrder::Due, max - claims.len())).await?.claims);
    }
    Ok(claims)
}

/// Rests until the next retry is due, and no longer than a poll interval.
async fn rest_until_due(worker: &Worker, poll: Duration) -> Rest {
    let Deps { queue, clock, .. } = &worker.deps;
    let counts = queue.counts(worker.spec.id);
    let mut pause = poll;
    if counts.fresh.retrying.entries + counts.backfill.retrying.entries > 0
        && let Ok(oldest) = queue.oldest(worker.spec.id).await
        && let Some(due) = oldest.next_due
    {
        pause = pause.min(due.duration_since(clock.now()).unwrap_or_default());
    }
    Rest { until: Instant::now() + pause.max(SHORTEST_REST), on_queue: true, on_peers: true, of_lanes: true }
}
