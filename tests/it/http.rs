//! The HTTP port of the real program.

use crate::harness::{Server, World, announce, blob, program, replication, until};
use blobferry::internal::failpoint;
use rustix::process::Signal;
use std::collections::BTreeMap;
use std::process::Command;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Stores that nobody listens at.
const NOWHERE: [(&str, &str); 2] = [("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2")];

/// An answer; names of headers are in small letters.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// Asks the HTTP port of a server.
pub(crate) async fn ask(server: &Server, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    let mut stream = TcpStream::connect(server.http()).await.unwrap();
    let mut request = format!("{method} {path} HTTP/1.1\r\nhost: test\r\nconnection: close\r\n");
    for (name, value) in headers {
        request.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{request}\r\n").as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.lines();
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers = lines.map(|line| line.split_once(": ").unwrap());
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect();
    Answer { status, headers, body: body.to_owned() }
}

/// Gets a page that must be there.
pub(crate) async fn page(server: &Server, path: &str) -> String {
    let answer = ask(server, "GET", path, &[]).await;
    assert_eq!(answer.status, 200, "{path}: {answer:?}");
    answer.body
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pages_are_there_and_nothing_else_is() {
    let world = World::new();
    let server = world.replicator(&NOWHERE, &[("a", "b")]);
    let index = page(&server, "/").await;
    for path in ["/livez", "/readyz", "/status.json"] {
        assert!(index.contains(&format!("href=\"{path}\"")), "{index}");
        let answer = ask(&server, "GET", path, &[]).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let headers = &answer.headers;
        assert_eq!(headers["content-security-policy"], "default-src 'self'");
        assert_eq!((&*headers["x-content-type-options"], &*headers["cache-control"]), ("nosniff", "no-store"));
        let head = ask(&server, "HEAD", path, &[]).await;
        assert_eq!((head.status, &*head.body), (200, ""), "{path}");
        for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
            let refused = ask(&server, method, path, &[]).await;
            assert_eq!(refused.status, 405, "{method} {path}: {refused:?}");
            assert_eq!(refused.headers["allow"], "GET,HEAD");
        }
    }
    for path in ["/nothing", "/livez/", "/metricsx", "/../etc/passwd", "//"] {
        let answer = ask(&server, "GET", path, &[]).await;
        assert_eq!(answer.status, 404, "{path}: {answer:?}");
        assert_eq!(answer.headers["content-security-policy"], "default-src 'self'");
    }
}

/// The picture over HTTP is the one that the command prints, but for what changes with time.
#[tokio::test(flavor = "multi_thread")]
async fn the_status_is_that_of_the_command() {
    let world = World::new();
    let server = world.replicator(&NOWHERE, &[("a", "b")]);
    let (blob, _) = blob(1, 10);
    announce(&mut replication(&server).await, "", &[blob]).await.unwrap();
    let output = Command::new(program()).args(["status", "--json", "--replicator", &server.url()]).output().unwrap();
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let seen: serde_json::Value = serde_json::from_str(&page(&server, "/status.json").await).unwrap();
    for key in ["version", "startTime"] {
        assert_eq!(seen[key], told[key], "{key}");
    }
    for key in ["name", "from", "to", "allTime", "limits"] {
        assert_eq!(seen["routes"][0][key], told["routes"][0][key], "{key}");
    }
    assert_eq!(seen["queue"]["entries"], "1");
}

#[tokio::test(flavor = "multi_thread")]
async fn readiness_turns_while_the_queue_cannot_write_and_comes_back() {
    let world = World::new();
    let mut server = world.replicator(&NOWHERE, &[("a", "b")]);
    assert_eq!(page(&server, "/readyz").await, "ready\n");
    // At the first start there are writes that must not fail.
    server.kill();
    assert!(server.ended_starting(&[(failpoint::VARIABLE, "queue.push.ask=5*error")]).is_none(), "{}", server.said());
    assert_eq!(page(&server, "/readyz").await, "ready\n");
    let mut operator = replication(&server).await;
    let (blob, _) = blob(1, 10);
    announce(&mut operator, "", &[blob]).await.unwrap_err();
    let answer = ask(&server, "GET", "/readyz", &[]).await;
    assert_eq!(answer.status, 503, "{answer:?}");
    assert!(answer.body.starts_with("not ready: queue failing: "), "{answer:?}");
    assert_eq!(page(&server, "/livez").await, "live\n");
    until("it is ready again", async || (ask(&server, "GET", "/readyz", &[]).await.status == 200).then_some(())).await;
    announce(&mut operator, "", &[blob]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn without_an_address_there_is_no_port() {
    let world = World::new();
    let mut server = world.replicator(&NOWHERE, &[("a", "b")]);
    server.signal(Signal::TERM);
    assert!(server.wait().success(), "{}", server.said());
    assert!(server.ended_starting(&[("BLOBFERRY__SERVER__HTTP_LISTEN", "")]).is_none(), "{}", server.said());
    assert_eq!(server.http, None);
    // The two ports are told apart.
    server.kill();
    let taken = server.address.clone();
    let status = server.ended_starting(&[("BLOBFERRY__SERVER__HTTP_LISTEN", &taken)]).unwrap();
    assert_eq!(status.code(), Some(2), "{}", server.said());
    assert!(server.said().contains("server.http_listen: is where gRPC listens"), "{}", server.said());
}
