//! The replicator's resident memory while one large blob passes from disk to disk.
//!
//! The blob is made while it is sent, so nothing here holds it either.

use crate::Settings;
use crate::servers::{self, Data};
use crate::support::api::{self, CHUNK, Reader, Receiver, Replication};
use crate::support::machine;
use crate::support::process::Process;
use crate::support::report::{Expense, Report};
use anyhow::{Context as _, Result, ensure};
use blobferry::blob::{BlobRef, DigestFunction, Hasher};
use blobferry::v1 as pb;
use bytes::{Bytes, BytesMut};
use bytesize::ByteSize;
use std::path::Path;
use std::time::{Duration, Instant};

/// How often memory is looked at. The kernel's own high-water mark misses nothing between.
const SAMPLE: Duration = Duration::from_millis(50);
/// How long the copy may take.
const PATIENCE: Duration = Duration::from_secs(600);
/// How much more than idle is allowed, in MiB.
const TARGET: f64 = 64.0;

pub(crate) async fn watch(settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
    let size = settings.scaled_bytes(settings.memory_size);
    println!("\nmemory while one blob of {} passes, disk stores", ByteSize(size).display().iec());
    let disk = |name: &str| servers::store(dir, name, &Data::Disk(dir.join(format!("{name}-data"))));
    let (mut source, mut destination) = (disk("memory-source")?, disk("memory-destination")?);
    let mut replicator = servers::replicator(dir, "memory", &source.url(), &destination.url(), 32)?;
    let pid = replicator.pid()?;
    let blob = digest(size);
    let start = Instant::now();
    put(&source, &blob, size).await?;
    let put_rate = size as f64 / 1e6 / start.elapsed().as_secs_f64();
    // Idle all the while: nothing was announced, and its connections stand.
    let mut api = Replication::new(api::channel(&replicator.url())?);
    api::route(&mut api).await?;
    let idle = machine::usage(pid)?;

    let start = Instant::now();
    ensure!(api::enqueue(&mut api, vec![api::item(blob.to_string(), Some(size))]).await?, "refused");
    let mut most = idle.resident;
    loop {
        most = most.max(machine::usage(pid)?.resident);
        let route = api::route(&mut api).await?;
        let totals = route.since_start.as_ref().context("no totals")?;
        ensure!(totals.failed_attempts.unwrap_or(0) == 0, "the copy failed: {route:?}");
        if totals.confirmed_blobs.unwrap_or(0) >= 1 {
            break;
        }
        ensure!(start.elapsed() < PATIENCE, "not confirmed within {PATIENCE:?}: {route:?}");
        tokio::time::sleep(SAMPLE).await;
    }
    let took = start.elapsed().as_secs_f64();
    let after = machine::usage(pid)?;
    let request = pb::StatBlobsRequest { refs: vec![blob.to_string()] };
    let held = Reader::new(api::channel(&destination.url())?).stat_blobs(request).await?.into_inner().blobs;
    ensure!(held.len() == 1 && held[0].size_bytes == Some(size), "the destination holds {held:?}");

    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let more = mib(after.peak) - mib(idle.resident);
    println!(
        "  idle {:.1} MiB, most seen {:.1}, peak {:.1}: {more:.1} MiB more, {}",
        mib(idle.resident),
        mib(most),
        mib(after.peak),
        if more <= TARGET { "within the target" } else { "ABOVE THE TARGET" }
    );
    report.fact("memory, one large blob: idle", "MiB", vec![mib(idle.resident)], None);
    report.fact("memory, one large blob: peak less idle", "MiB", vec![more], Some(TARGET));
    report.fact("one large blob, disk to disk", "MB/s", vec![size as f64 / 1e6 / took], None);
    report.fact("one large blob, client to disk", "MB/s", vec![put_rate], None);
    let mut expense = Expense::of("replicator, one large blob, disk to disk", true);
    expense.add(1, size, after.cpu_seconds - idle.cpu_seconds, after.peak);
    report.expend(expense);
    replicator.kill()?;
    source.kill()?;
    destination.kill()?;
    std::fs::remove_dir_all(dir.join("memory-source-data"))?;
    std::fs::remove_dir_all(dir.join("memory-destination-data"))?;
    Ok(())
}

/// Writes the blob of this size to a store.
pub(crate) async fn put(to: &Process, blob: &BlobRef, size: u64) -> Result<()> {
    let first = api::header(blob.to_string(), size, "");
    let messages = std::iter::once(first).chain(chunks(size).map(api::chunk));
    Receiver::new(api::channel(&to.url())?).receive_blob(tokio_stream::iter(messages)).await?;
    Ok(())
}

/// A blob of this size, chunk by chunk, the same whenever it is asked for.
fn chunks(size: u64) -> impl Iterator<Item = Bytes> + Send {
    let (_, base) = api::blob(1, CHUNK);
    (0..size.div_ceil(CHUNK as u64)).map(move |index| {
        let left = size - index * CHUNK as u64;
        let len = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        let mut chunk = BytesMut::from(&base[..len]);
        let number = index.to_be_bytes();
        let stamp = len.min(number.len());
        chunk[..stamp].copy_from_slice(&number[..stamp]);
        chunk.freeze()
    })
}

pub(crate) fn digest(size: u64) -> BlobRef {
    let mut hasher = Hasher::new(DigestFunction::Sha256);
    chunks(size).for_each(|chunk| hasher.update(&chunk));
    hasher.finish()
}
