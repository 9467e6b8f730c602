//! Integration tests: one binary.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends with a panic")]

mod architecture;
