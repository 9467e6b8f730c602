//! Announces many blobs at a replicator as the producer's contract asks: what is there is sent at once, up to a thousand
//! refs a call; UNAVAILABLE and RESOURCE_EXHAUSTED are retried with backoff for ten minutes; a batch counts when it was
//! answered OK, and not before.

use super::{ClientError, Replicator};
use crate::backoff::Backoff;
use crate::blob::BlobMeta;
use crate::clock::Entropy;
use crate::pb::v1;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::Code;

/// The most refs in a call.
const BATCH: usize = 1000;
/// How long a batch is retried.
const PATIENCE: Duration = Duration::from_mins(10);
/// Between two tries of a batch.
const BETWEEN: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));

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
    mut replicator: Replicator,
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
        let deadline = Instant::now() + PATIENCE;
        let mut attempts = 0;
        let answer = loop {
            let error = match replicator.enqueue(source_store.clone(), items.clone()).await {
                Ok(answer) => break answer,
                Err(error) => error,
            };
            // Said twice, and nothing was ever answered: a proxy that speaks more than gRPC may cut one connection.
            let is_elsewhere = error.is_other_protocol() && attempts > 0 && announced.accepted + announced.refused == 0;
            if !is_worth_retrying(&error) || is_elsewhere || Instant::now() >= deadline {
                return Err(error);
            }
            attempts += 1;
            announced.retries += 1;
            let delay = BETWEEN.delay(attempts, entropy.jitter());
            on_event(AnnounceEvent::Retrying(&error, delay));
            tokio::time::sleep(delay).await;
        };
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

/// A lost connection shows as UNKNOWN or CANCELLED at times, a slow answer as DEADLINE_EXCEEDED: announcing is idempotent.
fn is_worth_retrying(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
    )
}
