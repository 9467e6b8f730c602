//! How long something may stand still, without a timer for each time that it moves.
//!
//! A stream waits for every message under the same limit. One timer lasts for all of them: it is looked at when it goes off,
//! and set anew if what it is for has moved since.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;
use tokio::time::{Instant, Sleep, sleep};

/// A limit for each of many waits.
pub(super) struct Idle {
    limit: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Idle {
    /// So long at most. Needs a tokio runtime with time.
    pub(super) fn new(limit: Duration) -> Self {
        Self { limit, timer: Box::pin(sleep(limit)) }
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// What comes; `None` if it takes longer than the limit.
    pub(super) async fn wait_for<T>(&mut self, event: impl Future<Output = T>) -> Option<T> {
        let mut event = pin!(event);
        // Most of what is waited for is there already, and needs no clock.
        let mut end = None;
        poll_fn(|cx| {
            if let Poll::Ready(value) = event.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            let end = *end.get_or_insert_with(|| Instant::now() + self.limit);
            while self.timer.as_mut().poll(cx).is_ready() {
                if end <= Instant::now() {
                    return Poll::Ready(None);
                }
                self.timer.as_mut().reset(end);
            }
            Poll::Pending
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::Idle;
    use std::future::pending;
    use std::time::Duration;
    use tokio::time::{Instant, sleep};

    #[tokio::test(start_paused = true)]
    async fn every_wait_has_the_whole_limit() {
        let mut idle = Idle::new(Duration::from_secs(60));
        for _ in 0..5 {
            assert_eq!(idle.wait_for(sleep(Duration::from_secs(59))).await, Some(()));
        }
        let began = Instant::now();
        assert_eq!(idle.wait_for(pending::<()>()).await, None);
        assert_eq!(began.elapsed().as_secs(), 60);
        assert_eq!(idle.wait_for(sleep(Duration::from_secs(59))).await, Some(()));
    }
}
