//! The same blobs by `rclone copy` between two S3 servers, beside blobferry between two disk stores.
//!
//! Both sides copy identical bytes, to an empty destination, as many at a time. What rclone does is less: it has no queue,
//! compares no digest, and its servers (s3s-fs, plain files) sync nothing. Both programs must be there: on the path, or
//! named by `BLOBFERRY_RCLONE` and `BLOBFERRY_S3S_FS`.

use crate::Settings;
use crate::sections::load;
use crate::subject::{Load, SEEDS, Subject, distinct};
use crate::support::leash;
use crate::support::process::Process;
use crate::support::report::{Comparison, Expense, Report};
use crate::throughput::last;
use anyhow::{Context as _, Result, ensure};
use bytesize::ByteSize;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};
use tokio::process::Command;
use tokio::time::timeout;

/// Small ones in a round.
const SMALL: usize = 4_000;
/// Those of [`LARGE_SIZE`] in a round.
const LARGE: usize = 32;
const LARGE_SIZE: ByteSize = ByteSize(8 << 20);
/// Copies at a time, on both sides.
const AT_A_TIME: usize = 32;
/// Rounds at most: these take seconds each.
const ROUNDS: usize = 7;
/// How long one copy may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// The bucket, and the folder that it is.
const BUCKET: &str = "blobs";

/// The programs.
struct Programs {
    rclone: PathBuf,
    s3s_fs: PathBuf,
}

pub(crate) async fn compare(settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
    println!("\nrclone between two S3 servers, the same blobs");
    let programs = match (find("BLOBFERRY_RCLONE", "rclone"), find("BLOBFERRY_S3S_FS", "s3s-fs")) {
        (Some(rclone), Some(s3s_fs)) => Programs { rclone, s3s_fs },
        (rclone, _) => {
            let missing = if rclone.is_none() { "rclone" } else { "s3s-fs" };
            report.skip(format!("the comparison with rclone: {missing} is not on the path"));
            return Ok(());
        }
    };
    let small = load(settings.small_size, settings.scaled(SMALL), AT_A_TIME, true)?;
    side_by_side(settings, &small, &programs, dir, report).await?;
    let large = load(LARGE_SIZE, settings.scaled(LARGE), AT_A_TIME, true)?;
    side_by_side(settings, &large, &programs, dir, report).await
}

/// The program that the variable names, or that is on the path.
fn find(variable: &str, name: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let on_path =
        || std::env::split_paths(&std::env::var_os("PATH")?).map(|dir| dir.join(name)).find(|path| path.is_file());
    named.or_else(on_path)
}

async fn side_by_side(
    settings: &Settings,
    load: &Load,
    programs: &Programs,
    dir: &Path,
    report: &mut Report,
) -> Result<()> {
    println!("  {}", load.name);
    let mut ours = Subject::start(load, dir).await?;
    let theirs = Theirs::start(load, programs, dir)?;
    let mut comparison = Comparison::new(&load.name, load.unit(), &["rclone, s3s-fs to s3s-fs, nothing synced"]);
    let mut expense = Expense::of(format!("replicator, {}", load.name), true);
    for round in settings.rounds().take(ROUNDS) {
        for turn in 0..2 {
            if (turn + round) % 2 == 1 {
                comparison.floors[0].values.push(load.rate(theirs.copy(load).await?));
            } else {
                let done = ours.round(load, dir).await?;
                comparison.blobferry.push(load.rate(done.took));
                expense.add(load.count, load.bytes(), done.usage.cpu_seconds, done.usage.peak);
            }
        }
        let (ours, theirs) = (last(&comparison.blobferry), last(&comparison.floors[0].values));
        println!("  round {}: blobferry {ours} {}, rclone {theirs}", round + 1, load.unit());
    }
    report.compare(comparison);
    report.expend(expense);
    drop(theirs);
    ours.end(dir)?;
    fs::remove_dir_all(dir.join("s3"))?;
    Ok(())
}

/// Two S3 servers, of which one is full, and the folder that the other one writes to.
struct Theirs {
    rclone: PathBuf,
    config: PathBuf,
    destination: PathBuf,
    _servers: [Process; 2],
}

impl Theirs {
    fn start(load: &Load, programs: &Programs, dir: &Path) -> Result<Self> {
        let root = dir.join("s3");
        let folders = ["source", "destination"].map(|name| root.join(name));
        for folder in &folders {
            fs::create_dir_all(folder.join(BUCKET))?;
        }
        for index in 0..load.count {
            let (blob, bytes) = distinct(index, SEEDS, load.size);
            fs::write(folders[0].join(BUCKET).join(blob.to_string()), bytes)?;
        }
        let server = |folder: &Path| {
            let mut args = leash::before(&programs.s3s_fs)?;
            let folder = folder.to_str().context("the path is no text")?;
            args.extend(["--host", "127.0.0.1", "--port", "0", folder].map(str::to_owned));
            let args: Vec<&str> = args.iter().map(String::as_str).collect();
            // Its first line says where it listens, if it is asked to log.
            let variables = vec![("RUST_LOG".to_owned(), "s3s_fs=info".to_owned())];
            Process::start_with(&std::env::current_exe()?, &args, &dir.join("s3s-fs.log"), variables)
        };
        let servers = [server(&folders[0])?, server(&folders[1])?];
        let config = root.join("rclone.conf");
        let remote = |name: &str, server: &Process| {
            format!("[{name}]\ntype = s3\nprovider = Other\nendpoint = {}\n", server.url())
        };
        fs::write(&config, remote("source", &servers[0]) + &remote("destination", &servers[1]))?;
        let [_, destination] = folders;
        Ok(Self { rclone: programs.rclone.clone(), config, destination, _servers: servers })
    }

    /// Copies everything to an empty destination; how long it took.
    async fn copy(&self, load: &Load) -> Result<Duration> {
        fs::remove_dir_all(&self.destination)?;
        let bucket = self.destination.join(BUCKET);
        fs::create_dir_all(&bucket)?;
        let at_a_time = AT_A_TIME.to_string();
        let start = Instant::now();
        let copying = Command::new(std::env::current_exe()?)
            .args(leash::before(&self.rclone)?)
            .arg("--config")
            .arg(&self.config)
            .args(["copy", "--s3-no-check-bucket", "--transfers", &at_a_time, "--checkers", &at_a_time])
            .args([format!("source:{BUCKET}"), format!("destination:{BUCKET}")])
            // For servers on the network, not for these.
            .env_remove("AWS_CA_BUNDLE")
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let done = timeout(PATIENCE, copying).await.context("rclone does not end")??;
        let took = start.elapsed();
        ensure!(done.status.success(), "rclone: {}: {}", done.status, String::from_utf8_lossy(&done.stderr));
        let copied = fs::read_dir(&bucket)?.count();
        ensure!(copied == load.count, "rclone copied {copied} of {}", load.count);
        Ok(took)
    }
}
