//! Cycles of filling and freeing a disk under load, and the reckoning.

use crate::support::api::{self, Receiver, Replication};
use crate::support::check::{self, Tally};
use crate::support::load::{self, Addresses, Pressure};
use crate::support::medium::Medium;
use crate::support::process::{self, Process};
use anyhow::{Context as _, Result, bail, ensure};
use blobferry::v1 as pb;
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};
use tonic::Code;

/// The queue's disk: some logs and tables of RocksDB.
const QUEUE_BYTES: u64 = 192 << 20;
/// The destination's disk: what a long run copies.
const STORE_BYTES: u64 = 1 << 30;
/// What is kept free of the queue's disk where there is a reserve.
const RESERVE: u64 = 32 << 20;
/// Refusals that are asked for in each cycle.
const REFUSALS: usize = 5;
/// How long it may take until a full disk is noticed, and until a free one is.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// What is to be done.
pub(crate) struct Plan {
    pub(crate) cycles: u32,
    pub(crate) seed: u64,
    pub(crate) pressure: Pressure,
    /// How long a refusal may take.
    pub(crate) within: Duration,
    /// Not with a file system of its own, even where we may mount one.
    pub(crate) by_shim: bool,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// Of the queue's disk to its reserve, of the same to the last byte, and of the destination's.
    pub(crate) cycles: [u32; 3],
    /// By code.
    pub(crate) exhausted: u64,
    pub(crate) unavailable: u64,
    /// The slowest refusal, and the longest time from free to accepting, or to copying, again.
    pub(crate) slowest: Duration,
    pub(crate) recovered: Duration,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [reserve, whole, store] = self.cycles;
        writeln!(
            f,
            "the queue's disk was full to its reserve {reserve} times, to the last byte {whole} times, the destination's {store} times"
        )?;
        writeln!(
            f,
            "{} announcements refused with RESOURCE_EXHAUSTED, {} with UNAVAILABLE, the slowest after {} ms; working again \
             within {} ms at most",
            self.exhausted,
            self.unavailable,
            self.slowest.as_millis(),
            self.recovered.as_millis()
        )?;
        write!(f, "{}", self.tally)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Full {
    QueueReserve,
    QueueWhole,
    Destination,
}

struct World {
    source: Process,
    destination: Process,
    replicator: Process,
    // Last, so that they are unmounted when the programs have ended.
    disks: [Medium; 2],
}

impl World {
    fn start(dir: &Path, reserve: u64, shim: Option<&Path>, by_shim: bool) -> Result<Option<Self>> {
        let url = |path: &Path| format!("disk://{}", path.display());
        // RocksDB takes room for its log in advance, so that a full file system is noticed only after many megabytes of
        // entries. The shim lets the log not grow at all.
        let queue_by_shim = by_shim || reserve == 0;
        let queue = Medium::new(&dir.join("queue-disk"), QUEUE_BYTES, shim, queue_by_shim)?;
        let store = Medium::new(&dir.join("store-disk"), STORE_BYTES, shim, by_shim)?;
        let (Some(queue), Some(store)) = (queue, store) else { return Ok(None) };
        let source = process::store(dir, "source", &url(&dir.join("source-data")))?;
        let destination = process::store_with(dir, "destination", &url(&store.root().join("data")), store.variables())?;
        let settings =
            format!("[retry]\ninitial = \"50ms\"\nmax = \"1s\"\n[queue]\nreserve_bytes = \"{}MiB\"\n", reserve >> 20);
        let urls = [&*source.url(), &*destination.url()];
        let data = queue.root().join("data");
        let replicator = process::replicator_with(dir, "replicator", &data, urls, 16, &settings, queue.variables())?;
        Ok(Some(Self { source, destination, replicator, disks: [queue, store] }))
    }

    fn addresses(&self) -> Result<Addresses> {
        // Fails if one of them has ended, which none has reason to.
        for process in [&self.source, &self.destination, &self.replicator] {
            process.pid()?;
        }
        Ok(Addresses {
            source: self.source.url(),
            destination: self.destination.url(),
            replicator: self.replicator.url(),
        })
    }
}

/// Announces a new blob at a time, and writes down what was acked.
struct Prober {
    source: Receiver,
    replication: Replication,
    record: File,
    next: u64,
    within: Duration,
}

/// How an announcement was answered, and after how long.
type Answer = (Result<(), Code>, Duration);

impl Prober {
    async fn announce(&mut self) -> Result<Answer> {
        self.next += 1;
        let (blob, bytes) = api::blob(self.next, 500);
        api::put(&mut self.source, &blob, bytes, "").await.context("the source, which is never full")?;
        let start = Instant::now();
        let call = api::enqueue(&mut self.replication, vec![api::item(blob.to_string(), None)]);
        let answer = tokio::time::timeout(PATIENCE, call).await.context("an announcement was never answered")?;
        let took = start.elapsed();
        let answer = match answer {
            Ok(true) => {
                writeln!(self.record, "{blob}")?;
                Ok(())
            }
            Ok(false) => bail!("an announcement was answered, and not taken"),
            Err(status) => Err(status.code()),
        };
        Ok((answer, took))
    }

    /// Until it is refused as often as asked for.
    async fn until_refused(&mut self, outcome: &mut Outcome) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut refused = 0;
        while refused < REFUSALS {
            let (answer, took) = self.announce().await?;
            match answer {
                Ok(()) => {}
                Err(Code::ResourceExhausted) => (outcome.exhausted, refused) = (outcome.exhausted + 1, refused + 1),
                Err(Code::Unavailable) => (outcome.unavailable, refused) = (outcome.unavailable + 1, refused + 1),
                Err(other) => bail!("an announcement was refused with {other:?}"),
            }
            if answer.is_err() {
                outcome.slowest = outcome.slowest.max(took);
                ensure!(took <= self.within, "a refusal took {took:?}");
                tokio::time::sleep(PAUSE).await;
            }
            ensure!(Instant::now() < deadline, "a full disk is not noticed");
        }
        Ok(())
    }

    async fn until_accepted(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.announce().await?.0.is_err() {
            ensure!(Instant::now() < deadline, "it does not accept announcements again");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Until the destination is said to be overloaded for want of space; nothing is parked meanwhile, and no breaker opens.
    async fn until_overloaded(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Small ones may find room where large ones do not: there must be something to copy.
            self.announce_on().await?;
            let status = self.replication.status(pb::StatusRequest::default()).await?.into_inner().status;
            let peers = status.context("no status")?.peers;
            let peer = peers.into_iter().find(|peer| peer.name == "b").context("no peer b")?;
            let breaker = peer.breaker.context("no breaker")?;
            ensure!(breaker.openings == 0, "its breaker has opened: {breaker:?}");
            let exhausted = peer.last_fault.as_ref().is_some_and(|fault| fault.message.contains("NO_SPACE"));
            if exhausted && peer.concurrency_limit.is_some() {
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "it should be overloaded: {:?}", peer.last_fault);
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Until blobs are copied again.
    async fn until_copied(&mut self) -> Result<()> {
        let confirmed = |route: &pb::RouteStatus| route.since_start.and_then(|totals| totals.confirmed_blobs);
        let deadline = Instant::now() + PATIENCE;
        let before = confirmed(&self.announce_on().await?);
        while confirmed(&self.announce_on().await?) <= before {
            ensure!(Instant::now() < deadline, "nothing is copied to the destination, which has room again");
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Announces, and gives the route; nothing may be refused or parked for the destination's disk.
    async fn announce_on(&mut self) -> Result<pb::RouteStatus> {
        let announced = self.announce().await?.0;
        announced.map_err(|code| anyhow::anyhow!("refused with {code:?} for the destination's disk"))?;
        let route = api::route(&mut self.replication).await?;
        ensure!(api::queued(&route).parked == 0, "parked for a full destination: {route:?}");
        Ok(route)
    }
}

/// Fills and frees again and again under load. `None` where there is no way to fill a disk.
pub(crate) fn run(plan: &Plan, shim: Option<&Path>, dir: &Path) -> Result<Option<Outcome>> {
    let (mut outcome, mut ran) = (Outcome::default(), false);
    // With a reserve, and without.
    for (part, reserve) in [(1, RESERVE), (2, 0)] {
        let cycles = if part == 1 { plan.cycles.div_ceil(2) } else { plan.cycles / 2 };
        if cycles == 0 {
            continue;
        }
        let dir = dir.join(format!("part-{part}"));
        std::fs::create_dir(&dir)?;
        let Some(world) = World::start(&dir, reserve, shim, plan.by_shim)? else {
            println!("skipped: {cycles} cycles with {reserve} bytes of reserve: neither root nor a C compiler (cc)");
            continue;
        };
        ran = true;
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let done = runtime.block_on(part_of(plan, part, cycles, reserve, &world, &dir, &mut outcome));
        runtime.shutdown_timeout(Duration::from_secs(5));
        done.with_context(|| {
            format!("the replicator said:\n{}\nthe destination:\n{}", world.replicator.said(), world.destination.said())
        })?;
    }
    Ok(ran.then_some(outcome))
}

async fn part_of(
    plan: &Plan,
    part: u64,
    cycles: u32,
    reserve: u64,
    world: &World,
    dir: &Path,
    outcome: &mut Outcome,
) -> Result<()> {
    let at = world.addresses()?;
    let (record, probes) = (dir.join("acked"), dir.join("acked-probes"));
    let load = load::start(&at, plan.pressure, plan.seed, part, &record)?;
    let mut prober = Prober {
        source: Receiver::new(api::channel(&at.source)?),
        replication: Replication::new(api::channel(&at.replicator)?),
        record: File::create(&probes)?,
        next: plan.seed ^ (part << 56),
        within: plan.within,
    };
    prober.until_accepted().await?;
    for cycle in 0..cycles {
        // Where the free bytes cannot be limited no reserve is ever reached.
        let full = match cycle % 3 {
            1 => Full::Destination,
            _ if reserve > 0 && world.disks[0].is_mounted() => Full::QueueReserve,
            _ => Full::QueueWhole,
        };
        let (disk, but) = match full {
            Full::QueueReserve => (&world.disks[0], reserve / 2),
            Full::QueueWhole => (&world.disks[0], 0),
            Full::Destination => (&world.disks[1], 0),
        };
        tokio::time::sleep(Duration::from_millis(300)).await;
        disk.fill(but)?;
        let done = match full {
            Full::Destination => prober.until_overloaded().await,
            _ => prober.until_refused(outcome).await,
        };
        disk.free()?;
        done.with_context(|| format!("{full:?}, full"))?;
        let freed = Instant::now();
        let done = match full {
            Full::Destination => prober.until_copied().await,
            _ => prober.until_accepted().await,
        };
        done.with_context(|| format!("{full:?}, free again"))?;
        outcome.recovered = outcome.recovered.max(freed.elapsed());
        outcome.cycles[full as usize] += 1;
    }
    load.finish().await?;
    for record in [record, probes] {
        outcome.tally.add(check::reckon(&world.addresses()?, &record).await?);
    }
    Ok(())
}
