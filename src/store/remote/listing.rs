//! What a peer lists, held to its range and its order.

use super::stated;
use crate::blob::{BlobMeta, RefError};
use crate::pb::v1;
use crate::store::{EnumerateEnd, EnumeratePage, EnumerateRange, StoreError};

/// The longest ref of a digest function that is not known here, in bytes: as long as a bound may be.
const MAX_REF: usize = 1024;

/// What is kept of the name of such a function, in characters.
const MAX_FUNCTION: usize = 64;

/// An enumeration so far.
pub(super) struct RemoteListing {
    range: EnumerateRange,
    // The text of the last ref, or the exclusive bound.
    last: String,
    // Refs so far, those that were left out included.
    seen: u64,
    left_out: u64,
}

impl RemoteListing {
    pub(super) fn new(range: EnumerateRange) -> Self {
        Self { last: range.after.clone(), range, seen: 0, left_out: 0 }
    }

    pub(super) fn page(&mut self, message: v1::EnumerateBlobsResponse) -> Result<EnumeratePage, StoreError> {
        let mut page = EnumeratePage { blobs: Vec::with_capacity(message.blobs.len()), ..EnumeratePage::default() };
        for meta in message.blobs {
            let text = meta.r#ref;
            if text <= self.last {
                let what = format!("EnumerateBlobs is out of order after {:?}", self.last);
                return Err(StoreError::protocol_with(&what, &text));
            }
            if !self.range.until.is_empty() && text > self.range.until {
                return Err(StoreError::protocol_with("EnumerateBlobs went beyond its range", &text));
            }
            self.seen += 1;
            match text.parse() {
                Ok(blob) => {
                    page.blobs.push(BlobMeta { blob, size: stated("EnumerateBlobs", meta.size_bytes)? });
                }
                Err(RefError::UnknownFunction(_)) => {
                    if text.len() > MAX_REF || text.bytes().any(|byte| !(b' '..=b'~').contains(&byte)) {
                        let what = "EnumerateBlobs: a ref is at most 1,024 printable ASCII characters, not";
                        return Err(StoreError::protocol_with(what, &text));
                    }
                    self.left_out += 1;
                    let function: String = text.chars().take_while(|c| *c != '-').take(MAX_FUNCTION).collect();
                    // In order, the refs of a function stand together.
                    match page.unknown.last_mut() {
                        Some((last, count)) if *last == function => *count += 1,
                        _ => page.unknown.push((function, 1)),
                    }
                    page.last_unknown = Some(text.clone());
                }
                Err(error) => return Err(StoreError::Protocol(format!("EnumerateBlobs: {error}"))),
            }
            self.last = text;
        }
        if self.range.limit.is_some_and(|limit| self.seen > limit) {
            return Err(StoreError::Protocol("EnumerateBlobs gave more than its limit".to_owned()));
        }
        if let Some(end) = message.end {
            page.end = Some(self.end(&end)?);
        }
        Ok(page)
    }

    fn end(&self, end: &v1::EnumerateEnd) -> Result<EnumerateEnd, StoreError> {
        let (Some(count), Some(complete)) = (end.count, end.complete) else {
            return Err(StoreError::Protocol("EnumerateBlobs ended without saying how".to_owned()));
        };
        if count != self.seen {
            let seen = self.seen;
            return Err(StoreError::Protocol(format!("EnumerateBlobs counted {count} blobs and sent {seen}")));
        }
        if !complete && self.range.limit != Some(count) {
            return Err(StoreError::Protocol("EnumerateBlobs ended incomplete below its limit".to_owned()));
        }
        Ok(EnumerateEnd { count: count - self.left_out, complete })
    }
}
