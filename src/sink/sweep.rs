//! Searching the cache for what patterns and tags remove, on a connection of its own.
//!
//! Owns the retry of a search. It must not know what a removal means to whoever keeps copies. Invariants: a search
//! that was cut short begins again; it is never done on another dataset than the one whose history was proven.

use redis::{Client, Pipeline};
use tokio::sync::mpsc;

use super::connection::{Dataset, RedisConnection, script};
use super::liveness::Liveness;
use super::redis::{Patience, Unproven, notice, relief};
use super::refusal::explain;
use crate::change::Lsn;
use crate::coherence::watermark::Names;
use crate::plan::{Plan, Removal, RuleId};

/// What waits when it has to.
const WHAT: &str = "removals by tag or pattern";

/// Searches and removes.
#[derive(Debug)]
pub struct Sweeper {
    client: Client,
    address: String,
    names: Names,
    proven: Option<Dataset>,
    connection: Option<RedisConnection>,
}

impl Sweeper {
    pub(super) fn new(client: Client, address: String, names: Names) -> Self {
        Self { client, address, names, proven: None, connection: None }
    }

    /// Removes all of it, however often that has to be tried. What was found in sets is handed on as it goes; some of it
    /// may be handed on twice.
    pub async fn sweep(
        &mut self,
        removals: &[(RuleId, Removal)],
        started: Lsn,
        found: &mpsc::Sender<Plan>,
    ) -> Result<(), Unproven> {
        let mut patience = Patience::default();
        if removals.is_empty() {
            return Ok(());
        }
        loop {
            match self.attempt(removals, started, found).await {
                Ok(true) => {
                    relief(WHAT, &self.address, &patience);
                    return Ok(());
                }
                Ok(false) => return Err(Unproven),
                Err(error) => {
                    if explain(&error).reconnect {
                        self.connection = None;
                    }
                    notice(WHAT, &self.address, &error, &mut patience);
                    tokio::time::sleep(patience.backoff.next_wait()).await;
                }
            }
        }
    }

    /// Whether it is still the dataset it was.
    async fn attempt(
        &mut self,
        removals: &[(RuleId, Removal)],
        started: Lsn,
        found: &mpsc::Sender<Plan>,
    ) -> Result<bool, redis::RedisError> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => RedisConnection::open(&self.client, Liveness::default()).await?,
        };
        let proven = self.proven.get_or_insert_with(|| connection.dataset.clone());
        if !connection.dataset.continues(proven) {
            return Ok(false);
        }
        let mut raise = script(&connection.scripts.raise, &[&self.names.started]);
        raise.arg(started.to_fixed_hex());
        connection.send(Pipeline::new().add_command(raise)).await?;
        connection.remove(removals, &self.names, Some(found)).await?;
        self.connection = Some(connection);
        Ok(true)
    }
}
