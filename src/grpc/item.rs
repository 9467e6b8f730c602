//! What is shared by methods that move many blobs in one message: an item's number, its error, and its trace context.

use super::explained::explained;
use super::idle::Idle;
use super::status::{Reason, store_error};
use super::trace_context::text_context;
use crate::blob::BlobRef;
use crate::pb::{DOMAIN, v1};
use crate::store::StoreError;
use crate::telemetry::TraceContext;
use futures::{Stream, stream};
use std::collections::HashMap;
use std::time::Duration;
use tonic::{Code, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The messages of a request stream, with the number in the stream of the first item of each. An error is the last.
pub(crate) fn numbered<T: Send + 'static>(
    messages: Streaming<T>,
    idle: Duration,
    items: impl Fn(&T) -> usize + Send + Copy + 'static,
) -> impl Stream<Item = Result<(u64, T), Status>> + Send + 'static {
    stream::unfold(Some((messages, Idle::new(idle), 0)), move |state| async move {
        let (mut messages, mut idle, first) = state?;
        match idle.wait_for(messages.message()).await {
            Some(Ok(None)) => None,
            Some(Ok(Some(message))) => {
                let next = first + items(&message) as u64;
                Some((Ok((first, message)), Some((messages, idle, next))))
            }
            Some(Err(status)) => Some((Err(explained(status)), None)),
            None => {
                let seconds = idle.limit().as_secs_f64();
                let status = Reason::StreamIdle.status(format!("no message came for {seconds} s"));
                Some((Err(status), None))
            }
        }
    })
}

/// A status as the error of one blob among many.
pub(crate) fn blob_error(status: &Status) -> v1::BlobError {
    let details = status.get_error_details();
    v1::BlobError {
        code: status.code().into(),
        reason: details.error_info().map(|info| info.reason.clone()).unwrap_or_default(),
        message: status.message().to_owned(),
    }
}

/// What a peer's error for one blob means: as if a call for this blob alone had ended with it.
pub(crate) fn item_error(error: &v1::BlobError, blob: &BlobRef) -> StoreError {
    let code = Code::from(error.code);
    if code == Code::Ok {
        return StoreError::Protocol("an item's error has the code OK".to_owned());
    }
    let details = if error.reason.is_empty() {
        ErrorDetails::new()
    } else {
        ErrorDetails::with_error_info(error.reason.as_str(), DOMAIN, HashMap::new())
    };
    store_error(&Status::with_error_details(code, error.message.as_str(), details), Some(blob))
}

/// The trace context of an item, checked as that of a call is.
pub(crate) fn item_trace(traceparent: &str, tracestate: &str) -> Option<TraceContext> {
    text_context(traceparent, tracestate)
}
