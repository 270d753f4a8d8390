//! A table whose changes are captured, as it is in the database.
//!
//! Owns the expressions for the text of its values, and the settings that these depend on. It must
//! not query a server. Invariant: values have the same text as in the log, whatever the settings of
//! the writer's session are.

use sha2::{Digest as _, Sha256};

use super::quoting::identifier;
use super::shape::Shape;
use crate::catalog::quote_table;
use crate::change::TableName;
use crate::postgres::value_text::text_of;
use crate::rules::Capture;

/// A table whose changes are captured.
#[derive(Clone, Debug)]
pub(super) struct CapturedTable {
    pub(super) capture: Capture,
    /// The columns to capture, in order.
    pub(super) columns: Vec<CapturedColumn>,
    /// The table and its descendants, partitions or by inheritance; itself first.
    pub(super) members: Vec<Member>,
}

/// A captured column.
#[derive(Clone, Debug)]
pub(super) struct CapturedColumn {
    pub(super) name: String,
    /// The type.
    pub(super) type_oid: u32,
    /// The type beneath all domains.
    pub(super) base_oid: u32,
    /// For an array the type of its elements, else the type itself.
    pub(super) element_oid: u32,
    /// Whether the element type is an enum.
    pub(super) is_enum: bool,
    /// Whether it is a virtual generated column (PostgreSQL 18). Triggers do not see its value.
    pub(super) is_virtual: bool,
}

/// A captured table or one of its descendants.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) oid: u32,
    pub(super) name: TableName,
    /// Whether it is a partition: PostgreSQL gives it the row triggers of its parent.
    pub(super) is_partition: bool,
    pub(super) owner: String,
}

impl CapturedTable {
    pub(super) fn shape(&self) -> Shape {
        Shape {
            table: self.capture.table.clone(),
            columns: self.columns.iter().map(|column| column.name.clone()).collect(),
            // Only these say what the values are.
            types: self.columns.iter().map(|column| column.base_oid).collect(),
        }
    }
}

impl CapturedColumn {
    /// The expression for its text.
    pub(super) fn text_of(&self, row: &str) -> String {
        text_of(&format!("{row}.{}", identifier(&self.name)), self.base_oid)
    }

    /// The settings that its output function depends on.
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
            // Composites, ranges and others: their element types are not examined.
            _ => &["bytea_output", "datestyle", "extra_float_digits", "intervalstyle", "timezone"],
        }
    }
}

/// Eight hexadecimal digits that identify a table.
pub(super) fn digest(table: &TableName) -> String {
    Sha256::digest(quote_table(table).as_bytes()).iter().take(4).map(|byte| format!("{byte:02x}")).collect()
}
