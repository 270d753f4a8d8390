//! The publication: the tables whose changes the replication slot sends.
//!
//! Owns the statements that create and change it. It must not decide which tables are needed.
//! Invariant: there is a statement only for what is not right already, and each can be carried out.

use super::step::PlannedStatement;
use crate::catalog::{Catalog, Table, quote, quote_table};
use crate::change::TableName;
use crate::postgres::publication::Publication;

const COST: &str = "locks the tables briefly against changes of their definition (SHARE UPDATE EXCLUSIVE)";
const NO_COST: &str = "locks no table";

/// Creates the publication for these tables.
pub fn create(name: &str, tables: &[&Table]) -> PlannedStatement {
    let list = if tables.is_empty() { String::new() } else { format!(" FOR TABLE {}", roots(tables)) };
    PlannedStatement::new(format!("CREATE PUBLICATION {}{list};", quote(name)), COST)
}

/// Lets the publication carry every kind of change.
pub fn publish_every_change(name: &str) -> PlannedStatement {
    let sql = format!("ALTER PUBLICATION {} SET (publish = 'insert, update, delete, truncate');", quote(name));
    PlannedStatement::new(sql, NO_COST)
}

/// Lets partitions be published under their own names. Otherwise a TRUNCATE of a partition is not
/// published.
pub fn publish_partitions(name: &str) -> PlannedStatement {
    let sql = format!("ALTER PUBLICATION {} SET (publish_via_partition_root = false);", quote(name));
    PlannedStatement::new(sql, NO_COST)
}

/// Lets the publication carry these tables whole. A table must not be dropped and added again:
/// changes in between would never be sent.
pub fn set_tables(name: &str, tables: &[&Table]) -> PlannedStatement {
    PlannedStatement::new(format!("ALTER PUBLICATION {} SET TABLE {};", quote(name), roots(tables)), COST)
}

/// Adds what the publication does not carry of these tables.
pub fn add_tables(name: &str, publication: &Publication, tables: &[&Table]) -> Option<PlannedStatement> {
    let mut missing: Vec<String> = tables.iter().flat_map(|table| uncarried(publication, table)).collect();
    missing.dedup();
    let sql = format!("ALTER PUBLICATION {} ADD TABLE {};", quote(name), missing.join(", "));
    (!missing.is_empty()).then(|| PlannedStatement::new(sql, COST))
}

/// Takes tables away that no rule needs.
fn drop_tables(name: &str, tables: &[&TableName]) -> PlannedStatement {
    let list: Vec<_> = tables.iter().map(|table| format!("ONLY {}", quote_table(table))).collect();
    PlannedStatement::new(format!("ALTER PUBLICATION {} DROP TABLE {};", quote(name), list.join(", ")), COST)
}

/// The statements after which the publication carries exactly these tables.
pub fn plan(
    name: &str,
    publication: Option<&Publication>,
    tables: &[&Table],
    catalog: &Catalog,
) -> Vec<PlannedStatement> {
    let Some(publication) = publication else { return vec![create(name, tables)] };
    let mut statements = Vec::new();
    if !publication.every_change {
        statements.push(publish_every_change(name));
    }
    if publication.via_root {
        statements.push(publish_partitions(name));
    }
    if publication.all_tables {
        return statements;
    }
    if tables.iter().any(|table| publication.narrows(table)) {
        statements.push(set_tables(name, tables));
        return statements;
    }
    statements.extend(add_tables(name, publication, tables));
    let is_needed = |id| tables.iter().any(|table| table.members.iter().any(|member| member.id == id));
    let surplus: Vec<&TableName> = catalog
        .tables
        .iter()
        .filter(|table| publication.names(table.id) && !is_needed(table.id))
        .map(|t| &t.name)
        .collect();
    if !surplus.is_empty() {
        statements.push(drop_tables(name, &surplus));
    }
    statements
}

/// Tables with everything below them.
fn roots(tables: &[&Table]) -> String {
    tables.iter().map(|table| quote_table(&table.name)).collect::<Vec<_>>().join(", ")
}

/// What has to be added so that a table is carried. PostgreSQL refuses a list that contains a table
/// that is carried already, and a parent's name means its children, too.
fn uncarried(publication: &Publication, table: &Table) -> Vec<String> {
    let missing: Vec<_> = publication.uncarried(table).collect();
    let is_partitioned = table.members.first().is_some_and(|root| !root.has_rows);
    match missing.len() {
        0 => Vec::new(),
        _ if is_partitioned || table.members.len() == 1 => vec![quote_table(&table.name)],
        _ => missing.iter().map(|member| format!("ONLY {}", quote_table(&member.name))).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::{Identity, TableMember};
    use crate::change::RelationId;

    fn member(id: u32, name: &str) -> TableMember {
        TableMember {
            id: RelationId::new(id),
            name: TableName::new("public", name),
            ancestors: Vec::new(),
            is_partition: false,
            has_rows: true,
            identity: Identity::Full,
            unlogged: false,
            file: 0,
        }
    }

    fn table(id: u32, name: &str, members: Vec<TableMember>) -> Table {
        let name = TableName::new("public", name);
        Table { id: RelationId::new(id), name, members, ..Table::default() }
    }

    #[test]
    fn only_what_is_wrong_is_changed() {
        let users = table(1, "users", vec![member(1, "users")]);
        let other = table(2, "Other", vec![member(2, "Other")]);
        let parent = table(3, "parent", vec![member(3, "parent"), member(4, "child")]);
        let catalog = Catalog {
            tables: vec![users.clone(), other.clone(), parent.clone()],
            search_path: Vec::new(),
            ..Catalog::default()
        };
        let published = |ids: &[u32]| Publication::of(ids.iter().map(|id| RelationId::new(*id)));
        let check = |publication: Option<&Publication>, tables: &[&Table], expected: &[&str]| {
            let found: Vec<_> =
                plan("p", publication, tables, &catalog).into_iter().map(|planned| planned.sql).collect();
            assert_eq!(found, expected);
        };
        check(None, &[], &["CREATE PUBLICATION p;"]);
        check(None, &[&users, &other], &["CREATE PUBLICATION p FOR TABLE public.users, public.\"Other\";"]);
        check(Some(&published(&[1])), &[&users], &[]);
        check(Some(&published(&[1])), &[&users, &other], &["ALTER PUBLICATION p ADD TABLE public.\"Other\";"]);
        check(Some(&published(&[1, 2])), &[&users], &["ALTER PUBLICATION p DROP TABLE ONLY public.\"Other\";"]);
        check(Some(&published(&[3])), &[&parent], &["ALTER PUBLICATION p ADD TABLE ONLY public.child;"]);
        check(Some(&published(&[3, 4])), &[&parent], &[]);
        let mut part = published(&[1]);
        (part.every_change, part.via_root) = (false, true);
        check(
            Some(&part),
            &[&users],
            &[
                "ALTER PUBLICATION p SET (publish = 'insert, update, delete, truncate');",
                "ALTER PUBLICATION p SET (publish_via_partition_root = false);",
            ],
        );
        let mut all = published(&[]);
        all.all_tables = true;
        check(Some(&all), &[&users], &[]);
    }
}
