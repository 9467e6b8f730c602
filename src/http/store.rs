//! The pages of the reference store: `/livez`, `/readyz`, `/metrics`, and one that names them.

use super::metrics::store_metrics;
use super::{TEXT, accepted, answer, framed, live, metrics_answer, ready_answer};
use crate::metrics::CallMetrics;
use crate::telemetry::Tracer;
use axum::Router;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use axum::routing::get;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What they show.
#[derive(Clone)]
pub(crate) struct StoreParts {
    /// The gRPC server's calls.
    pub calls: Arc<CallMetrics>,
    /// Counts the spans.
    pub tracer: Tracer,
    /// Cancelled when the store can write no more.
    pub ended: CancellationToken,
    /// Why the store cannot write now, if it cannot.
    pub trouble: watch::Receiver<Option<String>>,
    /// Cancelled when the drain begins.
    pub draining: CancellationToken,
}

impl StoreParts {
    fn refusal(&self) -> Option<String> {
        match (self.draining.is_cancelled(), self.ended.is_cancelled()) {
            (true, _) => Some("draining: the store shuts down".to_owned()),
            (false, true) => Some("its writer has ended".to_owned()),
            (false, false) => self.trouble.borrow().clone(),
        }
    }
}

/// The pages of a store.
pub(crate) fn store_routes(parts: StoreParts) -> Router {
    let router = Router::new()
        .route("/", get(index))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/metrics", get(scrape));
    framed(router).with_state(Arc::new(parts))
}

async fn index() -> Response {
    answer(StatusCode::OK, "text/html; charset=utf-8", include_str!("store.html"))
}

async fn ready(State(parts): State<Arc<StoreParts>>) -> Response {
    ready_answer(parts.refusal())
}

async fn scrape(State(parts): State<Arc<StoreParts>>, headers: HeaderMap) -> Response {
    let format = accepted(&headers);
    // The figures of the process are read from files, if only the kernel's.
    let written = tokio::task::spawn_blocking(move || {
        store_metrics(format, parts.refusal().is_none(), &parts.calls, parts.tracer.tally())
    });
    match written.await {
        Ok(text) => metrics_answer(format, text),
        Err(error) => {
            tracing::error!(%error, "the metrics cannot be written");
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, "the metrics cannot be written\n")
        }
    }
}
