//! How a peer stands: a word and a sentence.

use super::sentence::Sentence;
use super::{PeerHealth, PeerStatus};
use crate::breaker::Phase;
use crate::fault::FaultKind;
use crate::peer::PeerSnapshot;
use crate::words::{span, time};
use std::time::SystemTime;

/// The picture of a peer.
pub(crate) fn peer_status(snapshot: PeerSnapshot, endpoint: String, now: SystemTime) -> PeerStatus {
    let health = match snapshot.phase {
        Phase::Closed if snapshot.info.is_some() => PeerHealth::Reachable,
        Phase::Closed => PeerHealth::Unknown,
        _ if snapshot.latched => PeerHealth::Unsuitable,
        _ => PeerHealth::Unreachable,
    };
    let mut peer = PeerStatus { snapshot, endpoint, health, summary: String::new() };
    let next = peer.snapshot.next_probe.and_then(|probe| probe.duration_since(now).ok());
    let mut sentence = peer.sentence("", now);
    if let Some(wait) = next.filter(|_| health != PeerHealth::Reachable) {
        sentence.add(format!(", next try in {}", span(wait)));
    }
    peer.summary = sentence.to_string();
    peer
}

impl PeerStatus {
    /// Why it cannot be used, where that is known.
    pub(super) fn trouble(&self) -> &str {
        let last_error = self.snapshot.last_error.as_ref().map(|(reason, _)| reason);
        let reason = self.snapshot.reason.as_ref().or(last_error);
        // The code says no more than that it is not there.
        reason.map_or("it has not answered yet", |reason| reason.message.trim_end_matches(" (UNAVAILABLE)"))
    }

    /// What there is to say of it, after these words.
    pub(super) fn sentence(&self, before: &str, now: SystemTime) -> Sentence {
        let name = &self.snapshot.name;
        let since = time(self.snapshot.since, now);
        let head = |text: &str| Sentence::new(format!("{before}{name} {text}"));
        let is_another = self.snapshot.reason.as_ref().is_some_and(|why| why.kind == FaultKind::StoreIdChanged);
        match (self.health, &self.snapshot.info) {
            (PeerHealth::Unsuitable, Some(info)) if is_another => {
                let mut sentence = head(&format!("is another store since {since}"));
                match &info.store_id {
                    Some(id) => sentence.end(&format!("; if it is to be: blobferry adopt {name} {id:?}")),
                    None => sentence.because(", one without an id"),
                }
                sentence
            }
            (PeerHealth::Reachable, Some(info)) => {
                let mut sentence = head(&format!("answers: {}, {}", info.kind.as_str(), info.version));
                sentence.because(&match &info.store_id {
                    Some(id) => format!(", store id {id}"),
                    None => ", without a store id: a swapped one would go unnoticed".to_owned(),
                });
                sentence
            }
            (health, _) => {
                let mut sentence = match health {
                    PeerHealth::Unsuitable => head(&format!("cannot be used since {since}")),
                    PeerHealth::Unreachable if self.snapshot.answers => {
                        head(&format!("answers, and everything else fails, since {since}"))
                    }
                    PeerHealth::Unreachable => head(&format!("is unreachable since {since}")),
                    _ => head("has not said yet what it is"),
                };
                if self.snapshot.reason.is_some() || self.snapshot.last_error.is_some() {
                    sentence.because(&format!(": {}", self.trouble()));
                }
                sentence
            }
        }
    }
}
