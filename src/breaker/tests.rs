#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Breaker, FailureWeight, LONGEST_GAP, Pass, Phase, ROW, Reason, SHORT_GAP, Transition};
use crate::clock::Monotonic;
use crate::fault::FaultKind;
use proptest::prelude::{any, prop_assert, proptest};
use std::time::Duration;

const START: Monotonic = Monotonic::ZERO;

fn at(seconds: f64) -> Monotonic {
    START.saturating_add(Duration::from_secs_f64(seconds))
}

fn down() -> Reason {
    Reason::new(FaultKind::DestinationUnavailable, "connection refused")
}

fn stranger() -> Reason {
    Reason::new(FaultKind::StoreIdChanged, "expected A, found B")
}

/// Fails so often at this time; whether it is open then.
fn fail(breaker: &mut Breaker, how: FailureWeight, times: u32, now: Monotonic) -> bool {
    for _ in 0..times {
        breaker.failed(how, 0, false, down(), now, 1.0);
    }
    breaker.is_open()
}

fn opened() -> Breaker {
    let mut breaker = Breaker::new(START);
    assert!(fail(&mut breaker, FailureWeight::First, 64, at(1.0)));
    breaker
}

#[test]
fn one_failure_amid_successes_never_opens_it() {
    let mut breaker = Breaker::new(START);
    for second in 0..1000 {
        assert!(!fail(&mut breaker, FailureWeight::First, 63, at(f64::from(second))));
        assert_eq!(breaker.succeeded(at(f64::from(second))), None);
    }
    assert_eq!(breaker.pass(at(1000.0)), Pass::Go);
    assert_eq!(breaker.snapshot().openings, 0);
}

#[test]
fn it_opens_when_everything_fails_alike() {
    let mut breaker = Breaker::new(START);
    assert!(!fail(&mut breaker, FailureWeight::First, 63, at(1.0)));
    let opened = breaker.failed(FailureWeight::First, 0, false, down(), at(1.0), 1.0);
    assert_eq!(opened, Some(Transition::Opened { reason: down(), latched: false }));
    // Twice what is in flight, where that is more.
    let mut breaker = Breaker::new(START);
    (0..127).for_each(|_| drop(breaker.failed(FailureWeight::First, 64, false, down(), at(1.0), 1.0)));
    assert!(!breaker.is_open());
    assert!(breaker.failed(FailureWeight::First, 64, false, down(), at(1.0), 1.0).is_some());
    // A few hopeless entries are no outage; but where nothing has succeeded for long, few are enough.
    let mut breaker = Breaker::new(START);
    assert!(!fail(&mut breaker, FailureWeight::Again, 1000, at(1.0)), "{ROW} by their weight");
    let mut breaker = Breaker::new(START);
    assert!(
        !fail(&mut breaker, FailureWeight::Again, 15, at(11.0))
            && fail(&mut breaker, FailureWeight::Again, 1, at(11.0))
    );
    // A peer that cannot even say what it is.
    let mut breaker = Breaker::new(START);
    assert!(!fail(&mut breaker, FailureWeight::Identification, 7, at(1.0)));
    assert!(fail(&mut breaker, FailureWeight::Identification, 1, at(1.0)));
    let mut breaker = Breaker::new(START);
    assert!(
        !fail(&mut breaker, FailureWeight::Identification, 1, at(3600.0)),
        "one failure is no outage, however long it was quiet"
    );
}

#[test]
fn tries_come_one_at_a_time_with_gaps_that_double() {
    let mut breaker = opened();
    let mut now = at(1.0);
    let mut gaps = Vec::new();
    for _ in 0..12 {
        let Pass::Wait(until) = breaker.pass(now) else { panic!("too early") };
        gaps.push(until.since(now).as_millis());
        now = until;
        assert_eq!(breaker.pass(now), Pass::Try);
        breaker.begin(now, 1.0);
        assert_eq!(breaker.snapshot().phase, Phase::Probing);
        assert!(matches!(breaker.pass(now), Pass::Wait(_)), "one at a time");
        assert_eq!(breaker.failed(FailureWeight::First, 1, true, down(), now, 1.0), None);
        breaker.end(now);
    }
    assert_eq!(gaps, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000, 10_000, 10_000, 10_000]);
}

#[test]
fn a_peer_that_answers_its_canary_is_tried_more_often() {
    let mut breaker = opened();
    let mut now = at(2.0);
    for _ in 0..9 {
        breaker.canary(true, now);
        breaker.begin(now, 1.0);
        breaker.failed(FailureWeight::First, 1, true, down(), now, 1.0);
        breaker.end(now);
        let Pass::Wait(until) = breaker.pass(now) else { panic!("too early") };
        assert!(until.since(now) <= SHORT_GAP);
        now = until;
    }
    breaker.canary(false, now);
    assert_eq!(breaker.last_canary().map(|last| last < now), Some(true), "no answer is none");
}

#[test]
fn a_try_that_hangs_does_not_hold_back_the_next_for_ever() {
    let mut breaker = opened();
    breaker.begin(at(2.0), 1.0);
    assert_eq!(breaker.pass(at(3.0)), Pass::Wait(at(2.0).saturating_add(LONGEST_GAP)));
    assert_eq!(breaker.pass(at(12.0)), Pass::Try);
    breaker.begin(at(12.0), 1.0);
    breaker.end(at(2.0));
    assert!(matches!(breaker.pass(at(13.0)), Pass::Wait(_)), "only the latest lets the next go");
}

#[test]
fn any_success_closes_it_and_its_whole_story_is_told() {
    let mut breaker = opened();
    let closed = breaker.succeeded(at(5.0));
    assert_eq!(closed, Some(Transition::Closed { reason: down(), after: Duration::from_secs(4), failures: 64 }));
    assert_eq!((breaker.pass(at(5.0)), breaker.snapshot().openings), (Pass::Go, 1));
    assert!(!fail(&mut breaker, FailureWeight::First, 63, at(6.0)), "it begins anew");
}

#[test]
fn the_wrong_peer_is_asked_what_it_is_and_nothing_else() {
    let mut breaker = Breaker::new(START);
    assert_eq!(breaker.latch(stranger(), at(1.0), 1.0), Some(Transition::Opened { reason: stranger(), latched: true }));
    assert_eq!(breaker.succeeded(at(2.0)), None, "a copy that succeeds there proves nothing");
    assert_eq!(breaker.pass(at(2.0)), Pass::Identify);
    assert_eq!(breaker.latch(stranger(), at(2.0), 1.0), None);
    assert_eq!(breaker.failed(FailureWeight::Identification, 0, true, down(), at(3.0), 1.0), None);
    assert_eq!(breaker.snapshot().reason, Some(stranger()), "a failed connection is no reason to take another");
    assert!(breaker.identified(at(4.0)).is_some());
    // One that is open for another reason waits for a copy.
    let mut breaker = opened();
    assert_eq!(breaker.identified(at(5.0)), None);
    assert!(breaker.latch(stranger(), at(6.0), 1.0).is_some() && breaker.snapshot().latched);
    breaker.try_now(at(6.0));
    assert_eq!(breaker.pass(at(6.0)), Pass::Identify);
}

proptest! {
    #[test]
    fn it_is_never_stuck(steps in proptest::collection::vec((any::<u8>(), 0u32..20_000, any::<bool>()), 0..200)) {
        let mut breaker = Breaker::new(START);
        let mut now = START;
        for (what, pause, flag) in steps {
            now = now.saturating_add(Duration::from_millis(pause.into()));
            match what % 6 {
                0 => drop(breaker.failed(FailureWeight::First, 3, flag, down(), now, 0.5)),
                1 => drop(breaker.failed(FailureWeight::Again, 3, flag, down(), now, 0.5)),
                2 => breaker.begin(now, 0.5),
                3 => breaker.canary(flag, now),
                4 if flag => drop(breaker.latch(stranger(), now, 0.5)),
                4 => drop(breaker.identified(now)),
                _ => drop(breaker.succeeded(now)),
            }
            if let Pass::Wait(until) = breaker.pass(now) {
                prop_assert!(until > now && until.since(now) <= 2 * LONGEST_GAP, "{until:?} at {now:?}");
            }
            if breaker.snapshot().latched {
                prop_assert!(breaker.pass(now.saturating_add(2 * LONGEST_GAP)) == Pass::Identify);
            }
        }
    }
}
