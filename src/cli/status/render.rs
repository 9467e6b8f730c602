//! A replicator's status as text. Pure: what is shown depends on the message alone, its own clock included.

use crate::cli::limits::override_line;
use crate::cli::table::Table;
use crate::pb;
use crate::pb::v1;
use crate::words::{bytes, bytes_rate, cause, number, plain, rate, several, span};
use prost_types::Timestamp;
use std::time::Duration;

/// The longest foreign name, in characters.
const LONGEST: usize = 160;
/// The longest foreign sentence, in characters: servers cut theirs far below, and what matters may stand at the end.
const LONGEST_SENTENCE: usize = 4000;
/// The most copies in progress that are listed for a route.
const COPIES_SHOWN: usize = 5;

/// All of it, for people.
pub(super) fn page(status: &v1::ReplicatorStatus) -> String {
    let now = status.snapshot_time.as_ref();
    let state = word(status.state().as_str_name(), "REPLICATOR_STATE_");
    let mut text = format!("{state}  {}\n", sentence(behind(&status.summary, &state.to_lowercase())));
    text.push_str(&format!(
        "blobferry {}, up {}; {}\n",
        said(&status.version),
        since(status.start_time.as_ref(), now).map_or_else(|| "?".to_owned(), span),
        queue(status.queue.as_ref()),
    ));
    for incident in status.queue.iter().flat_map(|queue| &queue.incidents) {
        text.push_str(&format!("  {}\n", sentence(&incident.summary)));
    }
    if status.routes.is_empty() {
        text.push_str("\nNo routes are configured.\n");
    } else {
        text.push('\n');
        text.push_str(&routes(&status.routes));
        for route in &status.routes {
            text.push_str(&route_details(route, now));
        }
    }
    if !status.peers.is_empty() {
        text.push('\n');
        text.push_str(&peers(&status.peers, now));
    }
    text
}

/// One line per route, for logs and pipes.
pub(super) fn short(status: &v1::ReplicatorStatus) -> String {
    let time = status.snapshot_time.as_ref().map_or_else(String::new, |time| format!("{time} "));
    let state = word(status.state().as_str_name(), "REPLICATOR_STATE_");
    if status.routes.is_empty() {
        return format!("{time}{state} no routes\n");
    }
    let mut text = String::new();
    for route in &status.routes {
        let backlog = route_backlog(route);
        text.push_str(&format!(
            "{time}{state} {} {} backlog {} parked {} lag {} {} {}\n",
            said(&route.name),
            word(route.state().as_str_name(), "ROUTE_STATE_"),
            number(backlog.waiting),
            number(backlog.parked),
            route.lag.as_ref().and_then(pb::std_duration).map_or_else(|| "?".to_owned(), span),
            rate(route.copied_blobs_per_second()),
            bytes_rate(route.copied_bytes_per_second()),
        ));
    }
    text
}

fn routes(routes: &[v1::RouteStatus]) -> String {
    let mut table = Table::new(
        &["ROUTE", "STATE", "LIMITED BY", "LAG", "READY", "COPYING", "RETRYING", "PARKED", "SIZE", "BLOBS", "BYTES"],
        3,
    );
    for route in routes {
        let sum = |pick: fn(&v1::LaneCounts) -> Option<&v1::Tally>| {
            lanes(route).filter_map(pick).map(v1::Tally::entries).sum::<u64>()
        };
        table.row(vec![
            said(&route.name),
            word(route.state().as_str_name(), "ROUTE_STATE_"),
            word(route.limiting_factor().as_str_name(), "LIMITING_FACTOR_"),
            route.lag.as_ref().and_then(pb::std_duration).map_or_else(|| "?".to_owned(), span),
            number(sum(|lane| lane.ready.as_ref())),
            number(sum(|lane| lane.claimed.as_ref())),
            number(sum(|lane| lane.retrying.as_ref())),
            number(sum(|lane| lane.parked.as_ref())),
            bytes(route_backlog(route).bytes),
            rate(route.copied_blobs_per_second()),
            bytes_rate(route.copied_bytes_per_second()),
        ]);
    }
    table.render("")
}

fn route_details(route: &v1::RouteStatus, now: Option<&Timestamp>) -> String {
    let mut text = format!("\n{}: {} -> {}\n", said(&route.name), said(&route.from), said(&route.to));
    let mut line = |what: &str| text.push_str(&format!("  {what}\n"));
    if !route.summary.is_empty() {
        line(&sentence(behind(&route.summary, &route.name)));
    }
    if let Some(limits) = &route.limits {
        limits.overrides.iter().for_each(|one| line(&override_line(limits, one)));
    }
    if let (Some(start), Some(all)) = (&route.since_start, &route.all_time) {
        line(&format!(
            "copied {}, {} since start; {}, {} in all",
            several(start.copied_blobs(), "blob"),
            bytes(start.copied_bytes()),
            several(all.copied_blobs(), "blob"),
            bytes(all.copied_bytes()),
        ));
    }
    if let Some(eta) = route.eta.as_ref().and_then(pb::std_duration).filter(|eta| !eta.is_zero()) {
        let growing = if route.backlog_growing() { ", and it grows" } else { "" };
        let eta =
            if eta < Duration::from_secs(1) { "within a second".to_owned() } else { format!("about {}", span(eta)) };
        line(&format!("{eta} for the backlog{growing}"));
    }
    for sync in route.running_sync.iter().chain(route.last_sync.as_ref()) {
        line(&sync_line(sync, now));
    }
    if let Some(needed) = &route.needed_sync {
        line(&needed_line(needed, now));
    }
    for copy in route.copies.iter().take(COPIES_SHOWN) {
        line(&copy_line(copy, now));
    }
    if let Some(more) = route.copies.len().checked_sub(COPIES_SHOWN + 1) {
        line(&format!("and {} more in progress", number(more as u64 + 1)));
    }
    for group in &route.recent_faults {
        line(&fault_line(group, now));
    }
    text
}

/// A full sync in one line.
pub(crate) fn sync_line(sync: &v1::FullSync, now: Option<&Timestamp>) -> String {
    let state = word(sync.state().as_str_name(), "FULL_SYNC_STATE_");
    let counts = sync.counts.unwrap_or_default();
    let when = match since(sync.end_time.as_ref(), now) {
        Some(ago) => format!(" {} ago", span(ago)),
        None => String::new(),
    };
    let failure = sync.failure.as_ref().map_or_else(String::new, |failure| format!("{}; ", fault(failure)));
    let mut text = format!(
        "full sync {} {state}{when}: {failure}compared {} with {}, missing {}, differing {}, in flight {}, confirmed {}",
        said(&sync.id),
        number(counts.source_blobs()),
        number(counts.destination_blobs()),
        number(counts.missing()),
        number(counts.differing()),
        number(counts.in_flight()),
        number(counts.confirmed()),
    );
    for (value, what) in [
        (counts.pending(), "pending"),
        (counts.parked(), "parked"),
        (counts.discarded(), "discarded"),
        (counts.extra_at_destination(), "only at the destination"),
    ] {
        if value > 0 {
            text.push_str(&format!(", {} {what}", number(value)));
        }
    }
    for unknown in &sync.unknown_functions {
        let blobs = unknown.source_blobs().saturating_add(unknown.destination_blobs());
        text.push_str(&format!("; {} of the unknown function {}", number(blobs), said(&unknown.function)));
    }
    text
}

fn needed_line(needed: &v1::NeededFullSync, now: Option<&Timestamp>) -> String {
    let next = needed.next_attempt_time.as_ref().zip(now).and_then(|(next, now)| since(Some(now), Some(next)));
    let next = next.map_or_else(String::new, |wait| format!(", begun in {}", span(wait)));
    let problem = match sentence(&needed.problem) {
        problem if problem.is_empty() => problem,
        problem => format!("; the last attempt: {problem}"),
    };
    format!("a full sync is needed{next}: {}{problem}", sentence(&needed.reason))
}

fn copy_line(copy: &v1::CopyInProgress, now: Option<&Timestamp>) -> String {
    let stage = word(copy.stage().as_str_name(), "COPY_STAGE_").to_lowercase();
    let whole = copy.size_bytes.map_or_else(|| "?".to_owned(), bytes);
    let age = since(copy.start_time.as_ref(), now).map_or_else(String::new, |age| format!(", for {}", span(age)));
    let attempt = if copy.attempt > 1 { format!(", attempt {}", copy.attempt) } else { String::new() };
    let repair = if copy.repair { ", a repair" } else { "" };
    let others = match copy.blobs().saturating_sub(1) {
        0 => String::new(),
        others => format!(" and {} more", number(others)),
    };
    format!("{}{others} {stage}, {} of {whole}{age}{attempt}{repair}", said(&copy.r#ref), bytes(copy.bytes()))
}

fn fault_line(group: &v1::FaultGroup, now: Option<&Timestamp>) -> String {
    let cause = group.fault.as_ref().map_or_else(|| "unknown cause".to_owned(), fault);
    let ago = since(group.last_time.as_ref(), now).map_or_else(String::new, |ago| format!(", last {} ago", span(ago)));
    let example =
        if group.example_ref.is_empty() { String::new() } else { format!(", such as {}", said(&group.example_ref)) };
    format!("{} x {cause}{ago}{example}", number(group.count()))
}

fn fault(fault: &v1::Fault) -> String {
    // Without a kind nothing was at fault, such as with what was cut by a shutdown.
    let kind = match fault.kind() {
        v1::FaultKind::Unspecified => String::new(),
        kind => word(kind.as_str_name(), "FAULT_KIND_").to_lowercase().replace('_', " "),
    };
    let peer = match said(&fault.peer) {
        peer if peer.is_empty() || kind.split(' ').any(|word| word == peer) => String::new(),
        // Some kinds name the side already.
        peer if kind.contains(" at ") => format!(" ({peer})"),
        peer => format!(" at {peer}"),
    };
    let code = if fault.code.is_empty() { String::new() } else { format!(" [{}]", said(&fault.code)) };
    match format!("{kind}{peer}{code}").trim_start() {
        "" => sentence(&fault.message),
        cause => format!("{cause}: {}", sentence(&fault.message)),
    }
}

fn peers(peers: &[v1::PeerStatus], now: Option<&Timestamp>) -> String {
    let mut table = Table::new(&["PEER", "HEALTH", "BREAKER", "ENDPOINT", "STORE ID", "SOFTWARE"], 6);
    let mut notes = String::new();
    for peer in peers {
        let info = peer.peer_info.clone().unwrap_or_default();
        let breaker = peer.breaker.as_ref();
        let state = breaker.map(v1::Breaker::state).unwrap_or_default();
        let age = breaker.and_then(|breaker| since(breaker.since_time.as_ref(), now));
        let opened = age.filter(|_| state != v1::BreakerState::Closed);
        table.row(vec![
            said(&peer.name),
            word(peer.health().as_str_name(), "PEER_HEALTH_"),
            opened.map_or_else(
                || word(state.as_str_name(), "BREAKER_STATE_"),
                |age| format!("{} for {}", word(state.as_str_name(), "BREAKER_STATE_"), span(age)),
            ),
            said(&peer.endpoint),
            if info.store_id.is_empty() { "-".to_owned() } else { said(&info.store_id) },
            if info.version.is_empty() { "-".to_owned() } else { said(&info.version) },
        ]);
        let is_fine = peer.health() == v1::PeerHealth::Reachable && state == v1::BreakerState::Closed;
        if !is_fine && !peer.summary.is_empty() {
            notes.push_str(&format!("  {}: {}\n", said(&peer.name), sentence(behind(&peer.summary, &peer.name))));
        }
    }
    table.render("") + &notes
}

fn queue(queue: Option<&v1::QueueStatus>) -> String {
    let Some(queue) = queue else {
        return "queue unknown".to_owned();
    };
    let state = word(queue.state().as_str_name(), "QUEUE_STATE_");
    let entries = several(queue.entries(), "entry");
    let free = queue.free_bytes.map_or_else(String::new, |free| format!(", {} free", bytes(free)));
    let reason = if queue.reason.is_empty() { String::new() } else { format!(": {}", sentence(&queue.reason)) };
    format!("queue {state}, {entries}{free}{reason}")
}

/// What still waits on a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RouteBacklog {
    /// Entries that are ready, being copied or retrying.
    pub(crate) waiting: u64,
    /// The sum of their known sizes, in bytes.
    pub(crate) bytes: u64,
    /// Those of them that failed at least once.
    pub(crate) retrying: u64,
    /// Entries that were given up.
    pub(crate) parked: u64,
}

/// What still waits on this route, in both lanes.
pub(crate) fn route_backlog(route: &v1::RouteStatus) -> RouteBacklog {
    let mut backlog = RouteBacklog::default();
    for lane in lanes(route) {
        for tally in [&lane.ready, &lane.claimed, &lane.retrying].into_iter().flatten() {
            backlog.waiting = backlog.waiting.saturating_add(tally.entries());
            backlog.bytes = backlog.bytes.saturating_add(tally.bytes());
        }
        backlog.retrying = backlog.retrying.saturating_add(lane.retrying.map_or(0, |tally| tally.entries()));
        backlog.parked = backlog.parked.saturating_add(lane.parked.map_or(0, |tally| tally.entries()));
    }
    backlog
}

fn lanes(route: &v1::RouteStatus) -> impl Iterator<Item = &v1::LaneCounts> {
    route.queued.iter().flat_map(|queued| queued.fresh.iter().chain(&queued.backfill))
}

/// An enum's value without its prefix; the unspecified one is a question mark.
fn word(name: &str, prefix: &str) -> String {
    match name.strip_prefix(prefix).unwrap_or(name) {
        "UNSPECIFIED" => "?".to_owned(),
        word => word.to_owned(),
    }
}

/// A sentence without the word that it begins with, where the word stands beside it already.
fn behind<'a>(sentence: &'a str, word: &str) -> &'a str {
    sentence.strip_prefix(word).and_then(|rest| rest.strip_prefix(": ")).unwrap_or(sentence)
}

fn said(text: &str) -> String {
    plain(text, LONGEST)
}

fn sentence(text: &str) -> String {
    plain(&cause(text), LONGEST_SENTENCE)
}

/// From then to now; nothing if either is missing, zero if then is later.
fn since(then: Option<&Timestamp>, now: Option<&Timestamp>) -> Option<Duration> {
    let (then, now) = (pb::system_time(then?)?, pb::system_time(now?)?);
    Some(now.duration_since(then).unwrap_or(Duration::ZERO))
}

#[cfg(test)]
mod tests;
