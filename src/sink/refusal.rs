//! What the errors of Redis mean, and what the operator can do about each.
//!
//! Owns the table from error code to advice. It must not retry; [`super::link`] does.

use redis::{ErrorKind, RedisError};

use crate::redis::RedisCause;

/// Why Redis cannot be used, at start or by a command.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// It did not answer, or it refused.
    #[error("cannot use Redis at {address}; {advice}")]
    Unusable {
        /// Where it is, without credentials.
        address: String,
        /// What the operator can do.
        advice: &'static str,
        /// What happened.
        #[source]
        source: RedisCause,
    },
    /// It is older than the scripts need.
    #[error("Redis at {address} is version {version}; at least 7.0 is needed (Valkey 7.2)")]
    TooOld {
        /// Where it is, without credentials.
        address: String,
        /// Its version, as it says.
        version: String,
    },
}

impl SinkError {
    /// Redis did not answer, or it refused.
    pub fn unusable(address: &str, source: RedisError) -> Self {
        Self::Unusable { address: address.to_owned(), advice: explain(&source).advice, source: RedisCause(source) }
    }

    /// Redis was reached and refused the credentials: `target.url` is wrong, and waiting does not
    /// help.
    pub fn is_login_refused(&self) -> bool {
        match self {
            Self::Unusable { source: RedisCause(source), .. } => {
                source.kind() == ErrorKind::AuthenticationFailed
                    || matches!(source.code(), Some("NOAUTH" | "WRONGPASS"))
            }
            Self::TooOld { .. } => false,
        }
    }

    /// Redis was reached and does not permit this user the command. Others may be permitted.
    pub fn is_command_refused(&self) -> bool {
        matches!(self, Self::Unusable { source, .. } if source.0.code() == Some("NOPERM"))
    }
}

/// What follows from an error.
#[derive(Debug)]
pub(super) struct Refusal {
    /// The connection cannot be used any more, because of its state or because of its server.
    pub(super) reconnect: bool,
    /// What the operator can do.
    pub(super) advice: &'static str,
}

/// The table of errors. After each of them the command is tried again; they differ in the
/// connection that is used, and in what the operator can do.
pub(super) fn explain(error: &RedisError) -> Refusal {
    let known = |reconnect, advice| Refusal { reconnect, advice };
    match error.code() {
        Some("READONLY") => known(true, "this is a replica: looking for the primary again; check target.url"),
        Some("LOADING") => known(false, "Redis is loading its dataset"),
        Some("MASTERDOWN") => known(true, "this is a replica without its primary"),
        Some("CLUSTERDOWN") => known(true, "the cluster does not serve all slots"),
        Some("MISCONF") => known(false, "Redis cannot write its snapshot and refuses writes: check its disk and log"),
        Some("NOREPLICAS") => known(false, "too few replicas for min-replicas-to-write"),
        Some("OOM") => known(false, "Redis is full: raise maxmemory, or let it evict"),
        Some("NOPERM") => known(
            false,
            "the ACL of the user in target.url must allow the command and the namespace's keys and channels",
        ),
        Some("NOAUTH" | "WRONGPASS") => known(true, "check the user and password in target.url"),
        Some("WRONGTYPE") => known(
            false,
            "a key that begins with the namespace and `unstale:` holds a value of another program: delete that key",
        ),
        Some("NOSCRIPT") => known(true, "the scripts were flushed: loading them again"),
        Some("CROSSSLOT" | "MOVED") => {
            known(true, "this is a cluster, which this version does not support; name a single server")
        }
        _ if error.kind() == ErrorKind::AuthenticationFailed => {
            known(true, "check the user and password in target.url")
        }
        // Whether the command ran is not known; every command may run twice.
        _ if error.is_timeout() => known(true, "Redis did not answer in time"),
        _ if error.is_io_error() || error.is_connection_dropped() => {
            known(true, "check that Redis runs and that target.url is right")
        }
        _ => known(true, "see the log of Redis"),
    }
}
