//! A Redis server that is connected to when it is needed, and connected to again after a failure.
//!
//! Owns the client, the open connection, and what a failed attempt does to it. It must not know
//! what is sent. Invariant: after a time-out the connection is closed, because the commands may
//! still run.

use redis::{Client, ConnectionInfo, RedisError};

use super::connection::{RedisConnection, version};
use super::liveness::Liveness;
use super::refusal::{SinkError, explain};
use super::retry::RetryState;

/// A Redis server that is connected to when it is needed.
#[derive(Debug)]
pub(super) struct RedisLink {
    client: Client,
    address: String,
    /// What its user sends, in log lines: `invalidations`.
    subject: &'static str,
    liveness: Liveness,
    connection: Option<RedisConnection>,
}

impl RedisLink {
    /// Not yet connected.
    pub(super) fn new(info: &ConnectionInfo, subject: &'static str) -> Result<Self, SinkError> {
        let address = info.addr().to_string();
        let client = crate::redis::open_client(info).map_err(|error| SinkError::unusable(&address, error))?;
        Ok(Self { client, address, subject, liveness: Liveness::default(), connection: None })
    }

    /// A connection of its own to the same server, with a liveness of its own.
    pub(super) fn another(&self, subject: &'static str) -> Self {
        let (client, address) = (self.client.clone(), self.address.clone());
        Self { client, address, subject, liveness: Liveness::default(), connection: None }
    }

    /// Where Redis is, without credentials.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    /// Whether Redis accepts what is sent over this link.
    pub(super) fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// The version of the server.
    pub(super) async fn version(&self) -> Result<String, RedisError> {
        version(&self.client).await
    }

    /// The open connection, or a new one.
    pub(super) async fn open(&mut self) -> Result<&mut RedisConnection, RedisError> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => RedisConnection::open(&self.client, self.liveness.clone()).await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// Closes the connection.
    pub(super) fn close(&mut self) {
        self.connection = None;
    }

    /// An attempt failed. Logs it at growing intervals, and waits until the next attempt is due.
    pub(super) async fn failed(&mut self, error: &RedisError, retry: &mut RetryState) {
        self.liveness.refused();
        if explain(error).reconnect {
            self.close();
        }
        let wait = retry.failed(self.subject, &self.address, error);
        tokio::time::sleep(wait).await;
    }

    /// An attempt succeeded.
    pub(super) fn succeeded(&self, retry: &RetryState) {
        self.liveness.restart();
        retry.succeeded(self.subject, &self.address);
    }
}
