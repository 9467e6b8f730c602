//! `blobferry queue`: a queue as a file. Offline: the folder must not be in use.

use super::progress::ProgressBoard;
use super::{CommandError, Exit, output};
use crate::clock::{Clock as _, SystemClock};
use crate::queue::rocks::{OpenError, RocksOptions, TransferCounts, TransferError, export, import};
use crate::words;
use clap::{Args, Subcommand};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

/// What to do with a queue.
#[derive(Debug, Subcommand)]
pub(super) enum QueueCommand {
    /// Writes a queue to a file: its entries, routes, history and overrides. The replicator must be stopped.
    #[command(after_help = "Examples:
  blobferry queue export --data-dir /var/lib/blobferry queue.export
  blobferry queue export --data-dir /var/lib/blobferry - | zstd > queue.export.zst

The file must not exist yet; it appears when it is whole.

Exit codes: 0 exported; 1 failed, in use, or damaged.")]
    Export(TransferArgs),
    /// Makes a queue from an exported file, whole or not at all, in a folder that holds none.
    #[command(after_help = "Examples:
  blobferry queue import --data-dir /var/lib/blobferry queue.export
  zstd -d < queue.export.zst | blobferry queue import --data-dir /var/lib/blobferry -

Each route begins a full sync at the next start, unless full_sync.on_start is off. Never let two \
replicators run on copies of one queue.

Exit codes: 0 imported; 1 failed, in use, there is a queue already, or the file is cut or changed.")]
    Import(TransferArgs),
}

/// Where from, and where to.
#[derive(Debug, Args)]
pub(super) struct TransferArgs {
    /// The replicator's data folder, as server.data_dir names it.
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// The exported file; - for stdout or stdin.
    file: PathBuf,
}

pub(super) async fn queue(command: QueueCommand) -> Result<Exit, CommandError> {
    let work = move || match command {
        QueueCommand::Export(args) => export_to(&args),
        QueueCommand::Import(args) => import_from(&args),
    };
    let ended = tokio::task::spawn_blocking(work).await;
    let said = ended.map_err(|error| CommandError::new(Exit::Failed, error.to_string()))??;
    super::progress::to_stderr(&said);
    Ok(Exit::Ok)
}

fn export_to(args: &TransferArgs) -> Result<String, CommandError> {
    let dir = args.data_dir.join("queue");
    let mut line = ProgressBoard::new().line("rows exported");
    let mut progress = |rows| line.update(rows, None, String::new);
    let mut run = |out: &mut dyn Write| {
        let mut out = BufWriter::with_capacity(1 << 20, out);
        export(&dir, &RocksOptions::default(), SystemClock::new().now(), &mut out, &mut progress)
    };
    let done = if is_standard(&args.file) {
        run(&mut io::stdout().lock()).map_err(|error| match error {
            TransferError::File(error) => output::failed(&error),
            other => failed(other),
        })?
    } else {
        let file = &args.file;
        if file.exists() {
            return Err(
                CommandError::new(Exit::Failed, format!("{} exists already", file.display())).hint("name another file")
            );
        }
        let mut draft = file.clone().into_os_string();
        draft.push(".partial");
        let draft = PathBuf::from(draft);
        let written = write_whole(&draft, file, &mut run);
        if written.is_err() && draft.exists() {
            std::fs::remove_file(&draft)?;
        }
        written?
    };
    Ok(format!("exported {}", summary(&done)))
}

fn write_whole(
    draft: &Path,
    file: &Path,
    run: &mut dyn FnMut(&mut dyn Write) -> Result<TransferCounts, TransferError>,
) -> Result<TransferCounts, CommandError> {
    let cannot =
        |error: io::Error| CommandError::new(Exit::Failed, format!("{} cannot be written: {error}", file.display()));
    let mut out = File::create(draft).map_err(cannot)?;
    let done = run(&mut out).map_err(failed)?;
    out.sync_all().and_then(|()| std::fs::rename(draft, file)).map_err(cannot)?;
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|parent| parent.sync_all()).map_err(cannot)?;
    Ok(done)
}

fn import_from(args: &TransferArgs) -> Result<String, CommandError> {
    let dir = args.data_dir.join("queue");
    let mut line = ProgressBoard::new().line("rows imported");
    let mut progress = |rows| line.update(rows, None, String::new);
    let mut input: Box<dyn Read> = if is_standard(&args.file) {
        Box::new(io::stdin().lock())
    } else {
        let cannot =
            |error| CommandError::new(Exit::Failed, format!("{} cannot be read: {error}", args.file.display()));
        Box::new(BufReader::with_capacity(1 << 20, File::open(&args.file).map_err(cannot)?))
    };
    let done = import(&dir, &RocksOptions::default(), &mut input, &mut progress).map_err(failed)?;
    Ok(format!("imported {}", summary(&done)))
}

fn is_standard(file: &Path) -> bool {
    file.as_os_str() == "-"
}

fn summary(done: &TransferCounts) -> String {
    format!(
        "{}, {}, {}",
        words::several(done.routes, "route"),
        match done.entries {
            1 => "1 entry".to_owned(),
            many => format!("{} entries", words::number(many)),
        },
        words::several(done.rows, "row")
    )
}

fn failed(error: TransferError) -> CommandError {
    let todo = match &error {
        TransferError::Open(OpenError::Locked(_)) => Some("stop the replicator first"),
        TransferError::Open(OpenError::Corrupt(_)) => Some("start the replicator once, which mends its queue"),
        TransferError::NotEmpty(_) | TransferError::Missing(_) => Some("check --data-dir"),
        _ => None,
    };
    let failure = CommandError::new(Exit::Failed, error.to_string());
    todo.into_iter().fold(failure, CommandError::hint)
}
