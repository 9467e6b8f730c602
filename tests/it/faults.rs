//! The runners of `make powerloss` and `make diskfull`, in short.

use crate::diskfull;
use crate::powerloss;
use crate::support::disk::build_shim;
use crate::support::load::Pressure;
use std::time::Duration;
use tempfile::TempDir;

/// On the disk of the build, where there is room and a kill leaves the page cache alone.
fn folder() -> TempDir {
    tempfile::Builder::new().prefix("blobferry-it-").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn made(dir: &TempDir, name: &str) -> std::path::PathBuf {
    let path = dir.path().join(name);
    std::fs::create_dir(&path).unwrap();
    path
}

#[test]
#[ignore = "a matter of size: make test-slow"]
fn ten_power_cuts_lose_nothing_and_a_disk_that_lies_is_found_out() {
    let dir = folder();
    let Some(shim) = build_shim(dir.path()).unwrap() else { return };
    let seed = rand::random();
    println!("seed {seed}");
    let pressure = Pressure { producers: 8, rate: 800 };
    let plan = powerloss::Plan { cycles: 10, seed, pressure, check_every: 10 };
    let outcome = powerloss::run(&plan, &shim, &made(&dir, "cycles"), || false).unwrap();
    assert_eq!(outcome.tally.lost, 0, "seed {seed}: {}", outcome.tally);
    assert!(outcome.tally.acks > 0, "seed {seed}: nothing was acked");
    for of_queue in [true, false] {
        let dir = made(&dir, if of_queue { "control-queue" } else { "control-store" });
        let lost = powerloss::control(seed, of_queue, &shim, &dir).unwrap();
        assert!(lost > 0, "seed {seed}: a disk that lies loses nothing: the runner cannot find a loss ({of_queue})");
    }
}

#[test]
#[ignore = "a matter of size: make test-slow"]
fn full_disks_refuse_and_go_on_by_themselves() {
    let dir = folder();
    let shim = build_shim(dir.path()).unwrap();
    let seed = rand::random();
    println!("seed {seed}");
    let pressure = Pressure { producers: 4, rate: 200 };
    // A machine that runs other tests too is slow; how slow a refusal may be is for `make diskfull` to say.
    let plan = diskfull::Plan { cycles: 3, seed, pressure, within: Duration::from_secs(20), by_shim: false };
    match diskfull::run(&plan, shim.as_deref(), dir.path()).unwrap() {
        Some(outcome) => {
            assert_eq!(outcome.tally.lost, 0, "seed {seed}: {outcome}");
            assert!(outcome.tally.acks > 0 && outcome.exhausted + outcome.unavailable > 0, "seed {seed}: {outcome}");
        }
        None => {
            assert!(std::env::var("CI").as_deref() != Ok("true"), "CI must be able to fill a disk (root, or cc)");
            eprintln!("skipped: there is no way to fill a disk here (neither root nor a C compiler)");
        }
    }
}
