//! How long small blobs take from announced to held by the destination, while one large blob passes and while none does.
//!
//! They are announced a few at a time at a steady pace, slow enough that nothing piles up when they are alone. Every few
//! milliseconds the destination is asked for all that are on the way: the lag of each is exact to that.

use crate::Settings;
use crate::memory;
use crate::servers;
use crate::subject::{Load, Subject, Unit, announce, confirmed};
use crate::support::api::{self, Reader, Replication};
use crate::support::machine;
use crate::support::report::{Comparison, Expense, Report, Target};
use anyhow::{Context as _, Result, ensure};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use bytesize::ByteSize;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::sync::mpsc::{self, error::TryRecvError};

/// The pause between two announcements.
const TICK: Duration = Duration::from_millis(10);
/// The pause between two questions to the destination.
const ASK: Duration = Duration::from_millis(3);
/// How long the small blobs may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// How many times as long the slowest of a hundred may take while the large blob passes.
const TARGET: f64 = 2.0;
/// Rounds at most: each moves gigabytes.
const ROUNDS: u32 = 5;

pub(crate) async fn compare(settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
    let large = settings.scaled_bytes(settings.lag_large_size);
    let load = Load {
        name: String::new(),
        size: usize::try_from(settings.small_size.as_u64())?,
        count: settings.scaled(settings.lag_count),
        workers: 32,
        unit: Unit::Blobs,
        on_disk: true,
    };
    let large_text = ByteSize(large).display().iec();
    let name = format!("lag p99 of {} x {}, {}/s, disk stores", load.count, settings.small_size, settings.lag_rate);
    println!("\n{name}, with and without a blob of {large_text}");
    let mut subject = Subject::start(&load, dir).await?;
    let large = (memory::digest(large), large);
    memory::put(&subject.source, &large.0, large.1).await?;
    let mut comparison = Comparison::new(format!("{name}, beside {large_text}"), "ms", &["without it"]);
    comparison.aim(0, Target::AtMost(TARGET));
    let mut expense = Expense::of(format!("replicator, {name}, beside {large_text}"), true);
    for round in settings.rounds().take(ROUNDS as usize) {
        for turn in 0..2 {
            let with = (turn + round) % 2 == 0;
            let run = run(settings, &load, &mut subject, with.then_some(large), dir).await?;
            let p99 = run.p99.as_secs_f64() * 1e3;
            if with {
                comparison.blobferry.push(p99);
                expense.add(load.count, load.bytes() + large.1, run.usage.cpu_seconds, run.usage.peak);
            } else {
                comparison.floors[0].values.push(p99);
            }
            println!(
                "  round {}, {}: p50 {:.1} ms, p99 {p99:.1} ms{}",
                round + 1,
                if with { "with it" } else { "without" },
                run.p50.as_secs_f64() * 1e3,
                if with && !run.still_passing { "; the large one was there before the last small one" } else { "" }
            );
        }
    }
    report.compare(comparison);
    report.expend(expense);
    subject.end(dir)
}

struct Run {
    p50: Duration,
    p99: Duration,
    /// Whether the large blob was still passing when the last small one was there.
    still_passing: bool,
    usage: machine::Usage,
}

async fn run(
    settings: &Settings,
    load: &Load,
    subject: &mut Subject,
    large: Option<(BlobRef, u64)>,
    dir: &Path,
) -> Result<Run> {
    subject.empty_destination()?;
    let mut replicator =
        servers::replicator(dir, "lag", &subject.source.url(), &subject.destination.url(), load.workers)?;
    let mut api = Replication::new(api::channel(&replicator.url())?);
    subject.warm_up(&mut api).await?;
    let before = machine::usage(replicator.pid()?)?;
    if let Some((blob, size)) = large {
        announce(&mut api, &[blob], size).await?;
    }
    let batch = usize::try_from(u128::from(settings.lag_rate) * TICK.as_millis())?.div_ceil(1000);
    let start = Instant::now();
    let (sender, mut announced) = mpsc::channel::<(BlobRef, Instant)>(load.count.max(1));
    let producing = async {
        for (tick, blobs) in (0..).zip(subject.blobs.chunks(batch)) {
            tokio::time::sleep_until((start + TICK * tick).into()).await;
            let now = Instant::now();
            announce(&mut api, blobs, load.size as u64).await?;
            for blob in blobs {
                sender.send((*blob, now)).await?;
            }
        }
        drop(sender);
        anyhow::Ok(())
    };
    let watching = async {
        let mut reader = Reader::new(api::channel(&subject.destination.url())?).max_decoding_message_size(4 << 20);
        let mut waiting: HashMap<String, Instant> = HashMap::new();
        let mut lags = Vec::with_capacity(load.count);
        let mut open = true;
        while open || !waiting.is_empty() {
            loop {
                match announced.try_recv() {
                    Ok((blob, at)) => waiting.insert(blob.to_string(), at),
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        open = false;
                        break;
                    }
                };
            }
            if !waiting.is_empty() {
                let refs = waiting.keys().take(api::MAX_ITEMS).cloned().collect();
                let held = reader.stat_blobs(pb::StatBlobsRequest { refs }).await?.into_inner().blobs;
                let now = Instant::now();
                lags.extend(held.iter().filter_map(|blob| Some(now - waiting.remove(&blob.r#ref)?)));
            }
            ensure!(start.elapsed() < PATIENCE, "{} small blobs did not arrive", waiting.len());
            tokio::time::sleep(ASK).await;
        }
        anyhow::Ok(lags)
    };
    let ((), mut lags) = tokio::try_join!(producing, watching)?;
    let all = subject.warmed_up() + load.count + usize::from(large.is_some());
    let totals = api::route(&mut api).await?.since_start.context("no totals")?;
    let still_passing = large.is_some() && totals.confirmed_blobs.unwrap_or(0) < all as u64;
    // It is not held up for good either.
    confirmed(&mut api, all).await?;
    let after = machine::usage(replicator.pid()?)?;
    replicator.kill()?;
    std::fs::remove_dir_all(dir.join("lag"))?;
    ensure!(lags.len() == load.count, "{} lags of {} blobs", lags.len(), load.count);
    lags.sort_unstable();
    let usage = machine::Usage { cpu_seconds: after.cpu_seconds - before.cpu_seconds, ..after };
    Ok(Run { p50: lags[lags.len() / 2], p99: lags[lags.len() * 99 / 100], still_passing, usage })
}
