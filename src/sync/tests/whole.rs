//! Syncs over the model queue and stores in memory, with a copier that settles as the worker does.

use super::super::{
    FullSyncs, StoreIds, SyncMode, SyncParts, SyncRecord, SyncRequest, SyncRoute, SyncSettings, SyncState,
};
use crate::blob::DigestFunction;
use crate::clock::{Clock, SystemClock};
use crate::queue::model::ModelQueue;
use crate::queue::suite::claim_any;
use crate::queue::{Lane, Outcome, Queue, RouteId};
use crate::store::memory::MemoryStore;
use crate::store::{ByteRange, EnumerateRange, Put, Store};
use crate::telemetry::Tracer;
use bytes::Bytes;
use futures::StreamExt;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

async fn put(store: &MemoryStore, bytes: Bytes) {
    let put = Put { blob: DigestFunction::Sha256.ref_of(&bytes), size: None, replace: false };
    store.receive(put, futures::stream::once(async { Ok(bytes) }).boxed()).await.unwrap();
}

async fn listing(store: &MemoryStore) -> Vec<crate::blob::BlobMeta> {
    let pages: Vec<_> = store.enumerate(EnumerateRange::default()).await.unwrap().collect().await;
    pages.into_iter().flat_map(|page| page.unwrap().blobs).collect()
}

/// Copies and settles whatever the backfill lane has, once.
async fn copy_some(queue: &ModelQueue, route: RouteId, source: &MemoryStore, destination: &MemoryStore) {
    let clock = SystemClock::new();
    let mut settled = Vec::new();
    for claim in claim_any(queue, route, Lane::Backfill, 500, clock.now()).await.unwrap() {
        let entry = claim.entry();
        let fetched = source.fetch(entry.blob, ByteRange::default()).await.unwrap();
        let put = Put { blob: entry.blob, size: Some(fetched.size), replace: entry.repair };
        let received = destination.receive(put, fetched.bytes).await.unwrap();
        settled.push((claim, Outcome::Confirmed { size: received.size, copied: true, chained: Vec::new() }));
    }
    queue.settle(settled).await.unwrap();
}

async fn ended(syncs: &FullSyncs) -> SyncRecord {
    for _ in 0..10_000 {
        if let Some(record) = syncs.last("r").filter(|record| record.state != SyncState::Running) {
            return record;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the sync never ended: {:?}", syncs.last("r"));
}

#[tokio::test(start_paused = true)]
async fn after_a_sync_the_destination_holds_all_and_the_next_finds_nothing() {
    let [source, destination] = ["a", "b"].map(|id| Arc::new(MemoryStore::new(id, 1 << 30)));
    for number in 0..2500u32 {
        let bytes = Bytes::copy_from_slice(&number.to_le_bytes());
        put(&source, bytes.clone()).await;
        if number % 3 == 0 {
            put(&destination, bytes).await;
        }
    }
    put(&destination, Bytes::from_static(b"only here")).await;
    let clock = Arc::new(SystemClock::new());
    let queue = ModelQueue::new(u64::MAX, Duration::from_secs(600), clock.clone());
    let id = queue.register("r", "a", "b").await.unwrap();
    let route = SyncRoute {
        name: "r".into(),
        id,
        from_name: "a".into(),
        to_name: "b".into(),
        source: Arc::clone(&source) as _,
        destination: Arc::clone(&destination) as _,
        store_ids: StoreIds { source: watch::channel(None).1, destination: watch::channel(None).1 },
        receive_only: false,
    };
    let settings = SyncSettings { high_water: 1000, window: 700, ..SyncSettings::default() };
    let parts = SyncParts { queue: Arc::new(queue.clone()), clock, tracer: Tracer::off(), settings };
    let syncs = FullSyncs::open(parts, vec![route]).await.unwrap();
    let request = SyncRequest { route: "r".into(), mode: SyncMode::Copy, ..SyncRequest::default() };

    syncs.start(request.clone()).await.unwrap();
    let copies = async {
        loop {
            copy_some(&queue, id, &source, &destination).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let first = tokio::select! {
        record = ended(&syncs) => record,
        () = copies => unreachable!("copies go on"),
    };
    assert_eq!(first.state, SyncState::Completed, "{first:?}");
    assert_eq!((first.counts.missing, first.counts.extra, first.tally.confirmed), (1666, 1, 1666));
    let held = listing(&destination).await;
    assert!(listing(&source).await.iter().all(|meta| held.contains(meta)));

    syncs.start(request).await.unwrap();
    let second = ended(&syncs).await;
    assert_eq!((second.state, second.counts.missing, second.counts.extra), (SyncState::Completed, 0, 1));
    assert_eq!(second.counts.destination_blobs, 2501);
}
