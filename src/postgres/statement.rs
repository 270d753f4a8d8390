//! Why a statement failed.
//!
//! Owns the distinction between a server that refuses and a connection that breaks. It must not know the statement.
//! Invariant: a refusal is printed in the server's words, which the library's own message leaves out.

use super::error::ServerError;

/// Why a statement failed.
#[derive(Debug, thiserror::Error)]
pub enum StatementError {
    /// The server refused it.
    #[error(transparent)]
    Refused(ServerError),
    /// There is no answer: the connection broke, or the answer cannot be read.
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
