//! Installing in PostgreSQL what replication needs, and removing it.
//!
//! Owns the order of the scripts in `sql/`; those of the outbox have a module of their own. It must not decide which
//! tables or identities are needed.
//! Invariants: running twice changes nothing the second time; no step leaves an application's writes
//! refused, so a table's identity is widened before the table is published.

use tokio_postgres::{Client, Error};

use crate::catalog::{quote, quote_table};
use crate::change::TableName;
use crate::config::Settings;
use crate::rules::Widening;

const PUBLICATION: &str = include_str!("../../sql/publication.sql");
/// The function by which applications emit events.
pub const EMIT: &str = include_str!("../../sql/emit.sql");
const SLOT: &str = include_str!("../../sql/slot.sql");
const TEARDOWN: &str = include_str!("../../sql/teardown.sql");

/// The example domain's tables.
pub const EXAMPLE_SCHEMA: &str = include_str!("../../sql/example/schema.sql");
const EXAMPLE_SEED: &str = include_str!("../../sql/example/seed.sql");

/// What setup found to do, or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It was made or changed.
    Done(String),
    /// It was there already.
    Unchanged(String),
}

/// Makes identities wide enough, then the publication, then the slot.
pub async fn apply(
    client: &Client,
    settings: &Settings,
    tables: &[&TableName],
    events: bool,
    widenings: &[Widening],
) -> Result<Vec<Step>, Error> {
    let mut steps = Vec::new();
    for widening in widenings {
        widen(client, widening).await?;
        steps.push(Step::Done(format!("the replica identity of {} carries what the keys need", widening.table)));
    }
    let published = "select string_agg(pubname || prrelid || pubviaroot, ',' order by prrelid) from pg_publication \
                     left join pg_publication_rel on prpubid = pg_publication.oid where pubname = $1";
    let before: Option<String> = client.query_one(published, &[&settings.publication]).await?.get(0);
    let names: Vec<_> = tables.iter().map(|table| [&table.schema, &table.table]).collect();
    let names = serde_json::to_string(&names).expect("texts always serialize");
    run_with(client, PUBLICATION, &[("unstale.publication", &settings.publication), ("unstale.tables", &names)])
        .await?;
    let after: Option<String> = client.query_one(published, &[&settings.publication]).await?.get(0);
    let listed: Vec<_> = tables.iter().map(ToString::to_string).collect();
    steps.push(step(before != after, format!("publication {} carries {}", settings.publication, listed.join(", "))));

    // That of an outbox is replaced: nobody would read what it writes.
    let installed = "select prosrc like '%pg_logical_emit_message%' from pg_proc \
                     where oid = to_regprocedure('unstale.emit(text, jsonb)')";
    let before: Option<bool> = client.query_opt(installed, &[]).await?.map(|row| row.get(0));
    if events || before.is_some() {
        client.batch_execute(EMIT).await?;
        steps.push(step(before != Some(true), "function unstale.emit".to_owned()));
    }

    let exists = "select exists (select from pg_replication_slots where slot_name = $1)";
    let before: bool = client.query_one(exists, &[&settings.slot]).await?.get(0);
    run_with(client, SLOT, &[("unstale.slot", &settings.slot)]).await?;
    steps.push(step(!before, format!("replication slot {}", settings.slot)));
    Ok(steps)
}

/// Replaces the slot by a new one, which begins at the end of the log; what the old one had not sent is lost.
/// An error if somebody reads it.
pub async fn recreate_slot(client: &Client, slot: &str) -> Result<(), Error> {
    const DROP: &str = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1";
    client.execute(DROP, &[&slot]).await?;
    run_with(client, SLOT, &[("unstale.slot", slot)]).await
}

fn step(changed: bool, text: String) -> Step {
    if changed { Step::Done(text) } else { Step::Unchanged(text) }
}

/// What became of the outbox when everything was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outbox {
    /// There was none.
    Absent,
    /// It went, with this many entries that nobody had read.
    Removed(i64),
    /// It stays, because it is somebody else's: of the slot with this name.
    Others(String),
}

/// Removes the slot, the publication and our indexes, and the outbox with its triggers, whatever the mode is.
///
/// # Errors
///
/// Also if a table could not be locked in time. Then the outbox is as it was, and the rest is not touched.
pub async fn remove(client: &Client, settings: &Settings) -> Result<Outbox, Error> {
    const CONSUMERS: &str = "select slot from unstale.consumer order by slot = $1 desc limit 1";
    const PENDING: &str = "select count(*) from unstale.outbox";
    let mut outbox = Outbox::Absent;
    if super::outbox::is_installed(client).await? {
        let consumer = exists(client, "consumer").await?;
        let owner = match consumer {
            true => client.query_opt(CONSUMERS, &[&settings.slot]).await?.map(|row| row.get::<_, String>(0)),
            false => None,
        };
        if let Some(other) = owner.filter(|owner| *owner != settings.slot) {
            outbox = Outbox::Others(other);
        } else {
            let pending: i64 = match exists(client, "outbox").await? {
                true => client.query_one(PENDING, &[]).await?.get(0),
                false => 0,
            };
            super::outbox::remove(client).await?;
            outbox = Outbox::Removed(pending);
        }
    }
    let emit = if matches!(outbox, Outbox::Others(_)) { "keep" } else { "drop" };
    let parameters = [
        ("unstale.slot", settings.slot.as_str()),
        ("unstale.publication", settings.publication.as_str()),
        ("unstale.emit", emit),
    ];
    run_with(client, TEARDOWN, &parameters).await?;
    Ok(outbox)
}

/// Whether there is a table of ours with this name.
async fn exists(client: &Client, table: &str) -> Result<bool, Error> {
    const EXISTS: &str = "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                          where n.nspname = 'unstale' and c.relname = $1 and c.relkind = 'r')";
    Ok(client.query_one(EXISTS, &[&table]).await?.get(0))
}

/// Creates the example domain with this many users.
pub async fn example(client: &Client, users: u32) -> Result<(), Error> {
    client.batch_execute(EXAMPLE_SCHEMA).await?;
    run_with(client, EXAMPLE_SEED, &[("unstale.users", &users.to_string())]).await
}

/// Runs a script that reads its parameters from settings of the session.
async fn run_with(client: &Client, script: &str, parameters: &[(&str, &str)]) -> Result<(), Error> {
    for (name, value) in parameters {
        client.execute("select set_config($1, $2, false)", &[name, value]).await?;
    }
    client.batch_execute(script).await
}

async fn widen(client: &Client, widening: &Widening) -> Result<(), Error> {
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
    Ok(())
}
