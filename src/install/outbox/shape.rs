//! The shape of an entry: the columns and types of its values.
//!
//! Owns the rows of `unstale.shape`. It must not query a server. Invariant: the same shape prefers
//! the same id.

use sha2::{Digest as _, Sha256};

use super::quoting::literal;
use crate::catalog::quote_table;
use crate::change::TableName;

/// The columns and types of an entry's values: a row of `unstale.shape`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) table: TableName,
    pub(super) columns: Vec<String>,
    pub(super) types: Vec<u32>,
}

impl Shape {
    /// The id that it gets unless another shape has it: a hash of the shape.
    pub(super) fn preferred_id(&self) -> i32 {
        let text = format!("{} {:?} {:?}", quote_table(&self.table), self.columns, self.types);
        let bits =
            Sha256::digest(text.as_bytes()).iter().take(4).fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        i32::try_from(bits >> 1).unwrap_or(i32::MAX)
    }

    /// Inserts it, unless it exists.
    pub(super) fn statement(&self, id: i32) -> String {
        let columns: Vec<_> = self.columns.iter().map(|column| literal(column)).collect();
        let types: Vec<_> = self.types.iter().map(ToString::to_string).collect();
        format!(
            "INSERT INTO unstale.shape (id, schema_name, table_name, columns, types)\n  \
             VALUES ({id}, {}, {}, ARRAY[{}]::text[], ARRAY[{}]::oid[]) ON CONFLICT DO NOTHING;",
            literal(&self.table.schema),
            literal(&self.table.table),
            columns.join(", "),
            types.join(", ")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shape_has_a_number_of_its_own() {
        let of = |type_oid: u32| Shape {
            table: TableName::new("public", "t"),
            columns: vec!["a".to_owned()],
            types: vec![type_oid],
        };
        let shape = of(25);
        assert_eq!(shape.preferred_id(), of(25).preferred_id());
        assert_ne!(shape.preferred_id(), of(23).preferred_id());
        assert!(shape.preferred_id() >= 0);
    }
}
