//! What is done to a queue.

use anyhow::{Result, ensure};
use blobferry::blob::{BlobRef, DigestFunction};
use blobferry::internal::clock::SystemClock;
use blobferry::internal::queue::{Claim, ClaimOrder, ClaimRequest, Lane, Origin, Outcome, Push, Queue, RouteId};
use blobferry::internal::queue::{RocksOptions, RocksQueue};
use rand::{RngCore as _, rngs::SmallRng};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// A queue and its only route.
pub(crate) struct Subject {
    pub(crate) queue: RocksQueue,
    pub(crate) route: RouteId,
    from: Arc<str>,
}

impl Subject {
    /// Opens it as the replicator does by default.
    pub(crate) async fn open(dir: &Path) -> Result<Self> {
        let queue = RocksQueue::open(dir, RocksOptions::default(), Arc::new(SystemClock::new()))?;
        let route = queue.register("a_to_b", "a", "b").await?;
        Ok(Self { queue, route, from: "a".into() })
    }

    /// Pushes this many random refs in one durable write.
    pub(crate) async fn push(&self, count: u64, random: &mut SmallRng) -> Result<()> {
        let pushes = (0..count).map(|_| Push {
            route: self.route,
            blob: random_ref(random),
            size: Some(4096),
            lane: Lane::Fresh,
            trace: None,
            visited: vec![self.from.clone()],
            repair: false,
            origin: Origin::Announced,
        });
        self.queue.push(pushes.collect(), Vec::new()).await?;
        Ok(())
    }

    /// Claims at most this many entries.
    pub(crate) async fn claim(&self, max: usize) -> Result<Vec<Claim>> {
        let (route, lane, order, now) = (self.route, Lane::Fresh, ClaimOrder::Oldest, SystemTime::now());
        Ok(self.queue.claim(ClaimRequest { route, lane, order, max, now }).await?.claims)
    }

    /// Confirms these.
    pub(crate) async fn settle(&self, claims: Vec<Claim>) -> Result<()> {
        let confirmed = |claim| (claim, Outcome::Confirmed { size: 4096, copied: true, chained: Vec::new() });
        Ok(self.queue.settle(claims.into_iter().map(confirmed).collect()).await?)
    }

    /// Claims and confirms this many entries, `batch` at a time.
    pub(crate) async fn drain(&self, mut count: u64, batch: u64) -> Result<()> {
        while count > 0 {
            let claims = self.claim(usize::try_from(batch.min(count))?).await?;
            ensure!(!claims.is_empty(), "nothing can be claimed, and {count} entries were to be");
            count -= claims.len() as u64;
            self.settle(claims).await?;
        }
        Ok(())
    }

    /// Entries that are ready or claimed.
    pub(crate) fn entries(&self) -> u64 {
        let fresh = self.queue.counts(self.route).fresh;
        fresh.ready.entries + fresh.claimed.entries
    }
}

fn random_ref(random: &mut SmallRng) -> BlobRef {
    let mut digest = [0; 32];
    random.fill_bytes(&mut digest);
    match BlobRef::new(DigestFunction::Sha256, &digest) {
        Some(blob) => blob,
        None => unreachable!("a SHA-256 digest has 32 bytes"),
    }
}
