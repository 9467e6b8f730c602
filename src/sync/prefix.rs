//! Which prefixes a full sync takes.

/// The longest prefix, in characters.
pub(super) const MAX_PREFIX: usize = 256;

/// Whether this is ASCII, and not too long.
pub(super) fn is_valid(prefix: &str) -> bool {
    prefix.is_ascii() && prefix.len() <= MAX_PREFIX
}
