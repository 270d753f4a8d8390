//! The input of a draft.
//!
//! Owns which facts about a database a draft needs. It must not read them; `init` does.

use std::collections::BTreeSet;

use crate::catalog::Catalog;
use crate::change::TableName;

/// What a draft needs to know of a database.
#[derive(Clone, Debug, Default)]
pub struct DraftInput {
    /// Every table.
    pub catalog: Catalog,
    /// Partitions, and tables that belong to extensions.
    pub dependent: BTreeSet<TableName>,
    /// Generated columns: the log does not carry them.
    pub generated: BTreeSet<(TableName, String)>,
}
