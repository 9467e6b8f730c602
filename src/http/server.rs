//! The server of the HTTP port. Bind outside, run inside.
//!
//! It is there for probes, scrapers and browsers within the cluster, so it is small and stays so: few connections at a time,
//! headers within a deadline, and an end to every connection, whatever its client does or does not do. hyper is driven
//! directly, because axum's own server has none of these.

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// Connections at a time, at most. Further ones wait in the kernel's queue.
const MAX_CONNECTIONS: usize = 128;

/// How long a client may take to send a request's header; also how long it may leave a connection idle between requests.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

/// The largest header of a request, in bytes; a larger one is answered with 431.
const MAX_HEADER_BYTES: usize = 64 << 10;

/// The age from which a connection takes no further request.
const MAX_AGE: Duration = Duration::from_secs(300);

/// How long the last answer on a connection may take to be read, once the connection is to end.
const LAST_ANSWER: Duration = Duration::from_secs(2);

/// How long to wait after a connection could not be accepted: too many open files do not go away by trying harder.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` is cancelled. Requests in progress are answered then; connections whose clients do not take the
/// answer are cut two seconds later. Dropping the future cuts all at once.
pub(crate) async fn serve(listener: TcpListener, routes: Router, shutdown: CancellationToken) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropped with this future, and with it every connection.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            Some(ended) = connections.join_next() => note(ended),
            accepted = accept(&listener, &permits) => {
                if let Some((stream, permit)) = accepted {
                    connections.spawn(connection(stream, routes.clone(), shutdown.clone(), permit));
                }
            }
        }
    }
    drop(listener);
    // Each has a deadline of its own.
    while let Some(ended) = connections.join_next().await {
        note(ended);
    }
}

/// The next connection. May be dropped at any time.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    // It is never closed.
    let permit = permits.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            tracing::warn!(%error, "an HTTP connection could not be accepted");
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

async fn connection(stream: TcpStream, routes: Router, shutdown: CancellationToken, _permit: OwnedSemaphorePermit) {
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).max_buf_size(MAX_HEADER_BYTES);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes)));
    let served = tokio::select! {
        served = serving.as_mut() => served,
        () = async { tokio::select! { () = shutdown.cancelled() => {}, () = sleep(MAX_AGE) => {} } } => {
            serving.as_mut().graceful_shutdown();
            timeout(LAST_ANSWER, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = served {
        tracing::debug!(%error, "an HTTP connection ended");
    }
}

fn note(ended: Result<(), JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an HTTP connection's task failed");
    }
}

#[cfg(test)]
mod tests {
    use super::{MAX_CONNECTIONS, serve};
    use axum::Router;
    use axum::routing::get;
    use std::net::SocketAddr;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::JoinSet;
    use tokio_util::sync::CancellationToken;

    /// More than fits into any socket's buffers.
    const LARGE: usize = 64 << 20;

    async fn start() -> (SocketAddr, CancellationToken, JoinSet<()>) {
        let routes = Router::new()
            .route("/", get(async || "here"))
            .route("/large", get(async || vec![b'x'; LARGE]))
            .route("/broken", get(async || -> &'static str { panic!("as the test wants it") }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let mut serving = JoinSet::new();
        serving.spawn(serve(listener, routes, stop.clone()));
        (address, stop, serving)
    }

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A connection whose handler panicked is reset.
        drop(stream.read_to_end(&mut answer).await);
        String::from_utf8(answer).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_send_no_whole_header_are_cut_and_make_room() {
        let (address, _stop, _serving) = start().await;
        let mut slow = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(b"GET / HTTP/1.1\r\nhost: te").await.unwrap();
            slow.push(stream);
        }
        assert!(ask(address, "/").await.ends_with("here"));
        for mut stream in slow {
            // Cut: with an end, or with an error, and without an answer of success.
            let mut said = Vec::new();
            drop(stream.read_to_end(&mut said).await);
            assert!(!said.starts_with(b"HTTP/1.1 200"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_does_not_hold_up_the_end() {
        let (address, stop, mut serving) = start().await;
        let mut stuck = TcpStream::connect(address).await.unwrap();
        stuck.write_all(b"GET /large HTTP/1.1\r\nhost: test\r\n\r\n").await.unwrap();
        let mut first = [0; 16];
        stuck.read_exact(&mut first).await.unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        stop.cancel();
        serving.join_next().await.unwrap().unwrap();
        drop(idle.read(&mut first).await);
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }

    #[tokio::test]
    async fn a_panic_ends_one_connection_only() {
        let (address, _stop, _serving) = start().await;
        assert_eq!(ask(address, "/broken").await, "");
        assert!(ask(address, "/").await.starts_with("HTTP/1.1 200"));
    }
}
