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
//! - `calls`: every call that a server answers, from its first byte to its last: its span, and [`CallObserver`]s. `counted` is one.
//! - `traced`: [`PeerChannel`], whose calls are spans and carry the trace on, where somebody is being traced.
//! - `window`: how much may be sent on a stream before it is read.
//! - `deadline`: [`call_deadline`], how long the caller waits.
//! - `trace_context`: W3C trace context in and out of headers.

mod calls;
mod connections;
mod counted;
mod cut;
mod deadline;
mod direct;
mod explained;
mod idle;
mod item;
mod pump;
mod receive;
mod refused;
mod server;
mod status;
mod trace_context;
mod traced;
mod window;

pub use calls::{CallObserver, Calls, EndedCall, call_trace, is_servers_fault, method_names};
pub use connections::{Channels, EndpointError, NotProcessed, OtherProtocol, OtherStore, PeerEndpoint, STORE_ID};
pub use deadline::call_deadline;
pub use direct::{Answering, DirectChannel, DirectService, Incoming, send, want};
pub use item::{blob_error, item_error, item_trace, numbered};
pub use pump::{CallLimit, CallPermit, pump};
pub use receive::{Header, read_header};
pub use server::{ServeError, ServeSettings, base_routes, serve};
pub use status::{
    Reason, invalid_field, invalid_ref, mismatch_status, peer_error, queue_status, store_error, store_status,
};
pub use traced::PeerChannel;

use std::time::Duration;

/// The largest message that our servers promise to take and that we send, in bytes: gRPC's usual limit.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// The largest message that is decoded, in bytes: a little more than is promised, so that a peer that fills a chunk to the
/// limit and forgets the few bytes around it gets through.
pub const MAX_DECODED_BYTES: usize = MAX_MESSAGE_BYTES + (64 << 10);

/// The largest chunk of a blob in one message, in bytes.
pub const CHUNK_BYTES: usize = 256 << 10;

/// The largest HTTP/2 frame that we take, in bytes: a chunk comes whole, in a buffer of its own, which is passed on as it is.
/// Frames of 16, 64 and 128 KiB cost the relay of three processes 1.29, 1.27 and 1.15 CPU-seconds per GB, these 0.95, and
/// frames of 512 KiB 0.88: a frame is one read, one allocation, and one write.
const FRAME_BYTES: u32 = 256 << 10;

/// The most refs in one `StatBlobs` or `EnqueueBlobs`.
pub const MAX_ITEMS: usize = 10_000;

/// How long a stream may stand still before it is ended, unless configured otherwise.
pub const STREAM_IDLE: Duration = Duration::from_secs(60);
