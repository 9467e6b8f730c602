//! Adopting a store's new id.

use super::overrides::who;
use super::{ServiceParts, announce_status};
use crate::announce::{AnnounceError, Names};
use crate::blob::Excerpt;
use crate::clock::to_unix_ms;
use crate::grpc::{Reason, invalid_field, queue_status};
use crate::pb::v1;
use crate::peer::{AdoptError, Peer, adopted_key, store_id_key};
use crate::queue::StateWrite;
use crate::queue::damage::sync_needed;
use std::sync::Arc;
use tonic::Status;

pub(super) async fn adopt(
    parts: &Arc<ServiceParts>,
    request: v1::AdoptStoreRequest,
    caller: String,
) -> Result<v1::AdoptStoreResponse, Status> {
    if parts.gate.is_shut() {
        return Err(announce_status(&AnnounceError::ShuttingDown));
    }
    let v1::AdoptStoreRequest { store, store_id, adopted_by } = request;
    let by = who(adopted_by, "adopted_by", caller)?;
    let peer = parts.peers.iter().find(|peer| **peer.name() == *store).cloned();
    let peer = peer.ok_or_else(|| {
        let known = Names(parts.peers.iter().map(|peer| peer.name().clone()).collect());
        announce_status(&AnnounceError::UnknownStore { name: Excerpt::of(&store), known })
    })?;
    if store_id.is_empty() {
        return Err(invalid_field("store_id", "give the id that the store tells; Status shows it"));
    }
    let of_task = parts.clone();
    // In a task of its own: a caller that goes away does not leave it half done.
    let done = parts.tasks.spawn(async move { take(&of_task, &peer, store_id, by).await }).await;
    done.map_err(|error| Reason::Internal.status(format!("the adoption was broken off: {error}")))?
}

async fn take(
    parts: &ServiceParts,
    peer: &Arc<Peer>,
    store_id: String,
    by: String,
) -> Result<v1::AdoptStoreResponse, Status> {
    let store = peer.name();
    peer.check_identity(&store_id).await.map_err(|error| {
        let message = error.to_string();
        match error {
            AdoptError::Unavailable { .. } => {
                Reason::PeerUnavailable.status_with(message, [("store", store.to_string())])
            }
            AdoptError::Other { found, .. } => {
                let found = found.unwrap_or_default();
                Reason::StoreIdMismatch.status_with(message, [("store", store.to_string()), ("found", found)])
            }
        }
    })?;
    let previous = peer.store_id().borrow().clone();
    let changed = previous.as_deref() != Some(&*store_id);
    if changed {
        // Durable first: a crash before leaves the old id expected, a crash behind it the new one.
        let now = parts.clock.now();
        let since = to_unix_ms(now).to_string().into_bytes();
        let mut writes = vec![
            StateWrite { key: store_id_key(store), value: Some(store_id.clone().into_bytes()) },
            StateWrite { key: adopted_key(store), value: Some(since) },
        ];
        // Nobody knows what the new one holds.
        let routes = parts.routes.all().iter().filter(|route| [&route.from, &route.to].contains(&store));
        let routes: Vec<_> = routes.filter(|route| route.enabled).map(|route| route.name.clone()).collect();
        let reason = format!("another store was adopted as {store}");
        writes.extend(routes.iter().map(|route| sync_needed(route, &reason)));
        parts.queue.write(writes).await.map_err(|error| queue_status(&error))?;
        routes.iter().for_each(|route| parts.syncs.needs().require(route, &reason));
        peer.adopt_store_id(Some(store_id.clone()));
        peer.set_adopted(now);
        // Closes the breaker now, also where all routes of the store are paused.
        peer.identified().await;
        tracing::warn!(
            peer = %store, store_id, previous = previous.as_deref().unwrap_or_default(), %by,
            "an operator has adopted another store under this name"
        );
    }
    Ok(v1::AdoptStoreResponse {
        store: store.to_string(),
        store_id,
        previous_store_id: previous.unwrap_or_default(),
        changed,
    })
}
