//! How free workers are shared between the lanes.

use crate::queue::Lane;

/// One in so many workers is the backfill's when both lanes have work.
const BACKFILL_ONE_IN: usize = 5;

/// The share of each lane, in workers, in the order of [`Lane::ALL`].
pub(super) type Shares = [usize; 2];

/// Shares workers: four in five for fresh entries, one in five for backfill, and all for either while the other has no work.
///
/// What counts is who occupies the workers, not who was served last: long backfill blobs must not pile up.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    // With a single worker there is nothing to occupy in part, so the lanes take turns.
    turn: usize,
}

impl Lanes {
    /// How many entries of each lane to take, `free` in all at most; less than that only if a lane has no work.
    pub(super) fn share(&mut self, workers: usize, in_flight: Shares, has_work: [bool; 2]) -> Shares {
        let free = workers.saturating_sub(in_flight[0] + in_flight[1]);
        match has_work {
            [false, false] => return [0, 0],
            [true, false] => return [free, 0],
            [false, true] => return [0, free],
            [true, true] => {}
        }
        if free == 0 {
            return [0, 0];
        }
        if workers == 1 {
            self.turn = (self.turn + 1) % BACKFILL_ONE_IN;
            return if self.turn == 0 { [0, 1] } else { [1, 0] };
        }
        let of_backfill = (workers / BACKFILL_ONE_IN).max(1);
        let backfill = of_backfill.saturating_sub(in_flight[1]).min(free);
        let fresh = (workers - of_backfill).saturating_sub(in_flight[0]).min(free);
        // Where one lane occupies more than its share, the other is short of its own by at least what is free.
        if fresh + backfill <= free {
            [fresh, backfill]
        } else if in_flight[1] >= of_backfill {
            [free, 0]
        } else {
            let backfill = backfill.min(free.saturating_sub(fresh).max(1));
            [free - backfill, backfill]
        }
    }
}

/// Where a lane stands in [`Shares`].
pub(super) const fn index(lane: Lane) -> usize {
    match lane {
        Lane::Fresh => 0,
        Lane::Backfill => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::Lanes;

    #[test]
    fn each_lane_may_use_all_while_the_other_is_idle() {
        let mut lanes = Lanes::default();
        assert_eq!(lanes.share(10, [0, 0], [true, false]), [10, 0]);
        assert_eq!(lanes.share(10, [3, 0], [false, true]), [0, 7]);
        assert_eq!(lanes.share(10, [0, 0], [false, false]), [0, 0]);
        assert_eq!(lanes.share(1, [0, 0], [false, true]), [0, 1]);
    }

    #[test]
    fn both_at_work_share_four_to_one() {
        let mut lanes = Lanes::default();
        assert_eq!(lanes.share(10, [0, 0], [true, true]), [8, 2]);
        assert_eq!(lanes.share(32, [0, 0], [true, true]), [26, 6]);
        assert_eq!(lanes.share(2, [0, 0], [true, true]), [1, 1]);
        assert_eq!(lanes.share(4, [3, 0], [true, true]), [0, 1]);
    }

    #[test]
    fn a_lane_that_took_all_gives_way_to_the_other_as_its_workers_end() {
        let mut lanes = Lanes::default();
        assert_eq!(lanes.share(10, [9, 0], [true, true]), [0, 1]);
        assert_eq!(lanes.share(10, [0, 9], [true, true]), [1, 0]);
        assert_eq!(lanes.share(10, [0, 10], [true, true]), [0, 0]);
    }

    #[test]
    fn a_single_worker_takes_turns() {
        let mut lanes = Lanes::default();
        let taken: Vec<_> = (0..10).map(|_| lanes.share(1, [0, 0], [true, true])).collect();
        assert_eq!(taken.iter().filter(|shares| **shares == [0, 1]).count(), 2);
        assert_eq!(taken.iter().filter(|shares| **shares == [1, 0]).count(), 8);
    }

    #[test]
    fn no_free_worker_stays_idle_while_both_have_work_and_none_is_given_twice() {
        for workers in 1..40 {
            for fresh in 0..=workers {
                for backfill in 0..=workers - fresh {
                    let shares = Lanes::default().share(workers, [fresh, backfill], [true, true]);
                    assert_eq!(shares[0] + shares[1], workers - fresh - backfill, "{workers} {fresh} {backfill}");
                }
            }
        }
    }
}
