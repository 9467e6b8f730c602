//! The floor of the wire: three processes that do nothing but move the same messages.
//!
//! A source streams one blob again and again by `FetchBlob`, a pipe passes each chunk on by `ReceiveBlob`, a sink counts the
//! bytes. No queue, no store, no breaker; with `--sha256`, pipe and sink hash what passes and compare it with the ref, as
//! every honest copier must. Windows and frames are blobferry's own. Each process ends when its standard input does, so
//! none outlives the one that started it.

use crate::support::api::{self, CHUNK, Reader, Receiver};
use crate::support::process::Process;
use anyhow::{Context as _, Result, anyhow, ensure};
use blobferry::blob::{BlobRef, DigestFunction, Hasher};
use blobferry::pb::v1 as pb;
use bytes::Bytes;
use futures::Stream;
use pb::blob_reader_service_server::{BlobReaderService, BlobReaderServiceServer};
use pb::blob_receiver_service_server::{BlobReceiverService, BlobReceiverServiceServer};
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::transport::server::{Router, Server, TcpIncoming};
use tonic::{Request, Response, Status, Streaming};

/// Connections of the pipe to each side, taken in turn: as many as the replicator has.
const CONNECTIONS: usize = 4;
/// Blobs in a message of the packed relay.
const PACK: usize = 256;
/// The seed of the one blob.
const SEED: u64 = 64;

/// The parts of the relay. Started by the benchmark itself.
#[derive(clap::Subcommand)]
#[command(hide = true)]
pub(crate) enum Role {
    /// Serves one blob.
    #[command(hide = true)]
    Source { size: usize },
    /// Moves blobs from a source to a sink.
    #[command(hide = true)]
    Pipe(Pipe),
    /// Takes blobs and forgets them.
    #[command(hide = true)]
    Sink {
        #[arg(long)]
        sha256: bool,
    },
}

#[derive(clap::Args)]
pub(crate) struct Pipe {
    source: String,
    sink: String,
    size: u64,
    /// Streams at a time.
    streams: usize,
    #[arg(long)]
    sha256: bool,
    /// Many blobs in a message, on streams that stay open.
    #[arg(long)]
    packed: bool,
}

pub(crate) async fn run(role: Role) -> Result<()> {
    match role {
        Role::Source { size } => {
            let (blob, bytes) = api::blob(SEED, size);
            serve(|server| server.add_service(BlobReaderServiceServer::new(Source { blob: blob.to_string(), bytes })))
                .await
        }
        Role::Sink { sha256 } => {
            let service = BlobReceiverServiceServer::new(Sink { sha256 }).max_decoding_message_size(4 << 20);
            serve(|server| server.add_service(service)).await
        }
        Role::Pipe(pipe) => pipe.run().await,
    }
}

/// Serves at a free port until standard input ends.
async fn serve(with: impl FnOnce(&mut Server) -> Router) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    println!("http://{}", listener.local_addr()?);
    let mut server = Server::builder()
        .initial_stream_window_size(1 << 20)
        .initial_connection_window_size(8 << 20)
        .max_frame_size(64 << 10)
        .max_concurrent_streams(1024);
    let serving = with(&mut server).serve_with_incoming(TcpIncoming::from(listener).with_nodelay(Some(true)));
    let mut nothing = Vec::new();
    let mut stdin = tokio::io::stdin();
    tokio::select! {
        served = serving => served?,
        ended = stdin.read_to_end(&mut nothing) => { ended?; }
    }
    Ok(())
}

struct Source {
    blob: String,
    bytes: Bytes,
}

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl BlobReaderService for Source {
    type FetchBlobsStream = Out<pb::FetchBlobsResponse>;

    async fn fetch_blobs(
        &self,
        request: Request<Streaming<pb::FetchBlobsRequest>>,
    ) -> Result<Response<Self::FetchBlobsStream>, Status> {
        let (name, bytes) = (self.blob.clone(), self.bytes.clone());
        let messages = request.into_inner().map(move |message| {
            let answer = |_| pb::FetchedBlob {
                item: Some(0),
                r#ref: name.clone(),
                result: Some(pb::fetched_blob::Result::Data(bytes.clone())),
            };
            Ok(pb::FetchBlobsResponse { blobs: message?.blobs.into_iter().map(answer).collect() })
        });
        Ok(Response::new(Box::pin(messages)))
    }

    type FetchBlobStream = Out<pb::FetchBlobResponse>;
    type EnumerateBlobsStream = Out<pb::EnumerateBlobsResponse>;

    async fn fetch_blob(
        &self,
        _request: Request<pb::FetchBlobRequest>,
    ) -> Result<Response<Self::FetchBlobStream>, Status> {
        let header = pb::FetchBlobHeader { r#ref: self.blob.clone(), size_bytes: Some(self.bytes.len() as u64) };
        let header = pb::fetch_blob_response::Part::Header(header);
        let chunks = api::pieces(self.bytes.clone()).map(pb::fetch_blob_response::Part::Chunk);
        let parts = std::iter::once(header).chain(chunks);
        let messages = parts.map(|part| Ok(pb::FetchBlobResponse { part: Some(part) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn stat_blobs(
        &self,
        _request: Request<pb::StatBlobsRequest>,
    ) -> Result<Response<pb::StatBlobsResponse>, Status> {
        Err(Status::unimplemented("a relay's source only fetches"))
    }

    async fn enumerate_blobs(
        &self,
        _request: Request<pb::EnumerateBlobsRequest>,
    ) -> Result<Response<Self::EnumerateBlobsStream>, Status> {
        Err(Status::unimplemented("a relay's source only fetches"))
    }
}

struct Sink {
    sha256: bool,
}

#[tonic::async_trait]
impl BlobReceiverService for Sink {
    type ReceiveBlobsStream = Out<pb::ReceiveBlobsResponse>;

    async fn receive_blobs(
        &self,
        request: Request<Streaming<pb::ReceiveBlobsRequest>>,
    ) -> Result<Response<Self::ReceiveBlobsStream>, Status> {
        let sha256 = self.sha256;
        let messages = request.into_inner().map(move |message| {
            let results = message?.blobs.into_iter().map(|packed| {
                if sha256 && DigestFunction::Sha256.ref_of(&packed.data).to_string() != packed.r#ref {
                    return Err(Status::invalid_argument("the digest differs"));
                }
                Ok(pb::PackedResult {
                    item: Some(0),
                    size_bytes: Some(packed.data.len() as u64),
                    r#ref: packed.r#ref,
                    disposition: pb::Disposition::Stored.into(),
                    ..Default::default()
                })
            });
            Ok(pb::ReceiveBlobsResponse { results: results.collect::<Result<_, _>>()?, backlogs: Vec::new() })
        });
        Ok(Response::new(Box::pin(messages)))
    }

    async fn get_peer_info(
        &self,
        _request: Request<pb::GetPeerInfoRequest>,
    ) -> Result<Response<pb::GetPeerInfoResponse>, Status> {
        Err(Status::unimplemented("a relay's sink only receives"))
    }

    async fn receive_blob(
        &self,
        request: Request<Streaming<pb::ReceiveBlobRequest>>,
    ) -> Result<Response<pb::ReceiveBlobResponse>, Status> {
        let mut stream = request.into_inner();
        let mut answer = pb::ReceiveBlobResponse::default();
        let mut size = 0;
        let mut hasher = self.sha256.then(|| Hasher::new(DigestFunction::Sha256));
        while let Some(message) = stream.message().await? {
            match message.part {
                Some(pb::receive_blob_request::Part::Header(header)) => answer.r#ref = header.r#ref,
                Some(pb::receive_blob_request::Part::Chunk(chunk)) => {
                    size += chunk.len() as u64;
                    if let Some(hasher) = &mut hasher {
                        hasher.update(&chunk);
                    }
                }
                None => {}
            }
        }
        if hasher.is_some_and(|hasher| hasher.finish().to_string() != answer.r#ref) {
            return Err(Status::invalid_argument("the digest differs"));
        }
        answer.size_bytes = Some(size);
        answer.set_disposition(pb::Disposition::Stored);
        Ok(Response::new(answer))
    }
}

impl Pipe {
    /// For every number on standard input, moves as many blobs, and answers with a line.
    async fn run(self) -> Result<()> {
        let channels = |url: &str| (0..CONNECTIONS).map(|_| api::channel(url)).collect::<Result<Vec<Channel>>>();
        let (sources, sinks) = (channels(&self.source)?, channels(&self.sink)?);
        let (blob, _) = api::blob(SEED, usize::try_from(self.size)?);
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        // What a server prints first: the benchmark waits for it.
        println!("http://nowhere");
        while let Some(line) = lines.next_line().await? {
            let count = line.trim().parse()?;
            let left = Arc::new(AtomicUsize::new(count));
            let mut tasks = JoinSet::new();
            for index in 0..self.streams {
                if self.packed {
                    let from = Reader::new(sources[index % CONNECTIONS].clone()).max_decoding_message_size(4 << 20);
                    let to = Receiver::new(sinks[index % CONNECTIONS].clone());
                    let share = count / self.streams + usize::from(index < count % self.streams);
                    tasks.spawn(ferry_packed(from, to, blob, share, self.size, self.sha256));
                    continue;
                }
                let from = Reader::new(sources[index % CONNECTIONS].clone()).max_decoding_message_size(4 << 20);
                let to = Receiver::new(sinks[index % CONNECTIONS].clone());
                let (left, size, sha256) = (left.clone(), self.size, self.sha256);
                tasks.spawn(async move {
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                        ferry(from.clone(), to.clone(), blob, size, sha256).await?;
                    }
                    anyhow::Ok(())
                });
            }
            while let Some(done) = tasks.join_next().await {
                done??;
            }
            println!("done");
        }
        Ok(())
    }
}

fn one_less(left: usize) -> Option<usize> {
    left.checked_sub(1)
}

/// Moves one blob.
async fn ferry(mut from: Reader, mut to: Receiver, blob: BlobRef, size: u64, sha256: bool) -> Result<()> {
    let request = pb::FetchBlobRequest { r#ref: blob.to_string(), ..Default::default() };
    let stream = from.fetch_blob(request).await?.into_inner();
    let hasher = sha256.then(|| Hasher::new(DigestFunction::Sha256));
    let messages = futures::stream::unfold(Passing { stream, hasher, blob }, Passing::next);
    let answer = to.receive_blob(messages).await?.into_inner();
    ensure!(answer.size_bytes == Some(size), "{:?} bytes of {size} arrived", answer.size_bytes);
    Ok(())
}

/// Moves so many blobs on one pair of streams, packed. The streams' own flow control paces them.
async fn ferry_packed(
    mut from: Reader,
    mut to: Receiver,
    blob: BlobRef,
    count: usize,
    size: u64,
    sha256: bool,
) -> Result<()> {
    let name = blob.to_string();
    let packs = (0..count).step_by(PACK).map(move |at| pb::FetchBlobsRequest {
        blobs: vec![pb::WantedBlob { r#ref: name.clone(), ..Default::default() }; PACK.min(count - at)],
    });
    let found = from.fetch_blobs(tokio_stream::iter(packs)).await?.into_inner();
    let messages = found.map_while(move |message| {
        let blobs = message.ok()?.blobs.into_iter().map(|found| match found.result {
            Some(pb::fetched_blob::Result::Data(data)) if !sha256 || DigestFunction::Sha256.ref_of(&data) == blob => {
                Some(pb::PackedBlob { r#ref: found.r#ref, data, ..Default::default() })
            }
            _ => None,
        });
        Some(pb::ReceiveBlobsRequest { blobs: blobs.collect::<Option<_>>()?, source_store: String::new() })
    });
    let mut answers = to.receive_blobs(messages).await?.into_inner();
    let mut done = 0;
    while let Some(answer) = answers.message().await? {
        for result in answer.results {
            ensure!(result.size_bytes == Some(size), "{:?} bytes of {size} arrived", result.size_bytes);
            done += 1;
        }
    }
    ensure!(done == count, "{done} of {count} blobs arrived");
    Ok(())
}

/// A blob on its way through the pipe.
struct Passing {
    stream: Streaming<pb::FetchBlobResponse>,
    hasher: Option<Hasher>,
    blob: BlobRef,
}

impl Passing {
    /// The next message. A stream that breaks ends early, and one with a wrong digest too long: the sink's count tells.
    async fn next(mut self) -> Option<(pb::ReceiveBlobRequest, Self)> {
        let message = self.stream.message().await.ok().flatten();
        let Some(part) = message.and_then(|message| message.part) else {
            let wrong = self.hasher.take().is_some_and(|hasher| hasher.finish() != self.blob);
            return wrong.then(|| (api::chunk(Bytes::from_static(b"wrong")), self));
        };
        let message = match part {
            pb::fetch_blob_response::Part::Header(header) => {
                api::header(header.r#ref, header.size_bytes.unwrap_or_default(), "")
            }
            pb::fetch_blob_response::Part::Chunk(chunk) => {
                if let Some(hasher) = &mut self.hasher {
                    hasher.update(&chunk);
                }
                api::chunk(chunk)
            }
        };
        Some((message, self))
    }
}

/// The three processes, seen from the benchmark.
pub(crate) struct Relay {
    pipe: Process,
    _source: Process,
    _sink: Process,
}

impl Relay {
    /// Starts them, and moves some blobs, so that connections stand.
    pub(crate) fn start(dir: &Path, size: usize, streams: usize, packed: bool, sha256: bool) -> Result<Self> {
        let program = std::env::current_exe()?;
        let log = dir.join("relay.log");
        let (size_text, streams_text) = (size.to_string(), streams.to_string());
        let source = Process::start(&program, &["source", &size_text], &log)?;
        let sink = Process::start(&program, if sha256 { &["sink", "--sha256"] } else { &["sink"] }, &log)?;
        let (source_url, sink_url) = (source.url(), sink.url());
        let mut args = vec!["pipe", &source_url, &sink_url, &size_text, &streams_text];
        if sha256 {
            args.push("--sha256");
        }
        if packed {
            args.push("--packed");
        }
        let pipe = Process::start(&program, &args, &log)?;
        let mut relay = Self { pipe, _source: source, _sink: sink };
        relay.ferry(streams.max(if size < CHUNK { 2000 } else { 0 }))?;
        Ok(relay)
    }

    /// Moves this many blobs; how long it took.
    pub(crate) fn ferry(&mut self, count: usize) -> Result<Duration> {
        let start = Instant::now();
        let (stdin, stdout) = self.pipe.talk()?;
        writeln!(stdin, "{count}")?;
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let took = start.elapsed();
        if line.trim() == "done" { Ok(took) } else { Err(anyhow!("the relay failed: {}", self.pipe.said())) }
    }

    /// The id of the pipe, which does what the replicator does.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.pipe.pid().context("the pipe")
    }
}
