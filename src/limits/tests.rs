#![allow(clippy::unwrap_used, reason = "tests")]

use super::{BlobRate, Limits, Override, Throttle};
use crate::clock::{Clock, ManualClock};
use std::sync::Arc;
use std::time::Duration;

fn lab(limits: Limits) -> (Arc<ManualClock>, Arc<Throttle>) {
    let clock = Arc::new(ManualClock::default());
    clock.advance(Duration::from_secs(77));
    let throttle = Throttle::new(clock.clone());
    throttle.set(&limits);
    (clock, throttle)
}

fn bytes(rate: u64) -> Limits {
    Limits { bytes_per_second: Some(rate), ..Limits::workers(4) }
}

fn blobs(rate: f64) -> Limits {
    Limits { blobs_per_second: BlobRate::new(rate), ..Limits::workers(4) }
}

/// Begins copies of these sizes as fast as may be, each done at once, for so many seconds; how many there were.
fn run(clock: &ManualClock, throttle: &Arc<Throttle>, seconds: u64, size: impl Fn(u64) -> (Option<u64>, u64)) -> u64 {
    let end = clock.monotonic().saturating_add(Duration::from_secs(seconds));
    let mut begun = 0;
    loop {
        let (stated, actual) = size(begun);
        match throttle.begin(stated) {
            Ok(mut charge) => {
                _ = charge.known(Some(actual));
                begun += 1;
            }
            Err(until) => {
                assert!(until > clock.monotonic(), "it would spin");
                if until >= end {
                    return begun;
                }
                clock.advance(until.since(clock.monotonic()));
            }
        }
    }
}

#[test]
fn overrides_replace_one_setting_at_a_time() {
    let configured = Limits { bytes_per_second: Some(7), ..Limits::workers(32) };
    assert_eq!(configured.with([]), configured);
    let overrides = [Override::Paused, Override::Workers(3), Override::BytesPerSecond(None)];
    assert_eq!(configured.with(&overrides), Limits { paused: true, ..Limits::workers(3) });
    let rate = BlobRate::new(0.5);
    assert_eq!(configured.with(&[Override::BlobsPerSecond(rate)]).blobs_per_second, rate);
}

#[test]
fn blob_rates_have_bounds() {
    assert_eq!(BlobRate::new(2.5).unwrap().per_second(), 2.5);
    assert_eq!(BlobRate::new(0.001).unwrap().to_string(), "0.001");
    for wrong in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e7] {
        assert_eq!(BlobRate::new(wrong), None);
    }
}

#[test]
fn byte_rates_are_exact_over_time_whatever_the_rate() {
    for rate in [999, 1000, 1999, 1_000_003, 200 << 20, 3 << 40] {
        let (clock, throttle) = lab(bytes(rate));
        let size = (rate / 10).max(1);
        let sent = run(&clock, &throttle, 1000, |_| (Some(size), size)) * size;
        // A thousand seconds, half a second's burst, and what the last ones borrow.
        let (least, most) = (rate * 1000 - size, rate * 1000 + rate / 2 + 2 * size);
        assert!((least..=most).contains(&sent), "{rate}: {least} {sent} {most}");
    }
}

#[test]
fn blob_rates_are_exact_over_time_whatever_the_rate() {
    for rate in [0.01, 0.5, 1.0, 3.0, 7.7, 1000.0, 123_456.0] {
        let (clock, throttle) = lab(blobs(rate));
        let seconds = if rate < 1.0 { 10_000.0 } else { 100.0 };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds")]
        let begun = run(&clock, &throttle, seconds as u64, |_| (None, 1 << 40)) as f64;
        assert!((begun - seconds * rate).abs() <= rate / 2.0 + 1.0, "{rate}: {begun}");
    }
}

#[test]
fn a_blob_larger_than_the_burst_goes_and_the_next_waits_for_its_time() {
    let (clock, throttle) = lab(bytes(1000));
    let mut large = throttle.begin(Some(60_000)).unwrap();
    let until = throttle.begin(Some(1)).unwrap_err();
    assert!(until > clock.monotonic());
    _ = large.known(Some(60_000));
    let start = clock.monotonic();
    assert_eq!(run(&clock, &throttle, 59, |_| (Some(1), 1)), 0);
    clock.advance(Duration::from_secs(61).saturating_sub(clock.monotonic().since(start)));
    // Whoever does not ask meanwhile pays later; nobody is starved.
    assert!(run(&clock, &throttle, 120, |_| (Some(1), 1)) > 1000);
}

#[test]
fn bytes_are_charged_when_they_are_known_and_given_back_when_they_did_not_flow() {
    let (clock, throttle) = lab(bytes(1000));
    let mut unknown = throttle.begin(None).unwrap();
    let mut other = throttle.begin(None).unwrap();
    _ = unknown.known(None);
    assert!(throttle.begin(None).is_ok());
    _ = unknown.known(Some(10_000));
    assert!(throttle.begin(None).is_err());
    // The destination had it already.
    _ = unknown.known(Some(0));
    _ = other.known(Some(0));
    assert!(throttle.begin(None).is_ok());
    // What flowed counts, not what was announced.
    assert_eq!(run(&clock, &throttle, 1000, |_| (Some(1), 1000)) / 10, 100);
    assert!(run(&clock, &throttle, 100, |_| (Some(1_000_000), 10)) >= 9_800);
}

#[test]
fn nobody_waits_for_what_a_hint_that_lied_was_charged() {
    let (clock, throttle) = lab(bytes(1000));
    let mut lies = throttle.begin(Some(u64::MAX)).unwrap();
    assert!(throttle.begin(Some(1)).is_err() && !throttle.gave_back());
    assert!(lies.known(Some(100)), "it gives back");
    assert!(throttle.gave_back());
    // A thousand such cost what their bytes do.
    assert!(run(&clock, &throttle, 10, |_| (Some(u64::MAX), 100)) >= 99);
    let (_, throttle) = lab(bytes(1000));
    let mut honest = throttle.begin(Some(100)).unwrap();
    assert!(!honest.known(Some(100)) && !honest.known(Some(700)));
}

#[test]
fn what_was_paid_for_nothing_is_not_saved_up() {
    let (_, throttle) = lab(bytes(1000));
    for _ in 0..100 {
        if let Ok(mut charge) = throttle.begin(Some(400)) {
            _ = charge.known(Some(0));
        }
    }
    let sent = (0..100).filter_map(|_| throttle.begin(Some(100)).ok()).count();
    assert!(sent <= 11, "{sent}");
}

#[test]
fn rates_change_live_and_debts_are_kept() {
    let (clock, throttle) = lab(Limits::workers(4));
    let may_begin = |size| throttle.begin(Some(size)).map(drop).is_ok();
    assert!((0..32).all(|_| may_begin(1 << 30)));
    throttle.set(&bytes(1000));
    assert!(may_begin(100_000) && !may_begin(1));
    throttle.set(&bytes(1_000_000));
    assert!(may_begin(100_000_000), "a tenth of a second's worth fits the burst");
    throttle.set(&blobs(1.0));
    assert_eq!(run(&clock, &throttle, 10, |_| (Some(1 << 40), 1 << 40)), 11);
    throttle.set(&Limits::workers(4));
    assert!((0..32).all(|_| throttle.begin(Some(1 << 30)).map(drop).is_ok()));
}
