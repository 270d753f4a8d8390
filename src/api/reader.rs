//! One read: from its arguments to an answer, by the lease protocol.
//!
//! Owns the decision between the cached value, waiting, a fill and a query past the cache, and how
//! long a request may wait. It must not know HTTP or how a key is filled. Invariants: a value from
//! Redis is served only if Redis held it, and the daemon was close enough, after the request
//! arrived; a value read for another request is served by way of Redis or not at all, because an
//! invalidation may lie between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::cache::{Cache, CacheLookup, RedisUnavailable};
use super::database::DatabaseError;
use super::error::ReadError;
use super::fill::{Filled, Filler};
use super::question::{CacheControl, Question};
use super::shared::Shared;
use super::single_flight::{FillOutcome, FlightRole};
use super::stats::ReadEvent;
use super::value::{Answer, AnswerOrigin, age, envelope, longest, served};
use crate::change::Lsn;
use crate::coherence::lease::{Envelope, Found, KeyContents};
use crate::key::CacheKey;
use crate::reads::{Arguments, Read};

/// The first and the longest pause before a key that another process fills is looked up again.
const PAUSE_FIRST: Duration = Duration::from_millis(1);
const PAUSE_MAX: Duration = Duration::from_millis(25);

/// Answers questions, on one thread.
#[derive(Debug)]
pub(super) struct Reader {
    cache: Arc<Cache>,
    shared: Arc<Shared>,
    filler: Arc<Filler>,
}

/// What to do after a lookup.
enum NextStep {
    Answer(Answer),
    /// Query the primary and store nothing, for this reason.
    Bypass(&'static str),
    /// Look the key up again at once.
    LookUp,
    /// Look the key up again after a pause, until the request has waited this long.
    Pause(Duration),
}

/// How long a request has waited for a value, and how long its next pause is.
struct Waiting {
    since: Instant,
    pause: Duration,
    is_counted: bool,
}

impl Waiting {
    fn begin() -> Self {
        Self { since: Instant::now(), pause: PAUSE_FIRST, is_counted: false }
    }

    fn has_lasted(&self, limit: Duration) -> bool {
        self.since.elapsed() >= limit
    }

    fn left(&self, limit: Duration) -> Duration {
        limit.saturating_sub(self.since.elapsed())
    }

    async fn pause(&mut self, limit: Duration) {
        tokio::time::sleep(self.pause.min(self.left(limit))).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
    }
}

impl Reader {
    /// A reader for the thread that the cache belongs to.
    pub(super) fn new(shared: &Arc<Shared>, cache: &Arc<Cache>) -> Self {
        let filler = Arc::new(Filler::new(shared, cache));
        Self { cache: Arc::clone(cache), shared: Arc::clone(shared), filler }
    }

    /// Answers a question.
    pub(super) async fn answer(&self, question: Question) -> Result<Answer, ReadError> {
        let Some(read) = self.shared.reads.reads().get(question.read) else {
            return Err(DatabaseError::Refused("there is no such read".to_owned()).into());
        };
        match self.fast_path(read, &question).await {
            Some(answer) => Ok(answer),
            // Boxed, so that a hit does not carry the state of the slow path.
            None => {
                let answer = Box::pin(self.slow_path(read, Arc::new(question)));
                tokio::time::timeout(self.shared.settings.timeout, answer).await.unwrap_or(Err(ReadError::Timeout))
            }
        }
    }

    /// One lookup that finds the value.
    async fn fast_path(&self, read: &Read, question: &Question) -> Option<Answer> {
        if question.control != CacheControl::Serve || read.version.is_some() {
            return None;
        }
        let key = read.key(&question.arguments)?;
        let lookup = self.cache.look_up(key.clone()).await.ok()?;
        if !lookup.is_within(read.max_staleness) {
            return None;
        }
        match lookup.contents(question.min) {
            KeyContents::Found(Found::Value(value)) => Some(self.hit(question, key, value, &lookup)),
            _ => None,
        }
    }

    async fn slow_path(&self, read: &Read, question: Arc<Question>) -> Result<Answer, ReadError> {
        let mut waiting = Waiting::begin();
        if question.control == CacheControl::Bypass {
            return self.bypass(read, &question, "request", None).await;
        }
        let Some(name) = read.key(&question.arguments) else {
            return self.bypass(read, &question, "uncacheable", None).await;
        };
        loop {
            let (key, lookup) = match self.look_up(read, &question.arguments, &name).await {
                Ok(Some(found)) => found,
                Ok(None) => return self.bypass(read, &question, "no-version", None).await,
                Err(RedisUnavailable) => return self.bypass(read, &question, "redis-away", None).await,
            };
            let found = match lookup.contents(question.min) {
                KeyContents::Nothing => None,
                KeyContents::Found(found) => Some(found),
                KeyContents::Unverified(_) => Some(Found::Busy),
                KeyContents::Outdated(value) => match self.cache.discard(&key, &value).await {
                    Ok(()) => None,
                    Err(RedisUnavailable) => return self.bypass(read, &question, "redis-away", None).await,
                },
            };
            if !lookup.is_within(read.max_staleness) {
                return self.answer_without_daemon(read, &question, found, &lookup).await;
            }
            if !matches!(found, Some(Found::Value(_))) {
                self.shared.upstream.require_reached(question.min).await?;
            }
            let (consistency_wait, fill_wait) = (self.shared.settings.consistency_wait, self.shared.settings.fill_wait);
            let next = match found {
                Some(Found::Value(value)) if question.control == CacheControl::Serve => {
                    NextStep::Answer(self.hit(&question, key, value, &lookup))
                }
                Some(Found::Value(value)) => {
                    return self.revalidate(read, &question, key, value, &lookup).await;
                }
                Some(Found::Foreign) => NextStep::Bypass("foreign"),
                Some(Found::TooOld(_)) if waiting.has_lasted(consistency_wait) => NextStep::Bypass("too-old"),
                Some(Found::TooOld(_)) => NextStep::Pause(consistency_wait),
                Some(Found::Busy | Found::Granted(_)) | None if waiting.has_lasted(fill_wait) => {
                    NextStep::Bypass("busy")
                }
                Some(Found::Busy | Found::Granted(_)) => self.fill(&question, key, false, &mut waiting).await?,
                None => self.fill(&question, key, true, &mut waiting).await?,
            };
            match next {
                NextStep::Answer(answer) => return Ok(answer),
                NextStep::Bypass(why) => return self.bypass(read, &question, why, Some(&lookup)).await,
                NextStep::LookUp => {}
                NextStep::Pause(limit) => waiting.pause(limit).await,
            }
        }
    }

    /// Looks up the key, and before it its version key if the read has one. None if there is no
    /// version.
    async fn look_up(
        &self,
        read: &Read,
        arguments: &Arguments,
        name: &CacheKey,
    ) -> Result<Option<(CacheKey, CacheLookup)>, RedisUnavailable> {
        let Some(version_key) = read.version_key(arguments) else {
            return Ok(Some((name.clone(), self.cache.look_up(name.clone()).await?)));
        };
        let first = self.cache.look_up(version_key.clone()).await?;
        let version = match &first.held {
            redis::Value::BulkString(digits) => String::from_utf8(digits.clone()).ok(),
            _ => {
                let mut connection = self.cache.connection()?;
                let ttl = longest(read) + read.timeout;
                let made = self.cache.leases.version(&mut connection, &version_key, ttl).await;
                self.cache.observe(made).map_err(|_| RedisUnavailable)?
            }
        };
        let Some(version) = version.filter(|version| version.bytes().all(|byte| byte.is_ascii_digit())) else {
            return Ok(None);
        };
        let key = Read::versioned(name, &version);
        let second = self.cache.look_up(key.clone()).await?;
        // `applied` of the first lookup: a later invalidation may have raised the version.
        let behind = first.behind.zip(second.behind).map(|(first, second)| first.max(second));
        let has_other_rules = first.has_other_rules || second.has_other_rules;
        Ok(Some((key, CacheLookup { applied: first.applied, behind, has_other_rules, ..second })))
    }

    fn hit(&self, question: &Question, key: CacheKey, value: Envelope, lookup: &CacheLookup) -> Answer {
        let age = age(&value);
        let soft = Duration::from_millis(value.soft_ttl);
        let is_stale = value.soft_ttl > 0 && age >= soft;
        if is_stale || value.soft_ttl > 0 && self.refreshes_early(question.read, soft - age) {
            self.filler.refresh_in_background(question, key, value.clone());
        }
        self.shared.stats.of(question.read).count(if is_stale { ReadEvent::StaleHit } else { ReadEvent::Hit });
        let origin = if is_stale { AnswerOrigin::StaleHit } else { AnswerOrigin::Hit };
        served(value, age, soft.saturating_sub(age), lookup.applied, origin)
    }

    /// Whether to refresh a value before its ttl ends. The probability rises as less of the ttl is
    /// left and as the database takes longer, so that of many readers one goes first.
    ///
    /// Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB
    /// 2015.
    fn refreshes_early(&self, read: usize, left: Duration) -> bool {
        let share: f64 = rand::random();
        self.shared.upstream.cost(read).mul_f64(-share.max(f64::MIN_POSITIVE).ln()) >= left
    }

    async fn revalidate(
        &self,
        read: &Read,
        question: &Question,
        key: CacheKey,
        value: Envelope,
        lookup: &CacheLookup,
    ) -> Result<Answer, ReadError> {
        match self.filler.refresh(read, question, &key, &value).await? {
            Some((answer, _)) if matches!(answer.origin, AnswerOrigin::Bypass(_)) => Ok(answer),
            Some((answer, stored)) => {
                let (token, origin) = (lookup.applied.max(answer.token), AnswerOrigin::Request { stored });
                Ok(Answer { token, origin, ..answer })
            }
            None => self.bypass(read, question, "redis-away", Some(lookup)).await,
        }
    }

    /// Fills the key if nothing in this process does and `is_free`. Otherwise waits for the fill.
    async fn fill(
        &self,
        question: &Arc<Question>,
        key: CacheKey,
        is_free: bool,
        waiting: &mut Waiting,
    ) -> Result<NextStep, ReadError> {
        let fill_wait = self.shared.settings.fill_wait;
        match self.shared.fills.join(&key, is_free) {
            FlightRole::Leader(leader) => {
                let fill = Arc::clone(&self.filler).fill(Arc::clone(question), key, leader);
                // A task of its own: if the client disconnects, the fill goes on for its followers.
                let filled = tokio::spawn(fill).await;
                Ok(match filled.unwrap_or(Ok(Filled::Refused("failed")))? {
                    Filled::Answer(answer) => NextStep::Answer(answer),
                    Filled::Refused(why) => NextStep::Bypass(why),
                    Filled::Other => NextStep::Pause(fill_wait),
                })
            }
            FlightRole::Follower(follower) => {
                self.count_wait(question, waiting);
                match tokio::time::timeout(waiting.left(fill_wait), follower.wait()).await {
                    Ok(FillOutcome::Failed(error)) => Err(error),
                    // The fills of the other followers, one after the other, would not be stored
                    // either.
                    Ok(FillOutcome::NotStored) => Ok(NextStep::Bypass("unstored")),
                    Ok(FillOutcome::Ended) | Err(_) => Ok(NextStep::LookUp),
                }
            }
            FlightRole::Bystander => {
                self.count_wait(question, waiting);
                Ok(NextStep::Pause(fill_wait))
            }
        }
    }

    /// Queries the primary and stores nothing.
    async fn bypass(
        &self,
        read: &Read,
        question: &Question,
        why: &'static str,
        lookup: Option<&CacheLookup>,
    ) -> Result<Answer, ReadError> {
        self.shared.upstream.require_reached(question.min).await?;
        let begun = Instant::now();
        let counters = self.shared.stats.of(question.read);
        let origin = lookup.and_then(|lookup| lookup.origin.as_deref());
        let fetched = self.shared.upstream.fetch(read, question, origin, counters).await?;
        counters.count(ReadEvent::Bypass);
        let (value, _) = envelope(read, &fetched, Lsn::ZERO);
        // The primary contains everything that the client has seen. Another server may not.
        let applied = lookup.and_then(|lookup| lookup.applied).filter(|_| fetched.is_of_history);
        let token = applied.max(question.min);
        let answer = served(value, Duration::ZERO, Duration::ZERO, token, AnswerOrigin::Bypass(why));
        Ok(Answer { database: Some(begun.elapsed()), ..answer })
    }

    /// Answers from the primary, because the daemon is too far behind to trust the cached value. If
    /// the primary is unavailable too, the cached value may be served for `api.stale_if_error`.
    async fn answer_without_daemon(
        &self,
        read: &Read,
        question: &Question,
        found: Option<Found>,
        lookup: &CacheLookup,
    ) -> Result<Answer, ReadError> {
        let why = if lookup.has_other_rules { "other-rules" } else { "daemon-behind" };
        let error = match self.bypass(read, question, why, Some(lookup)).await {
            Err(ReadError::Database(error)) if error.is_transient() => ReadError::Database(error),
            outcome => return outcome,
        };
        let limit = read.max_staleness + self.shared.settings.stale_if_error;
        // A revoked session must not be served, and a client that asks for the database gets
        // nothing else.
        let is_session = self.shared.reads.session().is_some_and(|session| session.name == read.name);
        let may_be_stale = question.control == CacheControl::Serve && !is_session;
        match found {
            Some(Found::Value(value)) if may_be_stale && lookup.behind.is_some_and(|behind| behind <= limit) => {
                self.shared.stats.of(question.read).count(ReadEvent::StaleHit);
                let age = age(&value);
                Ok(served(value, age, Duration::ZERO, lookup.applied, AnswerOrigin::StaleIfError))
            }
            _ => Err(error),
        }
    }

    /// Counts a request that waits, once.
    fn count_wait(&self, question: &Question, waiting: &mut Waiting) {
        if !std::mem::replace(&mut waiting.is_counted, true) {
            self.shared.stats.of(question.read).count(ReadEvent::Wait);
        }
    }
}
