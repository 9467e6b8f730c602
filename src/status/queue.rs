//! What the queue's figures mean.

use super::sentence::Sentence;
use super::{QueueState, QueueStatus};
use crate::queue::damage::{Incident, Mending};
use crate::words::{bytes, number, several, time};
use std::path::PathBuf;
use std::time::SystemTime;

/// The figures of the queue, as they were gathered.
#[derive(Clone, Debug, Default)]
pub(crate) struct QueueFacts {
    /// Entries of all routes.
    pub entries: u64,
    /// Those among them that are parked.
    pub parked: u64,
    /// From which number of entries that are not parked on announcements are refused.
    pub max_entries: u64,
    /// More parked ones than these are too many.
    pub max_parked: u64,
    /// Its folder, where it is on a disk.
    pub folder: Option<PathBuf>,
    /// Free bytes on its disk, where known.
    pub free_bytes: Option<u64>,
    /// Free bytes below which announcements are refused.
    pub reserve_bytes: u64,
    /// Why its last durable write failed, if it did.
    pub trouble: Option<String>,
    /// What was lost.
    pub incidents: Vec<Incident>,
    /// Stored bytes that were found damaged.
    pub damage: String,
}

/// The picture of the queue.
pub(crate) fn queue_status(facts: QueueFacts, now: SystemTime) -> QueueStatus {
    let QueueFacts { entries, parked, max_entries, max_parked, folder, .. } = facts;
    let QueueFacts { free_bytes, reserve_bytes, trouble, incidents, damage, .. } = facts;
    let (state, reason, advice) = match (trouble, free_bytes) {
        (Some(trouble), _) => (QueueState::Failing, trouble, ""),
        (None, _) if entries.saturating_sub(parked) >= max_entries => {
            let aside = if parked > 0 { ", parked ones aside" } else { "" };
            (QueueState::Full, format!("it holds its {} entries{aside}", number(max_entries)), "; copying makes room")
        }
        (None, Some(free)) if free < reserve_bytes => {
            let (free, reserve) = (bytes(free), bytes(reserve_bytes));
            let disk = folder.map_or("its disk".to_owned(), |folder| format!("the disk of {}", folder.display()));
            let reason = format!("{free} left, less than the reserve of {reserve}, on {disk}");
            (QueueState::Full, reason, "; free some space")
        }
        _ if !incidents.is_empty() => (QueueState::Degraded, String::new(), ""),
        _ => (QueueState::Ok, String::new(), ""),
    };
    let sentence = match state {
        QueueState::Degraded => {
            let lost = incidents.first().map(|incident| lost_text(incident, now)).unwrap_or_default();
            let mut sentence = Sentence::new(format!("degraded: {lost}"));
            sentence.end("; a full sync of each route makes up for it");
            sentence
        }
        QueueState::Ok if !damage.is_empty() => {
            let mut sentence = Sentence::new("damaged, restart to have it mended");
            sentence.because(&format!(": {damage}"));
            sentence
        }
        QueueState::Ok if parked > max_parked => {
            let mut sentence = Sentence::new(format!(
                "holds {} parked, more than queue.parked_max_share allows ({})",
                several(parked, "entry"),
                number(max_parked)
            ));
            sentence.end(": blobferry failures list");
            sentence
        }
        QueueState::Ok => Sentence::new(format!("ok: {}, accepting announcements", several(entries, "entry"))),
        QueueState::Full => refusing("full", &reason, advice),
        QueueState::Failing => refusing("failing", &reason, advice),
    };
    QueueStatus {
        state,
        sentence,
        reason: reason + advice,
        entries,
        parked,
        max_entries,
        max_parked,
        free_bytes,
        reserve_bytes,
        incidents,
        damage,
    }
}

fn refusing(word: &str, reason: &str, advice: &str) -> Sentence {
    let mut sentence = Sentence::new(format!("{word}: announcements are refused"));
    sentence.because(&format!(": {reason}"));
    sentence.end(advice);
    sentence
}

fn lost_text(incident: &Incident, now: SystemTime) -> String {
    let found = time(incident.time, now);
    match incident.lost_from {
        Some(from) => format!("what was accepted from {} to {found} may be lost", time(from, now)),
        None => format!("what was accepted up to {found} and not copied may be lost"),
    }
}

/// What was lost, and what was done about it, in one sentence.
pub(crate) fn incident_text(incident: &Incident, now: SystemTime) -> String {
    let done = match incident.mending {
        Mending::CutBack => "its log was damaged and is read up to there",
        Mending::BegunAnew => "it could not be read and was begun anew",
    };
    format!("{}: {done}; it is kept as it was in {}", lost_text(incident, now), incident.kept)
}
