//! The connections to one peer: how many, where they lead, and how long each is used.
//!
//! Blobs travel on several connections, each call on the next in turn: HTTP/2 shares one window among all streams of a
//! connection, so a stalled blob on one would hold up all others. Control calls have a connection of their own and get
//! through whatever the data does. Nothing here retries a call that was sent.
//!
//! Every wait has a limit, and its message names the setting; the table of them is docs/connections.md.
//!
//! HTTP/2's own pings are not sent: servers close connections of clients that send them often, and TCP does as much. A call
//! that is left without an answer retires its connection where nothing else came there either, so that the next one is
//! not sent to where packets vanish.

mod connection;
mod connector;
mod pool;

pub(super) use connection::Lease;
pub(crate) use connection::{OtherStore, STORE_ID};
pub(crate) use connector::OtherProtocol;
pub(crate) use pool::NotProcessed;
pub(super) use pool::Pool;

use super::traced::PeerChannel;
use super::window::{self, Distance};
use connection::ExpectedStore;
use connector::Connector;
use http::Uri;
use pool::Maker;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Connections for blobs, to each peer; as many again to a neighbour.
const DATA_CHANNELS: usize = 4;

/// A call that is left without an answer retires its connection, if nothing has come there for so long; or for half of the
/// shorter timeout: who leaves when a timeout ends has been on the connection for a little less.
const SILENCE: Duration = Duration::from_secs(10);

/// Where a peer is, and how patient to be with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerEndpoint {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub uri: Uri,
    /// A PEM file of the authorities that the peer's certificate may come from, in place of the system's.
    pub ca_file: Option<PathBuf>,
    /// How long a connection may take to come about.
    pub connect_timeout: Duration,
    /// How long a control call may take, and a stream until its first message.
    pub request_timeout: Duration,
    /// How long what was sent may stay unacknowledged by TCP; 10 s at least.
    pub idle_timeout: Duration,
}

impl PeerEndpoint {
    /// A peer with the usual patience: 5 s to connect, 10 s to answer, 30 s to stand still.
    pub fn at(uri: Uri) -> Self {
        Self {
            uri,
            ca_file: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(30),
        }
    }
}

/// Why there can be no channel to a peer. It does not depend on whether the peer is up.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The file of authorities cannot be read.
    #[error("cannot read the certificates in {path}: {source}")]
    CaFile {
        /// The file.
        path: PathBuf,
        /// The operating system's word.
        source: std::io::Error,
    },
    /// The endpoint, or its TLS settings, cannot be used.
    #[error("the endpoint {uri} cannot be used: {message}")]
    Unusable {
        /// The endpoint.
        uri: Uri,
        /// What is wrong with it.
        message: String,
    },
}

/// The connections to one peer.
pub(crate) struct Channels {
    maker: Arc<Maker>,
    control: Arc<Pool>,
    data: Arc<Pool>,
    // The same, with a smaller window.
    near: Arc<Pool>,
    distance: Distance,
}

impl Channels {
    /// Channels to a peer. Connects to nothing yet, and reads `ca_file` at once. Its calls need a tokio runtime.
    ///
    /// # Errors
    /// If the endpoint or its certificates cannot be used.
    pub(crate) fn open(peer: &PeerEndpoint) -> Result<Self, EndpointError> {
        let maker = Arc::new(Maker {
            connector: Connector::new(peer)?,
            expected: ExpectedStore::default(),
            uri: peer.uri.clone(),
            request_timeout: peer.request_timeout,
            silence: SILENCE.min(peer.idle_timeout.min(peer.request_timeout) / 2),
        });
        let pool = |size, window| Arc::new(Pool::new(&maker, size, window));
        Ok(Self {
            control: pool(1, window::FAR),
            data: pool(DATA_CHANNELS, window::FAR),
            near: pool(DATA_CHANNELS, window::NEAR),
            distance: Distance::default(),
            maker,
        })
    }

    /// Only the store with this id is used from now on, but for [`question`](Self::question)s; `None`: any.
    pub(crate) fn expect_store(&self, id: Option<&str>) {
        self.maker.expected.set(id);
    }

    /// The channel for asking what the peer is, whichever store answers.
    pub(crate) fn question(&self) -> PeerChannel {
        PeerChannel::new(self.control.clone(), false)
    }

    /// The channel for calls that move no blob.
    pub(crate) fn control(&self) -> PeerChannel {
        PeerChannel::new(self.control.clone(), true)
    }

    /// The channel for much at a time: packs, pages.
    pub(crate) fn data(&self) -> PeerChannel {
        PeerChannel::new(self.data.clone(), true)
    }

    /// The channel for a blob of any size.
    pub(crate) fn blob(&self) -> PeerChannel {
        let pool = if self.distance.is_near() { &self.near } else { &self.data };
        PeerChannel::new(pool.clone(), true)
    }

    /// The peer answered something small on the control channel, after this time: it tells how far away it is.
    pub(crate) fn answered(&self, took: Duration) {
        self.distance.answered(took);
    }
}

impl std::fmt::Debug for Channels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Channels").field("uri", &self.maker.uri).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::{Channels, EndpointError, PeerEndpoint};
    use std::path::PathBuf;

    #[tokio::test]
    async fn an_endpoint_is_checked_without_connecting() {
        let secure = PeerEndpoint::at("https://store.invalid:7080".parse().unwrap());
        Channels::open(&secure).unwrap();
        let missing = PeerEndpoint { ca_file: Some(PathBuf::from("/nonexistent/ca.pem")), ..secure.clone() };
        assert!(matches!(Channels::open(&missing), Err(EndpointError::CaFile { .. })));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, "not a certificate").unwrap();
        let wrong = PeerEndpoint { ca_file: Some(path), ..secure };
        assert!(matches!(Channels::open(&wrong), Err(EndpointError::CaFile { .. })));
    }
}
