//! How to reach Redis.
//!
//! Owns the settings of a connection and what may be said of an error. It must not know what is sent. Invariants: nobody
//! waits for ever; what is said of an error never repeats arguments.

use std::io;
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, RedisError};

/// How long to wait for a connection, at most.
const CONNECT_MAX: Duration = Duration::from_secs(5);

/// A client of the server; nothing is opened yet.
pub fn open_client(info: &ConnectionInfo) -> Result<Client, RedisError> {
    let settings = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    Client::open(info.clone().set_tcp_settings(settings))
}

/// An open connection. `answer_max` is for the replies of one pipeline, its queueing included.
pub async fn connect(client: &Client, answer_max: Duration) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(answer_max.min(CONNECT_MAX)))
        .set_response_timeout(Some(answer_max));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// An open connection that only listens. What is asked on it has no limit of its own: see [`in_time`].
pub async fn subscriber(client: &Client) -> Result<PubSub, RedisError> {
    in_time(CONNECT_MAX, client.get_async_pubsub()).await
}

/// A step that counts as failed when it takes longer than `limit`; whether it happened is then not known.
pub async fn in_time<T>(limit: Duration, step: impl Future<Output = Result<T, RedisError>>) -> Result<T, RedisError> {
    match tokio::time::timeout(limit, step).await {
        Ok(outcome) => outcome,
        Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
    }
}

/// The error's own words; the library's full text may repeat arguments.
pub fn describe(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}
