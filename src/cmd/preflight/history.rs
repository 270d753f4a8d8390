//! The database, compared with what Redis remembers.
//!
//! Owns the questions before a process starts. While it runs, the connections prove themselves.
//! Invariant: a Redis that is not available, or remembers nothing, contradicts nothing.

use std::time::Duration;

use redis::RedisError;
use tokio_postgres::Client;

use crate::cmd::failure::Failure;
use crate::coherence::history::Origin;
use crate::coherence::server::ServerIdentity;
use crate::coherence::watermark::Names;
use crate::config::Settings;
use crate::key::CacheKey;
use crate::sink::OwnerRecord;

/// How long Redis may take to answer.
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The history that Redis remembers. None if it remembers none, or does not answer.
pub(in crate::cmd) async fn remembered(settings: &Settings) -> Option<Origin> {
    Origin::decode(&read(settings, |names| &names.origin).await?)
}

/// The service that is at work under the name in the file, as far as Redis says.
pub(in crate::cmd) async fn owner(settings: &Settings) -> Option<OwnerRecord> {
    serde_json::from_str(&read(settings, |names| &names.owner).await?).ok()
}

async fn read(settings: &Settings, key: fn(&Names) -> &CacheKey) -> Option<String> {
    let asked = async {
        let client = crate::redis::open_client(&settings.redis)?;
        let mut connection = crate::redis::connect(&client, ANSWER_MAX).await?;
        let mut get = redis::cmd("GET");
        get.arg(key(&Names::new(&settings.namespace, &settings.slot)).as_bytes());
        get.query_async::<Option<String>>(&mut connection).await
    };
    let held: Result<Option<String>, RedisError> = asked.await;
    held.unwrap_or_else(|error| {
        tracing::debug!(error = crate::redis::describe(&error), "Redis does not say what it remembers");
        None
    })
}

/// Whether Redis remembers that the changes of this database reached it.
pub(in crate::cmd) async fn is_remembered(settings: &Settings, client: &Client) -> Result<bool, tokio_postgres::Error> {
    let Some(origin) = remembered(settings).await else { return Ok(false) };
    Ok(origin.is_of_system(&ServerIdentity::read(client).await?.system))
}

/// Fails if the changes of another database reach the Redis of the file. A server that was promoted
/// is the same database.
pub(in crate::cmd) async fn require_same_database(settings: &Settings, client: &Client) -> Result<(), Failure> {
    let Some(origin) = remembered(settings).await else { return Ok(()) };
    if origin.is_of_system(&ServerIdentity::read(client).await?.system) {
        return Ok(());
    }
    Err(Failure::configuration(format!(
        "{} is another database than the one whose changes reach Redis at {}: both must belong \
         together; correct source.url, or name another target.namespace or source.slot",
        settings.postgres,
        settings.redis.addr(),
    )))
}
