//! Replica identities: what the log carries of an old row.
//!
//! Owns how one is widened. It must not decide which need it. Invariant: an attempt that was interrupted can be repeated.

use tokio_postgres::{Client, Error};

use super::step::Step;
use crate::catalog::{quote, quote_table};
use crate::rules::Widening;

/// Widens the identity of a table, in each of its partitions.
pub(super) async fn widen(client: &Client, widening: &Widening) -> Result<Step, Error> {
    for leaf in &widening.leaves {
        // An earlier attempt may have left an index that was never finished.
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
    Ok(Step::Done(format!("the replica identity of {} carries what the keys need", widening.table)))
}
