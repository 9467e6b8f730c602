#![allow(clippy::unwrap_used, reason = "tests")]

use super::{AdoptError, Identification, Needs, Peer};
use crate::breaker::{FailureWeight, Phase, Reason};
use crate::clock::{Clock, Entropy, ManualClock};
use crate::fault::FaultKind;
use crate::store::faulty::FaultyStore;
use crate::store::memory::MemoryStore;
use crate::store::{PeerKind, Store, StoreInfo};
use std::sync::Arc;
use std::time::Duration;

const BOTH: Needs = Needs { read: true, hold: true };

struct Lab {
    store: Arc<FaultyStore>,
    clock: Arc<ManualClock>,
    peer: Arc<Peer>,
    info: StoreInfo,
}

async fn lab(needs: Needs, expected: Option<&str>) -> Lab {
    let memory = Arc::new(MemoryStore::new("id-1", 1 << 20));
    let info = memory.info().await.unwrap();
    let store = Arc::new(FaultyStore::new(memory));
    let clock = Arc::new(ManualClock::default());
    let entropy = Arc::new(Entropy::seeded(1));
    let peer = Peer::new("primary", store.clone(), needs, expected.map(str::to_owned), clock.clone(), entropy);
    Lab { store, clock, peer, info }
}

impl Lab {
    /// Whether it may be used, asking it what it is where that must be known.
    async fn is_usable(&self) -> bool {
        self.peer.identified().await
    }

    fn pass(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
    }

    fn reason(&self) -> Option<FaultKind> {
        self.peer.snapshot().reason.map(|reason| reason.kind)
    }

    /// So many copies failed there.
    fn fail(&self, times: usize) {
        for _ in 0..times {
            let reason = Reason::new(FaultKind::SourceUnavailable, "gone");
            self.peer.state().fail(FailureWeight::First, false, reason, self.clock.monotonic(), 0.0);
        }
    }

    fn succeed(&self) {
        self.peer.state().succeeded(self.clock.monotonic());
    }
}

#[tokio::test]
async fn a_peer_is_asked_before_its_first_use_after_a_silence_and_once_in_a_while() {
    let lab = lab(BOTH, None).await;
    assert_eq!(lab.store.infos(), 0);
    for _ in 0..3 {
        assert!(lab.is_usable().await);
    }
    assert_eq!(lab.store.infos(), 1);
    lab.pass(3);
    assert!(lab.is_usable().await);
    assert_eq!(lab.store.infos(), 2);
    for _ in 0..70 {
        lab.pass(1);
        assert!(lab.is_usable().await);
        lab.succeed();
    }
    assert_eq!(lab.store.infos(), 3);
}

#[tokio::test]
async fn many_who_need_it_at_once_ask_it_once() {
    let lab = lab(BOTH, None).await;
    let all = futures::future::join_all((0..20).map(|_| lab.peer.identified())).await;
    assert!(all.iter().all(|usable| *usable));
    assert_eq!(lab.store.infos(), 1);
}

#[tokio::test]
async fn one_failure_has_it_asked_again_and_a_row_of_them_opens_the_breaker() {
    let lab = lab(BOTH, None).await;
    assert!(lab.is_usable().await);
    lab.pass(2);
    lab.fail(1);
    assert!(lab.peer.is_closed() && lab.is_usable().await);
    assert_eq!(lab.store.infos(), 2, "it may be another by now");
    let mut changes = lab.peer.changes();
    changes.mark_unchanged();
    lab.fail(64);
    assert!(changes.has_changed().unwrap() && !lab.is_usable().await);
    assert_eq!((lab.peer.snapshot().phase, lab.peer.snapshot().openings), (Phase::Open, 1));
    lab.succeed();
    assert_eq!(lab.peer.snapshot().phase, Phase::Closed);
    assert!(lab.is_usable().await);
}

#[tokio::test]
async fn an_identification_that_is_dropped_can_be_had_again() {
    let lab = lab(BOTH, None).await;
    lab.peer.state().begin_identification(lab.clock.monotonic(), 0.0);
    assert!(lab.peer.state().may_identify(lab.clock.monotonic()).is_err());
    drop(Identification(&lab.peer));
    assert!(lab.peer.state().may_identify(lab.clock.monotonic()).is_ok());
}

#[tokio::test]
async fn a_peer_that_is_down_from_the_start_opens_the_breaker_and_is_used_when_it_comes() {
    let lab = lab(Needs { read: false, hold: true }, None).await;
    lab.store.set_down(true);
    for _ in 0..8 {
        assert!(!lab.is_usable().await);
        lab.pass(1);
    }
    assert_eq!(lab.reason(), Some(FaultKind::DestinationUnavailable));
    lab.store.set_down(false);
    lab.pass(60);
    assert!(lab.is_usable().await && !lab.peer.is_closed(), "it says what it is; a copy will tell");
    lab.succeed();
    assert!(lab.peer.is_closed() && lab.peer.snapshot().last_error.is_some());
}

#[tokio::test]
async fn a_peer_of_the_wrong_kind_latches_until_the_right_one_answers() {
    let kinds = [
        (PeerKind::Replicator, Needs { read: false, hold: false }, false),
        (PeerKind::Replicator, Needs { read: false, hold: true }, false),
        (PeerKind::Replicator, Needs { read: true, hold: false }, false),
        (PeerKind::ReceiveOnly, Needs { read: true, hold: false }, false),
        (PeerKind::ReceiveOnly, Needs { read: false, hold: true }, false),
        (PeerKind::ReceiveOnly, Needs { read: false, hold: false }, true),
        (PeerKind::Store, BOTH, true),
    ];
    for (kind, needs, good) in kinds {
        let lab = lab(needs, None).await;
        lab.store.set_info(Some(StoreInfo { kind, ..lab.info.clone() }));
        assert_eq!(lab.is_usable().await, good, "{kind:?} {needs:?}");
        if good {
            continue;
        }
        assert_eq!(lab.reason(), Some(FaultKind::WrongPeerKind));
        lab.pass(60);
        assert!(!lab.is_usable().await, "asked what it is, and nothing else");
        lab.store.set_info(None);
        lab.pass(60);
        assert!(lab.is_usable().await);
    }
}

#[tokio::test]
async fn a_source_without_fetch_latches() {
    let lab = lab(BOTH, None).await;
    let mut info = lab.info.clone();
    info.abilities.fetch = false;
    lab.store.set_info(Some(info));
    assert!(!lab.is_usable().await);
    assert_eq!(lab.reason(), Some(FaultKind::WrongPeerKind));
}

#[tokio::test]
async fn a_store_id_is_learned_and_another_one_latches_until_it_is_adopted() {
    let lab = lab(BOTH, None).await;
    let mut learned = lab.peer.store_id();
    assert_eq!(*learned.borrow_and_update(), None);
    assert!(lab.is_usable().await);
    assert!(learned.has_changed().unwrap());
    assert_eq!(learned.borrow_and_update().as_deref(), Some("id-1"));
    for other in [Some("id-2".to_owned()), None] {
        lab.store.set_info(Some(StoreInfo { store_id: other, ..lab.info.clone() }));
        lab.pass(60);
        assert!(!lab.is_usable().await);
        assert_eq!(lab.reason(), Some(FaultKind::StoreIdChanged));
    }
    assert_eq!(lab.peer.snapshot().store_id.as_deref(), Some("id-1"));
    lab.store.set_info(Some(StoreInfo { store_id: Some("id-2".to_owned()), ..lab.info.clone() }));
    let complaint = lab.peer.snapshot().reason.unwrap().message;
    assert!(complaint.contains("no store id"), "{complaint}");
    lab.pass(60);
    assert!(!lab.is_usable().await);
    let complaint = lab.peer.snapshot().reason.unwrap().message;
    assert!(complaint.ends_with("if it is to take its place: blobferry adopt primary \"id-2\""), "{complaint}");
    // At once, whenever the next probe would have been due.
    lab.peer.adopt_store_id(Some("id-2".to_owned()));
    assert!(lab.is_usable().await);
}

#[tokio::test]
async fn an_id_is_adopted_only_where_the_store_tells_it() {
    let lab = lab(BOTH, Some("id-0")).await;
    assert!(lab.peer.check_identity("id-1").await.is_ok());
    let other = lab.peer.check_identity("id-2").await.unwrap_err().to_string();
    assert!(other.contains("primary tells the id \"id-1\""), "{other}");
    lab.store.set_info(Some(StoreInfo { store_id: None, ..lab.info.clone() }));
    assert!(matches!(lab.peer.check_identity("").await, Err(AdoptError::Other { found: None, .. })));
    lab.store.set_down(true);
    assert!(matches!(lab.peer.check_identity("id-1").await, Err(AdoptError::Unavailable { .. })));
}

#[tokio::test]
async fn an_id_recorded_earlier_counts_from_the_first_answer() {
    let lab = lab(BOTH, Some("id-0")).await;
    assert!(!lab.is_usable().await);
    assert_eq!(lab.reason(), Some(FaultKind::StoreIdChanged));
}
