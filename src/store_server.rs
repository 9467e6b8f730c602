//! Serves any [`Store`] over gRPC: `BlobReceiverService` and `BlobReaderService`.
//!
//! Thin: it decodes strictly, calls the store, and encodes. Every call holds a permit to its very end, also while its
//! stream is read; no stream may stand still, neither one that comes in nor one that goes out.

mod named;
mod packed;
mod spans;

use crate::blob::{BlobRef, Excerpt, RefError};
use crate::failpoint::{self, Point};
use crate::grpc::{
    Answering, CHUNK_BYTES, CallLimit, DirectService, MAX_DECODED_BYTES, MAX_ITEMS, MAX_MESSAGE_BYTES, Reason,
    STREAM_IDLE, invalid_field, invalid_ref, pump, read_header, store_status,
};
use crate::pb::v1;
use crate::store::packed::MAX_PACKED_BYTES;
use crate::store::{
    ByteRange, Disposition, EnumerateRange, Enumeration, Fetched, PeerKind, Put, Store, StoreError, StoreInfo,
};
use crate::telemetry::Tracer;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use http::HeaderValue;
use named::Named;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OnceCell;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use v1::blob_reader_service_server::{BlobReaderService, BlobReaderServiceServer};
use v1::blob_receiver_service_server::{BlobReceiverService, BlobReceiverServiceServer};

/// Blobs in one message of an enumeration. Thousands, not single ones: h2 gives up a connection on which many unread small
/// frames queue up.
const PAGE_BLOBS: usize = 1000;

/// The longest bound of an enumeration, in characters.
const MAX_BOUND: usize = 1024;

/// How often a listing that finds nothing says that it is alive, at most; and by how much a half-full page may be late.
const PAGE_PATIENCE: Duration = Duration::from_secs(5);

/// How a store is served.
#[derive(Clone, Copy, Debug)]
pub struct StoreServerSettings {
    /// How long a stream may stand still, in either direction.
    pub idle_timeout: Duration,
    /// Calls in progress, at most; those beyond it are answered TOO_BUSY.
    pub max_calls: usize,
}

impl Default for StoreServerSettings {
    fn default() -> Self {
        Self { idle_timeout: STREAM_IDLE, max_calls: 1024 }
    }
}

/// A store's services. Clones share the store and its limits.
#[derive(Clone)]
pub struct StoreServer {
    shared: Arc<ServedStore>,
}

struct ServedStore {
    store: Arc<dyn Store>,
    settings: StoreServerSettings,
    tracer: Tracer,
    calls: CallLimit,
    // Drive the streams that are read from us.
    tasks: TaskTracker,
    // A store that is served does not change while it is.
    info: OnceCell<StoreInfo>,
    id: OnceCell<Option<HeaderValue>>,
}

impl ServedStore {
    async fn info(&self) -> Result<&StoreInfo, StoreError> {
        self.info.get_or_try_init(|| self.store.info()).await
    }
}

impl StoreServer {
    /// Serves this store.
    pub fn new(store: Arc<dyn Store>, settings: StoreServerSettings) -> Self {
        Self::traced(store, settings, Tracer::off())
    }

    /// The same, with spans for blobs that come or go packed. Those of calls are the server's.
    pub fn traced(store: Arc<dyn Store>, settings: StoreServerSettings, tracer: Tracer) -> Self {
        let (calls, tasks) = (CallLimit::new(settings.max_calls), TaskTracker::new());
        let (info, id) = (OnceCell::new(), OnceCell::new());
        Self { shared: Arc::new(ServedStore { store, settings, tracer, calls, tasks, info, id }) }
    }

    /// Adds both services to what a server serves.
    pub fn add_to(&self, routes: Routes) -> Routes {
        let receiver = BlobReceiverServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_DECODED_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let reader = BlobReaderServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_DECODED_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let receiver = DirectService::requests_of(receiver, "ReceiveBlob");
        let reader = DirectService::answers_of(reader, "FetchBlob");
        routes
            .add_service(Named::new(receiver, self.shared.clone()))
            .add_service(Named::new(reader, self.shared.clone()))
    }

    async fn info(&self) -> Result<&StoreInfo, Status> {
        self.shared.info().await.map_err(|error| failed(&error, None))
    }
}

/// The status of a store's error, which is logged where it is the store's own fault.
fn failed(error: &StoreError, blob: Option<&BlobRef>) -> Status {
    match error {
        StoreError::Corrupt { .. } | StoreError::Io { .. } | StoreError::NoSpace(_) | StoreError::Protocol(_) => {
            tracing::error!(%error, blob = blob.map(tracing::field::display), "the store failed");
        }
        _ => {}
    }
    store_status(error, blob)
}

/// A place where the store can be made to fail.
async fn at(point: Point) -> Result<(), Status> {
    failpoint::pause(point).await.map_err(|injected| failed(&injected.into(), None))
}

#[async_trait]
impl BlobReceiverService for StoreServer {
    type ReceiveBlobsStream = packed::ReceiveBlobsStream;

    async fn get_peer_info(
        &self,
        _request: Request<v1::GetPeerInfoRequest>,
    ) -> Result<Response<v1::GetPeerInfoResponse>, Status> {
        let peer_info = Some(peer_info(self.info().await?));
        Ok(Response::new(v1::GetPeerInfoResponse { peer_info }))
    }

    async fn receive_blob(
        &self,
        request: Request<Streaming<v1::ReceiveBlobRequest>>,
    ) -> Result<Response<v1::ReceiveBlobResponse>, Status> {
        let _permit = self.shared.calls.enter()?;
        let (header, bytes) = read_header(request, self.shared.settings.idle_timeout).await?;
        let info = self.info().await?;
        let blob = header.blob;
        if !info.functions.contains(&blob.function()) {
            let unknown = RefError::UnknownFunction(Excerpt::of(blob.function().name()));
            return Err(invalid_ref("header.ref", &unknown));
        }
        if header.replace && !info.abilities.replace {
            return Err(Reason::ReplaceUnsupported.status("this store cannot replace a blob that it holds"));
        }
        if let (Some(size), Some(limit)) = (header.size, info.max_blob_bytes)
            && size > limit
        {
            return Err(store_status(&StoreError::TooLarge { limit }, Some(&blob)));
        }
        let put = Put { blob, size: header.size, replace: header.replace };
        at(Point::ServerReceive).await?;
        let received = self.shared.store.receive(put, bytes).await.map_err(|error| failed(&error, Some(&blob)))?;
        at(Point::ServerAnswer).await?;
        Ok(Response::new(v1::ReceiveBlobResponse {
            r#ref: received.blob.to_string(),
            size_bytes: Some(received.size),
            disposition: disposition(received.disposition).into(),
            was_new: received.was_new,
            ..v1::ReceiveBlobResponse::default()
        }))
    }

    async fn receive_blobs(
        &self,
        request: Request<Streaming<v1::ReceiveBlobsRequest>>,
    ) -> Result<Response<Self::ReceiveBlobsStream>, Status> {
        self.receive_packed(request).await
    }
}

#[async_trait]
impl BlobReaderService for StoreServer {
    type FetchBlobsStream = packed::FetchBlobsStream;
    type FetchBlobStream = BoxStream<'static, Result<v1::FetchBlobResponse, Status>>;
    type EnumerateBlobsStream = BoxStream<'static, Result<v1::EnumerateBlobsResponse, Status>>;

    async fn stat_blobs(
        &self,
        request: Request<v1::StatBlobsRequest>,
    ) -> Result<Response<v1::StatBlobsResponse>, Status> {
        let _permit = self.shared.calls.enter()?;
        let refs = request.into_inner().refs;
        if refs.len() > MAX_ITEMS {
            let count = refs.len();
            return Err(Reason::TooManyItems.status(format!("{count} refs; at most {MAX_ITEMS} fit one request")));
        }
        let mut blobs = Vec::with_capacity(refs.len());
        for (index, text) in refs.iter().enumerate() {
            blobs.push(text.parse().map_err(|error| invalid_ref(&format!("refs[{index}]"), &error))?);
        }
        let found = self.shared.store.stat(&blobs).await.map_err(|error| failed(&error, None))?;
        let blobs = found
            .into_iter()
            .map(|meta| v1::BlobMeta { r#ref: meta.blob.to_string(), size_bytes: Some(meta.size) })
            .collect();
        Ok(Response::new(v1::StatBlobsResponse { blobs }))
    }

    async fn fetch_blob(
        &self,
        request: Request<v1::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let permit = self.shared.calls.enter()?;
        let answering = Answering::to(&request);
        let request = request.into_inner();
        let blob: BlobRef = request.r#ref.parse().map_err(|error| invalid_ref("ref", &error))?;
        let range = ByteRange { offset: request.offset, length: request.length };
        at(Point::ServerFetch).await?;
        let fetched = match self.shared.store.fetch(blob, range).await {
            Ok(fetched) => fetched,
            Err(error) => return Err(self.fetch_failed(&error, blob, range).await),
        };
        let messages = fetch_messages(blob, fetched);
        let idle = self.shared.settings.idle_timeout;
        Ok(answering.with(pump(&self.shared.tasks, permit, idle, messages)))
    }

    async fn fetch_blobs(
        &self,
        request: Request<Streaming<v1::FetchBlobsRequest>>,
    ) -> Result<Response<Self::FetchBlobsStream>, Status> {
        self.fetch_packed(request).await
    }

    async fn enumerate_blobs(
        &self,
        request: Request<v1::EnumerateBlobsRequest>,
    ) -> Result<Response<Self::EnumerateBlobsStream>, Status> {
        let permit = self.shared.calls.enter()?;
        let request = request.into_inner();
        for (field, bound) in [("after", &request.after), ("until", &request.until)] {
            if !bound.is_ascii() || bound.len() > MAX_BOUND {
                return Err(invalid_field(field, "a bound is ASCII text of at most 1,024 characters"));
            }
        }
        let limit = (request.limit > 0).then_some(request.limit);
        let range = EnumerateRange { after: request.after, until: request.until, limit };
        at(Point::ServerEnumerate).await?;
        let pages = self.shared.store.enumerate(range).await.map_err(|error| failed(&error, None))?;
        let messages = enumerate_messages(pages);
        let idle = self.shared.settings.idle_timeout;
        Ok(Response::new(pump(&self.shared.tasks, permit, idle, messages).boxed()))
    }
}

impl StoreServer {
    /// The status of a fetch that did not begin. An offset behind the end has a reason of its own.
    async fn fetch_failed(&self, error: &StoreError, blob: BlobRef, range: ByteRange) -> Status {
        if matches!(error, StoreError::Invalid(_))
            && let Ok(found) = self.shared.store.stat(&[blob]).await
            && let Some(meta) = found.first()
            && range.offset > meta.size
        {
            let metadata = [("ref", blob.to_string()), ("size_bytes", meta.size.to_string())];
            return Reason::OffsetOutOfRange.status_with(error.to_string(), metadata);
        }
        failed(error, Some(&blob))
    }
}

/// The header, then chunks of [`CHUNK_BYTES`] at most.
fn fetch_messages(
    blob: BlobRef,
    fetched: Fetched,
) -> impl futures::Stream<Item = Result<v1::FetchBlobResponse, Status>> + Send {
    use v1::fetch_blob_response::Part;
    let header = v1::FetchBlobHeader { r#ref: blob.to_string(), size_bytes: Some(fetched.size) };
    let chunks = stream::unfold((fetched.bytes, Bytes::new()), move |(mut bytes, mut rest)| async move {
        while rest.is_empty() {
            match bytes.next().await? {
                Ok(more) => rest = more,
                // The stream below ends after an error, and so does this one.
                Err(error) => return Some((Err(failed(&error, Some(&blob))), (stream::empty().boxed(), Bytes::new()))),
            }
        }
        let chunk = rest.split_to(rest.len().min(CHUNK_BYTES));
        Some((Ok(Part::Chunk(chunk)), (bytes, rest)))
    });
    stream::iter([Ok(Part::Header(header))])
        .chain(chunks)
        .map(|part| part.map(|part| v1::FetchBlobResponse { part: Some(part) }))
}

/// A listing in progress of being packed.
struct Packing {
    pages: Enumeration,
    // What came and is not sent yet.
    waiting: VecDeque<v1::BlobMeta>,
    end: Option<v1::EnumerateEnd>,
    done: bool,
}

/// Pages of [`PAGE_BLOBS`], however large those of the store are.
fn enumerate_messages(
    pages: Enumeration,
) -> impl futures::Stream<Item = Result<v1::EnumerateBlobsResponse, Status>> + Send {
    let packing = Packing { pages, waiting: VecDeque::new(), end: None, done: false };
    stream::unfold(packing, |mut packing| async move {
        if packing.done {
            return None;
        }
        let message = packing.next().await;
        packing.done = message.as_ref().map_or(true, |message| message.end.is_some());
        Some((message, packing))
    })
}

impl Packing {
    async fn next(&mut self) -> Result<v1::EnumerateBlobsResponse, Status> {
        while self.waiting.len() < PAGE_BLOBS && self.end.is_none() {
            let page = match timeout(PAGE_PATIENCE, self.pages.next()).await {
                Ok(Some(page)) => page.map_err(|error| failed(&error, None))?,
                Ok(None) => return Err(Reason::StoreFailed.status("the store's listing was cut")),
                // What there is, even nothing, so that the client sees that we are alive.
                Err(_) => break,
            };
            self.waiting.extend(
                page.blobs
                    .into_iter()
                    .map(|meta| v1::BlobMeta { r#ref: meta.blob.to_string(), size_bytes: Some(meta.size) }),
            );
            self.end = page.end.map(|end| v1::EnumerateEnd { count: Some(end.count), complete: Some(end.complete) });
        }
        let blobs: Vec<_> = self.waiting.drain(..self.waiting.len().min(PAGE_BLOBS)).collect();
        let end = if self.waiting.is_empty() { self.end.take() } else { None };
        Ok(v1::EnumerateBlobsResponse { blobs, end })
    }
}

fn disposition(disposition: Disposition) -> v1::Disposition {
    match disposition {
        Disposition::Stored => v1::Disposition::Stored,
        Disposition::Consumed => v1::Disposition::Consumed,
        Disposition::Enqueued => v1::Disposition::Enqueued,
    }
}

/// What the server tells of the store: of its abilities, those that this server passes on.
fn peer_info(info: &StoreInfo) -> v1::PeerInfo {
    let kind = match info.kind {
        PeerKind::Store => v1::PeerKind::Store,
        PeerKind::ReceiveOnly => v1::PeerKind::ReceiveOnly,
        PeerKind::Replicator => v1::PeerKind::Replicator,
    };
    let abilities = [
        (info.abilities.stat, v1::Ability::Stat),
        (info.abilities.enumerate, v1::Ability::Enumerate),
        (info.abilities.fetch, v1::Ability::Fetch),
        (info.abilities.replace, v1::Ability::Replace),
        // Every store here takes packs; one that gains nothing by them does it one by one.
        (true, v1::Ability::Packed),
    ];
    v1::PeerInfo {
        store_id: info.store_id.clone().unwrap_or_default(),
        kind: kind.into(),
        version: info.version.clone(),
        digest_functions: info.functions.iter().map(|function| function.name().to_owned()).collect(),
        max_blob_bytes: info.max_blob_bytes,
        max_message_bytes: Some(MAX_MESSAGE_BYTES as u64),
        abilities: abilities.into_iter().filter(|(has, _)| *has).map(|(_, ability)| ability.into()).collect(),
        max_packed_bytes: Some(info.max_packed_bytes.unwrap_or(MAX_PACKED_BYTES).min(MAX_PACKED_BYTES)),
    }
}

#[cfg(test)]
mod tests;
