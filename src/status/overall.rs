//! How everything stands.

use super::route::{sum, tally};
use super::sentence::Sentence;
use super::{QueueState, QueueStatus, ReplicatorState, RouteState, RouteStatus};
use crate::announce::Backlog;
use crate::queue::Tally;
use crate::words::several;

/// How everything stands, in a word and a sentence.
pub(crate) fn overall(routes: &[RouteStatus], queue: &QueueStatus, draining: bool) -> (ReplicatorState, Sentence) {
    if draining {
        let text = "draining: copies in progress are being finished, the rest stays queued";
        return (ReplicatorState::Draining, Sentence::new(text));
    }
    let of_queue = |word: &str| queue.sentence.clone().behind(word);
    if matches!(queue.state, QueueState::Full | QueueState::Failing) {
        return (ReplicatorState::NotAccepting, of_queue("not accepting: queue "));
    }
    if queue.state == QueueState::Degraded {
        return (ReplicatorState::Degraded, of_queue("queue "));
    }
    if !queue.damage.is_empty() || queue.parked > queue.max_parked {
        return (ReplicatorState::Attention, of_queue("attention: queue "));
    }
    let troubled: Vec<&RouteStatus> = routes.iter().filter(|route| needs_eye(route)).collect();
    if let [first, others @ ..] = troubled.as_slice() {
        let mut sentence = first.sentence.clone().behind("attention: ");
        if !others.is_empty() {
            sentence.end(&format!(" (and {})", several(others.len() as u64, "more route")));
        }
        return (ReplicatorState::Attention, sentence);
    }
    let enabled: Vec<&RouteStatus> = routes.iter().filter(|route| route.route.enabled).collect();
    let sentence = match enabled.as_slice() {
        [] => Sentence::new("ok: no route is enabled, nothing is copied"),
        [only] => only.sentence.clone().behind("ok: "),
        many => {
            let in_sync = many.iter().filter(|route| route.state == RouteState::InSync).count();
            let mut sentence = Sentence::new(format!("ok: {in_sync} of {} routes in sync", many.len()));
            let mut behind = Tally::default();
            for route in many {
                behind.entries += route.backlog.tally.entries;
                behind.bytes = behind.bytes.saturating_add(route.backlog.tally.bytes);
                behind.unknown_size += route.backlog.tally.unknown_size;
            }
            if behind.entries > 0 {
                sentence.add(format!(", {} behind", tally(&behind)));
            }
            sentence
        }
    };
    (ReplicatorState::Ok, sentence)
}

/// Whether somebody should look at a route.
fn needs_eye(route: &RouteStatus) -> bool {
    let entries = |part: fn(&crate::queue::LaneCounts) -> Tally| sum(&route.counts, part).entries;
    let is_hindered = entries(|lane| lane.parked) > 0 || entries(|lane| lane.retrying) > 0;
    match route.state {
        RouteState::Orphaned => Backlog::with_parked(&route.counts) > 0,
        RouteState::Disabled => is_hindered,
        RouteState::InSync | RouteState::Copying | RouteState::Syncing => is_hindered || route.alarm,
        _ => true,
    }
}
