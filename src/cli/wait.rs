//! `blobferry wait`: the producer's barrier.

use super::failures::cause_name;
use super::progress::to_stderr;
use super::table::Table;
use super::{CommandError, Exit, ReplicatorArg, of_replicator, output};
use crate::blob::RefPrefix;
use crate::client::{Address, ClientError, Replicator};
use crate::pb::to_json;
use crate::pb::v1;
use crate::words;
use clap::Args;
use std::io::BufRead as _;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::Code;

/// Refs in a call, at most.
const PAGE: usize = 10_000;
/// Lines of stdin that are read ahead.
const AHEAD: usize = 1000;
/// How long one call waits; a longer wait is made of several.
const CALL: Duration = Duration::from_mins(5);
/// Between two tries while the replicator is away.
const AGAIN: Duration = Duration::from_secs(1);
/// The longest wait: longer than anybody's patience.
const LONGEST: Duration = Duration::from_hours(24 * 365);
/// Blobs that are listed, at most.
const LISTED: usize = 20;
/// The longest message of a failure that is shown, in characters.
const MESSAGE: usize = 100;

/// Arguments of `wait`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry wait sha256-2cf24dba
  blobferry put --verbose --announce http://127.0.0.1:7070 ./src | blobferry wait --timeout 5min -
  blobferry wait --token 01J00000000000000000000000
  blobferry wait --source-store primary --route primary_to_backup --timeout 0s - < refs.txt

Waits until every blob is confirmed by every store that it goes to, along chains too. Ends early \
when waiting is of no use, because blobs are parked, discarded, or not queued at all. Of each line \
of stdin the first word is a ref. While the replicator restarts, it goes on waiting.

Exit codes: 0 all are confirmed; 2 usage, such as what is no ref; 3 unreachable; 4 the time is over, or the \
token is not known, or no known ref begins so; 5 some will not be confirmed by waiting.")]
pub(super) struct WaitArgs {
    /// The blobs' refs, or their beginnings with 8 digits or more; `-` reads whole ones from stdin.
    #[arg(value_name = "REF", required_unless_present = "token", conflicts_with = "token")]
    blobs: Vec<String>,
    /// The token that EnqueueBlobs answered with, in place of refs.
    #[arg(long, value_name = "TOKEN")]
    token: Option<String>,
    /// The store at which the blobs were announced; may be left out where only one store is the source.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, conflicts_with = "token")]
    source_store: String,
    /// Wait for this route only; may be given several times.
    #[arg(long = "route", value_name = "NAME")]
    routes: Vec<String>,
    /// How long to wait; 0s tells how things stand.
    #[arg(long, value_name = "SPAN", default_value = "10min", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// Print the answer as JSON, as grpcurl does: one for every 10,000 refs.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

pub(super) async fn wait(args: WaitArgs) -> Result<Exit, CommandError> {
    let address = args.replicator.address()?;
    let mut barrier = Barrier {
        replicator: Replicator::at(&address)?,
        address,
        request: v1::WaitReplicatedRequest {
            source_store: args.source_store,
            routes: args.routes,
            ..v1::WaitReplicatedRequest::default()
        },
        until: Instant::now() + args.timeout.min(LONGEST),
        answered: false,
        json: args.json,
        worst: Exit::Ok,
        confirmed: 0,
        unconfirmed: 0,
    };
    if let Some(token) = args.token {
        barrier.request.wait_token = token;
        barrier.page(Vec::new()).await?;
        return barrier.end();
    }

    // What stdin brings is waited for as it comes, ten thousand at a time.
    let mut reading = JoinSet::new();
    let (sender, mut lines) = mpsc::channel(AHEAD);
    let mut blobs = args.blobs;
    for blob in blobs.iter_mut().filter(|blob| RefPrefix::parse(blob).is_some()) {
        *blob = barrier.meant(blob).await?;
    }
    reading.spawn_blocking(move || read(blobs, &sender));
    let mut page = Vec::new();
    while lines.recv_many(&mut page, PAGE).await > 0 {
        while page.len() < PAGE
            && let Some(blob) = lines.recv().await
        {
            page.push(blob);
        }
        barrier.page(std::mem::take(&mut page)).await?;
    }
    if let Some(read) = reading.join_next().await {
        read.map_err(|error| CommandError::new(Exit::Failed, error.to_string()))??;
    }
    barrier.end()
}

/// Sends the refs on, those of stdin among them.
fn read(blobs: Vec<String>, into: &mpsc::Sender<String>) -> Result<(), CommandError> {
    for blob in blobs {
        if blob != "-" {
            if into.blocking_send(blob).is_err() {
                return Ok(());
            }
            continue;
        }
        for line in std::io::stdin().lock().lines() {
            let line = line?;
            let Some(blob) = line.split_whitespace().next() else { continue };
            if into.blocking_send(blob.to_owned()).is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// A wait in progress.
struct Barrier {
    replicator: Replicator,
    address: Address,
    request: v1::WaitReplicatedRequest,
    until: Instant,
    /// Whether the replicator has answered once: then it is worth waiting for.
    answered: bool,
    json: bool,
    worst: Exit,
    confirmed: u64,
    unconfirmed: u64,
}

impl Barrier {
    /// The whole ref, of its beginning.
    async fn meant(&mut self, prefix: &str) -> Result<String, CommandError> {
        let request = v1::ExplainBlobRequest { r#ref: prefix.to_owned(), skip_stores: false };
        match self.replicator.explain_blob(request).await {
            Ok(answer) => Ok(answer.r#ref),
            Err(error) => Err(of_replicator(&self.address, error).await),
        }
    }

    /// Waits for these, or for the token's, and tells what came of it.
    async fn page(&mut self, refs: Vec<String>) -> Result<(), CommandError> {
        self.request.refs = refs;
        let answer = loop {
            let left = self.until.saturating_duration_since(Instant::now());
            // The first call asks how things stand: whoever cannot answer that is not waited for.
            let call = if self.answered { left.min(CALL) } else { Duration::ZERO };
            match self.replicator.wait_replicated(self.request.clone(), call).await {
                Ok(answer) if answer.outcome() == v1::WaitOutcome::TimedOut && !left.is_zero() => {
                    if !self.answered {
                        let (confirmed, all) = (answer.confirmed_blobs(), answer.unconfirmed_blobs());
                        let (confirmed, all) = (words::number(confirmed), words::several(confirmed + all, "blob"));
                        to_stderr(&format!("blobferry: {confirmed} of {all} confirmed; waiting"));
                    }
                    self.answered = true;
                }
                Ok(answer) => break answer,
                Err(error) if self.answered && !left.is_zero() && is_away(&error) => {
                    to_stderr(&format!("blobferry: {} (waiting for it)", words::cause(&error.to_string())));
                    sleep(AGAIN).await;
                }
                Err(error) => return Err(of_replicator(&self.address, error).await),
            }
        };
        self.answered = true;
        self.confirmed += answer.confirmed_blobs();
        self.unconfirmed += answer.unconfirmed_blobs();
        match answer.outcome() {
            v1::WaitOutcome::TimedOut => self.worst = Exit::No,
            v1::WaitOutcome::GivenUp if self.worst == Exit::Ok => self.worst = Exit::WithFailures,
            _ => {}
        }
        if self.json {
            output::line(&format!("{:#}", to_json("WaitReplicatedResponse", &answer)?))
        } else {
            output::write(render(&answer).as_bytes())
        }
    }

    fn end(self) -> Result<Exit, CommandError> {
        if !self.json && self.confirmed + self.unconfirmed == 0 {
            output::line("nothing to wait for")?;
        }
        Ok(self.worst)
    }
}

/// Whether the replicator is restarting, or the way there is cut.
fn is_away(error: &ClientError) -> bool {
    match error.code() {
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::ResourceExhausted => true,
        // A connection that ends amid an answer is INTERNAL to its client. The replicator's own has a reason.
        Code::Internal => error.reason().is_none(),
        _ => false,
    }
}

/// The word for a state.
pub(super) fn state(state: v1::BlobState) -> &'static str {
    match state {
        v1::BlobState::Unspecified => "",
        v1::BlobState::Confirmed => "confirmed",
        v1::BlobState::Ready => "ready",
        v1::BlobState::Claimed => "claimed",
        v1::BlobState::Retrying => "retrying",
        v1::BlobState::Parked => "parked",
        v1::BlobState::Discarded => "discarded",
        v1::BlobState::Upstream => "upstream",
        v1::BlobState::NotQueued => "not queued",
        v1::BlobState::Unknown => "unknown",
    }
}

fn render(answer: &v1::WaitReplicatedResponse) -> String {
    let mut shown = format!("{}\n", words::plain(&answer.summary, 500));
    if answer.unconfirmed.is_empty() {
        return shown;
    }
    let mut table = Table::new(&["REF", "ROUTE", "STATE", "CAUSE"], 4);
    for blob in answer.unconfirmed.iter().take(LISTED) {
        for hop in &blob.routes {
            let cause = match &hop.fault {
                Some(fault) => format!("{}: {}", cause_name(fault), words::plain(&fault.message, MESSAGE)),
                None => words::plain(&hop.note, MESSAGE),
            };
            let row =
                [words::plain(&blob.r#ref, 200), words::plain(&hop.route, 80), state(hop.state()).to_owned(), cause];
            table.row(row.into());
        }
    }
    shown += &table.render("  ");
    let more = answer.unconfirmed_blobs().saturating_sub(answer.unconfirmed.len().min(LISTED) as u64);
    if more > 0 {
        shown += &format!("  and {} more: --json lists them\n", words::number(more));
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::render;
    use crate::cli::Cli;
    use crate::pb::v1;
    use clap::Parser;

    #[test]
    fn refs_or_a_token_are_given() {
        let parses = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        for line in [
            "wait sha256-00",
            "wait - --timeout 0s --json",
            "wait --token x --route a_to_b --route b_to_c",
            "wait a b --source-store primary --replicator http://x:1",
        ] {
            assert!(parses(&format!("blobferry {line}")), "{line}");
        }
        for line in ["wait", "wait x --token y", "wait --token y --source-store a", "wait x --timeout soon"] {
            assert!(!parses(&format!("blobferry {line}")), "{line}");
        }
    }

    #[test]
    fn what_is_left_is_listed_with_its_cause() {
        let hop = |route: &str, state: v1::BlobState| v1::BlobProgress {
            route: route.to_owned(),
            state: state.into(),
            ..v1::BlobProgress::default()
        };
        let parked = v1::BlobProgress {
            fault: Some(v1::Fault {
                kind: v1::FaultKind::MissingAtSource.into(),
                code: "NOT_FOUND".to_owned(),
                message: "no such\nblob".to_owned(),
                ..v1::Fault::default()
            }),
            ..hop("a_to_b", v1::BlobState::Parked)
        };
        let blob = v1::UnconfirmedBlob {
            r#ref: "sha256-00".to_owned(),
            routes: vec![parked, hop("b_to_c", v1::BlobState::Upstream)],
        };
        let answer = v1::WaitReplicatedResponse {
            summary: "1 of 30 blobs".to_owned(),
            unconfirmed: vec![blob],
            unconfirmed_blobs: Some(30),
            ..v1::WaitReplicatedResponse::default()
        };
        let shown = render(&answer);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "1 of 30 blobs");
        assert_eq!(lines[2], "  sha256-00  a_to_b  parked    missing_at_source NOT_FOUND: no such blob");
        assert_eq!(lines[3], "  sha256-00  b_to_c  upstream");
        assert_eq!(lines[4], "  and 29 more: --json lists them");
    }
}
