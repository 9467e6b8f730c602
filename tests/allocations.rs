//! What a copy allocates: no byte of a blob is copied on its way through the replicator's part.
//!
//! Its own program, because a counting allocator counts for all of one. The stores are processes of their own, so that what
//! is counted is the copy between them. Counts, never times.

#[allow(dead_code, reason = "the benchmarks use more of it")]
#[path = "bench/support/process.rs"]
mod process;

use blobferry::blob::DigestFunction;
use blobferry::internal::copy::{CopyJob, Progress, WaitLimits, copy_blob};
use blobferry::internal::grpc::PeerEndpoint;
use blobferry::internal::store::RemoteStore;
use blobferry::internal::store::{Put, Store};
use bytes::Bytes;
use futures::{StreamExt, stream};
use process::Process;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use std::alloc::System;
use std::sync::Arc;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const BLOB_BYTES: usize = 8 << 20;
const CHUNK_BYTES: usize = 256 << 10;
const BLOBS: usize = 8;

fn remote(store: &Process) -> Arc<dyn Store> {
    let peer = PeerEndpoint::at(store.url().parse().expect("a URL"));
    Arc::new(RemoteStore::new(&peer).expect("an endpoint"))
}

#[tokio::test]
async fn a_copy_allocates_little_more_than_the_bytes_that_come_in() {
    let folder = tempfile::tempdir().expect("a folder");
    let start = |name: &str| process::store(folder.path(), name, "memory://").expect("a store");
    let (source_process, destination_process) = (start("source"), start("destination"));
    let (source, destination) = (remote(&source_process), remote(&destination_process));
    let mut blobs = Vec::new();
    // The first one makes the connections, and everything else that is made once.
    for number in 0..=BLOBS {
        let mut bytes = Bytes::from(vec![u8::try_from(number).expect("few"); BLOB_BYTES]);
        let blob = DigestFunction::Sha256.ref_of(&bytes);
        let chunks: Vec<_> =
            std::iter::from_fn(|| (!bytes.is_empty()).then(|| Ok(bytes.split_to(CHUNK_BYTES)))).collect();
        let put = Put { blob, size: Some(BLOB_BYTES as u64), replace: false };
        source.receive(put, stream::iter(chunks).boxed()).await.expect("stored");
        blobs.push(blob);
    }
    let copy = async |blob| {
        let job = CopyJob {
            blob,
            size_hint: None,
            repair: false,
            receive_only: false,
            ask_first: false,
            waits: WaitLimits::default(),
        };
        let copied = copy_blob(&source, &*destination, &job, &Arc::new(Progress::new(None))).await.expect("copied");
        assert!(copied.copied);
    };
    copy(blobs[0]).await;
    let region = Region::new(ALLOCATOR);
    for blob in &blobs[1..] {
        copy(*blob).await;
    }
    let counted = region.change();
    let moved = BLOBS * BLOB_BYTES;
    let allocated = counted.bytes_allocated;
    let allocations = counted.allocations + counted.reallocations;
    println!(
        "{:.3} bytes allocated for each byte moved, {:.1} allocations for each chunk",
        allocated as f64 / moved as f64,
        allocations as f64 / (moved / CHUNK_BYTES) as f64
    );
    // Each byte has the buffer that it is read into, and no other: 1.04 and 8.6 when this was written. A codec that copies
    // takes three times as many bytes.
    assert!(allocated * 4 <= moved * 5, "{allocated} bytes were allocated to move {moved}");
    assert!(allocations <= moved / CHUNK_BYTES * 16, "{allocations} allocations for {moved} bytes");
}
