//! The floor of the wire: three processes that do nothing but move the same messages.
//!
//! A source streams one blob again and again by `FetchBlob`, a pipe passes each chunk on by `ReceiveBlob`, a sink counts the
//! bytes; small ones travel in packs of the same size as blobferry's, by `FetchBlobs` and `ReceiveBlobs`. No queue, no
//! store, no breaker; with `--sha256`, pipe and sink hash what passes and compare it with the ref, as every honest copier
//! must. Windows and frames are blobferry's own. Each process ends when its standard input does, so none outlives the one
//! that started it.

mod pipe;
mod sink;
mod source;

use crate::support::api::{self, CHUNK};
use crate::support::process::Process;
use anyhow::{Context as _, Result, anyhow};
use blobferry::internal::store::{PACK_BYTES, PACK_ITEMS};
use futures::Stream;
use std::io::{BufRead as _, Write as _};
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tonic::Status;
use tonic::transport::server::{Router, Server, TcpIncoming};

/// The seed of the one blob.
const SEED: u64 = 64;
/// Blobs that go first, so that connections stand and their windows are known.
const WARM_UP: usize = 2000;

/// The parts of the relay. Started by the benchmark itself.
#[derive(clap::Subcommand)]
#[command(hide = true)]
pub(crate) enum Role {
    /// Serves one blob.
    #[command(hide = true)]
    Source { size: usize },
    /// Moves blobs from a source to a sink.
    #[command(hide = true)]
    Pipe(pipe::Pipe),
    /// Takes blobs and forgets them.
    #[command(hide = true)]
    Sink {
        #[arg(long)]
        sha256: bool,
    },
}

pub(crate) async fn run(role: Role) -> Result<()> {
    match role {
        Role::Source { size } => source::run(size).await,
        Role::Sink { sha256 } => sink::run(sha256).await,
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

type Out<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Blobs of this size in a message of the packed relay: as many as blobferry puts into one.
pub(crate) fn pack(size: usize) -> usize {
    (PACK_BYTES / size.max(1)).clamp(1, PACK_ITEMS)
}

/// A sink of its own, for streams from elsewhere.
pub(crate) fn sink(dir: &Path, sha256: bool) -> Result<Process> {
    let args: &[&str] = if sha256 { &["sink", "--sha256"] } else { &["sink"] };
    Process::start(&std::env::current_exe()?, args, &dir.join("relay.log"))
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
        let sink = sink(dir, sha256)?;
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
        relay.ferry(if size < CHUNK { WARM_UP } else { 1 })?;
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

/// The blob that the relay moves, of this size.
fn the_blob(size: usize) -> (blobferry::blob::BlobRef, bytes::Bytes) {
    api::blob(SEED, size)
}
