//! Integration tests: one binary that drives the real program.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends with a panic")]

mod architecture;
mod bounds;
mod commands;
mod connections;
mod dead_letters;
mod deploy;
mod descriptors;
#[path = "../bench/diskfull/cycles.rs"]
mod diskfull;
mod docs;
mod durability;
mod failpoints;
mod failures;
mod faults;
mod figures;
mod first_hour;
mod foreign;
mod go;
mod harness;
mod http;
mod liars;
mod main_job;
mod media;
mod metrics;
mod outages;
mod overrides;
mod packs;
#[path = "../bench/powerloss/cycles.rs"]
mod powerloss;
mod proxy;
mod readme;
mod refusals;
mod rolling;
mod rust_client;
mod stdout;
mod story;
#[allow(dead_code, reason = "the benchmarks use the rest of it")]
#[path = "../bench/support/mod.rs"]
mod support;
mod surroundings;
mod tls;
mod traces;
mod yesterday;
