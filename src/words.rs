//! Figures, times and the texts of others, as people read them. Pure.
//!
//! Every sentence, table and message of blobferry writes them so.

use crate::clock::to_unix_ms;
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

/// `1234567` as `1,234,567`.
pub(crate) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 blob`, `2 blobs`, `3 entries`.
pub(crate) fn several(value: u64, noun: &str) -> String {
    format!("{} {}", number(value), noun_of(value, noun))
}

/// `blob` for one, `blobs` for all other numbers.
pub(crate) fn noun_of(value: u64, noun: &str) -> Cow<'_, str> {
    match (value, noun.strip_suffix('y')) {
        (1, _) => Cow::Borrowed(noun),
        (_, Some(stem)) => Cow::Owned(format!("{stem}ies")),
        (_, None) => Cow::Owned(format!("{noun}s")),
    }
}

/// Bytes in binary units, to three digits: `0 B`, `1.50 KiB`, `271 MiB`.
pub(crate) fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let mut scaled = value as f64 / 1024.0;
    let mut unit = 0;
    // Rounded to a whole 1024 it would read better in the next unit.
    while scaled >= 1023.5 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{} {}", digits3(scaled), UNITS[unit])
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
    format!("{}/s", number(whole))
}

/// How many in a second; 0 where no time has passed.
pub(crate) fn per_second(value: u64, span: Duration) -> f64 {
    if span.is_zero() { 0.0 } else { value as f64 / span.as_secs_f64() }
}

/// A span of time in at most two units: `0 s`, `12 ms`, `2.10 s`, `3 min 12 s`, `4 h`, `12 d 3 h`.
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
    } else {
        let (whole, rest) = if seconds < 3600 {
            ((seconds / 60, "min"), (seconds % 60, "s"))
        } else if seconds < 86_400 {
            ((seconds / 3600, "h"), (seconds / 60 % 60, "min"))
        } else {
            ((seconds / 86_400, "d"), (seconds / 3600 % 24, "h"))
        };
        match rest {
            (0, _) => format!("{} {}", whole.0, whole.1),
            (rest, unit) => format!("{} {} {rest} {unit}", whole.0, whole.1),
        }
    }
}

/// The time of day in UTC, with the date where that is not today: `10:02 UTC`, `2026-11-21 10:02 UTC`.
pub(crate) fn time(time: SystemTime, now: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    let day = |time| to_unix_ms(time) / 86_400_000;
    let (date, clock) = (text.get(..10).unwrap_or_default(), text.get(11..16).unwrap_or_default());
    if day(time) == day(now) { format!("{clock} UTC") } else { format!("{date} {clock} UTC") }
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

/// Whether a character could steer a terminal, or reorder or hide the text around it: control characters, bidirectional
/// marks, separators, zero-width characters.
pub(crate) fn is_unsafe(c: char) -> bool {
    let hides = matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    c.is_control() || hides
}

/// The text of somebody else in one line: what [is unsafe](is_unsafe) becomes a space, and what is long is cut.
pub(crate) fn plain(text: &str, longest: usize) -> String {
    let mut kept: String = text.chars().take(longest).map(|c| if is_unsafe(c) { ' ' } else { c }).collect();
    if text.chars().nth(longest).is_some() {
        kept.push('…');
    }
    kept
}

/// A chain of errors without the links that only say that there is a next one, without what is said twice, and without the
/// system's number: `tcp connect error: transport error: Connection refused (os error 111)` as `Connection refused`.
pub(crate) fn cause(chain: &str) -> String {
    const LINKS: [&str; 5] =
        ["transport error", "tcp connect error", "error trying to connect", "client error (Connect)", "cannot connect"];
    let mut kept: Vec<&str> = Vec::new();
    let mut links = chain.split(": ").peekable();
    while let Some(link) = links.next() {
        // The last one stays: nothing else may be left.
        let says_nothing = LINKS.contains(&link) && links.peek().is_some();
        if !says_nothing && !kept.contains(&link) {
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
    use super::{bytes, bytes_rate, cause, noun_of, number, percent, plain, rate, several, span, time};
    use crate::clock::from_unix_ms;
    use std::time::Duration;

    #[test]
    fn numbers_are_grouped_by_the_thousand() {
        let shown: Vec<String> = [0, 7, 999, 1000, 12_345, 1_234_567, u64::MAX].into_iter().map(number).collect();
        assert_eq!(shown, ["0", "7", "999", "1,000", "12,345", "1,234,567", "18,446,744,073,709,551,615"]);
        assert_eq!([several(1, "blob"), several(0, "blob"), several(2, "entry")], ["1 blob", "0 blobs", "2 entries"]);
        assert_eq!(noun_of(1, "entry"), "entry");
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
        assert_eq!(shown, ["0 s", "12 ms", "2.10 s", "59.9 s", "3 min 12 s", "4 h", "12 d 3 h"]);
        assert_eq!(span(Duration::from_micros(1)), "under 1 ms");
    }

    #[test]
    fn all_but_one_is_not_a_hundred_percent() {
        assert_eq!([percent(0, 0), percent(999, 1000), percent(5, 5)], ["100%", "99%", "100%"]);
    }

    #[test]
    fn a_time_of_another_day_has_its_date() {
        let now = from_unix_ms(1_767_225_600_000 + 86_400_000 + 43_200_000);
        assert_eq!(time(now - Duration::from_secs(7200), now), "10:00 UTC");
        assert_eq!(time(now - Duration::from_secs(86_400), now), "2026-01-01 12:00 UTC");
    }

    #[test]
    fn chains_of_errors_are_cut_to_what_they_say() {
        let long = "backup: tcp connect error: transport error: Connection refused (os error 111) (UNAVAILABLE)";
        assert_eq!(cause(long), "backup: Connection refused (UNAVAILABLE)");
        assert_eq!(cause("transport error"), "transport error");
        assert_eq!(cause("x (os error 1: y"), "x (os error 1: y");
        let twice = "the store's bytes of X are corrupt: the store's bytes of X are corrupt: digest";
        assert_eq!(cause(twice), "the store's bytes of X are corrupt: digest");
    }

    #[test]
    fn foreign_text_steers_nothing() {
        assert_eq!(plain("a\u{1b}[2Jb\nc", 80), "a [2Jb c");
        assert_eq!(plain("a\u{202e}b", 80), "a b");
        assert_eq!(plain("abcdef", 3), "abc…");
        assert_eq!(plain("abc", 3), "abc");
    }
}
