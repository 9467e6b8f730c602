//! What a connection is told that is not served: HTTP/2's own word for "later", so that clients of any language know why, and
//! that nothing of their calls was begun.

use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// Connections that are being refused, at most.
pub(super) const REFUSALS: usize = 16;

/// How long one may take to take the refusal, and to close.
const PATIENCE: Duration = Duration::from_secs(1);

/// What is said, for people.
const WHY: &[u8] = b"as many connections as are served at a time (server.max_connections, or the limit of open files)";

/// ENHANCE_YOUR_CALM, which gRPC takes for RESOURCE_EXHAUSTED.
const CODE: [u8; 4] = [0, 0, 0, 0xb];

/// Empty settings, with which a server begins; and GOAWAY, of no stream.
fn frames() -> Vec<u8> {
    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    const GOAWAY: u8 = 7;
    const NO_STREAM: [u8; 4] = [0; 4];
    let [.., high, low] = (NO_STREAM.len() + CODE.len() + WHY.len()).to_be_bytes();
    let head = [0, high, low, GOAWAY, 0, 0, 0, 0, 0];
    [&SETTINGS[..], &head, &NO_STREAM, &CODE, WHY].concat()
}

/// Says so on a connection, and closes it.
pub(super) async fn refuse(mut stream: TcpStream) {
    let said = async {
        stream.write_all(&frames()).await?;
        stream.shutdown().await?;
        // Closed with bytes that nobody has read, it would be reset, and the refusal might be lost with it.
        let mut rest = [0; 1024];
        while stream.read(&mut rest).await? > 0 {}
        Ok::<_, std::io::Error>(())
    };
    // Whoever went away needs no word.
    drop(timeout(PATIENCE, said).await);
}
