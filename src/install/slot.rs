//! The replication slot.
//!
//! Owns `sql/slot.sql`. It must not read the slot or decide that it is lost. Invariant: a second
//! run changes nothing.

use tokio_postgres::{Client, Error};

use super::script;
use super::step::Step;

const SCRIPT: &str = include_str!("../../sql/slot.sql");

/// Creates the slot unless it exists.
pub(super) async fn create(client: &Client, slot: &str) -> Result<Step, Error> {
    const EXISTS: &str = "select exists (select from pg_replication_slots where slot_name = $1)";
    let before: bool = client.query_one(EXISTS, &[&slot]).await?.get(0);
    script::run(client, SCRIPT, &[("unstale.slot", slot)]).await?;
    Ok(Step::of(!before, format!("replication slot {slot}")))
}

/// Replaces the slot by a new one, which begins at the current end of the log. Changes that the old
/// one had not sent are lost.
///
/// # Errors
///
/// Also if a process is reading the slot.
pub async fn recreate(client: &Client, slot: &str) -> Result<(), Error> {
    const DROP: &str = "select pg_drop_replication_slot(slot_name) from pg_replication_slots where slot_name = $1";
    client.execute(DROP, &[&slot]).await?;
    script::run(client, SCRIPT, &[("unstale.slot", slot)]).await
}
