//! What is begun: claims that wait, as far as workers, lanes, rates and the budgets of bytes allow.
//!
//! Large blobs and packs have workers and budgets of their own, so neither kind waits for the other. Within a kind the
//! lanes have their shares, and what one cannot use goes to the other. A pack is closed when it is full or nothing more
//! waits that may go with it; it is never waited for.

use super::Run;
use crate::limits::Charge;
use crate::queue::{Claim, Lane};
use crate::worker::attempt::{Slot, attempt, attempt_pack};
use crate::worker::budget::{self, Held, ITEM_BYTES};
use crate::worker::judge::Permits;
use crate::worker::lanes::{Shares, index};
use crate::worker::packs::{Load, PACK_ITEMS};
use crate::worker::waiting::{Kind, Waiter};
use std::sync::Arc;

/// The workers that are free, by kind and lane.
struct Room {
    free: [Shares; 2],
    /// Either lane may use the other's.
    shared: bool,
}

impl Room {
    fn has(&self, kind: Kind, lane: Lane) -> bool {
        let free = &self.free[kind as usize];
        free[index(lane)] > 0 || (self.shared && free.iter().any(|free| *free > 0))
    }

    fn take(&mut self, kind: Kind, lane: Lane) {
        let free = &mut self.free[kind as usize];
        let of = if free[index(lane)] > 0 { index(lane) } else { 1 - index(lane) };
        free[of] = free[of].saturating_sub(1);
    }
}

/// A pack that takes more.
struct OpenPack {
    claims: Vec<Claim>,
    load: Load,
    charge: Charge,
    held: Held,
}

impl Run {
    /// Whether anything that waits could be begun now.
    pub(super) fn may_begin(&self) -> bool {
        let room = Room { free: Kind::ALL.map(|kind| [self.free_of(kind), 0]), shared: true };
        Lane::ALL.into_iter().any(|lane| self.next(lane, &room, None).is_some())
    }

    /// Begins what waits. Where a rate holds it back, all that is left is released, in its order.
    pub(super) fn begin(&mut self, permits: &Arc<Permits>) {
        let workers = self.workers();
        let free = Kind::ALL.map(|kind| {
            let lanes = &mut self.lanes[kind as usize];
            lanes.share(workers, self.slots.of(kind), self.waiting.waits(kind))
        });
        let mut room = Room { free, shared: false };
        let mut open: [Option<OpenPack>; 2] = [None, None];
        let mut held_back = None;
        loop {
            let next = Lane::ALL.map(|lane| self.next(lane, &room, open[index(lane)].as_ref()));
            let Some(lane) = self.turns.of(next.map(|kind| kind.is_some())) else {
                if room.shared {
                    break;
                }
                room.shared = true;
                continue;
            };
            let Some(kind) = next[index(lane)] else { break };
            let Some(size) = self.waiting.first(lane, kind).map(|first| first.size) else { break };
            let charge = match self.worker.throttle.begin(size) {
                Ok(charge) => charge,
                Err(until) => {
                    held_back = Some(until);
                    break;
                }
            };
            let Some(waiter) = self.waiting.take(lane, kind) else { break };
            self.turns.took(lane);
            match kind {
                Kind::Alone => {
                    room.take(kind, lane);
                    self.begin_one(waiter, charge, permits);
                }
                Kind::Packed => self.pack(waiter, charge, &mut open[index(lane)], &mut room, permits),
            }
        }
        for (lane, pack) in Lane::ALL.into_iter().zip(open) {
            if let Some(pack) = pack {
                self.begin_pack(lane, pack, permits);
            }
        }
        if let Some(until) = held_back {
            self.rest_for_rate(until);
        }
    }

    /// How the next of a lane may begin, if one may: the older one where both kinds wait.
    fn next(&self, lane: Lane, room: &Room, open: Option<&OpenPack>) -> Option<Kind> {
        let budget = &self.worker.budget;
        let alone = self
            .waiting
            .first(lane, Kind::Alone)
            .filter(|first| room.has(Kind::Alone, lane) && budget.alone.fits(budget::streamed(first.size)));
        let packed = self.waiting.first(lane, Kind::Packed).filter(|first| {
            let bytes = self.pack_size.bytes();
            open.is_some_and(|open| open.load.accepts(self.counted(first), bytes))
                || (room.has(Kind::Packed, lane) && budget.packs.fits(reserve(bytes)))
        });
        match (alone, packed) {
            (Some(alone), Some(packed)) if alone.claim.entry().seq < packed.claim.entry().seq => Some(Kind::Alone),
            (_, Some(_)) => Some(Kind::Packed),
            (Some(_), None) => Some(Kind::Alone),
            (None, None) => None,
        }
    }

    /// What a blob counts for in a pack, in bytes: one of unknown size as the largest that it can be.
    fn counted(&self, waiter: &Waiter) -> u64 {
        waiter.size.unwrap_or(self.joint.blob_bytes)
    }

    fn begin_one(&mut self, waiter: Waiter, charge: Charge, permits: &Arc<Permits>) {
        let held = self.worker.budget.alone.take(budget::streamed(waiter.size));
        let slot = Slot::take(&self.slots, Kind::Alone, waiter.claim.entry().lane, charge, held);
        let (worker, joint, permits) = (self.worker.clone(), self.joint, permits.clone());
        self.copies.spawn(async move { Some(attempt(worker, waiter, joint, permits, slot).await) });
    }

    /// Puts a blob into the open pack of its lane, or into a new one.
    fn pack(
        &mut self,
        waiter: Waiter,
        charge: Charge,
        open: &mut Option<OpenPack>,
        room: &mut Room,
        permits: &Arc<Permits>,
    ) {
        let (bytes, most) = (self.counted(&waiter), self.pack_size.bytes());
        let Waiter { claim, .. } = waiter;
        if let Some(pack) = open.as_mut().filter(|pack| pack.load.accepts(bytes, most)) {
            pack.load.add(bytes);
            pack.charge.join(charge);
            return pack.claims.push(claim);
        }
        let lane = claim.entry().lane;
        room.take(Kind::Packed, lane);
        let mut load = Load::default();
        load.add(bytes);
        let held = self.worker.budget.packs.take(reserve(most));
        let mut claims = Vec::with_capacity(PACK_ITEMS);
        claims.push(claim);
        if let Some(full) = open.replace(OpenPack { claims, load, charge, held }) {
            self.begin_pack(lane, full, permits);
        }
    }

    fn begin_pack(&mut self, lane: Lane, pack: OpenPack, permits: &Arc<Permits>) {
        let OpenPack { claims, load, charge, mut held } = pack;
        held.shrink(load.held());
        let slot = Slot::take(&self.slots, Kind::Packed, lane, charge, held);
        let asks = self.joint.stat && self.repeats.likely();
        let (worker, joint, permits) = (self.worker.clone(), self.joint, permits.clone());
        self.copies.spawn(attempt_pack(worker, claims, (joint, asks), permits, slot));
    }
}

/// What a pack that is opened takes of the budget, until it is known what it holds.
const fn reserve(bytes: u64) -> u64 {
    bytes + PACK_ITEMS as u64 * ITEM_BYTES
}
