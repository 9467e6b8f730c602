//! What became of a blob, as the wire has it: the barrier and the story.

use super::encode;
use super::failures::fault;
use super::{ServiceParts, announce_status};
use crate::announce::AnnounceError;
use crate::backoff::Patience;
use crate::blob::{BlobRef, RefPrefix};
use crate::grpc::{MAX_ITEMS, Reason, call_deadline, invalid_field, invalid_ref, queue_status};
use crate::pb::{duration, std_duration, timestamp, v1};
use crate::queue::lookup::{Completion, DiscardedBy, Ending, Queued, Standing};
use crate::queue::{Entry, Lane};
use crate::story::{
    BlobState, BlobStory, Holding, HopState, RouteStory, StoryError, Unconfirmed, WaitEnd, WaitRequest, Waited,
};
use crate::worker::charged;
use prost::Message;
use std::time::Duration;
use tonic::{Request, Status};

/// How long to wait, where nothing is said.
const WAIT: Duration = Duration::from_mins(1);

/// How long to wait at most.
const MAX_WAIT: Duration = Duration::from_hours(1);

/// From this size of an answer on, failures are told without their messages.
const TERSE_BYTES: usize = 2 << 20;

/// From this size of an answer on, nothing is added to it: with what is around it, it fits gRPC's usual 4 MiB.
const CUT_BYTES: usize = 3800 << 10;

pub(super) async fn wait(
    parts: &ServiceParts,
    request: Request<v1::WaitReplicatedRequest>,
) -> Result<v1::WaitReplicatedResponse, Status> {
    let shutting_down = || announce_status(&AnnounceError::ShuttingDown);
    if parts.gate.is_shut() {
        return Err(shutting_down());
    }
    let deadline = call_deadline(request.metadata().as_ref()).map(|deadline| deadline.min(2 * MAX_WAIT));
    let v1::WaitReplicatedRequest { refs, wait_token, source_store, routes, max_wait } = request.into_inner();
    if refs.is_empty() == wait_token.is_empty() {
        return Err(invalid_field("wait_token", "give exactly one of refs and wait_token"));
    }
    if !wait_token.is_empty() && !source_store.is_empty() {
        return Err(invalid_field("source_store", "the wait token says it; leave it empty"));
    }
    if refs.len() > MAX_ITEMS {
        let count = refs.len();
        return Err(Reason::TooManyItems.status(format!("{count} refs; at most {MAX_ITEMS} fit one request")));
    }
    let blobs: Result<Vec<BlobRef>, Status> = refs
        .iter()
        .enumerate()
        .map(|(index, text)| text.parse().map_err(|error| invalid_ref(&format!("refs[{index}]"), &error)))
        .collect();
    let max_wait = match &max_wait {
        None => WAIT,
        Some(wait) => {
            std_duration(wait).ok_or_else(|| invalid_field("max_wait", "a span of time is not negative"))?.min(MAX_WAIT)
        }
    };
    let token = (!wait_token.is_empty()).then_some(wait_token);
    let request = WaitRequest { blobs: blobs?, token, source_store, routes, max_wait, deadline };
    drop(refs);
    let waited = parts.draining.run_until_cancelled(parts.story.wait(request)).await.ok_or_else(shutting_down)?;
    Ok(answer(&waited.map_err(|error| story_status(&error))?))
}

fn story_status(error: &StoryError) -> Status {
    let message = error.to_string();
    match error {
        StoryError::Announce(error) => announce_status(error),
        StoryError::Queue(error) => queue_status(error),
        StoryError::RouteNotTaken { .. } => invalid_field("routes", &message),
        StoryError::UnknownToken(_) => Reason::WaitTokenNotFound.status(message),
        StoryError::NoSuchRef { .. } => Reason::BlobMissing.status(message),
        StoryError::AmbiguousRef { .. } => invalid_field("ref", &message),
        StoryError::TooBusy => Reason::TooBusy.status(message),
    }
}

fn answer(waited: &Waited) -> v1::WaitReplicatedResponse {
    let outcome = match waited.end {
        WaitEnd::Confirmed => v1::WaitOutcome::Confirmed,
        WaitEnd::GivenUp => v1::WaitOutcome::GivenUp,
        WaitEnd::TimedOut => v1::WaitOutcome::TimedOut,
    };
    let mut answer = v1::WaitReplicatedResponse {
        summary: summary(waited),
        outcome: outcome.into(),
        confirmed_blobs: Some(waited.confirmed),
        unconfirmed_blobs: Some(waited.unconfirmed.len() as u64),
        unconfirmed: Vec::with_capacity(waited.unconfirmed.len()),
        unconfirmed_cut: false,
        routes: waited.routes.iter().map(|route| route.name.to_string()).collect(),
    };
    let mut bytes = 0;
    for blob in &waited.unconfirmed {
        let blob = unconfirmed(waited, blob, bytes > TERSE_BYTES);
        // With its tag and length.
        bytes += blob.encoded_len() + 6;
        if bytes > CUT_BYTES {
            answer.unconfirmed_cut = true;
            break;
        }
        answer.unconfirmed.push(blob);
    }
    answer
}

fn unconfirmed(waited: &Waited, blob: &Unconfirmed, terse: bool) -> v1::UnconfirmedBlob {
    let routes = blob.hops.iter().map(|(route, hop)| {
        let is_queued =
            matches!(hop.state, BlobState::Ready | BlobState::Claimed | BlobState::Retrying | BlobState::Parked);
        let fault = hop.failure.as_ref().map(|failure| {
            let fault = fault(failure);
            if terse { v1::Fault { message: String::new(), ..fault } } else { fault }
        });
        v1::BlobProgress {
            route: waited.routes.get(*route).map(|route| route.name.to_string()).unwrap_or_default(),
            state: state(hop).into(),
            attempts: is_queued.then_some(hop.attempts),
            fault,
            due_time: hop.due.map(timestamp),
            note: if terse { String::new() } else { hop.note.clone() },
        }
    });
    v1::UnconfirmedBlob { r#ref: blob.blob.to_string(), routes: routes.collect() }
}

fn summary(waited: &Waited) -> String {
    let Waited { end, routes, confirmed, unconfirmed } = waited;
    let (left, all) = (unconfirmed.len() as u64, unconfirmed.len() as u64 + confirmed);
    let routes = match routes.as_slice() {
        [route] => format!("route {}", route.name),
        routes => format!("{} routes", routes.len()),
    };
    let blobs = |number: u64| if number == 1 { "1 blob".to_owned() } else { format!("{number} blobs") };
    match end {
        WaitEnd::Confirmed => format!("{} confirmed on {routes}", blobs(all)),
        WaitEnd::GivenUp => {
            format!("{left} of {} will not be confirmed by waiting: look at how each stands", blobs(all))
        }
        WaitEnd::TimedOut => {
            format!("the time is over, and {left} of {} are not confirmed yet on {routes}", blobs(all))
        }
    }
}

fn state(hop: &HopState) -> v1::BlobState {
    match hop.state {
        BlobState::Confirmed => v1::BlobState::Confirmed,
        BlobState::Ready => v1::BlobState::Ready,
        BlobState::Claimed => v1::BlobState::Claimed,
        BlobState::Retrying => v1::BlobState::Retrying,
        BlobState::Parked => v1::BlobState::Parked,
        BlobState::Discarded => v1::BlobState::Discarded,
        BlobState::Upstream => v1::BlobState::Upstream,
        BlobState::NotQueued => v1::BlobState::NotQueued,
        BlobState::Unknown => v1::BlobState::Unknown,
    }
}

pub(super) async fn explain(
    parts: &ServiceParts,
    request: v1::ExplainBlobRequest,
) -> Result<v1::ExplainBlobResponse, Status> {
    let ask_stores = !request.skip_stores;
    let blob = match (request.r#ref.parse(), RefPrefix::parse(&request.r#ref)) {
        (Ok(blob), _) => blob,
        (Err(_), Some(prefix)) => parts.story.find(&prefix, ask_stores).await.map_err(|error| story_status(&error))?,
        (Err(error), None) => return Err(invalid_ref("ref", &error)),
    };
    let story = parts.story.explain(blob, ask_stores).await.map_err(|error| story_status(&error))?;
    let BlobStory { summary, blob, routes } = story;
    Ok(v1::ExplainBlobResponse { summary, r#ref: blob.to_string(), routes: routes.iter().map(route_story).collect() })
}

fn route_story(story: &RouteStory) -> v1::BlobRouteStory {
    let RouteStory { route, orphaned, summary, state: hop, known, patience, copy, at_source, at_destination, .. } =
        story;
    v1::BlobRouteStory {
        summary: summary.clone(),
        route: route.name.to_string(),
        from: route.from.to_string(),
        to: route.to.to_string(),
        orphaned: *orphaned,
        disabled: !route.enabled && !orphaned,
        state: state(hop).into(),
        entry: known.queued.as_ref().map(|Queued { entry: queued, standing }| v1::BlobEntry {
            due_time: (*standing == Standing::Retrying).then(|| timestamp(queued.due_time)),
            ..entry(queued, patience)
        }),
        successor: known.successor.as_ref().map(|successor| entry(successor, patience)),
        copy: copy.as_ref().map(encode::copy),
        completion: known.completion.as_ref().map(completion),
        at_source: Some(holding(at_source)),
        at_destination: Some(holding(at_destination)),
    }
}

fn entry(entry: &Entry, patience: &Patience) -> v1::BlobEntry {
    let lane = match entry.lane {
        Lane::Fresh => v1::Lane::Fresh,
        Lane::Backfill => v1::Lane::Backfill,
    };
    let trace = entry.trace.clone();
    let (traceparent, tracestate) = trace.map(|trace| (trace.traceparent, trace.tracestate)).unwrap_or_default();
    v1::BlobEntry {
        enqueue_time: Some(timestamp(entry.enqueue_time)),
        lane: lane.into(),
        size_bytes: entry.size,
        traceparent,
        tracestate,
        visited_stores: entry.visited.iter().map(ToString::to_string).collect(),
        attempts: Some(entry.attempts),
        last_fault: entry.failure.as_ref().map(fault),
        first_failure_time: entry.failure.as_ref().map(|failure| timestamp(failure.first)),
        failures: Some(entry.failure.as_ref().map_or(0, |failure| u64::from(failure.count))),
        due_time: None,
        full_sync_ids: entry.syncs.iter().map(ToString::to_string).collect(),
        repair: entry.repair,
        charged: Some(charged(entry.weight, patience.park_after)),
        park_after: Some(patience.park_after),
        missed_for: (entry.misses.count > 0).then(|| duration(entry.misses.lasted)),
        missing_patience: Some(duration(patience.missing)),
    }
}

fn completion(completion: &Completion) -> v1::BlobCompletion {
    let (kind, size, cause) = match completion.ending {
        Ending::Confirmed { size, copied: true } => (v1::CompletionKind::Copied, Some(size), None),
        Ending::Confirmed { size, copied: false } => (v1::CompletionKind::Found, Some(size), None),
        Ending::Discarded { by: DiscardedBy::Operator, cause } => {
            (v1::CompletionKind::DiscardedByOperator, None, cause)
        }
        Ending::Discarded { by: DiscardedBy::Configuration, cause } => {
            (v1::CompletionKind::DiscardedByConfiguration, None, cause)
        }
    };
    v1::BlobCompletion {
        kind: kind.into(),
        time: Some(timestamp(completion.time)),
        size_bytes: size,
        cause: encode::fault_kind(cause),
        enqueue_time: completion.enqueued.as_ref().map(|enqueued| timestamp(enqueued.time)),
        traceparent: completion.enqueued.as_ref().map(|enqueued| enqueued.traceparent.clone()).unwrap_or_default(),
    }
}

fn holding(held: &Holding) -> v1::StoreHolding {
    match held {
        Holding::Yes(size) => {
            v1::StoreHolding { holding: v1::Holding::Yes.into(), size_bytes: Some(*size), note: String::new() }
        }
        Holding::No => v1::StoreHolding { holding: v1::Holding::No.into(), size_bytes: None, note: String::new() },
        Holding::Unknown { why, .. } => {
            v1::StoreHolding { holding: v1::Holding::Unspecified.into(), size_bytes: None, note: why.clone() }
        }
    }
}
