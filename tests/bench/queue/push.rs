//! Announcements at the queue's port, beside RocksDB's own synced writes.
//!
//! The floor writes the rows of as many entries as the callers can have in flight, in one synced batch after another: what a
//! group commit that always finds every caller waiting would do.

use crate::Settings;
use crate::load::Subject;
use crate::support::floor::Floor;
use crate::support::report::{Comparison, Report, spread};
use anyhow::Result;
use rand::{SeedableRng as _, rngs::SmallRng};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// Callers, and the refs in one push of each.
const WAYS: [(u64, u64); 5] = [(1, 1), (16, 1), (256, 1), (1, 1000), (4, 1000)];

pub(crate) async fn compare(settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
    println!("\ndurable announcements at the queue's port, {:?} each", settings.time);
    let subject = Arc::new(Subject::open(&dir.join("push")).await?);
    let mut floor = Floor::open(&dir.join("push-floor"))?;
    for (index, (callers, refs)) in WAYS.into_iter().enumerate() {
        if settings.callers.is_some_and(|only| only != callers) || settings.refs.is_some_and(|only| only != refs) {
            continue;
        }
        let name = match refs {
            1 => format!("durable, callers: {callers}"),
            _ => format!("durable, {refs} at a time, callers: {callers}"),
        };
        // Calls of many refs are not gathered further in the floor: one is large enough.
        let batch = usize::try_from(if refs == 1 { callers } else { refs })?;
        let mut comparison = Comparison::new(name.clone(), "refs/s", &["RocksDB synced batches"]);
        for round in 0..settings.rounds {
            for turn in 0..2 {
                if (turn + round) % 2 == 1 {
                    comparison.floors[0].values.push(floor.run(batch, settings.time)?);
                } else {
                    let seed = (index as u64) << 32 | u64::from(round) << 16;
                    comparison.blobferry.push(run(&subject, callers, refs, settings.time, seed).await?);
                }
            }
        }
        println!(
            "  {name}: queue {} refs/s, RocksDB {}",
            spread(&comparison.blobferry),
            spread(&comparison.floors[0].values)
        );
        report.compare(comparison);
    }
    subject.queue.close().await;
    drop((subject, floor));
    std::fs::remove_dir_all(dir.join("push"))?;
    std::fs::remove_dir_all(dir.join("push-floor"))?;
    Ok(())
}

/// Pushes for this long from all callers; refs acknowledged per second.
async fn run(subject: &Arc<Subject>, callers: u64, refs: u64, time: Duration, seed: u64) -> Result<f64> {
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for caller in 0..callers {
        let (subject, mut random) = (Arc::clone(subject), SmallRng::seed_from_u64(seed + caller));
        tasks.spawn(async move {
            let mut acked = 0;
            while start.elapsed() < time {
                subject.push(refs, &mut random).await?;
                acked += refs;
            }
            anyhow::Ok(acked)
        });
    }
    let mut acked = 0;
    while let Some(done) = tasks.join_next().await {
        acked += done??;
    }
    Ok(acked as f64 / start.elapsed().as_secs_f64())
}
