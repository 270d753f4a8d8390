//! One read: from its arguments to an answer, by the lease protocol.
//!
//! Owns the order of the steps, who waits for whom, and for how long. It must not know HTTP. Invariants: what is served
//! from Redis was there, and the daemon near enough, after the request came; what was read for somebody else's request
//! is served by way of Redis or not at all, because an invalidation may lie in between; an error is never stored, and
//! gives the lease back.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::RedisError;
use redis::aio::MultiplexedConnection;
use tokio::sync::Semaphore;

use super::cache::{Away, Cache, Sight};
use super::database::{Database, DatabaseError, Fetched};
use super::flight::{Flight, Flights, Landed, Place};
use super::stats::{Event, Stats};
use super::value::{Answer, Origin, age, envelope, longest, served};
use crate::backoff::Notices;
use crate::change::Lsn;
use crate::coherence::lease::{Envelope, Found, Grant};
use crate::config;
use crate::key::CacheKey;
use crate::reads::{Arguments, Read, ReadSet};

/// How often somebody else's fill is looked for at first, and at last.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(1);
const LOOK_AGAIN_MAX: Duration = Duration::from_millis(25);

/// How often the tags of a value may turn out to be others than those it was read under.
const TAG_ROUNDS_MAX: usize = 3;

/// Everything a read needs.
#[derive(Debug)]
pub(super) struct Reader {
    pub(super) cache: Cache,
    shared: Arc<Shared>,
}

/// What the readers of all threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) reads: ReadSet,
    pub(super) stats: Stats,
    pub(super) settings: config::Api,
    primary: Database,
    replica: Option<Database>,
    flights: Flights,
    /// The log of the primary goes at least as far.
    known: AtomicU64,
    /// Whoever asks how far it goes.
    asking: tokio::sync::Mutex<()>,
    /// How many values may be read anew behind their readers' backs at once: half of what the database takes.
    refreshes: Arc<Semaphore>,
    /// When a failure was told last.
    notices: Mutex<Notices>,
    /// How long the database takes for each read: a moving average in microseconds.
    costs: Vec<AtomicU64>,
}

/// What somebody wants to know.
#[derive(Clone, Debug)]
pub(super) struct Question {
    /// Which read, by its position.
    pub(super) read: usize,
    /// The values of its parameters.
    pub(super) arguments: Vec<Option<Vec<u8>>>,
    /// The answer must contain every commit up to here.
    pub(super) min: Option<Lsn>,
    /// What the client said of the cache.
    pub(super) control: Control,
}

/// What a client may say of the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Control {
    /// Nothing.
    Serve,
    /// Ask the database, and store what it says.
    Revalidate,
    /// Ask the database.
    Bypass,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum ReadError {
    /// The database has none.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// It took longer than a request may.
    #[error("the request took too long")]
    Late,
    /// The token is of a position that the log has not reached.
    #[error("the token is ahead of the database")]
    Ahead,
}

/// What came of an attempt to fill.
enum Filled {
    Answer(Answer),
    /// Somebody else has the lease, or stored a value meanwhile.
    Other,
    /// Redis does not let us: read without filling.
    Refused(&'static str),
}

impl Shared {
    pub(super) fn new(reads: ReadSet, primary: Database, replica: Option<Database>, settings: config::Api) -> Self {
        let stats = Stats::new(reads.reads().iter().map(|read| read.name.clone()));
        let costs = reads.reads().iter().map(|_| AtomicU64::new(0)).collect();
        let refreshes = Arc::new(Semaphore::new((settings.database_connections / 2).max(1)));
        let (flights, known, asking) = (Flights::default(), AtomicU64::new(0), tokio::sync::Mutex::default());
        Self {
            reads,
            stats,
            settings,
            primary,
            replica,
            flights,
            known,
            asking,
            refreshes,
            costs,
            notices: Mutex::default(),
        }
    }
}

impl Deref for Reader {
    type Target = Shared;

    fn deref(&self) -> &Shared {
        &self.shared
    }
}

impl Reader {
    /// A reader on the thread that calls, which the cache belongs to.
    pub(super) fn new(shared: &Arc<Shared>, cache: Cache) -> Self {
        Self { cache, shared: Arc::clone(shared) }
    }

    /// The server that is written to.
    pub(super) fn primary(&self) -> &Database {
        &self.primary
    }

    /// Answers a question.
    pub(super) async fn answer(self: &Arc<Self>, question: Question) -> Result<Answer, ReadError> {
        let Some(read) = self.reads.reads().get(question.read) else {
            return Err(DatabaseError::Refused("there is no such read".to_owned()).into());
        };
        match self.glance(read, &question).await {
            Some(answer) => Ok(answer),
            // In a place of its own: most requests need none of what the other ways need.
            None => {
                let answer = Box::pin(self.attempt(read, Arc::new(question)));
                tokio::time::timeout(self.settings.timeout, answer).await.unwrap_or(Err(ReadError::Late))
            }
        }
    }

    /// The usual way: one look, and there it is.
    async fn glance(self: &Arc<Self>, read: &Read, question: &Question) -> Option<Answer> {
        if question.control != Control::Serve || read.version.is_some() {
            return None;
        }
        let key = read.key(&question.arguments)?;
        let sight = self.cache.look(key.clone()).await.ok()?;
        if !sight.is_near(read.max_staleness) {
            return None;
        }
        match Found::of(&sight.held, sight.applied, question.min) {
            Ok(Some(Found::Value(value))) => Some(self.hit(question, key, value, &sight)),
            _ => None,
        }
    }

    async fn attempt(self: &Arc<Self>, read: &Read, question: Arc<Question>) -> Result<Answer, ReadError> {
        let begun = Instant::now();
        let mut pause = LOOK_AGAIN_AFTER;
        let mut waited = false;
        if question.control == Control::Bypass {
            return self.bypass(read, &question, "request", None).await;
        }
        let Some(name) = read.key(&question.arguments) else {
            return self.bypass(read, &question, "uncacheable", None).await;
        };
        loop {
            let (key, sight) = match self.look(read, &question.arguments, &name).await {
                Ok(Some(found)) => found,
                Ok(None) => return self.bypass(read, &question, "no-version", None).await,
                Err(Away) => return self.bypass(read, &question, "redis-away", None).await,
            };
            let found = Found::of(&sight.held, sight.applied, question.min).unwrap_or(Some(Found::Foreign));
            if !sight.is_near(read.max_staleness) {
                return self.without_daemon(read, &question, found, &sight).await;
            }
            if !matches!(found, Some(Found::Value(_))) {
                self.require_reached(question.min).await?;
            }
            let deadline = match found {
                Some(Found::Value(value)) if question.control == Control::Serve => {
                    return Ok(self.hit(&question, key, value, &sight));
                }
                Some(Found::Value(value)) => return self.revalidate(read, &question, key, value, &sight).await,
                Some(Found::Foreign) => return self.bypass(read, &question, "foreign", Some(&sight)).await,
                Some(Found::TooOld(_)) => {
                    if begun.elapsed() >= self.settings.consistency_wait {
                        return self.bypass(read, &question, "too-old", Some(&sight)).await;
                    }
                    self.settings.consistency_wait
                }
                Some(Found::Busy | Found::Granted(_)) | None => {
                    if begun.elapsed() >= self.settings.fill_wait {
                        return self.bypass(read, &question, "busy", Some(&sight)).await;
                    }
                    let is_free = found.is_none();
                    match self.flights.join(&key, is_free) {
                        Place::Pilot(flight) => {
                            let fill = Arc::clone(self).fill(Arc::clone(&question), key, flight);
                            // It goes on for those who wait when whoever asked has left.
                            let filled = tokio::spawn(fill).await;
                            match filled.unwrap_or(Ok(Filled::Refused("failed")))? {
                                Filled::Answer(answer) => return Ok(answer),
                                Filled::Refused(why) => return self.bypass(read, &question, why, Some(&sight)).await,
                                Filled::Other => {}
                            }
                        }
                        Place::Passenger(landing) => {
                            self.count(&question, Event::Wait, &mut waited);
                            let left = self.settings.fill_wait.saturating_sub(begun.elapsed());
                            match tokio::time::timeout(left, landing.wait()).await {
                                Ok(Landed::Failed(error)) => return Err(error),
                                // Nor would the next one, and so on, one after the other.
                                Ok(Landed::Empty) => {
                                    return self.bypass(read, &question, "unstored", Some(&sight)).await;
                                }
                                Ok(Landed::Over) | Err(_) => continue,
                            }
                        }
                        Place::None => self.count(&question, Event::Wait, &mut waited),
                    }
                    self.settings.fill_wait
                }
            };
            tokio::time::sleep(pause.min(deadline.saturating_sub(begun.elapsed()))).await;
            pause = (pause * 2).min(LOOK_AGAIN_MAX);
        }
    }

    /// Refuses a position that the log has not reached, which no wait would make true.
    async fn require_reached(&self, min: Option<Lsn>) -> Result<(), ReadError> {
        let Some(min) = min else { return Ok(()) };
        if self.known.load(Ordering::Relaxed) >= min.offset() {
            return Ok(());
        }
        // One asks for all who wait.
        let _turn = self.asking.lock().await;
        if self.known.load(Ordering::Relaxed) >= min.offset() {
            return Ok(());
        }
        let position = self.primary.position().await?;
        self.known.fetch_max(position.offset(), Ordering::Relaxed);
        if position < min { Err(ReadError::Ahead) } else { Ok(()) }
    }

    /// Looks at the key, and before that at its version if it has one. Nothing if there is no version to be had.
    async fn look(
        &self,
        read: &Read,
        arguments: &Arguments,
        name: &CacheKey,
    ) -> Result<Option<(CacheKey, Sight)>, Away> {
        let Some(version_key) = read.version_key(arguments) else {
            return Ok(Some((name.clone(), self.cache.look(name.clone()).await?)));
        };
        let first = self.cache.look(version_key.clone()).await?;
        let version = match &first.held {
            redis::Value::BulkString(digits) => String::from_utf8(digits.clone()).ok(),
            _ => {
                let mut connection = self.cache.connection()?;
                let made = self.cache.leases.version(&mut connection, &version_key, longest(read) + read.timeout).await;
                self.cache.noted(made).map_err(|_| Away)?
            }
        };
        let Some(version) = version.filter(|version| version.bytes().all(|byte| byte.is_ascii_digit())) else {
            return Ok(None);
        };
        let key = Read::versioned(name, &version);
        let second = self.cache.look(key.clone()).await?;
        // What was in force when the version was read: what came after that may have raised it.
        let behind = first.behind.zip(second.behind).map(|(first, second)| first.max(second));
        let is_others = first.is_others || second.is_others;
        Ok(Some((key, Sight { applied: first.applied, behind, is_others, ..second })))
    }

    fn hit(self: &Arc<Self>, question: &Question, key: CacheKey, value: Envelope, sight: &Sight) -> Answer {
        let age = age(&value);
        let soft = Duration::from_millis(value.soft_ttl);
        let is_over = value.soft_ttl > 0 && age >= soft;
        if is_over || value.soft_ttl > 0 && self.is_early(question.read, soft - age) {
            self.refresh_behind(question, key, value.clone());
        }
        self.stats.of(question.read).count(if is_over { Event::StaleHit } else { Event::Hit });
        let origin = if is_over { Origin::StaleHit } else { Origin::Hit };
        served(value, age, soft.saturating_sub(age), sight.applied, origin)
    }

    /// Whether to read anew before the value's time is over: the likelier the less of it is left and the longer the
    /// database takes, so that of many readers one goes first.
    ///
    /// Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, VLDB 2015.
    fn is_early(&self, read: usize, left: Duration) -> bool {
        let cost = self.costs.get(read).map_or(0, |cost| cost.load(Ordering::Relaxed));
        let share: f64 = rand::random();
        Duration::from_micros(cost).mul_f64(-share.max(f64::MIN_POSITIVE).ln()) >= left
    }

    /// Reads a value anew while it is served, unless somebody here is at it.
    fn refresh_behind(self: &Arc<Self>, question: &Question, key: CacheKey, value: Envelope) {
        let Ok(permit) = Arc::clone(&self.refreshes).try_acquire_owned() else { return };
        let Place::Pilot(flight) = self.flights.join(&key, true) else { return };
        let (reader, question) = (Arc::clone(self), question.clone());
        tokio::spawn(async move {
            if let Some(read) = reader.reads.reads().get(question.read)
                && let Err(error) = reader.refresh(read, &question, &key, &value).await
            {
                tracing::debug!(read = read.name, %error, "a value could not be read anew");
            }
            drop((flight, permit));
        });
    }

    async fn revalidate(
        &self,
        read: &Read,
        question: &Question,
        key: CacheKey,
        value: Envelope,
        sight: &Sight,
    ) -> Result<Answer, ReadError> {
        match self.refresh(read, question, &key, &value).await? {
            Some((answer, stored)) => {
                Ok(Answer { token: sight.applied.max(answer.token), origin: Origin::Request { stored }, ..answer })
            }
            None => self.bypass(read, question, "redis-away", Some(sight)).await,
        }
    }

    /// Replaces a value, if it is still the one at the key. Nothing if Redis is away.
    async fn refresh(
        &self,
        read: &Read,
        question: &Question,
        key: &CacheKey,
        value: &Envelope,
    ) -> Result<Option<(Answer, bool)>, ReadError> {
        let Ok(mut connection) = self.cache.connection() else { return Ok(None) };
        let granted = self.cache.leases.refresh(&mut connection, key, value).await;
        match self.cache.noted(granted) {
            Ok(grant) => self.fill_granted(read, question, &grant, &mut connection).await.map(Some),
            Err(_) => Ok(None),
        }
    }

    /// Asks for the lease, and fills if it is granted; those who wait are told of a failure.
    async fn fill(
        self: Arc<Self>,
        question: Arc<Question>,
        key: CacheKey,
        flight: Flight,
    ) -> Result<Filled, ReadError> {
        let Some(read) = self.reads.reads().get(question.read) else { return Ok(Filled::Refused("failed")) };
        let Ok(mut connection) = self.cache.connection() else { return Ok(Filled::Refused("redis-away")) };
        let asked = self.cache.leases.ask(&mut connection, &key, question.min).await;
        let grant = match self.cache.noted(asked) {
            Ok(Found::Granted(grant)) => grant,
            Ok(_) => return Ok(Filled::Other),
            Err(error) => return Ok(Filled::Refused(reason(&error))),
        };
        let filled = self.fill_granted(read, &question, &grant, &mut connection).await;
        match filled {
            Ok((answer, stored)) => {
                if !stored {
                    flight.end(Landed::Empty);
                }
                self.stats.of(question.read).count(Event::Miss);
                Ok(Filled::Answer(answer))
            }
            Err(error) => {
                flight.end(Landed::Failed(error.clone()));
                self.release(&grant).await;
                Err(error)
            }
        }
    }

    /// Reads the database under a grant and stores what it says; whether it could be stored.
    async fn fill_granted(
        &self,
        read: &Read,
        question: &Question,
        grant: &Grant,
        connection: &mut MultiplexedConnection,
    ) -> Result<(Answer, bool), ReadError> {
        let begun = Instant::now();
        let longest = longest(read);
        let mut joined = read.tags(&question.arguments, None);
        let mut may_store = self.join(connection, grant, &joined, longest).await;
        let mut fetched = self.fetch(read, question, Some(grant)).await?;
        if read.tags_need_value() && fetched.body.is_some() {
            // A value says itself under which tags it has to be found: join, then read again.
            for round in 0.. {
                let tags = read.tags(&question.arguments, fetched.body.as_deref());
                let new: Vec<_> = tags.into_iter().filter(|tag| !joined.contains(tag)).collect();
                if new.is_empty() || !may_store {
                    break;
                }
                may_store &= round < TAG_ROUNDS_MAX && self.join(connection, grant, &new, longest).await;
                joined.extend(new);
                fetched = self.fetch(read, question, Some(grant)).await?;
            }
            may_store &= fetched.body.as_ref().is_none_or(|body| read.tells_its_tags(body));
        }
        // The sets stay that much longer than the value, counted from when it joined them.
        may_store &= begun.elapsed() < self.cache.lease;
        let (value, ttl) = envelope(read, &fetched, grant.lo);
        may_store &= fetched.is_canonical;
        let mut stored = false;
        if let Some(ttl) = ttl.filter(|_| may_store) {
            // It may be another one than before the database was asked.
            if let Ok(mut connection) = self.cache.connection() {
                let filled = self.cache.leases.fill(&mut connection, grant, &value, ttl).await;
                stored = self.cache.noted(filled).unwrap_or(false);
            }
            self.stats.of(question.read).count(if stored { Event::Fill } else { Event::RefusedFill });
        }
        let answer = served(value, Duration::ZERO, ttl.unwrap_or_default(), question.min, Origin::Miss { stored });
        if !stored {
            if ttl.is_some() && !may_store {
                self.stats.of(question.read).count(Event::RefusedFill);
            }
            self.release(grant).await;
        }
        Ok((Answer { database: Some(begun.elapsed()), ..answer }, stored))
    }

    /// Gives a lease back; if that fails, it ends by itself.
    async fn release(&self, grant: &Grant) {
        let Ok(mut connection) = self.cache.connection() else { return };
        let released = self.cache.leases.release(&mut connection, grant.clone()).await;
        let _ = self.cache.noted(released);
    }

    async fn join(
        &self,
        connection: &mut MultiplexedConnection,
        grant: &Grant,
        tags: &[CacheKey],
        ttl: Duration,
    ) -> bool {
        if tags.is_empty() {
            return true;
        }
        let joined = self.cache.leases.join(connection, grant, tags, ttl).await;
        self.cache.noted(joined).is_ok()
    }

    /// Asks a replica that has replayed enough, and otherwise the primary.
    async fn fetch(&self, read: &Read, question: &Question, grant: Option<&Grant>) -> Result<Fetched, ReadError> {
        let counters = self.stats.of(question.read);
        counters.count(Event::DatabaseRead);
        let begun = Instant::now();
        let mut fetched = None;
        if let (Some(replica), Some(grant), true) = (&self.replica, grant, read.replica) {
            let relied_on = (grant, question.min);
            match replica.fetch_replica(question.read, read, &question.arguments, relied_on).await {
                Ok(found) => fetched = found,
                Err(error @ DatabaseError::Parameter(_)) => return Err(error.into()),
                Err(error) => tracing::debug!(read = read.name, %error, "the replica did not answer"),
            }
        }
        let outcome = match fetched {
            Some(fetched) => Ok(fetched),
            None => self.primary.fetch(question.read, read, &question.arguments).await,
        };
        match &outcome {
            Ok(_) => self.learn_cost(question.read, begun.elapsed()),
            Err(DatabaseError::Parameter(_)) => {}
            Err(error) => {
                counters.count(Event::Error);
                if self.notices.lock().unwrap_or_else(PoisonError::into_inner).due() {
                    tracing::warn!(read = read.name, %error, "reads fail; this is said again, now and then");
                }
            }
        }
        Ok(outcome?)
    }

    fn learn_cost(&self, read: usize, took: Duration) {
        let Some(cost) = self.costs.get(read) else { return };
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = cost.load(Ordering::Relaxed);
        cost.store(if before == 0 { took } else { before - before / 8 + took / 8 }, Ordering::Relaxed);
    }

    /// Reads the primary and stores nothing.
    async fn bypass(
        &self,
        read: &Read,
        question: &Question,
        why: &'static str,
        sight: Option<&Sight>,
    ) -> Result<Answer, ReadError> {
        self.require_reached(question.min).await?;
        let begun = Instant::now();
        let fetched = self.fetch(read, question, None).await?;
        self.stats.of(question.read).count(Event::Bypass);
        let (value, _) = envelope(read, &fetched, Lsn::ZERO);
        // What the client has seen the primary shows.
        let token = sight.and_then(|sight| sight.applied).max(question.min);
        let answer = served(value, Duration::ZERO, Duration::ZERO, token, Origin::Bypass(why));
        Ok(Answer { database: Some(begun.elapsed()), ..answer })
    }

    /// The daemon is too far behind, so nobody knows whether what is cached is true: PostgreSQL does. If that is away too,
    /// what is cached may be served for a while.
    async fn without_daemon(
        &self,
        read: &Read,
        question: &Question,
        found: Option<Found>,
        sight: &Sight,
    ) -> Result<Answer, ReadError> {
        let why = if sight.is_others { "other-rules" } else { "daemon-behind" };
        let error = match self.bypass(read, question, why, Some(sight)).await {
            Err(error @ ReadError::Database(DatabaseError::Away(_) | DatabaseError::Crowded | DatabaseError::Slow)) => {
                error
            }
            outcome => return outcome,
        };
        let limit = read.max_staleness + self.settings.stale_if_error;
        // A session that was revoked is over, and who asks for the database is not content with less.
        let is_session = self.reads.session().is_some_and(|session| session.name == read.name);
        let may_be_old = question.control == Control::Serve && !is_session;
        match found {
            Some(Found::Value(value)) if may_be_old && sight.behind.is_some_and(|behind| behind <= limit) => {
                self.stats.of(question.read).count(Event::StaleHit);
                let age = age(&value);
                Ok(served(value, age, Duration::ZERO, sight.applied, Origin::StaleIfError))
            }
            _ => Err(error),
        }
    }

    /// Counts once for a request.
    fn count(&self, question: &Question, event: Event, counted: &mut bool) {
        if !std::mem::replace(counted, true) {
            self.stats.of(question.read).count(event);
        }
    }
}

/// Why Redis did not grant a lease.
fn reason(error: &RedisError) -> &'static str {
    let Some(refusals) = error.clone().into_server_errors() else { return "redis-away" };
    match refusals.first().map(|(_, refusal)| refusal.code()) {
        Some("WRONGTYPE") => "foreign",
        Some("OOM") => "redis-full",
        _ => "redis-refuses",
    }
}
