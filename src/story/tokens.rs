//! Wait tokens: which blobs were announced together, remembered durably in the same write as their entries.
//!
//! A token is one small row, `wait/token/ID`, and the refs are another, `wait/refs/ID`, so that opening reads no refs. IDs
//! sort by time. The newest are kept, within bounds of number, refs and age; those beyond are deleted in the write that brings
//! the next one.

use super::StoryError;
use crate::blob::{BlobRef, Excerpt};
use crate::clock::{Clock, Entropy};
use crate::queue::{QueueError, State, StateWrite};
use parking_lot::Mutex;
use prost::Message;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Tokens that are kept, at most.
const MAX_TOKENS: usize = 1000;

/// Refs that all tokens keep together, at most: some 160 MB on disk.
const MAX_REFS: u64 = 4_000_000;

/// How long a token is good for.
const MAX_AGE: Duration = Duration::from_hours(24);

/// The length of a token.
const ID_LENGTH: usize = 26;

const TOKEN: &str = "wait/token/";
const REFS: &str = "wait/refs/";

#[derive(Clone, PartialEq, Message)]
struct TokenRow {
    /// Nanoseconds since 1970.
    #[prost(fixed64, tag = "1")]
    issued: u64,
    #[prost(uint64, tag = "2")]
    refs: u64,
    #[prost(string, tag = "3")]
    source: String,
}

#[derive(Clone, PartialEq, Message)]
struct RefsRow {
    #[prost(bytes = "vec", repeated, tag = "1")]
    blobs: Vec<Vec<u8>>,
}

#[derive(Debug)]
struct Live {
    id: String,
    issued: SystemTime,
    refs: u64,
}

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TokenRefs {
    pub(super) source: String,
    pub(super) blobs: Vec<BlobRef>,
}

/// The tokens that are kept.
pub(super) struct Tokens {
    state: Arc<dyn State>,
    clock: Arc<dyn Clock>,
    entropy: Arc<Entropy>,
    // The oldest first.
    live: Mutex<VecDeque<Live>>,
}

impl Tokens {
    pub(super) async fn open(
        state: Arc<dyn State>,
        clock: Arc<dyn Clock>,
        entropy: Arc<Entropy>,
    ) -> Result<Self, QueueError> {
        // A few beyond the bound, where the write that should have deleted them failed.
        let rows = state.list(TOKEN, 2 * MAX_TOKENS).await?;
        let live = rows.into_iter().rev().filter_map(|(key, row)| {
            let TokenRow { issued, refs, .. } = TokenRow::decode(row.as_slice()).ok()?;
            let id = key.strip_prefix(TOKEN)?.to_owned();
            Some(Live { id, issued: UNIX_EPOCH + Duration::from_nanos(issued), refs })
        });
        let live = Mutex::new(live.collect());
        Ok(Self { state, clock, entropy, live })
    }

    /// A new token, and the writes that make it good. Whether they are made is the caller's.
    pub(super) fn issue(&self, source: &str, blobs: Vec<BlobRef>) -> (String, Vec<StateWrite>) {
        let now = self.clock.now();
        let id = self.entropy.id(now);
        let refs = blobs.len() as u64;
        let mut writes = Vec::new();
        let mut live = self.live.lock();
        let mut total = live.iter().map(|token| token.refs).sum::<u64>() + refs;
        while let Some(oldest) = live.front()
            && (live.len() >= MAX_TOKENS || total > MAX_REFS || is_old(oldest.issued, now))
        {
            total -= oldest.refs;
            for prefix in [TOKEN, REFS] {
                writes.push(StateWrite { key: format!("{prefix}{}", oldest.id), value: None });
            }
            live.pop_front();
        }
        live.push_back(Live { id: id.clone(), issued: now, refs });
        drop(live);

        let issued = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let token = TokenRow { issued: u64::try_from(issued).unwrap_or(u64::MAX), refs, source: source.to_owned() };
        let blobs = RefsRow { blobs: blobs.iter().map(BlobRef::to_key).collect() };
        writes.push(StateWrite { key: format!("{TOKEN}{id}"), value: Some(token.encode_to_vec()) });
        writes.push(StateWrite { key: format!("{REFS}{id}"), value: Some(blobs.encode_to_vec()) });
        (id, writes)
    }

    /// What a token stands for.
    pub(super) async fn find(&self, id: &str) -> Result<TokenRefs, StoryError> {
        let unknown = || StoryError::UnknownToken(Excerpt::of(id));
        // Other text must not reach other keys.
        if id.len() != ID_LENGTH || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(unknown());
        }
        let (token, refs) = (format!("{TOKEN}{id}"), format!("{REFS}{id}"));
        let token = self.state.get(&token).await?.and_then(|row| TokenRow::decode(row.as_slice()).ok());
        let token = token.filter(|row| !is_old(UNIX_EPOCH + Duration::from_nanos(row.issued), self.clock.now()));
        let token = token.ok_or_else(unknown)?;
        let refs = self.state.get(&refs).await?.and_then(|row| RefsRow::decode(row.as_slice()).ok());
        let blobs = refs.ok_or_else(unknown)?.blobs.iter().filter_map(|key| BlobRef::from_key(key)).collect();
        Ok(TokenRefs { source: token.source, blobs })
    }
}

/// One from the future was issued before the clock was set back.
fn is_old(issued: SystemTime, now: SystemTime) -> bool {
    now.duration_since(issued).is_ok_and(|age| age > MAX_AGE)
}

#[cfg(test)]
mod tests {
    use super::{MAX_TOKENS, TokenRefs, Tokens};
    use crate::blob::{BlobRef, DigestFunction};
    use crate::clock::{Entropy, ManualClock};
    use crate::queue::State;
    use crate::queue::model::ModelQueue;
    use crate::story::StoryError;
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    fn blobs(numbers: std::ops::Range<u64>) -> Vec<BlobRef> {
        numbers.map(|number| DigestFunction::Sha256.ref_of(&number.to_be_bytes())).collect()
    }

    struct Lab {
        queue: ModelQueue,
        clock: Arc<ManualClock>,
    }

    impl Lab {
        fn new() -> Self {
            let clock = Arc::new(ManualClock::new(UNIX_EPOCH + Duration::from_secs(1_000_000)));
            Self { queue: ModelQueue::new(u64::MAX, Duration::from_secs(1), clock.clone()), clock }
        }

        async fn open(&self) -> Tokens {
            let entropy = Arc::new(Entropy::seeded(7));
            Tokens::open(Arc::new(self.queue.clone()), self.clock.clone(), entropy).await.unwrap()
        }

        async fn issue(&self, tokens: &Tokens, of: Vec<BlobRef>) -> String {
            let (id, writes) = tokens.issue("a", of);
            self.queue.write(writes).await.unwrap();
            id
        }
    }

    #[tokio::test]
    async fn a_token_stands_for_its_refs_for_a_day_and_through_restarts() {
        let lab = Lab::new();
        let tokens = lab.open().await;
        let id = lab.issue(&tokens, blobs(0..3)).await;
        let expected = TokenRefs { source: "a".to_owned(), blobs: blobs(0..3) };
        assert_eq!(tokens.find(&id).await.unwrap(), expected);
        let tokens = lab.open().await;
        assert_eq!(tokens.find(&id).await.unwrap(), expected);
        for wrong in ["", "x", &id.to_lowercase(), "../../../../../../../../..", &"A".repeat(1000)] {
            assert!(matches!(tokens.find(wrong).await, Err(StoryError::UnknownToken(_))), "{wrong}");
        }
        lab.clock.advance(Duration::from_hours(25));
        assert!(tokens.find(&id).await.is_err());
        let newer = lab.issue(&tokens, blobs(5..6)).await;
        assert_eq!(lab.queue.list("wait/", 100).await.unwrap().len(), 2, "the old one was deleted");
        assert_eq!(tokens.find(&newer).await.unwrap().blobs, blobs(5..6));
    }

    #[tokio::test]
    async fn the_newest_are_kept() {
        let lab = Lab::new();
        let tokens = lab.open().await;
        let mut ids = Vec::new();
        for number in 0..MAX_TOKENS as u64 + 5 {
            lab.clock.advance(Duration::from_millis(2));
            ids.push(lab.issue(&tokens, blobs(number..number + 1)).await);
        }
        assert_eq!(lab.queue.list("wait/", 10_000).await.unwrap().len(), 2 * MAX_TOKENS);
        assert!(tokens.find(&ids[4]).await.is_err());
        assert!(tokens.find(&ids[5]).await.is_ok());
        // By their refs, too.
        for _ in 0..5 {
            lab.clock.advance(Duration::from_millis(2));
            tokens.issue("a", vec![blobs(0..1)[0]; 1_000_000]);
        }
        assert_eq!(tokens.live.lock().len(), 4);
    }
}
