//! A request stream that the client cancelled is an error, never an end.
//!
//! hyper ends a request body quietly when the client resets the stream with NO_ERROR, and tonic takes a reset with CANCEL for
//! the end of the messages. A handler would then see a cancelled upload as a finished one, and could commit bytes that the
//! client took back. Here the end of a body counts only when HTTP/2 saw END_STREAM; else the body fails with ABORTED.

use bytes::Bytes;
use http::Request;
use http_body::{Body as HttpBody, Frame, SizeHint};
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Code, Status};

/// Makes the request's body tell a cut from an end.
pub(super) fn notice_cuts(request: Request<Body>) -> Request<Body> {
    request.map(|inner| if inner.is_end_stream() { inner } else { Body::new(Whole { inner, done: false }) })
}

struct Whole {
    inner: Body,
    done: bool,
}

fn cut() -> Status {
    Status::aborted("the client cancelled the stream before its end")
}

impl HttpBody for Whole {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if self.done {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.inner).poll_frame(cx);
        let item = match polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(item) => item,
        };
        Poll::Ready(match item {
            Some(Ok(frame)) => Some(Ok(frame)),
            // tonic takes CANCELLED for an end, so it must not come through.
            Some(Err(status)) if status.code() == Code::Cancelled => {
                self.done = true;
                Some(Err(cut()))
            }
            Some(Err(status)) => {
                self.done = true;
                Some(Err(status))
            }
            None => {
                self.done = true;
                if self.inner.is_end_stream() { None } else { Some(Err(cut())) }
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
