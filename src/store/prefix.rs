//! From a prefix to the bounds of an enumeration.

use super::EnumerateRange;

impl EnumerateRange {
    /// The range that holds exactly the refs that begin with an ASCII prefix, which may itself be a whole ref. No `~` and
    /// nothing beyond it in ASCII stands in a ref, so that `~` behind a text comes after all refs that begin with the text.
    pub fn beginning_with(prefix: &str) -> Self {
        let Some((at, last)) = prefix.char_indices().next_back() else {
            return Self::default();
        };
        // The lower bound is exclusive, and the prefix may be a ref that is wanted: it is the end of all that begins with the
        // text before the prefix's, one lower in its last character. Where that is NUL, nothing lies between the prefix and
        // what precedes that character.
        let mut after = prefix[..at].to_owned();
        if let Some(lower) = u32::from(last).checked_sub(1).and_then(char::from_u32) {
            after.extend([lower, '~']);
        }
        Self { after, until: format!("{prefix}~"), limit: None }
    }
}

#[cfg(test)]
mod tests {
    use crate::blob::{BlobRef, DigestFunction};
    use crate::store::EnumerateRange;
    use proptest::prelude::{Just, Strategy, any, prop_assert_eq, prop_oneof, proptest};

    #[test]
    fn no_prefix_is_everything() {
        assert_eq!(EnumerateRange::beginning_with(""), EnumerateRange::default());
    }

    proptest! {
        #[test]
        fn the_range_holds_what_begins_with_the_prefix(
            function in 0..5usize,
            digest in proptest::collection::vec(prop_oneof![Just(0u8), Just(0xff), Just(0x9a), any::<u8>()], 64),
            cut in 0..136usize,
            last in prop_oneof![Just(None), "[ -~\\x00\\x01\\x7f0-9a-f]".prop_map(Some)],
            other in "([a-z0-9]{1,6}-[0-9a-f]{0,3}|sha256-[0-9a-f]{0,2})",
        ) {
            let function = DigestFunction::ALL[function];
            let Some(blob) = BlobRef::new(function, &digest[..function.digest_len()]) else { unreachable!() };
            let text = blob.to_string();
            let mut prefix = text[..cut.min(text.len())].to_owned();
            if let Some(last) = last {
                prefix.pop();
                prefix += &last;
            }
            let EnumerateRange { after, until, .. } = EnumerateRange::beginning_with(&prefix);
            for text in [text, other] {
                let within = text > after && (until.is_empty() || text <= until);
                prop_assert_eq!(within, text.starts_with(&prefix), "{} {:?}", text, prefix);
            }
        }
    }
}
