//! Why PostgreSQL rejects a query.
//!
//! Owns which errors are about the query, and which are about the connection or the server. It must
//! not know what the query is for.

use tokio_postgres::Error;
use tokio_postgres::error::ErrorPosition;

/// Why PostgreSQL rejects a query.
#[derive(Debug)]
pub struct RejectedQuery {
    /// The server's message.
    pub message: String,
    /// The server's hint, if any.
    pub hint: Option<String>,
    /// The line in the query, from 1, if the server gives a position and the query has several
    /// lines.
    pub line: Option<usize>,
    /// Whether the role lacks a privilege.
    pub is_forbidden: bool,
}

/// Converts an error about the query; other errors stay errors.
pub(super) fn rejected(error: Error, sql: &str) -> Result<RejectedQuery, Error> {
    /// Prefixes of SQLSTATE: connection, concurrency, resources, locks, operator intervention,
    /// system.
    const ELSEWHERE: [&str; 7] = ["08", "40", "53", "55P03", "57", "58", "XX"];
    let Some(refusal) = error.as_db_error() else { return Err(error) };
    let code = refusal.code().code();
    if ELSEWHERE.iter().any(|class| code.starts_with(class)) {
        return Err(error);
    }
    let line = match refusal.position() {
        Some(ErrorPosition::Original(at)) if sql.contains('\n') => {
            let before = sql.chars().take(usize::try_from(*at).unwrap_or(usize::MAX).saturating_sub(1));
            Some(before.filter(|character| *character == '\n').count() + 1)
        }
        _ => None,
    };
    let (message, hint) = (refusal.message().to_owned(), refusal.hint().map(ToOwned::to_owned));
    Ok(RejectedQuery { message, hint, line, is_forbidden: code == "42501" })
}
