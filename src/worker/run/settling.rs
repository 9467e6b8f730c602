//! Records what was copied: everything that was judged while the last settlement was being written goes into the next, in
//! one durable write.

use super::{Instant, Rest, Run};
use crate::blob::{BlobMeta, BlobRef};
use crate::failpoint::{self, Point};
use crate::queue::failures::Remedy;
use crate::queue::{Claim, Lane, Outcome, Queue, QueueError, Seq};
use crate::telemetry::Span;
use crate::worker::report::{Activity, Confirmed, ShownCopy};
use crate::worker::streaks::SAMPLE;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How long to leave the queue alone after it failed.
pub(super) const QUEUE_PAUSE: Duration = Duration::from_secs(1);

/// Entries that may wait to be settled, beside one pack; more where there are more workers. When the queue writes slowly,
/// copying must not run ahead of it without bound.
const MAX_UNSETTLED: usize = 16_384;

/// Copies whose outcomes are to be recorded.
#[derive(Default)]
pub(super) struct Judged {
    settled: Vec<(Claim, Outcome)>,
    notes: Vec<Note>,
    // The copies, shown as in progress until their outcomes are recorded.
    shown: Vec<ShownCopy>,
    // End when all of it is settled.
    spans: Vec<Span>,
}

/// The end of a settlement.
pub(super) struct Settled {
    result: Result<(), QueueError>,
    notes: Vec<Note>,
    shown: Vec<ShownCopy>,
    spans: Vec<Span>,
}

/// What is remembered of an entry that leaves, or is given up, while it is being settled.
struct Note {
    seq: Seq,
    blob: BlobRef,
    lane: Lane,
    enqueue_time: SystemTime,
    end: End,
}

enum End {
    // Its size in bytes, and whether bytes were sent.
    Confirmed(u64, bool),
    Parked,
    // Why, and for how long it was missed.
    Discarded(String, Duration),
}

impl Judged {
    /// `cause`: of a discarded one.
    pub(super) fn add(&mut self, claim: Claim, outcome: Outcome, cause: Option<String>) {
        let entry = claim.entry();
        let end = match &outcome {
            Outcome::Confirmed { size, copied, .. } => Some(End::Confirmed(*size, *copied)),
            Outcome::Park { .. } => Some(End::Parked),
            Outcome::Discard => Some(End::Discarded(cause.unwrap_or_default(), entry.misses.lasted)),
            Outcome::Retry { .. } => None,
        };
        if let Some(end) = end {
            let (lane, enqueue_time) = (entry.lane, entry.enqueue_time);
            self.notes.push(Note { seq: entry.seq, blob: entry.blob, lane, enqueue_time, end });
        }
        self.settled.push((claim, outcome));
    }

    pub(super) fn show(&mut self, shown: ShownCopy, spans: impl IntoIterator<Item = Span>) {
        self.shown.push(shown);
        self.spans.extend(spans.into_iter().filter(Span::is_recorded));
    }

    pub(super) fn is_empty(&self) -> bool {
        self.settled.is_empty()
    }
}

impl Run {
    /// Whether settling keeps up with copying.
    pub(super) fn settles_well(&self) -> bool {
        self.judged.shown.len() < 2 * self.workers().max(32) && self.judged.settled.len() < MAX_UNSETTLED
    }

    /// Settles what has been judged so far, unless a settlement is under way.
    pub(super) fn settle(&mut self) {
        if self.settling.is_some() {
            return;
        }
        // Whoever is to be forgiven is settled already, or will be in this batch.
        let forgiven = self.worker.evidence().streaks.take_forgiven();
        if self.judged.is_empty() && forgiven.is_empty() {
            return;
        }
        let Judged { settled, notes, shown, spans } = std::mem::take(&mut self.judged);
        let (spec, deps) = (&self.worker.spec, &self.worker.deps);
        let (route, name, queue, failures) = (spec.id, spec.name.clone(), deps.queue.clone(), deps.failures.clone());
        self.settling = Some(Box::pin(async move {
            let result = if settled.is_empty() { Ok(()) } else { settle(queue, settled).await };
            if !forgiven.is_empty()
                && let Err(error) = failures.remedy(route, forgiven, Remedy::Revive).await
            {
                tracing::warn!(route = %name, %error, "attempts that were a peer's fault stay charged");
            }
            Settled { result, notes, shown, spans }
        }));
    }

    pub(super) fn on_settled(&mut self, settled: Settled) {
        let Settled { result, notes, shown, spans } = settled;
        if let Err(error) = result {
            self.worker.board.queue_failed(&error.to_string());
            self.set_activity(Activity::QueueFailed(error.to_string()));
            self.filling = None;
            self.waiting.clear();
            let until = Instant::now() + QUEUE_PAUSE;
            self.rest = Some(Rest { until, on_queue: false, on_peers: false, of_lanes: false });
            return;
        }
        self.worker.board.confirmed(notes.iter().filter_map(Note::confirmed));
        let mut evidence = self.worker.evidence();
        for Note { seq, blob, end, .. } in &notes {
            if let End::Discarded(cause, missed) = end {
                let (route, waited) = (&self.worker.spec.name, humantime::format_duration(*missed));
                tracing::warn!(%route, %blob, %waited, %cause, "discarded, as retry.on_missing says");
            }
            evidence.suspects.forget(*seq);
        }
        // No more is remembered of them than the latest.
        let latest = notes.iter().rev().filter_map(|note| Some((note.blob, note.confirmed()?.size))).take(SAMPLE);
        for (blob, size) in latest.collect::<Vec<_>>().into_iter().rev() {
            evidence.streaks.confirmed(BlobMeta { blob, size });
        }
        drop(evidence);
        drop((shown, spans));
    }
}

impl Note {
    fn confirmed(&self) -> Option<Confirmed> {
        let End::Confirmed(size, copied) = self.end else { return None };
        Some(Confirmed { lane: self.lane, enqueue_time: self.enqueue_time, size, copied })
    }
}

async fn settle(queue: Arc<dyn Queue>, settled: Vec<(Claim, Outcome)>) -> Result<(), QueueError> {
    failpoint::pause(Point::WorkerSettle).await?;
    queue.settle(settled).await
}
