//! The replication slot.
//!
//! Owns the statement that creates it. It must not read the slot or decide that it is lost.

use tokio_postgres::{Client, Error};

use crate::postgres::Address;
use crate::postgres::blockers::{self, Say};

/// From this major version on a slot can survive a failover.
pub const FAILOVER_SINCE: i32 = 17;

/// What creating a slot costs.
pub const COST: &str = "waits until every running transaction has ended; from then on, PostgreSQL keeps the log until \
     the slot has read it";

/// The statement that creates the slot. It does nothing below `wal_level = logical`, or if the slot
/// exists. Create the publication first: a slot that is older cannot decode with it.
pub fn create(slot: &str, major_version: i32) -> String {
    let failover = if major_version >= FAILOVER_SINCE { ", failover => true" } else { "" };
    format!(
        "SELECT pg_create_logical_replication_slot('{slot}', 'pgoutput'{failover})\n \
         WHERE current_setting('wal_level') = 'logical'\n   \
         AND NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{slot}');"
    )
}

/// Replaces the slot by a new one, which begins at the current end of the log. Changes that the old
/// one had not sent are lost. `say` is told which transactions that waits for.
///
/// # Errors
///
/// Also if a process is reading the slot.
pub async fn recreate(client: &Client, address: &Address, slot: &str, say: Say<'_>) -> Result<(), Error> {
    const DROP: &str = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1";
    const VERSION: &str = "select current_setting('server_version_num')::int / 10000";
    client.execute(DROP, &[&slot]).await?;
    let version: i32 = client.query_one(VERSION, &[]).await?.get(0);
    let pid = blockers::backend(client).await?;
    let statement = create(slot, version);
    blockers::while_waiting(address, pid, say, client.batch_execute(&statement)).await
}
