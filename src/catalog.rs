//! Tables as PostgreSQL's catalog describes them, and the relations that a query reads.
//!
//! Owns tables, their columns and replica identities. It must not ask a server or judge. Invariant:
//! a partitioned table's identity is what every one of its partitions carries.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::change::{ColumnKind, RelationId, TableName};

/// The columns of the old row that the log carries.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Identity {
    /// Every column.
    #[default]
    Full,
    /// These columns: a primary key or a unique index.
    Columns(Vec<String>),
    /// Nothing: PostgreSQL refuses updates and deletes once the table is published.
    Nothing,
}

impl Identity {
    /// Whether the old value of this column is carried.
    pub fn carries(&self, column: &str) -> bool {
        match self {
            Self::Full => true,
            Self::Columns(columns) => columns.iter().any(|carried| carried == column),
            Self::Nothing => false,
        }
    }
}

/// How the value of a column is generated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Generation {
    /// It is not: an application writes it.
    #[default]
    Never,
    /// When the row is written.
    Stored,
    /// When the row is read (PostgreSQL 18). It is never in the log, and triggers do not see it.
    Virtual,
}

impl Generation {
    /// Whether an application writes the column.
    pub fn is_never(&self) -> bool {
        *self == Self::Never
    }
}

/// A column of a [`Table`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogColumn {
    /// The name.
    pub name: String,
    /// The type, as `format_type` writes it.
    #[serde(rename = "type")]
    pub type_name: String,
    /// What its values are.
    pub kind: ColumnKind,
    /// Whether it is declared NOT NULL, as a replica identity index needs it.
    pub not_null: bool,
    /// How its value is generated.
    #[serde(default, skip_serializing_if = "Generation::is_never")]
    pub generated: Generation,
    /// Its number. A column that was dropped and created again has another one.
    #[serde(skip)]
    pub number: i16,
    /// The OID of the type.
    #[serde(skip)]
    pub type_oid: u32,
    /// The OID of the type beneath all domains; the same as `type_oid` if the type is no domain.
    #[serde(skip)]
    pub base_oid: u32,
}

/// What happens to a row if the row that it refers to is deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum OnDelete {
    /// The delete is refused.
    #[default]
    #[serde(rename = "a", alias = "r")]
    Refuse,
    /// The row is deleted too.
    #[serde(rename = "c")]
    Cascade,
    /// The columns become NULL or take their defaults.
    #[serde(rename = "n", alias = "d")]
    Detach,
}

impl OnDelete {
    /// Whether the row stays as it is.
    pub fn is_refuse(&self) -> bool {
        *self == Self::Refuse
    }
}

/// Columns whose values are those of another table's columns.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignKey {
    /// The columns here.
    pub columns: Vec<String>,
    /// The other table.
    pub table: TableName,
    /// The columns there, in the same order.
    pub referenced: Vec<String>,
    /// What happens here if a row there is deleted.
    #[serde(default, skip_serializing_if = "OnDelete::is_refuse")]
    pub on_delete: OnDelete,
}

/// A table that holds rows of another one: that table itself, a partition or a child.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableMember {
    /// Its OID.
    pub id: RelationId,
    /// Its name.
    pub name: TableName,
    /// The tables above it, nearest first.
    pub ancestors: Vec<RelationId>,
    /// Whether it is a partition. What is published of its ancestors is published of it.
    pub is_partition: bool,
    /// Whether it has rows of its own: a partitioned table has none.
    pub has_rows: bool,
    /// What its updates and deletes carry.
    pub identity: Identity,
    /// Whether its changes are not logged.
    pub unlogged: bool,
    /// The number of the file that holds its rows. It changes when all rows are written anew.
    pub file: u32,
}

/// A table, as the server has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Table {
    /// The name, schema included.
    pub name: TableName,
    /// The columns, in order.
    pub columns: Vec<CatalogColumn>,
    /// The columns of the primary key; none if there is no key.
    pub primary_key: Vec<String>,
    /// The columns of every other unique constraint or index over plain columns.
    pub unique: Vec<Vec<String>>,
    /// What its columns refer to.
    pub foreign_keys: Vec<ForeignKey>,
    /// What updates and deletes carry; of a partitioned table, what every partition carries.
    pub identity: Identity,
    /// Whether changes are logged at all.
    pub unlogged: bool,
    /// The tables that hold the rows: the partitions, or the table itself.
    pub leaves: Vec<TableName>,
    /// The OID; zero if it is not known.
    #[serde(skip)]
    pub id: RelationId,
    /// The table itself, then its partitions and children at every level, by name.
    #[serde(skip)]
    pub members: Vec<TableMember>,
    /// Whether row level security is enabled.
    #[serde(skip)]
    pub row_security: bool,
}

impl Table {
    /// The same table, as if each partition and child logged as much of the old row as the one that
    /// logs most.
    pub fn with_widest_identity(mut self) -> Self {
        let width = |identity: &Identity| match identity {
            Identity::Full => usize::MAX,
            Identity::Columns(columns) => columns.len(),
            Identity::Nothing => 0,
        };
        let members = self.members.iter().filter(|member| member.has_rows).map(|member| &member.identity);
        if let Some(widest) = members.max_by_key(|identity| width(identity)) {
            self.identity = widest.clone();
        }
        self
    }
}

/// A unique index that can be a replica identity: complete, immediate, on plain columns that are
/// NOT NULL and not generated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UniqueIndex {
    /// Its name, without the schema.
    pub name: String,
    /// Its columns, in order.
    pub columns: Vec<String>,
}

/// What a publication that is not the whole table demands of the replica identity. Otherwise
/// PostgreSQL refuses updates and deletes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationLimits {
    /// Its name.
    pub publication: String,
    /// Its column list, which must contain the identity; none if it carries every column.
    pub columns: Option<Vec<String>>,
    /// The columns of its row filter, which the identity must contain.
    pub filter: Vec<String>,
}

impl PublicationLimits {
    /// Whether PostgreSQL accepts updates and deletes with this identity.
    pub fn accepts(&self, identity: &Identity) -> bool {
        match identity {
            Identity::Full => self.columns.is_none(),
            Identity::Columns(columns) => {
                let is_listed = |column| self.columns.as_ref().is_none_or(|listed| listed.contains(column));
                columns.iter().all(is_listed) && self.filter.iter().all(|column| columns.contains(column))
            }
            Identity::Nothing => false,
        }
    }
}

/// What decides which replica identities a table can have without any write being refused.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityFacts {
    /// The NOT NULL columns that an index can be built on, and whose values always fit into it.
    pub fitting: BTreeSet<String>,
    /// Indexes that an interrupted attempt left invalid.
    pub unfinished: Vec<String>,
    /// The indexes that can be the identity, those with the fewest columns first.
    pub indexes: Vec<UniqueIndex>,
    /// The publications with a column list or a row filter.
    pub publications: Vec<PublicationLimits>,
}

impl IdentityFacts {
    /// Whether PostgreSQL accepts updates and deletes with this identity, whatever publishes them.
    pub fn accepts(&self, identity: &Identity) -> bool {
        self.publications.iter().all(|publication| publication.accepts(identity))
    }
}

/// The same for the tables of a server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdentityLimits {
    /// The major version of the server; zero if no server was asked.
    pub major_version: i32,
    /// By table, partitions and children included.
    pub tables: std::collections::HashMap<RelationId, IdentityFacts>,
}

/// The tables of a database.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    /// Every ordinary and partitioned table outside the system schemas.
    pub tables: Vec<Table>,
    /// The schemas in which a bare name is looked up, in order.
    pub search_path: Vec<String>,
    /// Which replica identities the tables of the rules can have, as far as a server was asked.
    #[serde(skip)]
    pub limits: IdentityLimits,
}

impl Catalog {
    /// The table that a rule's name means.
    pub fn find(&self, name: &TableName) -> Option<&Table> {
        let named = |schema: &str| self.tables.iter().find(|t| t.name.table == name.table && t.name.schema == schema);
        match name.schema.as_str() {
            "" => self.search_path.iter().find_map(|schema| named(schema)),
            schema => named(schema),
        }
    }

    /// The tables whose rows are deleted, or do not refer to the row any more, when a row of
    /// `table` is deleted.
    pub fn leaving_with(&self, table: &TableName) -> BTreeSet<&TableName> {
        // Keys refer to a partitioned table also if the row is in one of its partitions.
        let holds = |root: &Table| root.name == *table || root.leaves.contains(table);
        let mut deleted: BTreeSet<&TableName> =
            self.tables.iter().filter(|root| holds(root)).map(|root| &root.name).collect();
        let mut leaving = BTreeSet::new();
        loop {
            let refers = |key: &ForeignKey| deleted.contains(&key.table) && !key.on_delete.is_refuse();
            let cascades = |key: &ForeignKey| refers(key) && key.on_delete == OnDelete::Cascade;
            leaving.extend(self.tables.iter().filter(|t| t.foreign_keys.iter().any(refers)).map(|t| &t.name));
            let more = self.tables.iter().filter(|t| t.foreign_keys.iter().any(cascades)).map(|t| &t.name);
            let more: Vec<_> = more.filter(|name| !deleted.contains(name)).collect();
            if more.is_empty() {
                return leaving;
            }
            deleted.extend(more);
        }
    }
}

/// The kind of a relation, as far as it decides how changes of it are noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RelationKind {
    /// An ordinary or partitioned table.
    Table,
    /// The stored result of a query. REFRESH replaces it as a whole.
    MaterializedView,
    /// A table of another server, or a file.
    ForeignTable,
    /// A sequence.
    Sequence,
}

/// A relation that a query reads. Never a view: the relations beneath it stand for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct QueryRelation {
    /// The name, schema included. For a partitioned table the root's, unless the query names a
    /// partition.
    pub name: TableName,
    /// What it is.
    pub kind: RelationKind,
    /// The tables through which its rows can be read too. Rules on them also fire for its changes.
    pub ancestors: Vec<TableName>,
    /// Relations of the query that refer to this one by a foreign key. If the query uses a row of
    /// this relation, it also uses a row of each companion.
    pub companions: Vec<TableName>,
    /// The query reads only the row whose primary key its parameters name. If that row is missing,
    /// the query returns no row.
    pub is_looked_up: bool,
    /// The columns of its primary key.
    pub primary_key: Vec<String>,
    /// The columns that the query uses; None if they are not known. The value is true if the query
    /// itself uses the column, false if only a view or function in it does.
    pub columns: Option<BTreeMap<String, bool>>,
}

/// An SQL identifier, quoted where it has to be.
pub(crate) fn quote(name: &str) -> String {
    let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && !RESERVED.contains(&name);
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// Words that a table or column of an application is likely to be called and that SQL reserves.
const RESERVED: &[&str] = &[
    "all",
    "analyse",
    "analyze",
    "and",
    "any",
    "array",
    "as",
    "asc",
    "both",
    "case",
    "cast",
    "check",
    "collate",
    "column",
    "constraint",
    "create",
    "default",
    "desc",
    "distinct",
    "do",
    "else",
    "end",
    "except",
    "false",
    "fetch",
    "for",
    "foreign",
    "from",
    "grant",
    "group",
    "having",
    "in",
    "into",
    "lateral",
    "leading",
    "limit",
    "not",
    "null",
    "offset",
    "on",
    "only",
    "or",
    "order",
    "placing",
    "primary",
    "references",
    "returning",
    "select",
    "session_user",
    "some",
    "table",
    "then",
    "to",
    "trailing",
    "true",
    "union",
    "unique",
    "user",
    "using",
    "variadic",
    "when",
    "where",
    "window",
    "with",
];

/// A table's name for SQL, schema included.
pub(crate) fn quote_table(name: &TableName) -> String {
    format!("{}.{}", quote(&name.schema), quote(&name.table))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_leave_with_the_row_that_they_refer_to() {
        let name = |table: &str| TableName::new("public", table);
        let table = |own: &str, keys: &[(&str, OnDelete)]| {
            let key = |(to, on_delete): &(&str, OnDelete)| ForeignKey {
                table: name(to),
                on_delete: *on_delete,
                ..ForeignKey::default()
            };
            Table { name: name(own), foreign_keys: keys.iter().map(key).collect(), ..Table::default() }
        };
        let (cascade, detach, refuse) = (OnDelete::Cascade, OnDelete::Detach, OnDelete::Refuse);
        let mut parted = table("parted", &[]);
        parted.leaves = vec![name("part")];
        let catalog = Catalog {
            tables: vec![
                table("organizations", &[]),
                table("members", &[("organizations", cascade), ("users", refuse)]),
                table("notes", &[("members", detach)]),
                table("links", &[("notes", cascade)]),
                table("users", &[("users", cascade)]),
                table("of_parted", &[("parted", cascade)]),
                table("part", &[]),
                parted,
            ],
            search_path: Vec::new(),
            limits: IdentityLimits::default(),
        };
        let check = |table: &str, expected: &[&str]| {
            let found: Vec<_> = catalog.leaving_with(&name(table)).into_iter().map(|name| &*name.table).collect();
            assert_eq!(found, expected, "{table}");
        };
        check("organizations", &["members", "notes"]);
        check("members", &["notes"]);
        check("notes", &["links"]);
        check("links", &[]);
        check("users", &["users"]);
        check("part", &["of_parted"]);
    }
}
