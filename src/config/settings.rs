//! The settings of a file: everything but rules, lookups, reads and tests.
//!
//! Owns their types. It must not know YAML.

use std::time::Duration;

use super::api::Api;
use crate::postgres::Address;

/// Where changes come from, which Redis they invalidate, and the defaults of rules.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach PostgreSQL.
    pub postgres: Address,
    /// How changes are read.
    pub mode: Mode,
    /// Whether writers wake an idle daemon, in [`Mode::Outbox`].
    pub notify: bool,
    /// The name of the replication slot; in [`Mode::Outbox`] that of the consumer.
    pub slot: String,
    /// The name of the publication.
    pub publication: String,
    /// How to reach Redis.
    pub redis: redis::ConnectionInfo,
    /// Prefix of everything written to Redis.
    pub namespace: String,
    /// If Redis is unreachable for longer, the replication connection is closed: PostgreSQL cannot
    /// shut down until a connected receiver has confirmed everything.
    pub redis_down_max: Duration,
    /// The effect of a truncate.
    pub truncate: Truncate,
    /// How filters treat an unknown old value.
    pub unknown: Unknown,
    /// The TTL of values that rules write, from the last write on, unless a rule sets another.
    pub ttl: Duration,
    /// The most operations of one transaction that name single keys.
    pub max_keys: usize,
    /// The settings of the read API.
    pub api: Api,
}

/// How changes are read from PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Logical replication.
    Slot,
    /// Triggers write changes to a table, and the daemon removes them.
    Outbox,
}

impl Mode {
    /// Its word in the file.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Slot => "slot",
            Self::Outbox => "outbox",
        }
    }
}

/// The effect of a truncate on the keys of a table's templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// Delete by the glob of every template.
    Pattern,
    /// Nothing.
    Ignore,
    /// Stop with an error.
    Fail,
}

/// How filters treat an old value that the log does not carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It counts as changed.
    Match,
    /// It counts as unchanged.
    Skip,
    /// Stop with an error.
    Fail,
}
