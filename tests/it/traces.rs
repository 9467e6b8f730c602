//! One blob, one story: the real programs, traced, against a collector of the test's own, and against one in Python.

use crate::harness::{
    PATIENCE, Receiver, Replication, Server, World, blob, full_sync, messages, program, queued, receiver, replication,
    route, send, tool, until,
};
use blobferry::blob::BlobRef;
use blobferry::internal::failpoint;
use blobferry::v1 as pb;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, KeyValue};
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use parking_lot::Mutex;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

const RECEIVE: &str = "blobferry.v1.BlobReceiverService/ReceiveBlob";
const FETCH: &str = "blobferry.v1.BlobReaderService/FetchBlob";

/// A span as it arrived, and the service that sent it.
#[derive(Clone)]
struct Seen {
    service: String,
    span: Span,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Span { name, kind, trace_id, span_id, parent_span_id, .. } = &self.span;
        let (trace, span, parent) = (hex(trace_id), hex(span_id), hex(parent_span_id));
        write!(f, "{} {name} (kind {kind}, trace {trace}, span {span}, parent {parent}", self.service)?;
        self.span.links.iter().try_for_each(|link| write!(f, ", link {}", hex(&link.span_id)))?;
        for attribute in &self.span.attributes {
            write!(f, ", {}={}", attribute.key, text(attribute.value.as_ref()).unwrap_or_default())?;
        }
        f.write_str(")")
    }
}

impl Seen {
    fn attribute(&self, key: &str) -> Option<String> {
        let found: Vec<&KeyValue> = self.span.attributes.iter().filter(|attribute| attribute.key == key).collect();
        assert!(found.len() <= 1, "{key} stands twice: {self:?}");
        found.first().and_then(|attribute| text(attribute.value.as_ref()))
    }

    fn is(&self, service: &str, name: &str, kind: SpanKind) -> bool {
        self.service == service && self.span.name == name && self.span.kind == kind as i32
    }

    fn error(&self) -> Option<String> {
        let status = self.span.status.clone().unwrap_or_default();
        let kind = self.attribute("error.type");
        assert_eq!(kind.is_some(), status.code == StatusCode::Error as i32, "{self:?}");
        kind
    }

    fn links_to(&self, other: &Seen) -> bool {
        self.span.links.iter().any(|link| link.span_id == other.span.span_id && link.trace_id == other.span.trace_id)
    }

    fn is_child_of(&self, other: &Seen) -> bool {
        self.span.parent_span_id == other.span.span_id && self.span.trace_id == other.span.trace_id
    }
}

fn text(value: Option<&AnyValue>) -> Option<String> {
    match value?.value.as_ref()? {
        Value::StringValue(text) => Some(text.clone()),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(is) => Some(is.to_string()),
        other => panic!("{other:?}"),
    }
}

/// What a collector was sent.
#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<Mutex<Vec<Seen>>>);

impl Sink {
    pub(crate) fn server(&self) -> TraceServiceServer<Self> {
        TraceServiceServer::new(self.clone())
    }

    /// Whether a span of this name came in this trace.
    pub(crate) fn has(&self, trace: &str, name: &str) -> bool {
        self.0.lock().iter().any(|seen| seen.span.name == name && hex(&seen.span.trace_id) == trace)
    }
}

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut seen = self.0.lock();
        for resource in request.into_inner().resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            let of: BTreeMap<_, _> =
                attributes.iter().map(|one| (one.key.as_str(), text(one.value.as_ref()))).collect();
            assert_eq!(of["service.version"].as_deref(), Some(env!("CARGO_PKG_VERSION")));
            assert!(of["service.instance.id"].as_ref().is_some_and(|id| !id.is_empty()));
            let service = of["service.name"].clone().unwrap();
            for scope in resource.scope_spans {
                seen.extend(scope.spans.into_iter().map(|span| Seen { service: service.clone(), span }));
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// A collector.
struct Collector {
    sink: Sink,
    url: String,
    _tasks: JoinSet<()>,
}

impl Collector {
    async fn start() -> Self {
        let sink = Sink::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tonic::transport::Server::builder()
            .add_service(sink.server())
            .serve_with_incoming(TcpIncoming::from(listener));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { serving.await.unwrap() });
        Self { sink, url, _tasks: tasks }
    }

    fn all(&self) -> Vec<Seen> {
        self.sink.0.lock().clone()
    }

    /// All spans of a service with this name and kind, once there are so many.
    async fn spans(&self, count: usize, service: &str, name: &str, kind: SpanKind) -> Vec<Seen> {
        let found = || -> Vec<Seen> { self.all().into_iter().filter(|seen| seen.is(service, name, kind)).collect() };
        let deadline = Instant::now() + PATIENCE;
        while found().len() < count {
            assert!(Instant::now() < deadline, "{count} x {name} of {service} did not come, but {:#?}", self.all());
            tokio::time::sleep(Duration::from_millis(25)).await;
        }
        assert_eq!(found().len(), count, "{name} of {service}");
        found()
    }

    async fn span(&self, service: &str, name: &str, kind: SpanKind) -> Seen {
        self.spans(1, service, name, kind).await.remove(0)
    }
}

/// Spans are to be sent at once, and by nobody's environment but the test's.
const AT_ONCE: (&str, &str) = ("OTEL_BSP_SCHEDULE_DELAY", "20");

impl World {
    fn traced_store(&self, name: &str, otlp: &str) -> Server {
        let data = format!("disk://{}", self.path(name).to_str().unwrap());
        let args = ["store", "--listen", "{}", "--data", &data, "--otlp", otlp];
        let env = [AT_ONCE, ("OTEL_SERVICE_NAME", name)];
        Server::start_in(program(), &args, 2, &self.path(&format!("{name}.log")), &env)
    }

    fn traced_replicator(&self, source: &Server, destination: &Server, tracing: &str) -> Server {
        let (file, data) = (self.path("replicator.toml"), self.path("replicator-data"));
        let config = format!(
            "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n\
             full_sync = {{ on_start = \"off\" }}\n[server]\ndata_dir = \"{}\"\n\
             [retry]\ninitial = \"50ms\"\nmax = \"500ms\"\n[tracing]\n{tracing}\n",
            source.url(),
            destination.url(),
            data.to_str().unwrap()
        );
        std::fs::write(&file, config).unwrap();
        let args = ["serve", "--config", file.to_str().unwrap(), "--set", "server.listen={}"];
        Server::start_in(program(), &args, 4, &self.path("replicator.log"), &[AT_ONCE])
    }
}

/// A client's own span, which it does not send anywhere.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const CALLER: &str = "b7ad6b7169203331";

fn traceparent(sampled: bool) -> String {
    format!("00-{TRACE}-{CALLER}-{:02x}", u8::from(sampled))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Announces a blob with its bytes, as a traced client does.
async fn announce_traced(to: &mut Receiver, blob: BlobRef, bytes: &[u8], sampled: bool) {
    let mut request = Request::new(tokio_stream::iter(messages(blob, bytes, 256 << 10)));
    request.metadata_mut().insert("traceparent", traceparent(sampled).parse().unwrap());
    to.receive_blob(request).await.unwrap();
}

async fn pause(operator: &mut Replication) {
    operator.pause_route(pb::PauseRouteRequest::default()).await.unwrap();
}

async fn resume(operator: &mut Replication) {
    operator.resume_route(pb::ResumeRouteRequest::default()).await.unwrap();
}

/// Larger than what travels packed.
const LARGE: usize = 300_000;

async fn a_story_with(copy_parent: &str) {
    let world = World::new();
    let collector = Collector::start().await;
    let source = world.traced_store("source", &collector.url);
    let mut destination = world.traced_store("destination", &collector.url);
    let tracing = format!("otlp_endpoint = \"{}\"\ncopy_parent = \"{copy_parent}\"", collector.url);
    let mut replicator = world.traced_replicator(&source, &destination, &tracing);
    let (blob, bytes) = blob(1, LARGE);
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    pause(&mut replication(&replicator).await).await;
    announce_traced(&mut receiver(&replicator).await, blob, &bytes, true).await;
    // `kill -9` takes along what has not been sent.
    let sent = collector.span("blobferry", "send a_to_b", SpanKind::Producer).await;
    let announced = collector.span("blobferry", RECEIVE, SpanKind::Server).await;

    // A restart between the announcement and the copy, and a destination that fails at first.
    replicator.kill();
    destination.kill();
    assert!(destination.ended_starting(&[(failpoint::VARIABLE, "store.server.receive=1*error")]).is_none());
    replicator.again();
    let mut operator = replication(&replicator).await;
    resume(&mut operator).await;
    until("it is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;

    // caller -> ReceiveBlob at the replicator -> send
    assert_eq!((hex(&announced.span.trace_id), hex(&announced.span.parent_span_id)), (TRACE.into(), CALLER.into()));
    assert_eq!(announced.attribute("rpc.system.name").as_deref(), Some("grpc"));
    assert_eq!(announced.attribute("rpc.method").as_deref(), Some(RECEIVE));
    assert_eq!(announced.attribute("rpc.response.status_code").as_deref(), Some("OK"));
    assert_eq!(announced.attribute("server.address").as_deref(), Some("127.0.0.1"));
    assert!(announced.error().is_none());
    assert!(sent.is_child_of(&announced), "{sent:?}");
    assert_eq!(sent.attribute("messaging.destination.name").as_deref(), Some("a_to_b"));
    assert_eq!(sent.attribute("messaging.message.id"), Some(blob.to_string()));
    assert_eq!(sent.attribute("blobferry.push.outcome").as_deref(), Some("added"));

    // send … process, once for the attempt that failed, once for the one that did not
    let attempts = collector.spans(2, "blobferry", "process a_to_b", SpanKind::Consumer).await;
    for attempt in &attempts {
        match copy_parent {
            "child" => assert!(attempt.is_child_of(&sent) && attempt.span.links.is_empty(), "{attempt:?}"),
            _ => {
                assert!(attempt.links_to(&sent) && attempt.span.parent_span_id.is_empty(), "{attempt:?}");
                assert_ne!(attempt.span.trace_id, sent.span.trace_id);
            }
        }
        assert_eq!(attempt.attribute("messaging.message.id"), Some(blob.to_string()));
        assert_eq!(attempt.attribute("messaging.destination.name").as_deref(), Some("a_to_b"));
        assert_eq!(attempt.attribute("messaging.message.body.size"), Some(LARGE.to_string()));
        assert!(attempt.attribute("blobferry.queue_wait_ms").is_some());
        assert!(attempt.attribute("blobferry.attempt").is_some());
    }
    let failed = attempts.iter().find(|attempt| attempt.error().is_some()).unwrap();
    let done = attempts.iter().find(|attempt| attempt.error().is_none()).unwrap();
    assert_eq!(failed.error().as_deref(), Some("destination_unavailable"));
    assert_eq!(failed.attribute("blobferry.outcome").as_deref(), Some("retry"));
    assert_eq!(done.attribute("blobferry.outcome").as_deref(), Some("confirmed"));

    // process -> the call, on both its sides, at the source and at the destination
    for (store, port, method) in [("source", &source.address, FETCH), ("destination", &destination.address, RECEIVE)] {
        let calls = collector.spans(2, "blobferry", method, SpanKind::Client).await;
        for attempt in &attempts {
            let call = calls.iter().find(|call| call.is_child_of(attempt)).unwrap();
            let fails = store == "destination" && attempt.error().is_some();
            assert_eq!(call.error().as_deref(), fails.then_some("INTERNAL"), "{call:?}");
            assert_eq!(call.attribute("server.address").as_deref(), Some("127.0.0.1"));
            assert!(port.ends_with(&format!(":{}", call.attribute("server.port").unwrap())));
            let mut served = collector.all();
            served.retain(|seen| seen.is(store, method, SpanKind::Server) && seen.is_child_of(call));
            if !fails && served.is_empty() {
                served = collector.spans(2, store, method, SpanKind::Server).await;
                served.retain(|seen| seen.is_child_of(call));
            }
            if let Some(served) = served.first() {
                assert_eq!(served.error().as_deref(), fails.then_some("INTERNAL"), "{served:?}");
            }
            assert!(fails || !served.is_empty());
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_blobs_story_is_linked_across_a_restart_and_a_failing_store() {
    a_story_with("link").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_blobs_story_is_one_trace_where_that_is_configured() {
    a_story_with("child").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_caller_that_is_not_recorded_is_not_recorded_here_and_its_context_goes_on() {
    let world = World::new();
    let collector = Collector::start().await;
    let mut source = world.traced_store("source", &collector.url);
    let mut destination = world.traced_store("destination", &collector.url);
    let tracing = format!("otlp_endpoint = \"{}\"", collector.url);
    let mut replicator = world.traced_replicator(&source, &destination, &tracing);
    let (blob, bytes) = blob(1, LARGE);
    // What this call leaves at the source is the sign that spans arrive.
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    announce_traced(&mut receiver(&replicator).await, blob, &bytes, false).await;
    let operator = replication(&replicator).await;
    until("it is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    collector.span("source", RECEIVE, SpanKind::Server).await;
    // Nothing is still on its way then.
    drop(operator);
    for server in [&mut replicator, &mut source, &mut destination] {
        server.signal(Signal::TERM);
        assert!(server.wait().success());
    }
    let of_the_blob = |seen: &Seen| hex(&seen.span.trace_id) == TRACE || seen.span.name.contains("a_to_b");
    let recorded: Vec<Seen> = collector.all().into_iter().filter(of_the_blob).collect();
    assert!(recorded.is_empty(), "{recorded:#?}");
}

/// Has a replicator copy blobs while its collector is of no use, and stop when it is told to.
async fn copies_without_a_collector(otlp: &str) -> String {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let mut replicator = world.traced_replicator(&source, &destination, &format!("otlp_endpoint = \"{otlp}\""));
    replicator.kill();
    let impatient = [("OTEL_EXPORTER_OTLP_TIMEOUT", "200"), ("OTEL_BSP_MAX_QUEUE_SIZE", "8"), AT_ONCE];
    assert!(replicator.ended_starting(&impatient).is_none());
    let mut to = receiver(&replicator).await;
    let mut from = receiver(&source).await;
    for seed in 0..50 {
        let (blob, bytes) = blob(seed, 4_000);
        send(&mut from, blob, &bytes).await.unwrap();
        announce_traced(&mut to, blob, &bytes, true).await;
    }
    let operator = replication(&replicator).await;
    until("all is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    until("it is said", async || replicator.said().contains("spans are lost").then_some(())).await;
    drop((to, operator));
    replicator.signal(Signal::TERM);
    assert!(replicator.wait().success(), "{}", replicator.said());
    replicator.said()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_not_there_stops_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    copies_without_a_collector(&url).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_never_answers_stops_nothing() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            open.push(stream);
        }
    });
    let said = copies_without_a_collector(&url).await;
    assert!(said.lines().filter(|line| line.contains("spans are lost")).count() < 20, "{said}");
}

/// Answers every call with these headers, and a body that goes on for ever or ends at once.
async fn liar(status: &'static str, details: &'static str, endless: bool) -> (String, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = move || async move {
        let body = match endless {
            true => axum::body::Body::from_stream(futures::stream::pending::<Result<bytes::Bytes, std::io::Error>>()),
            false => axum::body::Body::empty(),
        };
        let mut answer = http::Response::builder().header("content-type", "application/grpc");
        if !status.is_empty() {
            answer = answer.header("grpc-status", status).header("grpc-message", "no%0Aspans%1B%5B31m");
        }
        if !details.is_empty() {
            answer = answer.header("grpc-status-details-bin", details);
        }
        answer.body(body).unwrap()
    };
    let router = axum::Router::new().fallback(answer);
    let serving = tonic::transport::Server::builder()
        .add_routes(tonic::service::Routes::from(router))
        .serve_with_incoming(TcpIncoming::from(listener));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { serving.await.unwrap() });
    (url, tasks)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_lies_stops_nothing() {
    for (status, details, endless) in [("13", "!no base64!", false), ("8", "", false), ("", "", true)] {
        let (url, _tasks) = liar(status, details, endless).await;
        let said = copies_without_a_collector(&url).await;
        assert!(!said.contains("[31m") && !said.contains("panicked at src"), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_spans_are_sent_before_the_process_ends() {
    let world = World::new();
    let collector = Collector::start().await;
    let (source, destination) = (world.store("source"), world.store("destination"));
    let tracing = format!("otlp_endpoint = \"{}\"", collector.url);
    let mut replicator = world.traced_replicator(&source, &destination, &tracing);
    replicator.kill();
    // They would leave in an hour.
    assert!(replicator.ended_starting(&[("OTEL_BSP_SCHEDULE_DELAY", "3600000")]).is_none());
    let mut operator = replication(&replicator).await;
    pause(&mut operator).await;
    let (blob, bytes) = blob(1, 1_000);
    announce_traced(&mut receiver(&replicator).await, blob, &bytes, true).await;
    assert!(collector.all().is_empty());
    replicator.signal(Signal::TERM);
    assert!(replicator.wait().success());
    let names: Vec<String> = collector.all().into_iter().map(|seen| seen.span.name).collect();
    assert!(names.contains(&"send a_to_b".to_owned()) && names.contains(&RECEIVE.to_owned()), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_environment_turns_traces_on_and_off_and_what_it_cannot_have_is_said() {
    let world = World::new();
    let collector = Collector::start().await;
    let (source, destination) = (world.store("source"), world.store("destination"));
    let mut replicator = world.traced_replicator(&source, &destination, "");
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url.as_str());
    let (blob, bytes) = blob(1, 1_000);
    for (name, value) in [
        ("OTEL_SDK_DISABLED", "true"),
        ("OTEL_TRACES_EXPORTER", "none"),
        ("OTEL_TRACES_SAMPLER", "always_off"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
    ] {
        replicator.kill();
        assert!(replicator.ended_starting(&[endpoint, (name, value)]).is_none());
        announce_traced(&mut receiver(&replicator).await, blob, &bytes, true).await;
        replicator.signal(Signal::TERM);
        assert!(replicator.wait().success());
        assert!(collector.all().is_empty(), "{name}: {:?}", collector.all());
    }
    assert!(replicator.said().contains("OTEL_EXPORTER_OTLP_PROTOCOL=http/protobuf is not built in"));
    let on = [endpoint, ("OTEL_SERVICE_NAME", "ferry"), ("OTEL_TRACES_SAMPLER", "always_on")];
    assert!(replicator.ended_starting(&on).is_none());
    announce_traced(&mut receiver(&replicator).await, blob, &bytes, false).await;
    collector.span("ferry", RECEIVE, SpanKind::Server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_of_the_log_carry_the_ids_of_a_recorded_span() {
    let world = World::new();
    let collector = Collector::start().await;
    let (source, destination) = (world.store("source"), world.store("destination"));
    let tracing = format!("otlp_endpoint = \"{}\"\ncopy_parent = \"child\"", collector.url);
    let replicator = world.traced_replicator(&source, &destination, &tracing);
    let (blob, bytes) = blob(1, 1_000);
    // The source does not have it.
    announce_traced(&mut receiver(&replicator).await, blob, &bytes, true).await;
    let said = until("the failure is logged", async || {
        let said = replicator.said();
        let line = said.lines().find(|line| line.contains("\"copy failed\""))?.to_owned();
        Some(serde_json::from_str::<serde_json::Value>(&line).unwrap())
    })
    .await;
    assert_eq!(said["trace_id"], TRACE);
    let id = said["span_id"].as_str().unwrap().to_owned();
    let failed =
        until("its span has come", async || collector.all().into_iter().find(|seen| hex(&seen.span.span_id) == id))
            .await;
    assert!(failed.is("blobferry", "process a_to_b", SpanKind::Consumer), "{failed:?}");
    assert_eq!(failed.error().as_deref(), Some("missing_at_source"));
    assert_eq!(failed.attribute("blobferry.outcome").as_deref(), Some("retry"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_sync_is_a_trace_of_its_own() {
    let world = World::new();
    let collector = Collector::start().await;
    let source = world.traced_store("source", &collector.url);
    let destination = world.traced_store("destination", &collector.url);
    let tracing = format!("otlp_endpoint = \"{}\"", collector.url);
    let replicator = world.traced_replicator(&source, &destination, &tracing);
    let (blob, bytes) = blob(1, LARGE);
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    full_sync(&mut replication(&replicator).await).await;
    let sync = collector.span("blobferry", "full sync a_to_b", SpanKind::Internal).await;
    assert!(sync.span.parent_span_id.is_empty() && sync.error().is_none());
    assert_eq!(sync.attribute("blobferry.sync.missing").as_deref(), Some("1"));
    assert_eq!(sync.attribute("blobferry.sync.confirmed").as_deref(), Some("1"));
    assert_eq!(sync.attribute("blobferry.sync.state").as_deref(), Some("completed"));
    let enumerated = "blobferry.v1.BlobReaderService/EnumerateBlobs";
    until("the stores were asked", async || {
        let all = collector.all();
        let calls: Vec<&Seen> = all
            .iter()
            .filter(|seen| seen.is("blobferry", enumerated, SpanKind::Client) && seen.is_child_of(&sync))
            .collect();
        let served = |store: &str| {
            all.iter().any(|seen| {
                seen.is(store, enumerated, SpanKind::Server) && calls.iter().any(|call| seen.is_child_of(call))
            })
        };
        (served("source") && served("destination")).then_some(())
    })
    .await;
    // What it found is copied in a trace of its own.
    let copied = collector.span("blobferry", "process a_to_b", SpanKind::Consumer).await;
    assert_eq!(copied.attribute("blobferry.lane").as_deref(), Some("backfill"));
    assert_ne!(copied.span.trace_id, sync.span.trace_id);
}

/// A collector that nobody here wrote: Python's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pythons_collector_understands_the_story() {
    let Some(python) = tool("BLOBFERRY_PYTHON") else { return };
    let world = World::new();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/python/otlp_receiver.py");
    let out = world.path("spans.jsonl");
    let args = [script, "--listen", "{}", "--out", out.to_str().unwrap()];
    let collector = Server::start(&python, &args, 2, &world.path("collector.log"));
    let source = world.traced_store("source", &collector.url());
    let destination = world.traced_store("destination", &collector.url());
    let tracing = format!("otlp_endpoint = \"{}\"\ncopy_parent = \"child\"", collector.url());
    let replicator = world.traced_replicator(&source, &destination, &tracing);
    let (blob, bytes) = blob(1, LARGE);
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    announce_traced(&mut receiver(&replicator).await, blob, &bytes, true).await;
    let spans = until("the whole story has come", async || {
        let text = std::fs::read_to_string(&out).unwrap_or_default();
        // The last line may not be whole yet.
        let lines: Vec<serde_json::Value> = text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let story: Vec<_> = lines.into_iter().filter(|span| span["trace"] == TRACE).collect();
        (story.len() == 7).then_some(story)
    })
    .await;
    let find = |service: &str, name: &str, kind: SpanKind| {
        let found =
            spans.iter().find(|span| span["service"] == service && span["name"] == name && span["kind"] == kind as i32);
        found.unwrap_or_else(|| panic!("{service} {name} is not in {spans:#?}"))
    };
    let announced = find("blobferry", RECEIVE, SpanKind::Server);
    let sent = find("blobferry", "send a_to_b", SpanKind::Producer);
    let copied = find("blobferry", "process a_to_b", SpanKind::Consumer);
    assert_eq!(announced["parent"], CALLER);
    assert_eq!((&sent["parent"], &copied["parent"]), (&announced["span"], &sent["span"]));
    assert_eq!(copied["attributes"]["messaging.message.id"], blob.to_string());
    for (store, method) in [("source", FETCH), ("destination", RECEIVE)] {
        let call = find("blobferry", method, SpanKind::Client);
        assert_eq!(
            (&call["parent"], &find(store, method, SpanKind::Server)["parent"]),
            (&copied["span"], &call["span"])
        );
    }
}

const FETCH_PACK: &str = "blobferry.v1.BlobReaderService/FetchBlobs";
const RECEIVE_PACK: &str = "blobferry.v1.BlobReceiverService/ReceiveBlobs";

/// A trace of its own for each blob.
fn trace_of(seed: u64) -> String {
    format!("{:032x}", 0xb10b_0000 + seed)
}

async fn packed_stories_with(copy_parent: &str) {
    let world = World::new();
    let collector = Collector::start().await;
    let mut source = world.traced_store("source", &collector.url);
    let mut destination = world.traced_store("destination", &collector.url);
    let tracing = format!("otlp_endpoint = \"{}\"\ncopy_parent = \"{copy_parent}\"", collector.url);
    let mut replicator = world.traced_replicator(&source, &destination, &tracing);
    let mut operator = replication(&replicator).await;
    pause(&mut operator).await;
    let mut to_source = receiver(&source).await;
    // Every other one is recorded by its caller; the first is at no source.
    let is_sampled = |seed: u64| seed.is_multiple_of(2);
    let mut items = Vec::new();
    for seed in 0..40 {
        let (blob, bytes) = blob(seed, 2_000);
        if seed > 0 {
            send(&mut to_source, blob, &bytes).await.unwrap();
        }
        let traceparent = format!("00-{}-{CALLER}-{:02x}", trace_of(seed), u8::from(is_sampled(seed)));
        items.push(pb::EnqueueItem { r#ref: blob.to_string(), traceparent, ..Default::default() });
    }
    let mut request = Request::new(pb::EnqueueBlobsRequest { items, ..Default::default() });
    request.metadata_mut().insert("traceparent", traceparent(false).parse().unwrap());
    operator.enqueue_blobs(request).await.unwrap();
    let sent = collector.spans(20, "blobferry", "send a_to_b", SpanKind::Producer).await;
    replicator.kill();
    replicator.again();
    let mut operator = replication(&replicator).await;
    resume(&mut operator).await;
    // The one that is missing is tried again and again.
    until("the others are copied", async || (queued(&route(&mut operator.clone()).await) == 1).then_some(())).await;
    // At their ends they send what they still have.
    drop((operator, to_source));
    for server in [&mut replicator, &mut source, &mut destination] {
        server.signal(Signal::TERM);
        assert!(server.wait().success());
    }

    let all = collector.all();
    let with = |service: &str, name: &str, kind: SpanKind| -> Vec<&Seen> {
        all.iter().filter(|seen| seen.is(service, name, kind)).collect()
    };
    let attempts = with("blobferry", "process a_to_b", SpanKind::Consumer);
    let batches = with("blobferry", "process pack a_to_b", SpanKind::Consumer);
    assert!(!batches.is_empty(), "{all:#?}");
    for seed in (0..40).filter(|seed| is_sampled(*seed)) {
        let of_blob = blob(seed, 2_000).0.to_string();
        let sent = sent.iter().find(|sent| hex(&sent.span.trace_id) == trace_of(seed)).unwrap();
        assert_eq!(hex(&sent.span.parent_span_id), CALLER);
        assert_eq!(sent.attribute("messaging.message.id").as_ref(), Some(&of_blob));
        let mut mine = attempts.iter().filter(|seen| seen.attribute("messaging.message.id").as_ref() == Some(&of_blob));
        let attempt = mine.next().unwrap_or_else(|| panic!("no attempt at {of_blob} in {all:#?}"));
        match copy_parent {
            "child" => assert!(attempt.is_child_of(sent), "{attempt:?}"),
            _ => assert!(attempt.links_to(sent) && attempt.span.parent_span_id.is_empty(), "{attempt:?}"),
        }
        let batch = batches.iter().find(|batch| batch.links_to(attempt));
        if let Some(batch) = batch {
            assert!(attempt.links_to(batch), "{attempt:?}");
            assert_ne!(batch.span.trace_id, attempt.span.trace_id);
        }
        if seed == 0 {
            assert_eq!(attempt.error().as_deref(), Some("missing_at_source"));
            assert_eq!(attempt.attribute("blobferry.outcome").as_deref(), Some("retry"));
            continue;
        }
        assert_eq!((attempt.error(), mine.count()), (None, 0));
        assert_eq!(attempt.attribute("blobferry.outcome").as_deref(), Some("confirmed"));
        assert_eq!(attempt.attribute("messaging.message.body.size").as_deref(), Some("2000"));
        if batch.is_none() {
            // It went alone.
            continue;
        }
        for (store, method) in [("source", FETCH_PACK), ("destination", RECEIVE_PACK)] {
            let served = with(store, method, SpanKind::Server);
            let of_item = served.iter().find(|seen| seen.is_child_of(attempt));
            let of_item = of_item.unwrap_or_else(|| panic!("{store} has no span of {of_blob} in {all:#?}"));
            assert_eq!(of_item.attribute("blobferry.ref").as_ref(), Some(&of_blob));
            assert_eq!(of_item.attribute("rpc.response.status_code").as_deref(), Some("OK"));
            assert!(served.iter().any(|call| of_item.links_to(call)), "{of_item:?}");
        }
    }
    for batch in &batches {
        assert!(batch.attribute("messaging.batch.message_count").is_some());
        let calls = with("blobferry", FETCH_PACK, SpanKind::Client);
        let call = calls.iter().find(|call| call.is_child_of(batch)).unwrap();
        assert!(with("source", FETCH_PACK, SpanKind::Server).iter().any(|served| served.is_child_of(call)));
    }
    // Of the others, nothing at all.
    let unrecorded = |seen: &Seen| (0..40).any(|seed| !is_sampled(seed) && hex(&seen.span.trace_id) == trace_of(seed));
    assert!(!all.iter().any(unrecorded), "{all:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packed_blobs_have_a_story_each_and_their_batch_links_to_them() {
    packed_stories_with("link").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn packed_blobs_stay_in_the_traces_of_their_callers_where_that_is_configured() {
    packed_stories_with("child").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_demo_sends_the_traces_of_its_servers() {
    let world = World::new();
    let collector = Collector::start().await;
    let files = world.path("files");
    std::fs::create_dir(&files).unwrap();
    for seed in 0..5 {
        std::fs::write(files.join(format!("{seed}")), blob(seed, 5_000).1).unwrap();
    }
    let data = world.path("demo");
    let mut demo = tokio::process::Command::new(program());
    demo.args(["demo", "--exit", "--otlp", &collector.url, "--data"]).arg(&data).arg(&files).kill_on_drop(true);
    let output = tokio::time::timeout(PATIENCE, demo.output()).await.unwrap().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let sent = collector.all().len();
    assert!(said.contains(&format!("traces: {sent} spans sent, 0 spans lost")), "{sent} came; {said}");
    for (service, name, kind) in [
        ("blobferry", "send source_to_destination", SpanKind::Producer),
        ("blobferry", "process source_to_destination", SpanKind::Consumer),
        ("source-store", FETCH_PACK, SpanKind::Server),
        ("destination-store", RECEIVE_PACK, SpanKind::Server),
    ] {
        assert!(collector.all().iter().any(|seen| seen.is(service, name, kind)), "{service} {name}");
    }
}
