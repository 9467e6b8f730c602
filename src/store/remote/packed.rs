//! Packs of small blobs, to and from a peer.
//!
//! A call of the port is one stream: its messages go out as the peer takes them, while the results are read. Results come
//! in any order, each exactly once and only for what was sent; anything else breaks the protocol. What is still open when
//! the stream ends, however it ends, has the end as its error: it is unknown, and safe to send again.

use super::{RemoteStore, disposition, guarded, parse_ref, reader, receiver, stated};
use crate::blob::{BlobRef, Mismatch};
use crate::grpc::{item_error, peer_error};
use crate::pb::v1;
use crate::store::packed::{PACK_BYTES, PACK_ITEMS, Packed, Parcel, Want, fetch_each, packs, receive_each};
use crate::store::{Received, StoreError};
use crate::telemetry::TraceContext;
use futures::stream;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tonic::{Request, Status, Streaming};
use v1::fetched_blob::Result as Found;

/// What a peer's messages must hold for packs to be sent to it, in bytes: a pack, and what stands around its blobs.
pub(super) const MESSAGE_BYTES: usize = PACK_BYTES + PACK_ITEMS * 1024;

type Outcome<T> = Result<T, StoreError>;

/// The answers to one stream's items.
struct Answers<T> {
    method: &'static str,
    blobs: Vec<BlobRef>,
    // How many items went out; none beyond them can have been answered.
    sent: Arc<AtomicUsize>,
    outcomes: Vec<Option<Outcome<T>>>,
    open: usize,
}

impl<T> Answers<T> {
    fn new(method: &'static str, blobs: Vec<BlobRef>) -> Self {
        let open = blobs.len();
        Self { method, outcomes: blobs.iter().map(|_| None).collect(), blobs, sent: Arc::default(), open }
    }

    /// The blob of an item that may be answered now.
    fn blob(&self, item: Option<u64>) -> Outcome<(usize, BlobRef)> {
        let method = self.method;
        let Some(number) = item else {
            return Err(StoreError::Protocol(format!("{method} answered without an item's number")));
        };
        let at = usize::try_from(number).ok().filter(|at| *at < self.sent.load(Ordering::Acquire));
        match at.and_then(|at| Some((at, *self.blobs.get(at)?, self.outcomes.get(at)?))) {
            Some((at, blob, None)) => Ok((at, blob)),
            Some((_, _, Some(_))) => Err(StoreError::Protocol(format!("{method} answered item {number} twice"))),
            None => Err(StoreError::Protocol(format!("{method} answered item {number}, which was not sent"))),
        }
    }

    fn set(&mut self, at: usize, outcome: Outcome<T>) {
        self.open = self.open.saturating_sub(1);
        if let Some(place) = self.outcomes.get_mut(at) {
            *place = Some(outcome);
        }
    }

    /// All outcomes; what is open ends as the stream did.
    fn end(self, ended: Result<(), StoreError>) -> Vec<Outcome<T>> {
        let method = self.method;
        let open = || match &ended {
            Ok(()) => StoreError::Protocol(format!("{method} ended without an answer for each item")),
            Err(StoreError::Peer(error)) => StoreError::Peer(error.clone()),
            Err(error) => StoreError::Protocol(error.to_string()),
        };
        self.outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|| Err(open()))).collect()
    }
}

/// The messages of a request stream, which count what goes out.
fn outgoing<T: Send + 'static>(
    messages: Vec<(usize, T)>,
    sent: Arc<AtomicUsize>,
) -> impl futures::Stream<Item = T> + Send + 'static {
    stream::iter(messages.into_iter().map(move |(items, message)| {
        sent.fetch_add(items, Ordering::AcqRel);
        message
    }))
}

fn trace_fields(trace: Option<TraceContext>) -> (String, String) {
    trace.map(|trace| (trace.traceparent, trace.tracestate)).unwrap_or_default()
}

impl RemoteStore {
    fn packed_bytes(&self) -> u64 {
        self.packed_bytes.load(Ordering::Relaxed)
    }

    pub(super) async fn receive_packs(&self, parcels: Vec<Parcel>) -> Vec<Outcome<Received>> {
        let most = self.packed_bytes();
        if most == 0 || parcels.iter().any(|parcel| parcel.bytes.len() as u64 > most) {
            return receive_each(self, parcels).await;
        }
        let mut answers = Answers::new("ReceiveBlobs", parcels.iter().map(|parcel| parcel.put.blob).collect());
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
        let messages = outgoing(messages, answers.sent.clone());
        let mut client = receiver(self.channels.data());
        let opening = async { Ok(client.receive_blobs(Request::new(messages)).await?.into_inner()) };
        let ended = self.each_message(answers.method, opening, |message: v1::ReceiveBlobsResponse| {
            for result in message.results {
                let (at, blob) = answers.blob(result.item)?;
                let size = sizes.get(at).copied().unwrap_or_default();
                answers.set(at, received(result, blob, size));
            }
            Ok(answers.open == 0)
        });
        let ended = ended.await;
        answers.end(ended)
    }

    pub(super) async fn fetch_packs(&self, wants: Vec<Want>) -> Vec<Outcome<Packed>> {
        let most = self.packed_bytes();
        if most == 0 {
            return fetch_each(self, wants, crate::store::packed::MAX_PACKED_BYTES).await;
        }
        let mut answers = Answers::new("FetchBlobs", wants.iter().map(|want| want.blob).collect());
        let message = |pack: Vec<Want>| {
            let blobs = pack.into_iter().map(|Want { blob, trace }| {
                let (traceparent, tracestate) = trace_fields(trace);
                v1::WantedBlob { r#ref: blob.to_string(), traceparent, tracestate }
            });
            let blobs: Vec<_> = blobs.collect();
            (blobs.len(), v1::FetchBlobsRequest { blobs })
        };
        let messages = packs(wants, |_| 0).into_iter().map(message).collect();
        let messages = outgoing(messages, answers.sent.clone());
        let mut client = reader(self.channels.data());
        let opening = async { Ok(client.fetch_blobs(Request::new(messages)).await?.into_inner()) };
        let ended = self.each_message(answers.method, opening, |message: v1::FetchBlobsResponse| {
            for found in message.blobs {
                let (at, blob) = answers.blob(found.item)?;
                answers.set(at, fetched(found, blob, most)?);
            }
            Ok(answers.open == 0)
        });
        let ended = ended.await;
        answers.end(ended)
    }

    /// Hands every message of an answer to `take`, until that has all, fails, or the stream ends.
    async fn each_message<T: Default + prost::Message + 'static>(
        &self,
        method: &'static str,
        opening: impl Future<Output = Result<Streaming<T>, Status>> + Send,
        mut take: impl FnMut(T) -> Outcome<bool> + Send,
    ) -> Result<(), StoreError> {
        // An error of the stream is nobody's blob's.
        let mut messages = match self.answer(method, None, opening).await {
            Err(StoreError::Peer(error)) => return Err(StoreError::Peer(error)),
            opened => opened?,
        };
        loop {
            match guarded(messages.message()).await {
                Ok(Some(message)) => {
                    if take(message)? {
                        return Ok(());
                    }
                }
                Ok(None) => return Ok(()),
                Err(status) => return Err(StoreError::Peer(peer_error(&status))),
            }
        }
    }
}

fn received(result: v1::PackedResult, blob: BlobRef, sent: u64) -> Outcome<Received> {
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
fn fetched(found: v1::FetchedBlob, blob: BlobRef, most: u64) -> Outcome<Outcome<Packed>> {
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
