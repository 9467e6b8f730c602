//! What surrounds the process hurts nobody: here, whatever becomes of standard error.

use crate::harness::{World, announce, blob, queued, receiver, replication, route, send, until};
use rustix::process::Signal;
use std::fs::File;
use std::io::{PipeReader, PipeWriter, pipe};
use std::process::Stdio;

/// A way to lose standard error; what is held for as long as it is to last.
fn stderrs() -> Vec<(&'static str, Stdio, Option<PipeReader>)> {
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (reader, gone): (PipeReader, PipeWriter) = pipe().unwrap();
    drop(reader);
    let (unread, stuck) = pipe().unwrap();
    rustix::pipe::fcntl_setpipe_size(&stuck, 4096).unwrap();
    vec![
        ("a full disk", full.into(), None),
        ("a reader that went away", gone.into(), None),
        ("a pipe that nobody reads", stuck.into(), Some(unread)),
    ]
}

/// Copies, answers and the end go on, and what is lost is told.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_nobody_takes_holds_up_nobody() {
    for (name, stderr, held) in stderrs() {
        let world = World::new();
        let mut stores = [world.store("source"), world.store("destination")];
        let (source, destination) = (stores[0].url(), stores[1].url());
        let stores_of =
            [("a", source), ("b", destination)].map(|(name, url)| format!("[stores.{name}]\nendpoint = \"{url}\"\n"));
        let config =
            format!("{}[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n[log]\nlevel = \"trace\"\n", stores_of.concat());
        let mut replicator = world.replicator_with("replicator", &config);
        replicator.again_with_stderr(stderr);
        let operator = replication(&replicator).await;
        let mut refs = Vec::new();
        for seed in 0..500 {
            let (blob, bytes) = blob(seed, 1_000);
            send(&mut receiver(&stores[0]).await, blob, &bytes).await.unwrap();
            refs.push(blob);
        }
        announce(&mut operator.clone(), "a", &refs).await.unwrap();
        until(name, async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
        if held.is_none() {
            let status = operator.clone().status(blobferry::v1::StatusRequest::default()).await.unwrap();
            let status = status.into_inner().status.unwrap();
            assert!(status.log_lines_lost() > 0, "{name}");
            assert!(status.summary.contains("log line"), "{name}: {}", status.summary);
        }
        replicator.signal(Signal::TERM);
        assert_eq!(replicator.wait().code(), Some(0), "{name}");
        drop(held);
        for store in &mut stores {
            store.signal(Signal::TERM);
            assert_eq!(store.wait().code(), Some(0), "{name}");
        }
    }
}

/// A low soft limit of open files, and more idle clients than it allows: the hard limit counts.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_clients_take_nobodys_descriptors() {
    if std::process::Command::new("prlimit").arg("--version").output().is_err() {
        eprintln!("skipped: prlimit is not there");
        return;
    }
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator_under(
        &["prlimit", "--nofile=256:4096"],
        &[("a", &source.url()), ("b", &destination.url())],
        &[("a", "b")],
    );
    let mut idle = Vec::new();
    for _ in 0..240 {
        idle.push(tokio::net::TcpStream::connect(&replicator.address).await.unwrap());
    }
    let operator = replication(&replicator).await;
    let (blob, bytes) = blob(1, 1_000);
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();
    announce(&mut operator.clone(), "a", &[blob]).await.unwrap();
    until("it is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    assert!(replicator.said().contains("\"limit\":4096"), "{}", replicator.said());
    drop(idle);
}

#[test]
fn a_store_whose_log_nobody_takes_serves_and_ends() {
    for (name, stderr, held) in stderrs() {
        let world = World::new();
        let mut store = world.store("source");
        store.again_with_stderr(stderr);
        let (blob, bytes) = blob(1, 1_000);
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async { send(&mut receiver(&store).await, blob, &bytes).await.unwrap() });
        store.signal(Signal::TERM);
        assert_eq!(store.wait().code(), Some(0), "{name}");
        drop(held);
    }
}
