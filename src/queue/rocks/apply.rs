//! What a durable batch changes in memory.

use super::request::Decided;
use super::shared::Shared;
use super::txn::{Effects, Moved};
use crate::queue::Claim;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Makes a batch that is durable known to claims and readers.
pub(super) fn apply(shared: &Shared, effects: Effects, moves: &[Moved], decided: &[Decided]) {
    let settled = || {
        let claims = decided.iter().filter_map(|decided| match decided {
            Decided::Settle(_, Ok(claims)) => Some(claims),
            _ => None,
        });
        claims.flatten().map(Claim::entry)
    };
    let mut news = BTreeSet::new();
    let mut claims = shared.claims();
    for entry in settled() {
        claims.settle(entry.route, entry.lane, entry.seq.0);
    }
    for Moved { route, seq, before, after, row } in moves {
        if let Some(row) = row {
            claims.keep_row(Arc::clone(row));
        }
        if before != after {
            claims.moved(*route, *seq, before.map(|before| before.lane), *after);
            news.extend(after.map(|after| (*route, after.lane, after.due.is_some())));
        }
    }
    drop(claims);

    let mut figures = shared.figures();
    for (route, counts) in effects.counts {
        figures.set_counts(route, counts);
    }
    for (sync, tally) in effects.syncs {
        figures.set_sync(sync, tally);
    }
    for sync in effects.old_syncs {
        figures.forget_sync(sync);
    }
    figures.routes.extend(effects.routes);
    figures.aside = effects.aside_total;
    for entry in settled() {
        figures.claim(entry, false);
    }
    drop(figures);
    for (route, lane, retry) in news {
        shared.wake(route, |changes| changes.add(lane, retry));
    }
    if decided.iter().any(|decided| matches!(decided, Decided::Settle(..) | Decided::Remedy(..))) {
        shared.settled();
    }
}
