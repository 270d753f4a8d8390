//! How places in a file, names, numbers and times are written in output.
//!
//! Owns their form. It must not know what is said about them. Invariant: what came from a row, a
//! file or a server cannot control a terminal.

use std::time::Duration;

use serde_json::Value;

use crate::key::write_printable;

/// A place in a text: the line and the character in it, both from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct LineColumn {
    pub(super) line: usize,
    pub(super) column: usize,
}

impl LineColumn {
    /// The place of the byte at `offset`.
    pub(super) fn of(text: &str, offset: usize) -> Self {
        let before = text.get(..text.floor_char_boundary(offset.min(text.len()))).unwrap_or("");
        let line = before.matches('\n').count() + 1;
        let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
        Self { line, column }
    }
}

/// Text or bytes in one line that cannot control a terminal.
pub(super) fn printable(bytes: impl AsRef<[u8]>) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_printable(&mut text, bytes.as_ref());
    text
}

/// The first `characters` of some bytes, printable.
pub(super) fn beginning(bytes: &[u8], characters: usize) -> String {
    let text = printable(bytes);
    match text.char_indices().nth(characters) {
        Some((at, _)) => format!("{}…", text.get(..at).unwrap_or_default()),
        None => text,
    }
}

/// A duration for people: to the millisecond below 10 seconds, otherwise to the second.
pub(super) fn time(duration: Duration) -> String {
    let exact = duration < Duration::from_secs(10);
    let rounded = if exact { Duration::from_millis(millis(duration)) } else { Duration::from_secs(duration.as_secs()) };
    humantime::format_duration(rounded).to_string()
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A JSON value as one line.
pub(super) fn json_line(value: Value) -> String {
    format!("{value}\n")
}

/// A number of bytes for people.
pub(super) fn size(bytes: i64) -> String {
    const UNITS: [(&str, i64); 3] = [("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)];
    match UNITS.iter().find(|(_, unit)| bytes >= *unit) {
        Some((name, unit)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{} bytes", bytes.max(0)),
    }
}

/// A count and its noun, which gets an `s` unless the count is 1.
pub(super) fn counted(count: usize, noun: &str) -> String {
    if count == 1 { format!("1 {noun}") } else { format!("{count} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_counts_lines_and_characters() {
        let check = |text: &str, offset: usize, line: usize, column: usize| {
            assert_eq!(LineColumn::of(text, offset), LineColumn { line, column }, "{text:?} {offset}");
        };
        check("", 0, 1, 1);
        check("ab\ncd", 1, 1, 2);
        check("ab\ncd", 3, 2, 1);
        check("ä\nüb", 5, 2, 2);
        check("ä", 1, 1, 1);
        check("ab", 90, 1, 3);
    }

    #[test]
    fn a_beginning_is_cut_between_characters() {
        assert_eq!(beginning("äöü".as_bytes(), 3), "äöü");
        assert_eq!(beginning("äöü".as_bytes(), 2), "äö…");
        assert_eq!(beginning(b"a\x1b[31m", 40), r"a\u{1b}[31m");
    }

    #[test]
    fn times_are_short() {
        assert_eq!(time(Duration::from_micros(1_234_567)), "1s 234ms");
        assert_eq!(time(Duration::from_millis(62_345)), "1m 2s");
        assert_eq!(time(Duration::ZERO), "0s");
    }

    #[test]
    fn sizes_for_people() {
        let check = |bytes: i64, expected: &str| assert_eq!(size(bytes), expected);
        check(0, "0 bytes");
        check(1023, "1023 bytes");
        check(1536, "1.5 kB");
        check(5 << 30, "5.0 GB");
    }
}
