//! Queues as files, and queues of format 1 as such.

use super::{one_route, options};
use crate::queue::damage::{REASON_IMPORTED, SYNC_NEEDED};
use crate::queue::rocks::{RocksQueue, TransferError, export, import, keys};
use crate::queue::suite::{announced, blob, claim_any, confirmed, failure, found};
use crate::queue::{Lane, Outcome, Pushed, Queue, State, StateWrite, SyncId, Weight};
use rocksdb::{DB, Options};

#[tokio::test]
async fn an_exported_queue_is_imported_whole_or_not_at_all() {
    let (dir, clock, queue, route) = one_route().await;
    queue.push((0..5000).map(|number| announced(route, number)).collect(), vec![]).await.unwrap();
    queue.push(vec![found(route, 7000, 7, true)], vec![]).await.unwrap();
    let mut claims = claim_any(&queue, route, Lane::Fresh, 3, clock.now()).await.unwrap();
    let park = Outcome::Park { failure: failure(&clock), weight: Weight::ONE };
    queue.settle(vec![(claims.remove(0), park), (claims.remove(0), confirmed())]).await.unwrap();
    queue.write(vec![StateWrite { key: "override/a".to_owned(), value: Some(vec![1]) }]).await.unwrap();
    let counts = |queue: &RocksQueue| (queue.counts(route), queue.sync_tally(SyncId(7)), queue.routes());
    let mut file = Vec::new();
    let refused = export(dir.path(), &options(), clock.now(), &mut file, &mut |_| ());
    assert!(matches!(refused, Err(TransferError::Open(_))), "it is in use: {refused:?}");
    let again = queue.push(vec![announced(route, 2)], vec![]).await.unwrap();
    assert_eq!(again, [Pushed::SuccessorQueued], "it is claimed");
    drop(claims);
    let before = counts(&queue);
    queue.close().await;
    file.clear();
    let exported = export(dir.path(), &options(), clock.now(), &mut file, &mut |_| ()).unwrap();
    assert_eq!((exported.routes, exported.entries), (1, 5001));

    let target = tempfile::tempdir().unwrap();
    let bring = |bytes: &[u8]| import(target.path(), &options(), &mut &*bytes, &mut |_| ());
    // Cut anywhere, changed anywhere, or with something behind it: refused, and nothing is left.
    for cut in [0, 7, 8, 20, file.len() / 2, file.len() - 1] {
        assert!(matches!(bring(&file[..cut]), Err(TransferError::Invalid(_))), "cut at {cut}");
    }
    for at in (0..file.len()).step_by(file.len() / 23).chain([file.len() - 1]) {
        let mut changed = file.clone();
        changed[at] ^= 0x40;
        assert!(bring(&changed).is_err(), "changed at {at}");
    }
    assert!(matches!(bring(&[&file[..], b"!"].concat()), Err(TransferError::Invalid(_))));
    let left: Vec<_> = std::fs::read_dir(target.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);

    assert_eq!(bring(&file).unwrap(), exported);
    assert!(matches!(bring(&file), Err(TransferError::NotEmpty(_))));
    let queue = RocksQueue::open(target.path(), options(), clock.clock()).unwrap();
    assert_eq!(counts(&queue), before);
    assert_eq!(queue.get("override/a").await.unwrap(), Some(vec![1]));
    let needed = queue.get(&format!("{SYNC_NEEDED}a_to_b")).await.unwrap().unwrap();
    assert_eq!(needed, REASON_IMPORTED.as_bytes());
    // Each is known by its ref, also where the log alone had that when it was exported.
    for number in [2, 3, 4999] {
        let again = queue.push(vec![announced(route, number)], vec![]).await.unwrap();
        assert_eq!(again, [Pushed::AlreadyQueued], "{number}");
    }
    let claims = claim_any(&queue, route, Lane::Fresh, 9999, clock.now()).await.unwrap();
    assert_eq!((claims.len(), claims[0].entry().blob), (4998, blob(2)));
    queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    let claims = claim_any(&queue, route, Lane::Fresh, 9999, clock.now()).await.unwrap();
    assert_eq!((claims.len(), claims[0].entry().blob), (1, blob(2)), "the successor's turn");
    queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    assert_eq!(queue.counts(route).confirmed, 5000);
}

/// Rows as the first release of format 1 wrote them, byte by byte: they open and drain in every later one.
#[tokio::test]
async fn a_queue_of_format_1_opens_and_drains() {
    let (dir, clock) = (tempfile::tempdir().unwrap(), crate::queue::suite::TestClock::new());
    let mut all = Options::default();
    all.create_if_missing(true);
    all.create_missing_column_families(true);
    let families = ["entry", "ready", "retry", "parked", "ref", "state", "aside", "meta"];
    let db = DB::open_cf(&all, dir.path().join("db"), families).unwrap();
    let put = |family: &str, key: &[u8], value: &[u8]| db.put_cf(db.cf_handle(family).unwrap(), key, value).unwrap();
    put("meta", b"format", &[0, 0, 0, 1]);
    put("meta", b"next_seq", &[0, 0, 0, 0, 0, 0, 0, 9]);
    put("meta", b"route/\0\0\0\0", b"\x01\x0a\x06a_to_b\x12\x01a\x1a\x01b");
    // Fresh: one entry ready, of 100 bytes.
    put("meta", b"counts/\0\0\0\0", b"\x01\x0a\x06\x0a\x04\x08\x01\x10\x64");
    let reference = blob(1).to_key();
    let mut entry = vec![1, 0x0a, u8::try_from(reference.len()).unwrap()];
    entry.extend_from_slice(&reference);
    entry.extend_from_slice(b"\x10\x64");
    entry.extend_from_slice(b"\x21\x00\x00\xc1\x6f\xf2\x86\x23\x00\x29\x00\x00\xc1\x6f\xf2\x86\x23\x00");
    entry.extend_from_slice(b"\x4a\x01a\x60\x01");
    put("entry", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8], &entry);
    put("ready", &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 8], &[0, 0, 0, 0, 0, 0, 0, 0, 100]);
    put("ref", &[&[0, 0, 0, 0], &reference[..]].concat(), &[0, 0, 0, 0, 0, 0, 0, 8]);
    drop(db);
    let queue = RocksQueue::open(dir.path(), options(), clock.clock()).unwrap();
    let route = queue.register("a_to_b", "a", "b").await.unwrap();
    // It is known: no full sync is needed for that.
    assert_eq!(queue.get(&format!("{SYNC_NEEDED}a_to_b")).await.unwrap(), None);
    let claims = claim_any(&queue, route, Lane::Fresh, 9, clock.now()).await.unwrap();
    let entry = claims[0].entry().clone();
    assert_eq!((entry.blob, entry.size, entry.seq.0, &*entry.visited[0]), (blob(1), Some(100), 8, "a"));
    queue.settle(claims.into_iter().map(|claim| (claim, confirmed())).collect()).await.unwrap();
    assert_eq!((queue.counts(route).confirmed, queue.counts(route).fresh.ready.entries), (1, 0));
    assert_eq!(keys::META_FORMAT, b"format");
}
