//! What is counted while it happens, and how figures are written down for Prometheus.
//!
//! Nothing here is global: whoever counts owns its recorder, or is handed it, and the HTTP port reads them all when it is
//! asked. What can be computed from the state of the moment (entries, lag, breakers) is not counted here, but taken from the
//! same picture as Status.
//!
//! Recorders are counters of relaxed atomics. To observe costs two additions and no lock, so that it may stand on the path of
//! every blob; to read them is not one moment for all, which a scrape does not need.
//!
//! There is no metrics library: those that exist lock a histogram at every observation or write one text format only, and what
//! is needed of the two formats is a page ([`Text`]).

mod calls;
mod commits;
mod copies;
mod histogram;
mod text;

pub(crate) use calls::CallMetrics;
pub(crate) use commits::CommitMetrics;
pub(crate) use copies::CopyMetrics;
pub(crate) use histogram::{Histogram, HistogramReading};
pub(crate) use text::{Family, Format, MetricKind, Text, Value};

/// Bounds for what may take from a tenth of a millisecond to a minute, in seconds.
pub(crate) const CALL_SECONDS: [f64; 16] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 15.0, 60.0];

/// Bounds for the way of a blob, from its announcement to its confirmation: milliseconds to a day, in seconds.
pub(crate) const LAG_SECONDS: [f64; 16] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86400.0];

/// Bounds for numbers of operations.
pub(crate) const OPERATIONS: [f64; 12] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0, 4096.0, 8192.0, 16384.0];
