//! Numbers, sizes and spans of time as people read them, and tables. Pure.

use std::fmt::Write as _;
use std::time::Duration;

/// `1234567` as `1,234,567`.
pub(crate) fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 blob`, `2 blobs`; the plural is made with an `s`.
pub(crate) fn counted(number: u64, noun: &str) -> String {
    format!("{} {}", count(number), noun_of(number, noun))
}

/// `blob` for one, `blobs` for all other numbers.
pub(crate) fn noun_of(number: u64, noun: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{noun}{s}")
}

/// Bytes in binary units, with three digits that say something: `0 B`, `1.50 KiB`, `271 MiB`.
pub(crate) fn bytes(number: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut value = number as f64 / 1024.0;
    let mut unit = 0;
    // Rounded to a whole 1024 it would read better in the next unit.
    while value >= 1023.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{} {}", digits3(value), UNITS[unit])
}

/// A rate of bytes: `12.4 MiB/s`.
pub(crate) fn bytes_rate(per_second: f64) -> String {
    // Rates are shown to three digits, so whole bytes are exact enough; a float beyond u64 does not occur.
    let whole = Duration::try_from_secs_f64(per_second.max(0.0)).map_or(0, |whole| whole.as_secs());
    format!("{}/s", bytes(whole))
}

/// A rate of things: `1,024/s`, `3.20/s`, `0/s`.
pub(crate) fn rate(per_second: f64) -> String {
    if !per_second.is_finite() || per_second <= 0.0 {
        return "0/s".to_owned();
    }
    if per_second < 99.95 {
        return format!("{}/s", digits3(per_second));
    }
    let whole = Duration::try_from_secs_f64(per_second.round()).map_or(u64::MAX, |whole| whole.as_secs());
    format!("{}/s", count(whole))
}

/// How many in a second; 0 where no time has passed.
pub(crate) fn per_second(number: u64, span: Duration) -> f64 {
    if span.is_zero() { 0.0 } else { number as f64 / span.as_secs_f64() }
}

/// A span of time in at most two units: `0 s`, `12 ms`, `2.10 s`, `3 min 12 s`, `4 h 0 min`, `12 d 3 h`.
pub(crate) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    if span.is_zero() {
        "0 s".to_owned()
    } else if span < Duration::from_millis(1) {
        "under 1 ms".to_owned()
    } else if seconds == 0 {
        format!("{} ms", span.as_millis())
    } else if seconds < 60 {
        format!("{} s", digits3(span.as_secs_f64()))
    } else if seconds < 3600 {
        format!("{} min {} s", seconds / 60, seconds % 60)
    } else if seconds < 86_400 {
        format!("{} h {} min", seconds / 3600, seconds / 60 % 60)
    } else {
        format!("{} d {} h", seconds / 86_400, seconds / 3600 % 24)
    }
}

/// A part of a whole in percent, cut so that 100% is only said of the whole.
pub(crate) fn percent(part: u64, whole: u64) -> String {
    let percent = if whole == 0 { 100 } else { u128::from(part) * 100 / u128::from(whole) };
    format!("{percent}%")
}

fn digits3(value: f64) -> String {
    let decimals = if value < 9.995 {
        2
    } else if value < 99.95 {
        1
    } else {
        0
    };
    format!("{value:.decimals$}")
}

/// A table: a heading and rows, columns as wide as they need; those after the first `left` stand to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
    left: usize,
}

impl Table {
    /// A table with this heading, whose first `left` columns stand to the left.
    pub(crate) fn new(heading: &[&str], left: usize) -> Self {
        Self { rows: vec![heading.iter().map(|&cell| cell.to_owned()).collect()], left }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    /// The table as lines, each indented and ended.
    pub(crate) fn render(&self, indent: &str) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|column| self.rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max())
            .map(|width| width.unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = indent.to_owned();
            for (column, cell) in row.iter().enumerate() {
                let space = " ".repeat(widths[column] - cell.chars().count());
                let gap = if column > 0 { "  " } else { "" };
                let (before, after) = if column < self.left { ("", space) } else { (space.as_str(), String::new()) };
                // Writing to a String does not fail.
                if write!(line, "{gap}{before}{cell}{after}").is_err() {
                    return text;
                }
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Foreign text, safe for a terminal: control characters become spaces, and what is long is cut.
pub(crate) fn plain(text: &str, longest: usize) -> String {
    let mut kept: String = text.chars().take(longest).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(longest).is_some() {
        kept.push('…');
    }
    kept
}

/// A chain of errors without the links that only say that there is a next one, and without the system's number:
/// `tcp connect error: transport error: Connection refused (os error 111)` as `Connection refused`.
pub(crate) fn cause(chain: &str) -> String {
    const LINKS: [&str; 4] =
        ["transport error", "tcp connect error", "error trying to connect", "client error (Connect)"];
    let mut kept: Vec<&str> = Vec::new();
    let mut links = chain.split(": ").peekable();
    while let Some(link) = links.next() {
        // The last one stays: nothing else may be left.
        let says_nothing = LINKS.contains(&link) && links.peek().is_some();
        if !says_nothing && kept.last() != Some(&link) {
            kept.push(link);
        }
    }
    let mut text = kept.join(": ");
    while let Some(at) = text.find(" (os error ") {
        let Some(length) = text[at..].find(')') else { break };
        text.replace_range(at..=at + length, "");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{Table, bytes, bytes_rate, cause, count, counted, percent, plain, rate, span};
    use std::time::Duration;

    #[test]
    fn numbers_are_grouped_by_the_thousand() {
        let shown: Vec<String> = [0, 7, 999, 1000, 12_345, 1_234_567, u64::MAX].into_iter().map(count).collect();
        assert_eq!(shown, ["0", "7", "999", "1,000", "12,345", "1,234,567", "18,446,744,073,709,551,615"]);
        assert_eq!((counted(1, "blob"), counted(0, "blob")), ("1 blob".to_owned(), "0 blobs".to_owned()));
    }

    #[test]
    fn sizes_have_three_digits_and_the_unit_that_suits_them() {
        let sizes = [0, 1023, 1024, 1536, 10_239, 1_048_575, 271_963_460, 20 << 30, u64::MAX];
        let shown: Vec<String> = sizes.into_iter().map(bytes).collect();
        assert_eq!(
            shown,
            ["0 B", "1023 B", "1.00 KiB", "1.50 KiB", "10.0 KiB", "1.00 MiB", "259 MiB", "20.0 GiB", "16.0 EiB"]
        );
        assert_eq!(bytes_rate(1536.7), "1.50 KiB/s");
        assert_eq!(bytes_rate(f64::NAN), "0 B/s");
    }

    #[test]
    fn rates_and_spans_are_short() {
        assert_eq!([rate(0.0), rate(3.2), rate(1023.6), rate(f64::NAN)], ["0/s", "3.20/s", "1,024/s", "0/s"]);
        let spans = [0, 12, 2_100, 59_940, 192_000, 14_400_000, 1_047_600_000];
        let shown: Vec<String> = spans.into_iter().map(|ms| span(Duration::from_millis(ms))).collect();
        assert_eq!(shown, ["0 s", "12 ms", "2.10 s", "59.9 s", "3 min 12 s", "4 h 0 min", "12 d 3 h"]);
        assert_eq!(span(Duration::from_micros(1)), "under 1 ms");
    }

    #[test]
    fn all_but_one_is_not_a_hundred_percent() {
        assert_eq!([percent(0, 0), percent(999, 1000), percent(5, 5)], ["100%", "99%", "100%"]);
    }

    #[test]
    fn a_table_is_as_wide_as_it_needs_to_be() {
        let mut table = Table::new(&["NAME", "READY"], 1);
        table.row(vec!["a_long_name".to_owned(), "1".to_owned()]);
        table.row(vec!["é".to_owned(), "1,000".to_owned()]);
        assert_eq!(table.render("  "), "  NAME         READY\n  a_long_name      1\n  é            1,000\n");
    }

    #[test]
    fn chains_of_errors_are_cut_to_what_they_say() {
        let long = "backup: tcp connect error: transport error: Connection refused (os error 111) (UNAVAILABLE)";
        assert_eq!(cause(long), "backup: Connection refused (UNAVAILABLE)");
        assert_eq!(cause("transport error"), "transport error");
        assert_eq!(cause("x (os error 1: y"), "x (os error 1: y");
    }

    #[test]
    fn foreign_text_cannot_steer_the_terminal() {
        assert_eq!(plain("a\u{1b}[2Jb\nc", 80), "a [2Jb c");
        assert_eq!(plain("abcdef", 3), "abc…");
        assert_eq!(plain("abc", 3), "abc");
    }
}
