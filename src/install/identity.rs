//! Replica identities: the columns of the old row that the log carries.
//!
//! Owns how one is widened. It must not decide which need it. Invariant: an interrupted attempt can
//! be repeated.

use tokio_postgres::{Client, Error};

use super::step::Step;
use crate::catalog::{quote, quote_table};
use crate::rules::Widening;

/// Widens the replica identity of a table and of each of its partitions.
pub(super) async fn widen(client: &Client, widening: &Widening) -> Result<Step, Error> {
    for leaf in &widening.leaves {
        // An interrupted attempt leaves an invalid index.
        let index = widening.index(leaf);
        let unfinished = "select exists (select from pg_index i join pg_class c on c.oid = i.indexrelid \
                          join pg_namespace n on n.oid = c.relnamespace \
                          where n.nspname = $1 and c.relname = $2 and not i.indisvalid)";
        if client.query_one(unfinished, &[&leaf.schema, &index]).await?.get(0) {
            let name = format!("{}.{}", quote(&leaf.schema), quote(&index));
            client.batch_execute(&format!("DROP INDEX CONCURRENTLY {name}")).await?;
        }
        for statement in widening.statements_for(leaf) {
            tracing::debug!(statement, table = quote_table(leaf), "widening a replica identity");
            client.batch_execute(&statement).await?;
        }
    }
    Ok(Step::Done(format!("the replica identity of {} has the columns of the keys", widening.table)))
}
