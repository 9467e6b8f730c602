//! blobferry keeps one content-addressed blob store an exact, verified, asynchronous copy of another.
//!
//! ARCHITECTURE.md draws the floors that these modules stand on, and one blob's way through them.

// Floor 0: foundations
pub mod backoff;
pub mod blob;
pub mod breaker;
pub mod clock;
pub mod concurrency;
pub mod config;
mod descriptors;
pub mod failpoint;
pub mod fault;
mod folder;
pub mod limits;
pub mod metrics;
pub mod pb;
pub mod telemetry;
mod words;
// Floor 1: ports
pub mod grpc;
pub mod queue;
pub mod store;
// Floor 2: work
pub mod announce;
pub mod copy;
pub mod overrides;
pub mod peer;
pub mod status;
pub mod story;
pub mod sync;
pub mod worker;
// Floor 3: surfaces
pub mod http;
pub mod service;
pub mod store_server;
// Floor 4: assembly
pub mod app;
pub mod cli;
pub mod client;
pub mod demo;
