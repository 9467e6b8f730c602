//! Where a lane is read: at its head, and elsewhere while most of what stands at the head fails.
//!
//! Entries are tried oldest first. Where less than half of the first tries at the head succeed, three of four workers of that
//! class scout: they take the newest entries, then those from a random place on; from one that succeeds they walk on in both
//! directions until one fails. So six thousand hopeless entries stand before a hundred good ones for a fraction of a second.
//!
//! A scouted claim leaves a hole in the lane, which the head skips later.

use crate::queue::{ClaimOrder, Seq};

/// Part of one first try in how useful the head is.
const MEMORY: f64 = 1.0 / 16.0;

/// Scouts for each worker at the head.
const SCOUTS: usize = 3;

/// Entries that a walk begins with.
const FEW: usize = 16;

/// How a walk of the scouts goes on.
#[derive(Clone, Copy, Debug, PartialEq)]
enum WalkOrder {
    Newest,
    Random(f64),
    Down(Seq),
    Up(Seq),
}

/// See the module's header.
#[derive(Debug)]
pub(super) struct Scout {
    /// The part of first tries at the head that succeed.
    useful: f64,
    walk: u64,
    way: WalkOrder,
    /// Where a walk from a random place began, and whether the walk found anything good.
    start: Option<Seq>,
    found: bool,
    /// Whether the next walk begins at the newest.
    newest: bool,
    turn: bool,
}

impl Default for Scout {
    fn default() -> Self {
        Self { useful: 1.0, walk: 0, way: WalkOrder::Newest, start: None, found: false, newest: true, turn: false }
    }
}

impl Scout {
    /// Whether the next worker of the class should scout: so many are at the head, and so many scout.
    pub(super) fn is_wanted(&self, at_head: usize, scouting: usize) -> bool {
        let ratio = SCOUTS * at_head;
        self.useful < 0.5 && (scouting < ratio || (scouting == ratio && self.turn))
    }

    /// A worker was given to the head, or to a scout.
    pub(super) fn started(&mut self) {
        self.turn = !self.turn;
    }

    /// Where to claim next.
    pub(super) fn order(&self) -> ClaimOrder {
        match self.way {
            WalkOrder::Newest => ClaimOrder::Newest,
            WalkOrder::Random(part) => ClaimOrder::From(part),
            WalkOrder::Down(seq) => ClaimOrder::Before(seq),
            WalkOrder::Up(seq) => ClaimOrder::After(seq),
        }
    }

    /// How many to claim next, of so many at most where a walk goes well: few, until one of them succeeded.
    pub(super) fn claims(&self, most: usize) -> usize {
        if self.found { most } else { most.min(FEW) }
    }

    /// The walk that goes on there.
    pub(super) fn walk(&self) -> u64 {
        self.walk
    }

    /// The claim of this walk brought entries, the last of which has this sequence; `first` is that of the first.
    pub(super) fn claimed(&mut self, walk: u64, first: Seq, last: Seq) {
        if walk != self.walk {
            return;
        }
        self.way = match self.way {
            WalkOrder::Newest | WalkOrder::Down(_) => WalkOrder::Down(last),
            WalkOrder::Random(_) => {
                self.start = Some(first);
                WalkOrder::Up(last)
            }
            WalkOrder::Up(_) => WalkOrder::Up(last),
        };
    }

    /// The claim of this walk brought nothing: there is no more this way. `random` is in `[0, 1)`.
    pub(super) fn found_nothing(&mut self, walk: u64, random: f64) {
        if walk == self.walk {
            self.end_walk(random);
        }
    }

    /// An entry was tried for the first time, at the head or in a walk of the scouts. `random` is in `[0, 1)`.
    pub(super) fn tried(&mut self, walk: Option<u64>, good: bool, random: f64) {
        match walk {
            None => self.useful += MEMORY * (f64::from(u8::from(good)) - self.useful),
            Some(walk) if walk == self.walk && good => self.found = true,
            Some(walk) if walk == self.walk => self.end_walk(random),
            Some(_) => {}
        }
    }

    /// Back to where it began, or to another place.
    fn end_walk(&mut self, random: f64) {
        let back = self.start.filter(|_| self.found && matches!(self.way, WalkOrder::Up(_)));
        self.walk += 1;
        self.found = false;
        self.newest = self.newest == back.is_some();
        self.way = match back {
            Some(start) => WalkOrder::Down(start),
            None if self.newest => WalkOrder::Newest,
            None => WalkOrder::Random(random),
        };
        self.start = None;
    }
}

#[cfg(test)]
mod tests {
    use super::{FEW, Scout};
    use crate::queue::{ClaimOrder, Seq};

    #[test]
    fn the_head_is_left_to_one_in_four_while_it_mostly_fails() {
        let mut scout = Scout::default();
        assert!(!scout.is_wanted(0, 0));
        (0..16).for_each(|_| scout.tried(None, false, 0.0));
        assert!(!scout.is_wanted(0, 0));
        scout.started();
        assert!(scout.is_wanted(0, 0) && scout.is_wanted(1, 2) && scout.is_wanted(1, 3));
        scout.started();
        assert!(!scout.is_wanted(1, 3), "turn by turn");
        (0..16).for_each(|_| scout.tried(None, true, 0.0));
        assert!(!scout.is_wanted(8, 0));
    }

    #[test]
    fn a_walk_goes_on_from_what_was_good_in_both_directions() {
        let mut scout = Scout::default();
        assert_eq!(scout.order(), ClaimOrder::Newest);
        assert_eq!(scout.claims(256), FEW);
        scout.claimed(0, Seq(90), Seq(80));
        assert_eq!(scout.order(), ClaimOrder::Before(Seq(80)));
        scout.tried(Some(0), false, 0.25);
        assert_eq!((scout.walk(), scout.order()), (1, ClaimOrder::From(0.25)));
        scout.tried(Some(0), false, 0.75);
        assert_eq!(scout.walk(), 1, "what an earlier walk brought says nothing of this one");
        scout.claimed(1, Seq(40), Seq(44));
        scout.tried(Some(1), true, 0.0);
        assert_eq!((scout.order(), scout.claims(256), scout.claims(1)), (ClaimOrder::After(Seq(44)), 256, 1));
        scout.tried(Some(1), false, 0.0);
        assert_eq!(scout.order(), ClaimOrder::Before(Seq(40)), "and back to where it began");
        scout.found_nothing(2, 0.5);
        assert_eq!(scout.order(), ClaimOrder::Newest);
    }
}
