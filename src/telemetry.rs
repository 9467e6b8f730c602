//! Logs and traces.
//!
//! - `log`: logs go to standard error: for people on a terminal, one JSON object a line elsewhere. The configured level is
//!   ours; of the libraries below only warnings are shown. `storm` keeps a storm from drowning them, and `sink` sees to it that
//!   nobody waits for them.
//! - `tracer`, `span`: [`Tracer`] begins a [`Span`] where one is recorded. It is OpenTelemetry's own interface that is used,
//!   not a layer under `tracing`: what tonic, h2 or the exporter itself do can then never become spans, a blob that nobody traces costs
//!   next to nothing, and links and parents are what they are said to be.
//! - `otlp`: [`Traces`] sends spans to a collector; `environment` merges what is configured with OpenTelemetry's variables,
//!   and `exported` sees to it that no collector can hold anything up, and counts what is lost.
//!
//! A client has `span` alone: its calls carry on the context in which they are made.

#[cfg(feature = "server")]
mod environment;
#[cfg(feature = "server")]
mod exported;
#[cfg(feature = "server")]
mod log;
#[cfg(feature = "server")]
mod otlp;
#[cfg(feature = "server")]
mod sink;
mod span;
#[cfg(feature = "server")]
mod storm;
#[cfg(feature = "server")]
mod tracer;

#[cfg(feature = "server")]
pub(crate) use self::{
    exported::SpanTally,
    log::install,
    otlp::Traces,
    sink::{LogGuard, lost_log_lines},
    span::passing_on,
    tracer::{Parent, Tracer},
};
pub(crate) use span::calling;
pub(crate) use span::{Span, TraceContext};
