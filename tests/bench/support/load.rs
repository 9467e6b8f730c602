//! The producers, and the record of what was acked.
//!
//! A producer writes a blob to the source store until that has answered, then announces it: with its bytes, or some at a
//! time by their refs. An announcement that fails is made again, or given up: then nothing is claimed about it. Now and then
//! one that was acked is announced again, so that pushes meet entries in every state.

use super::api::{self, Receiver, Replication};
use anyhow::{Context as _, Result};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use bytes::Bytes;
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

/// How long a call may take before it counts as failed: a connection to a killed server need not notice.
const CALL: Duration = Duration::from_secs(10);
/// Before a failed call is made again.
const AGAIN: Duration = Duration::from_millis(20);
/// Refs that are announced in one call, at most.
const MOST_REFS: usize = 100;
/// Acked refs that a producer remembers, to announce them again.
const REMEMBERED: usize = 64;

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pressure {
    /// Producers at a time.
    pub(crate) producers: u64,
    /// Blobs announced per second at most, all producers together. 0: no bound.
    pub(crate) rate: u32,
}

/// Where everybody is.
#[derive(Clone)]
pub(crate) struct Addresses {
    pub(crate) source: String,
    pub(crate) destination: String,
    pub(crate) replicator: String,
}

/// Producers at work.
pub(crate) struct Load {
    producers: JoinSet<Result<u64>>,
    recorder: JoinSet<Result<()>>,
    stop: watch::Sender<bool>,
    acks: Arc<AtomicU64>,
}

/// Starts the producers; what is acked goes to the file, a ref a line. `part` makes their blobs different from those of
/// other parts.
pub(crate) fn start(to: &Addresses, pressure: Pressure, seed: u64, part: u64, record: &Path) -> Result<Load> {
    let (acked, from_producers) = mpsc::channel(1024);
    let file = File::options().create_new(true).append(true).open(record)?;
    let acks = Arc::new(AtomicU64::new(0));
    let mut recorder = JoinSet::new();
    recorder.spawn_blocking({
        let acks = acks.clone();
        move || write_down(file, from_producers, &acks)
    });
    let (stop, stopping) = watch::channel(false);
    let mut producers = JoinSet::new();
    for number in 0..pressure.producers {
        let producer = Producer {
            source: Receiver::new(api::channel(&to.source)?),
            receiver: Receiver::new(api::channel(&to.replicator)?),
            replication: Replication::new(api::channel(&to.replicator)?),
            random: SmallRng::seed_from_u64(seed ^ (part << 32) ^ (number << 16)),
            acked: acked.clone(),
            stopping: stopping.clone(),
            recent: Vec::new(),
            failed: 0,
            pace: pace(pressure),
            next: Instant::now(),
        };
        producers.spawn(producer.run());
    }
    Ok(Load { producers, recorder, stop, acks })
}

/// The time from one blob of a producer to its next.
fn pace(pressure: Pressure) -> Duration {
    let producers = u32::try_from(pressure.producers).unwrap_or(u32::MAX);
    Duration::from_secs(1).checked_div(pressure.rate).unwrap_or_default() * producers
}

impl Load {
    /// Acks written down so far.
    pub(crate) fn acks(&self) -> u64 {
        self.acks.load(Ordering::Relaxed)
    }

    /// Lets every producer end what it has begun; how many calls failed.
    pub(crate) async fn finish(mut self) -> Result<u64> {
        self.stop.send_replace(true);
        let mut failed = 0;
        while let Some(done) = self.producers.join_next().await {
            failed += done??;
        }
        while let Some(done) = self.recorder.join_next().await {
            done??;
        }
        Ok(failed)
    }
}

/// Appends what was acked, synced, as many lines at a time as there are.
fn write_down(mut file: File, mut acked: mpsc::Receiver<Vec<BlobRef>>, acks: &AtomicU64) -> Result<()> {
    while let Some(first) = acked.blocking_recv() {
        let mut refs = first;
        while let Ok(more) = acked.try_recv() {
            refs.extend(more);
        }
        let lines: String = refs.iter().map(|blob| format!("{blob}\n")).collect();
        file.write_all(lines.as_bytes())?;
        file.sync_data()?;
        acks.fetch_add(refs.len() as u64, Ordering::Relaxed);
    }
    Ok(())
}

struct Producer {
    source: Receiver,
    receiver: Receiver,
    replication: Replication,
    random: SmallRng,
    acked: mpsc::Sender<Vec<BlobRef>>,
    stopping: watch::Receiver<bool>,
    recent: Vec<BlobRef>,
    failed: u64,
    pace: Duration,
    next: Instant,
}

impl Producer {
    async fn run(mut self) -> Result<u64> {
        while !*self.stopping.borrow() {
            let with_bytes = self.random.random_bool(0.5);
            let count = if with_bytes { 1 } else { self.random.random_range(1..=MOST_REFS) };
            let mut blobs = Vec::new();
            for _ in 0..count {
                self.next = Instant::now().max(self.next) + self.pace;
                let wait = self.next;
                let blob = self.make();
                if !self.store(&blob).await {
                    break;
                }
                blobs.push(blob);
                tokio::time::sleep_until(wait).await;
                if *self.stopping.borrow() {
                    break;
                }
            }
            if !blobs.is_empty() {
                self.announce(blobs, with_bytes).await?;
            }
        }
        Ok(self.failed)
    }

    /// Mostly small ones; some are empty, some of several chunks, some beyond what a store keeps among small ones.
    fn make(&mut self) -> (BlobRef, Bytes) {
        let size = match self.random.random_range(0..1000) {
            0 => 0,
            1..900 => self.random.random_range(1..8 << 10),
            900..995 => self.random.random_range(8 << 10..100 << 10),
            _ => self.random.random_range(100 << 10..1 << 20),
        };
        api::blob(self.random.random(), size)
    }

    /// Writes it to the source store until that has answered; false if it was told to stop before.
    async fn store(&mut self, (blob, bytes): &(BlobRef, Bytes)) -> bool {
        loop {
            let call = api::put(&mut self.source, blob, bytes.clone(), "");
            if timeout(CALL, call).await.is_ok_and(|answer| answer.is_ok()) {
                return true;
            }
            self.failed += 1;
            if *self.stopping.borrow() {
                return false;
            }
            sleep(AGAIN).await;
        }
    }

    async fn announce(&mut self, blobs: Vec<(BlobRef, Bytes)>, with_bytes: bool) -> Result<()> {
        let mut refs: Vec<BlobRef> = blobs.iter().map(|(blob, _)| *blob).collect();
        if !with_bytes && !self.recent.is_empty() && self.random.random_bool(0.3) {
            refs.extend_from_slice(&self.recent[..self.random.random_range(1..=self.recent.len())]);
        }
        loop {
            let answered = if with_bytes {
                let (blob, bytes) = &blobs[0];
                let call = api::put(&mut self.receiver, blob, bytes.clone(), "a");
                timeout(CALL, call).await.map(|answer| {
                    answer.map(|answer| answer.disposition() == pb::Disposition::Enqueued && !answer.routes.is_empty())
                })
            } else {
                let items = refs.iter().map(|blob| api::item(blob.to_string(), None)).collect();
                timeout(CALL, api::enqueue(&mut self.replication, items)).await
            };
            match answered {
                Ok(Ok(true)) => break,
                Ok(Ok(false)) => anyhow::bail!("an announcement of a good ref was refused"),
                Ok(Err(_)) | Err(_) => {
                    self.failed += 1;
                    // Given up: it may be queued or not, and nobody was told that it is.
                    if *self.stopping.borrow() || self.random.random_bool(0.2) {
                        return Ok(());
                    }
                    sleep(AGAIN).await;
                }
            }
        }
        self.recent.extend(blobs.iter().map(|(blob, _)| *blob));
        let surplus = self.recent.len().saturating_sub(REMEMBERED);
        self.recent.drain(..surplus);
        self.acked.send(refs).await.context("the recorder has ended")
    }
}
