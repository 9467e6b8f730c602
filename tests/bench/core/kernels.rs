//! What is counted: pieces of the pure core, each over the same made-up input every time.
//!
//! Nothing here may depend on chance, on the clock, or on the order of a hash map.

use blobferry::blob::{BlobMeta, BlobRef, DigestFunction};
use blobferry::internal::fault::Side;
use blobferry::internal::store::packs;
use blobferry::internal::store::{EnumerateEnd, EnumeratePage};
use blobferry::internal::sync::{Merge, Need};
use blobferry::v1 as pb;
use bytes::Bytes;
use prost::Message as _;
use std::hint::black_box;

/// Refs that one call of a kernel works on.
const REFS: u64 = 1000;
/// Pages of a listing.
const PAGES: u64 = 10;

/// A piece of the core.
pub(crate) struct Kernel {
    pub(crate) name: &'static str,
    /// Makes the input, and works on it so many times.
    pub(crate) run: fn(usize),
}

pub(crate) const ALL: [Kernel; 7] = [
    Kernel { name: "ref_parse", run: ref_parse },
    Kernel { name: "ref_format", run: ref_format },
    Kernel { name: "ref_key", run: ref_key },
    Kernel { name: "merge", run: merge },
    Kernel { name: "pack", run: pack },
    Kernel { name: "pack_encode", run: pack_encode },
    Kernel { name: "pack_decode", run: pack_decode },
];

/// The ref of this number, in the numbers' order.
fn blob(number: u64) -> BlobRef {
    // The rest of the digest is as irregular as that of a real one.
    let mut digest = [0; 32];
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    for byte in &mut digest {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = state.to_be_bytes()[0];
    }
    digest[..8].copy_from_slice(&(number << 20).to_be_bytes());
    BlobRef::new(DigestFunction::Sha256, &digest).unwrap_or_else(|| DigestFunction::Sha256.ref_of(&digest))
}

/// 1,000 texts to refs.
fn ref_parse(times: usize) {
    let texts: Vec<String> = (0..REFS).map(|number| blob(number).to_string()).collect();
    for _ in 0..times {
        for text in &texts {
            let parsed = black_box(text.as_str()).parse::<BlobRef>();
            assert!(black_box(parsed).is_ok(), "{text} is a ref");
        }
    }
}

/// 1,000 refs to texts.
fn ref_format(times: usize) {
    let refs: Vec<BlobRef> = (0..REFS).map(blob).collect();
    for _ in 0..times {
        for blob in &refs {
            black_box(black_box(blob).to_string());
        }
    }
}

/// 1,000 refs to keys and back.
fn ref_key(times: usize) {
    let refs: Vec<BlobRef> = (0..REFS).map(blob).collect();
    for _ in 0..times {
        for blob in &refs {
            let key = black_box(blob).to_key();
            assert!(black_box(BlobRef::from_key(black_box(&key))).is_some(), "it is a key");
        }
    }
}

/// Two listings of some 10,000 refs, page by page: every 100th is missing, every 101st differs, every 102nd is extra.
fn merge(times: usize) {
    let meta = |number: u64, size: u64| BlobMeta { blob: blob(number), size };
    let numbers = 0..PAGES * REFS;
    let source = numbers.clone().filter(|number| number % 102 != 0).map(|number| meta(number, 1)).collect();
    let held = numbers.filter(|number| number % 100 != 0);
    let destination = held.map(|number| meta(number, if number % 101 == 0 { 2 } else { 1 })).collect();
    let (source, destination) = (pages(source), pages(destination));
    for _ in 0..times {
        let (mut source, mut destination) = (source.iter(), destination.iter());
        let mut merge = Merge::new();
        let (mut found, mut findings) = (Vec::new(), 0);
        merge.open(Side::Source);
        merge.open(Side::Destination);
        loop {
            match merge.advance(&mut found, 1000) {
                Need::Nothing => break,
                Need::Room => findings += std::mem::take(&mut found).len(),
                Need::Page(side) => {
                    let listing = if side == Side::Source { &mut source } else { &mut destination };
                    let Some(page) = listing.next() else { break };
                    assert!(merge.push(side, black_box(page.clone())).is_ok(), "the listing is in order");
                }
            }
        }
        assert!(merge.is_whole(Side::Source) && merge.is_whole(Side::Destination), "both were seen whole");
        assert!(black_box(findings + found.len()) > 100, "something is found");
    }
}

fn pages(metas: Vec<BlobMeta>) -> Vec<EnumeratePage> {
    let (count, pages) = (metas.len() as u64, metas.len().div_ceil(1000));
    let page = |(at, blobs): (usize, &[BlobMeta])| EnumeratePage {
        blobs: blobs.to_vec(),
        end: (at + 1 == pages).then_some(EnumerateEnd { count, complete: true }),
        ..EnumeratePage::default()
    };
    metas.chunks(1000).enumerate().map(page).collect()
}

/// 10,000 sizes to packs.
fn pack(times: usize) {
    let sizes: Vec<usize> = (0..10_000).map(|number| number * 7919 % (64 << 10)).collect();
    for _ in 0..times {
        let packed = packs(black_box(&sizes).iter().copied(), |size| *size);
        assert!(black_box(packed).len() > 100, "there are many packs");
    }
}

/// A message of 256 blobs of 100 bytes.
fn message() -> pb::ReceiveBlobsRequest {
    let data = Bytes::from_static(&[7; 100]);
    let packed = |number| pb::PackedBlob { r#ref: blob(number).to_string(), data: data.clone(), ..Default::default() };
    pb::ReceiveBlobsRequest { blobs: (0..256).map(packed).collect(), source_store: String::new() }
}

/// 256 blobs to a message's bytes.
fn pack_encode(times: usize) {
    let message = message();
    for _ in 0..times {
        assert!(black_box(black_box(&message).encode_to_vec()).len() > 256 * 100, "everything is in it");
    }
}

/// A message's bytes to 256 blobs.
fn pack_decode(times: usize) {
    let bytes = Bytes::from(message().encode_to_vec());
    for _ in 0..times {
        let decoded = pb::ReceiveBlobsRequest::decode(black_box(bytes.clone()));
        assert!(black_box(decoded).is_ok_and(|message| message.blobs.len() == 256), "everything is in it");
    }
}
