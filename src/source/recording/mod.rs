//! Recordings: changes as NDJSON, one change a line.
//!
//! Owns that format. It must not know rules. Invariant: a column that a line does not name is
//! unknown, never NULL; only `null` is NULL.

pub mod write;

use std::io::BufRead;
use std::time::SystemTime;

use serde::Deserialize;

use super::images::{Images, JsonImage};
use crate::change::{Change, Lsn, Operation, TableName};

/// The longest line that is read, in bytes.
pub const LINE_BYTES_MAX: u64 = 256 << 20;

/// One change, and the transaction that its line names.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// The end of the transaction's commit record, if the line has it.
    pub lsn: Option<Lsn>,
    /// When it committed, if the line has it.
    pub at: Option<SystemTime>,
    /// The change.
    pub change: Change,
    /// Whether it belongs to the same transaction as the line before.
    pub continues: bool,
}

/// Why a line is not a change.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The input could not be read.
    #[error("cannot read the recording")]
    Io(#[from] std::io::Error),
    /// A line is malformed.
    #[error("line {line}, column {column}: {message}")]
    Line {
        /// From 1.
        line: usize,
        /// From 1, in bytes.
        column: usize,
        /// What is wrong.
        message: String,
        /// The line.
        text: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    table: String,
    op: Operation,
    #[serde(default)]
    old: Option<JsonImage>,
    #[serde(default)]
    new: Option<JsonImage>,
    #[serde(default)]
    lsn: Option<String>,
    #[serde(default)]
    xid: Option<u32>,
    #[serde(default)]
    at: Option<String>,
}

/// Reads changes from text.
#[derive(Debug)]
pub struct Recording<R> {
    input: R,
    line: usize,
    images: Images,
    transaction: Option<(u32, Option<Lsn>)>,
}

impl<R: BufRead> Recording<R> {
    /// Reads from here on.
    pub fn new(input: R) -> Self {
        Self { input, line: 0, images: Images::default(), transaction: None }
    }

    fn read_line(&mut self) -> Result<Option<Vec<u8>>, RecordingError> {
        let mut text = Vec::new();
        loop {
            text.clear();
            self.line += 1;
            let mut limited = std::io::Read::take(&mut self.input, LINE_BYTES_MAX);
            if limited.read_until(b'\n', &mut text)? == 0 {
                return Ok(None);
            }
            if text.len() as u64 == LINE_BYTES_MAX && !text.ends_with(b"\n") {
                let message = format!("longer than {LINE_BYTES_MAX} bytes");
                return Err(RecordingError::Line { line: self.line, column: 1, message, text: String::new() });
            }
            if !text.trim_ascii().is_empty() {
                return Ok(Some(text));
            }
        }
    }

    fn parse(&mut self, text: &[u8]) -> Result<Recorded, (usize, String)> {
        let line: Line = serde_json::from_slice(text).map_err(|error| {
            let message = error.to_string();
            let end = message.rfind(" at line ").unwrap_or(message.len());
            (error.column(), message.get(..end).unwrap_or_default().to_owned())
        })?;
        let lsn = line.lsn.map(|lsn| lsn.parse::<Lsn>()).transpose().map_err(|error| (1, format!("`lsn`: {error}")))?;
        let expected = "`at`: expected a time such as `2026-11-20T12:00:03Z`";
        let at = line.at.map(|at| humantime::parse_rfc3339(&at)).transpose();
        let at = at.map_err(|error| (1, format!("{expected} ({error})")))?;
        check_images(line.op, line.old.is_some(), line.new.is_some()).map_err(|message| (1, message))?;
        let old = line.old.or_else(|| (line.op == Operation::Update).then(JsonImage::new));
        let name = subject(&line.table, line.op)?;
        let transaction = line.xid.map(|xid| (xid, lsn));
        let continues = transaction.is_some() && transaction == self.transaction;
        self.transaction = transaction;
        let change = self.images.change(name, line.op, old.as_ref(), line.new.as_ref());
        Ok(Recorded { lsn, at, change, continues })
    }
}

/// Which images each operation has.
fn check_images(operation: Operation, old: bool, new: bool) -> Result<(), String> {
    let word = operation.word();
    let (needs_old, needs_new) = match operation {
        Operation::Insert | Operation::Event => (Some(false), true),
        // An update may leave the old image out: then no old value is known.
        Operation::Update => (None, true),
        Operation::Delete => (Some(true), false),
        Operation::Truncate => (Some(false), false),
    };
    for (name, needed, there) in [("old", needs_old, old), ("new", Some(needs_new), new)] {
        match needed {
            Some(true) if !there => {
                return Err(format!("`op` is `{word}`, so `{name}` is expected: the row as an object"));
            }
            Some(false) if there => return Err(format!("`op` is `{word}`, so there can be no `{name}`")),
            _ => {}
        }
    }
    Ok(())
}

/// What a line is about: a table, or an event, whose name is one word whatever is in it.
fn subject(name: &str, operation: Operation) -> Result<TableName, (usize, String)> {
    let (table, expected) = match operation {
        Operation::Event => (TableName::new("", name), "an event; expected a name such as `product.updated`"),
        _ => (TableName::parse(name), "a table's name; expected `table` or `schema.table`"),
    };
    let dotted = operation != Operation::Event && table.table.contains('.');
    if table.table.is_empty() || dotted { Err((1, format!("`table` is not {expected}"))) } else { Ok(table) }
}

impl<R: BufRead> Iterator for Recording<R> {
    type Item = Result<Recorded, RecordingError>;

    fn next(&mut self) -> Option<Self::Item> {
        let text = match self.read_line() {
            Ok(text) => text?,
            Err(error) => return Some(Err(error)),
        };
        let parsed = self.parse(&text).map_err(|(column, message)| RecordingError::Line {
            line: self.line,
            column: column.max(1),
            message,
            text: String::from_utf8_lossy(text.trim_ascii_end()).into_owned(),
        });
        Some(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::change::Cell;

    fn read(text: &str) -> Vec<Result<Recorded, RecordingError>> {
        Recording::new(text.as_bytes()).collect()
    }

    #[test]
    fn columns_are_three_valued() {
        let line =
            r#"{"table":"users","op":"update","old":{"id":7},"new":{"id":7,"email":null,"bio":"a\u0000b","ok":true}}"#;
        let change = read(line).remove(0).unwrap().change;
        let names: Vec<_> = change.relation.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(names, ["id", "email", "bio", "ok"]);
        assert_eq!(change.old.unwrap().cells(), [Cell::of("7"), Cell::Absent, Cell::Absent, Cell::Absent]);
        assert_eq!(change.new.unwrap().cells(), [Cell::of("7"), Cell::Null, Cell::of("a\0b"), Cell::of("true")]);
    }

    #[test]
    fn numbers_keep_every_digit() {
        let line = r#"{"table":"t","op":"insert","new":{"n":123456789012345678901234567890.10}}"#;
        let change = read(line).remove(0).unwrap().change;
        assert_eq!(change.new.unwrap().cells(), [Cell::of("123456789012345678901234567890.10")]);
    }

    #[test]
    fn an_event_has_fields_and_a_time() {
        let line = r#"{"at":"2026-11-20T12:00:03.5Z","table":"product.updated","op":"event","new":{"id":7}}"#;
        let recorded = read(line).remove(0).unwrap();
        assert_eq!(recorded.at, Some(humantime::parse_rfc3339("2026-11-20T12:00:03.5Z").unwrap()));
        assert_eq!(recorded.change.relation.name, TableName::new("", "product.updated"));
        assert_eq!(recorded.change.new.unwrap().cells(), [Cell::of("7")]);
    }

    #[test]
    fn lines_of_one_transaction_belong_together() {
        let line = |xid: &str| format!(r#"{{"table":"t","op":"truncate"{xid}}}"#);
        let text = [line(r#","xid":1"#), line(r#","xid":1"#), String::new(), line(r#","xid":2"#), line(""), line("")]
            .join("\n");
        let continues: Vec<_> = read(&text).into_iter().map(|line| line.unwrap().continues).collect();
        assert_eq!(continues, [false, true, false, false, false]);
    }

    #[test]
    fn a_malformed_line_says_where_and_what() {
        let check = |text: &str, place: (usize, usize), expected: &str| {
            let error = read(text).into_iter().find_map(Result::err).unwrap();
            let RecordingError::Line { line, column, message, .. } = error else { panic!("{error}") };
            assert!((line, column) == place && message.contains(expected), "{text}: {line}:{column}: {message}");
        };
        check("\n{\"table\":}", (2, 10), "expected value");
        check("{}", (1, 2), "missing field `table`");
        check(r#"{"table":"t","op":"upsert"}"#, (1, 26), "expected one of `insert`");
        check(r#"{"table":"t","op":"delete"}"#, (1, 1), "`old` is expected");
        check(r#"{"table":"t","op":"update","old":{}}"#, (1, 1), "`new` is expected");
        check(r#"{"table":"t","op":"insert","new":{},"old":{}}"#, (1, 1), "no `old`");
        check(r#"{"table":"t","op":"truncate","lsn":"0-1"}"#, (1, 1), "0/16B3748");
        check(r#"{"table":"t","op":"truncate","at":"yesterday"}"#, (1, 1), "2026-11-20T12:00:03Z");
        check(r#"{"table":"a.b.c","op":"truncate"}"#, (1, 1), "schema.table");
        check(r#"{"table":"e","op":"event"}"#, (1, 1), "`new` is expected");
        check(r#"{"table":"e","op":"event","new":{},"old":{}}"#, (1, 1), "no `old`");
        check(r#"{"table":"","op":"event","new":{}}"#, (1, 1), "product.updated");
        check(r#"{"table":"t","op":"truncate","tabel":"t"}"#, (1, 36), "unknown field `tabel`");
        check(r#"{"table":"t","op":"truncate"} x"#, (1, 31), "trailing");
    }
}
