//! What tonic refuses before a handler sees it: too large a message, one that does not parse, one that is compressed, a method
//! that is not there. It gives them a code and a few words, also with codes that mean something else by the protocol; here they
//! get their reason, and what to do.

use super::MAX_MESSAGE_BYTES;
use super::status::Reason;
use http::Response;
use tonic::body::Body;
use tonic::{Code, Status};

/// The status of a call, with a reason where tonic made it.
pub(super) fn explained(status: Status) -> Status {
    if !status.details().is_empty() {
        return status;
    }
    let message = status.message();
    match status.code() {
        Code::OutOfRange if message.starts_with("Error, decoded message length") => too_large(number_in(message)),
        Code::Internal if message.starts_with("failed to decode Protobuf") => Reason::MessageMalformed
            .status(format!("the message is not the one that the method takes: {message}; the files in proto/ have it")),
        Code::Unimplemented if message.starts_with("Content is compressed") => Reason::CompressionUnsupported
            .status("messages are not compressed here (grpc-encoding); send them as they are"),
        Code::Unimplemented if message.is_empty() => Reason::AbilityUnsupported.status(
            "this server has no such method: reflection lists those that it has, and GetPeerInfo says whether it is a store or a \
             replicator",
        ),
        _ => status,
    }
}

/// A message of so many bytes came.
fn too_large(bytes: u64) -> Status {
    Reason::MessageTooLarge.status_with(
        format!(
            "a message of {bytes} bytes came, and {MAX_MESSAGE_BYTES} are taken; send chunks, or fewer items at a time"
        ),
        [("max_message_bytes", MAX_MESSAGE_BYTES.to_string())],
    )
}

/// The first number in a text; 0 where there is none.
fn number_in(text: &str) -> u64 {
    let digits = text.split(|c: char| !c.is_ascii_digit()).find(|part| !part.is_empty());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(0)
}

/// The same for an answer that is nothing but its status.
pub(super) fn explain(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok && status.details().is_empty() => explained(status).into_http(),
        _ => response,
    }
}
