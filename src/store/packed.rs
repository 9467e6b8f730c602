//! Small blobs in packs: the words, the limits, and the way without packing.
//!
//! A store that moves packs keeps the same promises for each blob in them as for one alone; the blobs of a pack share
//! nothing but the way. So each is answered by itself, as soon as the store knows ([`Answers`]): when the rest of the pack is
//! cut, or nobody waits for it any more, what was answered counts. [`receive_all`] and [`fetch_all`] are for callers that
//! want all answers at once.
//!
//! [`receive_each`] and [`fetch_each`] do the same one by one: for stores that gain nothing by packing, and for peers that
//! cannot.

use super::{ByteRange, Put, Received, Store, StoreError};
use crate::blob::{BlobRef, Mismatch};
use crate::telemetry::TraceContext;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};

/// The largest blob that our stores take or give packed, in bytes.
pub const MAX_PACKED_BYTES: u64 = 64 << 10;

/// Bytes of blobs in one message, at most.
pub const PACK_BYTES: usize = 1 << 20;

/// Blobs in one message that is sent, at most. Wants are answered with their bytes: 1,000 of them are up to 64 MiB.
pub const PACK_ITEMS: usize = 1000;

/// Blobs that are moved at a time where they are moved one by one.
const EACH_AT_ONCE: usize = 16;

/// A small blob, whole, that is to be written.
#[derive(Clone, Debug)]
pub struct Parcel {
    /// Which blob, and how. Where `size` is stated, it is that of `bytes`.
    pub put: Put,
    /// Its bytes.
    pub bytes: Bytes,
    /// The trace in which it travels.
    pub trace: Option<TraceContext>,
}

/// A small blob that is wanted whole.
#[derive(Clone, Debug)]
pub struct Want {
    /// The blob.
    pub blob: BlobRef,
    /// The trace in which it travels.
    pub trace: Option<TraceContext>,
}

/// What there is of a blob that was wanted packed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Packed {
    /// All of its bytes.
    Whole(Bytes),
    /// It is larger than the store gives packed; [`Store::fetch`] reads it.
    TooLarge {
        /// Its size in bytes.
        size: u64,
    },
}

/// Where the answers to a pack go, each as it comes.
pub trait Answers<T>: Send {
    /// The answer to the item at this place in the pack. Each item is answered once, in any order.
    fn answer(&mut self, at: usize, answer: Result<T, StoreError>);

    /// All that is to be written is with the store, and only its answers are awaited. A store that cannot tell, or that is
    /// read from, does not say so.
    fn all_sent(&mut self);
}

/// Gathers answers in the order of their items.
struct Gathered<T>(Vec<Option<Result<T, StoreError>>>);

impl<T: Send> Answers<T> for Gathered<T> {
    fn answer(&mut self, at: usize, answer: Result<T, StoreError>) {
        if let Some(place) = self.0.get_mut(at) {
            *place = Some(answer);
        }
    }

    fn all_sent(&mut self) {}
}

impl<T> Gathered<T> {
    fn of(count: usize) -> Self {
        Self((0..count).map(|_| None).collect())
    }

    /// All answers; what was not answered has the end of the pack as its error.
    fn end(self, ended: &Result<(), StoreError>) -> Vec<Result<T, StoreError>> {
        let open = || match ended {
            Ok(()) => unanswered(),
            Err(StoreError::Peer(error)) => StoreError::Peer(error.clone()),
            Err(StoreError::NoSpace(said)) => StoreError::NoSpace(said.clone()),
            Err(StoreError::Io { context, source }) => {
                StoreError::io(context.as_str(), std::io::Error::new(source.kind(), source.to_string()))
            }
            Err(error) => StoreError::Protocol(error.to_string()),
        };
        self.0.into_iter().map(|answer| answer.unwrap_or_else(|| Err(open()))).collect()
    }
}

/// What is wrong with a store that ends a pack well and leaves an item without an answer.
pub(crate) fn unanswered() -> StoreError {
    StoreError::Protocol("a blob of a pack was not answered".to_owned())
}

/// Writes a pack and waits for all of it; a result for each blob, in their order.
pub async fn receive_all(store: &dyn Store, parcels: Vec<Parcel>) -> Vec<Result<Received, StoreError>> {
    let mut answers = Gathered::of(parcels.len());
    let ended = store.receive_packed(parcels, &mut answers).await;
    answers.end(&ended)
}

/// Reads a pack and waits for all of it; a result for each blob, in their order.
pub(crate) async fn fetch_all(store: &dyn Store, wants: Vec<Want>) -> Vec<Result<Packed, StoreError>> {
    let mut answers = Gathered::of(wants.len());
    let ended = store.fetch_packed(wants, &mut answers).await;
    answers.end(&ended)
}

/// Writes blobs one by one, some at a time.
pub(crate) async fn receive_each(store: &dyn Store, parcels: Vec<Parcel>, answers: &mut dyn Answers<Received>) {
    let receive = |(at, Parcel { put, bytes, .. }): (usize, Parcel)| async move {
        let chunks = (!bytes.is_empty()).then_some(Ok(bytes));
        (at, store.receive(put, stream::iter(chunks).boxed()).await)
    };
    let mut received = stream::iter(parcels.into_iter().enumerate()).map(receive).buffer_unordered(EACH_AT_ONCE);
    while let Some((at, answer)) = received.next().await {
        answers.answer(at, answer);
    }
}

/// Reads blobs one by one, some at a time. One of more than `most` bytes is not read.
pub(crate) async fn fetch_each(store: &dyn Store, wants: Vec<Want>, most: u64, answers: &mut dyn Answers<Packed>) {
    let fetch = |(at, want): (usize, Want)| async move { (at, fetch_whole(store, want.blob, most).await) };
    let mut fetched = stream::iter(wants.into_iter().enumerate()).map(fetch).buffer_unordered(EACH_AT_ONCE);
    while let Some((at, answer)) = fetched.next().await {
        answers.answer(at, answer);
    }
}

async fn fetch_whole(store: &dyn Store, blob: BlobRef, most: u64) -> Result<Packed, StoreError> {
    let mut fetched = store.fetch(blob, ByteRange::default()).await?;
    let size = fetched.size;
    if size > most {
        return Ok(Packed::TooLarge { size });
    }
    // Most small blobs come in one chunk, which is kept as it is.
    let mut whole = Bytes::new();
    while let Some(chunk) = fetched.bytes.next().await {
        let chunk = chunk?;
        if whole.is_empty() {
            whole = chunk;
        } else {
            let mut joined = BytesMut::with_capacity(whole.len() + chunk.len());
            joined.extend_from_slice(&whole);
            joined.extend_from_slice(&chunk);
            whole = joined.freeze();
        }
        if whole.len() as u64 > size {
            return Err(Mismatch::TooLong { stated: size }.into());
        }
    }
    let received = whole.len() as u64;
    if received < size {
        return Err(Mismatch::TooShort { stated: size, received }.into());
    }
    Ok(Packed::Whole(whole))
}

/// Cuts a sequence into packs of at most [`PACK_BYTES`] and [`PACK_ITEMS`]; an item that is larger has a pack of its own.
pub fn packs<T>(items: impl IntoIterator<Item = T>, size: impl Fn(&T) -> usize) -> Vec<Vec<T>> {
    let mut packs: Vec<Vec<T>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        let more = size(&item);
        match packs.last_mut() {
            Some(pack) if pack.len() < PACK_ITEMS && bytes + more <= PACK_BYTES => {
                bytes += more;
                pack.push(item);
            }
            _ => {
                bytes = more;
                packs.push(vec![item]);
            }
        }
    }
    packs
}

#[cfg(test)]
mod tests {
    use super::{PACK_BYTES, PACK_ITEMS, packs};
    use proptest::prelude::{prop_assert, prop_assert_eq, proptest};

    proptest! {
        #[test]
        fn packs_keep_every_item_in_order_and_hold_to_the_limits(
            sizes in proptest::collection::vec(0usize..PACK_BYTES + 1000, 0..50), zeros in 0usize..2500
        ) {
            let all: Vec<usize> = sizes.into_iter().chain(std::iter::repeat_n(0, zeros)).collect();
            let packed = packs(all.clone(), |size| *size);
            for pack in &packed {
                prop_assert!(!pack.is_empty() && pack.len() <= PACK_ITEMS);
                prop_assert!(pack.len() == 1 || pack.iter().sum::<usize>() <= PACK_BYTES);
            }
            prop_assert_eq!(packed.concat(), all);
        }
    }
}
