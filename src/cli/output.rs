//! Lines to stdout. A reader that went away (`blobferry ls | head`) ends the command quietly.

use super::{CommandError, Exit};
use std::io::{ErrorKind, Write as _};

/// Writes text to stdout and flushes it.
pub(super) fn write(bytes: &[u8]) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(|error| match error.kind() {
        ErrorKind::BrokenPipe => CommandError::new(Exit::Ok, "nobody reads the output any more"),
        _ => CommandError::new(Exit::Failed, format!("the output cannot be written: {error}")),
    })
}

/// Writes a line to stdout.
pub(super) fn line(line: &str) -> Result<(), CommandError> {
    write(format!("{line}\n").as_bytes())
}
