//! A complete little blob store that blobferry can replicate from and to.
//!
//!     cargo run --bin store -- 127.0.0.1:7090 /tmp/little-store
//!
//! One file for each blob, under its ref's name. A blob is written to a temporary file, synced, and renamed only after its
//! digest matched, so that a kill at any moment leaves no wrong blob behind. `blobferry conformance --store URL` checks it.

use anyhow::{Context as _, Result};
use blobferry::blob::{BlobRef, Mismatch, Verifier};
use blobferry::v1;
use blobferry::v1::blob_reader_service_server::{BlobReaderService, BlobReaderServiceServer};
use blobferry::v1::blob_receiver_service_server::{BlobReceiverService, BlobReceiverServiceServer};
use futures::stream::{self, BoxStream, StreamExt as _};
use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::NamedTempFile;
use tokio::fs;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};
use v1::receive_blob_request::Part;

/// Bytes in a message.
const CHUNK: usize = 256 << 10;
/// Refs in a message.
const PAGE: usize = 1000;
/// Refs in a StatBlobs request.
const MAX_REFS: usize = 10_000;

/// The blobs in a folder.
#[derive(Clone)]
struct LittleStore {
    blobs: PathBuf,
    incoming: PathBuf,
    store_id: String,
    /// Held while a blob is put in its place.
    commit: Arc<Mutex<()>>,
}

/// The end of a call: a code, a stable reason, and for a bad field its name.
fn failed(code: Code, reason: &str, message: String, field: Option<&str>) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, "blobferry.v1", HashMap::new());
    if let Some(field) = field {
        details.add_bad_request_violation(field, &message);
    }
    Status::with_error_details(code, message, details)
}

fn invalid(reason: &str, message: impl Into<String>, field: Option<&str>) -> Status {
    failed(Code::InvalidArgument, reason, message.into(), field)
}

fn parsed(text: &str, field: &str) -> Result<BlobRef, Status> {
    text.parse().map_err(|error: blobferry::blob::RefError| invalid("INVALID_REF", error.to_string(), Some(field)))
}

fn mismatch(mismatch: &Mismatch) -> Status {
    let reason = if let Mismatch::Digest { .. } = mismatch { "DIGEST_MISMATCH" } else { "SIZE_MISMATCH" };
    invalid(reason, mismatch.to_string(), None)
}

fn io(error: std::io::Error) -> Status {
    failed(Code::Internal, "STORE_FAILED", error.to_string(), None)
}

impl LittleStore {
    fn open(data: &Path) -> Result<Self> {
        let (blobs, incoming, name) = (data.join("blobs"), data.join("incoming"), data.join("store_id"));
        std::fs::create_dir_all(&blobs)?;
        // What is left of uploads that a kill ended.
        _ = std::fs::remove_dir_all(&incoming);
        std::fs::create_dir(&incoming)?;
        if !name.exists() {
            let draft = NamedTempFile::new_in(&incoming)?;
            std::fs::write(draft.path(), uuid::Uuid::new_v4().to_string())?;
            draft.as_file().sync_all()?;
            draft.persist(&name)?;
            std::fs::File::open(data)?.sync_all()?;
        }
        let store_id = std::fs::read_to_string(name)?;
        Ok(Self { blobs, incoming, store_id, commit: Arc::default() })
    }

    /// An answer says which store gives it: an address may lead to several.
    fn answer<T>(&self, message: T) -> Result<Response<T>, Status> {
        let mut response = Response::new(message);
        let id = self.store_id.parse().map_err(|_| Status::internal("the store id is no metadata"))?;
        response.metadata_mut().insert("blobferry-store-id", id);
        Ok(response)
    }

    async fn size_of(&self, blob: &BlobRef) -> Result<Option<u64>, Status> {
        match fs::metadata(self.blobs.join(blob.to_string())).await {
            Ok(file) => Ok(Some(file.len())),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(io(error)),
        }
    }

    /// Writes what comes, checks it, and puts it in its place. A stream that was cut is an error, and commits nothing.
    async fn receive(
        &self,
        header: v1::BlobHeader,
        mut parts: Streaming<v1::ReceiveBlobRequest>,
    ) -> Result<v1::ReceiveBlobResponse, Status> {
        let blob = parsed(&header.r#ref, "header.ref")?;
        let mut verifier = Verifier::new(blob, header.size_bytes);
        let draft = NamedTempFile::new_in(&self.incoming).map_err(io)?;
        let mut file = fs::File::from_std(draft.reopen().map_err(io)?);
        while let Some(message) = parts.message().await? {
            let chunk = match message.part {
                Some(Part::Chunk(chunk)) => chunk,
                Some(Part::Header(_)) => return Err(invalid("HEADER_REPEATED", "a second header came", None)),
                None => return Err(invalid("MESSAGE_EMPTY", "a message has neither header nor chunk", None)),
            };
            verifier.update(&chunk).map_err(|error| mismatch(&error))?;
            file.write_all(&chunk).await.map_err(io)?;
        }
        let size_bytes = verifier.finish().map_err(|error| mismatch(&error))?;
        file.flush().await.map_err(io)?;
        file.sync_all().await.map_err(io)?;
        let _commit = self.commit.lock().await;
        let place = self.blobs.join(blob.to_string());
        let was_new = self.size_of(&blob).await?.is_none();
        if was_new || header.replace {
            draft.persist(&place).map_err(|error| io(error.error))?;
            fs::File::open(&self.blobs).await.map_err(io)?.sync_all().await.map_err(io)?;
        }
        let disposition = v1::Disposition::Stored.into();
        let (text, size_bytes) = (blob.to_string(), Some(size_bytes));
        Ok(v1::ReceiveBlobResponse { r#ref: text, size_bytes, disposition, was_new, ..Default::default() })
    }
}

#[tonic::async_trait]
impl BlobReceiverService for LittleStore {
    async fn get_peer_info(
        &self,
        _request: Request<v1::GetPeerInfoRequest>,
    ) -> Result<Response<v1::GetPeerInfoResponse>, Status> {
        let functions = ["blake3", "sha1", "sha224", "sha256", "sha512"];
        let abilities =
            [v1::Ability::Stat, v1::Ability::Enumerate, v1::Ability::Fetch, v1::Ability::Replace].map(i32::from);
        let info = v1::PeerInfo {
            store_id: self.store_id.clone(),
            kind: v1::PeerKind::Store.into(),
            version: "little-store 1".to_owned(),
            digest_functions: functions.map(str::to_owned).to_vec(),
            abilities: abilities.to_vec(),
            ..Default::default()
        };
        self.answer(v1::GetPeerInfoResponse { peer_info: Some(info) })
    }

    async fn receive_blob(
        &self,
        request: Request<Streaming<v1::ReceiveBlobRequest>>,
    ) -> Result<Response<v1::ReceiveBlobResponse>, Status> {
        let mut parts = request.into_inner();
        let Some(v1::ReceiveBlobRequest { part: Some(Part::Header(header)) }) = parts.message().await? else {
            return Err(invalid("HEADER_MISSING", "the first message must be a header", None));
        };
        self.answer(self.receive(header, parts).await?)
    }

    type ReceiveBlobsStream = BoxStream<'static, Result<v1::ReceiveBlobsResponse, Status>>;

    async fn receive_blobs(
        &self,
        _request: Request<Streaming<v1::ReceiveBlobsRequest>>,
    ) -> Result<Response<Self::ReceiveBlobsStream>, Status> {
        let message = "packs are not taken here: GetPeerInfo does not list the ability".to_owned();
        Err(failed(Code::Unimplemented, "ABILITY_UNSUPPORTED", message, None))
    }
}

#[tonic::async_trait]
impl BlobReaderService for LittleStore {
    async fn stat_blobs(
        &self,
        request: Request<v1::StatBlobsRequest>,
    ) -> Result<Response<v1::StatBlobsResponse>, Status> {
        let refs = request.into_inner().refs;
        if refs.len() > MAX_REFS {
            let message = format!("at most {MAX_REFS} refs in one request");
            return Err(invalid("TOO_MANY_ITEMS", message, Some("refs")));
        }
        let mut blobs = Vec::new();
        for (at, text) in refs.into_iter().enumerate() {
            let blob = parsed(&text, &format!("refs[{at}]"))?;
            if let Some(size_bytes) = self.size_of(&blob).await? {
                blobs.push(v1::BlobMeta { r#ref: text, size_bytes: Some(size_bytes) });
            }
        }
        self.answer(v1::StatBlobsResponse { blobs })
    }

    type FetchBlobStream = BoxStream<'static, Result<v1::FetchBlobResponse, Status>>;

    async fn fetch_blob(
        &self,
        request: Request<v1::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let v1::FetchBlobRequest { r#ref: text, offset, length, .. } = request.into_inner();
        let blob = parsed(&text, "ref")?;
        let Some(size_bytes) = self.size_of(&blob).await? else {
            return Err(failed(Code::NotFound, "BLOB_MISSING", format!("there is no blob {blob}"), None));
        };
        if offset > size_bytes {
            let message = format!("offset {offset} lies beyond the blob's {size_bytes} bytes");
            return Err(failed(Code::OutOfRange, "OFFSET_OUT_OF_RANGE", message, None));
        }
        let mut file = fs::File::open(self.blobs.join(&text)).await.map_err(io)?;
        file.seek(std::io::SeekFrom::Start(offset)).await.map_err(io)?;
        let left = length.unwrap_or(u64::MAX).min(size_bytes - offset);
        let header = v1::FetchBlobHeader { r#ref: text, size_bytes: Some(size_bytes) };
        let header = v1::FetchBlobResponse { part: Some(v1::fetch_blob_response::Part::Header(header)) };
        let chunks = stream::try_unfold(file.take(left), |mut file| async move {
            let mut chunk = Vec::with_capacity(CHUNK);
            (&mut file).take(CHUNK as u64).read_to_end(&mut chunk).await.map_err(io)?;
            let part = Some(v1::fetch_blob_response::Part::Chunk(chunk.into()));
            Ok::<_, Status>(match &part {
                Some(v1::fetch_blob_response::Part::Chunk(chunk)) if chunk.is_empty() => None,
                _ => Some((v1::FetchBlobResponse { part }, file)),
            })
        });
        self.answer(stream::iter([Ok(header)]).chain(chunks).boxed())
    }

    type FetchBlobsStream = BoxStream<'static, Result<v1::FetchBlobsResponse, Status>>;

    async fn fetch_blobs(
        &self,
        _request: Request<Streaming<v1::FetchBlobsRequest>>,
    ) -> Result<Response<Self::FetchBlobsStream>, Status> {
        let message = "packs are not given here: GetPeerInfo does not list the ability".to_owned();
        Err(failed(Code::Unimplemented, "ABILITY_UNSUPPORTED", message, None))
    }

    type EnumerateBlobsStream = BoxStream<'static, Result<v1::EnumerateBlobsResponse, Status>>;

    async fn enumerate_blobs(
        &self,
        request: Request<v1::EnumerateBlobsRequest>,
    ) -> Result<Response<Self::EnumerateBlobsStream>, Status> {
        let v1::EnumerateBlobsRequest { after, until, limit, .. } = request.into_inner();
        for (field, bound) in [("after", &after), ("until", &until)] {
            if !bound.is_ascii() || bound.len() > 1024 {
                let message = format!("{field} must be at most 1,024 ASCII characters");
                return Err(invalid("INVALID_FIELD", message, Some(field)));
            }
        }
        let mut refs = Vec::new();
        let mut folder = fs::read_dir(&self.blobs).await.map_err(io)?;
        while let Some(file) = folder.next_entry().await.map_err(io)? {
            let Ok(name) = file.file_name().into_string() else { continue };
            if name > after && (until.is_empty() || name <= until) {
                refs.push(name);
            }
        }
        refs.sort_unstable();
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let complete = limit == 0 || refs.len() <= limit;
        if !complete {
            refs.truncate(limit);
        }
        let end = v1::EnumerateEnd { count: Some(refs.len() as u64), complete: Some(complete) };
        let end = v1::EnumerateBlobsResponse { end: Some(end), ..Default::default() };
        let pages: Vec<Vec<String>> = refs.chunks(PAGE).map(<[String]>::to_vec).collect();
        let blobs = self.blobs.clone();
        let pages = stream::iter(pages).then(move |page| {
            let folder = blobs.clone();
            async move {
                let mut blobs = Vec::with_capacity(page.len());
                for text in page {
                    let size_bytes = fs::metadata(folder.join(&text)).await.map_err(io)?.len();
                    blobs.push(v1::BlobMeta { r#ref: text, size_bytes: Some(size_bytes) });
                }
                Ok(v1::EnumerateBlobsResponse { blobs, ..Default::default() })
            }
        });
        self.answer(pages.chain(stream::iter([Ok(end)])).boxed())
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let listen = arguments.next().unwrap_or_else(|| "127.0.0.1:7090".to_owned());
    let data = PathBuf::from(arguments.next().unwrap_or_else(|| "/tmp/little-store".to_owned()));
    let store = LittleStore::open(&data).with_context(|| format!("opening {}", data.display()))?;
    let listener = TcpListener::bind(&listen).await.with_context(|| format!("listening at {listen}"))?;
    println!("the little store listens at http://{}", listener.local_addr()?);
    // A chunk may fill a message to gRPC's usual limit, and has a few bytes around it.
    let receiver = BlobReceiverServiceServer::new(store.clone()).max_decoding_message_size((4 << 20) + CHUNK);
    Server::builder()
        .add_service(receiver)
        .add_service(BlobReaderServiceServer::new(store))
        .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async { _ = tokio::signal::ctrl_c().await })
        .await?;
    Ok(())
}
