//! What the queue's figures mean.

use super::words::{bytes, number, since};
use super::{QueueState, QueueStatus};
use crate::queue::damage::{Incident, Mending};
use std::path::PathBuf;
use std::time::SystemTime;

/// The figures of the queue, as they were gathered.
#[derive(Clone, Debug, Default)]
pub struct QueueFacts {
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
pub fn queue_status(facts: QueueFacts, now: SystemTime) -> QueueStatus {
    let QueueFacts { entries, parked, max_entries, max_parked, folder, .. } = facts;
    let QueueFacts { free_bytes, reserve_bytes, trouble, incidents, damage, .. } = facts;
    let (state, reason) = match (trouble, free_bytes) {
        (Some(trouble), _) => (QueueState::Failing, trouble),
        (None, _) if entries.saturating_sub(parked) >= max_entries => {
            let aside = if parked > 0 { ", parked ones aside" } else { "" };
            (QueueState::Full, format!("it holds its {} entries{aside}; copying makes room", number(max_entries)))
        }
        (None, Some(free)) if free < reserve_bytes => {
            let (free, reserve) = (bytes(free), bytes(reserve_bytes));
            let disk = folder.map_or("its disk".to_owned(), |folder| format!("the disk of {}", folder.display()));
            (QueueState::Full, format!("{disk} has {free} left, less than the reserve of {reserve}; free some space"))
        }
        _ if !incidents.is_empty() => (QueueState::Degraded, String::new()),
        _ => (QueueState::Ok, String::new()),
    };
    let held = if entries == 1 { "1 entry".to_owned() } else { format!("{} entries", number(entries)) };
    let lost = incidents.first().map(|incident| incident_text(incident, now)).unwrap_or_default();
    let mut summary = match state {
        QueueState::Degraded => format!("degraded: {held}, accepting announcements; {lost}"),
        QueueState::Ok => format!("ok: {held}, accepting announcements"),
        QueueState::Full => format!("full: {held}, announcements are refused: {reason}"),
        QueueState::Failing => format!("failing: {held}, announcements are refused: {reason}"),
    };
    if parked > max_parked {
        summary.push_str(&format!(
            "; {} are parked, more than queue.parked_max_share allows ({}); retry or discard them",
            number(parked),
            number(max_parked)
        ));
    }
    if !damage.is_empty() {
        summary.push_str(&format!("; damaged, restart to have it mended: {damage}"));
    }
    QueueStatus {
        state,
        summary,
        reason,
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

/// What was lost, in one sentence.
pub fn incident_text(incident: &Incident, now: SystemTime) -> String {
    let found = since(incident.time, now);
    let lost = match incident.lost_from {
        Some(from) => format!("what was accepted from {} to {found} may be lost", since(from, now)),
        None => format!("what was accepted up to {found} and not copied may be lost"),
    };
    let done = match incident.mending {
        Mending::CutBack => "its log was damaged and is read up to there",
        Mending::BegunAnew => "it could not be read and was begun anew",
    };
    format!("{lost}: {done}; it is kept as it was in {}; a full sync of each route makes up for it", incident.kept)
}
