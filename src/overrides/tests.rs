#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Change, Overrides, Stamp};
use crate::clock::{Clock, ManualClock};
use crate::limits::{Limits, Override, Setting};
use crate::queue::model::ModelQueue;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

struct Lab {
    clock: Arc<ManualClock>,
    state: Arc<ModelQueue>,
    folder: tempfile::TempDir,
    overrides: Arc<Overrides>,
}

const CONFIGURED: Limits = Limits::workers(32);

fn state(clock: &Arc<ManualClock>) -> Arc<ModelQueue> {
    Arc::new(ModelQueue::new(9, Duration::from_secs(60), clock.clone()))
}

async fn open(clock: &Arc<ManualClock>, state: &Arc<ModelQueue>, file: PathBuf) -> Arc<Overrides> {
    let configured = BTreeMap::from([("a_to_b".to_owned(), CONFIGURED), ("b_to_c".to_owned(), CONFIGURED)]);
    Overrides::open(clock.clone(), state.clone(), Some(file), configured).await.unwrap()
}

impl Lab {
    async fn new() -> Self {
        let (clock, folder) = (Arc::new(ManualClock::default()), tempfile::tempdir().unwrap());
        let state = state(&clock);
        let overrides = open(&clock, &state, folder.path().join("overrides.json")).await;
        Self { clock, state, folder, overrides }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("overrides.json")
    }

    async fn restart(&mut self) {
        self.overrides = open(&self.clock, &self.state, self.file()).await;
    }

    fn stamp(&self, lasts: Option<u64>) -> Stamp {
        let set_time = self.clock.now();
        let expire_time = lasts.map(|seconds| set_time + Duration::from_secs(seconds));
        Stamp { set_by: "eve".to_owned(), set_time, expire_time, reason: "a test".to_owned() }
    }

    async fn set(&self, value: Override, lasts: Option<u64>) {
        self.overrides.change("a_to_b", &[Change::Set(value)], &self.stamp(lasts)).await.unwrap();
    }

    fn limits(&self) -> Limits {
        let seen = *self.overrides.limits("a_to_b").unwrap().borrow();
        assert_eq!(self.overrides.in_force("a_to_b").unwrap().limits, seen);
        assert_eq!(self.overrides.in_force("b_to_c").unwrap().limits, CONFIGURED);
        seen
    }
}

#[tokio::test]
async fn overrides_are_in_force_at_once_until_they_are_reset() {
    let mut lab = Lab::new().await;
    let mut seen = lab.overrides.limits("a_to_b").unwrap();
    let other = lab.overrides.limits("b_to_c").unwrap();
    lab.set(Override::Workers(3), None).await;
    assert!(seen.has_changed().unwrap() && !other.has_changed().unwrap());
    assert_eq!(seen.borrow_and_update().workers, 3);
    lab.set(Override::Paused, None).await;
    for _ in 0..2 {
        assert_eq!(lab.limits(), Limits { paused: true, ..Limits::workers(3) });
        let found = lab.overrides.in_force("a_to_b").unwrap();
        assert_eq!(found.pause(), Some(&lab.stamp(None)));
        assert_eq!((found.overrides.len(), found.configured), (2, CONFIGURED));
        lab.restart().await;
    }
    let reset = [Change::Reset(Setting::Paused), Change::Reset(Setting::BytesPerSecond)];
    lab.overrides.change("a_to_b", &reset, &lab.stamp(None)).await.unwrap();
    assert_eq!(lab.limits(), Limits::workers(3));
    lab.overrides.forget("a_to_b", &lab.stamp(None)).await.unwrap();
    lab.restart().await;
    assert_eq!(lab.limits(), CONFIGURED);
    assert!(lab.overrides.in_force("none").is_none() && lab.overrides.limits("none").is_none());
}

#[tokio::test]
async fn either_copy_is_enough_and_the_newer_wins() {
    let mut lab = Lab::new().await;
    lab.set(Override::Workers(1), None).await;
    let old_file = std::fs::read(lab.file()).unwrap();
    lab.set(Override::Workers(2), None).await;
    // An old file does not win over the queue.
    std::fs::write(lab.file(), &old_file).unwrap();
    lab.restart().await;
    assert_eq!(lab.limits().workers, 2);
    assert_ne!(std::fs::read(lab.file()).unwrap(), old_file, "the other copy is brought up to date");
    // The queue is lost.
    lab.state = state(&lab.clock);
    lab.restart().await;
    assert_eq!(lab.limits().workers, 2);
    // The file is lost.
    std::fs::remove_file(lab.file()).unwrap();
    lab.restart().await;
    assert_eq!(lab.limits().workers, 2);
    // The file is damaged.
    std::fs::write(lab.file(), "{").unwrap();
    lab.restart().await;
    assert_eq!(lab.limits().workers, 2);
    assert!(lab.folder.path().join("overrides.json.unreadable").exists());
    // Nothing is left.
    lab.state = state(&lab.clock);
    std::fs::remove_file(lab.file()).unwrap();
    lab.restart().await;
    assert_eq!(lab.limits(), CONFIGURED);
}

#[tokio::test]
async fn one_copy_is_enough_while_the_other_cannot_be_written() {
    let mut lab = Lab::new().await;
    lab.state.set_failing(true);
    lab.set(Override::Paused, None).await;
    lab.restart().await;
    assert!(lab.limits().paused);
    lab.state.set_failing(false);
    lab.overrides.look().await;
    std::fs::remove_file(lab.file()).unwrap();
    lab.restart().await;
    assert!(lab.limits().paused, "the queue has caught up");
    // Neither can be written.
    lab.state.set_failing(true);
    std::fs::create_dir(lab.folder.path().join("overrides.json.tmp")).unwrap();
    let refused = lab.overrides.change("a_to_b", &[Change::Set(Override::Workers(7))], &lab.stamp(None)).await;
    assert!(refused.is_err());
    assert_eq!(lab.limits(), Limits { paused: true, ..CONFIGURED });
    lab.state.set_failing(false);
    lab.overrides.look().await;
    lab.restart().await;
    assert_eq!(lab.limits(), Limits { paused: true, ..CONFIGURED });
}

#[tokio::test]
async fn overrides_expire_by_the_monotonic_clock_and_on_start_by_the_wall() {
    let mut lab = Lab::new().await;
    lab.set(Override::Workers(1), Some(100)).await;
    lab.set(Override::Paused, Some(10)).await;
    // The wall clock jumps, and that ends nothing.
    let start = lab.clock.now();
    lab.clock.set_wall(start + Duration::from_secs(1000));
    lab.overrides.look().await;
    assert!(lab.limits().paused);
    lab.clock.set_wall(start);
    lab.clock.advance(Duration::from_secs(9));
    lab.overrides.look().await;
    assert!(lab.limits().paused);
    lab.clock.advance(Duration::from_secs(1));
    lab.overrides.look().await;
    assert_eq!(lab.limits(), Limits::workers(1));
    lab.restart().await;
    assert_eq!(lab.limits(), Limits::workers(1));
    // Set anew, without an end.
    lab.set(Override::Workers(2), None).await;
    lab.clock.advance(Duration::from_secs(1000));
    lab.overrides.look().await;
    assert_eq!(lab.limits(), Limits::workers(2));
    lab.set(Override::Workers(3), Some(50)).await;
    lab.clock.advance(Duration::from_secs(50));
    lab.restart().await;
    assert_eq!(lab.limits(), CONFIGURED, "it expired while nothing ran");
}

#[tokio::test]
async fn a_clock_that_was_set_back_before_a_start_makes_no_pause_longer() {
    let mut lab = Lab::new().await;
    lab.set(Override::Paused, Some(50)).await;
    lab.clock.set_wall(lab.clock.now() - Duration::from_hours(365 * 24));
    lab.restart().await;
    lab.clock.advance(Duration::from_secs(49));
    lab.overrides.look().await;
    assert!(lab.limits().paused);
    lab.clock.advance(Duration::from_secs(1));
    lab.overrides.look().await;
    assert_eq!(lab.limits(), CONFIGURED);
}

#[tokio::test(start_paused = true)]
async fn the_keeper_ends_them_within_a_second() {
    let lab = Lab::new().await;
    lab.set(Override::Paused, Some(10)).await;
    lab.clock.advance(Duration::from_secs(10));
    let mut seen = lab.overrides.limits("a_to_b").unwrap();
    tokio::select! {
        () = lab.overrides.keep() => {}
        changed = seen.changed() => changed.unwrap(),
    }
    assert!(!seen.borrow().paused);
}
