//! What looks after a running replicator: the queue's end, figures that are sampled, and health.

use crate::announce::Announcer;
use crate::queue::damage::QueueTrouble;
use crate::queue::{StateWrite, WholeQueue};
use crate::service::SERVICE_NAMES;
use crate::status::Observer;
use anyhow::{Result, bail};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

/// How often figures are sampled, and health is looked at.
const TICK: Duration = Duration::from_secs(1);

/// The key that is deleted, and never there, to find out whether the queue can write again.
const WRITE_PROBE: &str = "replicator/write_probe";

/// The queue cannot be opened again while the process runs; the next start can mend it.
#[derive(Debug, thiserror::Error)]
#[error("the queue cannot go on, and is mended by the next start: {0}")]
pub(crate) struct QueueEnded(String);

/// Ends with an error when the queue can write no more: a process that can neither ack nor settle is of no use, and
/// whoever supervises it starts another, which opens the queue anew.
pub(super) async fn watch_queue(ended: CancellationToken, stop: CancellationToken) -> Result<()> {
    match stop.run_until_cancelled(ended.cancelled()).await {
        Some(()) => bail!("its writer has ended; start again, nothing that was acked is lost"),
        None => Ok(()),
    }
}
/// Samples figures and keeps health up to date; the only one who sets it.
pub(super) struct Watch {
    pub(super) observer: Arc<Observer>,
    pub(super) announcer: Arc<Announcer>,
    pub(super) queue: Arc<dyn WholeQueue>,
    pub(super) disk: Option<PathBuf>,
    pub(super) health: HealthReporter,
    // What health says. A service that is told what it said already wakes whoever watches it.
    pub(super) told: Mutex<BTreeMap<String, bool>>,
}

impl Watch {
    /// Ends with the drain.
    pub(super) async fn run(self, draining: CancellationToken) -> Result<()> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while draining.run_until_cancelled(tick.tick()).await.is_some() {
            draining.run_until_cancelled(self.look()).await;
            if let Some(QueueTrouble::Ended(why)) = self.queue.trouble() {
                return Err(QueueEnded(why).into());
            }
        }
        self.tell_services(false).await;
        for (route, _) in self.observer.working() {
            self.tell(&route_service(&route), false).await;
        }
        Ok(())
    }

    pub(super) async fn look(&self) {
        if let Some(disk) = &self.disk
            && let Some(free) = free_bytes(disk).await
        {
            self.observer.set_free_bytes(free);
        }
        // While health says that announcements are refused nobody may send any: somebody else has to find out.
        if self.announcer.trouble().is_some() {
            let probe = StateWrite { key: WRITE_PROBE.to_owned(), value: None };
            if self.queue.write(vec![probe]).await.is_ok() {
                self.announcer.recovered();
            }
        }
        self.observer.sample();
        self.tell_services(self.observer.can_ack()).await;
        for (route, works) in self.observer.working() {
            self.tell(&route_service(&route), works).await;
        }
    }

    async fn tell_services(&self, serve: bool) {
        for name in SERVICE_NAMES {
            self.tell(name, serve).await;
        }
    }

    async fn tell(&self, name: &str, serve: bool) {
        let told = || self.told.lock();
        if told().get(name) == Some(&serve) {
            return;
        }
        let status = if serve { ServingStatus::Serving } else { ServingStatus::NotServing };
        self.health.set_service_status(name, status).await;
        // Not before: this may be cancelled while it waits.
        told().insert(name.to_owned(), serve);
    }
}

/// The name by which the health of a route is asked for.
fn route_service(route: &str) -> String {
    format!("route/{route}")
}

async fn free_bytes(folder: &Path) -> Option<u64> {
    let folder = folder.to_owned();
    let stat = tokio::task::spawn_blocking(move || rustix::fs::statvfs(&folder)).await.ok()?.ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}
