//! The span of an attempt, `process ROUTE`, from the start of its copy until what came of it is settled.
//!
//! It is joined to the span in which its entry was queued, whose context is stored with the entry: by a link, or as its child
//! where `tracing.copy_parent` says so. It is recorded where that was. An entry without a context was announced when
//! nothing was recorded, and is not recorded later either; one that a sync found is for the sampler to decide.

use super::RouteSpec;
use crate::config::CopyParent;
use crate::copy::{Copied, CopyError};
use crate::queue::{Entry, Lane, Outcome};
use crate::telemetry::{Parent, Span, TraceContext, Tracer, passing_on};
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

/// Runs what is done for an entry so that its calls to peers carry on the trace: that of its span, or, where that is not
/// recorded, the one that the entry came with.
pub(super) fn carrying<F: Future>(
    span: &Span,
    trace: Option<&TraceContext>,
    work: F,
) -> impl Future<Output = F::Output> + use<F> {
    if span.is_recorded() { Either::Left(span.within(work)) } else { Either::Right(passing_on(trace, work)) }
}

/// Says how an attempt at this entry went. `outcome` is what it is settled with; absent, the claim is released, and nobody is
/// charged.
pub(super) fn end(span: &Span, entry: &Entry, result: &Result<Copied, CopyError>, outcome: Option<&Outcome>) {
    let outcome = match outcome {
        Some(Outcome::Confirmed { copied: true, .. }) => "confirmed",
        Some(Outcome::Confirmed { copied: false, .. }) => "already_there",
        Some(Outcome::Retry { .. }) => "retry",
        Some(Outcome::Park { .. }) => "parked",
        Some(Outcome::Discard) => "discarded",
        None => "released",
    };
    span.set(|| {
        // Each name once: what is known now replaces nothing.
        let size = result.as_ref().ok().map(|copied| copied.size).or(entry.size);
        let size = size.map(|size| i64::try_from(size).unwrap_or(i64::MAX));
        let size = size.map(|size| KeyValue::new("messaging.message.body.size", size));
        size.into_iter().chain([KeyValue::new("blobferry.outcome", outcome)])
    });
    if let Err(error) = result {
        span.fail(error.kind.as_str(), || error.to_string());
    }
}
