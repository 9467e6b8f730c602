#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends with a panic")]

use super::{RouteBacklog, page, route_backlog, short, sync_line};
use crate::pb::v1;
use prost_types::{Duration, Timestamp};

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds: 1_767_225_600 + seconds, nanos: 0 })
}

fn tally(entries: u64, bytes: u64) -> Option<v1::Tally> {
    Some(v1::Tally { entries: Some(entries), bytes: Some(bytes), unknown_size_entries: Some(0) })
}

fn route() -> v1::RouteStatus {
    v1::RouteStatus {
        name: "primary_to_backup".to_owned(),
        summary: "primary_to_backup: 1,203 blobs wait".to_owned(),
        state: v1::RouteState::Copying.into(),
        from: "primary".to_owned(),
        to: "backup".to_owned(),
        lag: Some(Duration { seconds: 2, nanos: 100_000_000 }),
        limiting_factor: v1::LimitingFactor::Workers.into(),
        copied_blobs_per_second: Some(1020.0),
        copied_bytes_per_second: Some(13_002_342.0),
        eta: Some(Duration { seconds: 61, nanos: 0 }),
        queued: Some(v1::QueueCounts {
            fresh: Some(v1::LaneCounts {
                ready: tally(1200, 4096),
                claimed: tally(2, 1024),
                retrying: tally(1, 1024),
                parked: tally(4, 7),
            }),
            backfill: Some(v1::LaneCounts { ready: tally(10, 0), ..v1::LaneCounts::default() }),
        }),
        copies: (1..=7).map(copy).collect(),
        recent_faults: vec![v1::FaultGroup {
            fault: Some(v1::Fault {
                kind: v1::FaultKind::DestinationUnavailable.into(),
                peer: "backup".to_owned(),
                code: "UNAVAILABLE".to_owned(),
                message: "connection\u{1b}[2Jrefused".to_owned(),
                time: at(0),
            }),
            count: Some(4212),
            first_time: at(0),
            last_time: at(90),
            example_ref: "sha256-2cf2".to_owned(),
            charged_count: Some(3),
        }],
        ..v1::RouteStatus::default()
    }
}

fn copy(attempt: u32) -> v1::CopyInProgress {
    v1::CopyInProgress {
        r#ref: format!("sha256-{attempt}"),
        stage: v1::CopyStage::Streaming.into(),
        bytes: Some(1024),
        size_bytes: Some(2048),
        start_time: at(95),
        attempt,
        ..v1::CopyInProgress::default()
    }
}

fn status() -> v1::ReplicatorStatus {
    v1::ReplicatorStatus {
        summary: "attention: one peer does not answer".to_owned(),
        state: v1::ReplicatorState::Attention.into(),
        version: "0.1.0".to_owned(),
        start_time: at(-3600),
        snapshot_time: at(100),
        routes: vec![route()],
        peers: vec![
            v1::PeerStatus {
                name: "primary".to_owned(),
                summary: "it answers".to_owned(),
                health: v1::PeerHealth::Reachable.into(),
                endpoint: "http://primary:7080".to_owned(),
                peer_info: Some(v1::PeerInfo { store_id: "0193".to_owned(), ..v1::PeerInfo::default() }),
                breaker: Some(v1::Breaker { state: v1::BreakerState::Closed.into(), ..v1::Breaker::default() }),
                ..v1::PeerStatus::default()
            },
            v1::PeerStatus {
                name: "backup".to_owned(),
                summary: "it does not answer since a minute".to_owned(),
                health: v1::PeerHealth::Unreachable.into(),
                endpoint: "http://backup:7080".to_owned(),
                breaker: Some(v1::Breaker {
                    state: v1::BreakerState::Open.into(),
                    since_time: at(40),
                    ..v1::Breaker::default()
                }),
                ..v1::PeerStatus::default()
            },
        ],
        queue: Some(v1::QueueStatus {
            state: v1::QueueState::Ok.into(),
            entries: Some(1217),
            free_bytes: Some(20 << 30),
            ..v1::QueueStatus::default()
        }),
        log_lines_lost: Some(0),
    }
}

#[test]
fn a_page_tells_how_everything_stands() {
    let page = page(&status());
    for part in [
        "ATTENTION  one peer does not answer\n",
        "blobferry 0.1.0, up 1 h 1 min; queue OK, 1,217 entries, 20.0 GiB free\n",
        "primary_to_backup  COPYING  WORKERS     2.10 s  1,210        2         1       4  6.00 KiB  1,020/s  12.4 MiB/s\n",
        "primary_to_backup: primary -> backup\n  1,203 blobs wait\n",
        "  about 1 min 1 s for the backlog\n",
        "  sha256-1 streaming, 1.00 KiB of 2.00 KiB, for 5.00 s\n",
        "  sha256-2 streaming, 1.00 KiB of 2.00 KiB, for 5.00 s, attempt 2\n",
        "  and 2 more in progress\n",
        "  4,212 x destination unavailable at backup [UNAVAILABLE]: connection [2Jrefused, last 10.0 s ago, such as sha256-2cf2\n",
        "primary  REACHABLE    CLOSED           http://primary:7080  0193      -\n",
        "backup   UNREACHABLE  OPEN for 1 min  http://backup:7080",
        "  backup: it does not answer since a minute\n",
    ] {
        let squeezed = |text: &str| text.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        assert!(squeezed(&page).contains(&squeezed(part)), "{part}\n{page}");
    }
    assert!(!page.contains('\u{1b}') && !page.contains("it answers"));
}

#[test]
fn sentences_are_shown_to_their_end() {
    let mut status = status();
    status.routes[0].summary = format!("{} and this matters", "x".repeat(1000));
    assert!(page(&status).contains("and this matters\n"));
}

#[test]
fn an_empty_status_is_shown_too() {
    let page = page(&v1::ReplicatorStatus::default());
    assert!(page.contains("No routes are configured."), "{page}");
    assert_eq!(short(&v1::ReplicatorStatus::default()), "? no routes\n");
}

#[test]
fn a_line_per_route_for_pipes() {
    assert_eq!(
        short(&status()),
        "2026-01-01T00:01:40Z ATTENTION primary_to_backup COPYING backlog 1,213 parked 4 lag 2.10 s 1,020/s 12.4 MiB/s\n"
    );
    let backlog = RouteBacklog { waiting: 1213, bytes: 6144, retrying: 1, parked: 4 };
    assert_eq!(route_backlog(&route()), backlog);
}

#[test]
fn a_full_sync_in_a_line() {
    let sync = v1::FullSync {
        id: "sync-7".to_owned(),
        state: v1::FullSyncState::Failed.into(),
        end_time: at(40),
        counts: Some(v1::FullSyncCounts {
            source_blobs: Some(1000),
            destination_blobs: Some(900),
            missing: Some(100),
            confirmed: Some(60),
            pending: Some(40),
            ..v1::FullSyncCounts::default()
        }),
        failure: Some(v1::Fault {
            kind: v1::FaultKind::SourceUnavailable.into(),
            peer: "primary".to_owned(),
            message: "gone".to_owned(),
            ..v1::Fault::default()
        }),
        ..v1::FullSync::default()
    };
    assert_eq!(
        sync_line(&sync, at(100).as_ref()),
        "full sync sync-7 FAILED 1 min ago: source unavailable at primary: gone; compared 1,000 with 900, missing 100, \
         differing 0, in flight 0, confirmed 60, 40 pending"
    );
}

#[test]
fn a_fault_says_what_is_known_of_it_and_says_it_once() {
    let fault = |kind: v1::FaultKind, peer: &str| {
        super::fault(&v1::Fault {
            kind: kind.into(),
            peer: peer.to_owned(),
            message: "why".to_owned(),
            ..v1::Fault::default()
        })
    };
    assert_eq!(fault(v1::FaultKind::Unspecified, ""), "why");
    assert_eq!(fault(v1::FaultKind::MissingAtSource, "source"), "missing at source: why");
    assert_eq!(fault(v1::FaultKind::MissingAtSource, "primary"), "missing at source (primary): why");
    assert_eq!(fault(v1::FaultKind::SourceUnavailable, "source"), "source unavailable: why");
    assert_eq!(fault(v1::FaultKind::ShortRead, "primary"), "short read at primary: why");
}
