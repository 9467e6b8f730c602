//! Announces many blobs at a replicator as the producer's contract asks: what is there is sent at once, up to a thousand
//! refs a call; UNAVAILABLE and RESOURCE_EXHAUSTED are retried with backoff for ten minutes; a batch counts when it was
//! answered OK, and not before.

use super::{ClientError, Replicator, retrying};
use crate::blob::BlobMeta;
use crate::clock::Entropy;
use crate::pb::v1;
use std::time::Duration;
use tokio::sync::mpsc;

/// The most refs in a call.
const BATCH: usize = 1000;

/// What became of all announcements.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AnnounceSummary {
    /// Blobs that are durably queued, on all routes from their store.
    pub accepted: u64,
    /// Blobs that the replicator refused.
    pub refused: u64,
    /// What it said of the first of them.
    pub first_refusal: Option<String>,
    /// Calls that were repeated.
    pub retries: u64,
}

/// What happens while blobs are announced.
#[derive(Debug)]
pub enum AnnounceEvent<'a> {
    /// So many blobs are durably queued from now on.
    Accepted(u64),
    /// A try failed, and is repeated after this delay.
    Retrying(&'a ClientError, Duration),
}

/// Announces what comes through the channel, until its senders are gone. `on_event` is told how it goes.
///
/// Cancel safe in the sense of the contract: what was not answered may or may not be queued, and may be announced again.
///
/// # Errors
/// What the replicator says that no retry mends, or the last failure after ten minutes of retrying.
pub async fn announce(
    replicator: Replicator,
    source_store: String,
    mut blobs: mpsc::Receiver<BlobMeta>,
    entropy: Entropy,
    mut on_event: impl FnMut(AnnounceEvent<'_>),
) -> Result<AnnounceSummary, ClientError> {
    let mut announced = AnnounceSummary::default();
    let mut batch = Vec::with_capacity(BATCH);
    // Takes what is there, and waits only for the first: the last blob is not delayed for the sake of a full batch.
    while blobs.recv_many(&mut batch, BATCH).await > 0 {
        let items: Vec<v1::EnqueueItem> = batch.drain(..).map(|meta: BlobMeta| item(&meta)).collect();
        let mut attempts = 0;
        let said_nothing = announced.accepted + announced.refused == 0;
        let call = || {
            let mut replicator = replicator.clone();
            let (source_store, items) = (source_store.clone(), items.clone());
            async move { replicator.enqueue(source_store, items).await }
        };
        let on_failure = |error: &ClientError, delay| {
            // Said twice, and nothing was ever answered: a proxy that speaks more than gRPC may cut one connection.
            if error.is_other_protocol() && attempts > 0 && said_nothing {
                return false;
            }
            attempts += 1;
            announced.retries += 1;
            on_event(AnnounceEvent::Retrying(error, delay));
            true
        };
        let answer = retrying(&entropy, call, on_failure).await?;
        let refused = answer.results.iter().filter(|result| result.error.is_some()).count();
        let accepted = (answer.results.len() - refused) as u64;
        announced.accepted += accepted;
        on_event(AnnounceEvent::Accepted(accepted));
        for result in answer.results {
            match result.error {
                None => {}
                Some(error) => {
                    announced.refused += 1;
                    announced.first_refusal.get_or_insert_with(|| format!("{}: {}", result.r#ref, error.message));
                }
            }
        }
    }
    Ok(announced)
}

fn item(meta: &BlobMeta) -> v1::EnqueueItem {
    v1::EnqueueItem { r#ref: meta.blob.to_string(), size_bytes: Some(meta.size), ..v1::EnqueueItem::default() }
}
