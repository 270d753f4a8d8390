//! The state of a table or a view, as it is remembered.
//!
//! Owns what of a table matters to cached values, and the JSON that Redis holds of it. It must not
//! ask a server. Invariant: what cannot change what a reader sees is not part of a state.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::catalog::{CatalogColumn, Table};
use crate::change::RelationId;

/// The transactions that last wrote the catalog's rows about a table. What was changed and changed
/// back between two observations has others.
#[derive(Clone, Debug, Default)]
pub(super) struct CatalogVersions {
    /// Of the table's own row, with its OID.
    pub(super) row: String,
    /// Of the rows about its parents and about what carries its changes, with its OID.
    pub(super) links: String,
}

/// The state of a table that rules name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// The OID of the table that the rules concern; 0 if there is none.
    pub id: u32,
    /// Its name now.
    pub name: String,
    /// The OID of the table that the name in the rules means now; 0 if there is none.
    pub named: u32,
    /// Its columns and their types, in order.
    pub columns: Vec<String>,
    /// A digest of the types that are not built in: the labels of enums, the fields of composites.
    pub types: String,
    /// How many partitions or children it has.
    pub members: usize,
    /// A digest of them.
    pub tree: String,
    /// A digest of the files that hold its rows.
    pub files: String,
    /// What its updates and deletes carry.
    pub identity: String,
    /// A digest of what wrote the catalog's rows about it and its partitions and children.
    #[serde(default)]
    pub rows: String,
    /// A digest of what wrote the catalog's rows about its place and what carries its changes.
    #[serde(default)]
    pub links: String,
    /// Why some of its changes do not arrive; empty if all do.
    pub faults: Vec<String>,
}

impl TableState {
    /// The state of a table. `named` is the table that its name in the rules means now.
    pub(super) fn of(
        table: Option<&Table>,
        named: Option<RelationId>,
        types: String,
        versions: &HashMap<RelationId, CatalogVersions>,
        faults: Vec<String>,
    ) -> Self {
        let named = named.unwrap_or_default().oid();
        let Some(table) = table else { return Self { named, faults, ..Self::default() } };
        let members = || table.members.iter();
        let versions = || members().filter_map(|member| versions.get(&member.id));
        Self {
            id: table.id.oid(),
            name: table.name.to_string(),
            named,
            columns: table.columns.iter().map(column).collect(),
            types,
            members: table.members.len().saturating_sub(1),
            tree: digest(members().map(|member| format!("{} {:?}", member.id.oid(), member.ancestors))),
            files: digest(members().map(|member| format!("{} {}", member.id.oid(), member.file))),
            identity: serde_json::to_string(&table.identity).unwrap_or_default(),
            rows: digest(versions().map(|versions| versions.row.clone())),
            links: digest(versions().map(|versions| versions.links.clone())),
            faults,
        }
    }

    /// The form in which Redis holds it.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what [`TableState::encode`] wrote.
    pub fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

fn column(column: &CatalogColumn) -> String {
    let generated = if column.generated.is_never() { "" } else { " generated" };
    format!("{} {} {}{generated}", column.number, column.name, column.type_name)
}

/// The state of a materialized view that reads use.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ViewState {
    /// Its OID; 0 if there is none.
    pub id: u32,
    /// Identifies its rows: a refresh gives it another version.
    pub version: String,
}

impl ViewState {
    /// The form in which Redis holds it.
    pub fn encode(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Reads what [`ViewState::encode`] wrote.
    pub fn decode(text: &str) -> Option<Self> {
        serde_json::from_str(text).ok()
    }
}

fn digest(parts: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<_> = parts.collect();
    parts.sort_unstable();
    Sha256::digest(parts.join("\n")).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}
