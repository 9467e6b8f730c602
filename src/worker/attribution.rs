//! Whose fault is it? What a failed attempt weighs for its entry, by what its peers do with others.
//!
//! Doubt is settled by asking widely, not by waiting. The rules, for each route and side:
//!
//! - **An answer about this blob** (missing, corrupt, invalid, too large, with our ErrorInfo) is the entry's, however many
//!   there are: it weighs [`answer`], so that `retry.park_after` of them park. One that cannot change parks at
//!   once. A blob that is missing weighs nothing and has a patience of its own.
//! - **A doubtful failure** (a bare code, a dead connection) may be the peer's. It weighs nothing, unless since this entry's
//!   last failure there another try *that began later* succeeded there: then it weighs the peer's *health*, the part of first
//!   tries that succeed there these days. Where half of all fail by chance, a failure is half as surprising. Entries are parked at a weight
//!   of [`ENOUGH`], which an innocent one reaches once in e^10 or so, whatever the peer's rate of errors.
//! - **Cut under way twice** in a row weighs 1 each: others need not tell.
//! - **Nobody succeeds, yet the peer answers its canary**: one in [`LONE`], so that a six-hour outage of writes parks nobody and
//!   a lone bad entry is parked in seven hours.
//! - **A panic** is ours, and weighs as an answer. **Overload** weighs nothing: room is never the blob's to make.
//!
//! Only an entry's *first* failure tells of the peer's health: what a suspect does again says little of it. When it succeeds
//! in the end, its failures count after all, for they were the peer's.
//!
//! What this cannot do: tell an entry that fails alone from a peer that begins to fail, before others were tried; and it
//! takes entries for independent, so that a peer which fails by a property that many share (a shard) is charged to each of them.
//! Times of failures are kept with the entry by the wall clock: one that jumps makes one failure of each entry weigh too
//! little or too much. All other times are the monotonic clock's.
//!
//! The rules passed 55 scenarios in simulation; `worker::simulation` holds this code to them.

use crate::blob::{BlobMeta, BlobRef};
use crate::clock::Monotonic;
use crate::fault::{FailureClass, FaultKind, Side};
use crate::queue::{Entry, Seq, Weight};
use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

/// The weight of doubtful failures that parks, at least.
pub(super) const ENOUGH: u32 = 10;

/// Part of one first try in a peer's health.
const MEMORY: f64 = 1.0 / 32.0;

/// See the module's header.
const LONE: Duration = Duration::from_mins(40);

/// Entries whose last lone charge is remembered; one that is forgotten waits anew.
const MAX_LONE: usize = 65_536;

/// Repeated failures that count after all when an entry succeeds, at most.
const MAX_REPEATS: u32 = 256;

/// So many answers of one kind in a row are worth an alarm, and a look at what was copied earlier.
pub(super) const MANY: u64 = 20;

/// The latest confirmed blobs that the source is asked for.
pub(super) const SAMPLE: usize = 16;

/// A failed attempt, as far as its weight goes.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedAttempt<'a> {
    pub(super) entry: &'a Entry,
    pub(super) side: Side,
    pub(super) kind: FaultKind,
    pub(super) class: FailureClass,
    /// When the peer last answered its canary.
    pub(super) canary: Option<SystemTime>,
    pub(super) now: SystemTime,
    pub(super) moment: Monotonic,
}

impl FailedAttempt<'_> {
    /// What the wall clock, as it is now, would have shown at this moment.
    fn wall_of(&self, moment: Monotonic) -> Option<SystemTime> {
        self.now.checked_sub(self.moment.since(moment))
    }
}

/// What is known of one side of a route.
#[derive(Clone, Copy, Debug)]
struct AtSide {
    /// The part of first tries that succeed.
    health: f64,
    /// When the latest of the tries that succeeded began.
    success_began: Option<Monotonic>,
}

/// Answers about blobs, of one kind and without a success between.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Streak {
    /// What all of them say.
    pub kind: FaultKind,
    /// The side that says so.
    pub side: Side,
    /// How many there are.
    pub count: u64,
    /// Since when.
    pub since: SystemTime,
    /// The latest message.
    pub message: String,
}

/// Whose fault it is. See the module's header.
#[derive(Debug)]
pub(super) struct Attribution {
    sides: [AtSide; 2],
    lone: BTreeMap<Seq, Monotonic>,
    streak: Option<Streak>,
    confirmed: VecDeque<BlobMeta>,
    /// Since when refs that were copied earlier have vanished from the source.
    vanished: Option<SystemTime>,
}

impl Default for Attribution {
    fn default() -> Self {
        let side = AtSide { health: 1.0, success_began: None };
        Self { sides: [side; 2], lone: BTreeMap::new(), streak: None, confirmed: VecDeque::new(), vanished: None }
    }
}

/// Where a side stands in pairs.
pub(super) const fn index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Destination => 1,
    }
}

/// The weight of all failures that parks an entry.
pub(super) fn charge_threshold(park_after: u32) -> Weight {
    Weight(park_after.max(ENOUGH).saturating_mul(Weight::ONE.0))
}

/// What an answer about the blob weighs: `park_after` of them park.
pub(super) fn answer(park_after: u32) -> Weight {
    Weight(charge_threshold(park_after).0.div_ceil(park_after.max(1)))
}

/// What failures weigh together, in answers about the blob: as many as `park_after` park it.
pub(crate) fn charged(weight: Weight, park_after: u32) -> f64 {
    f64::from(weight.0) / f64::from(answer(park_after).0)
}

/// How often an entry failed in a doubtful way, about.
pub(super) fn doubts(entry: &Entry) -> u32 {
    if entry.failure.is_some() { entry.attempts.saturating_sub(entry.misses.count) } else { 0 }
}

impl Attribution {
    /// What a failure weighs for its entry. `park_after` is `retry.park_after`.
    pub(super) fn weigh(&mut self, failed: &FailedAttempt<'_>, park_after: u32) -> Weight {
        match failed.class {
            FailureClass::Answer { .. } if failed.kind == FaultKind::MissingAtSource => Weight(0),
            FailureClass::Answer { .. } | FailureClass::Panicked => answer(park_after),
            FailureClass::Cut if is_cut_again(failed) => Weight::ONE,
            FailureClass::Doubtful | FailureClass::Cut | FailureClass::TimedOut | FailureClass::NotProcessed => {
                self.doubtful(failed)
            }
            FailureClass::Overloaded { .. } => Weight(0),
        }
    }

    fn doubtful(&mut self, failed: &FailedAttempt<'_>) -> Weight {
        let FailedAttempt { entry, side, moment, .. } = *failed;
        if doubts(entry) == 0 {
            self.sides[index(side)].health *= 1.0 - MEMORY;
        }
        let at_side = self.sides[index(side)];
        let Some(last) = last_doubt(entry) else {
            self.note_lone(entry.seq, moment);
            return Weight(0);
        };
        if at_side.success_began.and_then(|began| failed.wall_of(began)).is_some_and(|began| began > last) {
            self.note_lone(entry.seq, moment);
            return Weight::of(at_side.health);
        }
        let is_well = failed.canary.is_some_and(|canary| canary >= last);
        let charged = self.lone.get(&entry.seq).copied();
        let is_time = charged.is_some_and(|at| moment.since(at) >= LONE);
        if charged.is_none() || (is_well && is_time) {
            self.note_lone(entry.seq, moment);
        }
        if is_well && is_time { Weight::ONE } else { Weight(0) }
    }

    fn note_lone(&mut self, seq: Seq, now: Monotonic) {
        if self.lone.len() >= MAX_LONE && !self.lone.contains_key(&seq) {
            self.lone.pop_first();
        }
        self.lone.insert(seq, now);
    }

    /// A pack failed as a whole: of its entries nothing is known.
    pub(super) fn pack_failed(&mut self, side: Side) {
        self.sides[index(side)].health *= 1.0 - MEMORY;
    }

    /// A try that began then succeeded at this side. `doubts` are the earlier failures of its entry there.
    pub(super) fn succeeded(&mut self, side: Side, began: Monotonic, doubts: u32) {
        let at_side = &mut self.sides[index(side)];
        let repeats = f64::from(doubts.saturating_sub(1).min(MAX_REPEATS));
        let known = at_side.health * (1.0 - MEMORY).powf(repeats);
        at_side.health = known + MEMORY * (1.0 - known);
        at_side.success_began = at_side.success_began.max(Some(began));
    }

    /// A blob was confirmed.
    pub(super) fn confirmed(&mut self, blob: BlobMeta) {
        self.streak = None;
        if self.confirmed.iter().any(|known| known.blob == blob.blob) {
            return;
        }
        if self.confirmed.len() == SAMPLE {
            self.confirmed.pop_front();
        }
        self.confirmed.push_back(blob);
    }

    /// The entry left the queue, or was given up.
    pub(super) fn forget(&mut self, seq: Seq) {
        self.lone.remove(&seq);
    }

    /// A peer answered about a blob. True where so many did that the source should be asked for what was copied earlier.
    pub(super) fn answered(&mut self, kind: FaultKind, side: Side, message: &str, now: SystemTime) -> bool {
        let streak = match self.streak.take().filter(|streak| (streak.kind, streak.side) == (kind, side)) {
            Some(Streak { count, since, .. }) => {
                Streak { kind, side, count: count + 1, since, message: message.to_owned() }
            }
            None => Streak { kind, side, count: 1, since: now, message: message.to_owned() },
        };
        let asks =
            kind == FaultKind::MissingAtSource && streak.count.is_multiple_of(MANY) && !self.confirmed.is_empty();
        self.streak = Some(streak);
        asks
    }

    /// Answers of one kind about very many blobs in a row: worth an alarm.
    pub(super) fn alarm(&self) -> Option<&Streak> {
        self.streak.as_ref().filter(|streak| streak.count >= MANY)
    }

    /// What the source is to be asked for.
    pub(super) fn sample(&self) -> Vec<BlobRef> {
        self.confirmed.iter().map(|meta| meta.blob).collect()
    }

    /// The source was asked for the sample, and holds these.
    pub(super) fn source_holds(&mut self, found: &[BlobMeta], now: SystemTime) {
        let vanished = have_vanished(self.confirmed.make_contiguous(), found);
        self.vanished = if vanished { self.vanished.or(Some(now)) } else { None };
    }

    /// Since when refs that were copied earlier have vanished from the source.
    pub(super) fn vanished(&self) -> Option<SystemTime> {
        self.vanished
    }

    /// The part of first tries that succeed at a side these days.
    #[cfg(test)]
    pub(super) fn health(&self, side: Side) -> f64 {
        self.sides[index(side)].health
    }
}

/// When an entry last failed in a doubtful way.
fn last_doubt(entry: &Entry) -> Option<SystemTime> {
    entry.failure.as_ref().filter(|_| doubts(entry) > 0).map(|failure| failure.last)
}

fn is_cut_again(failed: &FailedAttempt<'_>) -> bool {
    let before = failed.entry.failure.as_ref();
    doubts(failed.entry) > 0 && before.is_some_and(|before| before.kind == FaultKind::ConnectionCut)
}

/// Whether most of what was copied is gone, or has another size.
fn have_vanished(sample: &[BlobMeta], found: &[BlobMeta]) -> bool {
    let there = sample.iter().filter(|blob| found.contains(blob)).count();
    2 * there < sample.len()
}

#[cfg(test)]
mod tests;
