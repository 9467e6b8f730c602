//! The span of a full sync: a trace of its own, with what came of it. The enumerations of both stores are its children; the
//! copies of what it found are not, since there may be millions of them.

use super::record::{SyncRecord, SyncState};
use crate::telemetry::{Parent, Span, Tracer};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

/// Begins it.
pub(super) fn begin_span(tracer: &Tracer, record: &SyncRecord) -> Span {
    let span = tracer.start(SpanKind::Internal, Parent::None, || format!("full sync {}", record.route).into());
    span.set(|| {
        [
            KeyValue::new("blobferry.route", record.route.clone()),
            KeyValue::new("blobferry.sync.id", record.id.to_string()),
            KeyValue::new("blobferry.sync.mode", record.mode.as_str()),
            KeyValue::new("blobferry.sync.prefix", record.prefix.clone()),
        ]
    });
    span
}

/// Says how it ended.
pub(super) fn end_span(span: &Span, record: &SyncRecord) {
    let count = |name: &'static str, count: u64| KeyValue::new(name, i64::try_from(count).unwrap_or(i64::MAX));
    span.set(|| {
        [
            KeyValue::new("blobferry.sync.state", record.state.as_str()),
            count("blobferry.sync.compared", record.counts.source_blobs),
            count("blobferry.sync.missing", record.counts.missing),
            count("blobferry.sync.differing", record.counts.differing),
            count("blobferry.sync.confirmed", record.tally.confirmed),
            count("blobferry.sync.parked", record.tally.parked),
            count("blobferry.sync.discarded", record.tally.discarded),
        ]
    });
    if let Some(failure) = &record.failure {
        span.fail(failure.cause(), || failure.message.clone());
    } else if record.state == SyncState::CompletedWithFailures {
        span.fail(record.state.as_str(), || "not all that it found could be copied".to_owned());
    }
}
