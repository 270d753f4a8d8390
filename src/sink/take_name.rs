//! Taking the name of a slot in a namespace of Redis, and giving it back.
//!
//! Owns how it is recognised that another service is at work. It must not know how a record is
//! written; [`super::owner`] does. Invariant: a service is at work only if its record changes, so
//! that one that was killed is waited for and not obeyed.

use std::time::Duration;

use redis::{Pipeline, RedisError};

use super::apply::Sink;
use super::owner::{NameTaken, OWNER_TTL, OwnerRecord, other};
use super::retry::RetryState;
use super::scripts::script;

/// How often the record of another service is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);

impl Sink {
    /// Takes the name for this process. Tries again until Redis answers. If another service had the
    /// name a moment ago, waits until its record has ended.
    ///
    /// # Errors
    ///
    /// Another service is at work under the name.
    pub async fn take_name(&mut self, record: OwnerRecord) -> Result<(), NameTaken> {
        let was_ours = self.owner.is_some();
        let mut retry = RetryState::default();
        let mut seen: Option<String> = None;
        loop {
            let held = match self.try_take(&record).await {
                Ok(held) => held,
                Err(error) => {
                    self.link.failed(&error, &mut retry).await;
                    continue;
                }
            };
            self.link.succeeded(&retry);
            let Some(held) = held else {
                self.owner = Some(record);
                return Ok(());
            };
            match &seen {
                Some(before) if *before != held => {
                    let redis = self.address().to_owned();
                    let owner = Box::new(serde_json::from_str(&held).unwrap_or_default());
                    return Err(NameTaken { owner, key: self.names.owner.to_string(), redis, was_ours });
                }
                Some(_) => {}
                None => {
                    tracing::info!(
                        seconds = OWNER_TTL.as_secs(),
                        "another service used this name in Redis a moment ago; waiting until it is known to have ended"
                    );
                    seen = Some(held);
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Returns the record of another service that has the name.
    async fn try_take(&mut self, record: &OwnerRecord) -> Result<Option<String>, RedisError> {
        let connection = self.link.open().await?;
        let write = record.write(&self.names, &connection.scripts);
        let replies = connection.send(Pipeline::new().add_command(write)).await?;
        Ok(replies.first().and_then(other))
    }

    /// Gives the name back, if Redis is available.
    pub async fn leave_name(&mut self) {
        const GOODBYE_MAX: Duration = Duration::from_secs(1);
        let Some(owner) = self.owner.take() else { return };
        let left = async {
            let connection = self.link.open().await?;
            let mut disown = script(&connection.scripts.disown, &[&self.names.owner]);
            disown.arg(&owner.instance);
            connection.send(Pipeline::new().add_command(disown)).await
        };
        if !matches!(tokio::time::timeout(GOODBYE_MAX, left).await, Ok(Ok(_))) {
            tracing::debug!("Redis could not be told that this service has stopped; it forgets that by itself");
        }
    }
}
