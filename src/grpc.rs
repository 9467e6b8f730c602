//! gRPC: the one table between errors and statuses, channels to peers, and the server that all services run in.
//!
//! Everything that tonic, hyper and h2 leave open or off by default is set here, once: limits on messages, streams,
//! connections and handshakes, keepalives, flow-control windows, and a drain that ends.
//!
//! - `status`: [`Reason`], and errors to and from [`tonic::Status`]. Nothing else makes a status from an error.
//! - `connections`: [`Channels`] to one peer, and all that there is to know of its connections.
//! - `server`: [`serve`] and [`base_routes`].
//! - `direct`: chunks of blobs past the codec, without copying them.
//! - `explained`: what tonic refuses by itself, with a reason.
//! - `idle`: how long something may stand still.
//! - `cut`: a request stream that the client cancelled is an error, never an end. Without it a cancelled upload would look
//!   finished.
//! - `receive`: [`read_header`] decodes an incoming `ReceiveBlob` stream, for stores and the replicator alike.
//! - `item`: one blob among the many of a message.
//! - `pump`: response streams that a stalled reader cannot hold open for ever.
//! - `calls`: every call that a server answers, from its first byte to its last: its span, and observers. `counted` is one.
//! - `methods`: the names of methods, and what both ends of a call say of it.
//! - `traced`: [`PeerChannel`], whose calls are spans and carry the trace on, where somebody is being traced.
//! - `window`: how much may be sent on a stream before it is read.
//! - `deadline`: [`call_deadline`], how long the caller waits.
//! - `trace_context`: W3C trace context in and out of headers.

#[cfg(feature = "server")]
mod calls;
mod connections;
#[cfg(feature = "server")]
mod counted;
#[cfg(feature = "server")]
mod cut;
mod deadline;
mod direct;
mod explained;
mod idle;
mod item;
mod methods;
#[cfg(feature = "server")]
mod pump;
mod receive;
#[cfg(feature = "server")]
mod refused;
#[cfg(feature = "server")]
mod server;
mod status;
mod trace_context;
mod traced;
mod window;

#[cfg(feature = "server")]
pub(crate) use self::{
    calls::{Calls, call_trace, is_servers_fault},
    methods::method_names,
    pump::{CallLimit, pump},
    status::queue_status,
};
pub(crate) use connections::{Channels, OtherProtocol, STORE_ID};
pub use connections::{EndpointError, PeerEndpoint};
pub(crate) use deadline::call_deadline;
pub(crate) use direct::{Answering, DirectChannel, DirectService, Incoming, send, want};
pub(crate) use item::{blob_error, item_error, item_trace, numbered};
pub(crate) use receive::read_header;
#[cfg(feature = "server")]
pub use server::{ServeSettings, base_routes, serve};
pub(crate) use status::{Reason, invalid_field, invalid_ref, mismatch_status, peer_error, store_error, store_status};
pub(crate) use traced::PeerChannel;

use std::time::Duration;

/// The largest message that our servers promise to take and that we send, in bytes: gRPC's usual limit.
pub(crate) const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The largest message that is decoded, in bytes: a little more than is promised, so that a peer that fills a chunk to the
/// limit and forgets the few bytes around it gets through.
pub(crate) const MAX_DECODED_BYTES: usize = MAX_MESSAGE_BYTES + (64 << 10);

/// The largest chunk of a blob in one message, in bytes.
pub(crate) const CHUNK_BYTES: usize = 256 << 10;

/// The largest HTTP/2 frame that we take, in bytes: a chunk comes whole, in a buffer of its own, which is passed on as it is.
/// Frames of 16, 64 and 128 KiB cost the relay of three processes 1.29, 1.27 and 1.15 CPU-seconds per GB, these 0.95, and
/// frames of 512 KiB 0.88: a frame is one read, one allocation, and one write.
const FRAME_BYTES: u32 = 256 << 10;

/// The most refs in one `StatBlobs` or `EnqueueBlobs`.
pub(crate) const MAX_ITEMS: usize = 10_000;

/// How long a stream may stand still before it is ended, unless configured otherwise.
pub(crate) const STREAM_IDLE: Duration = Duration::from_secs(60);
