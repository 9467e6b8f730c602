//! `make kill N=`: is anything lost that was acked?
//!
//! Two disk stores and a replicator, the real programs, take blobs from several producers at once, and are killed with
//! `kill -9` at random instants: the replicator in every cycle, sometimes while it starts, sometimes a store. The producers
//! write what was acked into a file of their own, synced. Now and then, and at the end, the queue is let drain, and every
//! acked ref must be at the destination with the right bytes, or be queued, or parked with a cause. One that is none of
//! these is lost: exit code 1.
//!
//! `support::load` has the producers and their record, `support::check` the reckoning.

#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use support::check::{self, Tally};
use support::load::{self, Addresses, Load, Pressure};
use support::process::{self, Process};
use support::run;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

/// How often a line tells how far it is.
const PROGRESS: Duration = Duration::from_secs(10);
/// So long before a kill acks must have come for it to count as one amid acks.
const AMID: Duration = Duration::from_millis(20);
/// Where too few came amid acks, so many more are made before the next reckoning.
const MORE: u32 = 10;
/// Kills are so many times more at most, where too few come amid acks.
const MOST_TIMES: u32 = 4;
/// A test is not to wait for the backoff that a real outage calls for.
const SETTINGS: &str = "[retry]\ninitial = \"50ms\"\nmax = \"1s\"\n";

/// Kills blobferry again and again under load, and checks every ack.
#[derive(Parser)]
struct Args {
    /// How often the replicator is killed.
    #[arg(long, default_value_t = 10)]
    cycles: u32,
    /// What chance decides with; the same seed kills at the same intervals.
    #[arg(long)]
    seed: Option<u64>,
    /// Producers at a time.
    #[arg(long, default_value_t = 8)]
    producers: u64,
    /// Blobs announced per second at most, all producers together. 0: no bound.
    #[arg(long, default_value_t = 800)]
    rate: u32,
    /// The chance that a cycle kills a store too.
    #[arg(long, default_value_t = 0.2)]
    store_kills: f64,
    /// Kills between two reckonings.
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    check_every: u32,
    /// Where everything lies while it runs. Default: cargo's folder for such, beside the build.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Set by `cargo bench`; without it nothing is killed.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.bench {
        println!("nothing is killed without --bench, which `cargo bench` and `make kill` set");
        return ExitCode::SUCCESS;
    }
    run::verdict("kill", run(&args))
}

/// Whether nothing was lost. Where something was, or anything failed, the folder stays.
fn run(args: &Args) -> Result<bool> {
    let seed = args.seed.unwrap_or_else(rand::random);
    run::keeping(&args.dir, "kill", |dir| {
        println!("seed {seed}, {} cycles in {}", args.cycles, dir.display());
        cycles(args, seed, dir)
    })
}

fn cycles(args: &Args, seed: u64, dir: &Path) -> Result<bool> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let stop = Arc::new(AtomicBool::new(false));
    let mut signals = JoinSet::new();
    runtime.block_on(async {
        let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        let stop = stop.clone();
        signals.spawn(async move {
            tokio::select! { _ = interrupt.recv() => (), _ = terminate.recv() => () }
            stop.store(true, Ordering::Relaxed);
        });
        anyhow::Ok(())
    })?;
    let pressure = Pressure { producers: args.producers, rate: args.rate };
    let mut world = World::start(dir)?;
    let mut random = SmallRng::seed_from_u64(seed);
    let mut tally = Tally::default();
    let mut record = 0;
    let mut kills = Kills::default();
    let mut told = Instant::now();
    let start = Instant::now();
    // Kills go on until enough of them came amid acks, however slow the machine is: others endanger nothing.
    let enough = |kills: &Kills| kills.replicator >= args.cycles && 2 * kills.amid_acks >= args.cycles;
    while !enough(&kills) && kills.replicator < MOST_TIMES * args.cycles && !stop.load(Ordering::Relaxed) {
        record += 1;
        let path = dir.join(format!("acked-{record}"));
        let load = runtime.block_on(async { load::start(&world.addresses()?, pressure, seed, record, &path) })?;
        let left = args.cycles.saturating_sub(kills.replicator).max(MORE);
        for _ in 0..args.check_every.min(left) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            world.cycle(args, &mut random, &mut kills, &load)?;
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                println!(
                    "{:>4} s: {} of {} cycles, {} store kills, {} interrupted starts, {} acks, {} checked, {} lost",
                    start.elapsed().as_secs(),
                    kills.replicator,
                    args.cycles,
                    kills.stores,
                    kills.starts,
                    tally.acks + load.acks(),
                    tally.checked,
                    tally.lost
                );
            }
        }
        let failed_calls = runtime.block_on(load.finish())?;
        kills.failed_calls += failed_calls;
        let found = runtime.block_on(check::reckon(&world.addresses()?, &path));
        tally.add(found.with_context(|| world.said())?);
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    world.end()?;
    println!(
        "{} cycles in {} s (seed {seed}), {} of them amid acks: {} kills of a store, {} starts interrupted, {} calls failed \
         and were made again or given up",
        kills.replicator,
        start.elapsed().as_secs(),
        kills.amid_acks,
        kills.stores,
        kills.starts,
        kills.failed_calls
    );
    println!("{tally}");
    ensure!(enough(&kills), "interrupted, or too few kills came amid acks: there was little to lose");
    ensure!(tally.acks > 0, "nothing was acked");
    Ok(tally.lost == 0)
}

#[derive(Default)]
struct Kills {
    replicator: u32,
    stores: u32,
    starts: u32,
    /// Kills of the replicator within a moment after an ack.
    amid_acks: u32,
    failed_calls: u64,
}

struct World {
    source: Process,
    destination: Process,
    replicator: Process,
}

impl World {
    fn start(dir: &Path) -> Result<Self> {
        let disk = |name: &str| {
            let path = dir.join(format!("{name}-data"));
            process::store(dir, name, &format!("disk://{}", path.display()))
        };
        let (source, destination) = (disk("source")?, disk("destination")?);
        let replicator = process::replicator(dir, "replicator", &source.url(), &destination.url(), 16, SETTINGS)?;
        Ok(Self { source, destination, replicator })
    }

    fn addresses(&self) -> Result<Addresses> {
        // Fails if one of them has ended, which none has reason to.
        for process in [&self.source, &self.destination, &self.replicator] {
            process.pid()?;
        }
        Ok(Addresses {
            source: self.source.url(),
            destination: self.destination.url(),
            replicator: self.replicator.url(),
        })
    }

    /// Lets it run for a while, kills, and starts again.
    fn cycle(&mut self, args: &Args, random: &mut SmallRng, kills: &mut Kills, load: &Load) -> Result<()> {
        // From the first milliseconds after the start to the full swing, each order of magnitude alike.
        let after = Duration::from_secs_f64(10_f64.powf(random.random_range(-2.7..0.2)));
        std::thread::sleep(after);
        let store = random.random_bool(args.store_kills).then(|| random.random_bool(0.5));
        let store_first = random.random_bool(0.5);
        let pause = Duration::from_millis(random.random_range(0..300));
        let interrupted = random.random_bool(0.15).then(|| Duration::from_millis(random.random_range(1..120)));

        let mut killed = store.map(|is_source| if is_source { &mut self.source } else { &mut self.destination });
        if let Some(store) = &mut killed {
            kills.stores += 1;
            if store_first {
                store.kill()?;
                std::thread::sleep(pause);
            }
        }
        let acks = load.acks();
        std::thread::sleep(AMID);
        self.replicator.kill()?;
        kills.replicator += 1;
        kills.amid_acks += u32::from(load.acks() > acks);
        if let Some(after) = interrupted {
            self.replicator.interrupted_start(after)?;
            kills.starts += 1;
        }
        self.replicator.again()?;
        if let Some(store) = killed {
            if !store_first {
                std::thread::sleep(pause);
                store.kill()?;
            }
            store.again()?;
        }
        Ok(())
    }

    fn said(&self) -> String {
        format!("the replicator's log ends with:\n{}", self.replicator.said())
    }

    fn end(&mut self) -> Result<()> {
        self.replicator.kill()?;
        self.source.kill()?;
        self.destination.kill()
    }
}
