//! `make bench`: how fast, in how much memory, each figure beside its floor.
//!
//! A floor is what the same machine does at the same time without what makes blobferry more than a pipe: a relay of three
//! processes over the same protocol that neither queues nor hashes, RocksDB's own synced writes. A round measures blobferry
//! and its floors directly after one another, the order turning from round to round, so that a machine that slows down or
//! is busy for a while touches both; what counts is the median of the rounds' ratios.
//!
//! Everything runs on loopback, in processes that this one starts and ends, over a temporary folder that it removes.
//!
//! - `relay`: the floor of the wire; this program again, by hidden sub-commands.
//! - `throughput`: blobs from `EnqueueBlobs` to confirmed.
//! - `announce`: announcements made durable.
//! - `memory`: the replicator's resident memory while one large blob passes.

mod announce;
mod memory;
mod relay;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod throughput;

use anyhow::{Result, bail};
use blobferry::store::packed::MAX_PACKED_BYTES;
use bytesize::ByteSize;
use clap::{Parser, ValueEnum};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use support::machine;
use support::report::Report;
use tokio::signal::unix::{SignalKind, signal};

/// Measures blobferry beside its floors.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    relay: Option<relay::Role>,
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
    /// Where queues and disk stores lie while it runs. Default: cargo's folder for such, beside the build.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Large blobs in a round.
    #[arg(long, default_value_t = 8)]
    large_count: usize,
    /// The size of a large blob.
    #[arg(long, default_value = "64MiB")]
    large_size: ByteSize,
    /// Large blobs at a time.
    #[arg(long, default_value_t = 4)]
    large_workers: usize,
    /// Small blobs in a round.
    #[arg(long, default_value_t = 20_000)]
    small_count: usize,
    /// The size of a small blob.
    #[arg(long, default_value = "4KiB")]
    small_size: ByteSize,
    /// Small blobs at a time.
    #[arg(long, default_value_t = 32)]
    small_workers: usize,
    /// How long announcements are made in a round.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    announce_time: Duration,
    /// The size of the blob that passes while memory is watched.
    #[arg(long, default_value = "2GiB")]
    memory_size: ByteSize,
    /// Measures the floors alone.
    #[arg(long)]
    floors_only: bool,
}

/// A group of figures.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Suite {
    /// Large blobs, MB/s.
    Large,
    /// Small blobs, blobs/s.
    Small,
    /// Durable announcements/s.
    Announce,
    /// The replicator's memory while one large blob passes.
    Memory,
}

impl Suite {
    const ALL: [Self; 4] = [Self::Large, Self::Small, Self::Announce, Self::Memory];
}

impl std::fmt::Display for Suite {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Large => "large",
            Self::Small => "small",
            Self::Announce => "announce",
            Self::Memory => "memory",
        })
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    if args.relay.is_none() && !args.bench {
        println!("nothing is measured without --bench, which `cargo bench` and `make bench` set");
        return ExitCode::SUCCESS;
    }
    let done =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(Into::into).and_then(|runtime| {
            runtime.block_on(async {
                match args.relay {
                    Some(role) => relay::run(role).await,
                    None => interruptible(measure(&args.settings)).await,
                }
            })
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("wire: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ends early at Ctrl-C or SIGTERM, so that what was started is ended and the folder is removed.
async fn interruptible(work: impl Future<Output = Result<()>>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

async fn measure(settings: &Settings) -> Result<()> {
    std::fs::create_dir_all(&settings.dir)?;
    let dir = tempfile::Builder::new().prefix("blobferry-bench-").tempdir_in(&settings.dir)?;
    let mut report = Report::new(machine::facts(dir.path())?);
    report.print_machine();
    for suite in &settings.only {
        suite.run(settings, dir.path(), &mut report).await?;
    }
    report.finish(machine::fsync_probe(dir.path())?);
    report.print();
    if let Some(path) = &settings.json {
        report.write(path)?;
    }
    Ok(())
}

impl Suite {
    async fn run(self, settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
        match self {
            Self::Large => {
                let load = throughput::Load {
                    name: "large blobs, memory stores",
                    size: usize::try_from(settings.large_size.as_u64())?,
                    count: settings.large_count,
                    workers: settings.large_workers,
                    unit: throughput::Unit::Megabytes,
                    packed: false,
                };
                throughput::compare(settings, &load, dir, report).await
            }
            Self::Small => {
                let load = throughput::Load {
                    name: "small blobs, memory stores",
                    size: usize::try_from(settings.small_size.as_u64())?,
                    count: settings.small_count,
                    workers: settings.small_workers,
                    unit: throughput::Unit::Blobs,
                    packed: settings.small_size.as_u64() <= MAX_PACKED_BYTES,
                };
                throughput::compare(settings, &load, dir, report).await
            }
            Self::Announce => announce::compare(settings, dir, report).await,
            Self::Memory if settings.floors_only => Ok(()),
            Self::Memory => memory::watch(settings, dir, report).await,
        }
    }
}
