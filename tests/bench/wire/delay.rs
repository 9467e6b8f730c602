//! Blobs over a slow link: the stores behind proxies that delay and cap, beside the same proxies without the delay.

use crate::Settings;
use crate::proxy;
use crate::subject::{Load, Subject};
use crate::support::process::Process;
use crate::support::report::{Comparison, Expense, Report, Target};
use crate::throughput::last;
use anyhow::Result;
use std::path::Path;
use std::time::Duration;

/// The delay, there and back, at which the ratio has a target.
const TARGET_DELAY: Duration = Duration::from_millis(100);

/// Links to both stores.
struct Links {
    delay: Duration,
    source: Process,
    destination: Process,
}

/// Measures at no delay, and at each of these; at 100 ms the ratio should come to so much.
pub(crate) async fn compare(
    settings: &Settings,
    load: &Load,
    ratio: f64,
    dir: &Path,
    report: &mut Report,
) -> Result<()> {
    println!("\n{}, over links of {} MB/s", load.name, settings.bytes_per_second.as_u64() / 1_000_000);
    let mut ours = Subject::start(load, dir).await?;
    let mut links = Vec::new();
    for delay in std::iter::once(Duration::ZERO).chain(settings.delays.iter().copied()) {
        let link = |to| proxy::start(dir, to, delay, settings.bytes_per_second.as_u64());
        links.push(Links { delay, source: link(&ours.source)?, destination: link(&ours.destination)? });
    }
    let names: Vec<String> =
        links.iter().map(|link| format!("{}, {} ms there and back", load.name, link.delay.as_millis())).collect();
    let mut values = vec![Vec::new(); links.len()];
    let mut expenses: Vec<Expense> =
        names.iter().map(|name| Expense::of(format!("replicator, {name}"), true)).collect();
    for round in settings.rounds() {
        let mut order: Vec<usize> = (0..links.len()).collect();
        if round % 2 == 1 {
            order.reverse();
        }
        for at in order {
            let urls = [links[at].source.url(), links[at].destination.url()];
            let done = ours.round_through(load, dir, [&urls[0], &urls[1]]).await?;
            values[at].push(load.rate(done.took));
            expenses[at].add(load.count, load.bytes(), done.usage.cpu_seconds, done.usage.peak);
        }
        let rates = links.iter().zip(&values).map(|(link, rates)| format!(" {:?} {}", link.delay, last(rates)));
        println!("  round {}, {}:{}", round + 1, load.unit(), rates.collect::<Vec<_>>().join(","));
    }
    for (at, link) in links.iter().enumerate().skip(1) {
        let mut comparison = Comparison::new(&names[at], load.unit(), &["the same link, no delay"]);
        comparison.blobferry.clone_from(&values[at]);
        comparison.floors[0].values.clone_from(&values[0]);
        if link.delay == TARGET_DELAY {
            comparison.aim(0, Target::AtLeast(ratio));
        }
        report.compare(comparison);
    }
    expenses.into_iter().for_each(|expense| report.expend(expense));
    drop(links);
    ours.end(dir)
}
