//! How far something is: bars on a terminal, else a plain line every ten seconds. Always on stderr, so that stdout stays
//! what was asked for.

use crate::words;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::{IsTerminal, Write as _};
use std::time::{Duration, Instant};

/// Between two plain lines.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// All lines of one command.
#[derive(Clone)]
pub(crate) struct ProgressBoard {
    bars: Option<MultiProgress>,
    quiet: bool,
}

impl ProgressBoard {
    /// Bars if stderr is a terminal, plain lines otherwise.
    pub(crate) fn new() -> Self {
        let bars = std::io::stderr()
            .is_terminal()
            .then(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10)));
        Self { bars, quiet: false }
    }

    /// Shows nothing at all.
    pub(crate) fn quiet() -> Self {
        Self { bars: None, quiet: true }
    }

    /// A line with this label, which has still to be told where it stands.
    pub(crate) fn line(&self, label: &str) -> ProgressLine {
        let bar = self.bars.as_ref().map(|bars| {
            let bar = bars.add(ProgressBar::no_length());
            bar.set_style(style(false));
            bar.set_prefix(label.to_owned());
            bar
        });
        ProgressLine { label: label.to_owned(), bar, quiet: self.quiet, last: Instant::now(), began: Instant::now() }
    }

    /// Says something for good, above the bars.
    pub(crate) fn say(&self, what: &str) {
        if self.quiet {
            return;
        }
        match &self.bars {
            Some(bars) => bars.suspend(|| to_stderr(what)),
            None => to_stderr(what),
        }
    }
}

/// One thing that goes on.
pub(crate) struct ProgressLine {
    label: String,
    bar: Option<ProgressBar>,
    quiet: bool,
    last: Instant,
    began: Instant,
}

impl ProgressLine {
    /// Shows how many are done, of how many if that is known, and a note; without a total, the note goes on behind the
    /// number: `files, 2 MiB`. Cheap: it may be called for each of them.
    pub(crate) fn update(&mut self, done: u64, total: Option<u64>, note: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            if bar.length() != total {
                match total {
                    Some(total) => bar.set_length(total),
                    None => bar.unset_length(),
                }
                bar.set_style(style(total.is_some()));
            }
            bar.set_position(done);
            if self.last.elapsed() >= Duration::from_millis(100) {
                self.last = Instant::now();
                bar.set_message(note());
            }
        } else if !self.quiet && self.last.elapsed() >= PLAIN_EVERY {
            self.last = Instant::now();
            to_stderr(&plain_line(&self.label, done, total, &note()));
        }
    }

    /// The time since the line was made.
    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }

    /// Takes the line away.
    pub(crate) fn clear(self) {}
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn plain_line(label: &str, done: u64, total: Option<u64>, note: &str) -> String {
    let done_text = words::number(done);
    let (amount, joint) = match total {
        Some(total) => (format!("{done_text} of {} ({})", words::number(total), words::percent(done, total)), ", "),
        None => (done_text, " "),
    };
    if note.is_empty() { format!("{label}: {amount}") } else { format!("{label}: {amount}{joint}{note}") }
}

fn style(has_total: bool) -> ProgressStyle {
    let template = if has_total {
        "  {prefix:<22} {bar:28.cyan/dim} {human_pos:>9} of {human_len:<9} {msg}"
    } else {
        "  {prefix:<22} {spinner} {human_pos:>9} {msg}"
    };
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// One line to stderr. Nobody can be told where that fails.
pub(crate) fn to_stderr(line: &str) {
    drop(writeln!(std::io::stderr().lock(), "{line}"));
}

#[cfg(test)]
mod tests {
    use super::{ProgressBoard, plain_line};

    #[test]
    fn plain_lines_say_how_far_it_is() {
        assert_eq!(plain_line("copying", 1500, Some(3000), "2.00 MiB/s"), "copying: 1,500 of 3,000 (50%), 2.00 MiB/s");
        assert_eq!(plain_line("hashing", 7, None, ""), "hashing: 7");
        assert_eq!(plain_line("put", 1, None, "file, 20.0 GiB"), "put: 1 file, 20.0 GiB");
    }

    #[test]
    fn a_quiet_board_takes_everything_and_shows_nothing() {
        let mut line = ProgressBoard::quiet().line("x");
        line.update(1, None, || unreachable!("nobody sees the note"));
        line.clear();
    }
}
