//! The reckoning: every acked ref, at the destination, or still in the queue, or parked with a cause.

use super::api::{self, MAX_ITEMS, Queued, Reader, Replication};
use super::load::Addresses;
use anyhow::{Result, bail, ensure};
use blobferry::blob::{BlobRef, Verifier};
use blobferry::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinSet;

/// How long the queue may stand still before it is taken as it is.
const STANDSTILL: Duration = Duration::from_secs(60);
/// Blobs read back at a time.
const AT_A_TIME: usize = 16;
/// Lost refs that are named.
const NAMED: usize = 20;

/// What was found.
#[derive(Default)]
pub(crate) struct Tally {
    /// Acks; a ref may have several.
    pub(crate) acks: u64,
    /// Distinct acked refs that were looked for.
    pub(crate) checked: u64,
    /// Read back from the destination with the right bytes.
    right: u64,
    /// Not there, but in the queue.
    queued: u64,
    /// Not there, but parked.
    parked: u64,
    /// Neither, or there with wrong bytes.
    pub(crate) lost: u64,
    /// Some of those, and what is wrong with them.
    pub(crate) named: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.acks += other.acks;
        self.checked += other.checked;
        self.right += other.right;
        // What stands in the queue now; an earlier reckoning's figure may have been copied meanwhile.
        self.queued = other.queued;
        self.parked = other.parked;
        self.lost += other.lost;
        self.named.extend(other.named);
        self.named.truncate(NAMED);
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { acks, checked, right, queued, parked, lost, named } = self;
        write!(
            f,
            "{acks} acks, {checked} refs checked: {right} at the destination with the right bytes, {queued} queued, \
             {parked} parked, lost {lost}"
        )?;
        named.iter().try_for_each(|one| write!(f, "\n{one}"))
    }
}

/// Lets the queue drain, then looks for every ref of the record.
pub(crate) async fn reckon(at: &Addresses, record: &Path) -> Result<Tally> {
    let (lines, acked) = read(record)?;
    let mut replication = Replication::new(api::channel(&at.replicator)?);
    let in_queue = drain(&mut replication).await?;
    let reader = Reader::new(api::channel(&at.destination)?).max_decoding_message_size(4 << 20);
    let mut held = BTreeSet::new();
    for page in acked.chunks(MAX_ITEMS) {
        let refs = page.iter().map(ToString::to_string).collect();
        let blobs = reader.clone().stat_blobs(pb::StatBlobsRequest { refs }).await?.into_inner().blobs;
        held.extend(blobs.iter().filter_map(|meta| meta.r#ref.parse::<BlobRef>().ok()));
    }
    let missing: Vec<BlobRef> = acked.iter().filter(|blob| !held.contains(blob)).copied().collect();
    let wrong = read_back(&reader, held.into_iter().collect()).await?;
    let failures = failures(&mut replication).await?;
    let absent = missing.len() as u64;
    let of = |state| missing.iter().filter(|blob| failures.get(blob) == Some(&state)).count() as u64;
    let (parked, retrying) = (of(pb::FailureState::Parked), of(pb::FailureState::Retrying));
    // No call tells which refs are ready: as many may be missing as there are in the queue that never failed, and no more.
    let all_retrying = failures.values().filter(|state| **state == pb::FailureState::Retrying).count() as u64;
    let ready = (absent - parked - retrying).min(in_queue.moving.saturating_sub(all_retrying));
    let queued = retrying + ready;
    let lost = absent - queued - parked + wrong.len() as u64;
    let absent_ones = missing.iter().map(|blob| format!("not at the destination: {blob}"));
    let wrong_ones = wrong.iter().map(|(blob, why)| format!("wrong at the destination: {blob}: {why}"));
    let named = if lost > 0 { wrong_ones.chain(absent_ones).take(NAMED).collect() } else { Vec::new() };
    let checked = acked.len() as u64;
    Ok(Tally { acks: lines, checked, right: checked - absent - wrong.len() as u64, queued, parked, lost, named })
}

/// What failed, and whether it is tried again; each must say why it failed.
async fn failures(api: &mut Replication) -> Result<BTreeMap<BlobRef, pb::FailureState>> {
    let mut found = BTreeMap::new();
    let mut request = pb::ListFailuresRequest { page_size: 1000, ..Default::default() };
    loop {
        let page = api.list_failures(request.clone()).await?.into_inner();
        for failed in page.failures {
            let cause = failed.cause.as_ref().is_some_and(|cause| cause.kind() != pb::FaultKind::Unspecified);
            ensure!(cause && failed.failures > Some(0), "an entry failed without a cause: {failed:?}");
            found.insert(failed.r#ref.parse()?, failed.state());
        }
        if page.next_page_token.is_empty() {
            return Ok(found);
        }
        request.page_token = page.next_page_token;
    }
}

/// The number of lines, and their refs, each once.
fn read(record: &Path) -> Result<(u64, Vec<BlobRef>)> {
    let text = std::fs::read_to_string(record)?;
    let mut refs = BTreeSet::new();
    let mut lines = 0;
    for line in text.lines() {
        lines += 1;
        refs.insert(line.parse::<BlobRef>()?);
    }
    Ok((lines, refs.into_iter().collect()))
}

/// Waits until nothing moves any more; what is left then.
async fn drain(api: &mut Replication) -> Result<Queued> {
    let mut last = Queued::default();
    let mut since = Instant::now();
    loop {
        let route = api::route(api).await?;
        let now = api::queued(&route);
        if now != last {
            (last, since) = (now, Instant::now());
        }
        let stands_still = since.elapsed() > STANDSTILL;
        if now.moving == 0 || stands_still {
            if now != Queued::default() {
                println!("left in the queue: {now:?}: {}", route.summary);
                for group in &route.recent_faults {
                    println!("  cause: {:?} x {group:?}", group.count);
                }
                if route.recent_faults.is_empty() {
                    bail!("entries are left in the queue without a cause: {route:?}");
                }
            }
            return Ok(now);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Reads blobs back and verifies them; those that are wrong.
async fn read_back(reader: &Reader, blobs: Vec<BlobRef>) -> Result<Vec<(BlobRef, String)>> {
    let blobs = Arc::new(blobs);
    let mut tasks = JoinSet::new();
    for offset in 0..AT_A_TIME {
        let (mut reader, blobs) = (reader.clone(), blobs.clone());
        tasks.spawn(async move {
            let mut wrong = Vec::new();
            for blob in blobs.iter().skip(offset).step_by(AT_A_TIME) {
                if let Err(why) = verify(&mut reader, *blob).await {
                    wrong.push((*blob, why.to_string()));
                }
            }
            wrong
        });
    }
    let mut wrong = Vec::new();
    while let Some(found) = tasks.join_next().await {
        wrong.extend(found?);
    }
    Ok(wrong)
}

async fn verify(reader: &mut Reader, blob: BlobRef) -> Result<()> {
    let request = pb::FetchBlobRequest { r#ref: blob.to_string(), ..Default::default() };
    let mut stream = reader.fetch_blob(request).await?.into_inner();
    let mut verifier = None;
    while let Some(message) = stream.message().await? {
        match (message.part, &mut verifier) {
            (Some(pb::fetch_blob_response::Part::Header(header)), None) => {
                verifier = Some(Verifier::new(blob, header.size_bytes));
            }
            (Some(pb::fetch_blob_response::Part::Chunk(chunk)), Some(verifier)) => verifier.update(&chunk)?,
            (part, _) => bail!("{part:?} came out of order"),
        }
    }
    let Some(verifier) = verifier else { bail!("nothing came") };
    verifier.finish()?;
    Ok(())
}
