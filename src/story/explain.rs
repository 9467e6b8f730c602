//! One blob's story: what the queue knows of it on every route, and what the stores say of it right now.

use super::ask::{ASK_WITHIN, Holding, ask};
use super::judge::{BlobState, HopState};
use super::{Story, StoryError};
use crate::announce::Route;
use crate::backoff::{OnMissing, Patience};
use crate::blob::BlobRef;
use crate::breaker::Phase;
use crate::fault::FaultKind;
use crate::queue::Entry;
use crate::queue::lookup::{Completion, DiscardedBy, Ending, Known};
use crate::words::span;
use crate::worker::InProgress;
use futures::future::join_all;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

/// What is known of a blob on a route.
#[derive(Clone, Debug)]
pub(crate) struct RouteStory {
    /// The route.
    pub route: Route,
    /// Whether it left the configuration.
    pub orphaned: bool,
    /// Whether an operator has paused it.
    pub paused: bool,
    /// The store that keeps it from copying, if one does: its breaker is not closed.
    pub blocked_by: Option<Arc<str>>,
    /// In one sentence.
    pub summary: String,
    /// How the blob stands.
    pub state: HopState,
    /// Its entries, and the latest completion that is remembered.
    pub known: Known,
    /// When its entry is given up.
    pub patience: Patience,
    /// The copy that is in progress, if one is; of a pack that the blob is in, all of it.
    pub copy: Option<InProgress>,
    /// Whether the source holds it.
    pub at_source: Holding,
    /// Whether the destination holds it.
    pub at_destination: Holding,
}

/// What is known of a blob.
#[derive(Clone, Debug)]
pub(crate) struct BlobStory {
    /// In one sentence.
    pub summary: String,
    /// The blob.
    pub blob: BlobRef,
    /// On every configured route, and on those others that know it; by name.
    pub routes: Vec<RouteStory>,
}

impl Story {
    /// All that is known of a blob. `ask_stores`: what the stores hold is asked, too.
    ///
    /// # Errors
    /// If the queue cannot be read.
    pub(crate) async fn explain(&self, blob: BlobRef, ask_stores: bool) -> Result<BlobStory, StoryError> {
        let parts = &self.parts;
        let configured = parts.routes.all().iter().map(|route| (route.clone(), false));
        let mut routes: Vec<(Route, bool)> =
            configured.chain(parts.orphans.iter().map(|r| (r.clone(), true))).collect();
        let held = async {
            let stores: BTreeSet<Arc<str>> =
                parts.routes.all().iter().flat_map(|r| [r.from.clone(), r.to.clone()]).collect();
            let asks = stores.into_iter().map(async |store| {
                let held = ask(parts.peers.get(&*store), &store, &[blob], ASK_WITHIN).await.pop();
                (store, held.unwrap_or(Holding::No))
            });
            if ask_stores { join_all(asks).await.into_iter().collect() } else { BTreeMap::new() }
        };
        let known = parts.lookup.look_up(routes.iter().map(|(route, _)| (route.id, blob)).collect());
        let (known, held): (_, BTreeMap<Arc<str>, Holding>) = tokio::join!(known, held);
        let held = |store: &Arc<str>| held.get(store).cloned().unwrap_or_else(|| not_asked(store, ask_stores));
        let now = parts.clock.now();

        let mut told: Vec<RouteStory> = Vec::with_capacity(routes.len());
        for ((route, orphaned), known) in routes.drain(..).zip(known?) {
            let is_known = known.queued.is_some() || known.completion.is_some();
            if orphaned && !is_known {
                continue;
            }
            let (at_source, at_destination) = (held(&route.from), held(&route.to));
            let Some(mut state) = HopState::new(&known, Some(&at_destination)) else { continue };
            if orphaned || !route.enabled {
                state.moves = false;
            }
            let worker = parts.workers.iter().find(|worker| worker.spec().id == route.id);
            let copy = worker.and_then(|worker| worker.copy_of(blob));
            let paused = self.paused(route.id);
            let is_shut =
                |name: &&Arc<str>| parts.peers.get(&***name).is_some_and(|peer| peer.snapshot().phase != Phase::Closed);
            let blocked_by = [&route.from, &route.to].into_iter().find(is_shut).cloned();
            let mut story = RouteStory {
                route,
                orphaned,
                paused,
                blocked_by,
                summary: String::new(),
                state,
                known,
                patience: parts.patience,
                copy,
                at_source,
                at_destination,
            };
            story.summary = story.sentence(now);
            told.push(story);
        }
        told.sort_by(|a, b| a.route.name.cmp(&b.route.name));
        Ok(BlobStory { summary: overall(&told), blob, routes: told })
    }
}

fn not_asked(store: &str, asked_others: bool) -> Holding {
    let why = if asked_others {
        format!("the store {store} belongs to no configured route")
    } else {
        format!("{store} was not asked")
    };
    Holding::Unknown { why, for_good: true }
}

impl RouteStory {
    /// The story in one sentence.
    fn sentence(&self, now: SystemTime) -> String {
        let route = &self.route;
        let ago = |time: SystemTime| {
            now.duration_since(time).map_or_else(|_| "just now".to_owned(), |age| span(age) + " ago")
        };
        let to = &route.to;
        let what = match self.state.state {
            BlobState::Confirmed => match &self.known.completion {
                Some(Completion { time, ending: Ending::Confirmed { copied: true, .. }, .. }) => {
                    format!("copied, and confirmed by {to} {}{}", ago(*time), self.took())
                }
                Some(Completion { time, .. }) => format!("found at {to} {}, nothing was sent", ago(*time)),
                None => format!("not queued; {to} holds it"),
            },
            BlobState::Ready => format!("waits for its first attempt, queued {}", self.queued(ago)),
            BlobState::Claimed => {
                let size = self.copy.as_ref().and_then(|copy| copy.size).map(|size| format!(" of {size}"));
                let copied =
                    self.copy.as_ref().map(|copy| format!(", {}{} bytes sent", copy.bytes, size.unwrap_or_default()));
                format!("is being copied{}, queued {}", copied.unwrap_or_default(), self.queued(ago))
            }
            BlobState::Retrying => {
                let due = self.state.due.and_then(|due| due.duration_since(now).ok());
                let next = due.map_or_else(|| "is due".to_owned(), |left| format!("follows in {}", span(left)));
                format!("failed {}; the next attempt {next}{}", self.failed(ago), self.given_up())
            }
            BlobState::Parked => format!("given up: it failed {}", self.failed(ago)),
            BlobState::Discarded => match &self.known.completion {
                Some(Completion { time, ending: Ending::Discarded { by, cause }, .. }) => {
                    let by = match by {
                        DiscardedBy::Operator => "by an operator",
                        DiscardedBy::Configuration => "as configured",
                    };
                    let cause = cause.map(|kind| format!(" after {kind}")).unwrap_or_default();
                    format!("discarded {by}{cause} {}", ago(*time))
                }
                _ => "discarded".to_owned(),
            },
            BlobState::NotQueued => match self.at_source {
                Holding::Yes(_) => format!(
                    "neither queued nor at {to}, though {} holds it: announce it, or run a full sync",
                    route.from
                ),
                _ => format!("neither queued nor at {to}"),
            },
            BlobState::Unknown | BlobState::Upstream => {
                format!("not queued, and it is not known whether {to} holds it")
            }
        };
        let is_gone = self.state.state == BlobState::Confirmed && self.at_destination == Holding::No;
        let more = if is_gone {
            "; but the destination does not hold it any more: run a full sync"
        } else if self.orphaned {
            "; the route left the configuration"
        } else if !route.enabled {
            "; the route is disabled"
        } else if self.paused && self.state.moves {
            "; the route is paused"
        } else if let Some(store) = self.blocked_by.as_ref().filter(|_| self.state.moves && !self.is_done()) {
            return format!("{}: {what}; the route is blocked: {store} cannot be used now", route.name);
        } else if self.is_corrupt() {
            let mend = "blobferry put --replace mends it there";
            return format!("{}: {what}; the bytes at {} are damaged: {mend}", route.name, route.from);
        } else if self.known.successor.is_some() {
            "; announced again meanwhile, so that it is copied once more"
        } else {
            ""
        };
        format!("{}: {what}{more}", route.name)
    }

    /// Whether nothing is left to be done for it.
    fn is_done(&self) -> bool {
        matches!(self.state.state, BlobState::Confirmed | BlobState::Discarded)
    }

    /// Whether the bytes that the source gave were not those of the ref, when it was last tried.
    fn is_corrupt(&self) -> bool {
        let kind = self.state.failure.as_ref().map(|failure| failure.kind);
        !self.is_done() && kind == Some(FaultKind::SourceBytesCorrupt)
    }

    /// How long after its announcement it was confirmed, where both are known.
    fn took(&self) -> String {
        let done = self.known.completion.as_ref();
        let took = done.and_then(|done| done.time.duration_since(done.enqueued.as_ref()?.time).ok());
        took.map_or_else(String::new, |took| format!(", {} after it was queued", span(took)))
    }

    /// When it is given up, where its source does not hold it.
    fn given_up(&self) -> String {
        let entry = self.known.queued.as_ref().map(|queued| &queued.entry);
        let is_missing =
            |entry: &&Entry| entry.failure.as_ref().is_some_and(|last| last.kind == FaultKind::MissingAtSource);
        let left = entry.filter(is_missing).and_then(|entry| self.patience.missing.checked_sub(entry.misses.lasted));
        // None is left, and it is not given up, while blobs that were copied earlier are missing, too.
        let Some(left) = left.filter(|left| !left.is_zero()) else { return String::new() };
        let then = match self.patience.on_missing {
            OnMissing::Park => "parked",
            OnMissing::Discard => "discarded",
        };
        format!("; it is {then} if it stays missing for {} more", span(left))
    }

    fn queued(&self, ago: impl Fn(SystemTime) -> String) -> String {
        let entry = self.known.queued.as_ref().map(|queued| &queued.entry).or(self.known.successor.as_ref());
        entry.map_or_else(String::new, |entry| ago(entry.enqueue_time))
    }

    fn failed(&self, ago: impl Fn(SystemTime) -> String) -> String {
        let Some(failure) = &self.state.failure else { return "before".to_owned() };
        let times = if failure.count == 1 { "once".to_owned() } else { format!("{} times", failure.count) };
        let at = if failure.peer.is_empty() { String::new() } else { format!(" at {}", failure.peer) };
        format!("{times}, last {} with {}{at}: {}", ago(failure.last), failure.kind, failure.message)
    }
}

/// All routes in one sentence.
fn overall(routes: &[RouteStory]) -> String {
    let counted = |state: BlobState| routes.iter().filter(|story| story.state.state == state).count();
    let all = routes.len();
    if all == 0 {
        return "no route is configured".to_owned();
    }
    if counted(BlobState::Confirmed) == all {
        return if all == 1 { "confirmed".to_owned() } else { format!("confirmed on all {all} routes") };
    }
    let states = [
        BlobState::Parked,
        BlobState::Retrying,
        BlobState::Claimed,
        BlobState::Ready,
        BlobState::Discarded,
        BlobState::NotQueued,
        BlobState::Unknown,
        BlobState::Confirmed,
    ];
    let told = states.into_iter().filter(|state| counted(*state) > 0);
    let told: Vec<String> = told.map(|state| format!("{} on {} of {all}", state.as_str(), counted(state))).collect();
    if all == 1 { routes[0].state.state.as_str().to_owned() } else { told.join(", ") + " routes" }
}
