use super::Concurrency;
use crate::clock::Monotonic;
use std::time::Duration;

fn at(seconds: f64) -> Monotonic {
    Monotonic::ZERO.saturating_add(Duration::from_secs_f64(seconds))
}

/// A peer that a route would use with so many copies.
fn peer(most: usize) -> Concurrency {
    let mut concurrency = Concurrency::default();
    concurrency.want(1, most);
    concurrency
}

#[test]
fn nothing_is_limited_at_first_and_all_routes_are_added_up() {
    let mut peer = peer(8);
    assert_eq!((peer.room(at(0.0)), peer.in_force()), (Ok(8), None));
    peer.want(2, 4);
    assert_eq!(peer.room(at(0.0)), Ok(12));
    (0..12).for_each(|_| _ = peer.begin());
    assert_eq!(peer.room(at(0.0)), Err(None), "only the end of a copy changes it");
    peer.end();
    assert_eq!(peer.room(at(0.0)), Ok(1));
    peer.want(1, 0);
    assert_eq!((peer.room(at(0.0)), peer.in_flight()), (Err(None), 11));
}

#[test]
fn each_refusal_takes_its_place_along_and_places_come_back_one_by_one() {
    let mut peer = peer(10);
    let widths: Vec<usize> = (0..10).map(|_| peer.begin()).collect();
    for width in &widths[4..] {
        peer.end();
        peer.refused(*width, Duration::ZERO, at(1.0));
    }
    assert_eq!(peer.in_force(), Some(4));
    assert!(peer.is_overloaded(at(1.0)));
    let Err(Some(next)) = peer.room(at(1.0)) else { panic!("four are in flight") };
    assert!(next > at(1.0));
    assert_eq!(peer.room(next), Ok(1), "one more, and no more than one");
    peer.begin();
    assert!(matches!(peer.room(next), Err(Some(later)) if later > next));
    // As wide as the last refusal was admitted: that is not too wide any more.
    peer.end();
    peer.succeeded(10, Duration::from_millis(25), next);
    assert_eq!(peer.in_force(), Some(7));
    assert!(!peer.is_overloaded(at(60.0)));
}

#[test]
fn alone_and_refused_the_peer_rests_as_long_as_it_asks_to() {
    let mut peer = peer(10);
    for _ in 0..20 {
        let width = peer.begin();
        peer.end();
        peer.refused(width, Duration::from_secs(5), at(1.0));
    }
    assert_eq!(peer.in_force(), Some(1), "never less");
    assert!(matches!(peer.room(at(5.9)), Err(Some(until)) if until >= at(6.0) && until <= at(11.0)));
    assert!(peer.room(at(11.0)).is_ok());
}

#[test]
fn after_an_outage_the_width_begins_at_one_and_doubles_up_to_half() {
    let mut peer = peer(32);
    peer.reopened();
    assert_eq!(peer.room(at(0.0)), Ok(1));
    let mut rounds = Vec::new();
    for _ in 0..40 {
        let room = peer.room(at(0.0)).unwrap_or(0);
        rounds.push(room);
        (0..room).for_each(|_| _ = peer.begin());
        (0..room).for_each(|_| peer.end());
        (0..room).for_each(|_| peer.succeeded(room, Duration::from_millis(25), at(0.0)));
    }
    assert_eq!(rounds[..6], [1, 2, 4, 8, 16, 16]);
    assert_eq!((rounds[39], peer.in_force()), (32, None));
}

/// A fault found by `make simulate` (seed 118): a time to look again that had passed made the scheduler look without end.
#[test]
fn a_time_to_look_again_lies_ahead() {
    let mut peer = peer(32);
    let width = peer.begin();
    peer.end();
    peer.refused(width, Duration::ZERO, at(1.0));
    peer.reopened();
    for second in 2..60 {
        let now = at(f64::from(second));
        match peer.room(now) {
            Ok(_) => _ = peer.begin(),
            Err(until) => assert!(until.is_none_or(|until| until > now), "{until:?} at {now:?}"),
        }
    }
}

#[test]
fn tries_that_still_hang_do_not_count_against_the_width() {
    let mut peer = peer(32);
    (0..5).for_each(|_| _ = peer.begin());
    peer.reopened();
    assert_eq!(peer.room(at(0.0)), Ok(1));
}
