//! Lines to stdout.
//!
//! A reader that went away (`blobferry ls | head`) ends the command without a word, and with the code of what SIGPIPE ends:
//! what was asked for was not told, so it is no success. Anything else that stdout does not take is a failure.

use super::{CommandError, Exit};
use std::io::{self, ErrorKind, Write as _};

/// Writes text to stdout and flushes it.
pub(crate) fn write(bytes: &[u8]) -> Result<(), CommandError> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| failed(&error))
}

/// Writes a line to stdout.
pub(crate) fn line(line: &str) -> Result<(), CommandError> {
    write(format!("{line}\n").as_bytes())
}

/// Help and version, which come from clap as errors.
pub(super) fn help(help: &clap::Error) -> Result<(), CommandError> {
    // Its last line may lack an end, and would wait for one.
    help.print().and_then(|()| io::stdout().flush()).map_err(|error| failed(&error))
}

/// What it means that stdout did not take something.
pub(super) fn failed(error: &io::Error) -> CommandError {
    match error.kind() {
        ErrorKind::BrokenPipe => CommandError::new(Exit::Unread, "nobody reads the output any more"),
        _ => CommandError::new(Exit::Failed, format!("the output cannot be written: {error}")),
    }
}
