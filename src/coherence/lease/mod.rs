//! The filler's side of the protocol: read, grant, fill, refresh, release.
//!
//! Owns what a leased key may hold, and the order of the steps. It must not know what is cached. It
//! uses plain commands and short scripts (`join.lua`, `fill.lua`, `release.lua`, and `version.lua`
//! behind `decimal.lua`), so that a client in any language can do the same. Invariants: a value is
//! stored only while the key still holds the token of its grant; the positions that a fill relies
//! on are read after the grant; a replica says where it is, and in which history, in a statement of
//! its own, before the statement that reads.
//!
//! Why no older value can come back: an invalidation deletes the token with the key, so a fill that
//! succeeds had a grant after the invalidation. A read after the grant sees the commit, because the
//! invalidation was not sent before the commit was visible. A replica is read only if it has
//! replayed `started`, which rose before the deletion.

mod envelope;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisError, Value};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Row, SimpleQueryMessage};

use super::history::Origin;
use super::server::standby_condition;
use super::watermark::Names;
use crate::change::Lsn;
use crate::key::CacheKey;
use crate::mutant::{self, Mutant};
pub use envelope::{Envelope, Token};

const FILL: &str = include_str!("fill.lua");
const JOIN: &str = include_str!("join.lua");
const RELEASE: &str = include_str!("release.lua");
const VERSION: &str = concat!(include_str!("../decimal.lua"), include_str!("version.lua"));

/// Reads and fills the leased keys of one namespace. The caller gives the connection.
#[derive(Debug)]
pub struct Leases {
    names: Names,
    lease: Duration,
    /// Whether the server may know `SET … IFEQ` (Redis 8.4, Valkey 8.1). False once it refused one.
    compares: AtomicBool,
}

/// What a read found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// A value that may be served.
    Value(Envelope),
    /// A value from before the position that the reader has seen: wait for a newer one, or read the
    /// primary and do not fill.
    TooOld(Envelope),
    /// Nothing, and the reader may fill it.
    Granted(Grant),
    /// Another reader is filling it: wait, or read without filling.
    Busy,
    /// Neither a value nor a lease: another application writes to this key. Read without filling.
    Foreign,
}

/// The right to fill a key once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    key: CacheKey,
    token: Token,
    /// A value that is read now contains every commit up to this position.
    pub lo: Lsn,
    /// The position that a replica must have replayed before it may be read for this fill. None: no
    /// replica may be read, because Redis does not know up to where invalidations are in force.
    pub started: Option<Lsn>,
    /// The history that both positions belong to. None: no server may be read for this fill. A
    /// primary may be read if [`super::server::ServerIdentity::is_of`] says so, which need be asked
    /// once for each connection.
    pub origin: Option<Origin>,
}

impl Leases {
    /// The leased keys of a namespace. A grant ends after `lease`.
    pub fn new(names: Names, lease: Duration) -> Self {
        Self { names, lease, compares: AtomicBool::new(true) }
    }

    /// Reads a key; if it holds nothing, asks for the lease. With `min`, a value must contain every
    /// commit up to that position.
    ///
    /// # Errors
    ///
    /// Redis's; read the primary without filling then.
    pub async fn read(
        &self,
        connection: &mut impl ConnectionLike,
        key: &CacheKey,
        min: Option<Lsn>,
    ) -> Result<Found, RedisError> {
        // `applied` before the value: a value that is replaced in between is only newer.
        let mut look = Pipeline::new();
        look.add_command(get(&self.names.applied)).add_command(get(key));
        let (applied, held): (Option<String>, Value) = look.query_async(connection).await?;
        match Found::of(&held, position(applied.as_deref()), min)? {
            Some(found) => Ok(found),
            None => self.ask(connection, key, min).await,
        }
    }

    /// Asks for the lease of a key that held nothing.
    ///
    /// # Errors
    ///
    /// Redis's; read the primary without filling then.
    pub async fn ask(
        &self,
        connection: &mut impl ConnectionLike,
        key: &CacheKey,
        min: Option<Lsn>,
    ) -> Result<Found, RedisError> {
        let token = Token::random();
        let mut ask = redis::cmd("SET");
        ask.arg(key.as_bytes()).arg(token.lease()).arg("NX").arg("GET").arg("PX").arg(millis(self.lease));
        // The pipeline keeps its order, so both are read after the grant.
        let mut grant = Pipeline::new();
        grant.add_command(ask).add_command(self.progress());
        let (held, progress): (Value, GrantState) = grant.query_async(connection).await?;
        let found = Found::of(&held, position(progress.0.as_deref()), min)?;
        Ok(found.unwrap_or_else(|| Found::Granted(Grant::new(key, token, progress))))
    }

    /// The right to replace a value that was just read, by the value's own nonce. Several readers
    /// may have it; the first fill wins.
    ///
    /// # Errors
    ///
    /// Redis's.
    pub async fn refresh(
        &self,
        connection: &mut impl ConnectionLike,
        key: &CacheKey,
        value: &Envelope,
    ) -> Result<Grant, RedisError> {
        // After the value was read: an invalidation since then has deleted its nonce.
        let progress: GrantState = self.progress().query_async(connection).await?;
        Ok(Grant::new(key, value.nonce.clone(), progress))
    }

    /// Asks for [`GrantState`].
    fn progress(&self) -> Cmd {
        let mut get = redis::cmd("MGET");
        for name in [&self.names.applied, &self.names.started, &self.names.origin] {
            get.arg(name.as_bytes());
        }
        get
    }

    /// Stores a value for `ttl` if the grant still holds. Returns whether it was stored.
    ///
    /// # Errors
    ///
    /// Redis's. Whether the value was stored is then not known, which does no harm: it was
    /// permitted.
    pub async fn fill(
        &self,
        connection: &mut impl ConnectionLike,
        grant: &Grant,
        value: &Envelope,
        ttl: Duration,
    ) -> Result<bool, RedisError> {
        let (key, bytes) = (grant.key.as_bytes(), value.encode());
        if mutant::is(Mutant::NoLease) {
            redis::cmd("SET").arg(key).arg(bytes).exec_async(connection).await?;
            return Ok(true);
        }
        if grant.token.is_lease() && self.compares.load(Ordering::Relaxed) {
            let mut set = redis::cmd("SET");
            set.arg(key).arg(&bytes).arg("IFEQ").arg(grant.token.lease()).arg("PX").arg(millis(ttl));
            match set.query_async::<Option<String>>(connection).await {
                Ok(stored) => return Ok(stored.is_some()),
                Err(error) if error.kind() == redis::ErrorKind::Server(redis::ServerErrorKind::ResponseError) => {
                    self.compares.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(error),
            }
        }
        let mut fill = redis::cmd("EVAL");
        fill.arg(FILL).arg(1).arg(key).arg(grant.token.prefix()).arg(bytes).arg(millis(ttl));
        fill.query_async(connection).await
    }

    /// Joins the sets of tags by which rules find the key. Must be called after the grant and
    /// before the database is read, or an invalidation in between finds neither lease nor value.
    /// The sets live as long as the value can, which is `ttl` from the fill.
    ///
    /// # Errors
    ///
    /// Redis's; do not fill then.
    pub async fn join(
        &self,
        connection: &mut impl ConnectionLike,
        grant: &Grant,
        tags: &[CacheKey],
        ttl: Duration,
    ) -> Result<(), RedisError> {
        let mut join = Pipeline::new();
        for tag in tags {
            let mut one = redis::cmd("EVAL");
            // A fill comes before the lease ends, however long the database takes.
            one.arg(JOIN).arg(1).arg(tag.as_bytes()).arg(grant.key.as_bytes()).arg(millis(ttl + self.lease));
            join.add_command(one);
        }
        join.exec_async(connection).await
    }

    /// The number under a version key, which becomes part of the keys that depend on it. Read it
    /// before the database. If there is none, it begins at `started`, because any lower number may
    /// have been in use before it was evicted. It lives for `ttl` unless it is bumped; give the
    /// time that the dependent keys live. None: Redis does not know up to where invalidations are
    /// in force; read without filling.
    ///
    /// # Errors
    ///
    /// Redis's.
    pub async fn version(
        &self,
        connection: &mut impl ConnectionLike,
        key: &CacheKey,
        ttl: Duration,
    ) -> Result<Option<String>, RedisError> {
        let mut version = redis::cmd("EVAL");
        version.arg(VERSION).arg(2).arg(key.as_bytes()).arg(self.names.started.as_bytes()).arg(millis(ttl));
        version.query_async(connection).await
    }

    /// Gives a lease back unused, so that the next reader need not wait until it ends. Call it
    /// after an error.
    ///
    /// # Errors
    ///
    /// Redis's; the lease then ends by itself.
    pub async fn release(&self, connection: &mut impl ConnectionLike, grant: Grant) -> Result<(), RedisError> {
        if !grant.token.is_lease() {
            return Ok(());
        }
        let mut release = redis::cmd("EVAL");
        release.arg(RELEASE).arg(1).arg(grant.key.as_bytes()).arg(grant.token.prefix());
        release.exec_async(connection).await
    }
}

/// `applied`, `started` and `origin`, from one moment.
type GrantState = (Option<String>, Option<String>, Option<String>);

impl Grant {
    fn new(key: &CacheKey, token: Token, (applied, started, origin): GrantState) -> Self {
        Self {
            key: key.clone(),
            token,
            lo: position(applied.as_deref()).unwrap_or_default(),
            started: position(started.as_deref()),
            origin: origin.as_deref().and_then(Origin::decode),
        }
    }

    /// Reads the value from a replica, if it belongs to the history of the grant, and has replayed
    /// everything that the fill and the reader rely on. None if not: read the primary. `sql`
    /// returns one row.
    ///
    /// Both statements go over this client, and so to one server. They must not share a `REPEATABLE
    /// READ` transaction: the second would see what the first saw, and the check would prove
    /// nothing.
    ///
    /// # Errors
    ///
    /// The replica's; read the primary then.
    pub async fn read_replica(
        &self,
        replica: &Client,
        min: Option<Lsn>,
        sql: &str,
        parameters: &[&(dyn ToSql + Sync)],
    ) -> Result<Option<Row>, tokio_postgres::Error> {
        if mutant::is(Mutant::ReplicaCheckTooLate)
            && let Some(check) = self.replica_check(min)
        {
            let row = replica.query_one(&format!("select q.*, {check} from ({sql}) q"), parameters).await?;
            return Ok(row.get::<_, bool>(row.len() - 1).then_some(row));
        }
        if !self.is_covered_by(replica, min).await? {
            return Ok(None);
        }
        replica.query_one(sql, parameters).await.map(Some)
    }

    /// Whether a statement that begins now on this replica sees everything that the fill and the
    /// reader rely on. Ask on the connection that will read, before the statement that reads.
    ///
    /// # Errors
    ///
    /// The replica's; read the primary then.
    pub async fn is_covered_by(&self, replica: &Client, min: Option<Lsn>) -> Result<bool, tokio_postgres::Error> {
        let Some(check) = self.replica_check(min) else { return Ok(false) };
        let answer = replica.simple_query(&format!("select coalesce({check}, false)")).await?;
        Ok(answer.iter().any(|message| matches!(message, SimpleQueryMessage::Row(row) if row.get(0) == Some("t"))))
    }

    fn replica_check(&self, min: Option<Lsn>) -> Option<String> {
        let position = self.started?.max(min.unwrap_or_default());
        let mut check = format!("pg_is_in_recovery() and pg_last_wal_replay_lsn() >= '{position}'::pg_lsn");
        if !mutant::is(Mutant::ReplicaWithoutHistory) {
            check = format!("{check} and {}", standby_condition(self.origin.as_ref()?)?);
        }
        Some(check)
    }
}

impl Found {
    /// What a key holds that was read together with `applied`, or after it. None if it holds
    /// nothing. With `min`, a value must contain every commit up to that position.
    ///
    /// # Errors
    ///
    /// The reply of Redis is not text.
    pub fn of(held: &Value, applied: Option<Lsn>, min: Option<Lsn>) -> Result<Option<Self>, RedisError> {
        let copied: Vec<u8>;
        let bytes = match held {
            Value::Nil => return Ok(None),
            Value::BulkString(bytes) => bytes,
            other => {
                copied = redis::from_redis_value_ref(other)?;
                &copied
            }
        };
        if Token::is_lease_text(bytes) {
            return Ok(Some(Self::Busy));
        }
        let Some(value) = Envelope::decode(bytes) else { return Ok(Some(Self::Foreign)) };
        let new_enough = min.is_none_or(|min| applied.is_some_and(|applied| applied >= min) || value.lo >= min);
        Ok(Some(if new_enough { Self::Value(value) } else { Self::TooOld(value) }))
    }
}

fn get(key: &CacheKey) -> Cmd {
    redis::cmd("GET").arg(key.as_bytes()).clone()
}

fn position(text: Option<&str>) -> Option<Lsn> {
    text.and_then(Lsn::from_fixed_hex)
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}
