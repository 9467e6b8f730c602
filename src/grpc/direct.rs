//! Chunks of blobs past tonic's codec, without copying them.
//!
//! The codec copies every byte of a message twice on each hop: into a buffer of its own when it sends, together from frames
//! when it reads. Of a message that carries a chunk, all but the first few bytes are the chunk. So the streams of
//! `ReceiveBlob` and `FetchBlob`, which carry little else, are written and read here, at the HTTP body: what is sent is the
//! head of the message in a frame of its own and then the chunk as it is, and what is read of a chunk is given as it comes,
//! frame by frame, before its message is complete. Nothing may be concluded from a chunk that came, so that this tells
//! nobody anything too early. On the wire it is plain gRPC; any other message takes the usual way through prost.
//!
//! tonic keeps the calls: metadata, status, deadlines and the generated code are as always. Only the bodies change hands, in
//! the extensions of requests and responses, between a call's maker or handler and the wrapper around the transport
//! ([`DirectChannel`]) or the service ([`DirectService`]). Where a wrapper is missing, or a body is compressed, the codec
//! does its work.

mod incoming;
mod outgoing;

pub(crate) use incoming::Incoming;
pub(crate) use outgoing::{Answering, send, want};

use super::traced::PeerChannel;
use crate::pb::v1;
use bytes::Bytes;
use http::{Request, Response};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// A message of which most carry a chunk, in a field `bytes chunk = 2`, and nothing else.
pub(crate) trait Chunked: prost::Message + Default + Send + 'static {
    /// The message that carries this chunk.
    fn of_chunk(chunk: Bytes) -> Self;

    /// The chunk that the message carries, if it does.
    fn chunk(&self) -> Option<&Bytes>;
}

/// The key of that field, as it stands on the wire.
const CHUNK_KEY: u8 = 2 << 3 | 2;

/// The bytes before a gRPC message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

impl Chunked for v1::ReceiveBlobRequest {
    fn of_chunk(chunk: Bytes) -> Self {
        Self { part: Some(v1::receive_blob_request::Part::Chunk(chunk)) }
    }

    fn chunk(&self) -> Option<&Bytes> {
        match &self.part {
            Some(v1::receive_blob_request::Part::Chunk(chunk)) => Some(chunk),
            _ => None,
        }
    }
}

impl Chunked for v1::FetchBlobResponse {
    fn of_chunk(chunk: Bytes) -> Self {
        Self { part: Some(v1::fetch_blob_response::Part::Chunk(chunk)) }
    }

    fn chunk(&self) -> Option<&Bytes> {
        match &self.part {
            Some(v1::fetch_blob_response::Part::Chunk(chunk)) => Some(chunk),
            _ => None,
        }
    }
}

/// A body on its way through extensions, which must be cloneable and shared; it is taken once.
#[derive(Clone)]
struct Handed(Arc<Mutex<Option<Body>>>);

impl Handed {
    fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Some(body))))
    }

    fn take(&self) -> Option<Body> {
        self.0.lock().take()
    }
}

/// What a call's maker asks of the wrapper around the transport: the body of the answer as it is.
#[derive(Clone, Copy)]
struct WantsBody;

/// What the wrapper around a service tells a handler: that it sends the body it is handed.
#[derive(Clone, Copy)]
struct TakesBody;

fn is_plain(headers: &http::HeaderMap) -> bool {
    headers.get("grpc-encoding").is_none_or(|encoding| encoding == "identity")
}

/// A channel that hands bodies over where a call asks for it.
#[derive(Clone, Debug)]
pub(crate) struct DirectChannel(PeerChannel);

impl DirectChannel {
    /// Around this channel.
    pub(crate) fn new(channel: PeerChannel) -> Self {
        Self(channel)
    }
}

impl Service<Request<Body>> for DirectChannel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let wants_body = request.extensions_mut().remove::<WantsBody>().is_some();
        if let Some(handed) = request.extensions_mut().remove::<Handed>().and_then(|handed| handed.take()) {
            request = request.map(|codec| outgoing::cancelled_with(handed, codec));
        }
        let calling = self.0.call(request);
        Box::pin(async move {
            let mut response = calling.await?.map(Body::new);
            // A status in the headers is all there is; tonic reads it.
            let has_body = response.status() == http::StatusCode::OK && !response.headers().contains_key("grpc-status");
            if wants_body && has_body && is_plain(response.headers()) {
                let body = std::mem::take(response.body_mut());
                response.extensions_mut().insert(Handed::new(body));
            }
            Ok(response)
        })
    }
}

/// Which bodies of a method a service and its wrapper hand each other.
#[derive(Clone, Copy, Debug)]
enum Bodies {
    Requests,
    Answers,
}

/// A service of which one method reads its requests, or writes its answers, past the codec.
#[derive(Clone, Debug)]
pub(crate) struct DirectService<S> {
    service: S,
    method: &'static str,
    bodies: Bodies,
}

impl<S> DirectService<S> {
    /// Around this service, whose streaming method of this name reads its requests by [`Incoming::of_request`].
    pub(crate) fn requests_of(service: S, method: &'static str) -> Self {
        Self { service, method, bodies: Bodies::Requests }
    }

    /// Around this service, whose streaming method of this name answers by [`Answering`].
    pub(crate) fn answers_of(service: S, method: &'static str) -> Self {
        Self { service, method, bodies: Bodies::Answers }
    }
}

impl<S: NamedService> NamedService for DirectService<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for DirectService<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if request.uri().path().rsplit('/').next() != Some(self.method) {
            return Box::pin(self.service.call(request));
        }
        match self.bodies {
            Bodies::Requests => {
                if is_plain(request.headers()) {
                    let body = std::mem::take(request.body_mut());
                    request.extensions_mut().insert(Handed::new(body));
                }
                Box::pin(self.service.call(request))
            }
            Bodies::Answers => {
                request.extensions_mut().insert(TakesBody);
                let calling = self.service.call(request);
                Box::pin(async move {
                    let mut response = calling.await?;
                    if let Some(body) = response.extensions_mut().remove::<Handed>().and_then(|handed| handed.take()) {
                        *response.body_mut() = body;
                    }
                    Ok(response)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests;
