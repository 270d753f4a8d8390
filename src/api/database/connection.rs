//! One connection to PostgreSQL, and the reads prepared on it.
//!
//! Owns how a connection is opened and how a read is executed on it. It must not know how many
//! connections there are. Invariants: a read cannot write; a value that a client sent is a
//! parameter, never SQL.

use std::collections::HashMap;
use std::time::{Duration, Instant, SystemTime};

use deadpool::managed::{self, Metrics, RecycleError, RecycleResult};
use tokio::runtime::Handle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, ToSql, Type};
use tokio_postgres::{Client, Row, Statement};

use crate::causes::with_causes;
use crate::coherence::server::ServerIdentity;
use crate::postgres::{self, Address, ConnectError, TextParameter};
use crate::query::Notation;
use crate::reads::{Arguments, Read};

/// The role of a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::api) enum Role {
    /// It takes writes and has every visible commit.
    Primary,
    /// It follows the primary, and is asked each time how far it has replayed.
    Replica,
}

/// The result of a read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::api) struct Fetched {
    /// The JSON as the server sent it. None if there is no row, or it is NULL.
    pub(in crate::api) body: Option<Vec<u8>>,
    /// How long it is valid, if the query has a second column.
    pub(in crate::api) valid_for: Option<Duration>,
    /// The parameters are written as PostgreSQL writes them, and no other notation means the same
    /// row. Rules make keys of what PostgreSQL writes: nothing would ever remove a value cached
    /// under `user:07`.
    pub(in crate::api) is_canonical: bool,
    /// The server belongs to the history that the positions in Redis belong to.
    pub(in crate::api) is_of_history: bool,
}

/// Opens connections to one server.
#[derive(Debug)]
pub(super) struct Connector {
    address: Address,
    role: Role,
    statement_max: Duration,
    /// The runtime that drives the connections. They must outlive the thread that opened them.
    runtime: Handle,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct ReadConnection {
    pub(super) client: Client,
    /// What a primary says of itself. It cannot change while the connection lives, and is not asked
    /// of a replica, where it can.
    pub(super) identity: Option<ServerIdentity>,
    pub(super) opened: Instant,
    /// By the positions of the reads.
    prepared: HashMap<usize, PreparedRead>,
    /// The `statement_timeout` that is set.
    statement_max: Duration,
}

/// A read prepared on a connection.
#[derive(Clone, Debug)]
struct PreparedRead {
    statement: Statement,
    /// Returns the parameters as the server writes them. None if every notation of them is the
    /// server's.
    canonical: Option<Statement>,
    /// Some parameter has a type whose equal values may be written in several ways.
    is_loose: bool,
}

impl Connector {
    /// The connections live on the runtime that calls.
    pub(super) fn new(address: Address, role: Role, statement_max: Duration) -> Self {
        Self { address, role, statement_max, runtime: Handle::current() }
    }
}

impl managed::Manager for Connector {
    type Type = ReadConnection;
    type Error = ConnectError;

    async fn create(&self) -> Result<ReadConnection, ConnectError> {
        let address = self.address.clone();
        let connected = self.runtime.spawn(async move { postgres::connect(&address).await });
        let client = connected.await.map_err(|error| ConnectError::Protocol(with_causes(&error)))??;
        let timeout = self.statement_max.as_millis();
        let settings = format!(
            "set default_transaction_read_only = on; set default_transaction_isolation = 'read committed'; \
             set statement_timeout = {timeout}; set client_connection_check_interval = '1s'"
        );
        let unusable = |error: tokio_postgres::Error| ConnectError::Protocol(with_causes(&error));
        client.batch_execute(&settings).await.map_err(unusable)?;
        let identity = match self.role {
            Role::Primary => Some(ServerIdentity::read(&client).await.map_err(unusable)?),
            Role::Replica => None,
        };
        if identity.as_ref().is_some_and(|identity| identity.is_standby) {
            return Err(ConnectError::Protocol(
                "`source.url` names a standby, which may lag behind; expected the primary".to_owned(),
            ));
        }
        let (prepared, opened) = (HashMap::new(), Instant::now());
        Ok(ReadConnection { client, identity, opened, prepared, statement_max: self.statement_max })
    }

    async fn recycle(&self, connection: &mut ReadConnection, _: &Metrics) -> RecycleResult<ConnectError> {
        match connection.client.is_closed() {
            true => Err(RecycleError::message("the connection is closed")),
            false => Ok(()),
        }
    }
}

impl ReadConnection {
    /// Executes the read at this position.
    pub(super) async fn fetch(
        &mut self,
        at: usize,
        read: &Read,
        values: &Arguments,
    ) -> Result<Fetched, tokio_postgres::Error> {
        match self.fetch_once(at, read, values).await {
            // The tables have changed since the statement was prepared.
            Err(error) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                self.fetch_once(at, read, values).await
            }
            outcome => outcome,
        }
    }

    async fn fetch_once(
        &mut self,
        at: usize,
        read: &Read,
        values: &Arguments,
    ) -> Result<Fetched, tokio_postgres::Error> {
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
        // Pipelined: all are sent before the first is answered.
        let (answer, is_canonical, clock) = tokio::join!(
            self.client.query(&prepared.statement, &parameters),
            is_canonical(&self.client, &prepared, values, &parameters),
            clock(&self.client, &prepared),
        );
        if answer.is_err() {
            // It may have been prepared for tables that have changed since.
            self.prepared.remove(&at);
        }
        let fetched = answer?.first().map(|row| fetched(row, clock)).transpose()?.unwrap_or_default();
        Ok(Fetched { is_canonical: is_canonical?, ..fetched })
    }
}

/// The server's clock, if the read has a column that says until when it is valid.
async fn clock(client: &Client, prepared: &PreparedRead) -> Option<SystemTime> {
    prepared.statement.columns().get(1)?;
    let row = client.query_one("select clock_timestamp()", &[]).await.ok()?;
    Some(row.get(0))
}

async fn prepare(client: &Client, read: &Read) -> Result<PreparedRead, tokio_postgres::Error> {
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
    Ok(PreparedRead { statement, canonical, is_loose })
}

async fn is_canonical(
    client: &Client,
    prepared: &PreparedRead,
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
    let body: Option<JsonText<'_>> = row.try_get(0)?;
    let valid_until = match row.columns().get(1) {
        Some(column) if *column.type_() == Type::TIMESTAMPTZ => row.try_get::<_, Option<SystemTime>>(1)?,
        _ => None,
    };
    // Zero if the clock is not known: the value is not stored.
    let valid_for = valid_until.map(|until| now.and_then(|now| until.duration_since(now).ok()).unwrap_or_default());
    Ok(Fetched { body: body.map(|json| json.0.to_vec()), valid_for, ..Fetched::default() })
}

/// The text of a JSON value, not parsed.
struct JsonText<'a>(&'a [u8]);

impl<'a> FromSql<'a> for JsonText<'a> {
    fn from_sql(kind: &Type, raw: &'a [u8]) -> Result<Self, Box<dyn std::error::Error + Sync + Send>> {
        match (kind, raw) {
            // The first byte is the version of the binary format.
            (&Type::JSONB, [1, text @ ..]) => Ok(Self(text)),
            (&Type::JSONB, _) => Err("unknown version of the binary format of jsonb".into()),
            (_, text) => Ok(Self(text)),
        }
    }

    fn accepts(kind: &Type) -> bool {
        matches!(*kind, Type::JSON | Type::JSONB | Type::TEXT | Type::VARCHAR)
    }
}
