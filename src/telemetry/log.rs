//! Lines of the log.
//!
//! Every event is one line: what a peer sent can neither begin another nor steer a terminal. A line within a recorded span
//! carries `trace_id` and `span_id`. A place in the code that logs in a storm is let through at a [`PACE`], and the next of its
//! lines says how many were suppressed; details that were asked for (`debug`, `trace`) are not held back.

use super::sink::{self, LogGuard};
use super::span::current_ids;
use super::storm::{EventPace, Storm};
use crate::clock::Clock;
use crate::config::{LogConfig, LogFormat};
use crate::words::is_unsafe;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::io::{self, IsTerminal as _};
use std::sync::Arc;
use std::time::Duration;
use tracing::callsite::Identifier;
use tracing::subscriber::SetGlobalDefaultError;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{self, FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// How many lines of one place in the code pass.
const PACE: EventPace = EventPace { burst: 50, every: Duration::from_millis(500) };

/// Why there can be no logs.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    /// The thread that writes them cannot be started.
    #[error("the log cannot be started: {0}")]
    Thread(#[from] io::Error),
    /// It was done before.
    #[error("{0}")]
    Twice(#[from] SetGlobalDefaultError),
}

/// Sends the process's logs to standard error, panics too, until the process ends; what is held to the end gives the last lines
/// their time. Called once, by whoever owns the process.
///
/// # Errors
/// [`LogError`].
pub(crate) fn install(config: &LogConfig, clock: Arc<dyn Clock>) -> Result<LogGuard, LogError> {
    let human = match config.format {
        LogFormat::Auto => io::stderr().is_terminal(),
        LogFormat::Human => true,
        LogFormat::Json => false,
    };
    let (sink, guard) = sink::start(io::stderr())?;
    tracing::subscriber::set_global_default(subscriber(config, human, clock, sink))?;
    // The standard library's hook writes to standard error itself, and waits for it.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%panic, %backtrace, "a panic");
    }));
    Ok(guard)
}

/// A subscriber that writes what the configuration asks for, for people or as JSON.
pub(crate) fn subscriber<W>(
    config: &LogConfig,
    human: bool,
    clock: Arc<dyn Clock>,
    writer: W,
) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    // What goes wrong with a line is not said on standard error: that is where it goes wrong.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter(config)).log_internal_errors(false).with_writer(writer);
    let storms = Mutex::default();
    if human {
        let look = if io::stderr().is_terminal() { Look::Coloured } else { Look::Plain };
        let lines = Lines { inner: format::format().with_ansi(false).with_target(false), look, clock, storms };
        Box::new(builder.with_ansi(false).event_format(lines).finish())
    } else {
        let lines = format::json().flatten_event(true).with_current_span(true).with_span_list(false);
        let lines = Lines { inner: lines, look: Look::Json, clock, storms };
        Box::new(builder.fmt_fields(format::JsonFields::new()).event_format(lines).finish())
    }
}

fn filter(config: &LogConfig) -> EnvFilter {
    // The level's names are the filter's own, so the directives always parse.
    EnvFilter::new(format!("warn,blobferry={}", config.level.as_str()))
}

/// A text in one line that steers nothing: what is no plain character is escaped.
pub(super) fn one_line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    escape(text, &mut out);
    out
}

fn escape(text: &str, out: &mut String) {
    for c in text.chars() {
        if is_unsafe(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    Json,
    Plain,
    Coloured,
}

/// The format of a line: the usual one of people or of JSON, with what is said in this module's header. Colours are added
/// last: everything before is escaped, whoever wrote it.
struct Lines<F> {
    inner: F,
    look: Look,
    clock: Arc<dyn Clock>,
    // As many as there are places in the code that log.
    storms: Mutex<HashMap<Identifier, Storm>>,
}

const fn colour(level: Level) -> &'static str {
    match level {
        Level::ERROR => "\u{1b}[31m",
        Level::WARN => "\u{1b}[33m",
        Level::INFO => "\u{1b}[32m",
        Level::DEBUG => "\u{1b}[34m",
        Level::TRACE => "\u{1b}[35m",
    }
}

impl<F> Lines<F> {
    /// How many lines before this one were suppressed; `None` if this one is, too.
    fn admit(&self, event: &Event<'_>) -> Option<u64> {
        let metadata = event.metadata();
        // Injected faults are told each time: tests count them.
        if *metadata.level() > Level::INFO || metadata.target() == "blobferry::failpoint" {
            return Some(0);
        }
        let mut storms = self.storms.lock();
        storms.entry(metadata.callsite()).or_insert_with(|| Storm::new(PACE)).admit(self.clock.monotonic())
    }
}

impl<S, N, F> FormatEvent<S, N> for Lines<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let Some(suppressed) = self.admit(event) else { return Ok(()) };
        let mut line = String::new();
        self.inner.format_event(context, Writer::new(&mut line), event)?;
        let ids = current_ids();
        let line = line.trim_end_matches('\n');
        if self.look == Look::Json {
            writer.write_str(line.strip_suffix('}').unwrap_or(line))?;
            if let Some((trace, span)) = ids {
                write!(writer, ",\"trace_id\":\"{trace}\",\"span_id\":\"{span}\"")?;
            }
            if suppressed > 0 {
                write!(writer, ",\"suppressed\":{suppressed}")?;
            }
            return writer.write_str("}\n");
        }
        let mut out = String::with_capacity(line.len() + 64);
        let level = event.metadata().level();
        match line.split_once(level.as_str()).filter(|_| self.look == Look::Coloured) {
            Some((time, rest)) => {
                write!(out, "\u{1b}[2m{time}\u{1b}[0m{}{level}\u{1b}[0m", colour(*level))?;
                escape(rest, &mut out);
            }
            None => escape(line, &mut out),
        }
        if suppressed > 0 {
            write!(out, " ({suppressed} more suppressed)")?;
        }
        if let Some((trace, span)) = ids {
            write!(out, " trace_id={trace} span_id={span}")?;
        }
        out.push('\n');
        writer.write_str(&out)
    }
}

#[cfg(test)]
mod tests {
    use super::subscriber;
    use crate::clock::{Clock, ManualClock};
    use crate::config::{LogConfig, LogFormat, LogLevel};
    use parking_lot::Mutex;
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Sink {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged_at(level: LogLevel, human: bool, clock: Arc<dyn Clock>, events: impl FnOnce()) -> String {
        let sink = Sink::default();
        let config = LogConfig { level, format: LogFormat::Auto };
        let writer = sink.clone();
        tracing::subscriber::with_default(subscriber(&config, human, clock, move || writer.clone()), events);
        let bytes = sink.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn logged(level: LogLevel, human: bool) -> String {
        logged_at(level, human, Arc::new(ManualClock::default()), || {
            tracing::info!(route = "a_to_b", "copied");
            tracing::debug!("a detail");
            tracing::info!(target: "h2", "a frame");
        })
    }

    #[test]
    fn lines_are_json_or_human_and_of_the_configured_level() {
        let json = logged(LogLevel::Info, false);
        let line: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((line["message"].as_str(), line["route"].as_str()), (Some("copied"), Some("a_to_b")));
        let human = logged(LogLevel::Debug, true);
        assert!(human.contains("copied") && human.contains("a detail") && !human.contains("a frame"), "{human}");
        assert_eq!(logged(LogLevel::Error, true), "");
    }

    #[test]
    fn what_a_peer_sends_stays_in_its_line() {
        let text = "no\nERROR forged\r\u{1b}[31m\u{202e}end";
        for human in [true, false] {
            let said = logged_at(LogLevel::Info, human, Arc::new(ManualClock::default()), || {
                tracing::warn!(error = %text, "it {text}");
            });
            assert_eq!(said.lines().count(), 1, "{said}");
            let steers = |c: char| c != '\n' && (c.is_control() || (human && c == '\u{202e}'));
            assert!(!said.contains(steers), "{said:?}");
            assert!(said.contains("forged") && said.contains("end"), "{said}");
        }
    }

    #[test]
    fn a_storm_is_cut_and_counted() {
        let clock = Arc::new(ManualClock::default());
        let ticking = clock.clone();
        let said = logged_at(LogLevel::Debug, false, clock, move || {
            let storm = || {
                tracing::warn!(peer = "b", "it fails");
                tracing::debug!("a detail");
            };
            (0..200).for_each(|_| storm());
            tracing::warn!("something else");
            ticking.advance(Duration::from_secs(1));
            storm();
        });
        let lines: Vec<serde_json::Value> = said.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |message: &str| lines.iter().filter(|line| line["message"] == message).collect::<Vec<_>>();
        assert_eq!((of("it fails").len(), of("a detail").len(), of("something else").len()), (51, 201, 1));
        assert_eq!(of("it fails")[50]["suppressed"], 150);
        assert!(of("something else")[0].get("suppressed").is_none());
    }
}
