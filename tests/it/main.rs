//! Integration tests: one binary that drives the real program.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends with a panic")]

mod architecture;
mod commands;
mod durability;
mod failures;
mod foreign;
mod harness;
mod liars;
mod main_job;
mod outages;
mod refusals;
