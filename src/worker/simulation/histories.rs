//! Random histories: minutes of anything, then peace. What must hold whatever happens.

use super::{ANSWER, CUT, DOUBT, Sim, Tag, World};
use crate::queue::Lane;
use crate::worker::Policy;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Histories that `cargo test` steps through, unless `BLOBFERRY_SIMULATE` says otherwise.
const HISTORIES: u64 = 200;

/// Minutes of anything, and of peace behind them.
const WILD: u32 = 4;
const PEACE: f64 = 600.0;

/// Steps of the scheduler for each try, at most: more are a hot loop.
const STEPS: u64 = 40;

fn world(rng: &mut SmallRng) -> World {
    let fails = [0.0, 0.01, 0.1, 0.5, 0.9, 0.99, 1.0][rng.random_range(0..7)];
    let admits: Option<fn(f64) -> usize> = match rng.random_range(0..4) {
        0 => Some(|_| 2),
        1 => Some(|_| 8),
        _ => None,
    };
    let bad = [DOUBT, DOUBT, ANSWER, CUT][rng.random_range(0..4)];
    World { fails, admits, bad, ..World::well() }
}

/// Steps through one history; what was wrong with it.
fn history(seed: u64) -> Result<(), String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let worlds: Vec<World> = (0..WILD).map(|_| world(&mut rng)).collect();
    let share = [0.0, 0.1, 0.3][rng.random_range(0..3)];
    let workers = [1, 4, 32][rng.random_range(0..3)];
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "minutes")]
    let at = move |now: f64| worlds.get((now / 60.0) as usize).cloned().unwrap_or_else(World::well);
    let mut sim = Sim::new(at, seed, workers, Policy::default());
    sim.packs = rng.random();
    let seconds = 60 * WILD;
    for second in 0..seconds {
        let number = rng.random_range(0..6);
        let tags: Vec<Tag> =
            (0..number).map(|_| if rng.random::<f64>() < share { Tag::Bad } else { Tag::Good }).collect();
        let lane = if rng.random_bool(0.8) { Lane::Fresh } else { Lane::Backfill };
        sim.push_at(f64::from(second), lane, tags);
    }
    sim.run(f64::from(seconds) + PEACE, |sim| sim.now > f64::from(seconds) && sim.good_left() == 0);
    let parked = sim.queue.parked().filter(|(seq, _)| sim.tags.get(seq) != Some(&Tag::Bad)).count();
    let (left, tries) = (sim.good_left(), sim.tries.len() as u64);
    if parked > 0 {
        return Err(format!("{parked} innocent entries were parked"));
    }
    if left > 0 {
        return Err(format!("{left} good entries did not arrive"));
    }
    if sim.confirmed.len() != sim.good() {
        return Err(format!("{} of {} are accounted for", sim.confirmed.len(), sim.good()));
    }
    if sim.queue.unclaimed > 0 {
        return Err(format!("{} entries were settled without a claim", sim.queue.unclaimed));
    }
    if sim.most_active > 2 * workers + 3 * workers {
        return Err(format!("{} copies at a time with {workers} workers", sim.most_active));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "minutes")]
    let allowed = STEPS * (tries + 100 * sim.now as u64 + 1000);
    if sim.applies > allowed {
        return Err(format!("{} steps for {tries} tries: a hot loop", sim.applies));
    }
    Ok(())
}

#[test]
fn random_histories_keep_every_invariant() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seeds = match number("BLOBFERRY_SIMULATE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("BLOBFERRY_SIMULATE").unwrap_or(HISTORIES),
    };
    let mut wrong = seeds.filter_map(|seed| Some((seed, history(seed).err()?)));
    if let Some((seed, why)) = wrong.next() {
        panic!("{why}; to repeat it: make simulate SEED={seed}");
    }
}
