//! The span of an attempt, `process ROUTE`, from the start of its copy until what came of it is settled.
//!
//! It is joined to the span in which its entry was queued, whose context is stored with the entry: by a link, or as its child
//! where `tracing.copy_parent` says so. It is recorded where that was. An entry without a context was announced when
//! nothing was recorded, and is not recorded later either; one that a sync found is for the sampler to decide.
//!
//! A pack has a span for each of its entries that is recorded, and one, `process pack ROUTE`, for itself: a trace of its own,
//! since it belongs to none of theirs more than to another. It and the entries' spans link to each other. The calls to the
//! peers are its children; what the peers do for a single blob is in that blob's trace, whose context goes with the blob.

use super::route::RouteSpec;
use crate::config::CopyParent;
use crate::copy::{Copied, PackEnd};
use crate::queue::{Entry, Lane};
use crate::telemetry::{Parent, Span, TraceContext, Tracer, passing_on};
use crate::worker::scheduler::{Conclusion, Fate};
use futures::future::Either;
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use std::future::Future;
use std::time::Duration;

/// Begins the span of an attempt.
pub(super) fn begin(tracer: &Tracer, spec: &RouteSpec, entry: &Entry, queue_wait: Duration) -> Span {
    if !tracer.is_on() {
        return Span::default();
    }
    let name = || format!("process {}", spec.name).into();
    let span = match (&entry.trace, tracer.copy_parent()) {
        (Some(trace), CopyParent::Link) => tracer.start_linked(SpanKind::Consumer, [trace], name),
        (Some(trace), CopyParent::Child) => tracer.start(SpanKind::Consumer, Parent::Sent(trace), name),
        (None, _) if entry.lane == Lane::Fresh => Span::default(),
        (None, _) => tracer.start(SpanKind::Consumer, Parent::None, name),
    };
    span.set(|| {
        let mut attributes = vec![
            KeyValue::new("messaging.system", "blobferry"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.name", spec.name.to_string()),
            KeyValue::new("messaging.message.id", entry.blob.to_string()),
            KeyValue::new("blobferry.source", spec.from.name().to_string()),
            KeyValue::new("blobferry.destination", spec.to.name().to_string()),
            KeyValue::new("blobferry.lane", entry.lane.as_str()),
            KeyValue::new("blobferry.attempt", i64::from(entry.attempts) + 1),
            KeyValue::new("blobferry.queue_wait_ms", i64::try_from(queue_wait.as_millis()).unwrap_or(i64::MAX)),
        ];
        if entry.repair {
            attributes.push(KeyValue::new("blobferry.repair", true));
        }
        attributes
    });
    span
}

/// Begins the span of a pack of so many blobs, if any of its entries' spans is recorded.
pub(super) fn begin_pack(tracer: &Tracer, spec: &RouteSpec, entries: &[Span], blobs: usize) -> Span {
    let contexts: Vec<TraceContext> = entries.iter().filter_map(Span::context).collect();
    let pack = tracer.start_linked(SpanKind::Consumer, &contexts, || format!("process pack {}", spec.name).into());
    pack.set(|| {
        [
            KeyValue::new("messaging.system", "blobferry"),
            KeyValue::new("messaging.operation.name", "process"),
            KeyValue::new("messaging.operation.type", "process"),
            KeyValue::new("messaging.destination.name", spec.name.to_string()),
            KeyValue::new("messaging.batch.message_count", i64::try_from(blobs).unwrap_or(i64::MAX)),
            KeyValue::new("blobferry.source", spec.from.name().to_string()),
            KeyValue::new("blobferry.destination", spec.to.name().to_string()),
        ]
    });
    if let Some(context) = pack.context() {
        entries.iter().for_each(|entry| entry.link(&context));
    }
    pack
}

/// Says that an entry of a pack is to be copied on its own.
pub(super) fn end_alone(span: &Span) {
    span.set(|| [KeyValue::new("blobferry.outcome", "alone")]);
}

/// Says how a pack went: in error where nothing of it came through, with the first of its faults.
pub(super) fn end_pack(pack: &Span, ends: &[PackEnd]) {
    let errors = || {
        ends.iter().filter_map(|end| {
            if let PackEnd::Ended(Err(error)) | PackEnd::Unanswered(error) = end { Some(error) } else { None }
        })
    };
    pack.set(|| [KeyValue::new("blobferry.failed", i64::try_from(errors().count()).unwrap_or(i64::MAX))]);
    if let Some(error) = errors().next().filter(|_| errors().count() == ends.len()) {
        pack.fail(error.kind.as_str(), || error.to_string());
    }
}

/// Runs what is done for an entry so that its calls to peers carry on the trace: that of its span, or, where that is not
/// recorded, the one that the entry came with.
pub(super) fn carrying<F: Future>(
    span: &Span,
    trace: Option<&TraceContext>,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    if span.is_recorded() { Either::Left(span.within(work)) } else { Either::Right(passing_on(trace, work)) }
}

/// Says how an attempt went, and what became of its entry.
pub(super) fn end(span: &Span, conclusion: &Conclusion) {
    let Conclusion { size, result, fate, .. } = conclusion;
    let outcome = match (fate, result) {
        (Fate::Confirmed, Ok(Copied { copied: false, .. })) => "already_there",
        (Fate::Confirmed, _) => "confirmed",
        (Fate::Retried, _) => "retry",
        (Fate::Parked, _) => "parked",
        (Fate::Discarded, _) => "discarded",
        (Fate::Kept, _) => "released",
    };
    span.set(|| {
        // Each name once: what is known now replaces nothing.
        let size = result.as_ref().ok().map(|copied| copied.size).or(*size);
        let size = size.map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        let size = size.map(|size| KeyValue::new("messaging.message.body.size", size));
        size.into_iter().chain([KeyValue::new("blobferry.outcome", outcome)])
    });
    if let Err(error) = result {
        span.fail(error.kind.as_str(), || error.to_string());
    }
}
