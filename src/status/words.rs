//! Figures in words, for people in a hurry: few digits, with their units.

use crate::clock::to_unix_ms;
use crate::queue::Tally;
use std::time::{Duration, SystemTime};

/// A number with its thousands apart, such as `1,204`.
pub(super) fn number(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// So many of something, such as `1 blob` or `1,204 blobs`.
pub(super) fn several(value: u64, what: &str) -> String {
    let plural = if value == 1 { "" } else { "s" };
    format!("{} {what}{plural}", number(value))
}

/// A number of bytes, such as `3.1 MiB`.
pub(super) fn bytes(value: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if value < 1024 {
        return format!("{value} B");
    }
    let mut scaled = value as f64 / 1024.0;
    let mut unit = 0;
    while scaled >= 1023.95 && unit + 1 < UNITS.len() {
        scaled /= 1024.0;
        unit += 1;
    }
    format!("{scaled:.1} {}", UNITS[unit])
}

/// Entries and their size, such as `1,204 blobs (3.1 MiB)`; where sizes are unknown, `at least` says so.
pub(super) fn tally(tally: &Tally) -> String {
    let blobs = several(tally.entries, "blob");
    match (tally.bytes, tally.unknown_size) {
        (0, 0) => format!("{blobs} (0 B)"),
        (0, _) => blobs,
        (known, 0) => format!("{blobs} ({})", bytes(known)),
        (known, _) => format!("{blobs} (at least {})", bytes(known)),
    }
}

/// A span of time, such as `2.1 s`, `4 min`, `3 h 12 min` or `6 d 2 h`.
pub(super) fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if seconds < 10 {
        format!("{:.1} s", (span.as_secs_f64() * 10.0).floor() / 10.0)
    } else if minutes < 2 {
        format!("{seconds} s")
    } else if hours < 2 {
        format!("{minutes} min")
    } else if days < 2 {
        format!("{hours} h {} min", minutes % 60)
    } else {
        format!("{days} d {} h", hours % 24)
    }
}

/// A rate, such as `812` or `0.4`.
pub(super) fn rate(per_second: f64) -> String {
    if per_second >= 10.0 {
        // Not negative, and far below what an integer of a float holds exactly.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "rounded, never negative, bounded")]
        let whole = per_second.round().min(1e15) as u64;
        number(whole)
    } else {
        format!("{per_second:.1}")
    }
}

/// The time of day in UTC, with the date where that is not today, such as `10:02 UTC` or `2026-11-21 10:02 UTC`.
pub(super) fn since(time: SystemTime, now: SystemTime) -> String {
    let text = humantime::format_rfc3339_seconds(time).to_string();
    let day = |time| to_unix_ms(time) / 86_400_000;
    let (date, clock) = (text.get(..10).unwrap_or_default(), text.get(11..16).unwrap_or_default());
    if day(time) == day(now) { format!("{clock} UTC") } else { format!("{date} {clock} UTC") }
}

#[cfg(test)]
mod tests {
    use super::{bytes, number, rate, several, since, span, tally};
    use crate::clock::from_unix_ms;
    use crate::queue::Tally;
    use std::time::Duration;

    #[test]
    fn figures_are_short_and_have_units() {
        assert_eq!([0, 7, 999, 1_000, 1_234_567].map(number), ["0", "7", "999", "1,000", "1,234,567"]);
        assert_eq!((several(1, "blob"), several(0, "blob")), ("1 blob".into(), "0 blobs".into()));
        assert_eq!(
            [0, 1023, 1024, 3_250_586, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.0 KiB", "3.1 MiB", "16.0 EiB"]
        );
        assert_eq!(bytes((1 << 20) - 1), "1.0 MiB");
        let spans = [0.0, 2.19, 9.99, 61.0, 240.0, 11_520.0, 525_600.0].map(|s| span(Duration::from_secs_f64(s)));
        assert_eq!(spans, ["0.0 s", "2.1 s", "9.9 s", "61 s", "4 min", "3 h 12 min", "6 d 2 h"]);
        assert_eq!([0.44, 9.96, 812.4].map(rate), ["0.4", "10.0", "812"]);
        let known = Tally { entries: 1204, bytes: 3_250_586, unknown_size: 0 };
        assert_eq!(tally(&known), "1,204 blobs (3.1 MiB)");
        assert_eq!(tally(&Tally { unknown_size: 4, ..known }), "1,204 blobs (at least 3.1 MiB)");
        assert_eq!(tally(&Tally { entries: 1, bytes: 0, unknown_size: 1 }), "1 blob");
    }

    #[test]
    fn a_time_of_another_day_has_its_date() {
        let now = from_unix_ms(1_767_225_600_000 + 86_400_000 + 43_200_000);
        assert_eq!(since(now - Duration::from_secs(7200), now), "10:00 UTC");
        assert_eq!(since(now - Duration::from_secs(86_400), now), "2026-01-01 12:00 UTC");
    }
}
