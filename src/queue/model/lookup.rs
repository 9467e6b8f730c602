//! Looking blobs up in the plain queue. It forgets no completion.

use super::{ModelLine, ModelQueue};
use crate::blob::BlobRef;
use crate::queue::lookup::{Known, Lookup, Queued, Standing};
use crate::queue::{QueueError, RouteId};
use async_trait::async_trait;
use tokio::sync::watch;

#[async_trait]
impl Lookup for ModelQueue {
    async fn look_up(&self, blobs: Vec<(RouteId, BlobRef)>) -> Result<Vec<Known>, QueueError> {
        let inner = self.lock();
        let known = blobs.into_iter().map(|(route, blob)| {
            let mut known =
                Known { completion: inner.durable.completions.get(&(route, blob)).copied(), ..Known::default() };
            for seq in inner.durable.queued(route, blob) {
                let Some(item) = inner.durable.items.get(&seq) else { continue };
                let standing = match item.line {
                    ModelLine::Successor => {
                        known.successor = Some(item.entry.clone());
                        continue;
                    }
                    _ if inner.claimed.contains(&seq) => Standing::Claimed,
                    ModelLine::Parked => Standing::Parked,
                    ModelLine::Timed if item.entry.failure.is_some() => Standing::Retrying,
                    ModelLine::New | ModelLine::Timed => Standing::Ready,
                };
                known.queued = Some(Queued { entry: item.entry.clone(), standing });
            }
            known
        });
        Ok(known.collect())
    }

    fn settlements(&self) -> watch::Receiver<u64> {
        self.lock().settlements.subscribe()
    }
}
