//! The replicator's own services: `BlobReceiverService` for announcements with bytes, `ReplicationService` for operators and
//! for announcements without. Thin: decode, call, encode.
//!
//! An announcement is checked before its bytes are read, verified to the last byte, and queued on all its routes in one
//! durable write before the answer. Whatever ends it earlier leaves nothing behind.

mod encode;
mod failures;
mod full_sync;
mod orphans;
mod overrides;
mod packed;
mod stores;
mod story;
mod watch;

pub(crate) use encode::replicator as status_message;

use crate::announce::{AnnounceError, Announced, Announcement, Announcer, Gate, RouteTable};
use crate::blob::{BlobRef, DigestFunction, RefError, Verifier};
use crate::clock::Clock;
use crate::grpc::{
    CallLimit, DirectService, MAX_DECODED_BYTES, MAX_ITEMS, MAX_MESSAGE_BYTES, Reason, STREAM_IDLE, call_trace,
    invalid_field, item_trace, mismatch_status, pump, queue_status, read_header, store_status,
};
use crate::overrides::Overrides;
use crate::pb::{reason_text, std_duration, v1};
use crate::peer::Peer;
use crate::queue::{Pushed, StateWrite, WholeQueue};
use crate::status::Observer;
use crate::store::ByteStream;
use crate::store::packed::MAX_PACKED_BYTES;
use crate::story::Story;
use crate::sync::FullSyncs;
use async_trait::async_trait;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};
use v1::blob_receiver_service_server::{BlobReceiverService, BlobReceiverServiceServer};
use v1::replication_service_server::{ReplicationService, ReplicationServiceServer};
use watch::StatusWatch;

/// The names by which health is asked for: both mean "announcements are accepted and written durably".
pub(crate) const SERVICE_NAMES: [&str; 2] = ["blobferry.v1.BlobReceiverService", "blobferry.v1.ReplicationService"];

/// The time between two pictures of `WatchStatus`, where none is asked for.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// The bounds of what may be asked for.
const WATCH_INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_millis(100)..=Duration::from_secs(60);

/// Streams in progress, at most: announcements that send bytes, and watchers. Each may hold a message or two in memory.
const MAX_CALLS: usize = 1024;

/// Items of `EnqueueBlobs` in progress, in all calls together; each may take some hundred bytes until it is answered.
const MAX_BULK_ITEMS: usize = 200_000;

/// The longest text that is no ref and is given back as it came, in characters.
const MAX_GIVEN: usize = 200;

/// What the services call.
pub(crate) struct ServiceParts {
    /// Names this replicator for ever.
    pub replicator_id: String,
    /// Takes announcements.
    pub announcer: Arc<Announcer>,
    /// The routes.
    pub routes: Arc<RouteTable>,
    /// Counts, lists and mends what is queued, and keeps what was recorded of the stores.
    pub queue: Arc<dyn WholeQueue>,
    /// What operators have overridden.
    pub overrides: Arc<Overrides>,
    /// The stores of the routes, by name.
    pub peers: Vec<Arc<Peer>>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Tells what became of blobs.
    pub story: Arc<Story>,
    /// The full syncs.
    pub syncs: FullSyncs,
    /// Takes pictures.
    pub observer: Arc<Observer>,
    /// Shut when the drain begins.
    pub gate: Arc<Gate>,
    /// Cancelled when the drain begins: watchers get one more picture, and then their end.
    pub draining: CancellationToken,
    /// Owns the tasks that drive response streams.
    pub tasks: TaskTracker,
}

/// The services. Clones share everything.
#[derive(Clone)]
pub(crate) struct Service {
    parts: Arc<ServiceParts>,
    calls: CallLimit,
    bulk: Arc<Semaphore>,
}

impl Service {
    /// Services over these parts.
    pub(crate) fn new(parts: ServiceParts) -> Self {
        Self {
            parts: Arc::new(parts),
            calls: CallLimit::new(MAX_CALLS),
            bulk: Arc::new(Semaphore::new(MAX_BULK_ITEMS)),
        }
    }

    /// Adds both services to what a server serves.
    pub(crate) fn add_to(&self, routes: Routes) -> Routes {
        let receiver = BlobReceiverServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_DECODED_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        let replication = ReplicationServiceServer::new(self.clone())
            .max_decoding_message_size(MAX_DECODED_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        routes.add_service(DirectService::requests_of(receiver, "ReceiveBlob")).add_service(replication)
    }

    /// Announces these, in a task of its own: a caller that goes away does not leave a write half noted.
    async fn announce(
        &self,
        source_store: &str,
        items: Vec<Announcement>,
        state: Vec<StateWrite>,
    ) -> Result<Announced, Status> {
        let announced = self.parts.announcer.announce(source_store, items, state).await;
        announced.map_err(|error| announce_status(&error))
    }

    /// A wait token for these, and the writes that make it good.
    fn wait_token(
        &self,
        source_store: &str,
        announcements: &[Announcement],
    ) -> Result<(String, Vec<StateWrite>), Status> {
        let routes = self.parts.routes.resolve(source_store).map_err(|error| announce_status(&error))?;
        let source = routes.first().map(|route| route.from.to_string()).unwrap_or_default();
        let mut seen = HashSet::with_capacity(announcements.len());
        let blobs = announcements.iter().map(|item| item.blob).filter(|blob| seen.insert(*blob)).collect();
        Ok(self.parts.story.issue_token(&source, blobs))
    }

    fn check_routes(&self, names: &[String]) -> Result<(), Status> {
        for name in names {
            if name.is_empty() {
                // Elsewhere it would mean the only route; in a list it is a slip.
                return Err(invalid_field("routes", "a name is empty; leave the list empty to mean all routes"));
            }
            self.parts.routes.route_or_orphan(name).map_err(|error| announce_status(&error))?;
        }
        Ok(())
    }
}

/// What a caller is told of an announcement that was not accepted, or of a name that stands for nothing.
fn announce_status(error: &AnnounceError) -> Status {
    let message = error.to_string();
    match error {
        AnnounceError::UnknownStore { known, .. } => {
            Reason::UnknownStore.status_with(message, [("known", known.to_string())])
        }
        AnnounceError::AmbiguousStore { known } => {
            Reason::AmbiguousStore.status_with(message, [("known", known.to_string())])
        }
        AnnounceError::NoEnabledRoute { store } => {
            Reason::NoEnabledRoute.status_with(message, [("store", store.to_string())])
        }
        AnnounceError::UnknownRoute { known, .. } => {
            Reason::UnknownRoute.status_with(message, [("known", known.to_string())])
        }
        AnnounceError::AmbiguousRoute { known } => {
            Reason::AmbiguousRoute.status_with(message, [("known", known.to_string())])
        }
        AnnounceError::ShuttingDown => Reason::ShuttingDown.status(message),
        AnnounceError::Queue(error) => queue_status(error),
    }
}

#[async_trait]
impl BlobReceiverService for Service {
    type ReceiveBlobsStream = packed::ReceiveBlobsStream;

    async fn get_peer_info(
        &self,
        _request: Request<v1::GetPeerInfoRequest>,
    ) -> Result<Response<v1::GetPeerInfoResponse>, Status> {
        let peer_info = v1::PeerInfo {
            store_id: self.parts.replicator_id.clone(),
            kind: v1::PeerKind::Replicator.into(),
            version: concat!("blobferry ", env!("CARGO_PKG_VERSION")).to_owned(),
            digest_functions: DigestFunction::ALL.iter().map(|function| function.name().to_owned()).collect(),
            max_blob_bytes: None,
            max_message_bytes: Some(MAX_MESSAGE_BYTES as u64),
            abilities: vec![v1::Ability::Packed.into()],
            max_packed_bytes: Some(MAX_PACKED_BYTES),
        };
        Ok(Response::new(v1::GetPeerInfoResponse { peer_info: Some(peer_info) }))
    }

    async fn receive_blob(
        &self,
        request: Request<Streaming<v1::ReceiveBlobRequest>>,
    ) -> Result<Response<v1::ReceiveBlobResponse>, Status> {
        let _permit = self.calls.enter()?;
        let trace = call_trace(&request);
        let (header, bytes) = read_header(request, STREAM_IDLE).await?;
        self.parts.announcer.check(&header.source_store).map_err(|error| announce_status(&error))?;
        let size = verify(header.blob, header.size, bytes).await?;
        let item = Announcement { blob: header.blob, size: Some(size), trace };
        let announced = self.announce(&header.source_store, vec![item], Vec::new()).await?;
        let outcomes = announced.pushed.into_iter().next().unwrap_or_default();
        let was_new = outcomes.contains(&Pushed::Added);
        let routes = announced.routes.iter().zip(outcomes).map(|((route, backlog), pushed)| v1::RouteEnqueued {
            route: route.to_string(),
            outcome: encode::push_outcome(pushed).into(),
            backlog: Some(encode::backlog(backlog)),
        });
        Ok(Response::new(v1::ReceiveBlobResponse {
            r#ref: header.blob.to_string(),
            size_bytes: Some(size),
            disposition: v1::Disposition::Enqueued.into(),
            was_new,
            routes: routes.collect(),
        }))
    }

    async fn receive_blobs(
        &self,
        request: Request<Streaming<v1::ReceiveBlobsRequest>>,
    ) -> Result<Response<Self::ReceiveBlobsStream>, Status> {
        self.receive_packed(request).await
    }
}

/// Reads the bytes to their end and keeps none; their number, if they are those of the ref.
async fn verify(blob: BlobRef, stated: Option<u64>, mut bytes: ByteStream) -> Result<u64, Status> {
    let mut verifier = Verifier::new(blob, stated);
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk.map_err(|error| store_status(&error, Some(&blob)))?;
        verifier.update(&chunk).map_err(|mismatch| mismatch_status(&blob, &mismatch))?;
    }
    verifier.finish().map_err(|mismatch| mismatch_status(&blob, &mismatch))
}

#[async_trait]
impl ReplicationService for Service {
    type WatchStatusStream = BoxStream<'static, Result<v1::WatchStatusResponse, Status>>;

    async fn status(&self, request: Request<v1::StatusRequest>) -> Result<Response<v1::StatusResponse>, Status> {
        let names = request.into_inner().routes;
        self.check_routes(&names)?;
        let status = encode::replicator(&self.parts.observer.picture(&names).await);
        Ok(Response::new(v1::StatusResponse { status: Some(status) }))
    }

    async fn watch_status(
        &self,
        request: Request<v1::WatchStatusRequest>,
    ) -> Result<Response<Self::WatchStatusStream>, Status> {
        let permit = self.calls.enter()?;
        let request = request.into_inner();
        self.check_routes(&request.routes)?;
        let interval = match &request.interval {
            None => WATCH_INTERVAL,
            Some(interval) => std_duration(interval)
                .ok_or_else(|| invalid_field("interval", "a span of time is not negative"))?
                .clamp(*WATCH_INTERVALS.start(), *WATCH_INTERVALS.end()),
        };
        let watch = StatusWatch::new(self.parts.clone(), request.routes, interval);
        let pictures = stream::unfold(watch, |mut watch| async move { Some((watch.next().await?, watch)) });
        Ok(Response::new(pump(&self.parts.tasks, permit, STREAM_IDLE, pictures).boxed()))
    }

    async fn trigger_full_sync(
        &self,
        request: Request<v1::TriggerFullSyncRequest>,
    ) -> Result<Response<v1::TriggerFullSyncResponse>, Status> {
        full_sync::trigger(&self.parts, request.into_inner()).await.map(Response::new)
    }

    async fn get_full_sync(
        &self,
        request: Request<v1::GetFullSyncRequest>,
    ) -> Result<Response<v1::GetFullSyncResponse>, Status> {
        full_sync::get(&self.parts, request.into_inner()).await.map(Response::new)
    }

    async fn list_full_syncs(
        &self,
        request: Request<v1::ListFullSyncsRequest>,
    ) -> Result<Response<v1::ListFullSyncsResponse>, Status> {
        full_sync::list(&self.parts, request.into_inner()).await.map(Response::new)
    }

    async fn cancel_full_sync(
        &self,
        request: Request<v1::CancelFullSyncRequest>,
    ) -> Result<Response<v1::CancelFullSyncResponse>, Status> {
        let caller = failures::caller(&request);
        full_sync::cancel(&self.parts, request.into_inner(), caller).await.map(Response::new)
    }

    async fn list_failures(
        &self,
        request: Request<v1::ListFailuresRequest>,
    ) -> Result<Response<v1::ListFailuresResponse>, Status> {
        let _permit = self.calls.enter()?;
        failures::list(&self.parts, request.into_inner()).await.map(Response::new)
    }

    async fn retry_failures(
        &self,
        request: Request<v1::RetryFailuresRequest>,
    ) -> Result<Response<v1::RetryFailuresResponse>, Status> {
        let _permit = self.calls.enter()?;
        let caller = failures::caller(&request);
        failures::retry(&self.parts, request.into_inner(), caller).await.map(Response::new)
    }

    async fn discard_failures(
        &self,
        request: Request<v1::DiscardFailuresRequest>,
    ) -> Result<Response<v1::DiscardFailuresResponse>, Status> {
        let _permit = self.calls.enter()?;
        let caller = failures::caller(&request);
        failures::discard(&self.parts, request.into_inner(), caller).await.map(Response::new)
    }

    async fn pause_route(
        &self,
        request: Request<v1::PauseRouteRequest>,
    ) -> Result<Response<v1::PauseRouteResponse>, Status> {
        let caller = failures::caller(&request);
        overrides::pause(&self.parts, request.into_inner(), caller).await.map(Response::new)
    }

    async fn resume_route(
        &self,
        request: Request<v1::ResumeRouteRequest>,
    ) -> Result<Response<v1::ResumeRouteResponse>, Status> {
        let caller = failures::caller(&request);
        overrides::resume(&self.parts, request.into_inner(), caller).await.map(Response::new)
    }

    async fn update_route(
        &self,
        request: Request<v1::UpdateRouteRequest>,
    ) -> Result<Response<v1::UpdateRouteResponse>, Status> {
        let caller = failures::caller(&request);
        overrides::update(&self.parts, request.into_inner(), caller).await.map(Response::new)
    }

    async fn adopt_store(
        &self,
        request: Request<v1::AdoptStoreRequest>,
    ) -> Result<Response<v1::AdoptStoreResponse>, Status> {
        let caller = failures::caller(&request);
        stores::adopt(&self.parts, request.into_inner(), caller).await.map(Response::new)
    }

    async fn drop_route(
        &self,
        request: Request<v1::DropRouteRequest>,
    ) -> Result<Response<v1::DropRouteResponse>, Status> {
        let _permit = self.calls.enter()?;
        let caller = failures::caller(&request);
        orphans::drop_route(&self.parts, request.into_inner(), caller).await.map(Response::new)
    }

    async fn wait_replicated(
        &self,
        request: Request<v1::WaitReplicatedRequest>,
    ) -> Result<Response<v1::WaitReplicatedResponse>, Status> {
        // Waits have a limit of their own, so that they keep nobody from announcing.
        story::wait(&self.parts, request).await.map(Response::new)
    }

    async fn explain_blob(
        &self,
        request: Request<v1::ExplainBlobRequest>,
    ) -> Result<Response<v1::ExplainBlobResponse>, Status> {
        let _permit = self.calls.enter()?;
        story::explain(&self.parts, request.into_inner()).await.map(Response::new)
    }

    async fn enqueue_blobs(
        &self,
        request: Request<v1::EnqueueBlobsRequest>,
    ) -> Result<Response<v1::EnqueueBlobsResponse>, Status> {
        let _permit = self.calls.enter()?;
        let call_trace = call_trace(&request);
        let v1::EnqueueBlobsRequest { source_store, items, issue_wait_token } = request.into_inner();
        self.parts.announcer.check(&source_store).map_err(|error| announce_status(&error))?;
        if items.len() > MAX_ITEMS {
            let count = items.len();
            return Err(Reason::TooManyItems.status(format!("{count} items; at most {MAX_ITEMS} fit one request")));
        }
        let weight = u32::try_from(items.len()).unwrap_or(u32::MAX);
        let _bulk = self
            .bulk
            .try_acquire_many(weight)
            .map_err(|_| Reason::TooBusy.status("too many items are being announced at once; retry with backoff"))?;
        let mut parsed: Vec<Result<BlobRef, RefError>> = Vec::with_capacity(items.len());
        let mut announcements = Vec::with_capacity(items.len());
        for item in &items {
            let blob = item.r#ref.parse();
            if let Ok(blob) = blob {
                let trace = item_trace(&item.traceparent, &item.tracestate).or_else(|| call_trace.clone());
                announcements.push(Announcement { blob, size: item.size_bytes, trace });
            }
            parsed.push(blob);
        }
        let (wait_token, state) = match issue_wait_token {
            true => self.wait_token(&source_store, &announcements)?,
            false => (String::new(), Vec::new()),
        };
        let announced = self.announce(&source_store, announcements, state).await?;
        let mut pushed = announced.pushed.iter();
        let results = parsed.into_iter().zip(&items).map(|(parsed, item)| match parsed {
            Ok(blob) => v1::EnqueueResult {
                r#ref: blob.to_string(),
                routes: encode::route_pushes(&announced.routes, pushed.next().map_or(&[], Vec::as_slice)),
                error: None,
            },
            Err(error) => v1::EnqueueResult {
                r#ref: given(&item.r#ref),
                routes: Vec::new(),
                error: Some(v1::BlobError {
                    code: Reason::InvalidRef.code().into(),
                    reason: reason_text(v1::ErrorReason::InvalidRef).to_owned(),
                    message: error.to_string(),
                }),
            },
        });
        let results = results.collect();
        let backlogs = encode::backlogs(&announced.routes);
        Ok(Response::new(v1::EnqueueBlobsResponse { results, backlogs, wait_token }))
    }
}

/// What was given as a ref and is none: as it came where that is short printable ASCII, else escaped and cut.
fn given(text: &str) -> String {
    if text.len() <= MAX_GIVEN && text.chars().all(|c| c == ' ' || c.is_ascii_graphic()) {
        return text.to_owned();
    }
    text.chars().take(MAX_GIVEN).flat_map(char::escape_default).take(MAX_GIVEN).collect()
}

#[cfg(test)]
mod tests {
    use super::{MAX_GIVEN, given};

    #[test]
    fn what_is_no_ref_comes_back_as_it_was_given_where_that_is_harmless() {
        assert_eq!(given("sha256-xx"), "sha256-xx");
        assert_eq!(given("a\nb"), "a\\nb");
        assert_eq!(given(&"é".repeat(1000)).len(), MAX_GIVEN);
    }
}
