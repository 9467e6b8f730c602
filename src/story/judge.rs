//! How a blob stands on each hop of its plan, from what the queue knows and the stores say. Pure.
//!
//! | queued | remembered | then |
//! |---|---|---|
//! | yes | | as it stands: READY, CLAIMED, RETRYING, PARKED |
//! | no | confirmed | CONFIRMED |
//! | no | discarded | DISCARDED |
//! | no | no | if it starts at the source, or a hop that may bring it is confirmed, the destination is asked: CONFIRMED, NOT_QUEUED or UNKNOWN; else UPSTREAM |
//!
//! What is confirmed on one hop is queued on the next by the same write, so a hop behind a confirmed one that is not queued
//! has settled too.

use super::ask::Holding;
use super::plan::Plan;
use crate::queue::Failure;
use crate::queue::lookup::{Completion, Ending, Known, Standing};
use std::time::SystemTime;

/// How a blob stands on a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BlobState {
    /// The destination confirmed it, or holds it.
    Confirmed,
    /// Waiting for its first attempt.
    Ready,
    /// Being copied.
    Claimed,
    /// Failed, and to be tried again by itself.
    Retrying,
    /// Given up until someone revives it.
    Parked,
    /// Removed from the queue without being copied.
    Discarded,
    /// Not here yet: an earlier hop of its chain is to bring it.
    Upstream,
    /// Neither queued nor at the destination: nothing will bring it there by itself.
    NotQueued,
    /// Not queued, and the destination could not be asked.
    Unknown,
}

impl BlobState {
    /// The state's name in sentences.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Ready => "ready",
            Self::Claimed => "being copied",
            Self::Retrying => "retrying",
            Self::Parked => "parked",
            Self::Discarded => "discarded",
            Self::Upstream => "waiting for an earlier hop",
            Self::NotQueued => "not queued",
            Self::Unknown => "unknown",
        }
    }
}

/// How a blob stands on a hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HopState {
    /// The state.
    pub state: BlobState,
    /// Whether waiting may change it.
    pub moves: bool,
    /// Attempts at its entry that failed, where it is queued.
    pub attempts: u32,
    /// How it last failed, where it is queued and did.
    pub failure: Option<Failure>,
    /// When it is tried next, where it is retrying.
    pub due: Option<SystemTime>,
    /// Why it is unknown, or what holds it up, for people; else empty.
    pub note: String,
}

impl HopState {
    fn of(state: BlobState, moves: bool) -> Self {
        Self { state, moves, attempts: 0, failure: None, due: None, note: String::new() }
    }

    fn of_entry(known: &Known) -> Option<Self> {
        let queued = known.queued.as_ref();
        let Some(queued) = queued else {
            // The entry before it could not be read.
            return known.successor.as_ref().map(|_| Self::of(BlobState::Ready, true));
        };
        let state = match queued.standing {
            Standing::Ready => BlobState::Ready,
            Standing::Claimed => BlobState::Claimed,
            Standing::Retrying => BlobState::Retrying,
            Standing::Parked => BlobState::Parked,
        };
        Some(Self {
            attempts: queued.entry.attempts,
            failure: queued.entry.failure.clone(),
            due: (state == BlobState::Retrying).then_some(queued.entry.due_time),
            ..Self::of(state, state != BlobState::Parked)
        })
    }

    fn of_completion(completion: &Completion) -> Self {
        match completion.ending {
            Ending::Confirmed { .. } => Self::of(BlobState::Confirmed, false),
            Ending::Discarded { .. } => Self::of(BlobState::Discarded, false),
        }
    }

    fn of_held(held: &Holding) -> Self {
        match held {
            Holding::Yes(_) => Self::of(BlobState::Confirmed, false),
            Holding::No => Self::of(BlobState::NotQueued, false),
            Holding::Unknown { why, for_good } => Self { note: why.clone(), ..Self::of(BlobState::Unknown, !for_good) },
        }
    }

    /// What the queue says, or else the destination, where it was asked.
    pub(super) fn new(known: &Known, held: Option<&Holding>) -> Option<Self> {
        Self::of_entry(known)
            .or_else(|| known.completion.as_ref().map(Self::of_completion))
            .or_else(|| held.map(Self::of_held))
    }
}

/// What is to be told of a blob, or to be asked first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Judged {
    /// How it stands on each hop.
    Stands(Vec<HopState>),
    /// The hops whose destinations must be asked for it.
    Ask(Vec<usize>),
}

/// Judges one blob. `known` and `held` have one item for each hop.
pub(super) fn judge(plan: &Plan, known: &[Known], held: &[Option<Holding>]) -> Judged {
    let mut states: Vec<Option<HopState>> = known.iter().map(|known| HopState::new(known, None)).collect();
    let mut asks = Vec::new();
    loop {
        let mut changed = false;
        for (at, hop) in plan.hops.iter().enumerate() {
            let is_confirmed = |at: &usize| states[*at].as_ref().is_some_and(|s| s.state == BlobState::Confirmed);
            let arrived = hop.after.is_empty() || hop.after.iter().any(is_confirmed);
            if states[at].is_some() || !arrived || asks.contains(&at) {
                continue;
            }
            match &held[at] {
                Some(held) => states[at] = Some(HopState::of_held(held)),
                None => asks.push(at),
            }
            changed = true;
        }
        if !changed {
            break;
        }
    }
    if !asks.is_empty() {
        return Judged::Ask(asks);
    }
    // What is not here yet may come as long as anything of this blob moves.
    let moves = states.iter().flatten().any(|state| state.moves);
    let upstream = || HopState::of(BlobState::Upstream, moves);
    Judged::Stands(states.into_iter().map(|state| state.unwrap_or_else(upstream)).collect())
}

#[cfg(test)]
mod tests {
    use super::{BlobState, Judged, judge};
    use crate::announce::Route;
    use crate::queue::RouteId;
    use crate::queue::lookup::{Completion, DiscardedBy, Ending, Known};
    use crate::story::ask::Holding;
    use crate::story::plan::{Hop, Plan};
    use std::time::UNIX_EPOCH;

    fn chain() -> Plan {
        let hop = |at: u32, from: &str, to: &str, after: Vec<usize>| {
            let route = Route { name: "x".into(), id: RouteId(at), from: from.into(), to: to.into(), enabled: true };
            Hop { route, after, wanted: true }
        };
        Plan { hops: vec![hop(0, "a", "b", vec![]), hop(1, "b", "c", vec![0])] }
    }

    fn done(ending: Ending) -> Known {
        Known { completion: Some(Completion { time: UNIX_EPOCH, ending, enqueued: None }), ..Known::default() }
    }

    fn states(judged: Judged) -> Vec<(BlobState, bool)> {
        match judged {
            Judged::Stands(states) => states.iter().map(|state| (state.state, state.moves)).collect(),
            Judged::Ask(asks) => panic!("asks {asks:?}"),
        }
    }

    #[test]
    fn what_nobody_remembers_is_asked_for_hop_by_hop() {
        let (plan, none) = (chain(), [Known::default(), Known::default()]);
        assert_eq!(judge(&plan, &none, &[None, None]), Judged::Ask(vec![0]));
        assert_eq!(judge(&plan, &none, &[Some(Holding::Yes(1)), None]), Judged::Ask(vec![1]));
        let held = [Some(Holding::Yes(1)), Some(Holding::No)];
        assert_eq!(states(judge(&plan, &none, &held)), [(BlobState::Confirmed, false), (BlobState::NotQueued, false)]);
        assert_eq!(
            states(judge(&plan, &none, &[Some(Holding::No), None])),
            [(BlobState::NotQueued, false), (BlobState::Upstream, false)],
            "nothing will bring it"
        );
        let mute = |for_good| Some(Holding::Unknown { why: "it is down".to_owned(), for_good });
        for for_good in [true, false] {
            let expected = [(BlobState::Unknown, !for_good), (BlobState::Upstream, !for_good)];
            assert_eq!(states(judge(&plan, &none, &[mute(for_good), None])), expected);
        }
    }

    #[test]
    fn completions_speak_for_themselves_and_a_discard_ends_the_chain() {
        let plan = chain();
        let confirmed = done(Ending::Confirmed { size: 1, copied: true });
        let discarded = done(Ending::Discarded { by: DiscardedBy::Operator, cause: None });
        let both = [confirmed.clone(), confirmed.clone()];
        assert_eq!(states(judge(&plan, &both, &[None, None])), [(BlobState::Confirmed, false); 2]);
        let ended = [discarded, Known::default()];
        assert_eq!(
            states(judge(&plan, &ended, &[None, None])),
            [(BlobState::Discarded, false), (BlobState::Upstream, false)]
        );
        assert_eq!(judge(&plan, &[confirmed, Known::default()], &[None, None]), Judged::Ask(vec![1]));
    }
}
