//! The worker of a route: claims entries, has them copied, settles them. Nothing else starts a copy; only the queue retries.
//!
//! ```text
//! queue  ─▶ ┌──────────────────── driver ─────────────────────┐
//! copies ─▶ │ event ──▶ scheduler.apply(event, now) ──▶ effects │ ─▶ claim, start, settle, identify, ask
//! peers  ─▶ └─────────────────────────────────────────────────┘
//! ```
//!
//! - `scheduler` decides everything, in one synchronous step: what is claimed and started next, and what follows from the end
//!   of a copy. `attribution` says whose fault a failure is, the peers' own state (`peer::state`) whether and how wide they
//!   are used.
//! - `driver` waits and acts, and decides nothing. `transfer` makes one copy.
//! - `simulation` steps the same scheduler through hours of trouble in virtual time, for tests.
//!
//! Wake-ups are hints: a lost one costs a poll interval. Limits are read live; they never touch a copy in flight.

mod attribution;
mod driver;
mod pace;
mod report;
mod route;
mod scheduler;
#[cfg(test)]
mod simulation;
mod traced;
mod transfer;

pub(crate) use attribution::{Streak, charged};
pub(crate) use pace::{Wait, Waits};
pub(crate) use report::{Activity, ErrorGroup, InProgress, Report};
pub(crate) use route::{Deps, NextHop, Policy, RouteSpec, Worker};

#[cfg(test)]
mod tests;
