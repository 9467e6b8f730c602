//! Entries whose attempts end in a peer's error, again and again, while the peer serves others well.
//!
//! Without this, a single blob on which a peer fails (a broken disk block, a proxy that chokes on it) would open the breaker
//! for ever, and never be charged. But connections that break at random hit the innocent, and some of them often. So:
//!
//! - A failure **counts** against an entry when another entry's attempt, which began after it, finds the peer well. Two
//!   such failures convict: from then on the entry is charged for that peer's errors, as for its own.
//! - It takes **more in a storm**. Of the entries that were tried for the first time of late, so many failed at that peer; an
//!   innocent one fails with that probability, each time. An entry is convicted when it has failed so often that an innocent
//!   one would get as far as being parked once in a million times. Up to a quarter of failures that is twice, with half of
//!   them ten times, and so on.
//! - Nobody is charged while others fail who are not convicted, or while the breaker is not closed: then it may be the peer.
//! - A success clears the entry at that peer.
//!
//! Those that failed in a pack, whose fate all its blobs share, are suspects like others, and go alone from then on: so
//! each answers for itself before anybody is convicted.

use crate::fault::Side;
use crate::queue::Seq;
use std::collections::{BTreeMap, VecDeque};

/// So many failures that count convict, at least.
const CONVICTS: u32 = 2;

/// How often an innocent entry may be parked: once in e to this power times, a million.
const CERTAINTY: f64 = 13.8;

/// The charged attempts that follow before an entry is parked, by default.
const CHARGES: f64 = 10.0;

/// The first attempts that tell how often the innocent fail.
const FIRST_ATTEMPTS: usize = 64;

/// At most so many entries are remembered; the oldest are forgotten first.
const MAX: usize = 4096;

/// When an attempt began, in the order of beginnings and failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Began(u64);

#[derive(Debug, Default)]
pub(super) struct Suspects {
    now: u64,
    // Ordered, so that the oldest is found at once.
    entries: BTreeMap<(Seq, bool), Suspect>,
    // By side.
    sides: [AtSide; 2],
}

/// What is known of one side.
#[derive(Debug, Default)]
struct AtSide {
    // Entries whose failure no success followed yet, so that a success need not look for them.
    waiting: usize,
    // Those among them that were not charged.
    uncharged: usize,
    // Whether the latest first attempts failed; and when the last of them ended. Of those that overlap one is taken, for a
    // connection that breaks takes all of them along.
    first_attempts: VecDeque<bool>,
    last_ended: u64,
}

#[derive(Debug, Default)]
struct Suspect {
    // Failures that count.
    counted: u32,
    waits: Option<Wait>,
}

/// A failure that no success followed yet.
#[derive(Clone, Copy, Debug)]
struct Wait {
    at: u64,
    charged: bool,
}

const fn is_destination(side: Side) -> bool {
    matches!(side, Side::Destination)
}

impl Suspects {
    /// An attempt begins.
    pub(super) fn begin(&mut self) -> Began {
        self.now += 1;
        Began(self.now)
    }

    /// An attempt at this entry, which began then, ended in the peer's error: whether it is to be charged. `may_charge`: the peer itself is not
    /// in doubt, its breaker was closed.
    pub(super) fn failed(&mut self, seq: Seq, side: Side, began: Began, may_charge: bool) -> bool {
        let destination = is_destination(side);
        let key = (seq, destination);
        self.now += 1;
        if !self.entries.contains_key(&key) {
            self.sides[usize::from(destination)].tried_first(began, self.now, true);
            if self.entries.len() >= MAX
                && let Some(oldest) = self.entries.keys().next().copied()
            {
                self.remove(oldest);
            }
        }
        let suspect = self.entries.entry(key).or_default();
        let at_side = &mut self.sides[usize::from(destination)];
        at_side.forget(suspect.waits.take());
        let charged = may_charge && at_side.uncharged == 0 && suspect.counted >= at_side.convicts();
        at_side.waiting += 1;
        at_side.uncharged += usize::from(!charged);
        suspect.waits = Some(Wait { at: self.now, charged });
        charged
    }

    /// An attempt at this entry, which began then, found the peer well: others that failed there before had a fair chance.
    pub(super) fn succeeded(&mut self, seq: Seq, side: Side, began: Began) {
        self.all_succeeded(&[seq], side, began);
    }

    /// The same for several entries that were copied together.
    pub(super) fn all_succeeded(&mut self, entries: &[Seq], side: Side, began: Began) {
        let destination = is_destination(side);
        self.now += 1;
        let mut any_is_first = false;
        for seq in entries {
            any_is_first |= !self.remove((*seq, destination));
        }
        let at_side = &mut self.sides[usize::from(destination)];
        if any_is_first {
            at_side.tried_first(began, self.now, false);
        }
        if at_side.waiting == 0 {
            return;
        }
        for ((_, side), suspect) in &mut self.entries {
            if *side == destination && suspect.waits.is_some_and(|wait| wait.at < began.0) {
                at_side.forget(suspect.waits.take());
                suspect.counted = suspect.counted.saturating_add(1);
            }
        }
    }

    /// The entry is settled for good, or given up.
    pub(super) fn forget(&mut self, seq: Seq) {
        if self.entries.is_empty() {
            return;
        }
        for side in [false, true] {
            self.remove((seq, side));
        }
    }

    /// Whether the entry met a peer's error of late; others make better probes.
    pub(super) fn is_suspect(&self, seq: Seq) -> bool {
        !self.entries.is_empty() && [false, true].into_iter().any(|side| self.entries.contains_key(&(seq, side)))
    }

    /// Whether it was there.
    fn remove(&mut self, key: (Seq, bool)) -> bool {
        if self.entries.is_empty() {
            return false;
        }
        let Some(suspect) = self.entries.remove(&key) else { return false };
        self.sides[usize::from(key.1)].forget(suspect.waits);
        true
    }
}

impl AtSide {
    fn tried_first(&mut self, began: Began, now: u64, failed: bool) {
        if began.0 < self.last_ended {
            return;
        }
        self.last_ended = now;
        if self.first_attempts.len() == FIRST_ATTEMPTS {
            self.first_attempts.pop_front();
        }
        self.first_attempts.push_back(failed);
    }

    fn forget(&mut self, wait: Option<Wait>) {
        if let Some(wait) = wait {
            self.waiting -= 1;
            self.uncharged -= usize::from(!wait.charged);
        }
    }

    /// How many failures that count convict, as things are.
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "small numbers"
    )]
    fn convicts(&self) -> u32 {
        let failed = self.first_attempts.iter().filter(|failed| **failed).count() as f64;
        // Cautious: a standard deviation more than was seen, and a little for what was not.
        let probability = (failed + failed.sqrt() + 0.5) / (self.first_attempts.len() as f64 + 4.0);
        let failures = CERTAINTY / -probability.min(0.98).ln();
        CONVICTS.max((failures - CHARGES).ceil() as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::{AtSide, Began, MAX, Suspects};
    use crate::fault::Side::{Destination, Source};
    use crate::queue::Seq;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};
    use std::collections::{HashMap, HashSet};

    impl Suspects {
        fn fails(&mut self, seq: Seq, side: crate::fault::Side, may_charge: bool) -> bool {
            let began = self.begin();
            self.failed(seq, side, began, may_charge)
        }

        /// Another entry is copied from beginning to end.
        fn another_succeeds(&mut self, side: crate::fault::Side) {
            let began = self.begin();
            self.succeeded(Seq(u64::MAX), side, began);
        }
    }

    #[test]
    fn two_failures_each_followed_by_anothers_success_convict_from_then_on() {
        let mut suspects = Suspects::default();
        (0..5).for_each(|_| suspects.another_succeeds(Destination));
        for _ in 0..2 {
            assert!(!suspects.fails(Seq(1), Destination, true));
            suspects.another_succeeds(Destination);
        }
        for _ in 0..20 {
            assert!(suspects.fails(Seq(1), Destination, true), "also while nobody else is copied");
        }
        assert!(!suspects.fails(Seq(1), Source, true) && !suspects.fails(Seq(2), Destination, true));
        suspects.forget(Seq(1));
        assert!(!suspects.fails(Seq(1), Destination, true) && !suspects.is_suspect(Seq(3)));
    }

    #[test]
    fn an_outage_convicts_nobody_however_long_and_charges_nobody() {
        let mut suspects = Suspects::default();
        for round in 0..1000 {
            assert!(!suspects.fails(Seq(round % 10), Source, true));
            suspects.another_succeeds(Destination);
        }
        suspects.another_succeeds(Source);
        assert!((0..10).all(|seq| !suspects.fails(Seq(seq), Source, true)));
        // Not even who was convicted before it is charged for it, once others fail or the breaker is open.
        let mut suspects = Suspects::default();
        for _ in 0..5 {
            suspects.fails(Seq(1), Source, true);
            suspects.another_succeeds(Source);
        }
        assert!(suspects.fails(Seq(1), Source, true));
        suspects.another_succeeds(Source);
        assert!(!suspects.fails(Seq(1), Source, false));
        suspects.fails(Seq(2), Source, true);
        assert!((0..100).all(|_| !suspects.fails(Seq(1), Source, true)));
    }

    #[test]
    fn a_success_that_began_before_the_failure_proves_nothing() {
        let mut suspects = Suspects::default();
        for _ in 0..20 {
            let began = suspects.begin();
            assert!(!suspects.fails(Seq(1), Source, true));
            suspects.succeeded(Seq(2), Source, began);
        }
        assert!(!suspects.fails(Seq(1), Source, true));
    }

    #[test]
    fn its_own_success_clears_an_entry() {
        let mut suspects = Suspects::default();
        for _ in 0..20 {
            suspects.fails(Seq(1), Source, true);
            suspects.another_succeeds(Source);
            let began = suspects.begin();
            suspects.succeeded(Seq(1), Source, began);
        }
        assert!(!suspects.fails(Seq(1), Source, true));
    }

    #[test]
    fn bad_entries_that_fail_together_are_all_convicted_in_the_end() {
        for company in [2, 4, 32] {
            let mut suspects = Suspects::default();
            let mut convicted = HashSet::new();
            let mut rounds = 0;
            while convicted.len() < company {
                let charged = (0..company as u64).filter(|seq| suspects.fails(Seq(*seq), Source, true));
                convicted.extend(charged.collect::<Vec<_>>());
                suspects.another_succeeds(Source);
                rounds += 1;
            }
            assert!(rounds <= 3 + 2 * company, "{rounds} rounds for {company}");
        }
    }

    #[test]
    fn the_more_fail_at_first_the_more_it_takes() {
        let takes = |failed_of_ten: usize| {
            let mut side = AtSide::default();
            (0..100).for_each(|at| side.tried_first(Began(at as u64), at as u64, at % 10 < failed_of_ten));
            side.convicts()
        };
        assert_eq!((takes(0), takes(1)), (2, 2));
        assert!((3..8).contains(&takes(3)) && (10..25).contains(&takes(5)) && takes(9) > 100, "{}", takes(3));
        assert_eq!(AtSide::default().convicts(), 2);
    }

    #[test]
    fn it_is_bounded_and_keeps_count() {
        let mut suspects = Suspects::default();
        for seq in 0..2 * MAX as u64 {
            suspects.fails(Seq(seq), Source, true);
        }
        assert_eq!((suspects.entries.len(), suspects.sides[0].waiting, suspects.sides[0].uncharged), (MAX, MAX, MAX));
        suspects.another_succeeds(Source);
        assert_eq!((suspects.sides[0].waiting, suspects.sides[0].uncharged), (0, 0));
    }

    /// Copies `entries` with so many workers over connections that break with probability `p`, each alone or all at once.
    /// Gives the largest number of times that an entry was charged.
    fn storm(rng: &mut SmallRng, entries: u64, workers: usize, p: f64, together: bool) -> u32 {
        let mut suspects = Suspects::default();
        let mut queue: Vec<Seq> = (0..entries).map(Seq).collect();
        let mut charges: HashMap<Seq, u32> = HashMap::new();
        let mut open = false;
        let mut probe = 0;
        while !queue.is_empty() {
            // One at a time while the breaker is open, each time another.
            let width = if open { 1 } else { workers.min(queue.len()) };
            probe = if open { probe + 1 } else { 0 };
            let first = if open { probe % queue.len() } else { 0 };
            let flying: Vec<_> = (first..first + width).map(|at| (queue[at], suspects.begin())).collect();
            let all_fail = rng.random_bool(p);
            let mut failed = false;
            for (seq, began) in flying {
                if if together { all_fail } else { rng.random_bool(p) } {
                    if suspects.failed(seq, Source, began, !open) {
                        *charges.entry(seq).or_default() += 1;
                        // It backs off: to the end of the line.
                        queue.retain(|other| *other != seq);
                        queue.push(seq);
                    } else {
                        failed = true;
                    }
                } else {
                    suspects.succeeded(seq, Source, began);
                    suspects.forget(seq);
                    queue.retain(|other| *other != seq);
                }
            }
            open = failed;
        }
        charges.into_values().max().unwrap_or(0)
    }

    /// A fault found: 26 of 400 innocent blobs were parked while connections broke at random.
    #[test]
    fn random_resets_park_no_innocent_entry() {
        let mut rng = SmallRng::seed_from_u64(7);
        for together in [false, true] {
            for p in [0.1, 0.3, 0.5, 0.7, 0.9, 0.97] {
                for workers in [1, 4, 32] {
                    let charges = (0..3).map(|_| storm(&mut rng, 400, workers, p, together)).max().unwrap();
                    assert!(charges < 10, "{charges} charges with {workers} workers and {p}, together: {together}");
                }
            }
        }
    }
}
