//! The commands that run a server, and `blobferry conformance`.

use super::config::{ConfigArg, check_routes, misspelt};
use super::progress::to_stderr;
use super::{CommandError, Exit, StoreArg, no_store, output};
use crate::app::store::{DataUrl, StoreApp};
use crate::app::{App, Parts, QueueEnded};
use crate::clock::{Entropy, SystemClock};
use crate::config::{Config, LogConfig, Share, TracingConfig};
use crate::descriptors;
use crate::grpc::{Calls, ServeSettings};
use crate::queue::damage::QueueTrouble;
use crate::store::conformance::{self, RuleOutcome};
use crate::store::{PeerKind, Store as _};
use crate::telemetry::{self, LogGuard, Traces};
use clap::Args;
use http::Uri;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Arguments of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry serve --config blobferry.toml
  blobferry serve --config blobferry.toml --set server.listen=0.0.0.0:7070
  BLOBFERRY__STORES__BACKUP__ENDPOINT=http://backup:7080 \\
    blobferry serve --config blobferry.toml

Ctrl-C or SIGTERM: takes nothing more, lets copies in flight finish (server.drain_timeout), \
keeps the rest queued.

Exit codes: 0 stopped when told to; 1 failed; 2 the configuration makes no sense; \
6 the queue failed, and is mended when it is started again.")]
pub(super) struct ServeArgs {
    #[command(flatten)]
    config: ConfigArg,
}

/// Arguments of `store`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry store --data disk:///srv/blobs
  blobferry store --listen 0.0.0.0:7080 --data disk:///srv/blobs
  blobferry store --listen 127.0.0.1:7081 --data memory://   forgets all when it stops
  blobferry store --data disk:///srv/blobs --otlp http://127.0.0.1:4317

Exit codes: 0 stopped when told to; 1 failed; 2 usage.")]
pub(super) struct StoreArgs {
    /// Where gRPC listens; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:7080")]
    listen: SocketAddr,
    /// Where the HTTP port listens, with /metrics, /livez and /readyz; port 0 picks a free one. Without it there is none.
    #[arg(long, value_name = "ADDR")]
    http_listen: Option<SocketAddr>,
    /// Where the blobs are: disk:///PATH or memory://
    #[arg(long, value_name = "URL", required = true)]
    data: String,
    /// Send traces there: a collector that speaks OTLP over gRPC, such as http://127.0.0.1:4317. Without it,
    /// OTEL_EXPORTER_OTLP_ENDPOINT says where; without both, none are made.
    #[arg(long, value_name = "URL", value_parser = collector)]
    otlp: Option<Uri>,
    /// How many of the traces that begin here are recorded, 0 to 1; whoever calls within a trace decides for that.
    #[arg(long, value_name = "RATIO", value_parser = sample_ratio)]
    sample_ratio: Option<Share>,
}

/// The address of a collector.
pub(crate) fn collector(text: &str) -> Result<Uri, String> {
    crate::config::endpoint_of(text)
}

fn sample_ratio(text: &str) -> Result<Share, String> {
    let ratio = text.parse().ok().and_then(Share::new);
    ratio.ok_or_else(|| "give a number from 0 to 1, such as 0.01".to_owned())
}

/// Arguments of `conformance`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry conformance --store http://127.0.0.1:7090

Writes some blobs of random content, and deletes nothing: do not run it against a store whose \
blobs are counted. Rules about abilities that the store does not claim are skipped.

Exit codes: 0 all rules are kept; 1 some are broken, or it is no store; 3 unreachable.")]
pub(super) struct ConformanceArgs {
    #[command(flatten)]
    store: StoreArg,
}

pub(super) async fn serve(args: ServeArgs, stop: CancellationToken) -> Result<Exit, CommandError> {
    let mut config = args.config.load()?;
    check_routes(&config, &args.config)?;
    let _log = logging(&config.log)?;
    misspelt().iter().for_each(|warning| tracing::warn!("{warning}"));
    config.server.max_connections = descriptors::raise(config.server.max_connections, config.stores.len());
    let traces = trace(&config.tracing, "blobferry")?;
    let ended = replicate(&config, &traces, stop).await;
    traces.flush().await;
    ended
}

async fn replicate(config: &Config, traces: &Traces, stop: CancellationToken) -> Result<Exit, CommandError> {
    let app = build(config, traces).await.map_err(failed)?;
    let (listener, address) = bind(config.server.listen, "set server.listen").await?;
    let mut said = format!("replicator at http://{address}");
    let app = match config.server.http_listen {
        None => app,
        Some(http) => {
            let (listener, address) = bind(http, "set server.http_listen, or turn it off with \"\"").await?;
            said.push_str(&format!(" with metrics at http://{address}"));
            app.with_http(listener)
        }
    };
    tell(&said);
    app.run(listener, stop).await.map_err(failed)?;
    Ok(Exit::Ok)
}

/// Traces, as configured here and in the environment. What this begins is to be flushed.
pub(crate) fn trace(config: &TracingConfig, service: &str) -> Result<Traces, CommandError> {
    let hint = "check tracing.otlp_endpoint, and the files that OTEL_EXPORTER_OTLP_* name";
    let clock = Arc::new(SystemClock::new());
    let started = Traces::start(config, service, clock, &Entropy::from_os());
    started.map_err(|error| CommandError::new(Exit::Usage, error.to_string()).hint(hint))
}

/// Builds the replicator. Damage that is met on the way has the queue opened once more, which reads and mends all of it.
async fn build(config: &Config, traces: &Traces) -> anyhow::Result<App> {
    let real = async || anyhow::Ok(Parts { tracer: traces.tracer(), ..Parts::real(config).await? });
    let parts = real().await?;
    let queue = parts.queue.clone();
    match App::build(config, parts).await {
        Err(error) if matches!(queue.trouble(), Some(QueueTrouble::Damaged(_))) => {
            tracing::error!(error = %format!("{error:#}"), "the queue is damaged; it is opened once more, to be mended");
            drop(queue);
            App::build(config, real().await?).await
        }
        built => built,
    }
}

pub(super) async fn store(args: StoreArgs, stop: CancellationToken) -> Result<Exit, CommandError> {
    if let Err(error) = args.data.parse::<DataUrl>() {
        return Err(CommandError::new(Exit::Usage, format!("{error:#}")));
    }
    let _log = logging(&LogConfig::default())?;
    let tracing = TracingConfig { otlp_endpoint: args.otlp, sample_ratio: args.sample_ratio, ..Default::default() };
    let traces = trace(&tracing, "blobferry-store")?;
    let calls = Calls { tracer: traces.tracer(), observer: None };
    let served = async {
        let mut settings = ServeSettings { calls, ..ServeSettings::default() };
        settings.max_connections = descriptors::raise(settings.max_connections, 1);
        let store = StoreApp::build(&args.data, settings).await.map_err(failed)?;
        let (listener, address) = bind(args.listen, "give another address with --listen").await?;
        let mut said = format!("store at http://{address}");
        let store = match args.http_listen {
            None => store,
            Some(http) => {
                let (listener, address) = bind(http, "give another address with --http-listen").await?;
                said.push_str(&format!(" with metrics at http://{address}"));
                store.with_http(listener)
            }
        };
        tell(&said);
        store.run(listener, stop).await.map_err(failed)?;
        Ok(Exit::Ok)
    };
    let served = served.await;
    traces.flush().await;
    served
}

/// Logs to stderr, as configured. Only the commands that run a server log.
pub(crate) fn logging(config: &LogConfig) -> Result<LogGuard, CommandError> {
    let clock = Arc::new(SystemClock::new());
    telemetry::install(config, clock).map_err(|error| CommandError::new(Exit::Failed, error.to_string()))
}

/// Says where a server listens, in the first line on stdout. That is not what a server is for: where stdout does not take it,
/// the server serves all the same, and the log says where.
fn tell(said: &str) {
    if let Err(error) = output::line(said) {
        tracing::warn!(%error, said, "stdout was not told where this listens");
    }
}

/// Listens, and tells where. The first line on stdout then says it, for people and scripts that asked for port 0.
/// Listens. At `[::]` IPv4 is served too, and alone where the machine has no IPv6.
async fn bind(address: SocketAddr, todo: &str) -> Result<(TcpListener, SocketAddr), CommandError> {
    let failed = |error| CommandError::new(Exit::Failed, format!("cannot listen on {address}: {error}")).hint(todo);
    let listener = match TcpListener::bind(address).await {
        Err(error) if address.ip() == Ipv6Addr::UNSPECIFIED && has_no_ipv6(&error) => {
            tracing::warn!(%error, "this machine has no IPv6: listening at 0.0.0.0 in place of [::]");
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    let listener = listener.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn has_no_ipv6(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    let errno = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(errno, Some(Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL))
}

fn failed(error: anyhow::Error) -> CommandError {
    let exit = if error.is::<QueueEnded>() { Exit::Restart } else { Exit::Failed };
    CommandError::new(exit, format!("{error:#}"))
}

pub(super) async fn conform(args: ConformanceArgs) -> Result<Exit, CommandError> {
    let address = args.store.address()?;
    let store = address.store()?;
    // A store that is not there breaks no rule.
    let info = store.info().await.map_err(|error| CommandError::of_store(address.url(), error))?;
    if info.kind == PeerKind::Replicator {
        // The other rules are not about what it is: nothing true could be said of them.
        let CommandError { what, .. } = no_store(&address, &info);
        output::line(&format!("FAILED   info: {what}; name a store's address with --store"))?;
        return Ok(Exit::Failed);
    }
    let mut written = Ok(());
    let results = conformance::run(&store, &Entropy::from_os(), |result| {
        if written.is_ok() {
            written = output::line(&result.to_string());
        }
    })
    .await;
    written?;
    let count =
        |wanted: fn(&RuleOutcome) -> bool| results.iter().filter(|result| wanted(&result.outcome)).count() as u64;
    let failed = count(|outcome| matches!(outcome, RuleOutcome::Failed(_)));
    let skipped = count(|outcome| matches!(outcome, RuleOutcome::Skipped(_)));
    let passed = count(|outcome| matches!(outcome, RuleOutcome::Passed));
    to_stderr(&format!("{}: {passed} passed, {failed} failed, {skipped} skipped", address.url()));
    Ok(if failed == 0 { Exit::Ok } else { Exit::Failed })
}
