//! `make diskfull N=`: is anything lost that was acked when a disk is full, and does it go on by itself?
//!
//! Two disk stores and a replicator, the real programs, take blobs from several producers. The queue and the destination lie
//! on small file systems of their own (as root: tmpfs; else, and for a queue without a reserve, the shim of `powerloss`
//! refuses to let anything grow). Again and again one of them is filled, to the queue's reserve or to the last byte, and freed:
//!
//! - A full queue's disk: announcements are refused with RESOURCE_EXHAUSTED or UNAVAILABLE within a second, and accepted
//!   again when there is room.
//! - A full destination: it is said to be overloaded, no breaker opens, nothing is parked, announcements are taken all the while,
//!   and copying goes on when there is room.
//!
//! In the end every acked ref must be at the destination with the right bytes, or be queued, or parked with a cause.

mod cycles;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Result, ensure};
use clap::Parser;
use cycles::Plan;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};
use support::disk;
use support::load::Pressure;
use support::run;

/// Fills and frees disks under load, and checks every ack.
#[derive(Parser)]
struct Args {
    /// How often a disk is filled.
    #[arg(long, default_value_t = 50)]
    cycles: u32,
    /// What chance decides with.
    #[arg(long)]
    seed: Option<u64>,
    /// Producers at a time.
    #[arg(long, default_value_t = 8)]
    producers: u64,
    /// Blobs announced per second at most, all producers together. 0: no bound.
    #[arg(long, default_value_t = 200)]
    rate: u32,
    /// How long a refusal may take, in milliseconds.
    #[arg(long, default_value_t = 1000)]
    within: u64,
    /// Use the shim, also as root.
    #[arg(long)]
    shim: bool,
    /// Where everything lies while it runs. Default: cargo's folder for such, beside the build.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Set by `cargo bench`; without it nothing is filled.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.bench {
        println!("nothing is filled without --bench, which `cargo bench` and `make diskfull` set");
        return ExitCode::SUCCESS;
    }
    run::verdict("diskfull", run::keeping(&args.dir, "diskfull", |dir| run(&args, dir)))
}

/// Whether nothing was lost.
fn run(args: &Args, dir: &Path) -> Result<bool> {
    let seed = args.seed.unwrap_or_else(rand::random);
    println!("seed {seed}, {} cycles in {}", args.cycles, dir.display());
    let shim = disk::build_shim(dir)?;
    let pressure = Pressure { producers: args.producers, rate: args.rate };
    let plan =
        Plan { cycles: args.cycles, seed, pressure, within: Duration::from_millis(args.within), by_shim: args.shim };
    let start = Instant::now();
    let Some(outcome) = cycles::run(&plan, shim.as_deref(), dir)? else {
        println!("skipped: there is no way to fill a disk here (neither root nor a C compiler)");
        return Ok(true);
    };
    println!("{} cycles in {} s (seed {seed})", args.cycles, start.elapsed().as_secs());
    println!("{outcome}");
    ensure!(outcome.tally.acks > 0, "nothing was acked");
    Ok(outcome.tally.lost == 0)
}
