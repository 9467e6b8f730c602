//! The `send` spans of an announcement: one for each entry that is recorded, and none for the others.

use super::{Announcement, Route};
use crate::fault::FaultKind;
use crate::queue::{Pushed, QueueError};
use crate::telemetry::{Parent, Span, TraceContext, Tracer};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;

/// The spans of one push.
#[derive(Default)]
pub(super) struct Sends {
    // Which of the push's entries each is of.
    spans: Vec<(usize, Span)>,
    entries: usize,
}

impl Sends {
    /// Begins the next entry's span, and gives the context that is to be stored with the entry.
    pub(super) fn begin(&mut self, tracer: &Tracer, route: &Route, item: &Announcement) -> Option<TraceContext> {
        let entry = self.entries;
        self.entries += 1;
        // Whoever calls without a context was given one by the call's own span, where that is recorded.
        let trace = item.trace.as_ref()?;
        if !trace.is_sampled() {
            return Some(trace.clone());
        }
        let span = tracer.start(SpanKind::Producer, Parent::Sent(trace), || format!("send {}", route.name).into());
        let Some(context) = span.context() else { return Some(trace.clone()) };
        span.set(|| {
            let mut attributes = vec![
                KeyValue::new("messaging.system", "blobferry"),
                KeyValue::new("messaging.operation.name", "send"),
                KeyValue::new("messaging.operation.type", "send"),
                KeyValue::new("messaging.destination.name", route.name.to_string()),
                KeyValue::new("messaging.message.id", item.blob.to_string()),
            ];
            if let Some(size) = item.size {
                attributes.push(KeyValue::new("messaging.message.body.size", i64::try_from(size).unwrap_or(i64::MAX)));
            }
            attributes
        });
        self.spans.push((entry, span));
        Some(context)
    }

    /// Ends all of them with what the push did.
    pub(super) fn end(self, pushed: &Result<Vec<Pushed>, QueueError>) {
        for (entry, span) in &self.spans {
            match pushed {
                Ok(pushed) => {
                    let outcome = pushed.get(*entry).map_or("unknown", name);
                    span.set(|| [KeyValue::new("blobferry.push.outcome", outcome)]);
                }
                Err(error) => span.fail(FaultKind::QueueWriteFailed.as_str(), || error.to_string()),
            }
        }
    }
}

const fn name(pushed: &Pushed) -> &'static str {
    match pushed {
        Pushed::Added => "added",
        Pushed::AlreadyQueued => "already_queued",
        Pushed::Hastened => "hastened",
        Pushed::Revived => "revived",
        Pushed::SuccessorQueued => "successor_queued",
    }
}
