//! `blobferry config`, and where the configuration of `serve` comes from.

use super::progress::to_stderr;
use super::{CommandError, Exit, output};
use crate::client::Address;
use crate::config::{Config, StoreConfig};
use crate::peer::Needs;
use crate::store::{Store as _, StoreError};
use crate::words;
use clap::{Args, Subcommand};
use std::path::{Path, PathBuf};

/// A configuration: a file, under the environment, under `--set`.
#[derive(Debug, Args)]
pub(super) struct ConfigArg {
    /// The configuration file (TOML). Without it: defaults, environment and --set alone.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Set one key over file and environment; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = key_value)]
    overrides: Vec<(String, String)>,
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write it as key=value, such as log.level=debug".to_owned()),
    }
}

impl ConfigArg {
    pub(super) fn load(&self) -> Result<Config, CommandError> {
        let file = match &self.config {
            None => None,
            Some(path) => Some((path.display().to_string(), read(path)?)),
        };
        let file = file.as_ref().map(|(name, text)| (name.as_str(), text.as_str()));
        Config::load(file, variables(), &self.overrides).map_err(|error| {
            let count = words::several(error.problems.len() as u64, "problem");
            // Each problem says where it stands: in the file, in a variable, or in a --set.
            CommandError::new(Exit::Usage, format!("the configuration has {count}\n{error}\n"))
                .hint("mend what is named, then run blobferry config check")
        })
    }
}

/// Fails where there is nothing to do at all, which nobody means.
pub(super) fn check_routes(config: &Config, arg: &ConfigArg) -> Result<(), CommandError> {
    if !config.routes.is_empty() {
        return Ok(());
    }
    let todo = match &arg.config {
        None => "name a file with --config, or set BLOBFERRY__ROUTES__NAME__FROM and __TO".to_owned(),
        Some(path) => format!("give {} a [routes.NAME] with from and to", path.display()),
    };
    Err(CommandError::new(Exit::Usage, "no route is configured").hint(todo))
}

fn read(path: &Path) -> Result<String, CommandError> {
    std::fs::read_to_string(path).map_err(|error| {
        CommandError::new(Exit::Usage, format!("{} cannot be read: {error}", path.display())).hint("check --config")
    })
}

/// All variables of the environment. One that is no text cannot be one of ours.
fn variables() -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
}

/// Variables that were meant as settings and are none, each with what to do about it.
pub(super) fn misspelt() -> Vec<String> {
    let names: Vec<String> = variables().map(|(name, _)| name).collect();
    let found = Config::misspelt(names.iter().map(String::as_str));
    found.into_iter().map(|(name, meant)| format!("{name} sets nothing; write {meant}")).collect()
}

/// The commands about configuration.
#[derive(Debug, Subcommand)]
pub(super) enum ConfigCommand {
    /// Reports every problem of a configuration at once.
    Check(CheckArgs),
    /// Prints the configuration that is in force: file, environment and --set over the defaults.
    #[command(after_help = "Examples:
  blobferry config print --config blobferry.toml
  blobferry config print > all-defaults.toml

Exit codes: 0 printed; 2 it has problems, one per line on stderr.")]
    Print(ConfigArg),
}

/// Arguments of `config check`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry config check --config blobferry.toml
  blobferry config check --config blobferry.toml --connect

Exit codes: 0 it is fine; 2 it has problems, one per line on stderr, or no route; with --connect: 3 a store does not \
answer; 4 one is not what its routes need.")]
pub(super) struct CheckArgs {
    #[command(flatten)]
    config: ConfigArg,
    /// Ask each store what it is, and say what does not fit.
    #[arg(long)]
    connect: bool,
}

pub(super) async fn config(command: ConfigCommand) -> Result<Exit, CommandError> {
    let exit = match command {
        ConfigCommand::Check(args) => {
            let config = args.config.load()?;
            check_routes(&config, &args.config)?;
            let (stores, routes) = (config.stores.len() as u64, config.routes.len() as u64);
            let (stores, routes) = (words::several(stores, "store"), words::several(routes, "route"));
            output::line(&format!("the configuration is fine: {stores}, {routes}"))?;
            if args.connect { connect(&config).await? } else { Exit::Ok }
        }
        ConfigCommand::Print(arg) => {
            output::write(arg.load()?.to_toml().as_bytes())?;
            Exit::Ok
        }
    };
    misspelt().iter().for_each(|warning| to_stderr(&format!("blobferry: {warning}")));
    Ok(exit)
}

/// Asks every store that a route names what it is, one line each.
async fn connect(config: &Config) -> Result<Exit, CommandError> {
    let mut exit = Exit::Ok;
    for (name, needs) in Needs::by_store(config) {
        let Some(store) = config.stores.get(name) else { continue };
        let told = match ask(store).await {
            Ok(info) => match needs.complaint(&info) {
                None => {
                    let id = info.store_id.as_deref().unwrap_or("no store id");
                    format!("{}, {}, {id}", info.kind.as_str(), words::plain(&info.version, 80))
                }
                Some(complaint) => {
                    exit = Exit::No;
                    complaint
                }
            },
            Err(error) => {
                exit = if exit == Exit::No { Exit::No } else { Exit::Unreachable };
                error.to_string()
            }
        };
        output::line(&format!("{name}: {told}"))?;
    }
    Ok(exit)
}

async fn ask(store: &StoreConfig) -> Result<crate::store::StoreInfo, CommandError> {
    let url = store.endpoint.to_string();
    let address = Address::new(&url, store.ca_file.clone())?;
    address.store()?.info().await.map_err(|error: StoreError| CommandError::of_store(address.url(), error))
}

#[cfg(test)]
mod tests {
    use super::{ConfigArg, check_routes, key_value};
    use crate::cli::Exit;

    #[test]
    fn settings_are_split_at_the_first_equals_sign() {
        assert_eq!(key_value("a.b=c=d"), Ok(("a.b".to_owned(), "c=d".to_owned())));
        assert_eq!(key_value("a="), Ok(("a".to_owned(), String::new())));
        assert!(key_value("a").is_err() && key_value("=b").is_err());
    }

    #[test]
    fn every_problem_is_told_and_the_exit_code_is_that_of_a_usage_error() {
        let set = |key: &str| (key.to_owned(), "x".to_owned());
        let arg = ConfigArg { config: None, overrides: vec![set("no.such"), set("server.listen")] };
        let failure = arg.load().unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        let said = failure.to_string();
        assert!(said.contains("server.listen") && said.contains("no"), "{said}");
        let missing = ConfigArg { config: Some("/no/such/file".into()), overrides: Vec::new() };
        assert_eq!(missing.load().unwrap_err().exit, Exit::Usage);
    }

    #[test]
    fn a_configuration_without_a_route_is_refused() {
        let set = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let mut arg = ConfigArg { config: None, overrides: Vec::new() };
        let failure = check_routes(&arg.load().unwrap(), &arg).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.to_string().starts_with("no route is configured (name a file with --config, "), "{failure}");
        arg.overrides = vec![
            set("stores.a.endpoint", "http://a:1"),
            set("stores.b.endpoint", "http://b:1"),
            set("routes.r.from", "a"),
            set("routes.r.to", "b"),
        ];
        assert!(check_routes(&arg.load().unwrap(), &arg).is_ok());
    }
}
