//! Is this a good store? The rules of the [store port](super), checked one by one against any implementation, also a
//! remote one.
//!
//! The suite writes blobs of random content (some 20 MB) and deletes nothing. It may run against a store that holds other
//! blobs and is being written to: what it lists is a narrow part of all refs, and of that it judges only its own blobs. A
//! rule about an ability that the store does not state is skipped.

mod enumerate;
mod lab;
mod packed;
mod read;
mod receive;

use super::{PeerKind, Store, StoreError};
use crate::clock::Entropy;
use futures::future::BoxFuture;
use lab::{Lab, RuleVerdict};
use std::fmt;
use std::time::Duration;

/// A rule that takes longer has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// How one rule came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CheckResult {
    /// The rule's stable name, such as `receive.wrong_bytes`.
    pub name: &'static str,
    /// The rule, in a line.
    pub description: &'static str,
    /// How it came out.
    pub outcome: RuleOutcome,
}

/// How a rule came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum RuleOutcome {
    /// The store keeps the rule.
    Passed,
    /// The store breaks the rule; how.
    Failed(String),
    /// The rule does not apply; why.
    Skipped(String),
}

impl fmt::Display for CheckResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, description, outcome } = self;
        match outcome {
            RuleOutcome::Passed => write!(f, "passed   {name}: {description}"),
            RuleOutcome::Failed(how) => write!(f, "FAILED   {name}: {description}: {how}"),
            RuleOutcome::Skipped(why) => write!(f, "skipped  {name}: {description} ({why})"),
        }
    }
}

/// A rule and how to check it.
#[derive(Clone, Copy)]
struct StoreRule {
    name: &'static str,
    description: &'static str,
    run: for<'a> fn(&'a Lab<'a>) -> BoxFuture<'a, RuleVerdict>,
}

const INFO: (&str, &str) = ("info", "the store tells what it is, and the same twice");

/// Checks every rule in turn, with content by `entropy`. `report` hears each result as soon as it is there; all of them come
/// back in order.
pub(crate) async fn run(
    store: &dyn Store,
    entropy: &Entropy,
    mut report: impl FnMut(&CheckResult),
) -> Vec<CheckResult> {
    let mut results = Vec::new();
    let mut add = |(name, description), outcome| {
        let result = CheckResult { name, description, outcome };
        report(&result);
        results.push(result);
    };
    let lab = match patiently(info(store, entropy)).await {
        Ok(lab) => {
            add(INFO, RuleOutcome::Passed);
            Some(lab)
        }
        Err(outcome) => {
            add(INFO, outcome);
            None
        }
    };
    for check in [receive::CHECKS, packed::CHECKS, read::CHECKS, enumerate::CHECKS].concat() {
        let outcome = match &lab {
            Some(lab) => patiently((check.run)(lab)).await.err().unwrap_or(RuleOutcome::Passed),
            None => RuleOutcome::Skipped("the store does not tell what it is".to_owned()),
        };
        add((check.name, check.description), outcome);
    }
    results
}

async fn patiently<T>(check: impl Future<Output = Result<T, RuleOutcome>>) -> Result<T, RuleOutcome> {
    let late = |_| RuleOutcome::Failed(format!("no end within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, check).await.map_err(late)?
}

async fn info<'a>(store: &'a dyn Store, entropy: &'a Entropy) -> Result<Lab<'a>, RuleOutcome> {
    let broken = |error: StoreError| RuleOutcome::Failed(error.to_string());
    let info = store.info().await.map_err(broken)?;
    let problem = if info != store.info().await.map_err(broken)? {
        "asked twice, it tells two different things"
    } else if info.functions.is_empty() {
        "it takes no digest function at all"
    } else if info.functions.iter().enumerate().any(|(at, function)| info.functions[..at].contains(function)) {
        "it names a digest function twice"
    } else if info.max_blob_bytes.is_some_and(|limit| limit < 1024) {
        "it takes not even blobs of 1 KiB"
    } else if info.store_id.as_ref().is_some_and(String::is_empty) {
        "its store id is empty; leave it out where there is none"
    } else if info.kind == PeerKind::Replicator {
        "it is a replicator, which holds nothing; this suite is for stores"
    } else if info.kind == PeerKind::ReceiveOnly && info.abilities.fetch {
        "it is receive-only, and yet offers fetch"
    } else {
        return Ok(Lab { store, entropy, info });
    };
    Err(RuleOutcome::Failed(problem.to_owned()))
}

/// Whether the store says that it does not hold the blob.
pub(crate) fn is_missing(error: &StoreError) -> bool {
    match error {
        StoreError::Missing(_) => true,
        StoreError::Peer(peer) => peer.code == tonic::Code::NotFound && peer.reason.is_some(),
        _ => false,
    }
}

/// Whether the store says that the request makes no sense.
fn is_invalid(error: &StoreError) -> bool {
    match error {
        StoreError::Invalid(_) => true,
        StoreError::Peer(peer) => matches!(peer.code, tonic::Code::InvalidArgument | tonic::Code::OutOfRange),
        _ => false,
    }
}

/// For tests: runs the suite and panics unless every rule passed; nothing may be skipped either.
#[cfg(test)]
pub(crate) async fn assert_passes(store: &dyn Store) {
    let results = run(store, &Entropy::from_os(), |_| ()).await;
    let bad: Vec<String> =
        results.iter().filter(|result| result.outcome != RuleOutcome::Passed).map(ToString::to_string).collect();
    assert!(bad.is_empty(), "{}", bad.join("\n"));
}

#[cfg(test)]
mod tests;
