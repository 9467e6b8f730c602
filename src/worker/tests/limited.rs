//! An operator's limits, live.

use super::Lab;
use crate::limits::{BlobRate, Limits};
use crate::queue::{Lane, Push, Queue as _};
use crate::store::faulty::Trouble;
use crate::worker::Activity;
use std::time::Duration;
use tokio::time::{Instant, sleep};

#[tokio::test(start_paused = true)]
async fn a_pause_begins_nothing_and_lets_copies_in_flight_finish() {
    let mut lab = Lab::unpacked(&[("a", "b")], 4).await;
    lab.place("a").faulty.set(Some(Trouble::Slow(Duration::from_secs(10))));
    lab.announce("a", 0..40).await;
    lab.start();
    lab.until("four are in flight", |lab| lab.fresh(0).claimed.entries == 4).await;
    lab.limits.send_modify(|limits| limits.paused = true);
    lab.until("they are done", |lab| lab.fresh(0).claimed.entries == 0).await;
    assert_eq!(lab.place("b").memory.len(), 4);
    assert_eq!(lab.workers[0].report().activity, Activity::Paused);
    sleep(Duration::from_secs(1000)).await;
    lab.announce("a", 40..41).await;
    sleep(Duration::from_secs(1000)).await;
    assert_eq!((lab.fresh(0).ready.entries, lab.fresh(0).claimed.entries), (37, 0));
    lab.limits.send_modify(|limits| limits.paused = false);
    lab.drain().await;
    lab.stopped().await;
    assert_eq!(lab.place("b").memory.len(), 41);
}

#[tokio::test(start_paused = true)]
async fn a_paused_route_asks_nothing_of_its_peers() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.limits.send_modify(|limits| limits.paused = true);
    lab.announce("a", 0..3).await;
    lab.start();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!((lab.place("a").faulty.infos(), lab.place("b").faulty.infos()), (0, 0));
    lab.stopped().await;
    assert_eq!(lab.left(), 3);
}

#[tokio::test(start_paused = true)]
async fn workers_change_up_and_down_while_they_work() {
    let mut lab = Lab::unpacked(&[("a", "b")], 4).await;
    lab.place("a").faulty.set(Some(Trouble::Slow(Duration::from_secs(10))));
    lab.announce("a", 0..500).await;
    lab.start();
    for workers in [4, 32, 1, 7] {
        lab.limits.send_modify(|limits| limits.workers = workers);
        let wanted = workers as u64;
        lab.until("so many are in flight", |lab| lab.fresh(0).claimed.entries == wanted).await;
        for _ in 0..500 {
            sleep(Duration::from_millis(50)).await;
            let claimed = lab.fresh(0).claimed.entries;
            // One that has ended is settled while the next begins.
            assert!(claimed <= 2 * wanted, "{workers}: {claimed}");
            assert!(lab.workers[0].report().in_progress.len() <= 2 * workers);
        }
    }
    lab.place("a").faulty.set(None);
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_rate_of_blobs_holds_for_the_route() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.limits.send_modify(|limits| limits.blobs_per_second = BlobRate::new(2.0));
    lab.announce("a", 0..101).await;
    lab.start();
    let start = Instant::now();
    lab.until("half are copied", |lab| lab.place("b").memory.len() == 51).await;
    assert_eq!(lab.workers[0].report().activity, Activity::RateLimited);
    let half = start.elapsed().as_secs_f64();
    assert!((24.0..26.0).contains(&half), "{half}");
    lab.drain().await;
    let whole = start.elapsed().as_secs_f64();
    assert!((49.0..51.0).contains(&whole), "{whole}");
    lab.stopped().await;
    assert_eq!(lab.place("b").faulty.receives(), 101);
}

#[tokio::test(start_paused = true)]
async fn a_rate_of_bytes_holds_in_sum_and_starves_no_large_blob() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.limits.send_modify(|limits| limits.bytes_per_second = Some(1000));
    // Their sizes are not announced.
    let mut blobs = Vec::new();
    for number in 0..50u8 {
        blobs.push(lab.put("a", &[number; 500]).await);
    }
    blobs.insert(25, lab.put("a", &[99; 10_000]).await);
    lab.push("a", Lane::Fresh, &blobs).await;
    lab.start();
    let start = Instant::now();
    lab.drain().await;
    // 35,000 bytes, but for a burst, what was begun before sizes were known, and the last.
    let took = start.elapsed().as_secs_f64();
    assert!((31.0..36.0).contains(&took), "{took}");
    lab.stopped().await;
    assert_eq!(lab.place("b").memory.len(), 51);
}

/// Each takes as long as the answer that tells its size, and not until what its hint claimed is paid.
#[tokio::test(start_paused = true)]
async fn hints_that_lie_hold_up_nobody() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.limits.send_modify(|limits| limits.bytes_per_second = Some(1_000_000));
    let mut pushes = Vec::new();
    for number in 0..300u16 {
        let blob = lab.put("a", &number.to_be_bytes()).await;
        let size = if number < 200 { 1 << 40 } else { 2 };
        pushes.push(Push { size: Some(size), ..lab.a_push(blob) });
    }
    lab.queue.push(pushes, vec![]).await.unwrap();
    lab.start();
    let start = Instant::now();
    lab.drain().await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    lab.stopped().await;
    assert_eq!(lab.place("b").memory.len(), 300);
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_is_lifted_holds_nobody_any_more() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.limits.send_modify(|limits| limits.blobs_per_second = BlobRate::new(0.001));
    lab.announce("a", 0..100).await;
    lab.start();
    lab.until("it is held back", |lab| lab.workers[0].report().activity == Activity::RateLimited).await;
    let start = Instant::now();
    lab.limits.send_replace(Limits::workers(4));
    lab.drain().await;
    assert!(start.elapsed() < Duration::from_secs(100), "{:?}", start.elapsed());
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn both_lanes_get_on_under_a_rate() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.limits.send_modify(|limits| limits.blobs_per_second = BlobRate::new(10.0));
    let mut found = Vec::new();
    for number in 1000..1100u32 {
        found.push(lab.put("a", &number.to_be_bytes()).await);
    }
    lab.push("a", Lane::Backfill, &found).await;
    lab.announce("a", 0..400).await;
    lab.start();
    lab.until("half are copied", |lab| lab.place("b").memory.len() >= 250).await;
    let counts = lab.counts(0);
    let (fresh, backfill) = (400 - counts.fresh.ready.entries, 100 - counts.backfill.ready.entries);
    assert!((25..=130).contains(&backfill), "fresh {fresh}, backfill {backfill}");
    lab.drain().await;
    lab.stopped().await;
}
