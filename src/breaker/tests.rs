#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Breaker, Permit, Phase, Reason, Ticket, Transition};
use crate::backoff::Backoff;
use crate::fault::FaultKind;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use std::time::Duration;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn down() -> Reason {
    Reason::new(FaultKind::DestinationUnavailable, "connection refused")
}

fn stranger() -> Reason {
    Reason::new(FaultKind::StoreIdChanged, "expected A, found B")
}

fn go(breaker: &mut Breaker, now: u64) -> Ticket {
    match breaker.permit(at(now)) {
        Permit::Go(ticket) => ticket,
        other => panic!("expected Go, got {other:?}"),
    }
}

fn probe(breaker: &mut Breaker, now: u64) -> Ticket {
    match breaker.permit(at(now)) {
        Permit::Probe(ticket) => ticket,
        other => panic!("expected Probe, got {other:?}"),
    }
}

fn identify(breaker: &mut Breaker, now: u64) -> Ticket {
    match breaker.permit(at(now)) {
        Permit::Identify(ticket) => ticket,
        other => panic!("expected Identify, got {other:?}"),
    }
}

/// A breaker that opened at 10 s; its first probe is due at 11 s.
fn opened() -> Breaker {
    let mut breaker = Breaker::new(Backoff::PROBE, at(0));
    let ticket = go(&mut breaker, 10);
    assert!(breaker.on_peer_fault(ticket, down(), at(10), 1.0).is_some());
    breaker
}

#[test]
fn a_probe_can_be_made_due_and_one_that_is_out_goes_on() {
    let mut breaker = Breaker::new(Backoff::PROBE, Duration::ZERO);
    breaker.probe_now(Duration::ZERO);
    assert_eq!(breaker.snapshot().phase, Phase::Closed);
    let reason = Reason::new(FaultKind::StoreIdChanged, "another");
    assert!(breaker.latch(reason, Duration::from_secs(1), 0.5).is_some());
    assert!(breaker.wait_until(Duration::from_secs(1)).is_some());
    breaker.probe_now(Duration::from_secs(1));
    let Permit::Identify(ticket) = breaker.permit(Duration::from_secs(1)) else { panic!("a probe is due") };
    breaker.probe_now(Duration::from_secs(1));
    assert!(matches!(breaker.permit(Duration::from_secs(1)), Permit::Wait(_)), "one is out");
    assert!(breaker.on_success(ticket, Duration::from_secs(2)).is_some());
}

#[test]
fn opens_at_once_probes_with_backoff_and_closes_on_one_success() {
    let mut breaker = Breaker::new(Backoff::PROBE, at(0));
    let ticket = go(&mut breaker, 10);
    let transition = breaker.on_peer_fault(ticket, down(), at(10), 1.0);
    assert_eq!(transition, Some(Transition::Opened { reason: down(), latched: false, next_probe: at(11) }));
    let mut now = 10;
    for wait in [1, 2, 4, 8, 16, 30, 30, 30] {
        assert_eq!(breaker.permit(at(now)), Permit::Wait(at(now + wait)));
        now += wait;
        let ticket = probe(&mut breaker, now);
        assert_eq!(breaker.snapshot().phase, Phase::Probing);
        assert_eq!(breaker.on_peer_fault(ticket, down(), at(now), 1.0), None);
    }
    now += 30;
    let ticket = probe(&mut breaker, now);
    let transition = breaker.on_success(ticket, at(now));
    assert_eq!(transition, Some(Transition::Closed { reason: down(), after: at(now - 10), failures: 9 }));
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.phase, snapshot.since, snapshot.failures), (Phase::Closed, at(now), 0));
    // The next outage starts from the first delay again.
    let ticket = go(&mut breaker, now);
    assert!(breaker.on_peer_fault(ticket, down(), at(now), 1.0).is_some());
    assert_eq!(breaker.permit(at(now)), Permit::Wait(at(now + 1)));
}

#[test]
fn one_probe_at_a_time() {
    let mut breaker = opened();
    let _ticket = probe(&mut breaker, 11);
    assert!(matches!(breaker.permit(at(11)), Permit::Wait(until) if until > at(11)));
    assert!(matches!(breaker.permit(at(500)), Permit::Wait(until) if until > at(500)));
    assert_eq!(breaker.snapshot().next_probe, None);
}

#[test]
fn asking_does_not_take_the_probe() {
    let mut breaker = opened();
    assert_eq!(breaker.wait_until(at(10)), Some(at(11)));
    assert_eq!(breaker.wait_until(at(11)), None);
    assert_eq!(breaker.wait_until(at(11)), None);
    let ticket = probe(&mut breaker, 11);
    assert_eq!(breaker.on_success(ticket, at(11)).map(|_| breaker.wait_until(at(11))), Some(None));
}

#[test]
fn copies_that_fail_with_the_first_do_not_push_the_probe_away() {
    let mut breaker = Breaker::new(Backoff::PROBE, at(0));
    let tickets: Vec<_> = (0..32).map(|_| go(&mut breaker, 10)).collect();
    let transitions =
        tickets.iter().filter(|ticket| breaker.on_peer_fault(**ticket, down(), at(10), 1.0).is_some()).count();
    assert_eq!(transitions, 1);
    assert_eq!(breaker.snapshot().failures, 32);
    let ticket = probe(&mut breaker, 11);
    assert_eq!(breaker.on_peer_fault(tickets[0], down(), at(12), 1.0), None);
    assert_eq!(breaker.snapshot().phase, Phase::Probing);
    assert!(breaker.on_success(ticket, at(12)).is_some());
}

#[test]
fn copies_of_before_neither_close_nor_open() {
    let mut breaker = Breaker::new(Backoff::PROBE, at(0));
    let (first, straggler, late) = (go(&mut breaker, 1), go(&mut breaker, 1), go(&mut breaker, 1));
    assert!(breaker.on_peer_fault(first, down(), at(10), 1.0).is_some());
    assert_eq!(breaker.on_success(straggler, at(10)), None);
    assert_eq!(breaker.snapshot().phase, Phase::Open);
    let ticket = probe(&mut breaker, 11);
    assert_eq!(breaker.on_success(straggler, at(11)), None);
    assert!(breaker.on_success(ticket, at(11)).is_some());
    // A keepalive of the old connection gives up only now.
    assert_eq!(breaker.on_peer_fault(late, down(), at(30), 1.0), None);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.phase, snapshot.failures), (Phase::Closed, 0));
}

#[test]
fn an_abandoned_probe_can_be_had_again_at_once() {
    let mut breaker = opened();
    let first = probe(&mut breaker, 11);
    breaker.abandon_probe(first);
    let second = probe(&mut breaker, 11);
    // Late news of the first one changes nothing: not twice given back, and no verdict.
    breaker.abandon_probe(first);
    assert_eq!(breaker.on_success(first, at(11)), None);
    assert_eq!(breaker.on_peer_fault(first, down(), at(11), 1.0), None);
    assert_eq!(breaker.snapshot().phase, Phase::Probing);
    assert!(breaker.on_success(second, at(11)).is_some());
    // Nor does it harm once closed.
    breaker.abandon_probe(second);
    let ticket = go(&mut breaker, 12);
    breaker.abandon_probe(ticket);
    assert!(breaker.on_peer_fault(ticket, down(), at(12), 1.0).is_some());
}

#[test]
fn another_kind_of_reason_is_news_and_the_same_is_not() {
    let mut breaker = opened();
    let ticket = probe(&mut breaker, 11);
    let same = Reason::new(FaultKind::DestinationUnavailable, "still refused");
    assert_eq!(breaker.on_peer_fault(ticket, same.clone(), at(11), 1.0), None);
    assert_eq!(breaker.snapshot().reason, Some(same));
    let ticket = probe(&mut breaker, 13);
    let other = Reason::new(FaultKind::PeerProtocol, "unknown method");
    let transition = breaker.on_peer_fault(ticket, other.clone(), at(13), 1.0);
    assert_eq!(transition, Some(Transition::Opened { reason: other, latched: false, next_probe: at(17) }));
    assert_eq!(breaker.snapshot().since, at(10));
}

#[test]
fn latched_it_asks_who_is_there_and_only_the_right_answer_closes_it() {
    let mut breaker = Breaker::new(Backoff::PROBE, at(0));
    let copy = go(&mut breaker, 10);
    let transition = breaker.latch(stranger(), at(10), 1.0);
    assert_eq!(transition, Some(Transition::Opened { reason: stranger(), latched: true, next_probe: at(11) }));
    // A copy to the stranger that went well proves nothing.
    assert_eq!(breaker.on_success(copy, at(10)), None);
    // Found again while waiting: no news, and the probe keeps its turn.
    assert_eq!(breaker.latch(stranger(), at(10), 1.0), None);
    let ticket = identify(&mut breaker, 11);
    assert_eq!(breaker.latch(stranger(), at(11), 1.0), None);
    assert_eq!(breaker.on_success(ticket, at(11)), None);
    // Unreachable meanwhile: it stays latched for its own reason.
    let ticket = identify(&mut breaker, 13);
    assert_eq!(breaker.on_peer_fault(ticket, down(), at(13), 1.0), None);
    let snapshot = breaker.snapshot();
    assert_eq!((snapshot.latched, snapshot.reason), (true, Some(stranger())));
    let ticket = identify(&mut breaker, 17);
    assert!(matches!(breaker.on_success(ticket, at(17)), Some(Transition::Closed { .. })));
    let _ticket = go(&mut breaker, 17);
}

#[test]
fn an_outage_that_ends_with_a_stranger_becomes_latched() {
    let mut breaker = opened();
    let ticket = probe(&mut breaker, 11);
    assert!(matches!(breaker.latch(stranger(), at(11), 1.0), Some(Transition::Opened { latched: true, .. })));
    assert_eq!(breaker.on_success(ticket, at(11)), None);
    assert_eq!(breaker.permit(at(12)), Permit::Wait(at(13)));
    let other = Reason::new(FaultKind::WrongPeerKind, "a replicator");
    assert!(matches!(breaker.latch(other, at(12), 1.0), Some(Transition::Opened { latched: true, .. })));
    assert_eq!(breaker.snapshot().since, at(10));
}

#[test]
fn an_observer_can_open_but_never_close() {
    let mut breaker = Breaker::new(Backoff::PROBE, at(0));
    let observer = breaker.observer();
    assert_eq!(breaker.on_success(observer, at(1)), None);
    assert!(breaker.on_peer_fault(observer, down(), at(1), 1.0).is_some());
    let open = breaker.observer();
    assert_eq!(breaker.on_success(open, at(1)), None);
    let probe = probe(&mut breaker, 2);
    let meanwhile = breaker.observer();
    assert_eq!(breaker.on_success(meanwhile, at(2)), None);
    assert_eq!(breaker.on_peer_fault(meanwhile, down(), at(2), 1.0), None);
    assert!(breaker.on_success(probe, at(2)).is_some());
}

#[test]
fn long_messages_are_cut_between_characters() {
    let reason = Reason::new(FaultKind::SourceUnavailable, "é".repeat(1000) + "x");
    assert_eq!(reason.message.len(), 500);
    let odd = Reason::new(FaultKind::SourceUnavailable, format!("x{}", "é".repeat(1000)));
    assert_eq!(odd.message.len(), 499);
}

proptest! {
    /// Whatever happens in whatever order: at most one live probe, it comes back, and the outage ends with a success.
    #[test]
    fn any_history_keeps_its_promises(steps in proptest::collection::vec((0u8..7, 0u16..40_000, any::<usize>()), 1..200)) {
        let mut breaker = Breaker::new(Backoff::PROBE, at(0));
        let mut now = at(0);
        let mut tickets = Vec::new();
        let mut live: Option<Ticket> = None;
        for (step, pass, pick) in steps {
            now += Duration::from_millis(pass.into());
            let ticket = tickets.get(pick % tickets.len().max(1)).copied();
            match (step, ticket) {
                (0..=2, _) => match breaker.permit(now) {
                    Permit::Go(ticket) => {
                        prop_assert_eq!(breaker.snapshot().phase, Phase::Closed);
                        tickets.push(ticket);
                    }
                    Permit::Probe(ticket) | Permit::Identify(ticket) => {
                        prop_assert_eq!(live, None);
                        live = Some(ticket);
                        tickets.push(ticket);
                    }
                    Permit::Wait(until) => prop_assert!(until > now && until <= now + at(30)),
                },
                (3, Some(ticket)) => drop(breaker.on_success(ticket, now)),
                (4, Some(ticket)) => drop(breaker.on_peer_fault(ticket, down(), now, 0.5)),
                (5, Some(ticket)) => breaker.abandon_probe(ticket),
                (6, _) if pick % 4 == 0 => drop(breaker.latch(stranger(), now, 0.5)),
                _ => {}
            }
            if breaker.snapshot().phase != Phase::Probing {
                live = None;
            }
            prop_assert_eq!(breaker.snapshot().reason.is_some(), breaker.snapshot().phase != Phase::Closed);
        }
        if let Some(ticket) = live {
            breaker.abandon_probe(ticket);
        }
        now += at(30);
        if let Permit::Probe(ticket) | Permit::Identify(ticket) = breaker.permit(now) {
            prop_assert!(breaker.on_success(ticket, now).is_some());
        }
        prop_assert!(matches!(breaker.permit(now), Permit::Go(_)));
    }
}
