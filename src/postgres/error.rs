//! Errors of PostgreSQL and of connecting to it, and what the operator can do about them.
//!
//! Owns the table from SQLSTATE to advice. It must not retry; the pipeline does. Source of the
//! codes: the PostgreSQL manual, appendix "PostgreSQL Error Codes".

use std::fmt;
use std::io;

use super::address::Host;

/// SQLSTATE: an object, such as the slot or the publication, does not exist.
pub(crate) const UNDEFINED_OBJECT: &str = "42704";

/// SQLSTATE: the slot is lost, or the server's settings do not allow it. As a warning: a
/// publication was skipped.
pub(crate) const PREREQUISITE_STATE: &str = "55000";

/// SQLSTATE: the server is starting, shutting down, or a standby that accepts no sessions.
pub(super) const CANNOT_CONNECT_NOW: &str = "57P03";

/// An error that the server reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerError {
    /// Five characters, the same in all versions and languages.
    pub sqlstate: String,
    /// The server's message.
    pub message: String,
    /// The server's detail, if any.
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

// Authentication that the server asks for and unstale cannot provide.
pub(crate) const NO_PASSWORD: &str = "the server asks for a password; set one in source.url or PGPASSWORD";
pub(crate) const NO_CHANNEL_BINDING: &str =
    "channel_binding=require, but the server does not use it on this connection; it needs TLS and scram-sha-256";
pub(crate) const UNSUPPORTED: &str =
    "the server asks for an authentication method that is not supported; use scram-sha-256";

/// Advice for an error with this SQLSTATE, in addition to the server's own hint.
pub fn advice(sqlstate: &str, message: &str) -> Option<&'static str> {
    let pooler =
        message.contains("startup parameter") || message.contains("pgbouncer") || message.contains("replication mode");
    Some(match sqlstate {
        "08P01" | "0A000" if pooler => {
            "this looks like a connection pooler, which does not support replication; set source.url to PostgreSQL itself"
        }
        "28P01" => "check the password in source.url or PGPASSWORD",
        "28000" => {
            "check the role, and that pg_hba.conf allows it from this host (a line for the database also covers logical replication)"
        }
        "3D000" => "check the database name in source.url",
        "42501" => {
            "grant the role what it lacks: ALTER ROLE name REPLICATION for the slot, CREATE on the database for the publication, ownership of tables that are published or widened, SELECT on what is read"
        }
        "42704" => "run `unstale setup` to create what is missing",
        "53300" => "raise max_connections or max_wal_senders and restart PostgreSQL, or free a connection",
        "53400" => "raise max_replication_slots or max_wal_senders and restart PostgreSQL, or drop an unused slot",
        "55000" if message.contains("wal_level") => "set wal_level = logical and restart PostgreSQL",
        "55000" => "the state of the slot or the server does not allow this; see `select * from pg_replication_slots`",
        "55006" => "another process is reading this slot; this one waits as a standby until it stops",
        "57P03" => "PostgreSQL is starting up or shutting down",
        _ => return None,
    })
}

/// Why no connection was made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No host answered; the hosts and their errors.
    #[error("cannot reach PostgreSQL; tried {}", attempts(.0))]
    Unreachable(Vec<(Host, io::Error)>),
    /// The server refused the connection.
    #[error("PostgreSQL refused the connection: {0}")]
    Refused(ServerError),
    /// A TLS file could not be used, or the server's certificate was not accepted.
    #[error("TLS with PostgreSQL failed: {0}")]
    Tls(String),
    /// The server asks for authentication that is not available.
    #[error("cannot log in to PostgreSQL: {0}")]
    Login(&'static str),
    /// The server's bytes were not valid in PostgreSQL's protocol.
    #[error("the server does not follow PostgreSQL's protocol: {0}")]
    Protocol(String),
}

fn attempts(tried: &[(Host, io::Error)]) -> String {
    let shown: Vec<_> = tried.iter().map(|(host, error)| format!("{host} ({error})")).collect();
    shown.join(", ")
}

impl ConnectError {
    /// Whether a later attempt may succeed without any change by the operator.
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
