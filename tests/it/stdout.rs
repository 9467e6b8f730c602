//! A standard output that takes nothing, for every command that there is.
//!
//! The commands come from the program's own tree: whoever adds one is asked for arguments here.

use crate::harness::{Server, World, announce, blob, full_sync, program, receiver, replication, send, until};
use blobferry::cli::Cli;
use blobferry::v1 as pb;
use clap::CommandFactory;
use rustix::process::Signal;
use std::fs::{self, File};
use std::io::pipe;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What ended so as Rust ends a panic.
const PANICKED: i32 = 101;
const FAILED: i32 = 1;
const UNREAD: i32 = 141;

/// How long a command may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A standard stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Out {
    /// Is taken.
    Taken,
    /// `/dev/full`.
    Full,
    /// Its reader went away.
    Cut,
}

impl Out {
    fn stdio(self, file: &Path) -> Stdio {
        match self {
            Self::Taken => File::create(file).unwrap().into(),
            Self::Full => File::options().write(true).open("/dev/full").unwrap().into(),
            Self::Cut => {
                let (reader, writer) = pipe().unwrap();
                drop(reader);
                writer.into()
            }
        }
    }
}

/// How a command ended, and what it said.
#[derive(Debug)]
struct Ended {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

/// The last commands of the tree, each with those above it.
fn leaves(command: &clap::Command, above: &str, into: &mut Vec<(String, bool)>) {
    for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
        let path = format!("{above} {}", inner.get_name()).trim().to_owned();
        if inner.has_subcommands() {
            leaves(inner, &path, into);
        } else {
            let has_json = inner.get_arguments().any(|argument| argument.get_id() == "json");
            into.push((path, has_json));
        }
    }
}

/// Servers with something of everything to tell.
struct Scene {
    world: World,
    store: Server,
    _other: Server,
    replicator: Server,
    store_id: String,
    large: String,
    runs: AtomicU64,
}

/// Stands for a path where nothing is yet.
const NEW: &str = "{new}";

impl Scene {
    async fn new() -> Self {
        let world = World::new();
        let (store, other) = (world.store("a"), world.store("b"));
        let stores = [("a", &store), ("b", &other)];
        let stores =
            stores.map(|(name, server)| format!("[stores.{name}]\nendpoint = \"{}\"\n", server.url())).concat();
        let route = |name: &str, from: &str, to: &str| format!("[routes.{name}]\nfrom = \"{from}\"\nto = \"{to}\"\n");
        let (kept, left) = (route("a_to_b", "a", "b"), route("b_to_a", "b", "a"));
        let mut replicator = world.replicator_with("replicator", &format!("{stores}{kept}{left}"));
        let mut operator = replication(&replicator).await;
        let (large, bytes) = blob(1, 3_000_000);
        send(&mut receiver(&store).await, large, &bytes).await.unwrap();
        // One that arrives, one that fails, and one on a route that then leaves the configuration.
        announce(&mut operator, "a", &[large, blob(2, 1).0]).await.unwrap();
        announce(&mut operator, "b", &[blob(3, 1).0]).await.unwrap();
        until("one arrived and one failed", async || {
            let status =
                operator.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
            let route = status.routes.into_iter().find(|route| route.name == "a_to_b").unwrap();
            let retrying = route.queued.unwrap().fresh.unwrap().retrying.unwrap().entries();
            (route.since_start.unwrap().confirmed_blobs() == 1 && retrying == 1).then_some(())
        })
        .await;
        let info = receiver(&store).await.get_peer_info(pb::GetPeerInfoRequest {}).await.unwrap();
        let store_id = info.into_inner().peer_info.unwrap().store_id;
        replicator.kill();
        let file = world.path("replicator.toml");
        let text = fs::read_to_string(&file).unwrap();
        let (before, after) = text.split_once("[routes.b_to_a]").unwrap();
        let rest = after.find("[server]").unwrap();
        fs::write(&file, format!("{before}{}", &after[rest..])).unwrap();
        replicator.again();
        full_sync(&mut replication(&replicator).await).await;

        let idle = world.replicator_with("offline", &format!("{stores}{kept}"));
        drop(idle);
        let export = world.path("exported");
        let queue = ["queue", "export", "--data-dir", world.path("offline-data").to_str().unwrap()].map(str::to_owned);
        assert!(Command::new(program()).args(queue).arg(&export).status().unwrap().success());
        fs::create_dir(world.path("files")).unwrap();
        fs::write(world.path("files").join("hello"), "hello").unwrap();
        let (large, runs) = (large.to_string(), AtomicU64::new(0));
        Self { world, store, _other: other, replicator, store_id, large, runs }
    }

    fn path(&self, name: &str) -> String {
        self.world.path(name).to_str().unwrap().to_owned()
    }

    /// Ways to call a command that has something to say; without those that have not.
    fn ways(&self, command: &str) -> Vec<Vec<String>> {
        let (store, at) = (self.store.url(), self.replicator.url());
        let (files, config, large) = (self.path("files"), self.path("replicator.toml"), self.large.as_str());
        let (offline, exported) = (self.path("offline-data"), self.path("exported"));
        let (store, at) = (["--store", store.as_str()], ["--replicator", at.as_str()]);
        let with = |ways: &[&[&str]], more: &[&str]| -> Vec<Vec<String>> {
            ways.iter().map(|way| way.iter().chain(more).map(|text| (*text).to_owned()).collect()).collect()
        };
        let of_replicator = |ways: &[&[&str]]| with(ways, &at);
        let of_store = |ways: &[&[&str]]| with(ways, &store);
        match command {
            // The last one writes files alone.
            "serve" | "store" | "man" => Vec::new(),
            "version" => with(&[&[], &["--json"]], &[]),
            "completions" => with(&[&["bash"]], &[]),
            "demo" => with(&[&["--exit", "--data", NEW, &files]], &[]),
            "conformance" => of_store(&[&[]]),
            "status" => of_replicator(&[&[], &["--check"]]),
            "sync" => of_replicator(&[&[], &["--watch"], &["--list"], &["--cancel", "sync-1"]]),
            "failures list" => of_replicator(&[&[]]),
            "failures retry" => of_replicator(&[&["--all"], &["--all", "--count-only"]]),
            "failures discard" => of_replicator(&[&["--all", "--count-only"]]),
            // Not for long: syncs are waited for.
            "pause" => of_replicator(&[&["a_to_b", "--for", "100ms"]]),
            "resume" | "limits" => of_replicator(&[&["a_to_b"]]),
            "adopt" => of_replicator(&[&["a", &self.store_id]]),
            "drop" => of_replicator(&[&["b_to_a", "--count-only"]]),
            "explain" | "wait" => of_replicator(&[&[large]]),
            "queue export" => with(&[&["--data-dir", &offline, "-"]], &[]),
            "queue import" => with(&[&["--data-dir", NEW, &exported]], &[]),
            "put" => of_store(&[&[&files], &["--verbose", &files]]),
            "get" => of_store(&[&[large]]),
            "ls" => of_store(&[&[]]),
            "stat" => of_store(&[&[large]]),
            "health" => with(&[&["--url", at[1]]], &[]),
            "config check" | "config print" => with(&[&["--config", &config]], &[]),
            new => panic!("say here how `blobferry {new}` is called, so that its output is looked at"),
        }
    }

    fn start(&self, arguments: &[String], out: Out, err: Out) -> (Child, [PathBuf; 2]) {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let [new, stdout, stderr] =
            ["new", "stdout", "stderr"].map(|name| self.world.path(&format!("{name}-{number}")));
        let arguments = arguments.iter().map(|text| if text == NEW { new.to_str().unwrap() } else { text });
        let mut command = Command::new(program());
        command.args(arguments).stdin(Stdio::null()).env("BLOBFERRY__SERVER__HTTP_LISTEN", "");
        (command.stdout(out.stdio(&stdout)).stderr(err.stdio(&stderr)).spawn().unwrap(), [stdout, stderr])
    }

    fn run(&self, arguments: &[String], out: Out, err: Out) -> Ended {
        let (mut child, files) = self.start(arguments, out, err);
        let code = end_of(&mut child, arguments);
        let [stdout, stderr] = files.map(|file| fs::read(file).unwrap_or_default());
        let ended = Ended { code, stdout, stderr: String::from_utf8(stderr).unwrap() };
        assert!(ended.code.is_some_and(|code| code != PANICKED), "{arguments:?} {out:?} {err:?}: {ended:?}");
        assert!(!ended.stderr.contains("panicked"), "{arguments:?} {out:?} {err:?}: {ended:?}");
        ended
    }

    /// What a command says is told or missed; `survives` what it does when nobody listens any more.
    fn check(&self, arguments: &[String], survives: bool) {
        let plain = self.run(arguments, Out::Taken, Out::Taken);
        let [full, cut] = [Out::Full, Out::Cut].map(|out| self.run(arguments, out, Out::Taken));
        let [none, both] = [Out::Full, Out::Cut].map(|out| self.run(arguments, out, out).code);
        let said = full.stderr.lines().filter(|line| line.starts_with("blobferry: the output cannot be written: "));
        let (of_full, of_cut, lines) = match (plain.stdout.is_empty(), survives) {
            (true, _) => (plain.code, plain.code, 0),
            (false, true) => (Some(FAILED), plain.code, 1),
            (false, false) => (Some(FAILED), Some(UNREAD), 1),
        };
        assert_eq!((full.code, none, said.count()), (of_full, of_full, lines), "{arguments:?}: {full:?}");
        assert_eq!((cut.code, both), (of_cut, of_cut), "{arguments:?}: {cut:?}");
        assert!(!cut.stderr.contains("the output") && !cut.stderr.contains("ipe"), "{arguments:?}: {cut:?}");
    }
}

fn end_of(child: &mut Child, arguments: &[String]) -> Option<i32> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{arguments:?} does not end");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_command_whose_output_is_not_taken_says_so_or_ends_quietly() {
    let scene = Scene::new().await;
    let mut commands = Vec::new();
    leaves(&Cli::command(), "", &mut commands);
    assert!(commands.len() > 20, "{commands:?}");
    let mut calls = vec![(words("--help"), false), (words("--version"), false), (words("help"), false)];
    for (command, has_json) in &commands {
        calls.push((words(&format!("{command} --help")), false));
        for way in scene.ways(command) {
            let call = [words(command), way].concat();
            // The demo's work is worth doing without an audience.
            calls.push((call.clone(), command == "demo"));
            if *has_json {
                calls.push(([call, words("--json")].concat(), false));
            }
        }
    }
    let (scene, left) = (&scene, &parking_lot::Mutex::new(calls));
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(move || {
                loop {
                    let Some((call, survives)) = left.lock().pop() else { return };
                    scene.check(&call, survives);
                }
            });
        }
    });
    // What goes on until it is ended ends here, too.
    let watch = [words("status --watch --replicator"), vec![scene.replicator.url()]].concat();
    assert_eq!(scene.run(&watch, Out::Full, Out::Taken).code, Some(FAILED));
    assert_eq!(scene.run(&watch, Out::Cut, Out::Taken).code, Some(UNREAD));
}

/// Its first line is not what a server is for.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_whose_output_is_not_taken_serves() {
    let scene = Scene::new().await;
    let serve = words(&format!("serve --config {} --set server.listen=127.0.0.1:0", scene.path("replicator.toml")));
    let serve = [serve, words(&format!("--set server.data_dir={}", scene.path("another")))].concat();
    let store = words("store --listen 127.0.0.1:0 --data memory://");
    for (arguments, out) in [(&serve, Out::Full), (&serve, Out::Cut), (&store, Out::Full), (&store, Out::Cut)] {
        let (mut child, [_, log]) = scene.start(arguments, out, Out::Taken);
        let address = until("it says where it listens, in its log", async || {
            let said = fs::read_to_string(&log).unwrap();
            let line = said.lines().find(|line| line.contains("\"message\":\"serving"))?;
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            Some(line["address"].as_str()?.to_owned())
        })
        .await;
        let health = words(&format!("health --url http://{address}"));
        assert_eq!(scene.run(&health, Out::Taken, Out::Taken).code, Some(0), "{arguments:?}");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, Signal::TERM).unwrap();
        assert_eq!(end_of(&mut child, arguments), Some(0));
        let said = fs::read_to_string(&log).unwrap();
        assert!(said.contains("stdout was not told where this listens"), "{arguments:?}: {said}");
    }
}
