//! `blobferry status` and `blobferry health`.

mod render;

use super::progress::to_stderr;
use super::{CommandError, Exit, REPLICATOR, REPLICATOR_VARIABLE, ReplicatorArg, STORE, of_replicator, output};
use crate::client::{self, Address, ClientError, Replicator};
use crate::pb::to_json;
use crate::pb::v1;
use clap::Args;
use futures::stream::StreamExt as _;
use std::io::IsTerminal as _;
use std::time::Duration;
use tonic::Code;
use tonic_health::pb::health_check_response::ServingStatus;

pub(crate) use render::{RouteBacklog, route_backlog, sync_line};

/// Arguments of `status`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry status
  blobferry status --watch
  blobferry status --json | jq '.routes[].queued.fresh.ready'
  blobferry status --check primary_to_backup || echo 'not in sync'
  blobferry status --replicator https://ferry.example:7070 --ca-file ca.pem

Exit codes: 0 answered (with --check: OK, and all in sync); 2 unknown route; 3 unreachable; \
4 with --check: anything else; 130 --watch was ended by Ctrl-C.")]
pub(super) struct StatusArgs {
    /// The routes to show; all if none is named.
    routes: Vec<String>,
    /// Go on showing it: redrawn on a terminal, one line per interval otherwise.
    #[arg(long)]
    watch: bool,
    /// The time between two pictures, with --watch (0.1 s to 60 s).
    #[arg(long, value_name = "SPAN", default_value = "1s", value_parser = interval)]
    interval: Duration,
    /// Print the answer as JSON, as grpcurl does; with --watch, one object per line.
    #[arg(long)]
    json: bool,
    /// Fail with 4 unless the state is OK and every enabled route is in sync.
    #[arg(long, conflicts_with = "watch")]
    check: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

fn interval(given: &str) -> Result<Duration, String> {
    let span = humantime::parse_duration(given).map_err(|error| format!("{error}; write it as 500ms or 2s"))?;
    let range = Duration::from_millis(100)..=Duration::from_secs(60);
    if range.contains(&span) { Ok(span) } else { Err("it is from 100ms to 60s".to_owned()) }
}

impl StatusArgs {
    /// Whether it goes on until it is interrupted.
    pub(super) fn is_endless(&self) -> bool {
        self.watch
    }
}

pub(super) async fn status(args: StatusArgs) -> Result<Exit, CommandError> {
    let address = args.replicator.address()?;
    let mut replicator = Replicator::at(&address)?;
    if args.watch {
        return watch(&mut replicator, &address, &args).await;
    }
    let status = match replicator.status(args.routes).await {
        Ok(status) => status,
        Err(error) => return Err(of_replicator(&address, error).await),
    };
    if args.json {
        output::line(&format!("{:#}", to_json("ReplicatorStatus", &status)?))?;
    } else {
        output::write(render::page(&status).as_bytes())?;
    }
    Ok(if args.check && !is_current(&status) { Exit::No } else { Exit::Ok })
}

/// Whether all is well, and every route that is enabled is in sync.
fn is_current(status: &v1::ReplicatorStatus) -> bool {
    let is_in_sync = |route: &v1::RouteStatus| {
        matches!(route.state(), v1::RouteState::InSync | v1::RouteState::Disabled | v1::RouteState::Orphaned)
    };
    status.state() == v1::ReplicatorState::Ok && status.routes.iter().all(is_in_sync)
}

/// Shows pictures until it is interrupted. A replicator that went away is waited for: it may be restarting.
async fn watch(replicator: &mut Replicator, address: &Address, args: &StatusArgs) -> Result<Exit, CommandError> {
    let on_terminal = std::io::stdout().is_terminal() && !args.json;
    let mut was_reached = false;
    loop {
        let error = match replicator.watch_status(args.routes.clone(), args.interval).await {
            Err(error) => error,
            Ok(mut pictures) => {
                was_reached = true;
                loop {
                    match pictures.next().await {
                        Some(Ok(status)) if args.json => {
                            output::line(&to_json("ReplicatorStatus", &status)?.to_string())?;
                        }
                        Some(Ok(status)) if on_terminal => {
                            output::write(redrawn(&render::page(&status)).as_bytes())?;
                        }
                        Some(Ok(status)) => output::write(render::short(&status).as_bytes())?,
                        Some(Err(error)) => break error,
                        None => break ended(&args.replicator.replicator),
                    }
                }
            }
        };
        if !was_reached || !is_passing(&error) {
            return Err(of_replicator(address, error).await);
        }
        to_stderr(&format!("blobferry: {} (trying again)", CommandError::from(error)));
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn ended(url: &str) -> ClientError {
    ClientError::Unreachable {
        url: url.to_owned(),
        detail: "the replicator has stopped".to_owned(),
        is_other_protocol: false,
    }
}

fn is_passing(error: &ClientError) -> bool {
    matches!(error.code(), Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded)
}

/// A page over the one before it, without the flicker of clearing the screen first.
fn redrawn(page: &str) -> String {
    // Home; no line goes on behind the terminal's last column; then each line, and what was longer on the line before;
    // then all lines below; and lines may be long again.
    let mut text = "\u{1b}[H\u{1b}[?7l".to_owned();
    for line in page.lines() {
        text.push_str(line);
        text.push_str("\u{1b}[K\n");
    }
    text.push_str("\u{1b}[J\u{1b}[?7h");
    text
}

/// Arguments of `health`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry health
  blobferry health --url http://127.0.0.1:7080              a store
  blobferry health --service route/primary_to_backup        does the route work?
  blobferry health --service blobferry.v1.ReplicationService
                                                can it durably accept announcements?

Exit codes: 0 serving; 3 unreachable; 4 not serving, or no such service.")]
pub(super) struct HealthArgs {
    /// The server's address.
    #[arg(long, value_name = "URL", env = REPLICATOR_VARIABLE, default_value = REPLICATOR)]
    url: String,
    /// Where no replicator is there, ask the store on this machine, at port 7080: for containers, which have one server.
    #[arg(long)]
    any: bool,
    /// The service to ask about; empty means the server as a whole.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    service: String,
    /// Trust the certificate authorities of this PEM file in place of the system's (https only).
    #[arg(long, value_name = "FILE")]
    ca_file: Option<std::path::PathBuf>,
}

pub(super) async fn health(args: HealthArgs) -> Result<Exit, CommandError> {
    let address = Address::new(&args.url, args.ca_file)?;
    let health = match client::health(&address, &args.service).await {
        Err(ClientError::Unreachable { .. }) if args.any => {
            client::health(&Address::new(STORE, None)?, &args.service).await
        }
        asked => asked,
    };
    let health = health.map_err(|error| match error.code() {
        Code::NotFound => CommandError::from(error).hint("routes are called route/NAME; blobferry status lists them"),
        _ => error.into(),
    })?;
    output::line(health.as_str_name())?;
    Ok(if health == ServingStatus::Serving { Exit::Ok } else { Exit::No })
}

#[cfg(test)]
mod tests {
    use super::redrawn;

    #[test]
    fn a_page_is_redrawn_over_the_last_one() {
        assert_eq!(redrawn("a\nb\n"), "\u{1b}[H\u{1b}[?7la\u{1b}[K\nb\u{1b}[K\n\u{1b}[J\u{1b}[?7h");
    }
}
