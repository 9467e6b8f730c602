//! A channel whose calls are recorded and carry the trace on, where whoever makes them is being traced.
//!
//! The span of a call lasts to the end of its answer. One that is left before, because the caller had all that it wanted or
//! gave up, has no status: why it was left is for the caller's own span to say.

use super::calls::{code_in, method_of, rpc_attributes};
use super::trace_context::set_header_context;
use crate::store::code_name;
use crate::telemetry::{Span, calling};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either, MapOk, TryFutureExt as _};
use http::{Request, Response, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::KeyValue;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::transport::channel::ResponseFuture;
use tonic::{Code, Status};
use tower::Service;

/// A connection to a peer, as the generated clients want it.
#[derive(Clone, Debug)]
pub struct PeerChannel {
    channel: Channel,
    peer: Arc<Uri>,
}

impl PeerChannel {
    pub(super) fn new(channel: Channel, peer: Arc<Uri>) -> Self {
        Self { channel, peer }
    }

    /// The bare channel, whose calls are not recorded.
    pub fn into_bare(self) -> Channel {
        self.channel
    }
}

type TracedBody = Response<AnswerBody>;

impl Service<Request<Body>> for PeerChannel {
    type Response = TracedBody;
    type Error = tonic::transport::Error;
    type Future = Either<
        MapOk<ResponseFuture, fn(Response<Body>) -> TracedBody>,
        BoxFuture<'static, Result<Self::Response, Self::Error>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.channel.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let (span, context) = calling(|| method_of(path).into());
        if let Some(context) = &context {
            set_header_context(request.headers_mut(), context);
        }
        if !span.is_recorded() {
            let unrecorded: fn(Response<Body>) -> TracedBody =
                |answer| answer.map(|inner| AnswerBody { inner, span: Span::default() });
            return Either::Left(self.channel.call(request).map_ok(unrecorded));
        }
        span.set(|| {
            let mut attributes = rpc_attributes(method_of(request.uri().path()));
            if let Some(host) = self.peer.host() {
                attributes.push(KeyValue::new("server.address", host.to_owned()));
            }
            if let Some(port) = self.peer.port_u16() {
                attributes.push(KeyValue::new("server.port", i64::from(port)));
            }
            attributes
        });
        let answer = self.channel.call(request);
        let recorded = async move {
            let answer = match answer.await {
                Ok(answer) => answer,
                Err(error) => {
                    span.fail("UNAVAILABLE", || error.to_string());
                    return Err(error);
                }
            };
            let mut body = AnswerBody { inner: Body::empty(), span };
            if let Some(code) = code_in(answer.headers()) {
                body.end(code);
            }
            Ok(answer.map(|inner| AnswerBody { inner, ..body }))
        };
        Either::Right(recorded.boxed())
    }
}

/// The body of a peer's answer, with the call's span, which ends with it.
#[derive(Debug)]
pub struct AnswerBody {
    inner: Body,
    span: Span,
}

impl AnswerBody {
    fn end(&mut self, code: Code) {
        let span = std::mem::take(&mut self.span);
        span.set(|| [KeyValue::new("rpc.response.status_code", code_name(code))]);
        if code != Code::Ok {
            span.fail(code_name(code), String::new);
        }
    }
}

impl HttpBody for AnswerBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        if !self.span.is_recorded() {
            return polled;
        }
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.end(code_in(trailers).unwrap_or(Code::Unknown));
                }
            }
            Poll::Ready(Some(Err(status))) => self.end(status.code()),
            Poll::Ready(None) => self.end(Code::Unknown),
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
