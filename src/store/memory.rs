//! A store in memory: for tests, demonstrations and simulations. It forgets everything when it is dropped.
//!
//! Its capacity bounds all the bytes it holds, those of blobs that are still coming in included.

use super::bounds::keys_of;
use super::packed::{Answers, MAX_PACKED_BYTES, Packed, Parcel, Want};
use super::{
    ByteRange, ByteStream, Disposition, EnumerateEnd, EnumeratePage, EnumerateRange, Enumeration, Fetched, Put,
    Received, Store, StoreError, StoreInfo,
};
use crate::blob::{BlobMeta, BlobRef, Verifier};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use futures::stream;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Blobs in a page of an enumeration, at most.
const PAGE_BLOBS: usize = 1000;

/// Bytes in a chunk that is read, at most.
const CHUNK_BYTES: usize = 256 * 1024;

/// Pieces of at least so many bytes are kept as they came.
const PIECE_BYTES: usize = 128 * 1024;

/// A store that holds its blobs in memory.
#[derive(Debug)]
pub struct MemoryStore {
    id: String,
    shared: Arc<MemoryShared>,
}

#[derive(Debug)]
struct MemoryShared {
    capacity: u64,
    state: Mutex<MemoryState>,
}

#[derive(Debug, Default)]
struct MemoryState {
    /// By key, so that the order is that of the refs' text.
    blobs: BTreeMap<Vec<u8>, BlobBytes>,
    /// Bytes of all blobs, and of those coming in.
    used: u64,
}

/// A blob's bytes, in pieces. Cheap to clone.
#[derive(Clone, Debug, Default)]
struct BlobBytes {
    size: u64,
    pieces: Arc<[Bytes]>,
}

impl BlobBytes {
    /// The part from `start` to `end`, in pieces of at most [`CHUNK_BYTES`].
    fn part(&self, start: u64, end: u64) -> Vec<Bytes> {
        let mut chunks = Vec::new();
        let mut at = 0;
        for piece in self.pieces.iter() {
            let within = |place: u64| usize::try_from(place.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
            let mut rest = piece.slice(within(start)..within(end));
            while !rest.is_empty() {
                chunks.push(rest.split_to(rest.len().min(CHUNK_BYTES)));
            }
            at += piece.len() as u64;
        }
        chunks
    }

    /// All of it, in one piece.
    fn whole(&self) -> Bytes {
        match &*self.pieces {
            [only] => only.clone(),
            pieces => pieces.concat().into(),
        }
    }
}

/// Gathers what comes: large pieces as they are, small ones joined, or each would keep the message that it came in.
#[derive(Debug, Default)]
struct Gathering {
    size: u64,
    pieces: Vec<Bytes>,
    small: BytesMut,
}

impl Gathering {
    fn add(&mut self, bytes: Bytes) {
        self.size += bytes.len() as u64;
        if bytes.len() < PIECE_BYTES {
            self.small.extend_from_slice(&bytes);
        } else {
            self.flush();
            self.pieces.push(bytes);
        }
    }

    fn flush(&mut self) {
        if !self.small.is_empty() {
            self.pieces.push(std::mem::take(&mut self.small).freeze());
        }
    }

    fn held(mut self) -> BlobBytes {
        self.flush();
        BlobBytes { size: self.size, pieces: self.pieces.into() }
    }
}

impl MemoryStore {
    /// An empty store of this id, for at most this many bytes.
    pub fn new(id: impl Into<String>, capacity: u64) -> Self {
        Self { id: id.into(), shared: Arc::new(MemoryShared { capacity, state: Mutex::default() }) }
    }

    /// The number of blobs that it holds.
    pub fn len(&self) -> usize {
        self.shared.state.lock().blobs.len()
    }

    /// Whether it holds no blob.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl MemoryShared {
    fn page(&self, from: &[u8], to: &[u8], max: usize) -> Page {
        let mut page = Page { blobs: Vec::new(), next: None };
        if from >= to {
            return page;
        }
        let state = self.state.lock();
        for (key, held) in state.blobs.range(from.to_vec()..to.to_vec()) {
            if page.blobs.len() == max {
                page.next = Some(key.clone());
                break;
            }
            if let Some(blob) = BlobRef::from_key(key) {
                page.blobs.push(BlobMeta { blob, size: held.size });
            }
        }
        page
    }
}

struct Page {
    blobs: Vec<BlobMeta>,
    /// The first key in the range behind the page.
    next: Option<Vec<u8>>,
}

/// Room taken for a blob that is coming in; given back unless it was kept.
struct ReservedRoom<'a> {
    shared: &'a MemoryShared,
    bytes: u64,
}

impl ReservedRoom<'_> {
    fn grow(&mut self, more: u64) -> Result<(), StoreError> {
        let mut state = self.shared.state.lock();
        if more > self.shared.capacity.saturating_sub(state.used) {
            return Err(StoreError::NoSpace(format!("its capacity is {} bytes", self.shared.capacity)));
        }
        state.used += more;
        self.bytes += more;
        Ok(())
    }
}

impl Drop for ReservedRoom<'_> {
    fn drop(&mut self) {
        self.shared.state.lock().used -= self.bytes;
    }
}

impl MemoryStore {
    /// Keeps verified bytes for which there is room. Gives whether the blob was new.
    fn keep(&self, put: &Put, held: BlobBytes, mut room: ReservedRoom<'_>) -> bool {
        let key = put.blob.to_key();
        // What is inserted keeps its room; what it pushes out, or an equal blob that came first, gives its own back.
        let mut state = self.shared.state.lock();
        let known = state.blobs.contains_key(&key);
        if put.replace || !known {
            let old = state.blobs.insert(key, held);
            room.bytes = old.map_or(0, |old| old.size);
        }
        drop(state);
        !known
    }

    fn receive_whole(&self, put: &Put, bytes: Bytes) -> Result<Received, StoreError> {
        let mut verifier = Verifier::new(put.blob, put.size);
        verifier.update(&bytes)?;
        let size = verifier.finish()?;
        let keep = put.replace || !self.shared.state.lock().blobs.contains_key(&put.blob.to_key());
        let mut was_new = false;
        if keep {
            let mut room = ReservedRoom { shared: &self.shared, bytes: 0 };
            room.grow(size)?;
            let mut gathering = Gathering::default();
            gathering.add(bytes);
            was_new = self.keep(put, gathering.held(), room);
        }
        Ok(Received { blob: put.blob, size, disposition: Disposition::Stored, was_new })
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        Ok(StoreInfo::of_own(&self.id, "memory"))
    }

    async fn stat(&self, blobs: &[BlobRef]) -> Result<Vec<BlobMeta>, StoreError> {
        let state = self.shared.state.lock();
        let size_of = |blob: &BlobRef| state.blobs.get(&blob.to_key()).map(|held| held.size);
        Ok(blobs.iter().filter_map(|blob| size_of(blob).map(|size| BlobMeta { blob: *blob, size })).collect())
    }

    async fn fetch(&self, blob: BlobRef, range: ByteRange) -> Result<Fetched, StoreError> {
        let held = self.shared.state.lock().blobs.get(&blob.to_key()).cloned().ok_or(StoreError::Missing(blob))?;
        let (start, end) = range.within(held.size)?;
        Ok(Fetched { size: held.size, bytes: stream::iter(held.part(start, end).into_iter().map(Ok)).boxed() })
    }

    async fn receive(&self, put: Put, mut bytes: ByteStream) -> Result<Received, StoreError> {
        let key = put.blob.to_key();
        let keep = put.replace || !self.shared.state.lock().blobs.contains_key(&key);
        let mut verifier = Verifier::new(put.blob, put.size);
        let mut room = ReservedRoom { shared: &self.shared, bytes: 0 };
        let mut gathering = Gathering::default();
        while let Some(chunk) = bytes.next().await {
            let chunk = chunk.map_err(|error| StoreError::Input(Box::new(error)))?;
            verifier.update(&chunk)?;
            if keep {
                room.grow(chunk.len() as u64)?;
                gathering.add(chunk);
            }
        }
        let size = verifier.finish()?;
        let was_new = keep && self.keep(&put, gathering.held(), room);
        Ok(Received { blob: put.blob, size, disposition: Disposition::Stored, was_new })
    }

    async fn receive_packed(
        &self,
        parcels: Vec<Parcel>,
        answers: &mut dyn Answers<Received>,
    ) -> Result<(), StoreError> {
        answers.all_sent();
        for (at, Parcel { put, bytes, .. }) in parcels.into_iter().enumerate() {
            answers.answer(at, self.receive_whole(&put, bytes));
        }
        Ok(())
    }

    async fn fetch_packed(&self, wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> Result<(), StoreError> {
        let found: Vec<_> = {
            let state = self.shared.state.lock();
            let fetch = |Want { blob, .. }: Want| {
                let held = state.blobs.get(&blob.to_key()).ok_or(StoreError::Missing(blob))?;
                let size = held.size;
                Ok(if size > MAX_PACKED_BYTES { Packed::TooLarge { size } } else { Packed::Whole(held.whole()) })
            };
            wants.into_iter().map(fetch).collect()
        };
        for (at, answer) in found.into_iter().enumerate() {
            answers.answer(at, answer);
        }
        Ok(())
    }

    async fn enumerate(&self, range: EnumerateRange) -> Result<Enumeration, StoreError> {
        let (from, to) = keys_of(&range);
        let shared = self.shared.clone();
        let mut next = Some(from);
        let mut left = range.limit;
        let mut count = 0;
        let pages = std::iter::from_fn(move || {
            let from = next.take()?;
            let max =
                left.map_or(PAGE_BLOBS, |left| usize::try_from(left).map_or(PAGE_BLOBS, |left| left.min(PAGE_BLOBS)));
            let page = shared.page(&from, &to, max);
            let found = page.blobs.len() as u64;
            count += found;
            left = left.map(|left| left.saturating_sub(found));
            let complete = page.next.is_none();
            let end = (complete || left == Some(0)).then_some(EnumerateEnd { count, complete });
            if end.is_none() {
                next = page.next;
            }
            Some(Ok(EnumeratePage { blobs: page.blobs, end, ..EnumeratePage::default() }))
        });
        Ok(stream::iter(pages).boxed())
    }
}

#[cfg(test)]
mod tests {
    use super::MemoryStore;
    use crate::blob::DigestFunction;
    use crate::store::{Put, Store, StoreError, conformance};
    use bytes::Bytes;
    use futures::StreamExt;
    use futures::stream;

    #[tokio::test]
    async fn conforms() {
        conformance::assert_passes(&MemoryStore::new("a", 1 << 30)).await;
    }

    #[tokio::test]
    async fn a_full_store_says_so_and_gives_room_back() {
        let store = MemoryStore::new("a", 10);
        let put = |bytes: &'static [u8], came: &'static [u8]| {
            let put = Put { blob: DigestFunction::Sha256.ref_of(bytes), size: None, replace: false };
            store.receive(put, stream::iter([Ok(Bytes::from_static(came))]).boxed())
        };
        assert!(matches!(put(b"01234567890", b"01234567890").await, Err(StoreError::NoSpace(_))));
        assert!(matches!(put(b"0123456", b"abcdefg").await, Err(StoreError::Mismatch(_))));
        put(b"012345", b"012345").await.unwrap();
        assert!(matches!(put(b"abcde", b"abcde").await, Err(StoreError::NoSpace(_))));
        put(b"012345", b"012345").await.unwrap();
        put(b"abcd", b"abcd").await.unwrap();
        assert_eq!(store.len(), 2);
    }
}
