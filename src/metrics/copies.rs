//! What is counted of a route's copies.

use super::{CALL_SECONDS, Histogram, LAG_SECONDS};
use crate::fault::FaultKind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Who can be at fault: the source, the destination, or neither.
const PARTIES: usize = 3;

/// The recorder of one route's worker. All of it is since this process started.
#[derive(Debug)]
pub(crate) struct CopyMetrics {
    /// From the push of a fresh entry to its confirmation.
    pub fresh_lag: Histogram,
    /// The same for backfill.
    pub backfill_lag: Histogram,
    /// How long the source was waited for, in each copy that ended, however it did: of one blob, or of a pack of small ones.
    pub fetch: Histogram,
    /// How long the destination was.
    pub write: Histogram,
    retried: AtomicU64,
    parked: AtomicU64,
    peers: [Arc<str>; PARTIES],
    failures: [[AtomicU64; PARTIES]; FaultKind::ALL.len()],
}

impl CopyMetrics {
    /// Of a route between these stores.
    pub(crate) fn new(from: Arc<str>, to: Arc<str>) -> Self {
        Self {
            fresh_lag: Histogram::new(&LAG_SECONDS),
            backfill_lag: Histogram::new(&LAG_SECONDS),
            fetch: Histogram::new(&CALL_SECONDS),
            write: Histogram::new(&CALL_SECONDS),
            retried: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            peers: [from, to, Arc::from("")],
            failures: Default::default(),
        }
    }

    /// Counts attempts that failed, or a failure of the queue, of which no store is at fault.
    pub(crate) fn failed(&self, kind: FaultKind, peer: &str, count: u64) {
        let party = self.peers.iter().position(|known| **known == *peer).unwrap_or(PARTIES - 1);
        if let Some(index) = FaultKind::ALL.iter().position(|known| *known == kind) {
            self.failures[index][party].fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Counts an entry that was charged for a failed attempt, and is tried again.
    pub(crate) fn retried(&self) {
        self.retried.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts an entry that was given up.
    pub(crate) fn parked(&self) {
        self.parked.fetch_add(1, Ordering::Relaxed);
    }

    /// Entries that were to be tried again, and those that were given up.
    pub(crate) fn charged(&self) -> (u64, u64) {
        (self.retried.load(Ordering::Relaxed), self.parked.load(Ordering::Relaxed))
    }

    /// Failures by kind and by the store at fault, which is empty where none is. Also those that are to be expected and have
    /// not happened yet: a rate sees nothing of a counter that begins at 1.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (FaultKind, &str, u64)> {
        FaultKind::ALL.iter().zip(&self.failures).flat_map(|(kind, counts)| {
            let counted = self.peers.iter().zip(counts).zip(expected(*kind));
            counted
                .map(|((peer, count), expected)| ((*kind, &**peer, count.load(Ordering::Relaxed)), expected))
                .filter(|((_, _, count), expected)| *count > 0 || *expected)
                .map(|(failures, _)| failures)
        })
    }
}

/// Whether a kind of fault can be the source's, the destination's, and nobody's.
const fn expected(kind: FaultKind) -> [bool; PARTIES] {
    match kind {
        FaultKind::SourceUnavailable
        | FaultKind::MissingAtSource
        | FaultKind::SourceSizeMismatch
        | FaultKind::SourceBytesCorrupt
        | FaultKind::ShortRead
        | FaultKind::SourceRejected
        | FaultKind::SourceOverloaded => [true, false, false],
        FaultKind::DestinationUnavailable
        | FaultKind::DestinationRejected
        | FaultKind::DestinationConfirmedOther
        | FaultKind::DestinationOverloaded
        | FaultKind::NotConfirmed => [false, true, false],
        FaultKind::QueueWriteFailed => [false, false, true],
        FaultKind::Panicked
        | FaultKind::PeerProtocol
        | FaultKind::WrongPeerKind
        | FaultKind::StoreIdChanged
        | FaultKind::UnsupportedDigest
        | FaultKind::ConnectionCut
        | FaultKind::TooSlow => [true, true, false],
    }
}

#[cfg(test)]
mod tests {
    use super::CopyMetrics;
    use crate::fault::FaultKind;

    #[test]
    fn failures_are_told_apart_by_kind_and_store() {
        let metrics = CopyMetrics::new("a".into(), "b".into());
        // Each can be seen before it happens.
        assert_eq!(metrics.failures().count(), 27);
        assert!(metrics.failures().all(|(_, _, count)| count == 0));
        for (kind, peer) in [
            (FaultKind::ShortRead, "a"),
            (FaultKind::ShortRead, "a"),
            (FaultKind::DestinationRejected, "b"),
            (FaultKind::StoreIdChanged, "b"),
            (FaultKind::QueueWriteFailed, ""),
            (FaultKind::QueueWriteFailed, "whoever"),
            // Not expected, and counted all the same.
            (FaultKind::DestinationRejected, "a"),
        ] {
            metrics.failed(kind, peer, 1);
        }
        let counted: Vec<_> = metrics.failures().filter(|(_, _, count)| *count > 0).collect();
        assert_eq!(
            counted,
            [
                (FaultKind::ShortRead, "a", 2),
                (FaultKind::DestinationRejected, "a", 1),
                (FaultKind::DestinationRejected, "b", 1),
                (FaultKind::QueueWriteFailed, "", 2),
                (FaultKind::StoreIdChanged, "b", 1),
            ]
        );
    }
}
