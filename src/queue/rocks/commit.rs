//! The committer: the only one who writes.
//!
//! It takes everything that waits in its channel, and what comes while it decides; decides it in order, and writes it as one
//! synced batch; then it changes memory; then it answers. Claims are answered between two batches. A crash before the write ends leaves nothing of the batch, and
//! nobody was answered. A crash after it leaves all of it, and callers that were not answered retry, which does no harm.
//!
//! A write that fails is answered at once, and acks nothing. After a full disk RocksDB writes again by itself; after any
//! other failure the database is opened again (`reopen`), and until then every request is refused at once.

use super::apply::apply;
use super::error::is_damage;
use super::gather::Gather;
use super::options::RocksOptions;
use super::reopen::{ReopenPlan, Reopening};
use super::request::{Answer, BATCH, Decided, Reopened, Request, answer};
use super::row::RouteRow;
use super::shared::Shared;
use super::space::Space;
use super::txn::Txn;
use crate::clock::{Clock, Monotonic};
use crate::failpoint::{self, Point};
use crate::queue::damage::{QueueTrouble, REASON_NEW, sync_needed};
use crate::queue::{Claim, ClaimRequest, Claimed, Origin, Outcome, Push, Pushed, QueueError, RouteId};
use rocksdb::{DB, WriteBatch};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long writes may fail for want of space while there is some, until the database is opened again.
const FULL_PATIENCE: Duration = Duration::from_secs(20);

/// So many free bytes are some.
const SOME_SPACE: u64 = 64 << 20;

/// Writes a batch durably.
pub(super) type WriteFn = Box<dyn FnMut(&DB, WriteBatch) -> Result<(), rocksdb::Error> + Send>;

/// See the module's header.
pub(super) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) dir: PathBuf,
    pub(super) options: RocksOptions,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) write: WriteFn,
    pub(super) next_seq: u64,
    /// Entries of all routes that are not parked.
    pub(super) unparked: u64,
    pub(super) space: Space,
    pub(super) gather: Gather,
    /// Claims that are to be answered.
    pub(super) claims: VecDeque<(ClaimRequest, Answer<Claimed>)>,
    /// Since when writes fail for want of space.
    pub(super) full_since: Option<Monotonic>,
    pub(super) sender: mpsc::WeakSender<Request>,
    pub(super) reopening: Option<Reopening>,
    /// How often the database was opened again since the last successful write.
    pub(super) reopened: u32,
}

impl Committer {
    /// Works until every sender is gone and the channel is drained, or memory no longer says what is on disk.
    pub(super) fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        while let Some(first) = requests.blocking_recv() {
            let mut waiting = vec![first];
            take_waiting(&mut requests, &mut waiting);
            // What opened the database again is taken before anything that came with it.
            while let Some(at) = waiting.iter().position(|request| matches!(request, Request::Reopened(_))) {
                if let Request::Reopened(reopened) = waiting.remove(at) {
                    self.resume(*reopened);
                }
            }
            // First, so that workers have something to do while the batch is written.
            let mut waiting = self.put_claims_apart(waiting);
            self.answer_claims(&mut waiting);
            while !waiting.is_empty() {
                self.commit(std::mem::take(&mut waiting), &mut requests);
                self.answer_claims(&mut waiting);
            }
            self.gather.linger(|| requests.len());
        }
    }

    fn put_claims_apart(&mut self, waiting: Vec<Request>) -> Vec<Request> {
        let other = waiting.into_iter().filter_map(|request| match request {
            Request::Claim { request, answer } => {
                self.claims.push_back((request, answer));
                None
            }
            other => Some(other),
        });
        other.collect()
    }

    /// Answers claims until one meets rows that cannot be read. They are to be set aside before anybody meets them again, in
    /// the batch that is `waiting`.
    fn answer_claims(&mut self, waiting: &mut Vec<Request>) {
        while let Some((request, to)) = self.claims.pop_front() {
            // What cannot be settled is not to be copied.
            match self.refusal().map_or_else(|| self.shared.claim(&request), Err) {
                Ok((claimed, bad)) => {
                    answer(to, Ok(claimed));
                    if !bad.is_empty() {
                        return waiting.push(Request::Aside { rows: bad });
                    }
                }
                Err(error) => answer(to, Err(error)),
            }
        }
    }

    /// Goes on with a database that was opened again.
    fn resume(&mut self, Reopened { db, loaded }: Reopened) {
        // Sequences of failed batches stay used.
        self.next_seq = self.next_seq.max(loaded.next_seq);
        self.unparked = loaded.figures.unparked();
        self.reopening = None;
        self.full_since = None;
        self.reopened = self.reopened.saturating_add(1);
        self.options.metrics.reopened();
        self.shared.resume(db, loaded);
        tracing::warn!("the queue was opened again");
    }

    /// Has the database opened again, if it is not on its way.
    fn reopen(&mut self, why: &str) {
        if self.reopening.is_some() {
            return;
        }
        self.shared.set_trouble(QueueTrouble::Reopening(why.to_owned()));
        let started = Reopening::start(ReopenPlan {
            shared: Arc::clone(&self.shared),
            dir: self.dir.clone(),
            options: self.options.clone(),
            sender: self.sender.clone(),
            why: why.to_owned(),
            before: self.reopened,
        });
        match started {
            Ok(reopening) => self.reopening = Some(reopening),
            Err(error) => self.shared.set_trouble(QueueTrouble::Ended(format!("no thread can be started: {error}"))),
        }
    }

    /// Why nothing can be done at all now; absent: it can.
    fn refusal(&self) -> Option<QueueError> {
        match self.shared.trouble() {
            Some(QueueTrouble::Reopening(why) | QueueTrouble::Ended(why)) => Some(QueueError::Write(why)),
            _ => None,
        }
    }

    /// Decides these and who comes meanwhile, and writes them.
    fn commit(&mut self, mut waiting: Vec<Request>, requests: &mut mpsc::Receiver<Request>) {
        let began = self.clock.monotonic();
        let shared = Arc::clone(&self.shared);
        let db = match self.refusal().map_or_else(|| shared.db(), Err) {
            Ok(db) => db,
            Err(error) => return waiting.into_iter().for_each(|request| request.refuse(&error)),
        };
        let now = self.clock.now();
        let mut txn = Txn::new(&db, &shared, now, self.options.max_entries, self.next_seq, self.unparked);
        let mut decided = Vec::with_capacity(waiting.len());
        let (mut weight, mut patience) = (0, self.gather.patience());
        while !waiting.is_empty() {
            weight += waiting.iter().map(Request::weight).sum::<usize>();
            txn.read_ahead(waiting.iter().flat_map(Request::refs));
            for request in waiting.drain(..) {
                decided.extend(self.decide(&mut txn, request));
            }
            if weight < BATCH {
                self.gather.wait(decided.len(), || requests.len(), &mut patience);
                take_waiting(requests, &mut waiting);
            }
        }

        // Sequences of a failed batch stay used: its bytes may be in the log.
        self.next_seq = txn.next_seq;
        let (moves, aside) = (txn.moves(), txn.rows_set_aside());
        let start = self.clock.monotonic();
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
                self.unparked = effects.unparked;
                self.reopened = 0;
                self.full_since = None;
                apply(&shared, effects, &moves, &decided);
                self.gather.written(decided.len(), requests.len(), self.since(start));
                decided.into_iter().for_each(Decided::confirm);
                self.options.metrics.committed(weight as u64, self.since(began));
            }
            Err(error) => {
                self.options.metrics.failed();
                tracing::error!(%error, requests = decided.len(), "a batch was not written; nothing of it is acked");
                let mut claims = shared.claims();
                aside.iter().for_each(|row| claims.meet_again(row));
                drop(claims);
                // First, so that whoever is answered finds the queue as it is.
                match &error {
                    QueueError::Write(why) => self.reopen(why),
                    QueueError::NoSpace { free, .. } if *free > SOME_SPACE => {
                        let now = self.clock.monotonic();
                        let since = *self.full_since.get_or_insert(now);
                        if now.since(since) > FULL_PATIENCE {
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

    fn since(&self, earlier: Monotonic) -> Duration {
        self.clock.monotonic().since(earlier)
    }

    fn write_batch(&mut self, db: &DB, batch: WriteBatch) -> Result<(), QueueError> {
        failpoint::hit(Point::QueueBeforeWrite)?;
        let start = self.clock.monotonic();
        (self.write)(db, batch).map_err(|error| self.write_error(&error))?;
        self.options.metrics.sync.observe(self.since(start));
        // A fault here stands for a write that did reach the disk and yet failed.
        Ok(failpoint::hit(Point::QueueAfterWrite)?)
    }

    /// Decides one request. One that cannot be done leaves nothing in the batch.
    fn decide(&mut self, txn: &mut Txn<'_>, request: Request) -> Option<Decided> {
        let savepoint = txn.savepoint();
        match request {
            Request::Push { pushes, state, answer } => {
                let pushed = self.push(txn, pushes);
                match pushed {
                    Ok(_) => txn.state.extend(state),
                    Err(_) => txn.roll_back(savepoint),
                }
                Some(Decided::Push(answer, pushed))
            }
            Request::Settle { settled, answer } => {
                // On an error the claims are dropped here, and so released.
                let (claims, outcomes): (Vec<_>, Vec<_>) = settled.into_iter().unzip();
                let result = claims.iter().zip(outcomes).try_for_each(|(claim, outcome)| settle(txn, claim, outcome));
                if result.is_err() {
                    txn.roll_back(savepoint);
                }
                Some(Decided::Settle(answer, result.map(|()| claims)))
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
            // Answered when the batch is written.
            Request::Claim { request, answer } => {
                self.claims.push_back((request, answer));
                None
            }
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

    fn push(&mut self, txn: &mut Txn<'_>, pushes: Vec<Push>) -> Result<Vec<Pushed>, QueueError> {
        failpoint::hit(Point::QueueDecidePush)?;
        if pushes.iter().any(|push| push.origin == Origin::Announced) {
            self.space.check()?;
        }
        txn.reserve(pushes.len());
        let mut known = None;
        pushes
            .into_iter()
            .map(|push| {
                if known != Some(push.route) {
                    check_route(txn, push.route)?;
                    known = Some(push.route);
                }
                txn.push(push)
            })
            .collect()
    }

    fn write_error(&self, error: &rocksdb::Error) -> QueueError {
        let text = error.to_string();
        // RocksDB's binding has no code for it.
        if error.kind() == rocksdb::ErrorKind::IOError && text.contains("No space left on device") {
            return self.space.full(self.space.free().unwrap_or(0));
        }
        if is_damage(error) {
            self.shared.note_damage(&text);
        }
        QueueError::Write(text)
    }
}

/// Takes what waits, up to what a batch may be.
fn take_waiting(requests: &mut mpsc::Receiver<Request>, waiting: &mut Vec<Request>) {
    let mut weight: usize = waiting.iter().map(Request::weight).sum();
    while weight < BATCH
        && let Ok(next) = requests.try_recv()
    {
        weight += next.weight();
        waiting.push(next);
    }
}

fn check_route(txn: &Txn<'_>, route: RouteId) -> Result<(), QueueError> {
    if txn.shared.figures().routes.contains_key(&route) {
        return Ok(());
    }
    Err(QueueError::Read(format!("route number {} was never registered", route.0)))
}

fn settle(txn: &mut Txn<'_>, claim: &Claim, outcome: Outcome) -> Result<(), QueueError> {
    failpoint::hit(Point::QueueDecideSettle)?;
    txn.settle(claim.entry(), &outcome)?;
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
