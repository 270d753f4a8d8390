//! Redis, as the API reads it.
//!
//! Owns the connection, whether Redis is there at all, and looking at many keys in one round trip. It must not know what
//! is cached. Invariants: what is said of a value and how far the daemon had come then are from one atomic answer of one
//! dataset; while Redis is away nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::FutureExt as _;
use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionInfo, Pipeline, RedisError, Value};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Notices};
use crate::change::Lsn;
use crate::coherence::lease::Leases;
use crate::coherence::watermark::Names;
use crate::key::CacheKey;

/// How long Redis may take to answer before it counts as away: a stall of any length is one for every reader.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// How many looks share a round trip at most.
const LOOKS_TOGETHER: usize = 256;

/// How many looks may wait to be sent: more than there are connections to the API.
const WAITING_MAX: usize = 16 * 1024;

/// Redis, shared by everybody who reads.
#[derive(Debug)]
pub(super) struct Cache {
    /// The steps of the protocol.
    pub(super) leases: Leases,
    /// How long a grant lasts.
    pub(super) lease: Duration,
    link: Arc<Link>,
    looks: mpsc::Sender<Look>,
}

/// Redis is away, or did not answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("Redis is away")]
pub(super) struct Away;

/// What a look found.
#[derive(Clone, Debug)]
pub(super) struct Sight {
    /// Every invalidation up to here was in force.
    pub(super) applied: Option<Lsn>,
    /// How long ago the daemon said that everything committed was in force; nothing if it never did, or has other rules.
    pub(super) behind: Option<Duration>,
    /// The daemon has other rules or reads than we, and does not remove what we would cache.
    pub(super) is_others: bool,
    /// What the key held.
    pub(super) held: Value,
}

impl Sight {
    /// Whether the daemon was near enough: it may be served. While an epoch begins nothing is.
    pub(super) fn is_near(&self, max_staleness: Duration) -> bool {
        self.applied.is_some() && self.behind.is_some_and(|behind| behind <= max_staleness)
    }
}

struct Look {
    key: CacheKey,
    reply: oneshot::Sender<Result<Sight, Away>>,
}

/// The connection. None: Redis is away, and somebody is trying again.
#[derive(Debug, Default)]
struct Link {
    connection: ArcSwapOption<MultiplexedConnection>,
    broken: Notify,
}

impl Cache {
    /// Begins to connect; Redis counts as away until that is done.
    pub(super) fn start(
        info: &ConnectionInfo,
        (names, rules): (&Names, &Arc<str>),
        lease: Duration,
        stop: &CancellationToken,
    ) -> Result<Self, RedisError> {
        let client = crate::redis::open_client(info)?;
        let link = Arc::new(Link::default());
        let (looks, waiting) = mpsc::channel(WAITING_MAX);
        let keep = keep(Arc::clone(&link), client, info.addr().to_string());
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(keep).await });
        tokio::spawn(look_for_all(Arc::clone(&link), names.clone(), Arc::clone(rules), waiting));
        Ok(Self { leases: Leases::new(names.clone(), lease), lease, link, looks })
    }

    /// Looks at a key.
    pub(super) async fn look(&self, key: CacheKey) -> Result<Sight, Away> {
        if self.link.connection.load().is_none() {
            return Err(Away);
        }
        let (reply, answer) = oneshot::channel();
        self.looks.try_send(Look { key, reply }).map_err(|_| Away)?;
        answer.await.unwrap_or(Err(Away))
    }

    /// The connection, for the other steps of the protocol.
    pub(super) fn connection(&self) -> Result<MultiplexedConnection, Away> {
        self.link.current().ok_or(Away)
    }

    /// Takes note of how a step went: whoever broke the connection has it made anew. What Redis refused it refused to
    /// this step alone.
    pub(super) fn noted<T>(&self, outcome: Result<T, RedisError>) -> Result<T, RedisError> {
        if let Err(error) = &outcome
            && is_away(error)
        {
            self.link.broken.notify_one();
        }
        outcome
    }
}

/// Whether the error says that there is nobody to ask, as opposed to a refusal.
fn is_away(error: &RedisError) -> bool {
    let refuses_all = matches!(error.code(), Some("LOADING" | "READONLY"));
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || refuses_all
}

impl Link {
    fn current(&self) -> Option<MultiplexedConnection> {
        self.connection.load().as_deref().cloned()
    }
}

/// Connects, and again whenever the connection breaks.
async fn keep(link: Arc<Link>, client: Client, address: String) {
    let (mut backoff, mut notices) = (Backoff::default(), Notices::default());
    loop {
        match open(&client).await {
            Ok(connection) => {
                tracing::debug!(%address, "Redis answers");
                (backoff, notices) = (Backoff::default(), Notices::default());
                // What broke the one before says nothing of this one.
                let _ = link.broken.notified().now_or_never();
                link.connection.store(Some(Arc::new(connection)));
                link.broken.notified().await;
                link.connection.store(None);
                tracing::warn!(%address, "Redis is away; reads go to PostgreSQL meanwhile");
            }
            Err(error) => {
                if notices.due() {
                    let error = crate::redis::describe(&error);
                    tracing::warn!(%address, error, "Redis is away; reads go to PostgreSQL meanwhile");
                }
                tokio::time::sleep(backoff.next_wait().min(ANSWER_MAX)).await;
            }
        }
    }
}

/// A connection on which Redis has answered.
async fn open(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    let mut connection = crate::redis::connect(client, ANSWER_MAX).await?;
    redis::cmd("PING").exec_async(&mut connection).await?;
    Ok(connection)
}

/// Sends what has gathered while the round trip before was on its way.
async fn look_for_all(link: Arc<Link>, names: Names, rules: Arc<str>, mut waiting: mpsc::Receiver<Look>) {
    let mut gathered = Vec::new();
    let mut said = false;
    while waiting.recv_many(&mut gathered, LOOKS_TOGETHER).await > 0 {
        let looks = std::mem::take(&mut gathered);
        let is_others = look_together(&link, (&names, &rules), looks).await;
        if is_others && !said {
            tracing::warn!(
                "the daemon has other rules or reads than this API, so nothing is served from Redis: restart whichever \
                 has the older file"
            );
        }
        said = is_others;
    }
}

/// Whether the daemon has other rules.
async fn look_together(link: &Link, expected: (&Names, &str), looks: Vec<Look>) -> bool {
    let found = match link.current() {
        Some(mut connection) => ask(&mut connection, expected, &looks).await,
        None => Ok(None),
    };
    let found = found.unwrap_or_else(|error| {
        tracing::debug!(error = crate::redis::describe(&error), "Redis did not answer");
        link.broken.notify_one();
        None
    });
    let Some((seen, held)) = found else {
        looks.into_iter().for_each(|look| drop(look.reply.send(Err(Away))));
        return false;
    };
    for (look, held) in looks.into_iter().zip(held) {
        // Whoever asked may have left.
        let _ = look.reply.send(Ok(Sight { held, ..seen.clone() }));
    }
    seen.is_others
}

/// What all looks of a trip have seen, and what each key held.
async fn ask(
    connection: &mut MultiplexedConnection,
    (names, rules): (&Names, &str),
    looks: &[Look],
) -> Result<Option<(Sight, Vec<Value>)>, RedisError> {
    let mut get = redis::cmd("MGET");
    for name in [&names.applied, &names.asof, &names.rules] {
        get.arg(name.as_bytes());
    }
    for look in looks {
        get.arg(look.key.as_bytes());
    }
    // The time after the heartbeat: what is said to be behind is at least as far behind as it was.
    let mut pipeline = Pipeline::new();
    pipeline.add_command(get).add_command(redis::cmd("TIME"));
    let (mut held, (seconds, micros)): (Vec<Value>, (u64, u64)) = pipeline.query_async(connection).await?;
    if held.len() != looks.len() + 3 {
        return Err((redis::ErrorKind::UnexpectedReturnType, "another number of values than keys").into());
    }
    let values = held.split_off(3);
    let mut texts = redis::from_redis_value::<Vec<Option<String>>>(Value::Array(held))?.into_iter();
    let mut next = || texts.next().flatten();
    let (applied, asof, others) = (next(), next(), next());
    let now = Duration::from_secs(seconds) + Duration::from_micros(micros);
    let asof = asof.and_then(|millis| millis.parse().ok()).map(Duration::from_millis);
    // A daemon that does not say which has those that everybody has.
    let is_others = others.is_some_and(|others| others != *rules);
    let behind = asof.map(|asof| now.saturating_sub(asof)).filter(|_| !is_others);
    let applied = applied.as_deref().and_then(Lsn::from_fixed_hex);
    Ok(Some((Sight { applied, behind, is_others, held: Value::Nil }, values)))
}
