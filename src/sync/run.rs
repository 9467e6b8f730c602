//! One full sync, from its first question to its last confirmation.
//!
//! Waiting (for a page, an answer, the backlog, the copies) ends at once when the service stops. A push, once begun, is
//! seen through: its write holds the record, and must not come after the record's last one.

use super::diff::{Finding, ListingError, Merge, Need};
use super::driver::RouteSlot;
use super::parts::{SyncParts, SyncRoute};
use super::record::{SyncFailure, SyncPhase, SyncRecord};
use crate::clock::Monotonic;
use crate::failpoint::{self, Point};
use crate::fault::{FaultKind, Side};
use crate::queue::{Lane, LaneCounts, Origin, Push, Pushed, QueueError, SyncTally};
use crate::store::{EnumerateRange, Enumeration, PeerKind, StoreError, StoreInfo};
use futures::StreamExt;
use std::future::Future;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Findings in one write, at most.
const BATCH: usize = 1000;

/// Refs that a store is asked for at once: what `StatBlobs` takes.
const QUESTIONS: usize = 10_000;

/// The least time between two looks at the queue's figures.
const BREATH: Duration = Duration::from_millis(20);

/// How the destination is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Method {
    /// It is listed.
    List,
    /// It is asked for each blob of the source.
    Ask,
    /// It gives nothing back: everything is missing there.
    SendAll,
}

pub(super) struct Run<'a> {
    parts: &'a SyncParts,
    slot: &'a RouteSlot,
    waits: SyncWaits<'a>,
    record: SyncRecord,
    merge: Merge,
    source: Option<OpenStream>,
    destination: Option<OpenStream>,
    // The part of both stores that is compared.
    range: EnumerateRange,
    // When it began, and when the record was last written.
    began: Monotonic,
    written: Monotonic,
}

/// A stream that has more to give.
struct OpenStream {
    stream: Enumeration,
    // When its last page came. One that was left unread for long, while the other side was read, may have been given up by
    // its server, and is opened anew.
    read: Monotonic,
}

/// What may take long: all of it ends when the service stops.
#[derive(Clone, Copy)]
struct SyncWaits<'a> {
    parts: &'a SyncParts,
    route: &'a SyncRoute,
    stop: &'a CancellationToken,
}

/// Refuses a source that cannot be listed, or is none.
pub(super) fn check_source(route: &SyncRoute, info: &StoreInfo) -> Result<(), SyncFailure> {
    let wrong = |what: &str| SyncFailure {
        kind: Some(FaultKind::WrongPeerKind),
        peer: route.from_name.to_string(),
        code: None,
        message: format!("the source store {} {what}; a full sync needs one that can be listed", route.from_name),
    };
    if info.kind != PeerKind::Store {
        return Err(wrong(&format!("is of kind {}", info.kind.as_str())));
    }
    if !info.abilities.enumerate {
        return Err(wrong("does not offer enumerate"));
    }
    check_store_id(route, Side::Source, info)
}

/// Refuses a store that is not the one which the route knows by this name.
fn check_store_id(route: &SyncRoute, side: Side, info: &StoreInfo) -> Result<(), SyncFailure> {
    let (what, name, expected) = match side {
        Side::Source => ("source", &route.from_name, &route.store_ids.source),
        Side::Destination => ("destination", &route.to_name, &route.store_ids.destination),
    };
    let expected = expected.borrow();
    let Some(expected) = expected.as_deref().filter(|expected| info.store_id.as_deref() != Some(expected)) else {
        return Ok(());
    };
    let found = info.store_id.as_ref().map_or_else(|| "none".to_owned(), |id| format!("{id:?}"));
    Err(SyncFailure {
        kind: Some(FaultKind::StoreIdChanged),
        peer: name.to_string(),
        code: None,
        message: format!("another store answers as the {what} store {name}: its id is {found}, and was {expected:?}"),
    })
}

fn choose_method(route: &SyncRoute, info: &StoreInfo) -> Result<Method, SyncFailure> {
    let wrong = |what: String| SyncFailure {
        kind: Some(FaultKind::WrongPeerKind),
        peer: route.to_name.to_string(),
        code: None,
        message: format!("the destination store {} {what}", route.to_name),
    };
    match info.kind {
        PeerKind::Store if info.abilities.enumerate => Ok(Method::List),
        PeerKind::Store if info.abilities.stat => Ok(Method::Ask),
        PeerKind::Store | PeerKind::ReceiveOnly if route.receive_only => Ok(Method::SendAll),
        PeerKind::Store => Err(wrong("offers neither enumerate nor stat: there is nothing to compare with".to_owned())),
        PeerKind::ReceiveOnly => Err(wrong("gives nothing back, and the route is not receive_only".to_owned())),
        PeerKind::Replicator => Err(wrong("is a replicator: it holds nothing".to_owned())),
    }
}

impl<'a> Run<'a> {
    pub(super) fn new(
        parts: &'a SyncParts,
        slot: &'a RouteSlot,
        stop: &'a CancellationToken,
        record: SyncRecord,
    ) -> Self {
        let began = parts.clock.monotonic();
        let waits = SyncWaits { parts, route: &slot.route, stop };
        let (merge, range) = (Merge::new(), EnumerateRange::beginning_with(&record.prefix));
        Self { parts, slot, waits, record, merge, source: None, destination: None, range, began, written: began }
    }

    pub(super) fn into_record(self) -> SyncRecord {
        self.record
    }

    /// Compares, enqueues, and waits for the copies. What it has done is in the record at any time.
    pub(super) async fn finish(&mut self) -> Result<(), SyncFailure> {
        let method = self.look_at_peers().await?;
        self.record.start_time = Some(self.parts.clock.now());
        self.began = self.parts.clock.monotonic();
        self.compare(method).await?;
        self.source = None;
        self.destination = None;
        // A store may have been replaced between two of its streams.
        self.look_at_peers().await?;
        self.note_time();
        self.record.compared_time = Some(self.parts.clock.now());
        self.enter(SyncPhase::WaitingForCopies);
        self.checkpoint().await?;
        self.wait_for_copies().await
    }

    async fn wait_for_copies(&mut self) -> Result<(), SyncFailure> {
        self.waits.at(Point::SyncWait).await?;
        let settled = |tally: &SyncTally| tally.confirmed + tally.parked + tally.discarded;
        let began = self.parts.clock.monotonic();
        let before = settled(&self.parts.queue.sync_tally(self.record.id));
        let mut idle = 0;
        loop {
            let tally = self.parts.queue.sync_tally(self.record.id);
            if tally.pending == 0 {
                return Ok(());
            }
            let took = self.parts.clock.monotonic().since(began);
            // Entries whose rows cannot be read are set aside, and nobody knows which syncs wait for them.
            idle = if self.is_drained() { idle + 1 } else { 0 };
            if idle >= 3 {
                return Err(SyncFailure {
                    kind: Some(FaultKind::QueueWriteFailed),
                    peer: String::new(),
                    code: None,
                    message: format!(
                        "{} of its entries were lost with rows of the queue that cannot be read; run it again",
                        tally.pending
                    ),
                });
            }
            self.record.eta = eta(tally.pending, settled(&tally).saturating_sub(before), took);
            self.show();
            self.waits.queue().await?;
        }
    }

    async fn look_at_peers(&mut self) -> Result<Method, SyncFailure> {
        self.waits.at(Point::SyncLook).await?;
        let route = &self.slot.route;
        let source = self.waits.answer(Side::Source, "asked what it is", route.source.info()).await?;
        check_source(route, &source)?;
        let destination = self.waits.answer(Side::Destination, "asked what it is", route.destination.info()).await?;
        let method = choose_method(route, &destination)?;
        check_store_id(route, Side::Destination, &destination)?;
        Ok(method)
    }

    async fn compare(&mut self, method: Method) -> Result<(), SyncFailure> {
        match method {
            Method::List => {}
            Method::Ask => self.merge.ask_destination(),
            Method::SendAll => self.merge.assume_destination_empty(),
        }
        let mut found = Vec::new();
        loop {
            let need = self.merge.advance(&mut found, BATCH);
            self.note_seen();
            if need == Need::Room || self.checkpoint_is_due() {
                self.push(&mut found).await?;
                self.wait_for_backlog().await?;
            }
            match need {
                Need::Room => {}
                Need::Page(Side::Destination) if method == Method::Ask => self.ask_destination().await?,
                Need::Page(side) => self.next_page(side).await?,
                Need::Nothing => return self.push(&mut found).await,
            }
        }
    }

    fn note_seen(&mut self) {
        let seen = self.merge.seen();
        self.record.counts.source_blobs = seen.source;
        self.record.counts.destination_blobs = seen.destination;
        self.record.counts.extra = seen.extra;
        self.record.cursor = self.merge.cursor();
        self.note_time();
        self.show();
    }

    /// How long it compares, in whole milliseconds, as it is kept.
    fn note_time(&mut self) {
        let comparing = self.parts.clock.monotonic().since(self.began);
        self.record.comparing = comparing - Duration::from_nanos(u64::from(comparing.subsec_nanos() % 1_000_000));
    }

    /// Takes the next page of a side, from the open stream or a new one.
    async fn next_page(&mut self, side: Side) -> Result<(), SyncFailure> {
        self.waits.at(Point::SyncPage).await?;
        let open = match side {
            Side::Source => self.source.take(),
            Side::Destination => self.destination.take(),
        };
        let now = self.parts.clock.monotonic();
        let mut stream = match open {
            Some(open) if now.since(open.read) <= self.parts.settings.idle / 4 => open.stream,
            _ => {
                let EnumerateRange { after, until, .. } = self.range.clone();
                let after = self.merge.open(side).unwrap_or(after);
                let limit = Some(self.parts.settings.window.max(1));
                let store = match side {
                    Side::Source => &self.slot.route.source,
                    Side::Destination => &self.slot.route.destination,
                };
                let range = EnumerateRange { after, until, limit };
                self.waits.at(Point::SyncEnumerate).await?;
                self.waits.answer(side, "listed", store.enumerate(range)).await?
            }
        };
        let next = async { stream.next().await.transpose() };
        let Some(mut page) = self.waits.answer(side, "listed", next).await? else {
            return Err(self.waits.listing_failed(self.merge.cut_short(side)));
        };
        let (ended, unknown) = (page.end.is_some(), std::mem::take(&mut page.unknown));
        self.merge.push(side, page).map_err(|error| self.waits.listing_failed(error))?;
        self.record.add_unknown(side, unknown);
        if !ended {
            let open = Some(OpenStream { stream, read: self.parts.clock.monotonic() });
            match side {
                Side::Source => self.source = open,
                Side::Destination => self.destination = open,
            }
        }
        Ok(())
    }

    /// Asks the destination for the source blobs that wait, and for more of them where that fills the question.
    async fn ask_destination(&mut self) -> Result<(), SyncFailure> {
        while self.merge.waiting() < QUESTIONS && !self.merge.is_whole(Side::Source) {
            self.next_page(Side::Source).await?;
        }
        let questions = self.merge.questions(QUESTIONS);
        let held = self.waits.answer(Side::Destination, "asked", self.slot.route.destination.stat(&questions)).await?;
        self.merge.answer(&questions, held).map_err(|error| self.waits.listing_failed(error))
    }

    /// Pushes what was found, and writes the record with it. See [`SyncCounts`](super::record::SyncCounts) for what the write can
    /// not know yet.
    async fn push(&mut self, found: &mut Vec<Finding>) -> Result<(), SyncFailure> {
        let route = &self.slot.route;
        let counts = &mut self.record.counts;
        for finding in found.iter() {
            match finding {
                Finding::Missing(meta) => {
                    counts.missing += 1;
                    counts.missing_bytes += meta.size;
                }
                Finding::Differs { .. } => counts.differing += 1,
            }
            counts.enqueued += 1;
            counts.enqueued_bytes += finding.source().size;
        }
        let pushes: Vec<Push> = found
            .iter()
            .map(|finding| Push {
                route: route.id,
                blob: finding.source().blob,
                size: Some(finding.source().size),
                lane: Lane::Backfill,
                trace: None,
                visited: vec![route.from_name.clone()],
                repair: matches!(finding, Finding::Differs { .. }),
                origin: Origin::Sync(self.record.id),
            })
            .collect();
        let state = vec![self.record.write()];
        self.waits.at(Point::SyncPush).await?;
        let results = self.parts.queue.push(pushes, state).await.map_err(|error| queue_failed(&error))?;
        self.waits.at(Point::SyncPushed).await?;
        self.written = self.parts.clock.monotonic();
        let counts = &mut self.record.counts;
        for (finding, pushed) in found.drain(..).zip(results) {
            match pushed {
                Pushed::Added => continue,
                Pushed::SuccessorQueued => {}
                Pushed::AlreadyQueued | Pushed::Hastened | Pushed::Revived => {
                    counts.enqueued -= 1;
                    counts.enqueued_bytes -= finding.source().size;
                }
            }
            if let Finding::Missing(_) = finding {
                counts.missing -= 1;
                counts.in_flight += 1;
            }
        }
        self.show();
        Ok(())
    }

    async fn checkpoint(&mut self) -> Result<(), SyncFailure> {
        self.push(&mut Vec::new()).await
    }

    fn checkpoint_is_due(&self) -> bool {
        self.parts.clock.monotonic().since(self.written) >= self.parts.settings.checkpoint
    }

    /// Stands still, streams closed, while the route's backlog is above the mark.
    async fn wait_for_backlog(&mut self) -> Result<(), SyncFailure> {
        let mark = self.parts.settings.high_water;
        if self.backlog() <= mark {
            return Ok(());
        }
        self.source = None;
        self.destination = None;
        self.enter(SyncPhase::WaitingForBacklog);
        while self.backlog() > mark / 4 * 3 {
            self.waits.queue().await?;
            self.note_time();
            self.show();
        }
        self.enter(SyncPhase::Comparing);
        Ok(())
    }

    /// Backfill entries that will go by themselves.
    fn backlog(&self) -> u64 {
        let lane = self.parts.queue.counts(self.slot.route.id).backfill;
        lane.ready.entries + lane.claimed.entries + lane.retrying.entries
    }

    /// Whether nothing of the route waits to be copied, in either lane.
    fn is_drained(&self) -> bool {
        let counts = self.parts.queue.counts(self.slot.route.id);
        let going = |lane: LaneCounts| lane.ready.entries + lane.claimed.entries + lane.retrying.entries;
        going(counts.fresh) + going(counts.backfill) == 0
    }

    fn enter(&mut self, phase: SyncPhase) {
        self.record.phase = phase;
        self.show();
    }

    fn show(&self) {
        self.slot.show(&self.record);
    }
}

impl SyncWaits<'_> {
    /// A poll interval, or less where the queue says that something changed.
    async fn queue(&self) -> Result<(), SyncFailure> {
        let mut changes = self.parts.queue.subscribe(self.route.id);
        let wait = async {
            let poll = self.parts.settings.poll;
            match tokio::time::timeout(poll, changes.changed()).await {
                // Changes may come by the thousand in a second.
                Ok(Ok(())) => tokio::time::sleep(poll.min(BREATH)).await,
                // The queue is closed: nothing will change, and nothing will say so.
                Ok(Err(_)) => tokio::time::sleep(poll).await,
                Err(_) => {}
            }
        };
        self.unless_stopped(wait).await
    }

    /// Waits for something, or for the service to stop.
    async fn unless_stopped<T>(&self, wait: impl Future<Output = T>) -> Result<T, SyncFailure> {
        match self.stop.run_until_cancelled(wait).await {
            Some(done) => Ok(done),
            None => Err(SyncFailure {
                kind: None,
                peer: String::new(),
                code: None,
                message: "cut by the service's shutdown; run it again".to_owned(),
            }),
        }
    }

    /// A place where the sync can be told to fail.
    async fn at(&self, point: Point) -> Result<(), SyncFailure> {
        failpoint::pause(point).await.map_err(|injected| queue_failed(&injected.into()))
    }

    /// Waits for a store's answer, within the idle deadline.
    async fn answer<T>(
        &self,
        side: Side,
        doing: &str,
        answer: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<T, SyncFailure> {
        let idle = self.parts.settings.idle;
        match self.unless_stopped(tokio::time::timeout(idle, answer)).await? {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.store_failed(side, doing, &error)),
            Err(_) => {
                let what = format!("gave no answer for {idle:?} when it was {doing}");
                Err(self.failure(side, unavailable(side), None, &what))
            }
        }
    }

    fn store_failed(&self, side: Side, doing: &str, error: &StoreError) -> SyncFailure {
        let (kind, code) = match error {
            StoreError::Protocol(_) => (FaultKind::PeerProtocol, None),
            StoreError::Unsupported(_) => (FaultKind::WrongPeerKind, None),
            StoreError::Peer(peer) => (unavailable(side), Some(peer.code)),
            _ => (unavailable(side), None),
        };
        self.failure(side, kind, code, &format!("failed when it was {doing}: {error}"))
    }

    fn listing_failed(&self, error: ListingError) -> SyncFailure {
        self.failure(
            error.side,
            FaultKind::PeerProtocol,
            None,
            &format!("broke the protocol: its listing {}", error.what),
        )
    }

    fn failure(&self, side: Side, kind: FaultKind, code: Option<tonic::Code>, what: &str) -> SyncFailure {
        let (name, peer) = match side {
            Side::Source => ("source", &self.route.from_name),
            Side::Destination => ("destination", &self.route.to_name),
        };
        let message = format!("the {name} store {peer} {what}; run it again");
        SyncFailure { kind: Some(kind), peer: peer.to_string(), code, message }
    }
}

/// How long `pending` entries take as fast as `settled` ones went in this time; absent where that is no measure.
fn eta(pending: u64, settled: u64, took: Duration) -> Option<Duration> {
    if settled == 0 || took < Duration::from_secs(1) {
        return None;
    }
    Duration::try_from_secs_f64(took.as_secs_f64() * pending as f64 / settled as f64).ok()
}

const fn unavailable(side: Side) -> FaultKind {
    match side {
        Side::Source => FaultKind::SourceUnavailable,
        Side::Destination => FaultKind::DestinationUnavailable,
    }
}

fn queue_failed(error: &QueueError) -> SyncFailure {
    SyncFailure {
        kind: Some(FaultKind::QueueWriteFailed),
        peer: String::new(),
        code: None,
        message: format!("{error}; run it again"),
    }
}
