//! The acts of the demo, each over TCP and gRPC, as a stranger's program would do it.

use super::files::Chosen;
use super::lag::Curves;
use super::report::DemoReport;
use super::servers::Addresses;
use crate::blob::{BlobMeta, BlobRef, DigestFunction, Verifier};
use crate::cli::progress::ProgressBoard;
use crate::cli::{CommandError, Exit, RouteBacklog, route_backlog, sync_line, watch_sync};
use crate::client::Replicator;
use crate::client::announcer::{AnnounceEvent, announce};
use crate::client::upload::{LocalFile, UploadError, UploadPlan, identify, send, upload_all};
use crate::clock::{Clock as _, Entropy, SystemClock};
use crate::pb::v1;
use crate::store::remote::RemoteStore;
use crate::store::{ByteRange, Store as _, StoreError};
use crate::words;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

/// Blobs that are written, and read back, at a time.
const STREAMS: usize = 64;
/// Announcements that may wait for the announcer.
const AHEAD: usize = 1000;
/// Refs in one question which of them a store holds.
const PAGE: usize = 1000;
/// Between two looks at the replicator; lags are exact to this.
const LOOK: Duration = Duration::from_millis(50);
/// Without a blob confirmed for so long, something is wrong.
const PATIENCE: Duration = Duration::from_mins(1);
/// Wrong blobs that are named one by one.
const NAMED: usize = 10;
/// Blobs that are cut from files where no file is left for the surprise.
const PIECES: usize = 200;
const FUNCTION: DigestFunction = DigestFunction::Sha256;

/// All distinct blobs, and their sizes.
pub(super) type Blobs = HashMap<BlobRef, u64>;

/// The peers, as clients see them.
pub(super) struct DemoStage {
    source: RemoteStore,
    destination: RemoteStore,
    replicator: Replicator,
    board: ProgressBoard,
}

/// What was written to the source store.
#[derive(Default)]
struct Written {
    blobs: Blobs,
    skipped: u64,
    sample: Option<LocalFile>,
}

impl DemoStage {
    pub(super) fn new(at: &Addresses, board: &ProgressBoard) -> Result<Self, CommandError> {
        Ok(Self {
            source: at.source.store()?,
            destination: at.destination.store()?,
            replicator: Replicator::at(&at.replicator)?,
            board: board.clone(),
        })
    }

    /// Writes the files to the source store, announces each blob once, and waits until all are copied.
    pub(super) async fn ferry(&self, files: Vec<PathBuf>, report: &mut DemoReport) -> Result<Blobs, CommandError> {
        let began = Instant::now();
        let curves = Mutex::new(Curves::new(began));
        let all_announced = AtomicBool::new(false);
        let (written, ()) = tokio::try_join!(
            async {
                let written = self.write(files, &curves).await?;
                all_announced.store(true, Ordering::Release);
                Ok::<_, CommandError>(written)
            },
            self.follow(&curves, &all_announced),
        )?;
        report.ferry_took = began.elapsed();
        report.lags = curves.into_inner().lags();
        report.ferried_blobs = written.blobs.len() as u64;
        report.ferried_bytes = written.blobs.values().sum();
        report.skipped = written.skipped;
        report.sample = written.sample;
        Ok(written.blobs)
    }

    async fn write(&self, files: Vec<PathBuf>, curves: &Mutex<Curves>) -> Result<Written, CommandError> {
        let total = files.len() as u64;
        let (announcements, queue) = mpsc::channel(AHEAD);
        let announcing = async {
            let announced =
                announce(self.replicator.clone(), String::new(), queue, Entropy::from_os(), |event| match event {
                    AnnounceEvent::Accepted(blobs) => curves.lock().enqueued(Instant::now(), blobs),
                    AnnounceEvent::Retrying(error, delay) => {
                        self.board.say(&format!("{error} (trying again in {})", words::span(delay)));
                    }
                });
            match announced.await? {
                announced if announced.refused > 0 => Err(CommandError::new(
                    Exit::Failed,
                    format!("the replicator refused a ref: {}", announced.first_refusal.unwrap_or_default()),
                )),
                _ => Ok(()),
            }
        };
        let writing = async move {
            let mut line = self.board.line("written, announced");
            let mut written = Written::default();
            let plan = UploadPlan { function: FUNCTION, streams: STREAMS, skip_present: false, replace: false };
            let mut uploads = std::pin::pin!(upload_all(&self.source, stream::iter(files), plan));
            let (mut done, mut bytes) = (0, 0);
            while let Some(uploaded) = uploads.next().await {
                done += 1;
                match usable(uploaded.map(|uploaded| uploaded.file))? {
                    None => written.skipped += 1,
                    Some(file) => {
                        bytes += file.meta.size;
                        if written.blobs.insert(file.meta.blob, file.meta.size).is_none()
                            && announcements.send(file.meta).await.is_err()
                        {
                            // The announcer has given up, and tells why.
                            break;
                        }
                        if is_better_sample(&file, written.sample.as_ref()) {
                            written.sample = Some(file);
                        }
                    }
                }
                let took = line.elapsed();
                line.update(done, Some(total), || rates(done, bytes, took));
            }
            Ok::<_, CommandError>(written)
        };
        let (written, ()) = tokio::try_join!(writing, announcing)?;
        Ok(written)
    }

    /// Follows the replicator until all was announced and nothing waits any more.
    async fn follow(&self, curves: &Mutex<Curves>, all_announced: &AtomicBool) -> Result<(), CommandError> {
        let mut replicator = self.replicator.clone();
        let mut line = self.board.line("copied, confirmed");
        let mut last = (0, Instant::now());
        loop {
            // Before the look: what it sees then includes all announcements.
            let is_whole = all_announced.load(Ordering::Acquire);
            let status = replicator.status(Vec::new()).await?;
            let now = Instant::now();
            let Some(route) = status.routes.first() else {
                return Err(CommandError::new(Exit::Failed, "the replicator shows no route"));
            };
            let totals = route.since_start.unwrap_or_default();
            let backlog = route_backlog(route);
            let enqueued = {
                let mut curves = curves.lock();
                curves.confirmed(now, totals.confirmed_blobs());
                curves.total()
            };
            let took = line.elapsed();
            // Of nothing, everything would be done.
            line.update(totals.confirmed_blobs(), (enqueued > 0).then_some(enqueued), || {
                rates(totals.copied_blobs(), totals.copied_bytes(), took)
            });
            if is_whole && backlog.waiting == 0 {
                return if backlog.parked == 0 { Ok(()) } else { Err(stuck(route, &backlog)) };
            }
            if totals.confirmed_blobs() > last.0 || backlog.waiting == 0 {
                last = (totals.confirmed_blobs(), now);
            } else if now.duration_since(last.1) > PATIENCE {
                return Err(stuck(route, &backlog));
            }
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Writes blobs to the source store that nobody announces, and has a full sync find and copy them.
    pub(super) async fn surprise(
        &self,
        chosen: &Chosen,
        blobs: &mut Blobs,
        report: &mut DemoReport,
    ) -> Result<(), CommandError> {
        let hidden = self.hide(chosen, blobs, report).await?;
        let began = Instant::now();
        let mut replicator = self.replicator.clone();
        let sync = loop {
            let request_id = Entropy::from_os().id(SystemClock::new().now());
            let (sync, already_running) = replicator.trigger_full_sync(String::new(), request_id).await?;
            let ended = watch_sync(&mut replicator, sync.id, &self.board).await?;
            if !already_running {
                break ended;
            }
        };
        report.sync_took = began.elapsed();
        let counts = sync.counts.unwrap_or_default();
        report.hidden = hidden.len() as u64;
        report.compared = counts.source_blobs();
        report.found = counts.missing().saturating_add(counts.differing());
        report.found_confirmed = counts.confirmed();
        if sync.state() != v1::FullSyncState::Completed {
            return Err(CommandError::new(
                Exit::Failed,
                format!("the full sync did not complete: {}", sync_line(&sync, None)),
            ));
        }
        blobs.extend(hidden);
        Ok(())
    }

    /// Writes blobs to the source store that the destination lacks, and answers them.
    async fn hide(&self, chosen: &Chosen, blobs: &mut Blobs, report: &mut DemoReport) -> Result<Blobs, CommandError> {
        let identified = stream::iter(chosen.held_back.clone()).map(|path| identify(path, FUNCTION));
        let mut identified = identified.buffer_unordered(STREAMS);
        let mut fresh: HashMap<BlobRef, LocalFile> = HashMap::new();
        while let Some(file) = identified.next().await {
            match usable(file)? {
                None => report.skipped += 1,
                Some(file) if blobs.contains_key(&file.meta.blob) => {}
                Some(file) => drop(fresh.insert(file.meta.blob, file)),
            }
        }
        // In a folder that was used before, the destination may hold them.
        let held = self.held_at_destination(fresh.keys().copied().collect()).await?;
        let (held, mut hidden): (Vec<_>, Vec<_>) = fresh.into_values().partition(|f| held.contains(&f.meta.blob));
        if hidden.is_empty() {
            hidden = self.pieces(chosen, blobs).await?;
            report.pieces = hidden.len() as u64;
        }
        for (files, is_hidden) in [(held, false), (hidden, true)] {
            let metas: Blobs = files.iter().map(|file| (file.meta.blob, file.meta.size)).collect();
            let mut line = self.board.line("written in silence");
            let total = files.len() as u64;
            let mut sends = stream::iter(files).map(|file| send(&self.source, file, false)).buffer_unordered(STREAMS);
            let mut done = 0;
            while let Some(sent) = sends.next().await {
                sent.map_err(upload_failure)?;
                done += 1;
                line.update(done, Some(total), String::new);
            }
            if is_hidden {
                return Ok(metas);
            }
            blobs.extend(metas);
        }
        Ok(Blobs::new())
    }

    /// Blobs cut from the files at other offsets, none of which is known at either end.
    async fn pieces(&self, chosen: &Chosen, blobs: &Blobs) -> Result<Vec<LocalFile>, CommandError> {
        let mut offset = 1;
        // Each run on the same folder cuts one byte further.
        while offset <= 64 {
            let paths: Vec<PathBuf> = chosen.files.iter().take(PIECES).cloned().collect();
            let cut = tokio::task::spawn_blocking(move || {
                let whole = paths.into_iter().filter_map(|path| Some((std::fs::read(&path).ok()?, path)));
                let long = whole.filter(|(bytes, _)| bytes.len() > offset);
                long.map(|(bytes, path)| LocalFile::from_bytes(path, FUNCTION, Bytes::from(bytes).slice(offset..)))
                    .collect::<Vec<_>>()
            });
            let cut = cut.await.map_err(|error| CommandError::new(Exit::Failed, error.to_string()))?;
            let held = self.held_at_destination(cut.iter().map(|file| file.meta.blob).collect()).await?;
            let mut seen = HashSet::new();
            let pieces: Vec<LocalFile> = cut
                .into_iter()
                .filter(|file| !held.contains(&file.meta.blob) && !blobs.contains_key(&file.meta.blob))
                .filter(|file| seen.insert(file.meta.blob))
                .collect();
            if !pieces.is_empty() {
                return Ok(pieces);
            }
            offset += 1;
        }
        Ok(Vec::new())
    }

    async fn held_at_destination(&self, blobs: Vec<BlobRef>) -> Result<HashSet<BlobRef>, CommandError> {
        let mut held = HashSet::new();
        for page in blobs.chunks(PAGE) {
            held.extend(self.destination.stat(page).await?.into_iter().map(|meta| meta.blob));
        }
        Ok(held)
    }

    /// Reads every blob back from the destination store, and compares digests and sizes.
    pub(super) async fn verify(&self, blobs: &Blobs, report: &mut DemoReport) -> Result<(), CommandError> {
        let began = Instant::now();
        let mut line = self.board.line("read back, verified");
        let total = blobs.len() as u64;
        let metas: Vec<BlobMeta> = blobs.iter().map(|(&blob, &size)| BlobMeta { blob, size }).collect();
        let mut reads = stream::iter(metas).map(|meta| self.read_back(meta)).buffer_unordered(STREAMS);
        let (mut done, mut bytes) = (0, 0);
        while let Some((meta, verdict)) = reads.next().await {
            done += 1;
            bytes += meta.size;
            match verdict {
                Ok(()) => report.verified_blobs += 1,
                Err(error) => {
                    report.wrong_blobs += 1;
                    if report.wrong.len() < NAMED {
                        report.wrong.push(format!("{}: {error}", meta.blob));
                    }
                }
            }
            let took = line.elapsed();
            line.update(done, Some(total), || rates(done, bytes, took));
        }
        report.total_blobs = total;
        report.total_bytes = bytes;
        report.verify_took = began.elapsed();
        Ok(())
    }

    async fn read_back(&self, meta: BlobMeta) -> (BlobMeta, Result<(), StoreError>) {
        let verdict = async {
            let mut fetched = self.destination.fetch(meta.blob, ByteRange::default()).await?;
            let mut verifier = Verifier::new(meta.blob, Some(meta.size));
            while let Some(chunk) = fetched.bytes.next().await {
                verifier.update(&chunk?)?;
            }
            verifier.finish()?;
            Ok(())
        };
        (meta, verdict.await)
    }
}

/// The file, or nothing where it alone cannot be used: it vanished, cannot be read, or was changed meanwhile.
fn usable(file: Result<LocalFile, UploadError>) -> Result<Option<LocalFile>, CommandError> {
    match file {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.is_of_one_file() => Ok(None),
        Err(error) => Err(upload_failure(error)),
    }
}

fn upload_failure(error: UploadError) -> CommandError {
    CommandError::new(Exit::Failed, error.to_string()).hint("is the disk full?")
}

fn stuck(route: &v1::RouteStatus, backlog: &RouteBacklog) -> CommandError {
    let fault = route.recent_faults.first().and_then(|group| group.fault.as_ref());
    let cause = fault.map_or_else(String::new, |fault| format!("; {}: {}", fault.kind().as_str_name(), fault.message));
    let (waiting, parked) = (words::number(backlog.waiting), words::number(backlog.parked));
    CommandError::new(
        Exit::Failed,
        format!("the copying does not come to its end: {waiting} wait, {parked} are parked: {}{cause}", route.summary),
    )
}

/// The largest blob that is shown within a line to paste.
const LINE_BYTES: usize = 256;

/// A short blob that is not empty, to be pasted into a command line.
fn is_better_sample(file: &LocalFile, than: Option<&LocalFile>) -> bool {
    let fits = |bytes: &[u8]| !bytes.is_empty() && bytes.len() <= LINE_BYTES;
    file.kept_bytes().is_some_and(|bytes| fits(bytes)) && than.is_none_or(|than| file.meta.size < than.meta.size)
}

fn rates(blobs: u64, bytes: u64, took: Duration) -> String {
    let bytes_rate = words::bytes_rate(words::per_second(bytes, took));
    format!("{}, {bytes_rate}", words::rate(words::per_second(blobs, took)))
}
