//! What is copied together: which entries may be packed, how large packs are, whether to ask before sending, and what copies
//! count for in the bytes that a route may hold in memory.

use crate::blob::DigestFunction;
use crate::fault::{FaultKind, Side};
use crate::peer::state::PeerState;
use crate::queue::{Entry, Failure};
use std::time::Duration;
use tonic::Code;

/// Blobs in a pack, at most: more gain nothing, and share the fate of a broken stream.
pub(in crate::worker) const PACK_ITEMS: usize = 256;

/// The entries of a pack that failed go in packs of so many fewer, until they go alone.
pub(super) const FEWER: usize = 16;

/// The largest blob that travels packed, in bytes, whatever the peers would take.
const MAX_BLOB_BYTES: u64 = 64 << 10;

/// Bytes in a pack: at most what one message carries, and at least one blob of the largest size.
const PACK_BYTES: std::ops::RangeInclusive<u64> = MAX_BLOB_BYTES..=1 << 20;

/// Bytes of the first packs, before it is known how fast they get through.
const FIRST_BYTES: u64 = 256 << 10;

/// Packs that take longer become smaller: none must come near an idle timeout only because the way, or the disk, is slow.
const SLOW: Duration = Duration::from_secs(2);

/// Packs that take less become larger.
const FAST: Duration = Duration::from_secs(1);

/// What a blob that is streamed holds, in bytes, at most: the larger window of its stream.
const STREAM_BYTES: u64 = 4 << 20;

/// What an entry of a pack, and its place in messages, takes beside its bytes, about.
const ITEM_BYTES: u64 = 1 << 10;

/// What a blob of this size counts for when it is copied alone, in bytes.
pub(super) fn streamed(size: Option<u64>) -> u64 {
    size.unwrap_or(u64::MAX).min(STREAM_BYTES)
}

/// What both peers of a route can do together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct RouteCapabilities {
    /// The largest blob that travels packed, in bytes; 0: none does.
    pub(super) blob_bytes: u64,
    /// Whether both can be asked what they hold.
    pub(super) stat: bool,
    /// The digest functions that each lists; empty: it was not asked yet, or lists none.
    functions: [Vec<DigestFunction>; 2],
}

impl RouteCapabilities {
    pub(super) fn of(from: &PeerState, to: &PeerState) -> Self {
        let packed = |peer: &PeerState| {
            let info = peer.info().filter(|info| info.abilities.packed);
            info.and_then(|info| info.max_packed_bytes).unwrap_or(0)
        };
        let stat = |peer: &PeerState| peer.info().is_some_and(|info| info.abilities.stat);
        let functions = |peer: &PeerState| peer.info().map(|info| info.functions.clone()).unwrap_or_default();
        Self {
            blob_bytes: packed(from).min(packed(to)).min(MAX_BLOB_BYTES),
            stat: stat(from) && stat(to),
            functions: [functions(from), functions(to)],
        }
    }

    pub(super) const fn packs(&self) -> bool {
        self.blob_bytes > 0
    }

    /// Whether an entry may be packed, as far as itself is concerned. Repairs go alone: they are read back. A blob of unknown
    /// size may turn out to be too large, and goes alone then.
    pub(super) fn takes(&self, entry: &Entry) -> bool {
        let may_share = entry.failure.as_ref().is_none_or(|failure| !ends_packs(failure));
        self.packs() && !entry.repair && may_share && entry.size.is_none_or(|size| size <= self.blob_bytes)
    }

    /// The side that does not list an entry's digest function, and what it lists.
    pub(super) fn refuses(&self, function: DigestFunction) -> Option<(Side, &[DigestFunction])> {
        let sides = [Side::Source, Side::Destination].into_iter().zip(&self.functions);
        let mut refusing = sides.filter(|(_, listed)| !listed.is_empty() && !listed.contains(&function));
        refusing.next().map(|(side, listed)| (side, listed.as_slice()))
    }
}

/// Whether a failure would have been the end of a whole pack, or asks for a copy of its own: silence, a broken connection, a
/// panic, too little room for even one, a destination whose word was wrong. Anything else a peer answers for one blob of a
/// pack.
fn ends_packs(failure: &Failure) -> bool {
    let of_its_own = matches!(
        failure.kind,
        FaultKind::ConnectionCut
            | FaultKind::TooSlow
            | FaultKind::NotConfirmed
            | FaultKind::SourceOverloaded
            | FaultKind::DestinationOverloaded
            | FaultKind::Panicked
            | FaultKind::DestinationConfirmedOther
    );
    of_its_own || failure.code == Some(Code::DeadlineExceeded)
}

/// How large packs are, in bytes and in blobs: as large as gets through fast.
#[derive(Debug)]
pub(super) struct PackSize {
    bytes: u64,
    items: usize,
}

impl Default for PackSize {
    fn default() -> Self {
        Self { bytes: FIRST_BYTES, items: PACK_ITEMS }
    }
}

impl PackSize {
    pub(super) const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// A pack of the present size, or about, took so long.
    pub(super) fn took(&mut self, time: Duration) {
        let (bytes, items) = if time > SLOW {
            (self.bytes / 2, self.items / 2)
        } else if time < FAST {
            (self.bytes * 2, self.items * 2)
        } else {
            (self.bytes, self.items)
        };
        self.bytes = bytes.clamp(*PACK_BYTES.start(), *PACK_BYTES.end());
        self.items = items.clamp(1, PACK_ITEMS);
    }
}

/// The part of the latest blobs that the destination held already, as when a producer announces everything once more.
///
/// Asking costs a round trip and saves the bytes, so it is done while that was half of the latest packs' blobs, by the
/// destination's own word: what it answers to blobs that were sent, or to the question itself.
#[derive(Debug, Default)]
pub(super) struct DuplicateRatio {
    // The latest pack counts for half.
    share: f64,
}

impl DuplicateRatio {
    pub(super) fn is_high(&self) -> bool {
        self.share >= 0.5
    }

    /// Of so many blobs of a pack that were confirmed, so many had been there.
    #[expect(clippy::cast_precision_loss, reason = "small numbers")]
    pub(super) fn saw(&mut self, there: usize, of: usize) {
        if of > 0 {
            self.share = f64::midpoint(self.share, there as f64 / of as f64);
        }
    }
}

/// What a pack holds so far, and the most that it may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Load {
    items: usize,
    bytes: u64,
    max_items: usize,
    max_bytes: u64,
}

impl Load {
    pub(super) const fn new(size: &PackSize) -> Self {
        Self { items: 0, bytes: 0, max_items: size.items, max_bytes: size.bytes }
    }

    /// Whether a blob of so many bytes, which may be one of so many at most, has room. The first one always has.
    pub(super) fn accepts(self, bytes: u64, fellows: usize) -> bool {
        let fits = self.items < self.max_items.min(fellows) && self.bytes.saturating_add(bytes) <= self.max_bytes;
        self.items == 0 || fits
    }

    pub(super) fn add(&mut self, bytes: u64, fellows: usize) {
        self.items += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.max_items = self.max_items.min(fellows);
    }

    /// What it counts for in the bytes in flight.
    pub(super) const fn held(self) -> u64 {
        self.bytes.saturating_add(self.items as u64 * ITEM_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::{DuplicateRatio, FIRST_BYTES, Load, PACK_BYTES, PACK_ITEMS, PackSize, RouteCapabilities, streamed};
    use crate::blob::DigestFunction;
    use crate::fault::{FaultKind, Side};
    use crate::queue::Entry;
    use crate::worker::simulation::entries;
    use std::time::Duration;
    use tonic::Code;

    #[test]
    fn packs_grow_while_they_are_fast_and_shrink_when_they_are_slow() {
        let mut size = PackSize::default();
        assert_eq!((size.bytes(), size.items), (FIRST_BYTES, PACK_ITEMS));
        (0..9).for_each(|_| size.took(Duration::from_millis(20)));
        assert_eq!(size.bytes(), *PACK_BYTES.end());
        size.took(Duration::from_millis(1500));
        assert_eq!(size.bytes(), *PACK_BYTES.end());
        (0..9).for_each(|_| size.took(Duration::from_secs(30)));
        assert_eq!((size.bytes(), size.items), (*PACK_BYTES.start(), 1));
        (0..9).for_each(|_| size.took(Duration::from_millis(20)));
        assert_eq!(size.items, PACK_ITEMS);
    }

    #[test]
    fn asking_begins_when_blobs_repeat_and_ends_when_they_do_not() {
        let mut ratio = DuplicateRatio::default();
        ratio.saw(256, 256);
        assert!(ratio.is_high(), "after one pack of duplicates");
        ratio.saw(0, 0);
        assert!(ratio.is_high());
        ratio.saw(0, 256);
        assert!(!ratio.is_high());
        (0..20).for_each(|_| ratio.saw(100, 256));
        assert!(!ratio.is_high());
    }

    fn can(blob_bytes: u64, functions: &[DigestFunction]) -> RouteCapabilities {
        RouteCapabilities { blob_bytes, stat: true, functions: [Vec::new(), functions.to_vec()] }
    }

    #[test]
    fn repairs_go_alone_and_so_do_large_ones_and_what_would_end_a_pack() {
        let route = can(64 << 10, &[]);
        let entry = |size| Entry { size, ..entries::entry(1) };
        assert!(route.takes(&entry(Some(0))) && route.takes(&entry(Some(64 << 10))) && route.takes(&entry(None)));
        assert!(!route.takes(&entry(Some((64 << 10) + 1))));
        assert!(!route.takes(&Entry { repair: true, ..entry(Some(1)) }));
        assert!(route.takes(&entries::failed(1, FaultKind::ShortRead, 1)));
        for kind in [FaultKind::ConnectionCut, FaultKind::NotConfirmed, FaultKind::DestinationConfirmedOther] {
            assert!(!route.takes(&entries::failed(1, kind, 1)), "{kind}");
        }
        let mut silent = entries::failed(1, FaultKind::DestinationUnavailable, 1);
        assert!(route.takes(&silent));
        silent.failure.as_mut().unwrap().code = Some(Code::DeadlineExceeded);
        assert!(!route.takes(&silent));
        assert!(!can(0, &[]).takes(&entry(Some(0))));
    }

    #[test]
    fn a_function_that_a_side_does_not_list_is_refused_and_one_that_lists_none_refuses_none() {
        let route = can(0, &[DigestFunction::Sha256]);
        assert_eq!(route.refuses(DigestFunction::Sha256), None);
        let refused = route.refuses(DigestFunction::Blake3);
        assert_eq!(refused, Some((Side::Destination, &[DigestFunction::Sha256][..])));
        assert_eq!(can(0, &[]).refuses(DigestFunction::Blake3), None);
    }

    #[test]
    fn a_pack_ends_at_its_bytes_or_its_items() {
        let size = PackSize { bytes: 1024, items: PACK_ITEMS };
        let mut load = Load::new(&size);
        assert!(load.accepts(1 << 30, 256), "the first always fits");
        load.add(1000, 256);
        assert!(load.accepts(24, 256) && !load.accepts(25, 256));
        assert!(!load.accepts(1, 1), "one that goes in smaller packs closes a larger one");
        load.add(0, 3);
        assert!(load.accepts(0, 256));
        load.add(0, 256);
        assert!(!load.accepts(0, 256), "one of three at most");
        assert_eq!(load.held(), 1000 + 3 * 1024);
        assert_eq!((streamed(Some(7)), streamed(None)), (7, 4 << 20));
    }
}
