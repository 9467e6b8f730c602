#![allow(clippy::unwrap_used, reason = "tests")]

mod documented;

use super::read::{size, size_text};
use super::tree::Scalar;
use super::{Config, ConfigError, CopyParent, LogFormat, LogLevel, RouteConfig, Share, TracingConfig};
use crate::limits::BlobRate;
use proptest::prelude::{any, prop_assert, prop_assert_eq, proptest};
use std::path::Path;
use std::time::Duration;

const EXAMPLE: &str = r#"
[server]
listen = "0.0.0.0:7070"
data_dir = "/var/lib/blobferry"

[stores.primary]
endpoint = "http://primary:7080"

[stores.backup]
endpoint = "https://backup:7080/"
ca_file = "/etc/blobferry/ca.pem"
idle_timeout = "1m 30s"

[routes.primary_to_backup]
from = "primary"
to = "backup"
workers = 0x40

[queue]
max_entries = 1_000
reserve_bytes = "512MiB"

[tracing]
otlp_endpoint = "http://jaeger:4317"
sample_ratio = 0.01
copy_parent = "child"
"#;

fn load(toml: &str, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let own = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let overrides: Vec<_> = overrides.iter().map(own).collect();
    Config::load(Some(("blobferry.toml", toml)), env.iter().map(own), &overrides)
}

fn problems(toml: &str, env: &[(&str, &str)], overrides: &[(&str, &str)]) -> Vec<String> {
    load(toml, env, overrides).unwrap_err().problems.iter().map(ToString::to_string).collect()
}

/// Loads routes `(from, to, enabled)` between the stores that they name.
fn with_routes(routes: &[(&str, &str, bool)]) -> Result<Config, ConfigError> {
    let mut toml = String::new();
    let mut stores: Vec<&str> = routes.iter().flat_map(|(from, to, _)| [*from, *to]).collect();
    stores.sort_unstable();
    stores.dedup();
    for store in stores {
        toml += &format!("[stores.{store}]\nendpoint = 'http://{store}:1'\n");
    }
    for (index, (from, to, enabled)) in routes.iter().enumerate() {
        toml += &format!("[routes.r{index}]\nfrom = '{from}'\nto = '{to}'\nenabled = {enabled}\n");
    }
    load(&toml, &[], &[])
}

#[test]
fn nothing_gives_the_defaults() {
    assert_eq!(Config::load(None, std::iter::empty(), &[]), Ok(Config::default()));
    assert_eq!(load("", &[("PATH", "/bin"), ("BLOBFERRY_PORT", "tcp://10.0.0.1:7070")], &[]), Ok(Config::default()));
}

#[test]
fn reads_the_example() {
    let config = load(EXAMPLE, &[], &[]).unwrap();
    assert_eq!(config.server.listen.to_string(), "0.0.0.0:7070");
    assert_eq!(config.server.drain_timeout, Duration::from_secs(25));
    let backup = &config.stores["backup"];
    assert!(backup.is_tls() && !config.stores["primary"].is_tls());
    assert_eq!(backup.ca_file.as_deref(), Some(Path::new("/etc/blobferry/ca.pem")));
    assert_eq!(backup.idle_timeout, Duration::from_secs(90));
    assert_eq!(backup.endpoint.port_u16(), Some(7080));
    let route = &config.routes["primary_to_backup"];
    assert_eq!(route, &RouteConfig { workers: 64, ..RouteConfig::between("primary", "backup") });
    assert_eq!((config.queue.max_entries, config.queue.reserve_bytes), (1000, 512 << 20));
}

#[test]
fn rates_are_read_printed_and_bounded() {
    let rates = |lines: &str| {
        let stores = "[stores.a]\nendpoint = 'http://a:1'\n[stores.b]\nendpoint = 'http://b:1'\n";
        load(&format!("{stores}[routes.r]\nfrom = 'a'\nto = 'b'\n{lines}"), &[], &[])
    };
    let config = rates("bytes_per_second = '200MiB'\nblobs_per_second = 1.5").unwrap();
    let limits = config.routes["r"].limits();
    assert_eq!((limits.bytes_per_second, limits.blobs_per_second), (Some(200 << 20), BlobRate::new(1.5)));
    assert_eq!(load(&config.to_toml(), &[], &[]).unwrap(), config);
    let whole = rates("blobs_per_second = 50").unwrap();
    assert_eq!(whole.routes["r"].blobs_per_second, BlobRate::new(50.0));
    assert_eq!(load(&whole.to_toml(), &[], &[]).unwrap(), whole);
    let bare = load(&whole.to_toml(), &[("BLOBFERRY__ROUTES__R__BLOBS_PER_SECOND", "0.25")], &[]).unwrap();
    assert_eq!(bare.routes["r"].blobs_per_second, BlobRate::new(0.25));
    for (wrong, said) in [
        ("bytes_per_second = 0", "0 is out of range (set 1B to 1PiB"),
        ("blobs_per_second = 0", "0 is out of range (set a number from 0.001 to 1000000"),
        ("blobs_per_second = nan", "NaN is out of range"),
        ("blobs_per_second = 'many'", "\"many\" is not a number"),
    ] {
        let error = rates(wrong).unwrap_err().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[test]
fn environment_wins_over_the_file_and_flags_over_both() {
    let env = [
        ("BLOBFERRY__SERVER__LISTEN", "127.0.0.1:0"),
        ("BLOBFERRY__SERVER__MAX_CONNECTIONS", "2_000"),
        ("BLOBFERRY__STORES__THIRD__ENDPOINT", "http://[::1]:7080"),
        ("BLOBFERRY__ROUTES__PRIMARY_TO_BACKUP__ENABLED", "false"),
        ("BLOBFERRY__ROUTES__PRIMARY_TO_BACKUP__WORKERS", "8"),
        ("BLOBFERRY__ROUTES__ONWARD__FROM", "backup"),
        ("BLOBFERRY__ROUTES__ONWARD__TO", "third"),
        ("BLOBFERRY__SERVER__DRAIN_TIMEOUT", "1m"),
        ("BLOBFERRY__QUEUE__RESERVE_BYTES", "2GiB"),
        ("BLOBFERRY__LOG__LEVEL", "debug"),
    ];
    let flags = [("server.listen", "127.0.0.1:1"), ("server.listen", "127.0.0.1:2"), ("log.format", "json")];
    let config = load(EXAMPLE, &env, &flags).unwrap();
    assert_eq!(config.server.listen.to_string(), "127.0.0.1:2");
    assert_eq!(config.server.max_connections, 2000);
    assert_eq!(config.server.drain_timeout, Duration::from_mins(1));
    assert_eq!(config.queue.reserve_bytes, 2 << 30);
    assert_eq!((config.log.level, config.log.format), (LogLevel::Debug, LogFormat::Json));
    let route = &config.routes["primary_to_backup"];
    assert_eq!((route.enabled, route.workers), (false, 8));
    let enabled: Vec<&str> = config.enabled_routes().map(|(name, _)| name).collect();
    assert_eq!(enabled, ["onward"]);
}

#[test]
fn reports_every_problem_at_once_with_what_to_do_and_where() {
    let toml = r#"
listen = "127.0.0.1:1"
[server]
lisen = "127.0.0.1:7070"
drain_timeout = 30
max_connections = 0
[stores.primary]
endpoint = "primary:7080"
ca_file = ""
[stores.Backup]
endpoint = "http://backup:7080"
[stores.third]
endpoint = "http://third:7080"
ca_file = "ca.pem"
[routes.one]
from = "primry"
to = "third"
workers = 2000
[routes.two]
from = "third"
to = "third"
enabled = "yes"
[routes.three]
[retry]
initial = "10s"
max = "5s"
[queue]
reserve_bytes = "lots"
max_entries = 1.5
[log]
level = "loud"
format = ["json"]
"#;
    let env = [
        ("BLOBFERRY__ROUTES__ONE__ENABLED", "1"),
        ("BLOBFERRY__SERVR__LISTEN", "x"),
        ("BLOBFERRY__server__LISTEN", "x"),
    ];
    let found = problems(toml, &env, &[("routes.one.to.x", "y"), ("stores", "z"), ("retry.park_after", "-1")]);
    let expected = [
        r#"BLOBFERRY__server__LISTEN: names no setting (write BLOBFERRY__SECTION__KEY in capitals, or unset it)"#,
        r#"stores: is a section, not a setting (name a key in it; set on the command line)"#,
        r#"server.drain_timeout: 30 is not a duration (write it with its unit, as "30s" or "10m"; set at blobferry.toml:5)"#,
        r#"server.max_connections: 0 is out of range (set a whole number from 1 to 65536; set at blobferry.toml:6)"#,
        r#"server.lisen: unknown key (did you mean "listen"?; set at blobferry.toml:4)"#,
        r#"stores."Backup": is no name for a store (use a-z, 0-9 and _, beginning with a letter; set at blobferry.toml:11)"#,
        r#"stores.primary.endpoint: "primary:7080" lacks http:// or https:// (write http://HOST:PORT or https://HOST:PORT; set at blobferry.toml:8)"#,
        r#"stores.primary.ca_file: is empty (give it a value, or remove it; set at blobferry.toml:9)"#,
        r#"stores.third.ca_file: means nothing for an http endpoint (use https, or remove it; set at blobferry.toml:14)"#,
        r#"routes.one.from: unknown store "primry" (did you mean "primary"?; set at blobferry.toml:16)"#,
        r#"routes.one.workers: 2000 is out of range (set a whole number from 1 to 1024; set at blobferry.toml:18)"#,
        r#"routes.one.enabled: "1" is neither true nor false (write true or false; set by BLOBFERRY__ROUTES__ONE__ENABLED)"#,
        r#"routes.three.from: is missing (name the store that is copied)"#,
        r#"routes.three.to: is missing (name the store that becomes the copy)"#,
        r#"routes.two.enabled: "yes" is neither true nor false (write true or false; set at blobferry.toml:22)"#,
        r#"routes.two.to: is the store that the route starts from (name another store; set at blobferry.toml:21)"#,
        r#"retry.park_after: -1 is out of range (set a whole number from 1 to 100000; set on the command line)"#,
        r#"retry.max: 5s is less than retry.initial (set at least 10s; set at blobferry.toml:26)"#,
        r#"queue.max_entries: a value of type float is not a whole number (set a whole number from 1 to 9223372036854775807; set at blobferry.toml:29)"#,
        r#"queue.reserve_bytes: "lots" is not a size (write it as "200MiB" or "1GiB"; set at blobferry.toml:28)"#,
        r#"log.level: "loud" is not a choice (write one of error, warn, info, debug, trace; set at blobferry.toml:31)"#,
        r#"log.format: a value of type array is not a choice (write one of auto, human, json; set at blobferry.toml:32)"#,
        r#"listen: unknown key (known: server, stores, routes, retry, queue, log, tracing; set at blobferry.toml:2)"#,
        r#"servr: unknown key (did you mean "server"?; set by BLOBFERRY__SERVR__LISTEN)"#,
    ];
    assert_eq!(found, expected, "{found:#?}");
    let shown = load(toml, &env, &[]).unwrap_err().to_string();
    assert!(shown.lines().count() > 20 && shown.lines().all(|line| line.ends_with(')')), "{shown}");
}

#[test]
fn a_file_that_is_no_toml_is_reported_by_line() {
    let found = problems("[server]\nlisten = \n[stores\n", &[("BLOBFERRY__SERVER__LISTEN", "x")], &[]);
    assert!(found.len() >= 2, "{found:#?}");
    assert!(found[0].starts_with("blobferry.toml:2: ") && found[1].starts_with("blobferry.toml:3: "), "{found:#?}");
    let found = problems("[server]\n[server]\n", &[], &[]);
    assert!(found[0].starts_with("blobferry.toml:2: "), "{found:#?}");
}

#[test]
fn settings_and_sections_are_not_mistaken_for_each_other() {
    assert_eq!(
        problems(
            "server = 1\nqueue.max_entries.x = 2",
            &[("BLOBFERRY__SERVER__LISTEN", "x"), ("BLOBFERRY__LOG", "x")],
            &[]
        ),
        [
            "server: is a section, not a setting (write [server] with keys in it; set at blobferry.toml:1)",
            "queue.max_entries: is a setting, not a section (give it one value; set at blobferry.toml:2)",
            "log: is a section, not a setting (write [log] with keys in it; set by BLOBFERRY__LOG)",
        ]
    );
}

#[test]
fn odd_environment_variables_and_flags_are_errors() {
    for name in ["BLOBFERRY__", "BLOBFERRY____X", "BLOBFERRY__SERVER__", "BLOBFERRY__SERVER__listen", "BLOBFERRY__FOO"]
    {
        let found = problems("", &[(name, "x")], &[]);
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert!(found[0].contains(name), "{found:?}");
    }
    for key in ["", "server", ".", "server..listen", "SERVER.listen", "server.listen.x"] {
        assert!(load("", &[], &[(key, "x")]).is_err(), "{key}");
    }
    assert_eq!(problems("", &[("BLOBFERRY__SERVER__LISTEN", "")], &[]).len(), 1);
}

#[test]
fn endpoints_are_a_scheme_a_host_and_a_port() {
    for good in
        ["http://a:1", "https://a.b-c.example:65535/", "http://127.0.0.1:7080", "https://[::1]:7080", "http://a_b:1"]
    {
        assert!(load("", &[], &[("stores.a.endpoint", good)]).is_ok(), "{good}");
    }
    let bad = [
        "",
        "a",
        "a:1",
        "http://",
        "http://a",
        "http://:1",
        "http://a:0",
        "http://a:65536",
        "http://a:x",
        "http://a:1/b",
        "http://a:1?b",
        "http://a:1#b",
        "http://u:p@a:1",
        "ftp://a:1",
        "unix:///a",
        "http//a:1",
        " http://a:1",
        "http://a:1 ",
        "http://a b:1",
        "/a",
        "*",
    ];
    for bad in bad {
        let found = problems("", &[], &[("stores.a.endpoint", bad)]);
        assert_eq!(found.len(), 1, "{bad}: {found:?}");
    }
    assert!(
        problems("", &[], &[("stores.a.endpoint", "http://user:secret@a:1")])
            .iter()
            .all(|text| !text.contains("secret"))
    );
}

#[test]
fn traces_go_where_they_are_told_and_a_share_is_one() {
    let tracing = load(EXAMPLE, &[("BLOBFERRY__TRACING__SAMPLE_RATIO", "1")], &[]).unwrap().tracing;
    assert_eq!(tracing.otlp_endpoint.unwrap().to_string(), "http://jaeger:4317/");
    assert_eq!((tracing.sample_ratio, tracing.copy_parent), (Share::new(1.0), CopyParent::Child));
    assert_eq!(load("", &[], &[]).unwrap().tracing, TracingConfig::default());
    for (key, value, wrong) in [
        ("sample_ratio", "1.01", "1.01 is out of range (set a number from 0 to 1"),
        ("sample_ratio", "-0.1", "-0.1 is out of range"),
        ("sample_ratio", "some", "\"some\" is not a number"),
        ("otlp_endpoint", "jaeger:4317", "lacks http:// or https://"),
        ("otlp_endpoint", "http://jaeger:4317/v1/traces", "has something after the port"),
        ("copy_parent", "yes", "is not a choice (write one of link, child"),
    ] {
        let found = problems("", &[], &[(&format!("tracing.{key}"), value)]);
        assert!(found.len() == 1 && found[0].contains(wrong), "{key} = {value}: {found:?}");
    }
}

#[test]
fn names_are_plain() {
    for (name, good) in [
        ("a", true),
        ("a_1", true),
        ("\"\"", false),
        ("1a", false),
        ("_a", false),
        ("a-b", false),
        ("\"é\"", false),
        ("\"a.b\"", false),
    ] {
        assert_eq!(load(&format!("[stores.{name}]\nendpoint = 'http://a:1'"), &[], &[]).is_ok(), good, "{name}");
    }
}

#[test]
fn routes_are_held_to_each_other() {
    assert!(with_routes(&[("a", "b", true), ("b", "a", true), ("a", "c", true)]).is_ok());
    assert!(with_routes(&[("a", "b", true), ("a", "b", false), ("a", "b", false)]).is_ok());
    let twins = with_routes(&[("a", "b", true), ("a", "b", true)]).unwrap_err().to_string();
    assert_eq!(twins, "routes.r1: goes from a to b, as routes.r0 does (disable or remove one of the two)");
    let alias = "[stores]\na.endpoint = 'http://x:1'\nb.endpoint = 'http://x:1/'\n[routes.r]\nfrom = 'a'\nto = 'b'";
    assert!(problems(alias, &[], &[])[0].starts_with("routes.r.to: is at http://x:1, where a is too"));
    // A store that is wrong in itself is not unknown as well.
    assert_eq!(problems("[stores.a]\n[stores.b]\n[routes.r]\nfrom = 'a'\nto = 'b'", &[], &[]).len(), 2);
    assert_eq!(problems("[routes.r]\nfrom = 'a'\nto = 'b'", &[], &[]).len(), 2);
}

#[test]
fn what_is_printed_loads_again() {
    let tricky = [
        ("server.data_dir", "/a \"b\"\\c\nd'é"),
        ("server.drain_timeout", "1h"),
        ("retry.initial", "1ms"),
        ("queue.max_entries", "9223372036854775807"),
        ("queue.reserve_bytes", "1234567"),
        ("server.listen", "[::]:0"),
        ("stores.v6.endpoint", "https://[::1]:7080"),
    ];
    for config in [Config::default(), load(EXAMPLE, &[], &[]).unwrap(), load(EXAMPLE, &[], &tricky).unwrap()] {
        let printed = config.to_toml();
        assert_eq!(load(&printed, &[], &[]), Ok(config), "{printed}");
    }
}

#[test]
fn sizes_are_exact() {
    let read = |text: &str| size(0..=u64::MAX)(&Scalar::Text(text.to_owned())).ok();
    assert_eq!(read("200MiB"), Some(200 << 20));
    assert_eq!(read("1 GB"), Some(1_000_000_000));
    assert_eq!(read("1.5KiB"), Some(1536));
    assert_eq!(read("0"), Some(0));
    for bad in ["", "-1", "1 parsec", "GiB", "1..2GiB", "NaN", "0x10"] {
        assert_eq!(read(bad), None, "{bad}");
    }
    assert!(size(0..=10)(&Scalar::Integer(-1)).is_err() && size(0..=10)(&Scalar::Integer(11)).is_err());
}

proptest! {
    #[test]
    fn a_size_reads_back(bytes in any::<u64>(), shift in 0u32..64) {
        for bytes in [bytes, bytes >> shift, 1 << shift] {
            let text = size_text(bytes);
            prop_assert_eq!(size(0..=u64::MAX)(&Scalar::Bare(text)).ok(), Some(bytes));
        }
    }

    #[test]
    fn no_text_makes_it_panic(toml in any::<String>(), key in "[a-z_.]{0,20}", value in any::<String>()) {
        if let Err(error) = load(&toml, &[(&format!("BLOBFERRY__{key}"), &value)], &[(&key, &value)]) {
            prop_assert!(!error.problems.is_empty());
        }
    }
}
