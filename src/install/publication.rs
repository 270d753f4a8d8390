//! The publication: the tables whose changes the replication slot sends.
//!
//! Owns `sql/publication.sql`. It must not decide which tables are needed. Invariant: a second run
//! changes nothing.

use tokio_postgres::{Client, Error};

use super::script;
use super::step::Step;
use crate::change::TableName;

const SCRIPT: &str = include_str!("../../sql/publication.sql");

/// Creates the publication, or changes it to publish exactly these tables.
pub(super) async fn publish(client: &Client, publication: &str, tables: &[&TableName]) -> Result<Step, Error> {
    const PUBLISHED: &str = "select string_agg(pubname || prrelid || pubviaroot, ',' order by prrelid) \
         from pg_publication left join pg_publication_rel on prpubid = pg_publication.oid where pubname = $1";
    let before: Option<String> = client.query_one(PUBLISHED, &[&publication]).await?.get(0);
    let names: Vec<_> = tables.iter().map(|table| [&table.schema, &table.table]).collect();
    let names = serde_json::to_string(&names).expect("texts always serialize");
    script::run(client, SCRIPT, &[("unstale.publication", publication), ("unstale.tables", &names)]).await?;
    let after: Option<String> = client.query_one(PUBLISHED, &[&publication]).await?.get(0);
    let listed: Vec<_> = tables.iter().map(ToString::to_string).collect();
    Ok(Step::of(before != after, format!("publication {publication} publishes {}", listed.join(", "))))
}
