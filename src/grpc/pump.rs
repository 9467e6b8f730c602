//! Response streams that a stalled reader cannot hold open for ever, and the cap on calls in progress.
//!
//! tonic asks a response stream for its next message only while the reader takes them. A reader that stops would keep the
//! stream, what stands behind it (an open file, an iterator) and its permit. So a task of its own drives the stream
//! and gives up when no message was taken for too long; what is left then is a few messages and an error to be told, should
//! the reader ever come back.

use super::idle::Idle;
use super::status::Reason;
use futures::{Stream, StreamExt};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};
use tokio_util::task::TaskTracker;
use tonic::Status;

/// Messages that wait for the reader, at most.
const AHEAD: usize = 2;

/// A cap on calls in progress. tonic's own would end at the response headers, so calls hold a permit to their very end.
#[derive(Clone, Debug)]
pub(crate) struct CallLimit(Arc<Semaphore>);

/// The right to be in progress; ends when it is dropped.
#[derive(Debug)]
pub(crate) struct CallPermit {
    _permit: OwnedSemaphorePermit,
}

impl CallLimit {
    /// At most this many calls at a time.
    pub(crate) fn new(calls: usize) -> Self {
        Self(Arc::new(Semaphore::new(calls.min(Semaphore::MAX_PERMITS))))
    }

    /// Lets a call in.
    ///
    /// # Errors
    /// TOO_BUSY when there are as many as there may be: a caller that waits here would hold memory, and not know why.
    pub(crate) fn enter(&self) -> Result<CallPermit, Status> {
        match self.0.clone().try_acquire_owned() {
            Ok(permit) => Ok(CallPermit { _permit: permit }),
            Err(_) => Err(Reason::TooBusy.status("too many calls are in progress; retry with backoff")),
        }
    }
}

/// Drives `messages` in a task of `tasks`, and ends it with STREAM_IDLE when the reader takes nothing for `idle`.
///
/// The task, and the permit with it, also ends when the returned stream is dropped.
pub(crate) fn pump<T: Send + 'static>(
    tasks: &TaskTracker,
    permit: CallPermit,
    idle: Duration,
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> impl Stream<Item = Result<T, Status>> + Send + 'static {
    let (sender, receiver) = mpsc::channel(AHEAD);
    let (verdict, ended) = oneshot::channel();
    tasks.spawn(async move {
        let _permit = permit;
        // While the source thinks, the reader may leave: then nobody waits for what comes of it.
        let outcome = tokio::select! {
            outcome = drive(messages, &sender, idle) => outcome,
            () = sender.closed() => Ok(()),
        };
        drop(sender);
        // Nobody listens if the reader left.
        verdict.send(outcome).ok();
    });
    futures::stream::unfold((receiver, Some(ended)), |(mut receiver, mut ended)| async move {
        if let Some(message) = receiver.recv().await {
            return Some((Ok(message), (receiver, ended)));
        }
        match ended.take()?.await {
            Ok(Ok(())) => None,
            Ok(Err(status)) => Some((Err(status), (receiver, None))),
            Err(_) => Some((Err(Reason::Internal.status("the server failed on this stream")), (receiver, None))),
        }
    })
}

async fn drive<T>(
    messages: impl Stream<Item = Result<T, Status>>,
    sender: &mpsc::Sender<T>,
    idle: Duration,
) -> Result<(), Status> {
    let mut messages = std::pin::pin!(messages);
    let mut idle = Idle::new(idle);
    while let Some(message) = messages.next().await {
        match idle.wait_for(sender.send(message?)).await {
            Some(Ok(())) => {}
            Some(Err(_)) => return Ok(()),
            None => {
                let seconds = idle.limit().as_secs_f64();
                return Err(Reason::StreamIdle.status(format!("no message was taken for {seconds} s")));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{CallLimit, pump};
    use futures::{StreamExt, stream};
    use std::time::Duration;
    use tokio_util::task::TaskTracker;
    use tonic::{Code, Status};

    #[tokio::test(start_paused = true)]
    async fn a_stalled_reader_loses_its_permit_and_is_told() {
        let (tasks, limit) = (TaskTracker::new(), CallLimit::new(1));
        let messages = stream::iter((0..100).map(Ok::<u32, Status>));
        let idle = Duration::from_secs(60);
        let mut reading = Box::pin(pump(&tasks, limit.enter().unwrap(), idle, messages));
        assert_eq!(reading.next().await.unwrap().unwrap(), 0);
        assert_eq!(limit.enter().unwrap_err().code(), Code::ResourceExhausted);
        tokio::time::sleep(Duration::from_secs(61)).await;
        limit.enter().unwrap();
        let rest: Vec<_> = reading.collect().await;
        assert_eq!(rest.last().unwrap().as_ref().unwrap_err().code(), Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn all_messages_come_in_order_and_an_error_comes_last() {
        let (tasks, limit) = (TaskTracker::new(), CallLimit::new(1));
        let messages = stream::iter((0..5).map(Ok).chain([Err(Status::internal("x"))]));
        let reading = pump(&tasks, limit.enter().unwrap(), Duration::from_secs(60), messages);
        let got: Vec<_> = reading.map(|item| item.map_err(|status| status.code())).collect().await;
        assert_eq!(got, [Ok(0), Ok(1), Ok(2), Ok(3), Ok(4), Err(Code::Internal)]);
    }

    #[tokio::test]
    async fn a_reader_that_leaves_ends_the_task() {
        let (tasks, limit) = (TaskTracker::new(), CallLimit::new(1));
        let reading =
            pump(&tasks, limit.enter().unwrap(), Duration::from_secs(60), stream::pending::<Result<u32, _>>());
        drop(reading);
        tasks.close();
        tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await.unwrap();
        limit.enter().unwrap();
    }
}
