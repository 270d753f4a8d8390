//! What a query takes, gives and reads, as PostgreSQL itself has it.
//!
//! Owns the questions. It must not run the query or judge the answer. Invariants: nothing is left behind in the session
//! or the database; what the planner does away with, and what only it sees, are both told.

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

/// Whoever holds a lock that a question waits for may hold it for long.
const READ_ONLY: &str = "begin isolation level read committed read only; set local statement_timeout = '10s'";

/// A temporary view is a change, too, although it never takes effect.
const READ_WRITE: &str = "begin isolation level read committed read write; set local statement_timeout = '10s'";

/// What PostgreSQL has to say of a query.
#[derive(Debug)]
pub struct Query {
    /// The types of its parameters, as they are numbered.
    pub parameters: Vec<Type>,
    /// What it does with each parameter, by its number from 1, in each place.
    pub parameter_uses: Vec<(usize, ParameterUse)>,
    /// The types of what it returns.
    pub columns: Vec<Type>,
    /// It changes or locks rows.
    pub writes: bool,
    /// What it reads, each once, outside the system's own schemas.
    pub relations: Vec<QueryRelation>,
    /// The application's own functions that it calls and that may read more.
    pub functions: Vec<String>,
    /// What it calls that goes by the time.
    pub time_functions: Vec<String>,
    /// What it calls that goes by the session, or by chance.
    pub volatile_functions: Vec<String>,
    /// Why functions and columns are not known, in the server's words.
    pub unseen: Option<String>,
}

/// Asks what a query takes, gives and reads. An error is one of the connection or the server, not of the query.
pub async fn ask(client: &Client, sql: &str) -> Result<Result<Query, RejectedQuery>, Error> {
    let sql = sql.trim().trim_end_matches(';');
    let prepared = rolled_back(client, READ_ONLY, async {
        // Refuses more than one statement, so that none slips in below.
        let statement = client.prepare(sql).await?;
        client.batch_execute(&format!("prepare unstale_read as {sql}")).await?;
        Ok(statement)
    });
    let statement = match prepared.await {
        Ok(statement) => statement,
        Err(error) => return rejected(error, sql).map(Err),
    };
    let planned = rolled_back(client, READ_ONLY, plan::explain(client, statement.params().len())).await;
    // It outlives transactions.
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
    // A function may read the same relations, and nobody sees how.
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
