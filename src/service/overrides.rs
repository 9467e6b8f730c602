//! Pausing, resuming and limiting routes.

use super::{ServiceParts, announce_status, encode};
use crate::announce::{AnnounceError, Backlog, Route};
use crate::clock::{from_unix_ms, to_unix_ms};
use crate::grpc::{Reason, invalid_field, queue_status};
use crate::limits::{BlobRate, Override, Setting, WORKERS};
use crate::overrides::{Change, InForce, Stamp};
use crate::pb::{std_duration, system_time, v1};
use crate::queue::QueueError;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tonic::Status;

/// The longest name of who asks, in characters.
const MAX_WHO: usize = 200;
/// The longest reason, in characters.
const MAX_REASON: usize = 500;
/// The highest rate, in bytes a second.
const MAX_BYTES_PER_SECOND: u64 = 1 << 50;
/// Stands for all limits in a mask.
const ALL: &str = "*";
/// Overrides end within ten years, or not at all.
const LONGEST: Duration = Duration::from_hours(24 * 3660);

pub(super) async fn pause(
    parts: &Arc<ServiceParts>,
    request: v1::PauseRouteRequest,
    caller: String,
) -> Result<v1::PauseRouteResponse, Status> {
    use v1::pause_route_request::Expiration;
    let route = configured(parts, &request.route)?;
    let end = match request.expiration {
        None => None,
        Some(Expiration::ExpireTime(time)) => Some(OverrideEnd::At(time)),
        Some(Expiration::Ttl(span)) => Some(OverrideEnd::After(span)),
    };
    let stamp = stamp(parts, request.set_by, request.reason, end, caller)?;
    let in_force = change(parts, &route, vec![Change::Set(Override::Paused)], stamp).await?;
    let counts = parts.queue.counts(route.id);
    let in_flight = counts.fresh.claimed.entries + counts.backfill.claimed.entries;
    let backlog = Backlog::of(&counts, None, SystemTime::UNIX_EPOCH).tally.entries;
    Ok(v1::PauseRouteResponse {
        route: route.name.to_string(),
        limits: Some(encode::limits(&in_force)),
        copies_in_flight: Some(in_flight),
        backlog_entries: Some(backlog.saturating_sub(in_flight)),
    })
}

pub(super) async fn resume(
    parts: &Arc<ServiceParts>,
    request: v1::ResumeRouteRequest,
    caller: String,
) -> Result<v1::ResumeRouteResponse, Status> {
    let route = configured(parts, &request.route)?;
    let stamp = stamp(parts, request.set_by, String::new(), None, caller)?;
    let was_paused = in_force(parts, &route)?.limits.paused;
    let in_force = if was_paused {
        change(parts, &route, vec![Change::Reset(Setting::Paused)], stamp).await?
    } else {
        in_force(parts, &route)?
    };
    Ok(v1::ResumeRouteResponse { route: route.name.to_string(), limits: Some(encode::limits(&in_force)), was_paused })
}

pub(super) async fn update(
    parts: &Arc<ServiceParts>,
    request: v1::UpdateRouteRequest,
    caller: String,
) -> Result<v1::UpdateRouteResponse, Status> {
    use v1::update_route_request::Expiration;
    let route = configured(parts, &request.route)?;
    let mut mask = request.update_mask.map(|mask| mask.paths);
    if request.reset_all {
        mask.get_or_insert_default().push(ALL.to_owned());
    }
    let changes = changes(request.limits.unwrap_or_default(), mask.as_deref())?;
    let end = match request.expiration {
        None => None,
        Some(Expiration::ExpireTime(time)) => Some(OverrideEnd::At(time)),
        Some(Expiration::Ttl(span)) => Some(OverrideEnd::After(span)),
    };
    let stamp = stamp(parts, request.set_by, request.reason, end, caller)?;
    let in_force = change(parts, &route, changes, stamp).await?;
    Ok(v1::UpdateRouteResponse { route: route.name.to_string(), limits: Some(encode::limits(&in_force)) })
}

/// The configured route of this name.
fn configured(parts: &ServiceParts, name: &str) -> Result<Route, Status> {
    if parts.gate.is_shut() {
        return Err(announce_status(&AnnounceError::ShuttingDown));
    }
    if let Some(orphan) = parts.routes.orphan(name) {
        return Err(orphaned(orphan));
    }
    parts.routes.route(name).cloned().map_err(|error| announce_status(&error))
}

/// What is said of a route that left the configuration, where something is asked that it cannot do.
pub(super) fn orphaned(route: &Route) -> Status {
    let name = &route.name;
    let message = format!(
        "the route {name} is no longer configured, so nothing is copied on it; configure it again, or discard its entries \
         (DropRoute, blobferry drop {name})"
    );
    Reason::RouteOrphaned.status_with(message, [("route", name.to_string())])
}

fn in_force(parts: &ServiceParts, route: &Route) -> Result<InForce, Status> {
    let found = parts.overrides.in_force(&route.name);
    found.ok_or_else(|| Reason::Internal.status(format!("the limits of the route {} are not known", route.name)))
}

/// Makes changes, in a task of its own, so that they are logged though the caller should go away.
async fn change(
    parts: &Arc<ServiceParts>,
    route: &Route,
    changes: Vec<Change>,
    stamp: Stamp,
) -> Result<InForce, Status> {
    let (of_task, name) = (parts.clone(), route.name.clone());
    let work = async move {
        of_task.overrides.change(&name, &changes, &stamp).await?;
        for change in &changes {
            log(&name, change, &stamp);
        }
        Ok::<(), QueueError>(())
    };
    let done = parts.tasks.spawn(work).await;
    let done = done.map_err(|error| Reason::Internal.status(format!("the change was broken off: {error}")))?;
    done.map_err(|error| queue_status(&error))?;
    in_force(parts, route)
}

fn log(route: &str, change: &Change, stamp: &Stamp) {
    let Stamp { set_by, reason, expire_time, .. } = stamp;
    let until =
        expire_time.map_or_else(|| "reset".to_owned(), |end| humantime::format_rfc3339_seconds(end).to_string());
    match change {
        Change::Set(Override::Paused) => tracing::info!(route, %set_by, reason, until, "paused by an operator"),
        Change::Reset(Setting::Paused) => tracing::info!(route, %set_by, "resumed by an operator"),
        Change::Set(value) => tracing::info!(route, %set_by, reason, until, limit = ?value, "limited by an operator"),
        Change::Reset(setting) => {
            tracing::info!(route, %set_by, setting = setting.as_str(), "back to the configuration, as an operator asked");
        }
    }
}

/// When an override ends, as the wire has it.
enum OverrideEnd {
    At(prost_types::Timestamp),
    After(prost_types::Duration),
}

fn stamp(
    parts: &ServiceParts,
    set_by: String,
    reason: String,
    end: Option<OverrideEnd>,
    caller: String,
) -> Result<Stamp, Status> {
    let set_by = who(set_by, "set_by", caller)?;
    if reason.chars().count() > MAX_REASON || reason.chars().any(char::is_control) {
        return Err(invalid_field("reason", "it has at most 500 characters, and no control characters"));
    }
    // As precise as it is kept.
    let now = from_unix_ms(to_unix_ms(parts.clock.now()));
    let expire_time = match end {
        None => None,
        Some(OverrideEnd::At(time)) => {
            let end = system_time(&time).filter(|end| *end > now);
            Some(end.ok_or_else(|| invalid_field("expire_time", "it must be in the future"))?)
        }
        Some(OverrideEnd::After(span)) => {
            let span = std_duration(&span).filter(|span| !span.is_zero());
            let end = span.and_then(|span| now.checked_add(span));
            Some(end.ok_or_else(|| invalid_field("ttl", "it must be longer than zero"))?)
        }
    };
    if expire_time.is_some_and(|end| end.duration_since(now).is_ok_and(|left| left > LONGEST)) {
        return Err(invalid_field("expiration", "it must be within ten years; leave it out to mean for good"));
    }
    Ok(Stamp { set_by, set_time: now, expire_time, reason })
}

/// Who asks: as he states it, else where the call came from.
pub(super) fn who(stated: String, field: &str, caller: String) -> Result<String, Status> {
    if stated.is_empty() {
        return Ok(caller);
    }
    if stated.chars().count() > MAX_WHO || stated.chars().any(char::is_control) {
        return Err(invalid_field(field, "it has at most 200 characters, and no control characters"));
    }
    Ok(stated)
}

/// What a request sets and takes back.
fn changes(limits: v1::LimitSettings, mask: Option<&[String]>) -> Result<Vec<Change>, Status> {
    let mut named = Vec::new();
    for path in mask.unwrap_or_default() {
        match Setting::LIMITS.into_iter().find(|setting| setting.as_str() == path) {
            Some(setting) => named.push(setting),
            None if path == ALL => named.extend(Setting::LIMITS),
            None => {
                let known = "workers, bytes_per_second, blobs_per_second, or * for all";
                return Err(invalid_field("update_mask", &format!("a name in it is none of: {known}")));
            }
        }
    }
    let mut changes = Vec::new();
    for setting in Setting::LIMITS {
        let field = format!("limits.{}", setting.as_str());
        match given(&limits, setting).map_err(|problem| invalid_field(&field, problem))? {
            Some(_) if mask.is_some() && !named.contains(&setting) => {
                return Err(invalid_field(
                    &field,
                    "it is given, and update_mask does not name it; add it, or leave it out",
                ));
            }
            Some(value) => changes.push(Change::Set(value)),
            None if named.contains(&setting) => changes.push(Change::Reset(setting)),
            None => {}
        }
    }
    if changes.is_empty() {
        let what = "there is nothing to do; give a limit, such as {\"workers\": 8}, or name in update_mask what goes back to \
                    the configuration";
        return Err(invalid_field("limits", what));
    }
    Ok(changes)
}

/// The value that a request gives for a setting, if it does; or what is wrong with it.
fn given(limits: &v1::LimitSettings, setting: Setting) -> Result<Option<Override>, &'static str> {
    let v1::LimitSettings { workers, bytes_per_second, blobs_per_second } = *limits;
    Ok(match setting {
        Setting::Paused => None,
        Setting::Workers => match workers.map(|workers| usize::try_from(workers).unwrap_or(usize::MAX)) {
            Some(workers) if !WORKERS.contains(&workers) => {
                return Err(
                    "1 to 1024 copies may run at a time; to copy nothing, pause it (PauseRoute, blobferry pause)",
                );
            }
            workers => workers.map(Override::Workers),
        },
        Setting::BytesPerSecond => match bytes_per_second {
            Some(0) => Some(Override::BytesPerSecond(None)),
            Some(rate) if rate > MAX_BYTES_PER_SECOND => return Err("at most 2^50; 0 means no limit"),
            rate => rate.map(|rate| Override::BytesPerSecond(Some(rate))),
        },
        Setting::BlobsPerSecond => match blobs_per_second {
            None => None,
            Some(0.0) => Some(Override::BlobsPerSecond(None)),
            Some(rate) => {
                let rate = BlobRate::new(rate).ok_or("0.001 to 1000000; 0 means no limit")?;
                Some(Override::BlobsPerSecond(Some(rate)))
            }
        },
    })
}

#[cfg(test)]
mod tests {
    use super::{changes, who};
    use crate::limits::{BlobRate, Override, Setting};
    use crate::overrides::Change;
    use crate::pb::v1::LimitSettings;

    fn mask(paths: &[&str]) -> Option<Vec<String>> {
        Some(paths.iter().map(|path| (*path).to_owned()).collect())
    }

    fn made(limits: LimitSettings, paths: Option<Vec<String>>) -> Result<Vec<Change>, String> {
        changes(limits, paths.as_deref()).map_err(|status| status.message().to_owned())
    }

    #[test]
    fn what_is_given_is_set_and_what_is_only_named_is_reset() {
        let eight = LimitSettings { workers: Some(8), ..LimitSettings::default() };
        let set = Change::Set(Override::Workers(8));
        assert_eq!(made(eight, None), Ok(vec![set]));
        assert_eq!(made(eight, mask(&["workers"])), Ok(vec![set]));
        assert_eq!(made(eight, mask(&["workers", "workers"])), Ok(vec![set]));
        let reset = [Change::Reset(Setting::BytesPerSecond), Change::Reset(Setting::BlobsPerSecond)];
        assert_eq!(made(eight, mask(&["*"])), Ok(vec![set, reset[0], reset[1]]));
        assert_eq!(made(LimitSettings::default(), mask(&["blobs_per_second"])), Ok(vec![reset[1]]));
        let rates =
            LimitSettings { bytes_per_second: Some(0), blobs_per_second: Some(0.5), ..LimitSettings::default() };
        let expected = [Override::BytesPerSecond(None), Override::BlobsPerSecond(BlobRate::new(0.5))];
        assert_eq!(made(rates, None), Ok(expected.map(Change::Set).to_vec()));
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_its_name() {
        let limits = LimitSettings::default();
        for (limits, paths, said) in [
            (limits, None, "limits: there is nothing to do"),
            (limits, mask(&[]), "limits: there is nothing to do"),
            (limits, mask(&["paused"]), "update_mask: "),
            (LimitSettings { workers: Some(0), ..limits }, None, "limits.workers: 1 to 1024"),
            (LimitSettings { workers: Some(8), ..limits }, mask(&["bytes_per_second"]), "limits.workers: it is given"),
            (LimitSettings { bytes_per_second: Some(u64::MAX), ..limits }, None, "limits.bytes_per_second: "),
            (LimitSettings { blobs_per_second: Some(-1.0), ..limits }, None, "limits.blobs_per_second: "),
            (LimitSettings { blobs_per_second: Some(f64::NAN), ..limits }, None, "limits.blobs_per_second: "),
        ] {
            let found = made(limits, paths).unwrap_err();
            assert!(found.starts_with(said), "{found}");
        }
    }

    #[test]
    fn who_asks_is_stated_or_known_by_his_address() {
        let asked = |stated: &str| who(stated.to_owned(), "set_by", "127.0.0.1:1 grpcurl".to_owned());
        assert_eq!(asked("eve").unwrap(), "eve");
        assert_eq!(asked("").unwrap(), "127.0.0.1:1 grpcurl");
        assert!(asked("a\nb").is_err() && asked(&"x".repeat(201)).is_err());
    }
}
