//! File descriptors: as many as the system allows, divided so that no part of the server takes those of another.
//!
//! Systems start processes with a low soft limit, for programs that use `select`, and let them raise it to the hard one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files of a database: a quarter of all, within these.
const DATABASE: [u64; 2] = [64, 512];

/// Connections to each store, and what its blobs need, about.
const STORE: u64 = 64;

/// For the HTTP port, the log, and what is opened for a moment.
const REST: u64 = 128;

/// So many callers are served whatever the limit is.
const LEAST: u64 = 16;

/// More is of no use, and some systems' hard limit is a number beyond their memory.
const MOST: u64 = 1 << 20;

/// How many files a database may hold open.
pub(crate) fn of_database() -> i32 {
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(MOST);
    i32::try_from(database(limit)).unwrap_or(i32::MAX)
}

fn database(limit: u64) -> u64 {
    let [least, most] = DATABASE;
    (limit / 4).clamp(least, most)
}

/// Raises the soft limit, and says in the log how it is divided. Gives how many connections may be accepted, of those `wanted`,
/// beside connections to so many stores.
pub(crate) fn raise(wanted: usize, stores: usize) -> usize {
    let limit = getrlimit(Resource::Nofile);
    let before = limit.current.unwrap_or(MOST);
    let highest = limit.maximum.unwrap_or(MOST).min(MOST);
    let mut current = before;
    if highest > before {
        match setrlimit(Resource::Nofile, Rlimit { current: Some(highest), maximum: limit.maximum }) {
            Ok(()) => current = highest,
            Err(error) => tracing::warn!(%error, "the limit of open files could not be raised"),
        }
    }
    let connections = share(current, wanted, stores);
    tracing::info!(limit = current, before, connections, database = database(current), "open files");
    if connections < wanted {
        tracing::warn!(
            limit = current,
            connections,
            wanted,
            "the limit of open files allows fewer connections than server.max_connections; raise it (ulimit -Hn, LimitNOFILE=)"
        );
    }
    connections
}

fn share(limit: u64, wanted: usize, stores: usize) -> usize {
    let kept = database(limit) + REST + STORE.saturating_mul(stores as u64);
    let free = limit.saturating_sub(kept).max(LEAST);
    usize::try_from(free).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::{database, share};

    #[test]
    fn connections_get_what_the_rest_does_not_need() {
        assert_eq!(share(1 << 20, 1024, 2), 1024);
        assert_eq!(share(1024, 1024, 2), 1024 - 256 - 128 - 128);
        assert_eq!(share(256, 1024, 2), 16);
        assert_eq!(share(256, 8, 2), 8);
        assert_eq!([1 << 20, 1024, 256, 64].map(database), [512, 256, 64, 64]);
    }
}
