//! Which entry is tried while a breaker is open: each time another, for the one that failed may have been the cause.
//!
//! What failed stands first in line, and behind it may stand more of its kind. So each probe that fails makes the next one
//! look twice as far, and among those that never failed it takes any, not the first. How far it had to look is remembered
//! for the next time, and forgotten by half each time that a breaker closes.

use crate::queue::{Entry, Lane, Seq};
use std::collections::HashMap;

/// The first probe is chosen among so many entries.
const NEAREST: usize = 16;

/// No probe looks further than so many.
const FARTHEST: usize = 4096;

/// Entries tried that are remembered; then all are forgotten.
const MAX_TRIED: usize = 2 * FARTHEST;

#[derive(Debug, Default)]
pub(super) struct Probes {
    // By the number of the probe.
    tried: HashMap<Seq, u64>,
    probes: u64,
    // How often the reach was doubled.
    doublings: u32,
    probing: bool,
}

impl Probes {
    /// Among how many entries to choose.
    pub(super) fn reach(&self) -> usize {
        NEAREST.checked_shl(self.doublings).unwrap_or(FARTHEST).min(FARTHEST)
    }

    /// The lanes, in the order in which to look; each second probe begins with the other.
    pub(super) fn lanes(&self) -> [Lane; 2] {
        let [fresh, backfill] = Lane::ALL;
        if self.probes.is_multiple_of(2) { [fresh, backfill] } else { [backfill, fresh] }
    }

    /// Chooses one of them, by `pick`, which gives a number below its argument; `None` where there is none.
    pub(super) fn choose(
        &mut self,
        entries: &[&Entry],
        is_suspect: impl Fn(Seq) -> bool,
        pick: impl FnOnce(usize) -> usize,
    ) -> Option<usize> {
        let untried = |entry: &Entry| !self.tried.contains_key(&entry.seq) && !is_suspect(entry.seq);
        let all = || 0..entries.len();
        let mut best: Vec<usize> = all().filter(|at| untried(entries[*at]) && entries[*at].failure.is_none()).collect();
        if best.is_empty() {
            best = all().filter(|at| untried(entries[*at])).collect();
        }
        let longest_ago = all().min_by_key(|at| self.tried.get(&entries[*at].seq));
        let chosen = if best.is_empty() { longest_ago? } else { best[pick(best.len()).min(best.len() - 1)] };
        if self.tried.len() >= MAX_TRIED {
            self.tried.clear();
        }
        self.probes += 1;
        if std::mem::replace(&mut self.probing, true) && self.reach() < FARTHEST {
            self.doublings += 1;
        }
        self.tried.insert(entries[chosen].seq, self.probes);
        Some(chosen)
    }

    /// No breaker is open.
    pub(super) fn done(&mut self) {
        if std::mem::take(&mut self.probing) {
            self.doublings /= 2;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{FARTHEST, NEAREST, Probes};
    use crate::queue::Entry;
    use crate::worker::streaks;

    fn choose(probes: &mut Probes, entries: &[Entry], suspect: u64) -> u64 {
        let entries: Vec<&Entry> = entries.iter().collect();
        let chosen = probes.choose(&entries, |seq| seq.0 == suspect, |bound| bound / 2);
        chosen.map(|at| entries[at].seq.0).unwrap_or(u64::MAX)
    }

    #[test]
    fn each_probe_takes_another_and_those_that_never_failed_first() {
        let mut probes = Probes::default();
        assert_eq!(choose(&mut probes, &[], 0), u64::MAX);
        let mut entries: Vec<Entry> = (0..6).map(streaks::tests::entry).collect();
        entries[1] = streaks::tests::failed(1, crate::fault::FaultKind::ShortRead, 1);
        let order: Vec<u64> = (0..8).map(|_| choose(&mut probes, &entries, 0)).collect();
        let mut good = order[..4].to_vec();
        good.sort_unstable();
        assert_eq!(good, [2, 3, 4, 5]);
        assert_eq!(order[4..6], [1, 0], "then one that failed, then a suspect");
        assert_eq!(order[6..], order[..2], "then the one that was tried longest ago");
    }

    #[test]
    fn they_look_further_each_time_and_in_both_lanes() {
        let mut probes = Probes::default();
        let entries: Vec<Entry> = (0..40).map(streaks::tests::entry).collect();
        assert_eq!(probes.reach(), NEAREST);
        let first = probes.lanes();
        choose(&mut probes, &entries, 99);
        assert_eq!(probes.reach(), NEAREST);
        assert_ne!(probes.lanes(), first);
        (0..20).for_each(|_| _ = choose(&mut probes, &entries, 99));
        assert_eq!(probes.reach(), FARTHEST);
        probes.done();
        probes.done();
        assert_eq!(probes.reach(), NEAREST << 4);
    }
}
