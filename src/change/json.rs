//! Changes and values as JSON: the lines of recordings, and values that rules send.
//!
//! Owns the writing of the line format. It must not read it. Invariants: a value that is not known
//! is omitted, and NULL is `null`; a line contains no line break; a value that JSON cannot
//! represent becomes a string, lossily if it is not UTF-8.

use serde_json::value::RawValue;

use super::{Cell, Change, ColumnKind, Commit, Relation, Row};

/// Writes a value as JSON of its kind. A value that is not known is written as null: omit it
/// before.
pub fn write_value(cell: &Cell, kind: ColumnKind, out: &mut Vec<u8>) {
    let Cell::Value(value) = cell else { return out.extend_from_slice(b"null") };
    if kind == ColumnKind::Json && serde_json::from_slice::<&RawValue>(value).is_ok() {
        // In valid JSON a line break can only be white space, so a blank means the same.
        return out.extend(value.iter().map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
    }
    if is_json_of(kind, value) {
        return out.extend_from_slice(value);
    }
    write_text(&String::from_utf8_lossy(value), out);
}

/// Writes a text as a JSON string.
pub fn write_text(text: &str, out: &mut Vec<u8>) {
    serde_json::to_writer(out, text).expect("a text always serializes, and a Vec takes any bytes");
}

/// Whether the text of a value is JSON on one line with the same meaning.
fn is_json_of(kind: ColumnKind, value: &[u8]) -> bool {
    match kind {
        ColumnKind::Boolean | ColumnKind::Integer | ColumnKind::Float | ColumnKind::Numeric => {
            serde_json::from_slice::<&RawValue>(value).is_ok()
        }
        ColumnKind::Json | ColumnKind::Timestamp | ColumnKind::Text => false,
    }
}

impl Change {
    /// The change as one line of a recording, without the line break. `value` writes the value of a
    /// column, or returns false to omit it.
    pub fn to_line(
        &self,
        commit: &Commit,
        xid: Option<super::Xid>,
        mut value: impl FnMut(&Relation, usize, &Cell, &mut Vec<u8>) -> bool,
    ) -> Vec<u8> {
        let mut line = Vec::with_capacity(256);
        line.push(b'{');
        if commit.lsn != super::Lsn::ZERO {
            line.extend_from_slice(format!("\"lsn\":\"{}\",", commit.lsn).as_bytes());
        }
        if let Some(xid) = xid {
            line.extend_from_slice(format!("\"xid\":{xid},").as_bytes());
        }
        if let Some(at) = commit.at {
            line.extend_from_slice(format!("\"at\":\"{}\",", humantime::format_rfc3339_micros(at)).as_bytes());
        }
        line.extend_from_slice(b"\"table\":");
        write_text(&self.relation.name.to_string(), &mut line);
        line.extend_from_slice(format!(",\"op\":\"{}\"", self.operation.word()).as_bytes());
        for (name, row) in [("old", &self.old), ("new", &self.new)] {
            if let Some(row) = row {
                line.extend_from_slice(format!(",\"{name}\":").as_bytes());
                write_row(&self.relation, row, &mut value, &mut line);
            }
        }
        line.push(b'}');
        line
    }
}

fn write_row(
    relation: &Relation,
    row: &Row,
    value: &mut impl FnMut(&Relation, usize, &Cell, &mut Vec<u8>) -> bool,
    line: &mut Vec<u8>,
) {
    line.push(b'{');
    let mut first = true;
    for (at, column) in relation.columns.iter().enumerate() {
        let cell = row.cell(at);
        if *cell == Cell::Absent {
            continue;
        }
        let before = line.len();
        if !first {
            line.push(b',');
        }
        write_text(&column.name, line);
        line.push(b':');
        if value(relation, at, cell, line) {
            first = false;
        } else {
            line.truncate(before);
        }
    }
    line.push(b'}');
}

/// Writes a column's value as it is.
pub fn plainly(relation: &Relation, at: usize, cell: &Cell, out: &mut Vec<u8>) -> bool {
    write_column(cell, relation.columns.get(at).map_or(ColumnKind::Text, |column| column.kind), out);
    true
}

/// Writes a value so that reading the line gives the same value: JSON becomes a string if it would
/// be read differently (null as NULL, a string as its content, surrounding blanks not at all) or if
/// it has a line break.
pub fn write_column(cell: &Cell, kind: ColumnKind, out: &mut Vec<u8>) {
    let is_ambiguous = |json: &[u8]| {
        let is_broken = json.contains(&b'\n') || json.contains(&b'\r');
        json == b"null" || json.starts_with(b"\"") || json.trim_ascii().len() != json.len() || is_broken
    };
    match cell {
        Cell::Value(value) if kind == ColumnKind::Json && is_ambiguous(value) => {
            write_text(&String::from_utf8_lossy(value), out);
        }
        cell => write_value(cell, kind, out),
    }
}
