//! `make bench`: how fast, in how much memory, each figure beside its floor.
//!
//! A floor is what the same machine does at the same time without what makes blobferry more than a pipe: a relay of three
//! processes over the same protocol that neither queues nor hashes, RocksDB's own synced writes, the same writes to files. A
//! round measures blobferry and its floors directly after one another, the order turning from round to round, so that a
//! machine that slows down or is busy for a while touches both; what counts is the median of the rounds' ratios. Nothing is
//! asserted of any time: the benchmark fails only where a figure does not come out.
//!
//! Everything runs on loopback, in processes that this one starts and ends (and that die with it, however it ends), over a
//! temporary folder that it removes. It ends by itself: rounds are counted, and none begins after `--time`.
//!
//! - `settings`: the options, and what they come to with `--quick`; `sections`: what is measured.
//! - `relay`: the floor of the wire; this program again, by hidden sub-commands. `durable`: the floor of the disk.
//! - `proxy`: a slow link, also a process. `servers`, `subject`: the programs that are measured.
//! - `throughput`, `delay`: blobs from `EnqueueBlobs` to confirmed, side by side, and over slow links.
//! - `received`, `announce`: announcements made durable, with bytes and without.
//! - `lag`: small blobs beside a large one. `enumerate`: full syncs. `memory`: while one large blob passes.
//! - `rclone`: the same blobs between two S3 servers.

mod announce;
mod delay;
mod durable;
mod enumerate;
mod lag;
mod memory;
mod proxy;
mod rclone;
mod received;
mod relay;
mod sections;
mod servers;
mod settings;
mod subject;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod throughput;

use anyhow::Result;
use clap::Parser;
pub(crate) use settings::Settings;
use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Instant;
use support::report::Report;
use support::{leash, machine, run};

/// Measures blobferry beside its floors.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    settings: Settings,
    /// Set by `cargo bench`; without it nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What this program is when the benchmark starts it.
#[derive(clap::Subcommand)]
#[command(hide = true)]
enum Role {
    #[command(flatten)]
    Relay(relay::Role),
    /// A slow link.
    #[command(hide = true)]
    Proxy(proxy::Proxy),
    /// Becomes another program, which dies with the benchmark.
    #[command(hide = true, name = leash::NAME)]
    Leash {
        parent: u32,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        program: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let Args { role, settings, bench } = Args::parse();
    match role {
        Some(Role::Leash { parent, program }) => {
            run::verdict("leash", leash::become_program(parent, &program).map(|()| true))
        }
        Some(Role::Relay(role)) => run::run("relay", relay::run(role)),
        Some(Role::Proxy(proxy)) => run::run("proxy", proxy.run()),
        None if bench => run::run("wire", run::interruptible(measure(settings.quick()))),
        None => {
            println!("nothing is measured without --bench, which `cargo bench` and `make bench` set");
            ExitCode::SUCCESS
        }
    }
}

async fn measure(settings: Settings) -> Result<()> {
    let dir = run::folder(&settings.dir, "bench")?;
    let start = Instant::now();
    let mut report = Report::new(machine::facts(dir.path())?);
    report.print_machine();
    for section in &settings.only {
        section.run(&settings, dir.path(), &mut report).await?;
    }
    report.finish(machine::fsync_probe(dir.path())?);
    report.print(settings.note());
    println!("\n{} s in all", start.elapsed().as_secs());
    report.write(&settings.json)?;
    report.check()
}
