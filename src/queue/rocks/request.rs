//! What callers ask of the committer, and how they are answered.

use super::claims::BadRow;
use super::database::Loaded;
use super::row::RouteRow;
use crate::blob::BlobRef;
use crate::queue::drop::Dropped;
use crate::queue::failures::Remedy;
use crate::queue::{Claim, ClaimRequest, Claimed, Outcome, Push, Pushed, QueueError, RouteId, Seq, StateWrite};
use rocksdb::DB;
use tokio::sync::oneshot;

/// Requests that may wait.
pub(super) const CHANNEL: usize = 1024;

/// A batch takes no further request from this many operations on.
pub(super) const BATCH: usize = 20_000;

pub(super) type Answer<T> = oneshot::Sender<Result<T, QueueError>>;

/// A database that was opened again.
pub(super) struct Reopened {
    pub(super) db: DB,
    pub(super) loaded: Loaded,
}

/// What callers ask for.
pub(super) enum Request {
    Push {
        pushes: Vec<Push>,
        state: Vec<StateWrite>,
        answer: Answer<Vec<Pushed>>,
    },
    Settle {
        settled: Vec<(Claim, Outcome)>,
        answer: Answer<()>,
    },
    Remedy {
        route: RouteId,
        seqs: Vec<Seq>,
        remedy: Remedy,
        answer: Answer<u64>,
    },
    DropEntries {
        route: RouteId,
        max: usize,
        answer: Answer<Dropped>,
    },
    Register {
        route: RouteRow,
        answer: Answer<RouteId>,
    },
    /// Nothing is written for it: it is answered between two batches.
    Claim {
        request: ClaimRequest,
        answer: Answer<Claimed>,
    },
    /// Not a caller's: unreadable rows that a claim met.
    Aside {
        rows: Vec<BadRow>,
    },
    /// Not a caller's: the database was opened again.
    Reopened(Box<Reopened>),
}

impl Request {
    /// How many operations it is.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Push { pushes, state, .. } => pushes.len() + state.len(),
            Self::Settle { settled, .. } => settled.len(),
            Self::Remedy { seqs, .. } => seqs.len(),
            Self::DropEntries { max, .. } => *max,
            Self::Register { .. } => 1,
            Self::Claim { .. } => 0,
            Self::Aside { rows } => rows.len(),
            Self::Reopened(_) => BATCH,
        }
    }

    /// The pushes in it.
    fn pushes(&self) -> (&[Push], &[(Claim, Outcome)]) {
        match self {
            Self::Push { pushes, .. } => (pushes, &[]),
            Self::Settle { settled, .. } => (&[], settled),
            _ => (&[], &[]),
        }
    }

    /// The refs that deciding it will look up.
    pub(super) fn refs(&self) -> impl Iterator<Item = (RouteId, BlobRef)> {
        let (pushes, settled) = self.pushes();
        let chained = settled.iter().flat_map(|(_, outcome)| match outcome {
            Outcome::Confirmed { chained, .. } => &chained[..],
            _ => &[],
        });
        pushes.iter().chain(chained).map(|push| (push.route, push.blob))
    }

    /// Answers at once that nothing of it was done; claims are released.
    pub(super) fn refuse(self, error: &QueueError) {
        let error = error.clone();
        match self {
            Self::Push { answer: to, .. } => answer(to, Err(error)),
            Self::Settle { answer: to, settled } => {
                drop(settled);
                answer(to, Err(error));
            }
            Self::Remedy { answer: to, .. } => answer(to, Err(error)),
            Self::DropEntries { answer: to, .. } => answer(to, Err(error)),
            Self::Register { answer: to, .. } => answer(to, Err(error)),
            Self::Claim { answer: to, .. } => answer(to, Err(error)),
            // They are met again once the database is opened again.
            Self::Aside { .. } | Self::Reopened(_) => {}
        }
    }
}

/// A decided request. It is answered when its batch has ended, even if it was refused.
pub(super) enum Decided {
    Push(Answer<Vec<Pushed>>, Result<Vec<Pushed>, QueueError>),
    Settle(Answer<()>, Result<Vec<Claim>, QueueError>),
    Remedy(Answer<u64>, Result<u64, QueueError>),
    DropEntries(Answer<Dropped>, Result<Dropped, QueueError>),
    Register(Answer<RouteId>, Result<RouteId, QueueError>),
}

impl Decided {
    /// Answers as decided, the batch being durable; its claims, settled, end.
    pub(super) fn confirm(self) {
        match self {
            Self::Push(to, pushed) => answer(to, pushed),
            Self::Remedy(to, changed) => answer(to, changed),
            Self::DropEntries(to, dropped) => answer(to, dropped),
            Self::Register(to, id) => answer(to, id),
            Self::Settle(to, claims) => {
                answer(to, claims.map(|claims| claims.into_iter().for_each(Claim::disarm)));
            }
        }
    }

    /// Answers that the batch was not written; claims are released.
    pub(super) fn fail(self, error: &QueueError) {
        let error = error.clone();
        match self {
            Self::Push(to, pushed) => answer(to, pushed.and(Err(error))),
            Self::Remedy(to, changed) => answer(to, changed.and(Err(error))),
            Self::DropEntries(to, dropped) => answer(to, dropped.and(Err(error))),
            Self::Register(to, id) => answer(to, id.and(Err(error))),
            Self::Settle(to, claims) => {
                let result = claims.and(Err(error));
                answer(to, result);
            }
        }
    }
}

/// Sends an answer; a caller that went away needs none.
pub(super) fn answer<T>(to: Answer<T>, result: Result<T, QueueError>) {
    drop(to.send(result));
}
