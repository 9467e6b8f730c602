//! The comparison itself: two sorted listings go in, page by page, and what is to be done comes out. No runtime, no I/O.
//!
//! [`Merge`] holds at most the pages that it was given and has not used up yet, and asks for the side that it needs next.
//! It trusts nobody: a listing that is out of order, repeats itself, miscounts, or stops without saying that it is whole
//! is a [`ListingError`] of that side, and nothing of that page is used.

use crate::blob::{BlobMeta, BlobRef};
use crate::fault::Side;
use crate::store::EnumeratePage;
use std::collections::{BTreeSet, VecDeque};

/// What a page of a listing proved wrong with the peer that sent it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {} store's listing {what}", match .side { Side::Source => "source", Side::Destination => "destination" })]
pub struct ListingError {
    /// Whose listing it was.
    pub side: Side,
    /// What was wrong with it.
    pub what: ListingFault,
}

/// How a listing can be wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListingFault {
    /// A ref comes before its predecessor.
    #[error("is out of order: {found} comes after {last}")]
    OutOfOrder {
        /// The ref before.
        last: BlobRef,
        /// The ref that had to be greater.
        found: BlobRef,
    },
    /// A ref comes twice.
    #[error("has {0} twice")]
    Duplicate(BlobRef),
    /// The number of blobs stated at the end is not that of the blobs sent.
    #[error("states {stated} blobs and has {found}")]
    Miscounted {
        /// As stated.
        stated: u64,
        /// As counted.
        found: u64,
    },
    /// The stream ended, and the last page did not say so.
    #[error("was cut short after {found} blobs: it ended without saying that it is whole")]
    CutShort {
        /// The blobs that came in this stream.
        found: u64,
    },
    /// It claims that there is more, and gives no ref, not even an unknown one.
    #[error("says that it was cut by the limit, but gave no ref")]
    NoProgress,
    /// The answer to "which of these do you hold" names one that was not asked for.
    #[error("answered for {0}, which was not asked for")]
    NotAsked(BlobRef),
}

/// What is to be copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finding {
    /// The destination lacks it.
    Missing(BlobMeta),
    /// Both hold it, with different sizes.
    Differs {
        /// The blob, with its size at the source.
        source: BlobMeta,
        /// Its size at the destination, in bytes.
        destination_size: u64,
    },
}

impl Finding {
    /// The blob, with its size at the source.
    pub fn source(&self) -> BlobMeta {
        match self {
            Self::Missing(source) | Self::Differs { source, .. } => *source,
        }
    }
}

/// What the merge needs to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// The next page of this side.
    Page(Side),
    /// Room for findings.
    Room,
    /// Nothing: both sides were seen whole.
    Nothing,
}

/// What the merge has seen so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Blobs of the source that were compared.
    pub source: u64,
    /// Blobs of the destination that were compared.
    pub destination: u64,
    /// Blobs that only the destination holds.
    pub extra: u64,
}

/// One side's listing, over any number of streams.
#[derive(Debug)]
struct Listing {
    side: Side,
    waiting: VecDeque<BlobMeta>,
    // The last ref of all pages, and the last one of a digest function that is not known here.
    last: Option<BlobRef>,
    last_unknown: Option<String>,
    // Where the stream that is open now began, and the blobs in it.
    opened_after: Option<String>,
    in_stream: u64,
    whole: bool,
}

impl Listing {
    fn new(side: Side) -> Self {
        let (last, last_unknown, opened_after) = (None, None, None);
        Self { side, waiting: VecDeque::new(), last, last_unknown, opened_after, in_stream: 0, whole: false }
    }

    fn error(&self, what: ListingFault) -> ListingError {
        ListingError { side: self.side, what }
    }

    fn push(&mut self, page: EnumeratePage) -> Result<(), ListingError> {
        let mut last = self.last;
        for meta in &page.blobs {
            match last {
                Some(last) if last == meta.blob => return Err(self.error(ListingFault::Duplicate(last))),
                Some(last) if last > meta.blob => {
                    return Err(self.error(ListingFault::OutOfOrder { last, found: meta.blob }));
                }
                _ => last = Some(meta.blob),
            }
        }
        let found = self.in_stream + page.blobs.len() as u64;
        let last_unknown = page.last_unknown.as_ref().max(self.last_unknown.as_ref());
        if let Some(end) = page.end {
            if end.count != found {
                return Err(self.error(ListingFault::Miscounted { stated: end.count, found }));
            }
            if !end.complete && place(last, last_unknown) == self.opened_after {
                return Err(self.error(ListingFault::NoProgress));
            }
            self.whole = end.complete;
        }
        self.last = last;
        self.last_unknown = last_unknown.cloned();
        self.in_stream = found;
        self.waiting.extend(page.blobs);
        Ok(())
    }
}

/// The text up to and with which a listing is known. It only ever grows.
fn place(last: Option<BlobRef>, last_unknown: Option<&String>) -> Option<String> {
    last.map(|last| last.to_string()).max(last_unknown.cloned())
}

/// A merge in progress.
#[derive(Debug)]
pub struct Merge {
    source: Listing,
    destination: Listing,
    // The destination is asked instead of listed,
    asked: bool,
    // and is known up to and with this ref, also where it has nothing there.
    asked_up_to: Option<BlobRef>,
    seen: Seen,
    // The last ref of the source that was compared.
    cursor: Option<BlobRef>,
}

impl Default for Merge {
    fn default() -> Self {
        Self::new()
    }
}

impl Merge {
    /// A merge of two listings of which nothing is known yet.
    pub fn new() -> Self {
        Self {
            source: Listing::new(Side::Source),
            destination: Listing::new(Side::Destination),
            asked: false,
            asked_up_to: None,
            seen: Seen::default(),
            cursor: None,
        }
    }

    fn listing(&self, side: Side) -> &Listing {
        match side {
            Side::Source => &self.source,
            Side::Destination => &self.destination,
        }
    }

    fn listing_mut(&mut self, side: Side) -> &mut Listing {
        match side {
            Side::Source => &mut self.source,
            Side::Destination => &mut self.destination,
        }
    }

    /// A new stream of this side begins: its end counts from here. Answers the text of the ref that it goes on after, if
    /// there is one; it may be of a digest function that is not known here.
    pub fn open(&mut self, side: Side) -> Option<String> {
        let listing = self.listing_mut(side);
        listing.in_stream = 0;
        listing.opened_after = place(listing.last, listing.last_unknown.as_ref());
        listing.opened_after.clone()
    }

    /// Takes the next page of the source.
    pub fn push_source(&mut self, page: EnumeratePage) -> Result<(), ListingError> {
        self.source.push(page)
    }

    /// Takes the next page of the destination.
    pub fn push_destination(&mut self, page: EnumeratePage) -> Result<(), ListingError> {
        self.destination.push(page)
    }

    /// Takes the next page of this side.
    pub fn push(&mut self, side: Side, page: EnumeratePage) -> Result<(), ListingError> {
        self.listing_mut(side).push(page)
    }

    /// The error of a stream that ended without an end.
    pub fn cut_short(&self, side: Side) -> ListingError {
        let listing = self.listing(side);
        listing.error(ListingFault::CutShort { found: listing.in_stream })
    }

    /// Whether this side was listed whole.
    pub fn is_whole(&self, side: Side) -> bool {
        self.listing(side).whole
    }

    /// Takes the destination for empty: everything that the source holds is missing.
    pub fn assume_destination_empty(&mut self) {
        self.destination.whole = true;
    }

    /// The destination will not be listed, but asked: [`Need::Page`] of it means [`questions`](Self::questions).
    pub fn ask_destination(&mut self) {
        self.asked = true;
    }

    /// The number of source blobs that wait for the destination.
    pub fn waiting(&self) -> usize {
        self.source.waiting.len()
    }

    /// The next `max` source blobs that wait for the destination: what to ask it for, where it cannot be listed.
    pub fn questions(&self, max: usize) -> Vec<BlobRef> {
        self.source.waiting.iter().take(max).map(|meta| meta.blob).collect()
    }

    /// Takes the destination's answer, in any order, to [`questions`](Self::questions); what it leaves out, it lacks.
    pub fn answer(&mut self, asked: &[BlobRef], mut held: Vec<BlobMeta>) -> Result<(), ListingError> {
        let wanted: BTreeSet<&BlobRef> = asked.iter().collect();
        if let Some(other) = held.iter().find(|meta| !wanted.contains(&meta.blob)) {
            return Err(self.destination.error(ListingFault::NotAsked(other.blob)));
        }
        held.sort_unstable_by_key(|meta| meta.blob);
        self.destination.push(EnumeratePage { blobs: held, ..EnumeratePage::default() })?;
        self.asked_up_to = asked.last().copied().max(self.asked_up_to);
        Ok(())
    }

    /// Compares as far as it can, until `found` has `room` findings.
    pub fn advance(&mut self, found: &mut Vec<Finding>, room: usize) -> Need {
        loop {
            let Some(source) = self.source.waiting.front().copied() else {
                if !self.source.whole {
                    return Need::Page(Side::Source);
                }
                // What the destination has left is extra; it is read to its end, so that a cut listing does not pass.
                self.count_extra(self.destination.waiting.len());
                self.destination.waiting.clear();
                if self.destination.whole || self.asked {
                    return Need::Nothing;
                }
                return Need::Page(Side::Destination);
            };
            let extra = self.destination.waiting.iter().take_while(|meta| meta.blob < source.blob).count();
            self.destination.waiting.drain(..extra);
            self.count_extra(extra);
            let held = self.destination.waiting.front().copied();
            if held.is_none() && !self.destination.whole && self.asked_up_to < Some(source.blob) {
                return Need::Page(Side::Destination);
            }
            let held = held.filter(|held| held.blob == source.blob);
            let finding = match held {
                None => Some(Finding::Missing(source)),
                Some(held) if held.size != source.size => {
                    Some(Finding::Differs { source, destination_size: held.size })
                }
                Some(_) => None,
            };
            if finding.is_some() && found.len() >= room {
                return Need::Room;
            }
            found.extend(finding);
            self.source.waiting.pop_front();
            self.seen.source += 1;
            self.cursor = Some(source.blob);
            if held.is_some() {
                self.destination.waiting.pop_front();
                self.seen.destination += 1;
            }
        }
    }

    fn count_extra(&mut self, blobs: usize) {
        self.seen.extra += blobs as u64;
        self.seen.destination += blobs as u64;
    }

    /// What was compared so far.
    pub fn seen(&self) -> Seen {
        self.seen
    }

    /// The last ref of the source that was compared.
    pub fn cursor(&self) -> Option<BlobRef> {
        self.cursor
    }
}

#[cfg(test)]
mod tests;
