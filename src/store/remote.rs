//! A store behind gRPC.
//!
//! What comes from the peer is not trusted: an answer without a size, with a ref that was not asked for, or out of order is
//! a [`StoreError::Protocol`] that names it. Sizes, refs and dispositions that are well formed are passed on as they are; the
//! copier judges them.
//!
//! [`Store::receive`] keeps invariant 3: the request stream is half-closed only after the bytes ended without an error. On
//! an error it stands still until the call is cancelled, which resets the stream, and the peer commits nothing.
//!
//! Small blobs travel packed where the peer can (`packed`), each pack on a stream of its own; else one by one.
//!
//! Control calls have a deadline of their own, and so has the wait for the first message of a stream. How long a stream
//! may stand still after that is for the caller to say. Nothing is retried here.

mod listing;
mod packed;

use super::packed::{Answers, Packed, Parcel, Want};
use super::{
    Abilities, ByteRange, ByteStream, Disposition, EnumerateEnd, EnumeratePage, EnumerateRange, Enumeration, Fetched,
    PeerError, PeerKind, Put, Received, Store, StoreError, StoreInfo,
};
use crate::blob::{BlobMeta, BlobRef, DigestFunction, Mismatch};
use crate::failpoint::{self, Point};
use crate::grpc::{
    CHUNK_BYTES, Channels, DirectChannel, EndpointError, Incoming, MAX_DECODED_BYTES, MAX_ITEMS, MAX_MESSAGE_BYTES,
    PeerChannel, PeerEndpoint, send, store_error, want,
};
use crate::pb::v1;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{FutureExt, Stream, StreamExt, stream};
use listing::RemoteListing;
use std::collections::HashSet;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};
use tonic::{CancellationHandle, Code, Request, Response, Status};
use v1::blob_reader_service_client::BlobReaderServiceClient;
use v1::blob_receiver_service_client::BlobReceiverServiceClient;

/// How much longer the server is given than we wait ourselves: ours ends first, and says what it waited for.
const DEADLINE_MARGIN: Duration = Duration::from_millis(500);

/// What a message needs around its chunk, in bytes, at most.
const CHUNK_OVERHEAD: usize = 64;

/// How often a call is made again that the peer had not begun with.
const MADE_AGAIN: usize = 3;

/// The longest store id, in bytes.
const MAX_STORE_ID: usize = 128;

/// The longest version text that is kept, in characters.
const MAX_VERSION: usize = 100;

/// A store at an endpoint.
#[derive(Debug)]
pub struct RemoteStore {
    channels: Channels,
    request_timeout: Duration,
    // Smaller than CHUNK_BYTES once the peer said that its messages must be.
    chunk_bytes: AtomicUsize,
    // The largest blob that the peer takes and gives packed; 0 while it has not said that it can.
    packed_bytes: AtomicU64,
}

impl RemoteStore {
    /// A store at this endpoint. Connects at first use. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the endpoint or its certificates cannot be used, whether the peer is up or not.
    pub fn new(peer: &PeerEndpoint) -> Result<Self, EndpointError> {
        Ok(Self {
            channels: Channels::open(peer)?,
            request_timeout: peer.request_timeout,
            chunk_bytes: AtomicUsize::new(CHUNK_BYTES),
            packed_bytes: AtomicU64::new(0),
        })
    }

    /// Waits for an answer until the deadline. What the peer has not begun with is asked again.
    async fn answer<T, F: Future<Output = Result<T, Status>> + Send>(
        &self,
        method: &str,
        blob: Option<&BlobRef>,
        mut call: impl FnMut() -> F + Send,
    ) -> Result<T, StoreError> {
        let answered = async {
            let mut again = 0;
            loop {
                let answered = guarded(call()).await.map_err(|status| store_error(&status, blob));
                if !matches!(answered, Err(StoreError::NotProcessed)) || again == MADE_AGAIN {
                    return answered;
                }
                again += 1;
            }
        };
        self.in_time(method, answered).await
    }

    /// Waits for an answer until the deadline.
    async fn in_time<T>(
        &self,
        method: &str,
        answered: impl Future<Output = Result<T, StoreError>> + Send,
    ) -> Result<T, StoreError> {
        timeout(self.request_timeout, answered).await.unwrap_or_else(|_| {
            let seconds = self.request_timeout.as_secs_f64();
            let message = format!("{method} was not answered within {seconds} s (request_timeout)");
            Err(PeerError::bare(Code::DeadlineExceeded, message).into())
        })
    }

    fn control_request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.request_timeout + DEADLINE_MARGIN);
        request
    }
}

/// A place where the peer can be made to seem unavailable.
async fn at(point: Point) -> Result<(), StoreError> {
    failpoint::pause(point).await.map_err(|injected| PeerError::bare(Code::Unavailable, injected.to_string()).into())
}

/// tonic panics on an answer whose status details are no base64. A peer must not take our tasks down with it.
async fn guarded<T>(call: impl Future<Output = Result<T, Status>> + Send) -> Result<T, Status> {
    // What the call leaves behind is dropped with it.
    let answered = AssertUnwindSafe(call).catch_unwind().await;
    answered.unwrap_or_else(|_| Err(Status::unknown("the answer could not be decoded")))
}

fn receiver(channel: PeerChannel) -> BlobReceiverServiceClient<DirectChannel> {
    BlobReceiverServiceClient::new(DirectChannel::new(channel))
        .max_decoding_message_size(MAX_DECODED_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

fn reader(channel: PeerChannel) -> BlobReaderServiceClient<DirectChannel> {
    BlobReaderServiceClient::new(DirectChannel::new(channel))
        .max_decoding_message_size(MAX_DECODED_BYTES)
        .max_encoding_message_size(MAX_MESSAGE_BYTES)
}

#[async_trait]
impl Store for RemoteStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        at(Point::RemoteInfo).await?;
        let asked = Instant::now();
        let ask = || {
            let mut client = receiver(self.channels.question());
            let request = self.control_request(v1::GetPeerInfoRequest {});
            async move { client.get_peer_info(request).await }
        };
        let answer = self.answer("GetPeerInfo", None, ask).await?;
        self.channels.answered(asked.elapsed());
        let info = peer_info(answer.into_inner())?;
        let largest = info.max_message_bytes.map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
        let chunk_bytes = largest.saturating_sub(CHUNK_OVERHEAD).clamp(1, CHUNK_BYTES);
        self.chunk_bytes.store(chunk_bytes, Ordering::Relaxed);
        // A pack must fit a message; 1 MiB and the refs around it do, or it is not worth it.
        let fits = largest >= packed::MESSAGE_BYTES;
        self.packed_bytes.store(info.max_packed_bytes.filter(|_| fits).unwrap_or(0), Ordering::Relaxed);
        Ok(info)
    }

    async fn stat(&self, blobs: &[BlobRef]) -> Result<Vec<BlobMeta>, StoreError> {
        at(Point::RemoteStat).await?;
        let mut found = Vec::new();
        for part in blobs.chunks(MAX_ITEMS) {
            let asked_at = Instant::now();
            let ask = || {
                let mut client = reader(self.channels.control());
                let refs = part.iter().map(ToString::to_string).collect();
                let request = self.control_request(v1::StatBlobsRequest { refs });
                async move { client.stat_blobs(request).await }
            };
            let answer = self.answer("StatBlobs", None, ask).await?;
            self.channels.answered(asked_at.elapsed());
            let asked: HashSet<&BlobRef> = part.iter().collect();
            for meta in answer.into_inner().blobs {
                let blob = parse_ref("StatBlobs", &meta.r#ref)?;
                if !asked.contains(&blob) {
                    return Err(StoreError::Protocol(format!("StatBlobs answered {blob}, which was not asked for")));
                }
                found.push(BlobMeta { blob, size: stated("StatBlobs", meta.size_bytes)? });
            }
        }
        Ok(found)
    }

    async fn fetch(&self, blob: BlobRef, range: ByteRange) -> Result<Fetched, StoreError> {
        at(Point::RemoteFetch).await?;
        let open = || {
            let mut client = reader(self.channels.blob());
            let request = v1::FetchBlobRequest { r#ref: blob.to_string(), offset: range.offset, length: range.length };
            async move {
                let mut messages = Incoming::of_response(client.fetch_blob(want(request)).await?);
                let first = messages.message().await?;
                Ok((messages, first))
            }
        };
        let (messages, first) = self.answer("FetchBlob", Some(&blob), open).await?;
        let header = match first.map(|message| message.part) {
            Some(Some(v1::fetch_blob_response::Part::Header(header))) => header,
            Some(_) => return Err(StoreError::Protocol("FetchBlob began without a header".to_owned())),
            None => return Err(StoreError::Protocol("FetchBlob ended without a header".to_owned())),
        };
        let named = parse_ref("FetchBlob", &header.r#ref)?;
        if named != blob {
            return Err(StoreError::Protocol(format!("FetchBlob gave {named} when asked for {blob}")));
        }
        let size = stated("FetchBlob", header.size_bytes)?;
        let most = size.saturating_sub(range.offset).min(range.length.unwrap_or(u64::MAX));
        Ok(Fetched { size, bytes: fetched_bytes(messages, blob, most) })
    }

    async fn receive(&self, put: Put, bytes: ByteStream) -> Result<Received, StoreError> {
        at(Point::RemoteReceive).await?;
        let mut client = receiver(self.channels.blob());
        let (failed, failure) = oneshot::channel();
        let ended = Arc::new(AtomicBool::new(false));
        let outgoing = OutgoingBlob {
            header: Some(v1::BlobHeader {
                r#ref: put.blob.to_string(),
                size_bytes: put.size,
                replace: put.replace,
                source_store: String::new(),
            }),
            bytes,
            rest: Bytes::new(),
            chunk_bytes: self.chunk_bytes.load(Ordering::Relaxed),
            failed: Some(failed),
            ended: ended.clone(),
        };
        let mut request = send(outgoing);
        let _cancel = CancelOnDrop(Some(request.cancellation_handle()));
        let answer = tokio::select! {
            biased;
            // Leaving drops the call, which resets the stream.
            Ok(error) = failure => return Err(StoreError::Input(Box::new(error))),
            answer = guarded(client.receive_blob(request)) => answer,
        };
        at(Point::RemoteReceived).await?;
        let answer = answer.map(Response::into_inner).map_err(|status| store_error(&status, Some(&put.blob)))?;
        if !ended.load(Ordering::Acquire) {
            // It cannot know yet whether the bytes were all there, or right.
            return Err(StoreError::Protocol("ReceiveBlob was confirmed before all bytes were sent".to_owned()));
        }
        Ok(Received {
            blob: parse_ref("ReceiveBlob", &answer.r#ref)?,
            size: stated("ReceiveBlob", answer.size_bytes)?,
            disposition: disposition("ReceiveBlob", answer.disposition)?,
            was_new: answer.was_new,
        })
    }

    async fn receive_packed(
        &self,
        parcels: Vec<Parcel>,
        answers: &mut dyn Answers<Received>,
    ) -> Result<(), StoreError> {
        self.receive_packs(parcels, answers).await
    }

    async fn fetch_packed(&self, wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> Result<(), StoreError> {
        self.fetch_packs(wants, answers).await
    }

    fn expect_store(&self, id: Option<&str>) {
        self.channels.expect_store(id);
    }

    async fn enumerate(&self, range: EnumerateRange) -> Result<Enumeration, StoreError> {
        if range.limit == Some(0) {
            // On the wire 0 means all.
            let end = Some(EnumerateEnd { count: 0, complete: false });
            return Ok(stream::iter([Ok(EnumeratePage { end, ..EnumeratePage::default() })]).boxed());
        }
        let open = || {
            let mut client = reader(self.channels.data());
            let request = v1::EnumerateBlobsRequest {
                after: range.after.clone(),
                until: range.until.clone(),
                limit: range.limit.unwrap_or(0),
            };
            async move { client.enumerate_blobs(request).await }
        };
        let messages = self.answer("EnumerateBlobs", None, open).await?.into_inner();
        let listing = RemoteListing::new(range);
        let pages = stream::unfold(Some((messages, listing)), |state| async {
            let (mut messages, mut listing) = state?;
            let page = match guarded(messages.message()).await {
                Ok(Some(message)) => listing.page(message),
                Ok(None) => Err(StoreError::Protocol("EnumerateBlobs stopped without its end; it was cut".to_owned())),
                Err(status) => Err(store_error(&status, None)),
            };
            let more = page.as_ref().is_ok_and(|page| page.end.is_none());
            Some((page, more.then_some((messages, listing))))
        });
        Ok(pages.boxed())
    }
}

/// Resets the request stream when the call is left, also where the peer has begun to answer before its end.
struct CancelOnDrop(Option<CancellationHandle>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        if let Some(handle) = self.0.take() {
            handle.cancel();
        }
    }
}

/// The messages of a `ReceiveBlob` stream. It ends only when the bytes ended well.
struct OutgoingBlob {
    header: Option<v1::BlobHeader>,
    bytes: ByteStream,
    // Of the chunk that came last, what is not sent yet.
    rest: Bytes,
    chunk_bytes: usize,
    // Gone once it has told an error.
    failed: Option<oneshot::Sender<StoreError>>,
    ended: Arc<AtomicBool>,
}

impl Stream for OutgoingBlob {
    type Item = v1::ReceiveBlobRequest;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        use v1::receive_blob_request::Part;
        let this = self.get_mut();
        let message = |part| Poll::Ready(Some(v1::ReceiveBlobRequest { part: Some(part) }));
        if let Some(header) = this.header.take() {
            return message(Part::Header(header));
        }
        loop {
            if this.ended.load(Ordering::Acquire) {
                return Poll::Ready(None);
            }
            if this.failed.is_none() {
                // Nothing will come any more, and no end either: the call is being cancelled.
                return Poll::Pending;
            }
            if !this.rest.is_empty() {
                let len = this.rest.len().min(this.chunk_bytes);
                return message(Part::Chunk(this.rest.split_to(len)));
            }
            match this.bytes.as_mut().poll_next(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(bytes))) => this.rest = bytes,
                Poll::Ready(Some(Err(error))) => {
                    if let Some(failed) = this.failed.take() {
                        // Nobody listens if the call is gone already.
                        failed.send(error).ok();
                    }
                }
                Poll::Ready(None) => this.ended.store(true, Ordering::Release),
            }
        }
    }
}

/// The chunks of a `FetchBlob` stream, `most` bytes at most.
fn fetched_bytes(messages: Incoming<v1::FetchBlobResponse>, blob: BlobRef, most: u64) -> ByteStream {
    use v1::fetch_blob_response::Part;
    let chunks = stream::unfold(Some((messages, most)), move |state| async move {
        let (mut messages, left) = state?;
        let error = match guarded(messages.message()).await {
            Ok(None) => return None,
            Ok(Some(v1::FetchBlobResponse { part: Some(Part::Chunk(bytes)) })) => {
                match left.checked_sub(bytes.len() as u64) {
                    Some(left) => return Some((Ok(bytes), Some((messages, left)))),
                    // A fault of this blob at this store; the next one may be well.
                    None => StoreError::Mismatch(Mismatch::TooLong { stated: most }),
                }
            }
            Ok(Some(v1::FetchBlobResponse { part: Some(Part::Header(_)) })) => {
                StoreError::Protocol("FetchBlob sent a second header".to_owned())
            }
            Ok(Some(v1::FetchBlobResponse { part: None })) => {
                StoreError::Protocol("FetchBlob sent an empty message".to_owned())
            }
            Err(status) => store_error(&status, Some(&blob)),
        };
        Some((Err(error), None))
    });
    chunks.boxed()
}

fn parse_ref(method: &str, text: &str) -> Result<BlobRef, StoreError> {
    text.parse().map_err(|error| StoreError::Protocol(format!("{method}: {error}")))
}

fn stated(method: &str, size: Option<u64>) -> Result<u64, StoreError> {
    size.ok_or_else(|| StoreError::Protocol(format!("{method} did not state the size")))
}

fn disposition(method: &str, number: i32) -> Result<Disposition, StoreError> {
    match v1::Disposition::try_from(number) {
        Ok(v1::Disposition::Stored) => Ok(Disposition::Stored),
        Ok(v1::Disposition::Consumed) => Ok(Disposition::Consumed),
        Ok(v1::Disposition::Enqueued) => Ok(Disposition::Enqueued),
        Ok(v1::Disposition::Unspecified) => {
            Err(StoreError::Protocol(format!("{method} did not say what became of the blob")))
        }
        Err(_) => Err(StoreError::Protocol(format!("{method} answered the unknown disposition {number}"))),
    }
}

fn peer_info(answer: v1::GetPeerInfoResponse) -> Result<StoreInfo, StoreError> {
    let Some(info) = answer.peer_info else {
        return Err(StoreError::Protocol("GetPeerInfo told nothing".to_owned()));
    };
    let id = info.store_id;
    if id.len() > MAX_STORE_ID || id.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
        let what = "GetPeerInfo: a store id is 1 to 128 printable ASCII characters, not";
        return Err(StoreError::protocol_with(what, &id));
    }
    let kind = match v1::PeerKind::try_from(info.kind) {
        Ok(v1::PeerKind::Unspecified | v1::PeerKind::Store) => PeerKind::Store,
        Ok(v1::PeerKind::ReceiveOnly) => PeerKind::ReceiveOnly,
        Ok(v1::PeerKind::Replicator) => PeerKind::Replicator,
        Err(_) => return Err(StoreError::Protocol(format!("GetPeerInfo: unknown kind of peer {}", info.kind))),
    };
    let functions = if info.digest_functions.is_empty() {
        vec![DigestFunction::Sha256]
    } else {
        // Those that are not known here are of no use to us.
        info.digest_functions.iter().filter_map(|name| DigestFunction::from_name(name)).collect()
    };
    let has = |ability: v1::Ability| info.abilities.contains(&i32::from(ability));
    let abilities = Abilities {
        stat: has(v1::Ability::Stat),
        fetch: has(v1::Ability::Fetch),
        enumerate: has(v1::Ability::Enumerate),
        replace: has(v1::Ability::Replace),
        packed: has(v1::Ability::Packed),
        verify: has(v1::Ability::Verify),
    };
    Ok(StoreInfo {
        store_id: (!id.is_empty()).then_some(id),
        kind,
        version: info.version.chars().filter(|c| !c.is_control()).take(MAX_VERSION).collect(),
        functions,
        max_blob_bytes: info.max_blob_bytes,
        max_message_bytes: info.max_message_bytes,
        // Without a size it would be a guess.
        max_packed_bytes: info.max_packed_bytes.filter(|_| abilities.packed),
        abilities,
    })
}

#[cfg(test)]
mod tests;
