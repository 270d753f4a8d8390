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
use crate::limits::{ENTRY_VALUE_BYTES_MAX, SHAPES_BYTES_MAX};
use crate::postgres::lossy_text::LossyText;
use crate::postgres::{StatementError, session};
use crate::source::events::{EventReader, WantedEvents};

/// The columns that [`Shapes::decode`] reads, in their order.
pub const ENTRY_COLUMNS: &str = "id, xid, at, op, shape, old, new";

/// PostgreSQL's `FirstNormalObjectId`: events have ids below it, tables of the outbox
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
    /// A change of a row or a table.
    Change(Change),
    /// The same, and some value was too long to be taken.
    TooLong(Change),
    /// The event that an application emitted: nothing if no rule has it, several if its name is not
    /// known.
    Events(Vec<Change>),
    /// An unknown change of a table: only the relation is known.
    Unknown(Change),
    /// The definition of something changed.
    Ddl,
}

impl EntryEvent {
    /// The changes whose operation and images are known.
    pub fn changes(&self) -> &[Change] {
        match self {
            Self::Change(change) | Self::TooLong(change) => std::slice::from_ref(change),
            Self::Events(changes) => changes,
            Self::Unknown(_) | Self::Ddl => &[],
        }
    }

    /// The change that it is about, if there is one. Unless events are left out, there is one of
    /// each.
    pub fn into_change(self) -> Option<Change> {
        match self {
            Self::Change(change) | Self::TooLong(change) | Self::Unknown(change) => Some(change),
            Self::Events(changes) => changes.into_iter().next(),
            Self::Ddl => None,
        }
    }
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
    /// What they take, about.
    bytes: usize,
    events: EventReader,
    /// Values come in the encoding of the database, so those that are not ASCII are not known.
    is_raw: bool,
}

impl Shapes {
    /// No shape is known yet. `is_raw`: the connection does not convert what it sends.
    pub fn new(wanted: WantedEvents, is_raw: bool) -> Self {
        Self { events: EventReader::new(wanted), is_raw, ..Self::default() }
    }

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
        if !self.is_raw {
            return self.ask_converted(client, shape).await;
        }
        // Names must be those of the rules.
        client.batch_execute("set client_encoding = 'UTF8'").await?;
        self.ask_converted(client, shape).await?;
        Ok(client.batch_execute(session::AS_STORED).await?)
    }

    async fn ask_converted(&mut self, client: &Client, shape: i32) -> Result<(), OutboxError> {
        const SHAPE: &str = "select schema_name, table_name, columns, types from unstale.shape where id = $1";
        let Some(row) = client.query_opt(SHAPE, &[&shape]).await? else { return Ok(()) };
        let [LossyText(schema), LossyText(table)] = [row.try_get(0)?, row.try_get(1)?];
        let name = TableName::new(schema, table);
        let (names, types): (Vec<LossyText>, Vec<u32>) = (row.try_get(2)?, row.try_get(3)?);
        let kinds = types.into_iter().map(ColumnKind::of_type).chain(std::iter::repeat(ColumnKind::Text));
        let column = |(LossyText(name), kind)| Column { name, kind, in_identity: true };
        let columns: Vec<_> = names.into_iter().zip(kinds).map(column).collect();
        let bytes: usize = columns.iter().map(|column| column.name.len() + size_of::<Column>()).sum();
        if self.bytes + bytes > SHAPES_BYTES_MAX {
            self.relations.clear();
            self.bytes = 0;
        }
        self.bytes += bytes;
        let id = RelationId::new(FIRST_ID.wrapping_add(shape.unsigned_abs()));
        self.relations.insert(shape, Arc::new(Relation { id, name, also: Vec::new(), columns }));
        Ok(())
    }

    fn entry(&mut self, row: &SqlRow, shape: Option<i32>) -> Result<Entry, OutboxError> {
        let id: i64 = row.try_get(0)?;
        let wrong = |reason: String| OutboxError::Entry { id, reason };
        let (FullXid(xid), at) = (row.try_get(1)?, row.try_get(2)?);
        let op: i8 = row.try_get(3)?;
        if op.cast_unsigned() == b'e' {
            let EventTexts { name, payload } = row.try_get::<_, Option<EventTexts<'_>>>(6)?.unwrap_or_default();
            let changes = self.events.in_outbox(name, payload, self.is_raw);
            return Ok(Entry { id, xid, at, event: EntryEvent::Events(changes) });
        }
        if op.cast_unsigned() == b'c' {
            return Ok(Entry { id, xid, at, event: EntryEvent::Ddl });
        }
        let (old, new): (Option<Values>, Option<Values>) = (row.try_get(5)?, row.try_get(6)?);
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
        let is_raw = self.is_raw;
        let is_too_long = [&old, &new].into_iter().flatten().any(|values| values.is_too_long);
        let image = |values: Option<Values>| values.map(|values| Row::new(known(values.cells, is_raw)));
        let change = Change { relation, operation, old: image(old), new: image(new) };
        let event = match op.cast_unsigned() {
            b'r' => EntryEvent::Unknown(change),
            _ if is_too_long => EntryEvent::TooLong(change),
            _ => EntryEvent::Change(change),
        };
        Ok(Entry { id, xid, at, event })
    }
}

/// In the encoding of the database, values that are not ASCII are not known.
fn known(mut cells: Vec<Cell>, is_raw: bool) -> Vec<Cell> {
    for cell in cells.iter_mut().filter(|_| is_raw) {
        if matches!(cell, Cell::Value(value) if !value.is_ascii()) {
            *cell = Cell::Absent;
        }
    }
    cells
}

/// The name and the payload of an event. A payload that was too long was not fetched.
#[derive(Default)]
struct EventTexts<'a> {
    name: &'a [u8],
    payload: Option<&'a [u8]>,
}

impl<'a> FromSql<'a> for EventTexts<'a> {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let mut values = postgres_protocol::types::array_from_sql(raw)?.values();
        let name = values.next()?.flatten().unwrap_or_default();
        Ok(Self { name, payload: values.next()?.flatten() })
    }

    fn accepts(ty: &Type) -> bool {
        *ty == Type::TEXT_ARRAY
    }
}

/// A `text[]`, whatever bytes its elements are: in an SQL_ASCII database they need not be UTF-8. An
/// element that is too long is not known, and not copied.
struct Values {
    cells: Vec<Cell>,
    is_too_long: bool,
}

impl<'a> FromSql<'a> for Values {
    fn from_sql(_: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        let values = postgres_protocol::types::array_from_sql(raw)?.values();
        let mut is_too_long = false;
        let cell = |value: Option<&[u8]>| {
            Ok(match value {
                None => Cell::Null,
                Some(value) if value.len() > ENTRY_VALUE_BYTES_MAX => {
                    is_too_long = true;
                    Cell::Absent
                }
                Some(value) => Cell::Value(Bytes::copy_from_slice(value)),
            })
        };
        let cells = values.map(cell).collect()?;
        Ok(Self { cells, is_too_long })
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
