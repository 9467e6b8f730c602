//! The committer: the only one who writes.
//!
//! It takes everything that waits in its channel, decides it in order, and writes it as one synced batch; then it changes
//! memory; then it answers. A crash before the write ends leaves nothing of the batch, and nobody was answered. A crash
//! after it leaves all of it, and callers that were not answered retry, which does no harm.
//!
//! A write that fails is answered at once, and acks nothing. After a full disk RocksDB writes again by itself; after any
//! other failure the database is opened again (`reopen`), and until then every request is refused at once.

use super::claims::BadRow;
use super::gather::Gather;
use super::reopen::{Plan, Reopened, Reopening};
use super::row::RouteRow;
use super::shared::Shared;
use super::txn::{Effects, Moved, Txn};
use super::{RocksOptions, WallClock};
use crate::failpoint::{self, Point};
use crate::queue::damage::{REASON_NEW, Trouble, sync_needed};
use crate::queue::drop::Dropped;
use crate::queue::failures::Remedy;
use crate::queue::{Claim, Origin, Outcome, Push, Pushed, QueueError, RouteId, Seq, StateWrite};
use rocksdb::{DB, WriteBatch};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait.
pub(super) const CHANNEL: usize = 1024;

/// A batch takes no further request from this many operations on.
const BATCH: usize = 20_000;

/// How long a reading of the disk's free space is good for.
const SPACE_AGE: Duration = Duration::from_secs(1);

/// How long writes may fail for want of space while there is some, until the database is opened again.
const FULL_PATIENCE: Duration = Duration::from_secs(20);

/// So many free bytes are some.
const SOME_SPACE: u64 = 64 << 20;

/// Writes a batch durably.
pub(super) type WriteFn = Box<dyn FnMut(&DB, WriteBatch) -> Result<(), rocksdb::Error> + Send>;

type Answer<T> = oneshot::Sender<Result<T, QueueError>>;

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
    Aside {
        rows: Vec<BadRow>,
    },
    /// Not a caller's: the database was opened again.
    Reopened(Box<Reopened>),
}

impl Request {
    fn weight(&self) -> usize {
        match self {
            Self::Push { pushes, state, .. } => pushes.len() + state.len(),
            Self::Settle { settled, .. } => settled.len(),
            Self::Remedy { seqs, .. } => seqs.len(),
            Self::DropEntries { max, .. } => *max,
            Self::Register { .. } => 1,
            Self::Aside { rows } => rows.len(),
            Self::Reopened(_) => BATCH,
        }
    }

    /// Answers at once that nothing of it was done; claims are released.
    fn refuse(self, error: &QueueError) {
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
            // They are met again once the database is opened again.
            Self::Aside { .. } | Self::Reopened(_) => {}
        }
    }
}

/// A decided request. It is answered when its batch has ended, even if it was refused: until then, entries that it looked
/// at are busy.
enum Decided {
    Push(Answer<Vec<Pushed>>, Result<Vec<Pushed>, QueueError>),
    Settle(Answer<()>, Result<Vec<Claim>, QueueError>),
    Remedy(Answer<u64>, Result<u64, QueueError>),
    DropEntries(Answer<Dropped>, Result<Dropped, QueueError>),
    Register(Answer<RouteId>, Result<RouteId, QueueError>),
}

impl Decided {
    /// Answers as decided, the batch being durable; its claims, settled, end.
    fn confirm(self) {
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
    fn fail(self, error: &QueueError) {
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
fn answer<T>(to: Answer<T>, result: Result<T, QueueError>) {
    drop(to.send(result));
}

/// See the module's header.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) dir: PathBuf,
    pub(super) options: RocksOptions,
    pub(super) wall: WallClock,
    pub(super) write: WriteFn,
    pub(super) next_seq: u64,
    /// Entries of all routes.
    pub(super) total: u64,
    pub(super) space: Option<(Instant, u64)>,
    pub(super) gather: Gather,
    /// Since when writes fail for want of space.
    pub(super) full_since: Option<Instant>,
    pub(super) sender: mpsc::WeakSender<Request>,
    pub(super) reopening: Option<Reopening>,
    /// How often the database was opened again since the last successful write.
    pub(super) reopened: u32,
}

impl Committer {
    /// Works until every sender is gone and the channel is drained, or memory no longer says what is on disk.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            self.gather.wait(|| 1 + requests.len());
            let mut weight = first.weight();
            let mut waiting = vec![first];
            // What opened the database again is taken before anything that came with it.
            while weight < BATCH {
                let Ok(next) = requests.try_recv() else { break };
                weight += next.weight();
                waiting.push(next);
            }
            for request in std::mem::take(&mut waiting) {
                match request {
                    Request::Reopened(reopened) => self.resume(*reopened),
                    request => waiting.push(request),
                }
            }
            self.commit(waiting, || requests.len());
        }
    }

    /// Goes on with a database that was opened again.
    fn resume(&mut self, Reopened { db, loaded }: Reopened) {
        // Sequences of failed batches stay used.
        self.next_seq = self.next_seq.max(loaded.next_seq);
        self.total = loaded.figures.total();
        self.reopening = None;
        self.full_since = None;
        self.reopened = self.reopened.saturating_add(1);
        self.shared.resume(db, loaded);
        tracing::warn!("the queue was opened again");
    }

    /// Has the database opened again, if it is not on its way.
    fn reopen(&mut self, why: &str) {
        if self.reopening.is_some() {
            return;
        }
        self.shared.set_trouble(Trouble::Reopening(why.to_owned()));
        let started = Reopening::start(Plan {
            shared: Arc::clone(&self.shared),
            dir: self.dir.clone(),
            options: self.options.clone(),
            sender: self.sender.clone(),
            why: why.to_owned(),
            before: self.reopened,
        });
        match started {
            Ok(reopening) => self.reopening = Some(reopening),
            Err(error) => self.shared.set_trouble(Trouble::Ended(format!("no thread can be started: {error}"))),
        }
    }

    /// Decides these and writes them; `waiting` tells how many more there are.
    fn commit(&mut self, requests: Vec<Request>, waiting: impl Fn() -> usize) {
        let start = Instant::now();
        let shared = Arc::clone(&self.shared);
        let trouble = match shared.trouble() {
            Some(Trouble::Reopening(why) | Trouble::Ended(why)) => Some(QueueError::Write(why)),
            _ => None,
        };
        let db = match trouble.map_or_else(|| shared.db(), Err) {
            Ok(db) => db,
            Err(error) => return requests.into_iter().for_each(|request| request.refuse(&error)),
        };
        let now = (self.wall)();
        let mut txn = Txn::new(&db, &shared, now, self.options.max_entries, self.next_seq, self.total);
        let mut decided = Vec::with_capacity(requests.len());
        for request in requests {
            decided.extend(self.decide(&mut txn, request));
        }

        // Sequences of a failed batch stay used: its bytes may be in the log.
        self.next_seq = txn.next_seq;
        let (moves, aside) = (txn.moves(), txn.rows_set_aside());
        let written = txn.finish().and_then(|finished| {
            let mut effects = finished.effects;
            let written = if finished.batch.is_empty() { Ok(()) } else { self.write_batch(&db, finished.batch) };
            if let Some(begun) = effects.done.take() {
                shared.done().end(begun, written.is_ok());
            }
            written.map(|()| effects)
        });
        match written {
            Ok(effects) => {
                self.total = effects.total;
                self.reopened = 0;
                self.full_since = None;
                apply(&shared, effects, &moves, &decided);
                self.gather.written(decided.len(), waiting(), start.elapsed());
                decided.into_iter().for_each(Decided::confirm);
            }
            Err(error) => {
                tracing::error!(%error, requests = decided.len(), "a batch was not written; nothing of it is acked");
                let mut claims = shared.claims();
                for moved in &moves {
                    claims.finish(moved.seq, moved.before);
                }
                for row in &aside {
                    claims.meet_again(row);
                }
                drop(claims);
                // First, so that whoever is answered finds the queue as it is.
                match &error {
                    QueueError::Write(why) => self.reopen(why),
                    QueueError::NoSpace { free, .. } if *free > SOME_SPACE => {
                        let since = *self.full_since.get_or_insert_with(Instant::now);
                        if since.elapsed() > FULL_PATIENCE {
                            self.reopen(&error.to_string());
                        }
                    }
                    _ => {}
                }
                for decided in decided {
                    decided.fail(&error);
                }
            }
        }
    }

    fn write_batch(&mut self, db: &DB, batch: WriteBatch) -> Result<(), QueueError> {
        failpoint::hit(Point::QueueBeforeWrite)?;
        (self.write)(db, batch).map_err(|error| self.write_error(&error))?;
        // A fault here stands for a write that did reach the disk and yet failed.
        Ok(failpoint::hit(Point::QueueAfterWrite)?)
    }

    /// Decides one request. One that cannot be done leaves nothing in the batch.
    fn decide(&mut self, txn: &mut Txn<'_>, request: Request) -> Option<Decided> {
        let savepoint = txn.savepoint();
        match request {
            Request::Push { pushes, state, answer } => {
                let pushed = self.push(txn, &pushes);
                match pushed {
                    Ok(_) => txn.state.extend(state),
                    Err(_) => txn.roll_back(savepoint),
                }
                Some(Decided::Push(answer, pushed))
            }
            Request::Settle { settled, answer } => {
                let result = settled.iter().try_for_each(|(claim, outcome)| settle(txn, claim, outcome));
                if result.is_err() {
                    txn.roll_back(savepoint);
                }
                // On an error the claims are dropped here, and so released.
                let claims = settled.into_iter().map(|(claim, _)| claim);
                Some(Decided::Settle(answer, result.map(|()| claims.collect())))
            }
            Request::Remedy { route, seqs, remedy, answer } => {
                let mut changed = 0;
                let result = seqs.iter().try_for_each(|seq| {
                    changed += u64::from(txn.remedy(route, seq.0, remedy)?);
                    Ok(())
                });
                if result.is_err() {
                    txn.roll_back(savepoint);
                }
                Some(Decided::Remedy(answer, result.map(|()| changed)))
            }
            Request::DropEntries { route, max, answer } => {
                let dropped = txn.drop_entries(route, max);
                if dropped.is_err() {
                    txn.roll_back(savepoint);
                }
                Some(Decided::DropEntries(answer, dropped))
            }
            Request::Register { route, answer } => Some(Decided::Register(answer, register(txn, route))),
            // Taken out before.
            Request::Reopened(_) => None,
            Request::Aside { rows } => {
                for row in rows {
                    tracing::error!(
                        route = row.route.0, family = row.family, key = ?row.key, problem = row.problem,
                        "a row of the queue cannot be read; it is set aside"
                    );
                    txn.set_aside(row);
                }
                None
            }
        }
    }

    fn push(&mut self, txn: &mut Txn<'_>, pushes: &[Push]) -> Result<Vec<Pushed>, QueueError> {
        failpoint::hit(Point::QueueDecidePush)?;
        if pushes.iter().any(|push| push.origin == Origin::Announced) {
            self.check_space()?;
        }
        txn.reserve(pushes.len());
        let mut known = None;
        pushes
            .iter()
            .map(|push| {
                if known != Some(push.route) {
                    check_route(txn, push.route)?;
                    known = Some(push.route);
                }
                txn.push(push)
            })
            .collect()
    }

    /// Refuses announcements when the disk's reserve is reached.
    fn check_space(&mut self) -> Result<(), QueueError> {
        let reserve = self.options.reserve_bytes;
        if reserve == 0 {
            return Ok(());
        }
        let free = match self.space {
            Some((at, free)) if at.elapsed() < SPACE_AGE => free,
            _ => {
                let free = self.free_space()?;
                self.space = Some((Instant::now(), free));
                free
            }
        };
        if free < reserve { Err(QueueError::NoSpace { free, reserve }) } else { Ok(()) }
    }

    fn free_space(&self) -> Result<u64, QueueError> {
        failpoint::hit(Point::QueueSpace)?;
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|error| QueueError::Read(format!("the disk's free space is unknown: {error}")))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn write_error(&self, error: &rocksdb::Error) -> QueueError {
        let text = error.to_string();
        // RocksDB's binding has no code for it.
        if error.kind() == rocksdb::ErrorKind::IOError && text.contains("No space left on device") {
            let (free, reserve) = (self.free_space().unwrap_or(0), self.options.reserve_bytes);
            return QueueError::NoSpace { free, reserve };
        }
        if error.kind() == rocksdb::ErrorKind::Corruption {
            self.shared.note_damage(&text);
        }
        QueueError::Write(text)
    }
}

fn check_route(txn: &Txn<'_>, route: RouteId) -> Result<(), QueueError> {
    if txn.shared.figures().routes.contains_key(&route) {
        return Ok(());
    }
    Err(QueueError::Read(format!("route number {} was never registered", route.0)))
}

fn settle(txn: &mut Txn<'_>, claim: &Claim, outcome: &Outcome) -> Result<(), QueueError> {
    failpoint::hit(Point::QueueDecideSettle)?;
    let entry = claim.entry();
    txn.settle(entry.route, entry.seq.0, outcome)?;
    if let Outcome::Confirmed { chained, .. } = outcome {
        for push in chained {
            check_route(txn, push.route)?;
            txn.push(push)?;
        }
    }
    Ok(())
}

fn register(txn: &mut Txn<'_>, route: RouteRow) -> Result<RouteId, QueueError> {
    let known =
        txn.shared.figures().routes.iter().find(|(_, row)| row.name == route.name).map(|(id, row)| (*id, row.clone()));
    match known.or_else(|| txn.new_route(&route.name).cloned()) {
        None => {
            txn.state.push(sync_needed(&route.name, REASON_NEW));
            Ok(txn.add_route(route))
        }
        Some((id, known)) if known == route => Ok(id),
        Some((_, known)) => Err(QueueError::RouteChanged {
            known: format!("{} -> {}", known.from, known.to),
            now: format!("{} -> {}", route.from, route.to),
            name: route.name,
        }),
    }
}

/// What a durable batch changes in memory.
fn apply(shared: &Shared, effects: Effects, moves: &[Moved], decided: &[Decided]) {
    let settled = || {
        let claims = decided.iter().filter_map(|decided| match decided {
            Decided::Settle(_, Ok(claims)) => Some(claims),
            _ => None,
        });
        claims.flatten().map(Claim::entry)
    };
    let mut woken = BTreeSet::new();
    let mut claims = shared.claims();
    for entry in settled() {
        claims.settle(entry.route, entry.lane, entry.seq.0);
    }
    for Moved { route, seq, before, after } in moves {
        claims.finish(*seq, *after);
        if before != after
            && let Some(spot) = after
        {
            woken.insert(*route);
            if let Some(due) = spot.due {
                claims.added_retry(*route, spot.lane, due, *seq);
            }
        }
    }
    for row in &effects.aside {
        claims.forget_bad(&row.key);
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
    for route in woken {
        shared.wake(route);
    }
    if decided.iter().any(|decided| matches!(decided, Decided::Settle(..) | Decided::Remedy(..))) {
        shared.settled();
    }
}
