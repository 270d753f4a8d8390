//! One connection to Redis: opening it, sending, and checking the replies.
//!
//! Owns what holds for one connection: the loaded scripts, the dataset and the clock. It must not
//! know batches, or when to try again. Invariants: every reply is checked; a replica is not taken
//! for a primary.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{Client, Cmd, ConnectionInfo, ErrorKind, FromRedisValue, Pipeline, RedisError, Value};

use super::dataset::{Dataset, RedisClock, info, time};
use super::liveness::Liveness;
use super::refusal::SinkError;
use super::scripts::Scripts;

/// How long to wait for the replies of one pipeline, including the time that it is queued.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// An open connection to a primary, with the scripts loaded.
#[derive(Debug)]
pub(super) struct RedisConnection {
    connection: MultiplexedConnection,
    liveness: Liveness,
    pub(super) scripts: Scripts,
    pub(super) dataset: Dataset,
    pub(super) clock: RedisClock,
}

impl RedisConnection {
    /// Connects, loads the scripts, and reads which dataset the server holds.
    ///
    /// # Errors
    ///
    /// Redis does not answer or refuses, or the server is a replica.
    pub(super) async fn open(client: &Client, liveness: Liveness) -> Result<Self, RedisError> {
        let mut connection = crate::redis::connect(client, RESPONSE_TIMEOUT).await?;
        let mut first = Pipeline::new();
        first.add_command(info()).add_command(time());
        for load in Scripts::load() {
            first.add_command(load);
        }
        let replies = send(&mut connection, &first).await?;
        let [info, time, hashes @ ..] = &*replies else {
            return Err(RedisError::from((ErrorKind::UnexpectedReturnType, "another number of replies than commands")));
        };
        let (dataset, clock) = (Dataset::from_reply(info)?, RedisClock::parse(time)?);
        Ok(Self { connection, liveness, scripts: Scripts::loaded(hashes)?, dataset, clock })
    }

    /// Sends a pipeline. Returns the replies in the order of the commands.
    ///
    /// # Errors
    ///
    /// The first error among the replies. Commands before and after it may have run.
    pub(super) async fn send(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        let replies = send(&mut self.connection, pipeline).await?;
        self.liveness.accepted();
        Ok(replies)
    }

    /// The same, with the errors among the replies.
    ///
    /// # Errors
    ///
    /// Redis did not answer.
    pub(super) async fn send_each(&mut self, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
        if pipeline.is_empty() {
            return Ok(Vec::new());
        }
        let replies = self.connection.send_packed_commands(pipeline, 0, pipeline.len()).await?;
        if !replies.iter().any(|reply| matches!(reply, Value::ServerError(_))) {
            self.liveness.accepted();
        }
        Ok(replies)
    }

    /// Sends one command, and reads its reply.
    pub(super) async fn ask<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        let reply = command.query_async(&mut self.connection).await?;
        self.liveness.accepted();
        Ok(reply)
    }
}

async fn send(connection: &mut MultiplexedConnection, pipeline: &Pipeline) -> Result<Vec<Value>, RedisError> {
    if pipeline.is_empty() {
        return Ok(Vec::new());
    }
    let mut replies = connection.send_packed_commands(pipeline, 0, pipeline.len()).await?;
    match replies.iter().position(|reply| matches!(reply, Value::ServerError(_))) {
        Some(at) => match replies.swap_remove(at) {
            Value::ServerError(error) => Err(error.into()),
            _ => Ok(replies),
        },
        None => Ok(replies),
    }
}

/// Opens a connection that only receives broadcasts.
///
/// # Errors
///
/// Redis does not answer, or refuses.
pub async fn connect_subscriber(info: &ConnectionInfo) -> Result<PubSub, SinkError> {
    let address = info.addr().to_string();
    let opened = async { crate::redis::subscriber(&crate::redis::open_client(info)?).await };
    opened.await.map_err(|error| SinkError::unusable(&address, error))
}

/// Asks a server for its version.
pub(super) async fn version(client: &Client) -> Result<String, RedisError> {
    let info: String = redis::cmd("INFO")
        .arg("server")
        .query_async(&mut crate::redis::connect(client, RESPONSE_TIMEOUT).await?)
        .await?;
    let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
    Ok(version.unwrap_or("unknown").trim().to_owned())
}
