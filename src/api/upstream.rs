//! PostgreSQL behind the cache: the primary, and a replica if there is one.
//!
//! Owns which server answers a read, how far the primary's log is known to reach, and what each
//! read costs. It must not know what is cached. Invariants: a replica answers only if it has
//! replayed what the fill relies on; otherwise the primary answers. A server that does not belong
//! to the history in Redis answers no session, and no client that names a position.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::database::{Database, DatabaseError, Fetched};
use super::error::ReadError;
use super::question::Question;
use super::stats::{Counters, ReadEvent};
use crate::backoff::Notices;
use crate::causes::with_causes;
use crate::change::Lsn;
use crate::coherence::history::Origin;
use crate::coherence::lease::Grant;
use crate::config::Spanned;
use crate::reads::{Read, ReadSet};

/// The servers that reads query.
#[derive(Debug)]
pub(super) struct Upstream {
    primary: Database,
    replica: Option<Database>,
    /// The primary's log reaches at least this far.
    reached: AtomicU64,
    /// Held while the primary is asked how far its log reaches.
    asking: tokio::sync::Mutex<()>,
    /// When a failure was logged last.
    notices: Mutex<Notices>,
    /// When it was logged last that the primary is another server than the daemon's.
    other_server: Mutex<Notices>,
    /// How long the database takes for each read: a moving average in microseconds.
    costs: Vec<AtomicU64>,
    /// The position of the read that resolves sessions.
    session: Option<usize>,
}

impl Upstream {
    /// The servers, for these reads.
    pub(super) fn new(primary: Database, replica: Option<Database>, reads: &ReadSet) -> Self {
        let session = reads.session().map(|session| session.name.as_str());
        let reads = reads.reads();
        Self {
            primary,
            replica,
            reached: AtomicU64::new(0),
            asking: tokio::sync::Mutex::default(),
            notices: Mutex::default(),
            other_server: Mutex::default(),
            costs: reads.iter().map(|_| AtomicU64::new(0)).collect(),
            session: reads.iter().position(|read| Some(read.name.as_str()) == session),
        }
    }

    /// Queries the replica if the read may use it and it has replayed enough, otherwise the
    /// primary.
    pub(super) async fn fetch_granted(
        &self,
        read: &Read,
        question: &Question,
        grant: &Grant,
        counters: &Counters,
    ) -> Result<Fetched, ReadError> {
        counters.count(ReadEvent::DatabaseRead);
        let begun = Instant::now();
        if let (Some(replica), true) = (&self.replica, read.replica) {
            let relied_on = (grant, question.min);
            match replica.fetch_replica(question.read, read, &question.arguments, relied_on).await {
                Ok(Some(fetched)) => {
                    self.learn_cost(question.read, begun.elapsed());
                    return Ok(fetched);
                }
                Ok(None) => {}
                Err(error @ DatabaseError::Parameter(_)) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(read = read.name, error = with_causes(&error), "the replica did not answer");
                }
            }
        }
        self.fetch_primary(read, question, grant.origin.as_ref(), begun, counters).await
    }

    /// Queries the primary. `origin` is the history in Redis, if it is known.
    pub(super) async fn fetch(
        &self,
        read: &Read,
        question: &Question,
        origin: Option<&Origin>,
        counters: &Counters,
    ) -> Result<Fetched, ReadError> {
        counters.count(ReadEvent::DatabaseRead);
        self.fetch_primary(read, question, origin, Instant::now(), counters).await
    }

    async fn fetch_primary(
        &self,
        read: &Read,
        question: &Question,
        origin: Option<&Origin>,
        begun: Instant,
        counters: &Counters,
    ) -> Result<Fetched, ReadError> {
        let mut outcome = self.primary.fetch(question.read, read, &question.arguments, origin).await;
        if origin.is_some() && outcome.as_ref().is_ok_and(|fetched| !fetched.is_of_history) {
            self.notice_other_server();
            if question.min.is_some() || self.session == Some(question.read) {
                outcome = Err(DatabaseError::other_server());
            }
        }
        match &outcome {
            Ok(_) => self.learn_cost(question.read, begun.elapsed()),
            Err(DatabaseError::Parameter(_)) => {}
            Err(error) => {
                counters.count(ReadEvent::Error);
                if self.notices.lock().unwrap_or_else(PoisonError::into_inner).due(Instant::now()) {
                    tracing::warn!(
                        read = read.name,
                        error = with_causes(error),
                        "reads fail; logged again at intervals"
                    );
                }
            }
        }
        Ok(outcome?)
    }

    /// Fails if the primary's log has not reached this position, because waiting would not help.
    pub(super) async fn require_reached(&self, min: Option<Lsn>) -> Result<(), ReadError> {
        let Some(min) = min else { return Ok(()) };
        if self.reached.load(Ordering::Relaxed) >= min.offset() {
            return Ok(());
        }
        // One request asks for all that wait.
        let _turn = self.asking.lock().await;
        if self.reached.load(Ordering::Relaxed) >= min.offset() {
            return Ok(());
        }
        let position = self.primary.position().await?;
        self.reached.fetch_max(position.offset(), Ordering::Relaxed);
        if position < min { Err(ReadError::TokenAhead) } else { Ok(()) }
    }

    /// How long the database takes for the read at this position; zero if it was not asked yet.
    pub(super) fn cost(&self, read: usize) -> Duration {
        Duration::from_micros(self.costs.get(read).map_or(0, |cost| cost.load(Ordering::Relaxed)))
    }

    /// Runs a statement on the primary that writes, with one parameter.
    pub(super) async fn execute(&self, sql: &Spanned<String>, value: &[u8]) -> Result<(), DatabaseError> {
        self.primary.execute(sql, value).await
    }

    fn notice_other_server(&self) {
        if self.other_server.lock().unwrap_or_else(PoisonError::into_inner).due(Instant::now()) {
            tracing::warn!(
                "PostgreSQL is another server, or another database, than the one whose changes reach Redis: its \
                 answers are not stored, and requests with a token fail; give this process and the daemon the same \
                 source.url; logged again at intervals"
            );
        }
    }

    fn learn_cost(&self, read: usize, took: Duration) {
        let Some(cost) = self.costs.get(read) else { return };
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = cost.load(Ordering::Relaxed);
        cost.store(if before == 0 { took } else { before - before / 8 + took / 8 }, Ordering::Relaxed);
    }
}
