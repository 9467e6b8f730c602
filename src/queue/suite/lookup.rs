//! What every queue must know of a blob that it is asked for.

use super::{Bench, Make, announced, blob, confirmed, failure};
use crate::blob::{BlobRef, RefPrefix};
use crate::fault::FaultKind;
use crate::queue::failures::Remedy;
use crate::queue::lookup::{Completion, DiscardedBy, Ending, Enqueued, Known, Standing};
use crate::queue::{Lane, Origin, Outcome, Push, RouteId, Seq};
use std::collections::BTreeSet;

impl Bench {
    async fn known(&self, number: u64) -> Known {
        self.known_on(self.route, number).await
    }

    async fn known_on(&self, route: RouteId, number: u64) -> Known {
        let mut known = self.queue().look_up(vec![(route, blob(number))]).await.unwrap();
        assert_eq!(known.len(), 1);
        known.remove(0)
    }

    async fn standing(&self, number: u64) -> Option<Standing> {
        self.known(number).await.queued.map(|queued| queued.standing)
    }
}

pub(crate) async fn blobs_are_looked_up_in_every_state(make: Make) {
    let mut bench = Bench::new(make).await;
    assert_eq!(bench.known(1).await, Known::default());
    bench.announce(1).await;
    let known = bench.known(1).await;
    let queued = known.queued.clone().unwrap();
    assert_eq!((queued.standing, queued.entry.blob, queued.entry.size), (Standing::Ready, blob(1), Some(100)));
    assert_eq!((known.successor, known.completion), (None, None));

    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(bench.standing(1).await, Some(Standing::Claimed));
    bench.announce(1).await;
    let successor = bench.known(1).await.successor.unwrap();
    assert!(successor.seq > claim.entry().seq);
    drop(claim);
    assert_eq!(bench.standing(1).await, Some(Standing::Ready), "a released one waits again");

    let claim = bench.claim(Lane::Fresh).await;
    bench.retry_in(claim, 60).await;
    let known = bench.known(1).await;
    assert_eq!(known.queued.as_ref().unwrap().standing, Standing::Retrying);
    assert_eq!(known.queued.unwrap().entry.failure, Some(failure(&bench.clock)));
    assert_eq!(known.successor, None, "it was merged");
    let claim = bench.claim(Lane::Fresh).await;
    assert_eq!(bench.standing(1).await, Some(Standing::Claimed));
    bench.park(claim).await;
    assert_eq!(bench.standing(1).await, Some(Standing::Parked));

    // A successor takes over when the first was confirmed; it never failed.
    bench.announce(2).await;
    let claim = bench.claim(Lane::Fresh).await;
    bench.announce(2).await;
    bench.settle(claim, confirmed()).await;
    let known = bench.known(2).await;
    assert_eq!((known.queued.unwrap().standing, known.successor), (Standing::Ready, None));
    assert!(known.completion.is_some());

    bench.subject.restart().await;
    assert_eq!(bench.standing(1).await, Some(Standing::Parked));
    assert_eq!(bench.standing(2).await, Some(Standing::Ready));
    // In the order asked, unknown ones and another route's among them.
    let other = bench.queue().register("a_to_c", "a", "c").await.unwrap();
    let asked = vec![(bench.route, blob(3)), (bench.route, blob(2)), (other, blob(2)), (bench.route, blob(1))];
    let found: Vec<bool> = bench.queue().look_up(asked).await.unwrap().iter().map(|one| one.queued.is_some()).collect();
    assert_eq!(found, [false, true, false, true]);
}

pub(crate) async fn completions_are_remembered(make: Make) {
    let mut bench = Bench::new(make).await;
    for number in 1..=4 {
        bench.announce(number).await;
    }
    let began = bench.clock.now();
    let claims = bench.claims(Lane::Fresh, 3).await;
    let outcomes = [
        Outcome::Confirmed { size: 101, copied: true, chained: Vec::new() },
        Outcome::Confirmed { size: 102, copied: false, chained: Vec::new() },
        Outcome::Discard,
    ];
    bench.clock.advance(5);
    bench.queue().settle(claims.into_iter().zip(outcomes).collect()).await.unwrap();
    let at = bench.clock.now();
    bench.park(bench.claim(Lane::Fresh).await).await;
    let seq = bench.known(4).await.queued.unwrap().entry.seq;
    assert_eq!(bench.known(4).await.completion, None, "parked is not over");
    bench.queue().remedy(bench.route, vec![seq], Remedy::Discard).await.unwrap();

    let enqueued = || Some(Enqueued { time: began, traceparent: String::new() });
    let discarded = |by, cause| Ending::Discarded { by, cause };
    let expected = [
        Ending::Confirmed { size: 101, copied: true },
        Ending::Confirmed { size: 102, copied: false },
        discarded(DiscardedBy::Configuration, None),
        discarded(DiscardedBy::Operator, Some(FaultKind::MissingAtSource)),
    ];
    for round in 0..2 {
        for (number, ending) in (1..).zip(expected) {
            let known = bench.known(number).await;
            assert_eq!(known.completion, Some(Completion { time: at, ending, enqueued: enqueued() }), "round {round}");
            assert_eq!(known.queued, None);
        }
        bench.subject.restart().await;
    }

    // Queued anew, the old completion is still told; then the new one holds.
    bench.announce(3).await;
    let known = bench.known(3).await;
    assert_eq!(known.completion, Some(Completion { time: at, ending: expected[2], enqueued: enqueued() }));
    let again = bench.clock.now();
    assert_eq!(known.queued.unwrap().standing, Standing::Ready);
    bench.clock.advance(5);
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    let completion = Completion {
        time: bench.clock.now(),
        ending: Ending::Confirmed { size: 100, copied: true },
        enqueued: Some(Enqueued { time: again, traceparent: String::new() }),
    };
    assert_eq!(bench.known(3).await.completion, Some(completion));
}

pub(crate) async fn blobs_are_found_by_the_beginning_of_their_refs(make: Make) {
    let mut bench = Bench::new(make).await;
    for number in 1..=4 {
        bench.announce(number).await;
    }
    let other = bench.queue().register("a_to_c", "a", "c").await.unwrap();
    bench.queue().push(vec![announced(other, 5)], Vec::new()).await.unwrap();
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    let seq = bench.known(2).await.queued.unwrap().entry.seq;
    bench.park(bench.claim(Lane::Fresh).await).await;
    bench.queue().remedy(bench.route, vec![seq], Remedy::Discard).await.unwrap();
    let (claimed, routes) = (bench.claim(Lane::Fresh).await, vec![bench.route, other]);
    let prefix =
        |number: u64, digits: usize| RefPrefix::parse(&blob(number).to_string()[.."sha256-".len() + digits]).unwrap();
    for round in 0..2 {
        // Confirmed, discarded, claimed or released, waiting, and on another route.
        for number in 1..=5 {
            for digits in [8, 9, 63] {
                let found = bench.queue().find(routes.clone(), prefix(number, digits), 3).await.unwrap().unwrap();
                assert_eq!(found, BTreeSet::from([blob(number)]), "round {round}, blob {number}");
            }
        }
        assert!(bench.queue().find(routes.clone(), prefix(6, 8), 3).await.unwrap().unwrap().is_empty());
        assert!(bench.queue().find(vec![bench.route], prefix(5, 8), 3).await.unwrap().unwrap().is_empty());
        if round == 0 {
            bench.subject.restart().await;
        }
    }
    drop(claimed);
    // Several begin so: a few are told, of those that are queued and those that are remembered.
    let twin = |last: u8| {
        let mut digest = *blob(1).digest().first_chunk::<32>().unwrap();
        digest[31] ^= last;
        BlobRef::new(blob(1).function(), &digest).unwrap()
    };
    let pushes = (1..=5).map(|last| Push { blob: twin(last), ..announced(bench.route, 1) }).collect();
    bench.queue().push(pushes, Vec::new()).await.unwrap();
    assert_eq!(bench.queue().find(routes.clone(), prefix(1, 62), 3).await.unwrap().unwrap().len(), 3);
    let all = bench.queue().find(routes, prefix(1, 62), 100).await.unwrap().unwrap();
    assert_eq!(all, (0..=5).map(twin).collect());
}

pub(crate) async fn no_gap_shows_between_two_hops(make: Make) {
    let bench = Bench::new(make).await;
    let onward = bench.queue().register("b_to_c", "b", "c").await.unwrap();
    bench.announce(1).await;
    let next = Push { origin: Origin::Chained, ..announced(onward, 1) };
    let outcome = Outcome::Confirmed { size: 100, copied: true, chained: vec![next] };
    bench.settle(bench.claim(Lane::Fresh).await, outcome).await;
    let known = bench.queue().look_up(vec![(bench.route, blob(1)), (onward, blob(1))]).await.unwrap();
    assert!(known[0].queued.is_none() && known[0].completion.is_some());
    assert_eq!(known[1].queued.as_ref().unwrap().standing, Standing::Ready);
    assert!(known[1].completion.is_none());
}

pub(crate) async fn settlements_are_told(make: Make) {
    let bench = Bench::new(make).await;
    let mut told = bench.queue().settlements();
    for number in 1..=2 {
        bench.announce(number).await;
    }
    told.mark_unchanged();
    bench.settle(bench.claim(Lane::Fresh).await, confirmed()).await;
    assert!(told.has_changed().unwrap());
    told.mark_unchanged();
    bench.park(bench.claim(Lane::Fresh).await).await;
    assert!(told.has_changed().unwrap());
    told.mark_unchanged();
    let seq: Seq = bench.known(2).await.queued.unwrap().entry.seq;
    bench.queue().remedy(bench.route, vec![seq], Remedy::Discard).await.unwrap();
    assert!(told.has_changed().unwrap());
}
