//! What follows from the end of a copy: for the entry, for the peers, and for the next hops. No I/O.

use super::{Policy, RouteSpec, Worker};
use crate::breaker::Reason;
use crate::copy::{Copied, CopyError, Progress};
use crate::fault::{Blame, FaultKind, Side};
use crate::peer::Permit;
use crate::queue::{Entry, Failure, Origin, Outcome, Push};
use std::sync::Arc;
use std::time::SystemTime;
use tonic::Code;

/// The permits that a batch of copies runs under.
#[derive(Debug)]
pub(super) struct Permits {
    pub(super) from: Permit,
    pub(super) to: Permit,
}

impl Permits {
    fn of(&self, side: Side) -> &Permit {
        match side {
            Side::Source => &self.from,
            Side::Destination => &self.to,
        }
    }

    /// Tells the breakers of the sides that have answered so far: others may be waiting for a probe of a large blob.
    pub(super) fn tell_heard(&self, progress: &Progress) {
        for side in [Side::Source, Side::Destination] {
            if progress.was_heard(side) {
                self.of(side).succeeded();
            }
        }
    }
}

impl Worker {
    /// Reports a copy's end to the peers, and decides what becomes of the entry; `None`: it is released, uncharged.
    pub(super) fn judge(
        &self,
        entry: &Entry,
        result: &Result<Copied, CopyError>,
        permits: &Permits,
        progress: &Progress,
    ) -> Option<Outcome> {
        let error = match result {
            Ok(copied) => {
                let mut suspects = self.suspects();
                for side in [Side::Source, Side::Destination] {
                    permits.of(side).succeeded();
                    suspects.succeeded(entry.seq, side);
                }
                return Some(confirmed(&self.spec, entry, *copied));
            }
            Err(error) => error,
        };
        let charged = self.report_fault(entry, error, permits, progress);
        let peer = permits.of(error.side).peer().name();
        self.board.copy_failed(entry.blob, peer, error, charged);
        if !charged {
            tracing::debug!(route = %self.spec.name, blob = %entry.blob, %peer, %error, "copy failed, the peer is at fault");
            return None;
        }
        let outcome = charge(&self.deps.policy, entry, error, peer, self.deps.clock.now(), self.deps.entropy.jitter());
        let parked = matches!(outcome, Outcome::Park { .. });
        let attempt = entry.attempts.saturating_add(1);
        tracing::warn!(route = %self.spec.name, blob = %entry.blob, %peer, attempt, parked, %error, "copy failed");
        Some(outcome)
    }

    /// Tells the breakers; returns whether the entry is to be charged.
    fn report_fault(&self, entry: &Entry, error: &CopyError, permits: &Permits, progress: &Progress) -> bool {
        let mut suspects = self.suspects();
        let mut charged = error.blame() == Blame::Entry;
        for side in [Side::Source, Side::Destination] {
            let answered = error.blame() == Blame::Entry && error.side == side && error.kind != FaultKind::Panicked;
            if error.blame() == Blame::Peer(side) {
                // A store that is nearly full takes small blobs and no large ones: room is never the blob's to make.
                let full = error.code == Some(Code::ResourceExhausted);
                if !full && suspects.is_convicted(entry.seq, side) {
                    charged = true;
                } else {
                    suspects.failed(entry.seq, side);
                    permits.of(side).failed(Reason::new(error.kind, error.message.clone()));
                }
            } else if answered || progress.was_heard(side) {
                permits.of(side).succeeded();
                suspects.succeeded(entry.seq, side);
            }
        }
        charged
    }
}

/// The settlement of a confirmed entry: removed, and pushed onto the next hops in the same write.
pub(super) fn confirmed(spec: &RouteSpec, entry: &Entry, copied: Copied) -> Outcome {
    let mut visited = entry.visited.clone();
    for store in [spec.from.name(), spec.to.name()] {
        if !visited.contains(store) {
            visited.push(store.clone());
        }
    }
    let onward = spec.next.iter().filter(|hop| !visited.contains(&hop.to));
    let chained = onward.map(|hop| Push {
        route: hop.route,
        blob: entry.blob,
        size: Some(copied.size),
        lane: entry.lane,
        trace: entry.trace.clone(),
        visited: visited.clone(),
        repair: false,
        origin: Origin::Chained,
    });
    Outcome::Confirmed { size: copied.size, copied: copied.copied, chained: chained.collect() }
}

/// The settlement of an entry that answers for its failure. `jitter` is in `[0, 1)`.
pub(super) fn charge(
    policy: &Policy,
    entry: &Entry,
    error: &CopyError,
    peer: &Arc<str>,
    now: SystemTime,
    jitter: f64,
) -> Outcome {
    let attempts = entry.attempts.saturating_add(1);
    let failure = Failure {
        kind: error.kind,
        code: error.code,
        peer: peer.to_string(),
        message: error.message.clone(),
        first: now,
        last: now,
        count: 1,
    };
    if error.is_permanent() || policy.patience.is_exhausted(error.kind, attempts) {
        return Outcome::Park { failure };
    }
    let delay = policy.backoff.delay(attempts, jitter);
    Outcome::Retry { due: now.checked_add(delay).unwrap_or(now), failure }
}
