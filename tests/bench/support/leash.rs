//! Programs that die with the benchmark that started them, however that ends.
//!
//! A handle's drop is not enough: a benchmark that is killed with `kill -9` drops nothing. So the benchmark starts itself,
//! with [`NAME`] as its first argument; that asks the kernel to kill it when its parent dies, which outlives `exec`, and becomes
//! the program.

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Signal, getppid, set_parent_process_death_signal};
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

/// The first argument of a benchmark that is to become another program; its own process id and the program follow.
pub(crate) const NAME: &str = "leash";

/// What to put before the arguments of `program`, with this very program started in its place.
///
/// To be called from the thread that `block_on` runs in: the signal comes when the thread that started the process ends.
pub(crate) fn before(program: &Path) -> Result<Vec<String>> {
    let program = program.to_str().context("the path is no text")?;
    Ok(vec![NAME.to_owned(), std::process::id().to_string(), program.to_owned()])
}

/// Becomes the program. Comes back only with an error.
pub(crate) fn become_program(parent: u32, program: &[OsString]) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL)).context("prctl")?;
    let now = getppid().map(|pid| pid.as_raw_nonzero().get().unsigned_abs());
    ensure!(now == Some(parent), "the benchmark is gone");
    let (program, args) = program.split_first().context("no program")?;
    Err(Command::new(program).args(args).exec().into())
}
