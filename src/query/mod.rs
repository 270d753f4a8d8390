//! What a query takes, gives and reads, as PostgreSQL itself has it.
//!
//! Owns the questions. It must not run the query or judge the answer. Invariants: nothing is left behind in the session
//! or the database; what the planner does away with, and what only it sees, are both told.

mod joins;
mod notation;
mod relations;
mod scan;
mod takes;
mod tree;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;
use tokio_postgres::error::ErrorPosition;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, SimpleQueryMessage, Statement};

use self::joins::Joins;
pub use self::notation::Notation;
use self::relations::merge;
use self::scan::without_parameters;
pub use self::takes::Take;
use crate::catalog::QueryRelation;
use crate::change::TableName;

/// Whoever holds a lock that a question waits for may hold it for long.
const READ_ONLY: &str = "begin isolation level read committed read only; set local statement_timeout = '10s'";

/// A temporary view is a change, too, although it never takes effect.
const READ_WRITE: &str = "begin isolation level read committed read write; set local statement_timeout = '10s'";

/// With a custom plan, comparisons with NULL would be decided before the tables are looked at; with pruning, so would
/// partitions.
const WHOLE_PLAN: &str = "set local plan_cache_mode = force_generic_plan; set local enable_partition_pruning = off; \
     set local constraint_exclusion = off";

/// The rule of the temporary view, those of the views in it, and the functions whose bodies PostgreSQL keeps parsed,
/// with the parsed form of each; and which relations those use, by column. `pg_depend` knows nothing of whole rows and
/// system columns, which have the attribute numbers 0 to -6, so bits 7 to 1 of `selectedCols`.
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

/// The functions that may make the result another one: the application's own whose bodies are not looked into, and of
/// PostgreSQL's those that go by the time, the session, or chance. Keywords such as `current_date` are no functions.
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

/// What PostgreSQL has to say of a query.
#[derive(Debug)]
pub struct Query {
    /// The types of its parameters, as they are numbered.
    pub parameters: Vec<Type>,
    /// What it does with each parameter, by its number from 1, in each place.
    pub takes: Vec<(usize, Take)>,
    /// The types of what it returns.
    pub columns: Vec<Type>,
    /// It changes or locks rows.
    pub writes: bool,
    /// What it reads, each once, outside the system's own schemas.
    pub relations: Vec<QueryRelation>,
    /// The application's own functions that it calls and that may read more.
    pub functions: Vec<String>,
    /// What it calls that goes by the time.
    pub times: Vec<String>,
    /// What it calls that goes by the session, or by chance.
    pub whims: Vec<String>,
    /// Why functions and columns are not known, in the server's words.
    pub unseen: Option<String>,
}

/// Why PostgreSQL does not take a query.
#[derive(Debug)]
pub struct Refusal {
    /// The server's sentence.
    pub message: String,
    /// Its advice, if any.
    pub hint: Option<String>,
    /// The line of the query, from 1, if the server names a place and there are several.
    pub line: Option<usize>,
    /// Whether the role lacks a privilege.
    pub is_forbidden: bool,
}

/// Asks what a query takes, gives and reads. An error is one of the connection or the server, not of the query.
pub async fn ask(client: &Client, sql: &str) -> Result<Result<Query, Refusal>, Error> {
    let sql = sql.trim().trim_end_matches(';');
    let prepared = rolled_back(client, READ_ONLY, async {
        // Refuses more than one statement, so that none slips in below.
        let statement = client.prepare(sql).await?;
        client.batch_execute(&format!("prepare unstale_read as {sql}")).await?;
        Ok(statement)
    });
    let statement = match prepared.await {
        Ok(statement) => statement,
        Err(error) => return refuse(error, sql).map(Err),
    };
    let planned = rolled_back(client, READ_ONLY, plan(client, statement.params().len())).await;
    // It outlives transactions.
    client.batch_execute("deallocate unstale_read").await?;
    let plan = match planned {
        Ok(plan) => plan,
        Err(error) => return refuse(error, sql).map(Err),
    };
    let (uses, unseen) = match rolled_back(client, READ_WRITE, uses(client, sql, &statement)).await {
        Ok(uses) => (Some(uses), None),
        Err(error) => (None, Some(refuse(error, sql)?.message)),
    };
    let used = uses.as_ref().map(|uses| &uses.columns);
    let mut relations = merge(client, used, &plan.relations).await?;
    let Uses { functions, times, whims, mut joins, .. } = uses.unwrap_or_default();
    // A function may read the same relations, and nobody sees how.
    for relation in relations.iter_mut().filter(|_| functions.is_empty()) {
        relation.companions = joins.companions.remove(&relation.name).unwrap_or_default();
        relation.is_looked_up = joins.looked_up.contains(&relation.name);
    }
    let columns = statement.columns().iter().map(|column| column.type_().clone()).collect();
    let (parameters, takes, writes) = (statement.params().to_vec(), takes::takes(sql), plan.writes);
    Ok(Ok(Query { parameters, takes, columns, writes, relations, functions, times, whims, unseen }))
}

/// Does something in a transaction of its own, of which nothing remains.
async fn rolled_back<T>(
    client: &Client,
    begin: &str,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let outcome = async {
        client.batch_execute(begin).await?;
        work.await
    };
    let outcome = outcome.await;
    client.batch_execute("rollback").await?;
    outcome
}

/// What the server has against the query; an error that is not about it stays one.
fn refuse(error: Error, sql: &str) -> Result<Refusal, Error> {
    /// Beginnings of SQLSTATE: the connection, concurrency, resources, locks, operators, the system.
    const ELSEWHERE: [&str; 7] = ["08", "40", "53", "55P03", "57", "58", "XX"];
    let Some(refusal) = error.as_db_error() else { return Err(error) };
    let code = refusal.code().code();
    if ELSEWHERE.iter().any(|class| code.starts_with(class)) {
        return Err(error);
    }
    let line = match refusal.position() {
        Some(ErrorPosition::Original(at)) if sql.contains('\n') => {
            let before = sql.chars().take(usize::try_from(*at).unwrap_or(usize::MAX).saturating_sub(1));
            Some(before.filter(|character| *character == '\n').count() + 1)
        }
        _ => None,
    };
    let (message, hint) = (refusal.message().to_owned(), refusal.hint().map(ToOwned::to_owned));
    Ok(Refusal { message, hint, line, is_forbidden: code == "42501" })
}

/// What a plan shows.
#[derive(Debug, Default)]
struct Plan {
    relations: BTreeSet<TableName>,
    writes: bool,
}

/// Has the server plan what was prepared, which checks every privilege and reads no row.
async fn plan(client: &Client, parameters: usize) -> Result<Plan, Error> {
    client.batch_execute(WHOLE_PLAN).await?;
    let nulls = vec!["null"; parameters].join(", ");
    let arguments = if nulls.is_empty() { nulls } else { format!("({nulls})") };
    let explained = format!("explain (verbose, format json) execute unstale_read{arguments}");
    let mut json = String::new();
    for message in client.simple_query(&explained).await? {
        if let SimpleQueryMessage::Row(row) = message {
            json.push_str(row.get(0).unwrap_or_default());
            json.push('\n');
        }
    }
    let mut plan = Plan::default();
    // A plan that is nested too deep to be read leaves what the view shows.
    walk(&serde_json::from_str(&json).unwrap_or_default(), &mut plan);
    Ok(plan)
}

fn walk(node: &Value, plan: &mut Plan) {
    match node {
        Value::Object(fields) => {
            let text = |name: &str| fields.get(name).and_then(Value::as_str);
            if let Some((schema, table)) = text("Schema").zip(text("Relation Name")) {
                plan.relations.insert(TableName::new(schema, table));
            }
            plan.writes |= matches!(text("Node Type"), Some("ModifyTable" | "LockRows"));
            fields.values().for_each(|field| walk(field, plan));
        }
        Value::Array(items) => items.iter().for_each(|item| walk(item, plan)),
        _ => {}
    }
}

/// The columns of each relation that a query uses, and whether it does so itself.
type Columns = BTreeMap<TableName, BTreeMap<String, bool>>;

/// What the query uses, before the planner looked at it.
#[derive(Debug, Default)]
struct Uses {
    columns: Columns,
    functions: Vec<String>,
    times: Vec<String>,
    whims: Vec<String>,
    joins: Joins,
}

/// Makes a view of the query, of which PostgreSQL writes down what it depends on.
async fn uses(client: &Client, sql: &str, statement: &Statement) -> Result<Uses, Error> {
    const TYPES: &str =
        "select array(select format_type(t, null) from unnest($1::oid[]) with ordinality u (t, n) order by n)";
    if statement.columns().is_empty() {
        return Ok(Uses::default());
    }
    let oids: Vec<u32> = statement.params().iter().map(Type::oid).collect();
    let types: Vec<String> = client.query_one(TYPES, &[&oids]).await?.get(0);
    // Names of the query's own could occur twice.
    let names: Vec<_> = (1..=statement.columns().len()).map(|n| format!("c{n}")).collect();
    let (names, query) = (names.join(", "), without_parameters(sql, &types));
    client.batch_execute(&format!("create temporary view unstale_read ({names}) as {query}")).await?;
    let mut uses = Uses::default();
    for row in client.query(&format!("{PARTS}{USED}"), &[]).await? {
        let name = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        let columns = uses.columns.entry(name).or_default();
        columns.extend(row.get::<_, Option<String>>(2).map(|column| (column, row.get::<_, bool>(3))));
    }
    for row in client.query(&format!("{PARTS}{CALLED}"), &[]).await? {
        let kind = match (row.get(1), row.get(2)) {
            (true, _) => &mut uses.functions,
            (false, true) => &mut uses.times,
            (false, false) => &mut uses.whims,
        };
        kind.push(row.get(0));
    }
    let trees = client.query(&format!("{PARTS} select t.direct, t.tree from trees t where t.tree <> ''"), &[]).await?;
    let trees: Vec<(bool, String)> = trees.iter().map(|row| (row.get(0), row.get(1))).collect();
    uses.joins = joins::ask(client, &trees).await?;
    Ok(uses)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_is_looked_through() {
        let json = r#"[{"Plan": {"Node Type": "Nested Loop", "Plans": [
            {"Node Type": "Seq Scan", "Schema": "public", "Relation Name": "b", "Alias": "x"},
            {"Node Type": "Function Scan", "Schema": "public", "Function Name": "f"},
            {"Node Type": "Limit", "Plans": [{"Node Type": "Index Scan", "Schema": "a", "Relation Name": "b"}]}]}}]"#;
        let mut plan = Plan::default();
        walk(&serde_json::from_str(json).unwrap(), &mut plan);
        let names: Vec<_> = plan.relations.iter().map(ToString::to_string).collect();
        assert_eq!((names, plan.writes), (vec!["a.b".to_owned(), "public.b".to_owned()], false));
        walk(&serde_json::json!({"Node Type": "LockRows"}), &mut plan);
        assert!(plan.writes);
    }
}
