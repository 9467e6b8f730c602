//! The options.

use crate::sections::Section;
use bytesize::ByteSize;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// How much of the usual a quick run does, in percent.
const QUICK: u32 = 2;
/// The largest blob of a quick run, in bytes.
const QUICK_SIZE: u64 = 16 << 20;

#[derive(clap::Args)]
pub(crate) struct Settings {
    /// Rounds of each figure. Default: 15, or 1 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: Option<u32>,
    /// A smoke test of a minute or so: everything once, and little of it. Its figures mean nothing.
    #[arg(long)]
    quick: bool,
    /// How much of the usual there is to do in a round, in percent. Default: 100, or 2 with --quick.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    percent: Option<u32>,
    /// Begins no round after this.
    #[arg(long, default_value = "90min", value_parser = deadline)]
    time: Instant,
    /// Only these figures.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Section::ALL)]
    pub(crate) only: Vec<Section>,
    /// All figures of all rounds go to this file. Default: bench.json beside the build.
    #[arg(long, value_name = "FILE", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../bench.json"))]
    pub(crate) json: PathBuf,
    /// Where queues and disk stores lie while it runs. Default: cargo's folder for such, beside the build.
    #[arg(long, value_name = "DIR", default_value = env!("CARGO_TARGET_TMPDIR"))]
    pub(crate) dir: PathBuf,
    /// Large blobs in a round.
    #[arg(long, default_value_t = 8)]
    pub(crate) large_count: usize,
    /// The size of a large blob.
    #[arg(long, default_value = "64MiB")]
    pub(crate) large_size: ByteSize,
    /// Large blobs at a time.
    #[arg(long, default_value_t = 4)]
    pub(crate) large_workers: usize,
    /// Small blobs in a round.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) small_count: usize,
    /// The size of a small blob.
    #[arg(long, default_value = "4KiB")]
    pub(crate) small_size: ByteSize,
    /// What `workers` is set to for small blobs.
    #[arg(long, default_value_t = 32)]
    pub(crate) small_workers: usize,
    /// The sizes that are measured beside those.
    #[arg(long, value_delimiter = ',', default_value = "0B,1B,64KiB,1MiB,1GiB")]
    pub(crate) sizes: Vec<ByteSize>,
    /// The delays of slow links, there and back.
    #[arg(long, value_delimiter = ',', default_value = "20ms,100ms", value_parser = humantime::parse_duration)]
    pub(crate) delays: Vec<Duration>,
    /// What a slow link can do in each direction, in bytes per second.
    #[arg(long, default_value = "100MB")]
    pub(crate) bytes_per_second: ByteSize,
    /// The size of the blob that small ones are measured beside.
    #[arg(long, default_value = "4GiB")]
    pub(crate) lag_large_size: ByteSize,
    /// How many these are.
    #[arg(long, default_value_t = 10_000)]
    pub(crate) lag_count: usize,
    /// How many of them are announced per second.
    #[arg(long, default_value_t = 1_500)]
    pub(crate) lag_rate: u32,
    /// How long announcements are made in a round.
    #[arg(long, default_value = "2s", value_parser = humantime::parse_duration)]
    announce_time: Duration,
    /// Blobs in each store that a full sync compares.
    #[arg(long, default_value_t = 300_000)]
    pub(crate) sync_blobs: usize,
    /// The size of the blob that passes while memory is watched.
    #[arg(long, default_value = "2GiB")]
    pub(crate) memory_size: ByteSize,
    /// Measures the floors alone, where there are any without blobferry.
    #[arg(long)]
    pub(crate) floors_only: bool,
}

fn deadline(text: &str) -> Result<Instant, humantime::DurationError> {
    Ok(Instant::now() + humantime::parse_duration(text)?)
}

impl Settings {
    /// As asked for, cut down where that is quick.
    pub(crate) fn quick(mut self) -> Self {
        if self.quick {
            self.rounds = self.rounds.or(Some(1));
            self.percent = self.percent.or(Some(QUICK));
            self.sizes.retain(|size| size.as_u64() <= QUICK_SIZE);
            self.large_size = self.large_size.min(ByteSize(QUICK_SIZE));
        }
        self
    }

    /// What must be said above the table.
    pub(crate) fn note(&self) -> &'static str {
        if self.quick {
            "QUICK: too little of everything; these figures show only that all of them come out\n"
        } else {
            ""
        }
    }

    /// The numbers of the rounds, to the last one or the first that would begin too late. There is always one.
    pub(crate) fn rounds(&self) -> impl Iterator<Item = u32> {
        let time = self.time;
        (0..self.rounds.unwrap_or(15)).take_while(move |round| *round == 0 || Instant::now() < time)
    }

    fn percent(&self) -> u32 {
        self.percent.unwrap_or(100)
    }

    /// So much of a number, at least 1.
    pub(crate) fn scaled(&self, count: usize) -> usize {
        (count * self.percent() as usize / 100).max(1)
    }

    /// So much of a size.
    pub(crate) fn scaled_bytes(&self, size: ByteSize) -> u64 {
        size.as_u64().saturating_mul(u64::from(self.percent())) / 100
    }

    pub(crate) fn announce_time(&self) -> Duration {
        (self.announce_time * self.percent() / 100).max(Duration::from_millis(200))
    }
}
