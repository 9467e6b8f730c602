//! The beginning of a ref, for people who would not copy all of it.

use super::{BlobRef, DIGITS, DigestFunction};
use std::fmt;

/// The beginning of a ref: the function and some of the digest's digits, such as `sha256-2cf24dba`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RefPrefix {
    function: DigestFunction,
    text: String,
}

impl RefPrefix {
    /// The fewest digits of the digest.
    pub const LEAST_DIGITS: usize = 8;

    /// The prefix that a text is; `None` where it is too short for one, a whole ref, or no beginning of any.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, digits) = text.split_once('-')?;
        let function = DigestFunction::from_name(name)?;
        let is_long_enough = (Self::LEAST_DIGITS..2 * function.digest_len()).contains(&digits.len());
        let are_digits = digits.bytes().all(|byte| DIGITS[usize::from(byte)] < 16);
        (is_long_enough && are_digits).then(|| Self { function, text: text.to_owned() })
    }

    /// As it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Whether a ref begins so.
    pub fn matches(&self, blob: &BlobRef) -> bool {
        blob.function() == self.function && blob.to_string().starts_with(&self.text)
    }

    /// What the [keys](BlobRef::to_key) of those refs begin with, and of a few more where the number of digits is odd.
    pub fn key(&self) -> Vec<u8> {
        let name = self.function.name();
        let digits = &self.text.as_bytes()[name.len() + 1..];
        let bytes = digits.chunks_exact(2).map(|pair| DIGITS[usize::from(pair[0])] << 4 | DIGITS[usize::from(pair[1])]);
        name.bytes().chain([b'-']).chain(bytes).collect()
    }
}

impl fmt::Display for RefPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::RefPrefix;
    use crate::blob::DigestFunction;

    #[test]
    fn a_prefix_names_its_function_and_eight_digits_or_more_but_not_all() {
        let blob = DigestFunction::Sha256.ref_of(b"hello");
        let text = blob.to_string();
        for length in "sha256-12345678".len()..text.len() {
            let prefix = RefPrefix::parse(&text[..length]).unwrap();
            assert!(prefix.matches(&blob) && blob.to_key().starts_with(&prefix.key()), "{prefix}");
            assert!(!prefix.matches(&DigestFunction::Sha256.ref_of(b"hallo")));
        }
        // A digest of another function may begin with the same digits.
        let other = format!("sha1-{}", &text["sha256-".len()..][..8]);
        assert!(!RefPrefix::parse(&other).unwrap().matches(&blob));
        for wrong in ["", "sha256", "sha256-1234567", "sha256-1234567G", "sha256-1234567A", "md5-12345678", &text] {
            assert_eq!(RefPrefix::parse(wrong), None, "{wrong}");
        }
    }
}
