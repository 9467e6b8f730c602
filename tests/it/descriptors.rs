//! Too few files for a process: what is beyond them is refused, nothing is lost, and all goes on when there are some again.

use crate::harness::{
    Replication, Server, World, announce, blob, fetch, program, queued, reader, reason, receiver, replication, route,
    send, until,
};
use crate::http::page;
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use std::process::{Command, Output};
use std::time::Instant;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

/// Fewer than are open: there are none to be had.
const NONE: u64 = 4;

fn has_prlimit() -> bool {
    let found = Command::new("prlimit").arg("--version").output().is_ok();
    if !found {
        eprintln!("skipped: prlimit is not there");
    }
    found
}

/// Lets a running server have so many files; `None`: as many as it may.
fn allow(server: &Server, files: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(server.pid()).unwrap()).unwrap();
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(Some(pid), Resource::Nofile, Rlimit { current: files.or(maximum), maximum }).unwrap();
}

/// How many files it has open.
fn open_files(server: &Server) -> u64 {
    std::fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap().count() as u64
}

fn health_of(server: &Server) -> Output {
    Command::new(program()).args(["health", "--url", &server.url()]).output().unwrap()
}

/// Asks a server for its health on a connection of its own.
async fn connected(server: &Server) -> HealthClient<Channel> {
    let channel = Channel::from_shared(server.url()).unwrap().connect().await.unwrap();
    let mut client = HealthClient::new(channel);
    assert_eq!(health(&mut client, "").await, ServingStatus::Serving);
    client
}

async fn health(client: &mut HealthClient<Channel>, service: &str) -> ServingStatus {
    let request = HealthCheckRequest { service: service.to_owned() };
    client.check(request).await.unwrap().into_inner().status()
}

/// A number in the last line of the log that has it.
fn logged(server: &Server, field: &str) -> usize {
    let said = server.said();
    let mut lines = said.lines().rev().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = lines.find_map(|line| line[field].as_u64()).unwrap();
    usize::try_from(found).unwrap()
}

/// Takes all connections that a server allows, and one more.
async fn one_too_many(server: &Server) {
    let most = logged(server, "connections");
    assert!((8..64).contains(&most), "{most}");
    let mut held = Vec::new();
    for _ in 0..most {
        held.push(connected(server).await);
    }
    for _ in 0..3 {
        let refused = health_of(server);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(1), "{said}");
        assert!(said.contains("RESOURCE_EXHAUSTED") && said.contains("as many connections as are served"), "{said}");
    }
    let metrics = page(server, "/metrics").await;
    assert!(metrics.contains(&format!("\nblobferry_grpc_connections {most}\n")), "{metrics}");
    // A client may have tried more than once.
    let refused = metrics.lines().find_map(|line| line.strip_prefix("blobferry_grpc_refused_connections_total "));
    assert!(refused.unwrap().parse::<u64>().unwrap() >= 3, "{metrics}");
    // Those that were let in are served.
    assert_eq!(health(&mut held[0], "").await, ServingStatus::Serving);
    held.pop();
    until("there is room for one", async || health_of(server).status.success().then_some(())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_beyond_a_low_hard_limit_is_told_so_at_once() {
    if !has_prlimit() {
        return;
    }
    const LOW: [&str; 2] = ["prlimit", "--nofile=256:256"];
    let world = World::new();
    let (a, b) = (world.store("a"), world.store_under(&LOW, "b", &[]));
    one_too_many(&b).await;
    let replicator = world.replicator_under(&LOW, &[("a", &a.url()), ("b", &b.url())], &[("a", "b")]);
    one_too_many(&replicator).await;
    // It has files of its own all the same.
    let operator = replication(&replicator).await;
    let (blob, bytes) = blob(1, 200_000);
    send(&mut receiver(&a).await, blob, &bytes).await.unwrap();
    announce(&mut operator.clone(), "a", &[blob]).await.unwrap();
    until("it is copied", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
}

/// How often a server tried to accept a connection in vain, by its log.
fn vain_accepts(server: &Server) -> u64 {
    let said = server.said();
    let lines = said.lines().filter(|line| line.contains("could not be accepted"));
    let lines = lines.map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    lines.map(|line| 1 + line["suppressed"].as_u64().unwrap_or(0)).sum()
}

async fn status(operator: &Replication) -> pb::ReplicatorStatus {
    let answer = operator.clone().status(pb::StatusRequest::default()).await.unwrap();
    answer.into_inner().status.unwrap()
}

/// Announces refs, a thousand at a time, until that is refused. Gives those that were acked.
async fn until_refused(operator: &mut Replication) -> (Vec<BlobRef>, tonic::Status) {
    let mut acked = Vec::new();
    for part in 0..400 {
        let blobs: Vec<BlobRef> = (part * 1000..(part + 1) * 1000).map(|seed| blob(seed, 8).0).collect();
        match announce(operator, "", &blobs).await {
            Ok(_) => acked.extend(blobs),
            Err(refused) => return (acked, refused),
        }
    }
    panic!("{} announcements needed no file", acked.len());
}

/// Lets a server have a few files more than it has open, and takes connections until one is refused. Gives those that were
/// let in.
async fn refused_when_full(server: &Server) -> Vec<HealthClient<Channel>> {
    allow(server, Some(open_files(server) + 8));
    let held = tokio::sync::Mutex::new(Vec::new());
    until("who comes then is told why", async || {
        let said = health_of(server).stderr;
        let said = String::from_utf8_lossy(&said);
        if said.is_empty() {
            let channel = Channel::from_shared(server.url()).unwrap().connect().await.unwrap();
            let mut client = HealthClient::new(channel);
            // Let in or not, it takes what it gets. tonic's own channel may wait for ever for the answer to a call that it took in
            // while its connection ended.
            let asked = client.check(HealthCheckRequest::default());
            tokio::time::timeout(std::time::Duration::from_secs(5), asked).await.ok();
            held.lock().await.push(client);
        }
        (said.contains("RESOURCE_EXHAUSTED") && said.contains("the limit of open files")).then_some(())
    })
    .await;
    let held = held.into_inner();
    assert!(held.len() < 64, "few more are let in");
    held
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replicator_without_files_refuses_and_goes_on_when_there_are_some() {
    let world = World::new();
    // A small reserve makes small logs, so that new files are soon needed. There are no stores: everything stays queued.
    let config = "[stores.a]\nendpoint = \"http://127.0.0.1:1\"\n[stores.b]\nendpoint = \"http://127.0.0.1:2\"\n\
        [routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n[queue]\nreserve_bytes = \"16MiB\"\n";
    let mut replicator = world.replicator_with("replicator", config);
    let mut operator = replication(&replicator).await;
    // It is let in before there are none.
    assert_ne!(status(&operator).await.state(), pb::ReplicatorState::NotAccepting);
    let held = refused_when_full(&replicator).await;

    allow(&replicator, Some(NONE));
    let (without, mut waiting) = (Instant::now(), Vec::new());
    for _ in 0..5 {
        waiting.push(TcpStream::connect(&replicator.address).await.unwrap());
    }
    let (acked, refused) = until_refused(&mut operator).await;
    assert_eq!((refused.code(), &*reason(&refused)), (tonic::Code::Unavailable, "QUEUE_UNAVAILABLE"), "{refused:?}");
    let folder = world.path("replicator-data").join("queue").display().to_string();
    until("the status says why, and where", async || {
        let said = status(&operator).await;
        assert_eq!(said.state(), pb::ReplicatorState::NotAccepting, "{}", said.summary);
        let reason = said.queue.unwrap().reason;
        (reason.contains(&folder) && reason.contains("Too many open files")).then_some(())
    })
    .await;
    // What was acked is known, though nothing can be written.
    assert!(queued(&route(&mut operator).await) >= acked.len() as u64);
    let most = 20 + 10 * (1 + without.elapsed().as_secs());
    assert!((1..most).contains(&vain_accepts(&replicator)), "{} of {most}", vain_accepts(&replicator));

    allow(&replicator, None);
    drop((held, waiting));
    until("it accepts again", async || announce(&mut operator.clone(), "", &[blob(1 << 40, 8).0]).await.ok()).await;
    until("and lets others in", async || health_of(&replicator).status.success().then_some(())).await;
    assert!(replicator.ended().is_none(), "by itself");
    // Not even a kill shows that anything is missing.
    replicator.kill();
    replicator.again();
    let mut operator = replication(&replicator).await;
    for part in acked.chunks(10_000) {
        for result in announce(&mut operator, "", part).await.unwrap().results {
            assert_ne!(result.routes[0].outcome(), pb::PushOutcome::Added, "{} was acked and is lost", result.r#ref);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_without_files_refuses_and_goes_on_when_there_are_some() {
    const SMALL: usize = 60_000;
    let world = World::new();
    let mut store = world.store_under(&[], "store", &[]);
    let (mut client, probe) = (receiver(&store).await, connected(&store).await);
    let mut fetching = reader(&store).await;
    let (first, bytes) = blob(1, SMALL);
    send(&mut client, first, &bytes).await.unwrap();
    allow(&store, Some(NONE));
    // A large one has a file of its own.
    let (large, large_bytes) = blob(2, 300_000);
    let refused = send(&mut client, large, &large_bytes).await.unwrap_err();
    assert_eq!(&*reason(&refused), "STORE_FAILED", "{refused:?}");
    assert!(refused.message().contains("Too many open files"), "{refused:?}");
    // Small ones need one now and then.
    let (mut acked, mut failed) = (vec![first], None);
    for part in 0..100 {
        let mut sending = JoinSet::new();
        for seed in part * 16 + 10..(part + 1) * 16 + 10 {
            let mut client = client.clone();
            sending.spawn(async move {
                let (blob, bytes) = blob(seed, SMALL);
                send(&mut client, blob, &bytes).await.map(|_| blob)
            });
        }
        for sent in sending.join_all().await {
            match sent {
                Ok(blob) => acked.push(blob),
                Err(error) => failed = Some(error),
            }
        }
        if failed.is_some() {
            break;
        }
    }
    let failed = failed.expect("its index needs a new file after so many bytes");
    assert_eq!(&*reason(&failed), "STORE_FAILED", "{failed:?}");
    until("it says that it takes nothing", async || {
        let said = health(&mut probe.clone(), "blobferry.v1.BlobReceiverService").await;
        (said == ServingStatus::NotServing).then_some(())
    })
    .await;
    // What it has it gives.
    assert_eq!(fetch(&mut fetching, first).await.unwrap(), bytes);
    // Who comes now finds no file, not even the spare one. When there are a few again, the last is for refusals nevertheless.
    let waiting = TcpStream::connect(&store.address).await.unwrap();
    until("the spare one is lost", async || store.said().contains("could not be accepted").then_some(())).await;
    drop((refused_when_full(&store).await, waiting));

    allow(&store, None);
    until("it takes blobs again", async || send(&mut client.clone(), large, &large_bytes).await.ok()).await;
    until("and those that failed", async || send(&mut client.clone(), blob(5, SMALL).0, &blob(5, SMALL).1).await.ok())
        .await;
    until("and says so", async || {
        let said = health(&mut probe.clone(), "blobferry.v1.BlobReceiverService").await;
        (said == ServingStatus::Serving).then_some(())
    })
    .await;
    assert!(store.ended().is_none(), "by itself");
    store.kill();
    store.again();
    let mut fetching = reader(&store).await;
    for blob in acked {
        let bytes = fetch(&mut fetching, blob).await.unwrap();
        assert_eq!(blob.function().ref_of(&bytes), blob);
    }
}
