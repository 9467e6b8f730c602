//! The process as a server, and its gRPC calls; also of a store.

use crate::metrics::{CallMetrics, MetricKind, Text};
use crate::status::ReplicatorState;
use crate::store::code_name;
use crate::telemetry::{SpanTally, lost_log_lines};
use tonic::Code;

const STATES: [&str; 5] = ["ok", "attention", "degraded", "not_accepting", "draining"];

const fn name(state: ReplicatorState) -> &'static str {
    STATES[match state {
        ReplicatorState::Ok => 0,
        ReplicatorState::Attention => 1,
        ReplicatorState::Degraded => 2,
        ReplicatorState::NotAccepting => 3,
        ReplicatorState::Draining => 4,
    }]
}

pub(super) fn write_state(text: &mut Text, state: ReplicatorState) {
    let mut states =
        text.family("blobferry_state", MetricKind::Gauge, "1 for the state that Status tells of the replicator.");
    states.states(&[], "state", STATES, name(state));
}

pub(super) fn write(text: &mut Text, ready: bool, calls: &CallMetrics, spans: SpanTally) {
    let mut info = text.family("blobferry_build_info", MetricKind::Gauge, "Always 1; the label tells the version.");
    info.sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
    let help = "Whether what is sent can be made durable, as /readyz says.";
    text.family("blobferry_ready", MetricKind::Gauge, help).sample(&[], ready);

    let mut requests = text.family("blobferry_grpc_requests", MetricKind::Counter, "gRPC calls that have ended.");
    for (method, calls) in calls.called() {
        for (code, count) in calls.ended() {
            requests.sample(&[("method", method), ("code", code_name(Code::from_i32(code)))], count);
        }
    }
    text.family("blobferry_grpc_connections", MetricKind::Gauge, "Connections to the gRPC port.")
        .sample(&[], calls.connections());
    let help = "Connections to the gRPC port that were refused: there were as many as are served at a time.";
    text.family("blobferry_grpc_refused_connections", MetricKind::Counter, help).sample(&[], calls.refusals());
    let mut in_flight = text.family("blobferry_grpc_requests_in_flight", MetricKind::Gauge, "gRPC calls in progress.");
    for (method, calls) in calls.called() {
        in_flight.sample(&[("method", method)], calls.in_flight());
    }
    let help = "How long whole gRPC calls took, streams to their end.";
    let mut seconds = text.family("blobferry_grpc_request_duration_seconds", MetricKind::Histogram, help);
    for (method, calls) in calls.called() {
        seconds.histogram(&[("method", method)], &calls.seconds().read());
    }

    text.family("blobferry_log_lines_lost", MetricKind::Counter, "Lines of the log that standard error did not take.")
        .sample(&[], lost_log_lines());

    let SpanTally { exported, dropped_queue_full, dropped_export_failed } = spans;
    text.family("blobferry_spans_exported", MetricKind::Counter, "Spans that the collector took.")
        .sample(&[], exported);
    let mut dropped = text.family("blobferry_spans_dropped", MetricKind::Counter, "Spans that were lost, by why.");
    dropped.sample(&[("reason", "queue_full")], dropped_queue_full);
    dropped.sample(&[("reason", "export_failed")], dropped_export_failed);
}
