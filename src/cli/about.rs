//! `blobferry version`, `completions` and `man`: the program about itself.

use super::{Cli, CommandError, Exit, output};
use clap::{Args, CommandFactory as _};
use clap_complete::Shell;
use serde_json::json;
use std::path::PathBuf;

/// The commit that it was built from; releases and images say it when they are built.
const COMMIT: Option<&str> = option_env!("BLOBFERRY_COMMIT");

/// Arguments of `version`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry version
  blobferry version --json | jq -r .commit

Exit codes: 0 printed.")]
pub(super) struct VersionArgs {
    /// Print it as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn version(args: &VersionArgs) -> Result<Exit, CommandError> {
    let (version, commit) = (env!("CARGO_PKG_VERSION"), COMMIT.unwrap_or("unknown"));
    let (package, target) = (crate::pb::DOMAIN, std::env::consts::ARCH);
    output::line(&if args.json {
        let functions: Vec<_> = crate::blob::DigestFunction::ALL.iter().map(|function| function.name()).collect();
        let told = json!({
            "version": version,
            "commit": commit,
            "protocol": package,
            "architecture": target,
            "digestFunctions": functions,
            "storeKinds": ["disk", "memory"],
        });
        format!("{told:#}")
    } else {
        format!("blobferry {version} (commit {commit}, protocol {package}, {target})")
    })?;
    Ok(Exit::Ok)
}

/// Arguments of `completions`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry completions bash > /etc/bash_completion.d/blobferry
  blobferry completions zsh > ~/.zfunc/_blobferry
  blobferry completions fish > ~/.config/fish/completions/blobferry.fish

Exit codes: 0 printed.")]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

pub(super) fn completions(args: &CompletionsArgs) -> Result<Exit, CommandError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "blobferry", &mut script);
    output::write(&script)?;
    Ok(Exit::Ok)
}

/// Arguments of `man`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry man /usr/local/share/man/man1

Exit codes: 0 written; 1 they cannot be written.")]
pub(super) struct ManArgs {
    /// The folder that they are written to; it must be there.
    folder: PathBuf,
}

/// Writes a page for the program, and one for each command.
pub(super) fn man(args: &ManArgs) -> Result<Exit, CommandError> {
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(|error| {
        CommandError::new(Exit::Failed, format!("no pages can be written to {}: {error}", args.folder.display()))
            .hint("give a folder that is there")
    })?;
    Ok(Exit::Ok)
}
