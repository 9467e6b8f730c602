//! Begins spans; nothing at all where nobody records them.
//!
//! A [`Tracer`] is passed to whoever begins spans; there is no global one. Most of a service that samples 1% does what one
//! without traces does.

use super::exported::{Exported, SpanTally};
use super::span::{Span, TraceContext};
use crate::config::CopyParent;
use opentelemetry::Context;
use opentelemetry::trace::{Link, SpanBuilder, SpanKind, TraceContextExt as _, Tracer as _};
use opentelemetry_sdk::trace::SdkTracer;
use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

/// Begins spans, or does nothing. Clones are the same tracer.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

pub(super) struct On {
    pub(super) sdk: SdkTracer,
    pub(super) copy_parent: CopyParent,
    /// Whether contexts are taken from the metadata of calls, and put there.
    pub(super) propagates: bool,
    /// Whether a caller that does not record decides for us, too.
    pub(super) parent_decides: bool,
    pub(super) exported: Arc<Exported>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_on() { "Tracer(on)" } else { "Tracer(off)" })
    }
}

/// Where a span belongs.
#[derive(Clone, Copy, Debug)]
pub enum Parent<'a> {
    /// A trace of its own, which the sampler may not want.
    None,
    /// Whoever sent this context.
    Sent(&'a TraceContext),
    /// A span of this process.
    Span(&'a Span),
}

impl Tracer {
    pub(super) fn on(on: On) -> Self {
        Self(Some(Arc::new(on)))
    }

    /// A tracer that does nothing.
    pub fn off() -> Self {
        Self::default()
    }

    /// Whether spans may be recorded.
    pub fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// How the span of a copy is joined to that of its announcement.
    pub fn copy_parent(&self) -> CopyParent {
        self.0.as_ref().map_or(CopyParent::default(), |on| on.copy_parent)
    }

    /// Whether contexts are taken from the metadata of calls.
    pub fn propagates(&self) -> bool {
        self.0.as_ref().is_none_or(|on| on.propagates)
    }

    /// What became of the spans so far.
    pub fn tally(&self) -> SpanTally {
        self.0.as_ref().map(|on| on.exported.tally()).unwrap_or_default()
    }

    /// Begins a span. Its name is asked for only where it may be recorded.
    pub fn start(&self, kind: SpanKind, parent: Parent<'_>, name: impl FnOnce() -> Cow<'static, str>) -> Span {
        let Some(on) = &self.0 else { return Span::default() };
        let cx = match parent {
            Parent::None => Context::new(),
            Parent::Sent(context) if on.parent_decides && !context.is_sampled() => return Span::default(),
            Parent::Sent(context) => match context.span_context() {
                Some(remote) => Context::new().with_remote_span_context(remote),
                None => Context::new(),
            },
            Parent::Span(Span(Some(cx))) => cx.clone(),
            Parent::Span(Span(None)) => return Span::default(),
        };
        self.build(on, kind, name(), Vec::new(), &cx)
    }

    /// Begins a trace that has to do with others: it is recorded where one of them is, and nothing else is asked.
    pub fn start_linked<'a>(
        &self,
        kind: SpanKind,
        links: impl IntoIterator<Item = &'a TraceContext>,
        name: impl FnOnce() -> Cow<'static, str>,
    ) -> Span {
        let Some(on) = &self.0 else { return Span::default() };
        let sampled = links.into_iter().filter(|context| context.is_sampled());
        let links: Vec<Link> =
            sampled.filter_map(TraceContext::span_context).map(|context| Link::new(context, Vec::new(), 0)).collect();
        if links.is_empty() {
            return Span::default();
        }
        self.build(on, kind, name(), links, &Context::new())
    }

    /// The span of a call to a peer that is made within this context, and what is to go with it.
    pub(super) fn call(&self, cx: &Context, name: impl FnOnce() -> Cow<'static, str>) -> (Span, Option<TraceContext>) {
        let Some(on) = &self.0 else { return (Span::default(), None) };
        let span = self.build(on, SpanKind::Client, name(), Vec::new(), cx);
        let context = if on.propagates { span.context() } else { None };
        (span, context)
    }

    fn build(&self, on: &On, kind: SpanKind, name: Cow<'static, str>, links: Vec<Link>, cx: &Context) -> Span {
        let mut builder = SpanBuilder::from_name(name).with_kind(kind);
        if !links.is_empty() {
            builder = builder.with_links(links);
        }
        let span = on.sdk.build_with_context(builder, cx);
        if !opentelemetry::trace::Span::is_recording(&span) {
            return Span::default();
        }
        // With the tracer, so that calls that are made within the span are recorded by the same.
        Span(Some(Context::new().with_value(self.clone()).with_span(span)))
    }
}

#[cfg(test)]
mod tests {
    use super::super::exported::Exported;
    use super::super::otlp::OrLinked;
    use super::super::span::{calling, current_ids, passing_on};
    use super::{On, Parent, Tracer};
    use crate::clock::ManualClock;
    use crate::config::CopyParent;
    use crate::telemetry::TraceContext;
    use opentelemetry::trace::{SpanKind, TracerProvider as _};
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider, Span as SdkSpan, SpanData, SpanProcessor};
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::time::Duration;

    #[derive(Clone, Debug, Default)]
    struct Ended(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Ended {
        fn on_start(&self, _span: &mut SdkSpan, _cx: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _timeout: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    fn tracer(root: Sampler) -> (Tracer, Ended) {
        let ended = Ended::default();
        let provider = SdkTracerProvider::builder()
            .with_sampler(OrLinked { inner: Sampler::ParentBased(Box::new(root)), follows: true })
            .with_span_processor(ended.clone())
            .build();
        let on = On {
            sdk: provider.tracer("test"),
            copy_parent: CopyParent::Link,
            propagates: true,
            parent_decides: true,
            exported: Exported::new(Arc::new(ManualClock::default())),
        };
        (Tracer::on(on), ended)
    }

    fn sent(sampled: bool) -> TraceContext {
        let traceparent = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{:02x}", u8::from(sampled));
        TraceContext { traceparent, tracestate: "vendor=1".to_owned() }
    }

    #[test]
    fn nothing_is_made_where_nobody_records() {
        let (tracer, ended) = tracer(Sampler::AlwaysOff);
        for tracer in [tracer, Tracer::off()] {
            let span = tracer.start(SpanKind::Server, Parent::Sent(&sent(false)), || panic!("no name is needed"));
            span.set(|| -> [KeyValue; 0] { panic!("no attribute is needed") });
            span.fail("x", || panic!("no message is needed"));
            assert!(!span.is_recorded() && span.context().is_none());
            let child = tracer.start(SpanKind::Internal, Parent::Span(&span), || panic!("no name is needed"));
            assert!(!child.is_recorded());
            assert!(!tracer.start_linked(SpanKind::Consumer, [&sent(false)], || panic!("no name")).is_recorded());
            assert!(!tracer.start(SpanKind::Internal, Parent::None, || "a root".into()).is_recorded());
        }
        assert!(ended.0.lock().is_empty());
    }

    #[tokio::test]
    async fn whoever_is_recorded_is_a_parent_a_link_and_the_context_of_calls() {
        // No trace begins here by itself: what is recorded is, because others are.
        let (tracer, ended) = tracer(Sampler::AlwaysOff);
        let caller = sent(true);
        let server = tracer.start(SpanKind::Server, Parent::Sent(&caller), || "serve".into());
        let context = server.context().unwrap();
        assert_eq!(context.traceparent[3..35], caller.traceparent[3..35]);
        assert_eq!(context.tracestate, caller.tracestate);
        let linked = tracer.start_linked(SpanKind::Consumer, [&sent(false), &context], || "process".into());
        let call = linked.within(async {
            assert_eq!(
                current_ids().map(|(trace, _)| trace.to_string()),
                linked.context().map(|it| it.traceparent[3..35].to_owned())
            );
            calling(|| "call".into())
        });
        let (call, goes_along) = call.await;
        assert_eq!(call.context(), goes_along);
        call.fail("UNAVAILABLE", || "it is gone".to_owned());
        drop((call, linked, server));
        assert!(current_ids().is_none());
        let ended = ended.0.lock();
        let names: Vec<_> = ended.iter().map(|span| span.name.to_string()).collect();
        assert_eq!(names, ["call", "process", "serve"]);
        assert_eq!(ended[2].parent_span_id.to_string(), caller.traceparent[36..52]);
        assert_eq!(ended[1].parent_span_id, opentelemetry::trace::SpanId::INVALID);
        assert_eq!(ended[1].links.links.len(), 1);
        assert_eq!(ended[1].links.links[0].span_context.span_id(), ended[2].span_context.span_id());
        assert_eq!(ended[0].parent_span_id, ended[1].span_context.span_id());
        assert!(ended[0].attributes.contains(&KeyValue::new("error.type", "UNAVAILABLE")));
    }

    #[tokio::test]
    async fn a_context_that_is_not_recorded_goes_on_as_it_came() {
        for sampled in [true, false] {
            let (span, goes_along) = passing_on(Some(&sent(sampled)), async { calling(|| "call".into()) }).await;
            assert!(!span.is_recorded());
            assert_eq!(goes_along, Some(sent(sampled)));
        }
        let (span, goes_along) = passing_on(None, async { calling(|| "call".into()) }).await;
        assert!(!span.is_recorded() && goes_along.is_none());
    }
}
