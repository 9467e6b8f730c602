//! What every queue must do with failed entries.

use super::{Bench, Make, announced, blob, blobs, confirmed, failure};
use crate::fault::FaultKind;
use crate::queue::failures::{FailedEntry, FailedState, FailureFilter, Remedy};
use crate::queue::{Failure, Lane, Outcome, Pushed, RouteId, Seq, SyncTally, Weight, WholeQueue};
use std::time::Duration;

/// All failed entries that a filter admits, read in pages of this size.
pub(crate) async fn all_failures(
    queue: &dyn WholeQueue,
    route: RouteId,
    filter: FailureFilter,
    page: usize,
) -> Vec<FailedEntry> {
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let read = queue.failures(route, filter, after, page).await.unwrap();
        assert!(read.failed.len() <= page);
        found.extend(read.failed);
        after = read.next;
        if after.is_none() {
            return found;
        }
    }
}

impl Bench {
    async fn failed(&self) -> Vec<FailedEntry> {
        all_failures(self.queue(), self.route, FailureFilter::default(), 100).await
    }

    async fn remedy(&self, seqs: &[Seq], remedy: Remedy) -> u64 {
        self.queue().remedy(self.route, seqs.to_vec(), remedy).await.unwrap()
    }

    async fn seqs(&self) -> Vec<Seq> {
        self.failed().await.iter().map(|failed| failed.entry.seq).collect()
    }
}

fn refs(failed: &[FailedEntry]) -> Vec<crate::blob::BlobRef> {
    failed.iter().map(|failed| failed.entry.blob).collect()
}

pub(crate) async fn failures_are_listed_in_pages(make: Make) {
    let mut bench = Bench::new(make).await;
    // 1 and 2 retry in the fresh lane, 3 in backfill; 4 and 5 are parked, 6 never failed.
    bench.announce(1).await;
    bench.retry_in(bench.claim(Lane::Fresh).await, 60).await;
    bench.announce(2).await;
    bench.retry_in(bench.claim(Lane::Fresh).await, 30).await;
    bench.find(3, 7, false).await;
    bench.retry_in(bench.claim(Lane::Backfill).await, 10).await;
    bench.announce(4).await;
    let short = Failure { kind: FaultKind::ShortRead, ..failure(&bench.clock) };
    bench.settle(bench.claim(Lane::Fresh).await, Outcome::Park { failure: short, weight: Weight::ONE }).await;
    bench.announce(5).await;
    bench.park(bench.claim(Lane::Fresh).await).await;
    bench.announce(6).await;
    let other = bench.queue().register("a_to_c", "a", "c").await.unwrap();
    bench.queue().push(vec![announced(other, 1)], vec![]).await.unwrap();

    for round in 0..2 {
        let list = async |filter, page| refs(&all_failures(bench.queue(), bench.route, filter, page).await);
        let all = FailureFilter::default();
        for page in [1, 2, 3, 100] {
            assert_eq!(list(all, page).await, blobs(&[2, 1, 3, 5, 4]), "round {round}, pages of {page}");
        }
        let parked = FailureFilter { state: Some(FailedState::Parked), ..all };
        assert_eq!(list(parked, 1).await, blobs(&[5, 4]));
        let retrying = FailureFilter { state: Some(FailedState::Retrying), ..all };
        assert_eq!(list(retrying, 2).await, blobs(&[2, 1, 3]));
        let missing = FailureFilter { kind: Some(FaultKind::MissingAtSource), ..all };
        assert_eq!(list(missing, 2).await, blobs(&[2, 1, 3, 5]));
        let short = FailureFilter { kind: Some(FaultKind::ShortRead), state: Some(FailedState::Parked) };
        assert_eq!(list(short, 2).await, blobs(&[4]));
        let asked = vec![blob(4), blob(9), blob(6), blob(1)];
        let found = bench.queue().failures_of(bench.route, asked).await.unwrap();
        assert_eq!(refs(&found), blobs(&[4, 1]));
        assert_eq!(found[0].state, FailedState::Parked);
        assert_eq!(found[1].entry.failure.as_ref().unwrap().count, 1);
        assert!(all_failures(bench.queue(), other, all, 9).await.is_empty());
        bench.subject.restart().await;
    }
    // Not while it is copied.
    bench.clock.advance(30);
    drop(bench.claims(Lane::Fresh, 9).await);
    assert_eq!(bench.failed().await.len(), 5);
    let claims = bench.claims(Lane::Fresh, 9).await;
    assert_eq!(refs(&bench.failed().await), blobs(&[1, 3, 5, 4]));
    let found = bench.queue().failures_of(bench.route, vec![blob(2)]).await.unwrap();
    assert!(found.is_empty(), "{found:?} {claims:?}");
}

pub(crate) async fn failures_are_revived(make: Make) {
    let mut bench = Bench::new(make).await;
    bench.announce(1).await;
    bench.retry_in(bench.claim(Lane::Fresh).await, 60).await;
    bench.find(2, 7, false).await;
    bench.park(bench.claim(Lane::Backfill).await).await;
    bench.announce(3).await;
    assert_eq!(bench.tally(7), SyncTally { parked: 1, ..SyncTally::default() });
    bench.clock.advance(5);
    let mut watch = bench.queue().subscribe(bench.route);
    let mut seqs = bench.seqs().await;
    seqs.push(Seq(u64::MAX));
    assert_eq!(bench.remedy(&seqs, Remedy::Revive).await, 2);
    assert!(watch.has_changed().unwrap());
    watch.mark_unchanged();
    // Again, there is nothing to do.
    assert_eq!(bench.remedy(&seqs, Remedy::Revive).await, 0);
    bench.subject.restart().await;
    assert_eq!(bench.states(), [1, 0, 2, 0]);
    assert_eq!(bench.tally(7), SyncTally { pending: 1, ..SyncTally::default() });
    for (lane, number) in [(Lane::Fresh, 1), (Lane::Backfill, 2)] {
        let claim = bench.claim(lane).await;
        let entry = claim.entry();
        assert_eq!((entry.blob, entry.attempts, entry.due_time), (blob(number), 0, bench.clock.now()));
        assert_eq!(entry.failure.as_ref().unwrap().count, 1);
        bench.settle(claim, confirmed()).await;
    }
    // Due already, it keeps its place; only its attempts are forgiven.
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    bench.announce(4).await;
    bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
    let due = bench.clock.now();
    bench.clock.advance(5);
    assert_eq!(bench.remedy(&bench.seqs().await, Remedy::Revive).await, 1);
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!((claim.entry().attempts, claim.entry().due_time), (0, due));
}

pub(crate) async fn failures_are_discarded(make: Make) {
    let mut bench = Bench::new(make).await;
    bench.announce(1).await;
    bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
    for number in [2, 3] {
        bench.find(number, 7, false).await;
        bench.park(bench.claim(Lane::Backfill).await).await;
    }
    bench.find(4, 7, false).await;
    // One that was claimed and released is discarded too.
    drop(bench.claim(Lane::Fresh).await);
    let seqs = bench.seqs().await;
    assert_eq!(bench.remedy(&seqs[..2], Remedy::Discard).await, 2);
    assert_eq!(bench.remedy(&seqs[..2], Remedy::Discard).await, 0);
    for _ in 0..2 {
        assert_eq!(bench.states(), [1, 0, 0, 1]);
        assert_eq!(bench.counts().discarded, 2);
        assert_eq!(bench.tally(7), SyncTally { pending: 1, parked: 1, discarded: 1, confirmed: 0 });
        assert!(bench.claims(Lane::Fresh, 9).await.is_empty());
        bench.subject.restart().await;
    }
    // Gone for good, until somebody announces it again.
    assert_eq!(bench.announce(1).await, Pushed::Added);
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    assert_eq!(bench.remedy(&bench.seqs().await, Remedy::Discard).await, 1);
    bench.settle(bench.claim(Lane::Backfill).await, confirmed()).await;
    assert_eq!(bench.tally(7), SyncTally { pending: 0, parked: 0, discarded: 2, confirmed: 1 });
    assert_eq!(bench.states(), [0; 4]);
}

pub(crate) async fn old_parked_entries_expire(make: Make) {
    let mut bench = Bench::new(make).await;
    bench.announce(1).await;
    bench.retry_in(bench.claim(Lane::Fresh).await, 60).await;
    for number in [2, 3] {
        bench.find(number, 7, false).await;
        bench.park(bench.claim(Lane::Backfill).await).await;
        bench.clock.advance(10);
    }
    let seqs = bench.seqs().await;
    // Parked 20 and 10 seconds ago: only the older one's time is over, and what will be tried again has none.
    let last = bench.clock.now() - Duration::from_secs(15);
    assert_eq!(bench.remedy(&seqs, Remedy::Expire(last)).await, 1);
    assert_eq!(bench.remedy(&seqs, Remedy::Expire(last)).await, 0);
    bench.subject.restart().await;
    assert_eq!(bench.states(), [0, 0, 1, 1]);
    assert_eq!((bench.counts().discarded, bench.tally(7).discarded), (1, 1));
    // One that was revived in the meantime is no more to be discarded.
    assert_eq!(bench.announce(3).await, Pushed::Revived);
    assert_eq!(bench.remedy(&seqs, Remedy::Expire(bench.clock.now())).await, 0);
    assert_eq!(bench.states(), [0, 0, 2, 0]);
}

pub(crate) async fn claimed_and_ready_entries_are_no_failures(make: Make) {
    let bench = Bench::new(make).await;
    bench.announce(1).await;
    bench.announce(2).await;
    let mut claims = bench.claims(Lane::Fresh, 2).await;
    let (two, one) = (claims.pop().unwrap(), claims.pop().unwrap());
    let (seq_two, seq_one) = (two.entry().seq, one.entry().seq);
    bench.retry_in(one, 0).await;
    let one = bench.claim(Lane::Fresh).await;
    drop(two);
    for remedy in [Remedy::Revive, Remedy::Discard] {
        assert_eq!(bench.remedy(&[seq_one, seq_two], remedy).await, 0);
    }
    assert_eq!(bench.states(), [1, 1, 0, 0]);
    bench.settle(one, confirmed()).await;
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    let counts = bench.counts();
    assert_eq!((counts.confirmed, counts.discarded), (2, 0));
    // Nor those of another route.
    let other = bench.queue().register("a_to_c", "a", "c").await.unwrap();
    bench.announce(3).await;
    bench.park(bench.claim(Lane::Fresh).await).await;
    let seqs = bench.seqs().await;
    assert_eq!(bench.queue().remedy(other, seqs, Remedy::Discard).await.unwrap(), 0);
    assert_eq!(bench.states(), [0, 0, 0, 1]);
}

pub(crate) async fn a_discarded_entry_makes_way_for_its_successor(make: Make) {
    for released in [false, true] {
        let mut bench = Bench::new(make).await;
        bench.announce(1).await;
        bench.retry_in(bench.claim(Lane::Fresh).await, 0).await;
        let first = bench.claim(Lane::Fresh).await;
        assert_eq!(bench.announce(1).await, Pushed::SuccessorQueued);
        if released {
            drop(first);
        } else {
            bench.subject.restart().await;
            drop(first);
        }
        let failed = bench.queue().failures_of(bench.route, vec![blob(1)]).await.unwrap();
        assert_eq!(failed.len(), 1);
        assert_eq!(bench.remedy(&[failed[0].entry.seq], Remedy::Discard).await, 1);
        assert_eq!(bench.states(), [1, 0, 0, 0]);
        bench.clock.advance(Duration::from_secs(1).as_secs());
        let second = bench.claim(Lane::Fresh).await;
        assert_eq!((second.entry().blob, second.entry().attempts), (blob(1), 0));
        assert!(second.entry().failure.is_none());
        bench.settle(second, confirmed()).await;
        assert_eq!(bench.states(), [0; 4]);
    }
}
