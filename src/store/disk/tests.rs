//! What the conformance suite cannot see: what lies in the folder, and what is left after a crash.

use super::{CHUNK_BYTES, DiskStore, SMALL_BYTES, WRITE_BYTES};
use crate::blob::{BlobRef, DigestFunction};
use crate::clock::Entropy;
use crate::store::{
    ByteRange, ByteStream, EnumerateEnd, EnumerateRange, Put, Received, Store, StoreError, conformance,
};
use bytes::{Bytes, BytesMut};
use futures::future::join_all;
use futures::{StreamExt, stream};
use rand::RngCore as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LARGE: usize = 300_000;

fn random(size: usize) -> (BlobRef, Bytes) {
    let mut bytes = vec![0; size];
    rand::rng().fill_bytes(&mut bytes);
    (DigestFunction::Sha256.ref_of(&bytes), bytes.into())
}

fn one(bytes: &Bytes) -> ByteStream {
    stream::iter([Ok(bytes.clone())]).boxed()
}

fn put(blob: BlobRef, bytes: &Bytes) -> Put {
    Put { blob, size: Some(bytes.len() as u64), replace: false }
}

async fn write(store: &DiskStore, blob: BlobRef, bytes: &Bytes) -> Result<Received, StoreError> {
    store.receive(put(blob, bytes), one(bytes)).await
}

async fn read(store: &DiskStore, blob: BlobRef) -> Result<Bytes, StoreError> {
    let mut fetched = store.fetch(blob, ByteRange::default()).await?;
    let mut whole = BytesMut::new();
    while let Some(chunk) = fetched.bytes.next().await {
        whole.extend_from_slice(&chunk?);
    }
    Ok(whole.freeze())
}

fn incoming(folder: &Path) -> usize {
    fs::read_dir(folder.join("incoming")).unwrap().count()
}

fn file_of(folder: &Path, blob: BlobRef) -> PathBuf {
    let text = blob.to_string();
    let (name, hex) = text.split_once('-').unwrap();
    folder.join("blobs").join(name).join(&hex[..2]).join(hex)
}

async fn open(folder: impl Into<PathBuf>) -> Result<DiskStore, StoreError> {
    DiskStore::open(folder, Arc::new(Entropy::from_os())).await
}

/// Opens a store that was just dropped; its last reads may still be ending.
async fn reopen(folder: &Path) -> DiskStore {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match open(folder).await {
            Ok(store) => return store,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

async fn soon(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn conforms() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    conformance::assert_passes(&store).await;
    soon("unfinished files are gone", || incoming(folder.path()) == 0).await;
}

#[tokio::test]
async fn conforms_when_reopened_with_blobs_in_it() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    let blobs: Vec<_> = (0..1500).map(random).collect();
    for answer in join_all(blobs.iter().map(|(blob, bytes)| write(&store, *blob, bytes))).await {
        assert!(answer.unwrap().was_new || blobs[0].1.is_empty());
    }
    drop(store);
    conformance::assert_passes(&reopen(folder.path()).await).await;
}

#[tokio::test]
async fn blobs_and_store_id_survive_reopening() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    let id = store.info().await.unwrap().store_id;
    let blobs: Vec<_> = [0, 1, 511, 512, SMALL_BYTES, SMALL_BYTES + 1, WRITE_BYTES * 3 + 1].map(random).into();
    for (blob, bytes) in &blobs {
        write(&store, *blob, bytes).await.unwrap();
    }
    store.close().await.unwrap();

    let store = open(folder.path()).await.unwrap();
    assert_eq!(store.info().await.unwrap().store_id, id);
    for (blob, bytes) in &blobs {
        assert_eq!(read(&store, *blob).await.unwrap(), bytes);
        assert!(!write(&store, *blob, bytes).await.unwrap().was_new);
    }
}

#[tokio::test]
async fn a_second_store_on_the_folder_is_refused() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    // Opening must not take the first one's unfinished files away.
    fs::write(folder.path().join("incoming/unfinished"), b"x").unwrap();
    match open(folder.path()).await {
        Err(StoreError::Invalid(text)) => assert!(text.contains("in use by another store"), "{text}"),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("opened twice"),
    }
    assert_eq!(incoming(folder.path()), 1);
    drop(store);
    reopen(folder.path()).await;
    assert_eq!(incoming(folder.path()), 0);
}

#[tokio::test]
async fn folders_that_are_no_whole_store_are_refused() {
    async fn refusal(folder: &Path) -> String {
        match open(folder).await {
            Err(error @ (StoreError::Invalid(_) | StoreError::Io { .. })) => error.to_string(),
            Err(error) => panic!("{error}"),
            Ok(_) => panic!("opened"),
        }
    }
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a/b");
    fs::create_dir_all(&path).unwrap();
    fs::write(path.join("thesis.tex"), b"x").unwrap();
    assert!(refusal(&path).await.contains("not a store and not empty"));

    fs::remove_file(path.join("thesis.tex")).unwrap();
    drop(open(&path).await.unwrap());
    drop(reopen(&path).await);
    fs::rename(path.join("store-id"), folder.path().join("id")).unwrap();
    assert!(refusal(&path).await.contains("lost its store-id"));
    fs::rename(folder.path().join("id"), path.join("store-id")).unwrap();

    fs::rename(path.join("index"), folder.path().join("index")).unwrap();
    assert!(refusal(&path).await.contains("does not exist"));
    assert!(!path.join("index/CURRENT").exists());

    fs::write(path.join("format"), "blobferry-store 2\n").unwrap();
    assert!(refusal(&path).await.contains("format"));
}

#[tokio::test]
async fn a_store_whose_making_was_cut_short_is_made_again() {
    let folder = TempDir::new().unwrap();
    drop(open(folder.path()).await.unwrap());
    fs::remove_file(folder.path().join("format")).unwrap();
    fs::remove_file(folder.path().join("store-id")).unwrap();
    let (blob, bytes) = random(LARGE);
    write(&reopen(folder.path()).await, blob, &bytes).await.unwrap();
    assert!(folder.path().join("format").exists());
}

#[tokio::test]
async fn a_dropped_receiver_leaves_nothing() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    let (blob, bytes) = random(3 * WRITE_BYTES);
    for came in [0, 10, SMALL_BYTES + 1, WRITE_BYTES, bytes.len()] {
        for size in [Some(bytes.len() as u64), None] {
            let chunks = stream::iter([Ok(bytes.slice(..came))]).chain(stream::pending()).boxed();
            let receive = store.receive(Put { blob, size, replace: false }, chunks);
            assert!(tokio::time::timeout(Duration::from_millis(50), receive).await.is_err());
        }
    }
    soon("the unfinished files are gone", || incoming(folder.path()) == 0).await;
    assert!(store.stat(&[blob]).await.unwrap().is_empty());
    assert!(!file_of(folder.path(), blob).exists());
}

#[tokio::test]
async fn a_receiver_dropped_at_any_poll_leaves_nothing_or_a_whole_blob() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    for size in [1000, LARGE] {
        let mut finished = false;
        for polls in 1.. {
            let (blob, bytes) = random(size);
            let mut receive = std::pin::pin!(Some(store.receive(put(blob, &bytes), one(&bytes))));
            let mut seen = 0;
            // Ends after a number of polls, or when the blob is received.
            let answer = std::future::poll_fn(|context| {
                let Some(receive) = receive.as_mut().as_pin_mut() else { return std::task::Poll::Ready(None) };
                let state = receive.poll(context);
                seen += 1;
                if state.is_pending() && seen == polls { std::task::Poll::Ready(None) } else { state.map(Some) }
            })
            .await;
            receive.set(None);
            if let Some(answer) = answer {
                answer.unwrap();
                finished = true;
                break;
            }
            soon("the unfinished files are gone", || incoming(folder.path()) == 0).await;
            // Dropped while its batch was written, it may be there, and then it is whole.
            match read(&store, blob).await {
                Ok(found) => assert_eq!(found, bytes),
                Err(error) => assert!(matches!(error, StoreError::Missing(_)), "{error}"),
            }
        }
        assert!(finished);
    }
}

#[tokio::test]
async fn refused_bytes_leave_no_file() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    let (blob, _) = random(LARGE);
    let (_, other) = random(LARGE);
    let wrong = Put { blob, size: None, replace: false };
    assert!(matches!(store.receive(wrong.clone(), one(&other)).await, Err(StoreError::Mismatch(_))));
    assert_eq!(incoming(folder.path()), 0);
    let failing = stream::iter([Ok(other), Err(StoreError::Protocol("cut".to_owned()))]).boxed();
    assert!(matches!(store.receive(wrong, failing).await, Err(StoreError::Input(_))));
    soon("the unfinished file is gone", || incoming(folder.path()) == 0).await;
    assert!(!file_of(folder.path(), blob).exists());
}

#[tokio::test]
async fn a_file_that_the_index_does_not_know_is_invisible_and_replaced() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    let (blob, bytes) = random(LARGE);
    let path = file_of(folder.path(), blob);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, b"torn").unwrap();
    assert!(matches!(read(&store, blob).await, Err(StoreError::Missing(_))));
    assert!(write(&store, blob, &bytes).await.unwrap().was_new);
    assert_eq!(read(&store, blob).await.unwrap(), bytes);
}

#[tokio::test]
async fn corrupt_files_are_noticed_before_their_last_chunk_and_repaired() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    let (blob, bytes) = random(2 * CHUNK_BYTES + 5);
    write(&store, blob, &bytes).await.unwrap();
    let path = file_of(folder.path(), blob);

    // The same size: only a whole read tells, and never gives all bytes.
    let mut spoiled = bytes.to_vec();
    spoiled[3] ^= 1;
    fs::write(&path, &spoiled).unwrap();
    let mut fetched = store.fetch(blob, ByteRange::default()).await.unwrap();
    let mut came = 0;
    let error = loop {
        match fetched.bytes.next().await.unwrap() {
            Ok(chunk) => came += chunk.len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(came < bytes.len());
    assert!(fetched.bytes.next().await.is_none());
    let replace = Put { replace: true, ..put(blob, &bytes) };
    assert!(!store.receive(replace, one(&bytes)).await.unwrap().was_new);
    assert_eq!(read(&store, blob).await.unwrap(), bytes);

    // Another size, or gone: any read tells, and plain receiving mends it.
    for damage in [Some(&bytes[1..]), Some(&[&bytes[..], b"x"].concat()[..]), None] {
        match damage {
            Some(damage) => fs::write(&path, damage).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        let start = ByteRange { offset: 0, length: Some(1) };
        assert!(matches!(store.fetch(blob, start).await, Err(StoreError::Corrupt { .. })));
        assert!(!write(&store, blob, &bytes).await.unwrap().was_new);
        assert_eq!(read(&store, blob).await.unwrap(), bytes);
    }
}

#[tokio::test]
async fn a_corrupt_small_blob_is_noticed_and_repaired() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    let (blob, bytes) = random(1000);
    let (_, other) = random(1000);
    // A commit that skips verification, as no receiver does.
    for wrong in [&other, &other.slice(1..)] {
        let record = super::Record { size: 1000, place: super::BlobPlace::Small };
        let entry = super::VerifiedBlob { blob, record, bytes: Some(wrong.clone()), replace: true };
        store.committer.commit(entry).await.unwrap();
        assert!(matches!(read(&store, blob).await, Err(StoreError::Corrupt { .. })));
    }
    store.receive(Put { replace: true, ..put(blob, &bytes) }, one(&bytes)).await.unwrap();
    assert_eq!(read(&store, blob).await.unwrap(), bytes);
}

#[tokio::test]
async fn enumerations_end_at_every_page_boundary() {
    let folder = TempDir::new().unwrap();
    let store = open(folder.path()).await.unwrap();
    let mut held = 0u64;
    for count in [0, 1, 999, 1000, 1001, 2000] {
        let blobs: Vec<_> = (held..count).map(|_| random(16)).collect();
        for answer in join_all(blobs.iter().map(|(blob, bytes)| write(&store, *blob, bytes))).await {
            assert!(answer.unwrap().was_new);
        }
        held = count;
        for (limit, given, complete) in [
            (None, held, true),
            (Some(held), held, true),
            (Some(held + 1), held, true),
            (Some(held.saturating_sub(1)), held.saturating_sub(1), held == 0),
            (Some(0), 0, held == 0),
        ] {
            let range = EnumerateRange { limit, ..EnumerateRange::default() };
            let pages: Vec<_> = store.enumerate(range).await.unwrap().collect().await;
            let (last, before) = pages.split_last().unwrap();
            assert!(before.iter().all(|page| page.as_ref().unwrap().end.is_none()));
            assert_eq!(last.as_ref().unwrap().end, Some(EnumerateEnd { count: given, complete }), "{held} {limit:?}");
            assert_eq!(pages.iter().map(|page| page.as_ref().unwrap().blobs.len() as u64).sum::<u64>(), given);
        }
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_hides_nothing_else_and_is_mended() {
    let folder = TempDir::new().unwrap();
    let mut blobs = [random(100), random(100), random(100)];
    blobs.sort_unstable_by_key(|(blob, _)| *blob);
    let store = open(folder.path()).await.unwrap();
    for (blob, bytes) in &blobs {
        write(&store, *blob, bytes).await.unwrap();
    }
    drop(store);
    let (blob, bytes) = &blobs[1];
    {
        let index = folder.path().join("index");
        let options = rocksdb::Options::default();
        let db = rocksdb::DB::open_cf(&options, index, ["default", "small"]).unwrap();
        db.put(blob.to_key(), b"\x09from a newer release").unwrap();
        db.put(b"sha256-short", b"").unwrap();
    }
    let store = reopen(folder.path()).await;
    let pages: Vec<_> = store.enumerate(EnumerateRange::default()).await.unwrap().collect().await;
    let listed: Vec<_> = pages.into_iter().flat_map(|page| page.unwrap().blobs).map(|meta| meta.blob).collect();
    assert_eq!(listed, [blobs[0].0, blobs[2].0]);
    assert!(store.stat(&[*blob]).await.unwrap().is_empty());
    write(&store, *blob, bytes).await.unwrap();
    assert_eq!(read(&store, *blob).await.unwrap(), bytes);
}

/// Needs a file system of some 100 MiB: `mount -t tmpfs -o size=96m none /mnt/x`, and `BLOBFERRY_SMALL_DIR=/mnt/x`.
#[tokio::test]
async fn a_full_disk_is_said_to_be_full_and_leaves_no_file() {
    let Some(small) = std::env::var_os("BLOBFERRY_SMALL_DIR") else {
        eprintln!("skipped: BLOBFERRY_SMALL_DIR names no small file system");
        return;
    };
    let folder = TempDir::new_in(small).unwrap();
    let store = open(folder.path()).await.unwrap();
    let (blob, bytes) = random(LARGE);
    write(&store, blob, &bytes).await.unwrap();

    let (huge, _) = random(1);
    let chunk = Bytes::from(vec![7; WRITE_BYTES]);
    let endless = stream::repeat_with(move || Ok(chunk.clone())).boxed();
    let error = store.receive(Put { blob: huge, size: None, replace: false }, endless).await.unwrap_err();
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    assert_eq!(incoming(folder.path()), 0);

    // Small blobs fill RocksDB.
    let mut acked = Vec::new();
    let error = loop {
        let (blob, bytes) = random(SMALL_BYTES);
        match write(&store, blob, &bytes).await {
            Ok(_) => acked.push((blob, bytes)),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::NoSpace(_)), "{error}");
    for (blob, bytes) in &acked {
        assert_eq!(read(&store, *blob).await.unwrap(), bytes);
    }
    assert_eq!(read(&store, blob).await.unwrap(), bytes);
}
