//! The figures: all of them as JSON, their medians and spreads as a table.

use super::machine::{Fsync, Machine};
use anyhow::Result;
use serde::Serialize;
use std::path::Path;

/// All that was measured.
#[derive(Serialize)]
pub(crate) struct Report {
    machine: Machine,
    comparisons: Vec<Comparison>,
    facts: Vec<Fact>,
}

/// One figure of blobferry, beside its floors, by round.
#[derive(Serialize)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) unit: &'static str,
    pub(crate) blobferry: Vec<f64>,
    pub(crate) floors: Vec<Floor>,
}

#[derive(Serialize)]
pub(crate) struct Floor {
    pub(crate) name: String,
    pub(crate) values: Vec<f64>,
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

impl Comparison {
    pub(crate) fn new(name: impl Into<String>, unit: &'static str, floors: &[&str]) -> Self {
        let floors = floors.iter().map(|name| Floor { name: (*name).to_owned(), values: Vec::new() }).collect();
        Self { name: name.into(), unit, blobferry: Vec::new(), floors }
    }
}

impl Report {
    pub(crate) fn new(machine: Machine) -> Self {
        Self { machine, comparisons: Vec::new(), facts: Vec::new() }
    }

    pub(crate) fn compare(&mut self, comparison: Comparison) {
        self.comparisons.push(comparison);
    }

    pub(crate) fn fact(&mut self, name: impl Into<String>, unit: &'static str, values: Vec<f64>, target: Option<f64>) {
        if !values.is_empty() {
            self.facts.push(Fact { name: name.into(), unit, values, target });
        }
    }

    pub(crate) fn finish(&mut self, fsync: Fsync) {
        self.machine.after(fsync);
    }

    pub(crate) fn print_machine(&self) {
        if let Some(line) = self.machine.lines().first() {
            println!("{line}");
        }
    }

    pub(crate) fn print(&self) {
        println!();
        for line in self.machine.lines() {
            println!("{line}");
        }
        println!("\nmedian of the rounds (least to most); a ratio is blobferry by its floor in the same round");
        let header = ["figure", "unit", "blobferry", "floor", "of the floor", "ratio"].map(str::to_owned);
        let mut rows = vec![header];
        for comparison in &self.comparisons {
            for floor in &comparison.floors {
                let ratios: Vec<f64> = comparison.blobferry.iter().zip(&floor.values).map(|(a, b)| a / b).collect();
                rows.push([
                    comparison.name.clone(),
                    comparison.unit.to_owned(),
                    spread(&comparison.blobferry),
                    floor.name.clone(),
                    spread(&floor.values),
                    spread(&ratios),
                ]);
            }
        }
        print_table(&rows);
        let mut rows = vec![["figure", "unit", "blobferry", "target"].map(str::to_owned)];
        for Fact { name, unit, values, target } in &self.facts {
            let target = target.map_or_else(String::new, |target| format!("at most {}", number(target)));
            rows.push([name.clone(), (*unit).to_owned(), spread(values), target]);
        }
        print_table(&rows);
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_string_pretty(self)? + "\n")?;
        println!("\nall rounds: {}", path.display());
        Ok(())
    }
}

/// `median (least to most)`.
pub(crate) fn spread(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (Some(first), Some(last)) = (sorted.first(), sorted.last()) else { return "-".to_owned() };
    let middle = f64::midpoint(sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
    if sorted.len() == 1 {
        return number(middle);
    }
    format!("{} ({} to {})", number(middle), number(*first), number(*last))
}

fn number(value: f64) -> String {
    match value.abs() {
        1000.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
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
