//! Logs and traces.
//!
//! - `log`: logs go to standard error: for people on a terminal, one JSON object a line elsewhere. The configured level is
//!   ours; of the libraries below only warnings are shown. `storm` keeps a storm from drowning them, and `sink` sees to it that
//!   nobody waits for them.
//! - `tracer`: [`Tracer`] begins a [`Span`] where one is recorded. It is OpenTelemetry's own interface that is used, not a layer
//!   under `tracing`: what tonic, h2 or the exporter itself do can then never become spans, a blob that nobody traces costs
//!   next to nothing, and links and parents are what they are said to be.
//! - `otlp`: [`Traces`] sends spans to a collector; `environment` merges what is configured with OpenTelemetry's variables,
//!   and `exported` sees to it that no collector can hold anything up, and counts what is lost.

mod environment;
mod exported;
mod log;
mod otlp;
mod sink;
mod storm;
mod tracer;

pub use exported::SpanTally;
pub use log::subscriber;
pub use otlp::{Traces, TracesError};
pub use sink::{LogGuard, lost_log_lines};
pub use storm::{EventPace, Storm};
pub(crate) use tracer::calling;
pub use tracer::{Parent, Span, Tracer, passing_on};

use crate::clock::Clock;
use crate::config::{LogConfig, LogFormat};
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use tracing::subscriber::SetGlobalDefaultError;

/// A caller's W3C trace context, as it is stored with an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: String,
    /// The `tracestate` header; may be empty.
    pub tracestate: String,
}

/// Why there can be no logs.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The thread that writes them cannot be started.
    #[error("the log cannot be started: {0}")]
    Thread(#[from] io::Error),
    /// It was done before.
    #[error("{0}")]
    Twice(#[from] SetGlobalDefaultError),
}

/// Sends the process's logs to standard error, panics too, until the process ends; what is held to the end gives the last lines
/// their time. Called once, by whoever owns the process.
///
/// # Errors
/// [`LogError`].
pub fn install(config: &LogConfig, clock: Arc<dyn Clock>) -> Result<LogGuard, LogError> {
    let human = match config.format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let (sink, guard) = sink::start(io::stderr())?;
    tracing::subscriber::set_global_default(subscriber(config, human, clock, sink))?;
    // The standard library's hook writes to standard error itself, and waits for it.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%panic, %backtrace, "a panic");
    }));
    Ok(guard)
}
