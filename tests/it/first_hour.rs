//! What somebody meets who has just begun: wrong ports and schemes, messages that cannot be taken, options out of range,
//! variables that are spelt wrong; and whether the status tells the truth when nothing is right yet.

use crate::harness::{Server, World, channel, program, reason, replication, route, until};
use blobferry::blob::DigestFunction;
use blobferry::v1 as pb;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tonic::client::Grpc;
use tonic::transport::{Identity, Server as TonicServer, ServerTlsConfig};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(program()).args(arguments).envs(environment.iter().copied()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The exit code, and what was said on standard error.
fn failed(arguments: &[&str]) -> (Option<i32>, String) {
    let output = run(arguments, &[]);
    (output.status.code(), text(&output.stderr))
}

fn printed(arguments: &[&str]) -> String {
    let output = run(arguments, &[]);
    assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
    text(&output.stdout)
}

/// A store and a replicator, as `serve` and `store` start them.
fn servers(world: &World, on_start: &str) -> [Server; 3] {
    let (a, b) = (world.store("a"), world.store("b"));
    let config = format!(
        "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n\
         full_sync = {{ on_start = \"{on_start}\" }}\n",
        a.url(),
        b.url()
    );
    let replicator = world.replicator_with("replicator", &config);
    [a, b, replicator]
}

/// The commands that ask a server, at this address.
fn questions(url: &str) -> Vec<Vec<&str>> {
    let absent = "sha256-0000000000000000000000000000000000000000000000000000000000000000";
    vec![
        vec!["status", "--replicator", url],
        vec!["sync", "--replicator", url],
        vec!["explain", "--replicator", url, absent],
        vec!["health", "--url", url],
        vec!["ls", "--store", url],
        vec!["get", "--store", url, absent],
    ]
}

#[test]
fn a_wrong_port_or_scheme_is_called_what_it_is() {
    let world = World::new();
    let [store, _, replicator] = servers(&world, "off");
    let http = format!("http://{}", replicator.http());
    for question in questions(&http) {
        let (code, said) = failed(&question);
        assert_eq!(code, Some(3), "{question:?}: {said}");
        assert!(said.contains("speaks HTTP/1, not gRPC: is this its HTTP port?"), "{question:?}: {said}");
        assert_eq!(said.matches(&http).count(), 1, "{said}");
    }
    // What would be announced there is not tried for the ten minutes that a replicator may be away.
    let file = world.path("x");
    fs::write(&file, "x").unwrap();
    let put = ["put", "--store", &store.url(), "--announce", &http, file.to_str().unwrap()];
    let (code, said) = failed(&put);
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("speaks HTTP/1, not gRPC: is this its HTTP port?"), "{said}");
    let secure = store.url().replace("http://", "https://");
    for question in questions(&secure) {
        let (code, said) = failed(&question);
        assert_eq!(code, Some(3), "{question:?}: {said}");
        assert!(said.contains("does not speak TLS: http:// in place of https://?"), "{question:?}: {said}");
    }
}

/// A server that speaks TLS alone.
async fn secure_server(tasks: &mut JoinSet<()>) -> u16 {
    let file = |name| fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/tls").join(name)).unwrap();
    let tls = ServerTlsConfig::new().identity(Identity::from_pem(file("server.pem"), file("server.key")));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (routes, _) = blobferry::internal::grpc::base_routes(&[]).unwrap();
    let server = TonicServer::builder().tls_config(tls).unwrap().add_routes(routes);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tasks.spawn(async move { server.serve_with_incoming(incoming).await.unwrap() });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_wants_tls_is_called_so() {
    let mut tasks = JoinSet::new();
    let url = format!("http://127.0.0.1:{}", secure_server(&mut tasks).await);
    for question in questions(&url) {
        let question: Vec<String> = question.into_iter().map(str::to_owned).collect();
        let asked = question.clone();
        let output = tokio::task::spawn_blocking(move || Command::new(program()).args(asked).output().unwrap());
        let output = output.await.unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{question:?}: {said}");
        assert!(said.contains("speaks TLS: https:// in place of http://?"), "{question:?}: {said}");
    }
}

/// A store's endpoint that names its HTTP port is told in the status, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_says_that_an_endpoint_names_the_wrong_port() {
    let world = World::new();
    let (a, other) = (
        world.store("a"),
        world.replicator_with(
            "other",
            "[stores.x]\nendpoint = \"http://127.0.0.1:1\"\n\
         [stores.y]\nendpoint = \"http://127.0.0.1:2\"\n[routes.r]\nfrom = \"x\"\nto = \"y\"\n",
        ),
    );
    let wrong = format!("http://{}", other.http());
    let replicator = world.replicator(&[("a", &a.url()), ("b", &wrong)], &[("a", "b")]);
    let operator = replication(&replicator).await;
    let said = until("it is told", async || {
        let said = route(&mut operator.clone()).await;
        said.summary.contains("HTTP port?").then_some(said)
    })
    .await;
    assert_eq!(said.state(), pb::RouteState::Blocked);
    assert!(said.summary.chars().count() <= 120, "{}", said.summary);
}

/// Calls a method with this message, whatever it takes.
async fn call<M: prost::Message + Default + 'static>(
    server: &Server,
    path: &'static str,
    message: M,
    encoding: Option<&'static str>,
) -> Status {
    let mut client = Grpc::new(channel(&server.url()).await);
    client.ready().await.unwrap();
    let mut request = Request::new(message);
    if let Some(encoding) = encoding {
        request.metadata_mut().insert("grpc-encoding", encoding.parse().unwrap());
    }
    let codec: ProstCodec<M, ()> = ProstCodec::default();
    client.unary(request, http::uri::PathAndQuery::from_static(path), codec).await.unwrap_err()
}

const ENQUEUE: &str = "/blobferry.v1.ReplicationService/EnqueueBlobs";
const STATUS: &str = "/blobferry.v1.ReplicationService/Status";

#[tokio::test]
async fn what_cannot_be_taken_has_a_reason_and_says_what_to_do() {
    let world = World::new();
    let [store, _, replicator] = servers(&world, "off");
    let told = |status: &Status, code: Code, why: &str, words: &[&str]| {
        assert_eq!((status.code(), reason(status).as_str()), (code, why), "{status:?}");
        words.iter().for_each(|word| assert!(status.message().contains(word), "{status:?}"));
    };
    let item = pb::EnqueueItem { r#ref: "x".repeat(5_000_000), ..pb::EnqueueItem::default() };
    let large = pb::EnqueueBlobsRequest { items: vec![item], ..pb::EnqueueBlobsRequest::default() };
    let status = call(&replicator, ENQUEUE, large, None).await;
    told(&status, Code::OutOfRange, "MESSAGE_TOO_LARGE", &["5000", "4194304 are taken", "fewer items"]);
    // A number where a text is expected.
    let other = prost_types::Duration { seconds: 7, nanos: 0 };
    let status = call(&replicator, ENQUEUE, other, None).await;
    told(&status, Code::InvalidArgument, "MESSAGE_MALFORMED", &["failed to decode", "proto/"]);
    let status = call(&replicator, STATUS, pb::StatusRequest::default(), Some("gzip")).await;
    told(&status, Code::Unimplemented, "COMPRESSION_UNSUPPORTED", &["grpc-encoding"]);
    let status = call(&store, STATUS, pb::StatusRequest::default(), None).await;
    told(&status, Code::Unimplemented, "ABILITY_UNSUPPORTED", &["no such method", "GetPeerInfo"]);
    // Within a stream it is the same.
    let mut receiver = crate::harness::receiver(&replicator).await;
    let large = crate::harness::chunk_message(&vec![0; 5_000_000]);
    let status = receiver.receive_blob(futures::stream::iter([large])).await.unwrap_err();
    told(&status, Code::OutOfRange, "MESSAGE_TOO_LARGE", &["send chunks"]);
    let blob = pb::PackedBlob { data: vec![0; 5_000_000].into(), ..pb::PackedBlob::default() };
    let pack = pb::ReceiveBlobsRequest { blobs: vec![blob], ..pb::ReceiveBlobsRequest::default() };
    let answers = receiver.receive_blobs(futures::stream::iter([pack])).await;
    let status = match answers {
        Ok(answers) => answers.into_inner().message().await.unwrap_err(),
        Err(status) => status,
    };
    told(&status, Code::OutOfRange, "MESSAGE_TOO_LARGE", &["fewer items"]);
}

#[test]
fn options_out_of_range_name_the_command_that_helps() {
    for (arguments, said) in [
        (&["limits", "--workers", "0"][..], "1 to 1024 copies may run at a time; to copy nothing, use blobferry pause"),
        (&["limits", "--workers", "x"], "1 to 1024 copies"),
        (&["status", "--watch", "--interval", "0s"], "it is from 100ms to 60s"),
        (&["status", "--watch", "--interval", "soon"], "write it as 500ms or 2s"),
        (&["sync", "--patience", "1min"], "--watch"),
        (&["completions", "cmd"], "bash"),
    ] {
        let (code, stderr) = failed(arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {stderr}");
        assert!(stderr.contains(said), "{arguments:?}: {stderr}");
    }
}

#[test]
fn who_set_a_limit_and_to_what_is_told() {
    let world = World::new();
    let [.., replicator] = servers(&world, "off");
    let at = replicator.url();
    let said = printed(&["limits", "--replicator", &at, "--workers", "3", "--bytes-per-second", "5MiB"]);
    let user = printed(&["limits", "--replicator", &at]);
    assert!(said.contains("workers = 3 set by ") && said.contains("bytes_per_second = 5.00 MiB set by "), "{said}");
    assert!(!user.contains("set by uid "), "{user}");
    let (code, said) = failed(&["health", "--url", &at, "--service", "route/nobody"]);
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("blobferry status lists them"), "{said}");
    let wrong = format!("sha256-{}", "0C".repeat(32));
    let (code, said) = failed(&["explain", "--replicator", &at, &wrong]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("lower-case letters a-f; its character 2 is \"C\""), "{said}");
}

#[test]
fn a_variable_with_single_underscores_is_named_with_its_right_spelling() {
    let world = World::new();
    let file = world.path("ferry.toml");
    fs::write(
        &file,
        "[stores.a]\nendpoint = \"http://a:1\"\n[stores.b]\nendpoint = \"http://b:1\"\n[routes.r]\nfrom = \"a\"\nto = \"b\"\n",
    )
    .unwrap();
    let environment = [("BLOBFERRY_STORES_A_ENDPOINT", "http://c:1"), ("BLOBFERRY_PORT", "tcp://10.0.0.1:7070")];
    let checked = run(&["config", "check", "--config", file.to_str().unwrap()], &environment);
    assert!(checked.status.success());
    let said = text(&checked.stderr);
    assert_eq!(said, "blobferry: BLOBFERRY_STORES_A_ENDPOINT sets nothing; write BLOBFERRY__STORES__A__ENDPOINT\n");
}

#[test]
fn config_check_asks_the_stores() {
    let world = World::new();
    let [a, mut b, replicator] = servers(&world, "off");
    let file = world.path("ferry.toml");
    let write = |to: &str| {
        let config = format!(
            "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{to}\"\n[routes.r]\nfrom = \"a\"\nto = \"b\"\n",
            a.url()
        );
        fs::write(&file, config).unwrap();
    };
    let check = || {
        let output = run(&["config", "check", "--config", file.to_str().unwrap(), "--connect"], &[]);
        (output.status.code(), text(&output.stdout))
    };
    write(&b.url());
    let (code, said) = check();
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("a: store, blobferry ") && said.contains("b: store, blobferry "), "{said}");
    b.kill();
    let (code, said) = check();
    assert_eq!(code, Some(3), "{said}");
    assert!(said.contains("b: ") && said.contains("cannot be reached: Connection refused"), "{said}");
    write(&replicator.url());
    let (code, said) = check();
    assert_eq!(code, Some(4), "{said}");
    assert!(said.contains("b: it is a replicator, which holds no blobs"), "{said}");
}

#[test]
fn the_program_tells_of_itself() {
    let version: serde_json::Value = serde_json::from_str(&printed(&["version", "--json"])).unwrap();
    assert_eq!(version["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(version["protocol"], "blobferry.v1");
    assert!(printed(&["version"]).starts_with(&format!("blobferry {}", env!("CARGO_PKG_VERSION"))));
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        assert!(script.contains("blobferry") && script.contains("failures"), "{shell}");
    }
    let folder = tempfile::tempdir().unwrap();
    printed(&["man", folder.path().to_str().unwrap()]);
    let pages: Vec<_> = fs::read_dir(&folder).unwrap().map(|page| page.unwrap().file_name()).collect();
    assert!(pages.len() > 20, "{pages:?}");
    let page = fs::read_to_string(folder.path().join("blobferry-status.1")).unwrap();
    assert!(page.contains("Exit codes"), "{page}");
}

/// A file below a folder that has so many bytes.
fn file_of(folder: &Path, bytes: u64) -> std::path::PathBuf {
    let files = walkdir::WalkDir::new(folder).into_iter().map(Result::unwrap).filter(|file| file.file_type().is_file());
    let mut sized = files.filter(|file| file.metadata().unwrap().len() == bytes);
    sized.next().expect("there is one").into_path()
}

#[test]
fn put_replaces_damaged_bytes_where_it_is_told_to() {
    let world = World::new();
    let [a, ..] = servers(&world, "off");
    let file = world.path("file");
    fs::write(&file, vec![7; 300_001]).unwrap();
    let (at, file) = (a.url(), file.to_str().unwrap().to_owned());
    let said = printed(&["put", "--verbose", "--store", &at, &file]);
    let blob = said.split(' ').next().unwrap().to_owned();
    fs::write(file_of(&world.path("a"), 300_001), vec![8; 300_001]).unwrap();
    let out = world.path("out").display().to_string();
    let get = ["get", "--store", at.as_str(), &blob, "-o", &out];
    assert!(!run(&get, &[]).status.success(), "it is damaged");
    printed(&["put", "--store", &at, &file]);
    assert!(!run(&get, &[]).status.success(), "the store has it already");
    printed(&["put", "--replace", "--store", &at, &file]);
    printed(&get);

    // What is no file is written to, and stays what it is.
    let pipe = world.path("pipe").display().to_string();
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let read = world.path("read");
    let copy = fs::File::create(&read).unwrap();
    let mut reader = Command::new("cat").arg(&pipe).stdout(copy).spawn().unwrap();
    printed(&["get", "--store", at.as_str(), &blob, "-o", &pipe]);
    assert!(reader.wait().unwrap().success());
    assert_eq!(fs::read(&read).unwrap(), vec![7; 300_001]);
    assert!(std::os::unix::fs::FileTypeExt::is_fifo(&fs::metadata(&pipe).unwrap().file_type()));
}

/// As grpcurl prints it, and what matters most first.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_as_json_begins_with_its_sentence() {
    let world = World::new();
    let [.., replicator] = servers(&world, "off");
    let begins = "{\n  \"summary\": ";
    let said = printed(&["status", "--json", "--replicator", &replicator.url()]);
    assert!(
        said.starts_with(begins)
            && said.contains("\"routes\": [\n    {\n      \"name\": \"a_to_b\",\n      \"summary\""),
        "{said}"
    );
    let page = crate::http::page(&replicator, "/status.json").await;
    assert!(page.contains(begins), "{page}");
}

/// Both stores down, and a full sync that never completed: nothing claims that all is well.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_in_sync_before_the_stores_were_compared() {
    let world = World::new();
    let [mut a, mut b, mut replicator] = servers(&world, "if_needed");
    replicator.kill();
    std::fs::remove_dir_all(world.path("replicator-data")).unwrap();
    a.kill();
    b.kill();
    replicator.again();
    let operator = replication(&replicator).await;
    let state = async || route(&mut operator.clone()).await.state();
    let check = || run(&["status", "--check", "--replicator", &replicator.url()], &[]).status.code();
    let health = || {
        let name = ["health", "--url", &replicator.url(), "--service", "route/a_to_b"];
        run(&name, &[]).status.code()
    };
    // From the first moment on.
    for _ in 0..3 {
        assert_eq!((check(), health()), (Some(4), Some(4)));
    }
    until("it is blocked", async || (state().await == pb::RouteState::Blocked).then_some(())).await;
    let summary = route(&mut operator.clone()).await.summary;
    assert!(summary.contains("a and b cannot be used"), "{summary}");
    a.again();
    until("one is enough to be blocked", async || {
        let summary = route(&mut operator.clone()).await.summary;
        summary.contains("blocked: b is unreachable").then_some(())
    })
    .await;
    assert_eq!((check(), health()), (Some(4), Some(4)));
    b.again();
    // Its first attempts failed; the next one begins by itself, or an operator begins it.
    until("both answer", async || (state().await != pb::RouteState::Blocked).then_some(())).await;
    assert_ne!(check(), Some(0), "{}", route(&mut operator.clone()).await.summary);
    let synced = run(&["sync", "--watch", "--patience", "1min", "--replicator", &replicator.url()], &[]);
    assert_eq!(synced.status.code(), Some(0), "{}", text(&synced.stderr));
    until("it is in sync", async || (state().await == pb::RouteState::InSync).then_some(())).await;
    until("all is well", async || ((check(), health()) == (Some(0), Some(0))).then_some(())).await;
}

#[test]
fn a_sync_that_is_watched_says_that_its_route_is_paused() {
    let world = World::new();
    let [a, _b, replicator] = servers(&world, "off");
    let (file, at) = (world.path("x"), replicator.url());
    fs::write(&file, "x").unwrap();
    printed(&["put", "--store", &a.url(), file.to_str().unwrap()]);
    printed(&["pause", "--replicator", &at, "--for", "1h", "--reason", "swap"]);
    let mut watching = Command::new(program())
        .args(["sync", "--watch", "--replicator", &at])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watching.stderr.take().unwrap()).lines();
    let told = lines.find_map(|line| line.ok().filter(|line| line.contains("paused"))).unwrap();
    assert!(told.contains("swap"), "{told}");
    printed(&["resume", "--replicator", &at]);
    let rest: String = lines.map_while(Result::ok).collect();
    assert!(watching.wait().unwrap().success(), "{rest}");
}

#[test]
fn a_refs_beginning_is_enough_to_read_and_never_to_discard() {
    let world = World::new();
    let [a, _b, replicator] = servers(&world, "off");
    let (store, at) = (a.url(), replicator.url());
    // The digests of the last two begin with the same eight digits.
    let texts = ["hello", "twin 117425", "twin 119165"];
    let files = texts.map(|text| {
        let file = world.path(&text.replace(' ', "-"));
        fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    });
    printed(&["put", "--store", &store, &files[0], &files[1], &files[2]]);
    let (hello, twins) = ("sha256-2cf24dba", "sha256-b3de1bbe");
    let whole = DigestFunction::Sha256.ref_of(b"hello").to_string();
    let twin = DigestFunction::Sha256.ref_of(texts[1].as_bytes()).to_string();

    assert_eq!(printed(&["get", "--store", &store, hello]), "hello");
    assert_eq!(printed(&["get", "--store", &store, &twin[..40]]), texts[1]);
    assert_eq!(printed(&["stat", "--store", &store, hello, &whole]), format!("{whole} 5\n{whole} 5\n"));
    // It is nowhere in the queue: a store holds it.
    let said = printed(&["explain", "--replicator", &at, hello]);
    assert!(said.starts_with(&format!("{whole}: not queued\n")), "{said}");
    printed(&["put", "--store", &store, "--announce", &at, &files[0]]);
    printed(&["wait", "--replicator", &at, hello]);
    let said = printed(&["explain", "--replicator", &at, "--no-stores", hello]);
    assert!(said.starts_with(&format!("{whole}: confirmed\n")), "{said}");
    assert!(said.contains(" after it was queued\n") && said.contains("\n               queued 20"), "{said}");

    for (arguments, code, what) in [
        (vec!["get", "--store", &store, twins], 2, "several blobs begin with sha256-b3de1bbe"),
        (vec!["stat", "--store", &store, twins], 2, "several blobs begin with sha256-b3de1bbe"),
        (vec!["explain", "--replicator", &at, twins], 2, "several refs begin with sha256-b3de1bbe"),
        (vec!["get", "--store", &store, "sha256-00000000"], 4, "begins with sha256-00000000"),
        (vec!["explain", "--replicator", &at, "sha256-00000000"], 4, "whose ref begins with sha256-00000000"),
        (vec!["explain", "--replicator", &at, "--no-stores", &twin[..20]], 4, "whose ref begins with sha256-b3de1bbe"),
        (vec!["get", "--store", &store, "sha256-2cf24db"], 2, "a sha256 digest has 64 hex digits, not 7"),
        (vec!["explain", "--replicator", &at, "sha256-2CF24DBA"], 2, "a sha256 digest has 64 hex digits, not 8"),
        (
            vec!["failures", "discard", "--replicator", &at, "--ref", hello],
            2,
            "a sha256 digest has 64 hex digits, not 8",
        ),
        (vec!["failures", "retry", "--replicator", &at, "--ref", hello], 2, "a sha256 digest has 64 hex digits, not 8"),
        (vec!["wait", "--replicator", &at, twins], 2, "several refs begin with sha256-b3de1bbe"),
        (vec!["wait", "--replicator", &at, "sha256-00000000"], 4, "whose ref begins with sha256-00000000"),
        (vec!["stat", "--store", &store, "sha256-00000000", hello], 4, "sha256-00000000 missing"),
    ] {
        let (found, said) = failed(&arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(what), "{arguments:?}: {said}");
    }
}
