//! Full syncs: requests in, records out.

use super::{ServiceParts, announce_status, encode};
use crate::announce::Route;
use crate::grpc::{Reason, invalid_field, queue_status};
use crate::pb::v1;
use crate::queue::SyncId;
use crate::sync::{SyncMode, SyncRequest, SyncStartError, SyncState};
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
        let id = id(&request.id)?;
        let found = parts.syncs.get(id).await.map_err(|error| queue_status(&error))?;
        found.ok_or_else(|| not_found(id))?
    };
    Ok(v1::GetFullSyncResponse { full_sync: Some(encode::full_sync(&record)) })
}

/// How many syncs are listed where nothing is said.
const PAGE: usize = 50;

/// The most that are listed at once.
const MAX_PAGE: usize = 1000;

pub(super) async fn list(
    parts: &ServiceParts,
    request: v1::ListFullSyncsRequest,
) -> Result<v1::ListFullSyncsResponse, Status> {
    let name = match request.route.as_str() {
        "" => None,
        name => Some(&*route(parts, name)?.name),
    };
    let state = match v1::FullSyncState::try_from(request.state) {
        Ok(v1::FullSyncState::Unspecified) => None,
        Ok(v1::FullSyncState::Running) => Some(SyncState::Running),
        Ok(v1::FullSyncState::Completed) => Some(SyncState::Completed),
        Ok(v1::FullSyncState::CompletedWithFailures) => Some(SyncState::CompletedWithFailures),
        Ok(v1::FullSyncState::Failed) => Some(SyncState::Failed),
        Ok(v1::FullSyncState::Cancelled) => Some(SyncState::Cancelled),
        Err(_) => return Err(invalid_field("state", "this version knows no such state")),
    };
    let below = match request.page_token.as_str() {
        "" => None,
        token => {
            let id = token.parse().map_err(|()| invalid_field("page_token", "take it from an answer, as it is"))?;
            Some(id)
        }
    };
    let size = match usize::try_from(request.page_size).unwrap_or(MAX_PAGE) {
        0 => PAGE,
        size => size.min(MAX_PAGE),
    };
    // One more tells whether there are more.
    let mut records = parts.syncs.history(name, state, below, size + 1).await.map_err(|error| queue_status(&error))?;
    let is_end = records.len() <= size;
    records.truncate(size);
    let next = records.last().filter(|_| !is_end).map(|record| record.id.to_string());
    Ok(v1::ListFullSyncsResponse {
        full_syncs: records.iter().map(encode::full_sync).collect(),
        next_page_token: next.unwrap_or_default(),
    })
}

pub(super) async fn cancel(
    parts: &ServiceParts,
    request: v1::CancelFullSyncRequest,
    caller: String,
) -> Result<v1::CancelFullSyncResponse, Status> {
    let id = id(&request.id)?;
    let found = parts.syncs.cancel(id).await.map_err(|error| queue_status(&error))?;
    let record = found.ok_or_else(|| not_found(id))?;
    tracing::info!(sync = %id, caller, state = record.state.as_str(), "an operator cancelled a full sync");
    Ok(v1::CancelFullSyncResponse { full_sync: Some(encode::full_sync(&record)) })
}

fn id(text: &str) -> Result<SyncId, Status> {
    text.parse().map_err(|()| invalid_field("id", "an id is sync- and a number, such as sync-42"))
}

fn not_found(id: SyncId) -> Status {
    Reason::SyncNotFound.status(format!("there is no {id}, or it left the history"))
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
