//! The columns, functions and joins that a query uses, from a temporary view of it.
//!
//! Owns the queries on `pg_depend` and on the view's parsed form. It must not know plans.
//! Invariant: the caller rolls the transaction back, so the view does not remain.

use std::collections::BTreeMap;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, Statement};

use super::joins::{self, Joins};
use super::lexer::without_parameters;
use crate::change::TableName;
use crate::postgres::lossy_text::LossyText;

/// The rewrite rules of the temporary view and of the views in it, and the functions whose bodies
/// PostgreSQL keeps parsed; each with its parsed form. With `USED`: the columns that they use.
/// `pg_depend` does not record whole rows and system columns; these have the attribute numbers 0 to
/// -6, which are bits 7 to 1 of `selectedCols`.
const PARTS: &str = "with recursive parts (class, id, direct) as ( \
     select 'pg_rewrite'::regclass::oid, r.oid, true from pg_rewrite r \
      where r.ev_class = 'pg_temp.unstale_read'::regclass \
     union \
     select found.class, found.id, false \
       from parts p join pg_depend d on d.classid = p.class and d.objid = p.id \
      cross join lateral ( \
        select 'pg_rewrite'::regclass::oid, r.oid \
          from pg_class c join pg_rewrite r on r.ev_class = c.oid and r.ev_type = '1' \
         where d.refclassid = 'pg_class'::regclass and c.oid = d.refobjid and c.relkind = 'v' \
           and c.oid <> 'pg_temp.unstale_read'::regclass \
        union all \
        select 'pg_proc'::regclass::oid, f.oid from pg_proc f \
         where d.refclassid = 'pg_proc'::regclass and f.oid = d.refobjid and f.prosqlbody is not null \
      ) found (class, id)), \
     trees (direct, tree) as ( \
     select p.direct, coalesce(r.ev_action::text, f.prosqlbody::text) from parts p \
       left join pg_rewrite r on p.class = 'pg_rewrite'::regclass and r.oid = p.id \
       left join pg_proc f on p.class = 'pg_proc'::regclass and f.oid = p.id)";

const USED: &str = ", used (relation, attribute, direct) as ( \
     select d.refobjid, d.refobjsubid, p.direct \
       from parts p join pg_depend d on d.classid = p.class and d.objid = p.id and d.refclassid = 'pg_class'::regclass \
     union all \
     select m[1]::oid, -1, t.direct from trees t \
      cross join regexp_matches(t.tree, ':relid (\\d+) (?:(?!:relid ).)*?:selectedCols \\(b [1-7][ )]', 'g') m) \
     select n.nspname::text, c.relname::text, a.attname::text, bool_or(u.direct) \
       from used u \
       join pg_class c on c.oid = u.relation and c.relkind <> 'v' \
       join pg_namespace n on n.oid = c.relnamespace \
       left join pg_attribute a on a.attrelid = c.oid and not a.attisdropped and a.attnum > 0 \
        and (a.attnum = u.attribute or u.attribute < 0) \
      group by 1, 2, 3";

/// Functions that may change the result without a change of rows: those of the application whose
/// bodies are not analysed, and those of PostgreSQL that depend on the time or the session, or are
/// random. Keywords such as `current_date` are not functions in the catalog and are matched in the
/// trees.
const CALLED: &str = ", called (function) as ( \
     select d.refobjid from parts p \
       join pg_depend d on d.classid = p.class and d.objid = p.id and d.refclassid = 'pg_proc'::regclass \
     union \
     select o.oprcode from parts p \
       join pg_depend d on d.classid = p.class and d.objid = p.id and d.refclassid = 'pg_operator'::regclass \
       join pg_operator o on o.oid = d.refobjid \
     union \
     select m[1]::oid from trees t cross join regexp_matches(t.tree, ':funcid (\\d+) ', 'g') m), \
     named (name, own, timed) as ( \
     select case n.nspname when 'pg_catalog' then f.proname::text else format('%I.%I', n.nspname, f.proname) end, \
            n.nspname <> 'pg_catalog', \
            f.proname in ('now', 'transaction_timestamp', 'statement_timestamp', 'clock_timestamp', 'timeofday', \
                          'age') \
       from called c join pg_proc f on f.oid = c.function join pg_namespace n on n.oid = f.pronamespace \
      where n.nspname not in ('pg_catalog', 'information_schema') \
        and f.provolatile <> 'i' \
        and f.prokind in ('f', 'w') and f.prosqlbody is null \
         or n.nspname = 'pg_catalog' and (f.provolatile = 'v' or f.proname = 'age' and f.pronargs = 1 \
        or f.proname in ('now', 'transaction_timestamp', 'statement_timestamp', 'current_setting')) \
     union \
     select case when m[1]::int < 9 then 'current_timestamp' else 'current_user' end, false, m[1]::int < 9 \
       from trees t cross join regexp_matches(t.tree, '\\{SQLVALUEFUNCTION :op (\\d+) ', 'g') m \
      where m[1]::int <= 12) \
     select name, own, timed from named order by name";

/// The columns of each relation that a query uses; `true` if the query itself names the column, not
/// only a view or a function in it.
pub(super) type UsedColumns = BTreeMap<TableName, BTreeMap<String, bool>>;

/// What a query uses, before planning.
#[derive(Debug, Default)]
pub(super) struct QueryUses {
    pub(super) columns: UsedColumns,
    pub(super) functions: Vec<String>,
    pub(super) time_functions: Vec<String>,
    pub(super) volatile_functions: Vec<String>,
    pub(super) joins: Joins,
}

/// Creates a view of the query; PostgreSQL records the dependencies of views.
pub(super) async fn uses(client: &Client, sql: &str, statement: &Statement) -> Result<QueryUses, Error> {
    const TYPES: &str =
        "select array(select format_type(t, null) from unnest($1::oid[]) with ordinality u (t, n) order by n)";
    if statement.columns().is_empty() {
        return Ok(QueryUses::default());
    }
    let oids: Vec<u32> = statement.params().iter().map(Type::oid).collect();
    let types: Vec<String> = client.query_one(TYPES, &[&oids]).await?.get(0);
    // The query's own column names may repeat.
    let names: Vec<_> = (1..=statement.columns().len()).map(|n| format!("c{n}")).collect();
    let (names, query) = (names.join(", "), without_parameters(sql, &types));
    client.batch_execute(&format!("create temporary view unstale_read ({names}) as {query}")).await?;
    let mut uses = QueryUses::default();
    for row in client.query(&format!("{PARTS}{USED}"), &[]).await? {
        let name = TableName::new(row.get::<_, LossyText>(0).0, row.get::<_, LossyText>(1).0);
        let columns = uses.columns.entry(name).or_default();
        columns.extend(row.get::<_, Option<LossyText>>(2).map(|LossyText(column)| (column, row.get::<_, bool>(3))));
    }
    for row in client.query(&format!("{PARTS}{CALLED}"), &[]).await? {
        let kind = match (row.get(1), row.get(2)) {
            (true, _) => &mut uses.functions,
            (false, true) => &mut uses.time_functions,
            (false, false) => &mut uses.volatile_functions,
        };
        kind.push(row.get(0));
    }
    let trees = client.query(&format!("{PARTS} select t.direct, t.tree from trees t where t.tree <> ''"), &[]).await?;
    let trees: Vec<(bool, String)> = trees.iter().map(|row| (row.get(0), row.get(1))).collect();
    uses.joins = joins::analyse(client, &trees).await?;
    Ok(uses)
}
