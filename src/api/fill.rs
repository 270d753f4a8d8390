//! Fills: a value is read from PostgreSQL under a lease and stored in Redis.
//!
//! Owns the order of the steps from the lease to the stored value, and the tags that the value
//! joins. It must not know who waits for the value, nor HTTP. Invariants: a value joins its tags
//! before the database is queried; an error is never stored, and gives the lease back; only what
//! the server answers that the daemon follows is stored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::RedisError;
use redis::aio::MultiplexedConnection;

use super::cache::Cache;
use super::database::Fetched;
use super::error::ReadError;
use super::question::Question;
use super::shared::Shared;
use super::single_flight::{FillOutcome, FlightRole, Leader};
use super::stats::ReadEvent;
use super::value::{Answer, AnswerOrigin, envelope, longest, served};
use crate::causes::with_causes;
use crate::coherence::lease::{Envelope, Found, Grant, Joined, TagGeneration};
use crate::key::CacheKey;
use crate::reads::Read;

/// The reason that an answer is not stored if it is not from the server that the daemon follows.
pub(super) const OTHER_SERVER: &str = "other-server";

/// How often a value may turn out to have other tags than those it had joined.
const TAG_ROUNDS_MAX: usize = 3;

/// Fills keys, on one thread.
#[derive(Debug)]
pub(super) struct Filler {
    cache: Arc<Cache>,
    shared: Arc<Shared>,
}

/// The result of an attempt to fill.
pub(super) enum Filled {
    Answer(Answer),
    /// Another process has the lease, or has stored a value meanwhile.
    Other,
    /// Redis gave no lease: read without filling, for this reason.
    Refused(&'static str),
}

impl Filler {
    pub(super) fn new(shared: &Arc<Shared>, cache: &Arc<Cache>) -> Self {
        Self { cache: Arc::clone(cache), shared: Arc::clone(shared) }
    }

    /// Asks for the lease and fills the key if it is granted. Followers receive a failure.
    pub(super) async fn fill(
        self: Arc<Self>,
        question: Arc<Question>,
        key: CacheKey,
        leader: Leader,
    ) -> Result<Filled, ReadError> {
        let Some(read) = self.shared.reads.reads().get(question.read) else { return Ok(Filled::Refused("failed")) };
        let Ok(mut connection) = self.cache.connection() else { return Ok(Filled::Refused("redis-away")) };
        let asked = self.cache.leases.ask(&mut connection, &key, question.min).await;
        let grant = match self.cache.observe(asked) {
            Ok(Found::Granted(grant)) => grant,
            Ok(_) => return Ok(Filled::Other),
            Err(error) => return Ok(Filled::Refused(refusal_reason(&error))),
        };
        match self.fill_granted(read, &question, &grant, &mut connection).await {
            Ok((answer, stored)) => {
                if !stored {
                    leader.set_outcome(FillOutcome::NotStored);
                }
                self.shared.stats.of(question.read).count(ReadEvent::Miss);
                Ok(Filled::Answer(answer))
            }
            Err(error) => {
                leader.set_outcome(FillOutcome::Failed(error.clone()));
                self.release(&grant).await;
                Err(error)
            }
        }
    }

    /// Replaces a value that is still served, unless this process is filling its key already, or as
    /// many refreshes run as may.
    pub(super) fn refresh_in_background(self: &Arc<Self>, question: &Question, key: CacheKey, value: Envelope) {
        let Ok(permit) = Arc::clone(&self.shared.refreshes).try_acquire_owned() else { return };
        let FlightRole::Leader(leader) = self.shared.fills.join(&key, true) else { return };
        let (filler, question) = (Arc::clone(self), question.clone());
        tokio::spawn(async move {
            if let Some(read) = filler.shared.reads.reads().get(question.read)
                && let Err(error) = filler.refresh(read, &question, &key, &value).await
            {
                tracing::debug!(read = read.name, error = with_causes(&error), "a background refresh failed");
            }
            drop((leader, permit));
        });
    }

    /// Replaces a value if the key still holds it. Returns the answer and whether it was stored;
    /// None if Redis is unavailable.
    pub(super) async fn refresh(
        &self,
        read: &Read,
        question: &Question,
        key: &CacheKey,
        value: &Envelope,
    ) -> Result<Option<(Answer, bool)>, ReadError> {
        let Ok(mut connection) = self.cache.connection() else { return Ok(None) };
        let granted = self.cache.leases.refresh(&mut connection, key, value).await;
        match self.cache.observe(granted) {
            Ok(grant) => self.fill_granted(read, question, &grant, &mut connection).await.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Queries the database under a grant and stores the result. Returns whether it was stored.
    async fn fill_granted(
        &self,
        read: &Read,
        question: &Question,
        grant: &Grant,
        connection: &mut MultiplexedConnection,
    ) -> Result<(Answer, bool), ReadError> {
        let begun = Instant::now();
        let (fetched, tags) = self.fetch_tagged(read, question, grant, connection).await?;
        let is_ours = fetched.is_of_history;
        let may_store = is_ours && tags.is_some() && fetched.is_canonical;
        let (value, ttl) = envelope(read, &fetched, grant.lo);
        let value = Envelope { tags: tags.unwrap_or_default(), ..value };
        let mut stored = false;
        if let Some(ttl) = ttl {
            stored = may_store && self.store(grant, &value, ttl).await;
            let event = if stored { ReadEvent::Fill } else { ReadEvent::RefusedFill };
            self.shared.stats.of(question.read).count(event);
        }
        if !stored {
            self.release(grant).await;
        }
        let origin = if is_ours { AnswerOrigin::Miss { stored } } else { AnswerOrigin::Bypass(OTHER_SERVER) };
        let answer = served(value, Duration::ZERO, ttl.unwrap_or_default(), question.min, origin);
        let token = answer.token.filter(|_| is_ours);
        Ok((Answer { database: Some(begun.elapsed()), token, ..answer }, stored))
    }

    /// Joins the tags of the value, then queries the database. Returns the tags with their
    /// generations; None if the value may have others.
    async fn fetch_tagged(
        &self,
        read: &Read,
        question: &Question,
        grant: &Grant,
        connection: &mut MultiplexedConnection,
    ) -> Result<(Fetched, Option<Vec<TagGeneration>>), ReadError> {
        let (longest, counters) = (longest(read), self.shared.stats.of(question.read));
        let mut new = read.tags(&question.arguments, None);
        let (mut sets, mut tags, mut rounds) = (new.clone(), Some(Vec::new()), 0);
        // The value itself may name some of its tags: join them, then read again.
        loop {
            let joined = self.join(connection, grant, &new, longest).await.filter(|_| rounds <= TAG_ROUNDS_MAX);
            rounds += 1;
            let fetch = self.shared.upstream.fetch_granted(read, question, grant, counters);
            let fetched = match &joined {
                Some(joined) => tokio::join!(fetch, self.prune(connection, joined)).0?,
                None => fetch.await?,
            };
            tags = tags.zip(joined).map(|(tags, joined)| [tags, joined.tags].concat());
            let body = fetched.body.as_deref().filter(|_| read.tags_need_value() && tags.is_some());
            let Some(body) = body else { return Ok((fetched, tags)) };
            new = read.tags(&question.arguments, Some(body));
            new.retain(|set| !sets.contains(set));
            if new.is_empty() {
                let tags = tags.filter(|_| read.has_tag_fields(body));
                return Ok((fetched, tags));
            }
            sets.extend_from_slice(&new);
        }
    }

    /// None if Redis did not confirm it.
    async fn join(
        &self,
        connection: &mut MultiplexedConnection,
        grant: &Grant,
        sets: &[CacheKey],
        ttl: Duration,
    ) -> Option<Joined> {
        if sets.is_empty() {
            return Some(Joined::default());
        }
        let joined = self.cache.leases.join(connection, grant, sets, ttl).await;
        self.cache.observe(joined).ok()
    }

    /// Removes what the joined sets hold of keys that are gone.
    async fn prune(&self, connection: &mut MultiplexedConnection, joined: &Joined) {
        let pruned = self.cache.leases.prune(connection, joined).await;
        let _ = self.cache.observe(pruned);
    }

    async fn store(&self, grant: &Grant, value: &Envelope, ttl: Duration) -> bool {
        // The connection may have been replaced while the database was queried.
        let Ok(mut connection) = self.cache.connection() else { return false };
        let filled = self.cache.leases.fill(&mut connection, grant, value, ttl).await;
        self.cache.observe(filled).unwrap_or(false)
    }

    /// Gives a lease back. If that fails, the lease expires.
    async fn release(&self, grant: &Grant) {
        let Ok(mut connection) = self.cache.connection() else { return };
        let released = self.cache.leases.release(&mut connection, grant.clone()).await;
        let _ = self.cache.observe(released);
    }
}

/// Why Redis did not grant a lease, as `Cache-Status` shows it.
fn refusal_reason(error: &RedisError) -> &'static str {
    let Some(refusals) = error.clone().into_server_errors() else { return "redis-away" };
    match refusals.first().map(|(_, refusal)| refusal.code()) {
        Some("WRONGTYPE") => "foreign",
        Some("OOM") => "redis-full",
        _ => "redis-refuses",
    }
}
