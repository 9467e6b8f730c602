//! A full sync of two disk stores that hold the same, beside the plain enumeration of both at once.

use crate::Settings;
use crate::servers::{self, Data};
use crate::support::api::{self, Reader, Replication};
use crate::support::machine;
use crate::support::process::Process;
use crate::support::report::{Comparison, Expense, Report};
use crate::throughput::last;
use anyhow::{Context as _, Result, ensure};
use blobferry::blob::DigestFunction;
use blobferry::internal::clock::Entropy;
use blobferry::internal::store::DiskStore;
use blobferry::internal::store::Put;
use blobferry::internal::store::{Parcel, receive_all};
use blobferry::v1 as pb;
use bytes::Bytes;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How often a sync is asked whether it has ended.
const POLL: Duration = Duration::from_millis(2);
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Blobs in a write while a store is filled.
const WRITE: u64 = 5_000;

pub(crate) async fn compare(settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
    let blobs = settings.scaled(settings.sync_blobs) as u64;
    let name = format!("full sync of two disk stores that hold the same {blobs} blobs");
    println!("\n{name}");
    let data = ["sync-source", "sync-destination"].map(|name| dir.join(name));
    for path in &data {
        fill(path, blobs).await?;
    }
    let source = servers::store(dir, "sync-source-store", &Data::Disk(data[0].clone()))?;
    let destination = servers::store(dir, "sync-destination-store", &Data::Disk(data[1].clone()))?;
    let replicator = servers::replicator(dir, "sync", &source.url(), &destination.url(), 32)?;
    let mut operator = Replication::new(api::channel(&replicator.url())?);
    let mut comparison = Comparison::new(&name, "refs/s", &["both enumerated, nothing compared"]);
    let mut expense = Expense::of(format!("replicator, {name}"), true);
    let count = usize::try_from(blobs)?;
    for round in settings.rounds() {
        for turn in 0..2 {
            if (turn + round) % 2 == 1 {
                let start = Instant::now();
                let counts = tokio::try_join!(list(&source), list(&destination))?;
                ensure!(counts == (blobs, blobs), "{counts:?} of {blobs} were enumerated");
                comparison.floors[0].values.push(blobs as f64 / start.elapsed().as_secs_f64());
            } else {
                let before = machine::usage(replicator.pid()?)?;
                comparison.blobferry.push(blobs as f64 / sync(&mut operator, blobs).await?.as_secs_f64());
                let after = machine::usage(replicator.pid()?)?;
                expense.add(count, 0, after.cpu_seconds - before.cpu_seconds, after.peak);
            }
        }
        println!(
            "  round {}: full sync {} refs/s, enumerated {}",
            round + 1,
            last(&comparison.blobferry),
            last(&comparison.floors[0].values)
        );
    }
    report.compare(comparison);
    report.expend(expense);
    drop((replicator, source, destination));
    data.iter().try_for_each(std::fs::remove_dir_all)?;
    Ok(())
}

/// Writes blobs to a store that nobody serves yet.
async fn fill(path: &Path, blobs: u64) -> Result<()> {
    let store = DiskStore::open(path, Arc::new(Entropy::from_os())).await?;
    let mut at = 0;
    while at < blobs {
        let parcel = |number: u64| {
            let bytes = Bytes::from(format!("blob {number}"));
            let blob = DigestFunction::Sha256.ref_of(&bytes);
            Parcel { put: Put { blob, size: Some(bytes.len() as u64), replace: false }, bytes, trace: None }
        };
        let parcels = (at..blobs.min(at + WRITE)).map(parcel).collect();
        for received in receive_all(&store, parcels).await {
            received?;
        }
        at += WRITE;
    }
    store.close().await?;
    Ok(())
}

/// Runs a full sync that must find nothing; how long it took.
async fn sync(operator: &mut Replication, blobs: u64) -> Result<Duration> {
    let start = Instant::now();
    let started = operator.trigger_full_sync(pb::TriggerFullSyncRequest::default()).await?.into_inner();
    let id = started.full_sync.context("no sync")?.id;
    loop {
        let request = pb::GetFullSyncRequest { id: id.clone(), ..Default::default() };
        let sync = operator.get_full_sync(request).await?.into_inner().full_sync.context("no sync")?;
        if sync.state() != pb::FullSyncState::Running {
            let took = start.elapsed();
            ensure!(sync.state() == pb::FullSyncState::Completed, "it ended so: {}", sync.summary);
            let counts = sync.counts.context("no counts")?;
            ensure!(counts.source_blobs == Some(blobs) && counts.missing == Some(0), "it saw {counts:?}");
            return Ok(took);
        }
        ensure!(start.elapsed() < PATIENCE, "the sync does not end: {}", sync.summary);
        tokio::time::sleep(POLL).await;
    }
}

/// Enumerates a store; how many blobs it holds.
async fn list(store: &Process) -> Result<u64> {
    let mut reader = Reader::new(api::channel(&store.url())?).max_decoding_message_size(4 << 20);
    let mut pages = reader.enumerate_blobs(pb::EnumerateBlobsRequest::default()).await?.into_inner();
    let mut blobs = 0;
    while let Some(page) = pages.message().await? {
        blobs += page.blobs.len() as u64;
    }
    Ok(blobs)
}
