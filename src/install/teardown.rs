//! Removes what `setup` installed for one mode, slot and publication.
//!
//! Owns what is removed, what is kept, and why. It must not connect or print. Invariants: what
//! another daemon of this database may use is kept; everything that locks a table of an application
//! is removed in one transaction that does not wait long.

use tokio_postgres::Client;

use super::ddl_notice::{self, REMOVE_DDL_NOTICE};
use super::emit::{self, EmitFunction};
use super::error::InstallError;
use super::execute;
use super::outbox;
use super::step::PlannedStatement;
use crate::catalog::quote;
use crate::config::{Mode, Settings};
use crate::postgres::Address;
use crate::postgres::blockers::Say;

/// What became of one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TeardownStep {
    /// It was removed.
    Removed(String),
    /// It was kept, and why.
    Kept(String, String),
}

/// Removes what belongs to this file's mode. While that waits, `say` is told what for.
///
/// # Errors
///
/// Also if a table could not be locked in time, or if a process reads the slot. Then nothing was
/// removed.
pub async fn remove(client: &Client, settings: &Settings, say: Say<'_>) -> Result<Vec<TeardownStep>, InstallError> {
    match settings.mode {
        Mode::Slot => remove_slot(client, settings, say).await,
        Mode::Outbox => remove_outbox(client, settings, say).await,
    }
}

async fn remove_slot(client: &Client, settings: &Settings, say: Say<'_>) -> Result<Vec<TeardownStep>, InstallError> {
    const SLOT: &str =
        "select active_pid from pg_replication_slots where slot_name = $1 and database = current_database()";
    const PUBLISHED: &str = "select exists (select from pg_publication where pubname = $1)";
    const DROP: &str = "select pg_drop_replication_slot(slot_name) from pg_replication_slots \
         where slot_name = $1 and database = current_database()";
    let slot = client.query_opt(SLOT, &[&settings.slot]).await?;
    if let Some(pid) = slot.as_ref().and_then(|row| row.get::<_, Option<i32>>(0)) {
        return Err(InstallError::SlotActive { slot: settings.slot.clone(), pid });
    }
    let mut removals = Vec::new();
    let mut statements = Vec::new();
    if client.query_one(PUBLISHED, &[&settings.publication]).await?.get(0) {
        statements.push(format!("DROP PUBLICATION {};", quote(&settings.publication)));
        removals.push(TeardownStep::Removed(format!("publication {}", settings.publication)));
    }
    identities(client, settings, &mut statements, &mut removals).await?;
    let others = other_users(client, settings).await?;
    shared(client, others, &mut statements, &mut removals).await?;
    apply(client, &settings.postgres, &statements, say).await?;
    if slot.is_some() {
        client.execute(DROP, &[&settings.slot]).await?;
        removals.insert(0, TeardownStep::Removed(format!("replication slot {}", settings.slot)));
    }
    Ok(removals)
}

/// Drops the indexes that `setup` made for replica identities, unless another publication carries
/// their table. Tables with REPLICA IDENTITY FULL keep it: it is not recorded who set it.
async fn identities(
    client: &Client,
    settings: &Settings,
    statements: &mut Vec<String>,
    removals: &mut Vec<TeardownStep>,
) -> Result<(), InstallError> {
    const INDEXES: &str = "select i.indexrelid::regclass::text, i.indrelid::regclass::text, i.indisreplident, \
         (select string_agg(distinct p.pubname, ', ') from pg_publication p where p.pubname <> $1 and (p.puballtables \
            or exists (select from pg_publication_namespace s where s.pnpubid = p.oid and s.pnnspid = t.relnamespace) \
            or exists (select from pg_publication_rel r where r.prpubid = p.oid and r.prrelid in \
                        (select t.oid union select relid from pg_partition_ancestors(t.oid)))))::text \
         from pg_index i join pg_class c on c.oid = i.indexrelid join pg_class t on t.oid = i.indrelid \
         where c.relname ~ '_unstale_[0-9a-f]{8}$' and i.indisunique order by 1";
    for row in client.query(INDEXES, &[&settings.publication]).await? {
        let (index, table): (String, String) = (row.get(0), row.get(1));
        if let Some(publications) = row.get::<_, Option<String>>(3) {
            let why = format!("publication {publications} carries {table}");
            removals.push(TeardownStep::Kept(format!("index {index}"), why));
            continue;
        }
        if row.get(2) {
            statements.push(format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT;"));
        }
        statements.push(format!("DROP INDEX {index};"));
        removals.push(TeardownStep::Removed(format!("index {index}")));
    }
    Ok(())
}

async fn remove_outbox(client: &Client, settings: &Settings, say: Say<'_>) -> Result<Vec<TeardownStep>, InstallError> {
    const PENDING: &str = "select count(*) from unstale.outbox";
    let mut removals = Vec::new();
    let mut statements = Vec::new();
    let mut others = other_users(client, settings).await?;
    if outbox::is_installed(client).await? {
        match outbox::consumer(client, &settings.slot).await? {
            Some(other) if other != settings.slot => {
                let why = format!("it belongs to `{other}`, and source.slot is `{}`", settings.slot);
                removals.push(TeardownStep::Kept("the outbox".to_owned(), why));
                others = Some(format!("the outbox belongs to `{other}`"));
            }
            _ => {
                let pending: i64 = match outbox::has_table(client, "outbox").await? {
                    true => client.query_one(PENDING, &[]).await?.get(0),
                    false => 0,
                };
                let entries = match pending {
                    0 => "it was empty".to_owned(),
                    entries => format!("with {entries} entries that were not read"),
                };
                statements.push(outbox::REMOVE.to_owned());
                removals.push(TeardownStep::Removed(format!("the outbox and its triggers, {entries}")));
            }
        }
    }
    shared(client, others, &mut statements, &mut removals).await?;
    apply(client, &settings.postgres, &statements, say).await?;
    Ok(removals)
}

/// Who else may use `unstale.emit` and the event triggers, in words.
async fn other_users(client: &Client, settings: &Settings) -> Result<Option<String>, InstallError> {
    const SLOTS: &str = "select string_agg(slot_name::text, ', ' order by slot_name) from pg_replication_slots \
         where plugin = 'pgoutput' and database = current_database() and ($1 or slot_name <> $2)";
    let in_outbox_mode = settings.mode == Mode::Outbox;
    let row = client.query_one(SLOTS, &[&in_outbox_mode, &settings.slot]).await?;
    if let Some(slots) = row.get::<_, Option<String>>(0) {
        return Ok(Some(format!("a daemon may read the replication slot {slots}")));
    }
    let has_outbox = !in_outbox_mode && outbox::is_installed(client).await?;
    Ok(has_outbox.then(|| "there is an outbox".to_owned()))
}

/// The function and the event triggers that both modes share, then the schema if it is empty.
async fn shared(
    client: &Client,
    others: Option<String>,
    statements: &mut Vec<String>,
    removals: &mut Vec<TeardownStep>,
) -> Result<(), InstallError> {
    const SCHEMA: &str = "do $$ begin \
         if to_regnamespace('unstale') is not null and not exists (select from pg_depend \
           where refclassid = 'pg_namespace'::regclass and refobjid = to_regnamespace('unstale') and deptype = 'n') then \
           drop schema unstale; \
         end if; end $$;";
    let found = emit::read(client).await?;
    let mut parts = Vec::new();
    if matches!(found, EmitFunction::Current | EmitFunction::Outdated) {
        parts.push(("function unstale.emit", "DROP FUNCTION unstale.emit(text, jsonb);"));
    }
    if ddl_notice::read(client).await?.is_installed() {
        parts.push((super::setup::DDL_NOTICE_SUBJECT, REMOVE_DDL_NOTICE));
    }
    for (part, statement) in parts {
        match &others {
            Some(others) => removals.push(TeardownStep::Kept(part.to_owned(), others.clone())),
            None => {
                statements.push(statement.to_owned());
                removals.push(TeardownStep::Removed(part.to_owned()));
            }
        }
    }
    statements.push(SCHEMA.to_owned());
    Ok(())
}

/// Everything or nothing.
async fn apply(client: &Client, address: &Address, statements: &[String], say: Say<'_>) -> Result<(), InstallError> {
    // One message is one transaction.
    let transaction = PlannedStatement::new(statements.join("\n"), "");
    execute::run(client, address, &transaction, say).await
}
