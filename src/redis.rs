//! How to reach Redis.
//!
//! Owns the settings of a connection, and how an error is described. It must not know what is sent.
//! Invariants: every wait has a limit; the description of an error never repeats arguments.

use std::io;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, RedisError};

/// The longest wait for a connection.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A client of the server. It opens no connection yet.
pub fn open_client(info: &ConnectionInfo) -> Result<Client, RedisError> {
    let settings = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    Client::open(info.clone().set_tcp_settings(settings))
}

/// Opens a connection. `answer_max` is the longest wait for the replies of one pipeline, including
/// the time that it is queued.
pub async fn connect(client: &Client, answer_max: Duration) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(answer_max.min(CONNECT_MAX)))
        .set_response_timeout(Some(answer_max));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Opens a connection that only receives messages. Its commands have no limit of their own: see
/// [`in_time`].
pub async fn subscriber(client: &Client) -> Result<PubSub, RedisError> {
    in_time(CONNECT_MAX, client.get_async_pubsub()).await
}

/// Runs a step that fails if it takes longer than `limit`. Whether it took effect is then not
/// known.
pub async fn in_time<T>(limit: Duration, step: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    match tokio::time::timeout(limit, step).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

/// Describes an error in the server's words. The library's full text may repeat arguments.
pub fn describe(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}

/// An error as the cause of another one. Its text is that of [`describe`].
#[derive(Debug, thiserror::Error)]
#[error("{}", describe(.0))]
pub struct RedisCause(pub RedisError);
