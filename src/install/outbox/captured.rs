//! A table to capture, as the database has it.
//!
//! Owns the expressions for the text of its values, and the settings that these depend on. It must not ask a server.
//! Invariant: values read as the log has them, whatever the writer's session is set to.

use sha2::{Digest as _, Sha256};

use super::quoting::identifier;
use super::shape::Shape;
use crate::catalog::quote_table;
use crate::change::TableName;
use crate::rules::Capture;

/// A table to capture, as the database has it.
#[derive(Clone, Debug)]
pub(super) struct CapturedTable {
    pub(super) capture: Capture,
    /// The columns to write down, in order.
    pub(super) columns: Vec<CapturedColumn>,
    /// The table, its partitions and its heirs, at every depth.
    pub(super) members: Vec<Member>,
}

/// A column to write down.
#[derive(Clone, Debug)]
pub(super) struct CapturedColumn {
    pub(super) name: String,
    /// Its type.
    pub(super) type_oid: u32,
    /// The type of an array's elements, else the type itself.
    pub(super) element_oid: u32,
    /// Whether that is an enum.
    pub(super) is_enum: bool,
    /// Its value is made when it is read: a trigger does not see it (PostgreSQL 18).
    pub(super) is_virtual: bool,
}

/// A table that holds rows of a captured one, or whose partitions do.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) oid: u32,
    pub(super) name: TableName,
    /// PostgreSQL gives it the row triggers of what it is a partition of.
    pub(super) is_partition: bool,
    pub(super) owner: String,
}

impl CapturedTable {
    pub(super) fn shape(&self) -> Shape {
        Shape {
            table: self.capture.table.clone(),
            columns: self.columns.iter().map(|column| column.name.clone()).collect(),
            types: self.columns.iter().map(|column| column.type_oid).collect(),
        }
    }
}

impl CapturedColumn {
    /// The expression for its text in a row: what the type's own output function gives, but a boolean in words.
    pub(super) fn text_of(&self, row: &str) -> String {
        let column = format!("{row}.{}", identifier(&self.name));
        match self.type_oid {
            // A cast of these calls the output function; of others it may call something else, or anything.
            16 | 17 | 20 | 21 | 23 | 25 | 26 | 114 | 700 | 701 | 1043 | 1082 | 1083 | 1114 | 1184 | 1186 | 1266
            | 1700 | 2950 | 3802 => format!("{column}::text"),
            // A composite of nothing but NULLs is distinct from NULL.
            _ => format!("case when {column} is distinct from null then format('%s', {column}) end"),
        }
    }

    /// The settings that its output function follows.
    pub(super) fn depends_on(&self) -> &'static [&'static str] {
        match self.element_oid {
            16 | 18 | 19 | 20 | 21 | 23 | 25 | 26 | 114 | 650 | 774 | 829 | 869 | 1042 | 1043 | 1083 | 1266 | 1700
            | 2950 | 3802 => &[],
            17 => &["bytea_output"],
            700 | 701 => &["extra_float_digits"],
            790 => &["lc_monetary"],
            1082 | 1114 => &["datestyle"],
            1184 => &["datestyle", "timezone"],
            1186 => &["intervalstyle"],
            _ if self.is_enum => &[],
            // What is inside is not looked at.
            _ => &["bytea_output", "datestyle", "extra_float_digits", "intervalstyle", "timezone"],
        }
    }
}

/// Eight hexadecimal digits that stand for a table.
pub(super) fn digest(table: &TableName) -> String {
    Sha256::digest(quote_table(table).as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}
