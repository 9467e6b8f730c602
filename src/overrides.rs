//! An operator's overrides of the configured limits: in force at once, kept over restarts, with who, when, why and until when.
//!
//! Each setting of a route is overridden on its own, so that a pause for an hour and a lower rate for good do not get into
//! each other's way. An override wins over the configuration until it is reset or expires. Workers see the limits in force
//! through a `watch` channel.
//!
//! # Where they are kept
//!
//! All of them are one document (`document`), in two places: the queue's [`State`] under `override/document`, and a file beside
//! the queue's folder, so that a pause survives the loss of the queue. The document carries a revision, which grows with every
//! change. On start both are read and the higher revision wins, whatever the clocks say; a tie is the same document. The other
//! place is brought up to date at once.
//!
//! A change is written to both before it is in force. It counts if one of the two writes succeeded: a pause must be possible
//! while the queue's disk is full. The other is tried again until it succeeds. If both failed, nothing has changed.
//!
//! # Expiry
//!
//! `expire_time` is compared with the wall clock when an override is set and when it is read on start; in between, the
//! monotonic clock counts, so that a jump of the wall clock ends nothing early. Where it was set back before a start, nothing
//! lasts longer from there than it was meant to last in all.

mod document;
mod file;

use crate::clock::{Clock, Monotonic};
use crate::limits::{Limits, Override, Setting};
use crate::queue::{QueueError, State, StateWrite};
use document::{Document, Kept};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;

/// The key of the document in the queue's state.
const KEY: &str = "override/document";

/// How often to look for what has expired, and for a copy of the document that is behind.
const LOOK: Duration = Duration::from_millis(500);

/// Who set an override, when, why and until when.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    /// Who, as the caller stated it.
    pub set_by: String,
    /// When.
    pub set_time: SystemTime,
    /// When it ends by itself; absent: it does not.
    pub expire_time: Option<SystemTime>,
    /// Why, as the caller stated it; may be empty.
    pub reason: String,
}

/// A change to one setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    /// Overrides it.
    Set(Override),
    /// Goes back to the configuration.
    Reset(Setting),
}

/// The limits of a route, and where they come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct InForce {
    /// What holds now.
    pub limits: Limits,
    /// What the configuration says.
    pub configured: Limits,
    /// What was overridden, and by whom; by setting.
    pub overrides: Vec<(Override, Stamp)>,
}

impl InForce {
    /// Limits as they were configured.
    pub(crate) fn configured(limits: Limits) -> Self {
        Self { limits, configured: limits, overrides: Vec::new() }
    }

    /// Who paused the route, if somebody did.
    pub(crate) fn pause(&self) -> Option<&Stamp> {
        self.overrides.iter().find(|(value, _)| *value == Override::Paused).map(|(_, stamp)| stamp)
    }
}

/// The overrides of all routes. See the module's header.
pub(crate) struct Overrides {
    clock: Arc<dyn Clock>,
    state: Arc<dyn State>,
    file: Option<PathBuf>,
    routes: BTreeMap<String, (Limits, watch::Sender<Limits>)>,
    inner: Mutex<OverridesInner>,
    /// One change at a time.
    changing: tokio::sync::Mutex<()>,
    /// Whether a copy of the document could not be written, so that this is logged once.
    troubled: AtomicBool,
}

#[derive(Default)]
struct OverridesInner {
    document: Document,
    /// When those that expire do.
    deadlines: BTreeMap<(String, Setting), Monotonic>,
    /// The revisions that are in the state and in the file.
    saved: [u64; 2],
}

impl fmt::Debug for Overrides {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Overrides").finish_non_exhaustive()
    }
}

impl Overrides {
    /// Reads what was overridden. `configured` are the routes with their configured limits; `file` is where the second copy is,
    /// if there is one.
    ///
    /// # Errors
    /// If the state or the file cannot be read. What is not understood in either is put aside, and said.
    pub(crate) async fn open(
        clock: Arc<dyn Clock>,
        state: Arc<dyn State>,
        file: Option<PathBuf>,
        configured: BTreeMap<String, Limits>,
    ) -> Result<Arc<Self>, io::Error> {
        let of_state = state.get(KEY).await.map_err(io::Error::other)?;
        let of_state = of_state.and_then(|bytes| {
            let read = Document::decode(&bytes);
            read.inspect_err(|error| tracing::error!(%error, "the overrides in the queue cannot be read")).ok()
        });
        let of_file = match &file {
            Some(file) => file::read(file.clone()).await?,
            None => None,
        };
        let saved = [&of_state, &of_file].map(|found| found.as_ref().map_or(0, |document| document.revision));
        if let ([Some(_), Some(_)], true) = ([&of_state, &of_file], saved[0] != saved[1]) {
            let [queue, file] = saved;
            tracing::warn!(
                queue,
                file,
                "the overrides of the queue and of the file differ; the higher revision is in force"
            );
        }
        let document = if saved[1] > saved[0] { of_file } else { of_state };
        let routes = configured.into_iter().map(|(name, limits)| (name, (limits, watch::Sender::new(limits))));
        let inner = OverridesInner { document: document.unwrap_or_default(), deadlines: BTreeMap::new(), saved };
        let overrides = Self {
            clock,
            state,
            file,
            routes: routes.collect(),
            inner: Mutex::new(inner),
            changing: tokio::sync::Mutex::default(),
            troubled: AtomicBool::new(false),
        };
        overrides.begin();
        // From the start on, either copy may be lost.
        overrides.look().await;
        Ok(Arc::new(overrides))
    }

    /// Drops what has expired while nobody looked, and puts the rest in force.
    fn begin(&self) {
        let (wall, now) = (self.clock.now(), self.clock.monotonic());
        let mut inner = self.inner.lock();
        let mut expired = Vec::new();
        let mut deadlines = BTreeMap::new();
        for (route, setting, kept) in inner.document.all() {
            if let Some(end) = kept.stamp.expire_time {
                match end.duration_since(wall).ok().filter(|left| !left.is_zero()) {
                    Some(left) => {
                        let meant = end.duration_since(kept.stamp.set_time);
                        let left = meant.map_or(left, |meant| left.min(meant));
                        deadlines.insert((route.to_owned(), setting), now.saturating_add(left));
                    }
                    None => expired.push((route.to_owned(), setting)),
                }
            }
        }
        inner.deadlines = deadlines;
        Self::expire(&mut inner, &expired);
        for (route, setting, Kept { stamp, .. }) in inner.document.all() {
            tracing::info!(route, setting = setting.as_str(), set_by = %stamp.set_by, "an operator's override is in force");
        }
        self.publish(&inner);
    }

    /// The limits of a configured route, now and from now on.
    pub(crate) fn limits(&self, route: &str) -> Option<watch::Receiver<Limits>> {
        self.routes.get(route).map(|(_, sender)| sender.subscribe())
    }

    /// The limits of a configured route, and where they come from.
    pub(crate) fn in_force(&self, route: &str) -> Option<InForce> {
        let (configured, _) = self.routes.get(route)?;
        let overrides: Vec<_> =
            self.inner.lock().document.of(route).map(|kept| (kept.value, kept.stamp.clone())).collect();
        let limits = configured.with(overrides.iter().map(|(value, _)| value));
        Some(InForce { limits, configured: *configured, overrides })
    }

    /// Changes settings of a route, durably and at once. What is reset and was not overridden stays as it is.
    ///
    /// # Errors
    /// If it could be written nowhere; nothing has changed then.
    pub(crate) async fn change(&self, route: &str, changes: &[Change], stamp: &Stamp) -> Result<(), QueueError> {
        let _one_at_a_time = self.changing.lock().await;
        let (wall, now) = (self.clock.now(), self.clock.monotonic());
        let mut document = self.inner.lock().document.clone();
        for change in changes {
            match *change {
                Change::Set(value) => document.set(route, Kept { value, stamp: stamp.clone() }),
                Change::Reset(setting) => document.reset(route, setting),
            }
        }
        document.revision += 1;
        let saved = self.save(&document).await;
        let mut inner = self.inner.lock();
        if let Err(error) = saved {
            // Part of a failed write may be on disk all the same: what follows must be newer.
            inner.document.revision = document.revision + 1;
            return Err(error);
        }
        inner.document = document;
        for change in changes {
            let key = (route.to_owned(), setting_of(change));
            inner.deadlines.remove(&key);
            if let (Change::Set(_), Some(end)) = (change, stamp.expire_time) {
                inner.deadlines.insert(key, now.saturating_add(end.duration_since(wall).unwrap_or_default()));
            }
        }
        self.publish(&inner);
        Ok(())
    }

    /// Forgets all overrides of a route, configured or not.
    ///
    /// # Errors
    /// As [`change`](Self::change).
    pub(crate) async fn forget(&self, route: &str, by: &Stamp) -> Result<(), QueueError> {
        if self.inner.lock().document.of(route).next().is_none() {
            return Ok(());
        }
        self.change(route, &Setting::ALL.map(Change::Reset), by).await
    }

    /// Ends overrides when their time has come, and brings copies of the document up to date. Never returns.
    pub(crate) async fn keep(&self) {
        loop {
            tokio::time::sleep(LOOK).await;
            self.look().await;
        }
    }

    /// One look of [`keep`](Self::keep).
    async fn look(&self) {
        let _one_at_a_time = self.changing.lock().await;
        let now = self.clock.monotonic();
        let document = {
            let mut inner = self.inner.lock();
            let due = inner.deadlines.iter().filter(|(_, deadline)| **deadline <= now);
            let due: Vec<_> = due.map(|(key, _)| key.clone()).collect();
            if Self::expire(&mut inner, &due) {
                self.publish(&inner);
            }
            let whole = [true, self.file.is_some()];
            let behind = inner.saved.iter().zip(whole).any(|(saved, used)| used && *saved != inner.document.revision);
            behind.then(|| inner.document.clone())
        };
        if let Some(document) = document {
            // Whatever fails is tried again, and was logged.
            drop(self.save(&document).await);
        }
    }

    /// Removes these; whether there were any.
    fn expire(inner: &mut OverridesInner, due: &[(String, Setting)]) -> bool {
        for (route, setting) in due {
            tracing::info!(route = %route, setting = setting.as_str(), "an operator's override has expired");
            inner.document.reset(route, *setting);
            inner.deadlines.remove(&(route.clone(), *setting));
        }
        inner.document.revision += u64::from(!due.is_empty());
        !due.is_empty()
    }

    fn publish(&self, inner: &OverridesInner) {
        for (route, (configured, sender)) in &self.routes {
            let limits = configured.with(inner.document.of(route).map(|kept| &kept.value));
            sender.send_if_modified(|known| std::mem::replace(known, limits) != limits);
        }
    }

    /// Writes the document to where it is not yet. An error where it is nowhere.
    async fn save(&self, document: &Document) -> Result<(), QueueError> {
        let bytes = document.encode();
        let saved = self.inner.lock().saved;
        let to_state = async {
            if saved[0] == document.revision {
                return Ok(());
            }
            let write = StateWrite { key: KEY.to_owned(), value: Some(bytes.clone()) };
            self.state.write(vec![write]).await
        };
        let to_file = async {
            match &self.file {
                Some(file) if saved[1] != document.revision => Some(file::write(file.clone(), bytes.clone()).await),
                Some(_) => Some(Ok(())),
                None => None,
            }
        };
        let (to_state, to_file) = tokio::join!(to_state, to_file);
        {
            let mut inner = self.inner.lock();
            if to_state.is_ok() {
                inner.saved[0] = document.revision;
            }
            if matches!(to_file, Some(Ok(()))) {
                inner.saved[1] = document.revision;
            }
        }
        let trouble = match (&to_state, &to_file) {
            (Err(error), _) => Some(error.to_string()),
            (_, Some(Err(error))) => Some(format!("the file of the overrides could not be written: {error}")),
            _ => None,
        };
        let was_troubled = self.troubled.swap(trouble.is_some(), Ordering::Relaxed);
        match trouble {
            Some(error) if !was_troubled => tracing::warn!(error, "overrides are not kept in both places; tried again"),
            None if was_troubled => tracing::info!("overrides are kept in both places again"),
            _ => {}
        }
        match (to_state, to_file) {
            (Err(error), None | Some(Err(_))) => Err(error),
            _ => Ok(()),
        }
    }
}

const fn setting_of(change: &Change) -> Setting {
    match change {
        Change::Set(value) => value.setting(),
        Change::Reset(setting) => *setting,
    }
}

#[cfg(test)]
mod tests;
