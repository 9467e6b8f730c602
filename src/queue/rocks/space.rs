//! Room on the queue's disk, and the reserve that announcements leave for settling.

use crate::clock::{Clock, Monotonic};
use crate::failpoint::{self, Point};
use crate::queue::QueueError;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// How long a reading of the disk's free space is good for.
const AGE: Duration = Duration::from_secs(1);

/// The disk of a folder.
pub(super) struct Space {
    dir: PathBuf,
    reserve: u64,
    clock: Arc<dyn Clock>,
    read: Option<(Monotonic, u64)>,
}

impl Space {
    /// That of this folder; a reserve of 0 turns the check off.
    pub(super) fn new(dir: PathBuf, reserve: u64, clock: Arc<dyn Clock>) -> Self {
        Self { dir, reserve, clock, read: None }
    }

    /// Refuses announcements when the reserve is reached.
    pub(super) fn check(&mut self) -> Result<(), QueueError> {
        if self.reserve == 0 {
            return Ok(());
        }
        let now = self.clock.monotonic();
        let free = match self.read {
            Some((at, free)) if now.since(at) < AGE => free,
            _ => {
                let free = self.free()?;
                self.read = Some((now, free));
                free
            }
        };
        if free < self.reserve { Err(self.full(free)) } else { Ok(()) }
    }

    /// That the disk is full, with so many bytes left.
    pub(super) fn full(&self, free: u64) -> QueueError {
        QueueError::NoSpace { folder: self.dir.display().to_string(), free, reserve: self.reserve }
    }

    /// Free bytes, as of now.
    pub(super) fn free(&self) -> Result<u64, QueueError> {
        failpoint::hit(Point::QueueSpace)?;
        let stat = rustix::fs::statvfs(&self.dir)
            .map_err(|error| QueueError::Read(format!("the disk's free space is unknown: {error}")))?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }
}
