//! blobferry keeps one content-addressed blob store an exact, verified, asynchronous copy of another.
//!
//! It is a gRPC service between a source and a destination store. It keeps no blob: what it keeps is a queue of refs that still
//! have to be copied, and it takes a ref off the queue only when the destination has confirmed the blob. What it promises, and
//! how it is run, stands in README.md and `docs/`; ARCHITECTURE.md draws the picture.
//!
//! # As a library
//!
//! With `default-features = false` and the feature `client` a program gets the protocol's types ([`v1`]), refs and digests
//! ([`blob`]), and the [`client`] of stores and replicators; neither RocksDB nor anything else that only a server needs. The
//! feature `server`, which is the default, is the program. Whatever else is public is for its own tests.
//!
//! # One blob's way through
//!
//! 1. `service` takes the announcement, `announce` finds its routes, and one durable `queue::Queue::push` writes an entry
//!    for each. Only then is it answered.
//! 2. A `worker` claims the entry, and has `copy` stream the blob from the one `store::Store` to the other, through a
//!    `blob::Verifier`.
//! 3. `queue::Queue::settle` takes the entry off, when the destination's answer is what was sent. What failed is weighed,
//!    tried again, and in the end parked; only the queue retries.
//!
//! A full sync (`sync`) is another way in: it compares the two stores and pushes what is missing. Nothing else starts a copy.
//!
//! # Layers
//!
//! Each layer stands on the one before it. ARCHITECTURE.md has the order within them, and a test holds every file to it.
//!
//! - **Foundations**: words and decisions that all others share ([`blob`], `fault`, `backoff`, `breaker`,
//!   `concurrency`, `limits`, `config`, `metrics`, the wire types of `pb`), and the few ways to the machine that every
//!   layer may need (`clock`, `failpoint`, `telemetry`).
//! - **Ports**: the traits `store::Store` and `queue::Queue`, what they promise, the suites that hold implementations to it,
//!   and the implementations: disk, memory and remote stores, the queue in RocksDB. `grpc` has channels, the server, and
//!   the one table of errors.
//! - **Work**: `worker`, `copy`, `sync`, `announce`, `peer`, `overrides`, `status` and `story`.
//! - **Surfaces**: `service`, `store_server` and `http`: decode, call, encode.
//! - **Assembly**: `app` builds all of it and runs it; `cli` is the commands, [`client`] what they speak through, and
//!   `demo` the whole in one process.
//!
//! # Where to begin
//!
//! A module's header is its design: invariants, what lies on disk, what a crash leaves. `queue` and `store` say what must
//! hold, `worker` how a copy is decided on, `fault` what an error says and of whom. What decides is plain synchronous code,
//! with its tests beside it; what does I/O sits behind a trait.

#![cfg_attr(
    not(feature = "server"),
    allow(
        dead_code,
        unreachable_pub,
        unused_imports,
        reason = "the server uses the rest of what it shares with the client"
    )
)]

// Layer: foundations
mod backoff;
pub mod blob;
#[cfg(feature = "server")]
mod breaker;
mod clock;
#[cfg(feature = "server")]
mod concurrency;
#[cfg(feature = "server")]
mod config;
#[cfg(feature = "server")]
mod descriptors;
mod failpoint;
#[cfg(feature = "server")]
mod fault;
#[cfg(feature = "server")]
mod folder;
#[cfg(feature = "server")]
mod limits;
#[cfg(feature = "server")]
mod metrics;
mod pb;
mod telemetry;
mod words;
// Layer: ports
mod grpc;
#[cfg(feature = "server")]
mod queue;
mod store;
// Layer: work
#[cfg(feature = "server")]
mod announce;
#[cfg(feature = "server")]
mod copy;
#[cfg(feature = "server")]
mod overrides;
#[cfg(feature = "server")]
mod peer;
#[cfg(feature = "server")]
mod status;
#[cfg(feature = "server")]
mod story;
#[cfg(feature = "server")]
mod sync;
#[cfg(feature = "server")]
mod worker;
// Layer: surfaces
#[cfg(feature = "server")]
mod http;
#[cfg(feature = "server")]
mod service;
#[cfg(feature = "server")]
mod store_server;
// Layer: assembly
#[cfg(feature = "server")]
mod app;
#[cfg(feature = "server")]
pub mod cli;
pub mod client;
#[cfg(feature = "server")]
mod demo;

#[cfg(feature = "server")]
#[doc(hidden)]
pub mod internal;

pub use pb::v1;
