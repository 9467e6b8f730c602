//! `make field`: how fast it copies beside what users report of their stores (load that is shed, a rate of errors, hopeless
//! entries at the head, an unreadable shard, connections that are aged), each beside an undisturbed run of the same round.
//!
//! The stores are this process, so that one of them can have habits; the replicator is the real program. The rate is that
//! between 10% and 90% of the good blobs.

#[allow(dead_code, reason = "each benchmark uses a part of it")]
#[path = "../support/mod.rs"]
mod support;

use anyhow::{Context as _, Result, ensure};
use blobferry::blob::BlobRef;
use blobferry::internal::app::StoreApp;
use blobferry::internal::clock::Entropy;
use blobferry::internal::grpc::ServeSettings;
use blobferry::internal::store::MemoryStore;
use blobferry::internal::store::{FaultyStore, Trouble};
use blobferry::internal::store::{Put, Store};
use blobferry::internal::store_server::{StoreServer, StoreServerSettings};
use blobferry::v1 as pb;
use clap::Parser;
use futures::{StreamExt as _, stream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::api::{self, Replication};
use support::report::spread;
use support::{process, run};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;
use tonic::service::Routes;
use tonic::transport::Server;

/// Bytes that a store may hold.
const CAPACITY: u64 = 8 << 30;
/// The longest that one run may take.
const PATIENCE: Duration = Duration::from_secs(1_800);

/// Measures what the habits of stores cost.
#[derive(Parser)]
struct Args {
    /// Good blobs of each run.
    #[arg(long, default_value_t = 20_000)]
    blobs: u64,
    /// Bytes of a blob. From 64 KiB on they travel alone, below in packs.
    #[arg(long, default_value_t = 70_000)]
    size: usize,
    /// Alternating rounds.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Only the sections whose name contains this, and what they are compared with.
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Announces so many blobs that the source has lost, then a hundred good ones, and nothing else.
    #[arg(long, value_name = "N")]
    evicted: Option<u64>,
    /// Where queues lie while it runs. Default: cargo's folder for such, beside the build.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Set by `cargo bench`; without it nothing is done.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is wrong with the stores.
#[derive(Clone)]
enum Habit {
    None,
    /// The destination takes so many blobs at a time.
    Admits(u64),
    /// This part of what the destination is sent fails with UNAVAILABLE.
    Fails(f64),
    /// So many blobs that the destination never takes are announced first.
    BadFirst(u64, Trouble),
    /// The source cannot read each fourth blob.
    Shard,
    /// Both stores close their connections after so long.
    Aged(Duration),
}

struct Section {
    name: &'static str,
    habit: Habit,
    workers: usize,
    /// The section that it is compared with.
    beside: usize,
}

fn sections() -> Vec<Section> {
    let section = |name, habit| Section { name, habit, workers: 32, beside: 0 };
    vec![
        section("undisturbed", Habit::None),
        Section { workers: 4, ..section("admits 4, and workers = 4", Habit::Admits(4)) },
        Section { beside: 1, ..section("admits 4", Habit::Admits(4)) },
        section("0.5% UNAVAILABLE", Habit::Fails(0.005)),
        section("2% UNAVAILABLE", Habit::Fails(0.02)),
        section("10% UNAVAILABLE", Habit::Fails(0.1)),
        section("300 refused first", Habit::BadFirst(300, Trouble::Reject)),
        section("6,000 refused first", Habit::BadFirst(6_000, Trouble::Reject)),
        section("6,000 PERMISSION_DENIED first", Habit::BadFirst(6_000, Trouble::Code(Code::PermissionDenied))),
        section("6,000 INTERNAL first", Habit::BadFirst(6_000, Trouble::Code(Code::Internal))),
        section("a quarter INTERNAL at the source", Habit::Shard),
        section("connections that live 3 s", Habit::Aged(Duration::from_secs(3))),
    ]
}

fn main() -> ExitCode {
    let args = Args::parse();
    if !args.bench {
        println!("nothing is measured without --bench, which `cargo bench` and `make field` set");
        return ExitCode::SUCCESS;
    }
    run::run("field", run::interruptible(measure(&args)))
}

async fn measure(args: &Args) -> Result<()> {
    let dir = run::folder(&args.dir, "field")?;
    if let Some(evicted) = args.evicted {
        return evict(dir.path(), evicted, args.size).await;
    }
    let sections = sections();
    let is_wanted = |at: usize| sections[at].name.contains(&args.only);
    let is_run = |at: usize| is_wanted(at) || (0..sections.len()).any(|of| is_wanted(of) && sections[of].beside == at);
    let mut rates = vec![Vec::new(); sections.len()];
    for round in 0..args.rounds {
        for (at, section) in sections.iter().enumerate().filter(|(at, _)| is_run(*at)) {
            let name = format!("run-{round}-{at}");
            let rate = one(dir.path(), &name, section, args).await.with_context(|| section.name)?;
            rates[at].push(rate);
        }
    }
    println!(
        "blobs/s, and beside the undisturbed run of its round (admits 4: beside workers = 4): median (least to most)"
    );
    for (at, section) in sections.iter().enumerate().filter(|(at, _)| is_run(*at)) {
        let ratios: Vec<f64> = rates[at].iter().zip(&rates[section.beside]).map(|(rate, floor)| rate / floor).collect();
        println!("{:34} {:24} {}", section.name, spread(&rates[at]), spread(&ratios));
    }
    Ok(())
}

/// A store of this process, served on loopback.
struct Served {
    store: Arc<FaultyStore>,
    url: String,
    _server: JoinSet<()>,
}

impl Served {
    /// Of the production server; one that closes connections after `age`, if that is given.
    async fn start(age: Option<Duration>) -> Result<Self> {
        let store = Arc::new(FaultyStore::new(Arc::new(MemoryStore::new(Entropy::from_os().name(), CAPACITY))));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let mut server = JoinSet::new();
        let of = store.clone();
        server.spawn(async move {
            let served = match age {
                None => StoreApp::of(of, ServeSettings::default()).run(listener, CancellationToken::new()).await,
                Some(age) => aged(of, listener, age).await,
            };
            if let Err(error) = served {
                eprintln!("a store ended: {error:#}");
            }
        });
        Ok(Self { store, url, _server: server })
    }
}

/// Serves a store as the production server does, but for the age of connections.
async fn aged(store: Arc<FaultyStore>, listener: TcpListener, age: Duration) -> Result<()> {
    let routes = StoreServer::new(store, StoreServerSettings::default()).add_to(Routes::default());
    let mut server = Server::builder()
        .tcp_nodelay(true)
        .max_connection_age(age)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
        .max_frame_size(256 << 10);
    Ok(server.add_routes(routes).serve_with_incoming(TcpListenerStream::new(listener)).await?)
}

/// Writes these to a store, and gives their refs.
async fn fill(store: &FaultyStore, numbers: std::ops::Range<u64>, size: usize) -> Result<Vec<BlobRef>> {
    let mut refs = Vec::new();
    for number in numbers {
        let (blob, bytes) = api::blob(number, size);
        let put = Put { blob, size: Some(size as u64), replace: false };
        store.receive(put, stream::iter([Ok(bytes)]).boxed()).await?;
        refs.push(blob);
    }
    Ok(refs)
}

async fn announce(operator: &mut Replication, refs: &[BlobRef], size: usize) -> Result<()> {
    for part in refs.chunks(api::MAX_ITEMS) {
        let items = part.iter().map(|blob| api::item(blob.to_string(), Some(size as u64))).collect();
        ensure!(api::enqueue(operator, items).await?, "not all were accepted");
    }
    Ok(())
}

fn confirmed(route: &pb::RouteStatus) -> u64 {
    route.since_start.as_ref().and_then(|counts| counts.confirmed_blobs).unwrap_or(0)
}

/// Confirmed blobs a second, between 10% and 90% of the good ones.
async fn one(dir: &Path, name: &str, section: &Section, args: &Args) -> Result<f64> {
    let (blobs, size) = (args.blobs, args.size);
    let age = if let Habit::Aged(age) = section.habit { Some(age) } else { None };
    let (source, destination) = (Served::start(age).await?, Served::start(age).await?);
    let mut refs = Vec::new();
    let mut good = blobs;
    if let Habit::BadFirst(bad, trouble) = &section.habit {
        refs = fill(&source.store, blobs..blobs + bad, size).await?;
        refs.iter().for_each(|blob| destination.store.set_for(*blob, Some(trouble.clone())));
    }
    refs.extend(fill(&source.store, 0..blobs, size).await?);
    match section.habit {
        Habit::Admits(blobs) => destination.store.set_admits(Some(blobs)),
        Habit::Fails(part) => destination.store.set_fails(part),
        Habit::Shard => {
            let bad: Vec<&BlobRef> = refs.iter().step_by(4).collect();
            good -= bad.len() as u64;
            bad.into_iter().for_each(|blob| source.store.set_for(*blob, Some(Trouble::Code(Code::Internal))));
        }
        Habit::None | Habit::BadFirst(..) | Habit::Aged(_) => {}
    }
    let replicator = process::replicator(dir, name, &source.url, &destination.url, section.workers, "")?;
    let mut operator = Replication::new(api::channel(&replicator.url())?);
    announce(&mut operator, &refs, size).await?;
    let (began, mut first) = (Instant::now(), None);
    loop {
        let now = confirmed(&api::route(&mut operator).await?);
        if first.is_none() && now >= good / 10 {
            first = Some((Instant::now(), now));
        }
        if now >= good * 9 / 10
            && let Some((since, from)) = first
        {
            return Ok((now - from) as f64 / since.elapsed().as_secs_f64());
        }
        ensure!(began.elapsed() < PATIENCE, "{now} of {good} were confirmed");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Announces blobs that the source has lost, and a hundred good ones behind them.
async fn evict(dir: &Path, evicted: u64, size: usize) -> Result<()> {
    let (source, destination) = (Served::start(None).await?, Served::start(None).await?);
    let lost: Vec<BlobRef> = (1_000..1_000 + evicted).map(|number| api::blob(number, size).0).collect();
    let good = fill(&source.store, 0..100, size).await?;
    let more = "[retry]\non_missing = \"discard\"\nmissing_patience = \"10s\"\n";
    let replicator = process::replicator(dir, "evicted", &source.url, &destination.url, 32, more)?;
    let mut operator = Replication::new(api::channel(&replicator.url())?);
    announce(&mut operator, &lost, size).await?;
    let (began, before) = (Instant::now(), source.store.fetches());
    announce(&mut operator, &good, size).await?;
    let mut arrived = false;
    loop {
        let status = api::route(&mut operator).await?;
        if !arrived && confirmed(&status) >= 100 {
            arrived = true;
            let attempts = source.store.fetches() - before;
            println!("the good ones arrived after {:.1?} and {attempts} attempts", began.elapsed());
        }
        let queued = api::queued(&status);
        if arrived && queued.moving + queued.parked == 0 {
            let discarded = status.all_time.as_ref().and_then(|counts| counts.discarded_blobs).unwrap_or(0);
            println!("{discarded} of {evicted} are discarded after {:.1?}", began.elapsed());
            ensure!(discarded == evicted, "{status:?}");
            return Ok(());
        }
        ensure!(began.elapsed() < PATIENCE, "{queued:?} are left");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}
