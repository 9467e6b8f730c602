//! What is measured, and what it should come to.

use crate::settings::Settings;
use crate::subject::{Load, Unit, there_are};
use crate::support::report::Report;
use crate::throughput::{self, Aims, Kind};
use crate::{announce, delay, enumerate, lag, memory, rclone, received};
use anyhow::Result;
use blobferry::internal::store::MAX_PACKED_BYTES;
use bytesize::ByteSize;
use clap::ValueEnum;
use std::path::Path;

/// Bytes of one size that are copied in a round, about.
const BYTES: u64 = 256 << 20;

/// A group of figures.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Section {
    /// Large blobs, stores in memory, beside the relay.
    Large,
    /// Small blobs, stores in memory, beside the packed relay.
    Small,
    /// Small and large blobs, disk stores, beside the durable writes alone.
    Disk,
    /// Small blobs announced with their bytes, beside a sink.
    Received,
    /// Other sizes, stores in memory, beside the relay.
    Sizes,
    /// Large and small blobs over slow links.
    Delay,
    /// Small blobs beside a very large one.
    Lag,
    /// Durable announcements, beside RocksDB's synced writes.
    Announce,
    /// Full syncs, beside plain enumeration.
    Sync,
    /// The replicator's memory while one large blob passes.
    Memory,
    /// The same blobs by rclone, between two S3 servers.
    Rclone,
}

impl Section {
    pub(crate) const ALL: [Self; 11] = [
        Self::Large,
        Self::Small,
        Self::Disk,
        Self::Received,
        Self::Sizes,
        Self::Delay,
        Self::Lag,
        Self::Announce,
        Self::Sync,
        Self::Memory,
        Self::Rclone,
    ];
}

impl std::fmt::Display for Section {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
    }
}

/// So many blobs of a size, so many at a time.
pub(crate) fn load(size: ByteSize, count: usize, workers: usize, on_disk: bool) -> Result<Load> {
    let bytes = size.as_u64();
    let unit = if bytes <= MAX_PACKED_BYTES { Unit::Blobs } else { Unit::Megabytes };
    let stores = if on_disk { "on disk" } else { "in memory" };
    let name = format!("{count} x {}, {workers} at a time, stores {stores}", size.display().iec());
    Ok(Load { name, size: usize::try_from(bytes)?, count, workers, unit, on_disk })
}

impl Settings {
    fn large(&self, on_disk: bool) -> Result<Load> {
        load(self.large_size, self.scaled(self.large_count), self.large_workers, on_disk)
    }

    fn small(&self, on_disk: bool) -> Result<Load> {
        load(self.small_size, self.scaled(self.small_count), self.small_workers, on_disk)
    }
}

impl Section {
    pub(crate) async fn run(self, settings: &Settings, dir: &Path, report: &mut Report) -> Result<()> {
        if settings.floors_only
            && !matches!(self, Self::Large | Self::Small | Self::Disk | Self::Sizes | Self::Announce)
        {
            return Ok(());
        }
        match self {
            Self::Large => {
                let floors = &[Kind::RelaySha256.aiming(0.9), Kind::Relay.aiming(0.6)];
                let aims = Aims { floors, cpu_per_gb: Some(1.3) };
                throughput::compare(settings, &settings.large(false)?, aims, dir, report).await
            }
            Self::Small => {
                let floors = &[Kind::Relay.aiming(0.5), Kind::RelaySha256.beside()];
                throughput::compare(settings, &settings.small(false)?, Aims { floors, cpu_per_gb: None }, dir, report)
                    .await
            }
            Self::Disk => {
                let floors = &[Kind::Durable.aiming(0.5)];
                throughput::compare(settings, &settings.small(true)?, Aims { floors, cpu_per_gb: None }, dir, report)
                    .await?;
                let floors = &[Kind::Durable.beside()];
                throughput::compare(settings, &settings.large(true)?, Aims { floors, cpu_per_gb: None }, dir, report)
                    .await
            }
            Self::Received => received::compare(settings, dir, report).await,
            Self::Sizes => {
                let floors = &[Kind::Relay.beside(), Kind::RelaySha256.beside()];
                for size in &settings.sizes {
                    let usual = (BYTES / size.as_u64().max(1)).clamp(1, settings.small_count as u64);
                    let count =
                        settings.scaled(usize::try_from(usual)?).min(there_are(usize::try_from(size.as_u64())?));
                    let workers = if size.as_u64() > 1 << 20 { settings.large_workers } else { settings.small_workers };
                    let load = load(*size, count, workers, false)?;
                    throughput::compare(settings, &load, Aims { floors, cpu_per_gb: None }, dir, report).await?;
                }
                Ok(())
            }
            Self::Delay => {
                let mut large = settings.large(false)?;
                // The link takes its time.
                large.count = large.count.div_ceil(2);
                let large = load(settings.large_size, large.count, large.workers, false)?;
                delay::compare(settings, &large, 0.7, dir, report).await?;
                delay::compare(settings, &settings.small(false)?, 0.5, dir, report).await
            }
            Self::Lag => lag::compare(settings, dir, report).await,
            Self::Announce => announce::compare(settings, dir, report).await,
            Self::Sync => enumerate::compare(settings, dir, report).await,
            Self::Memory => memory::watch(settings, dir, report).await,
            Self::Rclone => rclone::compare(settings, dir, report).await,
        }
    }
}
