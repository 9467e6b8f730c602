//! File descriptors: as many as the system allows, divided so that no part of the server takes those of another.
//!
//! Systems start processes with a low soft limit, for programs that use `select`, and let them raise it to the hard one.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files of a database, at most.
const DATABASE: u64 = 512;

/// Connections to each store, and what its blobs need, about.
const STORE: u64 = 64;

/// For the HTTP port, the log, and what is opened for a moment.
const REST: u64 = 128;

/// So many callers are served whatever the limit is.
const LEAST: u64 = 16;

/// More is of no use, and some systems' hard limit is a number beyond their memory.
const MOST: u64 = 1 << 20;

/// Raises the soft limit, and says in the log how it is divided. Gives how many connections may be accepted, of those `wanted`,
/// beside connections to so many stores.
pub(super) fn raise(wanted: usize, stores: usize) -> usize {
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
    tracing::info!(limit = current, before, connections, database = DATABASE, "open files");
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
    let kept = DATABASE + REST + STORE.saturating_mul(stores as u64);
    let free = limit.saturating_sub(kept).max(LEAST);
    usize::try_from(free).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn connections_get_what_the_rest_does_not_need() {
        assert_eq!(share(1 << 20, 1024, 2), 1024);
        assert_eq!(share(1024, 1024, 2), 1024 - 512 - 128 - 128);
        assert_eq!(share(256, 1024, 2), 16);
        assert_eq!(share(256, 8, 2), 8);
    }
}
