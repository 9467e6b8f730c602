//! The owner of all syncs: which may start, where their records are, and what a restart makes of them.

use super::history::{HISTORY, end_writes, fail, past, pruned, read_list, read_record, recover, request_writes};
use super::needs::SyncNeeds;
use super::parts::{SyncParts, SyncRoute};
use super::prefix::is_valid;
use super::record::{
    LAST_ID, SyncFailure, SyncMode, SyncPhase, SyncRecord, SyncState, read_id, request_key, route_key, running_key,
    write_id,
};
use super::request::{Started, SyncRequest, SyncStartError};
use super::run::Run;
use super::span::{begin_span, end_span};
use crate::failpoint::{self, Point};
use crate::fault::FaultKind;
use crate::queue::{QueueError, StateWrite, SyncId};
use futures::FutureExt;
use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The longest request id, in bytes.
const MAX_REQUEST_ID: usize = 128;

/// How long a start waits for the source to say what it is; one that does not answer fails the sync instead.
const INFO_PATIENCE: Duration = Duration::from_secs(2);

/// How often a sync's last record is tried to be written, a second apart. The next start makes up for one that was not.
const END_WRITES: u32 = 5;

/// How long a cancelling waits for the end of what it cancelled.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

/// How often it looks.
const CANCEL_LOOK: Duration = Duration::from_millis(20);

/// A route and its newest sync.
pub(super) struct RouteSlot {
    pub(super) route: SyncRoute,
    // One start at a time: what it looks up and what it writes belong together.
    starting: tokio::sync::Mutex<()>,
    newest: Mutex<Option<SyncRecord>>,
    // Ends the running sync.
    cancel: Mutex<CancellationToken>,
    // How many have ended so since the start, in the order of ENDS.
    ended: [AtomicU64; ENDS.len()],
}

/// How a sync can end.
const ENDS: [SyncState; 4] =
    [SyncState::Completed, SyncState::CompletedWithFailures, SyncState::Failed, SyncState::Cancelled];

impl RouteSlot {
    fn newest(&self) -> Option<SyncRecord> {
        self.newest.lock().clone()
    }

    /// What ends the sync that began last.
    fn canceller(&self) -> CancellationToken {
        self.cancel.lock().clone()
    }

    fn set_newest(&self, record: SyncRecord) {
        *self.newest.lock() = Some(record);
    }

    /// Shows how the running sync stands.
    pub(super) fn show(&self, record: &SyncRecord) {
        self.set_newest(record.clone());
    }
}

struct SyncsInner {
    parts: SyncParts,
    slots: BTreeMap<String, Arc<RouteSlot>>,
    // The highest id given out. Held while it is written, so that the written ones ascend, and from the last look for a
    // request's id to its write, so that one id does not start syncs of two routes.
    last_id: tokio::sync::Mutex<u64>,
    needs: SyncNeeds,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// All full syncs of this process: at most one runs on a route. Cheap to clone.
#[derive(Clone)]
pub(crate) struct FullSyncs {
    inner: Arc<SyncsInner>,
}

impl fmt::Debug for FullSyncs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FullSyncs").field("routes", &self.inner.slots.keys()).finish_non_exhaustive()
    }
}

impl FullSyncs {
    /// The syncs of these routes. Those that a former process left running are FAILED from here on.
    pub(crate) async fn open(parts: SyncParts, routes: Vec<SyncRoute>) -> Result<Self, QueueError> {
        let last_id = match parts.queue.get(LAST_ID).await? {
            Some(value) => read_id(LAST_ID, &value)?.0,
            None => 0,
        };
        recover(&parts).await?;
        let mut slots = BTreeMap::new();
        for route in routes {
            let newest = read_list(&parts, &route.name, 1).await?.pop();
            let (newest, cancel) = (Mutex::new(newest), Mutex::default());
            let slot =
                RouteSlot { starting: tokio::sync::Mutex::new(()), newest, cancel, route, ended: Default::default() };
            slots.insert(slot.route.name.clone(), Arc::new(slot));
        }
        let needs = SyncNeeds::open(&*parts.queue, slots.keys().map(String::as_str)).await?;
        let last_id = tokio::sync::Mutex::new(last_id);
        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        Ok(Self { inner: Arc::new(SyncsInner { parts, slots, last_id, needs, stop, tasks }) })
    }

    /// Which routes need a full sync, and which may have lost entries.
    pub(crate) fn needs(&self) -> &SyncNeeds {
        &self.inner.needs
    }

    /// Ends a sync, and waits a while for its end: CANCELLED, unless it ended in another way just now. One that ended
    /// before stays as it is. Gives how it stands; `None` where there is no such sync, or it left the history.
    pub(crate) async fn cancel(&self, id: SyncId) -> Result<Option<SyncRecord>, QueueError> {
        let is_running = |slot: &RouteSlot| {
            slot.newest().is_some_and(|record| record.id == id && record.state == SyncState::Running)
        };
        if let Some(slot) = self.inner.slots.values().find(|slot| is_running(slot)) {
            slot.canceller().cancel();
            let ended = async {
                while is_running(slot) {
                    tokio::time::sleep(CANCEL_LOOK).await;
                }
            };
            // What it is writing is seen through; it ends by itself.
            if tokio::time::timeout(CANCEL_PATIENCE, ended).await.is_err() {
                tracing::info!(sync = %id, "a full sync that was cancelled has yet to end");
            }
        }
        self.get(id).await
    }

    /// Starts a sync, or finds the one that answers the request already. Its record is durable when this returns. The
    /// start goes on where the caller goes away.
    pub(crate) async fn start(&self, request: SyncRequest) -> Result<Started, SyncStartError> {
        let inner = &self.inner;
        let Some(slot) = inner.slots.get(&request.route).cloned() else {
            let known = inner.slots.keys().cloned().collect();
            return Err(SyncStartError::UnknownRoute { route: request.route, known });
        };
        if request.mode != SyncMode::Copy {
            return Err(SyncStartError::ModeUnsupported(request.mode));
        }
        if !is_valid(&request.prefix) {
            return Err(SyncStartError::InvalidPrefix);
        }
        let printable = request.request_id.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if !printable || request.request_id.len() > MAX_REQUEST_ID {
            return Err(SyncStartError::InvalidRequestId);
        }
        if inner.stop.is_cancelled() {
            return Err(SyncStartError::ShuttingDown);
        }
        let (answer, answered) = oneshot::channel();
        let task = Arc::clone(inner);
        inner.tasks.spawn(async move {
            let begun = task.begin(&slot, &request).await;
            let run = match &begun {
                Ok(started) if started.is_new => Some(started.answer.record.clone()),
                _ => None,
            };
            // A caller that went away does not matter to the sync.
            drop(answer.send(begun.map(|begun| begun.answer)));
            if let Some(record) = run {
                task.run(&slot, record).await;
            }
        });
        answered.await.map_err(|_| SyncStartError::ShuttingDown)?
    }

    /// A sync by its id; `None` where there is none, or it left the history.
    pub(crate) async fn get(&self, id: SyncId) -> Result<Option<SyncRecord>, QueueError> {
        self.inner.get(id).await
    }

    /// The newest sync of a route, running or not.
    pub(crate) fn last(&self, route: &str) -> Option<SyncRecord> {
        self.inner.slots.get(route).and_then(|slot| slot.newest()).map(|record| self.inner.counted(record))
    }

    /// The sync that runs on a route.
    pub(crate) fn running(&self, route: &str) -> Option<SyncRecord> {
        self.last(route).filter(|record| record.state == SyncState::Running)
    }

    /// How the route's syncs have ended since this process started, and how many did so.
    pub(crate) fn ended(&self, route: &str) -> Vec<(SyncState, u64)> {
        let slot = self.inner.slots.get(route);
        let counts = slot.into_iter().flat_map(|slot| ENDS.iter().zip(&slot.ended));
        counts.map(|(state, count)| (*state, count.load(Ordering::Relaxed))).collect()
    }

    /// The syncs of a route, newest first, `limit` at most. Unreadable records are logged and left out.
    pub(crate) async fn list(&self, route: &str, limit: usize) -> Result<Vec<SyncRecord>, QueueError> {
        let mut records = read_list(&self.inner.parts, route, limit).await?;
        if let Some(newest) = self.last(route)
            && let Some(stale) = records.iter_mut().find(|record| record.id == newest.id)
        {
            *stale = newest;
        }
        Ok(records)
    }

    /// The syncs of one route or all, in one state or any, with ids below `below`: newest first, `limit` at most.
    pub(crate) async fn history(
        &self,
        route: Option<&str>,
        state: Option<SyncState>,
        below: Option<SyncId>,
        limit: usize,
    ) -> Result<Vec<SyncRecord>, QueueError> {
        let mut found = Vec::new();
        for name in self.inner.slots.keys().filter(|name| route.is_none_or(|route| route == **name)) {
            let records = self.list(name, HISTORY).await?;
            let wanted = |record: &SyncRecord| {
                below.is_none_or(|below| record.id < below) && state.is_none_or(|state| record.state == state)
            };
            found.extend(records.into_iter().filter(wanted).take(limit));
        }
        found.sort_by_key(|record| Reverse(record.id));
        found.truncate(limit);
        Ok(found)
    }

    /// Ends all syncs (FAILED: cut by the shutdown) and waits for them. No sync starts from here on.
    pub(crate) async fn shutdown(&self) {
        self.inner.stop.cancel();
        self.inner.tasks.close();
        self.inner.tasks.wait().await;
    }
}

/// The answer to a start, and whether there is something to run.
struct StartAnswer {
    answer: Started,
    is_new: bool,
}

impl StartAnswer {
    fn known(record: SyncRecord) -> Self {
        let already_running = record.state == SyncState::Running;
        Self { answer: Started { record, already_running }, is_new: false }
    }
}

/// Whether this sync does what the request asks for.
fn is_answer(record: &SyncRecord, request: &SyncRequest) -> bool {
    record.route == request.route && record.mode == request.mode && record.prefix == request.prefix
}

impl SyncsInner {
    /// A running record with the present figures of its entries.
    fn counted(&self, mut record: SyncRecord) -> SyncRecord {
        if record.state == SyncState::Running {
            record.tally = self.parts.queue.sync_tally(record.id);
        }
        record
    }

    async fn get(&self, id: SyncId) -> Result<Option<SyncRecord>, QueueError> {
        let newest = self.slots.values().filter_map(|slot| slot.newest()).find(|record| record.id == id);
        if let Some(record) = newest {
            return Ok(Some(self.counted(record)));
        }
        let Some(route) = self.parts.queue.get(&route_key(id)).await? else {
            return Ok(None);
        };
        Ok(read_record(&self.parts, &String::from_utf8_lossy(&route), id).await?.map(past))
    }

    /// The answer to a request whose id was used before, as long as that sync is in the history.
    async fn answered_before(&self, request: &SyncRequest) -> Result<Option<StartAnswer>, SyncStartError> {
        if request.request_id.is_empty() {
            return Ok(None);
        }
        let key = request_key(&request.request_id);
        let Some(value) = self.parts.queue.get(&key).await? else {
            return Ok(None);
        };
        match self.get(read_id(&key, &value)?).await? {
            Some(record) if is_answer(&record, request) => Ok(Some(StartAnswer::known(record))),
            Some(record) => Err(SyncStartError::RequestIdReused(record.id)),
            None => Ok(None),
        }
    }

    /// Writes the record of a new sync, unless one that exists answers the request.
    async fn begin(&self, slot: &RouteSlot, request: &SyncRequest) -> Result<StartAnswer, SyncStartError> {
        let _one_at_a_time = slot.starting.lock().await;
        let route = &slot.route.name;
        let state = &self.parts.queue;
        if let Some(begun) = self.answered_before(request).await? {
            return Ok(begun);
        }
        if let Some(running) = slot.newest().filter(|record| record.state == SyncState::Running) {
            if !is_answer(&running, request) {
                return Err(SyncStartError::OtherRunning(running.id));
            }
            let _writing = self.last_id.lock().await;
            if let Some(begun) = self.answered_before(request).await? {
                return Ok(begun);
            }
            state.write(request_writes(request, running.id)).await?;
            return Ok(StartAnswer::known(self.counted(running)));
        }
        // A store that does not answer is no reason to refuse: the sync will say so. One that says it cannot, is.
        let info = tokio::time::timeout(INFO_PATIENCE, slot.route.source.info());
        if let Some(Ok(Ok(info))) = self.stop.run_until_cancelled(info).await {
            super::run::check_source(&slot.route, &info)
                .map_err(|failure| SyncStartError::PeerUnsuitable(failure.message))?;
        }
        let mut writes = pruned(&self.parts, route).await?;
        if self.stop.is_cancelled() {
            return Err(SyncStartError::ShuttingDown);
        }
        let record = {
            failpoint::pause(Point::SyncBegin).await.map_err(QueueError::from)?;
            let mut last_id = self.last_id.lock().await;
            if let Some(begun) = self.answered_before(request).await? {
                return Ok(begun);
            }
            // Counted up before the write: one that fails may be on disk all the same.
            *last_id += 1;
            let id = SyncId(*last_id);
            let record = SyncRecord::new(id, route, request.mode, &request.prefix, self.parts.clock.now());
            writes.push(write_id(LAST_ID.to_owned(), id));
            writes.push(StateWrite { key: route_key(id), value: Some(route.clone().into_bytes()) });
            writes.push(write_id(running_key(route), id));
            writes.push(record.write());
            writes.extend(request_writes(request, id));
            state.write(writes).await?;
            record
        };
        *slot.cancel.lock() = self.stop.child_token();
        slot.set_newest(record.clone());
        // What is empty is left out.
        let prefix = (!record.prefix.is_empty()).then_some(record.prefix.as_str());
        tracing::info!(sync = %record.id, route = %route, mode = record.mode.as_str(), prefix, "full sync started");
        Ok(StartAnswer { answer: Started { record, already_running: false }, is_new: true })
    }

    /// Runs a sync to its end, whatever that is, and writes how it ended.
    async fn run(&self, slot: &RouteSlot, record: SyncRecord) {
        let cancel = slot.canceller();
        let span = begin_span(&self.parts.tracer, &record);
        let mut run = Run::new(&self.parts, slot, &cancel, record);
        let ended = span.within(AssertUnwindSafe(run.finish()).catch_unwind()).await;
        let mut record = run.into_record();
        record.tally = self.parts.queue.sync_tally(record.id);
        match ended {
            Ok(Ok(())) if record.tally.parked + record.tally.discarded == 0 => record.state = SyncState::Completed,
            Ok(Ok(())) => record.state = SyncState::CompletedWithFailures,
            Ok(Err(_)) if cancel.is_cancelled() && !self.stop.is_cancelled() => record.state = SyncState::Cancelled,
            Ok(Err(failure)) => fail(&mut record, failure),
            Err(_) => fail(
                &mut record,
                SyncFailure {
                    kind: Some(FaultKind::Panicked),
                    peer: String::new(),
                    code: None,
                    message: "the sync panicked; the log has the details".to_owned(),
                },
            ),
        }
        record.phase = SyncPhase::default();
        record.eta = None;
        record.end_time = Some(self.parts.clock.now());
        end_span(&span, &record);
        match &record.failure {
            Some(failure) => {
                let peer = (!failure.peer.is_empty()).then_some(failure.peer.as_str());
                tracing::warn!(
                    sync = %record.id, route = %record.route, cause = failure.cause(), peer,
                    reason = %failure.message, "full sync failed"
                );
            }
            None => tracing::info!(
                sync = %record.id, route = %record.route, state = record.state.as_str(),
                compared = record.counts.source_blobs, missing = record.counts.missing,
                differing = record.counts.differing, confirmed = record.tally.confirmed,
                unknown = record.unknown_refs(), "full sync ended"
            ),
        }
        // A panic must not leave it running for ever in the eyes of those who watch it.
        if AssertUnwindSafe(self.write_end(&record)).catch_unwind().await.is_err() {
            tracing::error!(sync = %record.id, "the end of a full sync could not be written: it panicked");
        }
        if let Some(index) = ENDS.iter().position(|end| *end == record.state) {
            slot.ended[index].fetch_add(1, Ordering::Relaxed);
        }
        // Last, so that whoever sees the end finds it durable, and the next sync's marker is not deleted.
        slot.set_newest(record);
    }

    async fn write_end(&self, record: &SyncRecord) {
        for attempt in 1..=END_WRITES {
            let mut writes = end_writes(record);
            writes.extend(SyncNeeds::end_writes(record));
            let end = async {
                failpoint::pause(Point::SyncEnd).await?;
                self.parts.queue.write(writes).await?;
                self.needs.ended(record, &*self.parts.queue).await
            };
            let Err(error) = end.await else {
                return;
            };
            tracing::error!(sync = %record.id, attempt, error = %error, "the end of a full sync could not be written");
            if self.stop.is_cancelled() || attempt == END_WRITES {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }
}
