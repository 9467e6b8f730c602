#![allow(clippy::unwrap_used, reason = "tests")]

use super::RemoteStore;
use crate::blob::{BlobRef, DigestFunction, Mismatch};
use crate::grpc::{PeerEndpoint, ServeSettings, serve};
use crate::pb::v1;
use crate::store::packed::{Answers, Packed, Parcel, Want, fetch_all, receive_all};
use crate::store::{ByteRange, Disposition, EnumerateEnd, EnumerateRange, PeerKind, Put, Received, Store, StoreError};
use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};
use v1::blob_reader_service_server::{BlobReaderService, BlobReaderServiceServer};
use v1::blob_receiver_service_server::{BlobReceiverService, BlobReceiverServiceServer};
use v1::fetch_blob_response::Part;

/// A peer that says what it is told to say.
#[derive(Clone, Default)]
struct Rogue {
    info: v1::GetPeerInfoResponse,
    /// Answers before it has read the bytes.
    hasty: bool,
    received: v1::ReceiveBlobResponse,
    stat: v1::StatBlobsResponse,
    fetch: Vec<Result<v1::FetchBlobResponse, Status>>,
    pages: Vec<v1::EnumerateBlobsResponse>,
    results: Vec<Result<v1::ReceiveBlobsResponse, Status>>,
    found: Vec<Result<v1::FetchBlobsResponse, Status>>,
    /// Keeps the streams of packs open when it has said all.
    lingers: bool,
}

impl Rogue {
    fn packs<T: Clone + Send + 'static>(
        &self,
        messages: &[Result<T, Status>],
    ) -> BoxStream<'static, Result<T, Status>> {
        let messages = stream::iter(messages.to_vec());
        if self.lingers { messages.chain(stream::pending()).boxed() } else { messages.boxed() }
    }
}

#[async_trait]
impl BlobReceiverService for Rogue {
    type ReceiveBlobsStream = BoxStream<'static, Result<v1::ReceiveBlobsResponse, Status>>;

    async fn receive_blobs(
        &self,
        request: Request<Streaming<v1::ReceiveBlobsRequest>>,
    ) -> Result<Response<Self::ReceiveBlobsStream>, Status> {
        let mut messages = request.into_inner();
        while !self.hasty && messages.message().await?.is_some() {}
        Ok(Response::new(self.packs(&self.results)))
    }

    async fn get_peer_info(
        &self,
        _: Request<v1::GetPeerInfoRequest>,
    ) -> Result<Response<v1::GetPeerInfoResponse>, Status> {
        Ok(Response::new(self.info.clone()))
    }

    async fn receive_blob(
        &self,
        request: Request<Streaming<v1::ReceiveBlobRequest>>,
    ) -> Result<Response<v1::ReceiveBlobResponse>, Status> {
        let mut messages = request.into_inner();
        while !self.hasty && messages.message().await?.is_some() {}
        Ok(Response::new(self.received.clone()))
    }
}

#[async_trait]
impl BlobReaderService for Rogue {
    type FetchBlobsStream = BoxStream<'static, Result<v1::FetchBlobsResponse, Status>>;
    type FetchBlobStream = BoxStream<'static, Result<v1::FetchBlobResponse, Status>>;
    type EnumerateBlobsStream = BoxStream<'static, Result<v1::EnumerateBlobsResponse, Status>>;

    async fn stat_blobs(&self, _: Request<v1::StatBlobsRequest>) -> Result<Response<v1::StatBlobsResponse>, Status> {
        Ok(Response::new(self.stat.clone()))
    }

    async fn fetch_blob(&self, _: Request<v1::FetchBlobRequest>) -> Result<Response<Self::FetchBlobStream>, Status> {
        Ok(Response::new(stream::iter(self.fetch.clone()).boxed()))
    }

    async fn fetch_blobs(
        &self,
        request: Request<Streaming<v1::FetchBlobsRequest>>,
    ) -> Result<Response<Self::FetchBlobsStream>, Status> {
        let mut messages = request.into_inner();
        while !self.hasty && messages.message().await?.is_some() {}
        Ok(Response::new(self.packs(&self.found)))
    }

    async fn enumerate_blobs(
        &self,
        _: Request<v1::EnumerateBlobsRequest>,
    ) -> Result<Response<Self::EnumerateBlobsStream>, Status> {
        Ok(Response::new(stream::iter(self.pages.clone()).map(Ok).boxed()))
    }
}

/// A store that talks to a rogue, and what keeps the rogue up.
async fn facing(rogue: Rogue) -> (RemoteStore, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let routes =
        Routes::new(BlobReceiverServiceServer::new(rogue.clone())).add_service(BlobReaderServiceServer::new(rogue));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        serve(listener, routes, ServeSettings::default(), CancellationToken::new()).await.unwrap();
    });
    (RemoteStore::new(&PeerEndpoint::at(uri)).unwrap(), tasks)
}

fn hello() -> BlobRef {
    DigestFunction::Sha256.ref_of(b"hello")
}

fn meta(text: &str, size: Option<u64>) -> v1::BlobMeta {
    v1::BlobMeta { r#ref: text.to_owned(), size_bytes: size }
}

fn protocol<T>(result: Result<T, StoreError>) -> String {
    match result {
        Err(StoreError::Protocol(message)) => message,
        Err(other) => panic!("another error: {other:?}"),
        Ok(_) => panic!("no error"),
    }
}

async fn send_hello(store: &RemoteStore) -> Result<Received, StoreError> {
    let put = Put { blob: hello(), size: Some(5), replace: false };
    store.receive(put, stream::iter([Ok(Bytes::from_static(b"hello"))]).boxed()).await
}

#[tokio::test]
async fn a_confirmation_that_makes_no_sense_is_a_breach_and_another_blobs_is_passed_on() {
    let good = v1::ReceiveBlobResponse {
        r#ref: hello().to_string(),
        size_bytes: Some(5),
        disposition: v1::Disposition::Stored.into(),
        ..v1::ReceiveBlobResponse::default()
    };
    for (broken, named) in [
        (v1::ReceiveBlobResponse { r#ref: "nonsense".to_owned(), ..good.clone() }, "not a ref"),
        (v1::ReceiveBlobResponse { size_bytes: None, ..good.clone() }, "size"),
        (v1::ReceiveBlobResponse { disposition: 0, ..good.clone() }, "what became"),
        (v1::ReceiveBlobResponse { disposition: 77, ..good.clone() }, "77"),
    ] {
        let (store, _up) = facing(Rogue { received: broken, ..Rogue::default() }).await;
        let message = protocol(send_hello(&store).await);
        assert!(message.contains(named), "{message}");
    }
    let other = DigestFunction::Sha256.ref_of(b"other");
    let another = v1::ReceiveBlobResponse {
        r#ref: other.to_string(),
        size_bytes: Some(9),
        disposition: v1::Disposition::Enqueued.into(),
        ..good
    };
    let (store, _up) = facing(Rogue { received: another, ..Rogue::default() }).await;
    let received = send_hello(&store).await.unwrap();
    assert_eq!(received, Received { blob: other, size: 9, disposition: Disposition::Enqueued, was_new: false });
}

#[tokio::test]
async fn a_confirmation_before_the_last_byte_confirms_nothing() {
    let received = v1::ReceiveBlobResponse {
        r#ref: hello().to_string(),
        size_bytes: Some(5),
        disposition: v1::Disposition::Stored.into(),
        ..v1::ReceiveBlobResponse::default()
    };
    let (store, _up) = facing(Rogue { hasty: true, received, ..Rogue::default() }).await;
    let put = Put { blob: hello(), size: Some(5), replace: false };
    let bytes = stream::iter([Ok(Bytes::from_static(b"hello"))]).chain(stream::pending()).boxed();
    let message = protocol(store.receive(put, bytes).await);
    assert!(message.contains("before all bytes"), "{message}");
}

#[tokio::test]
async fn a_fetch_that_breaks_the_protocol_is_named() {
    let header = |text: &str, size| {
        let header = v1::FetchBlobHeader { r#ref: text.to_owned(), size_bytes: size };
        Ok(v1::FetchBlobResponse { part: Some(Part::Header(header)) })
    };
    let chunk = || Ok(v1::FetchBlobResponse { part: Some(Part::Chunk(Bytes::from_static(b"hello"))) });
    let right = || header(&hello().to_string(), Some(5));
    let other = DigestFunction::Sha256.ref_of(b"other").to_string();
    for (messages, named) in [
        (vec![], "without a header"),
        (vec![chunk()], "without a header"),
        (vec![Ok(v1::FetchBlobResponse { part: None })], "without a header"),
        (vec![header(&hello().to_string(), None)], "size"),
        (vec![header(&other, Some(5))], "when asked for"),
        (vec![header("x", Some(5))], "not a ref"),
    ] {
        let (store, _up) = facing(Rogue { fetch: messages, ..Rogue::default() }).await;
        let message = protocol(store.fetch(hello(), ByteRange::default()).await);
        assert!(message.contains(named), "{message}");
    }
    for (messages, named) in
        [(vec![right(), right()], "second header"), (vec![right(), Ok(v1::FetchBlobResponse { part: None })], "empty")]
    {
        let (store, _up) = facing(Rogue { fetch: messages, ..Rogue::default() }).await;
        let fetched = store.fetch(hello(), ByteRange::default()).await.unwrap();
        let mut items: Vec<_> = fetched.bytes.collect().await;
        let message = protocol(items.pop().unwrap());
        assert!(message.contains(named), "{message}");
        assert!(items.iter().all(Result::is_ok));
    }
    // Bytes beyond the stated size are no breach but this blob's fault, as wrong bytes are.
    let (store, _up) = facing(Rogue { fetch: vec![right(), chunk(), chunk()], ..Rogue::default() }).await;
    let fetched = store.fetch(hello(), ByteRange::default()).await.unwrap();
    let last = fetched.bytes.collect::<Vec<_>>().await.pop();
    assert!(matches!(last, Some(Err(StoreError::Mismatch(Mismatch::TooLong { stated: 5 })))), "{last:?}");
    let (store, _up) = facing(Rogue { fetch: vec![right(), Err(Status::unknown("gone"))], ..Rogue::default() }).await;
    let items: Vec<_> = store.fetch(hello(), ByteRange::default()).await.unwrap().bytes.collect().await;
    assert!(matches!(&items[..], [Err(StoreError::Peer(error))] if error.code == Code::Unknown));
}

#[tokio::test]
async fn an_enumeration_that_breaks_the_protocol_is_named() {
    let refs: Vec<String> = {
        let mut refs: Vec<_> = (0..4u8).map(|n| DigestFunction::Sha256.ref_of(&[n])).collect();
        refs.sort_unstable();
        refs.iter().map(ToString::to_string).collect()
    };
    let page = |texts: &[&str], end: Option<(u64, bool)>| v1::EnumerateBlobsResponse {
        blobs: texts.iter().map(|text| meta(text, Some(1))).collect(),
        end: end.map(|(count, complete)| v1::EnumerateEnd { count: Some(count), complete: Some(complete) }),
    };
    let [a, b, c, d] = [0, 1, 2, 3].map(|at| refs[at].as_str());
    let all = EnumerateRange::default();
    let until = EnumerateRange { until: c.to_owned(), ..all.clone() };
    let after = EnumerateRange { after: b.to_owned(), ..all.clone() };
    let limit = EnumerateRange { limit: Some(1), ..all.clone() };
    let sizeless = v1::EnumerateBlobsResponse { blobs: vec![meta(a, None)], end: None };
    let endless = v1::EnumerateBlobsResponse { blobs: vec![], end: Some(v1::EnumerateEnd::default()) };
    for (range, pages, named) in [
        (&all, vec![page(&[b, a], None)], "out of order"),
        (&all, vec![page(&[a], None), page(&[a], Some((2, true)))], "out of order"),
        (&after, vec![page(&[b], Some((1, true)))], "out of order"),
        (&until, vec![page(&[d], Some((1, true)))], "beyond"),
        (&all, vec![], "cut"),
        (&all, vec![page(&[a, b], None)], "cut"),
        (&all, vec![page(&[a], Some((2, true)))], "counted 2"),
        (&all, vec![page(&[a], Some((1, false)))], "incomplete"),
        (&limit, vec![page(&[a, b], Some((2, true)))], "limit"),
        (&all, vec![page(&["nonsense"], None)], "not a ref"),
        (&all, vec![page(&["md5-\n"], None)], "printable"),
        (&all, vec![page(&[&format!("md5-{}", "0".repeat(1021))], None)], "printable"),
        (&all, vec![sizeless], "size"),
        (&all, vec![endless], "without saying how"),
    ] {
        let (store, _up) = facing(Rogue { pages, ..Rogue::default() }).await;
        let mut items: Vec<_> = store.enumerate(range.clone()).await.unwrap().collect().await;
        let message = protocol(items.pop().unwrap());
        assert!(message.contains(named), "{message}");
        assert!(items.iter().all(Result::is_ok));
    }
    let (md5, zzz) = ("md5-d41d8cd98f00b204e9800998ecf8427e", "zzz-1");
    let pages = vec![page(&[md5, a], None), page(&[], None), page(&[b, zzz], Some((4, true)))];
    let (store, _up) = facing(Rogue { pages, ..Rogue::default() }).await;
    let pages: Vec<_> = store.enumerate(all).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(pages.iter().map(|page| page.blobs.len()).sum::<usize>(), 2);
    let unknown: Vec<_> = pages.iter().flat_map(|page| page.unknown.clone()).collect();
    assert_eq!(unknown, [("md5".to_owned(), 1), ("zzz".to_owned(), 1)]);
    let places: Vec<_> = pages.iter().map(|page| page.last_unknown.as_deref()).collect();
    assert_eq!(places, [Some(md5), None, Some(zzz)]);
    assert_eq!(pages.last().unwrap().end.unwrap().count, 2);
}

#[tokio::test]
async fn a_limit_that_cuts_among_unknown_refs_tells_where_to_go_on() {
    let texts = [format!("{}-1", "m".repeat(70)), format!("{}-1", "m".repeat(71)), format!("{}-2", "m".repeat(71))];
    let page = v1::EnumerateBlobsResponse {
        blobs: texts.iter().map(|text| meta(text, Some(1))).collect(),
        end: Some(v1::EnumerateEnd { count: Some(3), complete: Some(false) }),
    };
    let (store, _up) = facing(Rogue { pages: vec![page], ..Rogue::default() }).await;
    let range = EnumerateRange { limit: Some(3), ..EnumerateRange::default() };
    let pages: Vec<_> = store.enumerate(range).await.unwrap().map(Result::unwrap).collect().await;
    assert_eq!(pages[0].unknown, [("m".repeat(64), 3)]);
    assert_eq!(pages[0].last_unknown.as_ref(), Some(&texts[2]));
    assert_eq!(pages[0].end, Some(EnumerateEnd { count: 0, complete: false }));
}

#[tokio::test]
async fn answers_to_stat_that_were_not_asked_for_are_a_breach() {
    let other = DigestFunction::Sha256.ref_of(b"other").to_string();
    for (blobs, named) in [
        (vec![meta(&other, Some(5))], "not asked"),
        (vec![meta("x", Some(5))], "not a ref"),
        (vec![meta(&hello().to_string(), None)], "size"),
    ] {
        let (store, _up) = facing(Rogue { stat: v1::StatBlobsResponse { blobs }, ..Rogue::default() }).await;
        let message = protocol(store.stat(&[hello()]).await);
        assert!(message.contains(named), "{message}");
    }
}

#[tokio::test]
async fn a_peer_that_says_little_is_a_store_and_nonsense_is_a_breach() {
    let facing_info = async |peer_info| {
        let (store, up) = facing(Rogue { info: v1::GetPeerInfoResponse { peer_info }, ..Rogue::default() }).await;
        let info = store.info().await;
        drop(up);
        info
    };
    let info = facing_info(Some(v1::PeerInfo::default())).await.unwrap();
    assert_eq!((info.store_id, info.kind, info.functions), (None, PeerKind::Store, vec![DigestFunction::Sha256]));
    assert!(protocol(facing_info(None).await).contains("nothing"));
    let kind = v1::PeerInfo { kind: 9, ..v1::PeerInfo::default() };
    assert!(protocol(facing_info(Some(kind)).await).contains('9'));
    let id = v1::PeerInfo { store_id: "a\nb".to_owned(), ..v1::PeerInfo::default() };
    assert!(protocol(facing_info(Some(id)).await).contains("store id"));
}

#[tokio::test]
async fn a_peer_that_is_not_there_is_unavailable_and_a_mute_one_runs_into_the_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut peer = PeerEndpoint::at(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
    peer.request_timeout = Duration::from_millis(200);
    let store = Arc::new(RemoteStore::new(&peer).unwrap());
    let begun = Instant::now();
    let code = |error| match error {
        StoreError::Peer(error) => (error.code, error.reason),
        other => panic!("{other}"),
    };
    // The kernel accepts; nobody answers.
    assert_eq!(code(store.info().await.unwrap_err()), (Code::DeadlineExceeded, None));
    assert_eq!(code(store.stat(&[hello()]).await.unwrap_err()).0, Code::DeadlineExceeded);
    assert_eq!(code(store.fetch(hello(), ByteRange::default()).await.err().unwrap()).0, Code::DeadlineExceeded);
    assert_eq!(code(store.enumerate(EnumerateRange::default()).await.err().unwrap()).0, Code::DeadlineExceeded);
    assert!(begun.elapsed() < Duration::from_secs(3));
    drop(listener);
    let store = RemoteStore::new(&peer).unwrap();
    let error = store.info().await.unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert_eq!(code(error), (Code::Unavailable, None));
    assert_eq!(code(send_hello(&store).await.unwrap_err()).0, Code::Unavailable);
}

#[tokio::test]
async fn status_details_that_are_no_base64_are_an_error_and_no_panic() {
    let mut headers = http::HeaderMap::new();
    headers.insert("grpc-status-details-bin", http::HeaderValue::from_static("!"));
    let metadata = tonic::metadata::MetadataMap::from_headers(headers);
    let broken = Status::with_metadata(Code::NotFound, "x", metadata);
    let (store, _up) = facing(Rogue { fetch: vec![Err(broken)], ..Rogue::default() }).await;
    match store.fetch(hello(), ByteRange::default()).await {
        Err(StoreError::Peer(error)) => assert_eq!((error.code, error.reason), (Code::Unknown, None)),
        other => panic!("{:?}", other.err()),
    }
}

/// Says that it takes packs.
fn packer() -> Rogue {
    let peer_info = v1::PeerInfo {
        abilities: vec![v1::Ability::Packed.into()],
        max_packed_bytes: Some(1000),
        max_message_bytes: Some(4 << 20),
        ..v1::PeerInfo::default()
    };
    Rogue { info: v1::GetPeerInfoResponse { peer_info: Some(peer_info) }, ..Rogue::default() }
}

fn parcels() -> Vec<Parcel> {
    let parcel = |bytes: &'static [u8]| {
        let blob = DigestFunction::Sha256.ref_of(bytes);
        let put = Put { blob, size: Some(bytes.len() as u64), replace: false };
        Parcel { put, bytes: Bytes::from_static(bytes), trace: None }
    };
    vec![parcel(b"hello"), parcel(b"world")]
}

fn stored(item: Option<u64>, bytes: &[u8]) -> v1::PackedResult {
    v1::PackedResult {
        item,
        r#ref: DigestFunction::Sha256.ref_of(bytes).to_string(),
        size_bytes: Some(bytes.len() as u64),
        disposition: v1::Disposition::Stored.into(),
        ..v1::PackedResult::default()
    }
}

async fn send_pack(results: Vec<v1::PackedResult>, end: Option<Status>) -> Vec<Result<Received, StoreError>> {
    let mut messages = vec![Ok(v1::ReceiveBlobsResponse { results, backlogs: Vec::new() })];
    messages.extend(end.map(Err));
    let (store, _up) = facing(Rogue { results: messages, ..packer() }).await;
    store.info().await.unwrap();
    let results = receive_all(&store, parcels()).await;
    assert_eq!(results.len(), 2);
    results
}

#[tokio::test]
async fn results_of_a_pack_come_in_any_order_and_an_item_fails_alone() {
    let results = send_pack(vec![stored(Some(1), b"world"), stored(Some(0), b"hello")], None).await;
    assert!(results.iter().zip(parcels()).all(|(result, sent)| result.as_ref().unwrap().blob == sent.put.blob));
    let error = v1::BlobError { code: 3, reason: "DIGEST_MISMATCH".to_owned(), message: "no".to_owned() };
    let refused = v1::PackedResult { item: Some(0), error: Some(error), ..v1::PackedResult::default() };
    let results = send_pack(vec![refused, stored(Some(1), b"world")], None).await;
    assert!(results[0].as_ref().unwrap_err().is_mismatch(), "{results:?}");
    results[1].as_ref().unwrap();
}

#[tokio::test]
async fn what_a_broken_pack_left_open_has_the_break_as_its_error() {
    let cut = Status::unavailable("gone");
    let results = send_pack(vec![stored(Some(0), b"hello")], Some(cut)).await;
    results[0].as_ref().unwrap();
    assert!(matches!(&results[1], Err(StoreError::Peer(error)) if error.code == Code::Unavailable), "{results:?}");
    for (broken, named) in [
        (vec![stored(None, b"world")], "without an item"),
        (vec![stored(Some(2), b"world")], "not sent"),
        (vec![stored(Some(0), b"hello"), stored(Some(0), b"hello")], "twice"),
        (vec![], "ended without"),
    ] {
        let message = protocol(send_pack(broken, None).await.remove(1));
        assert!(message.contains(named), "{message}");
    }
    // Its own item's fault, and no one else's.
    let other = v1::PackedResult { size_bytes: None, ..stored(Some(0), b"hello") };
    let mut results = send_pack(vec![other, stored(Some(1), b"world")], None).await;
    results.remove(1).unwrap();
    assert!(protocol(results.remove(0)).contains("size"));
}

/// What came of a pack so far, and whether it is all sent.
struct Heard {
    answered: Vec<usize>,
    all_sent: bool,
    // A permit for each.
    news: Arc<Semaphore>,
}

impl Heard {
    fn nothing() -> Self {
        Self { answered: Vec::new(), all_sent: false, news: Arc::new(Semaphore::new(0)) }
    }
}

impl Answers<Received> for Heard {
    fn answer(&mut self, at: usize, _: Result<Received, StoreError>) {
        self.answered.push(at);
        self.news.add_permits(1);
    }

    fn all_sent(&mut self) {
        assert!(!self.all_sent, "told twice");
        self.all_sent = true;
        self.news.add_permits(1);
    }
}

#[tokio::test]
async fn answers_to_a_pack_are_handed_on_as_they_come_and_that_it_is_all_sent() {
    let results = v1::ReceiveBlobsResponse { results: vec![stored(Some(1), b"world")], backlogs: Vec::new() };
    let (store, _up) = facing(Rogue { results: vec![Ok(results)], lingers: true, ..packer() }).await;
    store.info().await.unwrap();
    let mut heard = Heard::nothing();
    let news = heard.news.clone();
    tokio::select! {
        ended = store.receive_packed(parcels(), &mut heard) => panic!("{ended:?}"),
        both = tokio::time::timeout(Duration::from_secs(20), news.acquire_many(2)) => drop(both.unwrap().unwrap()),
    }
    assert_eq!((heard.answered, heard.all_sent), (vec![1], true));
}

#[tokio::test]
async fn a_pack_that_is_not_taken_is_not_called_sent() {
    // More than a stream's window, and a peer that answers nothing and reads nothing.
    let bytes = Bytes::from(vec![7; 1000]);
    let parcel = |_| Parcel {
        put: Put { blob: DigestFunction::Sha256.ref_of(&bytes), size: None, replace: false },
        bytes: bytes.clone(),
        trace: None,
    };
    let (store, _up) = facing(Rogue { hasty: true, lingers: true, ..packer() }).await;
    store.info().await.unwrap();
    let mut heard = Heard::nothing();
    let sending = store.receive_packed((0..20_000).map(parcel).collect(), &mut heard);
    assert!(tokio::time::timeout(Duration::from_millis(500), sending).await.is_err());
    assert!(!heard.all_sent && heard.answered.is_empty());
}

#[tokio::test]
async fn a_packed_read_that_breaks_the_protocol_is_named() {
    let want = |bytes: &[u8]| Want { blob: DigestFunction::Sha256.ref_of(bytes), trace: None };
    let whole = |item, bytes: &'static [u8]| v1::FetchedBlob {
        item: Some(item),
        r#ref: DigestFunction::Sha256.ref_of(bytes).to_string(),
        result: Some(v1::fetched_blob::Result::Data(Bytes::from_static(bytes))),
    };
    let ask = async |blobs: Vec<v1::FetchedBlob>| {
        let rogue = Rogue { found: vec![Ok(v1::FetchBlobsResponse { blobs })], ..packer() };
        let (store, _up) = facing(rogue).await;
        store.info().await.unwrap();
        fetch_all(&store, vec![want(b"hello"), want(b"world")]).await
    };
    let mut good = ask(vec![whole(1, b"world"), whole(0, b"hello")]).await;
    assert_eq!(good.remove(0).unwrap(), Packed::Whole(Bytes::from_static(b"hello")));
    let nothing = v1::FetchedBlob { item: Some(0), ..v1::FetchedBlob::default() };
    for (blobs, named) in [(vec![whole(0, b"world")], "when asked for"), (vec![nothing], "nothing"), (vec![], "ended")]
    {
        let message = protocol(ask(blobs).await.remove(0));
        assert!(message.contains(named), "{message}");
    }
    static LARGE: [u8; 1001] = [7; 1001];
    let large = v1::FetchedBlob { r#ref: hello().to_string(), ..whole(0, &LARGE) };
    let mut results = ask(vec![large, whole(1, b"world")]).await;
    results.remove(1).unwrap();
    assert!(matches!(results.remove(0), Err(StoreError::Mismatch(Mismatch::TooLong { stated: 1000 }))));
}
