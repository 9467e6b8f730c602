//! Writes a configuration out in full, in the order in which a person would.

use super::Config;
use super::read::{endpoint_text, size_text};
use std::fmt::Display;
use std::time::Duration;
use toml::Value;

pub(super) fn to_toml(config: &Config) -> String {
    let mut text = String::new();
    let server = &config.server;
    section(&mut text, "server");
    string(&mut text, "listen", &server.listen.to_string());
    string(&mut text, "http_listen", &server.http_listen.map(|address| address.to_string()).unwrap_or_default());
    string(&mut text, "data_dir", &server.data_dir.to_string_lossy());
    duration(&mut text, "drain_timeout", server.drain_timeout);
    plain(&mut text, "max_connections", server.max_connections);
    for (name, store) in &config.stores {
        section(&mut text, &format!("stores.{name}"));
        string(&mut text, "endpoint", &endpoint_text(&store.endpoint));
        if let Some(ca_file) = &store.ca_file {
            string(&mut text, "ca_file", &ca_file.to_string_lossy());
        }
        duration(&mut text, "connect_timeout", store.connect_timeout);
        duration(&mut text, "request_timeout", store.request_timeout);
        duration(&mut text, "idle_timeout", store.idle_timeout);
        string(&mut text, "min_bytes_per_second", &size_text(store.min_bytes_per_second));
        duration(&mut text, "confirm_timeout", store.confirm_timeout);
    }
    for (name, route) in &config.routes {
        section(&mut text, &format!("routes.{name}"));
        string(&mut text, "from", &route.from);
        string(&mut text, "to", &route.to);
        plain(&mut text, "workers", route.workers);
        string(&mut text, "bytes_in_flight", &size_text(route.bytes_in_flight));
        if let Some(rate) = route.bytes_per_second {
            string(&mut text, "bytes_per_second", &size_text(rate));
        }
        if let Some(rate) = route.blobs_per_second {
            plain(&mut text, "blobs_per_second", rate);
        }
        plain(&mut text, "enabled", route.enabled);
        plain(&mut text, "receive_only", route.receive_only);
        plain(&mut text, "full_sync", format!("{{ on_start = {:?} }}", route.on_start.as_str()));
    }
    section(&mut text, "retry");
    duration(&mut text, "initial", config.retry.initial);
    duration(&mut text, "max", config.retry.max);
    plain(&mut text, "park_after", config.retry.park_after);
    duration(&mut text, "missing_patience", config.retry.missing_patience);
    string(&mut text, "on_missing", config.retry.on_missing.as_str());
    if let Some(after) = config.retry.discard_parked_after {
        duration(&mut text, "discard_parked_after", after);
    }
    section(&mut text, "queue");
    plain(&mut text, "max_entries", config.queue.max_entries);
    string(&mut text, "reserve_bytes", &size_text(config.queue.reserve_bytes));
    plain(&mut text, "parked_max_share", config.queue.parked_max_share);
    section(&mut text, "log");
    string(&mut text, "level", config.log.level.as_str());
    string(&mut text, "format", config.log.format.as_str());
    section(&mut text, "tracing");
    if let Some(endpoint) = &config.tracing.otlp_endpoint {
        string(&mut text, "otlp_endpoint", &endpoint_text(endpoint));
    }
    if let Some(ratio) = config.tracing.sample_ratio {
        plain(&mut text, "sample_ratio", ratio);
    }
    string(&mut text, "copy_parent", config.tracing.copy_parent.as_str());
    text
}

fn section(text: &mut String, name: &str) {
    if !text.is_empty() {
        text.push('\n');
    }
    text.push_str(&format!("[{name}]\n"));
}

fn plain(text: &mut String, key: &str, value: impl Display) {
    text.push_str(&format!("{key} = {value}\n"));
}

fn string(text: &mut String, key: &str, value: &str) {
    plain(text, key, Value::String(value.to_owned()));
}

fn duration(text: &mut String, key: &str, value: Duration) {
    string(text, key, &humantime::format_duration(value).to_string());
}
