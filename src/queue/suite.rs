//! What every queue must do, whichever it is: each line of the table in the port's header, and the promises of its methods.

#![allow(clippy::unwrap_used, reason = "tests")]

mod dropped;
mod failures;
mod limits;
mod lookup;

pub(crate) use dropped::{
    a_dropped_route_is_empty_and_works_again, a_route_half_dropped_is_whole,
    claimed_entries_outlive_the_drop_of_their_route,
};
pub(crate) use failures::{
    a_discarded_entry_makes_way_for_its_successor, all_failures, claimed_and_ready_entries_are_no_failures,
    failures_are_discarded, failures_are_listed_in_pages, failures_are_revived, old_parked_entries_expire,
};

pub(crate) use limits::{
    full_queue_refuses_announcements_whole, parked_entries_keep_nothing_out, sizes_that_lie_leave_the_sums_right,
};
pub(crate) use lookup::{
    blobs_are_found_by_the_beginning_of_their_refs, blobs_are_looked_up_in_every_state, completions_are_remembered,
    no_gap_shows_between_two_hops, settlements_are_told,
};

use crate::blob::{BlobRef, DigestFunction};
use crate::clock::{Clock, Monotonic, SystemClock};
use crate::fault::FaultKind;
use crate::queue::damage::SYNC_NEEDED;
use crate::queue::{
    Claim, ClaimOrder, ClaimRequest, Failure, Lane, Misses, Oldest, Origin, Outcome, Push, Pushed, Queue, QueueError,
    RouteCounts, RouteId, Seq, StateWrite, SyncId, SyncTally, Tally, Weight, WholeQueue,
};
use async_trait::async_trait;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How far ahead a due time may be.
pub(crate) const MAX_BACKOFF: Duration = Duration::from_secs(600);

/// A queue under test.
#[async_trait]
pub(crate) trait Subject: Send {
    fn queue(&self) -> &dyn WholeQueue;
    /// Forgets what is not durable, as a crash and a restart do.
    async fn restart(&mut self);
}

/// Makes an empty queue that holds so many entries.
pub(crate) type Make = fn(&TestClock, u64) -> Box<dyn Subject>;

/// A clock whose time of day is set by hand, in seconds.
#[derive(Clone, Debug)]
pub(crate) struct TestClock(Arc<Hands>);

#[derive(Debug)]
struct Hands {
    seconds: AtomicU64,
    machine: SystemClock,
}

impl TestClock {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Hands { seconds: AtomicU64::new(1_000_000), machine: SystemClock::new() }))
    }

    pub(crate) fn now(&self) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(self.0.seconds.load(Ordering::SeqCst))
    }

    pub(crate) fn advance(&self, seconds: u64) {
        self.0.seconds.fetch_add(seconds, Ordering::SeqCst);
    }

    pub(crate) fn go_back(&self, seconds: u64) {
        self.0.seconds.fetch_sub(seconds, Ordering::SeqCst);
    }

    pub(crate) fn clock(&self) -> Arc<dyn Clock> {
        Arc::new(self.clone())
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        self.now()
    }

    fn monotonic(&self) -> Monotonic {
        self.0.machine.monotonic()
    }
}

/// Makes one test of each case.
macro_rules! conformance {
    ($make:path) => {
        crate::queue::suite::conformance!(@ $make,
            ready_takes_a_push_as_done, retrying_is_hastened, parked_is_revived, claimed_gets_one_successor,
            claimed_takes_a_sync, retry_merges_the_successor, park_merges_the_successor,
            successor_waits_after_a_restart, released_claims_come_first, order_is_by_sequence_then_due, retries_hold_up_no_ready_entry,
            new_ones_are_claimed_from_anywhere, the_next_due_time_is_told, weights_add_up_until_forgiven,
            misses_are_served_not_elapsed,
            clock_going_back_changes_no_order, far_due_times_are_due, counts_follow_every_state,
            sync_tallies_follow_every_state, state_is_written_with_the_push, settling_pushes_the_next_hops,
            full_queue_refuses_announcements_whole, parked_entries_keep_nothing_out,
            sizes_that_lie_leave_the_sums_right, ids_of_ended_syncs_leave_the_entry, one_ref_twice_in_a_push, routes_are_apart,
            routes_keep_their_stores, subscribers_are_woken, failures_keep_their_history, oldest_is_told,
            sequences_are_never_used_twice, unknown_routes_are_refused_whole,
            failures_are_listed_in_pages, failures_are_revived, failures_are_discarded, old_parked_entries_expire,
            claimed_and_ready_entries_are_no_failures, a_discarded_entry_makes_way_for_its_successor,
            a_dropped_route_is_empty_and_works_again, a_route_half_dropped_is_whole,
            claimed_entries_outlive_the_drop_of_their_route, blobs_are_looked_up_in_every_state,
            completions_are_remembered, blobs_are_found_by_the_beginning_of_their_refs, no_gap_shows_between_two_hops, settlements_are_told
        );
    };
    (@ $make:path, $($case:ident),+) => {
        $(
            #[tokio::test]
            async fn $case() {
                crate::queue::suite::$case($make).await;
            }
        )+
    };
}
pub(crate) use conformance;

/// Claims what may be tried, in whichever order: what is due first, then new ones.
pub(crate) async fn claim_any(
    queue: &(impl Queue + ?Sized),
    route: RouteId,
    lane: Lane,
    max: usize,
    now: SystemTime,
) -> Result<Vec<Claim>, QueueError> {
    let mut claims = Vec::new();
    for order in [ClaimOrder::Due, ClaimOrder::Oldest] {
        let max = max - claims.len();
        claims.extend(queue.claim(ClaimRequest { route, lane, order, max, now }).await?.claims);
    }
    Ok(claims)
}

pub(crate) fn blob(number: u64) -> BlobRef {
    DigestFunction::Sha256.ref_of(&number.to_be_bytes())
}

pub(crate) fn announced(route: RouteId, number: u64) -> Push {
    Push {
        route,
        blob: blob(number),
        size: Some(100),
        lane: Lane::Fresh,
        trace: None,
        visited: vec![Arc::from("a")],
        repair: false,
        origin: Origin::Announced,
    }
}

pub(crate) fn found(route: RouteId, number: u64, sync: u64, repair: bool) -> Push {
    Push { lane: Lane::Backfill, repair, origin: Origin::Sync(SyncId(sync)), ..announced(route, number) }
}

pub(crate) fn failure(clock: &TestClock) -> Failure {
    Failure {
        kind: FaultKind::MissingAtSource,
        code: Some(tonic::Code::NotFound),
        peer: "a".to_owned(),
        message: "no such blob".to_owned(),
        first: clock.now(),
        last: clock.now(),
        count: 1,
    }
}

pub(crate) fn confirmed() -> Outcome {
    Outcome::Confirmed { size: 100, copied: true, chained: Vec::new() }
}

/// A queue with one route, and short ways to say things.
struct Bench {
    subject: Box<dyn Subject>,
    clock: TestClock,
    route: RouteId,
}

impl Bench {
    async fn new(make: Make) -> Self {
        Self::with_limit(make, u64::MAX).await
    }

    async fn with_limit(make: Make, max_entries: u64) -> Self {
        let clock = TestClock::new();
        let subject = make(&clock, max_entries);
        let route = subject.queue().register("a_to_b", "a", "b").await.unwrap();
        Self { subject, clock, route }
    }

    fn queue(&self) -> &dyn WholeQueue {
        self.subject.queue()
    }

    async fn push(&self, push: Push) -> Pushed {
        self.queue().push(vec![push], Vec::new()).await.unwrap()[0]
    }

    async fn announce(&self, number: u64) -> Pushed {
        self.push(announced(self.route, number)).await
    }

    async fn find(&self, number: u64, sync: u64, repair: bool) -> Pushed {
        self.push(found(self.route, number, sync, repair)).await
    }

    async fn claims(&self, lane: Lane, max: usize) -> Vec<Claim> {
        claim_any(self.queue(), self.route, lane, max, self.clock.now()).await.unwrap()
    }

    async fn claim(&self, lane: Lane) -> Claim {
        self.claims(lane, 1).await.pop().expect("something to claim")
    }

    fn request(&self, order: ClaimOrder, max: usize) -> ClaimRequest {
        ClaimRequest { route: self.route, lane: Lane::Fresh, order, max, now: self.clock.now() }
    }

    /// The fresh blobs that can be claimed in this order; put back into it.
    async fn claims_in(&self, order: ClaimOrder, max: usize) -> Vec<BlobRef> {
        let claimed = self.queue().claim(self.request(order, max)).await.unwrap();
        claimed.claims.iter().map(|claim| claim.entry().blob).collect()
    }

    /// The numbered blobs that can be claimed, in order; released again.
    async fn order(&self, lane: Lane) -> Vec<BlobRef> {
        self.claims(lane, 100).await.iter().map(|claim| claim.entry().blob).collect()
    }

    async fn settle(&self, claim: Claim, outcome: Outcome) {
        self.queue().settle(vec![(claim, outcome)]).await.unwrap();
    }

    async fn retry_in(&self, claim: Claim, seconds: u64) {
        let due = self.clock.now() + Duration::from_secs(seconds);
        self.settle(claim, Outcome::Retry { due, failure: failure(&self.clock), weight: Weight(0) }).await;
    }

    async fn park(&self, claim: Claim) {
        self.settle(claim, Outcome::Park { failure: failure(&self.clock), weight: Weight(0) }).await;
    }

    fn counts(&self) -> RouteCounts {
        self.queue().counts(self.route)
    }

    fn tally(&self, sync: u64) -> SyncTally {
        self.queue().sync_tally(SyncId(sync))
    }

    /// Entries that are ready, claimed, retrying and parked, in both lanes.
    fn states(&self) -> [u64; 4] {
        let counts = self.counts();
        let sum = |tally: fn(&crate::queue::LaneCounts) -> Tally| {
            tally(&counts.fresh).entries + tally(&counts.backfill).entries
        };
        [sum(|lane| lane.ready), sum(|lane| lane.claimed), sum(|lane| lane.retrying), sum(|lane| lane.parked)]
    }
}

fn blobs(numbers: &[u64]) -> Vec<BlobRef> {
    numbers.iter().map(|number| blob(*number)).collect()
}

pub(crate) async fn ready_takes_a_push_as_done(make: Make) {
    let bench = Bench::new(make).await;
    assert_eq!(bench.announce(1).await, Pushed::Added);
    assert_eq!(bench.announce(1).await, Pushed::AlreadyQueued);
    assert_eq!(bench.find(1, 7, true).await, Pushed::AlreadyQueued);
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(claim.entry().syncs, [SyncId(7)]);
    assert!(claim.entry().repair);
    assert_eq!(claim.entry().attempts, 0);
    assert!(bench.claims(Lane::Fresh, 9).await.is_empty());

    // Backfill becomes fresh when announced, not when a sync finds it again or a backfill chain brings it.
    assert_eq!(bench.find(2, 7, false).await, Pushed::Added);
    assert_eq!(bench.find(2, 7, false).await, Pushed::AlreadyQueued);
    let chained = Push { origin: Origin::Chained, lane: Lane::Backfill, ..announced(bench.route, 2) };
    assert_eq!(bench.push(chained).await, Pushed::AlreadyQueued);
    assert_eq!(bench.counts().backfill.ready.entries, 1);
    assert_eq!(bench.announce(2).await, Pushed::AlreadyQueued);
    assert!(bench.claims(Lane::Backfill, 9).await.is_empty());
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!((claim.entry().blob, claim.entry().lane), (blob(2), Lane::Fresh));
    assert_eq!(claim.entry().syncs, [SyncId(7)]);
}

pub(crate) async fn retrying_is_hastened(make: Make) {
    let bench = Bench::new(make).await;
    bench.find(1, 7, false).await;
    bench.retry_in(bench.claim(Lane::Backfill).await, 60).await;
    assert!(bench.claims(Lane::Backfill, 9).await.is_empty());
    assert_eq!(bench.find(1, 8, false).await, Pushed::AlreadyQueued);
    assert!(bench.claims(Lane::Backfill, 9).await.is_empty(), "a sync only adds its id");
    assert_eq!(bench.announce(1).await, Pushed::Hastened);
    assert!(bench.claims(Lane::Backfill, 9).await.is_empty());
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(claim.entry().attempts, 1);
    assert_eq!(claim.entry().due_time, bench.clock.now());
    assert_eq!(claim.entry().syncs, [SyncId(8)], "the one before has ended");
    assert_eq!((bench.tally(7), bench.tally(8).pending), (SyncTally::default(), 1));

    // Due already: it keeps its place.
    bench.retry_in(claim, 60).await;
    bench.clock.advance(90);
    let due = bench.clock.now() - Duration::from_secs(30);
    assert_eq!(bench.announce(1).await, Pushed::Hastened);
    assert_eq!(bench.claim(Lane::Fresh).await.entry().due_time, due);
}

pub(crate) async fn parked_is_revived(make: Make) {
    let bench = Bench::new(make).await;
    for (number, by_sync) in [(1, false), (2, true)] {
        bench.find(number, 7, false).await;
        bench.park(bench.claim(Lane::Backfill).await).await;
        assert!(bench.claims(Lane::Backfill, 9).await.is_empty());
        bench.clock.advance(5);
        let lane = if by_sync {
            assert_eq!(bench.find(number, 8, false).await, Pushed::Revived);
            Lane::Backfill
        } else {
            assert_eq!(bench.announce(number).await, Pushed::Revived);
            Lane::Fresh
        };
        assert_eq!(bench.states(), [0, 0, 1, 0]);
        let claim = bench.claim(lane).await;
        assert_eq!(claim.entry().attempts, 0);
        assert_eq!(claim.entry().failure.as_ref().unwrap().count, 1);
        assert_eq!(claim.entry().due_time, bench.clock.now());
        assert_eq!(claim.entry().syncs.contains(&SyncId(8)), by_sync);
        bench.settle(claim, confirmed()).await;
    }
}

pub(crate) async fn claimed_gets_one_successor(make: Make) {
    let bench = Bench::new(make).await;
    for end in [confirmed(), Outcome::Discard] {
        bench.announce(1).await;
        let first = bench.claim(Lane::Fresh).await;
        assert_eq!(bench.announce(1).await, Pushed::SuccessorQueued);
        assert_eq!(bench.announce(1).await, Pushed::SuccessorQueued);
        assert_eq!(bench.states(), [1, 1, 0, 0]);
        assert!(bench.claims(Lane::Fresh, 9).await.is_empty());
        let seq = first.entry().seq;
        bench.settle(first, end).await;
        let second = bench.claim(Lane::Fresh).await;
        assert!(second.entry().seq > seq);
        assert!(bench.claims(Lane::Fresh, 9).await.is_empty());
        bench.settle(second, confirmed()).await;
        assert_eq!(bench.states(), [0; 4]);
        assert_eq!(bench.announce(1).await, Pushed::Added);
        bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    }
}

pub(crate) async fn claimed_takes_a_sync(make: Make) {
    let bench = Bench::new(make).await;
    bench.announce(1).await;
    let first = bench.claim(Lane::Fresh).await;
    assert_eq!(bench.find(1, 7, false).await, Pushed::AlreadyQueued);
    assert_eq!(bench.tally(7).pending, 1);
    assert_eq!(bench.states(), [0, 1, 0, 0]);
    // A repair makes a successor, and flags only that.
    assert_eq!(bench.find(1, 8, true).await, Pushed::SuccessorQueued);
    assert_eq!(bench.states(), [1, 1, 0, 0]);
    drop(first);
    let first = bench.claim(Lane::Fresh).await;
    assert_eq!(first.entry().syncs, [SyncId(7)]);
    assert!(!first.entry().repair);
    bench.settle(first, confirmed()).await;
    assert_eq!(bench.tally(7), SyncTally { confirmed: 1, ..SyncTally::default() });
    let second = bench.claim(Lane::Backfill).await;
    assert!(second.entry().repair);
    assert_eq!(second.entry().syncs, [SyncId(8)]);

    // An announcement makes a successor of the backfill lane fresh.
    bench.find(1, 9, true).await;
    assert_eq!(bench.announce(1).await, Pushed::SuccessorQueued);
    bench.settle(second, confirmed()).await;
    let third = bench.claim(Lane::Fresh).await;
    assert!(third.entry().repair);
    assert_eq!(third.entry().syncs, [SyncId(9)]);
}

pub(crate) async fn retry_merges_the_successor(make: Make) {
    let mut bench = Bench::new(make).await;
    bench.find(1, 7, false).await;
    let first = bench.claim(Lane::Backfill).await;
    let seq = first.entry().seq;
    bench.find(1, 8, true).await;
    bench.announce(1).await;
    bench.clock.advance(3);
    bench.retry_in(first, 60).await;
    assert_eq!(bench.states(), [0, 0, 1, 0]);
    bench.subject.restart().await;
    let merged = bench.claim(Lane::Fresh).await;
    assert_eq!(merged.entry().seq, seq);
    assert!(merged.entry().repair);
    assert_eq!(merged.entry().attempts, 1);
    assert_eq!(merged.entry().syncs, [SyncId(8)]);
    assert_eq!(merged.entry().due_time, bench.clock.now());
    bench.settle(merged, confirmed()).await;
    assert_eq!(bench.states(), [0; 4]);
    assert_eq!(bench.announce(1).await, Pushed::Added);
}

pub(crate) async fn park_merges_the_successor(make: Make) {
    let bench = Bench::new(make).await;
    bench.find(1, 7, false).await;
    let first = bench.claim(Lane::Backfill).await;
    bench.find(1, 7, true).await;
    assert_eq!(bench.tally(7).pending, 2);
    bench.park(first).await;
    assert_eq!(bench.states(), [0, 0, 1, 0]);
    assert_eq!(bench.tally(7), SyncTally { pending: 1, ..SyncTally::default() });
    let merged = bench.claim(Lane::Backfill).await;
    assert!(merged.entry().repair);
    assert_eq!(merged.entry().attempts, 0);
    assert_eq!(merged.entry().failure.as_ref().unwrap().count, 1);
}

pub(crate) async fn successor_waits_after_a_restart(make: Make) {
    let mut bench = Bench::new(make).await;
    bench.announce(1).await;
    let first = bench.claim(Lane::Fresh).await;
    let seq = first.entry().seq;
    bench.announce(1).await;
    bench.subject.restart().await;
    drop(first);
    assert_eq!(bench.states(), [2, 0, 0, 0]);
    let claims = bench.claims(Lane::Fresh, 9).await;
    assert_eq!(claims.len(), 1);
    assert_eq!(claims[0].entry().seq, seq);
    drop(claims);
    assert_eq!(bench.announce(1).await, Pushed::AlreadyQueued);
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    assert!(bench.claim(Lane::Fresh).await.entry().seq > seq);
}

pub(crate) async fn released_claims_come_first(make: Make) {
    let bench = Bench::new(make).await;
    for number in 1..=5 {
        bench.announce(number).await;
    }
    let mut claims = bench.claims(Lane::Fresh, 4).await;
    bench.retry_in(claims.remove(0), 0).await;
    // Released against the order in which they were claimed.
    drop(claims.pop());
    drop(claims.remove(0));
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[1, 2, 4, 5]));
    // In the retry order as among the new ones, and with those that stand behind them.
    assert_eq!(bench.claims_in(ClaimOrder::Due, 9).await, blobs(&[1]));
    assert_eq!(bench.claims_in(ClaimOrder::Oldest, 2).await, blobs(&[2, 4]));
    assert_eq!(bench.states(), [3, 1, 1, 0]);
}

pub(crate) async fn order_is_by_sequence_then_due(make: Make) {
    let mut bench = Bench::new(make).await;
    for number in 1..=4 {
        bench.announce(number).await;
        bench.find(number + 10, 7, false).await;
    }
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[1, 2, 3, 4]));
    assert_eq!(bench.order(Lane::Backfill).await, blobs(&[11, 12, 13, 14]));
    let claims = bench.claims(Lane::Fresh, 3).await;
    for (claim, seconds) in claims.into_iter().zip([30, 10, 20]) {
        bench.retry_in(claim, seconds).await;
    }
    bench.subject.restart().await;
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[4]));
    bench.subject.restart().await;
    bench.clock.advance(20);
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[2, 3, 4]));
    bench.subject.restart().await;
    bench.clock.advance(10);
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[2, 3, 1, 4]));
    bench.subject.restart().await;
    assert_eq!(bench.order(Lane::Backfill).await, blobs(&[11, 12, 13, 14]));
    // At most `max`.
    assert_eq!(bench.claims(Lane::Backfill, 3).await.len(), 3);
    assert!(bench.claims(Lane::Backfill, 0).await.is_empty());
}

pub(crate) async fn retries_hold_up_no_ready_entry(make: Make) {
    let bench = Bench::new(make).await;
    for number in 1..=20 {
        bench.announce(number).await;
    }
    for claim in bench.claims(Lane::Fresh, 20).await {
        bench.retry_in(claim, 0).await;
    }
    for number in 21..=24 {
        bench.announce(number).await;
    }
    // Each order knows its own.
    assert_eq!(bench.claims_in(ClaimOrder::Oldest, 100).await, blobs(&[21, 22, 23, 24]));
    assert_eq!(bench.claims_in(ClaimOrder::Due, 3).await, blobs(&[1, 2, 3]));
    assert_eq!(bench.claims(Lane::Fresh, 100).await.len(), 24);
}

pub(crate) async fn new_ones_are_claimed_from_anywhere(make: Make) {
    let mut bench = Bench::new(make).await;
    for number in 1..=9 {
        bench.announce(number).await;
    }
    let seqs: Vec<Seq> = bench.claims(Lane::Fresh, 9).await.iter().map(|claim| claim.entry().seq).collect();
    let (first, seventh, last) = (seqs[0], seqs[6], seqs[8]);
    for (order, max, found) in [
        (ClaimOrder::Newest, 3, &[9, 8, 7][..]),
        (ClaimOrder::After(seventh), 9, &[8, 9]),
        (ClaimOrder::Before(seventh), 2, &[6, 5]),
        (ClaimOrder::After(last), 9, &[]),
        (ClaimOrder::Before(first), 9, &[]),
        (ClaimOrder::From(0.0), 2, &[1, 2]),
        (ClaimOrder::Oldest, 2, &[1, 2]),
    ] {
        bench.subject.restart().await;
        assert_eq!(bench.claims_in(order, max).await, blobs(found), "{order:?}");
    }
    bench.subject.restart().await;
    let late = bench.claims_in(ClaimOrder::From(0.9), 9).await;
    assert!(!late.is_empty() && late.len() < 4 && late.last() == Some(&blob(9)), "{late:?}");

    // A hole is passed by, from either side; who is put back is first at the head, and nowhere else.
    bench.subject.restart().await;
    let mut holes = bench.queue().claim(bench.request(ClaimOrder::Before(seventh), 2)).await.unwrap().claims;
    assert_eq!(bench.claims_in(ClaimOrder::Newest, 9).await, blobs(&[9, 8, 7, 4, 3, 2, 1]));
    bench.subject.restart().await;
    drop(holes);
    holes = bench.queue().claim(bench.request(ClaimOrder::Before(seventh), 2)).await.unwrap().claims;
    bench.settle(holes.pop().unwrap(), confirmed()).await;
    drop(holes);
    assert_eq!(bench.claims_in(ClaimOrder::Before(last), 9).await, blobs(&[8, 7, 4, 3, 2, 1]));
    bench.subject.restart().await;
    drop(bench.queue().claim(bench.request(ClaimOrder::Before(last), 1)).await.unwrap());
    assert_eq!(bench.claims_in(ClaimOrder::Oldest, 3).await, blobs(&[8, 1, 2]));
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[1, 2, 8, 3, 4, 6, 7, 9]));
}

pub(crate) async fn the_next_due_time_is_told(make: Make) {
    let bench = Bench::new(make).await;
    let next = async |max| bench.queue().claim(bench.request(ClaimOrder::Due, max)).await.unwrap().next_due;
    assert_eq!(next(9).await, None);
    for number in 1..=3 {
        bench.announce(number).await;
    }
    assert_eq!(next(9).await, None, "new ones are not due at any time");
    for (claim, seconds) in bench.claims(Lane::Fresh, 3).await.into_iter().zip([0, 60, 30]) {
        bench.retry_in(claim, seconds).await;
    }
    assert_eq!(next(9).await, Some(bench.clock.now() + Duration::from_secs(30)));
    assert_eq!(next(1).await, None, "there may be more that is due");
    bench.clock.advance(60);
    assert_eq!(next(9).await, None);
}

pub(crate) async fn weights_add_up_until_forgiven(make: Make) {
    let mut bench = Bench::new(make).await;
    bench.announce(1).await;
    for weight in [0, 250, 1000] {
        let due = bench.clock.now();
        let outcome = Outcome::Retry { due, failure: failure(&bench.clock), weight: Weight(weight) };
        bench.settle(bench.claim(Lane::Fresh).await, outcome).await;
        bench.subject.restart().await;
    }
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!((claim.entry().attempts, claim.entry().weight), (3, Weight(1250)));
    bench.park(claim).await;
    assert_eq!(bench.announce(1).await, Pushed::Revived);
    assert_eq!(bench.claim(Lane::Fresh).await.entry().weight, Weight(0));
}

pub(crate) async fn clock_going_back_changes_no_order(make: Make) {
    let bench = Bench::new(make).await;
    bench.announce(1).await;
    bench.clock.go_back(5000);
    bench.announce(2).await;
    bench.clock.advance(100);
    bench.announce(3).await;
    bench.clock.go_back(10_000);
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[1, 2, 3]));
    // What is read already does not hide what is due earlier.
    bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
    bench.clock.go_back(100);
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(claim.entry().blob, blob(2));
    bench.retry_in(claim, 0).await;
    assert_eq!(bench.claims_in(ClaimOrder::Due, 9).await, blobs(&[2]), "1 is due in 100 s");
    assert_eq!(bench.claims_in(ClaimOrder::Oldest, 9).await, blobs(&[3]));
}

pub(crate) async fn far_due_times_are_due(make: Make) {
    let bench = Bench::new(make).await;
    bench.announce(1).await;
    bench.announce(2).await;
    let far = MAX_BACKOFF.as_secs();
    bench.retry_in(bench.claim(Lane::Fresh).await, far).await;
    bench.retry_in(bench.claim(Lane::Fresh).await, far + 1).await;
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[2]));
    // The clock went back: both are further ahead than anything may be.
    bench.clock.go_back(60);
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[2, 1]));
}

pub(crate) async fn counts_follow_every_state(make: Make) {
    let mut bench = Bench::new(make).await;
    let sized = |number, size| Push { size, ..announced(bench.route, number) };
    let pushes = vec![sized(1, Some(10)), sized(2, None), sized(3, Some(30)), sized(4, Some(40)), sized(5, None)];
    bench.queue().push(pushes, Vec::new()).await.unwrap();
    bench.find(6, 7, false).await;
    let tally = |entries, bytes, unknown_size| Tally { entries, bytes, unknown_size };
    assert_eq!(bench.counts().fresh.ready, tally(5, 80, 2));
    assert_eq!(bench.counts().backfill.ready, tally(1, 100, 0));

    let mut claims = bench.claims(Lane::Fresh, 4).await;
    assert_eq!(bench.counts().fresh.ready, tally(1, 0, 1));
    assert_eq!(bench.counts().fresh.claimed, tally(4, 80, 1));
    drop(claims.pop());
    assert_eq!(bench.counts().fresh.claimed, tally(3, 40, 1));
    bench.park(claims.pop().unwrap()).await;
    bench.retry_in(claims.pop().unwrap(), 0).await;
    // The verified size counts for what was copied, the announced one for what was queued.
    bench.settle(claims.pop().unwrap(), Outcome::Confirmed { size: 11, copied: true, chained: vec![] }).await;
    let expected = |counts: RouteCounts| {
        assert_eq!(counts.fresh.ready, tally(2, 40, 1));
        assert_eq!(counts.fresh.claimed, tally(0, 0, 0));
        assert_eq!(counts.fresh.retrying, tally(1, 0, 1));
        assert_eq!(counts.fresh.parked, tally(1, 30, 0));
        assert_eq!((counts.confirmed, counts.copied, counts.copied_bytes, counts.discarded), (1, 1, 11, 0));
    };
    expected(bench.counts());
    bench.subject.restart().await;
    expected(bench.counts());

    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(claim.entry().blob, blob(2));
    assert_eq!(bench.counts().fresh.claimed, tally(1, 0, 1));
    assert_eq!(bench.counts().fresh.retrying, tally(0, 0, 0));
    bench.settle(claim, Outcome::Discard).await;
    let claim = bench.claim(Lane::Fresh).await;
    bench.settle(claim, Outcome::Confirmed { size: 40, copied: false, chained: vec![] }).await;
    let counts = bench.counts();
    assert_eq!((counts.confirmed, counts.copied, counts.copied_bytes, counts.discarded), (2, 1, 11, 1));
    assert_eq!(bench.states(), [2, 0, 0, 1]);
    // In its new lane, it counts there.
    bench.announce(6).await;
    assert_eq!(bench.counts().backfill.ready, tally(0, 0, 0));
    assert_eq!(bench.counts().fresh.ready, tally(2, 100, 1));
}

pub(crate) async fn sync_tallies_follow_every_state(make: Make) {
    let mut bench = Bench::new(make).await;
    assert_eq!(bench.tally(7), SyncTally::default());
    for number in 1..=4 {
        bench.find(number, 7, false).await;
    }
    bench.announce(5).await;
    bench.find(5, 7, false).await;
    assert_eq!(bench.tally(7).pending, 5);
    let mut claims = bench.claims(Lane::Backfill, 4).await;
    bench.settle(claims.pop().unwrap(), Outcome::Discard).await;
    bench.park(claims.pop().unwrap()).await;
    bench.retry_in(claims.pop().unwrap(), 0).await;
    bench.settle(claims.pop().unwrap(), confirmed()).await;
    assert_eq!(bench.tally(7), SyncTally { pending: 2, confirmed: 1, parked: 1, discarded: 1 });
    bench.subject.restart().await;
    assert_eq!(bench.tally(7), SyncTally { pending: 2, confirmed: 1, parked: 1, discarded: 1 });
    // The next sync takes it over.
    assert_eq!(bench.find(3, 8, false).await, Pushed::Revived);
    assert_eq!(bench.tally(7), SyncTally { pending: 2, confirmed: 1, parked: 0, discarded: 1 });
    assert_eq!(bench.tally(8).pending, 1);
}

pub(crate) async fn state_is_written_with_the_push(make: Make) {
    let mut bench = Bench::with_limit(make, 1).await;
    let write = |key: &str, value: Option<&[u8]>| StateWrite { key: key.to_owned(), value: value.map(<[u8]>::to_vec) };
    let both = vec![write("sync/1", Some(b"one")), write("sync/2", Some(b"two"))];
    bench.queue().push(vec![announced(bench.route, 1)], both).await.unwrap();
    let refused = bench.queue().push(vec![announced(bench.route, 2)], vec![write("sync/1", None)]).await;
    assert!(matches!(refused, Err(QueueError::Full { limit: 1 })));
    bench.subject.restart().await;
    let queue = bench.queue();
    assert_eq!(queue.get("sync/1").await.unwrap().unwrap(), b"one");
    assert_eq!(queue.get("sync/3").await.unwrap(), None);
    queue
        .write(vec![write("sync/3", Some(b"")), write("t", Some(b"t")), write("sync/3", Some(b"three"))])
        .await
        .unwrap();
    queue.write(vec![write("sync/2", None)]).await.unwrap();
    let listed = queue.list("sync/", 9).await.unwrap();
    assert_eq!(listed, [("sync/3".to_owned(), b"three".to_vec()), ("sync/1".to_owned(), b"one".to_vec())]);
    assert_eq!(queue.list("sync/", 1).await.unwrap().len(), 1);
    // With what every new route has.
    assert_eq!(queue.list("", 9).await.unwrap().len(), 4);
    assert_eq!(queue.list(SYNC_NEEDED, 9).await.unwrap()[0].0, "on_start/a_to_b");
    assert!(queue.list("u", 9).await.unwrap().is_empty());
}

pub(crate) async fn settling_pushes_the_next_hops(make: Make) {
    let mut bench = Bench::with_limit(make, 1).await;
    let next = bench.queue().register("b_to_c", "b", "c").await.unwrap();
    bench.announce(1).await;
    let claim = bench.claim(Lane::Fresh).await;
    let hop = |number| Push {
        origin: Origin::Chained,
        visited: vec![Arc::from("a"), Arc::from("b")],
        ..announced(next, number)
    };
    // The limit is not theirs.
    let chained = vec![hop(1), hop(1), hop(2)];
    bench.settle(claim, Outcome::Confirmed { size: 100, copied: true, chained }).await;
    bench.subject.restart().await;
    assert_eq!(bench.counts().confirmed, 1);
    assert_eq!(bench.states(), [0; 4]);
    let claims = claim_any(bench.queue(), next, Lane::Fresh, 9, bench.clock.now()).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.entry().blob).collect::<Vec<_>>(), blobs(&[1, 2]));
    assert_eq!(claims[0].entry().visited, [Arc::from("a"), Arc::from("b")]);
}

pub(crate) async fn ids_of_ended_syncs_leave_the_entry(make: Make) {
    let mut bench = Bench::new(make).await;
    for sync in 1..=20 {
        bench.find(1, sync, false).await;
        bench.park(bench.claim(Lane::Backfill).await).await;
    }
    bench.subject.restart().await;
    for sync in 1..20 {
        assert_eq!(bench.tally(sync), SyncTally::default(), "{sync}");
    }
    assert_eq!(bench.tally(20), SyncTally { parked: 1, ..SyncTally::default() });
    bench.announce(1).await;
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(claim.entry().syncs, [SyncId(20)]);
    // Of two that become one, the newest counts.
    bench.find(1, 21, true).await;
    bench.retry_in(claim, 0).await;
    assert_eq!((bench.tally(20), bench.tally(21).pending), (SyncTally::default(), 1));
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    assert_eq!(bench.tally(21), SyncTally { confirmed: 1, ..SyncTally::default() });
}

pub(crate) async fn one_ref_twice_in_a_push(make: Make) {
    let mut bench = Bench::new(make).await;
    let route = bench.route;
    let pushes = vec![found(route, 1, 7, false), announced(route, 1), found(route, 1, 8, true), announced(route, 2)];
    let pushed = bench.queue().push(pushes, vec![]).await.unwrap();
    assert_eq!(pushed, [Pushed::Added, Pushed::AlreadyQueued, Pushed::AlreadyQueued, Pushed::Added]);
    assert_eq!(bench.states(), [2, 0, 0, 0]);
    bench.subject.restart().await;
    let claims = bench.claims(Lane::Fresh, 9).await;
    assert_eq!(claims.len(), 2);
    assert_eq!(claims[0].entry().syncs, [SyncId(8)]);
    assert!(claims[0].entry().repair);
    // And with the settlement that ends it.
    let chained = Push { origin: Origin::Chained, ..announced(route, 1) };
    let mut claims = claims.into_iter();
    let outcome = Outcome::Confirmed { size: 100, copied: true, chained: vec![chained.clone(), chained] };
    bench.settle(claims.next().unwrap(), outcome).await;
    assert_eq!(bench.order(Lane::Fresh).await, blobs(&[1]));
}

pub(crate) async fn routes_are_apart(make: Make) {
    let bench = Bench::new(make).await;
    let other = bench.queue().register("a_to_c", "a", "c").await.unwrap();
    let pushes = vec![announced(bench.route, 1), announced(other, 1), announced(other, 2)];
    assert_eq!(bench.queue().push(pushes, vec![]).await.unwrap(), [Pushed::Added; 3]);
    bench.park(bench.claim(Lane::Fresh).await).await;
    assert!(bench.claims(Lane::Fresh, 9).await.is_empty());
    assert_eq!(bench.states(), [0, 0, 0, 1]);
    let counts = bench.queue().counts(other);
    assert_eq!((counts.fresh.ready.entries, counts.fresh.parked.entries), (2, 0));
    let claims = claim_any(bench.queue(), other, Lane::Fresh, 9, bench.clock.now()).await.unwrap();
    assert_eq!(claims.iter().map(|claim| claim.entry().blob).collect::<Vec<_>>(), blobs(&[1, 2]));
}

pub(crate) async fn routes_keep_their_stores(make: Make) {
    let mut bench = Bench::new(make).await;
    let other = bench.queue().register("other", "a", "b").await.unwrap();
    assert_ne!(other, bench.route);
    bench.subject.restart().await;
    assert_eq!(bench.queue().register("a_to_b", "a", "b").await.unwrap(), bench.route);
    let changed = bench.queue().register("a_to_b", "b", "a").await;
    let Err(QueueError::RouteChanged { name, known, now }) = changed else { panic!("{changed:?}") };
    assert_eq!((name.as_str(), known.as_str(), now.as_str()), ("a_to_b", "a -> b", "b -> a"));
}

pub(crate) async fn subscribers_are_woken(make: Make) {
    let bench = Bench::new(make).await;
    let mut watch = bench.queue().subscribe(bench.route);
    let mut woken = || {
        let changed = watch.has_changed().unwrap();
        watch.mark_unchanged();
        changed
    };
    assert!(!woken());
    bench.announce(1).await;
    assert!(woken());
    let claim = bench.claim(Lane::Fresh).await;
    woken();
    drop(claim);
    assert!(woken());
    bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
    assert!(woken());
    let claim = bench.claim(Lane::Fresh).await;
    bench.announce(1).await;
    woken();
    bench.settle(claim, confirmed()).await;
    assert!(woken());
}

pub(crate) async fn failures_keep_their_history(make: Make) {
    let mut bench = Bench::new(make).await;
    bench.announce(1).await;
    let started = bench.clock.now();
    for _ in 0..3 {
        bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
        bench.clock.advance(10);
    }
    bench.subject.restart().await;
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(claim.entry().attempts, 3);
    let failure = claim.entry().failure.clone().unwrap();
    assert_eq!((failure.count, failure.first), (3, started));
    assert_eq!(failure.last, started + Duration::from_secs(20));
    assert_eq!((failure.kind, failure.code), (FaultKind::MissingAtSource, Some(tonic::Code::NotFound)));
    assert_eq!((failure.peer.as_str(), failure.message.as_str()), ("a", "no such blob"));
}

pub(crate) async fn misses_are_served_not_elapsed(make: Make) {
    let mut bench = Bench::new(make).await;
    bench.announce(1).await;
    let misses = async |bench: &Bench| bench.claim(Lane::Fresh).await.entry().misses;
    for served in [0, 10, 20] {
        bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
        assert_eq!(misses(&bench).await.lasted, Duration::from_secs(served));
        bench.clock.advance(10);
    }
    // An outage, in which nobody asked, counts as the longest backoff.
    bench.clock.advance(1 << 30);
    bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
    assert_eq!(misses(&bench).await, Misses { count: 4, lasted: Duration::from_secs(20) + MAX_BACKOFF });
    // Another fault between two misses ends the stretch, and is none.
    let short = Failure { kind: FaultKind::ShortRead, ..failure(&bench.clock) };
    let due = bench.clock.now();
    bench.settle(bench.claim(Lane::Fresh).await, Outcome::Retry { due, failure: short, weight: Weight::ONE }).await;
    bench.clock.advance(10);
    bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
    bench.subject.restart().await;
    let claim = bench.claim(Lane::Fresh).await;
    let lasted = Duration::from_secs(20) + MAX_BACKOFF;
    assert_eq!((claim.entry().attempts, claim.entry().misses), (6, Misses { count: 5, lasted }));
    // Whoever revives it forgives them.
    bench.park(claim).await;
    bench.announce(1).await;
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!((claim.entry().attempts, claim.entry().misses), (0, Misses::default()));
}

pub(crate) async fn oldest_is_told(make: Make) {
    let bench = Bench::new(make).await;
    let oldest = async || bench.queue().oldest(bench.route).await.unwrap();
    assert_eq!(oldest().await, Oldest::default());
    let start = bench.clock.now();
    let after = |seconds| start + Duration::from_secs(seconds);
    bench.announce(1).await;
    bench.clock.advance(10);
    bench.announce(2).await;
    bench.find(3, 7, false).await;
    let expected = Oldest { fresh: Some(start), backfill: Some(after(10)), ..Oldest::default() };
    assert_eq!(oldest().await, expected);
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(oldest().await, expected);
    bench.retry_in(claim, 60).await;
    let retrying = Oldest { fresh: Some(after(10)), retrying: Some(start), next_due: Some(after(70)), ..expected };
    assert_eq!(oldest().await, retrying);
    drop(bench.claim(Lane::Fresh).await);
    assert_eq!(oldest().await.fresh, Some(after(10)));
    bench.park(bench.claim(Lane::Fresh).await).await;
    assert_eq!(oldest().await, Oldest { fresh: None, parked: Some(after(10)), ..retrying });
    // The one that is parked later was pushed before, and has another cause.
    bench.clock.advance(60);
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(oldest().await.retrying, None, "it is claimed");
    let short = Failure { kind: FaultKind::ShortRead, ..failure(&bench.clock) };
    bench.settle(claim, Outcome::Park { failure: short, weight: Weight::ONE }).await;
    assert_eq!(oldest().await, Oldest { fresh: None, parked: Some(start), ..expected });
    bench.announce(2).await;
    assert_eq!(oldest().await.parked, Some(start));
    bench.retry_in(bench.claim(Lane::Fresh).await, 60).await;
    bench.clock.advance(1);
    // Further ahead than anything may be is now.
    bench.clock.go_back(MAX_BACKOFF.as_secs());
    assert_eq!(oldest().await.next_due, Some(bench.clock.now()));
}

pub(crate) async fn sequences_are_never_used_twice(make: Make) {
    let mut bench = Bench::new(make).await;
    let mut last = None;
    for number in 0..5 {
        bench.announce(number).await;
        let claim = bench.claim(Lane::Fresh).await;
        assert!(last < Some(claim.entry().seq));
        last = Some(claim.entry().seq);
        bench.settle(claim, confirmed()).await;
        bench.subject.restart().await;
    }
}

pub(crate) async fn unknown_routes_are_refused_whole(make: Make) {
    let bench = Bench::new(make).await;
    let pushes = vec![announced(bench.route, 1), announced(RouteId(99), 1)];
    assert!(matches!(bench.queue().push(pushes.clone(), vec![]).await, Err(QueueError::Read(_))));
    assert_eq!(bench.states(), [0; 4]);
    bench.announce(2).await;
    let outcome = Outcome::Confirmed { size: 100, copied: true, chained: pushes };
    let settled = bench.queue().settle(vec![(bench.claim(Lane::Fresh).await, outcome)]).await;
    assert!(matches!(settled, Err(QueueError::Read(_))));
    // Released, and nothing else.
    assert_eq!(bench.states(), [1, 0, 0, 0]);
    assert_eq!(bench.counts().confirmed, 0);
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    assert_eq!(bench.states(), [0; 4]);
}
