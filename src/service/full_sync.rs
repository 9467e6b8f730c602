//! Full syncs: requests in, records out.

use super::{ServiceParts, announce_status, encode};
use crate::announce::Route;
use crate::grpc::{Reason, invalid_field, queue_status};
use crate::pb::v1;
use crate::queue::SyncId;
use crate::sync::{SyncMode, SyncRequest, SyncStartError};
use tonic::Status;

pub(super) async fn trigger(
    parts: &ServiceParts,
    request: v1::TriggerFullSyncRequest,
) -> Result<v1::TriggerFullSyncResponse, Status> {
    if parts.gate.is_shut() {
        return Err(start_status(&SyncStartError::ShuttingDown));
    }
    let route = route(parts, &request.route)?;
    if !route.enabled {
        let message = format!("the route {} is disabled by the configuration", route.name);
        return Err(Reason::RouteDisabled.status_with(message, [("route", route.name.to_string())]));
    }
    let mode = match v1::FullSyncMode::try_from(request.mode) {
        Ok(v1::FullSyncMode::Unspecified | v1::FullSyncMode::Copy) => SyncMode::Copy,
        Err(_) => {
            let message = format!("this version does not offer the mode {}; use FULL_SYNC_MODE_COPY", request.mode);
            return Err(Reason::ModeUnsupported.status(message));
        }
    };
    let request =
        SyncRequest { route: route.name.to_string(), mode, prefix: request.prefix, request_id: request.request_id };
    let started = parts.syncs.start(request).await.map_err(|error| start_status(&error))?;
    Ok(v1::TriggerFullSyncResponse {
        full_sync: Some(encode::full_sync(&started.record)),
        already_running: started.already_running,
    })
}

pub(super) async fn get(
    parts: &ServiceParts,
    request: v1::GetFullSyncRequest,
) -> Result<v1::GetFullSyncResponse, Status> {
    let record = if request.id.is_empty() {
        let route = route(parts, &request.route)?;
        parts.syncs.last(&route.name).ok_or_else(|| {
            Reason::SyncNotFound.status(format!("there was no full sync on the route {} yet", route.name))
        })?
    } else {
        let id: SyncId =
            request.id.parse().map_err(|()| invalid_field("id", "an id is sync- and a number, such as sync-42"))?;
        let found = parts.syncs.get(id).await.map_err(|error| queue_status(&error))?;
        found.ok_or_else(|| Reason::SyncNotFound.status(format!("there is no {id}, or it left the history")))?
    };
    Ok(v1::GetFullSyncResponse { full_sync: Some(encode::full_sync(&record)) })
}

fn route<'a>(parts: &'a ServiceParts, name: &str) -> Result<&'a Route, Status> {
    parts.routes.route(name).map_err(|error| announce_status(&error))
}

fn start_status(error: &SyncStartError) -> Status {
    let message = error.to_string();
    match error {
        SyncStartError::UnknownRoute { known, .. } => {
            Reason::UnknownRoute.status_with(message, [("known", known.join(", "))])
        }
        SyncStartError::ModeUnsupported(_) => Reason::ModeUnsupported.status(message),
        SyncStartError::InvalidPrefix => invalid_field("prefix", &message),
        SyncStartError::InvalidRequestId => invalid_field("request_id", &message),
        SyncStartError::RequestIdReused(_) => Reason::RequestIdReused.status(message),
        SyncStartError::OtherRunning(id) => {
            Reason::SyncRunning.status_with(message, [("full_sync_id", id.to_string())])
        }
        SyncStartError::PeerUnsuitable(_) => Reason::PeerUnsuitable.status(message),
        SyncStartError::ShuttingDown => Reason::ShuttingDown.status(message),
        SyncStartError::Queue(error) => queue_status(error),
    }
}
