//! Why PostgreSQL gave no value.
//!
//! Owns the reasons and the way from SQLSTATE to one. It must not know which response follows from
//! one. Invariant: no reason contains a value of a row. PostgreSQL's messages about values quote
//! them.

use std::sync::Arc;

use deadpool::managed::PoolError;

use crate::postgres::ConnectError;

/// Why there is no value.
#[derive(Clone, Debug, thiserror::Error)]
pub(in crate::api) enum DatabaseError {
    /// A parameter does not have the type that the query takes. Holds the SQLSTATE.
    #[error("a parameter does not have the type that the query takes (SQLSTATE {0})")]
    Parameter(String),
    /// The server cannot be reached, or the connection broke.
    #[error("PostgreSQL is unavailable")]
    Unavailable(#[source] Arc<Outage>),
    /// No connection became free in time.
    #[error("PostgreSQL has too many reads to answer; `api.database_connections` limits them")]
    Overloaded,
    /// The statement took too long.
    #[error("PostgreSQL did not answer within the read's `timeout`")]
    Timeout,
    /// The server refused the query itself. Holds the SQLSTATE, or what happened.
    #[error("PostgreSQL refused the query (SQLSTATE {0})")]
    Refused(String),
}

/// Why a server is unavailable.
#[derive(Debug, thiserror::Error)]
pub(in crate::api) enum Outage {
    /// It is not tried, because it was unavailable a moment ago.
    #[error("the last attempt, a moment ago, failed")]
    Recent,
    /// No connection could be opened.
    #[error("no connection could be opened")]
    NoConnection(#[source] PoolError<ConnectError>),
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] tokio_postgres::Error),
    /// The server itself reports it.
    #[error("{message} (SQLSTATE {sqlstate})")]
    Reported { message: String, sqlstate: String },
    /// The answer must contain what the client has seen, and the server is another one.
    #[error("source.url leads to another server, or another database, than the one whose changes reach Redis")]
    OtherServer,
    /// The connection was returned to the pool before its use.
    #[error("the connection was already returned to the pool")]
    Returned,
}

impl From<Outage> for DatabaseError {
    fn from(outage: Outage) -> Self {
        Self::Unavailable(Arc::new(outage))
    }
}

impl DatabaseError {
    /// The server is not the one whose answer is needed.
    pub(in crate::api) fn other_server() -> Self {
        Outage::OtherServer.into()
    }

    /// Whether the server is unavailable or busy, so that a cached value may stand in for its
    /// answer.
    pub(in crate::api) fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Overloaded | Self::Timeout)
    }

    /// Whether a statement may still run on the connection, or the connection may be broken.
    pub(super) fn leaves_connection_unusable(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::Timeout)
    }
}

impl From<tokio_postgres::Error> for DatabaseError {
    fn from(error: tokio_postgres::Error) -> Self {
        let Some(refusal) = error.as_db_error() else { return Outage::Broken(error).into() };
        let code = refusal.code().code();
        match code.get(..2).unwrap_or_default() {
            "22" => Self::Parameter(code.to_owned()),
            // query_canceled: `statement_timeout`.
            _ if code == "57014" => Self::Timeout,
            // Connections, resources, operator intervention.
            "08" | "53" | "57" => {
                Outage::Reported { message: refusal.message().to_owned(), sqlstate: code.to_owned() }.into()
            }
            _ => {
                // At debug level only: what a function raises may contain values of rows.
                tracing::debug!(message = refusal.message(), code, "PostgreSQL refused a query");
                Self::Refused(code.to_owned())
            }
        }
    }
}
