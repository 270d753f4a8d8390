//! PostgreSQL behind the cache: the primary, and a replica if there is one.
//!
//! Owns which server answers a read, how far the primary's log is known to reach, and what each
//! read costs. It must not know what is cached. Invariant: a replica answers only if it has
//! replayed what the fill relies on; otherwise the primary answers.

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
use crate::coherence::lease::Grant;
use crate::config::Spanned;
use crate::reads::Read;

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
    /// How long the database takes for each read: a moving average in microseconds.
    costs: Vec<AtomicU64>,
}

impl Upstream {
    /// The servers, for so many reads.
    pub(super) fn new(primary: Database, replica: Option<Database>, reads: usize) -> Self {
        Self {
            primary,
            replica,
            reached: AtomicU64::new(0),
            asking: tokio::sync::Mutex::default(),
            notices: Mutex::default(),
            costs: (0..reads).map(|_| AtomicU64::new(0)).collect(),
        }
    }

    /// Queries the replica if the read may use it and it has replayed enough, otherwise the
    /// primary. Without a grant, only the primary.
    pub(super) async fn fetch(
        &self,
        read: &Read,
        question: &Question,
        grant: Option<&Grant>,
        counters: &Counters,
    ) -> Result<Fetched, ReadError> {
        counters.count(ReadEvent::DatabaseRead);
        let begun = Instant::now();
        let mut fetched = None;
        if let (Some(replica), Some(grant), true) = (&self.replica, grant, read.replica) {
            let relied_on = (grant, question.min);
            match replica.fetch_replica(question.read, read, &question.arguments, relied_on).await {
                Ok(found) => fetched = found,
                Err(error @ DatabaseError::Parameter(_)) => return Err(error.into()),
                Err(error) => {
                    tracing::debug!(read = read.name, error = with_causes(&error), "the replica did not answer");
                }
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

    fn learn_cost(&self, read: usize, took: Duration) {
        let Some(cost) = self.costs.get(read) else { return };
        let took = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let before = cost.load(Ordering::Relaxed);
        cost.store(if before == 0 { took } else { before - before / 8 + took / 8 }, Ordering::Relaxed);
    }
}
