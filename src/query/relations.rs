//! From the names in a view and a plan to the relations that rules can name.
//!
//! Owns that mapping. It must not know queries. Invariant: every row that a query reads belongs to
//! a reported relation: its own, or an ancestor that the query names.

use std::collections::{BTreeMap, BTreeSet};

use tokio_postgres::{Client, Error, Row};

use super::uses::UsedColumns;
use crate::catalog::{QueryRelation, RelationKind};
use crate::change::TableName;
use crate::postgres::lossy_text::LossyText;

/// Facts about the relations of these names. Ancestors are listed nearest first.
const RELATIONS: &str = "with recursive named as ( \
     select c.oid, n.nspname, c.relname, c.relkind, c.relispartition \
       from unnest($1::text[], $2::text[]) wanted (schema, name) \
       join pg_namespace n on n.nspname = wanted.schema \
       join pg_class c on c.relnamespace = n.oid and c.relname = wanted.name \
      where n.nspname not in ('pg_catalog', 'information_schema') and n.nspname !~ '^pg_toast|^pg_temp'), \
     above (id, ancestor, depth) as ( \
     select r.oid, i.inhparent, 1 from named r join pg_inherits i on i.inhrelid = r.oid \
     union all \
     select a.id, i.inhparent, a.depth + 1 from above a join pg_inherits i on i.inhrelid = a.ancestor \
      where a.depth < 100) \
     select r.nspname::text, r.relname::text, r.relkind::text, r.relispartition, \
            array(select n.nspname::text from above a join pg_class c on c.oid = a.ancestor \
                    join pg_namespace n on n.oid = c.relnamespace where a.id = r.oid order by a.depth, c.oid), \
            array(select c.relname::text from above a join pg_class c on c.oid = a.ancestor \
                   where a.id = r.oid order by a.depth, c.oid), \
            array(select a.attname::text from pg_index i \
                    join pg_attribute a on a.attrelid = r.oid and a.attnum = any (i.indkey::int2[]) \
                   where i.indrelid = r.oid and i.indisprimary) \
       from named r order by 1, 2";

/// A relation, and whether rules know it by its root's name.
struct NamedRelation {
    relation: QueryRelation,
    is_partition: bool,
}

/// Merges the relations that a view uses, with their columns, and those that only a plan shows.
pub(super) async fn merge(
    client: &Client,
    used: Option<&UsedColumns>,
    planned: &BTreeSet<TableName>,
) -> Result<Vec<QueryRelation>, Error> {
    let names: BTreeSet<_> = used.iter().flat_map(|used| used.keys()).chain(planned).collect();
    let schemas: Vec<_> = names.iter().map(|name| name.schema.as_str()).collect();
    let tables: Vec<_> = names.iter().map(|name| name.table.as_str()).collect();
    let rows = client.query(RELATIONS, &[&schemas, &tables]).await?;
    Ok(combine(rows.iter().map(found).collect(), used, planned))
}

fn found(row: &Row) -> NamedRelation {
    let names = |schemas: usize, tables: usize| {
        let (schemas, tables): (Vec<String>, Vec<String>) = (row.get(schemas), row.get(tables));
        schemas.into_iter().zip(tables).map(|(schema, table)| TableName::new(schema, table)).collect()
    };
    let kind = match row.get::<_, &str>(2) {
        "m" => RelationKind::MaterializedView,
        "f" => RelationKind::ForeignTable,
        "S" => RelationKind::Sequence,
        _ => RelationKind::Table,
    };
    let relation = QueryRelation {
        name: TableName::new(row.get::<_, LossyText>(0).0, row.get::<_, LossyText>(1).0),
        kind,
        ancestors: names(4, 5),
        companions: Vec::new(),
        is_looked_up: false,
        primary_key: row.get(6),
        columns: None,
    };
    NamedRelation { relation, is_partition: row.get(3) }
}

fn combine(found: Vec<NamedRelation>, used: Option<&UsedColumns>, planned: &BTreeSet<TableName>) -> Vec<QueryRelation> {
    let mut relations: BTreeMap<TableName, QueryRelation> = BTreeMap::new();
    for NamedRelation { mut relation, is_partition } in found {
        let columns = used.and_then(|used| used.get(&relation.name));
        if columns.is_some() {
            relation.columns = columns.cloned();
        } else if relation.kind == RelationKind::Table {
            let is_named = |name: &TableName| used.is_some_and(|used| used.contains_key(name));
            // The query reads its rows through an ancestor that it names.
            if relation.ancestors.iter().any(is_named) {
                continue;
            }
            let root = relation.ancestors.last().filter(|_| is_partition).cloned();
            if let Some(name) = root {
                relation = QueryRelation { name, ancestors: Vec::new(), primary_key: Vec::new(), ..relation };
            } else if relation.ancestors.iter().any(|ancestor| planned.contains(ancestor)) {
                continue;
            }
        }
        relations.entry(relation.name.clone()).or_insert(relation);
    }
    relations.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str, ancestors: &[&str], is_partition: bool) -> NamedRelation {
        let relation = QueryRelation {
            name: TableName::parse(name),
            kind: RelationKind::Table,
            ancestors: ancestors.iter().map(|name| TableName::parse(name)).collect(),
            companions: Vec::new(),
            is_looked_up: false,
            primary_key: Vec::new(),
            columns: None,
        };
        NamedRelation { relation, is_partition }
    }

    #[test]
    fn rows_belong_to_what_the_query_names() {
        let check = |found: Vec<NamedRelation>, used: Option<&[&str]>, expected: &[&str]| {
            let planned = found.iter().map(|found| found.relation.name.clone()).collect();
            let used = used.map(|names| names.iter().map(|name| (TableName::parse(name), BTreeMap::new())).collect());
            let relations = combine(found, used.as_ref(), &planned);
            let names: Vec<_> = relations.iter().map(|relation| relation.name.to_string()).collect();
            assert_eq!(names, expected);
        };
        let leaf = || table("s.t_1a", &["s.t_1", "s.t"], true);
        check(vec![table("s.t", &[], false), leaf()], Some(&["s.t"]), &["s.t"]);
        check(vec![table("s.t_1", &["s.t"], true), leaf()], Some(&["s.t_1"]), &["s.t_1"]);
        check(vec![leaf()], Some(&["s.t_1a"]), &["s.t_1a"]);
        check(vec![leaf(), table("s.t_1b", &["s.t_1", "s.t"], true)], None, &["s.t"]);
        let heirs = || vec![table("s.a", &[], false), table("s.dogs", &["s.a"], false)];
        check(heirs(), Some(&["s.a"]), &["s.a"]);
        check(heirs(), None, &["s.a"]);
        check(vec![table("s.dogs", &["s.a"], false)], None, &["s.dogs"]);
        let inlined = vec![table("s.seen", &[], false), table("s.inlined", &[], false)];
        check(inlined, Some(&["s.seen"]), &["s.inlined", "s.seen"]);
        let mut foreign = leaf();
        foreign.relation.kind = RelationKind::ForeignTable;
        check(vec![table("s.t", &[], false), foreign], Some(&["s.t"]), &["s.t", "s.t_1a"]);
    }
}
