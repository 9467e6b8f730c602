//! A source's bytes that go on where they were cut.
//!
//! When the source, or the way to it, drops in the middle of a blob, the rest is fetched by a range, as often as each drop
//! was preceded by some bytes and [`MAX_RESUMES`] times at most. What has passed is neither fetched nor hashed again. Whoever
//! reads sees one stream; that its parts belong together is for the digest to prove. A fault of the blob itself is no drop.

use super::CopyError;
use crate::blob::BlobRef;
use crate::fault::{Blame, Side};
use crate::store::{ByteRange, ByteStream, Fetched, Store, StoreError};
use futures::{StreamExt, stream};
use std::sync::Arc;
use std::time::Duration;

/// How often a copy goes on, at most; a source that drops more often needs its breaker.
const MAX_RESUMES: u32 = 8;

/// How long to wait before a source that dropped is asked again: a restarting one, or a proxy that lost a connection, is
/// back by then, or the breaker is the better judge.
const PAUSE: Duration = Duration::from_millis(100);

/// What was fetched, so that a drop in the middle of it is made up for.
pub(super) fn resumed(source: Arc<dyn Store>, blob: BlobRef, fetched: Fetched) -> Fetched {
    let Fetched { size, bytes } = fetched;
    let reading = Reading { source, blob, size, bytes, at: 0, moved: false, resumes: 0 };
    let bytes = stream::unfold(Some(reading), |reading| async move {
        let mut reading = reading?;
        match reading.next().await? {
            Ok(chunk) => Some((Ok(chunk), Some(reading))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Fetched { size, bytes: bytes.boxed() }
}

struct Reading {
    source: Arc<dyn Store>,
    blob: BlobRef,
    size: u64,
    bytes: ByteStream,
    // Bytes that came so far.
    at: u64,
    // Whether any came since the last drop.
    moved: bool,
    resumes: u32,
}

impl Reading {
    async fn next(&mut self) -> Option<Result<bytes::Bytes, StoreError>> {
        loop {
            match self.bytes.next().await? {
                Ok(chunk) => {
                    self.at = self.at.saturating_add(chunk.len() as u64);
                    self.moved |= !chunk.is_empty();
                    return Some(Ok(chunk));
                }
                Err(error) if self.may_resume(&error) => {
                    if let Err(error) = self.resume(&error).await {
                        return Some(Err(error));
                    }
                }
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn may_resume(&self, error: &StoreError) -> bool {
        let dropped = CopyError::of(error, Side::Source).blame() == Blame::Peer(Side::Source);
        dropped && self.moved && self.at < self.size && self.resumes < MAX_RESUMES
    }

    async fn resume(&mut self, cause: &StoreError) -> Result<(), StoreError> {
        let (blob, at) = (self.blob, self.at);
        tracing::debug!(%blob, at, %cause, "the source dropped in the middle of a blob; going on from there");
        self.resumes += 1;
        self.moved = false;
        tokio::time::sleep(PAUSE).await;
        let Fetched { size, bytes } = self.source.fetch(blob, ByteRange { offset: at, length: None }).await?;
        if size != self.size {
            let before = self.size;
            return Err(StoreError::Protocol(format!("the source stated {before} bytes of {blob}, and now {size}")));
        }
        self.bytes = bytes;
        Ok(())
    }
}
