//! `/metrics` of the real program: as Prometheus reads it, as Status has it, and as it is documented.

use crate::harness::{
    PATIENCE, Receiver, Replication, Server, World, announce, blob, full_sync, program, receiver, replication, route,
    send, tool, until,
};
use crate::http::{ask, page};
use blobferry::blob::BlobRef;
use blobferry::internal::failpoint;
use blobferry::v1 as pb;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Instant;

const CLASSIC: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What was scraped: samples by name and labels, as they are written.
#[derive(Debug)]
struct Scrape {
    text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    async fn of(server: &Server) -> Self {
        let text = page(server, "/metrics").await;
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let pairs = lines.map(|line| line.rsplit_once(' ').unwrap());
        let samples = pairs.map(|(name, value)| (name.to_owned(), value.parse().unwrap())).collect();
        Self { text, samples }
    }

    fn get(&self, sample: &str) -> f64 {
        *self.samples.get(sample).unwrap_or_else(|| panic!("no {sample} in\n{}", self.text))
    }

    /// The only route's sample.
    fn route(&self, name: &str) -> f64 {
        self.get(&format!("blobferry_route_{name}{{route=\"a_to_b\"}}"))
    }

    fn entries(&self, lane: &str, state: &str) -> f64 {
        self.get(&format!("blobferry_route_entries{{route=\"a_to_b\",lane=\"{lane}\",state=\"{state}\"}}"))
    }

    /// The types of all families, by name.
    fn types(&self) -> BTreeMap<&str, &str> {
        self.text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect()
    }

    /// The family of a sample, and its labels, that of buckets aside.
    fn labels(&self) -> BTreeMap<&str, BTreeSet<&str>> {
        let types = self.types();
        let mut found: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
        for sample in self.samples.keys() {
            let (name, labels) = sample.split_once('{').unwrap_or((sample, "}"));
            let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let family = of_histogram.filter(|family| types.get(family) == Some(&"histogram")).unwrap_or(name);
            // No value of ours has a quote or a comma in it.
            let names = labels.trim_end_matches('}').split(',').filter_map(|label| label.split_once('='));
            found.entry(family).or_default().extend(names.map(|(name, _)| name).filter(|name| *name != "le"));
        }
        found
    }
}

/// Two stores and a replicator between them.
struct Line {
    world: World,
    source: Server,
    destination: Server,
    replicator: Server,
}

impl Line {
    /// With more configuration for the route.
    fn new(more: &str) -> Self {
        let world = World::new();
        let (source, destination) = (world.store("a"), world.store("b"));
        let config = format!(
            "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n{more}",
            source.url(),
            destination.url()
        );
        let replicator = world.replicator_with("replicator", &config);
        Self { world, source, destination, replicator }
    }

    /// Writes so many blobs to the source.
    async fn put(&self, seeds: std::ops::Range<u64>) -> Vec<BlobRef> {
        let mut source: Receiver = receiver(&self.source).await;
        let mut refs = Vec::new();
        for seed in seeds {
            let (blob, bytes) = blob(seed, 1_000);
            send(&mut source, blob, &bytes).await.unwrap();
            refs.push(blob);
        }
        refs
    }

    async fn operator(&self) -> Replication {
        replication(&self.replicator).await
    }

    /// Waits until so many are confirmed, and nothing is left of them.
    async fn confirmed(&self, count: u64) {
        let operator = self.operator().await;
        until("all are confirmed", async || {
            let route = route(&mut operator.clone()).await;
            (totals(&route).confirmed_blobs == Some(count) && entries(&route, "claimed") == 0).then_some(())
        })
        .await;
    }
}

fn totals(route: &pb::RouteStatus) -> &pb::RouteTotals {
    route.all_time.as_ref().unwrap()
}

fn tallies(route: &pb::RouteStatus) -> Vec<(&'static str, &'static str, pb::Tally)> {
    let queued = route.queued.as_ref().unwrap();
    let lanes = [("fresh", queued.fresh.as_ref().unwrap()), ("backfill", queued.backfill.as_ref().unwrap())];
    lanes
        .into_iter()
        .flat_map(|(name, lane)| {
            [("ready", lane.ready), ("claimed", lane.claimed), ("retrying", lane.retrying), ("parked", lane.parked)]
                .map(|(state, tally)| (name, state, tally.unwrap()))
        })
        .collect()
}

fn entries(route: &pb::RouteStatus, state: &str) -> u64 {
    tallies(route).into_iter().filter(|(_, of, _)| *of == state).map(|(_, _, tally)| tally.entries.unwrap()).sum()
}

fn run(mut command: Command, input: &str) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

/// Hands an exposition to Prometheus' own checker.
fn promtool_passes(text: &str) {
    let Some(promtool) = tool("BLOBFERRY_PROMTOOL") else { return };
    let mut command = Command::new(promtool);
    command.args(["check", "metrics"]);
    let output = run(command, text);
    let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}\n{text}");
}

/// The samples that Prometheus' own parser of a format finds.
fn parsed(format: &str, text: &str) -> Option<String> {
    let mut command = Command::new(tool("BLOBFERRY_PYTHON")?);
    command.args([concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/python/exposition.py"), format]);
    let output = run(command, text);
    assert!(output.status.success(), "{}\n{text}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// A replicator that has had something of everything: copies, a full sync, failures, a store that is away, limits.
async fn eventful() -> Line {
    let world = World::new();
    let (source, destination) = (world.store("a"), world.store("b"));
    let config = format!(
        "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[stores.c]\nendpoint = \"http://127.0.0.1:1\"\n\
         [routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\nbytes_per_second = \"1GiB\"\nblobs_per_second = 10000\n\
         [routes.a_to_c]\nfrom = \"a\"\nto = \"c\"\n[routes.b_to_c]\nfrom = \"b\"\nto = \"c\"\nenabled = false\n",
        source.url(),
        destination.url()
    );
    let replicator = world.replicator_with("replicator", &config);
    let line = Line { world, source, destination, replicator };
    let mut operator = line.operator().await;
    let mut blobs = line.put(0..20).await;
    // The source has never had this one.
    blobs.push(blob(999, 1).0);
    announce(&mut operator, "a", &blobs).await.unwrap();
    line.put(20..25).await;
    let request = pb::TriggerFullSyncRequest { route: "a_to_b".to_owned(), ..Default::default() };
    operator.trigger_full_sync(request).await.unwrap();
    until("everything has happened", async || {
        let scrape = Scrape::of(&line.replicator).await;
        let has = |sample: &str, least: f64| scrape.samples.get(sample).is_some_and(|value| *value >= least);
        let failed = |kind: &str, peer: &str, route: &str| {
            has(&format!("blobferry_route_failures_total{{route=\"{route}\",kind=\"{kind}\",peer=\"{peer}\"}}"), 1.0)
        };
        let done = scrape.route("confirmed_blobs_total") == 25.0
            && has("blobferry_route_syncs_total{route=\"a_to_b\",state=\"completed\"}", 1.0)
            && failed("missing_at_source", "a", "a_to_b")
            && scrape.entries("fresh", "retrying") == 1.0
            && has("blobferry_peer_breaker_state{peer=\"c\",state=\"closed\"}", 0.0)
            && !has("blobferry_peer_breaker_state{peer=\"c\",state=\"closed\"}", 1.0);
        done.then_some(())
    })
    .await;
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn both_formats_are_read_by_those_who_made_them_and_agree() {
    let line = eventful().await;
    let cases = [
        (None, CLASSIC),
        (Some("text/plain"), CLASSIC),
        (Some("*/*"), CLASSIC),
        (Some("application/openmetrics-text"), OPEN_METRICS),
        (
            Some("application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"),
            OPEN_METRICS,
        ),
    ];
    let mut texts = BTreeMap::new();
    for (accept, expected) in cases {
        let headers: Vec<(&str, &str)> = accept.map(|accept| ("accept", accept)).into_iter().collect();
        let answer = ask(&line.replicator, "GET", "/metrics", &headers).await;
        assert_eq!((answer.status, &*answer.headers["content-type"]), (200, expected), "{accept:?}");
        assert_eq!((&*answer.headers["vary"], &*answer.headers["cache-control"]), ("accept", "no-store"));
        texts.insert(expected, answer.body);
    }
    assert_eq!(ask(&line.replicator, "POST", "/metrics", &[]).await.status, 405);
    promtool_passes(&texts[CLASSIC]);
    let (classic, open_metrics) = (parsed("classic", &texts[CLASSIC]), parsed("openmetrics", &texts[OPEN_METRICS]));
    if let (Some(classic), Some(open_metrics)) = (&classic, &open_metrics) {
        // The two were scraped one after the other: what comes and goes by itself may differ.
        let steady = |text: &str| -> Vec<String> {
            let passing = ["_eta_", "backlog_growing", "next_retry", "grpc_"];
            let lines = text.lines().filter(|line| !passing.iter().any(|name| line.contains(name)));
            lines.map(str::to_owned).collect()
        };
        assert_eq!(steady(classic), steady(open_metrics));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_metric_is_documented_and_every_documented_one_is_there() {
    let line = eventful().await;
    let documented = documented();
    let types: BTreeMap<&str, &str> = documented.iter().map(|(name, (kind, _))| (&**name, &**kind)).collect();
    // Nothing hides behind having no samples, but for what is told in these circumstances only. What comes and goes, as the
    // time of a retry does while that is made, must be there at some scrape.
    let may_be_silent = ["blobferry_route_eta_seconds", "blobferry_route_backlog_growing"];
    let mut silent: BTreeSet<&str> = types.keys().copied().filter(|family| !may_be_silent.contains(family)).collect();
    let deadline = Instant::now() + PATIENCE;
    while !silent.is_empty() {
        assert!(Instant::now() < deadline, "{silent:?}");
        let scrape = Scrape::of(&line.replicator).await;
        assert_eq!(types, scrape.types());
        for (family, labels) in scrape.labels() {
            let expected: BTreeSet<&str> = documented[family].1.iter().map(String::as_str).collect();
            assert_eq!(labels, expected, "labels of {family}");
            silent.remove(family);
        }
    }
}

/// The table of docs/metrics.md: types and labels by name.
fn documented() -> BTreeMap<String, (String, Vec<String>)> {
    let text = fs::read_to_string(repository("docs/metrics.md")).unwrap();
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let table: BTreeMap<_, _> = rows
        .map(|row| {
            let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
            assert_eq!(cells.len(), 4, "{row}");
            assert!(!cells[3].is_empty(), "{row}");
            let labels = cells[2].split(',').map(|label| label.trim().trim_matches('`').to_owned());
            let name = cells[0].trim_matches('`').to_owned();
            (name, (cells[1].to_owned(), labels.filter(|label| !label.is_empty()).collect()))
        })
        .collect();
    assert!(table.len() > 40, "{}", table.len());
    table
}

fn repository(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Waits until both stores have said what they are: a route is not in sync before.
async fn answered(line: &Line) {
    let operator = line.operator().await;
    until("both stores have answered", async || {
        (route(&mut operator.clone()).await.state() == pb::RouteState::InSync).then_some(())
    })
    .await;
}

/// A replicator that has nothing to do is not behind, however long ago the last blob was.
#[tokio::test(flavor = "multi_thread")]
async fn idle_means_no_lag() {
    let line = Line::new("");
    answered(&line).await;
    let idle = async || {
        let scrape = Scrape::of(&line.replicator).await;
        for name in ["lag_seconds", "backfill_age_seconds"] {
            assert_eq!(scrape.route(name), 0.0, "{name}");
        }
        assert_eq!(scrape.get("blobferry_queue_entries"), 0.0);
        assert_eq!(scrape.get("blobferry_route_state{route=\"a_to_b\",state=\"in_sync\"}"), 1.0);
    };
    idle().await;
    let blobs = line.put(0..5).await;
    announce(&mut line.operator().await, "", &blobs).await.unwrap();
    line.confirmed(5).await;
    idle().await;
}

/// At rest, under load, and after a restart.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn values_agree_with_status() {
    let mut line = Line::new("blobs_per_second = 400\n");
    let mut operator = line.operator().await;
    let blobs = line.put(0..600).await;

    // Under load, each scrape lies between the pictures before and after it, and no counter goes back.
    let mut before = route(&mut operator).await;
    let mut last: Option<Scrape> = None;
    announce(&mut operator, "", &blobs).await.unwrap();
    let mut seen_behind = false;
    loop {
        let scrape = Scrape::of(&line.replicator).await;
        let after = route(&mut operator).await;
        let bounds = [
            ("confirmed_blobs_total", totals(&before).confirmed_blobs, totals(&after).confirmed_blobs),
            ("copied_blobs_total", totals(&before).copied_blobs, totals(&after).copied_blobs),
            ("copied_bytes_total", totals(&before).copied_bytes, totals(&after).copied_bytes),
        ];
        for (name, least, most) in bounds {
            let (least, most) = (least.unwrap() as f64, most.unwrap() as f64);
            assert!(
                (least..=most).contains(&scrape.route(name)),
                "{name}: {least} <= {} <= {most}",
                scrape.route(name)
            );
        }
        let queued: f64 =
            ["ready", "claimed", "retrying", "parked"].map(|state| scrape.entries("fresh", state)).iter().sum();
        assert_eq!(queued + scrape.route("confirmed_blobs_total"), 600.0, "nothing is counted twice or missed");
        seen_behind |= scrape.route("lag_seconds") > 0.0;
        if let Some(last) = &last {
            goes_on(last, &scrape);
        }
        let done = queued == 0.0;
        last = Some(scrape);
        before = after;
        if done {
            break;
        }
    }
    assert!(seen_behind, "600 blobs at 400 a second take longer than a scrape");

    // At rest they are equal.
    line.confirmed(600).await;
    let scrape = Scrape::of(&line.replicator).await;
    agrees(&scrape, &route(&mut operator).await);
    let count = |scrape: &Scrape, name: &str, labels: &str| {
        scrape.get(&format!("blobferry_route_{name}_count{{route=\"a_to_b\"{labels}}}"))
    };
    assert_eq!(count(&scrape, "confirmation_lag_seconds", ",lane=\"fresh\""), 600.0);
    assert_eq!(count(&scrape, "confirmation_lag_seconds", ",lane=\"backfill\""), 0.0);
    assert_eq!(scrape.route("copied_bytes_total"), 600_000.0);
    for name in ["fetch_duration_seconds", "write_duration_seconds"] {
        assert!(count(&scrape, name, "") >= 1.0, "{name}");
    }
    assert!(scrape.get("blobferry_queue_commit_duration_seconds_count") > 0.0);
    assert!(scrape.get("blobferry_queue_sync_duration_seconds_count") > 0.0);
    // 600 pushes and 600 settlements, at least.
    assert!(scrape.get("blobferry_queue_batch_operations_sum") >= 1200.0);
    assert!(scrape.get("blobferry_queue_rocksdb_memtable_bytes") > 0.0);
    assert!(scrape.get("blobferry_queue_disk_free_bytes") > 0.0);
    assert!(scrape.get("process_resident_memory_bytes") > 1e6);

    // After a restart what the queue keeps goes on, and the rest begins anew.
    line.replicator.kill();
    line.replicator.again();
    answered(&line).await;
    let scrape = Scrape::of(&line.replicator).await;
    agrees(&scrape, &route(&mut line.operator().await).await);
    assert_eq!(scrape.route("confirmed_blobs_total"), 600.0);
    assert_eq!(count(&scrape, "confirmation_lag_seconds", ",lane=\"fresh\""), 0.0);
    let backfill = line.put(600..610).await;
    let sync = full_sync(&mut line.operator().await).await;
    assert_eq!(sync.state(), pb::FullSyncState::Completed, "{sync:?}");
    let scrape = Scrape::of(&line.replicator).await;
    agrees(&scrape, &route(&mut line.operator().await).await);
    assert_eq!(count(&scrape, "confirmation_lag_seconds", ",lane=\"backfill\""), backfill.len() as f64);
    assert_eq!(scrape.route("last_sync_source_blobs"), 610.0);
    assert_eq!(scrape.get("blobferry_route_last_sync_found_blobs{route=\"a_to_b\",finding=\"missing\"}"), 10.0);
}

/// Counters, and the counts of histograms, go up only.
fn goes_on(before: &Scrape, after: &Scrape) {
    for (sample, value) in &before.samples {
        let name = sample.split('{').next().unwrap();
        if ["_total", "_bucket", "_count", "_sum"].iter().any(|end| name.ends_with(end)) {
            assert!(after.get(sample) >= *value, "{sample} went from {value} to {}", after.get(sample));
        }
    }
}

/// What both tell is the same.
fn agrees(scrape: &Scrape, route: &pb::RouteStatus) {
    let totals = totals(route);
    let counters = [
        ("confirmed_blobs_total", totals.confirmed_blobs),
        ("copied_blobs_total", totals.copied_blobs),
        ("copied_bytes_total", totals.copied_bytes),
        ("discarded_blobs_total", totals.discarded_blobs),
    ];
    for (name, expected) in counters {
        assert_eq!(scrape.route(name), expected.unwrap() as f64, "{name}");
    }
    for (lane, state, tally) in tallies(route) {
        let labels = format!("{{route=\"a_to_b\",lane=\"{lane}\",state=\"{state}\"}}");
        for (name, expected) in
            [("entries", tally.entries), ("entry_bytes", tally.bytes), ("unsized_entries", tally.unknown_size_entries)]
        {
            let sample = format!("blobferry_route_{name}{labels}");
            assert_eq!(scrape.get(&sample), expected.unwrap() as f64, "{sample}");
        }
    }
    let state = route.state().as_str_name().trim_start_matches("ROUTE_STATE_").to_lowercase();
    assert_eq!(scrape.get(&format!("blobferry_route_state{{route=\"a_to_b\",state=\"{state}\"}}")), 1.0);
}

/// What fails is counted by kind and by the store at fault, and what is given up is seen.
#[tokio::test(flavor = "multi_thread")]
async fn failures_are_counted_by_kind_and_store() {
    let mut line = Line::new("");
    let mut operator = line.operator().await;
    let missing: Vec<BlobRef> = (0..3).map(|seed| blob(seed, 1).0).collect();
    announce(&mut operator, "", &missing).await.unwrap();
    let count = |scrape: &Scrape, kind: &str, peer: &str| {
        let sample = format!("blobferry_route_failures_total{{route=\"a_to_b\",kind=\"{kind}\",peer=\"{peer}\"}}");
        scrape.samples.get(&sample).copied().unwrap_or(0.0)
    };
    until("each was missed twice", async || {
        let scrape = Scrape::of(&line.replicator).await;
        (count(&scrape, "missing_at_source", "a") >= 6.0).then_some(())
    })
    .await;
    let scrape = Scrape::of(&line.replicator).await;
    assert_eq!(scrape.entries("fresh", "retrying") + scrape.entries("fresh", "claimed"), 3.0);
    assert!(scrape.route("retries_total") >= 6.0);
    assert!(scrape.samples.contains_key("blobferry_route_next_retry_timestamp_seconds{route=\"a_to_b\"}"));

    line.destination.kill();
    let blobs = line.put(10..11).await;
    announce(&mut operator, "", &blobs).await.unwrap();
    until("the breaker of the destination is not closed", async || {
        let scrape = Scrape::of(&line.replicator).await;
        let closed = scrape.get("blobferry_peer_breaker_state{peer=\"b\",state=\"closed\"}");
        let unreachable = scrape.get("blobferry_peer_health{peer=\"b\",health=\"unreachable\"}");
        (closed == 0.0 && unreachable == 1.0).then_some(())
    })
    .await;
    assert!(line.world.path("replicator-data").exists());
}

/// What the committer could not write is counted.
#[tokio::test(flavor = "multi_thread")]
async fn failed_commits_are_counted() {
    let mut line = Line::new("");
    line.replicator.kill();
    let fault = "queue.commit.before_write=1*error";
    assert!(line.replicator.ended_starting(&[(failpoint::VARIABLE, fault)]).is_none(), "{}", line.replicator.said());
    // Whoever writes first meets it: the announcement, or the ids of the stores.
    let operator = line.operator().await;
    let blobs = line.put(0..1).await;
    until("it is announced", async || announce(&mut operator.clone(), "", &blobs).await.ok()).await;
    let scrape = Scrape::of(&line.replicator).await;
    assert_eq!(scrape.get("blobferry_queue_failed_commits_total"), 1.0);
    assert_eq!(scrape.get("blobferry_queue_reopenings_total"), 1.0);
}

/// However many scrape at a time, each gets all of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_may_scrape_at_a_time() {
    let line = Line::new("");
    let scrapes = futures::future::join_all((0..40).map(|_| Scrape::of(&line.replicator))).await;
    let names = |scrape: &Scrape| scrape.types().into_keys().map(str::to_owned).collect::<Vec<_>>();
    for scrape in &scrapes {
        assert_eq!(names(scrape), names(&scrapes[0]));
        assert_eq!(scrape.route("lag_seconds"), 0.0);
    }
}

/// The metrics that a text names, of those that are ours or the process'.
fn named(text: &str) -> BTreeSet<String> {
    let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
    let words = text.split(|letter: char| !is_part(letter));
    words.filter(|word| word.starts_with("blobferry_") || word.starts_with("process_")).map(str::to_owned).collect()
}

/// What alert rules, and the dashboard, ask for is there.
#[test]
fn alerts_and_dashboard_name_metrics_that_exist() {
    let documented = documented();
    let exists = |name: &str| {
        let of_histogram = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
        documented.contains_key(name)
            || of_histogram.is_some_and(|name| documented.get(name).is_some_and(|(kind, _)| kind == "histogram"))
    };
    for (file, least) in [("deploy/alerts.yaml", 15), ("deploy/dashboard.json", 30)] {
        let text = fs::read_to_string(repository(file)).unwrap();
        let named = named(&text);
        assert!(named.len() >= least, "{file} names {named:?}");
        let unknown: Vec<&String> = named.iter().filter(|name| !exists(name)).collect();
        assert!(unknown.is_empty(), "{file} asks for {unknown:?}");
        // Labels, too: a filter for one that does not exist finds nothing, in silence.
        for (name, selector) in selectors(&text) {
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let (_, labels) = documented.get(&name).or_else(|| documented.get(family?)).unwrap();
            for label in selector.split(',').filter_map(|part| part.split(['=', '!', '~']).next()).map(str::trim) {
                let known = ["instance", "job"].contains(&label) || labels.iter().any(|known| known == label);
                assert!(known, "{file}: {name} has no label {label}");
            }
        }
    }
}

/// The metrics of a text that are followed by a selector, and that.
fn selectors(text: &str) -> Vec<(String, String)> {
    // In JSON, quotes are escaped.
    let text = text.replace("\\\"", "\"");
    let mut found = Vec::new();
    for (at, _) in text.match_indices("blobferry_") {
        let rest = &text[at..];
        let end = rest.find(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').unwrap_or(rest.len());
        if let Some(selector) = rest[end..].strip_prefix('{').and_then(|selector| selector.split('}').next()) {
            found.push((rest[..end].to_owned(), selector.to_owned()));
        }
    }
    assert!(!found.is_empty());
    found
}

#[test]
fn the_dashboard_is_one_that_grafana_can_load() {
    let text = fs::read_to_string(repository("deploy/dashboard.json")).unwrap();
    let dashboard: serde_json::Value = serde_json::from_str(&text).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<u64> = panels.iter().map(|panel| panel["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len(), "ids are unique");
    for panel in panels.iter().filter(|panel| panel["type"] != "row") {
        let position = &panel["gridPos"];
        assert!(position["x"].as_u64().unwrap() + position["w"].as_u64().unwrap() <= 24, "{panel}");
        assert!(!panel["targets"].as_array().unwrap().is_empty(), "{panel}");
    }
}

#[test]
fn the_alert_rules_are_valid_and_fire_when_they_should() {
    let Some(promtool) = tool("BLOBFERRY_PROMTOOL") else { return };
    for arguments in [["check", "rules", "deploy/alerts.yaml"], ["test", "rules", "tests/it/alerts.yaml"]] {
        let mut command = Command::new(&promtool);
        command.args(arguments).current_dir(repository(""));
        let output = run(command, "");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("SUCCESS"), "{arguments:?}: {said}");
    }
}

/// A store's own port, where one is asked for.
#[tokio::test(flavor = "multi_thread")]
async fn a_store_has_probes_and_metrics_of_its_own() {
    let world = World::new();
    let data = format!("disk://{}", world.path("s").display());
    let args = ["store", "--listen", "{}", "--data", &data, "--http-listen", "127.0.0.1:0"];
    let mut store = Server::start(program(), &args, 2, &world.path("s.log"));
    assert_eq!(page(&store, "/livez").await, "live\n");
    assert_eq!(page(&store, "/readyz").await, "ready\n");
    assert!(page(&store, "/").await.contains("href=\"/metrics\""));
    assert_eq!(ask(&store, "GET", "/status.json", &[]).await.status, 404);
    let (blob, bytes) = blob(1, 100);
    send(&mut receiver(&store).await, blob, &bytes).await.unwrap();
    let scrape = until("the call has ended", async || {
        let scrape = Scrape::of(&store).await;
        let ended =
            "blobferry_grpc_requests_total{method=\"blobferry.v1.BlobReceiverService/ReceiveBlob\",code=\"OK\"}";
        (scrape.samples.get(ended) == Some(&1.0)).then_some(scrape)
    })
    .await;
    assert_eq!(scrape.get("blobferry_ready"), 1.0);
    promtool_passes(&scrape.text);
    let documented = documented();
    for (family, kind) in scrape.types() {
        assert_eq!(documented[family].0, kind, "{family}");
        let part = ["build_info", "ready", "grpc_", "log_", "spans_"].map(|part| format!("blobferry_{part}"));
        let part = [part.as_slice(), &["process_".to_owned()]].concat();
        assert!(part.iter().any(|part| family.starts_with(part.as_str())), "{family} is not said to be a store's");
    }
    store.signal(rustix::process::Signal::TERM);
    assert!(store.wait().success(), "{}", store.said());
}

/// What callers are answered is counted by method and code, and made-up methods share one name.
#[tokio::test(flavor = "multi_thread")]
async fn calls_are_counted_by_method_and_code() {
    let line = Line::new("");
    let mut operator = line.operator().await;
    let status = operator.explain_blob(pb::ExplainBlobRequest { r#ref: "nonsense".to_owned(), ..Default::default() });
    assert_eq!(status.await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let mut pictures = operator.watch_status(pb::WatchStatusRequest::default()).await.unwrap().into_inner();
    pictures.message().await.unwrap().unwrap();
    let name = |method: &str| format!("method=\"blobferry.v1.ReplicationService/{method}\"");
    let in_flight = format!("blobferry_grpc_requests_in_flight{{{}}}", name("WatchStatus"));
    let refused = format!("blobferry_grpc_requests_total{{{},code=\"INVALID_ARGUMENT\"}}", name("ExplainBlob"));
    let scrape = Scrape::of(&line.replicator).await;
    assert_eq!((scrape.get(&in_flight), scrape.get(&refused)), (1.0, 1.0));
    drop(pictures);
    until("the watcher has gone", async || {
        let scrape = Scrape::of(&line.replicator).await;
        (scrape.get(&in_flight) == 0.0).then_some(())
    })
    .await;
}
