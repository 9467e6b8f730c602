//! The two text formats: that of Prometheus, and OpenMetrics.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/> and
//! <https://prometheus.io/docs/specs/om/open_metrics_spec/>. What differs: in OpenMetrics a counter's family has no `_total`,
//! a unit may be told, and the end is marked. Samples are the same in both, so that a scraper may change its mind.

use super::HistogramReading;
use std::fmt::Write as _;

/// A text format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// Version 0.0.4, which every scraper reads.
    Classic,
    /// Version 1.0.0.
    OpenMetrics,
}

impl Format {
    /// What HTTP calls it.
    pub(crate) const fn content_type(self) -> &'static str {
        match self {
            Self::Classic => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }

    /// What a scraper wants, by its `Accept` header: OpenMetrics where it asks for that at least as much as for plain text.
    pub(crate) fn accepted(accept: &str) -> Self {
        let (mut open_metrics, mut plain) = (0.0f64, 0.0f64);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or("").to_ascii_lowercase();
            let (mut quality, mut is_known) = (1.0, true);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => is_known = matches!(value.trim().trim_matches('"'), "1.0.0" | "0.0.1"),
                    _ => {}
                }
            }
            match kind.as_str() {
                "application/openmetrics-text" if is_known => open_metrics = open_metrics.max(quality),
                "text/plain" | "text/*" | "*/*" => plain = plain.max(quality),
                _ => {}
            }
        }
        if open_metrics > 0.0 && open_metrics >= plain { Self::OpenMetrics } else { Self::Classic }
    }
}

/// What a metric is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MetricKind {
    /// It only goes up, but for a restart.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Values by size.
    Histogram,
}

impl MetricKind {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A sample's value.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Value {
    /// A whole number.
    Whole(u64),
    /// Any other.
    Float(f64),
}

impl From<u64> for Value {
    fn from(value: u64) -> Self {
        Self::Whole(value)
    }
}

impl From<f64> for Value {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<bool> for Value {
    fn from(value: bool) -> Self {
        Self::Whole(value.into())
    }
}

/// A label, and its value.
type Label<'a> = (&'a str, &'a str);

/// An exposition in progress of being written.
#[derive(Debug)]
pub(crate) struct Text {
    format: Format,
    out: String,
}

/// A family of it, whose samples are to be written before the next family.
#[derive(Debug)]
pub(crate) struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
    kind: MetricKind,
}

impl Text {
    /// An empty one.
    pub(crate) fn new(format: Format) -> Self {
        Self { format, out: String::with_capacity(64 << 10) }
    }

    /// Begins a family: a name without `_total`, which is added to counters, and what it means, in one line.
    pub(crate) fn family(&mut self, name: &'static str, kind: MetricKind, help: &str) -> Family<'_> {
        let total = if kind == MetricKind::Counter && self.format == Format::Classic { "_total" } else { "" };
        let out = &mut self.out;
        out.push_str(&format!("# HELP {name}{total} {help}\n# TYPE {name}{total} {}\n", kind.as_str()));
        let unit = ["seconds", "bytes"].into_iter().find(|unit| name.ends_with(&format!("_{unit}")));
        if let (Format::OpenMetrics, Some(unit)) = (self.format, unit) {
            out.push_str(&format!("# UNIT {name} {unit}\n"));
        }
        Family { out, name, kind }
    }

    /// The whole.
    pub(crate) fn finish(mut self) -> String {
        if self.format == Format::OpenMetrics {
            self.out.push_str("# EOF\n");
        }
        self.out
    }
}

impl Family<'_> {
    /// One sample of a counter or gauge.
    pub(crate) fn sample(&mut self, labels: &[Label<'_>], value: impl Into<Value>) {
        let suffix = if self.kind == MetricKind::Counter { "_total" } else { "" };
        self.line(suffix, labels, None, value.into());
    }

    /// A gauge for each of the states that something may be in: 1 for the one that it is in, 0 for the others.
    pub(crate) fn states<'s>(
        &mut self,
        labels: &[Label<'_>],
        label: &str,
        all: impl IntoIterator<Item = &'s str>,
        is: &str,
    ) {
        for state in all {
            let labels: Vec<Label<'_>> = labels.iter().copied().chain([(label, state)]).collect();
            self.sample(&labels, state == is);
        }
    }

    /// One histogram.
    pub(crate) fn histogram(&mut self, labels: &[Label<'_>], reading: &HistogramReading) {
        let mut count = 0;
        for (index, here) in reading.counts.iter().enumerate() {
            count += here;
            let bound = reading.bounds.get(index).map_or_else(|| "+Inf".to_owned(), |bound| format!("{bound:?}"));
            self.line("_bucket", labels, Some(&bound), Value::Whole(count));
        }
        self.line("_sum", labels, None, Value::Float(reading.sum));
        self.line("_count", labels, None, Value::Whole(count));
    }

    fn line(&mut self, suffix: &str, labels: &[Label<'_>], bound: Option<&str>, value: Value) {
        self.out.push_str(self.name);
        self.out.push_str(suffix);
        let bound = bound.map(|bound| ("le", bound));
        let mut before = '{';
        for (name, value) in labels.iter().copied().chain(bound) {
            self.out.push(before);
            self.out.push_str(name);
            self.out.push_str("=\"");
            escape(self.out, value);
            self.out.push('"');
            before = ',';
        }
        if before == ',' {
            self.out.push('}');
        }
        let written = match value {
            Value::Whole(value) => writeln!(self.out, " {value}"),
            Value::Float(value) if value == f64::INFINITY => writeln!(self.out, " +Inf"),
            Value::Float(value) => writeln!(self.out, " {value}"),
        };
        // To write to a text cannot fail.
        debug_assert!(written.is_ok());
    }
}

fn escape(out: &mut String, value: &str) {
    for letter in value.chars() {
        match letter {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            letter => out.push(letter),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Format, MetricKind, Text};
    use crate::metrics::Histogram;
    use std::time::Duration;

    fn written(format: Format) -> String {
        let mut text = Text::new(format);
        let mut copied = text.family("x_copied", MetricKind::Counter, "What was copied.");
        copied.sample(&[("route", "a\"b\\c\nd")], 7);
        text.family("x_lag_seconds", MetricKind::Gauge, "How late.").sample(&[], 0.25);
        let histogram = Histogram::new(&[0.5, 1.0]);
        histogram.observe(Duration::from_millis(1));
        histogram.observe(Duration::from_secs(3));
        text.family("x_write_seconds", MetricKind::Histogram, "Writes.")
            .histogram(&[("lane", "fresh")], &histogram.read());
        let mut state = text.family("x_state", MetricKind::Gauge, "How it is.");
        state.states(&[("peer", "p")], "state", ["open", "closed"], "closed");
        text.finish()
    }

    #[test]
    fn the_classic_text_is_as_documented() {
        let expected = r#"# HELP x_copied_total What was copied.
# TYPE x_copied_total counter
x_copied_total{route="a\"b\\c\nd"} 7
# HELP x_lag_seconds How late.
# TYPE x_lag_seconds gauge
x_lag_seconds 0.25
# HELP x_write_seconds Writes.
# TYPE x_write_seconds histogram
x_write_seconds_bucket{lane="fresh",le="0.5"} 1
x_write_seconds_bucket{lane="fresh",le="1.0"} 1
x_write_seconds_bucket{lane="fresh",le="+Inf"} 2
x_write_seconds_sum{lane="fresh"} 3.001
x_write_seconds_count{lane="fresh"} 2
# HELP x_state How it is.
# TYPE x_state gauge
x_state{peer="p",state="open"} 0
x_state{peer="p",state="closed"} 1
"#;
        assert_eq!(written(Format::Classic), expected);
    }

    #[test]
    fn open_metrics_has_the_same_samples() {
        let (classic, open_metrics) = (written(Format::Classic), written(Format::OpenMetrics));
        let samples = |text: &str| text.lines().filter(|line| !line.starts_with('#')).collect::<Vec<_>>().join("\n");
        assert_eq!(samples(&classic), samples(&open_metrics));
        assert!(open_metrics.starts_with("# HELP x_copied What was copied.\n# TYPE x_copied counter\nx_copied_total{"));
        assert!(open_metrics.contains("# TYPE x_lag_seconds gauge\n# UNIT x_lag_seconds seconds\n"));
        assert!(open_metrics.ends_with("\n# EOF\n"));
    }

    #[test]
    fn a_scraper_gets_what_it_accepts() {
        use Format::{Classic, OpenMetrics};
        let cases = [
            ("", Classic),
            ("*/*", Classic),
            ("text/plain", Classic),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Classic),
            ("application/openmetrics-text", OpenMetrics),
            ("Application/OpenMetrics-Text; Version=\"1.0.0\"", OpenMetrics),
            ("application/openmetrics-text; version=2.0.0", Classic),
            ("application/openmetrics-text;q=0", Classic),
            ("application/openmetrics-text;q=0.2,text/plain;q=0.8", Classic),
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            ("application/openmetrics-text;q=nonsense", Classic),
        ];
        for (accept, expected) in cases {
            assert_eq!(Format::accepted(accept), expected, "{accept}");
        }
    }
}
