//! The programs of `examples/go`: a producer and a store by grpc-go, with stubs that are committed.

use crate::harness::{
    Server, World, assert_conforms, blob, fetch, go, go_producer, held, program, reader, receiver, send, tool, until,
};
use crate::readme::{blocks, free_ports};
use blobferry::blob::BlobRef;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::slice;

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/go");

/// A PATH that begins with the folders of these programs.
fn path_to(programs: &[&str]) -> String {
    let folders = programs.iter().map(|program| Path::new(program).parent().unwrap().to_str().unwrap().to_owned());
    folders.chain([std::env::var("PATH").unwrap()]).collect::<Vec<_>>().join(":")
}

/// What a program printed, on both streams.
fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The producer for this store and this replicator, with these arguments, where Go is there.
fn producer(store: &Server, replicator: &Server, arguments: &[&str], files: &[PathBuf]) -> Option<Command> {
    let mut command = go_producer()?;
    command.args(["-store", &store.url(), "-replicator", &replicator.url()]).args(arguments).args(files);
    Some(command)
}

/// Files of sizes around the producer's chunks, with their refs and bytes.
fn files(world: &World) -> Vec<(PathBuf, BlobRef, Vec<u8>)> {
    let sizes = [0, 1, 256 << 10, (256 << 10) + 1, 3 << 20];
    let file = |(seed, size)| {
        let path = world.path(&format!("file-{size}"));
        let (blob, bytes) = blob(seed, size);
        fs::write(&path, &bytes).unwrap();
        (path, blob, bytes)
    };
    (0..).zip(sizes).map(file).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_go_producer_and_the_go_store_ferry_files() {
    let world = World::new();
    let Some(source) = world.go_store("source", &[]) else { return };
    let destination = world.store("destination");
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let files = files(&world);
    let paths: Vec<PathBuf> = files.iter().map(|(path, ..)| path.clone()).collect();
    let output = producer(&source, &replicator, &["-wait", "60s"], &paths).unwrap().output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let mut reader = reader(&destination).await;
    for (path, blob, bytes) in &files {
        let line = format!("{blob} {} {} -> a_to_b\n", bytes.len(), path.display());
        assert!(said(&output).contains(&line), "{line}{}", said(&output));
        // The producer had waited: they are there.
        assert_eq!(&fetch(&mut reader, *blob).await.unwrap(), bytes);
    }
    assert!(said(&output).contains("5 blobs confirmed on route a_to_b"), "{}", said(&output));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_go_store_conforms_and_keeps_all_through_a_kill() {
    let world = World::new();
    let Some(mut store) = world.go_store("store", &[]) else { return };
    assert_conforms(&store);
    let (blob, bytes) = blob(1, 300_000);
    send(&mut receiver(&store).await, blob, &bytes).await.unwrap();
    let id = async |store: &Server| {
        let answer = receiver(store).await.get_peer_info(blobferry::v1::GetPeerInfoRequest {}).await.unwrap();
        answer.into_inner().peer_info.unwrap().store_id
    };
    let before = id(&store).await;
    let incoming = world.path("store").join("incoming");
    let left = || fs::read_dir(&incoming).unwrap().count();
    until("nothing is left of what conformance cut", async || (left() == 0).then_some(())).await;
    store.kill();
    fs::write(incoming.join("cut"), "what a kill leaves").unwrap();
    store.again();
    assert_eq!(id(&store).await, before);
    assert_eq!(fetch(&mut reader(&store).await, blob).await.unwrap(), bytes);
    assert_eq!(left(), 0);
}

/// Started before the replicator is: it writes, and tries again until it can announce.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_go_producer_outlasts_an_outage_of_the_replicator() {
    let world = World::new();
    let Some(source) = world.go_store("source", &[]) else { return };
    let destination = world.store("destination");
    let mut replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    replicator.kill();
    let (path, blob, bytes) = files(&world).remove(1);
    let log = world.path("producer.log");
    let mut running = producer(&source, &replicator, &["-wait", "60s"], &[path]).unwrap();
    let mut running = running.stderr(fs::File::create(&log).unwrap()).stdout(Stdio::piped()).spawn().unwrap();
    until("the announcement is tried again", async || {
        fs::read_to_string(&log).unwrap().contains("announcing: ").then_some(())
    })
    .await;
    assert_eq!(held(&mut reader(&source).await, &[blob]).await, 1, "it is written first");
    replicator.again();
    assert!(running.wait().unwrap().success(), "{}", fs::read_to_string(&log).unwrap());
    assert_eq!(fetch(&mut reader(&destination).await, blob).await.unwrap(), bytes);
}

/// Each way to fail has an exit code of its own, and says what is left to be done.
#[test]
fn the_go_producer_says_how_far_it_came() {
    let world = World::new();
    let Some(source) = world.go_store("source", &[]) else { return };
    let mut destination = world.store("destination");
    let mut replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let path = files(&world).remove(1).0;
    let run = |store: &Server, replicator: &Server, arguments: &[&str], files: &[PathBuf]| {
        let output = producer(store, replicator, arguments, files).unwrap().output().unwrap();
        (output.status.code(), said(&output))
    };

    let missing = world.path("missing");
    let (code, text) = run(&source, &replicator, &["-wait", "60s"], &[missing, path.clone()]);
    assert!(code == Some(1) && text.contains("1 of 2 files failed") && text.contains("1 blob confirmed"), "{text}");
    // What the replicator answers is ENQUEUED: it holds nothing.
    let (code, text) = run(&replicator, &replicator, &[], slice::from_ref(&path));
    assert!(code == Some(1) && text.contains("it is no store"), "{text}");
    let (code, text) = run(&source, &replicator, &["-source-store", "x"], slice::from_ref(&path));
    assert!(code == Some(1) && text.contains("known are: a, b"), "{text}");
    destination.kill();
    let other = files(&world).remove(2).0;
    let (code, text) = run(&source, &replicator, &["-wait", "1s"], &[other]);
    assert!(code == Some(4) && text.contains("the time is over") && text.contains("on route a_to_b: "), "{text}");
    replicator.kill();
    let (code, text) = run(&source, &replicator, &["-patience", "1s"], &[path]);
    assert!(code == Some(3) && text.contains("the next full sync finds"), "{text}");
    assert_eq!(run(&source, &replicator, &[], &[]).0, Some(2));
}

#[test]
fn the_go_examples_are_formatted_vetted_and_tested() {
    let Some(mut vet) = go(&["vet", "./..."]) else { return };
    let output = vet.output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let output = go(&["test", "./..."]).unwrap().output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
    let root = go(&["env", "GOROOT"]).unwrap().output().unwrap();
    let gofmt = format!("{}/bin/gofmt", said(&root).trim());
    let output = Command::new(gofmt).args(["-l", "."]).current_dir(FOLDER).output().unwrap();
    assert!(output.status.success() && output.stdout.is_empty(), "not as gofmt writes it: {}", said(&output));
}

/// Whoever changes a `.proto` file runs `examples/go/generate`.
#[test]
fn the_go_stubs_are_those_of_the_protocol() {
    let (Some(go), Some(python)) = (tool("BLOBFERRY_GO"), tool("BLOBFERRY_PYTHON")) else { return };
    let mut check = Command::new(format!("{FOLDER}/generate"));
    let output = check.arg("--check").env("PATH", path_to(&[&go])).env("PYTHON", python).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

/// The commands in its README, typed into one shell.
#[test]
fn the_commands_of_the_go_readme_work() {
    let Some(go) = tool("BLOBFERRY_GO") else { return };
    let world = World::new();
    let readme = fs::read_to_string(format!("{FOLDER}/README.md")).unwrap();
    let (typed, _) = readme.split_once("## The stubs").unwrap();
    let ports = free_ports::<3>();
    let mut typed = format!("trap 'kill $(jobs -p) 2>/dev/null || true' EXIT\n{}wait\n", blocks(typed, "sh").concat())
        .replace("/tmp/go-ferry", world.path("ferry").to_str().unwrap());
    for (written, port) in [("7070", ports[0]), ("7080", ports[1]), ("7081", ports[2])] {
        typed = typed.replace(&format!(":{written}"), &format!(":{port}"));
    }
    let output = Command::new("timeout")
        .args(["120", "bash", "-eu", "-o", "pipefail", "-c", &typed])
        .current_dir(FOLDER)
        .env("PATH", path_to(&[&go, program()]))
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("BLOBFERRY__SERVER__HTTP_LISTEN", "127.0.0.1:0")
        .output()
        .unwrap();
    let said = said(&output);
    assert!(output.status.success(), "{said}");
    assert!(
        said.contains("2 blobs confirmed on route there") && said.contains("passed   receive.round_trip"),
        "{said}"
    );
}
