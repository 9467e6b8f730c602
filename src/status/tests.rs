#![allow(clippy::unwrap_used, reason = "tests")]

use super::sentence::limiting_of;
use super::{
    LimitingFactor, PeerStatus, QueueFacts, QueueState, QueueStatus, ReplicatorState, RouteFacts, RouteState,
    RouteStatus, Trend, overall, peer_status, queue_status, route_status, route_works,
};
use crate::announce::Route;
use crate::breaker::{Phase, Reason};
use crate::clock::from_unix_ms;
use crate::fault::FaultKind;
use crate::limits::{Limits, Override};
use crate::overrides::{InForce, Stamp};
use crate::peer::PeerSnapshot;
use crate::queue::damage::{Incident, Mending};
use crate::queue::{LaneCounts, Oldest, RouteCounts, RouteId, SyncId, Tally};
use crate::sync::{NeededSync, SyncFailure, SyncMode, SyncRecord, SyncState};
use crate::worker::{Wait, Waits};
use std::time::{Duration, SystemTime};

/// 2026-01-01 12:00 UTC.
fn now() -> SystemTime {
    from_unix_ms(1_767_225_600_000 + 43_200_000)
}

fn tally(entries: u64, bytes: u64) -> Tally {
    Tally { entries, bytes, unknown_size: 0 }
}

fn peer(name: &str, reason: Option<&str>) -> PeerStatus {
    let snapshot = PeerSnapshot {
        name: name.into(),
        store_id: None,
        info: None,
        phase: if reason.is_some() { Phase::Open } else { Phase::Closed },
        reason: reason.map(|message| Reason::new(FaultKind::DestinationUnavailable, message)),
        latched: false,
        since: now() - Duration::from_secs(7080),
        next_probe: Some(now() + Duration::from_secs(5)),
        failures: 3,
        openings: 1,
        answers: false,
        copies: 0,
        concurrency_limit: None,
        last_refusal: None,
        last_error: None,
        last_contact: None,
        info_time: None,
    };
    peer_status(snapshot, format!("http://{name}:7080"), now())
}

fn queue_of(
    entries: u64,
    max: u64,
    free_bytes: Option<u64>,
    reserve_bytes: u64,
    trouble: Option<String>,
) -> QueueStatus {
    let facts = QueueFacts { entries, max_entries: max, free_bytes, reserve_bytes, trouble, ..QueueFacts::default() };
    queue_status(facts, now())
}

fn status(fresh: LaneCounts, peers: &[PeerStatus], change: impl FnOnce(&mut RouteFacts<'_>)) -> RouteStatus {
    let (name, from, to) = ("primary_to_backup".into(), "primary".into(), "backup".into());
    let route = Route { name, id: RouteId(1), from, to, enabled: true };
    let mut facts = RouteFacts {
        route: &route,
        orphaned: false,
        limits: InForce::configured(Limits::workers(32)),
        counts: RouteCounts { fresh, ..RouteCounts::default() },
        at_start: RouteCounts::default(),
        oldest: Oldest { fresh: Some(now() - Duration::from_millis(2140)), ..Oldest::default() },
        trend: Trend::default(),
        worker: None,
        newest_sync: None,
        last_sync: None,
        needed_sync: None,
        degraded: false,
        draining: false,
    };
    change(&mut facts);
    route_status(facts, peers, now())
}

#[test]
fn a_route_that_copies_says_how_far_behind_it_is_and_how_long_it_takes() {
    let up = [peer("primary", None), peer("backup", None)];
    let copying = LaneCounts { ready: tally(1172, 3_200_000), claimed: tally(32, 50_586), ..LaneCounts::default() };
    let fast = Trend { done_per_second: 812.2, ..Trend::default() };
    let route = status(copying, &up, |facts| facts.trend = fast);
    assert_eq!(
        route.summary,
        "primary_to_backup: copying, 1,204 blobs (3.1 MiB) behind, lag 2.1 s, 812 blobs/s, done in about 1.4 s"
    );
    assert_eq!((route.state, route.limiting), (RouteState::Copying, Some(LimitingFactor::Workers)));
    let in_sync = status(LaneCounts::default(), &up, |_| ());
    assert_eq!(in_sync.summary, "primary_to_backup: in sync: everything announced is at the destination");
    assert_eq!((in_sync.state, in_sync.limiting), (RouteState::InSync, Some(LimitingFactor::Idle)));
}

#[test]
fn a_route_that_waits_names_the_peer_and_since_when() {
    let peers = [peer("primary", None), peer("backup", Some("connection refused"))];
    let waiting = LaneCounts { ready: tally(204, 1), ..LaneCounts::default() };
    let route = status(waiting, &peers, |_| ());
    assert_eq!(
        route.summary,
        "primary_to_backup: blocked: backup (http://backup:7080) is unreachable since 10:02 UTC: connection refused; \
         204 blobs wait and are not charged"
    );
    assert_eq!((route.state, route.limiting), (RouteState::Blocked, Some(LimitingFactor::Breaker)));
    let idle = status(LaneCounts::default(), &peers, |_| ());
    assert_eq!(idle.state, RouteState::InSync);
    assert!(idle.summary.contains("but backup (http://backup:7080) is unreachable"), "{}", idle.summary);
    let queue = queue_of(0, 100, None, 0, None);
    assert_eq!(overall(&[idle], &peers, &queue, false).0, ReplicatorState::Attention);
}

#[test]
fn failed_and_parked_entries_are_told_apart() {
    let up = [peer("primary", None), peer("backup", None)];
    let retrying = LaneCounts { retrying: tally(3, 30), ..LaneCounts::default() };
    let route = status(retrying, &up, |facts| facts.oldest.next_due = Some(now() + Duration::from_secs(40)));
    assert_eq!(route.summary, "primary_to_backup: retrying: 3 blobs failed before, next attempt in 40 s");
    assert_eq!(route.limiting, Some(LimitingFactor::Idle));
    let fast = Trend { done_per_second: 1098.0, ..Trend::default() };
    assert_eq!(status(retrying, &up, |facts| facts.trend = fast).eta, None);
    let parked = LaneCounts { parked: tally(1, 10), ..LaneCounts::default() };
    let route = status(parked, &up, |_| ());
    assert_eq!(route.summary, "primary_to_backup: parked: 1 blob was given up, see recent_faults");
    assert_eq!(route.backlog.tally.entries, 0);
    let (state, summary) = overall(&[route], &up, &queue_of(1, 100, None, 0, None), false);
    assert_eq!(state, ReplicatorState::Attention);
    assert!(summary.starts_with("attention: primary_to_backup: parked"), "{summary}");
}

#[test]
fn a_paused_route_says_who_paused_it_and_until_when_and_what_waits() {
    let down = [peer("primary", None), peer("backup", Some("connection refused"))];
    let counts = LaneCounts { ready: tally(1204, 9), claimed: tally(3, 9), ..LaneCounts::default() };
    let pause = |end: Option<u64>, reason: &str| {
        let configured = Limits::workers(32);
        let stamp = Stamp {
            set_by: "eve@host".to_owned(),
            set_time: now() - Duration::from_secs(7080),
            expire_time: end.map(|seconds| now() + Duration::from_secs(seconds)),
            reason: reason.to_owned(),
        };
        let limits = configured.with(&[Override::Paused]);
        InForce { limits, configured, overrides: vec![(Override::Paused, stamp)] }
    };
    let route = status(counts, &down, |facts| facts.limits = pause(Some(600), "disk swap"));
    assert_eq!(
        route.summary,
        "primary_to_backup: paused by eve@host since 10:02 UTC, for another 10 min (disk swap): 1,204 blobs wait, 3 copies in \
         flight are being finished"
    );
    assert_eq!((route.state, route.limiting, route.eta), (RouteState::Paused, Some(LimitingFactor::Paused), None));
    assert!(!route.state.works());
    let (state, summary) = overall(
        &[route],
        &[],
        &queue_status(QueueFacts { entries: 1, max_entries: 100, ..QueueFacts::default() }, now()),
        false,
    );
    assert_eq!(state, ReplicatorState::Attention);
    assert!(summary.starts_with("attention: primary_to_backup: paused by eve@host"), "{summary}");
    let idle = status(LaneCounts::default(), &down, |facts| facts.limits = pause(None, ""));
    assert_eq!(idle.summary, "primary_to_backup: paused by eve@host since 10:02 UTC: 0 blobs wait");
}

#[test]
fn a_route_works_while_it_copies_and_not_while_it_waits() {
    let (up, down) = ([peer("a", None), peer("b", None)], [peer("a", None), peer("b", Some("connection refused"))]);
    let works = |fresh: LaneCounts, enabled: bool, peers: &[PeerStatus]| {
        let route = Route { name: "a_to_b".into(), id: RouteId(1), from: "a".into(), to: "b".into(), enabled };
        route_works(&route, &RouteCounts { fresh, ..RouteCounts::default() }, None, peers)
    };
    let ready = LaneCounts { ready: tally(2, 2), ..LaneCounts::default() };
    let retrying = LaneCounts { retrying: tally(2, 2), ..LaneCounts::default() };
    let some_parked = LaneCounts { parked: tally(1, 1), ..ready };
    assert!(works(LaneCounts::default(), true, &up) && works(ready, true, &up));
    assert!(!works(LaneCounts::default(), false, &up), "disabled");
    assert!(!works(ready, true, &down), "blocked");
    assert!(!works(retrying, true, &up) && !works(some_parked, true, &up));
    assert!(works(LaneCounts::default(), true, &down), "nothing waits for the peer");
}

#[test]
fn a_full_sync_that_failed_is_told_until_another_starts() {
    let up = [peer("primary", None), peer("backup", None)];
    let mut sync = SyncRecord::new(SyncId(7), "primary_to_backup", SyncMode::Copy, "", now());
    sync.state = SyncState::Failed;
    sync.end_time = Some(now());
    let message = "backup cannot be reached".to_owned();
    sync.failure = Some(SyncFailure { kind: None, peer: String::new(), code: None, message });
    let failed = status(LaneCounts::default(), &up, |facts| facts.newest_sync = Some(sync.clone()));
    assert_eq!(
        failed.summary,
        "primary_to_backup: in sync: everything announced is at the destination; but the last full sync, sync-7, failed at \
         12:00 UTC: backup cannot be reached"
    );
    let queue = queue_of(0, 100, None, 0, None);
    assert_eq!(overall(&[failed], &up, &queue, false).0, ReplicatorState::Attention);
    let again = SyncRecord::new(SyncId(8), "primary_to_backup", SyncMode::Copy, "", now());
    let running = status(LaneCounts::default(), &up, |facts| {
        (facts.newest_sync, facts.last_sync) = (Some(again), Some(sync));
    });
    assert!(!running.summary.contains("failed"), "{}", running.summary);
    assert_eq!(overall(&[running], &up, &queue, false).0, ReplicatorState::Ok);
}

#[test]
fn parked_entries_fill_no_queue_and_raise_an_alarm_in_the_end() {
    let facts = QueueFacts { entries: 120, parked: 21, max_entries: 100, max_parked: 20, ..QueueFacts::default() };
    let many = queue_status(facts.clone(), now());
    assert_eq!(many.state, QueueState::Ok);
    assert_eq!(
        many.summary,
        "ok: 120 entries, accepting announcements; 21 are parked, more than queue.parked_max_share allows (20); retry or \
         discard them"
    );
    assert_eq!(overall(&[], &[], &many, false).0, ReplicatorState::Attention);
    let some = queue_status(QueueFacts { parked: 20, ..facts.clone() }, now());
    assert_eq!((some.state, overall(&[], &[], &some, false).0), (QueueState::Full, ReplicatorState::NotAccepting));
    assert!(
        some.summary.ends_with("it holds its 100 entries, parked ones aside; copying makes room"),
        "{}",
        some.summary
    );
    let few = queue_status(QueueFacts { entries: 119, parked: 20, ..facts }, now());
    assert_eq!((few.state, overall(&[], &[], &few, false).0), (QueueState::Ok, ReplicatorState::Ok));
}

#[test]
fn a_queue_that_refuses_outweighs_its_routes_and_the_drain_outweighs_all() {
    let full = queue_of(100, 100, None, 0, None);
    assert_eq!(
        full.summary,
        "full: 100 entries, announcements are refused: it holds its 100 entries; copying makes room"
    );
    let low = queue_of(1, 100, Some(1 << 20), 1 << 30, None);
    assert!(low.reason.contains("1.0 MiB left, less than the reserve of 1.0 GiB"), "{}", low.reason);
    let failing = queue_of(1, 100, None, 0, Some("no".to_owned()));
    for queue in [&full, &low, &failing] {
        assert_eq!(overall(&[], &[], queue, false).0, ReplicatorState::NotAccepting);
    }
    assert_eq!(overall(&[], &[], &full, true).0, ReplicatorState::Draining);
    let draining =
        status(LaneCounts { ready: tally(2, 2), ..LaneCounts::default() }, &[], |facts| facts.draining = true);
    assert_eq!(draining.summary, "primary_to_backup: draining: 0 being finished, 2 stay queued");
}

#[test]
fn what_limits_is_what_was_waited_for_most() {
    let of = |parts: [u64; 7]| {
        let waits = Wait::ALL.into_iter().zip(parts).map(|(wait, part)| Waits::of(wait, Duration::from_secs(part)));
        limiting_of(&waits.fold(Waits::default(), |all, one| all + one))
    };
    // For work, a breaker, capacity, a limit, the queue, the source, the destination.
    assert_eq!(of([0, 0, 0, 0, 0, 0, 0]), None);
    assert_eq!(of([0, 0, 60, 0, 0, 20, 20]), Some(LimitingFactor::PeerOverloaded));
    assert_eq!(of([60, 0, 0, 0, 5, 20, 15]), Some(LimitingFactor::Idle));
    assert_eq!(of([0, 60, 0, 0, 0, 20, 20]), Some(LimitingFactor::Breaker));
    assert_eq!(of([0, 0, 0, 60, 0, 20, 20]), Some(LimitingFactor::RateLimit));
    assert_eq!(of([10, 0, 0, 0, 40, 25, 25]), Some(LimitingFactor::QueueDisk));
    assert_eq!(of([0, 0, 0, 0, 5, 80, 15]), Some(LimitingFactor::SourceSlow));
    assert_eq!(of([5, 0, 0, 0, 0, 10, 85]), Some(LimitingFactor::DestinationSlow));
    assert_eq!(of([0, 0, 0, 0, 5, 40, 55]), Some(LimitingFactor::Workers));
    assert_eq!(of([20, 0, 0, 0, 0, 38, 42]), Some(LimitingFactor::DestinationSlow));
}

#[test]
fn a_queue_that_lost_something_says_what_since_when_and_what_mends_it() {
    let up = [peer("primary", None), peer("backup", None)];
    let incident = Incident {
        time: now() - Duration::from_secs(7200),
        mending: Mending::CutBack,
        what: "checksum mismatch".to_owned(),
        kept: "/data/queue/db.damaged-1".to_owned(),
        lost_from: Some(now() - Duration::from_secs(9000)),
        is_assigned: true,
    };
    let facts = QueueFacts { max_entries: 100, incidents: vec![incident], ..QueueFacts::default() };
    let queue = queue_status(facts.clone(), now());
    assert_eq!(
        queue.summary,
        "degraded: 0 entries, accepting announcements; what was accepted from 09:30 UTC to 10:00 UTC may be lost: its log \
         was damaged and is read up to there; it is kept as it was in /data/queue/db.damaged-1; a full sync of each route \
         makes up for it"
    );
    assert_eq!((queue.state, queue.reason.as_str()), (QueueState::Degraded, ""));
    let needed = NeededSync {
        reason: "a part of the queue was lost".to_owned(),
        problem: "sync-1 failed: no".to_owned(),
        next_time: Some(now() + Duration::from_secs(30)),
    };
    let route = status(LaneCounts::default(), &up, |facts| {
        facts.degraded = true;
        facts.needed_sync = Some(needed);
    });
    assert_eq!(
        route.summary,
        "primary_to_backup: degraded: entries were lost with a part of the queue, and a full sync makes up for it; a full \
         sync is needed, begun again in 30 s: a part of the queue was lost; the last attempt: sync-1 failed: no"
    );
    assert_eq!(overall(&[route], &up, &queue, false).0, ReplicatorState::Degraded);
    // What refuses announcements is worse.
    let full = queue_status(QueueFacts { max_entries: 0, ..facts }, now());
    assert_eq!((full.state, overall(&[], &up, &full, false).0), (QueueState::Full, ReplicatorState::NotAccepting));
}
