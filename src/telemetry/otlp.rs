//! Traces to a collector, by OTLP over gRPC.

use super::environment::{Settings, settings};
use super::exported::{Counted, Exported, WatchedExporter};
use super::log::one_line;
use super::tracer::{On, Tracer};
use crate::clock::{Clock, Entropy};
use crate::config::TracingConfig;
use opentelemetry::trace::{Link, SpanKind, TraceContextExt as _, TraceId, TracerProvider as _};
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _, WithTonicConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SamplingDecision, SamplingResult, SdkTracerProvider, ShouldSample,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// How much longer than its own timeout an export may take, retries and the answer's body included, before it is given up.
const MARGIN: Duration = Duration::from_secs(2);

/// How long the last spans may take to be sent, when the process ends.
const FLUSH: Duration = Duration::from_secs(5);

/// Why traces cannot be sent as configured.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TracesError {
    /// A certificate or a key cannot be read.
    #[error("cannot read {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The exporter refuses its settings.
    #[error("traces cannot be sent: {0}")]
    Exporter(#[from] opentelemetry_otlp::ExporterBuildError),
}

/// The traces of one service of this process. To be [flushed](Self::flush) at its end.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    tracer: Tracer,
    provider: Option<SdkTracerProvider>,
}

impl Traces {
    /// Sends traces as the configuration and the environment say, or makes none. Connects to nothing yet, and never waits for
    /// the collector. Needs a tokio runtime that outlives it. `service` is the `service.name`, unless the environment has one;
    /// `clock` and `entropy` make the `service.instance.id`.
    ///
    /// # Errors
    /// If what is configured cannot be used. Of the environment, what cannot be honoured is logged and left.
    pub(crate) fn start(
        config: &TracingConfig,
        service: &str,
        clock: Arc<dyn Clock>,
        entropy: &Entropy,
    ) -> Result<Self, TracesError> {
        let (settings, warnings) = settings(config, |name| std::env::var(name).ok());
        for warning in warnings {
            tracing::warn!("{}", one_line(&warning));
        }
        let Some(settings) = settings else { return Ok(Self::default()) };
        match Self::with(config, &settings, service, clock, entropy) {
            Err(error) if config.otlp_endpoint.is_none() => {
                tracing::error!(error = one_line(&error.to_string()), "no traces are made");
                Ok(Self::default())
            }
            started => started,
        }
    }

    fn with(
        config: &TracingConfig,
        settings: &Settings,
        service: &str,
        clock: Arc<dyn Clock>,
        entropy: &Entropy,
    ) -> Result<Self, TracesError> {
        let mut exporter = SpanExporter::builder().with_tonic();
        if let Some(endpoint) = &settings.endpoint {
            exporter = exporter.with_endpoint(endpoint);
        }
        if settings.is_tls {
            exporter = exporter.with_tls_config(tls(settings)?);
        }
        let instance = entropy.id(clock.now());
        let exported = Exported::new(clock);
        let exporter = WatchedExporter::new(exporter.build()?, exported.clone(), settings.timeout + MARGIN);
        let batches = BatchConfigBuilder::default().with_max_queue_size(settings.queue).build();
        let processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let mut resource = Resource::builder_empty()
            .with_attributes([
                KeyValue::new("service.name", service.to_owned()),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance),
            ])
            .with_detectors(&[Box::new(TelemetryResourceDetector), Box::new(EnvResourceDetector::new())]);
        if let Some(name) = &settings.service_name {
            resource = resource.with_service_name(name.clone());
        }
        let mut provider = SdkTracerProvider::builder();
        if let Some(links) = settings.links {
            provider = provider.with_max_links_per_span(links);
        }
        let provider = provider
            .with_resource(resource.build())
            .with_sampler(OrLinked { inner: settings.sampler.clone(), follows: settings.parent_decides })
            .with_span_processor(Counted::new(processor, exported.clone(), settings.queue))
            .build();
        let tracer = Tracer::on(On {
            sdk: provider.tracer("blobferry"),
            copy_parent: config.copy_parent,
            propagates: settings.propagates,
            parent_decides: settings.parent_decides,
            exported,
        });
        Ok(Self { tracer, provider: Some(provider) })
    }

    /// Begins its spans.
    pub(crate) fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Sends what is left, for 5 s at most. Spans that end afterwards are dropped.
    pub(crate) async fn flush(self) {
        let Some(provider) = self.provider else { return };
        // It blocks, and the exporter needs the runtime meanwhile.
        let flushed = tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH)).await;
        if !matches!(flushed, Ok(Ok(()))) {
            tracing::warn!("the last spans did not reach the collector in time");
        }
    }
}

fn tls(settings: &Settings) -> Result<ClientTlsConfig, TracesError> {
    let read = |path: &Path| std::fs::read(path).map_err(|source| TracesError::File { path: path.to_owned(), source });
    let mut tls = match &settings.ca_file {
        Some(path) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(read(path)?)),
        None => ClientTlsConfig::new().with_native_roots(),
    };
    if let Some((certificate, key)) = &settings.client_files {
        tls = tls.identity(Identity::from_pem(read(certificate)?, read(key)?));
    }
    Ok(tls)
}

/// The configured sampler; and where a trace begins because of others that are recorded, it is, too.
#[derive(Clone, Debug)]
pub(super) struct OrLinked {
    pub(super) inner: Sampler,
    pub(super) follows: bool,
}

impl ShouldSample for OrLinked {
    fn should_sample(
        &self,
        parent: Option<&Context>,
        trace_id: TraceId,
        name: &str,
        kind: &SpanKind,
        attributes: &[KeyValue],
        links: &[Link],
    ) -> SamplingResult {
        let begins = parent.is_none_or(|cx| !cx.span().span_context().is_valid());
        if self.follows && begins && links.iter().any(|link| link.span_context.is_sampled()) {
            return SamplingResult {
                decision: SamplingDecision::RecordAndSample,
                attributes: Vec::new(),
                trace_state: opentelemetry::trace::TraceState::default(),
            };
        }
        self.inner.should_sample(parent, trace_id, name, kind, attributes, links)
    }
}
