//! What follows from the end of a pack: for each of its entries as if it had been copied alone, and for the peers once.
//!
//! A peer's error in a pack says nothing of any single blob in it: nobody is charged for it. All that were not answered
//! are released as suspects, and go alone next, where the one that draws the error is found out.

use super::{Attempt, Verdict, confirmed, is_of_the_entry};
use crate::breaker::Reason;
use crate::copy::{CopyError, PackEnd};
use crate::fault::Side;
use crate::queue::{Claim, Outcome, Seq};
use crate::telemetry::Span;
use crate::worker::attempt::FinishedPack;
use crate::worker::question::Question;
use crate::worker::report::ShownCopy;
use crate::worker::waiting::Waiter;
use crate::worker::{Worker, traced};

/// What the end of a pack leads to. Claims that are in none of these were released.
pub(in crate::worker) struct PackVerdict {
    /// What is to be recorded; of what is discarded, why.
    pub(in crate::worker) settled: Vec<(Claim, Outcome, Option<String>)>,
    /// What has to be copied on its own.
    pub(in crate::worker) alone: Vec<Waiter>,
    /// What the source is to be asked.
    pub(in crate::worker) questions: Vec<Question>,
    /// Of those that were confirmed, how many the destination held before.
    pub(in crate::worker) were_there: usize,
    pub(in crate::worker) shown: ShownCopy,
    /// Those of the entries that are settled.
    pub(in crate::worker) spans: Vec<Span>,
}

/// A peer's error, and how many entries it hit.
#[derive(Default)]
struct Failures(Option<CopyError>, Vec<Seq>);

impl Worker {
    /// Reports a pack's end to the peers, and decides what becomes of its entries.
    pub(in crate::worker) fn judge_pack(&self, finished: FinishedPack) -> PackVerdict {
        let FinishedPack { ends, began, permits, shown, spans, .. } = finished;
        let mut spans = spans.into_iter();
        let mut verdict = PackVerdict {
            settled: Vec::with_capacity(ends.len()),
            alone: Vec::new(),
            questions: Vec::new(),
            were_there: 0,
            shown,
            spans: Vec::new(),
        };
        // Successes are reported together, but before the next failure: a success between ends a streak.
        let mut good: Vec<Seq> = Vec::with_capacity(ends.len());
        let mut peers: [Failures; 2] = Default::default();
        for (claim, end) in ends {
            let entry = claim.entry();
            let span = spans.next().unwrap_or_default();
            let error = match end {
                PackEnd::Ended(Ok(copied)) => {
                    good.push(entry.seq);
                    verdict.were_there += usize::from(!copied.was_new);
                    let outcome = confirmed(&self.spec, entry, copied);
                    traced::end(&span, entry, &Ok(copied), Some(&outcome));
                    verdict.spans.push(span);
                    verdict.settled.push((claim, outcome, None));
                    continue;
                }
                PackEnd::Alone { size } => {
                    traced::end_alone(&span);
                    let size = size.or(entry.size);
                    verdict.alone.push(Waiter { claim, size });
                    continue;
                }
                PackEnd::Ended(Err(error)) => error,
            };
            if !is_of_the_entry(&error) {
                let side = error.side;
                let Failures(first, entries) = &mut peers[usize::from(side == Side::Destination)];
                entries.push(entry.seq);
                if first.is_none() {
                    self.board.copy_failed(entry.blob, permits.of(side).peer().name(), &error, false);
                    *first = Some(error.clone());
                }
                traced::end(&span, entry, &Err(error), None);
                continue;
            }
            if !good.is_empty() {
                self.succeeded(&good, began, &permits);
                good.clear();
            }
            // What the destination says of a blob, it says of bytes that the source gave.
            let heard = [error.side == Side::Destination, false];
            let attempt = Attempt { entry, began, permits: &permits, heard };
            let Verdict { outcome, question } = span.inside(|| {
                let (charged, question) = self.blob_failed(&attempt, &error);
                self.failed(&attempt, &error, charged, question)
            });
            verdict.questions.extend(question);
            let cause = matches!(outcome, Some(Outcome::Discard)).then(|| error.to_string());
            traced::end(&span, entry, &Err(error), outcome.as_ref());
            if let Some(outcome) = outcome {
                verdict.spans.push(span);
                verdict.settled.push((claim, outcome, cause));
            }
        }
        if !good.is_empty() {
            self.succeeded(&good, began, &permits);
        }
        for (side, Failures(error, entries)) in [Side::Source, Side::Destination].into_iter().zip(peers) {
            let Some(error) = error else { continue };
            if side == Side::Destination {
                self.side_succeeded(&entries, began, &permits, Side::Source);
            }
            let permit = permits.of(side);
            let (route, peer, blobs) = (&self.spec.name, permit.peer().name(), entries.len());
            tracing::debug!(%route, %peer, blobs, %error, "a pack failed, the peer is at fault");
            {
                let suspects = &mut self.evidence().suspects;
                for seq in &entries {
                    suspects.failed(*seq, side, began, false);
                }
            }
            self.board.copies_failed(entries.len() as u64 - 1, permit.peer().name(), &error);
            permit.failed(Reason::new(error.kind, error.message));
        }
        verdict
    }
}
