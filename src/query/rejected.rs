//! Why PostgreSQL does not take a query.
//!
//! Owns which errors are about the query, and which about the connection or the server.

use tokio_postgres::Error;
use tokio_postgres::error::ErrorPosition;

/// Why PostgreSQL does not take a query.
#[derive(Debug)]
pub struct RejectedQuery {
    /// The server's sentence.
    pub message: String,
    /// Its advice, if any.
    pub hint: Option<String>,
    /// The line of the query, from 1, if the server names a place and there are several.
    pub line: Option<usize>,
    /// Whether the role lacks a privilege.
    pub is_forbidden: bool,
}

/// What the server has against the query; an error that is not about it stays one.
pub(super) fn rejected(error: Error, sql: &str) -> Result<RejectedQuery, Error> {
    /// Beginnings of SQLSTATE: the connection, concurrency, resources, locks, operators, the system.
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
