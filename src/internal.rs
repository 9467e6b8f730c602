//! What our own tests and benchmarks need of the inside. No part of the public surface: it changes without notice.

pub mod failpoint {
    pub use crate::failpoint::{ALL, CLOCK_VARIABLE, Point, VARIABLE, arm, shift_clock};
}

pub mod app {
    pub use crate::app::store::StoreApp;
    pub use crate::app::{App, Parts};
}

pub mod clock {
    pub use crate::clock::{Entropy, SystemClock};
}

pub mod config {
    pub use crate::config::Config;
}

pub mod copy {
    pub use crate::copy::{CopyJob, Progress, WaitLimits, copy_blob};
}

pub mod fault {
    pub use crate::fault::Side;
}

pub mod grpc {
    pub use crate::grpc::{PeerEndpoint, ServeSettings, base_routes, serve};
}

pub mod queue {
    pub use crate::queue::damage::{Condition, QueueTrouble};
    pub use crate::queue::drop::{DropEntries, Dropped};
    pub use crate::queue::failures::{FailedEntry, FailureCursor, FailureFilter, FailurePage, Failures, Remedy};
    pub use crate::queue::lookup::{Known, Lookup};
    pub use crate::queue::rocks::{RocksOptions, RocksQueue};
    pub use crate::queue::storage::{Storage, StorageFigures};
    pub use crate::queue::{
        Changes, Claim, ClaimOrder, ClaimRequest, Claimed, Lane, Oldest, Origin, Outcome, Push, Pushed, Queue,
        QueueError, RouteCounts, RouteId, Seq, State, StateWrite, SyncId, SyncTally, WholeQueue,
    };
}

pub mod store {
    pub use crate::store::disk::DiskStore;
    pub use crate::store::faulty::{FaultyStore, Trouble};
    pub use crate::store::memory::MemoryStore;
    pub use crate::store::packed::{MAX_PACKED_BYTES, PACK_BYTES, PACK_ITEMS, Parcel, packs, receive_all};
    pub use crate::store::remote::RemoteStore;
    pub use crate::store::{Disposition, EnumerateEnd, EnumeratePage, Put, Store, StoreInfo};
}

pub mod store_server {
    pub use crate::store_server::{StoreServer, StoreServerSettings};
}

pub mod sync {
    pub use crate::sync::{Merge, Need};
}
