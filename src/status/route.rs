//! How a route stands: a word and a sentence. Synchronous, and tested without a runtime.
//!
//! `docs/states.md` lists the states, and a test walks through it. Of several that apply, the first of [`RouteConditions::state`]
//! holds.

use super::limiting::limiting;
use super::sentence::Sentence;
use super::{MAX_COPIES, PeerHealth, PeerStatus, RouteState, RouteStatus, Totals, Trend};
use crate::announce::{Backlog, Route};
use crate::fault::Side;
use crate::overrides::{InForce, Stamp};
use crate::queue::{LaneCounts, Oldest, RouteCounts, Tally};
use crate::sync::{NeededSync, SyncPhase, SyncRecord, SyncState};
use crate::words::{bytes, noun_of, number, rate, several, span, time};
use crate::worker::{Activity, ErrorGroup, Report, Streak};
use std::time::{Duration, SystemTime};

/// The causes of faults that a worker remembers.
const MAX_CAUSES: usize = 20;

/// What decides how a route stands.
pub(crate) struct RouteConditions<'a> {
    /// The route.
    pub route: &'a Route,
    /// Whether it is no longer configured.
    pub orphaned: bool,
    /// Whether the replicator shuts down.
    pub draining: bool,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// Whether it may have lost entries.
    pub degraded: bool,
    /// The queue's figures.
    pub counts: &'a RouteCounts,
    /// The newest sync, running or not.
    pub newest_sync: Option<&'a SyncRecord>,
    /// Whether it needs a full sync that has not completed.
    pub needs_sync: bool,
    /// All peers.
    pub peers: &'a [PeerStatus],
}

impl<'a> RouteConditions<'a> {
    /// In one word.
    pub(crate) fn state(&self) -> RouteState {
        let backlog = self.backlog().tally.entries;
        let running = self.running_sync();
        if self.orphaned {
            RouteState::Orphaned
        } else if !self.route.enabled {
            RouteState::Disabled
        } else if self.draining {
            RouteState::Draining
        } else if self.paused {
            RouteState::Paused
        } else if self.degraded {
            RouteState::Degraded
        } else if !self.absent_peers().is_empty() {
            RouteState::Blocked
        } else if self.waiting() == 0 && backlog > 0 {
            RouteState::Retrying
        } else if running.is_some_and(|sync| sync.phase == SyncPhase::Comparing) {
            RouteState::Syncing
        } else if backlog > 0 {
            RouteState::Copying
        } else if running.is_some() {
            RouteState::Syncing
        } else if self.parked() > 0 {
            RouteState::Parked
        } else if self.needs_sync || self.failed_sync().is_some() {
            RouteState::NeedsSync
        } else {
            RouteState::InSync
        }
    }

    /// Whether it does its job, as its health tells: its state [works](RouteState::works), and nothing of it was given up.
    pub(crate) fn works(&self) -> bool {
        self.state().works() && self.parked() == 0
    }

    fn sum(&self, part: impl Fn(&LaneCounts) -> Tally) -> Tally {
        sum(self.counts, part)
    }

    /// Entries that are copied, or could be.
    fn waiting(&self) -> u64 {
        self.sum(|lane| lane.ready).entries + self.claimed()
    }

    fn claimed(&self) -> u64 {
        self.sum(|lane| lane.claimed).entries
    }

    fn parked(&self) -> u64 {
        self.sum(|lane| lane.parked).entries
    }

    fn backlog(&self) -> Backlog {
        Backlog::of(self.counts, None, SystemTime::UNIX_EPOCH)
    }

    fn running_sync(&self) -> Option<&'a SyncRecord> {
        self.newest_sync.filter(|sync| sync.state == SyncState::Running)
    }

    /// The last full sync, if it failed and none was started since: the stores were not compared.
    fn failed_sync(&self) -> Option<&'a SyncRecord> {
        self.newest_sync.filter(|sync| sync.state == SyncState::Failed)
    }

    /// The route's peers that cannot be used: they did not say yet what they are, or their breaker is not closed.
    fn absent_peers(&self) -> Vec<&'a PeerStatus> {
        [&self.route.from, &self.route.to]
            .into_iter()
            .filter_map(|name| self.peers.iter().find(|peer| peer.snapshot.name == *name))
            .filter(|peer| peer.health != PeerHealth::Reachable)
            .collect()
    }
}

/// The figures of a route, as they were gathered.
pub(crate) struct RouteFacts<'a> {
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
pub(crate) fn route_status(facts: RouteFacts<'_>, peers: &[PeerStatus], now: SystemTime) -> RouteStatus {
    let conditions = RouteConditions {
        route: facts.route,
        orphaned: facts.orphaned,
        draining: facts.draining,
        paused: facts.limits.limits.paused,
        degraded: facts.degraded,
        counts: &facts.counts,
        newest_sync: facts.newest_sync.as_ref(),
        needs_sync: facts.needed_sync.is_some(),
        peers,
    };
    let state = conditions.state();
    let backlog = Backlog::of(&facts.counts, facts.oldest.fresh, now);
    let eta = match state {
        RouteState::Copying | RouteState::Syncing if conditions.waiting() > 0 => {
            facts.trend.eta(&backlog.tally, &facts.limits.limits)
        }
        _ => None,
    };
    let teller = Teller { conditions: &conditions, facts: &facts, backlog, eta, now };
    let sentence = teller.sentence(state);
    let alarm = !matches!(state, RouteState::Orphaned | RouteState::Disabled) && teller.alarm().is_some();
    let (ready, claimed) = (conditions.sum(|lane| lane.ready).entries, conditions.claimed());
    let limiting = limiting(&facts, ready, claimed, !conditions.absent_peers().is_empty(), now);

    let RouteFacts { route, limits, counts, at_start, oldest, trend, worker, newest_sync, last_sync, .. } = facts;
    let (running_sync, last_sync) = match newest_sync {
        Some(sync) if sync.state == SyncState::Running => (Some(sync), last_sync),
        newest => (None, newest),
    };
    let age = |time| now.duration_since(time).unwrap_or_default();
    let (mut copies, faults) = worker.map(|report| (report.in_progress, report.errors)).unwrap_or_default();
    copies.sort_by_key(|copy| copy.start);
    copies.truncate(MAX_COPIES);
    RouteStatus {
        sentence,
        route: route.clone(),
        state,
        alarm,
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
        needed_sync: facts.needed_sync,
    }
}

/// Finds the words.
struct Teller<'a> {
    conditions: &'a RouteConditions<'a>,
    facts: &'a RouteFacts<'a>,
    backlog: Backlog,
    eta: Option<Duration>,
    now: SystemTime,
}

impl Teller<'_> {
    fn sentence(&self, state: RouteState) -> Sentence {
        let name = &self.conditions.route.name;
        let head = |text: &str| Sentence::new(format!("{name}: {}{text}", state.as_str()));
        let mut sentence = match state {
            RouteState::Orphaned => return self.orphaned(head(": no longer configured")),
            RouteState::Disabled => return head(&format!(" by the configuration{}", self.kept())),
            RouteState::Draining => return head(&self.draining()),
            RouteState::Paused => return self.paused(head("")),
            RouteState::Degraded => {
                let mut sentence = head(": a part of the queue was lost");
                self.tell_needed(&mut sentence, ", a full sync is begun in ");
                sentence
            }
            RouteState::Blocked => self.blocked(&format!("{name}: {}: ", state.as_str())),
            RouteState::Retrying => {
                let blobs = several(self.backlog.tally.entries, "blob");
                let due = self.facts.oldest.next_due.and_then(|due| due.duration_since(self.now).ok());
                let next = due.map_or_else(|| "now".to_owned(), |wait| format!("in {}", span(wait)));
                head(&format!(": {blobs} failed before, next attempt {next}"))
            }
            RouteState::Syncing | RouteState::Copying if self.backlog.tally.entries > 0 => {
                let mut sentence = head(&self.behind());
                self.add_pace(&mut sentence);
                sentence
            }
            RouteState::Syncing | RouteState::Copying => head(""),
            RouteState::Parked => head(&format!(": {}", self.given_up())),
            RouteState::NeedsSync => {
                let mut sentence = head("");
                self.tell_needed(&mut sentence, ", begun in ");
                sentence
            }
            RouteState::InSync => {
                let mut sentence = head("");
                sentence.add(": everything announced is at the destination");
                if self.facts.counts.discarded > 0 {
                    let was = if self.facts.counts.discarded == 1 { "was" } else { "were" };
                    let discarded = several(self.facts.counts.discarded, "blob");
                    sentence.add(format!(", but for {discarded} that {was} discarded"));
                }
                sentence
            }
        };
        self.explain(&mut sentence, state);
        if let Some(sync) = self.conditions.running_sync() {
            let text = format!("{}: {}", sync.id, sync.summary());
            match state {
                RouteState::Syncing if self.backlog.tally.entries == 0 => sentence.because(&format!(": {text}")),
                _ => sentence.add(format!("; {text}")),
            }
        }
        sentence
    }

    /// Why it stands so, and the command that helps.
    fn explain(&self, sentence: &mut Sentence, state: RouteState) {
        if let Some(alarm) = self.alarm() {
            sentence.because(&alarm);
        }
        if self.conditions.parked() > 0 {
            if state != RouteState::Parked {
                sentence.add(format!("; {}", self.given_up()));
            }
            sentence.end(&format!("; blobferry failures list {}", self.conditions.route.name));
        }
        if matches!(state, RouteState::Parked | RouteState::Retrying)
            && let Some(group) = self.latest_fault()
        {
            let peer = if group.peer.is_empty() { String::new() } else { format!(" at {}", group.peer) };
            sentence.because(&format!(": {}{peer}: {}", group.kind, group.message));
        }
        if let Some(Activity::PeerOverloaded(name)) = self.facts.worker.as_ref().map(|report| &report.activity) {
            sentence.because(&self.overloaded(name));
        }
        if state == RouteState::Copying && self.facts.needed_sync.is_some() && self.conditions.running_sync().is_none()
        {
            sentence.add("; a full sync is needed");
        }
    }

    /// What somebody should look at although blobs may be copied.
    fn alarm(&self) -> Option<String> {
        let report = self.facts.worker.as_ref()?;
        let Route { from, to, .. } = self.conditions.route;
        if let Activity::QueueFailed(why) = &report.activity {
            return Some(format!("; the queue fails: {why}"));
        }
        if let Some(gone) = report.vanished {
            let when = time(gone, self.now);
            return Some(format!("; blobs copied earlier are gone from {from} since {when}: is it the right volume?"));
        }
        let Streak { kind, side, count, since, message } = report.alarm.as_ref()?;
        let name = match side {
            Side::Source => from,
            Side::Destination => to,
        };
        let when = time(*since, self.now);
        Some(format!("; {name} answered {kind} {} times in a row since {when}: {message}", number(*count)))
    }

    fn overloaded(&self, name: &str) -> String {
        let peer = self.conditions.peers.iter().find(|peer| *peer.snapshot.name == *name);
        match peer.and_then(|peer| peer.snapshot.concurrency_limit) {
            Some(1) => format!("; {name} is overloaded, and takes one copy at a time"),
            Some(limit) => format!("; {name} is overloaded, and takes {limit} copies at a time"),
            None => format!("; {name} is overloaded"),
        }
    }

    fn latest_fault(&self) -> Option<&ErrorGroup> {
        self.facts.worker.as_ref()?.errors.iter().max_by_key(|group| group.last)
    }

    fn given_up(&self) -> String {
        let parked = self.conditions.parked();
        format!("{} {} given up", several(parked, "blob"), if parked == 1 { "was" } else { "were" })
    }

    /// The full sync that it needs: when it begins, and why it has not completed; or the one that failed.
    fn tell_needed(&self, sentence: &mut Sentence, begins: &str) {
        if let Some(sync) = self.conditions.running_sync() {
            sentence.because(&format!("; {} makes up for it: {}", sync.id, sync.summary()));
            return;
        }
        let needed = self.facts.needed_sync.as_ref();
        match needed.and_then(|needed| needed.next_time).and_then(|next| next.duration_since(self.now).ok()) {
            Some(wait) => sentence.add(format!("{begins}{}", span(wait))),
            None => sentence.end(&format!("; blobferry sync {}", self.conditions.route.name)),
        }
        match (needed, self.conditions.failed_sync()) {
            (Some(needed), _) if !needed.problem.is_empty() => sentence.because(&format!(": {}", needed.problem)),
            (_, Some(sync)) => {
                let why = sync.failure.as_ref().map_or("", |failure| failure.message.as_str());
                sentence.because(&format!(": {} failed: {why}", sync.id));
            }
            (Some(needed), None) => sentence.because(&format!(": {}", needed.reason)),
            (None, None) => {}
        }
    }

    fn blocked(&self, head: &str) -> Sentence {
        let absent = self.conditions.absent_peers();
        let mut sentence = match absent.as_slice() {
            [one, other, ..] => {
                let names = format!("{} and {}", one.snapshot.name, other.snapshot.name);
                let mut sentence = Sentence::new(format!("{head}{names} cannot be used"));
                sentence.because(&format!(": {}", one.trouble()));
                sentence
            }
            one => one.first().map_or_else(|| Sentence::new(head), |peer| peer.sentence(head, self.now)),
        };
        match self.backlog.tally.entries {
            0 => {}
            1 => sentence.end("; 1 blob waits"),
            many => sentence.end(&format!("; {} wait", several(many, "blob"))),
        }
        sentence
    }

    fn behind(&self) -> String {
        format!(", {} behind, lag {}", tally(&self.backlog.tally), span(self.backlog.lag))
    }

    fn add_pace(&self, sentence: &mut Sentence) {
        if self.facts.trend.done_per_second > 0.0 {
            sentence.add(format!(", {}", rate(self.facts.trend.done_per_second)));
        }
        match self.eta {
            Some(eta) if eta < Duration::from_secs(1) => sentence.add(", done within a second"),
            Some(eta) => sentence.add(format!(", done in about {}", span(eta))),
            None => {}
        }
    }

    fn kept(&self) -> String {
        match Backlog::with_parked(&self.facts.counts) {
            0 => ", takes nothing, does nothing".to_owned(),
            1 => "; 1 blob stays queued".to_owned(),
            many => format!("; {} stay queued", several(many, "blob")),
        }
    }

    fn orphaned(&self, mut sentence: Sentence) -> Sentence {
        sentence.add(self.kept());
        if Backlog::with_parked(&self.facts.counts) > 0 {
            sentence.end(&format!(": configure it again, or blobferry drop {}", self.conditions.route.name));
        }
        sentence
    }

    fn draining(&self) -> String {
        let copying = self.conditions.claimed();
        let rest = self.backlog.tally.entries.saturating_sub(copying);
        format!(": {} being finished, {} stay queued", number(copying), number(rest))
    }

    /// Who paused it, since when, until when and why; what waits, and what is still in flight.
    fn paused(&self, mut sentence: Sentence) -> Sentence {
        if let Some(Stamp { set_by, set_time, expire_time, reason }) = self.facts.limits.pause() {
            let mut why = format!(" by {set_by} since {}", time(*set_time, self.now));
            if let Some(left) = expire_time.and_then(|end| end.duration_since(self.now).ok()) {
                why.push_str(&format!(", for another {}", span(left)));
            }
            if !reason.is_empty() {
                why.push_str(&format!(" ({reason})"));
            }
            sentence.because(&why);
        }
        let copying = self.conditions.claimed();
        let waiting = self.backlog.tally.entries.saturating_sub(copying);
        let wait = if waiting == 1 { "waits" } else { "wait" };
        sentence.end(&format!(": {} {wait}", several(waiting, "blob")));
        if copying > 0 {
            sentence.end(&format!(", {} in flight", number(copying)));
        }
        sentence
    }
}

/// Entries and their size, such as `1,204 blobs (3.10 MiB)`; where sizes are unknown, `at least` says so.
pub(super) fn tally(tally: &Tally) -> String {
    let blobs = format!("{} {}", number(tally.entries), noun_of(tally.entries, "blob"));
    match (tally.bytes, tally.unknown_size) {
        (0, 0) => format!("{blobs} (0 B)"),
        (0, _) => blobs,
        (known, 0) => format!("{blobs} ({})", bytes(known)),
        (known, _) => format!("{blobs} (at least {})", bytes(known)),
    }
}

/// The sum of both lanes.
pub(super) fn sum(counts: &RouteCounts, part: impl Fn(&LaneCounts) -> Tally) -> Tally {
    let (fresh, backfill) = (part(&counts.fresh), part(&counts.backfill));
    Tally {
        entries: fresh.entries + backfill.entries,
        bytes: fresh.bytes.saturating_add(backfill.bytes),
        unknown_size: fresh.unknown_size + backfill.unknown_size,
    }
}
