//! What the log does not say, asked of PostgreSQL's catalog.
//!
//! Owns the queries. It must not judge what they return; the rules do.

use std::collections::HashMap;

use tokio_postgres::Client;

use crate::catalog::{Catalog, CatalogColumn, ForeignKey, Identity, Table};
use crate::change::{Kind, RelationId, TableName};

/// Every table outside the system schemas, with its columns, identity and leaves.
const TABLES: &str = include_str!("../../sql/catalog.sql");

/// What is above a relation, as a partition or by inheritance, nearest first; whether nobody is about to move it or
/// what is above it, which writes to the rows of `pg_class`; and the snapshot in which that holds.
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
    let mut heirs_of: HashMap<TableName, Vec<(TableName, Identity)>> = HashMap::new();
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
            heirs_of.entry(TableName::new(schema, table)).or_default().push((name.clone(), identity.clone()));
        }
        let columns = columns.into_iter().zip(not_null).zip(types).map(|((name, not_null), (oid, type_name))| {
            CatalogColumn { name, type_name, kind: Kind::of_type(oid), not_null }
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
        // A parent by inheritance holds rows of its own beside those of its heirs.
        for (heir, identity) in heirs_of.remove(&table.name).unwrap_or_default() {
            table.identity = common(std::mem::replace(&mut table.identity, Identity::Full), identity);
            table.leaves.push(heir);
        }
        let Some(leaves) = leaves_of.remove(&table.name) else { continue };
        table.identity = leaves.iter().map(|(_, identity)| identity.clone()).reduce(common).unwrap_or(Identity::Full);
        table.leaves = leaves.into_iter().map(|(name, _)| name).collect();
    }
    Ok(Catalog { tables, search_path: path.get(0) })
}

/// Where a table stands among partitions and heirs.
pub struct Ancestry {
    /// The tables through which its rows are read too, nearest first.
    pub ancestors: Vec<TableName>,
    /// No transaction that is not visible yet is about to change that, or has.
    pub is_settled: bool,
    /// The snapshot in which that holds.
    pub snapshot: String,
}

/// Where a table stands: one that was attached by a transaction just received may not be visible there yet.
pub async fn ancestry(client: &Client, relation: RelationId) -> Result<Ancestry, tokio_postgres::Error> {
    let row = client.query_one(ANCESTORS, &[&relation.oid()]).await?;
    let (schemas, tables): (Vec<String>, Vec<String>) = (row.get(1), row.get(2));
    let ancestors = schemas.into_iter().zip(tables).map(|(schema, table)| TableName::new(schema, table)).collect();
    Ok(Ancestry { ancestors, is_settled: row.get(3), snapshot: row.get(0) })
}

/// Lists of names, which the query gives as JSON: PostgreSQL has no arrays of arrays of different lengths.
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

/// What both of two partitions carry.
fn common(one: Identity, other: Identity) -> Identity {
    match (one, other) {
        (Identity::Nothing, _) | (_, Identity::Nothing) => Identity::Nothing,
        (Identity::Full, identity) | (identity, Identity::Full) => identity,
        (Identity::Columns(columns), Identity::Columns(others)) => {
            Identity::Columns(columns.into_iter().filter(|column| others.contains(column)).collect())
        }
    }
}
