//! Packs of small blobs: `ReceiveBlobs` and `FetchBlobs`.
//!
//! While the store works at one message, the next is read; no third. So what a stream holds is bounded by the size of a
//! message, and a client that does not read its answers is read no further, until the stream ends as idle.

use super::spans::{Item, ItemSpans};
use super::{StoreServer, disposition, failed};
use crate::blob::{BlobRef, Excerpt, RefError};
use crate::grpc::{MAX_ITEMS, Reason, blob_error, call_trace, invalid_ref, item_trace, numbered, pump, store_status};
use crate::pb::v1;
use crate::store::packed::{
    MAX_PACKED_BYTES, PACK_BYTES, PACK_ITEMS, Packed, Parcel, Want, fetch_all, packs, receive_all,
};
use crate::store::{Put, Received, Store, StoreError, StoreInfo};
use crate::telemetry::TraceContext;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};
use v1::fetched_blob::Result as Found;

/// What the spans of blobs are called: as those of the calls that carry them.
const RECEIVE: &str = "blobferry.v1.BlobReceiverService/ReceiveBlobs";
const FETCH: &str = "blobferry.v1.BlobReaderService/FetchBlobs";

/// Messages of one stream that are worked at.
const AT_ONCE: usize = 2;

/// Wants that are looked up together: at most 8 MiB of answers.
const WANTS: usize = 128;

pub(super) type ReceiveBlobsStream = BoxStream<'static, Result<v1::ReceiveBlobsResponse, Status>>;
pub(super) type FetchBlobsStream = BoxStream<'static, Result<v1::FetchBlobsResponse, Status>>;

fn too_many(count: usize, most: usize) -> Status {
    Reason::TooManyItems.status(format!("{count} blobs in one message; at most {most} may be"))
}

impl StoreServer {
    pub(super) async fn receive_packed(
        &self,
        request: Request<Streaming<v1::ReceiveBlobsRequest>>,
    ) -> Result<Response<ReceiveBlobsStream>, Status> {
        let permit = self.shared.calls.enter()?;
        let info = Arc::new(self.info().await?.clone());
        let call_trace = call_trace(&request);
        let idle = self.shared.settings.idle_timeout;
        let (store, tracer) = (self.shared.store.clone(), self.shared.tracer.clone());
        let messages = numbered(request.into_inner(), idle, |message| message.blobs.len());
        let answers = messages.map(move |message| {
            let (store, info, call_trace) = (store.clone(), info.clone(), call_trace.clone());
            let tracer = tracer.clone();
            async move {
                let (first, message) = message?;
                let count = message.blobs.len();
                if count > MAX_ITEMS {
                    return Err(too_many(count, MAX_ITEMS));
                }
                let items = message.blobs.iter().map(|blob| Item {
                    r#ref: &blob.r#ref,
                    size: Some(blob.data.len()),
                    traceparent: &blob.traceparent,
                    tracestate: &blob.tracestate,
                });
                let spans = ItemSpans::begin(&tracer, RECEIVE, call_trace.as_ref(), items);
                let results = receive(&*store, &info, message.blobs, call_trace.as_ref()).await;
                spans.end(&results);
                let results = (first..).zip(results).map(|(item, result)| packed_result(item, result)).collect();
                Ok(v1::ReceiveBlobsResponse { results, backlogs: Vec::new() })
            }
        });
        let answers = answers.buffered(AT_ONCE);
        Ok(Response::new(pump(&self.shared.tasks, permit, idle, answers).boxed()))
    }

    pub(super) async fn fetch_packed(
        &self,
        request: Request<Streaming<v1::FetchBlobsRequest>>,
    ) -> Result<Response<FetchBlobsStream>, Status> {
        let permit = self.shared.calls.enter()?;
        let call_trace = call_trace(&request);
        let idle = self.shared.settings.idle_timeout;
        let (store, tracer) = (self.shared.store.clone(), self.shared.tracer.clone());
        let messages = numbered(request.into_inner(), idle, |message| message.blobs.len());
        // In parts whose answers fit memory, whatever the sizes turn out to be.
        let parts = messages.flat_map(|message| stream::iter(parts_of(message)));
        let answers = parts.map(move |part| {
            let (store, call_trace, tracer) = (store.clone(), call_trace.clone(), tracer.clone());
            async move {
                let (first, wants) = part?;
                let items = wants.iter().map(|want| Item {
                    r#ref: &want.r#ref,
                    size: None,
                    traceparent: &want.traceparent,
                    tracestate: &want.tracestate,
                });
                let spans = ItemSpans::begin(&tracer, FETCH, call_trace.as_ref(), items);
                Ok(fetch(&*store, first, wants, call_trace.as_ref(), spans).await)
            }
        });
        let answers = answers.buffered(AT_ONCE).flat_map(|answers| {
            let messages: Vec<_> = match answers {
                Ok(blobs) => {
                    packs(blobs, size_of_answer).into_iter().map(|blobs| Ok(v1::FetchBlobsResponse { blobs })).collect()
                }
                Err(status) => vec![Err(status)],
            };
            stream::iter(messages)
        });
        Ok(Response::new(pump(&self.shared.tasks, permit, idle, answers).boxed()))
    }
}

type Part = Result<(u64, Vec<v1::WantedBlob>), Status>;

fn parts_of(message: Result<(u64, v1::FetchBlobsRequest), Status>) -> Vec<Part> {
    let (mut first, message) = match message {
        Ok(message) => message,
        Err(status) => return vec![Err(status)],
    };
    let count = message.blobs.len();
    if count > PACK_ITEMS {
        return vec![Err(too_many(count, PACK_ITEMS))];
    }
    let mut parts = Vec::with_capacity(count.div_ceil(WANTS));
    let mut wants = message.blobs.into_iter();
    loop {
        let part: Vec<_> = wants.by_ref().take(WANTS).collect();
        if part.is_empty() {
            return parts;
        }
        let next = first + part.len() as u64;
        parts.push(Ok((first, part)));
        first = next;
    }
}

/// Every item in its place: the store sees those that make sense, the others have their error already.
async fn answered<I, Q, A>(
    items: Vec<I>,
    parse: impl Fn(I) -> Result<Q, Status>,
    ask: impl AsyncFnOnce(Vec<Q>) -> Vec<Result<A, StoreError>>,
    blob: impl Fn(&Q) -> BlobRef,
) -> Vec<Result<A, Status>> {
    let mut places = Vec::with_capacity(items.len());
    let mut asked = Vec::with_capacity(items.len());
    for item in items {
        match parse(item) {
            Ok(question) => {
                places.push(Ok(blob(&question)));
                asked.push(question);
            }
            Err(status) => places.push(Err(status)),
        }
    }
    let mut answers = if asked.is_empty() { Vec::new() } else { ask(asked).await }.into_iter();
    let fill = |place: Result<BlobRef, Status>| {
        let blob = place?;
        match answers.next() {
            Some(answer) => answer.map_err(|error| failed(&error, Some(&blob))),
            None => Err(Reason::StoreFailed.status("the store gave no answer for this blob")),
        }
    };
    places.into_iter().map(fill).collect()
}

async fn receive(
    store: &dyn Store,
    info: &StoreInfo,
    blobs: Vec<v1::PackedBlob>,
    call_trace: Option<&TraceContext>,
) -> Vec<Result<Received, Status>> {
    let parse = |packed| parcel(info, packed, call_trace);
    let ask = async |parcels| receive_all(store, parcels).await;
    answered(blobs, parse, ask, |parcel| parcel.put.blob).await
}

/// A blob that makes sense here.
fn parcel(info: &StoreInfo, packed: v1::PackedBlob, call_trace: Option<&TraceContext>) -> Result<Parcel, Status> {
    let blob: BlobRef = packed.r#ref.parse().map_err(|error| invalid_ref("blobs.ref", &error))?;
    if !info.functions.contains(&blob.function()) {
        let unknown = RefError::UnknownFunction(Excerpt::of(blob.function().name()));
        return Err(invalid_ref("blobs.ref", &unknown));
    }
    if packed.replace && !info.abilities.replace {
        return Err(Reason::ReplaceUnsupported.status("this store cannot replace a blob that it holds"));
    }
    let size = packed.data.len() as u64;
    let limit = info.max_packed_bytes.unwrap_or(MAX_PACKED_BYTES).min(info.max_blob_bytes.unwrap_or(u64::MAX));
    if size > limit {
        return Err(store_status(&StoreError::TooLarge { limit }, Some(&blob)));
    }
    let put = Put { blob, size: Some(size), replace: packed.replace };
    let trace = item_trace(&packed.traceparent, &packed.tracestate).or_else(|| call_trace.cloned());
    Ok(Parcel { put, bytes: packed.data, trace })
}

fn packed_result(item: u64, result: Result<Received, Status>) -> v1::PackedResult {
    let item = Some(item);
    match result {
        Ok(received) => v1::PackedResult {
            item,
            r#ref: received.blob.to_string(),
            size_bytes: Some(received.size),
            disposition: disposition(received.disposition).into(),
            was_new: received.was_new,
            ..v1::PackedResult::default()
        },
        Err(status) => v1::PackedResult { item, error: Some(blob_error(&status)), ..v1::PackedResult::default() },
    }
}

async fn fetch(
    store: &dyn Store,
    first: u64,
    wants: Vec<v1::WantedBlob>,
    call_trace: Option<&TraceContext>,
    spans: ItemSpans,
) -> Vec<v1::FetchedBlob> {
    let parse = |want: v1::WantedBlob| {
        let blob = want.r#ref.parse().map_err(|error| invalid_ref("blobs.ref", &error))?;
        let trace = item_trace(&want.traceparent, &want.tracestate).or_else(|| call_trace.cloned());
        Ok((want.r#ref, Want { blob, trace }))
    };
    let names: Vec<String> = wants.iter().map(|want| want.r#ref.clone()).collect();
    let ask =
        async |wants: Vec<(String, Want)>| fetch_all(store, wants.into_iter().map(|(_, want)| want).collect()).await;
    let answers = answered(wants, parse, ask, |(_, want)| want.blob).await;
    spans.end(&answers);
    let blobs = (first..).zip(names).zip(answers).map(|((item, name), answer)| {
        let (r#ref, result) = match answer {
            Ok(Packed::Whole(bytes)) => (name, Found::Data(bytes)),
            Ok(Packed::TooLarge { size }) => (name, Found::TooLargeBytes(size)),
            Err(status) => (String::new(), Found::Error(blob_error(&status))),
        };
        v1::FetchedBlob { item: Some(item), r#ref, result: Some(result) }
    });
    blobs.collect()
}

fn size_of_answer(blob: &v1::FetchedBlob) -> usize {
    match &blob.result {
        Some(Found::Data(bytes)) => bytes.len().min(PACK_BYTES),
        _ => 0,
    }
}
