//! Clients and peers that are not this code: Python's grpcio with stubs from `proto/`, and `buf curl` by reflection.

use crate::harness::{Server, World, assert_conforms, blob, receiver, send, tool};
use std::process::Command;

fn python(arguments: &[&str]) -> bool {
    let Some(python) = tool("BLOBFERRY_PYTHON") else { return false };
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/python/drive.py");
    let output = Command::new(python).arg(script).args(arguments).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ok");
    true
}

/// The main job, driven by Python throughout: the destination is down at first.
fn ferry_with_python(world: &World, source: &Server, mut destination: Server) {
    destination.kill();
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    python(&["refused", &replicator.address]);
    python(&["announce", &source.address, &replicator.address]);
    python(&["ready", &replicator.address]);
    destination.again();
    python(&["arrived", &replicator.address, &destination.address]);
}

#[test]
fn python_ferries_between_disk_stores() {
    let world = World::new();
    if tool("BLOBFERRY_PYTHON").is_some() {
        ferry_with_python(&world, &world.store("source"), world.store("destination"));
    }
}

#[test]
fn the_python_store_is_a_source() {
    let world = World::new();
    if let Some(source) = world.python_store("source") {
        ferry_with_python(&world, &source, world.store("destination"));
    }
}

#[test]
fn the_python_store_is_a_destination() {
    let world = World::new();
    if let Some(destination) = world.python_store("destination") {
        ferry_with_python(&world, &world.store("source"), destination);
    }
}

#[test]
fn the_stores_of_the_examples_and_the_disk_store_conform() {
    let world = World::new();
    let stores =
        [Some(world.store("disk")), world.python_store("python"), world.go_store("go", &[]), world.rust_store("rust")];
    stores.iter().flatten().for_each(assert_conforms);
}

#[test]
fn the_python_producer_writes_and_announces() {
    let world = World::new();
    let Some(python) = tool("BLOBFERRY_PYTHON") else { return };
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let file = world.path("hello.txt");
    std::fs::write(&file, "hello").unwrap();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python/producer.py");
    let output = Command::new(python)
        .args([script, "--store", &source.address, "--replicator", &replicator.address, "--wait", "60"])
        .arg(&file)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 5"), "{said}");
    assert!(said.contains("a_to_b") && said.contains("1 blob confirmed on route a_to_b"), "{said}");
}

fn curl(server: &Server, method: &str, body: &str) -> Option<(bool, String)> {
    let buf = tool("BLOBFERRY_BUF")?;
    let output = Command::new(buf)
        .args(["curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", body])
        .arg(format!("{}/blobferry.v1.{method}", server.url()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    Some((output.status.success(), said))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn buf_curl_speaks_by_reflection() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let (blob, bytes) = blob(1, 10);
    send(&mut receiver(&source).await, blob, &bytes).await.unwrap();

    let body = r#"{"header": {"ref": "sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824", "sizeBytes": "5"}}
        {"chunk": "aGVsbG8="}"#;
    let Some((ok, said)) = curl(&source, "BlobReceiverService/ReceiveBlob", body) else { return };
    assert!(ok && said.contains("DISPOSITION_STORED") && said.contains("\"sizeBytes\": \"5\""), "{said}");
    let (ok, said) = curl(&replicator, "BlobReceiverService/ReceiveBlob", body).unwrap();
    assert!(ok && said.contains("DISPOSITION_ENQUEUED") && said.contains("a_to_b"), "{said}");
    let body = format!("{{\"items\": [{{\"ref\": \"{blob}\", \"sizeBytes\": \"10\"}}]}}");
    let (ok, said) = curl(&replicator, "ReplicationService/EnqueueBlobs", &body).unwrap();
    assert!(ok && said.contains("PUSH_OUTCOME_ADDED"), "{said}");
    let body = format!("{{\"refs\": [\"{blob}\"], \"maxWait\": \"60s\"}}");
    let (ok, said) = curl(&replicator, "ReplicationService/WaitReplicated", &body).unwrap();
    assert!(ok && said.contains("WAIT_OUTCOME_CONFIRMED") && said.contains("\"unconfirmedBlobs\": \"0\""), "{said}");
    let (ok, said) = curl(&replicator, "ReplicationService/ExplainBlob", &format!("{{\"ref\": \"{blob}\"}}")).unwrap();
    assert!(ok && said.contains("BLOB_STATE_CONFIRMED") && said.contains("HOLDING_YES"), "{said}");
    let (ok, said) = curl(&replicator, "ReplicationService/Status", "{}").unwrap();
    assert!(ok && said.contains("\"summary\"") && said.contains("\"parked\"") && said.contains("\"0\""), "{said}");
    let (ok, said) = curl(&replicator, "ReplicationService/TriggerFullSync", "{}").unwrap();
    assert!(ok && said.contains("\"sync-1\""), "{said}");
    let (ok, said) = curl(&replicator, "ReplicationService/GetFullSync", "{\"id\": \"sync-1\"}").unwrap();
    assert!(ok && said.contains("a_to_b"), "{said}");
    let body = r#"{"setBy": "eve", "reason": "a test", "ttl": "3600s"}"#;
    let (ok, said) = curl(&replicator, "ReplicationService/PauseRoute", body).unwrap();
    assert!(ok && said.contains("\"paused\": true") && said.contains("\"eve\""), "{said}");
    let body = r#"{"limits": {"workers": 8, "bytesPerSecond": "52428800"}}"#;
    let (ok, said) = curl(&replicator, "ReplicationService/UpdateRoute", body).unwrap();
    assert!(ok && said.contains("\"workers\": 8") && said.contains("\"52428800\""), "{said}");
    let (ok, said) =
        curl(&replicator, "ReplicationService/UpdateRoute", r#"{"updateMask": "bytesPerSecond"}"#).unwrap();
    assert!(ok && said.contains("\"workers\": 8") && !said.contains("52428800"), "{said}");
    // A mask of `*` is no JSON.
    let (ok, said) = curl(&replicator, "ReplicationService/UpdateRoute", r#"{"resetAll": true}"#).unwrap();
    assert!(ok && !said.contains("\"workers\": 8"), "{said}");
    let (ok, said) = curl(&replicator, "ReplicationService/ResumeRoute", "{}").unwrap();
    assert!(ok && said.contains("\"wasPaused\": true"), "{said}");
    let (ok, said) = curl(&replicator, "ReplicationService/UpdateRoute", "{}").unwrap();
    assert!(!ok && said.contains("there is nothing to do"), "{said}");
    let (ok, said) = curl(&source, "BlobReaderService/EnumerateBlobs", "{}").unwrap();
    assert!(ok && said.contains(&blob.to_string()) && said.contains("\"complete\": true"), "{said}");
    let (ok, said) = curl(&replicator, "ReplicationService/TriggerFullSync", "{\"route\": \"x\"}").unwrap();
    assert!(!ok && said.contains("invalid_argument") && said.contains("known are: a_to_b"), "{said}");
}
