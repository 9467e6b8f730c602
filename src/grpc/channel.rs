//! Channels to one peer.
//!
//! Blobs travel on several connections, each stream on the next in turn: HTTP/2 shares one window among all streams of a
//! connection, so a stalled blob on one would hold up all others. Control calls have a connection of their own and get
//! through whatever the data does. Connections come about at first use and again after they broke; nothing here retries a
//! call.

use super::traced::PeerChannel;
use super::window::{self, Distance};
use http::Uri;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};

/// Connections for blobs, to each peer; as many again to a neighbour.
const DATA_CHANNELS: usize = 4;

/// What a peer may send on one connection before we have read it, in bytes: three stalled streams do not block a fourth, and
/// four connections hold at most 64 MiB. Half of it is also the budget of h2 for unread small frames, beyond which it gives
/// up the connection.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// How often a silent connection is asked for a sign of life, also while it is idle.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(20);

/// How long it may take to give one. A dead peer is noticed after both.
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);

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
}

impl PeerEndpoint {
    /// A peer with the usual patience: 5 s to connect, 10 s to answer.
    pub fn at(uri: Uri) -> Self {
        let (connect_timeout, request_timeout) = (Duration::from_secs(5), Duration::from_secs(10));
        Self { uri, ca_file: None, connect_timeout, request_timeout }
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
#[derive(Debug)]
pub struct Channels {
    control: Channel,
    data: Vec<Channel>,
    // The same, with a smaller window.
    near: Vec<Channel>,
    distance: Distance,
    next: AtomicUsize,
    peer: Arc<Uri>,
}

impl Channels {
    /// Channels to a peer. Connects to nothing yet, and reads `ca_file` at once. Needs a tokio runtime.
    ///
    /// # Errors
    /// If the endpoint or its certificates cannot be used.
    pub fn open(peer: &PeerEndpoint) -> Result<Self, EndpointError> {
        let unusable = |error: tonic::transport::Error| {
            let mut message = error.to_string();
            if let Some(source) = std::error::Error::source(&error) {
                message = format!("{message}: {source}");
            }
            EndpointError::Unusable { uri: peer.uri.clone(), message }
        };
        let mut endpoint = Endpoint::new(peer.uri.clone())
            .map_err(unusable)?
            .connect_timeout(peer.connect_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
            .keep_alive_timeout(KEEPALIVE_TIMEOUT)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(window::FAR)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(super::FRAME_BYTES);
        if peer.uri.scheme_str() == Some("https") {
            let tls = match &peer.ca_file {
                Some(path) => {
                    let pem =
                        std::fs::read(path).map_err(|source| EndpointError::CaFile { path: path.clone(), source })?;
                    // tonic passes over what it cannot read, and would trust nobody.
                    if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
                        let source =
                            std::io::Error::new(std::io::ErrorKind::InvalidData, "it holds no PEM certificate");
                        return Err(EndpointError::CaFile { path: path.clone(), source });
                    }
                    ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem))
                }
                None => ClientTlsConfig::new().with_native_roots(),
            };
            endpoint = endpoint.tls_config(tls.timeout(peer.connect_timeout)).map_err(unusable)?;
        }
        let near = endpoint.clone().initial_stream_window_size(window::NEAR);
        let channels = |endpoint: &Endpoint| (0..DATA_CHANNELS).map(|_| endpoint.connect_lazy()).collect();
        Ok(Self {
            control: endpoint.connect_lazy(),
            data: channels(&endpoint),
            near: channels(&near),
            distance: Distance::default(),
            next: AtomicUsize::new(0),
            peer: Arc::new(peer.uri.clone()),
        })
    }

    /// The channel for calls that move no blob.
    pub fn control(&self) -> PeerChannel {
        PeerChannel::new(self.control.clone(), self.peer.clone())
    }

    /// The next channel for much at a time: packs, pages.
    pub fn data(&self) -> PeerChannel {
        self.next_of(&self.data)
    }

    /// The next channel for a blob of any size.
    pub fn blob(&self) -> PeerChannel {
        self.next_of(if self.distance.is_near() { &self.near } else { &self.data })
    }

    /// The peer answered something small on the control channel, after this time: it tells how far away it is.
    pub fn answered(&self, took: Duration) {
        self.distance.answered(took);
    }

    fn next_of(&self, channels: &[Channel]) -> PeerChannel {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        PeerChannel::new(channels[next % channels.len()].clone(), self.peer.clone())
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
