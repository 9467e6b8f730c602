//! What failed, as an operator asks for it.

use super::{ClientError, Replicator, request};
use crate::pb::v1;

impl Replicator {
    /// A page of the entries that failed.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all methods.
    pub async fn list_failures(
        &mut self,
        message: v1::ListFailuresRequest,
    ) -> Result<v1::ListFailuresResponse, ClientError> {
        let answer = self.client.list_failures(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }

    /// Makes failed entries due now, as many as one call takes; `next_page_token` tells whether there are more.
    pub async fn retry_failures(
        &mut self,
        message: v1::RetryFailuresRequest,
    ) -> Result<v1::RetryFailuresResponse, ClientError> {
        let answer = self.client.retry_failures(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }

    /// Removes failed entries, as many as one call takes; `next_page_token` tells whether there are more.
    pub async fn discard_failures(
        &mut self,
        message: v1::DiscardFailuresRequest,
    ) -> Result<v1::DiscardFailuresResponse, ClientError> {
        let answer = self.client.discard_failures(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }
}
