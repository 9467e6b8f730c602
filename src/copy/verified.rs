//! The stream between source and destination: it passes bytes on and ends only if they are the blob's.

use super::resumed::{Broken, SourceBytes};
use super::{CopyError, Progress};
use crate::blob::{BlobRef, Mismatch, Verifier};
use crate::fault::{FaultKind, Side};
use crate::store::StoreError;
use bytes::Bytes;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

/// What became of the bytes, to be asked when the destination has answered.
pub(super) struct Verdict(Arc<Mutex<Found>>);

#[derive(Default)]
struct Found {
    verified: bool,
    fault: Option<CopyError>,
}

impl Verdict {
    /// What was wrong with the source or its bytes, if anything was.
    pub(super) fn fault(&self) -> Option<CopyError> {
        self.0.lock().fault.take()
    }

    /// Whether all stated bytes passed, and their digest matched.
    pub(super) fn is_verified(&self) -> bool {
        self.0.lock().verified
    }
}

/// Wraps the bytes of a blob of which the source stated this size. The last chunk is passed on only if the digest of all of
/// them matched.
pub(super) fn verified(blob: BlobRef, stated: u64, bytes: SourceBytes, progress: Arc<Progress>) -> (Verified, Verdict) {
    let found = Arc::new(Mutex::new(Found::default()));
    let mut check = Check { blob, stated, received: 0, verifier: Some(Verifier::new(blob, None)), wrong: None };
    // An empty blob is complete before anything came.
    check.judge_when_complete();
    found.lock().verified = check.is_verified();
    let verdict = Verdict(found.clone());
    (Verified { source: Some(bytes), check, found, progress }, verdict)
}

pub(super) struct Verified {
    // Gone when the stream has ended.
    source: Option<SourceBytes>,
    check: Check,
    found: Arc<Mutex<Found>>,
    progress: Arc<Progress>,
}

impl Stream for Verified {
    type Item = Result<Bytes, StoreError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let Some(source) = &mut this.source else { return Poll::Ready(None) };
        this.progress.destination_asks();
        let step = match ready!(source.poll_next_unpin(context)) {
            Some(Ok(chunk)) => this.check.take(chunk),
            Some(Err(Broken { error, fault })) => CheckStep::Fail(fault, error),
            None => this.check.end(),
        };
        match step {
            CheckStep::Pass(chunk) => {
                if this.check.is_verified() {
                    this.found.lock().verified = true;
                }
                this.progress.pass(chunk.len() as u64);
                Poll::Ready(Some(Ok(chunk)))
            }
            CheckStep::Hold => {
                // Come back, but let others run in between: a source can send empty chunks for ever.
                context.waker().wake_by_ref();
                Poll::Pending
            }
            CheckStep::End => {
                this.source = None;
                this.progress.confirming();
                Poll::Ready(None)
            }
            CheckStep::Fail(fault, error) => {
                this.source = None;
                this.found.lock().fault = Some(fault);
                Poll::Ready(Some(Err(error)))
            }
        }
    }
}

enum CheckStep {
    Pass(Bytes),
    Hold,
    End,
    Fail(CopyError, StoreError),
}

/// Compares what comes with the ref and with the size that the source stated, and tells the ways apart in which it can differ.
struct Check {
    blob: BlobRef,
    stated: u64,
    received: u64,
    // Taken when its verdict is known.
    verifier: Option<Verifier>,
    // All stated bytes came and are not the blob's; whether more come decides what that is called.
    wrong: Option<Mismatch>,
}

impl Check {
    fn is_verified(&self) -> bool {
        self.verifier.is_none() && self.wrong.is_none()
    }

    fn take(&mut self, chunk: Bytes) -> CheckStep {
        if chunk.is_empty() {
            return CheckStep::Hold;
        }
        self.received = self.received.saturating_add(chunk.len() as u64);
        let stated = self.stated;
        if self.received > stated {
            let message = format!("the source stated {stated} bytes and sends more");
            return Self::fail(FaultKind::SourceSizeMismatch, &message, Mismatch::TooLong { stated });
        }
        if let Some(verifier) = &mut self.verifier
            && let Err(mismatch) = verifier.update(&chunk)
        {
            return Self::fail(FaultKind::SourceSizeMismatch, &mismatch.to_string(), mismatch);
        }
        self.judge_when_complete();
        if self.wrong.is_some() { CheckStep::Hold } else { CheckStep::Pass(chunk) }
    }

    fn judge_when_complete(&mut self) {
        if self.received == self.stated
            && let Some(verifier) = self.verifier.take()
        {
            self.wrong = verifier.finish().err();
        }
    }

    fn end(&mut self) -> CheckStep {
        if let Some(mismatch) = self.wrong.take() {
            return Self::fail(FaultKind::SourceBytesCorrupt, &format!("the source is corrupt: {mismatch}"), mismatch);
        }
        let Some(verifier) = self.verifier.take() else { return CheckStep::End };
        let (stated, received) = (self.stated, self.received);
        let short = Mismatch::TooShort { stated, received };
        if verifier.finish().is_ok() {
            let message = format!("the source stated {stated} bytes, and {} has {received}", self.blob);
            return Self::fail(FaultKind::SourceSizeMismatch, &message, short);
        }
        Self::fail(FaultKind::ShortRead, &short.to_string(), short)
    }

    fn fail(kind: FaultKind, message: &str, mismatch: Mismatch) -> CheckStep {
        CheckStep::Fail(CopyError::charged(kind, Side::Source, message), mismatch.into())
    }
}
