//! What the configuration and OpenTelemetry's own environment variables say together.
//!
//! The SDK and the exporter read most of those variables themselves: `OTEL_EXPORTER_OTLP_*` (endpoint, headers, timeout,
//! insecure), `OTEL_BSP_*`, `OTEL_SPAN_*_LIMIT`, `OTEL_RESOURCE_ATTRIBUTES`. What they do not, or not with our defaults, is read
//! here. What is configured wins. A variable that cannot be honoured is a warning, as the specification wants it: whoever
//! injects the same variables into every container must not keep this one from starting.

use crate::config::TracingConfig;
use opentelemetry_sdk::trace::Sampler;
use std::path::PathBuf;
use std::time::Duration;

/// Spans that wait for the collector, at most, where `OTEL_BSP_MAX_QUEUE_SIZE` says nothing: some tens of MiB. The SDK's own
/// 2,048 are a fraction of what one announcement of many blobs may bring.
const QUEUE: usize = 16_384;

/// Links of a span, at most, where `OTEL_SPAN_LINK_COUNT_LIMIT` says nothing: a pack's span has one for each of its blobs. The
/// SDK's own limit is 128.
const LINKS: u32 = 1024;

/// How long an export may take, where `OTEL_EXPORTER_OTLP_TIMEOUT` says nothing.
const TIMEOUT: Duration = Duration::from_secs(10);

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    /// The collector, where it is configured; else the exporter finds it in the environment.
    pub(super) endpoint: Option<String>,
    /// Whether the way to it is encrypted.
    pub(super) is_tls: bool,
    /// PEM files: the collector's authorities; our own certificate and key.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) client_files: Option<(PathBuf, PathBuf)>,
    pub(super) sampler: Sampler,
    /// Whether a caller's decision is ours, too.
    pub(super) parent_decides: bool,
    pub(super) propagates: bool,
    pub(super) queue: usize,
    /// Absent where the SDK finds it in the environment.
    pub(super) links: Option<u32>,
    /// `service.name`, where the environment has one.
    pub(super) service_name: Option<String>,
    pub(super) timeout: Duration,
}

/// Merges both. `None` where no traces are wanted; and what could not be honoured.
pub(super) fn settings(
    config: &TracingConfig,
    env: impl Fn(&str) -> Option<String>,
) -> (Option<Settings>, Vec<String>) {
    let mut warnings = Vec::new();
    let env = |name: &str| env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
    // Of two variables, that of traces wins over that of all signals.
    let otlp = |name: &str| {
        env(&format!("OTEL_EXPORTER_OTLP_TRACES_{name}")).or_else(|| env(&format!("OTEL_EXPORTER_OTLP_{name}")))
    };
    if env("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        return (None, warnings);
    }
    let exporter = env("OTEL_TRACES_EXPORTER");
    let is_asked_for = match exporter.as_deref() {
        Some("none") => return (None, warnings),
        Some("otlp") => true,
        Some(other) => {
            warnings.push(format!("OTEL_TRACES_EXPORTER={other} is not built in; use otlp or none"));
            return (None, warnings);
        }
        None => false,
    };
    let configured = config.otlp_endpoint.as_ref().map(|uri| uri.to_string().trim_end_matches('/').to_owned());
    let endpoint = configured.clone().or_else(|| otlp("ENDPOINT"));
    if endpoint.is_none() && !is_asked_for {
        return (None, warnings);
    }
    if let Some(protocol) = otlp("PROTOCOL").filter(|protocol| protocol != "grpc")
        && configured.is_none()
    {
        warnings.push(format!(
            "OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not built in; use grpc, at the collector's port for it"
        ));
        return (None, warnings);
    }
    if let Some(compression) = otlp("COMPRESSION").filter(|compression| compression != "none") {
        warnings.push(format!("OTEL_EXPORTER_OTLP_COMPRESSION={compression} is not built in; leave it out"));
        return (None, warnings);
    }
    let (sampler, parent_decides) = sampler(config, &env, &mut warnings);
    let insecure = otlp("INSECURE").is_some_and(|value| value.eq_ignore_ascii_case("true"));
    let is_tls = endpoint.is_some_and(|endpoint| match endpoint.split_once("://") {
        Some((scheme, _)) => scheme.eq_ignore_ascii_case("https"),
        None => !insecure,
    });
    let client_files = match (otlp("CLIENT_CERTIFICATE"), otlp("CLIENT_KEY")) {
        (Some(certificate), Some(key)) => Some((certificate.into(), key.into())),
        (None, None) => None,
        _ => {
            warnings.push("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE and _KEY go together; neither is used".to_owned());
            None
        }
    };
    let settings = Settings {
        endpoint: configured,
        is_tls,
        ca_file: otlp("CERTIFICATE").map(PathBuf::from),
        client_files,
        sampler,
        parent_decides,
        propagates: propagates(&env, &mut warnings),
        queue: env("OTEL_BSP_MAX_QUEUE_SIZE")
            .and_then(|size| size.parse().ok())
            .filter(|size| *size > 0)
            .unwrap_or(QUEUE),
        links: env("OTEL_SPAN_LINK_COUNT_LIMIT").is_none().then_some(LINKS),
        service_name: env("OTEL_SERVICE_NAME"),
        timeout: otlp("TIMEOUT").and_then(|ms| ms.parse().ok()).map_or(TIMEOUT, Duration::from_millis),
    };
    (Some(settings), warnings)
}

fn sampler(
    config: &TracingConfig,
    env: &impl Fn(&str) -> Option<String>,
    warnings: &mut Vec<String>,
) -> (Sampler, bool) {
    let of_parent = |root| (Sampler::ParentBased(Box::new(root)), true);
    if let Some(ratio) = config.sample_ratio {
        return of_parent(Sampler::TraceIdRatioBased(ratio.share()));
    }
    let argument = env("OTEL_TRACES_SAMPLER_ARG");
    let mut ratio = || match argument.as_deref().map(str::parse::<f64>) {
        Some(Ok(ratio)) if (0.0..=1.0).contains(&ratio) => ratio,
        _ => {
            warnings.push("OTEL_TRACES_SAMPLER_ARG is no number from 0 to 1; every trace is recorded".to_owned());
            1.0
        }
    };
    match env("OTEL_TRACES_SAMPLER").as_deref() {
        None | Some("parentbased_always_on") => of_parent(Sampler::AlwaysOn),
        Some("parentbased_always_off") => of_parent(Sampler::AlwaysOff),
        Some("parentbased_traceidratio") => of_parent(Sampler::TraceIdRatioBased(ratio())),
        Some("always_on") => (Sampler::AlwaysOn, false),
        Some("always_off") => (Sampler::AlwaysOff, false),
        Some("traceidratio") => (Sampler::TraceIdRatioBased(ratio()), false),
        Some(other) => {
            warnings.push(format!("OTEL_TRACES_SAMPLER={other} is not known; parentbased_always_on is used"));
            of_parent(Sampler::AlwaysOn)
        }
    }
}

fn propagates(env: &impl Fn(&str) -> Option<String>, warnings: &mut Vec<String>) -> bool {
    let Some(names) = env("OTEL_PROPAGATORS") else { return true };
    let mut propagates = false;
    for name in names.split(',').map(str::trim) {
        match name {
            "tracecontext" => propagates = true,
            // It carries nothing that we would read.
            "baggage" | "none" | "" => {}
            other => warnings.push(format!("OTEL_PROPAGATORS: {other} is not built in; tracecontext is")),
        }
    }
    propagates
}

#[cfg(test)]
mod tests {
    use super::{QUEUE, Settings, settings};
    use crate::config::{Share, TracingConfig};
    use std::time::Duration;

    fn with(config: &TracingConfig, env: &[(&str, &str)]) -> (Option<Settings>, Vec<String>) {
        settings(config, |name| env.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned()))
    }

    fn of(env: &[(&str, &str)]) -> (Option<Settings>, Vec<String>) {
        with(&TracingConfig::default(), env)
    }

    const AT: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

    #[test]
    fn no_traces_are_made_unless_somebody_asks_for_them() {
        assert!(of(&[]).0.is_none());
        assert!(of(&[("OTEL_SERVICE_NAME", "x"), ("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]).0.is_none());
        assert!(of(&[AT]).0.is_some());
        assert!(of(&[("OTEL_TRACES_EXPORTER", "otlp")]).0.is_some());
        for off in [("OTEL_SDK_DISABLED", "TRUE"), ("OTEL_TRACES_EXPORTER", "none")] {
            let configured = TracingConfig { otlp_endpoint: Some("http://x:1".parse().unwrap()), ..Default::default() };
            let (settings, warnings) = with(&configured, &[AT, off]);
            assert!(settings.is_none() && warnings.is_empty());
        }
    }

    #[test]
    fn what_cannot_be_honoured_is_said() {
        for (name, value, off) in [
            ("OTEL_TRACES_EXPORTER", "zipkin", true),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf", true),
            ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip", true),
            ("OTEL_TRACES_SAMPLER", "xray", false),
            ("OTEL_PROPAGATORS", "tracecontext,b3", false),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key", false),
        ] {
            let (settings, warnings) = of(&[AT, (name, value)]);
            assert_eq!((settings.is_none(), warnings.len()), (off, 1), "{name}: {warnings:?}");
            assert!(warnings[0].starts_with("OTEL_"), "{warnings:?}");
        }
        let (settings, warnings) = of(&[AT, ("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "2")]);
        assert_eq!(
            (format!("{:?}", settings.unwrap().sampler), warnings.len()),
            ("TraceIdRatioBased(1.0)".to_owned(), 1)
        );
    }

    #[test]
    fn the_sampler_is_the_configured_one_or_that_of_the_environment() {
        let sampler = |env: &[(&str, &str)], config: &TracingConfig| {
            let settings = with(config, &[&[AT], env].concat()).0.unwrap();
            (format!("{:?}", settings.sampler), settings.parent_decides)
        };
        let none = TracingConfig::default();
        assert_eq!(sampler(&[], &none), ("ParentBased(AlwaysOn)".to_owned(), true));
        let ratio = [("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
        assert_eq!(sampler(&ratio, &none), ("ParentBased(TraceIdRatioBased(0.25))".to_owned(), true));
        assert_eq!(sampler(&[("OTEL_TRACES_SAMPLER", "always_off")], &none), ("AlwaysOff".to_owned(), false));
        let configured = TracingConfig { sample_ratio: Share::new(0.01), ..none };
        assert_eq!(sampler(&ratio, &configured), ("ParentBased(TraceIdRatioBased(0.01))".to_owned(), true));
    }

    #[test]
    fn variables_of_traces_win_over_those_of_all_signals() {
        let settings = of(&[
            AT,
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "250"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "7"),
            ("OTEL_PROPAGATORS", "none"),
            ("OTEL_SERVICE_NAME", "ferry"),
        ]);
        let settings = settings.0.unwrap();
        assert!(settings.is_tls && !settings.propagates && settings.endpoint.is_none());
        assert_eq!((settings.queue, settings.timeout), (7, Duration::from_millis(250)));
        assert_eq!(settings.service_name.as_deref(), Some("ferry"));
        let plain = of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"), ("OTEL_EXPORTER_OTLP_INSECURE", "true")]);
        let plain = plain.0.unwrap();
        assert!(!plain.is_tls && plain.propagates);
        assert_eq!((plain.queue, plain.timeout), (QUEUE, Duration::from_secs(10)));
    }
}
