//! The figures: all of them as JSON, their medians and spreads as a table.

use super::machine::{Fsync, Machine};
use anyhow::{Result, ensure};
use serde::Serialize;
use std::path::Path;

/// The most memory that a replicator may take, in MiB, whatever it does.
const MEMORY_TARGET: f64 = 256.0;

/// All that was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    comparisons: Vec<Comparison>,
    expenses: Vec<Expense>,
    facts: Vec<Fact>,
    /// What was not measured, and why.
    skipped: Vec<String>,
}

/// One figure of blobferry, beside its floors, by round.
#[derive(Serialize)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) blobferry: Vec<f64>,
    pub(crate) floors: Vec<Floor>,
}

/// What a figure stands beside.
#[derive(Serialize)]
pub(crate) struct Floor {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
    /// Blobferry by the floor in the same round: median, least, most.
    ratio: Option<[f64; 3]>,
    target: Option<Target>,
}

/// What a figure, or its ratio, should come to.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// What a replicator, or what stands beside it, used up, by round.
#[derive(Serialize)]
pub(crate) struct Expense {
    /// Who, and for which figure.
    pub(crate) name: String,
    pub(crate) cpu_seconds_per_gb: Vec<f64>,
    pub(crate) cpu_seconds_per_1000: Vec<f64>,
    pub(crate) peak_mib: Vec<f64>,
    pub(crate) cpu_per_gb_target: Option<f64>,
    /// Whether its memory has a target.
    pub(crate) replicator: bool,
}

/// A figure without a floor.
#[derive(Serialize)]
pub(crate) struct Fact {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) values: Vec<f64>,
    /// What it should not exceed.
    pub(crate) target: Option<f64>,
}

impl Target {
    pub(crate) fn is_met(self, value: f64) -> bool {
        match self {
            Self::AtLeast(least) => value >= least,
            Self::AtMost(most) => value <= most,
        }
    }

    fn words(self, value: f64) -> String {
        let met = if self.is_met(value) { "met" } else { "MISSED" };
        match self {
            Self::AtLeast(least) => format!("at least {}: {met}", number(least)),
            Self::AtMost(most) => format!("at most {}: {met}", number(most)),
        }
    }
}

impl Comparison {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, floors: &[&str]) -> Self {
        let floor = |name: &&str| Floor { name: (*name).to_owned(), values: Vec::new(), ratio: None, target: None };
        Self { name: name.into(), unit, blobferry: Vec::new(), floors: floors.iter().map(floor).collect() }
    }

    /// What the ratio to this floor should come to.
    pub(crate) fn aim(&mut self, floor: usize, target: Target) {
        self.floors[floor].target = Some(target);
    }
}

impl Floor {
    pub(crate) fn ratios(&self, blobferry: &[f64]) -> Vec<f64> {
        blobferry.iter().zip(&self.values).map(|(ours, floor)| ours / floor).collect()
    }
}

impl Expense {
    pub(crate) fn of(name: impl Into<String>, replicator: bool) -> Self {
        Self {
            name: name.into(),
            cpu_seconds_per_gb: Vec::new(),
            cpu_seconds_per_1000: Vec::new(),
            peak_mib: Vec::new(),
            cpu_per_gb_target: None,
            replicator,
        }
    }

    /// So many blobs of so many bytes in all took so long, and memory came to so many bytes at most. Per GB says nothing
    /// where there are hardly any bytes, and per blob nothing where there are hardly any blobs.
    pub(crate) fn add(&mut self, blobs: usize, bytes: u64, cpu_seconds: f64, peak: u64) {
        if bytes >= 10_000_000 {
            self.cpu_seconds_per_gb.push(cpu_seconds / (bytes as f64 / 1e9));
        }
        if blobs >= 100 {
            self.cpu_seconds_per_1000.push(cpu_seconds / (blobs as f64 / 1e3));
        }
        self.peak_mib.push(peak as f64 / f64::from(1 << 20));
    }
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, comparisons: Vec::new(), expenses: Vec::new(), facts: Vec::new(), skipped: Vec::new() }
    }

    pub(crate) fn compare(&mut self, mut comparison: Comparison) {
        for floor in &mut comparison.floors {
            floor.ratio = summary(&floor.ratios(&comparison.blobferry));
        }
        self.comparisons.push(comparison);
    }

    pub(crate) fn expend(&mut self, expense: Expense) {
        if !expense.peak_mib.is_empty() {
            self.expenses.push(expense);
        }
    }

    pub(crate) fn fact(&mut self, name: impl Into<String>, unit: &'static str, values: Vec<f64>, target: Option<f64>) {
        if !values.is_empty() {
            self.facts.push(Fact { name: name.into(), unit, values, target });
        }
    }

    /// Says aloud, now and in the end, what is not measured.
    pub(crate) fn skip(&mut self, what: String) {
        println!("  skipped: {what}");
        self.skipped.push(what);
    }

    pub(crate) fn finish(&mut self, fsync: Fsync) {
        self.machine.after(fsync);
    }

    /// Whether every figure came out: each has a value beside each of its floors, and each is a number above nothing.
    pub(crate) fn check(&self) -> Result<()> {
        for Comparison { name, blobferry, floors, .. } in &self.comparisons {
            let all = std::iter::once(("blobferry", blobferry));
            for (who, values) in all.chain(floors.iter().map(|floor| (floor.name.as_str(), &floor.values))) {
                let sound = !values.is_empty() && values.iter().all(|value| value.is_finite() && *value > 0.0);
                ensure!(sound, "{name}: {who} came to {values:?}");
            }
        }
        Ok(())
    }

    pub(crate) fn print_machine(&self) {
        if let Some(line) = self.machine.lines().first() {
            println!("{line}");
        }
    }

    /// `note` stands above the table.
    pub(crate) fn print(&self, note: &str) {
        println!();
        for line in self.machine.lines() {
            println!("{line}");
        }
        println!("\n{note}median of the rounds (least to most); a ratio is blobferry by its floor in the same round");
        let header = ["figure", "unit", "blobferry", "floor", "of the floor", "ratio", "target"].map(str::to_owned);
        let mut rows = vec![header];
        for comparison in &self.comparisons {
            for floor in &comparison.floors {
                let ratios = floor.ratios(&comparison.blobferry);
                let target = floor.target.zip(summary(&ratios)).map(|(target, [ratio, ..])| target.words(ratio));
                rows.push([
                    comparison.name.clone(),
                    comparison.unit.to_owned(),
                    spread(&comparison.blobferry),
                    floor.name.clone(),
                    spread(&floor.values),
                    spread(&ratios),
                    target.unwrap_or_default(),
                ]);
            }
        }
        print_table(&rows);
        let header = ["used up", "CPU-s/GB", "", "CPU-s/1,000 blobs", "peak MiB", ""].map(str::to_owned);
        let mut rows = vec![header];
        for expense in &self.expenses {
            let words = |values: &[f64], target: Option<f64>| {
                let words = |(target, [value, ..]): (f64, [f64; 3])| Target::AtMost(target).words(value);
                target.zip(summary(values)).map(words).unwrap_or_default()
            };
            rows.push([
                expense.name.clone(),
                spread(&expense.cpu_seconds_per_gb),
                words(&expense.cpu_seconds_per_gb, expense.cpu_per_gb_target),
                spread(&expense.cpu_seconds_per_1000),
                spread(&expense.peak_mib),
                // The most of all rounds counts, not their median.
                summary(&expense.peak_mib)
                    .filter(|_| expense.replicator)
                    .map_or_else(String::new, |[.., most]| Target::AtMost(MEMORY_TARGET).words(most)),
            ]);
        }
        print_table(&rows);
        let mut rows = vec![["figure", "unit", "blobferry", "target"].map(str::to_owned)];
        for Fact { name, unit, values, target } in &self.facts {
            let target = target.zip(summary(values)).map(|(target, [value, ..])| Target::AtMost(target).words(value));
            rows.push([name.clone(), (*unit).to_owned(), spread(values), target.unwrap_or_default()]);
        }
        print_table(&rows);
        for what in &self.skipped {
            println!("\nskipped: {what}");
        }
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        println!("\nall rounds: {}", path.display());
        Ok(())
    }
}

/// Median, least and most.
pub(crate) fn summary(values: &[f64]) -> Option<[f64; 3]> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (first, last) = (*sorted.first()?, *sorted.last()?);
    Some([f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]), first, last])
}

/// `median (least to most)`.
pub(crate) fn spread(values: &[f64]) -> String {
    match summary(values) {
        None => "-".to_owned(),
        Some([middle, ..]) if values.len() == 1 => number(middle),
        Some([middle, least, most]) => format!("{} ({} to {})", number(middle), number(least), number(most)),
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        0.1.. => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

/// Prints rows under a header; nothing without rows.
fn print_table<const N: usize>(rows: &[[String; N]]) {
    if rows.len() < 2 {
        return;
    }
    println!();
    let widths: Vec<usize> = (0..N).map(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0)).collect();
    for row in rows {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
}
