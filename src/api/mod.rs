//! The read API: the file's reads over HTTP, from a cache that is never stale.
//!
//! Owns what the parts share. It must not know rules or sources: what it serves is coherent because the daemon keeps to the protocol, and
//! because [`reader`] does.

mod cache;
mod caller;
mod database;
mod events;
mod flight;
mod front;
mod http;
mod limit;
mod openapi;
mod problem;
mod reader;
mod server;
mod session;
mod stats;
mod value;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use redis::{ConnectionInfo, RedisError};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use self::cache::Cache;
use self::database::{Database, Role};
use self::events::Events;
pub use self::front::Front;
use self::limit::Limits;
use self::reader::{Reader, Shared};
use self::session::Sessions;
use crate::coherence::watermark::Names;
use crate::config::Settings;
use crate::reads::ReadSet;

/// Beyond the longest query, for the steps around it.
const LEASE_GRACE: Duration = Duration::from_secs(5);

/// The API, which serves on as many threads as there are processors. Each has connections of its own, to clients and to
/// Redis, so that no answer has to wait for another thread.
#[derive(Clone, Debug)]
pub struct Server {
    redis: ConnectionInfo,
    names: Names,
    rules: Arc<str>,
    lease: Duration,
    shared: Arc<Shared>,
    events: Arc<Events>,
    openapi: Bytes,
    stop: CancellationToken,
}

/// What every request on one thread shares.
#[derive(Debug)]
struct Api {
    reader: Arc<Reader>,
    sessions: Option<Sessions>,
    limits: Limits,
    events: Arc<Events>,
    openapi: Bytes,
}

impl Server {
    /// Servers are connected to when they are needed. The events are followed on this runtime, until `stop`. Values are
    /// served from Redis only while the daemon at work says that it has `rules`.
    ///
    /// # Errors
    ///
    /// The Redis URL cannot be used at all. That a server is away is none: it may come back.
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
        let shared = Arc::new(Shared::new(reads, primary, replica, api.clone()));
        let (redis, lease, stop) = (settings.redis.clone(), longest + LEASE_GRACE, stop.clone());
        Ok(Self { redis, names, rules: rules.into(), lease, shared, events, openapi, stop })
    }

    /// The API on the runtime that calls.
    fn api(&self) -> Result<Api, RedisError> {
        let settings = &self.shared.settings;
        let cache = Cache::start(&self.redis, (&self.names, &self.rules), self.lease, &self.stop)?;
        let position = |name: &str| self.shared.reads.reads().iter().position(|read| read.name == name);
        let sessions = settings.session.clone().and_then(|session| {
            let read = position(&session.read.value)?;
            Some(Sessions::new(session, read, self.names.clone()))
        });
        Ok(Api {
            reader: Arc::new(Reader::new(&self.shared, cache)),
            sessions,
            limits: Limits::new(settings, &self.names),
            events: Arc::clone(&self.events),
            openapi: self.openapi.clone(),
        })
    }

    /// What answers on the runtime that calls, also for whoever has connections of his own.
    ///
    /// # Errors
    ///
    /// As [`Server::start`].
    pub fn front(&self) -> Result<Front, RedisError> {
        Ok(Front::new(self.api()?))
    }

    /// Serves until told to stop; then what was begun may take as long as `drain_max`.
    ///
    /// # Errors
    ///
    /// A thread could not be started.
    pub async fn serve(self, listener: TcpListener, drain_max: Duration) -> io::Result<()> {
        let connections = self.shared.settings.connections;
        let stop = self.stop.clone();
        let front = move || self.front().map_err(|error| io::Error::other(crate::redis::describe(&error)));
        server::serve(front, listener, connections, &stop, drain_max).await
    }
}
