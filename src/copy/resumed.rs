//! A source's bytes that go on where they were cut.
//!
//! When the source, or the way to it, drops in the middle of a blob, the rest is fetched by a range, as often as each drop
//! was preceded by some bytes and [`MAX_RESUMES`] times at most. What has passed is neither fetched nor hashed again. Whoever
//! reads sees one stream; that its parts belong together is for the digest to prove. A fault of the blob itself is no drop.
//! A source that does not take the range is no worse than one that dropped: its first error stands.

use super::CopyError;
use crate::blob::BlobRef;
use crate::fault::{FailureClass, Side};
use crate::store::{ByteRange, Fetched, Store, StoreError};
use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, stream};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often a copy goes on, at most; a source that drops more often needs its breaker.
const MAX_RESUMES: u32 = 8;

/// How long to wait before a source that dropped is asked again: a restarting one, or a proxy that lost a connection, is
/// back by then, or the breaker is the better judge.
const PAUSE: Duration = Duration::from_millis(100);

/// Why a source's bytes ended too early: the error as it came, and what it means for the copy.
pub(super) struct Broken {
    pub(super) error: StoreError,
    pub(super) fault: CopyError,
}

/// A source's bytes in order. An error is the last.
pub(super) type SourceBytes = BoxStream<'static, Result<Bytes, Broken>>;

/// What was fetched, so that a drop in the middle of it is made up for.
pub(super) fn resumed(source: Arc<dyn Store>, blob: BlobRef, fetched: Fetched) -> SourceBytes {
    let reading = Reading { source, blob, fetched, began: Instant::now(), at: 0, moved: false, resumes: 0 };
    let bytes = stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await? {
            Ok(chunk) => Some((Ok(chunk), Some(reading))),
            Err(broken) => Some((Err(broken), None)),
        }
    });
    bytes.boxed()
}

struct Reading {
    source: Arc<dyn Store>,
    blob: BlobRef,
    // The size of the whole blob, and what is still to come.
    fetched: Fetched,
    began: Instant,
    // Bytes that came so far.
    at: u64,
    // Whether any came since the last drop.
    moved: bool,
    resumes: u32,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<Bytes, Broken>> {
        loop {
            match self.fetched.bytes.next().await? {
                Ok(chunk) => {
                    self.at = self.at.saturating_add(chunk.len() as u64);
                    self.moved |= !chunk.is_empty();
                    return Some(Ok(chunk));
                }
                Err(error) => {
                    let fault = self.fault(&error);
                    let broken = Broken { error, fault };
                    if !self.may_resume(&broken.fault) {
                        return Some(Err(broken));
                    }
                    if let Err(broken) = self.resume(broken).await {
                        return Some(Err(broken));
                    }
                }
            }
        }
    }

    /// What an error of the open stream means.
    fn fault(&self, error: &StoreError) -> CopyError {
        if self.moved {
            CopyError::under_way(error, Side::Source, (self.at, self.fetched.size), self.began.elapsed())
        } else {
            CopyError::of(error, Side::Source)
        }
    }

    fn may_resume(&self, fault: &CopyError) -> bool {
        let dropped = !matches!(fault.class, FailureClass::Answer { .. });
        dropped && self.moved && self.at < self.fetched.size && self.resumes < MAX_RESUMES
    }

    async fn resume(&mut self, broken: Broken) -> Result<(), Broken> {
        let (blob, at, cause) = (self.blob, self.at, &broken.error);
        tracing::debug!(%blob, at, %cause, "the source dropped in the middle of a blob; going on from there");
        self.resumes += 1;
        self.moved = false;
        tokio::time::sleep(PAUSE).await;
        let of = |error| Broken { fault: CopyError::of(&error, Side::Source), error };
        let rest = match self.source.fetch(blob, ByteRange { offset: at, length: None }).await {
            Ok(rest) => rest,
            Err(error) => {
                let again = of(error);
                // It may be the range that is refused, which another attempt does not have.
                return Err(if again.fault.class.is_permanent() { broken } else { again });
            }
        };
        if rest.size != self.fetched.size {
            let (before, now) = (self.fetched.size, rest.size);
            return Err(of(StoreError::Protocol(format!("the source stated {before} bytes of {blob}, and now {now}"))));
        }
        self.fetched = rest;
        Ok(())
    }
}
