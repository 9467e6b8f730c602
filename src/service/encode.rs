//! Pictures, records and outcomes, as the wire has them. Counters are always set, so that zeros show in JSON.

use crate::announce::Backlog;
use crate::breaker::Phase;
use crate::copy::Stage;
use crate::fault::FaultKind;
use crate::limits::{BlobRate, Limits};
use crate::overrides::InForce;
use crate::pb::v1::LimitSettings;
use crate::pb::{duration, timestamp, v1};
use crate::peer::PeerSnapshot;
use crate::queue::damage::{Incident, Mending};
use crate::queue::{Lane, LaneCounts, Pushed, RouteCounts, Tally};
use crate::status::{
    LimitingFactor, PeerHealth, PeerStatus, QueueState, QueueStatus, ReplicatorState, ReplicatorStatus, RouteState,
    RouteStatus, Totals, incident_text,
};
use crate::store::{Abilities, PeerKind, StoreInfo, code_name};
use crate::sync::{SyncMode, SyncRecord, SyncState, UnknownFunction};
use crate::worker::{ErrorGroup, InProgress};
use std::sync::Arc;
use std::time::SystemTime;

pub(super) fn push_outcome(pushed: Pushed) -> v1::PushOutcome {
    match pushed {
        Pushed::Added => v1::PushOutcome::Added,
        Pushed::AlreadyQueued => v1::PushOutcome::AlreadyQueued,
        Pushed::Hastened => v1::PushOutcome::Hastened,
        Pushed::Revived => v1::PushOutcome::Revived,
        Pushed::SuccessorQueued => v1::PushOutcome::SuccessorQueued,
    }
}

pub(super) fn route_pushes(routes: &[(Arc<str>, Backlog)], pushed: &[Pushed]) -> Vec<v1::RoutePush> {
    let pairs = routes.iter().zip(pushed);
    pairs
        .map(|((route, _), pushed)| v1::RoutePush { route: route.to_string(), outcome: push_outcome(*pushed).into() })
        .collect()
}

pub(super) fn backlog(backlog: &Backlog) -> v1::Backlog {
    v1::Backlog {
        entries: Some(backlog.tally.entries),
        bytes: Some(backlog.tally.bytes),
        unknown_size_entries: Some(backlog.tally.unknown_size),
        lag: Some(duration(backlog.lag)),
    }
}

pub(super) fn backlogs(routes: &[(Arc<str>, Backlog)]) -> Vec<v1::RouteBacklog> {
    let encode =
        |(route, of): &(Arc<str>, Backlog)| v1::RouteBacklog { route: route.to_string(), backlog: Some(backlog(of)) };
    routes.iter().map(encode).collect()
}

/// The picture as Status answers it.
pub(crate) fn replicator(status: &ReplicatorStatus) -> v1::ReplicatorStatus {
    let state = match status.state {
        ReplicatorState::Ok => v1::ReplicatorState::Ok,
        ReplicatorState::Attention => v1::ReplicatorState::Attention,
        ReplicatorState::Degraded => v1::ReplicatorState::Degraded,
        ReplicatorState::NotAccepting => v1::ReplicatorState::NotAccepting,
        ReplicatorState::Draining => v1::ReplicatorState::Draining,
    };
    v1::ReplicatorStatus {
        summary: status.summary.clone(),
        state: state.into(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        start_time: Some(timestamp(status.start_time)),
        snapshot_time: Some(timestamp(status.snapshot_time)),
        routes: status.routes.iter().map(route).collect(),
        peers: status.peers.iter().map(peer).collect(),
        queue: Some(queue(&status.queue, status.snapshot_time)),
        log_lines_lost: Some(status.log_lines_lost),
    }
}

fn route(status: &RouteStatus) -> v1::RouteStatus {
    let state = match status.state {
        RouteState::InSync => v1::RouteState::InSync,
        RouteState::Copying => v1::RouteState::Copying,
        RouteState::Syncing => v1::RouteState::Syncing,
        RouteState::NeedsSync => v1::RouteState::NeedsSync,
        RouteState::Parked => v1::RouteState::Parked,
        RouteState::Retrying => v1::RouteState::Retrying,
        RouteState::Blocked => v1::RouteState::Blocked,
        RouteState::Paused => v1::RouteState::Paused,
        RouteState::Degraded => v1::RouteState::Degraded,
        RouteState::Draining => v1::RouteState::Draining,
        RouteState::Disabled => v1::RouteState::Disabled,
        RouteState::Orphaned => v1::RouteState::Orphaned,
    };
    let limiting = match status.limiting {
        None => v1::LimitingFactor::Unspecified,
        Some(LimitingFactor::Idle) => v1::LimitingFactor::Idle,
        Some(LimitingFactor::Paused) => v1::LimitingFactor::Paused,
        Some(LimitingFactor::RateLimit) => v1::LimitingFactor::RateLimit,
        Some(LimitingFactor::Workers) => v1::LimitingFactor::Workers,
        Some(LimitingFactor::SourceSlow) => v1::LimitingFactor::SourceSlow,
        Some(LimitingFactor::DestinationSlow) => v1::LimitingFactor::DestinationSlow,
        Some(LimitingFactor::Breaker) => v1::LimitingFactor::Breaker,
        Some(LimitingFactor::PeerOverloaded) => v1::LimitingFactor::PeerOverloaded,
        Some(LimitingFactor::QueueDisk) => v1::LimitingFactor::QueueDisk,
    };
    let RouteCounts { confirmed, copied, copied_bytes, discarded, .. } = status.counts;
    v1::RouteStatus {
        name: status.route.name.to_string(),
        summary: status.sentence.to_string(),
        state: state.into(),
        from: status.route.from.to_string(),
        to: status.route.to.to_string(),
        lag: Some(duration(status.backlog.lag)),
        oldest_backfill_age: status.oldest_backfill_age.map(duration),
        oldest_retrying_age: status.oldest_retrying_age.map(duration),
        oldest_parked_age: status.oldest_parked_age.map(duration),
        next_retry_time: status.next_retry_time.map(timestamp),
        limiting_factor: limiting.into(),
        backlog_growing: status.trend.growing,
        copied_blobs_per_second: Some(status.trend.blobs_per_second),
        copied_bytes_per_second: Some(status.trend.bytes_per_second),
        eta: status.eta.map(duration),
        queued: Some(v1::QueueCounts {
            fresh: Some(lane_counts(&status.counts.fresh)),
            backfill: Some(lane_counts(&status.counts.backfill)),
        }),
        since_start: Some(totals(&status.since_start)),
        all_time: Some(totals(&Totals { confirmed, copied, copied_bytes, discarded, failed_attempts: None })),
        copies: status.copies.iter().map(copy).collect(),
        recent_faults: status.faults.iter().map(fault_group).collect(),
        limits: Some(limits(&status.limits)),
        running_sync: status.running_sync.as_ref().map(full_sync),
        last_sync: status.last_sync.as_ref().map(full_sync),
        needed_sync: status.needed_sync.as_ref().map(|needed| v1::NeededFullSync {
            reason: needed.reason.clone(),
            problem: needed.problem.clone(),
            next_attempt_time: needed.next_time.map(timestamp),
        }),
    }
}

pub(super) fn limits(in_force: &InForce) -> v1::RouteLimits {
    let LimitSettings { workers, bytes_per_second, blobs_per_second } = limit_settings(&in_force.limits);
    let overrides = in_force.overrides.iter().map(|(value, stamp)| v1::LimitOverride {
        setting: value.setting().as_str().to_owned(),
        set_by: stamp.set_by.clone(),
        set_time: Some(timestamp(stamp.set_time)),
        expire_time: stamp.expire_time.map(timestamp),
        reason: stamp.reason.clone(),
    });
    v1::RouteLimits {
        workers,
        bytes_per_second,
        blobs_per_second,
        paused: Some(in_force.limits.paused),
        overrides: overrides.collect(),
        configured: Some(limit_settings(&in_force.configured)),
    }
}

fn limit_settings(limits: &Limits) -> LimitSettings {
    LimitSettings {
        workers: Some(u32::try_from(limits.workers).unwrap_or(u32::MAX)),
        bytes_per_second: limits.bytes_per_second,
        blobs_per_second: limits.blobs_per_second.map(BlobRate::per_second),
    }
}

fn lane_counts(counts: &LaneCounts) -> v1::LaneCounts {
    v1::LaneCounts {
        ready: Some(tally(&counts.ready)),
        claimed: Some(tally(&counts.claimed)),
        retrying: Some(tally(&counts.retrying)),
        parked: Some(tally(&counts.parked)),
    }
}

fn tally(tally: &Tally) -> v1::Tally {
    v1::Tally { entries: Some(tally.entries), bytes: Some(tally.bytes), unknown_size_entries: Some(tally.unknown_size) }
}

fn totals(totals: &Totals) -> v1::RouteTotals {
    v1::RouteTotals {
        confirmed_blobs: Some(totals.confirmed),
        copied_blobs: Some(totals.copied),
        copied_bytes: Some(totals.copied_bytes),
        discarded_blobs: Some(totals.discarded),
        failed_attempts: totals.failed_attempts,
    }
}

pub(super) fn copy(copy: &InProgress) -> v1::CopyInProgress {
    let stage = match copy.stage {
        Stage::Asking | Stage::Fetching => v1::CopyStage::Opening,
        Stage::Writing => v1::CopyStage::Streaming,
        Stage::Confirming | Stage::Verifying => v1::CopyStage::Confirming,
        Stage::Settling => v1::CopyStage::Settling,
    };
    let lane = match copy.lane {
        Lane::Fresh => v1::Lane::Fresh,
        Lane::Backfill => v1::Lane::Backfill,
    };
    v1::CopyInProgress {
        r#ref: copy.blob.to_string(),
        stage: stage.into(),
        bytes: Some(copy.bytes),
        size_bytes: copy.size,
        start_time: Some(timestamp(copy.start)),
        attempt: copy.attempt,
        lane: lane.into(),
        repair: copy.repair,
        blobs: Some(copy.blobs),
    }
}

fn fault_group(group: &ErrorGroup) -> v1::FaultGroup {
    let fault = v1::Fault {
        kind: fault_kind(Some(group.kind)),
        peer: group.peer.to_string(),
        code: group.code.map(code_name).unwrap_or_default().to_owned(),
        message: group.message.clone(),
        time: Some(timestamp(group.last)),
    };
    v1::FaultGroup {
        fault: Some(fault),
        count: Some(group.count),
        first_time: Some(timestamp(group.first)),
        last_time: Some(timestamp(group.last)),
        example_ref: group.example.map(|blob| blob.to_string()).unwrap_or_default(),
        charged_count: Some(group.charged),
    }
}

/// The numbers are the same on the wire; a test in `pb` holds them to it.
pub(super) fn fault_kind(kind: Option<FaultKind>) -> i32 {
    kind.map_or(0, |kind| i32::from(kind.number()))
}

fn peer(status: &PeerStatus) -> v1::PeerStatus {
    let PeerSnapshot { name, info, phase, reason, since, next_probe, last_error, openings, answers, .. } =
        &status.snapshot;
    let count = |copies: usize| u32::try_from(copies).unwrap_or(u32::MAX);
    let health = match status.health {
        PeerHealth::Unknown => v1::PeerHealth::Unspecified,
        PeerHealth::Reachable => v1::PeerHealth::Reachable,
        PeerHealth::Unreachable => v1::PeerHealth::Unreachable,
        PeerHealth::Unsuitable => v1::PeerHealth::Unsuitable,
    };
    let state = match phase {
        Phase::Closed => v1::BreakerState::Closed,
        Phase::Open => v1::BreakerState::Open,
        Phase::Probing => v1::BreakerState::HalfOpen,
    };
    let peer_fault = |kind, message: &str, time: SystemTime| v1::Fault {
        kind: fault_kind(Some(kind)),
        peer: name.to_string(),
        code: String::new(),
        message: message.to_owned(),
        time: Some(timestamp(time)),
    };
    v1::PeerStatus {
        name: name.to_string(),
        summary: status.summary.clone(),
        health: health.into(),
        endpoint: status.endpoint.clone(),
        peer_info: info.as_ref().map(peer_info),
        peer_info_time: status.snapshot.info_time.map(timestamp),
        store_id_checked: info.as_ref().map(|info| info.store_id.is_some()),
        breaker: Some(v1::Breaker {
            state: state.into(),
            reason: reason.as_ref().map(|reason| reason.message.clone()).unwrap_or_default(),
            since_time: Some(timestamp(*since)),
            next_probe_time: next_probe.map(timestamp),
            cause: reason.as_ref().map(|reason| peer_fault(reason.kind, &reason.message, *since)),
            openings: *openings,
        }),
        expected_store_id: status.snapshot.store_id.clone().unwrap_or_default(),
        last_fault: last_error.as_ref().map(|(reason, time)| peer_fault(reason.kind, &reason.message, *time)),
        copies_in_flight: count(status.snapshot.copies),
        concurrency_limit: status.snapshot.concurrency_limit.map(count),
        last_refusal_time: status.snapshot.last_refusal.map(timestamp),
        answers: *answers,
    }
}

fn peer_info(info: &StoreInfo) -> v1::PeerInfo {
    let kind = match info.kind {
        PeerKind::Store => v1::PeerKind::Store,
        PeerKind::ReceiveOnly => v1::PeerKind::ReceiveOnly,
        PeerKind::Replicator => v1::PeerKind::Replicator,
    };
    let Abilities { stat, fetch, enumerate, replace, packed, verify } = info.abilities;
    let abilities = [
        (stat, v1::Ability::Stat),
        (enumerate, v1::Ability::Enumerate),
        (fetch, v1::Ability::Fetch),
        (packed, v1::Ability::Packed),
        (replace, v1::Ability::Replace),
        (verify, v1::Ability::Verify),
    ];
    v1::PeerInfo {
        store_id: info.store_id.clone().unwrap_or_default(),
        kind: kind.into(),
        version: info.version.clone(),
        digest_functions: info.functions.iter().map(|function| function.name().to_owned()).collect(),
        max_blob_bytes: info.max_blob_bytes,
        max_message_bytes: info.max_message_bytes,
        abilities: abilities.into_iter().filter(|(has, _)| *has).map(|(_, ability)| ability.into()).collect(),
        max_packed_bytes: info.max_packed_bytes,
    }
}

fn queue(status: &QueueStatus, now: SystemTime) -> v1::QueueStatus {
    let state = match status.state {
        QueueState::Ok => v1::QueueState::Ok,
        QueueState::Full => v1::QueueState::Full,
        QueueState::Failing => v1::QueueState::Failing,
        QueueState::Degraded => v1::QueueState::Degraded,
    };
    v1::QueueStatus {
        summary: status.sentence.to_string(),
        state: state.into(),
        reason: status.reason.clone(),
        entries: Some(status.entries),
        max_entries: Some(status.max_entries),
        parked_entries: Some(status.parked),
        max_parked_entries: Some(status.max_parked),
        free_bytes: status.free_bytes,
        reserve_bytes: Some(status.reserve_bytes),
        incidents: status.incidents.iter().map(|incident| self::incident(incident, now)).collect(),
        damage: status.damage.clone(),
    }
}

fn incident(incident: &Incident, now: SystemTime) -> v1::QueueIncident {
    let kind = match incident.mending {
        Mending::CutBack => v1::QueueIncidentKind::CutBack,
        Mending::BegunAnew => v1::QueueIncidentKind::BegunAnew,
    };
    v1::QueueIncident {
        summary: incident_text(incident, now),
        kind: kind.into(),
        cause: incident.what.clone(),
        time: Some(timestamp(incident.time)),
        kept_folder: incident.kept.clone(),
        lost_from_time: incident.lost_from.map(timestamp),
    }
}

pub(super) fn full_sync(record: &SyncRecord) -> v1::FullSync {
    let state = match record.state {
        SyncState::Running => v1::FullSyncState::Running,
        SyncState::Completed => v1::FullSyncState::Completed,
        SyncState::CompletedWithFailures => v1::FullSyncState::CompletedWithFailures,
        SyncState::Failed => v1::FullSyncState::Failed,
        SyncState::Cancelled => v1::FullSyncState::Cancelled,
    };
    let mode = match record.mode {
        SyncMode::Copy => v1::FullSyncMode::Copy,
        SyncMode::Compare | SyncMode::Verify => v1::FullSyncMode::Unspecified,
    };
    let failure = record.failure.as_ref().map(|failure| v1::Fault {
        kind: fault_kind(failure.kind),
        peer: failure.peer.clone(),
        code: failure.code.map(code_name).unwrap_or_default().to_owned(),
        message: failure.message.clone(),
        time: record.end_time.map(timestamp),
    });
    let (counts, tally) = (&record.counts, &record.tally);
    v1::FullSync {
        id: record.id.to_string(),
        summary: record.summary(),
        state: state.into(),
        route: record.route.clone(),
        mode: mode.into(),
        prefix: record.prefix.clone(),
        failure,
        create_time: Some(timestamp(record.create_time)),
        start_time: record.start_time.map(timestamp),
        end_time: record.end_time.map(timestamp),
        counts: Some(v1::FullSyncCounts {
            ranges_total: Some(record.ranges_total()),
            ranges_done: Some(record.ranges_done()),
            source_blobs: Some(counts.source_blobs),
            destination_blobs: Some(counts.destination_blobs),
            missing: Some(counts.missing),
            differing: Some(counts.differing),
            in_flight: Some(counts.in_flight),
            extra_at_destination: Some(counts.extra),
            enqueued: Some(counts.enqueued),
            enqueued_bytes: Some(counts.enqueued_bytes),
            pending: Some(tally.pending),
            confirmed: Some(tally.confirmed),
            parked: Some(tally.parked),
            discarded: Some(tally.discarded),
        }),
        compared_blobs_per_second: record.compared_blobs_per_second(),
        eta: record.eta.map(duration),
        unknown_functions: record.unknown.iter().map(unknown_function).collect(),
    }
}

fn unknown_function(unknown: &UnknownFunction) -> v1::UnknownFunction {
    v1::UnknownFunction {
        function: unknown.function.clone(),
        source_blobs: Some(unknown.source_blobs),
        destination_blobs: Some(unknown.destination_blobs),
    }
}
