//! What `teardown` removes: everything that `setup` made, in whichever mode that was.
//!
//! Owns `sql/teardown.sql` and what becomes of the outbox. It must not remove an outbox that belongs to another slot.

use tokio_postgres::{Client, Error};

use super::{outbox, script};
use crate::config::Settings;

const SCRIPT: &str = include_str!("../../sql/teardown.sql");

/// What became of the outbox when everything was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboxRemoval {
    /// There was none.
    Absent,
    /// It went, with this many entries that nobody had read.
    Removed(i64),
    /// It stays, because it is somebody else's: of the slot with this name.
    Kept(String),
}

/// Removes the slot, the publication and our indexes, and the outbox with its triggers, whatever the mode is.
///
/// # Errors
///
/// Also if a table could not be locked in time. Then the outbox is as it was, and the rest is not touched.
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

/// Whether there is a table of ours with this name.
async fn exists(client: &Client, table: &str) -> Result<bool, Error> {
    const EXISTS: &str = "select exists (select from pg_class c join pg_namespace n on n.oid = c.relnamespace \
                          where n.nspname = 'unstale' and c.relname = $1 and c.relkind = 'r')";
    Ok(client.query_one(EXISTS, &[&table]).await?.get(0))
}
