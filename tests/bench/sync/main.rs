//! `make sync N=1000000`: does a full sync end, and find exactly what differs, at this size?
//!
//! Fills two disk stores with the same N small blobs, holds some back from the destination, and has the real programs
//! compare and repair them over gRPC: first with nothing missing, then with a thousand missing.

#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Context as _, Result, ensure};
use blobferry::blob::{BlobRef, DigestFunction};
use blobferry::internal::clock::Entropy;
use blobferry::internal::store::DiskStore;
use blobferry::internal::store::{Put, Store};
use blobferry::v1 as pb;
use bytes::Bytes;
use clap::Parser;
use futures::StreamExt as _;
use futures::stream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::api::{self, Replication};
use support::process;
use support::run;

/// Blobs that are missing at the destination in the second pass.
const HELD_BACK: u64 = 1_000;
/// Writes under way while a store is filled.
const WRITES: usize = 512;
/// How long a pass may take.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Has a full sync compare two stores that hold the same blobs.
#[derive(Parser)]
struct Args {
    /// Blobs in each store.
    #[arg(long, default_value_t = 1_000_000)]
    blobs: u64,
    /// Where the stores lie while it runs. Default: cargo's folder for such, beside the build.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Set by `cargo bench`; without it nothing is done.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.bench {
        println!("nothing is compared without --bench, which `cargo bench` and `make sync` set");
        return ExitCode::SUCCESS;
    }
    run::run("sync", measure(&args))
}

async fn measure(args: &Args) -> Result<()> {
    let dir = run::folder(&args.dir, "sync")?;
    let path = |name: &str| dir.path().join(name);
    for name in ["source", "destination"] {
        let began = Instant::now();
        fill(&path(name), 0..args.blobs).await?;
        let rate = args.blobs as f64 / began.elapsed().as_secs_f64();
        println!("{name}: {} blobs written in {:.1?}, {rate:.0}/s", args.blobs, began.elapsed());
    }
    sync(dir.path(), "same", args.blobs, 0).await?;
    fill(&path("source"), args.blobs..args.blobs + HELD_BACK).await?;
    sync(dir.path(), "missing", args.blobs + HELD_BACK, HELD_BACK).await
}

fn content(number: u64) -> (BlobRef, Bytes) {
    let bytes = format!("blob {number}");
    (DigestFunction::Sha256.ref_of(bytes.as_bytes()), bytes.into())
}

async fn fill(folder: &Path, numbers: std::ops::Range<u64>) -> Result<()> {
    let store = DiskStore::open(folder.to_owned(), Arc::new(Entropy::from_os())).await?;
    let mut writes = stream::iter(numbers)
        .map(|number| {
            let (blob, bytes) = content(number);
            let put = Put { blob, size: Some(bytes.len() as u64), replace: false };
            store.receive(put, stream::iter([Ok(bytes)]).boxed())
        })
        .buffer_unordered(WRITES);
    while let Some(written) = writes.next().await {
        written?;
    }
    drop(writes);
    store.close().await?;
    Ok(())
}

/// One pass over both stores, which must see all of them and find as many missing as there are.
async fn sync(dir: &Path, name: &str, blobs: u64, missing: u64) -> Result<()> {
    let data = |name: &str| format!("disk://{}", dir.join(name).display());
    let source = process::store(dir, "source", &data("source"))?;
    let destination = process::store(dir, "destination", &data("destination"))?;
    let replicator = process::replicator(dir, name, &source.url(), &destination.url(), 32, "")?;
    let mut operator = Replication::new(api::channel(&replicator.url())?);
    let began = Instant::now();
    operator.trigger_full_sync(pb::TriggerFullSyncRequest::default()).await?;
    let ended = loop {
        let request = pb::GetFullSyncRequest::default();
        let found = operator.get_full_sync(request).await?.into_inner().full_sync.context("no sync")?;
        if found.state() != pb::FullSyncState::Running {
            break found;
        }
        ensure!(began.elapsed() < PATIENCE, "the sync does not end: {}", found.summary);
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    let rate = blobs as f64 / began.elapsed().as_secs_f64();
    println!("{name}: {:.1?}, {rate:.0} blobs/s: {}", began.elapsed(), ended.summary);
    ensure!(ended.state() == pb::FullSyncState::Completed, "it ended as {:?}", ended.state());
    let counts = ended.counts.context("no counts")?;
    ensure!(counts.source_blobs == Some(blobs), "{counts:?}");
    ensure!(counts.missing == Some(missing) && counts.confirmed == Some(missing), "{counts:?}");
    ensure!(counts.differing == Some(0) && counts.extra_at_destination == Some(0), "{counts:?}");
    Ok(())
}
