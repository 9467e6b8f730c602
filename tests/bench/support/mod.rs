//! What the benchmarks share: the programs that they start and end, and the calls that they make to them.

pub(crate) mod api;
pub(crate) mod check;
pub(crate) mod disk;
pub(crate) mod load;
pub(crate) mod medium;
pub(crate) mod process;
