//! Dropping routes that left the configuration.

use super::overrides::who;
use super::{ServiceParts, announce_status};
use crate::announce::{AnnounceError, Backlog, Names, Route};
use crate::grpc::{Reason, invalid_field, queue_status};
use crate::overrides::Stamp;
use crate::pb::v1;
use crate::queue::drop::Dropped;
use crate::queue::{QueueError, Tally};
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// Entries that one durable write deletes, at most. Announcements wait for it.
const STEP: usize = 4_000;
/// No further step is begun after this: clients do not wait for ever.
const DROP_TIME: Duration = Duration::from_secs(10);

pub(super) async fn drop_route(
    parts: &Arc<ServiceParts>,
    request: v1::DropRouteRequest,
    caller: String,
) -> Result<v1::DropRouteResponse, Status> {
    if parts.gate.is_shut() {
        return Err(announce_status(&AnnounceError::ShuttingDown));
    }
    let route = orphan(parts, &request.route)?;
    let by = who(request.dropped_by, "dropped_by", caller)?;
    let mut dropped = Tally::default();
    if !request.count_only {
        let (of_task, of_route) = (parts.clone(), route.clone());
        // In a task of its own, so that it is logged though the caller should go away.
        let work = async move { drop_entries(&of_task, &of_route, &by).await };
        let done = parts.tasks.spawn(work).await;
        let done = done.map_err(|error| Reason::Internal.status(format!("the drop was broken off: {error}")))?;
        dropped = done.map_err(|error| queue_status(&error))?;
    }
    Ok(v1::DropRouteResponse {
        route: route.name.to_string(),
        dropped_entries: Some(dropped.entries),
        dropped_bytes: Some(dropped.bytes),
        remaining_entries: Some(Backlog::with_parked(&parts.queue.counts(route.id))),
    })
}

/// The orphaned route of this name.
fn orphan(parts: &ServiceParts, name: &str) -> Result<Route, Status> {
    let known = Names(parts.routes.orphans().iter().map(|route| route.name.clone()).collect());
    if name.is_empty() {
        return Err(invalid_field("route", &format!("name the orphaned route to be dropped; known are: {known}")));
    }
    if let Some(route) = parts.routes.orphan(name) {
        return Ok(route.clone());
    }
    match parts.routes.route_or_orphan(name) {
        Ok(route) => {
            let name = &route.name;
            let message = format!(
                "the route {name} is configured, and only one that is not can be dropped; remove it from the configuration \
                 first, or discard what failed (DiscardFailures, blobferry failures discard)"
            );
            Err(Reason::RouteConfigured.status_with(message, [("route", name.to_string())]))
        }
        Err(error) => Err(announce_status(&error)),
    }
}

async fn drop_entries(parts: &ServiceParts, route: &Route, by: &str) -> Result<Tally, QueueError> {
    let started = parts.clock.monotonic();
    let mut all = Tally::default();
    let done = loop {
        let step = parts.queue.drop_entries(route.id, STEP).await;
        let Dropped { tally, done } = match step {
            Ok(step) => step,
            Err(error) => {
                log(route, all, by);
                return Err(error);
            }
        };
        all.entries += tally.entries;
        all.bytes = all.bytes.saturating_add(tally.bytes);
        all.unknown_size += tally.unknown_size;
        if done || tally.entries == 0 || parts.clock.monotonic().since(started) > DROP_TIME {
            break done;
        }
    };
    log(route, all, by);
    if done {
        let set_time = parts.clock.now();
        let stamp = Stamp { set_by: by.to_owned(), set_time, expire_time: None, reason: String::new() };
        parts.overrides.forget(&route.name, &stamp).await?;
    }
    Ok(all)
}

fn log(route: &Route, dropped: Tally, by: &str) {
    if dropped.entries > 0 {
        let Tally { entries, bytes, .. } = dropped;
        tracing::warn!(route = %route.name, entries, bytes, %by, "entries of an orphaned route are discarded, as an operator asked");
    }
}
