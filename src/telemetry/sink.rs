//! Where lines of the log go: to standard error, by a thread of their own.
//!
//! Standard error may be a disk that is full, a pipe whose reader went away, or one that nobody reads. None of that may hold up
//! or end whoever logs: a line that cannot be taken in or written is lost, and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::Duration;
use tracing_subscriber::fmt::MakeWriter;

/// Lines that wait to be written.
const WAITING: usize = 4096;

/// At the end of the process lines have a second to be taken in, and one to be written: so many looks, so far apart.
const LOOKS: u32 = 100;
const LOOK: Duration = Duration::from_millis(10);

/// A process has one standard error.
static LOST: AtomicU64 = AtomicU64::new(0);

/// Lines of the log that were lost since the process started, since standard error did not take them.
pub(crate) fn lost_log_lines() -> u64 {
    LOST.load(Ordering::Relaxed)
}

enum Order {
    Write(Vec<u8>),
    /// Everything before is written.
    Flushed(SyncSender<()>),
}

/// Takes lines in. Clones share the thread.
#[derive(Clone)]
pub(super) struct LogSink(SyncSender<Order>);

/// As long as it is held, lines are written; then those that wait are, for two seconds at most.
#[derive(Debug)]
#[must_use = "the last lines are lost without it"]
pub(crate) struct LogGuard(SyncSender<Order>);

/// Starts the thread that writes to `out`.
pub(super) fn start(out: impl Write + Send + 'static) -> io::Result<(LogSink, LogGuard)> {
    let (sender, orders) = mpsc::sync_channel(WAITING);
    // Ends with the process: a write may never return.
    std::thread::Builder::new().name("log".to_owned()).spawn(move || write_all(&orders, out))?;
    Ok((LogSink(sender.clone()), LogGuard(sender)))
}

fn write_all(orders: &Receiver<Order>, mut out: impl Write) {
    for order in orders {
        match order {
            Order::Write(line) => {
                if out.write_all(&line).is_err() {
                    LOST.fetch_add(1, Ordering::Relaxed);
                }
            }
            // Who asked may have left.
            Order::Flushed(done) => _ = done.try_send(()),
        }
    }
}

impl<'a> MakeWriter<'a> for LogSink {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Each write is a whole line, as `tracing_subscriber` makes them. It never fails.
impl Write for LogSink {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.0.try_send(Order::Write(line.to_vec())).is_err() {
            LOST.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for LogGuard {
    fn drop(&mut self) {
        let (done, flushed) = mpsc::sync_channel(1);
        let mut order = Order::Flushed(done);
        for _ in 0..LOOKS {
            match self.0.try_send(order) {
                Err(TrySendError::Full(back)) => order = back,
                Ok(()) | Err(TrySendError::Disconnected(_)) => {
                    // What is not written by then is lost.
                    flushed.recv_timeout(LOOK * LOOKS).ok();
                    return;
                }
            }
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{LOOK, LOOKS, WAITING, lost_log_lines, start};
    use std::io::{self, Write};
    use std::sync::mpsc::{self, Receiver, Sender};
    use std::time::Instant;

    /// Gives on what it is given, or fails, or hangs.
    enum Out {
        Gives(Sender<Vec<u8>>),
        Full,
        Hangs(Receiver<()>),
    }

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            match self {
                Self::Gives(to) => to.send(bytes.to_vec()).unwrap(),
                Self::Full => return Err(io::ErrorKind::StorageFull.into()),
                Self::Hangs(until) => drop(until.recv()),
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// One test, since the count is the process's.
    #[test]
    fn lines_are_written_or_lost_and_counted_and_nobody_waits() {
        let (to, written) = mpsc::channel();
        let (mut sink, guard) = start(Out::Gives(to)).unwrap();
        sink.write_all(b"one\n").unwrap();
        sink.write_all(b"two\n").unwrap();
        drop(guard);
        assert_eq!(written.try_iter().collect::<Vec<_>>(), [b"one\n".to_vec(), b"two\n".to_vec()]);
        assert_eq!(lost_log_lines(), 0);

        let (mut sink, guard) = start(Out::Full).unwrap();
        sink.write_all(b"three\n").unwrap();
        drop(guard);
        assert_eq!(lost_log_lines(), 1);

        let (hold, until) = mpsc::channel();
        let (mut sink, guard) = start(Out::Hangs(until)).unwrap();
        for _ in 0..2 * WAITING {
            sink.write_all(b"more\n").unwrap();
        }
        let lost = lost_log_lines();
        assert!((WAITING as u64..=WAITING as u64 + 1).contains(&lost), "{lost}");
        let began = Instant::now();
        drop(guard);
        assert!(began.elapsed() >= LOOK * LOOKS, "it was given its time");
        drop(hold);
    }
}
