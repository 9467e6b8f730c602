//! Cycles of load, power cut and restart, and the reckoning.

use crate::support::api::{self, Replication};
use crate::support::check::{self, Tally};
use crate::support::disk::{Cut, Disk, Keeps};
use crate::support::load::{self, Addresses, Pressure};
use crate::support::process::{self, Process};
use anyhow::{Context as _, Result, ensure};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};
use std::path::Path;
use std::time::{Duration, Instant};
use tokio::runtime::Runtime;

/// A test is not to wait for the backoff that a real outage calls for.
const SETTINGS: &str = "[retry]\ninitial = \"50ms\"\nmax = \"1s\"\n";
/// Acks that are in the queue alone, and blobs that the destination confirmed since it started: so many are at stake in two of
/// ten cuts, the first of them, however slow the machine is. All that chance cuts may find nothing that could be lost.
const STAKE: u64 = 300;
/// How long the stake may take to come together.
const STAKE_PATIENCE: Duration = Duration::from_secs(120);
/// How often a line tells how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

/// What is to be done.
pub(crate) struct Plan {
    pub(crate) cycles: u32,
    pub(crate) seed: u64,
    pub(crate) pressure: Pressure,
    /// Cuts between two reckonings.
    pub(crate) check_every: u32,
}

/// What came of it.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) tally: Tally,
    /// Of the replicator, and of the destination.
    pub(crate) cuts: [u32; 2],
    /// What the cuts did to each of the two.
    pub(crate) did: [Cut; 2],
}

struct World {
    source: Process,
    destination: Process,
    replicator: Process,
    /// Those of the replicator and of the destination.
    disks: [Disk; 2],
}

impl World {
    fn start(shim: &Path, dir: &Path, lies: [bool; 2]) -> Result<Self> {
        let url = |path: &Path| format!("disk://{}", path.display());
        let disks = [Disk::new(shim, &dir.join("replicator-disk"))?, Disk::new(shim, &dir.join("destination-disk"))?];
        let source = process::store(dir, "source", &url(&dir.join("source-data")))?;
        let data = disks[1].root().join("data");
        let destination = process::store_with(dir, "destination", &url(&data), disks[1].variables(lies[1]))?;
        let data = disks[0].root().join("data");
        let urls = [&*source.url(), &*destination.url()];
        let variables = disks[0].variables(lies[0]);
        let replicator = process::replicator_with(dir, "replicator", &data, urls, 16, SETTINGS, variables)?;
        Ok(Self { source, destination, replicator, disks })
    }

    fn addresses(&self) -> Addresses {
        Addresses { source: self.source.url(), destination: self.destination.url(), replicator: self.replicator.url() }
    }

    /// Blobs that the destination has confirmed, as the replicator counts them.
    async fn confirmed(&self) -> Result<u64> {
        let mut replication = Replication::new(api::channel(&self.replicator.url())?);
        let totals = api::route(&mut replication).await?.all_time.unwrap_or_default();
        Ok(totals.confirmed_blobs.unwrap_or_default())
    }

    fn wait_for_stake(&self, what: &str, is_enough: impl Fn() -> Result<bool>) -> Result<()> {
        let deadline = Instant::now() + STAKE_PATIENCE;
        while !is_enough()? {
            ensure!(Instant::now() < deadline, "{STAKE} {what} did not come together: {}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Cuts the power of these, and starts them again.
    fn cut(&mut self, which: [bool; 2], random: &mut SmallRng, keeps: Keeps) -> Result<[Cut; 2]> {
        let mut did = [Cut::default(); 2];
        let mut processes = [&mut self.replicator, &mut self.destination];
        for (process, _) in processes.iter_mut().zip(which).filter(|(_, cut)| *cut) {
            process.kill()?;
        }
        for (number, process) in processes.into_iter().enumerate().filter(|(number, _)| which[*number]) {
            did[number] = self.disks[number].cut(random, keeps)?;
            process.again().with_context(|| format!("it does not start after the cut: {:?}", did[number]))?;
        }
        Ok(did)
    }

    fn said(&self) -> String {
        format!(
            "the replicator's log ends with:\n{}\nthe destination's:\n{}",
            self.replicator.said(),
            self.destination.said()
        )
    }
}

fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// Cuts the power again and again under load; what is lost stands in the tally. `stop` says when to end early.
pub(crate) fn run(plan: &Plan, shim: &Path, dir: &Path, stop: impl Fn() -> bool) -> Result<Outcome> {
    let runtime = runtime()?;
    let mut world = World::start(shim, dir, [false; 2])?;
    let mut random = SmallRng::seed_from_u64(plan.seed);
    let mut outcome = Outcome::default();
    let (mut cycle, mut part) = (0, 0);
    let (start, mut told) = (Instant::now(), Instant::now());
    while cycle < plan.cycles && !stop() {
        part += 1;
        let record = dir.join(format!("acked-{part}"));
        let load =
            runtime.block_on(async { load::start(&world.addresses(), plan.pressure, plan.seed, part, &record) })?;
        for _ in 0..plan.check_every.min(plan.cycles - cycle) {
            if stop() {
                break;
            }
            let which = match cycle % 10 {
                0 => {
                    // Nothing is copied from here on.
                    world.destination.kill()?;
                    let enough = load.acks() + STAKE;
                    world.wait_for_stake("acks", || Ok(load.acks() >= enough))?;
                    [true, true]
                }
                1 => {
                    let confirmed = || runtime.block_on(world.confirmed());
                    let enough = confirmed()? + STAKE;
                    world.wait_for_stake("confirmed blobs", || Ok(confirmed()? >= enough))?;
                    [false, true]
                }
                _ => {
                    // From the first milliseconds after the start to the full swing, each order of magnitude alike.
                    std::thread::sleep(Duration::from_secs_f64(10_f64.powf(random.random_range(-2.0..0.2))));
                    [[true, false], [false, true], [true, true]][random.random_range(0..3)]
                }
            };
            let did = world.cut(which, &mut random, Keeps::Chance).with_context(|| world.said())?;
            cycle += 1;
            for number in 0..2 {
                outcome.cuts[number] += u32::from(which[number]);
                outcome.did[number].add(did[number]);
            }
            if told.elapsed() > PROGRESS {
                told = Instant::now();
                let (acks, lost) = (outcome.tally.acks + load.acks(), outcome.tally.lost);
                println!(
                    "{:>4} s: {cycle} of {} cuts, {acks} acks, {lost} lost",
                    start.elapsed().as_secs(),
                    plan.cycles
                );
            }
        }
        runtime.block_on(load.finish())?;
        let found = runtime.block_on(check::reckon(&world.addresses(), &record));
        outcome.tally.add(found.with_context(|| world.said())?);
    }
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(outcome)
}

/// The negative control: one disk says that it synced, and did not. What was lost then; none would mean that this runner
/// cannot find a loss. `of_queue` is whose disk lies: the replicator's, or the destination's.
pub(crate) fn control(seed: u64, of_queue: bool, shim: &Path, dir: &Path) -> Result<u64> {
    let runtime = runtime()?;
    let lies = [of_queue, !of_queue];
    let mut world = World::start(shim, dir, lies)?;
    // What was there before stays, so that it starts again.
    let mut random = SmallRng::seed_from_u64(seed);
    for process in [&mut world.replicator, &mut world.destination] {
        process.kill()?;
    }
    for disk in &world.disks {
        std::fs::remove_file(disk.journal())?;
    }
    world.destination.again()?;
    world.replicator.again()?;
    if of_queue {
        // Nothing is copied, all that is acked is in the queue.
        world.destination.kill()?;
    }
    let record = dir.join("acked");
    let pressure = Pressure { producers: 4, rate: 400 };
    let load = runtime.block_on(async { load::start(&world.addresses(), pressure, seed, 1, &record) })?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while load.acks() < 200 {
        ensure!(Instant::now() < deadline, "nothing is acked: {}", world.said());
        std::thread::sleep(Duration::from_millis(20));
    }
    runtime.block_on(load.finish())?;
    if of_queue {
        world.destination.again()?;
    } else {
        // Let it arrive first.
        runtime.block_on(check::reckon(&world.addresses(), &record))?;
    }
    world.cut(lies, &mut random, Keeps::Nothing).with_context(|| world.said())?;
    let found = runtime.block_on(check::reckon(&world.addresses(), &record))?;
    runtime.shutdown_timeout(Duration::from_secs(5));
    Ok(found.lost)
}
