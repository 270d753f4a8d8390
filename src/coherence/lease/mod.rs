//! The filler's side of the protocol: read, grant, fill, refresh, release.
//!
//! Owns what a leased key may hold, and the order of the steps. It must not know what is cached. It
//! uses plain commands and short scripts (`join.lua`, `prune.lua`, `fill.lua`, `release.lua`, and
//! `version.lua` behind `decimal.lua`), so that a client in any language can do the same.
//! Invariants: a value is stored only while the key still holds the token of its grant; the
//! positions that a fill relies on are read after the grant, and the generations of tags before the
//! database.
//!
//! Why no older value can come back: an invalidation deletes the token with the key, so a fill that
//! succeeds had a grant after the invalidation. A read after the grant sees the commit, because the
//! invalidation was not sent before the commit was visible. A replica is read only if it has
//! replayed `started`, which rose before the deletion.
//!
//! Tags: a tag has a generation, random digits under a key of its own, for as long as no
//! invalidation deletes it and Redis keeps it. A value names its tags and the generation that each
//! had before the database was read, and is served only while each still has it. The set of a tag
//! is only an index: what is evicted from it makes nothing servable. No two generations are equal,
//! so one that was deleted never returns.

mod contents;
mod envelope;
mod grant;
mod tag_generation;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisError, Value};

use self::grant::{GrantState, position};
use self::tag_generation::is_generation;
use super::watermark::Names;
use crate::change::Lsn;
use crate::key::CacheKey;
use crate::mutant::{self, Mutant};
pub use contents::{Found, Generations, KeyContents};
pub use envelope::{Envelope, Token};
pub use grant::Grant;
pub use tag_generation::TagGeneration;

const FILL: &str = include_str!("fill.lua");
const JOIN: &str = include_str!("join.lua");
const PRUNE: &str = include_str!("prune.lua");
const RELEASE: &str = include_str!("release.lua");
const VERSION: &str = concat!(include_str!("../decimal.lua"), include_str!("version.lua"));

/// How many members of a set are looked at when a key joins it. On average, dead members are at
/// most a quarter of a set.
const LOOKED_AT: usize = 4;

/// Reads and fills the leased keys of one namespace. The caller gives the connection.
#[derive(Debug)]
pub struct Leases {
    names: Names,
    lease: Duration,
    /// Whether the server may know `SET … IFEQ` (Redis 8.4, Valkey 8.1). False once it refused one.
    compares: AtomicBool,
}

/// What a key joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Joined {
    /// The tags, with the generations that the value must name.
    pub tags: Vec<TagGeneration>,
    /// A few members of each set, for [`Leases::prune`].
    looked_at: Vec<(CacheKey, Vec<Vec<u8>>)>,
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
        match self.contents(connection, &held, position(applied.as_deref()), min).await? {
            KeyContents::Found(found) => return Ok(found),
            KeyContents::Nothing | KeyContents::Unverified(_) => {}
            KeyContents::Outdated(value) => self.discard(connection, key, &value).await?,
        }
        self.ask(connection, key, min).await
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
        match self.contents(connection, &held, position(progress.0.as_deref()), min).await? {
            KeyContents::Nothing => Ok(Found::Granted(Grant::new(key, token, progress))),
            KeyContents::Found(found) => Ok(found),
            KeyContents::Unverified(_) => Ok(Found::Busy),
            KeyContents::Outdated(value) => {
                self.discard(connection, key, &value).await?;
                Ok(Found::Busy)
            }
        }
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

    /// Joins tags: reads or makes the generation of each, and adds the key to its set. `sets` are
    /// the full names of the sets. Must be called after the grant and before the database is read:
    /// a generation that is read later could hide an invalidation in between. Generation and set
    /// live as long as the value can, which is `ttl` from the fill.
    ///
    /// # Errors
    ///
    /// Redis's; do not fill then.
    pub async fn join(
        &self,
        connection: &mut impl ConnectionLike,
        grant: &Grant,
        sets: &[CacheKey],
        ttl: Duration,
    ) -> Result<Joined, RedisError> {
        let mut join = Pipeline::new();
        for set in sets {
            let mut one = redis::cmd("EVAL");
            one.arg(JOIN).arg(2).arg(self.names.generation_of(set).as_bytes()).arg(set.as_bytes());
            // A fill comes before the lease ends, however long the database takes.
            one.arg(grant.key.as_bytes()).arg(millis(ttl + self.lease)).arg(Token::new_generation()).arg(LOOKED_AT);
            join.add_command(one);
        }
        let replies: Vec<(String, Vec<Vec<u8>>)> = join.query_async(connection).await?;
        let mut joined = Joined::default();
        for (set, (generation, members)) in sets.iter().zip(replies) {
            if !is_generation(generation.as_bytes()) {
                return Err((redis::ErrorKind::UnexpectedReturnType, "a tag has a generation of another form").into());
            }
            joined.tags.push(TagGeneration { tag: self.names.tag(set).to_vec(), generation });
            joined.looked_at.push((set.clone(), members));
        }
        Ok(joined)
    }

    /// Removes those members of the joined sets that were looked at and whose keys do not exist.
    /// Nothing depends on it but the size of the sets. It may run while the database is read.
    ///
    /// # Errors
    ///
    /// Redis's, which may be ignored.
    pub async fn prune(&self, connection: &mut impl ConnectionLike, joined: &Joined) -> Result<(), RedisError> {
        let mut prune = Pipeline::new();
        for (set, members) in joined.looked_at.iter().filter(|(_, members)| !members.is_empty()) {
            let mut one = redis::cmd("EVAL");
            one.arg(PRUNE).arg(members.len() + 1).arg(set.as_bytes()).arg(members);
            prune.add_command(one);
        }
        if prune.is_empty() { Ok(()) } else { prune.exec_async(connection).await }
    }

    /// Deletes a value that must not be served, unless another one has taken its place.
    ///
    /// # Errors
    ///
    /// Redis's; read the primary without filling then.
    pub async fn discard(
        &self,
        connection: &mut impl ConnectionLike,
        key: &CacheKey,
        value: &Envelope,
    ) -> Result<(), RedisError> {
        let mut discard = redis::cmd("EVAL");
        discard.arg(RELEASE).arg(1).arg(key.as_bytes()).arg(value.nonce.prefix());
        discard.exec_async(connection).await
    }

    /// What a key holds, and whether its tags still have their generations.
    async fn contents(
        &self,
        connection: &mut impl ConnectionLike,
        held: &Value,
        applied: Option<Lsn>,
        min: Option<Lsn>,
    ) -> Result<KeyContents, RedisError> {
        let contents = KeyContents::of(held, applied, min, &Generations::default())?;
        let KeyContents::Unverified(value) = contents else { return Ok(contents) };
        let mut get = redis::cmd("MGET");
        let tags: Vec<_> = value.tags.into_iter().map(|tag| tag.tag).collect();
        for tag in &tags {
            get.arg(self.names.generation(tag).as_bytes());
        }
        let replies: Vec<Value> = get.query_async(connection).await?;
        KeyContents::of(held, applied, min, &Generations::new(tags, replies))
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

fn get(key: &CacheKey) -> Cmd {
    redis::cmd("GET").arg(key.as_bytes()).clone()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}
