//! `blobferry pause`, `resume` and `limits`: what a route may use, by an operator's word.

use super::failures::moment;
use super::{CommandError, Exit, ReplicatorArg, of_replicator, output};
use crate::client::Replicator;
use crate::pb::to_json;
use crate::pb::{self, v1};
use crate::words;
use clap::{Args, ValueEnum};
use std::time::{Duration, SystemTime};

/// The longest name, and the longest reason, that is shown, in characters.
const LONGEST: usize = 500;

/// Who asks.
#[derive(Debug, Args)]
pub(super) struct ByArg {
    /// Who asks, for the log and the status; by default you, at this host.
    #[arg(long, value_name = "NAME")]
    by: Option<String>,
}

impl ByArg {
    pub(super) fn name(self) -> String {
        self.by.unwrap_or_else(|| {
            let user = ["USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
            let user = user.filter(|user| !user.is_empty());
            let user = user.unwrap_or_else(|| user_of(rustix::process::getuid().as_raw()));
            // Where there is no such file, the user alone must do.
            let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
            let host = host.trim();
            if host.is_empty() { user } else { format!("{user}@{host}") }
        })
    }
}

/// The name of a user, as the system's list has it.
fn user_of(uid: u32) -> String {
    let number = uid.to_string();
    // Each line is name:password:uid:…
    let list = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = list.lines().map(|line| line.split(':')).find_map(|mut columns| {
        let name = columns.next()?;
        (columns.nth(1)? == number).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| format!("uid {uid}"))
}

/// Why, and until when.
#[derive(Debug, Args)]
struct Terms {
    /// Why, for those who look at the status.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    reason: String,
    /// End by itself after this long, such as 30min or 2h.
    #[arg(long = "for", value_name = "DURATION", value_parser = humantime::parse_duration)]
    lasts: Option<Duration>,
    /// End by itself at this time, such as 2026-01-01T06:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_rfc3339_weak, conflicts_with = "lasts")]
    until: Option<SystemTime>,
}

/// Arguments of `pause`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry pause
  blobferry pause primary_to_backup --for 2h --reason 'disk swap at backup'
  blobferry pause primary_to_backup --until 2026-01-01T06:00:00Z --by eve

Nothing new is copied from now on, also over restarts; what is in flight is finished. Announcements are still queued.

Exit codes: 0 paused; 1 refused; 2 unknown or ambiguous route; 3 unreachable.")]
pub(super) struct PauseArgs {
    /// The route; may be left out where there is only one.
    route: Option<String>,
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    by: ByArg,
    /// Print the answer as JSON, as grpcurl does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

/// Arguments of `resume`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry resume
  blobferry resume primary_to_backup

Exit codes: 0 not paused any more; 1 refused; 2 unknown or ambiguous route; 3 unreachable.")]
pub(super) struct ResumeArgs {
    /// The route; may be left out where there is only one.
    route: Option<String>,
    #[command(flatten)]
    by: ByArg,
    /// Print the answer as JSON, as grpcurl does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

/// What can go back to the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Reset {
    Workers,
    BytesPerSecond,
    BlobsPerSecond,
    All,
}

impl Reset {
    const fn path(self) -> &'static str {
        match self {
            Self::Workers => "workers",
            Self::BytesPerSecond => "bytes_per_second",
            Self::BlobsPerSecond => "blobs_per_second",
            Self::All => "*",
        }
    }
}

/// Arguments of `limits`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry limits
  blobferry limits primary_to_backup --workers 8 --bytes-per-second 50MiB --for 8h --reason 'office hours'
  blobferry limits --bytes-per-second none
  blobferry limits --reset all

Without a change, it shows the limits in force, and who set them. Changes hold at once, for the whole route, over \
restarts, until they are reset.

Exit codes: 0 done; 1 refused; 2 unknown or ambiguous route, or a limit out of range; 3 unreachable.")]
pub(super) struct LimitsArgs {
    /// The route; may be left out where there is only one.
    route: Option<String>,
    /// Copy so many blobs at a time, 1 to 1024.
    #[arg(long, value_name = "N", value_parser = workers)]
    workers: Option<u32>,
    /// Copy so many bytes in a second, such as 50MiB; none for no limit.
    #[arg(long, value_name = "SIZE", value_parser = bytes_rate)]
    bytes_per_second: Option<u64>,
    /// Copy so many blobs in a second, such as 100 or 0.5; none for no limit.
    #[arg(long, value_name = "NUMBER", value_parser = blobs_rate)]
    blobs_per_second: Option<f64>,
    /// Go back to the configuration; may be given several times.
    #[arg(long, value_name = "LIMIT", value_delimiter = ',')]
    reset: Vec<Reset>,
    #[command(flatten)]
    terms: Terms,
    #[command(flatten)]
    by: ByArg,
    /// Print the limits as JSON, as grpcurl does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

fn workers(given: &str) -> Result<u32, String> {
    let number = given.parse().ok().filter(|number| (1..=1024).contains(number));
    number.ok_or_else(|| "1 to 1024 copies may run at a time; to copy nothing, use blobferry pause".to_owned())
}

/// A size, or 0 for no limit.
fn bytes_rate(given: &str) -> Result<u64, String> {
    if given == "none" {
        return Ok(0);
    }
    let size = given.parse::<bytesize::ByteSize>().map(|size| size.as_u64());
    size.ok().filter(|size| *size > 0).ok_or_else(|| "write it as 50MiB, or none for no limit".to_owned())
}

/// A number, or 0 for no limit.
fn blobs_rate(given: &str) -> Result<f64, String> {
    if given == "none" {
        return Ok(0.0);
    }
    let rate = given.parse().ok().filter(|rate| *rate > 0.0);
    rate.ok_or_else(|| "write it as 100 or 0.5, or none for no limit".to_owned())
}

pub(super) async fn pause(args: PauseArgs) -> Result<Exit, CommandError> {
    use v1::pause_route_request::Expiration;
    let address = args.replicator.address()?;
    let Terms { reason, lasts, until } = args.terms;
    let expiration = match (lasts, until) {
        (Some(lasts), _) => Some(Expiration::Ttl(pb::duration(lasts))),
        (None, until) => until.map(|until| Expiration::ExpireTime(pb::timestamp(until))),
    };
    let route = args.route.unwrap_or_default();
    let request = v1::PauseRouteRequest { route, set_by: args.by.name(), reason, expiration };
    let answer = match Replicator::at(&address)?.pause_route(request).await {
        Ok(answer) => answer,
        Err(error) => return Err(of_replicator(&address, error).await),
    };
    if args.json {
        output::line(&format!("{:#}", to_json("PauseRouteResponse", &answer)?))?;
        return Ok(Exit::Ok);
    }
    let in_flight = match answer.copies_in_flight() {
        0 => String::new(),
        copies => format!(", {} in flight will be finished", words::several(copies, "blob")),
    };
    let waiting = words::several(answer.backlog_entries(), "blob");
    output::line(&format!("paused {}: {waiting} waiting{in_flight}", name(&answer.route)))?;
    output::write(render(&answer.route, &answer.limits.unwrap_or_default()).as_bytes())?;
    Ok(Exit::Ok)
}

pub(super) async fn resume(args: ResumeArgs) -> Result<Exit, CommandError> {
    let address = args.replicator.address()?;
    let request = v1::ResumeRouteRequest { route: args.route.unwrap_or_default(), set_by: args.by.name() };
    let answer = match Replicator::at(&address)?.resume_route(request).await {
        Ok(answer) => answer,
        Err(error) => return Err(of_replicator(&address, error).await),
    };
    if args.json {
        output::line(&format!("{:#}", to_json("ResumeRouteResponse", &answer)?))?;
        return Ok(Exit::Ok);
    }
    let route = name(&answer.route);
    output::line(&if answer.was_paused { format!("resumed {route}") } else { format!("{route} was not paused") })?;
    Ok(Exit::Ok)
}

pub(super) async fn limits(args: LimitsArgs) -> Result<Exit, CommandError> {
    use v1::update_route_request::Expiration;
    let address = args.replicator.address()?;
    let mut replicator = Replicator::at(&address)?;
    let limits = v1::LimitSettings {
        workers: args.workers,
        bytes_per_second: args.bytes_per_second,
        blobs_per_second: args.blobs_per_second,
    };
    let sets = limits != v1::LimitSettings::default();
    let Terms { reason, lasts, until } = args.terms;
    if !sets && args.reset.is_empty() {
        if lasts.is_some() || until.is_some() || !reason.is_empty() {
            return Err(
                CommandError::new(Exit::Usage, "there is nothing to change").hint("give a limit, such as --workers 8")
            );
        }
        return show(&mut replicator, args.route, args.json).await;
    }
    let expiration = match (lasts, until) {
        (Some(lasts), _) => Some(Expiration::Ttl(pb::duration(lasts))),
        (None, until) => until.map(|until| Expiration::ExpireTime(pb::timestamp(until))),
    };
    let request = v1::UpdateRouteRequest {
        route: args.route.unwrap_or_default(),
        limits: Some(limits),
        update_mask: mask(&limits, &args.reset),
        reset_all: args.reset.contains(&Reset::All),
        set_by: args.by.name(),
        reason,
        expiration,
    };
    let answer = match replicator.update_route(request).await {
        Ok(answer) => answer,
        Err(error) => return Err(of_replicator(&address, error).await),
    };
    if args.json {
        output::line(&format!("{:#}", to_json("UpdateRouteResponse", &answer)?))?;
    } else {
        output::write(render(&answer.route, &answer.limits.unwrap_or_default()).as_bytes())?;
    }
    Ok(Exit::Ok)
}

/// What is set and what is reset, by name; nothing where the former speaks for itself.
fn mask(limits: &v1::LimitSettings, reset: &[Reset]) -> Option<prost_types::FieldMask> {
    if reset.is_empty() || reset.contains(&Reset::All) {
        return None;
    }
    let given = [
        (limits.workers.is_some(), Reset::Workers),
        (limits.bytes_per_second.is_some(), Reset::BytesPerSecond),
        (limits.blobs_per_second.is_some(), Reset::BlobsPerSecond),
    ];
    let set = given.into_iter().filter(|(is_given, _)| *is_given).map(|(_, limit)| limit);
    Some(prost_types::FieldMask {
        paths: reset.iter().copied().chain(set).map(|limit| limit.path().to_owned()).collect(),
    })
}

async fn show(replicator: &mut Replicator, route: Option<String>, json: bool) -> Result<Exit, CommandError> {
    let status = replicator.status(route.into_iter().collect()).await?;
    let routes = status.routes.into_iter().filter(|route| route.state() != v1::RouteState::Orphaned);
    let routes: Vec<_> = routes.map(|route| (route.name, route.limits.unwrap_or_default())).collect();
    if json {
        let shown = routes.iter().map(|(name, limits)| Ok((name.clone(), to_json("RouteLimits", limits)?)));
        let shown: serde_json::Map<_, _> = shown.collect::<Result<_, crate::pb::JsonError>>()?;
        output::line(&format!("{:#}", serde_json::Value::Object(shown)))?;
    } else {
        let shown: String = routes.iter().map(|(name, limits)| render(name, limits)).collect();
        output::write(shown.as_bytes())?;
    }
    Ok(Exit::Ok)
}

/// The limits of a route, and who set them.
fn render(route: &str, limits: &v1::RouteLimits) -> String {
    let paused = if limits.paused() { "; paused" } else { "" };
    let mut shown = format!("{}: {}{paused}\n", name(route), sum(settings_of(limits)));
    for one in &limits.overrides {
        shown += &format!("  {}\n", override_line(limits, one));
    }
    if let Some(configured) = limits.configured
        && configured != settings_of(limits)
    {
        shown += &format!("  configured: {}\n", sum(configured));
    }
    shown
}

/// What was overridden by whom, when, until when and why.
pub(super) fn override_line(limits: &v1::RouteLimits, one: &v1::LimitOverride) -> String {
    let value = match one.setting.as_str() {
        "workers" => format!(" = {}", limits.workers()),
        "bytes_per_second" => format!(" = {}", limits.bytes_per_second.map_or("none".to_owned(), words::bytes)),
        "blobs_per_second" => {
            format!(" = {}", limits.blobs_per_second.map_or("none".to_owned(), |rate| rate.to_string()))
        }
        _ => String::new(),
    };
    let when = one.set_time.as_ref().map(|time| format!(" at {}", moment(time))).unwrap_or_default();
    let until = one.expire_time.as_ref().map(|time| format!(", until {}", moment(time))).unwrap_or_default();
    let why = if one.reason.is_empty() { String::new() } else { format!(": {}", words::plain(&one.reason, LONGEST)) };
    format!("{}{value} set by {}{when}{until}{why}", name(&one.setting), name(&one.set_by))
}

fn settings_of(limits: &v1::RouteLimits) -> v1::LimitSettings {
    v1::LimitSettings {
        workers: limits.workers,
        bytes_per_second: limits.bytes_per_second,
        blobs_per_second: limits.blobs_per_second,
    }
}

fn sum(limits: v1::LimitSettings) -> String {
    let mut shown = words::several(limits.workers().into(), "worker");
    match limits.bytes_per_second {
        Some(rate) => shown += &format!(", {}/s", words::bytes(rate)),
        None => shown += ", any number of bytes/s",
    }
    match limits.blobs_per_second {
        Some(rate) => shown += &format!(", {rate} blobs/s"),
        None => shown += ", any number of blobs/s",
    }
    shown
}

/// A name from the replicator, safe for a terminal.
fn name(given: &str) -> String {
    words::plain(given, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::{ByArg, Reset, blobs_rate, bytes_rate, mask, render};
    use crate::pb::v1;

    #[test]
    fn limits_say_who_set_them_and_what_is_configured() {
        let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 5 });
        let configured =
            v1::LimitSettings { workers: Some(32), bytes_per_second: Some(1 << 20), blobs_per_second: None };
        let mut limits = v1::RouteLimits {
            workers: Some(1),
            bytes_per_second: None,
            blobs_per_second: Some(0.5),
            paused: Some(true),
            configured: Some(configured),
            overrides: vec![v1::LimitOverride {
                setting: "workers".to_owned(),
                set_by: "eve\u{1b}".to_owned(),
                set_time: time(1_767_225_600),
                expire_time: time(1_767_229_200),
                reason: "night".to_owned(),
            }],
        };
        assert_eq!(
            render("a_to_b", &limits),
            "a_to_b: 1 worker, any number of bytes/s, 0.5 blobs/s; paused\n  \
             workers = 1 set by eve  at 2026-01-01T00:00:00Z, until 2026-01-01T01:00:00Z: night\n  \
             configured: 32 workers, 1.00 MiB/s, any number of blobs/s\n"
        );
        limits = v1::RouteLimits { workers: Some(32), configured: None, ..v1::RouteLimits::default() };
        assert_eq!(render("a_to_b", &limits), "a_to_b: 32 workers, any number of bytes/s, any number of blobs/s\n");
    }

    #[test]
    fn rates_are_sizes_numbers_or_none() {
        assert_eq!((bytes_rate("50MiB"), bytes_rate("none")), (Ok(50 << 20), Ok(0)));
        assert_eq!((blobs_rate("0.5"), blobs_rate("none")), (Ok(0.5), Ok(0.0)));
        for wrong in ["", "0", "-1", "fast"] {
            assert!(bytes_rate(wrong).is_err() && blobs_rate(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn what_is_set_stands_in_the_mask_beside_what_is_reset() {
        let limits = v1::LimitSettings { workers: Some(1), ..v1::LimitSettings::default() };
        assert_eq!(mask(&limits, &[]), None);
        assert_eq!(mask(&limits, &[Reset::BlobsPerSecond]).unwrap().paths, ["blobs_per_second", "workers"]);
        assert_eq!(mask(&limits, &[Reset::All]), None);
    }

    #[test]
    fn somebody_always_asks() {
        assert_eq!(ByArg { by: Some("eve".to_owned()) }.name(), "eve");
        assert!(!ByArg { by: None }.name().is_empty());
    }
}
