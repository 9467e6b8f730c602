//! Asks stores what they hold: many blobs at a time, within a time. Only a peer that its breaker would let copies use is
//! asked, and what comes of it is told to no breaker.

use crate::blob::{BlobRef, RefPrefix};
use crate::peer::{Peer, PeerSnapshot};
use crate::store::{EnumerateRange, StoreError};
use futures::StreamExt as _;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long a store may take to answer people.
pub(super) const ASK_WITHIN: Duration = Duration::from_secs(3);

/// Whether a store holds a blob right now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holding {
    /// It does, of this size in bytes.
    Yes(u64),
    /// It does not.
    No,
    /// It could not be asked, or did not answer.
    Unknown {
        /// Why, for people.
        why: String,
        /// Whether asking again is of no use: the store cannot be asked at all.
        for_good: bool,
    },
}

/// Which of these the store holds.
pub(super) async fn ask(peer: Option<&Arc<Peer>>, store: &str, blobs: &[BlobRef], within: Duration) -> Vec<Holding> {
    let unknown = |why: String, for_good: bool| vec![Holding::Unknown { why, for_good }; blobs.len()];
    let Some(peer) = peer else {
        return unknown(format!("the store {store} belongs to no configured route"), true);
    };
    match timeout(within, held(peer, blobs)).await {
        Err(_) => unknown(format!("{store} did not answer within {} ms", within.as_millis()), false),
        Ok(Err(Unanswered::Never)) => unknown(format!("{store} cannot be asked: it offers no stat"), true),
        Ok(Err(Unanswered::Breaker)) => unknown(closed_door(&peer.snapshot()), false),
        Ok(Err(Unanswered::Failed(error))) => unknown(format!("{store} did not answer: {error}"), false),
        Ok(Ok(sizes)) => {
            let held = blobs.iter().map(|blob| sizes.get(blob).map_or(Holding::No, |size| Holding::Yes(*size)));
            held.collect()
        }
    }
}

/// Some refs of those that the store holds and that begin so; `None` where it did not list them, in time or at all.
pub(super) async fn beginning_with(peer: &Arc<Peer>, prefix: &RefPrefix, most: usize) -> Option<Vec<BlobRef>> {
    let range = EnumerateRange { limit: Some(most as u64), ..EnumerateRange::beginning_with(prefix.as_str()) };
    let listed = async {
        if !peer.identified().await || peer.info().is_some_and(|info| !info.abilities.enumerate) {
            return None;
        }
        let mut pages = peer.store().enumerate(range).await.ok()?;
        let mut blobs = Vec::new();
        while let Some(page) = pages.next().await {
            blobs.extend(page.ok()?.blobs.into_iter().map(|meta| meta.blob).filter(|blob| prefix.matches(blob)));
        }
        Some(blobs)
    };
    timeout(ASK_WITHIN, listed).await.ok().flatten()
}

enum Unanswered {
    Never,
    Breaker,
    Failed(StoreError),
}

async fn held(peer: &Arc<Peer>, blobs: &[BlobRef]) -> Result<HashMap<BlobRef, u64>, Unanswered> {
    // It must be known who answers there.
    if !peer.identified().await {
        return Err(Unanswered::Breaker);
    }
    if peer.info().is_some_and(|info| !info.abilities.stat) {
        return Err(Unanswered::Never);
    }
    match peer.store().stat(blobs).await {
        Ok(found) => Ok(found.into_iter().map(|meta| (meta.blob, meta.size)).collect()),
        Err(StoreError::Unsupported(_)) => Err(Unanswered::Never),
        Err(error) => Err(Unanswered::Failed(error)),
    }
}

fn closed_door(peer: &PeerSnapshot) -> String {
    let open = peer.reason.as_ref().map(|reason| format!("its breaker is open ({}: {})", reason.kind, reason.message));
    let away = || peer.last_error.as_ref().map(|(reason, _)| format!("it does not say what it is: {}", reason.message));
    let why = open.or_else(away).unwrap_or_else(|| "it does not say what it is".to_owned());
    format!("{} was not asked: {why}", peer.name)
}
