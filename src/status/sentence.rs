//! What the figures mean: a word and a sentence. Synchronous, and tested without a runtime.

use super::words::{number, rate, several, since, span, tally};
use super::{
    LimitingFactor, MAX_COPIES, PeerHealth, PeerStatus, QueueState, QueueStatus, ReplicatorState, RouteState,
    RouteStatus, Totals, Trend,
};
use crate::announce::{Backlog, Route};
use crate::breaker::Phase;
use crate::fault::Side;
use crate::overrides::{InForce, Stamp};
use crate::peer::PeerSnapshot;
use crate::queue::{Oldest, RouteCounts, Tally};
use crate::sync::{NeededSync, SyncPhase, SyncRecord, SyncState};
use crate::worker::{Activity, Report, Streak, Wait, Waits};
use std::time::{Duration, SystemTime};

/// The causes of faults that a worker remembers.
const MAX_CAUSES: usize = 20;

/// From so much of the time on, workers count as busy all the time.
const ALL_BUSY: f64 = 0.9;

/// Copies mostly wait for a store if they do so for this part of their time.
const MOSTLY: f64 = 0.75;

/// The figures of a route, as they were gathered.
pub struct RouteFacts<'a> {
    /// The route.
    pub route: &'a Route,
    /// Whether it is no longer configured.
    pub orphaned: bool,
    /// The limits in force.
    pub limits: InForce,
    /// The queue's figures now.
    pub counts: RouteCounts,
    /// The same when the process started.
    pub at_start: RouteCounts,
    /// The oldest entries.
    pub oldest: Oldest,
    /// Rates and direction.
    pub trend: Trend,
    /// What its worker says; absent where it has none.
    pub worker: Option<Report>,
    /// The newest sync, running or not.
    pub newest_sync: Option<SyncRecord>,
    /// The sync before a running one.
    pub last_sync: Option<SyncRecord>,
    /// The sync that it needs.
    pub needed_sync: Option<NeededSync>,
    /// Whether it may have lost entries.
    pub degraded: bool,
    /// Whether the replicator shuts down.
    pub draining: bool,
}

/// The picture of a route; `peers` are all peers.
pub fn route_status(facts: RouteFacts<'_>, peers: &[PeerStatus], now: SystemTime) -> RouteStatus {
    let odd = facts.worker.as_ref().map(|report| odd(report, facts.route, peers, now)).unwrap_or_default();
    let RouteFacts {
        route,
        orphaned,
        limits,
        counts,
        at_start,
        oldest,
        trend,
        worker,
        newest_sync,
        last_sync,
        needed_sync,
        degraded,
        draining,
    } = facts;
    let backlog = Backlog::of(&counts, oldest.fresh, now);
    let (running_sync, last_sync) = match newest_sync {
        Some(sync) if sync.state == SyncState::Running => (Some(sync), last_sync),
        newest => (None, newest),
    };
    let shut = shut(route, peers);
    let failed_sync = failed_sync(running_sync.as_ref(), last_sync.as_ref());
    let open =
        EnabledRoute { counts: &counts, backlog, shut: &shut, syncing: running_sync.as_ref(), failed_sync, degraded };
    let state = if orphaned {
        RouteState::Orphaned
    } else if !route.enabled {
        RouteState::Disabled
    } else if draining {
        RouteState::Draining
    } else if limits.limits.paused {
        RouteState::Paused
    } else {
        open.state()
    };
    let eta = match state {
        RouteState::Copying | RouteState::Syncing if open.waiting() > 0 => trend.eta(backlog.tally.entries),
        _ => None,
    };
    let age = |time| now.duration_since(time).unwrap_or_default();
    let mut detail = match state {
        RouteState::Disabled => format!(" by the configuration{}", kept(&counts, backlog)),
        RouteState::Orphaned if Backlog::with_parked(&counts) > 0 => {
            let kept = kept(&counts, backlog);
            format!(
                ": no longer configured{kept}: configure it again, or delete them with `blobferry drop {}`",
                route.name
            )
        }
        RouteState::Orphaned => format!(": no longer configured{}", kept(&counts, backlog)),
        RouteState::Draining => draining_text(&counts, backlog),
        RouteState::Paused => paused_text(limits.pause(), &counts, backlog, now),
        _ => open.detail(state, &trend, eta, oldest.next_due, now),
    };
    if let Some(needed) = needed_sync.as_ref().filter(|_| route.enabled && !orphaned && running_sync.is_none()) {
        detail.push_str(&needed_text(needed, now));
    }
    if route.enabled && !orphaned {
        detail.push_str(&odd);
    }
    let limiting = limiting(route, &limits, &open, worker.as_ref(), oldest.next_due, now);
    let (mut copies, faults) = worker.map(|report| (report.in_progress, report.errors)).unwrap_or_default();
    copies.sort_by_key(|copy| copy.start);
    copies.truncate(MAX_COPIES);
    RouteStatus {
        summary: format!("{}: {}{detail}", route.name, state.as_str()),
        route: route.clone(),
        state,
        counts,
        backlog,
        oldest_backfill_age: oldest.backfill.map(age),
        oldest_retrying_age: oldest.retrying.map(age),
        oldest_parked_age: oldest.parked.map(age),
        next_retry_time: oldest.next_due,
        limiting,
        trend,
        eta,
        since_start: Totals {
            confirmed: counts.confirmed.saturating_sub(at_start.confirmed),
            copied: counts.copied.saturating_sub(at_start.copied),
            copied_bytes: counts.copied_bytes.saturating_sub(at_start.copied_bytes),
            discarded: counts.discarded.saturating_sub(at_start.discarded),
            // A cause that was forgotten took its number with it.
            failed_attempts: (faults.len() < MAX_CAUSES).then(|| faults.iter().map(|group| group.count).sum()),
        },
        copies,
        faults,
        limits,
        running_sync,
        last_sync,
        needed_sync,
    }
}

/// What is odd about the queue or the peers of a route, while it works.
fn odd(report: &Report, route: &Route, peers: &[PeerStatus], now: SystemTime) -> String {
    let mut text = match &report.activity {
        Activity::QueueFailed(why) => format!("; but the queue fails: {why}"),
        Activity::PeerOverloaded(name) => {
            let peer = peers.iter().find(|peer| peer.snapshot.name == *name);
            match peer.and_then(|peer| peer.snapshot.concurrency_limit) {
                Some(1) => format!("; {name} is overloaded, and takes one copy at a time"),
                Some(limit) => format!("; {name} is overloaded, and takes {limit} copies at a time"),
                None => format!("; {name} is overloaded"),
            }
        }
        _ => String::new(),
    };
    if let Some(gone) = report.vanished {
        let (from, when) = (&route.from, since(gone, now));
        text.push_str(&format!(
            "; but blobs that were copied earlier have vanished from {from} since {when}: is it the right volume? \
             Nothing is given up as missing meanwhile"
        ));
    }
    if let Some(Streak { kind, side, count, since: first, message }) = &report.alarm {
        let name = match side {
            Side::Source => &route.from,
            Side::Destination => &route.to,
        };
        let (count, when) = (number(*count), since(*first, now));
        text.push_str(&format!("; but {name} has answered {kind} {count} times in a row since {when}: {message}"));
    }
    text
}

fn needed_text(needed: &NeededSync, now: SystemTime) -> String {
    let next = match needed.next_time.and_then(|time| time.duration_since(now).ok()) {
        Some(wait) => format!(", begun again in {}", span(wait)),
        None => String::new(),
    };
    let sep = if needed.problem.is_empty() { "" } else { "; the last attempt: " };
    format!("; a full sync is needed{next}: {}{sep}{}", needed.reason, needed.problem)
}

/// Whether a route does its job, as its health tells: it is enabled, its state [works](RouteState::works), and nothing of it
/// was given up. A full sync that failed is not part of it. `peers` are all peers.
pub fn route_works(route: &Route, counts: &RouteCounts, syncing: Option<&SyncRecord>, peers: &[PeerStatus]) -> bool {
    let backlog = Backlog::of(counts, None, SystemTime::UNIX_EPOCH);
    let open = EnabledRoute { counts, backlog, shut: &shut(route, peers), syncing, failed_sync: None, degraded: false };
    route.enabled && open.state().works() && open.sum(|lane| lane.parked).entries == 0
}

/// The last full sync, if it failed and none has been started since: the stores were not compared.
fn failed_sync<'a>(running: Option<&SyncRecord>, last: Option<&'a SyncRecord>) -> Option<&'a SyncRecord> {
    last.filter(|sync| running.is_none() && sync.state == SyncState::Failed)
}

/// The route's peers whose breaker is not closed.
fn shut<'a>(route: &Route, peers: &'a [PeerStatus]) -> Vec<&'a PeerStatus> {
    [&route.from, &route.to]
        .into_iter()
        .filter_map(|name| peers.iter().find(|peer| peer.snapshot.name == *name))
        .filter(|peer| peer.snapshot.phase != Phase::Closed)
        .collect()
}

/// A route that is enabled, in a replicator that is up.
struct EnabledRoute<'a> {
    counts: &'a RouteCounts,
    backlog: Backlog,
    shut: &'a [&'a PeerStatus],
    syncing: Option<&'a SyncRecord>,
    failed_sync: Option<&'a SyncRecord>,
    degraded: bool,
}

impl EnabledRoute<'_> {
    fn sum(&self, part: impl Fn(&crate::queue::LaneCounts) -> Tally) -> Tally {
        sum(self.counts, part)
    }

    /// Entries that are copied, or could be.
    fn waiting(&self) -> u64 {
        self.sum(|lane| lane.ready).entries + self.sum(|lane| lane.claimed).entries
    }

    fn state(&self) -> RouteState {
        let waiting = self.waiting();
        if self.degraded {
            RouteState::Degraded
        } else if self.backlog.tally.entries > 0 && !self.shut.is_empty() {
            RouteState::Blocked
        } else if waiting == 0 && self.backlog.tally.entries > 0 {
            RouteState::Retrying
        } else if self.syncing.is_some_and(|sync| sync.phase == SyncPhase::Comparing) {
            RouteState::Syncing
        } else if waiting > 0 {
            RouteState::Copying
        } else if self.syncing.is_some() {
            RouteState::Syncing
        } else if self.sum(|lane| lane.parked).entries > 0 {
            RouteState::Parked
        } else {
            RouteState::InSync
        }
    }

    fn detail(
        &self,
        state: RouteState,
        trend: &Trend,
        eta: Option<Duration>,
        next_due: Option<SystemTime>,
        now: SystemTime,
    ) -> String {
        let backlog = &self.backlog.tally;
        let mut text = match state {
            RouteState::Blocked => {
                let who: Vec<String> = self.shut.iter().map(|peer| trouble(peer, now)).collect();
                let blobs = several(backlog.entries, "blob");
                let (wait, are) = if backlog.entries == 1 { ("waits", "is") } else { ("wait", "are") };
                format!(": {}; {blobs} {wait} and {are} not charged", who.join("; "))
            }
            RouteState::Retrying => {
                let blobs = several(backlog.entries, "blob");
                match next_due.and_then(|due| due.duration_since(now).ok()) {
                    Some(wait) => format!(": {blobs} failed before, next attempt in {}", span(wait)),
                    None => format!(": {blobs} failed before, next attempt now"),
                }
            }
            RouteState::Syncing | RouteState::Copying if backlog.entries > 0 => self.progress(trend, eta),
            RouteState::Degraded => {
                let mut text =
                    ": entries were lost with a part of the queue, and a full sync makes up for it".to_owned();
                if backlog.entries > 0 {
                    text.push_str(&self.progress(trend, eta));
                }
                text
            }
            RouteState::InSync if self.counts.discarded > 0 => {
                let discarded = several(self.counts.discarded, "blob");
                format!(": everything announced is at the destination, but for {discarded} that were discarded")
            }
            RouteState::InSync => ": everything announced is at the destination".to_owned(),
            _ => String::new(),
        };
        if let Some(sync) = self.syncing {
            text.push_str(&format!("; {}: {}", sync.id, sync.summary()));
        }
        let parked = self.sum(|lane| lane.parked).entries;
        if parked > 0 {
            let sep = if text.is_empty() { ": " } else { "; " };
            let is = if parked == 1 { "was" } else { "were" };
            text.push_str(&format!("{sep}{} {is} given up, see recent_faults", several(parked, "blob")));
        }
        if let Some(sync) = self.failed_sync {
            let when = sync.end_time.map(|time| format!(" at {}", since(time, now))).unwrap_or_default();
            let why = sync.failure.as_ref().map(|failure| format!(": {}", failure.message)).unwrap_or_default();
            text.push_str(&format!("; but the last full sync, {}, failed{when}{why}", sync.id));
        }
        if backlog.entries == 0 {
            for peer in self.shut {
                text.push_str(&format!("; but {}", trouble(peer, now)));
            }
        }
        text
    }

    fn progress(&self, trend: &Trend, eta: Option<Duration>) -> String {
        let mut text = format!(", {} behind, lag {}", tally(&self.backlog.tally), span(self.backlog.lag));
        if trend.done_per_second > 0.0 {
            text.push_str(&format!(", {} blobs/s", rate(trend.done_per_second)));
        }
        match eta {
            Some(eta) if eta < Duration::from_secs(1) => text.push_str(", done within a second"),
            Some(eta) => text.push_str(&format!(", done in about {}", span(eta))),
            None => {}
        }
        text
    }
}

fn sum(counts: &RouteCounts, part: impl Fn(&crate::queue::LaneCounts) -> Tally) -> Tally {
    let (fresh, backfill) = (part(&counts.fresh), part(&counts.backfill));
    Tally {
        entries: fresh.entries + backfill.entries,
        bytes: fresh.bytes + backfill.bytes,
        unknown_size: fresh.unknown_size + backfill.unknown_size,
    }
}

fn kept(counts: &RouteCounts, backlog: Backlog) -> String {
    match backlog.tally.entries + sum(counts, |lane| lane.parked).entries {
        0 => ", takes nothing, does nothing".to_owned(),
        1 => "; 1 blob stays queued".to_owned(),
        many => format!("; {} stay queued", several(many, "blob")),
    }
}

fn draining_text(counts: &RouteCounts, backlog: Backlog) -> String {
    let copying = sum(counts, |lane| lane.claimed).entries;
    format!(
        ": {} being finished, {} stay queued",
        number(copying),
        number(backlog.tally.entries.saturating_sub(copying))
    )
}

/// Who paused it, since when, until when and why; what waits, and what is still in flight.
fn paused_text(pause: Option<&Stamp>, counts: &RouteCounts, backlog: Backlog, now: SystemTime) -> String {
    let mut text = String::new();
    if let Some(Stamp { set_by, set_time, expire_time, reason }) = pause {
        text.push_str(&format!(" by {set_by} since {}", since(*set_time, now)));
        if let Some(left) = expire_time.and_then(|end| end.duration_since(now).ok()) {
            text.push_str(&format!(", for another {}", span(left)));
        }
        if !reason.is_empty() {
            text.push_str(&format!(" ({reason})"));
        }
    }
    let copying = sum(counts, |lane| lane.claimed).entries;
    let waiting = backlog.tally.entries.saturating_sub(copying);
    let wait = if waiting == 1 { "waits" } else { "wait" };
    text.push_str(&format!(": {} {wait}", several(waiting, "blob")));
    match copying {
        0 => {}
        1 => text.push_str(", 1 copy in flight is being finished"),
        many => text.push_str(&format!(", {} copies in flight are being finished", number(many))),
    }
    text
}

fn limiting(
    route: &Route,
    limits: &InForce,
    open: &EnabledRoute<'_>,
    worker: Option<&Report>,
    next_due: Option<SystemTime>,
    now: SystemTime,
) -> Option<LimitingFactor> {
    if !route.enabled || limits.limits.paused {
        return Some(LimitingFactor::Paused);
    }
    let (ready, claimed) = (open.sum(|lane| lane.ready).entries, open.sum(|lane| lane.claimed).entries);
    let due = next_due.is_some_and(|due| due <= now);
    if ready + claimed == 0 && !due {
        return Some(LimitingFactor::Idle);
    }
    if !open.shut.is_empty() {
        return Some(LimitingFactor::Breaker);
    }
    match worker.map(|report| report.waits) {
        // While there is a backlog, what was idle before it holds nothing back.
        Some(waits) if ready > 0 && waits.without(Wait::Work).most().is_some() => {
            limiting_of(&waits.without(Wait::Work))
        }
        Some(waits) if ready == 0 && waits.most().is_some() => limiting_of(&waits),
        _ => (ready > 0 && claimed >= limits.limits.workers as u64).then_some(LimitingFactor::Workers),
    }
}

/// What follows from what the workers waited for. Whoever is waited for for most of the time holds the route back; where
/// neither store is, and hardly a worker is ever free, more of them would help.
pub(super) fn limiting_of(waits: &Waits) -> Option<LimitingFactor> {
    let busy = waits.share(Wait::Source) + waits.share(Wait::Destination);
    let of_busy = |wait| waits.share(wait) / busy.max(f64::MIN_POSITIVE);
    if busy >= ALL_BUSY && of_busy(Wait::Source).max(of_busy(Wait::Destination)) < MOSTLY {
        return Some(LimitingFactor::Workers);
    }
    Some(match waits.most()? {
        Wait::Work => LimitingFactor::Idle,
        Wait::Breaker => LimitingFactor::Breaker,
        Wait::Capacity => LimitingFactor::PeerOverloaded,
        // A pause in force has been told already: this is a rate, or was a pause.
        Wait::Limit => LimitingFactor::RateLimit,
        Wait::Queue => LimitingFactor::QueueDisk,
        Wait::Source => LimitingFactor::SourceSlow,
        Wait::Destination => LimitingFactor::DestinationSlow,
    })
}

/// What is wrong with a peer whose breaker is not closed.
fn trouble(peer: &PeerStatus, now: SystemTime) -> String {
    let what = match peer.health {
        PeerHealth::Unsuitable => "cannot be used",
        _ if peer.snapshot.answers => "answers, and everything else fails,",
        _ => "is unreachable",
    };
    let when = since(peer.snapshot.since, now);
    let why = peer.snapshot.reason.as_ref().map_or("", |reason| reason.message.as_str());
    let sep = if why.is_empty() { "" } else { ": " };
    format!("{} ({}) {what} since {when}{sep}{why}", peer.snapshot.name, peer.endpoint)
}

/// The picture of a peer.
pub fn peer_status(snapshot: PeerSnapshot, endpoint: String, now: SystemTime) -> PeerStatus {
    let health = match snapshot.phase {
        Phase::Closed if snapshot.info.is_some() => PeerHealth::Reachable,
        Phase::Closed => PeerHealth::Unknown,
        _ if snapshot.latched => PeerHealth::Unsuitable,
        _ => PeerHealth::Unreachable,
    };
    let mut peer = PeerStatus { snapshot, endpoint, health, summary: String::new() };
    let who = format!("{} ({})", peer.snapshot.name, peer.endpoint);
    peer.summary = match (&peer.snapshot.info, health) {
        (_, PeerHealth::Unreachable | PeerHealth::Unsuitable) => {
            let next = peer.snapshot.next_probe.and_then(|probe| probe.duration_since(now).ok());
            let next = next.map_or("a probe is due".to_owned(), |wait| format!("next probe in {}", span(wait)));
            format!("{}; {next}", trouble(&peer, now))
        }
        (Some(info), _) => {
            let id = match &info.store_id {
                Some(id) => format!("store id {id}"),
                None => "without a store id, so nothing would notice if it were swapped".to_owned(),
            };
            format!("{who} answers: kind {}, {}, {id}", info.kind.as_str(), info.version)
        }
        (None, _) => format!("{who} was not asked yet"),
    };
    peer
}

/// How everything stands, in a word and a sentence.
pub fn overall(
    routes: &[RouteStatus],
    peers: &[PeerStatus],
    queue: &QueueStatus,
    draining: bool,
) -> (ReplicatorState, String) {
    if draining {
        return (
            ReplicatorState::Draining,
            "draining: copies in progress are being finished, the rest stays queued".to_owned(),
        );
    }
    if matches!(queue.state, QueueState::Full | QueueState::Failing) {
        return (ReplicatorState::NotAccepting, format!("not accepting announcements: {}", queue.reason));
    }
    if queue.state == QueueState::Degraded {
        return (ReplicatorState::Degraded, format!("the queue is {}", queue.summary));
    }
    if !queue.damage.is_empty() || queue.parked > queue.max_parked {
        return (ReplicatorState::Attention, format!("attention: the queue: {}", queue.summary));
    }
    let needs_eye = |route: &&RouteStatus| {
        let failed = failed_sync(route.running_sync.as_ref(), route.last_sync.as_ref()).is_some();
        (failed && route.route.enabled)
            || matches!(
                route.state,
                RouteState::Parked | RouteState::Retrying | RouteState::Blocked | RouteState::Paused
            )
            || (route.state == RouteState::Orphaned && Backlog::with_parked(&route.counts) > 0)
            || sum(&route.counts, |lane| lane.parked).entries > 0
            || sum(&route.counts, |lane| lane.retrying).entries > 0
    };
    let troubled: Vec<&RouteStatus> = routes.iter().filter(needs_eye).collect();
    if let [first, others @ ..] = troubled.as_slice() {
        let others = match others.len() {
            0 => String::new(),
            more => format!(" (and {})", several(more as u64, "more route")),
        };
        return (ReplicatorState::Attention, format!("attention: {}{others}", first.summary));
    }
    let down = peers.iter().find(|peer| matches!(peer.health, PeerHealth::Unreachable | PeerHealth::Unsuitable));
    if let Some(peer) = down {
        return (ReplicatorState::Attention, format!("attention: {}", peer.summary));
    }
    let enabled: Vec<&RouteStatus> = routes.iter().filter(|route| route.route.enabled).collect();
    let summary = match enabled.as_slice() {
        [] => "ok: no route is enabled, nothing is copied".to_owned(),
        [only] => format!("ok: {}", only.summary),
        many => {
            let in_sync = many.iter().filter(|route| route.state == RouteState::InSync).count();
            let mut behind = Tally::default();
            for route in many {
                behind.entries += route.backlog.tally.entries;
                behind.bytes = behind.bytes.saturating_add(route.backlog.tally.bytes);
                behind.unknown_size += route.backlog.tally.unknown_size;
            }
            match behind.entries {
                0 => format!("ok: {in_sync} of {} routes in sync", many.len()),
                _ => format!("ok: {in_sync} of {} routes in sync, {} behind", many.len(), tally(&behind)),
            }
        }
    };
    (ReplicatorState::Ok, summary)
}
