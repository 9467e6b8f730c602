//! Tasks with names and an owner. Dropping a crew aborts its tasks.

use anyhow::{Error, Result, anyhow};
use futures::FutureExt as _;
use std::collections::HashMap;
use std::future::Future;
use tokio::task::{Id, JoinSet};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

/// A set of named tasks.
pub(super) struct Crew {
    tasks: JoinSet<Result<()>>,
    names: HashMap<Id, String>,
}

impl Crew {
    pub(super) fn new() -> Self {
        Self { tasks: JoinSet::new(), names: HashMap::new() }
    }

    pub(super) fn spawn(&mut self, name: &str, work: impl Future<Output = Result<()>> + Send + 'static) {
        let span = tracing::info_span!("task", task = name);
        // Boxed, so that tokio's machinery of a task is compiled once, and not for each kind of work.
        let id = self.tasks.spawn(work.boxed().instrument(span)).id();
        self.names.insert(id, name.to_owned());
    }

    /// Waits for one that ends before it should. Never returns while there is none. May be dropped at any time.
    pub(super) async fn next(&mut self) -> Option<Error> {
        match self.tasks.join_next_with_id().await {
            None => std::future::pending().await,
            Some(Ok((id, Ok(())))) => Some(anyhow!("the {} ended by itself", self.name(id))),
            Some(Ok((id, Err(error)))) => Some(error.context(format!("the {} failed", self.name(id)))),
            Some(Err(error)) => {
                let name = self.name(error.id());
                Some(Error::new(error).context(format!("the {name} panicked")))
            }
        }
    }

    /// Waits until all have ended, or the deadline has come. Gives whether they have, and the first error.
    pub(super) async fn ended_by(&mut self, deadline: Instant) -> (bool, Option<Error>) {
        let mut first = None;
        loop {
            let Ok(joined) = timeout_at(deadline, self.tasks.join_next_with_id()).await else { return (false, first) };
            let error = match joined {
                None => return (true, first),
                Some(Ok((_, Ok(())))) => continue,
                Some(Ok((id, Err(error)))) => error.context(format!("the {} failed", self.name(id))),
                Some(Err(error)) => {
                    let name = self.name(error.id());
                    Error::new(error).context(format!("the {name} panicked"))
                }
            };
            first.get_or_insert(error);
        }
    }

    /// Ends all of them now.
    pub(super) async fn abort(&mut self) {
        self.tasks.shutdown().await;
    }

    fn name(&self, id: Id) -> String {
        self.names.get(&id).cloned().unwrap_or_else(|| "task".to_owned())
    }
}
