//! Entries whose attempts end in a peer's error, again and again, while the peer serves others well.
//!
//! Without this, a single blob on which a peer fails (a broken disk block, a proxy that chokes on it) would open the breaker
//! for ever, and never be charged.

use crate::fault::Side;
use crate::queue::Seq;
use std::collections::HashMap;

/// So many attempts that ended in the peer's error, each followed by another entry's success, make the next one the entry's.
const CLEARED_FAILURES: u32 = 2;

/// At most so many entries are remembered; the oldest are forgotten first.
const MAX: usize = 4096;

#[derive(Debug, Default)]
pub(super) struct Suspects {
    entries: HashMap<(Seq, bool), Suspect>,
    // How many wait for another entry's success, by side, so that a success need not look for them.
    pending: [usize; 2],
}

#[derive(Debug, Default)]
struct Suspect {
    // Failures after which the peer served another entry.
    cleared: u32,
    // The last failure was not followed by a success yet.
    pending: bool,
}

const fn is_destination(side: Side) -> bool {
    matches!(side, Side::Destination)
}

impl Suspects {
    /// Whether the next error of this side is to be charged to the entry.
    pub(super) fn is_convicted(&self, seq: Seq, side: Side) -> bool {
        self.entries.get(&(seq, is_destination(side))).is_some_and(|suspect| suspect.cleared >= CLEARED_FAILURES)
    }

    /// An attempt at this entry ended in the peer's error.
    pub(super) fn failed(&mut self, seq: Seq, side: Side) {
        let destination = is_destination(side);
        if self.entries.len() >= MAX
            && !self.entries.contains_key(&(seq, destination))
            && let Some(oldest) = self.entries.keys().min().copied()
        {
            self.remove(oldest);
        }
        let suspect = self.entries.entry((seq, destination)).or_default();
        if !suspect.pending {
            suspect.pending = true;
            self.pending[usize::from(destination)] += 1;
        }
    }

    /// The peer served this entry well: all others that failed there had a fair chance.
    pub(super) fn succeeded(&mut self, seq: Seq, side: Side) {
        let destination = is_destination(side);
        if self.pending[usize::from(destination)] == 0 {
            return;
        }
        for ((other, at_destination), suspect) in &mut self.entries {
            if *at_destination == destination && *other != seq && suspect.pending {
                suspect.pending = false;
                suspect.cleared += 1;
                self.pending[usize::from(destination)] -= 1;
            }
        }
    }

    /// The entry is settled.
    pub(super) fn forget(&mut self, seq: Seq) {
        self.remove((seq, false));
        self.remove((seq, true));
    }

    /// How often the entry met a peer's error; the least suspicious make the best probes.
    pub(super) fn weight(&self, seq: Seq) -> u32 {
        let weight = |key| self.entries.get(key).map_or(0, |suspect| suspect.cleared + u32::from(suspect.pending));
        weight(&(seq, false)) + weight(&(seq, true))
    }

    fn remove(&mut self, key: (Seq, bool)) {
        if let Some(suspect) = self.entries.remove(&key)
            && suspect.pending
        {
            self.pending[usize::from(key.1)] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX, Suspects};
    use crate::fault::Side;
    use crate::queue::Seq;

    #[test]
    fn two_failures_each_followed_by_anothers_success_convict() {
        let mut suspects = Suspects::default();
        let side = Side::Destination;
        for _ in 0..2 {
            assert!(!suspects.is_convicted(Seq(1), side));
            suspects.failed(Seq(1), side);
            suspects.succeeded(Seq(2), side);
        }
        assert!(suspects.is_convicted(Seq(1), side));
        assert!(!suspects.is_convicted(Seq(1), Side::Source) && !suspects.is_convicted(Seq(2), side));
        suspects.forget(Seq(1));
        assert!(!suspects.is_convicted(Seq(1), side));
    }

    #[test]
    fn an_outage_convicts_nobody_however_long() {
        let mut suspects = Suspects::default();
        for round in 0..1000 {
            suspects.failed(Seq(round % 10), Side::Source);
            suspects.succeeded(Seq(11), Side::Destination);
        }
        suspects.succeeded(Seq(11), Side::Source);
        assert!((0..10).all(|seq| !suspects.is_convicted(Seq(seq), Side::Source)));
    }

    #[test]
    fn its_own_success_proves_nothing_against_an_entry() {
        let mut suspects = Suspects::default();
        for _ in 0..5 {
            suspects.failed(Seq(1), Side::Source);
            suspects.succeeded(Seq(1), Side::Source);
        }
        assert!(!suspects.is_convicted(Seq(1), Side::Source));
    }

    #[test]
    fn it_is_bounded_and_keeps_count() {
        let mut suspects = Suspects::default();
        for seq in 0..2 * MAX as u64 {
            suspects.failed(Seq(seq), Side::Source);
        }
        assert_eq!((suspects.entries.len(), suspects.pending), (MAX, [MAX, 0]));
        suspects.succeeded(Seq(0), Side::Source);
        assert_eq!(suspects.pending, [0, 0]);
    }
}
