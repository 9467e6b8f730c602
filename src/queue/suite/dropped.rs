//! Dropping a route's entries.

use super::{Bench, Make, announced, blob, confirmed};
use crate::queue::drop::Dropped;
use crate::queue::failures::FailureFilter;
use crate::queue::{Lane, Oldest, Pushed, QueueError, SyncTally, Tally};

impl Bench {
    async fn drop_some(&self, max: usize) -> Dropped {
        self.queue().drop_entries(self.route, max).await.unwrap()
    }

    /// Drops step by step until all is gone; how many entries each step deleted.
    async fn drop_all(&self, max: usize) -> Vec<u64> {
        let mut steps = Vec::new();
        loop {
            let dropped = self.drop_some(max).await;
            if dropped.done {
                assert_eq!(dropped.tally, Tally::default());
                return steps;
            }
            steps.push(dropped.tally.entries);
            assert!(steps.len() < 100, "{steps:?}");
        }
    }
}

pub(crate) async fn a_dropped_route_is_empty_and_works_again(make: Make) {
    let mut bench = Bench::with_limit(make, 9).await;
    let other = bench.queue().register("a_to_c", "a", "c").await.unwrap();
    bench.queue().push(vec![announced(other, 1)], vec![]).await.unwrap();
    // 1 retries, 2 and 3 were found by syncs and 3 is parked, 4 has changed its lane, 5 and 6 are ready.
    bench.announce(1).await;
    bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
    bench.find(3, 7, false).await;
    bench.park(bench.claim(Lane::Backfill).await).await;
    bench.find(2, 7, false).await;
    bench.find(4, 8, false).await;
    bench.announce(4).await;
    bench.announce(5).await;
    bench.announce(6).await;
    assert_eq!(bench.states(), [4, 0, 1, 1]);
    // Released ones stand in a line of their own.
    drop(bench.claims(Lane::Fresh, 3).await);
    let steps = bench.drop_all(4).await;
    assert_eq!(steps, [4, 2]);
    for _ in 0..2 {
        assert_eq!(bench.states(), [0; 4]);
        assert_eq!(bench.counts().discarded, 6);
        assert_eq!(bench.tally(7), SyncTally { discarded: 2, ..SyncTally::default() });
        assert_eq!(bench.tally(8), SyncTally { discarded: 1, ..SyncTally::default() });
        assert!(bench.claims(Lane::Fresh, 9).await.is_empty() && bench.claims(Lane::Backfill, 9).await.is_empty());
        assert_eq!(bench.queue().oldest(bench.route).await.unwrap(), Oldest::default());
        let found = bench.queue().failures(bench.route, FailureFilter::default(), None, 9).await.unwrap();
        assert!(found.failed.is_empty());
        assert_eq!(bench.queue().counts(other).fresh.ready.entries, 1, "another route's entries stay");
        assert!(bench.drop_some(4).await.done, "again, there is nothing to do");
        bench.subject.restart().await;
    }
    assert_eq!(bench.queue().register("a_to_b", "a", "b").await.unwrap(), bench.route);
    for number in 1..=8 {
        assert_eq!(bench.announce(number).await, Pushed::Added, "the queue has room again");
    }
    let pushed = bench.queue().push(vec![announced(bench.route, 9)], vec![]).await;
    assert!(matches!(pushed, Err(QueueError::Full { .. })), "{pushed:?}");
    assert_eq!(bench.order(Lane::Fresh).await, (1..=8).map(blob).collect::<Vec<_>>());
    while let Some(claim) = bench.claims(Lane::Fresh, 1).await.pop() {
        bench.settle(claim, confirmed()).await;
    }
    assert_eq!((bench.states(), bench.counts().confirmed), ([0; 4], 8));
}

pub(crate) async fn a_route_half_dropped_is_whole(make: Make) {
    for max in 1..=3 {
        let mut bench = Bench::new(make).await;
        // A released entry with a successor behind it, and another entry.
        bench.announce(1).await;
        let first = bench.claim(Lane::Fresh).await;
        assert_eq!(bench.announce(1).await, Pushed::SuccessorQueued);
        bench.announce(2).await;
        drop(first);
        assert_eq!(bench.drop_some(max).await.tally.entries, max as u64);
        bench.subject.restart().await;
        let mut left = bench.order(Lane::Fresh).await;
        left.sort();
        let mut expected = if max == 1 { vec![blob(1), blob(2)] } else { vec![blob(2)] };
        expected.retain(|_| max < 3);
        expected.sort();
        assert_eq!(left, expected, "{max}");
        assert_eq!(bench.counts().discarded, max as u64);
        let steps = bench.drop_all(9).await;
        assert_eq!(steps.iter().sum::<u64>(), 3 - max as u64);
    }
}

pub(crate) async fn claimed_entries_outlive_the_drop_of_their_route(make: Make) {
    let bench = Bench::new(make).await;
    bench.announce(1).await;
    bench.announce(2).await;
    let claim = bench.claim(Lane::Fresh).await;
    // Its successor goes, and it does not notice.
    assert_eq!(bench.announce(1).await, Pushed::SuccessorQueued);
    let dropped = bench.drop_some(9).await;
    assert_eq!((dropped.tally.entries, dropped.done), (2, false));
    assert_eq!(bench.drop_some(9).await, Dropped::default());
    assert_eq!(bench.states(), [0, 1, 0, 0]);
    bench.settle(claim, confirmed()).await;
    assert_eq!((bench.states(), bench.counts().confirmed, bench.counts().discarded), ([0; 4], 1, 2));
    assert!(bench.drop_some(9).await.done);
    assert_eq!(bench.announce(1).await, Pushed::Added);
}
