//! What a draft is made from.
//!
//! Owns what has to be asked of a server. It must not ask.

use std::collections::BTreeSet;

use crate::catalog::Catalog;
use crate::change::TableName;

/// What a draft is made from.
#[derive(Clone, Debug, Default)]
pub struct DraftInput {
    /// Every table.
    pub catalog: Catalog,
    /// Those that stand under another name, or are not the application's: partitions, and what extensions own.
    pub dependent: BTreeSet<TableName>,
    /// The columns whose values PostgreSQL computes: the log does not carry them.
    pub generated: BTreeSet<(TableName, String)>,
}
