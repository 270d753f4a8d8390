//! What a PostgreSQL server's refusal means and what the operator can do about it.
//!
//! Owns the table from SQLSTATE to advice. It must not decide whether to try again; the pipeline does.
//! Source of the codes: the PostgreSQL manual, appendix "PostgreSQL Error Codes".

use std::fmt;
use std::io;

use super::address::Host;

/// SQLSTATE: the slot or the publication does not exist.
pub(crate) const UNDEFINED_OBJECT: &str = "42704";

/// SQLSTATE: the slot is lost, or the server is not set up for it; as a warning, a publication was skipped.
pub(crate) const PREREQUISITE_STATE: &str = "55000";

/// An error that the server reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// Five characters; they never change between versions or languages.
    pub sqlstate: String,
    /// The server's sentence.
    pub message: String,
    /// Its longer explanation, if any.
    pub detail: Option<String>,
}

impl fmt::Display for ServerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (SQLSTATE {})", self.message, self.sqlstate)?;
        if let Some(detail) = &self.detail {
            write!(f, ": {detail}")?;
        }
        if let Some(advice) = advice(&self.sqlstate, &self.message) {
            write!(f, "; {advice}")?;
        }
        Ok(())
    }
}

impl std::error::Error for ServerError {}

impl From<&tokio_postgres::error::DbError> for ServerError {
    fn from(error: &tokio_postgres::error::DbError) -> Self {
        Self {
            sqlstate: error.code().code().to_owned(),
            message: error.message().to_owned(),
            detail: error.detail().map(ToOwned::to_owned),
        }
    }
}

/// What to do about an error with this SQLSTATE, where we know better than the server's own words.
pub fn advice(sqlstate: &str, message: &str) -> Option<&'static str> {
    let pooler =
        message.contains("startup parameter") || message.contains("pgbouncer") || message.contains("replication mode");
    Some(match sqlstate {
        "08P01" | "0A000" if pooler => {
            "this looks like a connection pooler, which cannot carry replication: point source.url at PostgreSQL itself"
        }
        "28P01" => "check the password in source.url or PGPASSWORD",
        "28000" => {
            "check the role, and that pg_hba.conf lets it in from here (a database line is enough for logical replication)"
        }
        "3D000" => "check the database name in source.url",
        "42501" => {
            "give the role what it lacks: ALTER ROLE name REPLICATION for the slot, CREATE on the database for the publication, the tables themselves to publish or widen them, SELECT for what is read"
        }
        "42704" => "run `unstale setup` to create what is missing",
        "53300" => "raise max_connections or max_wal_senders and restart PostgreSQL, or free a connection",
        "53400" => {
            "raise max_replication_slots or max_wal_senders and restart PostgreSQL, or drop a slot that nobody uses"
        }
        "55000" if message.contains("wal_level") => "set wal_level = logical and restart PostgreSQL",
        "55000" => "the slot or server cannot be used as it is; see `select * from pg_replication_slots`",
        "55006" => "another process reads this slot: as a standby we wait until it leaves",
        "57P03" => "PostgreSQL is starting up or shutting down",
        _ => return None,
    })
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No host answered.
    #[error("cannot reach PostgreSQL; tried {}", attempts(.0))]
    Unreachable(Vec<(Host, io::Error)>),
    /// The server answered and said no.
    #[error("PostgreSQL refused the connection: {0}")]
    Refused(ServerError),
    /// TLS files could not be used, or the server's certificate did not pass.
    #[error("TLS with PostgreSQL failed: {0}")]
    Tls(String),
    /// The server wants what we cannot give.
    #[error("cannot log in to PostgreSQL: {0}")]
    Login(&'static str),
    /// The bytes were not those of a PostgreSQL server.
    #[error("the server does not speak PostgreSQL's protocol as expected: {0}")]
    Protocol(String),
}

fn attempts(tried: &[(Host, io::Error)]) -> String {
    let shown: Vec<_> = tried.iter().map(|(host, error)| format!("{host} ({error})")).collect();
    shown.join(", ")
}

impl ConnectError {
    /// Whether trying again later may help without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            // Connection exceptions, lack of resources, operator intervention, object in use.
            Self::Refused(error) => {
                let pooler = error.sqlstate == "08P01";
                !pooler && ["08", "53", "57", "55006"].iter().any(|class| error.sqlstate.starts_with(class))
            }
            Self::Tls(_) | Self::Login(_) | Self::Protocol(_) => false,
        }
    }
}
