//! Bodies that are read: chunks as they come, other messages whole.

use super::{CHUNK_KEY, Chunked, Handed, PREFIX_BYTES};
use crate::grpc::MAX_DECODED_BYTES;
use bytes::{Buf, Bytes, BytesMut};
use http_body::Body as _;
use std::marker::PhantomData;
use std::pin::Pin;
use tonic::body::Body;
use tonic::{Request, Response, Status, Streaming};

/// The longest number on the wire, in bytes.
const MAX_VARINT_BYTES: usize = 10;

/// What a message is by its first bytes.
enum Head {
    /// The key and length of a chunk of this many bytes.
    Chunk(usize),
    /// As far as can be seen, a part of that.
    Unfinished,
    Other,
}

fn head(bytes: &[u8]) -> Head {
    let Some((key, mut length)) = bytes.split_first() else { return Head::Unfinished };
    if *key != CHUNK_KEY {
        return Head::Other;
    }
    // A length that goes on has the topmost bit set.
    match length.last() {
        Some(last) if *last < 0x80 => match prost::encoding::decode_varint(&mut length).map(usize::try_from) {
            Ok(Ok(bytes)) => Head::Chunk(bytes),
            _ => Head::Other,
        },
        _ if length.len() < MAX_VARINT_BYTES => Head::Unfinished,
        _ => Head::Other,
    }
}

/// The messages of a stream. One that carries a chunk may come as several, with a part of it each.
pub(crate) struct Incoming<T>(Way<T>);

enum Way<T> {
    Codec(Streaming<T>),
    Direct(Direct<T>),
}

impl<T: Chunked> Incoming<T> {
    /// The messages of a request, and the rest of it.
    pub(crate) fn of_request(mut request: Request<Streaming<T>>) -> Self {
        match request.extensions_mut().remove::<Handed>().and_then(|handed| handed.take()) {
            Some(body) => Self(Way::Direct(Direct::new(body))),
            None => Self(Way::Codec(request.into_inner())),
        }
    }

    /// The messages of the answer to a request that was made by [`want`](super::want).
    pub(crate) fn of_response(mut response: Response<Streaming<T>>) -> Self {
        match response.extensions_mut().remove::<Handed>().and_then(|handed| handed.take()) {
            Some(body) => Self(Way::Direct(Direct::new(body))),
            None => Self(Way::Codec(response.into_inner())),
        }
    }

    /// The next message; `None` at the end.
    ///
    /// # Errors
    /// The stream's status, unless it is OK; OUT_OF_RANGE for a message that is too long; INTERNAL for what is no gRPC.
    pub(crate) async fn message(&mut self) -> Result<Option<T>, Status> {
        match &mut self.0 {
            Way::Codec(messages) => messages.message().await,
            Way::Direct(messages) => messages.message().await,
        }
    }
}

/// Where in the body we are.
#[derive(Clone, Copy, Debug)]
enum At {
    /// Before a message.
    Prefix,
    /// At the first bytes of a message of this length.
    Head(usize),
    /// Within a chunk, of which this many bytes are to come.
    Chunk(usize),
    /// Within a message of this length that is gathered.
    Whole(usize),
    /// Behind the end.
    End,
}

pub(super) struct Direct<T> {
    body: Body,
    at: At,
    // The frame that came last, as far as it was not looked at.
    frame: Bytes,
    // What belongs together and came apart: a prefix, a head, or a message.
    gathered: BytesMut,
    message: PhantomData<fn() -> T>,
}

impl<T: Chunked> Direct<T> {
    pub(super) fn new(body: Body) -> Self {
        Self { body, at: At::Prefix, frame: Bytes::new(), gathered: BytesMut::new(), message: PhantomData }
    }

    pub(super) async fn message(&mut self) -> Result<Option<T>, Status> {
        loop {
            match self.step() {
                Ok(Some(message)) => return Ok(Some(message)),
                Ok(None) => {}
                Err(status) => return Err(self.fail(status)),
            }
            if matches!(self.at, At::End) {
                return Ok(None);
            }
            let frame = std::future::poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await;
            match frame {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.frame = data,
                    Err(frame) => {
                        let status = frame.trailers_ref().and_then(Status::from_header_map);
                        return self.end(status);
                    }
                },
                Some(Err(status)) => return Err(self.fail(status)),
                None => return self.end(None),
            }
        }
    }

    /// Where the body ended, with this status if there was one.
    fn end(&mut self, status: Option<Status>) -> Result<Option<T>, Status> {
        if let Some(status) = status
            && status.code() != tonic::Code::Ok
        {
            return Err(self.fail(status));
        }
        if !matches!(self.at, At::Prefix) || !self.gathered.is_empty() {
            return Err(self.fail(Status::internal("the stream ended within a message")));
        }
        self.at = At::End;
        Ok(None)
    }

    fn fail(&mut self, status: Status) -> Status {
        self.at = At::End;
        self.frame = Bytes::new();
        self.body = Body::empty();
        status
    }

    /// A message, if the frame has one, or a part of its chunk. Without one, all of the frame was used.
    fn step(&mut self) -> Result<Option<T>, Status> {
        loop {
            match self.at {
                At::Prefix => {
                    let Some(mut prefix) = self.gather(PREFIX_BYTES) else { return Ok(None) };
                    let compressed = prefix.get_u8();
                    let len = prefix.get_u32() as usize;
                    self.gathered.clear();
                    if compressed != 0 {
                        return Err(Status::internal("a message is flagged as compressed on a stream that is not"));
                    }
                    if len > MAX_DECODED_BYTES {
                        // In the codec's own words.
                        let limit = MAX_DECODED_BYTES;
                        return Err(Status::out_of_range(format!(
                            "Error, decoded message length too large: found {len} bytes, the limit is: {limit} bytes"
                        )));
                    }
                    self.at = At::Head(len);
                }
                At::Head(len) => {
                    let came = self.gathered.len();
                    match head(&self.gathered) {
                        Head::Chunk(bytes) if came.checked_add(bytes) == Some(len) => {
                            self.gathered.clear();
                            self.at = At::Chunk(bytes);
                            if bytes == 0 {
                                return Ok(Some(T::of_chunk(Bytes::new())));
                            }
                        }
                        // Byte by byte, so that none of the chunk is among them.
                        Head::Unfinished if came < len => {
                            if self.gather(came + 1).is_none() {
                                return Ok(None);
                            }
                        }
                        // Something else, also a chunk that is not all there is.
                        _ => self.at = At::Whole(len),
                    }
                }
                At::Chunk(0) => self.at = At::Prefix,
                At::Chunk(left) => {
                    if self.frame.is_empty() {
                        return Ok(None);
                    }
                    let part = self.frame.split_to(left.min(self.frame.len()));
                    self.at = At::Chunk(left - part.len());
                    return Ok(Some(T::of_chunk(part)));
                }
                At::Whole(len) => {
                    if self.gather(len).is_none() {
                        return Ok(None);
                    }
                    let whole = std::mem::take(&mut self.gathered).freeze();
                    self.at = At::Prefix;
                    let decoded = T::decode(whole);
                    return decoded.map(Some).map_err(|error| Status::internal(error.to_string()));
                }
                At::End => return Ok(None),
            }
        }
    }

    /// Takes from the frame until so many bytes are gathered, and shows them.
    fn gather(&mut self, len: usize) -> Option<&[u8]> {
        let missing = len.saturating_sub(self.gathered.len()).min(self.frame.len());
        self.gathered.extend_from_slice(&self.frame.split_to(missing));
        (self.gathered.len() >= len).then(|| &self.gathered[..len])
    }
}
