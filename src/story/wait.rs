//! The producer's barrier: looks until every blob is confirmed, or waiting is of no more use, or the time is over.
//!
//! Blobs are looked at in the order given, [`SLICE`] at a time, and a slice is gone on from only when nothing in it moves any
//! more: all must come to rest before the wait ends, so it does not matter in which order that is seen, and one look
//! costs the same whatever is still pending. What came to rest without being confirmed is looked at again before the wait
//! ends, for it may have been revived. When the time is over, all that is left is looked at once, to tell how it stands.
//!
//! A look is due when something was settled, and at every [`POLL`]; and never before the waiter has rested for some times as long
//! as its last look took, so that no number of waiters takes the queue from those who copy.

use super::ask::{Holding, ask};
use super::judge::{BlobState, HopState, Judged, judge};
use super::plan::Plan;
use super::{LEAST_REFS, Story, StoryError};
use crate::announce::Route;
use crate::blob::BlobRef;
use crate::queue::lookup::Known;
use futures::future::join_all;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout_at};

/// Blobs that one look is about.
const SLICE: usize = 512;

/// How often to look without being told of a settlement.
const POLL: Duration = Duration::from_secs(1);

/// The shortest rest between two looks.
const SHORTEST_REST: Duration = Duration::from_millis(10);

/// A rest is so many times as long as the look before it.
const REST: u32 = 9;

/// How long a store may take to say what it holds.
const ASK_WITHIN: Duration = Duration::from_secs(5);

/// A store that did not answer is asked again after this.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// The wait ends so long before the caller's own deadline.
const MARGIN: Duration = Duration::from_millis(500);

/// The part of it that is left for the answer to travel.
const WAY_BACK: Duration = Duration::from_millis(200);

/// What is waited for.
#[derive(Clone, Debug, Default)]
pub(crate) struct WaitRequest {
    /// The blobs; not used where there is a token.
    pub blobs: Vec<BlobRef>,
    /// The token that stands for them.
    pub token: Option<String>,
    /// The store at which they were announced; empty as in an announcement.
    pub source_store: String,
    /// Only these routes; empty: all that the blobs take.
    pub routes: Vec<String>,
    /// How long to wait, at most.
    pub max_wait: Duration,
    /// How long the caller can wait for the answer, all in all; absent: for ever.
    pub deadline: Option<Duration>,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitEnd {
    /// Every blob is confirmed on every route.
    Confirmed,
    /// What is not confirmed will not be by waiting.
    GivenUp,
    /// The time was over.
    TimedOut,
}

/// A blob that is not confirmed on every route.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Unconfirmed {
    /// The blob.
    pub blob: BlobRef,
    /// The routes on which it is not, by their place in [`Waited::routes`], and how it stands there.
    pub hops: Vec<(usize, HopState)>,
}

/// The end of a wait.
#[derive(Clone, Debug)]
pub(crate) struct Waited {
    /// How it ended.
    pub end: WaitEnd,
    /// The routes on which the blobs were waited for.
    pub routes: Vec<Route>,
    /// Blobs that are confirmed on all of them.
    pub confirmed: u64,
    /// The others, in the order given.
    pub unconfirmed: Vec<Unconfirmed>,
}

impl Story {
    /// Waits. May be dropped at any time.
    ///
    /// # Errors
    /// See [`StoryError`].
    pub(crate) async fn wait(&self, request: WaitRequest) -> Result<Waited, StoryError> {
        let begun = Instant::now();
        let WaitRequest { mut blobs, token, mut source_store, routes, max_wait, deadline } = request;
        if self.room.available_permits() < LEAST_REFS {
            return Err(StoryError::TooBusy);
        }
        let loading = match token {
            Some(_) => Some(self.loads.acquire().await.map_err(|_| StoryError::TooBusy)?),
            None => None,
        };
        if let Some(token) = token {
            let announced = self.tokens.find(&token).await?;
            blobs = announced.blobs;
            source_store = announced.source;
        }
        let plan = Plan::new(&self.parts.routes, &source_store, &routes)?;
        let mut seen = HashSet::with_capacity(blobs.len());
        blobs.retain(|blob| seen.insert(*blob));
        drop(seen);
        let weight = u32::try_from(blobs.len().max(LEAST_REFS)).map_err(|_| StoryError::TooBusy)?;
        let _room = self.room.clone().try_acquire_many_owned(weight).map_err(|_| StoryError::TooBusy)?;
        drop(loading);

        let end = begun + deadline.map_or(max_wait, |deadline| max_wait.min(deadline.saturating_sub(MARGIN)));
        // A part of the margin is for the last look; the rest, for the way back.
        let answer_by =
            deadline.map_or(end + ASK_WITHIN, |deadline| begun + (deadline / 2).max(deadline.saturating_sub(WAY_BACK)));
        let settlements = self.parts.lookup.settlements();
        let pending = (0..blobs.len()).collect();
        let waiter = PendingWait {
            story: self,
            plan,
            blobs,
            pending,
            rested: Vec::new(),
            held: HashMap::new(),
            settlements,
            answer_by,
        };
        waiter.run(end).await
    }
}

/// A wait in progress.
struct PendingWait<'a> {
    story: &'a Story,
    plan: Plan,
    blobs: Vec<BlobRef>,
    /// What may still move, by its place in `blobs`.
    pending: VecDeque<usize>,
    /// What came to rest without being confirmed.
    rested: Vec<usize>,
    /// What destinations said, by blob and hop, and when.
    held: HashMap<(usize, usize), (Holding, Instant)>,
    settlements: watch::Receiver<u64>,
    answer_by: Instant,
}

impl PendingWait<'_> {
    async fn run(mut self, end: Instant) -> Result<Waited, StoryError> {
        loop {
            let looked = Instant::now();
            self.settlements.mark_unchanged();
            // Looking itself ends in time: a store may take long to answer.
            let Ok(result) = timeout_at(end, self.round()).await else { break };
            if result? {
                break;
            }
            let rest = (looked.elapsed() * REST).clamp(SHORTEST_REST, POLL);
            let pause = async {
                sleep(rest).await;
                tokio::select! {
                    () = sleep(POLL.saturating_sub(rest)) => {}
                    changed = self.settlements.changed() => {
                        if changed.is_err() {
                            // The queue is closed, as the next look will find.
                            sleep(POLL).await;
                        }
                    }
                }
            };
            if timeout_at(end, pause).await.is_err() {
                break;
            }
        }
        self.tell().await
    }

    /// Looks at what is pending, as far as there is news. True: everything has come to rest.
    async fn round(&mut self) -> Result<bool, StoryError> {
        while !self.pending.is_empty() {
            let slice: Vec<usize> = self.pending.iter().copied().take(SLICE).collect();
            let judged = self.look(&slice).await?;
            // No waiting from here on: a look that is cut changes nothing.
            self.pending.drain(..slice.len());
            let mut moving = Vec::new();
            for (at, states) in slice.into_iter().zip(judged) {
                match self.rest(&states) {
                    Rest::Moves => moving.push(at),
                    Rest::Unconfirmed => self.rested.push(at),
                    Rest::Confirmed => {}
                }
            }
            if !moving.is_empty() {
                moving.into_iter().rev().for_each(|at| self.pending.push_front(at));
                return Ok(false);
            }
        }
        if self.rested.is_empty() {
            return Ok(true);
        }
        // Whether what rests still does, now that all the others do.
        let (mut pending, mut rested) = (VecDeque::new(), Vec::new());
        for slice in self.rested.clone().chunks(SLICE) {
            for (at, states) in slice.iter().zip(self.look(slice).await?) {
                match self.rest(&states) {
                    Rest::Moves => pending.push_back(*at),
                    Rest::Unconfirmed => rested.push(*at),
                    Rest::Confirmed => {}
                }
            }
        }
        (self.pending, self.rested) = (pending, rested);
        Ok(self.pending.is_empty())
    }

    /// Whether a blob has come to rest on the routes that were asked for.
    fn rest(&self, states: &[HopState]) -> Rest {
        let wanted = || self.plan.hops.iter().zip(states).filter(|(hop, _)| hop.wanted).map(|(_, state)| state);
        if wanted().any(|state| state.moves) {
            Rest::Moves
        } else if wanted().any(|state| state.state != BlobState::Confirmed) {
            Rest::Unconfirmed
        } else {
            Rest::Confirmed
        }
    }

    /// How these blobs stand on every hop.
    async fn look(&mut self, slice: &[usize]) -> Result<Vec<Vec<HopState>>, StoryError> {
        let begun = Instant::now();
        let hops = &self.plan.hops;
        let asked = slice.iter().flat_map(|at| hops.iter().map(|hop| (hop.route.id, self.blobs[*at]))).collect();
        let mut known = {
            let _turn = self.story.looks.acquire().await;
            self.story.parts.lookup.look_up(asked).await?
        };
        for (known, hop) in known.iter_mut().zip(hops.iter().cycle()) {
            // What another store confirmed under this name says nothing of the one that an operator has adopted since.
            let adopted = self.story.parts.peers.get(&*hop.route.to).and_then(|peer| peer.adopted());
            known.completion = known.completion.take().filter(|done| adopted.is_none_or(|adopted| done.time > adopted));
        }
        let known: Vec<&[Known]> = known.chunks(hops.len().max(1)).collect();
        for (at, known) in slice.iter().zip(&known) {
            for (hop, known) in known.iter().enumerate() {
                if known.queued.is_some() {
                    self.held.remove(&(*at, hop));
                }
            }
        }
        loop {
            let mut judged = Vec::with_capacity(slice.len());
            let mut asks: BTreeMap<Arc<str>, Vec<(usize, usize)>> = BTreeMap::new();
            for (at, known) in slice.iter().zip(&known) {
                let held: Vec<_> = (0..hops.len()).map(|hop| self.held(*at, hop, begun)).collect();
                match judge(&self.plan, known, &held) {
                    Judged::Stands(states) => judged.push(states),
                    Judged::Ask(these) => these
                        .into_iter()
                        .for_each(|hop| asks.entry(hops[hop].route.to.clone()).or_default().push((*at, hop))),
                }
            }
            if asks.is_empty() {
                return Ok(judged);
            }
            let within = ASK_WITHIN.min(self.answer_by.saturating_duration_since(Instant::now()));
            let answers = join_all(asks.iter().map(async |(store, places)| {
                let blobs: Vec<BlobRef> = places.iter().map(|(at, _)| self.blobs[*at]).collect();
                ask(self.story.parts.peers.get(&**store), store, &blobs, within).await
            }));
            let answers = answers.await;
            let now = Instant::now();
            for (place, held) in asks.into_values().flatten().zip(answers.into_iter().flatten()) {
                self.held.insert(place, (held, now));
            }
        }
    }

    /// What the destination said of a blob, if that is still good.
    fn held(&self, at: usize, hop: usize, look: Instant) -> Option<Holding> {
        let (held, said) = self.held.get(&(at, hop))?;
        let is_stale = matches!(held, Holding::Unknown { for_good: false, .. }) && *said + ASK_AGAIN <= look;
        (!is_stale).then(|| held.clone())
    }

    /// The end: how all that is left stands now.
    async fn tell(mut self) -> Result<Waited, StoryError> {
        let mut left: Vec<usize> = self.pending.iter().chain(&self.rested).copied().collect();
        left.sort_unstable();
        let wanted: Vec<usize> = (0..self.plan.hops.len()).filter(|hop| self.plan.hops[*hop].wanted).collect();
        let (mut unconfirmed, mut end) = (Vec::new(), WaitEnd::Confirmed);
        for slice in left.chunks(SLICE) {
            for (at, states) in slice.iter().zip(self.look(slice).await?) {
                match self.rest(&states) {
                    Rest::Confirmed => continue,
                    Rest::Moves => end = WaitEnd::TimedOut,
                    Rest::Unconfirmed if end == WaitEnd::Confirmed => end = WaitEnd::GivenUp,
                    Rest::Unconfirmed => {}
                }
                let mut states: Vec<Option<HopState>> = states.into_iter().map(Some).collect();
                for (state, hop) in states.iter_mut().flatten().zip(&self.plan.hops) {
                    if state.moves && state.note.is_empty() && self.story.paused(hop.route.id) {
                        "the route is paused".clone_into(&mut state.note);
                    }
                }
                let hops = wanted.iter().enumerate().filter_map(|(shown, hop)| Some((shown, states[*hop].take()?)));
                let hops = hops.filter(|(_, state)| state.state != BlobState::Confirmed).collect();
                unconfirmed.push(Unconfirmed { blob: self.blobs[*at], hops });
            }
        }
        let routes = wanted.iter().map(|hop| self.plan.hops[*hop].route.clone()).collect();
        let confirmed = (self.blobs.len() - unconfirmed.len()) as u64;
        Ok(Waited { end, routes, confirmed, unconfirmed })
    }
}

/// Whether waiting may change how a blob stands.
enum Rest {
    Moves,
    Unconfirmed,
    Confirmed,
}
