//! Those who read and fill the cache, on the primary and on the replica, as slowly as it can be.
//!
//! Owns the reading. It follows the protocol by the library that everybody is given. Between any two steps it may
//! stall.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use redis::aio::MultiplexedConnection;
use tokio::task::JoinHandle;
use tokio_postgres::Client;
use unstale::coherence::lease::{Envelope, Found, Grant, Token};
use unstale::key::CacheKey;
use unstale::postgres::{self, Address};

use super::stage::{GROUPS, ITEMS, Setting};

const FILLERS: usize = 32;
const TTL: Duration = Duration::from_secs(600);

pub(super) fn start(setting: &Arc<Setting>, random: &mut StdRng) -> Vec<JoinHandle<()>> {
    let mut tasks: Vec<_> =
        (0..FILLERS).map(|_| tokio::spawn(fill_on_and_on(Arc::clone(setting), StdRng::from_rng(random)))).collect();
    tasks.push(tokio::spawn(evict(Arc::clone(setting), StdRng::from_rng(random))));
    tasks
}

/// A key and how its value is read: one column of text.
pub(super) struct Query {
    pub(super) key: CacheKey,
    pub(super) sql: String,
    /// The set that the key joins before its value is read.
    tag: Option<CacheKey>,
}

impl Query {
    fn new(key: String, sql: String) -> Self {
        Self { key: CacheKey::new(key), sql, tag: None }
    }
}

pub(super) fn item(id: i32) -> Query {
    let sql = format!("select coalesce((select v::text from items where id = {id}), 'none')");
    Query::new(format!("t:item:{id}"), sql)
}

pub(super) fn alias(letter: char, id: i32) -> Query {
    let sql = format!("select coalesce((select v::text from items where alias = '{letter}{id}'), 'none')");
    Query::new(format!("t:alias:{letter}{id}"), sql)
}

fn sum(group: i32) -> String {
    format!("select coalesce(sum(v)::text, 'none') from items where grp = {group}")
}

pub(super) fn group(group: i32) -> Query {
    Query::new(format!("t:group:{group}"), sum(group))
}

/// The same as [`group`] under a key that no rule deletes: its version is part of it.
pub(super) fn versioned(group: i32, version: &str) -> Query {
    Query::new(format!("t:versioned:{group}:{version}"), sum(group))
}

/// The same under a key that only a tag finds.
pub(super) fn tagged(group: i32) -> Query {
    let tag = Some(CacheKey::new(format!("t:tag:group:{group}")));
    Query { tag, ..Query::new(format!("t:tagged:{group}"), sum(group)) }
}

/// The same under a key that only a pattern finds.
pub(super) fn listed(group: i32) -> Query {
    Query::new(format!("t:listed:{group}:all"), sum(group))
}

/// What an item shares with its group: a key that a lookup finds.
pub(super) fn peer(id: i32) -> Query {
    let sql = format!(
        "select coalesce((select sum(p.v)::text from items i join items p using (grp) where i.id = {id}), 'none')"
    );
    Query::new(format!("t:peer:{id}"), sql)
}

/// A value that is written through, and filled when it is missing.
pub(super) fn card(id: i32) -> Query {
    let sql = format!("select coalesce((select format('{{\"v\":%s}}', v) from items where id = {id}), 'none')");
    Query::new(format!("t:card:{id}"), sql)
}

pub(super) fn version_key(group: i32) -> CacheKey {
    CacheKey::new(format!("t:version:{group}"))
}

#[derive(Default)]
struct Links {
    redis: Option<MultiplexedConnection>,
    primary: Option<Client>,
    replica: Option<Client>,
}

impl Links {
    async fn mend(&mut self, setting: &Setting) -> Option<()> {
        if self.redis.is_none() {
            self.redis = setting.redis_connection().await.ok();
        }
        for (link, url) in [(&mut self.primary, &setting.primary), (&mut self.replica, &setting.replica)] {
            if link.as_ref().is_none_or(Client::is_closed) {
                *link = postgres::connect(&Address::parse(url, &|_| None).unwrap()).await.ok();
                // A read behind a lock that somebody left must not keep the harness from coming to rest.
                if let Some(client) = link
                    && client.batch_execute("set statement_timeout = '20s'").await.is_err()
                {
                    *link = None;
                }
            }
        }
        self.redis.as_ref().map(|_| ())
    }
}

async fn fill_on_and_on(setting: Arc<Setting>, mut random: StdRng) {
    let mut links = Links::default();
    while let Some(turn) = setting.filler_turn().await {
        if links.mend(&setting).await.is_some() && fill_once(&setting, &mut links, &mut random).await.is_none() {
            links.redis = None;
        }
        drop(turn);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..3))).await;
    }
}

/// Nothing when the connection to Redis is of no use any more.
async fn fill_once(setting: &Setting, links: &mut Links, random: &mut StdRng) -> Option<()> {
    let mut redis = links.redis.clone()?;
    let hot = random.random_range(1..=6);
    let any = random.random_range(1..=ITEMS);
    let query = match random.random_range(0..15) {
        0..4 => item(hot),
        4..6 => item(any),
        6 => alias('a', any),
        7 => alias('b', hot),
        8 | 9 => group(random.random_range(0..GROUPS)),
        10 => tagged(random.random_range(0..GROUPS)),
        11 => listed(random.random_range(0..GROUPS)),
        12 => peer(any),
        13 => card(hot),
        _ => {
            let number = random.random_range(0..GROUPS);
            let version = setting.leases.version(&mut redis, &version_key(number), TTL).await.ok()?;
            stall(random).await;
            versioned(number, &version?)
        }
    };
    let grant = match setting.leases.read(&mut redis, &query.key, None).await.ok()? {
        Found::Granted(grant) => grant,
        Found::Value(value) if random.random_range(0..10) == 0 => {
            setting.leases.refresh(&mut redis, &query.key, &value).await.ok()?
        }
        _ => return Some(()),
    };
    stall(random).await;
    if let Some(tag) = &query.tag {
        let joined = redis::cmd("SADD").arg(tag.as_bytes()).arg(query.key.as_bytes()).exec_async(&mut redis).await;
        if joined.is_err() {
            return setting.leases.release(&mut redis, grant).await.ok();
        }
        stall(random).await;
    }
    let Some(body) = read(links, &grant, &query.sql, random).await else {
        // Errors are never cached.
        return setting.leases.release(&mut redis, grant).await.ok();
    };
    stall(random).await;
    let value = Envelope {
        nonce: Token::of_new_value(),
        lo: grant.lo,
        stored_at: 0,
        soft_ttl: 0,
        etag: String::new(),
        body: body.into_bytes(),
    };
    let stored = setting.leases.fill(&mut redis, &grant, &value, TTL).await.ok()?;
    (if stored { &setting.fills } else { &setting.refused }).fetch_add(1, Ordering::Relaxed);
    Some(())
}

/// Reads the value, from the replica if it may.
async fn read(links: &Links, grant: &Grant, sql: &str, random: &mut StdRng) -> Option<String> {
    let on_replica = random.random();
    // Some statements take long, and return what was true when they began. On a replica that catches up meanwhile,
    // that is where a check in the same statement goes wrong, so there it is often.
    let one_in = if on_replica { 3 } else { 20 };
    let millis = if random.random_range(0..one_in) == 0 { random.random_range(1..60) } else { 0 };
    let sql = match millis {
        0 => sql.to_owned(),
        _ => format!("select q.* from ({sql}) q (value), (select pg_sleep({millis} / 1000.0) offset 0) s"),
    };
    if on_replica
        && let Some(replica) = &links.replica
        && let Some(row) = grant.read_replica(replica, None, &sql, &[]).await.ok()?
    {
        return Some(row.get(0));
    }
    let row = links.primary.as_ref()?.query_one(&sql, &[]).await.ok()?;
    Some(row.get(0))
}

/// Mostly not, sometimes a little, rarely for long.
async fn stall(random: &mut StdRng) {
    let millis = match random.random_range(0..100) {
        0..80 => return,
        80..98 => random.random_range(1..15),
        _ => random.random_range(20..250),
    };
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

/// Redis drops keys when its memory is full, whatever they hold; without it there would be too few misses.
async fn evict(setting: Arc<Setting>, mut random: StdRng) {
    let mut redis = None;
    while let Some(turn) = setting.filler_turn().await {
        if redis.is_none() {
            redis = setting.redis_connection().await.ok();
        }
        if let Some(connection) = &mut redis {
            let mut evict = redis::cmd("DEL");
            for _ in 0..8 {
                let any = random.random_range(1..=ITEMS);
                let key = match random.random_range(0..13) {
                    9 => tagged(any % GROUPS).key,
                    10 => listed(any % GROUPS).key,
                    11 => peer(any).key,
                    12 => card(any % 6 + 1).key,
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
