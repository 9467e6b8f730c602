//! A disk that fills, turns read-only, and fills again, under the queue and under a store, while the wall clock jumps by years.
//!
//! The disk is the shim's of `powerloss`: it needs no root, and fails under files that are open, as a real one does.

use crate::harness::{
    Replication, Server, World, announce, blob, fetch, held, queued, reader, reason, receiver, replication, route,
    send, until,
};
use crate::http::ask;
use crate::support::disk::{Disk, build_shim};
use blobferry::blob::BlobRef;
use blobferry::internal::failpoint;
use blobferry::v1 as pb;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use tonic::Code;

const YEAR: i64 = 365 * 24 * 60 * 60;

/// A wall clock that is wrong by what a file says.
struct Clock(PathBuf);

impl Clock {
    fn new(world: &World) -> Self {
        let clock = Self(world.path("clock"));
        clock.set(0);
        clock
    }

    fn set(&self, seconds: i64) {
        let draft = self.0.with_extension("new");
        fs::write(&draft, seconds.to_string()).unwrap();
        fs::rename(draft, &self.0).unwrap();
    }

    fn variable(&self) -> (String, String) {
        (failpoint::CLOCK_VARIABLE.to_owned(), self.0.to_str().unwrap().to_owned())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Trouble {
    Full,
    ReadOnly,
}

/// What happens, one after the other, and by how much the clock is wrong meanwhile.
const TROUBLES: [(Trouble, i64); 3] = [(Trouble::Full, YEAR), (Trouble::ReadOnly, -YEAR), (Trouble::Full, 0)];

impl Trouble {
    fn set(self, disk: &Disk, is_on: bool) {
        match self {
            Self::Full => disk.set_full(is_on).unwrap(),
            Self::ReadOnly => disk.set_read_only(is_on).unwrap(),
        }
    }

    const fn said(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::ReadOnly => "Read-only file system",
        }
    }

    /// What the queue says to callers.
    const fn refusal(self) -> (Code, &'static str) {
        match self {
            Self::Full => (Code::ResourceExhausted, "NO_SPACE"),
            Self::ReadOnly => (Code::Unavailable, "QUEUE_UNAVAILABLE"),
        }
    }
}

fn variables(of: &[(String, String)]) -> Vec<(&str, &str)> {
    of.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
}

/// A new blob at a store.
async fn put(at: &Server, seed: &mut u64, size: usize) -> BlobRef {
    *seed += 1;
    let (blob, bytes) = blob(*seed, size);
    send(&mut receiver(at).await, blob, &bytes).await.unwrap();
    blob
}

async fn status(of: &Replication) -> pb::ReplicatorStatus {
    of.clone().status(pb::StatusRequest::default()).await.unwrap().into_inner().status.unwrap()
}

fn is_serving(server: &Server, service: &str) -> bool {
    let health = ["health", "--url", &server.url(), "--service", service];
    Command::new(crate::harness::program()).args(health).output().unwrap().status.success()
}

async fn arrived(at: &Server, blobs: &[BlobRef]) {
    until("all that was acked is there", async || {
        (held(&mut reader(at).await, blobs).await == blobs.len()).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_queue_whose_disk_fails_says_so_loses_nothing_and_goes_on_by_itself() {
    let world = World::new();
    let Some(shim) = build_shim(&world.path("")).unwrap() else { return };
    let (a, b, clock) = (world.store("a"), world.store("b"), Clock::new(&world));
    let disk = Disk::new(&shim, &world.path("replicator-data")).unwrap();
    let mut environment = disk.variables(false);
    environment.push(clock.variable());
    let config = format!(
        "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n",
        a.url(),
        b.url()
    );
    let mut replicator = world.replicator_in("replicator", &config, &variables(&environment));
    let operator = replication(&replicator).await;
    let folder = disk.root().join("queue").display().to_string();
    let (mut acked, mut seed) = (Vec::new(), 0);
    for (trouble, shift) in TROUBLES {
        // Some are under way when it begins.
        for _ in 0..20 {
            let blob = put(&a, &mut seed, 500).await;
            announce(&mut operator.clone(), "", &[blob]).await.unwrap();
            acked.push(blob);
        }
        trouble.set(&disk, true);
        clock.set(shift);
        let blob = put(&a, &mut seed, 500).await;
        // What is in the log's last block already may be written still.
        let refused = until("it is noticed", async || announce(&mut operator.clone(), "", &[blob]).await.err()).await;
        assert_eq!((refused.code(), &*reason(&refused)), trouble.refusal(), "{trouble:?}: {refused:?}");
        until("the status says what and where", async || {
            let said = status(&operator).await;
            let reason = &said.queue.as_ref().unwrap().reason;
            let is_told = reason.contains(&folder) && reason.contains(trouble.said());
            (is_told && said.state() == pb::ReplicatorState::NotAccepting).then_some(())
        })
        .await;
        until("nobody is told to announce", async || {
            (!is_serving(&replicator, "blobferry.v1.ReplicationService")).then_some(())
        })
        .await;
        // What can be read is told all the while.
        let listed = operator.clone().list_failures(pb::ListFailuresRequest::default()).await;
        assert!(listed.is_ok(), "{trouble:?}: {listed:?}");

        trouble.set(&disk, false);
        until("it accepts again", async || announce(&mut operator.clone(), "", &[blob]).await.ok()).await;
        acked.push(blob);
        until("it copies again", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
        until("it says so", async || {
            let said = status(&operator).await;
            (said.state() == pb::ReplicatorState::Ok).then_some(())
        })
        .await;
        arrived(&b, &acked).await;
    }
    assert!(replicator.ended().is_none(), "without a restart");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_whose_disk_fails_says_so_loses_nothing_and_goes_on_by_itself() {
    let world = World::new();
    let Some(shim) = build_shim(&world.path("")).unwrap() else { return };
    let (a, clock) = (world.store("a"), Clock::new(&world));
    let disk = Disk::new(&shim, &world.path("b")).unwrap();
    let mut environment = disk.variables(false);
    environment.push(clock.variable());
    let mut b = world.store_under(&[], "b", &variables(&environment));
    let replicator = world.replicator(&[("a", &a.url()), ("b", &b.url())], &[("a", "b")]);
    let operator = replication(&replicator).await;
    let folder = disk.root().display().to_string();
    let (mut acked, mut seed) = (Vec::new(), 0);
    let (mut direct, mut fetching) = (receiver(&b).await, reader(&b).await);
    for (trouble, shift) in TROUBLES {
        for size in [500, 100_000] {
            let blob = put(&a, &mut seed, size).await;
            announce(&mut operator.clone(), "", &[blob]).await.unwrap();
            acked.push(blob);
        }
        arrived(&b, &acked).await;
        trouble.set(&disk, true);
        clock.set(shift);
        for size in [500, 100_000] {
            seed += 1;
            let (blob, bytes) = blob(seed, size);
            let refused = until("it is noticed", async || send(&mut direct.clone(), blob, &bytes).await.err()).await;
            let expected = if trouble == Trouble::Full { "NO_SPACE" } else { "STORE_FAILED" };
            assert_eq!(&*reason(&refused), expected, "{trouble:?} {size}: {refused:?}");
        }
        if trouble == Trouble::ReadOnly {
            until("its page says what and where", async || {
                let answer = ask(&b, "GET", "/readyz", &[]).await;
                let is_told = answer.body.contains(&folder) && answer.body.contains(trouble.said());
                (answer.status == 503 && is_told).then_some(())
            })
            .await;
            until("its health says so, too", async || {
                (!is_serving(&b, "blobferry.v1.BlobReceiverService")).then_some(())
            })
            .await;
        }
        // What it has it gives.
        assert!(is_serving(&b, "blobferry.v1.BlobReaderService"));
        for blob in acked.iter().rev().take(2) {
            assert_eq!(blob.function().ref_of(&fetch(&mut fetching, *blob).await.unwrap()), *blob);
        }
        // Blobs for it are taken, and wait; the replicator says for what.
        for size in [500, 100_000] {
            let blob = put(&a, &mut seed, size).await;
            announce(&mut operator.clone(), "", &[blob]).await.unwrap();
            acked.push(blob);
        }
        let word = if trouble == Trouble::Full { "o space" } else { trouble.said() };
        until("the replicator says which store, and why", async || {
            let peers = status(&operator).await.peers;
            let fault = peers.into_iter().find(|peer| peer.name == "b").unwrap().last_fault;
            fault.is_some_and(|fault| fault.message.contains(word)).then_some(())
        })
        .await;

        trouble.set(&disk, false);
        arrived(&b, &acked).await;
        until("it is ready", async || (ask(&b, "GET", "/readyz", &[]).await.status == 200).then_some(())).await;
        until("nothing is parked or left", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(()))
            .await;
        direct = receiver(&b).await;
    }
    assert!(b.ended().is_none(), "without a restart");
    // And it is all on the disk.
    b.kill();
    b.again();
    let mut fetching = reader(&b).await;
    for blob in acked {
        assert_eq!(blob.function().ref_of(&fetch(&mut fetching, blob).await.unwrap()), blob);
    }
}

/// A year ahead, a year back, and right again, while it runs and across a restart each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_by_years_holds_up_nothing_and_gives_nothing_up() {
    let world = World::new();
    let clock = Clock::new(&world);
    let environment = [clock.variable()];
    let (a, mut b) = (world.store("a"), world.store_under(&[], "b", &variables(&environment)));
    let config = format!(
        "[stores.a]\nendpoint = \"{}\"\n[stores.b]\nendpoint = \"{}\"\n[routes.a_to_b]\nfrom = \"a\"\nto = \"b\"\n",
        a.url(),
        b.url()
    );
    let mut replicator = world.replicator_in("replicator", &config, &variables(&environment));
    let mut operator = replication(&replicator).await;
    let (mut acked, mut seed) = (Vec::new(), 0);
    for shift in [YEAR, -YEAR, 0] {
        // One that is not written yet, and some for a store that is down.
        seed += 1;
        let (late, late_bytes) = blob(seed, 700);
        announce(&mut operator, "", &[late]).await.unwrap();
        until("it was missed", async || {
            let failures = operator.clone().list_failures(pb::ListFailuresRequest::default()).await.unwrap();
            let failures = failures.into_inner().failures;
            failures.iter().any(|failure| failure.r#ref == late.to_string()).then_some(())
        })
        .await;
        b.kill();
        for _ in 0..10 {
            let blob = put(&a, &mut seed, 500).await;
            announce(&mut operator, "", &[blob]).await.unwrap();
            acked.push(blob);
        }
        let failed = |status: pb::RouteStatus| status.since_start.unwrap().failed_attempts() > 1;
        until("some have failed", async || failed(route(&mut operator.clone()).await).then_some(())).await;

        clock.set(shift);
        let blob = put(&a, &mut seed, 500).await;
        announce(&mut operator, "", &[blob]).await.unwrap();
        acked.push(blob);
        b.again();
        arrived(&b, &acked).await;
        for again in [false, true] {
            if again {
                replicator.kill();
                replicator.again();
                operator = replication(&replicator).await;
                let blob = put(&a, &mut seed, 500).await;
                announce(&mut operator, "", &[blob]).await.unwrap();
                acked.push(blob);
                arrived(&b, &acked).await;
            }
            // The one that is missing has used up nobody's patience.
            until("only the one is left", async || (queued(&route(&mut operator.clone()).await) == 1).then_some(()))
                .await;
            let left = route(&mut operator).await.queued.unwrap().fresh.unwrap();
            assert_eq!(left.parked.unwrap().entries(), 0, "{shift}");
            let sync = crate::harness::full_sync(&mut operator).await;
            assert_eq!(sync.state(), pb::FullSyncState::Completed, "{shift}: {sync:?}");
            let told = pb::ExplainBlobRequest { r#ref: acked[0].to_string(), ..Default::default() };
            operator.explain_blob(told).await.unwrap();
            paused_for_an_hour(&mut operator).await;
            commands(&replicator, &acked[0]);
        }
        send(&mut receiver(&a).await, late, &late_bytes).await.unwrap();
        acked.push(late);
        arrived(&b, &acked).await;
        until("nothing is left", async || (queued(&route(&mut operator.clone()).await) == 0).then_some(())).await;
    }
}

/// Whatever the clock says, an hour's pause neither ends now nor holds after it was taken back.
async fn paused_for_an_hour(operator: &mut Replication) {
    let hour = prost_types::Duration { seconds: 3600, nanos: 0 };
    let expiration = Some(pb::pause_route_request::Expiration::Ttl(hour));
    operator.pause_route(pb::PauseRouteRequest { expiration, ..Default::default() }).await.unwrap();
    assert_eq!(route(operator).await.state(), pb::RouteState::Paused);
    operator.resume_route(pb::ResumeRouteRequest::default()).await.unwrap();
    assert_ne!(route(operator).await.state(), pb::RouteState::Paused);
}

/// Those that show times.
fn commands(replicator: &Server, blob: &BlobRef) {
    for command in [&["status"][..], &["sync", "--list"], &["failures", "list"], &["explain", &blob.to_string()]] {
        let shown = Command::new(crate::harness::program())
            .args(command)
            .args(["--replicator", &replicator.url()])
            .output()
            .unwrap();
        assert!(shown.status.success(), "{command:?}: {}", String::from_utf8_lossy(&shown.stderr));
    }
}
