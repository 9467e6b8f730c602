//! Logs and traces.

/// A caller's W3C trace context, as it is stored with an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceContext {
    /// The `traceparent` header.
    pub traceparent: String,
    /// The `tracestate` header; may be empty.
    pub tracestate: String,
}
