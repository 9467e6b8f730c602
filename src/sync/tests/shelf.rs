//! A store that can only be listed and asked, with every kind of trouble at a given page.

use crate::blob::{BlobMeta, BlobRef, DigestFunction};
use crate::store::packed::{Answers, MAX_PACKED_BYTES, Packed, Parcel, Want, fetch_each, receive_each};
use crate::store::{
    Abilities, ByteRange, ByteStream, EnumerateEnd, EnumeratePage, EnumerateRange, Enumeration, Fetched, PeerError,
    PeerKind, Put, Received, Store, StoreError, StoreInfo,
};
use crate::sync::StoreIds;
use async_trait::async_trait;
use futures::StreamExt;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use tokio::sync::watch;

const PAGE: usize = 1000;

/// What goes wrong, at the page of this number (over all streams, counted from 0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Fails(u64),
    Hangs(u64),
    Stops(u64),
    Repeats(u64),
    Unsorted(u64),
    Miscounts(u64),
    Panics(u64),
    /// Answers `stat` with a blob nobody asked for.
    Babbles,
    /// Does not even say what it is.
    IsDown,
    /// Another store answers once so many pages were read.
    Replaced(u64),
}

#[derive(Clone, Debug)]
enum Item {
    /// A blob's number and size.
    Known(u64, u64),
    /// A ref that is not known here.
    Unknown(String),
}

impl Item {
    fn text(&self) -> String {
        match self {
            Self::Known(number, _) => blob(*number).to_string(),
            Self::Unknown(text) => text.clone(),
        }
    }
}

pub(crate) struct Shelf {
    // In the order of their texts.
    items: Vec<Item>,
    pub(crate) kind: PeerKind,
    pub(crate) abilities: Abilities,
    trouble: Mutex<Option<Trouble>>,
    pages: AtomicU64,
    pub(crate) streams: AtomicU64,
    pub(crate) open: Arc<AtomicUsize>,
    pub(crate) questions: Mutex<Vec<usize>>,
}

/// The ref number so and so; refs are in the order of their numbers.
pub(crate) fn blob(number: u64) -> BlobRef {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&number.to_be_bytes());
    BlobRef::new(DigestFunction::Sha256, &digest).unwrap()
}

/// The id of every shelf that nobody replaced.
const KNOWN_ID: &str = "known";

/// What a route between two shelves knows them by.
pub(crate) fn store_ids() -> StoreIds {
    let known = || watch::channel(Some(KNOWN_ID.to_owned())).1;
    StoreIds { source: known(), destination: known() }
}

fn meta(number: u64, size: u64) -> BlobMeta {
    BlobMeta { blob: blob(number), size }
}

pub(crate) fn unavailable() -> StoreError {
    PeerError::bare(tonic::Code::Unavailable, "connection lost").into()
}

struct Stream {
    shelf: Arc<Shelf>,
    at: usize,
    until: usize,
    in_range: usize,
    count: u64,
    ended: bool,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.shelf.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Shelf {
    pub(crate) fn of(blobs: impl IntoIterator<Item = (u64, u64)>) -> Self {
        Self {
            items: blobs.into_iter().map(|(number, size)| Item::Known(number, size)).collect(),
            kind: PeerKind::Store,
            abilities: Abilities { stat: true, enumerate: true, ..Abilities::default() },
            trouble: Mutex::new(None),
            pages: AtomicU64::new(0),
            streams: AtomicU64::new(0),
            open: Arc::default(),
            questions: Mutex::default(),
        }
    }

    /// Blobs 0 to `count`, of 10 bytes each.
    pub(crate) fn full(count: u64) -> Self {
        Self::of((0..count).map(|number| (number, 10)))
    }

    /// And so many refs of a function that is not known here.
    pub(crate) fn and_unknown(mut self, function: &str, count: u64) -> Self {
        self.items.extend((0..count).map(|number| Item::Unknown(format!("{function}-{number:08x}"))));
        self.items.sort_by_cached_key(Item::text);
        self
    }

    pub(crate) fn with(self, trouble: Trouble) -> Self {
        self.set(Some(trouble));
        self
    }

    pub(crate) fn set(&self, trouble: Option<Trouble>) {
        *self.trouble.lock() = trouble;
        self.pages.store(0, Ordering::SeqCst);
    }

    fn trouble(&self) -> Option<Trouble> {
        *self.trouble.lock()
    }
}

impl Stream {
    async fn next(mut self) -> Option<(Result<EnumeratePage, StoreError>, Self)> {
        if self.ended {
            return None;
        }
        let page = self.shelf.pages.fetch_add(1, Ordering::SeqCst);
        let to = self.until.min(self.at + PAGE);
        let (mut blobs, mut unknown, mut last_unknown) = (Vec::new(), Vec::new(), None);
        for item in &self.shelf.items[self.at..to] {
            match item {
                Item::Known(number, size) => blobs.push(meta(*number, *size)),
                Item::Unknown(text) => {
                    unknown.push((text.split_once('-').unwrap().0.to_owned(), 1));
                    last_unknown = Some(text.clone());
                }
            }
        }
        self.count += blobs.len() as u64;
        self.at = to;
        let complete = to == self.in_range;
        self.ended = to == self.until;
        let mut end = self.ended.then_some(EnumerateEnd { count: self.count, complete });
        match self.shelf.trouble() {
            Some(Trouble::Fails(at)) if at == page => return Some((Err(unavailable()), self)),
            Some(Trouble::Hangs(at)) if at == page => std::future::pending().await,
            Some(Trouble::Stops(at)) if at == page => return None,
            Some(Trouble::Panics(at)) if at == page => panic!("a fault of this test's store"),
            Some(Trouble::Repeats(at)) if at == page => blobs.insert(1, blobs[0]),
            Some(Trouble::Unsorted(at)) if at == page => blobs.swap(0, 1),
            Some(Trouble::Miscounts(at)) if at == page => end = Some(EnumerateEnd { count: 1, complete }),
            _ => {}
        }
        Some((Ok(EnumeratePage { blobs, unknown, last_unknown, end }), self))
    }
}

/// A shelf as a store.
pub(crate) struct Shared(pub(crate) Arc<Shelf>);

#[async_trait]
impl Store for Shared {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        if self.0.trouble() == Some(Trouble::IsDown) {
            return Err(unavailable());
        }
        let pages = self.0.pages.load(Ordering::SeqCst);
        let replaced = matches!(self.0.trouble(), Some(Trouble::Replaced(at)) if pages >= at);
        Ok(StoreInfo {
            store_id: Some(if replaced { "an empty volume" } else { KNOWN_ID }.to_owned()),
            kind: self.0.kind,
            version: String::new(),
            functions: DigestFunction::ALL.to_vec(),
            max_blob_bytes: None,
            max_message_bytes: None,
            abilities: self.0.abilities,
            max_packed_bytes: None,
        })
    }

    async fn stat(&self, blobs: &[BlobRef]) -> Result<Vec<BlobMeta>, StoreError> {
        self.0.questions.lock().push(blobs.len());
        if self.0.trouble() == Some(Trouble::Babbles) {
            return Ok(vec![meta(u64::MAX, 1)]);
        }
        let held = |number: u64| match self.0.items.binary_search_by_key(&blob(number).to_string(), Item::text) {
            Ok(at) => match self.0.items[at] {
                Item::Known(number, size) => Some(meta(number, size)),
                Item::Unknown(_) => None,
            },
            Err(_) => None,
        };
        let number = |blob: &BlobRef| u64::from_be_bytes(blob.digest()[..8].try_into().unwrap());
        Ok(blobs.iter().map(number).filter_map(held).collect())
    }

    async fn fetch(&self, _: BlobRef, _: ByteRange) -> Result<Fetched, StoreError> {
        Err(StoreError::Unsupported("fetch"))
    }

    async fn receive(&self, _: Put, _: ByteStream) -> Result<Received, StoreError> {
        Err(StoreError::Unsupported("receive"))
    }

    async fn receive_packed(
        &self,
        parcels: Vec<Parcel>,
        answers: &mut dyn Answers<Received>,
    ) -> Result<(), StoreError> {
        receive_each(self, parcels, answers).await;
        Ok(())
    }

    async fn fetch_packed(&self, wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> Result<(), StoreError> {
        fetch_each(self, wants, MAX_PACKED_BYTES, answers).await;
        Ok(())
    }

    async fn enumerate(&self, range: EnumerateRange) -> Result<Enumeration, StoreError> {
        let shelf = Arc::clone(&self.0);
        shelf.streams.fetch_add(1, Ordering::SeqCst);
        shelf.open.fetch_add(1, Ordering::SeqCst);
        let up_to = |text: &str| shelf.items.partition_point(|item| item.text().as_str() <= text);
        let at = up_to(&range.after);
        let in_range = if range.until.is_empty() { shelf.items.len() } else { up_to(&range.until).max(at) };
        let limit = usize::try_from(range.limit.unwrap_or(u64::MAX)).unwrap();
        let until = in_range.min(at.saturating_add(limit));
        let stream = Stream { shelf, at, until, in_range, count: 0, ended: false };
        Ok(futures::stream::unfold(stream, Stream::next).boxed())
    }
}
