//! Decodes an incoming `ReceiveBlob` stream: one header, then chunks, then an end that the client meant.

use super::direct::Incoming;
use super::explained::explained;
use super::idle::Idle;
use super::status::{Reason, invalid_ref, peer_error, store_status};
use crate::blob::BlobRef;
use crate::pb::v1;
use crate::store::{ByteStream, PeerError, StoreError};
use futures::StreamExt;
use futures::stream;
use std::time::Duration;
use tonic::{Request, Status, Streaming};
use v1::receive_blob_request::Part;

/// A header that makes sense.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// The ref that the bytes must have.
    pub blob: BlobRef,
    /// The number of bytes that will follow, where it is stated.
    pub size: Option<u64>,
    /// Whether the blob is to be written even where it is there already.
    pub replace: bool,
    /// The configured name of the store that holds the blob; may be empty. Not looked up yet.
    pub source_store: String,
}

/// Reads the header, and gives the rest of the stream as bytes.
///
/// The bytes end only where the client half-closed the stream (under [`serve`](super::serve), which tells a cut from an
/// end). Anything else is an error item, and the last: a cut stream, a second header, an empty message, or nothing for
/// `idle`. It is a [`StoreError::Peer`] whose code and reason [`store_status`] gives back.
///
/// # Errors
/// HEADER_MISSING, INVALID_REF, MESSAGE_EMPTY, STREAM_IDLE, or the stream's own status.
pub(crate) async fn read_header(
    request: Request<Streaming<v1::ReceiveBlobRequest>>,
    idle: Duration,
) -> Result<(Header, ByteStream), Status> {
    let mut messages = Messages { incoming: Incoming::of_request(request), idle: Idle::new(idle) };
    let first = next(&mut messages).await.map_err(|error| store_status(&StoreError::Peer(error), None))?;
    let header = match first {
        Some(Part::Header(header)) => header,
        Some(Part::Chunk(_)) => {
            return Err(Reason::HeaderMissing.status("the first message must carry the header; a chunk came"));
        }
        None => {
            return Err(Reason::HeaderMissing.status("the first message must carry the header; the stream was empty"));
        }
    };
    let blob = header.r#ref.parse().map_err(|error| invalid_ref("header.ref", &error))?;
    let header = Header { blob, size: header.size_bytes, replace: header.replace, source_store: header.source_store };
    let bytes = stream::unfold(Some(messages), move |messages| async move {
        let mut messages = messages?;
        match next(&mut messages).await {
            Ok(None) => None,
            Ok(Some(Part::Chunk(bytes))) => Some((Ok(bytes), Some(messages))),
            Ok(Some(Part::Header(_))) => {
                let error = Reason::HeaderRepeated.peer_error("a second header came on the stream");
                Some((Err(StoreError::Peer(error)), None))
            }
            Err(error) => Some((Err(StoreError::Peer(error)), None)),
        }
    });
    Ok((header, bytes.boxed()))
}

struct Messages {
    incoming: Incoming<v1::ReceiveBlobRequest>,
    idle: Idle,
}

/// The next message's part; `None` at the end.
async fn next(messages: &mut Messages) -> Result<Option<Part>, PeerError> {
    let Some(message) = messages.idle.wait_for(messages.incoming.message()).await else {
        let seconds = messages.idle.limit().as_secs_f64();
        return Err(Reason::StreamIdle.peer_error(format!("no message came for {seconds} s")));
    };
    match message {
        Err(status) => Err(peer_error(&explained(status))),
        Ok(None) => Ok(None),
        Ok(Some(v1::ReceiveBlobRequest { part: Some(part) })) => Ok(Some(part)),
        Ok(Some(v1::ReceiveBlobRequest { part: None })) => {
            Err(Reason::MessageEmpty.peer_error("a message carried neither a header nor a chunk"))
        }
    }
}
