//! A large queue, filled by a process that dies by `kill -9` while it pushes, and opened by another.

use crate::Settings;
use crate::load::Subject;
use crate::support::machine;
use crate::support::report::Report;
use anyhow::{Context as _, Result, bail, ensure};
use rand::{SeedableRng as _, rngs::SmallRng};
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Entries in a push while the queue is filled.
const BATCH: u64 = 10_000;
/// Entries in a claim and a settlement while the opened queue works.
const WORKING: u64 = 256;
/// Bytes in a MiB.
const MIB: f64 = (1 << 20) as f64;

/// The processes that this benchmark starts.
#[derive(clap::Subcommand)]
#[command(hide = true)]
pub(crate) enum Role {
    /// Fills a queue, says so, and goes on pushing until it is killed.
    #[command(hide = true)]
    Fill { dir: PathBuf, entries: u64 },
    /// Opens a queue, claims, works for so long, and prints its figures.
    #[command(hide = true)]
    Open {
        dir: PathBuf,
        #[arg(value_parser = humantime::parse_duration)]
        time: Duration,
    },
}

pub(crate) async fn run(role: Role) -> Result<()> {
    match role {
        Role::Fill { dir, entries } => fill(&dir, entries).await,
        Role::Open { dir, time } => open(&dir, time).await,
    }
}

async fn fill(dir: &Path, entries: u64) -> Result<()> {
    let subject = Subject::open(dir).await?;
    let mut random = SmallRng::seed_from_u64(entries);
    let start = Instant::now();
    while subject.entries() < entries {
        subject.push(BATCH.min(entries - subject.entries()), &mut random).await?;
        if subject.entries() % (entries / 10).max(1) < BATCH {
            let seconds = start.elapsed().as_secs_f64();
            eprintln!("  filling: {} entries after {seconds:.0} s", subject.entries());
        }
    }
    println!("{}", start.elapsed().as_secs_f64());
    std::io::stdout().flush()?;
    loop {
        subject.push(1, &mut random).await?;
    }
}

async fn open(dir: &Path, time: Duration) -> Result<()> {
    let start = Instant::now();
    let subject = Subject::open(dir).await?;
    let opened = start.elapsed();
    let claims = subject.claim(1).await?;
    let claimed = start.elapsed();
    ensure!(claims.len() == 1, "nothing can be claimed");
    drop(claims);
    let usage = machine::usage(std::process::id())?;

    let mut random = SmallRng::seed_from_u64(time.as_secs());
    let (mut settled, start) = (0, Instant::now());
    while start.elapsed() < time {
        subject.drain(WORKING, WORKING).await?;
        subject.push(WORKING, &mut random).await?;
        settled += WORKING;
    }
    let rate = settled as f64 / start.elapsed().as_secs_f64();
    let peak = machine::usage(std::process::id())?.peak;
    println!(
        "{} {} {} {rate} {}",
        opened.as_secs_f64(),
        claimed.as_secs_f64(),
        usage.resident as f64 / MIB,
        peak as f64 / MIB
    );
    subject.queue.close().await;
    Ok(())
}

/// The large queue's folder, filled when it is first asked for.
pub(crate) struct Large {
    dir: PathBuf,
    entries: u64,
}

impl Large {
    pub(crate) fn new(dir: &Path, entries: u64) -> Self {
        Self { dir: dir.join("large"), entries }
    }

    /// The folder, in which the queue holds at least so many entries and was ended by `kill -9`.
    pub(crate) fn filled(&self) -> Result<&Path> {
        if !self.dir.exists() {
            println!("  filling a queue with {} entries", self.entries);
            self.fill_and_kill()?;
        }
        Ok(&self.dir)
    }

    /// Has a process fill it up to its number, if need be, and kills it while it pushes.
    fn fill_and_kill(&self) -> Result<f64> {
        let mut filler = child(&["fill"], &self.dir, &self.entries.to_string())?;
        let line = line_of(&mut filler);
        // It goes on pushing: let the blow fall in the middle of that.
        std::thread::sleep(Duration::from_millis(50));
        filler.kill()?;
        filler.wait()?;
        line?.trim().parse().context("the filler printed no time")
    }
}

/// This program again, in a role.
fn child(role: &[&str], dir: &Path, last: &str) -> Result<Child> {
    let program = std::env::current_exe()?;
    Ok(Command::new(program).args(role).arg(dir).arg(last).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?)
}

fn line_of(child: &mut Child) -> Result<String> {
    let Some(stdout) = &mut child.stdout else { bail!("no pipe") };
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(line)
}

pub(crate) fn watch(settings: &Settings, large: &Large, report: &mut Report) -> Result<()> {
    println!("\nopening after kill -9, {} entries", settings.entries);
    large.filled()?;
    let mut values: [Vec<f64>; 5] = Default::default();
    for round in 0..settings.rounds {
        if round > 0 {
            large.fill_and_kill()?;
        }
        let mut opener = child(&["open"], large.filled()?, &format!("{}ms", settings.time.as_millis()))?;
        let line = line_of(&mut opener);
        let status = opener.wait()?;
        let line = line?;
        let numbers: Vec<f64> = line.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(status.success() && numbers.len() == values.len(), "the opener ended with {status}: {line}");
        println!("  opened, claimed, resident, worked, peak: {}", line.trim());
        for (values, number) in values.iter_mut().zip(numbers) {
            values.push(number);
        }
    }
    let [opened, claimed, resident, rate, peak] = values;
    let entries = settings.entries;
    report.fact(format!("open after kill -9, {entries} entries"), "s", opened, None);
    report.fact(format!("the same, to the first claim, {entries} entries"), "s", claimed, Some(2.0));
    report.fact(format!("resident then, {entries} entries"), "MiB", resident, Some(256.0));
    report.fact(format!("pushed, claimed and settled, {WORKING} each, {entries} entries"), "entries/s", rate, None);
    report.fact(format!("resident at most meanwhile, {entries} entries"), "MiB", peak, Some(256.0));
    Ok(())
}
