//! `blobferry put`.

use super::progress::{ProgressBoard, to_stderr};
use super::{CommandError, Exit, StoreArg, no_store, of_replicator, output, walk};
use crate::blob::{BlobMeta, DigestFunction};
use crate::client::announcer::{AnnounceEvent, AnnounceSummary, announce};
use crate::client::upload::{UploadCause, UploadError, UploadPlan, Uploaded, upload_all};
use crate::client::{Address, ClientError, Replicator};
use crate::clock::Entropy;
use crate::store::{PeerKind, Store as _};
use crate::words;
use clap::Args;
use futures::stream::StreamExt as _;
use std::cell::Cell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// Paths, and announcements, that may wait for the next step.
const AHEAD: usize = 1000;
/// Failures of single files that are told one by one.
const TOLD: u64 = 20;

/// Arguments of `put`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry put photo.jpg
  blobferry put --store http://127.0.0.1:7080 --announce http://127.0.0.1:7070 ~/photos
  blobferry put --verbose --function blake3 ~/photos > refs.txt
  blobferry put --replace --announce http://127.0.0.1:7070 ~/photos/damaged.jpg
  blobferry put --announce http://ferry:7070 --source-store primary \\
    --store http://primary:7080 ~/photos

Folders are walked; symbolic links in them are not followed. What the store holds already is not \
sent again, unless --replace says so, but it is announced again, which is harmless. Announcements are retried for ten \
minutes while the replicator is away or full.

Exit codes: 0 all files are in the store, and announced; 1 some are not; 2 usage; \
3 store or replicator unreachable; 130 interrupted.")]
pub(super) struct PutArgs {
    /// Files and folders.
    #[arg(value_name = "PATH", required = true)]
    paths: Vec<PathBuf>,
    /// Announce each blob to the replicator at this address.
    #[arg(long, value_name = "URL")]
    announce: Option<String>,
    /// The name by which the replicator knows the store; may be left out where only one store is the source.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true, requires = "announce")]
    source_store: String,
    /// The digest function of the refs: sha256, blake3, sha512, sha224 or sha1.
    #[arg(long, value_name = "NAME", default_value = "sha256", value_parser = function)]
    function: DigestFunction,
    /// How many files are sent at a time (1 to 256).
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    streams: u16,
    /// Write also what the store holds already: it mends blobs whose bytes there are damaged.
    #[arg(long)]
    replace: bool,
    /// Print `REF SIZE PATH` for each file.
    #[arg(short, long)]
    verbose: bool,
    #[command(flatten)]
    store: StoreArg,
}

fn function(name: &str) -> Result<DigestFunction, String> {
    DigestFunction::from_name(name).ok_or_else(|| {
        let known: Vec<&str> = DigestFunction::ALL.iter().map(|function| function.name()).collect();
        format!("known are {}", known.join(", "))
    })
}

#[derive(Default)]
struct PutTally {
    files: u64,
    bytes: u64,
    sent_files: u64,
    sent_bytes: u64,
    failed: u64,
    links: u64,
}

/// What is done for good, for the case that it is interrupted.
#[derive(Default)]
struct PutDone {
    files: AtomicU64,
    announced: AtomicU64,
}

/// Puts, until told to stop. Whatever is cut can be done again.
pub(super) async fn put(args: PutArgs, stop: CancellationToken) -> Result<Exit, CommandError> {
    let done = Arc::new(PutDone::default());
    let announces = args.announce.is_some();
    match stop.run_until_cancelled(put_all(args, &done)).await {
        Some(ended) => ended,
        None => Err(CommandError::new(Exit::Interrupted, interrupted(&done, announces))),
    }
}

fn interrupted(done: &PutDone, announces: bool) -> String {
    let files = done.files.load(Ordering::Relaxed);
    let is = if files == 1 { "is" } else { "are" };
    let announced = if announces {
        format!(", {} announced", words::number(done.announced.load(Ordering::Relaxed)))
    } else {
        String::new()
    };
    let files = words::several(files, "file");
    format!("interrupted: {files} {is} in the store{announced}; run it again, nothing is sent twice")
}

async fn put_all(args: PutArgs, done: &Arc<PutDone>) -> Result<Exit, CommandError> {
    let address = args.store.address()?;
    let store = address.store()?;
    let info = store.info().await.map_err(|error| CommandError::of_store(address.url(), error))?;
    if info.kind == PeerKind::Replicator {
        return Err(no_store(&address, &info));
    }
    if !info.functions.contains(&args.function) {
        let known: Vec<&str> = info.functions.iter().map(|function| function.name()).collect();
        return Err(CommandError::new(Exit::Usage, format!("the store takes no {} refs", args.function))
            .hint(format!("it takes --function {}", known.join(", "))));
    }
    let board = if args.verbose { ProgressBoard::quiet() } else { ProgressBoard::new() };
    let began = Instant::now();

    // Both tasks end with this set, whichever way this function is left.
    let mut walks = JoinSet::new();
    let mut announcing = JoinSet::new();
    let (paths_in, paths) = mpsc::channel(AHEAD);
    walks.spawn_blocking(move || walk_into(args.paths, &paths_in));
    let mut announcing_at = None;
    let announcements =
        match &args.announce {
            None => None,
            Some(url) => {
                let at = Address::new(url, args.store.ca_file.clone().filter(|_| is_https(url)))?;
                let replicator = Replicator::at(&at)?;
                let (sender, blobs) = mpsc::channel(AHEAD);
                let (told, done) = (board.clone(), Arc::clone(done));
                announcing_at = Some(at);
                announcing.spawn(announce(replicator, args.source_store, blobs, Entropy::from_os(), move |event| {
                    match event {
                        AnnounceEvent::Accepted(blobs) => drop(done.announced.fetch_add(blobs, Ordering::Relaxed)),
                        AnnounceEvent::Retrying(error, delay) => {
                            let cause = words::cause(&error.to_string());
                            told.say(&format!("blobferry: {cause} (trying again in {})", words::span(delay)));
                        }
                    }
                }));
                Some(sender)
            }
        };

    let (mut tally, mut fatal) = (PutTally::default(), None);
    let plan = UploadPlan {
        function: args.function,
        streams: usize::from(args.streams),
        skip_present: info.abilities.stat,
        replace: args.replace,
    };
    let mut line = board.line("put");
    let uploads = upload_all(&store, ReceiverStream::new(paths), plan);
    let mut uploads = std::pin::pin!(uploads);
    while let Some(uploaded) = uploads.next().await {
        match uploaded {
            Ok(uploaded) => {
                tally.add(&uploaded);
                done.files.store(tally.files, Ordering::Relaxed);
                if args.verbose {
                    let BlobMeta { blob, size } = uploaded.file.meta;
                    output::line(&format!("{blob} {size} {}", uploaded.file.path.display()))?;
                }
                if let Some(announcements) = &announcements
                    && announcements.send(uploaded.file.meta).await.is_err()
                {
                    // The announcer has given up, and tells why below.
                    break;
                }
            }
            Err(error) if error.is_of_one_file() => tally.fail(&board, &error.to_string()),
            Err(error) => {
                // What was written before is still announced.
                fatal = Some(of_all(address.url(), error));
                break;
            }
        }
        line.update(tally.files, None, || {
            format!("{}, {}", words::noun_of(tally.files, "file"), words::bytes(tally.bytes))
        });
    }
    line.clear();
    drop(announcements);
    let announced = joined(&mut announcing, announcing_at.as_ref()).await;
    if let Some(fatal) = fatal {
        to_stderr(&tally.summary(announced.as_ref().ok().and_then(Option::as_ref), began.elapsed()));
        return Err(fatal.hint("run it again; what is written already will not be sent again"));
    }
    let announced = announced?;
    while let Some(walked) = walks.join_next().await {
        let (wrong, links) = walked.map_err(|error| CommandError::new(Exit::Failed, error.to_string()))?;
        tally.links += links;
        for error in wrong {
            tally.fail(&board, &error);
        }
    }
    if let Some(announced) = &announced
        && let Some(refusal) = &announced.first_refusal
    {
        let refused = words::several(announced.refused, "blob");
        to_stderr(&format!("blobferry: the replicator refused {refused}, such as {refusal}"));
    }
    to_stderr(&tally.summary(announced.as_ref(), began.elapsed()));
    let refused = announced.is_some_and(|announced| announced.refused > 0);
    Ok(if tally.failed > 0 || refused { Exit::Failed } else { Exit::Ok })
}

fn is_https(url: &str) -> bool {
    url.starts_with("https://")
}

/// Sends all files that the paths mean; answers what could not be looked into, and how many links were passed by.
fn walk_into(paths: Vec<PathBuf>, into: &mpsc::Sender<PathBuf>) -> (Vec<String>, u64) {
    let (mut wrong, links) = (Vec::new(), Cell::new(0));
    for found in walk::files(paths, &links) {
        match found {
            Ok(found) => {
                if into.blocking_send(found.path).is_err() {
                    break;
                }
            }
            Err(error) => wrong.push(error.to_string()),
        }
    }
    (wrong, links.get())
}

async fn joined(
    announcing: &mut JoinSet<Result<AnnounceSummary, ClientError>>,
    at: Option<&Address>,
) -> Result<Option<AnnounceSummary>, CommandError> {
    match announcing.join_next().await {
        None => Ok(None),
        Some(Ok(Ok(announced))) => Ok(Some(announced)),
        Some(Ok(Err(error))) => {
            let failure = match at {
                Some(at) => of_replicator(at, error).await,
                None => CommandError::from(error),
            };
            Err(failure.hint("the files that were written are safe in the store; run it again, or run a full sync"))
        }
        Some(Err(error)) => Err(CommandError::new(Exit::Failed, error.to_string())),
    }
}

/// What stops all files, not one alone.
fn of_all(url: &str, error: UploadError) -> CommandError {
    let UploadError { path, cause } = error;
    match cause {
        UploadCause::Store(error) => CommandError::of_store(url, error),
        cause => CommandError::new(Exit::Failed, format!("{}: {cause}", path.display())),
    }
}

impl PutTally {
    fn add(&mut self, uploaded: &Uploaded) {
        let size = uploaded.file.meta.size;
        self.files += 1;
        self.bytes += size;
        if uploaded.was_sent {
            self.sent_files += 1;
            self.sent_bytes += size;
        }
    }

    fn fail(&mut self, board: &ProgressBoard, what: &str) {
        self.failed += 1;
        match self.failed.checked_sub(TOLD) {
            None => board.say(&format!("blobferry: {what}")),
            Some(0) => board.say("blobferry: further failures are only counted"),
            Some(_) => {}
        }
    }

    fn summary(&self, announced: Option<&AnnounceSummary>, took: std::time::Duration) -> String {
        let mut summary = format!(
            "{}, {} in {}; sent {}, {}",
            words::several(self.files, "file"),
            words::bytes(self.bytes),
            words::span(took),
            words::number(self.sent_files),
            words::bytes(self.sent_bytes),
        );
        if let Some(announced) = announced {
            summary.push_str(&format!("; announced {}", words::number(announced.accepted)));
        }
        if self.failed > 0 {
            summary.push_str(&format!("; {} failed", words::number(self.failed)));
        }
        if self.links > 0 {
            summary.push_str(&format!("; {} not followed", words::several(self.links, "symbolic link")));
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::{PutDone, PutTally, function, interrupted, is_https};
    use crate::blob::DigestFunction;
    use crate::client::announcer::AnnounceSummary;
    use std::sync::atomic::Ordering;
    use std::time::Duration;

    #[test]
    fn the_summary_says_what_was_done_and_what_was_not() {
        let tally = PutTally { files: 1200, bytes: 2048, sent_files: 1, sent_bytes: 1024, failed: 2, links: 1 };
        let announced = AnnounceSummary { accepted: 1200, ..AnnounceSummary::default() };
        assert_eq!(
            tally.summary(Some(&announced), Duration::from_secs(2)),
            "1,200 files, 2.00 KiB in 2.00 s; sent 1, 1.00 KiB; announced 1,200; 2 failed; \
             1 symbolic link not followed"
        );
    }

    #[test]
    fn an_interruption_says_what_is_done_for_good() {
        let done = PutDone::default();
        assert_eq!(
            interrupted(&done, false),
            "interrupted: 0 files are in the store; run it again, nothing is sent twice"
        );
        done.files.store(1, Ordering::Relaxed);
        assert!(interrupted(&done, true).contains("1 file is in the store, 0 announced;"));
    }

    #[test]
    fn functions_go_by_their_names() {
        assert_eq!(function("blake3"), Ok(DigestFunction::Blake3));
        assert!(function("md5").unwrap_err().contains("sha256"));
        assert!(is_https("https://x:1") && !is_https("x:1"));
    }
}
