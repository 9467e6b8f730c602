#![allow(clippy::unwrap_used, reason = "tests")]

use super::{StoreServer, StoreServerSettings};
use crate::blob::{BlobMeta, BlobRef, DigestFunction, Verifier};
use crate::grpc::{MAX_DECODED_BYTES, PeerEndpoint, ServeSettings, base_routes, serve};
use crate::pb::v1;
use crate::store::memory::MemoryStore;
use crate::store::packed::{Answers, MAX_PACKED_BYTES, Packed, Parcel, Want, fetch_each, receive_each};
use crate::store::remote::RemoteStore;
use crate::store::{
    Abilities, ByteRange, ByteStream, Disposition, EnumerateEnd, EnumeratePage, EnumerateRange, Enumeration, Fetched,
    PeerError, PeerKind, Put, Received, Store, StoreError, StoreInfo, conformance,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;
use v1::blob_reader_service_client::BlobReaderServiceClient;
use v1::blob_receiver_service_client::BlobReceiverServiceClient;
use v1::receive_blob_request::Part;

const LIMIT: u64 = 1 << 30;

/// The simplest store, which commits in the same instant in which its bytes end.
#[derive(Default)]
struct Shelf {
    blobs: Mutex<BTreeMap<BlobRef, Bytes>>,
    /// Read back in chunks of one byte.
    crumbs: bool,
}

#[async_trait]
impl Store for Shelf {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        let abilities = Abilities { stat: true, fetch: true, enumerate: true, ..Abilities::default() };
        Ok(StoreInfo {
            store_id: Some("shelf".to_owned()),
            kind: PeerKind::Store,
            version: "1".to_owned(),
            functions: vec![DigestFunction::Sha256, DigestFunction::Blake3],
            max_blob_bytes: Some(LIMIT),
            max_message_bytes: None,
            abilities,
            max_packed_bytes: None,
        })
    }

    async fn stat(&self, blobs: &[BlobRef]) -> Result<Vec<BlobMeta>, StoreError> {
        let held = self.blobs.lock();
        let meta = |blob: &BlobRef| held.get(blob).map(|bytes| BlobMeta { blob: *blob, size: bytes.len() as u64 });
        Ok(blobs.iter().filter_map(meta).collect())
    }

    async fn fetch(&self, blob: BlobRef, range: ByteRange) -> Result<Fetched, StoreError> {
        let bytes = self.blobs.lock().get(&blob).cloned().ok_or(StoreError::Missing(blob))?;
        let size = bytes.len();
        let offset = usize::try_from(range.offset).unwrap();
        if offset > size {
            return Err(StoreError::Invalid("behind the end".to_owned()));
        }
        let length = range.length.map_or(size, |length| usize::try_from(length).unwrap()).min(size - offset);
        let bytes = bytes.slice(offset..offset + length);
        let chunk = if self.crumbs { 1 } else { bytes.len().max(1) };
        let chunks: Vec<_> = bytes.chunks(chunk).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
        Ok(Fetched { size: size as u64, bytes: stream::iter(chunks).boxed() })
    }

    async fn receive(&self, put: Put, mut bytes: ByteStream) -> Result<Received, StoreError> {
        let mut verifier = Verifier::new(put.blob, put.size);
        let mut whole = BytesMut::new();
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|error| StoreError::Input(Box::new(error)))?;
            verifier.update(&chunk)?;
            whole.extend_from_slice(&chunk);
        }
        let size = verifier.finish()?;
        let was_new = self.blobs.lock().insert(put.blob, whole.freeze()).is_none();
        Ok(Received { blob: put.blob, size, disposition: Disposition::Stored, was_new })
    }

    async fn receive_packed(
        &self,
        parcels: Vec<Parcel>,
        answers: &mut dyn Answers<Received>,
    ) -> Result<(), StoreError> {
        receive_each(self, parcels, answers).await;
        Ok(())
    }

    async fn fetch_packed(&self, wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> Result<(), StoreError> {
        fetch_each(self, wants, MAX_PACKED_BYTES, answers).await;
        Ok(())
    }

    async fn enumerate(&self, range: EnumerateRange) -> Result<Enumeration, StoreError> {
        let held = self.blobs.lock();
        let mut metas: Vec<_> =
            held.iter().map(|(blob, bytes)| BlobMeta { blob: *blob, size: bytes.len() as u64 }).collect();
        metas.retain(|meta| {
            let text = meta.blob.to_string();
            text > range.after && (range.until.is_empty() || text <= range.until)
        });
        let all = metas.len();
        metas.truncate(range.limit.map_or(all, |limit| usize::try_from(limit).unwrap()));
        let end = EnumerateEnd { count: metas.len() as u64, complete: metas.len() == all };
        let pages = metas.chunks(7).map(|blobs| EnumeratePage { blobs: blobs.to_vec(), ..EnumeratePage::default() });
        let last = EnumeratePage { end: Some(end), ..EnumeratePage::default() };
        Ok(stream::iter(pages.chain([last]).map(Ok).collect::<Vec<_>>()).boxed())
    }
}

struct Served {
    shelf: Arc<Shelf>,
    address: SocketAddr,
    shutdown: CancellationToken,
    tasks: JoinSet<()>,
}

impl Served {
    async fn with(shelf: Shelf, settings: StoreServerSettings) -> Self {
        let shelf = Arc::new(shelf);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let routes = StoreServer::new(shelf.clone(), settings).add_to(base_routes(&[]).unwrap().0);
        let mut tasks = JoinSet::new();
        let stop = shutdown.clone();
        let drain = ServeSettings { drain_timeout: Duration::from_millis(300), ..ServeSettings::default() };
        tasks.spawn(async move { serve(listener, routes, drain, stop).await.unwrap() });
        Self { shelf, address, shutdown, tasks }
    }

    async fn start() -> Self {
        Self::with(Shelf::default(), StoreServerSettings::default()).await
    }

    fn store(&self) -> RemoteStore {
        RemoteStore::new(&PeerEndpoint::at(format!("http://{}", self.address).parse().unwrap())).unwrap()
    }

    async fn channel(&self) -> Channel {
        Channel::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    async fn send(&self, parts: Vec<Option<Part>>) -> Result<v1::ReceiveBlobResponse, Status> {
        let messages = stream::iter(parts.into_iter().map(|part| v1::ReceiveBlobRequest { part }));
        let mut client = BlobReceiverServiceClient::new(self.channel().await);
        Ok(client.receive_blob(messages).await?.into_inner())
    }

    fn held(&self) -> usize {
        self.shelf.blobs.lock().len()
    }

    async fn stop(mut self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.tasks.join_next()).await.unwrap().unwrap().unwrap();
    }
}

fn blob_of(bytes: &[u8]) -> BlobRef {
    DigestFunction::Sha256.ref_of(bytes)
}

fn put(blob: BlobRef, size: Option<u64>) -> Put {
    Put { blob, size, replace: false }
}

fn bytes_of(chunks: Vec<Result<&'static [u8], StoreError>>) -> ByteStream {
    stream::iter(chunks).map(|chunk| chunk.map(Bytes::from_static)).boxed()
}

fn header(blob: &str) -> Option<Part> {
    Some(Part::Header(v1::BlobHeader { r#ref: blob.to_owned(), ..v1::BlobHeader::default() }))
}

fn chunk(bytes: &'static [u8]) -> Option<Part> {
    Some(Part::Chunk(Bytes::from_static(bytes)))
}

fn reason_of(status: &Status) -> Option<String> {
    status.get_error_details().error_info().map(|info| info.reason.clone())
}

fn peer(error: StoreError) -> PeerError {
    match error {
        StoreError::Peer(error) => error,
        other => panic!("not a peer's error: {other:?}"),
    }
}

async fn read(fetched: Fetched) -> Vec<u8> {
    let chunks: Vec<_> = fetched.bytes.collect().await;
    chunks.into_iter().flat_map(|chunk| chunk.unwrap().to_vec()).collect()
}

/// Over the wire a store is what it is without.
#[tokio::test]
async fn a_remote_store_conforms() {
    let server = StoreServer::new(Arc::new(MemoryStore::new("a", 1 << 30)), StoreServerSettings::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
    let routes = server.add_to(base_routes(&[]).unwrap().0);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        serve(listener, routes, ServeSettings::default(), CancellationToken::new()).await.unwrap();
    });
    conformance::assert_passes(&RemoteStore::new(&PeerEndpoint::at(uri)).unwrap()).await;
}

#[tokio::test]
async fn a_blob_goes_there_and_back() {
    let served = Served::start().await;
    let store = served.store();
    let info = store.info().await.unwrap();
    assert_eq!((info.store_id.as_deref(), info.kind), (Some("shelf"), PeerKind::Store));
    assert!(info.abilities.fetch && !info.abilities.replace && info.abilities.packed);
    assert_eq!(info.max_packed_bytes, Some(MAX_PACKED_BYTES));
    let big: Vec<u8> = (0..3_000_000u32).map(|n| n.to_le_bytes()[n as usize % 3]).collect();
    for bytes in [Bytes::new(), Bytes::from_static(b"hello"), Bytes::from(big)] {
        let (blob, size) = (blob_of(&bytes), bytes.len() as u64);
        let received = store.receive(put(blob, Some(size)), stream::iter([Ok(bytes.clone())]).boxed()).await.unwrap();
        assert_eq!(received, Received { blob, size, disposition: Disposition::Stored, was_new: true });
        let again = store.receive(put(blob, None), stream::iter([Ok(bytes.clone())]).boxed()).await.unwrap();
        assert!(!again.was_new);
        let fetched = store.fetch(blob, ByteRange::default()).await.unwrap();
        assert_eq!(fetched.size, size);
        assert_eq!(read(fetched).await, bytes);
        assert_eq!(store.stat(&[blob, blob_of(b"absent")]).await.unwrap(), [BlobMeta { blob, size }]);
    }
    let part = store.fetch(blob_of(b"hello"), ByteRange { offset: 1, length: Some(3) }).await.unwrap();
    assert_eq!((part.size, read(part).await), (5, b"ell".to_vec()));
    let absent = store.fetch(blob_of(b"absent"), ByteRange::default()).await.err().unwrap();
    assert!(matches!(absent, StoreError::Missing(blob) if blob == blob_of(b"absent")));
    let behind = store.fetch(blob_of(b"hello"), ByteRange { offset: 6, length: None }).await.err().unwrap();
    let behind = peer(behind);
    assert_eq!((behind.code, behind.reason.as_deref()), (Code::OutOfRange, Some("OFFSET_OUT_OF_RANGE")));
    served.stop().await;
}

#[tokio::test]
async fn enumerations_are_packed_and_ranges_hold() {
    let served = Served::start().await;
    for n in 0..2500u32 {
        let bytes = Bytes::copy_from_slice(&n.to_le_bytes());
        served.shelf.blobs.lock().insert(blob_of(&bytes), bytes);
    }
    let refs: Vec<BlobRef> = served.shelf.blobs.lock().keys().copied().collect();
    let list = async |range: EnumerateRange| {
        let pages: Vec<_> = served.store().enumerate(range).await.unwrap().map(Result::unwrap).collect().await;
        let blobs: Vec<BlobRef> = pages.iter().flat_map(|page| &page.blobs).map(|meta| meta.blob).collect();
        (pages.len(), blobs, pages.last().unwrap().end.unwrap())
    };
    let (pages, all, end) = list(EnumerateRange::default()).await;
    assert_eq!((pages, end), (3, EnumerateEnd { count: 2500, complete: true }));
    assert_eq!(all, refs);
    let (after, until) = (refs[10].to_string(), refs[20].to_string());
    let (_, some, end) = list(EnumerateRange { after: after.clone(), until, limit: None }).await;
    assert_eq!((some.as_slice(), end.complete), (&refs[11..=20], true));
    let (_, some, end) = list(EnumerateRange { after, until: String::new(), limit: Some(5) }).await;
    assert_eq!((some.as_slice(), end.complete), (&refs[11..16], false));
    let (_, none, end) = list(EnumerateRange { limit: Some(0), ..EnumerateRange::default() }).await;
    assert!(none.is_empty() && !end.complete);
    let many: Vec<BlobRef> = refs.iter().cycle().take(20_001).copied().collect();
    assert_eq!(served.store().stat(&many).await.unwrap().len(), 20_001);
    let mut client = BlobReaderServiceClient::new(served.channel().await);
    let refs = many.iter().take(10_001).map(ToString::to_string).collect();
    let status = client.stat_blobs(v1::StatBlobsRequest { refs }).await.unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("TOO_MANY_ITEMS"));
    let range = v1::EnumerateBlobsRequest { after: "ä".to_owned(), ..v1::EnumerateBlobsRequest::default() };
    let status = client.enumerate_blobs(range).await.unwrap_err();
    assert_eq!(reason_of(&status).as_deref(), Some("INVALID_FIELD"));
    served.stop().await;
}

#[tokio::test]
async fn wrong_short_and_long_bytes_are_refused() {
    let served = Served::start().await;
    let store = served.store();
    let blob = blob_of(b"hello");
    for (size, sent, reason) in [
        (None, "hullo", "DIGEST_MISMATCH"),
        (Some(5), "hullo", "DIGEST_MISMATCH"),
        (Some(5), "hell", "SIZE_MISMATCH"),
        (Some(5), "hello!", "SIZE_MISMATCH"),
    ] {
        let error = store.receive(put(blob, size), bytes_of(vec![Ok(sent.as_bytes())])).await.unwrap_err();
        let error = peer(error);
        assert_eq!((error.code, error.reason.as_deref()), (Code::InvalidArgument, Some(reason)), "{sent}");
    }
    assert_eq!(served.held(), 0);
    served.stop().await;
}

#[tokio::test]
async fn a_source_that_fails_after_its_last_byte_commits_nothing() {
    let served = Served::start().await;
    let store = served.store();
    for n in 0..100 {
        // Now and then the end comes after the bytes have long arrived.
        let pause = Duration::from_millis(n % 3);
        let late = stream::once(async move {
            tokio::time::sleep(pause).await;
            Err(StoreError::NoSpace("source".to_owned()))
        });
        let bytes = stream::iter([Ok(Bytes::from_static(b"hello"))]).chain(late).boxed();
        let error = store.receive(put(blob_of(b"hello"), Some(5)), bytes).await.unwrap_err();
        assert!(matches!(error, StoreError::Input(inner) if matches!(*inner, StoreError::NoSpace(_))));
    }
    // The streams are cut one by one, behind our back; another call on each connection comes after them.
    for _ in 0..8 {
        store.receive(put(blob_of(b"x"), None), bytes_of(vec![Ok(b"x")])).await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(served.shelf.blobs.lock().keys().copied().collect::<Vec<_>>(), [blob_of(b"x")]);
    served.stop().await;
}

#[tokio::test]
async fn a_dropped_upload_commits_nothing() {
    let served = Served::start().await;
    let store = served.store();
    for _ in 0..20 {
        let bytes = stream::iter([Ok(Bytes::from_static(b"hello"))]).chain(stream::pending()).boxed();
        let call = store.receive(put(blob_of(b"hello"), None), bytes);
        assert!(tokio::time::timeout(Duration::from_millis(20), call).await.is_err());
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(served.held(), 0);
    served.stop().await;
}

#[tokio::test]
async fn malformed_streams_are_refused_by_their_reason() {
    let served = Served::start().await;
    let blob = blob_of(b"hello").to_string();
    let cases = [
        (vec![], "HEADER_MISSING"),
        (vec![chunk(b"hello")], "HEADER_MISSING"),
        (vec![None], "MESSAGE_EMPTY"),
        (vec![header(&blob), None], "MESSAGE_EMPTY"),
        (vec![header(&blob), chunk(b"he"), header(&blob), chunk(b"llo")], "HEADER_REPEATED"),
        (vec![header(&blob), chunk(b"hello"), header(&blob)], "HEADER_REPEATED"),
        (vec![header("sha256-00")], "INVALID_REF"),
        (vec![header("md5-00000000000000000000000000000000")], "INVALID_REF"),
        // Known to us, not to the store.
        (vec![header(&DigestFunction::Sha1.ref_of(b"").to_string())], "INVALID_REF"),
    ];
    for (parts, reason) in cases {
        let status = served.send(parts).await.unwrap_err();
        assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::InvalidArgument, Some(reason)), "{status:?}");
        if reason == "INVALID_REF" {
            let field = status.get_error_details().bad_request().unwrap().field_violations[0].field.clone();
            assert_eq!(field, "header.ref");
        }
    }
    let replace = v1::BlobHeader { r#ref: blob.clone(), replace: true, ..v1::BlobHeader::default() };
    let status = served.send(vec![Some(Part::Header(replace)), chunk(b"hello")]).await.unwrap_err();
    assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::FailedPrecondition, Some("REPLACE_UNSUPPORTED")));
    assert_eq!(served.held(), 0);
    served.send(vec![header(&blob), chunk(b""), chunk(b"hello")]).await.unwrap();
    assert_eq!(served.held(), 1);
    served.stop().await;
}

#[tokio::test]
async fn an_oversize_message_is_out_of_range() {
    let served = Served::start().await;
    let large = vec![0u8; MAX_DECODED_BYTES + 1];
    let blob = blob_of(&large).to_string();
    let status = served.send(vec![header(&blob), Some(Part::Chunk(large.into()))]).await.unwrap_err();
    assert_eq!((status.code(), reason_of(&status).as_deref()), (Code::OutOfRange, Some("MESSAGE_TOO_LARGE")));
    let fitting = vec![0u8; 4 << 20];
    let blob = blob_of(&fitting).to_string();
    served.send(vec![header(&blob), Some(Part::Chunk(fitting.into()))]).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn an_early_refusal_is_told_while_bytes_are_still_coming() {
    let served = Served::start().await;
    let store = served.store();
    let begun = Instant::now();
    let endless = stream::repeat_with(|| Ok(Bytes::from_static(&[0; 1000]))).chain(stream::pending()).boxed();
    let error = peer(store.receive(put(blob_of(b""), Some(LIMIT + 1)), endless).await.unwrap_err());
    assert_eq!((error.code, error.reason.as_deref()), (Code::OutOfRange, Some("BLOB_TOO_LARGE")));
    let silent = stream::pending().boxed();
    let error = peer(store.receive(put(blob_of(b""), Some(LIMIT + 1)), silent).await.unwrap_err());
    assert_eq!(error.reason.as_deref(), Some("BLOB_TOO_LARGE"));
    assert!(begun.elapsed() < Duration::from_secs(5));
    served.stop().await;
}

#[tokio::test]
async fn a_sender_that_stands_still_is_ended() {
    let settings = StoreServerSettings { idle_timeout: Duration::from_millis(100), ..StoreServerSettings::default() };
    let served = Served::with(Shelf::default(), settings).await;
    let store = served.store();
    let bytes = stream::iter([Ok(Bytes::from_static(b"he"))]).chain(stream::pending()).boxed();
    let error = peer(store.receive(put(blob_of(b"hello"), Some(5)), bytes).await.unwrap_err());
    assert_eq!((error.code, error.reason.as_deref()), (Code::DeadlineExceeded, Some("STREAM_IDLE")));
    served.stop().await;
}

#[tokio::test]
async fn a_call_beyond_the_cap_is_told_so_and_a_finished_one_makes_room() {
    let settings = StoreServerSettings { max_calls: 1, ..StoreServerSettings::default() };
    let served = Served::with(Shelf::default(), settings).await;
    let bytes = Bytes::from(vec![7u8; 20 << 20]);
    let blob = blob_of(&bytes);
    served.shelf.blobs.lock().insert(blob, bytes);
    let store = served.store();
    // Its headers are here, most of its bytes are not.
    let fetched = store.fetch(blob, ByteRange::default()).await.unwrap();
    let error = peer(store.stat(&[blob]).await.unwrap_err());
    assert_eq!((error.code, error.reason.as_deref()), (Code::ResourceExhausted, Some("TOO_BUSY")));
    assert_eq!(read(fetched).await.len(), 20 << 20);
    store.stat(&[blob]).await.unwrap();
    served.stop().await;
}

#[tokio::test]
async fn a_stalled_reader_of_small_messages_keeps_its_connection() {
    let served = Served::with(Shelf { crumbs: true, ..Shelf::default() }, StoreServerSettings::default()).await;
    let bytes = Bytes::from(vec![7u8; 60_000]);
    let blob = blob_of(&bytes);
    served.shelf.blobs.lock().insert(blob, bytes);
    let store = served.store();
    let fetched = store.fetch(blob, ByteRange::default()).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(read(fetched).await.len(), 60_000);
    served.stop().await;
}

#[tokio::test]
async fn a_connection_without_a_preface_does_not_hang_the_shutdown() {
    let served = Served::start().await;
    let silent = TcpStream::connect(served.address).await.unwrap();
    served.store().info().await.unwrap();
    served.stop().await;
    drop(silent);
}

#[tokio::test]
async fn a_call_in_progress_is_cut_at_the_end_of_the_drain() {
    let served = Served::start().await;
    let (store, shutdown) = (served.store(), served.shutdown.clone());
    let bytes = stream::iter([Ok(Bytes::from_static(b"he"))]).chain(stream::pending()).boxed();
    let call = store.receive(put(blob_of(b"hello"), Some(5)), bytes);
    let stop = async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        shutdown.cancel();
        std::future::pending::<()>().await
    };
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        tokio::select! { ended = call => ended, () = stop => unreachable!() }
    });
    assert!(ended.await.unwrap().is_err());
    served.stop().await;
}

#[tokio::test]
async fn health_is_served() {
    let served = Served::start().await;
    let mut client = tonic_health::pb::health_client::HealthClient::new(served.channel().await);
    let answer = client.check(tonic_health::pb::HealthCheckRequest { service: String::new() }).await.unwrap();
    assert_eq!(answer.into_inner().status(), tonic_health::pb::health_check_response::ServingStatus::Serving);
    served.stop().await;
}

fn pack(count: usize, size: usize) -> v1::ReceiveBlobsRequest {
    let blob = |n: usize| {
        let mut bytes = vec![0; size];
        bytes[..8].copy_from_slice(&n.to_le_bytes());
        v1::PackedBlob { r#ref: blob_of(&bytes).to_string(), data: bytes.into(), ..v1::PackedBlob::default() }
    };
    v1::ReceiveBlobsRequest { blobs: (0..count).map(blob).collect(), source_store: String::new() }
}

#[tokio::test]
async fn what_makes_no_sense_in_a_pack_is_that_items_fault() {
    let served = Served::start().await;
    let mut client = BlobReceiverServiceClient::new(served.channel().await);
    let mut message = pack(6, 100);
    message.blobs[1].r#ref = "nonsense".to_owned();
    message.blobs[2].replace = true;
    message.blobs[3].data = Bytes::from_static(b"other bytes");
    message.blobs[4].data = vec![0; usize::try_from(MAX_PACKED_BYTES).unwrap() + 1].into();
    let answers = client.receive_blobs(stream::iter([pack(2, 50), message])).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(Result::unwrap).collect().await;
    let results: Vec<_> = answers.into_iter().flat_map(|answer| answer.results).collect();
    assert!(results.iter().map(|result| result.item).eq((0..8).map(Some)));
    let reasons: Vec<_> =
        results.iter().map(|result| result.error.as_ref().map(|error| error.reason.as_str())).collect();
    let refused = [Some("INVALID_REF"), Some("REPLACE_UNSUPPORTED"), Some("DIGEST_MISMATCH"), Some("BLOB_TOO_LARGE")];
    assert_eq!(reasons, [&[None, None, None][..], &refused, &[None]].concat());
    assert_eq!(served.held(), 4);
    let many = v1::ReceiveBlobsRequest { blobs: vec![v1::PackedBlob::default(); 10_001], ..Default::default() };
    let mut answers = client.receive_blobs(stream::iter([many])).await.unwrap().into_inner();
    assert_eq!(reason_of(&answers.message().await.unwrap_err()).as_deref(), Some("TOO_MANY_ITEMS"));
    served.stop().await;
}

#[tokio::test]
async fn a_client_that_sends_packs_and_reads_no_answers_is_read_no_further_and_ended() {
    let settings = StoreServerSettings { idle_timeout: Duration::from_millis(300), max_calls: 1 };
    let served = Served::with(Shelf::default(), settings).await;
    let mut client = BlobReceiverServiceClient::new(served.channel().await);
    let taken = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = taken.clone();
    let messages = (0..10_000).map(move |_| {
        count.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        pack(500, 1000)
    });
    let mut answers = client.receive_blobs(stream::iter(messages)).await.unwrap().into_inner();
    // Nobody reads. What the server took is bounded by windows and the messages it works at, not by what there is.
    let ended = async {
        // As long as the call is in progress, there is no room for another.
        while served.store().stat(&[blob_of(b"x")]).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), ended).await.unwrap();
    assert!(taken.load(std::sync::atomic::Ordering::Relaxed) < 200);
    let end = loop {
        match answers.message().await {
            Ok(Some(_)) => {}
            end => break end,
        }
    };
    assert_eq!(end.unwrap_err().code(), Code::DeadlineExceeded);
    served.stop().await;
}
