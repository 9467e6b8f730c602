//! The scenarios, and the bound that each must keep with every seed. Rates are parts of what 32 workers (or as many as are
//! given) make undisturbed, with a latency of 25 ms.

use super::{ANSWER, CUT, DOUBT, FINAL, Habit, Sim, Tag, World};
use crate::backoff::Patience;
use crate::fault::Side;
use crate::queue::Lane;
use crate::worker::Policy;
use crate::worker::scheduler::{Event, Pause};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const HOUR: f64 = 3600.0;
const SIX_HOURS: f64 = 6.0 * HOUR;
const LATENCY: f64 = 0.025;

/// Seeds of each scenario, unless `BLOBFERRY_SIMULATE_SEEDS` says otherwise.
const SEEDS: u64 = 10;

#[derive(Clone, Copy)]
enum Bound {
    Least(f64),
    Most(f64),
}
use Bound::{Least, Most};

fn seeds() -> u64 {
    std::env::var("BLOBFERRY_SIMULATE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS)
}

/// Holds the measure to its bound with each seed.
fn hold(name: &str, bound: Bound, measure: impl Fn(u64) -> f64) {
    let holds = |value: f64| match bound {
        Least(least) => value >= least,
        Most(most) => value <= most,
    };
    let mut found: Vec<(f64, u64)> = (0..seeds()).map(|seed| (measure(seed), seed)).collect();
    let first = found.iter().find(|(value, _)| !holds(*value)).map(|(_, seed)| *seed);
    found.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (worst, median) = match bound {
        Least(_) => (found[0], found[found.len() / 2].0),
        Most(_) => (found[found.len() - 1], found[found.len() / 2].0),
    };
    println!("{name}: worst {:.3} (seed {}), median {median:.3}", worst.0, worst.1);
    assert!(first.is_none(), "{name}: {:.3} with seed {}, first seen with seed {first:?}", worst.0, worst.1);
}

fn many(tag: Tag, number: usize) -> Vec<Tag> {
    vec![tag; number]
}

fn both(bad: usize, good: usize) -> Vec<Tag> {
    [many(Tag::Bad, bad), many(Tag::Good, good)].concat()
}

fn mixed(number: usize, tag: Tag, share: f64, seed: u64) -> Vec<Tag> {
    let mut rng = SmallRng::seed_from_u64(seed ^ 0xABCD);
    (0..number).map(|_| if rng.random::<f64>() < share { tag } else { Tag::Good }).collect()
}

struct Go {
    workers: usize,
    policy: Policy,
    until: f64,
    /// Until the last good one is through.
    good_only: bool,
    packs: bool,
}

impl Default for Go {
    fn default() -> Self {
        Self { workers: 32, policy: Policy::default(), until: 86_400.0, good_only: false, packs: false }
    }
}

fn go(seed: u64, world: World, pushes: Vec<(f64, Lane, Vec<Tag>)>, how: Go) -> Sim {
    go_in(seed, move |_| world.clone(), pushes, how)
}

fn go_in(seed: u64, world: impl Fn(f64) -> World + 'static, pushes: Vec<(f64, Lane, Vec<Tag>)>, how: Go) -> Sim {
    let mut sim = Sim::new(world, seed, how.workers, how.policy);
    sim.packs = how.packs;
    let all: usize = pushes.iter().map(|(_, _, tags)| tags.len()).sum();
    let good: usize = pushes.iter().flat_map(|(_, _, tags)| tags).filter(|tag| **tag != Tag::Bad).count();
    for (time, lane, tags) in pushes {
        sim.push_at(time, lane, tags);
    }
    let good_only = how.good_only;
    sim.run(how.until, move |sim| {
        if good_only {
            return sim.confirmed.len() >= good;
        }
        sim.tags.len() == all && sim.queue.queued() == 0
    });
    sim
}

fn at_once(tags: Vec<Tag>) -> Vec<(f64, Lane, Vec<Tag>)> {
    vec![(0.0, Lane::Fresh, tags)]
}

/// So many each second.
fn each_second(first: Vec<Tag>, seconds: usize, tags: impl Fn(usize) -> Vec<Tag>) -> Vec<(f64, Lane, Vec<Tag>)> {
    let mut pushes = at_once(first);
    pushes.extend((1..=seconds).map(|second| (second as f64, Lane::Fresh, tags(second))));
    pushes
}

/// Confirmed per second, as a part of the undisturbed rate, up to this part of all. None where an innocent was parked or the
/// breaker opened.
fn rate(sim: &Sim, part: f64, workers: usize, calm: bool) -> f64 {
    if calm && (sim.openings() > 0 || sim.most_charged() > 10.0) {
        return 0.0;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some thousands")]
    let count = (sim.confirmed.len() as f64 * part) as usize;
    if count == 0 {
        return 0.0;
    }
    count as f64 / sim.confirmed[count - 1] * LATENCY / workers as f64
}

/// Confirmed per second between two times, as places.
fn flow(sim: &Sim, from: f64, to: f64) -> f64 {
    sim.confirmed.iter().filter(|time| (from..to).contains(*time)).count() as f64 / (to - from) * LATENCY
}

/// When the last of the good ones was confirmed.
fn last(sim: &Sim) -> f64 {
    if sim.confirmed.len() == sim.good() { sim.confirmed.last().copied().unwrap_or(0.0) } else { f64::INFINITY }
}

/// How long after `at` two hundred were confirmed within 0.31 s.
fn back(sim: &Sim, at: f64) -> f64 {
    let pairs = sim.confirmed.iter().zip(sim.confirmed.iter().skip(200));
    let quick = pairs.filter(|(first, last)| **first >= at && **last - **first < 0.31).map(|(_, last)| last - at);
    quick.fold(f64::INFINITY, f64::min)
}

/// The most tries in a minute of an outage: copies, and questions what the peer is.
fn tries_in_a_minute(sim: &Sim) -> f64 {
    let mut all = [sim.tries.as_slice(), &sim.identifications].concat();
    all.sort_by(f64::total_cmp);
    let of = all.iter().enumerate().filter(|(_, time)| (60.0..SIX_HOURS - 60.0).contains(*time));
    let counts = of.map(|(at, time)| all.partition_point(|other| *other < time + 60.0) - at);
    counts.max().unwrap_or(0) as f64
}

#[test]
fn undisturbed() {
    for workers in [2, 32, 256] {
        hold(&format!("1 undisturbed, {workers} workers"), Least(0.95), |seed| {
            let tags = many(Tag::Good, 400 + 60 * workers);
            let sim = go(seed, World::well(), at_once(tags), Go { workers, ..Go::default() });
            rate(&sim, 0.6, workers, true)
        });
    }
}

#[test]
fn load_shedding() {
    for wait in [0.0, 0.1, 1.0, 10.0] {
        hold(&format!("2 admits 4, RetryInfo {wait} s"), Least(0.8), |seed| {
            let world = World { admits: Some(|_| 4), wait, ..World::well() };
            rate(&go(seed, world, at_once(many(Tag::Good, 2000)), Go::default()), 0.6, 4, true)
        });
    }
    for (after, places) in [(3.0, 4.0), (13.0, 32.0), (23.0, 2.0)] {
        hold(&format!("2 admits 4, 32, 2: {places}"), Least(0.8), |seed| {
            let admits: fn(f64) -> usize = |now| {
                if now < 10.0 {
                    4
                } else if now < 20.0 {
                    32
                } else {
                    2
                }
            };
            let world = World { admits: Some(admits), wait: 1.0, ..World::well() };
            let sim = go(seed, world, at_once(many(Tag::Good, 20_000)), Go { until: 30.0, ..Go::default() });
            flow(&sim, after, after + 7.0) / places
        });
    }
    hold("2 latency grows beyond 16", Least(0.95), |seed| {
        let world = World { habit: Habit::Crowded, ..World::well() };
        2.0 * rate(&go(seed, world, at_once(many(Tag::Good, 3000)), Go::default()), 0.6, 32, true)
    });
    hold("2 every third call refused", Least(0.8), |seed| {
        let world = World { habit: Habit::Third, ..World::well() };
        1.5 * rate(&go(seed, world, at_once(many(Tag::Good, 4000)), Go::default()), 0.6, 32, true)
    });
}

#[test]
fn a_small_rate_of_errors() {
    for fails in [0.005, 0.02, 0.1, 0.3] {
        hold(&format!("3 {fails} UNAVAILABLE"), Least(0.9), |seed| {
            let world = World { fails, ..World::well() };
            rate(&go(seed, world, at_once(many(Tag::Good, 4000)), Go::default()), 0.6, 32, true) / (1.0 - fails)
        });
    }
    hold("3 connections that live 3 s", Least(0.9), |seed| {
        let world = World { habit: Habit::Aged, ..World::well() };
        rate(&go(seed, world, at_once(many(Tag::Good, 9000)), Go::default()), 0.6, 32, true)
    });
}

#[test]
fn innocents_are_not_parked_whatever_park_after_is() {
    for fails in [0.02, 0.3] {
        hold(&format!("3 {fails}, park_after 1"), Most(0.0), |seed| {
            let mut policy = Policy::default();
            policy.patience = Patience { park_after: 1, ..policy.patience };
            let world = World { fails, ..World::well() };
            let sim = go(seed, world, at_once(many(Tag::Good, 4000)), Go { policy, ..Go::default() });
            sim.queue.parked().count() as f64
        });
    }
}

#[test]
fn whole_outages() {
    let down = |to: f64, hangs| World { down: vec![(1.0, to)], hangs, ..World::well() };
    let run = |seed, to, hangs| go(seed, down(to, hangs), at_once(many(Tag::Good, 4000)), Go::default());
    hold("4 6 h down: charges", Most(0.0), |seed| {
        let world = down(SIX_HOURS, None);
        go(seed, world, at_once(many(Tag::Good, 4000)), Go { until: SIX_HOURS, ..Go::default() }).most_charged()
    });
    hold("4 6 h down: tries a minute", Most(20.0), |seed| {
        let tries = tries_in_a_minute(&run(seed, SIX_HOURS, None));
        // It is tried all the same.
        if tries < 4.0 { f64::INFINITY } else { tries }
    });
    for (to, hangs) in [(SIX_HOURS, None), (SIX_HOURS, Some(30.0)), (21.0, None)] {
        hold(&format!("4 {to} s down, tries hang {hangs:?}: half the rate after s"), Most(15.0), |seed| {
            back(&run(seed, to, hangs), to)
        });
    }
    hold("4 6 h of failing writes, canary well: charges", Most(9.0), |seed| {
        let world = World { down: vec![(0.0, SIX_HOURS)], canary: Some(true), ..World::well() };
        go(seed, world, at_once(many(Tag::Good, 20)), Go { until: SIX_HOURS, ..Go::default() }).most_charged()
    });
}

#[test]
fn a_peer_that_comes_back_overloaded() {
    let world =
        |now| World { down: vec![(1.0, 21.0)], admits: Some(if now < 60.0 { |_| 0 } else { |_| 64 }), ..World::well() };
    let sim = |seed| go_in(seed, world, at_once(many(Tag::Good, 4000)), Go::default());
    hold("4 20 s down, full for 40 s: tries a second", Most(100.0), |seed| {
        sim(seed).tries.iter().filter(|at| (21.0..60.0).contains(*at)).count() as f64 / 39.0
    });
    hold("4 20 s down, full for 40 s: half the rate after s", Most(15.0), |seed| back(&sim(seed), 60.0));
}

#[test]
fn hopeless_entries_at_the_head() {
    for (bad, ending) in [(300, DOUBT), (6000, DOUBT), (300, ANSWER), (6000, ANSWER), (6000, FINAL)] {
        let world = move || World { bad: ending, ..World::well() };
        let how = || Go { good_only: true, ..Go::default() };
        hold(&format!("5 {bad} {ending:?} first, 100 good: all after s"), Most(5.0), |seed| {
            last(&go(seed, world(), at_once(both(bad, 100)), how()))
        });
        hold(&format!("5 {bad} {ending:?} first, 3000 good: rate"), Least(0.5), |seed| {
            rate(&go(seed, world(), at_once(both(bad, 3000)), how()), 1.0, 32, false)
        });
    }
    for (bad, ending) in [(300, DOUBT), (6000, DOUBT), (6000, ANSWER), (6000, FINAL)] {
        hold(&format!("5 {bad} {ending:?} first, in packs, 3000 good: all after s"), Most(5.0), |seed| {
            let how = Go { good_only: true, packs: true, ..Go::default() };
            last(&go(seed, World { bad: ending, ..World::well() }, at_once(both(bad, 3000)), how))
        });
    }
    let good = |_| many(Tag::Good, 1);
    hold("5 300 bad, a good one a second: parked after s", Most(1800.0), |seed| {
        let sim = go(seed, World::well(), each_second(many(Tag::Bad, 300), 1800, good), Go::default());
        if sim.queue.parked().count() == 300 { sim.last_parked } else { f64::INFINITY }
    });
    hold("5 100 bad, nothing else: parked after h", Most(8.0), |seed| {
        let world = World { canary: Some(true), ..World::well() };
        let sim = go(seed, world, at_once(many(Tag::Bad, 100)), Go::default());
        if sim.queue.parked().count() == 100 { sim.last_parked / HOUR } else { f64::INFINITY }
    });
}

#[test]
fn an_unreadable_shard() {
    hold("6 a quarter bad, first: rate", Least(0.5), |seed| {
        let how = Go { good_only: true, ..Go::default() };
        rate(&go(seed, World::well(), at_once(both(750, 2250)), how), 1.0, 32, false)
    });
    hold("6 a quarter bad, mixed: rate", Least(0.5), |seed| {
        let how = Go { good_only: true, ..Go::default() };
        rate(&go(seed, World::well(), at_once(mixed(4000, Tag::Bad, 0.25, seed)), how), 1.0, 32, true)
    });
    hold("6 a quarter bad, mixed, in packs: all good after s", Most(40.0), |seed| {
        let how = Go { good_only: true, packs: true, ..Go::default() };
        let sim = go(seed, World::well(), at_once(mixed(40_000, Tag::Bad, 0.25, seed)), how);
        if sim.openings() > 0 { f64::INFINITY } else { last(&sim) }
    });
    hold("6 a quarter bad, 9 good a second: parked after s", Most(1800.0), |seed| {
        let tags = mixed(1000, Tag::Bad, 0.25, seed);
        let bad = tags.iter().filter(|tag| **tag == Tag::Bad).count();
        let sim = go(seed, World::well(), each_second(tags, 1800, |_| many(Tag::Good, 9)), Go::default());
        if sim.queue.parked().count() == bad { sim.last_parked } else { f64::INFINITY }
    });
}

#[test]
fn several_things_at_once() {
    let outages = || (0..9).map(|at| (60.0 + 300.0 * f64::from(at), 80.0 + 300.0 * f64::from(at))).collect::<Vec<_>>();
    let pushes =
        |seed: u64| each_second(Vec::new(), 1500, move |second| mixed(9, Tag::Bad, 0.25, seed * 5000 + second as u64));
    hold("7 a quarter bad, 20 s outages: charges", Most(3.0), |seed| {
        let world = World { down: outages(), ..World::well() };
        go(seed, world, pushes(seed), Go { until: 1600.0, ..Go::default() }).most_charged()
    });
    hold("7 admits 4, 2% UNAVAILABLE", Least(0.8), |seed| {
        let world = World { admits: Some(|_| 4), fails: 0.02, ..World::well() };
        rate(&go(seed, world, at_once(many(Tag::Good, 2000)), Go::default()), 0.6, 4, true)
    });
    hold("7 one of 100 takes 40 s: rate", Least(0.5), |seed| {
        let tags = mixed(4000, Tag::Slow, 0.01, seed);
        rate(&go(seed, World::well(), at_once(tags), Go::default()), 0.9, 32, true)
    });
    hold("7 one of 10 takes 40 s: of what 128 places can", Least(0.8), |seed| {
        let tags = mixed(2000, Tag::Slow, 0.1, seed);
        rate(&go(seed, World::well(), at_once(tags), Go::default()), 0.9, 32, true) / (128.0 / 4.0 / 1280.0)
    });
}

#[test]
fn partial_outages_park_no_innocent() {
    for (fails, entries) in [(0.995, 5), (0.995, 50), (0.995, 1000), (0.98, 50), (0.9, 500), (0.5, 500)] {
        hold(&format!("8 6 h of {fails} failing, {entries} entries: charges"), Most(9.9), |seed| {
            let world = World { fails, identifies: true, ..World::well() };
            let how = Go { until: SIX_HOURS, ..Go::default() };
            go(seed, world, at_once(many(Tag::Good, entries)), how).most_charged()
        });
    }
}

#[test]
fn one_entry_alone() {
    let parked_after = |sim: &Sim| if sim.queue.parked().count() == 1 { sim.last_parked } else { f64::INFINITY };
    hold("9 alone, always fails, canary well: parked after h", Most(8.0), |seed| {
        let world = World { canary: Some(true), ..World::well() };
        parked_after(&go(seed, world, at_once(many(Tag::Bad, 1)), Go::default())) / HOUR
    });
    hold("9 alone, cut every 4 s: parked after s", Most(1800.0), |seed| {
        let world = World { bad: CUT, took: Some(4.0), ..World::well() };
        parked_after(&go(seed, world, at_once(many(Tag::Bad, 1)), Go::default()))
    });
}

#[test]
fn the_other_side_is_not_narrowed() {
    let away = || World { down: vec![(1.0, 61.0)], side: Side::Source, ..World::well() };
    hold("10 source down for 60 s: rate from 15 s after", Least(0.9), |seed| {
        let sim = go(seed, away(), at_once(many(Tag::Good, 30_000)), Go { until: 80.0, ..Go::default() });
        flow(&sim, 76.0, 80.0) / 32.0
    });
}

#[test]
fn retries_have_no_more_than_their_share() {
    hold("11 9,000 bad: retries' share of the workers", Most(0.35), |seed| {
        let mut pushes = vec![(0.0, Lane::Fresh, many(Tag::Bad, 9000)), (0.0, Lane::Backfill, many(Tag::Good, 20_000))];
        pushes.extend((9..30).map(|time| (f64::from(time), Lane::Fresh, many(Tag::Good, 1000))));
        let sim = go(seed, World::well(), pushes, Go { until: 30.0, ..Go::default() });
        sim.seconds[1] / sim.seconds[0]
    });
}

#[test]
fn retries_leave_the_packs_their_share() {
    hold("11 6,000 bad beside packs, of four workers for single ones: busy with retries", Most(1.3), |seed| {
        let how = Go { good_only: true, packs: true, workers: 4, ..Go::default() };
        let sim = go(seed, World { bad: DOUBT, ..World::well() }, at_once(both(6000, 60_000)), how);
        let took = last(&sim);
        if took > 2.0 { sim.seconds[1] / took } else { f64::INFINITY }
    });
}

#[test]
fn a_lost_copy_is_begun_again_after_a_rest() {
    let mut sim = Sim::new(|_| World::well(), 1, 1, Policy::default());
    sim.push_at(0.0, Lane::Fresh, many(Tag::Good, 1));
    sim.run(10.0, |sim| sim.tries.len() == 1);
    let (job, (claims, ..)) = sim.flying.drain().next().unwrap();
    drop(claims);
    sim.active -= 1;
    sim.apply(Event::Lost(job));
    assert_eq!(sim.scheduler.pause(), &Pause::CopyLost);
    sim.run(10.0, |sim| sim.confirmed.len() == 1);
    assert_eq!((sim.confirmed.len(), sim.tries.len()), (1, 2));
    assert!(sim.tries[1] - sim.tries[0] >= 1.0);
}
