//! `make tracing-bench`: what traces and scraped metrics cost, in CPU-seconds of the replicator and of both stores for 1,000
//! blobs of 4 KiB.
//!
//! Every blob is announced with a trace context of its own, as traced writers do; in a share of them the sampled flag is set.
//! Per round, one run each with neither collector nor HTTP port, with a collector and 1% of the blobs sampled, with one and
//! all of them sampled, and with the replicator's `/metrics` read each second (Prometheus does every 15 s or so), in an order that turns from round to round. What counts is the median of the rounds' ratios to the run without. The
//! collector is in this process, so that its own work is not counted. Every run has fresh stores in memory and a fresh queue;
//! what is measured begins with the first announcement and ends when the last blob is confirmed and the spans are sent.

#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Context as _, Result, ensure};
use blobferry::v1 as pb;
use clap::Parser;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::api::{self, Receiver, Replication};
use support::machine;
use support::process::{self, Process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

/// The size of a blob.
const SIZE: usize = 4 << 10;
/// Blobs in one call.
const CALL: usize = 250;

/// Measures what traces cost.
#[derive(Parser)]
struct Args {
    /// Rounds, each with one run of each kind.
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Blobs in a run.
    #[arg(long, default_value_t = 60_000)]
    blobs: usize,
    /// Where queues lie while it runs.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Set by `cargo bench`; without it nothing is measured.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Off,
    One,
    All,
    Scraped,
}

impl Kind {
    const EACH: [Self; 4] = [Self::Off, Self::One, Self::All, Self::Scraped];

    const fn is_traced(self) -> bool {
        matches!(self, Self::One | Self::All)
    }

    fn is_sampled(self, blob: usize) -> bool {
        // Where there is no collector the callers are the same as at 1%.
        self == Self::All || blob.is_multiple_of(100)
    }
}

#[derive(Clone, Default)]
struct Sink(Arc<AtomicU64>);

#[tonic::async_trait]
impl TraceService for Sink {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let spans = request.into_inner().resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
        let count: usize = spans.map(|scope| scope.spans.len()).sum();
        self.0.fetch_add(count as u64, Ordering::Relaxed);
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

/// CPU-seconds of one run, for 1,000 blobs.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    replicator: f64,
    stores: f64,
    spans: u64,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.bench {
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("the runtime cannot be started: {error}");
            return ExitCode::FAILURE;
        }
    };
    match runtime.block_on(measure(&args)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn measure(args: &Args) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let otlp = format!("http://{}", listener.local_addr()?);
    let sink = Sink::default();
    let service = TraceServiceServer::new(sink.clone()).max_decoding_message_size(64 << 20);
    let mut tasks = JoinSet::new();
    tasks.spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(TcpIncoming::from(listener)),
    );

    let blobs: Vec<_> = (0..args.blobs).map(|seed| api::blob(seed as u64, SIZE)).collect();
    let mut rounds = Vec::new();
    for round in 0..args.rounds as usize {
        let mut costs = [Cost::default(); Kind::EACH.len()];
        for turn in 0..Kind::EACH.len() {
            let kind = Kind::EACH[(round + turn) % Kind::EACH.len()];
            let dir = tempfile::Builder::new().prefix("tracing-bench-").tempdir_in(&args.dir)?;
            let before = sink.0.load(Ordering::Relaxed);
            let mut cost = run(dir.path(), kind, &otlp, &blobs).await.with_context(|| format!("{kind:?}"))?;
            cost.spans = sink.0.load(Ordering::Relaxed) - before;
            costs[kind as usize] = cost;
        }
        let line = costs.map(|cost| format!("{:.3} + {:.3} s, {} spans", cost.replicator, cost.stores, cost.spans));
        let [off, one, all, scraped] = line;
        println!("round {:2}: off {off}; 1% {one}; 100% {all}; scraped {scraped}", round + 1);
        rounds.push(costs);
    }
    println!("\nCPU-seconds for 1,000 blobs of 4 KiB, the median of {} rounds:", args.rounds);
    for (name, of) in [
        ("replicator", (|cost: &Cost| cost.replicator) as fn(&Cost) -> f64),
        ("stores", |cost| cost.stores),
        ("all", |cost| cost.replicator + cost.stores),
    ] {
        let figure = |kind: Kind| median(rounds.iter().map(|costs| of(&costs[kind as usize])).collect());
        let ratio = |kind: Kind| {
            median(rounds.iter().map(|costs| of(&costs[kind as usize]) / of(&costs[Kind::Off as usize])).collect())
        };
        println!(
            "  {name:10}  off {:.3}   1% {:.3} (ratio {:.3})   100% {:.3} (ratio {:.3})   scraped {:.3} (ratio {:.3})",
            figure(Kind::Off),
            figure(Kind::One),
            ratio(Kind::One),
            figure(Kind::All),
            ratio(Kind::All),
            figure(Kind::Scraped),
            ratio(Kind::Scraped),
        );
    }
    Ok(())
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    let middle = of.len() / 2;
    if of.len() % 2 == 1 { of[middle] } else { f64::midpoint(of[middle - 1], of[middle]) }
}

async fn run(dir: &Path, kind: Kind, otlp: &str, blobs: &[(blobferry::blob::BlobRef, bytes::Bytes)]) -> Result<Cost> {
    let variables = || -> Vec<(String, String)> {
        let own = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        // Nothing is dropped: what is sent is to be paid for.
        let queue = ("OTEL_BSP_MAX_QUEUE_SIZE", "1000000");
        let traced = [("OTEL_EXPORTER_OTLP_ENDPOINT", otlp), queue, ("OTEL_BSP_SCHEDULE_DELAY", "1000")];
        // Without the HTTP port nothing is counted.
        let unmeasured = (kind != Kind::Scraped).then_some(("BLOBFERRY__SERVER__HTTP_LISTEN", ""));
        let traced = traced.into_iter().filter(|_| kind.is_traced());
        traced.chain(unmeasured).map(own).collect()
    };
    let source = process::store_with(dir, "source", "memory://", variables())?;
    let destination = process::store_with(dir, "destination", "memory://", variables())?;
    let urls = [source.url(), destination.url()];
    let urls = [urls[0].as_str(), urls[1].as_str()];
    let replicator = process::replicator_with(dir, "replicator", &dir.join("queue"), urls, 32, "", variables())?;

    fill(&source, blobs).await?;
    let mut operator = Replication::new(api::channel(&replicator.url())?);
    let cpu = |server: &Process| Ok::<_, anyhow::Error>(machine::usage(server.pid()?)?.cpu_seconds);
    let stores = |source: &Process, destination: &Process| Ok::<_, anyhow::Error>(cpu(source)? + cpu(destination)?);
    let mut scraping = JoinSet::new();
    if kind == Kind::Scraped {
        scraping.spawn(scrape(replicator.http.clone().context("it has no HTTP port")?));
    }
    let (before, before_stores) = (cpu(&replicator)?, stores(&source, &destination)?);
    for (call, part) in blobs.chunks(CALL).enumerate() {
        let items = part.iter().enumerate().map(|(at, (blob, bytes))| {
            let at = call * CALL + at;
            pb::EnqueueItem {
                traceparent: format!("00-{:032x}-{:016x}-{:02x}", at + 1, at + 1, u8::from(kind.is_sampled(at))),
                ..api::item(blob.to_string(), Some(bytes.len() as u64))
            }
        });
        let items = items.collect();
        // The call itself belongs to no trace.
        let mut request =
            Request::new(pb::EnqueueBlobsRequest { source_store: "a".to_owned(), items, issue_wait_token: false });
        request
            .metadata_mut()
            .insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse()?);
        let answer = operator.enqueue_blobs(request).await?.into_inner();
        ensure!(answer.results.iter().all(|result| result.error.is_none()), "a blob was refused");
    }
    while api::queued(&api::route(&mut operator).await?).moving > 0 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // The last spans leave within the batch processor's delay.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    // It ends only with an error.
    if let Some(ended) = scraping.try_join_next() {
        ended??;
    }
    let thousands = blobs.len() as f64 / 1000.0;
    Ok(Cost {
        replicator: (cpu(&replicator)? - before) / thousands,
        stores: (stores(&source, &destination)? - before_stores) / thousands,
        spans: 0,
    })
}

/// Reads the metrics each second.
async fn scrape(address: String) -> Result<()> {
    loop {
        let mut stream = TcpStream::connect(&address).await?;
        let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut page = String::new();
        stream.read_to_string(&mut page).await?;
        ensure!(page.starts_with("HTTP/1.1 200"), "no metrics: {page}");
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Writes all blobs to a store, in calls that belong to no recorded trace.
async fn fill(store: &Process, blobs: &[(blobferry::blob::BlobRef, bytes::Bytes)]) -> Result<()> {
    let mut client = Receiver::new(api::channel(&store.url())?);
    let packs: Vec<_> = blobs
        .chunks(200)
        .map(|part| {
            let blobs = part.iter().map(|(blob, bytes)| pb::PackedBlob {
                r#ref: blob.to_string(),
                data: bytes.clone(),
                ..Default::default()
            });
            pb::ReceiveBlobsRequest { blobs: blobs.collect(), source_store: String::new() }
        })
        .collect();
    let mut request = Request::new(tokio_stream::iter(packs));
    request.metadata_mut().insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse()?);
    let mut answers = client.receive_blobs(request).await?.into_inner();
    let mut stored = 0;
    while let Some(answer) = answers.message().await? {
        ensure!(answer.results.iter().all(|result| result.error.is_none()), "a blob was refused");
        stored += answer.results.len();
    }
    ensure!(stored == blobs.len(), "{stored} blobs were stored");
    Ok(())
}
