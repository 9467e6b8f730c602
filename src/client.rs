//! The client's side of the gRPC API: writing blobs, announcing them, and asking how everything stands.
//!
//! ```no_run
#![cfg_attr(doc, doc = include_str!("../examples/rust/src/bin/producer.rs"))]
//! ```
//!
//! - [`Replicator`]: the operator's side of a replicator, and announcements by ref.
//! - [`announcer`]: announces many blobs as the producer's contract asks: in batches, none delayed, retried for ten minutes.
//! - [`upload`]: identifies files and writes them to a store, many at a time.
//!
//! - [`Store`]: what every store can do; [`Address::store`] gives one behind gRPC.
//!
//! Nothing here retries, but for the announcer, and what is called by [`retrying`].

pub mod announcer;
mod failures;
mod overrides;
mod retry;
mod story;
pub mod upload;

pub use crate::blob::{BlobMeta, BlobRef, DigestFunction, RefError};
pub use crate::clock::Entropy;
pub use crate::grpc::{EndpointError, PeerEndpoint};
pub use crate::store::remote::RemoteStore;
pub use crate::store::{
    Abilities, ByteRange, ByteStream, Disposition, EnumerateEnd, EnumeratePage, EnumerateRange, Enumeration, Fetched,
    PeerError, PeerKind, Put, Received, Store, StoreError, StoreInfo,
};
pub use retry::retrying;

use crate::blob::Excerpt;
use crate::grpc::{Channels, OtherProtocol, PeerChannel, peer_error};
use crate::pb;
use crate::pb::v1;
use crate::store::code_name;
use futures::stream::{BoxStream, StreamExt as _};
use http::Uri;
use std::error::Error as _;
use std::path::PathBuf;
use std::time::Duration;
use tonic::{Code, Request, Status};
use v1::replication_service_client::ReplicationServiceClient;

/// How long an answer may take that moves no blob.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The address makes no sense.
    #[error("{url} is no address: {problem}")]
    Address {
        /// The address as it was given, quoted; without it where it carries credentials.
        url: String,
        /// What is wrong with it.
        problem: String,
    },
    /// There can be no connection to it, whether it is up or not.
    #[error("{0}")]
    Endpoint(#[from] EndpointError),
    /// Nobody answers there, or the connection broke.
    #[error("{url} cannot be reached: {detail}")]
    Unreachable {
        /// Where.
        url: String,
        /// What the connection's error says.
        detail: String,
        /// Whether something else than gRPC by this scheme is spoken there.
        is_other_protocol: bool,
    },
    /// The server answered with an error.
    #[error("{url} answered {}: {}", code_name(error.code), error.message)]
    Refused {
        /// Which server.
        url: String,
        /// What it said.
        error: PeerError,
    },
    /// The answer lacks what the protocol promises.
    #[error("{url} broke the protocol: {problem}")]
    Protocol {
        /// Which server.
        url: String,
        /// What was wrong.
        problem: &'static str,
    },
}

impl ClientError {
    /// The error of a call to this address.
    fn of(url: &str, status: &Status) -> Self {
        let error = peer_error(status);
        // A server of ours gives its reason; without one the connection itself, or something in between, has answered.
        if error.code == Code::Unavailable && error.reason.is_none() {
            let is_other_protocol = status.source().is_some_and(|source| source.is::<OtherProtocol>());
            return Self::Unreachable { url: url.to_owned(), detail: error.message, is_other_protocol };
        }
        Self::Refused { url: url.to_owned(), error }
    }

    /// The status code of the answer; UNAVAILABLE where there was none.
    pub fn code(&self) -> Code {
        match self {
            Self::Refused { error, .. } => error.code,
            Self::Unreachable { .. } => Code::Unavailable,
            Self::Address { .. } | Self::Endpoint(_) => Code::InvalidArgument,
            Self::Protocol { .. } => Code::Internal,
        }
    }

    /// How long the server wants to be left alone, where it says.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { error, .. } => error.retry_after,
            _ => None,
        }
    }

    /// Whether something else than gRPC by this scheme is spoken at the address. `detail` says what it may be then.
    pub fn is_other_protocol(&self) -> bool {
        matches!(self, Self::Unreachable { is_other_protocol: true, .. })
    }

    /// The stable reason that the server gave.
    pub fn reason(&self) -> Option<v1::ErrorReason> {
        match self {
            Self::Refused { error, .. } => error.reason.as_deref().and_then(pb::reason_from_text),
            _ => None,
        }
    }
}

/// Where a server is, and how its certificate is checked.
#[derive(Clone, Debug)]
pub struct Address {
    url: String,
    uri: Uri,
    ca_file: Option<PathBuf>,
}

impl Address {
    /// An address from `http://HOST:PORT`, `https://HOST:PORT`, or `HOST:PORT`, which means http. `ca_file` is a PEM file of
    /// the certificate authorities to trust in place of the system's.
    ///
    /// # Errors
    /// [`ClientError::Address`] where it is none of these.
    pub fn new(url: &str, ca_file: Option<PathBuf>) -> Result<Self, ClientError> {
        // Credentials must not reach a log, not even by the message that refuses them.
        let shown = if url.contains('@') { "the URL".to_owned() } else { Excerpt::of(url).to_string() };
        let wrong = |problem: &str| ClientError::Address { url: shown.clone(), problem: problem.to_owned() };
        let full = if url.contains("://") { url.to_owned() } else { format!("http://{url}") };
        let uri: Uri = full.parse().map_err(|error: http::uri::InvalidUri| wrong(&error.to_string()))?;
        let scheme = uri.scheme_str();
        if !matches!(scheme, Some("http" | "https")) {
            return Err(wrong("it begins with http:// or https://"));
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(wrong("it has no path"));
        }
        let authority = uri.authority().map_or("", http::uri::Authority::as_str);
        if authority.contains('@') {
            return Err(wrong("it has no user name"));
        }
        if uri.port_u16().is_none() {
            return Err(wrong("the port is missing, such as :7070"));
        }
        if ca_file.is_some() && scheme != Some("https") {
            return Err(wrong("a file of certificate authorities means nothing for http"));
        }
        Ok(Self { url: full.trim_end_matches('/').to_owned(), uri, ca_file })
    }

    /// The address as text.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The address, parsed.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// How to reach it, with the usual patience.
    pub fn endpoint(&self) -> PeerEndpoint {
        PeerEndpoint { ca_file: self.ca_file.clone(), ..PeerEndpoint::at(self.uri.clone()) }
    }

    /// A channel that connects when it is first used.
    fn channel(&self) -> Result<PeerChannel, ClientError> {
        Ok(Channels::open(&self.endpoint())?.control())
    }

    /// The store at this address. Connects when it is first used.
    ///
    /// # Errors
    /// Where the address' files cannot be used.
    pub fn store(&self) -> Result<RemoteStore, ClientError> {
        Ok(RemoteStore::new(&self.endpoint())?)
    }
}

/// A request that is given up after a while.
fn request<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(ANSWER_WITHIN);
    request
}

/// A replicator, as its operator and its writers see it. Clones share the connection.
#[derive(Clone)]
pub struct Replicator {
    url: String,
    client: ReplicationServiceClient<PeerChannel>,
}

impl Replicator {
    /// The replicator at this address. Connects when it is first asked something.
    ///
    /// # Errors
    /// Where the address' files cannot be used.
    pub fn at(address: &Address) -> Result<Self, ClientError> {
        let client = ReplicationServiceClient::new(address.channel()?).max_decoding_message_size(64 << 20);
        Ok(Self { url: address.url.clone(), client })
    }

    fn error(&self, status: &Status) -> ClientError {
        ClientError::of(&self.url, status)
    }

    fn whole<T>(&self, part: Option<T>, problem: &'static str) -> Result<T, ClientError> {
        part.ok_or_else(|| ClientError::Protocol { url: self.url.clone(), problem })
    }

    /// How these routes stand, or all if none is named.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all methods.
    pub async fn status(&mut self, routes: Vec<String>) -> Result<v1::ReplicatorStatus, ClientError> {
        let answer = self.client.status(request(v1::StatusRequest { routes })).await.map_err(|s| self.error(&s))?;
        self.whole(answer.into_inner().status, "Status answered without a status")
    }

    /// The same at once, and then every `interval`, until the stream ends.
    pub async fn watch_status(
        &mut self,
        routes: Vec<String>,
        interval: Duration,
    ) -> Result<BoxStream<'static, Result<v1::ReplicatorStatus, ClientError>>, ClientError> {
        let message = v1::WatchStatusRequest { routes, interval: Some(pb::duration(interval)) };
        let answers = self.client.watch_status(message).await.map_err(|s| self.error(&s))?.into_inner();
        let url = self.url.clone();
        let pictures = answers.map(move |answer| match answer {
            Ok(v1::WatchStatusResponse { status: Some(status) }) => Ok(status),
            Ok(_) => Err(ClientError::Protocol { url: url.clone(), problem: "WatchStatus sent no status" }),
            Err(status) => Err(ClientError::of(&url, &status)),
        });
        Ok(pictures.boxed())
    }

    /// Starts a full sync; an empty route means the only one. Also says whether it ran already. A repetition with the same
    /// `request_id` starts no second one.
    pub async fn trigger_full_sync(
        &mut self,
        route: String,
        request_id: String,
    ) -> Result<(v1::FullSync, bool), ClientError> {
        let message = v1::TriggerFullSyncRequest { route, request_id, ..v1::TriggerFullSyncRequest::default() };
        let answer = self.client.trigger_full_sync(request(message)).await.map_err(|s| self.error(&s))?.into_inner();
        let sync = self.whole(answer.full_sync, "TriggerFullSync answered without a full sync")?;
        Ok((sync, answer.already_running))
    }

    /// How a full sync stands.
    pub async fn full_sync(&mut self, id: String) -> Result<v1::FullSync, ClientError> {
        let message = v1::GetFullSyncRequest { id, route: String::new() };
        let answer = self.client.get_full_sync(request(message)).await.map_err(|s| self.error(&s))?;
        self.whole(answer.into_inner().full_sync, "GetFullSync answered without a full sync")
    }

    /// Full syncs, the newest first.
    pub async fn list_full_syncs(
        &mut self,
        message: v1::ListFullSyncsRequest,
    ) -> Result<v1::ListFullSyncsResponse, ClientError> {
        let answer = self.client.list_full_syncs(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }

    /// Ends a full sync, and gives how it stands then.
    pub async fn cancel_full_sync(&mut self, id: String) -> Result<v1::FullSync, ClientError> {
        let message = v1::CancelFullSyncRequest { id };
        let answer = self.client.cancel_full_sync(request(message)).await.map_err(|s| self.error(&s))?;
        self.whole(answer.into_inner().full_sync, "CancelFullSync answered without a full sync")
    }

    /// Announces up to 10,000 blobs that `source_store` holds; empty means the one store that is only a source.
    pub async fn enqueue(
        &mut self,
        source_store: String,
        items: Vec<v1::EnqueueItem>,
    ) -> Result<v1::EnqueueBlobsResponse, ClientError> {
        let asked = items.len();
        let message = v1::EnqueueBlobsRequest { source_store, items, issue_wait_token: false };
        let answer = self.client.enqueue_blobs(request(message)).await.map_err(|s| self.error(&s))?.into_inner();
        if answer.results.len() != asked {
            return Err(ClientError::Protocol {
                url: self.url.clone(),
                problem: "EnqueueBlobs answered another number of results than there were items",
            });
        }
        Ok(answer)
    }
}

/// What a server says of the health of one of its services; empty means the server as a whole.
///
/// # Errors
/// NOT_FOUND where the server does not know the service; else see [`ClientError`].
pub async fn health(
    address: &Address,
    service: &str,
) -> Result<tonic_health::pb::health_check_response::ServingStatus, ClientError> {
    let mut client = tonic_health::pb::health_client::HealthClient::new(address.channel()?);
    let message = tonic_health::pb::HealthCheckRequest { service: service.to_owned() };
    let answer = client.check(request(message)).await.map_err(|status| ClientError::of(&address.url, &status))?;
    Ok(answer.into_inner().status())
}

#[cfg(test)]
mod tests {
    use super::{Address, Replicator};
    use tonic::Code;

    #[test]
    fn addresses_are_urls_or_a_host_with_a_port() {
        for (given, url) in [
            ("http://localhost:7070", "http://localhost:7070"),
            ("localhost:7070", "http://localhost:7070"),
            ("https://[::1]:1/", "https://[::1]:1"),
        ] {
            assert_eq!(Address::new(given, None).unwrap().url(), url);
        }
        for wrong in
            ["", "localhost", "http://localhost", "ftp://x:1", "http://x:1/path", "http://u@x:1", "http://x:1?a"]
        {
            let error = Address::new(wrong, None).unwrap_err();
            assert!(error.to_string().contains("is no address: "), "{error}");
            assert!(!error.to_string().contains("u@"), "{error}");
        }
        assert!(Address::new("http://x:1", Some("ca.pem".into())).is_err());
    }

    #[tokio::test]
    async fn nobody_there_is_unreachable_and_says_why() {
        let address = Address::new("http://127.0.0.1:1", None).unwrap();
        let error = Replicator::at(&address).unwrap().status(Vec::new()).await.unwrap_err();
        assert_eq!((error.code(), error.reason()), (Code::Unavailable, None));
        assert!(error.to_string().contains("127.0.0.1:1 cannot be reached: "), "{error}");
    }
}
