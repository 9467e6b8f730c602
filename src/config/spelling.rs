//! Environment variables that were meant as settings.

use super::read::is_name;
use super::tree::PREFIX;
use super::{Config, RouteConfig, StoreConfig};
use crate::limits::BlobRate;
use http::Uri;
use std::time::Duration;
use toml::Value;

/// What the names of all our variables begin with, of commands too.
const BEGIN: &str = "BLOBFERRY_";

/// Stands for the name of a store or a route.
const NAME: &str = "name";

/// How the variable of a setting is written, where this is one with single underscores between its sections.
pub(super) fn well_spelt(variable: &str) -> Option<String> {
    if variable.starts_with(PREFIX) {
        return None;
    }
    let given = variable.strip_prefix(BEGIN)?.to_lowercase().replace("__", "_");
    settings().iter().find_map(|path| {
        let path = match path.iter().position(|part| part == NAME) {
            None => (path.join("_") == given).then(|| path.clone())?,
            Some(at) => {
                let (before, after) = (path[..at].join("_") + "_", format!("_{}", path[at + 1..].join("_")));
                let name = given.strip_prefix(&before)?.strip_suffix(&after).filter(|name| is_name(name))?;
                path.iter().map(|part| if part == NAME { name.to_owned() } else { part.clone() }).collect()
            }
        };
        Some(format!("{PREFIX}{}", path.join("__").to_uppercase()))
    })
}

/// The paths of all settings.
fn settings() -> Vec<Vec<String>> {
    let mut config = Config::default();
    let store =
        StoreConfig { ca_file: Some("ca.pem".into()), ..StoreConfig::at(Uri::from_static("http://localhost:1")) };
    let route = RouteConfig {
        bytes_per_second: Some(1),
        blobs_per_second: BlobRate::new(1.0),
        ..RouteConfig::between(NAME, NAME)
    };
    config.stores.insert(NAME.to_owned(), store);
    config.routes.insert(NAME.to_owned(), route);
    config.retry.discard_parked_after = Some(Duration::from_secs(1));
    config.tracing.otlp_endpoint = Some(Uri::from_static("http://localhost:1"));
    config.tracing.sample_ratio = super::Share::new(1.0);
    let mut found = Vec::new();
    // What was written out can be read.
    collect(&Value::Table(config.to_toml().parse().unwrap_or_default()), &mut Vec::new(), &mut found);
    found
}

fn collect(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    let Value::Table(table) = value else { return found.push(path.clone()) };
    for (key, value) in table {
        path.push(key.clone());
        collect(value, path, found);
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use super::{settings, well_spelt};

    #[test]
    fn what_was_meant_as_a_setting_is_found_and_nothing_else() {
        assert!(settings().len() > 30, "{:?}", settings());
        for (given, meant) in [
            ("BLOBFERRY_STORES_PRIMARY_ENDPOINT", Some("BLOBFERRY__STORES__PRIMARY__ENDPOINT")),
            ("BLOBFERRY_ROUTES__A_TO_B__BLOBS_PER_SECOND", Some("BLOBFERRY__ROUTES__A_TO_B__BLOBS_PER_SECOND")),
            ("BLOBFERRY_ROUTES_A_FULL_SYNC_ON_START", Some("BLOBFERRY__ROUTES__A__FULL_SYNC__ON_START")),
            ("BLOBFERRY_SERVER_LISTEN", Some("BLOBFERRY__SERVER__LISTEN")),
            ("BLOBFERRY_QUEUE_MAX_ENTRIES", Some("BLOBFERRY__QUEUE__MAX_ENTRIES")),
            ("BLOBFERRY_TRACING_SAMPLE_RATIO", Some("BLOBFERRY__TRACING__SAMPLE_RATIO")),
            // Written well, or a command's, or Kubernetes' own for services that are called so.
            ("BLOBFERRY__SERVER__LISTEN", None),
            ("BLOBFERRY_REPLICATOR", None),
            ("BLOBFERRY_PORT", None),
            ("BLOBFERRY_SERVER_PORT", None),
            ("BLOBFERRY_SERVICE_HOST", None),
            ("BLOBFERRY_STORES_PORT_7080_TCP_ADDR", None),
            ("SERVER_LISTEN", None),
        ] {
            assert_eq!(well_spelt(given).as_deref(), meant, "{given}");
        }
    }
}
