//! `make instructions`: how many instructions the pure core takes, beside the counts in `instructions.toml`.
//!
//! Time is noise on a shared machine; instructions are not. Each kernel runs under `valgrind --tool=callgrind`, once some
//! times and once as many times more; what the second run takes more, by the number of times, is its count, so that neither
//! start-up nor the making of the input is in it. Growth of more than 2% fails. The counts are those of the pinned compiler
//! with the release profile on x86-64; glibc is kept from choosing its copying routines by the processor.
//!
//! Where the counts changed for a reason: `make instructions ARGS="--renew --because 'refs carry their length now'"`
//! writes the new ones, with the reason, into the file; commit it with the change.

mod kernels;
#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use kernels::Kernel;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use support::run;

/// How often a kernel runs before those runs that count, and in them.
const TIMES: usize = 5;
/// How much more than the committed count is too much.
const TOLERANCE: f64 = 0.02;

/// How often a kernel is counted that seems to have grown: addresses and hashes differ from run to run, and with them the count.
const TRIES: usize = 4;
/// The committed counts.
const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/bench/core/instructions.toml");
/// What stands above them.
const HEADER: &str = "\
# Instructions of the pure core, as `make instructions` counts them: the pinned compiler, the release profile, x86-64.
# `make instructions ARGS=\"--renew --because 'the reason'\"` writes what changed; commit it with the change.
";

/// Counts instructions, and compares them with the committed counts.
#[derive(Parser)]
struct Args {
    #[command(subcommand)]
    role: Option<Role>,
    /// Writes the counts that changed by more than the tolerance into the file. Needs --because.
    #[arg(long, requires = "because")]
    renew: bool,
    /// Why they changed.
    #[arg(long)]
    because: Option<String>,
    /// The valgrind to use.
    #[arg(long, default_value = "valgrind", env = "BLOBFERRY_VALGRIND")]
    valgrind: PathBuf,
    /// Set by `cargo bench`; without it nothing is counted.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What this program is when the benchmark starts it.
#[derive(clap::Subcommand)]
#[command(hide = true)]
enum Role {
    /// Runs a kernel so many times.
    #[command(hide = true)]
    Kernel { name: String, times: usize },
}

/// What is committed about a kernel.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Count {
    instructions: u64,
    because: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match &args.role {
        Some(Role::Kernel { name, times }) => run::verdict("core", kernel(name, *times).map(|()| true)),
        None if args.bench => run::verdict("core", count(&args)),
        None => {
            println!("nothing is counted without --bench, which `cargo bench` and `make instructions` set");
            ExitCode::SUCCESS
        }
    }
}

fn kernel(name: &str, times: usize) -> Result<()> {
    let kernel = kernels::ALL.iter().find(|kernel| kernel.name == name).context("there is no such kernel")?;
    (kernel.run)(times);
    Ok(())
}

/// Whether nothing grew too much.
fn count(args: &Args) -> Result<bool> {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the committed counts are those of x86-64");
        return Ok(true);
    }
    if let Err(error) = Command::new(&args.valgrind).arg("--version").output() {
        let message = format!("{} cannot be run: {error}", args.valgrind.display());
        ensure!(std::env::var_os("CI").is_none_or(|ci| ci != "true"), "{message}");
        println!("skipped: {message}");
        return Ok(true);
    }
    let committed: BTreeMap<String, Count> = toml::from_str(&std::fs::read_to_string(FILE)?).context(FILE)?;
    let dir = run::folder(Path::new(env!("CARGO_TARGET_TMPDIR")), "core")?;
    let mut renewed = committed.clone();
    let mut grown = Vec::new();
    println!("{:<12} {:>12} {:>12} {:>8}", "kernel", "counted", "committed", "change");
    for kernel in &kernels::ALL {
        let before = committed.get(kernel.name).map(|count| count.instructions);
        let change_to = |counted: u64| before.map_or(f64::INFINITY, |before| counted as f64 / before as f64 - 1.0);
        let mut counted = count_of(&args.valgrind, kernel, dir.path())?;
        for _ in 1..TRIES {
            if change_to(counted) > TOLERANCE {
                counted = counted.min(count_of(&args.valgrind, kernel, dir.path())?);
            }
        }
        let change = change_to(counted);
        let known = before.map_or_else(|| "-".to_owned(), |before| before.to_string());
        println!("{:<12} {counted:>12} {known:>12} {:>+7.1}%", kernel.name, change * 100.0);
        if change > TOLERANCE {
            grown.push(kernel.name);
        }
        if change.abs() > TOLERANCE
            && let Some(because) = &args.because
        {
            let count = Count { instructions: counted, because: because.clone() };
            renewed.insert(kernel.name.to_owned(), count);
        }
    }
    if args.renew {
        renewed.retain(|name, _| kernels::ALL.iter().any(|kernel| kernel.name == name));
        write(&renewed)?;
        println!("written to {FILE}");
        return Ok(true);
    }
    if !grown.is_empty() {
        eprintln!(
            "\n{} grew by more than {:.0}%. Where that is for a reason, write it down and commit the file:\n\
             \n    make instructions ARGS=\"--renew --because 'the reason'\"\n",
            grown.join(", "),
            TOLERANCE * 100.0
        );
    }
    Ok(grown.is_empty())
}

/// Instructions of one run of a kernel.
fn count_of(valgrind: &Path, kernel: &Kernel, dir: &Path) -> Result<u64> {
    let total = |times: usize| {
        let out = dir.join(format!("{}-{times}", kernel.name));
        let done = Command::new(valgrind)
            .args(["--quiet", "--tool=callgrind"])
            .arg(format!("--callgrind-out-file={}", out.display()))
            .arg(std::env::current_exe()?)
            .args(["kernel", kernel.name, &times.to_string()])
            .env("GLIBC_TUNABLES", "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-AVX2,-AVX,-ERMS,-FSRM")
            .output()?;
        let said = String::from_utf8_lossy(&done.stderr);
        ensure!(done.status.success(), "{}: {}: {said}", kernel.name, done.status);
        let profile = std::fs::read_to_string(&out)?;
        let totals =
            profile.lines().find_map(|line| line.strip_prefix("totals: ")).context("callgrind gave no total")?;
        Ok(totals.trim().parse::<u64>()?)
    };
    let (few, many) = (total(TIMES)?, total(2 * TIMES)?);
    ensure!(many > few, "{}: more runs took no more instructions", kernel.name);
    Ok((many - few) / TIMES as u64)
}

fn write(counts: &BTreeMap<String, Count>) -> Result<()> {
    let mut text = HEADER.to_owned();
    for (name, Count { instructions, because }) in counts {
        let because = toml::Value::from(because.as_str());
        write!(text, "\n[{name}]\ninstructions = {instructions}\nbecause = {because}\n")?;
    }
    Ok(std::fs::write(FILE, text)?)
}
