//! `blobferry failures`: what failed and is still queued.

use super::table::Table;
use super::{CommandError, Exit, ReplicatorArg, output};
use crate::client::Replicator;
use crate::fault::FaultKind;
use crate::pb::to_json;
use crate::pb::v1;
use crate::words;
use clap::{Args, Subcommand, ValueEnum};

/// The longest message of a failure that is shown on a line, in characters.
const MESSAGE: usize = 100;

/// What to do with failures.
#[derive(Debug, Subcommand)]
pub(super) enum FailuresCommand {
    /// Lists what failed and is still queued, and groups it by cause.
    List(ListArgs),
    /// Makes failed entries due now, parked ones too, and forgives their attempts.
    Retry(RetryArgs),
    /// Removes failed entries from the queue without copying them.
    Discard(DiscardArgs),
}

/// How an entry stands.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum FailureState {
    Retrying,
    Parked,
}

impl FailureState {
    fn wire(state: Option<Self>) -> i32 {
        match state {
            None => v1::FailureState::Unspecified.into(),
            Some(Self::Retrying) => v1::FailureState::Retrying.into(),
            Some(Self::Parked) => v1::FailureState::Parked.into(),
        }
    }
}

/// A kind of fault by its name.
fn kind(name: &str) -> Result<FaultKind, String> {
    let known = || FaultKind::ALL.map(FaultKind::as_str).join(", ");
    let found = FaultKind::ALL.into_iter().find(|kind| kind.as_str() == name);
    found.ok_or_else(|| format!("kinds are {}", known()))
}

fn wire_kind(kind: Option<FaultKind>) -> i32 {
    kind.map_or(0, |kind| i32::from(kind.number()))
}

/// Arguments of `failures list`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry failures list
  blobferry failures list primary_to_backup --kind missing_at_source --state parked
  blobferry failures list --limit 0 --json | jq -r '.failures[].ref'

Exit codes: 0 listed, even if there is none; 2 unknown or ambiguous route; 3 unreachable.")]
pub(super) struct ListArgs {
    /// The route; may be left out where there is only one.
    route: Option<String>,
    /// Only entries that last failed in this way, such as missing_at_source.
    #[arg(long, value_parser = kind)]
    kind: Option<FaultKind>,
    /// Only this blob.
    #[arg(long = "ref", value_name = "REF")]
    blob: Option<String>,
    /// Only entries in this state.
    #[arg(long)]
    state: Option<FailureState>,
    /// Entries to list, at most; 0 for all. The groups count the others too.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: usize,
    /// Print the answer as JSON, as grpcurl does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

/// Which entries to change.
#[derive(Debug, Args)]
struct Selected {
    /// The route; may be left out where there is only one.
    route: Option<String>,
    #[command(flatten)]
    which: Which,
    /// Of these, only the entries in this state.
    #[arg(long)]
    state: Option<FailureState>,
    /// Change nothing, only count.
    #[arg(long)]
    count_only: bool,
    /// Print the counts as JSON, as grpcurl does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// All that last failed in this way, such as missing_at_source.
    #[arg(long, value_parser = kind)]
    kind: Option<FaultKind>,
    /// This blob; may be given up to 10,000 times.
    #[arg(long = "ref", value_name = "REF")]
    blobs: Vec<String>,
    /// All that failed.
    #[arg(long)]
    all: bool,
}

/// Arguments of `failures retry`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry failures retry --all
  blobferry failures retry primary_to_backup --kind destination_rejected --state parked
  blobferry failures retry --ref sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824

Exit codes: 0 done; 2 unknown or ambiguous route, or no ref; 3 unreachable; 4 nothing matches.")]
pub(super) struct RetryArgs {
    #[command(flatten)]
    selected: Selected,
}

/// Arguments of `failures discard`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry failures discard --kind missing_at_source --state parked --count-only
  blobferry failures discard --kind missing_at_source --state parked
  blobferry failures discard --ref sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824

Exit codes: 0 done; 2 unknown or ambiguous route, or no ref; 3 unreachable; 4 nothing matches.")]
pub(super) struct DiscardArgs {
    #[command(flatten)]
    selected: Selected,
}

pub(super) async fn failures(command: FailuresCommand) -> Result<Exit, CommandError> {
    match command {
        FailuresCommand::List(args) => list(args).await,
        FailuresCommand::Retry(args) => retry(args.selected).await,
        FailuresCommand::Discard(args) => discard(args.selected).await,
    }
}

async fn list(args: ListArgs) -> Result<Exit, CommandError> {
    let mut replicator = Replicator::at(&args.replicator.address()?)?;
    let limit = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut request = v1::ListFailuresRequest {
        route: args.route.unwrap_or_default(),
        kind: wire_kind(args.kind),
        r#ref: args.blob.unwrap_or_default(),
        state: FailureState::wire(args.state),
        page_size: page_size(limit),
        page_token: String::new(),
    };
    let mut answer = replicator.list_failures(request.clone()).await?;
    while answer.failures.len() < limit && !answer.next_page_token.is_empty() {
        request.page_token.clone_from(&answer.next_page_token);
        request.page_size = page_size(limit - answer.failures.len());
        let page = replicator.list_failures(request.clone()).await?;
        answer.failures.extend(page.failures);
        answer.next_page_token = page.next_page_token;
    }
    if args.json {
        output::line(&format!("{:#}", to_json("ListFailuresResponse", &answer)?))?;
    } else {
        output::write(render(&answer).as_bytes())?;
    }
    Ok(Exit::Ok)
}

/// The size of a page on which at most so many entries are wanted.
fn page_size(wanted: usize) -> u32 {
    u32::try_from(wanted.min(1000)).unwrap_or(1000)
}

fn render(answer: &v1::ListFailuresResponse) -> String {
    let (retrying, parked) = (answer.retrying_entries(), answer.parked_entries());
    let mut shown = format!("{} retrying, {} parked\n", words::number(retrying), words::number(parked));
    for group in &answer.groups {
        let since = group.first_time.as_ref().map(|time| format!(" since {}", moment(time))).unwrap_or_default();
        let parked = match group.parked_entries() {
            0 => String::new(),
            parked => format!(", {} parked", words::number(parked)),
        };
        let message = group.cause.as_ref().map(|cause| words::plain(&cause.message, MESSAGE)).unwrap_or_default();
        shown += &format!("  {}{since}{parked}: {message}\n", words::plain(&group.summary, MESSAGE));
    }
    if !answer.groups_complete {
        shown += "  and more causes may be behind these: only the first 10,000 or so were grouped\n";
    }
    if answer.failures.is_empty() {
        return shown;
    }
    let mut table = Table::new(&["REF", "STATE", "LANE", "CAUSE", "PEER", "DUE", "ATTEMPTS", "FAILURES"], 6);
    for entry in &answer.failures {
        let cause = entry.cause.clone().unwrap_or_default();
        let state = match entry.state() {
            v1::FailureState::Retrying => "retrying",
            v1::FailureState::Parked => "parked",
            v1::FailureState::Unspecified => "",
        };
        let lane = match entry.lane() {
            v1::Lane::Fresh => "fresh",
            v1::Lane::Backfill => "backfill",
            v1::Lane::Unspecified => "",
        };
        table.row(vec![
            words::plain(&entry.r#ref, 200),
            state.to_owned(),
            lane.to_owned(),
            cause_name(&cause),
            words::plain(&cause.peer, 40),
            entry.due_time.as_ref().map(moment).unwrap_or_default(),
            words::number(entry.attempts().into()),
            words::number(entry.failures()),
        ]);
    }
    shown += "\n";
    shown += &table.render("");
    if !answer.next_page_token.is_empty() {
        shown += "there are more: --limit N lists them\n";
    }
    shown
}

pub(super) fn cause_name(cause: &v1::Fault) -> String {
    let kind = u8::try_from(cause.kind).ok().and_then(FaultKind::from_number);
    let name = kind.map_or("unknown", FaultKind::as_str);
    if cause.code.is_empty() { name.to_owned() } else { format!("{name} {}", words::plain(&cause.code, 40)) }
}

/// A time to the second, in UTC.
pub(super) fn moment(time: &prost_types::Timestamp) -> String {
    prost_types::Timestamp { seconds: time.seconds, nanos: 0 }.to_string()
}

/// The selection as the wire has it.
fn selection(which: &Which, state: Option<FailureState>) -> v1::FailureSelection {
    v1::FailureSelection {
        refs: which.blobs.clone(),
        kind: wire_kind(which.kind),
        all: which.all,
        state: FailureState::wire(state),
    }
}

async fn retry(args: Selected) -> Result<Exit, CommandError> {
    let mut replicator = Replicator::at(&args.replicator.address()?)?;
    let mut request = v1::RetryFailuresRequest {
        route: args.route.clone().unwrap_or_default(),
        selection: Some(selection(&args.which, args.state)),
        count_only: args.count_only,
        page_token: String::new(),
    };
    let (mut matched, mut changed) = (0, 0);
    loop {
        let answer = replicator.retry_failures(request.clone()).await?;
        matched += answer.matched_entries();
        changed += answer.retried_entries();
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let total = v1::RetryFailuresResponse {
        matched_entries: Some(matched),
        retried_entries: Some(changed),
        next_page_token: String::new(),
    };
    let json = args.json.then(|| to_json("RetryFailuresResponse", &total)).transpose()?;
    tell(&args, json, matched, &format!("{} due now", words::number(changed)))
}

async fn discard(args: Selected) -> Result<Exit, CommandError> {
    let mut replicator = Replicator::at(&args.replicator.address()?)?;
    let mut request = v1::DiscardFailuresRequest {
        route: args.route.clone().unwrap_or_default(),
        selection: Some(selection(&args.which, args.state)),
        count_only: args.count_only,
        page_token: String::new(),
    };
    let (mut matched, mut changed) = (0, 0);
    loop {
        let answer = replicator.discard_failures(request.clone()).await?;
        matched += answer.matched_entries();
        changed += answer.discarded_entries();
        request.page_token = answer.next_page_token;
        if request.page_token.is_empty() {
            break;
        }
    }
    let total = v1::DiscardFailuresResponse {
        matched_entries: Some(matched),
        discarded_entries: Some(changed),
        next_page_token: String::new(),
    };
    let json = args.json.then(|| to_json("DiscardFailuresResponse", &total)).transpose()?;
    tell(&args, json, matched, &format!("{} discarded", words::number(changed)))
}

/// Says what was done, and whether there was anything to do.
fn tell(args: &Selected, json: Option<serde_json::Value>, matched: u64, done: &str) -> Result<Exit, CommandError> {
    let matches = match matched {
        1 => "1 entry matches".to_owned(),
        _ => format!("{} entries match", words::number(matched)),
    };
    match json {
        Some(json) => output::line(&format!("{json:#}"))?,
        None if args.count_only => output::line(&matches)?,
        None => output::line(&format!("{matches}, {done}"))?,
    }
    Ok(if matched == 0 { Exit::No } else { Exit::Ok })
}

#[cfg(test)]
mod tests {
    use super::{kind, render};
    use crate::cli::Cli;
    use crate::fault::FaultKind;
    use crate::pb::v1;
    use clap::Parser;

    #[test]
    fn exactly_one_way_to_choose_is_taken() {
        let parses = |line: &str| Cli::try_parse_from(line.split(' ')).is_ok();
        for verb in ["retry", "discard"] {
            assert!(parses(&format!("blobferry failures {verb} --all")));
            assert!(parses(&format!("blobferry failures {verb} a_to_b --ref x --ref y --count-only --json")));
            assert!(parses(&format!("blobferry failures {verb} --kind short_read --state parked")));
            assert!(!parses(&format!("blobferry failures {verb}")));
            assert!(!parses(&format!("blobferry failures {verb} --all --kind short_read")));
            assert!(!parses(&format!("blobferry failures {verb} --kind nonsense")));
        }
        assert!(parses("blobferry failures list"));
        assert_eq!(kind("short_read"), Ok(FaultKind::ShortRead));
    }

    #[test]
    fn a_list_shows_the_groups_first() {
        let cause = v1::Fault {
            kind: v1::FaultKind::DestinationRejected.into(),
            peer: "backup".to_owned(),
            code: "INVALID_ARGUMENT".to_owned(),
            message: "no\nsuch".to_owned(),
            time: None,
        };
        let answer = v1::ListFailuresResponse {
            failures: vec![v1::FailedEntry {
                r#ref: "sha256-00".to_owned(),
                state: v1::FailureState::Parked.into(),
                lane: v1::Lane::Fresh.into(),
                attempts: Some(10),
                failures: Some(12),
                cause: Some(cause.clone()),
                ..v1::FailedEntry::default()
            }],
            groups: vec![v1::FailureGroup {
                summary: "4,212 x destination_rejected INVALID_ARGUMENT at backup".to_owned(),
                cause: Some(cause),
                parked_entries: Some(4212),
                first_time: Some(prost_types::Timestamp { seconds: 1_767_225_600, nanos: 5 }),
                ..v1::FailureGroup::default()
            }],
            groups_complete: true,
            retrying_entries: Some(0),
            parked_entries: Some(4212),
            next_page_token: "p-8-1".to_owned(),
        };
        let shown = render(&answer);
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(lines[0], "0 retrying, 4,212 parked");
        assert_eq!(
            lines[1],
            "  4,212 x destination_rejected INVALID_ARGUMENT at backup since 2026-01-01T00:00:00Z, 4,212 parked: no such"
        );
        assert!(lines[4].starts_with("sha256-00  parked  fresh  destination_rejected INVALID_ARGUMENT  backup"));
        assert_eq!(lines[5], "there are more: --limit N lists them");
    }
}
