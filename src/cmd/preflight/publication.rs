//! A publication: what it carries.
//!
//! Owns the questions to the catalog about it. It must not judge the answers.

use std::collections::HashSet;

use tokio_postgres::{Client, Error};

use crate::catalog::Table;
use crate::change::TableName;

/// The publication itself, if it exists.
const PUBLICATION: &str = "select puballtables, pubinsert and pubupdate and pubdelete and pubtruncate, pubviaroot \
     from pg_publication where pubname = $1";

/// Every table it carries: those of the view, those it names, those of the schemas it names. The
/// view has the partitions of a table and not the table itself.
const CARRIED: &str = "select schemaname::text, tablename::text from pg_publication_tables where pubname = $1 \
     union select n.nspname::text, c.relname::text from pg_publication p \
       join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid \
       join pg_namespace n on n.oid = c.relnamespace where p.pubname = $1 \
     union select n.nspname::text, c.relname::text from pg_publication p \
       join pg_publication_namespace s on s.pnpubid = p.oid join pg_namespace n on n.oid = s.pnnspid \
       join pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'p') where p.pubname = $1";

/// Tables of which it carries only some rows or columns.
const NARROWED: &str = "select n.nspname::text, c.relname::text from pg_publication p \
     join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid \
     join pg_namespace n on n.oid = c.relnamespace \
     where p.pubname = $1 and (r.prqual is not null or r.prattrs is not null)";

/// A publication.
pub(in crate::cmd) struct Publication {
    /// It was created `FOR ALL TABLES`.
    all_tables: bool,
    /// It publishes inserts, updates, deletes and truncates.
    pub(in crate::cmd) every_change: bool,
    /// It publishes the changes of partitions under the name of their root
    /// (`publish_via_partition_root`).
    pub(in crate::cmd) via_root: bool,
    carried: HashSet<TableName>,
    narrowed: HashSet<TableName>,
}

impl Publication {
    /// Reads a publication, if it exists.
    pub(in crate::cmd) async fn read(client: &Client, name: &str) -> Result<Option<Self>, Error> {
        let Some(row) = client.query_opt(PUBLICATION, &[&name]).await? else { return Ok(None) };
        Ok(Some(Self {
            all_tables: row.get(0),
            every_change: row.get(1),
            via_root: row.get(2),
            carried: tables(client, CARRIED, name).await?,
            narrowed: tables(client, NARROWED, name).await?,
        }))
    }

    /// Whether it carries a table or all of its partitions.
    pub(in crate::cmd) fn carries(&self, table: &Table) -> bool {
        self.all_tables
            || self.carried.contains(&table.name)
            || table.leaves.iter().all(|leaf| self.carried.contains(leaf))
    }

    /// Whether it carries only some rows or columns of a table, or of one of its partitions.
    pub(in crate::cmd) fn narrows(&self, table: &Table) -> bool {
        self.narrowed.contains(&table.name) || table.leaves.iter().any(|leaf| self.narrowed.contains(leaf))
    }
}

async fn tables(client: &Client, sql: &str, publication: &str) -> Result<HashSet<TableName>, Error> {
    let rows = client.query(sql, &[&publication]).await?;
    Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
}
