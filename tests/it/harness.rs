//! The real program, started on free ports over temporary folders.

use blobferry::blob::{BlobRef, DigestFunction};
use blobferry::v1 as pb;
use std::fs::{self, File};
use std::future::Future;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;
use tonic::transport::Channel;

pub(crate) type Replication = pb::replication_service_client::ReplicationServiceClient<Channel>;
pub(crate) type Receiver = pb::blob_receiver_service_client::BlobReceiverServiceClient<Channel>;
pub(crate) type Reader = pb::blob_reader_service_client::BlobReaderServiceClient<Channel>;

/// How long anything may take before a test gives up on it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// The program under test.
pub(crate) fn program() -> &'static str {
    env!("CARGO_BIN_EXE_blobferry")
}

/// A running server, ended when dropped.
pub(crate) struct Server {
    program: String,
    args: Vec<String>,
    /// Environment variables that it is always started with.
    env: Vec<(String, String)>,
    /// Where the address stands among `args`, to start again at the same port.
    listen: usize,
    log: PathBuf,
    /// Where standard error goes at the next start, if not to the log.
    stderr: Option<Stdio>,
    child: Option<Child>,
    pub(crate) address: String,
    /// Of the HTTP port, where it has one; another after each start.
    pub(crate) http: Option<String>,
}

impl Server {
    /// Starts `program`; `args[listen]` is its address, `{}` in it is replaced. It must print a URL in its first line.
    pub(crate) fn start(program: &str, args: &[&str], listen: usize, log: &Path) -> Self {
        Self::start_in(program, args, listen, log, &[])
    }

    /// The same, with these environment variables, also when it is started again.
    pub(crate) fn start_in(program: &str, args: &[&str], listen: usize, log: &Path, env: &[(&str, &str)]) -> Self {
        let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
        let mut server = Self {
            program: program.to_owned(),
            args,
            env: env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
            listen,
            log: log.to_owned(),
            stderr: None,
            child: None,
            address: "127.0.0.1:0".to_owned(),
            http: None,
        };
        server.again();
        server
    }

    /// Ends it, and starts it again with this for standard error.
    pub(crate) fn again_with_stderr(&mut self, stderr: impl Into<Stdio>) {
        self.kill();
        self.stderr = Some(stderr.into());
        self.again();
    }

    /// Sets an environment variable for the next starts.
    pub(crate) fn set_env(&mut self, name: &str, value: &str) {
        self.env.push((name.to_owned(), value.to_owned()));
    }

    /// Starts it again after it ended, at the port that it had.
    pub(crate) fn again(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // The port may have been lent to an outgoing connection meanwhile.
        while let Some(status) = self.ended_starting(&[]) {
            let said = fs::read_to_string(&self.log).unwrap_or_default();
            assert!(Instant::now() < deadline, "{} {:?} ended with {status}:\n{said}", self.program, self.args);
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts it at the port that it had, with these environment variables. How it ended, if it did not come to listen.
    pub(crate) fn ended_starting(&mut self, variables: &[(&str, &str)]) -> Option<ExitStatus> {
        assert!(self.child.is_none(), "it still runs");
        let mut args = self.args.clone();
        args[self.listen] = args[self.listen].replace("{}", &self.address);
        let log = match self.stderr.take() {
            Some(stderr) => stderr,
            None => File::options().create(true).append(true).open(&self.log).unwrap().into(),
        };
        let mut child = Command::new(&self.program)
            .args(&args)
            .env_remove("RUST_LOG")
            .env("BLOBFERRY__SERVER__HTTP_LISTEN", "127.0.0.1:0")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .envs(variables.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let mut addresses = line.split_whitespace().filter_map(|word| word.strip_prefix("http://"));
        let Some(address) = addresses.next() else {
            // A line without one is a program's that goes on.
            if !line.is_empty() {
                child.kill().unwrap();
            }
            return Some(child.wait().unwrap());
        };
        self.address = address.to_owned();
        self.http = addresses.next().map(str::to_owned);
        self.child = Some(child);
        None
    }

    /// How it ended, if it has by itself. It can be started again then.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.child.as_mut()?.try_wait().unwrap()?;
        self.child = None;
        Some(status)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The address of the HTTP port.
    pub(crate) fn http(&self) -> &str {
        self.http.as_deref().expect("it has an HTTP port")
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// Waits for its own end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        let mut child = self.child.take().unwrap();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                panic!("it did not end; its log:\n{}", self.said());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// All that it logged.
    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A folder for a test, and the servers that run in it.
pub(crate) struct World {
    pub(crate) dir: TempDir,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("blobferry-it-").tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// A disk store of this name.
    pub(crate) fn store(&self, name: &str) -> Server {
        let data = format!("disk://{}", self.text(name));
        Server::start(program(), &["store", "--listen", "{}", "--data", &data], 2, &self.path(&format!("{name}.log")))
    }

    /// The same with an HTTP port, these environment variables, and this command before it.
    pub(crate) fn store_under(&self, command: &[&str], name: &str, env: &[(&str, &str)]) -> Server {
        let data = format!("disk://{}", self.text(name));
        let own = [program(), "store", "--listen", "{}", "--http-listen", "127.0.0.1:0", "--data", &data];
        let whole = [command, &own].concat();
        let listen = whole.len() - 5;
        Server::start_in(whole[0], &whole[1..], listen - 1, &self.path(&format!("{name}.log")), env)
    }

    /// The store of `examples/python`, where Python has gRPC.
    pub(crate) fn python_store(&self, name: &str) -> Option<Server> {
        let python = tool("BLOBFERRY_PYTHON")?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/python/store.py");
        let data = self.text(name);
        let args = [script, "--listen", "{}", "--data", &data];
        Some(Server::start(&python, &args, 2, &self.path(&format!("{name}.log"))))
    }

    /// The store of `examples/go`, with these arguments, where Go is there.
    pub(crate) fn go_store(&self, name: &str, more: &[&str]) -> Option<Server> {
        let program = go_program("store")?;
        let data = self.text(name);
        let args = [&["-listen", "{}", "-data", &data], more].concat();
        Some(Server::start(&program, &args, 1, &self.path(&format!("{name}.log"))))
    }

    /// The store of `examples/rust`.
    pub(crate) fn rust_store(&self, name: &str) -> Option<Server> {
        let program = format!("{}/store", tool("BLOBFERRY_RUST_EXAMPLES")?);
        Some(Server::start(&program, &["{}", &self.text(name)], 0, &self.path(&format!("{name}.log"))))
    }

    /// A replicator with these stores and routes, each route `from` and `to`.
    pub(crate) fn replicator(&self, stores: &[(&str, &str)], routes: &[(&str, &str)]) -> Server {
        let mut config = String::new();
        for (name, url) in stores {
            config += &format!("[stores.{name}]\nendpoint = \"{url}\"\n");
        }
        for (from, to) in routes {
            config += &format!("[routes.{from}_to_{to}]\nfrom = \"{from}\"\nto = \"{to}\"\n");
        }
        self.replicator_with("replicator", &config)
    }

    /// The same, started by this command.
    pub(crate) fn replicator_under(
        &self,
        command: &[&str],
        stores: &[(&str, &str)],
        routes: &[(&str, &str)],
    ) -> Server {
        let mut replicator = self.replicator(stores, routes);
        replicator.kill();
        let (first, more) = command.split_first().unwrap();
        let before: Vec<String> =
            more.iter().map(|arg| (*arg).to_owned()).chain([replicator.program.clone()]).collect();
        replicator.listen += before.len();
        replicator.args.splice(0..0, before);
        replicator.program = (*first).to_owned();
        replicator.again();
        replicator
    }

    /// A replicator with this configuration, but for its address and its folder.
    pub(crate) fn replicator_with(&self, name: &str, config: &str) -> Server {
        self.replicator_in(name, config, &[])
    }

    /// The same, with these environment variables.
    pub(crate) fn replicator_in(&self, name: &str, config: &str, env: &[(&str, &str)]) -> Server {
        let file = self.path(&format!("{name}.toml"));
        // What a test announces is to be found by nobody else; whoever tests that says when.
        let off = |line: &str| match line.strip_prefix("[routes.") {
            Some(_) if !config.contains("full_sync") => format!("{line}\nfull_sync = {{ on_start = \"off\" }}\n"),
            _ => format!("{line}\n"),
        };
        let config: String = config.lines().map(off).collect();
        let data = self.text(&format!("{name}-data"));
        // A test is not to wait for the backoff that a real outage calls for.
        let config =
            format!("{config}\n[server]\ndata_dir = \"{data}\"\n[retry]\ninitial = \"50ms\"\nmax = \"500ms\"\n");
        fs::write(&file, config).unwrap();
        let args = ["serve", "--config", file.to_str().unwrap(), "--set", "server.listen={}"];
        Server::start_in(program(), &args, 4, &self.path(&format!("{name}.log")), env)
    }
}

/// The tool that this variable names; without it, checks are skipped aloud, but not in CI.
pub(crate) fn tool(variable: &str) -> Option<String> {
    let found = std::env::var(variable).ok().filter(|path| !path.is_empty());
    if found.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "{variable} must be set in CI (scripts/tools sets it)");
        eprintln!("skipped: {variable} is not set (`make test` sets it where the tool is there)");
    }
    found
}

/// A command of Go's in `examples/go`, where Go is there. It changes no file there, and asks git nothing.
pub(crate) fn go(arguments: &[&str]) -> Option<Command> {
    let mut command = Command::new(tool("BLOBFERRY_GO")?);
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/go");
    command.args(arguments).current_dir(folder).env("GOFLAGS", "-mod=readonly -buildvcs=false");
    Some(command)
}

/// A program of `examples/go`, built where Go is there. Go keeps what it compiles between the runs.
fn go_program(name: &str) -> Option<String> {
    static BUILT: OnceLock<()> = OnceLock::new();
    let folder = concat!(env!("CARGO_TARGET_TMPDIR"), "/go-programs/");
    let mut build = go(&["build", "-o", folder, "./store", "./producer"])?;
    BUILT.get_or_init(|| {
        let output = build.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    });
    Some(format!("{folder}{name}"))
}

/// The producer of `examples/go`, where Go is there.
pub(crate) fn go_producer() -> Option<Command> {
    go_program("producer").map(Command::new)
}

/// Holds a store to all rules of the conformance suite.
pub(crate) fn assert_conforms(store: &Server) {
    let output = Command::new(program()).args(["conformance", "--store", &store.url()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    let warned = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{warned}\n{}", store.said());
    assert!(said.lines().count() > 10, "{said}");
}

pub(crate) async fn replication(server: &Server) -> Replication {
    Replication::new(channel(&server.url()).await)
}

pub(crate) async fn receiver(server: &Server) -> Receiver {
    Receiver::new(channel(&server.url()).await)
}

pub(crate) async fn reader(server: &Server) -> Reader {
    Reader::new(channel(&server.url()).await).max_decoding_message_size(64 << 20)
}

pub(crate) async fn channel(url: &str) -> Channel {
    Channel::from_shared(url.to_owned()).unwrap().connect().await.unwrap()
}

/// Polls until `done` gives something.
pub(crate) async fn until<T, F: Future<Output = Option<T>>>(what: &str, mut done: impl FnMut() -> F) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = done().await {
            return found;
        }
        assert!(Instant::now() < deadline, "gave up waiting until {what}");
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}

/// Bytes that are different for each seed, and their ref.
pub(crate) fn blob(seed: u64, size: usize) -> (BlobRef, Vec<u8>) {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; size];
    rand::rngs::SmallRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    (DigestFunction::Sha256.ref_of(&bytes), bytes)
}

/// The messages of a whole `ReceiveBlob` stream.
pub(crate) fn messages(blob: BlobRef, bytes: &[u8], chunk: usize) -> Vec<pb::ReceiveBlobRequest> {
    let header = pb::BlobHeader { r#ref: blob.to_string(), size_bytes: Some(bytes.len() as u64), ..Default::default() };
    std::iter::once(header_message(header)).chain(bytes.chunks(chunk).map(chunk_message)).collect()
}

pub(crate) fn header_message(header: pb::BlobHeader) -> pb::ReceiveBlobRequest {
    pb::ReceiveBlobRequest { part: Some(pb::receive_blob_request::Part::Header(header)) }
}

pub(crate) fn chunk_message(bytes: &[u8]) -> pb::ReceiveBlobRequest {
    let chunk = bytes::Bytes::copy_from_slice(bytes);
    pb::ReceiveBlobRequest { part: Some(pb::receive_blob_request::Part::Chunk(chunk)) }
}

/// Writes a blob to a store, or announces it with its bytes to a replicator.
pub(crate) async fn send(
    to: &mut Receiver,
    blob: BlobRef,
    bytes: &[u8],
) -> Result<pb::ReceiveBlobResponse, tonic::Status> {
    let messages = messages(blob, bytes, 256 << 10);
    to.receive_blob(tokio_stream::iter(messages)).await.map(tonic::Response::into_inner)
}

/// The bytes of a blob in a store.
pub(crate) async fn fetch(from: &mut Reader, blob: BlobRef) -> Result<Vec<u8>, tonic::Status> {
    let request = pb::FetchBlobRequest { r#ref: blob.to_string(), offset: 0, length: None };
    let mut stream = from.fetch_blob(request).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(message) = stream.message().await? {
        if let Some(pb::fetch_blob_response::Part::Chunk(chunk)) = message.part {
            bytes.extend_from_slice(&chunk);
        }
    }
    Ok(bytes)
}

/// The refs of these that a store holds.
pub(crate) async fn held(at: &mut Reader, blobs: &[BlobRef]) -> usize {
    let mut found = 0;
    for page in blobs.chunks(10_000) {
        let refs = page.iter().map(ToString::to_string).collect();
        found += at.stat_blobs(pb::StatBlobsRequest { refs }).await.unwrap().into_inner().blobs.len();
    }
    found
}

/// The status of the only route.
pub(crate) async fn route(of: &mut Replication) -> pb::RouteStatus {
    let status = of.status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap();
    assert_eq!(status.routes.len(), 1, "{status:?}");
    status.routes.into_iter().next().unwrap()
}

/// Starts a full sync of the only route, and gives it when it has ended.
pub(crate) async fn full_sync(operator: &mut Replication) -> pb::FullSync {
    let started = operator.trigger_full_sync(pb::TriggerFullSyncRequest::default()).await.unwrap().into_inner();
    let id = started.full_sync.unwrap().id;
    until("the full sync has ended", async || {
        let request = pb::GetFullSyncRequest { id: id.clone(), ..Default::default() };
        let sync = operator.clone().get_full_sync(request).await.unwrap().into_inner().full_sync.unwrap();
        (sync.state() != pb::FullSyncState::Running).then_some(sync)
    })
    .await
}

/// Entries of a route in all lanes and states.
pub(crate) fn queued(route: &pb::RouteStatus) -> u64 {
    let counts = route.queued.as_ref().unwrap();
    [&counts.fresh, &counts.backfill]
        .into_iter()
        .flat_map(|lane| {
            let lane = lane.as_ref().unwrap();
            [&lane.ready, &lane.claimed, &lane.retrying, &lane.parked]
        })
        .map(|tally| tally.as_ref().unwrap().entries.unwrap())
        .sum()
}

/// Announces refs without bytes.
pub(crate) async fn announce(
    at: &mut Replication,
    source_store: &str,
    blobs: &[BlobRef],
) -> Result<pb::EnqueueBlobsResponse, tonic::Status> {
    let items = blobs.iter().map(|blob| pb::EnqueueItem { r#ref: blob.to_string(), ..Default::default() }).collect();
    let request = pb::EnqueueBlobsRequest { source_store: source_store.to_owned(), items, issue_wait_token: false };
    at.enqueue_blobs(request).await.map(tonic::Response::into_inner)
}

/// The reason in an error's `ErrorInfo` of the domain `blobferry.v1`; empty without one.
pub(crate) fn reason(status: &tonic::Status) -> String {
    use tonic_types::StatusExt;
    let info = status.get_details_error_info();
    info.filter(|info| info.domain == "blobferry.v1").map(|info| info.reason).unwrap_or_default()
}

/// The fields that an error's `BadRequest` names.
pub(crate) fn bad_fields(status: &tonic::Status) -> Vec<String> {
    use tonic_types::StatusExt;
    let details = status.get_details_bad_request();
    details.map(|bad| bad.field_violations.into_iter().map(|one| one.field).collect()).unwrap_or_default()
}
