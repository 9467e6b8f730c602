//! What each lane gets of the workers, and what the workers wait for, in simulated time.

use super::Lab;
use crate::backoff::Backoff;
use crate::blob::BlobRef;
use crate::queue::{Lane, Tally};
use crate::store::faulty::Trouble;
use crate::worker::Wait;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::Code;

/// How long a copy takes.
const COPY: Duration = Duration::from_millis(100);

impl Lab {
    /// Writes blobs with these numbers as their bytes, and queues them as a sync does.
    async fn find(&self, from: &str, numbers: std::ops::Range<u32>) -> Vec<BlobRef> {
        let mut blobs = Vec::new();
        for number in numbers {
            blobs.push(self.put(from, &number.to_be_bytes()).await);
        }
        self.push(from, Lane::Backfill, &blobs).await;
        blobs
    }

    fn queued(&self, lane: Lane) -> u64 {
        let counts = self.counts(0);
        let counts = if lane == Lane::Fresh { counts.fresh } else { counts.backfill };
        [counts.ready, counts.claimed, counts.retrying].iter().map(|tally: &Tally| tally.entries).sum()
    }
}

/// 400 good entries in one lane, with 10 workers, beside the other lane: how long they take.
async fn beside(good: Lane, other: Option<Trouble>) -> Duration {
    let mut lab = Lab::unpacked(&[("a", "b")], 10).await;
    let others = if other.is_some() { 1000..2000 } else { 1000..3200 };
    let (of_good, of_other) = match good {
        Lane::Fresh => (lab.announce("a", 0..400).await, lab.find("a", others).await),
        Lane::Backfill => (lab.find("a", 0..400).await, lab.announce("a", others).await),
    };
    if let Some(trouble) = other {
        of_other.iter().for_each(|blob| lab.place("a").faulty.set_for(*blob, Some(trouble.clone())));
    }
    of_good.iter().for_each(|blob| lab.place("a").faulty.set_for(*blob, Some(Trouble::Slow(COPY))));
    lab.place("a").faulty.set(Some(Trouble::Slow(COPY)));
    lab.start();
    let start = Instant::now();
    lab.until("the good ones are copied", |lab| lab.queued(good) == 0).await;
    assert!(lab.queued(if good == Lane::Fresh { Lane::Backfill } else { Lane::Fresh }) > 0);
    lab.abort.cancel();
    lab.stopped().await;
    start.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_lane_has_its_share_beside_one_that_is_full_of_good_or_of_failing_entries() {
    // Eight of ten workers, or two of them.
    for (good, alone) in [(Lane::Fresh, COPY * 400 / 8), (Lane::Backfill, COPY * 400 / 2)] {
        for other in [None, Some(Trouble::WrongBytes), Some(Trouble::Missing)] {
            let took = beside(good, other.clone()).await;
            assert!(took <= alone.mul_f64(1.2), "{good:?} beside {other:?}: {took:?}, and {alone:?} alone");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn entries_that_retry_count_for_their_lane_and_wait_for_no_ready_ones() {
    let mut lab = Lab::unpacked(&[("a", "b")], 10).await;
    let retrying = lab.find("a", 0..100).await;
    retrying.iter().for_each(|blob| lab.place("a").faulty.set_for(*blob, Some(Trouble::WrongBytes)));
    lab.start();
    lab.until("they retry", |lab| lab.counts(0).backfill.retrying.entries == 100).await;
    retrying.iter().for_each(|blob| lab.place("a").faulty.set_for(*blob, Some(Trouble::Slow(COPY))));
    lab.place("a").faulty.set(Some(Trouble::Slow(COPY)));
    lab.announce("a", 1000..3000).await;
    let start = Instant::now();
    lab.until("those that failed are copied", |lab| lab.queued(Lane::Backfill) == 0).await;
    assert!(start.elapsed() < COPY * 100 / 2 + Duration::from_secs(10), "{:?}", start.elapsed());
    let left = lab.queued(Lane::Fresh);
    assert!((1..=1700).contains(&left), "{left} of 2,000");
    lab.abort.cancel();
    lab.stopped().await;
}

/// A fault found: a worker that claims one at a time asked for what is due first, each time.
#[tokio::test(start_paused = true)]
async fn a_lone_worker_is_not_kept_from_new_entries_by_those_that_are_always_due() {
    let mut lab = Lab::unpacked(&[("a", "b")], 1).await;
    lab.set_policy(|policy| {
        policy.backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(1));
        policy.patience.park_after = u32::MAX;
    });
    let refused = lab.announce("a", 0..5).await;
    refused.iter().for_each(|blob| lab.place("b").faulty.set_for(*blob, Some(Trouble::Reject)));
    lab.place("a").faulty.set(Some(Trouble::Slow(COPY)));
    lab.start();
    lab.until("they retry", |lab| lab.fresh(0).retrying.entries >= 4).await;
    lab.announce("a", 5..15).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(lab.counts(0).confirmed, 10, "{:?}", lab.fresh(0));
    lab.abort.cancel();
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_workers_wait_for_is_told() {
    let mut lab = Lab::with(&[("a", "b")], 10, false).await;
    lab.set_policy(|policy| policy.waits.confirm = Duration::from_secs(30));
    lab.start();
    let most = async |lab: &Lab, after: u64| {
        for _ in 0..after {
            sleep(Duration::from_secs(1)).await;
            lab.workers[0].sample();
        }
        let waits = lab.workers[0].report().waits;
        (waits.most().unwrap(), waits)
    };
    assert_eq!(most(&lab, 20).await.0, Wait::Work);
    lab.place("a").faulty.set(Some(Trouble::Slow(Duration::from_secs(2))));
    lab.announce("a", 0..1000).await;
    let (wait, waits) = most(&lab, 20).await;
    assert!(wait == Wait::Source && waits.share(Wait::Source) > 0.9, "{waits:?}");
    lab.place("a").faulty.set(None);
    lab.place("b").faulty.set(Some(Trouble::Hang));
    let (wait, waits) = most(&lab, 20).await;
    assert!(wait == Wait::Destination && waits.share(Wait::Destination) > 0.9, "{waits:?}");
    lab.place("b").faulty.set(Some(Trouble::Code(Code::Internal)));
    assert_eq!(most(&lab, 60).await.0, Wait::Breaker);
    lab.queue.set_failing(true);
    lab.place("b").faulty.set(None);
    assert_eq!(most(&lab, 60).await.0, Wait::Queue);
    lab.queue.set_failing(false);
    lab.drain().await;
    assert_eq!(most(&lab, 20).await.0, Wait::Work);
    lab.stopped().await;
}
