//! The connection to Redis: applies batches, and tries again until they are in force.
//!
//! Owns connecting, the scripts and the retry. It must not know what a batch is made of. Invariants: every
//! reply is checked; after a time-out the connection is dropped, because the commands may still run; the
//! same batch is then sent again, which is harmless because every op is idempotent.

use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::{AsyncConnectionConfig, Client, ConnectionInfo, Pipeline, RedisError, Value};

use super::broadcast::{Broadcast, Chain};
use super::encode::{Batch, KEYS_PER_COMMAND, Scripts, announcements, removals};
use super::refusal::explain;
use crate::backoff::{Backoff, Notices};
use crate::coherence::watermark::{Names, OPEN, RAISE, REMEMBER};
use crate::key::Glob;

const BUMP: &str = include_str!("bump.lua");

/// How long to wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long to wait for the replies of one pipeline, its queueing included.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(10);

/// How many keys one step of a scan looks at.
const SCAN_COUNT: usize = 1000;

/// Why Redis is of no use at start.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// It did not answer, or not as we need.
    #[error("cannot use Redis at {address}: {}; {advice}", describe(.source))]
    Unusable {
        /// Where, without credentials.
        address: String,
        /// What to do.
        advice: &'static str,
        /// What happened.
        #[source]
        source: RedisError,
    },
    /// It is older than the scripts need.
    #[error("Redis at {address} is version {version}; at least 7.0 is needed (Valkey 7.2)")]
    TooOld {
        /// Where, without credentials.
        address: String,
        /// What it says it is.
        version: String,
    },
}

/// Where plans take effect.
#[derive(Debug)]
pub struct Sink {
    client: Client,
    address: String,
    names: Names,
    session: Option<Session>,
    chain: Option<Chain>,
}

/// What one connection needs.
#[derive(Debug)]
struct Session {
    connection: MultiplexedConnection,
    scripts: Scripts,
    epoch: u64,
    names: Names,
}

impl Sink {
    /// A sink that is not yet connected.
    pub fn new(info: &ConnectionInfo, names: Names) -> Result<Self, SinkError> {
        let address = info.addr().to_string();
        let client = open(info).map_err(|error| unusable(&address, error))?;
        Ok(Self { client, address, names, session: None, chain: None })
    }

    /// Where Redis is, without credentials.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Connects once, so that a wrong address is known at start.
    pub async fn connect(&mut self) -> Result<(), SinkError> {
        let version = self.version().await.map_err(|error| unusable(&self.address, error))?;
        let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
        if major.is_some_and(|major| major < 7) {
            return Err(SinkError::TooOld { address: self.address.clone(), version });
        }
        self.session().await.map(drop).map_err(|error| unusable(&self.address, error))
    }

    async fn version(&mut self) -> Result<String, RedisError> {
        let mut connection = connect(&self.client).await?;
        let info: String = redis::cmd("INFO").arg("server").query_async(&mut connection).await?;
        let version = info.lines().find_map(|line| line.strip_prefix("redis_version:"));
        Ok(version.unwrap_or("unknown").trim().to_owned())
    }

    /// Puts a batch into force, however often it has to be tried. Ends only when every command was
    /// answered without an error.
    pub async fn apply(&mut self, batch: &Batch) {
        let ops = Broadcast::ops(&batch.plan);
        let mut broadcast: Option<Broadcast> = None;
        let mut backoff = Backoff::default();
        let mut notices = Notices::default();
        loop {
            match self.attempt(batch, &ops, &mut broadcast).await {
                Ok(()) => {
                    if notices.any() {
                        tracing::info!(redis = self.address, "Redis takes invalidations again");
                    }
                    return;
                }
                Err(error) => {
                    let refusal = explain(&error);
                    if refusal.reconnect {
                        self.session = None;
                    }
                    if notices.due() {
                        let error = describe(&error);
                        tracing::warn!(redis = self.address, error, "invalidations wait for Redis; {}", refusal.advice);
                    }
                    tokio::time::sleep(backoff.next_wait()).await;
                }
            }
        }
    }

    async fn attempt(
        &mut self,
        batch: &Batch,
        ops: &[super::BroadcastOp],
        broadcast: &mut Option<Broadcast>,
    ) -> Result<(), RedisError> {
        let (session, chain) = self.session().await?;
        if broadcast.is_none() && !ops.is_empty() {
            *broadcast = Some(chain.next(session.epoch, batch.started, batch.at, ops.to_vec()));
        }
        let mut pipeline = Pipeline::new();
        removals(batch, &session.names, &session.scripts, &mut pipeline);
        if batch.plan.patterns().len() > 0 {
            send(&mut session.connection, &pipeline).await?;
            pipeline.clear();
            for glob in batch.plan.patterns() {
                delete_matching(&mut session.connection, glob).await?;
            }
        }
        announcements(batch, &session.names, &session.scripts, broadcast.as_ref(), &mut pipeline);
        send(&mut session.connection, &pipeline).await
    }

    /// The open connection, or a new one with the scripts loaded, and the chain of broadcasts.
    async fn session(&mut self) -> Result<(&mut Session, &mut Chain), RedisError> {
        let session = match self.session.take() {
            Some(session) => session,
            None => {
                let mut connection = connect(&self.client).await?;
                let scripts = Scripts {
                    raise: load(&mut connection, RAISE).await?,
                    bump: load(&mut connection, BUMP).await?,
                    remember: load(&mut connection, REMEMBER).await?,
                };
                let mut open = redis::cmd("EVAL");
                open.arg(OPEN).arg(2).arg(self.names.epoch.as_bytes()).arg(self.names.last_broadcast.as_bytes());
                let (epoch, last): (u64, Option<String>) = open.query_async(&mut connection).await?;
                // A running daemon goes on with its own chain; only a new one takes up what Redis remembers.
                self.chain.get_or_insert_with(|| Chain::after(last));
                Session { connection, scripts, epoch, names: self.names.clone() }
            }
        };
        let chain = self.chain.get_or_insert_with(|| Chain::after(None));
        Ok((self.session.insert(session), chain))
    }
}

/// A connection that only listens, for those who follow broadcasts.
pub async fn connect_subscriber(info: &ConnectionInfo) -> Result<PubSub, SinkError> {
    let address = info.addr().to_string();
    let opened = async { open(info)?.get_async_pubsub().await };
    opened.await.map_err(|error| unusable(&address, error))
}

fn open(info: &ConnectionInfo) -> Result<Client, RedisError> {
    let settings = redis::io::tcp::TcpSettings::default().set_nodelay(true);
    Client::open(info.clone().set_tcp_settings(settings))
}

async fn connect(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(RESPONSE_TIMEOUT));
    client.get_multiplexed_async_connection_with_config(&config).await
}

async fn load(connection: &mut MultiplexedConnection, script: &str) -> Result<String, RedisError> {
    redis::cmd("SCRIPT").arg("LOAD").arg(script).query_async(connection).await
}

/// Sends a pipeline and checks every reply; the first error is the outcome.
async fn send(connection: &mut MultiplexedConnection, pipeline: &Pipeline) -> Result<(), RedisError> {
    if pipeline.is_empty() {
        return Ok(());
    }
    let replies = connection.send_packed_commands(pipeline, 0, pipeline.len()).await?;
    for reply in replies {
        if let Value::ServerError(error) = reply {
            return Err(error.into());
        }
    }
    Ok(())
}

/// Deletes every key that a glob matches, in bounded steps.
async fn delete_matching(connection: &mut MultiplexedConnection, glob: &Glob) -> Result<(), RedisError> {
    let mut cursor = 0_u64;
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(glob.as_bytes()).arg("COUNT").arg(SCAN_COUNT);
        let (next, keys): (u64, Vec<Vec<u8>>) = scan.query_async(connection).await?;
        let mut pipeline = Pipeline::new();
        for chunk in keys.chunks(KEYS_PER_COMMAND) {
            pipeline.add_command(redis::cmd("UNLINK").arg(chunk).clone());
        }
        send(connection, &pipeline).await?;
        if next == 0 {
            return Ok(());
        }
        cursor = next;
    }
}

fn unusable(address: &str, source: RedisError) -> SinkError {
    SinkError::Unusable { address: address.to_owned(), advice: explain(&source).advice, source }
}

/// The error's own words; the library's full text may repeat arguments.
fn describe(error: &RedisError) -> String {
    match (error.code(), error.detail()) {
        (Some(code), Some(detail)) => format!("{code} {detail}"),
        _ => error.to_string(),
    }
}
