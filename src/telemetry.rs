//! Logs and traces.
//!
//! Logs go to standard error: for people on a terminal, one JSON object a line elsewhere. The configured level is ours; of
//! the libraries below only warnings are shown.

use crate::config::{LogConfig, LogFormat};
use std::io::{self, IsTerminal};
use tracing::Subscriber;
use tracing::subscriber::SetGlobalDefaultError;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// A caller's W3C trace context, as it is stored with an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: String,
    /// The `tracestate` header; may be empty.
    pub tracestate: String,
}

/// Sends the process's logs to standard error. Called once, by `main`.
///
/// # Errors
/// If it was done before.
pub fn install(config: &LogConfig) -> Result<(), SetGlobalDefaultError> {
    let human = match config.format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    tracing::subscriber::set_global_default(subscriber(config, human, io::stderr))
}

/// A subscriber that writes what the configuration asks for, for people or as JSON.
pub fn subscriber<W>(config: &LogConfig, human: bool, writer: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let builder = tracing_subscriber::fmt().with_env_filter(filter(config)).with_writer(writer);
    if human {
        Box::new(builder.with_ansi(io::stderr().is_terminal()).with_target(false).finish())
    } else {
        Box::new(builder.json().flatten_event(true).with_current_span(true).with_span_list(false).finish())
    }
}

fn filter(config: &LogConfig) -> EnvFilter {
    // The level's names are the filter's own, so the directives always parse.
    EnvFilter::new(format!("warn,blobferry={}", config.level.as_str()))
}

#[cfg(test)]
mod tests {
    use super::subscriber;
    use crate::config::{LogConfig, LogFormat, LogLevel};
    use std::io;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(level: LogLevel, human: bool) -> String {
        let sink = Sink::default();
        let config = LogConfig { level, format: LogFormat::Auto };
        let writer = sink.clone();
        tracing::subscriber::with_default(subscriber(&config, human, move || writer.clone()), || {
            tracing::info!(route = "a_to_b", "copied");
            tracing::debug!("a detail");
            tracing::info!(target: "h2", "a frame");
        });
        let bytes = sink.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn lines_are_json_or_human_and_of_the_configured_level() {
        let json = logged(LogLevel::Info, false);
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((line["message"].as_str(), line["route"].as_str()), (Some("copied"), Some("a_to_b")));
        let human = logged(LogLevel::Debug, true);
        assert!(human.contains("copied") && human.contains("a detail") && !human.contains("a frame"), "{human}");
        assert_eq!(logged(LogLevel::Error, true), "");
    }
}
