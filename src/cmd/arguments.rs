//! The values of flags: durations and sizes, as people write them.

use std::time::Duration;

/// Parses a duration such as `10s` or `2h`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; expected a duration such as `10s` or `5m`"))
}

/// Parses a number of bytes such as `100MB` or `64KiB`.
pub(super) fn byte_size(text: &str) -> Result<u64, String> {
    let expected = || "expected a size such as `100MB` or `64KiB`".to_owned();
    let (digits, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1_000_000,
        "g" | "gb" => 1_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return Err(expected()),
    };
    let number: u64 = digits.parse().map_err(|_| expected())?;
    number.checked_mul(factor).filter(|&bytes| bytes > 0).ok_or_else(expected)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_units() {
        let check = |text: &str, expected: Option<u64>| assert_eq!(byte_size(text).ok(), expected, "{text}");
        check("100MB", Some(100_000_000));
        check("64KiB", Some(65_536));
        check("7", Some(7));
        check("2 gb", Some(2_000_000_000));
        for text in ["", "0", "MB", "-1MB", "1.5MB", "1TB", "99999999999999999999", "99999999999GB"] {
            check(text, None);
        }
    }
}
