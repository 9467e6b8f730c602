//! What a full sync is asked for with, and the answers.

use super::record::{SyncMode, SyncRecord};
use crate::queue::{QueueError, SyncId};

/// A request for a full sync.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SyncRequest {
    /// The route's configured name.
    pub route: String,
    /// What to do.
    pub mode: SyncMode,
    /// Only refs that begin with this; ASCII, at most 256 characters; empty: all.
    pub prefix: String,
    /// Makes a retry safe, on whatever route it was used; empty: no such safety. 1 to 128 printable ASCII characters.
    pub request_id: String,
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Started {
    /// The sync.
    pub record: SyncRecord,
    /// Whether it was running before this request.
    pub already_running: bool,
}

/// Why no sync was started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SyncStartError {
    /// There is no such route.
    #[error("there is no route {route:?}; there are: {}", .known.join(", "))]
    UnknownRoute {
        /// As asked for.
        route: String,
        /// The names of the routes that there are.
        known: Vec<String>,
    },
    /// The mode is not offered.
    #[error("full syncs in mode {} are not offered by this version; use copy", .0.as_str())]
    ModeUnsupported(SyncMode),
    /// The prefix is not one.
    #[error("a prefix is ASCII text of at most 256 characters")]
    InvalidPrefix,
    /// The request id is not one.
    #[error("a request id is 1 to 128 printable ASCII characters")]
    InvalidRequestId,
    /// The request id was used for something else.
    #[error("the request id was used before, for {0} of another route, mode or prefix")]
    RequestIdReused(SyncId),
    /// A sync of another mode or prefix runs on the route.
    #[error("{0} of another mode or prefix runs on the route; wait for its end")]
    OtherRunning(SyncId),
    /// A store lacks what the sync needs of it.
    #[error("{0}")]
    PeerUnsuitable(String),
    /// The service is about to stop.
    #[error("the service is shutting down")]
    ShuttingDown,
    /// The record could not be read or written.
    #[error(transparent)]
    Queue(#[from] QueueError),
}
