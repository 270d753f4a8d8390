//! What a relation in the log is: the tables above it, and the types beneath domains.
//!
//! Owns the question that the log's description of a relation leaves open. It must not know rules.
//! Invariant: the answer says whether a transaction in progress may still change it.

use std::collections::HashMap;

use tokio_postgres::{Client, Error};

use super::lossy_text::strings;
use crate::change::{RelationId, TableName};

/// The ancestors of a relation, as a partition or by inheritance, nearest first; whether no open
/// transaction has attached or detached any of them, which updates rows of `pg_class`; the
/// snapshot; and the base types of those of the given types that are domains.
const QUESTION: &str = "with recursive above (id, depth) as ( \
     select inhparent, 1 from pg_inherits where inhrelid = $1 \
     union all select inhparent, depth + 1 from pg_inherits join above on inhrelid = above.id where depth < 100), \
     domains (id, base) as ( \
     select oid, typbasetype from pg_type where typtype = 'd' and oid = any ($2) \
     union all select d.id, t.typbasetype from domains d join pg_type t on t.oid = d.base where t.typtype = 'd'), \
     bases as (select d.id, d.base from domains d join pg_type t on t.oid = d.base where t.typtype <> 'd') \
     select pg_current_snapshot()::text, \
     array(select n.nspname::text from above join pg_class c on c.oid = above.id join pg_namespace n on n.oid = c.relnamespace order by depth, c.oid), \
     array(select c.relname::text from above join pg_class c on c.oid = above.id order by depth, c.oid), \
     coalesce((select bool_and(l.xmax::text = '0') from pg_class l where l.oid = $1 or l.oid in (select id from above)), false), \
     array(select id from bases order by id), array(select base from bases order by id)";

/// The ancestors of a table among partitioned tables and parents, and its types.
pub struct Ancestry {
    /// The tables whose queries also return its rows, nearest first.
    pub ancestors: Vec<TableName>,
    /// Whether no transaction that is not visible yet changes the ancestors.
    pub is_settled: bool,
    /// The snapshot of the query.
    pub snapshot: String,
    /// The type beneath each domain, by the OID of the domain.
    pub bases: HashMap<u32, u32>,
}

/// Asks about a relation and about these types. A partition that was attached by a transaction just
/// received may not be visible yet.
pub async fn ancestry(client: &Client, relation: RelationId, types: &[u32]) -> Result<Ancestry, Error> {
    let row = client.query_one(QUESTION, &[&relation.oid(), &types]).await?;
    let (schemas, tables) = (strings(row.get(1)), strings(row.get(2)));
    let ancestors = schemas.into_iter().zip(tables).map(|(schema, table)| TableName::new(schema, table)).collect();
    let bases = row.get::<_, Vec<u32>>(4).into_iter().zip(row.get::<_, Vec<u32>>(5)).collect();
    Ok(Ancestry { ancestors, is_settled: row.get(3), snapshot: row.get(0), bases })
}
