//! The one place for injected faults: off, unless the environment asks for them.
//!
//! ```text
//! BLOBFERRY_FAILPOINTS = rule[;rule…]      rule = PLACE=[COUNT*]ACTION      ACTION = error | panic | abort | delay(MS)
//! BLOBFERRY_FAILPOINTS='queue.commit.before_write=1*error;copy.chunk=delay(50)' blobferry serve …
//! ```
//!
//! A place is a line of code that names a [`Point`]. What happens there when a rule names it:
//!
//! - *error*: the place fails, as what stands there can fail: a queue write error, an I/O error, an unavailable peer.
//! - *panic*: it panics. Whatever catches panics there is put to the test.
//! - *abort*: the process dies at once, as by `kill -9`.
//! - *delay*: it takes so many milliseconds longer. An asynchronous place waits without holding up the runtime.
//!
//! A count ends a rule when it was followed so many times; without one it holds for ever. Each time a rule is followed, a
//! warning with the fields `failpoint` and `action` is logged first, so that a test can tell that it was.
//!
//! The wall clock can be wrong, too, and jump while the program runs:
//!
//! ```text
//! BLOBFERRY_CLOCK_SHIFT = FILE     the file holds a number of seconds, which are added to the wall clock each time it is read
//! ```
//!
//! `main` reads the variables, once, before anything runs. While nothing is armed a place costs one relaxed load. This is the
//! one global of the program: a fault must reach every layer, and handing it through every constructor would change the code
//! that is to be tested.
//!
//! Not the crate `fail`: it cannot abort, its delay blocks the runtime's thread, it does not tell what fired, and when
//! compiled in it takes a lock and a look-up for each place, armed or not.

use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use std::io;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

/// The environment variable that arms places.
pub const VARIABLE: &str = "BLOBFERRY_FAILPOINTS";

/// The environment variable that names the file by which the wall clock is shifted.
pub const CLOCK_VARIABLE: &str = "BLOBFERRY_CLOCK_SHIFT";

macro_rules! places {
    ($($(#[doc = $doc:literal])+ $place:ident = $name:literal,)+) => {
        /// Where a fault can be injected. Its name begins with what it is a part of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Point {
            $($(#[doc = $doc])+ $place,)+
        }

        /// All places.
        pub const ALL: &[Point] = &[$(Point::$place,)+];

        impl Point {
            /// The name in rules and logs.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$place => $name,)+
                }
            }
        }
    };
}

places! {
    /// Before the queue's database is opened.
    QueueOpen = "queue.open.database",
    /// Before the figures of the last batch are read.
    QueueLoad = "queue.open.load",
    /// Before a push is handed to the committer.
    QueuePush = "queue.push.ask",
    /// A push is durable, and its caller not answered yet.
    QueuePushed = "queue.push.answered",
    /// In the committer: a push is decided.
    QueueDecidePush = "queue.commit.push",
    /// In the committer: a settlement is decided.
    QueueDecideSettle = "queue.commit.settle",
    /// In the committer: before the disk's free space is asked for.
    QueueSpace = "queue.commit.space",
    /// In the committer: before a ref is looked up.
    QueueRefRead = "queue.commit.read_ref",
    /// In the committer: before an entry is read.
    QueueEntryRead = "queue.commit.read_entry",
    /// In the committer: before the batch is written.
    QueueBeforeWrite = "queue.commit.before_write",
    /// In the committer: the batch is durable, and memory not changed yet.
    QueueAfterWrite = "queue.commit.after_write",
    /// Before entries to claim are looked for.
    QueueClaim = "queue.claim.read",
    /// Entries are claimed, and not handed out yet.
    QueueClaimed = "queue.claim.taken",
    /// Before a settlement is handed to the committer.
    QueueSettle = "queue.settle.ask",
    /// A settlement is durable, and its caller not answered yet.
    QueueSettled = "queue.settle.answered",
    /// Before the age of the oldest entries is read.
    QueueOldest = "queue.oldest.read",
    /// Before failed entries are read.
    QueueFailures = "queue.failures.read",
    /// Before failed entries are retried or discarded.
    QueueRemedy = "queue.failures.remedy",
    /// Before a route is registered.
    QueueRegister = "queue.register",
    /// Before a value of the state is read.
    StateGet = "queue.state.get",
    /// Before values of the state are listed.
    StateList = "queue.state.list",
    /// Before the state is written.
    StateWrite = "queue.state.write",
    /// What was copied is about to be settled.
    WorkerSettle = "copy.worker.settle",
    /// Before both sides are asked whether they hold the blob.
    CopyAsk = "copy.ask",
    /// Before the source is opened.
    CopyFetch = "copy.fetch",
    /// The source is open, and the destination is not.
    CopyFetched = "copy.fetched",
    /// A chunk has come from the source.
    CopyChunk = "copy.chunk",
    /// All chunks were sent, and the stream to the destination is not half-closed yet.
    CopyHalfClose = "copy.half_close",
    /// The destination has answered.
    CopyAnswered = "copy.answered",
    /// Before both sides are asked what they hold of a pack.
    CopyPackAsk = "copy.pack.ask",
    /// Before the source is asked for a pack.
    CopyPackFetch = "copy.pack.fetch",
    /// The source has answered for a pack and its blobs are checked; the destination knows nothing of them.
    CopyPackFetched = "copy.pack.fetched",
    /// Before a pack is offered to the destination.
    CopyPackSend = "copy.pack.send",
    /// The destination has answered for a pack.
    CopyPackAnswered = "copy.pack.answered",
    /// Before a peer is asked who it is.
    RemoteInfo = "copy.remote.info",
    /// Before a peer is asked which blobs it holds.
    RemoteStat = "copy.remote.stat",
    /// Before a blob is asked for at a peer.
    RemoteFetch = "copy.remote.fetch",
    /// Before a blob is offered to a peer.
    RemoteReceive = "copy.remote.receive",
    /// The peer has answered to a blob.
    RemoteReceived = "copy.remote.received",
    /// Before the record of a new sync is written.
    SyncBegin = "sync.begin",
    /// Before a sync asks both stores who they are.
    SyncLook = "sync.look",
    /// Before a sync opens a listing.
    SyncEnumerate = "sync.enumerate",
    /// Before a sync takes a page of a listing.
    SyncPage = "sync.page",
    /// Before a page of findings is pushed.
    SyncPush = "sync.push",
    /// A page of findings is durable.
    SyncPushed = "sync.pushed",
    /// A sync waits for its copies.
    SyncWait = "sync.wait",
    /// Before the end of a sync is written.
    SyncEnd = "sync.end",
    /// Before a store on disk is opened.
    StoreOpen = "store.disk.open",
    /// Before blobs are looked up.
    StoreStat = "store.disk.stat",
    /// Before a blob is opened.
    StoreFetch = "store.disk.fetch",
    /// Before a chunk of a blob's file is read.
    StoreChunk = "store.disk.chunk",
    /// Before a page of the index is read.
    StorePage = "store.disk.page",
    /// Before a temporary file is made.
    StoreCreate = "store.disk.create",
    /// Before a temporary file is written.
    StoreWrite = "store.disk.write",
    /// Before a temporary file is synced.
    StoreSync = "store.disk.sync",
    /// Before a file is renamed to its place.
    StoreRename = "store.disk.rename",
    /// A file is in its place, and the folder not synced yet.
    StoreFolderSync = "store.disk.folder_sync",
    /// In the index's committer: before it is looked up what is there.
    StoreDecide = "store.disk.decide",
    /// In the index's committer: before the batch is written.
    StoreBeforeWrite = "store.disk.before_write",
    /// In the index's committer: the batch is durable, and nobody answered yet.
    StoreAfterWrite = "store.disk.after_write",
    /// A blob is durable, and its receiver not told yet.
    StoreReceived = "store.disk.received",
    /// A store's server: before a blob's bytes are taken.
    ServerReceive = "store.server.receive",
    /// A store's server: before the answer goes out.
    ServerAnswer = "store.server.answer",
    /// A store's server: before a blob is opened.
    ServerFetch = "store.server.fetch",
    /// A store's server: before a listing is opened.
    ServerEnumerate = "store.server.enumerate",
}

/// The error that a place gives when it was told to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("injected at {}", .0.name())]
pub struct Injected(pub Point);

impl From<Injected> for io::Error {
    fn from(injected: Injected) -> Self {
        Self::other(injected)
    }
}

/// A rule that makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE}: {rule:?}: {problem}")]
pub struct RuleError {
    rule: String,
    problem: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Action {
    Error,
    Panic,
    Abort,
    Delay(Duration),
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Panic => "panic",
            Self::Abort => "abort",
            Self::Delay(_) => "delay",
        }
    }
}

#[derive(Debug)]
struct Rule {
    place: Point,
    action: Action,
    /// How often it is still to be followed.
    left: AtomicU64,
}

static ARMED: AtomicBool = AtomicBool::new(false);
static RULES: OnceLock<Vec<Rule>> = OnceLock::new();
static CLOCK_SHIFT: OnceLock<PathBuf> = OnceLock::new();

/// Arms the places that these rules name, for the life of the process. For `main` only; a second call changes nothing.
///
/// # Errors
/// If a rule names no place or no action. Nothing is armed then.
pub fn arm(rules: &str) -> Result<(), RuleError> {
    let rules = parse(rules)?;
    let armed = !rules.is_empty();
    if RULES.set(rules).is_ok() && armed {
        ARMED.store(true, Ordering::Release);
    }
    Ok(())
}

/// Shifts the wall clock by what this file says, for the life of the process. For `main` only; a second call changes nothing.
pub fn shift_clock(file: PathBuf) {
    drop(CLOCK_SHIFT.set(file));
}

/// What the wall clock is to show at this time: the same, unless it is shifted.
pub(crate) fn shifted(time: SystemTime) -> SystemTime {
    let Some(file) = CLOCK_SHIFT.get() else { return time };
    let seconds = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok());
    moved(time, seconds.unwrap_or_default())
}

fn moved(time: SystemTime, seconds: i64) -> SystemTime {
    let span = Duration::from_secs(seconds.unsigned_abs());
    let moved = if seconds < 0 { time.checked_sub(span) } else { time.checked_add(span) };
    moved.unwrap_or(time)
}

fn parse(rules: &str) -> Result<Vec<Rule>, RuleError> {
    rules.split(';').map(str::trim).filter(|rule| !rule.is_empty()).map(rule).collect()
}

fn rule(text: &str) -> Result<Rule, RuleError> {
    let wrong = |problem| RuleError { rule: text.to_owned(), problem };
    let (name, action) = text.split_once('=').ok_or(wrong("write it as PLACE=ACTION"))?;
    let place = ALL.iter().copied().find(|place| place.name() == name.trim());
    let place = place.ok_or(wrong("there is no such place"))?;
    let (count, action) = action.split_once('*').unwrap_or(("", action));
    let left = match count.trim() {
        "" => u64::MAX,
        count => count.parse().map_err(|_| wrong("the count is no number"))?,
    };
    let action = match action.trim() {
        "error" => Action::Error,
        "panic" => Action::Panic,
        "abort" => Action::Abort,
        delay => {
            let millis = delay.strip_prefix("delay(").and_then(|rest| rest.strip_suffix(')'));
            let millis = millis.and_then(|millis| millis.parse().ok());
            Action::Delay(Duration::from_millis(millis.ok_or(wrong("use error, panic, abort or delay(MS)"))?))
        }
    };
    Ok(Rule { place, action, left: AtomicU64::new(left) })
}

fn is_armed() -> bool {
    ARMED.load(Ordering::Relaxed)
}

/// Does what is asked for here, but for the delay, which is given back.
#[cold]
fn fire(place: Point) -> Result<Duration, Injected> {
    let rules = RULES.get().map(Vec::as_slice).unwrap_or_default();
    let Some(rule) = rules.iter().find(|rule| rule.place == place) else { return Ok(Duration::ZERO) };
    let counted = rule.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| match left {
        u64::MAX => Some(left),
        _ => left.checked_sub(1),
    });
    if counted.is_err() {
        return Ok(Duration::ZERO);
    }
    tracing::warn!(failpoint = place.name(), action = rule.action.name(), "an injected fault");
    match rule.action {
        Action::Error => Err(Injected(place)),
        Action::Delay(delay) => Ok(delay),
        Action::Panic => std::panic::panic_any(Injected(place).to_string()),
        Action::Abort => std::process::abort(),
    }
}

/// A place on a thread that may block.
///
/// # Errors
/// If it was told to fail.
#[inline]
pub(crate) fn hit(point: Point) -> Result<(), Injected> {
    if is_armed() {
        std::thread::sleep(fire(point)?);
    }
    Ok(())
}

/// A place on the runtime.
///
/// # Errors
/// If it was told to fail.
#[inline]
pub(crate) async fn pause(point: Point) -> Result<(), Injected> {
    if is_armed() {
        tokio::time::sleep(fire(point)?).await;
    }
    Ok(())
}

/// A place before each item of a stream is handed on.
pub(crate) fn each<'a, T, E>(place: Point, items: BoxStream<'a, Result<T, E>>) -> BoxStream<'a, Result<T, E>>
where
    T: Send + 'a,
    E: From<Injected> + Send + 'a,
{
    if !is_armed() {
        return items;
    }
    let items = items.then(move |item| async move {
        pause(place).await?;
        item
    });
    items.boxed()
}

/// A place between a stream's last item and its end.
pub(crate) fn at_end<'a, T, E>(
    place: Point,
    items: impl Stream<Item = Result<T, E>> + Send + 'a,
) -> BoxStream<'a, Result<T, E>>
where
    T: Send + 'a,
    E: From<Injected> + Send + 'a,
{
    if !is_armed() {
        return items.boxed();
    }
    let end = stream::once(pause(place)).filter_map(async |paused| paused.err().map(|injected| Err(injected.into())));
    items.chain(end).boxed()
}

#[cfg(test)]
mod tests {
    use super::{ALL, Action, Point, hit, moved, parse, pause, shifted};
    use std::collections::BTreeSet;
    use std::sync::atomic::Ordering;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn names_are_unique_and_say_where_they_belong() {
        let names: BTreeSet<&str> = ALL.iter().map(|place| place.name()).collect();
        assert_eq!(names.len(), ALL.len());
        assert!(ALL.len() >= 30);
        for name in names {
            let area = name.split('.').next().unwrap();
            assert!(["queue", "copy", "sync", "store"].contains(&area), "{name}");
        }
    }

    #[test]
    fn rules_are_understood() {
        let rules = parse("queue.push.ask=error; copy.chunk = 2*delay(50);;sync.end=abort").unwrap();
        assert_eq!(rules.len(), 3);
        assert_eq!((rules[0].place, rules[0].action), (Point::QueuePush, Action::Error));
        assert_eq!((rules[1].place, rules[1].action), (Point::CopyChunk, Action::Delay(Duration::from_millis(50))));
        assert_eq!(rules[1].left.load(Ordering::Relaxed), 2);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn a_rule_that_makes_no_sense_is_named() {
        for wrong in
            ["queue.push.ask", "no.such=error", "copy.chunk=explode", "copy.chunk=x*error", "copy.chunk=delay(x)"]
        {
            let error = parse(wrong).unwrap_err().to_string();
            assert!(error.contains("BLOBFERRY_FAILPOINTS") && error.contains(wrong), "{error}");
        }
    }

    #[test]
    fn a_clock_is_shifted_either_way() {
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        assert_eq!([moved(at(10), 5), moved(at(10), -5), moved(at(10), 0)], [at(15), at(5), at(10)]);
        assert_eq!(moved(at(10), i64::MAX), at(10), "not beyond what can be told");
    }

    #[tokio::test]
    async fn nothing_happens_while_nothing_is_armed() {
        assert_eq!(shifted(UNIX_EPOCH), UNIX_EPOCH);
        for place in ALL {
            assert_eq!(hit(*place), Ok(()));
            assert_eq!(pause(*place).await, Ok(()));
        }
    }
}
