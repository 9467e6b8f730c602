//! The status, again and again, until the server drains.

use super::{ServiceParts, announce_status, encode};
use crate::announce::AnnounceError;
use crate::pb::v1;
use std::sync::Arc;
use std::time::Duration;
use tonic::Status;

/// A `WatchStatus` in progress.
pub(super) struct StatusWatch {
    parts: Arc<ServiceParts>,
    names: Vec<String>,
    interval: Duration,
    next: Next,
}

enum Next {
    Picture,
    Wait,
    Goodbye,
    Nothing,
}

impl StatusWatch {
    /// Watches these routes; none: all.
    pub(super) fn new(parts: Arc<ServiceParts>, names: Vec<String>, interval: Duration) -> Self {
        Self { parts, names, interval, next: Next::Picture }
    }

    pub(super) async fn next(&mut self) -> Option<Result<v1::WatchStatusResponse, Status>> {
        if matches!(self.next, Next::Wait) {
            tokio::select! {
                () = tokio::time::sleep(self.interval) => {}
                () = self.parts.draining.cancelled() => {}
            }
        }
        match self.next {
            Next::Picture | Next::Wait => {
                // The last picture shows the drain.
                self.next = if self.parts.draining.is_cancelled() { Next::Goodbye } else { Next::Wait };
                let status = encode::replicator(&self.parts.observer.picture(&self.names).await);
                Some(Ok(v1::WatchStatusResponse { status: Some(status) }))
            }
            Next::Goodbye => {
                self.next = Next::Nothing;
                Some(Err(announce_status(&AnnounceError::ShuttingDown)))
            }
            Next::Nothing => None,
        }
    }
}
