#![allow(clippy::unwrap_used, reason = "tests")]

use super::{Finding, ListingError, ListingFault, Merge, Need};
use crate::blob::{BlobMeta, BlobRef, DigestFunction};
use crate::fault::Side;
use crate::store::{EnumerateEnd, EnumeratePage};
use proptest::collection::btree_map;
use proptest::prelude::{Strategy, any, prop_assert, prop_assert_eq, proptest};
use std::collections::BTreeMap;

fn blob(number: u8) -> BlobRef {
    let function = if number < 100 { DigestFunction::Sha1 } else { DigestFunction::Sha256 };
    BlobRef::new(function, &vec![number; function.digest_len()]).unwrap()
}

fn meta(number: u8, size: u64) -> BlobMeta {
    BlobMeta { blob: blob(number), size }
}

fn page(numbers: &[u8], end: Option<(u64, bool)>) -> EnumeratePage {
    EnumeratePage {
        blobs: numbers.iter().map(|number| meta(*number, 1)).collect(),
        end: end.map(|(count, complete)| EnumerateEnd { count, complete }),
        ..EnumeratePage::default()
    }
}

/// A listing of a map: pages and windows of these sizes.
struct Listed {
    blobs: Vec<BlobMeta>,
    page: usize,
    window: usize,
    at: usize,
    in_window: usize,
}

impl Listed {
    fn new(map: &BTreeMap<u8, u64>, page: usize, window: usize) -> Self {
        let blobs = map.iter().map(|(number, size)| meta(*number, *size)).collect();
        Self { blobs, page, window, at: 0, in_window: 0 }
    }

    fn next(&mut self, merge: &mut Merge, side: Side) {
        if self.in_window == 0 {
            let after = merge.open(side);
            assert_eq!(after, self.at.checked_sub(1).map(|last| self.blobs[last].blob.to_string()));
        }
        let take = self.page.min(self.window - self.in_window).min(self.blobs.len() - self.at);
        let blobs = self.blobs[self.at..self.at + take].to_vec();
        self.at += take;
        self.in_window += take;
        let complete = self.at == self.blobs.len();
        let ends = complete || self.in_window == self.window;
        let end = ends.then_some(EnumerateEnd { count: self.in_window as u64, complete });
        if ends {
            self.in_window = 0;
        }
        merge.push(side, EnumeratePage { blobs, end, ..EnumeratePage::default() }).unwrap();
    }
}

fn expected(source: &BTreeMap<u8, u64>, destination: &BTreeMap<u8, u64>) -> Vec<Finding> {
    source
        .iter()
        .filter_map(|(number, size)| match destination.get(number) {
            None => Some(Finding::Missing(meta(*number, *size))),
            Some(held) if held != size => {
                Some(Finding::Differs { source: meta(*number, *size), destination_size: *held })
            }
            Some(_) => None,
        })
        .collect()
}

fn blobs() -> impl Strategy<Value = BTreeMap<u8, u64>> {
    btree_map(any::<u8>(), 0..3u64, 0..60)
}

proptest! {
    #[test]
    fn a_merge_finds_what_maps_find(
        source in blobs(), destination in blobs(), page_a in 1..9usize, page_b in 1..9usize,
        window_a in 1..20usize, window_b in 1..20usize, room in 1..7usize,
    ) {
        let mut merge = Merge::new();
        let mut a = Listed::new(&source, page_a, window_a);
        let mut b = Listed::new(&destination, page_b, window_b);
        let (mut all, mut found) = (Vec::new(), Vec::new());
        loop {
            let need = merge.advance(&mut found, room);
            prop_assert!(found.len() <= room);
            match need {
                Need::Page(Side::Source) => a.next(&mut merge, Side::Source),
                Need::Page(Side::Destination) => b.next(&mut merge, Side::Destination),
                Need::Room => all.append(&mut found),
                Need::Nothing => break,
            }
            prop_assert!(merge.waiting() <= page_a);
        }
        all.append(&mut found);
        prop_assert_eq!(all, expected(&source, &destination));
        prop_assert_eq!(merge.seen().source, source.len() as u64);
        prop_assert_eq!(merge.seen().destination, destination.len() as u64);
        let extra = destination.keys().filter(|number| !source.contains_key(number)).count();
        prop_assert_eq!(merge.seen().extra, extra as u64);
        prop_assert_eq!(merge.cursor(), source.keys().next_back().map(|number| blob(*number)));
    }

    #[test]
    fn asking_finds_what_listing_finds(
        source in blobs(), destination in blobs(), page in 1..9usize, window in 1..20usize, questions in 1..12usize,
    ) {
        let mut merge = Merge::new();
        merge.ask_destination();
        let mut listed = Listed::new(&source, page, window);
        let mut found = Vec::new();
        loop {
            match merge.advance(&mut found, usize::MAX) {
                Need::Page(Side::Source) => listed.next(&mut merge, Side::Source),
                Need::Page(Side::Destination) => {
                    let asked = merge.questions(questions);
                    prop_assert!(!asked.is_empty());
                    let held = destination.iter().map(|(number, size)| meta(*number, *size));
                    let held = held.filter(|meta| asked.contains(&meta.blob)).rev().collect();
                    merge.answer(&asked, held).unwrap();
                }
                Need::Room => unreachable!("there is room"),
                Need::Nothing => break,
            }
        }
        prop_assert_eq!(found, expected(&source, &destination));
        prop_assert_eq!(merge.seen().extra, 0);
    }
}

#[test]
fn an_unlistable_destination_is_sent_everything() {
    let mut merge = Merge::new();
    merge.assume_destination_empty();
    merge.push_source(page(&[1, 2], Some((2, true)))).unwrap();
    let mut found = Vec::new();
    assert_eq!(merge.advance(&mut found, 9), Need::Nothing);
    assert_eq!(found, [Finding::Missing(meta(1, 1)), Finding::Missing(meta(2, 1))]);
}

#[test]
fn every_wrong_listing_is_an_error_that_names_its_side() {
    let fault = |pages: &[EnumeratePage], side| {
        let mut merge = Merge::new();
        let (last, first) = pages.split_last().unwrap();
        for page in first {
            merge.push(side, page.clone()).unwrap();
        }
        let error: ListingError = merge.push(side, last.clone()).unwrap_err();
        assert_eq!(error.side, side);
        error.what
    };
    for side in [Side::Source, Side::Destination] {
        let (last, found) = (blob(5), blob(4));
        assert_eq!(fault(&[page(&[3, 5, 4], None)], side), ListingFault::OutOfOrder { last, found });
        assert_eq!(fault(&[page(&[5], None), page(&[4], None)], side), ListingFault::OutOfOrder { last, found });
        assert_eq!(fault(&[page(&[5, 5], None)], side), ListingFault::Duplicate(last));
        assert_eq!(fault(&[page(&[5], Some((1, false))), page(&[5], None)], side), ListingFault::Duplicate(last));
        let miscounted = ListingFault::Miscounted { stated: 3, found: 2 };
        assert_eq!(fault(&[page(&[1], None), page(&[2], Some((3, true)))], side), miscounted);
        assert_eq!(fault(&[page(&[], Some((0, false)))], side), ListingFault::NoProgress);
    }
    let mut merge = Merge::new();
    merge.push_destination(page(&[1, 2], None)).unwrap();
    let cut = merge.cut_short(Side::Destination);
    assert_eq!(cut.what, ListingFault::CutShort { found: 2 });
    assert!(cut.to_string().starts_with("the destination store's listing was cut short after 2 blobs"), "{cut}");
}

#[test]
fn a_wrong_page_leaves_nothing_behind() {
    let mut merge = Merge::new();
    merge.assume_destination_empty();
    merge.push_source(page(&[1, 3, 2], Some((3, true)))).unwrap_err();
    assert_eq!(merge.advance(&mut Vec::new(), 9), Need::Page(Side::Source));
    assert_eq!(merge.waiting(), 0);
}

#[test]
fn an_answer_to_what_was_not_asked_is_refused() {
    let mut merge = Merge::new();
    merge.ask_destination();
    merge.push_source(page(&[1, 2], None)).unwrap();
    let asked = merge.questions(10);
    let error = merge.answer(&asked, vec![meta(3, 1)]).unwrap_err();
    assert_eq!((error.side, error.what), (Side::Destination, ListingFault::NotAsked(blob(3))));
    let error = merge.answer(&asked, vec![meta(2, 1), meta(2, 1)]).unwrap_err();
    assert_eq!(error.what, ListingFault::Duplicate(blob(2)));
}

#[test]
fn a_cut_destination_does_not_pass_where_the_source_is_at_its_end() {
    let mut merge = Merge::new();
    merge.push_source(page(&[], Some((0, true)))).unwrap();
    merge.push_destination(page(&[7], None)).unwrap();
    assert_eq!(merge.advance(&mut Vec::new(), 9), Need::Page(Side::Destination));
}

#[test]
fn a_listing_goes_on_after_refs_of_unknown_functions() {
    let unknown = |text: &str, end| EnumeratePage {
        unknown: vec![("md5".to_owned(), 1)],
        last_unknown: Some(text.to_owned()),
        ..page(&[], end)
    };
    for side in [Side::Source, Side::Destination] {
        let mut merge = Merge::new();
        assert_eq!(merge.open(side), None);
        merge.push(side, unknown("md5-1", Some((0, false)))).unwrap();
        assert_eq!(merge.open(side).as_deref(), Some("md5-1"));
        merge.push(side, EnumeratePage { last_unknown: Some("md5-2".to_owned()), ..page(&[1], None) }).unwrap();
        merge.push(side, page(&[], Some((1, false)))).unwrap();
        assert_eq!(merge.open(side), Some(blob(1).to_string()));
        let before = merge.push(side, unknown("md5-2", Some((0, false)))).unwrap_err();
        assert_eq!(before.what, ListingFault::NoProgress);
        merge.push(side, unknown("zzz-1", Some((0, true)))).unwrap();
        assert!(merge.is_whole(side));
    }
}
