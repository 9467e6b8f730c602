//! The routes, their stores, and their full syncs.

use super::MetricsParts;
use crate::metrics::{CopyMetrics, Family, Histogram, MetricKind, Text};
use crate::queue::{Lane, LaneCounts, Tally};
use crate::status::{LimitingFactor, PeerHealth, ReplicatorStatus, RouteState, RouteStatus};
use crate::sync::{SyncRecord, SyncState};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use MetricKind::{Counter, Gauge};

const ROUTE_STATES: [&str; 12] = [
    "in_sync",
    "copying",
    "syncing",
    "parked",
    "retrying",
    "blocked",
    "degraded",
    "paused",
    "draining",
    "disabled",
    "orphaned",
    "needs_sync",
];

const fn route_state(state: RouteState) -> &'static str {
    ROUTE_STATES[match state {
        RouteState::InSync => 0,
        RouteState::Copying => 1,
        RouteState::Syncing => 2,
        RouteState::Parked => 3,
        RouteState::Retrying => 4,
        RouteState::Blocked => 5,
        RouteState::Degraded => 6,
        RouteState::Paused => 7,
        RouteState::Draining => 8,
        RouteState::Disabled => 9,
        RouteState::Orphaned => 10,
        RouteState::NeedsSync => 11,
    }]
}

const FACTORS: [&str; 10] = [
    "unknown",
    "idle",
    "paused",
    "rate_limit",
    "workers",
    "source_slow",
    "destination_slow",
    "breaker",
    "queue_disk",
    "peer_overloaded",
];

const fn factor(factor: Option<LimitingFactor>) -> &'static str {
    FACTORS[match factor {
        None => 0,
        Some(LimitingFactor::Idle) => 1,
        Some(LimitingFactor::Paused) => 2,
        Some(LimitingFactor::RateLimit) => 3,
        Some(LimitingFactor::Workers) => 4,
        Some(LimitingFactor::SourceSlow) => 5,
        Some(LimitingFactor::DestinationSlow) => 6,
        Some(LimitingFactor::Breaker) => 7,
        Some(LimitingFactor::QueueDisk) => 8,
        Some(LimitingFactor::PeerOverloaded) => 9,
    }]
}

const HEALTHS: [&str; 4] = ["unknown", "reachable", "unreachable", "unsuitable"];

const fn health(health: PeerHealth) -> &'static str {
    HEALTHS[match health {
        PeerHealth::Unknown => 0,
        PeerHealth::Reachable => 1,
        PeerHealth::Unreachable => 2,
        PeerHealth::Unsuitable => 3,
    }]
}

const PHASES: [&str; 3] = ["closed", "open", "probing"];

const fn lane(lane: Lane) -> &'static str {
    match lane {
        Lane::Fresh => "fresh",
        Lane::Backfill => "backfill",
    }
}

pub(super) fn write(text: &mut Text, status: &ReplicatorStatus, parts: &MetricsParts) {
    write_entries(text, status);
    write_ages(text, status);
    write_totals(text, status);
    write_copies(text, &parts.copies);
    write_states(text, status);
    write_limits(text, status);
    write_syncs(text, status, parts);
    write_peers(text, status);
}

/// A family with one sample for each route that has one.
fn each(
    text: &mut Text,
    status: &ReplicatorStatus,
    (name, kind, help): (&'static str, MetricKind, &str),
    value: impl Fn(&RouteStatus) -> Option<f64>,
) {
    let mut family = text.family(name, kind, help);
    for route in &status.routes {
        if let Some(value) = value(route) {
            family.sample(&[("route", &route.route.name)], value);
        }
    }
}

fn write_entries(text: &mut Text, status: &ReplicatorStatus) {
    let mut tallies = |name: &'static str, help: &str, value: fn(&Tally) -> u64| {
        let mut family = text.family(name, Gauge, help);
        for route in &status.routes {
            for (of, counts) in [(Lane::Fresh, &route.counts.fresh), (Lane::Backfill, &route.counts.backfill)] {
                for (state, tally) in states(counts) {
                    let labels = [("route", &*route.route.name), ("lane", lane(of)), ("state", state)];
                    family.sample(&labels, value(tally));
                }
            }
        }
    };
    tallies("blobferry_route_entries", "Entries in the queue.", |tally| tally.entries);
    tallies("blobferry_route_entry_bytes", "The sum of the known sizes of their blobs.", |tally| tally.bytes);
    tallies("blobferry_route_unsized_entries", "Those whose blob's size is not known.", |tally| tally.unknown_size);
}

fn states(counts: &LaneCounts) -> [(&'static str, &Tally); 4] {
    let LaneCounts { ready, claimed, retrying, parked } = counts;
    [("ready", ready), ("claimed", claimed), ("retrying", retrying), ("parked", parked)]
}

fn write_ages(text: &mut Text, status: &ReplicatorStatus) {
    let lag =
        ("blobferry_route_lag_seconds", Gauge, "Age of the oldest fresh entry that is ready or claimed; 0: none is.");
    each(text, status, lag, |route| Some(route.backlog.lag.as_secs_f64()));
    let backfill = (
        "blobferry_route_backfill_age_seconds",
        Gauge,
        "Age of the oldest backfill entry that is ready or claimed; 0: none is.",
    );
    each(text, status, backfill, |route| Some(route.oldest_backfill_age.unwrap_or_default().as_secs_f64()));
    let retrying = (
        "blobferry_route_retrying_age_seconds",
        Gauge,
        "Age of the oldest retrying entry; 0: none retries; absent: not known, because very many do.",
    );
    each(text, status, retrying, |route| {
        let none = [&route.counts.fresh, &route.counts.backfill].iter().all(|lane| lane.retrying.entries == 0);
        let age = route.oldest_retrying_age.or(none.then_some(Duration::ZERO));
        age.map(|age| age.as_secs_f64())
    });
    let parked = ("blobferry_route_parked_age_seconds", Gauge, "Age of the oldest parked entry; 0: none is parked.");
    each(text, status, parked, |route| Some(route.oldest_parked_age.unwrap_or_default().as_secs_f64()));
    let retry = (
        "blobferry_route_next_retry_timestamp_seconds",
        Gauge,
        "When the next retrying entry is due, in seconds since 1970; absent: none retries.",
    );
    each(text, status, retry, |route| route.next_retry_time.map(seconds));
    let eta = (
        "blobferry_route_eta_seconds",
        Gauge,
        "How long the backlog will take at the present rate; absent where that is not known.",
    );
    each(text, status, eta, |route| route.eta.map(|eta| eta.as_secs_f64()));
    let growing =
        ("blobferry_route_backlog_growing", Gauge, "Whether the backlog grows; absent where that is not known.");
    each(text, status, growing, |route| route.trend.growing.map(|growing| if growing { 1.0 } else { 0.0 }));
}

fn write_totals(text: &mut Text, status: &ReplicatorStatus) {
    let mut total = |name: &'static str, help: &str, value: fn(&RouteStatus) -> u64| {
        let mut family = text.family(name, Counter, help);
        for route in &status.routes {
            family.sample(&[("route", &route.route.name)], value(route));
        }
    };
    total("blobferry_route_confirmed_blobs", "Entries confirmed since the queue was made.", |route| {
        route.counts.confirmed
    });
    total("blobferry_route_copied_blobs", "Those for which bytes were sent.", |route| route.counts.copied);
    total("blobferry_route_copied_bytes", "The bytes sent for them.", |route| route.counts.copied_bytes);
    total("blobferry_route_discarded_blobs", "Entries discarded since the queue was made.", |route| {
        route.counts.discarded
    });
}

fn write_copies(text: &mut Text, copies: &[(Arc<str>, Arc<CopyMetrics>)]) {
    let help = "From a blob's announcement, or its finding by a sync, to its confirmation.";
    let mut family = text.family("blobferry_route_confirmation_lag_seconds", MetricKind::Histogram, help);
    for (route, copies) in copies {
        for (of, lag) in [(Lane::Fresh, &copies.fresh_lag), (Lane::Backfill, &copies.backfill_lag)] {
            family.histogram(&[("route", route), ("lane", lane(of))], &lag.read());
        }
    }
    let mut waits = |name: &'static str, help: &str, of: fn(&CopyMetrics) -> &Histogram| {
        let mut family = text.family(name, MetricKind::Histogram, help);
        for (route, copies) in copies {
            family.histogram(&[("route", route)], &of(copies).read());
        }
    };
    waits("blobferry_route_fetch_duration_seconds", "How long a copy waited for its source.", |of| &of.fetch);
    waits("blobferry_route_write_duration_seconds", "How long a copy waited for its destination.", |of| &of.write);
    let help = "Attempts that failed, by kind and by the store at fault, charged to their entry or not.";
    let mut family = text.family("blobferry_route_failures", Counter, help);
    for (route, copies) in copies {
        for (kind, peer, count) in copies.failures() {
            family.sample(&[("route", route), ("kind", kind.as_str()), ("peer", peer)], count);
        }
    }
    let mut charged = |name: &'static str, help: &str, of: fn(&CopyMetrics) -> u64| {
        let mut family = text.family(name, Counter, help);
        for (route, copies) in copies {
            family.sample(&[("route", route)], of(copies));
        }
    };
    charged(
        "blobferry_route_retries",
        "Failed attempts whose entry waits to be tried again, charged to it or not.",
        |of| of.charged().0,
    );
    charged("blobferry_route_parkings", "Entries that were given up until somebody revives them.", |of| of.charged().1);
}

fn write_states(text: &mut Text, status: &ReplicatorStatus) {
    let mut family = text.family("blobferry_route_state", Gauge, "1 for the state that Status tells of the route.");
    for route in &status.routes {
        family.states(&[("route", &route.route.name)], "state", ROUTE_STATES, route_state(route.state));
    }
    let mut family = text.family("blobferry_route_limiting_factor", Gauge, "1 for what holds the route back most.");
    for route in &status.routes {
        family.states(&[("route", &route.route.name)], "factor", FACTORS, factor(route.limiting));
    }
}

fn write_limits(text: &mut Text, status: &ReplicatorStatus) {
    let paused = ("blobferry_route_paused", Gauge, "Whether an operator has paused the route.");
    each(text, status, paused, |route| Some(if route.limits.limits.paused { 1.0 } else { 0.0 }));
    let workers = ("blobferry_route_workers", Gauge, "How many blobs may be copied at a time.");
    each(text, status, workers, |route| Some(precise(route.limits.limits.workers as u64)));
    let bytes = (
        "blobferry_route_limit_bytes_per_second",
        Gauge,
        "How many bytes may be copied in a second; absent: no limit.",
    );
    each(text, status, bytes, |route| route.limits.limits.bytes_per_second.map(precise));
    let blobs = (
        "blobferry_route_limit_blobs_per_second",
        Gauge,
        "How many blobs may be copied in a second; absent: no limit.",
    );
    each(text, status, blobs, |route| route.limits.limits.blobs_per_second.map(|rate| rate.per_second()));
}

fn write_syncs(text: &mut Text, status: &ReplicatorStatus, parts: &MetricsParts) {
    let running = ("blobferry_route_sync_running", Gauge, "Whether a full sync of the route runs.");
    each(text, status, running, |route| Some(if route.running_sync.is_some() { 1.0 } else { 0.0 }));
    let needed =
        ("blobferry_route_sync_needed", Gauge, "Whether the route needs a full sync that has not completed yet.");
    each(text, status, needed, |route| Some(if route.needed_sync.is_some() { 1.0 } else { 0.0 }));
    let mut family =
        text.family("blobferry_route_syncs", Counter, "Full syncs that have ended since this process started, by how.");
    for route in &status.routes {
        for (state, count) in parts.syncs.ended(&route.route.name) {
            family.sample(&[("route", &route.route.name), ("state", state.as_str())], count);
        }
    }
    let ended = (
        "blobferry_route_last_sync_timestamp_seconds",
        Gauge,
        "When the last full sync ended, whatever came of it, in seconds since 1970; absent: there was none.",
    );
    each(text, status, ended, |route| route.last_sync.as_ref().and_then(|sync| sync.end_time).map(seconds));
    let whole = |route: &RouteStatus| route.last_sync.as_ref().filter(|sync| is_whole(sync)).cloned();
    let compared = (
        "blobferry_route_last_sync_source_blobs",
        Gauge,
        "Blobs that the source held at the last full sync; absent where that did not see all of it.",
    );
    each(text, status, compared, |route| whole(route).map(|sync| precise(sync.counts.source_blobs)));
    let help = "Blobs that differed at the last full sync, by how; absent where that did not see both stores whole.";
    let mut family = text.family("blobferry_route_last_sync_found_blobs", Gauge, help);
    for route in &status.routes {
        if let Some(sync) = whole(route) {
            found(&mut family, &route.route.name, &sync);
        }
    }
}

fn found(family: &mut Family<'_>, route: &str, sync: &SyncRecord) {
    let counts = &sync.counts;
    let kinds = [
        ("missing", counts.missing),
        ("differing", counts.differing),
        ("in_flight", counts.in_flight),
        ("extra", counts.extra),
    ];
    for (finding, blobs) in kinds {
        family.sample(&[("route", route), ("finding", finding)], blobs);
    }
}

/// Whether it saw both stores from one end to the other.
fn is_whole(sync: &SyncRecord) -> bool {
    sync.prefix.is_empty() && matches!(sync.state, SyncState::Completed | SyncState::CompletedWithFailures)
}

fn write_peers(text: &mut Text, status: &ReplicatorStatus) {
    let mut family = text.family("blobferry_peer_breaker_state", Gauge, "1 for the state of the store's breaker.");
    for peer in &status.peers {
        let labels = [("peer", &*peer.snapshot.name)];
        family.states(&labels, "state", PHASES, peer.snapshot.phase.as_str());
    }
    let mut family = text.family("blobferry_peer_health", Gauge, "1 for what Status tells of the store.");
    for peer in &status.peers {
        family.states(&[("peer", &*peer.snapshot.name)], "health", HEALTHS, health(peer.health));
    }
    let help = "When the store last answered as it should, in seconds since 1970; absent: it never did.";
    let mut family = text.family("blobferry_peer_last_contact_timestamp_seconds", Gauge, help);
    for peer in &status.peers {
        if let Some(time) = peer.snapshot.last_contact {
            family.sample(&[("peer", &*peer.snapshot.name)], seconds(time));
        }
    }
    let help = "Failures of the store since its last success.";
    let mut family = text.family("blobferry_peer_consecutive_failures", Gauge, help);
    for peer in &status.peers {
        family.sample(&[("peer", &*peer.snapshot.name)], peer.snapshot.failures);
    }
}

/// Seconds since 1970.
fn seconds(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

#[expect(clippy::cast_precision_loss, reason = "no limit or store is so large that a blob more or less would show")]
fn precise(number: u64) -> f64 {
    number as f64
}
