//! The readers that fill the cache, from the primary and from the replica, with long pauses between
//! their steps.
//!
//! Owns the steps. They follow the protocol by the library that applications are given. It must not
//! know what is stale.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use unstale::coherence::lease::{Envelope, Found, Grant, Token};
use unstale::coherence::server::ServerIdentity;
use unstale::postgres::{self, Address};

use super::query::{GROUPS, ITEMS, alias, card, group, item, listed, part, peer, tagged, version_key, versioned};
use super::state::RunState;

const FILLERS: usize = 32;
const TTL: Duration = Duration::from_secs(600);

pub(super) fn start(state: &Arc<RunState>, random: &mut StdRng) -> Vec<JoinHandle<()>> {
    let mut tasks: Vec<_> =
        (0..FILLERS).map(|_| tokio::spawn(fill_repeatedly(Arc::clone(state), StdRng::from_rng(random)))).collect();
    tasks.push(tokio::spawn(evict(Arc::clone(state), StdRng::from_rng(random))));
    tasks
}

#[derive(Default)]
struct Connections {
    redis: Option<MultiplexedConnection>,
    primary: Option<Client>,
    /// What the primary said of itself when it was connected to.
    identity: Option<ServerIdentity>,
    replica: Option<Client>,
}

impl Connections {
    async fn reconnect(&mut self, state: &RunState) -> Option<()> {
        if self.redis.is_none() {
            self.redis = state.redis_connection().await.ok();
        }
        if self.primary.as_ref().is_none_or(Client::is_closed) {
            self.identity = None;
        }
        for (client, url) in [(&mut self.primary, &state.primary), (&mut self.replica, &state.replica)] {
            if client.as_ref().is_none_or(Client::is_closed) {
                *client = postgres::connect(&Address::parse(url, &|_| None).unwrap()).await.ok();
                // A read that waits for an abandoned lock must not keep the harness from coming to
                // rest.
                if let Some(connected) = client
                    && connected.batch_execute("set statement_timeout = '20s'").await.is_err()
                {
                    *client = None;
                }
            }
        }
        if let Some(primary) = &self.primary
            && self.identity.is_none()
        {
            self.identity = ServerIdentity::read(primary).await.ok();
        }
        self.redis.as_ref().map(|_| ())
    }
}

async fn fill_repeatedly(state: Arc<RunState>, mut random: StdRng) {
    let mut connections = Connections::default();
    while let Some(turn) = state.filler_turn().await {
        if connections.reconnect(&state).await.is_some()
            && fill_once(&state, &mut connections, &mut random).await.is_none()
        {
            connections.redis = None;
        }
        drop(turn);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3))).await;
    }
}

/// Reads a random key and fills it if it is missing. None if the connection to Redis is no longer
/// of use.
async fn fill_once(state: &RunState, connections: &mut Connections, random: &mut StdRng) -> Option<()> {
    let mut redis = connections.redis.clone()?;
    let hot = random.random_range(1..=6);
    let any = random.random_range(1..=ITEMS);
    let query = match random.random_range(0..16) {
        0..4 => item(hot),
        4..6 => item(any),
        6 => alias('a', any),
        7 => alias('b', hot),
        8 | 9 => group(random.random_range(0..GROUPS)),
        10 => tagged(random.random_range(0..GROUPS)),
        11 => listed(random.random_range(0..GROUPS)),
        12 => peer(any),
        13 => card(hot),
        14 => part(any),
        _ => {
            let number = random.random_range(0..GROUPS);
            let version = state.leases.version(&mut redis, &version_key(number), TTL).await.ok()?;
            stall(random).await;
            versioned(number, &version?)
        }
    };
    let grant = match state.leases.read(&mut redis, &query.key, None).await.ok()? {
        Found::Granted(grant) => grant,
        Found::Value(value) if random.random_range(0..10) == 0 => {
            state.leases.refresh(&mut redis, &query.key, &value).await.ok()?
        }
        _ => return Some(()),
    };
    stall(random).await;
    let mut tags = Vec::new();
    if let Some(tag) = &query.tag {
        let Ok(joined) = state.leases.join(&mut redis, &grant, std::slice::from_ref(tag), TTL).await else {
            return state.leases.release(&mut redis, grant).await.ok();
        };
        stall(random).await;
        state.leases.prune(&mut redis, &joined).await.ok()?;
        tags = joined.tags;
    }
    let Some(body) = read(connections, &grant, &query.sql, random).await else {
        // Errors are never cached.
        return state.leases.release(&mut redis, grant).await.ok();
    };
    stall(random).await;
    let value = Envelope {
        nonce: Token::of_new_value(),
        lo: grant.lo,
        stored_at: 0,
        soft_ttl: 0,
        etag: String::new(),
        tags,
        body: body.into_bytes(),
    };
    let stored = state.leases.fill(&mut redis, &grant, &value, TTL).await.ok()?;
    (if stored { &state.fills } else { &state.refused }).fetch_add(1, Ordering::Relaxed);
    Some(())
}

/// Reads the value, half of the time from the replica if the grant allows that.
async fn read(connections: &Connections, grant: &Grant, sql: &str, random: &mut StdRng) -> Option<String> {
    let on_replica = random.random();
    // Some statements take long, and return what was true when they began. On a replica that
    // catches up meanwhile, a check in the same statement would be wrong, so there it happens
    // often.
    let one_in = if on_replica { 3 } else { 20 };
    let millis = if random.random_range(0..one_in) == 0 { random.random_range(1..60) } else { 0 };
    let sql = match millis {
        0 => sql.to_owned(),
        _ => format!("select q.* from ({sql}) q (value), (select pg_sleep({millis} / 1000.0) offset 0) s"),
    };
    if on_replica
        && let Some(replica) = &connections.replica
        && let Some(row) = grant.read_replica(replica, None, &sql, &[]).await.ok()?
    {
        return Some(row.get(0));
    }
    // The connection may lead to an old primary.
    if !connections.identity.as_ref()?.is_of(grant.origin.as_ref()?) {
        return None;
    }
    let row = connections.primary.as_ref()?.query_one(&sql, &[]).await.ok()?;
    Some(row.get(0))
}

/// Waits: mostly not at all, sometimes a little, rarely long.
async fn stall(random: &mut StdRng) {
    let millis = match random.random_range(0..100) {
        0..80 => return,
        80..98 => random.random_range(1..15),
        _ => random.random_range(20..250),
    };
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Deletes keys, as Redis does when its memory is full. Without it there would be too few misses.
async fn evict(state: Arc<RunState>, mut random: StdRng) {
    let mut redis = None;
    while let Some(turn) = state.filler_turn().await {
        if redis.is_none() {
            redis = state.redis_connection().await.ok();
        }
        if let Some(connection) = &mut redis {
            let mut evict = redis::cmd("DEL");
            let tag = tagged(random.random_range(0..GROUPS)).tag;
            let lost = [tag.clone(), tag.map(|tag| state.names.generation_of(&tag))];
            for lost in lost.into_iter().flatten().filter(|_| random.random_range(0..8) == 0) {
                evict.arg(lost.as_bytes());
            }
            for _ in 0..8 {
                let any = random.random_range(1..=ITEMS);
                let key = match random.random_range(0..14) {
                    9 => tagged(any % GROUPS).key,
                    10 => listed(any % GROUPS).key,
                    11 => peer(any).key,
                    12 => card(any % 6 + 1).key,
                    13 => part(any).key,
                    0..5 => item(any).key,
                    5 => alias('a', any).key,
                    6 => alias('b', any % 6 + 1).key,
                    7 => group(any % GROUPS).key,
                    _ => version_key(any % GROUPS),
                };
                evict.arg(key.as_bytes());
            }
            if evict.exec_async(connection).await.is_err() {
                redis = None;
            }
        }
        drop(turn);
        tokio::time::sleep(Duration::from_millis(4)).await;
    }
}
