//! What a queue takes: its number of entries, and sizes.

use super::{Bench, Make, announced, claim_any, confirmed};
use crate::queue::{LARGEST_SIZE, Lane, Push, Pushed, QueueError, SyncTally, Tally};

pub(crate) async fn full_queue_refuses_announcements_whole(make: Make) {
    let bench = Bench::with_limit(make, 3).await;
    bench.announce(1).await;
    let route = bench.route;
    let three = vec![announced(route, 2), announced(route, 3), announced(route, 4)];
    assert!(matches!(bench.queue().push(three, vec![]).await, Err(QueueError::Full { limit: 3 })));
    assert_eq!(bench.states(), [1, 0, 0, 0]);
    assert_eq!(bench.tally(7), SyncTally::default());
    // A duplicate takes no room.
    let two = vec![announced(route, 1), announced(route, 2), announced(route, 3), announced(route, 2)];
    bench.queue().push(two, vec![]).await.unwrap();
    assert_eq!(bench.announce(3).await, Pushed::AlreadyQueued);
    // A sync paces itself.
    assert_eq!(bench.find(5, 7, false).await, Pushed::Added);
    let claim = bench.claim(Lane::Fresh).await;
    assert!(matches!(bench.queue().push(vec![announced(route, 1)], vec![]).await, Err(QueueError::Full { .. })));
    bench.settle(claim, confirmed()).await;
    bench.settle(bench.claim(Lane::Backfill).await, confirmed()).await;
    assert_eq!(bench.announce(6).await, Pushed::Added);
}

pub(crate) async fn parked_entries_keep_nothing_out(make: Make) {
    let mut bench = Bench::with_limit(make, 2).await;
    for number in [1, 2, 3] {
        assert_eq!(bench.announce(number).await, Pushed::Added);
        bench.park(bench.claim(Lane::Fresh).await).await;
    }
    bench.subject.restart().await;
    let route = bench.route;
    assert_eq!(bench.announce(4).await, Pushed::Added);
    // One that is revived counts again, and is not refused for it.
    assert_eq!(bench.announce(1).await, Pushed::Revived);
    assert_eq!(bench.announce(2).await, Pushed::Revived);
    assert!(matches!(bench.queue().push(vec![announced(route, 5)], vec![]).await, Err(QueueError::Full { limit: 2 })));
    for _ in 0..2 {
        bench.park(claim_any(bench.queue(), route, Lane::Fresh, 1, bench.clock.now()).await.unwrap().remove(0)).await;
    }
    assert_eq!(bench.states(), [1, 0, 0, 3]);
    assert_eq!(bench.announce(5).await, Pushed::Added);
    assert!(matches!(bench.queue().push(vec![announced(route, 6)], vec![]).await, Err(QueueError::Full { limit: 2 })));
}

pub(crate) async fn sizes_that_lie_leave_the_sums_right(make: Make) {
    let mut bench = Bench::new(make).await;
    let route = bench.route;
    let sized = |number, size| Push { size: Some(size), ..announced(route, number) };
    let pushes = vec![sized(1, u64::MAX), sized(2, u64::MAX), sized(3, 100), sized(4, LARGEST_SIZE)];
    bench.queue().push(pushes, vec![]).await.unwrap();
    let ready = Tally { entries: 4, bytes: 100 + LARGEST_SIZE, unknown_size: 2 };
    assert_eq!(bench.counts().fresh.ready, ready);
    bench.subject.restart().await;
    for left in [ready.bytes, ready.bytes, LARGEST_SIZE, 0] {
        bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
        assert_eq!(bench.counts().fresh.ready.bytes, left);
    }
}
