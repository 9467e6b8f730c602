//! The calls that a load is made of.

use anyhow::{Context as _, Result};
use blobferry::blob::{BlobRef, DigestFunction};
use blobferry::v1 as pb;
use bytes::Bytes;
use rand::{RngCore as _, SeedableRng as _};
use tonic::transport::{Channel, Endpoint};

pub(crate) type Replication = pb::replication_service_client::ReplicationServiceClient<Channel>;
pub(crate) type Receiver = pb::blob_receiver_service_client::BlobReceiverServiceClient<Channel>;
pub(crate) type Reader = pb::blob_reader_service_client::BlobReaderServiceClient<Channel>;

/// Bytes of a blob in one message, in loads and floors alike.
pub(crate) const CHUNK: usize = 256 << 10;
/// The most refs in one call.
pub(crate) const MAX_ITEMS: usize = 10_000;

/// A connection that is made when it is first used, and again when it is lost; windows large enough not to be the limit.
pub(crate) fn channel(url: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?;
    Ok(endpoint
        .tcp_nodelay(true)
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(16 << 20)
        .max_frame_size(Some(64 << 10))
        .connect_lazy())
}

/// A blob of this many bytes, different for each seed.
pub(crate) fn blob(seed: u64, size: usize) -> (BlobRef, Bytes) {
    let mut bytes = vec![0; size];
    rand::rngs::SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    (DigestFunction::Sha256.ref_of(&bytes), bytes.into())
}

pub(crate) fn header(blob: String, size: u64, source_store: &str) -> pb::ReceiveBlobRequest {
    let header = pb::BlobHeader {
        r#ref: blob,
        size_bytes: Some(size),
        source_store: source_store.to_owned(),
        ..Default::default()
    };
    pb::ReceiveBlobRequest { part: Some(pb::receive_blob_request::Part::Header(header)) }
}

pub(crate) fn chunk(bytes: Bytes) -> pb::ReceiveBlobRequest {
    pb::ReceiveBlobRequest { part: Some(pb::receive_blob_request::Part::Chunk(bytes)) }
}

/// The bytes in pieces of [`CHUNK`], without copying them.
pub(crate) fn pieces(mut bytes: Bytes) -> impl Iterator<Item = Bytes> + Send {
    std::iter::from_fn(move || {
        let next = bytes.split_to(bytes.len().min(CHUNK));
        (!next.is_empty()).then_some(next)
    })
}

/// Writes a blob to a store, or announces it with its bytes to a replicator.
pub(crate) async fn put(
    to: &mut Receiver,
    blob: &BlobRef,
    bytes: Bytes,
    source_store: &str,
) -> Result<pb::ReceiveBlobResponse, tonic::Status> {
    let first = header(blob.to_string(), bytes.len() as u64, source_store);
    let messages = std::iter::once(first).chain(pieces(bytes).map(chunk));
    to.receive_blob(tokio_stream::iter(messages)).await.map(tonic::Response::into_inner)
}

/// Announces refs without their bytes; at most [`MAX_ITEMS`]. Whether all were accepted.
pub(crate) async fn enqueue(at: &mut Replication, items: Vec<pb::EnqueueItem>) -> Result<bool, tonic::Status> {
    let count = items.len();
    let request = pb::EnqueueBlobsRequest { source_store: "a".to_owned(), items, issue_wait_token: false };
    let results = at.enqueue_blobs(request).await?.into_inner().results;
    Ok(results.len() == count && results.iter().all(|result| result.error.is_none() && !result.routes.is_empty()))
}

pub(crate) fn item(blob: String, size: Option<u64>) -> pb::EnqueueItem {
    pb::EnqueueItem { r#ref: blob, size_bytes: size, ..Default::default() }
}

/// The status of the only route.
pub(crate) async fn route(of: &mut Replication) -> Result<pb::RouteStatus> {
    let status = of.status(pb::StatusRequest::default()).await?.into_inner().status.context("no status")?;
    status.routes.into_iter().next().context("no route")
}

/// Entries of a route in both lanes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queued {
    /// Ready, claimed or retrying: what will still be copied.
    pub(crate) moving: u64,
    pub(crate) parked: u64,
}

pub(crate) fn queued(route: &pb::RouteStatus) -> Queued {
    let entries = |tally: &Option<pb::Tally>| tally.as_ref().and_then(|tally| tally.entries).unwrap_or(0);
    let mut queued = Queued::default();
    let Some(counts) = &route.queued else { return queued };
    for lane in [&counts.fresh, &counts.backfill].into_iter().flatten() {
        queued.moving += entries(&lane.ready) + entries(&lane.claimed) + entries(&lane.retrying);
        queued.parked += entries(&lane.parked);
    }
    queued
}
