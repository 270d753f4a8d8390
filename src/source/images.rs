//! Rows that are written as JSON, read as images: what recordings and events are made of.
//!
//! Owns the descriptions of their tables, which no catalog gives: the columns that a row names, and
//! the kinds of its values. It must not know lines, transactions or rules. Invariants: a column
//! that an image does not name is unknown, never NULL; rows with the same columns share one
//! description; at most [`RELATIONS_MAX`] descriptions, and [`SHAPES_BYTES_MAX`] of
//! them, are remembered, under ids that no published
//! table has.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use indexmap::IndexMap;
use serde_json::value::RawValue;

use crate::change::{Cell, Change, Column, ColumnKind, Operation, Relation, RelationId, Row, TableName};
use crate::limits::SHAPES_BYTES_MAX;

/// The columns of one row, as they are written.
pub type JsonImage = IndexMap<String, Box<RawValue>>;

/// The most descriptions that are kept. All their ids lie below PostgreSQL's `FirstNormalObjectId`,
/// 16384, where only its own tables are, which are never published.
const RELATIONS_MAX: u32 = 4096;

/// The key of a description. An event may have the name of a table.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Described {
    event: bool,
    name: TableName,
    columns: Vec<Column>,
}

/// Reads rows, and keeps the descriptions of their tables.
#[derive(Debug, Default)]
pub struct Images {
    relations: HashMap<Described, Arc<Relation>>,
    /// What they take, about.
    bytes: usize,
}

impl Described {
    /// The approximate size, in bytes: the key and the description are two copies.
    fn bytes(&self) -> usize {
        let column = |column: &Column| column.name.len() + size_of::<Column>();
        2 * (self.name.table.len() + self.columns.iter().map(column).sum::<usize>())
    }
}

impl Images {
    /// The change that these images show.
    pub fn change(
        &mut self,
        name: TableName,
        operation: Operation,
        old: Option<&JsonImage>,
        new: Option<&JsonImage>,
    ) -> Change {
        let described = Described { event: operation == Operation::Event, name, columns: columns(old, new) };
        let relation = self.relation(described);
        let row = |image: &JsonImage| {
            let cell = |column: &Column| image.get(&column.name).map_or(Cell::Absent, |value| cell(value));
            Row::new(relation.columns.iter().map(cell).collect())
        };
        let (old, new) = (old.map(row), new.map(row));
        Change { relation, operation, old, new }
    }

    fn relation(&mut self, described: Described) -> Arc<Relation> {
        if let Some(relation) = self.relations.get(&described) {
            return Arc::clone(relation);
        }
        let bytes = described.bytes();
        let mut held = u32::try_from(self.relations.len()).unwrap_or(u32::MAX);
        if held >= RELATIONS_MAX || self.bytes + bytes > SHAPES_BYTES_MAX {
            // Code that remembers something by an id compares the description, too.
            self.relations.clear();
            (held, self.bytes) = (0, 0);
        }
        self.bytes += bytes;
        let (name, columns) = (described.name.clone(), described.columns.clone());
        let relation = Arc::new(Relation { id: RelationId::new(held + 1), name, also: Vec::new(), columns });
        self.relations.insert(described, Arc::clone(&relation));
        relation
    }
}

/// The columns that either image names, those of the new one first.
fn columns(old: Option<&JsonImage>, new: Option<&JsonImage>) -> Vec<Column> {
    let mut kinds: IndexMap<&str, Option<ColumnKind>> = IndexMap::new();
    for (name, value) in [new, old].into_iter().flatten().flatten() {
        let kind = kind(value.get());
        kinds.entry(name.as_str()).and_modify(|held| *held = common(*held, kind)).or_insert(kind);
    }
    let column = |(name, kind): (&str, Option<ColumnKind>)| Column {
        name: name.to_owned(),
        kind: kind.unwrap_or_default(),
        in_identity: true,
    };
    kinds.into_iter().map(column).collect()
}

/// The kind of a JSON value. Null may be of any.
fn kind(json: &str) -> Option<ColumnKind> {
    match json.as_bytes().first() {
        Some(b'n') | None => None,
        Some(b't' | b'f') => Some(ColumnKind::Boolean),
        Some(b'"') => Some(ColumnKind::Text),
        Some(b'{' | b'[') => Some(ColumnKind::Json),
        Some(_) if json.parse::<i64>().is_ok() => Some(ColumnKind::Integer),
        // As many digits as a double precision column writes: one that reads back as it was.
        Some(_) if json.parse::<f64>().is_ok_and(|value| value.to_string() == json) => Some(ColumnKind::Float),
        Some(_) => Some(ColumnKind::Numeric),
    }
}

/// A kind that fits both values of a column.
fn common(one: Option<ColumnKind>, other: Option<ColumnKind>) -> Option<ColumnKind> {
    match (one, other) {
        (None, kind) | (kind, None) => kind,
        (one, other) if one == other => one,
        (Some(ColumnKind::Integer | ColumnKind::Float), Some(ColumnKind::Integer | ColumnKind::Float)) => {
            Some(ColumnKind::Float)
        }
        (
            Some(ColumnKind::Integer | ColumnKind::Float | ColumnKind::Numeric),
            Some(ColumnKind::Integer | ColumnKind::Float | ColumnKind::Numeric),
        ) => Some(ColumnKind::Numeric),
        _ => Some(ColumnKind::Text),
    }
}

/// A JSON value as PostgreSQL's text: a string's content, anything else as it is written.
fn cell(value: &RawValue) -> Cell {
    match value.get() {
        "null" => Cell::Null,
        text if text.starts_with('"') => match serde_json::from_str::<String>(text) {
            Ok(content) => Cell::Value(Bytes::from(content)),
            // Half a surrogate pair is no text that PostgreSQL could hold. The value is unknown.
            Err(_) => Cell::Absent,
        },
        text => Cell::Value(Bytes::copy_from_slice(text.as_bytes())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(json: &str) -> JsonImage {
        serde_json::from_str(json).unwrap()
    }

    fn insert(images: &mut Images, table: &str, json: &str) -> Change {
        images.change(TableName::parse(table), Operation::Insert, None, Some(&image(json)))
    }

    #[test]
    fn a_value_tells_its_kind() {
        let check = |old: &str, new: &str, expected: ColumnKind| {
            let (old, new) = (image(&format!("{{\"a\":{old}}}")), image(&format!("{{\"a\":{new}}}")));
            let change = Images::default().change(TableName::parse("t"), Operation::Update, Some(&old), Some(&new));
            assert_eq!(change.relation.columns[0].kind, expected, "{old:?} {new:?}");
        };
        check("null", "null", ColumnKind::Text);
        check("null", "1", ColumnKind::Integer);
        check("1", "-9223372036854775808", ColumnKind::Integer);
        check("1", "9223372036854775808", ColumnKind::Numeric);
        check("1", "1.0", ColumnKind::Numeric);
        check("1", "1.5", ColumnKind::Float);
        check("0.30000000000000004", "0.1", ColumnKind::Float);
        check("0.300000000000000041", "0.1", ColumnKind::Numeric);
        check("true", "false", ColumnKind::Boolean);
        check("true", "null", ColumnKind::Boolean);
        check("[1]", "{\"x\":1}", ColumnKind::Json);
        check("\"a\"", "\"b\"", ColumnKind::Text);
        check("\"a\"", "1", ColumnKind::Text);
    }

    #[test]
    fn rows_that_look_alike_share_a_description() {
        let mut images = Images::default();
        let first = insert(&mut images, "t", r#"{"a":1,"b":"x"}"#).relation;
        let second = insert(&mut images, "t", r#"{"a":2,"b":"y"}"#).relation;
        assert!(Arc::ptr_eq(&first, &second));
        for other in [r#"{"a":1.5,"b":"x"}"#, r#"{"b":"x","a":1}"#, r#"{"a":1}"#] {
            let other = insert(&mut images, "t", other).relation;
            assert!(!Arc::ptr_eq(&first, &other) && first.id != other.id);
        }
        assert!(!Arc::ptr_eq(&first, &insert(&mut images, "u", r#"{"a":1,"b":"x"}"#).relation));
    }

    #[test]
    fn what_is_remembered_is_bounded_and_no_table_of_a_user_is_meant() {
        let mut images = Images::default();
        for n in 0..3 * RELATIONS_MAX {
            let relation = insert(&mut images, "t", &format!("{{\"c{n}\":1}}")).relation;
            assert!(relation.id.oid() < 16384 && relation.columns[0].name == format!("c{n}"));
        }
        assert!(images.relations.len() <= RELATIONS_MAX as usize);
    }

    #[test]
    fn an_event_is_a_change_with_its_fields() {
        let mut images = Images::default();
        let mut change = |operation, json: &str| {
            let image = serde_json::from_str(json).unwrap();
            images.change(TableName::new("", "product"), operation, None, Some(&image))
        };
        let event = change(Operation::Event, r#"{"id":7,"name":null}"#);
        assert_eq!((event.old, event.new.unwrap().cells()), (None, &[Cell::of("7"), Cell::Null][..]));
        let (table, event) = (change(Operation::Insert, "{}").relation, change(Operation::Event, "{}").relation);
        assert!(!Arc::ptr_eq(&table, &event), "an event may be called like a table");
    }

    #[test]
    fn the_memory_of_descriptions_is_bounded() {
        let mut images = Images::default();
        for n in 0..40 {
            let names: Vec<_> = (0..2000).map(|at| format!("\"a-long-name-of-a-column-{n}-{at}\":1")).collect();
            insert(&mut images, "t", &format!("{{{}}}", names.join(",")));
        }
        let held: usize = images.relations.keys().map(Described::bytes).sum();
        assert!(held == images.bytes && held <= SHAPES_BYTES_MAX && images.relations.len() < 40, "{held}");
    }

    #[test]
    fn what_is_no_text_is_unknown() {
        let change = insert(&mut Images::default(), "t", r#"{"a":"\ud800"}"#);
        assert_eq!(change.new.unwrap().cells(), [Cell::Absent]);
    }
}
