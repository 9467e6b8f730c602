//! Every call that a server answers, from its headers to the last of its answer: its span, and whoever else watches.
//!
//! A call ends when its trailers have been handed to the transport, or when it is dropped before: not at the response's
//! headers, at which a stream has only begun. Where nobody watches and nothing is recorded, calls pass untouched.

use super::methods::{OTHER, code_in, method_of, rpc_attributes};
use super::trace_context::header_context;
use crate::store::code_name;
use crate::telemetry::{Parent, Span, TraceContext, Tracer};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::{BoxFuture, Either, MapOk, TryFutureExt as _};
use http::{Request, Response};
use http_body::{Body as HttpBody, Frame, SizeHint};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::server::TcpConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};

/// Is told of calls; must not block.
pub trait CallObserver: Send + Sync {
    /// A call came in. `method` is `package.Service/Method`, or `_OTHER` where the server does not know it.
    fn began(&self, method: &'static str);

    /// It is over, its stream included. Called once for each that began.
    fn ended(&self, call: &EndedCall);

    /// A connection was accepted.
    fn connected(&self) {}

    /// It is closed. Called once for each that was accepted.
    fn disconnected(&self) {}

    /// A connection was refused: there are as many as are served at a time.
    fn refused(&self) {}
}

/// A call that is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndedCall {
    /// `package.Service/Method`, or `_OTHER`.
    pub method: &'static str,
    /// How it ended; CANCELLED where the client went away before its end.
    pub code: Code,
    /// How long it took, to the last of its answer.
    pub took: Duration,
}

/// Services that say nothing of blobs and are asked every few seconds: their calls begin no trace.
const ASIDE: &str = "grpc.";

/// Who watches the calls of a server. By default, nobody.
#[derive(Clone, Default)]
pub struct Calls {
    /// Records them.
    pub tracer: Tracer,
    /// Is told of them.
    pub observer: Option<Arc<dyn CallObserver>>,
}

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Calls").field("tracer", &self.tracer).field("observed", &self.observer.is_some()).finish()
    }
}

/// The context of a call's own span, for what its handler does.
#[derive(Clone, Debug)]
struct CallTrace(TraceContext);

/// The trace context in which a call is handled: that of its own span where that is recorded, else the caller's.
pub(crate) fn call_trace<T>(request: &tonic::Request<T>) -> Option<TraceContext> {
    match request.extensions().get::<CallTrace>() {
        Some(CallTrace(context)) => Some(context.clone()),
        None => header_context(request.metadata().as_ref()),
    }
}

impl<S> Layer<S> for Calls {
    type Service = Watched<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Watched { inner, calls: self.clone() }
    }
}

/// A server's services, watched.
#[derive(Clone, Debug)]
pub struct Watched<S> {
    inner: S,
    calls: Calls,
}

type WatchedBody = Response<CallBody>;

impl<S> Service<Request<Body>> for Watched<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = WatchedBody;
    type Error = S::Error;
    type Future = Either<
        MapOk<S::Future, fn(Response<Body>) -> WatchedBody>,
        BoxFuture<'static, Result<Self::Response, Self::Error>>,
    >;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let Calls { tracer, observer } = &self.calls;
        if !tracer.is_on() && observer.is_none() {
            return Either::Left(self.inner.call(request).map_ok(unwatched));
        }
        let method = method_of(request.uri().path());
        let span = server_span(tracer, method, &request);
        if !span.is_recorded() && observer.is_none() {
            return Either::Left(self.inner.call(request).map_ok(unwatched));
        }
        if let Some(context) = span.context() {
            request.extensions_mut().insert(CallTrace(context));
        }
        if let Some(observer) = observer {
            observer.began(method);
        }
        let call = Call { method, began: Instant::now(), observer: observer.clone(), span, ended: false };
        let answer = call.span.within(self.inner.call(request));
        let watched = async move {
            let mut call = call;
            let answer = answer.await?;
            if let Some(code) = code_in(answer.headers()) {
                call.end(code);
            }
            Ok(answer.map(|inner| CallBody { inner, call: Some(call) }))
        };
        Either::Right(watched.boxed())
    }
}

fn unwatched(answer: Response<Body>) -> WatchedBody {
    answer.map(|inner| CallBody { inner, call: None })
}

fn server_span(tracer: &Tracer, method: &'static str, request: &Request<Body>) -> Span {
    if !tracer.is_on() {
        return Span::default();
    }
    let caller = if tracer.propagates() { header_context(request.headers()) } else { None };
    if caller.is_none() && method.starts_with(ASIDE) {
        return Span::default();
    }
    let parent = caller.as_ref().map_or(Parent::None, Parent::Sent);
    // A name of its own for what is none of our methods, as the conventions want it.
    let span = tracer.start(SpanKind::Server, parent, || if method == OTHER { "grpc" } else { method }.into());
    span.set(|| {
        let mut attributes = rpc_attributes(method);
        if let Some(info) = request.extensions().get::<TcpConnectInfo>() {
            if let Some(address) = info.local_addr() {
                attributes.push(KeyValue::new("server.address", address.ip().to_canonical().to_string()));
                attributes.push(KeyValue::new("server.port", i64::from(address.port())));
            }
            if let Some(address) = info.remote_addr() {
                attributes.push(KeyValue::new("network.peer.address", address.ip().to_canonical().to_string()));
                attributes.push(KeyValue::new("network.peer.port", i64::from(address.port())));
            }
        }
        attributes
    });
    span
}

/// A call in progress. Dropped, it is over.
#[derive(Debug)]
struct Call {
    method: &'static str,
    began: Instant,
    observer: Option<Arc<dyn CallObserver>>,
    span: Span,
    ended: bool,
}

impl fmt::Debug for dyn CallObserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CallObserver")
    }
}

impl Call {
    fn end(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let span = std::mem::take(&mut self.span);
        span.set(|| [KeyValue::new("rpc.response.status_code", code_name(code))]);
        if is_servers_fault(code) {
            span.fail(code_name(code), String::new);
        }
        if let Some(observer) = &self.observer {
            observer.ended(&EndedCall { method: self.method, code, took: self.began.elapsed() });
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.end(Code::Cancelled);
    }
}

/// Whether a server's span of this outcome is in error; the others are the client's doing.
pub(crate) const fn is_servers_fault(code: Code) -> bool {
    matches!(
        code,
        Code::Unknown
            | Code::DeadlineExceeded
            | Code::Unimplemented
            | Code::Internal
            | Code::Unavailable
            | Code::DataLoss
    )
}

/// The body of an answer, with the call that ends with it.
#[derive(Debug)]
pub struct CallBody {
    inner: Body,
    call: Option<Call>,
}

impl HttpBody for CallBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        let Some(call) = &mut self.call else { return polled };
        match &polled {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    call.end(code_in(trailers).unwrap_or(Code::Unknown));
                }
            }
            Poll::Ready(Some(Err(status))) => call.end(status.code()),
            Poll::Ready(None) => call.end(Code::Unknown),
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

#[cfg(test)]
mod tests {
    use super::{CallObserver, Calls, EndedCall};
    use crate::grpc::{ServeSettings, base_routes, serve};
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::net::TcpListener;
    use tokio_util::sync::CancellationToken;
    use tonic::Code;
    use tonic::transport::Channel;
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    #[derive(Default)]
    struct Seen(Mutex<(Vec<&'static str>, Vec<EndedCall>)>);

    impl CallObserver for Seen {
        fn began(&self, method: &'static str) {
            self.0.lock().0.push(method);
        }

        fn ended(&self, call: &EndedCall) {
            self.0.lock().1.push(*call);
        }
    }

    impl Seen {
        async fn ended(&self, calls: usize) -> Vec<EndedCall> {
            for _ in 0..1000 {
                let ended = self.0.lock().1.clone();
                if ended.len() == calls {
                    return ended;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            panic!("{:?}", self.0.lock());
        }
    }

    #[tokio::test]
    async fn a_call_is_over_when_its_stream_is_and_the_observer_is_told_how() {
        let seen = Arc::new(Seen::default());
        let settings = ServeSettings {
            calls: Calls { observer: Some(seen.clone()), ..Calls::default() },
            ..ServeSettings::default()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let (routes, _health) = base_routes(&[]).unwrap();
        let stop = CancellationToken::new();
        let mut tasks = tokio::task::JoinSet::new();
        let stopped = stop.clone();
        tasks.spawn(async move { serve(listener, routes, settings, stopped).await.unwrap() });
        let channel = Channel::from_shared(uri).unwrap().connect().await.unwrap();
        let mut client = HealthClient::new(channel.clone());
        let request = |service: &str| HealthCheckRequest { service: service.to_owned() };
        client.check(request("")).await.unwrap();
        client.check(request("no.such")).await.unwrap_err();
        let codes: Vec<_> = seen.ended(2).await.iter().map(|call| (call.method, call.code)).collect();
        assert_eq!(codes, [("grpc.health.v1.Health/Check", Code::Ok), ("grpc.health.v1.Health/Check", Code::NotFound)]);

        // A stream that goes on is not over at its headers; one that the client leaves was cancelled.
        let mut watching = client.watch(request("")).await.unwrap().into_inner();
        watching.message().await.unwrap().unwrap();
        assert_eq!(seen.0.lock().0.len(), 3);
        assert_eq!(seen.0.lock().1.len(), 2);
        drop(watching);
        let ended = seen.ended(3).await;
        assert_eq!((ended[2].method, ended[2].code), ("grpc.health.v1.Health/Watch", Code::Cancelled));
        stop.cancel();
        tasks.join_next().await.unwrap().unwrap();
    }
}
