//! The store port: what every blob store can do, wherever it is.
//!
//! Implementations mean the same by the same method; the conformance suite holds them to it. All of them keep these promises:
//!
//! - [`Store::receive`] reads its stream to the end and verifies every byte, also for a blob that is there already. It
//!   commits atomically and durably, only after the digest matched, and only if the future is polled to its end: a dropped
//!   future or a failed stream commits nothing.
//! - [`Store::enumerate`] is strictly ascending in the text order of refs, and ends with an [`EnumerateEnd`]; a stream that
//!   stops without one was cut.
//! - Blobs are immutable; nothing here deletes one.

#[cfg(feature = "server")]
mod bounds;
#[cfg(feature = "server")]
pub(crate) mod conformance;
#[cfg(feature = "server")]
pub(crate) mod disk;
#[cfg(feature = "server")]
pub(crate) mod faulty;
#[cfg(feature = "server")]
pub(crate) mod memory;
pub(crate) mod packed;
#[cfg(feature = "server")]
mod prefix;
pub(crate) mod remote;

use crate::blob::{BlobMeta, BlobRef, DigestFunction, Excerpt, Mismatch};
use crate::failpoint::Injected;
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use packed::{Answers, MAX_PACKED_BYTES, Packed, Parcel, Want};
use std::sync::Arc;
use std::time::Duration;

/// A blob's bytes in order, in chunks of any size.
pub type ByteStream = BoxStream<'static, Result<Bytes, StoreError>>;

/// A store in progress of being listed.
pub type Enumeration = BoxStream<'static, Result<EnumeratePage, StoreError>>;

/// What a peer is, to those that would read from it or write to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerKind {
    /// Holds blobs durably and gives them back.
    Store,
    /// Takes blobs and gives none back (an indexer, for instance).
    ReceiveOnly,
    /// A replicator: takes announcements, holds nothing.
    Replicator,
}

impl PeerKind {
    /// The kind's name in logs and messages.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Store => "store",
            Self::ReceiveOnly => "receive-only",
            Self::Replicator => "replicator",
        }
    }
}

/// What a store can do beyond receiving.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Abilities {
    /// Answers `stat`.
    pub stat: bool,
    /// Answers `fetch`.
    pub fetch: bool,
    /// Answers `enumerate`.
    pub enumerate: bool,
    /// Honours [`Put::replace`].
    pub replace: bool,
    /// Moves many small blobs packed into few messages.
    pub packed: bool,
    /// Re-hashes blobs where they lie.
    pub verify: bool,
}

/// What a store tells of itself. Asked again on every new connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreInfo {
    /// Names this very store for ever; absent where the peer has none, and then nothing can tell that it was swapped.
    pub store_id: Option<String>,
    /// What the peer is.
    pub kind: PeerKind,
    /// The peer's software and its version, for people.
    pub version: String,
    /// The digest functions whose refs it takes.
    pub functions: Vec<DigestFunction>,
    /// The largest blob it takes, in bytes; absent: no limit of its own.
    pub max_blob_bytes: Option<u64>,
    /// The largest message it takes, in bytes; absent: unknown.
    pub max_message_bytes: Option<u64>,
    /// What else it can do.
    pub abilities: Abilities,
    /// The largest blob that it takes or gives packed, in bytes; absent where it cannot.
    pub max_packed_bytes: Option<u64>,
}

impl StoreInfo {
    /// What a store of this crate tells of itself; `place` says where it keeps its blobs.
    pub(crate) fn of_own(store_id: &str, place: &str) -> Self {
        Self {
            store_id: Some(store_id.to_owned()),
            kind: PeerKind::Store,
            version: format!("blobferry {} ({place})", env!("CARGO_PKG_VERSION")),
            functions: DigestFunction::ALL.to_vec(),
            max_blob_bytes: None,
            max_message_bytes: None,
            abilities: Abilities {
                stat: true,
                fetch: true,
                enumerate: true,
                replace: true,
                packed: true,
                verify: false,
            },
            max_packed_bytes: Some(MAX_PACKED_BYTES),
        }
    }
}

/// What precedes the bytes of a blob that is to be written.
#[derive(Clone, Debug)]
pub struct Put {
    /// The ref that the bytes must have.
    pub blob: BlobRef,
    /// The size in bytes that must come, where it is known.
    pub size: Option<u64>,
    /// Write the blob even where it is there already: its bytes there were proven wrong.
    pub replace: bool,
}

/// What a receiver did with a blob.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// It is held durably, and can be read back.
    Stored,
    /// It was used up (indexed, forwarded); it cannot be read back.
    Consumed,
    /// Only its ref was queued: the answer of a replicator.
    Enqueued,
}

/// A receiver's confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// The ref it confirms.
    pub blob: BlobRef,
    /// The number of bytes it verified.
    pub size: u64,
    /// What became of them.
    pub disposition: Disposition,
    /// Whether the blob was new to it.
    pub was_new: bool,
}

/// Which part of a blob to read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteRange {
    /// The first byte, counted from 0; at most the blob's size.
    pub offset: u64,
    /// How many bytes at most; absent: to the end.
    pub length: Option<u64>,
}

impl ByteRange {
    /// Where the range begins and ends in a blob of this size, in bytes; [`StoreError::Invalid`] if it begins behind it.
    pub fn within(&self, size: u64) -> Result<(u64, u64), StoreError> {
        if self.offset > size {
            let offset = self.offset;
            return Err(StoreError::Invalid(format!("offset {offset} lies behind the blob's {size} bytes")));
        }
        let length = self.length.unwrap_or(u64::MAX).min(size - self.offset);
        Ok((self.offset, self.offset + length))
    }
}

/// A blob that is being read.
pub struct Fetched {
    /// The size of the whole blob in bytes, as the store states it.
    pub size: u64,
    /// The bytes of the range that was asked for.
    pub bytes: ByteStream,
}

/// Which part of a store to list. Bounds are any ASCII text, not only refs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnumerateRange {
    /// Only refs after this one; empty: from the first.
    pub after: String,
    /// Only refs up to and with this one; empty: to the last.
    pub until: String,
    /// At most this many; absent: all.
    pub limit: Option<u64>,
}

/// A piece of an enumeration.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnumeratePage {
    /// Blobs in strictly ascending order, all after those of earlier pages.
    pub blobs: Vec<BlobMeta>,
    /// Refs in this page's place that are left out because their digest function is not known here: the function's name,
    /// at most 64 printable ASCII characters of it, and how many. A name may come more than once.
    pub unknown: Vec<(String, u64)>,
    /// The text of the last ref that `unknown` counts; printable ASCII that does for a bound. Absent where there is none. A
    /// listing goes on after the greater of this and the last of `blobs`: what a limit cut may have been unknown to its
    /// last ref, or altogether.
    pub last_unknown: Option<String>,
    /// Set on the last page, and only there.
    pub end: Option<EnumerateEnd>,
}

/// How an enumeration ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EnumerateEnd {
    /// The number of blobs in all pages; refs of unknown functions are not among them.
    pub count: u64,
    /// Whether nothing further lies in the range; false: cut by the limit, towards which refs of unknown functions count.
    pub complete: bool,
}

/// A place that blobs can be written to and, as far as its abilities go, read from.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What the store is.
    ///
    /// # Errors
    /// Those of every method: [`StoreError::Peer`] where the store, or the way to it, failed; [`StoreError::Protocol`] where its
    /// answer makes no sense; [`StoreError::NotProcessed`] where a call was not begun with; [`StoreError::OtherStore`] where another
    /// one answers than is [expected](Self::expect_store); [`StoreError::Io`] from a store of this process.
    async fn info(&self) -> Result<StoreInfo, StoreError>;

    /// The sizes of those of these blobs (up to 10,000) that the store holds, in any order; missing ones are left out.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] where it cannot be asked; else as [`info`](Self::info).
    async fn stat(&self, blobs: &[BlobRef]) -> Result<Vec<BlobMeta>, StoreError>;

    /// Reads a blob, or a range of it.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where the store does not hold it, [`StoreError::Corrupt`] where it found its bytes damaged,
    /// [`StoreError::Invalid`] for an offset beyond its end, [`StoreError::Unsupported`] where nothing can be read; else as
    /// [`info`](Self::info). An item of the stream may be any of them.
    async fn fetch(&self, blob: BlobRef, range: ByteRange) -> Result<Fetched, StoreError>;

    /// Writes a blob. See the promises in the module's header.
    ///
    /// # Errors
    /// [`StoreError::Input`] for an error item in `bytes`, [`StoreError::Mismatch`] for what the store itself found wrong with
    /// them, [`StoreError::TooLarge`], [`StoreError::NoSpace`]; else as [`info`](Self::info).
    async fn receive(&self, put: Put, bytes: ByteStream) -> Result<Received, StoreError>;

    /// Writes small blobs, each as [`receive`](Self::receive) would. The answer to each goes to `answers` as it comes, in
    /// any order; a bad one fails alone.
    ///
    /// # Errors
    /// As [`info`](Self::info). An error is of the pack, and the end of all that was not answered before: what became of those is unknown, and it is
    /// safe to send them again. What was answered before counts, also where the future is dropped.
    async fn receive_packed(&self, parcels: Vec<Parcel>, answers: &mut dyn Answers<Received>)
    -> Result<(), StoreError>;

    /// Reads small blobs whole, each as [`fetch`](Self::fetch) would. Answers are as those of
    /// [`receive_packed`](Self::receive_packed).
    ///
    /// # Errors
    /// As [`receive_packed`](Self::receive_packed).
    async fn fetch_packed(&self, wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> Result<(), StoreError>;

    /// From now on only the store with this id is meant, wherever the calls lead; all but [`info`](Self::info) of another fail
    /// with [`StoreError::OtherStore`]. `None`: any. Means something only to stores behind an address.
    fn expect_store(&self, _id: Option<&str>) {}

    /// Lists a range of refs, in order.
    ///
    /// # Errors
    /// [`StoreError::Unsupported`] where it cannot be listed, [`StoreError::Invalid`] for bounds that make no sense; else as
    /// [`info`](Self::info). An item of the stream may be any of them.
    async fn enumerate(&self, range: EnumerateRange) -> Result<Enumeration, StoreError>;
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// It does not hold the blob.
    #[error("the store does not hold {0}")]
    Missing(BlobRef),
    /// The bytes that it holds are not those of the ref.
    #[error("the store's bytes of {blob} are corrupt: {detail}")]
    Corrupt {
        /// The blob.
        blob: BlobRef,
        /// What was found.
        detail: String,
    },
    /// The bytes received are not those of the ref.
    #[error("{0}")]
    Mismatch(#[from] Mismatch),
    /// The blob is larger than the store takes.
    #[error("the store takes blobs of at most {limit} bytes")]
    TooLarge {
        /// The limit, in bytes.
        limit: u64,
    },
    /// The request makes no sense; the message says what to do.
    #[error("{0}")]
    Invalid(String),
    /// The store lacks the ability.
    #[error("the store does not offer {0}")]
    Unsupported(&'static str),
    /// There is no room.
    #[error("the store has no space left: {0}")]
    NoSpace(String),
    /// The store's own medium failed.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The bytes to be written could not be read to their end; not the receiving store's fault.
    #[error("the bytes to write could not be read: {0}")]
    Input(Box<StoreError>),
    /// A remote store answered with an error, or could not be reached.
    #[error("{0}")]
    Peer(#[from] PeerError),
    /// A remote store broke the protocol.
    #[error("the peer broke the protocol: {0}")]
    Protocol(String),
    /// Another store answers than the one that is meant.
    #[error("another store answers: its id is {found:?}, and {expected:?} is expected")]
    OtherStore {
        /// The id that is expected.
        expected: Arc<str>,
        /// The id that was told.
        found: Arc<str>,
    },
    /// The peer closed the connection before it began with the call; it may be made again at once.
    #[error("the peer closed the connection before it began with the call")]
    NotProcessed,
}

impl From<Injected> for StoreError {
    fn from(injected: Injected) -> Self {
        Self::io("a failpoint", injected.into())
    }
}

/// An error as a peer, or the connection to it, gave it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{} ({})", .message, .reason.as_deref().unwrap_or(code_name(*.code)))]
pub struct PeerError {
    /// The gRPC status code.
    pub code: tonic::Code,
    /// The stable reason of `ErrorInfo` in the domain `blobferry.v1`. An error without one is the peer's own, not the
    /// blob's: a proxy or a broken server may have made it.
    pub reason: Option<Arc<str>>,
    /// The peer's message, escaped and cut to a bounded length.
    pub message: String,
    /// How long the peer asks to be left alone with such calls, at most 10 minutes; absent where it does not say.
    pub retry_after: Option<Duration>,
}

impl PeerError {
    /// A code and what was said, without any details.
    pub fn bare(code: tonic::Code, message: impl Into<String>) -> Self {
        Self { code, reason: None, message: message.into(), retry_after: None }
    }
}

/// The canonical name of a gRPC status code, such as `UNAVAILABLE`.
pub(crate) const fn code_name(code: tonic::Code) -> &'static str {
    use tonic::Code;
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

impl StoreError {
    /// Whether the store says that the bytes which came are not those of the ref: itself, or as a peer's answer.
    pub fn is_mismatch(&self) -> bool {
        match self {
            Self::Mismatch(_) => true,
            Self::Peer(peer) => {
                peer.code == tonic::Code::InvalidArgument
                    && matches!(peer.reason.as_deref(), Some("DIGEST_MISMATCH" | "SIZE_MISMATCH"))
            }
            _ => false,
        }
    }

    /// An [`StoreError::Io`], or [`StoreError::NoSpace`] where that is what the system said.
    pub fn io(context: impl Into<String>, source: std::io::Error) -> Self {
        let context = context.into();
        match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::NoSpace(format!("{context}: {source}"))
            }
            _ => Self::Io { context, source },
        }
    }

    /// A [`StoreError::Protocol`] that quotes a piece of what the peer sent.
    pub fn protocol_with(what: &str, text: &str) -> Self {
        Self::Protocol(format!("{what}: {}", Excerpt::of(text)))
    }
}
