//! The one table between errors and statuses, both ways.
//!
//! | error | code | reason |
//! |---|---|---|
//! | `Missing` | NOT_FOUND | BLOB_MISSING |
//! | `Corrupt` | DATA_LOSS | BLOB_CORRUPT |
//! | `Mismatch` | INVALID_ARGUMENT | DIGEST_MISMATCH, SIZE_MISMATCH |
//! | `TooLarge` | OUT_OF_RANGE | BLOB_TOO_LARGE |
//! | `Invalid` | INVALID_ARGUMENT | INVALID_FIELD |
//! | `Unsupported` | UNIMPLEMENTED | ABILITY_UNSUPPORTED |
//! | `NoSpace` | RESOURCE_EXHAUSTED | NO_SPACE |
//! | `Io` | INTERNAL | STORE_FAILED |
//! | `Protocol` | INTERNAL | INTERNAL |
//! | `OtherStore` | FAILED_PRECONDITION | STORE_ID_MISMATCH |
//! | `NotProcessed` | UNAVAILABLE | PEER_UNAVAILABLE |
//! | `Peer` | as it was | as it was |
//! | `Input` | that of the error inside | |
//! | `QueueError::{Write, Read}` | UNAVAILABLE | QUEUE_UNAVAILABLE |
//! | `QueueError::Full` | RESOURCE_EXHAUSTED, RetryInfo | QUEUE_FULL |
//! | `QueueError::NoSpace` | RESOURCE_EXHAUSTED, RetryInfo | NO_SPACE |
//! | `QueueError::Closed` | UNAVAILABLE | SHUTTING_DOWN |
//! | `QueueError::RouteChanged` | INTERNAL | INTERNAL |
//!
//! On the way back only what every store means by the same word becomes an error of its own: `Missing` and `Corrupt`. All
//! else stays a [`PeerError`] with its code and reason, and with the time after which the peer wants to be asked again:
//! `google.rpc.RetryInfo`, or gRPC's own `grpc-retry-pushback-ms` (gRFC A6).

use super::connections::{NotProcessed, OtherStore};
use crate::blob::{BlobRef, Mismatch, RefError};
use crate::pb::DOMAIN;
#[cfg(feature = "server")]
use crate::queue::QueueError;
use crate::store::{PeerError, StoreError};
use crate::words::is_unsafe;
use std::collections::HashMap;
use std::error::Error as _;
use std::time::Duration;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// The longest message of a peer that is kept, in characters.
const PEER_MESSAGE_CHARS: usize = 300;

/// The longest message that is sent, in characters: headers have a limit too.
const OWN_MESSAGE_CHARS: usize = 1000;

/// The longest reason that is kept, in characters. `ErrorInfo` allows 63.
const REASON_CHARS: usize = 63;

/// The longest time for which a peer can hold us off: as long as an entry's longest backoff. More is cut to it.
const MAX_RETRY_AFTER: Duration = Duration::from_mins(10);

/// The trailer by which a server says in how many milliseconds to try again; negative: not at all.
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// When to try again at a full queue: copying frees entries all the time.
const RETRY_WHEN_FULL: Duration = Duration::from_secs(5);

/// When to try again at a full disk: somebody has to free space.
const RETRY_WHEN_NO_SPACE: Duration = Duration::from_secs(30);

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $code:ident;)*) => {
        /// The stable reasons of errors: the proto's `ErrorReason`, each with the code that it comes with.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[non_exhaustive]
        pub(crate) enum Reason { $($(#[$doc])* $name,)* }

        impl Reason {
            /// All reasons.
            pub(crate) const ALL: &[Reason] = &[$(Self::$name,)*];

            /// The reason as it stands in `ErrorInfo.reason`.
            pub(crate) const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The status code that it comes with.
            pub(crate) const fn code(self) -> Code {
                match self { $(Self::$name => Code::$code,)* }
            }
        }
    };
}

reasons! {
    /// The store does not hold the blob.
    BlobMissing = "BLOB_MISSING", NotFound;
    /// The store's bytes are not those of the ref.
    BlobCorrupt = "BLOB_CORRUPT", DataLoss;
    /// The bytes received have another digest.
    DigestMismatch = "DIGEST_MISMATCH", InvalidArgument;
    /// More or fewer bytes came than were stated.
    SizeMismatch = "SIZE_MISMATCH", InvalidArgument;
    /// The blob is larger than the peer takes.
    BlobTooLarge = "BLOB_TOO_LARGE", OutOfRange;
    /// A ref is badly formed.
    InvalidRef = "INVALID_REF", InvalidArgument;
    /// The stream does not begin with a header.
    HeaderMissing = "HEADER_MISSING", InvalidArgument;
    /// A second header came.
    HeaderRepeated = "HEADER_REPEATED", InvalidArgument;
    /// A message carried nothing.
    MessageEmpty = "MESSAGE_EMPTY", InvalidArgument;
    /// More refs than one request may name.
    TooManyItems = "TOO_MANY_ITEMS", InvalidArgument;
    /// The offset lies beyond the end of the blob.
    OffsetOutOfRange = "OFFSET_OUT_OF_RANGE", OutOfRange;
    /// A message is larger than this server takes.
    MessageTooLarge = "MESSAGE_TOO_LARGE", OutOfRange;
    /// A message does not parse.
    MessageMalformed = "MESSAGE_MALFORMED", InvalidArgument;
    /// A message is compressed.
    CompressionUnsupported = "COMPRESSION_UNSUPPORTED", Unimplemented;
    /// Some other field is not valid.
    InvalidField = "INVALID_FIELD", InvalidArgument;
    /// The peer does not offer the method.
    AbilityUnsupported = "ABILITY_UNSUPPORTED", Unimplemented;
    /// The peer cannot replace a blob that it holds.
    ReplaceUnsupported = "REPLACE_UNSUPPORTED", FailedPrecondition;
    /// No store of that name is configured.
    UnknownStore = "UNKNOWN_STORE", InvalidArgument;
    /// No store was named, and it is not clear which is meant.
    AmbiguousStore = "AMBIGUOUS_STORE", InvalidArgument;
    /// No route of that name is configured.
    UnknownRoute = "UNKNOWN_ROUTE", InvalidArgument;
    /// No route was named, and there is not exactly one.
    AmbiguousRoute = "AMBIGUOUS_ROUTE", InvalidArgument;
    /// No enabled route starts at the store.
    NoEnabledRoute = "NO_ENABLED_ROUTE", FailedPrecondition;
    /// The route is disabled by its configuration.
    RouteDisabled = "ROUTE_DISABLED", FailedPrecondition;
    /// The route is no longer configured.
    RouteOrphaned = "ROUTE_ORPHANED", FailedPrecondition;
    /// The route is configured, and cannot be dropped.
    RouteConfigured = "ROUTE_CONFIGURED", FailedPrecondition;
    /// The store has another id than the one to be adopted.
    StoreIdMismatch = "STORE_ID_MISMATCH", FailedPrecondition;
    /// A store does not answer, and must.
    PeerUnavailable = "PEER_UNAVAILABLE", Unavailable;
    /// Another full sync runs on the route.
    SyncRunning = "SYNC_RUNNING", FailedPrecondition;
    /// There is no such full sync.
    SyncNotFound = "SYNC_NOT_FOUND", NotFound;
    /// This version does not offer the mode.
    ModeUnsupported = "MODE_UNSUPPORTED", InvalidArgument;
    /// The request id was used before for a different request.
    RequestIdReused = "REQUEST_ID_REUSED", InvalidArgument;
    /// A store lacks an ability that is needed.
    PeerUnsuitable = "PEER_UNSUITABLE", FailedPrecondition;
    /// The queue cannot write durably.
    QueueUnavailable = "QUEUE_UNAVAILABLE", Unavailable;
    /// The queue holds as many entries as it may.
    QueueFull = "QUEUE_FULL", ResourceExhausted;
    /// A disk has no room.
    NoSpace = "NO_SPACE", ResourceExhausted;
    /// The server is shutting down.
    ShuttingDown = "SHUTTING_DOWN", Unavailable;
    /// The server has as many calls in progress as it may.
    TooBusy = "TOO_BUSY", ResourceExhausted;
    /// The other side stood still for too long.
    StreamIdle = "STREAM_IDLE", DeadlineExceeded;
    /// The store's own medium failed.
    StoreFailed = "STORE_FAILED", Internal;
    /// The wait token is not known.
    WaitTokenNotFound = "WAIT_TOKEN_NOT_FOUND", NotFound;
    /// A fault of the server itself.
    Internal = "INTERNAL", Internal;
}

impl Reason {
    /// The reason with this text; `None` for one that this version does not know.
    pub(crate) fn from_text(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
    }

    /// Whether it is said of the blob that was sent or asked for. All others are the peer's, or of the call as such: a proxy
    /// that mangles streams or a peer that is no store would draw them with any blob.
    pub(crate) const fn is_of_the_blob(self) -> bool {
        matches!(
            self,
            Self::BlobMissing
                | Self::BlobCorrupt
                | Self::DigestMismatch
                | Self::SizeMismatch
                | Self::BlobTooLarge
                | Self::InvalidRef
                | Self::OffsetOutOfRange
                | Self::InvalidField
                | Self::ReplaceUnsupported
        )
    }

    /// Whether the same blob gets the same answer until somebody changes the peer or its configuration; the list stands in
    /// `errors.proto` too. Not among them are a blob that is missing (it may be written yet) or corrupt (a repair may
    /// replace it), bytes that may have been changed on the way, and an offset, which another attempt does not have.
    pub(crate) const fn is_final_for_the_blob(self) -> bool {
        matches!(self, Self::BlobTooLarge | Self::InvalidRef | Self::InvalidField | Self::ReplaceUnsupported)
    }

    /// A status of this reason.
    pub(crate) fn status(self, message: impl AsRef<str>) -> Status {
        self.status_with(message, [])
    }

    /// A status of this reason with metadata, such as `ref`.
    pub(crate) fn status_with<const N: usize>(
        self,
        message: impl AsRef<str>,
        metadata: [(&'static str, String); N],
    ) -> Status {
        self.detailed(message, self.details(metadata))
    }

    /// A status of this reason that says when to try again.
    pub(crate) fn status_retry(self, message: impl AsRef<str>, after: Duration) -> Status {
        let mut details = self.details([]);
        details.set_retry_info(Some(after));
        self.detailed(message, details)
    }

    /// The same as an error of a peer, for what is found wrong in the midst of a byte stream.
    pub(crate) fn peer_error(self, message: impl AsRef<str>) -> PeerError {
        let message = bounded(message.as_ref(), PEER_MESSAGE_CHARS);
        PeerError { reason: Some(self.as_str().into()), ..PeerError::bare(self.code(), message) }
    }

    fn details<const N: usize>(self, metadata: [(&'static str, String); N]) -> ErrorDetails {
        let metadata: HashMap<String, String> =
            metadata.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        ErrorDetails::with_error_info(self.as_str(), DOMAIN, metadata)
    }

    fn detailed(self, message: impl AsRef<str>, details: ErrorDetails) -> Status {
        Status::with_error_details(self.code(), bounded(message.as_ref(), OWN_MESSAGE_CHARS), details)
    }
}

/// INVALID_REF, naming the field, such as `header.ref` or `refs[3]`.
pub(crate) fn invalid_ref(field: &str, error: &RefError) -> Status {
    bad_request(Reason::InvalidRef, field, &error.to_string())
}

/// INVALID_FIELD, naming the field and what to do.
pub(crate) fn invalid_field(field: &str, description: &str) -> Status {
    bad_request(Reason::InvalidField, field, description)
}

fn bad_request(reason: Reason, field: &str, description: &str) -> Status {
    let description = bounded(description, OWN_MESSAGE_CHARS);
    let mut details = reason.details([]);
    details.add_bad_request_violation(field, description.as_str());
    reason.detailed(format!("{field}: {description}"), details)
}

/// DIGEST_MISMATCH or SIZE_MISMATCH for bytes that were received for `blob`.
pub(crate) fn mismatch_status(blob: &BlobRef, mismatch: &Mismatch) -> Status {
    let message = mismatch.to_string();
    match mismatch {
        Mismatch::Digest { expected, actual, .. } => Reason::DigestMismatch
            .status_with(message, [("ref", expected.to_string()), ("actual_ref", actual.to_string())]),
        Mismatch::TooLong { .. } | Mismatch::TooShort { .. } => {
            Reason::SizeMismatch.status_with(message, [("ref", blob.to_string())])
        }
    }
}

/// What a caller is told of a store's error; `blob` is what the call was about, if it was about one.
pub(crate) fn store_status(error: &StoreError, blob: Option<&BlobRef>) -> Status {
    let message = error.to_string();
    match error {
        StoreError::Missing(blob) => Reason::BlobMissing.status_with(message, [("ref", blob.to_string())]),
        StoreError::Corrupt { blob, .. } => Reason::BlobCorrupt.status_with(message, [("ref", blob.to_string())]),
        StoreError::Mismatch(mismatch) => match (mismatch, blob) {
            (Mismatch::Digest { expected, .. }, _) => mismatch_status(expected, mismatch),
            (_, Some(blob)) => mismatch_status(blob, mismatch),
            (_, None) => Reason::SizeMismatch.status(message),
        },
        StoreError::TooLarge { limit } => {
            Reason::BlobTooLarge.status_with(message, [("max_blob_bytes", limit.to_string())])
        }
        StoreError::Invalid(_) => Reason::InvalidField.status(message),
        StoreError::Unsupported(_) => Reason::AbilityUnsupported.status(message),
        StoreError::NoSpace(_) => Reason::NoSpace.status(message),
        StoreError::Io { .. } => Reason::StoreFailed.status(message),
        StoreError::Protocol(_) => Reason::Internal.status(message),
        StoreError::OtherStore { .. } => Reason::StoreIdMismatch.status(message),
        StoreError::NotProcessed => Reason::PeerUnavailable.status(message),
        StoreError::Input(inner) => store_status(inner, blob),
        StoreError::Peer(PeerError { code, reason, message, retry_after }) => {
            if reason.is_none() && retry_after.is_none() {
                return Status::new(*code, message.as_str());
            }
            let mut details = ErrorDetails::new();
            if let Some(reason) = reason {
                details.set_error_info(&**reason, DOMAIN, HashMap::new());
            }
            if retry_after.is_some() {
                details.set_retry_info(*retry_after);
            }
            Status::with_error_details(*code, message.as_str(), details)
        }
    }
}

#[cfg(feature = "server")]
/// What a caller is told of the queue's error.
pub(crate) fn queue_status(error: &QueueError) -> Status {
    let message = error.to_string();
    match error {
        QueueError::Write(_) | QueueError::Read(_) => Reason::QueueUnavailable.status(message),
        QueueError::Full { .. } => Reason::QueueFull.status_retry(message, RETRY_WHEN_FULL),
        QueueError::NoSpace { .. } => Reason::NoSpace.status_retry(message, RETRY_WHEN_NO_SPACE),
        QueueError::RouteChanged { .. } => Reason::Internal.status(message),
        QueueError::Closed => Reason::ShuttingDown.status("the server is shutting down; retry, here or elsewhere"),
    }
}

/// What a peer's status means to the caller of a store; `blob` is what the call was about, if it was about one.
pub(crate) fn store_error(status: &Status, blob: Option<&BlobRef>) -> StoreError {
    if let Some(source) = status.source() {
        if let Some(OtherStore { expected, found }) = source.downcast_ref() {
            return StoreError::OtherStore { expected: expected.clone(), found: found.clone() };
        }
        if source.is::<NotProcessed>() {
            return StoreError::NotProcessed;
        }
    }
    let error = peer_error(status);
    match (error.code, error.reason.as_deref(), blob) {
        (Code::NotFound, Some("BLOB_MISSING"), Some(blob)) => StoreError::Missing(*blob),
        (Code::DataLoss, Some("BLOB_CORRUPT"), Some(blob)) => {
            // Its words are those of this very error.
            let own = StoreError::Corrupt { blob: *blob, detail: String::new() }.to_string();
            let detail = error.message.strip_prefix(&own).unwrap_or(&error.message).to_owned();
            StoreError::Corrupt { blob: *blob, detail }
        }
        _ => StoreError::Peer(error),
    }
}

/// A peer's status, its message escaped and cut.
pub(crate) fn peer_error(status: &Status) -> PeerError {
    let details = status.get_error_details();
    let reason = details.error_info().filter(|info| info.domain == DOMAIN && !info.reason.is_empty());
    let reason = reason.map(|info| bounded(&info.reason, REASON_CHARS).into());
    let mut message = status.message().to_owned();
    // A transport's error says what happened only in its sources.
    let mut source = status.source();
    while let Some(error) = source {
        let text = error.to_string();
        if !message.contains(&text) {
            message = if message.is_empty() { text } else { format!("{message}: {text}") };
        }
        source = error.source();
    }
    if message.is_empty() {
        message = "the peer gave no message".to_owned();
    }
    let retry_after = details.retry_info().and_then(|info| info.retry_delay).or_else(|| pushback(status));
    let retry_after = retry_after.map(|after| after.min(MAX_RETRY_AFTER));
    PeerError { code: status.code(), reason, message: bounded(&message, PEER_MESSAGE_CHARS), retry_after }
}

/// What the server says by [`PUSHBACK`], unless it is nonsense or "not at all".
fn pushback(status: &Status) -> Option<Duration> {
    let millis = status.metadata().get(PUSHBACK)?.to_str().ok()?.parse().ok()?;
    Some(Duration::from_millis(millis))
}

/// A text of at most this many characters, in one line and without anything that could steer a terminal.
fn bounded(text: &str, max: usize) -> String {
    let mut out = String::with_capacity(text.len().min(4 * max));
    for (count, c) in text.chars().enumerate() {
        if count == max {
            out.push('…');
            break;
        }
        if is_unsafe(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests;
