//! `blobferry demo`: two disk stores and a replicator in one process, fed with real files, and the proof that every one
//! arrived.
//!
//! The servers are the ones of production (`servers`), and all that the demo does goes over TCP and gRPC as a stranger's
//! program would:
//!
//! 1. write the files to the source store and announce each blob; meanwhile the replicator copies; wait for its backlog
//! 2. write some more to the source store behind the replicator's back, and have a full sync find them
//! 3. read every blob back from the destination store and compare digests

mod files;
mod lag;
mod report;
mod servers;
mod stage;

use crate::cli::progress::ProgressBoard;
use crate::cli::{CommandError, Exit, collector, logging, output};
use crate::config::{LogConfig, LogFormat, LogLevel};
use clap::Args;
use files::{Chosen, DemoFolders};
use http::Uri;
use report::DemoReport;
use servers::{Addresses, Servers};
use stage::DemoStage;
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Arguments of `demo`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry demo                      ferry the sources of crates, from cargo's registry
  blobferry demo ~/photos             ferry your own files; they are only read
  blobferry demo --exit               leave nothing running
  blobferry demo --data /tmp/ferry    keep the stores and the queue there
  blobferry demo --otlp http://127.0.0.1:4317
                                      see the blobs' traces in Jaeger

Needs about twice the files' size on disk, in the system's temporary folder unless --data names \
another.

Exit codes: 0 every blob arrived; 1 one did not, or something failed; \
130 interrupted before the end.")]
pub(crate) struct DemoArgs {
    /// Files and folders to ferry. Without any: the sources in cargo's registry folder, up to 40,000 files or 1 GiB.
    #[arg(value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Keep the stores and the queue in this folder; otherwise they are in a temporary one, and removed at the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Stop the servers at the end, instead of leaving them up until Ctrl-C.
    #[arg(long)]
    exit: bool,
    /// Send the servers' traces there: a collector that speaks OTLP over gRPC, such as Jaeger.
    #[arg(long, value_name = "URL", value_parser = collector)]
    otlp: Option<Uri>,
}

/// Runs the demo. Whichever way it ends, the servers are stopped and the temporary folder is removed.
pub(crate) async fn run(args: DemoArgs, stop: CancellationToken) -> Result<Exit, CommandError> {
    // The show is on stdout; the servers' log would talk into it, but for what goes wrong.
    let _log = logging(&LogConfig { level: LogLevel::Error, format: LogFormat::Human })?;
    let board = ProgressBoard::new();
    let chosen = files::choose(args.paths).await?;
    let place = DemoFolders::new(args.data)?;
    place.check_space(chosen.bytes)?;
    let is_traced = args.otlp.is_some();
    let mut servers = Servers::start(place.path(), args.otlp).await?;
    let tracers = servers.tracers();
    let at = servers.at();
    let outcome = tokio::select! {
        outcome = act(&at, chosen, &board, &place, args.exit) => outcome,
        failure = servers.failed() => Err(failure),
        () = stop.cancelled() => Err(CommandError::interrupted()),
    };
    let outcome = match outcome {
        Ok(Exit::Ok) if !args.exit => tokio::select! {
            () = stop.cancelled() => Ok(Exit::Ok),
            failure = servers.failed() => Err(failure),
        },
        outcome => outcome,
    };
    if stop.is_cancelled() {
        // Servers may take a while to end, and a folder to go.
        board.say("stopping…");
    }
    let stopped = servers.stop().await;
    if is_traced {
        board.say(&report::traced(&tracers));
    }
    place.remove().await;
    let exit = outcome?;
    stopped?;
    Ok(exit)
}

/// Everything that the audience sees.
async fn act(
    at: &Addresses,
    chosen: Chosen,
    board: &ProgressBoard,
    place: &DemoFolders,
    exits: bool,
) -> Result<Exit, CommandError> {
    say(&report::opening(at, &chosen, place))?;
    let stage = DemoStage::new(at, board)?;
    let mut report = DemoReport { files: chosen.count(), ..DemoReport::default() };
    let mut blobs = stage.ferry(chosen.files.clone(), &mut report).await?;
    say(&report.ferried())?;
    stage.surprise(&chosen, &mut blobs, &mut report).await?;
    say(&report.synced())?;
    stage.verify(&blobs, &mut report).await?;
    say(&report.verified())?;
    say(&report.closing())?;
    if !report.is_proven() {
        return Ok(Exit::Failed);
    }
    if !exits {
        // As it was called, so that the lines work when pasted.
        let program = std::env::args().next().unwrap_or_else(|| "blobferry".to_owned());
        say(&report::invitation(at, &program, report.sample.as_ref()))?;
    }
    Ok(Exit::Ok)
}

fn say(what: &str) -> Result<(), CommandError> {
    // The show goes on without an audience.
    output::write(what.as_bytes()).or_else(|failure| if failure.exit == Exit::Unread { Ok(()) } else { Err(failure) })
}
