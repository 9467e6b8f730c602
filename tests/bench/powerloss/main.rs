//! `make powerloss N=`: is anything lost that was acked when the power goes?
//!
//! Two disk stores and a replicator, the real programs, take blobs from several producers. The replicator and the
//! destination run on disks that follow every change (`support::disk`). Again and again the power of one or both is cut:
//! killed, what was not synced thrown away or torn as chance decides, and started again. In the end every acked ref must be
//! at the destination with the right bytes, or be queued, or parked with a cause; and so must be what the destination told
//! the replicator that it has, for nobody else remembers it. One that is lost: exit code 1.
//!
//! Then the same with disks that lie about their syncs: there, something must be lost.

mod cycles;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Result, ensure};
use clap::Parser;
use cycles::Plan;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use support::disk;
use support::load::Pressure;
use support::run;

/// Cuts the power again and again under load, and checks every ack.
#[derive(Parser)]
struct Args {
    /// How often the power is cut.
    #[arg(long, default_value_t = 10)]
    cycles: u32,
    /// What chance decides with.
    #[arg(long)]
    seed: Option<u64>,
    /// Producers at a time.
    #[arg(long, default_value_t = 8)]
    producers: u64,
    /// Blobs announced per second at most, all producers together. 0: no bound.
    #[arg(long, default_value_t = 500)]
    rate: u32,
    /// Cuts between two reckonings.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    check_every: u32,
    /// Where everything lies while it runs. Default: cargo's folder for such, beside the build.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Set by `cargo bench`; without it nothing is cut.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.bench {
        println!("nothing is cut without --bench, which `cargo bench` and `make powerloss` set");
        return ExitCode::SUCCESS;
    }
    run::verdict("powerloss", run::keeping(&args.dir, "powerloss", |dir| run(&args, dir)))
}

/// Whether nothing was lost where nothing may be, and something where the disk lies.
fn run(args: &Args, dir: &Path) -> Result<bool> {
    let Some(shim) = disk::build_shim(dir)? else { return Ok(true) };
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}, {} cuts in {}", args.cycles, dir.display());
    let pressure = Pressure { producers: args.producers, rate: args.rate };
    let plan = Plan { cycles: args.cycles, seed, pressure, check_every: args.check_every };
    let start = Instant::now();
    let cycles = dir.join("cycles");
    std::fs::create_dir(&cycles)?;
    let outcome = cycles::run(&plan, &shim, &cycles, || false)?;
    println!(
        "{} cuts in {} s (seed {seed}): {} of the replicator, {} of the destination",
        args.cycles,
        start.elapsed().as_secs(),
        outcome.cuts[0],
        outcome.cuts[1]
    );
    for (whose, did) in ["replicator", "destination"].into_iter().zip(outcome.did) {
        println!(
            "the {whose}'s disk: {} names were not synced and {} of them lost, {} files were not and {} of them torn",
            did.names, did.names_lost, did.files, did.files_torn
        );
    }
    println!("{}", outcome.tally);
    ensure!(outcome.tally.acks > 0, "nothing was acked");
    let mut found = outcome.tally.lost == 0;
    for (whose, of_queue) in [("replicator", true), ("destination", false)] {
        let dir = dir.join(format!("control-{whose}"));
        std::fs::create_dir(&dir)?;
        let lost = cycles::control(seed, of_queue, &shim, &dir)?;
        println!("control: {lost} refs lost where the {whose}'s disk lies about its syncs");
        found &= lost > 0;
    }
    Ok(found)
}
