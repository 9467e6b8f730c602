//! What becomes of finished spans: they wait in a bounded queue, go out in batches from a thread of their own, and are
//! counted where they are lost. Whatever the collector does, nobody who ends a span ever waits.
//!
//! The SDK's batch processor does the work and keeps to itself what it drops. So the queue's bound is applied before it, and
//! its exporter is wrapped, with a deadline over the whole of an export: the SDK's own ends at the answer's headers.

use super::log::one_line;
use super::storm::{EventPace, Storm};
use crate::clock::Clock;
use futures::FutureExt as _;
use futures::future::{Either, select};
use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{BatchSpanProcessor, Span, SpanData, SpanExporter, SpanProcessor};
use parking_lot::Mutex;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

/// How often it is said that spans are lost, at most.
const PACE: EventPace = EventPace { burst: 1, every: Duration::from_secs(30) };

/// How many spans became what, since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SpanTally {
    /// The collector took them.
    pub exported: u64,
    /// Dropped, because too many were waiting for the collector.
    pub dropped_queue_full: u64,
    /// Dropped, because the collector did not take them.
    pub dropped_export_failed: u64,
}

/// The counts, shared by all that make them.
pub(super) struct Exported {
    clock: Arc<dyn Clock>,
    waiting: AtomicUsize,
    exported: AtomicU64,
    queue_full: AtomicU64,
    failed: AtomicU64,
    storm: Mutex<Storm>,
}

impl std::fmt::Debug for Exported {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.tally().fmt(f)
    }
}

impl Exported {
    pub(super) fn new(clock: Arc<dyn Clock>) -> Arc<Self> {
        let storm = Mutex::new(Storm::new(PACE));
        let (exported, queue_full, failed) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        Arc::new(Self { clock, waiting: AtomicUsize::new(0), exported, queue_full, failed, storm })
    }

    pub(super) fn tally(&self) -> SpanTally {
        SpanTally {
            exported: self.exported.load(Ordering::Relaxed),
            dropped_queue_full: self.queue_full.load(Ordering::Relaxed),
            dropped_export_failed: self.failed.load(Ordering::Relaxed),
        }
    }

    fn lost(&self, why: &str) {
        let now = self.clock.monotonic();
        // Whoever finds it held comes a moment after one that says the same.
        let Some(mut storm) = self.storm.try_lock() else { return };
        if storm.admit(now).is_some() {
            drop(storm);
            let SpanTally { exported, dropped_queue_full, dropped_export_failed } = self.tally();
            tracing::warn!(why, dropped_queue_full, dropped_export_failed, exported, "spans are lost");
        }
    }
}

/// The batch processor, behind a queue that is counted.
#[derive(Debug)]
pub(super) struct Counted {
    next: BatchSpanProcessor,
    exported: Arc<Exported>,
    most: usize,
}

impl Counted {
    /// `most` spans wait at a time; the processor's own queue has room for as many.
    pub(super) fn new(next: BatchSpanProcessor, exported: Arc<Exported>, most: usize) -> Self {
        Self { next, exported, most }
    }
}

impl SpanProcessor for Counted {
    fn on_start(&self, _span: &mut Span, _cx: &Context) {}

    fn on_end(&self, span: SpanData) {
        let room = self
            .exported
            .waiting
            .fetch_update(Ordering::AcqRel, Ordering::Relaxed, |waiting| (waiting < self.most).then_some(waiting + 1));
        if room.is_ok() {
            self.next.on_end(span);
        } else {
            self.exported.queue_full.fetch_add(1, Ordering::Relaxed);
            self.exported.lost("too many wait for the collector");
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.next.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.next.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.next.set_resource(resource);
    }
}

/// An exporter that ends in time, survives its own panics, and counts.
#[derive(Debug)]
pub(super) struct WatchedExporter<E> {
    inner: E,
    exported: Arc<Exported>,
    // Its timers are those of the runtime; exports run on a thread that is none of it.
    runtime: Handle,
    limit: Duration,
}

impl<E: SpanExporter> WatchedExporter<E> {
    /// Exports by `inner`, each within `limit`. Needs a tokio runtime.
    pub(super) fn new(inner: E, exported: Arc<Exported>, limit: Duration) -> Self {
        Self { inner, exported, runtime: Handle::current(), limit }
    }

    async fn within_limit(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let limit = {
            let _runtime = self.runtime.enter();
            tokio::time::sleep(self.limit)
        };
        // tonic panics on an answer whose details are no base64, and the thread must live on.
        let export = pin!(AssertUnwindSafe(self.inner.export(batch)).catch_unwind());
        match select(export, pin!(limit)).await {
            Either::Left((Ok(result), _)) => result,
            Either::Left((Err(_), _)) => {
                Err(OTelSdkError::InternalFailure("the collector's answer could not be decoded".to_owned()))
            }
            Either::Right(_) => Err(OTelSdkError::Timeout(self.limit)),
        }
    }
}

impl<E: SpanExporter> SpanExporter for WatchedExporter<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        self.exported.waiting.fetch_sub(count, Ordering::AcqRel);
        let result = self.within_limit(batch).await;
        match &result {
            Ok(()) => {
                self.exported.exported.fetch_add(count as u64, Ordering::Relaxed);
            }
            Err(error) => {
                self.exported.failed.fetch_add(count as u64, Ordering::Relaxed);
                self.exported.lost(&one_line(&error.to_string()));
            }
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.inner.shutdown_with_timeout(timeout)
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.inner.force_flush()
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.inner.set_resource(resource);
    }
}

#[cfg(test)]
mod tests {
    use super::{Counted, Exported, SpanTally, WatchedExporter};
    use crate::clock::ManualClock;
    use opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider, SpanData, SpanExporter};
    use parking_lot::Mutex;
    use std::sync::Arc;
    use std::sync::mpsc::{Receiver, Sender, channel};
    use std::time::Duration;

    /// What the collector does with a batch.
    enum Does {
        Takes,
        Refuses,
        Panics,
        Nothing,
    }

    #[derive(Debug)]
    struct Collector {
        tells: Sender<usize>,
        does: Mutex<Receiver<Does>>,
    }

    impl SpanExporter for Collector {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.tells.send(batch.len()).unwrap();
            let does = self.does.lock().recv().unwrap();
            match does {
                Does::Takes => Ok(()),
                Does::Refuses => Err(opentelemetry_sdk::error::OTelSdkError::InternalFailure("no\nroom".to_owned())),
                Does::Panics => panic!("as tonic does"),
                Does::Nothing => std::future::pending().await,
            }
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn whatever_the_collector_does_each_span_is_counted_once_and_nobody_waits() {
        let (tells, told) = channel();
        let (do_this, does) = channel();
        let exported = Exported::new(Arc::new(ManualClock::default()));
        let collector = Collector { tells, does: Mutex::new(does) };
        let watched = WatchedExporter::new(collector, exported.clone(), Duration::from_millis(50));
        let config = BatchConfigBuilder::default()
            .with_max_queue_size(4)
            .with_max_export_batch_size(1)
            .with_scheduled_delay(Duration::from_millis(1))
            .build();
        let processor = BatchSpanProcessor::builder(watched).with_batch_config(config).build();
        let provider =
            SdkTracerProvider::builder().with_span_processor(Counted::new(processor, exported.clone(), 4)).build();
        let tracer = provider.tracer("test");
        let end_one = || tracer.start("a").end();
        // The first is being exported, four wait, and the others find no room.
        end_one();
        assert_eq!(told.recv().unwrap(), 1);
        for _ in 0..10 {
            end_one();
        }
        assert_eq!(exported.tally(), SpanTally { dropped_queue_full: 6, ..SpanTally::default() });
        for answer in [Does::Takes, Does::Refuses, Does::Panics, Does::Nothing, Does::Takes] {
            do_this.send(answer).unwrap();
        }
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(Duration::from_secs(30)));
        flushed.await.unwrap().ok();
        let all = SpanTally { exported: 2, dropped_queue_full: 6, dropped_export_failed: 3 };
        assert_eq!(exported.tally(), all);
    }
}
