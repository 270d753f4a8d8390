//! PostgreSQL, as the API reads it.
//!
//! Owns connections, how many reads ask at once, and what a failure means to whoever asked. It must not know what is
//! cached. Invariants: a read cannot write; a value that a client sent is a parameter, never SQL; no message that a
//! client gets holds a value of a row.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use deadpool::managed::{self, Metrics, Object, Pool, PoolError, RecycleError, RecycleResult, Timeouts};
use tokio::runtime::Handle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use crate::change::Lsn;
use crate::coherence::lease::Grant;
use crate::config::Spanned;
use crate::mutant::{self, Mutant};
use crate::parameter::TextParameter;
use crate::postgres::{self, Address, ConnectError};
use crate::query::Notation;
use crate::reads::{Arguments, Read};

/// How long a read waits for its turn, and then for a connection.
const TURN_MAX: Duration = Duration::from_secs(2);

/// How long the server counts as away after it was: until then nobody tries.
const AWAY_FOR: Duration = Duration::from_secs(1);

/// Beyond the statement itself, for the way there and back.
const GRACE: Duration = Duration::from_secs(1);

/// What a server is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is written to, and knows everything that is visible.
    Primary,
    /// It follows, and is asked each time how far it has come.
    Replica,
}

/// A server, and a bounded number of connections to it.
#[derive(Debug)]
pub(super) struct Database {
    pool: Pool<Connector>,
    away_until: std::sync::Mutex<Option<Instant>>,
}

/// What a read found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Fetched {
    /// The JSON as the server gave it; nothing if there is no row, or NULL.
    pub(super) body: Option<Vec<u8>>,
    /// How long it is valid, if the query says so.
    pub(super) valid_for: Option<Duration>,
    /// The parameters are written as PostgreSQL writes them, and no other way of writing them means the same row. A
    /// rule makes its keys of what PostgreSQL writes: nothing would ever remove what is cached under `user:07`.
    pub(super) is_canonical: bool,
}

/// Why there is no value.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum DatabaseError {
    /// A parameter is not of the type that the query wants.
    #[error("a parameter is not what the query takes (SQLSTATE {0})")]
    Parameter(String),
    /// The server is away, or the connection broke.
    #[error("PostgreSQL is away: {0}")]
    Away(String),
    /// Everybody else was first, for too long.
    #[error("PostgreSQL has too many reads to answer")]
    Crowded,
    /// The statement took too long.
    #[error("PostgreSQL did not answer in time")]
    Slow,
    /// The server refused the query itself.
    #[error("PostgreSQL refused the query (SQLSTATE {0})")]
    Refused(String),
}

impl Database {
    /// A server that is not asked yet. Its connections live on this runtime.
    pub(super) fn new(address: Address, role: Role, connections: usize, statement_max: Duration) -> Self {
        let connector = Connector { address, role, statement_max, runtime: Handle::current() };
        let builder = Pool::builder(connector).max_size(connections.max(1)).runtime(deadpool::Runtime::Tokio1);
        let timeouts = Timeouts { wait: Some(TURN_MAX), create: Some(TURN_MAX), recycle: Some(TURN_MAX) };
        // It fails for want of a runtime to keep time by, and there is one.
        #[expect(clippy::expect_used, reason = "a runtime is given")]
        let pool = builder.timeouts(timeouts).build().expect("the pool has a runtime");
        Self { pool, away_until: std::sync::Mutex::default() }
    }

    /// Asks what a read asks, in a snapshot that begins now.
    pub(super) async fn fetch(&self, at: usize, read: &Read, values: &Arguments) -> Result<Fetched, DatabaseError> {
        let mut turn = self.turn().await?;
        let outcome = within(read.timeout, turn.session()?.ask(at, read, values)).await;
        turn.end(outcome)
    }

    /// The same from a replica; nothing if it has not replayed what the fill relies on.
    pub(super) async fn fetch_replica(
        &self,
        at: usize,
        read: &Read,
        values: &Arguments,
        (grant, min): (&Grant, Option<Lsn>),
    ) -> Result<Option<Fetched>, DatabaseError> {
        let mut turn = self.turn().await?;
        let session = turn.session()?;
        let asked = async {
            if mutant::is(Mutant::ReplicaCheckTooLate) {
                let fetched = session.ask(at, read, values).await?;
                return Ok(grant.is_covered_by(&session.client, min).await?.then_some(fetched));
            }
            match grant.is_covered_by(&session.client, min).await? {
                true => session.ask(at, read, values).await.map(Some),
                false => Ok(None),
            }
        };
        let outcome = within(read.timeout, asked).await;
        turn.end(outcome)
    }

    /// Where the log ends.
    pub(super) async fn position(&self) -> Result<Lsn, DatabaseError> {
        let mut turn = self.turn().await?;
        let session = turn.session()?;
        let asked = async {
            let row = session.client.query_one("select pg_current_wal_insert_lsn()::text", &[]).await?;
            Ok(row.get::<_, &str>(0).parse().unwrap_or_default())
        };
        let outcome = within(TURN_MAX, asked).await;
        turn.end(outcome)
    }

    /// Runs a statement that writes, with one parameter.
    pub(super) async fn touch(&self, sql: &Spanned<String>, value: &[u8]) -> Result<(), DatabaseError> {
        let mut turn = self.turn().await?;
        let session = turn.session()?;
        let written = async {
            let transaction = session.client.build_transaction().read_only(false).start().await?;
            transaction.execute(sql.value.as_str(), &[&TextParameter(Some(value))]).await?;
            transaction.commit().await
        };
        let outcome = within(TURN_MAX, written).await;
        turn.end(outcome)
    }

    async fn turn(&self) -> Result<Turn, DatabaseError> {
        if self.is_away() {
            return Err(DatabaseError::Away("it was a moment ago".to_owned()));
        }
        let session = self.pool.get().await.map_err(|error| match error {
            // Those before may have waited for a server that is away.
            PoolError::Timeout(managed::TimeoutType::Wait) if !self.is_away() => DatabaseError::Crowded,
            error => {
                self.note_away();
                DatabaseError::Away(error.to_string())
            }
        })?;
        Ok(Turn(Some(session)))
    }

    fn is_away(&self) -> bool {
        let away_until = self.away_until.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        away_until.is_some_and(|until| Instant::now() < until)
    }

    fn note_away(&self) {
        let mut away_until = self.away_until.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *away_until = Some(Instant::now() + AWAY_FOR);
    }
}

/// A connection in use. If nobody waits for the answer any more it goes to no one else: the question is still on it.
struct Turn(Option<Object<Connector>>);

impl Turn {
    fn session(&mut self) -> Result<&mut Session, DatabaseError> {
        self.0.as_deref_mut().ok_or_else(|| DatabaseError::Away("the connection was given back".to_owned()))
    }

    /// Gives the connection back, unless it is of no use any more, or something of ours may still run on it.
    fn end<T>(mut self, outcome: Result<T, DatabaseError>) -> Result<T, DatabaseError> {
        if !matches!(outcome, Err(DatabaseError::Away(_) | DatabaseError::Slow)) {
            drop(self.0.take());
        }
        outcome
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        drop(self.0.take().map(Object::take));
    }
}

async fn within<T>(
    time: Duration,
    question: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, DatabaseError> {
    match tokio::time::timeout(time.saturating_add(GRACE), question).await {
        Ok(answer) => answer.map_err(|error| failure(&error)),
        Err(_) => Err(DatabaseError::Slow),
    }
}

/// What the server said, without a value: what is wrong with a value quotes it.
fn failure(error: &tokio_postgres::Error) -> DatabaseError {
    let Some(refusal) = error.as_db_error() else { return DatabaseError::Away(error.to_string()) };
    let code = refusal.code().code();
    match code.get(..2).unwrap_or_default() {
        "22" => DatabaseError::Parameter(code.to_owned()),
        // Connections, resources, and an operator who ends what runs; a statement that is cancelled was too slow.
        _ if code == "57014" => DatabaseError::Slow,
        "08" | "53" | "57" => DatabaseError::Away(format!("{} (SQLSTATE {code})", refusal.message())),
        _ => {
            // What a function raises may hold values of rows.
            tracing::debug!(message = refusal.message(), code, "PostgreSQL refused a query");
            DatabaseError::Refused(code.to_owned())
        }
    }
}

/// What makes connections.
#[derive(Debug)]
struct Connector {
    address: Address,
    role: Role,
    statement_max: Duration,
    /// Where connections live: whoever needs one may end before those who use it after him.
    runtime: Handle,
}

/// A connection, and what was prepared on it.
#[derive(Debug)]
struct Session {
    client: Client,
    prepared: HashMap<usize, Prepared>,
    /// How long a statement may take now.
    statement_max: Duration,
}

/// A read on a connection.
#[derive(Clone, Debug)]
struct Prepared {
    statement: Statement,
    /// Gives the parameters back as the server writes them, if there is anything to ask.
    canonical: Option<Statement>,
    /// Some parameter has a type whose equal values may be written in several ways.
    is_loose: bool,
}

impl managed::Manager for Connector {
    type Type = Session;
    type Error = ConnectError;

    async fn create(&self) -> Result<Session, ConnectError> {
        let address = self.address.clone();
        let connected = self.runtime.spawn(async move { postgres::connect(&address).await });
        let client = connected.await.map_err(|error| ConnectError::Protocol(error.to_string()))??;
        let timeout = self.statement_max.as_millis();
        let settings = format!(
            "set default_transaction_read_only = on; set default_transaction_isolation = 'read committed'; \
             set statement_timeout = {timeout}; set client_connection_check_interval = '1s'; set datestyle = 'ISO'; set intervalstyle = 'postgres'; \
             set extra_float_digits = 3"
        );
        let unusable = |error: tokio_postgres::Error| ConnectError::Protocol(error.to_string());
        client.batch_execute(&settings).await.map_err(unusable)?;
        let follows = client.query_one("select pg_is_in_recovery()", &[]).await.map_err(unusable)?;
        if self.role == Role::Primary && follows.get(0) {
            return Err(ConnectError::Protocol(
                "source.url leads to a standby, which may not have everything".to_owned(),
            ));
        }
        Ok(Session { client, prepared: HashMap::new(), statement_max: self.statement_max })
    }

    async fn recycle(&self, session: &mut Session, _: &Metrics) -> RecycleResult<ConnectError> {
        match session.client.is_closed() {
            true => Err(RecycleError::message("the connection is closed")),
            false => Ok(()),
        }
    }
}

impl Session {
    async fn ask(&mut self, at: usize, read: &Read, values: &Arguments) -> Result<Fetched, tokio_postgres::Error> {
        match self.ask_once(at, read, values).await {
            // The tables have changed since it was prepared.
            Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                self.ask_once(at, read, values).await
            }
            answer => answer,
        }
    }

    async fn ask_once(&mut self, at: usize, read: &Read, values: &Arguments) -> Result<Fetched, tokio_postgres::Error> {
        let prepared = match self.prepared.get(&at) {
            Some(prepared) => prepared.clone(),
            None => {
                let prepared = prepare(&self.client, read).await?;
                self.prepared.entry(at).or_insert(prepared).clone()
            }
        };
        if self.statement_max != read.timeout {
            let limit = format!("set statement_timeout = {}", read.timeout.as_millis());
            self.client.batch_execute(&limit).await?;
            self.statement_max = read.timeout;
        }
        let texts: Vec<_> = values.iter().map(|value| TextParameter(value.as_deref())).collect();
        let parameters: Vec<&(dyn ToSql + Sync)> = texts.iter().map(|text| text as _).collect();
        // All are on their way before the first is answered.
        let (answer, is_canonical, clock) = tokio::join!(
            self.client.query(&prepared.statement, &parameters),
            is_canonical(&self.client, &prepared, values, &parameters),
            clock(&self.client, &prepared),
        );
        if answer.is_err() {
            // It may have been prepared for tables that are not the same any more.
            self.prepared.remove(&at);
        }
        let fetched = answer?.first().map(|row| fetched(row, clock)).transpose()?.unwrap_or_default();
        Ok(Fetched { is_canonical: is_canonical?, ..fetched })
    }
}

/// The server's clock, if the read says until when it is valid.
async fn clock(client: &Client, prepared: &Prepared) -> Option<SystemTime> {
    prepared.statement.columns().get(1)?;
    let row = client.query_one("select clock_timestamp()", &[]).await.ok()?;
    Some(row.get(0))
}

async fn prepare(client: &Client, read: &Read) -> Result<Prepared, tokio_postgres::Error> {
    let statement = client.prepare(&read.sql.value).await?;
    let types = statement.params();
    let texts: Vec<_> = (1..=types.len()).map(|number| format!("${number}::text")).collect();
    let is_asked = types.iter().any(|kind| Notation::of(kind) == Notation::One);
    let canonical = match is_asked {
        true => Some(client.prepare_typed(&format!("select array[{}]", texts.join(", ")), types).await?),
        false => None,
    };
    let is_loose = read.parameters.iter().zip(types).any(|(parameter, kind)| match Notation::of(kind) {
        Notation::Text | Notation::One => false,
        Notation::Folded => !read.folds(&parameter.name),
        Notation::Several => true,
    });
    Ok(Prepared { statement, canonical, is_loose })
}

async fn is_canonical(
    client: &Client,
    prepared: &Prepared,
    values: &Arguments,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<bool, tokio_postgres::Error> {
    if prepared.is_loose {
        return Ok(false);
    }
    let Some(statement) = &prepared.canonical else { return Ok(true) };
    let written: Vec<Option<String>> = client.query_one(statement, parameters).await?.get(0);
    Ok(written.iter().map(|text| text.as_deref().map(str::as_bytes)).eq(values.iter().map(Option::as_deref)))
}

fn fetched(row: &Row, now: Option<SystemTime>) -> Result<Fetched, tokio_postgres::Error> {
    let body: Option<Json<'_>> = row.try_get(0)?;
    let valid_for = match row.columns().get(1) {
        Some(column) if *column.type_() == Type::TIMESTAMPTZ => row.try_get::<_, Option<SystemTime>>(1)?,
        _ => None,
    };
    // Without a clock it is not stored.
    let valid_for = valid_for.map(|until| now.and_then(|now| until.duration_since(now).ok()).unwrap_or_default());
    Ok(Fetched { body: body.map(|json| json.0.to_vec()), valid_for, is_canonical: false })
}

/// The text of a JSON value, not parsed.
struct Json<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Json<'a> {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match (kind, raw) {
            // One byte says which version of the format follows.
            (&Type::JSONB, [1, text @ ..]) => Ok(Self(text)),
            (&Type::JSONB, _) => Err("a version of jsonb that is not known".into()),
            (_, text) => Ok(Self(text)),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::JSON | Type::JSONB | Type::TEXT | Type::VARCHAR)
    }
}
