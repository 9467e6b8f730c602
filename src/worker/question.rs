//! Asks a source whether it still holds what was copied from it, before its word on other blobs is believed.

use super::judge::Permits;
use super::{Worker, streaks};
use crate::blob::{BlobMeta, BlobRef};
use crate::fault::FaultKind;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// How long the source may take to say what it still holds.
const ASK_TIMEOUT: Duration = Duration::from_secs(15);

/// Whether blobs that were copied earlier are still at the source.
pub(super) struct Question {
    /// The fault that raises it.
    pub(super) kind: FaultKind,
    /// What was said of the last blob.
    pub(super) message: String,
    /// The blobs to ask for.
    pub(super) sample: Vec<BlobMeta>,
    /// Held until the answer is there, which a probe is reported by.
    pub(super) permits: Arc<Permits>,
}

/// What a source said of the blobs that were copied earlier: whether they have vanished, if it said so.
pub(super) struct Answer {
    pub(super) question: Question,
    pub(super) vanished: Option<bool>,
}

/// Asks the source whether it still holds what was copied from it.
pub(super) async fn ask(worker: Arc<Worker>, question: Question) -> Answer {
    let refs: Vec<BlobRef> = question.sample.iter().map(|meta| meta.blob).collect();
    let vanished = match timeout(ASK_TIMEOUT, worker.spec.from.store().stat(&refs)).await {
        Ok(Ok(found)) => Some(streaks::have_vanished(&question.sample, &found)),
        Ok(Err(_)) | Err(_) => None,
    };
    Answer { question, vanished }
}
