#![allow(clippy::unwrap_used, reason = "tests")]

use super::{RocksOptions, RocksQueue};
use crate::queue::suite::{Both, MAX_BACKOFF, Subject, TestClock, conformance};
use async_trait::async_trait;
use tempfile::TempDir;

fn options() -> RocksOptions {
    RocksOptions { max_entries: u64::MAX, reserve_bytes: 0, max_backoff: MAX_BACKOFF, cache_bytes: 8 << 20 }
}

struct Rocks {
    dir: TempDir,
    options: RocksOptions,
    clock: TestClock,
    queue: Option<RocksQueue>,
}

impl Rocks {
    fn new(clock: &TestClock, max_entries: u64) -> Self {
        let options = RocksOptions { max_entries, ..options() };
        let mut rocks = Self { dir: tempfile::tempdir().unwrap(), options, clock: clock.clone(), queue: None };
        rocks.open();
        rocks
    }

    fn open(&mut self) {
        let queue = RocksQueue::open(self.dir.path(), self.options.clone(), self.clock.wall()).unwrap();
        self.queue = Some(queue);
    }
}

#[async_trait]
impl Subject for Rocks {
    fn queue(&self) -> &dyn Both {
        self.queue.as_ref().unwrap()
    }

    async fn restart(&mut self) {
        self.queue.take().unwrap().close().await;
        self.open();
    }
}

fn make(clock: &TestClock, max_entries: u64) -> Box<dyn Subject> {
    Box::new(Rocks::new(clock, max_entries))
}

conformance!(make);
