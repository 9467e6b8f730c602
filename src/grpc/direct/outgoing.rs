//! Bodies that are sent: the head of a message, then its chunk as it is.

use super::{CHUNK_KEY, Chunked, Handed, PREFIX_BYTES, TakesBody, WantsBody};
use bytes::{BufMut, Bytes, BytesMut};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame};
use prost::encoding::{encode_varint, encoded_len_varint};
use std::pin::Pin;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::{Request, Response, Status};

/// A chunk of fewer bytes is copied behind its head: one frame is then cheaper than two.
const OWN_FRAME_BYTES: usize = 4 << 10;

/// Small messages that are ready together go out in frames of about so many bytes, as from tonic's codec: h2 gives up a
/// connection on which many small frames wait to be read.
const GATHERED_BYTES: usize = 32 << 10;

/// A request that sends these messages, through a [`DirectChannel`](super::DirectChannel). Its cancellation handle resets
/// the stream, as always.
pub(crate) fn send<T: Chunked>(
    messages: impl Stream<Item = T> + Send + 'static,
) -> Request<impl Stream<Item = T> + Send + 'static> {
    // The codec is left with nothing to encode, and with noticing that the call was cancelled.
    let mut request = Request::new(stream::pending());
    let body = Outgoing::new(messages.map(Ok), false);
    request.extensions_mut().insert(Handed::new(Body::new(body)));
    request
}

/// Has the answer to this request be readable by [`Incoming::of_response`](super::Incoming::of_response).
pub(crate) fn want<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(WantsBody);
    request
}

/// How a request can be answered.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Answering {
    // Whether there is a wrapper that sends the body it is handed.
    direct: bool,
}

impl Answering {
    /// To this request.
    pub(crate) fn to<R>(request: &Request<R>) -> Self {
        Self { direct: request.extensions().get::<TakesBody>().is_some() }
    }

    /// The answer of these messages; an error is the last.
    pub(crate) fn with<T: Chunked>(
        self,
        messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
    ) -> Response<BoxStream<'static, Result<T, Status>>> {
        if !self.direct {
            return Response::new(messages.boxed());
        }
        let mut response = Response::new(stream::empty().boxed());
        let body = Outgoing::new(messages, true);
        response.extensions_mut().insert(Handed::new(Body::new(body)));
        response
    }
}

/// A body, and the codec's own that has nothing to send: what it says is that the call was cancelled.
pub(super) fn cancelled_with(handed: Body, codec: Body) -> Body {
    Body::new(Cancellable { handed, codec })
}

struct Cancellable {
    handed: Body,
    codec: Body,
}

impl HttpBody for Cancellable {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Poll::Ready(cancelled) = Pin::new(&mut self.codec).poll_frame(cx) {
            return Poll::Ready(cancelled);
        }
        Pin::new(&mut self.handed).poll_frame(cx)
    }
}

pub(super) struct Outgoing<T> {
    // Gone when they have ended.
    messages: Option<BoxStream<'static, Result<T, Status>>>,
    // What goes out next: small messages, and the head of `rest`.
    buffer: BytesMut,
    // The chunk whose head is out, or in the buffer.
    rest: Bytes,
    // Whether the end is a status in trailers, as a server's is.
    trailers: bool,
    // How the messages ended.
    end: Option<Status>,
}

impl<T: Chunked> Outgoing<T> {
    pub(super) fn new(messages: impl Stream<Item = Result<T, Status>> + Send + 'static, trailers: bool) -> Self {
        let (buffer, rest) = (BytesMut::new(), Bytes::new());
        Self { messages: Some(messages.boxed()), buffer, rest, trailers, end: None }
    }

    /// Puts the message in the buffer, but for a large chunk.
    fn add(&mut self, message: &T) {
        let Some(chunk) = message.chunk().filter(|chunk| chunk.len() >= OWN_FRAME_BYTES) else {
            let len = message.encoded_len();
            self.begin(len, len);
            message.encode_raw(&mut self.buffer);
            return;
        };
        let head = 1 + encoded_len_varint(chunk.len() as u64);
        self.begin(head + chunk.len(), head);
        self.buffer.put_u8(CHUNK_KEY);
        encode_varint(chunk.len() as u64, &mut self.buffer);
        self.rest = chunk.clone();
    }

    /// Begins a message of this length, with room for so much of it.
    fn begin(&mut self, len: usize, room: usize) {
        self.buffer.reserve(PREFIX_BYTES + room);
        self.buffer.put_u8(0);
        // Chunks are at most as large as the peer's largest message, which is stated in 32 bits.
        self.buffer.put_u32(u32::try_from(len).unwrap_or(u32::MAX));
    }

    /// Takes messages until there is a frame's worth, or none is ready.
    fn fill(&mut self, cx: &mut Context<'_>) {
        while let Some(messages) = &mut self.messages {
            match messages.as_mut().poll_next(cx) {
                Poll::Pending => return,
                Poll::Ready(Some(Ok(message))) => self.add(&message),
                Poll::Ready(Some(Err(status))) => {
                    self.messages = None;
                    self.end = Some(status);
                }
                Poll::Ready(None) => {
                    self.messages = None;
                    self.end = self.trailers.then(|| Status::ok(""));
                }
            }
            if !self.rest.is_empty() || self.buffer.len() >= GATHERED_BYTES {
                return;
            }
        }
    }
}

impl<T: Chunked> HttpBody for Outgoing<T> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.buffer.is_empty() && self.rest.is_empty() {
            self.fill(cx);
        }
        let data = if self.buffer.is_empty() { std::mem::take(&mut self.rest) } else { self.buffer.split().freeze() };
        if !data.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if self.messages.is_some() {
            return Poll::Pending;
        }
        Poll::Ready(self.end.take().map(|status| {
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
        }))
    }
}
