//! Which routes need a full sync, and which may have lost entries: as it is in the state, and kept at hand.
//!
//! A route's need ends with a full sync in mode COPY, without a prefix, whoever began it, that COMPLETED. That it is
//! DEGRADED ends with one that saw both stores whole, COMPLETED_WITH_FAILURES too: whatever was acked is confirmed then, or
//! queued (parked counts), or was discarded, and each of these shows. When no configured route is DEGRADED any more, the
//! incidents are over and forgotten. `queue::damage` lists the keys.

use super::record::{SyncMode, SyncRecord, SyncState};
use crate::queue::damage::{DEGRADED_ROUTES, INCIDENTS, Incident, SYNC_NEEDED, sync_needed};
use crate::queue::{QueueError, State, StateWrite};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

/// Rows of a kind that are read, at most: more routes and incidents than there ever are.
const MANY: usize = 100_000;

/// A full sync that a route needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NeededSync {
    /// Why, for people.
    pub reason: String,
    /// Why the last attempt did not help, for people; empty: there was none, or it runs.
    pub problem: String,
    /// When it is begun next; absent: it runs, or nobody will begin it.
    pub next_time: Option<SystemTime>,
}

#[derive(Debug, Default)]
struct NeedsInner {
    needed: BTreeMap<String, NeededSync>,
    degraded: BTreeSet<String>,
    incidents: Vec<Incident>,
}

/// The needs of all configured routes.
#[derive(Debug, Default)]
pub(crate) struct SyncNeeds {
    inner: Mutex<NeedsInner>,
}

fn delete(key: String) -> StateWrite {
    StateWrite { key, value: None }
}

impl SyncNeeds {
    /// Reads them, and marks the routes that a new incident concerns.
    pub(super) async fn open<'a>(
        state: &dyn State,
        routes: impl Iterator<Item = &'a str> + Clone,
    ) -> Result<Self, QueueError> {
        let mut inner = NeedsInner::default();
        let mut writes = Vec::new();
        let mut is_new = false;
        for (key, value) in state.list(INCIDENTS, MANY).await? {
            match Incident::decode(&value) {
                Ok(incident) => {
                    let incident = Incident { is_assigned: true, ..incident };
                    let assigned = StateWrite { key, value: Some(incident.encode()) };
                    if assigned.value.as_ref() != Some(&value) {
                        is_new = true;
                        writes.push(assigned);
                    }
                    inner.incidents.push(incident);
                }
                Err(error) => tracing::error!(key, %error, "what the queue lost cannot be told"),
            }
        }
        for route in routes.clone().filter(|_| is_new) {
            writes.push(StateWrite { key: format!("{DEGRADED_ROUTES}{route}"), value: Some(Vec::new()) });
            writes.push(sync_needed(route, "a part of the queue was lost"));
        }
        if !writes.is_empty() {
            state.write(writes).await?;
        }
        for route in routes {
            if let Some(reason) = state.get(&format!("{SYNC_NEEDED}{route}")).await? {
                let reason = String::from_utf8_lossy(&reason).into_owned();
                let needed = NeededSync { reason, problem: String::new(), next_time: None };
                inner.needed.insert(route.to_owned(), needed);
            }
            if state.get(&format!("{DEGRADED_ROUTES}{route}")).await?.is_some() {
                inner.degraded.insert(route.to_owned());
            }
        }
        for incident in &inner.incidents {
            tracing::error!(
                what = %incident.what, kept = %incident.kept, found = %humantime::format_rfc3339_seconds(incident.time),
                "a part of the queue was lost; a full sync of each route makes up for it"
            );
        }
        let needs = Self { inner: Mutex::new(inner) };
        // All routes that an incident concerned may have left the configuration.
        needs.forget_incidents(state).await?;
        Ok(needs)
    }

    /// The full sync that a route needs.
    pub(crate) fn needed(&self, route: &str) -> Option<NeededSync> {
        self.inner.lock().needed.get(route).cloned()
    }

    /// Whether a route may have lost entries.
    pub(crate) fn is_degraded(&self, route: &str) -> bool {
        self.inner.lock().degraded.contains(route)
    }

    /// What the queue lost and no full sync has made up for yet, the latest first.
    pub(crate) fn incidents(&self) -> Vec<Incident> {
        self.inner.lock().incidents.clone()
    }

    /// A route needs a full sync from now on; the write that says so is to be made first.
    pub(crate) fn require(&self, route: &str, reason: &str) {
        let needed = NeededSync { reason: reason.to_owned(), problem: String::new(), next_time: None };
        self.inner.lock().needed.insert(route.to_owned(), needed);
    }

    /// Notes how it stands with a route's needed sync.
    pub(super) fn note(&self, route: &str, problem: String, next_time: Option<SystemTime>) {
        if let Some(needed) = self.inner.lock().needed.get_mut(route) {
            needed.problem = problem;
            needed.next_time = next_time;
        }
    }

    /// What ends with a sync that ended like this; to be written together with its record.
    pub(super) fn end_writes(record: &SyncRecord) -> Vec<StateWrite> {
        let mut writes = Vec::new();
        let whole = record.mode == SyncMode::Copy && record.prefix.is_empty();
        if whole && record.state == SyncState::Completed {
            writes.push(delete(format!("{SYNC_NEEDED}{}", record.route)));
        }
        if whole && matches!(record.state, SyncState::Completed | SyncState::CompletedWithFailures) {
            writes.push(delete(format!("{DEGRADED_ROUTES}{}", record.route)));
        }
        writes
    }

    /// The writes of [`end_writes`](Self::end_writes) are durable.
    pub(super) async fn ended(&self, record: &SyncRecord, state: &dyn State) -> Result<(), QueueError> {
        for StateWrite { key, .. } in Self::end_writes(record) {
            let mut inner = self.inner.lock();
            if let Some(route) = key.strip_prefix(SYNC_NEEDED) {
                inner.needed.remove(route);
            } else if let Some(route) = key.strip_prefix(DEGRADED_ROUTES)
                && inner.degraded.remove(route)
            {
                tracing::info!(route, "a full sync has made up for what the queue lost");
            }
        }
        self.forget_incidents(state).await
    }

    /// Deletes the incidents once no route is degraded. A crash before leaves them to the next start, which does the same.
    async fn forget_incidents(&self, state: &dyn State) -> Result<(), QueueError> {
        let is_over = {
            let inner = self.inner.lock();
            inner.degraded.is_empty() && !inner.incidents.is_empty()
        };
        if !is_over {
            return Ok(());
        }
        let mut writes = Vec::new();
        for prefix in [INCIDENTS, DEGRADED_ROUTES] {
            writes.extend(state.list(prefix, MANY).await?.into_iter().map(|(key, _)| delete(key)));
        }
        state.write(writes).await?;
        self.inner.lock().incidents.clear();
        tracing::info!("nothing of the queue is missing any more");
        Ok(())
    }
}
