//! Queries of PostgreSQL's catalog: tables, columns, identities, partitions.
//!
//! Owns the queries. It must not check the result; the rules do.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::catalog::{Catalog, CatalogColumn, ForeignKey, Identity, Table};
use crate::change::{ColumnKind, RelationId, TableName};

/// Every table outside the system schemas, with its columns, identity and leaves.
const TABLES: &str = include_str!("../../sql/catalog.sql");

/// The ancestors of a relation, as a partition or by inheritance, nearest first; whether no open
/// transaction has attached or detached any of them, which updates rows of `pg_class`; and the
/// snapshot.
const ANCESTORS: &str = "with recursive above (id, depth) as ( \
     select inhparent, 1 from pg_inherits where inhrelid = $1 \
     union all select inhparent, depth + 1 from pg_inherits join above on inhrelid = above.id where depth < 100) \
     select pg_current_snapshot()::text, \
     array(select n.nspname::text from above join pg_class c on c.oid = above.id join pg_namespace n on n.oid = c.relnamespace order by depth, c.oid), \
     array(select c.relname::text from above join pg_class c on c.oid = above.id order by depth, c.oid), \
     coalesce((select bool_and(l.xmax::text = '0') from pg_class l where l.oid = $1 or l.oid in (select id from above)), false)";

/// Reads the whole catalog of a database.
pub async fn read(client: &Client) -> Result<Catalog, tokio_postgres::Error> {
    let path = client.query_one("select current_schemas(false)::text[]", &[]).await?;
    let mut tables = Vec::new();
    let mut leaves_of: HashMap<TableName, Vec<(TableName, Identity)>> = HashMap::new();
    let mut children_of: HashMap<TableName, Vec<(TableName, Identity)>> = HashMap::new();
    let rows = client.query(TABLES, &[]).await?;
    for row in &rows {
        let name = TableName::new(row.get::<_, String>("schema"), row.get::<_, String>("name"));
        let columns: Vec<String> = row.get("columns");
        let not_null: Vec<bool> = row.get("not_null");
        let identity = identity(row.get::<_, i8>("identity"), row.get("identity_columns"));
        let root = (row.get::<_, Option<String>>("root_schema"), row.get::<_, Option<String>>("root_name"));
        if let (Some(schema), Some(table)) = root
            && !row.get::<_, bool>("partitioned")
        {
            leaves_of.entry(TableName::new(schema, table)).or_default().push((name.clone(), identity.clone()));
        }
        let types: Vec<(u32, String)> =
            row.get::<_, Vec<u32>>("type_oids").into_iter().zip(row.get::<_, Vec<String>>("types")).collect();
        let above: Vec<(String, String)> = row
            .get::<_, Option<String>>("inherits")
            .and_then(|json| serde_json::from_str(&json).ok())
            .unwrap_or_default();
        for (schema, table) in above {
            children_of.entry(TableName::new(schema, table)).or_default().push((name.clone(), identity.clone()));
        }
        let columns = columns.into_iter().zip(not_null).zip(types).map(|((name, not_null), (oid, type_name))| {
            CatalogColumn { name, type_name, kind: ColumnKind::of_type(oid), not_null }
        });
        tables.push(Table {
            leaves: vec![name.clone()],
            name,
            columns: columns.collect(),
            primary_key: row.get::<_, Option<_>>("primary_key").unwrap_or_default(),
            unique: lists(row.get("unique_columns")),
            foreign_keys: foreign_keys(row.get("foreign_keys")),
            identity,
            unlogged: row.get("unlogged"),
        });
    }
    for table in &mut tables {
        // A parent has rows of its own in addition to those of its children.
        for (child, identity) in children_of.remove(&table.name).unwrap_or_default() {
            table.identity = common(std::mem::replace(&mut table.identity, Identity::Full), identity);
            table.leaves.push(child);
        }
        let Some(leaves) = leaves_of.remove(&table.name) else { continue };
        table.identity = leaves.iter().map(|(_, identity)| identity.clone()).reduce(common).unwrap_or(Identity::Full);
        table.leaves = leaves.into_iter().map(|(name, _)| name).collect();
    }
    Ok(Catalog { tables, search_path: path.get(0) })
}

/// The ancestors of a table among partitioned tables and parents.
pub struct Ancestry {
    /// The tables whose queries also return its rows, nearest first.
    pub ancestors: Vec<TableName>,
    /// Whether no transaction that is not visible yet changes the ancestors.
    pub is_settled: bool,
    /// The snapshot of the query.
    pub snapshot: String,
}

/// Reads a table's ancestors. A partition that was attached by a transaction just received may not
/// be visible yet.
pub async fn ancestry(client: &Client, relation: RelationId) -> Result<Ancestry, tokio_postgres::Error> {
    let row = client.query_one(ANCESTORS, &[&relation.oid()]).await?;
    let (schemas, tables): (Vec<String>, Vec<String>) = (row.get(1), row.get(2));
    let ancestors = schemas.into_iter().zip(tables).map(|(schema, table)| TableName::new(schema, table)).collect();
    Ok(Ancestry { ancestors, is_settled: row.get(3), snapshot: row.get(0) })
}

/// Lists of names, as JSON: PostgreSQL has no arrays of arrays of different lengths.
fn lists(json: Option<String>) -> Vec<Vec<String>> {
    json.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default()
}

fn foreign_keys(json: Option<String>) -> Vec<ForeignKey> {
    json.and_then(|json| serde_json::from_str(&json).ok()).unwrap_or_default()
}

fn identity(kind: i8, columns: Option<Vec<String>>) -> Identity {
    match (u8::try_from(kind).map(char::from), columns) {
        (Ok('f'), _) => Identity::Full,
        (Ok('d' | 'i'), Some(columns)) if !columns.is_empty() => Identity::Columns(columns),
        _ => Identity::Nothing,
    }
}

/// The columns that both identities carry.
fn common(one: Identity, other: Identity) -> Identity {
    match (one, other) {
        (Identity::Nothing, _) | (_, Identity::Nothing) => Identity::Nothing,
        (Identity::Full, identity) | (identity, Identity::Full) => identity,
        (Identity::Columns(columns), Identity::Columns(others)) => {
            Identity::Columns(columns.into_iter().filter(|column| others.contains(column)).collect())
        }
    }
}
