//! A queue on a disk that went wrong, with the real program.

use crate::harness::{
    Replication, Server, World, announce, blob, held, queued, reader, receiver, replication, route, send, until,
};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

fn config(a: &str, b: &str, full_sync: &str) -> String {
    format!(
        "[stores.a]\nendpoint = \"{a}\"\n[stores.b]\nendpoint = \"{b}\"\n\
         [routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\nfull_sync = {{ on_start = \"{full_sync}\" }}\n"
    )
}

async fn status(of: &Replication) -> pb::ReplicatorStatus {
    let answer = of.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner();
    answer.status.unwrap()
}

/// Blobs in store `a`.
async fn fill(a: &Server, seeds: std::ops::Range<u64>) -> Vec<BlobRef> {
    let mut to = receiver(a).await;
    let mut blobs = Vec::new();
    for seed in seeds {
        let (blob, bytes) = blob(seed, 500);
        send(&mut to, blob, &bytes).await.unwrap();
        blobs.push(blob);
    }
    blobs
}

fn files(db: &Path, part: &str) -> Vec<PathBuf> {
    let files = fs::read_dir(db).unwrap().map(|file| file.unwrap().path());
    files.filter(|path| path.file_name().unwrap().to_str().unwrap().contains(part)).collect()
}

/// A key of the state, as it stands in a table.
const STATE_KEY: &[u8] = b"replicator/id";

/// Turns bytes in the middle of a file over.
fn damage(path: &Path) {
    damage_at(path, fs::metadata(path).unwrap().len() / 2);
}

fn damage_at(path: &Path, at: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut bytes = [0; 24];
    let count = file.read_at(&mut bytes, at).unwrap();
    bytes.iter_mut().for_each(|byte| *byte = !*byte);
    file.write_all_at(&bytes[..count], at).unwrap();
}

/// Damages the queue while half of the blobs are announced and none is copied, and looks on as it mends itself.
async fn mends_itself(part: &str, kind: pb::QueueIncidentKind) {
    let world = World::new();
    let (a, mut b) = (world.store("a"), world.store("b"));
    let config = config(&a.url(), &b.url(), "if_needed");
    let mut server = world.replicator_with("replicator", &config);
    let operator = replication(&server).await;
    // The first full sync of the new queue is over before anything is there.
    until("the first full sync has ended", async || {
        status(&operator).await.routes[0].needed_sync.is_none().then_some(())
    })
    .await;
    b.kill();
    let blobs = fill(&a, 0..60).await;
    let mut announcing = replication(&server).await;
    for blob in &blobs {
        announce(&mut announcing, "", &[*blob]).await.unwrap();
    }
    server.kill();
    let db = world.path("replicator-data").join("queue").join("db");
    let chosen = files(&db, part);
    assert!(!chosen.is_empty(), "{part}");
    chosen.iter().for_each(|file| damage(file));

    server.again();
    let operator = replication(&server).await;
    let degraded = status(&operator).await;
    let queue = degraded.queue.clone().unwrap();
    assert_eq!(degraded.state(), pb::ReplicatorState::Degraded, "{}", degraded.summary);
    assert_eq!(queue.state(), pb::QueueState::Degraded);
    assert_eq!(degraded.routes[0].state(), pb::RouteState::Degraded);
    assert_eq!((queue.incidents.len(), queue.incidents[0].kind()), (1, kind));
    assert!(Path::new(&queue.incidents[0].kept_folder).join("CURRENT").exists());
    assert!(degraded.routes[0].needed_sync.is_some());
    // It accepts all the while.
    let more = fill(&a, 60..61).await;
    announce(&mut replication(&server).await, "", &more).await.unwrap();
    // Not even a kill makes it forget.
    server.kill();
    server.again();
    let operator = replication(&server).await;
    assert_eq!(status(&operator).await.state(), pb::ReplicatorState::Degraded);

    b.again();
    // Operators need not wait for the next attempt.
    operator.clone().trigger_full_sync(pb::TriggerFullSyncRequest::default()).await.unwrap();
    let all: Vec<_> = blobs.iter().chain(&more).copied().collect();
    until("every blob is at the destination", async || {
        (held(&mut reader(&b).await, &all).await == all.len()).then_some(())
    })
    .await;
    until("nothing is missing any more", async || {
        let status = status(&operator).await;
        let queue = status.queue.clone().unwrap();
        (queue.incidents.is_empty() && queue.state() == pb::QueueState::Ok && status.routes[0].needed_sync.is_none())
            .then_some(())
    })
    .await;
    assert_eq!(queued(&route(&mut replication(&server).await).await), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_log_is_cut_back_shown_and_made_up_for() {
    mends_itself(".log", pb::QueueIncidentKind::CutBack).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_queue_that_cannot_be_read_is_begun_anew_shown_and_made_up_for() {
    mends_itself("MANIFEST-", pb::QueueIncidentKind::BegunAnew).await;
}

/// A queue that opens, but cannot be read where the start reads it: the start failed, and the next, and so on.
#[tokio::test(flavor = "multi_thread")]
async fn damage_that_a_start_meets_is_mended_by_opening_once_more() {
    let world = World::new();
    let (a, b) = (world.store("a"), world.store("b"));
    let mut server = world.replicator_with("replicator", &config(&a.url(), &b.url(), "off"));
    server.kill();
    // What was in the log is put into tables, each family into its own.
    server.again();
    server.kill();
    let tables = files(&world.path("replicator-data").join("queue").join("db"), ".sst");
    let holds = |table: &&PathBuf| fs::read(table).unwrap().windows(STATE_KEY.len()).any(|bytes| bytes == STATE_KEY);
    let of_state: Vec<_> = tables.iter().filter(holds).collect();
    assert!(!of_state.is_empty(), "{tables:?}");
    for table in of_state {
        // The rows come first; what opening reads, last.
        damage_at(table, 0);
    }

    server.again();
    let status = status(&replication(&server).await).await;
    assert!(server.said().contains("opened once more"), "{}", server.said());
    assert_eq!(status.state(), pb::ReplicatorState::Degraded, "{}", status.summary);
    assert_eq!(status.queue.unwrap().incidents.len(), 1);
    let blobs = fill(&a, 0..1).await;
    announce(&mut replication(&server).await, "", &blobs).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_folder_is_refused_and_harms_nothing() {
    let world = World::new();
    let server = world.replicator_with("replicator", &config("http://127.0.0.1:1", "http://127.0.0.1:2", "off"));
    let file = world.path("replicator.toml");
    let second = Command::new(crate::harness::program())
        .args(["serve", "--config", file.to_str().unwrap(), "--set", "server.listen=127.0.0.1:0"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert_eq!(second.status.code(), Some(1), "{said}");
    assert!(said.contains("is in use by another process"), "{said}");
    let (blob, _) = blob(1, 1);
    announce(&mut replication(&server).await, "", &[blob]).await.unwrap();
    let queue = fs::read_dir(world.path("replicator-data").join("queue")).unwrap();
    let mut names: Vec<_> = queue.map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["db", "lock", "made"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn syncs_are_listed_and_cancelled_by_command() {
    let world = World::new();
    let (a, b) = (world.store("a"), world.store("b"));
    let server = world.replicator_with("replicator", &config(&a.url(), &b.url(), "always"));
    let run = |args: &[&str]| {
        let output = Command::new(crate::harness::program())
            .args(["sync", "--replicator", &server.url()])
            .args(args)
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    until("the sync of the start has ended", async || {
        let (code, said) = run(&["--list"]);
        (code == Some(0) && said.contains("sync-1") && said.contains("completed")).then_some(())
    })
    .await;
    let (code, said) = run(&["--cancel", "sync-1"]);
    assert_eq!(code, Some(4), "{said}");
    assert_eq!(run(&["--cancel", "sync-77"]).0, Some(4));
    let (code, said) = run(&["--list", "a_to_b", "--json"]);
    assert_eq!(code, Some(0));
    assert!(said.contains("\"fullSyncs\""), "{said}");
}
