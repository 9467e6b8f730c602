//! Bounds of an enumeration: from text to keys.
//!
//! A range is stated in any text and compared with the text of refs; stores are sorted by [`BlobRef::to_key`](crate::blob::BlobRef::to_key). One function
//! translates: a text is a cut through all refs, those up to and with it on one side, those after it on the other, and
//! [`first_after`] gives the key at which the other side begins. It is the inclusive lower end of a range `after` that text,
//! and the exclusive upper end of a range `until` it.

use super::EnumerateRange;
use crate::blob::DigestFunction;

/// Greater than every key.
const PAST_ALL: &[u8] = &[0xff];

/// The keys of a range: from the first, inclusive, to the second, exclusive. Empty where they do not ascend.
pub(super) fn keys_of(range: &EnumerateRange) -> (Vec<u8>, Vec<u8>) {
    let from = if range.after.is_empty() { Vec::new() } else { first_after(&range.after) };
    let to = if range.until.is_empty() { PAST_ALL.to_vec() } else { first_after(&range.until) };
    (from, to)
}

/// The least bytes such that the keys at or above them are those of the refs whose text is greater than this one.
fn first_after(text: &str) -> Vec<u8> {
    let text = text.as_bytes();
    for function in DigestFunction::ALL {
        let mut key = function.name().as_bytes().to_vec();
        key.push(b'-');
        if let Some(rest) = text.strip_prefix(key.as_slice()) {
            return within(key, rest, 2 * function.digest_len());
        }
        // The text ends, or differs, within the name: it lies wholly before or wholly after this function's refs.
        if text < key.as_slice() {
            return key;
        }
    }
    PAST_ALL.to_vec()
}

/// As [`first_after`], for a text that begins with a function's name and `-` (both are in `key`) and goes on with `rest`;
/// `digits` is the number of hex digits of a whole digest.
fn within(mut key: Vec<u8>, rest: &[u8], digits: usize) -> Vec<u8> {
    let mut nibbles: Vec<u8> = rest.iter().take(digits).map_while(|byte| nibble(*byte)).collect();
    if nibbles.len() == digits {
        // A whole ref, perhaps with more behind it: the first after it is the next key.
        key.extend(packed(&nibbles));
        key.push(0);
        return key;
    }
    if let Some(odd) = rest.get(nibbles.len()) {
        // Not a digit: refs that go on with a lower digit come before the text, those with a higher one after it.
        match b"0123456789abcdef".iter().find(|digit| *digit > odd).and_then(|digit| nibble(*digit)) {
            Some(next) => nibbles.push(next),
            None => {
                // All refs that begin with these digits come before the text: count one up.
                while nibbles.last() == Some(&15) {
                    nibbles.pop();
                }
                match nibbles.last_mut() {
                    Some(last) => *last += 1,
                    None => {
                        // So do all refs of the function; `.` follows `-`, and no name is the beginning of another.
                        key.pop();
                        key.push(b'.');
                    }
                }
            }
        }
    }
    key.extend(packed(&nibbles));
    key
}

/// The digits as bytes; an odd one is the upper half of the last byte.
fn packed(nibbles: &[u8]) -> impl Iterator<Item = u8> {
    nibbles.chunks(2).map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(0))
}

fn nibble(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{EnumerateRange, keys_of};
    use crate::blob::{BlobRef, DigestFunction};
    use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};
    use std::collections::BTreeMap;

    fn refs() -> impl Strategy<Value = BlobRef> {
        // Few distinct bytes, so that digests share long beginnings with each other and with bounds.
        let byte = || prop_oneof![Just(0u8), Just(0xff), Just(0x0f), Just(0xf0), Just(0x9a), Just(0xab), any::<u8>()];
        let digest = proptest::collection::vec(byte(), 64);
        (0usize..5, digest).prop_map(|(function, digest)| {
            let function = DigestFunction::ALL[function];
            BlobRef::new(function, &digest[..function.digest_len()]).unwrap()
        })
    }

    fn texts() -> impl Strategy<Value = String> {
        let whole = || refs().prop_map(|blob| blob.to_string());
        prop_oneof![
            Just(String::new()),
            "[ -~]{1,12}",
            "(blake3|sha|sha1|sha2|sha224|sha256|sha512|t)(-|)[ -~]{0,6}",
            "(blake3|sha1|sha224|sha256|sha512)-[0-9a-fA-F]{0,8}[ -~]{0,2}",
            whole(),
            (whole(), 0usize..140).prop_map(|(text, cut)| text[..cut.min(text.len())].to_owned()),
            (whole(), 0usize..140, "[ -~]")
                .prop_map(|(text, cut, more)| text[..cut.min(text.len())].to_owned() + &more),
            whole().prop_map(|text| text.to_uppercase()),
            (whole(), "[ -~]{1,3}").prop_map(|(text, more)| text + &more),
        ]
    }

    proptest! {
        #[test]
        fn key_ranges_select_what_a_map_sorted_by_text_selects(
            blobs in proptest::collection::vec(refs(), 0..40),
            after in texts(),
            until in texts(),
            pick in any::<(usize, usize)>(),
        ) {
            // Half of the time a bound is one of the refs.
            let of = |text: String, pick: usize| match blobs.get(pick % (2 * blobs.len() + 1)) {
                Some(blob) => blob.to_string(),
                None => text,
            };
            let (after, until) = (of(after, pick.0), of(until, pick.1));
            let model: BTreeMap<String, BlobRef> = blobs.iter().map(|blob| (blob.to_string(), *blob)).collect();
            let expected: Vec<String> = model
                .keys()
                .filter(|text| (after.is_empty() || **text > after) && (until.is_empty() || **text <= until))
                .cloned()
                .collect();

            let (from, to) = keys_of(&EnumerateRange { after, until, limit: None });
            let keys: BTreeMap<Vec<u8>, BlobRef> = blobs.iter().map(|blob| (blob.to_key(), *blob)).collect();
            let found: Vec<String> = keys
                .iter()
                .filter(|(key, _)| **key >= from && **key < to)
                .map(|(_, blob)| blob.to_string())
                .collect();
            prop_assert_eq!(found, expected);
        }
    }
}
