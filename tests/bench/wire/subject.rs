//! Two stores of which one is full, and a replicator between them: what a round of blobferry is.
//!
//! The source store is filled once. Each round has an empty destination and a replicator with an empty queue; connections
//! stand before the clock starts, because some blobs went first. The clock stops when `Status` counts all as confirmed.

use crate::servers::{self, Data};
use crate::support::api::{self, MAX_ITEMS, Receiver, Replication};
use crate::support::machine::{self, Usage};
use crate::support::process::Process;
use anyhow::{Context as _, Result, ensure};
use blobferry::blob::{BlobRef, DigestFunction};
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How often `Status` is asked whether all is confirmed; more often where there are few.
const POLL: Duration = Duration::from_millis(10);
const POLL_FEW: (u64, Duration) = (2_000, Duration::from_millis(1));
/// How long a round may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Small blobs that go first, and their size in bytes.
const WARM_UP: (usize, usize) = (64, 1 << 10);
/// Where the seeds of the blobs that count begin.
pub(crate) const SEEDS: u64 = 1_000_000;

/// What is copied in a round.
#[derive(Clone)]
pub(crate) struct Load {
    pub(crate) name: String,
    /// Bytes of a blob.
    pub(crate) size: usize,
    pub(crate) count: usize,
    /// Copies at a time.
    pub(crate) workers: usize,
    pub(crate) unit: Unit,
    /// Whether the stores are disk stores.
    pub(crate) on_disk: bool,
}

/// What is counted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Millions of bytes.
    Megabytes,
    Blobs,
}

impl Load {
    pub(crate) fn rate(&self, took: Duration) -> f64 {
        let blobs = self.count as f64 / took.as_secs_f64();
        match self.unit {
            Unit::Megabytes => blobs * self.size as f64 / 1e6,
            Unit::Blobs => blobs,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.count as u64 * self.size as u64
    }

    pub(crate) fn unit(&self) -> &'static str {
        match self.unit {
            Unit::Megabytes => "MB/s",
            Unit::Blobs => "blobs/s",
        }
    }
}

/// What a round gave.
pub(crate) struct Round {
    pub(crate) took: Duration,
    /// CPU time of the round alone; memory since the replicator started.
    pub(crate) usage: Usage,
}

/// The stores.
pub(crate) struct Subject {
    pub(crate) source: Process,
    pub(crate) destination: Process,
    destination_data: Data,
    warm_up: Vec<BlobRef>,
    pub(crate) blobs: Vec<BlobRef>,
    rounds: u32,
}

impl Subject {
    /// Starts the stores, and fills the source.
    pub(crate) async fn start(load: &Load, dir: &Path) -> Result<Self> {
        let data = |name: &str| if load.on_disk { Data::Disk(dir.join(name)) } else { Data::Memory };
        let (source_data, destination_data) = (data("source-data"), data("destination-data"));
        let source = servers::store(dir, "source", &source_data)?;
        let destination = servers::store(dir, "destination", &destination_data)?;
        let warm_up = fill(&source, 1, WARM_UP.0, WARM_UP.1, 16).await?;
        let at_a_time = if load.size > 1 << 20 { 2 } else { 64 };
        let blobs = fill(&source, SEEDS, load.count, load.size, at_a_time).await?;
        Ok(Self { source, destination, destination_data, warm_up, blobs, rounds: 0 })
    }

    /// Copies everything once, to an empty destination.
    pub(crate) async fn round(&mut self, load: &Load, dir: &Path) -> Result<Round> {
        let urls = [self.source.url(), self.destination.url()];
        self.round_through(load, dir, [&urls[0], &urls[1]]).await
    }

    /// The same, with the stores at these URLs.
    pub(crate) async fn round_through(&mut self, load: &Load, dir: &Path, [from, to]: [&str; 2]) -> Result<Round> {
        self.empty_destination()?;
        self.rounds += 1;
        let name = format!("replicator-{}-{}", load.size, self.rounds);
        let mut replicator = servers::replicator(dir, &name, from, to, load.workers)?;
        let mut api = Replication::new(api::channel(&replicator.url())?);
        self.warm_up(&mut api).await?;
        let before = machine::usage(replicator.pid()?)?;
        let start = Instant::now();
        announce(&mut api, &self.blobs, load.size as u64).await?;
        confirmed(&mut api, self.warmed_up() + self.blobs.len()).await?;
        let took = start.elapsed();
        let after = machine::usage(replicator.pid()?)?;
        replicator.kill()?;
        std::fs::remove_dir_all(dir.join(&name))?;
        Ok(Round { took, usage: Usage { cpu_seconds: after.cpu_seconds - before.cpu_seconds, ..after } })
    }

    /// Has some blobs copied, so that connections stand.
    pub(crate) async fn warm_up(&self, api: &mut Replication) -> Result<()> {
        announce(api, &self.warm_up, WARM_UP.1 as u64).await?;
        confirmed(api, self.warm_up.len()).await
    }

    /// Blobs that were confirmed before those that count.
    pub(crate) fn warmed_up(&self) -> usize {
        self.warm_up.len()
    }

    /// The destination, empty, at the same address.
    pub(crate) fn empty_destination(&mut self) -> Result<()> {
        self.destination.kill()?;
        if let Data::Disk(path) = &self.destination_data {
            std::fs::remove_dir_all(path)?;
        }
        self.destination.again()
    }

    /// Ends the stores, and removes what they wrote.
    pub(crate) fn end(mut self, dir: &Path) -> Result<()> {
        self.source.kill()?;
        self.destination.kill()?;
        if self.destination_data != Data::Memory {
            for name in ["source-data", "destination-data"] {
                std::fs::remove_dir_all(dir.join(name))?;
            }
        }
        Ok(())
    }
}

/// Writes blobs to a store; the refs in order of their seeds.
async fn fill(store: &Process, seed: u64, count: usize, size: usize, at_a_time: usize) -> Result<Vec<BlobRef>> {
    let to = Receiver::new(api::channel(&store.url())?);
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..at_a_time {
        let (mut to, next) = (to.clone(), next.clone());
        tasks.spawn(async move {
            let mut refs = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return anyhow::Ok(refs);
                }
                let (blob, bytes) = distinct(index, seed, size);
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

/// Blobs of this size that there are, at most: by content, and by digest function where content is scarce.
pub(crate) fn there_are(size: usize) -> usize {
    match size {
        0 => DigestFunction::ALL.len(),
        1 => 256 * DigestFunction::ALL.len(),
        _ => usize::MAX,
    }
}

/// The blob of this size and number.
pub(crate) fn distinct(index: usize, seed: u64, size: usize) -> (BlobRef, Bytes) {
    if size > 1 {
        return api::blob(seed + index as u64, size);
    }
    let function = DigestFunction::ALL[index % DigestFunction::ALL.len()];
    let byte = u8::try_from(index / DigestFunction::ALL.len() % 256).unwrap_or_default();
    let bytes = Bytes::from(vec![byte; size]);
    (function.ref_of(&bytes), bytes)
}

pub(crate) async fn announce(api: &mut Replication, blobs: &[BlobRef], size: u64) -> Result<()> {
    for page in blobs.chunks(MAX_ITEMS) {
        let items = page.iter().map(|blob| api::item(blob.to_string(), Some(size))).collect();
        ensure!(api::enqueue(api, items).await?, "an announcement was refused");
    }
    Ok(())
}

/// Waits until this many are confirmed since the replicator started. A failed attempt spoils the figure: an error.
pub(crate) async fn confirmed(api: &mut Replication, count: usize) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let route = api::route(api).await?;
        let totals = route.since_start.as_ref().context("no totals")?;
        let parked = api::queued(&route).parked;
        ensure!(totals.failed_attempts.unwrap_or(0) == 0 && parked == 0, "copies failed: {route:?}");
        let left = (count as u64).saturating_sub(totals.confirmed_blobs.context("no count")?);
        if left == 0 {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "not confirmed within {PATIENCE:?}: {route:?}");
        tokio::time::sleep(if left < POLL_FEW.0 { POLL_FEW.1 } else { POLL }).await;
    }
}
