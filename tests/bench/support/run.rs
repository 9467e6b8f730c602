//! What the `main` of every benchmark does.

use anyhow::{Result, bail};
use std::path::Path;
use std::process::ExitCode;
use tempfile::TempDir;
use tokio::signal::unix::{SignalKind, signal};

/// Runs a benchmark's work on a runtime of its own. An error is told, and is the exit code 1.
pub(crate) fn run(name: &str, work: impl Future<Output = Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let done = runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(work));
    verdict(name, done.map(|()| true))
}

/// The exit code of a benchmark that ended so: 0 only if what it looked for is as it should be.
pub(crate) fn verdict(name: &str, done: Result<bool>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Ends early at Ctrl-C or SIGTERM, so that what was started is ended and the folder is removed.
pub(crate) async fn interruptible(work: impl Future<Output = Result<()>>) -> Result<()> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => bail!("interrupted"),
        _ = terminate.recv() => bail!("terminated"),
    }
}

/// A folder of the benchmark's own in this one, removed when dropped.
pub(crate) fn folder(within: &Path, name: &str) -> Result<TempDir> {
    std::fs::create_dir_all(within)?;
    Ok(tempfile::Builder::new().prefix(&format!("blobferry-{name}-")).tempdir_in(within)?)
}

/// The same for one whose folder is to be looked at where not all is as it should be: then it stays.
pub(crate) fn keeping(within: &Path, name: &str, work: impl FnOnce(&Path) -> Result<bool>) -> Result<bool> {
    let dir = folder(within, name)?;
    let done = work(dir.path());
    if !matches!(done, Ok(true)) {
        println!("the folder stays: {}", dir.keep().display());
    }
    done
}
