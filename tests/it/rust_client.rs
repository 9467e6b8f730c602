//! The crate as a library: its feature `client`, and the packages in `examples/rust` that use it.

use crate::harness::{World, tool};
use std::collections::BTreeSet;
use std::fs;
use std::process::Command;

/// The crates that the library is made of with these features.
fn crates(features: &[&str]) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO"))
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{lib}"])
        .args(features)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
}

#[test]
fn the_client_needs_none_of_what_a_server_does() {
    let (client, all) = (crates(&["--no-default-features", "--features", "client"]), crates(&[]));
    assert!(client.contains("tonic") && client.is_subset(&all), "{client:?}");
    for heavy in ["rocksdb", "librocksdb_sys", "axum", "opentelemetry_otlp", "opentelemetry_sdk", "clap", "governor"] {
        assert!(all.contains(heavy) && !client.contains(heavy), "{heavy}");
    }
}

#[test]
fn the_rust_producer_writes_to_the_rust_store_and_waits_for_the_copies() {
    let world = World::new();
    let Some(programs) = tool("BLOBFERRY_RUST_EXAMPLES") else { return };
    let (source, destination) = (world.rust_store("source").unwrap(), world.store("destination"));
    let replicator = world.replicator(&[("a", &source.url()), ("b", &destination.url())], &[("a", "b")]);
    let [small, large] = [("small", 5), ("large", 3 << 20)].map(|(name, size)| {
        fs::write(world.path(name), vec![7; size]).unwrap();
        world.path(name)
    });
    let output = Command::new(format!("{programs}/producer"))
        .args([source.url(), replicator.url()])
        .args([&small, &large])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.lines().count(), 3, "{said}");
    let kept = fs::read_dir(world.path("source/blobs")).unwrap().count();
    assert_eq!(kept, 2);
    for line in said.lines().take(2) {
        let blob = line.split(' ').next().unwrap();
        let output = Command::new(crate::harness::program())
            .args(["stat", "--store", &destination.url(), blob])
            .output()
            .unwrap();
        assert!(output.status.success(), "{blob}: {}", String::from_utf8_lossy(&output.stderr));
    }
}
