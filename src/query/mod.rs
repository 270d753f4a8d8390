//! Analyses a SQL query with PostgreSQL's help: its parameters, columns, and the relations it
//! reads.
//!
//! Owns the analysis. It must not run the query or know what it is for. Invariants: nothing remains
//! in the session or the database; relations that the planner removes, and those that only the plan
//! shows, are both reported.

mod joins;
mod lexer;
mod notation;
mod parameter_use;
mod plan;
mod rejected;
mod relations;
mod scans;
mod tree;
mod uses;

use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error};

pub use self::notation::Notation;
pub use self::parameter_use::ParameterUse;
pub use self::rejected::RejectedQuery;
use self::rejected::rejected;
use self::relations::merge;
use self::uses::QueryUses;
use crate::catalog::QueryRelation;

/// The time-out limits the wait for locks that other sessions hold.
const READ_ONLY: &str = "begin isolation level read committed read only; set local statement_timeout = '10s'";

/// Creating a temporary view needs a read-write transaction, although it is rolled back.
const READ_WRITE: &str = "begin isolation level read committed read write; set local statement_timeout = '10s'";

/// What is known of a query.
#[derive(Debug)]
pub struct Query {
    /// The types of the parameters, in order.
    pub parameters: Vec<Type>,
    /// How it uses its parameters: the number, from 1, and the use, for each occurrence.
    pub parameter_uses: Vec<(usize, ParameterUse)>,
    /// The types of the result columns.
    pub columns: Vec<Type>,
    /// Whether it changes or locks rows.
    pub writes: bool,
    /// The relations it reads, each once, without those of system schemas.
    pub relations: Vec<QueryRelation>,
    /// Functions of the application that it calls; they may read other relations.
    pub functions: Vec<String>,
    /// Functions that depend on the time.
    pub time_functions: Vec<String>,
    /// Functions that depend on the session, or are random.
    pub volatile_functions: Vec<String>,
    /// Why functions and columns are not known: the server's message.
    pub unseen: Option<String>,
}

/// Analyses a query.
///
/// # Errors
///
/// Of the connection or the server. A problem of the query is a [`RejectedQuery`].
pub async fn analyse(client: &Client, sql: &str) -> Result<Result<Query, RejectedQuery>, Error> {
    let sql = sql.trim().trim_end_matches(';');
    let prepared = rolled_back(client, READ_ONLY, async {
        // Preparing refuses more than one statement, so that the text below is safe.
        let statement = client.prepare(sql).await?;
        client.batch_execute(&format!("prepare unstale_read as {sql}")).await?;
        Ok(statement)
    });
    let statement = match prepared.await {
        Ok(statement) => statement,
        Err(error) => return rejected(error, sql).map(Err),
    };
    let planned = rolled_back(client, READ_ONLY, plan::explain(client, statement.params().len())).await;
    // A prepared statement outlives its transaction.
    client.batch_execute("deallocate unstale_read").await?;
    let plan = match planned {
        Ok(plan) => plan,
        Err(error) => return rejected(error, sql).map(Err),
    };
    let (uses, unseen) = match rolled_back(client, READ_WRITE, uses::uses(client, sql, &statement)).await {
        Ok(uses) => (Some(uses), None),
        Err(error) => (None, Some(rejected(error, sql)?.message)),
    };
    let used = uses.as_ref().map(|uses| &uses.columns);
    let mut relations = merge(client, used, &plan.relations).await?;
    let QueryUses { functions, time_functions, volatile_functions, mut joins, .. } = uses.unwrap_or_default();
    // A function may read the same relations in other ways, so then joins prove nothing.
    for relation in relations.iter_mut().filter(|_| functions.is_empty()) {
        relation.companions = joins.companions.remove(&relation.name).unwrap_or_default();
        relation.is_looked_up = joins.looked_up.contains(&relation.name);
    }
    let columns = statement.columns().iter().map(|column| column.type_().clone()).collect();
    let (parameters, parameter_uses, writes) =
        (statement.params().to_vec(), parameter_use::parameter_uses(sql), plan.writes);
    Ok(Ok(Query {
        parameters,
        parameter_uses,
        columns,
        writes,
        relations,
        functions,
        time_functions,
        volatile_functions,
        unseen,
    }))
}

/// Runs some work in a transaction that is rolled back.
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
