//! Why a read has no answer.
//!
//! Owns the reasons. It must not know which response follows from one; `http` does.

use super::database::DatabaseError;

/// Why a question has no answer.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The database gave none.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// The request took longer than `api.timeout`.
    #[error("the request took longer than `api.timeout`")]
    Timeout,
    /// The consistency token names a position that the primary's log has not reached.
    #[error("the consistency token is ahead of the primary's log")]
    TokenAhead,
}
