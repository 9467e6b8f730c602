//! What an earlier commit wrote, and peers that speak the earlier protocol. `fixtures/155c3af/README.md` tells how its files
//! were made; none of them was made by this code.

use crate::harness::{
    Replication, Server, World, blob, fetch, held, program, queued, reader, receiver, replication, send, tool, until,
};
use blobferry::blob::BlobRef;
use blobferry::v1 as pb;
use rocksdb::{DB, Options};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/fixtures/155c3af");

/// Nobody listens there.
const NOWHERE: [(&str, &str); 3] =
    [("a", "http://127.0.0.1:1"), ("b", "http://127.0.0.1:2"), ("c", "http://127.0.0.1:3")];

/// Yesterday's files in a folder of their own, and what the program that wrote them saw in them.
struct Yesterday {
    world: World,
    seen: Value,
}

/// A blob of the fixtures.
struct Known {
    blob: BlobRef,
    bytes: Vec<u8>,
    /// The answer to `ExplainBlob`.
    story: Value,
}

impl Yesterday {
    fn new() -> Self {
        let world = World::new();
        let archive = format!("{FIXTURES}/files.tar.gz");
        let unpacked = Command::new("tar").args(["-xzf", &archive, "-C"]).arg(world.dir.path()).status().unwrap();
        assert!(unpacked.success());
        let seen = serde_json::from_slice(&fs::read(world.path("seen.json")).unwrap()).unwrap();
        Self { world, seen }
    }

    fn blobs(&self) -> Vec<Known> {
        let stories = self.seen["explain"].as_array().unwrap();
        let blobs = self.seen["blobs"].as_array().unwrap();
        assert_eq!(blobs.len(), stories.len());
        let known = blobs.iter().zip(stories).map(|(row, story)| {
            let line = format!("{}: yesterday's blob\n", row["number"]).into_bytes();
            let size = usize::try_from(row["size"].as_u64().unwrap()).unwrap();
            let bytes: Vec<u8> = line.into_iter().cycle().take(size).collect();
            let blob: BlobRef = row["ref"].as_str().unwrap().parse().unwrap();
            assert_eq!(blob.function().ref_of(&bytes), blob);
            Known { blob, bytes, story: story.clone() }
        });
        known.collect()
    }

    /// A replicator with these stores by name, on the data folder `NAME-data`.
    fn replicator(&self, name: &str, stores: &[(&str, &str)]) -> Server {
        let mut config = String::new();
        for (store, url) in stores {
            config += &format!("[stores.{store}]\nendpoint = \"{url}\"\n");
        }
        for (from, to) in [("a", "b"), ("b", "c"), ("a", "d")] {
            if stores.iter().any(|(store, _)| *store == to) {
                config += &format!("[routes.{from}_to_{to}]\nfrom = \"{from}\"\nto = \"{to}\"\n");
            }
        }
        self.world.replicator_with(name, &config)
    }
}

/// The JSON that a command prints about this replicator.
fn json(at: &Server, arguments: &[&str]) -> Value {
    let output = Command::new(program()).args(arguments).args(["--json", "--replicator", &at.url()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Whether all that was seen yesterday is told today, in the same words and numbers. Today may tell more; sentences may be
/// others; the ids of full syncs that ended may have left their entries; and where none is begun at the start, a route needs
/// none for being new.
fn tells(today: &Value, yesterday: &Value, at: &str) -> Result<(), String> {
    match (today, yesterday) {
        (Value::Object(today), Value::Object(yesterday)) => {
            for (key, was) in
                yesterday.iter().filter(|(key, _)| !["summary", "fullSyncIds", "neededSync"].contains(&key.as_str()))
            {
                tells(today.get(key).unwrap_or(&Value::Null), was, &format!("{at}.{key}"))?;
            }
            Ok(())
        }
        (Value::Array(today), Value::Array(yesterday)) if today.len() == yesterday.len() => {
            let pairs = today.iter().zip(yesterday).enumerate();
            pairs.into_iter().try_for_each(|(place, (is, was))| tells(is, was, &format!("{at}[{place}]")))
        }
        _ if today == yesterday => Ok(()),
        _ => Err(format!("{at}: it was {yesterday}, and is {today}")),
    }
}

fn assert_tells(today: &Value, yesterday: &Value, at: &str) {
    if let Err(difference) = tells(today, yesterday, at) {
        panic!("{difference}");
    }
}

/// A list, which JSON leaves out where it is empty.
fn items(list: &Value) -> Vec<Value> {
    if list.is_null() { Vec::new() } else { list.as_array().unwrap().clone() }
}

/// A list in the order of this field.
fn by(field: &str, list: &Value) -> Value {
    let mut list = items(list);
    list.sort_by_key(|one| one[field].as_str().unwrap().to_owned());
    list.into()
}

/// Compares all that a replicator tells of its queue with what its writer told. `imported`: it came as an export.
fn compare(yesterday: &Yesterday, today: &Server, imported: bool) {
    let seen = &yesterday.seen;
    let status = &json(today, &["status"]);
    assert_eq!(status["queue"]["state"], "QUEUE_STATE_OK", "{status:#}");
    assert_eq!(status["queue"]["entries"], seen["entries"]);
    let mut routes = seen["routes"].clone();
    if imported {
        for route in routes.as_array_mut().unwrap() {
            // An import asks for a full sync of every route.
            route.as_object_mut().unwrap().remove("neededSync");
        }
    }
    assert_tells(&by("name", &status["routes"]), &by("name", &routes), "routes");
    for peer in status["peers"].as_array().unwrap() {
        assert_eq!(peer["expectedStoreId"], seen["stores"][peer["name"].as_str().unwrap()]);
    }
    for (route, failures) in seen["failures"].as_object().unwrap() {
        let is = json(today, &["failures", "list", route, "--limit", "0"]);
        assert_tells(&by("ref", &is["failures"]), &by("ref", failures), &format!("failures of {route}"));
    }
    for (route, syncs) in seen["syncs"].as_object().unwrap() {
        let is = json(today, &["sync", route, "--list"]);
        assert_tells(&items(&is["fullSyncs"]).into(), syncs, &format!("syncs of {route}"));
    }
    for Known { blob, story, .. } in yesterday.blobs() {
        let is = json(today, &["explain", &blob.to_string(), "--no-stores"]);
        assert_tells(&by("route", &is["routes"]), &by("route", &story["routes"]), &blob.to_string());
    }
}

/// Where entries are: (route, state), and how many.
fn states(blobs: &[Known]) -> BTreeMap<(String, String), usize> {
    let mut found = BTreeMap::new();
    for route in blobs.iter().flat_map(|known| known.story["routes"].as_array().unwrap()) {
        let text = |key: &str| route[key].as_str().unwrap().to_owned();
        *found.entry((text("route"), text("state"))).or_default() += 1;
    }
    found
}

/// The fixtures are worth nothing unless they hold an entry of every kind.
#[test]
fn yesterdays_queue_has_entries_of_every_kind() {
    let yesterday = Yesterday::new();
    let blobs = yesterday.blobs();
    let states = states(&blobs);
    for (route, state) in [
        ("a_to_b", "READY"),
        ("a_to_b", "RETRYING"),
        ("a_to_b", "PARKED"),
        ("a_to_b", "CONFIRMED"),
        ("a_to_b", "DISCARDED"),
        ("b_to_c", "READY"),
        ("a_to_d", "READY"),
        ("a_to_d", "PARKED"),
    ] {
        assert!(states.contains_key(&(route.to_owned(), format!("BLOB_STATE_{state}"))), "{route} {state}: {states:?}");
    }
    let entries: Vec<&Value> = blobs
        .iter()
        .flat_map(|known| known.story["routes"].as_array().unwrap())
        .flat_map(|route| [&route["entry"], &route["successor"]])
        .collect();
    let has = |what: &str, is: &dyn Fn(&Value) -> bool| assert!(entries.iter().any(|entry| is(entry)), "{what}");
    has("backfill", &|entry| entry["lane"] == "LANE_BACKFILL");
    has("a full sync's id", &|entry| entry["fullSyncIds"].as_array().is_some_and(|ids| !ids.is_empty()));
    has("a repair", &|entry| entry["repair"] == true);
    has("a trace", &|entry| entry["tracestate"] == "vendor=1");
    has("a chain", &|entry| entry["visitedStores"].as_array().is_some_and(|stores| stores.len() == 2));
    has("no size", &|entry| entry["lane"].is_string() && entry["sizeBytes"].is_null());
    let successors = blobs.iter().flat_map(|known| known.story["routes"].as_array().unwrap());
    assert_eq!(successors.filter(|route| route["successor"].is_object()).count(), 1);
    let kinds: BTreeSet<_> = yesterday.seen["failures"]
        .as_object()
        .unwrap()
        .values()
        .flat_map(|failures| failures.as_array().unwrap())
        .map(|failure| failure["cause"]["kind"].as_str().unwrap())
        .collect();
    let expected =
        ["FAULT_KIND_DESTINATION_REJECTED", "FAULT_KIND_MISSING_AT_SOURCE", "FAULT_KIND_SOURCE_BYTES_CORRUPT"];
    assert_eq!(kinds, expected.into());
}

#[tokio::test(flavor = "multi_thread")]
async fn yesterdays_queue_opens_with_nothing_lost_and_is_copied() {
    let yesterday = Yesterday::new();
    let mut replicator = yesterday.replicator("replicator", &NOWHERE);
    compare(&yesterday, &replicator, false);
    // Again, as this program left it.
    replicator.kill();
    replicator.again();
    compare(&yesterday, &replicator, false);
    replicator.kill();
    all_is_copied(&yesterday, "replicator").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn yesterdays_export_is_imported_with_nothing_lost_and_is_copied() {
    let yesterday = Yesterday::new();
    let output = queue(&yesterday.world, "import", "imported-data");
    assert_eq!(output.0, Some(0), "{}", output.1);
    let entries = yesterday.seen["entries"].as_str().unwrap();
    assert!(output.1.contains(&format!("3 routes, {entries} entries")), "{}", output.1);
    let mut replicator = yesterday.replicator("imported", &NOWHERE);
    compare(&yesterday, &replicator, true);
    replicator.kill();
    all_is_copied(&yesterday, "imported").await;

    // And as today's program exports the same queue.
    let yesterday = Yesterday::new();
    fs::remove_file(yesterday.world.path("queue.export")).unwrap();
    for (command, data) in [("export", "replicator-data"), ("import", "imported-data")] {
        let output = queue(&yesterday.world, command, data);
        assert_eq!(output.0, Some(0), "{}", output.1);
    }
    compare(&yesterday, &yesterday.replicator("imported", &NOWHERE), true);
}

/// `blobferry queue COMMAND` on a data folder and `queue.export`; how it ended, and what it said.
fn queue(world: &World, command: &str, data: &str) -> (Option<i32>, String) {
    let output = Command::new(program())
        .args(["queue", command, "--data-dir"])
        .arg(world.path(data))
        .arg(world.path("queue.export"))
        .output()
        .unwrap();
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Brings the stores back, and waits until every entry is confirmed, and every blob where it belongs.
async fn all_is_copied(yesterday: &Yesterday, replicator: &str) {
    let world = &yesterday.world;
    // Of d no file is kept: it is another store now.
    let stores = ["a", "b", "c", "d"].map(|name| (name, world.store(name)));
    let urls = stores.each_ref().map(|(name, server)| (*name, server.url()));
    let urls: Vec<_> = urls.iter().map(|(name, url)| (*name, url.as_str())).collect();
    let server_of = |name: &str| &stores.iter().find(|(store, _)| *store == name).unwrap().1;
    let blobs = yesterday.blobs();
    let routes = |known: &Known| known.story["routes"].as_array().unwrap().clone();
    let is_queued = |known: &Known, route: &str| {
        routes(known).iter().any(|story| story["route"] == route && story["entry"].is_object())
    };
    let mut to_source = receiver(server_of("a")).await;
    for known in blobs.iter().filter(|known| is_queued(known, "a_to_b") || is_queued(known, "a_to_d")) {
        // Also those that the source lacked.
        send(&mut to_source, known.blob, &known.bytes).await.unwrap();
    }

    let replicator = yesterday.replicator(replicator, &urls);
    let id = fs::read_to_string(world.path("d").join("store-id")).unwrap();
    json(&replicator, &["adopt", "d", id.trim()]);
    for route in ["a_to_b", "a_to_d"] {
        json(&replicator, &["failures", "retry", route, "--all"]);
    }
    for route in ["a_to_b", "b_to_c", "a_to_d"] {
        json(&replicator, &["resume", route]);
    }
    let operator = replication(&replicator).await;
    until("all is copied", async || {
        let status = operator.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner();
        status.status.unwrap().routes.iter().all(|route| queued(route) == 0).then_some(())
    })
    .await;

    for (route, to, next) in [("a_to_b", "b", Some("c")), ("b_to_c", "c", None), ("a_to_d", "d", None)] {
        for to in [Some(to), next].into_iter().flatten() {
            let mut at = reader(server_of(to)).await;
            for known in blobs.iter().filter(|known| is_queued(known, route)) {
                assert!(fetch(&mut at, known.blob).await.unwrap() == known.bytes, "{} at {to}", known.blob);
            }
        }
    }
    // What was confirmed yesterday is, and was not confirmed for another store.
    let confirmed: Vec<_> = blobs
        .iter()
        .filter(|known| {
            routes(known).iter().any(|story| story["route"] == "a_to_b" && story["state"] == "BLOB_STATE_CONFIRMED")
        })
        .map(|known| known.blob)
        .collect();
    assert!(confirmed.len() > 10, "{}", confirmed.len());
    assert_eq!(held(&mut reader(server_of("b")).await, &confirmed).await, confirmed.len());
    wait_with_yesterdays_token(operator, yesterday.seen["waitToken"].as_str().unwrap()).await;
}

async fn wait_with_yesterdays_token(mut operator: Replication, token: &str) {
    // a_to_d was no route when they were announced.
    let routes = vec!["a_to_b".to_owned(), "b_to_c".to_owned()];
    let request = pb::WaitReplicatedRequest { wait_token: token.to_owned(), routes, ..Default::default() };
    let waited = operator.wait_replicated(request).await.unwrap().into_inner();
    assert_eq!((waited.outcome(), waited.confirmed_blobs), (pb::WaitOutcome::Confirmed, Some(3)), "{waited:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn yesterdays_disk_stores_serve_every_blob_and_take_more() {
    let yesterday = Yesterday::new();
    let blobs = yesterday.blobs();
    for name in ["a", "b", "c"] {
        let mut store = yesterday.world.store(name);
        let expected: BTreeMap<&str, u64> = yesterday.seen["held"][name]
            .as_object()
            .unwrap()
            .iter()
            .map(|(blob, size)| (blob.as_str(), size.as_u64().unwrap()))
            .collect();
        assert!(expected.len() > 10, "{name}: {}", expected.len());
        serves(&store, &expected, &blobs).await;
        // It takes more, and has all of it after a kill.
        let (more, bytes) = blob(1, 100_000);
        send(&mut receiver(&store).await, more, &bytes).await.unwrap();
        store.kill();
        store.again();
        assert!(fetch(&mut reader(&store).await, more).await.unwrap() == bytes);
        let text = more.to_string();
        let expected = expected.into_iter().chain([(text.as_str(), bytes.len() as u64)]).collect();
        serves(&store, &expected, &blobs).await;
    }
}

/// Whether a store lists exactly these blobs, by ref and size, and gives the bytes of all that are known: one by one, and the
/// small ones in packs.
async fn serves(store: &Server, expected: &BTreeMap<&str, u64>, blobs: &[Known]) {
    let mut from = reader(store).await;
    let mut listed = BTreeMap::new();
    let mut pages = from.enumerate_blobs(pb::EnumerateBlobsRequest::default()).await.unwrap().into_inner();
    while let Some(page) = pages.message().await.unwrap() {
        listed.extend(page.blobs.into_iter().map(|meta| (meta.r#ref, meta.size_bytes.unwrap())));
    }
    let listed_texts: BTreeMap<&str, u64> = listed.iter().map(|(blob, size)| (blob.as_str(), *size)).collect();
    assert_eq!(&listed_texts, expected);
    let here: Vec<&Known> = blobs.iter().filter(|known| listed.contains_key(&known.blob.to_string())).collect();
    for known in &here {
        assert!(fetch(&mut from, known.blob).await.unwrap() == known.bytes, "{}", known.blob);
    }
    let small: Vec<&&Known> = here.iter().filter(|known| known.bytes.len() <= 64 << 10).collect();
    let wanted = small.iter().map(|known| pb::WantedBlob { r#ref: known.blob.to_string(), ..Default::default() });
    let request = pb::FetchBlobsRequest { blobs: wanted.collect() };
    let mut answers = from.fetch_blobs(tokio_stream::iter([request])).await.unwrap().into_inner();
    let mut packed = BTreeMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        packed.extend(answer.blobs.into_iter().map(|blob| (blob.r#ref, blob.result)));
    }
    for known in small {
        let expected = pb::fetched_blob::Result::Data(known.bytes.clone().into());
        assert!(packed.remove(&known.blob.to_string()) == Some(Some(expected)), "{} in a pack", known.blob);
    }
}

/// All files below a folder, with their bytes.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.clone(), fs::read(path).unwrap());
            }
        }
    }
    found
}

/// Starts `serve` on yesterday's queue, which it must refuse; what it said.
fn serve_refuses(world: &World) -> String {
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nhttp_listen = \"\"\ndata_dir = \"{}\"\n\
         [stores.a]\nendpoint = \"http://127.0.0.1:1\"\n[stores.b]\nendpoint = \"http://127.0.0.1:2\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n",
        world.path("replicator-data").display()
    );
    let file = world.path("refused.toml");
    fs::write(&file, config).unwrap();
    let output = Command::new(program()).args(["serve", "--config"]).arg(file).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// The number that a newer version would write into the database, as the version of the fixtures does. Other formats, such as
/// one of RocksDB's own, are known by the file `made`.
#[test]
fn a_queue_of_a_newer_format_is_refused_by_name_and_left_as_it_is() {
    let number = Yesterday::new();
    let db = number.world.path("replicator-data").join("queue").join("db");
    let families = DB::list_cf(&Options::default(), &db).unwrap();
    let set_format = |format: u32| {
        let db = DB::open_cf(&Options::default(), &db, &families).unwrap();
        db.put_cf(db.cf_handle("meta").unwrap(), b"format", format.to_be_bytes()).unwrap();
    };
    set_format(2);
    let made = Yesterday::new();
    let folder = made.world.path("replicator-data").join("queue");
    fs::write(folder.join("made"), "blobferry-queue 2\n").unwrap();
    let before = files(&folder);
    for yesterday in [&number, &made] {
        fs::remove_file(yesterday.world.path("queue.export")).unwrap();
        let (code, exporting) = queue(&yesterday.world, "export", "replicator-data");
        assert_eq!(code, Some(1), "{exporting}");
        for said in [serve_refuses(&yesterday.world), exporting] {
            let expected = "the queue has format 2, and this version knows formats up to 1; use the newer version";
            assert!(said.contains(expected), "{said}");
        }
        assert!(!yesterday.world.path("queue.export").exists());
    }
    // RocksDB was not even asked for it.
    assert!(files(&folder) == before);
    // The newer version would find all of it.
    set_format(1);
    fs::write(folder.join("made"), "").unwrap();
    for yesterday in [&number, &made] {
        let again = yesterday.replicator("replicator", &NOWHERE);
        compare(yesterday, &again, false);
    }
}

#[test]
fn an_export_of_a_newer_version_or_of_a_newer_queue_is_refused_by_name() {
    let yesterday = Yesterday::new();
    let file = yesterday.world.path("queue.export");
    let bytes = fs::read(&file).unwrap();
    // Magic, the part's length, then its header and that one's length, then both versions (see `queue::rocks::transfer`).
    assert_eq!((&bytes[..8], &bytes[11..15]), (&b"BFQUEUE\n"[..], &[0x08, 1, 0x10, 1][..]));
    let refused = |place: usize, expected: &str| {
        let mut newer = bytes.clone();
        newer[place] = 2;
        fs::write(&file, newer).unwrap();
        let (code, said) = queue(&yesterday.world, "import", "imported-data");
        assert_eq!(code, Some(1), "{said}");
        assert!(said.contains(expected), "{said}");
        assert!(!yesterday.world.path("imported-data").join("queue").join("db").exists());
    };
    refused(12, "an export of version 2, and this version knows version 1; use the newer version");
    refused(14, "the queue has format 2, and this version knows formats up to 1; use the newer version");
    fs::write(&file, &bytes).unwrap();
    assert_eq!(queue(&yesterday.world, "import", "imported-data").0, Some(0));
}

#[test]
fn a_disk_store_of_a_newer_format_is_refused_by_name_and_left_as_it_is() {
    let yesterday = Yesterday::new();
    let folder = yesterday.world.path("a");
    fs::write(folder.join("format"), "blobferry-store 2").unwrap();
    let before = files(&folder);
    let data = format!("disk://{}", folder.display());
    let output = Command::new(program()).args(["store", "--listen", "127.0.0.1:0", "--data", &data]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let expected = r#"holds a store of the format "blobferry-store 2", and this version knows "blobferry-store 1""#;
    assert!(said.contains(expected), "{said}");
    assert!(files(&folder) == before);
}

/// A store that speaks the older protocol, where Python has gRPC.
fn old_store(world: &World, name: &str, script: &str) -> Option<Server> {
    let python = tool("BLOBFERRY_PYTHON")?;
    let script = format!("{FIXTURES}/{script}");
    let data = world.path(name);
    let args = [&script, "--listen", "{}", "--data", data.to_str().unwrap()];
    Some(Server::start_in(&python, &args, 2, &world.path(&format!("{name}.log")), &[NO_CACHE]))
}

/// A client that speaks the older protocol.
fn old_client(arguments: &[&str]) {
    let python = tool("BLOBFERRY_PYTHON").unwrap();
    let script = format!("{FIXTURES}/drive.py");
    let output = Command::new(python).arg(script).args(arguments).envs([NO_CACHE]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {said}");
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "ok");
}

/// Python is to write nothing beside the fixtures.
const NO_CACHE: (&str, &str) = ("PYTHONDONTWRITEBYTECODE", "1");

/// The main job, driven by a client that speaks the older protocol; the destination is down at first.
fn ferry(world: &World, source: &Server, mut destination: Server) {
    destination.kill();
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    old_client(&["refused", &replicator.address]);
    old_client(&["announce", &source.address, &replicator.address]);
    old_client(&["ready", &replicator.address]);
    destination.again();
    old_client(&["arrived", &replicator.address, &destination.address]);
    old_client(&["operate", &source.address, &replicator.address]);
}

#[test]
fn a_store_of_the_older_protocol_is_a_source_of_this_replicator() {
    let world = World::new();
    if let Some(source) = old_store(&world, "source", "packed_store.py") {
        ferry(&world, &source, world.store("destination"));
    }
}

#[test]
fn stores_of_the_older_protocol_with_packs_and_without_are_destinations_of_this_replicator() {
    for script in ["store.py", "packed_store.py"] {
        let world = World::new();
        if let Some(destination) = old_store(&world, "destination", script) {
            ferry(&world, &world.store("source"), destination);
        }
    }
}
