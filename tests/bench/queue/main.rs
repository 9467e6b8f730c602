//! `make queue-bench`: the queue alone, without the wire: how fast it is beside RocksDB's own synced writes, and whether ten
//! million entries cost more each than ten thousand do.
//!
//! A round measures both sides of a comparison directly after one another, the order turning from round to round, so that
//! a machine that slows down or is busy for a while touches both; what counts is the median of the rounds' ratios.
//!
//! - `push`: durable announcements by callers at the queue's port.
//! - `reopen`: filled by a process that is killed with `kill -9`, opened by another: time to the first claim, and memory.
//! - `scale`: claims, pushes and settlements on a large queue beside a small one, full and drained.
//! - `load`: what these do to a queue.

mod load;
mod push;
mod reopen;
mod scale;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use anyhow::Result;
use clap::{Parser, ValueEnum};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use support::report::Report;
use support::{machine, run};

/// Measures the queue beside its floors.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<reopen::Role>,
    #[command(flatten)]
    settings: Settings,
    /// Set by `cargo bench`; without it nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(clap::Args)]
struct Settings {
    /// Rounds of each figure.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only these figures.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Suite::ALL)]
    only: Vec<Suite>,
    /// Also writes all figures of all rounds to this file.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where queues lie while it runs; 10 million entries take about 3 GiB. Default: cargo's folder for such, beside the build.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Entries of the large queue.
    #[arg(long, default_value_t = 10_000_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    entries: u64,
    /// Entries of the small queue.
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(10_000..))]
    few: u64,
    /// How long announcements are made in a round.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    time: Duration,
    /// Only announcements by this many callers.
    #[arg(long)]
    callers: Option<u64>,
    /// Only announcements of this many refs at a time.
    #[arg(long)]
    refs: Option<u64>,
    /// Claims that are timed in a round.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u64).range(100..5000))]
    claims: u64,
}

/// A group of figures.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Durable announcements/s.
    Push,
    /// Opening after `kill -9`.
    Reopen,
    /// Few entries beside many.
    Scale,
}

impl Suite {
    /// In this order, whatever order they were asked for in: the last empties what the one before it filled.
    const ALL: [Self; 3] = [Self::Push, Self::Reopen, Self::Scale];
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Push => "push",
            Self::Reopen => "reopen",
            Self::Scale => "scale",
        })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.role.is_none() && !args.bench {
        println!("nothing is measured without --bench, which `cargo bench` and `make queue-bench` set");
        return ExitCode::SUCCESS;
    }
    run::run("queue", async {
        match args.role {
            Some(role) => reopen::run(role).await,
            None => measure(&args.settings).await,
        }
    })
}

async fn measure(settings: &Settings) -> Result<()> {
    let dir = run::folder(&settings.dir, "queue-bench")?;
    let mut report = Report::new(machine::facts(dir.path())?);
    report.print_machine();
    let large = reopen::Large::new(dir.path(), settings.entries);
    for suite in Suite::ALL.iter().filter(|suite| settings.only.contains(suite)) {
        match suite {
            Suite::Push => push::compare(settings, dir.path(), &mut report).await?,
            Suite::Reopen => reopen::watch(settings, &large, &mut report)?,
            Suite::Scale => scale::compare(settings, dir.path(), &large, &mut report).await?,
        }
    }
    report.finish(machine::fsync_probe(dir.path())?);
    report.print("");
    if let Some(path) = &settings.json {
        report.write(path)?;
    }
    Ok(())
}
