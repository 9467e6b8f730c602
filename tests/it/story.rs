//! What became of a blob: the producer's barrier, and one blob's story.

use crate::harness::{
    Replication, Server, World, announce, bad_fields, blob, held, program, reader, reason, receiver, replication, send,
    until,
};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use tonic::{Code, Request};

async fn announce_with_token(at: &mut Replication, blobs: &[BlobRef]) -> String {
    let items = blobs.iter().map(|blob| pb::EnqueueItem { r#ref: blob.to_string(), ..Default::default() }).collect();
    let request = pb::EnqueueBlobsRequest { source_store: "a".to_owned(), items, issue_wait_token: true };
    at.enqueue_blobs(request).await.unwrap().into_inner().wait_token
}

fn seconds(seconds: i64) -> Option<prost_types::Duration> {
    Some(prost_types::Duration { seconds, nanos: 0 })
}

fn for_refs(blobs: &[BlobRef], wait: i64) -> pb::WaitReplicatedRequest {
    let refs = blobs.iter().map(ToString::to_string).collect();
    pb::WaitReplicatedRequest { refs, source_store: "a".to_owned(), max_wait: seconds(wait), ..Default::default() }
}

fn for_token(token: &str, wait: i64) -> pb::WaitReplicatedRequest {
    pb::WaitReplicatedRequest { wait_token: token.to_owned(), max_wait: seconds(wait), ..Default::default() }
}

async fn wait(at: &mut Replication, request: pb::WaitReplicatedRequest) -> pb::WaitReplicatedResponse {
    at.wait_replicated(request).await.unwrap().into_inner()
}

/// The states of what is not confirmed, without repetitions.
fn states(answer: &pb::WaitReplicatedResponse) -> Vec<pb::BlobState> {
    let mut states: Vec<_> =
        answer.unconfirmed.iter().flat_map(|blob| blob.routes.iter().map(|hop| hop.state())).collect();
    states.dedup();
    states
}

fn command(arguments: &[&str], at: &Server) -> Command {
    let mut command = Command::new(program());
    command.args(arguments).args(["--replicator", &at.url()]);
    command
}

fn code_and_words(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_producer_waits_until_its_blobs_have_arrived() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let mut operator = replication(&replicator).await;
    let mut refs = Vec::new();
    for seed in 0..300 {
        let (blob, bytes) = blob(seed, 5_000);
        send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
        refs.push(blob);
    }
    let token = announce_with_token(&mut operator, &refs).await;
    let answer = wait(&mut operator, for_token(&token, 100)).await;
    assert_eq!((answer.outcome(), answer.confirmed_blobs), (pb::WaitOutcome::Confirmed, Some(300)));
    assert_eq!((answer.unconfirmed_blobs, answer.routes), (Some(0), vec!["a_to_b".to_owned()]));
    assert_eq!(held(&mut reader(&destination).await, &refs).await, 300, "whoever waited finds them there");

    // By the command, which takes refs as `put --verbose` prints them.
    let mut child = command(&["wait", "-"], &replicator).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for blob in &refs {
        writeln!(stdin, "{blob} 5000 some/path").unwrap();
    }
    drop(stdin);
    let said = code_and_words(&child.wait_with_output().unwrap());
    assert_eq!(said, (Some(0), "300 blobs confirmed on route a_to_b\n".to_owned()));

    // What is at the destination without this replicator's doing is confirmed; what nobody announced is not waited for.
    let (there, bytes) = blob(1000, 10);
    send(&mut receiver(&destination).await, there, &bytes).await.unwrap();
    let (nowhere, _) = blob(1001, 10);
    let output = command(&["wait", &there.to_string(), &nowhere.to_string()], &replicator).output().unwrap();
    let (code, words) = code_and_words(&output);
    assert_eq!(code, Some(5), "{words}");
    assert!(words.contains(&nowhere.to_string()) && words.contains("not queued"), "{words}");
    assert!(!words.contains(&there.to_string()), "{words}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_refs_are_told_of_and_senseless_waits_are_refused() {
    let world = World::new();
    // Nobody listens there.
    let nowhere = [("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2")];
    let replicator = world.replicator(&nowhere, &[("a", "b")]);
    let mut operator = replication(&replicator).await;
    let refs: Vec<BlobRef> = (0..10_001).map(|seed| blob(seed, 8).0).collect();
    let token = announce_with_token(&mut operator, &refs[..10_000]).await;
    for request in [for_token(&token, 0), for_refs(&refs[..10_000], 1)] {
        let answer = wait(&mut operator, request).await;
        assert_eq!((answer.outcome(), answer.confirmed_blobs), (pb::WaitOutcome::TimedOut, Some(0)));
        assert_eq!((answer.unconfirmed_blobs, answer.unconfirmed.len()), (Some(10_000), 10_000));
        assert!(!answer.unconfirmed_cut);
        assert!(states(&answer).iter().all(|state| matches!(state, pb::BlobState::Ready | pb::BlobState::Claimed)));
    }
    // Neither queued nor to be asked for: never taken for confirmed.
    let answer = wait(&mut operator, for_refs(&refs[10_000..], 0)).await;
    assert_eq!((answer.outcome(), states(&answer)), (pb::WaitOutcome::TimedOut, vec![pb::BlobState::Unknown]));
    assert!(!answer.unconfirmed[0].routes[0].note.is_empty());

    // The caller's deadline counts, too, and is kept.
    let mut short = Request::new(for_refs(&refs[..1], 3600));
    short.set_timeout(Duration::from_secs(2));
    let answer = operator.wait_replicated(short).await.unwrap().into_inner();
    assert_eq!(answer.outcome(), pb::WaitOutcome::TimedOut);

    let refused = async |request: pb::WaitReplicatedRequest| {
        let status = operator.clone().wait_replicated(request).await.unwrap_err();
        (status.code(), reason(&status), bad_fields(&status))
    };
    let said = |code: Code, reason: &str, field: &str| {
        (code, reason.to_owned(), if field.is_empty() { Vec::new() } else { vec![field.to_owned()] })
    };
    let wrong = Code::InvalidArgument;
    assert_eq!(refused(for_refs(&refs, 0)).await, said(wrong, "TOO_MANY_ITEMS", ""));
    assert_eq!(refused(pb::WaitReplicatedRequest::default()).await, said(wrong, "INVALID_FIELD", "wait_token"));
    let both = pb::WaitReplicatedRequest { refs: vec![refs[0].to_string()], ..for_token(&token, 0) };
    assert_eq!(refused(both).await, said(wrong, "INVALID_FIELD", "wait_token"));
    let no_ref = pb::WaitReplicatedRequest { refs: vec!["x".to_owned()], ..Default::default() };
    assert_eq!(refused(no_ref).await, said(wrong, "INVALID_REF", "refs[0]"));
    assert_eq!(refused(for_refs(&refs[..1], -1)).await, said(wrong, "INVALID_FIELD", "max_wait"));
    let no_route = pb::WaitReplicatedRequest { routes: vec!["x".to_owned()], ..for_refs(&refs[..1], 0) };
    assert_eq!(refused(no_route).await, said(wrong, "UNKNOWN_ROUTE", ""));
    let no_store = pb::WaitReplicatedRequest { source_store: "x".to_owned(), ..for_refs(&refs[..1], 0) };
    assert_eq!(refused(no_store).await, said(wrong, "UNKNOWN_STORE", ""));
    let unknown = for_token("01J00000000000000000000000", 0);
    assert_eq!(refused(unknown).await, said(Code::NotFound, "WAIT_TOKEN_NOT_FOUND", ""));
    let output = command(&["wait", "--token", "x"], &replicator).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stderr));
    let output = command(&["wait", "--timeout", "0s", &refs[0].to_string()], &replicator).output().unwrap();
    assert_eq!(output.status.code(), Some(4), "{}", String::from_utf8_lossy(&output.stdout));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_survives_kill_9_and_follows_the_chain() {
    let world = World::new();
    let (source, middle, mut end) = (world.store("source"), world.store("middle"), world.store("end"));
    end.kill();
    let stores = [("a", source.url()), ("b", middle.url()), ("c", end.url())];
    let stores: Vec<(&str, &str)> = stores.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let mut replicator = world.replicator(&stores, &[("a", "b"), ("b", "c")]);
    let mut refs = Vec::new();
    for seed in 0..50 {
        let (blob, bytes) = blob(seed, 3_000);
        send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
        refs.push(blob);
    }
    let mut operator = replication(&replicator).await;
    let token = announce_with_token(&mut operator, &refs).await;
    let first = pb::WaitReplicatedRequest { routes: vec!["a_to_b".to_owned()], ..for_token(&token, 100) };
    assert_eq!(wait(&mut operator, first).await.outcome(), pb::WaitOutcome::Confirmed);
    let answer = wait(&mut operator, for_token(&token, 0)).await;
    assert_eq!((answer.outcome(), answer.unconfirmed_blobs), (pb::WaitOutcome::TimedOut, Some(50)));
    assert!(answer.unconfirmed.iter().all(|blob| blob.routes.len() == 1 && blob.routes[0].route == "b_to_c"));
    replicator.kill();
    replicator.again();
    let mut operator = replication(&replicator).await;
    let answer = wait(&mut operator, for_token(&token, 0)).await;
    assert_eq!(answer.unconfirmed_blobs, Some(50), "the first hop is remembered, the second is not forgotten");

    // A command that waits goes on through a restart, and until the last store is back.
    let mut child = command(&["wait", "--token", &token], &replicator)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    stderr.read_line(&mut line).unwrap();
    assert!(line.contains("0 of 50"), "{line}");
    replicator.signal(rustix::process::Signal::TERM);
    assert!(replicator.wait().success());
    replicator.again();
    end.again();
    let said = code_and_words(&child.wait_with_output().unwrap());
    let mut complaint = String::new();
    stderr.read_to_string(&mut complaint).unwrap();
    assert_eq!(said, (Some(0), "50 blobs confirmed on 2 routes\n".to_owned()), "{complaint}");
    assert_eq!(held(&mut reader(&end).await, &refs).await, 50);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_blobs_story_is_told_from_the_announcement_to_the_end() {
    let world = World::new();
    let (source, mut destination) = (world.store("source"), world.store("destination"));
    let replicator = {
        let (file, data) = (world.path("story.toml"), world.path("story-data"));
        let config = format!(
            "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n\
             full_sync = {{ on_start = \"off\" }}\n[server]\ndata_dir = \"{}\"\n\
             [retry]\ninitial = \"20ms\"\nmax = \"10s\"\nmissing_patience = \"300ms\"\n",
            source.url(),
            destination.url(),
            data.to_str().unwrap()
        );
        std::fs::write(&file, config).unwrap();
        let args = ["serve", "--config", file.to_str().unwrap(), "--set", "server.listen={}"];
        Server::start(program(), &args, 4, &world.path("story.log"))
    };
    let operator = replication(&replicator).await;
    let (blob, bytes) = blob(1, 4_000);
    let told = async |skip_stores: bool| {
        let request = pb::ExplainBlobRequest { r#ref: blob.to_string(), skip_stores };
        let answer = operator.clone().explain_blob(request).await.unwrap().into_inner();
        assert_eq!((answer.r#ref.as_str(), answer.routes.len()), (blob.to_string().as_str(), 1));
        assert!(!answer.summary.is_empty());
        answer.routes.into_iter().next().unwrap()
    };
    let story = told(false).await;
    assert_eq!((story.state(), story.entry.is_none()), (pb::BlobState::NotQueued, true));
    assert_eq!(story.at_source.unwrap().holding(), pb::Holding::No);

    // Missing at the source: retrying, then parked; a wait ends then.
    let trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let item = pb::EnqueueItem { r#ref: blob.to_string(), traceparent: trace.to_owned(), ..Default::default() };
    let request = pb::EnqueueBlobsRequest { items: vec![item], ..Default::default() };
    operator.clone().enqueue_blobs(request).await.unwrap();
    until("it is retrying", async || (told(true).await.state() == pb::BlobState::Retrying).then_some(())).await;
    let answer = wait(&mut operator.clone(), for_refs(&[blob], 100)).await;
    assert_eq!((answer.outcome(), states(&answer)), (pb::WaitOutcome::GivenUp, vec![pb::BlobState::Parked]));
    assert_eq!(answer.unconfirmed[0].routes[0].fault.as_ref().unwrap().kind(), pb::FaultKind::MissingAtSource);
    let story = told(false).await;
    let entry = story.entry.unwrap();
    assert_eq!(entry.traceparent, trace);
    let failures = entry.failures.unwrap();
    assert!(failures > 1, "{failures}");
    assert_eq!(entry.visited_stores, ["a"]);
    assert_eq!(entry.last_fault.unwrap().kind(), pb::FaultKind::MissingAtSource);
    assert_eq!(story.at_destination.unwrap().holding(), pb::Holding::No);
    let output = command(&["explain", &blob.to_string()], &replicator).output().unwrap();
    let (code, words) = code_and_words(&output);
    assert_eq!(code, Some(0));
    assert!(words.contains(&format!("given up: it failed {failures} times")) && words.contains(trace), "{words}");

    // Discarded, and that is remembered.
    let selection = Some(pb::FailureSelection { all: true, ..Default::default() });
    let discard = pb::DiscardFailuresRequest { selection, ..Default::default() };
    operator.clone().discard_failures(discard).await.unwrap();
    let story = told(false).await;
    assert_eq!((story.state(), story.entry.is_none()), (pb::BlobState::Discarded, true));
    let completion = story.completion.unwrap();
    assert_eq!(completion.kind(), pb::CompletionKind::DiscardedByOperator);
    // When it was announced, and in which trace, is remembered with it.
    assert_eq!((completion.enqueue_time, &*completion.traceparent), (entry.enqueue_time, trace));
    assert_eq!(completion.cause(), pb::FaultKind::MissingAtSource);

    // Confirmed, and that outlives the destination: what it holds now is unknown.
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    announce(&mut operator.clone(), "a", &[blob]).await.unwrap();
    let answer = wait(&mut operator.clone(), for_refs(&[blob], 100)).await;
    assert_eq!(answer.outcome(), pb::WaitOutcome::Confirmed);
    let story = told(false).await;
    let completion = story.completion.clone().unwrap();
    assert_eq!((story.state(), completion.kind()), (pb::BlobState::Confirmed, pb::CompletionKind::Copied));
    assert_eq!((completion.size_bytes, story.at_destination.unwrap().size_bytes), (Some(4_000), Some(4_000)));
    // A ref's beginning will do for people.
    let prefix = &blob.to_string()[.."sha256-".len() + 8];
    for shorter in ["explain", "explain --no-stores"] {
        let arguments: Vec<&str> = shorter.split(' ').chain([prefix]).collect();
        let (code, words) = code_and_words(&command(&arguments, &replicator).output().unwrap());
        assert!(code == Some(0) && words.starts_with(&format!("{blob}: confirmed")), "{words}");
    }
    destination.kill();
    let story = told(false).await;
    assert_eq!(story.state(), pb::BlobState::Confirmed);
    let holding = story.at_destination.unwrap();
    assert_eq!(holding.holding(), pb::Holding::Unspecified);
    assert!(!holding.note.is_empty());
    let json = command(&["explain", "--json", "--no-stores", &blob.to_string()], &replicator).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["routes"][0]["state"], "BLOB_STATE_CONFIRMED");
    let wrong = command(&["explain", "x"], &replicator).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}
