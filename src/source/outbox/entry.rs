//! One row of the outbox, read as a change.
//!
//! Owns the layout of an entry, and the shapes that say what its values are. It must not know when
//! an entry is taken or what becomes of it. Invariants: an entry that cannot be read is an error
//! that names it, never left out; a column that a shape does not have is unknown, never NULL.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use fallible_iterator::FallibleIterator as _;
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, Row as SqlRow};

use crate::change::{Cell, Change, Column, ColumnKind, Operation, Relation, RelationId, Row, TableName};
use crate::postgres::StatementError;
use crate::source::images::{Images, JsonImage};

/// The columns that [`Shapes::decode`] reads, in their order.
pub const ENTRY_COLUMNS: &str = "id, xid, at, op, shape, old, new";

/// PostgreSQL's `FirstNormalObjectId`: events have ids below it ([`Images`]), tables of the outbox
/// from here on.
const FIRST_ID: u32 = 16384;

/// One entry.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its number: entries of one transaction, and those of any two that touched the same row, are
    /// in its order.
    pub id: i64,
    /// The transaction that wrote it.
    pub xid: u64,
    /// When it was written, by the database server's clock: before its transaction was committed.
    pub at: SystemTime,
    /// What happened.
    pub event: EntryEvent,
}

/// What happened.
#[derive(Clone, Debug)]
pub enum EntryEvent {
    /// A change.
    Change(Change),
    /// An unknown change of a table: only the relation is known.
    Unknown(Change),
    /// The definition of something changed.
    Ddl,
}

/// Why the outbox cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    /// A statement failed.
    #[error("the outbox cannot be read")]
    Statement(#[source] StatementError),
    /// An entry that cannot be read.
    #[error(
        "entry {id} of unstale.outbox cannot be read: {reason}; delete it by hand, run `unstale setup`, and start \
         unstale with --flush"
    )]
    Entry {
        /// Its number.
        id: i64,
        /// What is wrong with it, without any value of a row.
        reason: String,
    },
    /// A position that cannot be read.
    #[error("PostgreSQL answered {0:?} where a position in its log was asked for")]
    Position(String),
}

impl From<tokio_postgres::Error> for OutboxError {
    fn from(error: tokio_postgres::Error) -> Self {
        Self::Statement(error.into())
    }
}

/// The shapes of entries: which values they have. Each is asked for when it is first needed.
#[derive(Debug, Default)]
pub struct Shapes {
    relations: HashMap<i32, Arc<Relation>>,
    images: Images,
}

impl Shapes {
    /// Decodes rows that have [`ENTRY_COLUMNS`]. Asks for shapes that are not known yet.
    pub async fn decode(&mut self, client: &Client, rows: &[SqlRow]) -> Result<Vec<Entry>, OutboxError> {
        let mut entries = Vec::with_capacity(rows.len());
        for row in rows {
            let shape: Option<i32> = row.try_get(4)?;
            if let Some(shape) = shape
                && !self.relations.contains_key(&shape)
            {
                self.ask(client, shape).await?;
            }
            entries.push(self.entry(row, shape)?);
        }
        Ok(entries)
    }

    async fn ask(&mut self, client: &Client, shape: i32) -> Result<(), OutboxError> {
        const SHAPE: &str = "select schema_name, table_name, columns, types from unstale.shape where id = $1";
        let Some(row) = client.query_opt(SHAPE, &[&shape]).await? else { return Ok(()) };
        let name = TableName::new(row.try_get::<_, String>(0)?, row.try_get::<_, String>(1)?);
        let (names, types): (Vec<String>, Vec<u32>) = (row.try_get(2)?, row.try_get(3)?);
        let kinds = types.into_iter().map(ColumnKind::of_type).chain(std::iter::repeat(ColumnKind::Text));
        let column = |(name, kind)| Column { name, kind, in_identity: true };
        let columns = names.into_iter().zip(kinds).map(column).collect();
        let id = RelationId::new(FIRST_ID.wrapping_add(shape.unsigned_abs()));
        self.relations.insert(shape, Arc::new(Relation { id, name, also: Vec::new(), columns }));
        Ok(())
    }

    fn entry(&mut self, row: &SqlRow, shape: Option<i32>) -> Result<Entry, OutboxError> {
        let id: i64 = row.try_get(0)?;
        let wrong = |reason: String| OutboxError::Entry { id, reason };
        let (FullXid(xid), at) = (row.try_get(1)?, row.try_get(2)?);
        let op: i8 = row.try_get(3)?;
        let (old, new): (Option<Values>, Option<Values>) = (row.try_get(5)?, row.try_get(6)?);
        if op.cast_unsigned() == b'e' {
            return Ok(Entry { id, xid, at, event: EntryEvent::Change(self.event(new)) });
        }
        if op.cast_unsigned() == b'c' {
            return Ok(Entry { id, xid, at, event: EntryEvent::Ddl });
        }
        let relation = shape.and_then(|shape| self.relations.get(&shape));
        let relation =
            Arc::clone(relation.ok_or_else(|| wrong("unstale.shape does not say of which table".to_owned()))?);
        let operation = match op.cast_unsigned() {
            b'i' => Operation::Insert,
            b'u' => Operation::Update,
            b'd' => Operation::Delete,
            b't' | b'r' => Operation::Truncate,
            other => return Err(wrong(format!("there is no operation {:?}", char::from(other)))),
        };
        let image = |values: Option<Values>| values.map(|Values(cells)| Row::new(cells));
        let change = Change { relation, operation, old: image(old), new: image(new) };
        let event = if op.cast_unsigned() == b'r' { EntryEvent::Unknown(change) } else { EntryEvent::Change(change) };
        Ok(Entry { id, xid, at, event })
    }

    /// If a payload cannot be read, every field of it is unknown. Events in a database without an
    /// encoding may not be UTF-8.
    fn event(&mut self, values: Option<Values>) -> Change {
        let cells = values.map(|Values(cells)| cells).unwrap_or_default();
        let bytes = |at: usize| match cells.get(at) {
            Some(Cell::Value(bytes)) => bytes.clone(),
            _ => Bytes::new(),
        };
        let name = String::from_utf8_lossy(&bytes(0)).into_owned();
        let payload = String::from_utf8(bytes(1).to_vec()).unwrap_or_default();
        self.images.event(&name, &payload).unwrap_or_else(|_| {
            self.images.change(TableName::new("", name.as_str()), Operation::Event, None, Some(&JsonImage::new()))
        })
    }
}

/// A `text[]`, whatever bytes its elements are: in an SQL_ASCII database they need not be UTF-8.
struct Values(Vec<Cell>);

impl<'a> FromSql<'a> for Values {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let values = postgres_protocol::types::array_from_sql(raw)?.values();
        let cell =
            |value: Option<&[u8]>| Ok(value.map_or(Cell::Null, |value| Cell::Value(Bytes::copy_from_slice(value))));
        Ok(Self(values.map(cell).collect()?))
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT_ARRAY
    }
}

/// An `xid8`.
pub(super) struct FullXid(pub(super) u64);

impl<'a> FromSql<'a> for FullXid {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        Ok(Self(postgres_protocol::types::int8_from_sql(raw)?.cast_unsigned()))
    }

    fn accepts(ty: &Type) -> bool {
        ty.name() == "xid8"
    }
}
