//! The settings of a file: everything but the rules, the reads and the tests.
//!
//! Owns their types. It must not know YAML.

use std::time::Duration;

use super::api::Api;
use crate::postgres::Address;

/// Where changes come from, where effects go, and what to do in doubt.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How to reach PostgreSQL.
    pub postgres: Address,
    /// How changes are read.
    pub mode: Mode,
    /// Whether writers wake a sleeping daemon, in [`Mode::Outbox`].
    pub notify: bool,
    /// The name of the replication slot; of whoever reads the outbox, in [`Mode::Outbox`].
    pub slot: String,
    /// The name of the publication.
    pub publication: String,
    /// How to reach Redis.
    pub redis: redis::ConnectionInfo,
    /// Prefix of everything written to Redis.
    pub namespace: String,
    /// With Redis away for longer, the replication connection is closed: PostgreSQL cannot shut down while
    /// what it sent is not confirmed.
    pub redis_down_max: Duration,
    /// What a truncate does.
    pub truncate: Truncate,
    /// What a filter makes of an old value that is not known.
    pub unknown: Unknown,
    /// How long what is written to Redis lives after it was written last, unless a rule says otherwise.
    pub ttl: Duration,
    /// The most ops of one transaction that are named one by one.
    pub max_keys: usize,
    /// How the read API serves.
    pub api: Api,
}

/// How changes are read from PostgreSQL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Logical replication.
    Slot,
    /// Triggers that write to a table, which is emptied.
    Outbox,
}

/// What a truncate does to the keys of a table's templates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Truncate {
    /// Delete by the glob of every template.
    Pattern,
    /// Nothing.
    Ignore,
    /// Stop with an error.
    Fail,
}

/// What a filter makes of an old value that the log does not carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unknown {
    /// It counts as changed.
    Match,
    /// It counts as unchanged.
    Skip,
    /// Stop with an error.
    Fail,
}
