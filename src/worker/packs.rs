//! What is copied together: small entries in packs, everything else alone.
//!
//! A pack takes one worker, as a large blob does. It is made of what is ready, in order, and nothing waits for it to
//! fill: a lone entry is copied alone at once.

use crate::queue::Claim;

/// Blobs in a pack, at most: more gain nothing, and share the fate of a broken stream.
const PACK_ITEMS: usize = 256;

/// Entries that are claimed in one go, at most.
const CLAIM: usize = 1024;

/// What may be packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PackLimits {
    /// Blobs in a pack; 1 where the peers do not pack.
    pub(super) items: usize,
    /// Bytes in a pack.
    pub(super) bytes: u64,
    /// Bytes of a blob. One of unknown size counts as this.
    pub(super) blob_bytes: u64,
}

impl PackLimits {
    /// Nothing is packed.
    pub(super) const NONE: Self = Self { items: 1, bytes: 0, blob_bytes: 0 };

    /// Packs for peers that both take blobs of up to `blob_bytes` packed, of `bytes` at most.
    pub(super) const fn packs(blob_bytes: u64, bytes: u64) -> Self {
        Self { items: PACK_ITEMS, bytes, blob_bytes }
    }
}

/// What one worker copies.
#[derive(Debug)]
pub(super) enum Load {
    Alone(Box<Claim>),
    Pack(Vec<Claim>),
}

/// Puts claims into loads for a number of free workers.
#[derive(Debug)]
pub(super) struct Packer {
    limits: PackLimits,
    workers: usize,
    loads: Vec<Load>,
    // The pack that takes more still; it has a worker already.
    open: Vec<Claim>,
    open_bytes: u64,
    // Something had to go alone: what comes next may, too.
    mixed: bool,
    began: bool,
}

impl Packer {
    pub(super) fn new(limits: PackLimits, workers: usize) -> Self {
        Self { limits, workers, loads: Vec::new(), open: Vec::new(), open_bytes: 0, mixed: false, began: false }
    }

    /// How many more entries to claim. A guess: what they turn out to be may need more workers than there are.
    pub(super) fn wanted(&self) -> usize {
        let free = self.free();
        if self.limits.items == 1 || self.mixed || !self.began {
            // As many as fit if all of them go alone.
            return free;
        }
        let room = if self.open.is_empty() { 0 } else { self.limits.items - self.open.len() };
        (free * self.limits.items + room).min(CLAIM)
    }

    /// Workers that have nothing yet.
    pub(super) fn free(&self) -> usize {
        self.workers - self.loads.len() - usize::from(!self.open.is_empty())
    }

    /// Takes a claim, which goes `alone` or may be packed; gives it back where no worker is left for it.
    pub(super) fn offer(&mut self, claim: Claim, alone: bool) -> Option<Claim> {
        self.began = true;
        let size = claim.entry().size.unwrap_or(self.limits.blob_bytes);
        if alone || self.limits.items == 1 || size > self.limits.blob_bytes {
            self.mixed |= self.limits.items > 1;
            if self.free() == 0 {
                return Some(claim);
            }
            self.loads.push(Load::Alone(Box::new(claim)));
            return None;
        }
        let fits = self.open.len() < self.limits.items && self.open_bytes + size <= self.limits.bytes;
        if self.open.is_empty() || !fits {
            if self.free() == 0 {
                return Some(claim);
            }
            self.close();
        }
        self.open_bytes += size;
        self.open.push(claim);
        None
    }

    /// What the workers are to copy.
    pub(super) fn into_loads(mut self) -> Vec<Load> {
        self.close();
        self.loads
    }

    fn close(&mut self) {
        self.open_bytes = 0;
        let mut pack = std::mem::take(&mut self.open);
        match pack.len() {
            0 => {}
            1 => self.loads.extend(pack.pop().map(|claim| Load::Alone(Box::new(claim)))),
            _ => self.loads.push(Load::Pack(pack)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{CLAIM, Load, PACK_ITEMS, PackLimits, Packer};
    use crate::blob::DigestFunction;
    use crate::queue::{Claim, Entry, Lane, Misses, RouteId, Seq};
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};
    use std::time::SystemTime;

    const LIMITS: PackLimits = PackLimits::packs(64 << 10, 1 << 20);

    fn claim(seq: u64, size: Option<u64>) -> Claim {
        let now = SystemTime::UNIX_EPOCH;
        let entry = Entry {
            seq: Seq(seq),
            route: RouteId(1),
            blob: DigestFunction::Sha256.ref_of(&seq.to_be_bytes()),
            size,
            lane: Lane::Fresh,
            enqueue_time: now,
            due_time: now,
            attempts: 0,
            failure: None,
            trace: None,
            visited: Vec::new(),
            syncs: Vec::new(),
            repair: false,
            misses: Misses::default(),
        };
        Claim::new(entry, |_| ())
    }

    fn shape(loads: &[Load]) -> Vec<usize> {
        let size = |load: &Load| match load {
            Load::Alone(_) => 1,
            Load::Pack(pack) => pack.len(),
        };
        loads.iter().map(size).collect()
    }

    #[test]
    fn a_lone_entry_goes_at_once_and_alone() {
        let mut packer = Packer::new(LIMITS, 4);
        assert!(packer.offer(claim(1, Some(10)), false).is_none());
        assert!(matches!(packer.into_loads().as_slice(), [Load::Alone(_)]));
    }

    #[test]
    fn small_ones_share_workers_and_large_ones_have_their_own() {
        let mut packer = Packer::new(LIMITS, 3);
        assert_eq!(packer.wanted(), 3);
        for seq in 0..3 {
            assert!(packer.offer(claim(seq, Some(4096)), false).is_none());
        }
        assert_eq!(packer.wanted(), (2 * PACK_ITEMS + PACK_ITEMS - 3).min(CLAIM));
        assert!(packer.offer(claim(3, Some(1 << 30)), false).is_none());
        assert_eq!(packer.wanted(), 1);
        assert!(packer.offer(claim(4, None), true).is_none());
        assert_eq!((packer.wanted(), packer.free()), (0, 0));
        assert!(packer.offer(claim(5, Some(1 << 30)), false).is_some());
        // The open pack has its worker already.
        assert!(packer.offer(claim(6, Some(4096)), false).is_none());
        assert_eq!(shape(&packer.into_loads()), [1, 1, 4]);
    }

    #[test]
    fn without_packing_everyone_goes_alone() {
        let mut packer = Packer::new(PackLimits::NONE, 2);
        assert!(packer.offer(claim(1, Some(0)), false).is_none());
        assert_eq!(packer.wanted(), 1);
        assert!(packer.offer(claim(2, None), false).is_none());
        assert_eq!(packer.wanted(), 0);
        assert!(packer.offer(claim(3, None), false).is_some());
        assert_eq!(shape(&packer.into_loads()), [1, 1]);
    }

    proptest! {
        #[test]
        fn loads_hold_to_their_limits_and_lose_nobody(
            sizes in proptest::collection::vec(proptest::option::of(0u64..100_000), 0..600), workers in 0usize..9
        ) {
            let mut packer = Packer::new(LIMITS, workers);
            let (mut taken, mut back) = (0, 0);
            for (seq, size) in (0u64..).zip(&sizes) {
                match packer.offer(claim(seq, *size), seq % 50 == 0) {
                    None => taken += 1,
                    Some(_) => back += 1,
                }
            }
            let loads = packer.into_loads();
            prop_assert!(loads.len() <= workers);
            prop_assert_eq!(shape(&loads).iter().sum::<usize>(), taken);
            prop_assert_eq!(taken + back, sizes.len());
            for load in &loads {
                if let Load::Pack(pack) = load {
                    let bytes: u64 = pack.iter().map(|claim| claim.entry().size.unwrap_or(LIMITS.blob_bytes)).sum();
                    prop_assert!(bytes <= LIMITS.bytes && pack.len() <= LIMITS.items && pack.len() > 1);
                }
            }
        }
    }
}
