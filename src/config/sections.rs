//! What each section holds, within which bounds, and what must hold between them.

use super::read::{
    Section, Wrong, address, address_or_off, blob_rate, boolean, choice, duration, endpoint, endpoint_text, integer,
    path, ratio, size, text,
};
use super::tree::Tree;
use super::{
    Config, CopyParent, LogConfig, LogFormat, LogLevel, OnStart, Problem, QueueConfig, RetryConfig, RouteConfig,
    ServerConfig, StoreConfig, TracingConfig,
};
use crate::backoff::OnMissing;
use crate::limits::WORKERS;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Reads the whole tree. What is wrong is reported, and stands at its default in what is returned.
pub(super) fn read(tree: Tree, problems: &mut Vec<Problem>) -> Config {
    let mut root = Section::root(tree, problems);
    let server = read_server(root.section("server"));
    let (stores, store_names) = read_stores(root.section("stores"));
    let routes = read_routes(root.section("routes"), &stores, &store_names);
    let retry = read_retry(root.section("retry"));
    let queue = read_queue(root.section("queue"));
    let log = read_log(root.section("log"));
    let tracing = read_tracing(root.section("tracing"));
    root.finish();
    Config { server, stores, routes, retry, queue, log, tracing }
}

fn read_server(mut section: Section<'_>) -> ServerConfig {
    let default = ServerConfig::default();
    let server = ServerConfig {
        listen: section.value("listen", default.listen, address),
        http_listen: section.value("http_listen", default.http_listen, address_or_off),
        data_dir: section.value("data_dir", default.data_dir, path),
        drain_timeout: section.value(
            "drain_timeout",
            default.drain_timeout,
            duration(Duration::ZERO..=Duration::from_hours(1)),
        ),
        max_connections: section.value("max_connections", default.max_connections, integer(1..=65_536)),
    };
    if server.http_listen == Some(server.listen) && server.listen.port() != 0 {
        let wrong = Wrong::new("is where gRPC listens", "give it a port of its own, or \"\" to turn it off");
        section.report("http_listen", wrong);
    }
    section.finish();
    server
}

/// The stores that can be read, and the names of all that are there.
fn read_stores(mut section: Section<'_>) -> (BTreeMap<String, StoreConfig>, BTreeSet<String>) {
    let names = section.names("a store");
    let mut stores = BTreeMap::new();
    for name in &names {
        if let Some(store) = read_store(section.section(name)) {
            stores.insert(name.clone(), store);
        }
    }
    section.finish();
    (stores, names)
}

fn read_store(mut section: Section<'_>) -> Option<StoreConfig> {
    const MS: Duration = Duration::from_millis(1);
    let uri = section.required("endpoint", "set the store's address, such as http://primary:7080", endpoint);
    let default = StoreConfig::at(uri.clone().unwrap_or_default());
    let store = StoreConfig {
        ca_file: section.optional("ca_file", path),
        connect_timeout: section.value(
            "connect_timeout",
            default.connect_timeout,
            duration(MS..=Duration::from_mins(5)),
        ),
        request_timeout: section.value(
            "request_timeout",
            default.request_timeout,
            duration(MS..=Duration::from_hours(1)),
        ),
        idle_timeout: section.value("idle_timeout", default.idle_timeout, duration(MS..=Duration::from_hours(1))),
        min_bytes_per_second: section.value("min_bytes_per_second", default.min_bytes_per_second, size(0..=1 << 30)),
        confirm_timeout: section.value(
            "confirm_timeout",
            default.confirm_timeout,
            duration(MS..=Duration::from_hours(1)),
        ),
        endpoint: default.endpoint,
    };
    if uri.is_some() && store.ca_file.is_some() && !store.is_tls() {
        section.report("ca_file", Wrong::new("means nothing for an http endpoint", "use https, or remove it"));
    }
    section.finish();
    uri.map(|_| store)
}

fn read_routes(
    mut section: Section<'_>,
    stores: &BTreeMap<String, StoreConfig>,
    store_names: &BTreeSet<String>,
) -> BTreeMap<String, RouteConfig> {
    let names = section.names("a route");
    let mut routes: BTreeMap<String, RouteConfig> = BTreeMap::new();
    for name in names {
        let mut section = section.section(&name);
        let Some(route) = read_route(&mut section, stores, store_names) else {
            section.finish();
            continue;
        };
        let twin = routes
            .iter()
            .find(|(_, other)| route.enabled && other.enabled && (&route.from, &route.to) == (&other.from, &other.to));
        if let Some((twin, _)) = twin {
            section.report_here(Wrong::new(
                format!("goes from {} to {}, as routes.{twin} does", route.from, route.to),
                "disable or remove one of the two",
            ));
        }
        section.finish();
        routes.insert(name, route);
    }
    section.finish();
    routes
}

fn read_route(
    section: &mut Section<'_>,
    stores: &BTreeMap<String, StoreConfig>,
    store_names: &BTreeSet<String>,
) -> Option<RouteConfig> {
    let from = section.required("from", "name the store that is copied", text);
    let to = section.required("to", "name the store that becomes the copy", text);
    for (key, store) in [("from", &from), ("to", &to)] {
        let unknown = store.as_ref().filter(|store| !store_names.contains(*store));
        if let Some(store) = unknown {
            section.report(key, Wrong::unknown("store", store, store_names.iter().map(String::as_str)));
        }
    }
    let default = RouteConfig::between(from.clone().unwrap_or_default(), to.clone().unwrap_or_default());
    let default_on_start = default.on_start;
    let route = RouteConfig {
        workers: section.value("workers", default.workers, integer(WORKERS)),
        bytes_in_flight: section.value("bytes_in_flight", default.bytes_in_flight, size(4 << 20..=64 << 30)),
        bytes_per_second: section.optional("bytes_per_second", size(1..=1 << 50)),
        blobs_per_second: section.optional("blobs_per_second", blob_rate),
        enabled: section.value("enabled", default.enabled, boolean),
        receive_only: section.value("receive_only", default.receive_only, boolean),
        ..default
    };
    let mut full_sync = section.section("full_sync");
    let on_start = full_sync.value("on_start", default_on_start, choice(&OnStart::ALL, OnStart::as_str));
    full_sync.finish();
    let route = RouteConfig { on_start, ..route };
    let (from, to) = (from?, to?);
    if from == to {
        section.report("to", Wrong::new("is the store that the route starts from", "name another store"));
    } else if let (Some(source), Some(destination)) = (stores.get(&from), stores.get(&to))
        && source.endpoint == destination.endpoint
    {
        let problem = format!("is at {}, where {from} is too", endpoint_text(&source.endpoint));
        section.report("to", Wrong::new(problem, "give the two stores endpoints of their own"));
    }
    Some(route)
}

fn read_retry(mut section: Section<'_>) -> RetryConfig {
    let default = RetryConfig::default();
    let delays = Duration::from_millis(1)..=Duration::from_hours(24);
    let retry = RetryConfig {
        initial: section.value("initial", default.initial, duration(delays.clone())),
        max: section.value("max", default.max, duration(delays)),
        park_after: section.value("park_after", default.park_after, integer(1..=100_000)),
        missing_patience: section.value(
            "missing_patience",
            default.missing_patience,
            duration(Duration::ZERO..=Duration::from_hours(365 * 24)),
        ),
        on_missing: section.value("on_missing", default.on_missing, choice(&OnMissing::ALL, OnMissing::as_str)),
        discard_parked_after: section
            .optional("discard_parked_after", duration(Duration::from_secs(1)..=Duration::from_hours(10 * 365 * 24))),
    };
    if retry.initial > retry.max {
        section.report(
            "max",
            Wrong::new(
                format!("{} is less than retry.initial", humantime::format_duration(retry.max)),
                format!("set at least {}", humantime::format_duration(retry.initial)),
            ),
        );
    }
    section.finish();
    retry
}

fn read_queue(mut section: Section<'_>) -> QueueConfig {
    let default = QueueConfig::default();
    let queue = QueueConfig {
        // TOML's integers end where i64 does; what is printed must load again.
        max_entries: section.value("max_entries", default.max_entries, integer(1..=i64::MAX.unsigned_abs())),
        reserve_bytes: section.value("reserve_bytes", default.reserve_bytes, size(0..=1 << 50)),
        parked_max_share: section.value("parked_max_share", default.parked_max_share, ratio),
    };
    section.finish();
    queue
}

fn read_log(mut section: Section<'_>) -> LogConfig {
    let log = LogConfig {
        level: section.value("level", LogLevel::default(), choice(&LogLevel::ALL, LogLevel::as_str)),
        format: section.value("format", LogFormat::default(), choice(&LogFormat::ALL, LogFormat::as_str)),
    };
    section.finish();
    log
}

fn read_tracing(mut section: Section<'_>) -> TracingConfig {
    let tracing = TracingConfig {
        otlp_endpoint: section.optional("otlp_endpoint", endpoint),
        sample_ratio: section.optional("sample_ratio", ratio),
        copy_parent: section.value("copy_parent", CopyParent::default(), choice(&CopyParent::ALL, CopyParent::as_str)),
    };
    section.finish();
    tracing
}
