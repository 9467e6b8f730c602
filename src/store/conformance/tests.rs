//! The suite must notice bad stores: each of these breaks one promise, and the rules named must fail.

use super::{RuleOutcome, assert_passes, run};
use crate::blob::{BlobMeta, BlobRef};
use crate::clock::Entropy;
use crate::store::memory::MemoryStore;
use crate::store::packed::{Answers, MAX_PACKED_BYTES, Packed, Parcel, Want, fetch_each, receive_each};
use crate::store::{
    ByteRange, ByteStream, EnumerateRange, Enumeration, Fetched, PeerKind, Put, Received, Store, StoreError, StoreInfo,
};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Takes the bytes for right, whatever they are.
    NeverVerifies,
    /// Confirms a blob that is there without reading.
    TrustsTheSecond,
    /// Commits when all bytes came, before the stream's end.
    CommitsEarly,
    /// Calls every blob new.
    AlwaysNew,
    /// Confirms and forgets.
    Forgets,
    /// Reads one byte too late.
    ReadsBehind,
    /// Clamps offsets in place of refusing them.
    ClampsOffsets,
    /// Gives nothing for what is missing.
    MissingIsEmpty,
    /// States a size for what is missing.
    StatsEverything,
    /// Lists the blob at `after`.
    AfterInclusive,
    /// Does not list the blob at `until`.
    UntilExclusive,
    /// Ends without an end.
    NoEnd,
    /// Calls what a limit cut complete.
    CutIsComplete,
    /// Takes only refs for bounds, and others for none.
    BoundsAreRefs,
    /// Gives each page backwards.
    Descending,
    /// Counts one more.
    Miscounts,
    /// A new id each time.
    Forgetful,
    /// Is no store.
    Replicator,
    /// Answers the first blob of a pack once more.
    AnswersTwice,
    /// Leaves the last blob of a pack without an answer.
    LeavesOneOut,
}

struct Faulty {
    inner: MemoryStore,
    fault: Fault,
}

#[async_trait]
impl Store for Faulty {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        let mut info = self.inner.info().await?;
        match self.fault {
            Fault::Forgetful => info.store_id = Some(rand::random::<u64>().to_string()),
            Fault::Replicator => info.kind = PeerKind::Replicator,
            _ => {}
        }
        Ok(info)
    }

    async fn stat(&self, blobs: &[BlobRef]) -> Result<Vec<BlobMeta>, StoreError> {
        if self.fault == Fault::StatsEverything {
            return Ok(blobs.iter().map(|blob| BlobMeta { blob: *blob, size: 1000 }).collect());
        }
        self.inner.stat(blobs).await
    }

    async fn fetch(&self, blob: BlobRef, mut range: ByteRange) -> Result<Fetched, StoreError> {
        let size = self.inner.stat(&[blob]).await?.first().map_or(0, |meta| meta.size);
        match self.fault {
            Fault::ReadsBehind => range.offset = range.offset.saturating_add(1),
            Fault::ClampsOffsets => range.offset = range.offset.min(size),
            Fault::MissingIsEmpty if size == 0 => return Ok(Fetched { size: 0, bytes: stream::empty().boxed() }),
            _ => {}
        }
        self.inner.fetch(blob, range).await
    }

    async fn receive(&self, mut put: Put, mut bytes: ByteStream) -> Result<Received, StoreError> {
        let there = self.inner.stat(&[put.blob]).await?;
        match self.fault {
            Fault::NeverVerifies => {
                let mut size = 0;
                while let Some(chunk) = bytes.next().await {
                    size += chunk?.len() as u64;
                }
                let disposition = crate::store::Disposition::Stored;
                Ok(Received { blob: put.blob, size, disposition, was_new: there.is_empty() })
            }
            Fault::TrustsTheSecond if !there.is_empty() && !put.replace => {
                let disposition = crate::store::Disposition::Stored;
                Ok(Received { blob: put.blob, size: there[0].size, disposition, was_new: false })
            }
            Fault::CommitsEarly => {
                let mut whole = BytesMut::new();
                while let Some(chunk) = bytes.next().await {
                    whole.extend_from_slice(&chunk?);
                    if put.blob.function().ref_of(&whole) == put.blob {
                        let whole: Bytes = whole.clone().freeze();
                        put.replace = false;
                        self.inner.receive(put.clone(), stream::iter([Ok(whole)]).boxed()).await?;
                    }
                }
                self.inner.receive(put, stream::iter([Ok(whole.freeze())]).boxed()).await
            }
            Fault::Forgets => MemoryStore::new("a", 1 << 30).receive(put, bytes).await,
            Fault::AlwaysNew => Ok(Received { was_new: true, ..self.inner.receive(put, bytes).await? }),
            _ => self.inner.receive(put, bytes).await,
        }
    }

    async fn receive_packed(
        &self,
        mut parcels: Vec<Parcel>,
        answers: &mut dyn Answers<Received>,
    ) -> Result<(), StoreError> {
        match self.fault {
            Fault::AnswersTwice => receive_each(self, parcels[..1].to_vec(), answers).await,
            Fault::LeavesOneOut => drop(parcels.pop()),
            _ => {}
        }
        receive_each(self, parcels, answers).await;
        Ok(())
    }

    async fn fetch_packed(&self, mut wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> Result<(), StoreError> {
        match self.fault {
            Fault::AnswersTwice => fetch_each(self, wants[..1].to_vec(), MAX_PACKED_BYTES, answers).await,
            Fault::LeavesOneOut => drop(wants.pop()),
            _ => {}
        }
        fetch_each(self, wants, MAX_PACKED_BYTES, answers).await;
        Ok(())
    }

    async fn enumerate(&self, mut range: EnumerateRange) -> Result<Enumeration, StoreError> {
        let bounds = range.clone();
        match self.fault {
            Fault::AfterInclusive => {
                range.after.pop();
            }
            Fault::BoundsAreRefs => {
                for bound in [&mut range.after, &mut range.until] {
                    if bound.parse::<BlobRef>().is_err() {
                        bound.clear();
                    }
                }
            }
            _ => {}
        }
        let fault = self.fault;
        let pages = self.inner.enumerate(range).await?;
        let spoilt = pages.map(move |page| {
            let mut page = page?;
            match fault {
                Fault::UntilExclusive => page.blobs.retain(|meta| meta.blob.to_string() != bounds.until),
                Fault::Descending => page.blobs.reverse(),
                Fault::NoEnd => page.end = None,
                _ => {}
            }
            let count = page.blobs.len() as u64;
            if let Some(end) = &mut page.end {
                match fault {
                    Fault::CutIsComplete => end.complete = true,
                    Fault::Miscounts => end.count += 1,
                    Fault::UntilExclusive => end.count = count,
                    _ => {}
                }
            }
            Ok(page)
        });
        Ok(spoilt.boxed())
    }
}

// Nothing here waits for anything but time.
#[tokio::test(start_paused = true)]
async fn every_fault_is_noticed_by_its_rule() {
    let faults: &[(Fault, &[&str])] = &[
        (Fault::NeverVerifies, &["receive.wrong_bytes", "receive.too_short", "receive.too_long"]),
        (Fault::TrustsTheSecond, &["receive.twice_wrong"]),
        (Fault::CommitsEarly, &["receive.failed_stream", "receive.cancelled"]),
        (Fault::AlwaysNew, &["receive.twice", "receive.at_once", "receive.replace"]),
        (Fault::Forgets, &["receive.round_trip", "stat.missing", "enumerate.whole"]),
        (Fault::ReadsBehind, &["receive.round_trip", "fetch.ranges"]),
        (Fault::ClampsOffsets, &["fetch.behind"]),
        (Fault::MissingIsEmpty, &["fetch.missing"]),
        (Fault::StatsEverything, &["stat.missing", "stat.ten_thousand"]),
        (Fault::AfterInclusive, &["enumerate.bounds"]),
        (Fault::UntilExclusive, &["enumerate.bounds"]),
        (Fault::NoEnd, &["enumerate.whole", "enumerate.empty"]),
        (Fault::CutIsComplete, &["enumerate.limit"]),
        (Fault::BoundsAreRefs, &["enumerate.any_text"]),
        (Fault::Descending, &["enumerate.whole"]),
        (Fault::Miscounts, &["enumerate.whole", "enumerate.empty"]),
        (Fault::Forgetful, &["info"]),
        (Fault::Replicator, &["info"]),
        (Fault::AnswersTwice, &["packed.round_trip", "packed.missing"]),
        (Fault::LeavesOneOut, &["packed.round_trip", "packed.one_bad", "packed.missing"]),
    ];
    for (fault, rules) in faults {
        let store = Faulty { inner: MemoryStore::new("a", 1 << 30), fault: *fault };
        let failed: Vec<_> = run(&store, &Entropy::seeded(1), |_| ())
            .await
            .into_iter()
            .filter(|result| matches!(result.outcome, RuleOutcome::Failed(_)))
            .map(|result| result.name)
            .collect();
        for rule in *rules {
            assert!(failed.contains(rule), "{fault:?} fails {failed:?}, but not {rule}");
        }
    }
}

#[tokio::test]
async fn a_store_in_use_passes() {
    let store = MemoryStore::new("a", 1 << 30);
    let entropy = Entropy::seeded(2);
    let write = async {
        loop {
            let mut bytes = vec![0; 40];
            entropy.fill(&mut bytes);
            let bytes = Bytes::from(bytes);
            let put = Put { blob: crate::blob::DigestFunction::Sha256.ref_of(&bytes), size: None, replace: false };
            store.receive(put, stream::iter([Ok(bytes)]).boxed()).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        () = write => {}
        () = assert_passes(&store) => {}
    }
}
