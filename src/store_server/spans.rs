//! The spans of blobs that come or go packed. A call with many blobs belongs to the trace of none of them, so each that its
//! sender traces has a span of its own, linked to the call's.

use crate::grpc::{blob_error, is_servers_fault, item_trace};
use crate::store::code_name;
use crate::telemetry::{Parent, Span, TraceContext, Tracer};
use opentelemetry::KeyValue;
use opentelemetry::trace::SpanKind;
use tonic::{Code, Status};

/// The spans of one message's blobs, in their order; none at all where none is traced.
#[derive(Default)]
pub(super) struct ItemSpans(Vec<Span>);

/// What is known of a blob before it is looked at.
pub(super) struct Item<'a> {
    pub(super) r#ref: &'a str,
    pub(super) size: Option<usize>,
    pub(super) traceparent: &'a str,
    pub(super) tracestate: &'a str,
}

impl ItemSpans {
    pub(super) fn begin<'a>(
        tracer: &Tracer,
        method: &'static str,
        call: Option<&TraceContext>,
        items: impl Iterator<Item = Item<'a>>,
    ) -> Self {
        if !tracer.is_on() {
            return Self::default();
        }
        let spans = items.map(|Item { r#ref, size, traceparent, tracestate }| {
            if !TraceContext::is_sampled_text(traceparent) {
                return Span::default();
            }
            let Some(trace) = item_trace(traceparent, tracestate) else { return Span::default() };
            let span = tracer.start(SpanKind::Server, Parent::Sent(&trace), || method.into());
            span.set(|| {
                let mut attributes = vec![
                    KeyValue::new("rpc.system.name", "grpc"),
                    KeyValue::new("rpc.method", method),
                    // What is no ref is not repeated: it may be anything.
                    KeyValue::new("blobferry.ref", if is_plain(r#ref) { r#ref.to_owned() } else { String::new() }),
                ];
                if let Some(size) = size {
                    attributes.push(KeyValue::new("blobferry.size_bytes", i64::try_from(size).unwrap_or(i64::MAX)));
                }
                attributes
            });
            if let Some(call) = call {
                span.link(call);
            }
            span
        });
        let spans: Vec<Span> = spans.collect();
        Self(if spans.iter().any(Span::is_recorded) { spans } else { Vec::new() })
    }

    /// Ends the spans with what became of their blobs.
    pub(super) fn end<T>(self, results: &[Result<T, Status>]) {
        for (span, result) in self.0.iter().zip(results) {
            let code = result.as_ref().map_or_else(Status::code, |_| Code::Ok);
            span.set(|| [KeyValue::new("rpc.response.status_code", code_name(code))]);
            if let Err(status) = result
                && is_servers_fault(code)
            {
                span.fail(code_name(code), || blob_error(status).message);
            }
        }
    }
}

fn is_plain(text: &str) -> bool {
    text.len() <= 256 && text.bytes().all(|byte| byte.is_ascii_graphic())
}
