//! The configuration: TOML, over defaults, under environment variables and flags; strict, with every problem at once.
//!
//! Three sources are merged into one tree (`tree`) that remembers where each value stands, and the tree is then read by
//! type (`read`, `sections`): text from the environment or a flag becomes what its key needs, so that `true`, `32` and `30s` need
//! no quotes there. What is asked of a section is what is known in it; all else is an unknown key. Nothing here looks
//! at the machine: no file, no environment, no name resolution.
//!
//! A key exists only if the service honours it. Sizes and durations carry their unit. An environment variable is
//! `BLOBFERRY__` and the key's parts in capitals, joined by `__`: `BLOBFERRY__STORES__PRIMARY__ENDPOINT`. A single underscore
//! keeps clear of the variables that Kubernetes makes of a Service's name.

mod print;
mod read;
mod sections;
mod spelling;
mod tree;

use crate::backoff::{Backoff, OnMissing, Patience};
use crate::limits::{BlobRate, Limits};
use http::Uri;
use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;
use tree::Tree;

/// All settings of a replicator. [`Default`] is what an empty configuration gives: no stores and no routes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// `[server]`: where it listens, and where the queue is.
    pub server: ServerConfig,
    /// `[stores.NAME]`: the peers, by name.
    pub stores: BTreeMap<String, StoreConfig>,
    /// `[routes.NAME]`: who is copied to whom, by name. Each names two stores of `stores`.
    pub routes: BTreeMap<String, RouteConfig>,
    /// `[retry]`: how failing entries are tried again.
    pub retry: RetryConfig,
    /// `[queue]`: its limits.
    pub queue: QueueConfig,
    /// `[log]`: what is logged, and how.
    pub log: LogConfig,
    /// `[tracing]`: where traces go, and which.
    pub tracing: TracingConfig,
}

/// `[server]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerConfig {
    /// Where gRPC listens; port 0 picks a free one. Default `127.0.0.1:7070`.
    pub listen: SocketAddr,
    /// Where the HTTP port listens, with metrics and probes; port 0 picks a free one, and an empty text turns it off. Default
    /// `127.0.0.1:7071`.
    pub http_listen: Option<SocketAddr>,
    /// The folder of the queue. Default `/var/lib/blobferry`.
    pub data_dir: PathBuf,
    /// How long copies in flight may take to finish once the service is told to stop; 0 to 1 h. Default 25 s, which fits
    /// into Kubernetes' 30.
    pub drain_timeout: Duration,
    /// The most connections that are served at a time; 1 to 65,536. Default 1024.
    pub max_connections: usize,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 7070)),
            http_listen: Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 7071))),
            data_dir: PathBuf::from("/var/lib/blobferry"),
            drain_timeout: Duration::from_secs(25),
            max_connections: 1024,
        }
    }
}

/// `[stores.NAME]`: how to reach a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreConfig {
    /// `http://HOST:PORT` or `https://HOST:PORT`, without a path. Required.
    pub endpoint: Uri,
    /// A PEM file of the certificate authorities that the store's certificate may come from, in place of the system's.
    /// Only with `https`.
    pub ca_file: Option<PathBuf>,
    /// How long a connection may take to come about; 1 ms to 5 min. Default 5 s.
    pub connect_timeout: Duration,
    /// How long an answer may take that moves no blob, such as `GetPeerInfo` or `StatBlobs`; 1 ms to 1 h. Default 30 s.
    pub request_timeout: Duration,
    /// How long a stream may go without a chunk or message; 1 ms to 1 h. Default 30 s.
    pub idle_timeout: Duration,
    /// The fewest bytes a second that the store may move of a blob that is copied alone, over 60 s in which it is waited for; a
    /// slower copy is ended. 0 B to 1 GiB. Default 1 KiB.
    pub min_bytes_per_second: u64,
    /// How long the store may take to confirm a blob when it has all of its bytes; 1 ms to 1 h. Default 5 min.
    pub confirm_timeout: Duration,
}

impl StoreConfig {
    /// A store at this endpoint, with default settings.
    pub fn at(endpoint: Uri) -> Self {
        Self {
            endpoint,
            ca_file: None,
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(30),
            min_bytes_per_second: 1024,
            confirm_timeout: Duration::from_mins(5),
        }
    }

    /// Whether the connection is encrypted.
    pub fn is_tls(&self) -> bool {
        self.endpoint.scheme_str() == Some("https")
    }
}

/// `[routes.NAME]`: one direction between two stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteConfig {
    /// The store that is copied, by name. Required.
    pub from: String,
    /// The store that becomes the copy, by name; another than `from`. Required.
    pub to: String,
    /// How many blobs are copied at a time, each by a stream of its own, and how many packs of small blobs beside them; 1 to
    /// 1024. Default 32.
    pub workers: usize,
    /// The bytes of blobs that copies may hold in memory, about: half of it is for large blobs, half for packs of small ones;
    /// 4 MiB to 64 GiB. Default 128 MiB.
    pub bytes_in_flight: u64,
    /// How many bytes may be copied in a second, over the whole route; 1 B to 1 PiB. Default: no limit.
    pub bytes_per_second: Option<u64>,
    /// How many blobs may be copied in a second, over the whole route; 0.001 to 1,000,000. Default: no limit.
    pub blobs_per_second: Option<BlobRate>,
    /// Whether the route does anything; a disabled one is known and shown. Default true.
    pub enabled: bool,
    /// Whether the destination uses blobs up and answers CONSUMED, which then counts as confirmed. Default false.
    pub receive_only: bool,
    /// `full_sync.on_start`: whether a full sync is begun at the start. Default `if_needed`.
    pub on_start: OnStart,
}

/// When a route begins a full sync by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnStart {
    /// Where its queue is new, was restored, or lost something; again until one has completed.
    #[default]
    IfNeeded,
    /// At every start.
    Always,
    /// Never.
    Off,
    /// As `IfNeeded`, and the route's health does not serve before that.
    Blocking,
}

impl OnStart {
    const ALL: [Self; 4] = [Self::IfNeeded, Self::Always, Self::Off, Self::Blocking];

    /// The name as it is configured.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::IfNeeded => "if_needed",
            Self::Always => "always",
            Self::Off => "off",
            Self::Blocking => "blocking",
        }
    }
}

impl RouteConfig {
    /// A route between two stores, with default settings.
    pub fn between(from: impl Into<String>, to: impl Into<String>) -> Self {
        Self {
            from: from.into(),
            to: to.into(),
            workers: 32,
            bytes_in_flight: 128 << 20,
            bytes_per_second: None,
            blobs_per_second: None,
            enabled: true,
            receive_only: false,
            on_start: OnStart::default(),
        }
    }

    /// The limits, as they hold while no operator overrides them.
    pub fn limits(&self) -> Limits {
        Limits {
            paused: false,
            workers: self.workers,
            bytes_per_second: self.bytes_per_second,
            blobs_per_second: self.blobs_per_second,
        }
    }
}

/// `[retry]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetryConfig {
    /// The delay after an entry's first failed attempt; it doubles from there; 1 ms to `max`. Default 1 s.
    pub initial: Duration,
    /// The longest delay; up to 24 h. Default 10 min.
    pub max: Duration,
    /// After how many failed attempts an entry is parked; 1 to 100,000. Default 10.
    pub park_after: u32,
    /// How long a blob is waited for that its source does not hold (yet); up to 365 days. Default 2 h.
    pub missing_patience: Duration,
    /// What becomes of its entry then. Default `park`.
    pub on_missing: OnMissing,
    /// How long after its last failure a parked entry is discarded; 1 s to 10 years. Default: never.
    pub discard_parked_after: Option<Duration>,
}

impl RetryConfig {
    /// The delays of an entry.
    pub fn backoff(&self) -> Backoff {
        Backoff::new(self.initial, self.max)
    }

    /// When an entry is parked.
    pub fn patience(&self) -> Patience {
        Patience { park_after: self.park_after, missing: self.missing_patience, on_missing: self.on_missing }
    }
}

impl Default for RetryConfig {
    fn default() -> Self {
        let patience = Patience::default();
        Self {
            initial: Backoff::ENTRY.nominal(1),
            max: Backoff::ENTRY.max(),
            park_after: patience.park_after,
            missing_patience: patience.missing,
            on_missing: patience.on_missing,
            discard_parked_after: None,
        }
    }
}

/// `[queue]`. Announcements are refused with RESOURCE_EXHAUSTED before either of the first two limits is reached; settling
/// goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// The most entries, over all routes, parked ones aside; at least 1. Default 100,000,000.
    pub max_entries: u64,
    /// Bytes of the queue's disk that announcements leave free; up to 1 PiB. Default 1 GiB.
    pub reserve_bytes: u64,
    /// From which part of `max_entries` on parked entries raise an alarm; 0 to 1. They refuse nothing. Default 0.01.
    pub parked_max_share: Share,
}

impl QueueConfig {
    /// More parked entries than these raise an alarm.
    pub fn max_parked(&self) -> u64 {
        self.parked_max_share.of(self.max_entries)
    }
}

impl Default for QueueConfig {
    fn default() -> Self {
        Self { max_entries: 100_000_000, reserve_bytes: 1 << 30, parked_max_share: Share(10_000) }
    }
}

/// `[log]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogConfig {
    /// The least severe events that are logged. Default `info`.
    pub level: LogLevel,
    /// How a line looks. Default `auto`.
    pub format: LogFormat,
}

/// How severe an event must be to be logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogLevel {
    /// Only what needs an operator.
    Error,
    /// What may come to need one, too.
    Warn,
    /// What happened, in few lines.
    #[default]
    Info,
    /// Each step of the service.
    Debug,
    /// Everything.
    Trace,
}

impl LogLevel {
    const ALL: [Self; 5] = [Self::Error, Self::Warn, Self::Info, Self::Debug, Self::Trace];

    /// The name as it is configured, which is also the one that tracing's filters take.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// `Human` on a terminal, `Json` elsewhere.
    #[default]
    Auto,
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

impl LogFormat {
    const ALL: [Self; 3] = [Self::Auto, Self::Human, Self::Json];

    /// The name as it is configured.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Human => "human",
            Self::Json => "json",
        }
    }
}

/// `[tracing]`. What is not set here is for OpenTelemetry's environment variables to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TracingConfig {
    /// The collector: OTLP over gRPC, at `http://HOST:PORT` or `https://HOST:PORT`. Default: no traces.
    pub otlp_endpoint: Option<Uri>,
    /// How many of the traces that begin here are recorded; whoever calls within a trace decides for that. Default: all.
    pub sample_ratio: Option<Share>,
    /// How a copy is joined to its announcement. Default `link`.
    pub copy_parent: CopyParent,
}

/// A share of something, in millionths: 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// This share; `None` where it is not one.
    pub fn new(share: f64) -> Option<Self> {
        if !(0.0..=1.0).contains(&share) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "in range, as was just checked")]
        Some(Self((share * 1e6).round() as u32))
    }

    /// The share.
    pub fn share(self) -> f64 {
        f64::from(self.0) / 1e6
    }

    /// This share of a number, rounded down.
    pub fn of(self, number: u64) -> u64 {
        u64::try_from(u128::from(number) * u128::from(self.0) / 1_000_000).unwrap_or(number)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.share().fmt(f)
    }
}

/// How the span of a copy is joined to the span in which its blob was queued.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CopyParent {
    /// It begins a trace of its own, with a link: attempts may come hours later, and many together.
    #[default]
    Link,
    /// It is its child: one trace tells all of a blob.
    Child,
}

impl CopyParent {
    const ALL: [Self; 2] = [Self::Link, Self::Child];

    /// The name as it is configured.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Link => "link",
            Self::Child => "child",
        }
    }
}

/// One thing that is wrong with a configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The dotted key; for what has none, the environment variable, or the file and line.
    pub key: String,
    /// What is wrong.
    pub problem: String,
    /// What to do about it, and where the value stands.
    pub advice: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.key, self.problem, self.advice)
    }
}

/// Everything that is wrong with a configuration. Shown one problem a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The problems; at least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

/// An endpoint that is given by itself, such as on a command line: `http` or `https` with host and port, and nothing more.
///
/// # Errors
/// What is wrong with it, and what to write.
pub(crate) fn endpoint_of(text: &str) -> Result<Uri, String> {
    read::endpoint(&tree::Scalar::Bare(text.to_owned())).map_err(|wrong| wrong.to_string())
}

impl Config {
    /// Merges and reads a configuration.
    ///
    /// `toml_text` is the file's name, for messages, and its text; `env` all environment variables, of which those without
    /// the prefix `BLOBFERRY__` are left alone; `overrides` dotted keys with their values, the later winning.
    ///
    /// # Errors
    /// Every problem found, in the order of the sections. A file that is no TOML is reported without reading further.
    pub fn load(
        toml_text: Option<(&str, &str)>,
        env: impl Iterator<Item = (String, String)>,
        overrides: &[(String, String)],
    ) -> Result<Self, ConfigError> {
        let mut problems = Vec::new();
        let mut tree = Tree::default();
        let is_toml = toml_text.is_none_or(|(name, text)| tree.add_toml(name, text, &mut problems));
        // Sorted, so that problems come in the same order every time.
        for (name, value) in env.collect::<BTreeMap<_, _>>() {
            tree.add_env(&name, value, &mut problems);
        }
        for (key, value) in overrides {
            tree.add_override(key, value.clone(), &mut problems);
        }
        let config = if is_toml { sections::read(tree, &mut problems) } else { Self::default() };
        if problems.is_empty() { Ok(config) } else { Err(ConfigError { problems }) }
    }

    /// Variables that were meant as settings and are none, as they are called and as they should be: with single underscores
    /// where a section ends. Others that begin with `BLOBFERRY_` are left alone: Kubernetes sets such ones, for services.
    pub fn misspelt<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<String, String> {
        names.filter_map(|name| Some((name.to_owned(), spelling::well_spelt(name)?))).collect()
    }

    /// The effective configuration as TOML, every setting written out. Loading it gives the same configuration.
    pub fn to_toml(&self) -> String {
        print::to_toml(self)
    }

    /// The routes that do something, by name.
    pub fn enabled_routes(&self) -> impl Iterator<Item = (&str, &RouteConfig)> {
        self.routes.iter().filter(|(_, route)| route.enabled).map(|(name, route)| (name.as_str(), route))
    }
}

#[cfg(test)]
mod tests;
