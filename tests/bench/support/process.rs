//! Programs under load: started at a free port, ended with the handle that started them, and nothing else.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// How long a server may take until it listens; opening a queue again after a kill included.
const START: Duration = Duration::from_secs(60);

/// The program that is measured: that of this build, unless `BLOBFERRY_BIN` names another.
pub(crate) fn program() -> PathBuf {
    std::env::var_os("BLOBFERRY_BIN").map_or_else(|| env!("CARGO_BIN_EXE_blobferry").into(), PathBuf::from)
}

/// A running server, ended when dropped.
pub(crate) struct Process {
    program: PathBuf,
    /// `{}` among them stands for the address.
    args: Vec<String>,
    log: PathBuf,
    /// Set for it beside what is set for us.
    variables: Vec<(String, String)>,
    running: Option<Running>,
    /// `host:port`; the same after [`Process::again`].
    pub(crate) address: String,
    /// The same of its HTTP port, where it has one.
    pub(crate) http: Option<String>,
}

struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Process {
    /// Starts it. It must print a URL in its first line. What it says on stderr is appended to `log`.
    pub(crate) fn start(program: &Path, args: &[&str], log: &Path) -> Result<Self> {
        Self::start_with(program, args, log, Vec::new())
    }

    /// The same, with these environment variables, also when it is started again.
    pub(crate) fn start_with(
        program: &Path,
        args: &[&str],
        log: &Path,
        variables: Vec<(String, String)>,
    ) -> Result<Self> {
        let mut process = Self {
            program: program.to_owned(),
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            log: log.to_owned(),
            variables,
            running: None,
            address: "127.0.0.1:0".to_owned(),
            http: None,
        };
        process.again()?;
        Ok(process)
    }

    /// Starts it again after it ended, at the port that it had.
    pub(crate) fn again(&mut self) -> Result<()> {
        let deadline = Instant::now() + START;
        loop {
            let (line, running) = first_line(self.spawn()?, deadline)?;
            let mut addresses = line.split_whitespace().filter_map(|word| word.strip_prefix("http://"));
            if let Some(address) = addresses.next() {
                address.clone_into(&mut self.address);
                self.http = addresses.next().map(str::to_owned);
                self.running = Some(running);
                return Ok(());
            }
            // The port may have been lent to an outgoing connection meanwhile.
            let status = end(running)?;
            let said = self.said();
            ensure!(
                Instant::now() < deadline,
                "{} {:?} ended with {status}:\n{said}",
                self.program.display(),
                self.args
            );
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Starts it at its port without waiting until it listens.
    fn spawn(&self) -> Result<Child> {
        ensure!(self.running.is_none(), "it still runs");
        let log = File::options().create(true).append(true).open(&self.log)?;
        Command::new(&self.program)
            .args(self.args.iter().map(|arg| arg.replace("{}", &self.address)))
            .env_remove("RUST_LOG")
            .env("BLOBFERRY__SERVER__HTTP_LISTEN", "127.0.0.1:0")
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", self.program.display()))
    }

    /// Starts it and kills it again after this time, whatever it has come to until then.
    pub(crate) fn interrupted_start(&self, after: Duration) -> Result<()> {
        let mut child = self.spawn()?;
        std::thread::sleep(after);
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.running.take().map_or(Ok(()), |running| end(running).map(drop))
    }

    /// The end of what it logged, for a message about its failure.
    pub(crate) fn said(&self) -> String {
        let said = fs::read(&self.log).unwrap_or_default();
        String::from_utf8_lossy(&said[said.len().saturating_sub(4000)..]).into_owned()
    }

    /// Its id; fails if it was killed.
    pub(crate) fn pid(&self) -> Result<u32> {
        self.running.as_ref().map(|running| running.child.id()).ok_or_else(|| anyhow!("it does not run"))
    }

    /// Its standard input and output, after the first line.
    pub(crate) fn talk(&mut self) -> Result<(&mut ChildStdin, &mut BufReader<ChildStdout>)> {
        let running = self.running.as_mut().ok_or_else(|| anyhow!("it does not run"))?;
        Ok((&mut running.stdin, &mut running.stdout))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            eprintln!("{} could not be ended: {error}", self.program.display());
        }
    }
}

/// The first line that it prints. It is killed if it has printed none by the deadline.
fn first_line(mut child: Child, deadline: Instant) -> Result<(String, Running)> {
    let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else { bail!("no pipes") };
    let (sender, receiver) = mpsc::channel();
    let reading = std::thread::spawn(move || {
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        let read = stdout.read_line(&mut line);
        // Nobody waits any more after the deadline.
        sender.send(()).unwrap_or_default();
        read.map(|_| (line, stdout))
    });
    let in_time = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())).is_ok();
    if !in_time {
        child.kill()?;
        child.wait()?;
    }
    let (line, stdout) = reading.join().map_err(|_| anyhow!("the reader panicked"))??;
    ensure!(in_time, "it printed nothing within {START:?}");
    Ok((line, Running { child, stdin, stdout }))
}

fn end(mut running: Running) -> Result<std::process::ExitStatus> {
    // Fails only where it has ended by itself.
    if let Err(error) = running.child.kill() {
        eprintln!("kill: {error}");
    }
    Ok(running.child.wait()?)
}

/// A `blobferry store` over this URL.
pub(crate) fn store(dir: &Path, name: &str, data: &str) -> Result<Process> {
    store_with(dir, name, data, Vec::new())
}

/// The same, with these environment variables.
pub(crate) fn store_with(dir: &Path, name: &str, data: &str, variables: Vec<(String, String)>) -> Result<Process> {
    let args = ["store", "--listen", "{}", "--data", data];
    Process::start_with(&program(), &args, &dir.join(format!("{name}.log")), variables)
}

/// A replicator with one route `a_to_b` between these URLs, with its queue in `dir/name`; `more` goes into the file too. No full
/// sync at the start: it would hide what the queue had lost.
pub(crate) fn replicator(dir: &Path, name: &str, from: &str, to: &str, workers: usize, more: &str) -> Result<Process> {
    replicator_with(dir, name, &dir.join(name), [from, to], workers, more, Vec::new())
}

/// The same, with its queue in `data`, and with these environment variables.
pub(crate) fn replicator_with(
    dir: &Path,
    name: &str,
    data: &Path,
    [from, to]: [&str; 2],
    workers: usize,
    more: &str,
    variables: Vec<(String, String)>,
) -> Result<Process> {
    let file = config(dir, name, data, [from, to], workers, more)?;
    let args = ["serve", "--config", file.to_str().context("the path is no text")?, "--set", "server.listen={}"];
    Process::start_with(&program(), &args, &dir.join(format!("{name}.log")), variables)
}

/// Writes the configuration of such a replicator.
pub(crate) fn config(
    dir: &Path,
    name: &str,
    data: &Path,
    [from, to]: [&str; 2],
    workers: usize,
    more: &str,
) -> Result<PathBuf> {
    let file = dir.join(format!("{name}.toml"));
    let text = format!(
        "[server]\ndata_dir = \"{}\"\n[stores.a]\nendpoint = \"{from}\"\n[stores.b]\nendpoint = \"{to}\"\n\
         [routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\nworkers = {workers}\n\
         full_sync = {{ on_start = \"off\" }}\n{more}",
        data.display()
    );
    fs::write(&file, text)?;
    Ok(file)
}
