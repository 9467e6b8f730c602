//! The queue of a simulation: quick with a hundred thousand entries, and with nothing but what a scheduler sees.

use crate::blob::DigestFunction;
use crate::queue::{
    Changes, Claim, ClaimOrder, ClaimRequest, Claimed, Entry, Lane, LaneCounts, Misses, Outcome, RouteCounts, RouteId,
    Seq, Weight,
};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

#[derive(Default)]
pub(super) struct SimQueue {
    entries: BTreeMap<u64, Entry>,
    new: [BTreeSet<u64>; 2],
    retry: [BTreeSet<(SystemTime, u64)>; 2],
    parked: BTreeMap<u64, Entry>,
    claimed: [[u64; 2]; 2],
    last: u64,
    pub(super) changes: Changes,
    returned: Arc<Mutex<Vec<u64>>>,
    /// Settlements of entries that were not claimed: must stay 0.
    pub(super) unclaimed: u64,
    held: BTreeSet<u64>,
}

fn index(lane: Lane) -> usize {
    usize::from(lane == Lane::Backfill)
}

impl SimQueue {
    pub(super) fn push(&mut self, lane: Lane, now: SystemTime) -> u64 {
        self.last += 1;
        let seq = self.last;
        let entry = Entry {
            seq: Seq(seq),
            route: RouteId(0),
            blob: DigestFunction::Sha256.ref_of(&seq.to_be_bytes()),
            size: Some(1),
            lane,
            enqueue_time: now,
            due_time: now,
            attempts: 0,
            misses: Misses::default(),
            weight: Weight::default(),
            failure: None,
            trace: None,
            visited: Vec::new(),
            syncs: Vec::new(),
            repair: false,
        };
        self.entries.insert(seq, entry);
        self.new[index(lane)].insert(seq);
        self.changes.add(lane, false);
        seq
    }

    pub(super) fn claim(&mut self, request: &ClaimRequest) -> Claimed {
        let ClaimRequest { lane, order, max, now, .. } = *request;
        self.take_back();
        let new = &self.new[index(lane)];
        let seqs: Vec<u64> = match order {
            ClaimOrder::Oldest => new.iter().take(max).copied().collect(),
            ClaimOrder::Newest => new.iter().rev().take(max).copied().collect(),
            ClaimOrder::After(Seq(seq)) => new.range(seq + 1..).take(max).copied().collect(),
            ClaimOrder::Before(Seq(seq)) => new.range(..seq).rev().take(max).copied().collect(),
            ClaimOrder::From(part) => {
                let (first, last) = (new.first().copied().unwrap_or(0), new.last().copied().unwrap_or(0));
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "some place"
                )]
                let from = first + ((last - first) as f64 * part) as u64;
                new.range(from..).take(max).copied().collect()
            }
            ClaimOrder::Due => {
                let due = self.retry[index(lane)].iter().take_while(|(due, _)| *due <= now);
                due.take(max).map(|(_, seq)| *seq).collect()
            }
        };
        for seq in &seqs {
            let entry = &self.entries[seq];
            self.new[index(lane)].remove(seq);
            self.retry[index(lane)].remove(&(entry.due_time, *seq));
            self.claimed[index(lane)][usize::from(entry.attempts > 0)] += 1;
            assert!(self.held.insert(*seq), "claimed twice");
        }
        let next = self.retry[index(lane)].first().map(|(due, _)| *due).filter(|due| *due > now);
        let next_due = next.filter(|_| order == ClaimOrder::Due && seqs.len() < max);
        let claims = seqs.into_iter().map(|seq| {
            let returned = self.returned.clone();
            Claim::new(self.entries[&seq].clone(), move |entry| returned.lock().push(entry.seq.0))
        });
        Claimed { claims: claims.collect(), next_due }
    }

    /// Claims that were dropped are back in their places.
    pub(super) fn take_back(&mut self) {
        let returned = std::mem::take(&mut *self.returned.lock());
        for seq in returned {
            self.release(seq);
            let entry = &self.entries[&seq];
            if entry.failure.is_some() {
                self.retry[index(entry.lane)].insert((entry.due_time, seq));
            } else {
                self.new[index(entry.lane)].insert(seq);
            }
        }
    }

    fn release(&mut self, seq: u64) {
        let entry = &self.entries[&seq];
        self.claimed[index(entry.lane)][usize::from(entry.attempts > 0)] -= 1;
        self.unclaimed += u64::from(!self.held.remove(&seq));
    }

    /// Whether it was confirmed.
    pub(super) fn settle(&mut self, claim: Claim, outcome: &Outcome) -> bool {
        let seq = claim.entry().seq.0;
        claim.disarm();
        self.release(seq);
        let longest = Duration::from_mins(10);
        match outcome {
            Outcome::Confirmed { .. } | Outcome::Discard => {
                self.entries.remove(&seq);
            }
            Outcome::Retry { due, failure, weight } => {
                let entry = self.entries.get_mut(&seq).unwrap();
                entry.fail(failure, *weight, longest);
                entry.due_time = *due;
                self.retry[index(entry.lane)].insert((*due, seq));
            }
            Outcome::Park { failure, weight } => {
                let mut entry = self.entries.remove(&seq).unwrap();
                entry.fail(failure, *weight, longest);
                self.parked.insert(seq, entry);
            }
        }
        matches!(outcome, Outcome::Confirmed { .. })
    }

    pub(super) fn counts(&self) -> RouteCounts {
        let lane = |at: usize| {
            let mut counts = LaneCounts::default();
            counts.ready.entries = self.new[at].len() as u64;
            counts.retrying.entries = self.retry[at].len() as u64;
            counts.claimed.entries = self.claimed[at].iter().sum();
            counts
        };
        RouteCounts { fresh: lane(0), backfill: lane(1), ..RouteCounts::default() }
    }

    pub(super) fn is_queued(&self, seq: u64) -> bool {
        self.entries.contains_key(&seq)
    }

    pub(super) fn parked(&self) -> impl Iterator<Item = (u64, &Entry)> {
        self.parked.iter().map(|(seq, entry)| (*seq, entry))
    }

    pub(super) fn queued(&self) -> usize {
        self.entries.len()
    }

    /// In units of an answer; infinite where it is parked.
    pub(super) fn weight_of(&self, seq: u64) -> f64 {
        if self.parked.contains_key(&seq) {
            return f64::INFINITY;
        }
        self.entries.get(&seq).map_or(0.0, |entry| f64::from(entry.weight.0) / 1000.0)
    }
}
