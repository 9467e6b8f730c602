//! The records of all syncs on the disk: found again, bounded, and set right after a restart.

use super::parts::SyncParts;
use super::record::{
    RUNNING, SyncFailure, SyncRecord, SyncState, read_id, record_key, records_of, request_key, requests_of, route_key,
    running_key, write_id,
};
use super::request::SyncRequest;
use crate::fault::FaultKind;
use crate::queue::{QueueError, StateWrite, SyncId};

/// Records that are kept of a route, the running sync's included; older ones leave the history when a new sync starts.
pub(super) const HISTORY: usize = 1000;

/// Old records that leave in one start, at most: the write stays small.
const PRUNED: usize = 10;

/// Routes that may have a running sync, and requests that one sync may have answered, as far as they are cleared away.
const MANY: usize = 10_000;

/// Ends a record as FAILED.
pub(super) fn fail(record: &mut SyncRecord, failure: SyncFailure) {
    record.state = SyncState::Failed;
    record.failure = Some(failure);
}

/// The last writes of a sync.
pub(super) fn end_writes(record: &SyncRecord) -> Vec<StateWrite> {
    vec![record.write(), StateWrite { key: running_key(&record.route), value: None }]
}

/// Remembers that this sync answers the request.
pub(super) fn request_writes(request: &SyncRequest, id: SyncId) -> Vec<StateWrite> {
    if request.request_id.is_empty() {
        return Vec::new();
    }
    let index = format!("{}{}", requests_of(id), request.request_id);
    vec![write_id(request_key(&request.request_id), id), StateWrite { key: index, value: Some(Vec::new()) }]
}

/// A record as it stands on the disk.
pub(super) async fn read_record(parts: &SyncParts, route: &str, id: SyncId) -> Result<Option<SyncRecord>, QueueError> {
    let key = record_key(route, id);
    match parts.queue.get(&key).await? {
        Some(value) => SyncRecord::decode(&key, &value).map(Some),
        None => Ok(None),
    }
}

/// A record from the disk that no task stands behind: one that is RUNNING there had an end that could not be written.
pub(super) fn past(mut record: SyncRecord) -> SyncRecord {
    if record.state == SyncState::Running {
        let message = "its end could not be written; run it again".to_owned();
        let kind = Some(FaultKind::QueueWriteFailed);
        fail(&mut record, SyncFailure { kind, peer: String::new(), code: None, message });
    }
    record
}

/// The newest records of a route; unreadable ones are logged and left out.
pub(super) async fn read_list(parts: &SyncParts, route: &str, limit: usize) -> Result<Vec<SyncRecord>, QueueError> {
    let mut records = Vec::new();
    for (key, value) in parts.queue.list(&records_of(route), limit).await? {
        match SyncRecord::decode(&key, &value) {
            Ok(record) => records.push(past(record)),
            Err(error) => tracing::error!(key, error = %error, "a full sync's record is left aside"),
        }
    }
    Ok(records)
}

/// Marks what a former process left running as FAILED.
pub(super) async fn recover(parts: &SyncParts) -> Result<(), QueueError> {
    for (key, value) in parts.queue.list(RUNNING, MANY).await? {
        let route = key.strip_prefix(RUNNING).unwrap_or_default();
        let found = match read_id(&key, &value) {
            Ok(id) => read_record(parts, route, id).await,
            Err(error) => Err(error),
        };
        let writes = match found {
            Ok(Some(mut record)) if record.state == SyncState::Running => {
                tracing::warn!(sync = %record.id, route, "full sync was cut by a restart");
                record.tally = parts.queue.sync_tally(record.id);
                record.end_time = Some(parts.clock.now());
                let message = "cut by a restart of the service; run it again".to_owned();
                fail(&mut record, SyncFailure { kind: None, peer: String::new(), code: None, message });
                end_writes(&record)
            }
            Ok(_) => vec![StateWrite { key: key.clone(), value: None }],
            Err(error) => {
                // The record itself stays as it is, for whoever can read it.
                tracing::error!(key, error = %error, "a full sync's record is left aside");
                vec![StateWrite { key: key.clone(), value: None }]
            }
        };
        parts.queue.write(writes).await?;
    }
    Ok(())
}

/// The deletes that make room for one more record.
pub(super) async fn pruned(parts: &SyncParts, route: &str) -> Result<Vec<StateWrite>, QueueError> {
    let state = &parts.queue;
    let prefix = records_of(route);
    let keys = state.list(&prefix, HISTORY - 1 + PRUNED).await?;
    let mut deletes = Vec::new();
    for (key, _) in keys.into_iter().skip(HISTORY - 1) {
        if let Some(id) = key.strip_prefix(&prefix).and_then(|number| number.parse().ok()).map(SyncId) {
            let requests = requests_of(id);
            for (index, _) in state.list(&requests, MANY).await? {
                let request_id = index.strip_prefix(&requests).unwrap_or_default();
                deletes.push(StateWrite { key: request_key(request_id), value: None });
                deletes.push(StateWrite { key: index, value: None });
            }
            deletes.push(StateWrite { key: route_key(id), value: None });
        }
        deletes.push(StateWrite { key, value: None });
    }
    Ok(deletes)
}
