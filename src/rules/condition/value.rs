//! From columns to CEL values.
//!
//! Owns how PostgreSQL's text becomes a bool, a number, a timestamp, and the variables that one
//! evaluation sees. It must not know expressions. Invariants: a value that cannot be converted
//! fails only what reads it; what one evaluation reads is bounded, so no row can keep it busy.

use std::collections::HashMap;
use std::str::{FromStr, from_utf8};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use cel::common::types::{CelBool, CelDouble, CelInt, CelList, CelMap, CelMapKey, CelNull, CelString};
use cel::common::value::{CowVal, Val};
use cel::context::VariableResolver;

use super::engine;
use super::operand::ColumnOperand;
use crate::change::ColumnKind;

/// What one evaluation may read, in units of eight bytes of column values. A macro over a JSON list
/// may read the columns again for every element.
const READ_UNITS_MAX: usize = 4 << 20;

/// The variables of a condition. None of these names can be written in CEL, so none can be
/// shadowed.
pub(super) const COMMIT_TIME: &str = "@at";
pub(super) const COMMIT_TIME_IS_KNOWN: &str = "@?at";

/// The variable that holds the n-th column.
pub(super) fn column(at: usize) -> String {
    format!("@{at}")
}

/// The variable that says whether the n-th column is known.
pub(super) fn column_is_known(at: usize) -> String {
    format!("@?{at}")
}

/// The column that a variable holds.
pub(super) fn column_of(variable: &str) -> Option<usize> {
    variable.strip_prefix('@')?.parse().ok()
}

/// A column's value, ready to be read any number of times.
pub(super) enum ColumnValue<'a> {
    Known {
        value: Box<dyn Val + 'a>,
        units: usize,
    },
    Absent,
    /// It is not what its type says, for this reason.
    Broken(&'static str),
}

impl<'a> ColumnValue<'a> {
    pub(super) fn new(operand: ColumnOperand<'a>) -> Self {
        match operand {
            ColumnOperand::Absent => Self::Absent,
            ColumnOperand::Null => Self::Known { value: Box::new(CelNull), units: 1 },
            ColumnOperand::Value(bytes, kind) => match convert(bytes, kind) {
                Ok(value) => Self::Known { value, units: 1 + bytes.len() / 8 },
                Err(reason) => Self::Broken(reason),
            },
        }
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

/// What a condition's variables stand for in one evaluation.
pub(super) struct Variables<'a> {
    pub(super) values: Vec<ColumnValue<'a>>,
    pub(super) op: CelString<'a>,
    pub(super) table: CelString<'a>,
    pub(super) at: Option<Box<dyn Val>>,
    /// Atomic only because the trait demands it.
    pub(super) units_read: AtomicUsize,
}

impl Variables<'_> {
    /// Whether a variable stands for a column that is not known.
    pub(super) fn is_absent(&self, variable: &str) -> bool {
        column_of(variable).and_then(|at| self.values.get(at)).is_some_and(ColumnValue::is_absent)
    }
}

impl VariableResolver for Variables<'_> {
    fn resolve<'b>(&'b self, variable: &str) -> Option<CowVal<'b, 'b>> {
        match variable {
            "op" => return Some(CowVal::Borrowed(&self.op)),
            "table" => return Some(CowVal::Borrowed(&self.table)),
            COMMIT_TIME => return self.at.as_ref().map(|at| CowVal::Borrowed(&**at)),
            COMMIT_TIME_IS_KNOWN => return Some(boolean(self.at.is_some())),
            _ => {}
        }
        if let Some(at) = variable.strip_prefix("@?") {
            return Some(boolean(!self.values.get(at.parse::<usize>().ok()?)?.is_absent()));
        }
        let ColumnValue::Known { value, units } = self.values.get(column_of(variable)?)? else { return None };
        let read = self.units_read.fetch_add(*units, Ordering::Relaxed);
        (read <= READ_UNITS_MAX).then(|| CowVal::Borrowed(&**value))
    }
}

fn boolean<'b>(value: bool) -> CowVal<'b, 'b> {
    CowVal::Borrowed(if value { &CelBool::TRUE } else { &CelBool::FALSE })
}

/// The value of a column in PostgreSQL's text format, or why it is none.
fn convert<'a>(bytes: &'a [u8], kind: ColumnKind) -> Result<Box<dyn Val + 'a>, &'static str> {
    match kind {
        ColumnKind::Boolean => match bytes {
            b"true" | b"t" => Ok(Box::new(CelBool::TRUE)),
            b"false" | b"f" => Ok(Box::new(CelBool::FALSE)),
            _ => Err("is neither true nor false"),
        },
        ColumnKind::Integer => match number::<i64>(bytes) {
            Some(value) => Ok(Box::new(CelInt::from(value))),
            None => Err("is not a whole number of 64 bits"),
        },
        // Two of them could compare as equal and be different.
        ColumnKind::Numeric if digits(bytes) > DIGITS_MAX => Err("has more digits than can be compared"),
        ColumnKind::Float | ColumnKind::Numeric => match number::<f64>(bytes) {
            Some(0.0) if kind == ColumnKind::Numeric && digits(bytes) > 0 => Err("is too small to be compared"),
            Some(value) => Ok(Box::new(CelDouble::from(value))),
            None => Err("is not a number"),
        },
        ColumnKind::Json => match serde_json::from_slice(bytes) {
            Ok(value) => Ok(json(value)),
            Err(_) => Err("is not JSON"),
        },
        ColumnKind::Timestamp => match from_utf8(bytes).ok().and_then(rfc3339).and_then(|text| timestamp(&text)) {
            Some(value) => Ok(value),
            None => Err("is not a moment between the years 1 and 9999"),
        },
        ColumnKind::Text => match from_utf8(bytes) {
            Ok(text) => Ok(Box::new(CelString::from(text))),
            Err(_) => Err("is not UTF-8"),
        },
    }
}

/// The digits that every double keeps.
const DIGITS_MAX: usize = 15;

/// How many digits of a decimal number tell it from others.
fn digits(bytes: &[u8]) -> usize {
    let all: Vec<u8> = bytes.iter().copied().filter(u8::is_ascii_digit).collect();
    let leading = all.iter().take_while(|&&digit| digit == b'0').count();
    let trailing = match bytes.contains(&b'.') {
        true => all.iter().rev().take_while(|&&digit| digit == b'0').count(),
        false => 0,
    };
    all.len().saturating_sub(leading + trailing)
}

fn number<T: FromStr>(bytes: &[u8]) -> Option<T> {
    from_utf8(bytes).ok()?.parse().ok()
}

/// JSON nests at most 128 deep here: the parser refuses more.
fn json(value: serde_json::Value) -> Box<dyn Val> {
    match value {
        serde_json::Value::Null => Box::new(CelNull),
        serde_json::Value::Bool(value) => Box::new(CelBool::from(value)),
        serde_json::Value::Number(value) => json_number(&value),
        serde_json::Value::String(value) => Box::new(CelString::from(value)),
        serde_json::Value::Array(items) => {
            let items: Vec<Box<dyn Val>> = items.into_iter().map(json).collect();
            Box::new(CelList::from(items))
        }
        serde_json::Value::Object(fields) => {
            let field = |(name, value)| (CelMapKey::String(CelString::from(name)), json(value));
            let fields: HashMap<CelMapKey<'static>, Box<dyn Val>> = fields.into_iter().map(field).collect();
            Box::new(CelMap::from(fields))
        }
    }
}

/// JSON does not tell whole numbers from others, and CEL's arithmetic does: `3` and `3.0` both
/// become an int.
fn json_number(number: &serde_json::Number) -> Box<dyn Val> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    if let Some(whole) = number.as_i64() {
        return Box::new(CelInt::from(whole));
    }
    match number.as_f64().unwrap_or(f64::NAN) {
        value if value.fract() == 0.0 && value.abs() < EXACT => Box::new(CelInt::from(value as i64)),
        value => Box::new(CelDouble::from(value)),
    }
}

/// The commit's time; nothing before 1970 or after 9999, which `humantime` does not write.
pub(super) fn commit_time(at: SystemTime) -> Option<Box<dyn Val>> {
    const YEAR_10000: u64 = 253_402_300_800;
    let seconds = at.duration_since(UNIX_EPOCH).ok()?.as_secs();
    if seconds < YEAR_10000 { timestamp(&humantime::format_rfc3339_nanos(at).to_string()) } else { None }
}

/// A timestamp as the crate itself reads it from RFC 3339.
fn timestamp(text: &str) -> Option<Box<dyn Val>> {
    let arguments = vec![CowVal::owned(CelString::from(text.to_owned()))];
    let from_text = engine::environment().find_overload("timestamp", &arguments)?;
    from_text(arguments).ok().map(CowVal::into_owned)
}

/// What PostgreSQL writes, as RFC 3339: `2026-11-20 12:00:03.123+00`. Without a zone it counts as
/// UTC. What is neither is left for the parser to refuse, but for a zone with seconds, which RFC
/// 3339 does not have.
fn rfc3339(text: &str) -> Option<String> {
    let (date, rest) = text.split_once([' ', 'T', 't'])?;
    let (time, zone) = rest.split_at_checked(rest.find(['+', '-', 'Z', 'z']).unwrap_or(rest.len()))?;
    match zone {
        "" | "Z" | "z" => Some(format!("{date}T{time}Z")),
        hours if hours.len() == 3 => Some(format!("{date}T{time}{hours}:00")),
        hours if hours.len() == 6 && hours.get(3..4) == Some(":") => Some(format!("{date}T{time}{hours}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_of_postgresql_become_rfc_3339() {
        let check = |text: &str, expected: Option<&str>| assert_eq!(rfc3339(text).as_deref(), expected, "{text}");
        check("2026-11-20 12:00:03.123+00", Some("2026-11-20T12:00:03.123+00:00"));
        check("2026-11-20 12:00:03-08", Some("2026-11-20T12:00:03-08:00"));
        check("2026-11-20 12:00:03+05:30", Some("2026-11-20T12:00:03+05:30"));
        check("2026-11-20 12:00:03", Some("2026-11-20T12:00:03Z"));
        check("2026-11-20T12:00:03Z", Some("2026-11-20T12:00:03Z"));
        check("2026-11-20T12:00:03.5+01:00", Some("2026-11-20T12:00:03.5+01:00"));
        check("0044-03-15 12:00:00+00 BC", None);
        check("1900-01-01 00:00:00+00:19:32", None);
        check("2026-11-20 12:00:03+", None);
        check("2026-11-20", None);
    }

    #[test]
    fn a_value_is_what_its_kind_says() {
        let check = |text: &str, kind: ColumnKind, expected: Result<&str, &str>| {
            let converted = convert(text.as_bytes(), kind);
            let shown = converted.map(|value| value.get_type().name().to_owned());
            assert_eq!(shown.as_deref().map_err(|reason| *reason), expected, "{text} {kind:?}");
        };
        check("true", ColumnKind::Boolean, Ok("bool"));
        check("yes", ColumnKind::Boolean, Err("is neither true nor false"));
        check("-9223372036854775808", ColumnKind::Integer, Ok("int"));
        check("9223372036854775808", ColumnKind::Integer, Err("is not a whole number of 64 bits"));
        check("NaN", ColumnKind::Numeric, Ok("double"));
        check("-Infinity", ColumnKind::Float, Ok("double"));
        check("123456789012345678901234567890.5", ColumnKind::Numeric, Err("has more digits than can be compared"));
        check("-000123456789012.34500000000000000", ColumnKind::Numeric, Ok("double"));
        check("0.00000000000000000000", ColumnKind::Numeric, Ok("double"));
        check("1,5", ColumnKind::Numeric, Err("is not a number"));
        check("{\"a\":[1]}", ColumnKind::Json, Ok("map"));
        check("[1,2]", ColumnKind::Json, Ok("list"));
        check("3.0", ColumnKind::Json, Ok("int"));
        check("3.5", ColumnKind::Json, Ok("double"));
        check("1e300", ColumnKind::Json, Ok("double"));
        check("18446744073709551615", ColumnKind::Json, Ok("double"));
        check("null", ColumnKind::Json, Ok("null_type"));
        check("{", ColumnKind::Json, Err("is not JSON"));
        check(&"[".repeat(100_000), ColumnKind::Json, Err("is not JSON"));
        check("2026-11-20 12:00:03+00", ColumnKind::Timestamp, Ok("google.protobuf.Timestamp"));
        for text in ["infinity", "10000-01-01 00:00:00+00", "0044-03-15 00:00:00+00 BC", "2026-13-01 00:00:00+00", ""] {
            check(text, ColumnKind::Timestamp, Err("is not a moment between the years 1 and 9999"));
        }
        check("", ColumnKind::Text, Ok("string"));
    }
}
