//! Facts about the machine, and what the kernel says about a process.

use anyhow::{Context as _, Result};
use serde::Serialize;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::time::Instant;

/// Ticks of `/proc/PID/stat` in a second: `USER_HZ`, which is 100 on every architecture that we build for.
const TICKS_PER_SECOND: f64 = 100.0;
/// Writes of a probe.
const PROBES: u32 = 300;

/// What the figures were measured on.
#[derive(Serialize)]
pub(crate) struct Machine {
    cores: usize,
    cpu: String,
    kernel: String,
    memory_mib: u64,
    load_average_before: String,
    load_average_after: String,
    fsync_before: Fsync,
    fsync_after: Option<Fsync>,
}

/// What appending 4 KiB and `fdatasync` costs.
#[derive(Serialize)]
pub(crate) struct Fsync {
    per_second: f64,
    p50_ms: f64,
    p99_ms: f64,
}

pub(crate) fn facts(dir: &Path) -> Result<Machine> {
    let cpus = fs::read_to_string("/proc/cpuinfo")?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    Ok(Machine {
        cores: std::thread::available_parallelism()?.get(),
        cpu: field(&cpus, "model name").unwrap_or("unknown").to_owned(),
        kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned(),
        memory_mib: kib(&memory, "MemTotal").unwrap_or(0) / 1024,
        load_average_before: load_average()?,
        load_average_after: String::new(),
        fsync_before: fsync_probe(dir)?,
        fsync_after: None,
    })
}

impl Machine {
    pub(crate) fn after(&mut self, fsync: Fsync) {
        self.fsync_after = Some(fsync);
        self.load_average_after = load_average().unwrap_or_default();
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        let mut lines = vec![
            format!("{} cores of {}, {} MiB, Linux {}", self.cores, self.cpu, self.memory_mib, self.kernel),
            format!("load average {} before, {} after", self.load_average_before, self.load_average_after),
        ];
        for (when, probe) in [("before", Some(&self.fsync_before)), ("after", self.fsync_after.as_ref())] {
            if let Some(Fsync { per_second, p50_ms, p99_ms }) = probe {
                lines.push(format!(
                    "write 4 KiB + fdatasync {when}: {per_second:.0}/s, p50 {p50_ms:.2} ms, p99 {p99_ms:.2} ms"
                ));
            }
        }
        lines
    }
}

/// The one, five and fifteen minutes of the load average.
fn load_average() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split_whitespace().take(3).collect::<Vec<_>>().join(" "))
}

pub(crate) fn fsync_probe(dir: &Path) -> Result<Fsync> {
    let path = dir.join("fsync-probe");
    let mut file = File::create(&path)?;
    let mut spans = Vec::new();
    let start = Instant::now();
    for _ in 0..PROBES {
        let before = Instant::now();
        file.write_all(&[7; 4096])?;
        file.sync_data()?;
        spans.push(before.elapsed().as_secs_f64() * 1000.0);
    }
    let per_second = f64::from(PROBES) / start.elapsed().as_secs_f64();
    fs::remove_file(&path)?;
    spans.sort_by(f64::total_cmp);
    Ok(Fsync { per_second, p50_ms: spans[spans.len() / 2], p99_ms: spans[spans.len() * 99 / 100] })
}

/// What a process has used so far.
#[derive(Clone, Copy)]
pub(crate) struct Usage {
    /// User and system time, all threads.
    pub(crate) cpu_seconds: f64,
    /// Resident now, in bytes.
    pub(crate) resident: u64,
    /// Resident at most since it started, in bytes.
    pub(crate) peak: u64,
}

pub(crate) fn usage(pid: u32) -> Result<Usage> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may hold anything; user and system ticks are the 12th and 13th word after it.
    let (_, rest) = stat.rsplit_once(')').context("no name in stat")?;
    let words = rest.split_whitespace().skip(11).take(2);
    let ticks: f64 = words.map(|word| word.parse::<f64>().unwrap_or(0.0)).sum();
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    Ok(Usage {
        cpu_seconds: ticks / TICKS_PER_SECOND,
        resident: kib(&status, "VmRSS").context("no VmRSS")? * 1024,
        peak: kib(&status, "VmHWM").context("no VmHWM")? * 1024,
    })
}

/// The value of the first `key : value` line.
fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        (name.trim() == key).then(|| value.trim())
    })
}

fn kib(text: &str, key: &str) -> Option<u64> {
    field(text, key)?.strip_suffix("kB")?.trim().parse().ok()
}
