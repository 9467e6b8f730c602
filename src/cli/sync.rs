//! `blobferry sync`.

use super::failures::moment;
use super::progress::ProgressBoard;
use super::status::sync_line;
use super::{CommandError, Exit, ReplicatorArg, of_replicator, output};
use crate::client::{ClientError, Replicator};
use crate::clock::{Clock as _, Entropy, SystemClock};
use crate::pb::to_json;
use crate::pb::v1;
use crate::words;
use clap::Args;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

/// Between two looks at a full sync.
const POLL: Duration = Duration::from_millis(250);
/// Between two full syncs, while a store does not answer.
const AGAIN: Duration = Duration::from_secs(5);
/// How long a replicator may be away while its full sync is watched.
const AWAY: Duration = Duration::from_mins(1);
/// After so long without progress it is told why.
const STILL: Duration = Duration::from_secs(3);

/// Arguments of `sync`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry sync
  blobferry sync primary_to_backup --watch
  blobferry sync --watch --patience 30min          a store is still starting
  blobferry sync --watch --json | jq .counts
  blobferry sync --list
  blobferry sync --cancel sync-42

Exit codes: 0 started, listed or cancelled, or with --watch: completed; 1 failed or cancelled; \
2 unknown or ambiguous route; 3 unreachable; 4 there is no such full sync to cancel; \
5 completed, but some blobs were parked or discarded.")]
pub(super) struct SyncArgs {
    /// The route; may be left out where there is only one.
    route: Option<String>,
    /// Wait for its end, and show how far it is.
    #[arg(long)]
    watch: bool,
    /// With --watch: begin it again while a store does not answer, for so long, such as 30min.
    #[arg(long, value_name = "SPAN", requires = "watch", value_parser = humantime::parse_duration)]
    patience: Option<Duration>,
    /// List the full syncs, the newest first, in place of starting one.
    #[arg(long, conflicts_with_all = ["watch", "cancel"])]
    list: bool,
    /// Full syncs to list, at most.
    #[arg(long, value_name = "N", default_value_t = 20, requires = "list", value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// End this full sync, in place of starting one. What it has enqueued stays queued.
    #[arg(long, value_name = "ID", conflicts_with_all = ["watch", "route"])]
    cancel: Option<String>,
    /// Print the full sync as JSON, as grpcurl does; with --watch, at its end.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

pub(super) async fn sync(args: SyncArgs) -> Result<Exit, CommandError> {
    let address = args.replicator.address()?;
    let mut replicator = Replicator::at(&address)?;
    if args.list {
        return list(&mut replicator, args).await;
    }
    if let Some(id) = args.cancel.clone() {
        return cancel(&mut replicator, id, args.json).await;
    }
    let board = if args.json { ProgressBoard::quiet() } else { ProgressBoard::new() };
    let patience = args.patience.unwrap_or_default();
    let start = Instant::now();
    let (sync, begun) = loop {
        let request_id = Entropy::from_os().id(SystemClock::new().now());
        let route = args.route.clone().unwrap_or_default();
        let (mut sync, already_running) = match replicator.trigger_full_sync(route, request_id).await {
            Ok(answer) => answer,
            Err(error) => return Err(of_replicator(&address, error).await),
        };
        let begun = begun(&sync, already_running);
        if args.watch {
            board.say(&begun);
            sync = watch(&mut replicator, sync.id, &board).await?;
        }
        let Some(failure) = sync.failure.as_ref().filter(|failure| is_absence(failure.kind())) else {
            break (sync, begun);
        };
        if start.elapsed() + AGAIN > patience {
            break (sync, begun);
        }
        let why = words::plain(&words::cause(&failure.message), 300);
        board.say(&format!("{} does not answer: {why}; begun again in {}", name(&failure.peer), words::span(AGAIN)));
        tokio::time::sleep(AGAIN).await;
    };
    if args.json {
        output::line(&format!("{:#}", to_json("FullSync", &sync)?))?;
    } else if args.watch {
        output::line(&sync_line(&sync, None))?;
    } else {
        let at = args.replicator.option();
        output::line(&format!("{begun}; follow it with: blobferry sync{at} {} --watch", name(&sync.route)))?;
    }
    Ok(if args.watch { exit_of(sync.state()) } else { Exit::Ok })
}

/// Whether a fault says that a store is not there, or has no time.
fn is_absence(kind: v1::FaultKind) -> bool {
    use v1::FaultKind::{
        ConnectionCut, DestinationOverloaded, DestinationUnavailable, SourceOverloaded, SourceUnavailable,
    };
    let absent = [SourceUnavailable, DestinationUnavailable, SourceOverloaded, DestinationOverloaded, ConnectionCut];
    absent.contains(&kind)
}

async fn list(replicator: &mut Replicator, args: SyncArgs) -> Result<Exit, CommandError> {
    let request = v1::ListFullSyncsRequest {
        route: args.route.unwrap_or_default(),
        page_size: args.limit,
        ..v1::ListFullSyncsRequest::default()
    };
    let answer = replicator.list_full_syncs(request).await?;
    if args.json {
        output::line(&format!("{:#}", to_json("ListFullSyncsResponse", &answer)?))?;
        return Ok(Exit::Ok);
    }
    for sync in &answer.full_syncs {
        output::line(&listed(sync))?;
    }
    if !answer.next_page_token.is_empty() {
        output::line("there are more: --limit N lists them")?;
    }
    Ok(Exit::Ok)
}

async fn cancel(replicator: &mut Replicator, id: String, json: bool) -> Result<Exit, CommandError> {
    let sync = replicator.cancel_full_sync(id).await?;
    if json {
        output::line(&format!("{:#}", to_json("FullSync", &sync)?))?;
    } else {
        output::line(&format!("{} of {}: {}", name(&sync.id), name(&sync.route), words::plain(&sync.summary, 500)))?;
    }
    Ok(match sync.state() {
        v1::FullSyncState::Cancelled | v1::FullSyncState::Running => Exit::Ok,
        // It had ended before.
        _ => Exit::No,
    })
}

/// A full sync of the history, with its times.
fn listed(sync: &v1::FullSync) -> String {
    let from = sync.start_time.as_ref().or(sync.create_time.as_ref()).map(moment).unwrap_or_default();
    let to = sync.end_time.as_ref().map(moment).unwrap_or_default();
    let what = words::plain(&sync.summary, 500);
    format!("{from} .. {to:<20}  {} of {}: {what}", name(&sync.id), name(&sync.route))
}

fn begun(sync: &v1::FullSync, already_running: bool) -> String {
    let how = if already_running { "is already running" } else { "started" };
    format!("full sync {} of {} {how}", name(&sync.id), name(&sync.route))
}

/// A name from the replicator, safe for a terminal.
fn name(text: &str) -> String {
    words::plain(text, 160)
}

/// Follows a full sync to its end. A replicator that does not answer is asked again for a minute.
pub(crate) async fn watch(
    replicator: &mut Replicator,
    id: String,
    board: &ProgressBoard,
) -> Result<v1::FullSync, ClientError> {
    let mut line = board.line("full sync");
    let (mut away, mut compared) = (Duration::ZERO, 0);
    let (mut last, mut still, mut is_told) = (v1::FullSyncCounts::default(), Duration::ZERO, false);
    loop {
        match replicator.full_sync(id.clone()).await {
            Ok(sync) => {
                away = Duration::ZERO;
                if sync.state() != v1::FullSyncState::Running {
                    return Ok(sync);
                }
                let counts = sync.counts.unwrap_or_default();
                compared = counts.source_blobs();
                if counts != last {
                    (last, still, is_told) = (counts, Duration::ZERO, false);
                }
                still += POLL;
                // Once for each time that it stands still, as soon as the route knows why.
                if !is_told && still >= STILL {
                    still = Duration::ZERO;
                    if let Some(why) = held_up(replicator, &sync.route).await {
                        board.say(&why);
                        is_told = true;
                    }
                }
                line.update(compared, None, || note(&counts));
            }
            Err(error) if error.code() == Code::Unavailable && away < AWAY => {
                away += POLL;
                line.update(compared, None, || format!("compared; {}", words::cause(&error.to_string())));
            }
            Err(error) => return Err(error),
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Why a full sync does not get on, where its route's own sentence says so: it is paused, or blocked.
async fn held_up(replicator: &mut Replicator, route: &str) -> Option<String> {
    let status = replicator.status(vec![route.to_owned()]).await.ok()?;
    let route = status.routes.into_iter().next()?;
    let is_held_up = matches!(route.state(), v1::RouteState::Paused | v1::RouteState::Blocked);
    is_held_up.then(|| words::plain(&route.summary, 300))
}

fn note(counts: &v1::FullSyncCounts) -> String {
    let found = counts.missing().saturating_add(counts.differing());
    format!("compared, {} to copy, {} confirmed", words::number(found), words::number(counts.confirmed()))
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
    use super::{begun, exit_of, listed};
    use crate::cli::Exit;
    use crate::pb::v1::{FullSync, FullSyncState};

    #[test]
    fn what_was_begun_is_named() {
        let sync = FullSync { id: "sync-2".to_owned(), route: "a_to_b".to_owned(), ..FullSync::default() };
        assert_eq!(begun(&sync, false), "full sync sync-2 of a_to_b started");
        assert_eq!(begun(&sync, true), "full sync sync-2 of a_to_b is already running");
    }

    #[test]
    fn a_listed_sync_has_its_times() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 7 });
        let mut sync = FullSync {
            id: "sync-2".to_owned(),
            route: "a_to_b".to_owned(),
            summary: "completed".to_owned(),
            create_time: time(0),
            start_time: time(60),
            end_time: time(90),
            ..FullSync::default()
        };
        assert_eq!(listed(&sync), "1970-01-01T00:01:00Z .. 1970-01-01T00:01:30Z  sync-2 of a_to_b: completed");
        (sync.start_time, sync.end_time) = (None, None);
        assert_eq!(listed(&sync), "1970-01-01T00:00:00Z ..                       sync-2 of a_to_b: completed");
    }

    #[test]
    fn the_exit_code_tells_how_it_ended() {
        assert_eq!(exit_of(FullSyncState::Completed), Exit::Ok);
        assert_eq!(exit_of(FullSyncState::CompletedWithFailures), Exit::WithFailures);
        assert_eq!(exit_of(FullSyncState::Failed), Exit::Failed);
        assert_eq!(exit_of(FullSyncState::Cancelled), Exit::Failed);
    }
}
