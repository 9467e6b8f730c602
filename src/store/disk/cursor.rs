//! An enumeration, page by page.

use super::DiskShared;
use super::io::Io;
use crate::failpoint::{self, Point};
use crate::store::bounds::keys_of;
use crate::store::{EnumerateEnd, EnumeratePage, EnumerateRange, StoreError};
use std::sync::Arc;

/// Blobs in a page of an enumeration, at most.
const PAGE_BLOBS: usize = 1000;

/// Where an enumeration stands.
pub(super) struct Cursor {
    shared: Arc<DiskShared>,
    io: Io,
    from: Vec<u8>,
    to: Vec<u8>,
    /// How many more blobs the limit allows.
    left: Option<u64>,
    count: u64,
}

impl Cursor {
    /// At the beginning of a range.
    pub(super) fn new(shared: Arc<DiskShared>, io: Io, range: &EnumerateRange) -> Self {
        let (from, to) = keys_of(range);
        Self { shared, io, from, to, left: range.limit, count: 0 }
    }

    /// The next page, and the cursor behind it if the enumeration goes on.
    pub(super) async fn page(mut self) -> Result<(EnumeratePage, Option<Self>), StoreError> {
        failpoint::pause(Point::StorePage).await?;
        let left = self.left.and_then(|left| usize::try_from(left).ok()).unwrap_or(usize::MAX);
        let (shared, from, to) = (self.shared.clone(), std::mem::take(&mut self.from), self.to.clone());
        let page = self.io.run(move || shared.index.page(&from, &to, left.min(PAGE_BLOBS))).await?;
        let found = page.blobs.len() as u64;
        self.count += found;
        self.left = self.left.map(|left| left.saturating_sub(found));
        match page.next {
            Some(next) if self.left != Some(0) => {
                self.from = next;
                Ok((EnumeratePage { blobs: page.blobs, ..EnumeratePage::default() }, Some(self)))
            }
            next => {
                let end = EnumerateEnd { count: self.count, complete: next.is_none() };
                Ok((EnumeratePage { blobs: page.blobs, end: Some(end), ..EnumeratePage::default() }, None))
            }
        }
    }
}
