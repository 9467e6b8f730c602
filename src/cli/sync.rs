//! `blobferry sync`.

use super::json::Encoder;
use super::progress::Board;
use super::status::sync_line;
use super::{Exit, Failure, ReplicatorArg, output, text};
use crate::client::{ClientError, Replicator};
use crate::clock::{Clock as _, Entropy, SystemClock};
use crate::pb::v1;
use clap::Args;
use std::time::Duration;
use tonic::Code;

/// Between two looks at a full sync.
const POLL: Duration = Duration::from_millis(250);
/// How long a replicator may be away while its full sync is watched.
const AWAY: Duration = Duration::from_mins(1);

/// Arguments of `sync`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry sync
  blobferry sync primary_to_backup --watch
  blobferry sync --watch --json | jq .counts

Exit codes: 0 started, or with --watch: completed; 1 failed or cancelled; 2 unknown or ambiguous route; 3 unreachable;
5 completed, but some blobs were parked or discarded.")]
pub(super) struct SyncArgs {
    /// The route; may be left out where there is only one.
    route: Option<String>,
    /// Wait for its end, and show how far it is.
    #[arg(long)]
    watch: bool,
    /// Print the full sync as JSON, as grpcurl does; with --watch, at its end.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

pub(super) async fn sync(args: SyncArgs) -> Result<Exit, Failure> {
    let mut replicator = Replicator::at(&args.replicator.address()?)?;
    let request_id = Entropy::from_os().id(SystemClock::new().now());
    let (mut sync, already_running) = replicator.trigger_full_sync(args.route.unwrap_or_default(), request_id).await?;
    let board = if args.json { Board::quiet() } else { Board::new() };
    if args.watch {
        let how = if already_running { "was running already" } else { "started" };
        board.say(&format!("full sync {} of {} {how}", sync.id, sync.route));
        sync = watch(&mut replicator, sync.id, &board).await?;
    }
    if args.json {
        output::line(&format!("{:#}", Encoder::new()?.encode("FullSync", &sync)?))?;
    } else {
        output::line(&sync_line(&sync, None))?;
    }
    Ok(if args.watch { exit_of(sync.state()) } else { Exit::Ok })
}

/// Follows a full sync to its end. A replicator that does not answer is asked again for a minute.
pub(crate) async fn watch(replicator: &mut Replicator, id: String, board: &Board) -> Result<v1::FullSync, ClientError> {
    let mut line = board.line("full sync");
    let mut away = Duration::ZERO;
    loop {
        match replicator.full_sync(id.clone()).await {
            Ok(sync) => {
                away = Duration::ZERO;
                if sync.state() != v1::FullSyncState::Running {
                    return Ok(sync);
                }
                let counts = sync.counts.unwrap_or_default();
                line.update(counts.source_blobs(), None, || note(&counts));
            }
            Err(error) if error.code() == Code::Unavailable && away < AWAY => {
                away += POLL;
                line.update(0, None, || error.to_string());
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(POLL).await;
    }
}

fn note(counts: &v1::FullSyncCounts) -> String {
    let found = counts.missing().saturating_add(counts.differing());
    format!("compared, {} to copy, {} confirmed", text::count(found), text::count(counts.confirmed()))
}

fn exit_of(state: v1::FullSyncState) -> Exit {
    match state {
        v1::FullSyncState::Completed => Exit::Ok,
        v1::FullSyncState::CompletedWithFailures => Exit::WithFailures,
        _ => Exit::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::exit_of;
    use crate::cli::Exit;
    use crate::pb::v1::FullSyncState;

    #[test]
    fn the_exit_code_tells_how_it_ended() {
        assert_eq!(exit_of(FullSyncState::Completed), Exit::Ok);
        assert_eq!(exit_of(FullSyncState::CompletedWithFailures), Exit::WithFailures);
        assert_eq!(exit_of(FullSyncState::Failed), Exit::Failed);
        assert_eq!(exit_of(FullSyncState::Cancelled), Exit::Failed);
    }
}
