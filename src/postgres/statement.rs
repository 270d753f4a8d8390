//! Why a statement failed.
//!
//! Owns the distinction between an error of the server and a broken connection. It must not know
//! the statement. Invariant: an error of the server shows the server's message, which
//! tokio-postgres omits.

use super::error::ServerError;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The server reported an error.
    #[error(transparent)]
    Refused(ServerError),
    /// The connection broke, or the response could not be read.
    #[error("the connection to PostgreSQL broke")]
    Broken(#[source] tokio_postgres::Error),
}

impl From<tokio_postgres::Error> for StatementError {
    fn from(error: tokio_postgres::Error) -> Self {
        match error.as_db_error() {
            Some(refusal) => Self::Refused(ServerError::from(refusal)),
            None => Self::Broken(error),
        }
    }
}
