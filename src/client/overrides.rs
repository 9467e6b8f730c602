//! The operator's hand on routes and stores.

use super::{ClientError, Replicator, request};
use crate::pb::v1;

impl Replicator {
    /// Pauses a route.
    ///
    /// # Errors
    /// See [`ClientError`]; so for all methods.
    pub async fn pause_route(&mut self, message: v1::PauseRouteRequest) -> Result<v1::PauseRouteResponse, ClientError> {
        let answer = self.client.pause_route(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }

    /// Ends a pause.
    pub async fn resume_route(
        &mut self,
        message: v1::ResumeRouteRequest,
    ) -> Result<v1::ResumeRouteResponse, ClientError> {
        let answer = self.client.resume_route(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }

    /// Overrides limits of a route, or takes overrides back.
    pub async fn update_route(
        &mut self,
        message: v1::UpdateRouteRequest,
    ) -> Result<v1::UpdateRouteResponse, ClientError> {
        let answer = self.client.update_route(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }

    /// Takes another store for the one that was known under a name.
    pub async fn adopt_store(&mut self, message: v1::AdoptStoreRequest) -> Result<v1::AdoptStoreResponse, ClientError> {
        let answer = self.client.adopt_store(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }

    /// Deletes entries of an orphaned route, as many as one call takes; `remaining_entries` tells whether there are more.
    pub async fn drop_route(&mut self, message: v1::DropRouteRequest) -> Result<v1::DropRouteResponse, ClientError> {
        let answer = self.client.drop_route(request(message)).await.map_err(|s| self.error(&s))?;
        Ok(answer.into_inner())
    }
}
