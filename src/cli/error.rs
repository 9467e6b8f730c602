//! How commands fail: one line for people, and a number for scripts.

use crate::client::{Address, ClientError};
use crate::store::{PeerKind, Store as _, StoreError, StoreInfo};
use crate::words;
use std::fmt;
use std::process::ExitCode;
use tonic::Code;

/// How a command ended, as the shell sees it. The numbers are a promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// It did what was asked.
    Ok = 0,
    /// It failed, at least in part.
    Failed = 1,
    /// Its arguments or its configuration make no sense.
    Usage = 2,
    /// The server cannot be reached, or is of another kind.
    Unreachable = 3,
    /// It worked, and the answer is no: not found, not in sync, not serving.
    No = 4,
    /// A full sync completed, or a wait ended, but some blobs were parked or discarded instead of confirmed.
    WithFailures = 5,
    /// The queue failed and has to be mended: start it again.
    Restart = 6,
    /// Ctrl-C or SIGTERM came before it was done.
    Interrupted = 130,
    /// Whoever read its output went away before the end; as shells show the end by SIGPIPE.
    Unread = 141,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed, for people, and the exit code for scripts.
#[derive(Debug)]
pub struct CommandError {
    /// The exit code.
    pub exit: Exit,
    pub(super) what: String,
    todo: Option<String>,
}

impl CommandError {
    pub(crate) fn new(exit: Exit, what: impl Into<String>) -> Self {
        Self { exit, what: what.into(), todo: None }
    }

    /// Adds what to do about it.
    pub(crate) fn hint(mut self, todo: impl Into<String>) -> Self {
        self.todo.get_or_insert_with(|| todo.into());
        self
    }

    /// What a store at this address, or the way there, said.
    pub(crate) fn of_store(url: &str, error: StoreError) -> Self {
        if let StoreError::Peer(peer) = &error
            && peer.code == Code::Unavailable
            && peer.reason.is_none()
        {
            let failure =
                Self::new(Exit::Unreachable, format!("{url} cannot be reached: {}", words::cause(&peer.message)));
            // A question at the end is what to look at already.
            return match peer.message.ends_with('?') {
                true => failure,
                false => failure.hint("is a store running there? --store names another"),
            };
        }
        let is_remote = matches!(error, StoreError::Peer(_) | StoreError::Protocol(_));
        let failure = Self::from(error);
        if is_remote { Self { what: format!("{url}: {}", failure.what), ..failure } } else { failure }
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(Exit::Interrupted, "interrupted")
    }
}

/// What a replicator said to a command; where it is none at all, that instead.
pub(super) async fn of_replicator(address: &Address, error: ClientError) -> CommandError {
    if error.code() == Code::Unimplemented
        && let Some(info) = info_of(address).await
        && info.kind != PeerKind::Replicator
    {
        return CommandError::new(Exit::Unreachable, format!("{} is a store: {}", address.url(), info.version))
            .hint("name the replicator's address");
    }
    error.into()
}

/// What a store said to a command; where it is none at all, that instead.
pub(super) async fn of_store(address: &Address, error: StoreError) -> CommandError {
    let is_refused = match &error {
        StoreError::Peer(error) => error.code == Code::Unimplemented,
        StoreError::Unsupported(_) => true,
        _ => false,
    };
    if is_refused
        && let Some(info) = info_of(address).await
        && info.kind == PeerKind::Replicator
    {
        return no_store(address, &info);
    }
    CommandError::of_store(address.url(), error)
}

/// A replicator where a store is needed.
pub(super) fn no_store(address: &Address, info: &StoreInfo) -> CommandError {
    CommandError::new(
        Exit::Unreachable,
        format!("{} is a replicator, which holds no blobs: {}", address.url(), info.version),
    )
    .hint("name the store's address with --store")
}

async fn info_of(address: &Address) -> Option<StoreInfo> {
    address.store().ok()?.info().await.ok()
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A peer's text may be in it.
        let what = lines(&self.what);
        f.write_str(&what)?;
        match &self.todo {
            // Below a list, what to do is about all of it.
            Some(todo) if what.contains('\n') => write!(f, "\n({todo})"),
            Some(todo) => write!(f, " ({todo})"),
            None => Ok(()),
        }
    }
}

/// Foreign text made safe for a terminal, its lines kept.
fn lines(what: &str) -> String {
    what.lines().map(|line| words::plain(line, 2000)).collect::<Vec<_>>().join("\n")
}

impl From<ClientError> for CommandError {
    fn from(error: ClientError) -> Self {
        let (exit, todo) = match &error {
            ClientError::Address { .. } => (Exit::Usage, Some("give it as http://HOST:PORT or https://HOST:PORT")),
            ClientError::Endpoint(_) => (Exit::Usage, Some("check the address, and the file of certificates")),
            ClientError::Unreachable { .. } if error.is_other_protocol() => (Exit::Unreachable, None),
            ClientError::Unreachable { .. } => (Exit::Unreachable, Some("is it running there?")),
            ClientError::Protocol { .. } => (Exit::Failed, None),
            ClientError::Refused { error, .. } => match error.code {
                Code::NotFound => (Exit::No, None),
                Code::Unavailable | Code::DeadlineExceeded => (Exit::Unreachable, Some("try again")),
                Code::Unimplemented => (Exit::Failed, Some("is it a server of that kind?")),
                Code::InvalidArgument => (Exit::Usage, None),
                _ => (Exit::Failed, None),
            },
        };
        let failure = Self::new(exit, words::cause(&error.to_string()));
        todo.into_iter().fold(failure, CommandError::hint)
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> Self {
        let (exit, todo) = match &error {
            StoreError::Missing(_) => (Exit::No, None),
            StoreError::Invalid(_) => (Exit::Usage, None),
            StoreError::Peer(error) if error.code == Code::Unavailable && error.reason.is_none() => {
                (Exit::Unreachable, Some("is a store running at the address given by --store?"))
            }
            StoreError::Peer(error) if error.code == Code::Unimplemented => {
                (Exit::Failed, Some("is there a store at the address given by --store?"))
            }
            _ => (Exit::Failed, None),
        };
        let failure = Self::new(exit, words::cause(&error.to_string()));
        todo.into_iter().fold(failure, CommandError::hint)
    }
}

impl From<std::io::Error> for CommandError {
    fn from(error: std::io::Error) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}

impl From<crate::pb::JsonError> for CommandError {
    fn from(error: crate::pb::JsonError) -> Self {
        Self::new(Exit::Failed, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::{CommandError, Exit};
    use crate::client::Address;

    #[test]
    fn failures_say_what_to_do_and_cannot_steer_the_terminal() {
        let failure = CommandError::new(Exit::Failed, "a\u{1b}b\nc").hint("do this").hint("not that");
        assert_eq!(failure.to_string(), "a b\nc\n(do this)");
        assert_eq!(CommandError::new(Exit::Failed, "a").hint("b").to_string(), "a (b)");
        let failure = CommandError::from(Address::new("x", None).unwrap_err());
        assert_eq!(failure.exit, Exit::Usage);
    }
}
