//! The API as a whole: what `serve` starts.
//!
//! Owns what is made once for all threads, and how a worker for one thread is made of it. It must
//! not know how a request is answered.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{ConnectionInfo, RedisError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::cache::Cache;
use super::connections;
use super::database::{Database, Role};
use super::events::Events;
use super::front::Front;
use super::openapi;
use super::shared::Shared;
use super::upstream::Upstream;
use super::worker::Worker;
use crate::coherence::watermark::Names;
use crate::config::Settings;
use crate::reads::ReadSet;

/// Added to the longest query, for the steps of a fill around it.
const LEASE_GRACE: Duration = Duration::from_secs(5);

/// The API. It serves on one thread for each processor. Each thread has its own connections to
/// clients and to Redis, so that no answer waits for another thread.
#[derive(Clone, Debug)]
pub struct ApiServer {
    redis: ConnectionInfo,
    names: Names,
    rules: Arc<str>,
    lease: Duration,
    shared: Arc<Shared>,
    events: Arc<Events>,
    openapi: Bytes,
    stop: CancellationToken,
}

impl ApiServer {
    /// Starts without waiting for PostgreSQL or Redis. The subscription to the broadcast runs on
    /// the runtime that calls, until `stop`. Values are served from Redis only while the running
    /// daemon reports these `rules`, a digest of the file.
    ///
    /// # Errors
    ///
    /// The Redis URL cannot be used at all. An unavailable server is not an error: it may come
    /// back.
    pub fn start(
        settings: &Settings,
        reads: ReadSet,
        rules: String,
        stop: &CancellationToken,
    ) -> Result<Self, RedisError> {
        let api = &settings.api;
        let names = Names::new(&settings.namespace, &settings.slot);
        let longest = reads.reads().iter().map(|read| read.timeout).max().unwrap_or_default();
        let database = |address, role| Database::new(address, role, api.database_connections, longest);
        let openapi = Bytes::from(openapi::document(&reads, api).to_string());
        let events = Events::start(&settings.redis, &names, stop)?;
        let primary = database(settings.postgres.clone(), Role::Primary);
        let replica = api.replica.clone().map(|address| database(address, Role::Replica));
        let upstream = Upstream::new(primary, replica, &reads);
        let shared = Arc::new(Shared::new(reads, upstream, api.clone()));
        let (redis, lease, stop) = (settings.redis.clone(), longest + LEASE_GRACE, stop.clone());
        Ok(Self { redis, names, rules: rules.into(), lease, shared, events, openapi, stop })
    }

    /// What answers requests on the runtime that calls, for callers that accept connections
    /// themselves.
    ///
    /// # Errors
    ///
    /// As [`ApiServer::start`].
    pub fn front(&self) -> Result<Front, RedisError> {
        let cache = Cache::start(&self.redis, (&self.names, &self.rules), self.lease, &self.stop)?;
        let (events, openapi) = (Arc::clone(&self.events), self.openapi.clone());
        Ok(Front::new(Worker::new(&self.shared, cache, &self.names, events, openapi)))
    }

    /// Serves until the token of [`ApiServer::start`] is cancelled. Requests in progress may then
    /// take `drain_max` longer.
    ///
    /// # Errors
    ///
    /// A thread could not be started, or failed.
    pub async fn serve(self, listener: TcpListener, drain_max: Duration) -> io::Result<()> {
        let limit = self.shared.settings.connections;
        let stop = self.stop.clone();
        let front = move || self.front().map_err(|error| io::Error::other(crate::redis::describe(&error)));
        connections::serve(front, listener, limit, &stop, drain_max).await
    }
}
