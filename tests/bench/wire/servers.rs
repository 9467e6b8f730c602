//! Stores and replicators that die with the benchmark.

use crate::support::leash;
use crate::support::process::{self, Process};
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// Where a store keeps its blobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Data {
    /// Empty whenever it is started.
    Memory,
    Disk(PathBuf),
}

/// A `blobferry store`.
pub(crate) fn store(dir: &Path, name: &str, data: &Data) -> Result<Process> {
    let url = match data {
        Data::Memory => "memory://".to_owned(),
        Data::Disk(path) => format!("disk://{}", path.display()),
    };
    blobferry(dir, name, &["store", "--listen", "{}", "--data", &url])
}

/// A replicator with one route between these URLs, with its queue in `dir/name`.
pub(crate) fn replicator(dir: &Path, name: &str, from: &str, to: &str, workers: usize) -> Result<Process> {
    let file = process::config(dir, name, &dir.join(name), [from, to], workers, "")?;
    let file = file.to_str().context("the path is no text")?;
    blobferry(dir, name, &["serve", "--config", file, "--set", "server.listen={}"])
}

fn blobferry(dir: &Path, name: &str, args: &[&str]) -> Result<Process> {
    let before = leash::before(&process::program())?;
    let args: Vec<&str> = before.iter().map(String::as_str).chain(args.iter().copied()).collect();
    Process::start(&std::env::current_exe()?, &args, &dir.join(format!("{name}.log")))
}
