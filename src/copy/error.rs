//! Whose fault a failed copy is: the rule of blame.
//!
//! Errors of one blob (missing, corrupt, of a wrong size, or refused with a reason in the domain `blobferry.v1`) belong to its
//! entry. Everything else belongs to the peer: whatever is said without such a reason may have been said by a proxy, a
//! dying server or the connection, about any blob.

use crate::blob::Mismatch;
use crate::fault::{Blame, Fault, FaultKind, Side};
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
    blame: Blame,
    permanent: bool,
}

impl CopyError {
    /// What a store's error means for the copy. [`StoreError::Input`] is the source's, whoever returned it.
    pub fn of(error: &StoreError, side: Side) -> Self {
        if let StoreError::Input(inner) = error {
            return Self::of(inner, Side::Source);
        }
        let (kind, blame) = match side {
            Side::Source => of_source(error),
            Side::Destination => of_destination(error),
        };
        Self {
            kind,
            side,
            code: code_of(error),
            message: bounded(&error.to_string()),
            blame,
            permanent: matches!(error, StoreError::TooLarge { .. }),
        }
    }

    /// A fault of the blob itself.
    pub(super) fn charged(kind: FaultKind, side: Side, message: &str) -> Self {
        Self { kind, side, code: None, message: bounded(message), blame: Blame::Entry, permanent: false }
    }

    /// A refusal that stays one, however often it is tried.
    pub(super) fn rejected_for_good(message: &str) -> Self {
        let error = Self::charged(FaultKind::DestinationRejected, Side::Destination, message);
        Self { code: Some(Code::Unimplemented), permanent: true, ..error }
    }

    /// No byte of progress for too long.
    pub(super) fn stalled(side: Side, idle: Duration) -> Self {
        Self {
            code: Some(Code::DeadlineExceeded),
            blame: Blame::Peer(side),
            ..Self::charged(unavailable(side), side, &format!("no progress for {}", humantime::format_duration(idle)))
        }
    }

    /// A panic while this blob was copied.
    pub(super) fn panicked(side: Side, panic: &(dyn Any + Send)) -> Self {
        let text = panic.downcast_ref::<&str>().copied();
        let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("without a message");
        Self::charged(FaultKind::Panicked, side, &format!("the copier panicked: {text}"))
    }

    /// Who answers for it.
    pub fn blame(&self) -> Blame {
        self.blame
    }

    /// Whether trying again cannot help until somebody changes something.
    pub fn is_permanent(&self) -> bool {
        self.permanent
    }
}

impl Fault for CopyError {
    fn kind(&self) -> FaultKind {
        self.kind
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

fn of_source(error: &StoreError) -> (FaultKind, Blame) {
    let peers = Blame::Peer(Side::Source);
    match error {
        StoreError::Missing(_) => (FaultKind::MissingAtSource, Blame::Entry),
        StoreError::Corrupt { .. } | StoreError::Mismatch(Mismatch::Digest { .. }) => {
            (FaultKind::SourceBytesCorrupt, Blame::Entry)
        }
        StoreError::Mismatch(Mismatch::TooLong { .. }) => (FaultKind::SourceSizeMismatch, Blame::Entry),
        StoreError::Mismatch(Mismatch::TooShort { .. }) => (FaultKind::ShortRead, Blame::Entry),
        StoreError::TooLarge { .. } | StoreError::Invalid(_) => (FaultKind::SourceRejected, Blame::Entry),
        StoreError::Protocol(_) => (FaultKind::PeerProtocol, peers),
        StoreError::Peer(PeerError { code, reason: Some(_), .. }) => match code {
            Code::NotFound => (FaultKind::MissingAtSource, Blame::Entry),
            Code::DataLoss => (FaultKind::SourceBytesCorrupt, Blame::Entry),
            Code::InvalidArgument | Code::OutOfRange => (FaultKind::SourceRejected, Blame::Entry),
            _ => (FaultKind::SourceUnavailable, peers),
        },
        StoreError::Peer(_)
        | StoreError::Unsupported(_)
        | StoreError::NoSpace(_)
        | StoreError::Io { .. }
        | StoreError::Input(_) => (FaultKind::SourceUnavailable, peers),
    }
}

fn of_destination(error: &StoreError) -> (FaultKind, Blame) {
    let peers = Blame::Peer(Side::Destination);
    match error {
        StoreError::Corrupt { .. } | StoreError::Mismatch(_) | StoreError::TooLarge { .. } | StoreError::Invalid(_) => {
            (FaultKind::DestinationRejected, Blame::Entry)
        }
        StoreError::Peer(PeerError { code, reason: Some(_), .. }) => match code {
            Code::DataLoss | Code::InvalidArgument | Code::OutOfRange => (FaultKind::DestinationRejected, Blame::Entry),
            _ => (FaultKind::DestinationUnavailable, peers),
        },
        // Nothing that it could miss was asked of it.
        StoreError::Missing(_) | StoreError::Protocol(_) => (FaultKind::PeerProtocol, peers),
        StoreError::Peer(_)
        | StoreError::Unsupported(_)
        | StoreError::NoSpace(_)
        | StoreError::Io { .. }
        | StoreError::Input(_) => (FaultKind::DestinationUnavailable, peers),
    }
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
