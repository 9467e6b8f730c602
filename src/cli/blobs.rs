//! `blobferry get`, `ls` and `stat`: a store, read.

use super::progress::to_stderr;
use super::{CommandError, Exit, StoreArg, of_store, output};
use crate::blob::{BlobMeta, BlobRef, RefPrefix, Verifier};
use crate::client::Address;
use crate::pb::to_json;
use crate::pb::v1;
use crate::store::{ByteRange, ByteStream, EnumerateRange, Store, StoreError};
use crate::words;
use bytes::Bytes;
use clap::Args;
use futures::stream::{StreamExt as _, TryStreamExt as _};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use tokio::io::AsyncWriteExt as _;

/// The most refs in one question.
const PAGE: usize = 1000;

/// Arguments of `get`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry get --store http://127.0.0.1:7081 sha256-2cf24dba > hello.txt
  blobferry get sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824 -o hello.txt

A file appears under its name only once every byte was verified. On stdout, the last chunk is \
held back until then, so that bytes with another digest are never written whole; the exit code is \
then 1.

Exit codes: 0 read and verified; 1 the bytes are wrong, or cannot be written; 2 not a ref, or the \
beginning of several; 3 unreachable; 4 not held.")]
pub(super) struct GetArgs {
    /// The blob's ref, or its beginning with 8 digits or more.
    #[arg(value_name = "REF")]
    blob: String,
    /// Write to this file instead of stdout; it is replaced, unless it is a device or a pipe.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    #[command(flatten)]
    store: StoreArg,
}

pub(super) async fn get(args: GetArgs) -> Result<Exit, CommandError> {
    let address = args.store.address()?;
    let store = address.store()?;
    let Some(blob) = RefArgument::parse(&args.blob)?.resolve(&store, &address).await? else {
        return Err(CommandError::new(Exit::No, format!("no blob of {} begins with {}", address.url(), args.blob)));
    };
    let fetched = match store.fetch(blob, ByteRange::default()).await {
        Ok(fetched) => fetched,
        Err(error) => return Err(of_store(&address, error).await),
    };
    let verified = VerifiedBytes { bytes: fetched.bytes, verifier: Verifier::new(blob, Some(fetched.size)) };
    match args.output {
        Some(path) => to_file(verified, &path).await?,
        None => verified.each(async |chunk| output::write(&chunk)).await?,
    }
    Ok(Exit::Ok)
}

/// Bytes on their way out, the last of them held back until all are verified.
struct VerifiedBytes {
    bytes: ByteStream,
    verifier: Verifier,
}

impl VerifiedBytes {
    async fn each(mut self, mut take: impl AsyncFnMut(Bytes) -> Result<(), CommandError>) -> Result<(), CommandError> {
        let wrong = |error| CommandError::new(Exit::Failed, format!("the store sent wrong bytes: {error}"));
        let mut held = Bytes::new();
        while let Some(chunk) = self.bytes.next().await {
            let chunk = chunk?;
            self.verifier.update(&chunk).map_err(wrong)?;
            if !chunk.is_empty() {
                take(std::mem::replace(&mut held, chunk)).await?;
            }
        }
        self.verifier.finish().map_err(wrong)?;
        take(held).await
    }
}

/// Writes to a name of its own beside the file, and gives it the file's name when all is verified.
async fn to_file(verified: VerifiedBytes, path: &Path) -> Result<(), CommandError> {
    let failed = |error: std::io::Error| {
        CommandError::new(Exit::Failed, format!("{} cannot be written: {error}", path.display()))
    };
    // A device or a pipe is written to, as stdout is: a file in its place would take it away from everybody.
    if std::fs::metadata(path).is_ok_and(|found| !found.is_file() && !found.is_dir()) {
        let mut out = tokio::fs::File::options().write(true).open(path).await.map_err(failed)?;
        verified.each(async |chunk| out.write_all(&chunk).await.map_err(failed)).await?;
        return out.flush().await.map_err(failed);
    }
    let Some(name) = path.file_name() else {
        return Err(CommandError::new(Exit::Usage, format!("{} names no file", path.display())));
    };
    let mut partial = name.to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    // Removed when this is left early, also where the command is interrupted.
    let partial = Partial { path: path.with_file_name(partial), kept: false };
    let mut file = tokio::fs::File::create(&partial.path).await.map_err(failed)?;
    verified.each(async |chunk| file.write_all(&chunk).await.map_err(failed)).await?;
    file.flush().await.map_err(failed)?;
    file.sync_all().await.map_err(failed)?;
    tokio::fs::rename(&partial.path, path).await.map_err(failed)?;
    partial.keep();
    Ok(())
}

struct Partial {
    path: PathBuf,
    kept: bool,
}

impl Partial {
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.kept {
            // There may be none yet.
            drop(std::fs::remove_file(&self.path));
        }
    }
}

/// Arguments of `ls`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry ls --store http://127.0.0.1:7081
  blobferry ls --after sha256-80 --limit 10
  blobferry ls --json | jq -r .ref
  diff <(blobferry ls --store http://a:7080) <(blobferry ls --store http://b:7080)

Prints `REF SIZE` lines.

Exit codes: 0 listed; 1 the listing failed or was cut; 3 unreachable.")]
pub(super) struct LsArgs {
    /// Only refs that sort after this text.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    after: String,
    /// Only refs up to and with this text.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    until: String,
    /// At most so many.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Print one JSON object per line, as grpcurl prints a blob.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArg,
}

pub(super) async fn ls(args: LsArgs) -> Result<Exit, CommandError> {
    let address = args.store.address()?;
    let range = EnumerateRange { after: args.after, until: args.until, limit: args.limit };
    let mut pages = match address.store()?.enumerate(range).await {
        Ok(pages) => pages,
        Err(error) => return Err(of_store(&address, error).await),
    };
    let mut last = None;
    while let Some(page) = pages.next().await {
        let page = match page {
            Ok(page) => page,
            Err(error) => return Err(of_store(&address, error).await),
        };
        let mut text = String::with_capacity(page.blobs.len() * 90);
        for meta in &page.blobs {
            text.push_str(&meta_line(meta, args.json)?);
        }
        output::write(text.as_bytes())?;
        last = page.blobs.last().map(|meta| meta.blob).or(last);
        for (function, blobs) in &page.unknown {
            let what = words::several(*blobs, "ref");
            to_stderr(&format!("blobferry: {what} of the unknown function {function} left out"));
        }
        if let Some(end) = page.end {
            if let (false, Some(last)) = (end.complete, last) {
                to_stderr(&format!("blobferry: there may be more; go on with --after {last}"));
            }
            return Ok(Exit::Ok);
        }
    }
    Err(CommandError::of_store(address.url(), StoreError::Protocol("the listing was cut".to_owned())))
}

fn meta_line(meta: &BlobMeta, json: bool) -> Result<String, CommandError> {
    if !json {
        return Ok(format!("{} {}\n", meta.blob, meta.size));
    }
    let message = v1::BlobMeta { r#ref: meta.blob.to_string(), size_bytes: Some(meta.size) };
    Ok(format!("{}\n", to_json("BlobMeta", &message)?))
}

/// Arguments of `stat`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry stat sha256-2cf24dba
  blobferry stat --store http://127.0.0.1:7081 sha256-2cf24dba sha256-e3b0c442
  blobferry ls --store http://a:7080 | cut -d' ' -f1 |
    xargs blobferry stat --store http://b:7080

Prints `REF SIZE` lines in the order of the arguments, and `REF missing` to stderr.

Exit codes: 0 all are held; 2 not a ref, or the beginning of several; 3 unreachable; 4 some are missing.")]
pub(super) struct StatArgs {
    /// The blobs' refs, or their beginnings with 8 digits or more.
    #[arg(value_name = "REF", required = true)]
    blobs: Vec<String>,
    /// Print one JSON object per line, as grpcurl prints a blob.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    store: StoreArg,
}

pub(super) async fn stat(args: StatArgs) -> Result<Exit, CommandError> {
    let address = args.store.address()?;
    let store = address.store()?;
    let refs = args.blobs.iter().map(|text| RefArgument::parse(text)).collect::<Result<Vec<_>, _>>()?;
    let (mut blobs, mut missing) = (Vec::with_capacity(refs.len()), 0u64);
    for (typed, text) in refs.iter().zip(&args.blobs) {
        match typed.resolve(&store, &address).await? {
            Some(blob) => blobs.push(blob),
            None => {
                missing += 1;
                to_stderr(&format!("{text} missing"));
            }
        }
    }
    for page in blobs.chunks(PAGE) {
        let held = match store.stat(page).await {
            Ok(held) => held,
            Err(error) => return Err(of_store(&address, error).await),
        };
        let held: HashMap<BlobRef, u64> = held.into_iter().map(|meta| (meta.blob, meta.size)).collect();
        for blob in page {
            match held.get(blob) {
                Some(&size) => {
                    output::write(meta_line(&BlobMeta { blob: *blob, size }, args.json)?.as_bytes())?;
                }
                None => {
                    missing += 1;
                    to_stderr(&format!("{blob} missing"));
                }
            }
        }
    }
    Ok(if missing == 0 { Exit::Ok } else { Exit::No })
}

/// A ref, or the beginning of one, as it is typed.
enum RefArgument {
    Ref(BlobRef),
    Prefix(RefPrefix),
}

impl RefArgument {
    fn parse(text: &str) -> Result<Self, CommandError> {
        match (text.parse(), RefPrefix::parse(text)) {
            (Ok(blob), _) => Ok(Self::Ref(blob)),
            (Err(_), Some(prefix)) => Ok(Self::Prefix(prefix)),
            (Err(error), None) => Err(CommandError::new(Exit::Usage, error.to_string())
                .hint("or give its beginning, with 8 lower-case digits or more")),
        }
    }

    /// The blob; `None` where no blob of the store begins so.
    async fn resolve(&self, store: &impl Store, address: &Address) -> Result<Option<BlobRef>, CommandError> {
        let prefix = match self {
            Self::Ref(blob) => return Ok(Some(*blob)),
            Self::Prefix(prefix) => prefix,
        };
        let range = EnumerateRange { limit: Some(2), ..EnumerateRange::beginning_with(prefix.as_str()) };
        let listed = async { store.enumerate(range).await?.try_collect::<Vec<_>>().await }.await;
        let pages = match listed {
            Ok(pages) => pages,
            Err(error) => return Err(of_store(address, error).await),
        };
        let found: Vec<BlobRef> = pages.iter().flat_map(|page| &page.blobs).map(|meta| meta.blob).collect();
        match found[..] {
            [] => Ok(None),
            [blob] => Ok(Some(blob)),
            [first, second, ..] => {
                let what = format!("several blobs begin with {prefix}, such as {first}, {second}");
                Err(CommandError::new(Exit::Usage, what).hint("give more digits"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{VerifiedBytes, to_file};
    use crate::blob::{DigestFunction, Verifier};
    use crate::cli::Exit;
    use bytes::Bytes;
    use futures::stream::{self, StreamExt as _};

    fn bytes(expected: &[u8], sent: &'static [&'static [u8]]) -> VerifiedBytes {
        let verifier = Verifier::new(DigestFunction::Sha256.ref_of(expected), Some(expected.len() as u64));
        VerifiedBytes { bytes: stream::iter(sent).map(|chunk| Ok(Bytes::from_static(chunk))).boxed(), verifier }
    }

    #[tokio::test]
    async fn the_last_chunk_goes_out_only_when_the_digest_matched() {
        let mut out = Vec::new();
        let taken = bytes(b"hello", &[b"he", b"", b"llo"]).each(async |chunk| {
            out.extend_from_slice(&chunk);
            Ok(())
        });
        taken.await.unwrap();
        assert_eq!(out, b"hello");
        out.clear();
        let taken = bytes(b"hello", &[b"he", b"llO"]).each(async |chunk| {
            out.extend_from_slice(&chunk);
            Ok(())
        });
        assert_eq!(taken.await.unwrap_err().exit, Exit::Failed);
        assert_eq!(out, b"he");
    }

    #[tokio::test]
    async fn a_file_appears_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        to_file(bytes(b"hello", &[b"hell"]), &path).await.unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        to_file(bytes(b"", &[]), &path).await.unwrap();
        to_file(bytes(b"hello", &[b"hello"]), &path).await.unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"hello");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
