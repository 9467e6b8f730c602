//! How much may be sent on one stream before it is read.
//!
//! Nobody can send faster than this much in a round trip. h2 gives room back when half of it was read, so that about three
//! quarters are on their way at a time: [`FAR`] carries 120 MB/s on four streams where a round trip takes 100 ms. Between
//! neighbours that much only lies around, and leaves the processor's caches before it is read: with [`NEAR`] four blobs at a
//! time pass on loopback 1.13 times as fast, for 0.85 of the replicator's CPU; with half of that no faster.
//!
//! So large blobs travel on connections of their own to peers that answer quickly, with the smaller window. A client offers
//! its window when it connects, and our servers offer the same in return.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The window of a large blob's stream between neighbours, in bytes.
pub(super) const NEAR: u32 = 1 << 20;

/// The window of every other stream, in bytes.
pub(super) const FAR: u32 = 4 << 20;

/// A peer that answers within this time is a neighbour: 150 MB/s pass on a stream, or more.
const NEAR_ROUND_TRIP: Duration = Duration::from_millis(5);

/// The fastest of so many answers tells a peer's distance, or of the last as many: other work delays most of them.
const ANSWERS: u64 = 8;

/// How far away a peer is, from the times that its answers took. One that never answered is far away.
#[derive(Debug)]
pub(super) struct Distance {
    /// The fastest answer of late, and before that, in nanoseconds.
    latest: AtomicU64,
    before: AtomicU64,
    answers: AtomicU64,
}

impl Default for Distance {
    fn default() -> Self {
        Self { latest: AtomicU64::new(u64::MAX), before: AtomicU64::new(u64::MAX), answers: AtomicU64::new(0) }
    }
}

impl Distance {
    /// It answered something small, after this time.
    pub(super) fn answered(&self, took: Duration) {
        if self.answers.fetch_add(1, Ordering::Relaxed) % ANSWERS == ANSWERS - 1 {
            self.before.store(self.latest.swap(u64::MAX, Ordering::Relaxed), Ordering::Relaxed);
        }
        self.latest.fetch_min(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    pub(super) fn is_near(&self) -> bool {
        let fastest = self.latest.load(Ordering::Relaxed).min(self.before.load(Ordering::Relaxed));
        u128::from(fastest) < NEAR_ROUND_TRIP.as_nanos()
    }
}

/// What begins an HTTP/2 connection: the preface, and the head of a frame of settings for the connection.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;
const SETTING: usize = 6;
const INITIAL_WINDOW_SIZE: u16 = 4;

/// How long a client's settings may follow its preface, and how often they are looked for: h2 sends them apart.
const SETTINGS_TIMEOUT: Duration = Duration::from_millis(100);
const SETTINGS_PAUSE: Duration = Duration::from_millis(1);

/// Waits for a client's first bytes, and says which window to offer it. Nothing is read.
pub(super) async fn to_offer(stream: &TcpStream) -> io::Result<u32> {
    // A preface and all settings that there are.
    let mut bytes = [0; 256];
    let mut length = stream.peek(&mut bytes).await?;
    let began = Instant::now();
    loop {
        match beginning(&bytes[..length]) {
            Beginning::Settings(settings) if window_in(settings) == Some(NEAR) => return Ok(NEAR),
            Beginning::Cut if began.elapsed() < SETTINGS_TIMEOUT => {}
            _ => return Ok(FAR),
        }
        tokio::time::sleep(SETTINGS_PAUSE).await;
        length = stream.peek(&mut bytes).await?;
    }
}

/// What a client's first bytes are.
#[derive(Debug, PartialEq, Eq)]
enum Beginning<'a> {
    /// The settings of its end of the connection.
    Settings(&'a [u8]),
    /// There is more to come.
    Cut,
    Other,
}

fn beginning(bytes: &[u8]) -> Beginning<'_> {
    let Some(frame) = bytes.strip_prefix(PREFACE) else {
        return if PREFACE.starts_with(bytes) { Beginning::Cut } else { Beginning::Other };
    };
    let Some((head, rest)) = frame.split_at_checked(FRAME_HEAD) else { return Beginning::Cut };
    if head[3] != SETTINGS {
        return Beginning::Other;
    }
    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
    rest.get(..length).map_or(Beginning::Cut, Beginning::Settings)
}

/// The window among settings, of which the last of a kind holds.
fn window_in(settings: &[u8]) -> Option<u32> {
    settings.chunks_exact(SETTING).rev().find_map(|setting| match *setting {
        [high, low, a, b, c, d] if u16::from_be_bytes([high, low]) == INITIAL_WINDOW_SIZE => {
            Some(u32::from_be_bytes([a, b, c, d]))
        }
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::{
        ANSWERS, Beginning, Distance, FAR, FRAME_HEAD, INITIAL_WINDOW_SIZE, NEAR, NEAR_ROUND_TRIP, PREFACE, SETTINGS,
        beginning, to_offer, window_in,
    };
    use crate::grpc::{ServeSettings, base_routes, serve};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio_util::sync::CancellationToken;
    use tonic::transport::Endpoint;

    fn first_bytes(settings: &[(u16, u32)]) -> Vec<u8> {
        let length = u32::try_from(6 * settings.len()).unwrap().to_be_bytes();
        let mut bytes = [PREFACE, &length[1..], &[4, 0, 0, 0, 0, 0]].concat();
        for (kind, value) in settings {
            bytes.extend(kind.to_be_bytes());
            bytes.extend(value.to_be_bytes());
        }
        bytes
    }

    #[test]
    fn a_clients_window_is_found_among_its_settings() {
        let bytes = first_bytes(&[(2, 0), (4, 65_535), (5, 16_384), (4, NEAR)]);
        let Beginning::Settings(settings) = beginning(&bytes) else { panic!("no settings") };
        assert_eq!(window_in(settings), Some(NEAR));
        assert_eq!(window_in(&settings[..6]), None);
        assert_eq!(beginning(&first_bytes(&[])), Beginning::Settings(&[]));
        // What follows is not settings.
        assert_eq!(beginning(&[&bytes[..], &[0; 40]].concat()), Beginning::Settings(settings));
        for cut in 0..bytes.len() {
            assert_eq!(beginning(&bytes[..cut]), Beginning::Cut, "{cut}");
        }
        let ping = [PREFACE, &[0, 0, 8, 6, 0, 0, 0, 0, 0]].concat();
        for other in [&b"GET / HTTP/1.1\r\n"[..], &[0x16, 3, 1], &ping] {
            assert_eq!(beginning(other), Beginning::Other);
        }
    }

    /// What tonic's client says first is understood.
    #[tokio::test]
    async fn our_own_client_gets_the_window_that_it_offers() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Endpoint::from_shared(format!("http://{}", listener.local_addr().unwrap())).unwrap();
        for window in [NEAR, FAR] {
            let endpoint = endpoint.clone().initial_stream_window_size(window);
            let accepting = async { to_offer(&listener.accept().await.unwrap().0).await.unwrap() };
            // The channel is kept until its first bytes were looked at.
            let (offered, _channel) = tokio::join!(accepting, async { endpoint.connect().await.unwrap() });
            assert_eq!(offered, window);
        }
    }

    #[tokio::test]
    async fn a_server_offers_what_it_is_offered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (routes, _) = base_routes(&[]).unwrap();
        let shutdown = CancellationToken::new();
        let serving = serve(listener, routes, ServeSettings::default(), shutdown.clone());
        let asking = async {
            for (offered, expected) in [(NEAR, NEAR), (FAR, FAR), (65_535, FAR)] {
                let mut client = TcpStream::connect(address).await.unwrap();
                client.write_all(&first_bytes(&[(INITIAL_WINDOW_SIZE, offered)])).await.unwrap();
                let mut head = [0; FRAME_HEAD];
                client.read_exact(&mut head).await.unwrap();
                let mut settings = vec![0; usize::from(head[2])];
                client.read_exact(&mut settings).await.unwrap();
                assert_eq!((head[3], window_in(&settings)), (SETTINGS, Some(expected)), "{offered}");
            }
            shutdown.cancel();
        };
        let (served, ()) = tokio::join!(serving, asking);
        served.unwrap();
    }

    #[test]
    fn a_neighbour_is_who_answered_quickly_of_late() {
        let distance = Distance::default();
        assert!(!distance.is_near(), "nobody knows");
        distance.answered(NEAR_ROUND_TRIP);
        assert!(!distance.is_near());
        distance.answered(Duration::from_micros(300));
        (0..ANSWERS).for_each(|_| distance.answered(Duration::from_secs(1)));
        assert!(distance.is_near(), "a slow answer is no long way");
        (0..ANSWERS).for_each(|_| distance.answered(Duration::from_secs(1)));
        assert!(!distance.is_near(), "it has moved");
    }
}
