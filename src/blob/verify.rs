//! Digests over byte streams.

use super::{BlobRef, DigestFunction};
use sha2::Digest as _;
use std::fmt;

/// A running digest.
pub struct Hasher {
    function: DigestFunction,
    state: VerifierState,
}

enum VerifierState {
    Blake3(Box<blake3::Hasher>),
    Sha1(sha1::Sha1),
    Sha224(sha2::Sha224),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    /// An empty digest of this function.
    pub fn new(function: DigestFunction) -> Self {
        let state = match function {
            DigestFunction::Blake3 => VerifierState::Blake3(Box::default()),
            DigestFunction::Sha1 => VerifierState::Sha1(sha1::Sha1::new()),
            DigestFunction::Sha224 => VerifierState::Sha224(sha2::Sha224::new()),
            DigestFunction::Sha256 => VerifierState::Sha256(sha2::Sha256::new()),
            DigestFunction::Sha512 => VerifierState::Sha512(sha2::Sha512::new()),
        };
        Self { function, state }
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.state {
            VerifierState::Blake3(state) => {
                state.update(bytes);
            }
            VerifierState::Sha1(state) => state.update(bytes),
            VerifierState::Sha224(state) => state.update(bytes),
            VerifierState::Sha256(state) => state.update(bytes),
            VerifierState::Sha512(state) => state.update(bytes),
        }
    }

    /// The ref of all bytes taken.
    pub fn finish(self) -> BlobRef {
        fn new(function: DigestFunction, digest: &[u8]) -> BlobRef {
            let mut bytes = [0; super::MAX_DIGEST];
            bytes[..digest.len()].copy_from_slice(digest);
            BlobRef { function, digest: bytes }
        }
        match self.state {
            VerifierState::Blake3(state) => new(self.function, state.finalize().as_bytes()),
            VerifierState::Sha1(state) => new(self.function, &state.finalize()),
            VerifierState::Sha224(state) => new(self.function, &state.finalize()),
            VerifierState::Sha256(state) => new(self.function, &state.finalize()),
            VerifierState::Sha512(state) => new(self.function, &state.finalize()),
        }
    }
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("function", &self.function).finish_non_exhaustive()
    }
}

/// How received bytes differ from what was promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Mismatch {
    /// More bytes came than were stated.
    #[error("more than the stated {stated} bytes came")]
    TooLong {
        /// The size that was stated, in bytes.
        stated: u64,
    },
    /// The stream ended before the stated size.
    #[error("the stream ended after {received} of the stated {stated} bytes")]
    TooShort {
        /// The size that was stated, in bytes.
        stated: u64,
        /// The bytes that came.
        received: u64,
    },
    /// All bytes came, but their digest is another.
    #[error("the {received} bytes received have the digest {actual}, not {expected}")]
    Digest {
        /// The ref that was promised.
        expected: BlobRef,
        /// The ref of the bytes that came.
        actual: BlobRef,
        /// The bytes that came.
        received: u64,
    },
}

/// Checks a stream of bytes against a ref and, where it is known, a size.
#[derive(Debug)]
pub struct Verifier {
    expected: BlobRef,
    stated: Option<u64>,
    received: u64,
    hasher: Hasher,
}

impl Verifier {
    /// A check against this ref; `stated` is the size in bytes where it is known beforehand.
    pub fn new(expected: BlobRef, stated: Option<u64>) -> Self {
        Self { expected, stated, received: 0, hasher: Hasher::new(expected.function()) }
    }

    /// Takes the next bytes; fails as soon as there are more than were stated.
    pub fn update(&mut self, bytes: &[u8]) -> Result<(), Mismatch> {
        self.received += bytes.len() as u64;
        if let Some(stated) = self.stated
            && self.received > stated
        {
            return Err(Mismatch::TooLong { stated });
        }
        self.hasher.update(bytes);
        Ok(())
    }

    /// The number of bytes taken so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The verdict at the end of the stream: the blob's size in bytes, or how it differs.
    pub fn finish(self) -> Result<u64, Mismatch> {
        let received = self.received;
        if let Some(stated) = self.stated
            && received < stated
        {
            return Err(Mismatch::TooShort { stated, received });
        }
        let actual = self.hasher.finish();
        if actual == self.expected {
            Ok(received)
        } else {
            Err(Mismatch::Digest { expected: self.expected, actual, received })
        }
    }
}
