//! The commands, as a person types them.

use crate::harness::{World, program};
use std::fs;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(program()).args(arguments).output().unwrap()
}

/// What a command that must succeed prints on stdout.
fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {}\n{stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn put_ls_stat_get_status_sync_and_health() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let folder = world.path("files");
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    fs::write(folder.join("hello"), "hello").unwrap();
    fs::write(folder.join("deep/er/same"), "hello").unwrap();
    fs::write(folder.join("deep/empty"), "").unwrap();
    fs::write(folder.join("deep/large"), vec![7; 3_000_000]).unwrap();
    let (from, to, at) = (source.url(), destination.url(), replicator.url());
    said(&["put", "--store", &from, "--announce", &at, folder.to_str().unwrap()]);

    let hello = "sha256-2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824";
    let listed = said(&["ls", "--store", &from]);
    assert_eq!(listed.lines().count(), 3, "{listed}");
    assert!(listed.contains(hello));
    assert!(said(&["sync", "--replicator", &at, "--watch"]).contains("sync-1"));
    assert_eq!(said(&["ls", "--store", &to]), listed);
    assert!(said(&["stat", "--store", &to, hello]).contains('5'));
    assert_eq!(said(&["get", "--store", &to, hello]), "hello");
    let file = world.path("out");
    said(&["get", "--store", &to, hello, "-o", file.to_str().unwrap()]);
    assert_eq!(fs::read_to_string(file).unwrap(), "hello");
    assert!(said(&["status", "--replicator", &at]).contains("a_to_b"));
    let json = said(&["status", "--replicator", &at, "--json"]);
    serde_json::from_str::<serde_json::Value>(&json).unwrap();
    said(&["health", "--url", &at]);

    let absent = format!("sha256-{}", "0".repeat(64));
    let missing = run(&["get", "--store", &to, &absent]);
    assert!(!missing.status.success());
    assert!(String::from_utf8_lossy(&missing.stderr).contains(&absent));
    let nonsense = run(&["get", "--store", &to, "nonsense"]);
    assert_eq!(nonsense.status.code(), Some(2));
    let nobody = run(&["status", "--replicator", "http://127.0.0.1:1"]);
    assert_eq!(nobody.status.code(), Some(3), "{}", String::from_utf8_lossy(&nobody.stderr));
}

#[test]
fn a_variable_says_where_the_servers_are_and_an_option_wins() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let with = |variables: &[(&str, &str)], arguments: &[&str]| {
        let variables = variables.iter().copied();
        Command::new(program()).envs(variables).args(arguments).output().unwrap().status.code()
    };
    let nowhere = "http://127.0.0.1:1";
    for command in [&["status"][..], &["health"], &["limits"]] {
        assert_eq!(with(&[("BLOBFERRY_REPLICATOR", &replicator.url())], command), Some(0), "{command:?}");
        assert_eq!(with(&[("BLOBFERRY_REPLICATOR", nowhere)], command), Some(3), "{command:?}");
    }
    let named = ["status", "--replicator", &replicator.url()];
    assert_eq!(with(&[("BLOBFERRY_REPLICATOR", nowhere)], &named), Some(0));
    assert_eq!(with(&[("BLOBFERRY_STORE", &source.url())], &["ls"]), Some(0));
    assert_eq!(with(&[("BLOBFERRY_STORE", nowhere)], &["ls"]), Some(3));
}

#[test]
fn a_server_of_the_wrong_kind_is_called_what_it_is() {
    let world = World::new();
    let (source, destination) = (world.store("source"), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let file = world.path("file");
    fs::write(&file, "x").unwrap();
    let (store, at, file) = (source.url(), replicator.url(), file.to_str().unwrap().to_owned());
    let absent = format!("sha256-{}", "0".repeat(64));
    for (arguments, kind) in [
        (&["status", "--replicator", &store][..], "is a store"),
        (&["sync", "--replicator", &store], "is a store"),
        (&["put", "--store", &store, "--announce", &store, &file], "is a store"),
        (&["ls", "--store", &at], "is a replicator"),
        (&["get", "--store", &at, &absent], "is a replicator"),
        (&["stat", "--store", &at, &absent], "is a replicator"),
    ] {
        let output = run(arguments);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(3), "{arguments:?}: {stderr}");
        assert!(stderr.contains(kind) && stderr.contains("address"), "{arguments:?}: {stderr}");
    }
    let judged = run(&["conformance", "--store", &at]);
    assert_eq!(judged.status.code(), Some(1));
    assert_eq!(String::from_utf8_lossy(&judged.stdout).lines().count(), 1);
    let begun = said(&["sync", "--replicator", &at]);
    assert!(begun.contains("sync-1 of ") && begun.contains("blobferry sync --replicator "), "{begun}");
}

#[test]
fn without_a_route_there_is_nothing_to_serve() {
    for arguments in [&["serve"][..], &["config", "check"]] {
        let output = run(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("no route is configured (name a file with --config"));
    }
    assert!(said(&["config", "print"]).contains("[server]"));
}

#[test]
fn config_check_reports_every_problem_at_once_and_print_can_be_loaded_again() {
    let world = World::new();
    let file = world.path("wrong.toml");
    fs::write(
        &file,
        "[stores.a]\nendpoint = \"ftp://x\"\n[routes.r]\nfrom = \"a\"\nto = \"nowhere\"\nworker = 3\n[stores.B]\nendpoint = \"http://b:1\"\n",
    )
    .unwrap();
    let wrong = run(&["config", "check", "--config", file.to_str().unwrap()]);
    assert_eq!(wrong.status.code(), Some(2));
    let said_of = String::from_utf8_lossy(&wrong.stderr);
    for part in ["stores.a.endpoint", "routes.r.to", "routes.r.worker", "stores.\"B\""] {
        assert!(said_of.contains(part), "{part}: {said_of}");
    }
    fs::write(
        &file,
        "[stores.a]\nendpoint = \"http://a:1\"\n[stores.b]\nendpoint = \"http://b:1\"\n[routes.r]\nfrom = \"a\"\nto = \"b\"\n",
    )
    .unwrap();
    said(&["config", "check", "--config", file.to_str().unwrap()]);
    let printed = said(&["config", "print", "--config", file.to_str().unwrap()]);
    let again = world.path("again.toml");
    fs::write(&again, &printed).unwrap();
    assert_eq!(said(&["config", "print", "--config", again.to_str().unwrap()]), printed);
}

#[test]
fn the_demo_ferries_a_folder_and_proves_it() {
    let world = World::new();
    let folder = world.path("files");
    fs::create_dir_all(&folder).unwrap();
    for number in 0..500 {
        fs::write(folder.join(format!("file-{number}")), format!("content {}", number % 450).repeat(20)).unwrap();
    }
    let data = world.path("data");
    let printed = said(&["demo", "--exit", "--data", data.to_str().unwrap(), folder.to_str().unwrap()]);
    assert!(printed.contains("verified"), "{printed}");
    assert!(printed.contains("450 of 450"), "{printed}");
    assert!(printed.contains("p99"), "{printed}");
}

#[test]
fn every_help_text_has_an_example() {
    let commands: &[&[&str]] = &[
        &["serve"],
        &["store"],
        &["demo"],
        &["conformance"],
        &["status"],
        &["sync"],
        &["put"],
        &["get"],
        &["ls"],
        &["stat"],
        &["health"],
        &["config", "check"],
        &["config", "print"],
    ];
    for command in commands {
        let help = said(&[command, &["--help"][..]].concat());
        assert!(help.contains("Example"), "{command:?}: {help}");
    }
}
