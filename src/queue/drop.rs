//! The end of a route: all of its entries deleted, whatever their state.
//!
//! For routes that left the configuration: nobody copies what is queued there. In steps, each one durable write; a crash
//! between two leaves a queue that is whole, with fewer entries. The route itself stays known, and works when it is configured
//! again. What is claimed at that moment is left alone, and ends by its own settlement.

use super::{QueueError, RouteId, Tally};
use async_trait::async_trait;

/// What a step did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Dropped {
    /// The entries that it deleted.
    pub tally: Tally,
    /// Whether the route is empty now, rows that could not be read included: those are set aside.
    pub done: bool,
}

/// Deletes routes' entries.
#[async_trait]
pub trait DropEntries: Send + Sync + 'static {
    /// Deletes up to `max` entries in one durable write. They are counted as discarded, in the route and in the syncs that
    /// wait for them. Where it deletes none and is not done, those that are left are claimed, or new.
    ///
    /// # Errors
    /// As [`Queue::settle`](super::Queue::settle).
    async fn drop_entries(&self, route: RouteId, max: usize) -> Result<Dropped, QueueError>;
}
