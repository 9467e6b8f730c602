//! What holds a route back most.

use super::LimitingFactor;
use super::route::RouteFacts;
use crate::worker::{Wait, Waits};
use std::time::SystemTime;

/// From so much of the time on, workers count as busy all the time.
const ALL_BUSY: f64 = 0.9;

/// Copies mostly wait for a store if they do so for this part of their time.
const MOSTLY: f64 = 0.75;

/// What holds back a route with so many entries ready and claimed; absent: not known.
pub(super) fn limiting(
    facts: &RouteFacts<'_>,
    ready: u64,
    claimed: u64,
    is_blocked: bool,
    now: SystemTime,
) -> Option<LimitingFactor> {
    if !facts.route.enabled || facts.limits.limits.paused {
        return Some(LimitingFactor::Paused);
    }
    let due = facts.oldest.next_due.is_some_and(|due| due <= now);
    // A store that is away holds the route back, whether or not there is something to copy: nobody knows what a sync would find.
    if is_blocked {
        return Some(LimitingFactor::Breaker);
    }
    if ready + claimed == 0 && !due {
        return Some(LimitingFactor::Idle);
    }
    match facts.worker.as_ref().map(|report| report.waits) {
        // While there is a backlog, what was idle before it holds nothing back.
        Some(waits) if ready > 0 && waits.without(Wait::Work).most().is_some() => {
            limiting_of(&waits.without(Wait::Work))
        }
        Some(waits) if ready == 0 && waits.most().is_some() => limiting_of(&waits),
        _ => (ready > 0 && claimed >= facts.limits.limits.workers as u64).then_some(LimitingFactor::Workers),
    }
}

/// What follows from what the workers waited for. Whoever is waited for for most of the time holds the route back; where
/// neither store is, and hardly a worker is ever free, more of them would help.
pub(super) fn limiting_of(waits: &Waits) -> Option<LimitingFactor> {
    let busy = waits.share(Wait::Source) + waits.share(Wait::Destination);
    let of_busy = |wait| waits.share(wait) / busy.max(f64::MIN_POSITIVE);
    if busy >= ALL_BUSY && of_busy(Wait::Source).max(of_busy(Wait::Destination)) < MOSTLY {
        return Some(LimitingFactor::Workers);
    }
    Some(match waits.most()? {
        Wait::Work => LimitingFactor::Idle,
        Wait::Breaker => LimitingFactor::Breaker,
        Wait::Capacity => LimitingFactor::PeerOverloaded,
        // A pause in force has been told already: this is a rate, or was a pause.
        Wait::Limit => LimitingFactor::RateLimit,
        Wait::Queue => LimitingFactor::QueueDisk,
        Wait::Source => LimitingFactor::SourceSlow,
        Wait::Destination => LimitingFactor::DestinationSlow,
    })
}
