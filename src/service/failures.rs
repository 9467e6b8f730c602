//! What failed: listed, grouped by cause, retried, discarded.
//!
//! All that failed may be millions of entries. It is walked in the queue's order, a page at a time, each page one durable
//! write; a call ends after a bounded number of pages, or some seconds, with a token for the rest. An entry that fails anew
//! while the walk goes on is left alone, or the walk could follow it for ever: the token keeps the walk's beginning.

use super::{ServiceParts, announce_status};
use crate::announce::Route;
use crate::blob::{BlobRef, Excerpt};
use crate::fault::FaultKind;
use crate::grpc::{MAX_ITEMS, Reason, invalid_field, invalid_ref, queue_status};
use crate::pb::{timestamp, v1};
use crate::queue::failures::{FailedEntry, FailedState, FailureCursor, FailureFilter, Remedy};
use crate::queue::{Failure, Lane, QueueError, Seq};
use crate::store::code_name;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tonic::{Code, Status};

/// Entries on a page, where no number is asked for.
const PAGE: usize = 100;
/// Entries on a page, at most.
const MAX_PAGE: usize = 1000;
/// Entries that one durable write changes, at most.
const STEP: usize = 1000;
/// Pages of [`STEP`] that the groups are counted over.
const GROUP_PAGES: usize = 10;
/// Pages of [`STEP`] that one call to retry or discard walks, at most.
const WALK_PAGES: usize = 100;
/// No further page is begun after this: clients do not wait for ever.
const WALK_TIME: Duration = Duration::from_secs(10);

pub(super) async fn list(
    parts: &ServiceParts,
    request: v1::ListFailuresRequest,
) -> Result<v1::ListFailuresResponse, Status> {
    let route = route(parts, &request.route)?;
    let filter = FailureFilter { kind: kind(request.kind, "kind")?, state: state(request.state, "state")? };
    let limit = match usize::try_from(request.page_size).unwrap_or(usize::MAX) {
        0 => PAGE,
        size @ 1..=MAX_PAGE => size,
        _ => return Err(invalid_field("page_size", "a page has 1 to 1000 entries; 0 means 100")),
    };
    let bad_token = || invalid_field("page_token", "it is not the next_page_token of an answer");
    let after = match request.page_token.as_str() {
        "" => None,
        token => Some(parse_cursor(token).ok_or_else(bad_token)?),
    };
    let counts = parts.failures_counts(route);
    let mut response = v1::ListFailuresResponse {
        retrying_entries: Some(counts.0),
        parked_entries: Some(counts.1),
        ..v1::ListFailuresResponse::default()
    };
    if !request.r#ref.is_empty() {
        let blob = request.r#ref.parse().map_err(|error| invalid_ref("ref", &error))?;
        let mut failed = parts.queue.failures_of(route.id, vec![blob]).await.map_err(|e| queue_status(&e))?;
        failed.retain(|failed| filter.admits(failed));
        let mut groups = Groups::default();
        groups.add(&failed);
        response.groups = groups.encode();
        response.groups_complete = true;
        response.failures = failed.iter().filter_map(entry).collect();
        return Ok(response);
    }
    let page = parts.queue.failures(route.id, filter, after, limit).await.map_err(|e| queue_status(&e))?;
    response.failures = page.failed.iter().filter_map(entry).collect();
    response.next_page_token = page.next.map(cursor_text).unwrap_or_default();
    if after.is_none() {
        let (groups, complete) = groups(parts, route, filter).await.map_err(|error| queue_status(&error))?;
        response.groups = groups.encode();
        response.groups_complete = complete;
    }
    Ok(response)
}

pub(super) async fn retry(
    parts: &Arc<ServiceParts>,
    request: v1::RetryFailuresRequest,
    caller: String,
) -> Result<v1::RetryFailuresResponse, Status> {
    let v1::RetryFailuresRequest { route, selection, count_only, page_token } = request;
    if let Some(orphan) = parts.routes.orphan(&route) {
        return Err(super::overrides::orphaned(orphan));
    }
    let walk = Walk::new(parts, &route, selection, (Remedy::Revive, count_only), &page_token, caller)?;
    let Walked { matched, changed, next } = walk.run().await?;
    Ok(v1::RetryFailuresResponse {
        matched_entries: Some(matched),
        retried_entries: Some(changed),
        next_page_token: next,
    })
}

pub(super) async fn discard(
    parts: &Arc<ServiceParts>,
    request: v1::DiscardFailuresRequest,
    caller: String,
) -> Result<v1::DiscardFailuresResponse, Status> {
    let v1::DiscardFailuresRequest { route, selection, count_only, page_token } = request;
    let walk = Walk::new(parts, &route, selection, (Remedy::Discard, count_only), &page_token, caller)?;
    let Walked { matched, changed, next } = walk.run().await?;
    Ok(v1::DiscardFailuresResponse {
        matched_entries: Some(matched),
        discarded_entries: Some(changed),
        next_page_token: next,
    })
}

impl ServiceParts {
    /// Retrying and parked entries of a route, from the counters.
    fn failures_counts(&self, route: &Route) -> (u64, u64) {
        let counts = self.queue.counts(route.id);
        let retrying = counts.fresh.retrying.entries + counts.backfill.retrying.entries;
        (retrying, counts.fresh.parked.entries + counts.backfill.parked.entries)
    }
}

/// Which entries a call means.
enum Selection {
    Refs(Vec<BlobRef>),
    Filter,
}

/// A call that retries, discards or counts.
struct Walk {
    parts: Arc<ServiceParts>,
    route: Route,
    selection: Selection,
    filter: FailureFilter,
    remedy: Remedy,
    count_only: bool,
    /// When the first of the calls that belong together began, and where this one goes on.
    begun: Option<(SystemTime, Option<FailureCursor>)>,
    caller: String,
}

#[derive(Default)]
struct Walked {
    matched: u64,
    changed: u64,
    next: String,
}

impl Walk {
    fn new(
        parts: &Arc<ServiceParts>,
        route_name: &str,
        selection: Option<v1::FailureSelection>,
        (remedy, count_only): (Remedy, bool),
        token: &str,
        caller: String,
    ) -> Result<Self, Status> {
        let route = route(parts, route_name)?.clone();
        let v1::FailureSelection { refs, kind: of_kind, all, state: of_state } = selection.unwrap_or_default();
        let kind = kind(of_kind, "selection.kind")?;
        let filter = FailureFilter { kind, state: state(of_state, "selection.state")? };
        if [!refs.is_empty(), kind.is_some(), all].into_iter().filter(|given| *given).count() != 1 {
            return Err(invalid_field("selection", "give exactly one of refs, kind and all"));
        }
        let selection = if refs.is_empty() { Selection::Filter } else { Selection::Refs(parse_refs(&refs)?) };
        let begun = match token {
            "" => None,
            token => {
                let parsed = token.split_once('/').and_then(|(begun, cursor)| {
                    let begun = UNIX_EPOCH.checked_add(Duration::from_nanos(begun.parse().ok()?))?;
                    Some((begun, Some(parse_cursor(cursor)?)))
                });
                let wrong = || invalid_field("page_token", "it is not the next_page_token of an answer");
                Some(parsed.ok_or_else(wrong)?)
            }
        };
        Ok(Self { parts: parts.clone(), route, selection, filter, remedy, count_only, begun, caller })
    }

    async fn run(self) -> Result<Walked, Status> {
        match &self.selection {
            Selection::Refs(refs) => self.over(refs).await,
            Selection::Filter => self.through().await,
        }
    }

    /// Over the entries of these blobs.
    async fn over(&self, refs: &[BlobRef]) -> Result<Walked, Status> {
        let mut walked = Walked::default();
        for refs in refs.chunks(STEP) {
            let found = self.parts.queue.failures_of(self.route.id, refs.to_vec()).await;
            let mut failed = found.map_err(|error| queue_status(&error))?;
            failed.retain(|failed| self.filter.admits(failed));
            self.step(&failed, &mut walked).await?;
        }
        Ok(walked)
    }

    /// Through all that the filter admits.
    async fn through(&self) -> Result<Walked, Status> {
        let mut walked = Walked::default();
        let started = self.parts.clock.monotonic();
        let (mut begun, mut after) = (self.begun.map(|(begun, _)| begun), self.begun.and_then(|(_, after)| after));
        for _ in 0..WALK_PAGES {
            let page = self.parts.queue.failures(self.route.id, self.filter, after, STEP).await;
            let mut page = page.map_err(|error| queue_status(&error))?;
            let begun = *begun.get_or_insert(page.time);
            page.failed.retain(|failed| {
                let last = failed.entry.failure.as_ref().map_or(begun, |failure| failure.last);
                // One from the future failed before the clock was set back.
                last <= begun || last > page.time
            });
            self.step(&page.failed, &mut walked).await?;
            let Some(next) = page.next else {
                walked.next.clear();
                return Ok(walked);
            };
            after = Some(next);
            let nanos = begun.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
            walked.next = format!("{nanos}/{}", cursor_text(next));
            if self.parts.clock.monotonic().since(started) > WALK_TIME {
                break;
            }
        }
        Ok(walked)
    }

    /// One durable write, in a task of its own, so that it is logged though the caller should go away.
    async fn step(&self, failed: &[FailedEntry], walked: &mut Walked) -> Result<(), Status> {
        walked.matched += failed.len() as u64;
        if self.count_only || failed.is_empty() {
            return Ok(());
        }
        let seqs: Vec<Seq> = failed.iter().map(|failed| failed.entry.seq).collect();
        let (parts, route, remedy, caller) = (self.parts.clone(), self.route.clone(), self.remedy, self.caller.clone());
        let work = async move {
            let changed = parts.queue.remedy(route.id, seqs, remedy).await?;
            if changed > 0 {
                let are = if remedy == Remedy::Revive { "due again" } else { "discarded" };
                tracing::info!(route = %route.name, entries = changed, caller, "failed entries are {are}, as an operator asked");
            }
            Ok::<u64, QueueError>(changed)
        };
        let done = self.parts.tasks.spawn(work).await;
        let done = done.map_err(|error| Reason::Internal.status(format!("the write was broken off: {error}")))?;
        walked.changed += done.map_err(|error| queue_status(&error))?;
        Ok(())
    }
}

fn parse_refs(refs: &[String]) -> Result<Vec<BlobRef>, Status> {
    if refs.len() > MAX_ITEMS {
        let count = refs.len();
        return Err(Reason::TooManyItems.status(format!("{count} refs; at most {MAX_ITEMS} fit one request")));
    }
    let mut seen = HashSet::with_capacity(refs.len());
    let mut parsed = Vec::with_capacity(refs.len());
    for (index, text) in refs.iter().enumerate() {
        let blob = text.parse().map_err(|error| invalid_ref(&format!("selection.refs[{index}]"), &error))?;
        if seen.insert(blob) {
            parsed.push(blob);
        }
    }
    Ok(parsed)
}

/// Causes, and what is known of each.
#[derive(Default)]
struct Groups(HashMap<(FaultKind, Option<Code>, String), Group>);

struct Group {
    latest: Failure,
    first: SystemTime,
    example: BlobRef,
    retrying: u64,
    parked: u64,
}

async fn groups(parts: &ServiceParts, route: &Route, filter: FailureFilter) -> Result<(Groups, bool), QueueError> {
    let (mut groups, mut after) = (Groups::default(), None);
    for _ in 0..GROUP_PAGES {
        let page = parts.queue.failures(route.id, filter, after, STEP).await?;
        groups.add(&page.failed);
        after = page.next;
        if after.is_none() {
            return Ok((groups, true));
        }
    }
    Ok((groups, false))
}

impl Groups {
    fn add(&mut self, failed: &[FailedEntry]) {
        for FailedEntry { entry, state } in failed {
            let Some(failure) = &entry.failure else { continue };
            let key = (failure.kind, failure.code, failure.peer.clone());
            let group = self.0.entry(key).or_insert_with(|| Group {
                latest: failure.clone(),
                first: failure.first,
                example: entry.blob,
                retrying: 0,
                parked: 0,
            });
            match state {
                FailedState::Retrying => group.retrying += 1,
                FailedState::Parked => group.parked += 1,
            }
            group.first = group.first.min(failure.first);
            if failure.last > group.latest.last {
                group.latest = failure.clone();
                group.example = entry.blob;
            }
        }
    }

    fn encode(self) -> Vec<v1::FailureGroup> {
        let mut groups: Vec<_> = self.0.into_iter().collect();
        groups.sort_by(|(a_key, a), (b_key, b)| {
            let size = |group: &Group| group.retrying + group.parked;
            size(b).cmp(&size(a)).then_with(|| (a_key.0, &a_key.2).cmp(&(b_key.0, &b_key.2)))
        });
        let groups = groups.into_iter().map(|((kind, code, peer), group)| {
            let code = code.map(|code| format!(" {}", code_name(code))).unwrap_or_default();
            let at = if peer.is_empty() { String::new() } else { format!(" at {peer}") };
            v1::FailureGroup {
                summary: format!("{} x {kind}{code}{at}", thousands(group.retrying + group.parked)),
                cause: Some(fault(&group.latest)),
                retrying_entries: Some(group.retrying),
                parked_entries: Some(group.parked),
                first_time: Some(timestamp(group.first)),
                last_time: Some(timestamp(group.latest.last)),
                example_ref: group.example.to_string(),
            }
        });
        groups.collect()
    }
}

/// `4212` as `4,212`.
fn thousands(number: u64) -> String {
    if number < 1000 { number.to_string() } else { format!("{},{:03}", thousands(number / 1000), number % 1000) }
}

fn entry(failed: &FailedEntry) -> Option<v1::FailedEntry> {
    let FailedEntry { entry, state } = failed;
    let failure = entry.failure.as_ref()?;
    let lane = match entry.lane {
        Lane::Fresh => v1::Lane::Fresh,
        Lane::Backfill => v1::Lane::Backfill,
    };
    let (wire_state, due) = match state {
        FailedState::Retrying => (v1::FailureState::Retrying, Some(timestamp(entry.due_time))),
        FailedState::Parked => (v1::FailureState::Parked, None),
    };
    Some(v1::FailedEntry {
        r#ref: entry.blob.to_string(),
        state: wire_state.into(),
        lane: lane.into(),
        attempts: Some(entry.attempts),
        enqueue_time: Some(timestamp(entry.enqueue_time)),
        due_time: due,
        size_bytes: entry.size,
        cause: Some(fault(failure)),
        first_failure_time: Some(timestamp(failure.first)),
        failures: Some(u64::from(failure.count)),
        repair: entry.repair,
    })
}

pub(super) fn fault(failure: &Failure) -> v1::Fault {
    v1::Fault {
        // The numbers are the same on the wire; a test in `pb` holds them to it.
        kind: i32::from(failure.kind.number()),
        peer: failure.peer.clone(),
        code: failure.code.map(code_name).unwrap_or_default().to_owned(),
        message: failure.message.clone(),
        time: Some(timestamp(failure.last)),
    }
}

fn route<'a>(parts: &'a ServiceParts, name: &str) -> Result<&'a Route, Status> {
    parts.routes.route_or_orphan(name).map_err(|error| announce_status(&error))
}

/// The kind of this number on the wire; 0 means any.
fn kind(number: i32, field: &str) -> Result<Option<FaultKind>, Status> {
    if number == 0 {
        return Ok(None);
    }
    let kind = u8::try_from(number).ok().and_then(FaultKind::from_number);
    kind.map(Some).ok_or_else(|| invalid_field(field, &format!("this version knows no kind {number}")))
}

fn state(number: i32, field: &str) -> Result<Option<FailedState>, Status> {
    match v1::FailureState::try_from(number) {
        Ok(v1::FailureState::Unspecified) => Ok(None),
        Ok(v1::FailureState::Retrying) => Ok(Some(FailedState::Retrying)),
        Ok(v1::FailureState::Parked) => Ok(Some(FailedState::Parked)),
        Err(_) => Err(invalid_field(field, &format!("this version knows no state {number}"))),
    }
}

fn cursor_text(cursor: FailureCursor) -> String {
    match cursor {
        FailureCursor::Retrying(Lane::Fresh, due, seq) => format!("f-{due}-{seq}"),
        FailureCursor::Retrying(Lane::Backfill, due, seq) => format!("b-{due}-{seq}"),
        FailureCursor::Parked(kind, seq) => format!("p-{kind}-{seq}"),
    }
}

fn parse_cursor(text: &str) -> Option<FailureCursor> {
    let mut parts = text.split('-');
    let (line, first, seq) = (parts.next()?, parts.next()?, parts.next()?.parse().ok()?);
    if parts.next().is_some() {
        return None;
    }
    match line {
        "f" => Some(FailureCursor::Retrying(Lane::Fresh, first.parse().ok()?, seq)),
        "b" => Some(FailureCursor::Retrying(Lane::Backfill, first.parse().ok()?, seq)),
        "p" => Some(FailureCursor::Parked(first.parse().ok()?, seq)),
        _ => None,
    }
}

/// Who calls, as far as the connection tells, for the log.
pub(super) fn caller<T>(request: &tonic::Request<T>) -> String {
    // Where one socket serves both families, an address of IPv4 comes wrapped in one of IPv6.
    let plain = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let address = request.remote_addr().map_or_else(|| "unknown".to_owned(), |address| plain(address).to_string());
    match request.metadata().get("user-agent").and_then(|agent| agent.to_str().ok()) {
        Some(agent) => format!("{address} {}", Excerpt::of(agent)),
        None => address,
    }
}

#[cfg(test)]
mod tests {
    use super::{cursor_text, kind, parse_cursor, state, thousands};
    use crate::fault::FaultKind;
    use crate::queue::Lane;
    use crate::queue::failures::{FailedState, FailureCursor};

    #[test]
    fn tokens_round_trip_and_others_are_refused() {
        for cursor in [
            FailureCursor::Retrying(Lane::Fresh, u64::MAX, 0),
            FailureCursor::Retrying(Lane::Backfill, 1, 2),
            FailureCursor::Parked(14, u64::MAX),
        ] {
            assert_eq!(parse_cursor(&cursor_text(cursor)), Some(cursor));
        }
        for wrong in ["", "f", "f-1", "f-1-2-3", "x-1-2", "p-256-1", "f--1", "p-1-18446744073709551616"] {
            assert_eq!(parse_cursor(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn unknown_kinds_and_states_are_refused() {
        assert_eq!(kind(0, "kind").unwrap(), None);
        assert_eq!(kind(2, "kind").unwrap(), Some(FaultKind::MissingAtSource));
        assert!(kind(258, "kind").is_err() && kind(-1, "kind").is_err());
        assert_eq!(state(2, "state").unwrap(), Some(FailedState::Parked));
        assert!(state(3, "state").is_err());
    }

    #[test]
    fn counts_are_grouped_by_the_thousand() {
        assert_eq!([thousands(0), thousands(4212), thousands(1_000_007)], ["0", "4,212", "1,000,007"]);
    }
}
