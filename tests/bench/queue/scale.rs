//! A large queue beside a small one: the next claim, full and drained, and what each entry costs.

use crate::Settings;
use crate::load::Subject;
use crate::reopen::Large;
use crate::support::machine;
use crate::support::report::{Comparison, Report, spread};
use anyhow::{Result, ensure};
use rand::{SeedableRng as _, rngs::SmallRng};
use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

/// Entries pushed and settled in a round.
const MOVED: u64 = 50_000;
/// Entries in a push and a settlement of those.
const BATCH: u64 = 1000;
/// Entries in a claim and a settlement while a queue is drained.
const DRAIN: u64 = 10_000;
/// Entries that a worker claims at a time, at most.
const AHEAD: usize = 2048;

/// Percentiles of claims, in microseconds.
struct Percentiles {
    p50: f64,
    p99: f64,
}

impl Percentiles {
    fn of(mut micros: Vec<f64>) -> Self {
        micros.sort_by(f64::total_cmp);
        Self { p50: micros[micros.len() / 2], p99: micros[micros.len() * 99 / 100] }
    }
}

pub(crate) async fn compare(settings: &Settings, dir: &Path, large: &Large, report: &mut Report) -> Result<()> {
    println!("\n{} entries beside {}", settings.entries, settings.few);
    let path = large.filled()?;
    let many = Subject::open(path).await?;
    let few = Subject::open(&dir.join("small")).await?;
    let mut random = SmallRng::seed_from_u64(7);
    while few.entries() < settings.few {
        few.push(BATCH.min(settings.few - few.entries()), &mut random).await?;
    }

    let mut pushed = comparison(settings, "pushed, 1,000 at a time", "entries/s");
    let mut settled = comparison(settings, "claimed and settled, 1,000 at a time", "entries/s");
    let mut cpu = comparison(settings, "CPU of both, whole process", "µs/entry");
    // Both have just been opened: what they left undone, and what they have to read first, is not counted.
    for subject in [&few, &many] {
        subject.push(4 * MOVED, &mut random).await?;
        subject.drain(4 * MOVED, DRAIN).await?;
    }
    for round in 0..settings.rounds {
        for turn in 0..2 {
            let large = (turn + round) % 2 == 1;
            let subject = if large { &many } else { &few };
            let (start, before) = (Instant::now(), machine::usage(std::process::id())?);
            for _ in 0..MOVED / BATCH {
                subject.push(BATCH, &mut random).await?;
            }
            let push_rate = MOVED as f64 / start.elapsed().as_secs_f64();
            let start = Instant::now();
            subject.drain(MOVED, BATCH).await?;
            let settle_rate = MOVED as f64 / start.elapsed().as_secs_f64();
            side(&mut pushed, large).push(push_rate);
            side(&mut settled, large).push(settle_rate);
            let spent = machine::usage(std::process::id())?.cpu_seconds - before.cpu_seconds;
            side(&mut cpu, large).push(spent * 1e6 / MOVED as f64);
        }
    }
    for comparison in [pushed, settled, cpu] {
        print(&comparison);
        report.compare(comparison);
    }

    claims(settings, &few, &many, "full", report).await?;
    pushes_beside_claims(settings, &many, &mut random, report).await?;
    let left = settings.claims * u64::from(settings.rounds);
    for subject in [&few, &many] {
        let start = Instant::now();
        let entries = subject.entries();
        subject.drain(entries.saturating_sub(left), DRAIN).await?;
        println!("  drained from {entries} to {} entries in {:?}", subject.entries(), start.elapsed());
        if subject.entries() < left {
            subject.push(left - subject.entries(), &mut random).await?;
        }
    }
    claims(settings, &few, &many, "drained", report).await?;
    for subject in [&few, &many] {
        subject.drain(subject.entries(), DRAIN).await?;
    }
    claims(settings, &few, &many, "empty", report).await?;
    few.queue.close().await;
    many.queue.close().await;
    Ok(())
}

/// Times single claims on both queues in turn.
async fn claims(settings: &Settings, few: &Subject, many: &Subject, state: &str, report: &mut Report) -> Result<()> {
    let mut p50 = comparison(settings, &format!("next claim, {state}, p50"), "µs");
    let mut p99 = comparison(settings, &format!("next claim, {state}, p99"), "µs");
    for round in 0..settings.rounds {
        for turn in 0..2 {
            let large = (turn + round) % 2 == 1;
            let subject = if large { many } else { few };
            let percentiles = time_claims(subject, settings.claims, state == "empty").await?;
            side(&mut p50, large).push(percentiles.p50);
            side(&mut p99, large).push(percentiles.p99);
        }
    }
    for comparison in [p50, p99] {
        print(&comparison);
        report.compare(comparison);
    }
    Ok(())
}

/// Times single pushes at rest, while a worker claims all there is, and while all of it is held.
async fn pushes_beside_claims(
    settings: &Settings,
    subject: &Subject,
    random: &mut SmallRng,
    report: &mut Report,
) -> Result<()> {
    let at_rest = time_pushes(subject, random, settings.claims, || false).await?;
    let (entries, claimed, mut held) = (subject.entries(), Cell::new(0), Vec::new());
    let claim_all = async {
        while claimed.get() < entries {
            let claims = subject.claim(AHEAD).await?;
            ensure!(!claims.is_empty(), "{} of {entries} could be claimed", claimed.get());
            claimed.set(claimed.get() + claims.len() as u64);
            held.extend(claims);
        }
        Ok(())
    };
    let pushing = time_pushes(subject, random, u64::MAX, || claimed.get() >= entries);
    let ((), while_claiming) = futures::try_join!(claim_all, pushing)?;
    let while_held = time_pushes(subject, random, settings.claims, || false).await?;
    for (when, Percentiles { p50, p99 }) in
        [("at rest", at_rest), ("while all is being claimed", while_claiming), ("while all is claimed", while_held)]
    {
        println!("  one push {when}: p50 {p50:.0} µs, p99 {p99:.0} µs");
        report.fact(format!("one push {when}, p99: {} entries", settings.entries), "µs", vec![p99], None);
    }
    Ok(())
}

/// Times pushes of one ref each, so many or until it is enough.
async fn time_pushes(
    subject: &Subject,
    random: &mut SmallRng,
    count: u64,
    enough: impl Fn() -> bool,
) -> Result<Percentiles> {
    let mut micros = Vec::new();
    while micros.is_empty() || ((micros.len() as u64) < count && !enough()) {
        let start = Instant::now();
        subject.push(1, random).await?;
        micros.push(start.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Percentiles::of(micros))
}

async fn time_claims(subject: &Subject, count: u64, empty: bool) -> Result<Percentiles> {
    let (mut micros, mut held) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let start = Instant::now();
        let claims = subject.claim(1).await?;
        micros.push(start.elapsed().as_secs_f64() * 1e6);
        ensure!(claims.is_empty() == empty, "{} claims", claims.len());
        held.extend(claims);
    }
    subject.settle(held).await?;
    Ok(Percentiles::of(micros))
}

fn comparison(settings: &Settings, name: &str, unit: &'static str) -> Comparison {
    let few = format!("{} entries", settings.few);
    Comparison::new(format!("{name}: {} entries", settings.entries), unit, &[&few])
}

fn side(comparison: &mut Comparison, large: bool) -> &mut Vec<f64> {
    if large { &mut comparison.blobferry } else { &mut comparison.floors[0].values }
}

fn print(Comparison { name, unit, blobferry, floors }: &Comparison) {
    println!("  {name}: {} {unit}, {}: {}", spread(blobferry), floors[0].name, spread(&floors[0].values));
}
