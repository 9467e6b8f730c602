//! Announcements with bytes, packed: `ReceiveBlobs` at the replicator, beside the same streams into a sink.
//!
//! The destination is down, so that nothing but announcing takes time. Each round has a replicator with an empty queue.

use crate::Settings;
use crate::relay::{self, pack};
use crate::servers;
use crate::support::api::{self, Receiver, Replication};
use crate::support::machine;
use crate::support::process::Process;
use crate::support::report::{Comparison, Expense, Report, Target};
use crate::throughput::last;
use anyhow::{Result, ensure};
use blobferry::v1 as pb;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// Nobody listens there.
const NOWHERE: [&str; 2] = ["http://127.0.0.1:1", "http://127.0.0.1:2"];
/// Streams at a time, each on a connection of its own.
const STREAMS: usize = 4;
/// Messages that go first.
const WARM_UP: usize = 4;
/// The ratio to the sink that checks nothing.
const TARGET: f64 = 0.5;

/// Packs that are sent again and again, to whomever.
type Packs = Arc<Vec<Vec<(String, Bytes)>>>;

pub(crate) async fn compare(settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
    let size = usize::try_from(settings.small_size.as_u64())?;
    let count = 2 * settings.scaled(settings.small_count);
    let name = format!("ReceiveBlobs at the replicator, {count} x {}, destination down", settings.small_size);
    println!("\n{name}");
    let packs: Packs = Arc::new(packs(1 << 40, count, size));
    let warm_up: Packs = Arc::new(self::packs(1 << 41, WARM_UP * pack(size), size));
    let sinks = [relay::sink(dir, false)?, relay::sink(dir, true)?];
    let mut comparison = Comparison::new(&name, "blobs/s", &["sink", "sink with SHA-256"]);
    comparison.aim(0, Target::AtLeast(TARGET));
    let mut expense = Expense::of(format!("replicator, {name}"), true);
    for round in settings.rounds() {
        let mut order = [0, 1, 2];
        if round % 2 == 1 {
            order.reverse();
        }
        for who in order {
            if who > 0 {
                send(&sinks[who - 1], &warm_up).await?;
                let took = send(&sinks[who - 1], &packs).await?;
                comparison.floors[who - 1].values.push(count as f64 / took.as_secs_f64());
                continue;
            }
            let name = format!("received-{round}");
            let mut replicator = servers::replicator(dir, &name, NOWHERE[0], NOWHERE[1], 32)?;
            send(&replicator, &warm_up).await?;
            let before = machine::usage(replicator.pid()?)?;
            let took = send(&replicator, &packs).await?;
            let after = machine::usage(replicator.pid()?)?;
            let route = api::route(&mut Replication::new(api::channel(&replicator.url())?)).await?;
            let queued = api::queued(&route).moving;
            let expected = (warm_up.iter().chain(packs.iter()).map(Vec::len).sum::<usize>()) as u64;
            ensure!(queued == expected, "{queued} of {expected} are queued: {route:?}");
            comparison.blobferry.push(count as f64 / took.as_secs_f64());
            expense.add(count, (count * size) as u64, after.cpu_seconds - before.cpu_seconds, after.peak);
            replicator.kill()?;
            std::fs::remove_dir_all(dir.join(&name))?;
        }
        println!(
            "  round {}: blobferry {} blobs/s, sink {}, with SHA-256 {}",
            round + 1,
            last(&comparison.blobferry),
            last(&comparison.floors[0].values),
            last(&comparison.floors[1].values),
        );
    }
    report.compare(comparison);
    report.expend(expense);
    Ok(())
}

/// So many blobs, different from those of other seeds, in packs.
fn packs(seed: u64, count: usize, size: usize) -> Vec<Vec<(String, Bytes)>> {
    let pack = pack(size);
    let blob = |index: usize| {
        let (blob, bytes) = api::blob(seed + index as u64, size);
        (blob.to_string(), bytes)
    };
    (0..count).step_by(pack).map(|at| (at..(at + pack).min(count)).map(blob).collect()).collect()
}

/// Sends the packs on all streams, and reads every result; how long it took.
async fn send(to: &Process, packs: &Packs) -> Result<Duration> {
    let channels = (0..STREAMS).map(|_| api::channel(&to.url())).collect::<Result<Vec<Channel>>>()?;
    let mut tasks = JoinSet::new();
    let start = Instant::now();
    for (stream, channel) in channels.into_iter().enumerate() {
        let (mut receiver, packs) = (Receiver::new(channel).max_decoding_message_size(4 << 20), packs.clone());
        tasks.spawn(async move {
            let expected: usize = packs.iter().skip(stream).step_by(STREAMS).map(Vec::len).sum();
            let mut at = stream;
            let messages = std::iter::from_fn(move || {
                let pack = packs.get(at)?;
                at += STREAMS;
                let packed = |(name, data): &(String, Bytes)| pb::PackedBlob {
                    r#ref: name.clone(),
                    data: data.clone(),
                    ..Default::default()
                };
                let blobs = pack.iter().map(packed).collect();
                Some(pb::ReceiveBlobsRequest { blobs, source_store: "a".to_owned() })
            });
            let mut answers = receiver.receive_blobs(tokio_stream::iter(messages)).await?.into_inner();
            let mut accepted = 0;
            while let Some(answer) = answers.message().await? {
                for result in answer.results {
                    ensure!(result.error.is_none(), "refused: {result:?}");
                    accepted += 1;
                }
            }
            ensure!(accepted == expected, "{accepted} of {expected} were accepted");
            Ok(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    Ok(start.elapsed())
}
