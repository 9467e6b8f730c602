//! A link: passes TCP on, later, and no faster than it can.
//!
//! Each direction is a link of its own, which all connections share: what comes in waits until the link has sent what was
//! taken before it, and comes out half a round trip after it was sent. A connection is read only as fast as it is sent, and
//! holds no more than is on its way, so that a sender feels the link as it would feel a slow wire. Nothing is lost, and
//! nothing is reordered. It is a process of its own, so that it takes no time from what is measured inside others.

use crate::support::process::Process;
use anyhow::{Context as _, Result};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

/// Bytes taken from a connection at a time: its turn on the link.
const TURN: usize = 64 << 10;
/// How far the link may make up for time in which nobody sent: timers are no finer than a millisecond.
const BURST: Duration = Duration::from_millis(5);
/// Bytes that a direction of a connection may hold beside those that are on their way.
const SLACK: u64 = 1 << 20;

/// The link. Started by the benchmark itself.
#[derive(clap::Args)]
#[command(hide = true)]
pub(crate) struct Proxy {
    /// `host:port`.
    to: String,
    /// There and back.
    #[arg(long, value_parser = humantime::parse_duration)]
    delay: Duration,
    /// In each direction.
    #[arg(long)]
    bytes_per_second: u64,
}

/// A link to this server.
pub(crate) fn start(dir: &Path, to: &Process, delay: Duration, bytes_per_second: u64) -> Result<Process> {
    let (delay, rate) = (humantime::format_duration(delay).to_string(), bytes_per_second.to_string());
    let args = ["proxy", &to.address, "--delay", &delay, "--bytes-per-second", &rate];
    Process::start(&std::env::current_exe()?, &args, &dir.join("proxy.log"))
}

impl Proxy {
    /// Passes connections on until standard input ends.
    pub(crate) async fn run(self) -> Result<()> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("http://{}", listener.local_addr()?);
        let links = [(); 2].map(|()| Arc::new(Link::new(self.delay / 2, self.bytes_per_second)));
        let mut stdin = tokio::io::stdin();
        let mut nothing = Vec::new();
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = listener.accept() => {
                    let (to, links) = (self.to.clone(), links.clone());
                    connections.spawn(async move {
                        // A connection that breaks is for both ends to notice.
                        if let Err(error) = connect(accepted?.0, &to, links).await {
                            eprintln!("a connection broke: {error:#}");
                        }
                        anyhow::Ok(())
                    });
                }
                Some(done) = connections.join_next() => done??,
                ended = stdin.read_to_end(&mut nothing) => {
                    ended?;
                    return Ok(());
                }
            }
        }
    }
}

async fn connect(client: TcpStream, to: &str, [there, back]: [Arc<Link>; 2]) -> Result<()> {
    let server = TcpStream::connect(to).await.context("connecting")?;
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let ((from_client, to_client), (from_server, to_server)) = (client.into_split(), server.into_split());
    tokio::try_join!(pass(from_client, to_server, &there), pass(from_server, to_client, &back))?;
    Ok(())
}

/// One direction of one connection, to its end.
async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, link: &Link) -> Result<()> {
    let mut on_the_way: VecDeque<(Instant, Vec<u8>)> = VecDeque::new();
    let mut held = 0;
    let mut free = Instant::now();
    let mut buffer = vec![0; TURN];
    let mut ended = false;
    loop {
        let due = on_the_way.front().map(|(due, _)| *due);
        if ended && due.is_none() {
            to.shutdown().await?;
            return Ok(());
        }
        let next = async {
            sleep_until(free).await;
            from.read(&mut buffer).await
        };
        tokio::select! {
            () = sleep_until(due.unwrap_or(free)), if due.is_some() => {
                if let Some((_, bytes)) = on_the_way.pop_front() {
                    held -= bytes.len() as u64;
                    to.write_all(&bytes).await?;
                }
            }
            read = next, if !ended && held < link.holds => {
                let len = read?;
                ended = len == 0;
                if len > 0 {
                    let sent = link.send(len);
                    free = sent.checked_sub(BURST).unwrap_or(sent);
                    held += len as u64;
                    on_the_way.push_back((sent + link.delay, buffer[..len].to_vec()));
                }
            }
        }
    }
}

/// One direction, shared by all connections.
struct Link {
    delay: Duration,
    bytes_per_second: u64,
    /// Bytes that a connection may have on the way.
    holds: u64,
    /// When it has sent all that it took.
    free: Mutex<Instant>,
}

impl Link {
    fn new(delay: Duration, bytes_per_second: u64) -> Self {
        let on_the_way = u128::from(bytes_per_second) * delay.as_micros() / 1_000_000;
        let holds = u64::try_from(on_the_way).unwrap_or(u64::MAX).saturating_add(SLACK);
        Self { delay, bytes_per_second, holds, free: Mutex::new(Instant::now()) }
    }

    /// Takes so many bytes; when the last of them is sent.
    fn send(&self, bytes: usize) -> Instant {
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let mut free = self.free.lock();
        let now = Instant::now();
        *free = (*free).max(now.checked_sub(BURST).unwrap_or(now)) + takes;
        *free
    }
}
