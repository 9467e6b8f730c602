//! How a connection to a peer comes about: the name resolved, TCP, TLS, the greeting of HTTP/2.
//!
//! The name is resolved for each connection anew, and all of its addresses are tried: those of the other family a moment after
//! the first, as happy eyeballs have it, and within a family one after the other, each with its part of the time. So a name
//! that leads elsewhere after an hour is followed, and one dead address of several costs a moment.

use super::{EndpointError, PeerEndpoint};
use http::{Request, Response, Uri};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{Builder, SendRequest};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::error::Error;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{self, ClientConfig, RootCertStore};
use tonic::body::Body;
use tower::Service as _;

/// What a peer may send on one connection before we have read it, in bytes: three stalled streams do not block a fourth, and
/// four connections hold at most 64 MiB. Half of it is also the budget of h2 for unread small frames, beyond which it gives
/// up the connection.
const CONNECTION_WINDOW: u32 = 16 << 20;

/// What a server of HTTP/1 answers in kind, and one of TLS with an alert.
const QUESTION: &[u8] = b"GET / HTTP/1.1\r\nHost: blobferry\r\nConnection: close\r\n\r\n";

/// How long to wait for the first word of whoever does not speak HTTP/2.
const SPOKEN_WITHIN: Duration = Duration::from_secs(1);

/// How long a connection is silent before TCP asks for a sign of life, and how often it asks then.
const KEEPALIVE: Duration = Duration::from_secs(20);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);

/// A connection is dead when what was sent stays unacknowledged for the idle timeout, but not before this: packets are lost
/// and sent again on any network.
const LEAST_UNACKNOWLEDGED: Duration = Duration::from_secs(10);

/// Streams that are opened before the peer has said how many it takes: its settings come with the answer to the first.
const FIRST_STREAMS: usize = 1;

/// A connection that has come about.
pub(super) struct Connected {
    sender: SendRequest<Body>,
    /// Held while something is sent to the driver, and while the driver drops its receivers. What a tokio channel takes in at the
    /// very moment in which its receiver is dropped is given to nobody, and a call would wait for ever.
    gate: Arc<Mutex<()>>,
    /// How many streams the peer takes at a time, by its settings as they were when they were last looked at.
    pub(super) streams: Arc<AtomicUsize>,
    /// Why the peer serves no call on it, where it said so.
    pub(super) refusal: Arc<OnceLock<String>>,
    refresh: mpsc::UnboundedSender<oneshot::Sender<()>>,
    /// Takes requests in, as long as this is held; what was taken in goes on.
    _driver: JoinSet<()>,
}

impl Connected {
    /// Whether it takes no more requests.
    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed()
    }

    /// Sends a request. One that was not sent, because the connection had ended, comes back with the error.
    pub(super) fn send(
        &self,
        request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Incoming>, TrySendError<Request<Body>>>> + use<> {
        let mut sender = self.sender.clone();
        let _guard = self.gate.lock();
        sender.try_send_request(request)
    }

    /// Brings `streams` up to date.
    pub(super) async fn refresh(&self) {
        let (done, refreshed) = oneshot::channel();
        let asked = {
            let _guard = self.gate.lock();
            self.refresh.send(done)
        };
        // Where the connection has ended, nothing is to be known.
        if asked.is_ok() {
            refreshed.await.ok();
        }
    }
}

/// Something else than gRPC by this scheme is spoken at the address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OtherProtocol {
    /// HTTP/1.
    #[error("it speaks HTTP/1, not gRPC: is this its HTTP port?")]
    Http1,
    /// TLS, where none was begun.
    #[error("it speaks TLS: https:// in place of http://?")]
    Tls,
    /// No TLS, where it was begun.
    #[error("it does not speak TLS: http:// in place of https://?")]
    NoTls,
}

/// Why a connection did not come about.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error(transparent)]
    OtherProtocol(OtherProtocol),
    #[error("{0}")]
    Failed(String),
}

/// Makes connections to one peer.
pub(super) struct Connector {
    uri: Uri,
    tcp: HttpConnector,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    connect_timeout: Duration,
}

impl Connector {
    pub(super) fn new(peer: &PeerEndpoint) -> Result<Self, EndpointError> {
        let unusable = |message: String| EndpointError::Unusable { uri: peer.uri.clone(), message };
        let host = peer.uri.host().ok_or_else(|| unusable("it names no host".to_owned()))?;
        let tls = match peer.uri.scheme_str() {
            Some("http") => None,
            Some("https") => {
                let name = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(name).map_err(|error| unusable(error.to_string()))?;
                let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
                    .with_safe_default_protocol_versions()
                    .map_err(|error| unusable(error.to_string()))?
                    .with_root_certificates(authorities(peer)?)
                    .with_no_client_auth();
                config.alpn_protocols = vec![b"h2".to_vec()];
                Some((TlsConnector::from(Arc::new(config)), name))
            }
            _ => return Err(unusable("it begins with http:// or https://".to_owned())),
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(peer.connect_timeout));
        tcp.set_keepalive(Some(KEEPALIVE));
        tcp.set_keepalive_interval(Some(KEEPALIVE_INTERVAL));
        #[cfg(target_os = "linux")]
        tcp.set_tcp_user_timeout(Some(peer.idle_timeout.max(LEAST_UNACKNOWLEDGED)));
        Ok(Self { uri: peer.uri.clone(), tcp, tls, connect_timeout: peer.connect_timeout })
    }

    /// A new connection, with this window for each stream. Needs a tokio runtime.
    pub(super) async fn connect(&self, window: u32) -> Result<Connected, ConnectError> {
        let stream = self.tcp.clone().call(self.uri.clone()).await.map_err(failed)?.into_inner();
        let seconds = self.connect_timeout.as_secs_f64();
        let too_long = |_| ConnectError::Failed(format!("the handshake took more than {seconds} s (connect_timeout)"));
        let greeted = async {
            match &self.tls {
                None => greet(stream, window).await,
                Some((tls, name)) => {
                    let stream = tls.connect(name.clone(), stream).await.map_err(|error| of_tls(&error))?;
                    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
                        return Err(ConnectError::Failed("TLS: the server does not offer HTTP/2".to_owned()));
                    }
                    greet(stream, window).await
                }
            }
        };
        timeout(self.connect_timeout, greeted).await.map_err(too_long)?
    }

    /// What is spoken there in place of gRPC, where that can be told: the port or the scheme may be wrong.
    pub(super) async fn spoken(&self) -> Option<OtherProtocol> {
        if self.tls.is_some() {
            return None;
        }
        let asked = async {
            let mut stream = self.tcp.clone().call(self.uri.clone()).await.ok()?.into_inner();
            stream.write_all(QUESTION).await.ok()?;
            let mut first = [0; 5];
            stream.read_exact(&mut first).await.ok()?;
            match first {
                [b'H', b'T', b'T', b'P', b'/'] => Some(OtherProtocol::Http1),
                // An alert, or a handshake.
                [0x15 | 0x16, 3, ..] => Some(OtherProtocol::Tls),
                _ => None,
            }
        };
        timeout(SPOKEN_WITHIN, asked).await.ok().flatten()
    }
}

fn failed(error: impl Error + 'static) -> ConnectError {
    ConnectError::Failed(said(&error))
}

/// Why there is no TLS.
fn of_tls(error: &io::Error) -> ConnectError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    match inner {
        Some(rustls::Error::InvalidMessage(_)) => ConnectError::OtherProtocol(OtherProtocol::NoTls),
        _ => ConnectError::Failed(format!("TLS: {}", said(error))),
    }
}

/// Whose certificates are trusted.
fn authorities(peer: &PeerEndpoint) -> Result<RootCertStore, EndpointError> {
    let mut roots = RootCertStore::empty();
    match &peer.ca_file {
        Some(path) => {
            let failed = |source| EndpointError::CaFile { path: path.clone(), source };
            let wrong = |what: String| failed(io::Error::new(io::ErrorKind::InvalidData, what));
            let pem = std::fs::read(path).map_err(failed)?;
            for certificate in CertificateDer::pem_slice_iter(&pem) {
                let certificate = certificate.map_err(|error| wrong(error.to_string()))?;
                roots.add(certificate).map_err(|error| wrong(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(wrong("it holds no PEM certificate".to_owned()));
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            found.errors.iter().for_each(|error| tracing::debug!(%error, "a certificate of the system cannot be read"));
            roots.add_parsable_certificates(found.certs);
        }
    }
    Ok(roots)
}

/// Speaks HTTP/2 on a stream. Nothing is asked for signs of life there: servers throw out who asks often, and TCP does the
/// same for the connection.
async fn greet<T>(stream: T, window: u32) -> Result<Connected, ConnectError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (sender, mut connection) = Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .initial_stream_window_size(window)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(FIRST_STREAMS)
        .max_frame_size(crate::grpc::FRAME_BYTES)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(failed)?;
    let streams = Arc::new(AtomicUsize::new(FIRST_STREAMS));
    let told = streams.clone();
    let refusal = Arc::new(OnceLock::new());
    let refused = refusal.clone();
    let (refresh, mut asked) = mpsc::unbounded_channel::<oneshot::Sender<()>>();
    let gate = Arc::new(Mutex::new(()));
    let drivers_gate = gate.clone();
    let mut driver = JoinSet::new();
    driver.spawn(async move {
        let ended = loop {
            tokio::select! {
                biased;
                ended = &mut connection => break ended,
                Some(done) = asked.recv() => {
                    told.store(connection.current_max_send_streams(), Ordering::Relaxed);
                    done.send(()).ok();
                }
            }
        };
        if let Err(error) = ended {
            tracing::debug!(error = %said(&error), "a connection ended");
            let calms =
                |error: &&h2::Error| error.is_go_away() && error.reason() == Some(h2::Reason::ENHANCE_YOUR_CALM);
            if let Some(refusal) = http2(&error).filter(calms) {
                // Before calls that wait find it ended.
                refused.get_or_init(|| refusal.to_string());
            }
        }
        let _guard = drivers_gate.lock();
        drop((connection, asked));
    });
    Ok(Connected { sender, gate, streams, refusal, refresh, _driver: driver })
}

/// An error with what is behind it, each once.
pub(super) fn said(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// What HTTP/2 made of the connection or the stream, if that is what failed.
pub(super) fn http2(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = error.source();
    while let Some(error) = source {
        if let Some(http2) = error.downcast_ref() {
            return Some(http2);
        }
        source = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::Connector;
    use crate::grpc::PeerEndpoint;
    use crate::grpc::refused::refuse;
    use http::Request;
    use std::hint::spin_loop;
    use std::time::{Duration, Instant};
    use tokio::net::TcpListener;
    use tokio::task::{JoinSet, block_in_place};
    use tokio::time::timeout;
    use tonic::body::Body;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn what_is_sent_while_a_connection_ends_comes_back() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut refused = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                refused.spawn(refuse(stream));
            }
        });
        let connector = Connector::new(&PeerEndpoint::at(uri.parse().unwrap())).unwrap();
        for round in 0..3000 {
            let connected = connector.connect(1 << 20).await.unwrap();
            // The driver drops its receivers right after it has seen the refusal: that moment is aimed at.
            block_in_place(|| {
                let began = Instant::now();
                while connected.refusal.get().is_none() && began.elapsed() < Duration::from_secs(1) {
                    spin_loop();
                }
                (0..round % 40).for_each(|_| spin_loop());
            });
            let request = Request::post(uri.as_str()).body(Body::empty()).unwrap();
            let (answer, ()) = tokio::join!(timeout(Duration::from_secs(20), connected.send(request)), async {
                timeout(Duration::from_secs(20), connected.refresh()).await.expect("it ends")
            });
            let error = answer.expect("it comes back").unwrap_err();
            assert!(error.message().is_some(), "round {round}: it is not sent: {error:?}");
        }
    }
}
