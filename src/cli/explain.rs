//! `blobferry explain`: one blob's story.

use super::failures::{cause_name, moment};
use super::{CommandError, Exit, ReplicatorArg, of_replicator, output};
use crate::client::Replicator;
use crate::pb::{std_duration, to_json, v1};
use crate::words;
use clap::Args;

/// The longest sentence that is shown, in characters.
const SENTENCE: usize = 600;

/// Arguments of `explain`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry explain sha256-2cf24dba
  blobferry explain --no-stores --json \\
    sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 | jq '.routes[].state'

Tells for each route how the blob stands: when it was announced, in which trace, how it failed, when it is given up, when it \
was confirmed; and whether the stores hold it right now.

Exit codes: 0 told, whatever the story; 2 not a ref, or the beginning of several; 3 unreachable; 4 no known ref begins so.")]
pub(super) struct ExplainArgs {
    /// The blob's ref, or its beginning with 8 digits or more.
    #[arg(value_name = "REF")]
    blob: String,
    /// Do not ask the stores.
    #[arg(long)]
    no_stores: bool,
    /// Print the answer as JSON, as grpcurl does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

pub(super) async fn explain(args: ExplainArgs) -> Result<Exit, CommandError> {
    let address = args.replicator.address()?;
    let request = v1::ExplainBlobRequest { r#ref: args.blob, skip_stores: args.no_stores };
    let answer = match Replicator::at(&address)?.explain_blob(request).await {
        Ok(answer) => answer,
        Err(error) => return Err(of_replicator(&address, error).await),
    };
    if args.json {
        output::line(&format!("{:#}", to_json("ExplainBlobResponse", &answer)?))?;
    } else {
        output::write(render(&answer).as_bytes())?;
    }
    Ok(Exit::Ok)
}

fn render(answer: &v1::ExplainBlobResponse) -> String {
    let mut shown = format!("{}: {}\n", words::plain(&answer.r#ref, 200), words::plain(&answer.summary, SENTENCE));
    for route in &answer.routes {
        shown += &format!("\n{}\n", words::plain(&route.summary, SENTENCE));
        let mut line = |name: &str, what: String| shown += &format!("  {name:<12} {what}\n");
        if let Some(entry) = &route.entry {
            lines_of(entry, &mut line);
        }
        if let Some(completion) = &route.completion {
            let what = match completion.kind() {
                v1::CompletionKind::Copied => "copied",
                v1::CompletionKind::Found => "found there already",
                v1::CompletionKind::DiscardedByOperator => "discarded by an operator",
                v1::CompletionKind::DiscardedByConfiguration => "discarded as configured",
                v1::CompletionKind::Unspecified => "ended",
            };
            let size = completion.size_bytes.map(|size| format!(", {}", words::bytes(size))).unwrap_or_default();
            let at = completion.time.as_ref().map(moment).unwrap_or_default();
            let again = if route.entry.is_some() { ", and queued again since" } else { "" };
            line("last ended", format!("{at}, {what}{size}{again}"));
            if let Some(queued) = &completion.enqueue_time {
                line("", format!("queued {}", moment(queued)));
            }
            if !completion.traceparent.is_empty() {
                line("", format!("trace {}", words::plain(&completion.traceparent, 100)));
            }
        }
        let last = route.entry.as_ref().and_then(|entry| entry.last_fault.as_ref());
        for (store, held) in [(&route.from, &route.at_source), (&route.to, &route.at_destination)] {
            let Some(held) = held else { continue };
            let is_corrupt = |fault: &&v1::Fault| {
                fault.kind() == v1::FaultKind::SourceBytesCorrupt && fault.peer == *store && *store == route.from
            };
            let corrupt = last.filter(is_corrupt).and_then(|fault| fault.time.as_ref());
            let corrupt = corrupt.map(|time| format!(", but its bytes were corrupt at {}", moment(time)));
            let what = match held.holding() {
                v1::Holding::Yes => {
                    format!("holds it, {}{}", words::bytes(held.size_bytes()), corrupt.unwrap_or_default())
                }
                v1::Holding::No => "does not hold it".to_owned(),
                v1::Holding::Unspecified => format!("unknown: {}", words::plain(&held.note, SENTENCE)),
            };
            line(&words::plain(store, 40), what);
        }
    }
    shown
}

fn lines_of(entry: &v1::BlobEntry, line: &mut impl FnMut(&str, String)) {
    let lane = match entry.lane() {
        v1::Lane::Backfill => "backfill, found by a full sync",
        v1::Lane::Fresh | v1::Lane::Unspecified => "fresh, announced",
    };
    let size = entry.size_bytes.map(|size| format!(", {}", words::bytes(size))).unwrap_or_default();
    let repair = if entry.repair { ", to replace wrong bytes" } else { "" };
    let queued = entry.enqueue_time.as_ref().map(moment).unwrap_or_default();
    line("queued", format!("{queued}, {lane}{size}{repair}"));
    if !entry.traceparent.is_empty() {
        line("trace", words::plain(&entry.traceparent, 100));
    }
    let visited: Vec<String> = entry.visited_stores.iter().map(|store| words::plain(store, 40)).collect();
    if visited.len() > 1 {
        line("came through", visited.join(", "));
    }
    if let Some(fault) = &entry.last_fault {
        let first = entry.first_failure_time.as_ref().map(moment).unwrap_or_default();
        let last = fault.time.as_ref().map(moment).unwrap_or_default();
        let at = if fault.peer.is_empty() { String::new() } else { format!(" at {}", words::plain(&fault.peer, 40)) };
        let times = match entry.failures() {
            1 => format!("once, {last}"),
            times => format!("{} times, first {first}, last {last}", words::number(times)),
        };
        line("failed", times);
        line("", format!("{}{at}: {}", cause_name(fault), words::plain(&fault.message, SENTENCE)));
    }
    if let Some(due) = &entry.due_time {
        line("next attempt", moment(due));
        let (weight, attempts) = (entry.charged(), words::several(u64::from(entry.attempts()), "failed attempt"));
        line("given up", format!("when its failures weigh {}; so far {weight:.1}, {attempts}", entry.park_after()));
        if let (Some(missed), Some(patience)) = (&entry.missed_for, &entry.missing_patience) {
            let [missed, patience] = [missed, patience].map(|span| words::span(std_duration(span).unwrap_or_default()));
            line("", format!("or when it was missing at the source for {patience}; {missed} so far"));
        }
    }
    if !entry.full_sync_ids.is_empty() {
        let syncs: Vec<String> = entry.full_sync_ids.iter().map(|id| words::plain(id, 40)).collect();
        line("awaited by", syncs.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use super::render;
    use crate::pb::v1;

    #[test]
    fn a_story_has_a_sentence_for_each_route_and_what_lies_behind_it() {
        let fault = v1::Fault {
            kind: v1::FaultKind::DestinationRejected.into(),
            peer: "backup".to_owned(),
            code: "INVALID_ARGUMENT".to_owned(),
            message: "no\nthanks".to_owned(),
            time: Some(prost_types::Timestamp { seconds: 60, nanos: 5 }),
        };
        let time = || Some(prost_types::Timestamp { seconds: 0, nanos: 0 });
        let route = v1::BlobRouteStory {
            summary: "a_to_b: given up".to_owned(),
            from: "primary".to_owned(),
            to: "backup".to_owned(),
            state: v1::BlobState::Parked.into(),
            entry: Some(v1::BlobEntry {
                enqueue_time: time(),
                lane: v1::Lane::Fresh.into(),
                size_bytes: Some(1536),
                visited_stores: vec!["x".to_owned(), "primary".to_owned()],
                attempts: Some(3),
                failures: Some(4),
                last_fault: Some(fault),
                first_failure_time: time(),
                due_time: time(),
                charged: Some(1.23),
                park_after: Some(10),
                missed_for: Some(prost_types::Duration { seconds: 90, nanos: 0 }),
                missing_patience: Some(prost_types::Duration { seconds: 7200, nanos: 0 }),
                full_sync_ids: vec!["sync-1".to_owned()],
                ..v1::BlobEntry::default()
            }),
            completion: Some(v1::BlobCompletion {
                kind: v1::CompletionKind::Copied.into(),
                time: time(),
                size_bytes: Some(1536),
                enqueue_time: Some(prost_types::Timestamp { seconds: 60, nanos: 0 }),
                traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
                ..v1::BlobCompletion::default()
            }),
            at_source: Some(v1::StoreHolding {
                holding: v1::Holding::Yes.into(),
                size_bytes: Some(0),
                note: String::new(),
            }),
            at_destination: Some(v1::StoreHolding { note: "it is down".to_owned(), ..v1::StoreHolding::default() }),
            ..v1::BlobRouteStory::default()
        };
        let answer = v1::ExplainBlobResponse {
            summary: "parked".to_owned(),
            r#ref: "sha256-00".to_owned(),
            routes: vec![route],
        };
        let shown = render(&answer);
        let expected = [
            "sha256-00: parked",
            "",
            "a_to_b: given up",
            "  queued       1970-01-01T00:00:00Z, fresh, announced, 1.50 KiB",
            "  came through x, primary",
            "  failed       4 times, first 1970-01-01T00:00:00Z, last 1970-01-01T00:01:00Z",
            "               destination_rejected INVALID_ARGUMENT at backup: no thanks",
            "  next attempt 1970-01-01T00:00:00Z",
            "  given up     when its failures weigh 10; so far 1.2, 3 failed attempts",
            "               or when it was missing at the source for 2 h; 1 min 30 s so far",
            "  awaited by   sync-1",
            "  last ended   1970-01-01T00:00:00Z, copied, 1.50 KiB, and queued again since",
            "               queued 1970-01-01T00:01:00Z",
            "               trace 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "  primary      holds it, 0 B",
            "  backup       unknown: it is down",
        ];
        assert_eq!(shown.lines().collect::<Vec<_>>(), expected);
    }
}
