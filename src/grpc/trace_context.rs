//! W3C trace context in and out of gRPC metadata (<https://www.w3.org/TR/trace-context/>).

use crate::telemetry::TraceContext;
use http::{HeaderMap, HeaderValue};

const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";

/// The longest `tracestate` that is kept, in bytes; the standard asks for at least this. A longer one is dropped whole.
const MAX_TRACESTATE: usize = 512;

/// The sender's trace context. A badly formed one counts as none, as the standard wants it.
pub(super) fn header_context(headers: &HeaderMap) -> Option<TraceContext> {
    let mut parents = headers.get_all(TRACEPARENT).iter();
    let traceparent = parents.next()?.to_str().ok()?;
    if parents.next().is_some() || !is_traceparent(traceparent) {
        return None;
    }
    let states: Option<Vec<&str>> = headers.get_all(TRACESTATE).iter().map(|value| value.to_str().ok()).collect();
    let tracestate = states.unwrap_or_default().join(",");
    let tracestate = if tracestate.len() <= MAX_TRACESTATE { tracestate } else { String::new() };
    Some(TraceContext { traceparent: traceparent.to_owned(), tracestate })
}

/// The same of two texts.
pub(super) fn text_context(traceparent: &str, tracestate: &str) -> Option<TraceContext> {
    if !is_traceparent(traceparent) {
        return None;
    }
    let fits = tracestate.len() <= MAX_TRACESTATE && HeaderValue::from_str(tracestate).is_ok();
    let tracestate = if fits { tracestate.to_owned() } else { String::new() };
    Some(TraceContext { traceparent: traceparent.to_owned(), tracestate })
}

/// Puts a trace context into the headers of an outgoing call.
pub(super) fn set_header_context(headers: &mut HeaderMap, context: &TraceContext) {
    if !is_traceparent(&context.traceparent) {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(&context.traceparent) {
        headers.insert(TRACEPARENT, value);
        if !context.tracestate.is_empty()
            && let Ok(value) = HeaderValue::from_str(&context.tracestate)
        {
            headers.insert(TRACESTATE, value);
        }
    }
}

/// Whether this is `version-traceid-parentid-flags` with a trace and a parent that are not all zeros.
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, len: usize| {
        part.len() == len && part.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let zeros = |part: &str| part.bytes().all(|byte| byte == b'0');
    let mut parts = text.splitn(5, '-');
    let (Some(version), Some(trace), Some(parent), Some(flags)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    // Later versions may append fields; version 00 has none.
    let rest_fits = parts.next().is_none() || (version != "00" && text.len() <= MAX_TRACESTATE);
    hex(version, 2)
        && version != "ff"
        && hex(trace, 32)
        && !zeros(trace)
        && hex(parent, 16)
        && !zeros(parent)
        && hex(flags, 2)
        && rest_fits
}

#[cfg(test)]
mod tests {
    use super::{header_context, set_header_context, text_context};
    use http::HeaderMap;

    fn read(traceparent: &str) -> bool {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", traceparent.parse().unwrap());
        let read = header_context(&headers);
        assert_eq!(read, text_context(traceparent, ""));
        read.is_some()
    }

    #[test]
    fn only_well_formed_parents_are_taken() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert!(read(good));
        assert!(read("cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more"));
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert!(!read(bad), "{bad}");
        }
    }

    #[test]
    fn a_context_goes_out_as_it_came_in() {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap());
        headers.append("tracestate", "a=1".parse().unwrap());
        headers.append("tracestate", "b=2".parse().unwrap());
        let context = header_context(&headers).unwrap();
        assert_eq!(context.tracestate, "a=1,b=2");
        let mut out = HeaderMap::new();
        set_header_context(&mut out, &context);
        assert_eq!(header_context(&out), Some(context));
    }
}
