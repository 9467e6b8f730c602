//! The queue, its committer, and the database below it.

use crate::metrics::{CommitMetrics, MetricKind, Text};
use crate::queue::storage::StorageFigures;
use crate::status::{QueueState, QueueStatus};

const STATES: [&str; 4] = ["ok", "full", "failing", "degraded"];

const fn state(state: QueueState) -> &'static str {
    match state {
        QueueState::Ok => STATES[0],
        QueueState::Full => STATES[1],
        QueueState::Failing => STATES[2],
        QueueState::Degraded => STATES[3],
    }
}

pub(super) fn write(text: &mut Text, queue: &QueueStatus, storage: Option<&StorageFigures>, commits: &CommitMetrics) {
    use MetricKind::{Counter, Gauge, Histogram};
    let mut states = text.family("blobferry_queue_state", Gauge, "1 for the state that Status tells of the queue.");
    states.states(&[], "state", STATES, state(queue.state));
    let mut gauge = |name: &'static str, help: &str, value: Option<u64>| {
        let mut family = text.family(name, Gauge, help);
        if let Some(value) = value {
            family.sample(&[], value);
        }
    };
    gauge("blobferry_queue_entries", "Entries of all routes, in all states.", Some(queue.entries));
    let help = "Entries, parked ones aside, from which announcements are refused.";
    gauge("blobferry_queue_max_entries", help, Some(queue.max_entries));
    gauge("blobferry_queue_parked_entries", "Parked entries of all routes.", Some(queue.parked));
    let help = "More parked entries than these raise an alarm; they refuse nothing.";
    gauge("blobferry_queue_max_parked_entries", help, Some(queue.max_parked));
    gauge("blobferry_queue_disk_free_bytes", "Free bytes on the disk of server.data_dir.", queue.free_bytes);
    gauge(
        "blobferry_queue_disk_reserve_bytes",
        "Free bytes below which announcements are refused.",
        Some(queue.reserve_bytes),
    );
    gauge(
        "blobferry_queue_incidents",
        "Losses of a part of the queue that no full sync has made up for yet.",
        Some(queue.incidents.len() as u64),
    );
    gauge(
        "blobferry_queue_damaged",
        "Whether stored bytes were found damaged since the start; a restart mends them.",
        Some(u64::from(!queue.damage.is_empty())),
    );
    gauge(
        "blobferry_queue_rows_set_aside",
        "Rows that could not be read and were set aside since the queue was made.",
        storage.map(|figures| figures.rows_set_aside),
    );

    let help = "From a batch's first request to its last answer.";
    text.family("blobferry_queue_commit_duration_seconds", Histogram, help).histogram(&[], &commits.commit.read());
    let help = "The synced write of a batch.";
    text.family("blobferry_queue_sync_duration_seconds", Histogram, help).histogram(&[], &commits.sync.read());
    let help = "Operations (pushes, settlements, facts) in a batch that was written.";
    text.family("blobferry_queue_batch_operations", Histogram, help).histogram(&[], &commits.operations.read());
    let help = "Batches that could not be written; nothing of them was acked.";
    text.family("blobferry_queue_failed_commits", Counter, help).sample(&[], commits.failures());
    let help = "How often the database was opened again after a failed write.";
    text.family("blobferry_queue_reopenings", Counter, help).sample(&[], commits.reopenings());

    let mut rocks = |name: &'static str, help: &str, value: fn(&StorageFigures) -> u64| {
        let mut family = text.family(name, Gauge, help);
        if let Some(figures) = storage {
            family.sample(&[], value(figures));
        }
    };
    rocks("blobferry_queue_rocksdb_memtable_bytes", "Memory of what was written and is not in tables yet.", |of| {
        of.memtable_bytes
    });
    rocks("blobferry_queue_rocksdb_block_cache_bytes", "Memory of what was read.", |of| of.block_cache_bytes);
    rocks("blobferry_queue_rocksdb_live_data_bytes", "Data in the queue's tables, about.", |of| of.live_data_bytes);
    rocks("blobferry_queue_rocksdb_table_bytes", "Size of the queue's tables on disk.", |of| of.table_bytes);
    rocks(
        "blobferry_queue_rocksdb_pending_compaction_bytes",
        "Data that compactions still have to rewrite, about.",
        |of| of.pending_compaction_bytes,
    );
    rocks("blobferry_queue_rocksdb_level0_files", "Tables that were flushed and not compacted yet.", |of| {
        of.level0_files
    });
    rocks("blobferry_queue_rocksdb_running_compactions", "Compactions in progress.", |of| of.running_compactions);
    rocks("blobferry_queue_rocksdb_running_flushes", "Flushes in progress.", |of| of.running_flushes);
    rocks("blobferry_queue_rocksdb_background_errors", "Errors of flushes and compactions.", |of| of.background_errors);
    rocks("blobferry_queue_rocksdb_write_stopped", "Whether writes wait for flushes or compactions.", |of| {
        of.write_stopped.into()
    });
    rocks(
        "blobferry_queue_rocksdb_delayed_write_bytes_per_second",
        "Bytes a second to which writes are slowed down; 0: they are not.",
        |of| of.delayed_write_rate,
    );
}
