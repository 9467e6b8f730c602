//! What a queue lost, and what is wrong with it now.
//!
//! A queue that was damaged on its disk opens again all the same (`queue::rocks` says how), and what happened is kept as an
//! [`Incident`] in the [`State`](super::State), until a full sync of each route has made up for it:
//!
//! | key | value |
//! |---|---|
//! | `degraded/incident/TIME` | the incident; the time is milliseconds since 1970, 20 digits |
//! | `degraded/route/NAME` | empty: entries of this route may be lost, and no full sync has looked since |
//! | `on_start/NAME` | why the route needs a full sync, for people |
//!
//! [`Queue::register`](super::Queue::register) writes `on_start/NAME` together with a route that it meets for the first
//! time: nobody knows what its stores hold.

use super::{QueueError, StateWrite};
use crate::clock::{from_unix_ms, to_unix_ms};
use prost::Message;
use std::time::SystemTime;

/// Begins the keys of incidents.
pub(crate) const INCIDENTS: &str = "degraded/incident/";

/// Begins the keys of routes that may have lost entries; the route's name follows.
pub(crate) const DEGRADED_ROUTES: &str = "degraded/route/";

/// Begins the keys of routes that need a full sync; the route's name follows.
pub(crate) const SYNC_NEEDED: &str = "on_start/";

/// Why a route needs a full sync that was not known before.
pub(crate) const REASON_NEW: &str = "the route is new to the queue";

/// Why the routes of an imported queue need a full sync.
pub(crate) const REASON_IMPORTED: &str = "the queue was restored by an import";

/// The version of [`IncidentRow`].
const VERSION: u32 = 1;

/// How a damaged queue was made to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mending {
    /// Its log was read up to the damage. What was written before is there, what came after is not.
    CutBack,
    /// It could not be read at all: a new one was begun.
    BegunAnew,
}

/// A damage that cost a part of the queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Incident {
    /// When it was found.
    pub time: SystemTime,
    /// What was done.
    pub mending: Mending,
    /// What was wrong, for people.
    pub what: String,
    /// The folder where the queue is kept as it was found.
    pub kept: String,
    /// What was acked from this time on, up to `time`, may be lost. Absent: all that was acked since the queue was made.
    pub lost_from: Option<SystemTime>,
    /// Whether the routes that it concerns were marked: all that were configured at the start that found it.
    pub is_assigned: bool,
}

#[derive(Clone, PartialEq, Message)]
struct IncidentRow {
    #[prost(uint32, tag = "1")]
    version: u32,
    #[prost(uint64, tag = "2")]
    time_ms: u64,
    #[prost(bool, tag = "3")]
    begun_anew: bool,
    #[prost(string, tag = "4")]
    what: String,
    #[prost(string, tag = "5")]
    kept: String,
    #[prost(uint64, optional, tag = "6")]
    lost_from_ms: Option<u64>,
    #[prost(bool, tag = "7")]
    is_assigned: bool,
}

impl Incident {
    /// The bytes that are kept of it.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let row = IncidentRow {
            version: VERSION,
            time_ms: to_unix_ms(self.time),
            begun_anew: self.mending == Mending::BegunAnew,
            what: self.what.clone(),
            kept: self.kept.clone(),
            lost_from_ms: self.lost_from.map(to_unix_ms),
            is_assigned: self.is_assigned,
        };
        row.encode_to_vec()
    }

    /// The incident of these bytes.
    ///
    /// # Errors
    /// [`QueueError::Read`] where they are none.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, QueueError> {
        let unreadable = |why: String| QueueError::Read(format!("an incident cannot be read: {why}"));
        let row = IncidentRow::decode(bytes).map_err(|error| unreadable(error.to_string()))?;
        if row.version != VERSION {
            return Err(unreadable(format!("its version is {}", row.version)));
        }
        Ok(Self {
            time: from_unix_ms(row.time_ms),
            mending: if row.begun_anew { Mending::BegunAnew } else { Mending::CutBack },
            what: row.what,
            kept: row.kept,
            lost_from: row.lost_from_ms.map(from_unix_ms),
            is_assigned: row.is_assigned,
        })
    }

    /// Where it is kept in the state.
    pub(crate) fn key(&self) -> String {
        format!("{INCIDENTS}{:020}", to_unix_ms(self.time))
    }
}

/// The write that says that a route needs a full sync.
pub(crate) fn sync_needed(route: &str, why: &str) -> StateWrite {
    StateWrite { key: format!("{SYNC_NEEDED}{route}"), value: Some(why.as_bytes().to_vec()) }
}

/// What is wrong with a queue at present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueTrouble {
    /// Stored bytes were found damaged while it runs: what they hold cannot be read. It takes and writes on. The next start
    /// reads everything, and mends what must be.
    Damaged(String),
    /// A durable write failed. It takes nothing, and opens its database again by itself.
    Reopening(String),
    /// It cannot be opened again while it runs: the next start has to mend it.
    Ended(String),
}

impl QueueTrouble {
    /// What is wrong, for people.
    pub fn text(&self) -> &str {
        match self {
            Self::Damaged(what) | Self::Reopening(what) | Self::Ended(what) => what,
        }
    }
}

/// Tells how a queue is.
pub trait Condition: Send + Sync + 'static {
    /// What is wrong with it now; `None`: nothing.
    fn trouble(&self) -> Option<QueueTrouble>;
}

#[cfg(test)]
mod tests {
    use super::{Incident, Mending};
    use crate::clock::from_unix_ms;

    #[test]
    fn an_incident_is_read_as_it_was_written() {
        for (mending, lost_from) in [(Mending::CutBack, Some(from_unix_ms(1_000))), (Mending::BegunAnew, None)] {
            let incident = Incident {
                time: from_unix_ms(2_000),
                mending,
                what: "checksum mismatch".to_owned(),
                kept: "/data/queue/db.damaged".to_owned(),
                lost_from,
                is_assigned: lost_from.is_some(),
            };
            assert_eq!(Incident::decode(&incident.encode()).unwrap(), incident);
            assert_eq!(incident.key(), "degraded/incident/00000000000000002000");
        }
        assert!(Incident::decode(b"\xff").is_err());
        assert!(Incident::decode(b"").is_err());
    }
}
