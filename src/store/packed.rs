//! Small blobs in packs: the words, the limits, and the way without packing.
//!
//! A store that moves packs keeps the same promises for each blob in them as for one alone; the blobs of a pack share
//! nothing but the way. [`receive_each`] and [`fetch_each`] do the same one by one: for stores that gain nothing by packing,
//! and for peers that cannot.

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

/// Writes blobs one by one, some at a time.
pub async fn receive_each(store: &dyn Store, parcels: Vec<Parcel>) -> Vec<Result<Received, StoreError>> {
    let receive = |Parcel { put, bytes, .. }: Parcel| {
        let chunks = (!bytes.is_empty()).then_some(Ok(bytes));
        store.receive(put, stream::iter(chunks).boxed())
    };
    stream::iter(parcels).map(receive).buffered(EACH_AT_ONCE).collect().await
}

/// Reads blobs one by one, some at a time. One of more than `most` bytes is not read.
pub async fn fetch_each(store: &dyn Store, wants: Vec<Want>, most: u64) -> Vec<Result<Packed, StoreError>> {
    let fetch = |want: Want| fetch_whole(store, want.blob, most);
    stream::iter(wants).map(fetch).buffered(EACH_AT_ONCE).collect().await
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
