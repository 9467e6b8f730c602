//! What became of a blob, as producers and operators ask for it.

use super::{ClientError, Replicator, request};
use crate::pb::{self, v1};
use std::time::Duration;
use tonic::Request;

/// How much longer than the wait itself the answer may take.
const BEYOND_WAIT: Duration = Duration::from_secs(30);

impl Replicator {
    /// Waits until blobs are confirmed, once: for `max_wait` at most, of which the server takes up to an hour.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all methods.
    pub async fn wait_replicated(
        &mut self,
        message: v1::WaitReplicatedRequest,
        max_wait: Duration,
    ) -> Result<v1::WaitReplicatedResponse, ClientError> {
        let message = v1::WaitReplicatedRequest { max_wait: Some(pb::duration(max_wait)), ..message };
        let mut request = Request::new(message);
        request.set_timeout(max_wait + BEYOND_WAIT);
        let answer = self.client.wait_replicated(request).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }

    /// One blob's story.
    pub async fn explain_blob(
        &mut self,
        message: v1::ExplainBlobRequest,
    ) -> Result<v1::ExplainBlobResponse, ClientError> {
        let answer = self.client.explain_blob(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }
}
