//! The vocabulary of what happened in PostgreSQL: positions, relations, rows, changes.
//!
//! Owns the types that every source produces and every rule reads. It must not know where a change
//! comes from or what follows from it. Invariant: a column is *three-valued* ([`Cell`]); a value
//! that is not known never becomes NULL.

pub mod json;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;

/// A position in PostgreSQL's write-ahead log, in bytes from its beginning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Lsn(u64);

impl Lsn {
    /// Position 0/0, which PostgreSQL itself uses for "no position".
    pub const ZERO: Self = Self(0);

    /// The position `offset` bytes from the beginning of the log.
    pub const fn new(offset: u64) -> Self {
        Self(offset)
    }

    /// Bytes from the beginning of the log.
    pub const fn offset(self) -> u64 {
        self.0
    }

    /// The smallest position past this one: enough to order "after the record that starts here"
    /// before the end of that record is known.
    pub const fn just_after(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The largest position before this one.
    pub const fn just_before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The last position at or before this one at which a record can end. Records are aligned to
    /// eight bytes, and a version key may have a position in between.
    pub const fn record_boundary(self) -> Self {
        Self(self.0 & !7)
    }

    /// Sixteen hexadecimal digits. As strings these sort like the positions do, which is how Lua
    /// scripts compare them: a Lua number loses exactness above 2^53.
    pub fn to_fixed_hex(self) -> String {
        format!("{:016X}", self.0)
    }

    /// Reads what [`Lsn::to_fixed_hex`] wrote.
    pub fn from_fixed_hex(text: &str) -> Option<Self> {
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Why a text is not an [`Lsn`].
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("expected an LSN such as `0/16B3748` (two hexadecimal numbers of at most 8 digits)")]
pub struct InvalidLsn;

impl FromStr for Lsn {
    type Err = InvalidLsn;

    fn from_str(text: &str) -> Result<Self, InvalidLsn> {
        let half = |digits: &str| {
            let plain = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
            if digits.is_empty() || digits.len() > 8 || !plain {
                return Err(InvalidLsn);
            }
            u64::from_str_radix(digits, 16).map_err(|_| InvalidLsn)
        };
        let (high, low) = text.split_once('/').ok_or(InvalidLsn)?;
        Ok(Self(half(high)? << 32 | half(low)?))
    }
}

/// A 32-bit transaction id, as pgoutput sends it. It wraps around.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Xid(u32);

impl Xid {
    /// The id with this number.
    pub const fn new(number: u32) -> Self {
        Self(number)
    }

    /// The number itself.
    pub const fn number(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Xid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The OID of a table in the source database. A rename leaves it; a dropped table's is never
/// mistaken for another's within one stream, because the relation is described again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct RelationId(u32);

impl RelationId {
    /// The relation with this OID.
    pub const fn new(oid: u32) -> Self {
        Self(oid)
    }

    /// The OID itself.
    pub const fn oid(self) -> u32 {
        self.0
    }
}

/// A table's name. An empty schema means that the source did not say (a hand-written recording).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct TableName {
    /// The schema, or nothing when the source did not say.
    pub schema: String,
    /// The table's own name, unquoted.
    pub table: String,
}

impl TableName {
    /// A name from its two parts.
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self { schema: schema.into(), table: table.into() }
    }

    /// Splits `schema.table`; a bare `table` has no schema.
    pub fn parse(text: &str) -> Self {
        match text.split_once('.') {
            Some((schema, table)) => Self::new(schema, table),
            None => Self::new("", text),
        }
    }
}

impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.schema.as_str() {
            "" => f.write_str(&self.table),
            schema => write!(f, "{schema}.{}", self.table),
        }
    }
}

/// One column of one row.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Cell {
    /// A value, in PostgreSQL's text format; a boolean reads `true` or `false`, as `::text` gives
    /// it.
    Value(Bytes),
    /// SQL NULL.
    Null,
    /// Not known: not in the replica identity, or an unchanged TOAST value.
    Absent,
}

impl Cell {
    /// A value from bytes that live as long as the program; for tests and constants.
    pub const fn of(text: &'static str) -> Self {
        Self::Value(Bytes::from_static(text.as_bytes()))
    }
}

/// The columns of one row, in the order of its [`Relation`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Row(Vec<Cell>);

impl Row {
    /// A row of these columns.
    pub fn new(cells: Vec<Cell>) -> Self {
        Self(cells)
    }

    /// The column at `position`; one that the row does not have is [`Cell::Absent`].
    pub fn cell(&self, position: usize) -> &Cell {
        self.0.get(position).unwrap_or(&Cell::Absent)
    }

    /// All columns, in order.
    pub fn cells(&self) -> &[Cell] {
        &self.0
    }

    /// The same, to complete in place.
    pub fn cells_mut(&mut self) -> &mut [Cell] {
        &mut self.0
    }
}

/// The type of a column's values, as far as conditions and JSON distinguish it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ColumnKind {
    /// `true` or `false`.
    Boolean,
    /// A whole number of at most 64 bits.
    Integer,
    /// A floating-point number; may read `NaN` or `Infinity`.
    Float,
    /// A decimal number of any length; may read `NaN`.
    Numeric,
    /// JSON.
    Json,
    /// A moment; without a time zone it counts as UTC.
    Timestamp,
    /// Anything else, as PostgreSQL writes it.
    #[default]
    Text,
}

impl ColumnKind {
    /// The kind of a built-in type. The OIDs are fixed in PostgreSQL's `pg_type.dat`.
    pub const fn of_type(oid: u32) -> Self {
        match oid {
            16 => Self::Boolean,
            20 | 21 | 23 => Self::Integer,
            700 | 701 => Self::Float,
            1700 => Self::Numeric,
            114 | 3802 => Self::Json,
            1114 | 1184 => Self::Timestamp,
            _ => Self::Text,
        }
    }
}

/// A column of a [`Relation`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Column {
    /// The name, as the catalog has it.
    pub name: String,
    /// What its values are.
    pub kind: ColumnKind,
    /// Whether the replica identity carries the column's old value.
    pub in_identity: bool,
}

/// A table as the source describes it at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Relation {
    /// What identifies the table; names may change.
    pub id: RelationId,
    /// The table that rules name: for a partition, the root of its tree.
    pub name: TableName,
    /// Other names by which rules may mean it: those of the tables above it, and the one that it
    /// had when the rules were read.
    pub also: Vec<TableName>,
    /// The columns, in the order of each [`Row`].
    pub columns: Vec<Column>,
}

/// What happened to a row or a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Operation {
    /// A row was inserted.
    Insert,
    /// A row was updated.
    Update,
    /// A row was deleted.
    Delete,
    /// The table was truncated.
    Truncate,
    /// An application emitted an event with `unstale.emit`: the relation is the event, the new row
    /// its fields.
    Event,
}

impl Operation {
    /// Every operation of a table, in the order in which messages list them.
    pub const ALL: [Self; 4] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate];

    /// The word used in YAML and NDJSON.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
            Self::Event => "event",
        }
    }
}

/// One row's insert, update or delete, or a table's truncate.
#[derive(Clone, Debug)]
pub struct Change {
    /// The table.
    pub relation: Arc<Relation>,
    /// What happened.
    pub operation: Operation,
    /// The row before; absent for an insert and a truncate.
    pub old: Option<Row>,
    /// The row after; absent for a delete and a truncate.
    pub new: Option<Row>,
}

/// The beginning of a committed transaction, sent before its changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Begin {
    /// Its id.
    pub xid: Xid,
    /// Where its commit record starts; the end is known only when the commit arrives.
    pub commit_lsn: Lsn,
    /// When it committed, by the database server's clock.
    pub at: SystemTime,
}

/// When and where the transaction of a change was committed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Commit {
    /// A position that orders it among all others: the end of its commit record where that is
    /// known.
    pub lsn: Lsn,
    /// The time, by the database server's clock; a recording may not say.
    pub at: Option<SystemTime>,
}

/// What a source of transactions produces, in order.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// A transaction begins.
    Begin(Begin),
    /// One of its changes.
    Change(Change),
    /// It changed the definition of something.
    Ddl,
    /// It is complete; `end_lsn` is what is compared, confirmed and recorded.
    Commit {
        /// The end of its commit record.
        end_lsn: Lsn,
    },
    /// Everything up to here has been sent, also what no publication carries.
    Progress {
        /// The position reached.
        wal_end: Lsn,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_reads_back_what_it_prints() {
        for offset in [0, 1, 0x16B_3748, 0xFFFF_FFFF, 0x1_0000_0000, u64::MAX] {
            let lsn = Lsn::new(offset);
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
            assert_eq!(Lsn::from_fixed_hex(&lsn.to_fixed_hex()), Some(lsn));
        }
    }

    #[test]
    fn what_is_not_an_lsn_is_refused() {
        for text in ["", "/", "0", "0/", "/0", "0/16B374G", "0/123456789", "+1/+2", "-1/0", "0/0/0"] {
            assert_eq!(text.parse::<Lsn>(), Err(InvalidLsn), "{text}");
        }
        for text in ["", "0", "+00000000000000A", "00000000000000000"] {
            assert_eq!(Lsn::from_fixed_hex(text), None, "{text}");
        }
    }

    #[test]
    fn fixed_hex_sorts_as_the_positions_do() {
        let offsets = [0, 9, 10, 0xFFFF, 1 << 53, (1 << 53) + 1, u64::MAX];
        let texts: Vec<_> = offsets.iter().map(|&offset| Lsn::new(offset).to_fixed_hex()).collect();
        assert!(texts.is_sorted());
    }
}
