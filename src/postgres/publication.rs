//! A publication: what it carries.
//!
//! Owns the questions to the catalog about it. It must not judge the answers.

use std::collections::{HashMap, HashSet};

use tokio_postgres::{Client, Error};

use super::lossy_text::LossyText;
use crate::catalog::{Table, TableMember};
use crate::change::RelationId;

/// The publication itself, if it exists.
const PUBLICATION: &str = "select oid, puballtables, pubinsert and pubupdate and pubdelete and pubtruncate, pubviaroot \
     from pg_publication where pubname = $1";

/// The tables that it names, and whether it carries only some rows or columns of each.
const TABLES: &str = "select prrelid, prqual is not null or prattrs is not null from pg_publication_rel \
     where prpubid = $1";

/// The schemas that it names.
const SCHEMAS: &str = "select n.nspname::text from pg_publication_namespace s join pg_namespace n on n.oid = s.pnnspid \
     where s.pnpubid = $1";

/// How many tables a fault names.
const NAMED_MAX: usize = 3;

/// A publication.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Publication {
    /// It was created `FOR ALL TABLES`.
    pub all_tables: bool,
    /// It publishes inserts, updates, deletes and truncates.
    pub every_change: bool,
    /// It publishes the changes of partitions under the name of their root
    /// (`publish_via_partition_root`).
    pub via_root: bool,
    /// The tables that it names; true if it carries only some rows or columns.
    tables: HashMap<RelationId, bool>,
    schemas: HashSet<String>,
}

impl Publication {
    /// Reads a publication, if it exists.
    pub async fn read(client: &Client, name: &str) -> Result<Option<Self>, Error> {
        let Some(row) = client.query_opt(PUBLICATION, &[&name]).await? else { return Ok(None) };
        let id: u32 = row.get(0);
        let tables = client.query(TABLES, &[&id]).await?;
        let schemas = client.query(SCHEMAS, &[&id]).await?;
        Ok(Some(Self {
            all_tables: row.get(1),
            every_change: row.get(2),
            via_root: row.get(3),
            tables: tables.iter().map(|row| (RelationId::new(row.get(0)), row.get(1))).collect(),
            schemas: schemas.iter().map(|row| row.get::<_, LossyText>(0).0).collect(),
        }))
    }

    /// One that carries these tables whole, with every kind of change.
    #[cfg(test)]
    pub(crate) fn of(tables: impl Iterator<Item = RelationId>) -> Self {
        Self { every_change: true, tables: tables.map(|id| (id, false)).collect(), ..Self::default() }
    }

    /// Whether it names a table itself.
    pub fn names(&self, table: RelationId) -> bool {
        self.tables.contains_key(&table)
    }

    /// Whether it carries a table with all of its partitions and children.
    pub fn carries(&self, table: &Table) -> bool {
        self.uncarried(table).next().is_none()
    }

    /// Whether it carries a table, or one of its partitions or children.
    pub fn carries_some(&self, table: &Table) -> bool {
        self.uncarried(table).count() < table.members.iter().filter(|member| member.has_rows).count()
    }

    /// The tables that hold rows of this one, and that it does not carry.
    pub fn uncarried<'a>(&'a self, table: &'a Table) -> impl Iterator<Item = &'a TableMember> {
        let known = |id: &RelationId| table.members.iter().find(|member| member.id == *id);
        let is_named =
            |member: &TableMember| self.tables.contains_key(&member.id) || self.schemas.contains(&member.name.schema);
        let is_carried = move |member: &TableMember| {
            // What is published of a partitioned table is published of its partitions. A parent's
            // children are named for themselves.
            let above = member.ancestors.iter().filter(|_| member.is_partition);
            self.all_tables
                || is_named(member)
                || above.clone().any(|id| self.tables.contains_key(id))
                || above.filter_map(known).any(is_named)
        };
        table.members.iter().filter(move |member| member.has_rows && !is_carried(member))
    }

    /// Why some changes of a table do not arrive over it, in words that begin with its name.
    pub fn faults(&self, name: &str, table: &Table) -> Vec<String> {
        let mut faults = Vec::new();
        if !self.every_change {
            faults.push(format!("the publication `{name}` leaves out some kinds of changes"));
        }
        if self.narrows(table) {
            faults.push(format!("the publication `{name}` carries only some rows or columns of {}", table.name));
        }
        let uncarried: Vec<_> = self.uncarried(table).collect();
        if !uncarried.is_empty() {
            let shown: Vec<_> = uncarried.iter().take(NAMED_MAX).map(|member| member.name.to_string()).collect();
            let more = if uncarried.len() > NAMED_MAX { " and others" } else { "" };
            faults.push(format!("the publication `{name}` does not carry table {}{more}", shown.join(", ")));
        }
        faults
    }

    /// Whether it carries only some rows or columns of a table, or of one of its partitions.
    pub fn narrows(&self, table: &Table) -> bool {
        let is_narrowed = |id: &RelationId| self.tables.get(id) == Some(&true);
        table.members.iter().any(|member| is_narrowed(&member.id) || member.ancestors.iter().any(is_narrowed))
    }
}
