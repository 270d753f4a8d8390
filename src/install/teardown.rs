//! Removes what `setup` installed, in either mode.
//!
//! Owns `sql/teardown.sql`. It must not connect or print. Invariant: an outbox that belongs to
//! another slot is kept.

use tokio_postgres::{Client, Error};

use super::{outbox, script};
use crate::config::Settings;

const SCRIPT: &str = include_str!("../../sql/teardown.sql");

/// What `teardown` did with the outbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxRemoval {
    /// There was none.
    Absent,
    /// It was removed, with this many unread entries.
    Removed(i64),
    /// It was kept, because it belongs to the slot of this name.
    Kept(String),
}

/// Removes the outbox with its triggers, then the slot, the publication and the identity indexes,
/// in either mode.
///
/// # Errors
///
/// Also if a table could not be locked in time. Then nothing was removed.
pub async fn remove(client: &Client, settings: &Settings) -> Result<OutboxRemoval, Error> {
    const CONSUMERS: &str = "select slot from unstale.consumer order by slot = $1 desc limit 1";
    const PENDING: &str = "select count(*) from unstale.outbox";
    let mut outbox = OutboxRemoval::Absent;
    if outbox::is_installed(client).await? {
        let consumer = exists(client, "consumer").await?;
        let owner = match consumer {
            true => client.query_opt(CONSUMERS, &[&settings.slot]).await?.map(|row| row.get::<_, String>(0)),
            false => None,
        };
        if let Some(other) = owner.filter(|owner| *owner != settings.slot) {
            outbox = OutboxRemoval::Kept(other);
        } else {
            let pending: i64 = match exists(client, "outbox").await? {
                true => client.query_one(PENDING, &[]).await?.get(0),
                false => 0,
            };
            outbox::remove(client).await?;
            outbox = OutboxRemoval::Removed(pending);
        }
    }
    let emit = if matches!(outbox, OutboxRemoval::Kept(_)) { "keep" } else { "drop" };
    let parameters = [
        ("unstale.slot", settings.slot.as_str()),
        ("unstale.publication", settings.publication.as_str()),
        ("unstale.emit", emit),
    ];
    script::run(client, SCRIPT, &parameters).await?;
    Ok(outbox)
}

/// Whether the schema `unstale` has a table of this name.
async fn exists(client: &Client, table: &str) -> Result<bool, Error> {
    const EXISTS: &str = "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                          where n.nspname = 'unstale' and c.relname = $1 and c.relkind = 'r')";
    Ok(client.query_one(EXISTS, &[&table]).await?.get(0))
}
