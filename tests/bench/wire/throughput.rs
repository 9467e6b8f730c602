//! Blobs from `EnqueueBlobs` to confirmed, between memory stores, beside the relay.
//!
//! The source store is filled once. Each round has an empty destination and a replicator with an empty queue; connections
//! stand before the clock starts, because some blobs went first. The clock stops when `Status` counts all as confirmed.

use crate::Settings;
use crate::relay::Relay;
use crate::support::api::{self, MAX_ITEMS, Receiver, Replication};
use crate::support::machine::{self, Usage};
use crate::support::process::{self, Process};
use crate::support::report::{Comparison, Report, spread};
use anyhow::{Context as _, Result, ensure};
use blobferry::blob::BlobRef;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often `Status` is asked whether all is confirmed.
const POLL: Duration = Duration::from_millis(10);
/// How long a round may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Small blobs that go first.
const WARM_UP: usize = 64;

/// What is copied in a round.
pub(crate) struct Load {
    pub(crate) name: &'static str,
    /// Bytes of a blob.
    pub(crate) size: usize,
    pub(crate) count: usize,
    /// Copies at a time.
    pub(crate) workers: usize,
    pub(crate) unit: Unit,
    /// Whether the relay packs them, as blobferry does.
    pub(crate) packed: bool,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Millions of bytes.
    Megabytes,
    Blobs,
}

impl Load {
    fn rate(&self, took: Duration) -> f64 {
        let blobs = self.count as f64 / took.as_secs_f64();
        match self.unit {
            Unit::Megabytes => blobs * self.size as f64 / 1e6,
            Unit::Blobs => blobs,
        }
    }

    /// CPU-seconds per GB, or per 1,000 blobs.
    fn cost(&self, cpu_seconds: f64) -> f64 {
        match self.unit {
            Unit::Megabytes => cpu_seconds / (self.count as f64 * self.size as f64 / 1e9),
            Unit::Blobs => cpu_seconds / (self.count as f64 / 1e3),
        }
    }

    fn units(&self) -> (&'static str, &'static str) {
        match self.unit {
            Unit::Megabytes => ("MB/s", "CPU-s/GB"),
            Unit::Blobs => ("blobs/s", "CPU-s/1,000"),
        }
    }
}

pub(crate) async fn compare(settings: &Settings, load: &Load, dir: &Path, report: &mut Report) -> Result<()> {
    let (unit, cost_unit) = load.units();
    let name = format!("{}, {} x {} KiB, {} at a time", load.name, load.count, load.size >> 10, load.workers);
    println!("\n{name}");
    // A few packed streams fill the wire; more only take memory.
    let streams = if load.packed { 4 } else { load.workers };
    let relay = |sha256| Relay::start(dir, load.size, streams, load.packed, sha256);
    let mut relays = [relay(false)?, relay(true)?];
    let mut ours = if settings.floors_only { None } else { Some(Ours::start(load, dir).await?) };
    let mut comparison = Comparison::new(&name, unit, &["relay", "relay with SHA-256"]);
    let mut costs: [Vec<f64>; 3] = Default::default();
    let mut peaks = Vec::new();
    for round in 0..settings.rounds {
        let order: [usize; 3] = if round % 2 == 0 { [0, 1, 2] } else { [2, 1, 0] };
        for who in order {
            if who > 0 {
                let relay = &mut relays[who - 1];
                let before = machine::usage(relay.pid()?)?;
                let took = relay.ferry(load.count)?;
                let after = machine::usage(relay.pid()?)?;
                comparison.floors[who - 1].values.push(load.rate(took));
                costs[who].push(load.cost(after.cpu_seconds - before.cpu_seconds));
            } else if let Some(ours) = &mut ours {
                let round = ours.round(round, load, dir).await?;
                comparison.blobferry.push(load.rate(round.took));
                costs[0].push(load.cost(round.usage.cpu_seconds));
                peaks.push(round.usage.peak as f64 / f64::from(1 << 20));
            }
        }
        println!(
            "  round {}: blobferry {} {unit}, relay {}, with SHA-256 {}",
            round + 1,
            last(&comparison.blobferry),
            last(&comparison.floors[0].values),
            last(&comparison.floors[1].values),
        );
    }
    report.compare(comparison);
    for (who, values) in ["replicator", "relay's pipe", "relay's pipe with SHA-256"].iter().zip(costs) {
        report.fact(format!("CPU of the {who}, {}", load.name), cost_unit, values, None);
    }
    report.fact(format!("peak memory of the replicator, {}", load.name), "MiB", peaks, Some(256.0));
    Ok(())
}

/// The last round's value.
fn last(values: &[f64]) -> String {
    spread(values.last().map_or(&[], std::slice::from_ref))
}

/// What a round of blobferry gave.
struct Round {
    took: Duration,
    usage: Usage,
}

struct Ours {
    source: Process,
    destination: Process,
    warm_up: Vec<BlobRef>,
    blobs: Vec<BlobRef>,
}

impl Ours {
    async fn start(load: &Load, dir: &Path) -> Result<Self> {
        let (source, destination) =
            (process::store(dir, "source", MEMORY)?, process::store(dir, "destination", MEMORY)?);
        let warm_up = fill(&source, 1, WARM_UP, 1 << 10, 16).await?;
        let concurrency = if load.size > 1 << 20 { 2 } else { 64 };
        let blobs = fill(&source, 1_000_000, load.count, load.size, concurrency).await?;
        Ok(Self { source, destination, warm_up, blobs })
    }

    async fn round(&mut self, round: u32, load: &Load, dir: &Path) -> Result<Round> {
        self.destination.kill()?;
        self.destination.again()?;
        let name = format!("replicator-{}-{round}", load.size);
        let mut replicator =
            process::replicator(dir, &name, &self.source.url(), &self.destination.url(), load.workers, "")?;
        let mut api = Replication::new(api::channel(&replicator.url())?);
        announce(&mut api, &self.warm_up, 1 << 10).await?;
        confirmed(&mut api, self.warm_up.len()).await?;
        let before = machine::usage(replicator.pid()?)?;
        let start = Instant::now();
        announce(&mut api, &self.blobs, load.size as u64).await?;
        confirmed(&mut api, self.warm_up.len() + self.blobs.len()).await?;
        let took = start.elapsed();
        let after = machine::usage(replicator.pid()?)?;
        replicator.kill()?;
        std::fs::remove_dir_all(dir.join(&name))?;
        Ok(Round { took, usage: Usage { cpu_seconds: after.cpu_seconds - before.cpu_seconds, ..after } })
    }
}

/// A store in memory, empty whenever it is started.
pub(crate) const MEMORY: &str = "memory://";

/// Writes blobs to a store; the refs in order of their seeds.
pub(crate) async fn fill(
    store: &Process,
    seed: u64,
    count: usize,
    size: usize,
    at_a_time: usize,
) -> Result<Vec<BlobRef>> {
    let to = Receiver::new(api::channel(&store.url())?);
    let next = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let (mut to, next) = (to.clone(), next.clone());
        tasks.spawn(async move {
            let mut refs = Vec::new();
            loop {
                let index = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if index >= count {
                    return anyhow::Ok(refs);
                }
                let (blob, bytes) = api::blob(seed + index as u64, size);
                api::put(&mut to, &blob, bytes, "").await.context("filling the source store")?;
                refs.push((index, blob));
            }
        });
    }
    let mut refs = Vec::new();
    while let Some(done) = tasks.join_next().await {
        refs.extend(done??);
    }
    refs.sort_unstable_by_key(|(index, _)| *index);
    Ok(refs.into_iter().map(|(_, blob)| blob).collect())
}

async fn announce(api: &mut Replication, blobs: &[BlobRef], size: u64) -> Result<()> {
    for page in blobs.chunks(MAX_ITEMS) {
        let items = page.iter().map(|blob| api::item(blob.to_string(), Some(size))).collect();
        ensure!(api::enqueue(api, items).await?, "an announcement was refused");
    }
    Ok(())
}

/// Waits until this many are confirmed since the replicator started. A failed attempt spoils the figure: an error.
async fn confirmed(api: &mut Replication, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let route = api::route(api).await?;
        let totals = route.since_start.as_ref().context("no totals")?;
        let parked = api::queued(&route).parked;
        ensure!(totals.failed_attempts.unwrap_or(0) == 0 && parked == 0, "copies failed: {route:?}");
        if totals.confirmed_blobs.context("no count")? >= count as u64 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not confirmed within {PATIENCE:?}: {route:?}");
        tokio::time::sleep(POLL).await;
    }
}
