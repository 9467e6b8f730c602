//! What stands between a replicator and a peer, and does to connections what networks and proxies do.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Passes bytes on, until told otherwise. Ends with its owner.
pub(crate) struct Proxy {
    url: String,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

struct Shared {
    /// The n-th connection goes to the n-th of these, all later ones to the last.
    targets: Vec<String>,
    connections: AtomicUsize,
    /// Pings of clients, their answers to pings left out.
    pings: AtomicUsize,
    /// A connection is cut when so many bytes have passed on it in one direction.
    cut_after: Option<usize>,
    /// Connections that were made before this change pass nothing on any more, and stay open.
    frozen: watch::Sender<usize>,
}

impl Proxy {
    pub(crate) async fn to(targets: &[&str]) -> Self {
        Self::start(targets, None).await
    }

    /// Cuts each connection after so many bytes in one direction.
    pub(crate) async fn cutting(target: &str, after: usize) -> Self {
        Self::start(&[target], Some(after)).await
    }

    async fn start(targets: &[&str], cut_after: Option<usize>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let targets = targets.iter().map(|url| url.trim_start_matches("http://").to_owned()).collect();
        let shared = Arc::new(Shared {
            targets,
            connections: AtomicUsize::new(0),
            pings: AtomicUsize::new(0),
            cut_after,
            frozen: watch::Sender::new(0),
        });
        let mut task = JoinSet::new();
        let accepting = shared.clone();
        task.spawn(async move {
            let mut passing = JoinSet::new();
            loop {
                let (client, _) = listener.accept().await.unwrap();
                passing.spawn(pass(client, accepting.clone()));
            }
        });
        Self { url, shared, _task: task }
    }

    pub(crate) fn url(&self) -> &str {
        &self.url
    }

    /// Connections so far.
    pub(crate) fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::Relaxed)
    }

    /// HTTP/2 pings that clients sent of their own accord so far.
    pub(crate) fn pings(&self) -> usize {
        self.shared.pings.load(Ordering::Relaxed)
    }

    /// All connections that are there pass nothing on any more, in either direction, and nobody is told.
    pub(crate) fn freeze(&self) {
        self.shared.frozen.send_modify(|count| *count += 1);
    }
}

async fn pass(client: TcpStream, shared: Arc<Shared>) {
    let number = shared.connections.fetch_add(1, Ordering::Relaxed);
    let mut frozen = shared.frozen.subscribe();
    let target = &shared.targets[number.min(shared.targets.len() - 1)];
    let Ok(server) = TcpStream::connect(target).await else { return };
    _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let cut_after = shared.cut_after.unwrap_or(usize::MAX);
    // What one end said last still reaches the other, where the way back is closed.
    let both = async {
        tokio::try_join!(
            copy(client_read, server_write, cut_after, Some(&shared.pings)),
            copy(server_read, client_write, cut_after, None)
        )
    };
    // Held also when it is frozen: what is dropped is closed, and both ends would hear of that.
    let mut both = std::pin::pin!(both);
    tokio::select! {
        _ = &mut both => {}
        _ = frozen.changed() => std::future::pending().await,
    }
}

/// It was cut.
struct Cut;

/// Copies until the end; a cut after so many bytes is an error.
async fn copy(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut left: usize,
    pings: Option<&AtomicUsize>,
) -> Result<(), Cut> {
    let mut buffer = vec![0; 64 << 10];
    let mut frames = Frames { skip: PREFACE_BYTES, head: Vec::new() };
    while let Ok(length) = from.read(&mut buffer).await {
        if let Some(pings) = pings {
            pings.fetch_add(frames.pings(&buffer[..length]), Ordering::Relaxed);
        }
        if length == 0 || to.write_all(&buffer[..length.min(left)]).await.is_err() {
            break;
        }
        left = left.checked_sub(length).filter(|left| *left > 0).ok_or(Cut)?;
    }
    _ = to.shutdown().await;
    Ok(())
}

/// The length of HTTP/2's client preface, and of a frame's head.
const PREFACE_BYTES: usize = 24;
const HEAD_BYTES: usize = 9;

/// The frames of a connection, as far as they came.
struct Frames {
    /// Bytes that are looked at no further.
    skip: usize,
    head: Vec<u8>,
}

impl Frames {
    /// How many of the frames that begin in these bytes are pings, and no answers to pings.
    fn pings(&mut self, mut bytes: &[u8]) -> usize {
        let mut pings = 0;
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let taken = (HEAD_BYTES - self.head.len()).min(bytes.len());
            self.head.extend_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let [high, middle, low, kind, flags, ..] = *self.head.as_slice()
                && self.head.len() == HEAD_BYTES
            {
                pings += usize::from(kind == 6 && flags & 1 == 0);
                self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                self.head.clear();
            }
        }
        pings
    }
}
