//! How a replica identity is made wide enough for the keys.
//!
//! Owns the choice, and its statements. It must not ask a server: what a table can have is in the
//! catalog. Invariants: no choice makes a write of an application fail, also when columns are added
//! later or the server is upgraded within the supported versions; an index that suffices is used,
//! whatever its name.

use std::collections::BTreeSet;

use super::filter::Filter;
use crate::catalog::{Catalog, Identity, IdentityFacts, Table, TableMember, quote, quote_table};
use crate::change::TableName;

/// From this version on PostgreSQL refuses updates and deletes if the identity contains a generated
/// column that is not published, so FULL is safe only until one is added.
pub const FULL_FAILS_SINCE: i32 = 18;

/// The longest name PostgreSQL keeps whole.
const IDENTIFIER_BYTES_MAX: usize = 63;

/// A replica identity that the rules need and a table does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Widening {
    /// The table that rules name.
    pub table: TableName,
    /// The tables to alter: the partitions and children, or the table itself.
    pub leaves: Vec<WidenedLeaf>,
    /// How.
    pub remedy: Remedy,
    /// The table has no identity at all: once it is published, PostgreSQL refuses its updates and
    /// deletes.
    pub is_unusable: bool,
}

/// A table whose replica identity is altered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WidenedLeaf {
    /// Its name.
    pub name: TableName,
    /// The name of an index that suffices, if it has one.
    existing: Option<String>,
    /// An attempt that was interrupted has left the index invalid.
    is_unfinished: bool,
}

/// What makes an identity wide enough.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Remedy {
    /// A unique index on these columns.
    Index(Vec<String>),
    /// Every column is logged.
    Full,
    /// Nothing, for this reason.
    Nothing(String),
}

impl Widening {
    /// What the keys need of a table, which does not carry it.
    pub(super) fn of(table: &Table, needed: &BTreeSet<&str>, catalog: &Catalog) -> Self {
        let facts = leaves(table, catalog);
        let remedy = match common_index(&facts, needed) {
            Some(columns) => Remedy::Index(columns),
            None => choose(table, needed, &facts, catalog),
        };
        let columns: &[String] = if let Remedy::Index(columns) = &remedy { columns } else { &[] };
        let leaf = |name: &TableName| {
            let facts = facts.iter().find(|(leaf, _)| *leaf == name).map(|(_, facts)| *facts);
            let existing = facts.and_then(|facts| index_of(facts, columns));
            let is_unfinished = facts.is_some_and(|facts| facts.unfinished.contains(&index_name(name, columns)));
            WidenedLeaf { name: name.clone(), existing, is_unfinished }
        };
        let leaves = table.leaves.iter().map(leaf).collect();
        Self { table: table.name.clone(), leaves, remedy, is_unusable: table.identity == Identity::Nothing }
    }

    /// Whether the table must not be published: no remedy gives it an identity.
    pub fn is_unpublishable(&self) -> bool {
        self.is_unusable && matches!(self.remedy, Remedy::Nothing(_))
    }

    /// The SQL that widens the identity, one statement each.
    pub fn statements(&self) -> Vec<String> {
        self.leaves.iter().flat_map(|leaf| self.statements_for(leaf)).collect()
    }

    /// The same for one of the tables to alter. With CONCURRENTLY, writers are not blocked while
    /// the index is built.
    pub fn statements_for(&self, leaf: &WidenedLeaf) -> Vec<String> {
        let table = quote_table(&leaf.name);
        let columns = match &self.remedy {
            Remedy::Index(columns) => columns,
            Remedy::Full => return vec![format!("ALTER TABLE {table} REPLICA IDENTITY FULL;")],
            Remedy::Nothing(_) => return Vec::new(),
        };
        let mut statements = Vec::new();
        let index = quote(&leaf.existing.clone().unwrap_or_else(|| index_name(&leaf.name, columns)));
        if leaf.is_unfinished {
            statements.push(format!("DROP INDEX CONCURRENTLY {}.{index};", quote(&leaf.name.schema)));
        }
        if leaf.existing.is_none() {
            let list: Vec<_> = columns.iter().map(|column| quote(column)).collect();
            let list = list.join(", ");
            statements.push(format!("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS {index} ON {table} ({list});"));
        }
        statements.push(format!("ALTER TABLE {table} REPLICA IDENTITY USING INDEX {index};"));
        statements
    }
}

/// Builds an index if its values always fit into one, or logs every column where that is safe.
fn choose(table: &Table, needed: &BTreeSet<&str>, facts: &[(&TableName, &IdentityFacts)], catalog: &Catalog) -> Remedy {
    let key = common_index(facts, &BTreeSet::new());
    // Without a key to begin with, no set of columns is known to be unique.
    let base = match &table.identity {
        Identity::Columns(columns) => Some(columns.clone()),
        Identity::Full | Identity::Nothing => key.clone(),
    };
    let is_not_null = |name: &str| table.columns.iter().any(|column| column.name == name && column.not_null);
    if let Some(mut columns) = base.filter(|_| needed.iter().all(|column| is_not_null(column))) {
        let new: Vec<&str> = needed.iter().copied().filter(|needed| !columns.iter().any(|c| c == needed)).collect();
        columns.extend(new.into_iter().map(ToOwned::to_owned));
        let identity = Identity::Columns(columns.clone());
        let fits = |facts: &IdentityFacts| columns.iter().all(|column| facts.fitting.contains(column));
        if facts.iter().all(|(_, facts)| fits(facts) && facts.accepts(&identity)) {
            return Remedy::Index(columns);
        }
    }
    let Some(reason) = full_fails(table, facts, catalog) else { return Remedy::Full };
    // What identifies a row is better than nothing.
    match key.filter(|_| table.identity == Identity::Nothing) {
        Some(columns) => Remedy::Index(columns),
        None => Remedy::Nothing(reason),
    }
}

/// Why PostgreSQL could refuse writes if every column were logged.
fn full_fails(table: &Table, facts: &[(&TableName, &IdentityFacts)], catalog: &Catalog) -> Option<String> {
    if catalog.limits.major_version >= FULL_FAILS_SINCE {
        return Some(format!(
            "no columns of {} that are NOT NULL, are not generated and always fit into an index identify its rows with \
             what the keys need, and from PostgreSQL {FULL_FAILS_SINCE} on REPLICA IDENTITY FULL makes updates and \
             deletes fail if the table has a generated column, also one that is added later",
            table.name
        ));
    }
    let (leaf, _) = facts.iter().find(|(_, facts)| !facts.accepts(&Identity::Full))?;
    Some(format!(
        "a publication carries only some columns or rows of {leaf}, so PostgreSQL would refuse updates and deletes with a \
         wider replica identity"
    ))
}

/// What is known of the tables that hold the rows. Empty if no server was asked.
fn leaves<'a>(table: &'a Table, catalog: &'a Catalog) -> Vec<(&'a TableName, &'a IdentityFacts)> {
    let of_leaf = |member: &'a TableMember| Some((&member.name, catalog.limits.tables.get(&member.id)?));
    table.members.iter().filter(|member| member.has_rows).filter_map(of_leaf).collect()
}

/// The columns of an index that every leaf has, those that are needed among them.
fn common_index(facts: &[(&TableName, &IdentityFacts)], needed: &BTreeSet<&str>) -> Option<Vec<String>> {
    let (_, first) = facts.first()?;
    let suffices = |columns: &[String]| {
        let identity = Identity::Columns(columns.to_vec());
        needed.iter().all(|needed| columns.iter().any(|column| column == needed))
            && facts.iter().all(|(_, facts)| index_of(facts, columns).is_some() && facts.accepts(&identity))
    };
    first.indexes.iter().map(|index| &index.columns).find(|columns| suffices(columns)).cloned()
}

/// The name of an index on these columns, in any order.
fn index_of(facts: &IdentityFacts, columns: &[String]) -> Option<String> {
    let set = |columns: &[String]| columns.iter().cloned().collect::<BTreeSet<_>>();
    facts.indexes.iter().find(|index| set(&index.columns) == set(columns)).map(|index| index.name.clone())
}

/// The name of the index that is built. It depends on the columns, so that an identity in use is
/// never dropped and created again.
fn index_name(leaf: &TableName, columns: &[String]) -> String {
    let digest = String::from_utf8_lossy(&Filter::Sha256.apply(columns.join(",").as_bytes())).into_owned();
    let suffix = format!("_unstale_{}", digest.get(..8).unwrap_or_default());
    let cut = leaf.table.floor_char_boundary(IDENTIFIER_BYTES_MAX - suffix.len());
    format!("{}{suffix}", leaf.table.get(..cut).unwrap_or_default())
}
