//! The kinds of fault, and what each says of whom.
//!
//! A [`FaultKind`] is what an operator groups by and what an entry remembers as its cause. A [`FailureClass`] is what the end
//! of an attempt says, and of whom: what decides whether an entry is charged, a peer is left alone for a while, or fewer
//! copies run at a time. Both follow from the type of an error, never from its text.

use std::fmt;
use std::time::Duration;

/// Why a copy, a sync or an announcement did not succeed.
///
/// The numbers are durable: entries in the queue keep them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[non_exhaustive]
#[repr(u8)]
pub enum FaultKind {
    /// The source store could not be reached, or failed for reasons of its own.
    SourceUnavailable = 1,
    /// The source store does not hold the blob (yet).
    MissingAtSource = 2,
    /// The source sent another number of bytes than it stated.
    SourceSizeMismatch = 3,
    /// The bytes that the source sent have another digest.
    SourceBytesCorrupt = 4,
    /// The source ended the stream before the last byte.
    ShortRead = 5,
    /// The source refused this blob for a reason of its own.
    SourceRejected = 6,
    /// The destination store could not be reached, or failed for reasons of its own.
    DestinationUnavailable = 7,
    /// The destination refused this blob.
    DestinationRejected = 8,
    /// The destination confirmed another ref, another size, or something else than STORED.
    DestinationConfirmedOther = 9,
    /// The queue could not write durably.
    QueueWriteFailed = 10,
    /// The copier panicked on this blob.
    Panicked = 11,
    /// A peer broke the protocol, for instance by an enumeration out of order.
    PeerProtocol = 12,
    /// A peer is not of the kind that its place in the route needs.
    WrongPeerKind = 13,
    /// Another store answers where a known one was.
    StoreIdChanged = 14,
    /// A store does not take refs of the blob's digest function.
    UnsupportedDigest = 15,
    /// The source refuses for want of capacity.
    SourceOverloaded = 16,
    /// The destination refuses for want of capacity, or has no room.
    DestinationOverloaded = 17,
    /// The connection was cut when some of the blob's bytes had passed.
    ConnectionCut = 18,
    /// A store moved fewer bytes of the blob in a minute than is asked of it.
    TooSlow = 19,
    /// The destination had all bytes, and did not confirm them in time.
    NotConfirmed = 20,
}

impl FaultKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [FaultKind; 20] = [
        Self::SourceUnavailable,
        Self::MissingAtSource,
        Self::SourceSizeMismatch,
        Self::SourceBytesCorrupt,
        Self::ShortRead,
        Self::SourceRejected,
        Self::DestinationUnavailable,
        Self::DestinationRejected,
        Self::DestinationConfirmedOther,
        Self::QueueWriteFailed,
        Self::Panicked,
        Self::PeerProtocol,
        Self::WrongPeerKind,
        Self::StoreIdChanged,
        Self::UnsupportedDigest,
        Self::SourceOverloaded,
        Self::DestinationOverloaded,
        Self::ConnectionCut,
        Self::TooSlow,
        Self::NotConfirmed,
    ];

    /// The stable name, as it stands in logs, metrics and JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::SourceUnavailable => "source_unavailable",
            Self::MissingAtSource => "missing_at_source",
            Self::SourceSizeMismatch => "source_size_mismatch",
            Self::SourceBytesCorrupt => "source_bytes_corrupt",
            Self::ShortRead => "short_read",
            Self::SourceRejected => "source_rejected",
            Self::DestinationUnavailable => "destination_unavailable",
            Self::DestinationRejected => "destination_rejected",
            Self::DestinationConfirmedOther => "destination_confirmed_other",
            Self::QueueWriteFailed => "queue_write_failed",
            Self::Panicked => "panicked",
            Self::PeerProtocol => "peer_protocol",
            Self::WrongPeerKind => "wrong_peer_kind",
            Self::StoreIdChanged => "store_id_changed",
            Self::UnsupportedDigest => "unsupported_digest",
            Self::SourceOverloaded => "source_overloaded",
            Self::DestinationOverloaded => "destination_overloaded",
            Self::ConnectionCut => "connection_cut",
            Self::TooSlow => "too_slow",
            Self::NotConfirmed => "not_confirmed",
        }
    }

    /// The durable number.
    pub const fn number(self) -> u8 {
        self as u8
    }

    /// The kind with this durable number, if there is one.
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.number() == number)
    }
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The side of a route where a fault happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Side {
    /// The store that is read.
    Source,
    /// The store that is written.
    Destination,
}

impl Side {
    /// The other one.
    pub const fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// What the end of a failed attempt says, and of whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// An answer about this blob: the entry's own.
    Answer {
        /// Whether trying again cannot help until somebody changes something.
        permanent: bool,
    },
    /// The peer's or the blob's, it does not show: a code without our details, a protocol error, a dead connection.
    Doubtful,
    /// The connection or the stream was cut when some bytes of this blob had passed.
    Cut,
    /// The peer refuses for want of capacity, or has no room: never the blob's.
    Overloaded {
        /// How long it asks to be left alone; absent where it does not say.
        retry_after: Option<Duration>,
    },
    /// Nothing moved for the idle timeout, or a deadline passed. A peer that hangs with everything says the same.
    TimedOut,
    /// The peer says that it has not begun with the call: it closes the connection. Says nothing of anybody.
    NotProcessed,
    /// We panicked on this blob.
    Panicked,
}

impl FailureClass {
    /// Whether trying again cannot help until somebody changes something.
    pub const fn is_permanent(self) -> bool {
        matches!(self, Self::Answer { permanent: true })
    }
}

#[cfg(test)]
mod tests {
    use super::FaultKind;

    #[test]
    fn numbers_and_names_are_unique_and_round_trip() {
        let mut names: Vec<_> = FaultKind::ALL.iter().map(|kind| kind.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), FaultKind::ALL.len());
        for kind in FaultKind::ALL {
            assert_eq!(FaultKind::from_number(kind.number()), Some(kind));
        }
        assert_eq!(FaultKind::from_number(0), None);
    }
}
