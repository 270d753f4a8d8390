//! Redis, as one thread of the API reads it.
//!
//! Owns the connection, whether Redis is available, and lookups, of which many share one round
//! trip. It must not know what is cached. Invariants: a value and the daemon's progress are from
//! one atomic reply of one dataset; each reply comes from a server that takes writes, because a
//! replica may lag behind or have lost its primary; while Redis is unavailable no request waits for
//! it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use futures_util::FutureExt as _;
use redis::aio::MultiplexedConnection;
use redis::{Client, ConnectionInfo, Pipeline, RedisError, Value};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::backoff::{Backoff, Notices};
use crate::change::Lsn;
use crate::coherence::history::Origin;
use crate::coherence::lease::{Envelope, Found, Generations, KeyContents, Leases};
use crate::coherence::watermark::Names;
use crate::key::CacheKey;

/// How long Redis may take to answer before it counts as unavailable: a stall delays every reader.
const ANSWER_MAX: Duration = Duration::from_secs(1);

/// The most lookups in one round trip.
const BATCH_MAX: usize = 256;

/// The most lookups that wait to be sent. There are fewer connections to the API.
const QUEUE_MAX: usize = 16 * 1024;

/// How often the tags of a value are asked for again because it has others than expected.
const TAG_ROUNDS_MAX: usize = 3;

/// The most keys of which tags are remembered. Names are at most 1 KiB each.
const TAG_HINTS_MAX: usize = 4096;

/// Redis, shared by the requests of one thread.
#[derive(Debug)]
pub(super) struct Cache {
    /// The steps of the lease protocol.
    pub(super) leases: Leases,
    link: Arc<CacheLink>,
    /// The tags of keys whose values had some: with a guess that is right, their generations come
    /// in the same round trip.
    tag_hints: TagHints,
    lookups: mpsc::Sender<LookupRequest>,
}

/// Redis cannot be reached, or did not answer.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("Redis is unavailable")]
pub(super) struct RedisUnavailable;

/// The result of a lookup.
#[derive(Clone, Debug)]
pub(super) struct CacheLookup {
    /// Every invalidation up to this position is in force. None while a new epoch begins.
    pub(super) applied: Option<Lsn>,
    /// The history that the position belongs to.
    pub(super) origin: Option<Arc<Origin>>,
    /// How long ago the daemon reported that everything committed was in force. None if it never
    /// did, or has other rules.
    pub(super) behind: Option<Duration>,
    /// The daemon has other rules or reads than this process, so it does not remove what is cached
    /// here.
    pub(super) has_other_rules: bool,
    /// What the key held.
    pub(super) held: Value,
    /// The generations of its tags.
    pub(super) generations: Generations,
}

impl CacheLookup {
    /// Whether the daemon is close enough behind for the value to be served.
    pub(super) fn is_within(&self, max_staleness: Duration) -> bool {
        self.applied.is_some() && self.behind.is_some_and(|behind| behind <= max_staleness)
    }

    /// What the key held; with `min`, a value must contain every commit up to that position.
    pub(super) fn contents(&self, min: Option<Lsn>) -> KeyContents {
        let contents = KeyContents::of(&self.held, self.applied, min, &self.generations);
        contents.unwrap_or(KeyContents::Found(Found::Foreign))
    }
}

struct LookupRequest {
    key: CacheKey,
    /// The tags whose generations are looked up with it.
    tags: Vec<Vec<u8>>,
    reply: oneshot::Sender<Result<CacheLookup, RedisUnavailable>>,
}

/// The tags that the values of some keys had.
#[derive(Debug, Default)]
struct TagHints(Mutex<HashMap<CacheKey, Vec<Vec<u8>>>>);

impl TagHints {
    fn of(&self, key: &CacheKey) -> Vec<Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned().unwrap_or_default()
    }

    fn remember(&self, key: &CacheKey, tags: &[Vec<u8>]) {
        let mut hints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if hints.len() >= TAG_HINTS_MAX {
            hints.clear();
        }
        hints.insert(key.clone(), tags.to_vec());
    }
}

/// The connection, and the signal to replace it.
#[derive(Debug, Default)]
struct CacheLink {
    /// None while Redis is unavailable.
    connection: ArcSwapOption<MultiplexedConnection>,
    broken: Notify,
}

impl CacheLink {
    fn current(&self) -> Option<MultiplexedConnection> {
        self.connection.load().as_deref().cloned()
    }
}

impl Cache {
    /// Begins to connect on the runtime that calls. Until that is done, Redis counts as
    /// unavailable.
    pub(super) fn start(
        info: &ConnectionInfo,
        (names, rules): (&Names, &Arc<str>),
        lease: Duration,
        stop: &CancellationToken,
    ) -> Result<Self, RedisError> {
        let client = crate::redis::open_client(info)?;
        let link = Arc::new(CacheLink::default());
        let (lookups, queue) = mpsc::channel(QUEUE_MAX);
        let keep_connected = keep_connected(Arc::clone(&link), client, info.addr().to_string(), names.probe.clone());
        let stop = stop.clone();
        tokio::spawn(async move { stop.run_until_cancelled(keep_connected).await });
        tokio::spawn(answer_lookups(Arc::clone(&link), names.clone(), Arc::clone(rules), queue));
        Ok(Self { leases: Leases::new(names.clone(), lease), link, tag_hints: TagHints::default(), lookups })
    }

    /// Looks a key up, and the generations of the tags of its value. A value whose tags change
    /// again and again may be returned without them, and is not served then.
    pub(super) async fn look_up(&self, key: CacheKey) -> Result<CacheLookup, RedisUnavailable> {
        let mut tags = self.tag_hints.of(&key);
        for _ in 1..TAG_ROUNDS_MAX {
            let lookup = self.look_up_with(key.clone(), tags).await?;
            let Value::BulkString(held) = &lookup.held else { return Ok(lookup) };
            let named = Envelope::tags_of(held);
            if lookup.generations.know(&named) {
                return Ok(lookup);
            }
            tags = named.into_iter().map(|tag| tag.tag).collect();
            self.tag_hints.remember(&key, &tags);
        }
        self.look_up_with(key, tags).await
    }

    /// Looks a key up together with the generations of these tags.
    async fn look_up_with(&self, key: CacheKey, tags: Vec<Vec<u8>>) -> Result<CacheLookup, RedisUnavailable> {
        if self.link.connection.load().is_none() {
            return Err(RedisUnavailable);
        }
        let (reply, answer) = oneshot::channel();
        self.lookups.try_send(LookupRequest { key, tags, reply }).map_err(|_| RedisUnavailable)?;
        answer.await.unwrap_or(Err(RedisUnavailable))
    }

    /// The connection, for the other steps of the protocol.
    pub(super) fn connection(&self) -> Result<MultiplexedConnection, RedisUnavailable> {
        self.link.current().ok_or(RedisUnavailable)
    }

    /// Removes a value that was invalidated by its tag, so that its key can be filled.
    pub(super) async fn discard(&self, key: &CacheKey, value: &Envelope) -> Result<(), RedisUnavailable> {
        let mut connection = self.connection()?;
        let discarded = self.leases.discard(&mut connection, key, value).await;
        self.observe(discarded).map_err(|_| RedisUnavailable)
    }

    /// Passes the outcome of a step through. If the connection failed, it is replaced; an error
    /// that concerns this step alone changes nothing.
    pub(super) fn observe<T>(&self, outcome: Result<T, RedisError>) -> Result<T, RedisError> {
        if let Err(error) = &outcome
            && is_unavailable(error)
        {
            self.link.broken.notify_one();
        }
        outcome
    }
}

/// Whether the error concerns the server or the connection, as opposed to one command.
fn is_unavailable(error: &RedisError) -> bool {
    let refuses_all = matches!(error.code(), Some("LOADING" | "READONLY" | "MASTERDOWN" | "NOREPLICAS"));
    error.is_io_error() || error.is_timeout() || error.is_connection_dropped() || refuses_all
}

/// Connects, and again whenever the connection breaks.
async fn keep_connected(link: Arc<CacheLink>, client: Client, address: String, probe: CacheKey) {
    let (mut backoff, mut notices) = (Backoff::default(), Notices::default());
    loop {
        match connect(&client, &probe).await {
            Ok(connection) => {
                tracing::debug!(%address, "connected to Redis");
                (backoff, notices) = (Backoff::default(), Notices::default());
                // Discards a signal that concerns the previous connection.
                let _ = link.broken.notified().now_or_never();
                link.connection.store(Some(Arc::new(connection)));
                link.broken.notified().await;
                link.connection.store(None);
                tracing::warn!(%address, "Redis is unavailable; reads query PostgreSQL until it is back");
            }
            Err(error) => {
                if notices.due(Instant::now()) {
                    let error = crate::redis::describe(&error);
                    tracing::warn!(%address, error, "Redis is unavailable; reads query PostgreSQL until it is back");
                }
                tokio::time::sleep(backoff.next_wait().min(ANSWER_MAX)).await;
            }
        }
    }
}

/// Opens a connection on which Redis has answered, and takes writes.
async fn connect(client: &Client, probe: &CacheKey) -> Result<MultiplexedConnection, RedisError> {
    let mut connection = crate::redis::connect(client, ANSWER_MAX).await?;
    redis::cmd("DEL").arg(probe.as_bytes()).exec_async(&mut connection).await?;
    Ok(connection)
}

/// Sends the lookups that have queued up during the previous round trip.
async fn answer_lookups(link: Arc<CacheLink>, names: Names, rules: Arc<str>, mut queue: mpsc::Receiver<LookupRequest>) {
    let mut queued = Vec::new();
    let mut is_logged = false;
    while queue.recv_many(&mut queued, BATCH_MAX).await > 0 {
        let requests = std::mem::take(&mut queued);
        let has_other_rules = answer_batch(&link, (&names, &rules), requests).await;
        if has_other_rules && !is_logged {
            tracing::warn!(
                "the daemon has other rules or reads than this API, so nothing is served from Redis: restart the \
                 process that has the older file"
            );
        }
        is_logged = has_other_rules;
    }
}

/// Answers a batch of lookups. Returns whether the daemon has other rules.
async fn answer_batch(link: &CacheLink, expected: (&Names, &str), requests: Vec<LookupRequest>) -> bool {
    let fetched = match link.current() {
        Some(mut connection) => fetch(&mut connection, expected, &requests).await.map(Some),
        None => Ok(None),
    };
    let fetched = fetched.unwrap_or_else(|error| {
        tracing::debug!(error = crate::redis::describe(&error), "Redis did not answer");
        link.broken.notify_one();
        None
    });
    let Some((progress, held)) = fetched else {
        requests.into_iter().for_each(|request| drop(request.reply.send(Err(RedisUnavailable))));
        return false;
    };
    let mut held = held.into_iter();
    for LookupRequest { tags, reply, .. } in requests {
        let value = held.next().unwrap_or(Value::Nil);
        let replies: Vec<_> = held.by_ref().take(tags.len()).collect();
        let generations = Generations::new(tags, replies);
        // Fails if the client has disconnected.
        let _ = reply.send(Ok(CacheLookup { held: value, generations, ..progress.clone() }));
    }
    progress.has_other_rules
}

/// Fetches the daemon's progress, which all lookups of a batch share, and what each key and each of
/// its tags holds.
async fn fetch(
    connection: &mut MultiplexedConnection,
    (names, rules): (&Names, &str),
    requests: &[LookupRequest],
) -> Result<(CacheLookup, Vec<Value>), RedisError> {
    let mut get = redis::cmd("MGET");
    let state = [&names.applied, &names.asof, &names.rules, &names.origin];
    for name in state {
        get.arg(name.as_bytes());
    }
    for request in requests {
        get.arg(request.key.as_bytes());
        for tag in &request.tags {
            get.arg(names.generation(tag).as_bytes());
        }
    }
    let asked: usize = requests.iter().map(|request| 1 + request.tags.len()).sum();
    // TIME comes after the heartbeat, so `behind` is never too small. A server that is a replica by
    // then refuses to delete, which changes nothing elsewhere.
    let mut pipeline = Pipeline::new();
    pipeline.add_command(get).add_command(redis::cmd("TIME"));
    pipeline.add_command(redis::cmd("DEL").arg(names.probe.as_bytes()).clone());
    let (mut held, (seconds, micros), _): (Vec<Value>, (u64, u64), u64) = pipeline.query_async(connection).await?;
    if held.len() != asked + state.len() {
        return Err((redis::ErrorKind::UnexpectedReturnType, "MGET returned another number of values than keys").into());
    }
    let values = held.split_off(state.len());
    let mut texts = redis::from_redis_value::<Vec<Option<String>>>(Value::Array(held))?.into_iter();
    let mut next = || texts.next().flatten();
    let (applied, asof, others, origin) = (next(), next(), next(), next());
    let now = Duration::from_secs(seconds) + Duration::from_micros(micros);
    let asof = asof.and_then(|millis| millis.parse().ok()).map(Duration::from_millis);
    // A daemon that reports no rules is one that does not know the check, and is trusted.
    let has_other_rules = others.is_some_and(|others| others != *rules);
    let behind = asof.map(|asof| now.saturating_sub(asof)).filter(|_| !has_other_rules);
    let applied = applied.as_deref().and_then(Lsn::from_fixed_hex);
    let origin = origin.as_deref().and_then(Origin::decode).map(Arc::new);
    Ok((
        CacheLookup { applied, origin, behind, has_other_rules, held: Value::Nil, generations: Generations::default() },
        values,
    ))
}
