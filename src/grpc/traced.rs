//! A channel whose calls are recorded and carry the trace on, where whoever makes them is being traced.
//!
//! The span of a call lasts to the end of its answer. One that is left before, because the caller had all that it wanted or
//! gave up, has no status: why it was left is for the caller's own span to say.

use super::connections::{Lease, Pool};
use super::deadline::call_deadline;
use super::methods::{code_in, method_of, rpc_attributes};
use super::trace_context::set_header_context;
use crate::store::code_name;
use crate::telemetry::{Span, calling};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::KeyValue;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Code, Status};
use tower::Service;

/// The connections of one kind to a peer, as the generated clients want them.
#[derive(Clone)]
pub(crate) struct PeerChannel {
    pool: Arc<Pool>,
    is_checked: bool,
}

impl PeerChannel {
    /// `is_checked`: only the expected store may answer.
    pub(super) fn new(pool: Arc<Pool>, is_checked: bool) -> Self {
        Self { pool, is_checked }
    }

    /// Makes a call, within the caller's own deadline up to the head of the answer.
    async fn answer(self, request: Request<Body>) -> Result<(Response<Body>, Lease), Status> {
        let deadline = call_deadline(request.headers());
        let answer = self.pool.call(request, self.is_checked);
        let Some(deadline) = deadline else { return answer.await };
        let late = |_| Err(Status::deadline_exceeded(format!("no answer came within {} s", deadline.as_secs_f64())));
        tokio::time::timeout(deadline, answer).await.unwrap_or_else(late)
    }
}

impl fmt::Debug for PeerChannel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerChannel").field("uri", self.pool.uri()).finish_non_exhaustive()
    }
}

impl Service<Request<Body>> for PeerChannel {
    type Response = Response<AnswerBody>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let (span, context) = calling(|| method_of(path).into());
        if let Some(context) = &context {
            set_header_context(request.headers_mut(), context);
        }
        span.set(|| {
            let mut attributes = rpc_attributes(method_of(request.uri().path()));
            if let Some(host) = self.pool.uri().host() {
                attributes.push(KeyValue::new("server.address", host.to_owned()));
            }
            if let Some(port) = self.pool.uri().port_u16() {
                attributes.push(KeyValue::new("server.port", i64::from(port)));
            }
            attributes
        });
        let answer = self.clone().answer(request);
        Box::pin(async move {
            let (answer, lease) = match answer.await {
                Ok(answer) => answer,
                Err(status) => {
                    span.fail(code_name(status.code()), || status.message().to_owned());
                    return Err(status);
                }
            };
            let mut body = AnswerBody { inner: Body::empty(), span, lease };
            // A status in the headers is all there is.
            if let Some(code) = code_in(answer.headers()) {
                body.end(code);
            }
            Ok(answer.map(|inner| AnswerBody { inner, ..body }))
        })
    }
}

/// The body of a peer's answer, with the call's span and its place on the connection, which end with it.
#[derive(Debug)]
pub(crate) struct AnswerBody {
    inner: Body,
    span: Span,
    lease: Lease,
}

impl AnswerBody {
    fn end(&mut self, code: Code) {
        self.lease.over();
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
        match &polled {
            Poll::Ready(Some(Ok(frame))) => match frame.trailers_ref() {
                Some(trailers) => self.end(code_in(trailers).unwrap_or(Code::Unknown)),
                None => self.lease.heard(),
            },
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
