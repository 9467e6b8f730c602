//! The process itself, as Linux tells of it in `/proc` (`man 5 proc`), under the names that all of Prometheus' libraries use.

use crate::metrics::{MetricKind, Text, Value};
use std::fs;

/// What could be read; what could not is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct ProcessFigures {
    cpu_seconds: Option<f64>,
    start_time: Option<f64>,
    virtual_bytes: Option<u64>,
    resident_bytes: Option<u64>,
    threads: Option<u64>,
    open_files: Option<u64>,
    max_files: Option<u64>,
}

impl ProcessFigures {
    /// Reads files of the kernel's, which takes no disk.
    pub(super) fn read() -> Self {
        let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let system = fs::read_to_string("/proc/stat").unwrap_or_default();
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let ticks = rustix::param::clock_ticks_per_second();
        let mut figures = Self::parse(&stat, &system, &limits, ticks, rustix::param::page_size() as u64);
        // The folder that is being read is one of them.
        figures.open_files = fs::read_dir("/proc/self/fd").ok().map(|files| files.count().saturating_sub(1) as u64);
        figures
    }

    #[expect(clippy::cast_precision_loss, reason = "seconds for people")]
    fn parse(stat: &str, system: &str, limits: &str, ticks: u64, page: u64) -> Self {
        // The second field is the program's name in parentheses, which may hold anything; the third comes after the last.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map(|(_, rest)| rest.split_whitespace().collect()).unwrap_or_default();
        // By its number in the manual page.
        let field = |number: usize| fields.get(number - 3)?.parse::<u64>().ok();
        let seconds = |of: u64| of as f64 / ticks.max(1) as f64;
        let booted = system.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        let max_files = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
        Self {
            cpu_seconds: field(14).zip(field(15)).map(|(user, kernel)| seconds(user + kernel)),
            start_time: field(22).zip(booted).map(|(start, booted)| booted as f64 + seconds(start)),
            virtual_bytes: field(23),
            resident_bytes: field(24).map(|pages| pages.saturating_mul(page)),
            threads: field(20),
            open_files: None,
            max_files: max_files.and_then(|max| max.parse().ok()),
        }
    }
}

pub(super) fn write(text: &mut Text, figures: &ProcessFigures) {
    let mut one = |name: &'static str, kind: MetricKind, help: &str, value: Option<Value>| {
        let mut family = text.family(name, kind, help);
        if let Some(value) = value {
            family.sample(&[], value);
        }
    };
    let whole = |value: Option<u64>| value.map(Value::Whole);
    let float = |value: Option<f64>| value.map(Value::Float);
    one("process_cpu_seconds", MetricKind::Counter, "CPU time that this process has used.", float(figures.cpu_seconds));
    one(
        "process_start_time_seconds",
        MetricKind::Gauge,
        "When this process started, in seconds since 1970.",
        float(figures.start_time),
    );
    one(
        "process_resident_memory_bytes",
        MetricKind::Gauge,
        "Memory of this process that is in RAM.",
        whole(figures.resident_bytes),
    );
    one(
        "process_virtual_memory_bytes",
        MetricKind::Gauge,
        "Address space of this process.",
        whole(figures.virtual_bytes),
    );
    one("process_threads", MetricKind::Gauge, "Threads of this process.", whole(figures.threads));
    one(
        "process_open_fds",
        MetricKind::Gauge,
        "Files, sockets and the like that this process has open.",
        whole(figures.open_files),
    );
    one("process_max_fds", MetricKind::Gauge, "How many it may have open.", whole(figures.max_files));
}

#[cfg(test)]
mod tests {
    use super::ProcessFigures;

    #[test]
    fn the_kernels_files_are_read_by_their_fields() {
        let stat = "4242 (a ) name) S 1 4242 4242 0 -1 4194560 2000 0 3 0 150 50 0 0 20 0 9 0 1000 123456789 2560 18446744073709551615 1 1 0";
        let limits = "Limit   Soft Limit  Hard Limit  Units\nMax open files            1024                 524288               files\n";
        let figures = ProcessFigures::parse(stat, "cpu 1 2\nbtime 1700000000\n", limits, 100, 4096);
        assert_eq!((figures.cpu_seconds, figures.start_time), (Some(2.0), Some(1_700_000_010.0)));
        assert_eq!((figures.virtual_bytes, figures.resident_bytes), (Some(123_456_789), Some(2560 * 4096)));
        assert_eq!((figures.threads, figures.max_files), (Some(9), Some(1024)));
        assert_eq!(ProcessFigures::parse("", "", "", 100, 4096), ProcessFigures::default());
        let unlimited = "Max open files            unlimited            unlimited            files\n";
        assert_eq!(ProcessFigures::parse("", "", unlimited, 100, 4096).max_files, None);
    }

    #[test]
    fn this_process_has_all_of_them() {
        let ProcessFigures { cpu_seconds, start_time, virtual_bytes, resident_bytes, threads, open_files, .. } =
            ProcessFigures::read();
        assert!(cpu_seconds.is_some() && start_time.is_some_and(|time| time > 1.6e9));
        assert!(resident_bytes.is_some_and(|bytes| bytes > 1 << 20) && virtual_bytes > resident_bytes);
        assert!(threads.is_some_and(|threads| threads > 0) && open_files.is_some_and(|files| files > 2));
    }
}
