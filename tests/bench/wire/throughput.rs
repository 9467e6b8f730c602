//! Blobs from `EnqueueBlobs` to confirmed, beside the relay, and beside the durable writes alone.

use crate::Settings;
use crate::durable::Durable;
use crate::relay::Relay;
use crate::subject::{Load, Subject};
use crate::support::machine;
use crate::support::report::{Comparison, Expense, Report, Target, spread};
use anyhow::Result;
use blobferry::internal::store::MAX_PACKED_BYTES;
use std::path::Path;

/// What a figure stands beside, and the ratio that it should come to.
#[derive(Clone, Copy)]
pub(crate) struct Beside {
    pub(crate) what: Kind,
    pub(crate) ratio: Option<f64>,
}

/// A kind of floor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Relay,
    RelaySha256,
    Durable,
}

impl Kind {
    fn name(self, packed: bool) -> &'static str {
        match (self, packed) {
            (Self::Relay, false) => "relay",
            (Self::Relay, true) => "packed relay",
            (Self::RelaySha256, false) => "relay with SHA-256",
            (Self::RelaySha256, true) => "packed relay with SHA-256",
            (Self::Durable, _) => "the durable writes alone",
        }
    }

    pub(crate) const fn aiming(self, ratio: f64) -> Beside {
        Beside { what: self, ratio: Some(ratio) }
    }

    pub(crate) const fn beside(self) -> Beside {
        Beside { what: self, ratio: None }
    }
}

/// A floor that stands ready.
enum Floor {
    Relay(Box<Relay>),
    Durable(Durable),
}

impl Floor {
    fn start(kind: Kind, load: &Load, dir: &Path) -> Result<Self> {
        let packed = is_packed(load);
        // A few packed streams fill the wire; more only take memory.
        let streams = if packed { 4 } else { load.workers };
        let relay = |sha256| {
            let relay = Relay::start(dir, load.size, streams, packed, sha256)?;
            Ok(Self::Relay(Box::new(relay)))
        };
        match kind {
            Kind::Relay => relay(false),
            Kind::RelaySha256 => relay(true),
            Kind::Durable => Ok(Self::Durable(Durable::new(dir, load.size, load.workers))),
        }
    }

    /// The rate, and what it used up where that is a process of its own.
    fn run(&mut self, load: &Load, expense: &mut Expense) -> Result<f64> {
        match self {
            Self::Relay(relay) => {
                let before = machine::usage(relay.pid()?)?;
                let took = relay.ferry(load.count)?;
                let after = machine::usage(relay.pid()?)?;
                expense.add(load.count, load.bytes(), after.cpu_seconds - before.cpu_seconds, after.peak);
                Ok(load.rate(took))
            }
            Self::Durable(durable) => Ok(load.rate(durable.write(load.count)?)),
        }
    }
}

/// Whether the blobs travel packed.
fn is_packed(load: &Load) -> bool {
    load.size as u64 <= MAX_PACKED_BYTES
}

/// What the replicator's CPU time per GB should come to, where that is asked.
pub(crate) struct Aims<'a> {
    pub(crate) floors: &'a [Beside],
    pub(crate) cpu_per_gb: Option<f64>,
}

pub(crate) async fn compare(
    settings: &Settings,
    load: &Load,
    aims: Aims<'_>,
    dir: &Path,
    report: &mut Report,
) -> Result<()> {
    println!("\n{}", load.name);
    let (unit, packed) = (load.unit(), is_packed(load));
    let names: Vec<&str> = aims.floors.iter().map(|beside| beside.what.name(packed)).collect();
    let mut floors = Vec::new();
    for beside in aims.floors {
        floors.push(Floor::start(beside.what, load, dir)?);
    }
    let mut ours = if settings.floors_only { None } else { Some(Subject::start(load, dir).await?) };
    let mut comparison = Comparison::new(&load.name, unit, &names);
    for (index, beside) in aims.floors.iter().enumerate() {
        if let Some(ratio) = beside.ratio {
            comparison.aim(index, Target::AtLeast(ratio));
        }
    }
    let mut expense = Expense::of(format!("replicator, {}", load.name), true);
    expense.cpu_per_gb_target = aims.cpu_per_gb;
    let mut theirs: Vec<Expense> =
        names.iter().map(|name| Expense::of(format!("pipe of the {name}, {}", load.name), false)).collect();
    for round in settings.rounds() {
        let mut order: Vec<usize> = (0..=floors.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for who in order {
            if who > 0 {
                comparison.floors[who - 1].values.push(floors[who - 1].run(load, &mut theirs[who - 1])?);
            } else if let Some(ours) = &mut ours {
                let round = ours.round(load, dir).await?;
                comparison.blobferry.push(load.rate(round.took));
                expense.add(load.count, load.bytes(), round.usage.cpu_seconds, round.usage.peak);
            }
        }
        let floors = comparison.floors.iter().map(|floor| format!(", {} {}", floor.name, last(&floor.values)));
        println!(
            "  round {}: blobferry {} {unit}{}",
            round + 1,
            last(&comparison.blobferry),
            floors.collect::<String>()
        );
    }
    if let Some(ours) = ours {
        ours.end(dir)?;
    }
    report.compare(comparison);
    report.expend(expense);
    theirs.into_iter().for_each(|expense| report.expend(expense));
    Ok(())
}

/// The last round's value.
pub(crate) fn last(values: &[f64]) -> String {
    spread(values.last().map_or(&[], std::slice::from_ref))
}
