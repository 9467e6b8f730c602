//! What is copied together: which entries may be packed, how large packs are, and whether to ask before sending.

use super::budget::ITEM_BYTES;
use crate::peer::Peer;
use crate::queue::Entry;
use std::time::Duration;

/// Blobs in a pack, at most: more gain nothing, and share the fate of a broken stream.
pub(super) const PACK_ITEMS: usize = 256;

/// The largest blob that travels packed, in bytes, whatever the peers would take.
const MAX_BLOB_BYTES: u64 = 64 << 10;

/// Bytes in a pack: at most what one message carries, and at least one blob of the largest size.
const PACK_BYTES: std::ops::RangeInclusive<u64> = MAX_BLOB_BYTES..=1 << 20;

/// Bytes of the first packs, before it is known how fast they get through.
const FIRST_BYTES: u64 = 256 << 10;

/// Packs that take longer become smaller: none must come near an idle timeout only because the way is slow.
const SLOW: Duration = Duration::from_secs(2);

/// Packs that take less become larger.
const FAST: Duration = Duration::from_secs(1);

/// What both peers of a route can do together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Joint {
    /// The largest blob that travels packed, in bytes; 0: none does.
    pub(super) blob_bytes: u64,
    /// Whether both can be asked what they hold.
    pub(super) stat: bool,
}

impl Joint {
    pub(super) fn of(from: &Peer, to: &Peer) -> Self {
        let ((source, gives), (destination, takes)) = (from.abilities(), to.abilities());
        Self { blob_bytes: gives.min(takes).min(MAX_BLOB_BYTES), stat: source.stat && destination.stat }
    }

    pub(super) const fn packs(self) -> bool {
        self.blob_bytes > 0
    }

    /// Whether an entry may be packed, as far as itself is concerned. Repairs and whoever has answered for a failure go alone:
    /// they ask, or are read back. A blob of unknown size may turn out to be too large, and goes alone then.
    pub(super) fn takes(self, entry: &Entry) -> bool {
        self.packs() && !entry.repair && entry.attempts == 0 && entry.size.is_none_or(|size| size <= self.blob_bytes)
    }
}

/// How large packs are: as large as gets through fast.
#[derive(Debug)]
pub(super) struct PackSize(u64);

impl Default for PackSize {
    fn default() -> Self {
        Self(FIRST_BYTES)
    }
}

impl PackSize {
    pub(super) fn bytes(&self) -> u64 {
        self.0
    }

    /// A pack of the present size, or about, took so long.
    pub(super) fn took(&mut self, time: Duration) {
        let next = if time > SLOW {
            self.0 / 2
        } else if time < FAST {
            self.0 * 2
        } else {
            self.0
        };
        self.0 = next.clamp(*PACK_BYTES.start(), *PACK_BYTES.end());
    }
}

/// Whether blobs come that the destination holds already, as when a producer announces everything once more.
///
/// Asking costs a round trip and saves the bytes, so it is done while half of the latest packs' blobs were nothing new to
/// the destination, by its own word: what it answers to blobs that were sent, or to the question itself.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    // The part that was there already; the latest pack counts for half.
    share: f64,
}

impl Repeats {
    pub(super) fn likely(&self) -> bool {
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

/// What a pack holds so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Load {
    pub(super) items: usize,
    pub(super) bytes: u64,
}

impl Load {
    /// Whether a blob of so many bytes has room in a pack of at most `most` bytes. The first one always has.
    pub(super) fn accepts(self, bytes: u64, most: u64) -> bool {
        self.items == 0 || (self.items < PACK_ITEMS && self.bytes.saturating_add(bytes) <= most)
    }

    pub(super) fn add(&mut self, bytes: u64) {
        self.items += 1;
        self.bytes = self.bytes.saturating_add(bytes);
    }

    /// What it counts for in the budget.
    pub(super) fn held(self) -> u64 {
        self.bytes.saturating_add(self.items as u64 * ITEM_BYTES)
    }
}

#[cfg(test)]
mod tests {
    use super::{FIRST_BYTES, Joint, Load, PACK_BYTES, PACK_ITEMS, PackSize, Repeats};
    use crate::fault::FaultKind;
    use crate::queue::Entry;
    use crate::worker::streaks;
    use std::time::Duration;

    #[test]
    fn packs_grow_while_they_are_fast_and_shrink_when_they_are_slow() {
        let mut size = PackSize::default();
        assert_eq!(size.bytes(), FIRST_BYTES);
        (0..9).for_each(|_| size.took(Duration::from_millis(20)));
        assert_eq!(size.bytes(), *PACK_BYTES.end());
        size.took(Duration::from_millis(1500));
        assert_eq!(size.bytes(), *PACK_BYTES.end());
        (0..9).for_each(|_| size.took(Duration::from_secs(30)));
        assert_eq!(size.bytes(), *PACK_BYTES.start());
    }

    #[test]
    fn asking_begins_when_blobs_repeat_and_ends_when_they_do_not() {
        let mut repeats = Repeats::default();
        repeats.saw(256, 256);
        assert!(repeats.likely(), "after one pack of repeats");
        repeats.saw(0, 0);
        assert!(repeats.likely());
        repeats.saw(0, 256);
        assert!(!repeats.likely());
        (0..20).for_each(|_| repeats.saw(100, 256));
        assert!(!repeats.likely());
    }

    #[test]
    fn repairs_and_those_that_failed_go_alone_and_so_do_large_ones() {
        let joint = Joint { blob_bytes: 64 << 10, stat: true };
        let entry = |size| Entry { size, ..streaks::tests::entry(1) };
        assert!(joint.takes(&entry(Some(0))) && joint.takes(&entry(Some(64 << 10))) && joint.takes(&entry(None)));
        assert!(!joint.takes(&entry(Some((64 << 10) + 1))));
        assert!(!joint.takes(&Entry { repair: true, ..entry(Some(1)) }));
        assert!(!joint.takes(&streaks::tests::failed(1, FaultKind::ShortRead, 1)));
        assert!(!Joint { blob_bytes: 0, stat: true }.takes(&entry(Some(0))));
    }

    #[test]
    fn a_pack_ends_at_its_bytes_or_its_items() {
        let mut load = Load::default();
        assert!(load.accepts(1 << 30, 1 << 20), "the first always fits");
        load.add(1000);
        assert!(load.accepts(24, 1024) && !load.accepts(25, 1024));
        (1..PACK_ITEMS).for_each(|_| load.add(0));
        assert!(!load.accepts(0, 1 << 20));
        assert_eq!(load.held(), 1000 + (PACK_ITEMS as u64) * 1024);
    }
}
