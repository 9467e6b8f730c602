//! What a worker's slots have spent the last seconds on: each of its copies, and each slot that is free, waits for something at
//! every moment. Time is counted for each, so that what holds a route back is measured and not guessed.
//!
//! A new thing to wait for is one more [`Wait`].

use crate::clock::Monotonic;
use std::collections::VecDeque;
use std::ops::{Add, Sub};
use std::time::Duration;

/// What is told is about this long.
const WINDOW: Duration = Duration::from_secs(10);

/// Samples closer together than this say nothing new.
const SPACING: Duration = Duration::from_millis(500);

/// What a slot can wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For something to copy.
    Work,
    /// For a peer whose breaker is not closed.
    Breaker,
    /// For a peer that takes no more copies at a time.
    Capacity,
    /// For an operator's limit: a pause, or a rate.
    Limit,
    /// For the queue, to give out entries or to record outcomes.
    Queue,
    /// For the source, while a blob is copied.
    Source,
    /// For the destination, while a blob is copied.
    Destination,
}

impl Wait {
    /// All of them, in the order of [`Waits`].
    pub(crate) const ALL: [Wait; 7] =
        [Self::Work, Self::Breaker, Self::Capacity, Self::Limit, Self::Queue, Self::Source, Self::Destination];
}

/// Time by what it was waited for, summed over slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Waits([Duration; Wait::ALL.len()]);

impl Waits {
    /// So much time for one of them.
    pub(crate) fn of(wait: Wait, time: Duration) -> Self {
        let mut waits = Self::default();
        waits.0[wait as usize] = time;
        waits
    }

    /// The time for one of them.
    pub(crate) fn get(&self, wait: Wait) -> Duration {
        self.0[wait as usize]
    }

    /// Its part of the whole, from 0 to 1; 0 where there is nothing.
    pub(crate) fn share(&self, wait: Wait) -> f64 {
        let whole: Duration = self.0.iter().sum();
        if whole.is_zero() { 0.0 } else { self.get(wait).as_secs_f64() / whole.as_secs_f64() }
    }

    /// The same without one of them.
    pub(crate) fn without(mut self, wait: Wait) -> Self {
        self.0[wait as usize] = Duration::ZERO;
        self
    }

    /// What took the most time; `None` where there is nothing.
    pub(crate) fn most(&self) -> Option<Wait> {
        Wait::ALL.into_iter().max_by_key(|wait| self.get(*wait)).filter(|wait| !self.get(*wait).is_zero())
    }
}

impl Add for Waits {
    type Output = Self;

    fn add(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(time, more)| *time = time.saturating_add(more));
        self
    }
}

impl Sub for Waits {
    type Output = Self;

    fn sub(mut self, other: Self) -> Self {
        self.0.iter_mut().zip(other.0).for_each(|(time, less)| *time = time.saturating_sub(less));
        self
    }
}

/// The account of a worker.
#[derive(Debug, Default)]
pub(super) struct Pace {
    // What is over: of free slots, and of copies that have ended.
    past: Waits,
    free: usize,
    free_for: Option<Wait>,
    since: Monotonic,
    samples: VecDeque<(Monotonic, Waits)>,
}

impl Pace {
    /// From now on so many slots are free, and wait for this.
    pub(super) fn set_free(&mut self, free: usize, wait: Wait, now: Monotonic) {
        self.past = self.until(now);
        (self.free, self.free_for, self.since) = (free, Some(wait), now);
    }

    /// A copy has ended, which has waited for so long.
    pub(super) fn ended(&mut self, waits: Waits) {
        self.past = self.past + waits;
    }

    /// Remembers the account as it is; `copying` is that of the copies in progress.
    pub(super) fn sample(&mut self, copying: impl FnOnce() -> Waits, now: Monotonic) {
        if self.samples.back().is_some_and(|(last, _)| now.since(*last) < SPACING) {
            return;
        }
        // One sample older than the window stays, to compare with.
        while self.samples.get(1).is_some_and(|(second, _)| now.since(*second) >= WINDOW) {
            self.samples.pop_front();
        }
        self.samples.push_back((now, self.until(now) + copying()));
    }

    /// The last seconds.
    pub(super) fn recent(&self, copying: Waits, now: Monotonic) -> Waits {
        let before = self.samples.front().map_or_else(Waits::default, |(_, waits)| *waits);
        self.until(now) + copying - before
    }

    fn until(&self, now: Monotonic) -> Waits {
        let slots = u32::try_from(self.free).unwrap_or(u32::MAX);
        let time = now.since(self.since).saturating_mul(slots);
        self.free_for.map_or(self.past, |wait| self.past + Waits::of(wait, time))
    }
}

#[cfg(test)]
mod tests {
    use super::{Pace, Wait, Waits};
    use crate::clock::Monotonic;
    use std::time::Duration;

    fn seconds(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn at(second: u64) -> Monotonic {
        Monotonic::ZERO.saturating_add(seconds(second))
    }

    #[test]
    fn free_slots_and_copies_are_weighed_by_time() {
        let mut pace = Pace::default();
        assert_eq!(pace.recent(Waits::default(), at(1)).most(), None);
        pace.set_free(4, Wait::Work, at(0));
        pace.sample(Waits::default, at(0));
        pace.set_free(1, Wait::Breaker, at(2));
        // Three copies since, one of which has ended.
        pace.ended(Waits::of(Wait::Source, seconds(3)));
        let copying = Waits::of(Wait::Destination, seconds(12)) + Waits::of(Wait::Source, seconds(1));
        let recent = pace.recent(copying, at(6));
        let all = Wait::ALL.map(|wait| recent.get(wait).as_secs());
        assert_eq!(all, [8, 4, 0, 0, 0, 4, 12]);
        assert_eq!(recent.most(), Some(Wait::Destination));
        assert!((recent.share(Wait::Work) - 8.0 / 28.0).abs() < 1e-9);
    }

    #[test]
    fn only_the_last_seconds_count() {
        let mut pace = Pace::default();
        pace.set_free(8, Wait::Work, at(0));
        for second in 0..3600 {
            pace.sample(Waits::default, at(second));
        }
        pace.set_free(8, Wait::Queue, at(3600));
        for second in 3600..3620 {
            pace.sample(Waits::default, at(second));
        }
        let recent = pace.recent(Waits::default(), at(3620));
        assert_eq!((recent.get(Wait::Work), recent.most()), (Duration::ZERO, Some(Wait::Queue)));
        assert!((80..=88).contains(&recent.get(Wait::Queue).as_secs()));
        assert!(pace.samples.len() < 25);
        // A moment without samples: copies that take long, and nothing else happens.
        let recent = pace.recent(Waits::of(Wait::Source, seconds(9000)), at(4000));
        assert_eq!(recent.most(), Some(Wait::Source));
    }
}
