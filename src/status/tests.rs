#![allow(clippy::unwrap_used, reason = "tests")]

use super::limiting::limiting_of;
use super::overall::overall;
use super::peer::peer_status;
use super::queue::{QueueFacts, queue_status};
use super::route::{RouteConditions, RouteFacts, route_status};
use super::sentence::LONGEST;
use super::{LimitingFactor, PeerStatus, QueueState, QueueStatus, ReplicatorState, RouteState, RouteStatus, Trend};
use crate::announce::Route;
use crate::breaker::{Phase, Reason};
use crate::clock::from_unix_ms;
use crate::fault::FaultKind;
use crate::limits::{Limits, Override};
use crate::overrides::{InForce, Stamp};
use crate::peer::PeerSnapshot;
use crate::queue::damage::{Incident, Mending};
use crate::queue::{LaneCounts, Oldest, RouteCounts, RouteId, SyncId, Tally};
use crate::store::StoreInfo;
use crate::sync::{NeededSync, SyncFailure, SyncMode, SyncRecord, SyncState};
use crate::worker::{Activity, ErrorGroup, Report, Wait, Waits};
use std::time::{Duration, SystemTime};

/// 2026-01-01 12:00 UTC.
fn now() -> SystemTime {
    from_unix_ms(1_767_225_600_000 + 43_200_000)
}

fn tally(entries: u64, bytes: u64) -> Tally {
    Tally { entries, bytes, unknown_size: 0 }
}

fn peer(name: &str, reason: Option<&str>) -> PeerStatus {
    peer_of(name, reason, Some(StoreInfo::of_own("id-1", "memory")))
}

fn peer_of(name: &str, reason: Option<&str>, info: Option<StoreInfo>) -> PeerStatus {
    let snapshot = PeerSnapshot {
        name: name.into(),
        store_id: None,
        info,
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
    status_of(&Route { name, id: RouteId(1), from, to, enabled: true }, fresh, peers, change)
}

fn status_of(
    route: &Route,
    fresh: LaneCounts,
    peers: &[PeerStatus],
    change: impl FnOnce(&mut RouteFacts<'_>),
) -> RouteStatus {
    let mut facts = RouteFacts {
        route,
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
    let fast = Trend { done_per_second: 812.2, is_steady: true, ..Trend::default() };
    let route = status(copying, &up, |facts| facts.trend = fast);
    assert_eq!(
        route.sentence.to_string(),
        "primary_to_backup: copying, 1,204 blobs (3.10 MiB) behind, lag 2.14 s, 812/s, done in about 1.48 s"
    );
    assert_eq!((route.state, route.limiting), (RouteState::Copying, Some(LimitingFactor::Workers)));
    let in_sync = status(LaneCounts::default(), &up, |_| ());
    assert_eq!(in_sync.sentence.to_string(), "primary_to_backup: in sync: everything announced is at the destination");
    assert_eq!((in_sync.state, in_sync.limiting), (RouteState::InSync, Some(LimitingFactor::Idle)));
}

#[test]
fn a_route_that_waits_names_the_peer_and_since_when() {
    let peers = [peer("primary", None), peer("backup", Some("connection refused"))];
    let waiting = LaneCounts { ready: tally(204, 1), ..LaneCounts::default() };
    let route = status(waiting, &peers, |_| ());
    assert_eq!(
        route.sentence.to_string(),
        "primary_to_backup: blocked: backup is unreachable since 10:02 UTC: connection refused; 204 blobs wait"
    );
    assert_eq!((route.state, route.limiting), (RouteState::Blocked, Some(LimitingFactor::Breaker)));
    let idle = status(LaneCounts::default(), &peers, |_| ());
    assert_eq!((idle.state, idle.limiting), (RouteState::Blocked, Some(LimitingFactor::Breaker)));
    assert!(idle.sentence.to_string().ends_with("backup is unreachable since 10:02 UTC: connection refused"));
    let queue = queue_of(0, 100, None, 0, None);
    assert_eq!(overall(&[idle], &queue, false).0, ReplicatorState::Attention);
}

#[test]
fn failed_and_parked_entries_are_told_apart() {
    let up = [peer("primary", None), peer("backup", None)];
    let retrying = LaneCounts { retrying: tally(3, 30), ..LaneCounts::default() };
    let route = status(retrying, &up, |facts| facts.oldest.next_due = Some(now() + Duration::from_secs(40)));
    assert_eq!(
        route.sentence.to_string(),
        "primary_to_backup: retrying: 3 blobs failed before, next attempt in 40.0 s"
    );
    assert_eq!(route.limiting, Some(LimitingFactor::Idle));
    let fast = Trend { done_per_second: 1098.0, is_steady: true, ..Trend::default() };
    assert_eq!(status(retrying, &up, |facts| facts.trend = fast).eta, None);
    let parked = LaneCounts { parked: tally(1, 10), ..LaneCounts::default() };
    let route = status(parked, &up, |_| ());
    assert_eq!(
        route.sentence.to_string(),
        "primary_to_backup: parked: 1 blob was given up; blobferry failures list primary_to_backup"
    );
    assert_eq!(route.backlog.tally.entries, 0);
    let (state, summary) = overall(&[route], &queue_of(1, 100, None, 0, None), false);
    assert_eq!(state, ReplicatorState::Attention);
    assert!(summary.to_string().starts_with("attention: primary_to_backup: parked"), "{summary}");
}

fn paused(end: Option<u64>, reason: &str) -> InForce {
    let configured = Limits::workers(32);
    let stamp = Stamp {
        set_by: "eve@host".to_owned(),
        set_time: now() - Duration::from_secs(7080),
        expire_time: end.map(|seconds| now() + Duration::from_secs(seconds)),
        reason: reason.to_owned(),
    };
    let limits = configured.with(&[Override::Paused]);
    InForce { limits, configured, overrides: vec![(Override::Paused, stamp)] }
}

#[test]
fn a_paused_route_says_who_paused_it_and_until_when_and_what_waits() {
    let down = [peer("primary", None), peer("backup", Some("connection refused"))];
    let counts = LaneCounts { ready: tally(1204, 9), claimed: tally(3, 9), ..LaneCounts::default() };
    let route = status(counts, &down, |facts| facts.limits = paused(Some(600), "disk swap"));
    assert_eq!(
        route.sentence.to_string(),
        "primary_to_backup: paused by eve@host since 10:02 UTC, for another 10 min (disk swap): 1,204 blobs wait, 3 in flight"
    );
    assert_eq!((route.state, route.limiting, route.eta), (RouteState::Paused, Some(LimitingFactor::Paused), None));
    assert!(!route.state.works());
    let (state, summary) = overall(
        &[route],
        &queue_status(QueueFacts { entries: 1, max_entries: 100, ..QueueFacts::default() }, now()),
        false,
    );
    assert_eq!(state, ReplicatorState::Attention);
    assert!(summary.to_string().starts_with("attention: primary_to_backup: paused by eve@host"), "{summary}");
    let idle = status(LaneCounts::default(), &down, |facts| facts.limits = paused(None, ""));
    assert_eq!(idle.sentence.to_string(), "primary_to_backup: paused by eve@host since 10:02 UTC: 0 blobs wait");
}

/// The rows of the table of `docs/states.md`: the state, its sentence, the route's health, and what `--check` exits with.
fn documented() -> Vec<[String; 4]> {
    let text = include_str!("../../docs/states.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let cell = |cell: &str| cell.trim().trim_matches('`').to_owned();
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").collect();
        [cells[0], cells[2], cells[3], cells[4]].map(cell)
    })
    .collect()
}

/// The facts behind the example of each row.
fn example(state: &str) -> RouteStatus {
    let up = [peer("a", None), peer("b", None)];
    let waiting = LaneCounts { ready: tally(204, 3_200_000), claimed: tally(4, 50_586), ..LaneCounts::default() };
    let none = LaneCounts::default();
    let three = tally(3, 30);
    let of = |fresh: LaneCounts, peers: &[PeerStatus], change: &dyn Fn(&mut RouteFacts<'_>)| {
        let route = Route { name: "a_to_b".into(), id: RouteId(1), from: "a".into(), to: "b".into(), enabled: true };
        status_of(&route, fresh, peers, change)
    };
    let needed = NeededSync {
        reason: "the route is new to the queue".to_owned(),
        problem: "sync-6 failed: a cannot be reached".to_owned(),
        next_time: Some(now() + Duration::from_secs(30)),
    };
    let report = || report(vec![fault(FaultKind::DestinationRejected, "b", "no")]);
    match state {
        "ORPHANED" => of(LaneCounts { ready: tally(30, 1), ..none }, &up, &|facts| facts.orphaned = true),
        "DISABLED" => {
            let route =
                Route { name: "a_to_b".into(), id: RouteId(1), from: "a".into(), to: "b".into(), enabled: false };
            status_of(&route, none, &up, |_| ())
        }
        "DRAINING" => of(waiting, &up, &|facts| facts.draining = true),
        "PAUSED" => of(waiting, &up, &|facts| facts.limits = paused(Some(600), "disk swap")),
        "DEGRADED" => of(none, &up, &|facts| {
            (facts.degraded, facts.needed_sync) = (true, Some(needed.clone()));
        }),
        "BLOCKED" => of(
            LaneCounts { ready: tally(204, 1), ..none },
            &[peer("a", None), peer("b", Some("connection refused"))],
            &|facts| facts.needed_sync = Some(needed.clone()),
        ),
        "RETRYING" => of(LaneCounts { retrying: three, ..none }, &up, &|facts| {
            facts.oldest.next_due = Some(now() + Duration::from_secs(40));
            facts.worker = Some(report());
        }),
        "SYNCING" => of(none, &up, &|facts| {
            facts.newest_sync = Some(SyncRecord::new(SyncId(7), "a_to_b", SyncMode::Copy, "", now()));
        }),
        "COPYING" => of(waiting, &up, &|facts| {
            facts.trend =
                Trend { done_per_second: 812.2, bytes_per_second: 2.2e6, is_steady: true, ..Trend::default() };
        }),
        "PARKED" => of(LaneCounts { parked: three, ..none }, &up, &|facts| facts.worker = Some(report())),
        "NEEDS_SYNC" => of(none, &up, &|facts| facts.needed_sync = Some(needed.clone())),
        "IN_SYNC" => of(none, &up, &|_| ()),
        other => panic!("no example of {other}"),
    }
}

#[test]
fn every_state_is_as_its_documentation_says() {
    let rows = documented();
    for [state, sentence, health, check] in &rows {
        let told = example(state);
        assert_eq!(told.sentence.to_string(), *sentence);
        let name = told.state.as_str().replace(' ', "_").to_uppercase().replace("NEEDS_A_FULL", "NEEDS");
        assert_eq!((&name, told.state.works()), (state, health == "SERVING"));
        let is_draining = told.state == RouteState::Draining;
        let (all, text) = overall(std::slice::from_ref(&told), &queue_of(0, 100, None, 0, None), is_draining);
        let passes = matches!(told.state, RouteState::InSync | RouteState::Disabled | RouteState::Orphaned);
        assert_eq!(passes && all == ReplicatorState::Ok, check == "0", "{state}: {text}");
        assert!(text.to_string().chars().count() <= LONGEST, "{text}");
    }
    assert_eq!(rows.len(), 12, "every state has a row");
}

#[test]
fn with_both_stores_down_it_says_so_whatever_else_it_needs() {
    let down = [peer("primary", Some("connection refused")), peer("backup", Some("no route"))];
    let blocked = status(LaneCounts::default(), &down, |_| ());
    assert_eq!(
        blocked.sentence.to_string(),
        "primary_to_backup: blocked: primary and backup cannot be used: connection refused"
    );
    // One that has not been asked yet is no better.
    let unknown = [peer("primary", None), peer_of("backup", None, None)];
    let waits = status(LaneCounts::default(), &unknown, |_| ());
    assert_eq!(waits.state, RouteState::Blocked);
    assert_eq!(waits.sentence.to_string(), "primary_to_backup: blocked: backup has not said yet what it is");
}

#[test]
fn a_route_works_while_it_copies_and_has_nothing_parked() {
    let peers = [peer("a", None), peer("b", None)];
    let route = Route { name: "a_to_b".into(), id: RouteId(1), from: "a".into(), to: "b".into(), enabled: true };
    let works = |fresh: LaneCounts| {
        let counts = &RouteCounts { fresh, ..RouteCounts::default() };
        let (orphaned, draining, paused, degraded, needs_sync) = (false, false, false, false, false);
        RouteConditions {
            route: &route,
            orphaned,
            draining,
            paused,
            degraded,
            counts,
            newest_sync: None,
            needs_sync,
            peers: &peers,
        }
        .works()
    };
    let ready = LaneCounts { ready: tally(2, 2), ..LaneCounts::default() };
    assert!(works(LaneCounts::default()) && works(ready));
    assert!(!works(LaneCounts { parked: tally(1, 1), ..ready }));
    assert!(!works(LaneCounts { retrying: tally(1, 1), ..LaneCounts::default() }));
}

fn fault(kind: FaultKind, peer: &str, message: &str) -> ErrorGroup {
    ErrorGroup {
        kind,
        code: None,
        peer: peer.into(),
        message: message.to_owned(),
        count: 3,
        charged: 3,
        first: now(),
        last: now(),
        example: None,
    }
}

fn report(errors: Vec<ErrorGroup>) -> Report {
    Report {
        activity: Activity::Ready,
        in_progress: Vec::new(),
        errors,
        waits: Waits::default(),
        alarm: None,
        vanished: None,
    }
}

/// Every sentence has a cause at most, and keeps to its length whatever others say.
#[test]
fn a_sentence_names_the_cause_and_the_command() {
    let up = [peer("primary", None), peer("backup", None)];
    let parked = LaneCounts { parked: tally(3, 2), ..LaneCounts::default() };
    let corrupt = format!("the store's bytes of sha256-{} are corrupt", "0".repeat(64));
    let report = || report(vec![fault(FaultKind::SourceBytesCorrupt, "primary", &format!("{corrupt}: {corrupt}"))]);
    let told = status(parked, &up, |facts| facts.worker = Some(report())).sentence.to_string();
    assert!(told.starts_with("primary_to_backup: parked: 3 blobs were given up: source_bytes_corrupt at pr"), "{told}");
    assert!(told.ends_with("…; blobferry failures list primary_to_backup"), "{told}");
    assert_eq!(told.chars().count(), LONGEST);
    let gone = status(LaneCounts::default(), &up, |facts| {
        facts.worker = Some(Report { vanished: Some(now()), ..report() });
    });
    assert_eq!(gone.state, RouteState::InSync);
    assert!(gone.sentence.to_string().contains("gone from primary since 12:00 UTC"), "{}", gone.sentence);
    let (state, all) = overall(&[gone], &queue_of(0, 100, None, 0, None), false);
    assert_eq!(state, ReplicatorState::Attention, "{all}");
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
        failed.sentence.to_string(),
        "primary_to_backup: needs a full sync: sync-7 failed: backup cannot be reached; blobferry sync primary_to_backup"
    );
    assert_eq!(failed.state, RouteState::NeedsSync);
    let queue = queue_of(0, 100, None, 0, None);
    assert_eq!(overall(&[failed], &queue, false).0, ReplicatorState::Attention);
    let again = SyncRecord::new(SyncId(8), "primary_to_backup", SyncMode::Copy, "", now());
    let running = status(LaneCounts::default(), &up, |facts| {
        (facts.newest_sync, facts.last_sync) = (Some(again), Some(sync));
    });
    assert!(!running.sentence.to_string().contains("failed"), "{}", running.sentence.to_string());
    assert_eq!(overall(&[running], &queue, false).0, ReplicatorState::Ok);
}

#[test]
fn parked_entries_fill_no_queue_and_raise_an_alarm_in_the_end() {
    let facts = QueueFacts { entries: 120, parked: 21, max_entries: 100, max_parked: 20, ..QueueFacts::default() };
    let many = queue_status(facts.clone(), now());
    assert_eq!(many.state, QueueState::Ok);
    assert_eq!(
        many.sentence.to_string(),
        "holds 21 entries parked, more than queue.parked_max_share allows (20): blobferry failures list"
    );
    assert_eq!(overall(&[], &many, false).0, ReplicatorState::Attention);
    let some = queue_status(QueueFacts { parked: 20, ..facts.clone() }, now());
    assert_eq!((some.state, overall(&[], &some, false).0), (QueueState::Full, ReplicatorState::NotAccepting));
    assert!(
        some.sentence.to_string().ends_with("it holds its 100 entries, parked ones aside; copying makes room"),
        "{}",
        some.sentence.to_string()
    );
    let few = queue_status(QueueFacts { entries: 119, parked: 20, ..facts }, now());
    assert_eq!((few.state, overall(&[], &few, false).0), (QueueState::Ok, ReplicatorState::Ok));
}

#[test]
fn a_queue_that_refuses_outweighs_its_routes_and_the_drain_outweighs_all() {
    let full = queue_of(100, 100, None, 0, None);
    assert_eq!(
        full.sentence.to_string(),
        "full: announcements are refused: it holds its 100 entries; copying makes room"
    );
    let low = queue_of(1, 100, Some(1 << 20), 1 << 30, None);
    assert!(low.reason.contains("1.00 MiB left, less than the reserve of 1.00 GiB"), "{}", low.reason);
    let failing = queue_of(1, 100, None, 0, Some("no".to_owned()));
    for queue in [&full, &low, &failing] {
        assert_eq!(overall(&[], queue, false).0, ReplicatorState::NotAccepting);
    }
    assert_eq!(overall(&[], &full, true).0, ReplicatorState::Draining);
    let draining =
        status(LaneCounts { ready: tally(2, 2), ..LaneCounts::default() }, &[], |facts| facts.draining = true);
    assert_eq!(draining.sentence.to_string(), "primary_to_backup: draining: 0 being finished, 2 stay queued");
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
        queue.sentence.to_string(),
        "degraded: what was accepted from 09:30 UTC to 10:00 UTC may be lost; a full sync of each route makes up for it"
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
        route.sentence.to_string(),
        "primary_to_backup: degraded: a part of the queue was lost, a full sync is begun in 30.0 s: sync-1 failed: no"
    );
    assert_eq!(overall(&[route], &queue, false).0, ReplicatorState::Degraded);
    // What refuses announcements is worse.
    let full = queue_status(QueueFacts { max_entries: 0, ..facts }, now());
    assert_eq!((full.state, overall(&[], &full, false).0), (QueueState::Full, ReplicatorState::NotAccepting));
}
