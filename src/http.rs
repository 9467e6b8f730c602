//! The HTTP port: probes, and the status for those that speak no gRPC. Thin: look, and answer.
//!
//! | path | answer |
//! |---|---|
//! | `/` | a page that names the others |
//! | `/livez` | 200 while the process answers |
//! | `/readyz` | 200 while announcements can be made durable, 503 and why otherwise; as the health of `BlobReceiverService` |
//! | `/status.json` | what `Status` answers for all routes, in the JSON form of protobuf |
//! | `/metrics` | figures for Prometheus: classic text, or OpenMetrics where `Accept` asks for it |
//!
//! A store has `/`, `/livez`, `/readyz` and `/metrics`.
//!
//! Other paths are 404, other methods than GET and HEAD 405. Nothing can be changed here, and nobody is asked who they are:
//! like the gRPC port it belongs on a network that one trusts.

mod metrics;
mod server;
mod store;

pub(crate) use metrics::MetricsParts;
pub(crate) use server::serve;
pub(crate) use store::{StoreParts, store_routes};

use crate::metrics::Format;
use crate::pb::to_json;
use crate::service::status_message;
use crate::status::Observer;
use axum::Router;
use axum::extract::State;
use axum::http::header::{ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, VARY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::middleware::map_response;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics::Scraper;
use std::sync::Arc;

/// What a browser may load for our pages: what comes from here.
const POLICY: HeaderValue = HeaderValue::from_static("default-src 'self'");

/// Plain text.
const TEXT: &str = "text/plain; charset=utf-8";

/// What the pages show.
struct Pages {
    observer: Arc<Observer>,
    scraper: Scraper,
}

/// The pages of a replicator.
pub(crate) fn routes(parts: MetricsParts) -> Router {
    let observer = parts.observer.clone();
    let pages = Arc::new(Pages { observer, scraper: Scraper::new(parts) });
    let router = Router::new()
        .route("/", get(index))
        .route("/livez", get(live))
        .route("/readyz", get(ready))
        .route("/status.json", get(status))
        .route("/metrics", get(scrape));
    framed(router).with_state(pages)
}

/// What is the same on every HTTP port.
fn framed<S: Clone + Send + Sync + 'static>(router: Router<S>) -> Router<S> {
    router.fallback(unknown).layer(map_response(guarded))
}

async fn index() -> Response {
    answer(StatusCode::OK, "text/html; charset=utf-8", include_str!("http/index.html"))
}

async fn live() -> Response {
    answer(StatusCode::OK, TEXT, "live\n")
}

async fn ready(State(pages): State<Arc<Pages>>) -> Response {
    ready_answer(pages.observer.refusal())
}

fn ready_answer(refusal: Option<String>) -> Response {
    match refusal {
        None => answer(StatusCode::OK, TEXT, "ready\n"),
        Some(why) => answer(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("not ready: {why}\n")),
    }
}

async fn status(State(pages): State<Arc<Pages>>) -> Response {
    let message = status_message(&pages.observer.picture(&[]).await);
    match to_json("ReplicatorStatus", &message) {
        Ok(json) => answer(StatusCode::OK, "application/json", format!("{json:#}\n")),
        Err(error) => {
            tracing::error!(%error, "the status cannot be shown as JSON");
            answer(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{error}\n"))
        }
    }
}

async fn scrape(State(pages): State<Arc<Pages>>, headers: HeaderMap) -> Response {
    let format = accepted(&headers);
    metrics_answer(format, pages.scraper.scrape(format).await)
}

/// The format that a scraper wants. Several headers of one name are one list.
fn accepted(headers: &HeaderMap) -> Format {
    let accept: Vec<&str> = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    Format::accepted(&accept.join(","))
}

fn metrics_answer(format: Format, text: String) -> Response {
    let mut response = answer(StatusCode::OK, format.content_type(), text);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

async fn unknown() -> Response {
    answer(StatusCode::NOT_FOUND, TEXT, "not found; / names what is here\n")
}

fn answer(status: StatusCode, kind: &'static str, body: impl IntoResponse) -> Response {
    (status, [(CONTENT_TYPE, kind)], body).into_response()
}

/// What every answer says, errors too.
async fn guarded(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CONTENT_SECURITY_POLICY, POLICY);
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
