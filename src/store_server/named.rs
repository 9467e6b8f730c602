//! Every answer of a store says which store gives it, so that no caller takes another one's word for this one's.

use super::ServedStore;
use crate::grpc::STORE_ID;
use http::{HeaderValue, Request, Response};
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::body::Body;
use tonic::server::NamedService;
use tower::Service;

/// A service of a store, with the store's id in the metadata of its answers.
#[derive(Clone)]
pub(super) struct Named<S> {
    service: S,
    store: Arc<ServedStore>,
}

impl<S> Named<S> {
    pub(super) fn new(service: S, store: Arc<ServedStore>) -> Self {
        Self { service, store }
    }
}

impl ServedStore {
    /// The store's id; `None` where it has none, or cannot say now.
    async fn id(&self) -> Option<HeaderValue> {
        let id = self.id.get_or_try_init(|| async {
            let info = self.info().await.map_err(drop)?;
            Ok::<_, ()>(info.store_id.as_deref().and_then(|id| HeaderValue::from_str(id).ok()))
        });
        id.await.ok()?.clone()
    }
}

impl<S: NamedService> NamedService for Named<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<Request<Body>> for Named<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.service.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let answering = self.service.call(request);
        let store = self.store.clone();
        Box::pin(async move {
            let mut answer = answering.await?;
            if let Some(id) = store.id().await {
                answer.headers_mut().insert(STORE_ID, id);
            }
            Ok(answer)
        })
    }
}
