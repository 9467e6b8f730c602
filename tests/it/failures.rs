//! What failed, in an operator's hands: listed, discarded, retried.

use crate::harness::{
    World, announce, bad_fields, blob, fetch, held, program, queued, reader, reason, receiver, replication, route,
    send, until,
};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(program()).arg("failures").args(arguments).output().unwrap()
}

/// What the command prints on stdout; it must end with this exit code.
fn said(arguments: &[&str], code: i32) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {stderr}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parked_blobs_are_listed_discarded_and_retried() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let stores = format!(
        "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n",
        source.url(),
        destination.url()
    );
    // The harness has a table `retry` of its own.
    let mut replicator = {
        let file = world.path("failing.toml");
        let data = world.path("failing-data");
        let config = format!(
            "{stores}[server]\ndata_dir = \"{}\"\n[retry]\ninitial = \"20ms\"\nmax = \"50ms\"\nmissing_patience = \"1ms\"\n",
            data.to_str().unwrap()
        );
        std::fs::write(&file, config).unwrap();
        let args = ["serve", "--config", file.to_str().unwrap(), "--set", "server.listen={}"];
        crate::harness::Server::start(program(), &args, 4, &world.path("failing.log"))
    };
    let mut operator = replication(&replicator).await;
    let blobs: Vec<(BlobRef, Vec<u8>)> = (0..5).map(|seed| blob(seed, 3_000)).collect();
    let refs: Vec<BlobRef> = blobs.iter().map(|(blob, _)| *blob).collect();
    announce(&mut operator, "a", &refs).await.unwrap();
    until("all are parked", async || {
        let parked = route(&mut operator.clone()).await.queued.unwrap().fresh.unwrap().parked.unwrap().entries;
        (parked == Some(5)).then_some(())
    })
    .await;

    // Listed, in pages and grouped.
    let request = pb::ListFailuresRequest { page_size: 3, ..Default::default() };
    let page = operator.list_failures(request.clone()).await.unwrap().into_inner();
    assert_eq!((page.failures.len(), page.groups.len(), page.groups_complete), (3, 1, true));
    assert_eq!((page.retrying_entries, page.parked_entries), (Some(0), Some(5)));
    assert!(page.groups[0].summary.starts_with("5 x missing_at_source"), "{}", page.groups[0].summary);
    assert_eq!(page.groups[0].parked_entries, Some(5));
    let first = &page.failures[0];
    assert_eq!((first.state(), first.failures), (pb::FailureState::Parked, Some(2)));
    assert_eq!(first.cause.as_ref().unwrap().kind(), pb::FaultKind::MissingAtSource);
    let rest = pb::ListFailuresRequest { page_token: page.next_page_token, ..request };
    let rest = operator.list_failures(rest).await.unwrap().into_inner();
    assert_eq!((rest.failures.len(), rest.next_page_token.as_str()), (2, ""));

    // Senseless requests touch nothing.
    let nothing = operator.discard_failures(pb::DiscardFailuresRequest::default()).await.unwrap_err();
    assert_eq!((reason(&nothing).as_str(), bad_fields(&nothing)), ("INVALID_FIELD", vec!["selection".to_owned()]));
    let token = pb::ListFailuresRequest { page_token: "x".to_owned(), ..Default::default() };
    let token = operator.list_failures(token).await.unwrap_err();
    assert_eq!(bad_fields(&token), ["page_token"]);

    // By the command: one is discarded, the others wait for their blobs.
    let at = replicator.url();
    let at = ["--replicator", at.as_str()];
    let gone = refs[0].to_string();
    let listed = said(&["list", at[0], at[1]], 0);
    assert!(listed.contains("0 retrying, 5 parked") && listed.contains(&gone), "{listed}");
    assert_eq!(said(&["discard", "--all", "--count-only", at[0], at[1]], 0), "5 entries match\n");
    assert_eq!(said(&["discard", "--ref", &gone, at[0], at[1]], 0), "1 entry matches, 1 discarded\n");
    assert_eq!(said(&["discard", "--ref", &gone, at[0], at[1]], 4), "0 entries match, 0 discarded\n");
    assert_eq!(said(&["retry", "--kind", "short_read", at[0], at[1]], 4), "0 entries match, 0 due now\n");
    let status = route(&mut operator).await;
    assert_eq!((queued(&status), status.all_time.unwrap().discarded_blobs), (4, Some(1)));
    assert!(replicator.said().contains("discarded"), "a discard is logged");

    for (blob, bytes) in &blobs {
        send(&mut receiver(&source).await, *blob, bytes).await.unwrap();
    }
    // Parked is parked, also after a restart.
    replicator.kill();
    replicator.again();
    let mut operator = replication(&replicator).await;
    assert_eq!(queued(&route(&mut operator).await), 4);
    let json = said(&["retry", "a_to_b", "--all", "--json", at[0], at[1]], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((json["matchedEntries"].as_str(), json["retriedEntries"].as_str()), (Some("4"), Some("4")));
    until("the rest is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    let mut at_destination = reader(&destination).await;
    assert_eq!(held(&mut at_destination, &refs).await, 4);
    assert!(fetch(&mut at_destination, refs[1]).await.unwrap() == blobs[1].1);
    assert!(fetch(&mut at_destination, refs[0]).await.is_err());
}
