//! Changes written as the lines of a recording, a transaction at a time.
//!
//! Owns how a line shows a value, and which values it hides. It must not know where lines go.
//! Invariants: a line that is read back makes the plan of the change; a redacted value is in no
//! image, and two images still show whether it changed; a transaction's lines begin with its end,
//! which is known only after them.

use std::collections::{HashMap, HashSet};
use std::io::{self, BufRead as _, BufReader, Seek as _, Write};

use sha2::{Digest as _, Sha256};
use tempfile::SpooledTempFile;

use crate::change::{Begin, Cell, Change, Commit, Lsn, TableName, json};

/// How much of a transaction is kept in memory until its end is known, in bytes. The rest waits in
/// a file.
const SPOOL_BYTES_MAX: usize = 8 << 20;

/// The columns whose values are not written.
#[derive(Debug, Default)]
pub struct Redaction {
    columns: HashMap<TableName, HashSet<String>>,
    /// Random in each run, so that a value cannot be found by trying all of them.
    salt: [u8; 16],
}

impl Redaction {
    /// Nothing is redacted, until columns are added.
    pub fn new(salt: [u8; 16]) -> Self {
        Self { columns: HashMap::new(), salt }
    }

    /// The values of this column are not written.
    pub fn add(&mut self, table: TableName, column: impl Into<String>) {
        self.columns.entry(table).or_default().insert(column.into());
    }

    /// What stands for a value. Equal values have the same.
    fn stand_in(&self, value: &[u8]) -> String {
        let digest = Sha256::new().chain_update(self.salt).chain_update(value).finalize();
        let mut text = "[redacted:".to_owned();
        for byte in digest.iter().take(4) {
            text.push_str(&format!("{byte:02x}"));
        }
        text.push(']');
        text
    }
}

/// The lines of a transaction that is not complete.
#[derive(Debug)]
pub struct RecordedTransaction {
    begin: Begin,
    spool: SpooledTempFile,
    lines: u64,
}

impl RecordedTransaction {
    /// A transaction without changes.
    pub fn new(begin: Begin) -> Self {
        Self { begin, spool: SpooledTempFile::new(SPOOL_BYTES_MAX), lines: 0 }
    }

    /// The number of its changes.
    pub fn lines(&self) -> u64 {
        self.lines
    }

    /// Adds a change. Returns whether every value could be written as it is.
    pub fn push(&mut self, change: &Change, redaction: &Redaction) -> io::Result<bool> {
        let hidden = redaction.columns.get(&change.relation.name);
        let mut exact = true;
        // Where the transaction ends is not known yet. `commit` puts that in front of the line.
        let commit = Commit { lsn: Lsn::ZERO, at: Some(self.begin.at) };
        let mut line = change.to_line(&commit, Some(self.begin.xid), |relation, at, cell, out| {
            let Some(column) = relation.columns.get(at) else { return false };
            match cell {
                Cell::Value(value) if hidden.is_some_and(|columns| columns.contains(&column.name)) => {
                    json::write_text(&redaction.stand_in(value), out);
                }
                cell => json::write_column(cell, column.kind, out),
            }
            exact &= !matches!(cell, Cell::Value(value) if std::str::from_utf8(value).is_err());
            true
        });
        line.push(b'\n');
        self.lines += 1;
        self.spool.write_all(&line)?;
        Ok(exact)
    }

    /// Writes the lines of the transaction, which ends at `end_lsn`. Returns their length in bytes.
    pub fn commit(self, end_lsn: Lsn, out: &mut impl Write) -> io::Result<u64> {
        let mut spool = self.spool;
        spool.rewind()?;
        let mut lines = BufReader::new(spool);
        let beginning = format!("{{\"lsn\":\"{end_lsn}\",");
        let (mut line, mut written) = (Vec::new(), 0);
        loop {
            line.clear();
            if lines.read_until(b'\n', &mut line)? == 0 {
                return Ok(written);
            }
            let rest = line.strip_prefix(b"{").unwrap_or(&line);
            out.write_all(beginning.as_bytes())?;
            out.write_all(rest)?;
            written += beginning.len() as u64 + rest.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::change::{Column, ColumnKind, Operation, Relation, RelationId, Row, Xid};
    use crate::config::Document;
    use crate::plan::Plan;
    use crate::rules::{Planner, RuleSet};
    use crate::source::recording::{Recorded, Recording};

    fn begin() -> Begin {
        let at = SystemTime::UNIX_EPOCH + Duration::new(1_795_176_003, 250_000);
        Begin { xid: Xid::new(771), commit_lsn: Lsn::new(7), at }
    }

    fn change(
        columns: &[(&str, ColumnKind)],
        operation: Operation,
        old: Option<Vec<Cell>>,
        new: Option<Vec<Cell>>,
    ) -> Change {
        let column = |&(name, kind): &(&str, ColumnKind)| Column { name: name.to_owned(), kind, in_identity: true };
        let columns = columns.iter().map(column).collect();
        let relation =
            Relation { id: RelationId::new(20_000), name: TableName::new("public", "t"), also: Vec::new(), columns };
        Change { relation: Arc::new(relation), operation, old: old.map(Row::new), new: new.map(Row::new) }
    }

    fn written(changes: &[Change], redaction: &Redaction) -> (String, bool) {
        let mut transaction = RecordedTransaction::new(begin());
        let exact: Vec<_> = changes.iter().map(|change| transaction.push(change, redaction).unwrap()).collect();
        let mut text = Vec::new();
        let bytes = transaction.commit(Lsn::new(0x16B_3748), &mut text).unwrap();
        assert_eq!(bytes, text.len() as u64);
        (String::from_utf8(text).unwrap(), exact.iter().all(|&exact| exact))
    }

    fn read(text: &str) -> Vec<Recorded> {
        Recording::new(text.as_bytes()).map(Result::unwrap).collect()
    }

    const COLUMNS: [(&str, ColumnKind); 7] = [
        ("id", ColumnKind::Integer),
        ("ok", ColumnKind::Boolean),
        ("f", ColumnKind::Float),
        ("n", ColumnKind::Numeric),
        ("j", ColumnKind::Json),
        ("at", ColumnKind::Timestamp),
        ("x", ColumnKind::Text),
    ];

    fn row(cells: [&'static str; 7]) -> Option<Vec<Cell>> {
        Some(cells.into_iter().map(Cell::of).collect())
    }

    #[test]
    fn a_line_reads_as_the_design_says() {
        let full = row(["7", "true", "1.5", "12.50", r#"{"a": [1]}"#, "2026-11-20 12:00:03+00", "a\n\"b\""]);
        let insert = change(&COLUMNS, Operation::Insert, None, full);
        let expected = concat!(
            r#"{"lsn":"0/16B3748","xid":771,"at":"2026-11-20T12:00:03.000250Z","table":"public.t","op":"insert","#,
            r#""new":{"id":7,"ok":true,"f":1.5,"n":12.50,"j":{"a": [1]},"at":"2026-11-20 12:00:03+00","x":"a\n\"b\""}}"#,
            "\n"
        );
        assert_eq!(written(&[insert], &Redaction::default()), (expected.to_owned(), true));
        let partly = vec![Cell::of("7"), Cell::Null, Cell::of("NaN"), Cell::of("NaN"), Cell::Absent, Cell::Absent];
        let delete = change(&COLUMNS, Operation::Delete, Some(partly), None);
        let (text, _) = written(&[delete], &Redaction::default());
        assert!(
            text.ends_with("\"op\":\"delete\",\"old\":{\"id\":7,\"ok\":null,\"f\":\"NaN\",\"n\":\"NaN\"}}\n"),
            "{text}"
        );
    }

    #[test]
    fn what_is_written_is_read_back() {
        let json = ["{\"a\":\n1}", "null", "\"text\"", " [1] ", "[1]", "true", "-0.10", "no json", "{}", ""];
        for json in json {
            let new = row(["-9223372036854775808", "false", "-Infinity", "1e400", json, "infinity", "\u{1}\u{7f}ü🦀"]);
            let old = Some([vec![Cell::Absent, Cell::Null], vec![Cell::Absent; 5]].concat());
            let update = change(&COLUMNS, Operation::Update, old, new);
            let (text, exact) = written(std::slice::from_ref(&update), &Redaction::default());
            assert!(exact && text.lines().count() == 1, "{text}");
            let Recorded { lsn, at, change: back, continues } = read(&text).remove(0);
            assert_eq!((lsn, at, continues), (Some(Lsn::new(0x16B_3748)), Some(begin().at), false));
            assert_eq!(back.relation.name, update.relation.name);
            assert_eq!(back.operation, update.operation);
            for (position, column) in update.relation.columns.iter().enumerate() {
                let find = |row: &Option<Row>| {
                    let at = back.relation.columns.iter().position(|known| known.name == column.name);
                    at.map_or(Cell::Absent, |at| row.as_ref().unwrap().cell(at).clone())
                };
                assert_eq!(find(&back.new), *update.new.as_ref().unwrap().cell(position), "{text}");
                assert_eq!(find(&back.old), *update.old.as_ref().unwrap().cell(position), "{text}");
            }
        }
    }

    #[test]
    fn a_line_makes_the_same_plan_as_the_change() {
        let rules = "version: 1
rules:
  all: {table: t, changed: [x, n], delete: ['a:{id}:{x}', 'b:{j}', 'c:{old.n}:{f}', 'd:{ok}'], bump: 'v:{at}'}
  dear: {table: t, when: 'new.id > 5 && new.ok', delete: 'dear:{id}', publish: {channel: c, data: {n: '{n}'}}}
  kept: {table: t, set: {key: 's:{id}', columns: [id, ok, x]}}
";
        let document = Document::parse(rules, &|_| None).unwrap();
        let rules = RuleSet::compile(document.rules, document.lookups, &document.settings).unwrap();
        let mut planner = Planner::new(Arc::new(rules));
        let mut planned = |change: &Change| {
            let (mut plan, commit) = (Plan::default(), Commit { lsn: Lsn::new(0x16B_3748), at: Some(begin().at) });
            planner.plan(change, &commit, &mut plan).unwrap();
            let op = |op: crate::plan::Op<'_>| format!("{op} {:?}", op.data().map(String::from_utf8_lossy));
            plan.ops().map(|(rule, of_rule)| (rule, op(of_rule))).collect::<Vec<_>>()
        };
        let new = || row(["7", "true", "0.1", "1.10", "{\"a\": 1}", "2026-11-20 12:00:03", "x"]);
        let old = || row(["6", "false", "NaN", "1.1", "null", "-infinity", "y"]);
        let key = || Some([vec![Cell::of("7")], vec![Cell::Absent; 6]].concat());
        let changes = [
            change(&COLUMNS, Operation::Insert, None, new()),
            change(&COLUMNS, Operation::Update, old(), new()),
            change(&COLUMNS, Operation::Update, key(), new()),
            change(&COLUMNS, Operation::Delete, old(), None),
            change(&COLUMNS, Operation::Delete, key(), None),
            change(&COLUMNS, Operation::Truncate, None, None),
        ];
        let (text, _) = written(&changes, &Redaction::default());
        for (change, back) in changes.iter().zip(read(&text)) {
            let expected = planned(change);
            assert!(!expected.is_empty());
            assert_eq!(planned(&back.change), expected, "{change:?}");
        }
    }

    #[test]
    fn a_redacted_value_shows_only_whether_it_changed() {
        let mut redaction = Redaction::new([7; 16]);
        redaction.add(TableName::new("public", "t"), "b");
        redaction.add(TableName::new("public", "other"), "a");
        let columns = [("a", ColumnKind::Text), ("b", ColumnKind::Integer)];
        let update = |old: &'static str, new: Cell| {
            let (old, new) = (vec![Cell::of("plain"), Cell::of(old)], vec![Cell::of("plain"), new]);
            change(&columns, Operation::Update, Some(old), Some(new))
        };
        let changes = [update("4711", Cell::of("4711")), update("4711", Cell::of("4712")), update("4711", Cell::Null)];
        let (text, _) = written(&changes, &redaction);
        assert!(!text.contains("4711") && text.contains("plain"), "{text}");
        let images: Vec<_> = read(&text)
            .into_iter()
            .map(|recorded| {
                (recorded.change.old.unwrap().cell(1).clone(), recorded.change.new.unwrap().cell(1).clone())
            })
            .collect();
        assert_eq!(images[0].0, images[0].1);
        assert_eq!(images[0].0, images[1].0);
        assert_ne!(images[1].0, images[1].1);
        assert_eq!(images[2].1, Cell::Null);
        let other = Redaction { salt: [8; 16], ..Redaction::default() };
        assert_ne!(redaction.stand_in(b"4711"), other.stand_in(b"4711"));
        assert_eq!(redaction.stand_in(b"4711").len(), "[redacted:01234567]".len());
    }

    #[test]
    fn bytes_that_are_no_text_are_told() {
        let bytes = Cell::Value(bytes::Bytes::from_static(b"a\xffb"));
        let insert = change(&[("x", ColumnKind::Text)], Operation::Insert, None, Some(vec![bytes]));
        let (text, exact) = written(&[insert], &Redaction::default());
        assert!(!exact && text.contains("a\u{fffd}b"), "{text}");
    }

    #[test]
    fn a_large_transaction_waits_in_a_file() {
        let long = Cell::Value(bytes::Bytes::from("x".repeat(1 << 20)));
        let insert = change(&[("x", ColumnKind::Text)], Operation::Insert, None, Some(vec![long]));
        let mut transaction = RecordedTransaction::new(begin());
        for _ in 0..20 {
            transaction.push(&insert, &Redaction::default()).unwrap();
        }
        assert!(transaction.spool.is_rolled());
        assert_eq!(transaction.lines(), 20);
        let mut text = Vec::new();
        transaction.commit(Lsn::new(9), &mut text).unwrap();
        let recorded = read(std::str::from_utf8(&text).unwrap());
        assert!(recorded.len() == 20 && recorded.iter().skip(1).all(|recorded| recorded.continues));
    }
}
