//! Packs: what travels together and what does not, and that everything that holds for single blobs holds for them.

use super::Lab;
use crate::blob::BlobRef;
use crate::limits::{BlobRate, Limits};
use crate::queue::failures::{FailedState, FailureFilter, Failures};
use crate::queue::suite::claim_any;
use crate::queue::{Lane, Push, Queue};
use crate::store::faulty::Trouble;
use crate::telemetry::TraceContext;
use crate::worker::scheduler::PACK_ITEMS;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::Code;

impl Lab {
    /// Writes and announces blobs with these numbers as their bytes, and their sizes.
    async fn announce_sized(&self, from: &str, numbers: std::ops::Range<u32>) -> Vec<BlobRef> {
        let mut pushes = Vec::new();
        for number in numbers {
            let blob = self.put(from, &number.to_be_bytes()).await;
            pushes.push(Push { size: Some(4), ..self.a_push(blob) });
        }
        let blobs = pushes.iter().map(|push| push.blob).collect();
        self.queue.push(pushes, Vec::new()).await.unwrap();
        blobs
    }
}

fn packs(lab: &Lab) -> [u64; 2] {
    ["a", "b"].map(|name| lab.place(name).faulty.packs())
}

#[tokio::test(start_paused = true)]
async fn a_backlog_of_small_blobs_travels_in_packs() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.announce_sized("a", 0..10_000).await;
    lab.start();
    lab.drain().await;
    lab.stopped().await;
    assert_eq!(lab.place("b").memory.len(), 10_000);
    let few = 10_000 / PACK_ITEMS as u64 + 100;
    assert!(packs(&lab).iter().all(|packs| *packs < few), "{:?}", packs(&lab));
    assert_eq!((lab.place("a").faulty.fetches(), lab.place("b").faulty.receives()), (10_000, 10_000));
}

#[tokio::test(start_paused = true)]
async fn small_blobs_of_unknown_size_are_packed_as_if_they_were_the_largest() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.announce("a", 0..1_600).await;
    lab.start();
    lab.drain().await;
    lab.stopped().await;
    assert_eq!(lab.place("b").memory.len(), 1_600);
    assert!((100..200).contains(&packs(&lab)[0]), "{:?}", packs(&lab));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_cannot_pack_is_served_one_by_one() {
    for lacks in ["a", "b"] {
        let mut lab = Lab::new(&[("a", "b")]).await;
        lab.cannot_pack(lacks).await;
        lab.announce_sized("a", 0..500).await;
        lab.start();
        lab.drain().await;
        lab.stopped().await;
        assert_eq!((lab.place("b").memory.len(), packs(&lab)), (500, [0, 0]));
    }
}

#[tokio::test(start_paused = true)]
async fn large_blobs_of_unknown_size_are_found_out_and_go_alone() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let mut blobs = Vec::new();
    for number in 0..200u8 {
        let size = if number % 2 == 0 { 70_000 } else { 60_000 };
        blobs.push(lab.put("a", &vec![number; size]).await);
    }
    lab.push("a", Lane::Fresh, &blobs).await;
    lab.start();
    lab.drain().await;
    lab.stopped().await;
    assert_eq!(lab.place("b").memory.len(), 200);
    assert!(lab.workers[0].report().errors.is_empty());
    let [fetched, received] = packs(&lab);
    assert!((1..100).contains(&received) && fetched < 100, "{fetched} {received}");
}

#[tokio::test(start_paused = true)]
async fn small_blobs_wait_for_no_large_ones() {
    for workers in [1, 4] {
        let mut lab = Lab::with(&[("a", "b")], workers, false).await;
        // More than there are workers for, all before the small ones, and none gets on.
        let mut large = Vec::new();
        for number in 0..100u8 {
            let bytes = vec![number; 100_000];
            let blob = lab.put("a", &bytes).await;
            lab.place("a").faulty.set_for(blob, Some(Trouble::Slow(Duration::from_hours(1))));
            large.push(Push { size: Some(100_000), ..lab.a_push(blob) });
        }
        lab.set_policy(|policy| policy.waits.idle = [Duration::from_hours(2); 2]);
        lab.queue.push(large, Vec::new()).await.unwrap();
        lab.announce_sized("a", 0..5_000).await;
        lab.start();
        let start = Instant::now();
        lab.until("the small ones are copied", |lab| lab.counts(0).confirmed == 5_000).await;
        assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
        let report = lab.workers[0].report();
        assert_eq!(report.in_progress.len(), workers, "large ones, one for each worker");
        lab.abort.cancel();
        lab.stopped().await;
        assert_eq!((lab.left(), lab.fresh(0).ready.entries), (100, 100));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_in_flight_hold_back_large_blobs_and_no_packs() {
    let mut lab = Lab::with(&[("a", "b")], 16, false).await;
    for worker in &mut lab.workers {
        let mut spec = worker.spec.clone();
        spec.bytes_in_flight = 12 << 20;
        *worker = super::Worker::new(spec, worker.deps.clone());
    }
    let mut large = Vec::new();
    for number in 0..10u8 {
        let blob = lab.put("a", &vec![number; 3 << 20]).await;
        lab.place("a").faulty.set_for(blob, Some(Trouble::Slow(Duration::from_secs(10))));
        large.push(Push { size: Some(3 << 20), ..lab.a_push(blob) });
    }
    lab.queue.push(large, Vec::new()).await.unwrap();
    lab.start();
    lab.until("two are copied at a time", |lab| lab.workers[0].report().in_progress.len() == 2).await;
    lab.announce_sized("a", 0..1000).await;
    let start = Instant::now();
    lab.until("the small ones are copied", |lab| lab.counts(0).confirmed >= 1000).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let start = Instant::now();
    lab.drain().await;
    assert!((40..60).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn packs_are_shown_as_what_they_are_and_are_bounded() {
    let mut lab = Lab::with(&[("a", "b")], 3, false).await;
    let blobs = lab.announce_sized("a", 0..5_000).await;
    lab.place("b").faulty.set(Some(Trouble::Hang));
    lab.start();
    lab.until("all workers are busy", |lab| lab.workers[0].report().in_progress.len() == 3).await;
    sleep(Duration::from_secs(1)).await;
    let copies = lab.workers[0].report().in_progress;
    // One that only waits for its confirmation is no worker's any more, up to three for each.
    assert!((3..=12).contains(&copies.len()), "{copies:?}");
    assert!(copies.iter().all(|copy| (1..=PACK_ITEMS as u64).contains(&copy.blobs)), "{copies:?}");
    let found = lab.workers[0].copy_of(blobs[1]).unwrap();
    assert!(found.blobs > 1 && found.blob != blobs[1]);
    assert!(lab.workers[0].copy_of(blobs[4_999]).is_none());
    // What is claimed ahead is bounded, too.
    assert!(lab.fresh(0).claimed.entries < 5_000, "{:?}", lab.fresh(0));
    lab.abort.cancel();
    let start = Instant::now();
    lab.stopped().await;
    assert!(start.elapsed() < Duration::from_secs(1));
    let fresh = lab.fresh(0);
    assert_eq!((fresh.claimed.entries, fresh.ready.entries, fresh.retrying.entries), (0, 5_000, 0));
    assert!(lab.workers[0].report().in_progress.is_empty());
}

#[tokio::test(start_paused = true)]
async fn stop_lets_packs_end_and_settles_them() {
    let mut lab = Lab::with(&[("a", "b")], 1, false).await;
    lab.announce_sized("a", 0..2_000).await;
    lab.place("a").faulty.set(Some(Trouble::Slow(Duration::from_millis(100))));
    lab.start();
    lab.until("a pack is in flight", |lab| lab.workers[0].report().in_progress.len() == 1).await;
    lab.stop.cancel();
    lab.stopped().await;
    let confirmed = lab.counts(0).confirmed;
    assert!((1..=PACK_ITEMS as u64).contains(&confirmed), "{confirmed}");
    assert_eq!(lab.fresh(0).ready.entries, 2_000 - confirmed);
    assert_eq!(lab.place("b").memory.len() as u64, confirmed);
}

/// Who is in a pack that breaks off is tried again, and nobody is charged; what was answered counts.
#[tokio::test(start_paused = true)]
async fn a_pack_that_is_cut_midway_charges_nobody() {
    for at in ["a", "b"] {
        let mut lab = Lab::new(&[("a", "b")]).await;
        lab.announce_sized("a", 0..500).await;
        lab.place(at).faulty.set_times(Trouble::CutPack(10), 3);
        lab.start();
        lab.drain().await;
        assert_eq!(lab.counts(0).confirmed, 500);
        let errors = lab.workers[0].report().errors;
        assert_eq!((&*errors[0].peer, errors[0].code, errors[0].charged), (at, Some(Code::Unavailable), 0));
        assert!(errors[0].count > 100, "each of its blobs: {errors:?}");
        assert!(lab.place("b").faulty.receives() < 500 + 3 * 10 + 10);
        lab.stopped().await;
    }
}

/// A blob on whose account every pack that it is in breaks off must not take the others down with it.
#[tokio::test(start_paused = true)]
async fn whoever_shared_a_pack_with_a_poison_blob_is_not_parked_with_it() {
    for poison in [Trouble::Hang, Trouble::CutPack(0)] {
        let mut lab = Lab::new(&[("a", "b")]).await;
        let blobs = lab.announce_sized("a", 0..300).await;
        lab.place("a").faulty.set_for(blobs[0], Some(poison.clone()));
        lab.start();
        let others = if poison == Trouble::Hang { 299 } else { 300 };
        lab.until("the others are copied", |lab| lab.counts(0).confirmed == others).await;
        let mut number = 300;
        while poison == Trouble::Hang && lab.fresh(0).parked.entries == 0 {
            lab.announce_sized("a", number..number + 1).await;
            number += 1;
            sleep(Duration::from_secs(10)).await;
            assert!(number < 2000, "{:?}", lab.counts(0));
        }
        let route = lab.workers[0].spec.id;
        let failures = lab.queue.failures(route, FailureFilter::default(), None, usize::MAX).await.unwrap();
        let parked: Vec<BlobRef> = failures
            .failed
            .iter()
            .filter(|failed| failed.state == FailedState::Parked)
            .map(|failed| failed.entry.blob)
            .collect();
        let expected = if poison == Trouble::Hang { vec![blobs[0]] } else { Vec::new() };
        assert_eq!(parked, expected, "{poison:?}");
        lab.stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn after_an_outage_the_backlog_travels_in_packs_again() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.start();
    lab.announce_sized("a", 0..300).await;
    lab.drain().await;
    lab.place("b").faulty.set(Some(Trouble::Code(Code::Unavailable)));
    lab.announce_sized("a", 300..6_300).await;
    sleep(Duration::from_mins(10)).await;
    lab.place("b").faulty.set(None);
    let before = packs(&lab);
    let start = Instant::now();
    lab.drain().await;
    assert!(start.elapsed() < Duration::from_secs(40), "{:?}", start.elapsed());
    let after = packs(&lab);
    assert!(after[1] - before[1] > 5_000 / PACK_ITEMS as u64 && after[1] - before[1] < 200, "{before:?} {after:?}");
    assert_eq!((lab.counts(0).confirmed, lab.fresh(0).parked.entries), (6_300, 0));
    lab.stopped().await;
}

/// The bad ones of each pack went in smaller packs, and alone, before any good one behind them.
#[tokio::test(start_paused = true)]
async fn what_a_peer_fails_on_amid_a_pack_that_arrives_waits_for_its_retry() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let blobs = lab.announce_sized("a", 0..2_000).await;
    for blob in blobs.iter().step_by(4) {
        lab.place("a").faulty.set_for(*blob, Some(Trouble::Code(Code::Internal)));
    }
    lab.start();
    while lab.counts(0).confirmed < 1_500 {
        sleep(Duration::from_millis(1)).await;
    }
    let attempts = lab.place("a").faulty.fetches();
    assert!(attempts < 2_200, "{attempts} for 2,000 blobs");
    assert_eq!(lab.fresh(0).parked.entries, 0);
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn what_is_announced_again_is_asked_for_and_not_sent_again() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.start();
    let blobs = lab.announce_sized("a", 0..3_000).await;
    lab.drain().await;
    let sent = lab.place("b").faulty.receives();
    lab.push("a", Lane::Fresh, &blobs).await;
    lab.drain().await;
    let again = lab.place("b").faulty.receives() - sent;
    assert!(again <= 4 * PACK_ITEMS as u64, "{again} of 3,000 were sent again before it was noticed");
    let counts = lab.counts(0);
    assert_eq!((counts.confirmed, counts.copied), (6_000, 3_000 + again));
    // New ones are sent again without much asking, which the first of them show.
    lab.announce_sized("a", 3_000..6_000).await;
    lab.drain().await;
    assert_eq!(lab.place("b").memory.len(), 6_000);
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn rates_hold_for_packs() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.limits.send_modify(|limits| limits.blobs_per_second = BlobRate::new(500.0));
    lab.announce_sized("a", 0..5_000).await;
    lab.start();
    let start = Instant::now();
    lab.drain().await;
    let took = start.elapsed().as_secs_f64();
    assert!((9.0..11.0).contains(&took), "{took}");
    assert!(packs(&lab)[1] < 2_000, "{:?}", packs(&lab));
    // The same of bytes; sizes are announced.
    lab.limits.send_replace(Limits { bytes_per_second: Some(100_000), ..Limits::workers(4) });
    let mut pushes = Vec::new();
    for number in 0..2_000u32 {
        let bytes: Vec<u8> = number.to_be_bytes().repeat(125);
        let blob = lab.put("a", &bytes).await;
        pushes.push(Push { size: Some(500), ..lab.a_push(blob) });
    }
    lab.queue.push(pushes, Vec::new()).await.unwrap();
    let start = Instant::now();
    lab.drain().await;
    let took = start.elapsed().as_secs_f64();
    assert!((9.0..11.0).contains(&took), "{took}");
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_pause_begins_no_pack_and_lets_those_in_flight_finish() {
    let mut lab = Lab::with(&[("a", "b")], 2, false).await;
    lab.place("a").faulty.set(Some(Trouble::Slow(Duration::from_secs(1))));
    lab.announce_sized("a", 0..5_000).await;
    lab.start();
    lab.until("packs are in flight", |lab| lab.workers[0].report().in_progress.len() == 2).await;
    lab.limits.send_modify(|limits| limits.paused = true);
    lab.until("they are done", |lab| lab.fresh(0).claimed.entries == 0).await;
    let copied = lab.place("b").memory.len();
    assert!((2..=2 * PACK_ITEMS).contains(&copied), "{copied}");
    sleep(Duration::from_secs(1000)).await;
    assert_eq!(lab.place("b").memory.len(), copied);
    lab.place("a").faulty.set(None);
    lab.limits.send_modify(|limits| limits.paused = false);
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_lane_has_its_share_of_the_packs() {
    for (one, other) in [(Lane::Fresh, Lane::Backfill), (Lane::Backfill, Lane::Fresh)] {
        let mut lab = Lab::with(&[("a", "b")], 5, false).await;
        lab.place("a").faulty.set(Some(Trouble::Slow(Duration::from_millis(100))));
        let mut blobs = Vec::new();
        for number in 0..20_000u32 {
            blobs.push(lab.put("a", &number.to_be_bytes()).await);
        }
        lab.push("a", other, &blobs[2_000..]).await;
        lab.start();
        sleep(Duration::from_secs(5)).await;
        lab.push("a", one, &blobs[..2_000]).await;
        let start = Instant::now();
        let queued = |lab: &Lab| {
            let counts = lab.counts(0);
            let of = if one == Lane::Fresh { counts.fresh } else { counts.backfill };
            of.ready.entries + of.claimed.entries
        };
        lab.until("the others are copied", |lab| queued(lab) == 0).await;
        // Eight packs, of which each takes 1.6 s; four at a time, or one.
        let limit = if one == Lane::Fresh { 10 } else { 20 };
        assert!(start.elapsed() < Duration::from_secs(limit), "{one:?}: {:?}", start.elapsed());
        lab.abort.cancel();
        lab.stopped().await;
        assert!(lab.left() > 0, "the first did not end before");
    }
}

#[tokio::test(start_paused = true)]
async fn a_mute_peer_is_named_in_time_and_nobody_is_charged() {
    // Nothing comes from a source, and nothing is confirmed by a destination.
    for (at, limit) in [("a", 31), ("b", 303)] {
        let mut lab = Lab::new(&[("a", "b")]).await;
        lab.announce_sized("a", 0..500).await;
        lab.place(at).faulty.set(Some(Trouble::Hang));
        lab.start();
        let start = Instant::now();
        lab.until("it is named", |lab| !lab.workers[0].report().errors.is_empty()).await;
        assert!(start.elapsed() < Duration::from_secs(limit), "{:?}", start.elapsed());
        let errors = lab.workers[0].report().errors;
        assert_eq!((&*errors[0].peer, errors[0].code, errors[0].charged), (at, Some(Code::DeadlineExceeded), 0));
        assert!(lab.place(at).peer.snapshot().last_refusal.is_some(), "it may have had too many at a time");
        lab.place(at).faulty.set(None);
        lab.drain().await;
        assert_eq!(lab.counts(0).confirmed, 500);
        lab.stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_packs_chain_inherits_each_blobs_trace() {
    let mut lab = Lab::new(&[("a", "b"), ("b", "c")]).await;
    let mut pushes = Vec::new();
    for number in 0..20u32 {
        let blob = lab.put("a", &number.to_be_bytes()).await;
        let trace = TraceContext { traceparent: format!("00-{number:032x}-1-01"), tracestate: String::new() };
        pushes.push(Push { trace: Some(trace), ..lab.a_push(blob) });
    }
    let expected: Vec<_> = pushes.iter().map(|push| (push.blob, push.trace.clone())).collect();
    lab.queue.push(pushes, Vec::new()).await.unwrap();
    lab.place("c").faulty.set_down(true);
    lab.start();
    lab.until("chained", |lab| lab.counts(1).fresh.ready.entries == 20).await;
    lab.stopped().await;
    let route = lab.workers[1].spec.id;
    let now = std::time::UNIX_EPOCH + Duration::from_secs(1 << 33);
    let claims = claim_any(&*lab.queue, route, Lane::Fresh, 99, now).await.unwrap();
    let chained: Vec<_> = claims.iter().map(|claim| (claim.entry().blob, claim.entry().trace.clone())).collect();
    assert_eq!(chained, expected);
}
