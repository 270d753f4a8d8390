//! The rows of a test, as PostgreSQL would have and log them.
//!
//! Owns what a test's values mean as rows. Invariants: a column that a test does not name is NULL
//! if the table is known; the log carries of the old row what the replica identity carries.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::to_raw_value;

use crate::catalog::{Identity, Table};
use crate::change::{Cell, Change, Column, Operation, Relation, Row, TableName};
use crate::config::RawTest;
use crate::config::test::RawRow;
use crate::source::images::{Images, JsonImage};

/// A change of which the log does not carry the whole old row.
#[derive(Debug)]
pub(super) struct Carried {
    pub(super) change: Change,
    /// The columns whose old value it carries.
    pub(super) columns: Vec<String>,
    /// The columns whose old value it does not carry.
    pub(super) lacking: Vec<String>,
}

/// The change as the test writes it, with only the columns that it names.
pub(super) fn seen(test: &RawTest, name: TableName) -> Change {
    let (row, changed) = (image(&[&test.row]), image(&[&test.row, &test.set]));
    let (old, new) = match test.operation {
        Operation::Insert | Operation::Event => (None, Some(&row)),
        Operation::Update => (Some(&row), Some(&changed)),
        Operation::Delete => (Some(&row), None),
        Operation::Truncate => (None, None),
    };
    Images::default().change(name, test.operation, old, new)
}

/// An image with the values of these rows. A later value replaces an earlier one of the same
/// column.
fn image(rows: &[&RawRow]) -> JsonImage {
    let mut image = JsonImage::new();
    for (name, value) in rows.iter().flat_map(|row| row.iter()) {
        image.insert(name.value.clone(), to_raw_value(value).expect("a JSON value always serializes"));
    }
    image
}

/// The change with every column of the table, in its order. A column that the test does not name is
/// NULL.
pub(super) fn complete(seen: &Change, table: &Table) -> Change {
    let position = |name: &str| seen.relation.columns.iter().position(|column| column.name == name);
    let positions: Vec<_> = table.columns.iter().map(|column| position(&column.name)).collect();
    let row = |row: &Row| {
        let cells = positions.iter().map(|position| match position.map(|at| row.cell(at)) {
            None | Some(Cell::Absent) => Cell::Null,
            Some(cell) => cell.clone(),
        });
        Row::new(cells.collect())
    };
    let columns =
        table.columns.iter().map(|column| Column { name: column.name.clone(), kind: column.kind, in_identity: true });
    let (id, name) = (seen.relation.id, seen.relation.name.clone());
    Change {
        relation: Arc::new(Relation { id, name, also: Vec::new(), columns: columns.collect() }),
        operation: seen.operation,
        old: seen.old.as_ref().map(row),
        new: seen.new.as_ref().map(row),
    }
}

/// A value as PostgreSQL writes it.
pub(super) fn cell(value: &Value) -> Cell {
    match value {
        Value::Null => Cell::Null,
        Value::String(text) => Cell::Value(Bytes::from(text.clone())),
        other => Cell::Value(Bytes::from(other.to_string())),
    }
}

/// The change as the log carries it: of the old row, what the identity carries. `None` if that is
/// everything.
pub(super) fn carried(full: &Change, identity: &Identity) -> Option<Carried> {
    let old = full.old.as_ref()?;
    let (mut columns, mut lacking, mut cells) = (Vec::new(), Vec::new(), Vec::new());
    for (column, cell) in full.relation.columns.iter().zip(old.cells()) {
        if identity.carries(&column.name) {
            columns.push(column.name.clone());
            cells.push(cell.clone());
            continue;
        }
        if *cell != Cell::Absent {
            lacking.push(column.name.clone());
        }
        cells.push(Cell::Absent);
    }
    if lacking.is_empty() {
        return None;
    }
    let change = Change { old: Some(Row::new(cells)), ..full.clone() };
    Some(Carried { change, columns, lacking })
}
