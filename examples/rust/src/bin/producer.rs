//! A producer: writes files to a store, and announces them to a replicator.
//!
//!     cargo run --bin producer -- http://127.0.0.1:7080 http://127.0.0.1:7070 FILE...
//!
//! The contract: write to the store first, then announce, and retry UNAVAILABLE and RESOURCE_EXHAUSTED for ten minutes. A
//! blob whose announcement never got through is found by the next full sync. It ends when the destinations have the files.

use anyhow::{Context as _, Result, bail};
use blobferry::client::upload::{UploadPlan, upload_all};
use blobferry::client::{Address, DigestFunction, Entropy, Replicator, announcer, retrying};
use blobferry::v1;
use futures::{StreamExt as _, stream};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long the destinations are waited for.
const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(store), Some(replicator)) = (arguments.next(), arguments.next()) else {
        bail!("usage: producer STORE REPLICATOR FILE...");
    };
    let files: Vec<PathBuf> = arguments.map(PathBuf::from).collect();
    // A file of certificate authorities in place of None is for https:// alone.
    let store = Address::new(&store, None)?.store()?;
    let replicator = Replicator::at(&Address::new(&replicator, None)?)?;

    // What is written goes into this channel, and is announced while the rest is being written.
    let (written, to_announce) = mpsc::channel(1000);
    let announcing = tokio::spawn(announcer::announce(
        replicator.clone(),
        // Empty: the one store that is only a source.
        String::new(),
        to_announce,
        Entropy::from_os(),
        |event| {
            if let announcer::AnnounceEvent::Retrying(error, delay) = event {
                eprintln!("{error}; again in {delay:?}");
            }
        },
    ));

    let plan = UploadPlan { function: DigestFunction::Sha256, streams: 8, skip_present: true, replace: false };
    let mut uploads = std::pin::pin!(upload_all(&store, stream::iter(files), plan));
    let mut refs = Vec::new();
    while let Some(uploaded) = uploads.next().await {
        let file = uploaded?.file;
        println!("{} {} {}", file.meta.blob, file.meta.size, file.path.display());
        refs.push(file.meta.blob.to_string());
        // The announcer has ended only where it failed, which is told below.
        _ = written.send(file.meta).await;
    }
    drop(written);
    let announced = announcing.await??;
    if let Some(refusal) = announced.first_refusal {
        bail!("{} refused, the first: {refusal}", announced.refused);
    }

    // A call takes 10,000 refs.
    for refs in refs.chunks(10_000) {
        let request = v1::WaitReplicatedRequest { refs: refs.to_vec(), ..Default::default() };
        let call = || {
            let (mut replicator, request) = (replicator.clone(), request.clone());
            async move { replicator.wait_replicated(request, PATIENCE).await }
        };
        let answer = retrying(&Entropy::from_os(), call, |_, _| true).await.context("waiting")?;
        println!("{}", answer.summary);
        if answer.outcome() != v1::WaitOutcome::Confirmed {
            bail!("{:#?}", answer.unconfirmed);
        }
    }
    Ok(())
}
