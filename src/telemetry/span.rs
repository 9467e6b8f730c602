//! A span as code holds it, and the trace context of a caller.
//!
//! A [`Span`] that is not recorded is empty: it costs no allocation, its attributes are not even built, and it hands no
//! context on. What happens within a recorded one finds it as OpenTelemetry's current context: calls to peers become its
//! children (see [`calling`]), and lines of the log carry its ids. The context is attached to a future for as long as it is
//! polled, so it does not pass to other tasks by itself.

#[cfg(feature = "server")]
use super::tracer::Tracer;
use futures::future::Either;
use opentelemetry::trace::{
    FutureExt as _, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{Context, KeyValue};
use std::borrow::Cow;
use std::fmt;
use std::future::Future;
use std::str::FromStr as _;

/// A caller's W3C trace context, as it is stored with an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: String,
    /// The `tracestate` header; may be empty.
    pub tracestate: String,
}

/// A span that is recorded, or none. It ends when it is dropped, and in an error only where [`fail`](Self::fail) said so.
#[derive(Default)]
pub struct Span(pub(super) Option<Context>);

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_recorded() { "Span(recorded)" } else { "Span(none)" })
    }
}

impl Span {
    /// Whether anything is recorded.
    pub fn is_recorded(&self) -> bool {
        self.0.is_some()
    }

    /// Adds attributes, which are made only where they are recorded.
    pub fn set<I: IntoIterator<Item = KeyValue>>(&self, attributes: impl FnOnce() -> I) {
        if let Some(cx) = &self.0 {
            cx.span().set_attributes(attributes());
        }
    }

    /// Says that it ended in an error: of this kind, as `error.type` has it.
    pub fn fail(&self, kind: &'static str, message: impl FnOnce() -> String) {
        if let Some(cx) = &self.0 {
            cx.span().set_attribute(KeyValue::new("error.type", kind));
            cx.span().set_status(Status::error(message()));
        }
    }

    /// Links another trace to this one, if that is recorded.
    pub fn link(&self, other: &TraceContext) {
        if let (Some(cx), true) = (&self.0, other.is_sampled())
            && let Some(context) = other.span_context()
        {
            cx.span().add_link(context, Vec::new());
        }
    }

    /// Its context, to be sent or stored; `None` where it is not recorded.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|cx| TraceContext::of(cx.span().span_context()))
    }

    /// Runs a future within this span.
    pub fn within<F: Future>(&self, future: F) -> impl Future<Output = F::Output> + use<F> {
        match &self.0 {
            Some(cx) => Either::Left(future.with_context(cx.clone())),
            None => Either::Right(future),
        }
    }

    /// Runs a function within this span: what it logs carries the span's ids.
    pub fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        let _guard = self.0.as_ref().map(|cx| cx.clone().attach());
        work()
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(cx) = &self.0 {
            cx.span().end();
        }
    }
}

/// Runs a future so that calls to peers within it pass this context on, where no span of ours is recorded that would.
pub(crate) fn passing_on<F: Future>(
    context: Option<&TraceContext>,
    future: F,
) -> impl Future<Output = F::Output> + use<F> {
    match context.and_then(TraceContext::span_context) {
        Some(remote) => Either::Left(future.with_context(Context::new().with_remote_span_context(remote))),
        None => Either::Right(future),
    }
}

/// A call to a peer that is being made now: its own span, where whoever makes it is recorded, and the context that is to go
/// with it.
pub(crate) fn calling(name: impl FnOnce() -> Cow<'static, str>) -> (Span, Option<TraceContext>) {
    let Some(cx) = Context::map_current(|cx| cx.has_active_span().then(|| cx.clone())) else {
        return (Span::default(), None);
    };
    #[cfg(feature = "server")]
    if let Some(tracer) = cx.get::<Tracer>() {
        return tracer.call(&cx, name);
    }
    drop(name);
    (Span::default(), Some(TraceContext::of(cx.span().span_context())))
}

/// The ids of the trace and the span that are recorded now, for lines of the log.
pub(super) fn current_ids() -> Option<(TraceId, SpanId)> {
    Context::map_current(|cx| {
        if !cx.has_active_span() {
            return None;
        }
        let span = cx.span();
        let context = span.span_context();
        context.is_sampled().then(|| (context.trace_id(), context.span_id()))
    })
}

impl TraceContext {
    /// Whether the sender records its trace.
    pub fn is_sampled(&self) -> bool {
        Self::is_sampled_text(&self.traceparent)
    }

    /// Whether a `traceparent` says that its sender records, if it is one at all; to tell the many that need no look.
    pub(crate) fn is_sampled_text(traceparent: &str) -> bool {
        let flags = traceparent.get(53..55).and_then(|flags| u8::from_str_radix(flags, 16).ok());
        flags.is_some_and(|flags| flags & 1 == 1)
    }

    pub(super) fn span_context(&self) -> Option<SpanContext> {
        let trace = TraceId::from_hex(self.traceparent.get(3..35)?).ok()?;
        let span = SpanId::from_hex(self.traceparent.get(36..52)?).ok()?;
        let flags = if self.is_sampled() { TraceFlags::SAMPLED } else { TraceFlags::NOT_SAMPLED };
        // What cannot be read is left out, as the standard wants it.
        let state = TraceState::from_str(&self.tracestate).unwrap_or_default();
        let context = SpanContext::new(trace, span, flags, true, state);
        context.is_valid().then_some(context)
    }

    fn of(context: &SpanContext) -> Self {
        let (trace, span) = (context.trace_id(), context.span_id());
        let flags = u8::from(context.is_sampled());
        Self { traceparent: format!("00-{trace}-{span}-{flags:02x}"), tracestate: context.trace_state().header() }
    }
}
