//! Poison entries and outages of hours, in simulated time.

use super::Lab;
use crate::blob::{BlobRef, DigestFunction};
use crate::breaker::Phase;
use crate::fault::FaultKind;
use crate::queue::failures::{FailedEntry, FailedState};
use crate::queue::{Lane, Queue, SyncId};
use crate::store::faulty::Trouble;
use crate::store::{Store, StoreInfo};
use crate::worker::Activity;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep};
use tonic::Code;

const SIX_HOURS: Duration = Duration::from_hours(6);

impl Lab {
    fn all_time(&self) -> u64 {
        self.counts(0).confirmed
    }

    fn phases(&self) -> [Phase; 2] {
        ["a", "b"].map(|name| self.place(name).peer.snapshot().phase)
    }

    /// Since when each breaker has been as it is.
    fn since(&self) -> [std::time::SystemTime; 2] {
        ["a", "b"].map(|name| self.place(name).peer.snapshot().since)
    }

    /// A store with another id, and nothing in it, in place of one.
    async fn swap(&self, name: &str) {
        let info = self.place(name).memory.info().await.unwrap();
        self.place(name).faulty.set_info(Some(StoreInfo { store_id: Some("another".to_owned()), ..info }));
        self.place(name).faulty.set(Some(Trouble::Missing));
    }
}

#[tokio::test(start_paused = true)]
async fn poison_entries_among_ten_times_as_many_good_ones_stop_none() {
    let mut lab = Lab::with(&[("a", "b")], 16, false).await;
    let blobs = lab.announce("a", 0..3_300).await;
    let poisons = [
        ("a", Trouble::WrongBytes, FaultKind::SourceBytesCorrupt),
        ("b", Trouble::Reject, FaultKind::DestinationRejected),
        ("a", Trouble::Missing, FaultKind::MissingAtSource),
        ("b", Trouble::Code(Code::Internal), FaultKind::DestinationUnavailable),
        ("a", Trouble::ShortRead, FaultKind::ShortRead),
        ("a", Trouble::Panic, FaultKind::Panicked),
    ];
    let mut expected = HashMap::new();
    for (number, blob) in blobs.iter().enumerate().filter(|(number, _)| number % 11 == 5) {
        let (at, trouble, kind) = &poisons[number / 11 % poisons.len()];
        lab.place(at).faulty.set_for(*blob, Some(trouble.clone()));
        expected.insert(*blob, *kind);
    }
    assert_eq!(expected.len(), 300);
    lab.start();
    let start = Instant::now();
    lab.until("the good ones are copied", |lab| lab.all_time() == 3_000).await;
    assert!(start.elapsed() < Duration::from_hours(2), "{:?}", start.elapsed());
    // While others succeed at their peers.
    for number in 10_000.. {
        if lab.fresh(0).parked.entries == 300 {
            break;
        }
        assert!(number < 11_000, "{:?}", lab.fresh(0));
        lab.announce("a", number..number + 1).await;
        sleep(Duration::from_secs(10)).await;
    }
    for FailedEntry { entry, state } in lab.failed().await {
        let failure = entry.failure.unwrap();
        assert_eq!((state, failure.kind), (FailedState::Parked, expected[&entry.blob]), "{}", failure.message);
        assert!(!failure.message.is_empty() && failure.count >= 10 && failure.first < failure.last);
    }
    assert_eq!(lab.phases(), [Phase::Closed; 2]);
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn a_block_of_entries_that_their_peer_fails_on_does_not_hide_the_good_ones_behind_it() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let blobs = lab.announce("a", 0..600).await;
    for blob in &blobs[..300] {
        lab.place("a").faulty.set_for(*blob, Some(Trouble::Code(Code::Internal)));
    }
    lab.start();
    lab.until("the good ones are copied", |lab| lab.all_time() == 300).await;
    lab.stopped().await;
}

/// What a peer looks like while nothing works there.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Seen {
    /// Its breaker is open.
    Open,
    /// It is overloaded.
    Overloaded,
    /// It answers, and Status raises an alarm.
    Alarm,
}

/// What six hours of a trouble at a store leave behind: nothing parked, and everything drains afterwards.
async fn six_hours(at: &str, what: &str, seen: Seen, begin: impl AsyncFn(&Lab), end: impl Fn(&Lab)) {
    let mut lab = Lab::with(&[("a", "b")], 8, false).await;
    lab.start();
    lab.announce("a", 0..50).await;
    lab.drain().await;
    lab.announce("a", 50..100).await;
    begin(&lab).await;
    for part in 0..6 {
        lab.announce("a", 100 + part * 50..150 + part * 50).await;
        sleep(SIX_HOURS / 6).await;
    }
    assert_eq!(lab.fresh(0).parked.entries, 0, "{what} at {at}");
    // One that says all the time what it is, as if it were well, makes failures weigh something each 40 minutes.
    let most =
        if seen == Seen::Open && !lab.place(at).peer.snapshot().latched && what != "refused" { 9_000 } else { 0 };
    assert!(lab.most_charged().await <= most, "{what} at {at}: {}", lab.most_charged().await);
    assert_eq!(lab.left(), 400 - lab.all_time(), "{what} at {at}");
    assert!(lab.all_time() <= 100, "{what} at {at}");
    let report = lab.workers[0].report();
    let is_as_seen = match seen {
        Seen::Open => !lab.place(at).peer.is_closed(),
        Seen::Overloaded => {
            report.activity == Activity::PeerOverloaded(Arc::from(at)) && lab.place(at).peer.is_closed()
        }
        Seen::Alarm => report.vanished.is_some() && report.alarm.is_some() && lab.place(at).peer.is_closed(),
    };
    assert!(is_as_seen, "{what} at {at}: {:?}", report.activity);
    end(&lab);
    let start = Instant::now();
    lab.drain().await;
    // A blob that is missing is looked for every ten minutes in the end.
    let limit = match (seen, most) {
        (Seen::Alarm, _) => Duration::from_mins(13),
        // Whose failures weighed something waits longer.
        (_, 1..) => Duration::from_mins(5),
        _ => Duration::from_secs(90),
    };
    assert!(start.elapsed() < limit, "{what} at {at}: {:?}", start.elapsed());
    assert_eq!((lab.all_time(), lab.phases()), (400, [Phase::Closed; 2]));
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn six_hours_of_any_outage_park_and_charge_nothing() {
    for at in ["a", "b"] {
        let down = |lab: &Lab, down| lab.place(at).faulty.set_down(down);
        six_hours(at, "refused", Seen::Open, async |lab| down(lab, true), |lab| down(lab, false)).await;
        let codes = [Code::Unavailable, Code::Unauthenticated, Code::ResourceExhausted, Code::Internal, Code::Unknown];
        for code in codes {
            let seen = if code == Code::ResourceExhausted { Seen::Overloaded } else { Seen::Open };
            let begin = async |lab: &Lab| lab.place(at).faulty.set(Some(Trouble::Code(code)));
            six_hours(at, &format!("{code:?}"), seen, begin, |lab| lab.place(at).faulty.set(None)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn six_hours_of_an_empty_store_in_place_of_the_source_park_and_charge_nothing() {
    let heal = |lab: &Lab| {
        lab.place("a").faulty.set(None);
        lab.place("a").faulty.set_info(None);
    };
    // The volume was emptied, under the same id.
    let emptied = async |lab: &Lab| lab.place("a").faulty.set(Some(Trouble::Missing));
    six_hours("a", "emptied", Seen::Alarm, emptied, heal).await;
    // Another store, behind the same connection; and after a silence.
    six_hours("a", "swapped", Seen::Open, async |lab| lab.swap("a").await, heal).await;
    let after_a_silence = async |lab: &Lab| {
        sleep(Duration::from_secs(5)).await;
        lab.swap("a").await;
    };
    six_hours("a", "swapped after a silence", Seen::Open, after_a_silence, heal).await;
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_says_so_of_every_blob_raises_an_alarm_and_each_is_parked_in_its_time() {
    let other = DigestFunction::Sha256.ref_of(b"other");
    for (packed, trouble) in [
        (true, Trouble::Reject),
        (true, Trouble::ConfirmRef(other)),
        (false, Trouble::Reject),
        (false, Trouble::ConfirmRef(other)),
        (false, Trouble::ConfirmUnread),
    ] {
        let routes = [("a", "b")];
        let mut lab = if packed { Lab::with(&routes, 8, false).await } else { Lab::unpacked(&routes, 8).await };
        lab.place("b").faulty.set(Some(trouble.clone()));
        lab.announce("a", 0..100).await;
        lab.start();
        lab.until("an alarm is raised", |lab| lab.workers[0].report().alarm.is_some()).await;
        lab.until("all are parked", |lab| lab.fresh(0).parked.entries == 100).await;
        let failed = lab.failed().await;
        assert!(failed.iter().all(|failed| failed.entry.attempts == 10), "{trouble:?}");
        assert_eq!(lab.phases(), [Phase::Closed; 2], "{trouble:?}");
        lab.stopped().await;
    }
}

#[tokio::test(start_paused = true)]
async fn one_blob_that_alone_draws_a_peers_error_or_a_panic_is_parked_and_holds_no_breaker_open() {
    for at in ["a", "b"] {
        for trouble in [Trouble::Code(Code::Internal), Trouble::Code(Code::Unavailable), Trouble::Panic] {
            let mut lab = Lab::new(&[("a", "b")]).await;
            let blobs = lab.announce("a", 0..100).await;
            lab.place(at).faulty.set_for(blobs[10], Some(trouble.clone()));
            lab.start();
            lab.until("the others are copied", |lab| lab.all_time() == 99).await;
            // Nobody else is copied from here on.
            let start = Instant::now();
            lab.until("it is parked", |lab| lab.fresh(0).parked.entries == 1).await;
            // The peer's word that it is well weighs something each 40 minutes.
            let limit = if trouble == Trouble::Panic { Duration::from_hours(1) } else { Duration::from_hours(8) };
            assert!(start.elapsed() < limit, "{trouble:?} at {at}: {:?}", start.elapsed());
            let failed = lab.failed().await;
            assert_eq!(failed[0].entry.blob, blobs[10]);
            lab.stopped().await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn missing_refs_in_a_row_are_parked_and_no_breaker_opens() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let since = lab.since();
    lab.start();
    lab.announce("a", 0..100).await;
    lab.drain().await;
    let missing: Vec<BlobRef> =
        (0..300u32).map(|number| DigestFunction::Blake3.ref_of(&number.to_be_bytes())).collect();
    lab.push("a", Lane::Fresh, &missing).await;
    let start = Instant::now();
    lab.until("all are parked", |lab| lab.fresh(0).parked.entries == 300).await;
    let patience = Duration::from_hours(2);
    assert!((patience..patience + Duration::from_mins(11)).contains(&start.elapsed()), "{:?}", start.elapsed());
    assert_eq!(lab.since(), since, "no breaker has opened");
    for FailedEntry { entry, .. } in lab.failed().await {
        assert_eq!(entry.failure.unwrap().kind, FaultKind::MissingAtSource);
    }
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn missing_blobs_are_discarded_where_that_is_configured() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    lab.set_policy(|policy| {
        policy.patience.on_missing = crate::backoff::OnMissing::Discard;
        policy.patience.missing = Duration::from_mins(10);
    });
    let missing = DigestFunction::Sha256.ref_of(b"missing");
    let corrupt = lab.put("a", b"corrupt").await;
    lab.place("a").faulty.set_for(corrupt, Some(Trouble::WrongBytes));
    lab.push("a", Lane::Backfill, &[missing, corrupt]).await;
    lab.start();
    let start = Instant::now();
    lab.until("discarded", |lab| lab.counts(0).discarded == 1).await;
    assert!(start.elapsed() >= Duration::from_mins(10));
    lab.until("parked", |lab| lab.counts(0).backfill.parked.entries == 1).await;
    let tally = lab.queue.sync_tally(SyncId(1));
    assert_eq!((tally.discarded, tally.parked, tally.pending), (1, 1, 0));
    lab.stopped().await;
}

/// A fault found in thought: an announcement, an outage of hours, and the write behind it.
#[tokio::test(start_paused = true)]
async fn an_outage_uses_up_no_patience_with_a_missing_blob() {
    let mut lab = Lab::new(&[("a", "b")]).await;
    let blob = DigestFunction::Sha256.ref_of(b"late");
    lab.push("a", Lane::Fresh, &[blob]).await;
    lab.start();
    sleep(Duration::from_mins(30)).await;
    lab.place("a").faulty.set_down(true);
    sleep(SIX_HOURS).await;
    lab.place("a").faulty.set_down(false);
    sleep(Duration::from_hours(1)).await;
    assert_eq!(lab.fresh(0).retrying.entries, 1);
    lab.put("a", b"late").await;
    lab.drain().await;
    lab.stopped().await;
}

#[tokio::test(start_paused = true)]
async fn every_change_of_a_breaker_is_told_once() {
    let mut lab = Lab::with(&[("a", "b")], 8, false).await;
    lab.start();
    lab.announce("a", 0..50).await;
    lab.drain().await;
    let before = lab.since();
    lab.place("b").faulty.set(Some(Trouble::Code(Code::Internal)));
    lab.announce("a", 50..250).await;
    sleep(Duration::from_hours(1)).await;
    let opened = lab.since()[1];
    assert!(opened > before[1] && lab.since()[0] == before[0]);
    let snapshot = lab.place("b").peer.snapshot();
    assert_eq!((snapshot.reason.unwrap().kind, snapshot.openings), (FaultKind::DestinationUnavailable, 1));
    sleep(Duration::from_hours(1)).await;
    assert_eq!(lab.since()[1], opened, "tries that fail change nothing");
    lab.place("b").faulty.set(None);
    lab.drain().await;
    lab.stopped().await;
}

/// Others succeeded while the clock was a year ahead. By its word they would be the latest for a year to come, and each failure
/// of an outage would be the blob's.
#[tokio::test(start_paused = true)]
async fn an_outage_after_the_clock_was_set_right_parks_nothing() {
    const YEAR: u64 = 365 * 24 * 60 * 60;
    let mut lab = Lab::with(&[("a", "b")], 8, false).await;
    lab.clock.ahead.store(YEAR, Ordering::Relaxed);
    lab.start();
    lab.announce("a", 0..50).await;
    lab.drain().await;
    lab.clock.ahead.store(0, Ordering::Relaxed);
    lab.place("b").faulty.set(Some(Trouble::Code(Code::Unavailable)));
    lab.announce("a", 50..53).await;
    sleep(SIX_HOURS).await;
    assert_eq!(lab.fresh(0).parked.entries, 0);
    lab.place("b").faulty.set(None);
    lab.drain().await;
    lab.stopped().await;
}
