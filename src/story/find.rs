//! Which blob is meant by the beginning of its ref: one that is queued or remembered, or that a store holds.

use super::ask::beginning_with;
use super::{Story, StoryError};
use crate::blob::{BlobRef, RefPrefix};
use futures::future::join_all;
use std::collections::BTreeSet;

/// Refs that are shown where one was meant.
const SHOWN: usize = 3;

impl Story {
    /// The blob whose ref begins so. `ask_stores`: what the stores hold counts, too.
    ///
    /// # Errors
    /// If there is none, or more than one, or somebody else seeks one, or the queue cannot be read.
    pub(crate) async fn find(&self, prefix: &RefPrefix, ask_stores: bool) -> Result<BlobRef, StoryError> {
        let parts = &self.parts;
        let routes = parts.routes.all().iter().chain(&parts.orphans).map(|route| route.id).collect();
        let queued = parts.lookup.find(routes, prefix.clone(), SHOWN);
        let held = async {
            let peers = parts.peers.iter().filter(|_| ask_stores);
            join_all(peers.map(async |(store, peer)| (store, beginning_with(peer, prefix, SHOWN).await))).await
        };
        let (queued, held) = tokio::join!(queued, held);
        let mut found: BTreeSet<BlobRef> = queued?.ok_or(StoryError::TooBusy)?;
        let mut unasked = Vec::new();
        for (store, held) in held {
            match held {
                Some(blobs) => found.extend(blobs),
                None => unasked.push(store.as_str()),
            }
        }
        let mut blobs = found.iter();
        match (blobs.next(), blobs.len()) {
            (Some(blob), 0) => Ok(*blob),
            (Some(_), _) => {
                let shown: Vec<String> = found.iter().take(SHOWN).map(ToString::to_string).collect();
                Err(StoryError::AmbiguousRef { prefix: prefix.clone(), found: shown.join(", ") })
            }
            (None, _) if unasked.is_empty() => {
                Err(StoryError::NoSuchRef { prefix: prefix.clone(), unasked: String::new() })
            }
            (None, _) => {
                let unasked = format!("; these could not list theirs: {}", unasked.join(", "));
                Err(StoryError::NoSuchRef { prefix: prefix.clone(), unasked })
            }
        }
    }
}
