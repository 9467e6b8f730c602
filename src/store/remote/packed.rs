//! Packs of small blobs, to and from a peer.
//!
//! A call of the port is one stream: its messages go out as the peer takes them, while the results are read and handed on.
//! Results come in any order, each exactly once and only for what was sent; anything else breaks the protocol. What is still
//! open when the stream ends, however it ends, is unknown, and safe to send again.

use super::{RemoteStore, disposition, guarded, parse_ref, reader, receiver, stated};
use crate::blob::{BlobRef, Mismatch};
use crate::grpc::{item_error, peer_error, store_error};
use crate::pb::v1;
use crate::store::packed::{
    Answers, MAX_PACKED_BYTES, PACK_BYTES, PACK_ITEMS, Packed, Parcel, Want, fetch_each, packs, receive_each,
};
use crate::store::{Received, StoreError};
use crate::telemetry::TraceContext;
use futures::stream;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use tokio::sync::oneshot;
use tonic::{Request, Status, Streaming};
use v1::fetched_blob::Result as Found;

/// What a peer's messages must hold for packs to be sent to it, in bytes: a pack, and what stands around its blobs.
pub(super) const MESSAGE_BYTES: usize = PACK_BYTES + PACK_ITEMS * 1024;

type ItemResult<T> = Result<T, StoreError>;

/// What one stream's items still lack.
struct OpenItems<'a, T> {
    method: &'static str,
    blobs: Vec<BlobRef>,
    // How many items went out; none beyond them can have been answered.
    sent: Arc<AtomicUsize>,
    // By item.
    answered: Vec<bool>,
    left: usize,
    answers: &'a mut dyn Answers<T>,
}

impl<'a, T> OpenItems<'a, T> {
    fn new(method: &'static str, blobs: Vec<BlobRef>, answers: &'a mut dyn Answers<T>) -> Self {
        let left = blobs.len();
        Self { method, answered: vec![false; left], blobs, sent: Arc::default(), left, answers }
    }

    /// The blob of an item that may be answered now.
    fn blob(&self, item: Option<u64>) -> ItemResult<(usize, BlobRef)> {
        let method = self.method;
        let Some(number) = item else {
            return Err(StoreError::Protocol(format!("{method} answered without an item's number")));
        };
        let at = usize::try_from(number).ok().filter(|at| *at < self.sent.load(Ordering::Acquire));
        match at.and_then(|at| Some((at, *self.blobs.get(at)?, *self.answered.get(at)?))) {
            Some((at, blob, false)) => Ok((at, blob)),
            Some((_, _, true)) => Err(StoreError::Protocol(format!("{method} answered item {number} twice"))),
            None => Err(StoreError::Protocol(format!("{method} answered item {number}, which was not sent"))),
        }
    }

    fn answer(&mut self, at: usize, outcome: ItemResult<T>) {
        if let Some(answered) = self.answered.get_mut(at) {
            *answered = true;
            self.left = self.left.saturating_sub(1);
            self.answers.answer(at, outcome);
        }
    }
}

/// The messages of a request stream, which count what goes out, and tell when that was all.
fn outgoing<T: Send + Unpin + 'static>(
    messages: Vec<(usize, T)>,
    sent: Arc<AtomicUsize>,
) -> (impl futures::Stream<Item = T> + Send + 'static, oneshot::Receiver<()>) {
    let (all, all_sent) = oneshot::channel();
    let (mut messages, mut all) = (messages.into_iter(), Some(all));
    let stream = stream::poll_fn(move |_| {
        let Some((items, message)) = messages.next() else {
            if let Some(all) = all.take() {
                // Nobody listens if the call is gone already.
                all.send(()).ok();
            }
            return Poll::Ready(None);
        };
        sent.fetch_add(items, Ordering::AcqRel);
        Poll::Ready(Some(message))
    });
    (stream, all_sent)
}

fn trace_fields(trace: Option<TraceContext>) -> (String, String) {
    trace.map(|trace| (trace.traceparent, trace.tracestate)).unwrap_or_default()
}

impl RemoteStore {
    fn packed_bytes(&self) -> u64 {
        self.packed_bytes.load(Ordering::Relaxed)
    }

    pub(super) async fn receive_packs(
        &self,
        parcels: Vec<Parcel>,
        answers: &mut dyn Answers<Received>,
    ) -> ItemResult<()> {
        let most = self.packed_bytes();
        if most == 0 || parcels.iter().any(|parcel| parcel.bytes.len() as u64 > most) {
            receive_each(self, parcels, answers).await;
            return Ok(());
        }
        let blobs = parcels.iter().map(|parcel| parcel.put.blob).collect();
        let mut open = OpenItems::new("ReceiveBlobs", blobs, answers);
        let sizes: Vec<u64> = parcels.iter().map(|parcel| parcel.bytes.len() as u64).collect();
        let message = |pack: Vec<Parcel>| {
            let blobs = pack.into_iter().map(|Parcel { put, bytes, trace }| {
                let (traceparent, tracestate) = trace_fields(trace);
                v1::PackedBlob {
                    r#ref: put.blob.to_string(),
                    data: bytes,
                    replace: put.replace,
                    traceparent,
                    tracestate,
                }
            });
            let blobs: Vec<_> = blobs.collect();
            (blobs.len(), v1::ReceiveBlobsRequest { blobs, source_store: String::new() })
        };
        let messages = packs(parcels, |parcel| parcel.bytes.len()).into_iter().map(message).collect();
        let (messages, all_sent) = outgoing(messages, open.sent.clone());
        let mut client = receiver(self.channels.data());
        let opening = async { Ok(client.receive_blobs(Request::new(messages)).await?.into_inner()) };
        let take = |open: &mut OpenItems<'_, Received>, message: v1::ReceiveBlobsResponse| {
            for result in message.results {
                let (at, blob) = open.blob(result.item)?;
                let size = sizes.get(at).copied().unwrap_or_default();
                open.answer(at, received(result, blob, size));
            }
            Ok(())
        };
        self.each_message(&mut open, opening, all_sent, take).await
    }

    pub(super) async fn fetch_packs(&self, wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> ItemResult<()> {
        let most = self.packed_bytes();
        if most == 0 {
            fetch_each(self, wants, MAX_PACKED_BYTES, answers).await;
            return Ok(());
        }
        let mut open = OpenItems::new("FetchBlobs", wants.iter().map(|want| want.blob).collect(), answers);
        let message = |pack: Vec<Want>| {
            let blobs = pack.into_iter().map(|Want { blob, trace }| {
                let (traceparent, tracestate) = trace_fields(trace);
                v1::WantedBlob { r#ref: blob.to_string(), traceparent, tracestate }
            });
            let blobs: Vec<_> = blobs.collect();
            (blobs.len(), v1::FetchBlobsRequest { blobs })
        };
        let messages = packs(wants, |_| 0).into_iter().map(message).collect();
        let (messages, all_sent) = outgoing(messages, open.sent.clone());
        let mut client = reader(self.channels.data());
        let opening = async { Ok(client.fetch_blobs(Request::new(messages)).await?.into_inner()) };
        let take = |open: &mut OpenItems<'_, Packed>, message: v1::FetchBlobsResponse| {
            for found in message.blobs {
                let (at, blob) = open.blob(found.item)?;
                open.answer(at, fetched(found, blob, most)?);
            }
            Ok(())
        };
        self.each_message(&mut open, opening, all_sent, take).await
    }

    /// Hands every message of an answer to `take`, until all is answered, it fails, or the stream ends.
    async fn each_message<T, M: Default + prost::Message + 'static>(
        &self,
        open: &mut OpenItems<'_, T>,
        opening: impl Future<Output = Result<Streaming<M>, Status>> + Send,
        all_sent: oneshot::Receiver<()>,
        mut take: impl FnMut(&mut OpenItems<'_, T>, M) -> ItemResult<()> + Send,
    ) -> ItemResult<()> {
        let method = open.method;
        let (mut all_sent, mut is_told) = (pin!(all_sent), false);
        let opened = async { guarded(opening).await.map_err(|status| store_error(&status, None)) };
        let mut opening = pin!(self.in_time(method, opened));
        let mut messages = loop {
            tokio::select! {
                biased;
                opened = &mut opening => break opened?,
                sent = &mut all_sent, if !is_told => {
                    is_told = true;
                    if sent.is_ok() {
                        open.answers.all_sent();
                    }
                }
            }
        };
        while open.left > 0 {
            tokio::select! {
                biased;
                message = guarded(messages.message()) => match message {
                    Ok(Some(message)) => take(open, message)?,
                    Ok(None) => {
                        let message = format!("{method} ended without an answer for each item");
                        return Err(StoreError::Protocol(message));
                    }
                    // An error of the stream is nobody's blob's.
                    Err(status) => return Err(StoreError::Peer(peer_error(&status))),
                },
                sent = &mut all_sent, if !is_told => {
                    is_told = true;
                    if sent.is_ok() {
                        open.answers.all_sent();
                    }
                }
            }
        }
        Ok(())
    }
}

fn received(result: v1::PackedResult, blob: BlobRef, sent: u64) -> ItemResult<Received> {
    if let Some(error) = result.error {
        return Err(item_error(&error, &blob));
    }
    let named = parse_ref("ReceiveBlobs", &result.r#ref)?;
    let size = stated("ReceiveBlobs", result.size_bytes)?;
    if named == blob && size > sent {
        // The copier compares with what it sent; this would be more than there was.
        return Err(StoreError::Protocol(format!("ReceiveBlobs confirmed {size} bytes; {sent} were sent")));
    }
    let disposition = disposition("ReceiveBlobs", result.disposition)?;
    Ok(Received { blob: named, size, disposition, was_new: result.was_new })
}

/// The outer error is the stream's, the inner one the blob's.
fn fetched(found: v1::FetchedBlob, blob: BlobRef, most: u64) -> ItemResult<ItemResult<Packed>> {
    let packed = match found.result {
        None => return Err(StoreError::Protocol("FetchBlobs answered an item with nothing".to_owned())),
        Some(Found::Error(error)) => return Ok(Err(item_error(&error, &blob))),
        Some(Found::Data(bytes)) if bytes.len() as u64 > most => {
            return Ok(Err(StoreError::Mismatch(Mismatch::TooLong { stated: most })));
        }
        Some(Found::Data(bytes)) => Packed::Whole(bytes),
        Some(Found::TooLargeBytes(size)) => Packed::TooLarge { size },
    };
    let named = parse_ref("FetchBlobs", &found.r#ref)?;
    if named != blob {
        return Err(StoreError::Protocol(format!("FetchBlobs gave {named} when asked for {blob}")));
    }
    Ok(Ok(packed))
}
