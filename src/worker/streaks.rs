//! One kind of fault on many blobs in a row: then it is no longer theirs, but the peer's.
//!
//! A destination that refuses everything, or a source that was emptied, answers each time as if one blob were at fault. So
//! faults of one kind are counted by distinct ref, and with [`ENOUGH`] of them, with no success between, the breaker of
//! that peer opens and nobody is charged any more. It closes when a probe succeeds.
//!
//! So that a mere heap of bad blobs does not pass for a bad peer:
//!
//! - What the source says of a blob (missing, corrupt, of another size) counts only if blobs that were copied earlier have
//!   vanished from it too. That is asked when the number is reached, and again by each probe that fails in this way.
//! - An entry that had failed in the same way before the peer last did well by another is no news, and does not count.
//!
//! Those that were charged on the way are forgiven once the breaker opens: due at once, with no attempt charged, as if an
//! operator had revived them, for until then each was taken for a case of its own. Their history stays, by which they are
//! known later. A crash before that leaves them one attempt poorer and a second behind.
//!
//! A panic is not counted: it is ours.

use crate::blob::{BlobMeta, BlobRef};
use crate::fault::{FaultKind, Side};
use crate::queue::{Entry, Seq};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::SystemTime;

/// So many distinct refs with one kind of fault, and no success between, are the peer's fault.
pub(super) const ENOUGH: usize = 20;

/// The latest confirmed blobs that the source is asked for.
pub(super) const SAMPLE: usize = 16;

/// The refs of one kind that are remembered; more than are in flight while the source is asked.
const MAX_REFS: usize = 2048;

/// What follows from one more fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Finding {
    /// It is the entry's.
    OfTheEntry,
    /// It is the peer's.
    OfThePeer,
    /// The entry's for now; the source is to be asked for these, and the [answer](Streaks::vanished) reported.
    Ask(Vec<BlobMeta>),
}

#[derive(Debug, Default)]
pub(super) struct Streaks {
    // By kind: who failed since the side's last success.
    runs: HashMap<FaultKind, Run>,
    last_success: [Option<SystemTime>; 2],
    sample: VecDeque<BlobMeta>,
    forgiven: Vec<Seq>,
}

#[derive(Debug, Default)]
struct Run {
    refs: BTreeMap<BlobRef, Seq>,
    asking: bool,
}

/// Whether a fault is what the source says of a blob, and might say of every blob if it were emptied.
pub(super) const fn needs_asking(kind: FaultKind) -> bool {
    matches!(
        kind,
        FaultKind::MissingAtSource
            | FaultKind::SourceBytesCorrupt
            | FaultKind::SourceSizeMismatch
            | FaultKind::ShortRead
    )
}

const fn index(side: Side) -> usize {
    match side {
        Side::Source => 0,
        Side::Destination => 1,
    }
}

const fn is_at(kind: FaultKind, side: Side) -> bool {
    let at_destination = matches!(kind, FaultKind::DestinationRejected | FaultKind::DestinationConfirmedOther);
    at_destination == matches!(side, Side::Destination)
}

impl Streaks {
    /// An entry's copy ended in a fault of the blob, at this side.
    pub(super) fn failed(&mut self, entry: &Entry, kind: FaultKind, side: Side) -> Finding {
        if kind == FaultKind::Panicked || !is_at(kind, side) || self.is_known(entry, kind, side) {
            return Finding::OfTheEntry;
        }
        let run = self.runs.entry(kind).or_default();
        if run.refs.len() < MAX_REFS {
            run.refs.insert(entry.blob, entry.seq);
        }
        if run.refs.len() < ENOUGH || run.asking {
            return Finding::OfTheEntry;
        }
        if !needs_asking(kind) {
            self.forgive(kind);
            return Finding::OfThePeer;
        }
        if self.sample.is_empty() {
            // Nothing can be known of what it held.
            run.refs.clear();
            return Finding::OfTheEntry;
        }
        run.asking = true;
        Finding::Ask(self.sample())
    }

    /// What the source is to be asked for; empty where nothing was copied yet.
    pub(super) fn sample(&self) -> Vec<BlobMeta> {
        self.sample.iter().copied().collect()
    }

    /// The source was asked for the sample: whether it has vanished.
    pub(super) fn vanished(&mut self, kind: FaultKind, vanished: bool) {
        if vanished {
            self.forgive(kind);
        } else {
            self.runs.remove(&kind);
        }
    }

    /// Another store was found in the source's place: what it said of blobs means nothing.
    pub(super) fn impostor(&mut self) {
        for kind in FaultKind::ALL.into_iter().filter(|kind| needs_asking(*kind)) {
            self.forgive(kind);
        }
    }

    /// This side did what was asked of it for a blob.
    pub(super) fn succeeded(&mut self, side: Side, now: SystemTime) {
        self.last_success[index(side)] = Some(now);
        self.runs.retain(|kind, _| !is_at(*kind, side));
    }

    /// A blob was confirmed.
    pub(super) fn confirmed(&mut self, blob: BlobMeta) {
        if self.sample.iter().any(|known| known.blob == blob.blob) {
            return;
        }
        if self.sample.len() == SAMPLE {
            self.sample.pop_front();
        }
        self.sample.push_back(blob);
    }

    /// Entries to be forgiven, once they are settled.
    pub(super) fn take_forgiven(&mut self) -> Vec<Seq> {
        std::mem::take(&mut self.forgiven)
    }

    fn forgive(&mut self, kind: FaultKind) {
        let run = self.runs.remove(&kind).unwrap_or_default();
        self.forgiven.extend(run.refs.into_values());
    }

    fn is_known(&self, entry: &Entry, kind: FaultKind, side: Side) -> bool {
        let Some(success) = self.last_success[index(side)] else { return false };
        entry.failure.as_ref().is_some_and(|failure| failure.kind == kind && failure.last <= success)
    }
}

/// Whether most of what was copied is gone, or has another size.
pub(super) fn have_vanished(sample: &[BlobMeta], found: &[BlobMeta]) -> bool {
    let there = sample.iter().filter(|blob| found.contains(blob)).count();
    2 * there < sample.len()
}

#[cfg(test)]
pub(super) mod tests {
    use super::{ENOUGH, Finding, Streaks, have_vanished};
    use crate::blob::{BlobMeta, DigestFunction};
    use crate::clock::from_unix_ms;
    use crate::fault::FaultKind::{self, DestinationRejected, MissingAtSource, Panicked, ShortRead};
    use crate::fault::Side::{Destination, Source};
    use crate::queue::{Entry, Failure, Lane, Misses, RouteId, Seq, Weight};
    use std::time::SystemTime;

    pub(crate) fn entry(number: u64) -> Entry {
        Entry {
            seq: Seq(number),
            route: RouteId(1),
            blob: DigestFunction::Sha256.ref_of(&number.to_be_bytes()),
            size: None,
            lane: Lane::Fresh,
            enqueue_time: SystemTime::UNIX_EPOCH,
            due_time: SystemTime::UNIX_EPOCH,
            attempts: 0,
            misses: Misses::default(),
            weight: Weight::default(),
            failure: None,
            trace: None,
            visited: Vec::new(),
            syncs: Vec::new(),
            repair: false,
        }
    }

    pub(crate) fn failed(number: u64, kind: FaultKind, ms: u64) -> Entry {
        let time = from_unix_ms(ms);
        let (peer, message) = (String::new(), String::new());
        let failure = Failure { kind, code: None, peer, message, first: time, last: time, count: 1 };
        Entry { failure: Some(failure), attempts: 1, ..entry(number) }
    }

    fn meta(number: u64) -> BlobMeta {
        BlobMeta { blob: entry(number).blob, size: number }
    }

    fn refused(streaks: &mut Streaks, numbers: std::ops::Range<u64>) -> Option<u64> {
        let mut numbers = numbers.into_iter();
        numbers.find(|number| streaks.failed(&entry(*number), DestinationRejected, Destination) == Finding::OfThePeer)
    }

    #[test]
    fn twenty_distinct_refs_in_a_row_are_the_peers_fault_and_forgiven() {
        let mut streaks = Streaks::default();
        for _ in 0..100 {
            assert_eq!(refused(&mut streaks, 0..19), None, "the same ones again are no more");
        }
        streaks.failed(&entry(50), Panicked, Destination);
        streaks.succeeded(Source, from_unix_ms(1));
        assert!(streaks.take_forgiven().is_empty());
        assert_eq!(refused(&mut streaks, 19..40), Some(19));
        assert_eq!(streaks.take_forgiven().len(), ENOUGH);
        assert!(streaks.take_forgiven().is_empty());
        assert_eq!(refused(&mut streaks, 0..19), None, "it begins anew");
        streaks.succeeded(Destination, from_unix_ms(1));
        assert_eq!(refused(&mut streaks, 19..38), None, "a success between");
    }

    #[test]
    fn what_failed_before_the_last_success_is_no_news() {
        let mut streaks = Streaks::default();
        streaks.succeeded(Destination, from_unix_ms(10));
        for number in 0..1000 {
            let old = failed(number, DestinationRejected, 10);
            assert_eq!(streaks.failed(&old, DestinationRejected, Destination), Finding::OfTheEntry);
        }
        let otherwise = failed(0, ShortRead, 10);
        streaks.failed(&otherwise, DestinationRejected, Destination);
        let after = failed(1, DestinationRejected, 11);
        streaks.failed(&after, DestinationRejected, Destination);
        assert_eq!(refused(&mut streaks, 2..40), Some(19));
    }

    #[test]
    fn what_the_source_says_counts_only_if_earlier_blobs_have_vanished() {
        let mut streaks = Streaks::default();
        let miss = |streaks: &mut Streaks, numbers: std::ops::Range<u64>| {
            let asked = numbers.map(|number| streaks.failed(&entry(number), MissingAtSource, Source));
            asked.filter(|finding| *finding != Finding::OfTheEntry).collect::<Vec<_>>()
        };
        assert_eq!(miss(&mut streaks, 0..1000), [], "nothing was copied: there is nothing to ask for");
        (0..100).for_each(|number| streaks.confirmed(meta(number)));
        streaks.confirmed(meta(99));
        let sample: Vec<_> = (84..100).map(meta).collect();
        assert_eq!(miss(&mut streaks, 0..1000), [Finding::Ask(sample.clone())], "asked once");
        streaks.vanished(MissingAtSource, false);
        assert!(streaks.take_forgiven().is_empty());
        assert_eq!(miss(&mut streaks, 0..30), [Finding::Ask(sample)]);
        streaks.vanished(MissingAtSource, true);
        assert_eq!(streaks.take_forgiven().len(), 30);
        assert_eq!(miss(&mut streaks, 0..10), []);
        streaks.impostor();
        assert_eq!(streaks.take_forgiven().len(), 10);
    }

    #[test]
    fn most_must_be_gone() {
        let sample: Vec<_> = (0..16).map(meta).collect();
        assert!(have_vanished(&sample, &[]) && !have_vanished(&sample, &sample));
        assert!(have_vanished(&sample, &sample[..7]) && !have_vanished(&sample, &sample[..8]));
        let others: Vec<_> = sample.iter().map(|meta| BlobMeta { size: meta.size + 1, ..*meta }).collect();
        assert!(have_vanished(&sample, &others));
        assert!(!have_vanished(&[], &[]));
    }
}
