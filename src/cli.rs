//! The commands: arguments, help, exit codes. Each command is a thin client of the gRPC API, or starts an app.
//!
//! What was asked for goes to stdout, all else to stderr. Failures are one line, `blobferry: what (what to do)`, and an
//! [`Exit`] that scripts can tell apart.

mod about;
mod adopt;
mod blobs;
mod config;
mod drop;
mod error;
mod explain;
mod failures;
mod limits;
pub(crate) mod output;
pub(crate) mod progress;
mod put;
mod queue;
mod serve;
mod status;
mod sync;
mod table;
mod wait;
pub(crate) mod walk;

pub use error::{CommandError, Exit};
use error::{no_store, of_replicator, of_store};
pub(crate) use serve::{collector, logging};
pub(crate) use status::{RouteBacklog, route_backlog, sync_line};
pub(crate) use sync::watch as watch_sync;

use crate::client::Address;
use crate::demo;
use clap::{Args, Parser, Subcommand};
use std::path::PathBuf;
use tokio_util::sync::CancellationToken;

/// Keeps one content-addressed blob store an exact, verified, asynchronous copy of another.
#[derive(Debug, Parser)]
#[command(
    name = "blobferry",
    version,
    after_help = "Exit codes:
  0    done
  1    failed, at least in part
  2    arguments or configuration make no sense
  3    the server cannot be reached, or is of another kind
  4    the answer is no: not found, not in sync, not serving, not in time
  5    the full sync completed, or the wait ended, but some blobs were given up
  6    the queue failed, and is mended when the replicator is started again
  130  interrupted before the end; servers that were told to stop end with 0
  141  nobody reads the output any more, as in `blobferry ls | head`

Start here:
  blobferry demo                                   see it work, on real files
  blobferry serve --config blobferry.toml          replicate
  blobferry status --watch                         see how it goes
  blobferry COMMAND --help                         examples of each command"
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a replicator.
    Serve(serve::ServeArgs),
    /// Runs a blob store.
    Store(serve::StoreArgs),
    /// Shows that it works: two stores and a replicator on this machine, fed with real files.
    Demo(demo::DemoArgs),
    /// Tests whether a peer is a good store, one line per rule.
    Conformance(serve::ConformanceArgs),
    /// Shows how a replicator's routes, peers and queue stand.
    Status(status::StatusArgs),
    /// Starts a full sync: finds and copies whatever the destination lacks.
    Sync(sync::SyncArgs),
    /// Lists, retries and discards what failed to be copied.
    #[command(subcommand)]
    Failures(failures::FailuresCommand),
    /// Pauses a route: nothing new is copied, announcements are still queued.
    Pause(limits::PauseArgs),
    /// Ends a pause.
    Resume(limits::ResumeArgs),
    /// Shows or changes what a route may use: workers, bytes and blobs a second.
    Limits(limits::LimitsArgs),
    /// Takes another store for the one that was known under a name.
    Adopt(adopt::AdoptArgs),
    /// Deletes what is queued on a route that left the configuration.
    Drop(drop::DropArgs),
    /// Tells what became of a blob, route by route.
    Explain(explain::ExplainArgs),
    /// Waits until blobs are confirmed by every store that they go to.
    Wait(wait::WaitArgs),
    /// Moves a queue: exports it to a file, or imports it.
    #[command(subcommand)]
    Queue(queue::QueueCommand),
    /// Writes files to a store, and announces them to a replicator.
    Put(put::PutArgs),
    /// Reads a blob from a store, verified.
    Get(blobs::GetArgs),
    /// Lists the blobs of a store, in the order of their refs.
    Ls(blobs::LsArgs),
    /// Tells which of these blobs a store holds, and their sizes.
    Stat(blobs::StatArgs),
    /// Asks a server for its health.
    Health(status::HealthArgs),
    /// Checks or prints a configuration.
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Prints the version, and what this build is made of.
    Version(about::VersionArgs),
    /// Prints a script that completes commands and options in a shell.
    Completions(about::CompletionsArgs),
    /// Writes the manual pages.
    #[command(hide = true)]
    Man(about::ManArgs),
}

/// Which replicator.
#[derive(Clone, Debug, Args)]
struct ReplicatorArg {
    /// The replicator's address.
    #[arg(long, value_name = "URL", env = REPLICATOR_VARIABLE, default_value = REPLICATOR)]
    replicator: String,
    /// Trust the certificate authorities of this PEM file in place of the system's (https only).
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

/// Where a replicator is, unless something else is said.
const REPLICATOR: &str = "http://127.0.0.1:7070";
/// Says something else for a whole environment, such as a container in which the replicator has another port. With one
/// underscore, it is no configuration; and no Service of Kubernetes makes a variable of this name.
const REPLICATOR_VARIABLE: &str = "BLOBFERRY_REPLICATOR";
/// Where a store is, unless something else is said.
const STORE: &str = "http://127.0.0.1:7080";
/// The same for the store.
const STORE_VARIABLE: &str = "BLOBFERRY_STORE";

impl ReplicatorArg {
    /// The option that names it again, with a space before it; nothing where it need not be named.
    fn option(&self) -> String {
        let ca_file = self.ca_file.as_ref().map_or_else(String::new, |file| format!(" --ca-file {}", file.display()));
        if self.replicator == REPLICATOR { ca_file } else { format!(" --replicator {}{ca_file}", self.replicator) }
    }

    fn address(&self) -> Result<Address, CommandError> {
        Ok(Address::new(&self.replicator, self.ca_file.clone())?)
    }
}

/// Which store.
#[derive(Clone, Debug, Args)]
struct StoreArg {
    /// The store's address.
    #[arg(long, value_name = "URL", env = STORE_VARIABLE, default_value = STORE)]
    store: String,
    /// Trust the certificate authorities of this PEM file in place of the system's (https only).
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl StoreArg {
    fn address(&self) -> Result<Address, CommandError> {
        Ok(Address::new(&self.store, self.ca_file.clone())?)
    }
}

/// Says what came of arguments that name no command to run: what is wrong with them, or the help or version that they ask for.
///
/// # Errors
/// Where help or version cannot be printed.
pub fn answer(arguments: &clap::Error) -> Result<Exit, CommandError> {
    if arguments.use_stderr() {
        // Nobody can be told where that fails.
        drop(arguments.print());
        return Ok(Exit::Usage);
    }
    output::help(arguments)?;
    Ok(Exit::Ok)
}

/// Runs a command to its end. `stop` is cancelled by Ctrl-C or SIGTERM.
///
/// # Errors
/// What failed, for people, with the exit code.
pub async fn run(cli: Cli, stop: CancellationToken) -> Result<Exit, CommandError> {
    match cli.command {
        // Servers end well when they are told to stop; the demo tidies up.
        Command::Serve(args) => serve::serve(args, stop).await,
        Command::Store(args) => serve::store(args, stop).await,
        Command::Demo(args) => demo::run(args, stop).await,
        // Watching ends by Ctrl-C, and in no other way: that needs no words.
        Command::Status(args) if args.is_endless() => {
            stop.run_until_cancelled(status::status(args)).await.unwrap_or(Ok(Exit::Interrupted))
        }
        Command::Status(args) => until(stop, status::status(args)).await,
        Command::Conformance(args) => until(stop, serve::conform(args)).await,
        Command::Sync(args) => until(stop, sync::sync(args)).await,
        Command::Failures(command) => until(stop, failures::failures(command)).await,
        Command::Pause(args) => until(stop, limits::pause(args)).await,
        Command::Resume(args) => until(stop, limits::resume(args)).await,
        Command::Limits(args) => until(stop, limits::limits(args)).await,
        Command::Adopt(args) => until(stop, adopt::adopt(args)).await,
        Command::Drop(args) => until(stop, drop::drop_route(args)).await,
        Command::Explain(args) => until(stop, explain::explain(args)).await,
        Command::Wait(args) => until(stop, wait::wait(args)).await,
        // Not cut midway by the first signal: it leaves nothing half done either way.
        Command::Queue(command) => queue::queue(command).await,
        Command::Put(args) => put::put(args, stop).await,
        Command::Get(args) => until(stop, blobs::get(args)).await,
        Command::Ls(args) => until(stop, blobs::ls(args)).await,
        Command::Stat(args) => until(stop, blobs::stat(args)).await,
        Command::Health(args) => until(stop, status::health(args)).await,
        Command::Config(command) => until(stop, config::config(command)).await,
        Command::Version(args) => about::version(&args),
        Command::Completions(args) => about::completions(&args),
        Command::Man(args) => about::man(&args),
    }
}

/// Gives up when told to stop. Commands that ask or write idempotently may be cut at any point.
async fn until(
    stop: CancellationToken,
    command: impl Future<Output = Result<Exit, CommandError>>,
) -> Result<Exit, CommandError> {
    stop.run_until_cancelled(command).await.unwrap_or_else(|| Err(CommandError::interrupted()))
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::{CommandFactory, Parser};
    use std::collections::BTreeMap;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples() {
        fn check(command: &clap::Command) {
            for inner in command.get_subcommands().filter(|inner| inner.get_name() != "help") {
                if inner.has_subcommands() {
                    check(inner);
                    continue;
                }
                let help = inner.get_after_help().map(ToString::to_string).unwrap_or_default();
                assert!(help.contains("Examples:\n  blobferry "), "{} has no examples", inner.get_name());
            }
        }
        check(&Cli::command());
    }

    /// The commands that do something, each by its words.
    fn leaves(command: &clap::Command) -> Vec<(String, clap::Command)> {
        let inner = command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help");
        inner
            .flat_map(|inner| match inner.has_subcommands() {
                false => vec![(inner.get_name().to_owned(), inner.clone())],
                true => {
                    let name = |(name, leaf): (String, clap::Command)| (format!("{} {name}", inner.get_name()), leaf);
                    leaves(inner).into_iter().map(name).collect()
                }
            })
            .collect()
    }

    #[test]
    fn the_documentation_has_every_command_and_only_options_that_exist() {
        let text = include_str!("../docs/commands.md");
        let mut missing: BTreeMap<String, clap::Command> = leaves(&Cli::command()).into_iter().collect();
        assert!(missing.len() > 25, "{:?}", missing.keys());
        for row in text.lines().filter(|line| line.starts_with("| `blobferry ")) {
            let codes: Vec<&str> = row.split('`').skip(1).step_by(2).collect();
            let is_name = |word: &&str| word.chars().all(|c| c.is_ascii_lowercase());
            let words: Vec<&str> = codes[0].split(' ').skip(1).take_while(is_name).collect();
            let command = missing.remove(&words.join(" "));
            let command =
                command.unwrap_or_else(|| panic!("there is no such command, or it stands there twice: {row}"));
            let options = codes
                .iter()
                .flat_map(|code| code.split([' ', '[', ']', '=']))
                .filter_map(|word| word.strip_prefix("--"));
            for option in options {
                assert!(command.get_arguments().any(|known| known.get_long() == Some(option)), "--{option}: {row}");
            }
        }
        assert!(missing.is_empty(), "docs/commands.md lacks {:?}", missing.keys());
    }

    #[test]
    fn what_people_type_is_understood() {
        for line in [
            "serve --config x.toml --set server.listen=127.0.0.1:0 --set log.level=debug",
            "store --listen 127.0.0.1:7080 --data disk:///var/lib/blobs",
            "demo",
            "demo --exit --data /tmp/x a b",
            "conformance --store http://x:1",
            "status --watch --json",
            "status --check --replicator http://x:1",
            "sync primary_to_backup --watch",
            "pause primary_to_backup --for 2h --reason swap --by eve --json",
            "pause --until 2026-01-01T06:00:00Z",
            "resume",
            "limits",
            "limits a --workers 8 --bytes-per-second 50MiB --blobs-per-second none --reset all,workers",
            "adopt backup 8c1f",
            "drop old --count-only",
            "put --store http://x:1 --announce http://y:2 --source-store a --function blake3 --verbose dir file",
            "explain sha256-00 --no-stores --json",
            "get sha256-00 -o file",
            "ls --after sha256-1 --limit 10 --json",
            "stat a b",
            "health --url http://x:1 --service route/a",
            "config check --config x.toml",
            "config print",
            "config check --config x.toml --connect",
            "version --json",
            "completions zsh",
            "man /tmp",
            "sync --list a_to_b --limit 5",
            "sync --cancel sync-4 --json",
            "queue export --data-dir /var/lib/blobferry -",
            "queue import --data-dir /var/lib/blobferry queue.export",
        ] {
            let arguments = std::iter::once("blobferry").chain(line.split(' '));
            assert!(Cli::try_parse_from(arguments).is_ok(), "{line}");
        }
        for line in [
            "put",
            "explain",
            "get",
            "drop",
            "adopt x",
            "pause --for 1h --until 2026-01-01T06:00:00Z",
            "frobnicate",
            "store",
            "serve --set novalue",
            "put --function md5 x",
        ] {
            let error = Cli::try_parse_from(std::iter::once("blobferry").chain(line.split(' '))).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
