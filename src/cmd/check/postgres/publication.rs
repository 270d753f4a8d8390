//! Whether the publication carries what the rules need: their tables, whole, and every kind of change.
//!
//! Owns that question. It must not judge replica identities. Invariant: a row filter or a column list on a table of the
//! rules counts as not carrying it, because it hides changes.

use std::collections::HashSet;

use super::{Finding, Findings, Server, Stage};
use crate::catalog::{Catalog, Table, quote, quote_table};
use crate::change::TableName;
use crate::rules::RuleSet;

/// The publication itself, if there is one.
const PUBLICATION: &str = "select puballtables, pubinsert and pubupdate and pubdelete and pubtruncate, pubviaroot \
     from pg_publication where pubname = $1";

/// Every table it carries: as it stands in the publication, by its schema, and each partition.
const CARRIED: &str = "select schemaname::text, tablename::text from pg_publication_tables where pubname = $1 \
     union select n.nspname::text, c.relname::text from pg_publication p \
       join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid \
       join pg_namespace n on n.oid = c.relnamespace where p.pubname = $1 \
     union select n.nspname::text, c.relname::text from pg_publication p \
       join pg_publication_namespace s on s.pnpubid = p.oid join pg_namespace n on n.oid = s.pnnspid \
       join pg_class c on c.relnamespace = n.oid and c.relkind in ('r', 'p') where p.pubname = $1";

/// Those of which it carries only some rows or columns.
const NARROWED: &str = "select n.nspname::text, c.relname::text from pg_publication p \
     join pg_publication_rel r on r.prpubid = p.oid join pg_class c on c.oid = r.prrelid \
     join pg_namespace n on n.oid = c.relnamespace \
     where p.pubname = $1 and (r.prqual is not null or r.prattrs is not null)";

const COST: &str = "locks the tables against changes of their definition (SHARE UPDATE EXCLUSIVE) for a moment";
const NO_COST: &str = "locks no table";

impl Server<'_> {
    pub(super) async fn publication(
        &self,
        rules: &RuleSet,
        catalog: &Catalog,
        findings: &mut Findings,
    ) -> Result<(), tokio_postgres::Error> {
        let tables: Vec<&Table> = rules.tables().into_iter().filter_map(|name| catalog.find(name)).collect();
        if tables.is_empty() && !rules.has_events() {
            return Ok(());
        }
        let publication = &self.settings.publication;
        let Some(row) = self.client.query_opt(PUBLICATION, &[publication]).await? else {
            findings.add(self.unpublished(&tables));
            return Ok(());
        };
        let (all_tables, every_change, by_root): (bool, bool, bool) = (row.get(0), row.get(1), row.get(2));
        let mut found = Vec::new();
        if !all_tables {
            let carried = self.names(CARRIED).await?;
            let narrowed = self.names(NARROWED).await?;
            let is_narrowed = |table: &&Table| {
                narrowed.contains(&table.name) || table.leaves.iter().any(|leaf| narrowed.contains(leaf))
            };
            let is_carried = |table: &&Table| {
                carried.contains(&table.name) || table.leaves.iter().all(|leaf| carried.contains(leaf))
            };
            let narrow: Vec<_> = tables.iter().copied().filter(is_narrowed).collect();
            let missing: Vec<_> = tables.iter().copied().filter(|table| !is_carried(table)).collect();
            found.extend(self.missing(&missing, &narrow, &tables));
        }
        if !every_change {
            let message = format!("{}: the publication `{publication}` leaves out some kinds of changes", self.name);
            let statement =
                format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');", quote(publication));
            let finding = Finding::error("publication-changes", message)
                .why("what is not published is never invalidated")
                .statement(Stage::Publication, statement, NO_COST);
            found.push(finding);
        }
        if by_root {
            let message =
                format!("{}: the publication `{publication}` publishes partitions under their root's name", self.name);
            let statement =
                format!("ALTER PUBLICATION {} SET (publish_via_partition_root = false);", quote(publication));
            let finding = Finding::error("publication-root", message)
                .why("then a TRUNCATE of one partition is not published at all")
                .statement(Stage::Publication, statement, NO_COST);
            found.push(finding);
        }
        let names: Vec<_> = tables.iter().map(|table| table.name.to_string()).collect();
        let carries = if names.is_empty() { "no table".to_owned() } else { names.join(", ") };
        findings.pass_or(format!("publication {publication} carries {carries}"), found);
        Ok(())
    }

    async fn names(&self, sql: &str) -> Result<HashSet<TableName>, tokio_postgres::Error> {
        let rows = self.client.query(sql, &[&self.settings.publication]).await?;
        Ok(rows.iter().map(|row| TableName::new(row.get::<_, String>(0), row.get::<_, String>(1))).collect())
    }

    fn unpublished(&self, tables: &[&Table]) -> Finding {
        let publication = &self.settings.publication;
        let list = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", list(tables)) };
        let statement = format!("CREATE PUBLICATION {}{list};", quote(publication));
        Finding::error("publication-missing", format!("{} has no publication `{publication}`", self.name))
            .why("the slot sends only what the publication carries")
            .fix("`unstale setup` makes it, or run this as owner of the tables:")
            .statement(Stage::Publication, statement, COST)
    }

    /// What says that tables are not carried, or not whole.
    fn missing(&self, missing: &[&Table], narrow: &[&Table], tables: &[&Table]) -> Option<Finding> {
        let publication = &self.settings.publication;
        let say = |tables: &[&Table]| tables.iter().map(|table| table.name.to_string()).collect::<Vec<_>>().join(", ");
        let name = quote(publication);
        // A table is not to be dropped and added again: what changed in between would never be sent.
        let (message, statement) = match (missing, narrow) {
            ([], []) => return None,
            (missing, []) => (
                format!("{}: the publication `{publication}` does not carry {}", self.name, say(missing)),
                format!("ALTER PUBLICATION {name} ADD TABLE {};", list(missing)),
            ),
            (_, narrow) => (
                format!("{}: the publication `{publication}` carries only a part of {}", self.name, say(narrow)),
                format!("ALTER PUBLICATION {name} SET TABLE {};", list(tables)),
            ),
        };
        let finding = Finding::error("publication-tables", message)
            .why("what is not published is never invalidated")
            .fix("`unstale setup` makes it carry exactly the tables of the rules, or run this:");
        Some(finding.statement(Stage::Publication, statement, COST))
    }
}

fn list(tables: &[&Table]) -> String {
    tables.iter().map(|table| quote_table(&table.name)).collect::<Vec<_>>().join(", ")
}
