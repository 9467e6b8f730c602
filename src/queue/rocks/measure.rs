//! What RocksDB tells of itself. <https://github.com/facebook/rocksdb/blob/main/include/rocksdb/db.h> says what each property
//! means. All of them are kept in memory.

use super::handle::RocksQueue;
use super::keys::FAMILIES;
use crate::queue::storage::{Storage, StorageFigures};
use rocksdb::{DB, properties};
use std::ffi::CStr;

impl Storage for RocksQueue {
    fn figures(&self) -> Option<StorageFigures> {
        let db = self.shared.db().ok()?;
        let whole = |property: &CStr| db.property_int_value(property).ok().flatten().unwrap_or(0);
        let sum = |property: &CStr| FAMILIES.iter().map(|family| of_family(&db, family, property)).sum();
        Some(StorageFigures {
            memtable_bytes: sum(properties::CUR_SIZE_ALL_MEM_TABLES),
            // One cache for all families.
            block_cache_bytes: FAMILIES
                .first()
                .map_or(0, |family| of_family(&db, family, properties::BLOCK_CACHE_USAGE)),
            live_data_bytes: sum(properties::ESTIMATE_LIVE_DATA_SIZE),
            table_bytes: sum(properties::TOTAL_SST_FILES_SIZE),
            pending_compaction_bytes: sum(properties::ESTIMATE_PENDING_COMPACTION_BYTES),
            level0_files: sum(c"rocksdb.num-files-at-level0"),
            running_compactions: whole(properties::NUM_RUNNING_COMPACTIONS),
            running_flushes: whole(properties::NUM_RUNNING_FLUSHES),
            background_errors: whole(properties::BACKGROUND_ERRORS),
            write_stopped: whole(properties::IS_WRITE_STOPPED) > 0,
            delayed_write_rate: whole(properties::ACTUAL_DELAYED_WRITE_RATE),
            rows_set_aside: self.set_aside(),
        })
    }
}

fn of_family(db: &DB, family: &str, property: &CStr) -> u64 {
    let Some(family) = db.cf_handle(family) else { return 0 };
    db.property_int_value_cf(&family, property).ok().flatten().unwrap_or(0)
}
