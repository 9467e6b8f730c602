//! Copies one blob from a store to another, or a pack of small ones, and says whose fault it was if that did not work.
//!
//! ```text
//! source.fetch ──chunks──▶ Verified ──chunks──▶ destination.receive ──▶ exact checks of the answer
//! ```
//!
//! - Bytes stream through; nothing is held but the chunk under way. Where the source drops midway, the rest is fetched by a
//!   range; where the destination drops, the copy fails, to start over.
//! - What the destination reads ends only after the digest matched and the size is the one that the source itself stated.
//!   Anything else makes the stream fail instead of end, so that a destination which waits for the end cannot commit.
//! - A confirmation counts only if it names this ref, the verified size, and `Stored` (or `Consumed` on a receive-only
//!   route). A repair is read back from the destination and verified once more.
//! - Copying is idempotent: a copy that was cut or dropped has committed nothing, or the whole blob.
//! - A panic while copying is caught here and becomes this blob's fault.
//!
//! Whoever is waited for too long is at fault: without a byte of progress, below the least rate, or for the confirmation
//! ([`WaitLimits`]).

mod error;
mod packed;
mod progress;
mod resumed;
mod verified;

pub(crate) use error::CopyError;
pub(crate) use packed::{PackEnd, PackItem, PackJob, copy_pack};
pub(crate) use progress::Stage;
pub use progress::{Progress, WaitLimits};

use crate::blob::{BlobRef, Verifier};
use crate::failpoint::{self, Point};
use crate::fault::{FaultKind, Side};
use crate::store::{ByteRange, Disposition, Put, Received, Store, StoreError};
use futures::{FutureExt, StreamExt};
use resumed::resumed;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use verified::verified;

/// What is to be copied, and how.
#[derive(Clone, Debug)]
pub struct CopyJob {
    /// The blob.
    pub blob: BlobRef,
    /// Its size in bytes as announced. Only a hint: what the source states replaces it.
    pub size_hint: Option<u64>,
    /// The destination's bytes were proven wrong: replace them, and read them back.
    pub repair: bool,
    /// Whether `Consumed` confirms, too.
    pub receive_only: bool,
    /// Ask both sides first, and do nothing if the destination holds the blob in the source's size. Ignored for repairs.
    pub ask_first: bool,
    /// How long either side may be waited for.
    pub waits: WaitLimits,
}

/// A confirmed copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Copied {
    /// The verified size in bytes; where nothing was copied, the size that both sides state.
    pub size: u64,
    /// Whether bytes were sent: false where the destination said beforehand that it holds the blob.
    pub copied: bool,
    /// Whether the blob was new to the destination, by its own word.
    pub was_new: bool,
    /// The announced size, where it differs from the true one.
    pub size_corrected: Option<u64>,
}

/// Copies a blob, verified at every step.
///
/// # Errors
/// What went wrong first, with the side that is at fault; a panic underneath is `FaultKind::Panicked`.
pub async fn copy_blob(
    source: &Arc<dyn Store>,
    destination: &dyn Store,
    job: &CopyJob,
    progress: &Arc<Progress>,
) -> Result<Copied, CopyError> {
    let attempt = async {
        tokio::select! {
            biased;
            result = copy(source, destination, job, progress) => result,
            overdue = progress.overdue(&job.waits) => Err(CopyError::overdue(overdue)),
        }
    };
    // Nothing that the copy touched is used again after a panic, but for the progress, whose every change is whole.
    match AssertUnwindSafe(attempt).catch_unwind().await {
        Ok(result) => result,
        Err(panic) => Err(CopyError::panicked(progress.waiting_for(), panic.as_ref())),
    }
}

async fn copy(
    source: &Arc<dyn Store>,
    destination: &dyn Store,
    job: &CopyJob,
    progress: &Arc<Progress>,
) -> Result<Copied, CopyError> {
    let can_read_back = job.repair && ask_for_replace(destination, progress).await?;
    if job.ask_first
        && !job.repair
        && let Some(size) = size_held_by_both(&**source, destination, job.blob, progress).await
    {
        return Ok(Copied { size, copied: false, was_new: false, size_corrected: correction(job, size) });
    }

    progress.enter(Stage::Fetching, Side::Source);
    at(Point::CopyFetch, Side::Source).await?;
    let mut fetched =
        source.fetch(job.blob, ByteRange::default()).await.map_err(|error| CopyError::of(&error, Side::Source))?;
    let stated = fetched.size;
    progress.set_size(stated);
    let size_corrected = correction(job, stated);
    if let Some(announced) = size_corrected {
        tracing::debug!(blob = %job.blob, announced, stated, "the source states another size than was announced");
    }

    at(Point::CopyFetched, Side::Source).await?;
    fetched.bytes = failpoint::each(Point::CopyChunk, fetched.bytes);
    progress.enter(Stage::Writing, Side::Destination);
    let (bytes, verdict) = verified(job.blob, stated, resumed(source.clone(), job.blob, fetched), progress.clone());
    let put = Put { blob: job.blob, size: Some(stated), replace: job.repair };
    let answer = destination.receive(put, failpoint::at_end(Point::CopyHalfClose, bytes)).await;
    at(Point::CopyAnswered, Side::Destination).await?;
    // Whatever the destination made of it: if the bytes were bad, that came first.
    if let Some(fault) = verdict.fault() {
        return Err(fault);
    }
    let received = answer.map_err(|error| match progress.read_by_destination() {
        Some(passed) => {
            let took = progress.waited().iter().sum();
            CopyError::under_way(&error, Side::Destination, (passed, stated), took)
        }
        None => CopyError::of(&error, Side::Destination),
    })?;
    progress.answered(Side::Destination);
    if !verdict.is_verified() {
        return Err(CopyError::confirmed_other("it confirmed the blob before it had read all of it"));
    }
    check_confirmation(job.blob, job.receive_only, stated, &received)?;

    if can_read_back && received.disposition == Disposition::Stored {
        progress.enter(Stage::Verifying, Side::Destination);
        read_back(destination, job.blob, stated, progress).await?;
    }
    Ok(Copied { size: stated, copied: true, was_new: received.was_new, size_corrected })
}

/// A place where the copy can be told to fail as if by this side.
async fn at(point: Point, side: Side) -> Result<(), CopyError> {
    failpoint::pause(point).await.map_err(|injected| CopyError::of(&injected.into(), side))
}

fn correction(job: &CopyJob, size: u64) -> Option<u64> {
    job.size_hint.filter(|hint| *hint != size)
}

/// Refuses a destination that cannot replace; says whether what is written to it can be read back.
async fn ask_for_replace(destination: &dyn Store, progress: &Progress) -> Result<bool, CopyError> {
    progress.enter(Stage::Asking, Side::Destination);
    let info = destination.info().await.map_err(|error| CopyError::of(&error, Side::Destination))?;
    if info.abilities.replace {
        return Ok(info.abilities.fetch);
    }
    Err(CopyError::rejected_for_good("the blob's bytes there are wrong, and the store does not offer to replace them"))
}

/// The blob's size, if both sides hold it in the same one. A side that cannot say is no error: the copy will tell.
async fn size_held_by_both(
    source: &dyn Store,
    destination: &dyn Store,
    blob: BlobRef,
    progress: &Progress,
) -> Option<u64> {
    failpoint::pause(Point::CopyAsk).await.ok()?;
    let size_at = async |store: &dyn Store, side| {
        progress.enter(Stage::Asking, side);
        let found = store.stat(&[blob]).await.ok()?;
        progress.answered(side);
        found.iter().find(|meta| meta.blob == blob).map(|meta| meta.size)
    };
    let held = size_at(destination, Side::Destination).await?;
    let stated = size_at(source, Side::Source).await?;
    (held == stated).then_some(held)
}

fn check_confirmation(
    expected: BlobRef,
    receive_only: bool,
    verified: u64,
    received: &Received,
) -> Result<(), CopyError> {
    let Received { blob, size, disposition, .. } = *received;
    if blob != expected {
        return Err(CopyError::confirmed_other(&format!("it confirmed {blob} in place of {expected}")));
    }
    if size != verified {
        return Err(CopyError::confirmed_other(&format!("it confirmed {size} bytes; {verified} were sent")));
    }
    match disposition {
        Disposition::Stored => Ok(()),
        Disposition::Consumed if receive_only => Ok(()),
        Disposition::Consumed => {
            Err(CopyError::confirmed_other("it answered CONSUMED, and the route is not receive_only"))
        }
        Disposition::Enqueued => Err(CopyError::confirmed_other("it answered ENQUEUED: it holds no bytes")),
    }
}

/// Reads a repaired blob back and verifies it.
async fn read_back(destination: &dyn Store, blob: BlobRef, size: u64, progress: &Progress) -> Result<(), CopyError> {
    let wrong = |error: StoreError| match error {
        StoreError::Missing(_) | StoreError::Corrupt { .. } | StoreError::Mismatch(_) => {
            CopyError::confirmed_other(&format!("it confirmed the repair, but: {error}"))
        }
        error => CopyError::of(&error, Side::Destination),
    };
    let mut fetched = destination.fetch(blob, ByteRange::default()).await.map_err(wrong)?;
    if fetched.size != size {
        let found = fetched.size;
        return Err(CopyError::confirmed_other(&format!(
            "it confirmed the repair of {size} bytes, and states {found}"
        )));
    }
    let mut verifier = Verifier::new(blob, Some(size));
    while let Some(chunk) = fetched.bytes.next().await {
        let chunk = chunk.map_err(wrong)?;
        if !chunk.is_empty() {
            progress.wait_for(Side::Destination);
        }
        verifier.update(&chunk).map_err(|mismatch| wrong(mismatch.into()))?;
    }
    verifier.finish().map_err(|mismatch| wrong(mismatch.into()))?;
    Ok(())
}

impl CopyError {
    fn confirmed_other(message: &str) -> Self {
        Self::charged(FaultKind::DestinationConfirmedOther, Side::Destination, message)
    }
}

#[cfg(test)]
mod tests;
