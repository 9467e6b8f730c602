//! Calls that are made again, as the producer's contract asks.

use super::ClientError;
use crate::backoff::Backoff;
use crate::clock::Entropy;
use std::future::Future;
use std::time::Duration;
use tokio::time::Instant;
use tonic::Code;

/// How long a call is made again.
const PATIENCE: Duration = Duration::from_mins(10);
/// Between two tries.
const BETWEEN: Backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));

/// Makes a call until it succeeds: again after UNAVAILABLE and RESOURCE_EXHAUSTED, and after whatever a connection that ends
/// under a call becomes; with backoff, not before the time that the server names, and for ten minutes. `on_failure` is told
/// of each try that failed and of the delay before the next; where it says `false` there is none.
///
/// For calls that may be made twice, as all of blobferry's may.
///
/// # Errors
/// What no retry mends, or the last failure after ten minutes.
pub async fn retrying<T, F: Future<Output = Result<T, ClientError>>>(
    entropy: &Entropy,
    mut call: impl FnMut() -> F,
    mut on_failure: impl FnMut(&ClientError, Duration) -> bool,
) -> Result<T, ClientError> {
    let deadline = Instant::now() + PATIENCE;
    let mut attempts = 0;
    loop {
        let error = match call().await {
            Ok(answer) => return Ok(answer),
            Err(error) => error,
        };
        attempts += 1;
        let delay = BETWEEN.delay(attempts, entropy.jitter()).max(error.retry_after().unwrap_or_default());
        if !is_worth_retrying(&error) || Instant::now() + delay >= deadline || !on_failure(&error, delay) {
            return Err(error);
        }
        tokio::time::sleep(delay).await;
    }
}

/// A lost connection shows as UNKNOWN or CANCELLED at times, a slow answer as DEADLINE_EXCEEDED.
fn is_worth_retrying(error: &ClientError) -> bool {
    matches!(
        error.code(),
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded | Code::Unknown | Code::Cancelled
    )
}

#[cfg(test)]
mod tests {
    use super::{PATIENCE, retrying};
    use crate::client::ClientError;
    use crate::clock::Entropy;
    use crate::store::PeerError;
    use std::time::Duration;
    use tokio::time::Instant;
    use tonic::Code;

    fn refused(code: Code, retry_after: Option<Duration>) -> ClientError {
        let error = PeerError { retry_after, ..PeerError::bare(code, "so it is") };
        ClientError::Refused { url: "http://x:1".to_owned(), error }
    }

    #[tokio::test(start_paused = true)]
    async fn what_may_pass_is_tried_again_for_ten_minutes_and_not_before_the_server_says() {
        let entropy = Entropy::seeded(1);
        let (start, mut tries) = (Instant::now(), 0);
        let call = |tries: &mut u32| {
            *tries += 1;
            let tries = *tries;
            async move {
                if tries < 3 { Err(refused(Code::ResourceExhausted, Some(Duration::from_secs(7)))) } else { Ok(tries) }
            }
        };
        assert_eq!(retrying(&entropy, || call(&mut tries), |_, _| true).await.unwrap(), 3);
        assert!(start.elapsed() >= Duration::from_secs(14), "{:?}", start.elapsed());

        let start = Instant::now();
        let fails = || async { Err::<(), _>(refused(Code::Unavailable, None)) };
        retrying(&entropy, fails, |_, _| true).await.unwrap_err();
        assert!((PATIENCE - Duration::from_secs(15)..=PATIENCE).contains(&start.elapsed()), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_retry_mends_and_what_the_caller_ends_is_tried_once() {
        let entropy = Entropy::seeded(1);
        let mut tries = 0;
        let call = |tries: &mut u32, code| {
            *tries += 1;
            async move { Err::<(), _>(refused(code, None)) }
        };
        retrying(&entropy, || call(&mut tries, Code::InvalidArgument), |_, _| true).await.unwrap_err();
        retrying(&entropy, || call(&mut tries, Code::Unavailable), |_, _| false).await.unwrap_err();
        assert_eq!(tries, 2);
    }
}
