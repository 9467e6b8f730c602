//! What the benchmarks share: how they begin and end, the programs that they start and end, the calls that they make to
//! them, RocksDB's own synced writes, facts about the machine, and the report.

/// The program's own, for the floors too.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

pub(crate) mod api;
pub(crate) mod check;
pub(crate) mod disk;
pub(crate) mod floor;
pub(crate) mod leash;
pub(crate) mod load;
pub(crate) mod machine;
pub(crate) mod medium;
pub(crate) mod process;
pub(crate) mod report;
pub(crate) mod run;
