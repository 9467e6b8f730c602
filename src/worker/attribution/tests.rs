use super::{
    Attribution, ENOUGH, FailedAttempt, MANY, MAX_LONE, MEMORY, SAMPLE, answer, charge_threshold, charged, doubts,
};
use crate::blob::BlobMeta;
use crate::clock::Monotonic;
use crate::fault::{FailureClass, FaultKind, Side};
use crate::queue::{Entry, Seq, Weight};
use crate::worker::simulation::entries;
use std::time::{Duration, SystemTime};

const DOUBT: FailureClass = FailureClass::Doubtful;
const ANSWER: FailureClass = FailureClass::Answer { permanent: false };

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn moment(seconds: u64) -> Monotonic {
    Monotonic::ZERO.saturating_add(Duration::from_secs(seconds))
}

/// An entry that failed so, at this second.
fn failed(number: u64, kind: FaultKind, second: u64) -> Entry {
    entries::failed(number, kind, second * 1000)
}

fn of(entry: &Entry, class: FailureClass, now: u64) -> FailedAttempt<'_> {
    let kind = match class {
        FailureClass::Cut => FaultKind::ConnectionCut,
        FailureClass::Answer { .. } => FaultKind::DestinationRejected,
        _ => FaultKind::DestinationUnavailable,
    };
    FailedAttempt { entry, side: Side::Destination, kind, class, canary: None, now: at(now), moment: moment(now) }
}

#[test]
fn an_answer_weighs_so_much_that_park_after_of_them_park() {
    for park_after in [1, 2, 3, 5, 7, 10, 20, 1000] {
        let (each, enough) = (answer(park_after), charge_threshold(park_after));
        assert!(each.0 * park_after >= enough.0, "{park_after}");
        assert!(each.0 * (park_after - 1) < enough.0, "{park_after}");
        // What people are shown reaches `park_after` with the last of them, and not before.
        let shown = |answers: u32| charged(Weight(each.0 * answers), park_after);
        assert!(shown(park_after) >= f64::from(park_after) && shown(park_after - 1) < f64::from(park_after));
        let mut attribution = Attribution::default();
        assert_eq!(attribution.weigh(&of(&entries::entry(1), ANSWER, 1), park_after), each);
        assert_eq!(attribution.weigh(&of(&entries::entry(1), FailureClass::Panicked, 1), park_after), each);
    }
    assert_eq!(charge_threshold(1).0, ENOUGH * 1000, "doubt never parks an entry sooner");
}

#[test]
fn a_blob_that_is_missing_has_its_own_patience() {
    let entry = entries::entry(1);
    let missing = FailedAttempt { kind: FaultKind::MissingAtSource, ..of(&entry, ANSWER, 1) };
    assert_eq!(Attribution::default().weigh(&missing, 10), Weight(0));
}

#[test]
fn doubt_weighs_nothing_until_another_succeeds_that_began_later() {
    let mut attribution = Attribution::default();
    let first = entries::entry(1);
    assert_eq!(attribution.weigh(&of(&first, DOUBT, 10), 10), Weight(0));
    let again = failed(1, FaultKind::DestinationUnavailable, 10);
    assert_eq!(doubts(&again), 1);
    assert_eq!(attribution.weigh(&of(&again, DOUBT, 20), 10), Weight(0), "nobody else was tried");
    // It began before the failure: that says nothing.
    attribution.succeeded(Side::Destination, moment(9), 0);
    assert_eq!(attribution.weigh(&of(&again, DOUBT, 20), 10), Weight(0));
    attribution.succeeded(Side::Source, moment(15), 0);
    assert_eq!(attribution.weigh(&of(&again, DOUBT, 20), 10), Weight(0), "the other side's says nothing");
    attribution.succeeded(Side::Destination, moment(15), 0);
    let weight = attribution.weigh(&of(&again, DOUBT, 20), 10);
    assert!(weight > Weight(900) && weight <= Weight::ONE, "{weight:?}");
}

#[test]
fn it_weighs_as_much_as_first_tries_succeed_there() {
    let weighs = |failing: u64| {
        let mut attribution = Attribution::default();
        for number in 0..400 {
            if number % 10 < failing {
                attribution.weigh(&of(&entries::entry(number), DOUBT, number), 10);
            } else {
                attribution.succeeded(Side::Destination, moment(number), 0);
            }
        }
        let again = failed(1, FaultKind::DestinationUnavailable, 10);
        f64::from(attribution.weigh(&of(&again, DOUBT, 500), 10).0) / 1000.0
    };
    assert!(weighs(1) > 0.8 && (0.4..0.65).contains(&weighs(5)) && weighs(9) < 0.25, "{} {}", weighs(5), weighs(9));
}

#[test]
fn what_suspects_do_again_says_nothing_of_the_peer_until_they_succeed() {
    let mut attribution = Attribution::default();
    let again = failed(1, FaultKind::DestinationUnavailable, 10);
    (0..100).for_each(|second| _ = attribution.weigh(&of(&again, DOUBT, second), 10));
    assert!((attribution.health(Side::Destination) - 1.0).abs() < 1e-9);
    // An innocent one: all its failures were the peer's.
    attribution.succeeded(Side::Destination, moment(200), 40);
    assert!(attribution.health(Side::Destination) < 0.4);
}

#[test]
fn cut_twice_under_way_needs_no_others() {
    let mut attribution = Attribution::default();
    assert_eq!(attribution.weigh(&of(&entries::entry(1), FailureClass::Cut, 10), 10), Weight(0));
    let again = failed(1, FaultKind::ConnectionCut, 10);
    assert_eq!(attribution.weigh(&of(&again, FailureClass::Cut, 20), 10), Weight::ONE);
    let other = failed(1, FaultKind::DestinationUnavailable, 10);
    assert_eq!(attribution.weigh(&of(&other, FailureClass::Cut, 20), 10), Weight(0));
}

#[test]
fn alone_it_is_charged_one_in_forty_minutes_while_the_canary_is_well() {
    let mut attribution = Attribution::default();
    let mut entry = entries::entry(1);
    let mut charged = 0;
    for minute in 0..6 * 60 {
        let now = minute * 60;
        let canary = (minute > 0).then(|| at(now - 5));
        let weight = attribution.weigh(&FailedAttempt { canary, ..of(&entry, DOUBT, now) }, 10);
        charged += weight.0 / 1000;
        entry = failed(1, FaultKind::DestinationUnavailable, now);
    }
    assert!((7..=9).contains(&charged), "{charged} in six hours");
    let silent = FailedAttempt { canary: None, ..of(&entry, DOUBT, 100_000) };
    assert_eq!(attribution.weigh(&silent, 10), Weight(0), "no canary, no charge");
}

#[test]
fn many_answers_in_a_row_raise_an_alarm_and_have_the_source_asked() {
    let mut attribution = Attribution::default();
    let missing = FaultKind::MissingAtSource;
    let meta = |number: u64| BlobMeta { blob: entries::entry(number).blob, size: number };
    let asks = |attribution: &mut Attribution, times: u64| {
        (0..times).filter(|time| attribution.answered(missing, Side::Source, "no such blob", at(*time))).count()
    };
    assert_eq!(asks(&mut attribution, 100), 0, "nothing was copied: there is nothing to ask for");
    assert_eq!(attribution.alarm().map(|streak| (streak.count, streak.since)), Some((100, at(0))));
    (0..100).for_each(|number| attribution.confirmed(meta(number)));
    assert_eq!((attribution.alarm(), attribution.sample().len()), (None, SAMPLE));
    assert_eq!(asks(&mut attribution, MANY), 1);
    let all: Vec<_> = (84..100).map(meta).collect();
    attribution.source_holds(&all, at(5));
    assert_eq!(attribution.vanished(), None);
    attribution.source_holds(&all[..7], at(6));
    attribution.source_holds(&[], at(7));
    assert_eq!(attribution.vanished(), Some(at(6)), "since when it was first seen");
    attribution.source_holds(&all[..8], at(8));
    assert_eq!(attribution.vanished(), None);
}

#[test]
fn a_pack_that_fails_counts_as_one_failed_try_of_that_side() {
    let mut attribution = Attribution::default();
    attribution.pack_failed(Side::Destination);
    assert_eq!((attribution.health(Side::Source), attribution.health(Side::Destination)), (1.0, 1.0 - MEMORY));
    attribution.pack_failed(Side::Destination);
    assert_eq!(attribution.health(Side::Destination), (1.0 - MEMORY) * (1.0 - MEMORY));
}

#[test]
fn no_more_lone_entries_are_remembered_than_fit() {
    let mut attribution = Attribution::default();
    for number in 0..MAX_LONE as u64 {
        attribution.note_lone(Seq(number), moment(number));
    }
    // One that is known takes no room.
    attribution.note_lone(Seq(7), moment(1));
    assert_eq!((attribution.lone.len(), attribution.lone.first_key_value()), (MAX_LONE, Some((&Seq(0), &moment(0)))));
    attribution.note_lone(Seq(u64::MAX), moment(2));
    assert_eq!((attribution.lone.len(), attribution.lone.first_key_value()), (MAX_LONE, Some((&Seq(1), &moment(1)))));
    assert_eq!(attribution.lone.get(&Seq(u64::MAX)), Some(&moment(2)));
    attribution.forget(Seq(u64::MAX));
    assert_eq!(attribution.lone.get(&Seq(u64::MAX)), None, "it has left");
}
