//! Packs over the wire, through peers that break the protocol of packs in every way: each is named, nobody is charged, and
//! all blobs arrive once the peer behaves.

use crate::harness::{
    Reader, Receiver, Replication, World, announce, blob, held, queued, reader, receiver, replication, route, send,
    until,
};
use async_trait::async_trait;
use blobferry::blob::BlobRef;
use blobferry::internal::grpc::{ServeSettings, serve};
use blobferry::v1 as pb;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use pb::blob_reader_service_server::{BlobReaderService, BlobReaderServiceServer};
use pb::blob_receiver_service_server::{BlobReceiverService, BlobReceiverServiceServer};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Response, Status, Streaming};

/// What a peer does with a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lie {
    /// Answers the first item of each message twice.
    Twice,
    /// Answers the first half of each message, and ends as if that were all.
    Unanswered,
    /// Answers the first half of a message, and breaks off.
    Cut,
    /// Answers items that it was not sent.
    Unknown,
    /// Reads, and never answers.
    Mute,
    /// Reads nothing, and never answers.
    Deaf,
}

const LIES: [Lie; 6] = [Lie::Twice, Lie::Unanswered, Lie::Cut, Lie::Unknown, Lie::Mute, Lie::Deaf];

/// A store that passes everything on to an honest one, but for packs, while it is told to lie.
#[derive(Clone)]
struct Rogue {
    receiver: Receiver,
    reader: Reader,
    lie: Arc<Mutex<Option<Lie>>>,
    told: Arc<AtomicU64>,
}

impl Rogue {
    fn lie(&self) -> Option<Lie> {
        let lie = *self.lie.lock();
        self.told.fetch_add(u64::from(lie.is_some()), Ordering::Relaxed);
        lie
    }

    fn set(&self, lie: Option<Lie>) {
        *self.lie.lock() = lie;
    }

    async fn start(honest: &str) -> (Self, String, JoinSet<()>) {
        let channel = tonic::transport::Channel::from_shared(honest.to_owned()).unwrap().connect().await.unwrap();
        let rogue = Self {
            receiver: Receiver::new(channel.clone()).max_decoding_message_size(8 << 20),
            reader: Reader::new(channel).max_decoding_message_size(8 << 20),
            lie: Arc::default(),
            told: Arc::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Routes::new(BlobReceiverServiceServer::new(rogue.clone()).max_decoding_message_size(8 << 20))
            .add_service(BlobReaderServiceServer::new(rogue.clone()).max_decoding_message_size(8 << 20));
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            serve(listener, routes, ServeSettings::default(), CancellationToken::new()).await.unwrap();
        });
        (rogue, url, tasks)
    }
}

type Answers<T> = BoxStream<'static, Result<T, Status>>;

/// The part of a message that is answered, and how its items are numbered otherwise.
trait Pack: Send + 'static {
    fn double(&mut self);
    fn halve(&mut self);
    fn renumber(&mut self);
}

impl Pack for pb::ReceiveBlobsResponse {
    fn double(&mut self) {
        self.results.insert(0, self.results[0].clone());
    }

    fn halve(&mut self) {
        self.results.truncate(self.results.len() / 2);
    }

    fn renumber(&mut self) {
        self.results.iter_mut().for_each(|result| result.item = Some(result.item() + 100_000));
    }
}

impl Pack for pb::FetchBlobsResponse {
    fn double(&mut self) {
        self.blobs.insert(0, self.blobs[0].clone());
    }

    fn halve(&mut self) {
        self.blobs.truncate(self.blobs.len() / 2);
    }

    fn renumber(&mut self) {
        self.blobs.iter_mut().for_each(|blob| blob.item = Some(blob.item() + 100_000));
    }
}

fn tell<T: Pack>(lie: Lie, honest: Streaming<T>) -> Answers<T> {
    let changed = |change: fn(&mut T)| {
        move |message: Result<T, Status>| {
            message.map(|mut message| {
                change(&mut message);
                message
            })
        }
    };
    match lie {
        Lie::Twice => honest.map(changed(T::double)).boxed(),
        Lie::Unanswered => honest.map(changed(T::halve)).boxed(),
        Lie::Cut => {
            honest.take(1).map(changed(T::halve)).chain(stream::iter([Err(Status::unavailable("cut"))])).boxed()
        }
        Lie::Unknown => honest.map(changed(T::renumber)).boxed(),
        Lie::Mute | Lie::Deaf => stream::pending().boxed(),
    }
}

/// What the client sends, up to its end or the first error.
fn passed_on<T: Send + 'static>(messages: Streaming<T>) -> impl futures::Stream<Item = T> + Send + 'static {
    messages.take_while(|message| std::future::ready(message.is_ok())).filter_map(async |message| message.ok())
}

/// Answers nothing, and reads what comes if it is to.
fn silent<T: Send + 'static, A: Send + 'static>(messages: Streaming<T>, reads: bool) -> Response<Answers<A>> {
    let read = async move {
        let mut messages = messages;
        while reads && matches!(messages.next().await, Some(Ok(_))) {}
        std::future::pending::<()>().await;
        Err(Status::internal("never"))
    };
    Response::new(stream::once(read).boxed())
}

#[async_trait]
impl BlobReceiverService for Rogue {
    type ReceiveBlobsStream = Answers<pb::ReceiveBlobsResponse>;

    async fn receive_blobs(
        &self,
        request: Request<Streaming<pb::ReceiveBlobsRequest>>,
    ) -> Result<Response<Self::ReceiveBlobsStream>, Status> {
        let lie = self.lie();
        if let Some(lie @ (Lie::Mute | Lie::Deaf)) = lie {
            return Ok(silent(request.into_inner(), lie == Lie::Mute));
        }
        let honest = self.receiver.clone().receive_blobs(passed_on(request.into_inner())).await?.into_inner();
        Ok(Response::new(match lie {
            Some(lie) => tell(lie, honest),
            None => honest.boxed(),
        }))
    }

    async fn get_peer_info(
        &self,
        request: Request<pb::GetPeerInfoRequest>,
    ) -> Result<Response<pb::GetPeerInfoResponse>, Status> {
        self.receiver.clone().get_peer_info(request.into_inner()).await
    }

    async fn receive_blob(
        &self,
        request: Request<Streaming<pb::ReceiveBlobRequest>>,
    ) -> Result<Response<pb::ReceiveBlobResponse>, Status> {
        self.receiver.clone().receive_blob(passed_on(request.into_inner())).await
    }
}

#[async_trait]
impl BlobReaderService for Rogue {
    type FetchBlobsStream = Answers<pb::FetchBlobsResponse>;
    type FetchBlobStream = Answers<pb::FetchBlobResponse>;
    type EnumerateBlobsStream = Answers<pb::EnumerateBlobsResponse>;

    async fn stat_blobs(
        &self,
        request: Request<pb::StatBlobsRequest>,
    ) -> Result<Response<pb::StatBlobsResponse>, Status> {
        self.reader.clone().stat_blobs(request.into_inner()).await
    }

    async fn fetch_blob(
        &self,
        request: Request<pb::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        Ok(self.reader.clone().fetch_blob(request.into_inner()).await?.map(StreamExt::boxed))
    }

    async fn fetch_blobs(
        &self,
        request: Request<Streaming<pb::FetchBlobsRequest>>,
    ) -> Result<Response<Self::FetchBlobsStream>, Status> {
        let lie = self.lie();
        if let Some(lie @ (Lie::Mute | Lie::Deaf)) = lie {
            return Ok(silent(request.into_inner(), lie == Lie::Mute));
        }
        let honest = self.reader.clone().fetch_blobs(passed_on(request.into_inner())).await?.into_inner();
        Ok(Response::new(match lie {
            Some(lie) => tell(lie, honest),
            None => honest.boxed(),
        }))
    }

    async fn enumerate_blobs(
        &self,
        request: Request<pb::EnumerateBlobsRequest>,
    ) -> Result<Response<Self::EnumerateBlobsStream>, Status> {
        Ok(self.reader.clone().enumerate_blobs(request.into_inner()).await?.map(StreamExt::boxed))
    }
}

/// Copies small blobs past a peer that lies about packs, at its source or at its destination.
async fn lied_to(at_source: bool, lie: Lie) {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let (rogue, url, _up) = Rogue::start(&if at_source { source.url() } else { destination.url() }).await;
    let (from, to) = if at_source { (url, destination.url()) } else { (source.url(), url) };
    let stores = [("a", from), ("b", to)];
    let waits = "idle_timeout = \"1s\"\nconfirm_timeout = \"1s\"";
    let stores = stores.map(|(name, url)| format!("[stores.{name}]\nendpoint = \"{url}\"\n{waits}\n"));
    let config = stores.concat() + "[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n";
    let replicator = world.replicator_with("replicator", &config);
    let mut operator: Replication = replication(&replicator).await;

    let mut blobs: Vec<(BlobRef, Vec<u8>)> = Vec::new();
    for seed in 0..200 {
        let (blob, bytes) = blob(seed, 1_000);
        send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
        blobs.push((blob, bytes));
    }
    let refs: Vec<BlobRef> = blobs.iter().map(|(blob, _)| *blob).collect();
    rogue.set(Some(lie));
    announce(&mut operator, "a", &refs).await.unwrap();
    let status = until("it is named", async || {
        let status = route(&mut operator.clone()).await;
        (rogue.told.load(Ordering::Relaxed) > 0 && !status.recent_faults.is_empty()).then_some(status)
    })
    .await;
    let group = &status.recent_faults[0];
    let fault = group.fault.as_ref().unwrap();
    assert_eq!(fault.peer, if at_source { "a" } else { "b" }, "{lie:?}: {fault:?}");
    assert!(!fault.message.is_empty());
    let failures = operator.list_failures(pb::ListFailuresRequest::default()).await.unwrap().into_inner().failures;
    assert!(failures.iter().all(|failed| failed.attempts() == 0), "{lie:?}: {failures:?}");

    rogue.set(None);
    until("all are copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    let mut there = reader(&destination).await;
    assert_eq!(held(&mut there, &refs).await, refs.len(), "{lie:?}");
    for (blob, bytes) in &blobs[..3] {
        assert!(crate::harness::fetch(&mut there, *blob).await.unwrap() == *bytes, "{lie:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_breaks_the_protocol_of_packs_is_named_and_nobody_is_charged() {
    for lie in LIES {
        lied_to(true, lie).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_destination_that_breaks_the_protocol_of_packs_is_named_and_nobody_is_charged() {
    for lie in LIES {
        lied_to(false, lie).await;
    }
}
