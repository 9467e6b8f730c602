//! `ReceiveBlobs` at a replicator: announcements with bytes, many in a message.
//!
//! The blobs of a message that proved to be what they say are queued in one durable write, and then answered. While that is
//! under way the next messages are read and verified: of them only the refs are kept, so that a stream holds the bytes of
//! one message. A client that does not read its answers is soon read no further, until the stream ends as idle.

use super::{Service, announce_status, encode};
use crate::announce::Announcement;
use crate::blob::{BlobRef, Verifier};
use crate::grpc::{
    MAX_ITEMS, Reason, STREAM_IDLE, blob_error, call_trace, invalid_ref, item_trace, mismatch_status, numbered, pump,
    store_status,
};
use crate::pb::v1;
use crate::queue::Pushed;
use crate::store::StoreError;
use crate::store::packed::MAX_PACKED_BYTES;
use crate::telemetry::TraceContext;
use futures::StreamExt;
use futures::stream::BoxStream;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status, Streaming};

/// Messages of one stream that wait to be queued, or for their answers to be read. A write waits for the disk, and all that
/// came meanwhile goes into the next one: the more there is, the fewer of them it takes.
const AT_ONCE: usize = 8;

/// Blobs of one stream that wait to be queued: a whole message of them, however small they are.
const WAITING: usize = MAX_ITEMS;

pub(super) type ReceiveBlobsStream = BoxStream<'static, Result<v1::ReceiveBlobsResponse, Status>>;

impl Service {
    pub(super) async fn receive_packed(
        &self,
        request: Request<Streaming<v1::ReceiveBlobsRequest>>,
    ) -> Result<Response<ReceiveBlobsStream>, Status> {
        let permit = self.calls.enter()?;
        let call_trace = call_trace(&request);
        let service = self.clone();
        let messages = numbered(request.into_inner(), STREAM_IDLE, |message| message.blobs.len());
        // The first message says for all of them where the blobs are.
        let messages = messages.scan(None, |store: &mut Option<String>, message| {
            let message = message.map(|(first, mut message)| {
                let store = store.get_or_insert_with(|| std::mem::take(&mut message.source_store)).clone();
                (first, store, message.blobs)
            });
            std::future::ready(Some(message))
        });
        let waiting = Arc::new(Semaphore::new(WAITING));
        let checking = service.clone();
        let packs = messages.then(move |message| {
            let (service, call_trace, waiting) = (checking.clone(), call_trace.clone(), waiting.clone());
            async move {
                let (first, store, blobs) = message?;
                let pack = service.check_pack(store, first, blobs, call_trace.as_ref())?;
                let blobs = u32::try_from(pack.announcements.len()).unwrap_or(u32::MAX);
                let room = waiting.acquire_many_owned(blobs).await;
                let room = room.map_err(|_| Reason::Internal.status("the stream has ended"))?;
                Ok::<_, Status>((pack, room))
            }
        });
        let answers = packs.map(move |pack| {
            let service = service.clone();
            async move {
                let (pack, _room) = pack?;
                service.announce_pack(pack).await
            }
        });
        let answers = answers.buffered(AT_ONCE);
        Ok(Response::new(pump(&self.parts.tasks, permit, STREAM_IDLE, answers).boxed()))
    }

    /// Verifies the blobs of a message, of which no bytes are left then.
    fn check_pack(
        &self,
        source_store: String,
        first: u64,
        blobs: Vec<v1::PackedBlob>,
        call_trace: Option<&TraceContext>,
    ) -> Result<VerifiedPack, Status> {
        let count = blobs.len();
        if count > MAX_ITEMS {
            let message = format!("{count} blobs in one message; at most {MAX_ITEMS} may be");
            return Err(Reason::TooManyItems.status(message));
        }
        self.parts.announcer.check(&source_store).map_err(|error| announce_status(&error))?;
        let mut checked = Vec::with_capacity(count);
        let mut announcements = Vec::with_capacity(count);
        for packed in blobs {
            let verified = verify(&packed);
            if let Ok((blob, size)) = verified {
                let trace = item_trace(&packed.traceparent, &packed.tracestate).or_else(|| call_trace.cloned());
                announcements.push(Announcement { blob, size: Some(size), trace });
            }
            checked.push(verified);
        }
        Ok(VerifiedPack { source_store, first, checked, announcements })
    }

    async fn announce_pack(&self, pack: VerifiedPack) -> Result<v1::ReceiveBlobsResponse, Status> {
        let VerifiedPack { source_store, first, checked, announcements } = pack;
        let announced = self.announce(&source_store, announcements, Vec::new()).await?;
        let mut pushed = announced.pushed.iter();
        let results = (first..).zip(checked).map(|(item, checked)| match checked {
            Ok((blob, size)) => {
                let outcomes = pushed.next().map_or(&[][..], Vec::as_slice);
                v1::PackedResult {
                    item: Some(item),
                    r#ref: blob.to_string(),
                    size_bytes: Some(size),
                    disposition: v1::Disposition::Enqueued.into(),
                    was_new: outcomes.contains(&Pushed::Added),
                    routes: encode::route_pushes(&announced.routes, outcomes),
                    error: None,
                }
            }
            Err(status) => {
                let error = Some(blob_error(&status));
                v1::PackedResult { item: Some(item), error, ..v1::PackedResult::default() }
            }
        });
        let results = results.collect();
        Ok(v1::ReceiveBlobsResponse { results, backlogs: encode::backlogs(&announced.routes) })
    }
}

/// A message whose blobs were verified.
struct VerifiedPack {
    source_store: String,
    // The number in the stream of its first blob.
    first: u64,
    // For each blob its ref and size, or what is wrong with it.
    checked: Vec<Result<(BlobRef, u64), Status>>,
    // Of those that are right.
    announcements: Vec<Announcement>,
}

/// The ref and size of a blob whose bytes are what the ref says.
fn verify(packed: &v1::PackedBlob) -> Result<(BlobRef, u64), Status> {
    let blob: BlobRef = packed.r#ref.parse().map_err(|error| invalid_ref("blobs.ref", &error))?;
    if packed.data.len() as u64 > MAX_PACKED_BYTES {
        return Err(store_status(&StoreError::TooLarge { limit: MAX_PACKED_BYTES }, Some(&blob)));
    }
    let mut verifier = Verifier::new(blob, None);
    let size = verifier.update(&packed.data).and_then(|()| verifier.finish());
    Ok((blob, size.map_err(|mismatch| mismatch_status(&blob, &mismatch))?))
}
