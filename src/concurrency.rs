//! How many copies at a time may use one peer.
//!
//! Two limits, found by what the peer does; the smaller one is in force:
//!
//! - **Places**, by refusals. A refused call (RESOURCE_EXHAUSTED, a time-out of what was admitted) takes its place along. Places
//!   come back one at a time, at a pace that slows twofold with each refusal (the peer's own RetryInfo is its least), and
//!   quickens when a call as wide as the last refused one was admitted. Alone and refused: the peer rests.
//! - **Width**, after an outage. It begins at what is in flight plus one, doubles with each round of successes up to half of
//!   what it was before, then grows by one a round. Tries that still hang do not count against it.
//!
//! A plain state machine, shared by all routes that use the peer. TCP's slow start and additive increase are the model; the
//! pace and its numbers were found by simulation (`worker::simulation`).

use crate::clock::Monotonic;
use std::time::Duration;

/// The pace of the first place that comes back.
const FIRST_PACE: Duration = Duration::from_millis(50);

/// The slowest pace while others are in flight, and while none is.
const SLOWEST_PACE: Duration = Duration::from_secs(1);
const SLOWEST_REST: Duration = Duration::from_secs(10);

/// How much of the usual time of a call one more of them changes.
const USUAL: f64 = 0.1;

/// How many copies at a time may use one peer. See the module's header.
#[derive(Clone, Debug)]
pub(crate) struct Concurrency {
    /// By route: how many copies it would have at most.
    wanted: Vec<(u32, usize)>,
    in_flight: usize,
    /// See the module's header; neither is below 1. Not limiting while they are at what is wanted in all.
    places: usize,
    width: f64,
    ceiling: f64,
    /// How wide the last refused call was.
    refused_at: usize,
    pace: Duration,
    next_place: Monotonic,
    rests_until: Monotonic,
    /// How long a call takes.
    usual: Duration,
    last_refusal: Option<Monotonic>,
}

impl Default for Concurrency {
    fn default() -> Self {
        Self {
            wanted: Vec::new(),
            in_flight: 0,
            places: 0,
            width: 0.0,
            ceiling: 0.0,
            refused_at: 0,
            pace: FIRST_PACE,
            next_place: Monotonic::ZERO,
            rests_until: Monotonic::ZERO,
            usual: FIRST_PACE,
            last_refusal: None,
        }
    }
}

impl Concurrency {
    /// A route would have so many copies at most.
    pub(crate) fn want(&mut self, route: u32, copies: usize) {
        let before = self.most();
        self.wanted.retain(|(other, _)| *other != route);
        self.wanted.push((route, copies));
        let most = self.most();
        // What is not limited stays so.
        let change = |limit: usize| if limit >= before { most } else { limit.min(most) };
        (self.places, self.width) = (change(self.places), to_f64(change(to_usize(self.width))));
        self.ceiling = if to_usize(self.ceiling) >= before { to_f64(most) } else { self.ceiling };
    }

    /// How many more copies may begin now; where none may, when to look again.
    ///
    /// # Errors
    /// When to look again, if anything but the end of a copy changes it.
    pub(crate) fn room(&mut self, now: Monotonic) -> Result<usize, Option<Monotonic>> {
        if self.in_flight == 0 && now < self.rests_until {
            return Err(Some(self.rests_until));
        }
        if self.places < self.most() && self.in_flight >= self.places && now >= self.next_place {
            self.places += 1;
            self.next_place = now.saturating_add(self.pace);
        }
        match self.limit().saturating_sub(self.in_flight) {
            // Where the width limits, no place that comes back changes it.
            0 if self.places < self.most() && self.in_flight >= self.places => Err(Some(self.next_place)),
            0 => Err(None),
            room => Ok(room),
        }
    }

    /// A copy begins; gives how many there are now, which is how wide it is.
    pub(crate) fn begin(&mut self) -> usize {
        self.in_flight += 1;
        self.in_flight
    }

    /// A copy uses the peer no more, or only waits for its confirmation.
    pub(crate) fn end(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Copies that use the peer now.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// A call of this width succeeded, after so long.
    pub(crate) fn succeeded(&mut self, width: usize, took: Duration, now: Monotonic) {
        self.usual = self.usual.mul_f64(1.0 - USUAL).saturating_add(took.mul_f64(USUAL));
        let most = self.most();
        self.width =
            (self.width + if self.width < self.ceiling { 1.0 } else { 1.0 / self.width.max(1.0) }).min(to_f64(most));
        // As wide as the last refusal was: that is not too wide any more.
        if self.places < most && width >= self.refused_at {
            self.places = (self.places + 2).min(most);
            self.pace = self.usual;
            self.next_place = now.saturating_add(self.usual);
        }
    }

    /// A call of this width was refused. `wait` is what the peer asked for.
    pub(crate) fn refused(&mut self, width: usize, wait: Duration, now: Monotonic) {
        let others = self.in_flight > 0;
        self.last_refusal = Some(now);
        // Of those that were in flight, where nothing was limited yet.
        let places = if self.places < self.most() { self.places } else { (self.in_flight + 1).max(width) };
        self.places = places.saturating_sub(1).max(1);
        self.refused_at = width;
        let slowest = if others { SLOWEST_PACE.max(wait) } else { SLOWEST_REST };
        self.pace = (self.pace * 2).max(wait).min(slowest);
        self.next_place = now.saturating_add(self.pace);
        if !others {
            self.rests_until = self.next_place;
        }
    }

    /// The peer is back after an outage: its width begins anew.
    pub(crate) fn reopened(&mut self) {
        self.ceiling = (self.width / 2.0).max(2.0);
        self.width = to_f64(self.in_flight + 1);
    }

    /// How long a call usually takes.
    pub(crate) fn usual(&self) -> Duration {
        self.usual
    }

    /// How many may use it at a time; absent where the peer limits nothing.
    pub(crate) fn in_force(&self) -> Option<usize> {
        Some(self.limit()).filter(|limit| *limit < self.most())
    }

    /// Whether refusals of late hold copies back.
    pub(crate) fn is_overloaded(&self, now: Monotonic) -> bool {
        self.places < self.most() && self.last_refusal.is_some_and(|at| now.since(at) < Duration::from_secs(30))
    }

    /// When the peer last refused for want of capacity.
    pub(crate) fn last_refusal(&self) -> Option<Monotonic> {
        self.last_refusal
    }

    fn limit(&self) -> usize {
        self.places.min(to_usize(self.width)).max(1)
    }

    /// What all routes would have.
    fn most(&self) -> usize {
        self.wanted.iter().map(|(_, copies)| *copies).sum()
    }
}

#[expect(clippy::cast_precision_loss, reason = "thousands at most")]
const fn to_f64(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "never negative, and thousands at most")]
const fn to_usize(number: f64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests;
