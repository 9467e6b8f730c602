//! What the checks work with: a store, random blobs, and the ways to look at both.

use super::{RuleOutcome, is_missing};
use crate::blob::{BlobMeta, BlobRef, DigestFunction};
use crate::clock::Entropy;
use crate::store::{
    ByteRange, ByteStream, Disposition, EnumerateEnd, EnumerateRange, PeerKind, Put, Received, Store, StoreError,
    StoreInfo,
};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream;
use std::time::Duration;

/// `Err` is a failure, or the reason why the check does not apply.
pub(super) type RuleVerdict = Result<(), RuleOutcome>;

/// The check failed.
pub(super) fn fail<T>(how: impl Into<String>) -> Result<T, RuleOutcome> {
    Err(RuleOutcome::Failed(how.into()))
}

/// A blob made for a check.
#[derive(Clone, Debug)]
pub(super) struct SampleBlob {
    pub(super) blob: BlobRef,
    pub(super) bytes: Bytes,
}

impl SampleBlob {
    pub(super) fn size(&self) -> u64 {
        self.bytes.len() as u64
    }

    pub(super) fn meta(&self) -> BlobMeta {
        BlobMeta { blob: self.blob, size: self.size() }
    }

    /// The same number of bytes, one of them different.
    pub(super) fn spoiled(&self) -> Bytes {
        let mut bytes = BytesMut::from(&self.bytes[..]);
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        bytes.freeze()
    }

    pub(super) fn put(&self) -> Put {
        Put { blob: self.blob, size: Some(self.size()), replace: false }
    }
}

/// Cuts the bytes into pieces of at most this size.
pub(super) fn pieces(bytes: &Bytes, size: usize) -> Vec<Bytes> {
    let cut = |at: usize| bytes.slice(at..bytes.len().min(at + size));
    (0..bytes.len()).step_by(size).map(cut).collect()
}

pub(super) fn stream_of(pieces: Vec<Bytes>) -> ByteStream {
    stream::iter(pieces.into_iter().map(Ok)).boxed()
}

/// A store under examination.
pub(super) struct Lab<'a> {
    pub(super) store: &'a dyn Store,
    pub(super) entropy: &'a Entropy,
    pub(super) info: StoreInfo,
}

impl Lab<'_> {
    /// The function for checks that need only one.
    pub(super) fn function(&self) -> DigestFunction {
        let all = &self.info.functions;
        let first = all.first().copied().unwrap_or(DigestFunction::Sha256);
        if all.contains(&DigestFunction::Sha256) { DigestFunction::Sha256 } else { first }
    }

    /// Whether the store takes a blob of this size.
    pub(super) fn takes(&self, size: usize) -> bool {
        self.info.max_blob_bytes.is_none_or(|limit| size as u64 <= limit)
    }

    /// Random content that nobody had before.
    pub(super) fn random(&self, size: usize) -> Bytes {
        let mut bytes = vec![0; size];
        self.entropy.fill(&mut bytes);
        bytes.into()
    }

    /// A new blob; a smaller one where the store does not take the size.
    pub(super) fn sample(&self, size: usize) -> SampleBlob {
        let size = if self.takes(size) { size } else { 1024 };
        let bytes = self.random(size);
        SampleBlob { blob: self.function().ref_of(&bytes), bytes }
    }

    /// Samples below and above the size at which stores begin to keep blobs another way.
    pub(super) fn small_and_large(&self) -> [SampleBlob; 2] {
        [self.sample(1000), self.sample(300_000)]
    }

    pub(super) fn needs(&self, ability: &'static str) -> RuleVerdict {
        let has = self.info.abilities;
        let offered = match ability {
            "stat" => has.stat,
            "fetch" => has.fetch,
            "enumerate" => has.enumerate,
            "replace" => has.replace,
            "packed" => has.packed && self.info.max_packed_bytes.is_some(),
            _ => false,
        };
        if offered { Ok(()) } else { Err(RuleOutcome::Skipped(format!("the store does not offer {ability}"))) }
    }

    pub(super) async fn receive(&self, put: Put, pieces: Vec<Bytes>) -> Result<Received, StoreError> {
        self.store.receive(put, stream_of(pieces)).await
    }

    /// Writes a blob, and checks the confirmation.
    pub(super) async fn write(&self, sample: &SampleBlob) -> Result<Received, RuleOutcome> {
        self.write_as(sample, sample.put(), pieces(&sample.bytes, 64 * 1024)).await
    }

    pub(super) async fn write_as(
        &self,
        sample: &SampleBlob,
        put: Put,
        pieces: Vec<Bytes>,
    ) -> Result<Received, RuleOutcome> {
        let SampleBlob { blob, bytes } = sample;
        let what = format!("{blob} of {} bytes", bytes.len());
        let received = match self.receive(put, pieces).await {
            Ok(received) => received,
            Err(error) => return fail(format!("{what} was refused: {error}")),
        };
        let due = if self.info.kind == PeerKind::Store { Disposition::Stored } else { Disposition::Consumed };
        if received.blob != *blob {
            fail(format!("{what} was confirmed as {}", received.blob))
        } else if received.size != sample.size() {
            fail(format!("{what} was confirmed with {} bytes", received.size))
        } else if received.disposition != due {
            fail(format!("{what} was confirmed as {:?}, not {due:?}", received.disposition))
        } else {
            Ok(received)
        }
    }

    /// Sends bytes that must be refused for what they are.
    pub(super) async fn refuses(&self, what: &str, put: Put, bytes: &Bytes) -> RuleVerdict {
        match self.receive(put, pieces(bytes, 64 * 1024)).await {
            Ok(_) => fail(format!("{what} was confirmed")),
            Err(error) if error.is_mismatch() => Ok(()),
            Err(error) => fail(format!("{what} was refused, but not as a mismatch: {error}")),
        }
    }

    /// The size the store states for the blob; `None` if it does not hold it. Skips where nothing can tell.
    pub(super) async fn size_of(&self, blob: BlobRef) -> Result<Option<u64>, RuleOutcome> {
        if self.info.abilities.stat {
            return match self.store.stat(&[blob]).await.as_deref() {
                Ok([]) => Ok(None),
                Ok([meta]) if meta.blob == blob => Ok(Some(meta.size)),
                Ok(other) => fail(format!("stat of {blob} gives {other:?}")),
                Err(error) => fail(format!("stat of {blob} fails: {error}")),
            };
        }
        if self.info.abilities.fetch {
            return match self.store.fetch(blob, ByteRange::default()).await {
                Ok(fetched) => Ok(Some(fetched.size)),
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => fail(format!("fetch of {blob} fails: {error}")),
            };
        }
        Err(RuleOutcome::Skipped("the store offers neither stat nor fetch".to_owned()))
    }

    /// The blob must not be there, nor appear a moment later. Passes where nothing can tell.
    pub(super) async fn lacks(&self, what: &str, blob: BlobRef) -> RuleVerdict {
        for pause in [0, 50] {
            tokio::time::sleep(Duration::from_millis(pause)).await;
            match self.size_of(blob).await {
                Ok(None) => {}
                Ok(Some(_)) => return fail(format!("after {what}, the store holds the blob")),
                Err(RuleOutcome::Skipped(_)) => return Ok(()),
                Err(outcome) => return Err(outcome),
            }
        }
        Ok(())
    }

    /// Reads a range, to its end.
    pub(super) async fn read(&self, blob: BlobRef, range: ByteRange) -> Result<(u64, Bytes), StoreError> {
        let mut fetched = self.store.fetch(blob, range).await?;
        let mut whole = BytesMut::new();
        while let Some(chunk) = fetched.bytes.next().await {
            whole.extend_from_slice(&chunk?);
        }
        Ok((fetched.size, whole.freeze()))
    }

    /// The blob must be there, with these bytes as far as the store gives any back.
    pub(super) async fn holds(&self, sample: &SampleBlob) -> RuleVerdict {
        let SampleBlob { blob, bytes } = sample;
        match self.size_of(*blob).await {
            Ok(Some(size)) if size == sample.size() => {}
            Ok(Some(size)) => return fail(format!("{blob} has {} bytes, and the store states {size}", bytes.len())),
            Ok(None) => return fail(format!("{blob} was confirmed, and is not there")),
            Err(RuleOutcome::Skipped(_)) => return Ok(()),
            Err(outcome) => return Err(outcome),
        }
        if !self.info.abilities.fetch {
            return Ok(());
        }
        match self.read(*blob, ByteRange::default()).await {
            Ok((size, _)) if size != sample.size() => fail(format!("fetch of {blob} states {size} bytes")),
            Ok((_, found)) if found != *bytes => {
                fail(format!("{blob} of {} bytes comes back as {} other bytes", bytes.len(), found.len()))
            }
            Ok(_) => Ok(()),
            Err(error) => fail(format!("fetch of {blob} fails: {error}")),
        }
    }

    /// Lists a range, to its end, and checks everything that holds whatever the store contains.
    pub(super) async fn list(&self, range: &EnumerateRange) -> Result<(Vec<BlobMeta>, EnumerateEnd), RuleOutcome> {
        let broken = |how: String| fail(format!("enumerate of {range:?}: {how}"));
        let mut pages = match self.store.enumerate(range.clone()).await {
            Ok(pages) => pages,
            Err(error) => return broken(error.to_string()),
        };
        let mut blobs: Vec<BlobMeta> = Vec::new();
        let mut end = None;
        while let Some(page) = pages.next().await {
            let page = match page {
                Ok(page) if end.is_none() => page,
                Ok(_) => return broken("a page follows the last".to_owned()),
                Err(error) => return broken(error.to_string()),
            };
            for meta in page.blobs {
                let text = meta.blob.to_string();
                if let Some(last) = blobs.last().map(|last| last.blob.to_string())
                    && text <= last
                {
                    return broken(format!("{text} follows {last}"));
                }
                if text <= range.after || (!range.until.is_empty() && text > range.until) {
                    return broken(format!("{text} lies outside"));
                }
                blobs.push(meta);
            }
            end = page.end;
        }
        let Some(end) = end else {
            return broken("it stops without an end".to_owned());
        };
        let count = blobs.len() as u64;
        if end.count != count {
            return broken(format!("it gives {count} blobs and counts {}", end.count));
        }
        match range.limit {
            Some(limit) if count > limit => broken(format!("it gives {count} blobs")),
            Some(limit) if !end.complete && count < limit => {
                broken(format!("cut after {count} blobs, short of its limit"))
            }
            None if !end.complete => broken("cut without a limit".to_owned()),
            _ => Ok((blobs, end)),
        }
    }
}
