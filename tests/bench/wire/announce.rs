//! Announcements made durable, with the destination down, beside RocksDB's own synced writes.
//!
//! The floor writes the rows of as many entries as the callers can have in flight, in one synced batch after another: what a
//! group commit that always finds every caller waiting would do.

use crate::Settings;
use crate::servers;
use crate::support::api::{self, Receiver, Replication};
use crate::support::floor::Floor;
use crate::support::machine;
use crate::support::process::Process;
use crate::support::report::{Comparison, Expense, Report, spread};
use anyhow::{Result, ensure};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Nobody listens there.
const NOWHERE: &str = "http://127.0.0.1:1";
/// Bytes of a blob that is announced with its bytes.
const TINY: usize = 100;
/// Callers that share a connection.
const CALLERS_PER_CONNECTION: usize = 64;

/// How announcements are made.
#[derive(Clone, Copy)]
struct Way {
    callers: usize,
    /// Refs in a call of `EnqueueBlobs`; none: one blob in a `ReceiveBlob`.
    refs: Option<usize>,
}

impl Way {
    fn name(self) -> String {
        match self.refs {
            Some(refs) => format!("EnqueueBlobs of {refs}, callers: {}", self.callers),
            None => format!("ReceiveBlob of {TINY} bytes, callers: {}", self.callers),
        }
    }

    /// Entries in a batch of the floor. Calls of many refs are not gathered further: one is large enough.
    fn batch(self) -> usize {
        self.refs.unwrap_or(self.callers)
    }
}

pub(crate) async fn compare(settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
    let time = settings.announce_time();
    println!("\ndurable announcements, destination down, {time:?} each");
    let ways = [
        Way { callers: 1, refs: Some(1000) },
        Way { callers: 4, refs: Some(1000) },
        Way { callers: 1, refs: None },
        Way { callers: 16, refs: None },
        Way { callers: 256, refs: None },
    ];
    let mut replicator = None;
    if !settings.floors_only {
        replicator = Some(servers::replicator(dir, "announce", NOWHERE, "http://127.0.0.1:2", 32)?);
    }
    let mut floor = Floor::open(&dir.join("announce-floor"))?;
    for (index, way) in ways.into_iter().enumerate() {
        let mut comparison = Comparison::new(format!("durable, {}", way.name()), "refs/s", &["RocksDB synced batches"]);
        let mut expense = Expense::of(format!("replicator, {}", way.name()), true);
        for round in settings.rounds() {
            for turn in 0..2 {
                if (turn + round) % 2 == 1 {
                    comparison.floors[0].values.push(floor.run(way.batch(), time)?);
                } else if let Some(replicator) = &replicator {
                    let seed = (index as u64) << 32 | u64::from(round) << 16;
                    let before = machine::usage(replicator.pid()?)?;
                    let (acked, rate) = announce(replicator, way, time, seed).await?;
                    let after = machine::usage(replicator.pid()?)?;
                    comparison.blobferry.push(rate);
                    expense.add(acked, 0, after.cpu_seconds - before.cpu_seconds, after.peak);
                }
            }
        }
        println!(
            "  {}: blobferry {} refs/s, RocksDB {}",
            way.name(),
            spread(&comparison.blobferry),
            spread(&comparison.floors[0].values)
        );
        report.compare(comparison);
        report.expend(expense);
    }
    if let Some(replicator) = &mut replicator {
        let route = api::route(&mut Replication::new(api::channel(&replicator.url())?)).await?;
        ensure!(api::queued(&route).moving > 0, "nothing is queued: {route:?}");
        replicator.kill()?;
    }
    drop(floor);
    std::fs::remove_dir_all(dir.join("announce-floor"))?;
    Ok(())
}

/// Announces for this long from all callers; refs acknowledged, in all and per second.
async fn announce(replicator: &Process, way: Way, time: Duration, seed: u64) -> Result<(usize, f64)> {
    let mut tasks = JoinSet::new();
    let mut channel = api::channel(&replicator.url())?;
    let start = Instant::now();
    for caller in 0..way.callers {
        if caller % CALLERS_PER_CONNECTION == 0 {
            channel = api::channel(&replicator.url())?;
        }
        let channel = channel.clone();
        let mut random = SmallRng::seed_from_u64(seed + caller as u64);
        tasks.spawn(async move {
            let mut acked = 0;
            while start.elapsed() < time {
                if let Some(refs) = way.refs {
                    let items = (0..refs).map(|_| api::item(random_ref(&mut random), Some(4096))).collect();
                    ensure!(api::enqueue(&mut Replication::new(channel.clone()), items).await?, "refused");
                    acked += refs;
                } else {
                    let (blob, bytes) = api::blob(random.next_u64(), TINY);
                    let answer = api::put(&mut Receiver::new(channel.clone()), &blob, bytes, "a").await?;
                    ensure!(answer.routes.len() == 1, "refused: {answer:?}");
                    acked += 1;
                }
            }
            Ok(acked)
        });
    }
    let mut acked = 0;
    while let Some(done) = tasks.join_next().await {
        acked += done??;
    }
    Ok((acked, acked as f64 / start.elapsed().as_secs_f64()))
}

fn random_ref(random: &mut SmallRng) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut digest = [0; 32];
    random.fill_bytes(&mut digest);
    let mut text = String::with_capacity(71);
    text.push_str("sha256-");
    for byte in digest {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}
