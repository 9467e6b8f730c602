//! What a failed copy says, and of whom.
//!
//! | What ended it | Class |
//! |---|---|
//! | the blob is missing, corrupt or of a wrong size; the peer refuses it by a reason of `blobferry.v1` that is about the blob | `Answer` |
//! | ... by a reason that is final for the blob, or the store in this process does | `Answer`, permanent |
//! | RESOURCE_EXHAUSTED; UNAVAILABLE with a time to try again; no space | `Overloaded` |
//! | DEADLINE_EXCEEDED; nothing moved for the idle timeout; not confirmed in time | `TimedOut` |
//! | the connection broke when bytes of the blob had passed | `Cut` |
//! | the peer closed the connection before it began with the call | `NotProcessed` |
//! | a panic | `Panicked` |
//! | anything else, too few bytes a second and another store among it | `Doubtful` |
//!
//! Whatever is said without one of our reasons may have been said by a proxy, a dying server or the connection, about any
//! blob. A reason that this version does not know is judged by its code.

use super::progress::{Overdue, RATED};
use crate::blob::{DigestFunction, Mismatch};
use crate::fault::{FailureClass, FaultKind, Side};
use crate::grpc::Reason;
use crate::store::{PeerError, StoreError, code_name};
use std::any::Any;
use std::fmt;
use std::time::Duration;
use tonic::Code;

/// The most of a message that is kept, in bytes.
const MAX_MESSAGE: usize = 500;

/// Why a blob was not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopyError {
    /// What kind of fault.
    pub kind: FaultKind,
    /// The side at fault; for a panic, the one that was being worked with.
    pub side: Side,
    /// The gRPC status code that came, or would have come, with it.
    pub code: Option<Code>,
    /// What was said or found, escaped and cut to 500 bytes.
    pub message: String,
    /// What it says, and of whom.
    pub class: FailureClass,
}

/// An answer about a blob that another attempt may get differently.
const ANSWER: FailureClass = FailureClass::Answer { permanent: false };

impl CopyError {
    /// What a store's error means for the copy. [`StoreError::Input`] is the source's, whoever returned it.
    pub fn of(error: &StoreError, side: Side) -> Self {
        if let StoreError::Input(inner) = error {
            return Self::of(inner, Side::Source);
        }
        let (kind, class) = judged(error, side);
        Self { kind, side, code: code_of(error), message: bounded(&error.to_string()), class }
    }

    /// A store does not list the blob's digest function among those that it takes, which are `listed`: the blob is not sent.
    /// To be parked at once.
    pub fn unsupported_digest(side: Side, function: DigestFunction, listed: &[DigestFunction]) -> Self {
        let listed: Vec<_> = listed.iter().map(|function| function.name()).collect();
        let listed = if listed.is_empty() { "none that is known here".to_owned() } else { listed.join(", ") };
        let message = format!(
            "the store takes no {} refs, only {listed}; update it or have it take them, then retry the entry",
            function.name()
        );
        let class = FailureClass::Answer { permanent: true };
        Self { class, ..Self::charged(FaultKind::UnsupportedDigest, side, &message) }
    }

    /// A fault of the blob itself.
    pub(super) fn charged(kind: FaultKind, side: Side, message: &str) -> Self {
        Self { kind, side, code: None, message: bounded(message), class: ANSWER }
    }

    /// A refusal that stays one, however often it is tried.
    pub(super) fn rejected_for_good(message: &str) -> Self {
        let error = Self::charged(FaultKind::DestinationRejected, Side::Destination, message);
        Self { code: Some(Code::Unimplemented), class: FailureClass::Answer { permanent: true }, ..error }
    }

    /// A side was waited for too long.
    pub(super) fn overdue(overdue: Overdue) -> Self {
        let text = humantime::format_duration;
        let (kind, side, class, message) = match overdue {
            Overdue::Idle(side, idle) => {
                let message = format!("no progress for {} (idle_timeout)", text(idle));
                (unavailable(side), side, FailureClass::TimedOut, message)
            }
            Overdue::Confirmation(limit) => {
                let message =
                    format!("all bytes were sent, and not confirmed within {} (confirm_timeout)", text(limit));
                (FaultKind::NotConfirmed, Side::Destination, FailureClass::TimedOut, message)
            }
            Overdue::TooSlow { side, moved, least } => {
                let message = format!(
                    "{moved} bytes moved in the {} that this store was waited for, fewer than {least} a second \
                     (min_bytes_per_second)",
                    text(RATED)
                );
                (FaultKind::TooSlow, side, FailureClass::Doubtful, message)
            }
        };
        Self { code: Some(Code::DeadlineExceeded), class, ..Self::charged(kind, side, &message) }
    }

    /// A store's error that came after so long, when so many of the blob's bytes had passed: a cut, if it is a broken connection's and no
    /// answer. A server that says why it stopped is believed.
    pub(super) fn under_way(error: &StoreError, side: Side, (passed, size): (u64, u64), took: Duration) -> Self {
        let of = Self::of(error, side);
        // What tonic and proxies make of a connection or a stream that breaks.
        let broke = matches!(
            error,
            StoreError::Peer(PeerError {
                code: Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled,
                reason: None,
                ..
            })
        );
        if !broke || of.class != FailureClass::Doubtful {
            return of;
        }
        let seconds = took.as_secs_f64();
        let message = format!("cut after {seconds:.1} s, and {passed} of {size} bytes: {}", of.message);
        Self { kind: FaultKind::ConnectionCut, message: bounded(&message), class: FailureClass::Cut, ..of }
    }

    /// A panic while this blob was copied.
    pub(super) fn panicked(side: Side, panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message");
        let error = Self::charged(FaultKind::Panicked, side, &format!("the copier panicked: {text}"));
        Self { class: FailureClass::Panicked, ..error }
    }
}

impl fmt::Display for CopyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)?;
        self.code.map_or(Ok(()), |code| write!(f, " [{}]", code_name(code)))
    }
}

impl std::error::Error for CopyError {}

const fn unavailable(side: Side) -> FaultKind {
    match side {
        Side::Source => FaultKind::SourceUnavailable,
        Side::Destination => FaultKind::DestinationUnavailable,
    }
}

const fn rejected(side: Side) -> FaultKind {
    match side {
        Side::Source => FaultKind::SourceRejected,
        Side::Destination => FaultKind::DestinationRejected,
    }
}

const fn overloaded(side: Side) -> FaultKind {
    match side {
        Side::Source => FaultKind::SourceOverloaded,
        Side::Destination => FaultKind::DestinationOverloaded,
    }
}

fn judged(error: &StoreError, side: Side) -> (FaultKind, FailureClass) {
    let at_source = side == Side::Source;
    match error {
        StoreError::Missing(_) if at_source => (FaultKind::MissingAtSource, ANSWER),
        StoreError::Corrupt { .. } | StoreError::Mismatch(Mismatch::Digest { .. }) if at_source => {
            (FaultKind::SourceBytesCorrupt, ANSWER)
        }
        StoreError::Mismatch(Mismatch::TooLong { .. }) if at_source => (FaultKind::SourceSizeMismatch, ANSWER),
        StoreError::Mismatch(Mismatch::TooShort { .. }) if at_source => (FaultKind::ShortRead, ANSWER),
        StoreError::Corrupt { .. } | StoreError::Mismatch(_) => (rejected(side), ANSWER),
        StoreError::TooLarge { .. } | StoreError::Invalid(_) => {
            (rejected(side), FailureClass::Answer { permanent: true })
        }
        StoreError::NoSpace(_) => (overloaded(side), FailureClass::Overloaded { retry_after: None }),
        // Nothing that a destination could miss was asked of it.
        StoreError::Missing(_) | StoreError::Protocol(_) => (FaultKind::PeerProtocol, FailureClass::Doubtful),
        StoreError::OtherStore { .. } => (FaultKind::StoreIdChanged, FailureClass::Doubtful),
        StoreError::NotProcessed => (unavailable(side), FailureClass::NotProcessed),
        StoreError::Peer(error) => judged_peer(error, side),
        StoreError::Unsupported(_) | StoreError::Io { .. } | StoreError::Input(_) => {
            (unavailable(side), FailureClass::Doubtful)
        }
    }
}

fn judged_peer(error: &PeerError, side: Side) -> (FaultKind, FailureClass) {
    let PeerError { code, reason, retry_after, .. } = error;
    match (code, retry_after) {
        (Code::ResourceExhausted, _) | (Code::Unavailable, Some(_)) => {
            return (overloaded(side), FailureClass::Overloaded { retry_after: *retry_after });
        }
        (Code::DeadlineExceeded, _) => return (unavailable(side), FailureClass::TimedOut),
        _ => {}
    }
    let doubtful = (unavailable(side), FailureClass::Doubtful);
    let Some(text) = reason else { return doubtful };
    let known = Reason::from_text(text);
    if known.is_some_and(|reason| !reason.is_of_the_blob()) {
        return doubtful;
    }
    let permanent = known.is_some_and(|reason| reason.is_final_for_the_blob() && reason.code() == *code);
    let kind = match (code, side) {
        (Code::NotFound, Side::Source) => FaultKind::MissingAtSource,
        (Code::DataLoss, Side::Source) => FaultKind::SourceBytesCorrupt,
        (Code::DataLoss, Side::Destination) | (Code::InvalidArgument | Code::OutOfRange, _) => rejected(side),
        _ if permanent => rejected(side),
        _ => return doubtful,
    };
    (kind, FailureClass::Answer { permanent })
}

fn code_of(error: &StoreError) -> Option<Code> {
    match error {
        StoreError::Missing(_) => Some(Code::NotFound),
        StoreError::Corrupt { .. } => Some(Code::DataLoss),
        StoreError::Mismatch(_) | StoreError::Invalid(_) => Some(Code::InvalidArgument),
        StoreError::TooLarge { .. } => Some(Code::OutOfRange),
        StoreError::Unsupported(_) => Some(Code::Unimplemented),
        StoreError::NoSpace(_) => Some(Code::ResourceExhausted),
        StoreError::Peer(error) => Some(error.code),
        StoreError::OtherStore { .. } => Some(Code::FailedPrecondition),
        StoreError::NotProcessed => Some(Code::Unavailable),
        StoreError::Io { .. } | StoreError::Input(_) | StoreError::Protocol(_) => None,
    }
}

/// Control characters escaped, cut to a bounded length.
fn bounded(text: &str) -> String {
    let mut out = String::with_capacity(text.len().min(MAX_MESSAGE));
    for character in text.chars() {
        if out.len() + 10 > MAX_MESSAGE {
            out.push('…');
            break;
        }
        if character.is_control() {
            out.extend(character.escape_default());
        } else {
            out.push(character);
        }
    }
    out
}
