//! PostgreSQL, as the API reads it.
//!
//! Owns a bounded pool of connections to one server, how long a read waits for one, and whether the
//! server counts as unavailable. It must not know what is cached. Invariant: a connection on which
//! a statement may still run is closed, never reused.

mod connection;
mod error;

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use deadpool::managed::{self, Object, Pool, PoolError, Timeouts};

use self::connection::{Connector, ReadConnection};
pub(super) use self::connection::{Fetched, Role};
pub(super) use self::error::DatabaseError;
use self::error::Outage;
use crate::change::Lsn;
use crate::coherence::history::Origin;
use crate::coherence::lease::Grant;
use crate::config::Spanned;
use crate::mutant::{self, Mutant};
use crate::postgres::Address;
use crate::postgres::TextParameter;
use crate::reads::{Arguments, Read};

/// How long a read waits for a free connection, and how long a new connection may take.
const CHECKOUT_MAX: Duration = Duration::from_secs(2);

/// How long a server counts as unavailable after a failure. No read tries it in that time.
const UNAVAILABLE_FOR: Duration = Duration::from_secs(1);

/// How long a connection is used to a server that does not belong to the history in Redis. Then a
/// new one is opened.
const REOPEN_AFTER: Duration = Duration::from_secs(1);

/// Added to a statement's own timeout, for the network.
const GRACE: Duration = Duration::from_secs(1);

/// One server, and a bounded pool of connections to it.
#[derive(Debug)]
pub(super) struct Database {
    pool: Pool<Connector>,
    unavailable_until: Mutex<Option<Instant>>,
}

impl Database {
    /// Opens no connection yet. The connections live on the runtime that calls.
    pub(super) fn new(address: Address, role: Role, connections: usize, statement_max: Duration) -> Self {
        let connector = Connector::new(address, role, statement_max);
        let builder = Pool::builder(connector).max_size(connections.max(1)).runtime(deadpool::Runtime::Tokio1);
        let timeouts = Timeouts { wait: Some(CHECKOUT_MAX), create: Some(CHECKOUT_MAX), recycle: Some(CHECKOUT_MAX) };
        // Only a missing runtime makes it fail: timeouts need one.
        #[expect(clippy::expect_used, reason = "a runtime is given")]
        let pool = builder.timeouts(timeouts).build().expect("the pool has a runtime");
        Self { pool, unavailable_until: Mutex::default() }
    }

    /// Executes the read at this position, in a snapshot that begins now. `origin` is the history
    /// that the positions in Redis belong to.
    pub(super) async fn fetch(
        &self,
        at: usize,
        read: &Read,
        values: &Arguments,
        origin: Option<&Origin>,
    ) -> Result<Fetched, DatabaseError> {
        let mut checkout = self.check_out().await?;
        let connection = checkout.connection()?;
        let is_of = |origin| connection.identity.as_ref().is_some_and(|server| server.is_of(origin));
        let is_of_history = origin.is_some_and(is_of);
        // After a failover the address may lead to another server.
        let is_outdated = origin.is_some() && !is_of_history && connection.opened.elapsed() >= REOPEN_AFTER;
        let outcome = within(read.timeout, connection.fetch(at, read, values)).await;
        let outcome = outcome.map(|fetched| Fetched { is_of_history, ..fetched });
        if is_outdated {
            return outcome;
        }
        checkout.check_in(outcome)
    }

    /// The same on a replica. None if it does not belong to the history of the fill, or has not
    /// replayed what the fill relies on.
    pub(super) async fn fetch_replica(
        &self,
        at: usize,
        read: &Read,
        values: &Arguments,
        (grant, min): (&Grant, Option<Lsn>),
    ) -> Result<Option<Fetched>, DatabaseError> {
        let mut checkout = self.check_out().await?;
        let connection = checkout.connection()?;
        let asked = async {
            if mutant::is(Mutant::ReplicaCheckTooLate) {
                let fetched = connection.fetch(at, read, values).await?;
                return Ok(grant.is_covered_by(&connection.client, min).await?.then_some(fetched));
            }
            match grant.is_covered_by(&connection.client, min).await? {
                true => connection.fetch(at, read, values).await.map(Some),
                false => Ok(None),
            }
        };
        let outcome = within(read.timeout, asked).await;
        checkout.check_in(outcome.map(|fetched| fetched.map(|fetched| Fetched { is_of_history: true, ..fetched })))
    }

    /// Returns the end of the log.
    pub(super) async fn position(&self) -> Result<Lsn, DatabaseError> {
        let mut checkout = self.check_out().await?;
        let connection = checkout.connection()?;
        let asked = async {
            let row = connection.client.query_one("select pg_current_wal_insert_lsn()::text", &[]).await?;
            Ok(row.get::<_, &str>(0).parse().unwrap_or_default())
        };
        let outcome = within(CHECKOUT_MAX, asked).await;
        checkout.check_in(outcome)
    }

    /// Executes a statement that writes, with one parameter.
    pub(super) async fn execute(&self, sql: &Spanned<String>, value: &[u8]) -> Result<(), DatabaseError> {
        let mut checkout = self.check_out().await?;
        let connection = checkout.connection()?;
        let written = async {
            let transaction = connection.client.build_transaction().read_only(false).start().await?;
            transaction.execute(sql.value.as_str(), &[&TextParameter(Some(value))]).await?;
            transaction.commit().await
        };
        let outcome = within(CHECKOUT_MAX, written).await;
        checkout.check_in(outcome)
    }

    async fn check_out(&self) -> Result<Checkout, DatabaseError> {
        if self.is_unavailable() {
            return Err(Outage::Recent.into());
        }
        let connection = self.pool.get().await.map_err(|error| match error {
            // The connections may be taken by reads that wait for an unavailable server.
            PoolError::Timeout(managed::TimeoutType::Wait) if !self.is_unavailable() => DatabaseError::Overloaded,
            error => {
                self.mark_unavailable();
                Outage::NoConnection(error).into()
            }
        })?;
        Ok(Checkout(Some(connection)))
    }

    fn is_unavailable(&self) -> bool {
        let until = self.unavailable_until.lock().unwrap_or_else(PoisonError::into_inner);
        until.is_some_and(|until| Instant::now() < until)
    }

    fn mark_unavailable(&self) {
        let mut until = self.unavailable_until.lock().unwrap_or_else(PoisonError::into_inner);
        *until = Some(Instant::now() + UNAVAILABLE_FOR);
    }
}

/// A connection in use. If this is dropped before [`Checkout::check_in`], because the request
/// ended, the connection is closed: its statement may still run.
struct Checkout(Option<Object<Connector>>);

impl Checkout {
    fn connection(&mut self) -> Result<&mut ReadConnection, DatabaseError> {
        self.0.as_deref_mut().ok_or_else(|| Outage::Returned.into())
    }

    /// Returns the connection to the pool, unless the outcome leaves it unusable.
    fn check_in<T>(mut self, outcome: Result<T, DatabaseError>) -> Result<T, DatabaseError> {
        if !outcome.as_ref().is_err_and(DatabaseError::leaves_connection_unusable) {
            drop(self.0.take());
        }
        outcome
    }
}

impl Drop for Checkout {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

async fn within<T>(
    time: Duration,
    statement: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DatabaseError> {
    match tokio::time::timeout(time.saturating_add(GRACE), statement).await {
        Ok(outcome) => outcome.map_err(DatabaseError::from),
        Err(_) => Err(DatabaseError::Timeout),
    }
}
