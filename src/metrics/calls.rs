//! What is counted of a server's gRPC calls.

use super::{CALL_SECONDS, Histogram};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How many codes gRPC has; they are numbered from 0.
const CODES: usize = 17;

/// UNKNOWN, which stands for numbers that gRPC does not have.
const UNKNOWN: usize = 2;

/// The recorder of a server's calls. All of it is since this process started.
#[derive(Debug)]
pub(crate) struct CallMetrics {
    methods: BTreeMap<&'static str, MethodMetrics>,
    connections: AtomicU64,
    refused: AtomicU64,
}

/// The calls of one method.
#[derive(Debug)]
pub(crate) struct MethodMetrics {
    seconds: Histogram,
    in_flight: AtomicU64,
    ended: [AtomicU64; CODES],
}

impl CallMetrics {
    /// Of a server that tells calls of these methods apart. Others are not counted: whoever makes up names must not make our
    /// memory grow.
    pub(crate) fn new(methods: impl IntoIterator<Item = &'static str>) -> Self {
        let one = |method| {
            let (seconds, in_flight, ended) = (Histogram::new(&CALL_SECONDS), AtomicU64::new(0), Default::default());
            (method, MethodMetrics { seconds, in_flight, ended })
        };
        let (connections, refused) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { methods: methods.into_iter().map(one).collect(), connections, refused }
    }

    /// A connection was accepted.
    pub(crate) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection that was accepted is closed.
    pub(crate) fn disconnected(&self) {
        self.connections.fetch_sub(1, Ordering::Relaxed);
    }

    /// Connections that are open.
    pub(crate) fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// A connection was refused: there were as many as are served at a time.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Connections that were refused.
    pub(crate) fn refusals(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }

    /// A call begins.
    pub(crate) fn began(&self, method: &str) {
        if let Some(calls) = self.methods.get(method) {
            calls.in_flight.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A call that began has ended, with this code's number, after so long.
    pub(crate) fn ended(&self, method: &str, code: i32, took: Duration) {
        let Some(calls) = self.methods.get(method) else { return };
        let index = usize::try_from(code).ok().filter(|index| *index < CODES).unwrap_or(UNKNOWN);
        calls.ended[index].fetch_add(1, Ordering::Relaxed);
        calls.seconds.observe(took);
        calls.in_flight.fetch_sub(1, Ordering::Relaxed);
    }

    /// The methods that were called, by name.
    pub(crate) fn called(&self) -> impl Iterator<Item = (&'static str, &MethodMetrics)> {
        let all = self.methods.iter().map(|(name, calls)| (*name, calls));
        all.filter(|(_, calls)| calls.in_flight() > 0 || calls.ended().next().is_some())
    }
}

impl MethodMetrics {
    /// Calls in progress.
    pub(crate) fn in_flight(&self) -> u64 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// How long whole calls took.
    pub(crate) fn seconds(&self) -> &Histogram {
        &self.seconds
    }

    /// The numbers of the codes with which calls have ended, and how many did.
    pub(crate) fn ended(&self) -> impl Iterator<Item = (i32, u64)> {
        let counts = (0..).zip(&self.ended).map(|(code, count)| (code, count.load(Ordering::Relaxed)));
        counts.filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::CallMetrics;
    use std::time::Duration;

    #[test]
    fn calls_are_counted_by_method_and_code_and_made_up_methods_are_not() {
        let metrics = CallMetrics::new(["p.S/A", "p.S/B", "p.S/C"]);
        assert_eq!(metrics.called().count(), 0);
        for (method, code) in [("p.S/A", 0), ("p.S/A", 0), ("p.S/A", 14), ("p.S/A", 99), ("made up", 12)] {
            metrics.began(method);
            metrics.ended(method, code, Duration::from_millis(3));
        }
        metrics.began("p.S/B");
        let told = metrics.called().map(|(name, calls)| (name, calls.in_flight(), calls.ended().collect::<Vec<_>>()));
        let told: Vec<_> = told.collect();
        assert_eq!(told, [("p.S/A", 0, vec![(0, 2), (2, 1), (14, 1)]), ("p.S/B", 1, vec![])]);
        let (_, calls) = metrics.called().next().unwrap();
        assert_eq!(calls.seconds().read().count(), 4);
    }
}
