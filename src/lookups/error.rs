//! Why a call has no rows.
//!
//! Owns these errors and what each means for the connection. Invariant: no value of a row reaches a
//! message.

use crate::rules::Lookup;

/// Why a call has no rows.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookupError {
    #[error("lookup `{0}` returned more than {1} rows; raise its `max`, or narrow it")]
    TooMany(String, usize),
    #[error("lookup `{0}` failed: {1}")]
    Refused(String, String),
    #[error("lookup `{0}` failed")]
    Broken(String, #[source] tokio_postgres::Error),
    #[error("lookup `{0}` did not answer in time; raise its `timeout`, or make its query faster")]
    TimedOut(String),
    #[error("lookup `{0}` was not asked: the connection to the database is closed")]
    Closed(String),
}

impl LookupError {
    pub(super) fn of(lookup: &Lookup, error: tokio_postgres::Error) -> Self {
        let name = lookup.name.value.clone();
        let Some(refusal) = error.as_db_error() else { return Self::Broken(name, error) };
        let code = refusal.code().code();
        match code.starts_with("22") {
            // PostgreSQL quotes an invalid value, which may not appear in a log.
            true => Self::Refused(name, format!("the query does not accept a value (SQLSTATE {code})")),
            false => Self::Refused(name, format!("{} (SQLSTATE {code})", refusal.message())),
        }
    }

    /// Whether the connection is in an unknown state.
    pub(super) fn loses_connection(&self) -> bool {
        match self {
            Self::TimedOut(_) | Self::Broken(..) => true,
            Self::TooMany(..) | Self::Refused(..) | Self::Closed(_) => false,
        }
    }

    /// Whether other calls of the same rule would fail in the same way.
    pub(super) fn fails_the_rule(&self) -> bool {
        match self {
            Self::TooMany(..) => false,
            Self::Refused(..) | Self::Broken(..) | Self::TimedOut(_) | Self::Closed(_) => true,
        }
    }

    /// The reason in a dead letter: the error and its cause.
    pub(super) fn reason(&self) -> String {
        match std::error::Error::source(self) {
            Some(cause) => format!("{self}: {cause}"),
            None => self.to_string(),
        }
    }
}
