//! Dropped routes of the plain queue.

use super::{ModelLine, ModelQueue, add};
use crate::queue::drop::{DropEntries, Dropped};
use crate::queue::lookup::{Completion, DiscardedBy, Ending, Enqueued};
use crate::queue::{QueueError, RouteId, Tally};
use async_trait::async_trait;

#[async_trait]
impl DropEntries for ModelQueue {
    async fn drop_entries(&self, route: RouteId, max: usize) -> Result<Dropped, QueueError> {
        let now = self.clock.now();
        let mut inner = self.inner.lock();
        let of_route = inner.durable.items.iter().filter(|(_, item)| item.entry.route == route);
        let seqs: Vec<u64> = of_route.map(|(seq, _)| *seq).collect();
        let free: Vec<u64> = seqs.iter().copied().filter(|seq| !inner.claimed.contains(seq)).take(max).collect();
        let mut tally = Tally::default();
        for seq in free {
            inner.released.remove(&seq);
            let Some(item) = inner.durable.delete(seq) else { continue };
            add(&mut tally, &item.entry);
            let cause = item.entry.failure.as_ref().map(|failure| failure.kind);
            let ending = Ending::Discarded { by: DiscardedBy::Operator, cause };
            let completion = Completion { time: now, ending, enqueued: Some(Enqueued::of(&item.entry)) };
            inner.durable.completions.insert((route, item.entry.blob), completion);
            inner.durable.ended.entry(route).or_default().discarded += 1;
            for sync in &item.entry.syncs {
                inner.durable.ended_syncs.entry(*sync).or_default().discarded += 1;
            }
            let next = inner.durable.queued(route, item.entry.blob).first().copied().filter(|next| *next > seq);
            if let Some(next) = next.and_then(|next| inner.durable.items.get_mut(&next)) {
                next.line = ModelLine::Timed;
                next.entry.due_time = now;
            }
        }
        inner.wake_all();
        Ok(Dropped { tally, done: seqs.is_empty() })
    }
}
