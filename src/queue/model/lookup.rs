//! Looking blobs up in the plain queue. It forgets no completion.

use super::{ModelLine, ModelQueue};
use crate::blob::{BlobRef, RefPrefix};
use crate::queue::lookup::{Known, Lookup, Queued, Standing};
use crate::queue::{QueueError, RouteId};
use async_trait::async_trait;
use std::collections::BTreeSet;
use tokio::sync::watch;

#[async_trait]
impl Lookup for ModelQueue {
    async fn look_up(&self, blobs: Vec<(RouteId, BlobRef)>) -> Result<Vec<Known>, QueueError> {
        let inner = self.inner.lock();
        let known = blobs.into_iter().map(|(route, blob)| {
            let mut known =
                Known { completion: inner.durable.completions.get(&(route, blob)).cloned(), ..Known::default() };
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

    async fn find(
        &self,
        routes: Vec<RouteId>,
        prefix: RefPrefix,
        most: usize,
    ) -> Result<Option<BTreeSet<BlobRef>>, QueueError> {
        let inner = self.inner.lock();
        let queued = inner.durable.items.values().map(|item| (item.entry.route, item.entry.blob));
        let all = queued.chain(inner.durable.completions.keys().copied());
        let found = all.filter(|(route, blob)| routes.contains(route) && prefix.matches(blob));
        Ok(Some(found.map(|(_, blob)| blob).collect::<BTreeSet<_>>().into_iter().take(most).collect()))
    }

    fn settlements(&self) -> watch::Receiver<u64> {
        self.inner.lock().settlements.subscribe()
    }
}
