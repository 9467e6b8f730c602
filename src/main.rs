//! The `blobferry` command: arguments, runtime, signals, exit code.
//!
//! No TLS provider is installed here: ring is the only one that is built in, and rustls and tonic pick it themselves.

use blobferry::cli::{self, Cli, CommandError, Exit};
use blobferry::internal::failpoint;
use clap::Parser as _;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Half of the work of moving small blobs is buffers that come and go; glibc gives their memory back to the kernel each time,
/// and asks for it again. RocksDB's C++ allocates from it too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// How long standard error may take the last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long work on blocking threads may hold up the end of the program.
const BLOCKING_GRACE: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(arguments) => return ended(cli::answer(&arguments)),
    };
    if let Ok(rules) = std::env::var(failpoint::VARIABLE)
        && let Err(error) = failpoint::arm(&rules)
    {
        say(&error.to_string());
        return Exit::Usage.into();
    }
    if let Some(file) = std::env::var_os(failpoint::CLOCK_VARIABLE) {
        failpoint::shift_clock(file.into());
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return failed(&format!("the runtime cannot be started: {error}")),
    };
    let exit = match runtime.block_on(run(cli)) {
        Ok(result) => ended(result),
        Err(error) => failed(&format!("signals cannot be received: {error}")),
    };
    runtime.shutdown_timeout(BLOCKING_GRACE);
    exit
}

/// Runs the command. The first SIGINT or SIGTERM tells it to stop, the second ends it where it stands.
async fn run(cli: Cli) -> std::io::Result<Result<Exit, CommandError>> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let signals = async {
        for told in [false, true] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if !told {
                stop.cancel();
            }
        }
    };
    Ok(tokio::select! {
        ended = cli::run(cli, stop.clone()) => ended,
        () = signals => {
            say("told twice to stop; leaving at once");
            Ok(Exit::Interrupted)
        }
    })
}

fn ended(result: Result<Exit, CommandError>) -> ExitCode {
    let failure = match result {
        Ok(exit) => return exit.into(),
        Err(failure) => failure,
    };
    // Who cut the pipe knows.
    if failure.exit != Exit::Unread {
        say(&failure.to_string());
    }
    failure.exit.into()
}

fn failed(what: &str) -> ExitCode {
    say(what);
    Exit::Failed.into()
}

fn say(what: &str) {
    let line = format!("blobferry: {what}\n");
    let (said, heard) = std::sync::mpsc::channel::<()>();
    // Nobody can be told where this fails, and nobody waits where it hangs.
    let saying = std::thread::Builder::new().spawn(move || {
        drop(std::io::stderr().write_all(line.as_bytes()));
        drop(said);
    });
    if saying.is_ok() {
        heard.recv_timeout(LAST_WORDS).ok();
    }
}
