//! A decorator that makes any store misbehave, as told: for tests and demonstrations of what happens then.
//!
//! Faults are set for all blobs or for one, for ever or for a number of times. The store underneath stays honest: whatever the
//! decorator claims, `inner` shows what was really committed.

use super::packed::{Answers, MAX_PACKED_BYTES, Packed, Parcel, Want, fetch_each, receive_each};
use super::{
    ByteRange, ByteStream, Disposition, EnumerateRange, Enumeration, Fetched, PeerError, Put, Received, Store,
    StoreError, StoreInfo,
};
use crate::blob::{BlobMeta, BlobRef};
use crate::clock::Entropy;
use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tonic::Code;

/// A way to misbehave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Fetched bytes have one bit flipped.
    WrongBytes,
    /// A fetched stream ends, without an error, before its last byte.
    ShortRead,
    /// A fetched stream breaks off with UNAVAILABLE after its first chunk.
    Cut,
    /// As `Cut`, and the rest is refused: the store takes no ranges.
    CutForGood,
    /// A fetched blob has a byte more than was stated.
    ExtraByte,
    /// Fetch states this size.
    StatedSize(u64),
    /// Fetch takes this long to begin.
    Slow(Duration),
    /// A fetched stream comes byte by byte, one each so long.
    Trickle(Duration),
    /// Fetch says that the blob is missing, and stat leaves it out. For all blobs: the store was emptied.
    Missing,
    /// Receive commits, and confirms another ref.
    ConfirmRef(BlobRef),
    /// Receive commits, and confirms another size.
    ConfirmSize(u64),
    /// Receive reads everything, commits nothing, and answers this.
    Confirm(Disposition),
    /// Receive reads nothing, commits nothing, and confirms.
    ConfirmUnread,
    /// Receive refuses the blob for good reason: INVALID_ARGUMENT with one of blobferry's reasons.
    Reject,
    /// Fetch and receive answer with this code, without a reason.
    Code(Code),
    /// Receive is not begun with, as where a connection is closed.
    NotProcessed,
    /// Fetch and receive panic.
    Panic,
    /// Fetch and receive never answer; receive reads nothing.
    Hang,
    /// Receive reads so many bytes, or more, and breaks off with UNAVAILABLE.
    CutReceive(u64),
    /// Receive reads everything, commits nothing, and never answers.
    HangAtEnd,
    /// Receive commits, and confirms so much later.
    SlowEnd(Duration),
    /// Receive reads a chunk, and the next so much later.
    SlowRead(Duration),
    /// A pack breaks off with UNAVAILABLE after so many of its blobs; blobs alone are served.
    CutPack(usize),
    /// A pack is answered no further after so many of its blobs; blobs alone are served.
    HangPack(usize),
}

/// A store that misbehaves as told.
pub struct FaultyStore {
    inner: Arc<dyn Store>,
    script: Mutex<Script>,
    fetches: AtomicU64,
    receives: AtomicU64,
    infos: AtomicU64,
    packs: AtomicU64,
    inside: AtomicU64,
    chance: Entropy,
}

/// A blob that is being received.
struct Inside<'a>(&'a AtomicU64);

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Default)]
struct Script {
    down: bool,
    // How many blobs are received at a time; the part of blobs that fails by chance.
    admits: Option<u64>,
    fails: f64,
    info: Option<StoreInfo>,
    // A trouble, and how many times more it happens; absent: for ever.
    all: Option<(Trouble, Option<u64>)>,
    blobs: HashMap<BlobRef, (Trouble, Option<u64>)>,
}

impl Script {
    fn hides(&self, blob: BlobRef) -> bool {
        let slot = self.blobs.get(&blob).or(self.all.as_ref());
        slot.is_some_and(|(trouble, left)| *trouble == Trouble::Missing && *left != Some(0))
    }

    fn draw(&mut self, blob: BlobRef, fits: impl Fn(&Trouble) -> bool) -> Option<Trouble> {
        let mut slot = self.blobs.get_mut(&blob).filter(|(trouble, left)| fits(trouble) && *left != Some(0));
        if slot.is_none() {
            slot = self.all.as_mut().filter(|(trouble, left)| fits(trouble) && *left != Some(0));
        }
        let (trouble, left) = slot?;
        if let Some(left) = left {
            *left -= 1;
        }
        Some(trouble.clone())
    }
}

impl FaultyStore {
    /// Behaves as `inner` does, until told otherwise.
    pub fn new(inner: Arc<dyn Store>) -> Self {
        Self {
            inner,
            script: Mutex::default(),
            fetches: AtomicU64::new(0),
            receives: AtomicU64::new(0),
            infos: AtomicU64::new(0),
            packs: AtomicU64::new(0),
            inside: AtomicU64::new(0),
            chance: Entropy::seeded(1),
        }
    }

    /// Receives so many blobs at a time, and refuses more with RESOURCE_EXHAUSTED; `None`: all.
    pub fn set_admits(&self, blobs: Option<u64>) {
        self.script.lock().admits = blobs;
    }

    /// Answers UNAVAILABLE to this part of all fetches and receives, from 0 to 1.
    pub fn set_fails(&self, part: f64) {
        self.script.lock().fails = part;
    }

    fn enter(&self) -> Result<Inside<'_>, StoreError> {
        self.check_up()?;
        let admits = self.script.lock().admits;
        let before = self.inside.fetch_add(1, Ordering::Relaxed);
        let inside = Inside(&self.inside);
        if admits.is_some_and(|admits| before >= admits) {
            return Err(failed(Code::ResourceExhausted));
        }
        self.check_luck()?;
        Ok(inside)
    }

    fn check_luck(&self) -> Result<(), StoreError> {
        let fails = self.script.lock().fails;
        if fails > 0.0 && self.chance.jitter() < fails { Err(failed(Code::Unavailable)) } else { Ok(()) }
    }

    /// Whether everything, [`Store::info`] included, answers UNAVAILABLE.
    pub fn set_down(&self, down: bool) {
        self.script.lock().down = down;
    }

    /// Tells another [`StoreInfo`]; `None`: that of the store underneath.
    pub fn set_info(&self, info: Option<StoreInfo>) {
        self.script.lock().info = info;
    }

    /// Does this with every blob; `None`: behave.
    pub fn set(&self, trouble: Option<Trouble>) {
        self.script.lock().all = trouble.map(|trouble| (trouble, None));
    }

    /// Does this so many times, with whatever blob comes.
    pub fn set_times(&self, trouble: Trouble, times: u64) {
        self.script.lock().all = Some((trouble, Some(times)));
    }

    /// Does this with one blob, whatever is set for all; `None`: as with all.
    pub fn set_for(&self, blob: BlobRef, trouble: Option<Trouble>) {
        let mut script = self.script.lock();
        match trouble {
            Some(trouble) => script.blobs.insert(blob, (trouble, None)),
            None => script.blobs.remove(&blob),
        };
    }

    /// How often [`Store::fetch`] was called.
    pub fn fetches(&self) -> u64 {
        self.fetches.load(Ordering::Relaxed)
    }

    /// How often [`Store::receive`] was called.
    pub fn receives(&self) -> u64 {
        self.receives.load(Ordering::Relaxed)
    }

    /// How often [`Store::info`] was called.
    pub fn infos(&self) -> u64 {
        self.infos.load(Ordering::Relaxed)
    }

    /// How many packs were written or read.
    pub fn packs(&self) -> u64 {
        self.packs.load(Ordering::Relaxed)
    }

    /// What is to happen with a pack.
    fn begin_pack(&self, first: Option<BlobRef>) -> Option<Trouble> {
        self.packs.fetch_add(1, Ordering::Relaxed);
        first.and_then(|first| self.script.lock().draw(first, is_for_packs))
    }

    fn check_up(&self) -> Result<(), StoreError> {
        if self.script.lock().down { Err(failed(Code::Unavailable)) } else { Ok(()) }
    }
}

fn failed(code: Code) -> StoreError {
    PeerError::bare(code, "as told").into()
}

fn is_for_packs(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::CutPack(_) | Trouble::HangPack(_))
}

/// How many of a pack's blobs are served.
fn served(trouble: Option<&Trouble>) -> usize {
    match trouble {
        Some(Trouble::CutPack(after) | Trouble::HangPack(after)) => *after,
        _ => usize::MAX,
    }
}

/// How a pack ends when those that are served are answered.
async fn end_pack(trouble: Option<Trouble>, are_left: bool) -> Result<(), StoreError> {
    match trouble {
        Some(Trouble::HangPack(_)) if are_left => std::future::pending().await,
        Some(_) if are_left => Err(failed(Code::Unavailable)),
        _ => Ok(()),
    }
}

fn is_for_both(trouble: &Trouble) -> bool {
    matches!(trouble, Trouble::Code(_) | Trouble::Panic | Trouble::Hang)
}

fn is_for_fetch(trouble: &Trouble) -> bool {
    is_for_both(trouble)
        || matches!(
            trouble,
            Trouble::WrongBytes
                | Trouble::ShortRead
                | Trouble::Trickle(_)
                | Trouble::Cut
                | Trouble::CutForGood
                | Trouble::ExtraByte
                | Trouble::StatedSize(_)
                | Trouble::Slow(_)
                | Trouble::Missing
        )
}

fn is_for_receive(trouble: &Trouble) -> bool {
    !is_for_packs(trouble) && (is_for_both(trouble) || !is_for_fetch(trouble))
}

#[async_trait]
impl Store for FaultyStore {
    async fn info(&self) -> Result<StoreInfo, StoreError> {
        self.infos.fetch_add(1, Ordering::Relaxed);
        self.check_up()?;
        let told = self.script.lock().info.clone();
        match told {
            Some(info) => Ok(info),
            None => self.inner.info().await,
        }
    }

    async fn stat(&self, blobs: &[BlobRef]) -> Result<Vec<BlobMeta>, StoreError> {
        self.check_up()?;
        let there: Vec<BlobRef> = {
            let script = self.script.lock();
            blobs.iter().copied().filter(|blob| !script.hides(*blob)).collect()
        };
        self.inner.stat(&there).await
    }

    async fn fetch(&self, blob: BlobRef, range: ByteRange) -> Result<Fetched, StoreError> {
        self.fetches.fetch_add(1, Ordering::Relaxed);
        self.check_up()?;
        self.check_luck()?;
        let trouble = self.script.lock().draw(blob, is_for_fetch);
        match &trouble {
            Some(Trouble::Missing) => return Err(StoreError::Missing(blob)),
            Some(Trouble::CutForGood) if range.offset > 0 => return Err(StoreError::Invalid("no ranges".to_owned())),
            Some(Trouble::Code(code)) => return Err(failed(*code)),
            Some(Trouble::Panic) => std::panic::panic_any("told to panic"),
            Some(Trouble::Hang) => std::future::pending().await,
            Some(Trouble::Slow(delay)) => tokio::time::sleep(*delay).await,
            _ => {}
        }
        let Fetched { size, bytes } = self.inner.fetch(blob, range).await?;
        Ok(match trouble {
            Some(Trouble::WrongBytes) => Fetched { size, bytes: bytes.map(|chunk| chunk.map(flip)).boxed() },
            Some(Trouble::ShortRead) => Fetched { size, bytes: bytes.map(|chunk| chunk.map(shorten)).boxed() },
            Some(Trouble::Cut | Trouble::CutForGood) => {
                let cut = stream::iter([Err(failed(Code::Unavailable))]);
                Fetched { size, bytes: bytes.take(1).chain(cut).boxed() }
            }
            Some(Trouble::ExtraByte) => {
                let extra = stream::iter([Ok(Bytes::from_static(b"x"))]);
                Fetched { size, bytes: bytes.chain(extra).boxed() }
            }
            Some(Trouble::StatedSize(size)) => Fetched { size, bytes },
            Some(Trouble::Trickle(pause)) => Fetched { size, bytes: trickling(bytes, pause) },
            _ => Fetched { size, bytes },
        })
    }

    async fn receive(&self, put: Put, mut bytes: ByteStream) -> Result<Received, StoreError> {
        self.receives.fetch_add(1, Ordering::Relaxed);
        let _inside = self.enter()?;
        let trouble = self.script.lock().draw(put.blob, is_for_receive);
        let blob = put.blob;
        let confirmed = |size, disposition| Received { blob, size, disposition, was_new: true };
        match trouble {
            None => self.inner.receive(put, bytes).await,
            Some(Trouble::ConfirmRef(blob)) => Ok(Received { blob, ..self.inner.receive(put, bytes).await? }),
            Some(Trouble::ConfirmSize(size)) => Ok(Received { size, ..self.inner.receive(put, bytes).await? }),
            Some(Trouble::Confirm(disposition)) => Ok(confirmed(read(&mut bytes, u64::MAX).await?, disposition)),
            Some(Trouble::CutReceive(after)) => {
                read(&mut bytes, after).await?;
                Err(failed(Code::Unavailable))
            }
            Some(Trouble::HangAtEnd) => {
                read(&mut bytes, u64::MAX).await?;
                std::future::pending().await
            }
            Some(Trouble::SlowRead(pause)) => {
                let slowly = bytes.then(move |chunk| async move {
                    tokio::time::sleep(pause).await;
                    chunk
                });
                self.inner.receive(put, slowly.boxed()).await
            }
            Some(Trouble::SlowEnd(pause)) => {
                let received = self.inner.receive(put, bytes).await?;
                tokio::time::sleep(pause).await;
                Ok(received)
            }
            Some(Trouble::NotProcessed) => Err(StoreError::NotProcessed),
            Some(Trouble::ConfirmUnread) => Ok(confirmed(put.size.unwrap_or(0), Disposition::Stored)),
            Some(Trouble::Code(code)) => Err(failed(code)),
            Some(Trouble::Panic) => std::panic::panic_any("told to panic"),
            Some(Trouble::Hang) => std::future::pending().await,
            Some(_) => {
                let error = PeerError::bare(Code::InvalidArgument, "refused as told");
                Err(PeerError { reason: Some(Arc::from("AS_TOLD")), ..error }.into())
            }
        }
    }

    // One by one, so that the script holds for each blob.
    async fn receive_packed(
        &self,
        mut parcels: Vec<Parcel>,
        answers: &mut dyn Answers<Received>,
    ) -> Result<(), StoreError> {
        answers.all_sent();
        let trouble = self.begin_pack(parcels.first().map(|parcel| parcel.put.blob));
        let count = parcels.len();
        parcels.truncate(served(trouble.as_ref()));
        let are_left = parcels.len() < count;
        receive_each(self, parcels, answers).await;
        end_pack(trouble, are_left).await
    }

    async fn fetch_packed(&self, mut wants: Vec<Want>, answers: &mut dyn Answers<Packed>) -> Result<(), StoreError> {
        let trouble = self.begin_pack(wants.first().map(|want| want.blob));
        let count = wants.len();
        wants.truncate(served(trouble.as_ref()));
        let are_left = wants.len() < count;
        fetch_each(self, wants, MAX_PACKED_BYTES, answers).await;
        end_pack(trouble, are_left).await
    }

    async fn enumerate(&self, range: EnumerateRange) -> Result<Enumeration, StoreError> {
        self.check_up()?;
        self.inner.enumerate(range).await
    }
}

/// Reads up to the end, or until so many bytes came; how many did.
async fn read(bytes: &mut ByteStream, enough: u64) -> Result<u64, StoreError> {
    let mut size = 0;
    while size < enough
        && let Some(chunk) = bytes.next().await
    {
        size += chunk.map_err(|error| StoreError::Input(Box::new(error)))?.len() as u64;
    }
    Ok(size)
}

fn trickling(bytes: ByteStream, pause: Duration) -> ByteStream {
    let pieces = bytes.flat_map(|chunk| match chunk {
        Ok(chunk) => stream::iter((0..chunk.len()).map(move |at| Ok(chunk.slice(at..=at)))).boxed(),
        Err(error) => stream::iter([Err(error)]).boxed(),
    });
    let slowly = pieces.then(move |piece| async move {
        tokio::time::sleep(pause).await;
        piece
    });
    slowly.boxed()
}

fn flip(chunk: Bytes) -> Bytes {
    let mut bytes = chunk.to_vec();
    if let Some(first) = bytes.first_mut() {
        *first ^= 1;
    }
    bytes.into()
}

fn shorten(mut chunk: Bytes) -> Bytes {
    chunk.truncate(chunk.len().saturating_sub(1));
    chunk
}
