//! Blobs and their refs: names that prove the bytes.
//!
//! A **ref** is `<function>-<lowercase hex digest>`. Its text order is the order of everything that is sorted here:
//! enumerations, merges, keys. [`BlobRef::to_key`] gives bytes that sort exactly like the text (function name, `-`, digest
//! bytes), at half the length.

mod prefix;
mod verify;

pub use prefix::RefPrefix;
pub use verify::{Hasher, Mismatch, Verifier};

use std::cmp::Ordering;
use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

/// The longest digest, that of SHA-512, in bytes.
const MAX_DIGEST: usize = 64;

/// A digest function that a ref can be typed with.
///
/// Variants stand in the order of their names, so that the derived order is the text order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DigestFunction {
    /// BLAKE3, 32 bytes.
    Blake3,
    /// SHA-1, 20 bytes; only for refs that exist already (Perkeep's oldest).
    Sha1,
    /// SHA-224, 28 bytes (Perkeep's refs).
    Sha224,
    /// SHA-256, 32 bytes; the default.
    Sha256,
    /// SHA-512, 64 bytes.
    Sha512,
}

impl DigestFunction {
    /// Every function, in text order.
    pub const ALL: [DigestFunction; 5] = [Self::Blake3, Self::Sha1, Self::Sha224, Self::Sha256, Self::Sha512];

    /// The name as it stands in refs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Blake3 => "blake3",
            Self::Sha1 => "sha1",
            Self::Sha224 => "sha224",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The length of a digest, in bytes.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha224 => 28,
            Self::Blake3 | Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }

    /// The function of this name, if it is one.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|function| function.name() == name)
    }

    /// The ref of these bytes.
    pub fn ref_of(self, bytes: &[u8]) -> BlobRef {
        let mut hasher = Hasher::new(self);
        hasher.update(bytes);
        hasher.finish()
    }
}

impl fmt::Display for DigestFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The name of a blob: a digest function and the digest of the blob's bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct BlobRef {
    function: DigestFunction,
    // Bytes behind the digest's length are zero.
    digest: [u8; MAX_DIGEST],
}

impl BlobRef {
    /// A ref from its parts; `None` unless the digest has exactly the function's length.
    pub fn new(function: DigestFunction, digest: &[u8]) -> Option<Self> {
        if digest.len() != function.digest_len() {
            return None;
        }
        let mut bytes = [0; MAX_DIGEST];
        bytes[..digest.len()].copy_from_slice(digest);
        Some(Self { function, digest: bytes })
    }

    /// The digest function.
    pub const fn function(&self) -> DigestFunction {
        self.function
    }

    /// The digest's bytes.
    pub fn digest(&self) -> &[u8] {
        &self.digest[..self.function.digest_len()]
    }

    /// Bytes that sort as the text does: function name, `-`, digest.
    pub fn to_key(&self) -> Vec<u8> {
        let mut key = Vec::with_capacity(self.key_len());
        self.put_key(&mut key);
        key
    }

    /// Appends [`to_key`](Self::to_key)'s bytes to a buffer.
    pub fn put_key(&self, key: &mut Vec<u8>) {
        key.extend_from_slice(self.function.name().as_bytes());
        key.push(b'-');
        key.extend_from_slice(self.digest());
    }

    /// How many bytes [`to_key`](Self::to_key) gives.
    pub const fn key_len(&self) -> usize {
        self.function.name().len() + 1 + self.function.digest_len()
    }

    /// The ref whose [`to_key`](Self::to_key) gives these bytes, if there is one.
    pub fn from_key(key: &[u8]) -> Option<Self> {
        let dash = key.iter().position(|byte| *byte == b'-')?;
        let name = std::str::from_utf8(&key[..dash]).ok()?;
        Self::new(DigestFunction::from_name(name)?, &key[dash + 1..])
    }
}

impl Hash for BlobRef {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        // Of two refs with this many equal bytes, nearly always, the rest is equal too.
        state.write(&self.digest[..16]);
    }
}

impl Ord for BlobRef {
    fn cmp(&self, other: &Self) -> Ordering {
        // No function's name followed by `-` is a prefix of another's, and hex keeps the order of bytes.
        self.function.cmp(&other.function).then_with(|| self.digest.cmp(&other.digest))
    }
}

impl PartialOrd for BlobRef {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for BlobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let name = self.function.name().as_bytes();
        let mut text = [0u8; 7 + 2 * MAX_DIGEST];
        text[..name.len()].copy_from_slice(name);
        text[name.len()] = b'-';
        let mut at = name.len() + 1;
        for byte in self.digest() {
            text[at] = HEX[usize::from(byte >> 4)];
            text[at + 1] = HEX[usize::from(byte & 15)];
            at += 2;
        }
        f.pad(std::str::from_utf8(&text[..at]).map_err(|_| fmt::Error)?)
    }
}

impl fmt::Debug for BlobRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a text is not a ref. The message never repeats more than a short, escaped piece of the text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RefError {
    /// Nothing was given.
    #[error("the ref is empty; expected <function>-<lowercase hex digest>, such as sha256-9f86d0…")]
    Empty,
    /// There is no `-` that ends a function's name.
    #[error("{0} is not a ref; expected <function>-<lowercase hex digest>, such as sha256-9f86d0…")]
    Untyped(Excerpt),
    /// The digest function is not known here.
    #[error("unknown digest function {0}; known are blake3, sha1, sha224, sha256, sha512 (lower case)")]
    UnknownFunction(Excerpt),
    /// The digest has the wrong number of digits.
    #[error("a {function} digest has {expected} hex digits, not {found}")]
    WrongLength {
        /// The function named by the ref.
        function: DigestFunction,
        /// Hex digits that this function's digests have.
        expected: usize,
        /// Bytes of text found in their place.
        found: usize,
    },
    /// The digest has a character other than `0-9` and `a-f`.
    #[error(
        "a digest is written in the digits 0-9 and the lower-case letters a-f; its character {position} is {found}"
    )]
    NotLowercaseHex {
        /// Where it stands in the digest, counted from 1.
        position: usize,
        /// The character.
        found: Excerpt,
    },
}

/// A short, escaped piece of foreign text, safe to show in a message or a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Excerpt(String);

impl Excerpt {
    /// At most this many characters are kept.
    const LEN: usize = 32;

    /// The beginning of a text, quoted and escaped.
    pub fn of(text: &str) -> Self {
        let cut: String = text.chars().take(Self::LEN).collect();
        let more = if cut.len() < text.len() { "…" } else { "" };
        Self(format!("{cut:?}{more}"))
    }
}

impl fmt::Display for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Excerpt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What each byte is as a digit of lowercase hex; 255 where it is none. Every message names refs, so they are read by table.
const DIGITS: [u8; 256] = {
    let mut digits = [u8::MAX; 256];
    let mut digit = 0;
    while digit < 16 {
        digits[b"0123456789abcdef"[digit as usize] as usize] = digit;
        digit += 1;
    }
    digits
};

impl FromStr for BlobRef {
    type Err = RefError;

    fn from_str(text: &str) -> Result<Self, RefError> {
        if text.is_empty() {
            return Err(RefError::Empty);
        }
        let Some((name, hex)) = text.split_once('-') else {
            return Err(RefError::Untyped(Excerpt::of(text)));
        };
        let Some(function) = DigestFunction::from_name(name) else {
            return Err(RefError::UnknownFunction(Excerpt::of(name)));
        };
        let expected = 2 * function.digest_len();
        if hex.len() != expected {
            return Err(RefError::WrongLength { function, expected, found: hex.len() });
        }
        let mut digest = [0; MAX_DIGEST];
        let mut all = 0;
        for (byte, pair) in digest.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            let (high, low) = (DIGITS[usize::from(pair[0])], DIGITS[usize::from(pair[1])]);
            all |= high | low;
            *byte = high << 4 | low & 15;
        }
        if all < 16 {
            return Ok(Self { function, digest });
        }
        let position = hex.bytes().position(|byte| DIGITS[usize::from(byte)] > 15).unwrap_or(hex.len());
        let found = hex.get(position..).and_then(|rest| rest.chars().next());
        let found = Excerpt::of(&found.unwrap_or(char::REPLACEMENT_CHARACTER).to_string());
        Err(RefError::NotLowercaseHex { position: position + 1, found })
    }
}

/// A blob that a store holds: its ref and its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlobMeta {
    /// The blob's name.
    pub blob: BlobRef,
    /// The blob's size in bytes.
    pub size: u64,
}

#[cfg(test)]
mod tests;
